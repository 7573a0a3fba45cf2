"""Checks of the arguments and files that a user gives. Of arguments, messages say ``name is value: expected ...``."""

from __future__ import annotations

import inspect
import math
import os
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.utils import get_device

LARGEST = 2**63 - 1
LARGEST_SEED = 2**32 - 1
"""What Stable-Baselines3 gives to numpy's global random source must fit 32 bits."""


def check(name: str, value: Any, good: bool, expected: str) -> None:
    """Raise a ``ValueError`` that says what came and what was expected, unless ``good``."""
    if not good:
        raise ValueError(f"{name} is {reprlib.repr(value)}: expected {expected}.")


def check_int(name: str, value: Any, least: int, most: int = LARGEST) -> int:
    """Return a whole number from ``least`` to ``most`` as an ``int``; numpy's are taken, booleans are not."""
    plain = _plain(value)
    good = isinstance(plain, int) and not isinstance(plain, bool) and least <= plain <= most
    check(name, value, good, f"a whole number, at least {least}" + (f" and at most {most}" if most < LARGEST else ""))
    return int(plain)


def check_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    alternative: str = "",
) -> float:
    """Return a finite number above ``above`` (or at least ``least``) and up to ``most``, as a plain number.

    ``alternative`` says in the message what else would be accepted.
    """
    bounds = [f"above {above}"] * (above is not None) + [f"at least {least}"] * (least is not None)
    bounds += [f"at most {most}"] * (most is not None)
    plain = _plain(value)
    good = (
        isinstance(plain, int | float)
        and not isinstance(plain, bool)
        and abs(plain) <= sys.float_info.max  # false for NaN
        and (above is None or plain > above)
        and (least is None or plain >= least)
        and (most is None or plain <= most)
    )
    expected = " ".join(["a finite number", " and ".join(bounds)]).strip() + (f", or {alternative}" * bool(alternative))
    check(name, value, good, expected)
    number: float = plain
    return number


def _plain(value: Any) -> Any:
    """Return numpy's numbers as Python's, so that they can be stored."""
    return value.item() if isinstance(value, np.integer | np.floating) else value


def check_seed(name: str, value: Any, most: int = LARGEST) -> int | None:
    """Return a seed as an ``int``, or ``None`` for one that the system draws."""
    return None if value is None else check_int(name, value, 0, most)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return a text that is one of ``choices``."""
    check(name, value, isinstance(value, str) and value in choices, f"one of {tuple(choices)}")
    return str(value)


def check_names(name: str, value: Any, example: Sequence[str]) -> tuple[str, ...]:
    """Return a list or tuple of texts, not empty, as a tuple."""
    good = isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(item, str) for item in value)
    check(name, value, good, f"a list of names, such as {tuple(example)}")
    return tuple(value)


def check_path(name: str, value: Any) -> Path:
    """Return a path."""
    check(name, value, isinstance(value, str | os.PathLike), "the path of a file or folder")
    return Path(value)


def check_device(name: str, value: Any) -> torch.device:
    """Return a device of torch; for ``"auto"`` a GPU if there is one."""
    try:
        return get_device(value)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} is {reprlib.repr(value)}: expected a device such as 'cpu' ({error}).") from error


def check_arguments(name: str, value: Any, function: Callable[..., Any], given: int) -> dict[str, Any]:
    """Return keyword arguments that a function takes after the first ``given`` ones; ``None`` stands for none."""
    if value is None:
        return {}
    check(name, value, isinstance(value, Mapping) and all(isinstance(key, str) for key in value), "a dict of arguments")
    try:
        inspect.signature(function).bind(*[None] * given, **value)
    except TypeError as error:
        raise ValueError(
            f"{name} is {reprlib.repr(value)}: expected arguments of {function.__name__} ({error})."
        ) from error
    return dict(value)


@contextmanager
def well_formed(path: Any) -> Iterator[None]:
    """Turn what an unexpected content of a file leads to into a ``ValueError`` that names the file."""
    try:
        yield
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error
    except (
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
        AssertionError,
        ArithmeticError,
        MemoryError,
    ) as error:
        raise ValueError(f"{path} is malformed ({type(error).__name__}: {error}); use another copy") from error


def is_finite(value: Any) -> bool:
    """Whether all numbers in nested lists, tuples and dicts are finite."""
    if isinstance(value, Mapping):
        return all(is_finite(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(is_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)
