import numpy as np
import pytest

from defectdiffu import InputError
from defectdiffu.selfcheck import change_ratio

SIDE = 8


def pair(inside: int, outside: int, marked: int = 2, twin_marked: int = 0):
    """A grey twin, and a picture that is `inside` brighter in its first `marked` rows and `outside` in the others."""
    mask, twin_mask = (np.arange(SIDE)[:, None] < n for n in (marked, twin_marked))
    mask, twin_mask = (np.broadcast_to(m, (SIDE, SIDE))[None] for m in (mask, twin_mask))
    twin = np.full((1, SIDE, SIDE, 3), 100, np.uint8)
    change = np.where(np.arange(SIDE)[:, None, None] < 2, inside, outside)
    return (twin + change).astype(np.uint8), twin, mask, twin_mask


def test_the_ratio_is_of_the_change_inside_and_outside():
    assert change_ratio(*pair(inside=40, outside=5)) == [8]


def test_rounding_outside_counts_as_one_grey_level():
    assert change_ratio(*pair(inside=40, outside=0)) == [40]


def test_darker_is_a_change_too():
    image, twin, *masks = pair(inside=40, outside=5)
    assert change_ratio(twin, image, *masks) == [8]


@pytest.mark.parametrize("marks", [{"marked": 0}, {"marked": SIDE}, {"twin_marked": 1}])
def test_no_mask_a_full_one_and_a_twin_with_a_defect_never_pass(marks):
    assert change_ratio(*pair(inside=40, outside=5, **marks)) == [0]


def test_sizes_must_agree():
    image, twin, mask, twin_mask = pair(1, 1)
    with pytest.raises(InputError, match="not of one size"):
        change_ratio(image, twin[:, 1:], mask, twin_mask)
