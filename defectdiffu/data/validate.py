"""All problems of a folder of images at once, and everything doubtful."""

from pathlib import Path

from defectdiffu.data.folder import scan, with_white
from defectdiffu.data.image_files import Problem
from defectdiffu.data.warnings import Notice, find


def check_folder(root: str | Path) -> list[Problem]:
    """Return every problem of a folder in the MVTec AD layout, in the order of its files; empty if there is none.

    Reads every image completely. The problems are:

    - the folder is missing, empty, without read permission, or not in the layout;
    - an image or mask is truncated, unreadable, not an image, not a regular file, or too large to be read at once; a
      folder holds no images;
    - a defect image has no mask or two, or shares its name with another; a mask has no image;
    - a mask is empty, has another size than its image, or more than one nonzero value without being a soft mask.

    Good images need no mask, and one image of a defect is enough: neither is a problem.
    """
    return examine(root)[0]


def examine(root: str | Path, size: int = 256) -> tuple[list[Problem], list[Notice]]:
    """Return the problems (`check_folder`) and what is doubtful (`warnings.find`) about the files without one.

    size: side in pixels of the pictures that will be trained on.
    """
    items = list(scan(root, decode=True))
    problems = [item for item in items if isinstance(item, Problem)]
    broken = {problem.path for problem in problems}
    sound = [item for item in items if not isinstance(item, Problem) and not broken & {item.image, item.mask}]
    return problems, find(with_white(sound), size)
