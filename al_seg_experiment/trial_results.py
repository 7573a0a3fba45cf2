"""The results of a trial as files, one for each budget, and the rows of ``results.csv`` made from them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from al_seg_env.storage import tree_digest, write_csv, write_json

RESULT_FORMAT, RESULT_VERSION = "al-seg-env result", 1
CLOCK = "seconds"


def write_result(path: Path, method: str, seed: int, budget: int, figures: Mapping[str, Any]) -> None:
    """Write a method's result for a seed and a budget, atomically, with a digest that shows damage."""
    about = {"format": RESULT_FORMAT, "version": RESULT_VERSION, "method": method, "seed": seed, "budget": budget}
    write_json(path, sealed({**about, "name": path.stem, **figures}))


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values together with their digest, by which :func:`unsealed` recognises damage."""
    return {**content, "digest": _digest(content)}


def unsealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values without the digest.

    Raises:
        ValueError: If the digest is missing, or does not match.
    """
    values = {name: value for name, value in content.items() if name != "digest"}
    if "digest" not in content:
        raise ValueError("it has no digest")
    if content["digest"] != _digest(values):
        raise ValueError("its digest does not match its content")
    return values


def _digest(content: Mapping[str, Any]) -> str:
    """Return a digest of everything but clock readings, which is equal for equal runs."""
    return tree_digest(json.loads(json.dumps({name: value for name, value in content.items() if name != CLOCK})))


def read_result(path: Path, method: str | None = None, seed: int | None = None) -> dict[str, Any]:
    """Read a file of :func:`write_result`.

    Args:
        path: The file.
        method: The method that the result must be of; any if omitted.
        seed: The seed that it must be of; any if omitted.

    Raises:
        ValueError: If the file is damaged, not a result, or the result of another trial.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        known = (RESULT_FORMAT, RESULT_VERSION)
        if not isinstance(result, dict) or (result.get("format"), result.get("version")) != known:
            raise ValueError(f"expected {known[0]!r}, version {known[1]}")
        result = unsealed(result)
        _check_figures(result)
        found = {name: result[name] for name in ("name", "method", "seed")}
        given = {"name": path.stem, "method": method, "seed": seed}
        if any(value not in (None, found[name]) for name, value in given.items()):
            raise ValueError(f"it is of {found}; expected {given}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or no result ({type(error).__name__}: {error})") from error
    return result


def read_results_of(folder: Path) -> list[dict[str, Any]]:
    """Return the results in a trial's folder, by budget."""
    return sorted((read_result(path) for path in folder.glob("result-*.json")), key=lambda result: result["budget"])


def set_damaged_aside(folder: Path, method: str, seed: int) -> bool:
    """Rename results that are damaged or of another trial, with a warning; return whether there were any."""
    found = False
    for path in sorted(folder.glob("result-*.json")):
        try:
            read_result(path, method, seed)
        except ValueError as error:
            aside = path.with_suffix(".damaged")
            warnings.warn(f"{error}; it is set aside as {aside.name}, and made again", stacklevel=2)
            path.replace(aside)
            found = True
    return found


def result_row(variant: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of ``results.csv``."""
    row: dict[str, Any] = {"variant": variant, **{key: result[key] for key in ("method", "seed", "budget")}}
    splits = [split for split in ("val", "test") if f"{split}_miou" in result]
    row.update({f"{split}_miou": round(result[f"{split}_miou"], 4) for split in splits})
    row.update({key: result.get(key, "") for key in ("epochs", "best_epoch")})
    row["acquired_miou"] = round(result["acquired_miou"], 4) if "acquired_miou" in result else ""
    for split in splits:
        for name, iou in result[f"{split}_iou"].items():
            row[f"{split}_iou_{name}"] = "" if iou is None else round(iou, 4)
    for name in result[f"{splits[0]}_iou"] if splits else ():
        row[f"asked_{name}"] = result.get("asked", {}).get(name, "")
    return row


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``results.csv`` atomically; values that a row lacks are empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    write_csv(path, [{column: row.get(column, "") for column in columns} for row in rows])


def _check_figures(result: Mapping[str, Any]) -> None:
    """Raise a ValueError unless a result's figures have the form that :func:`result_row` needs."""
    splits = [split for split in ("val", "test") if f"{split}_miou" in result]
    percents = [result[f"{split}_miou"] for split in splits]
    percents += [iou for split in splits for iou in result[f"{split}_iou"].values() if iou is not None]
    counts = [result["seed"], result["budget"], *result.get("asked", {}).values()]
    good = all(type(value) in (int, float) and 0 <= value <= 100 for value in percents)
    if not splits or not good or not all(type(count) is int for count in counts) or type(result["method"]) is not str:
        raise ValueError("its figures are missing, or no percentages and counts")
    float(result.get("acquired_miou", 0))
    result_row("", result)
