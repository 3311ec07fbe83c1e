"""Converts folders in other layouts, recognised by a table of rules, into the MVTec AD layout.

The names of a file's folders, in any case, say what the file is (`WORDS`): `Train/Good`, `test/ok`, `gt`, `mask`. A
folder that contains such folders is a product, at any depth; the remaining part of a path below it is the name of the
defect. Masks are found by their names (`NAMINGS`), and all masks of one picture are united.
"""

import re
import shutil
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from defectdiffu.config import GOOD
from defectdiffu.data.archives import check_room
from defectdiffu.data.datasets import Item, count, place
from defectdiffu.data.image_files import SUFFIXES, Problem, is_soft, is_two_valued, mask_values, opened, to_rgb
from defectdiffu.errors import InputError
from defectdiffu.files import building

WORDS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation"),
    "good": ("good", "ok", "normal"),
    "mask": ("ground_truth", "groundtruth", "gt", "mask", "masks", "label", "labels"),
    "image": ("image", "images", "img"),
    "bad": ("bad", "ko", "ng", "defect", "defective", "anomaly"),  # stays the defect's name
}
ROLES = {word: role for role, words in WORDS.items() for word in words}

ENDING = r"[_-](?:mask|gt|label)"
NAMINGS = (  # how masks are named, and the picture's name that follows from a mask's path; the first that fits is used
    ("a folder of masks per picture", lambda path: path.parent.name),
    ("masks named as their picture", lambda path: path.stem),
    ("masks named as their picture with _mask, _GT or _label", lambda path: _before(f"{ENDING}$", path.stem)),
    ("several masks per picture, numbered", lambda path: _before(rf"(?:{ENDING}[_-]?|[_-])\d+$", path.stem)),
    ("several masks per picture, numbered", lambda path: _before(rf"[_-]\d+{ENDING}$", path.stem)),
)


def _before(pattern: str, stem: str) -> str:
    return re.sub(pattern, "", stem, flags=re.IGNORECASE)


@dataclass
class Picture:
    """A picture that was found. defect: the name of its folder, "good", or None if no folder says."""

    path: Path
    product: str
    subset: str | None
    defect: str | None
    masks: list[Path] = field(default_factory=list)


def adopt(
    source: Path, out: Path, binarise: bool = False, invert: bool = False, white: int | None = None
) -> dict[str, dict]:
    """Write the folder `source` in the MVTec AD layout into the new folder `out`: all of it, or nothing.

    binarise: masks with more than two values become two: soft edges are cut at half the brightest value, and every kind
    of defect counts as defect. invert: black is the defect. white: the value of 16-bit pictures that becomes white;
    they are written with 8 bits. Other pictures stay as they are, byte for byte. A picture in no folder of good or bad
    ones is good if its mask is empty.

    Returns {"pictures": {product: {defect: pictures}}, "taken": {folder: what for}, "masks": {naming: masks},
    "left_out": {file: why}}. Raises `InputError` that names the file: nothing is recognised, a picture of a defect has
    no mask, a mask has more than two values, masks of one picture differ in size, a mask fits two pictures.
    """
    if not source.is_dir():
        raise InputError(f"{source}: there is no such folder; an archive must be unpacked first")
    summary: dict[str, dict] = {"pictures": {}, "taken": {}, "masks": {}, "left_out": {}}
    pictures = find(source, summary)
    with building(out) as root:
        check_room(out.parent, sum(picture.path.stat().st_size for picture in pictures), str(out))
        items = []
        for picture in pictures:
            marked = _unite(picture.masks, binarise, invert)
            item = _item(picture, marked)
            items.append(item)
            _copy(picture.path, place(root, item, marked if item.defect != GOOD else None), white)
    return summary | {"pictures": count(items)}


def find(source: Path, summary: dict[str, dict]) -> list[Picture]:
    """Return the pictures below `source` with their masks; write into `summary` what was taken for what."""
    pictures, masks = [], []
    taken: Counter[tuple[str, str]] = Counter()
    for home in _homes(source) or [source]:
        product = home.absolute().name
        files = []
        for path in _pictures(home):
            if path.is_file():
                files.append(path)
            else:
                summary["left_out"][str(path)] = "not a regular file"
        stems = {(path.parent, path.stem) for path in files}
        for path in files:
            names = path.parent.relative_to(home).parts
            roles = [ROLES.get(name.lower()) for name in names]
            rest = [name for name, role in zip(names, roles, strict=True) if role in (None, "bad")]
            if "mask" in roles or _is_beside_its_picture(path, stems):
                masks.append((product, rest, path))
                what = f"masks of {product}"
            else:
                subset = next((role for role in roles if role in ("train", "test")), None)
                defect = GOOD if "good" in roles else rest[0] if rest else None
                pictures.append(Picture(path, product, subset, defect))
                what = f"pictures of {product}: {defect or 'good if their mask is empty'}"
            taken[str(path.parent.relative_to(source)), what] += 1
    if not pictures:
        raise Problem(source, f"no pictures below it; allowed are {' '.join(SUFFIXES)}")
    for (folder, what), number in sorted(taken.items()):
        line = f"{number} {what}"
        summary["taken"][folder] = f"{summary['taken'][folder]}; {line}" if folder in summary["taken"] else line
    _give(masks, pictures, summary)
    return pictures


def _homes(folder: Path, above: frozenset[Path] = frozenset()) -> list[Path]:
    """The topmost folders that have folders with words of `WORDS` in them: the products. above: the folders around."""
    if folder.resolve() in above:  # a link back
        return []
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if any(path.name.lower() in ROLES for path in folders):
        return [folder]
    return [home for path in folders for home in _homes(path, above | {folder.resolve()})]


def _pictures(folder: Path) -> list[Path]:
    """Everything below a folder that is named as a picture, sorted, nothing hidden."""
    files = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.is_dir())
    return sorted(p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def _is_beside_its_picture(path: Path, stems: set[tuple[Path, str]]) -> bool:
    """Whether a file is a mask by its ending and lies in the folder of its picture. stems: (folder, stem) of all."""
    if not re.search(ENDING, path.stem, re.IGNORECASE):
        return False
    told = {tell(path) for _, tell in NAMINGS[2:]} - {path.stem}
    return any((path.parent, stem) in stems for stem in told)


def _give(masks: list[tuple[str, list[str], Path]], pictures: list[Picture], summary: dict[str, dict]) -> None:
    """Assign every mask (product, names of its folders, file) to its picture."""
    named, defects = defaultdict(list), defaultdict(set)
    namings: Counter[str] = Counter()
    for picture in pictures:
        if picture.defect != GOOD:
            named[picture.product, picture.path.stem].append(picture)
            defects[picture.product].add((picture.defect or "").lower())
    for product, folders, path in masks:
        of_defect = {folder.lower() for folder in folders} & defects[product]
        for naming, tell in NAMINGS:
            found = [p for p in named[product, tell(path)] if not of_defect or (p.defect or "").lower() in of_defect]
            found = [p for p in found if p.path.parent == path.parent] or found
            if len(found) > 1:
                raise Problem(path, f"fits two pictures, {found[0].path} and {found[1].path}: put it into a folder")
            if found:
                found[0].masks.append(path)
                namings[naming] += 1
                break
        else:
            summary["left_out"][str(path)] = "a mask of no picture with a defect"
    summary["masks"] = dict(namings)


def _unite(masks: list[Path], binarise: bool, invert: bool) -> np.ndarray | None:
    """Bool (H, W), true where any of a picture's masks marks the defect; None if it has no mask."""
    united = None
    for path in masks:
        with opened(path) as image:
            values, lossy = mask_values(image)
            if not binarise and not is_two_valued(values):
                raise ValueError(
                    f"the mask has {len(np.unique(values))} values, not 0 and one other: "
                    "--binarise cuts soft edges at half the brightest value and counts every kind of defect as defect"
                )
            soft = not is_two_valued(values) and is_soft(values, lossy)
            marked = values >= values.max() / 2 if soft else values != 0
        if united is not None and united.shape != marked.shape:
            raise Problem(path, f"another size than {masks[0].name}, a mask of the same picture")
        marked = ~marked if invert else marked
        united = marked if united is None else united | marked
    return united


def _item(picture: Picture, marked: np.ndarray | None) -> Item:
    """The place of a picture. Its mask decides only if no folder does."""
    defect = picture.defect
    if marked is None:
        if defect is None:
            raise Problem(picture.path, f"neither in a folder named {', '.join(WORDS['good'])} nor with a mask")
        if defect != GOOD:
            raise Problem(picture.path, f"no mask; they are looked for in folders named {', '.join(WORDS['mask'])}")
    elif defect is None:
        defect = "defect" if marked.any() else GOOD
    elif defect != GOOD and not marked.any():
        raise Problem(picture.masks[0], "the mask is empty: mark the defect, or move the image to the good ones")
    subset = "test" if defect != GOOD else picture.subset or "train"
    return Item(picture.path, None, picture.product, defect, subset)


def _copy(source: Path, target: Path, white: int | None) -> None:
    """Copy a picture as it is; with `white`, one of 16 bits becomes a PNG of 8 bits."""
    if white is not None:
        with opened(source) as image:
            if image.mode.startswith("I"):
                to_rgb(image, white).convert("L").save(target.with_suffix(".png"), exif=image.getexif())
                return
    shutil.copyfile(source, target)
