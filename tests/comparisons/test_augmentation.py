import numpy as np
import pytest
import torch

from defectdiffu.comparisons import augmentation
from defectdiffu.comparisons.augmentation import MOST, adapted, augment, move, recolour

SAME = {"mirrored": torch.tensor([False]), "turns": torch.tensor([0]), "shift": torch.tensor([[0], [0]])}


@pytest.fixture
def pictures():
    return torch.rand(6, 4, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_with_probability_zero_nothing_changes(pictures):
    assert torch.equal(augment(pictures, 0.0, seeded()), pictures)


def test_with_probability_one_every_picture_changes_and_masks_keep_their_values(pictures):
    pictures[:, 3] = pictures[:, 3].sign()
    changed = augment(pictures, torch.tensor(1.0), seeded())
    assert all(not torch.equal(a, b) for a, b in zip(changed, pictures, strict=True))
    assert set(changed[:, 3].unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(changed, augment(pictures, 1.0, seeded()))
    assert not torch.equal(changed, augment(pictures, 1.0, seeded(1)))


def test_a_way_that_is_chosen_draws_all_its_changes_alike_and_none_among_them(monkeypatch):
    """Otherwise the generator would learn pictures that are turned, or mirrored, more often than the real ones."""
    monkeypatch.setattr(augmentation, "SHIFT", 0.0)
    points = torch.zeros(4000, 4, 8, 8)
    points[:, 3, 1, 2] = 1  # mirrored and turned, it comes to eight places
    places = augment(points, 1.0, seeded())[:, 3].flatten(1).argmax(1)
    share = torch.bincount(places, minlength=64) / len(places)
    assert (share > 0).sum() == 8
    assert (share[share > 0] - 1 / 8).abs().max() < 0.02


def test_pictures_are_mirrored_and_turned_as_numpy_does(pictures):
    one = pictures[:1]
    assert np.array_equal(move(one, **SAME | {"mirrored": torch.tensor([True])}), np.flip(one.numpy(), 3))
    for quarters in range(4):
        turned = move(one, **SAME | {"turns": torch.tensor([quarters])})
        assert np.array_equal(turned, np.rot90(one.numpy(), quarters, (2, 3)))


def test_pictures_are_shifted_by_whole_pixels_and_reflected_at_the_border(pictures):
    found = move(pictures[:1], **SAME | {"shift": torch.tensor([[2], [-3]])})
    assert torch.equal(found[..., 2:, :-3], pictures[:1, :, :-2, 3:])
    assert torch.equal(found[..., 0, :-3], pictures[:1, :, 2, 3:])


def test_colours_change_as_told(pictures):
    colour, mean = pictures[:1, :3], pictures[:1, :3].mean(1, keepdim=True)

    def amount(*values):
        return torch.tensor(values, dtype=torch.float)[:, None]

    assert torch.equal(recolour(colour, amount(0, 0, 0)), colour)
    torch.testing.assert_close(recolour(colour, amount(1, 0, 0)), colour + 0.2)
    torch.testing.assert_close(recolour(colour, amount(0, 2, 0)), colour * 2)
    torch.testing.assert_close(recolour(colour, amount(0, 0, 1)), mean + 2 * (colour - mean))


def test_gradients_pass(pictures):
    x = pictures.requires_grad_()
    (gradient,) = torch.autograd.grad(augment(x, 0.5, seeded()).sum(), x)
    assert gradient.abs().sum() > 0 and gradient.isfinite().all()


def test_p_follows_the_sign_of_the_discriminator_on_real_pictures():
    assert adapted(0.5, r_t=0.7, pictures=50_000) == pytest.approx(0.6)
    assert adapted(0.5, r_t=0.5, pictures=50_000) == pytest.approx(0.4)
    assert adapted(0.05, r_t=-1.0, pictures=50_000) == 0
    assert adapted(0.75, r_t=1.0, pictures=50_000) == MOST == 0.8
