"""Do generated pictures, as a set, look like real ones? FID, KID, IS, precision and recall of torch-fidelity.

Their network (Inception) is fetched when first used. If it cannot be fetched, the judge's features are used instead:
these scores have other scales and other names and are comparable only with themselves.

Scores of whole sets have no bootstrap interval: a resampled set has copies in it, which bias these scores. KID
is given with its deviation over random halves instead.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from defectdiffu.data.folder import FolderDataset, Sample
from defectdiffu.errors import InputError
from defectdiffu.evaluation.folders import check_count, common_size, fetched, judge_features, read_alike
from defectdiffu.evaluation.judge import Judge

LEAST = 10
KID_SUBSET = 1000  # torch-fidelity's default; half the pictures where there are fewer than twice as many


def run(generated: str | Path, real: str | Path) -> dict:
    """Compare two folders in MVTec AD's layout, on the pairs (product, defect) that the generated one holds.

    Returns {counts, pairs, size} and {fid, kid, kid_std, inception_score, inception_score_std, precision, recall}, or,
    if Inception cannot be fetched, {frechet_judge, kid_judge, kid_judge_std, precision_judge, recall_judge, judge,
    note}. precision: share of generated pictures within reach of the real ones; recall: the reverse (Kynkaanniemi et
    al., 2019). FID and Frechet distances are biased by small counts: compare equal counts only.
    Raises `InputError` if either folder has fewer than 10 pictures.
    """
    pairs = read_alike(generated, real)
    size = common_size(pairs[0])
    ours, theirs = (list(chain.from_iterable(p.values())) for p in pairs)
    check_count(str(generated), len(ours), LEAST)
    check_count(f"{real} (the generated pairs only)", len(theirs), LEAST)
    about = {"counts": {"generated": len(ours), "real": len(theirs)}, "pairs": [" ".join(pair) for pair in pairs[0]]}

    metrics, reason = fetched(inception_metrics, ImageSet(ours, size), ImageSet(theirs, size))
    if metrics is not None:
        return {**about, "size": size, **metrics}
    judge = Judge.shipped(size)
    note = f"FID, KID, IS, precision and recall are not reported: {reason}. Compare the judge's only with themselves."
    metrics = judge_metrics(judge_features(ours, judge), judge_features(theirs, judge))
    return {**about, "size": judge.size, **metrics, "judge": judge.card, "note": note}


class ImageSet(Dataset[torch.Tensor]):
    """Samples in torch-fidelity's format: uint8 (3, S, S). Real pictures are resized to the generated ones' size."""

    def __init__(self, samples: Sequence[Sample], size: int):
        self.dataset = FolderDataset(samples, size)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.dataset[index]["image"].copy()).permute(2, 0, 1)


def inception_metrics(generated: ImageSet, real: ImageSet) -> dict[str, float]:
    """All scores, by torch-fidelity. Raises OSError if the Inception weights cannot be fetched."""
    metrics = calculate_metrics(
        input1=generated,
        input2=real,
        fid=True,
        kid=True,
        isc=True,
        prc=True,
        kid_subset_size=_kid_subset(len(generated), len(real)),
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
        "precision": metrics["precision"],
        "recall": metrics["recall"],
    }


def judge_metrics(generated: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Frechet distance, KID, precision and recall of the judge's features, generated (N, D) and real (M, D)."""
    a, b = torch.from_numpy(generated), torch.from_numpy(real)
    kid = kid_features_to_metric(a, b, kid_subset_size=_kid_subset(len(a), len(b)), verbose=False)
    reach = prc_features_to_metric(a, b, verbose=False)
    return {
        "frechet_judge": frechet_distance(generated, real),
        "kid_judge": kid["kernel_inception_distance_mean"],
        "kid_judge_std": kid["kernel_inception_distance_std"],
        "precision_judge": reach["precision"],
        "recall_judge": reach["recall"],
    }


def _kid_subset(*counts: int) -> int:
    return min(KID_SUBSET, min(counts) // 2)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of the features a (N, D) and b (M, D).

    Raises `InputError` for fewer than 2 of either, different D, or values that are not finite.
    """
    for name, features in (("first", a), ("second", b)):
        check_count(f"the {name} set", len(features), 2)
        if not np.isfinite(features).all():
            raise InputError(f"the {name} set has features that are not finite numbers")
    if a.shape[1] != b.shape[1]:
        raise InputError(f"features must have one length, not {a.shape[1]} and {b.shape[1]}")
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
