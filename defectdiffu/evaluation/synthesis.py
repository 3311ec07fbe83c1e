"""Two cheap baselines that make defect pictures: copy-paste and Perlin noise."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from defectdiffu.data.folder import Sample
from defectdiffu.evaluation.folders import check_count, load

OCTAVES = (4, 8, 16)  # grid cells along a side, from coarse to fine


class Pictures(NamedTuple):
    """images uint8 (N, S, S, 3); masks uint8 (N, S, S), 0 or 255; products (N,), their names."""

    images: np.ndarray
    masks: np.ndarray
    products: np.ndarray


def read(what: str, samples: Sequence[Sample], size: int) -> Pictures:
    """Load samples. Raises `InputError` for fewer than 2 with a defect; its message names them by `what`."""
    check_count(f"{what} pictures with a defect and its mask", sum(s.mask is not None for s in samples), 2)
    return Pictures(*load(samples, size), np.array([s.product for s in samples]))


def synthesise(real: Pictures, number: int, kind: str, rng: np.random.Generator) -> Pictures:
    """`number` pictures made from real ones: kind "copy_paste" or "perlin".

    The background is a defect-free picture of the product or, if there is none, one with a defect, which stays marked.
    """
    flawed = real.masks.any((1, 2))
    images, masks, products = [], [], []
    for _ in range(number):
        source = rng.choice(np.flatnonzero(flawed))
        alike = real.products == real.products[source]
        grounds = np.flatnonzero(alike & ~flawed) if (alike & ~flawed).any() else np.flatnonzero(alike)
        ground = rng.choice(grounds)
        if kind == "copy_paste":
            image, mask = copy_paste(real.images[ground], real.images[source], real.masks[source], rng)
        else:
            image, mask = perlin_defect(real.images[ground], rng.choice(real.images), rng)
        images.append(image)
        masks.append(np.maximum(mask, real.masks[ground]))
        products.append(real.products[ground])
    return Pictures(np.stack(images), np.stack(masks), np.array(products))


def copy_paste(
    normal: np.ndarray, defect: np.ndarray, mask: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Paste a real defect, with its mask, on a defect-free picture: rotated, mirrored and shifted at random.

    normal, defect uint8 (S, S, 3), mask uint8 (S, S). Returns (image, mask) of the same shapes; parts outside the
    picture are cut off.
    """
    turns, mirrored = int(rng.integers(4)), rng.random() < 0.5
    defect, mask = (np.rot90(p[:, ::-1] if mirrored else p, turns) for p in (defect, mask))
    rows, columns = np.nonzero(mask)
    size = len(mask)
    # The defect's centre goes to a random place in the middle half, where the product is.
    down, right = rng.integers(size // 4, size - size // 4, 2) - (int(rows.mean()), int(columns.mean()))
    inside = np.all([(p >= 0) & (p < size) for p in (rows + down, columns + right)], axis=0)
    rows, columns = rows[inside], columns[inside]
    image, pasted = normal.copy(), np.zeros_like(mask)
    image[rows + down, columns + right] = defect[rows, columns]
    pasted[rows + down, columns + right] = 255
    return image, pasted


def perlin_defect(normal: np.ndarray, texture: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Blend another picture into a defect-free one where Perlin noise is high, as DRAEM (Zavrtanik et al., ICCV 2021).

    normal, texture uint8 (S, S, 3); the texture is rotated and its channels are permuted. Returns (image, mask).
    """
    texture = np.rot90(texture, int(rng.integers(4)))[..., rng.permutation(3)]
    noise = sum((perlin(len(normal), cells, rng) / cells for cells in OCTAVES), start=np.zeros(()))
    marked = noise > np.quantile(noise, rng.uniform(0.85, 0.98))
    opacity = rng.uniform(0.3, 1.0)
    image = normal.copy()
    image[marked] = (1 - opacity) * normal[marked] + opacity * texture[marked]
    return image, marked.astype(np.uint8) * 255


def perlin(size: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """Gradient noise (size, size) around 0, with `cells` cells along a side."""
    angles = rng.uniform(0, 2 * np.pi, (cells + 1, cells + 1))
    gradients = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    y, x = np.indices((size, size)) * (cells / size)
    row, column = y.astype(int), x.astype(int)
    v, u = y - row, x - column
    fade_v, fade_u = (t**3 * (t * (6 * t - 15) + 10) for t in (v, u))

    def corner(i: int, j: int) -> np.ndarray:
        gradient = gradients[row + i, column + j]
        return gradient[..., 0] * (v - i) + gradient[..., 1] * (u - j)

    top = corner(0, 0) * (1 - fade_u) + corner(0, 1) * fade_u
    bottom = corner(1, 0) * (1 - fade_u) + corner(1, 1) * fade_u
    return top * (1 - fade_v) + bottom * fade_v
