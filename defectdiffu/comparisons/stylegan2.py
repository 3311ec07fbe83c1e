"""StyleGAN2: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020; trained with adaptive
discriminator augmentation (`augmentation`). One model per product and defect; it gives pictures without masks.

    z -> mapping network -> w ----+--------------+---- ...          styles of all convolutions
    constant 4 x 4 -> style block -> two style blocks at 8 x 8 -> ...      features
                          |                |
                        toRGB  -- x 2 --> (+) toRGB -- x 2 --> ...         picture (skip generator, Fig. 7)

Written from the paper's equations. Left out: mixing of styles, and truncation, which trades variety for quality.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from defectdiffu.comparisons.adversarial import PATH_DECAY, Game, fit_game, path_lengths
from defectdiffu.comparisons.method import check_samples, draw_latents, drawn
from defectdiffu.data.folder import Sample
from defectdiffu.errors import InputError
from defectdiffu.files import writing
from defectdiffu.machine import default_device, stream
from defectdiffu.pictures import to_uint8
from defectdiffu.pipeline import quiet
from defectdiffu.training.latents import Pictures

EPSILON = 1e-8
GROUP = 4  # pictures over which the minibatch's deviation is taken


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU, times sqrt(2) so that it keeps the size of its input."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def blur(x: Tensor, padding: int, gain: float = 1.0, stride: int = 1) -> Tensor:
    """The bilinear filter [1, 3, 3, 1] along both axes: (B, C, H, W) -> (B, C, H + 2 padding - 3, ...)."""
    row = x.new_tensor([1.0, 3.0, 3.0, 1.0]) / 8
    kernel = (gain * row[:, None] * row).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(x, kernel, padding=padding, stride=stride, groups=x.shape[1])


def double(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W), bilinearly."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def modulated_convolution(
    x: Tensor, weight: Tensor, style: Tensor, demodulate: bool = True, upsample: bool = False
) -> Tensor:
    """Eqs. 1 to 3: x (B, I, H, W), weight (O, I, k, k), style (B, I) -> (B, O, H, W), with `upsample` twice as large.

    The weights w are multiplied by the picture's style s, then divided by their norm over each output: w' = s_i w_ijk,
    w'' = w' / sqrt(sum_ik w'^2 + epsilon). The same is a convolution whose inputs and outputs are scaled.
    """
    x = x * style[:, :, None, None]  # (B, I, H, W)
    if upsample:
        x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)  # (B, O, 2H + 1, 2W + 1)
        x = blur(x, padding=1, gain=4)  # (B, O, 2H, 2W)
    else:
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)  # (B, O, H, W)
    if demodulate:
        squared_norm = style.square() @ weight.square().sum(dim=(2, 3)).T  # (B, O)
        x = x * (squared_norm + EPSILON).rsqrt()[:, :, None, None]
    return x


class Linear(nn.Module):
    """Linear layer of equalised learning rate: weights of unit variance, scaled when used (Karras et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, rate: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.scale, self.rate = rate / math.sqrt(inputs), rate

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias * self.rate)


class Convolution(nn.Module):
    """Convolution of equalised learning rate, (B, I, H, W) -> (B, O, H, W), with `downsample` (B, O, H / 2, W / 2)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, bias: bool = True, downsample: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale, self.downsample = 1 / math.sqrt(inputs * kernel**2), downsample

    def forward(self, x: Tensor) -> Tensor:
        k = self.weight.shape[-1]
        if not self.downsample:
            return F.conv2d(x, self.weight * self.scale, self.bias, padding=k // 2)
        if k == 1:  # only every other value would be used
            return F.conv2d(blur(x, padding=1, stride=2), self.weight * self.scale, self.bias)
        return F.conv2d(blur(x, padding=2), self.weight * self.scale, self.bias, stride=2)


class Mapping(nn.Module):
    """z (B, W) -> w (B, W): normalised, then eight layers whose learning rate is a hundredth."""

    def __init__(self, width: int, layers: int = 8):
        super().__init__()
        self.layers = nn.ModuleList(Linear(width, width, rate=0.01) for _ in range(layers))

    def forward(self, z: Tensor) -> Tensor:
        w = z * (z.square().mean(dim=1, keepdim=True) + EPSILON).rsqrt()  # (B, W)
        for layer in self.layers:
            w = activate(layer(w))
        return w


class StyleBlock(nn.Module):
    """A modulated convolution, noise, bias and activation (Fig. 2d)."""

    def __init__(self, inputs: int, outputs: int, width: int, upsample: bool = False):
        super().__init__()
        self.style = Linear(width, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.strength = nn.Parameter(torch.zeros(()))  # of the noise
        self.upsample = upsample

    def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        x = modulated_convolution(x, self.weight, self.style(w), upsample=self.upsample)  # (B, O, H, W)
        return activate(x + self.strength * noise.view(-1, 1, *x.shape[2:]) + self.bias[:, None, None])


class ToChannels(nn.Module):
    """From features to a picture or a mask, (B, I, H, W) -> (B, O, H, W): a 1 x 1 convolution, not demodulated."""

    def __init__(self, inputs: int, outputs: int, width: int):
        super().__init__()
        self.style = Linear(width, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        scale = 1 / math.sqrt(x.shape[1])
        return modulated_convolution(x, self.weight * scale, self.style(w), demodulate=False) + self.bias[:, None, None]


class Level(nn.Module):
    """The style blocks of one resolution: one at 4 x 4, above it two, the first of which doubles the side."""

    def __init__(self, inputs: int, outputs: int, width: int, side: int):
        super().__init__()
        blocks = [] if side == 4 else [StyleBlock(inputs, outputs, width, upsample=True)]
        self.blocks = nn.ModuleList([*blocks, StyleBlock(outputs, outputs, width)])

    def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        for block, values in zip(self.blocks, noise.chunk(len(self.blocks), dim=1), strict=True):
            x = block(x, w, values)
        return x  # (B, C, side, side)


def noise_size(side: int) -> int:
    """The noise inputs of a `Level`: one per place and block."""
    return side**2 * (1 if side == 4 else 2)


class StyleGAN2(ModelMixin, ConfigMixin):  # type: ignore[misc]  # their `config_name`s differ
    """The generator. `size` S is a power of two, from 8; `channels` those at S, doubled with every halving of the side
    up to `max_channels`; `width` W that of z and w. product, defect: what it was trained on.

    A picture is a function of one vector z (B, `latent_size`): the W numbers of the style, then the noise inputs.
    """

    config: Any  # its attributes are the arguments of `__init__`; diffusers declares a plain dict

    @register_to_config
    def __init__(
        self,
        size: int = 64,
        channels: int = 16,
        max_channels: int = 128,
        width: int = 128,
        product: str = "",
        defect: str = "",
    ):
        super().__init__()
        self.sides = sides_of(size)
        counts = channel_counts(size, channels, max_channels)
        self.mapping = Mapping(width)
        self.constant = nn.Parameter(torch.randn(1, counts[4], 4, 4))
        self.levels = nn.ModuleList(Level(counts[max(4, side // 2)], counts[side], width, side) for side in self.sides)
        self.to_rgb = nn.ModuleList(ToChannels(counts[side], 3, width) for side in self.sides)
        self.parts = [width, *map(noise_size, self.sides)]  # of z
        self.latent_size = sum(self.parts)

    def forward(self, z: Tensor) -> Tensor:
        """z (B, L) -> pictures (B, 3, S, S), about in [-1, 1]."""
        z, *noise = z.split(self.parts, dim=1)
        return self.synthesise(self.mapping(z), noise)

    def synthesise(self, w: Tensor, noise: Sequence[Tensor]) -> Tensor:
        """w (B, W) and the noise inputs of each level -> pictures (B, 3, S, S)."""
        x, picture = self.constant.expand(len(w), -1, -1, -1), None  # (B, C, 4, 4)
        for level, to_rgb, values in zip(self.levels, self.to_rgb, noise, strict=True):
            x = level(x, w, values)  # (B, C, side, side)
            rgb = to_rgb(x, w)  # (B, 3, side, side)
            picture = rgb if picture is None else double(picture) + rgb
        assert picture is not None  # there is a level of 4 x 4
        return picture

    @torch.no_grad()
    def sample(self, num: int, seeds: Sequence[int] | None = None) -> tuple[np.ndarray, None]:
        """`num` pictures uint8 (num, S, S, 3), and None for the masks; picture i depends on seeds[i] alone."""
        return to_uint8(self(draw_latents(self.latent_size, num, seeds).to(self.device)).clamp(-1, 1)), None


class ResidualBlock(nn.Module):
    """(B, I, H, W) -> (B, O, H / 2, W / 2), by two convolutions and past them (Fig. 7)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.first = Convolution(inputs, inputs, 3)
        self.second = Convolution(inputs, outputs, 3, downsample=True)
        self.past = Convolution(inputs, outputs, 1, bias=False, downsample=True)

    def forward(self, x: Tensor) -> Tensor:
        y = activate(self.second(activate(self.first(x))))  # (B, O, H / 2, W / 2)
        return (y + self.past(x)) / math.sqrt(2)


def minibatch_deviation(x: Tensor) -> Tensor:
    """x (B, C, H, W) with one more channel: the deviation of each feature in its group, mean over features and places.

    Groups are of four pictures, or what divides B (Karras et al. 2018). A generator of few pictures shows in it.
    """
    group = math.gcd(len(x), GROUP)
    grouped = x.unflatten(0, (group, -1))  # (G, B / G, C, H, W)
    deviation = (grouped.var(dim=0, correction=0) + EPSILON).sqrt().mean(dim=(1, 2, 3))  # (B / G,)
    return torch.cat([x, deviation.repeat(group).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])], dim=1)


class Discriminator(ModelMixin, ConfigMixin):  # type: ignore[misc]  # their `config_name`s differ
    """Residual discriminator (Fig. 7): (B, in_channels, S, S) -> logits (B,). Sizes as those of the generator."""

    config: Any  # as above

    @register_to_config
    def __init__(self, size: int = 64, channels: int = 16, max_channels: int = 128, in_channels: int = 3):
        super().__init__()
        counts = channel_counts(size, channels, max_channels)
        self.channels = in_channels
        self.begin = Convolution(in_channels, counts[size], 1)
        self.blocks = nn.ModuleList(ResidualBlock(counts[s], counts[s // 2]) for s in reversed(sides_of(size)[1:]))
        self.joined = Convolution(counts[4] + 1, counts[4], 3)
        self.hidden = Linear(counts[4] * 16, counts[4])
        self.logit = Linear(counts[4], 1)

    def forward(self, x: Tensor) -> Tensor:
        x = activate(self.begin(x))  # (B, C, S, S)
        for block in self.blocks:
            x = block(x)
        x = activate(self.joined(minibatch_deviation(x)))  # (B, C, 4, 4)
        return self.logit(activate(self.hidden(x.flatten(1))))[:, 0]  # (B,)


class StyleGame(Game):
    """With path-length regularisation of the generator."""

    path_every = 8
    generator: StyleGAN2

    def path_penalty(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Eq. 4, weighted by gamma_pl of App. B: the mean of (|J_w^T y| - a)^2, a the moving average of |J_w^T y|."""
        z, *noise = z.split(self.generator.parts, dim=1)
        w = self.generator.mapping(z)
        pictures = self.generator.synthesise(w, noise)
        y = torch.randn(pictures.shape, generator=generator, device=pictures.device)
        lengths = path_lengths(pictures, w, y)
        self.path_length.lerp_(lengths.detach().mean(), 1 - PATH_DECAY)
        return (lengths - self.path_length).square().mean() / (math.log2(pictures.shape[-1]) - 1)


def fit(
    samples: Sequence[Sample],
    out: Path,
    steps: int,
    *,
    size: int,
    batch_size: int,
    seed: int = 0,
    checkpoint_every: int = 500,
    **sizes: int,
) -> StyleGAN2:
    """Train on all of `samples`, of one product and defect, and save generator and discriminator in `out`.

    sizes: channels, max_channels, width of `StyleGAN2`. The same call again resumes. Raises `InputError` where there is
    no sample, or none that can be read.
    """
    check_samples(samples)
    torch.manual_seed(seed)
    device = torch.device(default_device())
    model = StyleGAN2(size, **sizes, product=samples[0].product, defect=samples[0].defect)
    widths = {name: model.config[name] for name in ("size", "channels", "max_channels")}
    discriminator = Discriminator(**widths)
    game = StyleGame(model, [discriminator]).to(device)
    pictures = Pictures.load(samples, size).to(device)

    def real_at(step: int) -> Tensor:
        rng, _ = stream(device, seed, 4, step)
        return pictures.tensors(drawn(pictures, batch_size, rng))[0]

    label = f"{model.config.product} {model.config.defect}"
    fit_game(game, real_at, out / "checkpoints", steps=steps, seed=seed, checkpoint_every=checkpoint_every, label=label)
    with quiet(), writing(out):
        discriminator.save_pretrained(out / "discriminator")
        model.save_pretrained(out)
    return model


def sides_of(size: int) -> list[int]:
    """4, 8, ... up to `size`. Raises `InputError` unless that is a power of two."""
    if size < 8 or size & (size - 1):
        raise InputError(f"pictures of {size} px: StyleGAN2 needs a power of two, from 8")
    return [1 << k for k in range(2, size.bit_length())]


def channel_counts(size: int, channels: int, max_channels: int) -> dict[int, int]:
    """{side: channels there}."""
    return {side: min(max_channels, channels * size // side) for side in sides_of(size)}
