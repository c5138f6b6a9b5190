"""scripts/plot.py: files that can be opened, and what they show is what the results hold."""

# cores: 1

import dataclasses
import pathlib
import struct
import subprocess
import sys

import h5py
import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

import helpers
import study
import study_comparisons  # of scripts/, which study has put in the path
import study_figures
import study_results
import study_style

MODEL_KINDS = ("heatmap", "magnitudes", "experts", "ablation")
ABSCISSAS = ("parameters", "active", "perplexity")
STORED = [name for name, (_, _, activations) in study.RESULTS.items() if activations]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return study.make_results(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def results(files):
    return {result.stem: result for result in study_results.read_results(list(files.values()))}


def site_values(path):
    """[2L, N, S, H], where every value is stored."""
    with h5py.File(path) as file:
        return helpers.site_tensors(file["activations"], int(file.attrs["n_layers"]))


# --- files ---


def expected_names(files):
    without = {("no_values", "heatmap"), ("dense", "experts")}
    without |= {(name, "ablation") for name in files if name != "studied"}
    names = {f"{kind}-{name}" for kind in MODEL_KINDS for name in files if (name, kind) not in without}
    return names | {f"{kind}-{abscissa}" for kind in ("layers", "positions", "figure3") for abscissa in ABSCISSAS}


def assert_png(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", data[16:24])
    assert 600 <= width <= 3000 and 300 <= height <= 2000
    assert len(data) < 150_000


def assert_pdf(path):
    data = path.read_bytes()
    assert data.startswith(b"%PDF-1.") and data.rstrip().endswith(b"%%EOF")
    assert data.count(b"/Type /Page ") + data.count(b"/Type /Page\n") == 1
    assert b"CreationDate" not in data


def test_all_figures(files, tmp_path):
    """One file per figure and format, the same bytes each time; what cannot be drawn is named."""
    done = study.run_script("plot.py", *files.values(), "-o", tmp_path / "new" / "figures")
    written = [pathlib.Path(line) for line in done.stdout.splitlines()]
    assert {path.stem for path in written} == expected_names(files)
    assert sorted(written) == sorted((tmp_path / "new" / "figures").iterdir())
    assert len(written) == 2 * len(expected_names(files))
    for path in written:
        (assert_png if path.suffix == ".png" else assert_pdf)(path)
    notes = done.stderr.splitlines()
    assert all(note.startswith("plot.py: note: no figure ") for note in notes)
    assert (
        f"plot.py: note: no figure heatmap of {label(files, 'no_values')}: no value reaches the threshold 1e+30"
        in notes
    )
    assert "plot.py: note: no figure experts of qwen3_a: no layer routes" in notes
    again = study.run_script("plot.py", files["studied"], "-o", tmp_path / "again", "--only", "magnitudes")
    for line in again.stdout.splitlines():
        path = pathlib.Path(line)
        assert path.read_bytes() == (tmp_path / "new" / "figures" / path.name).read_bytes()


def label(files, stem):
    return next(result.label for result in study_results.read_results(list(files.values())) if result.stem == stem)


def test_only_and_format(files, tmp_path):
    arguments = ["--only", "heatmap", "--only", "layers", "--format", "pdf"]
    done = study.run_script("plot.py", files["studied"], "-o", tmp_path, *arguments)
    names = ["heatmap-studied.pdf", *(f"layers-{abscissa}.pdf" for abscissa in ABSCISSAS)]
    assert [pathlib.Path(line).name for line in done.stdout.splitlines()] == names
    assert done.stderr == ""


def test_same_name_in_two_folders(files, tmp_path):
    """Neither figure replaces the other, and the labels tell the models apart."""
    other = tmp_path / "other" / "olmoe.h5"
    other.parent.mkdir()
    other.write_bytes(files["olmoe"].read_bytes())
    arguments = ["--only", "heatmap", "--format", "png"]
    done = study.run_script("plot.py", files["olmoe"], other, "-o", tmp_path, *arguments)
    assert [pathlib.Path(line).name for line in done.stdout.splitlines()] == [
        "heatmap-olmoe.png",
        "heatmap-olmoe-2.png",
    ]
    both = study_results.read_results([files["olmoe"], other])
    assert [result.label for result in both] == ["olmoe_a (olmoe)", "olmoe_a (olmoe-2)"]


def test_odd_names(files, tmp_path):
    odd = study.extend(files["olmoe"], tmp_path / "odd.h5", name="a/$x^{ & <b>_\\frac 50% $")
    arguments = ["--only", "heatmap", "--only", "figure3"]
    done = study.run_script("plot.py", odd, "-o", tmp_path / "out", *arguments)
    assert len(done.stdout.splitlines()) == 2 * 4 and done.stderr == ""


# --- errors ---


@pytest.mark.parametrize(
    "spoil", ("absent", "empty", "text", "truncated", "tokens", "incomplete", "folder", "no_table")
)
def test_bad_file(files, tmp_path, spoil):
    path = tmp_path / "bad.h5"
    data = files["olmoe"].read_bytes()
    if spoil in ("empty", "text", "truncated"):
        path.write_bytes({"empty": b"", "text": b"no result\n" * 99, "truncated": data[: len(data) // 2]}[spoil])
    elif spoil == "tokens":
        path.write_bytes((helpers.REFERENCES / "olmoe_a" / "tokens.h5").read_bytes())
    elif spoil == "folder":
        path.mkdir()
    elif spoil != "absent":
        path.write_bytes(data)
        with h5py.File(path, "a") as file:
            if spoil == "incomplete":
                file.attrs["complete"] = np.int32(0)
            else:
                del file["layers/001/ln_mlp"]
    done = study.run_script("plot.py", files["olmoe"], path, "-o", tmp_path / "out", check=False)
    study.assert_one_line(done, "plot.py", str(path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments, part",
    (([], "-o DIR"), (["-o", "x", "--only", "pie"], "pie"), (["-o", "x", "--format", "png,svg"], "png,svg"),
     (["-o", "/dev/null/x"], "/dev/null/x"), (["-o", "x", "--only", "ablation"], "nothing to draw")),
)  # fmt: skip
def test_bad_usage(files, tmp_path, monkeypatch, arguments, part):
    monkeypatch.chdir(tmp_path)
    done = study.run_script("plot.py", files["olmoe"], *arguments, check=False)
    done.stderr = "".join(line for line in done.stderr.splitlines(True) if not line.startswith("plot.py: note: "))
    study.assert_one_line(done, "plot.py", part)


def test_help_has_examples():
    text = study.run_script("plot.py", "--help").stdout
    assert "examples:" in text and all(kind in text for kind in (*MODEL_KINDS, "layers", "positions", "figure3"))


def test_a_python_without_the_modules():
    """Without them here and in build/venv: one line. The variable is how the second start knows that it is one."""
    program = f"import sys; sys.path.insert(0, {str(study.SCRIPTS)!r}); sys.argv = ['plot.py']; import venv_python;"
    done = subprocess.run(
        [sys.executable, "-B", "-c", program + "venv_python.need('h5py', 'no_such_module')"],
        capture_output=True,
        text=True,
        env=helpers.environment(MOE_OUTLIERS_VENV_PYTHON="1"),
    )
    study.assert_one_line(done, "plot.py", "no_such_module", "scripts/setup")
    assert "h5py" not in done.stderr


# --- terminal ---


def test_terminal_without_plotext(files, tmp_path):
    (tmp_path / "plotext.py").write_text("raise ImportError('none here')\n")
    done = study.run_script("plot.py", files["olmoe"], "--show-in-terminal", PYTHONPATH=str(tmp_path))
    assert done.stdout == "" and done.stderr.count("\n") == 1 and "pip install plotext" in done.stderr


def test_terminal(files):
    pytest.importorskip("plotext", reason="plotext is not installed (optional)")
    done = study.run_script("plot.py", files["olmoe"], files["studied"], "--show-in-terminal", "--only", "heatmap")
    with h5py.File(files["olmoe"]) as file:
        rows = file["features"][:20]
    for row in rows:
        mark = " *" if row["classification"] else ""
        assert f"{row['feature']}{mark}┤" in done.stdout


# --- what the figures show ---


@pytest.mark.parametrize("name", STORED)
def test_heat_map_is_the_maxima_of_all_values(files, results, name):
    features, maxima = study_figures.heat_map(results[name], columns=10**6)
    values = np.abs(site_values(files[name])).max(axis=(1, 2))
    expected = np.where(values >= results[name].threshold, values, np.nan)
    found = np.flatnonzero(~np.isnan(expected).all(axis=0))
    assert sorted(features) == found.tolist()
    np.testing.assert_array_equal(maxima, expected[:, features])
    largest = np.nanmax(maxima, axis=0)
    assert (np.diff(largest) <= 0).all()


@pytest.mark.parametrize("name", ("olmoe", "dense", "none_qualifies"))
def test_heat_map_as_drawn(results, name):
    result = results[name]
    features, maxima = study_figures.heat_map(result)
    axes = study_figures.draw_heat_map(result).figure.axes[0]
    np.testing.assert_array_equal(np.ma.filled(axes.images[0].get_array(), np.nan), maxima)
    assert [text.get_text() for text in axes.get_xticklabels()] == [str(feature) for feature in features]
    assert len(features) == min(len(result.features), study_figures.COLUMNS)
    marked = [int(line.get_xdata()[0]) for line in axes.lines]
    assert marked == np.flatnonzero(result.qualified[: len(features)]).tolist()


def test_boxes_are_quantiles_of_all_values(files, results):
    values = site_values(files["gpt_oss"])
    for box in study_figures.boxes(results["gpt_oss"], limit=10**6):
        mine = values[..., int(box["label"])].astype(np.float64).ravel()
        mine = mine[np.abs(mine) >= results["gpt_oss"].threshold]
        expected = np.quantile(mine, (0, 0.25, 0.5, 0.75, 1)).astype(np.float32)
        assert [box[end] for end in ("whislo", "q1", "med", "q3", "whishi")] == expected.tolist()


def test_load_is_relative_to_an_even_spread(files, results):
    with h5py.File(files["olmoe"]) as file:
        tokens = file["routing/expert_tokens"][:].astype(np.float64)
    layers, load = study_figures.expert_load(results["olmoe"])
    assert layers.tolist() == list(range(len(tokens)))
    np.testing.assert_allclose(load, tokens * tokens.shape[1] / tokens.sum(axis=1, keepdims=True), rtol=1e-14)


def test_ablation_bars(files, results):
    with h5py.File(files["studied"]) as file:
        perplexities = file["ablation"]["perplexity"]  # of INTACT, FEATURES, and the draws of RANDOM
    bars = study_figures.ablation_bars(results["studied"].ablation, "perplexity")
    assert [name for name, _ in bars] == ["INTACT", "FEATURES", "RANDOM"]
    assert [len(values) for _, values in bars] == [1, 1, 5]
    np.testing.assert_array_equal(np.concatenate([values for _, values in bars]), perplexities)


@pytest.mark.parametrize("abscissa", ABSCISSAS)
@pytest.mark.parametrize("percentage, column", (("layers", "layer"), ("positions", "seq")))
def test_points_are_the_summaries(files, results, abscissa, percentage, column):
    found, missing = study_comparisons.points(list(results.values()), percentage, abscissa)
    placed = {point.label: point for point in found}
    assert placed.keys() | set(missing) == {result.label for result in results.values()}
    for stem, path in files.items():
        with h5py.File(path) as file:
            x = file["perplexity/perplexity"][()] if "perplexity" in file else np.nan
            if abscissa != "perplexity":
                x = file.attrs.get("parameters" if abscissa == "parameters" else "active_parameters", np.nan)
            y = 100 * file[f"summary/mean_{column}_percentage"][()]
            ends = [f"mean_{column}_percentage_{end}" for end in ("low", "high")]
            interval = [100 * file["summary"][end][()] if end in file["summary"] else np.nan for end in ends]
        point = placed.get(results[stem].label)
        assert (point is None) == bool(np.isnan(x))
        if point is None:
            continue
        assert point.x == x and point.is_empty == bool(np.isnan(y))
        assert point.y == (0 if point.is_empty else y)
        if not point.is_empty:
            np.testing.assert_array_equal(point.y_interval, interval)


def test_error_bars_reach_the_ends_of_the_intervals(results):
    figure = study_comparisons.draw_percentage([results["studied"]], "layers", "perplexity").figure
    drawn = [segment for lines in figure.axes[0].collections for segment in lines.get_segments()]
    ends = {tuple(np.sort(segment[:, axis])) for segment in drawn for axis in (0, 1) if np.ptp(segment[:, axis]) > 0}
    low, high = results["studied"].interval("perplexity")
    below, above = results["studied"].interval("mean_layer_percentage")
    expected = [(low, high), (100 * below, 100 * above)]
    for pair in expected:
        assert any(np.allclose(pair, end, rtol=1e-12) for end in ends), (pair, ends)


def test_models_keep_their_colours(results):
    """Twelve models can be told apart, and adding one changes none before it."""
    one = results["olmoe"]
    many = [dataclasses.replace(one, label=f"model {i}") for i in range(12)]
    look = study_style.looks(many)
    assert len({(each.colour, each.marker) for each in look.values()}) == 12
    assert study_style.looks(many[:5]) == {f"model {i}": look[f"model {i}"] for i in range(5)}


# --- labels ---


def large(result):
    """As of a model of 48 layers with more features than a heat map has columns."""
    count, layers = 60, 48
    random = np.random.default_rng(1)
    features = np.repeat(result.features[:1], count)
    features["feature"] = np.arange(count) + 5000
    features["classification"] = np.arange(count) % 3
    maxima = np.sort(6 + 170 * random.random((2 * layers, count)) ** 8)[:, ::-1]
    sites = np.repeat(result.sites[:2], layers)
    sites["layer"], sites["site"] = np.repeat(np.arange(layers), 2), np.tile((0, 1), layers)
    return dataclasses.replace(
        result,
        label="a-model-with-a-long-name-80B-A3B",
        attributes=result.attributes | {"n_layers": layers},
        features=features,
        sites=sites,
        maxima=maxima,
        lowest=np.full(count, -20.0),
        highest=np.full(count, 170.0),
        expert_tokens=random.integers(0, 99, (layers, 512)),
    )


def texts(axes):
    labels = [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label, axes.yaxis.label]
    titles = [axes._left_title, axes.title, *axes.texts]
    return [text for text in labels + titles if text.get_text() and text.get_visible()]


def in_sight(axes, text):
    """Not a tick label beyond the ends of its axis, which is not drawn."""
    for axis, place in ((axes.xaxis, 0), (axes.yaxis, 1)):
        if text in axis.get_ticklabels():
            low, high = sorted(axis.get_view_interval())
            return low <= text.get_position()[place] <= high
    return True


def assert_legible(figure):
    """No two texts of a panel overlap, and none leaves the figure."""
    FigureCanvasAgg(figure).draw()
    for axes in figure.axes:
        drawn = [text for text in texts(axes) if in_sight(axes, text)]
        boxes = [text.get_window_extent().shrunk(0.95, 0.8) for text in drawn]
        for i, box in enumerate(boxes):
            assert box.x0 >= 0 and box.y0 >= 0, drawn[i]
            assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, drawn[i]
            for j in range(i):
                assert not box.overlaps(boxes[j]), (drawn[i], drawn[j])


@pytest.mark.parametrize("kind", MODEL_KINDS)
@pytest.mark.parametrize("name", ("olmoe", "dense", "no_values", "studied", "large"))
def test_labels_of_a_model(results, name, kind):
    result = large(results["studied"]) if name == "large" else results[name]
    try:
        with matplotlib.rc_context(study_style.STYLE):
            assert_legible(study_figures.MODEL_FIGURES[kind](result).figure)
    except study_style.NotDrawn:
        assert (name, kind) in {("no_values", "heatmap"), ("dense", "experts")} or kind == "ablation"


@pytest.mark.parametrize("kind", ("layers", "positions", "figure3"))
@pytest.mark.parametrize("abscissa", ABSCISSAS)
@pytest.mark.parametrize("count", (1, 7, 12))
def test_labels_across_models(results, kind, abscissa, count):
    one = results["studied"]
    models = []
    for i in range(count):
        scale = 1.7**i
        attributes = {name: one.attributes[name] * scale for name in ("parameters", "active_parameters")}
        perplexity = {name: value / (1 + i / 4) for name, value in one.perplexity.items()}
        models.append(dataclasses.replace(one, label=f"model-{i}-with-a-long-name", perplexity=perplexity,
                                          attributes=one.attributes | attributes))  # fmt: skip
    with matplotlib.rc_context(study_style.STYLE):
        assert_legible(study_comparisons.draw_comparison(models, kind, abscissa).figure)
