"""Image-mask pairs as files: what a model generates, in the layout of MVTec AD."""

import importlib.metadata
import json
import tempfile
from pathlib import Path

from defectdiffu.checkpoints import write_atomically
from defectdiffu.errors import InputError
from defectdiffu.pipeline import DefectDiffuPipeline
from defectdiffu.prompts import GOOD

ATTEMPTS = 8  # times as many seeds as pairs are tried, at most


def generate_folder(
    pipe: DefectDiffuPipeline,
    out: Path,
    product: str,
    defect: str,
    num: int,
    seed: int = 0,
    *,
    w_d: float | None = None,
    w_p: float | None = None,
    steps: int | None = None,
    guidance: str | None = None,
) -> dict:
    """Write `num` pairs as out/<product>/test/<defect>/NNN.png and .../ground_truth/<defect>/NNN_mask.png.

    Seeds seed, seed + 1, ... are used in turn. A defect image whose mask is empty is no pair: its seed is skipped and
    written down, so that nothing in `out` teaches a detector that a defect is no defect. What was done is appended to
    out/generation.json and returned. Raises `InputError`, with nothing written, if no seed gives a pair or the folder
    of this product and defect is there already.
    """
    if num < 1:
        raise InputError(f"num is {num}: it must be at least 1")
    home = out / product
    target, truth = home / "test" / defect, home / "ground_truth" / defect
    for there in (target, truth):
        if there.exists():
            raise InputError(f"{there} exists: choose another --out")
    record_file = out / "generation.json"
    records = json.loads(record_file.read_text()) if record_file.is_file() else []

    defaults = pipe.config
    settings = {
        "w_d": defaults.w_d if w_d is None else w_d,
        "w_p": defaults.w_p if w_p is None else w_p,
        "num_inference_steps": steps or defaults.num_inference_steps,
        "guidance": guidance or defaults.guidance,
    }
    pairs, skipped, next_seed = [], [], seed
    while len(pairs) < num and next_seed < seed + ATTEMPTS * num:
        seeds = list(range(next_seed, next_seed + num - len(pairs)))
        result = pipe(product, defect, num_images=len(seeds), seeds=seeds, **settings)
        for s, image, mask in zip(seeds, result.images, result.masks, strict=True):
            if defect != GOOD and mask.getbbox() is None:
                skipped.append(s)
            else:
                pairs.append((s, image, mask))
        next_seed = seeds[-1] + 1
    if not pairs:
        raise InputError(
            f"none of {len(skipped)} images of {product} with {defect} has a mask: train longer or raise w_d; "
            "nothing was written"
        )

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".part-") as part:
        images, masks = Path(part) / "images", Path(part) / "masks"
        images.mkdir()
        masks.mkdir()
        for i, (_, image, mask) in enumerate(pairs):
            image.save(images / f"{i:03d}.png")
            if defect != GOOD:
                mask.save(masks / f"{i:03d}_mask.png")
        if defect != GOOD:
            truth.parent.mkdir(parents=True, exist_ok=True)
            masks.rename(truth)
        target.parent.mkdir(parents=True, exist_ok=True)
        images.rename(target)
    record = {
        "product": product,
        "defect": defect,
        "seeds": [s for s, _, _ in pairs],
        "seeds_without_mask": skipped,
        "trained_pair": defect in pipe.pairs.get(product, ()),
        **settings,
        "weights": str(pipe.config.get("_name_or_path", "")),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")},
    }
    text = json.dumps([*records, record], indent=2)
    write_atomically(record_file, lambda path: path.write_text(text))
    return record
