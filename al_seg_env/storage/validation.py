"""Checks of single values. All messages read ``name is value; expected ...``.

Each check returns the value in the form in which it is stored: numpy numbers as Python numbers, and lists as tuples.
"""

from __future__ import annotations

import difflib
import inspect
import math
import os
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

LARGEST = 2**63 - 1
LARGEST_NUMBER = float(np.finfo(np.float32).max)
"""The largest number that float32 can hold."""
MOST_REPEATS = 10_000
"""Most repetitions within a step, such as passes over its regions. More are a mistake, and would look like a hang."""
LARGEST_BATCH = 2**16
"""Most items in a batch. More are a mistake, and would take all memory."""


def check(name: str, value: Any, good: bool, expected: str) -> None:
    """Raise a ``ValueError`` that says what was found and what was expected, unless ``good``."""
    if not good:
        raise ValueError(f"{name} is {reprlib.repr(value)}; expected {expected}")


def close_match(name: Any, known: Collection[str]) -> str:
    """Return `` (did you mean ...?)`` if a known name is close to a wrong one, else an empty string."""
    close = difflib.get_close_matches(str(name), known, 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_int(name: str, value: Any, least: int = 0, most: int = LARGEST) -> int:
    """Return a whole number from ``least`` to ``most`` as an ``int``. Numpy's are accepted, booleans are not."""
    plain = _plain(value)
    whole = isinstance(plain, int) and not isinstance(plain, bool)
    limited = most < LARGEST or (whole and plain > most)
    limits = f"from {least} to {most}" if limited else f"of at least {least}"
    check(name, value, whole and least <= plain <= most, f"a whole number {limits}")
    return int(plain)


def check_number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    alternative: str = "",
) -> float:
    """Return a finite number with ``least <= number <= most`` and ``above < number < below``, as a plain number.

    It must be finite in float32, too. ``alternative`` says in the message what else the caller accepts.
    """
    plain = _plain(value)
    good = (
        isinstance(plain, int | float)
        and not isinstance(plain, bool)
        and abs(plain) <= LARGEST_NUMBER  # false for NaN
        and (least is None or plain >= least)
        and (above is None or plain > above)
        and (most is None or plain <= most)
        and (below is None or plain < below)
    )
    bounds = (("of at least", least), ("above", above), ("up to", most), ("below", below))
    stated = " and ".join(f"{words} {bound:g}" for words, bound in bounds if bound is not None)
    if isinstance(plain, int | float) and LARGEST_NUMBER < abs(plain) < math.inf:
        stated += f" that float32 can hold (up to {LARGEST_NUMBER:.2g})"
    expected = f"a finite number {stated}".rstrip() + (f", or {alternative}" if alternative else "")
    check(name, value, good, expected)
    number: float = plain
    return number


def check_seed(name: str, value: Any, most: int = LARGEST) -> int | None:
    """Return a seed as an ``int``, or ``None`` for a seed drawn by the system."""
    return None if value is None else check_int(name, value, 0, most)


def check_size(name: str, value: Any, alternative: str = "") -> tuple[int, int]:
    """Return ``(height, width)``, two whole numbers of at least 1; ``alternative`` as in :func:`check_number`."""
    array = isinstance(value, np.ndarray) and value.ndim > 0
    listed = array or (isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray))
    sides = list(map(_plain, value)) if listed else []
    good = len(sides) == 2 and all(type(side) is int and side >= 1 for side in sides)
    check(name, value, good, "(height, width) in pixels" + (f", or {alternative}" if alternative else ""))
    return sides[0], sides[1]


def check_choice(name: str, value: Any, choices: Collection[Any]) -> Any:
    """Return a value that is one of these texts, booleans or ``None``."""
    known = any(type(value) is type(each) and value == each for each in choices)
    check(name, value, known, f"one of {', '.join(map(repr, choices))}")
    return value


def check_choices(name: str, value: Any, choices: Collection[str]) -> tuple[str, ...]:
    """Return a list or tuple of different texts from ``choices``, which may be empty, as a tuple."""
    good = _are_distinct(value) and set(value) <= set(choices)
    check(name, value, good, f"a list of different ones out of {', '.join(map(repr, choices))}")
    return tuple(value)


def check_distinct(name: str, value: Any) -> tuple[str, ...]:
    """Return a list or tuple of different texts, which may be empty, as a tuple."""
    check(name, value, _are_distinct(value), "a list of different names")
    return tuple(value)


def check_text(name: str, value: Any) -> str:
    """Return a text that is not empty."""
    check(name, value, isinstance(value, str) and bool(value), "a text that is not empty")
    return str(value)


def check_names(name: str, value: Any, example: Sequence[str]) -> tuple[str, ...]:
    """Return a list or tuple of texts, not empty, as a tuple."""
    good = isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(item, str) for item in value)
    check(name, value, good, f"a list of names, such as {list(example)}")
    return tuple(value)


def check_path(name: str, value: Any) -> Path:
    """Return a path."""
    check(name, value, isinstance(value, str | os.PathLike) and value != "", "the path of a file or folder")
    return Path(value)


def check_device(name: str, value: Any) -> torch.device:
    """Return a torch device that works on this machine; for ``"auto"``, a CUDA GPU if there is one, else the CPU."""
    if isinstance(value, str) and value == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(value)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError, OverflowError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{name} is {reprlib.repr(value)}; expected a device that torch can use here, such as 'cpu', or 'auto' "
            f"({reason})"
        ) from error
    return device


def check_arguments(name: str, value: Any, function: Callable[..., Any], given: int) -> dict[str, Any]:
    """Return keyword arguments that a function accepts after its first ``given`` ones; ``None`` stands for none."""
    if value is None:
        return {}
    check(name, value, isinstance(value, Mapping) and all(isinstance(key, str) for key in value), "a dict of arguments")
    try:
        inspect.signature(function).bind(*[None] * given, **value)
    except TypeError as error:
        raise ValueError(
            f"{name} is {reprlib.repr(value)}; expected arguments of {function.__name__} ({error})"
        ) from error
    return dict(value)


def _are_distinct(value: Any) -> bool:
    """Return whether a value is a list or tuple of texts, each of them once."""
    texts = isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)
    return texts and len(set(value)) == len(value)


def _plain(value: Any) -> Any:
    """Return numpy's numbers as Python's."""
    return value.item() if isinstance(value, np.integer | np.floating) else value
