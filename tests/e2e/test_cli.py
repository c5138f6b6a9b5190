"""Command line: help, version, wrong usage, `plan`, and what goes to stdout."""

# cores: 1

import json
import math
import os
import re

import pytest

import bad_input
import helpers
import interrupted

COMMANDS = ("run", "plan", "config", "report", "export", "synth")
REFERENCES = sorted(path.parent for path in helpers.REFERENCES.glob("*/config.json"))


def refusal(*args, ranks=None):
    """The error line of a call that is refused."""
    done = helpers.run(args, ranks, check=False, timeout=30 * helpers.SLOW, env=helpers.quick(ranks))
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = bad_input.own_lines(done.stderr)
    assert len(lines) == 1 and lines[0].startswith("moe-outliers: error: "), done.stderr
    return lines[0]


def printed(*args, **more):
    """stdout of a call that succeeds without a word on stderr."""
    done = helpers.run(args, **more)
    assert done.stderr == ""
    return done.stdout


# --- help and version ---


@pytest.mark.parametrize("option", ("--help", "-h"))
def test_help(option):
    text = printed(option)
    assert text.startswith("Usage: moe-outliers ")
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", text, re.MULTILINE)
    assert "Exit status" in text and "Examples:" in text


@pytest.mark.parametrize("option", ("--help", "-h"))
@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command, option):
    text = printed(command, option)
    assert text.startswith(f"Usage: moe-outliers {command} ")
    assert "Options:" in text and "Examples:" in text
    assert f"moe-outliers {command} " in text.split("Examples:")[1]


def test_help_of_run_names_the_keys():
    keys = set(re.findall(r"^  (\w+\.\w+) ", printed("run", "--help"), re.MULTILINE))
    with open(helpers.ROOT / "tests" / "fuzz" / "corpus" / "config" / "design.cfg") as file:
        used = re.findall(r"(\w+) = ", file.read())
    assert set(used) <= {key.split(".")[1] for key in keys}


@pytest.mark.parametrize("args", (["--help"], ["run", "--help"], ["--version"]))
def test_ranks_print_help_once(args):
    done = helpers.run(args, 3, env=helpers.quick(3))
    assert done.stdout == printed(*args)


def test_version():
    text = printed("--version")
    assert re.match(r"moe-outliers \d+\.\d+\.\d+\n", text)
    for word in ("commit:", "compiler:", "backends:", "HDF5", "MPI", "OpenBLAS", "libconfig", "jansson"):
        assert word in text
    assert re.search(r"^backends: .*cpu", text, re.MULTILINE)


def test_lost_output_is_an_error():
    """stdout on a full device."""
    with open("/dev/full", "w") as full:
        done = helpers.subprocess.run(
            helpers.command(["--version"]), stdout=full, stderr=helpers.subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr.startswith("moe-outliers: error: ") and "No space left on device" in done.stderr


# --- wrong usage ---

WRONG = (
    (["fly"], "fly"),
    (["--fast"], "--fast"),
    (["Run"], "Run"),
    ([], "no command"),
    (["run"], "config"),
    (["run", "--fast", "x.cfg"], "--fast"),
    (["run", ""], "config"),
    (["plan"], "config"),
    (["plan", "--gpus"], "--gpus"),
    (["plan", "x.cfg", "--gpus", "0"], "--gpus"),
    (["plan", "x.cfg", "--gpus", "two"], "--gpus"),
    (["plan", "x.cfg", "--gpus=1.5"], "--gpus"),
    (["plan", "x.cfg", "--gpus=-1"], "--gpus"),
    (["plan", "x.cfg", "--vram", "0"], "--vram"),
    (["plan", "x.cfg", "--vram", "nan"], "--vram"),
    (["plan", "x.cfg", "--vram=1e9"], "--vram"),
    (["plan", "x.cfg", "--json=yes"], "--json"),
    (["plan", "x.cfg", "y.cfg"], "y.cfg"),
    (["plan", "absent.cfg"], "absent.cfg"),
    (["report"], "result file"),
    (["report", "absent.h5"], "absent.h5"),
    (["report", "x.h5", "--format", "xml"], "xml"),
    (["report", "x.h5", "--features", "-1"], "--features"),
    (["config"], "config file"),
    (["export"], "result file"),
    (["export", "x.h5"], "-o"),
    (["export", "-o", "x"], "result file"),
    (["export", "x.h5", "y.h5", "-o", "x"], "y.h5"),
    (["export", "x.h5", "-o"], "-o"),
    (["export", "x.h5", "-o", "x", "--overwrite=yes"], "--overwrite"),
    (["export", "absent.h5", "-o", "x"], "absent.h5"),
    (["synth"], "CONFIG.json"),
    (["synth", "x.json"], "-o"),
    (["synth", "-o", "x"], "CONFIG.json"),
    (["synth", "x.json", "-o", "x", "--dtype", "int8"], "int8"),
    (["synth", "x.json", "-o", "x", "--layers", "0"], "--layers"),
    (["synth", "x.json", "-o", "x", "--seed", "-1"], "--seed"),
    (["synth", "x.json", "-o", "x", "--seed", "99999999999999999999"], "--seed"),
)


@pytest.mark.parametrize("args, keyword", [pytest.param(*case, id=" ".join(case[0]) or "nothing") for case in WRONG])
def test_wrong_usage(tmp_path, monkeypatch, args, keyword):
    monkeypatch.chdir(tmp_path)
    assert keyword in refusal(*args)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("args, keyword", ((["fly"], "fly"), (["run"], "config"), (["run", "--fast"], "--fast")))
def test_wrong_usage_on_ranks(args, keyword):
    assert keyword in refusal(*args, ranks=4)


def test_debug_adds_the_place(tmp_path):
    env = {"MOE_OUTLIERS_DEBUG": "1"}
    done = helpers.run(["plan", tmp_path / "absent.cfg"], check=False, env=env)
    assert re.search(r"\[[\w./-]*\w+\.c:\d+\]$", done.stderr.rstrip())
    assert "[" not in refusal("plan", tmp_path / "absent.cfg")


def test_error_stays_one_line():
    assert refusal("plan", "two\nlines\x1b[31m.cfg").count("two?lines?[31m.cfg") == 1


# --- run: stdout is for results ---


@pytest.mark.parametrize("ranks", (None, 2))
def test_run_is_silent_on_stdout(tmp_path, ranks):
    given = bad_input.Input(tmp_path / "given")
    done = helpers.run(given.command(), ranks, env=helpers.quick(ranks))
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert all(line.startswith("moe-outliers: ") for line in lines)
    layers = [re.search(r"layer (\d+)/3 done  rank (\d+)", line) for line in lines]
    assert sorted(found[1] for found in layers if found) == ["1", "2", "3"]
    assert lines[-1].startswith(f"moe-outliers: wrote {given.output}: ")


def test_run_notes_surplus_ranks(tmp_path):
    given = bad_input.Input(tmp_path / "given")
    done = helpers.run(given.command(), 7, env=helpers.quick(7))
    notes = [line for line in done.stderr.splitlines() if "note:" in line]
    assert len(notes) == 1 and "2 of 7 ranks have nothing to compute" in notes[0]


def test_overwrite(tmp_path):
    given = bad_input.Input(tmp_path / "given")
    given.sections["output"]["overwrite"] = True
    given.output.write_text("an earlier result")
    helpers.run(given.command(), env=helpers.quick())
    assert helpers.datasets(given.output)
    assert os.listdir(given.output.parent) == ["result.h5"]


def test_overrides_count_in_order(tmp_path):
    given = bad_input.Input(tmp_path / "given")
    args = [*given.command(), "-s", "analysis.threshold=5.0", "--set=analysis.threshold=7.5", "-sdata.sequences=2"]
    helpers.run(args, env=helpers.quick())
    with helpers.h5py.File(given.output) as file:
        assert file.attrs["threshold"] == 7.5
        assert file.attrs["n_sequences"] == 2
        assert "threshold = 7.5" in file.attrs["config"]


# --- plan ---


@pytest.fixture(params=REFERENCES, ids=lambda path: path.name)
def checkpoint(request):
    return request.param


def plan_config(folder, checkpoint, **changes):
    sections = helpers.run_sections(checkpoint, checkpoint / "tokens.h5", folder / "r.h5", **changes)
    return helpers.write_config(folder / "plan.cfg", sections)


def plan_json(config, *args):
    return json.loads(printed("plan", config, "--json", *args))


@pytest.mark.parametrize("gpus", (1, 2, 3, 30))
@pytest.mark.parametrize("partition", ("auto", "contiguous", "interleaved"))
def test_blocks_cover_all_stages_once(tmp_path, checkpoint, partition, gpus):
    plan = plan_json(plan_config(tmp_path, checkpoint, engine={"partition": partition}), "--gpus", gpus)
    stages, ranks = plan["layers"] + 2, min(gpus, plan["layers"] + 2)
    covered = [
        stage
        for block in plan["blocks"]
        for stage in range(block["first_stage"], block["first_stage"] + block["stages"])
    ]
    assert covered == list(range(stages))
    assert {block["rank"] for block in plan["blocks"]} == set(range(ranks))
    assert len(plan["ranks"]) == gpus
    assert [rank["memory_bytes"] > 0 for rank in plan["ranks"]] == [True] * ranks + [False] * (gpus - ranks)
    for neighbour, block in zip(plan["blocks"], plan["blocks"][1:]):
        assert partition == "auto" or ranks == 1 or neighbour["rank"] != block["rank"]


def elements_of(checkpoint):
    """{name: number of elements} of the tensors in the files, bytes for those of bytes."""
    found = {}
    for file in checkpoint.glob("*.safetensors"):
        header = bad_input.Safetensors(file).header
        found |= {name: math.prod(item["shape"]) for name, item in header.items() if name != "__metadata__"}
    return found


def test_parameters_are_those_of_the_files(tmp_path, checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    if "quantization_config" in config or any("_blocks" in name for name in elements_of(checkpoint)):
        pytest.skip("quantized tensors hold other than one element a parameter")
    plan = plan_json(plan_config(tmp_path, checkpoint))
    elements = elements_of(checkpoint)
    used = {name: count for name, count in elements.items() if not name.startswith("mtp.")}
    used = {name: count for name, count in used.items() if f"model.layers.{plan['layers']}." not in name}
    if config["tie_word_embeddings"]:
        used.pop("lm_head.weight", None)
    assert plan["parameters"] == sum(used.values())
    routed = sum(count for name, count in used.items() if re.search(r"\.experts\.", name))
    idle = routed * (plan["experts"] - plan["experts_per_token"]) // plan["experts"] if routed else 0
    assert plan["active_parameters"] == plan["parameters"] - idle
    embedding = elements["model.embed_tokens.weight"]
    assert plan["active_parameters_without_embedding"] == plan["active_parameters"] - embedding


def test_plan_without_perplexity_has_no_head(tmp_path):
    plan = plan_json(plan_config(tmp_path, bad_input.MODEL, analysis={"perplexity": False}))
    assert sum(block["stages"] for block in plan["blocks"]) == plan["layers"] + 1


def test_plan_needs_no_weights_and_no_tokens(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_bytes((bad_input.MODEL / "config.json").read_bytes())
    config = helpers.write_config(tmp_path / "plan.cfg", {"model": {"path": model}})
    assert plan_json(config)["parameters"] == plan_json(plan_config(tmp_path, bad_input.MODEL))["parameters"]


def test_plan_text(tmp_path):
    config = plan_config(tmp_path, bad_input.MODEL)
    text, plan = printed("plan", config, "--gpus", 2), plan_json(config, "--gpus", 2)
    assert f"{plan['parameters']} total, {plan['active_parameters']} active" in text
    assert f"{plan['checkpoint_bytes']} bytes" in text
    rows = re.findall(r"^ +(\d+) (embedding|layer \d+|head)", text.split("memory GB\n")[1], re.MULTILINE)
    assert [int(rank) for rank, _ in rows] == [block["rank"] for block in plan["blocks"]]


def test_plan_of_more_gpus_than_stages(tmp_path):
    config = plan_config(tmp_path, bad_input.MODEL)
    text = printed("plan", config, "--gpus", 9)
    assert "note: 4 of 9 ranks have nothing to compute: the model has 5 stages" in text
    assert plan_json(config, "--gpus", 9)["idle_ranks"] == 4 and plan_json(config, "--gpus", 5)["idle_ranks"] == 0


def smallest(line):
    return re.search(r"the smallest that works is ([0-9.]+) GB", line)[1]


@pytest.mark.parametrize("gpus", (1, 3))
def test_plan_with_too_little_memory(tmp_path, checkpoint, gpus):
    config = plan_config(tmp_path, checkpoint)
    line = refusal("plan", config, "--gpus", gpus, "--vram", "1e-6")
    assert "too small" in line
    plan = plan_json(config, "--gpus", gpus, "--vram", smallest(line))
    assert max(rank["memory_bytes"] for rank in plan["ranks"]) <= float(smallest(line)) * 1e9
    refusal("plan", config, "--gpus", gpus, "--vram", f"{float(smallest(line)) - 2e-6:.9f}")


def test_plan_is_what_run_does(tmp_path):
    """Blocks of the plan are the ranks in the timing table of the run."""
    given = bad_input.Input(tmp_path / "given")
    args = given.command()
    plan = plan_json(given.config, "--gpus", 3)
    helpers.run(args, 3, env=helpers.quick(3))
    with helpers.h5py.File(given.output) as file:
        timing = file["timing"][:]
    found = {int(row["layer"]) + 1: int(row["rank"]) for row in timing}
    assert found == {
        stage: block["rank"]
        for block in plan["blocks"]
        for stage in range(block["first_stage"], block["first_stage"] + block["stages"])
    }
    assert int(timing["bytes_read"].sum()) == plan["checkpoint_bytes"]


def test_config_prints_what_a_run_would_have(tmp_path):
    sections = {
        "model": {"path": "a \"b\""},
        "data": {"tokens": "synthetic:1"},
        "analysis": {"thresholds": (6.0, 4.5)},
        "output": {"path": "r.h5"},
    }
    config = helpers.write_config(tmp_path / "c.cfg", sections)
    values = json.loads(helpers.run(["config", config, "-s", "data.skip=3"]).stdout)
    assert values["model"]["path"] == 'a "b"' and values["data"]["skip"] == 3
    keys = ["model.path", "analysis.thresholds", "data.sequences", "output.overwrite", "engine.device"]
    printed = helpers.run(["config", config, *keys]).stdout
    assert printed == 'a "b"\n[6.0, 4.5]\n16\nfalse\nauto\n'
    for wrong in (["output.nothing"], ["output"], ["-s", "data.skip=-1"], ["--result", tmp_path / "absent.h5"]):
        refused = helpers.run(["config", config, *wrong], check=False)
        assert refused.returncode == 2 and refused.stdout == "" and len(refused.stderr.splitlines()) == 1
        assert str(wrong[-1]).split("=")[0] in refused.stderr


def test_config_tells_what_a_result_was_made_with(tmp_path):
    config = interrupted.config(tmp_path, data={"length": 16})
    helpers.run(["run", config])
    same = ["config", config, "--result", tmp_path / "r.h5"]
    assert helpers.run([*same, "-s", "engine.threads=2", "-s", "output.path=x.h5"]).stdout == ""
    for setting in ("data.length=17", "analysis.threshold=3.0", "analysis.seed=1", "engine.precision=fp32"):
        refused = helpers.run([*same, "-s", setting], check=False)
        key, value = setting.split("=")
        assert refused.returncode == 2 and f"the result was made with {key} = " in refused.stderr
        assert f", not {value} (" in refused.stderr.replace('"', "")
