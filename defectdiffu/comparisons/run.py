"""Trains the compared methods on folders, one model per product and defect, and generates with them.

A run's folder holds a model in <product>/<defect> for every pair; DFMGAN's also one in <product>/good, its backbone.
"""

import importlib.metadata
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image

from defectdiffu.comparisons import defectgen, dfmgan, stylegan2
from defectdiffu.comparisons.method import Model
from defectdiffu.config import GOOD, LARGEST_SEED, Preset
from defectdiffu.data.warnings import warn
from defectdiffu.errors import InputError, check_choice, check_number
from defectdiffu.files import locked, read_json, write_json
from defectdiffu.generation import ATTEMPTS, BATCH, MOST_PAIRS, add_record, begin, finish
from defectdiffu.machine import default_device
from defectdiffu.pipeline import quiet
from defectdiffu.training.latents import read_samples
from defectdiffu.training.run import claim, fingerprint
from defectdiffu.weight_files import check_finite

FITS = {"stylegan2": stylegan2.fit, "dfmgan": dfmgan.fit, "defectgen": defectgen.fit}
MODELS = {"StyleGAN2": stylegan2.StyleGAN2, "DFMGAN": dfmgan.DFMGAN, "DefectGen": defectgen.DefectGen}
FILE = "comparison.json"  # in a run's folder, with the name of the method


@dataclass(frozen=True)
class Recipe:
    """How a method is trained with a preset: steps of every model, pictures per step, sizes of the networks."""

    steps: int
    batch_size: int
    sizes: dict[str, Any]


# paper: the steps and batches of DefectDiffu's supplement, Sec. 1.2, which leaves the batch of Defect-Gen open. tiny:
# the same for the GANs, with small networks; 20 minutes to an hour per model on a CPU core.
SMALL_GAN = {"channels": 16, "max_channels": 128, "width": 128}
LARGE_GAN = {"channels": 32, "max_channels": 512, "width": 512}
SMALL_UNETS = {"channels": 16, "structure_levels": 4, "detail_levels": 1, "prediction": "velocity"}
LARGE_UNETS = {"channels": 64, "structure_levels": 6, "detail_levels": 2, "prediction": "velocity"}
RECIPES = {
    "stylegan2": {
        "tiny": Recipe(3000, 4, SMALL_GAN),
        "book": Recipe(10_000, 16, LARGE_GAN),
        "paper": Recipe(3000, 4, LARGE_GAN),
    },
    "dfmgan": {
        "tiny": Recipe(3000, 4, SMALL_GAN),
        "book": Recipe(10_000, 16, LARGE_GAN),
        "paper": Recipe(3000, 4, LARGE_GAN),
    },
    "defectgen": {
        "tiny": Recipe(3000, 4, SMALL_UNETS),
        "book": Recipe(20_000, 16, LARGE_UNETS),
        "paper": Recipe(200_000, 4, {"channels": 128, "structure_levels": 7, "detail_levels": 3}),
    },
}


def train(
    method: str,
    preset: Preset,
    data: Sequence[Path],
    out: Path,
    only: Sequence[tuple[str, str]] | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
) -> Path:
    """Train a model of `method` for every pair of product and defect in `data`, or for those of `only`.

    Of the preset count the side of the pictures, the seed, and which pictures it leaves out; steps and batch_size are
    those of the method's recipe unless given. The same call again resumes. Raises `InputError` for unusable data, and
    for an `out` that was begun with other settings.
    """
    check_choice("method", method, RECIPES)
    recipe = RECIPES[method][check_choice(f"preset of {method}", preset.name, RECIPES[method])]
    training = {"steps": steps or recipe.steps, "batch_size": batch_size or recipe.batch_size}
    preset = preset.replace(training=training)
    samples = read_samples(preset, list(data))
    there = sorted({(s.product, s.defect) for s in samples})
    pairs = [pair for pair in there if pair[1] != GOOD] if only is None else list(only)
    for product, defect in pairs:
        check_choice("product", product, sorted({p for p, _ in there}))
        check_choice(f"defect of {product}", defect, [d for p, d in there if p == product and d != GOOD])
        if method == "dfmgan" and (product, GOOD) not in there:
            raise InputError(f"dfmgan begins with defect-free pictures, and there are none of {product}")
    if not pairs:
        raise InputError("no picture of a defect: there is nothing to compare with")
    warn(samples, preset.image_size)
    claim(out, preset, fingerprint(samples))
    with locked(out, "trains"):
        if (out / FILE).is_file() and (begun := method_of(out)) != method:
            raise InputError(f"{out} was begun with --method {begun}: choose another --out")
        write_json(out / FILE, {"method": method})
        for product, defect in pairs:
            kinds = (defect, GOOD) if method == "dfmgan" else (defect,)
            FITS[method](
                [s for s in samples if s.product == product and s.defect in kinds],
                out / product / defect,
                preset.training.steps,
                size=preset.image_size,
                batch_size=preset.training.batch_size,
                seed=preset.training.seed,
                checkpoint_every=preset.training.checkpoint_every,
                **recipe.sizes,
            )
    return out


def is_comparison(weights: str) -> bool:
    """Whether `weights` is a run of a compared method."""
    return (Path(weights) / FILE).is_file()


def method_of(run: Path) -> str:
    values = read_json(run / FILE, "restore it, or choose another folder")
    return str(values.get("method")) if isinstance(values, dict) else str(values)


def load(run: Path, product: str, defect: str) -> Model:
    """The model of a product and a defect in a run. Raises `InputError` if there is none, or if it is damaged."""
    there = {(file.parent.parent.name, file.parent.name) for file in run.glob("*/*/config.json")}
    pairs = sorted(pair for pair in there if pair[1] != "discriminator")
    check_choice("product", product, sorted({p for p, _ in pairs}))
    folder = run / product / check_choice("defect", defect, [d for p, d in pairs if p == product])
    config = read_json(folder / "config.json", "train it again")
    try:
        with quiet():
            model: Any = MODELS[config["_class_name"]].from_pretrained(folder, use_safetensors=True)
    except Exception as error:  # whatever the libraries raise for files that they cannot use
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"the weights in {folder} cannot be loaded ({reason[:300]})") from error
    check_finite(model, str(folder))
    return model.to(default_device())


def generate(
    weights: Path,
    out: Path,
    product: str,
    defect: str,
    num: int,
    seed: int = 0,
    batch_size: int = BATCH,
    append: bool = False,
    attempts: int = ATTEMPTS,
) -> dict:
    """Write `num` pairs in the layout and with the records of `generation.generate_folder`; returns the record.

    As there, seeds seed, seed + 1, ... are used in turn, at most `attempts` times as many as pairs, and one whose mask
    is empty is skipped. A method without masks writes no ground_truth, and says so on stderr. A call that was killed
    begins again when repeated.
    """
    check_number("num", num, 1, MOST_PAIRS)
    check_number("the last seed that may be tried", seed + attempts * num - 1, 0, LARGEST_SEED)
    model = load(weights, product, defect)
    masked = not isinstance(model, stylegan2.StyleGAN2)
    if not masked:
        print(f"{weights}: StyleGAN2 gives no masks, so there will be no ground_truth", file=sys.stderr)
    settings = {"product": product, "defect": defect, "num": num, "seed": seed, "weights": str(weights)}
    work, is_new = out / f".part-{product}-{defect}", not out.exists()
    kept: list[int] = []
    empty: list[int] = []
    with locked(work, "generates these pairs"):
        begun = begin(work, settings, append, PartialState(cpu=not torch.cuda.is_available()))
        used = set(begun["used_seeds"])
        seeds = islice((s for s in count(seed) if s not in used), attempts * num)
        while batch := list(islice(seeds, min(batch_size, num - len(kept)))):
            images, masks = model.sample(len(batch), batch)
            for i, s in enumerate(batch):
                if masks is not None and not masks[i].any():
                    empty.append(s)
                    continue
                kept.append(s)
                Image.fromarray(images[i]).save(work / f"{s}.png")
                if masks is not None:
                    Image.fromarray(masks[i]).convert("L").save(work / f"{s}_mask.png")
        if not kept:
            shutil.rmtree(work)
            if is_new:
                out.rmdir()
            raise InputError(f"none of {len(empty)} images of {product} with {defect} has a mask; nothing was written")
        finish(work, out / product, defect, kept, begun["first"], append, masked)
        versions = {name: importlib.metadata.version(name) for name in ("torch", "diffusers")}
        record = settings | {"seeds": kept, "seeds_without_mask": empty, "method": type(model).__name__}
        add_record(out, record | {"versions": versions})
        shutil.rmtree(work)
    return record
