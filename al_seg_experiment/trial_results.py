"""What a trial reached, as files: one for each budget, and the rows of ``results.csv`` that are made of them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from al_seg_env.storage import write_csv, write_json

RESULT_FORMAT, RESULT_VERSION = "al-seg-env result", 1


def write_result(path: Path, method: str, seed: int, budget: int, figures: Mapping[str, Any]) -> None:
    """Write what a method reached with a seed and a budget, whole or not at all."""
    about = {"format": RESULT_FORMAT, "version": RESULT_VERSION, "method": method, "seed": seed, "budget": budget}
    write_json(path, {**about, "name": path.stem, **figures})


def read_result(path: Path, method: str | None = None, seed: int | None = None) -> dict[str, Any]:
    """Read what :func:`write_result` wrote.

    Args:
        path: The file.
        method: Whose result it should be; anyone's if omitted.
        seed: Likewise.

    Raises:
        ValueError: If the file is damaged, no result, or another's in its place.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        known = (RESULT_FORMAT, RESULT_VERSION)
        if not isinstance(result, dict) or (result.get("format"), result.get("version")) != known:
            raise ValueError(f"expected {known[0]!r}, version {known[1]}")
        _check_figures(result)
        found = {"name": result.get("name", path.stem), "method": result["method"], "seed": result["seed"]}
        given = {"name": path.stem, "method": method, "seed": seed}  # earlier versions did not store the name
        if any(value not in (None, found[name]) for name, value in given.items()):
            raise ValueError(f"it is of {found}; expected {given}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or no result ({type(error).__name__}: {error})") from error
    return result


def read_results_of(folder: Path) -> list[dict[str, Any]]:
    """Return the results in a trial's folder, by budget."""
    return sorted((read_result(path) for path in folder.glob("result-*.json")), key=lambda result: result["budget"])


def set_damaged_aside(folder: Path, method: str, seed: int) -> bool:
    """Rename a trial's results that are damaged or another's, with a warning; return whether there were any."""
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
    """Write ``results.csv``, whole or not at all; what a row lacks is empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    write_csv(path, [{column: row.get(column, "") for column in columns} for row in rows])


def _check_figures(result: Mapping[str, Any]) -> None:
    """Raise a ValueError unless a result's figures are what :func:`result_row` makes a row of."""
    splits = [split for split in ("val", "test") if f"{split}_miou" in result]
    percents = [result[f"{split}_miou"] for split in splits]
    percents += [iou for split in splits for iou in result[f"{split}_iou"].values() if iou is not None]
    counts = [result["seed"], result["budget"], *result.get("asked", {}).values()]
    good = all(type(value) in (int, float) and 0 <= value <= 100 for value in percents)
    if not splits or not good or not all(type(count) is int for count in counts) or type(result["method"]) is not str:
        raise ValueError("its figures are missing, or no percentages and counts")
    float(result.get("acquired_miou", 0))
    result_row("", result)
