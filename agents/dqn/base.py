"""What region selection adds to an algorithm of Stable-Baselines3: any K and N, but only a known task."""

from __future__ import annotations

import io
import pathlib
import warnings
from typing import Any, TypeVar

import numpy as np
import torch
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize

from agents.dqn.contract import Sizes, check_same_task, read_layout
from agents.dqn.replay import DecomposedReplayBuffer

SelfRegionAgent = TypeVar("SelfRegionAgent", bound="RegionAgent")


class RegionAgent(OffPolicyAlgorithm):
    """Off-policy algorithm over :class:`DecomposedReplayBuffer`, with its own random source.

    Unlike its base it may be given an environment with other K and N, or another number of environments;
    unlike its base it refuses one with another ``layout``. A subclass sets ``rng`` and ``layout``, then
    calls ``_setup_model``.
    """

    replay_buffer: DecomposedReplayBuffer | None
    rng: np.random.Generator  # exploration draws from it, the replay from a child of it
    layout: dict[str, Any] | None

    def _setup_model(self) -> None:
        self.sizes = Sizes.from_spaces(self.observation_space, self.action_space)
        _check_normalization(self._vec_normalize_env)
        rng = self.rng  # of a loaded agent: goes on where it was, instead of starting anew from the seed
        super()._setup_model()
        self.rng = rng
        assert self.replay_buffer is not None
        self.replay_buffer.rng = self.rng.spawn(1)[0]

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed the agent's own random source, torch and the environment; None leaves them as they are."""
        super().set_random_seed(seed)
        if seed is not None:
            self.rng = np.random.default_rng(seed)
            if self.replay_buffer is not None:
                self.replay_buffer.rng = self.rng.spawn(1)[0]

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Play another environment from now on: one with the same S, F, D and layout.

        K, N and the number of environments may differ. Then the replay starts empty, with a
        warning if that loses transitions.
        """
        env = self._wrap_env(env, self.verbose)
        sizes = Sizes.from_spaces(env.observation_space, env.action_space)
        check_same_task(self.sizes, self.layout, sizes, read_layout(env))
        vec_normalize = unwrap_vec_normalize(env)
        _check_normalization(vec_normalize)
        resized = (sizes, env.num_envs) != (self.sizes, self.n_envs)
        self.env, self.n_envs, self.sizes = env, env.num_envs, sizes
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self._vec_normalize_env = vec_normalize
        if resized:
            self._renew_replay()
        if force_reset or resized:
            self._last_obs = None

    def _renew_replay(self) -> None:
        if self.replay_buffer is not None and self.replay_buffer.size() > 0:
            warnings.warn("The new environment has another K, N or number of environments: the replay was emptied.")
        self.replay_buffer = DecomposedReplayBuffer(
            self.buffer_size, self.observation_space, self.action_space, self.device, self.n_envs
        )
        self.replay_buffer.rng = self.rng.spawn(1)[0]

    @classmethod
    def load(
        cls: type[SelfRegionAgent],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfRegionAgent:
        """Load a saved agent; ``env`` as in :meth:`set_env`, other arguments as in Stable-Baselines3.

        The random source goes on where it was when the agent was saved, unless a new ``seed`` is given.
        """
        if not force_reset:
            raise ValueError("force_reset=False needs the last observation, which isn't saved: leave it True.")
        # The base class would insist on equal spaces, so the environment comes after.
        model = super().load(path, None, device, custom_objects, print_system_info, **kwargs)
        if env is not None:
            model.set_env(env)
            assert model.env is not None
            if model.seed is not None:
                model.env.seed(model.seed)
        if "seed" in kwargs:
            model.set_random_seed(kwargs["seed"])
        return model

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_last_obs", "_last_original_obs"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []


def _check_normalization(vec_normalize: VecNormalize | None) -> None:
    if vec_normalize is not None and vec_normalize.norm_obs:
        raise ValueError(
            "VecNormalize(norm_obs=True) would normalise each pool by itself, and the query network "
            "normalises its inputs anyway: use VecNormalize(norm_obs=False)."
        )
