"""Adaptive discriminator augmentation (ADA): Karras et al., "Training Generative Adversarial Networks with Limited
Data", NeurIPS 2020.

With few pictures a discriminator learns them by heart. Here it never sees one as it is: real and generated pictures are
changed at random, each change with probability p, and p rises where the discriminator is too sure (Sec. 3). Of the
paper's changes (App. B) those of pixels and colours are here: mirroring, quarter turns, shifts by whole pixels;
brightness, contrast, saturation.
"""

import math

import torch
from torch import Tensor

TARGET = 0.6  # of r_t, Sec. 3.2
RISE = 500_000  # pictures in which p may rise from 0 to 1, Sec. 3.1
MOST = 0.8  # of p: beyond, the changes begin to show in what is generated (Sec. 2)
SHIFT = 0.125  # largest shift, as a share of the side
BRIGHTNESS = 0.2  # deviation of what is added
CONTRAST, SATURATION = 0.5 * math.log(2), math.log(2)  # deviations of the logarithms of what is multiplied


def augment(x: Tensor, p: Tensor | float, generator: torch.Generator) -> Tensor:
    """Pictures (B, C, S, S) in [-1, 1], each changed in six ways, each way with probability p.

    A way that is chosen draws among all its changes, and "none" is one of them: mirrored or not, 0 to 3 quarter turns.
    Channels after the first three, a mask, move with the picture and keep their values. Differentiable in x.
    """
    chosen = torch.rand(6, len(x), generator=generator, device=x.device) < p
    place = torch.rand(4, len(x), generator=generator, device=x.device)
    colour = torch.randn(3, len(x), generator=generator, device=x.device)
    mirrored = chosen[0] & (place[0] < 0.5)
    turns = torch.where(chosen[1], (4 * place[1]).long(), 0)
    shift = torch.where(chosen[2], ((2 * place[2:] - 1) * SHIFT * x.shape[-1]).round().long(), 0)
    x = move(x, mirrored, turns, shift)
    return torch.cat([recolour(x[:, :3], torch.where(chosen[3:], colour, 0)), x[:, 3:]], dim=1)


def move(x: Tensor, mirrored: Tensor, turns: Tensor, shift: Tensor) -> Tensor:
    """Pictures (B, C, S, S) mirrored (B,) bool, turned by `turns` (B,) quarters, shifted by `shift` (2, B) pixels.

    Every new pixel takes the value of an old one; what comes from beyond the border is reflected.
    """
    side, last = x.shape[-1], x.shape[-1] - 1
    place = torch.arange(side, device=x.device)
    row, column = (place[None, :, None] - shift[0, :, None, None], place[None, None] - shift[1, :, None, None])
    row, column = (last - (last - k.abs()).abs() for k in torch.broadcast_tensors(row, column))  # (B, S, S)
    for quarter in (1, 2, 3):
        turned = (turns >= quarter)[:, None, None]
        row, column = torch.where(turned, column, row), torch.where(turned, last - row, column)
    column = torch.where(mirrored[:, None, None], last - column, column)
    source = (row * side + column).flatten(1)[:, None].expand(-1, x.shape[1], -1)  # (B, C, S S)
    return x.flatten(2).gather(2, source).view_as(x)


def recolour(x: Tensor, amount: Tensor) -> Tensor:
    """Pictures (B, 3, S, S) with brightness, contrast and saturation changed by `amount` (3, B), in deviations."""
    brightness, contrast, saturation = amount[:, :, None, None, None]
    x = (x + BRIGHTNESS * brightness) * (CONTRAST * contrast).exp()  # (B, 3, S, S)
    grey = x.mean(dim=1, keepdim=True)
    # Written as a change, so that a saturation that is not changed leaves the picture as it is, to the bit.
    return x + (x - grey) * ((SATURATION * saturation).exp() - 1)


def adapted(p: float, r_t: float, pictures: int) -> float:
    """p after `pictures` more: up where r_t = E[sign(D(real))] (Eq. 1) is above its target, else down, in [0, MOST]."""
    return min(MOST, max(0.0, p + math.copysign(pictures / RISE, r_t - TARGET)))
