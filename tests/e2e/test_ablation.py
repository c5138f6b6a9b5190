"""Runs with analysis.ablate = "features": numbers as transformers gives them with the same features zeroed, the same bits
on any number of ranks and in any memory, and what an interrupted one leaves."""

# cores: 1

import json
import math
import re
import signal

import h5py
import numpy as np
import pytest

import helpers
import interrupted
from watched import Watched

TOLERANCE = 1e-4  # relative
FOLDERS = sorted(path.parent for path in helpers.REFERENCES.glob("*/ablation.h5"))
INTACT, FEATURES, RANDOM = range(3)
OF_THE_RUN = {"n_ranks", "started", "finished", "config", "device"}


def run(folder, name, ranks=None, precision="fp32", analysis=None, **engine):
    """(path of the result, lines on stderr) of a run with an ablation."""
    checkpoint, output = helpers.REFERENCES / name, folder / "r.h5"
    analysis = {"ablate": "features"} | (analysis or {})
    sections = helpers.run_sections(
        checkpoint, checkpoint / "tokens.h5", output, precision, analysis=analysis, engine=engine
    )
    sections["output"]["overwrite"] = True
    done = helpers.run(["run", helpers.write_config(folder / "r.cfg", sections)], ranks, env=helpers.quick(ranks))
    return output, done.stderr.splitlines()


def tables(path):
    with h5py.File(path) as file:
        return file["ablation"][:], file["ablation_features"][:]


def assert_means(found, expected):
    for column in ("perplexity", "nll_mean", "top1_attention", "top1_token"):
        np.testing.assert_allclose(found[column], expected[column], rtol=TOLERANCE, err_msg=column)


def test_references_are_there():
    assert len(FOLDERS) >= 8


@pytest.mark.parametrize("name", [folder.name for folder in FOLDERS])
def test_as_transformers(tmp_path, name):
    path, lines = run(tmp_path, name)
    rows, features = tables(path)
    expected, expected_features = tables(helpers.REFERENCES / name / "ablation.h5")
    for column in ("variant", "draw", "n_features"):
        np.testing.assert_array_equal(rows[column], expected[column])
    for column in features.dtype.names:
        np.testing.assert_array_equal(features[column], expected_features[column])
    assert_means(rows, expected)
    with h5py.File(path) as file:
        enum = h5py.check_enum_dtype(file["ablation"].dtype["variant"])
        assert enum == {"INTACT": INTACT, "FEATURES": FEATURES, "RANDOM": RANDOM}
        table = file["features"][:]
        assert set(features["feature"][features["variant"] == FEATURES]) == set(
            table["feature"][table["classification"] != 0]
        )
    assert any(f"{len(rows)} variants" in line for line in lines)


def dense_growth(table, shape, features):
    """/growth as an array [layers, experts + 1, features], the shared expert last; no row is there twice."""
    values, places = np.zeros(shape), set()
    for row in table:
        place = (row["layer"], row["expert"] if row["expert"] >= 0 else shape[1] - 1, features.index(row["feature"]))
        assert place not in places
        places.add(place)
        values[place] = row["growth"]
    return values


GROWING = [folder.name for folder in FOLDERS if "growth" in h5py.File(folder / "ablation.h5")]


@pytest.mark.parametrize("name", GROWING)
@pytest.mark.parametrize("ranks", (None, 3))
def test_growth_as_transformers(tmp_path, name, ranks):
    path, _ = run(tmp_path, name, ranks, micro_batch=1)
    with h5py.File(helpers.REFERENCES / name / "ablation.h5") as file:
        expected, zeroed = file["growth"][:], file["ablation_features"][:]
    features = sorted(zeroed["feature"][zeroed["variant"] == FEATURES].tolist())
    with h5py.File(path) as file:
        table = file["growth"][:]
    found = dense_growth(table, expected.shape, features)
    of_layer = found.sum(axis=1)
    with h5py.File(helpers.REFERENCES / name / "reference.h5") as file:
        twins = file.attrs["twins"]
    for values in (found, expected) if twins.size else ():  # experts that are alike: which of them is chosen is a tie
        values[:, twins[0]] += values[:, twins[1]]
        values[:, twins[1]] = 0
    scale = np.abs(expected).sum(axis=1, keepdims=True)
    assert (np.abs(found - expected) <= TOLERANCE * scale).all()
    assert scale.any() and (found[scale.repeat(expected.shape[1], axis=1) == 0] == 0).all()
    for row in table:
        whole = of_layer[row["layer"], features.index(row["feature"])]
        assert row["growth_of_layer"] == pytest.approx(whole, rel=1e-9, abs=1e-12 * scale.max())
        assert row["share"] == pytest.approx(row["growth"] / row["growth_of_layer"], rel=1e-12)


def test_growth_adds_up(tmp_path):
    """In float32 the experts' growth is what the residual stream's squares gain, so the shares of a layer add up to 1."""
    path, _ = run(tmp_path, "glm4_moe_a")
    with h5py.File(path) as file:
        table = file["growth"][:]
    for layer in set(table["layer"]):
        for feature in set(table["feature"]):
            rows = table[(table["layer"] == layer) & (table["feature"] == feature)]
            assert rows["share"].sum() == pytest.approx(1, rel=1e-9) and (rows["expert"] == -1).sum() == 1


def test_no_growth_without_experts(tmp_path):
    path, _ = run(tmp_path, "llama_a")
    with h5py.File(path) as file:
        assert "ablation" in file and "growth" not in file


@pytest.mark.parametrize("precision", ("fp32", "bf16"))
@pytest.mark.parametrize("micro_batch", (0, 2, 3))
def test_intact_is_the_run_itself(tmp_path, precision, micro_batch):
    path, _ = run(tmp_path, "gpt_oss_a", precision=precision, micro_batch=micro_batch)
    rows, _ = tables(path)
    with h5py.File(path) as file:
        assert rows[INTACT]["perplexity"] == file["perplexity/perplexity"][()]
        losses = file["perplexity/nll"][:].astype(np.float64).ravel()
    assert rows[INTACT]["nll_mean"] == np.add.accumulate(losses)[-1] / losses.size
    assert rows[INTACT]["n_features"] == 0 and len(set(rows["perplexity"])) == len(rows)


def test_bf16_is_near(tmp_path):
    exact, _ = tables(helpers.REFERENCES / "mixtral_a" / "ablation.h5")
    rows, _ = tables(run(tmp_path, "mixtral_a", precision="bf16")[0])
    for column in ("nll_mean", "top1_attention", "top1_token"):
        np.testing.assert_allclose(rows[column], exact[column], rtol=0.02, err_msg=column)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """alone(name, micro_batch): contents of the result of one process."""
    results = {}

    def result(name, micro_batch):
        if (name, micro_batch) not in results:
            path, _ = run(tmp_path_factory.mktemp("alone"), name, micro_batch=micro_batch)
            results[name, micro_batch] = helpers.contents(path, but=OF_THE_RUN)
        return results[name, micro_batch]

    return result


@pytest.mark.parametrize(
    "name, micro_batch", (("gpt_oss_a", 1), ("gpt_oss_a", 2), ("qwen3_next_a", 1), ("glm4_moe_a", 0))
)
@pytest.mark.parametrize("ranks", (1, 2, 3, 9))
def test_ranks(tmp_path, alone, name, micro_batch, ranks):
    path, _ = run(tmp_path, name, ranks, micro_batch=micro_batch)
    helpers.assert_same(helpers.contents(path, but=OF_THE_RUN), alone(name, micro_batch))


@pytest.mark.parametrize("engine", ({"device": "check"}, {"partition": "interleaved"}, {"threads": 2}))
@pytest.mark.parametrize("ranks", (None, 2))
def test_what_changes_nothing(tmp_path, alone, engine, ranks):
    path, _ = run(tmp_path, "gpt_oss_a", ranks, micro_batch=2, **engine)
    helpers.assert_same(helpers.contents(path, but=OF_THE_RUN), alone("gpt_oss_a", 2))


@pytest.mark.parametrize("ranks", (None, 2))
def test_little_memory(tmp_path, alone, ranks):
    """The smallest budget holds one variant with the growth of 32 features, here a few without; more holds more."""
    checkpoint = helpers.REFERENCES / "gpt_oss_a"
    sections = helpers.run_sections(
        checkpoint,
        checkpoint / "tokens.h5",
        tmp_path / "r.h5",
        analysis={"ablate": "features"},
        engine={"device_memory_gb": 1e-9, "micro_batch": 2},
    )
    config = helpers.write_config(tmp_path / "least.cfg", sections)
    refused = helpers.run(["run", config], ranks, check=False, env=helpers.quick(ranks))
    assert refused.returncode == 2
    least = float(re.search(r"the smallest that works is ([0-9.]+) GB", refused.stderr)[1])
    with h5py.File(checkpoint / "tokens.h5") as file:
        tokens = file["tokens"].size
    passes = []
    for more in (0, 1.5e-9 * (4 * tokens * 64 + 10000)):
        path, lines = run(tmp_path, "gpt_oss_a", ranks, micro_batch=2, device_memory_gb=round(least + more, 9))
        passes.append(sum("of the ablation: more do not fit" in line for line in lines))
        helpers.assert_same(helpers.contents(path, but=OF_THE_RUN), alone("gpt_oss_a", 2))
    assert 5 >= passes[0] > passes[1] > 1


def test_no_outlier_features(tmp_path):
    path, lines = run(tmp_path, "llama_a", analysis={"threshold": 1e6})
    rows, features = tables(path)
    assert len(rows) == len(features) == 0
    assert "moe-outliers: note: there is no outlier feature to zero: /ablation is empty" in lines


def test_without_perplexity(tmp_path):
    rows, _ = tables(run(tmp_path, "llama_a", analysis={"perplexity": False})[0])
    expected, _ = tables(helpers.REFERENCES / "llama_a" / "ablation.h5")
    np.testing.assert_allclose(rows["top1_attention"], expected["top1_attention"], rtol=TOLERANCE)
    assert all(np.isnan(rows[column]).all() for column in ("perplexity", "nll_mean", "top1_token"))


def test_draws(tmp_path):
    none, _ = tables(run(tmp_path, "llama_a", analysis={"ablate_draws": 0})[0])
    assert none["variant"].tolist() == [INTACT, FEATURES]
    rows, features = tables(run(tmp_path, "llama_a", analysis={"ablate_draws": 5, "seed": 1})[0])
    assert rows["draw"].tolist() == [-1, -1, 0, 1, 2, 3, 4]
    outliers = set(features["feature"][features["variant"] == FEATURES])
    draws = [set(features["feature"][features["draw"] == draw]) for draw in range(5)]
    assert all(len(draw) == len(outliers) and not draw & outliers for draw in draws)
    assert len(set(map(frozenset, draws))) > 1
    _, others = tables(run(tmp_path, "llama_a", analysis={"ablate_draws": 5, "seed": 2})[0])
    assert [set(others["feature"][others["draw"] == draw]) for draw in range(5)] != draws


def test_not_asked_for(tmp_path):
    path, lines = run(tmp_path, "llama_a", analysis={"ablate": "none"})
    with h5py.File(path) as file:
        assert "ablation" not in file and "ablation_features" not in file
    assert not any("ablation" in line for line in lines)


# --- interrupted ---

CHANGES = {"analysis": {"threshold": 3.6, "ablate": "features", "min_position_fraction": 0.002}}
KEPT = rf"\({interrupted.TASKS} of {interrupted.TASKS} tasks\)"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    helpers.run(["run", interrupted.config(folder, **CHANGES)], env=helpers.quick())
    rows, _ = tables(folder / "r.h5")
    assert len(rows) == 5
    return interrupted.contents(folder / "r.h5")


@pytest.mark.parametrize("ranks", (None, 3))
@pytest.mark.parametrize("name", ("SIGKILL", "SIGTERM"))
def test_interrupted_in_the_second_pass(tmp_path, unbroken, ranks, name):
    """The run itself is kept whole; the ablation begins again."""
    args = ["run", interrupted.config(tmp_path, **CHANGES)]
    with Watched(args, ranks, {"OMPI_MCA_odls_base_sigkill_timeout": "1"}) as run_:
        run_.wait_until(lambda: any("variants" in line for line in run_.lines))
        run_.send(signal.Signals[name], *range(ranks or 0))
        run_.wait_for_end(30 * helpers.SLOW)
    assert not (tmp_path / "r.h5").exists()
    assert len(set(interrupted.records(tmp_path))) == interrupted.TASKS
    done = helpers.run(args, 2, env=helpers.quick(2))
    assert re.search(KEPT, done.stderr) and "5 variants" in done.stderr
    interrupted.assert_finished(tmp_path, unbroken)


# --- plan and report ---


def test_plan_says_what_it_takes(tmp_path):
    checkpoint = helpers.REFERENCES / "gpt_oss_a"
    sections = helpers.run_sections(
        checkpoint, checkpoint / "tokens.h5", tmp_path / "r.h5", analysis={"ablate": "features", "ablate_draws": 4}
    )
    config = helpers.write_config(tmp_path / "r.cfg", sections)
    text = helpers.run(["plan", config]).stdout
    assert re.search(r"^ablation +6 variants in 1 more pass, ", text, re.MULTILINE)
    plan = json.loads(helpers.run(["plan", config, "--json"]).stdout)
    assert plan["ablation"]["variants"] == 6 and plan["ablation"]["passes"] == 1
    assert plan["ablation"]["seconds"] > 0
    assert plan["ablation"]["memory_bytes"] > plan["activation_bytes"] * 6
    off = json.loads(helpers.run(["plan", config, "--json", "-s", "analysis.ablate=none"]).stdout)
    assert "ablation" not in off
    assert "ablation" not in helpers.run(["plan", config, "-s", "analysis.ablate=none"]).stdout


def test_plan_of_several_passes(tmp_path):
    checkpoint = helpers.REFERENCES / "gpt_oss_a"
    sections = helpers.run_sections(
        checkpoint, checkpoint / "tokens.h5", tmp_path / "r.h5", analysis={"ablate": "features"}
    )
    config = helpers.write_config(tmp_path / "r.cfg", sections)
    tiny = helpers.run(["plan", config, "-s", "engine.device_memory_gb=1e-9"], check=False)
    least = re.search(r"the smallest that works is ([0-9.]+) GB", tiny.stderr)[1]
    plan = json.loads(helpers.run(["plan", config, "--json", "-s", f"engine.device_memory_gb={least}"]).stdout)
    assert plan["ablation"]["passes"] == 5 and plan["ablation"]["memory_bytes"] <= 1e9 * float(least)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return run(folder, "gpt_oss_a")[0]


def test_report_json(finished):
    rows, features = tables(finished)
    model = json.loads(helpers.run(["report", finished, "--format", "json"]).stdout)["models"][0]
    names = ["INTACT", "FEATURES", "RANDOM", "RANDOM", "RANDOM"]
    assert [row["variant"] for row in model["ablation"]] == names
    for found, row in zip(model["ablation"], rows, strict=True):
        assert found["draw"] == (None if row["draw"] < 0 else row["draw"]) and found["n_features"] == row["n_features"]
        for column in ("perplexity", "nll_mean", "top1_attention", "top1_token"):
            assert math.isclose(found[column], row[column], rel_tol=1e-11)
        mine = (features["variant"] == row["variant"]) & (features["draw"] == row["draw"])
        assert found["features"] == features["feature"][mine].tolist()


def test_report_csv(finished):
    rows, _ = tables(finished)
    parts = helpers.run(["report", finished, "--format", "csv"]).stdout.split("\n\n")
    head = "file,model_name,variant,draw,n_features,perplexity,nll_mean,top1_attention,top1_token"
    (lines,) = (part.strip().splitlines() for part in parts if part.startswith(head))
    assert lines[0] == head
    assert len(lines) == 1 + len(rows)
    for line, row in zip(lines[1:], rows, strict=True):
        assert math.isclose(float(line.split(",")[5]), row["perplexity"], rel_tol=1e-11)


@pytest.mark.parametrize("style", ("table", "markdown"))
def test_report_text(finished, style):
    rows, _ = tables(finished)
    text = helpers.run(["report", finished, "--format", style]).stdout
    assert "Features zeroed at every site:" in text
    section = text[text.index("Features zeroed at every site:") :]
    for name in ("as it is", "outlier features", "random, draw 0", "random, draw 2"):
        assert name in section
    for row in rows:
        assert f"{row['perplexity']:.4f}" in section and f"{100 * row['top1_attention']:.2f}" in section


def test_report_of_a_run_without(tmp_path):
    path, _ = run(tmp_path, "llama_a", analysis={"ablate": "none"})
    assert "zeroed" not in helpers.run(["report", path]).stdout
    assert "ablation" not in json.loads(helpers.run(["report", path, "--format", "json"]).stdout)["models"][0]
    assert "top1_attention" not in helpers.run(["report", path, "--format", "csv"]).stdout
