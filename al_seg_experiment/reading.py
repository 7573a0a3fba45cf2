"""The files that experiments are read from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

PRESETS = Path(__file__).parent / "presets"


def read_file(source: str | Path) -> dict[str, Any]:
    """Return the entries of a yaml or toml file, or of the preset of that name.

    Raises:
        ValueError: If there is neither, or the file can't be read.
    """
    path = Path(source)
    if not path.is_file():
        return read_preset(str(source))
    try:
        if path.suffix == ".toml":
            content = _toml(path)
        else:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read: {error}; expected yaml or toml") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}; expected entries such as name, env and methods")
    return content


def _toml(path: Path) -> Any:
    try:
        import tomllib
    except ImportError as error:  # Python 3.10
        raise ValueError("reading toml needs Python 3.11; use yaml") from error
    return tomllib.loads(path.read_text(encoding="utf-8"))


def read_preset(name: str) -> dict[str, Any]:
    """Return the entries of a preset; a ValueError lists the known ones."""
    known = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in known:
        raise ValueError(f"{name!r} is neither a file nor a preset; the presets are {', '.join(known)}")
    content: dict[str, Any] = yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))
    return content


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the entries of ``over``; mappings are merged, all else is replaced."""
    result = dict(base)
    for name, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(name), Mapping) and name != "methods"
        result[name] = merged(result[name], value) if both else value
    return result
