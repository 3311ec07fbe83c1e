"""How to sample: guidance, scales, steps and scheduler, each changed alone, compared on the same seeds by the judge.

The seeds differ from those that the weights are scored on (`oracle.py`), so a default chosen here is not chosen on
the test seeds.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import ConfigMixin, DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

from defectdiffu.evaluation.judge import Judge
from defectdiffu.evaluation.oracle import load_trained, measure, pooled, sampler
from defectdiffu.evaluation.records import write_record
from defectdiffu.evaluation.statistics import bootstrap, paired_bootstrap

FIRST_SEED = 10**6
SCORES = ("product_accuracy", "defect_accuracy", "mask_iou", "judged_good")
SCHEDULERS: dict[str, tuple[type[ConfigMixin], dict[str, str]]] = {
    "DDPM": (DDPMScheduler, {}),
    "DDIM": (DDIMScheduler, {}),
    "DPM-Solver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "SDE-DPM-Solver++": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "UniPC": (UniPCMultistepScheduler, {}),
}
CHANGES: tuple[dict[str, Any], ...] = (
    {"guidance": "defect_only"},
    {"guidance": "product_aware"},
    {"w_p": 1.0},
    {"w_p": 3.0},
    {"w_d": 1.0},
    {"w_d": 2.0},
    {"num_inference_steps": 10},
    {"num_inference_steps": 50},
    *({"scheduler": name} for name in SCHEDULERS),
)


def run(weights: str | Path, file: Path, num: int = 2) -> dict:
    """Judge `num` pictures of every trained pair with the defaults of `weights`, then with each of `CHANGES`.

    Writes and returns the record (`records`): scores and, picture by picture, their differences from the defaults.
    Raises `InputError` if the weights know none of the procedural pairs.
    """
    pipe, pairs = load_trained(weights)
    judge, own = Judge.shipped(pipe.size), pipe.scheduler
    defaults = {key: pipe.config[key] for key in ("guidance", "w_p", "w_d", "num_inference_steps")}
    defaults["scheduler"] = scheduler_name(own)

    baseline: dict[str, np.ndarray] = {}
    runs: list[dict] = []
    for changes in ({}, *(c for c in CHANGES if c.items() - defaults.items())):
        settings = defaults | changes
        name = ", ".join(f"{key} {value}" for key, value in changes.items()) or "defaults"
        print(f"{len(runs) + 1}: {name}", file=sys.stderr)
        scheduler = settings.pop("scheduler")
        kind, extra = SCHEDULERS.get(scheduler, (type(own), {}))
        pipe.scheduler = own
        if "scheduler" in changes:  # diffusers also declares a tuple, for other arguments
            pipe.scheduler = kind.from_config(own.config, **extra)  # type: ignore[assignment]
        pipe.register_to_config(**settings)
        measured = pooled(measure(sampler(pipe, FIRST_SEED), pairs, num, (), settings["w_d"], judge))
        values = {score: measured[score] for score in SCORES}
        row = {"name": name, "changes": {"sampling": changes}, "seed": FIRST_SEED, "steps": 0}
        row["scores"] = {score: bootstrap(v) for score, v in values.items()}
        if changes:
            row["differences"] = {score: paired_bootstrap(v, baseline[score]) for score, v in values.items()}
        else:
            baseline = values
        runs.append(row)
    return write_record(
        file,
        title="How to sample: one setting changed, the same seeds",
        varied="the settings under `changes`",
        held_fixed={"weights": str(weights), "sampling": defaults, "pairs": len(pairs), "pictures_per_pair": num},
        runs=runs,
    )


def scheduler_name(scheduler: ConfigMixin) -> str:
    """Its name in `SCHEDULERS`, else that of its class."""
    for name, (kind, extra) in SCHEDULERS.items():
        if type(scheduler) is kind and extra.items() <= dict(scheduler.config).items():
            return name
    return type(scheduler).__name__
