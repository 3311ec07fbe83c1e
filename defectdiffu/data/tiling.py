"""Cuts large pictures into tiles: a small defect vanishes when its whole picture is scaled down for training.

The rule for slivers: neighbouring tiles overlap, and each owns its overlap up to the middle, so that every pixel of a
picture is owned by exactly one tile. A tile shows the defect if one of its own pixels is marked. A tile with marked
pixels only outside its own shows a sliver of a defect that its neighbour shows better: it is left out, and is not
counted as good.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
from PIL import ImageOps

from defectdiffu.config import GOOD
from defectdiffu.data.datasets import Item, count, place
from defectdiffu.data.folder import Sample, read_folder
from defectdiffu.data.image_files import opened, orientation, read_mask, to_rgb, turned
from defectdiffu.errors import InputError
from defectdiffu.files import building

SLIVER = "sliver"


@dataclass(frozen=True)
class Tile:
    """A square of a sample's upright image. left, top, side: in pixels; shows: the defect's folder, "good" or
    `SLIVER`."""

    sample: Sample
    left: int
    top: int
    side: int
    shows: str

    @property
    def item(self) -> Item:
        """Its place in the new folder. Its name holds its origin: `good` has tiles of pictures of all defects."""
        sample = self.sample
        name = f"{sample.original_defect}-{sample.image.stem}-{self.left}-{self.top}.png"
        return Item(sample.image.with_name(name), sample.mask, sample.product, self.shows, sample.subset)


def tile_folder(
    source: str | Path, out: str | Path, size: int = 256, overlap: int = 32, good: int = 100, seed: int = 0
) -> dict:
    """Cut a folder in the MVTec AD layout into tiles of `size` pixels: the new folder `out` in the same layout.

    Neighbours overlap by `overlap` pixels, the last of a row by more; a picture narrower than `size` gives tiles of
    its shorter side. All tiles with a defect are kept, and of the good ones `good` per product: the first by the
    SHA-256 of "seed/product/subset/name". Tiles are PNG files of 8 bits, with the white that training uses
    (`Sample.white`). One picture is held at a time: 4 bytes per pixel in colour, 1 or 2 in grey, and 3 for its mask.

    Returns {"tiles": {product: {defect: tiles}}, "good_left_out": tiles, "slivers_left_out": tiles}. Raises
    `InputError` for a bad source, an `out` that exists and an overlap not less than `size`; nothing is written then.
    """
    if not 0 <= overlap < size:
        raise InputError(f"the overlap is {overlap}: it must be from 0 to {size - 1}, less than the side of a tile")
    tiles: dict[bool, list[Tile]] = {True: [], False: []}  # good or not
    slivers = 0
    with building(Path(out)) as root:
        for sample in read_folder(source, limit=None):
            for tile in _cut(sample, size, overlap):
                if tile.shows == SLIVER:
                    slivers += 1
                else:
                    tiles[tile.shows == GOOD].append(tile)
        chosen = _choose(tiles[True], good, seed)
        kept = sorted(tiles[False] + chosen, key=lambda tile: str(tile.sample.image))
        for sample, group in groupby(kept, key=lambda tile: tile.sample):
            _write(sample, list(group), root)
    return {
        "tiles": count(tile.item for tile in kept),
        "good_left_out": len(tiles[True]) - len(chosen),
        "slivers_left_out": slivers,
    }


def _cut(sample: Sample, size: int, overlap: int) -> Iterator[Tile]:
    """The tiles of one sample, from the size of its image and its mask alone."""
    marked = _mask(sample)
    if marked is None:
        with opened(sample.image, limit=None) as image:
            width, height = image.size[::-1] if orientation(image) >= 5 else image.size
    else:
        height, width = marked.shape
    side = min(size, width, height)
    for top, above, below in _places(height, side, overlap):
        for left, before, behind in _places(width, side, overlap):
            if marked is None or not marked[top : top + side, left : left + side].any():
                shows = GOOD
            else:
                shows = sample.original_defect if marked[above:below, before:behind].any() else SLIVER
            yield Tile(sample, left, top, side, shows)


def _places(length: int, side: int, overlap: int) -> Iterator[tuple[int, int, int]]:
    """(start, first own pixel, first pixel no longer its own) of tiles along one axis, which they cover to its end."""
    step = side - min(overlap, side // 2)
    starts = [*range(0, length - side, step), length - side]
    middles = [(here + side + there) // 2 for here, there in pairwise(starts)]
    yield from zip(starts, [0, *middles], [*middles, length], strict=True)


def _choose(tiles: list[Tile], number: int, seed: int) -> list[Tile]:
    """`number` tiles of each product."""
    groups = defaultdict(list)
    for tile in tiles:
        item = tile.item
        rank = sha256(f"{seed}/{item.product}/{item.subset}/{item.image.name}".encode()).digest()
        groups[item.product].append((rank, tile))
    return [tile for group in groups.values() for _, tile in sorted(group, key=lambda entry: entry[0])[:number]]


def _mask(sample: Sample) -> np.ndarray | None:
    """Bool (H, W) of a sample's mask, upright; None for a good image."""
    if sample.mask is None:
        return None
    with opened(sample.mask, limit=None) as image:
        return turned(read_mask(image)[0], sample.mask_turn)


def _write(sample: Sample, tiles: list[Tile], root: Path) -> None:
    """Write the tiles of one sample below `root`."""
    marked = _mask(sample)
    with opened(sample.image, limit=None) as image:
        grey = image.mode in ("1", "L") or image.mode.startswith("I")
        if orientation(image) != 1:
            image = ImageOps.exif_transpose(image)
        for tile in tiles:
            right, bottom = tile.left + tile.side, tile.top + tile.side
            pixels = to_rgb(image.crop((tile.left, tile.top, right, bottom)), sample.white)
            part = None if marked is None or tile.shows == GOOD else marked[tile.top : bottom, tile.left : right]
            (pixels.convert("L") if grey else pixels).save(place(root, tile.item, part))
