"""The settings of an environment, validated on construction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from al_seg_env.storage.validation import (
    LARGEST,
    MOST_REPEATS,
    check,
    check_choice,
    check_choices,
    check_distinct,
    check_int,
    check_number,
    check_size,
)
from al_seg_env.types import Size

POOLINGS = ("min", "avg", "max")
BUDGET_UNITS = ("regions", "pixels", "clicks", "seconds")
SIMILARITIES = ("labelled", "unlabelled")
REGION_FEATURES = (
    "mean_probability",
    "root_probability",
    "max_probability",
    "class_entropy",
    "location",
    "embedding",
    "surroundings",
    "forecast",
    "labelled",
)
_COUNTS = {
    "regions_per_step": LARGEST,
    "pool_size": LARGEST,
    "budget": LARGEST,
    "fit_iterations": MOST_REPEATS,
    "fit_batch_size": LARGEST,
    "reward_stride": LARGEST,
    "observation_stride": 2**31 - 1,  # in a region of any size, that is one pixel
    "entropy_bins": 256,
    "kl_bins": 2**16,
}
"""The upper limit of each; limits that depend on the data are checked by the environment."""
_CHOICES: dict[str, tuple[str | bool | None, ...]] = {
    "split": ("train", "eval"),
    "fit_regions": ("new", "all"),
    "crop_labels": ("new", "all"),
    "sub_rewards": (True, False),
    "labelled_before": ("state", "train", None),
    "first_reward": ("gain", "miou"),
    "class_distribution": ("shares", "counts", None),
    "kl_edges": ("fixed", "row"),
    "kl_own": (True, False),
    "on_divergence": ("raise", "skip"),
    "budget_unit": BUDGET_UNITS,
    "reward": ("miou", None),
}
_LISTS = {"entropy_pools": POOLINGS, "region_features": REGION_FEATURES, "similarity": SIMILARITIES}
ADDED_LATER: dict[str, object] = {
    "replay": 0.0,
    "reward_stride": 1,
    "observation_stride": 1,
    "sub_rewards": False,
    "labelled_before": None,
    "region_features": [],
    "reward": "miou",
    "reward_classes": [],
    "budget_unit": "regions",
    "fit_regions": "new",
}
"""Settings that older states lack, and the values they imply."""


@dataclass(frozen=True)
class EnvConfig:
    """Settings of :class:`~al_seg_env.env.RegionSelectionEnv`. The defaults are the paper's for CamVid.

    Attributes:
        split: Where regions are acquired: ``"train"`` (D_T) or ``"eval"`` (D_V).
        region_size: ``(height, width)`` of a region; ``None`` for whole images (appendix E.2).
        regions_per_step: K, the number of pools and of regions labelled in a step.
        pool_size: N, the number of candidates in a pool.
        budget: B, the number of regions labelled in an episode.
        budget_unit: What the budget counts: ``"regions"`` (the paper's), or their cost: ``"pixels"`` of the original
            images, or ``"seconds"`` or ``"clicks"`` of the people, which their tool must report. An episode then ends
            with the step in which the budget is reached, and may exceed it by part of that step.
        reward: ``"miou"``: the gain in mean IoU on D_R; ``None``: there is no D_R yet, and rewards are 0.
        reward_classes: Names of the classes whose IoU is averaged for the reward; the paper's, if empty, are all.
        fit_regions: Regions that a step trains on: the ``"new"`` ones (section 3.1, step 5), or as many drawn in each
            pass from ``"all"`` that are labelled in the episode, so that earlier ones are not forgotten.
        fit_iterations: Passes of the segmentation network over these regions in a step (the paper's is 1), at most
            10,000.
        fit_batch_size: Most regions per update in such a pass; more regions make several updates.
        crop_size: ``(height, width)`` of a training crop, limited to the image; ``None`` for whole images.
        crop_labels: The labels used in a training crop: only the ``"new"`` regions (section 3.1, step 5), or
            ``"all"`` labels so far (released code).
        replay: Share of each step's training batch that comes from images labelled before the episode: from D_S if
            the split is ``"train"``, from D_T if it is ``"eval"``. The paper's is 0.
        reward_stride: Rewards, ``miou`` and ``class_iou`` use every n-th pixel of D_R per row and column; 1, the
            paper's, uses all. At most the images' shorter side.
        observation_stride: Features and scores use every n-th pixel of a region per row and column; 1, the paper's,
            uses all. Larger values make scores that are sums smaller.
        sub_rewards: Add to ``info`` what each sub-action's labels contain, and what they add to the earlier ones (of
            ``reward_classes``, if given); see :func:`~al_seg_env.observation.composition.sub_rewards`.
        labelled_before: Which images are labelled before an episode begins: ``"state"`` (D_S) or, if the split is
            ``"eval"``, ``"train"`` (D_T); by default D_S if the split is ``"train"``, and D_T if it is ``"eval"``.
        reward_scale: Factor on the reward, which is in percentage points of mean IoU.
        first_reward: ``"gain"``, or ``"miou"`` for the released code's whole mean IoU in an episode's first step.
        class_distribution: Feature (i): ``"shares"`` or ``"counts"`` (released code) of the pixels predicted per
            class, or ``None``.
        entropy_pools: Feature (ii): poolings of the entropy map, from ``"min"``, ``"avg"``, ``"max"``.
        entropy_bins: Values per side of a pooled entropy map, at most 256.
        region_features: Further features, from those in :mod:`~al_seg_env.observation.composition`:
            ``"mean_probability"``, ``"root_probability"``, ``"max_probability"``, ``"class_entropy"``, ``"location"``,
            ``"embedding"``, ``"surroundings"``, ``"labelled"``; and ``"forecast"``, see
            :class:`~al_seg_env.observation.forecast.Forecast`.
        similarity: Reference sets of the KL histograms, from ``"labelled"`` and ``"unlabelled"``.
        kl_bins: Bins per KL histogram, at most 65,536.
        kl_edges: ``"fixed"`` edges, or each ``"row"``'s own range (released code).
        kl_own: Whether to compare a candidate with itself, too (released code).
        pool_images: Draw each step's pools from this many random images (released code: just enough); ``None``
            draws uniformly from all of U_t.
        on_divergence: What to do when training in a step gives a loss, gradient or logit that is not finite:
            ``"raise"`` an error and undo the step, or ``"skip"`` its training with a warning, and continue with the
            new labels and the previous weights.

    Raises:
        ValueError: If a setting is out of its range.
    """

    split: str = "train"
    region_size: Size | None = (90, 80)
    regions_per_step: int = 24
    pool_size: int = 10
    budget: int = 480
    budget_unit: str = "regions"
    reward: str | None = "miou"
    reward_classes: tuple[str, ...] = ()
    fit_regions: str = "new"
    fit_iterations: int = 1
    fit_batch_size: int = 32
    crop_size: Size | None = (224, 224)
    crop_labels: str = "new"
    replay: float = 0.0
    reward_stride: int = 1
    observation_stride: int = 1
    sub_rewards: bool = False
    labelled_before: str | None = None
    reward_scale: float = 1.0
    first_reward: str = "gain"
    class_distribution: str | None = "shares"
    entropy_pools: tuple[str, ...] = POOLINGS
    entropy_bins: int = 8
    region_features: tuple[str, ...] = ()
    similarity: tuple[str, ...] = SIMILARITIES
    kl_bins: int = 32
    kl_edges: str = "fixed"
    kl_own: bool = False
    pool_images: int | None = None
    on_divergence: str = "raise"

    def __post_init__(self) -> None:
        for name, value in self._checked():
            object.__setattr__(self, name, value)
        if not (self.class_distribution or self.entropy_pools or self.region_features):
            raise ValueError("there are no features: set class_distribution, entropy_pools or region_features")
        apart = (self.split, self.labelled_before) != ("train", "train")
        check("labelled_before", self.labelled_before, apart, "'state' or None, since split 'train' acquires from D_T")

    def _checked(self) -> Iterator[tuple[str, Any]]:
        """Yield the settings in stored form: sizes and lists as tuples, which JSON lacks."""
        for name, most in _COUNTS.items():
            yield name, check_int(name, getattr(self, name), 0 if name == "fit_iterations" else 1, most)
        if self.pool_images is not None:
            yield "pool_images", check_int("pool_images", self.pool_images, 1)
        for name in ("region_size", "crop_size"):
            if (size := getattr(self, name)) is not None:
                yield name, check_size(name, size, alternative="None for whole images")
        yield "replay", check_number("replay", self.replay, least=0, below=1)
        yield "reward_scale", check_number("reward_scale", self.reward_scale, above=0)
        for name, choices in _CHOICES.items():
            yield name, check_choice(name, getattr(self, name), choices)
        for name, choices in _LISTS.items():
            yield name, check_choices(name, getattr(self, name), choices)
        yield "reward_classes", check_distinct("reward_classes", self.reward_classes)

    def images_labelled_before(self, state: tuple[int, ...], train: tuple[int, ...]) -> tuple[int, ...]:
        """Return the images of D_S or D_T, whichever is labelled before an episode begins."""
        known = self.labelled_before or ("state" if self.split == "train" else "train")
        return state if known == "state" else train
