"""The figures as bars of text, by plotext (5 or 6). Needs numpy, h5py, matplotlib, plotext."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import plotext
from study_comparisons import ABSCISSAS, PERCENTAGES, points
from study_figures import ABLATION_COLUMNS, BOXES, ablation_bars, expert_load
from study_results import Result
from study_style import NotDrawn, plain, short_count


@dataclasses.dataclass
class Bars:
    title: str
    labels: list[str]
    values: list[float]


def bars_of_5(title: str, labels: list[str], values: list[float], size: tuple[int, int], end: float) -> str:
    plotext.clear_figure()
    plotext.limit_size(False, False)
    plotext.theme("clear")
    plotext.plot_size(*size)
    plotext.title(title)
    plotext.bar(labels, values, orientation="horizontal", width=0.3)
    plotext.xlim(0, end)
    return plotext.uncolorize(plotext.build())


def bars_of_6(title: str, labels: list[str], values: list[float], size: tuple[int, int], end: float) -> str:
    figure = plotext.figure
    plotext.terminal.limit(False, False)
    figure.clear()
    figure.plot_size(*size)
    figure.title(title)
    figure.draw(figure.bar(labels, values, orientation="horizontal", width=0.3))
    figure.ruler("x").lim(0, end)
    return figure.build().string(colorless=True)


def print_bars(bars: Bars) -> None:
    """Horizontal bars, the first on top."""
    finite = [(label, float(value)) for label, value in zip(bars.labels, bars.values) if np.isfinite(value)]
    if not finite:
        return
    labels, values = map(list, zip(*reversed(finite)))
    size = min(shutil.get_terminal_size().columns, 100), len(labels) + 4
    end = 1.05 * max(values) or 1.0
    write = bars_of_5 if hasattr(plotext, "clear_figure") else bars_of_6
    print(write(bars.title, labels, values, size, end), flush=True)


def features(result: Result) -> Bars:
    rows = result.features[:BOXES]
    marks = [" *" if mark else "" for mark in result.qualified[:BOXES]]
    labels = [f"{row['feature']}{mark}" for row, mark in zip(rows, marks)]
    return Bars(f"{result.label}: largest magnitude by feature (* outlier feature)", labels, rows["max_magnitude"])


def layers(result: Result) -> Bars:
    names = [f"layer {layer}" for layer in range(int(result.attributes["n_layers"]))]
    values = result.sites["max_abs"].astype(np.float64).reshape(-1, 2).max(axis=1)
    return Bars(f"{result.label}: largest magnitude by layer", names, values)


def experts(result: Result) -> list[Bars]:
    try:
        numbers, load = expert_load(result)
    except NotDrawn:
        return []
    names = [f"layer {layer}" for layer in numbers]
    return [Bars(f"{result.label}: load of the busiest expert (1: even spread)", names, load.max(axis=1))]


def ablation(result: Result) -> list[Bars]:
    if result.ablation is None:
        return []
    found = []
    for column, label in ABLATION_COLUMNS.items():
        if column in result.ablation.dtype.names:
            names, draws = zip(*ablation_bars(result.ablation, column))
            found.append(Bars(f"{result.label}: {label}", list(names), [values.mean() for values in draws]))
    return found


def comparison(results: list[Result], percentage: str, abscissa: str) -> Bars:
    """A bar per model, by rising abscissa."""
    found = sorted(points(results, percentage, abscissa)[0], key=lambda point: point.x)
    write = plain if abscissa == "perplexity" else short_count
    labels = [f"{point.label} ({write(float(f'{point.x:.4g}'))})" for point in found]
    return Bars(f"{PERCENTAGES[percentage][1]}, by {ABSCISSAS[abscissa][1]}", labels, [point.y for point in found])


def show(results: list[Result], names: list[str]) -> None:
    every: list[Bars] = []
    for result in results:
        every += [features(result)] if "heatmap" in names else []
        every += [layers(result)] if "magnitudes" in names else []
        every += experts(result) if "experts" in names else []
        every += ablation(result) if "ablation" in names else []
    for percentage in PERCENTAGES:
        if percentage in names or "figure3" in names:
            every += [comparison(results, percentage, abscissa) for abscissa in ABSCISSAS]
    for bars in every:
        print_bars(bars)
