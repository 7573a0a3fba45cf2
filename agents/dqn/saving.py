"""The files of an agent, a policy and a replay: plain values and arrays, which can be read without unpickling."""

from __future__ import annotations

import inspect
import io
import math
import pathlib
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq

from agents.dqn.exploration import ExponentialEpsilon, ExponentialRate, LinearEpsilon
from agents.dqn.replay import DecomposedReplayBuffer
from al_seg_env.storage import load_tree, save_tree, well_formed

AGENT_KIND, POLICY_KIND, REPLAY_KIND = "agent", "query policy", "replay"
PROGRESS = (
    "num_timesteps",
    "_total_timesteps",
    "_episode_num",
    "_n_updates",
    "_n_calls",
    "_current_progress_remaining",
)
LARGEST_BOX = 2**31  # values in a part of the observation; a malformed file must not fill the memory

_ATTRIBUTES = {"stats_window_size": "_stats_window_size"}  # arguments whose attribute has another name
_NOT_STORED = {
    "self",
    "policy",
    "env",
    "device",
    "tensorboard_log",
    "_init_setup_model",
}  # of the machine, not the agent
_SCHEDULES: dict[str, Any] = {kind.__name__: kind for kind in (ExponentialEpsilon, ExponentialRate, LinearEpsilon)}

AnyPath = str | pathlib.Path | io.BufferedIOBase
"""The types of paths in Stable-Baselines3. Open files are refused because they can't be written atomically."""


def with_suffix(path: AnyPath) -> pathlib.Path:
    """Return the path, with ``.safetensors`` appended if it has no suffix."""
    if not isinstance(path, str | pathlib.Path):
        raise ValueError(f"path is a {type(path).__name__}; expected the name of a file")
    path = pathlib.Path(path)
    return path if path.suffix else path.with_suffix(".safetensors")


def pack_agent(agent: OffPolicyAlgorithm) -> dict[str, Any]:
    """Return an agent as plain values and arrays: networks, optimiser, settings, counters and random source."""
    about: Any = agent
    return {
        "class": type(agent).__name__,
        "policy": agent.policy_class.__qualname__,
        "settings": pack_settings(_arguments(agent)),
        "spaces": pack_spaces(agent.observation_space, agent.action_space),
        "n_envs": agent.n_envs,
        "layout": about.layout,
        "parameters": agent.get_parameters(),
        "progress": {name: getattr(agent, name) for name in PROGRESS},
        "rng": about.rng,
    }


def save_agent(path: AnyPath, tree: Mapping[str, Any]) -> None:
    """Write a tree of :func:`pack_agent` atomically."""
    save_tree(with_suffix(path), AGENT_KIND, tree)


def load_agent(path: AnyPath) -> Any:
    """Read a file that :func:`save_agent` wrote.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is damaged, or of another kind or version.
    """
    path = with_suffix(path)
    if path.is_file() and zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is a zip, the format of Stable-Baselines3. It is not read, since unpickling may execute any code. "
            "Use the .safetensors file that save() of SubActionDQN writes, or, for another algorithm, a function that "
            "loads it (docs/guide/agents.md)"
        )
    return load_tree(path, AGENT_KIND)


def save_replay(path: AnyPath, replay: DecomposedReplayBuffer) -> None:
    """Write a replay atomically."""
    save_tree(with_suffix(path), REPLAY_KIND, replay.state_dict())


def load_replay(path: AnyPath, replay: DecomposedReplayBuffer) -> None:
    """Read a file that :func:`save_replay` wrote into a replay of the same sizes.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is damaged, of another kind or version, or of a replay of other sizes.
    """
    path = with_suffix(path)
    tree = load_tree(path, REPLAY_KIND)
    with well_formed(path):
        replay.load_state_dict(tree)


def _arguments(agent: OffPolicyAlgorithm) -> dict[str, Any]:
    """Return the constructor's arguments that belong to the agent and not to the machine."""
    names = [name for name in inspect.signature(type(agent).__init__).parameters if name not in _NOT_STORED]
    settings = {name: getattr(agent, _ATTRIBUTES.get(name, name)) for name in names}
    if isinstance(frequency := settings.get("train_freq"), TrainFreq):
        settings["train_freq"] = (frequency.frequency, frequency.unit.value)
    return settings


def pack_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as plain values. Any other value, such as a function, is replaced by a note of what it was."""
    return {name: _packed(value) for name, value in settings.items()}


def unpack_settings(packed: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that :func:`pack_settings` packed, overridden by those in ``given``.

    Raises:
        ValueError: If a setting could not be stored and is not given.
    """
    missing = {name: note for name in packed if name not in given and (note := _lost(packed[name]))}
    if missing:
        raise ValueError(
            f"the file lacks {', '.join(f'{name} ({note})' for name, note in missing.items())}, since only plain "
            f"values are stored. Pass it again: load(path, {', '.join(f'{name}=...' for name in missing)})"
        )
    return {**{name: _unpacked(value) for name, value in packed.items() if name not in given}, **given}


def pack_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> dict[str, Any]:
    """Return the spaces as arrays. Bounds that are equal in all rows are stored once."""
    assert isinstance(observation_space, spaces.Dict)
    assert isinstance(action_space, spaces.MultiDiscrete)
    boxes = {}
    for name, box in observation_space.spaces.items():
        assert isinstance(box, spaces.Box)
        boxes[name] = {
            "shape": list(box.shape),
            "dtype": str(box.dtype),
            "low": _once(box.low),
            "high": _once(box.high),
        }
    return {"observation": boxes, "action": action_space.nvec.copy()}


def unpack_spaces(packed: Mapping[str, Any]) -> tuple[spaces.Dict, spaces.MultiDiscrete]:
    """Return the spaces that :func:`pack_spaces` packed."""
    boxes: dict[str, spaces.Space[Any]] = {}
    for name, box in packed["observation"].items():
        if math.prod(box["shape"]) > LARGEST_BOX:
            raise ValueError(
                f"the observation's {name!r} has the shape {box['shape']}; expected at most {LARGEST_BOX} values"
            )
        low, high = (np.broadcast_to(box[bound], box["shape"]) for bound in ("low", "high"))
        boxes[name] = spaces.Box(low, high, dtype=box["dtype"])
    return spaces.Dict(boxes), spaces.MultiDiscrete(packed["action"])


def _once(bound: npt.NDArray[Any]) -> npt.NDArray[Any]:
    rows = bound.reshape(-1, bound.shape[-1])
    return rows[0].copy() if len(rows) and (rows == rows[0]).all() else bound


def _packed(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return type(value)([_packed(item) for item in value])
    if isinstance(value, dict):
        return {str(key): _packed(item) for key, item in value.items()}
    if isinstance(value, ExponentialEpsilon | ExponentialRate | LinearEpsilon):
        return {"schedule": type(value).__name__, "arguments": asdict(value)}
    name = getattr(value, "__name__", "")
    if inspect.isclass(value) and getattr(torch.optim, name, None) is value:
        return {"optimizer": name}
    return {"not stored": getattr(value, "__qualname__", repr(value))}


def _unpacked(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)([_unpacked(item) for item in value])
    if not isinstance(value, dict):
        return value
    if value.keys() == {"schedule", "arguments"}:
        return _SCHEDULES[value["schedule"]](**value["arguments"])
    if value.keys() == {"optimizer"}:
        found = getattr(torch.optim, str(value["optimizer"]), None)
        if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
            raise ValueError(f"the optimiser {value['optimizer']!r} is not one of torch's")
        return found
    return {key: _unpacked(item) for key, item in value.items()}


def _lost(value: Any) -> str | None:
    """Return the note on a value that could not be stored, or ``None`` if everything was stored."""
    if isinstance(value, list | tuple):
        return next((note for item in value if (note := _lost(item))), None)
    if isinstance(value, dict):
        if value.keys() == {"not stored"}:
            return str(value["not stored"])
        return next((note for item in value.values() if (note := _lost(item))), None)
    return None
