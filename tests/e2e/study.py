"""What test_plot.py and test_html_report.py share: result files to draw, and the scripts that draw them.

Needs matplotlib (tests/requirements.txt)."""

import shutil
import subprocess
import sys

import h5py
import numpy as np

import helpers

SCRIPTS = helpers.ROOT / "scripts"
sys.path.insert(0, str(SCRIPTS))

# name of the file: (reference, analysis keys, all activations stored)
RESULTS = {
    "olmoe": ("olmoe_a", {}, True),
    "gpt_oss": ("gpt_oss_a", {}, True),
    "dense": ("qwen3_a", {"threshold": 1.5}, True),  # more features than a heat map has columns
    "no_perplexity": ("mixtral_b", {"perplexity": False}, False),
    "none_qualifies": ("qwen3_moe_a", {"min_layer_fraction": 1.0, "min_position_fraction": 1.0}, False),
    "no_values": ("olmoe_a", {"threshold": 1e30}, False),
}


def make_result(folder, name, reference, analysis, activations):
    """The result file of a run."""
    checkpoint = helpers.REFERENCES / reference
    output = folder / f"{name}.h5"
    sections = helpers.run_sections(
        checkpoint, checkpoint / "tokens.h5", output, analysis=analysis, activations="all" if activations else ()
    )
    helpers.run(["run", helpers.write_config(folder / f"{name}.cfg", sections)], env=helpers.quick())
    return output


def make_results(folder):
    """{name: result file}; "studied": with an ablation, and with the sizes and intervals of extend."""
    found = {name: make_result(folder, name, *how) for name, how in RESULTS.items()}
    ablated = make_result(folder, "ablated", "olmoe_a", {"ablate": "features", "ablate_draws": 5}, True)
    return found | {"studied": extend(ablated, folder / "studied.h5")}


def put(group, name, value):
    if name in group:
        del group[name]
    group[name] = value


def extend(source, path, name="ORG/studied", parameters=7_000_000_000, active=1_300_000_000):
    """A copy with sizes and intervals of made-up numbers; returns its path."""
    shutil.copyfile(source, path)
    with h5py.File(path, "a") as file:
        file.attrs["model_name"] = name
        file.attrs["parameters"] = np.int64(parameters)
        file.attrs["active_parameters"] = np.int64(active)
        file.attrs["experts_per_token"] = np.int64(2)
        for column in ("mean_layer_percentage", "mean_seq_percentage"):
            put(file["summary"], f"{column}_low", file["summary"][column][()] * 0.9)
            put(file["summary"], f"{column}_high", file["summary"][column][()] * 1.05)
        put(file["perplexity"], "perplexity_low", file["perplexity/perplexity"][()] * 0.8)
        put(file["perplexity"], "perplexity_high", file["perplexity/perplexity"][()] * 1.3)
    return path


def run_script(name, *args, check=True, **environment):
    """Run scripts/NAME with this Python; returns the CompletedProcess."""
    done = subprocess.run(
        [sys.executable, "-B", str(SCRIPTS / name), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=240,
        env=helpers.environment(**environment),
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def assert_one_line(done, program, *parts):
    """An error: exit status 2, nothing on stdout, one line with all the parts on stderr."""
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"{program}: error: ") and done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr
