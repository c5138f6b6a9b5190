"""The demo: a trained model on 4 ranks within a minute, far better than unigrams, with outlier features; and the
examples of the documentation."""

import re
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

import helpers
import recompute
import recompute_bootstrap

SECONDS = 60 * helpers.SLOW
DEMO = helpers.ROOT / "demo"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(result file, seconds, stderr) of the demo on 4 ranks; only the place of the result is another."""
    output = tmp_path_factory.mktemp("demo") / "demo.h5"
    args = ["run", "configs/demo.cfg", "-s", f"output.path={output}"]
    begin = time.monotonic()
    done = helpers.run(args, 4, timeout=SECONDS, cwd=helpers.ROOT)
    return output, time.monotonic() - begin, done


def unigram_perplexity(tokens):
    """Of the best possible unigram model of these very tokens: their own frequencies."""
    counts = np.unique(tokens, return_counts=True)[1]
    share = counts / tokens.size
    return float(np.exp(-np.sum(share * np.log(share))))


def test_demo_is_quick(demo):
    assert demo[1] < SECONDS
    assert demo[2].stdout == ""


def test_demo_runs_all_of_its_tokens(demo):
    with h5py.File(demo[0]) as file, h5py.File(DEMO / "tokens.h5") as tokens:
        assert file["tokens"].shape[0] == 16
        np.testing.assert_array_equal(file["tokens"][:], tokens["tokens"][:])


def test_demo_predicts_far_better_than_unigrams(demo):
    with h5py.File(demo[0]) as file:
        predicted = file["tokens"][:, 1:]
        assert file["perplexity/nll"].shape == predicted.shape
        perplexity = float(file["perplexity/perplexity"][()])
    assert 1 < perplexity < unigram_perplexity(predicted) / 3


def test_demo_has_outlier_features(demo):
    with h5py.File(demo[0]) as file:
        features = file["features"][:]
        found = int(file["summary/outlier_features"][()])
    assert found >= 1 and np.count_nonzero(features["classification"]) == found


def test_report_prints_the_outlier_features(demo):
    text = helpers.run(["report", demo[0]]).stdout
    with h5py.File(demo[0]) as file:
        for row in file["features"][:]:
            if row["classification"]:
                assert re.search(rf"^ *{row['feature']}  \w+ +{row['max_magnitude']:.2f} ", text, re.MULTILINE)


def test_checkpoint_is_small():
    assert (DEMO / "model.safetensors").stat().st_size < 8_000_000


def python_examples(name):
    """The Python code blocks of a document."""
    return re.findall(r"```python\n(.*?)```", (helpers.ROOT / name).read_text(), re.DOTALL)


def run_example(code, *args, cwd):
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, cwd=cwd)


def test_example_of_the_result_format(demo, tmp_path):
    pytest.importorskip("pandas")
    examples = python_examples("docs/results.md")
    assert len(examples) == 1 and len(examples[0].splitlines()) <= 12
    done = run_example(examples[0], demo[0], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with h5py.File(demo[0]) as file:
        first = next(row for row in file["features"] if row["classification"])
        names = {value: name for name, value in h5py.check_enum_dtype(first.dtype["classification"]).items()}
        assert file.attrs["model_name"] in done.stdout
        assert str(file["perplexity/perplexity"][()])[:8] in done.stdout
    assert re.search(rf"\b{first['feature']}\b", done.stdout)
    assert names[first["classification"]] in done.stdout and names[0] not in done.stdout


@pytest.mark.parametrize("name", ("README.md", "docs/demo.md"))
def test_other_examples(demo, tmp_path, name):
    """They name files from the root of the repository."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "demo.h5").symlink_to(demo[0])
    (tmp_path / "demo").symlink_to(DEMO)
    for code in python_examples(name):
        done = run_example(code, cwd=tmp_path)
        assert done.returncode == 0 and done.stdout, done.stderr


def test_perplexity_that_the_documentation_states(demo):
    """demo/README.md states what transformers gets in float32; the run rounds to bfloat16."""
    stated = re.search(r"loss on tokens.h5 \|.*perplexity ([0-9.]+)", (DEMO / "README.md").read_text())
    with h5py.File(demo[0]) as file:
        assert float(file["perplexity/perplexity"][()]) == pytest.approx(float(stated[1]), rel=0.02)


def test_worked_example_of_the_methods(tmp_path):
    """The numbers in docs/methods.md are the demo's in float32: what bf16 rounds differs between kinds of processors."""
    output = tmp_path / "demo.h5"
    helpers.run(
        ["run", "configs/demo.cfg", "-s", f"output.path={output}", "-s", "engine.precision=fp32"], cwd=helpers.ROOT
    )
    text = " ".join((helpers.ROOT / "docs" / "methods.md").read_text().split("## A worked example")[1].split())
    with h5py.File(output) as file:
        features, positions = file["features"][:], file["positions"][:]
        summary = {name: item[()] for name, item in file["summary"].items()}
        perplexity = [float(file[f"perplexity/perplexity{end}"][()]) for end in ("", "_low", "_high")]
    row, other = (features[features["feature"] == feature][0] for feature in (1, 123))
    mine = positions[positions["feature"] == 1]["positions_hit"]
    *most, last = map(str, mine)
    error = mine.std(ddof=1) / 4
    for shown in (
        f"hits {row['sites_hit']} sites",
        f"and {row['positions_hit']} positions: {', '.join(most)} and {last} in the 16",
        f"{row['sites_hit']} / 16 = {row['layer_percentage']:.4f}",
        f"{row['positions_hit']} / 4096 = {row['seq_percentage']:.4f}",
        f"{row['layers_hit']} / 8 = {row['block_percentage']:.3f}",
        f"{row['total_occurrences']} outlier values {row['positive']} are positive and {row['negative']} negative",
        f"Quartiles {row['q1']:.3f}, {row['median']:.3f}, {row['q3']:.3f}",
        f"mean {mine.mean():.2f}, standard deviation {mine.std(ddof=1):.3f} over the sequences, s = {error:.3f}",
        f"{(mine.mean() - 2.1314 * error) / 256:.4f} to {(mine.mean() + 2.1314 * error) / 256:.4f} of 256",
        f"**{row['seq_percentage_low']:.4f} to {row['seq_percentage_high']:.4f}**",
        f"**{row['layer_percentage_low']:.4f} to {row['layer_percentage_high']:.4f}**",
        f"**{row['qualifies_share']:.4f}** of the draws",
        f"{other['positions_hit']} positions ({other['seq_percentage']:.4f}), does in {other['qualifies_share']:.4f}",
        f"{summary['outlier_features']} outlier features, **{summary['outlier_features_low']:.0f} to "
        f"{summary['outlier_features_high']:.0f}**",
        f"Perplexity {perplexity[0]:.3f}, **{perplexity[1]:.3f} to {perplexity[2]:.3f}**",
    ):
        assert shown in text, shown


def test_tables_and_intervals_recomputed(tmp_path):
    """With activations stored, every table of the demo from NumPy, by three thresholds."""
    output = tmp_path / "demo.h5"
    args = ["run", "configs/demo.cfg", "-s", f"output.path={output}", "-s", "output.activations=all"]
    args += ["-s", "analysis.thresholds=(6.0, 7.5, 9.0)"]
    helpers.run(args, timeout=SECONDS, cwd=helpers.ROOT)
    with h5py.File(output) as result:
        x = helpers.site_tensors(result["activations"], result.attrs["n_layers"])
        draws, seed = int(result.attrs["bootstrap_draws"]), int(result.attrs["bootstrap_seed"])
        parts = {6.0: result, 7.5: result["thresholds/7.5"], 9.0: result["thresholds/9"]}
        assert set(result["thresholds"]) == {"7.5", "9"}
        for threshold, group in parts.items():
            tables = recompute.Tables(x, threshold)
            assert len(group["features"]) > 0
            recompute.assert_tables(group, tables, result["tokens"][:])
            recompute_bootstrap.assert_intervals(group, recompute_bootstrap.Bootstrap(tables, draws, seed))
