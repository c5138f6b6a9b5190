#!/usr/bin/env python3
"""Make one HTML page of a sweep: its tables and figures in one file that needs nothing else."""

from __future__ import annotations

import argparse
import base64
import dataclasses
import html
import io
import json
import math
import pathlib
import re
import sys
from collections.abc import Callable

import venv_python

if __name__ == "__main__":
    venv_python.need("h5py", "matplotlib", "numpy")

import matplotlib as mpl  # noqa: E402
from plot import draw_all  # noqa: E402
from study_results import CLASSES, BadInput, Parser, Result, fail, read_results  # noqa: E402
from study_style import STYLE, Drawn, short_count  # noqa: E402

PAGE = pathlib.Path(__file__).with_name("report_page.html")
FEATURES = 100
DETAILS = """examples:
  scripts/report.py results/demo.h5 -o results/demo.html
  scripts/report.py results/*.h5 -o results/sweep.html --title "Seven models" --features 0
"""


@dataclasses.dataclass
class Column:
    title: str
    meaning: str
    write: Callable[[object], str]
    is_number: bool = True


@dataclasses.dataclass
class Value:
    """What stands in a cell, and its interval, NaN where there is none."""

    value: object
    low: float = math.nan
    high: float = math.nan


# --- cells ---


def percent(value: object) -> str:
    return f"{100 * float(value):.1f}"


def two_digits(value: object) -> str:
    return f"{float(value):.2f}"


def four_digits(value: object) -> str:
    return f"{float(value):.4g}"


def count(value: object) -> str:
    return f"{float(value):g}" if isinstance(value, float) else str(value)


def python_value(value: object) -> object:
    """A number of NumPy as int or float: a float32 with the digits of a float64, as the program's JSON has it."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and math.isnan(value) else value


def exact(value: object) -> str:
    """The value as JavaScript reads it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return "Infinity" if value == math.inf else "-Infinity" if value == -math.inf else repr(value)
    return str(value)


def cell(column: Column, item: Value) -> str:
    value = python_value(item.value)
    shown = "-" if value is None else html.escape(column.write(value))
    attributes = f'data-value="{html.escape(exact(value))}"'
    if not column.is_number and value in CLASSES:
        shown = f'<span class="{value}">{shown}</span>'
    if math.isfinite(item.low) and math.isfinite(item.high):
        attributes += f' data-low="{item.low!r}" data-high="{item.high!r}"'
        shown += f' <span class="interval">{column.write(item.low)} to {column.write(item.high)}</span>'
    return f"<td {attributes}{number_class(column)}>{shown}</td>"


def number_class(column: Column) -> str:
    return ' class="number"' if column.is_number else ""


def table(identity: str, caption: str, columns: dict[str, Column], rows: list[dict[str, Value]]) -> str:
    heads = "".join(
        f'<th scope="col" data-name="{name}" title="{html.escape(column.meaning)}"{number_class(column)}>'
        f'<button type="button">{html.escape(column.title)}</button></th>'
        for name, column in columns.items()
    )
    body = "\n".join(
        "<tr>" + "".join(cell(column, row[name]) for name, column in columns.items()) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table id="{identity}"><caption>{html.escape(caption)}</caption>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


# --- tables ---

MODEL_COLUMNS = {
    "label": Column("model", "name of the model", str, False),
    "architecture": Column("architecture", "model type of its config.json", str, False),
    "parameters": Column("parameters", "all parameters", short_count),
    "active_parameters": Column("active", "parameters that a token uses", short_count),
    "n_experts": Column("experts", "experts of a layer that routes", count),
    "experts_per_token": Column("top-k", "experts that a token is sent to", count),
    "classification": Column("class", "the highest class that one of its features has", str, False),
    "outlier_features": Column("outlier features", "distinct features that qualify, all sequences together", count),
    "systematic_features": Column("systematic", "of them those that hit every layer", count),
    "sequence_rows": Column("sequence rows", "(sequence, feature) pairs that qualify: as the reference counts", count),
    "mean_layer_percentage": Column("mean layer %", "mean share of sites hit, over the outlier features", percent),
    "median_layer_percentage": Column("median layer %", "likewise, the median", percent),
    "mean_seq_percentage": Column("mean position %", "mean share of positions hit, over the outlier features", percent),
    "median_seq_percentage": Column("median position %", "likewise, the median", percent),
    "perplexity": Column("perplexity", "exp of the mean next-token loss", four_digits),
    "threshold": Column("threshold", "magnitude from which a value is an outlier value", count),
    "precision": Column("precision", "of the run", str, False),
    "n_sequences": Column("sequences", "sequences analysed", count),
    "sequence_length": Column("length", "tokens of a sequence", count),
}  # fmt: skip

FEATURE_COLUMNS = {
    "feature": Column("feature", "hidden dimension", count),
    "classification": Column("class", "NONE: does not qualify", str, False),
    "max_magnitude": Column("max magnitude", "largest magnitude of its outlier values", two_digits),
    "block_percentage": Column("layers %", "layers hit at either of their two sites", percent),
    "layer_percentage": Column("sites %", "sites hit: what the reference study calls layers", percent),
    "seq_percentage": Column("positions %", "(sequence, position) pairs hit", percent),
    "total_occurrences": Column("occurrences", "outlier values over all sites", count),
    "positive": Column("positive", "of them above 0", count),
    "negative": Column("negative", "of them below 0", count),
    "q1": Column("q1", "first quartile of the signed outlier values", two_digits),
    "median": Column("median", "median of the signed outlier values", two_digits),
    "q3": Column("q3", "third quartile of the signed outlier values", two_digits),
    "share": Column("share %", "part of all outlier values of the model", percent),
    "sequences_qualified": Column("sequences", "sequences in which it qualifies alone", count),
    "qualifies_share": Column("qualifies %", "bootstrap draws in which it qualifies", percent),
    "systematic_share": Column("systematic %", "bootstrap draws in which it is systematic", percent),
}


def model_value(result: Result, name: str) -> Value:
    if name == "label":
        return Value(result.label)
    if name == "classification":
        return Value(result.classification)
    for values in (result.summary, result.perplexity):
        if name in values:
            return Value(values[name], *result.interval(name))
    return Value(result.attributes.get(name))


def model_rows(results: list[Result]) -> list[dict[str, Value]]:
    return [{name: model_value(result, name) for name in MODEL_COLUMNS} for result in results]


def feature_value(row: object, name: str) -> Value:
    if name == "classification":
        return Value(CLASSES[int(row[name])])
    if f"{name}_low" in row.dtype.names:
        return Value(row[name], float(row[f"{name}_low"]), float(row[f"{name}_high"]))
    return Value(row[name])


def shown_features(result: Result, limit: int) -> tuple[list[dict[str, Value]], int]:
    """Rows of the features that qualify, or of all if none does, and how many more there are; limit 0: all."""
    rows = result.features[result.qualified] if result.qualified.any() else result.features
    shown = rows[:limit] if limit else rows
    names = feature_columns(result)
    return [{name: feature_value(row, name) for name in names} for row in shown], len(rows) - len(shown)


def feature_columns(result: Result) -> dict[str, Column]:
    return {name: column for name, column in FEATURE_COLUMNS.items() if name in result.features.dtype.names}


# --- the page ---


def picture(drawn: Drawn) -> str:
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        drawn.figure.savefig(buffer, format="png", metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    width = round(96 * drawn.figure.get_size_inches()[0])
    return (
        f'<figure style="width: {width}px"><img src="data:image/png;base64,{data}" alt="{html.escape(drawn.title)}">'
        f"<figcaption>{html.escape(drawn.caption)}</figcaption></figure>"
    )


def pictures(every: list[Drawn], result: Result | None) -> str:
    mine = [picture(drawn) for drawn in every if drawn.result is result]
    return '<div class="figures">\n' + "\n".join(mine) + "\n</div>" if mine else ""


class Page:
    """Collects the parts of the page, and rows and columns of its tables, which its script checks."""

    def __init__(self, features: int):
        self.features = features
        self.parts: list[str] = []
        self.shapes: dict[str, tuple[int, int]] = {}

    def add(self, *parts: str) -> None:
        self.parts += parts

    def add_table(self, identity: str, caption: str, columns: dict[str, Column], rows: list[dict[str, Value]]) -> None:
        self.shapes[identity] = (len(rows), len(columns))
        self.add(table(identity, caption, columns, rows))

    def text(self, title: str) -> str:
        """The template, with what goes into it in one pass: nothing that is put in is looked at again."""
        pieces = {"TITLE": html.escape(title), "BODY": "\n".join(self.parts), "SHAPES": json.dumps(self.shapes)}
        return re.sub("@(TITLE|BODY|SHAPES)@", lambda match: pieces[match[1]], PAGE.read_text(encoding="utf-8"))


def add_overview(page: Page, results: list[Result], figures: list[Drawn]) -> None:
    links = "".join(
        f'<li><a href="#model-{i}">{html.escape(result.label)}</a></li>' for i, result in enumerate(results)
    )
    page.add(f'<nav aria-label="models"><ul>{links}</ul></nav>', "<h2>Across models</h2>")
    caption = "One row per result file; small print: 95 % bootstrap intervals. Click on a heading to sort."
    page.add_table("models", caption, MODEL_COLUMNS, model_rows(results))
    page.add(pictures(figures, None))


def add_model(page: Page, number: int, result: Result, figures: list[Drawn]) -> None:
    attributes = result.attributes
    page.add(
        f'<h2 id="model-{number}">{html.escape(result.label)}: '
        f'<span class="{result.classification}">{result.classification}</span></h2>',
        f'<p class="soft">{html.escape(result.name)}, file {html.escape(result.path.name)}; '
        f"{attributes['n_layers']} layers, hidden size {attributes['hidden_size']}; "
        f"{html.escape(str(attributes['precision']))} on {html.escape(str(attributes['device']))}; "
        f"finished {html.escape(str(attributes['finished']))}</p>",
    )
    rows, more = shown_features(result, page.features)
    what = "Outlier features" if result.qualified.any() else "No feature qualifies. All features with outlier values"
    caption = f"{what}, largest magnitude first" + (f"; {more} more: --features 0 shows all" if more else "") + "."
    if rows:
        page.add_table(f"features-{number}", caption, feature_columns(result), rows)
    else:
        page.add(f"<p>No value reached the threshold {result.threshold:g}.</p>")
    page.add(pictures(figures, result))
    page.add(f"<details><summary>Config of the run</summary><pre>{html.escape(result.config)}</pre></details>")


def make_page(results: list[Result], title: str, features: int) -> str:
    every = list(draw_all(results))
    figures = [drawn for drawn in every if isinstance(drawn, Drawn)]
    missing = [item for item in every if not isinstance(item, Drawn)]
    page = Page(features)
    page.add(f"<h1>{html.escape(title)}</h1>")
    page.add(
        "<p>Outlier features after Dettmers et al. 2022 (arXiv:2208.07339): hidden dimensions with values of large "
        "magnitude at many layer norms and positions. Mean and median run over the outlier features of a model.</p>"
    )
    methods = dict.fromkeys(str(result.attributes.get("bootstrap_method", "")) for result in results)
    page.add(*(f'<p class="soft">Intervals: {html.escape(method)}.</p>' for method in methods if method))
    add_overview(page, results, figures)
    for number, result in enumerate(results):
        add_model(page, number, result, figures)
    if missing:
        items = "".join(f"<li>{html.escape(what)}: {html.escape(reason)}</li>" for what, reason in missing)
        page.add(f"<h2>Figures left out</h2><ul>{items}</ul>")
    return page.text(title)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="report.py", description=__doc__, epilog=DETAILS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=pathlib.Path, metavar="FILE.h5", help="results of moe-outliers run")
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, metavar="PAGE.html", help="the page")
    parser.add_argument("--title", default="Outlier features", help="heading (default: Outlier features)")
    parser.add_argument("--features", type=int, default=FEATURES, metavar="N",
                        help=f"features per model, 0 = all (default: {FEATURES})")  # fmt: skip
    options = parser.parse_args(arguments)
    if options.features < 0:
        parser.error(f"number of features out of range (--features {options.features}): give 0 or more")
    return options


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    try:
        page = make_page(read_results(options.files), options.title, options.features)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(page, encoding="utf-8", errors="replace")
    except BadInput as error:
        fail("report.py", error)
    except OSError as error:
        fail("report.py", BadInput(f"cannot write the page ({options.output}): {error.strerror}"))
    print(options.output)


if __name__ == "__main__":
    main(sys.argv[1:])
