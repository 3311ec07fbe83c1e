"""How much GPU memory sampling takes, computed from sizes, and how to reduce it.

By diffusers' options::

    pipe = DefectDiffuPipeline.from_pretrained(name, dtype=torch.float16)     # half the memory
    pipe.enable_model_cpu_offload()       # one part on the GPU at a time, instead of `pipe.to("cuda")`
    pipe.vae.enable_tiling()              # a picture larger than a tile is decoded tile by tile
    pipe(..., batch_size=1)               # one picture, with all its branches, at a time

In `defectdiffu generate` the first is the default, which `--full-precision` switches off; the others are `--offload`,
`--tiling` and `--batch-size`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from transformers import CLIPTextModel

from defectdiffu.autoencoder import Autoencoder, PatchAutoencoder, downsampling
from defectdiffu.errors import InputError

WITHOUT_GRADIENTS = 14  # numbers in memory at once in sampling, per token and unit of width
BRANCHES = 3  # of the guidance with the most branches
FULL_SIZE_MAPS = 3  # of the decoder, in memory at once: the widest of the picture's size, or in ours of the latent's
GB = 1e9


class Parts(Protocol):
    """The parts of a pipeline that take memory; the `meta_parts` of a preset have the same."""

    transformer: Any  # `DefectDiffuTransformer`, of the same layer as this module, so not imported
    vae: Autoencoder
    text_encoder: CLIPTextModel


def sampling_memory(
    pipe: Parts, batch_size: int, half: bool = False, offload: bool = False, tiling: bool = False
) -> dict[str, float]:
    """GB of one GPU's memory for sampling `batch_size` pairs together: computed, accurate to a factor of about 1.5.

    "weights"; "transformer" and "vae", the memory each of them needs besides its weights, not at the same time; and
    "total". pipe: the pipeline, or the `meta_parts` of a preset. half: two bytes per number instead of four; offload:
    one part on the GPU at a time; tiling: pictures are decoded tile by tile.
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
        widths = vae.config["block_out_channels"]
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


def sampling_savings(pipe: Parts, batch_size: int) -> dict[str, float]:
    """{how to switch an option on: GB that it would save}, for options not in use yet; the largest first."""
    modes = sampling_modes(pipe)
    names = {
        "half": "dtype=torch.float16 (no --full-precision)",
        "offload": "enable_model_cpu_offload() (--offload)",
        "tiling": "vae.enable_tiling() (--tiling)",
    }
    before = sampling_memory(pipe, batch_size, **modes)["total"]
    after = {"batch_size=1 (--batch-size 1)": sampling_memory(pipe, 1, **modes)}
    after |= {name: sampling_memory(pipe, batch_size, **modes | {mode: True}) for mode, name in names.items()}
    saved = {name: before - memory["total"] for name, memory in after.items()}
    return {name: gb for name, gb in sorted(saved.items(), key=lambda item: -item[1]) if gb > 0}


def sampling_modes(pipe: Parts) -> dict[str, bool]:
    """Which modes of `sampling_memory` a pipeline uses."""
    transformer = pipe.transformer
    return {
        "half": transformer.dtype.itemsize == 2,
        "offload": hasattr(transformer, "_hf_hook"),
        "tiling": pipe.vae.use_tiling,
    }


@contextmanager
def sampling_explained(pipe: Parts, batch_size: int) -> Iterator[None]:
    """If the GPU's memory runs out in this block, raise an `InputError` that says how much each option saves."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        needed = sampling_memory(pipe, batch_size, **sampling_modes(pipe))["total"]
        saved = sampling_savings(pipe, batch_size)
        raise InputError(advice(f"sampling {batch_size} at a time", needed, "Of this, ", saved)) from error


def advice(what: str, needed: float, where: str, saved: dict[str, float]) -> str:
    """One line: how many GB `what` takes, and how many each option would save."""
    settings = ", ".join(f"{name} saves {gb:.2g} GB" for name, gb in saved.items())
    return f"out of GPU memory: {what} takes about {needed:.2g} GB as computed. " + (
        where + settings if saved else "Every setting that saves memory is in use"
    )
