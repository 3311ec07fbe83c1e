"""How fast this machine trains and samples, compared with the procedure of the paper's released code: `benchmark`.

Uses random weights of a preset's sizes and random pictures and downloads nothing: only speed and memory are measured.
"""

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from defectdiffu import autoencoder
from defectdiffu.config import GOOD, Preset
from defectdiffu.errors import InputError, check_choice
from defectdiffu.guidance import branch_conditions, double_free, evaluate_branches
from defectdiffu.machine import default_device, device_name, precision
from defectdiffu.masks import averaged_steps, to_picture, to_probability
from defectdiffu.model import TransformerOutput
from defectdiffu.pipeline import DefectDiffuPipeline
from defectdiffu.prompts import Conditions
from defectdiffu.training.building import TRAIN_STEPS, build_pipeline
from defectdiffu.training.denoiser import Denoiser, conditions_told, denoising_step, draw_batch
from defectdiffu.training.latents import Latents
from defectdiffu.training.loop import build_accelerator
from defectdiffu.training.planning import matrix_rate, matrix_size
from defectdiffu.training.prompt_table import PromptTable

PARTS = ("train", "sample")
TRAINED_ON = {"hazelnut": ["crack"], "carpet": ["hole"]}  # enough names to make prompts
PRODUCT, DEFECT = "hazelnut", "crack"
IMAGES = 4  # sampled together
STEPS, BASELINE_STEPS = 20, 50  # of denoising
CLIP_LAYERS, CLIP_HEADS = 12, 12  # of ViT-L/14's text model

GROWTH = 1.02  # a batch twice as large is better if it is faster by this factor


@dataclass
class Work:
    """run(tick): makes `samples` samples and calls `tick` after every step; flop: of the transformer in one run."""

    run: Callable[[Callable[[], object]], object]
    samples: int
    flop: float


Prepare = Callable[[Preset, int], Work]  # of a preset and a batch


def benchmark(preset: Preset, repeats: int = 5, parts: Sequence[str] = PARTS, baseline: bool = False) -> dict:
    """Samples per second, achieved FLOP/s, its share of the device's measured matrix-product rate, and peak memory.

    parts: "train" (a step of the training loop on cached latents), "sample" (image-mask pairs, 20 steps, double-free).
    baseline: also time what the released code does, on batches of the same size: full precision with TF32 on,
    autoencoder and text encoder run in every step, no cache; 50 steps of sampling, the branches in separate passes. On
    a GPU ours is also timed at the batch from which twice as many pictures are no faster or do not fit ("best_...").
    Medians over `repeats` after one warm-up. Only the transformer's FLOP are counted; all other work counts only as
    time. host_ms_per_step, the time until the processor has given a step to the GPU, and device_busy, the share of the
    time in which the GPU computes, are None without a GPU.
    """
    for part in parts:
        check_choice("part of the benchmark", part, PARTS)
    rate = matrix_rate()
    result = {
        "preset": preset.name,
        "image_size": preset.image_size,
        "batch_size": preset.training.batch_size,
        "device": device_name(),
        "torch": torch.__version__,
        "precision": precision(),
        "matrix_product_gflops": round(rate / 1e9),
        "matrix_product_size": matrix_size(),
        "repeats": repeats,
    }
    works: dict[str, tuple[str, int, Prepare, Prepare]] = {
        "train": ("training", preset.training.batch_size, train_ours, train_baseline),
        "sample": ("sampling", IMAGES, sample_ours, sample_baseline),
    }
    for part in parts:
        name, batch, prepare, prepare_baseline = works[part]
        ours = measured(prepare, preset, batch, repeats, rate)
        found = {"": ours}
        if default_device() == "cuda":
            found["best_"] = best(ours, prepare, preset, repeats, rate)
        if baseline:
            found["baseline_"] = measured(prepare_baseline, preset, batch, repeats, rate)
        for prefix, figures in found.items():
            result |= {f"{prefix}{name}_{key}": value for key, value in figures.items()}
        if baseline:
            result[f"{name}_speedup"] = round(ours["samples_per_second"] / found["baseline_"]["samples_per_second"], 2)
    return result


def measured(prepare: Prepare, preset: Preset, batch: int, repeats: int, rate: float) -> dict[str, Any]:
    """The figures of one contender; what earlier ones left in memory is freed first."""
    release()
    work = prepare(preset, batch)
    seconds, memory = measure(lambda: work.run(lambda: None), repeats)
    on_gpu = default_device() == "cuda"
    return {
        "batch_size": batch,
        "samples_per_second": float(f"{work.samples / seconds:.4g}"),
        "gflops": round(work.flop / seconds / 1e9, 1),
        "mfu": round(work.flop / seconds / rate, 3),
        "peak_memory_gb": memory,
        "host_ms_per_step": round(1e3 * host_seconds(work), 3) if on_gpu else None,
        "device_busy": round(device_seconds(work) / seconds, 3) if on_gpu else None,
    }


def best(found: dict[str, Any], prepare: Prepare, preset: Preset, repeats: int, rate: float) -> dict[str, Any]:
    """The figures at the best batch: from those `found`, it is doubled as long as it is faster and fits in memory."""
    while True:
        try:
            larger = measured(prepare, preset, 2 * found["batch_size"], repeats, rate)
        except (torch.OutOfMemoryError, InputError):  # the pipeline explains it by an `InputError`
            return found
        if larger["samples_per_second"] < GROWTH * found["samples_per_second"]:
            return found
        found = larger


def train_ours(preset: Preset, batch_size: int) -> Work:
    """A step of `loop.fit` with its batch drawn: cached latents, a table of prompts, autocast, averaged weights."""
    preset = preset.replace(training={"batch_size": batch_size})
    accelerator = build_accelerator(precision())
    latents = random_latents(preset, accelerator.device)
    told, numbers = conditions_told(latents, preset.model.null_product)
    pipe = build(preset, accelerator.device)
    denoiser = Denoiser(pipe.transformer, pipe.encoder, told, preset)
    flop = training_flop(denoiser, draw_batch(latents, numbers, preset, 0))  # counted before anything is compiled
    step = denoising_step(denoiser, preset, accelerator)
    step.set(preset.training.learning_rate, preset.training.ema_decay)
    steps = itertools.count()

    def run(tick: Callable[[], object]) -> None:
        step(draw_batch(latents, numbers, preset, next(steps)))
        tick()

    return Work(run, batch_size, flop)


def train_baseline(preset: Preset, batch_size: int) -> Work:
    """A step of the released code: pictures and prompts are encoded in every step, no average of the weights."""
    preset = preset.replace(training={"batch_size": batch_size})
    device = torch.device(default_device())
    latents = random_latents(preset, device)
    told, numbers = conditions_told(latents, preset.model.null_product)
    pipe = build(preset, device)
    denoiser = Denoiser(pipe.transformer, pipe.encoder, told, preset)
    optimizer = torch.optim.AdamW([p for p in denoiser.parameters() if p.requires_grad], preset.training.learning_rate)
    batch = draw_batch(latents, numbers, preset, 0)
    pictures = torch.rand(len(batch["x"]), 3, preset.image_size, preset.image_size, device=device) * 2 - 1
    masks = (pictures[:, 0] > 0).float()

    def run(tick: Callable[[], object]) -> None:
        with tf32():
            denoiser.prompts = PromptTable(pipe.encoder, told, trained=preset.text.pretrained is None)
            with torch.no_grad():
                encoded = autoencoder.encode(pipe.vae, pictures), autoencoder.encode(pipe.vae, to_picture(masks))
            denoiser(batch | dict(zip(("x", "mask"), encoded, strict=True)))["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        tick()

    return Work(run, batch_size, training_flop(denoiser, batch))


def sample_ours(preset: Preset, images: int) -> Work:
    """The pipeline with the precision of `generate`: half on a GPU."""
    device = torch.device(default_device())
    pipe = build(preset, device)
    if device.type == "cuda":
        pipe.to(torch.float16 if precision() == "fp16" else torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    x, t = noise_and_step(pipe, images)
    conditions = branch_conditions(pipe.encoder, "double_free", [PRODUCT], [DEFECT], preset.model.null_product)
    flop = STEPS * count(lambda: evaluate_branches(pipe.transformer, x, t, conditions))

    def run(tick: Callable[[], object]) -> None:
        pipe(
            PRODUCT,
            DEFECT,
            num_images=images,
            batch_size=images,
            num_inference_steps=STEPS,
            guidance="double_free",
            callback=lambda *_: tick(),
        )

    return Work(run, images, flop)


def sample_baseline(preset: Preset, images: int) -> Work:
    """Ancestral sampling in full precision: one pass per branch and step, the mask from the last tenth of the steps."""
    device = torch.device(default_device())
    pipe = build(preset, device)
    scheduler = DDPMScheduler(TRAIN_STEPS)
    scheduler.set_timesteps(BASELINE_STEPS)
    last = scheduler.timesteps[-averaged_steps(BASELINE_STEPS) :]
    x, t = noise_and_step(pipe, images)
    channels = x.shape[1]

    def branch(condition: Conditions, x: Tensor, t: Tensor) -> TransformerOutput:
        wide = (p.map(lambda v: v.expand(images, *v.shape[1:])) for p in vars(condition).values())
        return pipe.transformer(x, t, *wide)

    def conditions() -> dict[str, Conditions]:
        pipe.encoder.forget()
        return branch_conditions(pipe.encoder, "double_free", [PRODUCT], [DEFECT], preset.model.null_product)

    def sample(tick: Callable[[], object]) -> None:
        latents, prompts = x, conditions()
        for time_step in scheduler.timesteps:
            out = {name: branch(c, latents, time_step.to(device).expand(images)) for name, c in prompts.items()}
            noise = double_free({name: o.sample[:, :channels] for name, o in out.items()}, 1.0, 1.0)
            latents = scheduler.step(noise, time_step, latents).prev_sample
            if time_step in last:
                to_probability(autoencoder.decode(pipe.vae, out["d0"].mask))
            tick()
        autoencoder.decode(pipe.vae, latents)

    def run(tick: Callable[[], object]) -> None:
        with tf32(), torch.no_grad():
            sample(tick)

    with torch.no_grad():
        prompts = conditions()
        flop = BASELINE_STEPS * sum(count(partial(branch, c, x, t)) for c in prompts.values())
    return Work(run, images, flop)


def build(preset: Preset, device: torch.device) -> DefectDiffuPipeline:
    """Random weights of the preset's sizes; its pretrained parts have the sizes of Stable Diffusion's."""
    torch.manual_seed(0)
    sizes = preset.replace(start_from=None, model={"pretrained": None})
    vae: autoencoder.Autoencoder = autoencoder.build_autoencoder(preset.autoencoder)
    if preset.autoencoder.pretrained is not None:
        vae = autoencoder.stable_diffusion_autoencoder()
    if preset.text.pretrained is not None:
        sizes = sizes.replace(text={"pretrained": None, "layers": CLIP_LAYERS, "heads": CLIP_HEADS})
    return build_pipeline(sizes, vae.eval().requires_grad_(False), TRAINED_ON).to(device)


def random_latents(preset: Preset, device: torch.device) -> Latents:
    """Random latents of a few pictures, every second one with a defect, as training caches them."""
    side, n = preset.latent_size, 8
    image = torch.randn(n, 1, preset.autoencoder.latent_channels, side, side, device=device)
    region = (image[:, :, 0] > 1).to(torch.uint8)
    pairs = [(product, d) for product, defects in TRAINED_ON.items() for d in (GOOD, *defects)]
    products, defects = zip(*(pairs * n)[:n], strict=True)
    return Latents(image.half(), image.half(), region, list(products), list(defects))


def noise_and_step(pipe: DefectDiffuPipeline, images: int) -> tuple[Tensor, Tensor]:
    config = pipe.transformer.config
    x = torch.randn(images, config.in_channels, config.sample_size, config.sample_size)
    return x.to(pipe.device, pipe.transformer.dtype), torch.full((images,), 500, device=pipe.device)


def training_flop(denoiser: Denoiser, batch: dict[str, Tensor]) -> float:
    """FLOP of forward and backward, the backward counted as twice the forward; recomputation is not counted."""
    with torch.no_grad():
        prompts = denoiser.prompts.conditions(batch["pair"][:1])
        transformer, x, t = denoiser.transformer, batch["x"][:1], batch["t"][:1]
        return 3 * len(batch["x"]) * count(lambda: transformer(x, t, **vars(prompts)))


def count(work: Callable[[], object]) -> float:
    """Floating-point operations of `work`, without gradients."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return counter.get_total_flops()


@contextmanager
def tf32() -> Iterator[None]:
    """Full precision with TF32 on, as most code runs on GPUs since Ampere."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def release() -> None:
    """Free what is no longer used, so that it does not count as the memory of what comes next."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def host_seconds(work: Work) -> float:
    """Median time in which the processor gives a step to the GPU, which has nothing else to do."""
    seconds = []
    torch.cuda.synchronize()
    start = time.perf_counter()

    def tick() -> None:
        nonlocal start
        seconds.append(time.perf_counter() - start)
        torch.cuda.synchronize()
        start = time.perf_counter()

    work.run(tick)
    return median(seconds)


def device_seconds(work: Work) -> float:
    """Time in which the GPU computes or copies during one run, by the profiler."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work.run(lambda: None)
        torch.cuda.synchronize()
    kernels = [e for e in profiler.events() if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    return sum(e.time_range.elapsed_us() for e in kernels) / 1e6


def measure(work: Callable[[], object], repeats: int) -> tuple[float, float | None]:
    """Median seconds of `work`, after one warm-up, and its peak memory in GB: of the GPU, or of this process without
    one; None if unknown."""
    on_gpu, status = torch.cuda.is_available(), Path("/proc/self/status")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    elif status.is_file():
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is counted from here
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = None
    if on_gpu:
        peak = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    elif status.is_file():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        peak = round(int(line.split()[1]) * 1024 / 1e9, 2)
    return median(seconds[1:]), peak
