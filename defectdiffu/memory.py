"""How much GPU memory a training takes, computed from sizes, and what would make it less.

Sampling has its own means, all of them diffusers':

    pipe = DefectDiffuPipeline.from_pretrained(name, dtype=torch.float16)     # half the memory of the weights
    pipe.vae.enable_tiling()              # an `AutoencoderKL` decodes a large picture tile by tile
    pipe.enable_model_cpu_offload()       # one part on the GPU at a time
    pipe(..., batch_size=1)               # one picture, in all its branches, at a time
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from defectdiffu.config import Preset
from defectdiffu.errors import InputError
from defectdiffu.model import DefectDiffuTransformer

ACTIVATIONS_PER_BLOCK = 34  # numbers kept for the backward pass, per token and unit of width
GB = 1e9


def meta_transformer(preset: Preset) -> DefectDiffuTransformer:
    """The preset's transformer without its numbers."""
    with torch.device("meta"):
        return DefectDiffuTransformer(
            sample_size=preset.latent_size,
            in_channels=preset.autoencoder.latent_channels,
            text_dim=preset.text.width,
            **{k: v for k, v in vars(preset.model).items() if k != "pretrained"},
        )


def training_memory(preset: Preset, precision: str, processes: int = 1) -> dict[str, float]:
    """GB of one GPU's memory by what takes it, and "total": computed, good to a factor of 1.5 or so.

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
    # Checkpointed, a block's input is kept, in full precision, and one block at a time has its inside.
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
    """{setting: GB that it would save}, for the settings of `training` that are not in use yet; the most first."""
    settings = preset.training
    options = {"gradient_checkpointing": True, "average_on_cpu": True, "accumulate": settings.batch_size // processes}
    before = training_memory(preset, precision, processes)["total"]
    saved = {}
    for name, value in options.items():
        if getattr(settings, name) != value:
            after = training_memory(preset.replace(training={name: value}), precision, processes)["total"]
            saved[f"{name}: {str(value).lower()}"] = before - after
    return dict(sorted(saved.items(), key=lambda item: -item[1]))


@contextmanager
def explained(preset: Preset, precision: str, processes: int) -> Iterator[None]:
    """Where the GPU's memory runs out in this block, an `InputError` says which setting saves how much."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        needed = training_memory(preset, precision, processes)["total"]
        saved = ", ".join(f"{name} saves {gb:.2g} GB" for name, gb in savings(preset, precision, processes).items())
        raise InputError(
            f"out of GPU memory: this training takes about {needed:.2g} GB as computed. "
            + (f'Under "training" in the preset, {saved}' if saved else "Every setting that saves memory is in use")
        ) from error


def memory_table(
    presets: Iterable[Preset], image_sizes: Iterable[int], batch_sizes: Iterable[int], precision: str = "bf16"
) -> list[dict]:
    """Computed GB of training memory against preset, image size and batch, plain and with every setting that saves."""
    image_sizes, batch_sizes, rows = list(image_sizes), list(batch_sizes), []
    for preset in presets:
        for size in image_sizes:
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
                    }
                )
    return rows
