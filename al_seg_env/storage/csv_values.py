"""Numbers in csv files, read as strictly as json reads its own.

Python's ``int`` and ``float`` take ``3_1`` for 31, and spaces, signs and digits of all scripts; a damaged file passes.
"""

from __future__ import annotations

import math
import re
import reprlib

_INT = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


def parse_int(text: str | None, name: str) -> int:
    """Return the whole number that a cell of a csv file holds.

    Args:
        text: The cell: digits, after a minus sign or not. ``None``, which the csv module gives where a row is too
            short, is refused, too.
        name: What the cell is, for the message.

    Raises:
        ValueError: If it is anything else, or has more than 18 digits.
    """
    if not isinstance(text, str) or not _INT.fullmatch(text):
        raise ValueError(f"{name} is {reprlib.repr(text)}; expected a whole number, such as 31")
    return int(text)


def parse_float(text: str | None, name: str) -> float:
    """Return the number that a cell of a csv file holds.

    Args:
        text: The cell, as Python or json write a finite number: ``31``, ``-0.5``, ``1e-05``.
        name: What the cell is, for the message.

    Raises:
        ValueError: If it is anything else, or too large for a float.
    """
    if not isinstance(text, str) or not _FLOAT.fullmatch(text) or not math.isfinite(value := float(text)):
        raise ValueError(f"{name} is {reprlib.repr(text)}; expected a finite number, such as 0.31")
    return value
