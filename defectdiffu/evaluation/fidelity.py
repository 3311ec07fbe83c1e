"""Do generated pictures, as a set, look like real ones? FID, KID and IS of torch-fidelity.

Their network (Inception) is fetched when first used. Where it cannot be, the Frechet distance on the judge's features
is all there is; it is another number on another scale, goes by another name, and compares only with itself.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics

from defectdiffu.data.folder import FolderDataset, Sample
from defectdiffu.errors import InputError
from defectdiffu.evaluation.judge import Judge
from defectdiffu.evaluation.pictures import check_count, common_size, fetched, judge_features, read_alike

LEAST = 10
KID_SUBSET = 1000  # torch-fidelity's default; the number of pictures where there are fewer


def run(generated: str | Path, real: str | Path) -> dict:
    """Compare two folders in MVTec AD's layout, on the pairs (product, defect) that the generated one holds.

    Returns {counts, size, fid, kid, kid_std, inception_score, inception_score_std}, or, where Inception cannot be
    fetched, {counts, size, frechet_judge, judge, note}. All are biased by small counts: compare equal counts only.
    Raises `InputError` if either folder has fewer than 10 pictures.
    """
    pairs = read_alike(generated, real)
    size = common_size(pairs[0])
    ours, theirs = (list(chain.from_iterable(p.values())) for p in pairs)
    check_count(str(generated), len(ours), LEAST)
    check_count(f"{real} (the generated pairs only)", len(theirs), LEAST)
    counts = {"generated": len(ours), "real": len(theirs)}

    metrics, reason = fetched(inception_metrics, Pictures(ours, size), Pictures(theirs, size))
    if metrics is not None:
        return {"counts": counts, "size": size, **metrics}
    judge = Judge.shipped(size)
    return {
        "counts": counts,
        "size": judge.size,
        "frechet_judge": frechet_distance(judge_features(ours, judge), judge_features(theirs, judge)),
        "judge": judge.card,
        "note": f"FID, KID and IS are not reported: {reason}. frechet_judge is no FID and compares only with itself.",
    }


class Pictures(Dataset):
    """Samples as torch-fidelity wants them: uint8 (3, S, S). The real ones are brought to the generated ones' size."""

    def __init__(self, samples: Sequence[Sample], size: int):
        self.dataset = FolderDataset(samples, size)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.dataset[index]["image"].copy()).permute(2, 0, 1)


def inception_metrics(generated: Dataset, real: Dataset) -> dict[str, float]:
    """FID, KID and IS by torch-fidelity. Raises OSError where the Inception weights cannot be fetched."""
    metrics = calculate_metrics(
        input1=generated,
        input2=real,
        fid=True,
        kid=True,
        isc=True,
        kid_subset_size=min(KID_SUBSET, len(generated), len(real)),
        cuda=torch.cuda.is_available(),
        cache=False,
        verbose=False,
    )
    return {
        "fid": metrics["frechet_inception_distance"],
        "kid": metrics["kernel_inception_distance_mean"],
        "kid_std": metrics["kernel_inception_distance_std"],
        "inception_score": metrics["inception_score_mean"],
        "inception_score_std": metrics["inception_score_std"],
    }


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of the features a (N, D) and b (M, D).

    Raises `InputError` for fewer than 2 of either, different D, or values that are not finite.
    """
    for name, features in (("first", a), ("second", b)):
        check_count(f"the {name} set", len(features), 2)
        if not np.isfinite(features).all():
            raise InputError(f"the {name} set has features that are not finite numbers")
    if a.shape[1] != b.shape[1]:
        raise InputError(f"features of one length are compared, not {a.shape[1]} and {b.shape[1]}")
    a, b = a.astype(float), b.astype(float)
    root_a, root_b = (_root(np.atleast_2d(np.cov(x.T))) for x in (a, b))
    # tr((C_a C_b)^(1/2)) is the sum of the singular values of C_a^(1/2) C_b^(1/2): exact for singular C as well.
    overlap = np.linalg.svd(root_a @ root_b, compute_uv=False).sum()
    apart = np.sum((a.mean(0) - b.mean(0)) ** 2)
    return float(max(0.0, apart + np.sum(root_a**2) + np.sum(root_b**2) - 2 * overlap))


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T
