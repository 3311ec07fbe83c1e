import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from helpers import random_pipeline, tiny_preset

from defectdiffu import losses
from defectdiffu.config import GOOD
from defectdiffu.machine import stream
from defectdiffu.training.denoiser import Denoiser, conditions_told, draw_batch
from defectdiffu.training.latents import Latents
from defectdiffu.training.step import TrainingStep


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
    denoiser = Denoiser(pipe.transformer, pipe.encoder, [("tile", "crack"), ("hazelnut", GOOD)], tiny_preset())
    torch.manual_seed(0)
    x, noise, mask = torch.randn(3, 2, 4, 8, 8)
    region = torch.zeros(2, 8, 8)
    region[0, 2:4, 2:6] = 1
    batch = {"x": x, "noise": noise, "t": torch.tensor([900, 300]), "mask": mask.sign(), "region": region}
    batch |= {"pair": torch.arange(2)}
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
    denoiser = Denoiser(pipe.transformer, pipe.encoder, [("tile", "crack"), ("hazelnut", GOOD)], tiny_preset())
    torch.manual_seed(0)
    x, noise, mask = torch.randn(3, 2, 4, 8, 8)
    t = torch.tensor([900, 300])
    batch = {"x": x, "noise": noise, "t": t, "mask": mask, "region": torch.ones(2, 8, 8)}
    batch |= {"pair": torch.arange(2)}
    with torch.no_grad():
        terms = denoiser(batch)
        x_t = denoiser.scheduler.add_noise(x, noise, t)
        conditions = pipe.encoder.conditions(["tile", "hazelnut"], ["crack", "good"])
        v = pipe.transformer(x_t, t, **vars(conditions)).sample
    implied = losses.noise_of_velocity(v, x_t, denoiser.scheduler.alphas_cumprod[t])
    torch.testing.assert_close(terms["noise"], losses.noise_loss(implied, noise))
    expected = terms["velocity"] + terms["defect"] + denoiser.loss.mask_weight * terms["mask"]
    torch.testing.assert_close(terms["loss"], expected)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_parts_of_a_batch_add_up_to_its_gradient(accumulate):
    pipe = random_pipeline(model={"learn_sigma": True})
    pairs = [(product, defect) for product in ("tile", "hazelnut") for defect in ("crack", "hole", GOOD)]
    denoiser = Denoiser(pipe.transformer, pipe.encoder, pairs, tiny_preset())
    torch.manual_seed(0)
    x, noise, mask = torch.randn(3, 16, 4, 8, 8)
    batch = {"x": x, "noise": noise, "t": torch.randint(1000, (16,)), "mask": mask}
    batch |= {"region": (torch.rand(16, 8, 8) < 0.2).float(), "pair": torch.arange(16) % 6}
    expected = denoiser(batch)
    gradients = torch.autograd.grad(expected["loss"], list(denoiser.parameters()), allow_unused=True)
    step = TrainingStep(Accelerator(mixed_precision="no"), denoiser, max_grad_norm=1e9, accumulate=accumulate)
    step.optimizer = torch.optim.SGD(denoiser.parameters(), 1.0)  # subtracts the gradient
    before = [p.detach().clone() for p in denoiser.parameters()]
    terms = step(batch)
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


# ---------------------------------------------------------------------------------------------------------------------
# Batches


def latents_of(products: list[str], defects: list[str]) -> Latents:
    torch.manual_seed(0)
    n = len(products)
    return Latents(
        torch.randn(n, 3, 4, 8, 8).half(),
        torch.randn(n, 3, 4, 8, 8).half(),
        torch.randint(0, 2, (n, 3, 8, 8), dtype=torch.uint8),
        products,
        defects,
    )


def test_a_batch_is_what_a_loop_over_its_pictures_draws():
    """Picture by picture, by name, from the same random numbers in the same order."""
    preset = tiny_preset(training={"batch_size": 50, "p1": 0.3, "p2": 0.4})
    latents = latents_of(["tile", "tile", "hazelnut", "hazelnut"], [GOOD, "crack", GOOD, "hole"])
    pairs, told = conditions_told(latents, "industry")
    for number in range(3):
        batch = draw_batch(latents, told, preset, number)
        rng, generator = stream(torch.device("cpu"), preset.training.seed, 2, number)
        kind, place = rng.integers(2, size=50), rng.random(50)
        picture = [((0, 2), (1, 3))[k][int(2 * p)] for k, p in zip(kind, place, strict=True)]
        version = rng.integers(3, size=50)
        for i, pair in zip(picture, batch["pair"], strict=True):
            first, second, third = rng.random(3)
            product, defect = latents.products[i], latents.defects[i]
            if first < 0.3 or (defect != GOOD and third < 0.3):
                product = "industry"
            if second < 0.4:
                defect = GOOD
            assert pairs[pair] == (product, defect)
        assert torch.equal(batch["x"], latents.image[picture, version].float())
        assert torch.equal(batch["mask"], latents.mask[picture, version].float())
        assert torch.equal(batch["region"], latents.region[picture, version].float())
        assert torch.equal(batch["noise"], torch.randn(50, 4, 8, 8, generator=generator))
        assert torch.equal(batch["t"], torch.randint(1000, (50,), generator=generator))


def test_only_pairs_that_training_tells_are_numbered():
    pairs, told = conditions_told(latents_of(["tile", "hazelnut"], [GOOD, "crack"]), "industry")
    assert pairs == [
        ("hazelnut", "crack"),
        ("hazelnut", GOOD),
        ("industry", "crack"),
        ("industry", GOOD),
        ("tile", GOOD),
    ]
    assert [pairs[i] for i in told[1].flatten()] == [pairs[i] for i in (0, 1, 2, 3)]


def test_half_precision_goes_through_all_blocks():
    """The residual stream is in bf16 under autocast, so that blocks read and write half the bytes."""
    pipe, seen = random_pipeline(model={"prediction": "velocity", "convolution": True}), []
    for block in [*pipe.transformer.background_part, *pipe.transformer.defect_part, *pipe.transformer.fusion_part]:
        block.register_forward_hook(lambda module, inputs, out: seen.extend([inputs[0].dtype, out[0].dtype]))
    denoiser = Denoiser(pipe.transformer, pipe.encoder, [("tile", "crack")], tiny_preset())
    x = torch.randn(2, 4, 8, 8)
    t, pair = torch.tensor([10, 900]), torch.zeros(2, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        denoiser({"x": x, "noise": x, "t": t, "mask": x, "region": torch.ones(2, 8, 8), "pair": pair})
    assert seen == [torch.bfloat16] * 6
