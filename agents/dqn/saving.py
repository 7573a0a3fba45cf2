"""What an agent is made of, as plain values and arrays: its file holds nothing that must be unpickled."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from agents.dqn.exploration import ExponentialEpsilon, ExponentialRate, LinearEpsilon

AGENT_KIND, POLICY_KIND, REPLAY_KIND = "agent", "query policy", "replay"
_SCHEDULES: dict[str, Any] = {kind.__name__: kind for kind in (ExponentialEpsilon, ExponentialRate, LinearEpsilon)}


@contextmanager
def well_formed(path: Any) -> Iterator[None]:
    """Turn what a file with an unexpected content leads to into a ValueError that names the file."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, RuntimeError, AssertionError, ArithmeticError) as error:
        raise ValueError(f"{path} is malformed ({type(error).__name__}: {error}); use another copy") from error


def pack_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as plain values; of what is none, such as a function, a note of what it was."""
    return {name: _packed(value) for name, value in settings.items()}


def unpack_settings(packed: Mapping[str, Any], given: Mapping[str, Any], path: Any) -> dict[str, Any]:
    """Return the settings that :func:`pack_settings` packed, with those in ``given`` in their place.

    Raises:
        ValueError: If one could not be stored and is not given.
    """
    settings = {**packed, **given}
    missing = {name: note for name in packed if name not in given and (note := _lost(packed[name]))}
    if missing:
        raise ValueError(
            f"{path} does not hold {', '.join(f'{name} ({note})' for name, note in missing.items())}: it is no plain "
            f"value. Give it again: load(path, {', '.join(f'{name}=...' for name in missing)})"
        )
    return {name: value if name in given else _unpacked(value) for name, value in settings.items()}


def pack_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> dict[str, Any]:
    """Return the spaces as arrays; bounds that are equal in all rows are stored once."""
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
    boxes: dict[str, spaces.Space] = {
        name: spaces.Box(
            np.broadcast_to(box["low"], box["shape"]), np.broadcast_to(box["high"], box["shape"]), dtype=box["dtype"]
        )
        for name, box in packed["observation"].items()
    }
    return spaces.Dict(boxes), spaces.MultiDiscrete(packed["action"])


def _once(bound: np.ndarray) -> np.ndarray:
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
            raise ValueError(f"the optimiser {value['optimizer']!r} is none of torch's")
        return found
    return {key: _unpacked(item) for key, item in value.items()}


def _lost(value: Any) -> str | None:
    """Return what could not be stored of a packed value, or ``None``."""
    if isinstance(value, list | tuple):
        return next((note for item in value if (note := _lost(item))), None)
    if isinstance(value, dict):
        if value.keys() == {"not stored"}:
            return str(value["not stored"])
        return next((note for item in value.values() if (note := _lost(item))), None)
    return None
