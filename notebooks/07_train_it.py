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
# **The question.** You have a product that no weights know, and ten pictures of each of its defects. What does training
# on them do, and how do you see that it is done?
#
# **Before you run it, predict.** The product below is new to the shipped weights `tiny`; its three defects they know
# from other products. What will come first: the colour, the defects, or masks that fit? And which of the losses will
# say so?

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
STEPS = 160  # @param {type:"integer"}
DEFECTS = ["crack", "hole", "contamination"]  # @param
PER_PAIR = 10  # @param {type:"integer"}
OUT = "runs/train_it"  # @param {type:"string"}

# %% tags=["hide-cell"]
import inspect
import json
import os
import shutil
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from diffusers.utils.logging import set_verbosity_error
from IPython.utils.capture import capture_output
from myst_nb import glue
from PIL import Image

from defectdiffu import PRESETS, DefectDiffuPipeline, losses, viz
from defectdiffu.config import load_preset
from defectdiffu.data.folder import read_folder
from defectdiffu.drawn.procedural import write_dataset
from defectdiffu.machine import precision
from defectdiffu.masks import resize_mask
from defectdiffu.training.building import build_pipeline
from defectdiffu.training.denoiser import Denoiser, conditions_told, draw_batch
from defectdiffu.training.latents import Pictures, cached_latents
from defectdiffu.training.loop import build_accelerator
from defectdiffu.training.run import train

FAST = FAST or os.environ.get("DEFECTDIFFU_FAST") == "1"
if FAST:  # small enough for a check on every change
    STEPS, DEFECTS, PER_PAIR = 8, DEFECTS[:1], 2
viz.use_style()
set_verbosity_error()  # the autoencoder's config has a key that diffusers remarks on
out = Path(OUT)
shutil.rmtree(out, ignore_errors=True)

# %% mystnb={"image": {"alt": "Green nuts: two without defects, and two of each defect with masks"}} tags=["hide-input"]


def write_olives(folder, per_pair, good, seed):
    """Rendered hazelnuts with red and green swapped, as a product of another name."""
    with capture_output():  # leaves out the progress bars
        write_dataset(folder, ["hazelnut"], DEFECTS, per_pair, 64, seed, good=good)
    (folder / "hazelnut").rename(folder / "olive")
    for sample in read_folder(folder):
        pixels = np.asarray(Image.open(sample.image).convert("RGB"))
        Image.fromarray(pixels[..., [1, 0, 2]]).save(sample.image)
    return read_folder(folder)


samples = write_olives(out / "data", PER_PAIR, good=4 * PER_PAIR, seed=0)
write_olives(out / "val", per_pair=3, good=9, seed=1)


def shown(defect, number):
    sample = [s for s in samples if s.defect == defect][number]
    image = viz.enlarge(Image.open(sample.image))
    if sample.mask is None:
        return image
    return viz.overlay(image, viz.enlarge(Image.open(sample.mask).convert("L")))


kinds = ["good", *DEFECTS]
viz.grid([[shown(kind, i) for kind in kinds] for i in range(2)], (), kinds, 1.4)

# %% [markdown]
# *Rendered nuts with red and green swapped. We call the product "olive". Columns: good, then three defects with the
# outline of their masks.* There are {glue:text}`train_good` good pictures and {glue:text}`train_each` of each defect,
# in folders of MVTec AD's layout. A second folder, from other seeds, is only watched, never trained on.
#
# ## A short run
#
# The preset `tiny` starts from the shipped weights. Only the schedule is ours, for a run as short as this:

# %%
training = {
    "steps": STEPS,
    "warmup_steps": STEPS // 8,
    "ema_decay": 0.98,  # an average over the last 50 steps
    "sample_every": STEPS // 8,
}
file = out / "olive.json"
file.write_text(json.dumps({"base": "tiny", "training": training}))
preset = load_preset(str(file))
begin = time.perf_counter()
with capture_output():
    run = train(preset, [out / "data"], out / "run", out / "val")
seconds = time.perf_counter() - begin

# %% mystnb={"image": {"alt": "Samples of the run, one row for each of four steps"}} tags=["hide-input"]
sheets = sorted((run / "samples").glob("*.png"))
sheets = [sheets[i] for i in (0, 2, -1)]
rows = []
for sheet in map(Image.open, sheets):
    side = sheet.height // 2
    row = []
    for x in range(0, sheet.width, side):
        image, mask = (sheet.crop((x, y, x + side, y + side)) for y in (0, side))
        image, mask = viz.enlarge(image), viz.enlarge(mask.convert("L"))
        row += [image, viz.overlay(image, mask)]
    rows.append(row)
defects = sorted(DEFECTS)
viz.grid(
    rows,
    [f"step {int(sheet.stem)}" for sheet in sheets],
    [text for defect in defects for text in (defect, "with mask")],
    inches=1,
)

# %% [markdown]
# *Samples that the run draws by itself, seeds 0 to 2; beside each the same with the outline of its mask.*
# {glue:text}`train_steps` steps of {glue:text}`train_batch` pictures took {glue:text}`train_seconds` seconds on the
# machine that made this page.
#
# The colour is there at the first look, and so are two holes, which these weights know from other products. By the end
# the nut is rounder. But the contamination is speckled over the whole nut, the crack is a few faint strokes, and the
# stripes and the rough cap have not been learned. The masks mark spots, not a crack. So a run this short teaches the
# product's colour and outline, not its surface.

# %% mystnb={"image": {"alt": "Three watched losses by step, relative to the first"}} tags=["hide-input", "plot"]
log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
log = [line for line in log if "val" in line]
TERMS = {
    "velocity": (r"$\Vert \hat v - v \Vert^2$", "black"),
    "defect": (r"$R\,\Vert mask \cdot (\hat v - v) \Vert^2$", viz.DEFECT),
    "mask": (r"$\Vert \hat m - m \Vert^2$", viz.COLOURS[3]),
}
at = np.array([line["step"] for line in log])
lowest = {}
figure, axis = plt.subplots(figsize=(5.6, 2.8), layout="constrained")
for name, (label, colour) in TERMS.items():
    values = np.array([line["val"][name] for line in log])
    values = 100 * values / values[0]
    lowest[name] = int(at[values.argmin()])
    axis.plot(at, values, "o-", ms=3, color=colour, label=label)
    axis.plot(lowest[name], values.min(), "o", ms=9, mfc="none", color=colour)
axis.set(xlabel="step", ylabel=f"watched loss (% of step {at[0]})")
axis.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
plt.close(figure)
figure

# %% [markdown]
# *The three losses on the watched folder; circles: the lowest value of each.*
#
# The error of the whole picture falls by {glue:text}`train_velocity` % and is lowest at step
# {glue:text}`train_lowest_velocity`. The error inside the defects is lowest at {glue:text}`train_lowest_defect` and
# then rises, as it does when the few pictures of defects are learned by heart. The mask's is lowest at
# {glue:text}`train_lowest_mask`. What is trained, their sum, is lowest at step **{glue:text}`train_best`**: there this
# run should have ended. The loss of a single batch shows none of this, for it depends on the $t$ that the batch drew.
# And the sum does not show that the nut still gets rounder ([chapter 2](02_diffusion_and_dit.ipynb) says why), so look
# at the samples, too.
#
# ## Eq. 11 is the sum

# %%
print(*inspect.getsource(losses.total_loss).splitlines()[-1:], sep="\n")

# %% [markdown]
# $$
# L = \lVert \hat v - v \rVert^2
# + \textcolor{#D55E00}{R\, \lVert mask \cdot (\hat v - v) \rVert^2}
# + \textcolor{#D55E00}{\lambda\, \lVert \hat m - m \rVert^2}
# $$
#
# $\hat v$ is the predicted velocity ([chapter 2](02_diffusion_and_dit.ipynb)), $R$ the ratio of [chapter
# 6](06_adaptive_attention_loss.ipynb), $\hat m$ the latent of the mask that the mask head predicts ([chapter
# 5](05_masks_from_attention.ipynb)). $\lambda$ is `mask_weight`: **{glue:text}`train_lambda`** in `tiny` and `book`,
# {glue:text}`train_lambda_paper` in the paper. These two presets also weight the mask's loss by $\bar\alpha_t$, towards
# the steps at which the mask is read. One step of training draws good and defective pictures alike often, drops names
# (Algorithm 1), adds noise and takes this loss. Here is the first batch by hand, against the package:

# %%
accelerator = build_accelerator(precision())
vae = DefectDiffuPipeline.from_pretrained("tiny").vae
with capture_output():
    pictures = Pictures.load(samples, preset.image_size)
    latents = cached_latents(
        vae,
        pictures,
        1,
        preset.training.seed,
        out / "by_hand",
        accelerator.autocast,
    )
told, numbers = conditions_told(latents, preset.model.null_product)
pipe = build_pipeline(preset, vae, {"olive": DEFECTS})
denoiser = Denoiser(pipe.transformer, pipe.encoder, told, preset)
batch = draw_batch(
    latents, numbers, preset, step=0
)  # Algorithm 1 has dropped names

abar = pipe.scheduler.alphas_cumprod
x, noise, t, m = (batch[name] for name in ("x", "noise", "t", "mask"))
a = abar[t].view(-1, 1, 1, 1)
with torch.no_grad():
    names = zip(*(told[i] for i in batch["pair"]), strict=True)
    conditions = pipe.encoder.conditions(*map(list, names))
    noisy = a.sqrt() * x + (1 - a).sqrt() * noise
    seen = pipe.transformer(noisy, t, **vars(conditions))

    error = seen.sample - (a.sqrt() * noise - (1 - a).sqrt() * x)  # of the velocity
    cells = resize_mask(batch["region"], seen.attention.shape[-2:])
    R = losses.clamp_ratio(losses.attention_ratio(seen.attention, cells))
    R = R.view(-1, 1, 1, 1)
    inside = R * (batch["region"][:, None] * error).square()
    of_mask = a / abar.mean() * (seen.mask - m).square()
    loss = error.square().mean() + inside.mean() + 0.5 * of_mask.mean()
    assert torch.isclose(loss, denoiser(batch)["loss"], rtol=1e-4)

# %% tags=["remove-cell"]
first, last = log[0]["val"], log[-1]["val"]
glue("train_good", sum(s.defect == "good" for s in samples), display=False)
glue("train_each", PER_PAIR, display=False)
glue("train_steps", STEPS, display=False)
glue("train_batch", preset.training.batch_size, display=False)
glue("train_seconds", f"{seconds:.0f}", display=False)
glue("train_lambda", f"{preset.loss.mask_weight:g}", display=False)
glue("train_lambda_paper", f"{PRESETS['paper'].loss.mask_weight:g}", display=False)
change = {name: 100 * (last[name] / first[name] - 1) for name in TERMS}
best = min(log, key=lambda line: line["val"]["loss"])["step"]
glue("train_best", best, display=False)
for name in TERMS:
    glue(f"train_{name}", f"{abs(change[name]):.0f}", display=False)
    glue(f"train_lowest_{name}", lowest[name], display=False)
if not FAST:
    assert -20 < change["velocity"] < -10 and -15 < change["mask"] < -5
    assert abs(change["defect"]) < 3
    assert lowest["defect"] < min(lowest["mask"], lowest["velocity"]) < STEPS
    assert lowest["defect"] <= best < STEPS

# %% [markdown]
# ## With your own data
#
# In a shell the run above is
#
# ```
# defectdiffu train --preset olive.json --data data --val val --out run
# ```
#
# and with a folder of yours this changes:
#
# - **The folder.** `MY_FOLDER/<product>/train/good`, `.../test/<defect>` and `.../ground_truth/<defect>`; `defectdiffu
#   data check MY_FOLDER` lists what is wrong. Large pictures with small defects are cut first, by `defectdiffu data
#   tile`.
# - **The names.** They are the folders' names. A word that the weights know, such as "crack", brings what they know; a
#   new word starts from nothing.
# - **The size.** `tiny` draws 64 pixels and can be trained on a laptop. For 256 pixels take `--preset book`, on a GPU.
# - **The length.** `--steps`, or `--minutes`; `--dry-run` says first what it would take. A run that was stopped goes on
#   by the same command.
#
# ## What would break this
#
# - **The length chosen by a test score.** The watched folder is for that, and nothing else.
# - **No good pictures.** Then nothing says what "good" looks like on this product, and $w_d$ has no zero.
# - **No average of the weights.** The samples are drawn by an average over the last steps. By the last step's own
#   weights they would follow the last few batches.
#
# ## Summary
#
# From weights that know the defects, a few steps teach a new product's colour and outline. The loss on a watched folder
# says when to stop: first the defects, then the masks, then the whole picture cease to improve. The loss is Eq. 11 with
# $\lambda$ = {glue:text}`train_lambda`.
#
# ## Exercises
#
# 1. What would change with $\lambda = 0$?
# 2. Ask the trained weights for `pipe("olive", "good")`. What should the mask be?
# 3. Train with `start_from=None`, from nothing. What do the samples show after the same number of steps?
#
# ````{dropdown} Answers
# 1. The pictures would be learned about as before. The mask head would never learn, and its masks would mean nothing.
# 2. Empty.
# 3. Noise, and at best a blur of the right colour: a model from nothing needs hours on a CPU, and [chapter
#    2](02_diffusion_and_dit.ipynb) says why a falling loss does not contradict that.
# ````
