"""The figures across models: what is affected, against size and perplexity. Needs numpy, h5py, matplotlib."""

from __future__ import annotations

import dataclasses

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from study_results import Result
from study_style import GREY, Drawn, Look, NotDrawn, footnote, log_axis, looks, new_figure, plain, short_count

# name in the files: (member of /summary, axis label, short)
PERCENTAGES = {
    "layers": ("mean_layer_percentage", "mean layers affected (% of sites)", "layers"),
    "positions": ("mean_seq_percentage", "mean positions affected (%)", "positions"),
}
# name in the files: (attribute, axis label)
ABSCISSAS = {
    "parameters": ("parameters", "total parameters"),
    "active": ("active_parameters", "active parameters per token"),
    "perplexity": ("perplexity", "perplexity"),
}
KINDS = (*PERCENTAGES, "figure3")


@dataclasses.dataclass
class Point:
    label: str
    is_dense: bool
    x: float
    x_interval: tuple[float, float]
    y: float  # percent; 0 if the model has no outlier feature
    y_interval: tuple[float, float]  # percent
    is_empty: bool  # no outlier feature


def percent_interval(result: Result, name: str) -> tuple[float, float]:
    low, high = result.interval(name)
    return 100 * low, 100 * high


def points(results: list[Result], percentage: str, abscissa: str) -> tuple[list[Point], list[str]]:
    """The models' points, and the labels of those without a number for the x axis."""
    column, attribute = PERCENTAGES[percentage][0], ABSCISSAS[abscissa][0]
    found, missing = [], []
    for result in results:
        x, y = result.number(attribute), 100 * result.number(column)
        if not np.isfinite(x) or x <= 0:
            missing.append(result.label)
            continue
        is_empty = not np.isfinite(y)
        y_interval = (np.nan, np.nan) if is_empty else percent_interval(result, column)
        x_interval = result.interval(attribute)
        y = 0.0 if is_empty else y
        found.append(Point(result.label, result.is_dense, x, x_interval, y, y_interval, is_empty))
    return found, missing


def notes(found: list[Point], missing: list[str], label: str) -> str:
    lines = []
    if missing:
        lines.append(f"Without {label}, so not drawn: {', '.join(missing)}.")
    if not all(np.isfinite(point.y_interval).all() for point in found if not point.is_empty):
        lines.append("Without intervals in the file, no error bars.")
    return " ".join(lines)


def error(value: float, interval: tuple[float, float]) -> np.ndarray | None:
    """Error bar [2, 1] of matplotlib, or None."""
    if not np.isfinite(interval).all():
        return None
    return np.maximum([[value - interval[0]], [interval[1] - value]], 0)


def draw_points(axes: Axes, found: list[Point], look: dict[str, Look], hollow: bool = False) -> None:
    for point in found:
        colour, marker = look[point.label].colour, look[point.label].marker
        face = "white" if hollow or point.is_empty else colour
        axes.errorbar(point.x, point.y, error(point.y, point.y_interval), error(point.x, point.x_interval), fmt=marker,
                      color=colour, markerfacecolor=face, markersize=7, markeredgewidth=1.5, capsize=3, elinewidth=1.2,
                      zorder=3, clip_on=False)  # fmt: skip


def set_axes(axes: Axes, found: list[Point], abscissa: str) -> None:
    values = [x for point in found for x in (point.x, *point.x_interval) if np.isfinite(x) and x > 0]
    log_axis(axes.xaxis, values, plain if abscissa == "perplexity" else short_count)
    tops = [value for point in found for value in (point.y, point.y_interval[1]) if np.isfinite(value)]
    axes.set_ylim(0, min(max(1.15 * max(tops), 10), 105) if max(tops) <= 100 else 1.05 * max(tops))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(ABSCISSAS[abscissa][1])


def model_handles(found: list[Point], look: dict[str, Look]) -> list[Line2D]:
    return [
        Line2D([], [], linestyle="", marker=look[p.label].marker, color=look[p.label].colour, markersize=7,
               markerfacecolor="white" if p.is_empty else look[p.label].colour, markeredgewidth=1.5,
               label=f"{p.label} (no outlier feature)" if p.is_empty else p.label)
        for p in found
    ]  # fmt: skip


def finish(figure, axes: Axes, handles: list[Line2D], note: str) -> None:
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8, handlelength=3)
    footnote(figure, note)


def draw_percentage(results: list[Result], percentage: str, abscissa: str) -> Drawn:
    look = looks(results)
    found, missing = points(results, percentage, abscissa)
    if not found:
        raise NotDrawn(f"no result has {ABSCISSAS[abscissa][1]}")
    figure, (axes,) = new_figure(6.8, 4.2)
    draw_points(axes, found, look)
    set_axes(axes, found, abscissa)
    _, label, short = PERCENTAGES[percentage]
    axes.set_ylabel(label)
    title = f"{short.capitalize()} affected by outlier features, by {ABSCISSAS[abscissa][1]}"
    axes.set_title(title)
    note = notes(found, missing, ABSCISSAS[abscissa][1])
    finish(figure, axes, model_handles(found, look), note)
    caption = "Mean over the outlier features of each model; error bars: 95 % bootstrap intervals."
    return Drawn(f"{percentage}-{abscissa}", percentage, title, caption, figure)


def draw_lines(axes: Axes, found: list[Point], style: str) -> None:
    """Joins the points of Mixture-of-Experts models, and those of dense ones."""
    for dense in (False, True):
        row = sorted((point for point in found if point.is_dense == dense), key=lambda point: point.x)
        axes.plot([p.x for p in row], [p.y for p in row], style, color=GREY, linewidth=1.2, zorder=2)


def draw_figure3(results: list[Result], abscissa: str) -> Drawn:
    """Layers and positions in one figure, as Dettmers et al. 2022, figure 3."""
    look = looks(results)
    layers, missing = points(results, "layers", abscissa)
    positions, _ = points(results, "positions", abscissa)
    if not layers:
        raise NotDrawn(f"no result has {ABSCISSAS[abscissa][1]}")
    figure, (axes,) = new_figure(6.8, 4.6)
    draw_lines(axes, layers, "-")
    draw_lines(axes, positions, "--")
    draw_points(axes, layers, look)
    draw_points(axes, positions, look, hollow=True)
    set_axes(axes, layers + positions, abscissa)
    axes.set_ylabel("affected (%)")
    title = f"Layers and positions affected, by {ABSCISSAS[abscissa][1]}"
    axes.set_title(title)
    quantities = [
        Line2D([], [], linestyle="-", color=GREY, marker="o", label="layers (sites)"),
        Line2D([], [], linestyle="--", color=GREY, marker="o", markerfacecolor="white", label="positions"),
    ]
    note = notes(layers, missing, ABSCISSAS[abscissa][1])
    finish(figure, axes, quantities + model_handles(layers, look), note)
    caption = (
        "After figure 3 of Dettmers et al. 2022 (arXiv:2208.07339): filled marks and full lines are layers, hollow "
        "marks and dashed lines positions; Mixture-of-Experts and dense models are joined apart."
    )
    return Drawn(f"figure3-{abscissa}", "figure3", title, caption, figure)


def draw_comparison(results: list[Result], kind: str, abscissa: str) -> Drawn:
    return draw_figure3(results, abscissa) if kind == "figure3" else draw_percentage(results, kind, abscissa)
