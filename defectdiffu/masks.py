"""From the mask head's predictions to a binary mask (Sec. 3.4)."""

import numpy as np
import torch.nn.functional as F
from skimage.filters import threshold_isodata
from torch import Tensor

MIN_CONTRAST = 0.1  # foreground and background of a mask must differ by this much of full scale,
MIN_SEPARATION = 3.0  # and by this many times the deviation within them; the two halves of plain noise differ by 2.6


def averaged_steps(num_inference_steps: int) -> int:
    """Number of last denoising steps over which the mask is averaged: a tenth, at least one.

    The paper averages the last 100 of 1000, when the picture's structure is already fixed.
    """
    return max(1, round(num_inference_steps / 10))


def binarise(probability: np.ndarray) -> np.ndarray:
    """Binary mask uint8 (H, W), 0 or 255, of a map (H, W) in [0, 1], by the iterative (isodata) threshold.

    The threshold lies halfway between the mean of the values above it and the mean of those below. It splits *any*
    map in two, including noise; so if the two classes are not clearly separated, the mask is empty.
    """
    empty = np.zeros(probability.shape, np.uint8)
    if probability.max() - probability.min() < MIN_CONTRAST:
        return empty
    foreground = probability > threshold_isodata(probability)
    above, below = probability[foreground], probability[~foreground]
    spread = np.sqrt((above.size * above.var() + below.size * below.var()) / probability.size)
    if above.mean() - below.mean() < max(MIN_CONTRAST, MIN_SEPARATION * spread):
        return empty
    return foreground.astype(np.uint8) * 255


def resize_mask(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    """Max-pool a mask (B, H, W) in [0, 1] to (B, h, w), for Eq. 8: a defect thinner than a cell does not vanish."""
    return F.adaptive_max_pool2d(mask[:, None], size)[:, 0]


def to_probability(decoded: Tensor) -> Tensor:
    """A decoded mask picture (B, 3, H, W) in [-1, 1] as a map (B, H, W) in [0, 1]."""
    return ((decoded.mean(dim=1) + 1) / 2).clamp(0, 1)


def to_picture(mask: Tensor) -> Tensor:
    """The inverse of `to_probability`: a mask (B, H, W) in [0, 1] as a picture for the autoencoder."""
    return (mask * 2 - 1)[:, None].expand(-1, 3, -1, -1)
