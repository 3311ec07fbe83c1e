"""What the tests of the compared methods share."""

from collections.abc import Callable
from pathlib import Path

import torch

from defectdiffu.data.folder import Sample, read_folder
from defectdiffu.files import load_tensors

SIZES = {"channels": 4, "max_channels": 16, "width": 16}  # of StyleGAN2


def samples_of(data: Path, *defects: str) -> list[Sample]:
    """The samples of tile with these defects."""
    return [s for s in read_folder(data) if s.product == "tile" and s.defect in defects]


class Killed(BaseException):
    """What ends a training that is killed."""


def killed_at(step: int, fit: Callable) -> Callable:
    """The loop `fit`, killed when it asks for the pictures of `step`."""

    def killed(of_what, pictures_at, *args, **kwargs):
        def at(number: int):
            if number == step:
                raise Killed
            return pictures_at(number)

        fit(of_what, at, *args, **kwargs)

    return killed


def same_checkpoints(a: Path, b: Path, step: int) -> bool:
    """Whether two runs hold the same after `step`, to the bit."""
    one, two = (load_tensors(run / "checkpoints" / f"{step:08d}.safetensors")[0] for run in (a, b))
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())
