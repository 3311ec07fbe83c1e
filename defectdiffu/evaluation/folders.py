"""Reads the folders to compare, and checks what all measures of pictures require."""

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from defectdiffu.data.folder import FolderDataset, Pair, Sample, read_folder
from defectdiffu.errors import InputError
from defectdiffu.evaluation.judge import Judge

T = TypeVar("T")


def read_pairs(root: str | Path, masks: bool = True) -> dict[Pair, list[Sample]]:
    """{(product, defect): its samples} of a folder in MVTec AD's layout, defects unified, good pictures included.

    masks: whether every picture of a defect must have one.
    """
    pairs: dict[Pair, list[Sample]] = {}
    for sample in read_folder(root, masks=masks):
        pairs.setdefault((sample.product, sample.defect), []).append(sample)
    if not pairs:
        raise InputError(f"{root} holds no pictures")
    return pairs


def read_alike(generated: str | Path, real: str | Path) -> tuple[dict[Pair, list[Sample]], dict[Pair, list[Sample]]]:
    """The generated samples by pair, and the real samples of the same pairs. Masks may be missing: some methods draw
    none.

    Raises `InputError` if a generated pair has no real pictures.
    """
    ours, theirs = read_pairs(generated, masks=False), read_pairs(real, masks=False)
    for product, defect in ours:
        if (product, defect) not in theirs:
            there = ", ".join(sorted(d for p, d in theirs if p == product)) or "nothing"
            raise InputError(
                f"{real} has no {product} with {defect} to compare with {generated}; of {product} it has {there}"
            )
    return ours, {pair: theirs[pair] for pair in ours}


def common_size(pairs: dict[Pair, list[Sample]]) -> int:
    """The common side of all pictures, in pixels. Raises `InputError` if sizes differ or pictures are not square."""
    sizes: dict[tuple[int, int], Path] = {}
    for sample in chain.from_iterable(pairs.values()):
        with Image.open(sample.image) as image:
            sizes.setdefault(image.size, sample.image)
    if len(sizes) > 1:
        (first, a), (second, b), *_ = sizes.items()
        raise InputError(
            f"pictures must have one size: {a} is {first[0]} x {first[1]}, {b} is {second[0]} x {second[1]}"
        )
    ((width, height), path), *_ = sizes.items()
    if width != height:
        raise InputError(f"pictures must be square: {path} is {width} x {height}")
    return width


def load(samples: Sequence[Sample], size: int) -> tuple[np.ndarray, np.ndarray]:
    """images uint8 (N, size, size, 3) and masks uint8 (N, size, size), 0 or 255."""
    items = list(FolderDataset(samples, size))
    return np.stack([i["image"] for i in items]), np.stack([i["mask"] for i in items])


def check_count(what: str, count: int, least: int) -> None:
    if count < least:
        raise InputError(f"{what}: {count} picture{'s' * (count != 1)}, at least {least} are needed")


def fetched(network: Callable[..., T], *args: Any, **kwargs: Any) -> tuple[T, None] | tuple[None, str]:
    """(network(...), None), or (None, why) if its public weights cannot be fetched."""
    try:
        return network(*args, **kwargs), None
    except OSError as error:  # no network, no such host, no such file
        return None, f"the weights could not be fetched ({error})"


def judge_features(samples: Sequence[Sample], judge: Judge) -> np.ndarray:
    """float32 (N, 192): the judge's features of the pictures, loaded at its size."""
    return judge(load(samples, judge.size)[0]).features
