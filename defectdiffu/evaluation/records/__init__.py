"""Records of experiments that take longer than a page: small JSON files beside this one, which the book reads.

    {"title", "varied": what differs between the runs, "held_fixed": {name: value}, "hardware", "date",
     "runs": [{"name", "changes": {section: {setting: value}}, "seed", "steps",
               "scores": {score: {"mean", "low", "high", "count"}},
               "differences": the same, run minus first run of its seed, picture by picture}]}

`low` and `high` bound the 95 % interval. `differences` is absent from the run that the others are compared with.
"""

import json
import platform
from datetime import UTC, datetime
from pathlib import Path

import torch

from defectdiffu.checkpoints import write_atomically

FOLDER = Path(__file__).parent


def read_record(name: str) -> dict | None:
    """The record of that name, such as "ablations", or None: not run yet."""
    file = FOLDER / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else None


def write_record(path: Path, title: str, varied: str, held_fixed: dict, runs: list[dict], **more) -> dict:
    """Write a record with this machine's hardware and today's date; return it. more: what else belongs to it."""
    record = {
        "title": title,
        "varied": varied,
        "held_fixed": held_fixed,
        "hardware": hardware(),
        "date": datetime.now(UTC).date().isoformat(),
        "runs": runs,
        **more,
    }
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write_text(text))
    return record


def hardware() -> str:
    """The GPU, or the processor and the number of threads computed with."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() != 1)}"
