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
# # The adaptive attention-enhanced loss
#
# [![Open in Colab](../book/figures/open_in_colab.svg)](https://colab.research.google.com/github/defectdiffu/defectdiffu/blob/main/notebooks/06_adaptive_attention_loss.ipynb)
#
# **The question.** A scratch covers a sliver of its picture. Why should a network that minimises the mean error of a
# picture care about it at all?
#
# **Before you run it, predict.** The paper weights the defect's error by a ratio $R$ of attention: how much falls on
# sound regions for every unit on the defect, held between 2 and 8. For which defects is $R$ at its upper end, and is
# that because the network overlooks them, or because they are small?

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
SEEDS_PER_PAIR = 2  # @param {type:"integer"}

# %% tags=["hide-cell"]
import os

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.ticker import LogLocator
from myst_nb import glue
from PIL import Image

from defectdiffu import PRESETS, DefectDiffuPipeline, losses, viz
from defectdiffu.autoencoder import encode
from defectdiffu.drawn.procedural import render
from defectdiffu.evaluation.oracle import RENDERED_SEEDS
from defectdiffu.evaluation.records import read_record
from defectdiffu.evaluation.statistics import bootstrap
from defectdiffu.masks import resize_mask
from defectdiffu.pictures import to_tensor

FAST = FAST or os.environ.get("DEFECTDIFFU_FAST") == "1"
if FAST:  # small enough for a check on every change
    SEEDS_PER_PAIR = 1
PRODUCTS = 4 if FAST else None  # how many products the measurements take in
viz.use_style()


# %% [markdown]
# ## The error that nobody sees
#
# Eq. 2 is a mean over the whole picture. If the error is the same everywhere, a defect that covers a share $A$ of the
# picture has a share $A$ of the loss, and of the gradient. A network that leaves the scratch out and paints the rest
# well has nearly nothing to gain. The adaptive attention-enhanced loss (AAL) adds the defect's error once more,
# $R$ times:
#
# $$
# Rat = \frac{\sum_{i,j} (1 - mask)_{i,j} \cdot Map_{i,j}}{\sum_{i,j} mask_{i,j} \cdot Map_{i,j} + \alpha}
# \quad\text{(8)}
# \qquad
# R = \min(\max(Rat, 2), 8) \quad\text{(9)}
# $$
#
# $$
# loss_d = R\, \lVert mask \cdot (\epsilon_\theta - \epsilon) \rVert^2 \quad\text{(10)}
# \qquad
# loss = \lVert \epsilon_\theta - \epsilon \rVert^2 + loss_d + \lambda\, loss_m \quad\text{(11)}
# $$
#
# $Map$ is the mean of the defect blocks' attention maps (Eq. 7). Little attention on the defect makes a large $Rat$.
# The shipped weights predict the velocity (chapter 2); its error stands where these equations have the noise's. The
# lines of code that are these equations, in `defectdiffu/losses.py`:

# %%
viz.show_code(
    losses.attention_ratio,
    losses.clamp_ratio,
    losses.defect_loss,
    losses.total_loss,
)

# %% [markdown]
# ## By hand, on nine cells
#
# A map of three by three, one cell of which is the defect. The attention is even at first; then half of it moves to
# the defect.


# %%
# NBVAL_CHECK_OUTPUT
def rat(attention, mask, alpha=0.001):  # Eq. 8
    normal = np.sum((1 - mask) * attention)
    defect = np.sum(mask * attention)
    return normal / (defect + alpha)


def clamp(ratio):  # Eq. 9
    return 8.0 if ratio >= 8 else 2.0 if ratio <= 2 else ratio


mask = np.zeros((3, 3))
mask[1, 1] = 1
even = np.full((3, 3), 1 / 9)
keen = np.where(mask == 1, 1 / 2, 1 / 16)
for name, attention in {"even": even, "half on the defect": keen}.items():
    ratio = rat(attention, mask)
    print(f"{name:18}  Rat = {ratio:.2f}  R = {clamp(ratio):.2f}")
    ours = torch.tensor([rat(attention, mask), clamp(ratio)])
    tensors = torch.tensor(attention)[None], torch.tensor(mask)[None]
    theirs = losses.attention_ratio(*tensors)
    assert torch.allclose(ours[:1], theirs.to(ours.dtype))
    assert torch.allclose(ours[1:], losses.clamp_ratio(theirs).to(ours.dtype))

# %% [markdown]
# Even attention is worth a closer look. If the map is even and its sum is 1, a defect of area $A$ gets $A$ of the
# attention, so $Rat = (1 - A) / (A + \alpha)$: *only its area counts*. That is the yardstick for everything below. A
# network whose ratios lie on this curve pays the defect no more attention than the rest; one whose ratios lie below it
# does.
#
# ## On real batches
#
# We draw pictures with defects of many sizes, of every pair that the weights know, add noise up to step $t$ as
# training does, and take the network's attention. The mask is brought to the map's size by its maximum in each cell,
# so that a scratch thinner than a cell does not vanish.

# %%
pipe = DefectDiffuPipeline.from_pretrained(WEIGHTS)
config = pipe.transformer.config
abar = pipe.scheduler.alphas_cumprod

PAIRS = [
    (product, defect)
    for product in pipe.products[:PRODUCTS]
    for defect in pipe.pairs[product]
]
CASES = [(*pair, seed) for pair in PAIRS for seed in range(SEEDS_PER_PAIR)]
strengths = np.linspace(0.05, 1, 7)  # small to large, taken in turn
drawn = [
    render(product, defect, strengths[i % 7], RENDERED_SEEDS + seed, size=64)
    for i, (product, defect, seed) in enumerate(CASES)
]
areas = np.array([(d.mask > 0).mean() for d in drawn])
with torch.no_grad():
    clean = encode(pipe.vae, to_tensor(np.stack([d.image for d in drawn]), "cpu"))
    conditions = pipe.encoder.conditions(
        [p for p, _, _ in CASES], [d for _, d, _ in CASES]
    )
noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))

full = torch.from_numpy(np.stack([d.mask > 0 for d in drawn])).float()
region = resize_mask(full, clean.shape[-2:])  # at the latent's size, for Eq. 10
cells = resize_mask(full, (pipe.transformer.side,) * 2)  # at the map's, for Eq. 8
print(
    f"{len(drawn)} pictures; defects cover {100 * areas.min():.2f} % "
    f"to {100 * areas.max():.1f} % of them"
)


@torch.no_grad()
def ask(t):
    """What is predicted (B, C, H, W) and attention (B, h, w) at time step t."""
    x = abar[t].sqrt() * clean + (1 - abar[t]).sqrt() * noise
    out = pipe.transformer(x, torch.full((len(x),), t), **vars(conditions))
    return out.sample[:, : x.shape[1]], out.attention


TIMES = (100, 300, 500, 700, 900)
asked = {t: ask(t) for t in TIMES}
Rat = {t: losses.attention_ratio(asked[t][1], cells) for t in TIMES}

for t in TIMES:  # our Eqs. 8 and 9, picture by picture, against the package
    ours = [
        rat(*pair) for pair in zip(asked[t][1].numpy(), cells.numpy(), strict=True)
    ]
    assert np.allclose(ours, Rat[t], rtol=1e-4)
    assert np.allclose(
        [clamp(r) for r in ours], losses.clamp_ratio(Rat[t]), rtol=1e-4
    )

# %% mystnb={"image": {"alt": "Ratio of attention by size of defect, and by time step t"}} tags=["hide-input"]
share = cells.mean((1, 2)).numpy()  # what the defect covers of the map
figure, axes = plt.subplots(2, 1, figsize=(5.8, 5.4), layout="constrained")
curve = np.geomspace(share.min(), share.max(), 100)
axes[0].plot(
    curve, (1 - curve) / (curve + 0.001), color="0.4", label="even attention"
)
for t, colour in zip((100, 500, 900), viz.COLOURS, strict=False):
    axes[0].scatter(share, Rat[t], s=9, color=colour, label=f"t = {t}")
band = {"color": viz.COLOURS[4], "alpha": 0.15, "linewidth": 0}
axes[0].axhspan(2, 8, **band, label="2 to 8: R = Rat")
axes[0].set(
    xscale="log",
    yscale="log",
    xlabel="share of the map's cells that the defect touches",
    ylabel="Rat",
)
for axis in (axes[0].xaxis, axes[0].yaxis):
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")
axes[0].legend(loc="lower left")

below = {t: Rat[t].numpy() / ((1 - share) / (share + 0.001)) for t in TIMES}
thirds = np.quantile(share, (1 / 3, 2 / 3))
size = np.digitize(share, thirds)
for j, (name, colour) in enumerate(
    zip(("small", "middle", "large"), viz.COLOURS[2:], strict=False)
):
    stats = [bootstrap(below[t][size == j]) for t in TIMES]
    axes[1].plot(
        TIMES, [s["mean"] for s in stats], "o-", ms=3, color=colour, label=name
    )
    low, high = ([s[k] for s in stats] for k in ("low", "high"))
    axes[1].fill_between(TIMES, low, high, color=colour, alpha=0.15, linewidth=0)
axes[1].axhline(1, color="0.4")
axes[1].set(
    xlabel="noise added up to time step $t$",
    ylabel="Rat relative to\neven attention",
    ylim=(0, None),
)
axes[1].legend(title="defects, by size", ncols=3)
plt.show()

# %% tags=["remove-cell"]
R = {t: losses.clamp_ratio(Rat[t]) for t in TIMES}
values = torch.stack([Rat[t] for t in TIMES])
for name, part in (
    ("top", values >= 8),
    ("between", (values > 2) & (values < 8)),
    ("bottom", values <= 2),
):
    glue(f"aal_{name}", f"{100 * part.float().mean():.0f}", display=False)
relative = bootstrap(np.mean([below[t] for t in TIMES], axis=0))
glue(
    "aal_relative",
    f"{relative['mean']:.2f} ({relative['low']:.2f} to {relative['high']:.2f})",
    display=False,
)
glue(
    "aal_verdict",
    "the network does look at the defect, more than its area asks for"
    if relative["high"] < 1
    else "that the network looks at the defect more than its area asks for is not shown",
    display=False,
)
glue("aal_even", f"{100 / 9:.0f}", display=False)
glue("aal_even_low", f"{100 / 3:.0f}", display=False)

# %% [markdown]
# Each point is a picture at one step. In the upper figure distance *below* the curve is extra attention to the defect,
# distance above it attention that the defect misses; the lower figure shows that distance as a factor, with 1 for even
# attention, and its 95 % bootstrap interval. See if it is below 1 at any step. Averaged over the steps the ratio is
# {glue:text}`aal_relative` of what even attention would give: {glue:text}`aal_verdict`.
#
# The shaded band is where Eq. 9 leaves the ratio alone. In these pictures $R$ is 8 for {glue:text}`aal_top` % of
# pictures and steps, 2 for {glue:text}`aal_bottom` %, and adaptive for {glue:text}`aal_between` %. The curve says
# why: with even attention a defect below {glue:text}`aal_even` % of the cells is at the top, and only one above
# {glue:text}`aal_even_low` % at the bottom. So compare with your prediction. Small defects get $R = 8$ first of all
# because they are small; attention can pull them off that ceiling only by gathering on them.
#
# ## A small defect, with and without
#
# What does $R$ do to the defect's share of the loss? Without AAL that share is the error inside the mask over the
# error everywhere. With it, Eqs. 10 and 11 count the inside $1 + R$ times.

# %%
T = 500
predicted, attention = asked[T]
target = noise  # what the weights predict
if config.prediction == "velocity":
    target = losses.velocity(clean, noise, abar[T].view(1))
error = (predicted - target).square()
inside = (region[:, None] * error).sum((1, 2, 3))
everything = error.sum((1, 2, 3))

without = (inside / everything).numpy()
added = R[T] * inside
with_aal = ((inside + added) / (everything + added)).numpy()

# Eqs. 10 and 11 by hand, over the batch, against the package
ours = (everything.mean() + added.mean()) / error[0].numel()
terms = (
    losses.noise_loss(predicted, target),
    losses.defect_loss(predicted, target, region, R[T]),
    torch.tensor(0.0),  # the mask's loss has its own chapter
)
assert torch.allclose(ours, losses.total_loss(*terms))

# %% mystnb={"image": {"alt": "Share of the loss against the defect's area, with, without AAL"}} tags=["hide-input"]
occupied = region.mean((1, 2)).numpy()
figure, axis = plt.subplots(figsize=(5.8, 3.2), layout="constrained")
axis.plot(
    [0, occupied.max()], [0, occupied.max()], color="0.4", label="share = area"
)
axis.scatter(occupied, without, s=10, color=viz.COLOURS[0], label="without AAL")
axis.scatter(occupied, with_aal, s=10, color=viz.COLOURS[1], label="with AAL")
axis.set(
    xlabel="share of the latent that the defect covers",
    ylabel="share of the loss",
    xlim=(0, None),
    ylim=(0, 1),
)
axis.legend()
plt.show()

# %% tags=["remove-cell"]
smallest = occupied <= np.quantile(occupied, 1 / 3)
glue("aal_small_area", f"{100 * occupied[smallest].mean():.1f}", display=False)
glue("aal_small_without", f"{100 * without[smallest].mean():.0f}", display=False)
glue("aal_small_with", f"{100 * with_aal[smallest].mean():.0f}", display=False)
glue("aal_t", T, display=False)
over = bootstrap(without / occupied)
glue(
    "aal_over",
    f"{over['mean']:.2f} ({over['low']:.2f} to {over['high']:.2f})",
    display=False,
)
glue(
    "aal_over_verdict",
    "defects are predicted worse than the rest, so they have more than their area's share even before"
    if over["low"] > 1
    else "defects are predicted better than the rest, so they have less than their area's share before"
    if over["high"] < 1
    else "the error inside is not told apart from that outside",
    display=False,
)

# %% [markdown]
# At $t$ = {glue:text}`aal_t` the smallest third of the defects covers {glue:text}`aal_small_area` % of the latent and
# has {glue:text}`aal_small_without` % of the loss without AAL and {glue:text}`aal_small_with` % with it. Before any
# weighting, a defect's error per element is {glue:text}`aal_over` times the picture's mean:
# {glue:text}`aal_over_verdict`.
#
# ## The gradient on the predicted noise
#
# A loss acts through its gradient. By hand, with $n$ elements in the batch,
#
# $$
# \frac{\partial\, loss}{\partial\, \epsilon_\theta} = \frac{2}{n} (\epsilon_\theta - \epsilon)\,(1 + R \cdot mask),
# $$
#
# so inside the mask every error pulls $1 + R$ times as hard, and outside nothing changes. Autograd must say the same.

# %%
guess = predicted.clone().requires_grad_()
plain = torch.autograd.grad(losses.noise_loss(guess, target), guess)[0]
enhanced = torch.autograd.grad(
    losses.noise_loss(guess, target)
    + losses.defect_loss(guess, target, region, R[T]),
    guess,
)[0]

weight = 1 + R[T][:, None, None, None] * region[:, None]
by_hand = 2 / guess.numel() * (predicted - target) * weight
assert torch.allclose(enhanced, by_hand, atol=1e-9)

# %% mystnb={"image": {"alt": "Three defects: picture with mask, gradient without and with AAL"}} tags=["hide-input"]
order = np.argsort(occupied, kind="stable")
examples = order[
    [len(order) // 10, len(order) // 2, -len(order) // 10]
]  # by size alone
maps = {"without AAL": plain, "with AAL": enhanced}
figure, axes = plt.subplots(3, 3, figsize=(5.4, 5.2), layout="constrained")
for row, i in zip(axes, examples, strict=True):
    lengths = [g[i].norm(dim=0).numpy() * guess.numel() for g in maps.values()]
    image, mask = (viz.enlarge(Image.fromarray(p)) for p in drawn[i][:2])
    row[0].imshow(viz.overlay(image, mask))
    row[0].set_ylabel(f"{', '.join(CASES[i][:2])}\nR = {R[T][i]:.1f}")
    for axis, values in zip(row[1:], lengths, strict=True):
        shown = axis.imshow(values, cmap="viridis", vmin=0, vmax=lengths[1].max())
    figure.colorbar(shown, ax=row[1:], label="gradient length $\\times n$")
for axis, title in zip(axes[0], ("picture, true mask", *maps), strict=True):
    axis.set_title(title)
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
plt.show()

# %% [markdown]
# A small, a middling and a large defect, taken by rank of size alone. In the middle, how hard each place of the latent
# is pulled by the plain loss: as hard as it is wrong, wherever that is. To the right, on the same scale, with AAL: the
# same outside the mask, $1 + R$ times as much inside.
#
# ## May the gradient flow through R?
#
# $R$ is itself computed by the network. Let the gradient through, and the loss can fall in a second way: not by
# painting the defect better, but by moving attention so that $R$ gets smaller. The paper does not say; its released
# code lets it flow; here it is the setting `ratio_gradient`. Where it flows, it is
#
# $$
# \frac{\partial Rat}{\partial Map_{i,j}} = \frac{1 - mask_{i,j}}{D} - \frac{N\, mask_{i,j}}{D^2},
# \qquad N = \textstyle\sum (1 - mask) Map, \quad D = \sum mask\, Map + \alpha
# $$
#
# for $2 < Rat < 8$, and nothing beyond, for there $R$ is constant.

# %%
looked = attention.clone().requires_grad_()
ratio = losses.clamp_ratio(losses.attention_ratio(looked, cells))
through_ratio = torch.autograd.grad(ratio.sum(), looked)[0]

N = ((1 - cells) * attention).sum((1, 2), keepdim=True)
D = (cells * attention).sum((1, 2), keepdim=True) + 0.001
adaptive = ((N / D > 2) & (N / D < 8)).float()
by_hand = adaptive * ((1 - cells) / D - N * cells / D**2)
assert torch.allclose(through_ratio, by_hand, rtol=1e-3, atol=1e-5)

# %% mystnb={"image": {"alt": "Picture with mask, attention, and change of R with attention"}} tags=["hide-input"]
flows = np.flatnonzero(adaptive[:, 0, 0].numpy())
stays = np.flatnonzero(R[T].numpy() == 8)
examples = [v[len(v) // 2] for v in (flows, stays) if len(v)]
change = through_ratio * attention.mean(
    (1, 2), keepdim=True
)  # by one more even share
limit = max(1e-6, change[examples].abs().max().item())
figure, axes = plt.subplots(
    len(examples),
    3,
    figsize=(5.8, 1.9 * len(examples)),
    squeeze=False,
    layout="constrained",
)
for row, i in zip(axes, examples, strict=True):
    image, mask = (viz.enlarge(Image.fromarray(p)) for p in drawn[i][:2])
    row[0].imshow(viz.overlay(image, mask))
    row[0].set_ylabel(f"{', '.join(CASES[i][:2])}\nRat = {Rat[T][i]:.1f}")
    per_share = attention[i].numpy() / attention[i].mean().item()
    seen = row[1].imshow(per_share, cmap="viridis", vmin=0)
    figure.colorbar(seen, ax=row[1], shrink=0.9)
    values = change[i].numpy()
    pull = row[2].imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit)
    figure.colorbar(pull, ax=row[2], shrink=0.9)
titles = (
    "picture, true mask",
    "attention,\ntimes an even share",
    "change of R by\none more share",
)
for axis, title in zip(axes[0], titles, strict=True):
    axis.set_title(title)
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
plt.show()

# %% tags=["remove-cell"]
glue("aal_flows", len(flows), display=False)
glue("aal_count", len(CASES), display=False)
glue(
    "aal_default",
    "on" if PRESETS["tiny"].loss.ratio_gradient else "off",
    display=False,
)

# %% [markdown]
# Where the ratio is adaptive (first row, if there is one), more attention inside the mask lowers $R$ (blue), more
# outside raises it (red): the gradient gathers attention on the defect. Where $R$ stands at 8 it is zero everywhere,
# and these are mostly small defects, which would need it most. At this $t$ it flows for {glue:text}`aal_flows` of
# {glue:text}`aal_count` pictures. In the preset `tiny` it is {glue:text}`aal_default`.
#
# ## What alpha is for
#
# $\alpha$ keeps Eq. 8 from dividing by zero. A good picture has no mask, so $Rat = N / \alpha$: huge, but finite, and
# $R = 8$. It costs nothing, for Eq. 10 multiplies by the mask. Why then $\alpha$ at all? Take it away and look at the
# gradient.

# %%
# NBVAL_CHECK_OUTPUT
nothing = torch.zeros(1, 3, 3)
for alpha in (0.001, 0.0001, 0.0):
    looked = torch.full((1, 3, 3), 1 / 9, requires_grad=True)
    ratio = losses.attention_ratio(looked, nothing, alpha)
    unit = torch.ones(1, 1, 3, 3)
    loss = losses.defect_loss(unit, 0 * unit, nothing, losses.clamp_ratio(ratio))
    slope = torch.autograd.grad(loss, looked)[0]
    assert loss == 0
    print(
        f"alpha {alpha:6}  Rat {ratio.item():8.0f}  loss_d {loss.item():.0f}  "
        f"gradient {slope.abs().max().item():.0f}"
    )

# %% tags=["remove-cell"]
smaller = losses.clamp_ratio(losses.attention_ratio(attention, cells, 0.0001))
glue("aal_alpha", f"{(smaller - R[T]).abs().max():.3f}", display=False)

# %% [markdown]
# The loss is the same, 0, but without $\alpha$ its gradient is not a number, and one such picture spoils all weights.
# Its size matters little: the paper's 0.001 and the released code's 0.0001 give an $R$ that differs by at most
# {glue:text}`aal_alpha` over our defect pictures.
#
# ## Does it help? From the records
#
# Whether any of this makes better pictures is decided by training with and without it. The paper's ablation "w/o AAL"
# holds $R$ at 3. What has been run for this book, with the recipe of version 0.1.0, which predicts the noise:

# %% tags=["hide-input"]
runs = [
    (record["held_fixed"]["attention_over"], run)
    for record in map(read_record, ("ablations", "ablations_tokens"))
    if record
    for run in record["runs"]
]
for setting, meaning in {
    "fixed_ratio": "R held constant instead of Eq. 9",
    "ratio_gradient": "gradient through R",
    "mask_weight": "another lambda",
}.items():
    print(f"{meaning} ({setting}), minus the full model:")
    compared = [(a, r) for a, r in runs if setting in r["changes"].get("loss", {})]
    if not compared:
        print("  not run yet")
    for attention_over, run in compared:
        print(
            f"  {run['name']}, attention over {attention_over}, seed {run['seed']}"
        )
        for score in ("defect_noise", "mask", "defect_accuracy", "mask_iou"):
            d = run["differences"][score]
            print(
                f"    {score:16} {d['mean']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})"
            )

# %% tags=["remove-cell"]
flowing = [r for _, r in runs if "ratio_gradient" in r["changes"].get("loss", {})]
BETTER = {"defect_noise": -1, "defect_accuracy": 1, "mask_iou": 1}


def verdict(score):
    change = flowing[0]["differences"][score]
    low, high = sorted(BETTER[score] * change[end] for end in ("low", "high"))
    said = "worse" if high < 0 else "better" if low > 0 else "not told apart"
    return f"{said} ({change['mean']:+.3f})"


glue(
    "aal_flowing",
    ", ".join(
        f"{meaning} {verdict(score)}"
        for score, meaning in {
            "defect_noise": "noise inside defects",
            "defect_accuracy": "defects named by the judge",
            "mask_iou": "masks",
        }.items()
    )
    if flowing
    else "nothing has been measured yet",
    display=False,
)

# %% [markdown]
# `defect_noise` and `mask` are errors on held-out pictures, of the noise inside the defect and of the mask's latent:
# less is better. `defect_accuracy` and `mask_iou` are the judge's, of generated pictures: more is better. In brackets
# the 95 % interval, picture by picture. The chapter on ablations has the rest.
#
# What the gradient through $R$ changed in that run: {glue:text}`aal_flowing`. The presets leave it off.
#
# ## What would break this
#
# - **Maps that do not sum to 1.** With attention over tokens every position shares out its own unit, and a map's sum
#   can be anything. $Rat$, being a ratio, does not mind; $\alpha$ does: it should be small against the map's sum.
# - **Masks that are too wide.** $R$ strengthens whatever is inside. A generous mask strengthens sound texture.
# - **No upper bound.** With $R = Rat$ a defect of one cell in sixty-four would count some sixty times: the rest of the
#   picture would be sacrificed to it. Eq. 9 is there for that.
# - **The mean over all elements.** Eq. 10 could be read as a mean *inside* the mask; then a small defect would already
#   count as much as a large one, and $R$ would come on top.
#
# ## Summary
#
# A small defect has a small share of a mean error; AAL counts its error $1 + R$ times. $R$ is a ratio of attention
# held between 2 and 8; a defect below a ninth of the map has 8, unless attention gathers on it. The gradient inside
# the mask grows by that factor, and whether it may also flow through $R$ is a choice that the paper leaves open.
#
# ## Exercises
#
# 1. Solve $(1 - A) / A = 8$ and $(1 - A) / A = 2$. Between which areas is $R$ adaptive under even attention?
# 2. A network puts all its attention on the defect. What are $Rat$ and $R$? Is the defect's error still enhanced?
# 3. Suppose $R$ were 3 for every defect, the paper's "w/o AAL". Whose share of the loss would fall, whose would rise?
#
# ````{dropdown} Answers
# 1. $A = 1/9$ and $A = 1/3$: a defect must cover a ninth of the cells before even attention lets $R$ fall below 8.
# 2. $Rat$ is near 0 and $R$ is 2, its lower bound: the inside still counts three times.
# 3. That of small and overlooked defects falls, from $1 + 8$ to $1 + 3$ times; that of large or well attended ones
#    rises, from $1 + 2$.
# ````
