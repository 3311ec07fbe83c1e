"""Is a generated picture new, or a copy of a training picture? Nearest neighbours in the judge's feature space."""

from pathlib import Path

import numpy as np

from defectdiffu.errors import InputError
from defectdiffu.evaluation.folders import check_count, common_size, judge_features, read_alike
from defectdiffu.evaluation.judge import Judge
from defectdiffu.evaluation.statistics import bootstrap

COPY = 0.5  # a ratio below this counts as suspiciously near


def run(generated: str | Path, real: str | Path, judge: Judge | None = None) -> dict:
    """Compare generated pictures with the training pictures of the same pair (product, defect), which are in `real`.

    Returns `ratio`, the mean of `nearest_ratio` with its interval; `below_half`, the share of ratios under 0.5;
    `nearest`, the ten pictures with the lowest ratio, each with its nearest training picture, to inspect.
    Raises `InputError` if a pair has fewer than 2 training pictures.
    """
    ours, theirs = read_alike(generated, real)
    judge = judge or Judge.shipped(common_size(ours))
    rows = []
    for pair, samples in ours.items():
        check_count(f"{real}, {pair[0]} with {pair[1]}", len(theirs[pair]), 2)
        ratio, place = nearest_ratio(judge_features(samples, judge), judge_features(theirs[pair], judge))
        rows += [(float(r), s.image, theirs[pair][i].image) for r, s, i in zip(ratio, samples, place, strict=True)]
    rows.sort(key=lambda row: row[0])
    ratios = [row[0] for row in rows]
    return {
        "counts": {"generated": len(rows), "training": sum(map(len, theirs.values()))},
        "features": f"judge at {judge.size} pixels",
        "ratio": bootstrap(ratios),
        "below_half": bootstrap([r < COPY for r in ratios]),
        "nearest": [{"ratio": r, "generated": str(g), "training": str(t)} for r, g, t in rows[:10]],
    }


def nearest_ratio(generated: np.ndarray, training: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance from each generated picture to its nearest training picture, divided by the usual distance of those.

    generated (N, D), training (M, D): features. Returns the ratios (N,) and the index (N,) of the nearest in
    `training`. The usual distance is the mean distance from a training picture to the nearest other. 1: as far from the
    training pictures as they are from each other; near 0: a copy.
    Raises `InputError` for fewer than 2 training pictures, features that are not finite, or
    training pictures that all have exact copies.
    """
    check_count("the training set", len(training), 2)
    if not (np.isfinite(generated).all() and np.isfinite(training).all()):
        raise InputError("the features have values that are not finite numbers")
    between = _distances(training, training)
    np.fill_diagonal(between, np.inf)
    usual = between.min(1).mean()
    if usual == 0:
        raise InputError("every training picture has an exact copy in the set: there is no distance to compare with")
    apart = _distances(generated, training)
    return apart.min(1) / usual, apart.argmin(1)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a[:, None].astype(float) - b[None], axis=-1)
