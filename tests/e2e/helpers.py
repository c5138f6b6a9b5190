"""What the end-to-end tests share: running the program, writing its config, comparing arrays.

Needs numpy, h5py, pytest. The program is $MOE_OUTLIERS, or else the first build found under build/."""

import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys

import h5py
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
REFERENCES = ROOT / "tests" / "references"
SITES = ("ln_attn", "ln_mlp")
SLOW = 4 if os.environ.get("MO_SANITIZE") == "1" else 1  # sanitized programs are slower; time limits are times this


def program():
    """Path of the program under test."""
    if "MOE_OUTLIERS" in os.environ:
        candidates = [pathlib.Path(os.environ["MOE_OUTLIERS"])]
    else:
        candidates = [ROOT / "build" / preset / "moe-outliers" for preset in ("default", "cpu")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    raise FileNotFoundError(f"no program at {', '.join(map(str, candidates))}: build it, or set MOE_OUTLIERS")


def environment(**extra):
    """Environment of a run: one compute thread a rank, Open MPI usable as root and with more ranks than cores."""
    fixed = {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
        "OMPI_MCA_mpi_yield_when_idle": "1",
        "PRTE_ALLOW_RUN_AS_ROOT": "1",
        "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    return os.environ | fixed | extra


def quick(ranks=None):
    """More environment for small runs with mpirun. They mostly wait for Open MPI: to probe networks, to let ranks end by
    themselves. A process started alone spares itself that."""
    if ranks is None:
        return {}
    return {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,vader", "OMPI_MCA_odls_base_sigkill_timeout": "0"}


def command(args, ranks=None, wrapper=()):
    """argv of the program with `args`; ranks None: started alone, else with mpirun; wrapper: argv before its own."""
    launcher = [] if ranks is None else ["mpirun", "-np", str(ranks)]
    return [*launcher, *wrapper, str(program()), *map(str, args)]


def run(args, ranks=None, check=True, timeout=120, cwd=None, env=None):
    """Run the program; returns the CompletedProcess with text output. check: fail the test unless it exits with 0."""
    done = subprocess.run(
        command(args, ranks), capture_output=True, text=True, timeout=timeout, cwd=cwd, env=environment(**(env or {}))
    )
    if check and done.returncode != 0:
        raise AssertionError(
            f"{' '.join(map(str, done.args))}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done


def has_cuda():
    """Whether the program was built with CUDA."""
    return re.search(r"^backends: .*\bcuda\b", run(["--version"]).stdout, re.MULTILINE) is not None


# Runs a command and notes its peak memory in bytes in the folder given first, in a file named after the rank. A process
# of its own, as that number is of all children so far.
NOTE_PEAK = """
import os, resource, subprocess, sys
done = subprocess.run(sys.argv[2:])
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
open(os.path.join(sys.argv[1], os.environ.get("OMPI_COMM_WORLD_RANK", "0")), "w").write(str(peak))
sys.exit(done.returncode)
"""


def peak_memory(folder, args, ranks=None):
    """Largest resident set of each rank in bytes, of a run that succeeds; their files are left in the folder."""
    argv = command(args, ranks, [sys.executable, "-c", NOTE_PEAK, str(folder)])
    subprocess.run(argv, check=True, timeout=200, env=environment(**quick(ranks)))
    return [int((folder / str(rank)).read_text()) for rank in range(ranks or 1)]


def libconfig(value):
    """A Python value as libconfig text: dict = group, list or tuple = list."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{ " + " ".join(f"{key} = {libconfig(item)};" for key, item in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "( " + ", ".join(map(libconfig, value)) + " )"
    if isinstance(value, (int, np.integer)):
        return f"{int(value)}L" if abs(value) >= 2**31 else str(int(value))
    if isinstance(value, (float, np.floating)):
        text = repr(float(value))
        return text if any(mark in text for mark in ".e") else text + ".0"
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def write_config(path, sections):
    """Write {section: {key: value}} as a config file; returns its path."""
    path = pathlib.Path(path)
    path.write_text("".join(f"{name}: {libconfig(keys)};\n" for name, keys in sections.items()))
    return path


def run_sections(checkpoint, tokens, output, precision="fp32", activations=(), **changes):
    """Sections of a config that runs `checkpoint` on all of `tokens` on the CPU.

    output: the result file; activations: as in the config; changes: {section: {key: value}} on top."""
    with h5py.File(tokens) as file:
        sequences, length = file["tokens"].shape
    sections = {
        "model": {"name": pathlib.Path(checkpoint).name, "path": checkpoint},
        "data": {"tokens": tokens, "sequences": sequences, "length": length},
        "analysis": {
            "threshold": 6.0,
            "min_layer_fraction": 0.25,
            "min_position_fraction": 0.06,
            "systematic_fraction": 1.0,
        },
        "engine": {"device": "cpu", "precision": precision},
        "output": {"path": output, "activations": activations},
    }
    for section, keys in changes.items():
        sections[section] = sections.get(section, {}) | keys
    return sections


def relative_error(values, expected):
    """|values - expected| / |expected|, Frobenius norms in float64."""
    values, expected = np.asarray(values, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(values - expected) / np.linalg.norm(expected))


def largest_error(values, expected):
    """max |values - expected| / max |expected|."""
    values, expected = np.asarray(values, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(values - expected).max() / np.abs(expected).max())


def site_tensors(group, layers):
    """[2L, N, S, H] of a group with LLL/ln_attn and LLL/ln_mlp."""
    return np.stack([group[f"{layer:03d}/{site}"][:] for layer in range(layers) for site in SITES])


def weights_of(folder):
    """{name: float32 array} of the tensors of a checkpoint in bfloat16 or float32."""
    tensors = {}
    for path in folder.glob("*.safetensors"):
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8 : 8 + size]).items():
            if name == "__metadata__" or entry["dtype"] not in ("BF16", "F32"):
                continue
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            if entry["dtype"] == "F32":
                values = np.frombuffer(data[begin:end], np.float32)
            else:
                values = (np.frombuffer(data[begin:end], np.uint16).astype(np.uint32) << 16).view(np.float32)
            tensors[name] = values.reshape(entry["shape"])
    return tensors


def datasets(path):
    """{name: array} of every dataset of a file but /timing."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: found.__setitem__(name, item[()]) if isinstance(item, h5py.Dataset) else None
        )
    found.pop("timing", None)
    return found


def contents(path, but):
    """{name: what is there} for every group, dataset and attribute of a result, but not for /timing and the root
    attributes named in `but`."""
    found = {}

    def note(name, item):
        found[name] = type(item).__name__
        if isinstance(item, h5py.Dataset):
            found[name] = (item.dtype, item.shape, np.asarray(item[()]).tobytes())
        for attribute, value in item.attrs.items():
            if name or attribute not in but:
                found[f"{name}@{attribute}"] = value

    with h5py.File(path) as file:
        assert file.attrs["complete"] == 1
        note("", file)
        file.visititems(lambda name, item: note(name, item) if name != "timing" else None)
    return found


def assert_same(found, expected):
    """Two `contents` are equal."""
    assert found.keys() == expected.keys()
    assert not [name for name in expected if found[name] != expected[name]]


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of that size, e.g. "64k", at the folder."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.splitlines()[0]}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
