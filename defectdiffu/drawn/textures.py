"""Five textures that fill the picture: carpet, grid, leather, tile and wood, each a function of a random generator.

Every function makes one specimen of the same product: the weave, the pebbles or the grain, the colour, a small
rotation and the lamp change from call to call, as between photographs of one data set.
"""

from typing import Any

import numpy as np

from defectdiffu.drawn.surfaces import Light, Surface, coordinates, inside_of, mix, noise, rotate, smoothstep, srgb

Array = np.ndarray


def _light(rng: np.random.Generator, azimuth: float, elevation: float, **settings: float) -> Light:
    """The product's usual lamp with small random changes of position, brightness and colour."""
    warmth = rng.uniform(-0.012, 0.012)
    return Light(
        azimuth=azimuth + rng.uniform(-0.3, 0.3),
        elevation=elevation + rng.uniform(-0.08, 0.08),
        tint=tuple(rng.uniform(0.9, 1.05) * np.array([1 + warmth, 1, 1 - warmth])),
        **settings,
    )


def _room(size: int) -> Array:
    """1 in the middle, falling to 0 over the last 0.25 before the picture's border."""
    x, y = coordinates(size)
    return smoothstep(0, 0.25, 1 - np.maximum(np.abs(x), np.abs(y)))


def _sheet(albedo: Array, height: Array, gloss: float, behind: Array, **rest: Any) -> Surface:
    """A product that fills the picture, with constant gloss and a background of one colour."""
    size = height.shape[0]
    return Surface(
        albedo=albedo,
        height=height,
        gloss=np.full_like(height, gloss),
        part=np.ones_like(height),
        background=np.broadcast_to(behind, albedo.shape).copy(),
        room=_room(size),
        **rest,
    )


def _colour(rng: np.random.Generator, rgb: tuple[int, int, int], spread: float = 0.06) -> Array:
    """A screen colour made linear, with small random changes of brightness and hue."""
    return srgb(*rgb) * np.exp(rng.normal(0, spread) + rng.normal(0, spread / 4, 3)).astype(np.float32)


def _strand(position: Array, along: Array, turn: int) -> tuple[Array, Array, Array]:
    """Parallel strands of a plain weave at integer `position`, which cross the other strands at integer `along`.

    `turn` is 1 for one set of strands and -1 for the other, so that where one goes over, the other goes under.
    Returns each pixel's strand number (int), its distance from that strand's middle in [-0.5, 0.5], and the strand's
    rise: 1 where it passes over a crossing strand, -1 where it passes under one.
    """
    number = np.rint(position).astype(np.int16)
    rise = turn * np.cos(np.float32(np.pi) * along) * (1 - 2 * (number & 1))
    return number, position - number, rise


def _round(distance: Array) -> Array:
    """Height of a half-round bar, 1 in the middle and 0 from distance 1 on."""
    return np.sqrt(np.maximum(1 - distance * distance, 0))


def _cell_border(rng: np.random.Generator, x: Array, y: Array, pitch: float) -> Array:
    """Distance to the second nearest of scattered points minus that to the nearest, in pitches: 0 on a cell border."""
    count = int(3.2 / pitch)
    across, down = np.meshgrid(np.arange(count), np.arange(count))
    points = (across + 1j * down + 0.5 + 0.8 * (rng.random((count, count, 2)) - 0.5) @ (1, 1j)).astype(np.complex64)
    place = ((x + 1.6) + 1j * (y + 1.6)) / np.float32(pitch)
    row, column = (np.clip(part, 1, count - 2).astype(np.int32) for part in (place.imag, place.real))
    index = row * count + column
    first, second = np.full_like(x, np.inf), np.full_like(x, np.inf)
    for step in [dy * count + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
        gap = points.ravel().take(index + step) - place
        square = gap.real * gap.real + gap.imag * gap.imag
        second = np.minimum(second, np.maximum(first, square))
        first = np.minimum(first, square)
    return np.sqrt(second) - np.sqrt(first)


def carpet(rng: np.random.Generator, size: int) -> tuple[Surface, Light]:
    """A plain weave of grey-brown yarns, some pale and some dark, over a dark backing."""
    x, y = coordinates(size)
    angle = rng.normal(0, 0.02)
    u, v = rotate(x, y, angle)
    pitch = rng.uniform(0.086, 0.094)
    # Yarns deviate from straight lines, and their spacing varies.
    p = u / pitch + 0.13 * noise(rng, size, (5, 12), 2) + rng.random(dtype=np.float32) + 64
    q = v / pitch + 0.13 * noise(rng, size, (12, 5), 2) + rng.random(dtype=np.float32) + 64
    grain = noise(rng, size, 110)

    backing, dark, pale = _colour(rng, (40, 35, 38)), _colour(rng, (100, 90, 92)), _colour(rng, (190, 182, 172))
    height, shades = [], []
    for position, along, turn in ((p, q, 1), (q, p, -1)):
        number, offset, rise = _strand(position, along, turn)
        width = rng.uniform(0.27, 0.40, 128).astype(np.float32)[number]
        body = _round(offset / width)
        height.append(body * (0.7 + 0.3 * np.clip(3 * rise, -1, 1) + 0.1 * grain))
        # Each yarn has its own shade, which varies from loop to loop.
        loop = rng.normal(0, 0.12, (128, 128)).astype(np.float32)[number, np.rint(along).astype(np.int32)]
        shades.append(rng.normal(0.40 + 0.08 * turn, 0.18, 128).astype(np.float32)[number] + loop)
    top = np.maximum(*height)
    shade = np.where(height[0] > height[1], *shades) + 0.10 * grain + 0.05 * noise(rng, size, 3)
    albedo = mix(backing, mix(dark, pale, np.clip(shade, 0, 1)), smoothstep(0.1, 0.6, top))
    surface = _sheet(
        albedo=albedo,
        height=0.4 * pitch * top,
        gloss=0.03,
        behind=backing,
        inside=backing * 0.6,
        sharpness=8.0,
        axis=float(angle),
        thickness=0.08,
    )
    return surface, _light(rng, -2.0, 1.0, key=0.85, ambient=0.35)


def grid(rng: np.random.Generator, size: int) -> tuple[Surface, Light]:
    """A mesh of grey wires crossing over and under in slender diamonds, in front of a light grey wall."""
    x, y = coordinates(size)
    angle = rng.uniform(-0.35, 0.35) + rng.choice([0, np.pi / 2])
    u, v = rotate(x, y, angle)
    lean = rng.uniform(0.47, 0.56)  # half the angle between the two families of wires, radians
    pitch = rng.uniform(0.17, 0.19)  # perpendicular distance between neighbouring wires
    radius = rng.uniform(0.025, 0.030)
    bend = 0.05 * noise(rng, size, 3)
    c, s = np.float32(np.cos(lean) / pitch), np.float32(np.sin(lean) / pitch)
    p = c * v - s * u + rng.random(dtype=np.float32) + 64 + bend
    q = c * v + s * u + rng.random(dtype=np.float32) + 64 - bend

    tops, coverage = [], []
    for position, along, turn in ((p, q, 1), (q, p, -1)):
        # Wires curve around each other: the cells become lens-shaped.
        position = position + 0.045 * np.sin(2 * np.float32(np.pi) * along)
        _, offset, rise = _strand(position, along, turn)
        distance = offset * np.float32(pitch)
        cover = inside_of(np.abs(distance) - radius, size)
        coverage.append(cover)
        tops.append(cover * np.float32(radius) * (1 + 0.7 * rise + _round(distance / np.float32(radius))))
    part = np.maximum(*coverage)
    wall = np.float32(rng.uniform(0.9, 1.08)) * mix(
        srgb(236, 236, 236), srgb(205, 205, 205), smoothstep(-2, 2, noise(rng, size, 3))
    )
    steel = srgb(88, 88, 88) * np.float32(rng.uniform(0.85, 1.15))
    surface = Surface(
        albedo=steel * (1 + 0.08 * noise(rng, size, 40, 2))[..., None],
        height=np.maximum(*tops),
        gloss=0.25 * part,
        part=part,
        background=wall,
        inside=srgb(70, 70, 72),
        room=_room(size),
        metallic=np.full_like(part, 0.35),
        sharpness=25.0,
        axis=float(angle),
        thickness=2 * radius,
    )
    return surface, _light(rng, -1.9, 0.9, key=0.8, ambient=0.3)


def leather(rng: np.random.Generator, size: int) -> tuple[Surface, Light]:
    """Brown leather: pebbles of several sizes between creases that are paler from wear."""
    x, y = coordinates(size)
    angle = rng.normal(0.3, 0.25)
    warp = rng.uniform(0.02, 0.03)
    u, v = rotate(x + warp * noise(rng, size, 6, 3), y + warp * noise(rng, size, 6, 3), angle)
    border = _cell_border(rng, 0.8 * u, 1.1 * v, rng.uniform(0.105, 0.12))
    finer = _cell_border(rng, v, u, rng.uniform(0.09, 0.10))
    fade = smoothstep(-2.0, 0.6, noise(rng, size, 7))  # creases are shallow in places
    crease = smoothstep(0.16, 0.0, border) * (0.35 + 0.65 * fade)
    fold = smoothstep(0.2, 0.0, finer) * smoothstep(-1.5, 1.5, noise(rng, size, 20))
    pores = noise(rng, size, 90)

    brown, rubbed = _colour(rng, (122, 75, 59)), _colour(rng, (168, 112, 88))
    albedo = mix(brown, rubbed, np.clip(0.8 * crease + 0.55 * fold, 0, 1))
    albedo *= (1 + 0.03 * pores + 0.05 * noise(rng, size, 3, 2))[..., None]
    dome = 0.004 * smoothstep(0, 0.4, border)
    surface = _sheet(
        albedo=albedo,
        height=dome - 0.008 * crease - 0.005 * fold + 0.0005 * pores + 0.02 * noise(rng, size, 3),
        gloss=rng.uniform(0.06, 0.10),
        behind=srgb(52, 40, 36),
        inside=srgb(196, 160, 130),
        sharpness=10.0,
        axis=float(angle),
        thickness=0.06,
    )
    return surface, _light(rng, -1.2, 0.75, key=0.85, ambient=0.3, vignette=0.1)


def tile(rng: np.random.Generator, size: int) -> tuple[Surface, Light]:
    """A polished stone tile: grey-green ground with many dark chips of several sizes."""
    # A chip is a peak of one of three fields; where peaks of different fields meet, chips are adjacent.
    peaks = np.maximum(np.maximum(noise(rng, size, 46), noise(rng, size, 60)), noise(rng, size, 90))
    peaks += 0.15 * noise(rng, size, 9) + 0.12 * noise(rng, size, 120) + np.float32(rng.normal(0, 0.08))
    chips = smoothstep(-0.15, 1.5, peaks)
    cloud = smoothstep(-1.5, 2, noise(rng, size, 20, 2))  # veins of paler ground

    ground = mix(_colour(rng, (130, 141, 135)), _colour(rng, (158, 171, 166)), cloud)
    chip = mix(_colour(rng, (36, 38, 33)), _colour(rng, (66, 62, 54)), smoothstep(0, 3, noise(rng, size, 24)))
    albedo = mix(ground, chip, chips) * (1 + 0.05 * noise(rng, size, 100))[..., None]
    surface = _sheet(
        albedo=albedo,
        height=-0.0012 * chips + 0.0008 * noise(rng, size, 6),
        gloss=rng.uniform(0.05, 0.08),
        behind=srgb(44, 44, 42),
        inside=srgb(176, 176, 168),
        sharpness=40.0,
        axis=float(rng.uniform(0, np.pi)),
        thickness=0.1,
    )
    return surface, _light(rng, -2.2, 1.05, key=0.75, ambient=0.35)


def wood(rng: np.random.Generator, size: int) -> tuple[Surface, Light]:
    """An oak board, grain upright: year rings of changing width, streaks, and open pores in the early wood."""
    x, y = coordinates(size)
    angle = np.pi / 2 + rng.normal(0, 0.05)
    u, v = rotate(x, y, angle)
    v = v + 0.025 * noise(rng, size, (2, 3)) + 0.004 * noise(rng, size, (6, 16))

    # Across the rings everything is a function of v alone; along them it varies slowly.
    across = np.linspace(0, 1, 2048)
    spacing = np.exp(0.45 * np.interp(across, np.linspace(0, 1, 16), rng.standard_normal(16)))
    phase = np.cumsum(spacing) / spacing.sum() * rng.uniform(32, 44) % 1
    streak = np.interp(across, np.linspace(0, 1, 256), rng.standard_normal(256))
    place = ((v + 1.6) * (2048 / 3.2)).astype(np.int32)
    late = (smoothstep(0.1, 0.8, phase) * smoothstep(1, 0.9, phase)).take(place)
    fibre = streak.astype(np.float32).take(place)
    drift = noise(rng, size, (3, 22), 2)
    fleck = noise(rng, size, (45, 200))

    # Pores: one dash in each cell of a brick pattern laid along the grain.
    length, width = 0.55, 0.019
    column = np.floor(v / width).astype(np.int16)
    along = u / length + rng.random(256, dtype=np.float32)[column]
    row = np.floor(along).astype(np.int16)
    half = rng.uniform(0.15, 0.5, (64, 256)).astype(np.float32)[row, column]
    reach = 1 - ((along - row - 0.5) / half) ** 2
    offset = (v / width - column - 0.5) / 0.45
    depth = rng.uniform(-0.3, 1, (64, 256)).astype(np.float32)[row, column] * (1.1 - late)
    pore = np.clip(reach, 0, 1) * np.clip(1 - offset * offset, 0, 1) * np.maximum(depth, 0)

    light, dark = _colour(rng, (220, 158, 115), 0.05), _colour(rng, (150, 97, 67), 0.05)
    tone = 0.15 + 0.5 * late * (0.8 + 0.25 * drift) + 0.11 * fibre + 0.08 * drift + 0.10 * fleck
    tone += 0.06 * noise(rng, size, 2)
    albedo = mix(light, dark, np.clip(tone, 0, 1.2))
    albedo = mix(albedo, srgb(96, 58, 38), np.clip(0.9 * pore, 0, 1))
    surface = _sheet(
        albedo=albedo,
        height=0.0015 * late + 0.0006 * fibre - 0.006 * pore + 0.003 * noise(rng, size, (2, 5)),
        gloss=rng.uniform(0.03, 0.06),
        behind=srgb(48, 34, 26),
        inside=srgb(222, 182, 138),
        sharpness=12.0,
        axis=float(angle),
        thickness=0.15,
    )
    return surface, _light(rng, -2.2, 0.95, key=0.8, ambient=0.35)
