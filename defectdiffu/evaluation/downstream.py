"""Do generated pairs help a detector? It is trained on few real pictures, alone and together with synthetic ones.

Two detectors, as in the paper: a U-Net that marks the defect, and a ResNet-50 that classifies defective and good. The
generated pairs are compared with two cheap methods, copy-paste and Perlin noise, with as many pictures of each.
Every network gets the same number of steps and is scored after the last one: no epoch is chosen by the test pictures.
"""

import json
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc
from tqdm.auto import tqdm

from defectdiffu.config import GOOD
from defectdiffu.data.folder import Sample, read_folder
from defectdiffu.data.splitting import split
from defectdiffu.errors import InputError, check_choice
from defectdiffu.evaluation import masks
from defectdiffu.evaluation.folders import common_size, read_pairs
from defectdiffu.evaluation.records import write_record
from defectdiffu.evaluation.statistics import bootstrap, paired_bootstrap
from defectdiffu.evaluation.synthesis import Pictures, read, synthesise
from defectdiffu.files import write_json
from defectdiffu.machine import default_device, precision
from defectdiffu.pictures import to_tensor

STEPS = 400
SETS = ("real", "copy_paste", "perlin", "generated")


class Detector(NamedTuple):
    """A detector, its loss, and its scores.

    build()                     a network from (B, 3, S, S) to logits (B, 1, ...)
    loss(logits, masks)         scalar, of masks float32 (B, 1, S, S)
    score(outputs, masks)       named scores of the whole test set; outputs float32 (N, ...) in [0, 1]
    per_picture(outputs, masks) the values that are compared, picture by picture; `value` names them
    """

    build: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[np.ndarray, np.ndarray], dict[str, float]]
    per_picture: Callable[[np.ndarray, np.ndarray], np.ndarray]
    value: str


def _build_unet() -> nn.Module:
    return smp.Unet(
        "resnet18", encoder_depth=4, encoder_weights=None, decoder_channels=(128, 64, 32, 16), activation=None
    )


def _segmentation_loss(logits: Tensor, target: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logits, target) + smp.losses.DiceLoss("binary")(
        logits, target
    )


def _iou_of_defects(outputs: np.ndarray, truths: np.ndarray) -> np.ndarray:
    return masks.iou_per_picture(outputs, truths)[truths.any((1, 2))]


def _classification_loss(logits: Tensor, target: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logits[:, 0], target.amax((1, 2, 3)))


def _right(outputs: np.ndarray, truths: np.ndarray) -> np.ndarray:
    return ((outputs > 0.5) == truths.any((1, 2))).astype(float)


def _classification_scores(outputs: np.ndarray, truths: np.ndarray) -> dict[str, float]:
    flawed = torch.from_numpy(truths.any((1, 2))).long()
    return {
        "accuracy": float(_right(outputs, truths).mean()),
        "auroc": float(binary_auroc(torch.from_numpy(outputs), flawed)),
    }


DETECTORS = {
    "unet": Detector(_build_unet, _segmentation_loss, masks.run, _iou_of_defects, "IoU"),
    "resnet50": Detector(
        lambda: timm.create_model("resnet50", pretrained=False, num_classes=1),
        _classification_loss,
        _classification_scores,
        _right,
        "accuracy",
    ),
}


def run(
    generated: str | Path,
    real: str | Path,
    test: str | Path,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = STEPS,
    detectors: Sequence[str] = tuple(DETECTORS),
    progress: str | Path | None = None,
    size: int | None = None,
) -> dict:
    """Train on `real` and on `real` with each kind of synthetic pictures; score on `test`. Folders in MVTec's layout.

    Training set: all pictures in `real` of the products in `generated`. Test set: the pairs (product, defect) of
    `generated`, and defect-free pictures of their products. If `real` and `test` are one folder, it is split in halves
    by `data.splitting.split`. progress: a file that keeps the result of every finished training, so that the same
    call resumes. size: side in pixels of the detectors' pictures; by default that of the generated ones.

    Returns per detector and training set ("real", "copy_paste", "perlin", "generated") its `scores`, with
    `per_picture`: the U-Net's mean IoU of the test pictures with a defect, the ResNet's accuracy of all of them; the
    `differences` of that, generated minus each other set, with a 95 % interval over test pictures; and a `verdict` in
    words. Raises `InputError` for fewer than 2 seeds, for fewer than 2 real, test or generated pictures with a defect,
    and, for a ResNet, if no test picture is defect-free.
    """
    if len(seeds) < 2:
        raise InputError(f"{len(seeds)} seed: at least 2 are needed to measure chance variation, 3 or more are better")
    for name in detectors:
        check_choice("detector", name, DETECTORS)
    ours = read_pairs(generated)
    size = size or common_size(ours)
    few, unseen = _training_and_test(real, test)
    products = {product for product, _ in ours}
    tested = {*ours, *((product, GOOD) for product in products)}
    pictures = {
        "generated": read("generated", list(chain.from_iterable(ours.values())), size),
        "real": read("real", [s for s in few if s.product in products], size),
        "test": read("test", [s for s in unseen if (s.product, s.defect) in tested], size),
    }
    if "resnet50" in detectors and pictures["test"].masks.any((1, 2)).all():
        raise InputError(f"{test} has no good pictures of {', '.join(sorted(products))}: the ResNet needs both classes")
    counts = {
        name: {"all": len(p.masks), "with_defect": int(p.masks.any((1, 2)).sum())} for name, p in pictures.items()
    }
    about = {"counts": counts, "size": size, "steps": steps, "folders": [str(generated), str(real), str(test)]}
    done = Progress(progress, about)
    for seed in seeds:
        for detector in detectors:
            for name in SETS:
                if (detector, name, seed) not in done:
                    done[detector, name, seed] = _trained(detector, name, seed, steps, pictures)
    return about | {
        "seeds": list(seeds),
        "detectors": {
            detector: _compare(
                DETECTORS[detector].value, {name: [done[detector, name, seed] for seed in seeds] for name in SETS}
            )
            for detector in detectors
        },
    }


def _trained(detector: str, name: str, seed: int, steps: int, pictures: dict[str, Pictures]) -> dict:
    """{"scores", "per_picture"} of one detector trained on one set."""
    real, test = pictures["real"], pictures["test"]
    extra = pictures["generated"] if name == "generated" else None
    if name in ("copy_paste", "perlin"):
        rng = np.random.default_rng([seed, SETS.index(name)])
        extra = synthesise(real, len(pictures["generated"].images), name, rng)
    kind = DETECTORS[detector]
    outputs = predict(train(kind, real, extra, steps, seed, f"{detector} on {name}, seed {seed}"), test.images)
    scores = {k: v for k, v in kind.score(outputs, test.masks).items() if k != "count"}
    return {"scores": scores, "per_picture": kind.per_picture(outputs, test.masks).tolist()}


def _compare(value: str, rows: dict[str, list[dict]]) -> dict:
    """Scores, differences and verdict of one detector; rows: {set: result of each seed}."""
    per_picture = {name: [row["per_picture"] for row in results] for name, results in rows.items()}
    differences = {
        name: difference(per_picture["generated"], per_picture[name]) for name in rows if name != "generated"
    }
    return {
        "value": value,
        "scores": {
            name: {
                key: {
                    "mean": float(np.mean([r["scores"][key] for r in results])),
                    "seeds": [r["scores"][key] for r in results],
                }
                for key in results[0]["scores"]
            }
            | {"per_picture": bootstrap(np.mean(per_picture[name], axis=0))}
            for name, results in rows.items()
        },
        "differences": differences,
        "verdict": verdict(differences, value),
    }


class Progress(dict):
    """{(detector, set, seed): result of the training}, kept in a JSON file if a path is given."""

    def __init__(self, path: str | Path | None, about: dict):
        super().__init__()
        self.path, self.about = Path(path) if path else None, about
        if self.path and self.path.is_file():
            there = json.loads(self.path.read_text())
            if there["about"] != about:
                raise InputError(f"{self.path} holds trainings on other inputs: remove it or name another file")
            self.update((tuple(key), value) for key, value in there["trainings"])

    def __setitem__(self, key: tuple, value: dict) -> None:
        super().__setitem__(key, value)
        if self.path:
            there = {"about": self.about, "trainings": [[list(k), v] for k, v in self.items()]}
            write_json(self.path, there, indent=None)


def record(result: dict, path: Path) -> dict:
    """Write the result of `run` as a record for the book: a run per detector and training set.

    A run's `over_all` are the scores of the whole test set: {score: {"mean", "seeds": one value per seed}}.
    """
    runs = []
    for detector, found in result["detectors"].items():
        for name, scores in found["scores"].items():
            row = {"name": f"{detector}, {name}", "changes": {"training": {"detector": detector, "set": name}}}
            row |= {
                "seed": result["seeds"],
                "steps": result["steps"],
                "scores": {found["value"]: scores["per_picture"]},
                "over_all": {key: value for key, value in scores.items() if key != "per_picture"},
            }
            if name != "generated":
                row["differences"] = {found["value"]: found["differences"][name]}
            runs.append(row)
    return write_record(
        path,
        title="Does a detector get better with generated pairs beside few real ones?",
        varied="the training set; `differences` are generated minus that set, picture by picture",
        held_fixed={key: result[key] for key in ("counts", "size", "steps", "seeds")},
        runs=runs,
        verdicts={name: found["verdict"] for name, found in result["detectors"].items()},
    )


def _training_and_test(real: str | Path, test: str | Path) -> tuple[list[Sample], list[Sample]]:
    """The samples of both folders; of one folder given twice, the halves of `data.splitting.split`."""
    if Path(real).resolve() == Path(test).resolve():
        return split(read_folder(real))
    return read_folder(real), read_folder(test)


def train(
    detector: Detector, real: Pictures, extra: Pictures | None, steps: int, seed: int, label: str, batch_size: int = 16
) -> nn.Module:
    """A detector after `steps` batches composed by `shares` and mirrored at random."""
    device = default_device()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = detector.build().to(device).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1e-3, total_steps=steps)
    rng = np.random.default_rng(seed)
    drawn_from = shares(real, extra, batch_size)
    for _ in tqdm(range(steps), label, disable=None):
        drawn = [(source, rng.choice(rows, count)) for source, rows, count in drawn_from]
        images = np.concatenate([source.images[i] for source, i in drawn])
        marked = np.concatenate([source.masks[i] for source, i in drawn])
        flips = tuple(axis for axis in (1, 2) if rng.random() < 0.5)
        images, marked = np.flip(images, flips).copy(), np.flip(marked, flips).copy()
        with torch.autocast(device, torch.bfloat16, enabled=precision() == "bf16"):
            logits = network(to_tensor(images, device))
        target = (torch.from_numpy(marked)[:, None] > 0).float().to(device)
        loss = detector.loss(logits.float(), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def shares(real: Pictures, extra: Pictures | None, batch_size: int) -> list[tuple[Pictures, np.ndarray, int]]:
    """Where a batch comes from: (pictures, rows to draw from, how many).

    Half of it is defect-free and real, where there are such pictures; the other half has defects, real ones or, with
    `extra`, half of them its own. So every set shows equally many defects.
    """
    flawed = real.masks.any((1, 2))
    good = 0 if flawed.all() else batch_size // 2
    ours = 0 if extra is None else (batch_size - good) // 2
    parts = [(real, ~flawed, good), (real, flawed, batch_size - good - ours)]
    if extra is not None:
        parts.append((extra, extra.masks.any((1, 2)), ours))
    return [(source, np.flatnonzero(chosen), count) for source, chosen, count in parts if count]


@torch.inference_mode()
def predict(network: nn.Module, images: np.ndarray, batch_size: int = 32) -> np.ndarray:
    """Mask maps float32 (N, S, S), or probabilities (N,) of a defect, of uint8 pictures (N, S, S, 3)."""
    device = next(network.parameters()).device
    batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    return np.concatenate([network(to_tensor(b, device)).sigmoid()[:, 0].cpu().numpy() for b in batches])


def difference(ours: list[list[float]], theirs: list[list[float]]) -> dict:
    """Generated minus other: its mean with an interval over test pictures, and the mean of every seed."""
    over_pictures = paired_bootstrap(np.mean(ours, axis=0), np.mean(theirs, axis=0))
    return over_pictures | {"seeds": [float(np.mean(np.subtract(a, b))) for a, b in zip(ours, theirs, strict=True)]}


def verdict(differences: dict[str, dict], value: str = "IoU") -> str:
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
            f"against {name}: {said} ({value} {d['mean']:+.3f}, 95 % interval {d['low']:+.3f} to {d['high']:+.3f}, "
            f"{len(d['seeds'])} seeds)"
        )
    return "; ".join(clauses) + "."
