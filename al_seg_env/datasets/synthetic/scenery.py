"""The things in a drawn street: houses, plants, cars, people, bicycles, and posts with signs, lamps and lights."""

from __future__ import annotations

import numpy as np

from al_seg_env.datasets.segmentation_data import IGNORE_LABEL
from al_seg_env.datasets.synthetic.canvas import NEAR, Canvas, Colour, Point, shaded, varied

ROAD, SIDEWALK, BUILDING, POLE, SIGN, VEGETATION, SKY, PERSON, CAR, BICYCLE = range(10)

_STOREY = 3.1
_CLOTHES: tuple[Colour, ...] = (
    (168, 48, 44), (48, 72, 138), (40, 42, 46), (206, 200, 190), (196, 160, 60), (70, 110, 80), (120, 84, 60),
    (150, 110, 150),
)  # fmt: skip


def draw_building(
    canvas: Canvas, x: float, z: Point, height: float, colours: tuple[Colour, Colour], lit: float
) -> None:
    """Draw a house whose front stands along the road at ``x``, from ``z[0]`` to ``z[1]``.

    ``colours`` are those of the wall and of the roof, ``lit`` the brightness of its front.
    """
    rng, wall, roof = canvas.rng, colours[0], shaded(colours[1], lit)
    gabled, shop = rng.random() < 0.5 and height < 12, rng.random() < 0.4
    glass = varied(rng, (62, 70, 80), 14)
    near, far = max(z[0], NEAR), z[1]
    if far < near + 0.5:
        return
    outwards = 9 if x > 0 else -9
    ridge, top = x + 0.5 * outwards, height + 2.4
    end = shaded(wall, 1.15 - 0.3 * lit)
    canvas.front((x, x + outwards), (0, height), near, end, BUILDING)
    if gabled:
        canvas.face([(x, height, near), (ridge, top, near), (x + outwards, height, near)], end, BUILDING)
    edges = np.linspace(far, near, max(1, round((far - near) / 3.2)) + 1).tolist()
    for back, front in zip(edges[:-1], edges[1:], strict=True):
        canvas.wall(x, (0, height), (front, back), shaded(wall, lit), BUILDING)
        if gabled:
            slope = [(x, height, front), (ridge, top, front), (ridge, top, back), (x, height, back)]
            canvas.face(slope, roof, BUILDING)
        if front < 45:
            _draw_windows(canvas, x, (front, back), max(1, int(height / _STOREY)), glass, shop)


def _draw_windows(canvas: Canvas, x: float, z: Point, storeys: int, glass: Colour, shop: bool) -> None:
    margin = 0.25 * (z[1] - z[0])
    for storey in range(storeys):
        sill, lintel = (0.3, 2.7) if shop and storey == 0 else (_STOREY * storey + 0.9, _STOREY * storey + 2.4)
        pane = shaded(glass, canvas.rng.uniform(0.7, 1.5))
        canvas.wall(x, (sill, lintel), (z[0] + margin, z[1] - margin), pane, BUILDING)


def draw_skyline(canvas: Canvas, z: float, colours: tuple[Colour, Colour], green: float) -> None:
    """Draw the skyline at distance ``z``: blocks of houses, and trees in a share ``green`` of it.

    ``colours`` are those of the walls and of the leaves.
    """
    rng, x = canvas.rng, -150.0
    while x < 150:
        width = rng.uniform(8, 22)
        if rng.random() < green:
            for _ in range(4):
                centre = canvas.camera.project(x + rng.uniform(0, width), rng.uniform(1, 6), z)
                radius = rng.uniform(3, 6) * canvas.camera.scale(z)
                canvas.disc(centre, (radius, radius), varied(rng, colours[1], 8), VEGETATION, z)
        else:
            canvas.front((x, x + width), (0, rng.uniform(5, 16)), z, varied(rng, colours[0], 14), BUILDING)
        x += width


def draw_hedge(canvas: Canvas, x: float, z: Point, height: float, leaf: Colour) -> None:
    """Draw a hedge that stands along the road at ``x``, from ``z[0]`` to ``z[1]``."""
    rng, near, far = canvas.rng, max(z[0], NEAR), z[1]
    if far < near + 0.5:
        return
    canvas.front((x, 1.2 * x), (0, height), near, shaded(leaf, 0.75), VEGETATION)
    canvas.wall(x, (0, height), (near, far), leaf, VEGETATION)
    for place in np.linspace(far, near, 9).tolist():
        scale = canvas.camera.scale(place)
        centre = canvas.camera.project(x, height * rng.uniform(0.3, 1.0), place)
        canvas.disc(centre, (0.4 * scale, 0.35 * scale), varied(rng, leaf, 14), VEGETATION, place)


def draw_tree(canvas: Canvas, x: float, z: float, height: float, leaf: Colour) -> None:
    """Draw a tree: a trunk and a ragged crown."""
    rng, scale = canvas.rng, canvas.camera.scale(z)
    foot, crown = canvas.camera.project(x, 0, z), canvas.camera.project(x, 0.66 * height, z)
    canvas.line(foot, crown, 0.3 * scale, varied(rng, (72, 60, 48), 8), VEGETATION, z)
    wide, tall = 0.3 * height * scale, 0.32 * height * scale
    blobs = 22 if z < 25 else 12
    angles, out = rng.uniform(0, 2 * np.pi, blobs), 0.85 * np.sqrt(rng.random(blobs))
    across, down = out * np.cos(angles), out * np.sin(angles)
    sizes = rng.uniform(0.22, 0.42, blobs) * np.where(np.arange(blobs) < 5, 1.4, 1.0)
    lights = 0.97 - 0.25 * down + rng.normal(0, 0.13, blobs)  # the top of a crown is lighter
    for dx, dy, size, light in np.stack([across, down, sizes, lights], 1).tolist():
        centre = crown[0] + wide * dx, crown[1] + tall * dy
        canvas.disc(centre, (size * wide, size * tall), shaded(leaf, light), VEGETATION, z)


def draw_car(canvas: Canvas, x: float, z: float, colour: Colour, oncoming: bool, lit: float) -> None:
    """Draw a car whose near end stands at ``z``; ``lit`` is the brightness of its side."""
    rng = canvas.rng
    far, half, waist, top = z + rng.uniform(3.6, 4.8), rng.uniform(0.82, 0.95), 0.9, rng.uniform(1.4, 1.75)
    glass, side_colour, end_colour = varied(rng, (44, 50, 58), 8), shaded(colour, lit), shaded(colour, 0.86)
    s, r = (x - half, x + half) if x > canvas.camera.offset else (x + half, x - half)  # s: the side in view
    tuck = 0.16 if s < r else -0.16  # the cabin is narrower than the body
    si, ri = s + tuck, r - tuck

    wide = half + 0.2
    floor = [(x - wide, 0, z - 0.3), (x + wide, 0, z - 0.3), (x + wide, 0, far), (x - wide, 0, far)]
    canvas.face(floor, (34, 34, 37), None)  # the shadow underneath
    canvas.wall(s, (0.25, waist), (z, far), side_colour, CAR)
    cabin = [(s, waist, z + 0.1), (si, top, z + 0.6), (si, top, far - 1.4), (s, waist, far - 0.7)]
    canvas.face(cabin, side_colour, CAR)
    pane = [(s, 0.95, z + 0.5), (si, top - 0.1, z + 0.8), (si, top - 0.1, far - 1.6), (s, 0.95, far - 1.2)]
    canvas.face(pane, glass, CAR)
    roof = [(si, top, z + 0.6), (ri, top, z + 0.6), (ri, top, far - 1.4), (si, top, far - 1.4)]
    canvas.face(roof, shaded(colour, 1.12), CAR)
    for place in (far - 0.8, z + 0.8):
        scale = canvas.camera.scale(place)
        canvas.disc(canvas.camera.project(s, 0.3, place), (0.17 * scale, 0.31 * scale), (24, 24, 26), CAR, place)
    canvas.face([(s, waist, z), (si, top, z + 0.6), (ri, top, z + 0.6), (r, waist, z)], end_colour, CAR)
    pane = [(si, 0.93, z), (si, top - 0.08, z + 0.5), (ri, top - 0.08, z + 0.5), (ri, 0.93, z)]
    canvas.face(pane, glass, CAR)
    canvas.front((s, r), (0.25, waist), z, end_colour, CAR)
    canvas.front((s, r), (0.05, 0.25), z, (30, 30, 32), CAR)
    lamp: Colour = (245, 240, 205) if oncoming else (190, 28, 24)
    canvas.front((s, s + 2 * tuck), (0.6, 0.8), z, lamp, CAR)
    canvas.front((r, r - 2 * tuck), (0.6, 0.8), z, lamp, CAR)


def draw_person(canvas: Canvas, x: float, z: float, lift: float = 0.0) -> None:
    """Draw a person who stands or walks, or rides if lifted by ``lift`` metres."""
    rng, scale = canvas.rng, canvas.camera.scale(z)
    tall, wide, stride = rng.uniform(1.55, 1.9), rng.uniform(0.2, 0.27), rng.uniform(0.02, 0.3)
    coat = varied(rng, _CLOTHES[int(rng.integers(len(_CLOTHES)))], 14)
    trousers = varied(rng, (52, 54, 66), 16)
    skin = shaded((214, 170, 140), rng.uniform(0.45, 1.05))

    def at(across: float, share: float) -> Point:
        return canvas.camera.project(x + across, lift + share * tall, z)

    for leg in (-1, 1):
        hip, foot = leg * 0.09, leg * stride
        points = [at(hip - 0.09, 0.5), at(hip + 0.09, 0.5), at(foot + 0.07, 0), at(foot - 0.07, 0)]
        canvas.polygon(points, trousers, PERSON, z)
    torso = [at(-wide, 0.82), at(wide, 0.82), at(0.85 * wide, 0.44), at(-0.85 * wide, 0.44)]
    canvas.polygon(torso, coat, PERSON, z)
    canvas.disc(at(0, 0.91), (0.12 * scale, 0.155 * scale), skin, PERSON, z)


def draw_bicycle(canvas: Canvas, x: float, z: float, turn: float, ridden: bool) -> None:
    """Draw a bicycle, from the side (``turn`` 1) or nearly end on (``turn`` 0.2), with or without a rider."""
    rng, scale, project = canvas.rng, canvas.camera.scale(z), canvas.camera.project
    paint = varied(rng, _CLOTHES[int(rng.integers(len(_CLOTHES)))], 20)
    parts = ((-0.54, 0.34), (0.54, 0.34), (-0.05, 0.3), (-0.2, 0.9), (0.4, 1.0))
    back, front, pedals, saddle, bars = (project(x + along * turn, up, z) for along, up in parts)
    for hub in (back, front):
        canvas.wheel(hub, (max(0.34 * turn, 0.05) * scale, 0.34 * scale), (28, 28, 30), BICYCLE, z)
    tubes = ((back, saddle), (saddle, pedals), (pedals, bars), (saddle, bars), (front, bars), (back, pedals))
    for start, end in tubes:
        canvas.line(start, end, 0.085 * scale, paint, BICYCLE, z)
    if ridden:
        draw_person(canvas, x - 0.1 * turn, z, lift=0.42)


def draw_lamp(canvas: Canvas, x: float, z: float, height: float, metal: Colour) -> None:
    """Draw a lamp post that reaches over the road."""
    scale, project = canvas.camera.scale(z), canvas.camera.project
    reach = -1.4 if x > 0 else 1.4
    canvas.line(project(x, 0, z), project(x, height, z), 0.17 * scale, metal, POLE, z)
    canvas.line(project(x, height, z), project(x + reach, height + 0.25, z), 0.12 * scale, metal, POLE, z)


def draw_sign(canvas: Canvas, x: float, z: float, metal: Colour) -> None:
    """Draw a road sign on its post: a red-rimmed disc or triangle, a blue square or a yellow lozenge."""
    rng, project = canvas.rng, canvas.camera.project
    up, radius, kind = rng.uniform(2.2, 2.8), rng.uniform(0.42, 0.62), int(rng.integers(4))
    canvas.line(project(x, 0, z), project(x, up, z), 0.1 * canvas.camera.scale(z), metal, POLE, z)
    rim: Colour = ((196, 34, 38), (196, 34, 38), (34, 84, 172), (236, 234, 226))[kind]
    plate: Colour = ((232, 230, 224), (232, 230, 224), (214, 220, 228), (226, 178, 34))[kind]
    corners = (tuple(range(0, 360, 30)), (90, 210, 330), (45, 135, 225, 315), (0, 90, 180, 270))[kind]
    angles = np.deg2rad(corners).tolist()
    for size, colour in ((1.1 * radius, rim), (0.62 * radius, plate)):
        canvas.face([(x + size * np.cos(a), up + size * np.sin(a), z) for a in angles], colour, SIGN)


def draw_traffic_light(canvas: Canvas, x: float, z: float, metal: Colour) -> None:
    """Draw a traffic light on its post, one of its three lamps lit."""
    project, scale, lit = canvas.camera.project, canvas.camera.scale(z), int(canvas.rng.integers(3))
    canvas.line(project(x, 0, z), project(x, 2.6, z), 0.13 * scale, metal, POLE, z)
    canvas.front((x - 0.22, x + 0.22), (2.5, 3.6), z, (30, 32, 30), SIGN)
    colours: tuple[Colour, ...] = ((60, 230, 120), (250, 190, 50), (250, 50, 40))
    for lamp, colour in enumerate(colours):
        glow = colour if lamp == lit else shaded(colour, 0.22)
        canvas.disc(project(x, 2.7 + 0.35 * lamp, z), (0.14 * scale, 0.14 * scale), glow, SIGN, z)


def draw_clutter(canvas: Canvas, x: float, z: float) -> None:
    """Draw a bin or a box on the pavement, which belongs to no class and is void."""
    rng = canvas.rng
    half, tall, colour = rng.uniform(0.2, 0.5), rng.uniform(0.7, 1.2), varied(rng, (70, 84, 76), 22)
    canvas.front((x - half, x + half), (0, tall), z, colour, IGNORE_LABEL)
    canvas.front((x - half, x + half), (0.85 * tall, tall), z, shaded(colour, 0.6), None)
