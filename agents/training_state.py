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

Tree = dict[str, Any]


def training_state(model: BaseAlgorithm) -> Tree:
    """Return all that the rest of a training depends on; its arrays are the live ones.

    It is whole between two rollouts: where ``on_rollout_start`` of a callback is called, and after ``learn``.

    Raises:
        ValueError: If an environment has no ``get_state`` and ``set_state``.
    """
    assert model.env is not None
    buffer = getattr(model, "replay_buffer", None)
    return {
        "algorithm": type(model).__name__,
        "settings": _settings(model),
        "parameters": model.get_parameters(),
        "variables": {name: _get(model, name) for name in model._get_torch_save_params()[1]},
        "progress": _plain_attributes(model, leave_out=set(_arguments(model))),
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
    """Put a state back into an algorithm that was made with the same arguments.

    After it ``model.learn(total - model.num_timesteps, reset_num_timesteps=False)`` ends where an undisturbed
    ``model.learn(total)`` would have ended.

    Raises:
        ValueError: If the algorithm, its arguments or its environments are others.
    """
    assert model.env is not None
    own, given = _settings(model), state["settings"]
    differing = [name for name in {**own, **given} if own.get(name) != given.get(name)]
    if state["algorithm"] != type(model).__name__ or differing:
        shown = "; ".join(f"{name} is {given.get(name)!r} there, {own.get(name)!r} here" for name in differing)
        raise ValueError(
            f"The checkpoint is of a {state['algorithm']}, this is a {type(model).__name__}; {shown or 'no other'} "
            "difference in its arguments. Go on with the same arguments, or start anew in another folder."
        )
    buffer = getattr(model, "replay_buffer", None)
    replay = _with_empty_rows(state["replay"])
    if buffer is not None:
        _check_shapes(_plain_attributes(buffer), replay)
    _restore_environments(model.env, state["envs"])
    model.set_parameters(state["parameters"], exact_match=True, device=model.device)
    for name, value in state["variables"].items():
        if value is not None:
            _get(model, name).data = value.to(model.device)
    vars(model).update(state["progress"])
    if buffer is not None:
        vars(buffer).update(replay)
    random.setstate(state["random"]["python"])
    np.random.set_state(state["random"]["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["random"]["torch"])
    if torch.cuda.is_available() and len(state["random"]["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["random"]["cuda"])


def _arguments(model: BaseAlgorithm) -> list[str]:
    return list(inspect.signature(type(model).__init__).parameters)


def _settings(model: BaseAlgorithm) -> Tree:
    """The arguments of the constructor that can be compared, but for those without effect on what is learnt."""
    left_out = {"verbose", "tensorboard_log", "device", "seed", "stats_window_size"}
    values = {name: getattr(model, name, None) for name in _arguments(model) if name not in left_out}
    settings = {
        name: repr(value) if is_dataclass(value) or isinstance(value, tuple) else value
        for name, value in values.items()
    }
    return {name: value for name, value in settings.items() if isinstance(value, bool | int | float | str)}


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
    return {"vector": wrappers, "single": [{"wrappers": None, "state": state} for state in states]}


def _restore_environments(env: VecEnv, state: Tree) -> None:
    if len(state["single"]) != env.num_envs:
        raise ValueError(f"The checkpoint is of {len(state['single'])} environments, here are {env.num_envs}.")
    layers: list[VecEnv] = []
    while isinstance(env, VecEnvWrapper):
        layers.append(env)
        env = env.venv
    if len(layers) != len(state["vector"]):
        raise ValueError(f"The checkpoint's environments had {len(state['vector'])} wrappers, these {len(layers)}.")
    for index, single in enumerate(state["single"]):
        if hasattr(env, "envs"):
            _restore_chain(env.envs[index], single)
        else:
            env.env_method("set_state", single["state"], indices=index)
    for layer, attributes in zip(layers, state["vector"], strict=True):
        _set_attributes(layer, attributes)


def _chain_state(env: gym.Env) -> Tree:
    """The state of an environment and the counters of the wrappers around it, the outermost first."""
    wrappers = []
    while isinstance(env, gym.Wrapper):
        wrappers.append(_plain_attributes(env))
        env = env.env
    if not hasattr(env, "get_state"):
        raise _no_state(env)
    return {"wrappers": wrappers, "state": env.get_state()}


def _restore_chain(env: gym.Env, state: Tree) -> None:
    layers: list[gym.Env] = []
    while isinstance(env, gym.Wrapper):
        layers.append(env)
        env = env.env
    if not hasattr(env, "set_state"):
        raise _no_state(env)
    env.set_state(state["state"])
    if state["wrappers"] is None:  # of other processes, where wrappers are out of reach
        return
    if len(layers) != len(state["wrappers"]):
        raise ValueError(f"The checkpoint's environment had {len(state['wrappers'])} wrappers, this has {len(layers)}.")
    for layer, attributes in zip(layers, state["wrappers"], strict=True):
        _set_attributes(layer, attributes)


def _no_state(env: Any) -> ValueError:
    return ValueError(
        f"{type(getattr(env, 'unwrapped', env)).__name__} has no get_state() and set_state(), so training can't go on "
        "in the middle of an episode. Give it these two (plain values and arrays), or do without checkpoints."
    )


def _plain_attributes(thing: Any, leave_out: set[str] = frozenset()) -> Tree:  # type: ignore[assignment]
    """The attributes that change in the course of training: numbers, arrays, random sources, lists and dicts of them.

    Texts are left out: they are names, such as folders to write to.
    """
    found = {}
    for name, value in vars(thing).items():
        if isinstance(value, RunningMeanStd):
            found[name] = {"mean": value.mean, "var": value.var, "count": value.count}
        elif name not in leave_out and not isinstance(value, str) and _is_plain(value):
            found[name] = value
    return found


def _without_empty_rows(tree: Any) -> Any:
    """Leave out the rows of zeros at the end of arrays: of a replay, what has not been filled yet."""
    if isinstance(tree, dict):
        return {name: _without_empty_rows(value) for name, value in tree.items()}
    if not isinstance(tree, np.ndarray) or tree.ndim == 0:
        return tree
    filled = np.flatnonzero(tree.reshape(len(tree), -1).any(axis=1)) if tree.size else np.zeros(0, np.int64)
    return {"first rows": tree[: filled[-1] + 1 if len(filled) else 0], "rows": len(tree)}


def _with_empty_rows(tree: Any) -> Any:
    """Put them back."""
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
        if isinstance(statistics := getattr(thing, name, None), RunningMeanStd):
            vars(statistics).update(value)
        else:
            setattr(thing, name, value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple | deque):
        return type(value) in (list, tuple, deque) and all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biuf"
    return value is None or type(value) in (bool, int, float, str, np.random.Generator)


def _check_shapes(own: Tree, given: Tree) -> None:
    def shapes(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {name: shapes(value) for name, value in tree.items()}
        return getattr(tree, "shape", None)

    if shapes(own) != shapes(given):
        raise ValueError(
            f"The checkpoint's replay has arrays of the shapes {shapes(given)}: expected {shapes(own)}. Go on with the "
            "same buffer_size, and with environments of the same spaces, as many of them."
        )
