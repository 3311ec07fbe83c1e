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
# # Diffusion and DiT in one page
#
# [![Open in Colab](../book/figures/open_in_colab.svg)](https://colab.research.google.com/github/defectdiffu/defectdiffu/blob/main/notebooks/02_diffusion_and_dit.ipynb)
#
# **The question.** How does a network draw that was only ever asked what is noise in a picture? And why can its loss
# fall while it has not learned to draw?
#
# **Before you run it, predict.** Below, three pictures come out of noise. What is settled first: the outline or the
# defect? And a bet: blind the network in the noisiest 300 of 1000 steps, so that there it answers "all of this is
# noise". Does the mean error of its noise rise by half, by a tenth, or by less than a hundredth?

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

# %% tags=["hide-cell"]
import inspect
import os
from functools import wraps

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from myst_nb import glue
from PIL import Image
from scipy.ndimage import gaussian_filter

from defectdiffu import DefectDiffuPipeline, losses, viz
from defectdiffu.autoencoder import decode, encode
from defectdiffu.drawn.procedural import render
from defectdiffu.evaluation.judge import Judge
from defectdiffu.evaluation.oracle import RENDERED_SEEDS
from defectdiffu.guidance import guide
from defectdiffu.model import Block
from defectdiffu.pictures import to_tensor, to_uint8

FAST = FAST or os.environ.get("DEFECTDIFFU_FAST") == "1"
PAIRS = [("hazelnut", "crack"), ("leather", "cut"), ("bottle", "broken")]
TIMES = [0, 20, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999]
PRODUCTS = ["hazelnut", "leather", "bottle", "tile", "capsule", "zipper"]
EACH = 3  # rendered pictures of each product
if FAST:  # small enough for a check on every change
    STEPS, PAIRS, PRODUCTS, EACH = 4, PAIRS[:1], ["tile"], 2
    TIMES = [0, 500, 700, 900]
torch.set_grad_enabled(False)
viz.use_style()
pipe = DefectDiffuPipeline.from_pretrained(WEIGHTS)
pipe.set_progress_bar_config(disable=True)
network, config = pipe.transformer, pipe.config
abar = pipe.scheduler.alphas_cumprod


def draw(callback=None):
    """The three pairs, each from seed 0."""
    products, defects = map(list, zip(*PAIRS, strict=True))
    asked = {"seeds": [0] * len(PAIRS), "num_inference_steps": STEPS}
    return pipe(products, defects, callback=callback, **asked).images


# %% [markdown]
# ## From noise to a picture

# %% tags=["hide-input"]
path = []


def remember(step, t, latents, branches):
    v, _ = guide(branches, config.guidance, config.w_p, torch.tensor(config.w_d))
    path.append((int(t), latents, v))


finished = draw(remember)
frames, values = [], []
for i in range(1, STEPS, 2):
    (_, x, _), (t, _, v) = path[i - 1], path[i]
    foreseen = losses.picture_of(network.config.prediction, v, x, abar[t])
    rows = [to_uint8(decode(pipe.vae, latents)) for latents in (x, foreseen)]
    shown = [[viz.enlarge(Image.fromarray(p), 240) for p in row] for row in rows]
    frames.append(viz.mosaic(shown))
    values.append(t)
viz.static_slider(
    frames,
    values,
    label="t",
    alt="Cracked hazelnut, cut leather, broken bottle; above noisy, below foreseen;",
    start=len(frames) // 2,
    ends=("noise", "picture"),
)

# %% [markdown]
# *Cracked hazelnut, cut leather, broken bottle, all from seed 0. Above the noisy latent, decoded; below the picture
# that the network foresees in it. Drag, or press play.*
#
# At $t = 949$ nothing can be seen above, and below there are pictures already: a red ball with wrinkles, an oval where
# leather should be, a whole bottle. At 749 the oval is gone, and the bottle has its notch, which belongs to its
# outline. Crack and cut come late: fine lines on the nut at 549, dark lines on nut and leather at 350. From 150 on only
# details change.
#
# ## One step back
#
# A picture $x_0$, here always a latent, gets the noise of $t$ steps in one jump (Eq. 1, multiplied up):
#
# $$
# x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon
# $$
#
# $\bar\alpha_t$, the share of the picture's variance that is left, falls from almost 1 to almost 0. The paper's network
# predicts the noise $\epsilon$. The shipped ones predict the *velocity* $v = \sqrt{\bar\alpha_t}\, \epsilon - \sqrt{1 -
# \bar\alpha_t}\, x_0$, from which noise and picture both follow. A step back foresees the picture, then adds the same
# noise again, but less of it. The sampler of these weights makes part of that noise afresh; without that it is DDIM,
# here by hand:


# %%
def add_noise(x_0, noise, t):  # Eq. 1, t steps at once
    return abar[t].sqrt() * x_0 + (1 - abar[t]).sqrt() * noise


def step_back(x, v, t, t_next):
    x_0 = abar[t].sqrt() * x - (1 - abar[t]).sqrt() * v  # the picture foreseen
    noise = abar[t].sqrt() * v + (1 - abar[t]).sqrt() * x
    return add_noise(x_0, noise, t_next)


x_0, noise = torch.randn(
    2, 1, 16, 32, 32, generator=torch.Generator().manual_seed(0)
)
t, a = torch.tensor([500]), abar[500:501]
x, v = add_noise(x_0, noise, t), losses.velocity(x_0, noise, a)
ddim = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="leading")
ddim.set_timesteps(10)  # 900, 800 and so on
assert torch.allclose(x, ddim.add_noise(x_0, noise, t))
assert torch.allclose(x_0, losses.picture_of("velocity", v, x, a), atol=1e-5)
theirs = ddim.step(0.9 * v, 500, x).prev_sample
assert torch.allclose(step_back(x, 0.9 * v, 500, 400), theirs, atol=1e-5)

# %% [markdown]
# ## Blind, and the loss does not notice
#
# Now the bet. Above a limit we replace what the network says by $v = 0$, "all of this is noise".

# %% mystnb={"image": {"alt": "Three pictures: as shipped, blind above 700, blind above 500"}} tags=["hide-input"]
LIMITS = [700, 500]


def blinded(step, above):
    """A scheduler's step that is told velocity 0, "all is noise", above a time step."""

    @wraps(step)
    def told(predicted, t, *others, **named):
        return step(predicted * (t <= above), t, *others, **named)

    return told


rows, step = [finished], pipe.scheduler.step
for above in LIMITS:
    pipe.scheduler.step = blinded(step, above)
    rows.append(draw())
pipe.scheduler.step = step
pixels = np.array([[np.asarray(image, float) for image in row] for row in rows])
viz.grid(
    rows,
    ["as shipped", *(f"blind above\nt = {above}" for above in LIMITS)],
    [", ".join(pair) for pair in PAIRS],
    inches=1.7,
)

# %% [markdown]
# *Seed 0 in every row.* Blind above 700, nut and leather are nearly unchanged, and the bottle is lost: a speckled
# surface like a stone tile, no white ground. Blind above 500, the nut is lost, too: its brown fills the picture. The
# leather survives, torn elsewhere, because late steps can draw a texture; a thing with an outline needs the early ones.
#
# What does the loss say? We add the noise of step $t$ to rendered pictures without defects, and measure two errors of
# the same answer: that of the noise, which Eq. 2 trains, and that of the picture foreseen.

# %% mystnb={"image": {"alt": "Errors of noise and picture against t, of three answers"}} tags=["hide-input", "plot"]
asked = [product for product in PRODUCTS for _ in range(EACH)]
drawn = [
    render(
        product, pipe.pairs[product][0], 0.7, RENDERED_SEEDS + i % EACH, 256
    ).normal
    for i, product in enumerate(asked)
]
clean = torch.cat([encode(pipe.vae, to_tensor(picture[None])) for picture in drawn])
noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
good = vars(pipe.encoder.conditions(asked, ["good"] * len(asked)))
# The error of a product's mean picture is the variance of its pictures
mean_error = float(clean.unflatten(0, (-1, EACH)).var(1).mean())


def errors(t):
    """Squared error of the noise and of the picture, of the network and of one that says v = 0."""
    x = add_noise(clean, noise, t)
    v = network(x, torch.full((len(x),), t), **good).sample
    found = []
    for said in (v, 0 * v):
        noise_error = losses.noise_of_velocity(said, x, abar[t]) - noise
        picture_error = losses.picture_of("velocity", said, x, abar[t]) - clean
        both = [e.square().mean() for e in (noise_error, picture_error)]
        off = said - losses.velocity(clean, noise, abar[t])
        assert torch.isclose(off.square().mean(), sum(both), rtol=1e-3)
        assert torch.isclose(both[1], both[0] * (1 - abar[t]) / abar[t], rtol=1e-2)
        found.append(both)
    return found


measured = np.array([errors(t) for t in TIMES])  # (times, network or blind, 2)
odds = ((1 - abar) / abar)[TIMES].numpy()
mean_errors = [mean_error / odds, np.full(len(TIMES), mean_error)]

figure, axes = plt.subplots(1, 2, figsize=(6.2, 2.9), layout="constrained")
for k, (axis, what) in enumerate(zip(axes, ("noise", "picture"), strict=True)):
    axis.plot(TIMES, measured[:, 1, k], "--", color="0.5", label="blind")
    axis.plot(TIMES, mean_errors[k], ":", color="black", label="the mean picture")
    axis.plot(TIMES, measured[:, 0, k], "o-", ms=3, color="black", label="shipped")
    axis.set(xlabel="step $t$", ylabel=f"error of the {what}", ylim=(0, 1.05))
axes[0].legend(loc="upper right")
plt.close(figure)
figure

# %% tags=["remove-cell"]
at = np.array(TIMES)
shipped, blind = measured[:, 0], measured[:, 1]  # (times, 2): noise and picture


def mean_over_steps(values, late=slice(None)):
    return np.trapezoid(values[late], at[late], axis=0) / at[-1]


loss = mean_over_steps(shipped)
risen = {above: mean_over_steps(blind - shipped, at >= above) for above in LIMITS}
late = TIMES.index(900)
glue("dit_loss", f"{loss[0]:.3f}", display=False)
glue("dit_700", f"{100 * risen[700][0] / loss[0]:.1f}", display=False)
glue("dit_500", f"{100 * risen[500][0] / loss[0]:.0f}", display=False)
velocity_700 = 100 * risen[700].sum() / loss.sum()
glue("dit_velocity_700", f"{velocity_700:.0f}", display=False)
glue("dit_amplified", f"{odds[late]:,.0f}", display=False)
glue("dit_blind_900", f"{blind[late, 0]:.5f}", display=False)
glue("dit_blind_picture_900", f"{blind[late, 1]:.2f}", display=False)
glue("dit_shipped_900", f"{shipped[late, 0]:.5f}", display=False)
glue("dit_even", int((abar > 0.5).sum()), display=False)
if not FAST:
    (nut, leather, bottle), (nut_500, *_) = abs(pixels[1:] - pixels[0]).mean(
        (2, 3, 4)
    )
    assert max(nut, leather) < 15 < 40 < bottle and nut_500 > 30
    assert 100 * risen[700][0] < loss[0] and 0.08 < risen[500][0] / loss[0] < 0.13
    assert 100 < velocity_700 < 200
    assert (shipped[:, 1] < mean_error).all() and shipped[-1, 1] > 0.9 * mean_error
    assert 0.9 < blind[late, 1] < 1.1 and 0.8 < clean.square().mean() < 1.2
    assert (blind[at >= 700, 0] < 0.01).all() and (blind[at >= 700, 1] > 0.9).all()
    # What the pictures of the blind networks are said to show
    flat = pixels.astype(np.uint8).reshape(-1, *pixels.shape[2:])
    seen = np.reshape(Judge.shipped(pipe.size)(flat).products, (3, 3))
    assert (seen[:2, 0] == "hazelnut").all() and (seen[:, 1] == "leather").all()
    assert (seen[:, 2] == ["bottle", "tile", "tile"]).all()
    corner = pixels[:, :, :32, :32].mean((2, 3, 4))
    assert corner[0, 2] > 240 > 150 > corner[1:, 2].max()
    assert corner[:2, 0].max() < 50 and corner[2, 0] > 70
    # What the slider is said to show in the pictures foreseen
    foreseen = np.stack([np.asarray(frame)[-256:].mean(-1) for frame in frames])
    nuts, leathers, bottles = (foreseen[..., i : i + 256] for i in (0, 260, 520))
    at_t = {t: i for i, t in enumerate(values)}
    oval = abs(leathers[:, 96:160, 40:100] - leathers[:, :64, :60]).mean((1, 2))
    assert oval[0] > 40 and oval[at_t[749]] < 10
    notch = (bottles[-1] > 200) & (bottles[0] <= 200)
    assert notch.sum() > 2000
    assert ((bottles[:, notch] > 200).mean(1)[at_t[749] :] > 0.8).all()
    lines = [  # how much darker than around them the darkest lines are
        [-np.percentile(p - gaussian_filter(p, 8), 0.3) for p in of]
        for of in (nuts[:, 60:200, 60:200], leathers)
    ]
    nut, leather = ({t: of[i] for t, i in at_t.items()} for of in lines)
    assert nut[949] > 10 > 8 > nut[749] and 10 < nut[549] < 25 < nut[350]
    assert leather[549] < 10 < 25 < leather[350]
    assert abs(foreseen[at_t[150]] - foreseen[-1]).mean() < 5

# %% [markdown]
# *Mean squared errors; the latents have a variance of about 1. Dashed: blind at every step. Dotted: an answer that
# always foresees the mean picture of its product.*
#
# On the left the lines meet: above $t = 700$ even the blind answer is nearly right about the noise, because noise is
# nearly all there is. On the right they are far apart. The shipped network is never worse than the mean picture, and
# ends there: a nut in the middle, of mean colour.
#
# So the bet: blind above 700, the mean error of the noise rises from {glue:text}`dit_loss` by **{glue:text}`dit_700`
# %**; above 500 by {glue:text}`dit_500` %.
#
# ## Why: one factor
#
# Noise and picture add up to $x_t$, so an error in one is an error in the other:
#
# $$
# \begin{aligned}
# \lVert \hat x_0 - x_0 \rVert^2 &= \frac{1 - \bar\alpha_t}{\bar\alpha_t}\, \lVert \hat\epsilon - \epsilon \rVert^2 \\
# \lVert \hat v - v \rVert^2 &= \lVert \hat x_0 - x_0 \rVert^2 + \lVert \hat\epsilon - \epsilon \rVert^2
# \end{aligned}
# $$
#
# At $t = 900$ the factor is {glue:text}`dit_amplified`. The blind answer's error of the noise,
# {glue:text}`dit_blind_900`, looks like nothing; times the factor it is {glue:text}`dit_blind_picture_900`, as large as
# the picture itself. The shipped network's error of the noise is {glue:text}`dit_shipped_900`.
#
# The second equation is the cure. The loss of the velocity is the sum of *both* errors, so neither can hide: blind
# above 700, it rises by {glue:text}`dit_velocity_700` %. So the shipped weights, which started from nothing, predict
# $v$. The paper starts from a network trained on a million pictures, and can go on with $\epsilon$. In the code:

# %%
viz.show_code(losses.picture_of_velocity)

# %% [markdown]
# ## Tokens and gates
#
# The network is a *DiT*, a transformer. It cuts the latent into squares, and turns each into a *token*, a list of
# numbers. Every block changes all tokens; $t$ and the prompt decide how much.

# %% mystnb={"image": {"alt": "Mean size of the gates of every block against the step"}} tags=["hide-input", "plot"]
conditions = pipe.encoder.conditions(["hazelnut"], ["crack"])
PARTS = {
    "background": (network.product_proj, conditions.product, viz.PRODUCT),
    "defect": (network.defect_proj, conditions.defect, viz.DEFECT),
    "fusion": (network.fusion_proj, conditions.fusion, viz.FUSION),
}
steps, opened = torch.arange(0, 1000, 20), {}
figure, axis = plt.subplots(figsize=(5.4, 2.7), layout="constrained")
for name, (project, prompt, colour) in PARTS.items():
    c = network._embed_time(steps) + project(prompt.pooled)
    for i, block in enumerate(getattr(network, f"{name}_part")):
        _, _, gate, *_ = block.adaln(F.silu(c)).chunk(6, dim=-1)
        opened[name, i] = gate.abs().mean(1)
        label = f"{name} part" if i == 0 else None
        axis.plot(steps, opened[name, i], color=colour, lw=1, label=label)
axis.set(xlabel="step $t$", ylabel="mean size of a gate", ylim=(0, None))
axis.legend()
plt.close(figure)
figure

# %% tags=["remove-cell"]
fusion = [gates for (name, _), gates in opened.items() if name == "fusion"]
others = [gates for (name, _), gates in opened.items() if name != "fusion"]
widest = [int(steps[gates.argmax()]) for gates in fusion]
glue("dit_widest", f"{min(widest)} and {max(widest)}", display=False)
if not FAST:
    assert (torch.stack(fusion).amin(0) > torch.stack(others).amax(0)).all()
    assert 500 < min(widest) < max(widest) < 750

# %% [markdown]
# *A line for each block, coloured by its part ([chapter 3](03_prompts_and_tdia.ipynb)): how far it opens the gates of
# its attention, asked for a cracked hazelnut.*
#
# The fusion blocks are open widest, most of all between $t$ = {glue:text}`dit_widest`, where the slider shows outlines
# settle. A block computes six vectors from its condition `c`, the embedding of $t$ plus that of the prompt: a shift, a
# scale and a gate for its attention, in which tokens look at each other, and for its MLP, which works on each alone:

# %%
lines = inspect.getsource(Block.forward).splitlines()
print(*(line.split("#")[0] for line in lines if "gate" in line), sep="\n")

# %% [markdown]
# This is *adaLN-Zero*. Zero, because in a new network every gate is 0: it passes its tokens on unchanged, and training
# opens the gates.
#
# ## What would break this
#
# - **The wrong $t$.** Told too small a $t$, the network leaves noise in; told too large a one, it takes detail for
#   noise.
# - **Trust in the loss alone.** Look at the picture foreseen at high noise, too.
# - **A bad autoencoder.** What it cannot decode, no network can draw.
#
# ## Summary
#
# To draw, go back step by step: foresee the picture, and add less noise than before. Outlines are settled early, where
# a loss on the noise is blind: to be wrong about everything there raises it by less than a hundredth. The loss of the
# velocity counts noise and picture, and sees it. The network works on tokens, and $t$ and the prompt open the gates of
# its blocks.
#
# ## Exercises
#
# 1. At which $t$ are the two errors equal?
# 2. At $t = 999$, why is the mean picture the best answer?
#
# ````{dropdown} Answers
# 1. Where $\bar\alpha_t = 1/2$, near $t$ = {glue:text}`dit_even`.
# 2. Nothing of the picture is left in $x_t$, so all pictures of the product are equally likely. The answer with the
#    least squared error is then their mean.
# ````
