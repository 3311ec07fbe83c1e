"""Ablations: the same training from scratch with one setting changed, and the effect on the scores (Sec. 4.5).

Every variant gets the same pictures, latents, number of steps and seeds as the full model; only the settings in its row
of `variants` differ. Each is compared, picture by picture, with the full model of the same seed.
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DDPMScheduler

from defectdiffu.config import Preset
from defectdiffu.data.folder import read_folder
from defectdiffu.errors import InputError, check_choice
from defectdiffu.evaluation.judge import Judge
from defectdiffu.evaluation.oracle import known_pairs, measure, pooled, sampler
from defectdiffu.evaluation.records import write_record
from defectdiffu.evaluation.statistics import bootstrap, paired_bootstrap
from defectdiffu.files import write_json
from defectdiffu.losses import noise_of_velocity
from defectdiffu.machine import default_device
from defectdiffu.pipeline import DefectDiffuPipeline, quiet
from defectdiffu.training.building import TRAIN_STEPS, load_autoencoder
from defectdiffu.training.latents import Latents, Pictures, cached_latents
from defectdiffu.training.run import claim, train

FULL = "full"
DRAWS = 4  # noises and steps per held-out picture
JUDGED = ("product_accuracy", "defect_accuracy", "defect_seen", "mask_iou", "judged_good", "judge_distance")
JUDGED_ZERO_SHOT = ("product_accuracy", "defect_accuracy", "mask_iou")


def variants(preset: Preset) -> dict[str, dict]:
    """{name: what it changes in `preset`}. A variant that changes only `sampling` needs no separate training."""
    model = preset.model
    other = "positions" if model.attention_over == "tokens" else "tokens"
    as_deep = {
        "background_blocks": model.background_blocks + model.fusion_blocks // 2,
        "defect_blocks": model.defect_blocks + model.fusion_blocks - model.fusion_blocks // 2,
        "fusion_blocks": 0,
    }
    return {
        FULL: {},
        # How much the scores vary by chance: a variant with a smaller difference shows no effect.
        "another random start": {"training": {"seed": preset.training.seed + 1000}},
        # The paper's four (Table 1). Without the fusion blocks the model is also smaller; the second row is not.
        "without fusion part": {"model": {"fusion_blocks": 0}},
        "without fusion part but as deep": {"model": as_deep},
        "without AAL (R = 3)": {"loss": {"fixed_ratio": 3.0}},
        "one text prompt": {"model": {"one_prompt": True}},
        "single strength (w_d = 1)": {"sampling": {"w_d": 1.0}},
        # What the paper leaves open.
        f"attention over {other}": {"model": {"attention_over": other}},
        "gradient through R": {"loss": {"ratio_gradient": True}},
        "mask weight 0.2": {"loss": {"mask_weight": 0.2}},
        "without mask loss": {"loss": {"mask_weight": 0.0}},
        "p2 = 0.2": {"training": {"p2": 0.2}},  # more defects are called good
        "p2 = 0": {"training": {"p2": 0.0}},  # none is
        # What a model needs that is trained from scratch.
        "noise predicted": {"model": {"prediction": "noise"}},
        "without convolution": {"model": {"convolution": False}},
        "mask loss weighted alike": {"loss": {"mask_by_signal": False}},
        "product_aware guidance": {"sampling": {"guidance": "product_aware"}},
    }


def run(
    preset: Preset,
    data: list[Path],
    val: Path,
    steps: int,
    seeds: Sequence[int],
    out: Path,
    file: Path,
    names: Sequence[str] | None = None,
    num: int = 2,
) -> dict:
    """Train and score the full model and its `variants` with each of `seeds`; write and return the record.

    data: folders to train on; val: a folder with other pictures of the same pairs. names: the variants, by default
    all. num: pictures per procedural pair for the judge.
    The autoencoder is the preset's pretrained one, or that of the weights it starts from; `out` keeps a copy. Finished
    results in `out` are kept, and `file` is written again after every variant, so the same command resumes.
    Raises `InputError` for unknown variants, a preset without an autoencoder, and bad data.
    """
    if not seeds:
        raise InputError("no seeds: at least 1 is needed")
    autoencoder = preset.autoencoder.pretrained or preset.start_from
    if autoencoder is None:
        raise InputError(f"the variants share one autoencoder: set autoencoder.pretrained in '{preset.name}'")
    own = {"pretrained": str(out / "autoencoder")}
    preset = preset.replace(start_from=None, autoencoder=own, training={"steps": steps})
    table = variants(preset)
    names = list(table) if names is None else [check_choice("variant", name, table) for name in names]
    names = [FULL, *(name for name in names if name != FULL)]
    watched = Pictures.load(read_folder(val), preset.image_size)
    fixed = {
        "preset": preset.name,
        "attention_over": preset.model.attention_over,
        "recipe": {"model": vars(preset.model), "loss": vars(preset.loss), "training": vars(preset.training)},
        "autoencoder": autoencoder,
        "steps": steps,
        "batch_size": preset.training.batch_size,
        "training_pictures": len(read_folder(*data)),
        "held_out_pictures": len(watched),
        "draws_per_held_out_picture": DRAWS,
        "judged_pictures_per_pair": num,
        "sampling": vars(preset.sampling),
    }
    if not list((out / "autoencoder").glob("*.safetensors")):
        with quiet():
            load_autoencoder(autoencoder).save_pretrained(out / "autoencoder")
    values: dict[tuple[str, int], dict[str, list[float]]] = {}
    for seed in seeds:
        for name in names:
            print(f"seed {seed}, {names.index(name) + 1} of {len(names)}: {name}", file=sys.stderr)
            changes = dict(table[name])
            sampling = vars(preset.sampling) | changes.pop("sampling", {})
            asked = preset.replace(training={"seed": seed}).replace(**changes)
            scores = out / "scores" / f"{_slug(name)}-{seed}.json"
            kept = json.loads(scores.read_text()) if scores.is_file() else {}
            if kept.get("held_fixed") != fixed:
                folder = out / f"{_slug(name if changes else FULL)}-{seed}"
                latents = train_variant(asked, data, val, watched, folder)
                pipe = DefectDiffuPipeline.from_pretrained(folder)
                pipe.to(default_device())
                pipe.set_progress_bar_config(disable=True)
                pipe.register_to_config(**sampling)
                kept = {"held_fixed": fixed, "values": held_out_losses(pipe, latents) | judged(pipe, num)}
                write_json(scores, kept, indent=None)
            values[name, seed] = kept["values"]
            record = write_record(
                file,
                title="Ablations: one thing changed, everything else as in the full model",
                varied="the settings under `changes`",
                held_fixed=fixed,
                runs=[summary(n, table[n], s, steps, values) for n, s in values],
            )
    return record


def train_variant(preset: Preset, data: list[Path], val: Path, watched: Pictures, folder: Path) -> Latents:
    """Train `preset` into `folder`, unless that is done; return the latents of the validation pictures.

    The cache of latents is shared with the other runs next to `folder`.
    """
    claim(folder, preset)
    assert preset.autoencoder.pretrained is not None  # the variants share one
    cache = folder.parent / "cache"
    cache.mkdir(exist_ok=True)
    if not (folder / "cache").exists():
        (folder / "cache").symlink_to(Path("..") / "cache", target_is_directory=True)
    with quiet():
        if not (folder / "model_index.json").is_file():
            train(preset, data, folder, val)
        # Read back, not encoded again: the same key as in training.
        return cached_latents(load_autoencoder(preset.autoencoder.pretrained), watched, 1, preset.training.seed, cache)


@torch.no_grad()
def held_out_losses(pipe: DefectDiffuPipeline, latents: Latents) -> dict[str, list[float]]:
    """Squared errors of every held-out picture, averaged over `DRAWS` noises and steps, the same for all models.

    noise: of the predicted noise (Eq. 2), or of the noise that a predicted velocity implies; defect_noise: the same
    inside the mask, pictures with a defect only; mask: of the mask's latent (Eq. 6).
    """
    x, mask = latents.image[:, 0].float(), latents.mask[:, 0].float()  # (N, C, H, W)
    region = latents.region[:, 0].float()  # (N, H, W)
    generator = torch.Generator().manual_seed(0)
    scheduler = DDPMScheduler(TRAIN_STEPS)
    flawed = region.flatten(1).any(1)
    errors = torch.zeros(3, len(x))
    for draw in range(DRAWS):
        noise = torch.randn(x.shape, generator=generator)
        # One step from each quarter of the 1000, so that every picture is tried at little and at much noise.
        t = (torch.rand(len(x), generator=generator) + draw) * TRAIN_STEPS / DRAWS
        for rows in torch.arange(len(x)).split(64):
            conditions = pipe.encoder.conditions(
                [latents.products[i] for i in rows], [latents.defects[i] for i in rows]
            )
            steps = t[rows].long()
            noisy = scheduler.add_noise(x[rows], noise[rows], steps)
            out = pipe.transformer(noisy.to(pipe.device), steps.to(pipe.device), **vars(conditions))
            predicted = out.sample[:, : x.shape[1]].cpu()
            if pipe.transformer.config.prediction == "velocity":
                predicted = noise_of_velocity(predicted, noisy, scheduler.alphas_cumprod[steps])
            error = (predicted - noise[rows]).square().mean(1)  # (B, H, W)
            inside = (error * region[rows]).sum((1, 2)) / region[rows].sum((1, 2)).clamp(min=1)
            masks = (out.mask.cpu() - mask[rows]).square().mean((1, 2, 3))
            errors[:, rows] += torch.stack([error.mean((1, 2)), inside, masks]) / DRAWS
    return {"noise": errors[0].tolist(), "defect_noise": errors[1, flawed].tolist(), "mask": errors[2].tolist()}


def judged(pipe: DefectDiffuPipeline, num: int) -> dict[str, list[float]]:
    """The judge's scores (`oracle.measure`) of `num` pictures of every procedural pair that `pipe` knows."""
    values: dict[str, list[float]] = {}
    judge = Judge.shipped(pipe.size)
    for prefix, pairs, keys in zip(("", "zero_shot_"), known_pairs(pipe), (JUDGED, JUDGED_ZERO_SHOT), strict=True):
        scores = pooled(measure(sampler(pipe), pairs, num, (), float(pipe.config.w_d), judge))
        values |= {prefix + k: scores[k].tolist() for k in keys if k in scores}
    return values


def summary(name: str, changes: dict, seed: int, steps: int, values: dict) -> dict:
    """One run of the record; values: {(name, seed): {score: one value per picture or pair}}, with the full model's."""
    ours, full = values[name, seed], values[FULL, seed]
    row = {"name": name, "changes": changes, "seed": seed, "steps": steps}
    row["scores"] = {score: bootstrap(v) for score, v in ours.items()}
    if name != FULL:
        row["differences"] = {score: paired_bootstrap(v, full[score]) for score, v in ours.items()}
    return row


def _slug(name: str) -> str:
    return "-".join(re.findall(r"[\w.]+", name))
