import numpy as np
import pytest

from defectdiffu.errors import InputError
from defectdiffu.evaluation import memorisation
from defectdiffu.evaluation.memorisation import nearest_ratio


def test_ratio_by_hand():
    """Training at 0, 4 and 6 on a line: the usual distance is (4 + 2 + 2) / 3."""
    training = np.array([[0.0], [4.0], [6.0]])
    ratio, place = nearest_ratio(np.array([[4.0], [1.0], [14.0]]), training)
    assert ratio == pytest.approx(np.array([0, 1, 8]) / (8 / 3))
    assert place.tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("generated", "training", "said"),
    [
        (np.zeros((1, 2)), np.zeros((1, 2)), "1 picture, at least 2"),
        (np.zeros((1, 2)), np.zeros((3, 2)), "exact copy"),
        (np.full((1, 2), np.nan), np.eye(2), "not finite"),
    ],
)
def test_bad_features_are_named(generated, training, said):
    with pytest.raises(InputError, match=said):
        nearest_ratio(generated, training)


def test_a_folder_of_copies_is_found_out(write_folder, judge):
    counts = {("nut", "dent"): 4, ("nut", "spot"): 4}
    result = memorisation.run(write_folder("generated", counts), write_folder("real", counts), judge)
    assert result["ratio"]["mean"] == pytest.approx(0, abs=1e-4)
    assert result["below_half"]["mean"] == 1
    assert result["nearest"][0]["training"].replace("/real/", "/generated/") == result["nearest"][0]["generated"]


def test_other_pictures_are_about_as_far_as_the_training_pictures(write_folder, judge):
    counts = {("nut", "dent"): 12}
    result = memorisation.run(write_folder("generated", counts, seed=5), write_folder("real", counts), judge)
    assert 0.5 < result["ratio"]["mean"] < 2
