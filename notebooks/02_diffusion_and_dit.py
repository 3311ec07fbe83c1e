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
# **The question.** How does a network that is only ever asked "what noise is in this?" come to draw pictures? And how
# do you tell it *what* to draw?
#
# **Before you run it, predict.** Noise is added to a picture in 1000 small steps. At which step is the product no
# longer recognisable: 50, 150, 300, 900? Write your number down. A second guess: a diffusion model takes the noise
# away again in steps of its own. How many does it need for a picture as good as it can draw: 2, 10, 50, 1000?
#
# The paper builds on two ideas: *diffusion* (Eqs. 1 and 2), and a transformer called *DiT* that does the denoising.
# This page makes both by hand, small, and checks each piece against the package.

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
TOY_STEPS = 3000  # @param {type:"integer"}
NUM_IMAGES = 4  # @param {type:"integer"}

# %% tags=["hide-cell"]
import inspect
import math
import os
import time
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
)
from diffusers.models.embeddings import Timesteps
from matplotlib.patches import Rectangle
from myst_nb import glue
from PIL import Image
from torch import nn

from defectdiffu import (
    DefectDiffuPipeline,
    DefectDiffuTransformer,
    autoencoder,
    losses,
    model,
    viz,
)
from defectdiffu.drawn.procedural import render
from defectdiffu.guidance import guide
from defectdiffu.losses import picture_of
from defectdiffu.training.building import TRAIN_STEPS

FAST = FAST or os.environ.get("DEFECTDIFFU_FAST") == "1"
STEP_COUNTS = [2, 5, 10, 20, 50]
if FAST:  # small enough for a check on every change
    TOY_STEPS, NUM_IMAGES, STEP_COUNTS = 100, 2, [2, 5]
viz.use_style()
pipe = DefectDiffuPipeline.from_pretrained(WEIGHTS)
pipe.set_progress_bar_config(disable=True)

# %% [markdown]
# ## Adding noise
#
# The *forward process* has nothing to learn. Each step shrinks the picture a little and adds a little Gaussian noise
# (Eq. 1):
#
# $$
# q(x_t \mid x_{t-1}) = \mathcal{N}\!\left(x_t;\ \sqrt{1 - \beta_t}\, x_{t-1},\ \beta_t I\right)
# $$
#
# Shrinking multiplies up and independent Gaussian noises add up to one, so step $t$ is reached in a single jump.
# With $\bar\alpha_t = \prod_{s \le t} (1 - \beta_s)$ and one noise $\epsilon \sim \mathcal{N}(0, I)$,
#
# $$
# x_t = \sqrt{\bar\alpha_t}\; x_0 + \sqrt{1 - \bar\alpha_t}\; \epsilon .
# $$
#
# That is `add_noise` below: one line. It must agree with the scheduler that the package trains with.

# %%
scheduler = DDPMScheduler(TRAIN_STEPS)  # as in defectdiffu/training/denoiser.py
alpha_bar = torch.cumprod(1 - scheduler.betas, dim=0)  # (T,)


def add_noise(x_0, noise, t):
    a = alpha_bar[t].view(-1, *[1] * (x_0.ndim - 1))
    return a.sqrt() * x_0 + (1 - a).sqrt() * noise


x_0 = torch.randn(5, 8, 16, 16, generator=torch.Generator().manual_seed(0))
noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1))
t = torch.tensor([0, 1, 250, 500, 999])
difference = add_noise(x_0, noise, t) - scheduler.add_noise(x_0, noise, t)
assert difference.abs().max() < 1e-6

# %% [markdown]
# The model never sees pixels. An autoencoder first turns the picture into a smaller *latent*, and the noise is added
# there. Here is a picture that the package's renderer drew, noised at five steps: above, three channels of the latent
# as red, green and blue; below, the latent decoded back to a picture. Find the step that you wrote down.

# %% mystnb={"image": {"alt": "A latent and the same decoded, with more noise in each column"}} tags=["hide-input"]
TIMES = [0, 50, 150, 300, 900]
size = pipe.transformer.config.sample_size * autoencoder.downsampling(pipe.vae)
drawn = render(PRODUCT, DEFECT, strength=0.8, seed=0, size=size).image
picture = torch.from_numpy(drawn).permute(2, 0, 1)[None] / 127.5 - 1


def latent_as_colours(latent):
    """Three channels (C, H, W) as an image; two deviations either way fill it."""
    pixels = ((latent[:3] / 4 + 0.5).clamp(0, 1) * 255).byte()
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    return image.resize((192, 192), Image.Resampling.NEAREST)


@torch.no_grad()
def decoded(latents):
    """Latents (B, C, H, W) to a list of images."""
    pictures = (autoencoder.decode(pipe.vae, latents) + 1) * 127.5
    pictures = pictures.round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(p) for p in pictures]


with torch.no_grad():
    latent = autoencoder.encode(pipe.vae, picture)  # (1, C, H, W)
generator = torch.Generator().manual_seed(0)
noise = torch.randn(latent.shape, generator=generator)
noised = add_noise(latent.expand(5, -1, -1, -1), noise, torch.tensor(TIMES))
viz.grid(
    [[latent_as_colours(x) for x in noised], decoded(noised)],
    row_labels=["latent", "decoded"],
    column_labels=[f"t = {t}" for t in TIMES],
)

# %% [markdown]
# How much picture is left is one number, the *signal-to-noise ratio* $\bar\alpha_t / (1 - \bar\alpha_t)$, here in
# decibels (10 dB is a factor of ten). At 0 dB picture and noise are equally strong.

# %% mystnb={"image": {"alt": "Signal-to-noise ratio in decibels against the step t"}} tags=["hide-input"]
snr = 10 * torch.log10(alpha_bar / (1 - alpha_bar))
even = int((snr > 0).sum())  # first step with more noise than picture
figure, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
axis.plot(snr)
axis.plot(TIMES, snr[TIMES], "o", color=viz.COLOURS[1], label="drawn above")
axis.axhline(0, color="black", linewidth=0.8)
axis.axvline(even, color="black", linewidth=0.8, linestyle=":")
axis.annotate(f"as much noise as picture\nt = {even}", (even, 0), (even + 60, 14))
axis.set(xlabel="step t", ylabel="signal-to-noise (dB)")
axis.legend(loc="upper right")
plt.show()

# %% tags=["remove-cell"]
glue("dit_even", even, display=False)
glue("dit_train_steps", TRAIN_STEPS, display=False)
glue("dit_left", f"{math.sqrt(alpha_bar[-1]):.2g}", display=False)

# %% [markdown]
# From $t$ = {glue:text}`dit_even` on there is more noise than picture, and at the last of the
# {glue:text}`dit_train_steps` steps the picture's share $\sqrt{\bar\alpha_t}$ is {glue:text}`dit_left`: nothing is
# left, so sampling can start from pure noise.
#
# ## Learning to name the noise
#
# Now the only thing that is learned. Show the network $x_t$, the step $t$ and a condition $c$, and ask which noise was
# added (Eq. 2):
#
# $$
# \min_\theta L = \mathbb{E}_{x_t, \epsilon}
# \left[\, \lVert \epsilon - \epsilon_\theta(x_t, t, c) \rVert_2^2 \,\right]
# $$
#
# To see all of it at once, let a "picture" be a single point in the plane. The toy has two kinds: $c = 0$ is a point
# on the outline of a nut, $c = 1$ a point on a crack. The network is a few layers; time and condition are added to
# its first one.

# %%
CORNERS = torch.tensor([[-1.8, -1.0], [-0.6, 1.2], [0.6, -1.2], [1.8, 1.0]])


def toy_points(kind, generator):
    """Points (B, 2) of the given kinds (B,): 0 on the nut, 1 on the crack."""
    u = torch.rand(len(kind), generator=generator)
    angle = 2 * math.pi * u
    nut = torch.stack([1.6 * angle.cos(), 1.3 * angle.sin()], dim=1)
    place = u * (len(CORNERS) - 1)  # along the zigzag
    i = place.long()
    crack = torch.lerp(CORNERS[i], CORNERS[i + 1], (place - i)[:, None])
    blur = 0.03 * torch.randn(len(kind), 2, generator=generator)
    return torch.where(kind[:, None] == 1, crack, nut) + blur


class ToyDenoiser(nn.Module):
    """epsilon_theta: x (B, 2), t (B,), c (B,) -> the noise (B, 2)."""

    def __init__(self, width=128):
        super().__init__()
        self.point = nn.Linear(2, width)
        waves = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = nn.Sequential(waves, nn.Linear(width, width))
        self.kind = nn.Embedding(2, width)
        hidden = [(nn.SiLU(), nn.Linear(width, width)) for _ in range(3)]
        layers = [layer for pair in hidden for layer in pair]
        self.layers = nn.Sequential(*layers, nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x, t, c):
        return self.layers(self.point(x) + self.time(t) + self.kind(c))


# %% [markdown]
# The training loop is Eq. 2 read aloud: draw a picture, a step and a noise; mix; ask; compare.

# %%
torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)
toy = ToyDenoiser()
optimiser = torch.optim.AdamW(toy.parameters(), lr=2e-3)
decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, TOY_STEPS)

begin, history = time.perf_counter(), []
for _ in range(TOY_STEPS):
    c = torch.randint(2, (512,), generator=generator)
    x_0 = toy_points(c, generator)
    t = torch.randint(TRAIN_STEPS, (512,), generator=generator)
    noise = torch.randn(x_0.shape, generator=generator)

    predicted = toy(add_noise(x_0, noise, t), t, c)
    loss = (noise - predicted).square().mean()  # Eq. 2

    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    decay.step()
    history.append(loss.item())
toy_seconds = time.perf_counter() - begin

assert torch.equal(loss, losses.noise_loss(predicted, noise))

# %% tags=["remove-cell"]
last = np.mean(history[-100:])
glue("dit_toy_seconds", f"{toy_seconds:.0f}", display=False)
glue("dit_toy_steps", TOY_STEPS, display=False)
glue("dit_toy_loss", f"{last:.2f}", display=False)

# %% [markdown]
# It took {glue:text}`dit_toy_seconds` s for {glue:text}`dit_toy_steps` steps. The cell's last line checks that our
# loss *is* `noise_loss` of the package, to the bit:

# %%
print(inspect.getsource(losses.noise_loss))

# %% mystnb={"image": {"alt": "Loss of the toy network against the training step"}} tags=["hide-input"]
window = max(1, TOY_STEPS // 60)
smooth = np.convolve(history, np.ones(window) / window, mode="valid")
figure, axis = plt.subplots(figsize=(5, 2.3), layout="constrained")
axis.plot(history, color=viz.COLOURS[5], alpha=0.5, linewidth=0.5)
axis.plot(np.arange(len(smooth)) + window // 2, smooth)
axis.axhline(1, color="black", linestyle=":", linewidth=1)
axis.text(TOY_STEPS, 1.04, "answering 0 every time", ha="right")
axis.set(xlabel="training step", ylabel="loss (Eq. 2)", ylim=(0, 1.2))
plt.show()

# %% [markdown]
# Answering "no noise" would cost 1. The loss ends at {glue:text}`dit_toy_loss`, and it can never reach 0: near
# $t = 0$ the noise is too faint to be seen in $x_t$. So a falling loss is good news, but a small number is not the
# goal. The samples are.
#
# ## Walking back
#
# To sample, start from noise. At every step the named noise gives a guess of the clean picture, and from that guess
# we go to the next, less noisy step $t'$ with the *same* noise:
#
# $$
# \begin{aligned}
# \hat x_0 &= \frac{x_t - \sqrt{1 - \bar\alpha_t}\;\epsilon_\theta}{\sqrt{\bar\alpha_t}} \\
# x_{t'} &= \sqrt{\bar\alpha_{t'}}\;\hat x_0 + \sqrt{1 - \bar\alpha_{t'}}\;\epsilon_\theta
# \end{aligned}
# $$
#
# This is DDIM: from the same noise it always walks the same way. The package's pipeline takes any sampler of diffusers.
# The one it ships with cuts the path's corners less, and adds fresh noise at every step, which washes out part of what
# the steps before got wrong. That noise, too, comes from the picture's seed, so the same seed gives the same picture.


# %%
def reverse_step(x, noise, t, t_next):
    a = alpha_bar[t]
    a_next = alpha_bar[t_next] if t_next >= 0 else torch.ones(())  # clean
    x_0 = (x - (1 - a).sqrt() * noise) / a.sqrt()
    return a_next.sqrt() * x_0 + (1 - a_next).sqrt() * noise


ddim = DDIMScheduler(TRAIN_STEPS, clip_sample=False)
ddim.set_timesteps(50)
times = [*ddim.timesteps.tolist(), -1]


@torch.no_grad()
def walk_back(kind, number=600):
    """Every point's path from noise, (steps + 1, number, 2)."""
    x = torch.randn(number, 2, generator=torch.Generator().manual_seed(0))
    c = torch.full((number,), kind)
    path = [x]
    for t, t_next in pairwise(times):
        noise = toy(x, torch.full((number,), t), c)
        theirs = ddim.step(noise, t, x).prev_sample
        x = reverse_step(x, noise, t, t_next)
        assert torch.allclose(x, theirs, atol=1e-5)
        path.append(x)
    return torch.stack(path)


paths = [walk_back(kind) for kind in (0, 1)]

# %% mystnb={"image": {"alt": "Paths of points from noise to the toy's nut and to its crack"}} tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(5.4, 3), layout="constrained")
for kind, (axis, path) in enumerate(zip(axes, paths, strict=True)):
    true = toy_points(torch.full((3000,), kind), torch.Generator().manual_seed(9))
    axis.plot(*true.T, ".", color="0.85", markersize=3)
    axis.plot(
        *path[:, :80].permute(2, 0, 1), color=viz.COLOURS[0], lw=0.5, alpha=0.5
    )
    axis.plot(*path[0, :80].T, ".", color="0.45", markersize=3)
    axis.plot(*path[-1].T, ".", color=viz.COLOURS[1], markersize=2)
    axis.set(
        xlim=(-3.1, 3.1), ylim=(-3.1, 3.1), aspect="equal", xticks=[], yticks=[]
    )
    axis.set_title(["c = 0, the nut", "c = 1, the crack"][kind])
plt.show()

# %% tags=["remove-cell"]
near = []
for kind, path in enumerate(paths):
    true = toy_points(torch.full((3000,), kind), torch.Generator().manual_seed(9))
    near.append(
        (torch.cdist(path[-1], true).min(dim=1).values < 0.15).float().mean()
    )
glue("dit_near_nut", f"{100 * near[0]:.0f}", display=False)
glue("dit_near_crack", f"{100 * near[1]:.0f}", display=False)

# %% [markdown]
# Grey dots are noise, blue lines their way back, orange dots where they arrive; the true shape is pale grey. The
# noise is *the same* left and right: only the condition differs, and each point finds another way. Of the points,
# {glue:text}`dit_near_nut` % arrive within 0.15 of the nut and {glue:text}`dit_near_crack` % within 0.15 of the crack.
# The others are the toy's mistakes; look where they lie. A small network gives smooth answers, and what is thin or has
# sharp corners asks for more. Remember that when you look at thin defects.
#
# ## From points to pictures: patches
#
# The denoiser of the paper is a *DiT*, a transformer. It needs a list of vectors, so the latent is cut into patches,
# and each patch, flattened, becomes one *token* by one linear layer. A position code is added, because a transformer
# does not know where its tokens come from. By hand:

# %%
transformer = pipe.transformer
p, embed = transformer.config.patch_size, transformer.patch_embed

with torch.no_grad():
    patches = F.unfold(latent, p, stride=p).transpose(1, 2)  # (1, T, C * p * p)
    tokens = patches @ embed.proj.weight.flatten(1).T + embed.proj.bias
    tokens = tokens + embed.pos_embed  # (1, T, D)
    assert torch.allclose(tokens, embed(latent), atol=1e-5)

# %% mystnb={"image": {"alt": "Picture and latent cut in patches; tables of patches and tokens"}} tags=["hide-input"]
side = transformer.side
figure, axes = plt.subplots(2, 2, figsize=(5, 5.2), layout="constrained")
for axis, image, cells in (
    (axes[0, 0], Image.fromarray(drawn), size / side),
    (axes[0, 1], latent_as_colours(latent[0]), 192 / side),
):
    axis.imshow(image)
    edges = np.arange(1, side) * cells - 0.5
    axis.hlines(edges, -0.5, image.width - 0.5, color="white", linewidth=0.6)
    axis.vlines(edges, -0.5, image.width - 0.5, color="white", linewidth=0.6)
    place = (cells * (side // 2) - 0.5, cells * (side // 2) - 0.5)
    axis.add_patch(
        Rectangle(place, cells, cells, fill=False, color=viz.COLOURS[1], lw=2.5)
    )
    axis.set(xticks=[], yticks=[])
chosen = side * (side // 2) + side // 2
for axis, values in ((axes[1, 0], patches[0]), (axes[1, 1], tokens[0])):
    limit = values.abs().quantile(0.98)
    axis.imshow(values, aspect="auto", cmap="RdBu", vmin=-limit, vmax=limit)
    axis.axhline(chosen, color=viz.COLOURS[1], linewidth=1.5)
    axis.set(ylabel="token", xlabel="number in it")
channels, h, w = latent.shape[1:]
axes[0, 0].set_title(f"picture, {size} × {size} pixels")
axes[0, 1].set_title(f"latent, {h} × {w}, {channels} channels")
axes[1, 0].set_title(f"{side * side} patches of {p} × {p} × {channels} numbers")
axes[1, 1].set_title(f"{side * side} tokens, width {tokens.shape[-1]}")
plt.show()

# %% [markdown]
# The orange square is one token all the way: a patch of the picture, a patch of the latent, a row of either table. The
# streaks that repeat down the right table are the position code. At the end the model goes the same way back: a
# linear layer turns each token into a patch of the prediction, and the patches are laid side by side. In between,
# tokens exchange what they know by self-attention and, in these weights, with their neighbours by a small convolution
# inside the MLP.
#
# ## adaLN-Zero: how a condition gets in
#
# In the toy, time and condition were added once. A DiT lets them turn knobs in *every* block. The condition vector
# $c$ (time embedding plus text embedding) gives six vectors: a shift, a scale and a gate for self-attention, and the
# same for the MLP:
#
# $$
# \begin{aligned}
# h &\leftarrow h + g_1 \odot \mathrm{Attn}\big(\mathrm{LN}(h) \odot (1 + s_1) + b_1\big) \\
# h &\leftarrow h + g_2 \odot \mathrm{MLP}\big(\mathrm{LN}(h) \odot (1 + s_2) + b_2\big)
# \end{aligned}
# $$
#
# LN (layer norm) brings every token to mean 0 and variance 1 and has no parameters of its own: scale and shift come
# from the condition. That is *adaptive layer norm*, adaLN, and the knob itself is one line:

# %%
print(inspect.getsource(model.modulate))

# %% [markdown]
# Written out by hand, a block is three lines, and equals the package's `Block` on the shipped weights:


# %%
def norm(x):
    variance, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=0)
    return (x - mean) / (variance + 1e-6).sqrt()


def block_by_hand(block, h, c):
    b1, s1, g1, b2, s2, g2 = block.adaln(F.silu(c))[:, None].chunk(6, dim=-1)
    h = h + g1 * block.attn(norm(h) * (1 + s1) + b1)
    return h + g2 * block.mlp(norm(h) * (1 + s2) + b2)


conditions = pipe.encoder.conditions([PRODUCT], [DEFECT])
t = torch.tensor([500])
with torch.no_grad():
    c = transformer._embed_time(t) + transformer.product_proj(
        conditions.product.pooled
    )
    block = transformer.background_part[0]
    by_hand = block_by_hand(block, tokens, c)
    theirs, _ = block(tokens, c, conditions.product)
assert torch.allclose(by_hand, theirs, atol=1e-5)

# %% [markdown]
# **Predict.** The "Zero": in a new model the layer that makes the knobs is all zeros, so every gate is 0. What does
# such a block do to its tokens? And what does the whole new model predict?

# %%
# NBVAL_CHECK_OUTPUT
torch.manual_seed(0)
new = DefectDiffuTransformer.from_config(transformer.config)
h = torch.randn(2, side * side, new.config.width)
c = torch.randn(2, new.config.width)
prompt = pipe.encoder(["A photo of crack", "A photo of hole"])
parts = {
    "background": new.background_part,
    "defect": new.defect_part,
    "fusion": new.fusion_part,
}
with torch.no_grad():
    for name, part in parts.items():
        for i, block in enumerate(part, start=1):
            same = torch.equal(block(h, c, prompt)[0], h)
            assert same
            print(f"{name} block {i}: output equals input: {same}")
    out = new(latent, t, **vars(conditions))
print(f"largest noise that the new model names: {out.sample.abs().max():g}")

# %% [markdown]
# Every block starts as the identity, and the model starts by answering 0. Training opens the gates
# where they help. Nothing has to be unlearned first, which keeps the training of a deep stack calm. Here is how far the
# shipped weights have opened theirs, from the clean end ($t = 0$) to pure noise:

# %% mystnb={"image": {"alt": "Size of each block's gates by step t: self-attention and MLP"}} tags=["hide-input"]
steps = torch.arange(0, TRAIN_STEPS, 20)
projected = {
    "background": transformer.product_proj(conditions.product.pooled),
    "defect": transformer.defect_proj(conditions.defect.pooled),
    "fusion": transformer.fusion_proj(conditions.fusion.pooled),
}
labels, attention_gates, mlp_gates = [], [], []
with torch.no_grad():
    for name, text in projected.items():
        c = transformer._embed_time(steps) + text
        for i, block in enumerate(getattr(transformer, f"{name}_part"), start=1):
            knobs = block.adaln(F.silu(c)).chunk(6, dim=-1)
            labels.append(f"{name} {i}")
            attention_gates.append(knobs[2].abs().mean(dim=1))
            mlp_gates.append(knobs[5].abs().mean(dim=1))
gates = torch.stack([torch.stack(attention_gates), torch.stack(mlp_gates)])

figure, axes = plt.subplots(
    2, 1, figsize=(5, 4.6), layout="constrained", sharex=True
)
for axis, values, what in zip(axes, gates, ("self-attention", "MLP"), strict=True):
    shown = axis.imshow(
        values,
        aspect="auto",
        cmap="viridis",
        vmin=0,
        vmax=gates.max(),
        extent=(0, TRAIN_STEPS, len(labels), 0),
    )
    axis.set_yticks(np.arange(len(labels)) + 0.5, labels)
    axis.set_title(f"gates of {what}")
    axis.spines[:].set_visible(False)
axes[1].set_xlabel("step t")
figure.colorbar(shown, ax=axes, label="mean |gate|, 0 = closed")
plt.show()

# %% tags=["remove-cell"]
means = gates.mean(dim=(0, 2))
glue("dit_widest", labels[int(means.argmax())], display=False)
glue("dit_narrowest", labels[int(means.argmin())], display=False)
swing = gates.amax(2) / gates.amin(2)
place = int(swing.amax(0).argmax())
glue("dit_swing_block", labels[place], display=False)
glue("dit_swing", f"{swing.amax(0)[place]:.1f}", display=False)

# %% [markdown]
# On average over all steps, block *{glue:text}`dit_widest`* is open widest and *{glue:text}`dit_narrowest`* least.
# Read a row from left to right: a row that changes its colour works more at some noise levels than at others. The
# gates of *{glue:text}`dit_swing_block`* do so most, by a factor of {glue:text}`dit_swing`. What the three parts are
# for is the next chapter.
#
# ## Sampling with few steps, and with many
#
# Now the real thing. One thing differs from the toy: the shipped weights predict not the noise but the *velocity*,
# $v = \sqrt{\bar\alpha_t}\,\epsilon - \sqrt{1 - \bar\alpha_t}\,x_0$. With $x_t$ it determines the noise and the guess
# $\hat x_0 = \sqrt{\bar\alpha_t}\,x_t - \sqrt{1 - \bar\alpha_t}\,v$, so the walk back is the same. The slider shows it:
# left the noisy latent decoded, right what the model *guesses* the clean picture to be.

# %% tags=["hide-input"]
path, config = [], pipe.config


def watch(i, t, latents, branches):
    predicted, _ = guide(
        branches, config.guidance, config.w_p, torch.tensor(config.w_d)
    )
    path.append((int(t), latents.clone(), predicted))


out = pipe(PRODUCT, DEFECT, num_inference_steps=STEP_COUNTS[-1], callback=watch)
frames, values = [], []
for i in range(1, len(path), max(1, len(path) // 9)):
    x, (t, _, predicted) = path[i - 1][1], path[i]
    prediction = pipe.transformer.config.prediction
    guess = picture_of(prediction, predicted, x, alpha_bar[t])
    frames.append(
        viz.mosaic([[viz.enlarge(d) for d in decoded(torch.cat([x, guess]))]])
    )
    values.append(t)
frames.append(viz.mosaic([[viz.enlarge(out.images[0])] * 2]))
values.append(0)
viz.static_slider(
    frames,
    values,
    label="t",
    alt=f"{PRODUCT}, {DEFECT}; left the noisy latent decoded, right the guess;",
)

# %% [markdown]
# A guess made from the noise divides by $\sqrt{\bar\alpha_t}$, which is almost 0 at first, so a small error in the
# noise is a huge one in the guess. A guess made from the velocity divides by nothing: at first it is all but $-v$.
# Watch the right half: what stands first, and what comes last? Faint and fine things drown in the noise first on the
# way out, so on the way back they can be settled only at the end.
#
# Compare the second guess that you wrote down. Each row starts from one noise, with more and more steps to the right.
# Here the sampler adds no noise on its way. If it did, another number of steps would draw other noise and end in
# another picture, and one could not tell what the steps alone do.

# %% mystnb={"image": {"alt": "Generated pictures, one row per seed, more steps to the right"}} tags=["hide-input"]
columns, seconds = {}, {}
shipped = pipe.scheduler
pipe.scheduler = DPMSolverMultistepScheduler.from_config(
    shipped.config, algorithm_type="dpmsolver++"
)
for steps in STEP_COUNTS:
    begin = time.perf_counter()
    columns[steps] = pipe(
        PRODUCT, DEFECT, num_images=NUM_IMAGES, num_inference_steps=steps
    )
    seconds[steps] = (time.perf_counter() - begin) / NUM_IMAGES
pipe.scheduler = shipped
viz.grid(
    list(zip(*(out.images for out in columns.values()), strict=True)),
    row_labels=[f"seed {seed}" for seed in range(NUM_IMAGES)],
    column_labels=[f"{n} steps" for n in STEP_COUNTS],
)

# %% mystnb={"image": {"alt": "Change of the pictures and seconds each, against number of steps"}} tags=["hide-input"]
stacks = [np.stack(out.images).astype(float) for out in columns.values()]
apart = [np.abs(s - stacks[-1]).mean(axis=(1, 2, 3)) for s in stacks]
figure, axes = plt.subplots(1, 2, figsize=(5.4, 2.4), layout="constrained")
axes[0].plot(STEP_COUNTS, apart, "o-", color=viz.COLOURS[0], lw=1, markersize=4)
axes[0].set(ylabel=f"grey levels from {STEP_COUNTS[-1]} steps")
axes[1].plot(STEP_COUNTS, list(seconds.values()), "o-", color=viz.COLOURS[1])
axes[1].set(ylabel="seconds for a picture", ylim=(0, None))
for axis in axes:
    axis.set_xlabel("steps")
plt.show()

# %% tags=["remove-cell"]
glue("dit_few", STEP_COUNTS[0], display=False)
glue("dit_many", STEP_COUNTS[-1], display=False)
glue("dit_second_last", STEP_COUNTS[-2], display=False)
glue("dit_few_apart", f"{np.mean(apart[0]):.0f}", display=False)
glue("dit_second_apart", f"{np.mean(apart[-2]):.1f}", display=False)
glue("dit_many_seconds", f"{seconds[STEP_COUNTS[-1]]:.2f}", display=False)
glue("dit_few_seconds", f"{seconds[STEP_COUNTS[0]]:.2f}", display=False)

# %% [markdown]
# Each line on the left is a seed. With {glue:text}`dit_few` steps the pictures are on average
# {glue:text}`dit_few_apart` of 255 grey levels from those with {glue:text}`dit_many`; with
# {glue:text}`dit_second_last` steps {glue:text}`dit_second_apart`. The time grows with the steps, from
# {glue:text}`dit_few_seconds` s to {glue:text}`dit_many_seconds` s for a picture on the machine that made this page.
# In the pictures the nut and its colour stand first; the outline and the damage come with more steps. More steps
# follow the model's path more exactly. They do not make a better model.
#
# ## What would break this
#
# - **A schedule that leaves picture at the last step.** Training would see a trace of the picture in $x_T$, sampling
#   starts without it, and the brightness drifts to the middle.
# - **The wrong noise level.** Told a wrong $t$, the network takes out too much or too little. Training and sampling
#   must share $\bar\alpha_t$.
# - **Gates that start open.** At random, a new deep stack garbles its tokens before it has learned anything.
# - **A bad autoencoder.** The picture that it cannot give back, no denoiser can draw. Column $t = 0$ in the
#   first figure is the best that any of this can reach.
#
# ## Summary
#
# A network that names the noise can walk from noise to pictures, and its loss is one line. A DiT does this on tokens
# cut from a latent, and adaLN-Zero lets the condition turn shifts, scales and gates in every block, with every gate
# closed at first. Noising, loss, sampler step, tokens and block made by hand here equal the package's.
#
# ## Exercises
#
# 1. Iterate Eq. 1 for the toy, step by step from $x_0$ to $x_{999}$, and compare mean and variance of the result with
#    the one-jump formula.
# 2. Train the toy without telling it $c$ (pass zeros). Where do its points arrive?
# 3. Call `pipe(PRODUCT, DEFECT, num_inference_steps=1)`. What does a model draw that must guess everything at once?
#
# ````{dropdown} Answers
# 1. They agree: the factors $\sqrt{1 - \beta_t}$ multiply to $\sqrt{\bar\alpha_t}$, and the variances add up to
#    $1 - \bar\alpha_t$.
# 2. On both shapes, some here and some there: it has learned the mixture of both. A condition chooses among what the
#    model can draw.
# 3. With a perfect answer it would be the mean of all that could be drawn, moved by the guidance: from pure noise, the
#    best guess for a squared error is an average. Already the pictures of 2 steps are near to that, smooth nuts without
#    a crack. A network that predicts the noise would do worse here: its guess is divided by $\sqrt{\bar\alpha_t}$,
#    which blows up every error.
# ````
