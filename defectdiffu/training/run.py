"""Trains first the autoencoder, then the transformer, on the devices that accelerate finds.

Step n depends only on (seed, n): its pictures, its noise, its dropped conditions. So a run that was killed and resumed
takes the same steps as one that was not, and several processes, each with its slice of the same batch, take the same
steps as one.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from defectdiffu.config import GOOD, Preset
from defectdiffu.data.folder import Sample, read_folder
from defectdiffu.data.warnings import warn
from defectdiffu.errors import InputError
from defectdiffu.files import locked, write_atomically, write_json
from defectdiffu.machine import precision, stream
from defectdiffu.pipeline import DefectDiffuPipeline
from defectdiffu.training.autoencoder import get_autoencoder
from defectdiffu.training.building import TRAIN_STEPS, build_pipeline, export
from defectdiffu.training.denoiser import Denoiser, conditions_told, denoising_step, draw_batch
from defectdiffu.training.latents import Latents, Pictures, cached_latents, read_samples
from defectdiffu.training.loop import build_accelerator, fit, seconds_per_step, share_of_process
from defectdiffu.training.planning import explained
from defectdiffu.training.step import TrainingStep, attention_kernel

SHARE_FOR_STEPS = 0.95  # of the minutes left; the rest is for checkpoints, validation and the export


def train(preset: Preset, data: list[Path], out: Path, val: Path | None = None) -> Path:
    """Train the autoencoder (if needed), cache latents, train the transformer; `out` is then a pipeline.

    data: folders in MVTec AD's layout; val: a folder for validation losses only. What is doubtful about the pictures is
    printed on stderr. Raises `InputError` for unusable data and for an `out` that was begun with other settings.
    """
    began = time.perf_counter()
    accelerator = build_accelerator(precision())
    check_shares(preset, accelerator)
    samples = read_samples(preset, data)
    if accelerator.is_main_process:
        warn(samples, preset.image_size)
    with accelerator.main_process_first():
        claim(out, preset, fingerprint(samples))
    with locked(out, "trains") if accelerator.is_main_process else nullcontext():
        return _train(lower_batch(preset, len(samples), accelerator), samples, out, val, accelerator, began)


def _train(
    preset: Preset, samples: list[Sample], out: Path, val: Path | None, accelerator: Accelerator, began: float
) -> Path:
    torch.manual_seed(preset.training.seed)
    pictures = Pictures.load(samples, preset.image_size)
    watched = Pictures.load(read_folder(val), preset.image_size) if val else None

    vae = get_autoencoder(preset, pictures, watched, accelerator, out)
    vae = vae.to(accelerator.device).eval().requires_grad_(False)
    cached = partial(
        cached_latents,
        vae,
        seed=preset.training.seed,
        folder=out / "cache",
        autocast=accelerator.autocast,
        processes=accelerator,
    )
    latents = cached(pictures, preset.training.variants).to(accelerator.device)
    watched_latents = cached(watched, 1).to(accelerator.device) if watched else None

    torch.manual_seed(preset.training.seed)
    pairs = sorted({(p, d) for p, d in zip(pictures.products, pictures.defects, strict=True) if d != GOOD})
    if not pairs and accelerator.is_main_process:
        print("no picture of a defect: these weights will generate good pictures only", file=sys.stderr)
    trained_on = {product: [d for p, d in pairs if p == product] for product in sorted(set(pictures.products))}
    pipe = build_pipeline(preset, vae, trained_on)
    pipe.to(accelerator.device)
    settings = preset.training
    told, numbers = conditions_told(latents, preset.model.null_product)
    step = denoising_step(Denoiser(pipe.transformer, pipe.encoder, told, preset), preset, accelerator)

    def watch(number: int, log: dict) -> None:
        pipe.encoder.forget()
        # Batches of other sizes, for which compiled blocks would have to be compiled again.
        with torch.compiler.set_stance("force_eager") if settings.compile else nullcontext():
            if watched_latents is not None:
                log["val"] = validate(pipe, watched_latents, preset, accelerator)
            if accelerator.is_main_process and pairs:
                save_grid(pipe, pairs, out / "samples" / f"{number:08d}.png")

    def batch_at(number: int) -> dict[str, Tensor]:
        return share_of_process(accelerator, draw_batch(latents, numbers, preset, number))

    with explained(preset, precision(), accelerator.num_processes):
        planned = settings.minutes is not None
        fit(
            step,
            batch_at,
            out / "checkpoints",
            steps=planned_steps(step, batch_at, preset, out, began) if planned else settings.steps,
            learning_rate=settings.learning_rate,
            warmup_steps=settings.warmup_steps,
            ema_decay=settings.ema_decay,
            checkpoint_every=settings.checkpoint_every,
            label="transformer",
            every=settings.sample_every,
            watch=watch,
        )
    if accelerator.is_main_process:
        export(pipe, out)
    accelerator.wait_for_everyone()
    return out


def planned_steps(step: TrainingStep, batch_at: Callable, preset: Preset, out: Path, began: float) -> int:
    """Number of steps that fit into `training.minutes`, counted from `began`; saved, so a resumed run keeps it."""
    file = out / "plan.json"
    if not file.is_file():
        assert preset.training.minutes is not None  # else there is nothing to plan
        per_step = seconds_per_step(step, batch_at)
        left = preset.training.minutes * 60 - (time.perf_counter() - began)
        steps = max(1, int(SHARE_FOR_STEPS * left / per_step))
        if step.accelerator.is_main_process:
            plan = {"steps": steps, "seconds_per_step": per_step, "samples": steps * preset.training.batch_size}
            write_json(file, plan)
        step.accelerator.wait_for_everyone()
    return json.loads(file.read_text())["steps"]


def check_shares(preset: Preset, accelerator: Accelerator) -> None:
    """Raise `InputError` unless the batch divides evenly: only then is its mean the mean of the parts' means."""
    settings, processes = preset.training, accelerator.num_processes
    if settings.accumulate < 1 or settings.batch_size % (processes * settings.accumulate):
        raise InputError(
            f"training.batch_size {settings.batch_size} must be a multiple of {processes} processes x "
            f"training.accumulate {settings.accumulate}"
        )


def lower_batch(preset: Preset, pictures: int, accelerator: Accelerator) -> Preset:
    """The preset with a batch that is no larger than the latent cache, said in one line where that lowers it."""
    settings = preset.training
    share = accelerator.num_processes * settings.accumulate
    versions = pictures * settings.variants
    if versions >= settings.batch_size:
        return preset
    batch = versions // share * share
    if batch == 0:
        raise InputError(f"{pictures} pictures in {settings.variants} versions are fewer than {share} parts of a batch")
    if accelerator.is_main_process:
        print(
            f"{pictures} pictures in {settings.variants} versions: training.batch_size is lowered from "
            f"{settings.batch_size} to {batch}",
            file=sys.stderr,
        )
    return preset.replace(training={"batch_size": batch})


def fingerprint(samples: list[Sample]) -> dict:
    """What identifies the pictures: their number, and a digest of their names, sizes and last bytes."""
    found = hashlib.sha256()
    for sample in sorted(samples, key=lambda s: (s.product, s.defect, s.image.name)):
        for file in filter(None, (sample.image, sample.mask)):
            size = file.stat().st_size
            found.update(f"{sample.product}/{sample.defect}/{file.name} {size}".encode())
            with file.open("rb") as content:
                content.seek(max(0, size - 4096))
                found.update(content.read())
    return {"pictures": len(samples), "digest": found.hexdigest()}


def claim(out: Path, preset: Preset, pictures: dict | None = None) -> None:
    """Make `out` the folder of these settings and pictures (a `fingerprint`).

    Raises `InputError` if it is a folder of others, naming the differences.
    """
    file, of_data = out / "config.json", out / "data.json"
    settings = preset.to_dict()

    def begun_with(of: Path) -> dict:
        try:
            values = json.loads(of.read_text())  # settings added since have their defaults
            return Preset.from_dict(values).to_dict() if of == file else dict(values)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{of} is damaged ({error}): restore it, or choose another --out") from error

    if file.is_file():
        changes = [f"{where}: {a!r} there, {b!r} asked" for where, a, b in _differences(begun_with(file), settings)]
        if changes:
            raise InputError(f"{out} was begun with other settings ({'; '.join(changes[:3])}): choose another --out")
        if pictures and of_data.is_file() and (there := begun_with(of_data)) != pictures:
            raise InputError(
                f"{out} was begun with other pictures ({there.get('pictures')} there, {pictures['pictures']} asked): "
                "choose another --out"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not a training run: choose another --out")
    else:
        write_json(file, settings)
    if pictures and not of_data.is_file():
        write_json(of_data, pictures)


def _differences(a: dict, b: dict, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(a.keys() | b.keys()):
        x, y = a.get(key), b.get(key)
        if isinstance(x, dict) and isinstance(y, dict):
            yield from _differences(x, y, f"{where}{key}.")
        elif x != y:
            yield f"{where}{key}", x, y


@torch.no_grad()
def validate(pipe: DefectDiffuPipeline, latents: Latents, preset: Preset, accelerator: Accelerator) -> dict[str, float]:
    """Mean loss terms over all validation pictures, no conditions dropped, always with the same noise and steps."""
    pairs = list(zip(latents.products, latents.defects, strict=True))  # of each picture
    denoiser = Denoiser(pipe.transformer, pipe.encoder, pairs, preset)
    device, n = latents.image.device, len(latents.image)
    _, generator = stream(device, preset.training.seed, 3)
    batch = {
        "x": latents.image[:, 0].float(),
        "noise": torch.randn(latents.image[:, 0].shape, generator=generator, device=device),
        "t": torch.randint(TRAIN_STEPS, (n,), generator=generator, device=device),
        "mask": latents.mask[:, 0].float(),
        "region": latents.region[:, 0].float(),
        "pair": torch.arange(n, device=device),
    }
    total: dict[str, float] = {}
    for rows in torch.arange(n, device=device).split(preset.training.batch_size):
        with accelerator.autocast(), attention_kernel(accelerator):
            terms = denoiser({key: value[rows] for key, value in batch.items()})
        for key, value in terms.items():
            total[key] = total.get(key, 0.0) + float(value) * len(rows) / n
    return total


def save_grid(pipe: DefectDiffuPipeline, pairs: list[tuple[str, str]], path: Path, columns: int = 12) -> None:
    """A grid of pictures above their masks for up to `columns` of the pairs, evenly chosen, seeds 0, 1, 2, ..."""
    shown = [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(columns, len(pairs))).astype(int)]
    products, defects = zip(*shown, strict=True)
    out = pipe(product=products, defect=defects)
    tiles = [np.concatenate([i, m.convert("RGB")]) for i, m in zip(out.images, out.masks, strict=True)]
    write_atomically(path, lambda p: Image.fromarray(np.concatenate(tiles, 1)).save(p, "png"))
