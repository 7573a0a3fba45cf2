"""The whole state of training: an algorithm of Stable-Baselines3, its environments, and all random sources."""

from __future__ import annotations

import inspect
import random
from collections import deque
from dataclasses import is_dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from al_seg_env.storage import PortableTree, differences

Tree = dict[str, Any]
AnyEnv = gym.Env[Any, Any]

WITHOUT_EFFECT = {"verbose", "tensorboard_log", "device", "stats_window_size"}
"""Arguments of algorithms that have no effect on what is learnt."""

WORKER_COUNTERS = (
    "_elapsed_steps",  # of TimeLimit
    "rewards",  # of Monitor
    "total_steps",
    "episode_returns",  # of Monitor, or of RecordEpisodeStatistics
    "episode_lengths",
    "episode_count",
)
"""Counters of wrappers around environments in other processes. Other attributes are out of reach there."""


def training_state(model: BaseAlgorithm) -> Tree:
    """Return everything that the rest of a training depends on. Arrays are not copied.

    The state is complete between two rollouts: when a callback's ``on_rollout_start`` is called, and after ``learn``.

    Raises:
        ValueError: If an environment lacks ``get_state`` or ``set_state``.
    """
    assert model.env is not None
    buffer = getattr(model, "replay_buffer", None)
    return {
        "algorithm": type(model).__name__,
        "settings": _settings(model),
        "parameters": model.get_parameters(),
        "variables": {name: _get(model, name) for name in model._get_torch_save_params()[1]},
        "progress": _plain_attributes(model, excluded=frozenset(_arguments(model))),
        "replay": None if buffer is None else _without_empty_rows(_plain_attributes(buffer)),
        "envs": _environments_state(model.env),
        "random": {
            "python": random.getstate(),
            "numpy": np.random.get_state(legacy=False),  # noqa: NPY002 - what other code may draw from
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        },
    }


def restore_training(model: BaseAlgorithm, state: Tree) -> None:
    """Restore a state into an algorithm that was constructed with the same arguments.

    Afterwards, ``model.learn(total - model.num_timesteps, reset_num_timesteps=False)`` gives the same result as an
    uninterrupted ``model.learn(total)``.

    Raises:
        ValueError: If the algorithm, its arguments or its environments differ from the checkpoint's.
    """
    assert model.env is not None
    if state["algorithm"] != type(model).__name__:
        raise ValueError(
            f"The checkpoint is of a {state['algorithm']}, this is a {type(model).__name__}. Continue with the same "
            "algorithm, or start again in another folder."
        )
    if differing := _differing_settings(state["settings"], model):
        raise ValueError(
            f"The checkpoint is of a {state['algorithm']} with other arguments: {'; '.join(differing)}. Continue with "
            "the same ones, or start again in another folder."
        )
    buffer = getattr(model, "replay_buffer", None)
    replay = _with_empty_rows(state["replay"])
    if buffer is not None and (differing := differences(_shapes(replay), _shapes(_plain_attributes(buffer)))):
        raise ValueError(
            f"The checkpoint's replay has arrays of other shapes: {'; '.join(differing)}. Continue with the same "
            "buffer_size, and with the same number of environments with the same spaces."
        )
    _restore_environments(model.env, state["envs"])
    set_parameters(model, state["parameters"])
    for name in model._get_torch_save_params()[1]:
        if (value := state["variables"][name]) is not None:
            _get(model, name).data = value.to(model.device)
    _set_attributes(model, state["progress"])
    if buffer is not None:
        _set_attributes(buffer, replay)
    random.setstate(state["random"]["python"])
    np.random.set_state(state["random"]["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["random"]["torch"])
    if torch.cuda.is_available() and len(state["random"]["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["random"]["cuda"])


def set_parameters(model: BaseAlgorithm, parameters: Any) -> None:
    """Load the parameters of networks and optimisers into an algorithm.

    Anything but a dict is refused, because Stable-Baselines3 takes a text for the name of a file and unpickles it.

    Raises:
        ValueError: If the parameters don't match the algorithm's networks and optimisers; nothing is changed then.
    """
    names = model._get_torch_save_params()[0]
    found = sorted(map(str, parameters)) if isinstance(parameters, dict) else type(parameters).__name__
    if found != sorted(names) or not all(isinstance(parameters[name], dict) for name in names):
        raise ValueError(f"the parameters are {found!r}; expected a dict with a dict for each of {sorted(names)}")
    model.set_parameters(parameters, exact_match=True, device=model.device)


def _arguments(model: BaseAlgorithm) -> list[str]:
    return list(inspect.signature(type(model).__init__).parameters)


def _settings(model: BaseAlgorithm) -> Tree:
    """The arguments of the constructor as plain values, ``None`` for those that cannot be compared."""
    return {name: _comparable(getattr(model, name, None)) for name in _arguments(model) if name not in WITHOUT_EFFECT}


def _comparable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _comparable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_comparable(item) for item in value]
    if (is_dataclass(value) and not isinstance(value, type)) or isinstance(value, tuple):
        return repr(value)
    if isinstance(value, type):
        return value.__qualname__
    return value if isinstance(value, bool | int | float | str) else None


def _differing_settings(stored: Tree, model: BaseAlgorithm) -> list[str]:
    present = _settings(model)
    for name in present.keys() - stored.keys():  # an argument that was added since had its default value
        stored = {**stored, name: _comparable(inspect.signature(type(model).__init__).parameters[name].default)}
    ignored: set[str] = set()
    if None in (stored.get("seed"), present.get("seed")):  # the random states are the checkpoint's anyway
        ignored.add("seed")
    return differences(stored, present, ignored)


def _get(model: BaseAlgorithm, name: str) -> Any:
    found: Any = model
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _environments_state(env: VecEnv) -> Tree:
    wrappers = []
    while isinstance(env, VecEnvWrapper):
        wrappers.append(_plain_attributes(env))
        env = env.venv
    if hasattr(env, "envs"):
        return {"vector": wrappers, "single": [_chain_state(one) for one in env.envs]}
    try:
        states = env.env_method("get_state")
    except AttributeError as error:
        raise _no_state(env) from error
    kept = {name: env.get_attr(name) for name in WORKER_COUNTERS if env.has_attr(name)}
    counters = [
        {name: kept[name][index] for name in kept if _is_plain(kept[name][index])} for index in range(len(states))
    ]
    single = [
        {"wrappers": None, "counters": of_one, "state": state} for of_one, state in zip(counters, states, strict=True)
    ]
    return {"vector": wrappers, "single": single}


def _restore_environments(env: VecEnv, state: Tree) -> None:
    if len(state["single"]) != env.num_envs:
        raise ValueError(
            f"The checkpoint has {len(state['single'])} environments, but the algorithm has {env.num_envs}. "
            "Continue with the same number, or start again in another folder."
        )
    layers: list[VecEnv] = []
    while isinstance(env, VecEnvWrapper):
        layers.append(env)
        env = env.venv
    if len(layers) != len(state["vector"]):
        raise ValueError(
            f"The checkpoint's environments had {len(state['vector'])} wrappers, but these have {len(layers)}. "
            "Continue with the same wrappers, or start again in another folder."
        )
    for index, single in enumerate(state["single"]):
        if hasattr(env, "envs"):
            _restore_chain(env.envs[index], single)
        else:
            _restore_worker(env, index, single)
    for layer, attributes in zip(layers, state["vector"], strict=True):
        _set_attributes(layer, attributes)


def _chain_state(env: AnyEnv) -> Tree:
    """Return the state of an environment, and the attributes of the wrappers around it, outermost first."""
    wrappers = []
    while isinstance(env, gym.Wrapper):
        wrappers.append(_plain_attributes(env))
        env = env.env
    if not hasattr(env, "get_state"):
        raise _no_state(env)
    return {"wrappers": wrappers, "state": env.get_state()}


def _restore_chain(env: AnyEnv, state: Tree) -> None:
    layers: list[AnyEnv] = []
    bare = env
    while isinstance(bare, gym.Wrapper):
        layers.append(bare)
        bare = bare.env
    if not hasattr(bare, "set_state"):
        raise _no_state(bare)
    wrappers = state["wrappers"]
    if wrappers is None:  # from another process, where most of what wrappers hold is out of reach
        env.reset()
        bare.set_state(state["state"])
        for name, value in _counters(state).items():
            env.set_wrapper_attr(name, value)
        return
    if len(layers) != len(wrappers):
        raise ValueError(
            f"The checkpoint's environment had {len(wrappers)} wrappers, but this one has {len(layers)}. "
            "Continue with the same wrappers, or start again in another folder."
        )
    bare.set_state(state["state"])
    for layer, attributes in zip(layers, wrappers, strict=True):
        _set_attributes(layer, attributes)


def _restore_worker(env: VecEnv, index: int, state: Tree) -> None:
    """Restore an environment of another process."""
    env.env_method("reset", indices=index)  # wrappers refuse to step before
    env.env_method("set_state", PortableTree(state["state"]), indices=index)
    for name, value in _counters(state).items():
        if env.has_attr(name):
            env.env_method("set_wrapper_attr", name, value, indices=index)


def _counters(state: Tree) -> Tree:
    """Return the counters of the wrappers around an environment, by the attribute's name."""
    if state["wrappers"] is None:
        found = state.get("counters", {})
    else:
        found = {name: value for layer in reversed(state["wrappers"]) for name, value in layer.items()}
    return {name: found[name] for name in WORKER_COUNTERS if found.get(name) is not None}


def _no_state(env: Any) -> ValueError:
    return ValueError(
        f"{type(getattr(env, 'unwrapped', env)).__name__} has no get_state() and set_state(), so training can't "
        "continue in the middle of an episode. Add both (plain values and arrays), or train without Checkpoint."
    )


def _plain_attributes(thing: Any, excluded: frozenset[str] = frozenset()) -> Tree:
    """Return the attributes that change during training: numbers, arrays, random sources, and lists and dicts of these.

    Texts are omitted, because they are names, such as folders to write to.
    """
    found = {}
    for name, value in vars(thing).items():
        if isinstance(value, RunningMeanStd):
            found[name] = {"mean": value.mean, "var": value.var, "count": value.count}
        elif name not in excluded and _is_counted(value):
            found[name] = value
    return found


def _without_empty_rows(tree: Any) -> Any:
    """Omit the rows of zeros at the end of arrays, which are the part of a replay that is not filled yet."""
    if isinstance(tree, dict):
        return {name: _without_empty_rows(value) for name, value in tree.items()}
    if not isinstance(tree, np.ndarray) or tree.ndim == 0:
        return tree
    filled = np.flatnonzero(tree.reshape(len(tree), -1).any(axis=1)) if tree.size else np.zeros(0, np.int64)
    return {"first rows": tree[: filled[-1] + 1 if len(filled) else 0], "rows": len(tree)}


def _with_empty_rows(tree: Any) -> Any:
    """Add the rows that :func:`_without_empty_rows` omitted."""
    if not isinstance(tree, dict):
        return tree
    if tree.keys() != {"first rows", "rows"}:
        return {name: _with_empty_rows(value) for name, value in tree.items()}
    first, count = tree["first rows"], tree["rows"]
    whole = np.zeros((count, *first.shape[1:]), first.dtype)
    whole[: len(first)] = first
    return whole


def _set_attributes(thing: Any, attributes: Tree) -> None:
    for name, value in attributes.items():
        present = vars(thing).get(name)
        if isinstance(present, RunningMeanStd):
            present.mean, present.var, present.count = value["mean"], value["var"], value["count"]
        elif _is_counted(present) and _is_counted(value):
            setattr(thing, name, value)
        else:
            raise ValueError(
                f"{name!r} of {type(thing).__name__} is a {type(present).__name__}, but the checkpoint has a value of "
                "another kind; continue with the same algorithm and wrappers"
            )


def _is_counted(value: Any) -> bool:
    return not isinstance(value, str) and _is_plain(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple | deque):
        return type(value) in (list, tuple, deque) and all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biuf"
    return value is None or type(value) in (bool, int, float, str, np.random.Generator)


def _shapes(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _shapes(value) for name, value in tree.items()}
    return getattr(tree, "shape", None)
