"""What the self-check (`selfcheck`) is worth: the judge's scores of the pairs that pass it, against those of all pairs.

The check sees no judge; the judge only says whether it was right. The seeds are those of no other experiment.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from defectdiffu.evaluation.judge import Judge
from defectdiffu.evaluation.oracle import TOGETHER, at_size, judged, load_trained, sampler
from defectdiffu.evaluation.records import write_record
from defectdiffu.evaluation.statistics import RESAMPLES, bootstrap
from defectdiffu.selfcheck import change_ratio

FIRST_SEED = 2 * 10**6
THRESHOLDS = (1.5, 2.0, 3.0, 4.0)


def run(weights: str | Path, file: Path, num: int = 4, thresholds: Sequence[float] = THRESHOLDS) -> dict:
    """Check and judge `num` pictures of every trained procedural pair; write and return the record (`records`).

    Of every threshold: `scores` has the share of pairs that pass (`accepted`) and the judge's scores of those,
    `differences` these scores minus those of all pairs. Raises `InputError` if the weights know none of the pairs.
    """
    pipe, pairs = load_trained(weights)
    judge, source, w_d = Judge.shipped(pipe.size), sampler(pipe, FIRST_SEED), float(pipe.config["w_d"])
    ratios: list[float] = []
    scores: dict[str, list[np.ndarray]] = {}
    together = max(1, TOGETHER // num)
    for start in tqdm(range(0, len(pairs), together), "checking", leave=False, disable=None):
        asked = pairs[start : start + together]
        images, masks = (np.concatenate(frames) for frames in source(asked, w_d, num))
        twins, twin_masks = (np.concatenate(frames) for frames in source(asked, 0.0, num))
        ratios += change_ratio(images, twins, masks, twin_masks).tolist()
        images, masks = at_size((images, masks), judge.size)
        found = judged(judge(images), masks, [pair for pair in asked for _ in range(num)])
        for name, of_batch in found.items():
            scores.setdefault(name, []).append(of_batch)

    values = {name: np.concatenate(batches) for name, batches in scores.items()}
    row: dict[str, Any] = {"name": "all", "changes": {}, "seed": FIRST_SEED, "steps": 0}
    runs = [row | {"scores": {name: bootstrap(v) for name, v in values.items()}}]
    for threshold in thresholds:
        kept = np.array(ratios) >= threshold
        row = row | {"name": f"check {threshold:g}", "changes": {"check": threshold}}
        row["scores"] = {"accepted": bootstrap(kept.astype(float))}
        if kept.any():
            row["scores"] |= {name: bootstrap(v[kept]) for name, v in values.items()}
            row["differences"] = {name: kept_minus_all(v, kept) for name, v in values.items()}
        runs.append(row)
    return write_record(
        file,
        title="The self-check: the pairs that pass, against all",
        varied="how many times more a picture must change from its twin inside the mask than outside",
        held_fixed={"weights": str(weights), "w_d": w_d, "pairs": len(pairs), "pictures_per_pair": num},
        runs=runs,
    )


def kept_minus_all(values: np.ndarray, kept: np.ndarray, seed: int = 0) -> dict[str, float]:
    """The mean of values[kept] minus that of all, with its 95 % interval over pictures: {mean, low, high, count}.

    Resamples without a kept value say nothing and are left out.
    """
    rng = np.random.default_rng(seed)
    draws = [rng.integers(len(values), size=len(values)) for _ in range(RESAMPLES)]
    differences = [values[d][kept[d]].mean() - values[d].mean() for d in draws if kept[d].any()]
    low, high = np.quantile(differences, (0.025, 0.975))
    mean = values[kept].mean() - values.mean()
    return {"mean": float(mean), "low": float(low), "high": float(high), "count": int(kept.sum())}
