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
# # Masks from attention
#
# [![Open in Colab](../book/figures/open_in_colab.svg)](https://colab.research.google.com/github/defectdiffu/defectdiffu/blob/main/notebooks/05_masks_from_attention.ipynb)
#
# **The question.** A picture of a scratch is worth little to a detector without the pixels of the scratch. Where does
# the mask come from, when nobody draws one?
#
# **Before you run it, predict.** While the picture is still nearly all noise, the network already predicts a mask.
# Early or late, when is that mask right? And would you average it over many steps, or over few?

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
PRODUCT, DEFECT = "hazelnut", "crack"
STEPS = 50  # @param {type:"integer"}
SEEDS_PER_PAIR = 2  # @param {type:"integer"}

# %% tags=["hide-cell"]
import io
import os

import matplotlib.pyplot as plt
import numpy as np
import torch
from myst_nb import glue
from PIL import Image
from skimage.filters import threshold_isodata

from defectdiffu import DefectDiffuPipeline, masks, viz
from defectdiffu.autoencoder import decode, encode
from defectdiffu.drawn.procedural import render
from defectdiffu.evaluation.judge import Judge
from defectdiffu.evaluation.masks import iou_per_picture
from defectdiffu.evaluation.oracle import RENDERED_SEEDS
from defectdiffu.evaluation.statistics import bootstrap, paired_bootstrap
from defectdiffu.guidance import GUIDANCES, branch_conditions, guide
from defectdiffu.losses import picture_of
from defectdiffu.model import CROSS_ATTENTION, MaskHead
from defectdiffu.pictures import to_tensor

FAST = FAST or os.environ.get("DEFECTDIFFU_FAST") == "1"
if FAST:  # small enough for a check on every change
    STEPS, SEEDS_PER_PAIR = 4, 1
PRODUCTS = 3 if FAST else None  # how many products the measurements take in
viz.use_style()


# %% [markdown]
# ## Three moves
#
# 1. **Attention.** In each defect block every place of the picture is compared with the defect's prompt, Eq. 5:
#    $\operatorname{softmax}(QK^\top / \sqrt{d})$. Each head of each block makes a map of its own.
# 2. **A head.** A small network of convolutions reads all those maps together, and *nothing else*, and predicts the
#    latent of the mask. The autoencoder's decoder, the same that paints pictures, turns it into pixels.
# 3. **A threshold.** The maps of the last tenth of the steps are averaged, and an iterative method finds the grey
#    level that splits defect from product.
#
# The first move in the code, as these weights do it, and the second:

# %%
pipe = DefectDiffuPipeline.from_pretrained(WEIGHTS)
pipe.set_progress_bar_config(disable=True)
config = pipe.transformer.config

viz.show_code(CROSS_ATTENTION[config.attention_over].forward, MaskHead.forward)

# %% tags=["remove-cell"]
glue(
    "masks_softmax",
    {
        "positions": "over the picture's positions: each head has one unit of attention and shares it out over the "
        "picture, as in the authors' released code",
        "tokens": "over the prompt's tokens: each position has one unit of attention and shares it out over the "
        "words, as Eq. 5 has it",
    }[config.attention_over],
    display=False,
)

# %% [markdown]
# The softmax of these weights runs {glue:text}`masks_softmax`.
#
# ## The maps, head by head
#
# We generate one pair and keep, at every step, the noisy latent and what the mask head said. Then we put the same
# latents to the network again and take every head's map.

# %%
GUIDANCE, W_P, W_D = pipe.config.guidance, pipe.config.w_p, pipe.config.w_d


def generate(product, defect, num):
    """The pipeline's output, and each step's t, latents and maps of the mask."""
    steps = []

    def keep(step, t, latents, branches):
        strength = torch.full((num, 1, 1, 1), W_D)
        _, mask = guide(branches, GUIDANCE, W_P, strength)
        probability = masks.to_probability(decode(pipe.vae, mask))
        steps.append((int(t), latents, probability.numpy()))

    out = pipe(
        product, defect, num_images=num, num_inference_steps=STEPS, callback=keep
    )
    return out, *zip(*steps, strict=True)


out, times, latents, probabilities = generate(PRODUCT, DEFECT, 1)
print(f"{len(times)} steps, from t = {times[0]} to t = {times[-1]}")

# %% tags=["hide-input"]
null = config.null_product
conditions = branch_conditions(pipe.encoder, GUIDANCE, [PRODUCT], [DEFECT], null)
told_of_the_defect = conditions[GUIDANCES[GUIDANCE].defect]
abar = pipe.scheduler.alphas_cumprod


def picture(latents):
    pixels = ((decode(pipe.vae, latents)[0] + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


@torch.no_grad()
def look(i):
    """Every head's map (M, heads, h, w) and the picture foreseen at step i > 0."""
    x, t = latents[i - 1], torch.tensor([times[i]])
    seen = pipe.transformer(x, t, **vars(told_of_the_defect))
    predicted = seen.sample[:, : x.shape[1]]
    foreseen = picture_of(config.prediction, predicted, x, abar[t])
    return seen.maps[0].numpy(), picture(foreseen)


shown = np.unique(np.linspace(1, len(times) - 1, 9).round().astype(int))
looks = {i: look(i) for i in shown}
M, heads, h, w = looks[shown[0]][0].shape
share = h * w if config.attention_over == "positions" else 1
unit = "times an even share" if share > 1 else "attention to the defect's words"
top = share * np.quantile([maps for maps, _ in looks.values()], 0.995)


def frame(i):
    maps, foreseen = looks[i]
    figure = plt.figure(figsize=(6.2, 3.9), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.3, heads + 0.6))
    above, below = left.subplots(2, 1)
    above.imshow(viz.enlarge(foreseen))
    above.set_title("picture foreseen")
    below.imshow(probabilities[i][0], cmap="gray", vmin=0, vmax=1)
    below.set_title("mask head")
    axes = right.subplots(M, heads, squeeze=False)
    for axis, values in zip(axes.flat, maps.reshape(-1, h, w), strict=True):
        image = axis.imshow(share * values, cmap="viridis", vmin=0, vmax=top)
    for j, axis in enumerate(axes[0], 1):
        axis.set_title(f"head {j}")
    for j, axis in enumerate(axes[:, 0], 1):
        axis.set_ylabel(f"block {j}")
    for axis in (above, below, *axes.flat):
        axis.set(xticks=[], yticks=[])
    right.colorbar(image, ax=axes, label=unit, shrink=0.8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return Image.open(buffer).convert("RGB")


viz.static_slider(
    [frame(i) for i in shown],
    [times[i] for i in shown],
    label="t",
    alt=f"{PRODUCT}, {DEFECT}: picture, mask and every head's map at time step",
    start=len(shown) - 1,
)

# %% [markdown]
# Drag from noise ($t$ large) to picture ($t$ near 0). The heads need not agree: one may find the defect, another the
# product's edge, a third may stay nearly even. Nor need the defect be bright: here several maps are bright around the
# nut and darkest in parts of it. Only all of them together are the mask head's input, so a mask can be right only where
# the maps set the defect apart.
#
# ## The mask over time
#
# The same run, at a few steps: what picture the network foresees, the mask head's map, and what the threshold makes
# of that one step's map (nothing, where it cannot tell two parts apart).

# %% mystnb={"image": {"alt": "Foreseen picture, mask head's map and mask, one column per step t"}} tags=["hide-input"]
few = shown[np.unique(np.linspace(0, len(shown) - 1, 5).round().astype(int))]
rows = [[], [], []]
for i in few:
    foreseen, probability = looks[i][1], probabilities[i][0]
    small = Image.fromarray((255 * probability).astype(np.uint8))
    marked = Image.fromarray(masks.binarise(probability))
    rows[0].append(foreseen)
    rows[1].append(small)
    rows[2].append(viz.overlay(viz.enlarge(foreseen), viz.enlarge(marked)))
viz.grid(
    rows,
    ["picture", "mask head", "its mask"],
    [f"t = {times[i]}" for i in few],
)

# %% [markdown]
# ## Averaging, by hand
#
# The paper averages the map over the last 100 of 1000 steps, when the picture's structure is settled. Here it is the
# last tenth of however many steps there are, $M_{pre} = \frac{1}{k} \sum_{t} M_{pre}^t$ over the last $k$:

# %%
k = masks.averaged_steps(STEPS)
average = np.mean([p[0] for p in probabilities[-k:]], axis=0)
assert np.allclose(average, out.mask_probs[0], atol=1e-5)
print(f"the last {k} of {STEPS} steps: the pipeline's mask_probs")

# %% [markdown]
# ## The iterative threshold, by hand
#
# Begin with a threshold at the bottom. Take the mean of all pixels up to it and the mean of all above it, and move
# the threshold halfway between the two. Repeat until it stays. It is called *isodata*, and the package takes
# scikit-image's. Like theirs, ours works on a histogram of 256 bins.


# %%
def isodata(values, bins=256):
    """The thresholds tried, one after the other; the last one stays."""
    counts, edges = np.histogram(values, bins)
    grey, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    i, path = 0, [grey[0]]
    while True:
        below = np.average(grey[: i + 1], weights=counts[: i + 1])
        above = np.average(grey[i + 1 :], weights=counts[i + 1 :])
        halfway = (below + above) / 2
        if halfway - grey[i] < width:
            return path
        i = np.flatnonzero(grey <= halfway)[-1]
        path.append(grey[i])


path = isodata(average) if np.ptp(average) > 0.01 else []  # nothing to split
if path:
    bin_width = np.ptp(average) / 256
    assert abs(path[-1] - threshold_isodata(average)) <= 1.01 * bin_width

# %% mystnb={"image": {"alt": "Histogram of the averaged map with thresholds, and the pair"}} tags=["hide-input"]
figure, (axis, beside) = plt.subplots(
    1, 2, figsize=(6.4, 2.6), width_ratios=(2.2, 1), layout="constrained"
)
axis.hist(average.ravel(), 64, color=viz.COLOURS[5])
axis.set(yscale="log", xlabel="averaged map, 0 to 1", ylabel="pixels")
for j, threshold in enumerate(path):
    last = j == len(path) - 1
    axis.axvline(
        threshold,
        color=viz.COLOURS[1],
        linewidth=2 if last else 0.8,
        alpha=1 if last else 0.5,
        label=f"threshold {threshold:.2f}" if last else None,
    )
axis.set_title(f"{len(path)} thresholds tried", loc="left")
axis.legend(loc="upper right")
mask = Image.fromarray(masks.binarise(average))
beside.imshow(viz.overlay(viz.enlarge(out.images[0]), viz.enlarge(mask)))
beside.set(xticks=[], yticks=[], title="the pair")
beside.spines[:].set_visible(False)
plt.show()

# %% [markdown]
# ## When there is nothing to split
#
# The method splits *any* map in two: a flat one, too, and plain noise. A mask of speckle on a sound product would
# teach a detector nonsense. So `masks.binarise` asks two things more before it believes the split:

# %%
viz.show_code(masks.binarise)

# %% [markdown]
# Three maps: one that is all but flat, one of plain noise, and one with a clear disc in that noise.

# %%
# NBVAL_CHECK_OUTPUT
rng = np.random.default_rng(0)
noise = 0.3 + 0.05 * rng.standard_normal((64, 64))
y, x = np.mgrid[:64, :64]
disc = (x - 32) ** 2 + (y - 32) ** 2 < 10**2
made = {
    "flat": 0.3 + 0.001 * rng.standard_normal((64, 64)),
    "noise": noise,
    "disc": noise + 0.5 * disc,
}
for name, values in made.items():
    split = (values > threshold_isodata(values)).mean()
    kept = (masks.binarise(values) > 0).mean()
    bin_width = np.ptp(values) / 256
    assert abs(isodata(values)[-1] - threshold_isodata(values)) <= 1.01 * bin_width
    print(
        f"{name:5}  isodata alone {100 * split:4.1f} %   binarise {100 * kept:4.1f} %"
    )
assert not masks.binarise(made["flat"]).any()
assert not masks.binarise(made["noise"]).any()
assert np.array_equal(masks.binarise(made["disc"]) > 0, disc)

# %% [markdown]
# The real test is to ask the model for sound products. Every mask here ought to be empty.

# %% mystnb={"image": {"alt": "Pictures generated as good, masks laid over: products across, seeds down"}}
good = {p: pipe(p, "good", num_images=2) for p in pipe.products[:PRODUCTS]}
empty = [not np.asarray(m).any() for o in good.values() for m in o.masks]
few = list(good)[:4]
viz.grid(
    [
        [
            viz.overlay(
                viz.enlarge(good[p].images[seed]), viz.enlarge(good[p].masks[seed])
            )
            for p in few
        ]
        for seed in (0, 1)
    ],
    ["seed 0", "seed 1"],
    few,
)

# %% tags=["remove-cell"]
glue("masks_good", len(empty), display=False)
glue("masks_good_empty", sum(empty), display=False)

# %% [markdown]
# Asked for {glue:text}`masks_good` good pictures, two of each product, the model left {glue:text}`masks_good_empty`
# masks empty; above are the first products. What is marked all the same is a false alarm, unless the picture really has
# a defect that nobody asked for: a few-shot model can draw those, too.
#
# ## How many steps to average? Ask the judge
#
# Whether a mask fits its picture is for somebody else to say: the judge, a U-Net trained on thousands of drawn
# pictures to mark their defects. For one pair of every product we average the last 1, 2, 5, ... steps and measure how
# much the binary mask overlaps with the judge's: intersection over union, IoU. Pictures in which the judge marks
# nothing are left out, for there the question has no answer.

# %%
EVERY = [
    (product, defects[i % len(defects)])
    for i, (product, defects) in enumerate(pipe.pairs.items())
][:PRODUCTS]
LAST = sorted({n for n in (1, 2, 5, 10, 20, 35, 50) if n <= STEPS} | {k})

judge = Judge.shipped(64)
sampled = {n: [] for n in LAST}
for pair in EVERY:
    pairs, _, _, by_step = generate(*pair, SEEDS_PER_PAIR)
    verdict = judge(np.stack([np.asarray(image) for image in pairs.images]))
    truth = verdict.mask_probs > 0.5
    seen = truth.any((1, 2))
    for n in LAST:
        averaged = np.mean(by_step[-n:], axis=0)
        found = np.stack([masks.binarise(p) > 0 for p in averaged])
        sampled[n].extend(iou_per_picture(found[seen], truth[seen]))

# %% mystnb={"image": {"alt": "IoU with the judge's mask against number of last steps averaged"}} tags=["hide-input"]
stats = {n: bootstrap(values) for n, values in sampled.items()}
figure, axis = plt.subplots(figsize=(5.6, 2.6), layout="constrained")
mean = np.array([s["mean"] for s in stats.values()])
spread = np.abs([[s["low"], s["high"]] for s in stats.values()] - mean[:, None]).T
axis.errorbar(range(len(LAST)), mean, spread, fmt="o-", capsize=3)
axis.axvline(LAST.index(k), color="0.7", linestyle="--", zorder=0)
axis.text(LAST.index(k), 0, f" a tenth of {STEPS}", va="bottom")
axis.set_xticks(range(len(LAST)), LAST)
axis.set(xlabel="last steps averaged", ylabel="IoU with the judge", ylim=(0, None))
plt.show()

# %% tags=["remove-cell"]
glue("masks_count", stats[k]["count"], display=False)
glue("masks_steps", STEPS, display=False)


def interval(s, digits=2):
    mean, low, high = (f"{s[k]:.{digits}f}" for k in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def compare(ours, theirs):
    """In words, whether `ours` has the higher mean, and by how much."""
    s = paired_bootstrap(ours, theirs)
    if s["low"] > 0:
        return f"higher, by {interval(s, 3)}"
    if s["high"] < 0:
        less = {"mean": -s["mean"], "low": -s["high"], "high": -s["low"]}
        return f"lower, by {interval(less, 3)}"
    gap = f"{s['mean']:+.3f} ({s['low']:+.3f} to {s['high']:+.3f})"
    return f"neither clearly higher nor lower: the difference is {gap}"


glue("masks_iou", interval(stats[k]), display=False)
glue("masks_one", compare(sampled[k], sampled[LAST[0]]), display=False)
glue("masks_all", compare(sampled[k], sampled[LAST[-1]]), display=False)

# %% [markdown]
# Over {glue:text}`masks_count` pictures the mask of the last tenth has an IoU of {glue:text}`masks_iou` (in brackets,
# here and below, the 95 % interval). Compared picture by picture with the last step alone, it is
# {glue:text}`masks_one`. Compared with all {glue:text}`masks_steps` steps, it is {glue:text}`masks_all`.
#
# ## The mask head by itself
#
# If an overlap is poor, who is to blame? In a *sampled* picture the defect may be vague, the judge may err, and the
# mask may be wrong. So we take sampling away. We draw a picture whose mask we know exactly, add noise up to step $t$
# as training does, ask the network once, and compare with the truth. These specimens were in no training set.

# %%
TIMES = (
    (20, 400, 900) if FAST else (20, 100, 200, 300, 400, 500, 600, 700, 800, 900)
)
TRAINED = [(p, d) for p, defects in pipe.pairs.items() for d in defects]
if FAST:
    TRAINED = TRAINED[:6]
drawn = [render(p, d, 0.75, RENDERED_SEEDS, size=64) for p, d in TRAINED]
truths = np.stack([d.mask > 0 for d in drawn])
with torch.no_grad():
    clean = encode(pipe.vae, to_tensor(np.stack([d.image for d in drawn]), "cpu"))
noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
products, defects = map(list, zip(*TRAINED, strict=True))
many = len(TRAINED)
told = {
    "told defect and product": (products, defects),
    "told defect, no product": ([null] * many, defects),
    'told product, "good"': (products, ["good"] * many),
}


def noised(t):
    return abar[t].sqrt() * clean + (1 - abar[t]).sqrt() * noise


@torch.no_grad()
def predicted_masks(t, words):
    seen = pipe.transformer(
        noised(t), torch.full((many,), t), **vars(pipe.encoder.conditions(*words))
    )
    return masks.to_probability(decode(pipe.vae, seen.mask)).numpy()


maps = {
    (name, t): predicted_masks(t, words)
    for name, words in told.items()
    for t in TIMES
}
overlap = {
    key: iou_per_picture(np.stack([masks.binarise(p) > 0 for p in values]), truths)
    for key, values in maps.items()
}

# %% mystnb={"image": {"alt": "Noised picture, mask head's map and mask, one column per step t"}} tags=["hide-input"]
example = TRAINED.index((PRODUCT, DEFECT)) if (PRODUCT, DEFECT) in TRAINED else 0
few = [
    TIMES[i]
    for i in np.unique(np.linspace(0, len(TIMES) - 1, 4).round().astype(int))
]
true_image = viz.enlarge(Image.fromarray(drawn[example].image))
true_mask = Image.fromarray(drawn[example].mask)
rows = [
    [Image.fromarray(drawn[example].image)],
    [true_mask],
    [viz.overlay(true_image, viz.enlarge(true_mask))],
]
for t in few:
    probability = maps["told defect and product", t][example]
    marked = Image.fromarray(masks.binarise(probability))
    with torch.no_grad():
        rows[0].append(picture(noised(t)[example : example + 1]))
    rows[1].append(Image.fromarray((255 * probability).astype(np.uint8)))
    rows[2].append(viz.overlay(true_image, viz.enlarge(marked)))
viz.grid(
    rows,
    ["noised", "mask head", "its mask"],
    ["truth", *(f"t = {t}" for t in few)],
)

# %% mystnb={"image": {"alt": "IoU with the true mask against the step t, one line per prompt"}} tags=["hide-input"]
with torch.no_grad():
    true_maps = torch.from_numpy(truths.astype(np.float32))
    returned = decode(pipe.vae, encode(pipe.vae, masks.to_picture(true_maps)))
returned = [masks.binarise(p) > 0 for p in masks.to_probability(returned).numpy()]
ceiling = bootstrap(iou_per_picture(np.stack(returned), truths))
judged = judge(np.stack([d.image for d in drawn])).mask_probs > 0.5
judge_iou = bootstrap(iou_per_picture(judged, truths))

figure, axis = plt.subplots(figsize=(5.8, 3.9), layout="constrained")
for name, colour in zip(told, viz.COLOURS, strict=False):
    stats = [bootstrap(overlap[name, t]) for t in TIMES]
    axis.plot(
        TIMES, [s["mean"] for s in stats], "o-", ms=3, color=colour, label=name
    )
    low, high = ([s[key] for s in stats] for key in ("low", "high"))
    axis.fill_between(TIMES, low, high, color=colour, alpha=0.15, linewidth=0)
for s, style, name in (
    (ceiling, ":", "true mask through the autoencoder"),
    (judge_iou, "--", "the judge, on the clean picture"),
):
    axis.axhline(s["mean"], color="0.35", linestyle=style, label=name)
axis.set(
    xlabel="noise added up to time step $t$",
    ylabel="IoU with the truth",
    ylim=(0, 1),
)
figure.legend(loc="outside upper left", ncols=2)
plt.show()

# %% tags=["remove-cell"]
best = max(TIMES, key=lambda t: overlap["told defect and product", t].mean())
glue(
    "masks_true",
    interval(bootstrap(overlap["told defect and product", best])),
    display=False,
)
glue("masks_best", best, display=False)
glue("masks_true_count", many, display=False)
glue("masks_ceiling", interval(ceiling), display=False)
glue("masks_judge", interval(judge_iou), display=False)
glue(
    "masks_null",
    compare(
        overlap["told defect, no product", best],
        overlap["told defect and product", best],
    ),
    display=False,
)
glue(
    "masks_told_good",
    interval(bootstrap(overlap['told product, "good"', best])),
    display=False,
)

# %% [markdown]
# Over {glue:text}`masks_true_count` drawn pictures, one of each pair that the weights know, the mask head does best
# at $t$ = {glue:text}`masks_best`, with an IoU of {glue:text}`masks_true`. Three things to hold beside it. The true
# mask, once through the autoencoder and the threshold, still has {glue:text}`masks_ceiling`: hardly a mask can be
# better than that. The judge on the clean pictures has {glue:text}`masks_judge`, so an IoU *with the judge* cannot
# come near 1 even for a perfect mask. And without the product's name, which is how double-free asks,
# the IoU at the same $t$ is {glue:text}`masks_null`.
#
# The third curve is a test. Told "good", one would like the head to mark nothing; its IoU with the defect is
# {glue:text}`masks_told_good` at that $t$. Wherever this is well above 0, the mask follows what is *seen* and not
# only what is asked: in training a defect is called good now and then, and its mask is learned all the same.
#
# ## What would break this
#
# - **Attention that never finds the defect.** The head sees the maps alone; no head can mark what attention misses.
#   That is what the next chapter's loss is for.
# - **A defect thinner than a map's cell.** The maps are coarse, and only the neighbouring cells' values tell how a
#   scratch goes on inside one.
# - **Averaging from the beginning.** Early maps are made from noise, and here they are all but black. They weaken what
#   the late ones say and can blur it, and the overlap with the judge falls.
# - **Two kinds of dark.** The threshold knows grey levels, not shapes. A product whose map is bright in two strengths
#   is split between them.
#
# ## Summary
#
# The heads' attention maps are the mask head's only input; it predicts the mask's latent at every step, and the
# decoder makes it pixels. The last tenth of the steps is averaged and split by the iterative threshold, and where the
# two halves are not clearly apart the mask is empty. Asked about true pictures, the mask head can be judged without
# the sampler's and the judge's errors mixed in, and the autoencoder's part is known beside it.
#
# ## Exercises
#
# 1. Sort the heads by how much of their attention falls inside the final mask. Does one block do all the work?
# 2. Replace `masks.binarise` by a fixed threshold of 0.5. What happens to small defects, and what to good products?
# 3. The judge's IoU with the truth bounds what can be measured on generated pictures. How would you test a mask head
#    that is better than the judge?
#
# ````{dropdown} Answers
# 1. With `maps, _ = look(len(times) - 1)`, pool the mask to the maps' size (`masks.resize_mask`) and sum
#    `maps * mask` over the last two axes. If a few heads do it all, the mean map of the next chapter hides them.
# 2. Where the map of a small defect stays below 0.5 everywhere, its mask goes empty. Good products gain: a faint false
#    alarm no longer counts.
# 3. As in the last section: on drawn pictures, whose masks are exact. Generated ones have no truth but the judge's.
# ````
