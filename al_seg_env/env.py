"""The environment: an agent decides which regions are labelled next."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces

from al_seg_env.config import ADDED_LATER, EnvConfig
from al_seg_env.datasets.frames import Frames
from al_seg_env.datasets.originals import regions_outside
from al_seg_env.datasets.segmentation_data import SegmentationData
from al_seg_env.datasets.splits import Splits
from al_seg_env.episode import Episode, State, check_identity, copied, generator_from
from al_seg_env.labelling.label_state import LabelState, flat_masks, split_masks
from al_seg_env.labelling.oracles import GroundTruthOracle, Oracle, ask
from al_seg_env.labelling.request import COSTS, UNKNOWN, requests_of
from al_seg_env.learner.contract import Learner
from al_seg_env.learner.hardware import is_out_of_memory
from al_seg_env.learner.inputs import Inputs, inputs_of, labelled_batches
from al_seg_env.learner.rehearsal import Replay
from al_seg_env.metrics import class_iou, mean_iou
from al_seg_env.observation.composition import class_rewards, label_levels, named_features, sub_rewards
from al_seg_env.observation.features import Feature, paper_features, paper_similarity
from al_seg_env.observation.forecast import Forecast
from al_seg_env.observation.observer import Observer
from al_seg_env.observation.scores import Score
from al_seg_env.regions import RegionGrid
from al_seg_env.rendering import render_step
from al_seg_env.storage import tree_digest
from al_seg_env.storage.validation import check, check_int, check_path
from al_seg_env.types import IntArray, Observation, UInt8Array

REWARDING = frozenset({"reward", "reward_classes", "reward_stride", "first_reward"})
"""Settings on which the measurement depends that the next reward starts from."""
DESCRIBING = frozenset({"class_distribution", "entropy_pools", "entropy_bins", "region_features"})
"""Settings of the features, which a fork shares with the original."""


class Answered(NamedTuple):
    """The oracle's answer for a region: its mask at the network's size, and what that cost."""

    mask: UInt8Array
    costs: tuple[float, float, float]


class RegionSelectionEnv(gym.Env[Observation, IntArray]):
    """Choose which image regions to label, so that a segmentation network improves the most (section 3.1).

    ## Episode

    The network starts from its initial weights theta_0 with nothing labelled. In every step the agent sees K
    pools of N candidate regions and picks one from each pool; an oracle labels the K regions, the network
    trains on them, and the reward is the gain. The episode ends when ``budget`` regions are labelled, or none
    is left. With another ``budget_unit`` it ends with the step in which the budget is spent.

    ## Observation space: ``Dict``

    | key | shape, float32 | meaning |
    |---|---|---|
    | ``state`` | ``(S, F)`` | a row per region of D_S: features of the network's prediction |
    | ``candidates`` | ``(K, N, F)`` | the same for each candidate |
    | ``similarity`` | ``(K, N, D)`` | histograms of KL divergences to labelled and to unlabelled regions |
    | ``score_<name>`` | ``(K, N)`` | an acquisition score, for each in ``scores`` |

    D is ``2 * kl_bins``; the key is absent if ``similarity`` is empty.

    The F features are the shares of pixels predicted per class (C), and the min-, average- and max-pooled
    entropy map (8 x 8 each). The observation that comes with ``terminated`` is all zeros.

    ## Action space: ``MultiDiscrete([N] * K)``

    Sub-action k is the candidate taken from pool k. Every action is valid. Pools do not overlap; when fewer
    than K * N regions are left they shrink evenly, and a short pool repeats its candidates up to N. When only
    n < K regions can be labelled (budget or regions nearly spent), the first n sub-actions count; a pool that
    has no region left is all zeros.

    ## Reward

    The gain in mean IoU on D_R, in percentage points, times ``reward_scale``. With ``reward_classes``, the mean is
    over these classes alone. With ``reward=None``, for data without any labels yet, there is no D_R, and rewards are 0.

    ## Info

    ``chosen``: region ids labelled in this step, a tuple of int. ``labelled``: number of regions labelled so far.
    ``miou``: in percent on D_R, over all classes. ``class_iou``: in percent, ``(C,)``, -1 where D_R lacks the class.
    ``label_counts``: pixels per class labelled in this step, ``(C,)`` int64. ``next_active``: how many sub-actions
    count in the next step. ``sub_rewards`` and ``class_rewards``, only with ``sub_rewards=True``: what the labels of
    each chosen region add to the earlier ones, a tuple of float, and each class's share of the region, ``(chosen, C)``
    float32; see :func:`~al_seg_env.observation.composition.sub_rewards`. ``diverged``, only with
    ``on_divergence="skip"``: whether this step's training was undone. ``rewarded``, only with ``reward=None``: false;
    ``miou`` and ``class_iou`` are then -1. ``spent``, only if ``budget_unit`` is not regions: the cost of the labels so
    far, in that unit.

    Args:
        data: Images and masks.
        splits: Which images are D_S, D_T, D_R and D_V.
        learner: The segmentation network. Its current state becomes theta_0. Do not share it with another environment.
        config: Settings; see :class:`~al_seg_env.config.EnvConfig`.
        oracle: What labels the regions; by default the data's own masks.
        scores: Acquisition scores to observe.
        features: Features of a region; by default the paper's, as configured.
        render_mode: ``"rgb_array"`` or ``None``.
        cache: Folder for decoded images, for data larger than memory; see :class:`~al_seg_env.datasets.frames.Frames`.
        forecast: File of the networks that the feature ``"forecast"`` needs.

    Raises:
        ValueError: If data, splits, learner and configuration do not match.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 2}

    @torch.inference_mode(mode=False)  # what is made in inference mode can't be trained
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
        forecast: str | Path | None = None,
    ) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode {render_mode!r} is unknown; use 'rgb_array' or None")
        self.data, self.splits, self.learner, self.config = data, splits, learner, config
        self.render_mode, self.cache = render_mode, cache
        self.forecast = None if forecast is None else check_path("forecast", forecast)
        used = forecast is None or "forecast" in config.region_features
        check("forecast", forecast, used, "None, since region_features does not name 'forecast'; or name it there")
        image_size = (int(data.image_size[0]), int(data.image_size[1]))
        self.grid = RegionGrid(image_size, config.region_size or image_size)
        self.frames = Frames.shared(data, cache)
        self.inputs = inputs_of(learner, self.frames)
        answers = oracle is None or hasattr(oracle, "label") or hasattr(oracle, "answer")
        check("oracle", oracle, answers, "an object with a method label or answer, or None for the data's own masks")
        self.oracle = GroundTruthOracle(self.frames) if oracle is None else oracle
        acquired_from = splits.train if config.split == "train" else splits.eval
        _check_splits(data, splits, config, acquired_from)
        self._nothing_labelled = LabelState(
            self.grid, acquired_from, len(data.classes), regions_outside(data, self.grid, acquired_from)
        )
        _check_budget(config, self._nothing_labelled.unlabelled_count)
        check_int("reward_stride", config.reward_stride, 1, min(self.grid.image_size))
        _check_network(learner, self.inputs, len(data.classes), self.grid)
        self._candidates = acquired_from
        self._reward_classes = _indices(config.reward_classes, data.classes)
        self._check_reward_classes()
        self._replay = Replay(self.frames, self.grid, self.labelled_before)
        self.observer = Observer(
            self.frames,
            self.inputs,
            self.grid,
            learner,
            state_images=splits.state,
            candidate_images=acquired_from,
            keep_candidates=not self._has_many_candidates,
            n_pools=config.regions_per_step,
            pool_size=config.pool_size,
            features=self._configured_features() if features is None else _unshared(features),
            similarity=paper_similarity(config),
            scores=tuple(scores),
            known_counts=self._known_counts(),
            stride=config.observation_stride,
        )
        self.observation_space = self.observer.space  # type: ignore[assignment] # gymnasium's Dict is of Any
        self.action_space = spaces.MultiDiscrete([config.pool_size] * config.regions_per_step)
        self._theta_0 = tree_digest(learner.state_dict())
        self._initial_confusion: torch.Tensor | None = None
        self._episode: Episode | None = None
        self._answered: dict[int, Answered] = {}  # by the oracle, for a step that failed afterwards

    def _check_reward_classes(self) -> None:
        """Raise a ValueError if D_R has none of the classes that the reward counts, and warn if it lacks some."""
        if not self._reward_classes or self.config.reward is None:
            return
        counts = np.zeros(256, np.int64)
        for image in self.splits.reward:
            stride = self.config.reward_stride
            counts += np.bincount(self.frames.mask(image)[::stride, ::stride].reshape(-1), minlength=256)
        absent = [self.data.classes[c] for c in self._reward_classes if not counts[c]]
        missing = f"D_R has no pixel of {', '.join(absent)}, which reward_classes names"
        if len(absent) == len(self._reward_classes):
            raise ValueError(f"{missing}; name classes that occur there, or change reward in splits")
        if absent:
            warnings.warn(f"{missing}: the reward does not count what is absent", stacklevel=3)

    def _configured_features(self) -> tuple[Feature, ...]:
        frames, inputs, grid, splits = self.frames, self.inputs, self.grid, self.splits

        def forecast() -> Forecast:
            stride = self.config.observation_stride
            return Forecast(self.forecast, frames, inputs, grid, self.learner, splits, stride)

        images = splits.train or splits.eval
        further = named_features(self.config.region_features, frames, inputs, grid, images, forecast)
        return (*paper_features(self.config), *further)

    def _known_counts(self) -> IntArray:
        """Return the pixels per class of the images labelled before an episode, ``(C,)``; zeros if not needed."""
        counts = np.zeros(len(self.data.classes), np.int64)
        if self.config.sub_rewards or "labelled" in self.config.region_features:
            for image in self.labelled_before:
                counts += np.bincount(self.frames.mask(image).reshape(-1), minlength=256)[: len(counts)]
        return counts

    @property
    def layout(self) -> dict[str, Any]:
        """What an agent's inputs mean, in plain JSON values: classes, images of D_S, parts of the features.

        ``basis_of`` is a digest of the names of the images of D_T, whose principal components the features
        ``"embedding"`` and ``"surroundings"`` are; it is absent if there is neither.
        """
        bases = {basis for feature in self.observer.features if (basis := getattr(feature, "basis_of", None))}
        return {
            **({"basis_of": bases.pop()} if bases else {}),
            "classes": list(self.data.classes),
            "state_images": [self.data.names[i] for i in self.splits.state],
            "region_size": list(self.grid.region_size),
            "features": [feature.name for feature in self.observer.features],
            "similarity": None if self.observer.similarity is None else self.observer.similarity.name,
        }

    def feature_columns(self, name: str) -> slice:
        """Return the columns, among the F features, of the part with this name in ``layout["features"]``.

        What follows an underscore may be omitted if no other part begins so: ``"forecast"`` for
        ``"forecast_1a2b3c4d"``.

        Raises:
            ValueError: If there is no such part; the error lists the known ones.
        """
        return self.observer.feature_columns(name)

    @property
    def labelled_before(self) -> tuple[int, ...]:
        """Images labelled before an episode begins: by default D_S if regions of D_T are acquired, D_T if of D_V."""
        return self.config.images_labelled_before(self.splits.state, self.splits.train)

    @property
    def labels(self) -> LabelState:
        """L_t and U_t."""
        return self._nothing_labelled if self._episode is None else self._episode.labels

    @property
    def pools(self) -> tuple[IntArray, ...]:
        """Region ids of the K current pools, at most N each; for inspection, and for agents that may cheat."""
        return () if self._episode is None else tuple(pool.copy() for pool in self._episode.pools)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode from theta_0, with nothing labelled.

        Args:
            seed: Seeds pools, crops, flips and dropout.
            options: ``{"state": ...}`` instead continues from a state of :meth:`get_state`, with that state's random
                numbers. This passes through all wrappers.

        Raises:
            ValueError: If ``options`` has anything else, or the state is of another environment.
        """
        if unknown := sorted(map(str, set(options or ()) - {"state"})):
            raise ValueError(f"options has {', '.join(unknown)}; expected nothing but 'state'")
        if options and "state" in options:
            return self._continue_from(options["state"])
        with self._all_or_nothing():
            super().reset(seed=seed)
            self.inputs.prepare(self._images_of_an_episode())
            self.learner.reset()
            if self._initial_confusion is None:
                self._initial_confusion = self._evaluate()
            pools, observation = self._observe(self._nothing_labelled, initial=True)
            self._episode = Episode(
                step=0,
                labels=self._nothing_labelled,
                pools=pools,
                chosen=(),
                label_counts=np.zeros(len(self.data.classes), dtype=np.int64),
                confusion=self._initial_confusion,
                reference_miou=self._reference(0, self._initial_confusion),
                observation=observation,
            )
        return copied(observation), self._info(self._episode)

    def step(self, action: IntArray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Label the chosen regions, train on them, and measure the gain (section 3.1, steps 3 to 6, 1, 2).

        If anything fails or is interrupted, the environment stays as before the step and can continue from there; masks
        that the oracle has returned are kept, and not requested again.

        Args:
            action: ``(K,)`` integers in ``[0, N)``.

        Raises:
            ValueError: If the action is not in the action space, or the oracle's answer is malformed.
            FloatingPointError: If training diverged, unless ``on_divergence="skip"``.
        """
        before = self._under_way()
        chosen = self._choose(before, action)
        answers = self._ask_oracle(chosen)
        with self._all_or_nothing() as weights:
            masks, costs = [answer.mask for answer in answers], [answer.costs for answer in answers]
            labels = before.labels.with_labels(chosen, masks, before.step, costs)
            confusion, diverged = self._improve(labels, chosen, weights, before.confusion)
            miou = self._miou(confusion, self._reward_classes)
            terminated = self._active(labels) == 0
            pools, observation = ((), self.observer.empty()) if terminated else self._observe(labels)
            label_counts = labels.class_counts[len(before.labels) :].sum(axis=0)
            self._episode = Episode(
                before.step + 1, labels, pools, chosen, label_counts, confusion, miou, observation, diverged
            )
        self._answered = {region: answer for region, answer in self._answered.items() if region not in chosen}
        reward = self.config.reward_scale * (miou - before.reference_miou)
        return copied(observation), reward, terminated, False, self._info(self._episode)

    def get_state(self) -> State:
        """Return a copy of everything the future depends on; :func:`~al_seg_env.save_state` writes it to a file."""
        episode = self._episode
        answered = sorted(set(self._answered) - set(self.labels.labelled))
        return State(
            identity=self._identity,
            rng=self.np_random.bit_generator.state,
            action_rng=_state_of(self.action_space._np_random),
            labels=self.labels.state_dict(),
            answers={
                "regions": np.array(answered, np.int64),
                "masks": flat_masks([self._answered[region].mask for region in answered]),
                "costs": np.array([self._answered[region].costs for region in answered]).reshape(-1, len(COSTS)),
            },
            batch_size=self.learner.batch_size,
            # At its start an episode has the weights theta_0, which the environment has anyway.
            learner=None if episode is None or episode.step == 0 else self.learner.state_dict(),
            numerics=dict(self.learner.numerics),
            episode=None if episode is None else episode.encoded(),
        )

    def set_state(self, saved: Mapping[str, Any]) -> tuple[Observation, dict[str, Any]]:
        """Continue exactly as the environment that :meth:`get_state` was called on; only the ``budget`` may differ.

        An episode that had ended continues if the budget is larger now.

        Returns:
            Observation and info of the last :meth:`reset` or :meth:`step` before the state was taken; both empty if
            there was none.

        Raises:
            ValueError: If the state is malformed, or of other data, splits, settings or theta_0; nothing has
                changed then.
        """
        try:
            check_identity(self._identity, saved["identity"])
            labels = self._nothing_labelled.restored(saved["labels"])
            if self.config.budget_unit == "regions" and len(labels) > self.config.budget:
                raise ValueError(
                    f"the state has {len(labels)} labelled regions, more than budget {self.config.budget}; raise it"
                )
            episode = None
            if saved["episode"] is not None:
                episode = Episode.decoded(saved["episode"], labels, self.observer.space)
            answered = saved["answers"]["regions"].tolist()
            costs = saved["answers"].get("costs", np.full((len(answered), len(COSTS)), UNKNOWN))  # or from before
            masks = split_masks(self.grid, answered, saved["answers"]["masks"])
            answers = {
                region: Answered(mask, (float(cost[0]), float(cost[1]), float(cost[2])))
                for region, mask, cost in zip(answered, masks, costs, strict=True)
            }
            rng = generator_from(saved["rng"])
            action_rng = None if saved["action_rng"] is None else generator_from(saved["action_rng"])
            weights, numerics, batch_size = saved["learner"], saved["numerics"], saved["batch_size"]
            if type(batch_size) is not int or not 1 <= batch_size < 2**31:
                raise TypeError(f"batch_size is {batch_size!r}")
        except (KeyError, TypeError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
            raise ValueError(
                f"the state is malformed ({type(error).__name__}: {error}); expected what get_state() of this version "
                "of al-seg-env returns"
            ) from error
        with self._all_or_nothing():
            self._load(weights, numerics)
            self.learner.batch_size = batch_size
            self._answered = answers
            self.np_random = rng
            self.action_space._np_random = action_rng  # type: ignore[assignment] # None before it is used
            if episode is not None and not episode.pools and self._active(labels):  # more labels have been bought
                pools, observation = self._observe(labels)
                episode = replace(episode, pools=pools, observation=observation)
            self._episode = episode
        return ({}, {}) if episode is None else (copied(episode.observation), self._info(episode))

    @torch.inference_mode(mode=False)
    def fork(self, **changes: Any) -> RegionSelectionEnv:
        """Return an independent environment that continues exactly as this one would.

        It shares only data, decoded images and the oracle with this one.

        Args:
            changes: Fields of :class:`~al_seg_env.config.EnvConfig` to change, such as ``budget``.

        Raises:
            ValueError: If the changes are out of range, or do not fit the episode so far or the features.
        """
        config = replace(self.config, **changes)
        for name in sorted(DESCRIBING & set(changes)):
            kept = getattr(self.config, name)
            check(name, changes[name], getattr(config, name) == kept, f"{kept!r}: a fork keeps its original's features")
        learner = copy.deepcopy(self.learner)
        learner.reset()  # a new environment takes its learner's weights for theta_0
        twin = type(self)(
            self.data,
            self.splits,
            learner,
            config=config,
            oracle=self.oracle,
            scores=self.observer.scores,
            features=self.observer.features,
            render_mode=self.render_mode,
            cache=self.cache,
            forecast=self.forecast,
        )
        state = State({**self.get_state(), "identity": twin._identity})
        if self._episode is not None and REWARDING & set(changes):  # what the next reward is measured from differs
            twin._load(state["learner"], state["numerics"])
            step, confusion = self._episode.step, twin._evaluate()
            measured = {"confusion": confusion, "reference_miou": twin._reference(step, confusion)}
            state["episode"] = {**state["episode"], **measured}
        twin.set_state(state)
        return twin

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Return a picture of the last step: its requests, and the image of the last one, ``(h, w, 3)`` uint8."""
        if self.render_mode is None:
            gym.logger.warn("render() needs render_mode='rgb_array' when the environment is made")
            return None
        if self._episode is None:
            raise gym.error.ResetNeeded("there is nothing to see yet; call reset() before render()")
        labels = self.labels
        last = labels.labelled[-1] if len(labels) else int(labels.unlabelled[0])
        image = self.grid.box(last).image
        unit = self.config.budget_unit
        return render_step(
            self.data,
            self.frames,
            labels,
            image=image,
            predicted=self._predicted_labels(image),
            requests=[self.grid.box(region) for region in self._episode.chosen],
            slots=self.config.regions_per_step,
            caption=f"{self.data.names[image]}   {labels.spent(unit):g} of {self.config.budget} {unit} labelled"
            + (f"   mIoU {self._miou(self._episode.confusion):.1f} %" if self.config.reward else ""),
        )

    def _predicted_labels(self, image: int) -> UInt8Array:
        """Return the most probable class of each pixel of an image, ``(H, W)`` uint8."""
        with torch.inference_mode():
            logits = self.learner.predict(self.inputs.whole([image]))
        return logits[0].argmax(dim=0).to("cpu", torch.uint8).numpy()

    def _under_way(self) -> Episode:
        if self._episode is None or not self._episode.pools or not self._active(self._episode.labels):
            raise gym.error.ResetNeeded("the episode is over or has not begun; call reset() before step()")
        return self._episode

    def _active(self, labels: LabelState) -> int:
        """Return how many sub-actions count in the next step."""
        if self.config.budget_unit == "regions":
            left = self.config.budget - len(labels)
        else:
            left = labels.unlabelled_count if labels.spent(self.config.budget_unit) < self.config.budget else 0
        return min(self.config.regions_per_step, left)

    def _choose(self, episode: Episode, action: npt.ArrayLike) -> tuple[int, ...]:
        """Return the region taken from each pool that counts (step 3)."""
        chosen = np.asarray(action)
        if chosen.dtype.kind not in "iu" or not self.action_space.contains(chosen.astype(np.int64, copy=False)):
            raise ValueError(
                f"action {action!r}: expected {self.config.regions_per_step} integers in "
                f"[0, {self.config.pool_size}), one per pool"
            )
        pools = episode.pools[: self._active(episode.labels)]
        # A short pool repeats its candidates, as the observation does.
        return tuple(int(pool[n % len(pool)]) for pool, n in zip(pools, chosen, strict=False))

    def _ask_oracle(self, chosen: Sequence[int]) -> list[Answered]:
        """Return the labels of the chosen regions, requesting those not answered yet from the oracle (step 4)."""
        if asked := [region for region in chosen if region not in self._answered]:
            requests = requests_of(self.data, [self.grid.box(region) for region in asked], self._predicted_labels)
            for region, request, answer in zip(asked, requests, ask(self.oracle, requests), strict=True):
                self._answered[region] = Answered(answer.mask.copy(), answer.costs(request.region))
        answers = [self._answered[region] for region in chosen]
        unit = self.config.budget_unit
        if unit != "regions" and any(answer.costs[COSTS.index(unit)] == UNKNOWN for answer in answers):
            raise ValueError(
                f"budget_unit is {unit!r}, but {type(self.oracle).__name__} does not tell what an answer cost in them; "
                "use an oracle that does, or budget_unit='regions'"
            )
        return answers

    def _improve(
        self, labels: LabelState, chosen: Sequence[int], weights: Mapping[str, Any], before: torch.Tensor
    ) -> tuple[torch.Tensor, bool]:
        """Train on the new labels; return the confusion matrix on D_R, and whether that had to be undone."""
        try:
            self._train(labels, chosen)
            return self._evaluate(), False
        except FloatingPointError as error:
            if self.config.on_divergence == "raise":
                raise
            warnings.warn(f"the training of this step was undone, its labels are kept: {error}", stacklevel=3)
            self.learner.load_state_dict(weights)
            return before, True

    def _train(self, labels: LabelState, chosen: Sequence[int]) -> None:
        """Train on the regions added in this step (section 3.1, step 5), or on as many of all labelled ones."""
        trained_on, batches = chosen, -(-len(chosen) // self.config.fit_batch_size)
        shown = self._shown(labels, trained_on)
        for _ in range(self.config.fit_iterations):
            if self.config.fit_regions == "all":
                trained_on = self.np_random.choice(labels.labelled, len(chosen), replace=False).tolist()
                shown = self._shown(labels, trained_on)
            # Even batches, so that no region is left alone with its BatchNorm statistics.
            for batch in np.array_split(self.np_random.permutation(trained_on), batches):
                regions, known = self._replay.mixed(batch, shown, self.config.replay, self.np_random)
                views = self.inputs.training_views(self.grid, regions, known, self.config.crop_size, self.np_random)
                self.learner.fit_step(*views, self.np_random)

    def _shown(self, labels: LabelState, regions: Sequence[int]) -> Callable[[int], UInt8Array]:
        """Return a function that returns those labels of an image that training on these regions sees."""
        return labels.mask if self.config.crop_labels == "all" else labels.mask_of(regions)

    def _evaluate(self) -> torch.Tensor:
        """Return the confusion matrix on D_R, ``(C, C)`` (step 6); all zeros if there is none."""
        if self.config.reward is None:
            return torch.zeros(len(self.data.classes), len(self.data.classes), dtype=torch.int64)
        batches = labelled_batches(self.inputs, self.frames, self.splits.reward, self.learner.batch_size)
        stride = self.config.reward_stride
        return self.learner.evaluate(batches) if stride == 1 else self.learner.evaluate(batches, stride)

    def _miou(self, confusion: torch.Tensor, classes: Sequence[int] = ()) -> float:
        """Return the mean IoU on D_R in percent, of all classes if none are given; -1 if there is no D_R."""
        return -1.0 if self.config.reward is None else 100 * mean_iou(confusion, classes)

    def _reference(self, step: int, confusion: torch.Tensor) -> float:
        """Return what the reward of the step after this one is measured from, in percent."""
        whole = step == 0 and self.config.first_reward == "miou" and self.config.reward is not None
        return 0.0 if whole else self._miou(confusion, self._reward_classes)

    def _images_of_an_episode(self) -> list[int]:
        """Return the images that any episode reads: D_S, D_R, and all candidates' images if these are not too many."""
        rewarded = () if self.config.reward is None else self.splits.reward
        replayed = self.labelled_before if self.config.replay else ()
        candidates = () if self._has_many_candidates else self._candidates
        return [*self.splits.state, *rewarded, *replayed, *candidates]

    @property
    def _has_many_candidates(self) -> bool:
        """Whether there are more images than an episode reads, so that caching them between episodes does not help."""
        steps = -(-self.config.budget // self.config.regions_per_step)
        return len(self._candidates) > steps * self.config.regions_per_step * self.config.pool_size

    def _observe(self, labels: LabelState, *, initial: bool = False) -> tuple[tuple[IntArray, ...], Observation]:
        """Draw new pools, and describe D_S and the candidates (steps 1 and 2)."""
        config = self.config
        pools = labels.draw_pools(self.np_random, config.regions_per_step, config.pool_size, config.pool_images)
        return tuple(pools), self.observer.observe(pools, labels, self.np_random, initial=initial)

    def _info(self, episode: Episode) -> dict[str, Any]:
        iou, unit = 100 * class_iou(episode.confusion).numpy(), self.config.budget_unit
        return {
            "chosen": episode.chosen,
            "labelled": len(episode.labels),
            "miou": self._miou(episode.confusion),
            "class_iou": np.nan_to_num(iou, nan=-1.0),
            "label_counts": episode.label_counts.copy(),
            "next_active": self._active(episode.labels),
            **(self._sub_rewards(episode) if self.config.sub_rewards else {}),
            **({"diverged": episode.diverged} if self.config.on_divergence == "skip" else {}),
            **({"rewarded": False} if self.config.reward is None else {}),
            **({"spent": episode.labels.spent(unit)} if unit != "regions" else {}),
        }

    def _sub_rewards(self, episode: Episode) -> dict[str, Any]:
        """Return what the labels of each region chosen in the last step add to the earlier ones."""
        counts, n = episode.labels.class_counts, len(episode.chosen)
        before = label_levels(self.observer.known_counts + counts[: len(counts) - n].sum(axis=0), self.grid.region_size)
        held = class_rewards(counts[len(counts) - n :], self.grid.region_size)
        counted = self._reward_classes or slice(None)
        return {"sub_rewards": tuple(sub_rewards(held[:, counted], before[counted]).tolist()), "class_rewards": held}

    @contextmanager
    def _all_or_nothing(self) -> Iterator[Mapping[str, Any]]:
        """Restore everything if the block fails before it has set a new episode.

        Yields:
            The learner's state before the block.
        """
        episode, answered = self._episode, self._answered
        rng, rng_seed, rng_state = self._np_random, self._np_random_seed, _state_of(self._np_random)
        action_rng = self.action_space._np_random
        weights, numerics, batch_size = self.learner.state_dict(), dict(self.learner.numerics), self.learner.batch_size
        try:
            yield weights
        except BaseException:
            if self._episode is episode:
                self._load(weights, numerics)
                self.learner.batch_size = batch_size
                self._answered = answered
                self._np_random, self._np_random_seed = rng, rng_seed
                if rng is not None:
                    rng.bit_generator.state = rng_state
                self.action_space._np_random = action_rng
            raise

    def _load(self, weights: Any, numerics: Mapping[str, Any] | None) -> None:
        """Load weights into the learner (theta_0 for ``None``), with the numerics they were trained with."""
        try:
            if numerics is not None and dict(self.learner.numerics) != dict(numerics):
                self.learner.numerics = numerics
                # They were computed in the other precision.
                self._initial_confusion = None
                self.observer.forget_initial()
                for feature in self.observer.features:
                    if isinstance(feature, Forecast):
                        feature.adopt(numerics)
            if weights is None:
                self.learner.reset()
            else:
                self.learner.load_state_dict(weights)
        except Exception as error:  # what a learner raises is not known here
            raise ValueError(f"the state's weights or numerics do not match the network: {error}") from error

    def _continue_from(self, saved: Mapping[str, Any]) -> tuple[Observation, dict[str, Any]]:
        """Continue from a state instead of a reset."""
        if saved.get("episode") is None:
            raise ValueError("the state was taken before the first reset: there is no episode to continue")
        return self.set_state(saved)

    @property
    def _identity(self) -> dict[str, Any]:
        """What two environments must have in common to exchange states, in plain values."""
        config = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self.config).items()}
        del config["budget"]  # more labels may have been bought
        config["reward_classes"] = [self.data.classes[c] for c in self._reward_classes]
        for name, value in ADDED_LATER.items():  # states from before have no such entries
            if config[name] == value:
                del config[name]
        names = self.data.names
        forecasts = [feature.digest for feature in self.observer.features if isinstance(feature, Forecast)]
        return {
            "config": config,
            "classes": list(self.data.classes),
            "image_size": list(self.grid.image_size),
            "images": {
                field.name: tree_digest([names[i] for i in getattr(self.splits, field.name)])
                for field in fields(self.splits)
                if field.name != "test"
            },
            "observation": {key: list(space.shape or ()) for key, space in self.observer.space.items()},
            "theta_0": self._theta_0,
            **({"forecast": forecasts} if forecasts else {}),
        }


def _indices(names: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Return the indices of the classes that the reward counts, none for all; a name of no class is a ValueError."""
    unknown = [name for name in names if name not in classes]
    check("reward_classes", list(names), not unknown, f"some of the classes of the data: {', '.join(classes)}")
    indices = sorted(list(classes).index(name) for name in names)
    return [] if len(indices) == len(classes) else indices


def _unshared(features: Sequence[Feature]) -> tuple[Feature, ...]:
    """Return features of which no other environment changes the precision; see :meth:`Forecast.adopt`."""
    good = isinstance(features, list | tuple) and len(features) > 0
    good = good and all(hasattr(each, "name") and hasattr(each, "bounds") and callable(each) for each in features)
    check("features", features, good, "a list of objects with name, bounds and __call__, or None for those configured")
    return tuple(copy.copy(feature) if isinstance(feature, Forecast) else feature for feature in features)


def _state_of(rng: np.random.Generator | None) -> Any:
    return None if rng is None else rng.bit_generator.state


def _check_splits(data: SegmentationData, splits: Splits, config: EnvConfig, acquired_from: Sequence[int]) -> None:
    """Raise a ValueError that says what contradicts the data."""
    n_images = len(data.names)
    if beyond := sorted(i for i in (*splits.state, *acquired_from, *splits.reward) if i >= n_images):
        raise ValueError(
            f"the splits hold the indices {beyond}, but the data have only {n_images} images; use the splits "
            "that were made for these data"
        )
    if not acquired_from:
        other = "eval" if config.split == "train" else "train"
        raise ValueError(
            f"split {config.split!r} has no image to acquire regions from; give it some in splits, or acquire from "
            f"split={other!r}"
        )
    if config.reward is not None and not splits.reward:
        raise ValueError(
            "D_R, on which the reward is measured, holds no image: reward must hold at least one labelled image in "
            "splits. Where nothing is labelled yet, reward=None does without it"
        )


def _check_budget(config: EnvConfig, regions: int) -> None:
    """Raise a ValueError if there are fewer regions to acquire than the configuration needs."""
    if config.budget_unit == "regions" and config.budget > regions:
        raise ValueError(
            f"budget is {config.budget}, but split {config.split!r} has only {regions} regions; lower the budget "
            "(al-seg-env label: --budget)"
        )
    if config.regions_per_step * config.pool_size > regions:
        raise ValueError(
            f"{config.regions_per_step} pools of {config.pool_size} regions (K x N) need "
            f"{config.regions_per_step * config.pool_size} regions, but split {config.split!r} has {regions}; "
            "lower regions_per_step or pool_size (al-seg-env label: --regions-per-step, or --set pool_size=...)"
        )


def _check_network(learner: Learner, inputs: Inputs, n_classes: int, grid: RegionGrid) -> None:
    """Raise a ValueError if the network can't process the images, a MemoryError if one image is too large for it."""
    image_size = grid.image_size
    try:
        logits = learner.predict(inputs.blank())
    except (RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise MemoryError(f"one image of size {image_size} does not fit into memory; lower image_size") from error
        raise ValueError(
            f"the network cannot predict an image of size {image_size} ({error}); use larger images or another "
            "architecture"
        ) from error
    shape, expected = tuple(logits.shape), (1, n_classes, *image_size)
    if shape != expected or learner.num_classes != n_classes:
        raise ValueError(
            f"the network returned logits of shape {shape} for one image; expected {expected}: one channel "
            f"for each of the {n_classes} classes, at the image's size"
        )
