"""A learner in closed form and data to go with it, so that rewards and observations are known exactly."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import lru_cache

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from al_seg_env import ArrayData, EnvConfig, RegionSelectionEnv, Splits, TorchLearner
from al_seg_env.datasets.segmentation_data import IGNORE_LABEL
from al_seg_env.observation.features import Prediction
from al_seg_env.observation.region_pixels import RegionPixels
from al_seg_env.regions import RegionGrid

IMAGE_SIZE = (32, 40)
CLASSES = ("road", "car", "sky")
SPLITS = Splits(state=(0, 1), train=(2, 3, 4), reward=(5,), eval=(6, 7), test=(8,))


def numbered_data(
    count: int = 9, image_size: tuple[int, int] = IMAGE_SIZE, seed: int = 0, void: float = 0.0
) -> ArrayData:
    """Return images whose every first channel is the image's number, with random masks, ``void`` of them 255."""
    rng = np.random.default_rng(seed)
    images, masks = [], []
    for number in range(count):
        image = rng.integers(0, 256, size=(*image_size, 3), dtype=np.uint8)
        image[..., 0] = number
        images.append(image)
        mask = rng.integers(0, len(CLASSES), size=image_size)
        masks.append(np.where(rng.random(image_size) < void, IGNORE_LABEL, mask).astype(np.uint8))
    return ArrayData(images, masks, CLASSES, [f"image {number}" for number in range(count)])


def predicted(logits: Tensor, grid: RegionGrid, sampler=None) -> Prediction:
    """Return the prediction of all regions of images with these logits ``(B, C, H, W)``."""
    images = np.repeat(np.arange(len(logits)), grid.regions_per_image)
    cells = np.tile(np.arange(grid.regions_per_image), len(logits))
    pixels = RegionPixels(grid, images, cells, logits.device)
    samples = None if sampler is None else lambda count: map(pixels.gather, sampler(count))
    return Prediction(pixels.gather(logits), pixels, samples)


@lru_cache(maxsize=512)
def _closed_form_logits(n_classes: int, number: int, size: tuple[int, int], seen: tuple[int, ...]) -> Tensor:
    rng = np.random.default_rng([number, *seen])
    coarse = rng.normal(0, 2, size=(n_classes, -(-size[0] // 4), -(-size[1] // 4)))
    fine = rng.normal(0, 0.5, size=(n_classes, *size))
    smooth = np.kron(coarse, np.ones((4, 4)))[:, : size[0], : size[1]]
    return torch.from_numpy((smooth + fine).astype(np.float32))


class ClosedFormLearner:
    """A learner whose logits and confusion matrix are known functions of the labels it was shown.

    Its logits depend on the image's number and on how many labels of each class it was shown; its confusion
    matrix on the latter alone. It counts what is asked of it.

    Attributes:
        seen: Labelled pixels per class it was shown since the last reset, ``(C,)``.
        predicted: Numbers of the images in each call of :meth:`predict`.
        sampled: The same for :meth:`sample`.
        evaluated: The same for :meth:`evaluate`.
        resets: How often it was reset.
        targets: The targets of each :meth:`fit_step`.
    """

    def __init__(self, num_classes: int = 3, batch_size: int = 2, has_dropout: bool = True) -> None:
        self.num_classes, self.batch_size, self.has_dropout = num_classes, batch_size, has_dropout
        self.device = torch.device("cpu")
        self.numerics: dict = {}
        self.seen = np.zeros(num_classes, np.int64)
        self.resets = 0
        self.forget_calls()

    def forget_calls(self) -> None:
        self.predicted: list[list[int]] = []
        self.sampled: list[list[int]] = []
        self.evaluated: list[list[int]] = []
        self.targets: list[Tensor] = []

    def confusion_after(self, seen: Sequence[int]) -> np.ndarray:
        """Each class has 100 right pixels and one more for each label seen; 50 are taken for the next class."""
        n_classes = self.num_classes
        confusion = np.diag(100 + np.asarray(seen, np.int64))
        confusion[range(n_classes), np.roll(range(n_classes), -1)] += 50
        return confusion

    def class_iou_after(self, seen: Sequence[int]) -> np.ndarray:
        """Per class: right, over right + 50 missed + 50 taken for it by mistake."""
        right = 100 + np.asarray(seen, np.float64)
        return right / (right + 100)

    def miou_after(self, seen: Sequence[int]) -> float:
        """Mean IoU in percent."""
        return 100 * float(self.class_iou_after(seen).mean())

    def logits_of(self, number: int, size: tuple[int, int], seen: Sequence[int]) -> Tensor:
        """Logits ``(C, H, W)`` of an image by its number."""
        return _closed_form_logits(self.num_classes, number, tuple(size), tuple(np.asarray(seen).tolist()))

    def reset(self) -> None:
        self.resets += 1
        self.seen = np.zeros(self.num_classes, np.int64)

    def fit_step(self, images: Tensor, targets: Tensor, rng: np.random.Generator) -> float:
        assert images.shape == (len(targets), 3, *targets.shape[1:])
        rng.integers(2**63)  # as dropout would
        self.targets.append(targets.clone())
        self.seen = self.seen + np.bincount(targets.numpy().reshape(-1), minlength=256)[: self.num_classes]
        return 0.0

    def predict(self, images: Tensor) -> Tensor:
        assert len(images) <= self.batch_size
        numbers = images[:, 0, 0, 0].tolist()
        self.predicted.append(numbers)
        return torch.stack([self.logits_of(n, tuple(images.shape[2:]), self.seen) for n in numbers])

    def sample(self, images: Tensor, count: int, rng: np.random.Generator) -> Iterator[Tensor]:
        numbers = images[:, 0, 0, 0].tolist()
        self.sampled.append(numbers)
        noise = torch.Generator().manual_seed(int(rng.integers(2**63)))
        logits = torch.stack([self.logits_of(n, tuple(images.shape[2:]), self.seen) for n in numbers])
        for _ in range(count):
            yield logits + torch.randn(logits.shape, generator=noise)

    def evaluate(self, batches) -> Tensor:
        for images, masks in batches:
            assert masks.shape == (len(images), *images.shape[2:])
            self.evaluated.append(images[:, 0, 0, 0].tolist())
        return torch.from_numpy(self.confusion_after(self.seen))

    def state_dict(self) -> dict:
        return {"seen": self.seen.copy()}

    def load_state_dict(self, state) -> None:
        self.seen = state["seen"].copy()


SMALL = {
    "region_size": (8, 10),  # 16 regions in an image, 48 in the train split
    "crop_size": (8, 10),  # exactly the region, so that each label is seen once per iteration
    "regions_per_step": 3,
    "pool_size": 4,
    "budget": 12,
}


def closed_form_env(data=None, learner=None, splits=SPLITS, **options) -> RegionSelectionEnv:
    """Return a small environment around a :class:`ClosedFormLearner`; ``options`` are of ``EnvConfig`` or its own."""
    own = {name: options.pop(name) for name in ("oracle", "scores", "features", "render_mode") if name in options}
    return RegionSelectionEnv(
        numbered_data() if data is None else data,
        splits,
        ClosedFormLearner() if learner is None else learner,
        config=EnvConfig(**{**SMALL, **options}),
        **own,
    )


class TinyNetwork(nn.Module):
    """Two convolutions with BatchNorm and dropout, as an example of a module of one's own."""

    def __init__(self, classes: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.body(x)))


def tiny_network(classes: int = 3, dropout: float = 0.5, seed: int = 0) -> TinyNetwork:
    """Return a :class:`TinyNetwork` with weights from ``seed``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyNetwork(classes, dropout)


def play(env, seed: int | None, actions_seed: int = 0) -> list:
    """Play one episode with random actions; return a copy of everything the environment returned."""
    rng = np.random.default_rng(actions_seed)
    record = [copy.deepcopy(env.reset(seed=seed))]
    terminated = False
    while not terminated:
        action = rng.integers(env.action_space.nvec)
        result = env.step(action)
        terminated = result[2] or result[3]
        record.append(copy.deepcopy(result))
    return record


def same(one, other) -> bool:
    """Tell whether two nested structures are equal, types and arrays included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return one == other


ID = "al_seg_env/SyntheticStreets-v0"
TINY = {
    "images": 12,
    "image_size": [40, 64],
    "splits": {"seed": 0, "state": 2, "train": 4, "reward": 2, "eval": 3},
    "region_size": [20, 16],
    "regions_per_step": 3,
    "pool_size": 4,
    "budget": 7,
    "fit_iterations": 1,
    "crop_size": [40, 64],  # a single crop of 32 x 32 is too small for BatchNorm at stride 32
    "network_options": {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32},
    "batch_size": 4,
    "device": "cpu",
    "precision": "float32",
}


def make(**options) -> gym.Env:
    """Return a registered environment with a real network, small enough for tests."""
    return gym.make(ID, **{**TINY, **options})


def custom(network=None, scores=(), **options):
    learner = TorchLearner(
        tiny_network() if network is None else network, 3, learning_rate=0.05, device="cpu", precision="float32"
    )
    settings = {"region_size": (9, 11), "crop_size": (16, 16), "regions_per_step": 4, "pool_size": 3, "budget": 10}
    return RegionSelectionEnv(
        numbered_data(void=0.1), SPLITS, learner, config=EnvConfig(**{**settings, **options}), scores=scores
    )


def made(kind, options, *args, **defaults):
    """Return an object, or ``None`` if it was refused with an error that begins with the name of an option."""
    try:
        return kind(*args, **{**defaults, **options})
    except ValueError as error:
        if not str(error).startswith(tuple(options)):
            raise
        return None
