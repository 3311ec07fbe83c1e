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
# # Sweep `w_d` and `w_p`
#
# [![Open in Colab](../book/figures/open_in_colab.svg)](https://colab.research.google.com/github/defectdiffu/defectdiffu/blob/main/notebooks/08_sweep.ipynb)
#
# **The question.** The paper says that $w_d$ is the strength of the defect and $w_p$ that of the product. Is it
# so, and what does a strong defect cost?
#
# **Before you run it, predict.** Raise $w_d$ from 0 to 3 with everything else fixed. Draw the area of the defect
# against $w_d$: a line, a curve that levels off, or a step? And at which $w_d$ does the product stop being itself?

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
NUM_PAIRS = 12  # @param {type:"integer"}
SEEDS = 2  # @param {type:"integer"}
STEPS = 20  # @param {type:"integer"}
GUIDANCE = "double_free"  # @param ["double_free", "product_aware", "defect_only"]
LIVE = False  # @param {type:"boolean"}

# %% tags=["hide-cell"]
import inspect
import os
import time

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from myst_nb import glue
from scipy.stats import binomtest

from defectdiffu import DefectDiffuPipeline, guidance, viz
from defectdiffu.drawn.procedural import render
from defectdiffu.evaluation.judge import Judge
from defectdiffu.evaluation.oracle import RENDERED_SEEDS, rank_correlation
from defectdiffu.evaluation.statistics import bootstrap

FAST = FAST or os.environ.get("DEFECTDIFFU_FAST") == "1"
STRENGTHS = [0, 0.5, 1, 1.5, 2, 2.5, 3]
if FAST:  # small enough for a check on every change
    NUM_PAIRS, SEEDS, STEPS, STRENGTHS = 3, 1, 4, [0, 1, 3]
viz.use_style()

pipe = DefectDiffuPipeline.from_pretrained(WEIGHTS)
pipe.set_progress_bar_config(disable=True)
settings = {"num_inference_steps": STEPS, "guidance": GUIDANCE}

# %% [markdown]
# ## Two scales in one line
#
# Equation 4 of the paper starts from a good picture of no product in particular and adds two directions:
#
# $$
# \epsilon = \epsilon(g, \varnothing)
# + w_p \underbrace{\left[\epsilon(g, p) - \epsilon(g, \varnothing)\right]}_{F_p}
# + w_d \underbrace{\left[\epsilon(d, \varnothing) - \epsilon(g, \varnothing)\right]}_{F_d}
# $$
#
# The paper prints the same with the scales exchanged in Eq. 3. In the code:

# %%
print(inspect.getsource(guidance.double_free))

# %% [markdown]
# The two directions are found apart from each other, so each scale should turn one thing. That is a claim about what
# the model learned, not something the equation can promise. Look first, then measure.
#
# ## The grid
#
# One seed, so all of these pictures have the same noise, at the start and in every step. To the right $w_d$ grows,
# downward $w_p$.

# %% mystnb={"image": {"alt": "Generated pictures, masks laid over: w_d grows to the right, w_p downward"}}
W_P, W_D = [0, 1, 2, 3], [0, 1, 2, 3]
rows = []
for w_p in W_P:
    out = pipe(
        PRODUCT,
        DEFECT,
        w_d=W_D,
        w_p=w_p,
        seeds=[0] * len(W_D),
        num_images=len(W_D),
        **settings,
    )
    images, masks = map(viz.enlarge, out.images), map(viz.enlarge, out.masks)
    rows.append([viz.overlay(i, m) for i, m in zip(images, masks, strict=True)])

viz.grid(rows, [f"$w_p = {w}$" for w in W_P], [f"$w_d = {w}$" for w in W_D])

# %% [markdown]
# *{glue:text}`sweep_what`, seed 0, the masks laid over.* In the first row no product is asked for. In the first
# column the defect's direction is switched off: what is left there of a defect comes from the good picture itself.
#
# ## The slider
#
# The same along one axis, for four seeds. It works by mouse, finger and arrow keys, with no kernel behind it. With a
# kernel, set `LIVE` in the settings: then you can change product, defect, both scales, seed and steps, and a new frame
# is drawn each time.

# %%
viz.slider(
    pipe,
    PRODUCT,
    DEFECT,
    values=STRENGTHS,
    seeds=range(1 if FAST else 4),
    **settings,
)

# %% [markdown]
# And along the other: $w_p$ from 0 to 3 with $w_d$ as the weights recommend it.

# %%
viz.slider(
    pipe,
    PRODUCT,
    DEFECT,
    over="w_p",
    values=W_P,
    seeds=range(1 if FAST else 4),
    **settings,
)

# %%
if LIVE:
    display(viz.slider(pipe, PRODUCT, DEFECT, live=True))
else:
    print(
        "The live slider needs a running kernel: set LIVE = True in the settings."
    )

# %% tags=["remove-cell"]
glue("sweep_what", f"{PRODUCT}, {DEFECT}", display=False)

# %% [markdown]
# ## From looking to measuring
#
# A **dose-response curve**: the area of the defect against $w_d$. The area is not taken from the model's own mask,
# for that would be the model's word on itself, but from the judge, a network that learned from thousands of rendered
# pictures to name products and defects and to mark the defect's pixels. Chapter 11 shows how often it errs.
#
# No pair is picked by hand: product number $i$ in the weights' list goes with defect number $i$ in its own list,
# counted round. $w_p$ is what the weights recommend, {glue:text}`sweep_w_p`.

# %%
judge = Judge.shipped(64)
names = list(pipe.pairs)[:NUM_PAIRS]
pairs = [(p, pipe.pairs[p][i % len(pipe.pairs[p])]) for i, p in enumerate(names)]
for pair in pairs:
    print(*pair, sep=", ")


# %%
def stack(images):
    """PIL pictures as one array, (N, 64, 64, 3) uint8."""
    return np.stack([np.asarray(image) for image in images])


def sweep(product, defect, strengths, w_p=pipe.config.w_p):
    """Generate every strength and seed, and read what the judge says of them."""
    seeds = [seed for _ in strengths for seed in range(SEEDS)]
    out = pipe(
        product,
        defect,
        w_d=np.repeat(strengths, SEEDS),
        w_p=w_p,
        seeds=seeds,
        num_images=len(seeds),
        batch_size=32,
        **settings,
    )
    return read(judge(stack(out.images)), product)


def read(verdict, product):
    """Area in % of the picture, judged good, product right; each (strengths, seeds)."""
    area = 100 * (verdict.mask_probs > 0.5).mean((1, 2))
    good = np.array([d == "good" for d in verdict.defects], float)
    right = np.array([p == product for p in verdict.products], float)
    return [values.reshape(-1, SEEDS) for values in (area, good, right)]


begin = time.perf_counter()
measured = np.array([sweep(*pair, STRENGTHS) for pair in pairs])
seconds = (time.perf_counter() - begin) / (len(pairs) * len(STRENGTHS) * SEEDS)
area, good, right = measured.transpose(1, 2, 0, 3)  # each (strengths, pairs, seeds)
area = area.mean(-1)  # (strengths, pairs)

# %% [markdown]
# A curve by itself says little: what would a perfect generator's look like under this judge? The renderer knows
# strength too, from 0 to 1. So the same pairs are drawn with growing strength and shown to the same judge. That is
# the **ceiling**.

# %%
DRAWN = np.linspace(0, 1, len(STRENGTHS))


def render_sweep(product, defect):
    """The same measures of truly drawn pictures, whose strength is known."""
    pictures = []
    for strength in DRAWN:
        for seed in range(SEEDS):
            drawn = render(product, defect, strength, RENDERED_SEEDS + seed, 64)
            pictures.append(drawn.image if strength else drawn.normal)
    return read(judge(np.stack(pictures)), product)


ceiling = np.array([render_sweep(*pair) for pair in pairs])
drawn_area, drawn_good, _ = ceiling.transpose(1, 2, 0, 3)
drawn_area = drawn_area.mean(-1)

# %% mystnb={"image": {"alt": "Judged defect area and share judged good, by w_d and by strength"}} tags=["hide-input"]


def percentage(hits):
    """Share of the pictures in %, with Wilson's 95 % interval; hits: 0 or 1 each."""
    test = binomtest(int(hits.sum()), hits.size)
    low, high = test.proportion_ci(method="wilson")
    return {"mean": 100 * test.statistic, "low": 100 * low, "high": 100 * high}


def dose(axis, x, stats, color, label=None):
    """A mean with its 95 % interval at every x."""
    stats = list(stats)
    mean, low, high = ([s[k] for s in stats] for k in ("mean", "low", "high"))
    axis.plot(x, mean, "o-", color=color, label=label, zorder=3)
    axis.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


figure, axes = plt.subplots(
    2, 2, figsize=(5.8, 4.4), sharey="row", layout="constrained"
)
blue, orange = viz.COLOURS[:2]
for column, (x, a, g, color, label) in enumerate(
    [
        (STRENGTHS, area, good, blue, "generated: $w_d$"),
        (DRAWN, drawn_area, drawn_good, orange, "rendered: strength"),
    ]
):
    axes[0, column].plot(x, a, color="0.8", linewidth=0.8)
    dose(axes[0, column], x, map(bootstrap, a), color)
    dose(axes[1, column], x, map(percentage, g), color)
    axes[1, column].set_xlabel(label)
axes[0, 0].set_ylabel("judged defect area\n(% of the picture)")
axes[1, 0].set_ylabel("judged good\n(% of the pictures)")
plt.close(figure)
figure

# %% [markdown]
# *Left generated, right truly rendered. Thick: mean over {glue:text}`sweep_pairs` pairs, {glue:text}`sweep_seeds`
# seeds each; grey: single pairs; band: 95 % interval, of the area by bootstrap over the pairs, of the share by Wilson's
# formula over the pictures. That one has a width even where all pictures are judged good, or none.*

# %% tags=["remove-cell"]
rho = [rank_correlation(STRENGTHS, column) for column in area.T]
drawn_rho = [rank_correlation(DRAWN, column) for column in drawn_area.T]


def interval(s, digits=2):
    mean, low, high = (f"{s[k]:.{digits}f}" for k in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


glue("sweep_pairs", len(pairs), display=False)
glue("sweep_seeds", SEEDS, display=False)
glue("sweep_last", STRENGTHS[-1], display=False)
for name, a, g in (("", area, good), ("drawn_", drawn_area, drawn_good)):
    for end, i in (("0", 0), ("last", -1)):
        glue(f"sweep_{name}area_{end}", interval(bootstrap(a[i]), 1), display=False)
        glue(
            f"sweep_{name}good_{end}", interval(percentage(g[i]), 0), display=False
        )
glue("sweep_rho", interval(bootstrap(rho)), display=False)
glue("sweep_drawn_rho", interval(bootstrap(drawn_rho)), display=False)
glue("sweep_picture", f"{seconds:.2g}", display=False)
grew = bootstrap(area[-1] - area[0])
glue(
    "sweep_verdict",
    "grows"
    if grew["low"] > 0
    else "shrinks"
    if grew["high"] < 0
    else "cannot be said to grow or to shrink, for the interval of the difference holds 0",
    display=False,
)
leak = percentage(good[0])["high"] < percentage(drawn_good[0])["low"]
glue(
    "sweep_leak",
    "clearly fewer than of rendered good pictures, so not all of them are clean"
    if leak
    else "not clearly fewer than of rendered good pictures",
    display=False,
)

# %% [markdown]
# From $w_d = 0$ to {glue:text}`sweep_last` the judged area {glue:text}`sweep_verdict`: from
# {glue:text}`sweep_area_0` % to {glue:text}`sweep_area_last` %. The rendered pictures end at
# {glue:text}`sweep_drawn_area_last` %; an area above theirs says that the model overdoes it.
#
# At $w_d = 0$ the judge calls {glue:text}`sweep_good_0` % of the generated pictures good (of the rendered ones
# {glue:text}`sweep_drawn_good_0` %), {glue:text}`sweep_leak`. At the other end it is {glue:text}`sweep_good_last` %
# (of the rendered ones {glue:text}`sweep_drawn_good_last` %).
#
# ## Pair by pair
#
# A mean can rise while single pairs do not. **Spearman's rank correlation** asks only for the order: 1 where every
# step of $w_d$ gave a larger area, 0 where the order is chance.

# %% mystnb={"image": {"alt": "Rank correlation of strength and judged area, one line per pair"}} tags=["hide-input"]
figure, axis = plt.subplots(
    figsize=(5, 0.28 * len(pairs) + 0.8), layout="constrained"
)
y = range(len(pairs))
axis.axvline(0, color="0.8", linewidth=0.8)
axis.scatter(drawn_rho, y, color=orange, marker="D", s=22, label="rendered")
axis.scatter(rho, y, color=blue, s=30, label="generated", zorder=3)
axis.set_yticks(y, [", ".join(pair) for pair in pairs])
axis.invert_yaxis()
axis.set(xlabel="rank correlation of strength and judged area", xlim=(-1.05, 1.05))
axis.legend(loc="lower left")
plt.close(figure)
figure

# %% [markdown]
# Mean over the pairs: {glue:text}`sweep_rho` generated, {glue:text}`sweep_drawn_rho` rendered. The rendered value is
# what a perfect generator could reach under this judge: a diamond away from 1 is a defect that the judge itself does
# not see grow on that product, and there the blue dot says nothing.
#
# ## What a strong defect costs
#
# $F_d$ is found with no product told, so it points from the average good picture to the average defect picture, and
# a little of the average product comes along. Pushed far, it could drown the product, and $w_p$ would push back. How
# often does the judge still name the product that was asked for?

# %% mystnb={"image": {"alt": "Share of pictures whose product is named rightly against w_d, for two w_p"}}
FEW = STRENGTHS[::2]
kept = {}  # w_p -> was the product named rightly, (strengths, pairs, seeds)
for w_p in (1, 2):
    if w_p == pipe.config.w_p:  # measured above
        kept[w_p] = right[::2]
    else:
        values = np.array([sweep(*pair, FEW, w_p)[2] for pair in pairs])
        kept[w_p] = values.swapaxes(0, 1)

figure, axis = plt.subplots(figsize=(4.6, 2.6), layout="constrained")
for (w_p, values), color in zip(kept.items(), viz.COLOURS, strict=False):
    dose(axis, FEW, map(percentage, values), color, f"$w_p = {w_p}$")
axis.set(xlabel="$w_d$", ylabel="product named rightly\n(% of the pictures)")
axis.set_ylim(0, 105)
axis.legend(loc="lower left")
plt.close(figure)
figure

# %% tags=["remove-cell"]
difference = bootstrap((kept[2][-1] - kept[1][-1]).mean(-1))  # over the pairs
for w_p, values in kept.items():
    glue(f"sweep_kept_{w_p}", interval(percentage(values[-1]), 0), display=False)
glue(
    "sweep_trade",
    "The larger scale keeps the product better"
    if difference["low"] > 0
    else "The smaller scale keeps the product better"
    if difference["high"] < 0
    else "With so few pictures the two cannot be told apart",
    display=False,
)
glue("sweep_w_p", f"{pipe.config.w_p:g}", display=False)
glue("sweep_w_d", f"{pipe.config.w_d:g}", display=False)

# %% [markdown]
# At $w_d$ = {glue:text}`sweep_last` the product is named rightly in {glue:text}`sweep_kept_1` % with $w_p = 1$ and in
# {glue:text}`sweep_kept_2` % with $w_p = 2$. {glue:text}`sweep_trade`. The weights recommend $w_d$ =
# {glue:text}`sweep_w_d`. One picture of these sweeps took {glue:text}`sweep_picture` s.
#
# Last, three facts that hold for any weights, checked: at $w_d = 0$ the name of the defect does not matter
# to the picture; at $w_p = 0$ the name of the product does not; and a frame of a sweep is the picture that the same
# $w_d$ gives alone.

# %%
# NBVAL_CHECK_OUTPUT
one = {"num_inference_steps": 2, "guidance": "double_free"}


def picture(product, defect, **scales):
    return np.asarray(pipe(product, defect, **one, **scales).images[0]).astype(int)


first, second = pipe.products[:2]
crack, hole = pipe.defects[:2]
assert abs(picture(first, crack, w_d=0) - picture(first, hole, w_d=0)).max() <= 1
assert abs(picture(first, crack, w_p=0) - picture(second, crack, w_p=0)).max() <= 1
swept = pipe(first, crack, w_d=[0, 2], seeds=[0, 0], num_images=2, **one).images[1]
assert abs(picture(first, crack, w_d=2) - np.asarray(swept)).max() <= 1
print(
    "w_d = 0: whatever the defect; w_p = 0: whatever the product; a frame alone: the same"
)

# %% [markdown]
# ## What would break this
#
# - **A judge that was fooled.** It never saw generated pictures, and may take the model's artefacts for defects. The
#   area at $w_d = 0$, where no defect is asked for, gives an idea how much.
# - **Reading the model's own mask instead.** Below $w_d = 1$ it is mixed, in the share $w_d$, into the mask of the good
#   branch, and so changes with $w_d$ whatever the picture shows.
# - **Other noise in every frame**, at the start or in the sampler's steps. The sweep would then compare noises, not
#   strengths.
#
# ## Summary
#
# $w_d$ turns the defect and $w_p$ the product, each along a direction of its own. A dose-response curve by an outside
# judge, with intervals and the rendered pictures' own curve beside it, says how far that is true. Whether a
# strong defect costs product is seen by how often the product is still named, at two values of $w_p$.
#
# ## Exercises
#
# 1. Repeat the trade-off with `guidance="product_aware"`. Why should $w_p$ matter less there?
# 2. In the first row of the grid, $w_p = 0$. Which product do you expect, and why?
# 3. `w_d=-1` is allowed. What do you expect, and what do you get?
#
# ````{dropdown} Answers
# 1. Its defect direction is $\epsilon(d, p) - \epsilon(g, p)$, found on the product itself. It does not carry an
#    average product along, so there is less to push back. At $w_p = 1$ it is the form that has no $w_p$ at all.
# 2. None in particular: the null product stands for any product, and which one appears follows from the noise.
# 3. One might hope for "better than good": the picture is pushed away from defects. But the training data have nothing
#    out there, so look for smoothed textures rather than for better ones.
# ````
