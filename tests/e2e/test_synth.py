"""`synth`: random checkpoints of every architecture, which `run` takes; what it refuses; and full storage."""

# cores: 1

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import time

import h5py
import numpy as np
import pytest

import bad_input
import helpers

# Keys of all architectures; each takes those that it knows.
SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 101,
    "intermediate_size": 48,
    "moe_intermediate_size": 32,
    "num_experts": 6,
    "num_local_experts": 6,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 20,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "sliding_window": 5,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
DTYPES = {"bf16": ("BF16", 2), "f16": ("F16", 2), "f32": ("F32", 4)}
SEQUENCES, LENGTH = 3, 19


def architectures():
    source = (helpers.ROOT / "src" / "model" / "architectures.c").read_text()
    return re.findall(r'\.model_type = "(\w+)"', source)


def config_json(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps(SHAPE | {"model_type": "olmoe"} | keys))
    return path


def tokens_file(folder):
    with h5py.File(folder / "tokens.h5", "w") as file:
        file["tokens"] = np.random.default_rng(1).integers(0, 101, (SEQUENCES, LENGTH), np.int32)
    return folder / "tokens.h5"


def header_of(model):
    return bad_input.Safetensors(model / "model.safetensors").header


def refusal(*args):
    done = helpers.run(["synth", *args], check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("moe-outliers: error: ") and done.stderr.count("\n") == 1
    return done.stderr


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_program_knows_these_architectures(tmp_path):
    line = refusal(config_json(tmp_path, model_type="none"), "-o", tmp_path / "model")
    assert re.search(r"supported are (.*)$", line)[1].split(", ") == architectures()


@pytest.mark.parametrize("precision", ("bf16", "fp32"))
@pytest.mark.parametrize("architecture", architectures())
def test_run_takes_it(tmp_path, architecture, precision):
    config = config_json(tmp_path, model_type=architecture)
    done = helpers.run(["synth", config, "-o", tmp_path / "model"])
    assert done.stdout == "" and done.stderr == ""
    sections = helpers.run_sections(tmp_path / "model", tokens_file(tmp_path), tmp_path / "r.h5", precision, "all")
    helpers.run(["run", helpers.write_config(tmp_path / "run.cfg", sections)], env=helpers.quick())
    with h5py.File(tmp_path / "r.h5") as file:
        assert file.attrs["architecture"] == architecture
        losses = file["perplexity/nll"][:]
        sites = helpers.site_tensors(file["activations"], SHAPE["num_hidden_layers"])
    assert np.isfinite(losses).all() and np.isfinite(sites).all()
    assert sites.std(axis=(1, 2, 3)).min() > 0.1
    assert 1 < losses.mean() < 15  # near ln 101: it knows nothing


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype(tmp_path, dtype):
    helpers.run(["synth", config_json(tmp_path), "-o", tmp_path / "model", "--dtype", dtype])
    name, size = DTYPES[dtype]
    for tensor in header_of(tmp_path / "model").values():
        begin, end = tensor["data_offsets"]
        assert tensor["dtype"] == name and end - begin == np.prod(tensor["shape"]) * size


def test_dtypes_agree(tmp_path):
    """The same values, rounded; f16 has no subnormal ones."""
    values = {}
    for dtype, reader in (("f32", np.float32), ("f16", np.float16)):
        helpers.run(["synth", config_json(tmp_path), "-o", tmp_path / dtype, "--dtype", dtype])
        values[dtype] = np.frombuffer(bad_input.Safetensors(tmp_path / dtype / "model.safetensors").data, reader)
    rounded = values["f32"].astype(np.float16)
    rounded[np.abs(rounded) < np.finfo(np.float16).smallest_normal] = 0
    np.testing.assert_array_equal(rounded, values["f16"])


def test_seed(tmp_path):
    config = config_json(tmp_path)
    for name, seed in (("a", "0"), ("b", "0"), ("c", "18446744073709551615")):
        helpers.run(["synth", config, "-o", tmp_path / name, "--seed", seed])
    helpers.run(["synth", config, "-o", tmp_path / "d"])
    a, b, c, d = (contents(tmp_path / name) for name in "abcd")
    assert a == b == d
    assert a["config.json"] == c["config.json"] and a["model.safetensors"] != c["model.safetensors"]


@pytest.mark.parametrize("architecture", architectures())
def test_layers(tmp_path, architecture):
    """The first layers of the whole model, which `run` takes too."""
    config = config_json(tmp_path, model_type=architecture)
    helpers.run(["synth", config, "-o", tmp_path / "whole"])
    helpers.run(["synth", config, "-o", tmp_path / "part", "--layers", "2"])
    whole, part = header_of(tmp_path / "whole"), header_of(tmp_path / "part")
    assert set(part) == {name for name in whole if not re.match(r"model\.layers\.[23]\.", name)}
    assert json.loads((tmp_path / "part" / "config.json").read_text())["num_hidden_layers"] == 2
    sections = helpers.run_sections(tmp_path / "part", tokens_file(tmp_path), tmp_path / "r.h5")
    helpers.run(["run", helpers.write_config(tmp_path / "run.cfg", sections)], env=helpers.quick())


def test_layer_types_are_cut_too(tmp_path):
    types = ["full_attention"] * SHAPE["num_hidden_layers"]
    config = config_json(tmp_path, model_type="qwen3", layer_types=types)
    helpers.run(["synth", config, "-o", tmp_path / "model", "--layers", "3"])
    assert json.loads((tmp_path / "model" / "config.json").read_text())["layer_types"] == types[:3]


def test_more_layers_than_the_model_has(tmp_path):
    line = refusal(config_json(tmp_path), "-o", tmp_path / "model", "--layers", "5")
    assert "--layers 5" in line and not (tmp_path / "model").exists()


def test_tied_model_has_no_head(tmp_path):
    helpers.run(["synth", config_json(tmp_path, tie_word_embeddings=True), "-o", tmp_path / "model"])
    assert "lm_head.weight" not in header_of(tmp_path / "model")


@pytest.mark.parametrize("name", ("config.json", "model.safetensors", "model.safetensors.index.json"))
def test_existing_checkpoint_is_refused(tmp_path, name):
    model = tmp_path / "model"
    model.mkdir()
    (model / name).write_text("mine")
    assert name in refusal(config_json(tmp_path), "-o", model)
    assert contents(model) == {name: b"mine"}


def test_finished_checkpoint_is_refused(tmp_path):
    config = config_json(tmp_path)
    helpers.run(["synth", config, "-o", tmp_path / "model"])
    before = contents(tmp_path / "model")
    refusal(config, "-o", tmp_path / "model", "--seed", "5")
    assert contents(tmp_path / "model") == before


@pytest.mark.parametrize("text", ("", "{", "[]", '{"model_type": "olmoe"}'))
def test_bad_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert "config.json" in refusal(tmp_path / "config.json", "-o", tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("output", ("nowhere/model", "config.json", "config.json/model", "/proc/model"))
def test_bad_folder(tmp_path, output):
    refusal(config_json(tmp_path), "-o", tmp_path / output)
    assert os.listdir(tmp_path) == ["config.json"]


def test_config_absent(tmp_path):
    assert "absent.json" in refusal(tmp_path / "absent.json", "-o", tmp_path / "model")


def test_full_disk(tmp_path):
    """However much room there is: an error line names the file and the reason and no file stays, or all is there."""
    config = config_json(tmp_path)
    helpers.run(["synth", config, "-o", tmp_path / "model"])
    pages = -((tmp_path / "model" / "model.safetensors").stat().st_size // -4096)
    names = set()
    for room in (1, 4, 16, pages // 2, *range(pages - 2, pages + 4)):
        disk = tmp_path / f"disk{room}"
        with helpers.small_disk(disk, f"{4 * room}k"):
            done = helpers.run(["synth", config, "-o", disk / "model"], check=False)
            if done.returncode == 0:
                assert sorted(os.listdir(disk / "model")) == ["config.json", "model.safetensors"]
                continue
            assert done.returncode == 1 and done.stderr.count("\n") == 1
            assert done.stderr.startswith("moe-outliers: error: ") and "No space left on device" in done.stderr
            names |= set(re.findall(r"model\.safetensors|config\.json", done.stderr))
            assert not (disk / "model").exists() or os.listdir(disk / "model") == []
    assert done.returncode == 0 and names == {"model.safetensors", "config.json"}


# --- killed on its way ---


def large_json(folder):
    """A model of 1.6 GB, so that there is time to interfere."""
    keys = {"hidden_size": 1024, "moe_intermediate_size": 1024, "intermediate_size": 1024, "num_hidden_layers": 8}
    return config_json(folder, **keys, num_experts=32)


def killed(config, model, done):
    """Start `synth` and kill it as soon as done(files of the folder) is true."""
    with subprocess.Popen(helpers.command(["synth", config, "-o", model]), env=helpers.environment()) as process:
        end = time.monotonic() + 60 * helpers.SLOW
        while not (model.is_dir() and done({path.name: path for path in model.iterdir()})):
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def test_killed_synth_is_not_finished(tmp_path):
    """Nothing bears a final name, `run` refuses the folder, and the next synth replaces what is there."""
    model = tmp_path / "model"
    partial = "model.safetensors.partial"
    killed(large_json(tmp_path), model, lambda files: partial in files and files[partial].stat().st_size > 2_000_000)
    assert sorted(os.listdir(model)) == ["config.json.partial", partial]
    sections = helpers.run_sections(model, tokens_file(tmp_path), tmp_path / "r.h5")
    done = helpers.run(["run", helpers.write_config(tmp_path / "run.cfg", sections)], check=False, env=helpers.quick())
    assert done.returncode == 2 and "has no config.json" in done.stderr
    small = config_json(tmp_path)
    helpers.run(["synth", small, "-o", model])
    helpers.run(["synth", small, "-o", tmp_path / "new"])
    assert contents(model) == contents(tmp_path / "new")


def test_leftovers_are_replaced(tmp_path):
    """As if it had been killed between two renames, of another model; what is not its own stays."""
    model = tmp_path / "model"
    model.mkdir()
    ours = ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors.partial", "config.json.partial")
    others = ("notes.txt", "model-1.safetensors", "model-00001-of-00003.safetensors.bak")
    for name in (*ours, "model.safetensors.index.json.partial", *others):
        (model / name).write_text("old")
    helpers.run(["synth", config_json(tmp_path), "-o", model])
    assert sorted(os.listdir(model)) == sorted(("config.json", "model.safetensors", *others))


def test_two_at_once(tmp_path):
    config, model = large_json(tmp_path), tmp_path / "model"
    with subprocess.Popen(helpers.command(["synth", config, "-o", model]), env=helpers.environment()) as first:
        while not (model / "model.safetensors.partial").exists():
            assert first.poll() is None
            time.sleep(0.001)
        assert "another process writes to the folder" in refusal(config, "-o", model)
        first.kill()
    assert not (model / "config.json").exists()


def test_bar(tmp_path):
    """On a terminal, which is stderr alone; nothing on stdout."""
    ours, theirs = pty.openpty()
    argv = helpers.command(["synth", large_json(tmp_path), "-o", tmp_path / "model"])
    text = b""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=theirs, env=helpers.environment()) as process:
        os.close(theirs)
        try:
            while part := os.read(ours, 4096):
                text += part
        except OSError:  # the other end is closed
            pass
        assert process.stdout.read() == b""
    os.close(ours)
    assert process.returncode == 0
    bars = text.decode().split("\r")[1:]
    drawn = re.compile(r"\[#*\.*\] +\d+ %  \S+ of \S+ GB written  \d+\.\d\d GB/s  ETA \S+( s| min)?\x1b\[K$")
    assert len(bars) > 2 and all(drawn.match(bar) for bar in bars[:-1]), bars
    assert bars[-1] == "\x1b[K"  # the bar has gone
    shutil.rmtree(tmp_path / "model")
