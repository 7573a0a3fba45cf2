"""Numbers in csv files, read strictly: Python's own ``int("3_1")`` is 31."""

from __future__ import annotations

import re

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}(?:\.0*)?")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")


def whole(text: str) -> int:
    """Return a whole number that is written in ASCII digits, such as ``"24"`` or ``"24.0"``.

    Raises:
        ValueError: If it is anything else.
    """
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"{text!r} is no whole number")
    return int(text.partition(".")[0])


def number(text: str) -> float:
    """Return a finite number that is written in ASCII digits, such as ``"-0.5"`` or ``"1e-3"``.

    Raises:
        ValueError: If it is anything else.
    """
    if not _NUMBER.fullmatch(text) or abs(value := float(text)) == float("inf"):
        raise ValueError(f"{text!r} is no number")
    return value
