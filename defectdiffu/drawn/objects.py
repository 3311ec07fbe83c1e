"""Four products that lie on a table: bottle, capsule, hazelnut, pill, modelled on those of MVTec AD.

Each function makes one defect-free specimen, `(rng, size) -> (surface, light)`: pose, lamp, tint and texture come from
`rng`, and lengths have the units of `surfaces.py`, so a specimen looks the same at every size. Colours and
proportions are taken from photographs.
"""

import numpy as np

from defectdiffu.drawn.surfaces import (
    Array,
    Light,
    Surface,
    coordinates,
    inside_of,
    mix,
    noise,
    rotate,
    smoothstep,
    srgb,
)


def _between(rng: np.random.Generator, middle: float, spread: float) -> float:
    """A number drawn uniformly from middle - spread to middle + spread."""
    return float(middle + spread * rng.uniform(-1, 1))


def _posed(rng: np.random.Generator, size: int, shift: float, angle: float, zoom: float) -> tuple[Array, Array]:
    """Coordinates of a product at `angle`, shifted by up to `shift` and scaled by up to 1 +- `zoom`."""
    x, y = coordinates(size)
    centre = (_between(rng, 0, shift), _between(rng, 0, shift))
    u, v = rotate(x, y, angle, centre)
    scale = np.float32(_between(rng, 1, zoom))
    return u / scale, v / scale


def _light(rng: np.random.Generator, azimuth: float, elevation: float, key: float, ambient: float) -> Light:
    """A lamp that differs a little from picture to picture; a level surface stays about as bright as its albedo."""
    warmth = _between(rng, 0, 0.025)
    return Light(
        azimuth=_between(rng, azimuth, 0.25),
        elevation=_between(rng, elevation, 0.08),
        key=key * _between(rng, 1, 0.07),
        ambient=ambient * _between(rng, 1, 0.07),
        tint=(1 + warmth, 1.0, 1 - warmth),
    )


def _backdrop(rng: np.random.Generator, size: int, colour: Array, spread: float) -> Array:
    """(H, W, 3) plain table: `colour`, varied by `spread`, with fine grain and a few specks of dust."""
    grain = noise(rng, size, 90)
    uneven = 1 + spread * noise(rng, size, 2) + 0.4 * spread * grain
    dust = 0.06 * smoothstep(3.3, 4.0, grain)
    return uneven[..., None] * colour + dust[..., None]


def _dome(squared: Array, height: float) -> Array:
    """Relief of a rounded body, given (distance / radius)^2; eased at the rim so that slopes stay finite."""
    ease = 0.04
    return height * (np.sqrt(np.maximum(1 - squared, 0) + ease) - np.sqrt(ease)).astype(np.float32)


def _strokes(x: Array, y: Array, *points: tuple[float, float]) -> Array:
    """Distance to the nearest of the segments between points 0-1, 2-3, ..."""
    nearest = np.full_like(x, np.inf)
    for (ax, ay), (bx, by) in zip(points[::2], points[1::2], strict=True):
        dx, dy = bx - ax, by - ay
        along = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1)
        nearest = np.minimum(nearest, (x - ax - along * dx) ** 2 + (y - ay - along * dy) ** 2)
    return np.sqrt(nearest)


def _wrap(texture: Array, turn: Array, along: Array) -> Array:
    """A texture wrapped around an axis: row by the angle `turn` in [-pi, pi], column by `along` in [-1, 1]."""
    last = texture.shape[0] - 1
    row = (turn / (2 * np.pi) + 0.5) * last
    above = np.minimum(row.astype(np.int16), last - 1)
    column = ((np.clip(along, -1, 1) + 1) / 2 * last).astype(int)
    # The texture is interpolated between rows: steps would be visible in the relief as fine lines.
    return mix(texture[above, column], texture[above + 1, column], row - above)


# Colour of the bottle from its centre outwards: radius (1 = the outline), red, green, blue.
_BOTTLE = np.array(
    [
        (0.00, 44, 44, 54), (0.20, 38, 37, 48), (0.46, 33, 33, 46), (0.485, 36, 34, 46), (0.505, 76, 56, 56),
        (0.525, 56, 56, 64), (0.55, 36, 39, 48), (0.60, 48, 51, 59), (0.645, 72, 76, 84), (0.68, 64, 68, 78),
        (0.695, 108, 108, 114), (0.71, 62, 64, 74), (0.745, 66, 66, 75), (0.765, 96, 80, 80), (0.785, 176, 108, 76),
        (0.805, 104, 90, 90), (0.83, 58, 58, 68), (0.86, 70, 73, 82), (0.89, 132, 128, 130), (0.91, 116, 112, 115),
        (0.935, 54, 56, 66), (0.95, 56, 59, 68), (0.97, 92, 97, 102), (0.985, 168, 172, 170), (1.00, 252, 254, 252),
    ]
)  # fmt: skip


def bottle(rng: np.random.Generator, size: int) -> tuple[Surface, Light]:
    """The neck of a dark bottle from above on a bright table: mouth, frosted wall, lip with an amber rim, shoulder."""
    turn = _between(rng, 0, np.pi)
    u, v = _posed(rng, size, 0.03, turn, 0.015)
    outer = np.sqrt(u * u + v * v) / 0.92
    # Seen slightly from one side: the deeper a circle is, the more it is off centre.
    radius = outer + _between(rng, 0.03, 0.03) * u * np.maximum(1 - outer, 0)
    # Arcs are mirrored at u = 0, so that they are continuous after a full turn.
    arcs = _wrap(noise(rng, size, (16, 80)), 2 * np.abs(np.arctan2(v, u)) - np.pi, 2 * radius - 1)
    streaks, patches = noise(rng, size, 26, 2), noise(rng, size, 5)
    lip = np.exp(-(((radius - 0.755) / 0.07) ** 2))
    wall = smoothstep(0.51, 0.54, radius) * smoothstep(0.66, 0.62, radius)

    wobbled = radius + 0.006 * lip * noise(rng, size, 9) + 0.004 * wall * streaks
    palette = (_BOTTLE[:, 1:] / 255) ** 2.2
    albedo = np.stack([np.interp(wobbled, _BOTTLE[:, 0], c) for c in palette.T], -1).astype(np.float32)
    frost = wall * (0.22 * noise(rng, size, 110) + 0.2 * patches)
    brightness = 1 + frost + lip * (0.30 * patches + 0.15 * streaks + 0.45 * arcs)
    # The lip catches light in a few short glints.
    facing = smoothstep(1.0, 1.9, 0.7 * patches + 0.6 * streaks + 0.4 * arcs)
    glint = facing * np.exp(-(((radius - 0.775) / 0.014) ** 2))
    albedo = np.clip(albedo * np.maximum(brightness, 0.3)[..., None] + 0.6 * glint[..., None], 0, 1)
    height = 0.18 * smoothstep(0.97, 0.78, radius) - 0.16 * smoothstep(0.68, 0.5, radius) + 0.02 * lip

    surface = Surface(
        albedo=albedo,
        height=height,
        gloss=(0.12 * lip).astype(np.float32),
        part=inside_of((outer - 1) * 0.92, size),
        background=_backdrop(rng, size, np.full(3, 1.7, np.float32), 0.01),  # a light table, brighter than white
        inside=srgb(22, 22, 30),
        room=smoothstep(0.52, 0.60, radius) * smoothstep(0.91, 0.86, radius),
        sharpness=30.0,
        axis=turn,
        thickness=0.15,
    )
    return surface, _light(rng, -2.2, 1.15, 0.45, 0.60)


def capsule(rng: np.random.Generator, size: int) -> tuple[Surface, Light]:
    """A gelatin capsule lying on white: black cap on the left, orange-brown body printed 500 on the right."""
    angle = _between(rng, 0, 0.03)
    u, v = _posed(rng, size, 0.025, angle, 0.025)
    cap = inside_of(u, size)
    radius = 0.27 + 0.022 * cap  # the cap is pushed over the body
    beyond = np.maximum(np.abs(u) - 0.65, 0)  # past the straight part
    off_axis = np.sqrt(beyond * beyond + v * v)
    distance = off_axis - radius

    # The capsule is rolled a little, up or down; the round surface narrows the print towards the edge.
    around = np.arcsin(np.clip(v / 0.27, -1, 1)) * 0.27 - _between(rng, 0, 0.07)
    along = u - _between(rng, 0.34, 0.04)
    zeros = np.abs(along - 0.09) - 0.09
    ring = np.abs(np.sqrt(zeros * zeros + (around * 0.7) ** 2) - 0.05)
    five = along + 0.19
    bowl = np.abs(np.sqrt(five * five + (around - 0.03) ** 2) - 0.048)
    bowl = np.where((five < -0.03) & (around < 0.05), np.inf, bowl)
    straight = _strokes(five, around, (-0.042, -0.08), (0.045, -0.08), (-0.042, -0.08), (-0.042, -0.01))
    ink = np.minimum(np.minimum(ring, bowl), straight)
    printed = inside_of(ink - 0.019, size) * np.clip(0.75 + 0.12 * noise(rng, size, 60), 0.3, 1)  # worn ink

    orange = srgb(_between(rng, 160, 7), _between(rng, 83, 4), _between(rng, 66, 4))
    albedo = mix(orange, srgb(25, 25, 30), cap)
    albedo *= (1 + 0.04 * noise(rng, size, (30, 4)) + 0.02 * noise(rng, size, 70))[..., None]
    albedo = mix(albedo, srgb(226, 176, 162), printed)
    # Near the capsule the table is shaded, and the orange half tints it.
    table = _backdrop(rng, size, srgb(228, 228, 225), 0.015)
    away = np.maximum(off_axis - 0.27, 0)
    table *= (1 - 0.40 * np.exp(-away / 0.10) - 0.06 * v)[..., None]
    glow = 0.5 * np.exp(-away / 0.16) * smoothstep(-0.1, 0.3, u)
    table *= 1 - glow[..., None] * np.array([0.0, 0.32, 0.30], np.float32)

    surface = Surface(
        albedo=albedo,
        height=_dome((off_axis / radius) ** 2, 0.24),
        gloss=np.clip(0.06 + 0.025 * noise(rng, size, (40, 3)), 0.01, 0.14),
        part=inside_of(distance, size),
        background=table,
        inside=srgb(235, 228, 214),
        room=smoothstep(-0.08, -0.12, distance),
        sharpness=55.0,
        axis=angle,
        thickness=0.12,
    )
    return surface, _light(rng, -1.6, 1.0, 0.62, 0.45)


def hazelnut(rng: np.random.Generator, size: int) -> tuple[Surface, Light]:
    """A hazelnut at any rotation on black: brown shell streaked from the rough pale cap to the pointed tip."""
    angle = _between(rng, 0, np.pi)
    u, v = _posed(rng, size, 0.06, angle, 0.05)
    lean = _between(rng, 0.22, 0.38)  # of the axis out of the picture's plane; > 0 shows more of the cap
    polar = np.arctan2(v, u)
    # Outline: a lumpy circle, extended to the tip at polar angle 0 and flat at the cap.
    tip = np.exp(-(np.abs(polar / 0.34) ** 1.5)) * np.cos(lean) * _between(rng, 0.08, 0.03)
    outline = 0.77 + tip - 0.05 * np.exp(-(((np.pi - np.abs(polar)) / 0.5) ** 2))
    for lobes in (2, 3):
        outline += _between(rng, 0, 0.016) * np.cos(lobes * polar + _between(rng, 0, np.pi))
    reach = np.sqrt(u * u + v * v)
    squared = np.minimum((reach / outline) ** 2, 1)

    # Position on the nut: `north` runs from -1 at the cap's middle to 1 at the tip, `meridian` is the angle around it.
    depth = np.sqrt(1 - squared)
    c, s = np.cos(lean), np.sin(lean)
    north = c * u / outline - s * depth
    meridian = np.arctan2(v / outline, s * u / outline + c * depth)
    streaks = _wrap(noise(rng, size, (36, 2), 2, 0.9) + noise(rng, size, (140, 4)), meridian, north)
    blotches, grain = noise(rng, size, 5, 2), noise(rng, size, 60, 2, 0.9)

    edge = _between(rng, -0.55, 0.09) + 0.015 * streaks + 0.02 * blotches
    cap = smoothstep(0.015, -0.015, north - edge)
    rim = np.exp(-(((north - edge) / 0.022) ** 2))
    fuzz = np.clip(smoothstep(0.62, 1.0, north + 0.06 * streaks) * _between(rng, 0.5, 0.3), 0, 1)

    red = _between(rng, 0, 1)
    shell = srgb(132 + 8 * red, 74 - 4 * red, 55 - 5 * red)
    shell = shell * np.exp(0.14 * streaks + 0.10 * blotches + 0.05 * grain)[..., None]
    shell = mix(shell, srgb(176, 146, 118), 0.8 * fuzz)
    fibres = streaks * smoothstep(-1.0, -0.75, north)  # not at the pole, where all fibres would meet
    rough = srgb(142, 108, 84) * np.exp(0.26 * grain + 0.14 * fibres + 0.15 * blotches)[..., None]
    albedo = mix(mix(shell, rough, cap), srgb(186, 124, 88), 0.55 * rim)
    relief = 0.001 * streaks * (1 - cap) + 0.004 * cap * grain + 0.014 * rim - 0.014 * cap

    part = inside_of(reach - outline, size)
    surface = Surface(
        albedo=np.clip(albedo, 0, 1).astype(np.float32),
        height=(_dome(squared, 0.54) + relief * part * (0.3 + 0.7 * depth)).astype(np.float32),
        gloss=(0.10 * (1 - cap) * (1 - 0.6 * fuzz)).astype(np.float32),
        part=part,
        background=_backdrop(rng, size, srgb(40, 40, 43), 0.06),
        inside=srgb(226, 196, 150),
        room=smoothstep(-0.12, -0.18, reach - outline),
        sharpness=14.0,
        axis=angle,
        thickness=0.18,
    )
    return surface, _light(rng, -2.0, 1.0, 0.76, 0.34)


def pill(rng: np.random.Generator, size: int) -> tuple[Surface, Light]:
    """A white oval tablet with red speckles on black, FF pressed into its face."""
    angle = _between(rng, 0, 0.035)
    u, v = _posed(rng, size, 0.025, angle, 0.02)
    long, short = 0.90, 0.63
    level = np.abs(u / long) ** 1.82 + (v / short) ** 2  # 1 on the outline; the ends are a little pointed
    distance = (np.sqrt(level) - 1) * short

    # Both letters at once: the second F is the first, repeated.
    letter = np.where(u > 0.02, u - 0.42, u)
    bars = ((-0.32, -0.22), (-0.32, 0.23), (-0.32, -0.22), (-0.06, -0.22), (-0.32, -0.01), (-0.13, -0.01))
    groove = smoothstep(0.054, 0.020, _strokes(letter, v, *bars))

    coarse, fine = noise(rng, size, 44), noise(rng, size, 70)
    few = _between(rng, 1.72, 0.15)  # standard deviations that make a speckle
    speckles = smoothstep(few, few + 0.8, coarse * 0.75 + fine * 0.66)
    sunken = smoothstep(1.9, 3.2, noise(rng, size, 24))  # speckles under the skin show as grey-violet haze
    mottle = noise(rng, size, 6, 2)
    powder = srgb(198, 199, 197) * (1 + 0.02 * mottle + 0.012 * noise(rng, size, 100))[..., None]
    albedo = mix(mix(powder, srgb(140, 110, 125), 0.6 * sunken), srgb(138, 52, 68), 0.85 * speckles)

    surface = Surface(
        albedo=albedo.astype(np.float32),
        height=_dome(level**1.5, 0.20) - 0.024 * groove + 0.0003 * fine,
        gloss=np.full((size, size), 0.04, np.float32),
        part=inside_of(distance, size),
        background=_backdrop(rng, size, srgb(17, 17, 30), 0.08),
        inside=srgb(224, 222, 216),
        room=smoothstep(-0.10, -0.14, distance),
        sharpness=12.0,
        axis=angle,
        thickness=0.10,
    )
    return surface, _light(rng, -2.2, 1.05, 0.55, 0.48)
