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
# # Train it
#
# [![Open in Colab](../book/figures/open_in_colab.svg)](https://colab.research.google.com/github/defectdiffu/defectdiffu/blob/main/notebooks/07_train_it.ipynb)
#
# **The question.** What happens in one step of training, how do you see that a run goes well, and how long does it
# take on your machine?
#
# **Before you run it, predict.** A few-shot set has a hundred good pictures and a handful of defects. Which will
# stop improving first on pictures that were never trained on: the noise loss or the mask loss?

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
PRODUCTS = ["hazelnut", "tile"]  # @param
DEFECTS = ["crack", "contamination"]  # @param
PER_PAIR = 4  # @param {type:"integer"}
STEPS = 400  # @param {type:"integer"}
HAND_STEPS = 20  # @param {type:"integer"}
OUT = "runs/train_it"  # @param {type:"string"}

# %% tags=["hide-cell"]
import inspect
import json
import math
import os
import shutil
import subprocess
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from diffusers.utils.logging import set_verbosity_error
from IPython.display import Markdown
from IPython.utils.capture import capture_output
from myst_nb import glue
from PIL import Image
from torch.nn import Embedding
from torch.nn.functional import adaptive_max_pool2d
from torch.nn.utils import clip_grad_norm_

from defectdiffu import PRESETS, losses, viz
from defectdiffu.data.folder import read_folder
from defectdiffu.drawn.procedural import write_dataset
from defectdiffu.evaluation.records import read_record
from defectdiffu.machine import device_name, precision
from defectdiffu.pipeline import SHIPPED
from defectdiffu.training.building import build_pipeline, load_autoencoder
from defectdiffu.training.checkpoints import load_newest_checkpoint
from defectdiffu.training.denoiser import (
    Denoiser,
    conditions_told,
    denoising_step,
    draw_batch,
)
from defectdiffu.training.latents import Pictures, cached_latents
from defectdiffu.training.loop import build_accelerator, fit
from defectdiffu.training.planning import UTILISATION, matrix_rate
from defectdiffu.training.run import train
from defectdiffu.training.step import attention_kernel

FAST = FAST or os.environ.get("DEFECTDIFFU_FAST") == "1"
if FAST:  # small enough for a check on every change
    PER_PAIR, STEPS, HAND_STEPS = 1, 30, 10
viz.use_style()
set_verbosity_error()  # the autoencoder's config has a key that diffusers remarks on

# %% [markdown]
# ## A handful of pictures
#
# Drawn by the package, so that the page needs no download: a training folder, and a second one from other seeds that
# is never trained on, only watched. A folder of your own in the same layout works alike.

# %% mystnb={"image": {"alt": "Training pictures, masks laid over: one row per product, good and its defects"}}
out = Path(OUT)
shutil.rmtree(out, ignore_errors=True)
data, val = out / "data", out / "val"
with capture_output():  # leaves out the progress bars
    write_dataset(data, PRODUCTS, DEFECTS, PER_PAIR, size=64, seed=0)
    write_dataset(val, PRODUCTS, DEFECTS, per_pair=1, size=64, seed=1)

samples = read_folder(data)
defective = [s for s in samples if s.defect != "good"]
print(f"{len(samples) - len(defective)} good, {len(defective)} with a defect")

first = {(s.product, s.defect): s for s in reversed(samples)}
pairs = sorted(first)
pictures = [
    viz.overlay(Image.open(s.image), Image.open(s.mask))
    if s.mask
    else Image.open(s.image)
    for s in map(first.get, pairs)
]
rows = [[pictures[i] for i, (p, _) in enumerate(pairs) if p == q] for q in PRODUCTS]
viz.grid(rows, PRODUCTS, [d for p, d in pairs if p == PRODUCTS[0]])

# %% tags=["remove-cell"]
glue("train_good", len(samples) - len(defective), display=False)
glue("train_defective", len(defective), display=False)

# %% [markdown]
# ## A small preset
#
# The preset `tiny`, made smaller: a narrower transformer with one block of each kind, trained from random weights.
# The autoencoder is the shipped one; further down you see the curve of its own training. Whatever is
# not named here keeps the preset's value, and a misspelt name is an error. This chapter trains as the paper writes it:
# the noise is predicted, and the mask's loss has the same weight at every step. The shipped weights predict the
# velocity (chapter 2) and weight the mask's loss.

# %%
preset = PRESETS["tiny"].replace(
    start_from=None,
    autoencoder={"pretrained": "tiny"},
    text={"width": 32, "layers": 1, "heads": 2},
    model={
        "width": 96,
        "heads": 4,
        "background_blocks": 1,
        "defect_blocks": 1,
        "fusion_blocks": 1,
        "prediction": "noise",
        "convolution": False,
    },
    loss={"mask_weight": 1.0, "mask_by_signal": False},
    training={
        "steps": STEPS,
        "batch_size": 16 if FAST else 32,
        "learning_rate": 2e-3,
        "warmup_steps": 50,
        "ema_decay": 0.98,
        "p2": 0.2,
        "variants": 4,
        "checkpoint_every": max(10, STEPS // 4),
        "sample_every": max(10, STEPS // 8),
    },
    sampling={"num_inference_steps": 4 if FAST else 20},
)

# %% [markdown]
# ## Latents, once
#
# Encoding a picture is the same work in every epoch. So each picture is augmented a few times, its mask moved along
# with it, and both go through the autoencoder once. From here on a training example is three small tensors.

# %%
accelerator = build_accelerator(precision())  # finds the device
device = accelerator.device
vae = load_autoencoder("tiny").to(device).eval().requires_grad_(False)
with capture_output():
    latents = cached_latents(
        vae,
        Pictures.load(samples, preset.image_size),
        preset.training.variants,
        preset.training.seed,
        out / "cache",
        accelerator.autocast,
    ).to(device)

for name in ("image", "mask", "region"):
    print(
        f"{name:7}(picture, version, ...) = {tuple(getattr(latents, name).shape)}"
    )

# %% [markdown]
# ## The loop, by hand
#
# Everything that training is, in one cell. The objective is Eq. 11 of the paper,
#
# $$
# L = \lVert \hat\epsilon - \epsilon \rVert^2
# + R \, \lVert M \cdot (\hat\epsilon - \epsilon) \rVert^2
# + \lambda \lVert \hat m - m \rVert^2
# $$
#
# with the noise loss, the loss inside the defect, weighted by the attention ratio $R$ of chapter 6, and the loss of
# the mask's latent. The paper sets $\lambda$ to 0.2; the preset `tiny`, trained here, has 0.5 and weights the mask's
# loss by $\bar\alpha_t$, towards the steps at which the mask is read. In the package it is this function:

# %%
print(inspect.getsource(losses.total_loss))

# %% mystnb={"image": {"alt": "Four loss terms of one batch against the step"}}
SEED, BATCH = preset.training.seed, preset.training.batch_size
LR, P1, P2 = preset.training.learning_rate, preset.training.p1, preset.training.p2
WARMUP = HAND_STEPS // 10
trained_on = {p: [d for q, d in pairs if q == p and d != "good"] for p in PRODUCTS}

torch.manual_seed(SEED)
pipe = build_pipeline(preset, vae, trained_on).to(device)
model, encoder = pipe.transformer, pipe.encoder
weights = [*model.parameters(), *pipe.text_encoder.parameters()]
average = [w.detach().clone() for w in weights]
words = {
    id(e.weight) for e in pipe.text_encoder.modules() if isinstance(e, Embedding)
}
matrices = [w for w in weights if w.dim() > 1 and id(w) not in words]
others = [w for w in weights if w.dim() == 1 or id(w) in words]
optimizer = torch.optim.AdamW(
    [
        {"params": matrices, "weight_decay": preset.training.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ],
    LR,
    betas=(0.9, 0.99),
)
alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, device=device), 0)
is_good = np.array([d == "good" for d in latents.defects])
kinds = [np.flatnonzero(is_good), np.flatnonzero(~is_good)]

history = {"noise": [], "defect": [], "mask": [], "loss": []}
for step in range(HAND_STEPS):
    # 1. Draw a batch: good and defective alike often, each in one of its versions.
    # Everything follows from (seed, step), so a resumed run draws the same.
    rng = np.random.default_rng((SEED, 2, step))
    noise_rng = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
    kind, place = rng.integers(2, size=BATCH), rng.random(BATCH)
    i = [kinds[kind[n]][int(place[n] * len(kinds[kind[n]]))] for n in range(BATCH)]
    version = rng.integers(latents.image.shape[1], size=BATCH)
    x, mask, region = (
        getattr(latents, name)[i, version].float()
        for name in ("image", "mask", "region")
    )

    # 2. Algorithm 1: now and then drop the product, or call a defect good.
    products, defects = [], []
    for j in i:
        a, b, c = rng.random(3)
        drop = a < P1 or (not is_good[j] and c < P1)
        products.append(preset.model.null_product if drop else latents.products[j])
        defects.append("good" if b < P2 else latents.defects[j])

    # 3. Noise, Eq. 1.
    noise = torch.randn(x.shape, generator=noise_rng, device=device)
    t = torch.randint(1000, (BATCH,), generator=noise_rng, device=device)
    kept = alpha_bar[t].view(-1, 1, 1, 1)
    noisy = kept.sqrt() * x + (1 - kept).sqrt() * noise

    with accelerator.autocast(), attention_kernel(accelerator):
        # 4. What the transformer makes of it.
        conditions = encoder.conditions(products, defects)
        predicted = model(noisy, t, **vars(conditions))

        # 5. Eqs. 8 to 11.
        error = predicted.sample.float() - noise
        where = adaptive_max_pool2d(region, predicted.attention.shape[-2:])
        inside = (where * predicted.attention).sum((1, 2))
        outside = ((1 - where) * predicted.attention).sum((1, 2))
        ratio = (outside / (inside + preset.loss.alpha)).clamp(2, 8).detach()
        noise_term = error.square().mean()
        in_defect = (region[:, None] * error).square().mean((1, 2, 3))
        defect_term = (ratio * in_defect).mean()
        mask_term = (predicted.mask.float() - mask).square().mean()
        loss = noise_term + defect_term + preset.loss.mask_weight * mask_term
        loss.backward()

    # 6. AdamW, the learning rate up and then down a half cosine, gradients clipped.
    # Biases and the embeddings of words do not decay.
    rise = (step + 1) / max(1, WARMUP)
    fall = 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (HAND_STEPS - WARMUP)))
    for group in optimizer.param_groups:
        group["lr"] = LR * (rise if step < WARMUP else fall)
    clip_grad_norm_(weights, preset.training.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()

    # 7. The moving average of the weights, which is what one samples with.
    decay = min(preset.training.ema_decay, (1 + step) / (10 + step)) if step else 0
    for mean, w in zip(average, weights, strict=True):
        mean.lerp_(w.detach(), 1 - decay)
    for name, value in zip(
        history, (noise_term, defect_term, mask_term, loss), strict=True
    ):
        history[name].append(value.item())
    if step == 0:
        first_batch = {
            "x": x,
            "noise": noise,
            "t": t,
            "mask": mask,
            "region": region,
        }
        first_names = products, defects

figure, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
for name, values in history.items():
    axis.plot(range(1, HAND_STEPS + 1), values, label=name)
axis.set(xlabel="step", ylabel="loss (one batch)", ylim=0)
axis.xaxis.get_major_locator().set_params(integer=True)
axis.legend(ncols=4)
plt.close(figure)
figure

# %% [markdown]
# The model starts by predicting nothing at all, adaLN-Zero's start, so the first noise loss is the variance of the
# noise, about 1: here {glue:text}`train_first_noise`.
#
# Is it what the package does? `draw_batch` must draw the same batch, `Denoiser` must find the same loss terms, and
# `fit`, the package's loop, must arrive at the same weights. Not bit for bit: the package embeds all prompts of a run
# in one batch, so that a step handles numbers instead of names, and adds in another order.

# %%
# NBVAL_CHECK_OUTPUT
torch.manual_seed(SEED)
theirs = build_pipeline(preset, vae, trained_on).to(device)
told, numbers = conditions_told(latents, preset.model.null_product)
denoiser = Denoiser(theirs.transformer, theirs.encoder, told, preset).to(device)

batch = draw_batch(latents, numbers, preset, 0)
assert all(torch.equal(batch[name], ours) for name, ours in first_batch.items())
assert [told[n] for n in batch["pair"].tolist()] == list(
    zip(*first_names, strict=True)
)
print("the same first batch")

with torch.no_grad(), accelerator.autocast(), attention_kernel(accelerator):
    terms = denoiser(batch)
for name, ours in history.items():
    assert math.isclose(float(terms[name]), ours[0], rel_tol=1e-4), name
print("the same first losses")

(out / "by_package").mkdir()
with capture_output():
    fit(
        denoising_step(denoiser, preset, accelerator),
        lambda step: draw_batch(latents, numbers, preset, step),
        out / "by_package" / "checkpoints",
        steps=HAND_STEPS,
        learning_rate=LR,
        warmup_steps=preset.training.warmup_steps,
        ema_decay=preset.training.ema_decay,
        checkpoint_every=HAND_STEPS,
        label="transformer",
    )
if device.type == "cpu":  # a GPU may scale the losses
    saved, _ = load_newest_checkpoint(out / "by_package" / "checkpoints")
    for (name, mean), w, ours in zip(
        denoiser.named_parameters(), weights, average, strict=True
    ):
        close = {
            "atol": 1e-3,
            "rtol": 0,
        }  # the weights themselves moved by LR a step
        torch.testing.assert_close(w.detach(), saved[f"model.{name}"], **close)
        torch.testing.assert_close(ours, mean.detach(), **close)
print("the same weights and the same averages after the last step")

# %% tags=["remove-cell"]
glue("train_first_noise", f"{history['noise'][0]:.2f}", display=False)

# %% [markdown]
# ## A real short training
#
# One call: `train` reads the folders, fills the latent cache, trains, watches the second folder, draws a few samples
# now and then, and leaves a pipeline in `out`. The same from a shell, with a preset file:
#
# ```
# defectdiffu train --preset small.json --data data --val val --out run
# ```

# %% mystnb={"image": {"alt": "Held-out and batch loss against the step: noise, defect and mask"}}
begin = time.perf_counter()
with capture_output():
    run = train(preset, [data], out / "run", val)
seconds = time.perf_counter() - begin

log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
watched = [line for line in log if "val" in line]
TERMS = ("noise", "defect", "mask")


def curves(lines, title):
    """The held-out loss terms, each in its own panel: their sizes differ."""
    figure, axes = plt.subplots(1, 3, figsize=(6.4, 2.2), layout="constrained")
    for axis, name in zip(axes, TERMS, strict=True):
        steps = [line["step"] for line in lines]
        axis.plot(steps, [line[name] for line in lines], ".", color="0.7")
        axis.plot(steps, [line["val"][name] for line in lines], "o-")
        axis.set(title=name, xlabel="step", ylim=0)
    axes[0].set_ylabel("loss")
    figure.suptitle(title, fontsize=9)
    plt.close(figure)
    return figure


curves(watched, "line: held-out pictures; grey: the batch of that step")

# %% tags=["remove-cell"]
best = min(watched, key=lambda line: line["val"]["loss"])
rate = float(np.median([line["samples_per_second"] for line in log]))
glue("train_seconds", f"{seconds:.0f}", display=False)
glue("train_steps", STEPS, display=False)
glue("train_batch", BATCH, display=False)
glue("train_rate", f"{rate:.0f}", display=False)
glue("train_device", device_name(), display=False)
glue("train_best", best["step"], display=False)
for name in TERMS:
    change = watched[-1]["val"][name] / watched[0]["val"][name] - 1
    glue(f"train_change_{name}", f"{100 * change:+.0f}", display=False)

# %% [markdown]
# {glue:text}`train_steps` steps of {glue:text}`train_batch` pictures, at {glue:text}`train_rate` pictures per second,
# took {glue:text}`train_seconds` s in all on {glue:text}`train_device`, samples and encoding included.
#
# Read the line, not the grey dots. A batch's loss depends on the steps $t$ that it drew, and jumps. The held-out
# losses are always taken with the same noise and the same $t$. Nor do the two levels compare: half of a batch has a
# defect, while the held-out folder, like a real one, is mostly good. From the first to the last dot of the line they
# changed by {glue:text}`train_change_noise` % (noise), {glue:text}`train_change_defect` % (defect) and
# {glue:text}`train_change_mask` % (mask); their sum was lowest at step {glue:text}`train_best`. Which line
# flattens first? Compare with your prediction.

# %% mystnb={"image": {"alt": "Samples with masks, one row per step, one column per pair of names"}} tags=["hide-input"]
drawn = sorted((run / "samples").glob("*.png"))
shown = [drawn[0], drawn[len(drawn) // 2], drawn[-1]]
rows = []
for path in shown:
    sheet = Image.open(path)
    side = sheet.height // 2
    tiles = range(0, sheet.width, side)
    images = [sheet.crop((x, 0, x + side, side)) for x in tiles]
    masks = [sheet.crop((x, side, x + side, 2 * side)).convert("L") for x in tiles]
    rows.append([viz.overlay(a, b) for a, b in zip(images, masks, strict=True)])
defect_pairs = [pair for pair in pairs if pair[1] != "good"]
viz.grid(
    rows,
    [f"step {int(path.stem)}" for path in shown],
    [f"{p}\n{d}" for p, d in defect_pairs],
)

# %% [markdown]
# The samples that the run drew by itself, masks laid over where there are any. Do not expect defects from so little
# training: look whether the colours settle and the products come apart.
#
# ## The shipped weights' own curve
#
# The record of the run that made the weights of this book, read from `defectdiffu/weights/tiny/training.json`. First
# the autoencoder: what it cannot reconstruct no diffusion model can bring back. Then the transformer.

# %% mystnb={"image": {"alt": "Autoencoder on held-out pictures: PSNR and mask IoU against the step"}}
record = json.loads((SHIPPED / "tiny" / "training.json").read_text())
encoding = [line for line in record if line["stage"] == "autoencoder"]
denoising = [line for line in record if "val" in line]

figure, axes = plt.subplots(1, 2, figsize=(5.6, 2.2), layout="constrained")
for axis, name in zip(axes, ("psnr_db", "mask_iou"), strict=True):
    axis.plot([e["step"] for e in encoding], [e[name] for e in encoding], "o-")
    axis.set(xlabel="step", ylabel={"psnr_db": "PSNR (dB)"}.get(name, "mask IoU"))
figure.suptitle("autoencoder, on held-out pictures", fontsize=9)
plt.close(figure)
figure

# %% [markdown]
# The curve begins high, for this autoencoder does not begin from nothing. A patch of $4 \times 4$ pixels has 48
# numbers; the linear map to fewer that loses least is known in closed form: the patches' principal components. The
# first weights *are* that map (`begin_as_principal_components`), and training only adds what is not linear: edges that
# go on in the next patch, colours that tell a texture. The table says what that is worth; every row is shown to the
# same judge of drawn pictures. What it cannot name in the first row no generator can be blamed for.

# %% tags=["hide-input"]
kept = read_record("autoencoders")
SHOWN = {
    "psnr_db": "PSNR (dB)",
    "mask_kept": "IoU of masks",
    "defect_accuracy": "defect named",
    "judged_good": "good named good",
    "mask_iou": "IoU of the judge's mask",
}


def cell(run, score):
    b = run["scores"].get(score)
    return f"{b['mean']:.2f}" if b else ""


rows = [["pictures", *SHOWN.values()], ["---"] * (1 + len(SHOWN))]
for run in kept["runs"] if kept else []:
    rows.append([f"`{run['name']}`", *(cell(run, score) for score in SHOWN)])
Markdown("\n".join(f"| {' | '.join(row)} |" for row in rows))

# %% [markdown]
# ```{image} ../book/figures/autoencoders.webp
# :alt: A picture of each kind of defect as drawn, and below it through four autoencoders
# :width: 100%
# ```
#
# From above: as drawn; through the shipped autoencoder; through one like it with 12 channels instead of 8; through the
# one before, which halves the side twice instead of folding patches, began at random and learned for twice as many
# steps; and through TAESD, Stable Diffusion's small one, which has to do with an eighth of the numbers. The pool on the
# bottle's mouth, third from the right, shows the difference: the second and the third row have its colour, the fourth
# has not.
#
# More is not simply better, for every number that the latent keeps is one more that the transformer has to draw: after
# the same 1,000 steps its masks were worse with 12 channels than with 8 (`evaluation/records/latents.json`).

# %% mystnb={"image": {"alt": "Shipped weights' held-out and batch loss against the step: noise, defect, mask"}}
curves(denoising, "transformer; line: held-out pictures; grey: one batch")

# %% tags=["remove-cell"]
least = min(denoising, key=lambda line: line["val"]["loss"])
at_end = least is denoising[-1]
glue("ship_step", denoising[-1]["step"], display=False)
glue("ship_least", least["step"], display=False)
glue(
    "ship_verdict",
    "it was still falling at the end, so a longer run may have gained"
    if at_end
    else "after that the loss on pictures outside the training set rose again",
    display=False,
)
glue("ship_rate", f"{denoising[-1]['samples_per_second']:.0f}", display=False)

# %% [markdown]
# The lowest held-out sum was at step {glue:text}`ship_least` of {glue:text}`ship_step`:
# {glue:text}`ship_verdict`. A few-shot set is small enough to be learned by heart, and then the held-out losses rise;
# that is why the length of a run is chosen by these curves, and never by a test score.
#
# ## How long will it take?
#
# A transformer block costs, for each of $T$ tokens of width $D$, about $24 D^2 + 4 T D$ floating-point operations
# forward, and forward and backward together three times as many. `defectdiffu train --dry-run` does this arithmetic
# for your preset and your folder, and divides by {glue:text}`plan_share` of the rate that it measures for matrix
# products.

# %%
PEAK = {  # operations per second of matrix products, from the makers' data sheets
    "Colab T4 (half precision)": 65e12,
    "H100 SXM (bfloat16)": 989e12,
}


def operations(preset):
    """Floating-point operations of the transformer's whole training."""
    model, training = preset.model, preset.training
    blocks = model.background_blocks + model.defect_blocks + model.fusion_blocks
    tokens = (preset.latent_size // model.patch_size) ** 2
    forward = blocks * tokens * (24 * model.width**2 + 4 * tokens * model.width)
    return 3 * forward * training.batch_size * training.steps


here = matrix_rate()
rates = {f"here: {device_name()} (rate measured)": here} | PEAK


def span(seconds):
    units = {"years": 31_557_600, "days": 86_400, "h": 3600, "min": 60}
    for unit, length in units.items():
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"


lines = [["preset", "operations", *rates], ["---"] * (2 + len(rates))]
for name, p in {"this page's": preset, **PRESETS}.items():
    work = operations(p)
    times = [span(work / (UTILISATION * rate)) for rate in rates.values()]
    lines.append([name, f"{work:.1e}", *times])
Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines))

# %% tags=["remove-cell"]
spent = STEPS * BATCH / rate
glue("plan_share", UTILISATION, display=False)
glue("plan_here", f"{operations(preset) / (UTILISATION * here):.0f}", display=False)
glue("plan_measured", f"{spent:.0f}", display=False)
glue("plan_tflops", f"{here / 1e12:.2f}", display=False)

# %% [markdown]
# **These times are computed, not measured**, all but the rate of this machine ({glue:text}`plan_tflops` TFLOP/s),
# and they are for the transformer alone. One of them can be checked here: for this page's preset the arithmetic says
# {glue:text}`plan_here` s, the steps of the run above took {glue:text}`plan_measured` s. Small models do not fill a
# GPU: with `tiny` it may wait for the next instruction most of the time, and the computed times are lower bounds.
# `defectdiffu benchmark` measures yours. For comparison, the run that made the shipped weights reported
# {glue:text}`ship_rate` pictures per second, on the machine that their model card names.
#
# ## Kill it, and run the same command again
#
# A checkpoint is written under another name and then renamed, so it is whole or it is not there. It holds the
# weights, their average and the optimiser's state. Random numbers need not be saved: they follow from the seed and
# the step. So a run that was killed and resumed takes the same steps as one that never was. Here the process is
# killed without warning as soon as its first checkpoint is there.

# %%
short = preset.replace(
    training={"steps": 20, "checkpoint_every": 5, "sample_every": 1000}
)
with capture_output():
    train(short, [data], out / "once")

(out / "short.json").write_text(json.dumps(short.to_dict()))
command = [sys.executable, "-m", "defectdiffu.cli", "train"]
command += ["--preset", out / "short.json", "--data", data, "--out", out / "twice"]
process = subprocess.Popen(
    command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
)
while not list((out / "twice" / "checkpoints").glob("0*.safetensors")):
    assert process.poll() is None, "the run ended before its first checkpoint"
    time.sleep(0.02)
process.kill()
process.wait()
_, killed = load_newest_checkpoint(out / "twice" / "checkpoints")
print(f"killed; the newest checkpoint is that of step {killed['step']}")

# %%
with capture_output():  # the same settings and folder again: it resumes
    train(short, [data], out / "twice")

once, _ = load_newest_checkpoint(out / "once" / "checkpoints")
twice, _ = load_newest_checkpoint(out / "twice" / "checkpoints")
apart = max(float((once[k].float() - twice[k].float()).abs().max()) for k in once)
same = all(torch.equal(once[name], twice[name]) for name in once)
print(f"{len(once)} tensors: weights, averages, optimiser")
print(f"largest difference between the two runs: {apart:g}")
if device.type == "cpu":
    assert same, "on a CPU the two runs must be equal bit for bit"

# %% [markdown]
# On a CPU the two are equal bit for bit. A GPU may add sums in another order from run to run, and then they differ in
# the last digits.
#
# ## What would break this
#
# - **Random numbers that live in the process.** A generator that is not restored draws other pictures after a
#   restart, and the two runs part.
# - **Choosing the length by the test set.** The held-out pictures watched here are for that, and for nothing else.
# - **No averaging.** With the last step's weights the samples depend on the last few batches.
#
# ## Summary
#
# One step draws latents, drops conditions, adds noise, and takes three losses at once; the loop around it is AdamW
# and a moving average. Held-out losses with fixed noise tell how long to train; a batch's own loss does not. A run
# that is killed goes on as if nothing had happened, by the same command.
#
# ## Exercises
#
# 1. Set `training={"p1": 0.0}` in the preset. Which branch of `double_free` does the model then answer untrained?
# 2. Set `training={"ema_decay": 0.0}`. What happens to the samples from one grid to the next?
# 3. Double the batch and halve the steps. Does the held-out noise loss end lower or higher?
#
# ````{dropdown} Answers
# 1. Both branches without a product, $\epsilon(g, \varnothing)$ and $\epsilon(d, \varnothing)$: the null product's
#    word would never have been read in training, and what the model makes of it is left to chance.
# 2. They flicker: each grid shows the last few batches. The held-out curve becomes jagged, too.
# 3. Try it. The number of pictures is the same, the number of steps is not, and early in training steps count for
#    more.
# ````
