# ---
# jupyter:
#   jupytext:
#     notebook_metadata_filter: -jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # At paper scale
#
# [![Open in Colab](../book/figures/open_in_colab.svg)](https://colab.research.google.com/github/defectdiffu/defectdiffu/blob/main/notebooks/14_paper_scale.ipynb)
#
# **The question.** Everything so far ran on a model of a few million numbers and pictures of 64 pixels. What does it
# take to run the same code at the paper's size, 512 pixels and a DiT-XL/2, and does it fit on your GPU?
#
# **Before you run it, predict.** Training at 512 pixels with a batch of 2: what takes most of the memory, the weights,
# the optimiser, or what the blocks keep for the backward pass? And with a batch of 32?

# %% tags=["hide-cell"]
import importlib.util
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

# Where the package is missing, as on Colab, install it with all that it needs.
NEEDED = {
    "defectdiffu": "defectdiffu[evaluation] @ git+https://github.com/defectdiffu/defectdiffu",
    "myst_nb": "myst-nb",
}
missing = [
    source
    for module, source in NEEDED.items()
    if importlib.util.find_spec(module) is None
]
if missing:
    # What PyTorch and NumPy are there fit the machine: they stay, to the very version.
    kept = [
        f"{module}=={version(module)}\n"
        for module in ("torch", "torchvision", "numpy")
        if importlib.util.find_spec(module)
    ]
    constraints = Path(tempfile.mkdtemp(), "constraints.txt")
    constraints.write_text("".join(kept))
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--constraint", str(constraints), *missing], check=True)

# %% tags=["parameters"]
# @title Settings
FAST = False  # @param {type:"boolean"}
BATCH_SIZES = "2,8,32"  # @param {type:"string"}
UTILISATION = 0.4  # @param {type:"number"}
REPEATS = 3  # @param {type:"integer"}

# %% tags=["hide-cell"]
import os
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import torch
from diffusers import DiTTransformer2DModel
from IPython.display import Markdown
from myst_nb import glue

from defectdiffu import PRESETS, PromptEmbedding, viz
from defectdiffu.benchmark import benchmark
from defectdiffu.generation import BATCH
from defectdiffu.machine import device_name
from defectdiffu.memory import sampling_savings
from defectdiffu.pipeline import quiet
from defectdiffu.pretrained.dit import from_dit
from defectdiffu.training.planning import (
    memory_table,
    meta_parts,
    meta_transformer,
    savings,
    training_memory,
)

FAST = FAST or os.environ.get("DEFECTDIFFU_FAST") == "1"
if FAST:  # small enough for a check on every change
    REPEATS = 1
batch_sizes = [int(size) for size in BATCH_SIZES.split(",")]
viz.use_style()


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return Markdown("\n".join("| " + " | ".join(map(str, r)) + " |" for r in lines))


# %% [markdown]
# ## The same model, larger
#
# A preset is a table of settings. `tiny` is what the other chapters use, `book` is for 256 pixels and one GPU, and
# `paper` has the sizes of the paper. The class is the same; here each is built without its numbers (on PyTorch's
# `meta` device), so that it can be measured on a laptop.

# %%
parts = {
    "background": ("background_part",),
    "defect": ("defect_part",),
    "fusion": ("fusion_part",),
    "mask head": ("mask_head",),
}
rows = []
for name, preset in PRESETS.items():
    model = meta_transformer(preset)
    total = sum(p.numel() for p in model.parameters())
    sizes = [
        sum(
            p.numel()
            for module in modules
            for p in getattr(model, module).parameters()
        )
        for modules in parts.values()
    ]
    rows.append(
        [
            f"`{name}`",
            preset.image_size,
            model.side**2,
            preset.model.width,
            "/".join(
                str(getattr(preset.model, f"{part}_blocks"))
                for part in ("background", "defect", "fusion")
            ),
            *(f"{n / 1e6:.1f}" for n in sizes),
            f"{total / 1e6:.1f}",
        ]
    )
header = ["preset", "pixels", "tokens", "width", "N/M/K", *parts, "total"]
table(header, rows)

# %% [markdown]
# Parameters are in millions. The text encoder and the autoencoder come on top; in `paper` both are pretrained and
# frozen (CLIP ViT-L/14 and Stable Diffusion's autoencoder), and both run *before* training: prompts and latents are
# computed once and kept.
#
# ## Start from a DiT
#
# The paper does not train from nothing. It begins from DiT-XL/2, a model of ImageNet's classes, and puts text in the
# place of the class. The line in the package is
#
# ```python
# transformer, new = from_dit("facebook/DiT-XL-2-512")
# ```
#
# It reads diffusers' folder or the original `.pt` file (tensors only: no code in the file is ever run). The blocks are
# dealt out to the three parts in their order. The defect blocks' cross-attention begins by adding nothing. So with the
# text's contribution at zero, the new model must compute what the DiT computes. That can be checked on any DiT; here
# is a small one with random weights.

# %%
# NBVAL_CHECK_OUTPUT
torch.manual_seed(0)
dit = DiTTransformer2DModel(
    num_attention_heads=4,
    attention_head_dim=16,
    num_layers=5,
    sample_size=8,
    in_channels=4,
    out_channels=8,
    num_embeds_ada_norm=10,
    norm_eps=1e-6,
).eval()
for parameter in dit.parameters():  # nothing may hide behind a zero
    torch.nn.init.normal_(parameter, std=0.05)
embedding = dit.transformer_blocks[0].norm1.emb
torch.nn.init.zeros_(embedding.class_embedder.embedding_table.weight)
for block in dit.transformer_blocks:  # as in a real DiT, all share one embedding
    block.norm1.emb.load_state_dict(embedding.state_dict())

with tempfile.TemporaryDirectory() as folder, quiet():
    dit.save_pretrained(folder)
    ours, new = from_dit(
        folder,
        text_dim=32,
        background_blocks=2,
        defect_blocks=2,
        fusion_blocks=1,
    )
ours.eval()

x, t = torch.randn(3, 4, 8, 8), torch.tensor([1, 500, 999])
no_text = PromptEmbedding(torch.zeros(3, 32))
with torch.no_grad():
    theirs = dit(
        x, timestep=t, class_labels=torch.zeros(3, dtype=torch.long)
    ).sample
    difference = (ours(x, t, no_text, no_text, no_text).sample - theirs).abs().max()
assert difference < 1e-4
print("largest difference below 1e-4:", bool(difference < 1e-4))
print("new, to be learned:", *sorted({name.split(".")[0] for name in new}))

# %% [markdown]
# New are the projections of the three prompts, the cross-attention in the defect blocks, and the mask head.
#
# ## Memory
#
# One formula to plan with. With $P$ parameters, AdamW and a moving average, training in mixed precision keeps
#
# $$
# \underbrace{4P}_{\text{weights}} + \underbrace{2P}_{\text{half copy}} + \underbrace{4P}_{\text{gradients}}
# + \underbrace{8P}_{\text{AdamW}} + \underbrace{4P}_{\text{average}} = 22\,P \ \text{bytes}
# $$
#
# whatever the batch, and then what every block remembers for the backward pass, which grows with the batch, the tokens
# and the width. In the code this is `training_memory` in `defectdiffu/training/planning.py`. The figure is
# **computed, not measured**; it is good to a factor of about 1.5.

# %% mystnb={"image": {"alt": "Memory of one GPU in GB by use, one bar per batch and setting"}} tags=["hide-input"]
saving = {"gradient_checkpointing": True, "average_on_cpu": True}
bars, labels = [], []
for size in batch_sizes:
    plain = PRESETS["paper"].replace(training={"batch_size": size})
    small = plain.replace(training=saving | {"accumulate": size})
    for label, preset in (("as it is", plain), ("saving", small)):
        bars.append(training_memory(preset, "bf16"))
        labels.append(f"batch {size}, {label}")

names = [name for name in bars[0] if name != "total"]
figure, axis = plt.subplots(
    figsize=(6, 0.42 * len(bars) + 1.3), layout="constrained"
)
left = np.zeros(len(bars))
for i, name in enumerate(names):
    values = np.array([bar[name] for bar in bars])
    axis.barh(
        labels,
        values,
        left=left,
        label=name.replace("_", " "),
        color=viz.COLOURS[i],
    )
    left += values
for y, total in enumerate(left):
    axis.text(max(total, 16) + 1, y, f"{total:.0f}", va="center")
axis.axvline(16, color="black", linestyle=":", linewidth=1)
axis.text(16, -0.75, " a T4's 16 GB", va="center", fontsize=9)
axis.set(
    xlabel="GB of one GPU, computed",
    ylim=(len(bars) - 0.4, -1.2),
    xlim=(0, left.max() * 1.1),
)
figure.legend(loc="outside lower center", ncols=3)
plt.close(figure)
figure

# %% tags=["remove-cell"]
first = PRESETS["paper"].replace(training={"batch_size": batch_sizes[0]})
least = training_memory(
    first.replace(training=saving | {"accumulate": batch_sizes[0]}), "fp16"
)
biggest = max(names, key=lambda name: bars[0][name])
biggest_last = max(names, key=lambda name: bars[-2][name])
glue("scale_batch", batch_sizes[0], display=False)
glue("scale_batch_last", batch_sizes[-1], display=False)
glue("scale_plain", f"{bars[0]['total']:.0f}", display=False)
glue("scale_least", f"{least['total']:.1f}", display=False)
glue("scale_fits", "fits" if least["total"] < 15 else "does not fit", display=False)
glue("scale_biggest", biggest.replace("_", " "), display=False)
glue("scale_biggest_last", biggest_last.replace("_", " "), display=False)

# %% [markdown]
# At a batch of {glue:text}`scale_batch` the largest part is the {glue:text}`scale_biggest`; at
# {glue:text}`scale_batch_last` it is the {glue:text}`scale_biggest_last`. Compare with your prediction.
#
# Three settings under `training` take less memory, and none changes what is learned beyond rounding:
#
# - `gradient_checkpointing`: a block keeps its input alone and computes the rest again on the way back. One more
#   forward pass, a third more time.
# - `accumulate`: the batch goes through in so many parts, one after another.
# - `average_on_cpu`: the moving average lives in the computer's memory.
#
# With all three, a batch of {glue:text}`scale_batch` takes {glue:text}`scale_least` GB by this arithmetic, instead of
# {glue:text}`scale_plain`, so it {glue:text}`scale_fits` on a Colab T4 with 16 GB. When the memory does run out, the
# error names what each setting would save; here for the batch that the preset asks for:

# %%
for setting, gb in savings(PRESETS["paper"], "bf16").items():
    print(f"{setting:30} saves {gb:6.1f} GB")

# %% [markdown]
# Sampling needs less: the weights alone, and the activations of one block, or of the decoder's last layers, at a time.
# It has means of its own, all of them diffusers', each also an option of `defectdiffu generate`:
#
# - `pipe(..., batch_size=1)`, `--batch-size 1`: one pair at a time, in all its branches.
# - `DefectDiffuPipeline.from_pretrained(name, dtype=torch.float16)`: two bytes a number. `generate` does so on a GPU,
#   unless `--full-precision` is given.
# - `pipe.enable_model_cpu_offload()`, `--offload`: only the part that computes is on the GPU. Text encoder, transformer
#   and autoencoder take turns, once a batch.
# - `pipe.vae.enable_tiling()`, `--tiling`: a picture larger than a tile is decoded tile by tile. Tiles overlap and are
#   blended, so the picture is almost the same. The pictures of `tiny` and `book` are smaller than a tile.
#
# When the memory runs out, the error again names what each would save by itself; here for `paper`, and as many pairs as
# `generate` samples together:

# %%
for mode, gb in sampling_savings(meta_parts(PRESETS["paper"]), BATCH).items():
    print(f"{mode:42} saves {gb:6.1f} GB")

# %% [markdown]
# The table puts training and sampling side by side. It too is **computed, not measured**: training in `bf16`, sampling
# in full precision with `double_free` guidance; "saving" is with everything above switched on, so one picture is
# computed at a time.

# %% tags=["hide-input"]
rows = [
    [
        f"`{row['preset']}`",
        row["image_size"],
        row["batch_size"],
        *(
            f"{row[key]:.2f}"
            for key in ("gb", "gb_saving", "sampling_gb", "sampling_gb_saving")
        ),
    ]
    for name, image_sizes in {
        "tiny": [64],
        "book": [256],
        "paper": [256, 512],
    }.items()
    for row in memory_table([PRESETS[name]], image_sizes, batch_sizes)
]
header = [
    "GB, computed",
    "pixels",
    "batch",
    "training",
    "saving",
    "sampling",
    "saving",
]
table(header, rows)

# %% [markdown]
# ## Time
#
# A training step costs three forward passes (the backward pass is two), and a forward pass costs two operations per
# weight and token, and the attention's two products. What share of its peak a GPU reaches is called the MFU, *model
# FLOP utilisation*. The table divides the arithmetic by the peak rate that each card's maker states, times an MFU that
# is an assumption, set above; `defectdiffu benchmark` measures the true one on yours.

# %% tags=["hide-input"]
PEAK = {
    "T4 (fp16)": 65e12,
    "A100 (bf16)": 312e12,
    "H100 (bf16)": 989e12,
}  # as stated by the maker


def flop_per_image(preset):
    tokens, width = meta_transformer(preset).side ** 2, preset.model.width
    model = preset.model
    blocks = model.background_blocks + model.defect_blocks + model.fusion_blocks
    return blocks * tokens * (2 * 12 * width**2 + 4 * tokens * width)


rows = []
for size in (256, 512):
    preset = PRESETS["paper"].replace(image_size=size)
    flop = flop_per_image(preset)
    rates = [peak * UTILISATION / (3 * flop) for peak in PEAK.values()]
    rows.append([size, f"{flop / 1e12:.2f}", *(f"{rate:.0f}" for rate in rates)])
print(
    f"training images per second if the MFU is {UTILISATION}: computed, not measured"
)
table(["pixels", "TFLOP per forward pass", *PEAK], rows)

# %% [markdown]
# ## Several GPUs
#
# The command stays the same, `accelerate` starts it once per GPU, and the batch is shared out: eight GPUs take the same
# steps as one.
#
# ```bash
# accelerate launch --num_processes 8 -m defectdiffu.cli train --preset paper --data mvtec --out runs/paper
# ```
#
# A run that was killed goes on by the same command, also with another number of GPUs.
#
# ## What the cache saves
#
# The autoencoder of Stable Diffusion costs more per picture than a step of a small transformer, so it is run once:
# every picture in several augmented versions becomes a latent on the disk. Several processes share that work batch by
# batch, and what a killed run has encoded is not encoded again.

# %%
preset = PRESETS["paper"]
latent = preset.autoencoder.latent_channels * preset.latent_size**2
per_picture = (
    preset.training.variants * 2 * latent * 2
)  # image and mask, 2 bytes each
for pictures in (1_000, 5_000, 10_000):
    print(
        f"{pictures:6,} pictures: {pictures * per_picture / 1e9:.1f} GB of latents"
    )

# %% [markdown]
# ## Measured: this code beside what the released code does
#
# The released code runs autoencoder and text encoder in every step, computes in full precision, keeps nothing, and
# samples 50 steps with one pass per branch. `benchmark` in `defectdiffu/benchmark.py` times both ways in one run, with
# random weights. Here for `tiny` on the machine that made this page; for your GPU it is
# `defectdiffu benchmark --preset paper --baseline`.

# %% tags=["hide-input"]
small = PRESETS["tiny"].replace(training={"batch_size": 16})
measured = benchmark(small, repeats=REPEATS, baseline=True)
rows = [
    [
        what,
        f"{measured[f'{key}_samples_per_second']:.1f}",
        f"{measured[f'baseline_{key}_samples_per_second']:.1f}",
        f"{measured[f'{key}_speedup']:.1f}",
        f"{measured[f'{key}_mfu']:.2f}",
    ]
    for what, key in (
        ("training, images/s", "training"),
        ("sampling, pairs/s", "sampling"),
    )
]
print(f"{device_name()}, {measured['precision']}, median of {REPEATS}")
table(["`tiny`", "ours", "baseline", "ratio", "our MFU"], rows)

# %% tags=["remove-cell"]
glue("scale_train", f"{measured['training_speedup']:.1f}", display=False)
glue("scale_sample", f"{measured['sampling_speedup']:.1f}", display=False)

# %% [markdown]
# Training is {glue:text}`scale_train` times as fast as the baseline here, sampling {glue:text}`scale_sample` times. On
# a GPU and at 512 pixels, where the autoencoder weighs more, the ratio is another: it has **not been measured yet**.
#
# ## What would break this
#
# - **The wrong resolution.** A DiT knows its positions by a fixed table. Weights for 256 pixels are refused at 512.
# - **Believing a computed number.** Memory also goes to fragments, to the autoencoder while it encodes, and to whatever
#   else runs. Start with `--dry-run`, then a run of ten steps.
# - **Half precision on an old card.** A T4 has no bfloat16. The code then uses float16 with scaled gradients.
#
# ## Summary
#
# The paper's model is the same class with larger numbers, and begins from a DiT, whose output it reproduces before it
# has learned any text. Its memory is 22 bytes per parameter and then the activations, which three settings bring down
# to what a Colab GPU has; sampling takes less, and four options make it small. Times on a GPU are computed here, and
# measured by one command on yours.
#
# ## Exercises
#
# 1. `tiny` has 22 bytes per parameter as well. Why does nobody worry about it?
# 2. Why does `accumulate` save almost nothing at a batch of 2 with checkpointing on?
# 3. The background blocks see the product alone, and two of three guidance branches share it. What does that save at
#    N/M/K = 10/10/8, as a share of the three passes?
#
# ````{dropdown} Answers
# 1. Its parameters are counted in single millions: 22 bytes each make some tens of megabytes. Its activations are the
#    larger part.
# 2. What is left is one block's inside for one or two pictures, a small part beside 22 bytes for every parameter.
# 3. One background pass of three: 10 of 3 x 28 blocks, 12 %.
# ````
