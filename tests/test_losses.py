import math

import pytest
import torch
from diffusers import DDPMScheduler
from helpers import random_pipeline, tiny_preset
from torch.distributions import Normal, kl_divergence

from defectdiffu import losses
from defectdiffu.training.denoiser import Denoiser

# One defect image of 2 x 2 cells, worked out by hand. Attention on the defect cell 0.4, on the others 0.6 together:
# Rat = 0.6 / (0.4 + 0.001) = 1.49626, so R = 2. With attention 0.1 on the defect it is 0.9 / 0.101 = 8.9109: R = 8.
MASK = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
LOW = torch.tensor([[[0.4, 0.1], [0.2, 0.3]]])
MIDDLE = torch.tensor([[[0.2, 0.2], [0.3, 0.3]]])  # 0.8 / 0.201 = 3.98010
HIGH = torch.tensor([[[0.1, 0.3], [0.3, 0.3]]])


def test_noise_and_mask_losses_are_means_over_all_elements():
    predicted, target = torch.zeros(1, 2, 1, 2), torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    assert losses.noise_loss(predicted, target) == 7.5
    assert losses.mask_loss(predicted, target) == 7.5


def test_velocity_by_hand():
    """x = 2, noise = 1, half signal: x_t = 3 / sqrt(2), v = (1 - 2) / sqrt(2)."""
    x, noise, a_bar = torch.full((1, 1, 1, 1), 2.0), torch.ones(1, 1, 1, 1), torch.tensor([0.5])
    assert float(losses.velocity(x, noise, a_bar)) == pytest.approx(-(0.5**0.5))


def test_velocity_picture_and_noise_are_one_statement():
    """At every step a velocity gives back the picture and the noise it was made of; diffusers has the same formula."""
    scheduler = DDPMScheduler(1000)
    t = torch.arange(1000)
    x, noise = torch.randn(2, 1000, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a_bar = scheduler.alphas_cumprod.double()[t]
    v, x_t = losses.velocity(x, noise, a_bar), scheduler.add_noise(x, noise, t)
    torch.testing.assert_close(losses.noise_of_velocity(v, x_t, a_bar), noise, atol=1e-5, rtol=0)
    torch.testing.assert_close(losses.picture_of_velocity(v, x_t, a_bar), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(losses.picture_of("velocity", v, x_t, a_bar), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(losses.picture_of("noise", noise, x_t, a_bar), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(v, scheduler.get_velocity(x, noise, t), atol=1e-5, rtol=0)


def test_mask_loss_weighs_images():
    predicted, target = torch.zeros(2, 1, 1, 1), torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
    assert losses.mask_loss(predicted, target, torch.tensor([3.0, 0.5])) == (3 * 1 + 0.5 * 4) / 2


def test_attention_map_is_the_mean_of_the_maps():
    maps = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]], [[5.0, 9.0]]]])  # M = 3
    assert losses.attention_map(maps).tolist() == [[[3.0, 5.0]]]


@pytest.mark.parametrize(
    ("attention", "ratio", "clamped"), [(LOW, 1.49626, 2.0), (MIDDLE, 3.98010, 3.98010), (HIGH, 8.91089, 8.0)]
)
def test_ratio_by_hand(attention, ratio, clamped):
    value = losses.attention_ratio(attention, MASK)
    assert value.shape == (1,)
    assert float(value) == pytest.approx(ratio, abs=1e-4)
    assert float(losses.clamp_ratio(value)) == pytest.approx(clamped, abs=1e-4)


def test_alpha_is_in_the_denominator():
    assert float(losses.attention_ratio(LOW, MASK, alpha=0.2)) == pytest.approx(1.0, abs=1e-4)


def test_defect_loss_by_hand():
    """Errors 1, 2, 3, 4 with the first two inside: R times (1 + 4) / 4 for the first image, nothing for the good."""
    predicted = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]] * 2)
    mask = torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    loss = losses.defect_loss(predicted, torch.zeros_like(predicted), mask, torch.tensor([4.0, 8.0]))
    assert float(loss) == pytest.approx((4 * 5 / 4 + 0) / 2)


def test_a_good_image_has_a_finite_ratio_and_no_defect_loss():
    attention = torch.full((1, 2, 2), 0.25, requires_grad=True)
    ratio = losses.attention_ratio(attention, torch.zeros(1, 2, 2))
    assert float(ratio.detach()) == pytest.approx(1000.0)
    predicted = torch.randn(1, 4, 2, 2, requires_grad=True)
    loss = losses.defect_loss(predicted, torch.randn(1, 4, 2, 2), torch.zeros(1, 2, 2), losses.clamp_ratio(ratio))
    loss.backward()
    assert float(loss.detach()) == 0
    assert predicted.grad.abs().max() == 0
    assert attention.grad.isfinite().all()


def test_total_loss():
    terms = [torch.tensor(v) for v in (1.0, 10.0, 100.0)]
    assert float(losses.total_loss(*terms)) == pytest.approx(31.0)
    assert float(losses.total_loss(*terms, mask_weight=0.5)) == pytest.approx(61.0)


# ---------------------------------------------------------------------------------------------------------------------
# The learned variance

ALPHAS = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)


def posterior(x0, x_t, t):
    """Mean and variance of q(x_{t-1} | x_t, x_0), DDPM's Eq. 7."""
    a_bar, before = ALPHAS[t], ALPHAS[t - 1]
    alpha = a_bar / before
    mean = (before.sqrt() * (1 - alpha) * x0 + alpha.sqrt() * (1 - before) * x_t) / (1 - a_bar)
    return mean, (1 - before) / (1 - a_bar) * (1 - alpha), 1 - alpha


@pytest.mark.parametrize("t", [1, 37, 500, 999])
def test_variance_bound_is_the_divergence_of_the_two_steps(t):
    torch.manual_seed(t)
    x0, noise, predicted, variance = torch.randn(4, 1, 4, 2, 2, dtype=torch.float64)
    x_t = ALPHAS[t].sqrt() * x0 + (1 - ALPHAS[t]).sqrt() * noise
    guessed_x0 = (x_t - (1 - ALPHAS[t]).sqrt() * predicted) / ALPHAS[t].sqrt()
    mean, low, high = posterior(x0, x_t, t)
    guessed_mean, _, _ = posterior(guessed_x0, x_t, t)
    fraction = (variance + 1) / 2
    guessed = (fraction * high.log() + (1 - fraction) * low.log()).exp()
    expected = kl_divergence(Normal(mean, low.sqrt()), Normal(guessed_mean, guessed.sqrt())).mean() / math.log(2)
    found = losses.variance_bound_loss(predicted, variance, noise, torch.tensor([t]), ALPHAS)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("t", [0, 1, 500])
def test_variance_bound_is_zero_where_the_step_is_exact_and_never_below(t):
    torch.manual_seed(0)
    noise, steps = torch.randn(2, 4, 2, 2), torch.tensor([t, t])
    exact = losses.variance_bound_loss(noise, torch.full_like(noise, -1.0), noise, steps, ALPHAS)
    assert float(exact) == pytest.approx(0, abs=1e-5)
    for _ in range(20):
        predicted, variance = torch.randn(2, 4, 2, 2), torch.rand(2, 4, 2, 2) * 2 - 1
        loss = losses.variance_bound_loss(predicted, variance, noise, steps, ALPHAS)
        assert loss.isfinite()
        assert loss >= 0


def test_variance_bound_trains_the_variance_only():
    predicted, variance, noise = (torch.randn(1, 4, 2, 2, requires_grad=True) for _ in range(3))
    losses.variance_bound_loss(predicted, variance, noise.detach(), torch.tensor([500]), ALPHAS).backward()
    assert predicted.grad is None
    assert variance.grad.abs().sum() > 0


# ---------------------------------------------------------------------------------------------------------------------
# In the model


PAIRS = [("tile", "crack"), ("hazelnut", "hole")]


def random_batch(region: float) -> dict:
    torch.manual_seed(1)
    x, noise, mask = torch.randn(3, 2, 4, 8, 8)
    regions = torch.zeros(2, 8, 8)
    regions[:, :4, :4] = region
    t, pair = torch.tensor([10, 700]), torch.arange(2)
    return {"x": x, "noise": noise, "mask": mask, "region": regions, "t": t, "pair": pair}


def attention_gradient(**loss) -> float:
    """Gradient of the noise losses in the cross-attention's queries; the mask's loss is weighted 0."""
    pipe = random_pipeline()
    for block in pipe.transformer.defect_part:  # the maps reach the noise through the values alone
        block.cross_attention.to_v.weight.data.zero_()
        block.cross_attention.to_q.weight.data.mul_(3)
    preset = tiny_preset(loss={"mask_weight": 0.0, **loss})
    terms = Denoiser(pipe.transformer, pipe.encoder, PAIRS, preset)(random_batch(1.0))
    terms["loss"].backward()
    return float(pipe.transformer.defect_part[0].cross_attention.to_q.weight.grad.abs().max())


def test_gradient_flows_through_the_ratio_only_when_asked():
    assert attention_gradient(ratio_gradient=False) == 0
    assert attention_gradient(ratio_gradient=True) > 0
    assert attention_gradient(ratio_gradient=True, fixed_ratio=3.0) == 0


def test_terms_add_up_and_a_fixed_ratio_scales_the_defect_term():
    pipe = random_pipeline()
    with torch.no_grad():
        one, two = (
            Denoiser(pipe.transformer, pipe.encoder, PAIRS, tiny_preset(loss={"fixed_ratio": r, "mask_weight": 0.2}))(
                random_batch(1.0)
            )
            for r in (3.0, 6.0)
        )
        good = Denoiser(pipe.transformer, pipe.encoder, PAIRS, tiny_preset())(random_batch(0.0))
    assert float(two["defect"]) == pytest.approx(2 * float(one["defect"]))
    assert float(one["loss"]) == pytest.approx(float(one["noise"] + one["defect"] + 0.2 * one["mask"]))
    assert float(good["defect"]) == 0
    assert good["loss"].isfinite()


def test_a_learned_variance_adds_its_term():
    pipe = random_pipeline(model={"learn_sigma": True})
    terms = Denoiser(pipe.transformer, pipe.encoder, PAIRS, tiny_preset(loss={"mask_weight": 0.2}))(random_batch(1.0))
    parts = terms["noise"] + terms["defect"] + 0.2 * terms["mask"] + terms["variance"]
    torch.testing.assert_close(terms["loss"], parts)
    terms["variance"].backward()
    assert pipe.transformer.final.weight.grad.abs().sum() > 0
