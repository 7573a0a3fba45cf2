"""How do environments with a frozen encoder scale with stored features, processes, and a pool of a million images?

    python benchmarks/frozen_scaling.py --env al_seg_env/CamVid-v0 --env-arg root=... --env-arg encoder_weights=imagenet

- store: the features of all images are computed in an empty folder, and read from it again.
- processes: environments step in one process and in several, in turn, on the same store. The peak memory of a process
  includes the interpreter, libraries and the mapped part of the store.
- pool: episodes over --pool images are stepped and reset in turn with those over a thousand. An image is just a number
  from which its features are drawn when they are needed, so that the environment is timed and not the encoder.

Prints a row for each measure, and writes OUT/frozen_scaling.csv.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from timing import median_and_range, timed
from torch import Tensor
from tqdm import tqdm

from al_seg_env import EnvConfig, RegionSelectionEnv
from al_seg_env.command_line import EnvironmentOptions, run
from al_seg_env.datasets.splits import Splits
from al_seg_env.learner.building import LearnerConfig
from al_seg_env.learner.feature_inputs import FeatureInputs
from al_seg_env.learner.feature_learner import FeatureLearner
from al_seg_env.learner.frozen_encoder import FeatureMaps, FrozenEncoder
from al_seg_env.storage import write_csv

FEW = 1000
STRIDES = dict.fromkeys(("label_stride", "reward_stride", "observation_stride"), 4)
LIGHT = {"architecture": "Light", "trainable": "decoder", "network_options": {}}


@dataclass(frozen=True)
class Options(EnvironmentOptions):
    """What is measured."""

    only: tuple[str, ...] = ("store", "processes", "pool")
    """Measures to take, out of the three."""
    processes: int = 2
    """Number of processes that step at once."""
    pool: int = 1_000_000
    """Number of images of the large pool."""
    steps: int = 8
    """Rounds to time, after one to warm up."""
    out: Path = Path("runs/frozen_scaling")
    """Folder of the results."""


def main(options: Options) -> None:
    rows: list[dict[str, Any]] = []
    measures = {"store": store, "processes": processes, "pool": pool}
    if unknown := sorted(set(options.only) - set(measures)):
        raise ValueError(f"--only has {unknown}; the measures are {', '.join(measures)}")
    with tempfile.TemporaryDirectory() as cache:
        for name in options.only:
            for what, values in measures[name](options, Path(cache)):
                rows.append({"what": what, "median": round(float(np.median(values)), 4), "n": len(values)})
                rows[-1] |= {"least": round(min(values), 4), "most": round(max(values), 4)}
                print(f"{what}: {median_and_range(values)}")
                write_csv(options.out / "frozen_scaling.csv", rows)


Measured = Iterator[tuple[str, Sequence[float]]]


def arguments(options: Options, cache: Path) -> dict[str, Any]:
    """Return the arguments of an environment on stored features. Given arguments of Light take precedence."""
    given = {"encoder": "timm-tf_efficientnet_lite0", **STRIDES, **options.arguments, "cache": str(cache)}
    return {**LIGHT, **given} if given.get("architecture") == "Light" else {**given, **LIGHT}


def store(options: Options, cache: Path) -> Measured:
    """Time computing all features, and reading them."""
    for way in ("computed", "read"):
        env = options.make_unwrapped(**arguments(options, cache))
        images = range(len(env.data.names))
        clock, processor = time.perf_counter(), time.process_time()
        env.inputs.prepare(images)
        yield f"store {way} (s)", [time.perf_counter() - clock]
        yield f"store {way}, processor time of all threads (s)", [time.process_time() - processor]
        assert isinstance(env.inputs, FeatureInputs)
        size = sum(values.nbytes for values in env.inputs.maps(0))
        yield "features of an image (kB)", [size / 1e3]
        del env


def processes(options: Options, cache: Path) -> Measured:
    """Step environments in one process and in several, in turn."""
    count = options.processes
    make = partial(make_stepped, options, cache)
    make()  # makes the store
    several = {
        n: gym.vector.AsyncVectorEnv([make] * n, context="spawn", autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
        for n in (1, count)
    }
    for envs in several.values():
        envs.reset(seed=0)
        envs.action_space.seed(0)
    rates: dict[int, list[float]] = {n: [] for n in several}
    for _ in tqdm(range(1 + options.steps), desc="rounds"):
        for n, envs in several.items():
            rates[n].append(n / timed(partial(envs.step, envs.action_space.sample())))
    for n in several:
        yield f"steps per second, processes: {n}", rates[n][1:]
    yield f"ratio of {count} to 1", [more / one for one, more in zip(rates[1][1:], rates[count][1:], strict=True)]
    yield "most memory of a process (MiB)", [float(peak) for peak in several[count].call("peak")]
    for envs in several.values():
        envs.close()


def make_stepped(options: Options, cache: Path) -> gym.Env:
    """Make an environment that runs on one thread and reports its process's memory."""
    torch.set_num_threads(1)
    return Peak(options.make(**arguments(options, cache)))


class Peak(gym.Wrapper[Any, Any, Any, Any]):
    """Reports the peak memory of its process."""

    @property
    def peak(self) -> float:
        """Return the peak memory in MiB."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def pool(options: Options, cache: Path) -> Measured:
    """Step and reset over few and many images in turn."""
    envs: dict[int, RegionSelectionEnv] = {}
    for count in (FEW, options.pool):
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        envs[count] = over_drawn(count)
        yield f"{count} images, making (s)", [time.perf_counter() - start]
        yield f"{count} images, first reset (s)", [timed(partial(envs[count].reset, seed=0))]
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        yield f"{count} images, memory in addition (MiB)", [grown / 1024]
        envs[count].action_space.seed(0)
    resets: dict[int, list[float]] = {count: [] for count in envs}
    steps: dict[int, list[float]] = {count: [] for count in envs}
    for _ in tqdm(range(1 + options.steps), desc="rounds"):
        for count, env in envs.items():
            resets[count].append(timed(env.reset))
            steps[count].append(timed(partial(env.step, env.action_space.sample())))
    for count in envs:
        yield f"{count} images, reset (s)", resets[count][1:]
        yield f"{count} images, step (s)", steps[count][1:]
    few, many = (steps[count][1:] for count in envs)
    yield "step, ratio of many images to few", [more / less for less, more in zip(few, many, strict=True)]


class Drawn:
    """A data set whose images are given by a number each."""

    classes = ("one", "two", "three")
    image_size = (96, 128)

    def __init__(self, count: int) -> None:
        self.names = tuple(map(str, range(count)))

    def image(self, index: int) -> npt.NDArray[np.uint8]:
        """Return an image of one colour."""
        return np.full((*self.image_size, 3), index % 251, np.uint8)

    def mask(self, index: int) -> npt.NDArray[np.uint8]:
        """Return a mask of stripes."""
        return np.tile(((np.arange(self.image_size[1]) // 16 + index) % 3).astype(np.uint8), (self.image_size[0], 1))


class DrawnEncoder(FrozenEncoder):
    """Replaces a frozen encoder at no cost: returns the features of one of eight images, chosen by colour."""

    def __init__(self, encoder: FrozenEncoder, image_size: tuple[int, int]) -> None:
        self.__dict__.update(encoder.__dict__)
        self.known = [encoder(torch.randint(256, (1, 3, *image_size), dtype=torch.uint8)) for _ in range(8)]

    def __call__(self, images: Tensor) -> FeatureMaps:
        """Return the features of one image."""
        return self.known[int(images[0, 0, 0, 0]) % 8]


def over_drawn(count: int) -> RegionSelectionEnv:
    """Return an environment over such images, most of them candidates."""
    data = Drawn(count)
    learner = LearnerConfig(
        architecture="Light", encoder="tu-tf_mobilenetv3_small_minimal_100", trainable="decoder", precision="float32"
    ).build(data.classes, data.image_size)
    assert isinstance(learner, FeatureLearner)
    learner.encoder = DrawnEncoder(learner.encoder, data.image_size)
    splits = Splits(
        state=tuple(range(8)), train=tuple(range(8, 56)), reward=tuple(range(56, 96)), eval=tuple(range(96, count))
    )
    config = EnvConfig(split="eval", region_size=(24, 32), crop_size=None, reward_stride=4)
    return RegionSelectionEnv(data, splits, learner, config=config)


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
