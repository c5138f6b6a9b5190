"""`export`: the JSON files hold what the reference implementation would have written of the same activations."""

# cores: 1

import json
import os
import random
import re
import resource
import signal
import subprocess
import time

import h5py
import numpy as np
import pytest

import helpers
import made_up
import test_mutations

ANALYSIS, PERPLEXITY, CONFIG = "final_analysis_results.json", "perplexity_results.json", "config.json"
FILES = sorted((ANALYSIS, PERPLEXITY, CONFIG))

ROOT_KEYS = ["analysis_summary", "run_config", "top_features", "all_systematic_outliers", "batch_results"]
SUMMARY_KEYS = ["total_batches", "total_sequences", "total_systematic_outliers", "completion_time"]
RUN_KEYS = ["model", "dataset", "num_sequences", "sequence_length", "batch_size", "threshold", "layers",
            "shard_range_inclusive", "experiment_name"]  # fmt: skip
OUTLIER_KEYS = ["feature_dim", "layer_percentage", "seq_percentage", "max_magnitude", "total_occurrences",
                "layers_affected", "example_values"]  # fmt: skip
BATCH_KEYS = ["batch_id", "run_dir", "sequences_processed", "systematic_outliers", "outlier_summary", "timestamp"]
SITE_KEYS = ["num_outliers", "max_magnitude", "outlier_percentage", "shape"]
LOSS_KEYS = ["perplexity", "avg_loss", "total_tokens", "num_sequences"]
PERPLEXITY_KEYS = [*LOSS_KEYS, "model", "dataset", "sequence_length", "timestamp", "batch_results"]
ISO_8601 = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


# --- the schema: types, keys in order, nothing else ---


def assert_keys(found, keys):
    assert type(found) is dict and list(found) == keys


def assert_types(found, **types):
    for name, wanted in types.items():
        assert type(found[name]) is wanted, (name, found[name])


def assert_outlier(found):
    assert_keys(found, OUTLIER_KEYS)
    assert_types(found, feature_dim=int, layer_percentage=float, seq_percentage=float, max_magnitude=float)
    assert_types(found, total_occurrences=int, layers_affected=list, example_values=list)
    assert {type(name) for name in found["layers_affected"]} == {str}
    assert {type(value) for value in found["example_values"]} == {float}
    assert 1 <= len(found["example_values"]) <= 5


def assert_batch(found):
    assert_keys(found, BATCH_KEYS)
    assert_types(found, batch_id=int, run_dir=str, sequences_processed=int, systematic_outliers=list, timestamp=str)
    assert re.fullmatch(ISO_8601, found["timestamp"])
    for outlier in found["systematic_outliers"]:
        assert_outlier(outlier)
    summary = found["outlier_summary"]
    assert_keys(summary, ["total_outlier_features", "layer_stats", "threshold"])
    assert_types(summary, total_outlier_features=int, threshold=float)
    for stats in summary["layer_stats"].values():
        assert_keys(stats, SITE_KEYS)
        assert_types(stats, num_outliers=int, max_magnitude=float, outlier_percentage=float, shape=list)
        assert [type(size) for size in stats["shape"]] == [int] * 3


def assert_analysis_schema(found):
    assert_keys(found, ROOT_KEYS)
    assert_keys(found["analysis_summary"], SUMMARY_KEYS)
    assert_types(found["analysis_summary"], **dict.fromkeys(SUMMARY_KEYS[:3], int), completion_time=str)
    assert re.fullmatch(ISO_8601, found["analysis_summary"]["completion_time"])
    run = found["run_config"]
    assert_keys(run, RUN_KEYS)
    assert_types(run, model=str, dataset=str, threshold=float, experiment_name=str, shard_range_inclusive=list)
    assert_types(run, num_sequences=int, sequence_length=int, batch_size=int, layers=type(None))
    assert [type(shard) for shard in run["shard_range_inclusive"]] == [int, int]
    for top in found["top_features"]:
        assert_keys(top, ["feature_dim", "max_magnitude", "occurrences"])
        assert_types(top, feature_dim=int, max_magnitude=float, occurrences=int)
    for outlier in found["all_systematic_outliers"]:
        assert_outlier(outlier)
    for batch in found["batch_results"]:
        assert_batch(batch)


def assert_perplexity_schema(found):
    assert_keys(found, PERPLEXITY_KEYS)
    for batch in found["batch_results"]:
        assert_keys(batch, LOSS_KEYS)
    for losses in (found, *found["batch_results"]):
        assert_types(losses, perplexity=float, avg_loss=float, total_tokens=int, num_sequences=int)
    assert_types(found, model=str, dataset=str, sequence_length=int, timestamp=str, batch_results=list)
    assert re.fullmatch(ISO_8601, found["timestamp"])


# --- the same from activations ---


def site_name(site):
    return f"layer_{site // 2}_{helpers.SITES[site % 2]}"


def batch_outliers(x, threshold, layer_fraction, position_fraction):
    """Outlier features of one sequence, x [2L, S, H], as the reference finds them; as examples all values, by site."""
    hit = np.abs(x) >= threshold
    found = []
    for feature in np.flatnonzero(hit.any(axis=(0, 1))):
        mine = hit[:, :, feature]
        layers, positions = mine.any(axis=1).mean(), mine.any(axis=0).mean()
        if layers >= layer_fraction and positions >= position_fraction:
            values = x[:, :, feature][mine]
            found.append(
                {
                    "feature_dim": int(feature),
                    "layer_percentage": layers,
                    "seq_percentage": positions,
                    "max_magnitude": float(np.abs(values).max()),
                    "total_occurrences": int(mine.sum()),
                    "layers_affected": sorted(site_name(site) for site in np.flatnonzero(mine.any(axis=1))),
                    "example_values": [x[site, mine[site], feature] for site in range(len(x))],
                }
            )
    return sorted(found, key=lambda row: row["max_magnitude"], reverse=True)


def assert_outliers(found, expected):
    for outlier, wanted in zip(found, expected, strict=True):
        examples, values = outlier["example_values"], wanted["example_values"]
        assert {name: outlier[name] for name in OUTLIER_KEYS[:-1]} == {name: wanted[name] for name in OUTLIER_KEYS[:-1]}
        listed = [v for at_site in values if len(at_site) for v in sorted({at_site.min(), at_site.max()})]
        if all(len(at_site) < 2 or at_site.min() != at_site.max() for at_site in values):
            assert examples == listed[:5]
        assert set(examples) <= set(np.concatenate(values).tolist())


def assert_site_stats(found, x, threshold):
    assert list(found) == [site_name(site) for site in range(len(x))]
    for stats, values in zip(found.values(), np.abs(x), strict=True):
        outliers = values[values >= threshold]
        assert stats["num_outliers"] == outliers.size
        assert stats["max_magnitude"] == (values.max() if outliers.size else 0.0)
        assert stats["outlier_percentage"] == outliers.size / values.size * 100
        assert stats["shape"] == [1, *values.shape]


def assert_analysis(found, x, criteria, path):
    """found: the file; x [2L, N, S, H]."""
    assert_analysis_schema(found)
    everything, best = [], {}
    assert len(found["batch_results"]) == x.shape[1]
    for n, batch in enumerate(found["batch_results"]):
        expected = batch_outliers(x[:, n], *criteria)
        assert (batch["batch_id"], batch["run_dir"], batch["sequences_processed"]) == (n + 1, str(path), 1)
        assert_outliers(batch["systematic_outliers"], expected)
        hit = np.abs(x[:, n]) >= criteria[0]
        assert batch["outlier_summary"]["total_outlier_features"] == hit.any(axis=(0, 1)).sum()
        assert batch["outlier_summary"]["threshold"] == criteria[0]
        assert_site_stats(batch["outlier_summary"]["layer_stats"], x[:, n], criteria[0])
        everything += batch["systematic_outliers"]
        for row in expected:
            largest, times = best.get(row["feature_dim"], (0.0, 0))
            best[row["feature_dim"]] = (max(largest, row["max_magnitude"]), times + 1)
    assert found["all_systematic_outliers"] == everything
    top = [(row["feature_dim"], (row["max_magnitude"], row["occurrences"])) for row in found["top_features"]]
    assert top == sorted(best.items(), key=lambda item: item[1][0], reverse=True)  # both keep the order of equal ones
    summary = found["analysis_summary"]
    assert [summary[name] for name in SUMMARY_KEYS[:3]] == [x.shape[1], x.shape[1], len(everything)]


def assert_perplexity(found, nll):
    """Means weighted by tokens, which is one more than there are losses."""
    assert_perplexity_schema(found)
    means = nll.astype(np.float64).mean(axis=1)
    length = nll.shape[1] + 1
    for batch, mean in zip(found["batch_results"], means, strict=True):
        assert batch["avg_loss"] == pytest.approx(mean, rel=1e-12)
        assert batch["perplexity"] == pytest.approx(np.exp(mean), rel=1e-12)
        assert (batch["total_tokens"], batch["num_sequences"]) == (length, 1)
    mean = sum(batch["avg_loss"] * batch["total_tokens"] for batch in found["batch_results"]) / nll.shape[0] / length
    assert found["avg_loss"] == pytest.approx(mean, rel=1e-12)
    assert found["perplexity"] == pytest.approx(np.exp(mean), rel=1e-12)
    assert (found["total_tokens"], found["num_sequences"]) == (nll.shape[0] * length, nll.shape[0])
    assert found["sequence_length"] == length


def searched(path):
    """How the reference's plot script finds the outliers and the model."""
    text = path.read_text(encoding="ascii")[:50_000_000]
    outliers = re.search(r'"all_systematic_outliers":\s*\[(.*?)(?:\],\s*"batch_results")', text, re.DOTALL)
    model = re.search(r'"model":\s*"([^"]+)"', text[:10000])
    return json.loads(f"[{outliers[1]}]"), model[1]


def export(path, folder, *options, notes=""):
    """Names of the files."""
    done = helpers.run(["export", path, "-o", folder, *options])
    assert done.stdout == "" and done.stderr == notes
    return sorted(os.listdir(folder))


def load(folder, name):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((folder / name).read_text(encoding="ascii"), parse_constant=refuse)


# --- results of runs ---

RUNS = {  # name: (reference, precision, model name, analysis keys)
    "systematic": ("olmoe_a", "fp32", "org/olmoe", {}),
    "rounded": ("mixtral_b", "bf16", "org/mixtral", {"threshold": 2.5, "min_layer_fraction": 0.5}),
    "quoted": ("llama_c", "fp32", 'a "model" \\ of Zoë \U0001f40d', {"threshold": 1.0, "min_position_fraction": 0.2}),
    "no_values": ("olmoe_a", "fp32", "org/nothing", {"threshold": 1e30}),
}


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory):
    """(result file, its criteria, its config, the model's name)"""
    reference, precision, name, analysis = RUNS[request.param]
    folder = tmp_path_factory.mktemp("run") / 'of "Zoë"'
    folder.mkdir()
    checkpoint = helpers.REFERENCES / reference
    changes = {"analysis": analysis, "model": {"name": name}}
    if request.param == "rounded":
        changes["data"] = {"skip": 1, "sequences": 1}
    sections = helpers.run_sections(
        checkpoint, checkpoint / "tokens.h5", folder / "a result.h5", precision, "all", **changes
    )
    helpers.run(["run", helpers.write_config(folder / "run.cfg", sections)], env=helpers.quick())
    keys = sections["analysis"]
    criteria = (keys["threshold"], keys["min_layer_fraction"], keys["min_position_fraction"])
    return folder / "a result.h5", criteria, sections, name


def test_run(run, tmp_path):
    path, criteria, sections, name = run
    assert export(path, tmp_path / "out") == FILES
    with h5py.File(path) as file:
        x = helpers.site_tensors(file["activations"], file.attrs["n_layers"])
        nll, finished = file["perplexity/nll"][:], file.attrs["finished"]
        perplexity = file["perplexity/perplexity"][()]
    found = load(tmp_path / "out", ANALYSIS)
    assert_analysis(found, x, criteria, path)
    assert (len(found["all_systematic_outliers"]) == 0) == (name == "org/nothing")
    shard = sections["data"].get("skip", 0)
    assert found["run_config"] == {
        "model": name,
        "dataset": str(sections["data"]["tokens"]),
        "num_sequences": x.shape[1],
        "sequence_length": x.shape[2],
        "batch_size": 1,
        "threshold": criteria[0],
        "layers": None,
        "shard_range_inclusive": [shard, shard + x.shape[1] - 1],
        "experiment_name": "a result",
    }
    losses = load(tmp_path / "out", PERPLEXITY)
    assert_perplexity(losses, nll)
    assert losses["perplexity"] == pytest.approx(perplexity, rel=1e-12)
    assert (losses["model"], losses["dataset"]) == (name, found["run_config"]["dataset"])
    assert {losses["timestamp"], found["analysis_summary"]["completion_time"]} == {finished}
    outliers, model = searched(tmp_path / "out" / ANALYSIS)
    assert outliers == found["all_systematic_outliers"]
    assert model == name or '"' in name


def test_config_of_a_run(run, tmp_path):
    path, _, sections, name = run
    export(path, tmp_path / "out")
    config = load(tmp_path / "out", CONFIG)
    assert {"model", "data", "analysis", "engine", "output"} <= set(config)
    for section, keys in sections.items():
        for key, value in keys.items():
            assert config[section][key] == (value if isinstance(value, (int, float)) else str(value)), key
    assert config["model"]["name"] == name


# --- made-up results ---


def random_activations(seed, layers, sequences, length, hidden):
    """Some features are large everywhere, some here and there; quarters, so that values are often the same."""
    dice = np.random.default_rng(seed)
    x = dice.normal(0, 2.5, (2 * layers, sequences, length, hidden))
    x *= dice.choice([0.5, 1, 2, 6], hidden) * dice.choice([0.2, 1, 2], (2 * layers, 1, 1, hidden))
    return (np.round(4 * x) / 4).astype(np.float32)


@pytest.mark.parametrize("shape", ((1, 1, 1, 1), (1, 1, 2, 3), (12, 3, 9, 17), (3, 20, 5, 40), (70, 2, 3, 5)))
@pytest.mark.parametrize("seed", (1, 2))
def test_made_up(tmp_path, shape, seed):
    x = random_activations(seed, *shape)
    nll = np.random.default_rng(seed).gamma(2, 2, (shape[1], shape[2] - 1)).astype(np.float32)
    path = made_up.of_activations(tmp_path / "r.h5", x, nll)
    notes = f"moe-outliers: note: no perplexity in {path}: {PERPLEXITY} is not written\n"
    files = export(path, tmp_path / "out", notes=notes if shape[2] == 1 else "")
    assert files == (FILES if shape[2] > 1 else sorted((ANALYSIS, CONFIG)))
    assert_analysis(load(tmp_path / "out", ANALYSIS), x, (6.0, 0.25, 0.06), path)
    assert searched(tmp_path / "out" / ANALYSIS)[1] == "made/up"
    if shape[2] > 1:
        assert_perplexity(load(tmp_path / "out", PERPLEXITY), nll)


def test_sites_are_sorted_as_texts(tmp_path):
    x = np.full((24, 1, 2, 1), 7, np.float32)
    export(made_up.of_activations(tmp_path / "r.h5", x, np.ones((1, 1), np.float32)), tmp_path / "out")
    affected = load(tmp_path / "out", ANALYSIS)["all_systematic_outliers"][0]["layers_affected"]
    assert affected[:4] == ["layer_0_ln_attn", "layer_0_ln_mlp", "layer_10_ln_attn", "layer_10_ln_mlp"]
    assert affected == sorted(affected) and len(affected) == 24


def test_examples(tmp_path):
    """One of a site with a single value, smallest and largest of others, in the order of the sites."""
    x = np.zeros((4, 1, 4, 1), np.float32)
    x[0, 0, 1], x[1, 0, :, 0], x[3, 0, :2, 0] = -8, [9, -7, 11, 6.5], [6, 6]
    path = made_up.of_activations(tmp_path / "r.h5", x, np.ones((1, 3), np.float32))
    export(path, tmp_path / "out")
    outlier = load(tmp_path / "out", ANALYSIS)["all_systematic_outliers"][0]
    assert outlier["example_values"] == [-8, -7, 11, 6, 6]


def test_equally_large_features_keep_the_order_of_their_first_rows(tmp_path):
    x = np.zeros((2, 3, 2, 5), np.float32)
    x[:, 0, :, 4] = x[:, 1, :, 1] = x[:, 2, :, 0] = 9
    x[:, 0, :, 3] = 10
    x[:, 1, :, 4] = -7
    export(made_up.of_activations(tmp_path / "r.h5", x, np.ones((3, 1), np.float32)), tmp_path / "out")
    top = load(tmp_path / "out", ANALYSIS)["top_features"]
    assert [tuple(row.values()) for row in top] == [(3, 10, 1), (4, 9, 2), (1, 9, 1), (0, 9, 1)]


@pytest.mark.filterwarnings("ignore:invalid value")
def test_infinite_values_are_json(tmp_path):
    x = np.zeros((2, 1, 2, 2), np.float32)
    x[:, 0, :, 1] = [np.inf, -np.inf]
    path = made_up.of_activations(tmp_path / "r.h5", x, np.full((1, 1), np.nan, np.float32))
    export(path, tmp_path / "out")
    outlier = load(tmp_path / "out", ANALYSIS)["all_systematic_outliers"][0]
    assert outlier["max_magnitude"] == np.inf and outlier["example_values"] == [-np.inf, np.inf] * 2
    assert "Infinity" not in (tmp_path / "out" / ANALYSIS).read_text()
    assert load(tmp_path / "out", PERPLEXITY)["perplexity"] is None


X = random_activations(3, 2, 3, 4, 6)
NLL = np.linspace(0.1, 9, 9, dtype=np.float32).reshape(3, 3)

TEXTS = {  # name of the model: what is written, if not the same
    "quotes": ('"a" \\ b/\b\f\n\r\t\x01\x7f', None),
    "unicode": ("Zoë 模型 \U0001f40d \u2028", None),
    "not_utf8": (
        np.bytes_(b"a\xffb\xc3(\xe2\x82c\xed\xa0\x80d\xf4\x90\x80\x80e\xc0\xaf"),
        "a\ufffdb\ufffd(\ufffd\ufffdc" + 3 * "\ufffd" + "d" + 4 * "\ufffd" + "e" + 2 * "\ufffd",
    ),
}


@pytest.mark.parametrize("name, expected", TEXTS.values(), ids=TEXTS)
def test_texts(tmp_path, name, expected):
    path = made_up.of_activations(tmp_path / 'Zoë "x".h5', X, NLL, model_name=name)
    export(path, tmp_path / "out")
    found = load(tmp_path / "out", ANALYSIS)
    assert found["run_config"]["model"] == load(tmp_path / "out", PERPLEXITY)["model"] == (expected or name)
    assert found["run_config"]["experiment_name"] == 'Zoë "x"'


CONFIGS = {
    "nested": (
        'a = 1; b: { c = "x\\"\\\\\\n\\x41\u00eb"; d = ( 1, 2.5, ( ), { e = true; } ); f = [ 1 ]; }; g = 3000000000L;',
        {"a": 1, "b": {"c": 'x"\\\nAë', "d": [1, 2.5, [], {"e": True}], "f": [1]}, "g": 3000000000},
    ),
    "numbers": ("a = 0.1; b = 1e300; c = -0.30000000000000004; d = 1.0; e = -5;",
                {"a": 0.1, "b": 1e300, "c": -0.30000000000000004, "d": 1.0, "e": -5}),
    "empty": ("", {}),
    "commented": ("# @include\nmodel: { };  // nothing\n", {"model": {}}),
}  # fmt: skip


@pytest.mark.parametrize("text, expected", CONFIGS.values(), ids=CONFIGS)
def test_configs(tmp_path, text, expected):
    export(made_up.of_activations(tmp_path / "r.h5", X, NLL, config=text), tmp_path / "out")
    found = load(tmp_path / "out", CONFIG)
    assert found == expected and json.dumps(found) == json.dumps(expected)  # 1 is not 1.0
    assert load(tmp_path / "out", ANALYSIS)["run_config"]["dataset"] == ""


# --- size ---


def large_result(path, sequences, hidden, layers=4, length=64):
    """Every feature qualifies in every sequence, at half of the sites."""
    dice = np.random.default_rng(4)
    pairs = sequences * hidden
    sequence, feature = np.divmod(np.arange(pairs), hidden)
    where = np.argsort(dice.random((pairs, 2 * layers)), axis=1)[:, :layers]
    counts, largest = np.zeros(pairs, np.int64), np.zeros(pairs, np.float32)
    sites = []
    for site in range(2 * layers):
        mine = (where == site).any(axis=1)
        rows = np.zeros(mine.sum(), made_up.SITE_ROW)
        rows["sequence"], rows["feature"] = sequence[mine], feature[mine]
        rows["count"] = rows["positive"] = dice.integers(1, 50, len(rows))
        low, high = np.sort(dice.uniform(6, 300, (2, len(rows))), axis=0)
        rows["max"] = rows["max_abs"] = high
        rows["min"] = np.where(rows["count"] == 1, high, low)
        np.add.at(counts, np.flatnonzero(mine), rows["count"])
        np.maximum.at(largest, np.flatnonzero(mine), rows["max"])
        sites.append(rows)
    found = np.zeros(pairs, made_up.SEQUENCE_FEATURE)
    found["sequence"], found["feature"], found["max_magnitude"] = sequence, feature, largest
    found["sites_hit"], found["total_occurrences"], found["layer_percentage"] = layers, counts, 0.5
    found["positions_hit"] = dice.integers(7, length, pairs)
    found["seq_percentage"] = found["positions_hit"] / length
    found = found[np.lexsort((feature, -largest, sequence))]
    nll = np.ones((sequences, length - 1), np.float32)
    return made_up.write(path, (layers, sequences, length, hidden), sites, found, nll=nll), found


def test_large(tmp_path):
    """200,000 rows: memory is that of a small result, and all of them are there."""
    (tmp_path / "peak").mkdir()
    peaks = []
    for name, sequences, hidden in (("small", 2, 100), ("large", 50, 4000)):
        path, rows = large_result(tmp_path / f"{name}.h5", sequences, hidden)
        peaks += helpers.peak_memory(tmp_path / "peak", ["export", path, "-o", tmp_path / name])
    assert helpers.SLOW > 1 or peaks[1] - peaks[0] < 10e6
    note = helpers.run(["export", path, "-o", tmp_path / "large", "--overwrite"]).stderr
    file = tmp_path / "large" / ANALYSIS
    text = file.read_text()
    assert text.index('"batch_results"') > 50_000_000
    assert note.startswith("moe-outliers: note: ") and "first 50000000 characters" in note and note.count("\n") == 1
    found = json.loads(text)
    outliers = found["all_systematic_outliers"]
    assert len(outliers) == found["analysis_summary"]["total_systematic_outliers"] == len(rows) == 200_000
    for name, column in (("feature_dim", "feature"), ("max_magnitude",) * 2, ("seq_percentage",) * 2,
                         ("total_occurrences",) * 2):  # fmt: skip
        assert (np.array([outlier[name] for outlier in outliers]) == rows[column]).all()
    assert {len(outlier["layers_affected"]) for outlier in outliers} == {4}
    assert [len(batch["systematic_outliers"]) for batch in found["batch_results"]] == [4000] * 50
    for path in (file, tmp_path / "large.h5"):
        path.unlink()


# --- the folder ---


@pytest.fixture
def result(tmp_path):
    return made_up.of_activations(tmp_path / "r.h5", X, NLL)


def refusal(*args, status=2, **more):
    done = helpers.run(["export", *args], check=False, **more)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert re.fullmatch(r"moe-outliers: error: [^\n]*\n", done.stderr)
    return done.stderr


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_overwritten(tmp_path, result, name):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / name).write_text("mine")
    assert name in refusal(result, "-o", folder)
    assert os.listdir(folder) == [name] and (folder / name).read_text() == "mine"
    assert export(result, folder, "--overwrite") == FILES
    assert load(folder, name)


def test_a_link_to_nowhere_is_not_overwritten(tmp_path, result):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / CONFIG).symlink_to(tmp_path / "elsewhere")
    assert CONFIG in refusal(result, "-o", folder)
    assert export(result, folder, "--overwrite") == FILES
    assert not (tmp_path / "elsewhere").exists()


def test_old_perplexity_goes(tmp_path, result):
    folder = tmp_path / "out"
    export(result, folder)
    none = made_up.of_activations(tmp_path / "none.h5", X)
    notes = f"moe-outliers: note: no perplexity in {none}: {PERPLEXITY} is not written\n"
    assert export(none, folder, "--overwrite", notes=notes) == sorted((ANALYSIS, CONFIG))
    assert load(folder, ANALYSIS)["run_config"]["experiment_name"] == "none"


def test_bad_folders(tmp_path, result):
    (tmp_path / "file").write_text("")
    (tmp_path / "taken" / ANALYSIS).mkdir(parents=True)
    assert "not a folder" in refusal(result, "-o", tmp_path / "file")
    assert "Not a directory" in refusal(result, "-o", tmp_path / "file" / "out")
    assert "No such file" in refusal(result, "-o", tmp_path / "absent" / "out")
    assert "a folder is in the way" in refusal(result, "-o", tmp_path / "taken", "--overwrite")
    assert "cannot create" in refusal(result, "-o", "/proc/moe-outliers")
    assert "cannot create" in refusal(result, "-o", "/proc")
    assert sorted(os.listdir(tmp_path)) == ["file", "r.h5", "taken"]
    assert os.listdir(tmp_path / "taken") == [ANALYSIS]


def test_exports_at_the_same_time(tmp_path, result):
    """One of them wins, the others refuse, and nothing is mixed."""
    argv = helpers.command(["export", result, "-o", tmp_path / "out"])
    started = [subprocess.Popen(argv, stderr=subprocess.PIPE, env=helpers.environment()) for _ in range(4)]
    ends = sorted((process.communicate()[1], process.returncode)[1] for process in started)
    assert ends[0] == 0 and set(ends[1:]) <= {1, 2}
    assert set(FILES) <= set(os.listdir(tmp_path / "out"))
    assert_analysis(load(tmp_path / "out", ANALYSIS), X, (6.0, 0.25, 0.06), result)


def test_no_room(tmp_path):
    """However much room there is: nothing stays, or all is there."""
    path, _ = large_result(tmp_path / "r.h5", 3, 150)
    outcomes = []
    for pages in (0, 1, 2, 3, 5, 10, 40, 60, 80, 200):
        disk = tmp_path / f"disk{pages}"
        with helpers.small_disk(disk, f"{4 * (pages + 1)}k"):
            (disk / "filled").write_bytes(bytes(4096))
            done = helpers.run(["export", path, "-o", disk / "out"], check=False)
            outcomes.append(done.returncode)
            if done.returncode:
                assert re.fullmatch(r"moe-outliers: error: [^\n]*No space left on device[^\n]*\n", done.stderr)
                assert os.listdir(disk) == ["filled"]
            else:
                assert done.stderr == "" and sorted(os.listdir(disk / "out")) == FILES
    assert outcomes[0] == 1 and outcomes[-1] == 0 and outcomes == sorted(outcomes, reverse=True)
    assert set(outcomes) == {0, 1}


def test_file_size_limit(tmp_path):
    path, _ = large_result(tmp_path / "r.h5", 3, 150)
    argv = helpers.command(["export", path, "-o", tmp_path / "out"])

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

    done = subprocess.run(argv, capture_output=True, text=True, env=helpers.environment(), preexec_fn=limit)
    assert done.returncode == 1
    assert re.fullmatch(r"moe-outliers: error: [^\n]*File too large[^\n]*\n", done.stderr)
    assert os.listdir(tmp_path) == ["r.h5"]


INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(scope="module")
def long_export(tmp_path_factory):
    """A result whose export takes a while."""
    return large_result(tmp_path_factory.mktemp("long") / "r.h5", 50, 4000)[0]


def start_export(path, folder, **more):
    argv = helpers.command(["export", path, "-o", folder, "--overwrite"])
    env = helpers.environment(UCX_DEBUG_SIGNO="0")  # or UCX, which Open MPI 5 loads, takes SIGHUP
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=env, **more)
    limit = time.monotonic() + 60 * helpers.SLOW
    while not any(folder.glob("*.partial-*")):
        assert process.poll() is None and time.monotonic() < limit, process.communicate()
        time.sleep(0.001)
    return process


@pytest.mark.parametrize("number", INTERRUPTIONS, ids=lambda number: number.name)
@pytest.mark.parametrize("kept", (False, True), ids=("new folder", "old folder"))
def test_interrupted(tmp_path, long_export, number, kept):
    """Nothing is left but what was there, and the process ends by the signal."""
    folder = tmp_path / "out"
    if kept:
        folder.mkdir()
        (folder / CONFIG).write_text("mine")
    process = start_export(long_export, folder)
    process.send_signal(number)
    assert process.communicate(timeout=60)[1] == "" and process.returncode == -number
    assert os.listdir(tmp_path) == (["out"] if kept else [])
    if kept:
        assert os.listdir(folder) == [CONFIG] and (folder / CONFIG).read_text() == "mine"


def test_ignored_signals_stay_ignored(tmp_path, long_export):
    """As under nohup."""

    def ignore():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = start_export(long_export, tmp_path / "out", preexec_fn=ignore)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=120)
    assert process.returncode == 0 and sorted(os.listdir(tmp_path / "out")) == FILES


# --- damaged results ---


def spoil_rows(name, column, value, row=0):
    def spoil(file):
        rows = file[name][:]
        rows[column][row] = value
        file[name][:] = rows

    return spoil


def spoil_attribute(name, value):
    def spoil(file):
        file.attrs[name] = value

    return spoil


def replace(name, data):
    def spoil(file):
        del file[name]
        file[name] = data

    return spoil


def swap_rows(name, a, b):
    def spoil(file):
        rows = file[name][:]
        rows[[a, b]] = rows[[b, a]]
        file[name][:] = rows

    return spoil


def repeat_row(file):
    rows = file["sequence_features"][:]
    rows[1] = rows[0]
    file["sequence_features"][:] = rows


def remove(name):
    return lambda file: file.__delitem__(name)


def remove_attribute(name):
    return lambda file: file.attrs.__delitem__(name)


SITE, ROWS = "layers/001/ln_mlp", "sequence_features"
DAMAGES = {
    "incomplete": spoil_attribute("complete", np.int32(0)),
    "other format": spoil_attribute("format", "else"),
    "no config": remove_attribute("config"),
    "config that includes": spoil_attribute("config", ' @include "/etc/passwd"\n'),
    "config that is none": spoil_attribute("config", "model = { ;\n"),
    "deep config": spoil_attribute("config", "a = " + 40 * "( " + "1" + 40 * " )" + ";"),
    "config out of range": spoil_attribute("config", "a = 99999999999;"),
    "bad skip": spoil_attribute("config", "data: { skip = -1; };"),
    "no layers": spoil_attribute("n_layers", 0),
    "more layers": spoil_attribute("n_layers", 3),
    "many layers": spoil_attribute("n_layers", 2**62),
    "many sequences": spoil_attribute("n_sequences", 2**31 - 1),
    "long sequences": spoil_attribute("sequence_length", 2**40),
    "small hidden": spoil_attribute("hidden_size", 1),
    "no tokens": remove("tokens"),
    "flat tokens": replace("tokens", np.zeros(12, np.int32)),
    "no layer": remove("layers/001"),
    "no site": remove(SITE),
    "site of numbers": replace(SITE, np.zeros(3)),
    "site in two dimensions": replace(SITE, np.zeros((2, 2), made_up.SITE_ROW)),
    "site without a column": replace(SITE, np.zeros(2, [("sequence", "<i4"), ("feature", "<i4")])),
    "site of texts": replace(SITE, np.zeros(2, [(name, "S4") for name in made_up.SITE_ROW.names])),
    "site is a group": lambda file: (file.__delitem__(SITE), file.create_group(SITE)),
    "site's sequence": spoil_rows(SITE, "sequence", 3, -1),
    "site's negative sequence": spoil_rows(SITE, "sequence", -1),
    "site's feature": spoil_rows(SITE, "feature", 6, -1),
    "site's negative feature": spoil_rows(SITE, "feature", -(2**31)),
    "site's count": spoil_rows(SITE, "count", 0),
    "site's large count": spoil_rows(SITE, "count", 5),
    "site's other count": lambda file: file[SITE].__setitem__(slice(None), other_counts(file[SITE][:])),
    "site's min": spoil_rows(SITE, "min", np.nan),
    "site not sorted": swap_rows(SITE, 0, 1),
    "site not sorted by sequence": swap_rows(SITE, 0, -1),
    "no rows": remove(ROWS),
    "row's sequence": spoil_rows(ROWS, "sequence", 3, -1),
    "row's feature": spoil_rows(ROWS, "feature", 6),
    "row's negative feature": spoil_rows(ROWS, "feature", -1),
    "row's magnitude": spoil_rows(ROWS, "max_magnitude", np.nan),
    "row's fraction": spoil_rows(ROWS, "layer_percentage", np.inf),
    "row's sites": spoil_rows(ROWS, "sites_hit", 0),
    "row's occurrences": spoil_rows(ROWS, "total_occurrences", 10**9),
    "row twice": repeat_row,
    "rows not sorted": swap_rows(ROWS, 0, -1),
    "rows not sorted by magnitude": swap_rows(ROWS, 0, 1),
    "short nll": replace("perplexity/nll", NLL[:, :2]),
    "no nll": remove("perplexity/nll"),
    "nll of texts": replace("perplexity/nll", np.full((3, 3), b"x")),
}


def other_counts(rows):
    rows["count"] = rows["count"] % 4 + 1
    return rows


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged(tmp_path, result, damage):
    with h5py.File(result, "a") as file:
        DAMAGES[damage](file)
    assert str(result) in refusal(result, "-o", tmp_path / "out")
    assert os.listdir(tmp_path) == ["r.h5"]


def test_no_result(tmp_path):
    assert "absent.h5" in refusal(tmp_path / "absent.h5", "-o", tmp_path / "out")
    (tmp_path / "text.h5").write_text("no result\n" * 99)
    assert "text.h5" in refusal(tmp_path / "text.h5", "-o", tmp_path / "out")
    assert os.listdir(tmp_path) == ["text.h5"]


@pytest.mark.parametrize("size", (0, 2**40, 2**63))
def test_damaged_text(tmp_path, result, size):
    """HDF5 believes what the heap of the strings says of their sizes: it crashes, or never ends."""
    test_mutations.damage_texts(result, result, size)
    assert str(result) in refusal(result, "-o", tmp_path / "out", timeout=30 * helpers.SLOW)
    assert os.listdir(tmp_path) == ["r.h5"]


def test_random_damage_ends_cleanly(tmp_path, result):
    good, refused = result.read_bytes(), 0
    for seed in range(100):
        result.write_bytes(test_mutations.damage(random.Random(f"export {seed}"), good, len(good)))
        folder = tmp_path / f"out{seed}"
        done = helpers.run(["export", result, "-o", folder], check=False, timeout=20 * helpers.SLOW)
        test_mutations.assert_clean_end(done, seed)
        assert folder.exists() == (done.returncode == 0)
        refused += done.returncode == 2
    assert refused > 20
