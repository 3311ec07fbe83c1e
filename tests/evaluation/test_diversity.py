from functools import partial

import lpips
import numpy as np
import pytest

from defectdiffu.errors import InputError
from defectdiffu.evaluation import diversity
from defectdiffu.evaluation.diversity import ic_all, ic_random, nearest_reference, pairwise


def brightness(a, b):
    """A toy distance: the difference of the first pixels."""
    return np.abs(a[:, 0, 0, 0].astype(float) - b[:, 0, 0, 0])


def grey(*levels):
    return np.stack([np.full((4, 4, 3), level, np.uint8) for level in levels])


def test_pairwise_is_symmetric_and_0_on_the_diagonal():
    assert pairwise(grey(0, 10, 30), brightness).tolist() == [[0, 10, 30], [10, 0, 20], [30, 20, 0]]


def test_ic_by_hand():
    """References at 0, 100 and 250; clusters {2, 6, 10}, {90, 120} and {240}."""
    images = grey(2, 6, 90, 10, 120, 240)
    nearest = nearest_reference(images, grey(0, 100, 250), brightness)
    assert nearest.tolist() == [0, 0, 1, 0, 1, 2]
    apart = pairwise(images, brightness)
    first, second = (4 + 8 + 4) / 3, 30
    assert ic_random(apart, nearest) == pytest.approx((first + second) / 2)
    assert ic_all(apart, nearest) == pytest.approx((first + second + 0) / 3)


def test_ic_random_draws_50_of_a_large_cluster(monkeypatch):
    sizes = []
    monkeypatch.setattr(diversity, "_mean_distance", lambda apart, members: sizes.append(len(members)) or 1.0)
    ic_random(np.zeros((80, 80)), np.array([0] * 70 + [1] * 10))
    assert sizes == [50, 10]


def test_copies_of_the_references_are_not_diverse():
    """They differ from each other, but each is alone in its cluster or only with equal pictures."""
    references = grey(0, 100, 200)
    copies = np.concatenate([references, references])
    apart, nearest = pairwise(copies, brightness), nearest_reference(copies, references, brightness)
    assert apart[np.triu_indices(6, 1)].mean() > 100
    assert ic_random(apart, nearest) == ic_all(apart, nearest) == 0


def test_no_cluster_of_two_is_undefined():
    apart = pairwise(grey(0, 100), brightness)
    assert ic_random(apart, np.array([0, 1])) is None
    assert ic_all(apart, np.array([0, 1])) == 0


def test_distances_that_are_not_numbers_are_refused():
    with pytest.raises(InputError, match="not finite"):
        pairwise(grey(0, 1), lambda a, b: np.full(len(a), np.nan))


def test_pictures_of_two_sizes_are_refused():
    with pytest.raises(InputError, match="one size"):
        nearest_reference(grey(0), np.zeros((1, 8, 8, 3), np.uint8), brightness)


def test_lpips_of_a_picture_and_itself_is_0(monkeypatch):
    monkeypatch.setattr(diversity.lpips, "LPIPS", partial(lpips.LPIPS, pnet_rand=True))  # random weights, not fetched
    distance = diversity.lpips_distance()
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    assert distance(images, images).tolist() == [0, 0]
    assert (distance(images, images[::-1].copy()) > 0).all()


def test_run_means_over_pairs(write_folder):
    counts = {("nut", "dent"): 3, ("nut", "spot"): 2}
    result = diversity.run(write_folder("generated", counts), write_folder("real", counts, seed=1), brightness)
    means = [pair["distance"] for pair in result["pairs"].values()]
    assert result["distance"]["mean"] == pytest.approx(np.mean(means))
    assert result["distance"]["count"] == 2
    assert set(result) >= {"ic_distance_random_50", "ic_distance_all", "seeds", "size"}


def test_without_alexnet_nothing_is_called_lpips(write_folder, no_network, only_that_judge):
    counts = {("nut", "dent"): 3}
    result = diversity.run(write_folder("generated", counts), write_folder("real", counts, seed=1))
    assert not any("lpips" in key for key in result)
    assert result["judge_distance"]["mean"] > 0
    assert "no route to host" in result["note"]


def test_one_picture_cannot_be_diverse(write_folder):
    counts = {("nut", "dent"): 1}
    with pytest.raises(InputError, match="1 picture, at least 2"):
        diversity.run(write_folder("generated", counts), write_folder("real", counts), brightness)
