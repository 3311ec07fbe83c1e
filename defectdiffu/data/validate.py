"""All problems of a folder of images at once."""

from pathlib import Path

from defectdiffu.data.folder import Problem, scan


def check_folder(root: str | Path) -> list[Problem]:
    """Return every problem of a folder in the MVTec AD layout, in the order of its files; empty if there is none.

    Reads every image completely. The problems are:

    - the folder is missing, empty, without read permission, or not in the layout;
    - an image or mask is truncated, unreadable, or not an image; a folder holds no images;
    - a defect image has no mask or two, or shares its name with another; a mask has no image;
    - a mask is empty, has another size than its image, or more than one nonzero value.

    Good images need no mask, and one image of a defect is enough: neither is a problem.
    """
    return [item for item in scan(root, decode=True) if isinstance(item, Problem)]
