"""Runs on random weights and tokens without files: model.path and data.tokens "synthetic:SEED"."""

import json

import h5py
import numpy as np
import pytest

import helpers

SEED, TOKENS, SEQUENCES, LENGTH = 7, "synthetic:3", 3, 40
# (shapes of a reference, the model's numbers, --dtype of the checkpoint that is compared, precision of the run)
MODELS = (
    ("qwen3_moe_a", "bfloat16", "bf16", "fp32"),
    ("olmoe_a", "float32", "f32", "bf16"),
    ("qwen3_next_a", "bfloat16", "bf16", "bf16"),
    ("gpt_oss_a", "bfloat16", "bf16", "fp32"),
    ("qwen3_a", "bfloat16", "bf16", "fp32"),
)


def config_json(folder, reference, numbers):
    """A copy of a reference's config.json that says how numbers are stored."""
    config = json.loads((helpers.REFERENCES / reference / "config.json").read_text())
    config.pop("dtype", None)
    path = folder / "shape.json"
    path.write_text(json.dumps(config | {"torch_dtype": numbers}))
    return path


def run(folder, model, precision, ranks=None, tokens=TOKENS, check=True, **engine):
    """A run of a small batch with all activations; `model`: the section. Returns (result file, process)."""
    output = folder / "result.h5"
    sections = {
        "model": {"name": "random"} | model,
        "data": {"tokens": tokens, "sequences": SEQUENCES, "length": LENGTH},
        "engine": {"device": "cpu", "precision": precision} | engine,
        "output": {"path": output, "activations": "all"},
    }
    folder.mkdir(exist_ok=True)
    config = helpers.write_config(folder / "run.cfg", sections)
    return output, helpers.run(["run", config], ranks, check=check, env=helpers.quick(ranks))


def expect_same(path, other):
    left, right = helpers.datasets(path), helpers.datasets(other)
    assert left.keys() == right.keys()
    for name in left:
        assert np.asarray(left[name]).tobytes() == np.asarray(right[name]).tobytes(), name


@pytest.mark.parametrize("reference, numbers, dtype, precision", MODELS)
def test_as_the_checkpoint_that_synth_writes(tmp_path, reference, numbers, dtype, precision):
    config = config_json(tmp_path, reference, numbers)
    helpers.run(["synth", config, "-o", tmp_path / "model", "--seed", SEED, "--dtype", dtype])
    written, _ = run(tmp_path / "written", {"path": tmp_path / "model"}, precision)
    made, process = run(tmp_path / "made", {"path": f"synthetic:{SEED}", "config": config}, precision)
    expect_same(written, made)
    assert "note:" not in process.stderr


def test_ranks_and_memory_change_nothing(tmp_path):
    config = config_json(tmp_path, "qwen3_moe_a", "bfloat16")
    model = {"path": f"synthetic:{SEED}", "config": config}
    alone, _ = run(tmp_path / "alone", model, "bf16")
    several, _ = run(tmp_path / "several", model, "bf16", ranks=2, readers=3, partition="interleaved")
    expect_same(alone, several)


def test_other_seeds_give_other_weights_and_tokens(tmp_path):
    config = config_json(tmp_path, "olmoe_a", "bfloat16")
    results = []
    for seed, tokens in ((1, 3), (2, 3), (1, 4)):
        model = {"path": f"synthetic:{seed}", "config": config}
        output, _ = run(tmp_path / f"{seed}-{tokens}", model, "bf16", tokens=f"synthetic:{tokens}")
        results.append(helpers.datasets(output))
    site = "activations/000/ln_attn"
    assert np.array_equal(results[0]["tokens"], results[1]["tokens"])
    assert not np.array_equal(results[0][site], results[1][site])
    assert not np.array_equal(results[0]["tokens"], results[2]["tokens"])


def test_tokens_of_a_file_and_random_ones(tmp_path):
    config = config_json(tmp_path, "olmoe_a", "bfloat16")
    model = {"path": f"synthetic:{SEED}", "config": config}
    random, _ = run(tmp_path / "random", model, "fp32")
    ids = helpers.datasets(random)["tokens"]
    assert ids.shape == (SEQUENCES, LENGTH)
    assert ids.min() >= 0 and ids.max() < json.loads(config.read_text())["vocab_size"]
    assert len(np.unique(ids)) > LENGTH / 2
    with h5py.File(tmp_path / "tokens.h5", "w") as file:
        file["tokens"] = ids
    read, _ = run(tmp_path / "read", model, "fp32", tokens=tmp_path / "tokens.h5")
    expect_same(random, read)


def test_fewer_layers_by_a_shorter_config(tmp_path):
    config = config_json(tmp_path, "qwen3_a", "bfloat16")
    all_layers, _ = run(tmp_path / "all", {"path": f"synthetic:{SEED}", "config": config}, "fp32")
    short = tmp_path / "short.json"
    short.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 1, "max_window_layers": 1}))
    one_layer, _ = run(tmp_path / "one", {"path": f"synthetic:{SEED}", "config": short}, "fp32")
    name = "activations/000/ln_mlp"
    assert np.array_equal(helpers.datasets(all_layers)[name], helpers.datasets(one_layer)[name])


def test_plan_of_synthetic_weights(tmp_path):
    config = config_json(tmp_path, "qwen3_moe_a", "bfloat16")
    cfg = helpers.write_config(tmp_path / "plan.cfg", {"model": {"path": "synthetic:9", "config": config}})
    assert f"config      {config}, random weights of seed 9\n" in helpers.run(["plan", cfg]).stdout
    assert json.loads(helpers.run(["plan", cfg, "--json"]).stdout)["config"] == str(config)


BAD_SEED = "give synthetic: and a whole number from 0 to 18446744073709551615"
BAD = {
    "no seed": ({"path": "synthetic:"}, TOKENS, 'bad seed "" (model.path): ' + BAD_SEED),
    "a word": ({"path": "synthetic:one"}, TOKENS, 'bad seed "one" (model.path): ' + BAD_SEED),
    "a sign": ({"path": "synthetic:-1"}, TOKENS, 'bad seed "-1" (model.path): ' + BAD_SEED),
    "a blank": ({"path": "synthetic: 1"}, TOKENS, 'bad seed " 1" (model.path): ' + BAD_SEED),
    "more behind": ({"path": "synthetic:1x"}, TOKENS, 'bad seed "1x" (model.path): ' + BAD_SEED),
    "beyond 64 bits": (
        {"path": "synthetic:18446744073709551616"},
        TOKENS,
        'bad seed "18446744073709551616" (model.path): ' + BAD_SEED,
    ),
    "no config": (
        {"path": "synthetic:1", "config": ""},
        TOKENS,
        'model.path is "synthetic:1" but model.config is not given (model.config): set it to a config.json',
    ),
    "an absent config": (
        {"path": "synthetic:1", "config": "nowhere/config.json"},
        TOKENS,
        "model.config cannot be read: No such file or directory (nowhere/config.json): give a config.json, relative to "
        "the working directory",
    ),
    "tokens without a seed": ({"path": "synthetic:1"}, "synthetic:", 'bad seed "" (data.tokens): ' + BAD_SEED),
    "tokens with a word": ({"path": "synthetic:1"}, "synthetic:x", 'bad seed "x" (data.tokens): ' + BAD_SEED),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(tmp_path, name):
    model, tokens, message = BAD[name]
    model = {"config": config_json(tmp_path, "olmoe_a", "bfloat16")} | model
    output, process = run(tmp_path / "out", model, "fp32", tokens=tokens, check=False)
    assert process.returncode == 2
    assert process.stderr == f"moe-outliers: error: {message}\n"
    assert process.stdout == ""
    assert [path.name for path in output.parent.iterdir()] == ["run.cfg"]


def test_the_largest_seed(tmp_path):
    config = config_json(tmp_path, "olmoe_a", "bfloat16")
    output, _ = run(tmp_path / "out", {"path": f"synthetic:{2**64 - 1}", "config": config}, "fp32")
    with h5py.File(output) as file:
        assert file.attrs["complete"] == 1
