"""Files of the pictures that get a defect, and of the masks that say where it goes."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from defectdiffu.data.image_files import SUFFIXES, Problem, opened, read_image, read_mask
from defectdiffu.errors import InputError

MASK_ENDINGS = ("", "_mask")  # of a mask's name after the name of its picture


class Given(NamedTuple):
    """A picture and its mask, if there is one."""

    picture: Path
    place: Path | None

    def read(self) -> tuple[Image.Image, Image.Image | None]:
        """The picture, RGB and upright, and the mask, 0 or 255. Raises `Problem` for a file that cannot be read."""
        if self.place is None:
            return read_image(self.picture), None
        with opened(self.place) as mask:
            marked, _ = read_mask(mask)
        return read_image(self.picture), Image.fromarray(marked)

    def digest(self) -> list[str]:
        """The names of the files, each with a hash of its content."""
        found = []
        for file in self:
            if file is not None:
                with file.open("rb") as content:
                    found += [str(file), hashlib.file_digest(content, "sha256").hexdigest()[:16]]
        return found


def given_files(on: Path, where: Path | None) -> list[Given]:
    """The picture `on`, or those of the folder `on` in the order of their names, and their masks.

    where: a mask, for all pictures, or a folder with a mask for each: NAME or NAME_mask, of any format. Raises
    `InputError` where there is no picture, or one without a mask.
    """
    pictures = sorted(f for f in on.iterdir() if is_picture(f)) if on.is_dir() else [on]
    if not pictures:
        raise InputError(f"{on} holds no picture: name a picture, or a folder with {', '.join(SUFFIXES)} files")
    if lost := [file for file in pictures if not file.is_file()]:
        raise Problem(lost[0], "there is no such picture or folder")
    if where is None:
        return [Given(picture, None) for picture in pictures]
    if where.is_file():
        return [Given(picture, where) for picture in pictures]
    if not where.is_dir():
        raise Problem(where, "there is no such mask or folder")
    masks = {file.stem: file for file in sorted(where.iterdir()) if is_picture(file)}
    found = [next((masks[p.stem + e] for e in MASK_ENDINGS if p.stem + e in masks), None) for p in pictures]
    if lacking := [p.name for p, mask in zip(pictures, found, strict=True) if mask is None]:
        raise InputError(
            f"{where} has no mask for {', '.join(lacking[:3])}: masks have their picture's name, or it with _mask"
        )
    return [Given(*pair) for pair in zip(pictures, found, strict=True)]


def is_picture(file: Path) -> bool:
    return file.is_file() and file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
