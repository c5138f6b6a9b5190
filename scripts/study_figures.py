"""The figures of one model: heat map, magnitudes, experts, ablation. Needs numpy, h5py, matplotlib."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from study_results import CLASSES, SITES, Result
from study_style import (
    BLACK,
    BLUE,
    CLASS_COLOURS,
    CLASS_MARKERS,
    GREEN,
    GREY,
    MAGNITUDES,
    PALE,
    PURPLE,
    VERMILLION,
    Drawn,
    NotDrawn,
    footnote,
    log_axis,
    new_figure,
    plain,
    short_count,
)

COLUMNS = 40  # features of a heat map
BOXES = 20  # features of the distributions


def criteria_text(result: Result) -> str:
    found, systematic = int(result.summary["outlier_features"]), int(result.summary["systematic_features"])
    plural = "" if found == 1 else "s"
    return f"threshold {result.threshold:g}; {found} outlier feature{plural}, {systematic} of them systematic"


def class_names(result: Result) -> list[str]:
    return [CLASSES[value] for value in result.features["classification"]]


# --- heat map ---


def heat_map(result: Result, columns: int = COLUMNS) -> tuple[np.ndarray, np.ndarray]:
    """Features of largest maximum, and their largest magnitudes [2L, features]: sites in order, NaN where none is an
    outlier value."""
    return result.features["feature"][:columns], result.maxima[:, :columns]


def draw_layer_ticks(axes: Axes, layers: int, height: float) -> None:
    """Labels of a vertical axis of sites, two per layer; a line between layers."""
    step = max(1, int(np.ceil(layers / (height / 0.17))))
    shown = np.arange(0, layers, step)
    axes.set_yticks(2 * shown + 0.5, [str(layer) for layer in shown])
    axes.set_yticks(2 * np.arange(1, layers) - 0.5, minor=True)
    axes.grid(False)
    axes.grid(True, axis="y", which="minor", color="white", linewidth=0.8)
    axes.tick_params(axis="y", which="minor", length=0)
    axes.set_ylabel("layer")


def mark_qualified(axes: Axes, names: list[str]) -> None:
    """A mark above the column of each outlier feature, and its number in bold."""
    for column, (name, label) in enumerate(zip(names, axes.get_xticklabels())):
        if name == "NONE":
            label.set_color("#555555")
            continue
        axes.plot(column, 1.0, CLASS_MARKERS[name], transform=axes.get_xaxis_transform(), color=CLASS_COLOURS[name],
                  markersize=7, clip_on=False, zorder=5, markeredgecolor="white", markeredgewidth=0.6)  # fmt: skip
        label.set_color(CLASS_COLOURS[name])
        label.set_fontweight("bold")


def heat_map_legend(figure, names: list[str], any_empty: bool) -> None:
    handles = [
        Line2D([], [], linestyle="", marker=marker, color=CLASS_COLOURS[name], label=f"{name.lower()} outlier feature")
        for name, marker in CLASS_MARKERS.items()
        if name in names
    ]
    if any_empty:
        handles.append(Patch(color=PALE, label="no outlier value"))
    if handles:
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), fontsize=8)


def magnitude_scale(values: np.ndarray, threshold: float) -> Normalize:
    """Colours from the threshold to the largest finite value."""
    finite = values[np.isfinite(values)]
    largest = float(finite.max()) if finite.size else threshold
    smallest = min(threshold, float(finite.min())) if finite.size else threshold
    if smallest > 0 and largest > 4 * smallest:
        return LogNorm(smallest, largest)
    return Normalize(smallest, largest if largest > smallest else smallest + 1)


def draw_heat_map(result: Result) -> Drawn:
    features, maxima = heat_map(result)
    if not len(features):
        raise NotDrawn(f"no value reaches the threshold {result.threshold:g}")
    sites = len(maxima)
    height = min(max(0.13 * sites, 2.4), 11)
    figure, (axes,) = new_figure(max(2.6 + 0.24 * len(features), 6.0), height + 1.7)
    scale = magnitude_scale(maxima, result.threshold)
    colours = mpl.colormaps[MAGNITUDES].with_extremes(bad=PALE)
    image = axes.imshow(maxima, norm=scale, cmap=colours, aspect="auto", interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, label="largest magnitude", pad=0.02)
    if isinstance(scale, LogNorm):
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if scale.vmax < 50 * scale.vmin else (1, 3)))
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.ax.yaxis.set_major_formatter(FuncFormatter(plain))
    axes.set_xticks(range(len(features)), [str(feature) for feature in features], rotation=90, fontsize=8)
    axes.set_xlabel("feature")
    footnote(figure, f"The {len(features)} features of largest maximum. Each layer: ln_attn above, ln_mlp below.")
    draw_layer_ticks(axes, sites // 2, height)
    names = class_names(result)[: len(features)]
    mark_qualified(axes, names)
    heat_map_legend(figure, names, bool(np.isnan(maxima).any()))
    axes.set_title(f"{result.label}: largest magnitudes, by layer and feature", pad=12)
    outside = int(result.qualified.sum()) - int(result.qualified[:COLUMNS].sum())
    more = f"; {outside} outlier features have smaller maxima and are not shown" if outside else ""
    caption = f"Largest magnitude of each feature at each site; {criteria_text(result)}{more}."
    return Drawn(f"heatmap-{result.stem}", "heatmap", f"{result.label}: heat map", caption, figure, result)


# --- magnitude distributions ---


def boxes(result: Result, limit: int = BOXES) -> list[dict[str, object]]:
    """Of the features of largest maximum: smallest, quartiles, largest of the signed outlier values."""
    return [
        {"label": str(row["feature"]), "whislo": result.lowest[i], "q1": row["q1"], "med": row["median"],
         "q3": row["q3"], "whishi": result.highest[i], "fliers": []}
        for i, row in enumerate(result.features[:limit])
    ]  # fmt: skip


def is_finite(box: dict[str, object]) -> bool:
    return all(np.isfinite(box[name]) for name in ("whislo", "q1", "med", "q3", "whishi"))


def signed_ticks(threshold: float, values: list[float]) -> list[float]:
    """The threshold and powers of ten beyond, with both signs, as far as the values go."""
    low, high = min(*values, -threshold), max(*values, threshold)
    powers = [10.0**k for k in range(int(np.floor(np.log10(threshold))), 40)]
    sizes = [threshold, *(power for power in powers if power > 1.5 * threshold)]
    return sorted(sign * size for size in sizes for sign in (-1, 1) if low <= sign * size <= high)


def draw_boxes(axes: Axes, result: Result) -> str:
    """Returns what has to be said beside it."""
    every = boxes(result)
    places = [i for i, box in enumerate(every) if is_finite(box)]
    if places:
        drawn = axes.bxp([every[i] for i in places], positions=places, widths=0.6, showfliers=False, patch_artist=True,
                         medianprops={"color": BLACK, "linewidth": 1.6})  # fmt: skip
        for patch, i in zip(drawn["boxes"], places):
            name = class_names(result)[i]
            patch.set_facecolor(CLASS_COLOURS[name])
            patch.set_alpha(0.75)
    axes.axhspan(-result.threshold, result.threshold, color=PALE, zorder=0)
    ends = [float(every[i][end]) for i in places for end in ("whislo", "whishi")]
    if max(map(abs, ends), default=0) > 12 * result.threshold > 0:
        axes.set_yscale("symlog", linthresh=result.threshold, linscale=0.4)
        ticks = signed_ticks(result.threshold, ends)
        axes.set_yticks(ticks, [plain(tick) for tick in ticks])
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xticks(range(len(every)), [str(box["label"]) for box in every], rotation=90)
    axes.set_xlim(-0.7, len(every) - 0.3)
    axes.set_xlabel("feature")
    axes.set_ylabel("outlier values (signed)")
    axes.grid(False, axis="x")
    axes.set_title("Outlier values of the features of largest maximum")
    names = [name for name in CLASS_COLOURS if name in class_names(result)[: len(every)]]
    words = {"NONE": "does not qualify"}
    handles = [Patch(color=CLASS_COLOURS[n], alpha=0.75, label=words.get(n, n.lower())) for n in names]
    handles.append(Patch(color=PALE, label=f"below the threshold {result.threshold:g}"))
    axes.legend(handles=handles, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return "" if len(places) == len(every) else f"{len(every) - len(places)} features with infinite values not drawn"


def draw_site_lines(axes: Axes, result: Result) -> None:
    """Largest magnitude and standard deviation of all values, over the layers."""
    values: list[float] = []
    for site, (name, colour, marker) in enumerate(zip(SITES, (BLUE, VERMILLION), "os")):
        rows = result.sites[result.sites["site"] == site]
        size = 4 if len(rows) < 50 else 2.5
        for column, line, what in (("max_abs", "-", "maximum"), ("std", ":", "standard deviation")):
            axes.plot(rows["layer"], rows[column], line, color=colour, marker=marker, markersize=size, linewidth=1.3,
                      markerfacecolor=colour if column == "max_abs" else "white", label=f"{name} {what}")  # fmt: skip
            values += [float(value) for value in rows[column] if np.isfinite(value) and value > 0]
    if 0 < result.threshold < 1e3 * max(values, default=result.threshold):
        axes.axhline(result.threshold, color=GREY, linewidth=1, linestyle="--", label="threshold")
        values.append(result.threshold)
    log_axis(axes.yaxis, values or [1.0])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(-0.5, int(result.attributes["n_layers"]) - 0.5)
    axes.set_xlabel("layer")
    axes.set_ylabel("of all values at the site")
    axes.set_title("All values, by site")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def draw_magnitudes(result: Result) -> Drawn:
    rows = 2 if len(result.features) else 1
    figure, axes = new_figure(9, 0.8 + 3.1 * rows, nrows=rows)
    note = draw_boxes(axes[0], result) if rows == 2 else f"No value reaches the threshold {result.threshold:g}."
    draw_site_lines(axes[-1], result)
    figure.suptitle(f"{result.label}: magnitudes", x=0.01, ha="left", fontsize=12, fontweight="bold")
    footnote(figure, note)
    caption = (
        "Boxes: smallest value, quartiles and largest value of the outlier values of each feature. Lines: largest "
        f"magnitude and standard deviation of all values at each site; {criteria_text(result)}."
    )
    return Drawn(f"magnitudes-{result.stem}", "magnitudes", f"{result.label}: magnitudes", caption, figure, result)


# --- experts ---


def expert_load(result: Result) -> tuple[np.ndarray, np.ndarray]:
    """Layers that route, and their experts' tokens relative to an even spread [layers, E]."""
    if result.expert_tokens is None or not result.expert_tokens.any():
        raise NotDrawn("no layer routes")
    layers = np.flatnonzero(result.expert_tokens.any(axis=1))
    tokens = result.expert_tokens[layers].astype(np.float64)
    return layers, tokens / tokens.mean(axis=1, keepdims=True)


def draw_load(axes: Axes, result: Result) -> None:
    layers, load = expert_load(result)
    image = axes.imshow(load, cmap="cividis", aspect="auto", interpolation="nearest", vmin=0)
    axes.figure.colorbar(image, ax=axes, label="tokens, 1 = even spread", pad=0.02)
    dead = np.argwhere(load == 0)
    if len(dead):
        axes.plot(dead[:, 1], dead[:, 0], "x", color="white", markersize=4, label="no token")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    step = max(1, len(layers) // 20)
    axes.set_yticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
    axes.grid(False)
    axes.set_xlabel("expert")
    axes.set_ylabel("layer")
    axes.set_title("Load" + (f" (x: {len(dead)} without tokens)" if len(dead) else ""))


def routed_rows(experts: np.ndarray) -> np.ndarray:
    """Rows of the routed experts; shared ones have no number."""
    rows = experts[experts["expert"] >= 0]
    if "shared" in rows.dtype.names:
        rows = rows[rows["shared"] == 0]
    return rows


def draw_expert_points(axes: Axes, rows: np.ndarray, column: str, label: str) -> None:
    """A point per (layer, expert): a column against its tokens."""
    drawn = np.isfinite(rows[column].astype(np.float64))
    points = axes.scatter(rows["tokens"][drawn], rows[column][drawn], c=rows["layer"][drawn], cmap=MAGNITUDES, s=14,
                          alpha=0.85, linewidths=0, clip_on=False, zorder=3)  # fmt: skip
    axes.figure.colorbar(points, ax=axes, label="layer", pad=0.02).ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(short_count))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.set_xlabel("tokens of the expert")
    axes.set_ylabel(label)
    axes.set_title(label[0].upper() + label[1:])


EXPERT_COLUMNS = {"outlier_values": "outlier values its tokens carry", "max_output": "largest magnitude it writes"}


def draw_experts(result: Result) -> Drawn:
    expert_load(result)  # or NotDrawn
    rows = None if result.experts is None else routed_rows(result.experts)
    columns = [] if rows is None else [name for name in EXPERT_COLUMNS if name in rows.dtype.names]
    figure, axes = new_figure(5.6 + 4.2 * len(columns), 4.4, ncols=1 + len(columns))
    draw_load(axes[0], result)
    for place, name in zip(axes[1:], columns):
        draw_expert_points(place, rows, name, EXPERT_COLUMNS[name])
    figure.suptitle(f"{result.label}: experts", x=0.01, ha="left", fontsize=12, fontweight="bold")
    caption = "Tokens sent to each expert, relative to an even spread over the experts of its layer."
    if columns:
        caption += " Points: (layer, expert) pairs."
    else:
        footnote(figure, "The file has no table /experts: outlier values by expert are not shown.")
    return Drawn(f"experts-{result.stem}", "experts", f"{result.label}: experts", caption, figure, result)


# --- ablation ---

ABLATION_COLUMNS = {
    "perplexity": "perplexity",
    "top1_attention": "top-1 attention probability",
    "top1_token": "top-1 token probability",
}
ABLATION_COLOURS = (GREY, VERMILLION, BLUE, GREEN, PURPLE)


def ablation_bars(rows: np.ndarray, column: str) -> list[tuple[str, np.ndarray]]:
    """(variant, values of its draws), in the order of the table."""
    variants = list(dict.fromkeys(rows["variant"].tolist()))
    return [(str(variant), rows[column][rows["variant"] == variant].astype(np.float64)) for variant in variants]


def draw_bars(axes: Axes, rows: np.ndarray, column: str) -> None:
    """Mean of each variant's draws, and the draws as points."""
    bars = ablation_bars(rows, column)
    for place, (_, values) in enumerate(bars):
        values = values[np.isfinite(values)]
        if not len(values):
            axes.text(place, 0, "not computed", rotation=90, ha="center", va="bottom", fontsize=8)
            continue
        axes.bar(place, values.mean(), width=0.62, color=ABLATION_COLOURS[place % len(ABLATION_COLOURS)], alpha=0.85)
        axes.annotate(f"{values.mean():#.4g}", (place, values.max()), xytext=(0, 8), textcoords="offset points",
                      ha="center", fontsize=8,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6})  # fmt: skip
        if len(values) > 1:
            spread = np.linspace(-0.18, 0.18, len(values))
            axes.plot(place + spread, values, "o", color=BLACK, markersize=3, markerfacecolor="white")
    names = [f"{variant}\n({len(values)} draws)" if len(values) > 1 else variant for variant, values in bars]
    axes.set_xticks(range(len(bars)), names)
    axes.margins(y=0.12)
    axes.grid(False, axis="x")
    axes.set_ylabel(ABLATION_COLUMNS[column])
    axes.set_title(ABLATION_COLUMNS[column].capitalize())


def draw_ablation(result: Result) -> Drawn:
    if result.ablation is None or not len(result.ablation):
        raise NotDrawn("the run did no ablation (no table /ablation)")
    columns = [name for name in ABLATION_COLUMNS if name in result.ablation.dtype.names]
    figure, axes = new_figure(1.4 + 3.2 * len(columns), 4.0, ncols=len(columns))
    for place, name in zip(axes, columns):
        draw_bars(place, result.ablation, name)
    figure.suptitle(f"{result.label}: ablation", x=0.01, ha="left", fontsize=12, fontweight="bold")
    caption = "Each variant of the run: mean over its draws; points are the draws where there are several."
    return Drawn(f"ablation-{result.stem}", "ablation", f"{result.label}: ablation", caption, figure, result)


MODEL_FIGURES: dict[str, Callable[[Result], Drawn]] = {
    "heatmap": draw_heat_map,
    "magnitudes": draw_magnitudes,
    "experts": draw_experts,
    "ablation": draw_ablation,
}
