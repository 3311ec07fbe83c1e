"""Do generated pairs help a detector? A U-Net trained on few real pictures, alone and with synthetic ones beside them.

The generated pairs are set against the two cheap ways to more pictures, copy-paste and Perlin noise, as many of each.
Every U-Net gets the same number of steps and is scored after the last one: no epoch is chosen by the test pictures.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch import nn
from tqdm.auto import tqdm

from defectdiffu.data.folder import GOOD, Sample, read_folder, split
from defectdiffu.errors import InputError
from defectdiffu.evaluation import masks
from defectdiffu.evaluation.judge import to_tensor
from defectdiffu.evaluation.pictures import common_size, read_pairs
from defectdiffu.evaluation.statistics import bootstrap, paired_bootstrap
from defectdiffu.evaluation.synthesis import Pictures, read, synthesise

STEPS = 400


def run(
    generated: str | Path, real: str | Path, test: str | Path, seeds: Sequence[int] = (0, 1, 2), steps: int = STEPS
) -> dict:
    """Train on `real`, on `real` with each kind of synthetic pictures, and score on `test`; folders in MVTec's layout.

    Trained on: everything that `real` has of the products in `generated`. Tested on: the pairs (product, defect) of
    `generated`, and sound pictures of their products. One folder given as both is split in halves by the rule of
    `data.folder.split`.

    Returns per training set ("real", "copy_paste", "perlin", "generated") the `scores` of `masks.run` over seeds and
    `iou_per_picture`, the mean IoU of the test pictures with a defect; the `differences` of that, generated minus each
    other set, with a 95 % interval over test pictures; and a `verdict` in words.
    Raises `InputError` for fewer than 2 seeds, and fewer than 2 real, test or generated pictures with a defect.
    """
    if len(seeds) < 2:
        raise InputError(f"{len(seeds)} seed: at least 2 are needed to tell luck from help, 3 or more are better")
    ours = read_pairs(generated)
    size = common_size(ours)
    few, unseen = _training_and_test(real, test)
    products = {product for product, _ in ours}
    tested = {*ours, *((product, GOOD) for product in products)}
    pictures = {
        "generated": read("generated", list(chain.from_iterable(ours.values())), size),
        "real": read("real", [s for s in few if s.product in products], size),
        "test": read("test", [s for s in unseen if (s.product, s.defect) in tested], size),
    }
    number = len(pictures["generated"].images)
    images, truths, _ = pictures["test"]
    flawed = truths.any((1, 2))
    scores, per_picture = {}, {}
    for seed in seeds:
        rng = np.random.default_rng(seed)
        synthetic = {
            "real": None,
            "copy_paste": synthesise(pictures["real"], number, "copy_paste", rng),
            "perlin": synthesise(pictures["real"], number, "perlin", rng),
            "generated": pictures["generated"],
        }
        for name, extra in synthetic.items():
            maps = predict(train(pictures["real"], extra, steps, seed, name), images)
            scores.setdefault(name, []).append(masks.run(maps, truths))
            per_picture.setdefault(name, []).append(masks.iou_per_picture(maps, truths)[flawed])

    differences = {
        name: _difference(per_picture["generated"], per_picture[name]) for name in scores if name != "generated"
    }
    return {
        "counts": {
            name: {"all": len(p.masks), "with_defect": int(p.masks.any((1, 2)).sum())} for name, p in pictures.items()
        },
        "size": size,
        "steps": steps,
        "seeds": list(seeds),
        "scores": {
            name: {
                key: {"mean": float(np.mean([r[key] for r in rows])), "seeds": [r[key] for r in rows]}
                for key in masks.SCORES
            }
            | {"iou_per_picture": bootstrap(np.mean(per_picture[name], axis=0))}
            for name, rows in scores.items()
        },
        "differences": differences,
        "verdict": verdict(differences),
    }


def _training_and_test(real: str | Path, test: str | Path) -> tuple[list[Sample], list[Sample]]:
    """The samples of both folders; of one folder given twice, the halves of `data.folder.split`."""
    if Path(real).resolve() == Path(test).resolve():
        return split(read_folder(real))
    return read_folder(real), read_folder(test)


def train(real: Pictures, extra: Pictures | None, steps: int, seed: int, name: str, batch_size: int = 16) -> nn.Module:
    """A U-Net after `steps` batches, of real pictures alone or half and half with `extra`. Mirrored at random."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = smp.Unet(
            "resnet18", encoder_depth=4, encoder_weights=None, decoder_channels=(128, 64, 32, 16), activation=None
        ).to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1e-3, total_steps=steps)
    dice, crossentropy = smp.losses.DiceLoss("binary"), nn.BCEWithLogitsLoss()
    rng = np.random.default_rng(seed)
    sources = [real] if extra is None else [real, extra]
    # Defects as often as sound pictures in every set, or a set would win by its share of defects alone.
    probabilities = [balanced(source.masks.any((1, 2))) for source in sources]
    for _ in tqdm(range(steps), desc=f"U-Net on {name}, seed {seed}"):
        drawn = [rng.choice(len(p), batch_size // len(sources), p=p) for p in probabilities]
        images = np.concatenate([s.images[i] for s, i in zip(sources, drawn, strict=True)])
        target = np.concatenate([s.masks[i] for s, i in zip(sources, drawn, strict=True)])
        flips = tuple(axis for axis in (1, 2) if rng.random() < 0.5)
        images, target = np.flip(images, flips).copy(), np.flip(target, flips).copy()
        with torch.autocast(device, torch.bfloat16):
            logits = network(to_tensor(images, device))
        target = (torch.from_numpy(target)[:, None] > 0).float().to(device)
        loss = crossentropy(logits.float(), target) + dice(logits.float(), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def balanced(flawed: np.ndarray) -> np.ndarray:
    """Probabilities (N,) by which flawed (N,) and other pictures are drawn equally often, where there are both."""
    shares = np.where(flawed, 1 / max(flawed.sum(), 1), 1 / max((~flawed).sum(), 1))
    return shares / shares.sum()


@torch.inference_mode()
def predict(network: nn.Module, images: np.ndarray, batch_size: int = 32) -> np.ndarray:
    """Mask maps float32 (N, S, S) in [0, 1] of uint8 pictures (N, S, S, 3)."""
    device = next(network.parameters()).device
    batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    return np.concatenate([network(to_tensor(b, device)).sigmoid()[:, 0].cpu().numpy() for b in batches])


def _difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> dict:
    """Generated minus other: its mean with an interval over test pictures, and the mean of every seed."""
    over_pictures = paired_bootstrap(np.mean(ours, axis=0), np.mean(theirs, axis=0))
    return over_pictures | {"seeds": [float(np.mean(a - b)) for a, b in zip(ours, theirs, strict=True)]}


def verdict(differences: dict[str, dict]) -> str:
    """One clause per comparison: it helps, or harms, if the interval excludes 0 and every seed agrees on the sign."""
    clauses = []
    for name, d in differences.items():
        if d["low"] > 0 and min(d["seeds"]) > 0:
            said = "the generated pairs help"
        elif d["high"] < 0 and max(d["seeds"]) < 0:
            said = "the generated pairs do not help, they harm"
        else:
            said = "cannot tell whether the generated pairs help"
        clauses.append(
            f"against {name}: {said} (IoU {d['mean']:+.3f}, 95 % interval {d['low']:+.3f} to {d['high']:+.3f}, "
            f"{len(d['seeds'])} seeds)"
        )
    return "; ".join(clauses) + "."
