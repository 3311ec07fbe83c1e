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
PRODUCT, DEFECT = "hazelnut", "crack"
STEPS = 20  # @param {type:"integer"}

# %% tags=["hide-cell"]
import io
import os

import matplotlib.pyplot as plt
import numpy as np
import torch
from myst_nb import glue
from PIL import Image
from scipy.ndimage import label
from skimage.filters import threshold_isodata

from defectdiffu import DefectDiffuPipeline, masks, viz
from defectdiffu.autoencoder import decode, encode
from defectdiffu.drawn.procedural import render
from defectdiffu.evaluation.judge import Judge
from defectdiffu.evaluation.masks import iou_per_picture
from defectdiffu.evaluation.oracle import RENDERED_SEEDS
from defectdiffu.evaluation.statistics import bootstrap
from defectdiffu.guidance import GUIDANCES, guide
from defectdiffu.losses import picture_of
from defectdiffu.model import MaskHead
from defectdiffu.pictures import to_tensor, to_uint8

FAST = FAST or os.environ.get("DEFECTDIFFU_FAST") == "1"
if FAST:  # small enough for a check on every change
    STEPS = 4
torch.set_grad_enabled(False)
viz.use_style()

pipe = DefectDiffuPipeline.from_pretrained(WEIGHTS)
pipe.set_progress_bar_config(disable=True)
config, abar = pipe.config, pipe.scheduler.alphas_cumprod
network = pipe.transformer

# %% [markdown]
# ## A mask appears

# %% tags=["hide-input"]
steps = []


def keep(step, t, latents, branches):
    """One step: t, the latent after it, the guided prediction and mask, the mean attention."""
    guided = guide(branches, config.guidance, config.w_p, torch.tensor(config.w_d))
    attention = branches.attention[GUIDANCES[config.guidance].defect]
    steps.append((int(t), latents, *guided, attention))


out = pipe(PRODUCT, DEFECT, seeds=[0], num_inference_steps=STEPS, callback=keep)

# %% tags=["hide-input"]


def picture(latents):
    return Image.fromarray(to_uint8(decode(pipe.vae, latents))[0])


def probability(latents):
    return masks.to_probability(decode(pipe.vae, latents)).numpy()


def frame(i):
    t, _, predicted, mask, attention = steps[i]
    foreseen = picture_of(
        network.config.prediction, predicted, steps[i - 1][1], abar[t]
    )
    figure, axes = plt.subplots(2, 2, figsize=(3.6, 3.9), layout="constrained")
    parts = {
        "noisy picture": picture(steps[i - 1][1]),
        "picture foreseen": picture(foreseen),
        "attention, mean": attention[0],
        "mask head": probability(mask)[0],
    }
    for axis, (name, part) in zip(axes.flat, parts.items(), strict=True):
        cmap = "viridis" if name.startswith("attention") else "gray"
        axis.imshow(part, cmap=cmap, vmin=0, vmax=1)
        axis.set_title(name)
        axis.axis("off")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return Image.open(buffer).convert("RGB")


viz.static_slider(
    [frame(i) for i in range(1, STEPS)],
    [steps[i][0] for i in range(1, STEPS)],
    label="t",
    alt=f"{PRODUCT}, {DEFECT}: noisy picture, picture foreseen, attention, mask;",
    start=STEPS - 2,
)

# %% [markdown]
# *Cracked hazelnut, seed 0, step by step. Above the noisy picture and the picture that the network foresees in it;
# below the mean of all attention maps, from 0 (purple) to 1 (yellow), and what the mask head makes of the maps.*
#
# Down to $t = 599$ the network foresees a blurred nut, wrinkled at first, and the mask head says nothing. At 549 a
# faint streak appears on the right, in the foreseen picture and in the mask at the same time. A second one, in the
# middle, is in the picture at 450, in the mask faintly at 400. At 350 the two grow together, and branches follow. From
# 100 on only details change. And the mean attention? At no step does it show the crack.
#
# ## From the maps alone

# %%
viz.show_code(MaskHead.forward)

# %% [markdown]
# The mask head is a small network of convolutions. Its input are the attention maps of all heads in the $M$ defect
# blocks (Eq. 5), and *nothing else*: each place of the picture says, head by head, how much it attends to the words of
# the defect. The head's output is the latent of the mask; the autoencoder's decoder, the same that paints pictures,
# makes it pixels.
#
# What is in these maps? To know where the defect is, we take rendered pictures, add the noise of step $t = 100$ and ask
# the network once, as the guidance does: for the defect, on no product.

# %% tags=["hide-input"]
T = 100  # noise of the last steps, those that make the mask
trained = [(p, d) for p, defects in pipe.pairs.items() for d in defects]
if FAST:
    trained = trained[::12]
drawn = [render(*pair, 0.75, RENDERED_SEEDS, size=256) for pair in trained]
truths = np.stack([d.mask > 0 for d in drawn])
nothing = [network.config.null_product] * len(drawn)
batches = [slice(i, i + 16) for i in range(0, len(drawn), 16)]
images = to_tensor(np.stack([d.image for d in drawn]))
clean = torch.cat([encode(pipe.vae, images[batch]) for batch in batches])
noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))


def ask(t, defects):
    """Maps of every head and latents of the masks, of the rendered pictures noised up to t."""
    noised = abar[t].sqrt() * clean + (1 - abar[t]).sqrt() * noise
    seen = [
        network(
            noised[batch],
            torch.full((len(noised[batch]),), t),
            **vars(pipe.encoder.conditions(nothing[batch], defects[batch])),
        )
        for batch in batches
    ]
    return torch.cat([s.maps for s in seen]), torch.cat([s.mask for s in seen])


def overlap(latents):
    """IoU of each mask with the true one."""
    maps = np.concatenate([probability(latents[batch]) for batch in batches])
    return iou_per_picture(np.stack([masks.binarise(m) > 0 for m in maps]), truths)


defects = [defect for _, defect in trained]
maps, mask = ask(T, defects)
M, heads, h, w = maps.shape[1:]
where = masks.resize_mask(torch.from_numpy(truths.astype(np.float32)), (h, w))[
    :, None, None
]
inside = (maps * where).sum((-1, -2)) / where.sum((-1, -2))
outside = (maps * (1 - where)).sum((-1, -2)) / (1 - where).sum((-1, -2))
contrast = (inside - outside).mean(0)  # (M, heads), from -1 to 1

# %% mystnb={"image": {"alt": "A rendered crack, its true mask, and the maps of all heads"}} tags=["hide-input"]
example = trained.index((PRODUCT, DEFECT)) if (PRODUCT, DEFECT) in trained else 0
figure = plt.figure(figsize=(6, 4.6), layout="constrained")
above, below = figure.subfigures(2, 1, height_ratios=(1, 2.6))
for axis, part in zip(
    above.subplots(1, 3),
    (
        drawn[example].image,
        drawn[example].mask,
        probability(mask[example : example + 1])[0],
    ),
    strict=True,
):
    axis.imshow(part, cmap="gray")
    axis.axis("off")
for axis, values, c in zip(
    below.subplots(M, heads).flat,
    maps[example].flatten(0, 1),
    contrast.flatten(),
    strict=True,
):
    axis.imshow(values, vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
    axis.set_title(f"{c:+.2f}", fontsize=8, color=viz.DEFECT if c > 0 else "black")
plt.close(figure)
figure

# %% [markdown]
# *Above: a rendered crack, its true mask, the map that the mask head makes. Below: the maps of the same picture, one
# row for each defect block, one column for each head; purple is 0, yellow 1. The numbers are over all
# {glue:text}`masks_pictures` pictures: attention inside the defect minus attention outside. Orange: brighter at the
# defect. Black: darker.*
#
# **More heads go dark at the defect than light up.** By more than 0.1, {glue:text}`masks_darker` of the
# {glue:text}`masks_heads` heads are darker there and {glue:text}`masks_brighter` brighter. The mean over all heads, Eq.
# 7, is {glue:text}`masks_inside` inside and {glue:text}`masks_outside` outside: in it the two kinds cancel. Which kind
# makes the mask? We flatten the maps of all other heads and ask the mask head again:

# %% mystnb={"image": {"alt": "Mask IoU with all heads, and with only some of them"}} tags=["hide-input", "plot"]


def mask_of(heads_kept):
    """IoU of the masks when the maps of all other heads are flat."""
    flat = outside[..., None, None].expand_as(maps)
    kept = torch.where(heads_kept[None, :, :, None, None], maps, flat)
    return overlap(network._unpatchify(network.mask_head(network.head_input(kept))))


brighter, darker = contrast > 0.1, contrast < -0.1
GROUPS = {
    "all": (torch.ones_like(brighter), "0.6"),
    "brighter at the defect": (brighter, viz.DEFECT),
    "darker at the defect": (darker, "black"),
    "neither": (~brighter & ~darker, "0.8"),
}
alone = {name: bootstrap(mask_of(kept)) for name, (kept, _) in GROUPS.items()}
figure, axis = plt.subplots(figsize=(5.6, 2), layout="constrained")
for i, (name, (_, color)) in enumerate(GROUPS.items()):
    s = alone[name]
    axis.barh(i, s["mean"], color=color)
    axis.plot([s["low"], s["high"]], [i, i], color="0.3")
axis.set_yticks(
    range(len(GROUPS)),
    [f"{name} ({int(kept.sum())})" for name, (kept, _) in GROUPS.items()],
)
axis.invert_yaxis()
axis.set(xlabel="IoU with the true mask", xlim=(0, 1))
plt.close(figure)
figure

# %% [markdown]
# *In brackets the number of heads whose maps are left; lines: 95 % intervals over the pictures.*
#
# The dark heads alone give {glue:text}`masks_iou_darker`, the bright ones alone {glue:text}`masks_iou_brighter`, all
# together {glue:text}`masks_iou_all`. So it is not true that a mask can be right only where attention is. It can be
# right where maps *differ* between the defect and the rest, in either direction; it needs both kinds.
#
# ## When is the mask right?

# %% mystnb={"image": {"alt": "IoU with the true mask against the noise"}} tags=["hide-input", "plot"]
TIMES = (20, 300, 700) if FAST else (20, 100, 200, 300, 500, 700)
asked = {"asked for the defect": defects, 'asked for "good"': ["good"] * len(drawn)}
by_time = {
    name: [bootstrap(overlap(ask(t, words)[1])) for t in TIMES]
    for name, words in asked.items()
}
figure, axis = plt.subplots(figsize=(5.6, 2.8), layout="constrained")
for (name, stats), color in zip(by_time.items(), (viz.DEFECT, "0.4"), strict=True):
    mean, low, high = ([s[key] for s in stats] for key in ("mean", "low", "high"))
    axis.plot(TIMES, mean, "o-", markersize=3, color=color, label=name)
    axis.fill_between(TIMES, low, high, color=color, alpha=0.2, linewidth=0)
axis.set(
    xlabel="noise added up to time step $t$",
    ylabel="IoU with the true mask",
    ylim=(0, 1),
)
axis.legend()
plt.close(figure)
figure

# %% [markdown]
# *The same pictures, more or less noised.*
#
# Late, when little noise is left: {glue:text}`masks_iou_20` at $t = 20$, {glue:text}`masks_iou_300` at 300,
# {glue:text}`masks_iou_700` at 700. So the mask is averaged over few steps, the last tenth. The grey line is a
# surprise: asked for "good", the head marks the defect all the same, though less well: {glue:text}`masks_good_20` at
# $t = 20$, {glue:text}`masks_good_300` at 300. Late, it mostly follows what is *seen*; the more noise there is, the
# more it needs to be told. So a defect that nobody asked for can be marked, too.
#
# ## The threshold

# %% mystnb={"image": {"alt": "Histogram of the averaged map, the map, the pair"}} tags=["hide-input"]
average = out.mask_probs[0]
figure, (axis, beside, pair) = plt.subplots(
    1, 3, figsize=(6, 2.2), width_ratios=(1.6, 1, 1), layout="constrained"
)
axis.hist(average.ravel(), 50, color="0.6")
if np.ptp(average):
    axis.axvline(threshold_isodata(average), color=viz.DEFECT)
axis.set(yscale="log", xlabel="averaged map", ylabel="pixels")
beside.imshow(average, cmap="gray", vmin=0, vmax=1)
pair.imshow(viz.overlay(out.images[0], out.masks[0]))
for picture_axis in (beside, pair):
    picture_axis.axis("off")
plt.close(figure)
figure

# %% tags=["remove-cell"]
products = [p for p, found in pipe.pairs.items() if found]
good = pipe(products[: 2 if FAST else None], "good", num_inference_steps=STEPS)
empty = [not np.asarray(mask).any() for mask in good.masks]
glue("masks_pictures", len(drawn), display=False)
glue("masks_heads", M * heads, display=False)
glue("masks_darker", int(darker.sum()), display=False)
glue("masks_brighter", int(brighter.sum()), display=False)
glue("masks_inside", f"{inside.mean():.2f}", display=False)
glue("masks_outside", f"{outside.mean():.2f}", display=False)
for name in ("all", "brighter", "darker"):
    found = next(s for group, s in alone.items() if group.startswith(name))
    glue(f"masks_iou_{name}", f"{found['mean']:.2f}", display=False)
at = {name: dict(zip(TIMES, stats, strict=True)) for name, stats in by_time.items()}
of_defect, of_good = at.values()
for t in (20, 300, 700):
    glue(f"masks_iou_{t}", f"{of_defect[t]['mean']:.2f}", display=False)
    glue(f"masks_good_{t}", f"{of_good[t]['mean']:.2f}", display=False)
glue("masks_steps", masks.averaged_steps(STEPS), display=False)
glue("masks_threshold", f"{threshold_isodata(average):.2f}", display=False)
glue("masks_good", len(empty), display=False)
if not FAST:
    assert darker.sum() > brighter.sum() > 5
    assert abs(inside.mean() - outside.mean()) < 0.03
    alone_all, alone_bright, alone_dark, _ = (s["mean"] for s in alone.values())
    assert alone_all > alone_dark + 0.2 and alone_dark > 2 * alone_bright
    assert of_defect[20]["mean"] > 0.7 and of_defect[700]["mean"] < 0.15
    assert all(of_good[t]["high"] < of_defect[t]["low"] for t in (20, 300))
    kept = {t: of_good[t]["mean"] / of_defect[t]["mean"] for t in (20, 300)}
    assert kept[20] > 0.75 and kept[300] < 0.5
    assert all(empty)
    seen = Judge.shipped(pipe.size)(np.stack([np.asarray(i) for i in good.images]))
    called = zip(products, seen.products, seen.defects, strict=True)
    assert [c for c in called if c != (c[0], c[0], "good")] == [
        (p, p, "bent") for p in ("grid", "zipper")
    ]
    # What the slider is said to show
    head = {t: probability(mask)[0] for t, _, _, mask, _ in steps}
    right = {t: head[t][:, 170:].max() for t in head}
    middle = {t: head[t][120:140, 115:140].max() for t in head}
    assert max(p.max() for t, p in head.items() if t > 549) < 0.15
    assert right[599] < 0.1 < right[549] < right[500] < right[450] > 0.4
    assert middle[450] < 0.15 < middle[400] < 0.5
    pieces, _ = label(head[350] > 0.15)
    largest = pieces == np.bincount(pieces[pieces > 0]).argmax()
    assert largest.sum() > 0.95 * (pieces > 0).sum()
    assert (
        np.ptp(np.nonzero(largest)[0]) > 60 and np.ptp(np.nonzero(largest)[1]) > 50
    )
    crack = head[50] > 0.3
    same = {
        t: iou_per_picture((p > 0.3)[None], crack[None])[0] for t, p in head.items()
    }
    assert same[350] < 0.3 and same[200] < 0.6 and same[100] > 0.7
    touched = masks.resize_mask(torch.from_numpy(crack[None]).float(), (h, w))[0]
    for *_, attention in steps[1:]:
        at_crack, elsewhere = (attention[0][touched == i].mean() for i in (1, 0))
        assert abs(at_crack - elsewhere) < 0.02

# %% [markdown]
# The maps of the last {glue:text}`masks_steps` steps are averaged, and the threshold moves until it lies halfway
# between the mean of the pixels above it and the mean of those below: here {glue:text}`masks_threshold`. Such a
# threshold splits *any* map in two, plain noise as well. So `masks.binarise` leaves a mask empty if its halves are not
# clearly apart. Asked for one good picture of each of {glue:text}`masks_good` products, all masks are empty. That does
# not make the pictures good: grid and zipper are drawn so badly that the judge calls them bent ([chapter
# 8](08_sweep.ipynb)).
#
# ## What would break this
#
# - **A defect that no head sets apart.** Then the maps are the same inside and outside, and nothing after them can find
#   it. [Chapter 6](06_adaptive_attention_loss.ipynb) is about a loss against that.
# - **A defect thinner than a map's cell.** A map has 16 by 16 cells for 256 by 256 pixels; only the neighbouring cells
#   tell how a scratch goes on inside one.
# - **Averaging from the beginning.** The early maps are wrong, and dilute the late ones.
#
# ## Summary
#
# The attention maps are the mask head's only input. They set the defect apart in both directions, more heads by less
# attention than by more, and the mean of all heads hides it. The mask is right late, when it mostly follows what is
# seen; so few steps are averaged, then split by a threshold.
#
# ## Exercises
#
# 1. Replace the maps by `1 - maps` before the mask head. What do you expect?
# 2. Replace `masks.binarise` by a fixed threshold of 0.5. What happens to small defects, and what to good products?
# 3. Why are rendered pictures used above, and not generated ones?
#
# ````{dropdown} Answers
# 1. Nothing useful: the head has learned which heads are dark at a defect and which are bright, and now all are wrong.
# 2. Where the map of a small defect stays below 0.5, its mask is empty. Good products gain: a faint false alarm no
#    longer counts.
# 3. Their masks are exact. A generated picture has no true mask, only the judge's.
# ````
