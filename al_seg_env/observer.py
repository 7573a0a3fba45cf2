"""From weights to observation: predict each image once, describe all its regions, index what is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

from al_seg_env.featurizers import Feature, KLSimilarity, Prediction, feature_bounds
from al_seg_env.frames import Frames
from al_seg_env.functional import shares
from al_seg_env.labels import LabelState
from al_seg_env.learner import Learner
from al_seg_env.regions import IntArray, RegionGrid
from al_seg_env.scores import Score

Observation = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Description:
    """All regions of some images under some weights.

    Attributes:
        features: ``(B, R, F)`` float32.
        class_shares: ``(B, R, C)`` float32.
        scores: ``(B, R, number of scores)`` float32.
    """

    features: Tensor
    class_shares: Tensor
    scores: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Description]) -> Description:
        """Return the parts one after another along the images."""
        return cls(
            torch.cat([part.features for part in parts]),
            torch.cat([part.class_shares for part in parts]),
            torch.cat([part.scores for part in parts]),
        )

    def take(self, images: IntArray, cells: IntArray) -> Description:
        """Return single regions, ``(M, ...)``, by position of the image and of the region within it."""
        where = (
            torch.from_numpy(images).to(self.features.device),
            torch.from_numpy(cells).to(self.features.device),
        )
        return Description(self.features[where], self.class_shares[where], self.scores[where])


class Observer:
    """Builds observations: the state from D_S, the candidates from the pools (section 3.1, steps 1 and 2).

    What depends on theta_0 alone is computed once and kept, in batches of fixed composition, so that an
    episode does not depend on the episodes before it.

    Args:
        frames: The images.
        grid: The grid of regions.
        learner: The network.
        state_images: D_S.
        candidate_images: D_T or D_V, where candidates come from.
        n_pools: K.
        pool_size: N.
        features: Parts of a region's description.
        similarity: KL histograms, or ``None``.
        scores: Acquisition scores.

    Raises:
        ValueError: If a score needs dropout and the network has none, or two scores share a name.
    """

    def __init__(
        self,
        frames: Frames,
        grid: RegionGrid,
        learner: Learner,
        *,
        state_images: Sequence[int],
        candidate_images: Sequence[int],
        n_pools: int,
        pool_size: int,
        features: Sequence[Feature],
        similarity: KLSimilarity | None,
        scores: Sequence[Score],
    ) -> None:
        self.frames, self.grid, self.learner = frames, grid, learner
        self.state_images, self.candidate_images = state_images, candidate_images
        self.features, self.similarity, self.scores = tuple(features), similarity, tuple(scores)
        names = [score.name for score in scores]
        if len(set(names)) != len(names):
            raise ValueError(f"scores {names}: each name can be used once; it becomes the observation's key")
        sampled = [score.name for score in scores if score.needs_dropout]
        if sampled and not learner.has_dropout:
            raise ValueError(
                f"scores {sampled} sample the network under dropout, but it has none; choose an architecture "
                "with dropout (FPN, PSPNet, DeepLabV3Plus) or leave these scores out"
            )
        self.space = self._space(n_pools, pool_size)
        self._position = {image: position for position, image in enumerate(candidate_images)}
        self._initial_state: Tensor | None = None
        self._initial_batches: dict[int, Description] = {}

    def _space(self, n_pools: int, pool_size: int) -> spaces.Dict:
        n_classes, region_size = self.learner.num_classes, self.grid.region_size
        bounds = feature_bounds(self.features, n_classes, region_size)

        def rows(*shape: int) -> spaces.Box:
            low, high = (np.broadcast_to(bound, (*shape, len(bound))) for bound in bounds)
            return spaces.Box(low, high, dtype=np.float32)

        keys: dict[str, spaces.Space] = {
            "state": rows(len(self.state_images) * self.grid.regions_per_image),
            "candidates": rows(n_pools, pool_size),
        }
        if self.similarity is not None:
            keys["similarity"] = spaces.Box(0.0, 1.0, (n_pools, pool_size, self.similarity.size), np.float32)
        for score in self.scores:
            high = score.high(n_classes, region_size)
            keys[f"score_{score.name}"] = spaces.Box(0.0, high, (n_pools, pool_size), np.float32)
        return spaces.Dict(keys)

    @torch.inference_mode()
    def observe(
        self, pools: Sequence[IntArray], labels: LabelState, rng: np.random.Generator, *, initial: bool
    ) -> Observation:
        """Describe D_S and the candidates under the network's present weights.

        Args:
            pools: K arrays of at most N region ids, none in two of them.
            labels: L_t.
            rng: Seeds dropout samples.
            initial: The present weights are theta_0.

        Returns:
            The observation, within the bounds of ``space``.

        Raises:
            FloatingPointError: If the network's logits are not finite.
        """
        state, candidates = self._describe_initial(pools) if initial else self._describe_now(pools, rng)
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
        regions = np.concatenate(pools)
        images, positions = np.unique(self.grid.image_of(regions), return_inverse=True)
        state = self._describe(self.state_images, None).features.flatten(0, 1)
        described = self._describe(images, rng)
        return state, described.take(positions, regions % self.grid.regions_per_image)

    def _describe_initial(self, pools: Sequence[IntArray]) -> tuple[Tensor, Description]:
        """Do the same under theta_0, from what is kept."""
        if self._initial_state is None:
            self._initial_state = self._describe(self.state_images, None).features.flatten(0, 1)
        regions = np.concatenate(pools)
        size = self.learner.batch_size
        positions = np.array([self._position[image] for image in self.grid.image_of(regions).tolist()])
        batches, batch_of = np.unique(positions // size, return_inverse=True)
        for batch in batches.tolist():
            if batch not in self._initial_batches:
                images = self.candidate_images[batch * size : (batch + 1) * size]
                self._initial_batches[batch] = self._describe(images, np.random.default_rng(batch))
        described = Description.joined([self._initial_batches[batch] for batch in batches.tolist()])
        # Only the last batch of the split can be short, so the needed ones lie `size` images apart.
        return self._initial_state, described.take(
            batch_of * size + positions % size, regions % self.grid.regions_per_image
        )

    def _describe(self, images: Sequence[int] | IntArray, rng: np.random.Generator | None) -> Description:
        """Predict images once and describe all their regions; without ``rng``, leave the scores out."""
        parts = []
        for start in range(0, len(images), self.learner.batch_size):
            batch = self.frames.images([int(i) for i in images[start : start + self.learner.batch_size]])
            sampler = None if rng is None else partial(self.learner.sample, batch, rng=rng)
            prediction = Prediction(self.learner.predict(batch), self.grid, sampler)
            features = torch.cat([feature(prediction) for feature in self.features], dim=2)  # (B, R, F)
            scores = [score(prediction) for score in self.scores] if rng is not None else []
            parts.append(
                Description(
                    features,
                    prediction.class_shares,
                    torch.stack(scores, dim=2) if scores else features.new_empty(*features.shape[:2], 0),
                )
            )
        return Description.joined(parts)

    def _arrange(self, key: str, values: Tensor, pools: Sequence[IntArray]) -> npt.NDArray[np.float32]:
        """Deal values ``(M, ...)`` of the candidates out to ``(K, N, ...)``; clip rounding off at the bounds."""
        space = self.space[key]
        assert isinstance(space, spaces.Box)
        array = values.to("cpu", torch.float32).numpy()
        if not np.isfinite(array).all():
            raise FloatingPointError(
                f"{key}: the segmentation network's logits are not finite, its training has diverged. Lower the "
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
