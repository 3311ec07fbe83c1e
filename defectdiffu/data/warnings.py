"""Warnings about a folder: it can be read, but is probably not what was meant. Every warning names its cure."""

import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from defectdiffu.config import GOOD
from defectdiffu.data.folder import Sample
from defectdiffu.data.image_files import opened, orientation, read_mask
from defectdiffu.errors import printable

VISIBLE = 0.25  # share of one pixel that the defect must cover at the training size
SQUEEZE = 2  # long side over short side of a picture, above which the square distorts it
MOST = 0.5  # share of marked pixels above which a mask may be inverted


@dataclass(frozen=True)
class Notice:
    """A warning. kind: a few words, the same for its whole kind; message: one line with the cure, without the path."""

    kind: str
    path: Path
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def find(samples: Sequence[Sample], size: int) -> list[Notice]:
    """Return the warnings about samples to be trained on at `size` x `size` pixels.

    Reads the headers of images, whole masks and, of files of equal length, whole files. Raises `Problem` for a file
    that cannot be read.
    """
    of_one = (notice for sample in samples for notice in _of_one(sample, size))
    return [*of_one, *_of_depth(samples), *_of_copies(samples)]


def summary(notices: Iterable[Notice]) -> list[str]:
    """Return one line for each kind: how many there are, and the first."""
    kinds = defaultdict(list)
    for notice in notices:
        kinds[notice.kind].append(notice)
    return [f"warning: {kind} ({len(of_kind)}), such as {of_kind[0]}" for kind, of_kind in kinds.items()]


def warn(samples: Sequence[Sample], size: int) -> None:
    """Print the summary of all warnings on stderr."""
    for line in summary(find(samples, size)):
        print(printable(line), file=sys.stderr)


def _of_one(sample: Sample, size: int) -> Iterator[Notice]:
    """Warnings that need only one image and its mask."""
    with opened(sample.image) as image:
        (width, height), turn = image.size, orientation(image)
    ratio = max(width, height) / min(width, height)
    if ratio > SQUEEZE:
        yield Notice(
            "squeezed picture",
            sample.image,
            f"{width} x {height} pixels are squeezed {ratio:.1f} : 1 into a square: "
            "cut the set into tiles by `defectdiffu data tile SOURCE OUT`",
        )
    if sample.mask is None:
        return

    with opened(sample.mask) as image:
        own_turn = orientation(image)
        marked, soft = read_mask(image)
    if soft:
        yield Notice(
            "mask with soft edges",
            sample.mask,
            "values between black and white, cut at half the brightest: "
            "`defectdiffu data convert folder SOURCE OUT --binarise` writes it as PNG with two values",
        )
    if marked.mean() > MOST:
        yield Notice(
            "mask of most of the picture",
            sample.mask,
            f"it marks {marked.mean():.0%}: if its white is the defect-free part, "
            "`defectdiffu data convert folder SOURCE OUT --invert` swaps the two",
        )
    if (share := _visible(marked, size)) < VISIBLE:
        yield Notice(
            "defect smaller than a pixel",
            sample.image,
            f"at {size} x {size} pixels the defect covers at most {share:.2f} of one, too little to be seen: "
            f"cut the set into tiles by `defectdiffu data tile SOURCE OUT --size {size}`",
        )
    if turn != own_turn == sample.mask_turn == 1 and (turn < 5 or width == height):
        yield Notice(
            "mask of a turned picture",
            sample.mask,
            f"{sample.image.name} is turned by its EXIF orientation {turn}, the mask is taken as drawn on the turned "
            "picture: if it was drawn on the stored pixels, save the picture anew without the EXIF orientation",
        )


def _visible(marked: np.ndarray, size: int) -> float:
    """The largest share of a pixel, in [0, 1], that the marked region (H, W) covers at size x size pixels."""
    shrunk = Image.fromarray(marked.astype(np.uint8) * 255).resize((size, size), Image.Resampling.BOX)
    return float(np.asarray(shrunk).max()) / 255


def _of_depth(samples: Sequence[Sample]) -> Iterator[Notice]:
    """One warning for each product whose 16-bit pictures use fewer bits. The reader corrects it: `Sample.white`."""
    for folder, white in dict.fromkeys((s.image.parents[2], s.white) for s in samples):
        if white not in (None, 65535):
            yield Notice(
                "16-bit pictures of fewer bits",
                folder,
                f"{white.bit_length()} bits hold all values of its 16-bit pictures, so {white} is taken as white: "
                "if another value is, `defectdiffu data convert folder SOURCE OUT --white VALUE` writes 8 bits",
            )


def _of_copies(samples: Sequence[Sample]) -> Iterator[Notice]:
    """Warnings about images whose files are identical."""
    for first, *others in _alike(samples):
        for other in others:
            if (first.defect == GOOD) != (other.defect == GOOD):
                kind, what = "same picture good and with a defect", "remove it from one of the two folders"
            else:
                kind, what = (
                    "same picture twice",
                    "remove one: it counts twice, and may be in training and test set",
                )
            yield Notice(kind, other.image, f"is the same file as {first.image}: {what}")


def _alike(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Lists of samples whose image files are identical, good ones first. Only files of equal length are read."""
    lengths, contents = defaultdict(list), defaultdict(list)
    for sample in samples:
        lengths[sample.image.stat().st_size].append(sample)
    for sample in (sample for group in lengths.values() if len(group) > 1 for sample in group):
        with sample.image.open("rb") as file:
            contents[hashlib.file_digest(file, "sha256").digest()].append(sample)
    for group in contents.values():
        if len(group) > 1:
            yield sorted(group, key=lambda sample: (sample.defect != GOOD, sample.image))
