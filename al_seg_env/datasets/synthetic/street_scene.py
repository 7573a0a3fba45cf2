"""The layout of a drawn street: ground and sky, the positions of things, and the weather."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from al_seg_env.datasets.synthetic import scenery
from al_seg_env.datasets.synthetic.canvas import Camera, Canvas, Colour, value_noise, varied
from al_seg_env.types import FloatArray

_FAR = 85.0  # where the houses end and the skyline begins


@dataclass(frozen=True)
class Weather:
    """The light of a scene: the colours of the sky, and its effect on everything else."""

    zenith: Colour
    horizon: Colour
    tint: Colour
    gain: tuple[float, float]  # range of the brightness
    shadow: float  # brightness of the ground in the shadow of a house
    haze: tuple[float, float]  # range of the share of the light that is lost in a metre
    clouds: float


@dataclass(frozen=True)
class Look:
    """The appearance of a style: the colours of all materials, its weathers and its camera."""

    asphalt: Colour
    pavement: Colour
    grass: Colour
    marking: Colour
    metal: Colour
    walls: tuple[Colour, ...]
    roofs: tuple[Colour, ...]
    leaves: tuple[Colour, ...]
    cars: tuple[Colour, ...]
    weathers: tuple[Weather, ...]
    eye_height: tuple[float, float]
    grain: float  # strength of the textures
    blocky: bool  # textures of few hard blocks, edges without antialiasing
    saturation: float
    contrast: float
    noise: float  # of the sensor, in grey levels


@dataclass(frozen=True)
class District:
    """A kind of neighbourhood: how many things of each kind there are."""

    half_width: tuple[float, float]
    built: float  # share of the lots with a house on it
    storeys: tuple[float, float]
    trees: float  # probability of a tree at each place for one
    parked: float  # probability of a car at each place for one
    driving: float  # average number, here and below
    walkers: float
    bicycles: float
    signs: float
    lights: float  # probability of a crossing with traffic lights


DISTRICTS = (
    District((4.5, 6.0), 0.95, (3, 7), 0.12, 0.25, 2.0, 5.0, 0.50, 1.6, 0.5),  # centre
    District((3.6, 4.8), 0.70, (1.6, 3), 0.45, 0.45, 0.6, 0.9, 1.00, 0.6, 0.05),  # houses
    District((6.0, 8.0), 0.60, (2, 6), 0.55, 0.10, 4.0, 0.6, 0.15, 1.4, 0.35),  # avenue
    District((3.8, 5.5), 0.22, (1.6, 3), 0.60, 0.05, 1.2, 0.3, 0.20, 0.8, 0.0),  # outskirts
)


@dataclass(frozen=True)
class Street:
    """The layout of one street, into which :func:`draw_street` puts the things."""

    look: Look
    district: District
    weather: Weather
    focal: float  # in heights of the image
    centre: tuple[float, float]  # of the view, in shares of width and height
    eye: tuple[float, float]  # the camera's offset and height
    bend: float
    half: float  # half the width of the road
    pavement: float  # its width
    sun_side: int  # -1: the houses on the left cast their shadow on the road, 1: those on the right
    cast: float  # length of a shadow, in heights of what casts it
    crossing: float  # distance of the zebra crossing; negative if there is none
    lots: tuple[tuple[int, float, float, float], ...]  # side, near end, far end, height (0: a garden)


def plan_street(rng: np.random.Generator, look: Look) -> Street:
    """Return a random layout."""
    district = DISTRICTS[int(rng.choice(len(DISTRICTS), p=(0.32, 0.3, 0.2, 0.18)))]
    half = rng.uniform(*district.half_width)
    lots = []
    for side in (-1, 1):
        z = rng.uniform(-8.0, 3.0)
        while z < _FAR:
            length, built = rng.uniform(7, 18), rng.random() < district.built
            height = 3.1 * rng.uniform(*district.storeys) + 0.8
            lots.append((side, z, z + length, height if built else 0.0))
            z += length + (rng.uniform(1, 4) if rng.random() < 0.35 else 0.0)
    return Street(
        look=look,
        district=district,
        weather=look.weathers[int(rng.integers(len(look.weathers)))],
        focal=rng.uniform(0.85, 1.15),
        centre=(rng.uniform(0.36, 0.64), rng.uniform(0.38, 0.52)),
        eye=(half * rng.uniform(-0.1, 0.6), rng.uniform(*look.eye_height)),
        bend=rng.normal(0, 0.0018),
        half=half,
        pavement=rng.uniform(2.2, 4.5),
        sun_side=int(rng.choice((-1, 1))),
        cast=rng.uniform(0.2, 1.1),
        crossing=rng.uniform(6, 22) if rng.random() < max(0.2, district.lights) else -1.0,
        lots=tuple(lots),
    )


def draw_street(
    street: Street, size: tuple[int, int], rng: np.random.Generator, grain: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32], FloatArray]:
    """Draw a street on a canvas of ``size``: picture ``(H, W, 3)``, labels ``(H, W)`` and depths ``(H, W)``.

    ``rng`` determines the positions and the appearance of things, ``grain`` the texture of ground and sky.
    """
    height, width = size
    centre = (street.centre[0] * width, street.centre[1] * height)
    camera = Camera(street.focal * height, centre, street.eye[1], street.eye[0], street.bend)
    canvas = Canvas(camera, *_ground_and_sky(street, camera, size, grain), rng)
    look, front = street.look, street.half + street.pavement
    leaf = look.leaves[int(rng.integers(len(look.leaves)))]
    scenery.draw_skyline(canvas, 130.0, (look.walls[0], leaf), 1.0 - 0.8 * street.district.built)
    for side, near, far, tall in sorted(street.lots, key=lambda lot: -lot[2]):
        if far < 1:
            continue
        lit = rng.uniform(0.92, 1.05) if side != street.sun_side else rng.uniform(0.66, 0.8)
        if tall:
            colours = varied(rng, _one_of(rng, look.walls), 14), varied(rng, _one_of(rng, look.roofs), 10)
            scenery.draw_building(canvas, side * front, (near, far), tall, colours, lit)
            continue
        for z in (far - 1.5, 0.5 * (near + far)):
            if z > 4:
                place = side * (front + rng.uniform(1.5, 5))
                scenery.draw_tree(canvas, place, z, rng.uniform(5, 10), varied(rng, leaf, 8))
        if rng.random() < 0.7:
            scenery.draw_hedge(canvas, side * front, (near, far), rng.uniform(0.8, 2.0), varied(rng, leaf, 8))
    things = [*_planted(street, rng, leaf), *_moving(street, rng)]
    for _, draw in sorted(things, key=lambda thing: -thing[0]):
        draw(canvas)
    return canvas.arrays()


def _one_of(rng: np.random.Generator, colours: tuple[Colour, ...]) -> Colour:
    return colours[int(rng.integers(len(colours)))]


Things: TypeAlias = list[tuple[float, Callable[[Canvas], None]]]  # distance, and a function that draws the thing


def _planted(street: Street, rng: np.random.Generator, leaf: Colour) -> Things:
    """Place the things that stand on the pavement: trees, lamps, signs, traffic lights and void clutter."""
    things: Things = []
    district, kerb, metal = street.district, street.half + 0.35, varied(rng, street.look.metal, 12)
    for side in (-1, 1):
        row, step = side * (kerb + 0.6 * (street.pavement - 0.8)), rng.uniform(7, 11)
        for z in np.arange(rng.uniform(5, 12), 70, step).tolist():
            tall, shade, grows = rng.uniform(4, 8), varied(rng, leaf, 7), rng.random() < district.trees
            if grows:
                things.append((z, partial(scenery.draw_tree, x=row, z=z, height=tall, leaf=shade)))
        if rng.random() < 0.7:
            tall = rng.uniform(5, 7.5)
            for z in np.arange(rng.uniform(6, 18), 70, rng.uniform(16, 26)).tolist():
                things.append((z, partial(scenery.draw_lamp, x=side * kerb, z=z, height=tall, metal=metal)))
        if street.crossing > 0 and rng.random() < district.lights * 1.6:
            z = street.crossing - 2
            things.append((z, partial(scenery.draw_traffic_light, x=side * kerb, z=z, metal=metal)))
    for _ in range(rng.poisson(district.signs)):
        z, x = rng.uniform(5, 26), kerb * float(rng.choice((-1, 1)))
        things.append((z, partial(scenery.draw_sign, x=x, z=z, metal=metal)))
    for _ in range(rng.poisson(1.0)):
        z, x = rng.uniform(5, 30), (kerb + rng.uniform(0.3, street.pavement)) * float(rng.choice((-1, 1)))
        things.append((z, partial(scenery.draw_clutter, x=x, z=z)))
    return things


def _moving(street: Street, rng: np.random.Generator) -> Things:
    """Place cars, people and bicycles."""
    things: Things = []
    district, half = street.district, street.half

    def add_car(x: float, z: float, oncoming: bool) -> None:
        colour = varied(rng, _one_of(rng, street.look.cars), 10)
        lit = 0.72 if (x > street.eye[0]) == (street.sun_side < 0) else 0.98
        car = partial(scenery.draw_car, x=x, z=z, colour=colour, oncoming=oncoming, lit=lit)
        things.append((z, car))

    for side in (-1, 1):
        for z in np.arange(rng.uniform(4, 9), 60, 6.0).tolist():
            if rng.random() < district.parked:
                add_car(side * (half - 1.1), z + rng.uniform(-0.4, 0.4), bool(rng.random() < 0.5))
    for _ in range(rng.poisson(district.driving)):
        lane = half * float(rng.choice((-1, 1))) * rng.uniform(0.3, 0.5)
        add_car(lane, rng.uniform(7, 60), lane < 0)
    for _ in range(rng.poisson(district.walkers)):
        z, x = rng.uniform(5, 32), float(rng.choice((-1, 1))) * (half + rng.uniform(0.5, street.pavement))
        if street.crossing > 0 and rng.random() < 0.3:
            z, x = street.crossing + rng.uniform(-1, 1), rng.uniform(-half, half)
        for _ in range(1 + rng.poisson(0.6)):
            things.append((z, partial(scenery.draw_person, x=x, z=z)))
            z, x = z + rng.uniform(-0.5, 0.5), x + rng.uniform(0.5, 0.8)
    for _ in range(rng.poisson(district.bicycles)):
        ridden, turn = bool(rng.random() < 0.6), rng.uniform(0.25, 1.0)
        aside = half - rng.uniform(0.4, 1.5) if ridden else half + rng.uniform(0.5, street.pavement)
        z, x = rng.uniform(4.5, 14), aside * float(rng.choice((-1, 1)))
        things.append((z, partial(scenery.draw_bicycle, x=x, z=z, turn=turn, ridden=ridden)))
    return things


def _ground_and_sky(
    street: Street, camera: Camera, size: tuple[int, int], grain: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32], FloatArray]:
    height, width = size
    weather = street.weather
    first = int(camera.centre[1]) + 1  # the first row below the horizon
    picture: FloatArray = np.empty((height, width, 3), np.float32)
    labels: npt.NDArray[np.int32] = np.full(size, scenery.SKY, np.int32)
    depths: FloatArray = np.full(size, 255.0, np.float32)

    rise = np.linspace(1, 0, first, dtype=np.float32)[:, None, None] ** 0.7  # (first, 1, 1)
    zenith, horizon = np.asarray(weather.zenith, np.float32), np.asarray(weather.horizon, np.float32)
    sky = horizon + (zenith - horizon) * rise
    clouds = value_noise(grain, (first, width), 5) + 0.5 * value_noise(grain, (first, width), 13)
    picture[:first] = sky + (weather.clouds * np.clip(clouds, 0, 1))[..., None] * (
        np.asarray((236, 238, 240), np.float32) - sky
    )

    rows = np.arange(first, height, dtype=np.float32)[:, None] + 0.5 - np.float32(camera.centre[1])
    z = np.minimum(np.float32(camera.focal * camera.height) / rows, 160)  # (H - first, 1)
    across = (np.arange(width, dtype=np.float32)[None] + 0.5 - np.float32(camera.centre[0])) * (z / camera.focal)
    x = (across + np.float32(camera.offset) - np.float32(0.5 * camera.bend) * z * z).astype(np.float32)
    labels[first:], picture[first:] = _ground(street, x, z, grain)
    depths[first:] = z
    return np.clip(picture, 0, 255).astype(np.uint8), labels, depths


def _ground(
    street: Street, x: FloatArray, z: FloatArray, grain: np.random.Generator
) -> tuple[npt.NDArray[np.int32], FloatArray]:
    """Return labels and colours of the ground at ``x``, ``(h, w)``, and ``z``, ``(h, 1)``."""
    look, half, away = street.look, np.float32(street.half), np.abs(x)
    road, paved = away < half, away < half + np.float32(street.pavement)
    labels = np.where(road, scenery.ROAD, np.where(paved, scenery.SIDEWALK, scenery.VEGETATION))
    base = np.asarray([varied(grain, colour, 9) for colour in (look.asphalt, look.pavement, look.grass)], np.float32)
    colours = base[np.where(road, 0, np.where(paved, 1, 2))]  # (h, w, 3)

    tile = value_noise(grain, (64, 64), 32, look.blocky) + 0.8 * value_noise(grain, (64, 64), 7, look.blocky)
    texture = tile[(x * 9).astype(np.int32) & 63, (z * 5).astype(np.int32) & 63]
    worn = tile[(x * 3).astype(np.int32) & 63, (z * 0.7).astype(np.int32) & 63]
    light = 1 + look.grain * (0.13 * texture + 0.09 * worn) / (1 + z / 25)
    near = np.clip(1.5 - z / 14, 0, 1)  # fine lines fade with distance
    joints = paved & ~road & ((x % 0.9 < 0.08) | (z % 0.9 < 0.07))
    light -= 0.25 * near * joints
    light += 0.16 * (paved & (np.abs(away - half - 0.1) < 0.1))  # the kerb

    painted = (away < 0.09) & (z % 7 < 3.2)
    if street.district.half_width[1] > 5:
        painted |= np.abs(away - half + 0.35) < 0.07
    if street.crossing > 0:
        painted |= road & (np.abs(z - np.float32(street.crossing)) < 1.6) & (x % 1.1 < 0.55)
    colours = np.where(painted[..., None], np.asarray(look.marking, np.float32), colours)
    return labels, colours * (light * _cast_shadows(street, x, z))[..., None]


def _cast_shadows(street: Street, x: FloatArray, z: FloatArray) -> FloatArray:
    """Return the brightness, ``(h, w)``, that the shadows of the houses on the sunny side leave."""
    reach: FloatArray = np.zeros(170, np.float32)  # of the shadow at each metre of the road
    for side, near, far, tall in street.lots:
        if side == street.sun_side:
            reach[max(0, int(near)) : max(0, int(far))] = max(tall, 2.0) * street.cast
    gap = street.half + street.pavement - street.sun_side * x  # (h, w): distance from the houses
    dark = gap < reach[z.astype(np.int32)]
    return np.where(dark, np.float32(street.weather.shadow), np.float32(1))
