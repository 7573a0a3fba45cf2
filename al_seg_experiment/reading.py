"""Reading experiments: strict yaml, json and toml, presets, changes to them, and all mistakes at once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from al_seg_env.storage.validation import close_match
from al_seg_experiment.checking import mistakes, refusal
from al_seg_experiment.experiment import Entry, Experiment

PRESETS = Path(__file__).parent / "presets"
SELECTED = ("methods", "variants")
"""Entries in which a list of names selects from what a preset has."""
LARGEST_FILE = 2**17  # bytes
MOST_VALUES = 20_000
"""Values in a file, each as often as aliases repeat it."""
DEEPEST = 50  # levels of nested values


def load_experiment(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Read an experiment, and check everything in it that can be checked without its data.

    Args:
        source: A yaml, json or toml file; the name of a preset; or a mapping. A file or mapping may start from a
            preset, named under ``preset``, and override single entries. Its ``methods`` replace those of the preset,
            and a list of names under ``methods`` or ``variants`` selects from those of the preset.
        overrides: Entries to change, with dots between levels: ``{"arguments.root": "data/camvid"}``.

    Raises:
        ValueError: If an entry is unknown, missing or invalid; the error lists all of them.
    """
    content = dict(source) if isinstance(source, Mapping) else read_file(source)
    _check_depth(content)
    while "preset" in content:
        content = merged(read_preset(content.pop("preset")), content)
    for name, value in (overrides or {}).items():
        *parents, last = name.split(".")
        change: dict[str, Any] = {last: value}
        for parent in reversed(parents):
            change = {parent: change}
        content = merged(content, change)
    try:
        experiment = Experiment.model_validate(content)
    except ValidationError as error:
        raise refusal(described(error, content)) from None
    if found := mistakes(experiment):
        raise refusal(found)
    return experiment


def read_file(source: str | Path) -> dict[str, Any]:
    """Return the entries of a yaml, json or toml file, or of the preset of that name.

    Raises:
        ValueError: If there is neither, the file can't be read, or names an entry twice.
    """
    path = Path(source)
    try:
        if not path.is_file():
            return read_preset(str(source))
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"it has {path.stat().st_size} bytes, and an experiment takes {LARGEST_FILE} at most")
        read = {".toml": _toml, ".json": read_json}.get(path.suffix, read_yaml)
        content = read(path.read_text(encoding="utf-8"))
    except UnknownPresetError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read: {error}; expected yaml, json or toml") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}; expected entries such as name, env and methods")
    return content


class UnknownPresetError(ValueError):
    """There is neither a file nor a preset of that name."""


def read_preset(name: Any) -> dict[str, Any]:
    """Return the entries of a preset; a ValueError lists the known ones."""
    known = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in known:
        raise UnknownPresetError(
            f"{name!r} is neither a file nor a preset{close_match(name, known)}; the presets are {', '.join(known)}"
        )
    content: dict[str, Any] = read_yaml((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))
    return content


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the entries of ``over``; mappings are merged, everything else is replaced.

    A list of names under ``methods`` or ``variants`` selects from those of ``base``.
    """
    result = dict(base)
    for name, value in over.items():
        known = result.get(name)
        if isinstance(known, Mapping) and isinstance(value, Mapping) and name != "methods":
            value = merged(known, value)
        elif isinstance(known, Mapping) and name in SELECTED and _are_names(value):
            value = _selected(name, known, value)
        result[name] = value
    return result


def _are_names(value: Any) -> bool:
    listed = isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(each, str) for each in value)
    return listed and len(set(value)) == len(value)


def _selected(name: str, known: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the entries of these names; a method that is not among them may be one that needs no settings."""
    if name == "variants" and (unknown := [each for each in names if each not in known]):
        hint = close_match(unknown[0], known)
        raise refusal([f"variants names {unknown[0]!r}{hint}; the preset's are {', '.join(known)}"])
    return {each: known.get(each) for each in names}


def read_json(text: str) -> Any:
    """Return the content of a json text.

    Raises:
        ValueError: If it is not json, has a duplicate entry, or holds a number that is not finite.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"the entry {next(n for n in names if names.count(n) > 1)!r} appears more than once")
        return entries

    def refused(number: str) -> Any:
        raise ValueError(f"the number {number} is not finite")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refused)
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the numbers of YAML 1.2: no ``3_1``, no ``1:30``, no dates, but ``1e-3``."""


_NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+"),
    "tag:yaml.org,2002:float": re.compile(
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
    ),
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (*_NUMBERS, "tag:yaml.org,2002:timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern.pattern})\Z"), list("-+.0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: _whole(node.value))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda _, node: float(re.sub(r"\.(?=[iInN])", "", node.value)))


def _whole(text: str) -> int:
    return int(text, 0 if text[:2] in ("0x", "0o") else 10)


def read_yaml(text: str) -> Any:
    """Return the content of a yaml text.

    Raises:
        ValueError: If it has a duplicate entry, or more than :data:`MOST_VALUES` values once aliases are expanded.
        yaml.YAMLError: If it is not yaml.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        values = _count(node, {}, ())
        if values > MOST_VALUES:
            raise ValueError(f"it holds {values} values once its aliases are replaced, {MOST_VALUES} at most are read")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int], above: tuple[int, ...]) -> int:
    """Return the number of values below a node, with aliases expanded; refuse duplicate entries."""
    if id(node) in above:
        raise ValueError(f"line {node.start_mark.line + 1}: a value holds itself")
    if id(node) not in known:
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            inner = node.value
        elif isinstance(node, yaml.MappingNode):
            names = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for number, (key, value) in enumerate(node.value):
                if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in names[:number]:
                    line = key.start_mark.line + 1
                    raise ValueError(f"line {line}: the entry {key.value!r} appears more than once")
                inner += [key, value]
        known[id(node)] = 1 + sum(_count(each, known, (*above, id(node))) for each in inner)
    return known[id(node)]


def _toml(text: str) -> Any:
    try:
        import tomllib
    except ImportError as error:  # Python 3.10
        raise ValueError("reading toml needs Python 3.11; use yaml") from error
    return tomllib.loads(text)


def _check_depth(value: Any, depth: int = 0) -> None:
    if depth > DEEPEST:
        raise ValueError(f"the experiment's values are nested more than {DEEPEST} levels deep")
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for each in inner:
        _check_depth(each, depth + 1)


def described(error: ValidationError, content: Mapping[str, Any]) -> list[str]:
    """Return a line for each mistake that pydantic found: the entry, what it is, and what was expected."""
    lines: dict[tuple[int | str, ...], tuple[str, list[str]]] = {}
    for each in error.errors(include_url=False):
        way, value = _followed(each["loc"], content)
        if each["type"] == "too_short" and value:
            continue  # what it holds is wrong, and told already
        message = each["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        where = _written(way)
        if each["loc"][-1:] == ("[key]",):
            value, message = way[-1], message if "Value error" in each["msg"] else "expected a text: put it in quotes"
            where = f"a name in {_written(way[:-1])}"
        if each["type"] == "extra_forbidden":
            known = _known(way)
            hint = close_match(way[-1], known)
            of = _written(way[:-1]) or "the experiment"
            line = f"{of} has the unknown entry {way[-1]!r}{hint}; known are {', '.join(known)}"
            lines[way] = (line, [])
        elif each["type"] == "missing":
            where = _written(each["loc"])
            lines[each["loc"]] = (f"{where} is missing", ["give it a value"])
        else:
            lines.setdefault(way, (f"{where or 'the experiment'} is {_short(value)}", []))[1].append(message)
    return [
        "; ".join([line, *([" or ".join(dict.fromkeys(expected))] if expected else [])])
        for line, expected in lines.values()
    ]


def _followed(loc: tuple[int | str, ...], content: Any) -> tuple[tuple[int | str, ...], Any]:
    """Return the part of a location that leads through the content, without pydantic's own marks, and its value."""
    way: list[int | str] = []
    for part in loc:
        entries: Any = dict(enumerate(content)) if isinstance(content, list | tuple) else content
        if isinstance(entries, Mapping) and part in entries:
            content = entries[part]
            way.append(part)
    return tuple(way), content


def _known(way: tuple[int | str, ...]) -> list[str]:
    """Return the names of the entries beside the one that a location leads to."""
    model: type[Entry] = Experiment
    for part in way[:-1]:
        field = model.model_fields.get(str(part))
        inner = next(_models(field.annotation), None) if field is not None else None
        model = inner or model
    return list(model.model_fields)


def _models(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, Entry):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _written(way: tuple[int | str, ...]) -> str:
    text = ""
    for part in way:
        plain = isinstance(part, str) and part.isidentifier()
        text += (f".{part}" if text else str(part)) if plain else f"[{part!r}]"
    return text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
