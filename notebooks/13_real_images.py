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
# # Real images
#
# [![Open in Colab](../book/figures/open_in_colab.svg)](https://colab.research.google.com/github/defectdiffu/defectdiffu/blob/main/notebooks/13_real_images.ipynb)
#
# **The question.** You have a folder of photographs, a few of them with defects and masks. How do you get from there
# to generated pairs, and how do you know that they are worth anything?
#
# **Before you run it, predict.** The shipped weights know drawn products only. Show them one that they have never seen,
# a few pictures of each defect, for a short training. What will they learn first: its colour, or its defects?

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
DATA = ""  # @param {type:"string"}
STEPS = 120  # @param {type:"integer"}
NUM_IMAGES = 4  # @param {type:"integer"}

# %% tags=["hide-cell"]
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from IPython.utils.capture import capture_output
from myst_nb import glue
from PIL import Image

from defectdiffu import DefectDiffuPipeline, viz
from defectdiffu.config import load_preset
from defectdiffu.data.catalog import augmentation
from defectdiffu.data.folder import read_folder
from defectdiffu.data.validate import check_folder
from defectdiffu.drawn.procedural import render
from defectdiffu.evaluation.folders import judge_features
from defectdiffu.evaluation.judge import Judge
from defectdiffu.evaluation.memorisation import nearest_ratio
from defectdiffu.evaluation.records import read_record
from defectdiffu.training.run import train

FAST = FAST or os.environ.get("DEFECTDIFFU_FAST") == "1"
GOOD, PER_DEFECT = 30, 10
training = {"steps": STEPS, "sample_every": STEPS, "checkpoint_every": STEPS}
if FAST:  # small enough for a check on every change
    GOOD, PER_DEFECT, NUM_IMAGES = 6, 3, 2
    training = {"steps": 2, "sample_every": 2, "checkpoint_every": 2}
    training |= {"batch_size": 8, "variants": 2}
work = Path(tempfile.mkdtemp())
viz.use_style()


def stained(pixels):
    """Blue where the wood was brown: red and blue exchanged, and a little darker."""
    return (pixels[..., ::-1] * 0.85).astype(np.uint8)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


data = Path(DATA) if DATA else work / "data"
if not DATA:  # a stand-in: a product that the shipped weights do not know
    home = data / "blue_wood"
    for i in range(GOOD):
        picture = render("wood", "scratch", 0.5, 50_000 + i, 128).normal
        write(home / f"train/good/{i:03}.png", stained(picture))
    for defect in ("scratch", "hole"):
        for i in range(PER_DEFECT):
            picture = render("wood", defect, 0.4 + 0.05 * i, 60_000 + i, 128)
            write(home / f"test/{defect}/{i:03}.png", stained(picture.image))
            write(home / f"ground_truth/{defect}/{i:03}_mask.png", picture.mask)

# %% [markdown]
# ## Before and after
#
# With so few pictures nobody trains from nothing. `--preset tiny` begins from the shipped weights and learns the names
# in the folder:

# %% mystnb={"image": {"alt": "Pictures with masks, two rows per defect: given and generated"}} tags=["hide-input"]
preset = load_preset("tiny").replace(training=training)
begin = time.perf_counter()
with capture_output():  # its progress bars
    run = train(preset, [data], work / "run")
minutes = (time.perf_counter() - begin) / 60

samples = read_folder(data)
pipe = DefectDiffuPipeline.from_pretrained(run)
pipe.set_progress_bar_config(disable=True)
product, defects = max(pipe.pairs.items(), key=lambda item: len(item[1]))
defects = defects[:2]
given = {
    d: [s for s in samples if (s.product, s.defect) == (product, d)]
    for d in defects
}
steps = 4 if FAST else 20
outputs = {
    d: pipe(product, d, num_images=NUM_IMAGES, num_inference_steps=steps)
    for d in defects
}

side = 4 * pipe.size


def seen(picture, mask):
    return viz.overlay(
        picture.convert("RGB").resize((side, side)),
        mask.convert("L").resize((side, side), Image.Resampling.NEAREST),
    )


rows = {}
for defect in defects:
    rows[f"{defect},\ngiven"] = [
        seen(Image.open(s.image), Image.open(s.mask))
        for s in given[defect][:NUM_IMAGES]
    ]
    out = outputs[defect]
    rows[f"{defect},\ngenerated"] = [
        seen(*pair) for pair in zip(out.images, out.masks, strict=True)
    ]
viz.grid(list(rows.values()), list(rows))

# %% tags=["remove-cell"]
made = [np.asarray(mask).any() for out in outputs.values() for mask in out.masks]
glue("real_minutes", f"{minutes:.1f}", display=False)
glue("real_steps", training["steps"], display=False)
glue("real_pictures", len(samples), display=False)
glue("real_defects", sum(s.defect != "good" for s in samples), display=False)
if not FAST and not DATA:
    assert all(made)
    area = {
        d: np.mean([np.asarray(m) > 0 for m in out.masks])
        for d, out in outputs.items()
    }
    assert area["hole"] > 0.03

# %% [markdown]
# *Blue wood, with masks: the first pictures given, and the first seeds generated. {glue:text}`real_steps` steps on
# {glue:text}`real_pictures` pictures, {glue:text}`real_defects` of them with a defect, in {glue:text}`real_minutes`
# minutes.*
#
# The blue is there, and the grain, blurred. Holes are dark and round as the given ones, but there are more of them, and
# two grow together; their masks fit. Scratches are not learned yet: the given ones are bundles of thin lines, the
# generated ones faint blots, and their masks are blots, too.
#
# Training on your own folder is one command, and so is generating:
#
# ```bash
# defectdiffu train --preset tiny --data DATA --out RUN --minutes 30
# defectdiffu generate --weights RUN --product blue_wood --defect hole --num 50 --out PAIRS
# ```
#
# `--preset book` has 256 pixels and wants a GPU. The objective is that of [chapter 7](07_train_it.ipynb).
#
# ## The folder
#
# The layout is that of MVTec AD {cite}`bergmann2019mvtec`, which most tools for anomaly detection read. Good images
# need no mask. A product's name becomes words in the prompts, so call things by their names: `blue_wood`, not
# `dataset_07`.
#
# ```
# DATA/
#   <product>/
#     train/good/000.png
#     test/good/000.png
#     test/<defect>/000.png
#     ground_truth/<defect>/000_mask.png
# ```
#
# VisA and KolektorSDD2 are converted to it. Each set has a licence, which the command says before it fetches anything:
#
# ```bash
# defectdiffu data download visa archives
# defectdiffu data convert visa archives/VisA_20220922.tar data/visa
# ```
#
# ## Check it first
#
# A wrong file costs a night of training. `defectdiffu data check DATA` reads every file and lists *all* that is wrong.
# Here is what it says of a folder with four usual troubles:

# %% tags=["hide-input"]
# NBVAL_CHECK_OUTPUT
troubled = work / "troubled"
for i in range(4):
    picture = render("leather", "cut", 0.6, i, 64)
    write(troubled / f"leather/train/good/{i:03}.png", picture.normal)
    write(troubled / f"leather/test/cut/{i:03}.png", picture.image)
    write(troubled / f"leather/ground_truth/cut/{i:03}_mask.png", picture.mask)
masks = troubled / "leather/ground_truth/cut"
(masks / "000_mask.png").rename(masks / "mask_of_zero.png")  # named otherwise
write(masks / "001_mask.png", np.zeros((64, 64), np.uint8))  # nothing marked
write(masks / "002_mask.png", np.full((32, 32), 255, np.uint8))  # another size
good = troubled / "leather/train/good/003.png"
good.write_bytes(good.read_bytes()[:500])  # cut short by a full disk

for problem in check_folder(troubled):
    print(str(problem).replace(str(troubled), "troubled"))
assert not check_folder(data), "mend the folder first"

# %% [markdown]
# What is not a problem: grey images, 16 bits, several sizes side by side, a mask with 1 instead of 255, any common file
# type.
#
# ## More from few
#
# A picture goes further if it is shown in several versions, moved and lit anew, the mask along with it. But a bottle
# may be turned and a zipper may not. What a product bears stands in `data/catalog.py`; an unknown one gets cautious
# defaults:

# %%
print(product, augmentation(product))

# %% [markdown]
# ## New, or a copy?
#
# With so few pictures, copying is the danger. For every generated picture take the nearest training picture, in the
# features of the judge, and divide by how far training pictures are from each other. At 1 it is as far from them as
# they are from one another; near 0 it is a copy.

# %% tags=["hide-input"]
judge = Judge.shipped(64)
ratios = {}
for defect in defects:
    ours = judge(np.stack([np.asarray(i) for i in outputs[defect].images])).features
    ratio, _ = nearest_ratio(ours, judge_features(given[defect], judge))
    ratios[defect] = np.sort(ratio)
    print(f"{defect:10} ratios", *(f"{r:.2f}" for r in ratios[defect]))

# %% tags=["remove-cell"]
shutil.rmtree(work)
everything = np.concatenate(list(ratios.values()))
glue("real_ratio", f"{everything.min():.2f}", display=False)
if not FAST and not DATA:
    assert everything.min() > 0.4 and everything.max() > 2

# %% [markdown]
# The smallest ratio is {glue:text}`real_ratio`: none of these is a copy. A large ratio is no praise either: noise is
# far from everything. Look at both, the pictures and the number.

# %% tags=["remove-cell"]
record = read_record("transfer")
transfer = {run["name"]: run for run in record["runs"]}
ious = [run["scores"]["mask_iou"]["mean"] for run in transfer.values()]
assert max(ious) < 0.015 and {run["steps"] for run in transfer.values()} == {1500}
assert {run["scores"]["mask_iou"]["count"] for run in transfer.values()} == {50}
for key, name in (("tiles", "magnetic_tile crack"), ("pills", "pill scratch")):
    iou = record["unets"][name]["iou"]["mean"]
    glue(f"real_unet_{key}", f"{iou:.2f}", display=False)
    for kind in ("held out", "trained"):
        empty = transfer[f"{name}, {kind}"]["empty"]
        glue(f"real_empty_{key}_{kind.split()[0]}", empty, display=False)
assert record["unets"]["magnetic_tile crack"]["iou"]["low"] > 0.2
assert record["unets"]["pill scratch"]["iou"]["mean"] < 0.1

# %% [markdown]
# ## What a photographed product never had
#
# [Chapter 9](09_zero_shot.ipynb) asks for defects that rendered products never had. No judge knows photographs, but
# real pictures of a pair can be kept from the generator and shown to a U-Net, which then says whether a generated
# defect looks like the real one. Tried with two pairs, cracked magnetic tiles {cite}`huang2020magnetic` and scratched
# pills {cite}`bergmann2019mvtec`: `tiny`, 1,500 steps on all products of both sets, without the two pairs and with
# them.
#
# ```{image} ../book/figures/transfer_sheet.webp
# :alt: Generated tiles and pills, each row again below with masks, most of them empty
# :width: 100%
# ```
#
# *Generated, in every second row with masks: tiles without the pair in training and with it, then pills. The first
# seeds, nothing selected.*
#
# **It does not work, with or without the pair.** Tiles are tiles and pills are pills, but there is no crack and no
# scratch. Of 50 masks {glue:text}`real_empty_tiles_held` and {glue:text}`real_empty_tiles_trained` are empty on tiles,
# {glue:text}`real_empty_pills_held` and {glue:text}`real_empty_pills_trained` on pills; the others mark blobs. With
# the U-Net's masks they have a mean IoU of 0.01 at most. On real cracks the U-Net has {glue:text}`real_unet_tiles`; of
# scratches it has learned nothing itself ({glue:text}`real_unet_pills`). Trained pairs are no better than those held
# out, so it is not the transfer that fails: in 1,500 steps at 64 pixels `tiny` has not learned these defects at all.
#
# ## What would break this
#
# - **Masks that miss the defect.** The model learns where a defect is from the masks alone.
# - **One photograph in several files.** If near copies are in the training and in the test half, every score of a
#   detector is too good.
# - **Too long a training.** The loss on what was trained on keeps falling while the model begins to copy. Give
#   `--val` a folder of pictures that it never sees, and watch that loss.
# - **The size.** `tiny` has 64 pixels: a hair-thin scratch in a photograph of 4,000 is gone before it begins.
#
# ## Summary
#
# A folder in MVTec AD's layout is checked first, then the shipped weights are adapted to it in one command. After a
# short training the colour is there, and so is what is large and dark; thin lines are not. Look at the pairs beside the
# given ones, and at the ratio to the nearest. Whether they help a detector is a question of its own ([chapter
# 12](12_does_it_help.ipynb)).
#
# ## Exercises
#
# 1. Train for ten times as many steps. Which of the two numbers, empty masks or the ratio, moves first?
# 2. Leave one defect out of the folder, and ask for it all the same. When does the pipeline refuse, and when not?
# 3. Set `DATA` to a folder of your own.
#
# ````{dropdown} Answers
# 1. Try it; the answer depends on the data. If the ratio falls while the pictures look better and better, the model
#    copies.
# 2. It refuses a defect that no product in the folder has, even one that the shipped weights know. `crack` on
#    `blue_wood` is allowed as soon as some product in the folder has cracks: that is zero-shot transfer.
# 3. Begin with `defectdiffu data check`.
# ````
