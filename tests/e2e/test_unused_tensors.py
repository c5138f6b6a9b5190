"""Tensors of a checkpoint that the model does not use: they change nothing, are counted, and named on request."""

import json
import shutil

import pytest

import bad_input
import helpers

EXTRA = {
    "mtp.fc.weight": ("BF16", [4, 8], 64),
    "lm_head.weight": ("BF16", [4, 4], 32),
    "model.layers.0.self_attn.rotary_emb.inv_freq": ("F64", [2], 16),
}


def add_tensor(file, name, dtype, shape, count):
    """count: bytes; they are 0xff, which is no number in any of the types."""
    begin = len(file.data)
    file.header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + count]}
    file.data += b"\xff" * count


def copy_model(source, home):
    shutil.copytree(source, home / "model", ignore=shutil.ignore_patterns("reference.h5"))
    return home / "model"


def run(model, output, *args, ranks=None):
    sections = helpers.run_sections(model, model / "tokens.h5", output)
    config = helpers.write_config(output.with_suffix(".cfg"), sections)
    return helpers.run(["run", config, *args], ranks)


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A checkpoint with tied embeddings, to which tensors were added, and the result without them."""
    home = tmp_path_factory.mktemp("tied")
    source = next(
        path.parent
        for path in sorted(helpers.REFERENCES.glob("*/config.json"))
        if json.loads(path.read_text())["tie_word_embeddings"] and (path.parent / "model.safetensors").exists()
    )
    model, plain = copy_model(source, home), home / "plain.h5"
    run(model, plain)
    file = bad_input.Safetensors(model / "model.safetensors")
    for name, extra in EXTRA.items():
        if name in file.header:
            file.replace(name, extra[0], extra[1], b"\xff" * extra[2])
        else:
            add_tensor(file, name, *extra)
    file.write()
    return model, plain


@pytest.mark.parametrize("ranks", (None, 2))
def test_counted_in_one_line(tied, tmp_path, ranks):
    done = run(tied[0], tmp_path / "result.h5", ranks=ranks)
    notes = [line for line in done.stderr.splitlines() if "not used" in line]
    assert len(notes) == 1 and "note: 3 tensors" in notes[0] and "--verbose" in notes[0]


@pytest.mark.parametrize("option", ("-v", "--verbose"))
def test_named_on_request(tied, tmp_path, option):
    done = run(tied[0], tmp_path / "result.h5", option, ranks=2)
    named = [line.split(": ")[2].split(",")[0] for line in done.stderr.splitlines() if ": not used: " in line]
    assert named == sorted(EXTRA)


def test_they_change_nothing(tied, tmp_path):
    run(tied[0], tmp_path / "result.h5")
    with_them, without = helpers.datasets(tmp_path / "result.h5"), helpers.datasets(tied[1])
    assert with_them.keys() == without.keys()
    for name, values in without.items():
        assert values.tobytes() == with_them[name].tobytes(), name


def test_silent_where_all_are_used(tmp_path):
    model = copy_model(bad_input.MODEL, tmp_path)
    assert "not used" not in run(model, tmp_path / "result.h5", "--verbose").stderr


def test_not_in_the_index(tmp_path):
    """A tensor of a shard that the index does not name is ignored too, and said to be."""
    model = copy_model(bad_input.SHARDED, tmp_path)
    shard = sorted(model.glob("*.safetensors"))[0]
    file = bad_input.Safetensors(shard)
    add_tensor(file, "forgotten.weight", "BF16", [4], 8)
    file.write()
    stderr = run(model, tmp_path / "result.h5").stderr
    assert "note: 1 tensor of the shards ignored: the index does not name it" in stderr
