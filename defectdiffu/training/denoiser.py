"""The transformer's training batches and its loss: Eq. 11 on a batch of cached latents."""

import sys
from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from torch import Tensor, nn

from defectdiffu import losses
from defectdiffu.config import GOOD, Preset
from defectdiffu.guidance import drop_conditions
from defectdiffu.machine import stream
from defectdiffu.masks import resize_mask
from defectdiffu.model import DefectDiffuTransformer
from defectdiffu.prompts import PromptEncoder
from defectdiffu.training.building import TRAIN_STEPS
from defectdiffu.training.graph import obstacle
from defectdiffu.training.latents import Latents
from defectdiffu.training.prompt_table import PromptTable
from defectdiffu.training.step import TrainingStep


class Denoiser(nn.Module):
    """Transformer and, if it is trained too, text encoder: one module for optimiser, EMA and accelerate.

    pairs: (product, defect) of all conditions in the batches, which name them by their number in this list.
    """

    def __init__(
        self,
        transformer: DefectDiffuTransformer,
        encoder: PromptEncoder,
        pairs: Sequence[tuple[str, str]],
        preset: Preset,
    ):
        super().__init__()
        self.transformer = transformer
        self.loss = preset.loss
        trained = preset.text.pretrained is None
        if trained:
            self.text_encoder = encoder.text_encoder
        self.prompts = PromptTable(encoder, pairs, trained)
        self.scheduler = DDPMScheduler(TRAIN_STEPS)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms of Eq. 11 for a batch of latents x (B, C, H, W), noise, steps t (B,), mask latents (B, C, H, W),
        mask regions (B, H, W) and numbers (B,) of the `pairs` that are the conditions; "loss" is their sum.

        If the velocity is predicted, Eqs. 2 and 10 use its error ("velocity", "defect"); "noise" is then the error
        of the implied noise, for comparison only, and not part of the sum."""
        x, noise, t, region = batch["x"], batch["noise"], batch["t"], batch["region"]
        conditions = self.prompts.conditions(batch["pair"])
        kind = self.transformer.config.prediction
        a_bar = self.scheduler.alphas_cumprod.to(x)[t]
        target = noise if kind == "noise" else losses.velocity(x, noise, a_bar)
        out = self.transformer(self.scheduler.add_noise(x, noise, t), t, **vars(conditions))
        predicted, variance = out.sample[:, : x.shape[1]].float(), out.sample[:, x.shape[1] :].float()

        ratio = losses.attention_ratio(out.attention, resize_mask(region, out.attention.shape[-2:]), self.loss.alpha)
        ratio = losses.clamp_ratio(ratio if self.loss.ratio_gradient else ratio.detach())
        if self.loss.fixed_ratio is not None:
            ratio = torch.full_like(ratio, self.loss.fixed_ratio)
        # Mean 1 over all steps, so that lambda has the same scale.
        weight = a_bar / self.scheduler.alphas_cumprod.mean() if self.loss.mask_by_signal else None
        terms = {
            kind: losses.noise_loss(predicted, target),
            "defect": losses.defect_loss(predicted, target, region, ratio),
            "mask": losses.mask_loss(out.mask.float(), batch["mask"], weight),
        }
        loss = losses.total_loss(terms[kind], terms["defect"], terms["mask"], self.loss.mask_weight)
        if kind == "velocity":
            error = (predicted.detach() - target).square().mean((1, 2, 3))
            terms["noise"] = (a_bar * error).mean()
        if variance.numel():
            terms["variance"] = losses.variance_bound_loss(predicted, variance, noise, t, self.scheduler.alphas_cumprod)
            loss = loss + terms["variance"]
        return terms | {"loss": loss}


def denoising_step(denoiser: Denoiser, preset: Preset, accelerator: Accelerator) -> TrainingStep:
    """A step of training as the preset's settings say; on stderr, what keeps it from being a CUDA graph."""
    settings = preset.training
    if settings.compile:
        denoiser.transformer.compile_repeated_blocks()
    if settings.gradient_checkpointing:
        denoiser.transformer.enable_gradient_checkpointing()
    reason = obstacle(settings, accelerator) if settings.cuda_graph else None
    if reason is not None and accelerator.is_main_process:
        print(f"training.cuda_graph: steps run without, {reason}", file=sys.stderr)
    return TrainingStep(
        accelerator,
        denoiser,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        accumulate=settings.accumulate,
        average_on_cpu=settings.average_on_cpu,
        cuda_graph=settings.cuda_graph and reason is None,
    )


def conditions_told(latents: Latents, null_product: str) -> tuple[list[tuple[str, str]], np.ndarray]:
    """The K pairs (product, defect) that training tells, and their numbers (N, 2, 2): of every picture, with its
    product or without, with its defect or without."""
    told = [
        [[(p, d), (p, GOOD)], [(null_product, d), (null_product, GOOD)]]
        for p, d in zip(latents.products, latents.defects, strict=True)
    ]
    pairs = sorted({pair for picture in told for row in picture for pair in row})
    number = {pair: i for i, pair in enumerate(pairs)}
    return pairs, np.array([[[number[pair] for pair in row] for row in picture] for picture in told])


def draw_batch(latents: Latents, told: np.ndarray, preset: Preset, step: int) -> dict[str, Tensor]:
    """The batch of step `step`: latents, noise, steps t, mask latents and regions, and Algorithm 1's pairs as numbers.

    told: (N, 2, 2), see `conditions_told`. Pictures, versions and pairs are drawn on the CPU and copied to the latents'
    device as one tensor, without waiting for it; noise and t are drawn there. All are functions of (seed, step); noise
    and t also of the kind of device.
    """
    settings, device = preset.training, latents.image.device
    rng, generator = stream(device, settings.seed, 2, step)
    picture, version = latents.draw(settings.batch_size, rng)
    no_product, no_defect = drop_conditions(latents.has_defect[picture], settings.p1, settings.p2, rng)
    pair = told[picture, no_product.astype(int), no_defect.astype(int)]
    drawn = torch.from_numpy(np.stack([picture, version, pair]))  # (3, B)
    if device.type == "cuda":
        drawn = drawn.pin_memory()
    i, v, pairs = drawn.to(device, non_blocking=True)
    x = latents.image[i, v].float()
    return {
        "x": x,
        "noise": torch.randn(x.shape, generator=generator, device=device),
        "t": torch.randint(TRAIN_STEPS, (len(x),), generator=generator, device=device),
        "mask": latents.mask[i, v].float(),
        "region": latents.region[i, v].float(),
        "pair": pairs,
    }
