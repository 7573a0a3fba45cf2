"""What region selection adds to an algorithm of Stable-Baselines3: any K and N, but only a known task."""

from __future__ import annotations

import inspect
import io
import pathlib
import warnings
import zipfile
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
import torch
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, TrainFreq
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize

from agents.dqn.replay import DecomposedReplayBuffer
from agents.dqn.saving import (
    AGENT_KIND,
    REPLAY_KIND,
    pack_settings,
    pack_spaces,
    unpack_settings,
    unpack_spaces,
    well_formed,
)
from agents.dqn.spaces import Sizes, check_same_task, read_layout
from al_seg_env.storage import load_tree, save_tree

PROGRESS = (
    "num_timesteps",
    "_total_timesteps",
    "_episode_num",
    "_n_updates",
    "_n_calls",
    "_current_progress_remaining",
)
SETTINGS = {"stats_window_size": "_stats_window_size"}  # attributes that are not named like their argument

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
            self.buffer_size,
            self.observation_space,
            self.action_space,
            self.device,
            self.n_envs,
            **self.replay_buffer_kwargs,
        )
        self.replay_buffer.rng = self.rng.spawn(1)[0]

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Write the agent, whole or not at all: networks, optimiser, settings, counters and random source.

        The file holds nothing that must be unpickled; ``.safetensors`` is added to a name without suffix. A
        setting that is no plain value, such as a function, must be given to :meth:`load` again. For the replay
        there is ``save_replay_buffer``, for going on with training exactly :class:`agents.Checkpoint`, for the
        format of Stable-Baselines3 :meth:`export_sb3_zip`.
        """
        if exclude is not None or include is not None:
            raise ValueError("exclude and include are of the format of Stable-Baselines3; use export_sb3_zip().")
        tree = {
            "class": type(self).__name__,
            "policy": self.policy_class.__qualname__,
            "settings": self._settings(),
            "spaces": pack_spaces(self.observation_space, self.action_space),
            "n_envs": self.n_envs,
            "layout": self.layout,
            "parameters": self.get_parameters(),
            "progress": {name: getattr(self, name) for name in PROGRESS},
            "rng": self.rng,
        }
        save_tree(_with_suffix(path), AGENT_KIND, tree)

    def _settings(self) -> dict[str, Any]:
        """The arguments of the constructor, packed. A path to write logs to belongs to the machine, not the agent."""
        names = list(inspect.signature(type(self).__init__).parameters)
        left_out = {"self", "policy", "env", "device", "tensorboard_log", "_init_setup_model"}
        settings = {name: getattr(self, SETTINGS.get(name, name)) for name in names if name not in left_out}
        if isinstance(frequency := settings.get("train_freq"), TrainFreq):
            settings["train_freq"] = (frequency.frequency, frequency.unit.value)
        return pack_settings(settings)

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
        """Load an agent that :meth:`save` wrote; nothing in the file is executed.

        The random source goes on where it was when the agent was saved, unless a new ``seed`` is given.

        Args:
            path: The file.
            env: As in :meth:`set_env`.
            device: Of the network.
            custom_objects: Like ``kwargs``, as Stable-Baselines3 has it.
            print_system_info: For :meth:`import_sb3_zip` only.
            force_reset: Must be true: the last observation isn't saved.
            kwargs: Arguments of the constructor that replace the stored ones, and ``policy`` where the agent has
                a policy of its own class.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, of another kind or version, lacks a setting, or does not fit ``env``.
        """
        _check_force_reset(force_reset)
        path = _with_suffix(path)
        if path.is_file() and zipfile.is_zipfile(path):
            raise ValueError(
                f"{path} is of Stable-Baselines3's format, which is unpickled and so may execute anything. If you "
                f"trust where it comes from: {cls.__name__}.import_sb3_zip(path)"
            )
        tree = load_tree(path, AGENT_KIND)
        with well_formed(path):
            model, given = cls._from_tree(tree, path, device, {**(custom_objects or {}), **kwargs})
        return model._given(env, given)

    @classmethod
    def _from_tree(
        cls: type[SelfRegionAgent], tree: Any, path: Any, device: torch.device | str, given: dict[str, Any]
    ) -> tuple[SelfRegionAgent, dict[str, Any]]:
        policy = given.pop("policy", cls.policy_aliases.get(tree["policy"]))
        if policy is None or tree["class"] != cls.__name__:
            raise ValueError(
                f"{path} is a {tree['class']} with the policy {tree['policy']}, and {cls.__name__} is to be loaded, "
                f"with one of {sorted(cls.policy_aliases)}; use its own class, and policy=... for a policy of your own"
            )
        settings = unpack_settings(tree["settings"], given, path)
        model = cls(policy, None, device=device, _init_setup_model=False, **settings)  # type: ignore[call-arg, arg-type]
        model.observation_space, model.action_space = unpack_spaces(tree["spaces"])
        model.n_envs, model.layout = tree["n_envs"], tree["layout"]
        if given.get("seed") is None:
            model.rng = tree["rng"]
        model._setup_model()
        model.set_parameters(tree["parameters"], exact_match=True, device=device)
        vars(model).update({name: tree["progress"][name] for name in PROGRESS})
        return model, given

    def _given(self: SelfRegionAgent, env: GymEnv | None, given: dict[str, Any]) -> SelfRegionAgent:
        """Give a loaded agent its environment, and start its random source anew if there is a new seed."""
        if env is not None:
            self.set_env(env)
            assert self.env is not None
            if self.seed is not None:
                self.env.seed(self.seed)
        if "seed" in given:
            self.set_random_seed(given["seed"])
        return self

    def export_sb3_zip(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """Write the agent in the format of Stable-Baselines3, which its own tools read by unpickling."""
        super().save(path)

    @classmethod
    def import_sb3_zip(
        cls: type[SelfRegionAgent],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfRegionAgent:
        """Load what :meth:`export_sb3_zip` wrote. It is unpickled: whoever made the file decides what is executed."""
        _check_force_reset(force_reset)
        # The base class would insist on equal spaces, so the environment comes after.
        model = super().load(path, None, device, custom_objects, print_system_info, **kwargs)
        return model._given(env, kwargs)

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """Write the replay, whole or not at all, as arrays."""
        assert self.replay_buffer is not None
        save_tree(_with_suffix(path), REPLAY_KIND, self.replay_buffer.state_dict())

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """Read what :meth:`save_replay_buffer` wrote, into a replay of the same sizes.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, of another kind or version, or of other sizes.
        """
        assert self.replay_buffer is not None
        with well_formed(path):
            self.replay_buffer.load_state_dict(load_tree(_with_suffix(path), REPLAY_KIND))

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


def _with_suffix(path: str | pathlib.Path | io.BufferedIOBase) -> pathlib.Path:
    if not isinstance(path, str | pathlib.Path):
        raise TypeError(f"path is a {type(path).__name__}: expected the name of a file.")
    path = pathlib.Path(path)
    return path if path.suffix else path.with_suffix(".safetensors")


def _check_force_reset(force_reset: bool) -> None:
    if not force_reset:
        raise ValueError("force_reset=False needs the last observation, which isn't saved: leave it True.")
