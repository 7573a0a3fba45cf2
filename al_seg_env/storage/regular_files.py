"""Reading regular files and JSON, with error messages that name the file."""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def require_file(path: Path) -> None:
    """Raise an OSError unless ``path`` is a regular file. Opening a pipe or reading a device might never end."""
    if not path.is_file():
        found = "is a folder, pipe or device, not a file" if path.exists() else "does not exist or is a broken link"
        raise OSError(f"{path} {found}; put the file there")


def read_json(path: Path, expected: str) -> Any:
    """Return the content of a JSON file.

    Args:
        path: The file.
        expected: Description of the expected content, which ends the error message.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file is not JSON, or an object in it has a key twice.
    """
    require_file(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); {expected}") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]:
        raise ValueError(f"more than once in one object: {reprlib.repr(twice)}")
    return dict(pairs)


@contextmanager
def well_formed(path: Any) -> Iterator[None]:
    """Turn the exceptions that unexpected content of a file causes into a ``ValueError`` that names the file."""
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
