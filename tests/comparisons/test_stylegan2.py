import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparing import SIZES, Killed, killed_at, same_checkpoints, samples_of

from defectdiffu import InputError
from defectdiffu.comparisons import stylegan2
from defectdiffu.comparisons.stylegan2 import (
    Discriminator,
    StyleBlock,
    StyleGAN2,
    blur,
    double,
    minibatch_deviation,
    modulated_convolution,
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def model():
    return StyleGAN2(32, **SIZES)


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
def test_modulated_convolution_is_a_convolution_with_each_pictures_own_weights(demodulate, kernel):
    x, weight, style = torch.randn(3, 5, 8, 8), torch.randn(7, 5, kernel, kernel), torch.randn(3, 5)
    found = modulated_convolution(x, weight, style, demodulate)
    for i in range(3):
        own = weight * style[i, None, :, None, None]  # Eq. 1
        if demodulate:
            own = own / own.square().sum(dim=(1, 2, 3), keepdim=True).add(1e-8).sqrt()  # Eq. 3
        torch.testing.assert_close(
            found[i : i + 1], F.conv2d(x[i : i + 1], own, padding=kernel // 2), rtol=1e-5, atol=1e-5
        )


def test_upsampling_is_zeros_between_the_values_then_the_convolution_then_the_filter():
    x, weight, style = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 3, 3), torch.randn(2, 3)
    found = modulated_convolution(x, weight, style, upsample=True)
    assert found.shape == (2, 5, 8, 8)
    apart = torch.zeros(2, 3, 9, 9)
    apart[:, :, 1::2, 1::2] = x
    own = weight * style[:, None, :, None, None]
    own = own / own.square().sum(dim=(2, 3, 4), keepdim=True).add(1e-8).sqrt()
    by_hand = torch.cat([F.conv2d(apart[i : i + 1], own[i].flip(-1, -2), padding=1) for i in range(2)])
    torch.testing.assert_close(found, blur(by_hand, padding=1, gain=4), rtol=1e-5, atol=1e-5)


def test_demodulated_outputs_have_unit_scale_whatever_the_style():
    x = torch.randn(8, 64, 16, 16)
    found = modulated_convolution(x, 3 * torch.randn(64, 64, 3, 3), 5 * torch.rand(8, 64) + 1)
    assert float(found[:, :, 1:-1, 1:-1].std()) == pytest.approx(1, abs=0.03)


def test_the_filter_keeps_constants_and_halves_and_doubles_alike():
    ones = torch.ones(1, 2, 8, 8)
    torch.testing.assert_close(blur(ones, padding=1)[..., 1:-1, 1:-1], ones[..., :5, :5])
    torch.testing.assert_close(double(ones), torch.ones(1, 2, 16, 16))
    torch.testing.assert_close(
        double(torch.eye(8)[None, None])[..., 2:-2, 2:-2],
        blur(F.conv_transpose2d(torch.eye(8)[None, None], torch.ones(1, 1, 1, 1), stride=2), padding=2, gain=4)[
            ..., 2:-2, 2:-2
        ],
    )


def test_minibatch_deviation_by_hand():
    x = torch.zeros(4, 1, 1, 2)
    x[:, 0, 0, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])  # deviation sqrt(1.25), at the other place 0
    found = minibatch_deviation(x)
    assert torch.equal(found[:, :1], x)
    torch.testing.assert_close(found[:, 1], torch.full((4, 1, 2), math.sqrt(1.25) / 2), atol=1e-4, rtol=0)
    assert minibatch_deviation(torch.randn(6, 3, 4, 4)).shape == (6, 4, 4, 4)  # in pairs


def test_noise_starts_without_effect_and_then_matters():
    block = StyleBlock(4, 4, 8)
    x, w, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 8), torch.randn(2, 64)
    silent = block(x, w, noise)
    assert torch.equal(silent, block(x, w, 0 * noise))
    block.strength.data += 1
    assert not torch.equal(silent, block(x, w, noise))


def test_shapes(model):
    z = torch.randn(3, model.latent_size)
    assert model(z).shape == (3, 3, 32, 32)
    assert model.latent_size == SIZES["width"] + 16 + 2 * (64 + 256 + 1024)
    widths = {name: SIZES[name] for name in ("channels", "max_channels")}
    assert Discriminator(32, **widths)(model(z)).shape == (3,)


def test_features_keep_their_size_in_a_new_model(model):
    z = torch.randn(16, model.latent_size)
    w, x = model.mapping(z[:, : SIZES["width"]]), model.constant.expand(16, -1, -1, -1)
    assert 0.5 < float(w.detach().square().mean()) < 2
    for level, values in zip(model.levels, z.split(model.parts, dim=1)[1:], strict=True):
        x = level(x, w, values)
        assert 0.05 < float(x.detach().square().mean()) < 5  # the filter lowers it a little


def test_pictures_depend_on_their_seeds_alone(model):
    images, masks = model.sample(3, [5, 9, 2])
    assert masks is None
    assert images.shape == (3, 32, 32, 3) and images.dtype == np.uint8
    alone, _ = model.sample(1, [9])
    assert np.abs(images[1].astype(int) - alone[0]).max() <= 1  # rounding
    assert not np.array_equal(images[0], images[1])
    assert np.array_equal(model.sample(2)[0], model.sample(2, [0, 1])[0])


def test_bad_input_is_one_line(tmp_path, model, data):
    with pytest.raises(InputError, match=r"pictures of 48 px: StyleGAN2 needs a power of two, from 8"):
        StyleGAN2(48)
    with pytest.raises(InputError, match=r"2 pictures need 2 seeds, not 3"):
        model.sample(2, [0, 1, 2])
    with pytest.raises(InputError, match="there is no picture to train on"):
        stylegan2.fit([], tmp_path, 1, size=32, batch_size=4, **SIZES)


def fitted(data, out, steps: int) -> StyleGAN2:
    return stylegan2.fit(samples_of(data, "crack"), out, steps, size=32, batch_size=4, checkpoint_every=3, **SIZES)


def test_a_saved_model_is_loaded_as_it_was(data, tmp_path):
    model = fitted(data, tmp_path, 2)
    loaded = StyleGAN2.from_pretrained(tmp_path)
    assert (loaded.config.product, loaded.config.defect) == ("tile", "crack")
    assert np.array_equal(loaded.sample(2)[0], model.sample(2)[0])
    assert Discriminator.from_pretrained(tmp_path / "discriminator").channels == 3


def test_resumed_training_gives_the_weights_of_one_that_was_not_stopped(data, tmp_path, monkeypatch):
    fitted(data, tmp_path / "whole", 10)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(stylegan2, "fit_game", killed_at(5, stylegan2.fit_game))
        fitted(data, tmp_path / "killed", 10)
    fitted(data, tmp_path / "killed", 10)
    assert same_checkpoints(tmp_path / "whole", tmp_path / "killed", 10)
    logs = [(tmp_path / name / "log.jsonl").read_text().split(', "samples')[0] for name in ("whole", "killed")]
    assert logs[0] == logs[1]
