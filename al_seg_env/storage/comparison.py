"""One way to say how two nested mappings of plain values differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def differences(there: Any, here: Any, where: str = "") -> Iterator[str]:
    """Yield a line for each entry in which two values differ: ``a.b is 1 there, 2 here``.

    Args:
        there: One of them, such as what a file holds. Mappings are compared entry by entry; an entry that only one of
            them has is ``None`` in the other.
        here: The other, such as what the caller has.
        where: What the entries are called by.
    """
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in {**there, **here}:
            yield from differences(there.get(key), here.get(key), f"{where}.{key}" if where else str(key))
    elif there != here or isinstance(there, bool) != isinstance(here, bool):
        yield f"{where or 'it'} is {there!r} there, {here!r} here"
