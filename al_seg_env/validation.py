"""Checks of single values that a user gives. All errors read ``name is value; what is expected``."""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from al_seg_env.types import Size


def whole_number(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """Return a whole number in ``[least, most]``, or raise a ValueError. Booleans are none."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} is {reprlib.repr(value)}; a whole number {limits} is expected")
    return int(value)


def real_number(
    name: str,
    value: Any,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> float:
    """Return a finite number with ``least <= number <= most`` and ``above < number < below``, or raise a ValueError."""
    plain = value.item() if isinstance(value, np.integer | np.floating) else value
    real = isinstance(plain, int | float) and not isinstance(plain, bool)
    if not (real and least <= plain <= most and above < plain < below and abs(plain) <= sys.float_info.max):
        limits = (("of at least", least), ("above", above), ("of at most", most), ("below", below))
        stated = " and ".join(f"{words} {limit:g}" for words, limit in limits if math.isfinite(limit))
        raise ValueError(f"{name} is {reprlib.repr(value)}; a finite number {stated}".rstrip() + " is expected")
    return float(plain)


def height_and_width(name: str, value: Any) -> Size:
    """Return ``(height, width)``, or raise a ValueError if it is not two positive whole numbers."""
    sides = tuple(value) if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) else ()
    whole = all(isinstance(side, int | np.integer) and not isinstance(side, bool) and side > 0 for side in sides)
    if len(sides) != 2 or not whole:
        raise ValueError(f"{name} is {reprlib.repr(value)}; (height, width) in pixels is expected")
    return int(sides[0]), int(sides[1])


def one_of(name: str, value: Any, known: Collection[Any]) -> None:
    """Raise a ValueError unless a value is one of the known texts, booleans or ``None``."""
    if not any(type(value) is type(one) and value == one for one in known):
        raise ValueError(f"{name} is {reprlib.repr(value)}; one of {', '.join(map(repr, known))} is expected")


def non_empty_text(name: str, value: Any) -> None:
    """Raise a ValueError unless a value is a text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} is {reprlib.repr(value)}; a text is expected")
