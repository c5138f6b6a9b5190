"""What all figures of the study share: palette, colours of the models, fonts, axes. Needs matplotlib."""

from __future__ import annotations

import dataclasses
import math
import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from study_results import Result

# Okabe and Ito's colours that can be told apart by the colour blind; their yellow is too pale for lines on white.
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK = "#E69F00", "#56B4E9", "#000000"
GREY, PALE = "#767676", "#E6E6E6"
MODEL_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MOE_MARKERS, DENSE_MARKERS = "o^Dv", "sPX*"
CLASS_COLOURS = {"SYSTEMATIC": VERMILLION, "PROBABILISTIC": BLUE, "NONE": GREY}
CLASS_MARKERS = {"SYSTEMATIC": "v", "PROBABILISTIC": "o"}
MAGNITUDES = "viridis"  # colour map; its order also shows in grey
DPI = 120

STYLE = {
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
    "savefig.dpi": DPI,
    "text.parse_math": False,  # names may have dollar signs
}


class NotDrawn(Exception):
    """Why a figure cannot be made of these results."""


@dataclasses.dataclass
class Drawn:
    name: str  # of the file, without suffix
    kind: str  # one of plot.py's names
    title: str
    caption: str
    figure: Figure
    result: Result | None = None  # of a figure of one model


@dataclasses.dataclass
class Look:
    """How a model looks in every figure."""

    colour: str
    marker: str


def looks(results: list[Result]) -> dict[str, Look]:
    """By label; colours go by the order of the results, markers tell Mixture-of-Experts from dense models."""
    found: dict[str, Look] = {}
    laps: dict[tuple[str, str], int] = {}  # how often a colour was used with these markers
    for i, result in enumerate(results):
        markers = DENSE_MARKERS if result.is_dense else MOE_MARKERS
        colour = MODEL_COLOURS[i % len(MODEL_COLOURS)]
        lap = laps[colour, markers] = laps.get((colour, markers), -1) + 1
        found[result.label] = Look(colour, markers[lap % len(markers)])
    return found


def new_figure(width: float, height: float, **subplots) -> tuple[Figure, list[Axes]]:
    """A figure in inches and its axes, row by row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    return figure, list(figure.subplots(squeeze=False, **subplots).flat)


def footnote(figure: Figure, text: str) -> None:
    if text:
        width = int(figure.get_size_inches()[0] * 14)
        figure.supxlabel(textwrap.fill(text, width), x=0.01, ha="left", fontsize=8, color="#444444")


def plain(value: float, _position: int | None = None) -> str:
    return f"{value:g}"


def short_count(value: float, _position: int | None = None) -> str:
    """1500000 as 1.5M."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def log_axis(axis, values: list[float], write=plain) -> None:
    """A logarithmic axis around the values, with labels enough for a narrow range."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = max(0.06 * (high - low), 0.08)
    low, high = low - margin, high + margin
    axis.set_view_interval(10**low, 10**high, ignore=True)
    steps = (1, 2, 5) if high - low < 2.5 else (1,)
    if high - low < 0.8:
        steps = (1, 1.5, 2, 2.5, 3, 4, 5, 7)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(write))
    axis.set_minor_formatter(NullFormatter())
