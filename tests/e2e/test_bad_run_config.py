"""Bad run configs, command lines and output paths are refused: one error line, exit status 2, nothing written."""

# cores: 1

import os

import pytest

import bad_input


def set_key(section, key, value):
    return lambda given: given.sections.setdefault(section, {}).update({key: value})


def drop_key(section, key):
    return lambda given: given.sections[section].pop(key)


def set_text(text):
    def spoil(given):
        given.text = text

    return spoil


def set_args(*args):
    def spoil(given):
        given.args = args

    return spoil


# (section, key, value): the error line names section.key and the config file with the line.
VALUES = (
    ("model", "path", 7),
    ("model", "path", ""),
    ("model", "path", True),
    ("model", "name", 3.5),
    ("data", "tokens", 1),
    ("data", "tokens", ["a.h5"]),
    ("data", "sequences", 0),
    ("data", "sequences", -3),
    ("data", "sequences", 2**40),
    ("data", "sequences", 3.0),
    ("data", "sequences", "3"),
    ("data", "length", 0),
    ("data", "length", -1),
    ("data", "length", 2**21),
    ("data", "length", True),
    ("data", "skip", -1),
    ("data", "skip", 0.5),
    ("analysis", "threshold", 0.0),
    ("analysis", "threshold", -6.0),
    ("analysis", "threshold", 1e39),
    ("analysis", "threshold", "six"),
    ("analysis", "min_layer_fraction", -0.1),
    ("analysis", "min_layer_fraction", 1.5),
    ("analysis", "min_position_fraction", 2),
    ("analysis", "systematic_fraction", "all"),
    ("analysis", "perplexity", 1),
    ("analysis", "perplexity", "yes"),
    ("analysis", "bootstrap", -1),
    ("analysis", "seed", -1),
    ("engine", "device", "gpu"),
    ("engine", "device", ""),
    ("engine", "device", 0),
    ("engine", "precision", "fp16"),
    ("engine", "precision", "FP32"),
    ("engine", "device_memory_gb", -1.0),
    ("engine", "device_memory_gb", 1e9),
    ("engine", "device_memory_gb", "all"),
    ("engine", "micro_batch", -1),
    ("engine", "micro_batch", 1.5),
    ("engine", "micro_batch", 4),
    ("engine", "partition", "random"),
    ("engine", "readers", -1),
    ("engine", "readers", 257),
    ("engine", "threads", -1),
    ("engine", "threads", 1000),
    ("output", "path", 5),
    ("output", "path", ""),
    ("output", "overwrite", "no"),
    ("output", "overwrite", 0),
    ("output", "activations", "some"),
    ("output", "activations", 3),
    ("output", "activations", [-1]),
    ("output", "activations", [0.5]),
    ("output", "activations", ["0"]),
    ("output", "activations", [3]),
    ("output", "activations", [0, 1, 65535]),
    ("output", "activations", [65536]),
    ("deployment", "gpus", "two"),
)


@pytest.mark.parametrize(
    "section, key, value", [pytest.param(*case, id=f"{case[0]}.{case[1]}={case[2]}") for case in VALUES]
)
def test_bad_value(tmp_path, section, key, value):
    bad_input.assert_refused(tmp_path, set_key(section, key, value), f"{section}.{key}")


CASES = (
    ("unknown_section", set_key("modle", "path", "x"), "modle"),
    ("unknown_key", set_key("engine", "treads", 2), "treads"),
    ("unknown_key_line", set_key("engine", "treads", 2), "run.cfg:4"),
    ("key_of_another_section", set_key("model", "tokens", "x.h5"), "tokens"),
    ("no_model_path", drop_key("model", "path"), "path"),
    ("no_tokens", drop_key("data", "tokens"), "tokens"),
    ("no_output_path", drop_key("output", "path"), "output"),
    ("section_is_a_number", set_text("model = 3;\n"), "model"),
    ("section_is_a_list", set_text('model: ( "a" );\n'), "model"),
    ("no_section", set_text('path = "a";\n'), "path"),
    ("empty", set_text(""), "path"),
    ("syntax", set_text('model: {\n  path = "a"\n  name "b";\n};\n'), "run.cfg:3"),
    ("not_closed", set_text('model: { path = "a";\n'), "run.cfg"),
    ("key_twice", set_text('model: { path = "a"; path = "b"; };\n'), "run.cfg:1"),
    ("zero_byte", set_text(b'model: { path = "a\0"; };\n'), "run.cfg"),
    ("binary", set_text(bytes(range(256)) * 20), "run.cfg"),
    ("json", set_text('{"model": {"path": "a"}}'), "run.cfg"),
    ("integer_too_large", set_text("data: { sequences = 99999999999999999999; };\n"), "run.cfg:1"),
    ("integer_without_suffix", set_text("data: { sequences = 3000000000; };\n"), "run.cfg:1"),
    ("not_utf8", set_text(b'model: { path = "\xff\xfe"; };\n'), "model.path"),
    ("includes_itself", set_text('@include "run.cfg"\n'), "include"),
    ("includes_nothing", set_text('@include "nowhere.cfg"\n'), "cannot open include file"),
    ("override_unknown", set_args("-s", "engine.treads=2"), "treads"),
    ("override_of_nothing", set_args("-s", "threads=2"), "threads"),
    ("override_without_value", set_args("-s", "engine.threads"), "engine.threads"),
    ("override_empty", set_args("-s", "engine.threads="), "engine.threads"),
    ("override_out_of_range", set_args("-s", "engine.threads=-1"), "engine.threads"),
    ("override_of_wrong_type", set_args("-s", "engine.threads=many"), "engine.threads"),
    ("override_layers", set_args("-s", "output.activations=0,7"), "layer 7"),
    ("override_missing", set_args("-s"), "-s"),
    ("unknown_option", set_args("--fast"), "--fast"),
    ("second_config", set_args("other.cfg"), "other.cfg"),
)


@pytest.mark.parametrize("spoil, keyword", [pytest.param(spoil, keyword, id=name) for name, spoil, keyword in CASES])
def test_bad_config(tmp_path, spoil, keyword):
    bad_input.assert_refused(tmp_path, spoil, keyword)


def config_absent(given):
    given.config = given.home / "absent.cfg"


def config_is_a_folder(given):
    given.config = given.home / "out"


def config_is_a_pipe(given):
    given.config = given.home / "pipe.cfg"
    os.mkfifo(given.config)


@pytest.mark.parametrize(
    "spoil, keyword", ((config_absent, "absent.cfg"), (config_is_a_folder, "out"), (config_is_a_pipe, "pipe.cfg"))
)
def test_config_that_is_no_file(tmp_path, spoil, keyword):
    bad_input.assert_refused(tmp_path, spoil, keyword)


def small_memory(given):
    given.sections["engine"]["device_memory_gb"] = 1e-6


def test_memory_that_holds_no_layer(tmp_path):
    bad_input.assert_refused(tmp_path, small_memory, "the smallest that works is")


# --- the output ---


def to(path):
    """path: of the result file, relative to the folder of the run, or absolute."""
    return lambda given: given.sections["output"].update(path=given.home / path)


def existing(given):
    given.output.write_text("an earlier result")


def existing_not_to_overwrite(given):
    existing(given)
    given.sections["output"]["overwrite"] = False


def existing_folder_to_overwrite(given):
    given.output.mkdir()
    given.sections["output"]["overwrite"] = True


def existing_partial_folder(given):
    given.output.with_name("result.h5.partial").mkdir()


def existing_pipe(given):
    os.mkfifo(given.output)
    given.sections["output"]["overwrite"] = True


def link_to_nowhere(given):
    given.output.symlink_to(given.home / "nowhere.h5")


def folder_is_read_only(given):
    given.output.parent.chmod(0o555)


OUTPUTS = (
    ("existing", existing, "result.h5"),
    ("existing_not_to_overwrite", existing_not_to_overwrite, "result.h5"),
    ("existing_folder_to_overwrite", existing_folder_to_overwrite, "result.h5"),
    ("existing_partial_folder", existing_partial_folder, "result.h5.partial"),
    ("existing_pipe", existing_pipe, "result.h5"),
    ("link_to_nowhere", link_to_nowhere, "result.h5"),
    ("a_folder", to("out"), "out"),
    ("ends_with_a_slash", lambda given: given.sections["output"].update(path=f"{given.home}/out/"), "out"),
    ("absent_folder", to("nowhere/result.h5"), "nowhere"),
    ("folder_is_a_file", to("tokens.h5/result.h5"), "tokens.h5"),
    ("unwritable_folder", to("/proc/result.h5"), "/proc"),
    ("unwritable_folder_of_the_kernel", to("/sys/result.h5"), "/sys"),
    ("name_too_long", to("out/" + "x" * 300 + ".h5"), "x" * 300),
    ("name_too_long_with_suffix", to("out/" + "x" * 250), "x" * 250),
    ("path_too_long", to("out/" + "x/" * 3000 + "a.h5"), "x/x/x"),
)


@pytest.mark.parametrize("spoil, keyword", [pytest.param(spoil, keyword, id=name) for name, spoil, keyword in OUTPUTS])
def test_bad_output(tmp_path, spoil, keyword):
    bad_input.assert_refused(tmp_path, spoil, keyword)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into any folder")
def test_read_only_folder(tmp_path):
    bad_input.assert_refused(tmp_path, folder_is_read_only, "out")


def test_good_input_is_accepted(tmp_path):
    """What the tests spoil is good before."""
    given = bad_input.Input(tmp_path / "good")
    bad_input.helpers.run(given.command(), cwd=given.home)
    assert [path.name for path in given.output.parent.iterdir()] == ["result.h5"]
