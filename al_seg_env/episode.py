"""An episode, and the state of an environment as plain values and arrays."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from al_seg_env.labelling.label_state import LabelState
from al_seg_env.storage import PortableTree, differences, load_tree, save_tree
from al_seg_env.types import IntArray, Observation

KIND = "environment state"


class State(PortableTree):
    """What :meth:`RegionSelectionEnv.get_state` returns: plain values and arrays, by name; sent as bytes."""


@dataclass(frozen=True)
class Episode:
    """Where an episode is, beside the network and the random state. It is replaced as a whole.

    Attributes:
        step: Steps made.
        labels: L_t and U_t.
        pools: K arrays of at most N region ids, on offer; empty once the episode is over.
        chosen: Region ids labelled in the last step.
        label_counts: Pixels per class labelled in the last step, ``(C,)`` int64.
        confusion: On D_R, ``(C, C)`` int64.
        reference_miou: What the next reward is measured from, in percent.
        observation: The last one.
        diverged: Whether the training of the last step was undone.
    """

    step: int
    labels: LabelState
    pools: tuple[IntArray, ...]
    chosen: tuple[int, ...]
    label_counts: IntArray
    confusion: torch.Tensor
    reference_miou: float
    observation: Observation
    diverged: bool = False

    def encoded(self) -> dict[str, Any]:
        """Return a copy as plain values and arrays, without the labels."""
        return copy.deepcopy({name: value for name, value in vars(self).items() if name != "labels"})

    @classmethod
    def decoded(cls, saved: Mapping[str, Any], labels: LabelState, space: spaces.Dict) -> Episode:
        """Return the episode that :meth:`encoded` described.

        Args:
            saved: What it returned.
            labels: The labels that belong to it.
            space: The observation space that the last observation must fit.

        Raises:
            ValueError: If the episode is of another environment.
            TypeError: If it is malformed, as other errors of its values may say, too.
        """
        episode = cls(labels=labels, **copy.deepcopy(dict(saved)))
        num_classes = labels.num_classes
        shapes = {key: (*value.shape, value.dtype) for key, value in episode.observation.items()}
        expected = {key: (*(box.shape or ()), np.dtype(np.float32)) for key, box in space.items()}
        if shapes != expected or tuple(episode.confusion.shape) != (num_classes, num_classes):
            raise ValueError(f"the state's observation has the shapes {shapes}; expected {expected}")
        if not (
            isinstance(episode.step, int)
            and isinstance(episode.reference_miou, float)
            and isinstance(episode.diverged, bool)
            and all(isinstance(region, int) for region in episode.chosen)
            and episode.label_counts.shape == (num_classes,)
            and episode.label_counts.dtype == episode.confusion.numpy().dtype == np.int64
            and all(np.isfinite(value).all() for value in episode.observation.values())
        ):
            raise TypeError("the episode's entries are of other types")
        if not all(labels.has(pool) for pool in episode.pools):
            raise ValueError("the state's pools are of regions that these images do not have")
        return episode


def copied(observation: Observation) -> Observation:
    """Return arrays that the caller may write to."""
    return {key: value.copy() for key, value in observation.items()}


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a state of :meth:`RegionSelectionEnv.get_state` atomically, as safetensors and json."""
    save_tree(path, KIND, dict(state))


def load_state(path: str | Path) -> State:
    """Read what :func:`save_state` wrote. Nothing in the file is executed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or of another kind or version.
    """
    return State(load_tree(path, KIND))


def check_identity(present: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raise a ValueError that names what differs between this environment and that of a state."""
    here, there = ({**i["config"], **{k: v for k, v in i.items() if k != "config"}} for i in (present, saved))
    if differing := differences(there, here):
        raise ValueError(
            f"the state is of another environment: {'; '.join(differing)}. Make this one with the same data, splits, "
            "network, theta_0 and settings"
        )


def generator_from(state: Mapping[str, Any]) -> np.random.Generator:
    """Return a random source in a state that numpy gave of one."""
    bits = np.random.PCG64(0)
    bits.state = dict(state)  # type: ignore[assignment]
    return np.random.Generator(bits)
