"""The transformer's training batches and its loss: Eq. 11 on a batch of cached latents."""

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from torch import Tensor, nn

from defectdiffu import losses
from defectdiffu.config import Preset
from defectdiffu.guidance import drop_conditions
from defectdiffu.machine import stream
from defectdiffu.masks import resize_mask
from defectdiffu.model import DefectDiffuTransformer
from defectdiffu.prompts import PromptEncoder
from defectdiffu.training.building import TRAIN_STEPS
from defectdiffu.training.latents import Latents
from defectdiffu.training.loop import share_of_process


class Denoiser(nn.Module):
    """Transformer and, if it is trained too, text encoder: one module for optimiser, EMA and accelerate."""

    def __init__(self, transformer: DefectDiffuTransformer, encoder: PromptEncoder, preset: Preset):
        super().__init__()
        self.transformer = transformer
        self.loss = preset.loss
        self.encoder = encoder
        if preset.text.pretrained is None:
            self.text_encoder = encoder.text_encoder
        else:
            encoder.text_encoder.requires_grad_(False)
        self.scheduler = DDPMScheduler(TRAIN_STEPS)

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """The terms of Eq. 11 for a batch of latents x (B, C, H, W), noise, steps t (B,), mask latents (B, C, H, W),
        mask regions (B, H, W) and the names of the conditions; "loss" is their sum.

        If the velocity is predicted, Eqs. 2 and 10 use its error ("velocity", "defect"); "noise" is then the error
        of the implied noise, for comparison only, and not part of the sum."""
        x, noise, t, region = batch["x"], batch["noise"], batch["t"], batch["region"]
        with torch.set_grad_enabled(torch.is_grad_enabled() and hasattr(self, "text_encoder")):
            conditions = self.encoder.conditions(batch["products"], batch["defects"])
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


def draw_batch(latents: Latents, preset: Preset, step: int, accelerator: Accelerator) -> dict:
    """The batch of step `step`: latents, noise, steps t, mask latents and regions, and Algorithm 1's conditions."""
    settings = preset.training
    device = latents.image.device
    rng, generator = stream(device, settings.seed, 2, step)
    picture, version = latents.draw(settings.batch_size, rng)
    null = preset.model.null_product
    names = [
        drop_conditions(latents.products[i], latents.defects[i], null, settings.p1, settings.p2, rng) for i in picture
    ]
    x = latents.image[picture, version].float()
    batch = {
        "x": x,
        "noise": torch.randn(x.shape, generator=generator, device=device),
        "t": torch.randint(TRAIN_STEPS, (len(x),), generator=generator, device=device),
        "mask": latents.mask[picture, version].float(),
        "region": latents.region[picture, version].float(),
        "products": [p for p, _ in names],
        "defects": [d for _, d in names],
    }
    return share_of_process(accelerator, batch)
