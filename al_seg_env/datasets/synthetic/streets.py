"""Procedurally drawn streets: a data set that works offline, with a second style to pretrain on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from al_seg_env.datasets.image_files import check_image_size
from al_seg_env.datasets.segmentation_data import IGNORE_LABEL
from al_seg_env.datasets.synthetic import scenery
from al_seg_env.datasets.synthetic.canvas import value_noise
from al_seg_env.datasets.synthetic.street_scene import Look, Street, Weather, draw_street, plan_street
from al_seg_env.storage.validation import check_choice, check_int
from al_seg_env.types import FloatArray, Size, UInt8Array

_CLASSES: tuple[tuple[str, tuple[int, int, int]], ...] = (  # in the order of the labels in _scenery
    ("road", (128, 64, 128)),
    ("sidewalk", (244, 35, 232)),
    ("building", (70, 70, 70)),
    ("pole", (153, 153, 153)),
    ("sign", (220, 220, 0)),
    ("vegetation", (107, 142, 35)),
    ("sky", (70, 130, 180)),
    ("person", (220, 20, 60)),
    ("car", (0, 0, 142)),
    ("bicycle", (119, 11, 32)),
)

_LOOKS = {
    "street": Look(
        asphalt=(98, 98, 101),
        pavement=(142, 136, 130),
        grass=(92, 106, 60),
        marking=(214, 214, 208),
        metal=(92, 96, 98),
        walls=(
            (168, 154, 134), (138, 98, 80), (186, 178, 164), (124, 122, 120), (172, 136, 98), (108, 94, 86),
        ),
        roofs=((118, 66, 52), (74, 72, 76)),
        leaves=((66, 90, 42), (86, 98, 46), (56, 80, 50), (120, 102, 48)),
        cars=((150, 152, 156), (48, 50, 54), (212, 212, 212), (142, 32, 32), (40, 62, 116), (92, 96, 92)),
        weathers=(
            Weather(
                (92, 142, 202), (198, 214, 228), (1.06, 1.0, 0.93), (1.05, 1.25), 0.52, (0.002, 0.005), 0.8,
            ),
            Weather(
                (176, 182, 190), (208, 211, 212), (0.97, 1.0, 1.04), (0.9, 1.05), 0.93, (0.003, 0.008), 0.5,
            ),
            Weather(
                (92, 98, 138), (222, 170, 136), (1.10, 0.97, 0.88), (0.65, 0.85), 0.75, (0.002, 0.006), 0.3,
            ),
            Weather(
                (194, 200, 206), (210, 212, 212), (1.0, 1.0, 1.0), (0.95, 1.1), 0.88, (0.010, 0.018), 0.2,
            ),
        ),
        eye_height=(1.5, 2.3),
        grain=1.0,
        blocky=False,
        saturation=0.95,
        contrast=1.08,
        noise=5.0,
    ),
    "render": Look(
        asphalt=(116, 108, 112),
        pavement=(188, 174, 148),
        grass=(132, 140, 44),
        marking=(238, 196, 66),
        metal=(58, 74, 70),
        walls=(
            (214, 186, 140), (222, 158, 120), (150, 176, 190), (226, 214, 186), (190, 112, 84),
            (128, 150, 120),
        ),
        roofs=((176, 84, 54), (104, 84, 92)),
        leaves=((70, 122, 28), (104, 134, 30), (38, 104, 62)),
        cars=((226, 226, 226), (208, 44, 34), (236, 178, 32), (28, 96, 190), (26, 26, 32), (62, 150, 110)),
        weathers=(
            Weather(
                (36, 108, 216), (150, 206, 244), (1.04, 1.02, 0.94), (1.0, 1.12), 0.42, (0.0, 0.002), 0.9,
            ),
            Weather(
                (112, 112, 186), (252, 184, 116), (1.16, 0.98, 0.78), (0.85, 1.0), 0.48, (0.002, 0.005), 0.5,
            ),
            Weather(
                (104, 112, 140), (166, 170, 190), (0.92, 0.97, 1.12), (0.75, 0.9), 0.85, (0.002, 0.006), 0.6,
            ),
        ),
        eye_height=(1.9, 3.0),
        grain=0.8,
        blocky=True,
        saturation=1.25,
        contrast=1.2,
        noise=0.7,
    ),
}  # fmt: skip

_MIN_SIDE = 32
MOST_SCENES = 10**6
"""Maximum number of images of a data set."""
_MAX_CACHED_BYTES = 256 * 2**20
_Scene: TypeAlias = tuple[int, str, Size, int]  # seed, style, size and number, which determine a scene
_drawn_bytes = 0
_drawn: dict[_Scene, tuple[UInt8Array, UInt8Array]] = {}
"""Scenes of all data sets of this process, so that equal environments draw each once."""


_VERSION = 1  # increase it whenever a change of the code changes scenes


class SyntheticStreets:
    """Street scenes drawn by a program, with exact masks: a :class:`~al_seg_env.datasets.SegmentationData`.

    A camera looks down a road between houses, gardens and pavements, with cars, people, bicycles, posts and signs, in
    several kinds of neighbourhood and weather. Roads fill a third of the pixels. Signs and bicycles are hundreds of
    times rarer, and small: only a few regions of some images have them, so it matters which regions are labelled. Bins
    and boxes, and pixels in which several things meet, are void (255).

    There are two styles with the same classes and the same kinds of scenes. ``"street"`` is the target. ``"render"`` is
    for pretraining, in place of a video game such as GTA5: its colours, light, textures and noise differ, and none of
    its scenes occurs in the other style.

    Image ``i`` depends on ``seed``, ``style``, ``image_size`` and ``i`` alone. It depends neither on ``count``, so a
    larger ``count`` only adds images, nor on earlier requests. Images of another size show the same streets, and wider
    ones show more of them. Scenes are drawn on request, in a few milliseconds each, and kept for all data sets of the
    process (up to 64 MB).

    Args:
        count: Number of images, at most a million.
        image_size: ``(height, width)``, each at least 32.
        seed: Seed of all scenes; at least 0.
        style: ``"street"`` or ``"render"``.

    Attributes:
        classes: The 10 class names, in the order of the labels.
        names: ``"street-0000"``, ``"street-0001"``, ... or ``"render-0000"``, ...
        palette: Cityscapes' colours of these classes, ``(10, 3)`` uint8.
        image_size: ``(height, width)``.

    Raises:
        ValueError: If an argument is out of range, or the style is unknown.

    Example:
        >>> data = SyntheticStreets(count=4, image_size=(96, 128))
        >>> data.image(3).shape, data.mask(3).shape, data.names[3]
        ((96, 128, 3), (96, 128), 'street-0003')
    """

    def __init__(
        self, count: int = 200, image_size: Sequence[int] = (96, 128), seed: int = 0, style: str = "street"
    ) -> None:
        check_int("count", count, 1, MOST_SCENES)
        self.seed = check_int("seed", seed)
        check_choice("style", style, tuple(_LOOKS))
        self.style = style
        self.image_size = check_image_size(image_size)
        if min(self.image_size) < _MIN_SIDE:
            raise ValueError(
                f"image_size is {tuple(image_size)}; expected sides of at least {_MIN_SIDE} pixels: smaller "
                "streets show nothing"
            )
        self.classes = tuple(name for name, _ in _CLASSES)
        self.palette: UInt8Array = np.array([colour for _, colour in _CLASSES], np.uint8)
        self.names = tuple(f"{style}-{index:04d}" for index in range(count))

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return (
            f"SyntheticStreets(count={len(self)}, image_size={self.image_size}, seed={self.seed}, style={self.style!r})"
        )

    @property
    def fingerprint(self) -> str | None:
        """A text with everything that scenes depend on; ``None`` for a subclass, which may draw others."""
        if type(self) is not SyntheticStreets:
            return None
        return f"{self!r}, version {_VERSION}"

    def image(self, index: int) -> UInt8Array:
        """Return a copy of image ``index``, ``(H, W, 3)`` uint8 RGB.

        Raises:
            IndexError: If there is no such image; negative indexes are not counted from the end.
        """
        return self._scene(index)[0].copy()

    def mask(self, index: int) -> UInt8Array:
        """Return a copy of the labels of image ``index``, ``(H, W)`` uint8: 0 to 9, or 255 for void.

        Raises:
            IndexError: If there is no such image; negative indexes are not counted from the end.
        """
        return self._scene(index)[1].copy()

    def _scene(self, index: int) -> tuple[UInt8Array, UInt8Array]:
        if not 0 <= index < len(self):
            raise IndexError(f"there is no image {index}: this data set holds images 0 to {len(self) - 1}")
        key = (self.seed, self.style, self.image_size, int(index))
        scene = _drawn.get(key)
        if scene is None:
            scene = draw_scene(*key)
            _keep(key, scene)
        return scene


def _keep(key: _Scene, scene: tuple[UInt8Array, UInt8Array]) -> None:
    """Keep a scene, and drop all others if they take too much memory."""
    global _drawn_bytes
    size = scene[0].nbytes + scene[1].nbytes
    if _drawn_bytes + size > _MAX_CACHED_BYTES:
        _drawn.clear()
        _drawn_bytes = 0
    _drawn[key] = scene
    _drawn_bytes += size


def draw_scene(seed: int, style: str, size: tuple[int, int], index: int) -> tuple[UInt8Array, UInt8Array]:
    """Draw one scene at twice the size and reduce it: return image ``(H, W, 3)`` and labels ``(H, W)``, both uint8."""
    look, stream = _LOOKS[style], (seed, list(_LOOKS).index(style), index)
    rng, grain = (np.random.default_rng((*stream, part)) for part in range(2))
    street = plan_street(rng, look)
    picture, labels, depths = draw_street(street, (2 * size[0], 2 * size[1]), rng, grain)
    mask = _vote(labels)
    if look.blocky:
        colours = picture[::2, ::2].astype(np.float32)
    else:
        colours = np.asarray(Image.fromarray(picture).reduce(2), np.float32)
    return _photograph(street, colours, mask, depths[::2, ::2], rng, grain), mask


_IS_THING: npt.NDArray[np.int32] = np.zeros(256, np.int32)
_IS_THING[[scenery.POLE, scenery.SIGN, scenery.PERSON, scenery.CAR, scenery.BICYCLE]] = 1


def _vote(labels: npt.NDArray[np.int32]) -> UInt8Array:
    """Return the most frequent label in each square of 2 x 2 pixels, ``(H, W)``.

    On ties, things take precedence over their background, and four different labels become void.
    """
    quarters = np.stack([labels[0::2, 0::2], labels[0::2, 1::2], labels[1::2, 0::2], labels[1::2, 1::2]])
    votes = (quarters[:, None] == quarters[None]).sum(1)  # (4, H, W)
    best = (2 * votes + _IS_THING[quarters]).argmax(0)
    mask = np.take_along_axis(quarters, best[None], 0)[0].astype(np.uint8)
    mask[votes.max(0) == 1] = IGNORE_LABEL
    return mask


# How much of the fine grain and of the large blotches each class shows; the ground has its own texture.
_FINE: FloatArray = np.zeros(256, np.float32)
_FINE[[scenery.BUILDING, scenery.VEGETATION, scenery.CAR, scenery.PERSON]] = (0.07, 0.16, 0.03, 0.05)
_BLOTCHY: FloatArray = np.zeros(256, np.float32)
_BLOTCHY[[scenery.BUILDING, scenery.VEGETATION, scenery.ROAD, scenery.SIDEWALK]] = (0.06, 0.15, 0.05, 0.05)


def _photograph(
    street: Street,
    colours: FloatArray,
    mask: UInt8Array,
    depths: FloatArray,
    rng: np.random.Generator,
    grain: np.random.Generator,
) -> UInt8Array:
    """Return the scene as a camera shows it: with texture, haze, light and sensor noise."""
    look, weather, size = street.look, street.weather, (mask.shape[0], mask.shape[1])
    gain, haze = rng.uniform(*weather.gain), rng.uniform(*weather.haze)
    tint = np.asarray(weather.tint, np.float32) * rng.normal(1, 0.02, 3).astype(np.float32)

    fine = value_noise(grain, size, size[1] // 2, look.blocky)
    blotches = value_noise(grain, size, 14, look.blocky)
    texture = 1 + look.grain * (_FINE[mask] * fine + _BLOTCHY[mask] * blotches)
    clear = np.where(mask == scenery.SKY, 1, np.exp(-np.float32(haze) * depths))[..., None]
    air = np.asarray(weather.horizon, np.float32)
    colours = (air + (colours * texture[..., None] - air) * clear).astype(np.float32)

    rows = np.linspace(-1, 1, size[0], dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, size[1], dtype=np.float32)[None]
    vignette = 1 - np.float32(0.08) * (rows**2 + columns**2)
    colours = colours * (np.float32(gain) * tint) * vignette[..., None]
    grey = colours.mean(-1, keepdims=True)
    colours = grey + look.saturation * (colours - grey)
    colours = 118 + look.contrast * (colours - 118)
    strength = np.float32(look.noise * rng.uniform(0.6, 1.4))
    colours = colours + strength * grain.standard_normal(colours.shape, np.float32)
    return np.clip(colours, 0, 255).astype(np.uint8)
