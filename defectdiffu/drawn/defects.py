"""Ten defects as changes to a surface: they change the material, before the surface is lit.

All defects have the same signature, `NAME(surface, rng, strength) -> (changed surface, region touched)`. They use only
the product's maps: the shape is the same on every product, the appearance follows from the product's own colour, gloss
and inside. The region is a float32 (H, W) map in [0, 1], touched where it is >= 0.5.

All random numbers are drawn first, for full strength; `strength` in [0, 1] then sets how many of the marks
appear and how far each has grown. Marks grow outwards from their centres, so a region never shrinks.
"""

import numpy as np
from scipy.ndimage import map_coordinates

from defectdiffu.drawn.surfaces import Array, Surface, blur, mix, noise, rotate, smoothstep, srgb

Box = tuple[slice, slice]

FAR = np.float32(9.0)  # relative distance given to pixels that a mark does not reach

PAINTS = [
    srgb(178, 28, 34),
    srgb(28, 52, 150),
    srgb(24, 120, 62),
    srgb(214, 168, 20),
    srgb(98, 34, 122),
    srgb(16, 140, 160),
]
FIBRES = [srgb(240, 238, 230), srgb(190, 30, 36), srgb(22, 22, 26), srgb(40, 70, 170), srgb(226, 190, 60)]
BITS = [srgb(196, 198, 202), srgb(46, 34, 26), srgb(150, 84, 36), srgb(226, 216, 190)]  # swarf, soil, rust, chips


# Where a defect is placed, and what is near it


def draw_centre(surface: Surface, rng: np.random.Generator) -> Array:
    """A point (2,) sampled from `surface.room`, first the row, then the column: the same point at every size."""
    size, u = surface.size, rng.random(2)
    rows = np.cumsum(surface.room.sum(1, dtype=float))
    y = np.interp(u[0] * rows[-1], np.r_[0, rows], np.arange(size + 1))
    columns = np.cumsum(surface.room[min(int(y), size - 1)], dtype=float)
    x = np.interp(u[1] * columns[-1], np.r_[0, columns], np.arange(size + 1))
    return np.array([x, y]) / size * 2 - 1


def draw_apart(surface: Surface, rng: np.random.Generator, n: int) -> list[Array]:
    """n points sampled from `surface.room`, each the one of four candidates that is farthest from earlier points."""
    centres = [draw_centre(surface, rng)]
    while len(centres) < n:
        drawn = [draw_centre(surface, rng) for _ in range(4)]
        centres.append(max(drawn, key=lambda p: min(np.linalg.norm(p - c) for c in centres)))
    return centres


def box_around(size: int, low: Array, high: Array) -> tuple[Box, Array, Array]:
    """The pixels between two corners, as slices with their x (1, w) and y (h, 1)."""
    start = np.clip(np.floor((np.asarray(low) + 1) / 2 * size), 0, size).astype(int)
    stop = np.clip(np.ceil((np.asarray(high) + 1) / 2 * size), start, size).astype(int)
    x, y = (((np.arange(a, b) + 0.5) / size * 2 - 1).astype(np.float32) for a, b in zip(start, stop, strict=True))
    return (slice(start[1], stop[1]), slice(start[0], stop[0])), x[None, :], y[:, None]


def outline_near(surface: Surface, centre: Array) -> tuple[Array, float]:
    """The point outside the product that is nearest to `centre`, and its distance (infinite on a texture)."""
    size = surface.size
    rows, columns = np.nonzero(surface.part < 0.5)
    if not rows.size:
        return centre, np.inf
    x, y = (columns + 0.5) / size * 2 - 1, (rows + 0.5) / size * 2 - 1
    distance = np.hypot(x - centre[0], y - centre[1])
    k = distance.argmin()
    return np.array([x[k], y[k]]), float(distance[k])


def colour_near(surface: Surface, centre: Array, radius: float = 0.25) -> Array:
    """Mean colour (3,) of the product around a point."""
    box, _, _ = box_around(surface.size, centre - radius, centre + radius)
    weight = surface.part[box] + 1e-3
    return (surface.albedo[box] * weight[..., None]).sum((0, 1)) / weight.sum()


def luminance(colour: Array) -> float:
    return float(colour @ np.array([0.21, 0.72, 0.07]))


def contrasting(colours: list[Array], against: Array, rng: np.random.Generator) -> Array:
    """Of three randomly chosen colours, the one that differs most from `against` after gamma correction."""
    drawn = [colours[k] for k in rng.choice(len(colours), 3, replace=False)]
    return max(drawn, key=lambda c: np.abs(c ** (1 / 2.2) - against ** (1 / 2.2)).sum())


# Shapes


def count(strength: float, most: int, least: int = 1) -> int:
    """How many marks there are at this strength."""
    return least + int(strength * (most - least) + 0.5)


def grow(strength: float, least: float, most: float) -> float:
    return least + (most - least) * strength


def walk(rng: np.random.Generator, centre: Array, angle: float, length: float, wander: float, steps: int = 24) -> Array:
    """A smooth line (steps + 1, 2) through `centre` along `angle`, whose heading varies by about `wander` radians."""
    strays = np.cumsum(rng.normal(size=9)) / 3
    heading = angle + wander * np.interp(np.linspace(0, 8, steps), np.arange(9), strays - strays[4])
    moves = np.stack([np.cos(heading), np.sin(heading)], 1) * (length / steps)
    points = np.concatenate([np.zeros((1, 2)), np.cumsum(moves, 0)])
    return points - points[steps // 2] + centre


def stroke(size: int, points: Array, width: Array, reach: float = 2.5) -> tuple[Array, Array]:
    """Distance (H, W) to a line of varying half-width (n,), in units of that half-width: 1 is the line's edge.

    Also returns the position along the line, counted in points. Where the half-width is 0 there is no line; beyond
    `reach` half-widths the distance is FAR.
    """
    across, along = np.full((size, size), FAR), np.zeros((size, size), np.float32)
    for k in range(len(points) - 1):
        widest = max(width[k], width[k + 1])
        if widest <= 0:
            continue
        a, b = points[k], points[k + 1]
        box, x, y = box_around(size, np.minimum(a, b) - reach * widest, np.maximum(a, b) + reach * widest)
        d = b - a
        t = np.clip(((x - a[0]) * d[0] + (y - a[1]) * d[1]) / (d @ d + 1e-9), 0, 1)
        distance = np.hypot(x - a[0] - t * d[0], y - a[1] - t * d[1])
        relative = distance / np.maximum(width[k] + (width[k + 1] - width[k]) * t, 1e-4)
        nearer = relative < np.minimum(across[box], reach)
        across[box][nearer] = relative[nearer]
        along[box][nearer] = k + t[nearer]
    return across, along


def taper(n: int, fraction: float, power: float = 0.5) -> Array:
    """Half-width profile (n,) of a line of which the middle `fraction` exists: 1 in the middle, 0 at its ends."""
    t = np.linspace(-1, 1, n) / fraction
    return np.maximum(1 - t * t, 0) ** power


def patch(size: int, centre: Array, radii: Array, reach: float = 1.6) -> Array:
    """Distance (H, W) from `centre` relative to an outline given by radii (n,) at even angles: 1 is the outline."""
    relative = np.full((size, size), FAR)
    extent = reach * radii.max()
    box, x, y = box_around(size, centre - extent, centre + extent)
    x, y = x - np.float32(centre[0]), y - np.float32(centre[1])
    angle = (np.arctan2(y, x) / (2 * np.pi) % 1) * len(radii)
    relative[box] = np.hypot(x, y) / np.interp(angle, np.arange(len(radii) + 1), np.r_[radii, radii[0]])
    return relative


def round_radii(rng: np.random.Generator, lumps: float) -> Array:
    """Radii (48,) about 1 of a smooth closed outline; `lumps` 0.05 is nearly a circle, 0.3 a puddle."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    waves = sum(np.cos(k * angle + rng.uniform(0, 2 * np.pi)) * rng.normal() / k for k in range(2, 6))
    return np.clip(1 + lumps * waves, 0.55, 1.5)


def jagged_radii(rng: np.random.Generator, corners: int = 15) -> Array:
    """Radii (corners,) about 1 of a ragged closed outline with straight edges."""
    return 1 + rng.uniform(-0.28, 0.28, corners)


def covered(relative: Array, softness: float = 0.12) -> Array:
    """Coverage in [0, 1] of the region whose relative distance is under 1."""
    return smoothstep(1 + softness, 1 - softness, relative)


def ring(relative: Array, at: float, width: float) -> Array:
    """A soft band around the relative distance `at`."""
    return np.exp(-(((relative - at) / width) ** 2))


def on_product(touched: Array, *surfaces: Surface) -> Array:
    """The region touched, limited to the product (with several surfaces, to the product in any of them)."""
    return touched * (np.max([s.part for s in surfaces], 0) >= 0.5)


def lie_on(surface: Surface, cover: Array) -> None:
    """Let a cover span the gaps within the product (a mesh), but not extend beyond its outline."""
    surface.part = np.maximum(surface.part, cover * smoothstep(0.3, 0.45, blur(surface.part, 0.06)))


# The ten defects


def scratch(surface: Surface, rng: np.random.Generator, strength: float) -> tuple[Surface, Array]:
    """A few fine, near-parallel, shallow grooves with burrs thrown up beside them."""
    s, most = surface.copy(), 5
    centre, angle = draw_centre(s, rng), s.axis + rng.uniform(-1.2, 1.2)
    ahead, aside = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    lines = []
    for k in range(most):
        start = centre + (k > 0) * (rng.uniform(-0.2, 0.2) * ahead + (-1) ** k * 0.06 * ((k + 1) // 2) * aside)
        points = walk(rng, start, angle + rng.normal(0, 0.04), rng.uniform(0.9, 1.2), 0.12)
        lines.append((points, np.interp(np.linspace(0, 9, 25), np.arange(10), rng.uniform(0.6, 1.1, 10))))
    base = colour_near(s, centre)
    pale = mix(base, 0.5 * s.inside + 0.5, np.float32(0.6))
    groove = pale if luminance(base) < 0.3 else 0.2 * base + 0.1 * s.inside
    touched = np.zeros_like(s.height)
    for points, pressure in lines[: count(strength, most)]:
        width = grow(strength, 0.014, 0.019) * pressure * taper(len(points), grow(strength, 0.5, 1.0), 0.35)
        across, _ = stroke(s.size, points, width)
        cover, burr = covered(across, 0.5), ring(across, 1.2, 0.4)
        s.height += 0.008 * burr - 0.012 * covered(across, 0.9)
        s.albedo = mix(s.albedo, np.minimum(1.6 * base + 0.06, 1), 0.5 * burr)
        s.albedo = mix(s.albedo, groove, 0.85 * cover)
        s.metallic *= 1 - 0.8 * cover
        touched = np.maximum(touched, covered(across / 1.4, 0.2))
    return s, on_product(touched, s)


def crack(surface: Surface, rng: np.random.Generator, strength: float) -> tuple[Surface, Array]:
    """A dark jagged fissure that forks, wide in the middle and closing towards its ends."""
    s, most = surface.copy(), 5
    centre, angle = draw_centre(s, rng), rng.uniform(0, np.pi)
    trunk = walk(rng, centre, angle, 1.5, 0.7, 30) + rng.normal(0, 0.016, (31, 2))
    fissures = [(trunk, 1 + 0.35 * rng.normal(size=31).clip(-1, 1.5))]
    for side in range(most - 1):
        root = trunk[15 + (-1) ** side * rng.integers(1, 8)]
        turn = np.pi * (side % 2) + rng.choice([-1, 1]) * rng.uniform(0.5, 1.0)
        fork = walk(rng, np.zeros(2), angle + turn, 0.9, 0.6, 24)
        fork = fork + rng.normal(0, 0.014, fork.shape)
        # Only the second half is used: a fork leaves the trunk and never crosses it.
        fissures.append((fork[12:] - fork[12] + root, 0.75 * (1 + 0.3 * rng.normal(size=13).clip(-1, 1.5))))
    base = colour_near(s, centre)
    dark = 0.06 * s.inside + 0.04 * base
    dim = luminance(base) < 0.08  # on a dark product only the chipped lips make the fissure visible
    lip = mix(base, np.ones(3), np.float32(0.5)) if dim else 1.25 * mix(base, s.inside, np.float32(0.6))
    touched = np.zeros_like(s.height)
    for k, (points, rough) in enumerate(fissures[: count(strength, most)]):
        # The trunk grows from its middle, a fork from its root.
        n, grown = len(points), grow(strength, 0.4, 1.0)
        profile = taper(2 * n - 1, grown, 0.6)[n - 1 :] if k else taper(n, grown, 0.6)
        across, _ = stroke(s.size, points, grow(strength, 0.014, 0.028) * rough * profile)
        cover = covered(across, 0.3)
        s.height -= 0.06 * covered(across, 0.6)
        s.albedo = mix(s.albedo, np.minimum(lip, 1), 0.5 * ring(across, 1.5, 0.4))
        s.albedo = mix(s.albedo, dark, 0.95 * cover)
        s.gloss *= 1 - cover
        s.metallic *= 1 - cover
        touched = np.maximum(touched, covered(across / 1.2, 0.2))
    return s, on_product(touched, s)


def hole(surface: Surface, rng: np.random.Generator, strength: float) -> tuple[Surface, Array]:
    """Round pits with a raised rim and a dark wall, open to the material inside."""
    s, most = surface.copy(), 3
    weights = np.r_[1.3, rng.uniform(0.6, 0.85, most - 1)]
    pits = [(c, w * round_radii(rng, 0.06)) for c, w in zip(draw_apart(s, rng, most), weights, strict=True)]
    touched = np.zeros_like(s.height)
    for centre, radii in pits[: count(strength, most)]:
        room = np.clip(1.1 * outline_near(s, centre)[1], 0.09, 0.19)
        relative = patch(s.size, centre, grow(strength, 0.55, 1.0) * room * radii)
        pit, rim = covered(relative), ring(relative, 1.12, 0.13)
        s.height += 0.02 * rim - 0.9 * s.thickness * smoothstep(1.05, 0.55, relative)
        # The wall is lit only at its top, the bottom is dark.
        lit = 0.06 + 0.3 * smoothstep(0.7, 1.0, relative) + 0.1 * smoothstep(0.5, 0.1, relative)
        wall = s.inside * lit[..., None]
        s.albedo = mix(mix(s.albedo, mix(s.albedo, s.inside, np.float32(0.5)), 0.6 * rim), wall, pit)
        s.gloss *= 1 - pit
        s.metallic *= 1 - pit
        touched = np.maximum(touched, covered(relative / 1.12))
    return s, on_product(touched, s)


def cut(surface: Surface, rng: np.random.Generator, strength: float) -> tuple[Surface, Array]:
    """Lens-shaped slits with lifted lips, open to the material inside."""
    s, most = surface.copy(), 2
    slits = []
    for k, centre in enumerate(draw_apart(s, rng, most)):
        angle, length = s.axis + rng.uniform(0, np.pi), rng.uniform(0.85, 1.0) * (1 - 0.35 * k)
        slits.append((walk(rng, centre, angle, length, 0.25, 20), rng.uniform(0.85, 1.1)))
    base = colour_near(s, slits[0][0][10])
    floor = s.inside * (0.9 if luminance(s.inside) > 2 * luminance(base) else 0.12)
    touched = np.zeros_like(s.height)
    for points, weight in slits[: count(strength, most)]:
        width = grow(strength, 0.03, 0.055) * weight * taper(21, grow(strength, 0.55, 1.0), 1.0)
        across, _ = stroke(s.size, points, width)
        slit, lip = covered(across, 0.2), ring(across, 1.3, 0.3)
        s.height += 0.022 * lip - 0.05 * smoothstep(1.1, 0.3, across)
        s.albedo = mix(s.albedo, mix(s.albedo, np.minimum(1.4 * s.inside + 0.05, 1), np.float32(0.5)), 0.7 * lip)
        s.albedo = mix(s.albedo, floor * (1 - 0.7 * smoothstep(0.5, 0.0, across))[..., None], slit)
        s.gloss *= 1 - slit
        s.metallic *= 1 - slit
        touched = np.maximum(touched, covered(across / 1.4, 0.15))
    return s, on_product(touched, s)


def color(surface: Surface, rng: np.random.Generator, strength: float) -> tuple[Surface, Array]:
    """Stains of one foreign colour with a soft uneven border; the relief stays as it is."""
    s, most = surface.copy(), 4
    weights = np.r_[1.0, rng.uniform(0.3, 0.6, most - 1)]
    stains = [(c, w * round_radii(rng, 0.25)) for c, w in zip(draw_apart(s, rng, most), weights, strict=True)]
    fray, base = noise(rng, s.size, 14, octaves=2), colour_near(s, stains[0][0])
    paint = contrasting(PAINTS, base, rng)
    touched = np.zeros_like(s.height)
    for centre, radii in stains[: count(strength, most)]:
        relative = patch(s.size, centre, grow(strength, 0.11, 0.26) * radii)
        touched = np.maximum(touched, covered(relative + 0.13 * fray, 0.22))
    wet = 0.88 * touched * (1 - 0.12 * np.clip(fray, -1, 1))
    # Stained, not covered: the product's own light and dark areas stay visible.
    grain = s.albedo.mean(-1, keepdims=True) / (base.mean() + 0.02)
    s.albedo = mix(s.albedo, paint * np.clip(0.45 + 0.55 * grain, 0.3, 1.5), wet)
    s.metallic *= 1 - 0.9 * touched
    s.gloss *= 1 - 0.6 * touched
    return s, on_product(touched, s)


def liquid(surface: Surface, rng: np.random.Generator, strength: float) -> tuple[Surface, Array]:
    """A thin glossy pool with drops next to it: levels the relief, darkens and yellows the surface under it."""
    s, most = surface.copy(), 5
    centre = draw_centre(s, rng)
    drops = [(centre, round_radii(rng, 0.25))]
    for _ in range(most - 1):
        drops.append((centre + rng.normal(0, 0.2, 2), rng.uniform(0.3, 0.65) * round_radii(rng, 0.14)))
    fill = np.zeros_like(s.height)
    for place, radii in drops[: count(strength, most)]:
        relative = patch(s.size, place, grow(strength, 0.15, 0.27) * radii)
        fill += np.maximum(1 - relative**2, 0)  # neighbouring drops flow together
    touched = smoothstep(0.0, 0.16, fill)
    dome = 0.022 * (1 - np.exp(-5 * fill)) + 0.012 * np.sqrt(np.minimum(fill, 1))
    s.height = mix(s.height, blur(s.height, 0.05), 0.95 * touched) + dome
    tint = srgb(226, 190, 120) * 0.75
    s.albedo = mix(s.albedo, s.albedo * tint, touched)
    s.albedo = mix(s.albedo, s.albedo * 0.5, touched * ring(fill, 0.12, 0.12))
    s.gloss = mix(s.gloss, np.float32(0.9), touched)
    s.sharpness = mix(np.full_like(s.height, s.sharpness), np.float32(70), touched)  # wet: a small bright reflection
    s.metallic *= 1 - 0.5 * touched
    lie_on(s, touched)
    return s, on_product(touched, s)


def contamination(surface: Surface, rng: np.random.Generator, strength: float) -> tuple[Surface, Array]:
    """Foreign bits strewn over a spot: angular flakes lying on top, each a little tilted."""
    s, most = surface.copy(), 26
    centre = draw_centre(s, rng)
    bit = contrasting(BITS, colour_near(s, centre), rng)
    shine = 0.8 if bit is BITS[0] else 0.05
    places = centre + rng.normal(0, 0.17, (most, 2)) * rng.uniform(0.3, 1.3, (most, 1))
    places[0] = centre
    edges = rng.uniform(0, 2 * np.pi, (most, 1)) + np.arange(5) * 2 * np.pi / 5 + rng.uniform(-0.4, 0.4, (most, 5))
    widths, stretch = rng.uniform(0.55, 1.1, (most, 5)), rng.uniform(0.75, 1.35, most)
    tilts, shades = rng.uniform(-0.5, 0.5, (most, 2)), rng.uniform(0.55, 1.15, most)
    stretch[0] = 1.35
    touched = np.zeros_like(s.height)
    for k in range(count(strength, most, least=4)):
        radius = grow(strength, 0.045, 0.07) * stretch[k]
        box, x, y = box_around(s.size, places[k] - 2 * radius, places[k] + 2 * radius)
        x, y = x - np.float32(places[k, 0]), y - np.float32(places[k, 1])
        sides = zip(edges[k], widths[k] * radius, strict=True)
        relative = np.max([(np.cos(angle) * x + np.sin(angle) * y) / width for angle, width in sides], 0)
        flake = covered(relative, 0.15)
        tilt = tilts[k, 0] * x + tilts[k, 1] * y
        s.albedo[box] *= (1 - 0.45 * covered(relative / 1.5, 0.35))[..., None]  # its shadow on the surface
        s.albedo[box] = mix(s.albedo[box], bit * shades[k], flake)
        s.height[box] += flake * (0.02 + tilt)
        s.gloss[box] = mix(s.gloss[box], np.float32(shine), flake)
        s.metallic[box] = mix(s.metallic[box], np.float32(0.6 * shine), flake)
        touched[box] = np.maximum(touched[box], covered(relative / 1.1, 0.15))
    lie_on(s, touched)
    return s, on_product(touched, s)


def broken(surface: Surface, rng: np.random.Generator, strength: float) -> tuple[Surface, Array]:
    """A ragged piece missing: broken off at the outline, or out of the middle if no outline is near."""
    s = surface.copy()
    centre, radii, rough = draw_centre(s, rng), jagged_radii(rng), noise(rng, s.size, 30, octaves=2)
    edge, distance = outline_near(s, centre)
    bitten = distance < 1
    size = grow(strength, 0.13, 0.28)
    if bitten:
        centre, size = edge + 0.2 * (centre - edge), 1.25 * size
    relative = patch(s.size, centre, size * radii) + 0.03 * rough
    gone, face = covered(relative, 0.05), covered(relative / 1.22, 0.1)
    fracture = s.inside * np.clip(0.8 + 0.22 * rough, 0.3, 1.3)[..., None]
    s.albedo = mix(s.albedo, fracture, face)
    s.gloss *= 1 - 0.8 * face
    s.metallic *= 1 - 0.6 * face
    s.height -= face * (0.02 + 0.004 * rough) + 0.8 * s.thickness * smoothstep(1.2, 0.8, relative)
    if bitten:
        s.part *= 1 - gone
    else:
        s.albedo = mix(s.albedo, s.albedo * 0.22, gone)
    return s, on_product(face, s, surface)


def bent(surface: Surface, rng: np.random.Generator, strength: float) -> tuple[Surface, Array]:
    """A spot pushed out of place: everything there is displaced sideways, with a kink, and raised a little."""
    s = surface.copy()
    # Raised parts bend: choose the one of eight places with the most relief, moved towards the outline if it is near.
    drawn = [draw_centre(s, rng) for _ in range(8)]
    centre = max(drawn, key=lambda c: s.height[box_around(s.size, c - 0.08, c + 0.08)[0]].std())
    angle = s.axis + np.pi / 2 + rng.uniform(-0.5, 0.5) + np.pi * rng.integers(2)
    edge, distance = outline_near(s, centre)
    if distance < 0.25:
        centre = (centre + edge) / 2
    reach = grow(strength, 0.28, 0.48)  # along the push; the spot is narrower across it, which makes the kink
    box, x, y = box_around(s.size, centre - reach, centre + reach)
    u, v = rotate(x, y, angle, centre)
    push = np.maximum(1 - (u / reach) ** 2 - (v / (0.6 * reach)) ** 2, 0) ** 2
    amount = 0.55 * reach * push * s.size / 2  # in pixels; more would fold the surface over itself
    rows, columns = np.mgrid[box]
    source = np.stack([rows - np.sin(angle) * amount, columns - np.cos(angle) * amount])
    for name in ("albedo", "height", "gloss", "part", "metallic"):
        values = getattr(surface, name)
        layers = np.atleast_3d(values)
        moved = [map_coordinates(layers[..., c], source, order=1, mode="nearest") for c in range(layers.shape[-1])]
        getattr(s, name)[box] = np.stack(moved, -1).reshape(values[box].shape)
    s.height[box] += 0.25 * reach * push
    touched = np.zeros_like(s.height)
    touched[box] = smoothstep(0.02, 0.1, push)
    return s, on_product(touched, s, surface)


def thread(surface: Surface, rng: np.random.Generator, strength: float) -> tuple[Surface, Array]:
    """A thin foreign fibre curled on top, with a slight shadow along it."""
    s, most = surface.copy(), 2
    centre = draw_centre(s, rng)
    fibre = contrasting(FIBRES, colour_near(s, centre), rng)
    starts = [centre, centre + rng.normal(0, 0.15, 2)]
    lines = [walk(rng, c, rng.uniform(0, 2 * np.pi), rng.uniform(1.2, 1.7), 3.5, 60) for c in starts]
    touched = np.zeros_like(s.height)
    for points in lines[: count(strength, most)]:
        n = len(points)
        width = grow(strength, 0.013, 0.018) * (taper(n, grow(strength, 0.4, 1.0)) > 0)
        across, along = stroke(s.size, points, width, reach=3)
        cover, shade = covered(across, 0.3), covered(across / 2, 0.5)
        twist = 0.92 + 0.08 * np.sin(4 * along)
        s.albedo = mix(s.albedo * (1 - 0.4 * shade)[..., None], fibre * twist[..., None], cover)
        s.height = mix(s.height, blur(s.height, 0.03), cover) + 0.03 * np.sqrt(np.maximum(1 - (across / 1.3) ** 2, 0))
        s.gloss = mix(s.gloss, np.float32(0.05), cover)
        s.metallic *= 1 - cover
        s.part = np.maximum(s.part, cover)  # it may hang over the outline or across a gap
        touched = np.maximum(touched, covered(across, 0.2))
    return s, on_product(touched, s)
