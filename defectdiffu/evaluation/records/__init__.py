"""Records of experiments too long to run in the book: small JSON files in this folder, which the book reads.

    {"title", "varied": what differs between the runs, "held_fixed": {name: value}, "hardware", "date",
     "runs": [{"name", "changes": {section: {setting: value}}, "seed", "steps",
               "scores": {score: {"mean", "low", "high", "count"}},
               "differences": the same, run minus first run of its seed, picture by picture}]}

`low` and `high` bound the 95 % interval. The run that the others are compared with has no `differences`.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from defectdiffu.files import write_json
from defectdiffu.machine import device_name

FOLDER = Path(__file__).parent


def read_record(name: str) -> dict | None:
    """The record of that name, such as "ablations", or None: not run yet."""
    file = FOLDER / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else None


def write_record(path: Path, title: str, varied: str, held_fixed: dict, runs: list[dict], **more: Any) -> dict:
    """Write a record with this machine's hardware and today's date; return it. more: further entries."""
    record = {
        "title": title,
        "varied": varied,
        "held_fixed": held_fixed,
        "hardware": device_name(),
        "date": datetime.now(UTC).date().isoformat(),
        "runs": runs,
        **more,
    }
    write_json(path, record, indent=1)
    return record
