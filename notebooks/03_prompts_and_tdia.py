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
# # Prompts and TDIA
#
# [![Open in Colab](../book/figures/open_in_colab.svg)](https://colab.research.google.com/github/defectdiffu/defectdiffu/blob/main/notebooks/03_prompts_and_tdia.ipynb)
#
# **The question.** A picture of a cracked hazelnut is two things at once: a nut, and a crack. How do you tell a
# network both without its mixing them up, so that the crack can later be put on something else?
#
# **Before you run it, predict.** The model is given three prompts: one for the product, one for the defect, one for
# both together. We shall exchange one of them and leave the other two. Which one changes the product in the picture,
# and which one the defect? Write down two letters.
#
# The paper's answer is called TDIA, the *text-guided disentangled integrated architecture* (Sec. 3.2 and Fig. 2).

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
WEIGHTS = "tiny"  # @param {type:"string"}
PRODUCT = "hazelnut"  # @param {type:"string"}
DEFECT = "crack"  # @param {type:"string"}
OTHER_PRODUCT = "tile"  # @param {type:"string"}
OTHER_DEFECT = "contamination"  # @param {type:"string"}
NUM_IMAGES = 4  # @param {type:"integer"}
STEPS = 20  # @param {type:"integer"}
EXCHANGES = 12  # @param {type:"integer"}

# %% tags=["hide-cell"]
import inspect
import os
from collections import Counter
from itertools import product as every

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from matplotlib.patches import FancyBboxPatch
from myst_nb import glue
from PIL import Image

from defectdiffu import (
    PRESETS,
    DefectDiffuPipeline,
    autoencoder,
    masks,
    prompts,
    viz,
)
from defectdiffu.config import GOOD
from defectdiffu.drawn.procedural import render
from defectdiffu.evaluation.judge import Judge
from defectdiffu.training.building import TRAIN_STEPS

FAST = FAST or os.environ.get("DEFECTDIFFU_FAST") == "1"
if FAST:  # small enough for a check on every change
    NUM_IMAGES, STEPS, EXCHANGES = 2, 3, 2
viz.use_style()
pipe = DefectDiffuPipeline.from_pretrained(WEIGHTS)
pipe.set_progress_bar_config(disable=True)
transformer, encoder = pipe.transformer, pipe.encoder

# %% [markdown]
# ## Three prompts
#
# One prompt with everything in it, "a photo of crack hazelnut", is read by the text encoder into one fused vector, and
# what is fused is hard to take apart again. So the paper writes two prompts about a single thing each, and a third
# about both:

# %%
# NBVAL_CHECK_OUTPUT
for template in (
    prompts.background_prompt,
    prompts.defect_prompt,
    prompts.fusion_prompt,
):
    print(inspect.getsource(template))

for product, defect in ("hazelnut", "crack"), ("metal_nut", "good"):
    print("c_p ", prompts.background_prompt(product))
    print("c_d ", prompts.defect_prompt(defect))
    print("c_f ", prompts.fusion_prompt(defect, product), "\n")

# %% [markdown]
# An underscore becomes a space, since the encoder reads words. "good" is the defect's name for no defect.
#
# ## What the encoder makes of them
#
# Each prompt becomes one vector. The encoder of these weights is small, knows only the words in its prompts, and was
# trained along with the rest. The words began as random vectors, so any order beyond chance was learned from pictures.
#
# Similarity is the cosine of the angle between two vectors. All prompts begin with the same words and so share a large
# common part; their mean is taken away first.
#
# **Predict.** Which two products will be nearest to each other? Which two defects? Should "good" be near to any?

# %%
null = transformer.config.null_product  # the word for "no product in particular"
products = [*pipe.products, null]
defects = [*pipe.defects, GOOD]


@torch.no_grad()
def embed(texts):
    return encoder(texts).pooled  # (B, D)


def cosines(a, b):
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T  # (A, B)


c_p = embed([prompts.background_prompt(p) for p in products])
c_d = embed([prompts.defect_prompt(d) for d in defects])
by_product = cosines(c_p - c_p.mean(0), c_p - c_p.mean(0))
by_defect = cosines(c_d - c_d.mean(0), c_d - c_d.mean(0))

# %% mystnb={"image": {"alt": "Cosine similarity of prompts, between products, between defects"}} tags=["hide-input"]
figure, axes = plt.subplots(2, 1, figsize=(5, 8.6), layout="constrained")
for axis, values, names, what in (
    (axes[0], by_product, products, "products (c_p)"),
    (axes[1], by_defect, defects, "defects (c_d)"),
):
    shown = axis.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
    axis.set_xticks(range(len(names)), names, rotation=90)
    axis.set_yticks(range(len(names)), names)
    axis.spines[:].set_visible(False)
    axis.set_title(what)
    figure.colorbar(shown, ax=axis, label="cosine similarity", shrink=0.8)
plt.show()

# %% tags=["remove-cell"]


def nearest(values, names):
    values = values - 2 * torch.eye(len(names))
    i, j = divmod(int(values.argmax()), len(names))
    return f"{names[min(i, j)]} and {names[max(i, j)]}", values[i, j].item()


for key, values, names, raw in (
    ("product", by_product, products, cosines(c_p, c_p)),
    ("defect", by_defect, defects, cosines(c_d, c_d)),
):
    pair, value = nearest(values, names)
    glue(f"tdia_nearest_{key}", pair, display=False)
    glue(f"tdia_nearest_{key}_cos", f"{value:.2f}", display=False)
    off_diagonal = raw[~torch.eye(len(raw), dtype=bool)].mean()
    glue(f"tdia_mean_{key}", f"{off_diagonal:.2f}", display=False)

known = [(p, d) for p, kinds in pipe.pairs.items() for d in kinds]
c_f = embed([prompts.fusion_prompt(d, p) for p, d in known])
for key, single, names, place in (
    ("product", c_p, products, 0),
    ("defect", c_d, defects, 1),
):
    found = [names[i] for i in cosines(c_f, single).argmax(dim=1)]
    right = np.mean(
        [f == pair[place] for f, pair in zip(found, known, strict=True)]
    )
    glue(f"tdia_fused_{key}", f"{100 * right:.0f}", display=False)
glue("tdia_pairs", len(known), display=False)
dim = c_p.shape[1]
glue("tdia_dim", dim, display=False)
glue("tdia_chance", f"{dim**-0.5:.2f}", display=False)

# %% [markdown]
# Nearest to each other are *{glue:text}`tdia_nearest_product`* ({glue:text}`tdia_nearest_product_cos`) and
# *{glue:text}`tdia_nearest_defect`* ({glue:text}`tdia_nearest_defect_cos`). With the common part left in, two
# different products have {glue:text}`tdia_mean_product` on average and two defects {glue:text}`tdia_mean_defect`. To
# compare: two random vectors of {glue:text}`tdia_dim` numbers typically have ±{glue:text}`tdia_chance`, so what is
# paler than that may be chance.
#
# And the fused prompt? Of the {glue:text}`tdia_pairs` pairs that these weights know, the $c_f$ of
# {glue:text}`tdia_fused_product` % has the right product as its nearest $c_p$, and that of
# {glue:text}`tdia_fused_defect` % the right defect as its nearest $c_d$. Where either number is far below 100, one of
# the two things has faded in the mixture: what the paper fears of a single prompt.
#
# ## Where each prompt enters
#
# TDIA cuts the stack of transformer blocks in three. Each part is told one prompt and nothing else. In a block with
# hidden state $h$ the condition is the embedding of the step plus the part's projected text; for the $N$ background
# blocks
#
# $$
# c = \mathrm{embed}(t) + W_p\, c_p
# $$
#
# and likewise with $W_d\, c_d$ in the $M$ defect blocks and $W_f\, c_f$ in the $K$ fusion blocks. It works by turning
# the block's knobs, the adaLN-Zero of the last chapter. The three lines that are this formula:

# %%
for method in (transformer.background, transformer.defect_and_fusion):
    for line in inspect.getsource(method).splitlines():
        if "_proj(" in line or "def " in line:
            print(line)

# %% mystnb={"image": {"alt": "Diagram: where the three prompts enter the transformer's blocks"}} tags=["hide-input"]
config = transformer.config
side, latent_side, channels = (
    transformer.side,
    config.sample_size,
    config.in_channels,
)
PART_COLOURS = dict(
    zip(("background", "defect", "fusion"), viz.COLOURS[:3], strict=True)
)
PARTS = {name: getattr(transformer, f"{name}_part") for name in PART_COLOURS}

figure, axis = plt.subplots(figsize=(5.2, 7.4), layout="constrained")
axis.set(xlim=(-0.1, 10.1), ylim=(-2.5, 13.5))
axis.axis("off")


def box(x, y, width, height, text, colour="0.93", **style):
    shape = {"boxstyle": "round,pad=0,rounding_size=0.12", "lw": 0.8}
    axis.add_patch(
        FancyBboxPatch((x, y), width, height, fc=colour, ec="0.2", **shape)
    )
    axis.text(
        x + width / 2, y + height / 2, text, ha="center", va="center", **style
    )


def arrow(start, end, colour="0.2"):
    axis.annotate(
        "", end, start, arrowprops={"arrowstyle": "->", "color": colour, "lw": 1.2}
    )


box(3.5, 12.4, 3, 1, f"noisy latent\n{channels} × {latent_side} × {latent_side}")
arrow((5, 12.4), (5, 11.9))
box(3.5, 10.9, 3, 1, f"{side * side} tokens\nof width {config.width}")
blocks = sum(map(len, PARTS.values()))
height, top = 10 / (blocks + 1.5), 10.4
texts = {
    "background": ("c_p", prompts.background_prompt("{product}")),
    "defect": ("c_d", prompts.defect_prompt("{defect}")),
    "fusion": ("c_f", prompts.fusion_prompt("{defect}", "{product}")),
}
arrow((5, 10.9), (5, top))
for name, part in PARTS.items():
    bottom = top - len(part) * height
    for i in range(len(part)):
        box(
            3.5,
            top - (i + 1) * height + 0.06,
            3,
            height - 0.12,
            f"{name} {i + 1}",
            PART_COLOURS[name],
            color="white",
            fontsize=min(9, 13 * height),
        )
    middle = (top + bottom) / 2
    symbol, text = texts[name]
    text = text.replace("of ", "of\n").replace("} {", "}\n{")
    box(0, middle - 0.95, 2.75, 1.9, f"{symbol} + t\n{text}", "white", fontsize=8.5)
    arrow((2.75, middle), (3.5, middle), PART_COLOURS[name])
    if name == "defect":
        for i in range(len(part)):
            start = (6.5, top - (i + 0.5) * height)
            arrow(start, (7.2, middle), PART_COLOURS[name])
        maps = len(part) * config.heads
        box(7.2, middle - 0.8, 2.8, 1.6, f"{maps} attention\nmaps, {side} × {side}")
        arrow((8.6, middle - 0.8), (8.6, middle - 1.4))
        box(7.2, middle - 2.4, 2.8, 1, "mask head")
        arrow((8.6, middle - 2.4), (8.6, -1.4))
    top = bottom - 0.75 * height if name != "fusion" else bottom
    if name != "fusion":
        arrow((5, bottom), (5, top))
arrow((5, top), (5, top - 0.5))
box(3.5, top - 1.3, 3, 0.8, "final layer")
arrow((5, top - 1.3), (5, -1.4))
box(3.5, -2.4, 3, 1, f"noise\n{channels} × {latent_side} × {latent_side}")
box(
    7.0,
    -2.4,
    3,
    1,
    f"latent of the mask\n{channels} × {latent_side} × {latent_side}",
)
plt.show()

# %% [markdown]
# Drawn from the configuration of the loaded weights: the paper's own model would have more blocks in each part. The
# defect blocks have one thing more, a cross-attention, and the maps of all of them are the only thing that the mask
# head sees (chapter 5). This is where the weights sit:

# %% mystnb={"image": {"alt": "Bars: parameters in millions of each part of the transformer"}} tags=["hide-input"]
owners = {
    "tokens and time": ("patch_embed", "time_embed"),
    "text projections": ("product_proj", "defect_proj", "fusion_proj"),
    "background part": ("background_part",),
    "defect part": ("defect_part",),
    "fusion part": ("fusion_part",),
    "final layer": ("final_adaln", "final"),
    "mask head": ("mask_head",),
}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


counts = {
    name: sum(count(getattr(transformer, m)) for m in modules)
    for name, modules in owners.items()
}
assert sum(counts.values()) == count(transformer)
figure, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
colours = [PART_COLOURS.get(name.split()[0], "0.6") for name in counts]
bars = axis.barh(list(counts), [n / 1e6 for n in counts.values()], color=colours)
axis.bar_label(bars, [f"{n:,}" for n in counts.values()], padding=3)
axis.set(xlabel="parameters (millions)")
axis.margins(x=0.22)
axis.invert_yaxis()
plt.show()

# %% tags=["remove-cell"]
cross = sum(count(block.cross_attention) for block in transformer.defect_part)
glue("tdia_total", f"{count(transformer) / 1e6:.1f}", display=False)
glue(
    "tdia_cross",
    f"{100 * cross / count(transformer.defect_part):.0f}",
    display=False,
)
saved = len(transformer.background_part) / (3 * blocks)
paper = PRESETS["paper"].model
sizes = (paper.background_blocks, paper.defect_blocks, paper.fusion_blocks)
glue("tdia_paper_blocks", "{}, {} and {}".format(*sizes), display=False)
glue("tdia_paper_heads", paper.heads, display=False)
glue("tdia_paper_maps", paper.heads * paper.defect_blocks, display=False)
glue("tdia_blocks", blocks, display=False)
glue("tdia_saved", f"{100 * saved:.0f}", display=False)
glue("tdia_text", f"{count(pipe.text_encoder) / 1e6:.2f}", display=False)
glue("tdia_vae", f"{count(pipe.vae) / 1e6:.2f}", display=False)

# %% [markdown]
# {glue:text}`tdia_total` million parameters in all; the cross-attentions are {glue:text}`tdia_cross` % of the defect
# part. Beside the transformer stand the text encoder ({glue:text}`tdia_text` million) and the autoencoder
# ({glue:text}`tdia_vae` million).
#
# ## The background blocks see the product alone
#
# **Predict.** Take one noisy picture and run the model twice, with a single prompt exchanged. After which block will
# the hidden states first differ, for $c_p$, for $c_d$ and for $c_f$? And how large is the difference before that?

# %%
size = latent_side * autoencoder.downsampling(pipe.vae)  # of a picture, in pixels
drawn = render(PRODUCT, DEFECT, 0.8, seed=0, size=size).image
picture = torch.from_numpy(drawn).permute(2, 0, 1)[None] / 127.5 - 1
t = torch.tensor([TRAIN_STEPS // 2])
with torch.no_grad():
    latent = autoencoder.encode(pipe.vae, picture)
noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
x = DDPMScheduler(TRAIN_STEPS).add_noise(latent, noise, t)

ASKED, OTHER = (PRODUCT, DEFECT), (OTHER_PRODUCT, OTHER_DEFECT)


def three_prompts(for_p=ASKED, for_d=ASKED, for_f=ASKED):
    """c_p, c_d, c_f, each of the (product, defect) that it is to speak of."""
    return (
        prompts.background_prompt(for_p[0]),
        prompts.defect_prompt(for_d[1]),
        prompts.fusion_prompt(for_f[1], for_f[0]),
    )


@torch.no_grad()
def hidden_states(texts):
    """The tokens after every block, a list of (1, T, D), and the mask's latent."""
    states = []
    blocks = [block for part in PARTS.values() for block in part]
    hooks = [
        block.register_forward_hook(lambda _m, _in, out: states.append(out[0]))
        for block in blocks
    ]
    out = transformer(x, t, *(encoder([text]) for text in texts))
    for hook in hooks:
        hook.remove()
    return states, out.mask


asked, asked_mask = hidden_states(three_prompts())
changes, mask_changes = {}, {}
for which in ("p", "d", "f"):
    states, mask = hidden_states(three_prompts(**{f"for_{which}": OTHER}))
    changes[which] = [
        float((new - old).norm() / old.norm())
        for new, old in zip(states, asked, strict=True)
    ]
    mask_changes[which] = float((mask - asked_mask).abs().max())

# %% mystnb={"image": {"alt": "Change of the tokens after each block, one line per prompt"}} tags=["hide-input"]
figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
names = [
    f"{name} {i + 1}" for name, part in PARTS.items() for i in range(len(part))
]
for (which, values), colour, marker in zip(
    changes.items(), viz.COLOURS, "os^", strict=False
):
    axis.plot(values, marker + "-", color=colour, label=f"c_{which} exchanged")
start = 0
for name, part in PARTS.items():
    span = (start - 0.5, start + len(part) - 0.5)
    axis.axvspan(*span, color=PART_COLOURS[name], alpha=0.08, linewidth=0)
    start += len(part)
axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
axis.set(ylabel="relative change of the tokens", xlim=(-0.5, len(names) - 0.5))
figure.legend(loc="outside upper center", ncols=3)
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
n, m = len(transformer.background_part), len(transformer.defect_part)
assert changes["d"][:n] == [0] * n
assert changes["f"][: n + m] == [0] * (n + m)
assert mask_changes["f"] == 0
for defect in defects:  # any of them, "good" too
    states, _ = hidden_states(three_prompts(for_d=(PRODUCT, defect)))
    assert all(map(torch.equal, states[:n], asked[:n]))

print("c_d exchanged, change after the background part:", changes["d"][n - 1])
print("c_f exchanged, change after the defect part:    ", changes["f"][n + m - 1])
print("c_f exchanged, change of the mask's latent:     ", mask_changes["f"])

# %% [markdown]
# Not small: *zero*, to the last bit. The check above runs through all defects: they leave the very same background
# state, so nothing about the defect can hide in there. And the mask of this step does not depend on $c_f$ at all,
# because the mask head reads only the defect blocks. The package uses the first fact: two branches of its guidance that
# differ in the defect alone share one pass through the background blocks (`evaluate_branches` in
# `defectdiffu/guidance.py`).
#
# The reverse does not hold. The defect blocks work on what the background blocks have made, so $c_p$ reaches
# everything that comes after.
#
# ## Exchange one prompt
#
# Now the question from the top. The loop below samples with three prompts of our choice. It is plain conditional
# sampling, without guidance, which is the next chapter's subject.


# %%
@torch.no_grad()
def sample(c_p, c_d, c_f, seeds):
    """Latents (B, C, H, W) and mask maps (B, S, S) for three prompts."""
    n, shape = len(seeds), (channels, latent_side, latent_side)
    c_p, c_d, c_f = (encoder([text] * n) for text in (c_p, c_d, c_f))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    x = torch.stack([torch.randn(shape, generator=g) for g in generators])
    pipe.scheduler.set_timesteps(STEPS)
    predicted_masks = []
    for t in pipe.scheduler.timesteps:
        out = transformer(x, t.expand(n), c_p, c_d, c_f)
        step = pipe.scheduler.step(out.sample, t, x, generator=generators)
        x = step.prev_sample
        predicted_masks.append(out.mask)
    last = predicted_masks[-masks.averaged_steps(STEPS) :]  # Sec. 3.4
    maps = [masks.to_probability(autoencoder.decode(pipe.vae, m)) for m in last]
    return x, torch.stack(maps).mean(dim=0)


def to_pictures(latents):
    pictures = (autoencoder.decode(pipe.vae, latents).detach() + 1) * 127.5
    return pictures.round().byte().permute(0, 2, 3, 1).numpy()  # (B, S, S, 3)


# %% [markdown]
# With unexchanged prompts it must be the package's pipeline. There the plain prediction $\epsilon(d, p)$ is
# `guidance="defect_only"` with $w_d = 1$.

# %%
latents = {}
theirs = pipe(
    *ASKED,
    guidance="defect_only",
    w_d=1,
    num_images=NUM_IMAGES,
    num_inference_steps=STEPS,
    callback=lambda i, t, x, branches: latents.update(last=x),
)
seeds = range(NUM_IMAGES)
ours, our_maps = sample(*three_prompts(), seeds)

assert (ours - latents["last"]).abs().max() < 1e-4
assert np.abs(our_maps.numpy() - theirs.mask_probs).max() < 1e-4

# %% mystnb={"image": {"alt": "Generated pictures, one row per seed, one column per exchange"}} tags=["hide-input"]
SWAPS = {
    "as asked": {},
    "c_p": {"for_p": OTHER},
    "c_d": {"for_d": OTHER},
    "c_f": {"for_f": OTHER},
    "all three": {"for_p": OTHER, "for_d": OTHER, "for_f": OTHER},
}
columns = []
for swap in SWAPS.values():
    latent, maps = sample(*three_prompts(**swap), seeds)
    images = [Image.fromarray(p) for p in to_pictures(latent)]
    found = [Image.fromarray(masks.binarise(m)) for m in maps.numpy()]
    column = []
    for image, mask in zip(images, found, strict=True):
        image, mask = viz.enlarge(image), viz.enlarge(mask)
        column.append(viz.overlay(image, mask))
    columns.append(column)
viz.grid(
    list(zip(*columns, strict=True)),
    row_labels=[f"seed {seed}" for seed in seeds],
    column_labels=[
        "\n".join(("as asked", *ASKED)),
        f"c_p →\n{OTHER[0]}\n",
        f"c_d →\n{OTHER[1]}\n",
        "\n".join(("c_f →", *OTHER)),
        "\n".join(("all three →", *OTHER)),
    ],
)

# %% tags=["remove-cell"]
error = (ours - latents["last"]).abs().max()
glue("tdia_loop_error", f"{error:.0e}", display=False)
glue("tdia_asked", ", ".join(ASKED), display=False)
glue("tdia_other", ", ".join(OTHER), display=False)

# %% [markdown]
# Largest difference to the pipeline's latents: {glue:text}`tdia_loop_error`. The first column asks for
# *{glue:text}`tdia_asked`*. In each of the others the prompt named above it speaks of *{glue:text}`tdia_other`*
# instead, while the rest still says what it said. The mask is the blue outline, where there is one.
# All columns of a row have the same noise, at the start and in every step.
#
# A few pictures are not a measurement. So we do the same with two pairs of names at a time, drawn at random, and ask
# the package's *judge*, a network trained on thousands of rendered pictures, what it sees: the product (and the defect)
# that was asked for, the one that came with the exchanged prompt, or something else.

# %% mystnb={"image": {"alt": "Product and defect that the judge sees, one bar per exchange"}} tags=["hide-input"]
exchanges = [  # all four combinations of the two products and defects were trained on
    (a, b)
    for a, b in every(known, repeat=2)
    if a[0] != b[0] and a[1] != b[1] and {(a[0], b[1]), (b[0], a[1])} <= set(known)
]
order = np.random.default_rng(0).permutation(len(exchanges))[:EXCHANGES]
judge = Judge.shipped(size)
product_seen = {name: Counter() for name in SWAPS}
defect_seen = {name: Counter() for name in SWAPS}


def sort_of(verdict, old, new):
    return {old: "as asked", new: "exchanged"}.get(verdict, "something else")


for number in order:
    old, new = exchanges[number]
    for name, swap in SWAPS.items():
        speaks_of = {f"for_{which}": old for which in "pdf"} | dict.fromkeys(
            swap, new
        )
        latent, _ = sample(*three_prompts(**speaks_of), seeds)
        verdict = judge(to_pictures(latent))
        for p, d in zip(verdict.products, verdict.defects, strict=True):
            product_seen[name][sort_of(p, old[0], new[0])] += 1
            defect_seen[name][sort_of(d, old[1], new[1])] += 1

total = len(order) * NUM_IMAGES
figure, axes = plt.subplots(
    2, 1, figsize=(5, 4.6), layout="constrained", sharex=True
)
kinds = {
    "as asked": viz.COLOURS[0],
    "exchanged": viz.COLOURS[1],
    "something else": "0.8",
}
for axis, seen, what in zip(
    axes, (product_seen, defect_seen), ("product", "defect"), strict=True
):
    left = np.zeros(len(SWAPS))
    for kind, colour in kinds.items():
        share = np.array([100 * seen[name][kind] / total for name in SWAPS])
        labels = list(SWAPS)
        axis.barh(labels, share, left=left, color=colour, label=kind)
        left += share
    axis.invert_yaxis()
    axis.set_title(f"the {what} that the judge sees is the one ...")
axes[1].set(xlabel="pictures (%)", xlim=(0, 100))
figure.legend(
    *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3
)
plt.show()

# %% tags=["remove-cell"]
for key, seen in (("product", product_seen), ("defect", defect_seen)):
    follows = {name: 100 * seen[name]["exchanged"] / total for name in SWAPS}
    for name, short in (
        ("c_p", "p"),
        ("c_d", "d"),
        ("c_f", "f"),
        ("all three", "all"),
    ):
        glue(f"tdia_{key}_{short}", f"{follows[name]:.0f}", display=False)
    strongest = max(("c_p", "c_d", "c_f"), key=follows.get)
    glue(f"tdia_{key}_strongest", strongest, display=False)
    right = 100 * seen["as asked"]["as asked"] / total
    glue(f"tdia_{key}_right", f"{right:.0f}", display=False)
    accuracy = 100 * judge.card["scores"][f"{key}_accuracy"]
    glue(f"tdia_judge_{key}", f"{accuracy:.0f}", display=False)
glue("tdia_judged", total, display=False)
glue("tdia_exchanges", len(order), display=False)

# %% [markdown]
# {glue:text}`tdia_exchanges` exchanges, {glue:text}`tdia_judged` pictures a row. With nothing exchanged the judge sees
# the asked product in {glue:text}`tdia_product_right` % and the asked defect in {glue:text}`tdia_defect_right` %; on
# rendered pictures, for comparison, it is right in {glue:text}`tdia_judge_product` % and
# {glue:text}`tdia_judge_defect` %. How often does the picture go over to what the exchanged prompt says?
#
# | exchanged | product follows | defect follows |
# |---|---|---|
# | $c_p$ alone | {glue:text}`tdia_product_p` % | {glue:text}`tdia_defect_p` % |
# | $c_d$ alone | {glue:text}`tdia_product_d` % | {glue:text}`tdia_defect_d` % |
# | $c_f$ alone | {glue:text}`tdia_product_f` % | {glue:text}`tdia_defect_f` % |
# | all three | {glue:text}`tdia_product_all` % | {glue:text}`tdia_defect_all` % |
#
# Hold these numbers against the orange in the first row of each panel: so often the judge names the other product or
# defect with nothing exchanged at all.
#
# In these weights the product listens most to {glue:text}`tdia_product_strongest` and the defect most to
# {glue:text}`tdia_defect_strongest`; with so few pictures a small lead may be chance. Were your two letters right?
# Keep in mind that $c_f$ names both things, and comes last: nothing in the training forbids the fusion blocks to draw
# everything by themselves. That the parts are told different things *allows* them to divide the work. Whether they do
# is to be measured, as here.
#
# ## What would break this
#
# - **One prompt for all parts.** The background blocks would know the defect, the zero above would be gone, and there
#   would be no direction that is the defect's alone. The chapter on ablations tries it.
# - **A product that is always seen with the same defect.** Then $c_p$ says as much about the defect as $c_d$, and no
#   architecture can tell the two apart.
# - **Names that lie.** "Scratch" on one product and "scrape" on another are two words to the encoder, so nothing is
#   shared between them. The paper renames MVTec AD's defects for this reason; `defectdiffu/data/catalog.py` has the
#   list.
#
# ## Summary
#
# Three prompts go to three parts of one transformer: the product to the background blocks, the defect to the defect
# blocks, both to the fusion blocks. That the background cannot know the defect is exact, and so is that the mask
# of a step cannot know the fused prompt. How far the picture obeys each prompt is a property of the weights, and is
# measured by exchanging them one at a time.
#
# ## Exercises
#
# 1. How many blocks does each part of the paper's model have, and how many attention maps reach its mask head? Look
#    at `PRESETS["paper"].model`.
# 2. Average the embeddings of two defects, give the average to the defect blocks, and sample. What do you expect, and
#    what do you see?
# 3. In `double_free` guidance three branches are evaluated: good on the product, good on no product, defect on no
#    product. What share of the blocks' work does sharing the background pass save?
#
# ````{dropdown} Answers
# 1. {glue:text}`tdia_paper_blocks`; with {glue:text}`tdia_paper_heads` heads the mask head sees
#    {glue:text}`tdia_paper_maps` maps.
# 2. `PromptEmbedding` is a data class of tensors: make one from `(a.pooled + b.pooled) / 2`. The encoder never learned
#    what lies between two names, so either defect, something of both or something else may appear.
# 3. The last two branches share their product condition, so one of three background passes is saved: with $N$, $M$
#    and $K$ blocks $N / (3 (N + M + K))$ of the blocks, for {glue:text}`tdia_blocks` blocks
#    {glue:text}`tdia_saved` %.
# ````
