"""What a training run would take, before it is begun: `defectdiffu train --dry-run`."""

import time
from pathlib import Path

import torch

from defectdiffu.autoencoder import PatchAutoencoder, build_autoencoder
from defectdiffu.config import Preset
from defectdiffu.memory import meta_transformer, savings, training_memory
from defectdiffu.training import precision, read_samples

UTILISATION = 0.3  # share of the device's matrix-product rate that small transformers reach


def plan(preset: Preset, data: list[Path]) -> dict:
    """Pictures found per product and defect, parameters, and estimates of memory (GB) and time (minutes).

    Memory is computed from sizes; time is the arithmetic of all steps over 0.3 of this device's measured rate of
    matrix products. Both are for planning, good to a factor of two. Raises `InputError` for unusable data.
    """
    samples = read_samples(preset, data)
    counts: dict[str, dict[str, int]] = {}
    for sample in samples:
        row = counts.setdefault(sample.product, {})
        row[sample.defect] = row.get(sample.defect, 0) + 1

    model, settings = preset.model, preset.training
    ours = preset.autoencoder.pretrained is None and preset.start_from is None  # one is trained
    transformer = meta_transformer(preset)
    with torch.device("meta"):
        vae = build_autoencoder(preset.autoencoder) if ours else None
    parameters = sum(p.numel() for p in transformer.parameters())
    blocks = model.background_blocks + model.defect_blocks + model.fusion_blocks
    tokens = transformer.side**2

    # Forward and backward cost 3 times the forward: 2 per weight and token, and the attention's two products.
    per_token = 2 * 12 * model.width**2 + 4 * tokens * model.width
    work = 3 * blocks * tokens * per_token * settings.batch_size * settings.steps
    if ours:
        work += 3 * _convolution_work(vae, preset.image_size) * preset.autoencoder.batch_size * preset.autoencoder.steps
    return {
        "pictures": len(samples),
        "counts": counts,
        "parameters": {
            "transformer": parameters,
            "autoencoder": sum(p.numel() for p in vae.parameters()) if ours else None,
        },
        "precision": precision(),
        "memory_gb": round(training_memory(preset, precision())["total"], 2),
        "memory_savings_gb": {name: round(gb, 2) for name, gb in savings(preset, precision()).items()},
        "minutes": round(work / (UTILISATION * matrix_rate()) / 60, 1),
        "device": device_name(),
    }


def device_name() -> str:
    """The GPU's name, or how many CPU threads PyTorch uses."""
    threads = torch.get_num_threads()
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{threads} CPU thread{'s' * (threads > 1)}"


def matrix_rate(size: int = 2048, repeats: int = 10) -> float:
    """Floating-point operations per second of a square matrix product in the precision that training uses."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
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


def _convolution_work(vae: PatchAutoencoder, size: int) -> float:
    """Floating-point operations of one picture through the autoencoder, all of whose convolutions have its latent's
    size."""
    weights = sum(m.weight.numel() for m in vae.modules() if isinstance(m, torch.nn.Conv2d))
    return 2 * (size // vae.config.patch_size) ** 2 * weights
