"""Estimates a training run's memory and time: `defectdiffu train --dry-run`. Memory is computed from sizes."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTextModel

from defectdiffu.autoencoder import Autoencoder, PatchAutoencoder, build_autoencoder, stable_diffusion_autoencoder
from defectdiffu.config import GOOD, Preset
from defectdiffu.data.warnings import warn
from defectdiffu.errors import InputError
from defectdiffu.machine import default_device, device_name, precision
from defectdiffu.memory import GB, advice, sampling_memory
from defectdiffu.model import DefectDiffuTransformer
from defectdiffu.prompts import build_text_encoder
from defectdiffu.training.latents import read_samples

ACTIVATIONS_PER_BLOCK = 34  # numbers kept for the backward pass, per token and unit of width
UTILISATION = 0.3  # share of the device's matrix-product rate that small transformers reach


def plan(preset: Preset, data: list[Path]) -> dict:
    """Pictures found per product and defect, parameters, and estimates of memory (GB) and time (minutes).

    Memory is computed from sizes; time is the operations of all steps divided by 0.3 of this device's measured rate of
    matrix products. Both are accurate to a factor of two. What is doubtful about the pictures is printed on stderr.
    Raises `InputError` for unusable data.
    """
    samples = read_samples(preset, data)
    warn(samples, preset.image_size)
    counts: dict[str, dict[str, int]] = {}
    for sample in samples:
        row = counts.setdefault(sample.product, {})
        row[sample.defect] = row.get(sample.defect, 0) + 1

    model, settings = preset.model, preset.training
    transformer = meta_transformer(preset)
    vae = None
    if preset.autoencoder.pretrained is None and preset.start_from is None:  # an autoencoder is trained
        with torch.device("meta"):
            vae = build_autoencoder(preset.autoencoder)
    parameters = sum(p.numel() for p in transformer.parameters())
    blocks = model.background_blocks + model.defect_blocks + model.fusion_blocks
    tokens = transformer.side**2

    # Forward and backward cost 3 times the forward: 2 per weight and token, and the attention's two products.
    per_token = 2 * 12 * model.width**2 + 4 * tokens * model.width
    work = 3 * blocks * tokens * per_token * settings.batch_size * settings.steps
    if vae is not None:
        work += 3 * _convolution_work(vae, preset.image_size) * preset.autoencoder.batch_size * preset.autoencoder.steps
    return {
        "pictures": len(samples),
        "counts": counts,
        "parameters": {
            "transformer": parameters,
            "autoencoder": None if vae is None else sum(p.numel() for p in vae.parameters()),
        },
        "precision": precision(),
        "memory_gb": round(training_memory(preset, precision())["total"], 2),
        "memory_savings_gb": {name: round(gb, 2) for name, gb in savings(preset, precision()).items()},
        "minutes": round(work / (UTILISATION * matrix_rate()) / 60, 1),
        "device": device_name(),
    }


def matrix_size() -> int:
    """Side of the matrices in `matrix_rate`: smaller ones do not fill a GPU, larger ones take a CPU seconds."""
    return 8192 if default_device() == "cuda" else 2048


def matrix_rate(repeats: int = 10) -> float:
    """Floating-point operations per second of a product of two square matrices in the precision of training."""
    device, size = default_device(), matrix_size()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}[precision()]
    a = torch.randn(size, size, device=device, dtype=dtype)
    for timed in (False, True):
        start = time.perf_counter()
        for _ in range(repeats):
            b = a @ a
        b[0, 0].item()  # waits for the device
        if timed:
            return repeats * 2 * size**3 / (time.perf_counter() - start)
    raise AssertionError("unreachable")


def _convolution_work(vae: PatchAutoencoder, size: int) -> int:
    """FLOP of one picture through the autoencoder, whose convolutions all have the latent's size."""
    weights = sum(m.weight.numel() for m in vae.modules() if isinstance(m, torch.nn.Conv2d))
    return 2 * (size // vae.config.patch_size) ** 2 * weights


def meta_transformer(preset: Preset) -> DefectDiffuTransformer:
    """The preset's transformer on the meta device, without values."""
    with torch.device("meta"):
        return DefectDiffuTransformer(
            sample_size=preset.latent_size,
            in_channels=preset.autoencoder.latent_channels,
            text_dim=preset.text.width,
            **{k: v for k, v in vars(preset.model).items() if k != "pretrained"},
        )


def training_memory(preset: Preset, precision: str, processes: int = 1) -> dict[str, float]:
    """GB of one GPU's memory by use, and "total": computed, accurate to a factor of about 1.5.

    Weights, gradients and the optimiser's two moments are kept in full precision, and so is the moving average unless
    it is on the CPU; autocast keeps a copy of the weights in half precision. Frozen encoders are not counted.
    """
    transformer = meta_transformer(preset)
    model, settings = preset.model, preset.training
    parameters = sum(p.numel() for p in transformer.parameters())
    number = 4 if precision == "no" else 2  # bytes
    blocks = model.background_blocks + model.defect_blocks + model.fusion_blocks
    pictures = settings.batch_size / processes / settings.accumulate
    values = pictures * transformer.side**2 * model.width  # of one layer's output
    inside = ACTIVATIONS_PER_BLOCK * values * number
    # With checkpointing, every block's input is kept, in full precision, and the activations of one block at a time.
    activations = blocks * values * 4 + inside if settings.gradient_checkpointing else blocks * inside
    parts = {
        "weights": 4 * parameters,
        "half_precision_copy": 0 if precision == "no" else 2 * parameters,
        "gradients": 4 * parameters,
        "optimiser": 8 * parameters,
        "average": 0 if settings.average_on_cpu else 4 * parameters,
        "activations": activations,
    }
    return {name: value / GB for name, value in (parts | {"total": sum(parts.values())}).items()}


def savings(preset: Preset, precision: str, processes: int = 1) -> dict[str, float]:
    """{setting: GB that it would save}, for settings of `training` not in use yet; the largest first."""
    settings = preset.training
    options = {"gradient_checkpointing": True, "average_on_cpu": True, "accumulate": settings.batch_size // processes}
    before = training_memory(preset, precision, processes)["total"]
    saved = {}
    for name, value in options.items():
        if getattr(settings, name) != value:
            after = training_memory(preset.replace(training={name: value}), precision, processes)["total"]
            saved[f"{name}: {str(value).lower()}"] = before - after
    return dict(sorted(saved.items(), key=lambda item: -item[1]))


@dataclass
class MetaParts:
    """The parts of a pipeline that take memory."""

    transformer: DefectDiffuTransformer
    vae: Autoencoder
    text_encoder: CLIPTextModel


def meta_parts(preset: Preset) -> MetaParts:
    """The preset's transformer, vae and text_encoder on the meta device, without values. If pretrained, vae and
    text_encoder have the sizes of Stable Diffusion's autoencoder and of CLIP ViT-L/14."""
    text = preset.text
    with torch.device("meta"):
        if preset.autoencoder.pretrained is None:
            vae: Autoencoder = build_autoencoder(preset.autoencoder)
        else:
            vae = stable_diffusion_autoencoder()
        if text.pretrained is None:
            _, text_encoder = build_text_encoder([GOOD], text.width, text.layers, text.heads)
        else:
            config = CLIPTextConfig(
                hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
            )
            text_encoder = CLIPTextModel(config)
    return MetaParts(transformer=meta_transformer(preset), vae=vae, text_encoder=text_encoder)


@contextmanager
def explained(preset: Preset, precision: str, processes: int) -> Iterator[None]:
    """If the GPU's memory runs out in this block, raise an `InputError` that says how much each setting saves."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        needed = training_memory(preset, precision, processes)["total"]
        saved = savings(preset, precision, processes)
        raise InputError(advice("this training", needed, 'Under "training" in the preset, ', saved)) from error


def memory_table(
    presets: Iterable[Preset], image_sizes: Iterable[int], batch_sizes: Iterable[int], precision: str = "bf16"
) -> list[dict]:
    """Computed GB of memory for training and for sampling by preset, image size and batch, without and with all
    savings (which compute one picture of a batch at a time)."""
    image_sizes, batch_sizes, rows = list(image_sizes), list(batch_sizes), []
    for preset in presets:
        for size in image_sizes:
            parts, modes = meta_parts(preset.replace(image_size=size)), {"half": True, "offload": True, "tiling": True}
            for batch in batch_sizes:
                plain = preset.replace(image_size=size, training={"batch_size": batch, "accumulate": 1})
                saving = {"gradient_checkpointing": True, "average_on_cpu": True, "accumulate": batch}
                rows.append(
                    {
                        "preset": preset.name,
                        "image_size": size,
                        "batch_size": batch,
                        "gb": round(training_memory(plain, precision)["total"], 2),
                        "gb_saving": round(training_memory(plain.replace(training=saving), precision)["total"], 2),
                        "sampling_gb": round(sampling_memory(parts, batch)["total"], 2),
                        "sampling_gb_saving": round(sampling_memory(parts, 1, **modes)["total"], 2),
                    }
                )
    return rows
