import numpy as np
import pytest
import torch

from defectdiffu.errors import InputError
from defectdiffu.evaluation.judge import KINDS, NAMES, Judge, JudgeNetwork


@pytest.mark.parametrize("size", [16, 32, 64, 256])
def test_shapes(size):
    product, defect, mask, features = JudgeNetwork(size).eval()(torch.zeros(1, 3, size, size))
    assert product.shape == (1, len(NAMES))
    assert defect.shape == (1, len(KINDS))
    assert mask.shape == (1, size, size)
    assert features.shape == (1, 192)


def test_bad_input_is_named(judge, tmp_path):
    with pytest.raises(InputError, match="no judge in"):
        Judge.load(tmp_path)
    with pytest.raises(InputError, match="not uint8 \\(2, 32, 32, 3\\)"):
        judge(np.zeros((2, 32, 32, 3), np.uint8))
    with pytest.raises(InputError, match="not float64"):
        judge(np.zeros((2, 16, 16, 3)))
    with pytest.raises(InputError, match="16, 32, 64 or 256"):
        JudgeNetwork(100)
    with pytest.raises(InputError, match="no judge for 8 pixels"):
        Judge.shipped(8)
