"""How different generated pictures are from each other: LPIPS, and within clusters (IC-LPIPS).

IC-LPIPS (Ojha et al., CVPR 2021) first assigns every generated picture to its nearest real one and then compares within
these clusters: so copies of different training pictures do not count as diverse.
Two variants are in use; both are reported.
"""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import lpips
import numpy as np
import torch

from defectdiffu.errors import InputError
from defectdiffu.evaluation.folders import check_count, common_size, fetched, load, read_alike
from defectdiffu.evaluation.judge import Judge
from defectdiffu.evaluation.statistics import bootstrap
from defectdiffu.machine import default_device
from defectdiffu.pictures import to_tensor

# images (N, S, S, 3) and others (N, S, S, 3), both uint8, to N distances, picture by picture
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
BATCH = 64
CLUSTER = 50


def run(generated: str | Path, real: str | Path, distance: Distance | None = None, seed: int = 0) -> dict:
    """Diversity within each pair (product, defect) of a generated folder; `real` holds the pictures to cluster by.

    Returns, per pair and as a mean over pairs: `lpips`, the mean distance of two generated pictures (as in the paper);
    `ic_lpips_random_50`, at most 50 pictures drawn per cluster, clusters of one left out; `ic_lpips_all`, all pictures,
    clusters of one counted 0. A score that no pair has is None. If LPIPS's network (AlexNet) cannot be fetched, the
    judge's features measure distance and the names have `judge_distance` for `lpips`; with a given `distance`, they
    have `distance`. Raises `InputError` if a pair has fewer than 2 generated pictures.
    """
    ours, theirs = read_alike(generated, real)
    size = common_size(ours)
    for (product, defect), samples in ours.items():
        check_count(f"{generated}, {product} with {defect}", len(samples), 2)
    name, note = "distance", None
    if distance is None:
        name = "lpips"
        distance, reason = fetched(lpips_distance)
    if distance is None:
        judge = Judge.shipped(size)
        name, size, distance = "judge_distance", judge.size, judge_distance(judge)
        note = f"LPIPS is not reported: {reason}. judge_distance is another distance: compare it only with itself."

    pairs: dict[str, dict[str, float | None]] = {}
    for pair, samples in ours.items():
        images, references = load(samples, size)[0], load(theirs[pair], size)[0]
        apart = pairwise(images, distance)
        nearest = nearest_reference(images, references, distance)
        pairs[" ".join(pair)] = {
            "generated": len(images),
            "real": len(references),
            name: float(apart[np.triu_indices(len(apart), 1)].mean()),
            f"ic_{name}_random_50": ic_random(apart, nearest, seed),
            f"ic_{name}_all": ic_all(apart, nearest),
        }
    values = {
        key: [value for p in pairs.values() if (value := p[key]) is not None]
        for key in next(iter(pairs.values()))
        if name in key
    }
    means = {key: bootstrap(v) if v else None for key, v in values.items()}
    return {"size": size, **means, "pairs": pairs, "seeds": [seed]} | ({"note": note} if note else {})


def pairwise(images: np.ndarray, distance: Distance) -> np.ndarray:
    """Symmetric (N, N), 0 on the diagonal."""
    matrix = np.zeros((len(images), len(images)))
    first, second = np.triu_indices(len(images), 1)
    matrix[first, second] = matrix[second, first] = _in_batches(images, images, first, second, distance)
    return matrix


def nearest_reference(images: np.ndarray, references: np.ndarray, distance: Distance) -> np.ndarray:
    """Index (N,) of the reference that is nearest to each image."""
    first, second = (g.ravel() for g in np.indices((len(images), len(references))))
    return _in_batches(images, references, first, second, distance).reshape(len(images), -1).argmin(1)


def _in_batches(a: np.ndarray, b: np.ndarray, first: np.ndarray, second: np.ndarray, distance: Distance) -> np.ndarray:
    if a.shape[1:] != b.shape[1:]:
        raise InputError(f"pictures must have one size, not {a.shape[1:]} and {b.shape[1:]}")
    batches = [slice(start, start + BATCH) for start in range(0, len(first), BATCH)]
    values = np.concatenate([distance(a[first[s]], b[second[s]]) for s in batches])
    if not np.isfinite(values).all():
        raise InputError(f"{np.sum(~np.isfinite(values))} of {len(values)} distances are not finite numbers")
    return values


def ic_random(apart: np.ndarray, nearest: np.ndarray, seed: int = 0) -> float | None:
    """Mean over clusters of the mean distance in each, at most 50 pictures drawn; clusters of one left out.

    apart (N, N): distances; nearest (N,): the cluster of each picture. None if no cluster has two pictures.
    """
    rng = np.random.default_rng(seed)
    means = []
    for cluster in np.unique(nearest):
        members = np.flatnonzero(nearest == cluster)
        members = rng.choice(members, min(CLUSTER, len(members)), replace=False)
        if len(members) > 1:
            means.append(_mean_distance(apart, members))
    return float(np.mean(means)) if means else None


def ic_all(apart: np.ndarray, nearest: np.ndarray) -> float:
    """`ic_random` with every picture, clusters of one counted 0."""
    clusters = [np.flatnonzero(nearest == cluster) for cluster in np.unique(nearest)]
    return float(np.mean([_mean_distance(apart, c) if len(c) > 1 else 0.0 for c in clusters]))


def _mean_distance(apart: np.ndarray, members: np.ndarray) -> float:
    return np.mean([apart[i, j] for i, j in combinations(members, 2)])


def lpips_distance() -> Distance:
    """LPIPS on AlexNet. Raises OSError if AlexNet's weights cannot be fetched."""
    device = default_device()
    network = lpips.LPIPS(net="alex", verbose=False).to(device)

    @torch.inference_mode()
    def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return network(to_tensor(a, device), to_tensor(b, device)).flatten().cpu().numpy()

    return distance


def judge_distance(judge: Judge) -> Distance:
    """Euclidean distance of the judge's features."""
    return lambda a, b: np.linalg.norm(judge(a).features - judge(b).features, axis=1)
