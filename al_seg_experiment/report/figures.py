"""The paper's figures, drawn from tables.

The colours suit colour-blind readers; markers and line styles keep curves distinct in a grey print. Every function
returns the encoded bytes of a PNG.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from al_seg_experiment.report.results import FULL, HEURISTICS
from al_seg_experiment.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHARE_OF_FULL = 0.96
"""The paper's target, as a share of what full supervision reaches (figure 4)."""


GREEDY = "greedy"
"""Value of the column ``followed`` for episodes in which the agent does not explore."""
AVERAGED = 10
"""Number of episodes per seed in a moving mean."""


class Style(NamedTuple):
    """How one method or variant is drawn."""

    color: str
    marker: str
    linestyle: Any


# Okabe & Ito's colours without yellow, which is too pale in print.
METHOD_STYLES = {
    "uniform": Style("#000000", "s", ":"),
    "entropy": Style("#E69F00", "^", "--"),
    "bald": Style("#0072B2", "v", "-."),
    "margin": Style("#009E73", "D", (0, (6, 1))),
    "dqn": Style("#D55E00", "o", "-"),
    "rare": Style("#56B4E9", "X", (0, (1, 0.6))),
    "forecast_rarity": Style("#6A3D9A", "*", (0, (3, 1))),
}
"""The styles of known methods, the same in every picture of the project."""
_STYLES = (
    *(style for name, style in METHOD_STYLES.items() if name != "forecast_rarity"),  # its colour is close to another
    Style("#CC79A7", "P", (0, (4, 1, 1, 1, 1, 1))),
)
MOST_COLOURS = 8
"""Number of methods in a picture above which heuristics without a style of their own are grey."""
_GREY_MARKERS = ("<", ">", "*", "h", "p", "d", "1", "2", "x", "+")
_MORE_MARKERS = ("<", ">", "*", "h", "p")
_HATCHES = ("", "///", "...", "\\\\\\", "xxx", "++", "oo", "---", "|||", "OO", "**")  # one for each grey method
_DARK = "#7A3400"
"""A dark shade of the agent's colour, for a line over its points."""
_FULL_LABELS = ("full supervision", f"{100 * SHARE_OF_FULL:.0f} % of it")
_SETTINGS: Any = {
    "font.size": 9,
    "text.parse_math": False,
    "text.usetex": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def styles(names: Sequence[str]) -> dict[str, Style]:
    """Return a different style for each name; known methods keep theirs in every picture."""
    given = {name: METHOD_STYLES[name] for name in names if name in METHOD_STYLES}
    if len(names) > MOST_COLOURS:  # keep the colours for the methods that a reader looks for
        grey = [name for name in names if name in HEURISTICS and name not in given]
        given.update({name: Style("#999999", _GREY_MARKERS[i % 10], (0, (2, 1))) for i, name in enumerate(grey)})
    free = [style for style in _STYLES if style not in given.values()]
    for i, name in enumerate(name for name in names if name not in given):
        if i < len(free):
            given[name] = free[i]
        else:
            color, _, line = _STYLES[i % len(_STYLES)]
            given[name] = Style(color, _MORE_MARKERS[i // len(_STYLES) % len(_MORE_MARKERS)], line)
    return {name: given[name] for name in names}


def budget_curves(panels: Mapping[str, Table], *, key: str = "method", ylabel: str) -> bytes:
    """Draw mean and standard deviation of mean IoU against the budget (figure 4 of the paper).

    Args:
        panels: Tables with the columns ``key``, ``budget``, ``mean``, ``std`` and ``n``, by title. Rows of the
            method ``"full"`` become a horizontal line, with a dashed line at 96 % of it.
        key: The column whose values distinguish the curves.
        ylabel: Title of the vertical axis.
    """
    with _settings():
        columns = {1: 1, 2: 2, 4: 2}.get(len(panels), 3)
        figure, axes = _subplots(len(panels), columns, width=4.8 if len(panels) == 1 else 3.4, height=3.4)
        for i, (axis, (title, table)) in enumerate(zip(axes, panels.items(), strict=True)):
            lines = [r for r in table.records() if r["method"] != FULL]
            names, budgets = list(dict.fromkeys(r[key] for r in lines)), [r["budget"] for r in lines]
            dodge = _dodge(budgets, len(names))
            for k, (name, style) in enumerate(styles(names).items()):
                points = table.where(**{key: name}).records()
                x = np.array([r["budget"] for r in points], float) + dodge * (k - (len(names) - 1) / 2)
                std = np.nan_to_num([r["std"] for r in points])
                look: Any = {**style._asdict(), "markersize": 4.5, "linewidth": 1.3, "capsize": 2, "elinewidth": 0.8}
                axis.errorbar(x, [r["mean"] for r in points], std, label=name, **look)
            if full := table.where(method=FULL).column("mean"):
                line: Any = {"color": "#666666", "linewidth": 1}
                axis.axhline(full[0], label=_FULL_LABELS[0], **line)
                axis.axhline(SHARE_OF_FULL * full[0], label=_FULL_LABELS[1], linestyle=(0, (6, 3)), **line)
            axis.set(xlabel="labelled regions", title=title, ylabel="" if i % columns else ylabel)
            _budget_ticks(axis, budgets)
            if i == 0:
                _name_bars(axis, lines)
        _legend_on_the_right(figure, axes)
        return _png(figure)


def class_bars(table: Table, *, ylabel: str, labels: Mapping[str, str] | None = None) -> bytes:
    """Draw a bar with standard deviation for each class and method: figure C.1, or the IoU of table C.1.

    Args:
        table: Columns ``method``, ``class``, ``mean`` and ``std``.
        ylabel: Title of the vertical axis.
        labels: Text of the legend for a method, where it is not the method's name.
    """
    classes, methods = list(dict.fromkeys(table.column("class"))), list(dict.fromkeys(table.column("method")))
    group = 0.13 * (len(methods) + 1.5)  # inches that a class takes
    lines = -(-len(classes) // min(10, max(3, int(8.6 / group))))  # wider pictures are small on a page
    across = -(-len(classes) // lines)
    with _settings():
        width = max(4.8, across * group + 0.8)
        figure, axes = _subplots(lines, 1, width=width, height=2.3 if lines > 1 else 3.0)
        for k, axis in enumerate(axes):
            part = classes[k * across : (k + 1) * across]
            _grouped_bars(axis, table, part, styles(methods))
            axis.set_xticks(range(len(part)), part, rotation=30, ha="right", rotation_mode="anchor")
            axis.set(xlim=(-0.6, across - 0.4))
            axis.grid(axis="x", visible=False)
        _name_bars(axes[0], table.records())
        figure.supylabel(ylabel, fontsize="medium")
        handles, methods = axes[0].get_legend_handles_labels()
        names = [(labels or {}).get(method, method) for method in methods]
        ncols = max(1, int(width / (0.065 * max(map(len, names)) + 0.6)))
        figure.legend(handles, names, loc="outside upper center", ncols=ncols)
        return _png(figure)


def _grouped_bars(axis: Axes, table: Table, classes: Sequence[str], methods: Mapping[str, Style]) -> None:
    width = 0.84 / len(methods)
    for i, (method, style) in enumerate(methods.items()):
        found = {r["class"]: r for r in table.where(method=method).records() if r["class"] in classes}
        x = np.array([classes.index(name) for name in found]) + (i - (len(methods) - 1) / 2) * width
        std = np.nan_to_num([r["std"] for r in found.values()])
        look: Any = {"color": style.color, "edgecolor": "white", "linewidth": 0, "hatch": _HATCHES[i % len(_HATCHES)]}
        error: Any = {"ecolor": "#333333", "error_kw": {"elinewidth": 0.9, "path_effects": _halo()}}
        axis.bar(x, [r["mean"] for r in found.values()], width, yerr=std, label=method, **look, **error)


def _halo() -> list[Any]:
    """Return path effects that give a dark line a white edge, so that it stands out on a dark bar."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2.2, foreground="white")]


def method_points(table: Table, *, ylabel: str) -> bytes:
    """Draw each seed's value as a point, with mean and standard deviation, by method (figure 3, and areas).

    Args:
        table: Columns ``method``, ``mean``, ``std`` and ``seed_<n>``.
        ylabel: Title of the vertical axis.
    """
    methods = list(dict.fromkeys(table.column("method")))
    seeds = [name for name in table.columns if name.startswith("seed_")]
    with _settings():
        many = len(methods) > 6
        width, height = (0.55 * len(methods) + 1.2, 3.6) if many else (max(2.8, 0.75 * len(methods) + 0.8), 3.0)
        figure, (axis,) = _subplots(1, 1, width=width, height=height)
        for i, (style, r) in enumerate(zip(styles(methods).values(), table.records(), strict=True)):
            values = [r[name] for name in seeds if r[name] is not None]
            x = i + np.linspace(-0.18, 0.18, len(values)) if len(values) > 1 else [i]
            axis.plot(x, values, style.marker, color=style.color, alpha=0.55, **_dots(style.marker, 4))
            std, wide = float(np.nan_to_num(r["std"])), 0.3
            axis.errorbar(i, r["mean"], std, color=style.color, capsize=4, linewidth=1.3)
            axis.plot([i - wide, i + wide], [r["mean"]] * 2, color=style.color, linewidth=2)
        tilted: Any = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if many else {}
        between = "  " if tilted else "\n"
        labels = [f"{r['method']}{between}{r['mean']:.2f}" for r in table.records()]
        axis.set_xticks(range(len(methods)), labels, **tilted)
        axis.set(ylabel=ylabel, xlim=(-0.6, len(methods) - 0.4))
        axis.margins(y=0.12)
        _name_bars(axis, table.records())
        axis.grid(axis="x", visible=False)
        return _png(figure)


def differences(table: Table, *, xlabel: str) -> bytes:
    """Draw the differences to each heuristic with their confidence intervals, one panel per budget.

    Args:
        table: Columns ``budget``, ``heuristic``, ``difference``, ``ci_low``, ``ci_high``, ``above`` and ``n``.
        xlabel: Title of the horizontal axis.
    """
    budgets = sorted(set(table.column("budget")))
    heuristics = list(dict.fromkeys(table.column("heuristic")))[::-1]
    with _settings():
        height = 0.24 * len(heuristics) + 1.3
        width = {1: 5.6, 2: 3.2}.get(len(budgets), 1.0 + 6.0 / len(budgets))  # the key needs 5.6 inches in all
        figure, axes = _subplots(len(budgets), len(budgets), width=width, height=height)
        for axis, budget in zip(axes, budgets, strict=True):
            for r in table.where(budget=budget).records():
                y, color = heuristics.index(r["heuristic"]), "#0072B2" if r["above"] else "#D55E00"
                axis.plot([r["ci_low"], r["ci_high"]], [y, y], color=color, linewidth=1.4)
                axis.plot(r["difference"], y, "o" if r["above"] else "x", color=color, markersize=5)
            axis.axvline(0, color="#666666", linewidth=0.8)
            axis.set(title=f"{budget} regions", yticks=range(len(heuristics)), yticklabels=heuristics)
            axis.set_ylim(-0.6, len(heuristics) - 0.4)
            axis.grid(axis="y", visible=False)
        lowest, highest = min(axis.get_xlim()[0] for axis in axes), max(axis.get_xlim()[1] for axis in axes)
        for axis in axes:
            axis.set_xlim(lowest, highest)  # differences of all budgets on one scale
        figure.supxlabel(xlabel, fontsize="medium")
        looks = (("o-", "#0072B2"), ("x-", "#D55E00"))
        handles = [axes[0].plot([], [], form, color=color)[0] for form, color in looks]
        labels = ["above, p < 0.05", f"not above (lines: 95 % interval{_seeds(table.records())})"]
        figure.legend(handles, labels, loc="outside upper center", ncols=2)
        return _png(figure)


def matrix(table: Table, *, label: str) -> bytes:
    """Draw a square matrix of shares from 0 to 1, and the mean of each row beside it.

    Args:
        table: A first column of names, one column for each of these names, and ``mean``.
        label: Title of the colour bar.
    """
    names = table.column(table.columns[0])
    values = np.array([[np.nan if value is None else value for value in row[1:]] for row in table.rows], float)
    with _settings():
        side = 0.42 * len(names) + 1.9
        figure, (axis,) = _subplots(1, 1, width=side + 0.8, height=side)
        image = axis.imshow(values, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                shade = "white" if value > 0.6 else "black"
                axis.text(column, row, f"{value:.2f}".removeprefix("0"), ha="center", va="center", color=shade, size=7)
        axis.axvline(len(names) - 0.5, color="black", linewidth=1)
        axis.set_xticks(range(len(names) + 1), [*names, "mean"], rotation=90)
        axis.set_yticks(range(len(names)), names)
        axis.set(xlabel="is above", ylabel="is beaten")
        axis.grid(visible=False)
        figure.colorbar(image, label=label, shrink=0.7)
        return _png(figure)


def variant_points(table: Table, *, ylabel: str) -> bytes:
    """Draw mean and standard deviation of each method in every variant (tables E.1 to E.3 as a picture).

    Args:
        table: Columns ``method``, ``variant``, ``mean`` and ``std``, at a single budget.
        ylabel: Title of the vertical axis.
    """
    variants, methods = list(dict.fromkeys(table.column("variant"))), list(dict.fromkeys(table.column("method")))
    with _settings():
        figure, (axis,) = _subplots(1, 1, width=max(4.2, 0.8 * len(variants) + 1.8), height=3.2)
        for i, (method, style) in enumerate(styles(methods).items()):
            points = sorted(table.where(method=method).records(), key=lambda r: variants.index(r["variant"]))
            x = np.array([variants.index(r["variant"]) for r in points]) + 0.08 * (i - (len(methods) - 1) / 2)
            std = np.nan_to_num([r["std"] for r in points])
            look: Any = {**style._asdict(), "linestyle": "none", "markersize": 5, "elinewidth": 0.9, "capsize": 2.5}
            axis.errorbar(x, [r["mean"] for r in points], std, label=method, **look)
        tilted: Any = {"rotation": 30, "ha": "right"} if max(map(len, variants)) > 10 else {}
        axis.set_xticks(range(len(variants)), variants, **tilted)
        axis.set(ylabel=ylabel, xlim=(-0.5, len(variants) - 0.5))
        _name_bars(axis, table.records())
        axis.grid(axis="x", visible=False)
        _legend_on_the_right(figure, [axis])
        return _png(figure)


def episode_returns(
    panels: Mapping[str, Table], references: Mapping[str, Mapping[str, Sequence[float]]], *, ylabel: str
) -> bytes:
    """Draw the return of each training episode, and the moving mean of the greedy episodes.

    The mean is over all episodes if the table does not say which are greedy.

    Args:
        panels: Tables with the columns ``seed``, ``episode``, ``return`` and ``followed``, by title.
        references: Returns of heuristics on the same images, by title and heuristic, drawn as dashed lines at the mean.
        ylabel: Title of the vertical axis.
    """
    with _settings():
        columns = min(len(panels), 3)
        figure, axes = _subplots(len(panels), columns, width=5.5 if len(panels) == 1 else 3.4, height=3.2)
        names = dict.fromkeys(name for table in panels.values() for name in table.column("followed"))
        own = GREEDY if GREEDY in names else "all"
        drawn_as = {name: "dqn" if name == own else name for name in names}  # by itself, an agent is the agent
        looks = styles(list(drawn_as.values()))
        for i, (axis, (title, table)) in enumerate(zip(axes, panels.items(), strict=True)):
            for name, style in ((name, looks[drawn_as[name]]) for name in names):
                points = table.where(followed=name)
                look: Any = {"color": style.color, "alpha": 0.7, "label": name, **_dots(style.marker, 3.5)}
                axis.plot(points.column("episode"), points.column("return"), style.marker, **look)
            averaged = table.where(followed=GREEDY) if GREEDY in names else table
            ordered = sorted(averaged.records(), key=lambda r: r["episode"])
            agents = len(set(table.column("seed")))
            width = AVERAGED * agents  # returns in each moving mean
            means = {r["episode"]: [o["return"] for o in ordered[: k + 1]][-width:] for k, r in enumerate(ordered)}
            if means := {episode: np.mean(returns) for episode, returns in means.items() if len(returns) == width}:
                label = f"{own}: mean of the last {AVERAGED}"
                axis.plot(list(means), list(means.values()), color=_DARK, linewidth=1.6, label=label)
            rules = references.get(title, {})
            for rule, style in styles(list(rules)).items():
                look = {"color": style.color, "linestyle": "--", "linewidth": 1.3, "label": f"the rule {rule}: mean"}
                axis.axhline(float(np.mean(rules[rule])), **look)
            axis.locator_params(axis="x", integer=True)
            axis.axhline(0, color="#666666", linewidth=0.8)
            known = title or ("dqn" if len(panels) > 1 else "")  # the agents without a variant
            count = f"n = {agents} agent{'s' * (agents > 1)}"
            axis.set(xlabel="episode", ylabel="" if i % columns else ylabel)
            axis.set_title(f"{known}, {count}" if known else count, fontsize="medium")
        _legend_on_the_right(figure, axes)
        return _png(figure)


def _dots(marker: str, size: float) -> dict[str, Any]:
    """Return how points without lines are drawn: markers without an edge, unless the marker is only an edge."""
    from matplotlib.lines import Line2D

    filled = marker in Line2D.filled_markers
    return {"linestyle": "none", "markersize": size, "markeredgewidth": 0 if filled else 1}


def _settings() -> AbstractContextManager[None]:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('figures need matplotlib; install it with: pip install "al-seg-env[examples]"') from error
    return matplotlib.rc_context(_SETTINGS)


def _subplots(panels: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels of ``width x height`` inches that share their scale, without pyplot's global state."""
    from matplotlib.figure import Figure

    rows = -(-panels // columns)
    figure = Figure(figsize=(width * columns, height * rows), dpi=200)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel().tolist()
    for axis in axes[panels:]:
        axis.set_axis_off()
    return figure, axes[:panels]


def _dodge(budgets: Sequence[int], curves: int) -> float:
    """Return the horizontal shift between curves that keeps their error bars apart, in regions."""
    different = sorted(set(budgets))
    return min(0.006 * (different[-1] - different[0]), 0.2 * min(np.diff(different), default=0) / curves)


def _budget_ticks(axis: Axes, budgets: Sequence[int]) -> None:
    """Put the ticks at the budgets if there is room for their numbers."""
    different = sorted(set(budgets))
    room = 0.035 * len(str(different[-1])) * (different[-1] - different[0])
    if len(different) < 2 or min(np.diff(different)) >= room:
        axis.set_xticks(different)


def _name_bars(axis: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write above a picture what its error bars are, and over how many seeds."""
    if {row["n"] for row in rows if row.get("n")} != {1}:
        text = f"bars: standard deviation{_seeds(rows)}"
        height = 0.01 if axis.get_title() else 1.01  # inside the axis where a title is above it
        look: Any = {"ha": "right", "va": "bottom", "fontsize": "small", "color": "#666666"}
        axis.text(1, height, text, transform=axis.transAxes, **look)


def _seeds(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the number of seeds as the end of a sentence; an empty text if it is unknown."""
    numbers = sorted({row["n"] for row in rows if row.get("n")})
    return f", n = {' to '.join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))} seeds" if numbers else ""


def _legend_on_the_right(figure: Figure, axes: Sequence[Axes]) -> None:
    """Add a legend with every curve once, followed by the lines of full supervision."""
    found = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    labels = sorted(found, key=lambda label: label in _FULL_LABELS)
    figure.legend([found[label] for label in labels], labels, loc="outside right center")


def _png(figure: Figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content, metadata={"Software": None})  # savefig draws everything twice
    return content.getvalue()
