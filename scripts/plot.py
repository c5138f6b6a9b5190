#!/usr/bin/env python3
"""Draw the figures of the study from result files."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Iterator

import venv_python

if __name__ == "__main__":
    venv_python.need("h5py", "matplotlib", "numpy")

import matplotlib as mpl  # noqa: E402
from study_comparisons import ABSCISSAS, draw_comparison  # noqa: E402
from study_comparisons import KINDS as COMPARISONS  # noqa: E402
from study_figures import MODEL_FIGURES  # noqa: E402
from study_results import BadInput, Parser, Result, fail, read_results  # noqa: E402
from study_style import DPI, STYLE, Drawn, NotDrawn  # noqa: E402

NAMES = (*MODEL_FIGURES, *COMPARISONS)
FORMATS = ("png", "pdf")
DETAILS = """figures:
  of each model (NAME-FILE.png)
    heatmap     largest magnitude of each feature at each site; outlier features are marked
    magnitudes  distribution of the outlier values of each feature, and of all values at each site
    experts     load of each expert, and the outlier values that its tokens carry
    ablation    perplexity and top-1 probabilities of each variant
  across models (NAME-parameters.png, NAME-active.png, NAME-perplexity.png)
    layers      mean layers affected, against total parameters, active parameters, perplexity
    positions   mean positions affected, likewise
    figure3     both, as figure 3 of Dettmers et al. 2022

What a file has no data for is left out, with a line on stderr. Models keep their colours from figure to figure, by the
order of the files.

examples:
  scripts/plot.py results/demo.h5 -o figures
  scripts/plot.py results/*.h5 -o figures --only figure3 --only heatmap --format png
  scripts/plot.py results/demo.h5 --show-in-terminal
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="plot.py", description=__doc__, epilog=DETAILS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=pathlib.Path, metavar="FILE.h5", help="results of moe-outliers run")
    parser.add_argument(
        "-o", "--output", type=pathlib.Path, metavar="DIR", help="folder of the figures, made if absent"
    )
    parser.add_argument(
        "--only", action="append", choices=NAMES, metavar="NAME", help="draw only these (may be repeated)"
    )
    parser.add_argument("--format", default="png,pdf", metavar="LIST", help="png, pdf or both (default: png,pdf)")
    parser.add_argument("--show-in-terminal", action="store_true", help="also draw them as text, by plotext")
    options = parser.parse_args(arguments)
    options.formats = options.format.split(",")
    if not set(options.formats) <= set(FORMATS):
        parser.error(f"unknown format ({options.format}): give png, pdf or png,pdf")
    if not options.output and not options.show_in_terminal:
        parser.error("no folder for the figures (-o DIR)")
    return options


def draw_all(results: list[Result], only: list[str] | None = None) -> Iterator[Drawn | tuple[str, str]]:
    """Each figure, or (what, why) of one that cannot be drawn."""
    wanted = only or NAMES
    jobs = [
        (f"{name} of {result.label}", lambda draw=draw, result=result: draw(result))
        for result in results
        for name, draw in MODEL_FIGURES.items()
        if name in wanted
    ]
    jobs += [
        (f"{kind} against {label}", lambda kind=kind, abscissa=abscissa: draw_comparison(results, kind, abscissa))
        for kind in COMPARISONS
        for abscissa, (_, label) in ABSCISSAS.items()
        if kind in wanted
    ]
    for what, draw in jobs:
        try:
            with mpl.rc_context(STYLE):
                yield draw()
        except NotDrawn as reason:
            yield what, str(reason)


def save(drawn: Drawn, folder: pathlib.Path, formats: list[str]) -> None:
    """The same results give the same bytes: no dates in the files."""
    for suffix in formats:
        path = folder / f"{drawn.name}.{suffix}"
        metadata = {"Title": drawn.title}
        metadata |= {"Software": None} if suffix == "png" else {"CreationDate": None, "Creator": None, "Producer": None}
        with mpl.rc_context(STYLE):
            drawn.figure.savefig(path, dpi=DPI, metadata=metadata)
        print(path)


def show(results: list[Result], only: list[str] | None) -> None:
    try:
        import study_terminal
    except ImportError:
        print("plot.py: note: nothing is shown in the terminal: pip install plotext into this Python "
              f"({sys.executable})", file=sys.stderr)  # fmt: skip
        return
    study_terminal.show(results, only or list(NAMES))


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    try:
        results = read_results(options.files)
        if options.output:
            write(results, options)
        if options.show_in_terminal:
            show(results, options.only)
    except BadInput as error:
        fail("plot.py", error)
    except OSError as error:
        fail("plot.py", BadInput(f"cannot write ({error.filename or options.output}): {error.strerror}"))


def write(results: list[Result], options: argparse.Namespace) -> None:
    options.output.mkdir(parents=True, exist_ok=True)
    written = 0
    for drawn in draw_all(results, options.only):
        if isinstance(drawn, Drawn):
            save(drawn, options.output, options.formats)
            written += 1
        else:
            print(f"plot.py: note: no figure {drawn[0]}: {drawn[1]}", file=sys.stderr)
    if not written:
        raise BadInput(f"nothing to draw ({', '.join(map(str, options.files))}): see the notes above")


if __name__ == "__main__":
    main(sys.argv[1:])
