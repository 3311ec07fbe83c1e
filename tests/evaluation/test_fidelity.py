import shutil

import numpy as np
import pytest

from defectdiffu.errors import InputError
from defectdiffu.evaluation import diversity, fidelity
from defectdiffu.evaluation.fidelity import frechet_distance, judge_metrics
from defectdiffu.evaluation.folders import read_pairs

PAIRS = {("nut", "dent"): 6, ("nut", "spot"): 6}


def test_two_gaussians_in_closed_form():
    """Independent axes: the sum of (difference of means)^2 + (difference of deviations)^2."""
    rng = np.random.default_rng(0)
    standard = rng.normal(size=(500, 3))
    standard = (standard - standard.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(standard.T))).T
    a, b = standard * [1, 2, 3], standard * [2, 2, 1] + [1, 0, -2]
    assert frechet_distance(a, b) == pytest.approx((1 + 0 + 4) + (1 + 0 + 4))


def test_identical_sets_are_at_0():
    features = np.random.default_rng(0).normal(size=(5, 20))  # fewer than dimensions: a singular covariance
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)


def test_agrees_with_torch_fidelity():
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(100, 4)), rng.normal(0.5, 2, (90, 4))
    theirs = fid_statistics_to_metric(*(fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)), verbose=False)
    assert frechet_distance(a, b) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (np.zeros((1, 3)), np.zeros((5, 3)), "the first set: 1 picture, at least 2"),
        (np.zeros((5, 3)), np.full((5, 3), np.nan), "not finite"),
        (np.zeros((5, 3)), np.zeros((5, 4)), "not 3 and 4"),
    ],
)
def test_bad_features_are_named(a, b, said):
    with pytest.raises(InputError, match=said):
        frechet_distance(a, b)


def test_without_inception_nothing_is_called_fid(write_folder, no_network, only_that_judge):
    generated, real = write_folder("generated", PAIRS), write_folder("real", PAIRS | {("nut", "other"): 3})
    result = fidelity.run(generated, real)
    assert not {"fid", "kid", "inception_score"} & set(result)
    assert result["frechet_judge"] == pytest.approx(0, abs=1e-6)  # the same seed drew both
    assert "no route to host" in result["note"]
    assert result["counts"] == {"generated": 12, "real": 12}
    assert result["pairs"] == ["nut dent", "nut spot"]
    assert not {"precision", "recall", "kid"} & set(result)
    assert (result["precision_judge"], result["recall_judge"]) == (1, 1)


def test_what_looks_at_pictures_alone_needs_no_masks(write_folder, no_network, only_that_judge):
    """StyleGAN2 draws none."""
    generated, real = write_folder("generated", PAIRS), write_folder("real", PAIRS)
    with_masks = [measure.run(generated, real) for measure in (fidelity, diversity)]
    shutil.rmtree(generated / "nut" / "ground_truth")
    assert [measure.run(generated, real) for measure in (fidelity, diversity)] == with_masks
    with pytest.raises(InputError, match="no mask"):
        read_pairs(generated)


def test_precision_and_recall_of_two_known_clouds():
    """Generated: half on the real cloud, half far away. Recall is 1, precision is one half."""
    rng = np.random.default_rng(0)
    real = rng.normal(size=(40, 3)).astype(np.float32)
    scores = judge_metrics(np.concatenate([real, rng.normal(100, 1, (40, 3)).astype(np.float32)]), real)
    assert (scores["precision_judge"], scores["recall_judge"]) == (0.5, 1.0)
    apart = judge_metrics(real + 100, real)
    assert (apart["precision_judge"], apart["recall_judge"]) == (0, 0)
    assert apart["kid_judge"] > 100 > abs(judge_metrics(real, real)["kid_judge"])


def test_with_inception_its_scores_are_handed_on(write_folder, monkeypatch):
    """torch-fidelity is replaced: its network is not run."""
    known = {
        "frechet_inception_distance": 1.0,
        "kernel_inception_distance_mean": 2.0,
        "kernel_inception_distance_std": 3.0,
        "inception_score_mean": 4.0,
        "inception_score_std": 5.0,
        "precision": 0.6,
        "recall": 0.7,
    }
    asked = {}
    monkeypatch.setattr(fidelity, "calculate_metrics", lambda **arguments: asked.update(arguments) or known)
    result = fidelity.run(write_folder("generated", PAIRS), write_folder("real", PAIRS))
    assert (result["fid"], result["kid"], result["inception_score"]) == (1.0, 2.0, 4.0)
    assert (result["precision"], result["recall"]) == (0.6, 0.7)
    assert asked["prc"]
    assert asked["kid_subset_size"] == 6  # half, so that its deviation over subsets is not 0
    assert asked["input1"][0].shape == (3, 16, 16)


def test_too_few_pictures_are_counted(write_folder):
    with pytest.raises(InputError, match="4 pictures, at least 10"):
        fidelity.run(write_folder("generated", {("nut", "dent"): 4}), write_folder("real", PAIRS))


def test_a_pair_without_real_pictures_is_named(write_folder):
    with pytest.raises(InputError, match="nut with crack"):
        fidelity.run(write_folder("generated", {("nut", "crack"): 10}), write_folder("real", PAIRS))


def test_generated_pictures_of_two_sizes_are_named(write_folder):
    generated = write_folder("generated", {("nut", "dent"): 6})
    write_folder("generated", {("nut", "spot"): 6}, size=32)
    with pytest.raises(InputError, match=r"16 x 16.*32 x 32"):
        fidelity.run(generated, write_folder("real", PAIRS))
