"""The differences between two nested mappings, in words."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Mapping
from typing import Any

_REPR = reprlib.Repr()
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = 20
_REPR.maxstring = _REPR.maxother = 200


def differences(
    stored: Mapping[str, Any],
    present: Mapping[str, Any],
    ignore: Collection[str] = (),
    *,
    there: str = "there",
    here: str = "here",
) -> list[str]:
    """Return the entries in which two mappings differ, each as ``"key is 1 there, 2 here"``.

    Nested mappings are compared entry by entry, under dotted keys. A missing entry equals ``None``.

    Args:
        stored: One side, made of plain values as in json. Tuples differ from lists.
        present: The other side.
        ignore: Keys that are not compared. Entries of nested mappings are given by their dotted keys.
        there: Name of the side ``stored`` in the messages.
        here: Name of the side ``present`` in the messages.

    Returns:
        One message for each entry that differs, in the order of ``stored``, then of ``present``; empty if none does.
        Long values are shortened.

    >>> differences({"seed": 0, "fit": {"rate": 0.1}}, {"seed": 0, "fit": {"rate": 0.2, "steps": 5}})
    ['fit.rate is 0.1 there, 0.2 here', 'fit.steps is missing there, 5 here']
    """
    return [
        f"{key} is {ours} {there}, {theirs} {here}"
        for key, ours, theirs in _differing(stored, present, frozenset(ignore), "")
    ]


def _differing(
    stored: Mapping[str, Any], present: Mapping[str, Any], ignore: frozenset[str], prefix: str
) -> list[tuple[str, str, str]]:
    found = []
    for name in {**stored, **present}:
        key, ours, theirs = f"{prefix}{name}", stored.get(name), present.get(name)
        if key in ignore:
            continue
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            found += _differing(ours, theirs, ignore, f"{key}.")
        elif ours != theirs or isinstance(ours, bool) != isinstance(theirs, bool):  # True equals 1
            found.append((key, _shown(stored, name), _shown(present, name)))
    return found


def _shown(side: Mapping[str, Any], name: str) -> str:
    return _REPR.repr(side[name]) if name in side else "missing"
