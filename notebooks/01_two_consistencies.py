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
# # Two consistencies
#
# [![Open in Colab](../book/figures/open_in_colab.svg)](https://colab.research.google.com/github/defectdiffu/defectdiffu/blob/main/notebooks/01_two_consistencies.ipynb)
#
# **The question.** A factory has ten pictures of cracked hazelnuts, ten of cracked tiles, ten of bent screws. Do these
# few pictures say anything about each other? The paper answers with two consistencies, and builds everything on them:
#
# - **Background consistency, within a product.** Whatever its defect, the rest of a hazelnut looks like any hazelnut.
# - **Defect consistency, between products.** Whatever it is in, a crack is shaped like a crack.
#
# **Before you run it, predict.** Take a picture of a damaged product apart. One reader gets everything *but* the
# defect, the other gets nothing but the black and white *outline* of the defect. Which of them can name the product,
# which the defect, and how often?

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
EXAMPLES = 3  # @param {type:"integer"}
# At least 2 seeds: specimens are compared.
SEEDS = 2  # @param {type:"integer"}
STEPS = 20  # @param {type:"integer"}
REAL_DATA = ""  # @param {type:"string"}

# %% tags=["hide-cell"]
import inspect
import os
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from myst_nb import glue
from PIL import Image
from scipy.ndimage import distance_transform_edt
from scipy.stats import binomtest
from skimage.measure import label, regionprops

from defectdiffu import DefectDiffuPipeline, viz
from defectdiffu.config import GOOD
from defectdiffu.data.folder import load_image, load_mask, read_folder
from defectdiffu.drawn.procedural import HELD_OUT, PAIRS, render, write_dataset
from defectdiffu.evaluation.oracle import picture_size
from defectdiffu.evaluation.statistics import bootstrap

FAST = FAST or os.environ.get("DEFECTDIFFU_FAST") == "1"
if FAST:  # small enough for a check on every change
    EXAMPLES, STEPS = 1, 2
viz.use_style()

pipe = DefectDiffuPipeline.from_pretrained(WEIGHTS)
pipe.set_progress_bar_config(disable=True)
SIZE = picture_size(pipe)  # all measurements are made at the weights' own size


# %% [markdown]
# ## One product, each defect
#
# To see a consistency one would want the same specimen twice, with its defect and without. No factory has that: a
# nut is not uncracked again. So this book begins with pictures that a program draws, where both exist. `render`
# draws a specimen, damages it, and photographs it before and after:


# %%
lines = inspect.getsource(render).splitlines()
start = next(i for i, line in enumerate(lines) if "intact, light =" in line)
print(textwrap.dedent("\n".join(lines[start : start + 7])))

# %% [markdown]
# As a formula, with $s_p$ the sound surface of product $p$, $D_d$ the damage $d$, and $S$ the photograph, which is
# `shade`:
#
# $$
# n = S(s_p), \qquad x = S\big(D_d(s_p)\big)
# $$
#
# The two consistencies are two things that this formula does *not* say: the surface $s_p$ has no $d$, and the damage
# $D_d$ has no $p$.

# %% mystnb={"image": {"alt": "Drawn specimen, one row per defect: normal, damaged, change, mask"}} tags=["hide-input"]
STRENGTH = 0.7


def picture(array):
    return Image.fromarray(np.asarray(array, np.uint8))


def difference(image, normal):
    """How far each pixel moved: the largest of its three colours, 0 to 255."""
    return np.abs(np.asarray(image, int) - np.asarray(normal, int)).max(-1)


def before_after(normal, image, mask):
    """One row: without the defect, with it, what changed, with the mask laid over."""
    normal, image, mask = map(viz.enlarge, map(picture, (normal, image, mask)))
    change = picture(difference(image, normal))
    return [normal, image, change, viz.overlay(image, mask)]


own = [defect for defect in pipe.defects if defect in PAIRS[PRODUCT]]
drawn = {d: render(PRODUCT, d, STRENGTH, seed=0) for d in own}
viz.grid(
    [before_after(r.normal, r.image, r.mask) for r in drawn.values()],
    own,
    ["normal", "image", "difference", "with mask"],
    inches=1.2,
)

# %% [markdown]
# *{glue:text}`two_product`, seed 0, strength {glue:text}`two_strength`: the same specimen in every row. The difference
# is drawn in grey, the lighter the larger; the mask, laid over in blue, is where the program touched the surface.*
#
# The first column is not merely similar from row to row. It is the same picture to the byte, for every product:

# %%
# NBVAL_CHECK_OUTPUT
for product, defects in PAIRS.items():
    one, other = (render(product, d, size=64).normal for d in defects[:2])
    sound = render(product, "good", size=64)
    assert np.array_equal(one, other)
    assert np.array_equal(one, sound.image)
    assert not sound.mask.any()
print(len(PAIRS), "products: one normal picture, whatever the defect")

# %% [markdown]
# Is the picture outside the mask untouched, then? Look at the third column: around a pit there is a faint halo. A
# dent throws a shadow, a flake darkens what it lies on. Light does not stop at the border of a mask, neither here nor
# in a real photograph. So a picture is consistent only from some distance on. We measure it: the change of a pixel
# against its distance from the mask.

# %% mystnb={"image": {"alt": "Mean change of pixels by distance from the mask, a line per defect"}} tags=["hide-input"]
AWAY = 0.2  # of the picture's side
figure, axis = plt.subplots(figsize=(5.6, 2.7), layout="constrained")
still, furthest, outside, inside = [], [], [], []
for i, (defect, r) in enumerate(drawn.items()):
    side = len(r.mask)
    change = difference(r.image, r.normal)
    away = distance_transform_edt(r.mask == 0)  # pixels; 0 in the mask
    assert not change[away > AWAY * side].any()
    still.append((change[away > 0] == 0).mean())
    furthest.append(away[change > 0].max())
    inside.append(change[away == 0].mean())
    outside.append(change[away > 0].mean())
    rings = np.ceil(away).astype(int).ravel()
    mean = np.bincount(rings, change.ravel()) / np.maximum(np.bincount(rings), 1)
    colour = viz.COLOURS[i % len(viz.COLOURS)]
    axis.plot(mean[:31], color=colour, label=defect)
axis.set(
    xlabel=f"distance from the mask (pixels of {side}; 0 is inside)",
    ylabel="mean change\n(levels of 255)",
    ylim=(0, None),
)
axis.legend(ncols=2)
plt.close(figure)
figure

# %% tags=["remove-cell"]
glue("two_product", PRODUCT, display=False)
glue("two_defect", DEFECT, display=False)
glue("two_strength", STRENGTH, display=False)
glue("two_away", f"{100 * AWAY:.0f}", display=False)
glue("two_still", f"{100 * np.mean(still):.0f}", display=False)
glue("two_furthest", f"{100 * max(furthest) / side:.0f}", display=False)
glue("two_inside", f"{np.mean(inside):.0f}", display=False)
glue("two_outside", f"{np.mean(outside):.1f}", display=False)

# %% [markdown]
# Inside the mask the mean change is {glue:text}`two_inside` levels, outside it is {glue:text}`two_outside`, and
# {glue:text}`two_still` % of the pixels outside have not changed by a single level. The furthest that did lies
# {glue:text}`two_furthest` % of the side away. Beyond {glue:text}`two_away` % the change is exactly 0: the code above
# asserts it.
#
# That is background consistency: what a learner needs to know of a hazelnut, it can learn from *sound* hazelnuts, of
# which every factory has thousands.
#
# ## One defect, many products
#
# Now the other way round. One row for each product that has the defect; two specimens of each. The masks stand by
# themselves here, for their shape is what this is about.

# %% mystnb={"image": {"alt": "Drawn pictures and masks of one defect, one row per product"}} tags=["hide-input"]
having = [product for product in pipe.products if DEFECT in PAIRS[product]]
rows = []
for product in having:
    two = [render(product, DEFECT, STRENGTH, seed) for seed in range(2)]
    rows.append([picture(array) for r in two for array in (r.image, r.mask)])
viz.grid(rows, having, ["seed 0", "its mask", "seed 1", "its mask"], inches=1.2)

# %% [markdown]
# *{glue:text}`two_defect`, strength {glue:text}`two_strength`.* Cover the columns of pictures with your hand. Could you
# say from the masks alone which row you are in? And could you say that it is {glue:text}`two_defect` and not, say, a
# hole? What changes from row to row is colour, gloss and size: the product's own material shows in the damage.
# What stays is the shape.
#
# ## A ruler for shapes
#
# "Similar" can be measured. Five numbers describe a mask, and none of them knows where the mask lies, which way it is
# turned, or what is in the picture:

# %%
DESCRIPTORS = {
    "area": "% of the picture",
    "pieces": "number",
    "elongation": "length / width",
    "fill": "% of its convex hull",
    "thickness": "% of the side",
}


def describe(mask):
    """Five numbers about the shape of a mask (H, W) that is not empty."""
    marked = np.pad(np.asarray(mask) > 0, 1)
    side = mask.shape[0]
    pieces = regionprops(label(marked))
    largest = max(pieces, key=lambda piece: piece.area)
    width = max(largest.axis_minor_length, 1)
    return [
        100 * marked.sum() / mask.size,
        len(pieces),
        max(largest.axis_major_length / width, 1),
        100 * regionprops(marked.astype(int))[0].solidity,
        100 * 2 * distance_transform_edt(marked).max() / side,
    ]


def describe_background(image, mask):
    """Six numbers about all that is not the defect: mean and deviation of R, G, B."""
    pixels = image[mask == 0]
    return [*pixels.mean(0), *pixels.std(0)]


# %% [markdown]
# We draw {glue:text}`two_examples` specimens of every pair of the benchmark, at strengths spread over the range that
# the training set has. No specimen comes twice.

# %%
strengths = np.linspace(0.25, 1, EXAMPLES + 2)[1:-1]
products, defects, shapes, backgrounds = [], [], [], []
for product in PAIRS:
    for defect in PAIRS[product]:
        for strength in strengths:
            seed = len(products)
            r = render(product, defect, strength, seed, SIZE)
            products.append(product)
            defects.append(defect)
            shapes.append(describe(r.mask))
            backgrounds.append(describe_background(r.image, r.mask))
products, defects = np.array(products), np.array(defects)
shapes, backgrounds = np.log(shapes), np.array(backgrounds)  # shapes: as ratios

# %% mystnb={"image": {"alt": "Five numbers about the masks' shape by defect; variance explained"}} tags=["hide-input"]


def explained(values, names):
    """Share of the variance of values (N,) that lies between the groups (N,)."""
    means = {name: values[names == name].mean() for name in np.unique(names)}
    return np.var([means[name] for name in names]) / np.var(values)


figure, axes = plt.subplots(3, 2, figsize=(5.8, 7.4), layout="constrained")
shares = []
for axis, (name, unit), values in zip(
    axes.flat, DESCRIPTORS.items(), shapes.T, strict=False
):
    for row, defect in enumerate(pipe.defects):
        means = [
            np.exp(values[(defects == defect) & (products == product)].mean())
            for product in np.unique(products[defects == defect])
        ]
        centre = np.exp(np.log(means).mean())
        axis.plot(means, [row] * len(means), "o", ms=4, alpha=0.6)
        axis.plot(centre, row, "|", ms=13, mew=2, color=viz.COLOURS[6])
    for dots in axis.lines[::2]:
        dots.set_color(viz.COLOURS[0])
    axis.set_yticks(range(len(pipe.defects)), pipe.defects)
    axis.invert_yaxis()
    axis.set(xlabel=f"{name} ({unit})", xlim=(0, None))
    shares.append([100 * explained(values, n) for n in (defects, products)])
shares = np.array(shares)
axis = axes[-1, -1]
for k, who in enumerate(("by the defect", "by the product")):
    place = np.arange(len(shares)) + 0.4 * k - 0.2
    axis.barh(place, shares[:, k], 0.36, color=viz.COLOURS[k], label=who)
axis.set_yticks(range(len(shares)), list(DESCRIPTORS))
axis.invert_yaxis()
axis.set(xlabel="variance explained (%)", xlim=(0, 100))
axis.legend(loc="upper center", bbox_to_anchor=(0.4, 1.22), ncols=1)
plt.close(figure)
figure

# %% tags=["remove-cell"]
glue("two_examples", EXAMPLES, display=False)
glue("two_masks", len(products), display=False)
for k, who in enumerate(("defect", "product")):
    low, high = shares[:, k].min(), shares[:, k].max()
    glue(f"two_by_{who}", f"{low:.0f} to {high:.0f}", display=False)

# %% [markdown]
# *{glue:text}`two_masks` masks. One dot is one product, the black tick the mean of a defect. Last panel: how much of
# each number's variance (of its logarithm) is between the defects, and how much between the products.*
#
# Within a row the dots are many different products, and they keep together; from row to row they move. The defect
# explains {glue:text}`two_by_defect` % of the variance of a number, the product {glue:text}`two_by_product` %.
#
# ## Your prediction, measured
#
# Now the two readers. Each names by the nearest mean: it averages its numbers over all examples of a name and takes
# the name whose mean is nearest. To make this a test, a reader that names a **defect** has never seen the product at
# hand, and one that names a **product** has never seen the defect at hand.


# %%
def nearest_mean(known, names, asked):
    """Name each row of asked (M, F) after the nearest mean of known (N, F)."""
    spread = known.std(0)
    choices = np.unique(names)
    means = np.array([known[names == name].mean(0) for name in choices])
    apart = (asked[:, None] - means) / spread  # (M, names, F)
    return choices[(apart**2).sum(-1).argmin(1)]


def right(features, names, unseen):
    """Was each example named rightly, without examples of its own `unseen`?"""
    hits = np.zeros(len(names))
    for group in np.unique(unseen):
        asked = unseen == group
        named = nearest_mean(features[~asked], names[~asked], features[asked])
        hits[asked] = named == names[asked]
    return hits


readers = {"mask's outline": shapes, "all but the defect": backgrounds}
tasks = {"defect": (defects, products), "product": (products, defects)}
scores = {
    (reader, task): right(features, *names)
    for reader, features in readers.items()
    for task, names in tasks.items()
}

# %% mystnb={"image": {"alt": "Share of defects and products named, from outline and from rest"}} tags=["hide-input"]
chance = {task: 1 / len(set(names)) for task, (names, _) in tasks.items()}


def proportion(hits):
    """The share of hits with Wilson's 95 % interval, which has a width even if all hit."""
    test = binomtest(int(np.sum(hits)), len(hits))
    low, high = test.proportion_ci(method="wilson")
    return {"mean": test.statistic, "low": low, "high": high}


def points(axis, rows, colour=viz.COLOURS[0]):
    """One dot with its 95 % interval for each row of 0 and 1, in percent."""
    for place, hits in enumerate(rows):
        s = {k: 100 * v for k, v in proportion(hits).items()}
        reach = [[s["mean"] - s["low"]], [s["high"] - s["mean"]]]
        axis.errorbar(
            s["mean"], place, xerr=reach, fmt="o", color=colour, capsize=3
        )
        axis.annotate(
            f"{s['mean']:.0f} %",
            (s["mean"], place),
            (0, 7),
            textcoords="offset points",
            ha="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
    axis.set(xlim=(-4, 108), ylim=(len(rows) - 0.5, -0.6))


figure, axes = plt.subplots(
    1, 2, figsize=(5.8, 1.9), sharey=True, layout="constrained"
)
for axis, task in zip(axes, tasks, strict=True):
    points(axis, [scores[reader, task] for reader in readers])
    axis.axvline(100 * chance[task], color="0.6", linestyle="--", zorder=0)
    axis.set_title(f"names the {task}")
    axis.set_xlabel("right (% of the pictures)")
axes[0].set_yticks(range(len(readers)), list(readers))
plt.close(figure)
figure

# %% tags=["remove-cell"]
for (reader, task), hits in scores.items():
    key = "shape" if reader == "mask's outline" else "rest"
    glue(f"two_{key}_{task}", f"{100 * hits.mean():.0f}", display=False)
for task in tasks:
    glue(f"two_chance_{task}", f"{100 * chance[task]:.0f}", display=False)

# %% [markdown]
# *Dots: share named rightly, with Wilson's 95 % interval for a share. Dashed: guessing.*
#
# From the outline of the defect the reader names the defect in {glue:text}`two_shape_defect` % (guessing gives
# {glue:text}`two_chance_defect` %), *on products it never saw*, and the product in {glue:text}`two_shape_product` %
# (guessing: {glue:text}`two_chance_product` %). From all the rest it names the product in
# {glue:text}`two_rest_product` % and the defect in {glue:text}`two_rest_defect` %. Each half of the picture knows one
# word and is all but blind to the other. Those two words are the two prompts that the model of this book will get:
# "A photo of hazelnut" and "A photo of crack".
#
# Mind that these pictures are drawn by a program in which $D_d$ really has no $p$. They show what the two
# consistencies *are*; how far they hold in the world, only real images can show, further down.
#
# ## What a learner per product misses
#
# Most generators before this paper are trained on one product at a time. Here is what there is to learn from: products
# by defects, the number in a cell is how many defect images the few-shot training set has.

# %% mystnb={"image": {"alt": "Table of products by defects: training images in each cell"}} tags=["hide-input"]
few = inspect.signature(write_dataset).parameters["per_pair"].default
counts = np.array(
    [
        [few * (d in PAIRS[p] and (p, d) not in HELD_OUT) for d in pipe.defects]
        for p in pipe.products
    ]
)
figure, axis = plt.subplots(figsize=(5.8, 4.6), layout="constrained")
for i, product in enumerate(pipe.products):
    for j, defect in enumerate(pipe.defects):
        held = (product, defect) in HELD_OUT
        known = counts[i, j] > 0
        colour = viz.COLOURS[5] if known else viz.COLOURS[4] if held else "0.94"
        axis.add_patch(
            plt.Rectangle(
                (j - 0.46, i - 0.44), 0.92, 0.88, color=colour, linewidth=0
            )
        )
        text = counts[i, j] if known else "held\nout" if held else ""
        axis.text(j, i, text, ha="center", va="center", linespacing=0.85)
    axis.text(len(pipe.defects), i, counts[i].sum(), ha="center", va="center")
for j, total in enumerate(counts.sum(0)):
    axis.text(j, len(pipe.products), total, ha="center", va="center")
axis.set_xticks(
    range(len(pipe.defects) + 1),
    [*pipe.defects, "all"],
    rotation=40,
    ha="left",
    rotation_mode="anchor",
)
axis.set_yticks(range(len(pipe.products) + 1), [*pipe.products, "all"])
axis.set(
    xlim=(-0.5, len(pipe.defects) + 0.5), ylim=(len(pipe.products) + 0.5, -0.5)
)
axis.xaxis.tick_top()
axis.tick_params(length=0)
axis.spines[:].set_visible(False)
plt.close(figure)
figure

# %% tags=["remove-cell"]
for product, defect in HELD_OUT:
    assert defect not in pipe.pairs[product]
trained = counts > 0
glue("two_pairs", int(trained.sum()), display=False)
glue("two_cells", trained.size, display=False)
glue("two_filled", f"{100 * trained.mean():.0f}", display=False)
glue("two_held", len(HELD_OUT), display=False)
glue("two_few", few, display=False)
glue(
    "two_column", f"{(counts.sum(0) * trained)[trained].mean():.0f}", display=False
)
glue("two_sum", len(pipe.products) + len(pipe.defects), display=False)

# %% [markdown]
# *Blue: in training. Orange: a pair that exists but is held out. Grey: not in the benchmark.*
#
# A learner per product reads one **row**: {glue:text}`two_few` images for each of its defects, and nothing at all
# where the row is empty. It can never draw an orange or a grey cell. {glue:text}`two_pairs` of the
# {glue:text}`two_cells` cells are filled, {glue:text}`two_filled` %.
#
# A learner that shares reads **row and column**: what the product is from the row, what the defect is from the
# column. For a pair that is in training, the column holds {glue:text}`two_column` images of the defect on average
# instead of {glue:text}`two_few`. And it has to know {glue:text}`two_sum` things, products plus defects, to fill
# {glue:text}`two_cells` cells, products times defects. Whether that works for the {glue:text}`two_held` held-out cells
# is the matter of the chapter on zero-shot transfer.
#
# ## On real images
#
# Set `REAL_DATA` to a folder in MVTec AD's layout. There is no `normal` for a real image, so background consistency
# can only be looked at. Outlines are measured as above, over the defects that at least two products share, under the
# paper's unified names, with at most six masks of each pair so that no product outweighs the others.
#
# Expect less than from the drawn pictures. A cracked tile of MVTec AD has a thin forked line; a cracked hazelnut is a
# shell burst open. One word, two outlines. Where the score is near guessing, the outline alone is not what carries
# over from product to product there; what then is left for a model to share is the appearance, edges, depth, colour,
# and that is more than this ruler sees.

# %% mystnb={"image": {"alt": "Real images beside their masks, one row per defect or product"}} tags=["hide-input"]


def look(samples, names):
    """Two examples for each group of samples, each beside its mask."""
    rows = []
    for group in samples:
        pictures = [
            (
                picture(load_image(s.image, 256)),
                picture(load_mask(s.mask, 256) if s.mask else np.zeros((256, 256))),
            )
            for s in group[:2]
        ]
        rows.append([image for pair in pictures for image in pair])
    display(viz.grid(rows, names, ["first", "its mask", "second", "its mask"], 1.2))


if not REAL_DATA:
    print(
        "No real images here: set REAL_DATA to a folder in MVTec AD's layout.\n"
        "`defectdiffu data download mvtec OUT` fetches one and names its licence."
    )
else:
    samples = read_folder(Path(REAL_DATA).expanduser())
    kinds = sorted({s.defect for s in samples if s.product == PRODUCT} - {GOOD})
    of = {
        k: [s for s in samples if (s.product, s.defect) == (PRODUCT, k)]
        for k in kinds
    }
    if of:
        look(of.values(), list(of))
    flawed = [s for s in samples if s.defect != GOOD]
    on = {
        p: [s for s in flawed if (s.product, s.defect) == (p, DEFECT)]
        for p in sorted({s.product for s in flawed if s.defect == DEFECT})
    }
    if on:
        look(on.values(), list(on))
    groups = {}
    for s in flawed:
        groups.setdefault((s.product, s.defect), []).append(s)
    known = [defect for _, defect in groups]
    shared = [
        s
        for (_, d), group in groups.items()
        if known.count(d) > 1
        for s in group[:6]
    ]
    if shared:
        real = np.log([describe(load_mask(s.mask, 256)) for s in shared])
        owner, word = np.array([(s.product, s.defect) for s in shared]).T
        hits = right(real, word, owner)
        found = {k: 100 * v for k, v in proportion(hits).items()}
        print(
            f"{len(shared)} real masks, {len(set(word))} defects that products share"
        )
        print(
            f"named on an unseen product: {found['mean']:.0f} % "
            f"({found['low']:.0f} to {found['high']:.0f}), "
            f"guessing: {100 / len(set(word)):.0f} %"
        )
        for who, names in (("defect", word), ("product", owner)):
            parts = [100 * explained(values, names) for values in real.T]
            print(
                f"variance of the outline's numbers explained by the {who}: "
                f"{min(parts):.0f} to {max(parts):.0f} %"
            )

# %% [markdown]
# ## And the model?
#
# The shipped model learned from the blue cells, all of them together. Ask it for the same product with each of its
# defects, always with the same noise; for the *normal* picture switch the defect off, $w_d = 0$. In Eq. 4 the word for
# the defect then has no weight, so here too there is one normal picture for all defects, to the byte:

# %%
# NBVAL_CHECK_OUTPUT
settings = {"num_images": SEEDS, "num_inference_steps": STEPS}
one, other = (
    pipe(PRODUCT, defect, w_d=0, **settings).images
    for defect in pipe.pairs[PRODUCT][:2]
)
assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
print("at w_d = 0 the pictures do not depend on the defect's name")

# %% mystnb={"image": {"alt": "Generated pictures, one row per defect: switched off, with it, difference, mask"}}
asked = [(p, d) for p in pipe.products for d in pipe.pairs[p]]
shown = [pair for pair in asked if pair[0] == PRODUCT or pair[1] == DEFECT]
asked = shown if FAST else asked
made = {pair: pipe(*pair, **settings) for pair in asked}
normal = {
    p: pipe(p, pipe.pairs[p][0], w_d=0, **settings).images
    for p in dict.fromkeys(p for p, _ in asked)
}

rows = []
for defect in pipe.pairs[PRODUCT]:
    out = made[PRODUCT, defect]
    rows.append(before_after(normal[PRODUCT][0], out.images[0], out.masks[0]))
viz.grid(
    rows,
    pipe.pairs[PRODUCT],
    ["$w_d = 0$", "image", "difference", "with mask"],
    inches=1.2,
)

# %% [markdown]
# *{glue:text}`two_product`, generated, seed 0: the columns are those of the first figure.* Compare the two figures.
# Does the third column gather in one place, and is it the place that the mask marks? And the other consistency, one
# defect on all products it was trained on:

# %% mystnb={"image": {"alt": "Generated pictures and masks of one defect, one row per product"}} tags=["hide-input"]
having = [product for product in pipe.products if DEFECT in pipe.pairs[product]]
rows = []
for product in having:
    out = made[product, DEFECT]
    rows.append(
        [*(i for pair in zip(out.images, out.masks, strict=True) for i in pair)][:4]
    )
viz.grid(rows, having, ["seed 0", "its mask", "seed 1", "its mask"], inches=1.2)

# %% [markdown]
# *{glue:text}`two_defect`, generated.* The same rulers say how far the model has come. First, how much a pixel outside
# the model's mask moves when a defect is switched on, against how much it moves from one specimen to another. Second,
# the reader of outlines: it is taught by *rendered* masks of other products, as above, and given the model's masks. An
# empty mask counts as not named.

# %%
moved, between, named = [], [], []
for (product, defect), out in made.items():
    others = products != product
    for image, mask, sound, another in zip(
        out.images,
        map(np.asarray, out.masks),
        normal[product],
        np.roll(normal[product], 1, axis=0),
        strict=True,
    ):
        moved.append(difference(image, sound)[mask == 0].mean())
        between.append(difference(another, sound)[mask == 0].mean())
        named.append(
            bool(mask.any())
            and nearest_mean(
                shapes[others], defects[others], np.log([describe(mask)])
            )[0]
            == defect
        )

# %% mystnb={"image": {"alt": "Change outside the mask, above; defects named from outlines, below"}} tags=["hide-input"]
figure, axes = plt.subplots(2, 1, figsize=(5.6, 3.4), layout="constrained")
for place, values in enumerate((moved, between)):
    s = bootstrap(values)
    axes[0].barh(place, s["mean"], 0.5, color=viz.COLOURS[place])
    axes[0].plot([s["low"], s["high"]], [place] * 2, color="black")
axes[0].set_yticks(range(2), ["with and without\nits defect", "two specimens"])
axes[0].invert_yaxis()
axes[0].set_xlabel("mean change outside the mask (levels of 255)")
points(axes[1], [named, scores["mask's outline", "defect"]])
axes[1].axvline(100 * chance["defect"], color="0.6", linestyle="--", zorder=0)
axes[1].set_yticks(range(2), ["generated masks", "rendered masks"])
axes[1].set_xlabel("defect named rightly from the outline (%)")
plt.close(figure)
figure

# %% tags=["remove-cell"]
glue("two_made", len(named), display=False)
glue("two_moved", f"{np.mean(moved):.0f}", display=False)
glue("two_between", f"{np.mean(between):.0f}", display=False)
glue("two_named", f"{100 * np.mean(named):.0f}", display=False)
glue(
    "two_background_verdict",
    "so the model keeps the specimen, at least in part"
    if bootstrap(np.subtract(between, moved))["low"] > 0
    else "so we cannot say that the model keeps the specimen",
    display=False,
)
found = proportion(named)
glue(
    "two_shape_verdict",
    "above guessing"
    if found["low"] > chance["defect"]
    else "no better than guessing",
    display=False,
)

# %% [markdown]
# Over {glue:text}`two_made` generated pictures, switching the defect on moves a pixel outside the mask by
# {glue:text}`two_moved` levels; from one specimen to another it is {glue:text}`two_between`,
# {glue:text}`two_background_verdict`. The outlines of the model's masks are named rightly in
# {glue:text}`two_named` %, which is {glue:text}`two_shape_verdict` ({glue:text}`two_chance_defect` %) and compares
# with {glue:text}`two_shape_defect` % for rendered ones. What stands between the two is what the rest of the book is
# about.
#
# ## What would break this
#
# - **A defect that changes the whole product.** A bent wire, a nut that lies flipped, a wrong print: there is no region
#   outside it, so no background to be consistent with.
# - **One word for two shapes.** If "contamination" is dust on one product and a metal chip on another, the column is
#   no longer one thing to learn. The paper unifies the names of 15 products' defects in a table, and it cannot unify
#   the shapes: see the cracks of MVTec AD.
# - **A shape that the product dictates.** A broken tooth of a zipper is shaped like a tooth. The more the product
#   explains of the outline, the less another product can teach.
#
# ## Summary
#
# What lies outside a defect belongs to the product, and, in the drawn benchmark, the outline belongs to the defect:
# each half of the picture names its own word and is all but blind to the other. So a few images per pair are not few
# if rows and columns are shared: a learner per product sees one row, a joint one sees the column too, and can be
# asked for cells that have never been filled. The rest of this book builds a model with one part for each of the two,
# and measures how much of this it really gets.
#
# ## Exercises
#
# 1. Take the area out of the ruler (the first column of `shapes`). How much worse is the reader of outlines?
# 2. Let the reader see the product at hand: replace `unseen` by a different number for each picture. What does the
#    score say about what is lost between products?
# 3. Which two defects does the reader of outlines confuse most, and what besides the outline would tell them apart?
#
# ````{dropdown} Answers
# 1. `right(shapes[:, 1:], defects, products).mean()`. Compare with the score above: a few points either way are
#    chance. Area follows the strength, so it says the least about the kind.
# 2. `right(shapes, defects, np.arange(len(defects))).mean()`. The difference between the two is the price of crossing
#    from product to product. If it is small, the shape is the defect's own.
# 3. Let `right` return `named` and count the pairs (named, true). The outline says nothing of colour or gloss: a hole
#    and a stain can have the same one. The *appearance* of the damage tells them apart, and it is partly the
#    product's, which is why the model has a third part that fuses the two.
# ````
