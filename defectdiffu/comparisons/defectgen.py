"""Defect-Gen: Yang et al., "Defect Spectrum: A Granular Look of Large-Scale Defect Datasets with Rich Semantics",
ECCV 2024.

Two diffusion models over pictures and their masks, stacked as channels. At the noisy steps a network that sees the
whole picture decides on the structure; at the last steps one that sees small patches only adds the detail: a few
pictures are few, but they have many patches.

    x_1000 -- structure: large receptive field --> x_switch -- detail: small receptive field --> x_0

The networks are diffusers' U-Nets, one deep, one shallow. Chosen here, not taken from the paper: each network learns
the noise of the steps that it is used at, and no others, or with prediction="velocity" the velocity, which a training
from nothing needs if it is short (`losses.velocity`); pictures are augmented as for this package's own model; one
model per product and defect, with one channel for the mask; normalisation of single pixels in the shallow network;
sampling by DDIM in 20 steps, as here everywhere.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, ModelMixin, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from defectdiffu.comparisons.method import check_samples, draw_latents, drawn, with_mask
from defectdiffu.data.folder import Sample
from defectdiffu.errors import InputError, check_choice, check_number
from defectdiffu.files import writing
from defectdiffu.losses import noise_loss
from defectdiffu.machine import precision, stream
from defectdiffu.pictures import to_uint8
from defectdiffu.pipeline import PREDICTION_TYPES, quiet
from defectdiffu.training.building import TRAIN_STEPS
from defectdiffu.training.latents import Pictures
from defectdiffu.training.loop import build_accelerator
from defectdiffu.training.loop import fit as fit_step
from defectdiffu.training.step import TrainingStep

CHANNELS = 4  # of a picture and its mask
GROUPS = 8  # of channels that are normalised together; channels are multiples of it
LEARNING_RATE = 3e-4
SAMPLING_STEPS = 20


class PixelNorm(nn.GroupNorm):
    """Normalises every pixel over its channels: x (B, C, H, W).

    A group norm takes its statistics over all pixels, through which a patch would see the whole picture.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.movedim(1, -1), x.shape[1:2], self.weight, self.bias, self.eps)  # (B, H, W, C)
        return x.movedim(-1, 1)


def structure_network(size: int, channels: int, levels: int) -> UNet2DModel:
    """A U-Net that halves the side `levels` - 1 times, with attention over all places at the lowest level."""
    widths = tuple(channels * min(2**level, 4) for level in range(levels))
    return UNet2DModel(
        sample_size=size,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        layers_per_block=2,
        block_out_channels=widths,
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        norm_num_groups=GROUPS,
        attention_head_dim=GROUPS,
    )


def detail_network(size: int, channels: int, levels: int) -> UNet2DModel:
    """A U-Net of which a pixel sees (2 r + 1)^2 pixels: r = 12 for one level, 30 for two, 66 for three."""
    network = UNet2DModel(
        sample_size=size,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        layers_per_block=1,
        block_out_channels=tuple(channels * 2**level for level in range(levels)),
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        norm_num_groups=GROUPS,
        add_attention=False,
    )
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.__class__ = PixelNorm  # with the same weights, one per channel
    return network


class DefectGen(ModelMixin, ConfigMixin):  # type: ignore[misc]  # their `config_name`s differ
    """Both networks. size S; channels: those of their highest level; structure_levels, detail_levels: their depths;
    switch: the step, of 1000, below which `detail` works, 400 as in the authors' script; prediction: "noise" or
    "velocity", of both. product, defect: what it was trained on."""

    config: Any  # its attributes are the arguments of `__init__`; diffusers declares a plain dict

    @register_to_config
    def __init__(
        self,
        size: int = 64,
        channels: int = 32,
        structure_levels: int = 4,
        detail_levels: int = 1,
        switch: int = 400,
        prediction: str = "noise",
        product: str = "",
        defect: str = "",
    ):
        super().__init__()
        if size % 2 ** (structure_levels - 1) or channels % GROUPS:
            raise InputError(
                f"pictures of {size} px cannot be halved {structure_levels - 1} times, or {channels} channels are no "
                f"multiple of {GROUPS}"
            )
        check_number("switch", switch, 1, TRAIN_STEPS - 1)
        check_choice("prediction", prediction, PREDICTION_TYPES)
        self.structure = structure_network(size, channels, structure_levels)
        self.detail = detail_network(size, channels, detail_levels)

    def forward(self, x: Tensor, t: int) -> Tensor:
        """x (B, 4, S, S) at step t -> the noise in it, or the velocity, by the network of that step."""
        network = self.structure if t >= self.config.switch else self.detail
        return network(x, t).sample

    @torch.no_grad()
    def sample(
        self, num: int, seeds: Sequence[int] | None = None, num_inference_steps: int = SAMPLING_STEPS
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 (num, S, S, 3) and masks bool (num, S, S); those of number i depend on seeds[i] alone."""
        shape = (num, CHANNELS, self.config.size, self.config.size)
        x = draw_latents(shape[1] * shape[2] * shape[3], num, seeds).view(shape).to(self.device)
        kind = PREDICTION_TYPES[self.config.prediction]
        scheduler = DDIMScheduler(TRAIN_STEPS, timestep_spacing="trailing", prediction_type=kind)
        scheduler.set_timesteps(num_inference_steps)
        for t in scheduler.timesteps.tolist():
            x = scheduler.step(self(x, t), t, x).prev_sample  # (B, 4, S, S)
        return to_uint8(x[:, :3].clamp(-1, 1)), (x[:, 3] > 0).cpu().numpy()


class Denoising(nn.Module):
    """Both networks as a module for the training loop: a batch in, named losses out."""

    def __init__(self, model: DefectGen):
        super().__init__()
        self.model = model
        self.scheduler = DDIMScheduler(TRAIN_STEPS)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """x, noise (B, 4, S, S); the steps of each network, structure and detail (B,)."""
        x, noise, terms = batch["x"], batch["noise"], {}
        for name in ("structure", "detail"):
            noisy = self.scheduler.add_noise(x, noise, batch[name])
            predicted = getattr(self.model, name)(noisy, batch[name]).sample
            if self.model.config.prediction == "velocity":
                target = self.scheduler.get_velocity(x, noise, batch[name])
            else:
                target = noise
            terms[name] = noise_loss(predicted.float(), target)
        return terms | {"loss": terms["structure"] + terms["detail"]}


def fit(
    samples: Sequence[Sample],
    out: Path,
    steps: int,
    *,
    size: int,
    batch_size: int,
    seed: int = 0,
    checkpoint_every: int = 500,
    **sizes: Any,
) -> DefectGen:
    """Train both networks on all of `samples`, of one product and defect, and save them in `out`.

    sizes: channels, structure_levels, detail_levels, switch, prediction of `DefectGen`. The same call again resumes.
    Raises `InputError` where there is no sample, or none that can be read.
    """
    check_samples(samples)
    torch.manual_seed(seed)
    model = DefectGen(size, **sizes, product=samples[0].product, defect=samples[0].defect)
    step = TrainingStep(build_accelerator(precision()), Denoising(model))
    device = step.accelerator.device
    pictures = Pictures.load(samples, size).to(device)

    def batch_at(number: int) -> dict[str, Tensor]:
        rng, generator = stream(device, seed, 6, number)
        x = with_mask(*pictures.augmented(drawn(pictures, batch_size, rng), rng))

        def steps_from(low: int, high: int) -> Tensor:
            return torch.randint(low, high, (batch_size,), generator=generator, device=device)

        return {
            "x": x,
            "noise": torch.randn(x.shape, generator=generator, device=device),
            "structure": steps_from(model.config.switch, TRAIN_STEPS),
            "detail": steps_from(0, model.config.switch),
        }

    fit_step(
        step,
        batch_at,
        out / "checkpoints",
        steps=steps,
        learning_rate=LEARNING_RATE,
        warmup_steps=100,
        ema_decay=0.999,
        checkpoint_every=checkpoint_every,
        label=f"{model.config.product} {model.config.defect}",
    )
    with quiet(), writing(out):
        model.save_pretrained(out)
    return model
