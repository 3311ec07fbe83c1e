"""Reader of folders in the MVTec AD layout: which files belong together, and how they become arrays.

Only `scan` checks files. `read_folder` raises the first problem it finds, `validate.check_folder` collects all.
"""

import struct
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypedDict

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from defectdiffu.config import GOOD
from defectdiffu.data.catalog import unify
from defectdiffu.errors import InputError

Pair = tuple[str, str]  # a product and its defect

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
PIXELS = 179_000_000  # more are not read at once: in colour they take 0.7 GB; Pillow's limit is the same
DEPTHS = (8, 10, 12, 14, 16)  # bits of cameras whose pictures are stored with 16 bits
KINDS = 8  # a mask with more values has soft edges; with fewer, each may stand for a kind of defect
LOSSY = ("JPEG", "WEBP")  # their masks have values beside the two that were drawn
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


def read_folder(*roots: str | Path, limit: int | None = PIXELS) -> list[Sample]:
    """Return the samples of one or more folders in the MVTec AD layout (see `FolderDataset`).

    A root holds products or is itself one product. Samples are sorted by product, folder of the defect, "train" before
    "test", and file name; a file that two roots share is listed once.

    Names, image headers and whole masks are checked here; damaged pixels of an image are found when `load_image` reads
    it. limit: the most pixels per image; None: no limit. Raises the first `Problem`, an `InputError`.
    """
    samples = []
    for root in roots:
        for item in scan(root, limit=limit):
            if isinstance(item, Problem):
                raise item
            samples.append(item)
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


# ---------------------------------------------------------------------------------------------------------------------
# Files to arrays


def load_image(path: str | Path, size: int, white: int | None = None) -> np.ndarray:
    """Return an image as uint8 (size, size, 3), RGB, rotated by its EXIF orientation.

    Grey, palette and CMYK images become RGB; 16-bit grey is scaled so that `white` (65535 unless given) becomes 255;
    transparent pixels become white. A non-square image is stretched to a square, and so is its mask. Resized by Lanczos
    with antialiasing.

    Raises `Problem`, an `InputError`, if the file cannot be read as an image.
    """
    with opened(Path(path)) as image:
        image = to_rgb(ImageOps.exif_transpose(image), white)
        return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


def load_mask(path: str | Path, size: int, turn: int = 1) -> np.ndarray:
    """Return a mask as uint8 (size, size), 0 for normal and 255 for defect.

    A pixel of the result is defect if any pixel under it is, so that the thinnest scratch survives. In a mask with soft
    edges (`is_soft`) pixels from half the brightest value on are defect. turn: `Sample.mask_turn`.

    Raises `Problem`, an `InputError`, if the file cannot be read, marks nothing, or has more than one value beside 0.
    """
    with opened(Path(path)) as image:
        marked, _ = read_mask(image)
        marked = turned(marked, turn)
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


def to_rgb(image: Image.Image, white: int | None = None, backdrop: str = "white") -> Image.Image:
    """Return the image in RGB, blended over the backdrop where transparent. Raises ValueError for unknown depths.

    white: the value of a 16-bit image that becomes 255; None: 65535.
    """
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit images have no known range, save it with 8 or 16 bits")
        return Image.fromarray(np.round(values * (255 / (white or 65535))).clip(max=255).astype(np.uint8)).convert(
            "RGB"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, backdrop), image)
    return image.convert("RGB")


def read_mask(image: Image.Image) -> tuple[np.ndarray, bool]:
    """Return bool (H, W), true where a mask marks a defect, and whether its edges are soft (`is_soft`).

    Raises ValueError if it marks nothing or is ambiguous.
    """
    values, lossy = mask_values(image)
    if not values.any():
        raise ValueError("the mask is empty: mark the defect, or move the image to the good ones")
    if is_two_valued(values):
        return values != 0, False
    if is_soft(values, lossy):
        return values >= values.max() / 2, True
    raise ValueError(
        f"the mask has {len(np.unique(values))} values, not 0 (normal) and one other (defect): "
        "save it as PNG, without smooth edges, with the same value for all kinds of defect, "
        "or let `defectdiffu data convert folder SOURCE OUT --binarise` do so"
    )


def mask_values(image: Image.Image) -> tuple[np.ndarray, bool]:
    """Return a mask's values (H, W), upright, every colour as one whole number, and whether its format is lossy."""
    lossy = image.format in LOSSY
    image = ImageOps.exif_transpose(image)
    if image.mode in ("1", "L") or image.mode.startswith(("I", "F")):
        return np.asarray(image), lossy
    colours = np.asarray(to_rgb(image, backdrop="black"))  # a palette's indices say nothing, 0 may well be white
    if lossy or (colours == colours[..., :1]).all():
        return colours.max(axis=-1), lossy
    return colours.astype(int) @ [65536, 256, 1], lossy


def is_two_valued(values: np.ndarray) -> bool:
    """Whether a mask has at most one value beside 0."""
    return bool(np.all(values[values != 0] == values.max()))


def is_soft(values: np.ndarray, lossy: bool) -> bool:
    """Whether a mask of more than two values has soft edges: too many values for kinds of defect, or a lossy format's,
    and three quarters of its pixels nearly black or white, which a photograph in a mask's place has not."""
    if not 128 <= values.max() <= 255 or np.mean((values < 32) | (values >= 224)) < 0.75:
        return False
    return lossy or len(np.unique(values)) > KINDS


_TURNS = {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def turned(marked: np.ndarray, turn: int) -> np.ndarray:
    """Return bool (H, W), turned upright as the EXIF orientation `turn` says; 1 changes nothing."""
    return marked if turn == 1 else np.asarray(Image.fromarray(marked).transpose(_TURNS[turn]))


@contextmanager
def opened(path: Path, limit: int | None = PIXELS) -> Iterator[Image.Image]:
    """Open an image of at most `limit` pixels (None: any); whatever goes wrong while it is open becomes a `Problem` of
    this path."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for without end
            raise ValueError("not a regular file: remove it, or put a copy of the image in its place")
        with _any_size(path) as image:
            width, height = image.size
            if limit is not None and width * height > limit:
                raise ValueError(
                    f"{width} x {height} pixels (width x height) are too many to be read at once: "
                    "cut the set into tiles by `defectdiffu data tile SOURCE OUT`"
                )
            yield image
    except FileNotFoundError:
        raise Problem(path, "there is no such file") from None
    except PermissionError:
        raise Problem(path, "no permission to read it") from None
    except UnidentifiedImageError:
        raise Problem(path, f"not a readable image; allowed are {' '.join(SUFFIXES)}") from None
    except ValueError as error:
        raise Problem(path, str(error)) from None
    except (OSError, SyntaxError, EOFError, struct.error, zlib.error) as error:
        raise Problem(path, f"the image is truncated or damaged ({error})") from None


def _any_size(path: Path) -> Image.Image:
    """Open an image without Pillow's limit, whose message does not tell the size."""
    theirs, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        return Image.open(path)
    finally:
        Image.MAX_IMAGE_PIXELS = theirs


# ---------------------------------------------------------------------------------------------------------------------
# Which files belong together, and what is wrong with them

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
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        yield Problem(root, _NO_FOLDER[type(error)])
        return

    recognised = False
    for subset in (product / name for product in products for name in ("train", "test")):
        try:
            if subset.is_dir():
                recognised = True
                yield from _scan_subset(subset, check)
        except PermissionError as error:  # skip the rest of this folder, still check the others
            recognised = True
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
            yield Problem(image, f"no mask; looked for {truth / f'{stem}_mask.png'}")
        yield from check(Sample(image, found[0] if found else None, product, unify(product, defect), defect))
    for mask in sorted(mask for same_stem in masks.values() for mask in same_stem if mask not in used):
        yield Problem(mask, f"mask without an image; looked for {images[0].with_stem(mask.stem.removesuffix('_mask'))}")


def _check(sample: Sample, decode: bool, limit: int | None) -> Iterator[Sample | Problem]:
    """Open the files of a sample; yield what is wrong with them, then the sample, with what they tell of it."""
    stored = upright = None
    try:
        with opened(sample.image, limit) as image:
            stored, turn = image.size, orientation(image)
            upright = stored[::-1] if turn >= 5 else stored
            if decode:
                to_rgb(image)
            sample = replace(sample, white=_white(image))
    except Problem as problem:
        yield problem
    try:
        if sample.mask:
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


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) to 8, from the header alone; Pillow itself turns TIFF files upright."""
    return image.getexif().get(ExifTags.Base.Orientation, 1) if "exif" in image.info else 1


def _white(image: Image.Image) -> int | None:
    """Return the white of a 16-bit image: of the fewest bits of `DEPTHS` that hold all its values; else None."""
    if not image.mode.startswith("I"):
        return None
    brightest = np.asarray(image).max()
    return next((2**bits - 1 for bits in DEPTHS if brightest < 2**bits), 65535)


def _images(folder: Path) -> list[Path]:
    return [path for path in _children(folder) if path.suffix.lower() in SUFFIXES]


def _children(folder: Path) -> list[Path]:
    """Return the contents of a folder, sorted, without hidden files such as ".DS_Store" or "._000.png"."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
