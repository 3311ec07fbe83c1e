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
# # Double-free: two directions, two knobs
#
# [![Open in Colab](../book/figures/open_in_colab.svg)](https://colab.research.google.com/github/defectdiffu/defectdiffu/blob/main/notebooks/04_double_free.ipynb)
#
# **The question.** How can one network be told *how much* of a defect to draw, when no training image says so?
#
# **Before you run it, predict.** The sampler starts from a picture of nothing in particular and adds two directions:
# "more of this product" with scale $w_p$, and "more of this defect" with scale $w_d$. The second is taken with *no
# product named*. Will it still know where on a hazelnut a crack belongs? And what do you get from the second direction
# without the first?

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
STEPS = 20  # @param {type:"integer"}
DRAWS = 50_000  # @param {type:"integer"}
SEEDS_PER_PAIR = 2  # @param {type:"integer"}

# %% tags=["hide-cell"]
import os
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from myst_nb import glue
from PIL import Image
from scipy.stats import binomtest

from defectdiffu import PRESETS, DefectDiffuPipeline, viz
from defectdiffu.autoencoder import decode
from defectdiffu.config import GOOD
from defectdiffu.evaluation.judge import Judge
from defectdiffu.evaluation.statistics import bootstrap
from defectdiffu.guidance import (
    GUIDANCES,
    Branches,
    defect_only,
    double_free,
    drop_conditions,
    evaluate_branches,
    guide,
    product_aware,
)
from defectdiffu.losses import picture_of

FAST = FAST or os.environ.get("DEFECTDIFFU_FAST") == "1"
if FAST:  # small enough for a check on every change
    STEPS, DRAWS, SEEDS_PER_PAIR = 4, 2_000, 1
PRODUCTS = 3 if FAST else None  # how many products the measurements take in
viz.use_style()


# %% [markdown]
# ## What the model is told: Algorithm 1
#
# Later we want to ask the network four things, so it has to hear all four in training. We write them by their two
# conditions, defect $d$ or good $g$, then product $p$ or none $\varnothing$:
#
# | | product named | no product named |
# |---|---|---|
# | **good** | $\epsilon(g, p)$, a sound hazelnut | $\epsilon(g, \varnothing)$, a sound something |
# | **defect** | $\epsilon(d, p)$, a cracked hazelnut | $\epsilon(d, \varnothing)$, a crack in something |
#
# No image is labelled "a crack in something". Algorithm 1 makes such labels by forgetting: with probability $p_1$ the
# product's name becomes the null product; with probability $p_2$ a defect is called good; and an image that has a
# defect is asked a second time for its product's name. Here is the whole of it, from `defectdiffu/guidance.py`:

# %%
viz.show_code(drop_conditions)

# %% [markdown]
# A tally says more than the listing. We pass one good and one cracked hazelnut through it many times and count.
# By calculation: a good image keeps its product's name with probability $1 - p_1$; a defect image has two chances to
# lose it, so it is left without one with probability $1 - (1 - p_1)^2$, whatever became of its defect.

# %%
settings = PRESETS["tiny"].training
p1, p2 = settings.p1, settings.p2
no_product = 1 - (1 - p1) ** 2

ANALYTIC = {
    ("good", "good", "named"): 1 - p1,
    ("good", "good", "null"): p1,
    ("crack", "crack", "named"): (1 - p2) * (1 - no_product),
    ("crack", "crack", "null"): (1 - p2) * no_product,
    ("crack", "good", "named"): p2 * (1 - no_product),
    ("crack", "good", "null"): p2 * no_product,
}

rng = np.random.default_rng(0)
counts = dict.fromkeys(ANALYTIC, 0)
for kind in ("good", "crack"):
    has_defect = np.full(DRAWS, kind == "crack")
    no_name, no_defect = drop_conditions(has_defect, p1, p2, rng)
    told = np.where(has_defect & ~no_defect, "crack", "good")
    named = np.where(no_name, "null", "named")
    for case in ANALYTIC:
        if case[0] == kind:
            counts[case] = ((told == case[1]) & (named == case[2])).sum()
tally = {case: count / DRAWS for case, count in counts.items()}

# %% mystnb={"image": {"alt": "How often a sound and a cracked hazelnut are told which names"}} tags=["hide-input"]
figure, axes = plt.subplots(
    2,
    1,
    figsize=(5.6, 3.4),
    sharex=True,
    height_ratios=(2, 4),
    layout="constrained",
)
for axis, kind in zip(axes, ("good", "crack"), strict=True):
    cases = [case for case in ANALYTIC if case[0] == kind][::-1]
    names = [
        f"told: {told}, {'product named' if named == 'named' else 'no product'}"
        for _, told, named in cases
    ]
    axis.barh(
        names, [tally[c] for c in cases], color=viz.COLOURS[5], label="counted"
    )
    expected = [ANALYTIC[c] for c in cases]
    axis.plot(
        expected, names, "|", ms=16, mew=2, color=viz.COLOURS[6], label="by formula"
    )
    for name, value in zip(names, expected, strict=True):
        axis.text(value + 0.02, name, f"{value:.3f}", va="center")
    axis.set_title(
        "a sound hazelnut" if kind == "good" else "a cracked hazelnut", loc="left"
    )
axes[0].legend(loc="lower right", markerscale=0.6)
axes[1].set(xlabel=f"share of {DRAWS} draws", xlim=(0, 1))
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
for case, expected in ANALYTIC.items():
    deviation = np.sqrt(expected * (1 - expected) / DRAWS)
    assert abs(tally[case] - expected) < 4 * deviation, case
print(f"p1 = {p1}, p2 = {p2}")
print(f"a defect image loses its product's name with {no_product:.2f}")
for (kind, told, named), expected in ANALYTIC.items():
    print(f"{kind:5}  told {told:5}  product {named:5}  {expected:.3f}")

# %% [markdown]
# All four questions are asked in training. Note the two bars of cracked hazelnuts that are told "good": they teach
# the network that "good" means "no defect asked for"; that is what makes $\epsilon(g, \varnothing)$ an unconditional
# prediction.
#
# The paper's listing can be read another way: its line 4, the second chance, may stand under line 3 or beside it. We
# read it as printed, beside. The authors' released code, by default, does something else again: it only ever calls
# defects good, so its network never hears "a defect, no product", and $\epsilon(d, \varnothing)$ is a question that
# it was not trained to answer.
#
# ## Equation 4, and the line that is it
#
# $$
# \epsilon = \underbrace{\epsilon(g, \varnothing)}_{\text{a sound something}}
# + w_p \underbrace{\left[\epsilon(g, p) - \epsilon(g, \varnothing)\right]}_{F_p\text{: towards this product}}
# + w_d \underbrace{\left[\epsilon(d, \varnothing) - \epsilon(g, \varnothing)\right]}_{F_d\text{: towards this defect}}
# $$
#
# Two differences of predictions, each free of the other's condition: hence *double-free*, after classifier-free
# guidance. The paper's network predicts the noise, these weights the velocity of chapter 2; since the scales of the
# three predictions sum to one, Eq. 4 gives the same result for both. In `defectdiffu/guidance.py`, where
# `e["g0"]` is $\epsilon(g, \varnothing)$:

# %%
viz.show_code(double_free)

# %% [markdown]
# To take it apart we need a sampler that we can reach into. It fits in one cell: at every step, ask all four
# questions, combine the answers by some rule, take a step of denoising.

# %%
pipe = DefectDiffuPipeline.from_pretrained(WEIGHTS)
pipe.set_progress_bar_config(disable=True)
W_P, W_D = pipe.config.w_p, pipe.config.w_d
side = pipe.transformer.config.sample_size
channels = pipe.transformer.config.in_channels


def start(seeds):
    """The pure noise that sampling starts from, and where its steps' noise comes from: each seed has its own."""
    shape = (channels, side, side)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    x = torch.stack([torch.randn(shape, generator=g) for g in generators])
    return x, generators


def prompts(pairs):
    """The conditions of the four branches for a batch of (product, defect)."""
    products, defects = map(list, zip(*pairs, strict=True))
    null, good = (
        [pipe.transformer.config.null_product] * len(pairs),
        [GOOD] * len(pairs),
    )
    told = {"gp": (products, good), "g0": (null, good)}
    told |= {"d0": (null, defects), "dp": (products, defects)}
    return {name: pipe.encoder.conditions(*words) for name, words in told.items()}


def to_images(latents):
    pictures = ((decode(pipe.vae, latents) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(p) for p in pictures.permute(0, 2, 3, 1).numpy()]


@torch.no_grad()
def sample(combine, pairs, seeds, watch=None):
    """Denoise with the noise combine(e); e holds the noise of each branch."""
    (x, generators), conditions = start(seeds), prompts(pairs)
    pipe.scheduler.set_timesteps(STEPS)
    for t in pipe.scheduler.timesteps:
        branches = evaluate_branches(
            pipe.transformer, x, t.expand(len(x)), conditions
        )
        if watch:
            watch(int(t), x, branches.predicted)
        step = pipe.scheduler.step(
            combine(branches.predicted), t, x, generator=generators
        )
        x = step.prev_sample
    return to_images(x)


# %% [markdown]
# First the check that this is the package's sampler, and that our own Eq. 4, written from the formula, is `guide`.
# The scales are those that the weights recommend: $w_p$ = {glue:text}`free_w_p`, $w_d$ = {glue:text}`free_w_d`.


# %%
# NBVAL_CHECK_OUTPUT
def eq4(e, w_p=W_P, w_d=W_D):
    F_p = e["gp"] - e["g0"]
    F_d = e["d0"] - e["g0"]
    return e["g0"] + w_p * F_p + w_d * F_d


pair = ("hazelnut", "crack")
ours = sample(eq4, [pair] * 2, seeds=[0, 1])
theirs = pipe(
    *pair, num_images=2, num_inference_steps=STEPS, guidance="double_free"
)
difference = np.abs(np.subtract(ours, theirs.images, dtype=int)).max()
assert difference <= 2  # grey levels of 255: rounding, for batches differ

generator = torch.Generator().manual_seed(0)
e = {
    name: torch.randn(2, channels, side, side, generator=generator)
    for name in ("gp", "g0", "d0", "dp")
}
strength = torch.tensor([0.5, 3.0]).view(-1, 1, 1, 1)  # one for each image
noise, _ = guide(Branches(e, e, e), "double_free", 1.5, strength)
assert torch.equal(noise, eq4(e, 1.5, strength))
print("our sampler draws the pipeline's pictures; our Eq. 4 is guidance.guide")

# %% [markdown]
# ## Built up term by term
#
# The same noise in every picture. The first column names neither product nor defect. The second adds the product's term
# of Eq. 4 to it, the third the defect's term, without a product, and the last adds both.

# %% mystnb={"image": {"alt": "Generated pictures, one row per pair: neither term of Eq. 4, one, other, both"}}
PAIRS = [("hazelnut", "crack"), ("leather", "cut"), ("bottle", "contamination")]

TERMS = {
    "e(g,0)": lambda e: eq4(e, w_p=0, w_d=0),
    "+ w_p F_p": lambda e: eq4(e, w_d=0),
    "+ w_d F_d": lambda e: eq4(e, w_p=0),
    "+ both": eq4,
}
columns = [sample(rule, PAIRS, seeds=[0] * len(PAIRS)) for rule in TERMS.values()]
viz.grid(
    list(zip(*columns, strict=True)),
    row_labels=[", ".join(pair) for pair in PAIRS],
    column_labels=list(TERMS),
)

# %% [markdown]
# Read a row from left to right. $F_p$ should turn a picture of nothing in particular into the product, sound;
# $F_d$ alone should leave a picture of nothing in particular with something wrong in it; both should put that on the
# product. The first column shows what "nothing in particular" is in these weights: not a mixture but some product, here
# a bottle. The crack leaves hardly a trace on it, and with the cut's direction alone it becomes a dark weave.
#
# ## The two directions as images
#
# $F_p$ and $F_d$ are differences of predicted *velocities*, and a velocity is hard to read. But at every step it says
# what the finished picture would be: $\hat x_0 = \sqrt{\bar\alpha_t}\,x_t - \sqrt{1 - \bar\alpha_t}\,v$ (chapter 2).
# So we let each branch foresee its picture, from the same $x_t$, and below it draw where the direction is strong: its
# length over the channels, at each place of the latent.

# %%
seen = {}
abar = pipe.scheduler.alphas_cumprod


def remember(t, x, e):
    seen[t] = (x, {name: noise.clone() for name, noise in e.items()})


sample(eq4, [PAIRS[0]], seeds=[0], watch=remember)
times = list(seen)
shown = [
    times[i] for i in np.linspace(STEPS // 4, STEPS - 1, 4).round().astype(int)
]


def foreseen(t, x, predicted):
    prediction = pipe.transformer.config.prediction
    return to_images(picture_of(prediction, predicted, x, abar[t]))[0]


def length(direction):
    return direction[0].norm(dim=0).numpy()  # (h, w)


# %% mystnb={"image": {"alt": "Foreseen pictures and maps of both directions' length, by step t"}} tags=["hide-input"]
ROWS = {
    "e(g,0)\nforesees": "g0",
    "e(g,p)\nforesees": "gp",
    "e(d,0)\nforesees": "d0",
}
figure, axes = plt.subplots(5, 4, figsize=(5.4, 5.7), layout="constrained")
for column, t in zip(axes.T, shown, strict=True):
    x, predicted = seen[t]
    for axis, branch in zip(column, ROWS.values(), strict=False):
        axis.imshow(viz.enlarge(foreseen(t, x, predicted[branch])))
    column[0].set_title(f"t = {t}")
for row, name, to in zip(axes[3:], ("F_p", "F_d"), ("gp", "d0"), strict=True):
    maps = [length(seen[t][1][to] - seen[t][1]["g0"]) for t in shown]
    top = max(m.max() for m in maps)
    for axis, values in zip(row, maps, strict=True):
        image = axis.imshow(values, cmap="viridis", vmin=0, vmax=top)
    figure.colorbar(image, ax=row, shrink=0.9, label=f"length of ${name}$")
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
for row, name in zip(axes, [*ROWS, "|F_p|", "|F_d|"], strict=True):
    row[0].set_ylabel(name, rotation=0, ha="right", va="center")
plt.show()

# %% [markdown]
# Time runs from left to right, from noise ($t$ large) to picture ($t$ near 0). Look for two things. First, where $F_p$
# is strong the product is being told from "something", and that may be all over the picture; $F_d$ ought to gather at
# one place as $t$ falls, and where it stays spread out, $w_d$ turns more than a defect. Here it is the other way round:
# mostly one spot at the first of the four steps, later weak and all over the nut. Second, compare the second row
# with the third: one leans towards the sound product, the other towards the defect. At a single step they may differ
# little, for all three look at the same $x_t$; what makes the picture is that the differences, scaled, are added at
# every step.
#
# How long are the two, and do they say different things? We measure over one pair of every product: length relative
# to $\epsilon(g, \varnothing)$, and two cosines. The first, between $F_p$ and $F_d$, would be 0 if the two knobs had
# nothing to do with each other. The second is the paper's hypothesis of *inter-product defect consistency*, as a
# number: does the defect's direction found with no product, $F_d$, agree with the one found on this very product,
# $\epsilon(d, p) - \epsilon(g, p)$?

# %%
EVERY = [
    (product, defects[i % len(defects)])
    for i, (product, defects) in enumerate(pipe.pairs.items())
][:PRODUCTS]
lengths, cosines = {}, {}


def measure(t, x, e):
    F_p, F_d = e["gp"] - e["g0"], e["d0"] - e["g0"]
    on_product = e["dp"] - e["gp"]
    size = e["g0"].flatten(1).norm(dim=1)
    cosine = torch.nn.CosineSimilarity()
    lengths[t] = [(F.flatten(1).norm(dim=1) / size).numpy() for F in (F_p, F_d)]
    cosines[t] = [
        cosine(F_d.flatten(1), F.flatten(1)).numpy() for F in (F_p, on_product)
    ]


sample(eq4, EVERY, seeds=[0] * len(EVERY), watch=measure)
print(f"{len(EVERY)} pairs:", *(", ".join(pair) for pair in EVERY), sep="\n  ")

# %% mystnb={"image": {"alt": "Lengths of F_p and F_d, and two cosines, against the time step"}} tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(6.4, 2.8), layout="constrained")
for axis, values, names in (
    (axes[0], lengths, ("$F_p$", "$F_d$")),
    (
        axes[1],
        cosines,
        ("$F_d$ and $F_p$", "$F_d$ and defect's direction\non the product"),
    ),
):
    for j, (name, colour) in enumerate(zip(names, viz.COLOURS, strict=False)):
        stats = [bootstrap(values[t][j]) for t in times]
        axis.plot(times, [s["mean"] for s in stats], color=colour, label=name)
        low, high = ([s[k] for s in stats] for k in ("low", "high"))
        axis.fill_between(times, low, high, color=colour, alpha=0.2, linewidth=0)
    axis.set_xlabel("time step $t$ (1000 is noise)")
    axis.invert_xaxis()
    axis.legend()
axes[0].set(
    ylabel="length relative to $\\epsilon(g, \\varnothing)$", ylim=(0, None)
)
axes[1].axhline(0, color="0.7", linewidth=0.8, zorder=0)
axes[1].set(ylabel="cosine", ylim=(-1.05, 1.05))
plt.show()

# %% tags=["remove-cell"]
glue("free_w_p", f"{W_P:g}", display=False)
glue("free_w_d", f"{W_D:g}", display=False)
apart, agree = (
    bootstrap(np.mean([cosines[t][j] for t in times], axis=0)) for j in (0, 1)
)
for name, s in (("apart", apart), ("agree", agree)):
    text = f"{s['mean']:.2f} ({s['low']:.2f} to {s['high']:.2f})"
    glue(f"free_{name}", text, display=False)
longer = np.mean([lengths[t][1] > lengths[t][0] for t in times])
glue("free_longer", f"{100 * longer:.0f}", display=False)
glue("free_pairs", len(EVERY), display=False)
glue(
    "free_verdict",
    "the direction carries over from product to product, at least in part"
    if agree["low"] > 0.1
    else "we cannot say that the direction carries over",
    display=False,
)

# %% [markdown]
# Bands are 95 % bootstrap intervals over {glue:text}`free_pairs` pairs, one of each product, seed 0. Averaged over
# the steps, the cosine of $F_d$ with $F_p$ is {glue:text}`free_apart`; that of $F_d$ with the direction on the very
# product is {glue:text}`free_agree`. A cosine of 1 would be perfect transfer and 0 none: {glue:text}`free_verdict`.
# The defect's direction is the longer of the two in {glue:text}`free_longer` % of steps and pairs.
#
# ## Three guidances side by side
#
# The paper's Eq. 4 is one of three ways to place the defect. The authors' released code has two more:
#
# | name here | rule | |
# |---|---|---|
# | `double_free` | $\epsilon(g,\varnothing) + w_p F_p + w_d F_d$ | 3 branches; the paper |
# | `defect_only` | $\epsilon(g,p) + w_d F'_d$ | 2 branches; the released default |
# | `product_aware` | $\epsilon(g,\varnothing) + w_p F_p + w_d F'_d$ | 3 branches; in the released code, never called |
#
# Here $F'_d = \epsilon(d,p) - \epsilon(g,p)$ is the defect's direction on this very product, the one that we just
# compared $F_d$ with.
# Set $w_p = 1$ in the third rule: its first two terms collapse into $\epsilon(g, p)$, and it is the second.

# %%
# NBVAL_CHECK_OUTPUT
assert torch.allclose(
    product_aware(e, 1.0, 2.5), defect_only(e, 7.0, 2.5), atol=1e-5
)
assert torch.allclose(
    double_free(e, 1.0, 1.0), e["gp"] + e["d0"] - e["g0"], atol=1e-5
)
print("product_aware with w_p = 1 is defect_only, whose w_p has nothing to scale")

# %% mystnb={"image": {"alt": "Generated pictures without and with masks, one column per form of guidance"}}
pictures = {
    (pair, guidance): pipe(
        *pair,
        num_images=SEEDS_PER_PAIR,
        num_inference_steps=STEPS,
        guidance=guidance,
    )
    for pair in dict.fromkeys([*PAIRS, *EVERY])
    for guidance in GUIDANCES
}
rows, labels = [], []
for pair in PAIRS:
    outs = [pictures[pair, guidance] for guidance in GUIDANCES]
    images = [viz.enlarge(out.images[0]) for out in outs]
    masks = [viz.enlarge(out.masks[0]) for out in outs]
    rows += [
        images,
        [viz.overlay(*both) for both in zip(images, masks, strict=True)],
    ]
    labels += [", ".join(pair), "with mask"]
viz.grid(rows, labels, column_labels=list(GUIDANCES), inches=1.25)

# %% [markdown]
# The same seed, the same scales, three rules. Three pairs prove nothing, so we let the judge look at one pair of
# every product: a network trained on thousands of drawn pictures, which names what it sees.


# %% mystnb={"image": {"alt": "Share of pictures with product and defect as asked, by guidance"}} tags=["hide-input"]
def proportion(hits):
    """The share of hits with Wilson's 95 % interval, which has a width even if all hit."""
    test = binomtest(int(np.sum(hits)), len(hits))
    low, high = test.proportion_ci(method="wilson")
    return {"mean": test.statistic, "low": low, "high": high}


judge = Judge.shipped(64)
scores = {}
for guidance in GUIDANCES:
    images = [i for pair in EVERY for i in pictures[pair, guidance].images]
    asked = [pair for pair in EVERY for _ in range(SEEDS_PER_PAIR)]
    verdict = judge(np.stack([np.asarray(image) for image in images]))
    scores[guidance] = {
        "product as asked": [
            p == a[0] for p, a in zip(verdict.products, asked, strict=True)
        ],
        "defect as asked": [
            d == a[1] for d, a in zip(verdict.defects, asked, strict=True)
        ],
        "some defect seen": [d != GOOD for d in verdict.defects],
    }

figure, axis = plt.subplots(figsize=(5.6, 2.8), layout="constrained")
names = list(scores["double_free"])
for i, (guidance, colour) in enumerate(zip(GUIDANCES, viz.COLOURS, strict=False)):
    stats = [proportion(scores[guidance][name]) for name in names]
    mean = np.array([s["mean"] for s in stats])
    spread = np.abs([[s["low"], s["high"]] for s in stats] - mean[:, None]).T
    place = np.arange(len(names)) + 0.22 * (i - 1)
    axis.errorbar(
        mean, place, xerr=spread, fmt="o", color=colour, capsize=3, label=guidance
    )
axis.set_yticks(range(len(names)), names)
axis.invert_yaxis()
axis.set(
    xlim=(-0.02, 1.02), xlabel=f"share of {len(asked)} pictures, 95 % interval"
)
axis.legend(loc="upper center", bbox_to_anchor=(0.4, 1.2), ncols=3)
plt.show()

# %% [markdown]
# Each bar is Wilson's interval for a share, which has a width even where every picture is right. All three run at the
# scales that the weights recommend for {glue:text}`free_default`, so this is a look and not a contest: where the
# intervals overlap, it decides nothing.
#
# ## The slip in Eq. 3
#
# The paper introduces its two scales in Eq. 3, and there they are swapped:
#
# $$
# \epsilon = \epsilon(\varnothing, \varnothing) + w_p F_d + w_d F_p \qquad\text{(Eq. 3, as printed)}
# $$
#
# Eq. 4 has $w_p$ on $F_p$ and $w_d$ on $F_d$, as the words around it say. (Eq. 3 also starts from two nulls; Eq. 4
# says which null the defect has: "good".) What if one took Eq. 3 at its word? The two differ by
# $(w_p - w_d)(F_d - F_p)$: nothing at all where the scales are equal, so the slip does not show there. Turn $w_d$,
# and see what it turns.


# %% mystnb={"image": {"alt": "Generated pictures by Eq. 4 and Eq. 3, w_d growing to the right"}}
def eq3_as_printed(e, w_p=W_P, w_d=W_D):
    F_p = e["gp"] - e["g0"]
    F_d = e["d0"] - e["g0"]
    return e["g0"] + w_p * F_d + w_d * F_p


gap = eq3_as_printed(e, 1.5, 3.0) - eq4(e, 1.5, 3.0)
assert torch.allclose(gap, (1.5 - 3.0) * (e["d0"] - e["gp"]), atol=1e-5)
assert torch.allclose(eq3_as_printed(e, 2.0, 2.0), eq4(e, 2.0, 2.0), atol=1e-5)

STRENGTHS = [0.0, 1.0, 2.0, 3.0]
w_d = torch.tensor(STRENGTHS).view(-1, 1, 1, 1)
sweep = [
    sample(lambda e, rule=rule: rule(e, w_d=w_d), [PAIRS[0]] * 4, seeds=[0] * 4)
    for rule in (eq4, eq3_as_printed)
]
viz.grid(sweep, ["Eq. 4", "Eq. 3"], [f"w_d = {w:g}" for w in STRENGTHS])

# %% [markdown]
# In the upper row $w_d$ scales the defect, and the product's direction is there from the start. In the lower row
# $w_d = 0$ leaves the defect's direction, at the fixed scale $w_p$, on *no* product, once more a bottle that shows
# little of it, and turning it up adds the product: the nut grows redder, not more cracked. So we take
# Eq. 3 for a slip of the pen: this book, like the released code, goes by Eq. 4.
#
# ## One pass saved
#
# Three branches cost three passes through the network. Not quite: the background blocks are told of the product
# alone, so after them $\epsilon(g, \varnothing)$ and $\epsilon(d, \varnothing)$ are in the very same state.
# `evaluate_branches` runs the background once for each distinct product, and what remains as one batch.

# %%
(x, _), t = start(range(4)), torch.full((4,), 500)
three = {name: prompts([PAIRS[0]] * 4)[name] for name in ("gp", "g0", "d0")}


@torch.no_grad()
def shared():
    return evaluate_branches(pipe.transformer, x, t, three).predicted


@torch.no_grad()
def separate():
    return {
        name: pipe.transformer(x, t, **vars(condition)).sample[:, :channels]
        for name, condition in three.items()
    }


def seconds(function, repeats=5 if FAST else 30):
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        taken.append(time.perf_counter() - begin)
    return np.median(taken)


seconds(shared), seconds(separate)  # warm up
cost = {"shared": seconds(shared), "separate": seconds(separate)}

# %%
# NBVAL_CHECK_OUTPUT
one, other = shared(), separate()
for name in three:
    assert torch.allclose(one[name], other[name], atol=1e-5)
print("shared and separate passes agree to 1e-5 in", *three)


def blocks(N, M, K):
    """Block evaluations a step: three separate passes, and shared."""
    return 3 * (N + M + K), 2 * N + 3 * (M + K)


for name, preset in PRESETS.items():
    model = preset.model
    sizes = model.background_blocks, model.defect_blocks, model.fusion_blocks
    print(f"{name:5}  N, M, K = {sizes}:  {blocks(*sizes)} blocks a step")

# %% tags=["remove-cell"]
glue("free_shared", f"{1000 * cost['shared']:.0f}", display=False)
glue("free_separate", f"{1000 * cost['separate']:.0f}", display=False)
glue(
    "free_saved",
    f"{100 * (1 - cost['shared'] / cost['separate']):.0f}",
    display=False,
)
naive, less = blocks(
    *(
        len(getattr(pipe.transformer, f"{p}_part"))
        for p in ("background", "defect", "fusion")
    )
)
glue("free_blocks", f"{100 * (1 - less / naive):.0f}", display=False)
glue("free_default", pipe.config.guidance, display=False)

# %% [markdown]
# On the machine that made this page, a step for four pictures took {glue:text}`free_shared` ms shared and
# {glue:text}`free_separate` ms in three separate passes: {glue:text}`free_saved` % less, where counting blocks alone
# promises {glue:text}`free_blocks` %. (The rest, if there is any, is from running the branches as one batch.)
#
# ## What would break this
#
# - **No null product in training** ($p_1 = 0$). Then $\epsilon(g, \varnothing)$ and $\epsilon(d, \varnothing)$ are
#   never trained, and both directions are differences with a guess.
# - **Too few products.** "A crack in something" is an average over the products in the training set. With one
#   product, something *is* that product.
# - **Large scales.** Both directions are extrapolated. Far beyond 1 the picture leaves everything that training
#   showed: the defect may spread over the whole product, as at $w_d = 3$ above, colours may drift, and a large $w_d$
#   can carry another product along, against which only a larger $w_p$ helps.
#
# ## Summary
#
# Algorithm 1 forgets names at random, so that one network answers four questions; differences of its answers are a
# direction towards the product and one towards the defect. Eq. 4 adds them with a scale each, and $w_d$ is meant
# for the defect's strength, which no training image has a label for; chapter 8 measures it. The paper's Eq. 3 has
# the scales swapped, and a third of the background work can be shared without any change to the result.
#
# ## Exercises
#
# 1. Set $p_1 = 0$ in the tally. Which of the four questions is never asked? Which guidance could still be used?
# 2. Use a negative $w_d$ in `eq4`. What should a picture of "minus a crack" look like?
# 3. Under the other reading of line 4 (only where line 3 fired), how often does a defect image that *keeps* its defect
#    lose its product's name?
#
# ````{dropdown} Answers
# 1. Both with no product, $(g, \varnothing)$ and $(d, \varnothing)$. `defect_only` still works, for it always names
#    the product. This is the released code's default.
# 2. Try `sample(lambda e: eq4(e, w_d=-1.0), [PAIRS[0]], seeds=[0])`. It steps away from the defect: what
#    training never showed, for sound is already $w_d = 0$.
# 3. With $p_1$ alone, as a good image does: the second chance then comes only to those that were called
#    good. So with $p_1$ instead of $1 - (1 - p_1)^2$.
# ````
