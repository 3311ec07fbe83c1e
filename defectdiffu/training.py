"""Training, autoencoder first, then the transformer, on whatever accelerate finds.

What step n does depends on (seed, n) alone: which pictures, which noise, which conditions are dropped. So a run that
was killed and resumed takes the same steps as one that never was, and several processes, each taking its slice of
the same batch, take the same steps as one.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor, nn

from defectdiffu import autoencoder, losses
from defectdiffu.building import TRAIN_STEPS, build_pipeline, export, load_autoencoder
from defectdiffu.checkpoints import write_atomically, writing
from defectdiffu.config import Preset
from defectdiffu.data.folder import read_folder
from defectdiffu.data.splitting import hold_out, parse_pairs, split
from defectdiffu.errors import InputError
from defectdiffu.guidance import drop_conditions
from defectdiffu.latents import Latents, Pictures, cached_latents
from defectdiffu.loop import fit, seconds_per_step
from defectdiffu.masks import resize_mask, to_picture
from defectdiffu.memory import explained
from defectdiffu.model import DefectDiffuTransformer
from defectdiffu.pipeline import DefectDiffuPipeline
from defectdiffu.prompts import GOOD, PromptEncoder, check_names
from defectdiffu.sharding import build_accelerator, is_sharded

SHARE_FOR_STEPS = 0.95  # of the minutes left; the rest is for checkpoints, watching and the export
COMPONENT_BATCHES = 64  # whose patches a new autoencoder's principal components are those of


class Denoiser(nn.Module):
    """Transformer and, where it is trained along, text encoder: one module for optimiser, EMA and accelerate."""

    _no_split_modules = ["Block"]  # noqa: RUF012 (what accelerate reads: the units that sharding gathers)

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

        Where the velocity is predicted, Eqs. 2 and 10 are taken of it ("velocity", "defect"); "noise" is then the error
        of the noise that it implies, to compare by, and no part of the sum."""
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
        # Mean 1 over all steps, so that lambda keeps its meaning.
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


class Reconstruction(nn.Module):
    """The autoencoder's stage in the same form: a batch in, named losses out."""

    def __init__(self, vae: autoencoder.PatchAutoencoder, latent_noise: float):
        super().__init__()
        self.vae = vae
        self.latent_noise = latent_noise

    def forward(self, batch: dict) -> dict[str, Tensor]:
        return {"loss": autoencoder.reconstruction_loss(self.vae, batch["x"], self.latent_noise, batch["noise"])}


def train(preset: Preset, data: list[Path], out: Path, val: Path | None = None) -> Path:
    """Autoencoder (unless there is one), latent cache, transformer; `out` is then a pipeline to generate with.

    data: folders in MVTec AD's layout; val: one whose pictures are never trained on, only watched. Raises
    `InputError` for unusable data and for an `out` that was begun with other settings.
    """
    began = time.perf_counter()
    accelerator = build_accelerator(precision())
    check_shares(preset, accelerator)
    samples = read_samples(preset, data)
    with accelerator.main_process_first():
        claim(out, preset)
    torch.manual_seed(preset.training.seed)
    pictures = Pictures.load(samples, preset.image_size)
    watched = Pictures.load(read_folder(val), preset.image_size) if val else None

    vae = get_autoencoder(preset, pictures, watched, accelerator, out)
    vae = vae.to(accelerator.device).eval().requires_grad_(False)
    cache = {"seed": preset.training.seed, "folder": out / "cache"}
    cache |= {"autocast": accelerator.autocast, "processes": accelerator}
    latents = cached_latents(vae, pictures, preset.training.variants, **cache).to(accelerator.device)
    watched = cached_latents(vae, watched, 1, **cache).to(accelerator.device) if watched else None

    torch.manual_seed(preset.training.seed)
    pairs = sorted({(p, d) for p, d in zip(pictures.products, pictures.defects, strict=True) if d != GOOD})
    if not pairs and accelerator.is_main_process:
        print("no picture of a defect: these weights will generate good pictures only", file=sys.stderr)
    trained_on = {product: [d for p, d in pairs if p == product] for product in sorted(set(pictures.products))}
    pipe = build_pipeline(preset, vae, trained_on)
    pipe.to(accelerator.device)
    denoiser = Denoiser(pipe.transformer, pipe.encoder, preset).to(accelerator.device)
    if preset.training.compile:
        denoiser.transformer.compile()
    if preset.training.gradient_checkpointing:
        pipe.transformer.enable_gradient_checkpointing()

    def watch(step: int, log: dict) -> None:
        pipe.encoder.forget()
        if watched is not None:
            log["val"] = validate(denoiser, watched, preset, accelerator)
        if accelerator.is_main_process and pairs:
            save_grid(pipe, pairs, out / "samples" / f"{step:08d}.png")

    def batch_at(step: int) -> dict:
        return draw_batch(latents, preset, step, accelerator)

    settings = preset.training
    steps = settings.steps
    if settings.minutes is not None:
        steps = planned_steps(accelerator, denoiser, batch_at, preset, out, began)
    with explained(preset, precision(), accelerator.num_processes):
        fit(
            accelerator,
            denoiser,
            batch_at,
            out / "checkpoints",
            steps=steps,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            warmup_steps=settings.warmup_steps,
            ema_decay=settings.ema_decay,
            max_grad_norm=settings.max_grad_norm,
            checkpoint_every=settings.checkpoint_every,
            label="transformer",
            accumulate=settings.accumulate,
            average_on_cpu=settings.average_on_cpu,
            every=settings.sample_every,
            watch=watch,
        )
    if accelerator.is_main_process:
        export(pipe, out)
    accelerator.wait_for_everyone()
    return out


def planned_steps(
    accelerator: Accelerator, denoiser: Denoiser, batch_at: Callable, preset: Preset, out: Path, began: float
) -> int:
    """How many steps fit into `training.minutes`, counted from `began`; planned once, so a resumed run keeps them."""
    file = out / "plan.json"
    if not file.is_file():
        per_step = seconds_per_step(accelerator, denoiser, batch_at, preset.training.accumulate)
        left = preset.training.minutes * 60 - (time.perf_counter() - began)
        steps = max(1, int(SHARE_FOR_STEPS * left / per_step))
        if accelerator.is_main_process:
            plan = {"steps": steps, "seconds_per_step": per_step, "samples": steps * preset.training.batch_size}
            write_atomically(file, lambda path: path.write_text(json.dumps(plan, indent=2) + "\n"))
        accelerator.wait_for_everyone()
    return json.loads(file.read_text())["steps"]


def read_samples(preset: Preset, data: list[Path]) -> list:
    """The samples of `data` to train on. Raises `InputError` for names that prompts cannot tell apart, for a pair to
    hold out that is not there, and where they are fewer than a batch."""
    samples = read_folder(*data)
    products, null = sorted({s.product for s in samples}), preset.model.null_product
    if null in products:
        raise InputError(f"'{null}' stands for no product in particular: rename that folder or set model.null_product")
    check_names([*products, *sorted({s.defect for s in samples}), GOOD, null])
    if preset.training.hold_out is not None:
        samples = hold_out(samples, parse_pairs(preset.training.hold_out))
    if preset.training.half_split:
        samples, _ = split(samples, preset.training.seed)
    if len(samples) * preset.training.variants < preset.training.batch_size:
        raise InputError(
            f"{len(samples)} pictures in {', '.join(map(str, data))} are fewer than the batch of "
            f"{preset.training.batch_size}: add pictures or lower training.batch_size"
        )
    return samples


def check_shares(preset: Preset, accelerator: Accelerator) -> None:
    """Raises `InputError` unless the batch divides evenly: only then is the mean of the parts' means its mean."""
    settings, processes = preset.training, accelerator.num_processes
    if settings.accumulate < 1 or settings.batch_size % (processes * settings.accumulate):
        raise InputError(
            f"training.batch_size {settings.batch_size} must be a multiple of {processes} processes x "
            f"training.accumulate {settings.accumulate}"
        )
    for name in ("compile", "average_on_cpu"):
        if getattr(settings, name) and is_sharded(accelerator):
            raise InputError(f"training.{name} does not go with sharded weights (FSDP): turn one of them off")


def claim(out: Path, preset: Preset) -> None:
    """Make `out` this configuration's folder; raises `InputError` if it is another's, naming what differs."""
    file = out / "config.json"
    settings = preset.to_dict()
    if file.is_file():
        there = Preset.from_dict(json.loads(file.read_text())).to_dict()  # settings that came since have their defaults
        changes = [f"{where}: {a!r} there, {b!r} asked" for where, a, b in _differences(there, settings)]
        if changes:
            raise InputError(f"{out} was begun with other settings ({'; '.join(changes[:3])}): choose another --out")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is no training run: choose another --out")
    else:
        write_atomically(file, lambda path: path.write_text(json.dumps(settings, indent=2)))


def _differences(a: dict, b: dict, where: str = ""):
    for key in sorted(a.keys() | b.keys()):
        x, y = a.get(key), b.get(key)
        if isinstance(x, dict) and isinstance(y, dict):
            yield from _differences(x, y, f"{where}{key}.")
        elif x != y:
            yield f"{where}{key}", x, y


def precision() -> str:
    """bf16 where the device computes in it, fp16 on older GPUs, else full precision."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"


def _stream(device: torch.device, *numbers: int) -> tuple[np.random.Generator, torch.Generator]:
    """Random numbers that depend on `numbers` alone, for numpy and for tensors on `device`."""
    rng = np.random.default_rng(numbers)
    return rng, torch.Generator(device).manual_seed(int(rng.integers(2**62)))


def _slice(accelerator: Accelerator, batch: dict) -> dict:
    """This process's share of a batch that all processes drew alike."""
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    return {k: v[mine] for k, v in batch.items()}


def get_autoencoder(preset: Preset, pictures: Pictures, watched: Pictures | None, accelerator: Accelerator, out: Path):
    """The pretrained autoencoder, the one already trained in `out`, or a new one trained now on pictures and masks."""
    settings = preset.autoencoder
    if preset.start_from is not None:
        return DefectDiffuPipeline.from_pretrained(preset.start_from).vae
    if settings.pretrained is not None:
        return load_autoencoder(settings.pretrained)
    if (out / "autoencoder" / "config.json").is_file():
        return load_autoencoder(str(out / "autoencoder"))
    if is_sharded(accelerator):
        raise InputError(
            "the autoencoder is too small to be trained with sharded weights (FSDP): train it first, in one process, "
            "or name one that is trained as autoencoder.pretrained"
        )
    vae = autoencoder.build_autoencoder(settings).to(accelerator.device, memory_format=torch.channels_last)
    device = accelerator.device
    pictures = pictures.to(device)  # small enough, and augmenting them there keeps a GPU busy
    size = (settings.latent_channels, preset.latent_size, preset.latent_size)

    def draw(step: int) -> tuple[Tensor, Tensor]:
        rng, generator = _stream(device, preset.training.seed, 1, step)
        index = pictures.draw(settings.batch_size, rng)
        images, masks = pictures.augmented(index, rng)
        # For every eight pictures a mask, of a defect image where the draw has one: masks are learned at once.
        order = masks.flatten(1).any(1).float().argsort(descending=True, stable=True)[: -(-settings.batch_size // 8)]
        x = torch.cat([autoencoder.recombine(images, masks, generator), to_picture(masks[order])])
        x = x[: len(x) - len(x) % accelerator.num_processes]  # equal shares, so that the mean of means is the mean
        return x, torch.randn(len(x), *size, generator=generator, device=device)

    def batch_at(step: int) -> dict:
        x, noise = draw(step)
        return _slice(accelerator, {"x": x.contiguous(memory_format=torch.channels_last), "noise": noise})

    def watch(step: int, log: dict) -> None:
        shown = watched or pictures
        index = np.linspace(0, len(shown) - 1, min(64, len(shown))).astype(int)
        log |= autoencoder.fidelity(vae, *(v.to(accelerator.device) for v in shown.tensors(index)))

    seen = torch.cat([draw(step)[0] for step in range(min(COMPONENT_BATCHES, settings.steps))])
    autoencoder.begin_as_principal_components(vae, seen)
    fit(
        accelerator,
        Reconstruction(vae, settings.latent_noise),
        batch_at,
        out / "autoencoder-checkpoints",
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        weight_decay=0.0,
        warmup_steps=100,
        ema_decay=0.999,
        max_grad_norm=1.0,
        checkpoint_every=preset.training.checkpoint_every,
        label="autoencoder",
        every=max(1, settings.steps // 10),
        watch=watch,
    )
    vae.to(memory_format=torch.contiguous_format)  # as it will be when read back: results are the same to the bit
    vae.register_to_config(scaling_factor=1 / _latent_deviation(vae, pictures))
    if accelerator.is_main_process:
        with writing(out / "autoencoder"):
            vae.save_pretrained(out / "autoencoder.part")
            (out / "autoencoder.part").rename(out / "autoencoder")
    accelerator.wait_for_everyone()
    return vae


@torch.no_grad()
def _latent_deviation(vae, pictures: Pictures) -> float:
    """Root mean square of the latents, by which they are scaled to unit variance for the diffusion."""
    index = np.linspace(0, len(pictures) - 1, min(256, len(pictures))).astype(int)
    images, _ = pictures.tensors(index)
    latents = [autoencoder.encode(vae, batch.to(vae.device)) for batch in images.split(32)]
    return float(torch.cat(latents).square().mean().sqrt())


def draw_batch(latents: Latents, preset: Preset, step: int, accelerator: Accelerator) -> dict:
    """What step `step` trains on: latents, noise, steps t, mask latents and regions, and Algorithm 1's conditions."""
    settings = preset.training
    device = latents.image.device
    rng, generator = _stream(device, settings.seed, 2, step)
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
    return _slice(accelerator, batch)


@torch.no_grad()
def validate(denoiser: Denoiser, latents: Latents, preset: Preset, accelerator: Accelerator) -> dict[str, float]:
    """Mean loss terms over every watched picture, its conditions kept, always with the same noise and steps."""
    device = latents.image.device
    _, generator = _stream(device, preset.training.seed, 3)
    total: dict[str, float] = {}
    n, size = len(latents.image), preset.training.batch_size
    noise = torch.randn(latents.image[:, 0].shape, generator=generator, device=device)
    t = torch.randint(TRAIN_STEPS, (n,), generator=generator, device=device)
    for start in range(0, n, size):
        rows = slice(start, start + size)
        batch = {
            "x": latents.image[rows, 0].float(),
            "noise": noise[rows],
            "t": t[rows],
            "mask": latents.mask[rows, 0].float(),
            "region": latents.region[rows, 0].float(),
        }
        batch = {k: v.to(accelerator.device) for k, v in batch.items()}
        batch |= {"products": latents.products[rows], "defects": latents.defects[rows]}
        for key, value in denoiser(batch).items():
            total[key] = total.get(key, 0.0) + float(value) * len(batch["x"]) / n
    return total


def save_grid(pipe: DefectDiffuPipeline, pairs: list[tuple[str, str]], path: Path, columns: int = 12) -> None:
    """One picture over its mask for up to `columns` pairs spread over all there are, seeds 0, 1, 2, ..."""
    shown = [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(columns, len(pairs))).astype(int)]
    products, defects = zip(*shown, strict=True)
    out = pipe(product=products, defect=defects)
    tiles = [np.concatenate([i, m.convert("RGB")]) for i, m in zip(out.images, out.masks, strict=True)]
    write_atomically(path, lambda p: Image.fromarray(np.concatenate(tiles, 1)).save(p, "png"))
