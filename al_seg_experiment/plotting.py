"""Plots of a few lines, in the colours of the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from al_seg_env.storage import replacing
from al_seg_experiment.report.figures import styles

Line: TypeAlias = tuple[Iterable[float], Iterable[float]] | tuple[Iterable[float], Iterable[float], Iterable[float]]
"""``(x, y)`` or ``(x, y, spread)``."""


def plot_lines(
    path: str | Path,
    lines: Mapping[str, Line],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    marks: Mapping[str, Line] = MappingProxyType({}),
) -> None:
    """Draw named lines as a PNG; a spread becomes a band. Methods have the colours that they have in reports.

    The points of ``marks`` get a ring around them.

    Raises:
        ImportError: Without matplotlib; the message says how to install it.
    """
    plot_panels(path, {title: lines}, xlabel={title: xlabel}, ylabel={title: ylabel}, marks=marks)


def plot_panels(
    path: str | Path,
    panels: Mapping[str, Mapping[str, Line]],
    *,
    xlabel: Mapping[str, str],
    ylabel: Mapping[str, str],
    columns: int = 2,
    marks: Mapping[str, Line] = MappingProxyType({}),
    **axis: Any,
) -> None:
    """Draw panels of named lines side by side, by title; labels are by title, too.

    Args:
        path: The PNG.
        panels: Lines by title.
        xlabel: Of each panel.
        ylabel: Of each panel.
        columns: Panels in a row, at most.
        marks: Points to draw a ring around in every panel, by name.
        axis: Properties of all axes, such as ``ylim=(0, None)``.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('figures need matplotlib; install it with: pip install "al-seg-env[examples]"') from error
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    size = (6.4, 4.2) if len(panels) == 1 else (4 * columns, 3 * rows)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, (title, lines) in zip(axes, panels.items(), strict=False):
        for (name, line), style in zip(lines.items(), styles(list(lines)).values(), strict=True):
            x, y, *spread = (np.asarray(list(values), float) for values in line)
            ax.plot(x, y, label=name, markersize=4, **style._asdict())
            if spread:
                ax.fill_between(x, y - spread[0], y + spread[0], color=style.color, alpha=0.15, linewidth=0)
        for name, (across, up, *_) in marks.items():
            ring: Any = {"markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.6, "color": "#D55E00"}
            ax.plot(list(across), list(up), "o", label=name, linestyle="none", **ring)
        ax.set(xlabel=xlabel[title], ylabel=ylabel[title], title=title, **axis)
        if all(float(x).is_integer() for given, *_ in lines.values() for x in given):  # epochs, steps, processes
            ax.locator_params(axis="x", integer=True)
        ax.grid(alpha=0.3)
        if len(lines) + len(marks) > 1:
            ax.legend(fontsize=8)
    with replacing(path) as unfinished:
        FigureCanvasAgg(figure).print_png(unfinished)  # savefig draws all twice
