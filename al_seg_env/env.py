"""The environment: an agent decides which regions are labelled next."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces

from al_seg_env import episode as episodes
from al_seg_env.checks import check_fit
from al_seg_env.config import EnvConfig
from al_seg_env.datasets.frames import Frames
from al_seg_env.datasets.segmentation_data import SegmentationData
from al_seg_env.datasets.splits import Splits
from al_seg_env.episode import Episode, Observation, State, copied
from al_seg_env.labelling.label_state import LabelState
from al_seg_env.labelling.oracles import GroundTruthOracle, Oracle, ask
from al_seg_env.learner.contract import Learner
from al_seg_env.learner.training_crops import training_crops
from al_seg_env.metrics import class_iou, mean_iou
from al_seg_env.observation.features import Feature, paper_features, paper_similarity
from al_seg_env.observation.observer import Observer
from al_seg_env.observation.scores import Score
from al_seg_env.regions import RegionGrid
from al_seg_env.rendering import render_request
from al_seg_env.types import IntArray, UInt8Array


class RegionSelectionEnv(gym.Env[Observation, npt.NDArray[np.int64]]):
    """Choose which image regions to label, so that a segmentation network improves the most (section 3.1).

    ## Episode

    The network starts from its initial weights theta_0 with nothing labelled. In every step the agent is
    shown K pools of N candidate regions and picks one of each pool; an oracle labels the K regions, the
    network trains on them, and the reward is what that gained. The episode ends when ``budget`` regions are
    labelled, or none is left.

    ## Observation space: ``Dict``

    ============== =================== ==========================================================
    key            shape, float32      meaning
    ============== =================== ==========================================================
    state          ``(S, F)``          a row per region of D_S: what the network makes of it
    candidates     ``(K, N, F)``       the same of each candidate
    similarity     ``(K, N, D)``       histograms of KL divergences from the candidate to the
                                       labelled and to the unlabelled regions (``D = 2 * kl_bins``);
                                       absent where ``similarity`` is empty
    score_<name>   ``(K, N)``          acquisition scores, for each in ``scores``
    ============== =================== ==========================================================

    The F features are the shares of pixels predicted per class (C), and the min-, average- and max-pooled
    entropy map (8 x 8 each). The observation that comes with ``terminated`` is all zeros.

    ## Action space: ``MultiDiscrete([N] * K)``

    Sub-action k is the candidate taken from pool k. Every action is valid. Pools do not overlap; when fewer
    than K * N regions are left they shrink evenly, and a short pool repeats its candidates up to N. When only
    n < K regions can be labelled (budget or regions nearly spent), the first n sub-actions count; a pool that
    has no region left is all zeros.

    ## Reward

    The gain in mean IoU on D_R, in percentage points, times ``reward_scale``.

    ## Info

    ``chosen``: region ids labelled in this step, a tuple of int. ``labelled``: how many so far. ``miou``: in
    percent on D_R. ``class_iou``: in percent, ``(C,)``, -1 where D_R lacks the class. ``label_counts``: pixels
    per class labelled in this step, ``(C,)`` int64. ``next_active``: how many sub-actions the next step counts.
    ``diverged``, only with ``on_divergence="skip"``: whether this step's training was undone.

    Args:
        data: Images and masks.
        splits: Which images are D_S, D_T, D_R and D_V.
        learner: The segmentation network. Its state at this moment is theta_0. It belongs to this environment.
        config: Settings; see :class:`~al_seg_env.config.EnvConfig`.
        oracle: Who labels; the data's own masks if left out.
        scores: Acquisition scores to observe.
        features: Parts of a region's description; the paper's, as configured, if left out.
        render_mode: ``"rgb_array"`` or ``None``.
        cache: Folder for decoded images, for data larger than memory; see :class:`~al_seg_env.datasets.frames.Frames`.

    Raises:
        ValueError: If data, splits, learner and configuration do not fit each other.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 2}

    def __init__(
        self,
        data: SegmentationData,
        splits: Splits,
        learner: Learner,
        *,
        config: EnvConfig,
        oracle: Oracle | None = None,
        scores: Sequence[Score] = (),
        features: Sequence[Feature] | None = None,
        render_mode: str | None = None,
        cache: str | Path | None = None,
    ) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode {render_mode!r} is unknown; use 'rgb_array' or None")
        self.data, self.splits, self.learner, self.config = data, splits, learner, config
        self.render_mode, self.cache = render_mode, cache
        image_size = (int(data.image_size[0]), int(data.image_size[1]))
        self.grid = RegionGrid(image_size, config.region_size or image_size)
        self.frames = Frames.shared(data, cache)
        self.oracle = GroundTruthOracle(self.frames) if oracle is None else oracle
        acquired_from = splits.train if config.split == "train" else splits.eval
        check_fit(data, splits, learner, config, self.grid, acquired_from)
        self.labels = LabelState(self.grid, acquired_from, len(data.classes))
        self.observer = Observer(
            self.frames,
            self.grid,
            learner,
            state_images=splits.state,
            candidate_images=acquired_from,
            n_pools=config.regions_per_step,
            pool_size=config.pool_size,
            features=paper_features(config) if features is None else tuple(features),
            similarity=paper_similarity(config),
            scores=tuple(scores),
        )
        self.observation_space = self.observer.space  # type: ignore[assignment]
        self.action_space = spaces.MultiDiscrete([config.pool_size] * config.regions_per_step)
        self._initial_confusion: torch.Tensor | None = None
        self._episode: Episode | None = None
        self._answered: dict[int, UInt8Array] = {}  # by the oracle, for a step that failed afterwards

    @property
    def layout(self) -> dict[str, Any]:
        """What an agent's inputs mean, in plain JSON values: classes, images of D_S, parts of the features."""
        return {
            "classes": list(self.data.classes),
            "state_images": [self.data.names[i] for i in self.splits.state],
            "region_size": list(self.grid.region_size),
            "features": [feature.name for feature in self.observer.features],
            "similarity": None if self.observer.similarity is None else self.observer.similarity.name,
        }

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode: theta_0, nothing labelled.

        Args:
            seed: Seeds pools, crops, flips and dropout.
            options: ``{"state": ...}`` goes on from a state of :meth:`get_state` instead, through all wrappers.
        """
        super().reset(seed=seed)
        if options and "state" in options:
            return episodes.go_on(self, options["state"])
        self._episode = None
        self.learner.reset()
        self.labels.clear()
        if self._initial_confusion is None:
            self._initial_confusion = self._evaluate()
        miou = 100 * mean_iou(self._initial_confusion)
        pools, observation = self._observe(initial=True)
        self._episode = Episode(
            step=0,
            pools=pools,
            chosen=(),
            label_counts=np.zeros(len(self.data.classes), dtype=np.int64),
            confusion=self._initial_confusion,
            reference_miou=0.0 if self.config.first_reward == "miou" else miou,
            observation=observation,
        )
        return copied(observation), self._info()

    def step(self, action: npt.NDArray[np.int64]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Label the chosen regions, train on them, and see what it brought (section 3.1, steps 3 to 6, 1, 2).

        Should anything fail, or be interrupted, the environment is as before the step and can go on from there;
        masks that the oracle has given are kept, and not asked for again.

        Args:
            action: ``(K,)`` integers in ``[0, N)``.

        Raises:
            ValueError: If the action is not in the action space, or the oracle's answer is malformed.
            FloatingPointError: If training diverged, unless ``on_divergence="skip"``.
        """
        before = self._under_way()
        chosen = self._choose(before.pools, action)
        masks = self._answers(chosen)
        rng, weights = self.np_random.bit_generator.state, self.learner.state_dict()
        labelled = len(self.labels)
        try:
            label_counts = self.labels.add(chosen, masks, before.step)
            confusion, diverged = self._improve(chosen, weights, before.confusion)
            miou = 100 * mean_iou(confusion)
            terminated = self._active == 0
            pools, observation = ((), self.observer.empty()) if terminated else self._observe()
        except BaseException:
            self.labels.take_back(len(self.labels) - labelled)
            self.learner.load_state_dict(weights)
            self.np_random.bit_generator.state = rng
            raise
        for region in chosen:
            del self._answered[region]
        self._episode = Episode(before.step + 1, pools, chosen, label_counts, confusion, miou, observation, diverged)
        reward = self.config.reward_scale * (miou - before.reference_miou)
        return copied(observation), reward, terminated, False, self._info()

    def get_state(self) -> State:
        """Return a copy of all that the future depends on; :func:`~al_seg_env.save_state` writes it to a file."""
        return episodes.take(self)

    def set_state(self, saved: State) -> tuple[Observation, dict[str, Any]]:
        """Go on exactly as an equal environment would whose :meth:`get_state` this is; the ``budget`` may differ.

        Returns:
            Observation and info, as the last :meth:`reset` or :meth:`step` before the state was taken.

        Raises:
            ValueError: If the state is malformed, or of other data, splits, settings or theta_0; nothing has
                changed then.
        """
        episodes.put_back(self, saved)
        return ({}, {}) if self._episode is None else (copied(self._episode.observation), self._info())

    def fork(self, **changes: Any) -> RegionSelectionEnv:
        """Return an independent environment that continues exactly as this one would.

        It shares data, decoded images and the oracle with this one, and nothing else.

        Args:
            changes: Fields of :class:`~al_seg_env.config.EnvConfig` that differ, such as ``budget``.
        """
        return episodes.fork(self, **changes)

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Return a picture of the image asked about most recently, ``(h, w, 3)`` uint8."""
        if self.render_mode is None:
            gym.logger.warn("render() needs render_mode='rgb_array' when the environment is made")
            return None
        if self._episode is None:
            raise gym.error.ResetNeeded("there is nothing to see yet; call reset() before render()")
        last = self.labels.labelled[-1] if len(self.labels) else int(self.labels.unlabelled[0])
        image = self.grid.box(last).image
        logits = self.learner.predict(self.frames.images([image]))
        return render_request(
            self.data,
            image=self.frames.image(image).numpy(),
            truth=self.frames.mask(image),
            known=self.labels.mask(image),
            predicted=logits[0].argmax(dim=0).to("cpu", torch.uint8).numpy(),
            requests=[box for box in map(self.grid.box, self._episode.chosen) if box.image == image],
            caption=f"{self.data.names[image]}   {len(self.labels)} of {self.config.budget} regions   "
            f"mIoU {100 * mean_iou(self._episode.confusion):.1f} %",
        )

    @property
    def pools(self) -> tuple[IntArray, ...]:
        """Region ids of the K pools on offer, each at most N; for looking, and for agents that may cheat."""
        return () if self._episode is None else tuple(pool.copy() for pool in self._episode.pools)

    @property
    def _active(self) -> int:
        """How many sub-actions the next step counts."""
        return min(self.config.regions_per_step, self.config.budget - len(self.labels))

    def _under_way(self) -> Episode:
        if self._episode is None or not self._episode.pools:
            raise gym.error.ResetNeeded("the episode is over or has not begun; call reset() before step()")
        return self._episode

    def _choose(self, pools: Sequence[IntArray], action: npt.ArrayLike) -> tuple[int, ...]:
        chosen = np.asarray(action)
        if chosen.dtype.kind not in "iu" or not self.action_space.contains(chosen.astype(np.int64, copy=False)):
            raise ValueError(
                f"action {action!r}: expected {self.config.regions_per_step} integers in "
                f"[0, {self.config.pool_size}), one per pool"
            )
        # A short pool repeats its candidates, as the observation does.
        return tuple(int(pool[n % len(pool)]) for pool, n in zip(pools[: self._active], chosen, strict=False))

    def _answers(self, chosen: Sequence[int]) -> list[UInt8Array]:
        """Ask the oracle for what it has not answered yet."""
        asked = [region for region in chosen if region not in self._answered]
        if asked:
            masks = ask(self.oracle, self.grid, asked, len(self.data.classes))
            self._answered.update(zip(asked, map(np.copy, masks), strict=True))
        return [self._answered[region] for region in chosen]

    def _improve(
        self, chosen: Sequence[int], weights: Mapping[str, Any], before: torch.Tensor
    ) -> tuple[torch.Tensor, bool]:
        """Train on the new labels; return the confusion matrix on D_R, and whether that had to be undone."""
        try:
            self._train(chosen)
            return self._evaluate(), False
        except FloatingPointError as error:
            if self.config.on_divergence == "raise":
                raise
            warnings.warn(f"the training of this step was undone, its labels are kept: {error}", stacklevel=3)
            self.learner.load_state_dict(weights)
            return before, True

    def _train(self, chosen: Sequence[int]) -> None:
        """One iteration on just the regions added in this step (section 3.1, step 5)."""
        shown = self.labels.mask if self.config.crop_labels == "all" else self.labels.mask_of(chosen)
        batches = -(-len(chosen) // self.config.fit_batch_size)
        for _ in range(self.config.fit_iterations):
            # Even batches, so that no region is left alone with its BatchNorm statistics.
            for batch in np.array_split(self.np_random.permutation(chosen), batches):
                crops = training_crops(self.frames, self.grid, batch, shown, self.config.crop_size, self.np_random)
                self.learner.fit_step(*crops, self.np_random)

    def _evaluate(self) -> torch.Tensor:
        """Return the confusion matrix on D_R, ``(C, C)``."""
        return self.learner.evaluate(self.frames.batches(self.splits.reward, self.learner.batch_size))

    def _observe(self, *, initial: bool = False) -> tuple[tuple[IntArray, ...], Observation]:
        """Draw new pools, and describe D_S and the candidates (section 3.1, steps 1 and 2)."""
        config = self.config
        pools = self.labels.draw_pools(self.np_random, config.regions_per_step, config.pool_size, config.pool_images)
        return tuple(pools), self.observer.observe(pools, self.labels, self.np_random, initial=initial)

    def _info(self) -> dict[str, Any]:
        episode = self._episode
        assert episode is not None
        iou = 100 * class_iou(episode.confusion).numpy()
        return {
            "chosen": episode.chosen,
            "labelled": len(self.labels),
            "miou": 100 * mean_iou(episode.confusion),
            "class_iou": np.nan_to_num(iou, nan=-1.0),
            "label_counts": episode.label_counts.copy(),
            "next_active": self._active,
            **({"diverged": episode.diverged} if self.config.on_divergence == "skip" else {}),
        }

    @cached_property
    def _identity(self) -> dict[str, Any]:
        return episodes.identity(self)

    def _forget_initial(self) -> None:
        """Forget what depends on theta_0 and on the precision that it is computed in."""
        self._initial_confusion = None
        self.observer.forget_initial()
