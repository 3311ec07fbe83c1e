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
# # On a photograph
#
# [![Open in Colab](../book/figures/open_in_colab.svg)](https://colab.research.google.com/github/defectdiffu/defectdiffu/blob/main/notebooks/09b_on_a_photograph.ipynb)
#
# **The question.** You have a picture of a good part. Can the model put a defect on *this* part, in a place that you
# choose, and leave everything else alone?
#
# **Before you run it, predict.** The model never saw a defect on a brick or on gravel. Which defects will look at home
# on a photograph of a brick: a hole, a crack, a blot of colour, a thread?

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
STEPS = 20  # @param {type:"integer"}
PICTURE = ""  # @param {type:"string"}
PRODUCT = "gravel"  # @param {type:"string"}
DEFECT = "hole"  # @param {type:"string"}

# %% tags=["hide-cell"]
import inspect
import os
import textwrap

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from myst_nb import glue
from PIL import Image, ImageDraw
from skimage import data

from defectdiffu import DefectDiffuPipeline, viz
from defectdiffu.drawn.procedural import render
from defectdiffu.evaluation.records import read_record
from defectdiffu.inpainting import Known

FAST = FAST or os.environ.get("DEFECTDIFFU_FAST") == "1"
ON_NUT = ["crack", "hole", "cut", "contamination"]
ON_STONE = ["hole", "crack", "color", "contamination", "scratch", "thread"]
if FAST:  # small enough for a check on every change
    STEPS, ON_NUT, ON_STONE = 3, ON_NUT[:2], ON_STONE[:2]
viz.use_style()

pipe = DefectDiffuPipeline.from_pretrained(WEIGHTS)
pipe.set_progress_bar_config(disable=True)

# %% [markdown]
# ## A place on a nut

# %% mystnb={"image": {"alt": "A nut with a place marked, then with four defects there"}} tags=["hide-input"]
nut = Image.fromarray(render("hazelnut", "good", seed=5).normal)
place = Image.new("L", nut.size)
ImageDraw.Draw(place).ellipse((95, 95, 165, 150), fill=255)

on_nut = pipe(
    "hazelnut",
    ON_NUT,
    image=nut,
    mask=place,
    seeds=[0] * len(ON_NUT),
    num_inference_steps=STEPS,
)
marked = map(viz.overlay, on_nut.images, on_nut.masks)
viz.grid(
    [[nut, *on_nut.images], [viz.overlay(nut, place), *marked]],
    column_labels=["given", *ON_NUT],
    inches=1.15,
)

# %% [markdown]
# *A rendered nut that the model was not trained on. Below on the left the place that is asked for, then the masks that
# come with the defects. All from seed 0.*
#
# The crack is a branching line, the hole a pit with a rim, the cut a bundle of pale fibres, the contamination a heap of
# grains: each stays in the place, and its mask follows its outline. The cut and the grains fill the place and end at
# its border. The nut's outline, its shading and its cap are those of the given picture.
#
# ## Known outside, drawn inside
#
# A sampler predicts the picture from its noisy version, step by step. Outside the place there is nothing to predict:
# the picture is known. So there the prediction becomes the one that says "the picture is this one". With the given
# picture $x_0$ and its noisy version $x_t$ it is
#
# $$
# \epsilon_{\text{known}} = \frac{x_t - \sqrt{\bar\alpha_t}\, x_0}{\sqrt{1 - \bar\alpha_t}}
# $$
#
# Inside the place Eq. 4 stays. In the code these are two lines:

# %% tags=["hide-input"]
print(
    textwrap.dedent("\n".join(inspect.getsource(Known.predicted).splitlines()[-2:]))
)

# %% [markdown]
# The solver does not notice, so every solver works, and the defect fits its surroundings because it is drawn beside
# them in every step. Nothing is trained for it: keeping the product apart from the defect, the paper's background
# consistency, is enough.
#
# At the end only the *change* is added to the pixels of the file, and it fades out over a narrow band around the place.

# %%
# NBVAL_CHECK_OUTPUT
rows, columns = np.nonzero(
    (np.asarray(on_nut.images[0]) != np.asarray(nut)).any(-1)
)
assert (
    rows.min() > 85
    and rows.max() < 160
    and columns.min() > 85
    and columns.max() < 175
)
print(
    "farther than 10 pixels from the place every byte is that of the given picture"
)

# %% [markdown]
# ## On photographs
#
# Two photographs in the public domain, a wall and gravel, from scikit-image. The weights know both products from crops
# without a defect. No place is given here: a first pass finds one by the model's own mask, a second draws there.

# %% mystnb={"image": {"alt": "A photographed wall and gravel with drawn defects, without and with masks"}}
photographs = {
    name: Image.fromarray(getattr(data, name)()).convert("RGB")
    for name in ("brick", "gravel")
}
on_stone = {
    product: pipe(
        product,
        ON_STONE,
        image=photograph,
        seeds=[0] * len(ON_STONE),
        num_inference_steps=STEPS,
    )
    for product, photograph in photographs.items()
}
figure_rows = []
for out in on_stone.values():
    figure_rows += [out.images, [*map(viz.overlay, out.images, out.masks)]]
viz.grid(
    figure_rows, ["brick", "its mask", "gravel", "its mask"], ON_STONE, inches=0.95
)

# %% tags=["remove-cell"]
if not FAST:
    size = {
        (product, defect): 100 * np.mean(np.asarray(mask) > 0)
        for product, out in on_stone.items()
        for defect, mask in zip(ON_STONE, out.masks, strict=True)
    }
    assert all(size.values()), "every picture has a mask"
    assert size["gravel", "hole"] > 2 and size["gravel", "crack"] > 2

    def change(product, defect):
        """Mean change of red, green and blue where the mask marks."""
        i, out = ON_STONE.index(defect), on_stone[product]
        drawn, given = (
            np.asarray(x, float) for x in (out.images[i], photographs[product])
        )
        return (drawn - given)[np.asarray(out.masks[i]) > 0].mean(0)

    ochre, faint = change("gravel", "color"), change("brick", "color")
    assert ochre[0] - ochre[2] > 30 > 20 > faint[0] - faint[2] > 0, (ochre, faint)
    assert change("gravel", "hole").max() < -20, "dark"
    left_out = (slice(25, 50), slice(312, 338))  # the hole at the top
    hole, stones = (
        np.asarray(x, float)[left_out].mean()
        for x in (on_stone["gravel"].images[0], photographs["gravel"])
    )
    assert (
        hole < stones - 20
        and not np.asarray(on_stone["gravel"].masks[0])[left_out].any()
    )
    assert change("brick", "contamination").min() > 20, "pale"
    assert change("brick", "thread").min() > 0, "pale"
    marked = [np.asarray(mask) > 0 for mask in on_nut.masks]
    assert all(mask.any() for mask in marked)
    given = np.asarray(place) > 0
    fills = [mask[given].mean() for mask in marked]
    assert min(fills[2:]) > 0.4, fills

# %% [markdown]
# *512 pixels each, seed 0, nothing selected.*
#
# On gravel the holes are dark pits with a soft edge, the crack branches between the stones, and the colour stains them
# ochre. The masks follow most of it, but leave out a whole hole. The pale grains of the contamination could be taken
# for stones, the threads for bits of string. The scratches fail: a light smear, and a mask that marks other stones.
#
# On the wall little looks real. The contamination does. The hole is a grey patch over two bricks, the colour a faint
# tint, the crack a broken joint, the scratches a few bars, and the thread a pale band that follows the joints. All have
# a mask. A picture with an empty mask is no pair: `generate` leaves it out and tries the next seed.
#
# ## Your own
#
# Write the path of a picture into the settings above (on Colab: upload it first, by the folder symbol on the left), and
# name the product that it shows. Any size will do; `crop` says how large a square around the place is worked on.

# %% tags=["hide-input"]
if PICTURE:
    own = Image.open(PICTURE).convert("RGB")
    out = pipe(
        PRODUCT, DEFECT, image=own, seeds=[0, 1, 2], num_inference_steps=STEPS
    )
    display(viz.sheet({f"{PRODUCT}, {DEFECT}": out}))
else:
    print(
        'no picture of your own: set PICTURE = "path/to/picture.jpg" in the settings'
    )

# %% [markdown]
# `defectdiffu demo` opens a page with a brush for the place, and `viz.live_slider(pipe, image=..., mask=...)` gives a
# slider over $w_d$ on your picture.
#
# ## Is it as good as a whole picture?
#
# Rendered products again, for there the truth is known: all trained pairs, one picture each, in every way. The place is
# where the renderer would put the defect.

# %% mystnb={"image": {"alt": "Defect accuracy and mask IoU by how the picture is made"}} tags=["hide-input", "plot"]
record = read_record("inpainting")
ways = {run["name"]: run["scores"] for run in record["runs"]}
SHOWN = {
    "rendered": "rendered",
    "copy-paste": "copy-paste",
    "generated whole": "generated whole",
    "place chosen, strength 1.0": "on a picture,\nplace chosen",
    "place given, strength 0.8": "on a picture,\nplace given",
    "place given, strength 0.8, w_d 2.5": "the same,\n$w_d = 2.5$",
    "place given, strength 0.4": "the same,\nstrength 0.4",
}
figure, axes = plt.subplots(
    1, 2, figsize=(5.8, 3.4), sharey=True, layout="constrained"
)
titles = {
    "defect_accuracy": "defect named rightly",
    "mask_iou": "IoU of mask and judge's",
}
for axis, (score, title) in zip(axes, titles.items(), strict=True):
    for y, name in enumerate(SHOWN):
        found = ways[name][score]
        axis.plot(
            [found["low"], found["high"]], [y, y], color=viz.DEFECT, linewidth=2
        )
        axis.plot(found["mean"], y, "o", color=viz.DEFECT)
    axis.set(title=title, xlim=(0, 1.03))
axes[0].set_yticks(range(len(SHOWN)), SHOWN.values())
axes[0].invert_yaxis()
plt.close(figure)
figure


# %% tags=["remove-cell"]
def share(name, score="defect_accuracy"):
    found = ways[name][score]
    return f"{found['mean']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


glue("given_count", ways["rendered"]["mask_iou"]["count"], display=False)
glue(
    "given_steps",
    record["held_fixed"]["sampling"]["num_inference_steps"],
    display=False,
)
for key, name in (
    ("whole", "generated whole"),
    ("chosen", "place chosen, strength 1.0"),
    ("place", "place given, strength 0.8"),
    ("strong", "place given, strength 0.8, w_d 2.5"),
    ("weak", "place given, strength 0.4"),
):
    glue(f"given_{key}", share(name), display=False)
glue(
    "given_seam",
    f"{ways['place given, strength 0.8']['seam']['mean']:.1f}",
    display=False,
)
differences = {run["name"]: run.get("differences") for run in record["runs"]}
for name in (
    "place chosen, strength 1.0",
    "place given, strength 0.8",
    "place given, strength 0.8, w_d 2.5",
):
    found = differences[name]["defect_accuracy"]
    assert found["low"] <= 0 <= found["high"], (
        "as good as whole pictures, as far as these can tell"
    )
    found = differences[name]["mask_iou"]
    assert (found["high"] < 0) == (name == "place given, strength 0.8"), (
        "worse masks in a given place"
    )
found = differences["place given, strength 0.8"]["mask_iou"]
glue(
    "given_place_iou",
    f"{-found['mean']:.3f} ({-found['high']:.3f} to {-found['low']:.3f})",
    display=False,
)
glue(
    "given_whole_product",
    share("generated whole", "product_accuracy"),
    display=False,
)
assert differences["place given, strength 0.4"]["defect_accuracy"]["high"] < -0.3
assert (
    ways["place given, strength 0.4"]["defect_accuracy"]["high"]
    < ways["place given, strength 0.8"]["defect_accuracy"]["low"]
)
assert all(
    ways[name]["outside"]["mean"] == 0
    for name in ways
    if name.startswith("place given")
)
assert [n for n, w in ways.items() if w["product_accuracy"]["mean"] < 1] == [
    "generated whole"
]

# %% [markdown]
# *{glue:text}`given_count` pictures in each way, {glue:text}`given_steps` steps, 95 % intervals.*
#
# Where the model chooses the place, the defect is of the right kind in {glue:text}`given_chosen`, in a given place in
# {glue:text}`given_place`, and there with $w_d = 2.5$ in {glue:text}`given_strong`; of pictures generated whole it is
# {glue:text}`given_whole`. So few pictures cannot tell these apart. The masks are a little worse in a given place, by
# an IoU of {glue:text}`given_place_iou`; with $w_d = 2.5$ no difference is to be told. The noise may suggest a place of
# its own, and a stronger direction overrules it. With the last 40 % of the steps alone the right kind is drawn in
# {glue:text}`given_weak`: by then the noisy picture already shows a surface without a defect.
#
# The product is named rightly in every picture that was given, and in {glue:text}`given_whole_product` of those
# generated whole. Beyond the band no pixel changed. At the band's outer border the change is {glue:text}`given_seam` of
# 255 grey levels on average.
#
# Copy-paste scores as high as the renderer, for it pastes the renderer's own defects; it can draw none that nobody
# photographed.
#
# ## What would break this
#
# - **A place that the defect does not fit.** Beside the nut there was never a crack to learn from. The mask may stay
#   empty, and then there is no pair.
# - **A square that is too large.** The model works at 256 pixels. A scratch of one pixel on a square of 2,000 is eight
#   pixels wide.
# - **A picture of something else.** The product's name is all that the model is told; the name of another product
#   draws that product's defects.
#
# ## Summary
#
# A defect can be put on a given picture, in a given place, without training: known outside, drawn inside. The rest of
# the picture stays, byte for byte. As far as so few pictures tell, it is as good as generating the picture whole; where
# you choose the place, masks are a little worse unless $w_d$ is larger.
#
# ## Exercises
#
# 1. Set `strength` to 1. What can the model change in the place that it could not at 0.4?
# 2. Give a place in the corner of the nut's picture, off the nut. What do you expect?
# 3. Ask for `w_d=0` in a place. What should come back, and what does?
#
# ````{dropdown} Answers
# 1. Everything: it begins from noise there, so even the shape of the surface is drawn anew. At 0.4 the noisy picture
#    still shows most of what is there.
# 2. The defects were only ever seen on the product. Look whether the mask stays empty.
# 3. The same surface, redrawn: similar, not equal. What the model draws there is its own idea of the product, and some
#    products it draws badly ([chapter 8](08_sweep.ipynb)).
# ````
