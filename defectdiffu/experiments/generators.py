"""Methods side by side: folders of generated pictures of rendered products, judged alike, whatever drew them.

Every method has seen the same training pictures; `test` holds rendered pictures that none has seen. A score is given
with its interval over pictures, one of a whole set with its interval over pairs (product, defect).
"""

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from defectdiffu import viz
from defectdiffu.data.folder import Sample, read_folder
from defectdiffu.errors import InputError
from defectdiffu.evaluation import diversity, memorisation
from defectdiffu.evaluation.downstream import DETECTORS, STEPS, difference, predict, train
from defectdiffu.evaluation.fidelity import frechet_distance
from defectdiffu.evaluation.folders import check_count, common_size, load, read_alike
from defectdiffu.evaluation.judge import Judge
from defectdiffu.evaluation.oracle import judged
from defectdiffu.evaluation.records import write_record
from defectdiffu.evaluation.statistics import bootstrap
from defectdiffu.evaluation.synthesis import Pictures, read
from defectdiffu.files import write_atomically
from defectdiffu.pictures import overlay

SHOWN = 2  # pictures of every pair on the sheet


def run(
    generated: Sequence[str | Path],
    training: str | Path,
    test: str | Path,
    file: Path,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = STEPS,
    costs: Path | None = None,
    sheet: Path | None = None,
) -> dict:
    """Score each folder of `generated` against `training` and `test`; write and return the record (`records`).

    All folders are in MVTec AD's layout and hold the same pairs with as many pictures each. A run is named after its
    folder. seeds, steps: of the U-Nets of `detector_gains`. costs: a JSON file {folder: {name: value}} of what each
    took, kept in its run as "costs". sheet: a WebP file for the first pictures of every pair, one row per folder after
    one of training pictures; the second picture of a pair has its mask drawn over it. Raises `InputError` for folders
    that differ, and for names that the judge does not know.
    """
    kept = json.loads(costs.read_text()) if costs else {}
    runs: list[dict] = []
    rows: dict[str, list[Image.Image]] = {}
    masked: dict[str, list[Sample]] = {}
    counts = set()
    for folder in map(Path, generated):
        ours, theirs = read_alike(folder, test)
        counts.add(tuple(sorted((pair, len(samples)) for pair, samples in ours.items())))
        if len(counts) > 1:
            raise InputError(f"{folder} has other pairs, or other numbers of pictures, than the folders before it")
        judge = Judge.shipped(common_size(ours))
        scores = scores_of(folder, training, ours, theirs, judge)
        run: dict[str, Any] = {"name": folder.name, "changes": {}, "seed": None, "steps": None}
        runs.append(run | {"scores": scores, "costs": kept.get(folder.name, {})})
        if "mask_iou" in scores:
            masked[folder.name] = list(chain.from_iterable(ours.values()))
        if not rows:
            rows["training"] = _row(read_alike(folder, training)[1])
        rows[folder.name] = _row(ours)
    pairs = {pair for pair, _ in next(iter(counts))}
    few = [s for s in read_folder(training) if s.product in {product for product, _ in pairs}]
    unseen = [s for s in read_folder(test) if (s.product, s.defect) in pairs]
    gains = detector_gains(masked, few, unseen, judge.size, seeds, steps)
    for found in runs:
        if found["name"] in gains:
            found["scores"]["detector_gain"] = gains[found["name"]]
    if sheet is not None:
        names = [text for pair in sorted(ours) for text in (pair[0].replace("_", " "), pair[1])]
        figure = viz.grid(list(rows.values()), list(rows), names, inches=0.55)
        write_atomically(sheet, lambda path: figure.savefig(path, format="webp", dpi=170))
    return write_record(
        file,
        title="Other generators on the same pictures",
        varied="the method, and its seed",
        held_fixed={
            "pictures": {" ".join(pair): number for pair, number in next(iter(counts))},
            "features": f"judge at {judge.size} pixels",
            "unet": {"steps": steps, "seeds": list(seeds)},
        },
        runs=runs,
    )


def scores_of(folder: Path, training: str | Path, ours: dict, theirs: dict, judge: Judge) -> dict[str, dict]:
    """All scores of one folder, {score: {mean, low, high, count}}. ours: its samples by pair; theirs: those of the test
    pictures.

    Over pairs:
      frechet     Frechet distance of the judge's features to as many test pictures of the pair
      distance, ic_distance_random_50, ic_distance_all   diversity (`diversity.run`) by the judge's features
    Over pictures:
      product_accuracy, defect_accuracy, mask_iou        as in `oracle.measure`; mask_iou only where there are masks
      nearest_ratio, copies                              memorisation (`memorisation.run`)
    """
    frechet, per_picture = [], []
    masked = all(sample.mask is not None for sample in chain.from_iterable(ours.values()))
    for pair, samples in ours.items():
        check_count(f"test pictures of {' '.join(pair)}", len(theirs[pair]), len(samples))
        images, masks = load(samples, judge.size)
        rendered, _ = load(theirs[pair][: len(samples)], judge.size)
        verdict = judge(images)
        frechet.append(frechet_distance(verdict.features, judge(rendered).features))
        per_picture.append(judged(verdict, masks > 0, [pair] * len(samples)))
    scores = {name: bootstrap(np.concatenate([row[name] for row in per_picture])) for name in per_picture[0]}
    if not masked:
        del scores["mask_iou"]
    spread = diversity.run(folder, training, diversity.judge_distance(judge))
    copies = memorisation.run(folder, training, judge)
    return {
        "frechet": bootstrap(frechet),
        **{name: spread[name] for name in ("distance", "ic_distance_random_50", "ic_distance_all")},
        **scores,
        "nearest_ratio": copies["ratio"],
        "copies": copies["below_half"],
    }


def detector_gains(
    generated: dict[str, list[Sample]],
    training: list[Sample],
    test: list[Sample],
    size: int,
    seeds: Sequence[int],
    steps: int,
) -> dict[str, dict]:
    """By name the gain in IoU of a U-Net that sees generated samples beside the training pictures: {mean, low, high,
    count}, the interval over `test`, whose pictures all have a defect, and "seeds", the mean of each."""
    unet = DETECTORS["unet"]
    real, unseen = read("training", training, size), read("test", test, size)

    def per_picture(name: str, extra: Pictures | None) -> list[list[float]]:
        """The IoU of every test picture, for each seed."""
        networks = (train(unet, real, extra, steps, seed, f"U-Net on {name}, seed {seed}") for seed in seeds)
        return [unet.per_picture(predict(n, unseen.images), unseen.masks).tolist() for n in networks]

    alone = per_picture("training pictures", None) if generated else []
    return {name: difference(per_picture(name, read(name, s, size)), alone) for name, s in generated.items()}


def _row(pairs: dict) -> list[Image.Image]:
    """The first pictures of every pair, the last of each with its mask drawn over it."""
    shown = []
    for pair in sorted(pairs):
        for number, sample in enumerate(pairs[pair][:SHOWN]):
            image = Image.open(sample.image).convert("RGB")
            marked = number == SHOWN - 1 and sample.mask is not None
            shown.append(overlay(image, Image.open(sample.mask)) if marked else image)
    return shown
