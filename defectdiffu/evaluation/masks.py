"""How well masks match the true masks: IoU, F1, AP and AUROC over all pixels, by torchmetrics."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    binary_f1_score,
    binary_jaccard_index,
)

from defectdiffu.errors import InputError

SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "iou": binary_jaccard_index,
    "f1": binary_f1_score,
    "ap": binary_average_precision,
    "auroc": binary_auroc,
}


def run(probabilities: np.ndarray, truths: np.ndarray) -> dict[str, float | int]:
    """Score mask maps (N, H, W) in [0, 1] against true masks (N, H, W), nonzero for defect.

    iou and f1 at the threshold 0.5; ap and auroc over all thresholds. Pixels of all pictures are pooled.
    Raises `InputError` for no pictures, different shapes, values outside [0, 1] or NaN, and true masks that are all
    empty or all full, for which a ranking has no meaning.
    """
    probabilities, truths = np.asarray(probabilities, np.float32), np.asarray(truths) > 0
    if not probabilities.size:
        raise InputError("no masks to score: at least 1 is needed")
    if probabilities.shape != truths.shape:
        raise InputError(f"masks have shape {probabilities.shape}, true masks {truths.shape}: shapes must agree")
    if not (np.isfinite(probabilities).all() and probabilities.min() >= 0 and probabilities.max() <= 1):
        raise InputError("mask maps must be numbers in [0, 1]")
    if truths.all() or not truths.any():
        raise InputError(
            f"all {len(truths)} true masks are {'full' if truths.all() else 'empty'}: both classes are needed"
        )
    predicted, target = torch.from_numpy(probabilities).flatten(), torch.from_numpy(truths).flatten().long()
    return {name: float(score(predicted, target)) for name, score in SCORES.items()} | {"count": len(truths)}


def iou_per_picture(probabilities: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """IoU (N,) of every picture at the threshold 0.5; 1 where neither marks anything."""
    found, truths = np.asarray(probabilities) > 0.5, np.asarray(truths) > 0
    union = (found | truths).sum((1, 2))
    return np.where(union > 0, (found & truths).sum((1, 2)) / np.maximum(union, 1), 1.0)
