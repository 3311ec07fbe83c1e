"""Means with bootstrap intervals."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from defectdiffu.errors import InputError

RESAMPLES = 2000


def bootstrap(values: ArrayLike, seed: int = 0) -> dict[str, float]:
    """The mean of `values` with its 95 % interval by the percentile bootstrap: {mean, low, high, count}.

    Raises `InputError` if there are none, or if one is not a finite number.
    """
    values = np.asarray(values, float)
    if not len(values):
        raise InputError("no values to take the mean of: at least 1 is needed")
    if not np.isfinite(values).all():
        raise InputError(f"{np.sum(~np.isfinite(values))} of {len(values)} values are not finite numbers")
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return {"mean": float(values.mean()), "low": float(low), "high": float(high), "count": len(values)}


def paired_bootstrap(
    ours: Sequence[float] | np.ndarray, theirs: Sequence[float] | np.ndarray, seed: int = 0
) -> dict[str, float]:
    """The mean of ours - theirs with its interval; item i of both stems from the same seed, image or split."""
    if len(ours) != len(theirs):
        raise InputError(f"pairs are compared: {len(ours)} values against {len(theirs)}")
    return bootstrap(np.subtract(ours, theirs), seed)
