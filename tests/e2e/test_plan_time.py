"""`plan`: memory and predicted time; what `run` says of both afterwards, and that it keeps to its memory."""
# cores: 1

import json
import math
import re

import pytest

import helpers

CONFIG = helpers.ROOT / "configs" / "06_glm_45_air.cfg"
MODEL_CONFIG = helpers.ROOT / "configs" / "models" / "glm-4.5-air.json"
# As the plan's `time` is: from what a node's storage gives and what a rank computes.
RATES = ("--bandwidth", "10", "--tflops", "400")


def plan(*args):
    done = helpers.run(["plan", CONFIG, "-s", f"model.config={MODEL_CONFIG}", "--json", *args])
    return json.loads(done.stdout)


def test_time_of_one_rank_is_that_of_its_bytes():
    """Bound by storage: all bytes at the storage's rate, then the products of the last stage."""
    result = plan("--gpus", "1", "--vram", "40", *RATES)
    time = result["time"]
    read = sum(result["stage_bytes"]) / 10e9
    assert time["storage_alone"] == pytest.approx(read, rel=1e-9)
    assert time["seconds"] == pytest.approx(read + result["stage_flops"][-1] / 400e12, rel=1e-6)
    assert time["compute"] == pytest.approx(sum(result["stage_flops"]) / 400e12, rel=1e-9)
    assert time["compute"] + time["load"] + time["bubble"] == pytest.approx(time["seconds"], rel=1e-9)
    assert time["assumed_bytes_per_second"] == 10e9 and time["assumed_flops_per_second"] == 400e12


def test_time_of_resident_weights_is_that_of_products():
    result = plan("--gpus", "1", "--bandwidth", "1e6", "--tflops", "0.5")
    assert result["time"]["seconds"] == pytest.approx(sum(result["stage_flops"]) / 0.5e12, rel=1e-3)


def test_interleaved_is_faster_where_memory_is_small():
    """Each rank with a storage of its own, as on two nodes."""
    args = ("--gpus", "2", "--per-node", "1", "--vram", "40", *RATES)
    contiguous = plan(*args, "-s", "engine.partition=contiguous")
    automatic = plan(*args)
    assert automatic["partition"] == "interleaved" and "all ranks load all the time" in automatic["reason"]
    assert contiguous["partition"] == "contiguous" and "engine.partition" in contiguous["reason"]
    assert automatic["time"]["seconds"] < 0.65 * contiguous["time"]["seconds"]
    read = sum(automatic["stage_bytes"]) / 2 / 10e9
    assert read < automatic["time"]["seconds"] < 1.1 * read


def test_verify_reads_twice():
    args = ("--gpus", "1", "--bandwidth", "10", "--tflops", "1e6")
    once, twice = (plan(*args, "-s", f"engine.verify={value}")["time"] for value in ("false", "true"))
    assert twice["storage_alone"] == pytest.approx(2 * once["storage_alone"], rel=1e-9)


def test_what_the_config_says_of_gpus():
    """Of GPUs the section `deployment` is what a plan is made for unless an option or the engine's budget says otherwise."""
    result = plan()
    assert len(result["ranks"]) == 2
    assert result["memory_limit_bytes"] == 80e9 and result["memory_limit_from"] == "deployment.min_vram_gb"
    assert max(rank["memory_bytes"] for rank in result["ranks"]) <= 80e9
    by_name = plan("-s", "deployment.min_vram_gb=0", "-s", "deployment.gpu_filter=H200")
    assert by_name["memory_limit_bytes"] == 141e9 and "deployment.gpu_filter" in by_name["memory_limit_from"]
    assert plan("-s", "engine.device_memory_gb=50")["memory_limit_bytes"] == 50e9
    other = plan("--gpus", "3", "--vram", "40", "-s", "engine.device_memory_gb=50")
    assert len(other["ranks"]) == 3 and other["memory_limit_bytes"] == 40e9
    on_cpu = plan("-s", "engine.device=cpu")
    assert len(on_cpu["ranks"]) == 1 and on_cpu["memory_limit_bytes"] == 0 and "memory_limit_from" not in on_cpu


@pytest.mark.parametrize(
    "settings, text",
    (
        ((), "limit: 80 GB (deployment.min_vram_gb)"),
        (
            ("deployment.min_vram_gb=0", "deployment.gpu_filter="),
            "not limited (no --vram, no deployment.min_vram_gb)",
        ),
        (("engine.device=cpu",), "not limited (no --vram, no engine.device_memory_gb)"),
    ),
    ids=("limit", "gpu", "cpu"),
)
def test_text_says_what_limits_the_memory(settings, text):
    options = [part for setting in settings for part in ("-s", setting)]
    assert text in helpers.run(["plan", CONFIG, "-s", f"model.config={MODEL_CONFIG}", *options]).stdout


def test_too_little_memory_names_who_said_so():
    args = ["plan", CONFIG, "-s", f"model.config={MODEL_CONFIG}", "-s", "deployment.min_vram_gb=1"]
    assert "(deployment.min_vram_gb): the smallest" in helpers.run(args, check=False).stderr


def test_rate_of_cpus_is_measured():
    rate = plan("-s", "engine.device=cpu", "-s", "engine.threads=1")["time"]["assumed_flops_per_second"]
    assert 1e8 < rate < 5e11
    fixed = plan("-s", "engine.device=cpu", "--tflops", "0.1")["time"]["assumed_flops_per_second"]
    assert fixed == 0.1e12


def test_contiguous_where_weights_fit():
    result = plan("--gpus", "4", "--vram", "80")
    assert result["partition"] == "contiguous" and "holds all its weights" in result["reason"]
    assert len(result["blocks"]) == 4


def test_memory_adds_up():
    result = plan("--gpus", "2", "--vram", "24")
    parts = ("activation_bytes", "position_bytes", "workspace_bytes", "scratch_bytes", "overhead_bytes")
    beside = sum(result[part] for part in parts)
    for rank in result["ranks"]:
        assert rank["memory_bytes"] == rank["arena_bytes"] + beside <= 24e9
    assert result["activation_bytes"] == 16 * 2048 * 4096 * 2
    assert result["position_bytes"] == 4 * 2048 * 4096 / 8 + 4 * 2048 * 4


def test_cost():
    result = plan("--gpus", "2", "--vram", "80", *RATES, "-s", "deployment.max_price=4.0")
    hours = result["time"]["seconds"] / 3600
    assert result["gpu_hours"] == pytest.approx(2 * hours, rel=1e-9)
    assert result["dollars_at_most"] == pytest.approx(4 * hours, rel=1e-9)
    on_cpu = plan("-s", "engine.device=cpu")
    assert "gpu_hours" not in on_cpu


def test_text():
    args = ["plan", CONFIG, "-s", f"model.config={MODEL_CONFIG}", "--gpus", "2", "--vram", "24", *RATES]
    text = helpers.run(args).stdout
    result = plan("--gpus", "2", "--vram", "24", *RATES)
    assert result["reason"] in text
    assert f"{result['time']['seconds']:.3g} s, bound by storage" in text
    assert "assumed: 10 GB/s from a node's storage, 400 TFLOP/s a rank" in text
    assert "GPU-hours" in text and "$5 per hour" in text
    assert max(map(len, text.splitlines())) <= 160


@pytest.mark.parametrize("option", ("--bandwidth", "--tflops", "--per-node"))
def test_wrong_rates(option):
    done = helpers.run(["plan", CONFIG, option, "0"], check=False)
    assert done.returncode == 2 and option in done.stderr


# --- run ---


def what_was_predicted(done):
    """Seconds predicted and measured, what bound the run, GB/s ('': none) and TFLOP/s."""
    lines = re.findall(
        r"^moe-outliers: predicted (\S+) s, measured (\S+) s .* bound by (storage|compute) "
        r"\(at (?:(\S+) GB/s(?: \(alone \S+\))? and )?(\S+) TFLOP/s a rank\)$",
        done.stderr,
        re.MULTILINE,
    )
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize("ranks", (None, 3))
def test_run_says_what_was_predicted(tmp_path, ranks):
    checkpoint = helpers.REFERENCES / "qwen3_moe_a"
    config = helpers.write_config(
        tmp_path / "r.cfg", helpers.run_sections(checkpoint, checkpoint / "tokens.h5", tmp_path / "r.h5")
    )
    done = helpers.run(["run", config], ranks, env=helpers.quick(ranks))
    predicted, measured, _, *rates = what_was_predicted(done)
    assert float(predicted) > 0 and float(measured) > 0 and all(0 < float(rate) < math.inf for rate in rates if rate)


SHAPES = {
    "model_type": "qwen3_moe",
    "hidden_size": 512,
    "num_attention_heads": 8,
    "head_dim": 64,
    "num_key_value_heads": 2,
    "intermediate_size": 1024,
    "moe_intermediate_size": 256,
    "num_experts": 64,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "vocab_size": 8000,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "max_position_embeddings": 4096,
    "use_sliding_window": False,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
}


def streaming_config(folder, memory):
    (folder / "shapes.json").write_text(json.dumps(SHAPES | {"num_hidden_layers": 48}))
    sections = {
        "model": {"path": "synthetic:0", "config": folder / "shapes.json"},
        "data": {"tokens": "synthetic:0", "sequences": 2, "length": 32},
        "engine": {"device": "cpu", "device_memory_gb": memory},
        "output": {"path": folder / "r.h5"},
    }
    return helpers.write_config(folder / "r.cfg", sections)


@pytest.mark.parametrize("ranks, partition", ((None, "auto"), (2, "contiguous"), (2, "interleaved")))
def test_prediction_is_near(tmp_path, ranks, partition):
    """Of a run whose weights stream through little memory; a busy machine is not the same throughout."""
    config = streaming_config(tmp_path, 0.25)
    args = ["run", config, "-s", f"engine.partition={partition}", "-s", "engine.threads=1", "-s", "engine.readers=1"]
    predicted, measured, *_ = what_was_predicted(helpers.run(args, ranks, env=helpers.quick(ranks)))
    assert 1 / 3 < float(predicted) / float(measured) < 3


@pytest.mark.skipif(helpers.SLOW > 1, reason="sanitizers take memory of their own")
def test_run_keeps_to_its_memory(tmp_path):
    """A checkpoint ten times as large as the bound, which is the smallest that works."""
    config = streaming_config(tmp_path, 1e-6)
    refused = helpers.run(["run", config], check=False, env=helpers.quick())
    smallest = float(re.search(r"the smallest that works is ([0-9.]+) GB", refused.stderr)[1])
    below = helpers.run(["run", streaming_config(tmp_path, smallest - 2e-6)], check=False, env=helpers.quick())
    assert below.returncode == 2 and "too small" in below.stderr and not (tmp_path / "r.h5").exists()
    config = streaming_config(tmp_path, smallest)
    bytes_read = json.loads(helpers.run(["plan", config, "--json"]).stdout)["checkpoint_bytes"]
    assert bytes_read > 10e9 * smallest
    assert max(helpers.peak_memory(tmp_path, ["run", config])) < 1e9 * smallest
