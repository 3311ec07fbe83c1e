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
from IPython.display import Markdown
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
    training = {
        "steps": 2,
        "sample_every": 2,
        "checkpoint_every": 2,
        "batch_size": 8,
    }
    training |= {"variants": 2}
work = Path(tempfile.mkdtemp())
viz.use_style()

# %% [markdown]
# ## The folder
#
# The layout is that of MVTec AD, which most tools for anomaly detection read. Good images need no mask. A product's
# name becomes a word in the prompts, so call things by their names: `blue_wood`, not `dataset_07`.
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
# MVTec AD is in this layout; VisA and KolektorSDD2 are converted to it. Each has a licence, which the command says
# before it fetches anything:
#
# ```bash
# defectdiffu data download visa archives
# defectdiffu data convert visa archives/VisA_20220922.tar data/visa
# ```
#
# Set `DATA` above to such a folder, and this page runs on it. As it stands here it makes a stand-in: a product that
# the shipped weights do not know, wood stained blue, with two defects.


# %%
def stained(pixels: np.ndarray) -> np.ndarray:
    """Blue where the wood was brown: red and blue exchanged, and a little darker."""
    return (pixels[..., ::-1] * 0.85).astype(np.uint8)


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


if DATA:
    data = Path(DATA)
else:
    data = work / "data"
    for i in range(GOOD):
        picture = render("wood", "scratch", 0.5, 50_000 + i, 128).normal
        write(data / f"blue_wood/train/good/{i:03}.png", stained(picture))
    for defect in ("scratch", "hole"):
        home = data / "blue_wood"
        for i in range(PER_DEFECT):
            picture = render("wood", defect, 0.4 + 0.05 * i, 60_000 + i, 128)
            write(home / f"test/{defect}/{i:03}.png", stained(picture.image))
            write(home / f"ground_truth/{defect}/{i:03}_mask.png", picture.mask)
print("its own data" if DATA else "a made product, blue_wood")

# %% [markdown]
# ## Check it
#
# A wrong file costs a night of training. `check_folder` reads every file and lists *all* that is wrong; on the command
# line it is `defectdiffu data check DATA`. What it finds in a folder with the usual troubles:

# %%
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

# %% [markdown]
# What is not a problem: grey images, 16 bits, several sizes side by side, a mask with 1 instead of 255, any common file
# type. Now the folder that will be used:

# %%
problems = check_folder(data)
for problem in problems[:10]:
    print(problem)
print(len(problems), "problems")
assert not problems, "mend these first"

# %% tags=["hide-input"]
samples = read_folder(data)
counts = {}
for sample in samples:
    counts.setdefault(sample.product, {}).setdefault(sample.defect, 0)
    counts[sample.product][sample.defect] += 1
rows = ["| product | pictures |", "|---|---|"]
for product, row in counts.items():
    rows.append(f"| {product} | {', '.join(f'{d} {n}' for d, n in row.items())} |")
product = max(
    counts, key=lambda p: sum(n for d, n in counts[p].items() if d != "good")
)
defects = [d for d in counts[product] if d != "good"][:2]
Markdown("\n".join(rows))

# %% [markdown]
# ## What a picture may be turned into
#
# A few pictures go further if they are shown in several versions, moved and lit anew, the mask along with them. But a
# bottle may be turned and a zipper may not. What a product bears stands in `data/catalog.py`; an unknown one gets
# cautious defaults:

# %%
print(product, augmentation(product))

# %% [markdown]
# ## Adapt the weights
#
# With so few pictures nobody trains from nothing. `--preset tiny` begins from the shipped weights, autoencoder and
# all, and learns the names in the folder: words that those weights know begin with what was learned, the others anew.
# The objective is the same as ever, Eq. 11,
#
# $$
# \mathcal{L} = \mathcal{L}_{noise} + \mathcal{L}_d + \lambda \mathcal{L}_m ,
# $$
#
# in the code `total_loss` in `defectdiffu/losses.py`. On the command line this cell is
# `defectdiffu train --preset tiny --data DATA --steps N --out RUN`.

# %%
preset = load_preset("tiny").replace(training=training)
begin = time.perf_counter()
with capture_output():  # its progress bars
    run = train(preset, [data], work / "run")
minutes = (time.perf_counter() - begin) / 60

pipe = DefectDiffuPipeline.from_pretrained(run)
pipe.set_progress_bar_config(disable=True)
settings = {"num_images": NUM_IMAGES, "num_inference_steps": 4 if FAST else 20}
outputs = {f"{product}, {d}": pipe(product, d, **settings) for d in defects}

# %% tags=["remove-cell"]
glue("real_minutes", f"{minutes:.1f}", display=False)
glue("real_steps", training["steps"], display=False)
glue("real_pictures", len(samples), display=False)
glue("real_defects", sum(s.defect != "good" for s in samples), display=False)
empty = sum(
    not np.asarray(mask).any() for out in outputs.values() for mask in out.masks
)
glue("real_empty", empty, display=False)
glue("real_made", sum(len(out.masks) for out in outputs.values()), display=False)

# %% [markdown]
# {glue:text}`real_steps` steps on {glue:text}`real_pictures` pictures, {glue:text}`real_defects` of them with a defect,
# took {glue:text}`real_minutes` minutes on the machine that made this page. First the pictures that were there, then
# what the adapted weights make of the names, the first seeds, none left out:

# %% mystnb={"image": {"alt": "Pictures with masks, two rows per defect: given and generated"}} tags=["hide-input"]
SIDE = pipe.transformer.config.sample_size * 4


def small(sample):
    picture = Image.open(sample.image).convert("RGB").resize((SIDE, SIDE))
    mask = (
        Image.open(sample.mask)
        .convert("L")
        .resize((SIDE, SIDE), Image.Resampling.NEAREST)
    )
    return viz.overlay(viz.enlarge(picture), viz.enlarge(mask))


rows, labels = [], []
for defect in defects:
    given = [s for s in samples if (s.product, s.defect) == (product, defect)]
    rows.append([small(s) for s in given[:NUM_IMAGES]])
    labels.append(f"{defect},\ngiven")
    out = outputs[f"{product}, {defect}"]
    pairs = zip(out.images, out.masks, strict=True)
    rows.append([viz.overlay(viz.enlarge(i), viz.enlarge(m)) for i, m in pairs])
    labels.append(f"{defect},\ngenerated")
viz.grid(rows, labels)

# %% [markdown]
# Compare with your prediction: is the colour there? Are the defects? Of {glue:text}`real_made` masks
# {glue:text}`real_empty` are empty; `defectdiffu generate` leaves such pictures out and says so.
#
# ## Is it new, or a copy?
#
# With so few pictures, copying is the danger. For every generated picture take the nearest training picture, in the
# features of the judge, and divide by how far training pictures are from each other. At 1 it is as far from them as
# they are from one another; near 0 it is a copy.

# %%
judge = Judge.shipped(64)
ratios = []
for defect in defects:
    given = [s for s in samples if (s.product, s.defect) == (product, defect)]
    made = np.stack([np.asarray(i) for i in outputs[f"{product}, {defect}"].images])
    theirs = judge_features(given, judge)
    ratio, nearest = nearest_ratio(judge(made).features, theirs)
    ratios += ratio.tolist()
    print(f"{defect:12} ratios", *(f"{r:.2f}" for r in sorted(ratio)))

# %% tags=["remove-cell"]
glue("real_ratio", f"{np.mean(ratios):.2f}", display=False)
copied = int(np.sum(np.array(ratios) < 0.5))
glue("real_copied", copied, display=False)
shutil.rmtree(work)

# %% [markdown]
# Their mean is {glue:text}`real_ratio`, and {glue:text}`real_copied` are below one half. A large ratio is no praise
# either: noise is far from everything. Look at both, the pictures and the number.
#
# ## What a product never had
#
# The paper's hardest promise is a defect on a product that no photograph shows it on. With real photographs no judge
# knows the answer, but real pictures of such a pair can be kept from the generator and shown to a U-Net instead. Half
# of them train it, the other half say how well it finds the real defect. Then it is asked about the generated ones: is
# the mask where somebody who knows the real defect would put it? The commands, for all products of MVTec AD
# {cite}`bergmann2019mvtec` and the magnetic tiles {cite}`huang2020magnetic` together:
#
# ```bash
# defectdiffu train --preset tiny --data mvtec --data magnetic_tile --steps STEPS --out runs/real-held \
#   --without magnetic_tile/crack,pill/scratch
# defectdiffu train --preset tiny --data mvtec --data magnetic_tile --steps STEPS --out runs/real-all
# defectdiffu evaluate transfer --weights runs/real-held --weights runs/real-all --real mvtec --real magnetic_tile \
#   --pairs magnetic_tile/crack,pill/scratch --record records/transfer.json --sheet transfer.webp
# ```
#
# What came of it, from the record `transfer`. Its trainings started from the shipped weights of version 0.1.0, which
# predicted the noise; those of today predict the velocity and are better.

# %% tags=["hide-input"]
record = read_record("transfer")


def interval(b):
    return f"{b['mean']:.2f} ({b['low']:.2f} to {b['high']:.2f})"


rows = [
    "| pair | steps | versions of a picture | mask IoU | the U-Net sees a defect | nearest ratio | copies |"
]
rows.append("|---" * 7 + "|")
for run in record["runs"] if record else []:
    training, scores = run["changes"]["training"], run["scores"]
    cells = [run["name"], training["steps"], training["variants"]]
    cells += [
        interval(scores[k])
        for k in ("mask_iou", "marked", "nearest_ratio", "copies")
    ]
    rows.append("| " + " | ".join(map(str, cells)) + " |")
rows += ["", "| the U-Net itself | IoU on real pictures | trained on | tested on |"]
rows.append("|---" * 4 + "|")
for pair, unet in (record["unets"] if record else {}).items():
    real = unet["real"]
    rows.append(
        f"| {pair} | {interval(unet['iou'])} | {real['training']} | {real['test']} |"
    )
Markdown("\n".join(rows) if record else "Not run yet: no table.")

# %% [markdown]
# *Mask IoU*: the generated mask against the U-Net's on the generated picture, mean over the pictures with its 95 per
# cent interval; the U-Net's own IoU on real pictures bounds it. A U-Net whose own IoU is near zero has not learned
# the defect from so few pictures, and its pair says nothing. Where trained pairs do no better than held-out ones, it
# is not the transfer that fails: the model has not learned these photographs yet. *Copies*: the share of generated
# pictures of trained pairs whose nearest ratio is below one half. The first pictures of each line of the table, none
# left out, above the same with the generated masks (the photographs are not shown: MVTec AD's licence keeps them from
# travelling with this book):
#
# ```{image} ../book/figures/transfer_sheet.webp
# :alt: Generated pictures of held-out pairs, below each row the same with masks
# :width: 100%
# ```
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
# A folder in MVTec AD's layout is checked first, then the shipped weights are adapted to it in one command. Look at the
# pairs beside the given ones, and at the ratio to the nearest. Whether they help a detector is a question of its own,
# and the chapter before this one asks it.
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
