"""The whole state of an environment: taken, put back, and compared before it is."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from al_seg_env.labelling.label_state import flat_masks, split_masks
from al_seg_env.storage import load_tree, save_tree, tree_digest
from al_seg_env.types import IntArray, Observation, State

if TYPE_CHECKING:
    from al_seg_env.env import RegionSelectionEnv

KIND = "environment state"


@dataclass(frozen=True)
class Episode:
    """Where an episode is, beside its labels, the network and the random state.

    Attributes:
        step: Steps made.
        pools: K arrays of at most N region ids, on offer; empty once the episode is over.
        chosen: Region ids labelled in the last step.
        label_counts: Pixels per class labelled in the last step, ``(C,)`` int64.
        confusion: On D_R, ``(C, C)`` int64.
        reference_miou: What the next reward is measured from, in percent.
        observation: The last one.
        diverged: Whether the training of the last step was undone.
    """

    step: int
    pools: tuple[IntArray, ...]
    chosen: tuple[int, ...]
    label_counts: IntArray
    confusion: torch.Tensor
    reference_miou: float
    observation: Observation
    diverged: bool = False


def copied(observation: Observation) -> Observation:
    """Return arrays of its own to the caller, who may write to them."""
    return {key: value.copy() for key, value in observation.items()}


def save_state(path: str | Path, state: State) -> None:
    """Write what :meth:`RegionSelectionEnv.get_state` returned, whole or not at all, as safetensors and json."""
    save_tree(path, KIND, state)


def load_state(path: str | Path) -> State:
    """Read what :func:`save_state` wrote. Nothing in the file is executed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or of another kind or version.
    """
    state: State = load_tree(path, KIND)
    return state


def take(env: RegionSelectionEnv) -> State:
    """Return a copy of all that an environment's future depends on."""
    episode = env._episode
    answered = sorted(env._answered)
    return {
        "identity": env._identity,
        "rng": env.np_random.bit_generator.state,
        "action_rng": _rng_state(env.action_space._np_random),
        "labels": env.labels.state_dict(),
        "answers": {
            "regions": np.array(answered, np.int64),
            "masks": flat_masks([env._answered[region] for region in answered]),
        },
        "batch_size": env.learner.batch_size,
        # At its start an episode has the weights theta_0, which the environment has anyway.
        "learner": None if episode is None or episode.step == 0 else env.learner.state_dict(),
        "numerics": getattr(env.learner, "numerics", None),
        "episode": None if episode is None else copy.deepcopy(_plain(episode)),
    }


def put_back(env: RegionSelectionEnv, state: State) -> None:
    """Continue from a state, exactly. What does not fit is refused before anything changes."""
    try:
        _check_identity(env._identity, state["identity"])
        episode = None if state["episode"] is None else Episode(**copy.deepcopy(state["episode"]))
        _check_episode(env, episode, len(state["labels"]["regions"]))
        answered = state["answers"]["regions"].tolist()
        answers = split_masks(env.grid, answered, state["answers"]["masks"])
        rng = _generator(state["rng"])
        action_rng = None if state["action_rng"] is None else _generator(state["action_rng"])
        labels = copy.copy(env.labels)  # its clear() and add() leave alone what the original holds
        labels.load_state_dict(state["labels"])
        batch_size, weights, numerics = state["batch_size"], state["learner"], state["numerics"]
        if type(batch_size) is not int or not 1 <= batch_size < 2**31:
            raise TypeError(f"batch_size is {batch_size!r}")
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"the state is malformed ({type(error).__name__}: {error}); expected what get_state() of this version of "
            "al-seg-env returns"
        ) from error
    _set_weights(env, weights, numerics)
    env.learner.batch_size = batch_size
    env.labels, env._episode, env._answered = labels, episode, dict(zip(answered, answers, strict=True))
    env.np_random = rng
    env.action_space._np_random = action_rng  # type: ignore[assignment]


def go_on(env: RegionSelectionEnv, state: State) -> tuple[Observation, dict[str, Any]]:
    """Put a state back in place of a reset; it must be of an episode."""
    observation, info = env.set_state(state)
    if not info:
        raise ValueError("the state was taken before the first reset: there is no episode to go on with")
    return observation, info


def fork(env: RegionSelectionEnv, **changes: Any) -> RegionSelectionEnv:
    """Return an independent copy of an environment, with some settings changed."""
    learner = copy.deepcopy(env.learner)
    learner.reset()  # a new environment takes its learner's weights for theta_0
    twin = type(env)(
        env.data,
        env.splits,
        learner,
        config=replace(env.config, **changes),
        oracle=env.oracle,
        scores=env.observer.scores,
        features=env.observer.features,
        render_mode=env.render_mode,
        cache=env.cache,
    )
    state = take(env)
    put_back(twin, {**state, "identity": twin._identity})
    return twin


def identity(env: RegionSelectionEnv) -> dict[str, Any]:
    """Return what two environments must share for the state of one to be the other's, in plain values."""
    config = asdict(env.config)
    del config["budget"]  # more labels may have been bought
    names = env.data.names
    present = env.learner.state_dict()
    env.learner.reset()
    theta_0 = tree_digest(env.learner.state_dict())
    env.learner.load_state_dict(present)
    return {
        "config": {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()},
        "classes": list(env.data.classes),
        "image_size": list(env.grid.image_size),
        "images": {
            field.name: tree_digest([names[i] for i in getattr(env.splits, field.name)])
            for field in fields(env.splits)
            if field.name != "test"
        },
        "observation": {key: list(space.shape or ()) for key, space in env.observer.space.items()},
        "theta_0": theta_0,
    }


def _set_weights(env: RegionSelectionEnv, weights: Any, numerics: Any) -> None:
    learner: Any = env.learner
    before, own = learner.state_dict(), getattr(learner, "numerics", None)
    try:
        if str(own) != str(numerics):
            learner.numerics = numerics
            env._forget_initial()
        if weights is None:
            learner.reset()
        else:
            learner.load_state_dict(weights)
    except Exception as error:  # what a learner raises is its own affair
        if own is not None:
            learner.numerics = own
        learner.load_state_dict(before)
        raise ValueError(f"the state's weights or numerics do not fit the network: {error}") from error


def _plain(episode: Episode) -> dict[str, Any]:
    return {field.name: getattr(episode, field.name) for field in fields(episode)}


def _check_identity(own: dict[str, Any], given: dict[str, Any]) -> None:
    flat, other = ({**i["config"], **{k: v for k, v in i.items() if k != "config"}} for i in (own, given))
    differing = [key for key in {**flat, **other} if flat.get(key) != other.get(key)]
    if differing:
        shown = "; ".join(f"{key} is {other.get(key)!r} there, {flat.get(key)!r} here" for key in differing)
        raise ValueError(
            f"the state is of another environment: {shown}. Make this one with the same data, splits, network, theta_0 "
            "and settings"
        )


def _check_episode(env: RegionSelectionEnv, episode: Episode | None, labelled: int) -> None:
    if labelled > env.config.budget:
        raise ValueError(f"the state has {labelled} labelled regions, more than budget {env.config.budget}; raise it")
    if episode is None:
        return
    n_classes = len(env.data.classes)
    shapes = {key: (*value.shape, value.dtype) for key, value in episode.observation.items()}
    expected = {key: (*(space.shape or ()), np.dtype(np.float32)) for key, space in env.observer.space.items()}
    if shapes != expected or tuple(episode.confusion.shape) != (n_classes, n_classes):
        raise ValueError(f"the state's observation has the shapes {shapes}; expected {expected}")
    if not (
        isinstance(episode.step, int)
        and isinstance(episode.reference_miou, float)
        and isinstance(episode.diverged, bool)
        and all(isinstance(region, int) for region in episode.chosen)
        and episode.label_counts.shape == (n_classes,)
        and episode.label_counts.dtype == episode.confusion.numpy().dtype == np.int64
        and all(np.isfinite(value).all() for value in episode.observation.values())
    ):
        raise TypeError("the episode's entries are of other types")
    pools = np.concatenate([np.zeros(0, np.int64), *episode.pools])
    if not np.isin(pools, env.labels.all_regions).all():
        raise ValueError("the state's pools are of regions that these images do not have")


def _rng_state(rng: np.random.Generator | None) -> Any:
    return None if rng is None else rng.bit_generator.state


def _generator(state: dict[str, Any]) -> np.random.Generator:
    bits = np.random.PCG64(0)
    bits.state = state  # type: ignore[assignment]
    return np.random.Generator(bits)
