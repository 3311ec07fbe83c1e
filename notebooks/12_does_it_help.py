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
# # Does it help a detector?
#
# [![Open in Colab](../book/figures/open_in_colab.svg)](https://colab.research.google.com/github/defectdiffu/defectdiffu/blob/main/notebooks/12_does_it_help.ipynb)
#
# **The question.** Generated pairs are a means to an end: a detector that finds more defects. Does one trained with
# them beat one trained without, and would a much cheaper trick have done as well?
#
# **Before you run it, predict.** You have ten real pictures of each defect. Next to them you put twice as many: cut
# from the real ones and pasted elsewhere, or noise blended in, or generated. Order the three by how much they help.

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
RUNS = 20  # @param {type:"integer"}
EPOCHS = 80  # @param {type:"integer"}

# %% tags=["hide-cell"]
import inspect
import os
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import torch
from myst_nb import glue
from PIL import Image

from defectdiffu import DefectDiffuPipeline, viz
from defectdiffu.drawn.procedural import render
from defectdiffu.evaluation import downstream
from defectdiffu.evaluation.records import read_record
from defectdiffu.evaluation.statistics import bootstrap
from defectdiffu.evaluation.synthesis import Pictures, synthesise

FAST = FAST or os.environ.get("DEFECTDIFFU_FAST") == "1"
if FAST:  # small enough for a check on every change
    RUNS, EPOCHS = 4, 20
viz.use_style()

# %% [markdown]
# ## Three ways to more pictures

# %% mystnb={"image": {"alt": "Cut leather with masks: real, pasted, noisy and generated"}} tags=["hide-input"]
PRODUCT, DEFECT, SIZE = "leather", "cut", 256
drawn = [render(PRODUCT, DEFECT, 0.7, seed, SIZE) for seed in range(4)]
good = [render(PRODUCT, "good", 0, seed, SIZE) for seed in range(4, 8)]
real = Pictures(
    images=np.stack([d.image for d in drawn + good]),
    masks=np.stack([d.mask for d in drawn + good]),
    products=np.array([PRODUCT] * 8),
)
rows = {"real": (real.images[:4], real.masks[:4])}
for kind, name in (("copy_paste", "copy-paste"), ("perlin", "Perlin noise")):
    made = synthesise(real, 4, kind, np.random.default_rng(0))
    rows[name] = made.images, made.masks

pipe = DefectDiffuPipeline.from_pretrained(WEIGHTS)
pipe.set_progress_bar_config(disable=True)
out = pipe(PRODUCT, DEFECT, num_images=4, num_inference_steps=2 if FAST else 20)
rows["generated"] = [np.stack(frames) for frames in (out.images, out.masks)]

viz.grid(
    [
        [viz.overlay(*map(Image.fromarray, p)) for p in zip(*row, strict=True)]
        for row in rows.values()
    ],
    list(rows),
    inches=1.3,
)

# %% [markdown]
# *Cut leather, from above: rendered specimens that stand for photographs, then the three kinds of synthetic pictures.
# Blue outlines: their masks.*
#
# Copy-paste sets true cuts in other places. Perlin noise makes wrong defects with exact masks. The generator makes new
# cuts, ragged and blurred, on leather that has lost its scales; their masks are its own opinion. On this page "real"
# means rendered: the generator has learned from other specimens of the same kind.
#
# ## The race
#
# A U-Net, which marks the defect, is trained on each set, and tested on specimens that neither it nor the generator has
# seen: leather, wood and hazelnut with {glue:text}`help_pairs` pairs of product and defect, ten real pictures of each.

# %% mystnb={"image": {"alt": "IoU of a U-Net trained on four sets, with intervals"}} tags=["hide-input", "plot"]
record = read_record("downstream")
SETS = {
    "real": "real alone",
    "copy_paste": "with copy-paste",
    "perlin": "with Perlin noise",
    "generated": "with generated pairs",
}
runs = {run["name"]: run for run in record["runs"]}

figure, axis = plt.subplots(figsize=(5.4, 1.9), layout="constrained")
for row, name in enumerate(SETS):
    b = runs[f"unet, {name}"]["scores"]["IoU"]
    colour = viz.DEFECT if name == "generated" else "0.35"
    axis.plot([b["low"], b["high"]], [row, row], color=colour)
    axis.plot(b["mean"], row, "o", color=colour)
axis.set(yticks=range(len(SETS)), yticklabels=SETS.values())
axis.set_xlabel("IoU of the U-Net's mask with the true one")
axis.invert_yaxis()
plt.close(figure)
figure

# %% tags=["remove-cell"]
held = record["held_fixed"]
for name in ("real", "generated", "test"):
    glue(f"help_{name}", held["counts"][name]["with_defect"], display=False)
glue("help_pairs", held["counts"]["real"]["with_defect"] // 10, display=False)
glue("help_steps", held["steps"], display=False)
glue("help_seeds", len(held["seeds"]), display=False)
gaps = {
    name: runs[f"unet, {name}"]["differences"]["IoU"]
    for name in ("real", "copy_paste", "perlin")
}
for name, d in gaps.items():
    text = f"{d['mean']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})"
    glue(f"help_gap_{name}", text, display=False)
    each = " ".join(f"{mean:+.3f}" for mean in d["seeds"])
    glue(f"help_each_{name}", each, display=False)
alone = runs["unet, real"]["scores"]["IoU"]["mean"]
glue("help_alone", f"{alone:.2f}", display=False)
for d in gaps.values():
    assert d["high"] < 0 and max(d["seeds"]) < 0
assert -0.025 < gaps["real"]["mean"] < -0.015
assert -0.015 < gaps["real"]["mean"] - gaps["perlin"]["mean"] < -0.005
assert abs(gaps["real"]["mean"] - gaps["copy_paste"]["mean"]) < 0.005

right = {n: runs[f"resnet50, {n}"]["scores"]["accuracy"] for n in SETS}
for name in SETS:
    glue(f"help_right_{name}", f"{100 * right[name]['mean']:.1f}", display=False)
d = runs["resnet50, real"]["differences"]["accuracy"]
text = f"{100 * d['mean']:+.1f} ({100 * d['low']:+.1f} to {100 * d['high']:+.1f})"
glue("help_right_gap", text, display=False)
assert -1 < 100 * d["mean"] < -0.6
glue(
    "help_right_each",
    " ".join(f"{100 * m:+.1f}" for m in d["seeds"]),
    display=False,
)
assert d["high"] < 0 and max(d["seeds"]) < 0
for name in ("copy_paste", "perlin"):
    d = runs[f"resnet50, {name}"]["differences"]["accuracy"]
    assert d["low"] < 0 < d["high"] and min(d["seeds"]) < 0 < max(d["seeds"])


# %% [markdown]
# *The mean over {glue:text}`help_seeds` trainings, with its 95 % interval over the {glue:text}`help_test` test pictures
# with a defect. 64 pixels.*
#
# Nothing that is put beside the real pictures helps: copy-paste is level with them, Perlin noise costs one hundredth of
# IoU, the generated pairs two. The intervals overlap because some pictures are hard for every U-Net; the table below
# compares picture by picture. By the rule that follows it the generated pairs **harm, a little**, against all three.
#
# Why no help? Ten rendered specimens of each pair already give an IoU of {glue:text}`help_alone`, so there is little to
# add, and a generated mask is right only in part ([chapter 11](11_how_good.ipynb)). Photographs vary more. Whether
# pairs help there, this race does not say.
#
# | generated minus | IoU | each seed |
# |---|---|---|
# | real alone | {glue:text}`help_gap_real` | {glue:text}`help_each_real` |
# | copy-paste | {glue:text}`help_gap_copy_paste` | {glue:text}`help_each_copy_paste` |
# | Perlin noise | {glue:text}`help_gap_perlin` | {glue:text}`help_each_perlin` |
#
# **A classifier.** A ResNet-50, which the paper trains too, never sees a mask: it only says whether there is a defect.
# It is right on {glue:text}`help_right_real` % of all test pictures with real ones alone,
# {glue:text}`help_right_copy_paste` % with copy-paste, {glue:text}`help_right_perlin` % with Perlin noise, and
# {glue:text}`help_right_generated` % with generated pairs. Generated minus real alone is {glue:text}`help_right_gap`
# points, by seed {glue:text}`help_right_each`: they harm. Against the other two one cannot tell.
#
# ## What makes the race fair
#
# Everything but the set is the same: {glue:text}`help_steps` steps, batches of 16, the start of the network, the order
# of mirroring. Half of a batch is defect-free and real. The other half has defects; with a synthetic set, half of these
# are synthetic. So each set shows a detector equally many defects.
#
# The verdict was a rule before there was a result. For test picture $i$ and training seed $s$, let $\Delta_{is}$ be the
# score with generated pairs minus that without. Then
#
# $$
# \begin{aligned}
# \text{it helps} \iff &\text{the 95 \% interval of } \overline{\Delta}_{i}
# \text{ over pictures lies above } 0 \\
# &\text{and } \overline{\Delta}_{s} > 0 \text{ for every seed}
# \end{aligned}
# $$

# %% tags=["hide-input"]
source = inspect.getsource(downstream.verdict).splitlines()
start = next(i for i, line in enumerate(source) if "low" in line)
print(textwrap.dedent("\n".join(source[start : start + 6])))

# %% [markdown]
# It harms by the same rule reversed. Otherwise one cannot tell.
#
# ## Two traps
#
# A common habit: evaluate on the test pictures after every epoch, and report the best. Here is what that does when
# there is *nothing to learn at all*. A small network gets pictures whose labels are coin tosses, and so are the labels
# of the test pictures. The truth is 50 %.

# %% mystnb={"image": {"alt": "Test accuracy by epoch, one line per run, with two means"}} tags=["hide-input", "plot"]
FEW, TESTED = 20, 40


def grey(seed):
    """A small grey picture of a specimen, as 256 numbers around 0."""
    image = render("wood", "good", 0, seed, 16).image
    return image.mean(-1).ravel() / 128 - 1


pictures = torch.tensor(np.stack([grey(s) for s in range(FEW + TESTED)])).float()
pictures = (pictures - pictures.mean(0)) / pictures.std(0)


def test_accuracy(seed, epochs):
    """Accuracy on the test pictures after every epoch, all labels being coin tosses."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (FEW + TESTED, 1), generator=generator).float()
    torch.manual_seed(seed)
    network = torch.nn.Sequential(
        torch.nn.Linear(256, 32),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.5),
        torch.nn.Linear(32, 1),
    )
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    curve = []
    for _ in range(epochs):
        network.train()
        for batch in torch.randperm(FEW, generator=generator).split(5):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                network(pictures[batch]), labels[batch]
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            network.eval()
            guessed = network(pictures[FEW:]) > 0
        curve.append(float((guessed == (labels[FEW:] > 0)).float().mean()))
    return curve


curves = np.array([test_accuracy(seed, EPOCHS) for seed in range(RUNS)])
last, best = bootstrap(curves[:, -1]), bootstrap(curves.max(1))

figure, axis = plt.subplots(figsize=(6, 2.6), layout="constrained")
axis.plot(
    np.arange(1, EPOCHS + 1), 100 * curves.T, color="0.6", linewidth=0.6, alpha=0.7
)
for b, name, colour in (
    (last, "last epoch", viz.PRODUCT),
    (best, "best epoch on test", viz.DEFECT),
):
    axis.axhline(100 * b["mean"], color=colour, label=f"mean of the {name}")
axis.axhline(50, color="black", linestyle=":", label="the truth")
axis.set(xlabel="epoch", ylabel="test accuracy, %")
axis.legend(
    loc="upper center", bbox_to_anchor=(0.5, 1.3), ncols=3, handlelength=1.2
)
axis.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
plt.close(figure)
figure


# %% tags=["remove-cell"]
def percent(b):
    return (
        f"{100 * b['mean']:.0f} % ({100 * b['low']:.0f} to {100 * b['high']:.0f})"
    )


glue("help_last", percent(last), display=False)
glue("help_best", percent(best), display=False)
glue("help_runs", RUNS, display=False)
glue("help_least", f"{100 * curves[:, -1].min():.0f}", display=False)
glue("help_most", f"{100 * curves[:, -1].max():.0f}", display=False)
if not FAST:
    assert best["low"] > 0.5 > last["low"] and last["high"] > 0.5
    assert np.ptp(curves[:, -1]) > 0.15

# %% [markdown]
# *Grey: {glue:text}`help_runs` runs that differ by the seed alone.*
#
# **The best epoch.** The last epoch gives {glue:text}`help_last`, the best {glue:text}`help_best`. Nothing was learned:
# the gap is the reward for peeking. The noisier a training is, the larger the gap, so it does not even cancel when two
# methods are compared. In the race each network is scored once, after its last step.
#
# **One seed.** After the last epoch the worst run has {glue:text}`help_least` %, the best {glue:text}`help_most` %. A
# gain of a few points from one training each proves nothing. So there are {glue:text}`help_seeds` seeds, and all must
# agree.
#
# ## What would break this
#
# - **A test set that the generator has seen.** Here test pictures are other specimens. With photographs the split comes
#   first, and the generator is trained on the training half alone.
# - **A detector that is already good, or still blind.** Where ten pictures are enough, nothing can help. Where they
#   teach nothing yet, anything that looks like a defect may. Say how many real pictures there were.
# - **More defects in the batch.** Synthetic pictures all have a defect. A detector that sees more defects suspects more
#   good pictures.
# - **Masks that are wrong.** A mask that is off teaches the detector to be off. A classifier does not see it.
#
# ## Summary
#
# Here synthetic pictures do not help: generated pairs cost a U-Net two hundredths of IoU and a classifier a little less
# than a point, copy-paste costs the U-Net nothing. The race is fair because every set shows the detector equally many
# defects. The verdict follows a rule over several seeds, and "cannot tell" is one of its answers.
#
# ## Exercises
#
# 1. In the trap, evaluate only every tenth epoch. What happens to the best epoch's mean?
# 2. Double `TESTED`. Does the gap between best and last grow or shrink, and why?
# 3. Why are half of a batch's defects real and half synthetic, instead of drawn from all defects in one bag?
#
# ````{dropdown} Answers
# 1. It falls: fewer looks, fewer chances to be lucky. It stays above the last epoch's as long as there is more than one
#    look.
# 2. It shrinks. The accuracy over more pictures fluctuates less, about with the square root of their number, and the
#    best of many looks is only as far up as the fluctuations reach.
# 3. Twice as many synthetic pictures would otherwise make two thirds of the defects, and the set with more pictures
#    would train on fewer real ones. Half and half keeps the real share the same for all three.
# ````
