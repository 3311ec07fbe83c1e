"""Reader of folders in the MVTec AD layout: which files belong together, and what is wrong with them.

Only `scan` checks files. `read_folder` raises the first problem it finds, `validate.check_folder` collects all.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypedDict

import numpy as np

from defectdiffu.config import GOOD
from defectdiffu.data.catalog import unify
from defectdiffu.data.image_files import (
    PIXELS,
    SUFFIXES,
    Problem,
    check_file_name,
    load_image,
    load_mask,
    opened,
    orientation,
    read_mask,
    to_rgb,
    white_of,
)
from defectdiffu.errors import InputError, check_folder_name

Pair = tuple[str, str]  # a product and its defect

LAYOUT = (
    "<product>/train/good/NNN.png, <product>/test/<defect>/NNN.png and <product>/ground_truth/<defect>/NNN_mask.png"
)


@dataclass(frozen=True)
class Sample:
    """One image of a folder.

    image            the photograph
    mask             the mask of its defect; None for good images
    product          name of the product's folder, e.g. "metal_nut"
    defect           unified name of the defect (`catalog.unify`), "good" for good images
    original_defect  name of the defect's folder, e.g. "broken_large"
    white            the value that is white in the product's pictures of 16 bits; None: all have 8 bits
    mask_turn        EXIF orientation (5 to 8) by which the mask is turned upright; 1: it is upright
    """

    image: Path
    mask: Path | None
    product: str
    defect: str
    original_defect: str
    white: int | None = None
    mask_turn: int = 1

    @property
    def subset(self) -> str:
        """The folder the image lies in: "train" or "test"."""
        return self.image.parts[-3]


class NoMask(Problem):
    """A picture of a defect without a mask: what only looks at pictures can do with it."""


class Picture(TypedDict):
    """One item of a `FolderDataset`."""

    image: np.ndarray
    mask: np.ndarray
    product: str
    defect: str


class FolderDataset(Sequence[Picture]):
    """Images and masks of samples, as arrays. A map-style dataset for `torch.utils.data.DataLoader`.

    The folder layout of MVTec AD::

        root/                           or the folder of one product alone
        ├── bottle/
        │   ├── train/
        │   │   └── good/               optional
        │   │       ├── 000.png
        │   │       └── ...
        │   ├── test/                   optional
        │   │   ├── good/
        │   │   │   └── 000.png         good images need no mask
        │   │   └── broken_large/
        │   │       ├── 000.png         any name; .png .jpg .jpeg .bmp .tif .tiff .webp
        │   │       └── ...
        │   └── ground_truth/
        │       └── broken_large/
        │           ├── 000_mask.png    or 000.png; 0 normal, one other value for defect; as large as its image
        │           └── ...
        └── ...

    Licence: the layout is free to use; the images of MVTec AD are under CC BY-NC-SA 4.0, which forbids commercial use.
    Weights trained on them inherit that.

    Citation: Paul Bergmann, Michael Fauser, David Sattlegger, Carsten Steger: MVTec AD, a comprehensive real-world
    dataset for unsupervised anomaly detection. CVPR 2019.

    Example::

        train, evaluate = split(read_folder("data/mvtec"), seed=0)
        dataset = FolderDataset(train, size=256)
        dataset[0]["image"]     # uint8 (256, 256, 3), RGB
        dataset[0]["mask"]      # uint8 (256, 256), 0 or 255; all 0 for a good image
        dataset[0]["product"]   # "bottle"
        dataset[0]["defect"]    # "broken", the unified name

    Raises an `InputError` that names the file if one cannot be read.
    """

    def __init__(self, samples: Sequence[Sample], size: int):
        self.samples = samples
        self.size = size

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Picture:  # type: ignore[override]  # no slices
        sample = self.samples[index]
        mask = np.zeros((self.size, self.size), np.uint8)
        if sample.mask:
            mask = load_mask(sample.mask, self.size, sample.mask_turn)
        image = load_image(sample.image, self.size, sample.white)
        return {"image": image, "mask": mask, "product": sample.product, "defect": sample.defect}


def read_folder(*roots: str | Path, limit: int | None = PIXELS, masks: bool = True) -> list[Sample]:
    """Return the samples of one or more folders in the MVTec AD layout (see `FolderDataset`).

    A root holds products or is itself one product. Samples are sorted by product, folder of the defect, "train" before
    "test", and file name; a file that two roots share is listed once.

    Names, image headers and whole masks are checked here; damaged pixels of an image are found when `load_image` reads
    it. limit: the most pixels per image; None: no limit. masks: whether every picture of a defect must have one.
    Raises the first `Problem`, an `InputError`.
    """
    samples = []
    for root in roots:
        for item in scan(root, limit=limit):
            if isinstance(item, Sample):
                samples.append(item)
            elif masks or not isinstance(item, NoMask):
                raise item
    return sorted(
        with_white(dict.fromkeys(samples)),
        key=lambda s: (s.product, s.original_defect, s.subset != "train", s.image.name),
    )


def with_white(samples: Iterable[Sample]) -> list[Sample]:
    """Return the samples, each with the white of its product: a product has one camera, so the fewest bits that hold
    all its pictures. A depth in bits, not the brightest value, so that two halves of a set are read alike."""
    samples = list(samples)
    whites: dict[str, int] = {}
    for sample in samples:
        if sample.white is not None:
            whites[sample.product] = max(whites.get(sample.product, 0), sample.white)
    return [replace(sample, white=whites.get(sample.product)) for sample in samples]


_NO_FOLDER = {
    FileNotFoundError: "there is no such folder",
    NotADirectoryError: "is a file, not a folder",
    PermissionError: "no permission to read it",
}


def scan(root: str | Path, decode: bool = False, limit: int | None = PIXELS) -> Iterator[Sample | Problem]:
    """Yield all samples and all problems of a folder in the MVTec AD layout, in order.

    With `decode` every image is read completely (about 20 ms for a megapixel), without it only its header and the
    pixels of those with 16 bits. limit: the most pixels per image; None: no limit.
    Hidden files, files that are not images, folders that are not products and masks of good images are skipped.
    """
    root = Path(root)
    check = partial(_check, decode=decode, limit=limit)
    try:
        children = _children(root)
        products = [root] if (root / "train").is_dir() or (root / "test").is_dir() else children
    except OSError as error:
        yield Problem(root, _NO_FOLDER.get(type(error), f"cannot be read ({error.strerror})"))
        return

    recognised: set[Path] = set()  # the products
    for subset in (product / name for product in products for name in ("train", "test")):
        try:
            if subset.is_dir():
                if subset.parent not in recognised:
                    yield from _badly_named(subset.parent, "product")
                recognised.add(subset.parent)
                yield from _scan_subset(subset, check)
        except PermissionError as error:  # skip the rest of this folder, still check the others
            recognised.add(subset.parent)
            yield Problem(Path(error.filename), _NO_FOLDER[PermissionError])
    if not recognised:
        state = "not in the MVTec AD layout" if children else "the folder is empty"
        yield Problem(root, f"{state}; the layout is {LAYOUT}")


def _scan_subset(subset: Path, check: Callable[[Sample], Iterator[Sample | Problem]]) -> Iterator[Sample | Problem]:
    """Yield samples and problems of `<product>/train` or `<product>/test`."""
    product = subset.parent.absolute().name  # absolute, because the root may be "."
    if _images(subset):
        yield Problem(subset, f"images are directly in it; the layout is {LAYOUT}")

    truth = subset.parent / "ground_truth"
    folders = [f for f in _children(subset) if f.is_dir()]
    for folder in folders:
        defect = folder.name
        yield from _badly_named(folder, "defect")
        images = _images(folder)
        if not images:
            yield Problem(folder, f"no images in it; allowed are {' '.join(SUFFIXES)}")
        elif defect == GOOD:
            for image in images:
                yield from check(Sample(image, None, product, GOOD, GOOD))
        elif subset.name == "train":
            yield Problem(folder, f"'train' holds good images only: move it to {subset.parent / 'test' / defect}")
        else:
            yield from _scan_defect(images, truth / defect, product, defect, check)

    if subset.name == "test" and truth.is_dir():
        for masks in _children(truth):
            if masks.is_dir() and masks.name not in {GOOD, *(f.name for f in folders)}:
                yield Problem(masks, f"masks without images: there is no folder {subset / masks.name}")


def _badly_named(folder: Path, kind: str) -> Iterator[Problem]:
    """The problem of a folder by whose name nothing could be generated later."""
    try:
        check_folder_name(kind, folder.absolute().name)
    except InputError as error:
        yield Problem(folder, f"{error}: rename it")


def _scan_defect(
    images: list[Path], truth: Path, product: str, defect: str, check: Callable[[Sample], Iterator[Sample | Problem]]
) -> Iterator[Sample | Problem]:
    """Yield samples and problems of the images of one defect, whose masks are in the folder `truth`."""
    masks = defaultdict(list)
    for mask in _images(truth) if truth.is_dir() else []:
        masks[mask.stem].append(mask)
    used: set[Path] = set()
    seen: dict[str, Path] = {}
    for image in images:
        stem = image.stem
        if stem in seen:
            yield Problem(image, f"same name as {seen[stem].name}: which of the two does the mask belong to?")
        seen.setdefault(stem, image)

        found = masks.get(f"{stem}_mask", []) + masks.get(stem, [])
        used.update(found)
        if len(found) > 1:
            yield Problem(image, f"two masks, {found[0].name} and {found[1].name} in {truth}: keep one")
        elif not found:
            yield NoMask(image, f"no mask; looked for {truth / f'{stem}_mask.png'}")
        yield from check(Sample(image, found[0] if found else None, product, unify(product, defect), defect))
    for mask in sorted(mask for same_stem in masks.values() for mask in same_stem if mask not in used):
        yield Problem(mask, f"mask without an image; looked for {images[0].with_stem(mask.stem.removesuffix('_mask'))}")


def _check(sample: Sample, decode: bool, limit: int | None) -> Iterator[Sample | Problem]:
    """Open the files of a sample; yield what is wrong with them, then the sample, with what they tell of it."""
    stored = upright = None
    try:
        check_file_name(sample.image)
        with opened(sample.image, limit) as image:
            stored, turn = image.size, orientation(image)
            upright = stored[::-1] if turn >= 5 else stored
            if decode:
                to_rgb(image)
            sample = replace(sample, white=white_of(image))
    except Problem as problem:
        yield problem
    try:
        if sample.mask:
            check_file_name(sample.mask)
            with opened(sample.mask, limit) as image:
                marked, _ = read_mask(image)
                size = marked.shape[::-1]
                if upright and size != upright:
                    if size != stored:
                        raise ValueError(
                            f"the mask is {size[0]} x {size[1]} (width x height), "
                            f"its image {sample.image.name} is {upright[0]} x {upright[1]}"
                        )
                    sample = replace(sample, mask_turn=turn)  # it was drawn on the pixels as they are stored
    except Problem as problem:
        yield problem
    yield sample


def _images(folder: Path) -> list[Path]:
    return [path for path in _children(folder) if path.suffix.lower() in SUFFIXES]


def _children(folder: Path) -> list[Path]:
    """Return the contents of a folder, sorted, without hidden files such as ".DS_Store" or "._000.png"."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
