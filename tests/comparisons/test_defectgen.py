import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from comparing import Killed, killed_at, same_checkpoints, samples_of

from defectdiffu import InputError
from defectdiffu.comparisons import defectgen
from defectdiffu.comparisons.defectgen import DefectGen, Denoising, PixelNorm, detail_network, structure_network
from defectdiffu.comparisons.method import with_mask
from defectdiffu.losses import velocity
from defectdiffu.pictures import to_uint8
from defectdiffu.training.latents import Pictures
from defectdiffu.training.step import TrainingStep

SIZES = {"channels": 8, "structure_levels": 3, "detail_levels": 1}


@pytest.fixture(autouse=True)
def fresh_state():
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(0)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def model():
    return DefectGen(32, **SIZES)


def seen_by_the_middle(network) -> torch.Tensor:
    """(33, 33) bool: the pixels on which the middle pixel of the output depends."""
    x = torch.randn(1, 4, 64, 64).requires_grad_()
    (gradient,) = torch.autograd.grad(network(x, 10).sample[0, :, 32, 32].sum(), x)
    return gradient[0].abs().amax(dim=0) > 0


def test_the_small_network_sees_a_patch_and_the_large_one_everything():
    seen = seen_by_the_middle(detail_network(64, 8, 1))
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[32 - 12 : 32 + 13, 32 - 12 : 32 + 13] = True
    assert torch.equal(seen, inside)
    assert seen_by_the_middle(structure_network(64, 8, 4)).all()


def test_the_patch_of_two_levels():
    rows = seen_by_the_middle(detail_network(64, 8, 2)).any(dim=1).nonzero()
    assert 32 - 30 <= int(rows.min()) <= 32 - 28 and 32 + 28 <= int(rows.max()) <= 32 + 30


def test_a_pixel_is_normalised_over_its_channels():
    x = torch.randn(2, 16, 3, 3)
    expected = (x - x.mean(1, keepdim=True)) / x.var(1, correction=0, keepdim=True).add(1e-5).sqrt()
    torch.testing.assert_close(PixelNorm(4, 16)(x), expected)


def test_the_networks_take_turns_at_the_switch(model, monkeypatch):
    used = []
    for name in ("structure", "detail"):

        def noise(x, t, name=name):
            used.append((name, t))
            return SimpleNamespace(sample=x)

        monkeypatch.setattr(getattr(model, name), "forward", noise)
    model.sample(1, num_inference_steps=10)
    assert used == [(("structure", "detail")[t < 400], t) for t in range(999, 0, -100)]
    used.clear()
    model.register_to_config(switch=600)
    model.sample(1, num_inference_steps=10)
    assert [name for name, _ in used].count("detail") == 6


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
def test_loss_and_sampler_mean_the_same_prediction(prediction, monkeypatch):
    """Networks that know the picture have no loss, and sampling them gives it."""
    model = DefectGen(32, **SIZES, prediction=prediction)
    x_0 = torch.rand(1, 4, 32, 32) * 1.8 - 0.9
    denoising = Denoising(model)

    def exact(x, t):
        a_bar = denoising.scheduler.alphas_cumprod[torch.as_tensor(t)].reshape(-1, 1, 1, 1)
        noise = (x - a_bar.sqrt() * x_0) / (1 - a_bar).sqrt()
        return SimpleNamespace(sample=noise if prediction == "noise" else velocity(x_0, noise, a_bar.flatten()))

    for network in (model.structure, model.detail):
        monkeypatch.setattr(network, "forward", exact)
    images, masks = model.sample(2, num_inference_steps=10)
    assert np.abs(images - to_uint8(x_0[:, :3]).astype(int)).max() <= 1  # rounding
    assert np.array_equal(masks, (x_0[:, 3] > 0).expand(2, -1, -1).numpy())
    batch = {"x": x_0.expand(3, -1, -1, -1), "noise": torch.randn(3, 4, 32, 32)}
    batch |= {"structure": torch.tensor([500, 700, 900]), "detail": torch.tensor([50, 150, 350])}
    assert float(denoising(batch)["loss"]) < 1e-6


def test_it_learns_a_batch_by_heart(model, data):
    step = TrainingStep(Accelerator(cpu=True), Denoising(model))
    x = with_mask(*Pictures.load(samples_of(data, "hole"), 32).tensors([0, 1, 2]))
    batch = {"x": x, "noise": torch.randn(x.shape)}
    batch |= {"structure": torch.tensor([500, 700, 900]), "detail": torch.tensor([50, 150, 350])}
    step.set(3e-3, 0.9)
    losses = [step(batch)["loss"].item() for _ in range(30)]
    assert losses[-1] < losses[0] / 2


def test_pictures_and_masks_depend_on_their_seeds_alone(model):
    images, masks = model.sample(3, [5, 9, 2], num_inference_steps=4)
    assert images.shape == (3, 32, 32, 3) and images.dtype == np.uint8
    assert masks.shape == (3, 32, 32) and masks.dtype == bool
    image, mask = model.sample(1, [9], num_inference_steps=4)
    assert np.abs(images[1].astype(int) - image[0]).max() <= 1  # rounding
    assert (masks[1] != mask[0]).mean() < 0.01
    assert not np.array_equal(images[0], images[1])


def fitted(data, out, steps: int, **changes) -> DefectGen:
    settings = SIZES | {"size": 32, "batch_size": 3, "checkpoint_every": 3} | changes
    return defectgen.fit(samples_of(data, "crack"), out, steps, **settings)


def test_a_saved_model_is_loaded_as_it_was(data, tmp_path):
    model = fitted(data, tmp_path, 2, switch=300)
    assert json.loads((tmp_path / "log.jsonl").read_text()).keys() >= {"loss", "structure", "detail"}
    loaded = DefectGen.from_pretrained(tmp_path)
    assert (loaded.config.product, loaded.config.defect, loaded.config.switch) == ("tile", "crack", 300)
    for a, b in zip(loaded.sample(2, None, 4), model.sample(2, None, 4), strict=True):
        assert np.array_equal(a, b)


def test_resumed_training_gives_the_weights_of_one_that_was_not_stopped(data, tmp_path, monkeypatch):
    fitted(data, tmp_path / "whole", 8)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(defectgen, "fit_step", killed_at(5, defectgen.fit_step))
        fitted(data, tmp_path / "killed", 8)
    fitted(data, tmp_path / "killed", 8)
    assert same_checkpoints(tmp_path / "whole", tmp_path / "killed", 8)


def test_bad_input_is_one_line(model, tmp_path):
    with pytest.raises(InputError, match=r"pictures of 36 px cannot be halved 3 times"):
        DefectGen(36)
    with pytest.raises(InputError, match=r"switch is 1000: it must be from 1 to 999"):
        DefectGen(32, **SIZES, switch=1000)
    with pytest.raises(InputError, match=r"unknown prediction 'x': choose from noise, velocity"):
        DefectGen(32, **SIZES, prediction="x")
    with pytest.raises(InputError, match=r"1 pictures need 1 seeds, not 2"):
        model.sample(1, [0, 1])
    with pytest.raises(InputError, match="there is no picture to train on"):
        defectgen.fit([], tmp_path, 1, size=32, batch_size=4)
