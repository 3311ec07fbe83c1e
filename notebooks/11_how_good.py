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
# # How good is it?
#
# [![Open in Colab](../book/figures/open_in_colab.svg)](https://colab.research.google.com/github/defectdiffu/defectdiffu/blob/main/notebooks/11_how_good.ipynb)
#
# **The question.** A generated picture looks fine. Is it the product you asked for, the defect you asked for, marked
# where it is, and new? And how would you know, without looking at thousands of them?
#
# **Before you run it, predict.** Three things stand between you and a perfect score: the judge makes mistakes, the
# autoencoder loses detail, the diffusion model draws the wrong thing. Which of the three costs most?

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
NUM_IMAGES = 4  # @param {type:"integer"}
STEPS = 20  # @param {type:"integer"}

# %% tags=["hide-cell"]
import inspect
import json
import os
import tempfile
from pathlib import Path
from zlib import crc32

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown
from IPython.utils.capture import capture_output
from myst_nb import glue
from PIL import Image
from scipy.stats import binomtest

from defectdiffu import DefectDiffuPipeline, viz
from defectdiffu.autoencoder import decode, encode
from defectdiffu.drawn.procedural import (
    DEFECTS,
    HELD_OUT,
    PRODUCTS,
    render,
    write_dataset,
)
from defectdiffu.evaluation.diversity import judge_distance, pairwise
from defectdiffu.evaluation.fidelity import judge_metrics
from defectdiffu.evaluation.judge import Judge
from defectdiffu.evaluation.memorisation import nearest_ratio
from defectdiffu.evaluation.oracle import (
    RENDERED_SEEDS,
    RENDERED_STRENGTH,
    known_pairs,
)
from defectdiffu.evaluation.statistics import bootstrap
from defectdiffu.pictures import to_tensor
from defectdiffu.pipeline import SHIPPED

FAST = FAST or os.environ.get("DEFECTDIFFU_FAST") == "1"
if FAST:  # small enough for a check on every change
    NUM_IMAGES, STEPS = 2, 2
viz.use_style()


def markdown_table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return Markdown("\n".join("| " + " | ".join(line) + " |" for line in lines))


def interval(b):
    return f"{b['mean']:.2f} ({b['low']:.2f} to {b['high']:.2f})"


# %% [markdown]
# ## A judge that knows the truth
#
# These products are drawn by a program, so there is no end of pictures whose product, defect and mask are known. A
# network learned all three from thousands of them, none of which the generator was trained on. It is the judge. It
# gets a picture and says what is in it; the generator's order says what should be.
#
# A judge errs, too. Its own card says how often, on rendered pictures that it had not seen:

# %%
# NBVAL_CHECK_OUTPUT
pipe = DefectDiffuPipeline.from_pretrained(WEIGHTS)
pipe.set_progress_bar_config(disable=True)
size = pipe.size
judge = Judge.shipped(size)
print(f"{'':18}rendered  degraded")
for name, value in judge.card["scores"].items():
    print(f"{name:18}{value:8.3f}{judge.card['scores_degraded'][name]:10.3f}")

# %% [markdown]
# `false_alarms` is the share of sound pictures that it finds a defect in, `defects_seen` the share of defective ones
# that it finds any defect in. The second column is of the same pictures a little soft, grainy and compressed
# (`degrade` in `defectdiffu/experiments/judge_training.py`): a generated picture differs from a rendered one in such
# ways, too, and a judge that has never seen them takes the faintest blur for a scratch. So half of its training
# pictures were degraded. Some were shown without their defect as well, for two pictures that differ in nothing else
# teach what a defect is. `mask_iou` is how well its mask meets the true one:
#
# $$
# \mathrm{IoU}(A, B) = \frac{|A \cap B|}{|A \cup B|}
# $$
#
# In `measure` (`defectdiffu/evaluation/oracle.py`) that is one line, with the generator's mask for $A$ and the judge's
# for $B$:

# %% tags=["hide-input"]
from defectdiffu.evaluation.oracle import judged

print(
    next(
        line
        for line in inspect.getsource(judged).splitlines()
        if '"mask_iou"' in line
    ).strip()
)

# %% [markdown]
# ## Two ceilings
#
# Before blaming the generator, find out what is possible. Fresh rendered pictures of every pair go to the judge, first
# as they are, then once through the autoencoder: encoded, decoded, nothing else. The model's pictures come out of the
# same decoder, so do not expect them to beat the second.

# %% mystnb={"image": {"alt": "Drawn pictures above, the same through the autoencoder below"}}
trained, held_out = known_pairs(pipe)
shown = trained[::8] if FAST else trained
fresh = {
    pair: [
        render(*pair, RENDERED_STRENGTH, RENDERED_SEEDS + i, judge.size)
        for i in range(2)
    ]
    for pair in shown
}
images = np.stack([r.image for drawn in fresh.values() for r in drawn])
truth = np.stack([r.mask > 0 for drawn in fresh.values() for r in drawn])


@torch.no_grad()
def through_the_autoencoder(images):
    latents = encode(pipe.vae, to_tensor(images, "cpu"))
    pixels = (decode(pipe.vae, latents) + 1) * 127.5
    return pixels.round().byte().permute(0, 2, 3, 1).numpy()


def scored(images):
    """Per picture: product right, defect right, IoU of the judge's mask and the true one."""
    seen = judge(images)
    asked = [pair for pair, drawn in fresh.items() for _ in drawn]
    marked = seen.mask_probs > 0.5
    iou = (marked & truth).sum((1, 2)) / (marked | truth).sum((1, 2))
    return {
        "product_accuracy": [
            s == p for s, (p, _) in zip(seen.products, asked, strict=True)
        ],
        "defect_accuracy": [
            s == d for s, (_, d) in zip(seen.defects, asked, strict=True)
        ],
        "mask_iou": iou,
    }


returned = through_the_autoencoder(images)
ceilings = {
    "rendered": {k: bootstrap(v) for k, v in scored(images).items()},
    "through the autoencoder": {
        k: bootstrap(v) for k, v in scored(returned).items()
    },
}
some = np.linspace(0, len(shown) - 1, min(6, len(shown))).astype(int)
viz.grid(
    [[Image.fromarray(p[2 * i]) for i in some] for p in (images, returned)],
    ["rendered", "and back"],
    ["\n".join(shown[i]) for i in some],
    inches=0.95,
)

# %% [markdown]
# Compare the two rows: what is fine or faint is what an autoencoder gives up first.
#
# The generator's own scores come from `oracle.json`, which lies beside the weights. It is written by
# `defectdiffu evaluate oracle`; the first seeds of every pair, none left out.

# %% mystnb={"image": {"alt": "Product named, defect named and IoU, one line per kind of pictures"}} tags=["hide-input"]
file = SHIPPED / WEIGHTS / "oracle.json"
oracle = json.loads(file.read_text()) if file.is_file() else None
stages = dict(ceilings)
if oracle is None:
    print(
        f"No scores beside these weights: defectdiffu evaluate oracle --weights {WEIGHTS}"
    )
else:
    stages["generated"] = oracle["trained"]
    if oracle["held_out"]:
        stages["generated, unseen pairs"] = oracle["held_out"]

LABELS = {
    "product_accuracy": "product named",
    "defect_accuracy": "defect named",
    "mask_iou": "IoU of masks",
}
figure, axes = plt.subplots(
    1, 3, figsize=(7, 2.2), sharey=True, layout="constrained"
)


def drawn_interval(score, is_share):
    """The ends of the bar: Wilson's for a share, which has a width even at 1."""
    if not is_share:
        return score
    count = score["count"]
    test = binomtest(round(score["mean"] * count), count)
    low, high = test.proportion_ci(method="wilson")
    return {"mean": score["mean"], "low": low, "high": high}


for axis, (key, label) in zip(axes, LABELS.items(), strict=True):
    for row, stage in enumerate(stages.values()):
        b = drawn_interval(stage[key], is_share="acc" in key)
        axis.plot([b["low"], b["high"]], [row, row], color=viz.COLOURS[row])
        axis.plot(b["mean"], row, "o", color=viz.COLOURS[row])
    axis.set(
        xlim=(-0.05, 1.05), xlabel="share" if "acc" in key else "IoU", title=label
    )
    axis.set(yticks=range(len(stages)), yticklabels=stages)
axes[0].set_ylim(len(stages) - 0.5, -0.5)
plt.close(figure)
figure

# %% tags=["remove-cell"]
accuracy = {
    name: stage["defect_accuracy"]["mean"] for name, stage in stages.items()
}
lost = {
    "the judge's own errors": 1 - accuracy["rendered"],
    "the autoencoder": accuracy["rendered"] - accuracy["through the autoencoder"],
}
if oracle:
    lost["the diffusion model"] = (
        accuracy["through the autoencoder"] - accuracy["generated"]
    )
glue(
    "good_lost",
    ", ".join(f"{k} {100 * v:.0f}" for k, v in lost.items()),
    display=False,
)
glue("good_most", max(lost, key=lost.get), display=False)
glue("good_count", len(images), display=False)
glue(
    "good_judged",
    oracle["trained"]["defect_accuracy"]["count"] if oracle else 0,
    display=False,
)

# %% [markdown]
# Read it from the top: what is lost from one line to the next has its own cause. Of 100 defects, this many are no
# longer named right because of: {glue:text}`good_lost` (below 0: a gain). The largest loss is that of
# {glue:text}`good_most`; losses that are closer than the intervals are wide cannot be put in order. (Points with 95 %
# intervals over {glue:text}`good_count` rendered and {glue:text}`good_judged` generated pictures, Wilson's for the two
# shares, by bootstrap for the IoU. For rendered pictures the IoU is that of the judge's mask and the true one, for
# generated ones that of the judge's mask and the model's.)
#
# ## Pair by pair
#
# A mean hides what matters to you, which is *your* product and *your* defect. Framed pairs were never trained on.


# %% mystnb={"image": {"alt": "Tables of products by defects: share of defects named, and IoU"}} tags=["hide-input"]
def heat_map(axis, values, title):
    table = np.full((len(PRODUCTS), len(DEFECTS)), np.nan)
    for name, value in values.items():
        product, defect = name.rsplit(" ", 1)
        table[list(PRODUCTS).index(product), list(DEFECTS).index(defect)] = value
    colours = plt.get_cmap("viridis").copy()
    colours.set_bad("#eeeeee")
    axis.imshow(table, vmin=0, vmax=1, cmap=colours, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        if np.isfinite(value):
            shade = "black" if value > 0.6 else "white"
            axis.text(
                column,
                row,
                f"{value:.2f}".lstrip("0") or "0",
                color=shade,
                ha="center",
                va="center",
                fontsize=9,
            )
    for product, defect in HELD_OUT:
        place = (
            list(DEFECTS).index(defect) - 0.5,
            list(PRODUCTS).index(product) - 0.5,
        )
        axis.add_patch(
            plt.Rectangle(
                place, 1, 1, fill=False, color=viz.COLOURS[1], linewidth=2
            )
        )
    axis.set(xticks=range(len(DEFECTS)), yticks=range(len(PRODUCTS)), title=title)
    axis.set_xticklabels(list(DEFECTS), rotation=60, ha="right")
    axis.set_yticklabels(list(PRODUCTS))


figure = None
if oracle:
    figure, axes = plt.subplots(2, 1, figsize=(5.5, 8.5), layout="constrained")
    rows = oracle["per_pair"]["trained"] | oracle["per_pair"]["held_out"]
    for axis, key in zip(axes, ("defect_accuracy", "mask_iou"), strict=True):
        heat_map(axis, {name: row[key] for name, row in rows.items()}, LABELS[key])
    plt.close(figure)
figure if figure else print("Not run yet.")

# %% tags=["remove-cell"]
if oracle:
    kinds = {
        d: np.mean(
            [r["defect_accuracy"] for n, r in rows.items() if n.endswith(f" {d}")]
        )
        for d in DEFECTS
    }
else:
    kinds = dict.fromkeys(DEFECTS, np.nan)
glue("good_best", max(kinds, key=kinds.get), display=False)
glue("good_worst", min(kinds, key=kinds.get), display=False)
glue("good_seeds", len(oracle["seeds"]) if oracle else 0, display=False)
glue(
    "good_monotony",
    interval(oracle["trained"]["monotony"]) if oracle else "not run yet",
    display=False,
)

# %% [markdown]
# Each number is over {glue:text}`good_seeds` pictures, so a single cell is coarse; rows and columns say more. The kind
# of defect that is named right most often is *{glue:text}`good_best`*, the one least often
# *{glue:text}`good_worst`*. The rank correlation of $w_d$ with the area that the judge marks is
# {glue:text}`good_monotony`; 1 would mean that more $w_d$ is always more defect.
#
# ## Is it new?
#
# With ten examples of each pair a model can learn them by heart. To find out, take each generated picture $g$, find
# the nearest training picture, and compare with how near the training pictures $t_i$ are to each other:
#
# $$
# r(g) = \min_j d(g, t_j) \; \Big/ \; \frac{1}{n} \sum_i \min_{j \ne i} d(t_i, t_j)
# $$
#
# 1 is as far from the training pictures as they are from each other, 0 is a copy. The distance $d$ is between the
# judge's features. The training pictures need not be stored: their seeds are known, so they are drawn again.


# %%
def training_picture(product, defect, i, seed=0):
    """Picture i of a pair in the set that `write_dataset` writes."""
    kinds = ["good", *DEFECTS]
    block = seed * len(PRODUCTS) + list(PRODUCTS).index(product)
    specimen = (block * len(kinds) + kinds.index(defect)) * 10**6 + i
    stream = np.random.default_rng([specimen, crc32(b"strength")])
    return render(
        product, defect, stream.uniform(0.25, 1), specimen, judge.size
    ).image


with tempfile.TemporaryDirectory() as folder:  # it is the same picture, to the byte
    with capture_output():  # its progress bar
        write_dataset(folder, ["grid"], ["bent"], per_pair=1, size=judge.size)
    written = Image.open(Path(folder) / "grid" / "test" / "bent" / "000.png")
    assert (np.asarray(written) == training_picture("grid", "bent", 0)).all()

# %% [markdown]
# By hand for one pair, then by the package's `nearest_ratio` for the first trained defect of every product.

# %%
pairs = [(p, pipe.pairs[p][0]) for p in PRODUCTS if pipe.pairs.get(p)]
if FAST:
    pairs = pairs[:5]
training = {
    pair: np.stack([training_picture(*pair, i) for i in range(10)])
    for pair in pairs
}
generated = {}
for pair in pairs:
    out = pipe(*pair, num_images=NUM_IMAGES, num_inference_steps=STEPS)
    generated[pair] = np.stack(
        [np.asarray(i.resize([judge.size] * 2)) for i in out.images]
    )

g, t = (
    judge(pictures[pairs[0]]).features.astype(float)
    for pictures in (generated, training)
)
to_training = np.linalg.norm(g[:, None] - t, axis=-1)
between = np.linalg.norm(t[:, None] - t, axis=-1) + np.diag([np.inf] * len(t))
by_hand = to_training.min(1) / between.min(1).mean()

nearest = {
    pair: nearest_ratio(
        judge(generated[pair]).features, judge(training[pair]).features
    )
    for pair in pairs
}
assert np.allclose(by_hand, nearest[pairs[0]][0])
ratio = bootstrap(np.concatenate([r for r, _ in nearest.values()]))
print("mean ratio", interval(ratio), "of", ratio["count"], "pictures")

# %% [markdown]
# The pictures nearest to a training picture, out of all, are the ones to look at. They are selected, as the worst
# cases: left the generated picture, right the training picture that it is nearest to.

# %% mystnb={"image": {"alt": "Generated pictures, each beside the nearest training picture"}} tags=["hide-input"]
found = sorted(
    (r, pair, i, j)
    for pair, (ratios, places) in nearest.items()
    for i, (r, j) in enumerate(zip(ratios, places, strict=True))
)[:6]
half = -(-len(found) // 2)
viz.grid(
    [
        [
            image
            for r, pair, i, j in (found[row : row + half + 1 : half])
            for image in (
                Image.fromarray(generated[pair][i]),
                Image.fromarray(training[pair][j]),
            )
        ]
        for row in range(half)
    ],
    [
        "ratios\n"
        + ", ".join(f"{f[0]:.2f}" for f in found[row : row + half + 1 : half])
        for row in range(half)
    ],
    ["generated", "nearest in training"] * 2,
    inches=1.3,
)

# %% tags=["remove-cell"]
glue("good_ratio", interval(ratio), display=False)
glue("good_least", f"{found[0][0]:.2f}", display=False)
glue(
    "good_copies",
    sum(int((r < 0.5).sum()) for r, _ in nearest.values()),
    display=False,
)
glue("good_ratios", ratio["count"], display=False)

# %% [markdown]
# Mean ratio {glue:text}`good_ratio`, least {glue:text}`good_least`; {glue:text}`good_copies` of
# {glue:text}`good_ratios` are below one half, which is where a picture counts as suspiciously near. Far above 1 is no
# praise either: it may be far from everything.
#
# ## As a set: fidelity and diversity
#
# The usual scores of this field are FID and LPIPS. Both need networks that are fetched from a server, and
# `defectdiffu evaluate fidelity` and `diversity` use them where they can. This page does without. It computes the
# same formulas on the judge's features and calls them by other names, since a Frechet distance on other features is
# *not* FID: it is another number, on another scale, and compares only with itself.
#
# To have something to compare with, each score is also given for rendered pictures against other rendered pictures:
# that is as good as it can get with so few.


# %%
def rendered(first):
    return np.concatenate(
        [
            [
                render(
                    *pair, RENDERED_STRENGTH, RENDERED_SEEDS + first + i, judge.size
                ).image
                for i in range(NUM_IMAGES)
            ]
            for pair in pairs
        ]
    )


reference, others, ours = (
    rendered(100),
    rendered(200),
    np.concatenate(list(generated.values())),
)
features = {
    name: judge(p).features
    for name, p in {
        "generated": ours,
        "rendered anew": others,
        "reference": reference,
    }.items()
}
sets = {
    name: judge_metrics(features[name], features["reference"])
    for name in ("generated", "rendered anew")
}
apart = {
    name: bootstrap(
        [
            pairwise(p[i : i + NUM_IMAGES], judge_distance(judge))[
                np.triu_indices(NUM_IMAGES, 1)
            ].mean()
            for i in range(0, len(p), NUM_IMAGES)
        ]
    )
    for name, p in {"generated": ours, "rendered anew": others}.items()
}
rows = [
    [key, *(f"{sets[name][key]:.3f}" for name in sets)]
    for key in ("frechet_judge", "kid_judge", "precision_judge", "recall_judge")
]
rows.append(["judge_distance", *(interval(apart[name]) for name in sets)])
markdown_table(["score", *sets], rows)

# %% tags=["remove-cell"]
glue("good_reference", len(reference), display=False)

# %% [markdown]
# All against {glue:text}`good_reference` rendered pictures of the same pairs. `frechet_judge` and `kid_judge` are
# better when small. `precision_judge` is the share of pictures that lie among the reference pictures, `recall_judge`
# the share of reference pictures that lie among them. `judge_distance` is how far two pictures of the same pair are
# apart, and more is better only as long as the pictures are right: noise is diverse.
#
# ## What would break this
#
# - **A generator that fools the judge.** It is one network. What it has learned to look for can be there without the
#   picture being right.
# - **Few pictures.** A Frechet distance of few pictures is above zero even between pictures of the same kind; it
#   compares only with another one of the same count. That is why the table has its second column.
# - **Real photographs.** There is no oracle for those. What remains are FID, LPIPS, the memorisation ratio, and the
#   test of the next chapter: does a detector get better?
#
# ## Summary
#
# A judge with known errors says what is in each generated picture, by pair, with intervals. The same pictures through
# the autoencoder alone show how much of the loss is the diffusion model's. Copies are looked for, and the nearest
# cases shown.
#
# ## Exercises
#
# 1. A model generates the ten training pictures of every pair, exactly. Which scores on this page notice?
# 2. Why must the reference for `frechet_judge` have as many pictures in both columns?
# 3. The judge names the defect in a rendered picture correctly and in the same picture through the autoencoder not.
#    Name two remedies.
#
# ````{dropdown} Answers
# 1. Only the ratio: it is 0. Product, defect and mask are as right as the judge can tell, the Frechet distance is
#    small, and even the mean distance within a pair looks healthy. (IC-LPIPS notices too: within each cluster there is
#    nothing but copies.)
# 2. The covariances are estimated from the pictures, and with few pictures their error adds to the distance. Equal
#    counts make the two errors alike.
# 3. Train the autoencoder longer or give it more channels, so that the detail survives; or weigh edges and colours more
#    in its loss. Training the *diffusion model* longer does not help: it cannot draw what its decoder cannot show.
# ````
