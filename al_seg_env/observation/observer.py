"""Building the observation: each image is predicted once, and all its regions are described."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor
from tqdm import tqdm

from al_seg_env.datasets.frames import Frames
from al_seg_env.functional import CACHED, shares
from al_seg_env.labelling.label_state import LabelState
from al_seg_env.learner.contract import Learner, PredictsBoxes
from al_seg_env.learner.inputs import Inputs
from al_seg_env.observation.composition import label_levels
from al_seg_env.observation.features import Feature, KLSimilarity, Prediction, feature_bounds
from al_seg_env.observation.region_pixels import RegionPixels
from al_seg_env.observation.scores import Score
from al_seg_env.regions import RegionGrid
from al_seg_env.types import IntArray, Observation


@dataclass(frozen=True)
class Description:
    """The description of M regions with some weights of the network.

    Attributes:
        features: Features, ``(M, F)`` float32.
        class_shares: Predicted share of each class, ``(M, C)`` float32.
        scores: Acquisition scores, ``(M, number of scores)`` float32.
    """

    features: Tensor
    class_shares: Tensor
    scores: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Description]) -> Description:
        """Return the concatenated parts."""
        return cls(
            torch.cat([part.features for part in parts]),
            torch.cat([part.class_shares for part in parts]),
            torch.cat([part.scores for part in parts]),
        )

    def take(self, rows: IntArray) -> Description:
        """Return the description of the regions in these rows."""
        where = torch.from_numpy(rows).to(self.features.device)
        return Description(self.features[where], self.class_shares[where], self.scores[where])


class Observer:
    """Builds observations: the state from D_S, the candidates from the pools (section 3.1, steps 1 and 2).

    Descriptions that depend on theta_0 alone are computed once and kept. Their batches have a fixed composition, so
    that an episode does not depend on earlier episodes.

    Args:
        frames: The images' masks, for scores that use the ground truth.
        inputs: Makes the learner's batches of the images.
        grid: The grid of regions.
        learner: The network.
        state_images: D_S.
        candidate_images: D_T or D_V, whose regions are the candidates.
        keep_candidates: Whether to keep the description of candidates at theta_0. It is of no use if there are so many
            images that episodes hardly ever have one in common.
        n_pools: K, the number of pools.
        pool_size: N, the regions per pool.
        features: Parts of a region's description.
        similarity: KL histograms, or ``None``.
        scores: Acquisition scores.
        stride: Regions are described by every n-th of their pixels per row and column.
        known_counts: Pixels per class of the images that are labelled before an episode begins, ``(C,)``.
        progress: Title of a progress bar over the batches of an observation; ``None`` for no bar.

    Raises:
        ValueError: If a score needs dropout and the network has none, or two scores share a name.
    """

    def __init__(
        self,
        frames: Frames,
        inputs: Inputs,
        grid: RegionGrid,
        learner: Learner,
        *,
        state_images: Sequence[int],
        candidate_images: Sequence[int],
        keep_candidates: bool = True,
        n_pools: int,
        pool_size: int,
        features: Sequence[Feature],
        similarity: KLSimilarity | None,
        scores: Sequence[Score],
        known_counts: IntArray,
        stride: int = 1,
        progress: str | None = None,
    ) -> None:
        self.progress = progress
        self.frames, self.inputs, self.grid, self.learner = frames, inputs, grid, learner
        self.state_images, self.known_counts, self.stride = state_images, known_counts, stride
        self.features, self.similarity, self.scores = tuple(features), similarity, tuple(scores)
        names = [score.name for score in scores]
        if len(set(names)) != len(names):
            raise ValueError(f"scores are {names}; expected different names, which become the observation's keys")
        sampled = [score.name for score in scores if getattr(score, "needs_dropout", False)]
        if sampled and not learner.has_dropout:
            raise ValueError(
                f"scores {sampled} sample the network with dropout, but it has none; choose an architecture "
                "with dropout (FPN, PSPNet, DeepLabV3Plus) or omit these scores"
            )
        self.space = self._space(n_pools, pool_size)
        self._initial_batch_size, self._keep_candidates = learner.batch_size, keep_candidates
        self._candidate_images = np.asarray(candidate_images, np.int64)
        self._place: IntArray = np.zeros(max(candidate_images, default=0) + 1, np.int64)  # position of each image
        self._place[self._candidate_images] = np.arange(len(candidate_images))
        self.forget_initial()

    def forget_initial(self) -> None:
        """Forget what was computed from theta_0."""
        self._initial_state: Tensor | None = None
        self._initial_batches: dict[int, Description] = {}

    def _space(self, n_pools: int, pool_size: int) -> spaces.Dict:
        n_classes, region_size = self.learner.num_classes, self.grid.region_size
        bounds = feature_bounds(self.features, n_classes, region_size)

        def rows(*shape: int) -> spaces.Box:
            low, high = (np.broadcast_to(bound, (*shape, len(bound))) for bound in bounds)
            return spaces.Box(low, high, dtype=np.float32)

        keys: dict[str, spaces.Space[Any]] = {
            "state": rows(len(self.state_images) * self.grid.regions_per_image),
            "candidates": rows(n_pools, pool_size),
        }
        if self.similarity is not None:
            keys["similarity"] = spaces.Box(0.0, 1.0, (n_pools, pool_size, self.similarity.size), np.float32)
        for score in self.scores:
            high = score.high(n_classes, region_size)
            keys[f"score_{score.name}"] = spaces.Box(0.0, high, (n_pools, pool_size), np.float32)
        return spaces.Dict(keys)

    def feature_columns(self, name: str) -> slice:
        """Return the columns of the feature with this name, or with the only name that begins so, among all F."""
        names = [feature.name for feature in self.features]
        found = [name] if name in names else [known for known in names if known.startswith(f"{name}_")]
        if len(found) != 1:
            known = ", ".join(names)
            raise ValueError(f"there is no feature {name!r}; there are {known}: see entropy_pools and region_features")
        sizes = [len(part.bounds(self.learner.num_classes, self.grid.region_size)[0]) for part in self.features]
        index = names.index(found[0])
        return slice(sum(sizes[:index]), sum(sizes[: index + 1]))

    @torch.inference_mode()
    def described(self, regions: IntArray, labelled: IntArray) -> npt.NDArray[np.float32]:
        """Return the features of any regions with the network's current weights, ``(n, F)`` float32.

        Args:
            regions: Ids of the n regions in increasing order, ``(n,)``.
            labelled: Labelled pixels per class, ``(C,)``, without those that are known before the episode.
        """
        self._remember_labels(labelled)
        return self._describe(regions, None).features.to("cpu", torch.float32).numpy()

    def _remember_labels(self, labelled: IntArray) -> None:
        """Keep the label levels, given pixels per class ``(C,)`` without those known before the episode."""
        self._label_levels = torch.from_numpy(label_levels(self.known_counts + labelled, self.grid.region_size))

    def empty(self) -> Observation:
        """Return the observation at the end of an episode, which is all zeros."""
        return {key: np.zeros(space.shape, np.float32) for key, space in self.space.items() if space.shape}

    @torch.inference_mode()
    def observe(
        self, pools: Sequence[IntArray], labels: LabelState, rng: np.random.Generator, *, initial: bool
    ) -> Observation:
        """Describe D_S and the candidates with the network's current weights.

        Args:
            pools: K disjoint arrays of at most N region ids.
            labels: L_t.
            rng: Random source that seeds dropout samples.
            initial: Whether the current weights are theta_0.

        Returns:
            The observation, within the bounds of ``space``.

        Raises:
            FloatingPointError: If the network's logits are not finite.
        """
        self._remember_labels(labels.class_counts.sum(axis=0))
        state, candidates = self._describe_initial(pools, rng) if initial else self._describe_now(pools, rng)
        parts = {"state": state, "candidates": candidates.features}
        if self.similarity is not None:
            known = labels.class_counts
            labelled = shares(torch.from_numpy(known[known.any(axis=1)]).to(state.device))
            parts["similarity"] = self.similarity(candidates.class_shares, labelled)
        for score, values in zip(self.scores, candidates.scores.unbind(-1), strict=True):
            parts[f"score_{score.name}"] = values
        return {key: self._arrange(key, value, pools) for key, value in parts.items()}

    def _describe_now(self, pools: Sequence[IntArray], rng: np.random.Generator) -> tuple[Tensor, Description]:
        """Return the state ``(S, F)`` and the description of all M candidates, pool after pool."""
        state = self._describe(self.grid.regions_of(self.state_images), None).features
        return state, self._describe_candidates(pools, rng)

    def _describe_candidates(self, pools: Sequence[IntArray], rng: np.random.Generator) -> Description:
        """Return the description of all M candidates, pool after pool."""
        regions = np.concatenate(pools)
        order = np.argsort(regions)
        return self._describe(regions[order], rng).take(np.argsort(order))

    def _describe_initial(self, pools: Sequence[IntArray], rng: np.random.Generator) -> tuple[Tensor, Description]:
        """Return the same at theta_0, from kept descriptions."""
        if self._initial_state is None:
            self._initial_state = self._describe(self.grid.regions_of(self.state_images), None).features
        if not self._keep_candidates:
            return self._initial_state, self._describe_candidates(pools, rng)
        images, cells = np.divmod(np.concatenate(pools), self.grid.regions_per_image)
        length = self._initial_batch_size
        size = length * self.grid.regions_per_image
        rows = self._place[images] * self.grid.regions_per_image + cells
        batches, batch_of = np.unique(rows // size, return_inverse=True)
        for batch in batches.tolist():
            if batch not in self._initial_batches:
                part = self.grid.regions_of(self._candidate_images[batch * length : (batch + 1) * length])
                self._initial_batches[batch] = self._describe(part, np.random.default_rng(batch))
        described = Description.joined([self._initial_batches[batch] for batch in batches.tolist()])
        # Only the last batch of the split can be short, so the needed batches start every `size` rows.
        return self._initial_state, described.take(batch_of * size + rows % size)

    def _describe(self, regions: IntArray, rng: np.random.Generator | None) -> Description:
        """Describe regions that are ordered by image, and predict each image once.

        Without ``rng``, scores are omitted.
        """
        image_of = self.grid.image_of(regions)
        first_regions = np.flatnonzero(np.diff(image_of, prepend=-1))
        images = image_of[first_regions].tolist()
        by_image = np.split(regions, first_regions[1:])
        size = self.learner.batch_size
        batches = [slice(start, start + size) for start in range(0, len(images), size)]
        bar = tqdm(batches, desc=self.progress, disable=self.progress is None, leave=False)
        return Description.joined([self._describe_batch(images[batch], by_image[batch], rng) for batch in bar])

    def _describe_batch(
        self, images: Sequence[int], wanted: Sequence[IntArray], rng: np.random.Generator | None
    ) -> Description:
        """Describe the wanted regions of one batch of images."""
        batch = self.inputs.whole(images)
        cells = np.concatenate(wanted) % self.grid.regions_per_image
        of_image = np.repeat(np.arange(len(wanted)), [len(regions) for regions in wanted])
        scores = () if rng is None else self.scores
        sampled = any(getattr(score, "needs_dropout", False) for score in scores)
        size = len(cells) if sampled else self._regions_at_once
        image_of = np.asarray(images, np.int64)[of_image]
        slices = [slice(start, start + size) for start in range(0, len(cells), size)]
        cpu = torch.device("cpu")
        parts = [RegionPixels(self.grid, of_image[part], cells[part], cpu, self.stride) for part in slices]
        described = []
        for part, pixels, logits in zip(slices, parts, self._logits(batch, parts), strict=True):
            pixels = pixels.to(logits.device)
            sampler = None if rng is None else partial(self._samples, batch, pixels, rng)
            truth = partial(self._true_labels, images, pixels, logits.device)
            levels = self._label_levels.to(logits.device)
            prediction = Prediction(logits, pixels, sampler, truth, image_of[part], levels)
            features = torch.cat([feature(prediction) for feature in self.features], dim=1)
            values = [score(prediction) for score in scores]
            stacked = torch.stack(values, dim=1) if values else features.new_empty(len(features), 0)
            described.append(Description(features, prediction.class_shares, stacked))
        return Description.joined(described)

    @property
    def _regions_at_once(self) -> int:
        """Number of regions whose logits stay in the processor's cache while they are described."""
        pixels = self.grid.region_size[0] * self.grid.region_size[1] / self.stride**2
        return max(1, int(CACHED / (self.learner.num_classes * pixels)))

    def _logits(self, batch: Any, parts: Sequence[RegionPixels]) -> Iterator[Tensor]:
        """Yield the logits ``(C, P)`` of each part of the wanted regions."""
        if isinstance(self.learner, PredictsBoxes):
            yield from self.learner.predict_boxes(batch, [pixels.boxes() for pixels in parts])
        else:
            maps = self.learner.predict(batch)
            for pixels in parts:
                yield pixels.to(maps.device).gather(maps)

    def _samples(self, batch: Any, pixels: RegionPixels, rng: np.random.Generator, count: int) -> Iterator[Tensor]:
        """Yield samples of the logits of the regions' pixels, ``(C, P)`` each."""
        if isinstance(self.learner, PredictsBoxes):
            return self.learner.sample_boxes(batch, pixels.boxes(), count, rng)
        return map(pixels.gather, self.learner.sample(batch, count, rng))

    def _true_labels(self, images: Sequence[int], pixels: RegionPixels, device: torch.device) -> Tensor:
        """Return the true labels of the regions' pixels, ``(P,)`` uint8."""
        return pixels.gather(self.frames.masks(images)[:, None].to(device))[0]

    def _arrange(self, key: str, values: Tensor, pools: Sequence[IntArray]) -> npt.NDArray[np.float32]:
        """Arrange values ``(M, ...)`` of the candidates as ``(K, N, ...)``, and clip rounding errors at the bounds."""
        space = self.space[key]
        assert isinstance(space, spaces.Box)
        array = values.to("cpu", torch.float32).numpy()
        if not np.isfinite(array).all():
            raise FloatingPointError(
                f"{key}: the segmentation network's logits are not finite, so its training has diverged. Lower the "
                "learning rate, set max_grad_norm, or use precision='float32'"
            )
        if key == "state":
            return np.clip(array, space.low, space.high)
        dealt = np.zeros(space.shape, np.float32)
        start = 0
        for k, pool in enumerate(pools):
            if len(pool):
                dealt[k] = array[start + np.arange(space.shape[1]) % len(pool)]  # a short pool repeats itself
                start += len(pool)
        return np.clip(dealt, space.low, space.high)
