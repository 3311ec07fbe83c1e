import numpy as np
import pytest

from defectdiffu.errors import InputError
from defectdiffu.evaluation.masks import iou_per_picture, run


def test_scores_by_hand():
    """Ranked 0.9 (defect), 0.8 (normal), 0.7 (defect), 0.1 (normal)."""
    scores = run(np.array([[[0.9, 0.8], [0.7, 0.1]]]), np.array([[[1, 0], [255, 0]]]))
    assert scores["iou"] == pytest.approx(2 / 3)
    assert scores["f1"] == pytest.approx(4 / 5)
    assert scores["ap"] == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert scores["auroc"] == pytest.approx(3 / 4)  # 3 of 4 pairs of defect and normal pixel are in order
    assert scores["count"] == 1


def test_the_truth_itself_scores_1():
    truth = np.random.default_rng(0).random((2, 8, 8)) > 0.7
    scores = run(truth.astype(float), truth)
    assert [scores[k] for k in ("iou", "f1", "ap", "auroc")] == pytest.approx([1, 1, 1, 1])


def test_iou_per_picture_by_hand():
    found, truth = np.zeros((3, 2, 2)), np.zeros((3, 2, 2))
    found[0, 0], truth[0, :, 0] = 1, 1  # a row and a column share one of three pixels
    found[1, 0] = 1  # a false alarm
    assert iou_per_picture(found, truth).tolist() == pytest.approx([1 / 3, 0, 1])


@pytest.mark.parametrize(
    ("probabilities", "truths", "said"),
    [
        (np.zeros((0, 4, 4)), np.zeros((0, 4, 4)), "at least 1"),
        (np.zeros((2, 4, 4)), np.zeros((2, 4, 5)), "shapes must agree"),
        (np.zeros((2, 4, 4)), np.zeros((2, 4, 4)), "all 2 true masks are empty"),
        (np.full((1, 4, 4), np.nan), np.eye(4)[None], r"numbers in \[0, 1\]"),
        (np.full((1, 4, 4), 255), np.eye(4)[None], r"numbers in \[0, 1\]"),
    ],
)
def test_bad_masks_are_named(probabilities, truths, said):
    with pytest.raises(InputError, match=said):
        run(probabilities, truths)
