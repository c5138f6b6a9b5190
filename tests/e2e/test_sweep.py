"""scripts/sweep: a list of models one after the other, what they lack fetched meanwhile, stopped and continued. cores: 1"""

import fcntl
import os
import pathlib
import signal
import subprocess
import time

import h5py
import helpers
import hub_server
import interrupted
import pytest

SWEEP = helpers.ROOT / "scripts" / "sweep"
REFERENCE = helpers.REFERENCES / "olmoe_a"


def command(*arguments):
    return [SWEEP, *map(str, arguments)]


def environment(folder, **extra):
    own = {"MOE_OUTLIERS": str(helpers.program()), "HF_HOME": str(folder / "hub"), "HF_TOKEN": ""}
    return helpers.environment(**helpers.quick(1), **own, **extra)


def sweep(folder, *arguments, **extra):
    return subprocess.run(
        command(*arguments), cwd=folder, env=environment(folder, **extra), capture_output=True, text=True, timeout=100
    )


def write_config(folder, name, **changes):
    """NAME.cfg of a checkpoint of the references, whose weights lie in models/NAME, relative to the folder."""
    sections = helpers.run_sections(REFERENCE, REFERENCE / "tokens.h5", f"results/{name}.h5", **changes)
    sections["model"] |= {"name": f"org/{name}", "path": f"models/{name}"} | changes.get("model", {})
    return helpers.write_config(folder / f"{name}.cfg", sections)


def is_complete(path):
    with h5py.File(path) as file:
        return file.attrs["complete"] == 1


@pytest.fixture
def hub(tmp_path):
    """A hub with the models org/first and org/second."""
    models = tmp_path / "served"
    models.mkdir()
    for name in ("config.json", "model.safetensors"):
        (models / name).symlink_to(REFERENCE / name)
    with hub_server.Hub() as hub:
        for name in ("first", "second"):
            hub.add(f"org/{name}", models)
        yield hub


def test_models_are_fetched_run_and_reported(tmp_path, hub):
    configs = [write_config(tmp_path, name) for name in ("first", "second")]
    done = sweep(tmp_path, *configs, HF_ENDPOINT=hub.endpoint)
    assert done.returncode == 0, done.stderr
    assert all(is_complete(tmp_path / "results" / f"{name}.h5") for name in ("first", "second"))
    assert "org/first" in done.stdout and "org/second" in done.stdout
    assert "sweep: first: waiting for its files (logs/first.fetch.log)" in done.stderr
    again = sweep(tmp_path, *configs, HF_ENDPOINT=hub.endpoint)
    assert again.returncode == 0 and again.stdout == done.stdout
    assert again.stderr.count("done before") == 2


def test_the_next_is_fetched_while_one_runs(tmp_path, hub):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "first").symlink_to(tmp_path / "served")
    configs = [write_config(tmp_path, name) for name in ("first", "second")]
    run = tmp_path / "run"  # the first one's launcher waits until the second one's weights are asked for
    run.write_text(
        f'#!/bin/sh\nuntil [ -e "{tmp_path}/models/second" ]; do sleep 0.05; done\nexec mpirun --oversubscribe "$@"\n'
    )
    run.chmod(0o755)
    done = sweep(tmp_path, *configs, HF_ENDPOINT=hub.endpoint, MPIRUN=str(run))
    assert done.returncode == 0, done.stderr
    assert is_complete(tmp_path / "results" / "second.h5")


def test_a_model_that_fails_does_not_stop_the_others(tmp_path, hub):
    configs = [
        write_config(tmp_path, "missing"),
        write_config(tmp_path, "broken", model={"path": str(REFERENCE), "name": "org/broken"}, data={"sequences": 10_000}),
        write_config(tmp_path, "second"),
    ]
    done = sweep(tmp_path, *configs, HF_ENDPOINT=hub.endpoint)
    assert done.returncode == 1
    assert is_complete(tmp_path / "results" / "second.h5")
    assert "sweep: model 1 of 3: missing: failed with status " in done.stderr
    assert "sweep: model 2 of 3: broken: failed with status 2" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("sweep: error: 2 of 3 failed: missing broken: ")
    refused = sweep(tmp_path, "--no-fetch", write_config(tmp_path, "first"))
    assert refused.returncode == 1 and "first: no weights and --no-fetch" in refused.stderr


def test_a_result_of_another_run_is_not_taken(tmp_path):
    config = write_config(tmp_path, "first", model={"path": str(REFERENCE)})
    assert sweep(tmp_path, config).returncode == 0
    other = sweep(tmp_path, config, "-s", "analysis.threshold=5.0")
    assert other.returncode == 2 and "was made with analysis.threshold = 6.0, not 5.0" in other.stderr
    assert len(other.stderr.splitlines()) == 1
    anew = sweep(tmp_path, config, "-s", "analysis.threshold=5.0", "--set=output.overwrite=true")
    assert anew.returncode == 0
    with h5py.File(tmp_path / "results" / "first.h5") as file:
        assert file.attrs["threshold"] == 5


def test_wrong_settings_are_told_before_anything_is_done(tmp_path):
    configs = [write_config(tmp_path, name) for name in ("first", "second")]
    for arguments, said in (
        (["-s", "analysis.treshold=5"], 'unknown key "treshold"'),
        (["-s", "output.path=one.h5"], "first and second have the same output.path (one.h5)"),
    ):
        done = sweep(tmp_path, *configs, *arguments)
        assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.cfg", "second.cfg"]


def test_only_one_at_a_time(tmp_path):
    (tmp_path / "logs").mkdir()
    config = write_config(tmp_path, "first", model={"path": str(REFERENCE)})
    with open(tmp_path / "logs" / "sweep.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = sweep(tmp_path, config)
    assert done.returncode == 2 and "another scripts/sweep is at work here" in done.stderr


def test_stopped_while_it_fetches(tmp_path, hub):
    hub.rule("safetensors", latency=60)
    config = write_config(tmp_path, "first")
    started = subprocess.Popen(
        command(config), cwd=tmp_path, env=environment(tmp_path, HF_ENDPOINT=hub.endpoint), stderr=subprocess.PIPE, text=True
    )
    wait(lambda: (tmp_path / "models" / "first").exists())
    started.send_signal(signal.SIGTERM)
    said = started.communicate(timeout=30)[1]
    assert started.returncode == 75 and said.endswith("sweep: stopped: the same command goes on from what is saved\n")
    wait(lambda: not processes_with(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_it_runs_and_continued(tmp_path, number):
    config = interrupted.config(tmp_path, data={"length": 1024})
    started = subprocess.Popen(command(config), cwd=tmp_path, env=environment(tmp_path), stderr=subprocess.PIPE, text=True)
    wait(lambda: len(interrupted.records(tmp_path)) >= 2)
    started.send_signal(number)
    assert "sweep: stopped: " in started.communicate(timeout=60)[1]
    assert started.returncode == 75
    assert not (tmp_path / "r.h5").exists() and interrupted.records(tmp_path)
    done = sweep(tmp_path, config)
    assert done.returncode == 0 and "continuing from" in done.stderr, done.stderr
    assert is_complete(tmp_path / "r.h5")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--ranks", "0", "x.cfg"], "--ranks 0 (command line): give a number"),
        (["x.cfg"], "no such config (x.cfg)"),
        (["--models", "99"], "no config begins with 99"),
        (["--models"], "--models needs numbers"),
        (["--quick"], "unknown option --quick"),
        (["-s"], "-s needs section.key=value"),
        (["--ranks"], "--ranks needs a number"),
    ],
)
def test_wrong_usage(tmp_path, arguments, said):
    done = sweep(tmp_path, *arguments)
    assert done.returncode == 2 and done.stderr.startswith("sweep: error: ") and said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_dry_run_does_nothing(tmp_path):
    done = sweep(tmp_path, "--dry-run", "--models", "02", "07", "--ranks", "4")
    assert done.returncode == 0
    assert [line.split(": ")[2] for line in done.stderr.splitlines()] == ["02_gpt_oss_20b", "07_gpt_oss_120b"]
    assert "fetch weights tokens then run on 4 rank(s) -> results/gpt_oss_120b.h5" in done.stderr
    assert list(tmp_path.iterdir()) == []


def wait(condition, seconds=60 * helpers.SLOW):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def processes_with(folder):
    """Processes at work in the folder."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            at = os.readlink(process / "cwd")
        except OSError:
            continue
        if at == str(folder):
            found.append(int(process.name))
    return found
