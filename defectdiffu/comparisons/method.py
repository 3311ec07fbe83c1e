"""What the compared methods have in common: a module per method with a function `fit`, whose result samples.

model = fit(samples, out, steps, size=64, batch_size=8, ...)    # train, save in `out`; the same call again resumes
model = Model.from_pretrained(out)                              # safetensors and config.json, by diffusers
images, masks = model.sample(2, seeds=[0, 1])                   # masks None for a method that has none
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from defectdiffu.data.folder import Sample
from defectdiffu.errors import InputError
from defectdiffu.training.latents import Pictures


class Model(Protocol):
    """A trained model of one product and one defect, `config.product` and `config.defect`."""

    config: Any

    def sample(self, num: int, seeds: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Images uint8 (num, S, S, 3) and masks bool (num, S, S), or None; those of number i depend on seeds[i] alone.
        The seeds are 0, 1, ... if not given."""


def draw_latents(length: int, num: int, seeds: Sequence[int] | None) -> Tensor:
    """(num, length) of standard normal numbers, row i from seeds[i] alone, whatever the device of the model."""
    seeds = range(num) if seeds is None else seeds
    if len(seeds) != num:
        raise InputError(f"{num} pictures need {num} seeds, not {len(seeds)}")
    return torch.stack([torch.randn(length, generator=torch.Generator().manual_seed(s)) for s in seeds])


def check_samples(samples: Sequence[Sample]) -> None:
    """Raise `InputError` where there is nothing to train on."""
    if not samples:
        raise InputError("there is no picture to train on")


def with_mask(images: Tensor, masks: Tensor) -> Tensor:
    """Images (B, 3, S, S) in [-1, 1] and masks (B, S, S) in {0, 1} -> (B, 4, S, S) in [-1, 1]."""
    return torch.cat([images, masks[:, None] * 2 - 1], dim=1)


def drawn(pictures: Pictures, number: int, rng: np.random.Generator) -> np.ndarray:
    """`number` indices of pictures, each equally likely."""
    return rng.integers(len(pictures), size=number)
