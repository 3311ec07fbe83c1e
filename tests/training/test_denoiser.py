import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from helpers import random_pipeline, tiny_preset

from defectdiffu import losses
from defectdiffu.training.denoiser import Denoiser
from defectdiffu.training.loop import take_step


@pytest.fixture(autouse=True)
def fresh_state():
    """accelerate keeps one state per process, including the precision: it is reset before and after."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    "model",
    [
        {"attention_over": "positions", "prediction": "noise", "convolution": False},
        {"attention_over": "tokens", "prediction": "noise", "convolution": False},
        {"attention_over": "tokens", "prediction": "velocity", "convolution": True},
    ],
)
def test_one_batch_is_learned_by_heart(model):
    pipe = random_pipeline(model={"width": 64, **model})
    denoiser = Denoiser(pipe.transformer, pipe.encoder, tiny_preset())
    torch.manual_seed(0)
    x, noise, mask = torch.randn(3, 2, 4, 8, 8)
    region = torch.zeros(2, 8, 8)
    region[0, 2:4, 2:6] = 1
    batch = {"x": x, "noise": noise, "t": torch.tensor([900, 300]), "mask": mask.sign(), "region": region}
    batch |= {"products": ["tile", "hazelnut"], "defects": ["crack", "good"]}
    optimizer = torch.optim.AdamW(denoiser.parameters(), 5e-3)
    losses = []
    for _ in range(150):
        terms = denoiser(batch)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(float(terms["loss"].detach()))
    assert losses[-1] < losses[0] / 10


def test_the_noise_error_that_a_velocity_implies():
    pipe = random_pipeline(model={"prediction": "velocity"})
    denoiser = Denoiser(pipe.transformer, pipe.encoder, tiny_preset())
    torch.manual_seed(0)
    x, noise, mask = torch.randn(3, 2, 4, 8, 8)
    t = torch.tensor([900, 300])
    batch = {"x": x, "noise": noise, "t": t, "mask": mask, "region": torch.ones(2, 8, 8)}
    batch |= {"products": ["tile", "hazelnut"], "defects": ["crack", "good"]}
    with torch.no_grad():
        terms = denoiser(batch)
        x_t = denoiser.scheduler.add_noise(x, noise, t)
        conditions = pipe.encoder.conditions(batch["products"], batch["defects"])
        v = pipe.transformer(x_t, t, **vars(conditions)).sample
    implied = losses.noise_of_velocity(v, x_t, denoiser.scheduler.alphas_cumprod[t])
    torch.testing.assert_close(terms["noise"], losses.noise_loss(implied, noise))
    expected = terms["velocity"] + terms["defect"] + denoiser.loss.mask_weight * terms["mask"]
    torch.testing.assert_close(terms["loss"], expected)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_parts_of_a_batch_add_up_to_its_gradient(accumulate):
    pipe = random_pipeline(model={"learn_sigma": True})
    denoiser = Denoiser(pipe.transformer, pipe.encoder, tiny_preset())
    torch.manual_seed(0)
    x, noise, mask = torch.randn(3, 16, 4, 8, 8)
    batch = {"x": x, "noise": noise, "t": torch.randint(1000, (16,)), "mask": mask}
    batch |= {"region": (torch.rand(16, 8, 8) < 0.2).float()}
    batch |= {"products": ["tile", "hazelnut"] * 8, "defects": ["crack", "good", "hole", "crack"] * 4}
    expected = denoiser(batch)
    gradients = torch.autograd.grad(expected["loss"], list(denoiser.parameters()), allow_unused=True)
    optimizer = torch.optim.SGD(denoiser.parameters(), 1.0)
    before = [p.detach().clone() for p in denoiser.parameters()]
    accelerator = Accelerator(mixed_precision="no")
    terms = take_step(accelerator, denoiser, optimizer, list(denoiser.parameters()), batch, accumulate, 1e9)
    for key, value in terms.items():
        torch.testing.assert_close(value, expected[key].detach(), rtol=1e-5, atol=1e-6)
    for old, new, gradient in zip(before, denoiser.parameters(), gradients, strict=True):
        if gradient is not None:
            torch.testing.assert_close(old - new, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("attention_over", ["positions", "tokens"])
def test_checkpointed_gradients_are_the_same(attention_over):
    pipe = random_pipeline(model={"attention_over": attention_over})
    x, t, conditions = (
        torch.randn(2, 4, 8, 8),
        torch.tensor([10, 900]),
        pipe.encoder.conditions(["tile"] * 2, ["hole"] * 2),
    )
    found = []
    for saving in (False, True):
        if saving:
            pipe.transformer.enable_gradient_checkpointing()
        out = pipe.transformer(x, t, **vars(conditions))
        loss = out.sample.square().mean() + out.mask.square().mean() + out.attention.square().sum()
        found.append(torch.autograd.grad(loss, list(pipe.transformer.parameters()), retain_graph=True))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
