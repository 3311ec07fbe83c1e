"""Runs a measure by name with `evaluate` and writes one JSON; each measure has its own file.

    evaluate("oracle", json_path="oracle.json", weights="tiny", num=8)
    evaluate("fidelity", json_path="fidelity.json", generated="out", real="data")

The libraries of a measure are imported when it is run: `pip install "defectdiffu[evaluation]"`.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from defectdiffu.errors import InputError, check_choice
from defectdiffu.files import write_json
from defectdiffu.machine import device_name

LIBRARIES = (
    "defectdiffu",
    "torch",
    "diffusers",
    "torch-fidelity",
    "lpips",
    "torchmetrics",
    "segmentation-models-pytorch",
    "timm",
)


def run_of(module: str) -> Callable[..., dict]:
    """`run` of a module of the package; the module is imported when `run` is called.

    Raises `InputError` then if a library it needs is not installed.
    """

    def run(**arguments: Any) -> dict:
        try:
            found = import_module(f"defectdiffu.{module}")
        except ModuleNotFoundError as error:
            name = module.rpartition(".")[-1]
            raise InputError(f'{name} needs {error.name}: pip install "defectdiffu[evaluation]"') from error
        return found.run(**arguments)

    return run


# Each takes the arguments of `run` in the file of its name.
NAMES = ("oracle", "fidelity", "diversity", "memorisation", "masks", "downstream")
MEASURES = {name: run_of(f"evaluation.{name}") for name in NAMES}


def evaluate(measure: str, json_path: str | Path | None = None, **arguments: Any) -> dict:
    """Run one of `MEASURES` with its arguments; return its result with versions and seconds, and write it as JSON.

    Raises `InputError` for an unknown measure, a `json_path` that is a folder, and for the measure's own input errors.
    """
    return measured(measure, MEASURES[check_choice("measure", measure, MEASURES)], json_path, **arguments)


def measured(measure: str, run: Callable[..., dict], json_path: str | Path | None = None, **arguments: Any) -> dict:
    """`evaluate` for a measure that is not in `MEASURES`: the result of `run(**arguments)`, named `measure`."""
    path = Path(json_path) if json_path else None
    if path and path.is_dir():
        raise InputError(f"{path} is a folder: name a file for the result")
    started = time.time()
    result = {
        "measure": measure,
        **run(**arguments),
        "seconds": round(time.time() - started, 1),
        "device": device_name(),
        "versions": {name: _version(name) for name in LIBRARIES},
    }
    if path:
        write_json(path, result)
    return result


def evaluate_all(
    json_path: str | Path, generated: str | Path, real: str | Path, weights: str | Path, num: int = 2
) -> dict:
    """Fidelity, diversity and memorisation of `generated` against `real`, and the oracle on `weights`, in one JSON.

    num: pictures per pair for the oracle, which samples its own. A measure that cannot be computed is listed under
    `left_out` with the reason. The file is written after every measure, so the same command resumes where it stopped.
    Raises `InputError` if the file holds results of other inputs, and if no measure can be computed.
    """
    folders: dict[str, Any] = {"generated": str(generated), "real": str(real)}
    asked = folders | {"weights": str(weights), "num": num}
    work = dict.fromkeys(("fidelity", "diversity", "memorisation"), folders)
    work["oracle"] = {"weights": str(weights), "num": num}
    path = Path(json_path)
    result: dict[str, Any] = {"measure": "all", "asked": asked, "results": {}, "left_out": {}}
    if path.is_file():
        try:
            there = json.loads(path.read_text())
        except ValueError:
            there = {}
        if there.get("asked") != asked:
            raise InputError(f"{path} does not hold results of these inputs: choose another --json")
        result["results"] = there["results"]
    for number, (measure, arguments) in enumerate(work.items(), 1):
        if measure in result["results"]:
            continue
        print(f"{number} of {len(work)}: {measure}", file=sys.stderr)
        try:
            result["results"][measure] = evaluate(measure, **arguments)
        except InputError as error:
            result["left_out"][measure] = str(error)
            continue
        write_json(path, result)
    if not result["results"]:
        raise InputError("no measure can be computed: " + "; ".join(f"{m}: {e}" for m, e in result["left_out"].items()))
    write_json(path, result)
    return result


def table(result: dict) -> list[tuple[str, str, str]]:
    """(measure, score, value with its interval) for every score of an `evaluate` or `evaluate_all` result."""
    if "results" in result:
        return [row for r in result["results"].values() for row in table(r)]
    rows = []

    def walk(name: str, value: object) -> None:
        if isinstance(value, dict) and {"mean", "low", "high"} <= value.keys():
            rows.append((result["measure"], name, f"{value['mean']:.3f}  ({value['low']:.3f} to {value['high']:.3f})"))
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{name} {key}".strip(), inner)
        elif isinstance(value, float) and " " not in name:
            rows.append((result["measure"], name, f"{value:.3f}"))

    about = ("per_pair", "pairs", "judge", "settings", "seconds", "rendered", "versions", "nearest")
    walk("", {key: value for key, value in result.items() if key not in about})
    return rows


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
