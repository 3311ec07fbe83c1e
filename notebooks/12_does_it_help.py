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
RUNS = 20  # @param {type:"integer"}
EPOCHS = 80  # @param {type:"integer"}

# %% tags=["hide-cell"]
import inspect
import json
import os

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown
from myst_nb import glue
from PIL import Image

from defectdiffu import DefectDiffuPipeline, viz
from defectdiffu.drawn.procedural import render
from defectdiffu.evaluation import downstream
from defectdiffu.evaluation.records import FOLDER
from defectdiffu.evaluation.statistics import bootstrap
from defectdiffu.evaluation.synthesis import Pictures, synthesise

FAST = FAST or os.environ.get("DEFECTDIFFU_FAST") == "1"
if FAST:  # small enough for a check on every change
    RUNS, EPOCHS = 4, 20
viz.use_style()

# %% [markdown]
# ## What is compared
#
# The paper trains a U-Net on the real pictures, and again with twice as many generated ones beside them, and reports
# that every product gains. It does not say what a *cheap* way to more pictures would give. Two are well known:
# **copy-paste** cuts a real defect out along its mask and sets it on a sound picture; **Perlin noise** blends
# another texture into a sound picture where a random cloud is dense, as DRAEM does. They cost nothing, so a generative
# model has to beat them.

# %% mystnb={"image": {"alt": "Pictures with masks: rows of real, copy-paste, Perlin noise and generated ones"}}
PRODUCT, DEFECT = "leather", "cut"
drawn = [render(PRODUCT, DEFECT, 0.7, seed, 64) for seed in range(4)]
sound = [render(PRODUCT, "good", 0, seed, 64) for seed in range(4, 8)]
real = Pictures(
    images=np.stack([d.image for d in drawn + sound]),
    masks=np.stack([d.mask for d in drawn + sound]),
    products=np.array([PRODUCT] * 8),
)
rows = {"real": (real.images[:4], real.masks[:4])}
for kind in ("copy_paste", "perlin"):
    made = synthesise(real, 4, kind, np.random.default_rng(0))
    rows[kind] = made.images, made.masks

pipe = DefectDiffuPipeline.from_pretrained(WEIGHTS)
pipe.set_progress_bar_config(disable=True)
out = pipe(PRODUCT, DEFECT, num_images=4, num_inference_steps=4 if FAST else 20)
rows["generated"] = out.images, out.masks


def with_mask(image, mask):
    image, mask = (
        p if isinstance(p, Image.Image) else Image.fromarray(p)
        for p in (image, mask)
    )
    return viz.overlay(viz.enlarge(image), viz.enlarge(mask))


viz.grid(
    [[with_mask(i, m) for i, m in zip(*row, strict=True)] for row in rows.values()],
    list(rows),
    inches=1.3,
)

# %% [markdown]
# On this page "real" means rendered: the generator has learned from other specimens of the same kind. Copy-paste has
# true defects in wrong places, Perlin noise has wrong defects with exact masks, the generator has new defects whose
# masks are its own opinion. A mask that is off teaches the detector to be off.
#
# ## A fair race
#
# `defectdiffu evaluate downstream` trains a U-Net, which marks the defect, and a ResNet-50, which tells defective from
# good, on each of the four sets. Everything but the set is the same: number of steps, batch size, start of the
# network, order of mirroring. Half of each batch is sound, and real; the other half has defects, and half of those are
# synthetic where the set has synthetic ones. So every set shows a detector equally many defects. The code that does
# it:

# %%
# NBVAL_CHECK_OUTPUT
print(inspect.getsource(downstream.shares))
flawed = np.array([True, False, False, False])
four = Pictures(
    np.zeros((4, 2, 2, 3), np.uint8),
    np.broadcast_to(flawed[:, None, None], (4, 2, 2)),
    np.array(["nut"] * 4),
)
two_of_them = Pictures(*(array[[0, 0]] for array in four))
for extra in (None, two_of_them):
    counts = [
        (rows.tolist(), count)
        for _, rows, count in downstream.shares(four, extra, 16)
    ]
    assert counts[0] == ([1, 2, 3], 8)  # sound
    assert sum(count for _, count in counts[1:]) == 8  # with a defect
    print(counts)

# %% [markdown]
# The verdict is a rule that was written down before any result. For test picture $i$ and training seed $s$, let
# $\Delta_{is}$ be the IoU of the detector trained with generated pairs minus that of the other. Then
#
# $$
# \begin{aligned}
# \text{it helps} \iff &\text{the 95 per cent interval of } \overline{\Delta}_{i}
# \text{ over pictures lies above } 0 \\
# &\text{and } \overline{\Delta}_{s} > 0 \text{ for every seed}
# \end{aligned}
# $$
#
# Otherwise it harms, by the same rule reversed, or one cannot tell.

# %%
print(inspect.getsource(downstream.verdict))

# %% [markdown]
# ## Trap one: the best epoch on the test pictures
#
# A common habit: evaluate on the test set after every epoch, report the best. It looks harmless. Here is what it does
# when there is *nothing to learn at all*: a small network gets pictures whose labels are coin tosses, and the
# test labels are coin tosses as well. The truth is 50 %.

# %% mystnb={"image": {"alt": "Test accuracy against the epoch, one line per run, with two means"}}
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
    np.arange(1, EPOCHS + 1), 100 * curves.T, color="grey", linewidth=0.6, alpha=0.7
)
for b, name, colour in ((last, "last epoch", 0), (best, "best epoch on test", 1)):
    axis.axhline(
        100 * b["mean"], color=viz.COLOURS[colour], label=f"mean of the {name}"
    )
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


assert (curves.max(1) >= curves[:, -1]).all()
glue("help_last", percent(last), display=False)
glue("help_best", percent(best), display=False)
glue("help_runs", RUNS, display=False)

# %% [markdown]
# Over {glue:text}`help_runs` runs (grey), the last epoch gives {glue:text}`help_last`, the best epoch
# {glue:text}`help_best`. Nothing was learned; the gap is the reward for peeking. The noisier a training is and the
# more often one looks, the larger it grows, so it does not even cancel when two methods are compared. Here every
# network is scored once, after its last step.
#
# ## Trap two: one seed
#
# The same curves hold a second lesson. Take the last epoch of each run: these differ by nothing but the seed.

# %%
spread = 100 * (curves[:, -1].max() - curves[:, -1].min())
print(
    f"least {100 * curves[:, -1].min():.0f} %, most {100 * curves[:, -1].max():.0f} %"
)

# %% tags=["remove-cell"]
glue("help_spread", f"{spread:.0f}", display=False)

# %% [markdown]
# Best and worst seed are {glue:text}`help_spread` points apart, with labels that mean nothing. A gain of a few
# points from one training each proves nothing; so there are at least three seeds, and all must agree.
#
# ## The race itself
#
# Training the detectors takes longer than a page should. Their results are kept as records, and read here.

# %% tags=["hide-input"]
records = {
    file.stem: json.loads(file.read_text())
    for file in sorted(FOLDER.glob("downstream*.json"))
}
COMMANDS = """\
defectdiffu data render runs/few --size 64 --products leather,wood,hazelnut
defectdiffu data render runs/test --size 64 --products leather,wood,hazelnut --per-pair 40 --seed 2
defectdiffu generate --weights tiny --product leather --defect cut --num 20 --out runs/generated   # and so on
defectdiffu evaluate downstream --generated runs/generated --real runs/few --test runs/test \\
  --json downstream.json --record record.json"""
if not records:
    print("Not run yet. The commands are\n" + COMMANDS)
for name, record in records.items():
    held = record["held_fixed"]
    counts = ", ".join(
        f"{k} {c['all']} ({c['with_defect']} with a defect)"
        for k, c in held["counts"].items()
    )
    print(
        f"{name}: {counts}; {held['size']} px, {held['steps']} steps, seeds {held['seeds']}"
    )
    print(f"  {record['hardware']}, {record['date']}")

# %% tags=["hide-input"]
lines = []
for name, record in records.items():
    for run in record["runs"]:
        for score, b in run["scores"].items():
            d = run.get("differences", {}).get(score)
            gap = (
                f"{d['mean']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})"
                if d
                else ""
            )
            lines.append(
                [
                    name,
                    run["name"],
                    score,
                    f"{b['mean']:.3f} ({b['low']:.3f} to {b['high']:.3f})",
                    gap,
                ]
            )
head = [
    "record",
    "detector, trained on",
    "score",
    "mean over seeds",
    "generated minus this",
]


def markdown_table(head, lines):
    table = [head, ["---"] * len(head), *lines]
    return Markdown(
        "\n".join("| " + " | ".join(line) + " |" for line in table)
        if lines
        else "*Not run yet: no table.*"
    )


markdown_table(head, lines)

# %% [markdown]
# The scores of the whole test set, as the paper has them: for the U-Net over all pixels of all pictures together, for
# the ResNet-50 over all pictures. Each is the mean over the seeds, in brackets the least and the most.

# %% tags=["hide-input"]
NAMES = {"iou": "IoU", "f1": "F1", "ap": "AP", "auroc": "AUROC"}
NAMES |= {"accuracy": "accuracy"}


def over_seeds(run, score):
    b = run["over_all"].get(score)
    if b is None:
        return ""
    return f"{b['mean']:.3f} ({min(b['seeds']):.3f} to {max(b['seeds']):.3f})"


markdown_table(
    ["record", "detector, trained on", *NAMES.values()],
    [
        [name, run["name"], *(over_seeds(run, score) for score in NAMES)]
        for name, record in records.items()
        for run in record["runs"]
    ],
)

# %% mystnb={"image": {"alt": "Scores, generated minus each other training set, with intervals"}} tags=["hide-input"]
figure = None
if lines:
    gaps = [
        (f"{name}: {run['name']}", score, d)
        for name, record in records.items()
        for run in record["runs"]
        for score, d in run.get("differences", {}).items()
    ]
    figure, axis = plt.subplots(
        figsize=(6, 0.8 + 0.32 * len(gaps)), layout="constrained"
    )
    axis.axvline(0, color="grey", linewidth=0.8)
    for row, (_, _, d) in enumerate(gaps):
        colour = (
            viz.COLOURS[0]
            if d["low"] > 0
            else viz.COLOURS[1]
            if d["high"] < 0
            else "grey"
        )
        axis.plot([d["low"], d["high"]], [row, row], color=colour)
        axis.plot(d["mean"], row, "o", color=colour, markersize=5)
    axis.set(
        yticks=range(len(gaps)),
        yticklabels=[f"{name} ({score})" for name, score, _ in gaps],
    )
    axis.set(
        xlabel="generated minus the other, 95 % interval",
        ylim=(len(gaps) - 0.5, -0.5),
    )
    plt.close(figure)
figure if figure else print("Not run yet: no figure.")

# %% tags=["hide-input"]
for name, record in records.items():
    for detector, said in record["verdicts"].items():
        print(f"{name}, {detector}:")
        for clause in said.split("; "):
            print(f"  {clause}")
if not records:
    print("Not run yet: no verdict.")

# %% [markdown]
# In the figure, where there are records, blue lies above zero (the generated pairs are better than that set), orange
# below, grey cannot be told from none. The first row of each detector, *real*, is the question "does it help?"; the
# others are "does it help more than what costs nothing?". The record `downstream` is of rendered products,
# `downstream_real` of photographs: bottles and pills of MVTec AD {cite}`bergmann2019mvtec` and magnetic tiles
# {cite}`huang2020magnetic`, five of each kind of defect to train the generator and the detectors on, the rest to test
# on.
#
# Both records were made before the sound half of a batch was set apart, and with weights that came before the shipped
# ones: beside synthetic pictures three quarters of a batch had a defect. That weighs alike on the three synthetic sets,
# so compare those with each other; the step from *real* may hold some of it.
#
# ## What would break this
#
# - **A test set that the generator has seen.** Here test pictures are other specimens. With real data the split comes
#   first, and the generator is trained on the training half alone.
# - **A detector that is already good.** Where ten pictures are enough, nothing can help. Where the detector has learned
#   nothing yet, anything that looks like a defect may help. Say how many real pictures there were.
# - **More defects in the batch.** Synthetic pictures all have a defect. Drawn half and half with the real ones, three
#   quarters of a batch would have one, without them one half, and a ResNet that learned from more defects suspects more
#   sound pictures. So the sound half of a batch is set apart first.
# - **Masks that are wrong.** Generated pairs with poor masks can lower the IoU and still raise the ResNet's accuracy,
#   since that one never sees a mask. So both are asked.
#
# ## Summary
#
# A detector trained with generated pairs has to beat one without, and the two cheap ways to more pictures. It is scored
# after its last step, over several seeds, picture by picture against its rivals. The verdict follows a rule, and
# "cannot tell" is one of its answers.
#
# ## Exercises
#
# 1. In trap one, evaluate only every tenth epoch. What happens to the best epoch's mean?
# 2. Double `TESTED`. Does the gap between best and last grow or shrink, and why?
# 3. Why are half of a batch's defects real and half synthetic, instead of drawing from all defects in one bag?
#
# ````{dropdown} Answers
# 1. It falls: fewer looks, fewer chances to be lucky. It stays above the last epoch's as long as there is more than one
#    look.
# 2. It shrinks. The accuracy over more pictures fluctuates less, about with the square root of their number, and the
#    best of many looks is only as far up as the fluctuations reach.
# 3. Twice as many synthetic pictures would otherwise make two thirds of the defects, and the set with more pictures
#    would train on fewer real ones. Half and half keeps the real share the same for all three.
# ````
