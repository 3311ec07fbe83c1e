"""One file of a picture or of a mask, read into an array, whatever format and depth it has.

Everything that is wrong with a file is a `Problem` that names it.
"""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from defectdiffu.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
PIXELS = 179_000_000  # more are not read at once: in colour they take 0.7 GB; Pillow's limit is the same
DEPTHS = (8, 10, 12, 14, 16)  # bits of cameras whose pictures are stored with 16 bits
KINDS = 8  # a mask with more values has soft edges; with fewer, each may stand for a kind of defect
LOSSY = ("JPEG", "WEBP")  # compression adds values to the two of a mask


class Problem(InputError):
    """What is wrong with one file or folder: to be raised, or to be collected in a list.

    path     the file or folder, a `Path`
    message  what is wrong and what would be valid, one line without the path
    """

    def __init__(self, path: Path, message: str):
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


def load_image(path: str | Path, size: int, white: int | None = None) -> np.ndarray:
    """Return an image as uint8 (size, size, 3), RGB, rotated by its EXIF orientation.

    Grey, palette and CMYK images become RGB; 16-bit grey is scaled so that `white` (65535 unless given) becomes 255;
    transparent pixels become white. A non-square image is stretched to a square, and so is its mask. Resized by Lanczos
    with antialiasing.

    Raises `Problem`, an `InputError`, if the file cannot be read as an image.
    """
    return np.asarray(read_image(Path(path), white).resize((size, size), Image.Resampling.LANCZOS))


def read_image(path: Path, white: int | None = None) -> Image.Image:
    """Return an image in its own size, as `load_image` does otherwise."""
    with opened(path) as image:
        ImageOps.exif_transpose(image, in_place=True)  # no second copy of a large picture
        return to_rgb(image, white)


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
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("1", "L") or image.mode.startswith(("I", "F")):
        return np.asarray(image), lossy
    colours = np.asarray(to_rgb(image, backdrop="black"))  # a palette's indices have no meaning, 0 may be white
    if lossy or (colours == colours[..., :1]).all():
        return colours.max(axis=-1), lossy
    return colours.astype(int) @ [65536, 256, 1], lossy


def is_two_valued(values: np.ndarray) -> bool:
    """Whether a mask has at most one value beside 0."""
    return bool(np.all(values[values != 0] == values.max()))


def is_soft(values: np.ndarray, lossy: bool) -> bool:
    """Whether a mask of more than two values has soft edges: too many values for kinds of defect, or a lossy format's,
    and three quarters of its pixels nearly black or white, which no photograph has."""
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
    """Open an image of at most `limit` pixels (None: any); any error while it is open becomes a `Problem` of this
    path."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
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


def check_file_name(path: Path) -> None:
    """Raise `Problem` for a name that does not stay one line, or that is not UTF-8: digests are made of names."""
    if not path.name.isprintable():
        raise Problem(
            path, "its name has a line break, an unprintable character or bytes that are not UTF-8: rename it"
        )


def _any_size(path: Path) -> Image.Image:
    """Open an image without Pillow's limit, whose message does not give the size."""
    theirs, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        return Image.open(path)
    finally:
        Image.MAX_IMAGE_PIXELS = theirs


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) to 8, from the header alone; Pillow itself turns TIFF files upright."""
    return image.getexif().get(ExifTags.Base.Orientation, 1) if "exif" in image.info else 1


def white_of(image: Image.Image) -> int | None:
    """Return the white of a 16-bit image: of the fewest bits of `DEPTHS` that hold all its values; else None."""
    if not image.mode.startswith("I"):
        return None
    brightest = np.asarray(image).max()
    return next((2**bits - 1 for bits in DEPTHS if brightest < 2**bits), 65535)
