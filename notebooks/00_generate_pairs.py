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
# # Generate image-mask pairs
#
# [![Open in Colab](../book/figures/open_in_colab.svg)](https://colab.research.google.com/github/defectdiffu/defectdiffu/blob/main/notebooks/00_generate_pairs.ipynb)
#
# **The question.** From two words, a product and a defect, how do you get a folder that a detector can be trained on?
#
# **Before you run it, predict.** The model sees product and defect in separate prompts. Raise the defect's scale
# $w_d$ and keep everything else, the noise too. What changes: the defect alone, or the product as well?

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
NUM_IMAGES = 4  # @param {type:"integer"}
STEPS = 20  # @param {type:"integer"}
OUT = "runs/pairs"  # @param {type:"string"}

# %% tags=["hide-cell"]
import os
import shutil
import time
from pathlib import Path

import numpy as np
from myst_nb import glue

from defectdiffu import DefectDiffuPipeline, viz
from defectdiffu.data.validate import check_folder
from defectdiffu.evaluation.judge import Judge
from defectdiffu.generation import generate_folder

FAST = FAST or os.environ.get("DEFECTDIFFU_FAST") == "1"
if FAST:  # small enough for a check on every change
    NUM_IMAGES, STEPS = 2, 4
viz.use_style()
pipe = DefectDiffuPipeline.from_pretrained(WEIGHTS)
pipe.set_progress_bar_config(disable=True)

# %% [markdown]
# ## Ask for pairs

# %% mystnb={"image": {"alt": "Generated pairs of product and defect, without and with masks"}} tags=["hide-input"]
PAIRS = [
    ("hazelnut", "crack"),
    ("tile", "crack"),
    ("leather", "cut"),
    ("bottle", "contamination"),
    ("wood", "scratch"),
]

begin = time.perf_counter()
settings = {"num_images": NUM_IMAGES, "num_inference_steps": STEPS}
outputs = {pair: pipe(*pair, **settings) for pair in PAIRS}
seconds = (time.perf_counter() - begin) / (len(PAIRS) * NUM_IMAGES)

viz.sheet(
    {", ".join(pair): out for pair, out in outputs.items()},
    column_labels=[f"seed {seed}" for seed in range(NUM_IMAGES)],
)

# %% tags=["remove-cell"]
areas = np.array(
    [
        np.asarray(mask).mean() / 255
        for out in outputs.values()
        for mask in out.masks
    ]
)
glue("pair_seconds", f"{seconds:.2g}", display=False)
glue("pair_count", len(areas), display=False)
glue("pair_empty", int((areas == 0).sum()), display=False)
glue("pair_area", f"{100 * np.median(areas):.1f}", display=False)
glue("pair_steps", STEPS, display=False)
judge = Judge.shipped(pipe.size)


def pixels(images):
    return np.stack([np.asarray(image) for image in images])


verdicts = {pair: judge(pixels(out.images)) for pair, out in outputs.items()}
tiles = verdicts["tile", "crack"].defects
glue("pair_tiles", len(tiles), display=False)
glue("pair_tiles_good", tiles.count("good"), display=False)
if not FAST:
    areas, overlaps = {}, {}  # of the masks, and of the judge's
    for (word, kind), verdict in verdicts.items():
        assert set(verdict.products) == {word}
        marked = pixels(outputs[word, kind].masks) > 0
        judged = verdict.mask_probs > 0.5
        both, either = (marked & judged).sum((1, 2)), (marked | judged).sum((1, 2))
        areas[word] = marked.mean((1, 2)), judged.mean((1, 2))
        overlaps[word] = both / either.clip(1)
    for word in ("hazelnut", "leather", "bottle"):
        assert np.median(overlaps[word]) > 0.4
    assert (areas["leather"][0] < 0.8 * areas["leather"][1]).all()  # slits left out
    assert areas["wood"][0].min() > 0.05
    assert overlaps["tile"].max() < 0.1
    assert tiles.count("good") > len(tiles) / 2

# %% [markdown]
# *Each row is one pair of words; the outlines are the masks that come with the pictures. Seeds 0, 1, 2 and so on:
# nothing is selected.*
#
# The products are as asked. On nuts, leather, bottles and wood the defect can be seen, and the outline follows it; on
# leather it leaves out some slits. Cracks in the tile are lost in its pattern, even where the mask marks some: a judge
# network calls {glue:text}`pair_tiles_good` of the {glue:text}`pair_tiles` tiles defect-free. Masks that are empty:
# {glue:text}`pair_empty` of {glue:text}`pair_count`. The median mask covers {glue:text}`pair_area` % of its image. One
# pair took {glue:text}`pair_seconds` s with {glue:text}`pair_steps` steps on the machine that made this page, which was
# busy with other work. [Chapter 11](11_how_good.ipynb) asks the judge how often a picture shows what was asked for.
#
# ## The call
#
# Weights are a name that comes with the package, a folder of your own training, or a hub id. The pipeline knows what it
# was trained on.

# %%
pipe = DefectDiffuPipeline.from_pretrained(WEIGHTS)
pipe.set_progress_bar_config(disable=True)
out = pipe("hazelnut", "crack", num_images=1, num_inference_steps=STEPS)
assert out.images[0].size == out.masks[0].size

print("products:", *pipe.products[:7], "\n         ", *pipe.products[7:])
print("defects: ", *pipe.defects)

# %% [markdown]
# The sampler adds two directions to its prediction, Eq. 4 of the paper:
#
# $$
# \begin{aligned}
# \epsilon = {} & \epsilon(g, \varnothing) \\
# & + \textcolor{#1F83C6}{w_p \left[\epsilon(g, p) - \epsilon(g, \varnothing)\right]} \\
# & + \textcolor{#D55E00}{w_d \left[\epsilon(d, \varnothing) - \epsilon(g, \varnothing)\right]}
# \end{aligned}
# $$
#
# Here $g$ is "good", $p$ the product, $d$ the defect, and $\varnothing$ no product. In the code it is one function,
# `guide` in `defectdiffu/guidance.py`. The two scales are those that the weights recommend. The paper's network
# predicts the noise $\epsilon$, these weights the velocity ([chapter 2](02_diffusion_and_dit.ipynb)); Eq. 4 is the same
# for both.
#
# ## Turn the defect up
#
# Every frame has the same noise, at the start and in every step; only $w_d$ differs. At 0 the defect's direction is
# switched off: if a mask is there all the same, the model marks something that nobody asked for. Compare what you see
# with your prediction: does the product stay?

# %%
STRENGTHS = [0, 0.5, 1, 1.5, 2, 2.5, 3]
product, defect = PAIRS[0]
settings["num_images"] = min(NUM_IMAGES, 4)

frames, made = [], {}
for w_d in STRENGTHS:
    made[w_d] = out = pipe(product, defect, w_d=w_d, **settings)
    images, masks = map(viz.enlarge, out.images), map(viz.enlarge, out.masks)
    columns = [
        (i, viz.overlay(i, mask)) for i, mask in zip(images, masks, strict=True)
    ]
    frames.append(viz.mosaic(list(zip(*columns, strict=True))))

viz.static_slider(
    frames,
    STRENGTHS,
    label="w_d",
    alt=f"{product}, {defect}; above alone, below with its mask;",
    start=2,
)

# %% tags=["remove-cell"]
area = [out.mask_probs.mean() for out in made.values()]
glue("pair_area_weak", f"{100 * area[0]:.1f}", display=False)
glue("pair_area_strong", f"{100 * area[-1]:.1f}", display=False)
glue("pair_strongest", STRENGTHS[-1], display=False)
if not FAST:
    seen = {w_d: judge(pixels(out.images)) for w_d, out in made.items()}
    marked = {w_d: pixels(out.masks) > 0 for w_d, out in made.items()}
    assert all(set(verdict.products) == {PAIRS[0][0]} for verdict in seen.values())
    assert set(seen[0].defects) == {"good"}
    assert not marked[0].any()
    assert (
        0 < marked[0.5].mean((1, 2)).min() < marked[0.5].mean((1, 2)).max() < 0.01
    )
    assert all(
        set(seen[w_d].defects) == {PAIRS[0][1]} for w_d in STRENGTHS if w_d >= 1
    )
    assert marked[3].mean((1, 2)).min() > 0.1
    colours = {w_d: pixels(made[w_d].images).astype(int) for w_d in (0, 3)}
    inside = colours[0].max(-1) > 70  # the nuts without a defect
    assert (marked[3] & ~inside).any((1, 2)).all()  # cracks go over the rim
    red = {w_d: colour[..., 0] - colour[..., 2] for w_d, colour in colours.items()}
    pale = inside & (red[0] < 60) & (colours[0].mean(-1) > 85) & ~marked[3]
    redder = [(red[3] - red[0])[n][pale[n]].mean() for n in range(len(pale))]
    assert min(redder[0], redder[-1]) > 4  # their pale patches are gone

# %% [markdown]
# The map behind the mask, averaged over image and seeds, goes from {glue:text}`pair_area_weak` % at $w_d = 0$ to
# {glue:text}`pair_area_strong` % at $w_d$ = {glue:text}`pair_strongest`. That is what the model says about itself,
# not yet a measurement of the defect. At 0 no nut has a defect, and every mask is empty. At 0.5 there are a few nicks,
# and from 1 on every nut is cracked. At 3 the cracks cover much of it. The product stays a hazelnut, but not the very
# same one: the rim breaks where the cracks reach it, and the first nut and the last have lost their pale patch.
#
# With a kernel running, `viz.live_slider(pipe)` gives the same with every setting in your hand.
#
# ## Write a folder
#
# The layout is that of MVTec AD, so that tools for anomaly detection read it unchanged. `defectdiffu generate` calls
# the same function from the command line. A seed whose mask is empty is skipped: a picture of a defect that says
# "no defect" would teach a detector the wrong thing. `generation.json` says which seeds were used and which skipped.

# %%
folder = Path(OUT)
shutil.rmtree(folder, ignore_errors=True)
record = generate_folder(
    pipe, folder, product, defect, num=NUM_IMAGES, seed=0, steps=STEPS
)
print("seeds used:   ", record["seeds"])
print("seeds skipped:", record["seeds_without_mask"])

# %% [markdown]
# ## Check it before anything is trained on it
#
# `check_folder` reads every file and lists what is wrong; on the command line it is `defectdiffu data check`.

# %%
problems = check_folder(folder)
for problem in problems:
    print(problem)
print(f"{len(problems)} problems")

# %% tags=["remove-cell"]
assert not problems

# %% [markdown]
# ## What would break this
#
# - **Few steps.** The mask is averaged over the last tenth of the steps. With 4 of them that is a single one, and in
#   it much of the noise is still there.
# - **A product or a defect the weights never saw.** The pipeline refuses the name, and suggests near ones. A *pair*
#   that was never seen together is allowed.
# - **A large $w_d$.** The direction is extrapolated beyond all training data: the defect may spread over the whole
#   product, and colours may drift.
#
# ## Summary
#
# Two words and a seed give an image and its mask; $w_d$ is the knob for the defect in one picture, and chapter 8
# measures how well it works; the folder is one that other tools read, and is checked before it is used.
#
# ## Exercises
#
# 1. Ask for `defect="good"`. What should the masks be?
# 2. Give `w_d` a list, one strength per image, and one seed for all of them: `seeds=[0] * 5`. What do you get?
# 3. Halve the number of steps, again and again. What suffers first, image or mask?
#
# ````{dropdown} Answers
# 1. Empty. A map that is flat everywhere gives an empty mask, not noise; chapter 5 counts how often these weights
#    keep to it. Where a mask is not empty, the model sees a defect in a product that should be good.
# 2. The sweep above in one call: the same noise five times, five strengths.
# 3. Try it. Only the last tenth of the steps makes the mask, while all of them make the image.
# ````
