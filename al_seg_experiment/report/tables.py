"""Tables of text and numbers, as csv and as markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from al_seg_env.storage import write_text


@dataclass(frozen=True)
class Table:
    """Named columns of texts, numbers and gaps (None).

    Attributes:
        columns: The n names of the columns.
        rows: The rows, each with n cells.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def records(self) -> list[dict[str, Any]]:
        """Return the rows as dicts with the names of the columns as keys."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def where(self, **values: Any) -> Table:
        """Return a table of the rows that have these values in these columns."""
        kept = [row for row, r in zip(self.rows, self.records(), strict=True) if values.items() <= r.items()]
        return Table(self.columns, tuple(kept))

    def column(self, name: str) -> list[Any]:
        """Return the cells of one column."""
        return [row[self.columns.index(name)] for row in self.rows]


def pivot(table: Table, row: str, column: str) -> Table:
    """Return a table with a row per value of ``row``, a column per value of ``column``, and ``mean ± std`` as cells.

    The number ``n`` is added if it is not the same in all cells. A single value has no standard deviation.
    """
    records = table.records()
    several = len({record["n"] for record in records}) > 1
    cells = {(record[row], record[column]): _mean_and_std(record, several) for record in records}
    down, across = dict.fromkeys(table.column(row)), dict.fromkeys(table.column(column))
    rows = tuple((key, *(cells.get((key, other)) for other in across)) for key in down)
    return Table((row, *map(str, across)), rows)


def _mean_and_std(record: Mapping[str, Any], with_n: bool) -> str:
    return estimate(record) + (f" (n = {record['n']})" if with_n else "")


def estimate(record: Mapping[str, Any]) -> str:
    """Return ``mean ± std`` of a row, or the mean alone if ``n`` is 1."""
    return f"{record['mean']:.2f}" + (f" ± {record['std']:.2f}" if record["n"] > 1 else "")


def write_csv(path: Path, table: Table) -> None:
    """Write a table atomically. Numbers that are not whole have 4 decimals, and gaps are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([_cell(value, 4, "") for value in row] for row in table.rows)
    write_text(path, text.getvalue())


def markdown(table: Table) -> str:
    """Return a table in markdown. Numbers that are not whole have 2 decimals, and gaps are dashes."""
    lines = [table.columns, ["---"] * len(table.columns)]
    lines += [[_cell(value, 2, "-") for value in row] for row in table.rows]
    return "".join(f"| {' | '.join(map(_escape, line))} |\n" for line in lines)


def _escape(cell: str) -> str:
    """Escape a text so that it stays in its cell of a markdown table."""
    return " ".join(cell.replace("|", "\\|").split())


def _cell(value: Any, places: int, gap: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return gap
    return f"{value:.{places}f}" if isinstance(value, float) else str(value)
