"""Checkpoints of a training: one safetensors file each, only the newest kept; the optimiser's state as tensors."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from defectdiffu.files import load_tensors, save_tensors

KEEP = 2  # newest checkpoints kept


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], metadata: dict) -> None:
    """Write `folder/<step>.safetensors`; remove all but the newest few, and the partial files of a killed run."""
    save_tensors(folder / f"{step:08d}.safetensors", tensors, metadata | {"step": step})
    for old in [*_checkpoints(folder)[:-KEEP], *folder.glob(".*.part")]:
        old.unlink()


def load_newest_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict] | None:
    """The newest checkpoint that can be read, as (tensors, metadata), or None."""
    for path in reversed(_checkpoints(folder)):
        try:
            return load_tensors(path)
        except SafetensorError:
            continue  # damaged after it was written: use the one before it
    return None


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith("."))


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> dict[str, Tensor]:
    """An optimiser's state as named tensors: `<parameter's number>.<name>`, whatever the optimiser's groups."""
    states = ((i, optimizer.state[p]) for i, p in enumerate(parameters) if p in optimizer.state)
    return {f"{i}.{name}": value for i, state in states for name, value in state.items()}


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], tensors: dict[str, Tensor]
) -> None:
    """The inverse of `optimizer_tensors`."""
    place = {p: i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        like = parameters[int(number)]
        if value.shape == like.shape:
            # The same memory layout as the parameter: fused kernels require it.
            value = torch.empty_like(like).copy_(value)
        state.setdefault(place[like], {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
