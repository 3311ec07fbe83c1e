"""How much GPU memory training and sampling take, computed from sizes, and what would make it less.

Training is made smaller by settings. Sampling has means of its own, all of them diffusers'::

    pipe = DefectDiffuPipeline.from_pretrained(name, dtype=torch.float16)     # half the memory
    pipe.enable_model_cpu_offload()       # one part on the GPU at a time, instead of `pipe.to("cuda")`
    pipe.vae.enable_tiling()              # a picture larger than a tile is decoded tile by tile
    pipe(..., batch_size=1)               # one picture, in all its branches, at a time

For `defectdiffu generate` they are `--half`, `--offload`, `--tiling` and `--batch-size`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from transformers import CLIPTextConfig, CLIPTextModel

from defectdiffu.autoencoder import PatchAutoencoder, build_autoencoder, downsampling, stable_diffusion_autoencoder
from defectdiffu.config import Preset
from defectdiffu.errors import InputError
from defectdiffu.model import DefectDiffuTransformer
from defectdiffu.prompts import GOOD, build_text_encoder

ACTIVATIONS_PER_BLOCK = 34  # numbers kept for the backward pass, per token and unit of width
WITHOUT_GRADIENTS = 14  # numbers there at once in sampling, per token and unit of width
BRANCHES = 3  # of the guidance that has most
FULL_SIZE_MAPS = 3  # of the decoder, there at once: the widest that have the picture's size, or ours the latent's
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


def meta_parts(preset: Preset) -> SimpleNamespace:
    """The preset's transformer, vae and text_encoder without their numbers. Pretrained, the latter two have the sizes
    of Stable Diffusion's autoencoder and of CLIP ViT-L/14."""
    text = preset.text
    with torch.device("meta"):
        if preset.autoencoder.pretrained is None:
            vae = build_autoencoder(preset.autoencoder)
        else:
            vae = stable_diffusion_autoencoder()
        if text.pretrained is None:
            _, text_encoder = build_text_encoder([GOOD], text.width, text.layers, text.heads)
        else:
            sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
            text_encoder = CLIPTextModel(CLIPTextConfig(**sizes))
    return SimpleNamespace(transformer=meta_transformer(preset), vae=vae, text_encoder=text_encoder)


def sampling_memory(
    pipe, batch_size: int, half: bool = False, offload: bool = False, tiling: bool = False
) -> dict[str, float]:
    """GB of one GPU's memory for sampling `batch_size` pairs together: computed, good to a factor of 1.5 or so.

    "weights"; "transformer" and "vae", what each of them needs beside its weights, the one after the other; and
    "total". pipe: the pipeline, or the `meta_parts` of a preset. half: two bytes a number instead of four; offload: one
    part on the GPU at a time; tiling: pictures are decoded tile by tile.
    """
    transformer, vae = pipe.transformer, pipe.vae
    weights = {
        name: sum(p.numel() for p in getattr(pipe, name).parameters())
        for name in ("transformer", "vae", "text_encoder")
    }
    side = transformer.config.sample_size * downsampling(vae)
    if tiling:
        side = min(side, vae.tile_sample_min_size)
    if isinstance(vae, PatchAutoencoder):
        patch = vae.config.patch_size
        values = (side // patch) ** 2 * max(vae.config.channels, 3 * patch**2)
    else:
        widths = vae.config.block_out_channels
        values = side**2 * widths[min(1, len(widths) - 1)]
    work = {
        "transformer": WITHOUT_GRADIENTS * BRANCHES * batch_size * transformer.side**2 * transformer.config.width,
        "vae": FULL_SIZE_MAPS * batch_size * values,
        "text_encoder": 0,  # a few prompts, once
    }
    if offload:
        total = max(weights[name] + work[name] for name in weights)
    else:
        total = sum(weights.values()) + max(work.values())
    parts = {"weights": sum(weights.values()), "transformer": work["transformer"], "vae": work["vae"], "total": total}
    return {name: value * (2 if half else 4) / GB for name, value in parts.items()}


def sampling_savings(pipe, batch_size: int) -> dict[str, float]:
    """{how it is switched on: GB that it would save}, for what is not in use yet; the most first."""
    used = sampling_modes(pipe) | {"batch_size": batch_size}
    names = {
        "batch_size": "batch_size=1 (--batch-size 1)",
        "half": "dtype=torch.float16 (--half)",
        "offload": "enable_model_cpu_offload() (--offload)",
        "tiling": "vae.enable_tiling() (--tiling)",
    }
    before = sampling_memory(pipe, **used)["total"]
    saved = {name: before - sampling_memory(pipe, **used | {mode: 1})["total"] for mode, name in names.items()}
    return {name: gb for name, gb in sorted(saved.items(), key=lambda item: -item[1]) if gb > 0}


def sampling_modes(pipe) -> dict[str, bool]:
    """Which of `sampling_memory`'s modes a pipeline is in."""
    transformer = pipe.transformer
    return {
        "half": transformer.dtype.itemsize == 2,
        "offload": hasattr(transformer, "_hf_hook"),
        "tiling": pipe.vae.use_tiling,
    }


@contextmanager
def explained(preset: Preset, precision: str, processes: int) -> Iterator[None]:
    """Where the GPU's memory runs out in this block, an `InputError` says which setting saves how much."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        needed = training_memory(preset, precision, processes)["total"]
        saved = savings(preset, precision, processes)
        raise InputError(_advice("this training", needed, 'Under "training" in the preset, ', saved)) from error


@contextmanager
def sampling_explained(pipe, batch_size: int) -> Iterator[None]:
    """The same for sampling `batch_size` pairs together."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        needed = sampling_memory(pipe, batch_size, **sampling_modes(pipe))["total"]
        saved = sampling_savings(pipe, batch_size)
        raise InputError(_advice(f"sampling {batch_size} at a time", needed, "Of this, ", saved)) from error


def _advice(what: str, needed: float, where: str, saved: dict[str, float]) -> str:
    settings = ", ".join(f"{name} saves {gb:.2g} GB" for name, gb in saved.items())
    return f"out of GPU memory: {what} takes about {needed:.2g} GB as computed. " + (
        where + settings if saved else "Every setting that saves memory is in use"
    )


def memory_table(
    presets: Iterable[Preset], image_sizes: Iterable[int], batch_sizes: Iterable[int], precision: str = "bf16"
) -> list[dict]:
    """Computed GB of memory for training and for sampling against preset, image size and batch, plain and with
    everything that saves (of a batch, then, one picture at a time)."""
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
