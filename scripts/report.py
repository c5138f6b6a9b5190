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
import numpy as np  # noqa: E402
from plot import draw_all  # noqa: E402
from study_finding import dead_experts, finding, layer_agreement  # noqa: E402
from study_growth import EXPERTS_SHOWN, Growth, growth_of_features  # noqa: E402
from study_results import CLASSES, BadInput, Parser, Result, fail, read_results  # noqa: E402
from study_style import STYLE, Drawn, short_count  # noqa: E402

PAGE = pathlib.Path(__file__).with_name("report_page.html")
FEATURES = 100
EXPERTS = 20
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
    "layer_agreement": Column("layer agreement %", "mean share of layers hit, over its strongest features", percent),
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
    "first_token_share": Column("first token %", "part of its outlier values that are at position 0", percent),
    "share": Column("share %", "part of all outlier values of the model", percent),
    "sequences_qualified": Column("sequences", "sequences in which it qualifies alone", count),
    "qualifies_share": Column("qualifies %", "bootstrap draws in which it qualifies", percent),
    "systematic_share": Column("systematic %", "bootstrap draws in which it is systematic", percent),
}

AGREEMENT_COLUMNS = {
    "label": Column("model", "name of the model", str, False),
    "classification": Column("class", "the highest class that one of its features has", str, False),
    "layer_agreement": Column("layer agreement %", "mean of the shares of layers that these features hit", percent),
    "features": Column("strongest features", "up to five that qualify, largest magnitude first", str, False),
    "layers": Column("their layers %", "share of the layers that each of them hits", str, False),
}

ABLATION_COLUMNS = {
    "variant": Column("variant", "INTACT: as it is; FEATURES: no outlier features; RANDOM: no others", str, False),
    "draw": Column("draw", "of random features", count),
    "n_features": Column("zeroed", "features set to 0 at every site", count),
    "perplexity": Column("perplexity", "exp of the mean next-token loss", four_digits),
    "nll_mean": Column("loss", "mean negative log-likelihood of the next tokens, in nats", four_digits),
    "top1_attention": Column("top-1 attention %", "largest probability of an attention softmax, mean", percent),
    "top1_token": Column("top-1 token %", "probability of the likeliest next token, mean", percent),
    "features": Column("features", "the features set to 0", str, False),
}  # fmt: skip

GROWTH_COLUMNS = {
    "feature": Column("feature", "hidden dimension", count),
    "layer": Column("layer", "from 0", count),
    "expert": Column("expert", "from 0; shared: the one that gets every token", str, False),
    "growth": Column("growth", "what it adds to the sum of the feature's squares over all tokens", four_digits),
    "share": Column("of layer %", "part of what all experts of the layer add", percent),
    "share_of_total": Column("of all layers %", "part of what all layers with experts add", percent),
}

DEAD_COLUMNS = {
    "layer": Column("layer", "from 0", count),
    "dead": Column("dead experts", "routed experts that got no token", count),
    "experts": Column("which", "their numbers, from 0", str, False),
}

EXPERT_COLUMNS = {
    "layer": Column("layer", "from 0", count),
    "expert": Column("expert", "from 0; shared: the one that gets every token", str, False),
    "tokens": Column("tokens", "tokens that it got", count),
    "outlier_values": Column("outlier values", "that its tokens have at ln_mlp", count),
    "outlier_tokens": Column("outlier tokens", "of its tokens those with an outlier value at ln_mlp", count),
    "max_output": Column("largest output", "largest magnitude of its down projection's output", four_digits),
    "max_sequence": Column("sequence", "where that is", count),
    "max_position": Column("position", "where that is", count),
    "max_token": Column("token", "the token id there", count),
}


def model_value(result: Result, name: str) -> Value:
    if name == "label":
        return Value(result.label)
    if name == "classification":
        return Value(result.classification)
    if name == "layer_agreement":
        return Value(layer_agreement(result).layer_agreement)
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


def listed(numbers: list[object]) -> str:
    return ", ".join(str(number) for number in numbers)


def agreement_row(result: Result) -> dict[str, Value]:
    agreement = layer_agreement(result)
    return {
        "label": Value(result.label),
        "classification": Value(result.classification),
        "layer_agreement": Value(agreement.layer_agreement),
        "features": Value(listed(agreement.features["feature"].tolist())),
        "layers": Value(listed([percent(value) for value in agreement.features["block_percentage"]])),
    }


def ablation_features(result: Result, row: object) -> str:
    rows = result.ablation_features
    if rows is None:
        return ""
    return listed(rows["feature"][(rows["variant"] == row["variant"]) & (rows["draw"] == row["draw"])].tolist())


def ablation_row(result: Result, row: object) -> dict[str, Value]:
    found = {name: Value(row[name]) for name in ABLATION_COLUMNS if name != "features"}
    found["variant"] = Value(str(row["variant"]))
    found["draw"] = Value(row["draw"] if row["draw"] >= 0 else None)
    return found | {"features": Value(ablation_features(result, row))}


def growth_rows(grown: Growth) -> list[dict[str, Value]]:
    rows = [{name: Value(row[name]) for name in ("feature", "layer", "growth", "share")} for row in grown.experts]
    for row, expert in zip(rows, grown.experts):
        row["expert"] = Value("shared" if expert["expert"] == -1 else str(expert["expert"]))
        row["share_of_total"] = Value(expert["growth"] / grown.total if grown.total > 0 else None)
    return rows


def dead_rows(dead: list[tuple[int, int]]) -> list[dict[str, Value]]:
    layers: dict[int, list[object]] = {}
    for layer, expert in dead:
        layers.setdefault(layer, []).append(expert)
    return [
        {"layer": Value(layer), "dead": Value(len(experts)), "experts": Value(listed(experts))}
        for layer, experts in layers.items()
    ]


def expert_rows(result: Result) -> list[dict[str, Value]]:
    """Those with the largest outputs, of equal ones the first of the table."""
    order = np.argsort(-result.experts["max_output"], kind="stable")[:EXPERTS]
    rows = result.experts[order]
    return [
        {name: Value("shared" if name == "expert" and row["shared"] else row[name]) for name in EXPERT_COLUMNS}
        for row in rows[rows["tokens"] > 0]
    ]


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
    caption = "Do a model's strongest outlier features hit the same layers? At 100 % each of them hits every layer."
    page.add("<h3>Layer agreement</h3>")
    page.add_table("agreement", caption, AGREEMENT_COLUMNS, [agreement_row(result) for result in results])
    if len(results) > 1:
        page.add("<h3>Architecture or size</h3>", f'<p id="finding">{html.escape(finding(results))}</p>')
    page.add(pictures(figures, None))


def add_ablation(page: Page, number: int, result: Result) -> None:
    if result.ablation is None:
        return
    page.add("<h3>Without outlier features</h3>")
    if not len(result.ablation):
        page.add("<p>No feature qualifies, so none was set to 0.</p>")
        return
    caption = "The model again, with features set to 0 at every site: its outlier features, and as many random others."
    rows = [ablation_row(result, row) for row in result.ablation]
    page.add_table(f"ablation-{number}", caption, ABLATION_COLUMNS, rows)


def add_growth(page: Page, number: int, result: Result) -> None:
    rows = [row for grown in growth_of_features(result) for row in growth_rows(grown)]
    if rows:
        caption = f"Growth of the outlier features by experts: the {EXPERTS_SHOWN} that add most to each."
        page.add_table(f"growth-{number}", caption, GROWTH_COLUMNS, rows)


def add_experts(page: Page, number: int, result: Result) -> None:
    dead = dead_experts(result)
    if dead is None:
        return
    routed = int((result.experts["shared"] == 0).sum())
    page.add("<h3>Experts</h3>")
    if dead:
        caption = f"Dead experts: {len(dead)} of {routed} got no token."
        page.add_table(f"dead-{number}", caption, DEAD_COLUMNS, dead_rows(dead))
    else:
        page.add(f"<p>No dead experts: each of the {routed} got a token.</p>")
    rows = expert_rows(result)
    caption = f"The {len(rows)} experts with the largest outputs."
    page.add_table(f"experts-{number}", caption, EXPERT_COLUMNS, rows)


def criteria_text(result: Result) -> str:
    names = ("min_layer_fraction", "min_position_fraction", "systematic_fraction")
    if not all(name in result.attributes for name in names):
        return f"threshold {result.threshold:g}"
    layers, positions, systematic = (result.number(name) for name in names)
    return (
        f"threshold {result.threshold:g}; qualifies with {layers:g} of the sites and {positions:g} of the positions; "
        f"systematic with {systematic:g} of the layers"
    )


def add_model(page: Page, number: int, result: Result, figures: list[Drawn]) -> None:
    attributes = result.attributes
    dataset = f"; tokens of {html.escape(str(attributes['dataset']))}" if attributes.get("dataset") else ""
    page.add(
        f'<h2 id="model-{number}">{html.escape(result.label)}: '
        f'<span class="{result.classification}">{result.classification}</span></h2>',
        f'<p class="soft">{html.escape(result.name)}, file {html.escape(result.path.name)}; '
        f"{attributes['n_layers']} layers, hidden size {attributes['hidden_size']}; "
        f"{html.escape(str(attributes['precision']))} on {html.escape(str(attributes['device']))}; "
        f"finished {html.escape(str(attributes['finished']))}{dataset}; {criteria_text(result)}</p>",
    )
    rows, more = shown_features(result, page.features)
    what = "Outlier features" if result.qualified.any() else "No feature qualifies. All features with outlier values"
    caption = f"{what}, largest magnitude first" + (f"; {more} more: --features 0 shows all" if more else "") + "."
    if rows:
        page.add_table(f"features-{number}", caption, feature_columns(result), rows)
    else:
        page.add(f"<p>No value reached the threshold {result.threshold:g}.</p>")
    add_ablation(page, number, result)
    add_growth(page, number, result)
    add_experts(page, number, result)
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
