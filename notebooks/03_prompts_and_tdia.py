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
# **The question.** A picture of a cracked hazelnut has two things in it. How do you say them to a network so that it
# can take them apart again?
#
# **Before you run it, predict.** The network is cut into three parts, and each part reads a prompt of its own: one the
# product, one the defect, the last both. Replace a single prompt and keep the noise. Which one decides the product, and
# which the defect?

# %% tags=["remove-cell"]
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

# %% tags=["parameters", "hide-cell"]
# @title Settings
FAST = False  # @param {type:"boolean"}
WEIGHTS = "book"  # @param {type:"string"}
SEEDS = 3  # @param {type:"integer"}
STEPS = 20  # @param {type:"integer"}

# %% tags=["hide-cell"]
import inspect
import os

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import FancyBboxPatch
from myst_nb import glue
from PIL import Image

from defectdiffu import PRESETS, DefectDiffuPipeline, viz
from defectdiffu.autoencoder import decode
from defectdiffu.config import GOOD
from defectdiffu.evaluation.judge import Judge
from defectdiffu.guidance import evaluate_branches
from defectdiffu.pictures import to_uint8
from defectdiffu.prompts import (
    Conditions,
    background_prompt,
    defect_prompt,
    fusion_prompt,
)

FAST = FAST or os.environ.get("DEFECTDIFFU_FAST") == "1"
if FAST:  # small enough for a check on every change
    SEEDS, STEPS = 1, 4
viz.use_style()
pipe = DefectDiffuPipeline.from_pretrained(WEIGHTS)
pipe.set_progress_bar_config(disable=True)
transformer, encoder = pipe.transformer, pipe.encoder
SCALE = pipe.config.w_p
SHAPE = (transformer.config.in_channels, *2 * [transformer.config.sample_size])
NOTHING = (transformer.config.null_product, GOOD)


def conditions(for_p, for_d, for_f):
    """The three prompts, each of the (product, defect) that it is to speak of."""
    texts = background_prompt(for_p[0]), defect_prompt(for_d[1])
    texts += (fusion_prompt(for_f[1], for_f[0]),)
    return Conditions(*(encoder([text]) for text in texts))


def noise_of(seeds):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack(
        [torch.randn(SHAPE, generator=g) for g in generators]
    ), generators


@torch.no_grad()
def sample(prompts, seeds):
    """Pictures by classifier-free guidance with three prompts of our choice."""
    x, generators = noise_of(seeds)
    asked = {"dp": prompts, "g0": conditions(NOTHING, NOTHING, NOTHING)}
    pipe.scheduler.set_timesteps(STEPS)
    for t in pipe.scheduler.timesteps:
        e = evaluate_branches(transformer, x, t.expand(len(x)), asked).predicted
        guided = e["g0"] + SCALE * (e["dp"] - e["g0"])
        x = pipe.scheduler.step(guided, t, x, generator=generators).prev_sample
    return [Image.fromarray(array) for array in to_uint8(decode(pipe.vae, x))]


# %% mystnb={"image": {"alt": "One row per seed; one column per replaced prompt"}} tags=["hide-input"]
A, B = ("hazelnut", "crack"), ("bottle", "contamination")
REPLACED = {
    "as asked": (A, A, A),
    "$c_p$": (B, A, A),
    "$c_d$": (A, B, A),
    "$c_f$": (A, A, B),
    "all three": (B, B, B),
}
SAYS = [
    "hazelnut,\ncrack",
    "bottle\n",
    "contami-\nnation",
    "contamina-\ntion, bottle",
    "bottle, con-\ntamination",
]
columns = [sample(conditions(*said), range(SEEDS)) for said in REPLACED.values()]
figure = viz.grid(
    list(zip(*columns, strict=True)),
    [f"seed {seed}" for seed in range(SEEDS)],
    [f"{name}\n{said}" for name, said in zip(REPLACED, SAYS, strict=True)],
)
colours = ("black", viz.PRODUCT, viz.DEFECT, viz.FUSION, "black")
for axis, colour in zip(figure.axes, colours, strict=False):
    axis.title.set_color(colour)
figure

# %% [markdown]
# *Each row has one noise; classifier-free guidance with scale {glue:text}`tdia_scale`. The first column asks for a
# cracked hazelnut; in each other column the prompt above it speaks of a bottle with contamination instead.* The product
# follows $c_p$: the second column is a bottle. Its defect is black and wrinkled, more like the nut's cracks than like a
# bottle's, and the judge, a network that names what rendered pictures show, does not call it a crack. The defect
# follows $c_d$: the third is a nut with crumbs. And $c_f$, which names both, decides neither: the nut stays a nut and
# the crack a crack, at about the same place. But it has a hand in the look: where $c_f$ still speaks of the nut, the
# bottle lies on grey, and where all three agree, on white. This is one pair of names and three seeds, a look and not a
# measurement.
#
# ## Three prompts
#
# One prompt with everything in it, "A photo of crack hazelnut", becomes one fused vector, and what is fused is hard to
# take apart. So the paper writes two prompts about one thing each, and a third about both:
#
# - $\textcolor{#1F83C6}{c_p}$: "A photo of hazelnut" goes to the background part,
# - $\textcolor{#D55E00}{c_d}$: "A photo of crack" goes to the defect part,
# - $\textcolor{#009E73}{c_f}$: "A photo of crack hazelnut" goes to the fusion part.
#
# In every block of a part the condition is the embedding of the step plus the projected prompt:
#
# $$
# \begin{aligned}
# \text{background:}\quad c &= \mathrm{embed}(t) + \textcolor{#1F83C6}{W_p\, c_p} \\
# \text{defect:}\quad c &= \mathrm{embed}(t) + \textcolor{#D55E00}{W_d\, c_d} \\
# \text{fusion:}\quad c &= \mathrm{embed}(t) + \textcolor{#009E73}{W_f\, c_f}
# \end{aligned}
# $$
#
# It turns the knobs of the block's normalisation (adaLN-Zero, [chapter 2](02_diffusion_and_dit.ipynb)). In the code:

# %%
for method in (transformer.background, transformer.defect_and_fusion):
    for line in inspect.getsource(method).splitlines():
        if "_proj(" in line or "def " in line:
            print(line)

# %% [markdown]
# This is the whole of TDIA, the text-guided disentangled integrated architecture: one stack of blocks, cut in three.

# %% mystnb={"image": {"alt": "Diagram: three prompts enter three parts of the transformer"}} tags=["hide-input"]
config = transformer.config
PARTS = {  # name: symbol, number of blocks, colour, symbol and text of its prompt
    "background": ("N", config.background_blocks, viz.PRODUCT, "c_p", "\nhazelnut"),
    "defect": ("M", config.defect_blocks, viz.DEFECT, "c_d", "\ncrack"),
    "fusion": ("K", config.fusion_blocks, viz.FUSION, "c_f", "\ncrack hazelnut"),
}
TOP, HEIGHT, GAP = 9.4, 1.7, 0.6  # of the first part; of every part; between two

figure, axis = plt.subplots(figsize=(4.6, 5.5), layout="constrained")
axis.set(xlim=(0, 10), ylim=(0, 12), aspect="equal")
axis.axis("off")


def box(x, y, width, height, text, face="white", edge="0.3", **style):
    shape = {"boxstyle": "round,pad=0,rounding_size=0.15", "lw": 1.4}
    axis.add_patch(FancyBboxPatch((x, y), width, height, fc=face, ec=edge, **shape))
    centre = (x + width / 2, y + height / 2)
    axis.text(*centre, text, ha="center", va="center", **style)


def arrow(start, end, colour="0.3"):
    style = {"arrowstyle": "-|>", "color": colour, "lw": 1.4, "shrinkA": 0}
    axis.annotate("", end, start, arrowprops=style | {"shrinkB": 0})


def picture(array, x, y, text=""):
    axis.imshow(array, extent=(x, x + 1.7, y, y + 1.7), cmap="gray")
    axis.text(x + 0.85, y - 0.15, text, ha="center", va="top")


out = pipe(*A, seeds=[0], num_inference_steps=STEPS)
x, _ = noise_of([0])
picture(to_uint8(x[:, :3] / 3)[0], 4.15, 10.2)
axis.text(6.05, 11.05, "noisy latent $x_t$", va="center")
arrow((5, 10.2), (5, TOP))
for i, (name, (symbol, blocks, colour, prompt, says)) in enumerate(PARTS.items()):
    bottom = TOP - HEIGHT - i * (HEIGHT + GAP)
    middle = bottom + HEIGHT / 2 - 0.12
    front = HEIGHT - 0.24
    for behind in (0.24, 0.12):
        box(3.4 + behind, bottom + behind, 3.2, front, "", colour, "white")
    text = f"{name} part\n${symbol}$ = {blocks} blocks"
    box(
        3.4, bottom, 3.2, front, text, colour, "white", color="white", weight="bold"
    )
    text = f"${prompt}$\nA photo of{says}"
    box(0.02, bottom + 0.05, 2.7, front - 0.1, text, edge=colour, color=colour)
    arrow((2.72, middle), (3.35, middle), colour)
    arrow((5, bottom), (5, bottom - GAP - 0.1 * (name == "fusion")))
    if name == "defect":
        arrow((6.9, middle), (7.5, middle), colour)
        text = "attention\nmaps"
        box(7.5, bottom + 0.05, 2.48, front - 0.1, text, edge=colour, color=colour)
        arrow((8.75, bottom + 0.05), (8.75, 3.8))
        box(7.5, 2.7, 2.48, 1.1, "mask head", "0.92", "0.6")
        arrow((8.75, 2.7), (8.75, 2.1))
picture(out.images[0], 4.15, 0.4, "image")
picture(out.masks[0], 7.9, 0.4, "mask")
plt.close(figure)
figure

# %% [markdown]
# *The architecture of these weights; image and mask are those of the last step.* The paper's model has
# {glue:text}`tdia_paper_blocks` blocks. The defect blocks have one thing more, a cross-attention. Its
# {glue:text}`tdia_maps` maps, one per block and head, are all that the mask head sees ([chapter
# 5](05_masks_from_attention.ipynb)).
#
# ## What a part cannot know
#
# Run the network once on pure noise and once more with a single prompt replaced. How far do the tokens move after each
# block?

# %% mystnb={"image": {"alt": "Change of the tokens after each block, one line per prompt"}} tags=["hide-input", "plot"]
x, _ = noise_of([0])
t = torch.tensor([999])
part_of = [name for name, (_, blocks, *_) in PARTS.items() for _ in range(blocks)]


@torch.no_grad()
def tokens_after_each_block(*said):
    """The tokens after every block, a list of (1, T, D), and the mask's latent."""
    states = []
    hooks = [
        block.register_forward_hook(lambda _m, _in, out: states.append(out[0]))
        for part in PARTS
        for block in getattr(transformer, f"{part}_part")
    ]
    out = transformer(x, t, **vars(conditions(*said)))
    for hook in hooks:
        hook.remove()
    return states, out.mask


asked, asked_mask = tokens_after_each_block(A, A, A)
changes, mask_changes = {}, {}
for name in ("$c_p$", "$c_d$", "$c_f$"):
    states, mask = tokens_after_each_block(*REPLACED[name])
    pairs = zip(states, asked, strict=True)
    changes[name] = [float((new - old).norm() / old.norm()) for new, old in pairs]
    mask_changes[name] = float((mask - asked_mask).abs().max())

figure, axis = plt.subplots(figsize=(5, 2.8), layout="constrained")
places = np.arange(1, len(part_of) + 1)
for (name, values), colour, marker in zip(
    changes.items(), colours[1:4], "os^", strict=True
):
    axis.plot(places, values, marker + "-", color=colour, label=f"{name} replaced")
for name, (_, blocks, colour, *_) in PARTS.items():
    start = part_of.index(name) + 0.5
    axis.axvspan(start, start + blocks, color=colour, alpha=0.1, linewidth=0)
    middle = start + blocks / 2
    place = {
        "transform": axis.get_xaxis_transform(),
        "ha": "center",
        "va": "bottom",
    }
    axis.text(middle, 1.01, name, color=colour, **place)
axis.set(
    xlabel="after block", ylabel="relative change of the tokens", xticks=places
)
axis.set_xlim(0.5, len(part_of) + 0.5)
axis.legend(loc="center right")
plt.close(figure)
figure

# %% tags=["remove-cell"]
n, m = config.background_blocks, config.defect_blocks
assert changes["$c_d$"][:n] == [0] * n
assert changes["$c_f$"][: n + m] == [0] * (n + m)
assert (
    mask_changes["$c_f$"] == 0 < min(mask_changes["$c_p$"], mask_changes["$c_d$"])
)
largest = {name: max(values) for name, values in changes.items()}
assert 0.9 < largest["$c_p$"] < 1.3
assert 0.2 < largest["$c_f$"] < largest["$c_d$"] < 0.4
assert changes["$c_f$"][-1] > changes["$c_d$"][-1]
paper = PRESETS["paper"].model
sizes = (paper.background_blocks, paper.defect_blocks, paper.fusion_blocks)
glue("tdia_paper_blocks", "{}, {} and {}".format(*sizes), display=False)
glue("tdia_paper_maps", paper.heads * paper.defect_blocks, display=False)
glue("tdia_maps", config.heads * config.defect_blocks, display=False)
glue("tdia_scale", f"{SCALE:g}", display=False)
saved = n / (3 * len(part_of))
glue("tdia_saved", f"{100 * saved:.0f}", display=False)
if not FAST:  # what the first figure is said to show
    made = np.stack([np.asarray(image) for column in columns for image in column])
    seen = Judge.shipped(pipe.size)(made)
    shape = (len(columns), SEEDS, *made.shape[1:])
    product, defect = (np.reshape(names, shape[:2]) for names in seen[:2])
    for i, (said_p, said_d) in {0: A, 2: (A[0], B[1]), 3: A, 4: B}.items():
        assert (product[i] == said_p).all() and (defect[i] == said_d).all()
    assert (product[1] == B[0]).sum() == 2 and not (defect[1] == A[1]).any()
    marked = (seen.mask_probs > 0.5).reshape(shape[:4])
    both, either = marked[0] & marked[3], marked[0] | marked[3]
    assert (both.sum((1, 2)) > 0.4 * either.sum((1, 2))).all()  # the same place
    made = made.reshape(shape).astype(float)
    changed = abs(made - made[0]).mean((1, 2, 3, 4))  # by column
    assert 2 * changed[3] < changed[2] and 2 * changed[2] < changed[1]
    corner = made[:, :, :16, :16].mean((2, 3, 4))
    assert (corner[1] < 235).all() and (corner[4] > 245).all()

# %% [markdown]
# *Relative change, $\lVert h' - h \rVert / \lVert h \rVert$, where $c_p$, $c_d$ or $c_f$ speaks of the bottle or its
# contamination.* Before its own part a prompt changes nothing: not little, but zero to the last bit, for no block there
# reads it. So nothing about the defect can hide in the background part, and the mask cannot know $c_f$. The reverse
# does not hold: $c_p$ reaches everything that comes after, and changes the tokens by as much as their own length. After
# the last block $c_f$ has moved them farther than $c_d$, but it changes the pictures above less: the length of a change
# is not its meaning.
#
# Nothing forces the parts to divide the work like this. The fusion blocks come last, read both names, and could draw
# everything by themselves. That the parts are conditioned on different things only *allows* the division; in these
# weights it happened.
#
# ## What would break this
#
# - **One prompt for all parts.** The background blocks would know the defect, and no direction would be the defect's
#   alone. [Chapter 10](10_ablations.ipynb) tries it: at the size of `tiny` the seeds disagree on whether it harms.
# - **A product that is always seen with the same defect.** Then $c_p$ says as much about the defect as $c_d$, and no
#   architecture can tell the two apart.
# - **Names that lie.** "Scratch" on one product and "scrape" on another are two words to the encoder, so they share
#   nothing. The paper renames MVTec AD's defects for this reason (`defectdiffu/data/catalog.py`).
#
# ## Summary
#
# Three prompts go to three parts of one transformer: the product to the background blocks, the defect to the defect
# blocks, both to the fusion blocks. That the background cannot know the defect is exact. That the product then obeys
# $c_p$ and the defect $c_d$ was learned, and is seen by replacing one prompt at a time.
#
# ## Exercises
#
# 1. Replace $c_p$ and $c_f$ together, and keep $c_d$. What do you expect to see?
# 2. How many attention maps reach the mask head of the paper's model? Look at `PRESETS["paper"].model`.
# 3. Two of the three branches of Eq. 4 ([chapter 4](04_double_free.ipynb)) share their product prompt. What share of
#    the blocks' work can be saved?
#
# ````{dropdown} Answers
# 1. `sample(conditions(B, A, (B[0], A[1])), range(3))`: the defect part still reads "crack", so expect a cracked
#    bottle, now with no prompt that disagrees.
# 2. {glue:text}`tdia_paper_maps`, its defect blocks times its heads.
# 3. One of three background passes, $N / (3 (N + M + K))$ of the blocks: {glue:text}`tdia_saved` % for these weights.
#    `evaluate_branches` in `defectdiffu/guidance.py` does so.
# ````
