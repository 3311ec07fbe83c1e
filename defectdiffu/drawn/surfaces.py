"""The parts of a rendered picture: a surface with height and reflectance, noise to shape it, and light.

Lengths are in units of half the picture's width: x and y run from -1 (left, top) to 1 (right, bottom),
so a surface looks the same at every size. A defect changes the *surface*; the intact and the damaged surface
are then lit by the same light, which makes the two pictures an exact counterfactual pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

Array = np.ndarray
Number = float | np.floating


@dataclass
class Surface:
    """A product before shading. All maps are float32 (H, W) unless noted.

    albedo      (H, W, 3) linear reflectance of the product in [0, 1]
    height      relief towards the camera, in units of half the picture's width; the base level is 0
    gloss       strength of the highlight in [0, 1]: 0 chalk, 0.3 varnish, 1 mirror
    sharpness   exponent of the highlight: 8 a wide sheen, 80 a small bright spot (a number or a map)
    metallic    how much of the colour comes from reflected surroundings in [0, 1]; 0 for all but bare metal
    part        coverage by the product in [0, 1], soft over about a pixel at the outline; 1 everywhere on a texture
    background  (H, W, 3) linear colour behind the product
    inside      (3,) linear colour of the material under the skin, visible in a hole, a cut or a chip
    axis        direction along which the product runs (grain, shank, tape), radians, 0 = to the right
    room        where a defect may be centred, >= 0: away from the outline, on the visible side
    thickness   the maximum depth of a hole, in units of half the picture's width (a number)
    """

    albedo: Array
    height: Array
    gloss: Array
    part: Array
    background: Array
    inside: Array
    room: Array
    metallic: Array = field(default_factory=lambda: np.zeros(0))  # default: 0 everywhere
    sharpness: float | Array = 20.0
    axis: float = 0.0
    thickness: float = 0.1

    def __post_init__(self) -> None:
        if not self.metallic.size:
            self.metallic = np.zeros_like(self.height)

    @property
    def size(self) -> int:
        return self.height.shape[0]

    def copy(self) -> "Surface":
        maps: dict[str, Any] = {k: v.copy() for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return replace(self, **maps)


@dataclass(frozen=True)
class Light:
    """A distant lamp and ambient light. Sampled once per picture, the same with and without the defect."""

    azimuth: float = -2.2  # direction of the lamp, radians, 0 = from the right; the default is upper left
    elevation: float = 0.9  # above the surface, radians
    key: float = 0.8  # strength of the lamp
    ambient: float = 0.35  # strength of the ambient light
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    noise: float = 0.006  # standard deviation of the sensor's noise, as a share of full scale
    vignette: float = 0.06  # loss of light in the corners


def coordinates(size: int) -> tuple[Array, Array]:
    """x and y of the pixel centres, each (size, size) float32 in (-1, 1)."""
    centres = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
    return np.meshgrid(centres, centres)


def rotate(x: Array, y: Array, angle: float, centre: Sequence[float] | Array = (0.0, 0.0)) -> tuple[Array, Array]:
    """Coordinates in a frame placed at `centre` and turned by `angle`: u along the frame's axis, v across it."""
    dx, dy = x - centre[0], y - centre[1]
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * dx + s * dy, -s * dx + c * dy


def smoothstep(edge0: float, edge1: float, value: Array) -> Array:
    """0 below edge0, 1 above edge1 (edge0 may be the greater), smooth between."""
    s = np.clip((value - edge0) / (edge1 - edge0), 0, 1)
    return (s * s * (3 - 2 * s)).astype(np.float32)


def inside_of(distance: Array, size: int) -> Array:
    """Coverage in [0, 1] of the region where a signed distance is negative, soft over a pixel and a half."""
    half = 1.5 / size
    return smoothstep(half, -half, distance)


def blur(values: Array, radius: float) -> Array:
    """Gaussian blur of a map (or of each channel); radius is the standard deviation in half picture widths."""
    sigma = radius * values.shape[0] / 2
    return gaussian_filter(values, (sigma, sigma, 0)[: values.ndim], mode="nearest", truncate=3)


def _interpolation(size: int, cells: int, offset: float) -> Array:
    """(size, cells + 4) matrix of cubic B-spline weights that stretch a lattice of cells + 4 nodes over the picture."""
    position = (np.arange(size) + 0.5) / size * cells + offset
    index = position.astype(int)
    f = position - index
    weights = np.stack([(1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, -3 * f**3 + 3 * f**2 + 3 * f + 1, f**3], 1) / 6
    matrix = np.zeros((size, cells + 4), np.float32)
    for k in range(4):
        matrix[np.arange(size), index + k] += weights[:, k]
    return matrix


def noise(
    rng: np.random.Generator, size: int, cells: int | tuple[int, int], octaves: int = 1, gain: float = 0.5
) -> Array:
    """Smooth random relief, (size, size) float32, mean about 0, standard deviation 1.

    cells: number of nodes of random height across the picture; (rows, columns) for stretched noise, so
    (4, 60) gives streaks from top to bottom and (60, 4) streaks from left to right. Each further octave has
    twice as many nodes and is `gain` times as strong.
    """
    rows, columns = (cells, cells) if isinstance(cells, int) else cells
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        r, c = rows * 2**octave, columns * 2**octave
        lattice = rng.standard_normal((r + 4, c + 4)).astype(np.float32)
        offset = rng.random(2)
        layer = _interpolation(size, r, offset[0]) @ lattice @ _interpolation(size, c, offset[1]).T
        total += gain**octave * layer
    return total / (total.std() + 1e-6)


def mix(a: Number | Array, b: Number | Array, weight: Number | Array) -> Array:
    """a where weight is 0, b where it is 1; a number, a colour (3,) or a map (H, W[, 3]); weight a number or (H, W)."""
    a, b, weight = np.asarray(a, np.float32), np.asarray(b, np.float32), np.asarray(weight)
    if max(a.ndim, b.ndim) == 3 or a.shape == (3,) or b.shape == (3,):
        weight = weight[..., None]
    return a + (b - a) * weight


def srgb(r: float, g: float, b: float) -> Array:
    """Linear colour of an 8-bit screen colour, so that palettes can be taken from photographs."""
    return ((np.array([r, g, b], np.float32) / 255) ** 2.2).astype(np.float32)


def normals(height: Array) -> Array:
    """Unit normals (H, W, 3) of a relief: x to the right, y down, z to the camera."""
    step = 2 / height.shape[0]
    gy, gx = np.gradient(height, step)
    n = np.stack([-gx, -gy, np.ones_like(gx)], -1)
    return n / np.sqrt((n * n).sum(-1, keepdims=True))


def shade(surface: Surface, light: Light, rng: np.random.Generator) -> Array:
    """Shade a surface: (H, W, 3) float32 in [0, 1], for the screen (sRGB, gamma 2.2).

    Lambert's law for the body, Blinn-Phong for the highlight, reflected surroundings for metal, darker
    hollows from the height relative to its neighbourhood, a soft shadow of the part on its background. `rng` draws
    the sensor's noise, the same number of values for every surface.
    """
    size = surface.size
    n = normals(surface.height)
    ce = np.cos(light.elevation)
    lamp = np.array([np.cos(light.azimuth) * ce, np.sin(light.azimuth) * ce, np.sin(light.elevation)], np.float32)
    half = lamp + np.array([0, 0, 1], np.float32)
    half /= np.linalg.norm(half)

    hollow = blur(surface.height, 0.04) - surface.height  # > 0 in a hollow
    openness = np.clip(1 - 6 * np.maximum(hollow, 0), 0.25, 1)
    diffuse = light.ambient * openness + light.key * np.maximum(n @ lamp, 0) * (0.5 + 0.5 * openness)
    highlight = surface.gloss * np.maximum(n @ half, 0) ** surface.sharpness * light.key * openness
    # Metal reflects a bright ceiling, a dark bench and a window.
    mirror = 0.55 - 0.75 * n[..., 1] + 0.35 * np.cos(7 * n[..., 0] + light.azimuth) * (1 - n[..., 2])
    body = surface.albedo * diffuse[..., None]
    mirror = np.clip(mirror, 0.05, 1.6) * (0.45 + 0.55 * openness)
    body = mix(body, surface.albedo * mirror[..., None], surface.metallic)
    lit = body + highlight[..., None]

    # The part's shadow is on the side away from the lamp.
    shift = round(0.03 * size)
    down, right = int(-np.sin(light.azimuth) * shift), int(-np.cos(light.azimuth) * shift)
    shadow = np.pad(surface.part, shift, "edge")[shift - down :, shift - right :][:size, :size]
    shadow = blur(shadow, 0.04)
    bench = (light.ambient + light.key * np.sin(light.elevation)) * (1 - 0.45 * shadow)
    behind = surface.background * bench[..., None]
    picture = mix(behind, lit, surface.part) * np.array(light.tint, np.float32)

    x, y = coordinates(size)
    picture *= (1 - light.vignette * (x * x + y * y))[..., None]
    picture = np.clip(picture, 0, 1) ** (1 / 2.2)
    picture += rng.normal(0, light.noise, picture.shape).astype(np.float32)
    return np.clip(picture, 0, 1)
