"""A defect on a given picture (`inpainting`), compared with generating the whole picture and with copy-paste.

The given pictures are rendered without a defect; the place is where the renderer would put it, a little wider. So it is
known what should change and what should not, and a judge that sees only the result says what was drawn.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt
from tqdm.auto import tqdm

from defectdiffu.data.folder import Pair
from defectdiffu.drawn.procedural import Rendered, render
from defectdiffu.evaluation.judge import Judge
from defectdiffu.evaluation.oracle import RENDERED_SEEDS, RENDERED_STRENGTH, TOGETHER, at_size, judged, load_trained
from defectdiffu.evaluation.records import write_record
from defectdiffu.evaluation.statistics import bootstrap, paired_bootstrap
from defectdiffu.evaluation.synthesis import copy_paste
from defectdiffu.inpainting import around, band
from defectdiffu.pipeline import DefectDiffuPipeline

FIRST_SEED = 3 * 10**6
SPECIMENS = RENDERED_SEEDS + 10**6  # that no other experiment renders
SETTINGS: tuple[dict[str, Any], ...] = (
    *({"place": "given", "strength": strength} for strength in (0.4, 0.6, 0.8, 1.0)),
    {"place": "given", "strength": 0.8, "w_d": 2.5},
    *({"place": "chosen", "strength": strength} for strength in (0.6, 0.8, 1.0)),
)

Frames = tuple[np.ndarray, np.ndarray]  # images uint8 (N, S, S, 3), masks bool (N, S, S)


def run(
    weights: str | Path,
    file: Path,
    num: int = 1,
    steps: int | None = None,
    settings: Sequence[dict[str, Any]] = SETTINGS,
) -> dict:
    """Judge `num` pictures of every trained procedural pair, made in each way; write and return the record (`records`).

    Scores beside the judge's: `outside`, the share of pixels beyond the place and its band that differ from the given
    picture; `seam`, the change at the outer border of the band in grey levels. Both where the place is given.
    `differences` are from the pictures generated whole. steps: of denoising, by default the weights' own. Raises
    `InputError` if the weights know none of the pairs.
    """
    pipe, known = load_trained(weights)
    if steps is not None:
        pipe.register_to_config(num_inference_steps=steps)
    pairs = [pair for pair in known for _ in range(num)]
    scenes = [render(*pair, RENDERED_STRENGTH, SPECIMENS + i % num, pipe.size) for i, pair in enumerate(pairs)]
    places = around([scene.mask for scene in scenes])
    ways: list[tuple[str, dict[str, Any], Callable[[], Frames]]] = [
        ("generated whole", {}, partial(sampled, pipe, pairs, scenes, places, {})),
        ("rendered", {}, lambda: (np.stack([s.image for s in scenes]), np.stack([s.mask > 0 for s in scenes]))),
        ("copy-paste", {}, partial(pasted, pairs, scenes, num)),
    ]
    for chosen in settings:
        name = ", ".join(f"{key} {value}" for key, value in chosen.items())
        ways.append((name, chosen, partial(sampled, pipe, pairs, scenes, places, chosen)))

    judge, runs = Judge.shipped(pipe.size), []
    first: dict[str, np.ndarray] = {}
    for name, chosen, make in tqdm(ways, "comparing", leave=False, disable=None):
        frames = make()
        images, masks = at_size(frames, judge.size)
        values = judged(judge(images), masks, pairs)
        if chosen.get("place") == "given":
            values |= kept(scenes, places, frames[0])
        row = {"name": name, "changes": chosen, "seed": FIRST_SEED, "steps": 0}
        row["scores"] = {score: bootstrap(found) for score, found in values.items()}
        first = first or values
        if first is not values:
            row["differences"] = {score: paired_bootstrap(values[score], found) for score, found in first.items()}
        runs.append(row)
    return write_record(
        file,
        title="A defect on a given picture, against whole pictures and copy-paste",
        varied="how the picture is made",
        held_fixed={
            "weights": str(weights),
            "sampling": {key: pipe.config[key] for key in ("guidance", "w_p", "w_d", "num_inference_steps")},
            "pairs": len(known),
            "pictures_per_pair": num,
        },
        runs=runs,
    )


def sampled(
    pipe: DefectDiffuPipeline,
    pairs: Sequence[Pair],
    scenes: Sequence[Rendered],
    places: np.ndarray,
    chosen: dict[str, Any],
) -> Frames:
    """Pictures by the model: whole ones, or with a defect on the scenes without one."""
    asked = {key: value for key, value in chosen.items() if key != "place"}
    given: dict[str, Any] = {}
    if chosen:
        given["image"] = [Image.fromarray(scene.normal) for scene in scenes]
    if chosen.get("place") == "given":
        given["mask"] = [Image.fromarray(place) for place in places]
    out = pipe(
        product=[product for product, _ in pairs],
        defect=[defect for _, defect in pairs],
        seeds=range(FIRST_SEED, FIRST_SEED + len(pairs)),
        batch_size=TOGETHER,
        **asked,
        **given,
    )
    return np.stack([np.asarray(i) for i in out.images]), np.stack([np.asarray(m) > 0 for m in out.masks])


def pasted(pairs: Sequence[Pair], scenes: Sequence[Rendered], num: int) -> Frames:
    """The defect of another specimen, cut out and pasted on each scene: what can be done without a model."""
    rng, frames = np.random.default_rng(FIRST_SEED), []
    for i, (pair, scene) in enumerate(zip(pairs, scenes, strict=True)):
        source = render(*pair, RENDERED_STRENGTH, SPECIMENS + num + i % num, len(scene.mask))
        frames.append(copy_paste(scene.normal, source.image, source.mask, rng))
    images, masks = zip(*frames, strict=True)
    return np.stack(images), np.stack(masks) > 0


def kept(scenes: Sequence[Rendered], places: np.ndarray, images: np.ndarray) -> dict[str, np.ndarray]:
    """What became of the given pictures outside the place: `outside` and `seam` (`run`)."""
    change = np.abs(images.astype(float) - np.stack([scene.normal for scene in scenes])).mean(-1)
    distance = np.stack([distance_transform_edt(~place) for place in places])
    width = band(places.shape[1])
    beyond, border = distance > width + 1, (distance > width - 1) & (distance <= width)
    return {
        "outside": ((change > 0) & beyond).sum((1, 2)) / beyond.sum((1, 2)),
        "seam": (change * border).sum((1, 2)) / np.maximum(border.sum((1, 2)), 1),
    }
