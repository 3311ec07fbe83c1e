"""Checkpoints that are either whole or not there: one safetensors file each, written aside and renamed."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from defectdiffu.errors import InputError
from defectdiffu.sharding import shard_like, whole

KEEP = 2  # newest checkpoints kept


def write_atomically(path: Path, write) -> None:
    """Call `write(temporary path)` and rename the result to `path`; on failure nothing of it is left.

    Raises `InputError` when the disk is full or cannot be written; what was at `path` before is then still there.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left_by_a_killed_run in path.parent.glob(f".{path.name}.*.part"):
            left_by_a_killed_run.unlink()
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            write(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What cannot be written in this block, for a full disk say, becomes an `InputError` that names `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(f"could not write {path}: {error}; free some space and run the same command again") from error


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict) -> None:
    """Write tensors with JSON metadata to one safetensors file, atomically."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_atomically(path, lambda p: save_file(tensors, p, {"metadata": json.dumps(metadata)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """The inverse of `save_tensors`. Raises `SafetensorError` for a file that is damaged."""
    with safe_open(path, "pt") as file:
        metadata = json.loads((file.metadata() or {}).get("metadata", "{}"))
        return {k: file.get_tensor(k) for k in file.keys()}, metadata  # noqa: SIM118 (not a dict)


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], metadata: dict) -> None:
    """Write `folder/<step>.safetensors`; remove all but the newest few, and the parts that a killed run left."""
    save_tensors(folder / f"{step:08d}.safetensors", tensors, metadata | {"step": step})
    for old in [*_checkpoints(folder)[:-KEEP], *folder.glob(".*.part")]:
        old.unlink()


def load_newest_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict] | None:
    """The newest checkpoint that can be read, as (tensors, metadata), or None."""
    for path in reversed(_checkpoints(folder)):
        try:
            return load_tensors(path)
        except SafetensorError:
            continue  # damaged after it was written: the one before it will do
    return None


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith("."))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as named tensors: `<parameter's number>.<name>`; whole ones, where weights are sharded."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{k}": whole(torch.as_tensor(value)) for i, values in state.items() for k, value in values.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        like = parameters[int(number)]
        if value.shape == like.shape:
            value = shard_like(value, like)
            # Laid out as the parameter is: the fused kernel rounds by the place in memory, and resuming is exact.
            value = torch.empty_like(like).copy_(value)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
