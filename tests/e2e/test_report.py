"""`report` in its four formats: what it prints is what the files hold."""

# cores: 1

import csv
import io
import json
import math
import random
import re

import h5py
import numpy as np
import pytest

import helpers
import test_mutations

# name: (reference, analysis keys)
RESULTS = {
    "systematic": ("olmoe_a", {}),
    "dense": ("llama_c", {"threshold": 1.0}),  # more features than a table shows
    "one_token": ("qwen3_moe_one_token", {}),  # no perplexity
    "none_qualifies": ("qwen3_a", {"threshold": 20.0, "min_layer_fraction": 1.0, "min_position_fraction": 1.0}),
    "no_values": ("olmoe_a", {"threshold": 1e30}),
    "no_perplexity": ("mixtral_b", {"perplexity": False}),
}
WITH_INTERVALS = ("layer_percentage", "block_percentage", "seq_percentage")
FRACTIONS = ("block_percentage", "layer_percentage", "seq_percentage", "share", "first_token_share")
NUMBERS = ("max_magnitude", "q1", "median", "q3", *FRACTIONS)
COUNTS = ("feature", "total_occurrences", "positive", "negative", "sequences_qualified")
SUMMARY_COUNTS = ("outlier_features", "systematic_features", "features_hit", "sequence_rows")
SUMMARY_NUMBERS = (
    "mean_layer_percentage",
    "median_layer_percentage",
    "mean_seq_percentage",
    "median_seq_percentage",
)
ATTRIBUTES = ("model_name", "architecture", "precision", "device")
SIZES = ("n_layers", "hidden_size", "n_sequences", "sequence_length")


class Result:
    """A result file as h5py reads it."""

    def __init__(self, path):
        self.path = path
        with h5py.File(path) as file:
            self.attributes = dict(file.attrs)
            self.features = file["features"][:]
            enum = h5py.check_enum_dtype(self.features.dtype["classification"])
            self.classes = {value: name for name, value in enum.items()}
            self.summary = {name: item[()] for name, item in file["summary"].items()}
            self.interval = {
                end: float(file[f"perplexity/perplexity_{end}"][()]) if "perplexity" in file else math.nan
                for end in ("low", "high")
            }
            self.dead_experts = None
            if "experts" in file:
                dead = file["experts"][:]
                dead = dead[(dead["tokens"] == 0) & (dead["shared"] == 0)]
                self.dead_experts = [[int(row["layer"]), int(row["expert"])] for row in dead]
            self.perplexity = float(file["perplexity/perplexity"][()]) if "perplexity" in file else math.nan

    def shown(self, limit=0):
        """Rows that a report shows: those that qualify, or all if none does."""
        qualified = self.features[self.features["classification"] != 0]
        rows = qualified if len(qualified) else self.features
        return rows[:limit] if limit else rows


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    found = {}
    for name, (reference, analysis) in RESULTS.items():
        output = tmp_path_factory.mktemp(name) / f"{name}.h5"
        checkpoint = helpers.REFERENCES / reference
        sections = helpers.run_sections(checkpoint, checkpoint / "tokens.h5", output, analysis=analysis)
        helpers.run(["run", helpers.write_config(output.with_suffix(".cfg"), sections)], env=helpers.quick())
        found[name] = Result(output)
    return found


@pytest.fixture(params=RESULTS)
def result(results, request):
    return results[request.param]


def report(*args):
    done = helpers.run(["report", *args])
    assert done.stderr == ""
    return done.stdout


def assert_number(text, value):
    """text: of a number or None or ""; neither stands for no number."""
    if math.isnan(value):
        assert text in (None, "")
    else:
        assert float(text) == pytest.approx(float(value), rel=1e-11, abs=1e-300)


def assert_feature(shown, row, classes):
    for name in COUNTS:
        assert int(shown[name]) == row[name], name
    for name in NUMBERS:
        assert_number(shown[name], row[name])
    for name in WITH_INTERVALS:
        for end in ("low", "high"):
            assert_number(shown[f"{name}_{end}"], row[f"{name}_{end}"])
    for name in ("qualifies_share", "systematic_share"):
        assert_number(shown[name], row[name])
    assert shown["classification"] == classes[row["classification"]]


def assert_model(shown, summary, result):
    """shown: attributes; summary: where the members of /summary are."""
    assert shown["file"] == str(result.path)
    for name in ATTRIBUTES:
        assert shown[name] == result.attributes[name]
    for name in SIZES:
        assert int(shown[name]) == result.attributes[name]
    assert_number(shown["threshold"], result.attributes["threshold"])
    assert_number(shown["perplexity"], result.perplexity)
    for name in SUMMARY_COUNTS:
        assert int(summary[name]) == result.summary[name], name
    for name in SUMMARY_NUMBERS:
        assert_number(summary[name], result.summary[name])
    for name in ("outlier_features", "systematic_features", *SUMMARY_NUMBERS):
        for end in ("low", "high"):
            assert_number(summary[f"{name}_{end}"], result.summary[f"{name}_{end}"])
    for end in ("low", "high"):
        assert_number(shown[f"perplexity_{end}"], result.interval[end])
    if "dead_experts" in shown:
        assert shown["dead_experts"] == result.dead_experts
    for name in ("parameters", "active_parameters", "n_experts", "experts_per_token"):
        assert int(shown[name]) == result.attributes[name], name
    assert summary["classification"] == result.classes[result.summary["classification"]]


@pytest.mark.parametrize("limit", (None, 0, 1, 3))
def test_json(result, limit):
    args = [] if limit is None else ["--features", limit]
    models = json.loads(report(result.path, "--format", "json", *args))["models"]
    assert len(models) == 1
    assert_model(models[0], models[0]["summary"], result)
    assert models[0]["n_ranks"] == 1
    assert [models[0][name] for name in ("started", "finished")] == [
        result.attributes[name] for name in ("started", "finished")
    ]
    rows = result.shown(limit or 0)
    for shown, row in zip(models[0]["features"], rows, strict=True):
        assert_feature(shown, row, result.classes)


def test_json_of_all(results):
    models = json.loads(report(*(result.path for result in results.values()), "--format", "json"))["models"]
    for model, result in zip(models, results.values(), strict=True):
        assert_model(model, model["summary"], result)
        assert len(model["features"]) == len(result.shown())


def csv_tables(text):
    """The two tables, as lists of dicts."""
    return [list(csv.DictReader(io.StringIO(part))) for part in text.split("\n\n")]


def test_csv(results):
    models, features = csv_tables(report(*(result.path for result in results.values()), "--format", "csv"))
    for model, result in zip(models, results.values(), strict=True):
        assert_model(model, model, result)
        mine = [row for row in features if row["file"] == str(result.path)]
        for shown, row in zip(mine, result.shown(), strict=True):
            assert shown["model_name"] == result.attributes["model_name"]
            assert_feature(shown, row, result.classes)


def table_after(lines, heading, split):
    """Rows, as dicts, of the table whose heading starts with `heading`."""
    first = next(i for i, line in enumerate(lines) if line.lstrip("| ").startswith(heading))
    names = split(lines[first])
    rows = []
    for line in lines[first + 2 :]:
        if not line:
            break
        rows.append(dict(zip(names, split(line), strict=True)))
    return rows


def split_markdown(line):
    assert line.startswith("| ") and line.endswith(" |")
    return line[2:-2].split(" | ")


def split_table(line):
    return re.split(r"  +", line.strip())


FORMATS = {"table": split_table, "markdown": split_markdown}


@pytest.fixture(params=FORMATS)
def style(request):
    return request.param


def interval(low, high, digits):
    return "" if math.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"


def assert_printed_feature(shown, row, classes):
    percent = {"layers %": "block_percentage", "sites %": "layer_percentage", "positions %": "seq_percentage",
               "share %": "share", "first token %": "first_token_share"}  # fmt: skip
    two_digits = {"max magnitude": "max_magnitude", "q1": "q1", "median": "median", "q3": "q3"}
    expected = {"feature": str(row["feature"]), "class": classes[row["classification"]]}
    expected |= {name: f"{100 * float(row[column]):.1f}" for name, column in percent.items()}
    for name, column in percent.items():
        if column in WITH_INTERVALS:
            expected[name] += interval(100 * row[f"{column}_low"], 100 * row[f"{column}_high"], 1)
    share = float(row["qualifies_share"])
    expected["qualifies %"] = "-" if math.isnan(share) else f"{100 * share:.1f}"
    expected |= {name: f"{float(row[column]):.2f}" for name, column in two_digits.items()}
    expected["occurrences"] = str(row["total_occurrences"])
    for name, column in (("+ %", "positive"), ("- %", "negative")):
        expected[name] = f"{100 * (int(row[column]) / int(row['total_occurrences'])):.1f}"
    assert shown == expected


def test_printed_features(result, style):
    lines = report(result.path, "--format", style).splitlines()
    rows = result.shown(20)
    if not len(rows):
        assert "No value reached the threshold." in lines
        return
    for shown, row in zip(table_after(lines, "feature", FORMATS[style]), rows, strict=True):
        assert_printed_feature(shown, row, result.classes)
    more = len(result.shown()) - len(rows)
    assert (f"{more} more: --features 0 shows all." in lines) == (more > 0)
    assert (more > 0) == ("/dense" in str(result.path))
    none_qualifies = "No feature qualifies" in "\n".join(lines)
    assert none_qualifies == (result.summary["outlier_features"] == 0)


def test_printed_summary(result, style):
    text = report(result.path, "--format", style)
    attributes, summary = result.attributes, result.summary
    item = r"^- {}: " if style == "markdown" else r"^  {} +"

    def value_of(name):
        return re.search(item.format(re.escape(name)) + r"(.*)$", text, re.MULTILINE)[1]

    assert f"{attributes['model_name']} ({result.path}): {result.classes[summary['classification']]}" in text
    sequences = attributes["n_sequences"]
    plural = "" if sequences == 1 else "s"
    assert value_of("tokens") == f"{sequences} sequence{plural} x {attributes['sequence_length']}"
    assert value_of("threshold") == f"{attributes['threshold']:g}"
    assert value_of("sequence rows") == str(summary["sequence_rows"])
    ends = [float(summary[f"outlier_features_{end}"]) for end in ("low", "high")]
    assert value_of("outlier features").split(";")[0] == str(summary["outlier_features"]) + interval(*ends, 0)
    if math.isnan(result.perplexity):
        assert value_of("perplexity") == "not computed"
    else:
        assert value_of("perplexity").split(" [")[0] == f"{result.perplexity:.4f}"
    for name, column in (("sites %", "layer_percentage"), ("positions %", "seq_percentage")):
        found = re.findall(r"[0-9.]+", value_of(name))
        names = [f"{kind}_{column}{end}" for kind in ("mean", "median") for end in ("", "_low", "_high")]
        numbers = [float(summary[name]) for name in names]
        if np.isnan(numbers[0]):
            assert found == []
        else:
            assert found == [f"{100 * number:.1f}" for number in numbers if not np.isnan(number)]


def test_several_files_side_by_side(results, style):
    lines = report(*(result.path for result in results.values()), "--format", style).splitlines()
    rows = table_after(lines, "model", FORMATS[style])
    for row, result in zip(rows, results.values(), strict=True):
        assert row["model"] == result.attributes["model_name"]
        assert row["class"] == result.classes[result.summary["classification"]]
        assert row["features"].split(" ")[0] == str(result.summary["outlier_features"])
        assert row["total_systematic_outliers"] == str(result.summary["sequence_rows"])
        assert row["perplexity"].split(" ")[0] == ("-" if math.isnan(result.perplexity) else f"{result.perplexity:.4g}")


def test_table_is_the_default(result):
    assert report(result.path) == report(result.path, "--format", "table")


def test_features_limits_the_printed_table(results, style):
    lines = report(results["none_qualifies"].path, "--format", style, "--features", 2).splitlines()
    assert len(table_after(lines, "feature", FORMATS[style])) == 2


@pytest.mark.parametrize("spoil", ("absent", "empty", "text", "truncated", "tokens", "incomplete"))
def test_bad_file(results, tmp_path, spoil):
    """One error line, and nothing on stdout although the first file is good."""
    good, path = results["dense"].path, tmp_path / "bad.h5"
    data = good.read_bytes()
    if spoil in ("empty", "text", "truncated"):
        path.write_bytes({"empty": b"", "text": b"no result\n" * 99, "truncated": data[: len(data) // 2]}[spoil])
    elif spoil == "tokens":
        path.write_bytes((helpers.REFERENCES / "llama_c" / "tokens.h5").read_bytes())
    elif spoil == "incomplete":
        path.write_bytes(data)
        with h5py.File(path, "a") as file:
            file.attrs["complete"] = np.int32(0)
    done = helpers.run(["report", good, path], check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("moe-outliers: error: ") and done.stderr.count("\n") == 1
    assert "bad.h5" in done.stderr


@pytest.mark.parametrize("size", (0, 2**40, 2**63))
def test_damaged_text(results, tmp_path, size):
    """HDF5 believes what the heap of the strings says of their sizes: it crashes, or never ends."""
    path = tmp_path / "bad.h5"
    test_mutations.damage_texts(results["systematic"].path, path, size)
    done = helpers.run(["report", path], check=False, timeout=60 * helpers.SLOW)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("moe-outliers: error: ") and done.stderr.count("\n") == 1
    assert "bad.h5" in done.stderr


def test_random_damage_ends_cleanly(results, tmp_path):
    good, refused = results["systematic"].path.read_bytes(), 0
    path = tmp_path / "bad.h5"
    for seed in range(60):
        path.write_bytes(test_mutations.damage(random.Random(f"report {seed}"), good, len(good)))
        args = ["report", path, *(("-s", "analysis.min_layer_fraction=0.5") if seed % 2 else ())]
        done = helpers.run(args, check=False, timeout=60 * helpers.SLOW)
        if done.returncode:
            test_mutations.assert_clean_end(done, seed)
        assert (done.returncode == 0) == (done.stderr == "") == (done.stdout != "")
        refused += done.returncode == 2
    assert refused > 20


# --- what the tokens are of ---


def token_file(folder, **attributes):
    """A copy of a reference's tokens with these attributes."""
    with h5py.File(helpers.REFERENCES / "olmoe_a" / "tokens.h5") as file, h5py.File(folder / "t.h5", "w") as copy:
        dataset = copy.create_dataset("tokens", data=file["tokens"][:])
        for name, value in attributes.items():
            dataset.attrs[name] = value
    return folder / "t.h5"


def run_tokens(folder, tokens, ranks=None):
    sections = helpers.run_sections(helpers.REFERENCES / "olmoe_a", tokens, folder / "r.h5")
    helpers.run(["run", helpers.write_config(folder / "r.cfg", sections)], ranks, env=helpers.quick(ranks))
    return folder / "r.h5"


NAMES = {
    "text": "Zoë's corpus, 2024\u20132025",
    "fixed": np.bytes_(b"fixed length"),
    "none": None,
    "empty": "",
    "number": 7,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ranks", (None, 2))
def test_dataset_of_the_tokens(tmp_path, name, ranks):
    given = NAMES[name]
    path = run_tokens(tmp_path, token_file(tmp_path, **({} if given is None else {"dataset": given})), ranks)
    expected = {"text": given, "fixed": "fixed length"}.get(name)
    with h5py.File(path) as file:
        assert file.attrs.get("dataset") == expected
    assert json.loads(report(path, "--format", "json"))["models"][0]["dataset"] == expected
    assert csv_tables(report(path, "--format", "csv"))[0][0]["dataset"] == (expected or "")
    lines = [line.split(maxsplit=1)[1] for line in report(path).splitlines() if line.startswith("  dataset ")]
    assert lines == ([expected] if expected else [])
    assert (f"- dataset: {expected}\n" in report(path, "--format", "markdown")) == (expected is not None)


@pytest.mark.parametrize("size", (0, 2**40, 2**63))
def test_tokens_with_damaged_texts(tmp_path, size):
    """The ids are all that a run needs."""
    tokens = token_file(tmp_path, dataset="a corpus")
    test_mutations.damage_texts(tokens, tokens, size)
    with h5py.File(run_tokens(tmp_path, tokens)) as file:
        assert "dataset" not in file.attrs and file.attrs["complete"] == 1


# --- other criteria, without a new run ---

OTHER_CRITERIA = (
    {"min_layer_fraction": 0.5},
    {"min_position_fraction": 0.2, "systematic_fraction": 0.5},
    {"min_layer_fraction": 0.0, "min_position_fraction": 0.0, "bootstrap": 777, "seed": 12345678901},
    {"bootstrap": 0},
)


@pytest.mark.parametrize("changes", OTHER_CRITERIA, ids=str)
@pytest.mark.parametrize("name", ("systematic", "dense", "one_token"))
def test_other_criteria_equal_a_fresh_run(results, tmp_path, name, changes):
    """All that is printed of a result that is judged anew is printed of a run with these settings, digit by digit."""
    reference, analysis = RESULTS[name]
    checkpoint, output = helpers.REFERENCES / reference, tmp_path / "fresh.h5"
    sections = helpers.run_sections(checkpoint, checkpoint / "tokens.h5", output, analysis=analysis | changes)
    helpers.run(["run", helpers.write_config(tmp_path / "fresh.cfg", sections)], env=helpers.quick())
    args = [item for key, value in changes.items() for item in ("-s", f"analysis.{key}={helpers.libconfig(value)}")]
    anew = json.loads(report(results[name].path, "--format", "json", *args))["models"][0]
    fresh = json.loads(report(output, "--format", "json"))["models"][0]
    for of_the_run in ("file", "started", "finished"):
        del anew[of_the_run], fresh[of_the_run]
    assert anew == fresh


def test_own_criteria_change_nothing(result):
    threshold = float(result.attributes["threshold"])
    same = ["-s", f"analysis.threshold={threshold!r}"]
    assert report(result.path, "--format", "json", *same) == report(result.path, "--format", "json")


@pytest.mark.parametrize(
    "override, reason",
    (
        ("analysis.threshold=5.0", "analysis.threshold = 5 is not stored"),
        ("engine.device=cpu", "engine.device is decided when the model runs"),
        ("analysis.min_layer_fraction=2.0", "out of range"),
        ("analysis.bootstrap=many", "analysis.bootstrap"),
    ),
)
def test_what_cannot_be_changed(results, override, reason):
    done = helpers.run(["report", results["systematic"].path, "-s", override], check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("moe-outliers: error: ") and done.stderr.count("\n") == 1
    assert reason in done.stderr


@pytest.mark.parametrize("n_dead", (0, 3, 25))
def test_dead_experts(results, tmp_path, style, n_dead):
    path = tmp_path / "dead.h5"
    path.write_bytes(results["systematic"].path.read_bytes())
    with h5py.File(path, "a") as file:
        rows = file["experts"][:]
        assert len(rows) >= 6 and not rows["shared"].any()
        rows = np.concatenate([rows] * 9) if n_dead > len(rows) else rows
        rows["tokens"] = 5
        rows["tokens"][:n_dead] = 0
        file.attrs["n_experts"] = len(rows)
        del file["experts"]
        file["experts"] = rows
    dead = [[int(row["layer"]), int(row["expert"])] for row in rows[:n_dead]]
    line = next(line for line in report(path, "--format", style).splitlines() if "dead experts" in line)
    assert json.loads(report(path, "--format", "json"))["models"][0]["dead_experts"] == dead
    if not n_dead:
        assert line.endswith(f"none of {len(rows)}")
        return
    assert line.endswith(f"({n_dead} of {len(rows)} got no token)") and ("..." in line) == (n_dead > 20)
    if n_dead == 3:
        assert f"layer {dead[0][0]}: {dead[0][1]}, {dead[1][1]}" in line


def test_stored_thresholds(results, tmp_path):
    """What is printed by a further threshold of a run is what is printed of a run by it alone; so is the whole group."""
    checkpoint, output = helpers.REFERENCES / "olmoe_a", tmp_path / "several.h5"
    thresholds = {"threshold": 8.0, "thresholds": (8.0, 6.0, 2.5)}
    sections = helpers.run_sections(checkpoint, checkpoint / "tokens.h5", output, analysis=thresholds)
    helpers.run(["run", helpers.write_config(tmp_path / "several.cfg", sections)], env=helpers.quick())
    alone = results["systematic"].path
    expected = json.loads(report(alone, "--format", "json"))["models"][0]
    for args in (("--threshold", "6"), ("-s", "analysis.threshold=6.0"), ("--threshold=2.5", "--threshold=6e0")):
        found = json.loads(report(output, "--format", "json", *args))["models"][0]
        assert found | {name: expected[name] for name in ("file", "started", "finished")} == expected
    stricter = ("-s", "analysis.min_layer_fraction=0.9")
    found, expected = (
        json.loads(report(*args, "--format", "json", *stricter))["models"][0]["features"]
        for args in ((output, "--threshold", "6"), (alone,))
    )
    assert found == expected
    with h5py.File(output) as several, h5py.File(alone) as one:
        group, names = several["thresholds/6"], []
        group.visit(names.append)
        for name in names:
            if isinstance(group[name], h5py.Dataset):
                assert group[name][()].tobytes() == one[name][()].tobytes(), name
        assert len(names) > 30
    for wrong, reason in (("7", "analysis.threshold = 7 is not stored"), ("0", '--threshold "0" is out of range')):
        done = helpers.run(["report", output, "--threshold", wrong], check=False)
        assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
        assert reason in done.stderr


@pytest.mark.parametrize("spoil", ("absent", "short", "twice"))
def test_positions_that_disagree(results, tmp_path, spoil):
    path = tmp_path / "bad.h5"
    path.write_bytes(results["systematic"].path.read_bytes())
    with h5py.File(path, "a") as file:
        rows = file["positions"][:]
        del file["positions"]
        if spoil != "absent":
            file["positions"] = rows[1:] if spoil == "short" else np.concatenate([rows, rows[-1:]])
    done = helpers.run(["report", path, "-s", "analysis.seed=1"], check=False)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "bad.h5" in done.stderr


# --- growth of the outlier features by experts ---

GROWN = {"glm4_moe_a": True, "gpt_oss_a": False, "qwen3_next_a": True, "olmoe_a": False}  # has a shared expert


def run_with_growth(folder, reference, **analysis):
    checkpoint, output = helpers.REFERENCES / reference, folder / "growth.h5"
    analysis = {"ablate": "features", "ablate_draws": 0} | analysis
    sections = helpers.run_sections(checkpoint, checkpoint / "tokens.h5", output, analysis=analysis)
    helpers.run(["run", helpers.write_config(folder / "growth.cfg", sections)], env=helpers.quick())
    return output


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    return {name: run_with_growth(tmp_path_factory.mktemp(name), name) for name in GROWN}


def growth_of(path):
    """[(total, the three rows of /growth that are largest)] of each feature, in the order of /features."""
    with h5py.File(path) as file:
        rows, features = file["growth"][:], file["features"]["feature"].tolist()
    found = []
    for feature in sorted(set(rows["feature"].tolist()), key=lambda f: (features + [f]).index(f)):
        mine = rows[rows["feature"] == feature]
        of_layers = {row["layer"]: row["growth_of_layer"] for row in mine}
        order = sorted(range(len(mine)), key=lambda i: (np.isnan(mine["growth"][i]), -mine["growth"][i]))
        found.append((float(sum(of_layers.values())), mine[order][:3]))
    return found


def share_of_total(row, total):
    return float(row["growth"]) / total if total > 0 else math.nan


def assert_growth(shown, row, total):
    """shown: of JSON or CSV."""
    assert (int(shown["layer"]), int(shown["expert"])) == (row["layer"], row["expert"])
    for name in ("growth", "growth_of_layer", "share"):
        assert_number(shown[name], row[name])
    assert_number(shown["share_of_total"], share_of_total(row, total))


def printed_growth(row, total):
    def percent(value):
        return "-" if math.isnan(value) else f"{100 * float(value):.1f}"

    expert = "shared" if row["expert"] == -1 else str(row["expert"])
    growth = "-" if math.isnan(row["growth"]) else f"{row['growth']:.4g}"
    cells = (str(row["feature"]), str(row["layer"]), expert, growth, percent(row["share"]))
    names = ("feature", "layer", "expert", "growth", "of layer %", "of all layers %")
    return dict(zip(names, (*cells, percent(share_of_total(row, total))), strict=True))


def assert_growth_reported(path):
    """In all formats, what the file's table gives."""
    expected = growth_of(path)
    pairs = [(row, total) for total, rows in expected for row in rows]
    found = json.loads(report(path, "--format", "json"))["models"][0]["growth"]
    for feature, (total, rows) in zip(found, expected, strict=True):
        assert feature["feature"] == rows["feature"][0]
        assert_number(feature["total"], total)
        for shown, row in zip(feature["experts"], rows, strict=True):
            assert_growth(shown, row, total)
    table = csv_tables(report(path, "--format", "csv"))[-1]
    for shown, (row, total) in zip(table, pairs, strict=True):
        assert shown["file"] == str(path) and int(shown["feature"]) == row["feature"]
        assert_number(shown["total"], total)
        assert_growth(shown, row, total)
    for style, split in FORMATS.items():
        lines = report(path, "--format", style).splitlines()
        after = lines[lines.index("Growth of the outlier features by experts:") :]
        assert table_after(after, "feature", split) == [printed_growth(*pair) for pair in pairs]


@pytest.mark.parametrize("name", GROWN)
def test_growth(grown, name):
    with h5py.File(grown[name]) as file:
        rows, features = file["growth"][:], file["features"][:]
        parts = np.unique(rows[["layer", "feature"]])
        for part in parts:
            mine = rows[(rows["layer"] == part["layer"]) & (rows["feature"] == part["feature"])]
            np.testing.assert_allclose(mine["growth_of_layer"], np.add.accumulate(mine["growth"])[-1], rtol=1e-12)
            np.testing.assert_array_equal(mine["share"], mine["growth"] / mine["growth_of_layer"])
    assert (rows["expert"] == -1).any() == GROWN[name]
    assert set(rows["feature"]) == set(features["feature"][features["classification"] != 0])
    assert_growth_reported(grown[name])


def test_growth_of_several(grown, results):
    """One table of CSV for all files; a run without an ablation has none."""
    paths = [results["dense"].path, *grown.values()]
    table = csv_tables(report(*paths, "--format", "csv"))[-1]
    expected = [str(path) for path in grown.values() for _, rows in growth_of(path) for _ in rows]
    assert [row["file"] for row in table] == expected
    models = json.loads(report(*paths, "--format", "json"))["models"]
    assert ["growth" in model for model in models] == [False] + [True] * len(grown)
    assert "Growth" not in report(paths[0])


def test_growth_at_another_threshold(tmp_path):
    """The features are those of the first threshold, which a further one may not know."""
    path = run_with_growth(tmp_path, "olmoe_a", threshold=6.0, thresholds=(6.0, 1e9))
    own, other = (
        json.loads(report(path, "--format", "json", *args))["models"][0] for args in ((), ("--threshold", "1e9"))
    )
    assert other["features"] == [] and len(own["growth"]) > 1
    assert other["growth"] == sorted(own["growth"], key=lambda feature: feature["feature"])


def rewrite(source, path, change):
    """A copy of the file with its growth changed."""
    path.write_bytes(source.read_bytes())
    with h5py.File(path, "a") as file:
        rows = file["growth"][:]
        del file["growth"]
        changed = change(rows)
        if changed is not None:
            file["growth"] = changed
    return path


def of_no_growth(rows):
    rows["growth_of_layer"] = rows["share"] = 0
    return rows


def of_nan(rows):
    rows["growth"][::2] = rows["growth_of_layer"][::3] = rows["share"][::5] = np.nan
    return rows


def of_equal_growth(rows):
    rows["growth"] = 7.5
    return rows


def of_falling_growth(rows):
    rows["growth"] = -np.abs(rows["growth"])
    return rows


@pytest.mark.parametrize("change", (of_no_growth, of_nan, of_equal_growth, of_falling_growth), ids=lambda f: f.__name__)
def test_odd_growth(grown, tmp_path, change):
    assert_growth_reported(rewrite(grown["glm4_moe_a"], tmp_path / "odd.h5", change))


@pytest.mark.parametrize("rows", (None, 0))
def test_no_growth(grown, tmp_path, rows):
    """Of an older file, or of a run whose memory was too small."""
    path = rewrite(grown["gpt_oss_a"], tmp_path / "none.h5", lambda table: None if rows is None else table[:rows])
    assert "growth" not in json.loads(report(path, "--format", "json"))["models"][0]
    assert "Growth" not in report(path) and "growth_of_layer" not in report(path, "--format", "csv")


def test_damaged_growth(grown, tmp_path):
    """Any bytes in its rows: a report all the same."""

    def damage(rows):
        noise = made.integers(0, 256, rows.nbytes, np.uint8).view(rows.dtype)
        return np.where(made.random(len(rows)) < made.random(), noise, rows)

    made = np.random.default_rng(1)
    for _ in range(8):
        path = rewrite(grown["qwen3_next_a"], tmp_path / "bad.h5", damage)
        for name in ("json", "csv", "table", "markdown"):
            assert len(report(path, "--format", name)) > 100
    path = rewrite(grown["qwen3_next_a"], tmp_path / "bad.h5", lambda rows: np.resize(rows, 10**6))
    done = helpers.run(["report", path], check=False)
    assert done.returncode == 2 and done.stdout == "" and "/growth has 1000000 rows" in done.stderr


# --- the study's key finding ---


def finding(tmp_path, *models):
    """Of copies of one result with other architectures, parameters and classes."""
    paths = []
    for number, (source, architecture, parameters, classification) in enumerate(models):
        paths.append(tmp_path / f"{number}.h5")
        paths[-1].write_bytes(source.path.read_bytes())
        with h5py.File(paths[-1], "a") as file:
            file.attrs["model_name"] = f"{architecture}-{number}"
            file.attrs["architecture"] = architecture
            file.attrs["parameters"] = np.int64(parameters)
            file["summary/classification"][()] = classification
    return json.loads(report(*paths, "--format", "json"))["finding"]


def test_finding(results, tmp_path):
    one = results["systematic"]
    both = finding(tmp_path, (one, "gpt_oss", 20, 2), (one, "gpt_oss", 117, 2), (one, "olmoe", 7, 1), (one, "glm", 106, 1))
    assert both["only_gpt_oss_is_systematic"] and both["architecture_matters_more_than_size"]
    assert "SYSTEMATIC: gpt_oss-0, gpt_oss-1; PROBABILISTIC: olmoe-2, glm-3." in both["text"]
    by_size = finding(tmp_path, (one, "gpt_oss", 117, 2), (one, "olmoe", 7, 1))
    assert by_size["only_gpt_oss_is_systematic"] and not by_size["architecture_matters_more_than_size"]
    mixed = finding(tmp_path, (one, "gpt_oss", 20, 2), (one, "gpt_oss", 117, 1), (one, "glm", 106, 1))
    assert not mixed["only_gpt_oss_is_systematic"] and not mixed["architecture_matters_more_than_size"]
    other = finding(tmp_path, (one, "olmoe", 7, 2), (one, "glm", 106, 1))
    assert not other["only_gpt_oss_is_systematic"] and other["architecture_matters_more_than_size"]
    missing = finding(tmp_path, (one, "gpt_oss", 20, 2), (one, "gpt_oss", 117, 2))
    assert not missing["only_gpt_oss_is_systematic"] and "a probabilistic model is missing" in missing["text"]


def test_finding_needs_the_same_criteria(results):
    found = json.loads(report(results["systematic"].path, results["dense"].path, "--format", "json"))["finding"]
    assert not found["comparable"] and found["text"].startswith("Not comparable")
