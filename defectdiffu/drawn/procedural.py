"""The procedural benchmark: any product with any defect at any strength, and the same picture without it.

    image, mask, normal = render("hazelnut", "crack", strength=0.7, seed=0)

`image` and `normal` differ only in the defect, whose strength and place are known: so a model trained on these pictures
can be measured against the ground truth.
"""

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage.transform import resize_local_mean
from tqdm.auto import tqdm

from defectdiffu.drawn.defects import bent, broken, color, contamination, crack, cut, hole, liquid, scratch, thread
from defectdiffu.drawn.hardware import metal_nut, screw, zipper
from defectdiffu.drawn.objects import bottle, capsule, hazelnut, pill
from defectdiffu.drawn.surfaces import Array, shade
from defectdiffu.drawn.textures import carpet, grid, leather, tile, wood
from defectdiffu.drawn.workers import spread
from defectdiffu.errors import InputError, check_choice, check_number
from defectdiffu.files import read_json, write_atomically, write_json

LARGEST_SIZE = 4096
SEEDS_PER_SET = 10**6
MOST_WORKERS = 1024
LARGEST_SET_SEED = 10**6  # the judge and the measures use specimens beyond

PRODUCTS = {
    f.__name__: f
    for f in (carpet, grid, leather, tile, wood, bottle, capsule, hazelnut, metal_nut, pill, screw, zipper)
}
DEFECTS = {f.__name__: f for f in (scratch, crack, hole, cut, color, liquid, contamination, broken, bent, thread)}

# The realistic pairs; `render` can render the others, too.
PAIRS = {
    "carpet": ("hole", "cut", "color", "liquid", "contamination", "thread"),
    "grid": ("liquid", "contamination", "broken", "bent", "thread"),
    "leather": ("scratch", "hole", "cut", "color", "liquid", "thread"),
    "tile": ("scratch", "crack", "color", "liquid", "contamination", "broken"),
    "wood": ("scratch", "crack", "hole", "cut", "color", "liquid"),
    "bottle": ("crack", "liquid", "contamination", "broken"),
    "capsule": ("scratch", "crack", "hole", "color", "bent"),
    "hazelnut": ("scratch", "crack", "hole", "cut", "contamination", "broken"),
    "metal_nut": ("scratch", "color", "liquid", "bent", "broken"),
    "pill": ("scratch", "crack", "hole", "color", "contamination", "broken"),
    "screw": ("scratch", "liquid", "contamination", "bent", "thread"),
    "zipper": ("cut", "color", "broken", "bent", "thread"),
}
# Never in a training set: training shows the defect only on other products (zero-shot transfer).
HELD_OUT = (
    ("carpet", "contamination"),
    ("wood", "crack"),
    ("hazelnut", "scratch"),
    ("metal_nut", "liquid"),
    ("pill", "broken"),
    ("zipper", "thread"),
)

DRAWN = 256  # the smallest size that is rendered; smaller pictures are averaged down from it
FEW = 32  # pictures of this size are rendered in the time in which workers start


class Rendered(NamedTuple):
    """image (S, S, 3) uint8; mask (S, S) uint8, 0 or 255; normal (S, S, 3) uint8, the image without the defect."""

    image: Array
    mask: Array
    normal: Array


def _stream(seed: int, *names: str) -> np.random.Generator:
    """Random numbers that depend only on the seed and the names."""
    return np.random.default_rng([seed, *(crc32(name.encode()) for name in names)])


def _to_uint8(picture: Array) -> Array:
    return np.round(255 * picture).astype(np.uint8)


def render(product: str, defect: str, strength: float = 0.5, seed: int = 0, size: int = DRAWN) -> Rendered:
    """Render one specimen of `product`, with `defect` (or "good" for none) and without.

    The specimen, its pose and its light depend on (product, seed); the defect's place and shape on
    (product, defect, seed). So with everything else fixed, a higher `strength` in [0, 1] only makes the defect grow.
    One seed gives the same scene at every `size` (pixels, at least 16). Raises `InputError` for bad input.
    """
    check_choice("product", product, PRODUCTS)
    check_choice("defect", defect, ["good", *DEFECTS])
    if not 0 <= strength <= 1:
        raise InputError(f"strength is {strength}: it must lie in [0, 1]")
    if size < 16:
        raise InputError(f"size is {size}: it must be at least 16 pixels")
    if seed < 0:
        raise InputError(f"seed is {seed}: it must be 0 or more")

    intact, light = PRODUCTS[product](_stream(seed, product), max(size, DRAWN))
    normal = shade(intact, light, _stream(seed, product, "sensor"))
    if defect == "good":
        image, touched = normal, np.zeros_like(intact.height)
    else:
        damaged, touched = DEFECTS[defect](intact, _stream(seed, product, defect), strength)
        image = shade(damaged, light, _stream(seed, product, "sensor"))
    touched = (touched >= 0.5).astype(np.float32)
    if size < DRAWN:
        image, touched, normal = (resize_local_mean(p, (size, size)) for p in (image, touched, normal))
    # A pixel is marked if about a third of it is touched, so that thin marks survive; at least the fullest is marked.
    mask = (touched >= min(0.35, touched.max())) & (touched > 0)
    return Rendered(_to_uint8(image), 255 * mask.astype(np.uint8), _to_uint8(normal))


def write_dataset(
    out: str | Path,
    products: Iterable[str] | None = None,
    defects: Iterable[str] | None = None,
    per_pair: int = 10,
    size: int = DRAWN,
    seed: int = 0,
    held_out: bool = False,
    good: int | None = None,
    workers: int = 1,
) -> None:
    """Write the few-shot set in MVTec AD's layout: the pairs of `PAIRS` among the given products and defects.

        out/<product>/train/good/000.png ...                       `good` defect-free specimens (10 * per_pair)
        out/<product>/test/<defect>/000.png ...                    per_pair images, strength uniform in [0.25, 1]
        out/<product>/ground_truth/<defect>/000_mask.png ...       their masks

    No specimen appears twice. Pairs in `HELD_OUT` are left out; with `held_out=True` only these are written,
    without defect-free specimens. A call that was stopped resumes when repeated. workers: processes that render, see
    `spread`; the files do not depend on it. Raises `InputError` for unknown names, for a choice without any pair, for
    numbers out of range, if a worker was killed, and if `out` holds anything but the same call's pictures.
    """
    out = Path(out)
    good = 10 * per_pair if good is None else good
    for what, value, low, high in (
        ("size", size, 16, LARGEST_SIZE),
        ("per_pair", per_pair, 1, SEEDS_PER_SET),
        ("good", good, 1, SEEDS_PER_SET),
        ("seed", seed, 0, LARGEST_SET_SEED),
        ("workers", workers, 1, MOST_WORKERS),
    ):
        check_number(what, value, low, high)
    products = [check_choice("product", p, PRODUCTS) for p in (PRODUCTS if products is None else products)]
    defects = [check_choice("defect", d, DEFECTS) for d in (DEFECTS if defects is None else defects)]
    pairs = [(p, d) for p in products for d in PAIRS[p] if d in defects and ((p, d) in HELD_OUT) == held_out]
    if not pairs:
        raise InputError(f"no pair to write among products {', '.join(products)} and defects {', '.join(defects)}")
    # As long as this file is there, the folder is not complete.
    marker, settings = out / ".rendering.json", {"pairs": pairs, "per_pair": per_pair, "good": good}
    settings = json.loads(json.dumps(settings | {"size": size, "seed": seed}))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not marker.is_file():
            raise InputError(f"{out} exists and is not empty: name a new folder")
        if read_json(marker, "name a new folder") != settings:
            raise InputError(f"{out} holds a rendering that was stopped, with other settings: name a new folder")
    write_json(marker, settings)

    sets = pairs if held_out else [(p, "good") for p in dict.fromkeys(products)] + pairs
    kinds = ["good", *DEFECTS]
    tasks = []
    for product, defect in sets:
        images = out / product / ("train" if defect == "good" else "test") / defect
        masks = out / product / "ground_truth" / defect
        # Every set has its own block of seeds, so no two sets share a specimen.
        block = (seed * len(PRODUCTS) + list(PRODUCTS).index(product)) * len(kinds) + kinds.index(defect)
        for i in range(good if defect == "good" else per_pair):
            mask = None if defect == "good" else masks / f"{i:03d}_mask.png"
            tasks.append((images / f"{i:03d}.png", mask, product, defect, block * SEEDS_PER_SET + i, size))
    missing = [task for task in tasks if not task[0].is_file()]
    with tqdm(total=len(tasks), initial=len(tasks) - len(missing), unit="image") as progress:
        for _ in spread(_write, missing, sensible(workers, len(missing), size)):
            progress.update()
    marker.unlink()


def _write(image_file: Path, mask_file: Path | None, product: str, defect: str, specimen: int, size: int) -> None:
    strength = _stream(specimen, "strength").uniform(0.25, 1)
    image, mask, _ = render(product, defect, strength, specimen, size)
    if mask_file is not None:
        write_atomically(mask_file, partial(Image.fromarray(mask).save, format="png"))
    write_atomically(image_file, partial(Image.fromarray(image).save, format="png"))  # last: both are there


def sensible(workers: int, count: int, size: int) -> int:
    """One worker for so few pictures that starting more would take longer than rendering, else `workers`."""
    return workers if count * max(size, DRAWN) ** 2 > FEW * DRAWN**2 else 1


def contact_sheet(picture: Callable[[str, str], Image.Image] | None = None) -> Image.Image:
    """Every product (rows) with each of its defects (columns, "good" first); held-out pairs are framed.

    picture(product, defect): the picture to show, all of one size; by default it is rendered.
    """
    picture = picture or (lambda product, defect: Image.fromarray(render(product, defect, 0.7, 0, 128).image))
    pictures = {(p, d): picture(p, d) for p, found in PAIRS.items() if p in PRODUCTS for d in ("good", *found)}
    width, height = next(iter(pictures.values())).size
    kinds, gap, left, top = ["good", *DEFECTS], 4, max(width, 128), height // 3
    sheet = Image.new("RGB", (left + (width + gap) * len(kinds), top + (height + gap) * len(PRODUCTS)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(height // 6)
    for column, defect in enumerate(kinds):
        draw.text((left + column * (width + gap) + width / 2, top / 2), defect, fill="black", font=font, anchor="mm")
    for row, product in enumerate(PRODUCTS):
        y = top + row * (height + gap)
        draw.text((left - 8, y + height / 2), product, fill="black", font=font, anchor="rm")
        for column, defect in enumerate(kinds):
            x = left + column * (width + gap)
            if (product, defect) not in pictures:
                draw.rectangle((x, y, x + width - 1, y + height - 1), fill=(238, 238, 238))
                continue
            sheet.paste(pictures[product, defect], (x, y))
            if (product, defect) in HELD_OUT:
                draw.rectangle((x - 3, y - 3, x + width + 2, y + height + 2), outline=(220, 60, 20), width=3)
    return sheet
