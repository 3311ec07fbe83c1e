import numpy as np
import pytest
import torch

from defectdiffu import masks


def blob(low: float, high: float, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    inside = np.zeros((32, 32), bool)
    inside[8:16, 10:25] = True
    values = np.where(inside, high, low) + noise * np.random.default_rng(0).standard_normal(inside.shape)
    return values.clip(0, 1).astype(np.float32), inside


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_flat_map_is_empty(value):
    assert masks.binarise(np.full((8, 8), value, np.float32)).max() == 0


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.1, 0.5), (0.5, 0.9)])
def test_a_map_of_two_values_is_split_between_them(low, high):
    values, inside = blob(low, high)
    found = masks.binarise(values)
    assert found.dtype == np.uint8
    assert set(np.unique(found)) == {0, 255}
    assert ((found == 255) == inside).all()


def test_a_noisy_defect_is_found():
    values, inside = blob(0.1, 0.8, noise=0.08)
    assert ((masks.binarise(values) == 255) == inside).mean() > 0.99


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.1, 0.2])
def test_noise_alone_is_empty(noise):
    values, _ = blob(0.3, 0.3, noise)
    assert masks.binarise(values).max() == 0


def test_a_faint_difference_is_empty():
    values, _ = blob(0.3, 0.38)
    assert masks.binarise(values).max() == 0


@pytest.mark.parametrize(("steps", "averaged"), [(1, 1), (4, 1), (10, 1), (20, 2), (50, 5), (1000, 100)])
def test_a_tenth_of_the_steps_at_least_one_is_averaged(steps, averaged):
    assert masks.averaged_steps(steps) == averaged


def test_resize_keeps_a_defect_of_one_pixel_and_adds_none():
    mask = torch.zeros(2, 32, 32)
    mask[0, 13, 22] = 1
    small = masks.resize_mask(mask, (8, 8))
    assert small.shape == (2, 8, 8)
    assert small.nonzero().tolist() == [[0, 3, 5]]
    assert small[0, 3, 5] == 1


def test_a_mask_returns_from_its_picture():
    mask = torch.rand(2, 4, 4)
    picture = masks.to_picture(mask)
    assert picture.shape == (2, 3, 4, 4)
    torch.testing.assert_close(masks.to_probability(picture), mask)
    assert masks.to_picture(torch.tensor([[[0.0, 1.0]]]))[0, :, 0].tolist() == [[-1, 1]] * 3
    assert masks.to_probability(torch.tensor([-3.0, 3.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)).flatten().tolist() == [
        0,
        1,
    ]
