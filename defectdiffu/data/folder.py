"""Reader of folders in the MVTec AD layout: which files belong together, and how they become arrays.

Only `scan` checks files. `read_folder` raises the first problem it finds, `validate.check_folder` collects all.
"""

import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from defectdiffu.config import GOOD
from defectdiffu.data.catalog import unify
from defectdiffu.errors import InputError

Pair = tuple[str, str]  # a product and its defect

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
LAYOUT = (
    "<product>/train/good/NNN.png, <product>/test/<defect>/NNN.png and <product>/ground_truth/<defect>/NNN_mask.png"
)


class Problem(InputError):
    """What is wrong with one file or folder: to be raised, or to be collected in a list.

    path     the file or folder, a `Path`
    message  what is wrong and what would be valid, one line without the path
    """

    def __init__(self, path: Path, message: str):
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


@dataclass(frozen=True)
class Sample:
    """One image of a folder.

    image            the photograph
    mask             the mask of its defect; None for good images
    product          name of the product's folder, e.g. "metal_nut"
    defect           unified name of the defect (`catalog.unify`), "good" for good images
    original_defect  name of the defect's folder, e.g. "broken_large"
    """

    image: Path
    mask: Path | None
    product: str
    defect: str
    original_defect: str

    @property
    def subset(self) -> str:
        """The folder the image lies in: "train" or "test"."""
        return self.image.parts[-3]


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
        mask = load_mask(sample.mask, self.size) if sample.mask else np.zeros((self.size, self.size), np.uint8)
        image = load_image(sample.image, self.size)
        return {"image": image, "mask": mask, "product": sample.product, "defect": sample.defect}


def read_folder(*roots: str | Path) -> list[Sample]:
    """Return the samples of one or more folders in the MVTec AD layout (see `FolderDataset`).

    A root holds products or is itself one product. Samples are sorted by product, folder of the defect, "train" before
    "test", and file name; a file that two roots share is listed once.

    Names, image headers and whole masks are checked here; damaged pixels of an image are found when `load_image` reads
    it. Raises `Problem`, an `InputError`, with the first thing that is wrong.
    """
    samples = []
    for root in roots:
        for item in scan(root):
            if isinstance(item, Problem):
                raise item
            samples.append(item)
    return sorted(
        dict.fromkeys(samples), key=lambda s: (s.product, s.original_defect, s.subset != "train", s.image.name)
    )


# ---------------------------------------------------------------------------------------------------------------------
# Files to arrays


def load_image(path: str | Path, size: int) -> np.ndarray:
    """Return an image as uint8 (size, size, 3), RGB, rotated by its EXIF orientation.

    Grey, palette and CMYK images become RGB; 16-bit grey is divided by 257, so that its whole range is kept;
    transparent pixels become white. A non-square image is stretched to a square, and so is its mask. Resized by Lanczos
    with antialiasing.

    Raises `Problem`, an `InputError`, if the file cannot be read as an image.
    """
    with opened(Path(path)) as image:
        image = _rgb(ImageOps.exif_transpose(image), backdrop="white")
        return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


def load_mask(path: str | Path, size: int) -> np.ndarray:
    """Return a mask as uint8 (size, size), 0 for normal and 255 for defect.

    A pixel of the result is defect if any pixel under it is, so that the thinnest scratch survives.

    Raises `Problem`, an `InputError`, if the file cannot be read, marks nothing, or has more than one value beside 0.
    """
    with opened(Path(path)) as image:
        marked = _marked(image)
    for _ in range(2):  # rows, then columns
        marked = _any_of_rows(marked, size).T
    return marked.astype(np.uint8) * 255


def _any_of_rows(marked: np.ndarray, size: int) -> np.ndarray:
    """Return bool (size, W): row i is true where any row of marked (H, W) that it overlaps is."""
    height = len(marked)
    first = np.arange(size) * height // size
    stop = -(-np.arange(1, size + 1) * height // size)  # rounded up
    count = np.pad(marked.cumsum(axis=0), ((1, 0), (0, 0)))  # marked pixels above each row
    return count[stop] > count[first]


def _rgb(image: Image.Image, backdrop: str) -> Image.Image:
    """Return the image in RGB, blended over the backdrop where transparent. Raises ValueError for unknown depths."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit images have no known range, save it with 8 or 16 bits")
        return Image.fromarray(np.round(values / 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, backdrop), image)
    return image.convert("RGB")


def _marked(image: Image.Image) -> np.ndarray:
    """Return bool (H, W), true where a mask marks a defect. Raises ValueError if it marks nothing or is ambiguous."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("1", "L") or image.mode.startswith(("I", "F")):
        values = np.asarray(image)
    else:  # colours, each as one number; a palette's indices have no meaning, 0 may be white
        values = np.asarray(_rgb(image, backdrop="black")).astype(int) @ [65536, 256, 1]
    marked = values != 0
    if not marked.any():
        raise ValueError("the mask is empty: mark the defect, or move the image to the good ones")
    if np.any(values[marked] != values.max()):
        raise ValueError(
            f"the mask has {len(np.unique(values))} values, not 0 (normal) and one other (defect): "
            "save it as PNG, without smooth edges, with the same value for all kinds of defect"
        )
    return marked


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open an image; any error while it is open becomes a `Problem` of this path."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise Problem(path, "there is no such file") from None
    except PermissionError:
        raise Problem(path, "no permission to read it") from None
    except UnidentifiedImageError:
        raise Problem(path, f"not a readable image; allowed are {' '.join(SUFFIXES)}") from None
    except ValueError as error:
        raise Problem(path, str(error)) from None
    except (OSError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError) as error:
        raise Problem(path, f"the image is truncated or damaged ({error})") from None


# ---------------------------------------------------------------------------------------------------------------------
# Which files belong together, and what is wrong with them

_NO_FOLDER = {
    FileNotFoundError: "there is no such folder",
    NotADirectoryError: "is a file, not a folder",
    PermissionError: "no permission to read it",
}


def scan(root: str | Path, decode: bool = False) -> Iterator[Sample | Problem]:
    """Yield all samples and all problems of a folder in the MVTec AD layout, in order.

    With `decode` every image is read completely (about 20 ms for a megapixel), without it only its header.
    Hidden files, files that are not images, folders that are not products and masks of good images are skipped.
    """
    root = Path(root)
    try:
        children = _children(root)
        products = [root] if (root / "train").is_dir() or (root / "test").is_dir() else children
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        yield Problem(root, _NO_FOLDER[type(error)])
        return

    recognised = False
    for subset in (product / name for product in products for name in ("train", "test")):
        try:
            if subset.is_dir():
                recognised = True
                yield from _scan_subset(subset, decode)
        except PermissionError as error:  # skip the rest of this folder, still check the others
            recognised = True
            yield Problem(Path(error.filename), _NO_FOLDER[PermissionError])
    if not recognised:
        state = "not in the MVTec AD layout" if children else "the folder is empty"
        yield Problem(root, f"{state}; the layout is {LAYOUT}")


def _scan_subset(subset: Path, decode: bool) -> Iterator[Sample | Problem]:
    """Yield samples and problems of `<product>/train` or `<product>/test`."""
    product = subset.parent.absolute().name  # absolute, because the root may be "."
    if _images(subset):
        yield Problem(subset, f"images are directly in it; the layout is {LAYOUT}")

    truth = subset.parent / "ground_truth"
    folders = [f for f in _children(subset) if f.is_dir()]
    for folder in folders:
        defect = folder.name
        images = _images(folder)
        if not images:
            yield Problem(folder, f"no images in it; allowed are {' '.join(SUFFIXES)}")
        elif defect == GOOD:
            for image in images:
                yield from _check(Sample(image, None, product, GOOD, GOOD), decode)
        elif subset.name == "train":
            yield Problem(folder, f"'train' holds good images only: move it to {subset.parent / 'test' / defect}")
        else:
            yield from _scan_defect(images, truth / defect, product, defect, decode)

    if subset.name == "test" and truth.is_dir():
        for masks in _children(truth):
            if masks.is_dir() and masks.name not in {GOOD, *(f.name for f in folders)}:
                yield Problem(masks, f"masks without images: there is no folder {subset / masks.name}")


def _scan_defect(
    images: list[Path], truth: Path, product: str, defect: str, decode: bool
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
            yield Problem(image, f"no mask; looked for {truth / f'{stem}_mask.png'}")
        yield from _check(Sample(image, found[0] if found else None, product, unify(product, defect), defect), decode)
    for mask in sorted(mask for same_stem in masks.values() for mask in same_stem if mask not in used):
        yield Problem(mask, f"mask without an image; looked for {images[0].with_stem(mask.stem.removesuffix('_mask'))}")


def _check(sample: Sample, decode: bool) -> Iterator[Sample | Problem]:
    """Open the files of a sample; yield what is wrong with them, then the sample."""
    size = None
    try:
        with opened(sample.image) as image:
            size = _upright_size(image)
            if decode:
                _rgb(image, backdrop="white")
    except Problem as problem:
        yield problem
    try:
        if sample.mask:
            with opened(sample.mask) as image:
                height, width = _marked(image).shape
                if size and size != (width, height):
                    raise ValueError(
                        f"the mask is {width} x {height} (width x height), "
                        f"its image {sample.image.name} is {size[0]} x {size[1]}"
                    )
    except Problem as problem:
        yield problem
    yield sample


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) after EXIF rotation, from the header alone: `exif_transpose` would decode the pixels."""
    turned = "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return image.size[::-1] if turned else image.size


def _images(folder: Path) -> list[Path]:
    return [path for path in _children(folder) if path.suffix.lower() in SUFFIXES]


def _children(folder: Path) -> list[Path]:
    """Return the contents of a folder, sorted, without hidden files such as ".DS_Store" or "._000.png"."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
