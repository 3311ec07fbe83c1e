"""Self-check of a generated pair by its counterfactual twin, without a judge.

Only w_d separates a picture from its twin: the same seed at w_d = 0 is the same product without the defect. So what
changed between the two is what the defect did, and a mask that fits has the change inside it.
"""

import numpy as np

from defectdiffu.errors import InputError

PASS = 2.0  # a pair passes from this ratio on
GREY_LEVEL = 1.0  # of 255: a smaller change outside is rounding and counts as this much
LARGEST_RATIO = 255.0  # no change inside a mask is larger than 255 grey levels


def change_ratio(images: np.ndarray, twins: np.ndarray, masks: np.ndarray, twin_masks: np.ndarray) -> np.ndarray:
    """Mean change inside the mask over mean change outside it, float64 (B,).

    images, twins: uint8 (B, S, S, 3); masks, twin_masks: bool (B, S, S). 0, which no check passes, where the mask is
    empty or covers the whole picture, and where the twin, which should have no defect, has a mask itself.
    """
    if not images.shape[:3] == twins.shape[:3] == masks.shape == twin_masks.shape:
        raise InputError(f"pictures {images.shape} and masks {masks.shape} are not of one size")
    change = np.abs(images.astype(float) - twins).mean(-1)  # (B, S, S)
    inside, outside = masks.sum((1, 2)), (~masks).sum((1, 2))
    usable = (inside > 0) & (outside > 0) & ~twin_masks.any((1, 2))
    within = (change * masks).sum((1, 2)) / np.maximum(inside, 1)
    beyond = (change * ~masks).sum((1, 2)) / np.maximum(outside, 1)
    return np.where(usable, within / np.maximum(beyond, GREY_LEVEL), 0.0)
