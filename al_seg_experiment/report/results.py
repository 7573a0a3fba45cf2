"""The results of an experiment, read from one csv file of any origin."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from al_seg_env.storage.csv_values import parse_float, parse_int

FULL = "full"
"""Name of the method that stands for full supervision: trained with all labels, one row per seed."""
SPLITS = ("val", "test")
HEURISTICS = (
    "uniform",
    "foreground",
    "entropy",
    "bald",
    "margin",
    "balanced_margin",
    "power_margin",
    "ripu",
    "clasp",
    "rarity",
    "rarity_entropy",
    "location_entropy",
    "rarity_regression",
    "forecast_rarity",
)
"""Methods that need neither reward nor labels of the images acquired from: those that an agent must beat."""
ORDER = (*HEURISTICS, "dqn")
"""Methods that are listed first, in this order. Others follow by name, and full supervision comes last."""


@dataclass(frozen=True)
class Row:
    """The result of one method with one seed at one budget.

    Attributes:
        variant: Name of the setting, empty if there is only one.
        method: Name of the method; ``"full"`` is full supervision.
        seed: The seed. Tests pair rows of equal seeds.
        budget: Number of labelled regions; 0 is theta_0.
        miou: Mean IoU in percent, by split (``"val"``, ``"test"``).
        class_iou: IoU in percent by split and class; classes that the split lacks are omitted.
        asked: Labelled pixels in the requested regions, by class; empty if not given.
    """

    variant: str
    method: str
    seed: int
    budget: int
    miou: Mapping[str, float]
    class_iou: Mapping[str, Mapping[str, float]]
    asked: Mapping[str, int]


@dataclass(frozen=True)
class Results:
    """All rows of an experiment, in an order that does not depend on the file's.

    Attributes:
        rows: Sorted by variant, method, seed and budget.
        classes: Names of the classes, in the order of the file's columns.
        splits: Those of ``"val"`` and ``"test"`` for which the file has columns.
    """

    rows: tuple[Row, ...]
    classes: tuple[str, ...]
    splits: tuple[str, ...]

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants that have any method besides full supervision."""
        return tuple(dict.fromkeys(row.variant for row in self.rows if row.method != FULL))

    def of_variant(self, variant: str) -> Results:
        """Return the rows of one variant, and rows of full supervision that are given once for all variants."""
        rows = [row for row in self.rows if row.variant == variant]
        if not any(row.method == FULL for row in rows):
            rows += [row for row in self.rows if row.method == FULL and not row.variant]
        return Results(tuple(rows), self.classes, self.splits)

    @property
    def methods(self) -> tuple[str, ...]:
        """All methods except full supervision."""
        return tuple(sorted({row.method for row in self.rows if row.method != FULL}, key=_method_order))

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds."""
        return tuple(sorted({row.seed for row in self.rows}))

    def of_method(self, method: str) -> tuple[Row, ...]:
        """Return the rows of one method."""
        return tuple(row for row in self.rows if row.method == method)

    def budgets(self, method: str | None = None) -> tuple[int, ...]:
        """Return the budgets of a method; if omitted, those that all methods except full supervision share."""
        if method is not None:
            return tuple(sorted({row.budget for row in self.of_method(method)}))
        of_methods = [set(self.budgets(m)) for m in self.methods]
        return tuple(sorted(set.intersection(*of_methods))) if of_methods else ()

    def miou(self, split: str, method: str, budget: int | None = None) -> dict[int, float]:
        """Return mean IoU in percent by seed, at one budget (optional for full supervision, which has only one)."""
        return {row.seed: row.miou[split] for row in self.of_method(method) if budget in (None, row.budget)}

    def curves(self, split: str, method: str) -> dict[int, dict[int, float]]:
        """Return mean IoU in percent by seed and budget."""
        curves: dict[int, dict[int, float]] = {}
        for row in self.of_method(method):
            curves.setdefault(row.seed, {})[row.budget] = row.miou[split]
        return curves


def read_results(path: str | Path) -> Results:
    """Read a ``results.csv``: one row per variant, method, seed and budget; commas, UTF-8, any order.

    Required columns are ``method``, ``seed``, ``budget`` and at least one of ``val_miou`` and ``test_miou``
    (percent). Optional ones are ``variant``, ``val_iou_<class>``, ``test_iou_<class>`` (percent, empty where the
    split lacks the class) and ``asked_<class>`` (pixels); all others are ignored.

    Raises:
        ValueError: If columns are missing, a value is wrong or a row occurs twice. The message names file and line.
        OSError: If the file cannot be opened.
    """
    path = Path(path)
    rows: dict[tuple[str, str, int, int], tuple[int, Row]] = {}
    lines = _read_lines(path)
    header = next(lines, (0, []))[1]
    _check_header(path, header)
    for line, cells in lines:
        if len(cells) != len(header):
            raise ValueError(
                f"{path}, line {line}: found {len(cells)} values, expected {len(header)} as in the header; was the "
                "file cut off, or is there a comma too many?"
            )
        row = _read_row(dict(zip(header, cells, strict=True)), f"{path}, line {line}")
        key = (row.variant, row.method, row.seed, row.budget)
        if key in rows:
            raise ValueError(
                f"{path}, line {line}: variant {row.variant!r}, method {row.method!r}, seed {row.seed}, budget "
                f"{row.budget} also occurs in line {rows[key][0]}; expected once: remove one of the two"
            )
        rows[key] = (line, row)
    if not any(row.method != FULL for _, row in rows.values()):
        raise ValueError(f"{path}: found {len(rows)} rows, none of a method other than {FULL!r}; expected at least one")
    ordered = sorted((row for _, row in rows.values()), key=_row_order)
    classes = [m[1] for name in header if (m := re.fullmatch(r"(?:val_iou|test_iou|asked)_(.+)", name))]
    return Results(tuple(ordered), tuple(dict.fromkeys(classes)), tuple(s for s in SPLITS if f"{s}_miou" in header))


def _read_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the stripped cells of every line that is not empty."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield reader.line_num, [cell.strip() for cell in cells]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} can't be read as csv ({error}); expected UTF-8 text: save it again as comma-separated text"
        ) from error


def _check_header(path: Path, header: Sequence[str]) -> None:
    missing = [name for name in ("method", "seed", "budget") if name not in header]
    if not {"val_miou", "test_miou"} & set(header):
        missing.append("val_miou or test_miou")
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if missing or twice:
        found = f"found the columns {', '.join(header)}" if header else "the file is empty"
        problem = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(twice)} more than once"
        raise ValueError(
            f"{path}, line 1: the header {problem} ({found}); expected method, seed, budget and val_miou or test_miou, "
            "each once and separated by commas"
        )


def _read_row(cells: Mapping[str, str], where: str) -> Row:
    """Return a row of a file, or raise a ValueError that names the file and the line."""
    if not cells["method"]:
        raise ValueError(f"{where}: method is empty; expected a name such as 'uniform'")
    miou = {s: _percent(cells, f"{s}_miou", where) for s in SPLITS if f"{s}_miou" in cells}
    class_iou = {
        s: {
            name.removeprefix(f"{s}_iou_"): _percent(cells, name, where)
            for name, cell in cells.items()
            if re.fullmatch(f"{s}_iou_.+", name) and cell
        }
        for s in miou
    }
    pixels = {name: cell for name, cell in cells.items() if re.fullmatch("asked_.+", name)}
    if any(pixels.values()) and not all(pixels.values()):
        name = next(name for name, cell in pixels.items() if not cell)
        raise ValueError(f"{where}: {name} is empty but others are not; expected a number of pixels: 0 for none")
    asked = {name.removeprefix("asked_"): _count(cells, name, where) for name, cell in pixels.items() if cell}
    seed, budget = _whole(cells, "seed", where), _count(cells, "budget", where)
    return Row(cells.get("variant", ""), cells["method"], seed, budget, miou, class_iou, asked)


def _percent(cells: Mapping[str, str], name: str, where: str) -> float:
    try:
        value = parse_float(cells[name], name)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise ValueError(f"{where}: {name} is {cells[name]!r}; expected percent, 0 to 100: correct the value")
    return value


def _whole(cells: Mapping[str, str], name: str, where: str) -> int:
    try:
        return parse_int(cells[name].removesuffix(".0"), name)  # other programs may write 24.0
    except ValueError:
        raise ValueError(f"{where}: {name} is {cells[name]!r}; expected a whole number: correct the value") from None


def _count(cells: Mapping[str, str], name: str, where: str) -> int:
    value = _whole(cells, name, where)
    if value < 0:
        raise ValueError(f"{where}: {name} is {value}; expected a whole number from 0 on: correct the value")
    return value


def _method_order(method: str) -> tuple[bool, int, str]:
    return method == FULL, ORDER.index(method) if method in ORDER else len(ORDER), method


def _row_order(row: Row) -> tuple[Any, ...]:
    """Sort numbers in the names of variants as numbers: K=2 before K=12."""
    parts = tuple((int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", row.variant))
    return parts, row.variant, _method_order(row.method), row.seed, row.budget
