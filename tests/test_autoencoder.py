import pytest
import torch
import torch.nn.functional as F

from defectdiffu import autoencoder
from defectdiffu.config import AutoencoderConfig
from defectdiffu.errors import InputError
from defectdiffu.training.building import load_autoencoder


def small(**changes):
    torch.manual_seed(0)
    return autoencoder.build_autoencoder(AutoencoderConfig(**{"channels": 8} | changes)).eval()


@pytest.mark.parametrize(("downsample", "channels"), [(2, 4), (4, 4), (8, 3)])
@torch.no_grad()
def test_sides_and_channels(downsample, channels):
    vae = small(downsample=downsample, latent_channels=channels)
    assert autoencoder.downsampling(vae) == downsample
    latents = autoencoder.encode(vae, torch.zeros(2, 3, 32, 32))
    assert latents.shape == (2, channels, 32 // downsample, 32 // downsample)
    pictures = autoencoder.decode(vae, 100 * torch.randn(latents.shape))
    assert pictures.shape == (2, 3, 32, 32)
    assert pictures.abs().max() <= 1


@torch.no_grad()
def test_the_scaling_factor_scales_latents_and_is_taken_back():
    vae, pictures = small(), torch.rand(2, 3, 32, 32) * 2 - 1
    latents, decoded = autoencoder.encode(vae, pictures), autoencoder.decode(vae, autoencoder.encode(vae, pictures))
    vae.register_to_config(scaling_factor=4.0)
    torch.testing.assert_close(autoencoder.encode(vae, pictures), 4 * latents)
    torch.testing.assert_close(autoencoder.decode(vae, 4 * latents), decoded)


@torch.no_grad()
def test_a_new_one_keeps_what_principal_components_keep():
    """Patches vary along three directions with falling variance: C components leave the variance of the others."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(48, 3, generator=generator)).Q * torch.tensor([0.6, 0.3, 0.1])
    patches = 0.2 + torch.randn(64, 8, 8, 3, generator=generator).clamp(-3, 3) @ directions.T
    pictures = F.pixel_shuffle(patches.movedim(-1, 1), 4)
    assert pictures.abs().max() < 1
    for channels, left in ((1, 0.3**2 + 0.1**2), (2, 0.1**2), (3, 0.0)):
        vae = small(latent_channels=channels)
        autoencoder.begin_as_principal_components(vae, pictures)
        latents = autoencoder.encode(vae, pictures)
        assert float(latents.square().mean().sqrt()) == pytest.approx(autoencoder.LATENT_RMS, rel=0.02)
        deviations = latents.std((0, 2, 3))
        expected = torch.tensor([0.6, 0.3, 0.1])[:channels].sqrt()
        torch.testing.assert_close(deviations / deviations[0], expected / expected[0], rtol=0.05, atol=0)
        straight = 3 * torch.atanh(latents.clamp(-2.9, 2.9) / 3)  # before the decoder's tanh
        error = float((autoencoder.decode(vae, straight) - pictures).square().mean()) * 48
        assert error == pytest.approx(left, rel=0.05, abs=1e-4)


@pytest.mark.parametrize(("channels", "downsample", "most"), [(8, 4, 8), (96, 2, 12)])
def test_too_many_latent_channels_are_refused(channels, downsample, most):
    small(channels=channels, downsample=downsample, latent_channels=most)
    with pytest.raises(InputError, match=f"latent_channels {most + 1} must be at most {most}"):
        small(channels=channels, downsample=downsample, latent_channels=most + 1)


def test_a_saved_one_is_read_back(tmp_path):
    vae, pictures = small(downsample=2), torch.rand(2, 3, 32, 32) * 2 - 1
    vae.register_to_config(scaling_factor=3.0)
    vae.save_pretrained(tmp_path)
    again = load_autoencoder(str(tmp_path))
    assert isinstance(again, autoencoder.PatchAutoencoder)
    with torch.no_grad():
        assert torch.equal(autoencoder.encode(again, pictures), autoencoder.encode(vae, pictures))


def test_difference_by_hand():
    """One pixel of 3 x 3 off by 0.9 in one channel of one picture: 27 values, 18 neighbours each way."""
    a = torch.zeros(1, 3, 3, 3)
    b = a.clone()
    b[0, 0, 1, 1] = 0.9
    squares = autoencoder.SQUARE_WEIGHT * 0.9**2 / 27
    assert float(autoencoder.difference(a, b)) == pytest.approx(0.9 / 27 + squares + 2 * (2 * 0.9 / 18))
    assert autoencoder.difference(a, a) == 0
    flat = autoencoder.difference(a, a + 0.5)  # a shift of brightness has no edges
    assert float(flat) == pytest.approx(0.5 + autoencoder.SQUARE_WEIGHT * 0.25)


def test_it_learns_to_reconstruct():
    vae = small().train()
    pictures = torch.rand(4, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3) * 2 - 1
    optimizer = torch.optim.Adam(vae.parameters(), 1e-2)
    noise = torch.randn(4, 4, 8, 8)
    losses = []
    for _ in range(60):
        loss = autoencoder.reconstruction_loss(vae, pictures, 0.1, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


class Shift(torch.nn.Module):
    """A fake autoencoder that makes everything lighter by a constant."""

    def __init__(self, by: float):
        super().__init__()
        self.config = {"scaling_factor": 1.0}
        self.by = by

    def encode(self, pictures):
        return type("Encoded", (), {"latents": pictures})

    def decode(self, latents):
        return type("Decoded", (), {"sample": latents + self.by})


def test_fidelity_by_hand():
    pictures = torch.zeros(2, 3, 4, 4)
    masks = torch.zeros(2, 4, 4)
    masks[0, :2] = 1
    exact = autoencoder.fidelity(Shift(0.0), pictures + 0.1, masks)
    assert exact["mask_iou"] == 1
    off = autoencoder.fidelity(Shift(0.2), pictures, masks)
    assert off["psnr_db"] == pytest.approx(20)  # an error of a tenth of full scale
    assert off["mask_iou"] == 1
    lost = autoencoder.fidelity(Shift(1.5), pictures, masks)
    assert lost["mask_iou"] == pytest.approx(8 / 32)  # everything is marked as defect


def test_recombined_pictures_keep_their_values_and_differ_in_colour_or_through_a_mask():
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(32, 3, 8, 8, generator=generator) * 2 - 1
    masks = torch.zeros(32, 8, 8)
    masks[::2, 2:4, 2:4] = 1
    out = autoencoder.recombine(pictures, masks, torch.Generator().manual_seed(1))
    assert out.shape == pictures.shape
    # Every value stems from a picture's channels, perhaps inverted.
    assert torch.isin(out.abs(), pictures.abs()).all()
    untouched = (out == pictures).flatten(1).all(1)
    assert 16 <= untouched.sum() <= 30
    assert torch.equal(out, autoencoder.recombine(pictures, masks, torch.Generator().manual_seed(1)))


def test_recombining_without_a_mask_only_changes_colours():
    pictures = torch.rand(32, 3, 4, 4) * 2 - 1
    out = autoencoder.recombine(pictures, torch.zeros(32, 4, 4), torch.Generator().manual_seed(0))
    torch.testing.assert_close(out.abs().sort(dim=1).values, pictures.abs().sort(dim=1).values)
    assert not torch.equal(out, pictures)
