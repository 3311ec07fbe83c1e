"""Every measure in one file of its own; `evaluate` runs one by name and writes one JSON.

    evaluate("oracle", json_path="oracle.json", weights="tiny", num=8)
    evaluate("fidelity", json_path="fidelity.json", generated="out", real="data")

The libraries behind a measure are imported when it is asked for: `pip install "defectdiffu[evaluation]"`.
"""

import json
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from defectdiffu.checkpoints import write_atomically
from defectdiffu.errors import InputError, check_choice

LIBRARIES = (
    "defectdiffu",
    "torch",
    "diffusers",
    "torch-fidelity",
    "lpips",
    "torchmetrics",
    "segmentation-models-pytorch",
)


def _measure(name: str) -> Callable[..., dict]:
    def run(**arguments) -> dict:
        try:
            module = import_module(f"defectdiffu.evaluation.{name}")
        except ModuleNotFoundError as error:
            raise InputError(f'{name} needs {error.name}: pip install "defectdiffu[evaluation]"') from error
        return module.run(**arguments)

    return run


# Each takes what `run` in the file of its name takes.
MEASURES = {name: _measure(name) for name in ("oracle", "fidelity", "diversity", "memorisation", "masks", "downstream")}


def evaluate(measure: str, json_path: str | Path | None = None, **arguments) -> dict:
    """Run one of `MEASURES` with its arguments; return its result with versions and seconds, and write it as JSON.

    Raises `InputError` for an unknown measure, a `json_path` that is a folder, and whatever the measure has to object.
    """
    run = MEASURES[check_choice("measure", measure, MEASURES)]
    path = Path(json_path) if json_path else None
    if path and path.is_dir():
        raise InputError(f"{path} is a folder: name a file for the result")
    started = time.time()
    result = {
        "measure": measure,
        **run(**arguments),
        "seconds": round(time.time() - started, 1),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": {name: _version(name) for name in LIBRARIES},
    }
    if path:
        text = json.dumps(result, indent=2, allow_nan=False) + "\n"
        write_atomically(path, lambda file: file.write_text(text))
    return result


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
