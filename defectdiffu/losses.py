"""The training objective, Eqs. 2 and 6 to 11: pure functions of tensors."""

import math

import torch
from torch import Tensor

RATIO_MIN, RATIO_MAX = 2.0, 8.0  # Eq. 9


def velocity(x: Tensor, noise: Tensor, a_bar: Tensor) -> Tensor:
    """v = sqrt(a_bar) noise - sqrt(1 - a_bar) x (Salimans and Ho 2022). x, noise (B, C, H, W), a_bar (B,).

    At steps with almost only noise it is the negated picture, at steps with almost no noise it is the noise: its error
    weights the steps that decide the layout as much as those that decide the details.
    """
    a_bar = a_bar.view(-1, 1, 1, 1)
    return a_bar.sqrt() * noise - (1 - a_bar).sqrt() * x


def noise_of_velocity(v: Tensor, x_t: Tensor, a_bar: Tensor) -> Tensor:
    """The noise in x_t (B, C, H, W) that a velocity implies; a_bar (B,). Scales an error in v by sqrt(a_bar)."""
    a_bar = a_bar.view(-1, 1, 1, 1)
    return a_bar.sqrt() * v + (1 - a_bar).sqrt() * x_t


def picture_of_velocity(v: Tensor, x_t: Tensor, a_bar: Tensor) -> Tensor:
    """The latent x_0 that a velocity implies; arguments as in `noise_of_velocity`."""
    a_bar = a_bar.view(-1, 1, 1, 1)
    return a_bar.sqrt() * x_t - (1 - a_bar).sqrt() * v


def picture_of(prediction: str, predicted: Tensor, x_t: Tensor, a_bar: Tensor) -> Tensor:
    """The latent x_0 that a predicted "noise" or "velocity" implies; arguments as in `noise_of_velocity`."""
    if prediction == "velocity":
        return picture_of_velocity(predicted, x_t, a_bar)
    a_bar = a_bar.view(-1, 1, 1, 1)
    return (x_t - (1 - a_bar).sqrt() * predicted) / a_bar.sqrt()


def noise_loss(predicted: Tensor, noise: Tensor) -> Tensor:
    """Eq. 2: squared error of the predicted noise (or velocity), mean over all elements. Both (B, C, H, W)."""
    return (predicted - noise).square().mean()


def mask_loss(predicted: Tensor, latent: Tensor, weight: Tensor | None = None) -> Tensor:
    """Eq. 6, loss_m: squared error of the mask's latent, mean over all elements. Both (B, C, H, W).

    weight (B,): of each image, by default 1.
    """
    error = (predicted - latent).square().mean(dim=(1, 2, 3))
    return (error if weight is None else weight * error).mean()


def attention_map(maps: Tensor) -> Tensor:
    """Eq. 7: the mean of M maps, (B, M, ...) -> (B, ...). The paper's sum runs from 0 to M, one term too many."""
    return maps.mean(dim=1)


def attention_ratio(attention: Tensor, mask: Tensor, alpha: float = 0.001) -> Tensor:
    """Eq. 8, Rat: attention on normal regions over attention on the defect.

    attention (B, h, w), mask (B, h, w) in [0, 1] -> (B,). Without a defect (mask all zero) it is large but finite.
    """
    normal = ((1 - mask) * attention).sum(dim=(1, 2))
    defect = (mask * attention).sum(dim=(1, 2))
    return normal / (defect + alpha)


def clamp_ratio(ratio: Tensor) -> Tensor:
    """Eq. 9, R: the ratio clamped between 2 and 8."""
    return ratio.clamp(RATIO_MIN, RATIO_MAX)


def defect_loss(predicted: Tensor, noise: Tensor, mask: Tensor, ratio: Tensor) -> Tensor:
    """Eq. 10, loss_d: R times the squared error inside the mask.

    predicted, noise (B, C, H, W); mask (B, H, W) in [0, 1] at the latent's size; ratio (B,) -> scalar.
    The mean is over *all* elements, as in the released code, so a small defect has a small share and R compensates
    for it; a good image contributes nothing.
    """
    inside = mask[:, None] * (predicted - noise)
    return (ratio * inside.square().mean(dim=(1, 2, 3))).mean()


def total_loss(noise_term: Tensor, defect_term: Tensor, mask_term: Tensor, mask_weight: float = 0.2) -> Tensor:
    """Eq. 11; mask_weight is lambda."""
    return noise_term + defect_term + mask_weight * mask_term


def variance_bound_loss(
    predicted: Tensor, variance: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor
) -> Tensor:
    """The variational bound that trains a learned variance (Nichol and Dhariwal 2021, Eq. 16), in bits per dimension.

    KL between the true and the predicted step from x_t to x_{t-1}; `variance` (B, C, H, W) in [-1, 1] interpolates
    the log variance between its two bounds. The mean is detached: this term trains only the variance. At t = 0, where
    the bound has a decoder's likelihood, the KL with the clipped posterior variance is used instead.
    """
    predicted = predicted.detach()
    alphas_cumprod = alphas_cumprod.to(predicted)
    a_bar = alphas_cumprod[t].view(-1, 1, 1, 1)
    a_bar_prev = torch.where(t > 0, alphas_cumprod[(t - 1).clamp(min=0)], 1.0).view(-1, 1, 1, 1)
    beta = 1 - a_bar / a_bar_prev
    # Of the posterior q(x_{t-1} | x_t, x_0); at t = 0 it is a point, so the next step's variance is used.
    log_posterior = ((1 - a_bar_prev) / (1 - a_bar) * beta).clamp(min=1e-20).log()
    first = (1 - alphas_cumprod[0]) / (1 - alphas_cumprod[1]) * (1 - alphas_cumprod[1] / alphas_cumprod[0])
    log_posterior = torch.where(t.view(-1, 1, 1, 1) > 0, log_posterior, first.log())
    fraction = (variance + 1) / 2
    log_variance = fraction * beta.log() + (1 - fraction) * log_posterior
    # The two means differ by the noise error times this factor.
    difference = beta / ((1 - beta).sqrt() * (1 - a_bar).sqrt()) * (predicted - noise)
    spread = log_variance - log_posterior - 1 + (log_posterior - log_variance).exp()
    kl = 0.5 * (spread + difference.square() / log_variance.exp())
    return kl.mean() / math.log(2)
