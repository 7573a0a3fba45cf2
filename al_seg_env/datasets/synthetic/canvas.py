"""Tools to draw streets: a pinhole camera, and a canvas that stores labels and depths.

Lengths are metres in street coordinates: ``x`` to the right of the middle of the road, ``y`` up, ``z`` away from the
camera along the road. Things are drawn from far to near, so that near ones hide those behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from al_seg_env.types import FloatArray

NEAR = 1.5  # nothing is drawn nearer to the camera than this
DEPTH_STEPS = 2.0  # depths are kept in one byte, in steps of half a metre; 255 is the sky

Point = tuple[float, float]
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Camera:
    """A camera that looks down a road, which may bend.

    Attributes:
        focal: Focal length in pixels of the canvas.
        centre: The vanishing point of the road, ``(x, y)`` in pixels of the canvas.
        height: Height above the road.
        offset: Position of the camera in ``x``.
        bend: Curvature of the road, in 1 / metre.
    """

    focal: float
    centre: Point
    height: float
    offset: float
    bend: float

    def scale(self, z: float) -> float:
        """Return the pixels per metre at distance ``z``."""
        return self.focal / max(z, NEAR)

    def project(self, x: float, y: float, z: float) -> Point:
        """Return the pixel ``(x, y)`` that shows a point of the street."""
        z = max(z, NEAR)
        across = x - self.offset + 0.5 * self.bend * z * z
        return (
            self.centre[0] + self.focal * across / z,
            self.centre[1] + self.focal * (self.height - y) / z,
        )


class Canvas:
    """A picture with the label and the depth of each pixel.

    Args:
        camera: The camera that sees the street.
        picture: The ground and the sky to start with, ``(H, W, 3)`` uint8.
        labels: Their labels, ``(H, W)``.
        depths: Their distances in metres, ``(H, W)``.
        rng: Random source for the appearance of the things that are drawn.
    """

    def __init__(
        self,
        camera: Camera,
        picture: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.int32],
        depths: npt.NDArray[np.float32],
        rng: np.random.Generator,
    ) -> None:
        self.camera, self.rng = camera, rng
        codes = labels + 256 * np.minimum(depths * DEPTH_STEPS, 255).astype(np.int32)
        self._picture, self._codes = Image.fromarray(picture), Image.fromarray(codes)
        self._paint, self._mark = ImageDraw.Draw(self._picture), ImageDraw.Draw(self._codes)

    def arrays(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Return picture ``(H, W, 3)``, labels ``(H, W)`` and depths ``(H, W)``."""
        codes = np.asarray(self._codes)
        return np.asarray(self._picture), codes & 255, ((codes >> 8) / DEPTH_STEPS).astype(np.float32)

    def polygon(self, points: Sequence[Point], colour: Colour, label: int | None, z: float) -> None:
        """Fill a polygon given in pixels. If ``label`` is None, the pixels keep their labels."""
        self._paint.polygon(points, fill=_rgb(colour))
        if label is not None:
            self._mark.polygon(points, fill=_code(label, z))

    def face(self, corners: Sequence[tuple[float, float, float]], colour: Colour, label: int | None) -> None:
        """Fill a flat face given by its corners in the street."""
        z = sum(max(corner[2], NEAR) for corner in corners) / len(corners)
        self.polygon([self.camera.project(*corner) for corner in corners], colour, label, z)

    def wall(self, x: float, y: Point, z: Point, colour: Colour, label: int | None) -> None:
        """Fill an upright rectangle that stands along the road: ``y`` and ``z`` are its ranges."""
        self.face([(x, y[0], z[0]), (x, y[1], z[0]), (x, y[1], z[1]), (x, y[0], z[1])], colour, label)

    def front(self, x: Point, y: Point, z: float, colour: Colour, label: int | None) -> None:
        """Fill an upright rectangle that faces the camera: ``x`` and ``y`` are its ranges."""
        self.face([(x[0], y[0], z), (x[0], y[1], z), (x[1], y[1], z), (x[1], y[0], z)], colour, label)

    def disc(self, centre: Point, radii: Point, colour: Colour, label: int | None, z: float) -> None:
        """Fill an ellipse given in pixels."""
        box = _box(centre, radii)
        self._paint.ellipse(box, fill=_rgb(colour))
        if label is not None:
            self._mark.ellipse(box, fill=_code(label, z))

    def wheel(self, centre: Point, radii: Point, colour: Colour, label: int, z: float) -> None:
        """Draw a ring, which shows what is behind it. The whole disc gets the label."""
        box = _box(centre, radii)
        self._paint.ellipse(box, outline=_rgb(colour), width=max(1, round(0.18 * radii[1])))
        self._mark.ellipse(box, fill=_code(label, z))

    def line(self, start: Point, end: Point, width: float, colour: Colour, label: int, z: float) -> None:
        """Draw a line of at least one pixel given in pixels."""
        pixels = max(1, round(width))
        self._paint.line([start, end], fill=_rgb(colour), width=pixels)
        self._mark.line([start, end], fill=_code(label, z), width=pixels)


def _rgb(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, int(value))) for value in colour)
    return red, green, blue


def _code(label: int, z: float) -> int:
    return label + 256 * min(254, int(z * DEPTH_STEPS))


def _box(centre: Point, radii: Point) -> tuple[float, float, float, float]:
    return centre[0] - radii[0], centre[1] - radii[1], centre[0] + radii[0], centre[1] + radii[1]


def shaded(colour: Colour, factor: float) -> Colour:
    """Return a colour made lighter or darker."""
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def varied(rng: np.random.Generator, colour: Colour, spread: float) -> Colour:
    """Return a random colour close to ``colour``, which differs in brightness more than in hue."""
    light, red, green, blue = rng.standard_normal(4).tolist()
    light, red, green, blue = spread * light, spread / 3 * red, spread / 3 * green, spread / 3 * blue
    return colour[0] + light + red, colour[1] + light + green, colour[2] + light + blue


def value_noise(rng: np.random.Generator, size: tuple[int, int], cells: int, blocky: bool = False) -> FloatArray:
    """Return smooth (or blocky) noise in about [-1, 1], ``(H, W)``, with ``cells`` bumps across."""
    rows = max(2, round(cells * size[0] / size[1]))
    coarse = Image.fromarray(rng.uniform(-1, 1, (rows, cells)).astype(np.float32))
    how = Image.Resampling.NEAREST if blocky else Image.Resampling.BICUBIC
    return np.asarray(coarse.resize((size[1], size[0]), how))
