"""DFMGAN: Duan et al., "Few-Shot Defect Image Generation via Defect-Aware Feature Manipulation", AAAI 2023.

Stage 1 trains StyleGAN2 on defect-free pictures. Stage 2 freezes it as the backbone, and learns from a few pictures of
a defect what to add to its features, and where:

    z, noise -> backbone -- features F ----------- (+) -> next level, and toRGB -> picture
                   |                                |
    z_defect -> defect mapping -> residual block -- F_defect where M > 0
                                        |
                                      ToMask -> M -> mask             once, at a quarter of the side (64 of 256)

One discriminator sees the picture, a second one picture and mask. Chosen here, not taken from the paper: the mask
passes a tanh; real masks are brought to the resolution of M, or the discriminator would tell them by their outlines, so
that a defect thinner than a pixel of M is widened to one; both discriminators have one size; residual blocks have noise
inputs as the backbone's have; no path-length regularisation in stage 2; nothing is added where M is 0.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from defectdiffu.comparisons import stylegan2
from defectdiffu.comparisons.adversarial import Game, fit_game
from defectdiffu.comparisons.method import check_samples, draw_latents, drawn, with_mask
from defectdiffu.comparisons.stylegan2 import Discriminator, Level, Mapping, StyleGAN2, ToChannels, double
from defectdiffu.config import GOOD
from defectdiffu.data.folder import Sample
from defectdiffu.errors import InputError
from defectdiffu.files import writing
from defectdiffu.machine import default_device, stream
from defectdiffu.masks import resize_mask
from defectdiffu.pictures import to_uint8
from defectdiffu.pipeline import quiet
from defectdiffu.training.latents import Pictures

MODE_SEEKING = 0.1  # weight of its loss
SMALLEST = 1e-5  # difference of two masks, so that the loss stays finite


class DFMGAN(ModelMixin, ConfigMixin):  # type: ignore[misc]  # their `config_name`s differ
    """The generator with its frozen backbone; arguments as those of `StyleGAN2`, size from 32.

    A pair is a function of one vector z (B, `latent_size`): first all of the backbone's, then the defect's.
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
        if size < 32:
            raise InputError(f"pictures of {size} px: DFMGAN needs at least 32")
        self.backbone = StyleGAN2(size, channels, max_channels, width, product, GOOD).requires_grad_(False)
        self.size = size
        self.first = size // 4  # side of the first manipulated features, and of M
        counts = stylegan2.channel_counts(size, channels, max_channels)
        sides = [side for side in self.backbone.sides if side >= self.first]
        self.mapping = Mapping(width)
        self.residuals = nn.ModuleDict(
            {str(side): Level(counts[side // 2], counts[side], width, side) for side in sides}
        )
        self.to_mask = ToChannels(counts[self.first], 1, width)
        self.parts = [width, *map(stylegan2.noise_size, sides)]  # of the defect's z
        self.latent_size = self.backbone.latent_size + sum(self.parts)

    def forward(self, z: Tensor) -> Tensor:
        """z (B, L) -> pictures and masks (B, 4, S, S), about in [-1, 1]; the defect is where the mask is positive."""
        return self.drawn_to(self.size, z)

    def masks(self, z: Tensor) -> Tensor:
        """The masks (B, S, S) of `forward`, without the levels above theirs, which cost most."""
        return enlarged(self.drawn_to(self.first, z)[:, 3:], self.size)[:, 0]

    def drawn_to(self, last: int, z: Tensor) -> Tensor:
        """z (B, L) -> pictures and masks (B, 4, last, last) as they are at the level of that side, from S / 4."""
        of_object, of_defect = z.split([self.backbone.latent_size, sum(self.parts)], dim=1)
        z_object, *noise = of_object.split(self.backbone.parts, dim=1)
        _, *noise_defect = of_defect.split(self.parts, dim=1)
        w, w_defect = self.backbone.mapping(z_object), self.defect_style(z)  # (B, W)

        x, picture, mask = self.backbone.constant.expand(len(z), -1, -1, -1), None, None
        for side, level, to_rgb, values in zip(
            self.backbone.sides, self.backbone.levels, self.backbone.to_rgb, noise, strict=True
        ):
            if side > last:
                break
            before, x = x, level(x, w, values)  # (B, C, side, side)
            if side >= self.first:
                residual = self.residuals[str(side)](before, w_defect, noise_defect.pop(0))  # (B, C, side, side)
                if mask is None:
                    mask = self.to_mask(residual, w_defect).tanh()  # (B, 1, S / 4, S / 4)
                x = x + residual * (enlarged(mask, side) > 0)
            rgb = to_rgb(x, w)  # (B, 3, side, side)
            picture = rgb if picture is None else double(picture) + rgb
        assert picture is not None and mask is not None  # there are levels of 4 and of S / 4
        return torch.cat([picture, enlarged(mask, last)], dim=1)

    def defect_style(self, z: Tensor) -> Tensor:
        """w_defect (B, W) of z (B, L)."""
        start = self.backbone.latent_size
        return self.mapping(z[:, start : start + self.parts[0]])

    @torch.no_grad()
    def sample(self, num: int, seeds: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 (num, S, S, 3) and masks bool (num, S, S); those of number i depend on seeds[i] alone."""
        x = self(draw_latents(self.latent_size, num, seeds).to(self.device))
        return to_uint8(x[:, :3].clamp(-1, 1)), (x[:, 3] > 0).cpu().numpy()


def enlarged(mask: Tensor, side: int) -> Tensor:
    """Masks (B, 1, h, h) -> (B, 1, side, side), bilinearly."""
    return F.interpolate(mask, side, mode="bilinear", align_corners=False)


def mode_seeking(w: Tensor, other: Tensor, mask: Tensor, other_mask: Tensor) -> Tensor:
    """L_ms: the mean difference of two styles w_defect (B, W) over that of their masks (B, S, S), on the same objects.

    Small where different styles give different masks (Mao et al., CVPR 2019, with masks in place of pictures).
    """
    return (w - other).abs().mean() / ((mask - other_mask).abs().mean() + SMALLEST)


class DefectGame(Game):
    """With the mode-seeking loss."""

    generator: DFMGAN

    def generator_terms(self, z: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The terms of the generator's loss; of every object also with the next one's defect."""
        of_object, of_defect = z.tensor_split([self.generator.backbone.latent_size], dim=1)
        other = torch.cat([of_object, of_defect.roll(1, 0)], dim=1)
        fake, other_mask = self.generator(z), self.generator.masks(other)
        styles = self.generator.defect_style(z), self.generator.defect_style(other)
        return {
            "generator": self.non_saturating(fake, generator),
            "mode_seeking": MODE_SEEKING * mode_seeking(*styles, fake[:, 3], other_mask),
        }


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
) -> DFMGAN:
    """Train on `samples` of one product, defect-free ones and those of one defect; save in `out`.

    Stage 1 is a StyleGAN2 in the folder "good" beside `out`, which the product's defects share; both stages take
    `steps`. sizes: channels, max_channels, width. The same call again resumes. Raises `InputError` where there is no
    sample of either kind, or none that can be read.
    """
    good, defective = ([s for s in samples if (s.defect == GOOD) == kind] for kind in (True, False))
    check_samples(good)
    check_samples(defective)
    settings: dict[str, Any] = {"size": size, "batch_size": batch_size, "seed": seed, **sizes}
    backbone = stylegan2.fit(good, out.with_name(GOOD), steps, checkpoint_every=checkpoint_every, **settings)

    torch.manual_seed(seed)
    device = torch.device(default_device())
    model = DFMGAN(size, **sizes, product=defective[0].product, defect=defective[0].defect)
    model.backbone.load_state_dict(backbone.state_dict())
    with quiet():
        of_picture = Discriminator.from_pretrained(out.with_name(GOOD) / "discriminator")
    widths = {name: model.config[name] for name in ("size", "channels", "max_channels")}
    game = DefectGame(model, [of_picture, Discriminator(**widths, in_channels=4)]).to(device)
    pictures = Pictures.load(defective, size).to(device)

    def real_at(step: int) -> Tensor:
        rng, _ = stream(device, seed, 7, step)
        images, masks = pictures.tensors(drawn(pictures, batch_size, rng))
        coarse = resize_mask(masks, (model.first, model.first))[:, None]
        return with_mask(images, enlarged(coarse, size)[:, 0])

    label = f"{model.config.product} {model.config.defect}"
    fit_game(game, real_at, out / "checkpoints", steps=steps, seed=seed, checkpoint_every=checkpoint_every, label=label)
    with quiet(), writing(out):
        model.save_pretrained(out)
    return model
