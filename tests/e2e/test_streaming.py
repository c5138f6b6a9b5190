"""Reading weights: verify changes nothing and is told of, bound ranks get their cores."""

# cores: 1

import json
import os
import subprocess
import time

import numpy as np
import pytest

import helpers

MODEL = helpers.REFERENCES / "qwen3_moe_b"


def config(folder, **engine):
    sections = helpers.run_sections(MODEL, MODEL / "tokens.h5", folder / "r.h5", engine=engine)
    return helpers.write_config(folder / "r.cfg", sections)


def weights_gb():
    index = json.loads((MODEL / "model.safetensors.index.json").read_text())
    return 1e-9 * index["metadata"]["total_size"]


def test_verify_on_ranks(tmp_path):
    """One line for all of them."""
    done = helpers.run(["run", config(tmp_path, verify=True)], 3, env=helpers.quick(3))
    lines = [line for line in done.stderr.splitlines() if "verified" in line]
    assert lines == [f"moe-outliers: verified {weights_gb():.3g} GB: the weights in memory are those of a second read"]


@pytest.mark.parametrize("device", ("cpu", "check"))
def test_verify(tmp_path, device):
    found = []
    for verify in (False, True):
        folder = tmp_path / str(verify)
        folder.mkdir()
        done = helpers.run(["run", config(folder, verify=verify, device=device)], env=helpers.quick())
        assert (f"moe-outliers: verified {weights_gb():.3g} GB: " in done.stderr) == verify
        found.append(helpers.datasets(folder / "r.h5"))
    assert found[0].keys() == found[1].keys()
    for name, values in found[0].items():
        np.testing.assert_array_equal(values, found[1][name], name)


def masks(pids):
    for pid in pids:
        try:
            with open(f"/proc/{pid}/status") as file:
                lines = dict(line.split(":\t", 1) for line in file.read().splitlines() if ":\t" in line)
            yield lines["Name"], lines["PPid"], lines["Cpus_allowed_list"]
        except (FileNotFoundError, ProcessLookupError, KeyError):
            pass


def test_bound_ranks_get_their_cores(tmp_path):
    environment = helpers.environment(**helpers.quick(2)) | {"OMPI_MCA_rmaps_base_oversubscribe": "0"}
    show = ["mpirun", "-np", "2", "grep", "Cpus_allowed_list", "/proc/self/status"]
    shown = subprocess.run(show, capture_output=True, text=True, env=environment).stdout.split()[1::2]
    mine = len(os.sched_getaffinity(0))
    if mine < 2 or any("-" in mask or "," in mask for mask in shown) or len(shown) != 2:
        pytest.skip(f"mpirun does not bind ranks to single cores here: {shown}, {mine} cores")
    sections = {
        "model": {"path": "synthetic:1", "config": str(MODEL / "config.json")},
        "data": {"tokens": "synthetic:1", "sequences": 64, "length": 256},
        "engine": {"device": "cpu"},
        "output": {"path": str(tmp_path / "r.h5")},
    }
    path = helpers.write_config(tmp_path / "r.cfg", sections)
    run = subprocess.Popen(helpers.command(["run", path], 2), env=environment, stderr=subprocess.PIPE, text=True)
    seen = set()
    while run.poll() is None:
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(run.pid)], capture_output=True, text=True).stdout
        seen |= {mask for name, _, mask in masks(children.split()) if name.startswith("moe-outliers")}
        time.sleep(0.005)
    errors = run.stderr.read()
    assert run.returncode == 0, errors
    assert "bind-to" not in errors
    if mine == 2:  # their share is one core each
        assert seen
    else:
        assert any("-" in mask or "," in mask for mask in seen), seen
