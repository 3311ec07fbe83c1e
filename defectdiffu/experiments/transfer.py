"""Zero-shot transfer on photographs, for which there is no judge: a U-Net trained on the real pictures takes its place.

For a pair (product, defect) with real pictures: does the generated mask agree with the mask of a network trained on the
real defect? The U-Net is trained on half of the real pictures; its own score on the other half is the upper bound.
Weights that were trained on the pair and weights that were not are scored in the same way.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from defectdiffu.config import GOOD
from defectdiffu.data.folder import Pair, Sample, read_folder
from defectdiffu.data.splitting import split
from defectdiffu.evaluation import masks
from defectdiffu.evaluation.downstream import DETECTORS, STEPS, predict, train
from defectdiffu.evaluation.folders import judge_features
from defectdiffu.evaluation.judge import Judge
from defectdiffu.evaluation.memorisation import COPY, nearest_ratio
from defectdiffu.evaluation.oracle import at_size, sampler
from defectdiffu.evaluation.records import write_record
from defectdiffu.evaluation.statistics import bootstrap
from defectdiffu.evaluation.synthesis import read
from defectdiffu.files import write_atomically
from defectdiffu.machine import default_device
from defectdiffu.pictures import mosaic, overlay
from defectdiffu.pipeline import DefectDiffuPipeline


def run(
    weights: Sequence[str | Path],
    real: Sequence[str | Path],
    pairs: Sequence[Pair],
    num: int = 50,
    copies: int = 2,
    seed: int = 0,
    sheet: str | Path | None = None,
) -> dict:
    """Generate `num` pictures of each of `pairs` with each of `weights`, seeds 0 to num - 1, and score by the U-Nets.

    real: folders with the weights' training pictures and with pictures of `pairs`. copies: number of pictures per
    trained pair to compare with its training pictures. sheet: a file for the first eight pictures of every pair
    and weights, in this order, each row followed by the same pictures with the generated masks.

    Returns "unets": per pair the U-Net's own mean "iou" on the half that it was not trained on, and "real", the number
    of pictures with a defect in each half; and "weights": for each "training", the settings in its config,
    "nearest_ratio" over the trained pairs and "copies", the share below one half, and "pairs": for each whether it was
    "trained", "mask_iou" of the generated mask and the U-Net's, "marked", the share of pictures where the U-Net marks
    anything, and "empty", the number of empty masks.
    Raises `InputError` for names that the weights do not know and for too few real pictures.
    """
    pipes = {str(w): DefectDiffuPipeline.from_pretrained(w) for w in weights}
    for pipe in pipes.values():
        pipe.to(default_device())
        pipe.set_progress_bar_config(disable=True)
    samples = read_folder(*real)
    found = {
        name: {"training": _training(name), "pairs": {}} | _copied(p, samples, copies) for name, p in pipes.items()
    }
    unets, shown, size = {}, [], next(iter(pipes.values())).size
    for product, defect in pairs:
        pair = f"{product} {defect}"
        known, unseen = split([s for s in samples if s.product == product and s.defect in (defect, GOOD)], seed)
        training, test = (read(f"real {pair}", part, size) for part in (known, unseen))
        unet = train(DETECTORS["unet"], training, None, STEPS, seed, f"U-Net on {pair}")
        unets[pair] = {
            "iou": bootstrap(DETECTORS["unet"].per_picture(predict(unet, test.images), test.masks)),
            "real": {name: int(p.masks.any((1, 2)).sum()) for name, p in (("training", training), ("test", test))},
        }
        for name, pipe in pipes.items():
            images, generated = (frames[0] for frames in sampler(pipe)([(product, defect)], pipe.config.w_d, num))
            pictures = [Image.fromarray(image) for image in images[:8]]
            overlaid = [overlay(p, Image.fromarray(m)) for p, m in zip(pictures, generated, strict=False)]
            shown += [pictures, overlaid]
            marked = predict(unet, images)
            # A defect was asked for: if neither mask marks one, this does not count as agreement.
            iou = masks.iou_per_picture(marked, generated) * generated.any((1, 2))
            found[name]["pairs"][pair] = {
                "trained": defect in pipe.pairs.get(product, ()),
                "mask_iou": bootstrap(iou),
                "marked": bootstrap((marked > 0.5).any((1, 2))),
                "empty": int((~generated.any((1, 2))).sum()),
            }
    if sheet is not None:
        write_atomically(Path(sheet), lambda path: mosaic(shown).save(path, "webp", quality=85))
    return {"seeds": num, "unet_steps": STEPS, "seed": seed, "unets": unets, "weights": found}


def _training(weights: str) -> dict:
    """How the weights in a folder that `train` wrote were trained; empty for others."""
    file = Path(weights) / "config.json"
    return json.loads(file.read_text())["training"] if file.is_file() else {}


def _copied(pipe: DefectDiffuPipeline, samples: list[Sample], num: int) -> dict:
    """How near generated pictures of the trained pairs are to their training pictures (`memorisation`)."""
    judge, ratios = Judge.shipped(pipe.size), []
    for product, defects in pipe.pairs.items():
        for defect in defects:
            theirs = [s for s in samples if (s.product, s.defect) == (product, defect)]
            if len(theirs) > 1:
                drawn = tuple(frames[0] for frames in sampler(pipe)([(product, defect)], pipe.config.w_d, num))
                made, _ = at_size(drawn, judge.size)
                ratios += nearest_ratio(judge(made).features, judge_features(theirs, judge))[0].tolist()
    return {"nearest_ratio": bootstrap(ratios), "copies": bootstrap([r < COPY for r in ratios])}


def record(result: dict, path: Path) -> dict:
    """Write the result of `run` as a record for the book: a run per pair and weights."""
    runs = []
    for pair in result["unets"]:
        for found in result["weights"].values():
            scores = found["pairs"][pair]
            training = {key: found["training"].get(key) for key in ("steps", "variants", "hold_out")}
            row: dict[str, Any] = {"name": f"{pair}, {'trained' if scores['trained'] else 'held out'}"}
            row |= {"changes": {"training": training}, "seed": result["seed"], "steps": training["steps"]}
            row["scores"] = {key: scores[key] for key in ("mask_iou", "marked")}
            row["scores"] |= {key: found[key] for key in ("nearest_ratio", "copies")}
            runs.append(row | {"empty": scores["empty"]})
    return write_record(
        path,
        title="Defects on photographed products that never had them in training",
        varied="the pairs held out of training",
        held_fixed={"pictures_per_pair": result["seeds"], "unet_steps": result["unet_steps"]},
        runs=runs,
        unets=result["unets"],
    )
