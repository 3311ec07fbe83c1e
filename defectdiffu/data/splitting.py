"""Splits into training and test data: the paper's halves, and few-shot parts as separate folders."""

import shutil
from collections import defaultdict
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from defectdiffu.config import GOOD
from defectdiffu.data.folder import Sample, read_folder
from defectdiffu.errors import InputError
from defectdiffu.files import building


def split(samples: Sequence[Sample], seed: int = 0) -> tuple[list[Sample], list[Sample]]:
    """Split samples into training and evaluation samples: the paper's two halves of the defect images.

    The rule: the images of each (product, original defect) are sorted by the SHA-256 of
    "seed/product/original_defect/stem", where stem is the file name without its suffix; the first half, rounded up, is
    for training. So the split of one defect depends neither on other folders nor on the data's location, and any
    program can reproduce it. Good images of `train` are for training, those of `test` for evaluation.
    Both lists keep the order of `samples`.
    """
    groups = _groups(samples, seed)
    training = {s for s in samples if s.defect == GOOD and s.subset == "train"}
    for (_, defect), group in groups.items():
        training.update(group[: (len(group) + 1) // 2] if defect != GOOD else [])
    return _apart(samples, training)


def split_few(
    samples: Sequence[Sample], per_defect: int, good: int, seed: int = 0
) -> tuple[list[Sample], list[Sample]]:
    """Split samples into a few and the rest. Both lists keep the order of `samples`.

    The few are the first `per_defect` of each (product, original defect) and the first `good` good images of each
    product, in the order of `split`.

    Raises `InputError` if a defect would have no image left in the rest.
    """
    few = set()
    for (product, defect), group in _groups(samples, seed).items():
        number = good if defect == GOOD else per_defect
        if defect != GOOD and len(group) <= number:
            raise InputError(
                f"{product} has {len(group)} images of {defect}: with {number} of them in the few-shot part, none is "
                "left to test on"
            )
        few.update(group[:number])
    return _apart(samples, few)


def parse_pairs(text: str) -> list[tuple[str, str]]:
    """(product, defect) pairs of a text such as "magnetic_tile/crack,pill/scratch"."""
    pairs = []
    for part in text.split(","):
        product, _, defect = part.strip().partition("/")
        if not product or not defect or "/" in defect:
            raise InputError(f"pairs must be comma-separated product/defect, not '{text}'")
        pairs.append((product, defect))
    return pairs


def hold_out(samples: Sequence[Sample], pairs: Sequence[tuple[str, str]]) -> list[Sample]:
    """`samples` without those of `pairs`, by unified defect. Raises `InputError` for a pair without samples."""
    there = {(s.product, s.defect) for s in samples}
    for product, defect in pairs:
        if (product, defect) not in there:
            known = ", ".join(sorted(d for p, d in there if p == product)) or "nothing"
            raise InputError(f"no {product} with {defect} to hold out: there is {known} of {product}")
    return [s for s in samples if (s.product, s.defect) not in set(pairs)]


def write_split(
    source: str | Path, few: str | Path, rest: str | Path, per_defect: int = 10, good: int = 100, seed: int = 0
) -> dict[str, int]:
    """Copy a folder in MVTec AD's layout into two new ones, by `split_few`; return the number of images in each.

    Both get their names when everything is copied. Raises `InputError` for an invalid source, for new folders that
    exist or are the same, and for a defect with too few images; nothing is written then.
    """
    few, rest = Path(few), Path(rest)
    if few.resolve() == rest.resolve():
        raise InputError(f"{few} is given for both parts: name two folders")
    with building(few) as few_part, building(rest) as rest_part:
        parts = split_few(read_folder(source), per_defect, good, seed)
        for folder, samples in zip((few_part, rest_part), parts, strict=True):
            for sample in samples:
                for file in filter(None, (sample.image, sample.mask)):
                    copy = folder / sample.product / Path(*file.parts[-3:])
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, copy)
    return {str(folder): len(samples) for folder, samples in zip((few, rest), parts, strict=True)}


def _groups(samples: Sequence[Sample], seed: int) -> dict[tuple[str, str], list[Sample]]:
    """{(product, original defect): its samples}, sorted by their hash."""
    groups = defaultdict(list)
    for sample in samples:
        groups[sample.product, sample.original_defect].append(sample)
    for (product, defect), group in groups.items():
        group.sort(key=lambda s: sha256(f"{seed}/{product}/{defect}/{s.image.stem}".encode()).digest())
    return groups


def _apart(samples: Sequence[Sample], chosen: set[Sample]) -> tuple[list[Sample], list[Sample]]:
    return [s for s in samples if s in chosen], [s for s in samples if s not in chosen]
