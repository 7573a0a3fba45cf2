"""Numbers in csv files, parsed as strictly as in json.

Python's ``int`` and ``float`` read ``3_1`` as 31, and accept spaces, signs and digits of all scripts, so damaged files
would pass.
"""

from __future__ import annotations

import math
import re
import reprlib

_INT = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


def parse_int(text: str | None, name: str) -> int:
    """Return the whole number in a cell of a csv file.

    Args:
        text: The cell: digits with an optional minus sign. ``None``, which the csv module returns for missing cells of
            short rows, is refused.
        name: Name of the cell, for the message.

    Raises:
        ValueError: If the text is anything else, or has more than 18 digits.
    """
    if not isinstance(text, str) or not _INT.fullmatch(text):
        raise ValueError(f"{name} is {reprlib.repr(text)}; expected a whole number, such as 31")
    return int(text)


def parse_float(text: str | None, name: str) -> float:
    """Return the number in a cell of a csv file.

    Args:
        text: The cell: a finite number as Python or json writes it, such as ``31``, ``-0.5`` or ``1e-05``.
        name: Name of the cell, for the message.

    Raises:
        ValueError: If the text is anything else, or the number is too large for a float.
    """
    if not isinstance(text, str) or not _FLOAT.fullmatch(text) or not math.isfinite(value := float(text)):
        raise ValueError(f"{name} is {reprlib.repr(text)}; expected a finite number, such as 0.31")
    return value
