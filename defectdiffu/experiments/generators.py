"""Methods side by side: folders of generated pictures of rendered products, judged alike, whatever drew them.

Every method has seen the same training pictures; `test` holds rendered pictures that none has seen. A score is given
with its interval over pictures, one of a whole set with its interval over pairs (product, defect).
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.spatial.distance import cdist

from defectdiffu import viz
from defectdiffu.data.folder import Pair, Sample, read_folder
from defectdiffu.errors import InputError, check_choice
from defectdiffu.evaluation.diversity import ic_all, ic_random
from defectdiffu.evaluation.downstream import DETECTORS, STEPS, difference, predict, train
from defectdiffu.evaluation.fidelity import frechet_distance
from defectdiffu.evaluation.folders import check_count, common_size, judge_features, load, read_alike, read_pairs
from defectdiffu.evaluation.judge import KINDS, NAMES, Judge
from defectdiffu.evaluation.memorisation import COPY, nearest_ratio
from defectdiffu.evaluation.oracle import judged
from defectdiffu.evaluation.records import write_record
from defectdiffu.evaluation.statistics import bootstrap
from defectdiffu.evaluation.synthesis import Pictures, read
from defectdiffu.files import read_json, write_atomically
from defectdiffu.pictures import overlay

Folder = dict[Pair, list[Sample]]  # as `read_pairs` gives it
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

    All folders are in MVTec AD's layout and hold the same pairs; about as many pictures of each, for Frechet distances
    depend on the number. A run is named after its folder, and has "pictures" and "frechet" of every pair. seeds, steps:
    of the U-Nets of `detector_gains`. costs: a JSON file {folder: {name: value}} of what each took, kept in its run as
    "costs". sheet: a WebP file for the first pictures of every pair, one row per folder after one of training pictures;
    the second picture of a pair has its mask drawn over it. Raises `InputError` for folders that differ, and for names
    that the judge does not know.
    """
    kept = read_json(costs, "name a JSON file of {folder: {name: value}}") if costs else {}
    runs: list[dict] = []
    rows: dict[str, list[Image.Image]] = {}
    masked: dict[str, list[Sample]] = {}
    asked: set[Pair] = set()
    for folder in map(Path, generated):
        ours = read_pairs(folder, masks=False)
        if asked and asked != set(ours):
            differing = ", ".join(sorted(" ".join(pair) for pair in asked ^ set(ours)))
            raise InputError(f"{folder} has other pairs than the folders before it: {differing}")
        asked = set(ours)
        for product, defect in ours:
            check_choice("product", product, NAMES)
            check_choice("defect", defect, KINDS)
        judge = Judge.shipped(common_size(ours))
        few, unseen = (read_alike(folder, f)[1] for f in (training, test))
        scores, frechet = scores_of(ours, few, unseen, judge)
        run: dict[str, Any] = {"name": folder.name, "changes": {}, "seed": list(seeds), "steps": steps}
        per_pair = {" ".join(p): {"pictures": len(samples), "frechet": frechet[p]} for p, samples in ours.items()}
        runs.append(run | {"scores": scores, "per_pair": per_pair, "costs": kept.get(folder.name, {})})
        if "mask_iou" in scores:
            masked[folder.name] = list(chain.from_iterable(ours.values()))
        if not rows:
            rows["training"] = _row(few)
        rows[folder.name] = _row(ours)
    products = {product for product, _ in ours}
    real = [sample for sample in read_folder(training) if sample.product in products]
    gains = detector_gains(masked, real, list(chain.from_iterable(unseen.values())), judge.size, seeds, steps)
    for found in runs:
        if found["name"] in gains:
            found["scores"]["detector_gain"] = gains[found["name"]]
    if sheet is not None:
        names = [text for pair in sorted(ours) for text in ("\n".join(pair).replace("_", " "), *[""] * (SHOWN - 1))]
        figure = viz.grid(list(rows.values()), list(rows), names, inches=0.55)
        write_atomically(sheet, lambda path: figure.savefig(path, format="webp", dpi=170))
    return write_record(
        file,
        title="Other generators on the same pictures",
        varied="the method, and its seed",
        held_fixed={
            "training": len(real),
            "features": f"judge at {judge.size} pixels",
            "unets": {"steps": steps, "seeds": list(seeds)},
        },
        runs=runs,
    )


def scores_of(ours: Folder, few: Folder, unseen: Folder, judge: Judge) -> tuple[dict[str, dict], dict[Pair, float]]:
    """All scores of one folder, {score: {mean, low, high, count}}, and the Frechet distance of every pair.

    few, unseen: training and test samples of the same pairs.

    Over pairs:
      frechet     Frechet distance of the judge's features to as many test pictures of the pair
      distance    mean distance of the judge's features between two pictures of the pair
      ic_distance_random_50, ic_distance_all   the same within clusters, as in `diversity`
    Over pictures:
      product_accuracy, defect_accuracy, mask_iou   as in `oracle.measure`; mask_iou only where there are masks
      nearest_ratio, copies                         as in `memorisation`, copies: the share of ratios under 0.5
    """
    per_pair: dict[str, list[float]] = {}
    per_picture: dict[str, list[np.ndarray]] = {}
    for pair, samples in ours.items():
        check_count(f"test pictures of {' '.join(pair)}", len(unseen[pair]), len(samples))
        images, masks = load(samples, judge.size)
        verdict = judge(images)
        known = judge_features(few[pair], judge)
        test = judge_features(unseen[pair][: len(samples)], judge)
        apart = cdist(verdict.features, verdict.features)
        nearest = cdist(verdict.features, known).argmin(1)
        of_pair = {
            "frechet": frechet_distance(verdict.features, test),
            "distance": apart[np.triu_indices(len(apart), 1)].mean(),
            "ic_distance_random_50": ic_random(apart, nearest),
            "ic_distance_all": ic_all(apart, nearest),
        }
        of_pictures = judged(verdict, masks > 0, [pair] * len(samples))
        of_pictures["nearest_ratio"], _ = nearest_ratio(verdict.features, known)
        of_pictures["copies"] = of_pictures["nearest_ratio"] < COPY
        for score, value in of_pair.items():
            if value is not None:  # no cluster has two pictures
                per_pair.setdefault(score, []).append(float(value))
        for score, values in of_pictures.items():
            per_picture.setdefault(score, []).append(values)
    if any(sample.mask is None for sample in chain.from_iterable(ours.values())):
        del per_picture["mask_iou"]
    scores = {score: bootstrap(values) for score, values in per_pair.items()} | {
        score: bootstrap(np.concatenate(values)) for score, values in per_picture.items()
    }
    return scores, dict(zip(ours, per_pair["frechet"], strict=True))


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


def _row(pairs: Folder) -> list[Image.Image]:
    """The first pictures of every pair, the last of each with its mask drawn over it."""
    shown = []
    for pair in sorted(pairs):
        for number, sample in enumerate(pairs[pair][:SHOWN]):
            image = Image.open(sample.image).convert("RGB")
            if number == SHOWN - 1 and sample.mask is not None:
                image = overlay(image, Image.open(sample.mask))
            shown.append(image)
    return shown
