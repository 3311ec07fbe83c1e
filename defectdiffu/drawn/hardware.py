"""Metal and fastener products of the procedural benchmark: metal nut, screw, zipper.

Each function makes one random specimen: `name(rng, size) -> (Surface, Light)`. Lengths are in half picture widths.
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


def _dome(offset: Array, radius: Array | float) -> Array:
    """Height of a round bar of a given radius, at an offset from its axis; 0 outside the bar."""
    return np.sqrt(np.maximum(radius * radius - offset * offset, 0))


def _ridge(phase: Array, width: float) -> Array:
    """A ridge of height 1 about every whole number of `phase`, `width` of a period wide, with a rounded crest."""
    distance = np.abs(phase - np.round(phase)) / (width / 2)
    return smoothstep(1, 0.35, distance)


def metal_nut(rng: np.random.Generator, size: int) -> tuple[Surface, Light]:
    """A stamped T-nut seen from its flat side: a plate with a round hole and four wings in a pinwheel, on black.

    `size` is the picture's side in pixels. Turned by up to 30 degrees; the rolled skin, the rings pressed around
    the hole and the bend of the wings vary.
    """
    angle, zoom = float(np.deg2rad(rng.uniform(-30, 30))), rng.uniform(0.97, 1.06)
    u, v = rotate(*coordinates(size), angle, rng.uniform(-0.03, 0.03, 2).tolist())
    u, v = u / zoom, v / zoom
    r = np.sqrt(u * u + v * v)
    plate, reach, hole = rng.uniform(0.58, 0.63), rng.uniform(0.86, 0.91), rng.uniform(0.21, 0.24)
    collar, boss = hole + rng.uniform(0.09, 0.12), rng.uniform(0.54, 0.58)

    # The plate is a disc; each wing fills a quadrant up to a straight flank, and ends in a step.
    outline, curl = r - (plate - 0.03), np.zeros_like(r)
    for _ in range(4):
        wing = np.maximum(np.maximum(-u, u - plate), np.maximum(r - reach, -v))
        fillet = np.maximum(0.07 - np.abs(outline - wing), 0)  # inner corners are round
        outline = np.minimum(outline, wing) - fillet * fillet / (4 * 0.07)
        curl += smoothstep(0.24, -0.05, u) * smoothstep(plate + 0.01, plate + 0.1, v) * (u > -0.06)
        u, v = v, -u
    part = inside_of(outline, size) * inside_of(hole - r, size)

    skin = noise(rng, size, 170)
    patches = noise(rng, size, 5, 2)
    rings = np.interp(r, np.linspace(0, 1.5, 240), noise(rng, 240, (60, 1), 2, 0.9)[:, 0]).astype(np.float32)
    on_mouth = smoothstep(collar + 0.008, collar - 0.008, r)
    on_wing = smoothstep(boss - 0.02, boss + 0.02, r)
    bend = rng.uniform(0.12, 0.3)
    height = -bend * np.maximum(r - boss, 0)  # the wings lean back
    height -= rng.uniform(0.07, 0.11) * curl  # and curl at the step
    height -= 0.035 * smoothstep(-0.055, 0.015, outline)  # rounded by the punch
    height += 0.03 * on_wing * noise(rng, size, 4)
    height += 0.007 * np.exp(-(((r - boss) / 0.022) ** 2))  # a ring pressed around the plate
    height -= 0.11 * smoothstep(collar, hole, r)  # the mouth of the thread
    rough = 1 - on_mouth
    height += rough * (0.0002 * skin + (0.0003 + 0.0005 * on_wing) * rings)

    # Zinc: bright where the press burnished it, dark where the skin is rough.
    tone = rng.uniform(0.9, 1.1)
    bright, dark = srgb(156, 172, 152) * tone, srgb(44, 52, 47) * tone
    burnish = smoothstep(
        -2.6, 2.8, (0.55 - 0.3 * on_wing) * skin + 0.55 * patches + (0.3 + 0.4 * on_wing) * rings + 1.5 * on_wing - 0.9
    )
    albedo = mix(mix(dark, bright, burnish), srgb(122, 132, 140) * tone, on_mouth)
    edges = smoothstep(-0.03, -0.008, outline) + np.exp(-(((r - hole - 0.035) / 0.009) ** 2))
    albedo *= ((1 - 0.75 * smoothstep(hole + 0.03, hole, r)) * (1 + 0.5 * edges))[..., None]
    gloss = part * (0.08 + (0.1 + 0.3 * on_wing) * rough)
    room = part * smoothstep(0, -0.06, outline) * smoothstep(collar, collar + 0.05, r)
    background = np.broadcast_to(srgb(22, 23, 32), albedo.shape) * (1 + 0.06 * noise(rng, size, 3))[..., None]
    return Surface(
        albedo=albedo,
        height=height * zoom,
        gloss=gloss,
        part=part,
        background=background,
        inside=srgb(150, 148, 140),
        room=room,
        metallic=0.7 * part,
        sharpness=26.0,
        axis=angle,
        thickness=0.08,
    ), Light(
        azimuth=rng.uniform(-2.6, -1.8),
        elevation=rng.uniform(0.85, 1.05),
        key=rng.uniform(0.8, 0.95),
        tint=(1.0, rng.uniform(1.0, 1.04), rng.uniform(0.96, 1.02)),
    )


def screw(rng: np.random.Generator, size: int) -> tuple[Surface, Light]:
    """A countersunk wood screw on light grey, its head at the lower left and its point at the upper right.

    `size` is the picture's side in pixels. Within 15 degrees of the diagonal; the thread is a true helix whose
    phase, pitch and length vary.
    """
    angle, zoom = float(np.deg2rad(rng.uniform(-60, -30))), rng.uniform(0.88, 0.94)
    u, v = rotate(*coordinates(size), angle, rng.uniform(-0.02, 0.02, 2).tolist())
    u, v = u / zoom, v / zoom
    rim, shank, tilt = rng.uniform(0.36, 0.39), rng.uniform(0.145, 0.16), rng.uniform(0.08, 0.12)
    top, start, tip = -0.96, rng.uniform(-0.18, -0.02), 1.17
    pitch, depth = rng.uniform(0.175, 0.195), rng.uniform(0.075, 0.085)

    # The turned profile: a cone under the rim, the shank, the thinner core of the thread, the point.
    along = [-2, top, top + 0.05, top + 0.3, top + 0.42, start, start + 0.03, 0.62, tip - 0.14, tip, tip + 0.01, 2]
    radii = [rim, rim, rim - 0.03, shank + 0.03, shank, shank, shank - 0.018, shank - 0.028, 0.06, 0.008, 0, 0]
    core = np.interp(u, along, radii).astype(np.float32)
    taper = smoothstep(start - 0.02, start + 0.06, u) * smoothstep(tip - 0.02, 0.7, u)
    around = np.arcsin(np.clip(v / (core + depth * taper + 1e-6), -1, 1)) / (2 * np.pi)
    fin = _ridge((u - start) / pitch - around + rng.uniform(), 0.38) * taper
    radius = core + depth * fin

    # The head is tilted towards the camera, so that its face is visible as an ellipse with the recess in it.
    p, q = (u - top) / tilt, v / rim
    rho = np.sqrt(p * p + q * q)
    face = inside_of((rho - 1) * tilt, size)
    recess = rho - 0.38 - 0.1 * np.cos(6 * np.arctan2(q, p) + rng.uniform(0, 6))
    recess = smoothstep(0.06, -0.06, recess)
    beside = np.abs(v) - radius
    slope_v, slope_u = np.gradient(beside, 2 / size)  # steep at the fins: divided by it, this is a distance
    beside /= np.sqrt(slope_u**2 + slope_v**2) * zoom + 1e-6
    part = np.maximum(inside_of(np.maximum(beside, top - u), size), face)
    radius *= u > top

    rolled = noise(rng, size, 90, 2, 0.7)
    height = _dome(v, radius) + np.where(fin > 0.02, 0.0008, 0.0004) * rolled
    height = mix(height, 0.1 + 0.9 * (u - top) - 0.012 * smoothstep(0.82, 0.95, rho) - 0.03 * recess, face)

    # Lathe marks run around the shank; soot and oil stay in the thread's root.
    lathe = np.interp(u + 0.003 * rolled, np.linspace(-2, 2, 500), noise(rng, 500, (499, 1))[:, 0]).astype(np.float32)
    stains = noise(rng, size, 9, 3)
    grey = rng.uniform(0.15, 0.21) * (1 + 0.1 * lathe + 0.1 * stains + 0.1 * rolled)
    grey *= 1 - 0.35 * taper * _ridge((u - start) / pitch + 0.5, 1.0) * (1 - fin)
    grey *= 1 + 0.35 * fin
    grey = mix(grey, grey * (1.1 - 0.8 * recess + 0.5 * smoothstep(0.86, 0.95, rho)), face)
    albedo = np.clip(grey, 0.01, 1)[..., None] * srgb(255, 253, 250)
    paper = 1 + 0.012 * noise(rng, size, 60, 2, 0.7) + 0.03 * noise(rng, size, 2)
    away = np.sqrt(np.maximum(np.abs(v) - core, 0) ** 2 + np.maximum(np.maximum(top - u, u - tip), 0) ** 2)
    halo = np.exp(-away / 0.12)
    background = (rng.uniform(0.6, 0.68) * paper * (1 - 0.4 * halo))[..., None] * srgb(255, 255, 254)
    room = part * smoothstep(0, 0.05, -beside) * smoothstep(tip, tip - 0.15, u)
    return Surface(
        albedo=albedo,
        height=height * zoom,
        gloss=part * 0.3,
        part=part,
        background=background,
        inside=srgb(185, 185, 185),
        room=room,
        metallic=0.6 * part,
        sharpness=13.0,
        axis=angle,
        thickness=0.12,
    ), Light(
        azimuth=rng.uniform(-2.7, -1.9),
        elevation=rng.uniform(0.85, 1.05),
        key=rng.uniform(0.75, 0.85),
        tint=(1.0, 1.0, rng.uniform(0.98, 1.01)),
    )


def zipper(rng: np.random.Generator, size: int) -> tuple[Surface, Light]:
    """A closed zip fastener on white: two rows of interlocked teeth between two halves of a black woven tape.

    `size` is the picture's side in pixels. Nearly upright; the phase of the teeth, the weave and the waviness of
    the tape's borders vary.
    """
    lean = rng.normal(0, 0.012)
    u, v = rotate(*coordinates(size), lean, (rng.uniform(-0.04, 0.04), 0.0))
    u = u + np.float32(0.012) * noise(rng, size, (2, 1))
    pitch, half, tape = rng.uniform(0.125, 0.137), rng.uniform(0.19, 0.21), rng.uniform(0.8, 0.84)
    border = np.abs(u) - tape - 0.008 * noise(rng, size, (3, 1)) - 0.006 * np.abs(np.sin(v * (np.pi / 0.042)))
    part = inside_of(border, size)

    # Tape: bundles of threads, staggered from row to row, between furrows.
    wobble = 0.006 * noise(rng, size, 12, 2)
    row = (v + wobble) / 0.075
    column = (u + wobble) / 0.05 + 0.5 * (np.floor(row) % 2) + 0.15 * noise(rng, size, 30)
    weave = (0.35 + 0.65 * np.abs(np.sin(np.pi * row)) ** 0.5) * (0.2 + 0.8 * np.abs(np.sin(np.pi * column)) ** 0.6)
    fibre = noise(rng, size, (60, 110), 2, 0.7)
    away = np.abs(u) - half
    cloth = 0.011 * weave + 0.0012 * fibre + 0.012 * noise(rng, size, 2) - 0.05 * np.exp(-((away / 0.05) ** 2))

    # Teeth: round bars that reach across the middle alternately from both sides, bowed like the turns of a coil.
    phase = (v + rng.uniform(0, pitch)) / pitch + 0.9 * u * u / half
    bars, cover = np.zeros_like(u), np.zeros_like(u)
    for side in (-1, 1):
        out = side * u  # from the tip inside the other row to the root in the tape
        offset = (phase + 0.25 * side - np.round(phase + 0.25 * side)) * np.float32(pitch)
        width = 0.026 + 0.008 * smoothstep(0.0, 0.1, out) + 0.007 * smoothstep(0.025, -0.01, out)
        beyond = np.maximum(np.maximum(-0.035 - out, out - half + 0.025), 0)
        axis = np.sqrt(np.sqrt((offset * offset) ** 2 + (beyond * beyond) ** 2))
        bars = np.maximum(bars, _dome(axis, width))
        cover = np.maximum(cover, inside_of(axis - width, size))
    arch = 0.09 * np.sqrt(np.clip(1 - (u / (half + 0.03)) ** 2, 0, 1))
    height = mix(cloth, 0.01 + arch + bars, cover)

    black = rng.uniform(0.028, 0.04) * (0.55 + 0.75 * weave + 0.12 * fibre) * (1 + 0.08 * noise(rng, size, 4))
    black *= 1 - 0.45 * smoothstep(0.09, -0.02, away)
    teeth = rng.uniform(0.09, 0.16) * (1 + 0.08 * fibre + 0.1 * noise(rng, size, 8))
    warm = srgb(255, 254, 252) * np.array([1, 1, rng.uniform(0.97, 1.05)], np.float32)
    albedo = np.maximum(mix(black, teeth, cover), 0.003)[..., None] * warm
    return Surface(
        albedo=albedo,
        height=height,
        gloss=part * mix(0.004, 0.45, cover),
        part=part,
        background=np.full((size, size, 3), rng.uniform(0.88, 0.98), np.float32),
        inside=srgb(150, 148, 142),
        room=part * smoothstep(0, -0.08, border),
        metallic=0.3 * cover,
        sharpness=24.0,
        axis=float(np.pi / 2 + lean),
        thickness=0.1,
    ), Light(
        azimuth=rng.uniform(-2.4, -1.5),
        elevation=rng.uniform(0.95, 1.15),
        key=rng.uniform(0.78, 0.9),
        tint=(1.0, 1.0, rng.uniform(0.99, 1.01)),
    )
