import numpy as np
import pytest
import torch
from comparing import SIZES, Killed, killed_at, same_checkpoints, samples_of

from defectdiffu import InputError
from defectdiffu.comparisons import dfmgan
from defectdiffu.comparisons.dfmgan import DFMGAN, DefectGame, mode_seeking
from defectdiffu.comparisons.stylegan2 import Discriminator, StyleGAN2

WIDTHS = {name: SIZES[name] for name in ("channels", "max_channels")}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return DFMGAN(32, **SIZES)


def fitted(data, out, steps: int) -> DFMGAN:
    samples = samples_of(data, "good", "hole")
    return dfmgan.fit(samples, out, steps, size=32, batch_size=4, checkpoint_every=3, **SIZES)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """(model, its folder) after a few steps of both stages."""
    out = tmp_path_factory.mktemp("dfmgan") / "hole"
    return fitted(data, out, 8), out


def test_a_mask_of_zeros_leaves_the_backbones_picture(model):
    z = torch.randn(3, model.latent_size)
    of_object = z[:, : model.backbone.latent_size]
    assert not torch.equal(model(z)[:, :3], model.backbone(of_object))
    for parameter in (model.to_mask.weight, model.to_mask.bias):
        parameter.data.zero_()
    found = model(z)
    assert not found[:, 3].any()
    assert torch.equal(found[:, :3], model.backbone(of_object))


def test_the_picture_changes_around_the_mask_alone(model):
    """The features change in the mask; filters and convolutions carry that some pixels further."""
    model.to_mask.weight.data.zero_()
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :2, :2] = 1
    model.to_mask.forward = lambda x, w: mask * 2 - 1
    z = torch.randn(1, model.latent_size)
    found = model(z)
    changed = (found[:, :3] != model.backbone(z[:, : model.backbone.latent_size])).any(dim=1)[0]
    assert changed[:8, :8].all() and not changed[24:].any() and not changed[:, 24:].any()
    assert torch.equal(found[0, 3] > 0, torch.nn.functional.interpolate(mask * 2 - 1, 32, mode="bilinear")[0, 0] > 0)


def test_masks_are_in_range_and_the_same_object_gets_other_defects(model):
    z = torch.randn(4, model.latent_size)
    z[:, : model.backbone.latent_size] = z[0, : model.backbone.latent_size]
    found = model(z)
    assert found.shape == (4, 4, 32, 32)
    assert float(found[:, 3].detach().abs().max()) <= 1
    assert not torch.equal(found[0, 3], found[1, 3])


def test_mode_seeking_by_hand():
    w, other = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]])
    mask, other_mask = torch.zeros(1, 2, 2), torch.full((1, 2, 2), 0.5)
    assert float(mode_seeking(w, other, mask, other_mask)) == pytest.approx(1.5 / 0.5, rel=1e-4)
    assert mode_seeking(w, other, mask, mask).isfinite()


def test_mode_seeking_is_a_tenth_of_the_loss_and_trains_the_mask(model):
    game = DefectGame(model, [Discriminator(32, **WIDTHS), Discriminator(32, **WIDTHS, in_channels=4)])
    z, rng = torch.randn(4, model.latent_size), torch.Generator().manual_seed(0)
    terms = game.generator_terms(z, rng)
    assert terms.keys() == {"generator", "mode_seeking"}
    other = z.clone()
    other[:, model.backbone.latent_size :] = z[:, model.backbone.latent_size :].roll(1, 0)
    styles = model.defect_style(z), model.defect_style(other)
    expected = 0.1 * mode_seeking(*styles, model(z)[:, 3], model(other)[:, 3])
    torch.testing.assert_close(terms["mode_seeking"], expected)
    gradient = torch.autograd.grad(terms["mode_seeking"], model.to_mask.weight)[0]
    assert gradient.abs().sum() > 0


def test_the_backbone_stays_as_stage_1_left_it(trained):
    model, out = trained
    backbone = StyleGAN2.from_pretrained(out.with_name("good"))
    assert (backbone.config.product, backbone.config.defect) == ("tile", "good")
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, model.backbone.state_dict()[name]), name
    torch.manual_seed(0)
    new = DFMGAN(32, **SIZES)
    for name, value in new.named_parameters():
        if value.requires_grad:
            assert not torch.equal(value, model.get_parameter(name)), name


def test_a_saved_model_is_loaded_as_it_was_and_samples_by_seed(trained):
    model, out = trained
    loaded = DFMGAN.from_pretrained(out)
    assert (loaded.config.product, loaded.config.defect) == ("tile", "hole")
    images, masks = loaded.sample(3, [5, 9, 2])
    assert images.shape == (3, 32, 32, 3) and images.dtype == np.uint8
    assert masks.shape == (3, 32, 32) and masks.dtype == bool
    for a, b in zip((images, masks), model.sample(3, [5, 9, 2]), strict=True):
        assert np.array_equal(a, b)
    image, _ = loaded.sample(1, [9])
    assert np.abs(images[1].astype(int) - image[0]).max() <= 1  # rounding
    assert not np.array_equal(images[0], images[1])


def test_resumed_training_gives_the_weights_of_one_that_was_not_stopped(trained, data, tmp_path, monkeypatch):
    _, out = trained
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(dfmgan, "fit_game", killed_at(5, dfmgan.fit_game))
        fitted(data, tmp_path / "hole", 8)
    fitted(data, tmp_path / "hole", 8)
    assert same_checkpoints(out, tmp_path / "hole", 8)


def test_bad_input_is_one_line(data, tmp_path):
    with pytest.raises(InputError, match="pictures of 16 px: DFMGAN needs at least 32"):
        DFMGAN(16)
    for defect in ("good", "hole"):
        with pytest.raises(InputError, match="there is no picture to train on"):
            dfmgan.fit(samples_of(data, defect), tmp_path, 1, size=32, batch_size=4, **SIZES)
