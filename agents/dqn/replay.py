"""Experience replay over decomposed transitions (paper, section 3.2), each observation stored once."""

from __future__ import annotations

import copy
import math
import mmap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from agents.dqn.spaces import Sizes
from agents.observations import Observation
from al_seg_env.storage import differences
from al_seg_env.storage.validation import check_choice, check_int, check_number, check_seed

Indices = npt.NDArray[np.int64]

STATE = ("stored", "actions", "rewards", "terminated", "counted", "next_active", "position", "pending", "rng")
OF_EPISODES = ("returns", "steps", "added")  # what "class_rewards" needs besides

CREDITS = ("shared", "sub_rewards", "class_rewards")


class DecomposedBatch(NamedTuple):
    """B decomposed transitions (s_t, a_t^k, r_{t+1}, s_{t+1}); ``next_...`` is 0 where terminated.

    With n-step targets the reward is the discounted sum of n rewards, and s_{t+n} comes next; of fewer steps where the
    episode ends, or is not further yet. Sub-actions of one step share its state, so a batch holds each state once.
    """

    state: Tensor  # (U, S, F), the different states
    state_of: Tensor  # (B,), int64, which of them is s_t
    chosen: Tensor  # (B, F), the candidate that was chosen
    similarity: Tensor | None  # (B, D), None if the environment has no such features
    reward: Tensor  # (B,), or (B, C) of classes
    discount: Tensor  # (B,), factor of the next value: gamma, or gamma^n
    terminated: Tensor  # (B,), bool
    next_state: Tensor  # (V, S, F), the different next states
    next_state_of: Tensor  # (B,), int64, which of them is s_{t+1}
    next_candidates: Tensor  # (B, N, F), one pool of the next step
    next_similarity: Tensor | None  # (B, N, D), None likewise


class DecomposedReplayBuffer(ReplayBuffer):
    """Replay of T_k = (s_t, a_t^k, r_{t+1}, s_{t+1}), drawn uniformly from all (step, k), with replacement.

    Each parallel environment has its own lane: a ring of observations in which the observation that
    follows a step lies in the following slot. So an observation is stored once, and a state never K times.
    Only an observation that no step starts from needs its own slot: the last one of an episode that is cut
    short by a time limit or an early reset. The all-zero observation that comes with ``terminated`` isn't stored.

    Only the first n sub-actions of a step are drawn, n being the length of ``info["chosen"]`` (K if it is
    missing). The next pool of sub-action k is pool k, or k mod n' if only n' = ``info["next_active"]`` < K
    pools count in the next step (K if it is missing): all pools are drawn in the same way, so any that counts can
    take the place of another.

    Args:
        buffer_size: Capacity in decomposed transitions (paper: 600 for CamVid, 3200 for Cityscapes); rounded
            up to whole environment steps, ceil(buffer_size / (K * n_envs)) in each lane.
        observation_space: See :class:`agents.dqn.spaces.Sizes`; scores in it are not stored.
        action_space: ``MultiDiscrete([N] * K)``.
        device: Device of the batches.
        n_envs: Number of parallel environments.
        optimize_memory_usage: Always on; the argument is here because Stable-Baselines3 passes it.
        seed: Seed of the buffer's own random source ``rng``.
        n_steps: Rewards that are summed.
        gamma: Discount factor.
        credit: The reward of a decomposed transition: the step's reward (``"shared"``), the sub-action's entry of
            ``info["sub_rewards"]`` (``"sub_rewards"``), or its row of ``info["class_rewards"]``, one reward per class
            (``"class_rewards"``).
        labelled: First and last column (exclusive) of the features that give the label levels of the C classes, for
            ``"class_rewards"``.
        predicted: First and last column (exclusive) of the C classes' mean probabilities; only what the labels hold
            beyond them is rewarded.
        state: Whether the regions of the state are stored; without them, S is 0 in what is drawn.

    Raises:
        ValueError: If an argument is out of its range, the spaces are of another kind, or the arrays do not fit into
            memory.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        seed: int | None = None,
        n_steps: int = 1,
        gamma: float = 0.99,
        credit: str = CREDITS[0],
        labelled: Sequence[int] = (0, 1),
        predicted: Sequence[int] = (0, 1),
        state: bool = True,
    ) -> None:
        buffer_size, n_envs = check_int("buffer_size", buffer_size, 1), check_int("n_envs", n_envs, 1)
        # ReplayBuffer's own __init__ would allocate arrays for a single Box.
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs=n_envs)
        self.sizes = Sizes.from_spaces(observation_space, action_space)
        self.optimize_memory_usage = optimize_memory_usage
        self.handle_timeout_termination = True
        self.rng = np.random.default_rng(check_seed("seed", seed))
        self.n_steps, self.gamma = check_int("n_steps", n_steps, 1), check_number("gamma", gamma, least=0, most=1)
        self.credit = check_choice("credit", credit, CREDITS)
        self.labelled, self.predicted = slice(*labelled), slice(*predicted)
        self.n_regions = self.sizes.regions if state else 0
        self.steps_per_lane = max(math.ceil(buffer_size / (self.sizes.pools * n_envs)), 1)
        self.n_slots = self.steps_per_lane + 1  # + 1: what follows the last step
        try:
            self._allocate()
        except (MemoryError, OSError, OverflowError, ValueError) as error:
            raise ValueError(
                f"buffer_size is {buffer_size}; expected a smaller one: {self.steps_per_lane} steps of {n_envs} "
                f"environments take more memory than there is ({error})"
            ) from error

    def _allocate(self) -> None:
        slots, pools, candidates = (self.n_slots, self.n_envs), self.sizes.pools, self.sizes.candidates
        shapes: dict[str, tuple[int, ...]] = {
            "state": (self.n_regions, self.sizes.features),
            "candidates": (pools, candidates, self.sizes.features),
            "similarity": (pools, candidates, self.sizes.similarity),
        }
        if self.sizes.similarity == 0:
            del shapes["similarity"]
        self.stored: Observation = {name: _lazy_zeros((*slots, *shape)) for name, shape in shapes.items()}
        self.actions: npt.NDArray[np.int64] = np.zeros((*slots, pools), dtype=np.int64)
        n_classes = self.labelled.stop - self.labelled.start
        shape = {"shared": (), "sub_rewards": (pools,), "class_rewards": (pools, n_classes)}[self.credit]
        self.rewards: npt.NDArray[np.float32] = np.zeros((*slots, *shape), dtype=np.float32)
        if self.credit == "class_rewards":  # of an episode, up to the step in this slot
            self.returns: npt.NDArray[np.float32] = np.zeros(slots, dtype=np.float32)
            self.steps: npt.NDArray[np.int64] = np.zeros(slots, dtype=np.int64)
            self.added: npt.NDArray[np.float32] = np.zeros((*slots, n_classes), dtype=np.float32)
        self.terminated: npt.NDArray[np.bool_] = np.zeros(slots, dtype=bool)
        # n of the step in this slot; 0 if no step starts here
        self.counted: npt.NDArray[np.int64] = np.zeros(slots, dtype=np.int64)
        # n' of the step after it
        self.next_active: npt.NDArray[np.int64] = np.zeros(slots, dtype=np.int64)
        # slot of the next step's observation, and whether it already holds what followed the last step
        self.position: npt.NDArray[np.int64] = np.zeros(self.n_envs, dtype=np.int64)
        self.pending: npt.NDArray[np.bool_] = np.zeros(self.n_envs, dtype=bool)

    def reset(self) -> None:
        """Forget all transitions."""
        self.counted[:] = 0
        self.position[:] = 0
        self.pending[:] = False

    def size(self) -> int:
        """Number of decomposed transitions held."""
        return int(self.counted.sum())

    def state_dict(self) -> dict[str, Any]:
        """Return all that the buffer holds, and its random source."""
        return {name: getattr(self, name) for name in self._state_names}

    @property
    def _state_names(self) -> tuple[str, ...]:
        return (*STATE, *OF_EPISODES) if self.credit == "class_rewards" else STATE

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned of a buffer of the same sizes.

        Raises:
            ValueError: If the sizes differ, or the values cannot be those of a replay.
        """
        if differing := differences(_shapes(state), _shapes(self.state_dict())):
            raise ValueError(
                f"the replay has other arrays: {'; '.join(differing)}. Use an agent with the same buffer_size and an "
                "environment with the same spaces, as many of them"
            )
        n, slots = self.sizes, self.n_slots
        for name, least, most in (
            ("actions", 0, n.candidates - 1),
            ("counted", 0, n.pools),
            ("next_active", 0, n.pools),
            ("position", 0, slots - 1),
        ):
            if state[name].min() < least or state[name].max() > most:
                raise ValueError(f"the replay's {name!r} has values outside of {least} to {most}; use another copy")
        vars(self).update(copy.deepcopy({name: state[name] for name in self._state_names}))

    @property
    def nbytes(self) -> int:
        """Memory of the full buffer in bytes."""
        records = (self.actions, self.rewards, self.terminated, self.counted, self.next_active)
        return sum(array.nbytes for array in (*self.stored.values(), *records))

    def add(  # type: ignore[override]
        self,
        obs: Observation,
        next_obs: Observation,
        action: npt.NDArray[np.int64],
        reward: npt.NDArray[np.floating[Any]],
        done: npt.NDArray[np.bool_],
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one step of every environment.

        Args:
            obs: Arrays (n_envs, ...), what the actions were chosen from.
            next_obs: Arrays (n_envs, ...); at an episode's end its last observation, not the first of the next one.
            action: (n_envs, K), integers.
            reward: (n_envs,).
            done: (n_envs,), terminated or truncated.
            infos: One each; ``TimeLimit.truncated`` distinguishes the two ends.

        Raises:
            ValueError: If an ``info`` counts more regions than there are pools.
        """
        for lane, info in enumerate(infos):
            terminated = bool(done[lane]) and not info.get("TimeLimit.truncated", False)
            counted, next_active = self._counts(info, terminated)
            slot = self._store_first(lane, obs)
            continued = bool(self.pending[lane]) and slot == self.position[lane]
            following = (slot + 1) % self.n_slots
            self.counted[following, lane] = 0  # the oldest step makes room
            if not terminated:
                self._write(following, lane, next_obs)
            self.actions[slot, lane] = action[lane]
            self.counted[slot, lane] = counted
            self.rewards[slot, lane] = self._credited(reward[lane], info, counted)
            if self.credit == "class_rewards":
                self._keep_what_is_new(slot, lane)
                self._accumulate(slot, lane, reward[lane], continued)
            self.terminated[slot, lane] = terminated
            self.next_active[slot, lane] = next_active
            self.pending[lane] = not done[lane]
            truncated = bool(done[lane]) and not terminated
            self.position[lane] = (following + 1) % self.n_slots if truncated else following

    def _credited(self, reward: float, info: dict[str, Any], counted: int) -> Any:
        """The step's reward, or (K,) or (K, C) of its sub-actions, 0 for those that do not count."""
        if self.credit == "shared":
            return reward
        given = np.asarray(info.get(self.credit, ()), np.float32)
        credited = np.zeros(self.rewards.shape[2:], np.float32)
        if given.shape != (counted, *credited.shape[1:]):
            raise ValueError(
                f"info['{self.credit}'] is of shape {given.shape}; expected {(counted, *credited.shape[1:])}, one for "
                "each sub-action that counts: make the environment with sub_rewards=True, or use credit='shared'."
            )
        credited[:counted] = given
        return credited

    def _keep_what_is_new(self, slot: int, lane: int) -> None:
        """Reward what labels hold of each class beyond what the segmentation network has predicted already."""
        candidates = self.stored["candidates"][slot, lane]  # (K, N, F)
        chosen = candidates[np.arange(len(candidates)), self.actions[slot, lane]]  # (K, F)
        new = np.maximum(self.rewards[slot, lane] - chosen[:, self.predicted], 0.0)
        new[self.counted[slot, lane] :] = 0.0
        self.rewards[slot, lane] = new

    def _accumulate(self, slot: int, lane: int, reward: float, continued: bool) -> None:
        """Add a step to what its episode has brought so far."""
        before = self.stored["candidates"][slot, lane, 0, 0, self.labelled]  # (C,), logarithmic label levels
        self.returns[slot, lane], self.steps[slot, lane] = reward, 1
        self.added[slot, lane] = np.log1p(self.rewards[slot, lane].sum(axis=0) * np.exp(-before))
        if continued:
            last = slot - 1  # of a ring: the last slot comes before the first
            for of_episode in (self.returns, self.steps, self.added):
                of_episode[slot, lane] += of_episode[last, lane]

    def beginnings(
        self,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """What the beginnings of episodes brought: the n steps held here, each with those before it.

        Returns:
            What their labels, as far as they exceed the prediction, add to the label levels, (n, C); their rewards'
            sum, (n,); their number of steps, (n,).
        """
        held = self.counted > 0
        return self.added[held], self.returns[held], self.steps[held]

    def _counts(self, info: dict[str, Any], terminated: bool) -> tuple[int, int]:
        """Sub-actions that count in this step (n) and in the next one (n')."""
        pools = self.sizes.pools
        counted = len(info["chosen"]) if "chosen" in info else pools
        next_active = int(info.get("next_active", pools))
        if counted > pools:
            raise ValueError(f"info['chosen'] names {counted} regions, but a step has K = {pools} sub-actions.")
        if not terminated and not 1 <= next_active <= pools:
            raise ValueError(f"info['next_active'] is {next_active} but the episode continues; expected 1 to {pools}")
        return counted, next_active

    def _store_first(self, lane: int, obs: Observation) -> int:
        """Slot of the observation that a step starts from, which is mostly there already: it followed the last step."""
        slot = int(self.position[lane])
        if self.pending[lane]:
            if all(
                np.array_equal(stored[slot, lane], self._part(obs, name, lane)) for name, stored in self.stored.items()
            ):
                return slot
            slot = (slot + 1) % self.n_slots  # an early reset: the last step keeps what followed it
        self._write(slot, lane, obs)
        return slot

    def _write(self, slot: int, lane: int, obs: Observation) -> None:
        self.counted[slot, lane] = 0
        for name, stored in self.stored.items():
            stored[slot, lane] = self._part(obs, name, lane)

    def _part(self, obs: Observation, name: str, lane: int) -> npt.NDArray[Any]:
        """What is stored of a part of one environment's observation."""
        part = obs[name][lane]
        return part[: self.n_regions] if name == "state" else part

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> DecomposedBatch:  # type: ignore[override]
        """Draw ``batch_size`` decomposed transitions; ``env``, if given, normalises shared rewards."""
        up_to = np.cumsum(self.counted)  # (n_slots * n_envs,), pairs up to and including each slot
        if up_to[-1] == 0:
            raise ValueError("The replay has no transitions yet. Add some first, or raise learning_starts.")
        pair = self.rng.integers(up_to[-1], size=batch_size)  # (B,)
        row = np.searchsorted(up_to, pair, side="right")  # (B,)
        slot, lane = np.divmod(row, self.n_envs)
        k = pair - (up_to[row] - self.counted[slot, lane])  # (B,)
        return self._batch(slot, lane, k, env)

    def _batch(self, slot: Indices, lane: Indices, k: Indices, env: VecNormalize | None) -> DecomposedBatch:
        """The transitions of sub-actions k (B,) of the steps in these slots (B,) and lanes (B,)."""
        last, reward, discount = self._returns(slot, lane, k, env)
        following = (last + 1) % self.n_slots
        terminated = self.terminated[last, lane]
        next_k = k % np.maximum(self.next_active[last, lane], 1)
        action = self.actions[slot, lane, k]
        of_candidates = {name: stored for name, stored in self.stored.items() if name != "state"}
        now = {name: stored[slot, lane, k, action] for name, stored in of_candidates.items()}
        after = {name: stored[following, lane, next_k] for name, stored in of_candidates.items()}
        for array in after.values():
            array[terminated] = 0.0
        state, state_of = self._states(slot, lane)
        next_state, next_state_of = self._states(following, lane)
        next_state[next_state_of[terminated]] = 0.0
        return DecomposedBatch(
            state=self.to_torch(state, copy=False),
            state_of=self.to_torch(state_of, copy=False),
            chosen=self.to_torch(now["candidates"], copy=False),
            similarity=self._similarity(now),
            reward=self.to_torch(reward, copy=False),
            discount=self.to_torch(discount, copy=False),
            terminated=self.to_torch(terminated, copy=False),
            next_state=self.to_torch(next_state, copy=False),
            next_state_of=self.to_torch(next_state_of, copy=False),
            next_candidates=self.to_torch(after["candidates"], copy=False),
            next_similarity=self._similarity(after),
        )

    def _states(self, slot: Indices, lane: Indices) -> tuple[npt.NDArray[np.float32], Indices]:
        """The different states (U, S, F) in these slots (B,) and lanes (B,), and which of them each is (B,)."""
        rows, state_of = np.unique(slot * self.n_envs + lane, return_inverse=True)
        return self.stored["state"][np.divmod(rows, self.n_envs)], state_of

    def _returns(
        self, slot: Indices, lane: Indices, k: Indices, env: VecNormalize | None
    ) -> tuple[Indices, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Slot of the last of up to n steps, discounted sum of their rewards, discount of what comes after."""
        last = slot
        reward = self._rewards_of(slot, lane, k, env)
        discount = np.full(len(slot), self.gamma, dtype=np.float32)
        each = (slice(None), *[None] * (reward.ndim - 1))  # of the B, for rewards (B,) and (B, C)
        for _ in range(self.n_steps - 1):
            following = (last + 1) % self.n_slots
            # After the newest step, a time limit or an early reset, no step starts in the slot that follows.
            goes_on = ~self.terminated[last, lane] & (self.counted[following, lane] > 0)
            if not goes_on.any():
                break
            last = np.where(goes_on, following, last)
            later = k % np.maximum(self.counted[last, lane], 1)  # a step may count fewer sub-actions
            gained = discount[each] * self._rewards_of(last, lane, later, env)
            reward = np.where(goes_on[each], reward + gained, reward).astype(np.float32)
            discount = np.where(goes_on, discount * np.float32(self.gamma), discount)
        return last, reward, discount

    def _rewards_of(
        self, slot: Indices, lane: Indices, k: Indices, env: VecNormalize | None
    ) -> npt.NDArray[np.float32]:
        """The rewards (B,) or (B, C) of sub-actions k (B,)."""
        if self.credit == "shared":
            return self._normalize_reward(self.rewards[slot, lane], env).astype(np.float32)
        return self.rewards[slot, lane, k]

    def _similarity(self, parts: Observation) -> Tensor | None:
        return self.to_torch(parts["similarity"], copy=False) if "similarity" in parts else None


def _shapes(state: dict[str, Any]) -> dict[str, Any]:
    """The shapes and types of a tree's arrays."""
    return {
        name: _shapes(value)
        if isinstance(value, dict)
        else f"{value.dtype} {value.shape}"
        if isinstance(value, np.ndarray)
        else type(value).__name__
        for name, value in state.items()
    }


def _lazy_zeros(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return zeros that take time and memory only where they are written.

    The system clears the pages of a mapping when they are first used. np.zeros clears all of them, where freed memory
    is kept (:func:`al_seg_env.learner.cpu_tuning.keep_freed_memory`): 0.8 s for each agent that the demo loads to play.
    """
    size = math.prod(shape)
    # Otherwise, processes that are forked from this one would write into the same replay.
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    pages = mmap.mmap(-1, max(size, 1) * np.dtype(np.float32).itemsize, **private)
    return np.frombuffer(pages, dtype=np.float32, count=size).reshape(shape)
