"""Runs that fail on their way: a rank killed, storage full, a checkpoint that changes. No rank stays, and no file but what the
same command continues from (test_resume.py)."""

import contextlib
import json
import os
import re
import resource
import signal

import h5py
import numpy as np
import pytest

import helpers
from watched import Watched

SECONDS = 30 * helpers.SLOW  # until all ranks are gone
LAYERS, SEQUENCES, LENGTH = 8, 32, 256
SMALL = helpers.REFERENCES / "olmoe_a"


@pytest.fixture(scope="module")
def long_model(tmp_path_factory):
    """Folder with a checkpoint and tokens that keep 4 ranks busy for seconds."""
    folder = tmp_path_factory.mktemp("long")
    shape = {
        "model_type": "olmoe",
        "hidden_size": 256,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 8,
        "vocab_size": 512,
        "intermediate_size": 256,
        "num_experts": 8,
        "num_experts_per_tok": 2,
    }
    (folder / "shape.json").write_text(json.dumps(shape))
    helpers.run(["synth", folder / "shape.json", "-o", folder / "model"])
    with h5py.File(folder / "tokens.h5", "w") as file:
        file["tokens"] = np.random.default_rng(0).integers(0, 512, (SEQUENCES, LENGTH), np.int32)
    return folder


def long_command(model, folder, **engine):
    """Arguments of a run of the long model with its result in folder/out."""
    (folder / "out").mkdir(exist_ok=True)
    sections = helpers.run_sections(
        model / "model", model / "tokens.h5", folder / "out" / "result.h5", "fp32", engine={"threads": 1} | engine
    )
    return ["run", helpers.write_config(folder / "run.cfg", sections)]


# --- a process is killed ---


def ranks_started(run, folder):
    return run.pid_of(0) and run.pid_of(3)


def file_created(run, folder):
    return (folder / "out" / "result.h5.partial").exists()


def layer_done(layer):
    return lambda run, folder: run.said(f"layer {layer}/{LAYERS} done")


KILLS = (
    ("start", 1, ranks_started),
    ("file", 0, file_created),
    ("file", 3, file_created),
    ("layer2", 2, layer_done(2)),
    ("layer4", 0, layer_done(4)),
)


def assert_nothing_finished(folder):
    """No file but maybe a partial one, and what is done."""
    assert set(os.listdir(folder / "out")) <= {"result.h5.partial", "result.h5.resume"}


@pytest.mark.parametrize(
    "moment, rank, reached", [pytest.param(*kill, id=f"{kill[0]}-rank{kill[1]}") for kill in KILLS]
)
def test_killed_rank(tmp_path, long_model, moment, rank, reached):
    args = long_command(long_model, tmp_path)
    with Watched(args, 4) as run:
        pid = run.wait_until(lambda: run.pid_of(rank))
        run.wait_until(lambda: reached(run, tmp_path))
        os.kill(pid, signal.SIGKILL)
        assert run.wait_for_end(SECONDS) != 0
    assert_nothing_finished(tmp_path)


@pytest.mark.parametrize("name", ("SIGTERM", "SIGKILL"))
def test_killed_launcher(tmp_path, long_model, name):
    """As a scheduler does it; a launcher that is killed leaves its ranks behind, which must notice."""
    with Watched(long_command(long_model, tmp_path), 4) as run:
        run.wait_until(lambda: layer_done(1)(run, tmp_path))
        run.process.send_signal(signal.Signals[name])
        assert run.wait_for_end(SECONDS) != 0
    assert_nothing_finished(tmp_path)


def test_killed_at_the_end(tmp_path, long_model):
    """While the tables are written the result is finished or not there, whichever comes first."""
    with Watched(long_command(long_model, tmp_path), 4) as run:
        pid = run.wait_until(lambda: run.pid_of(1))
        run.wait_until(lambda: layer_done(LAYERS)(run, tmp_path))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        status = run.wait_for_end(SECONDS)
    if (tmp_path / "out" / "result.h5").exists():
        with h5py.File(tmp_path / "out" / "result.h5") as file:
            assert file.attrs["complete"] == 1
    else:
        assert status != 0
        assert_nothing_finished(tmp_path)


def test_same_command_after_a_kill(tmp_path, long_model):
    """What a killed run leaves behind does not disturb the next one."""
    args = long_command(long_model, tmp_path)
    with Watched(args, 4) as run:
        pid = run.wait_until(lambda: run.pid_of(2))
        run.wait_until(lambda: file_created(run, tmp_path))
        os.kill(pid, signal.SIGKILL)
        assert run.wait_for_end(SECONDS) != 0
    assert sorted(os.listdir(tmp_path / "out")) == ["result.h5.partial", "result.h5.resume"]
    helpers.run(args, 4)
    assert os.listdir(tmp_path / "out") == ["result.h5"]
    with h5py.File(tmp_path / "out" / "result.h5") as file:
        assert file.attrs["complete"] == 1
        assert file["tokens"].shape == (SEQUENCES, LENGTH)


# --- storage is full ---


def assert_no_room(run, folder, reason):
    """Exit status 1, one line with file and reason, no file left but what is done."""
    assert run.wait_for_end(10 * helpers.SLOW) == 1, run.lines
    assert len(run.errors()) == 1, run.lines
    assert "result.h5" in run.errors()[0] and reason in run.errors()[0]
    assert os.listdir(folder) in ([], ["result.h5.resume"])


def small_command(folder, output, **changes):
    sections = helpers.run_sections(SMALL, SMALL / "tokens.h5", output, **changes)
    return ["run", helpers.write_config(folder / "run.cfg", sections)]


@pytest.mark.parametrize("ranks", (None, 4))
def test_no_room_for_activations(tmp_path, long_model, ranks):
    disk = tmp_path / "disk"
    args = long_command(long_model, tmp_path)
    override = ["-s", f"output.path={disk}/result.h5", "-s", "output.activations=all"]
    with helpers.small_disk(disk, "1m"), Watched([*args, *override], ranks) as run:
        assert_no_room(run, disk, "No space left on device")


@pytest.mark.parametrize("ranks", (None, 4))
def test_no_room_for_tables(tmp_path, ranks):
    """However much room there is: the run fails cleanly, or is finished."""
    every_value = {"threshold": 1e-6, "min_layer_fraction": 0.0, "min_position_fraction": 0.0}
    outcomes = []
    for pages in range(1, 256, 15):
        disk = tmp_path / f"disk{pages}"
        args = small_command(tmp_path, disk / "result.h5", analysis=every_value)
        with helpers.small_disk(disk, f"{4 * pages}k"), Watched(args, ranks) as run:
            if run.wait_for_end(20 * helpers.SLOW) != 0:
                assert_no_room(run, disk, "No space left on device")
            else:
                assert os.listdir(disk) == ["result.h5"]
            outcomes.append(run.process.returncode)
    assert outcomes[0] == 1 and outcomes[-1] == 0 and outcomes == sorted(outcomes, reverse=True)


@pytest.mark.parametrize("ranks", (None, 4))
def test_disk_fills_up_during_the_run(tmp_path, long_model, ranks):
    disk = tmp_path / "disk"
    args = long_command(long_model, tmp_path)
    override = ["-s", f"output.path={disk}/result.h5", "-s", "analysis.threshold=0.5"]
    with helpers.small_disk(disk, "8m"), Watched([*args, *override], ranks) as run:
        run.wait_until(lambda: (disk / "result.h5.partial").exists())
        with open(disk / "other", "wb", buffering=0) as other, contextlib.suppress(OSError):
            while True:
                other.write(bytes(4096))
        assert run.wait_for_end(60 * helpers.SLOW) == 1, run.lines
        os.unlink(disk / "other")
        assert_no_room(run, disk, "No space left on device")


@pytest.mark.parametrize("ranks", (None, 4))
def test_file_size_limit(tmp_path, long_model, ranks):
    """Needs no mount: a limit on the size of files, as of a quota; large enough for MPI's shared memory."""
    args = long_command(long_model, tmp_path)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 20, 16 << 20))

    with Watched([*args, "-s", "output.activations=all"], ranks, preexec_fn=limit) as run:
        assert_no_room(run, tmp_path / "out", "File too large")


# --- the checkpoint changes ---


@pytest.mark.parametrize("ranks", (None, 4))
def test_checkpoint_truncated_during_the_run(tmp_path, long_model, ranks):
    """The weights stream through a small arena, so most of them are not read yet when the file becomes short."""
    args = long_command(long_model, tmp_path)
    model = tmp_path / "model"
    model.mkdir()
    for path in (long_model / "model").iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    args += ["-s", f"model.path={model}", "-s", "engine.micro_batch=1"]
    refused = helpers.run([*args, "-s", "engine.device_memory_gb=1e-6"], check=False, env=helpers.quick())
    memory = re.search(r"the smallest that works is ([0-9.]+) GB", refused.stderr)[1]
    with Watched([*args, "-s", f"engine.device_memory_gb={memory}"], ranks) as run:
        run.wait_until(lambda: layer_done(1)(run, tmp_path))
        os.truncate(model / "model.safetensors", 100_000)
        assert run.wait_for_end(60 * helpers.SLOW) == 1, run.lines
    assert len(run.errors()) == 1, run.lines
    assert "model.safetensors ends at byte" in run.errors()[0]
    assert os.listdir(tmp_path / "out") == ["result.h5.resume"]
