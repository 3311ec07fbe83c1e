"""How fast this machine trains and samples: `defectdiffu benchmark`."""

import time
from collections.abc import Callable
from statistics import median

import torch
from accelerate import Accelerator

from defectdiffu.autoencoder import build_autoencoder
from defectdiffu.building import build_pipeline
from defectdiffu.config import Preset
from defectdiffu.guidance import branch_conditions, evaluate_branches
from defectdiffu.loop import attention_kernel
from defectdiffu.planning import device_name, matrix_rate
from defectdiffu.training import Denoiser, precision

TRAINED_ON = {"hazelnut": ["crack"], "carpet": ["hole"]}  # names enough to make prompts


def benchmark(preset: Preset, repeats: int = 5) -> dict:
    """Training samples/s, image-mask pairs/s, and the time of guidance as we do it over that of three separate passes.

    Random weights and data, so nothing but speed is measured; medians over `repeats` after one warm-up. The ratio
    holds two savings: the shared background pass, and the branches running as one batch.
    """
    accelerator = Accelerator(mixed_precision=precision())
    device = accelerator.device
    vae = build_autoencoder(preset.autoencoder)
    pipe = build_pipeline(preset, vae, TRAINED_ON).to(device)
    pipe.set_progress_bar_config(disable=True)
    steps = preset.sampling.num_inference_steps

    def sample() -> None:
        pipe("hazelnut", "crack", num_images=4)

    x = torch.randn(4, preset.autoencoder.latent_channels, preset.latent_size, preset.latent_size, device=device)
    t = torch.full((4,), 500, device=device)
    conditions = branch_conditions(pipe.encoder, "double_free", "hazelnut", "crack", preset.model.null_product)

    def naive() -> None:
        with torch.no_grad():
            for condition in conditions.values():
                wide = [p.map(lambda v: v.expand(4, *v.shape[1:])) for p in vars(condition).values()]
                pipe.transformer(x, t, *wide)

    def shared() -> None:
        with torch.no_grad():
            evaluate_branches(pipe.transformer, x, t, conditions)

    batch = preset.training.batch_size
    noise = torch.randn(batch, *x.shape[1:], device=device)
    data = {
        "x": noise,
        "noise": noise,
        "t": torch.randint(1000, (batch,), device=device),
        "mask": noise,
        "region": torch.zeros(batch, *x.shape[2:], device=device),
        "products": ["hazelnut", "carpet"] * (batch // 2) + ["carpet"] * (batch % 2),
        "defects": ["crack"] * batch,
    }
    sampling = median(_times(sample, repeats))
    # The two are timed in turn, so that a machine that slows down slows both.
    pairs = [(_time(shared), _time(naive)) for _ in range(4 * repeats + 1)][1:]

    denoiser = Denoiser(pipe.transformer, pipe.encoder, preset)
    optimizer = torch.optim.AdamW([p for p in denoiser.parameters() if p.requires_grad], 1e-4)

    def train() -> None:
        with accelerator.autocast(), attention_kernel(accelerator):
            denoiser(data)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    training = median(_times(train, repeats))
    return {
        "preset": preset.name,
        "device": device_name(),
        "torch": torch.__version__,
        "precision": precision(),
        "matrix_product_gflops": round(matrix_rate() / 1e9),
        "training_samples_per_second": round(batch / training, 2),
        "batch_size": batch,
        "seconds_per_pair": round(sampling / 4, 4),
        "num_inference_steps": steps,
        "guidance_over_three_passes": round(median(a / b for a, b in pairs), 3),
        "repeats": repeats,
    }


def _time(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _times(work: Callable[[], None], repeats: int) -> list[float]:
    return [_time(work) for _ in range(repeats + 1)][1:]
