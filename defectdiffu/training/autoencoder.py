"""The autoencoder stage: load the preset's autoencoder, or train a new one on the pictures and their masks."""

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from defectdiffu import autoencoder
from defectdiffu.config import Preset
from defectdiffu.files import writing
from defectdiffu.machine import stream
from defectdiffu.masks import to_picture
from defectdiffu.pipeline import DefectDiffuPipeline
from defectdiffu.training.building import load_autoencoder
from defectdiffu.training.latents import Pictures
from defectdiffu.training.loop import fit, share_of_process
from defectdiffu.training.step import TrainingStep

COMPONENT_BATCHES = 64  # batches whose patches give a new autoencoder's principal components


class Reconstruction(nn.Module):
    """The autoencoder as a module for the training loop: a batch in, named losses out."""

    def __init__(self, vae: autoencoder.PatchAutoencoder, latent_noise: float):
        super().__init__()
        self.vae = vae
        self.latent_noise = latent_noise

    def forward(self, batch: dict) -> dict[str, Tensor]:
        return {"loss": autoencoder.reconstruction_loss(self.vae, batch["x"], self.latent_noise, batch["noise"])}


def get_autoencoder(
    preset: Preset, pictures: Pictures, watched: Pictures | None, accelerator: Accelerator, out: Path
) -> autoencoder.Autoencoder:
    """The pretrained autoencoder, the one already trained in `out`, or a new one trained now on pictures and masks."""
    settings = preset.autoencoder
    if preset.start_from is not None:
        return DefectDiffuPipeline.from_pretrained(preset.start_from).vae
    if settings.pretrained is not None:
        return load_autoencoder(settings.pretrained)
    if (out / "autoencoder" / "config.json").is_file():
        return load_autoencoder(str(out / "autoencoder"))
    vae = autoencoder.build_autoencoder(settings).to(accelerator.device, memory_format=torch.channels_last)
    device = accelerator.device
    pictures = pictures.to(device)  # small enough for a GPU, and faster to augment there
    size = (settings.latent_channels, preset.latent_size, preset.latent_size)

    def draw(step: int) -> tuple[Tensor, Tensor]:
        rng, generator = stream(device, preset.training.seed, 1, step)
        index = pictures.draw(settings.batch_size, rng)
        images, masks = pictures.augmented(index, rng)
        # One mask for every eight pictures, of defect images if the batch has any, to train on masks as well.
        order = masks.flatten(1).any(1).float().argsort(descending=True, stable=True)[: -(-settings.batch_size // 8)]
        x = torch.cat([autoencoder.recombine(images, masks, generator), to_picture(masks[order])])
        x = x[: len(x) - len(x) % accelerator.num_processes]  # equal shares, so that the mean of means is the mean
        return x, torch.randn(len(x), *size, generator=generator, device=device)

    def batch_at(step: int) -> dict:
        x, noise = draw(step)
        return share_of_process(accelerator, {"x": x.contiguous(memory_format=torch.channels_last), "noise": noise})

    def watch(step: int, log: dict) -> None:
        shown = watched or pictures
        index = np.linspace(0, len(shown) - 1, min(64, len(shown))).astype(int)
        log |= autoencoder.fidelity(vae, *(v.to(accelerator.device) for v in shown.tensors(index)))

    seen = torch.cat([draw(step)[0] for step in range(min(COMPONENT_BATCHES, settings.steps))])
    autoencoder.begin_as_principal_components(vae, seen)
    fit(
        TrainingStep(accelerator, Reconstruction(vae, settings.latent_noise)),
        batch_at,
        out / "autoencoder-checkpoints",
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        warmup_steps=100,
        ema_decay=0.999,
        checkpoint_every=preset.training.checkpoint_every,
        label="autoencoder",
        every=max(1, settings.steps // 10),
        watch=watch,
    )
    vae.to(memory_format=torch.contiguous_format)  # the same layout as after loading: the same results to the bit
    vae.register_to_config(scaling_factor=1 / _latent_deviation(vae, pictures))
    if accelerator.is_main_process:
        with writing(out / "autoencoder"):
            vae.save_pretrained(out / "autoencoder.part")
            (out / "autoencoder.part").rename(out / "autoencoder")
    accelerator.wait_for_everyone()
    return vae


@torch.no_grad()
def _latent_deviation(vae: autoencoder.Autoencoder, pictures: Pictures) -> float:
    """Root mean square of the latents, by which they are scaled to unit variance for the diffusion."""
    index = np.linspace(0, len(pictures) - 1, min(256, len(pictures))).astype(int)
    images, _ = pictures.tensors(index)
    latents = [autoencoder.encode(vae, batch.to(vae.device)) for batch in images.split(32)]
    return float(torch.cat(latents).square().mean().sqrt())
