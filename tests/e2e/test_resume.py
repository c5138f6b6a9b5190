"""Runs that are killed or stopped and continued: the result is bit for bit that of a run that was left alone, on any number of
ranks, and next to nothing is computed twice. What determines the result must be the same."""

import contextlib
import os
import re
import shutil
import signal
import time

import h5py
import numpy as np
import pytest

import helpers
import interrupted
from watched import Watched

SECONDS = 30 * helpers.SLOW  # until all ranks are gone
LONGER = {"data": {"length": 512}}  # so that a run is under way for long enough to be stopped

def patient(seconds):
    """Where mpirun ends its ranks, they have so long until it sends SIGTERM, and from then to SIGKILL."""
    return dict.fromkeys(("OMPI_MCA_odls_base_sigkill_timeout", "PRTE_MCA_odls_base_sigkill_timeout"), str(seconds))



@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """unbroken(**changes): contents of the result of a run with these changes that nobody disturbed."""
    results = {}

    def result(**changes):
        key = str(changes)
        if key not in results:
            folder = tmp_path_factory.mktemp("unbroken")
            helpers.run(["run", interrupted.config(folder, **changes)], env=helpers.quick())
            results[key] = interrupted.contents(folder / "r.h5")
        return results[key]

    return result


def run_until(args, ranks, folder, n_records, end):
    """Run until that many records are there, then end(run). Its lines, and whether it was still going on."""
    continues = bool(interrupted.records(folder))
    with Watched(args, ranks) as run:
        limit = time.monotonic() + 60 * helpers.SLOW
        while run.process.poll() is None and len(interrupted.records(folder)) < n_records:
            assert time.monotonic() < limit
            time.sleep(0.001)
        limit = time.monotonic() + 0.05
        while continues and not run.said("continuing from") and time.monotonic() < limit:
            time.sleep(0.001)  # mpirun may be about to pass it on
        going_on = run.process.poll() is None
        if going_on:
            end(run)
        run.wait_for_end(SECONDS)
        return run.lines, going_on


def kill(rank):
    """End one rank by SIGKILL, or all of them and the launcher."""

    def end(run):
        pids = sorted(run.processes(), reverse=True) if rank is None else [run.pid_of(rank)]
        for pid in filter(None, pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    return end


def run_to_the_end(args, ranks, folder):
    done = helpers.run(args, ranks, env=helpers.quick(ranks))
    assert "error" not in done.stderr
    return done.stderr.splitlines()


class Account:
    """What of the tasks that the killed runs of a folder computed was kept: of each rank's all but the one that it was about to
    save when it was killed, less than a layer."""

    def __init__(self, folder):
        self.folder = folder
        self.kept = self.recorded = self.lost = 0

    def settle(self, lines, ranks):
        """After a run on that many ranks with these lines; to be called again after the next one."""
        kept, recorded = interrupted.kept_tasks(lines), len(interrupted.records(self.folder))
        assert kept >= self.kept - self.lost
        self.kept, self.lost = kept + recorded - self.recorded, ranks
        self.recorded = recorded


# --- killed ---

ROUNDS, KILLS = 5, 4  # 20 kills of each kind


@pytest.mark.parametrize("everybody", (False, True), ids=("one", "all"))
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_killed(tmp_path, unbroken, seed, everybody):
    """Killed again and again at random moments, each time continued on another number of ranks."""
    random = np.random.default_rng((seed, everybody))
    args = ["run", interrupted.config(tmp_path)]
    account, kills = Account(tmp_path), 0
    for moment in sorted(random.integers(1, interrupted.TASKS - 1, KILLS)):
        ranks = int(random.integers(2, 5))
        target = account.recorded + max(1, int(moment) - account.kept)
        end = kill(None if everybody else int(random.integers(ranks)))
        lines, going_on = run_until(args, ranks, tmp_path, target, end)
        account.settle(lines, ranks)
        kills += going_on
        if (tmp_path / "r.h5").exists():
            break
    else:
        account.settle(run_to_the_end(args, int(random.integers(1, 5)), tmp_path), 0)
    assert kills >= KILLS - 2  # the last one or two moments may come too late
    interrupted.assert_finished(tmp_path, unbroken())


CASES = (
    {"engine": {"checkpoint_seconds": 0.1}, "data": {"length": 1024}},
    {"engine": {"device": "check"}},
    {"engine": {"partition": "interleaved"}, "output": {"activations": (1, 4)}},
    {"engine": {"micro_batch": 2, "precision": "fp32"}, "output": {"activations": "all"}},
    {"output": {"activations": "all", "mpi_io": "off"}},
    {"analysis": {"perplexity": False}},
    {"analysis": {"thresholds": (2.5, 1.5, 3.0)}, "output": {"activations": (2,)}},
)


@pytest.mark.parametrize("changes", CASES, ids=lambda changes: "-".join(k for keys in changes.values() for k in keys))
def test_killed_otherwise(tmp_path, unbroken, changes):
    """Saving by time, guarded buffers, blocks, stored activations, no head."""
    args = ["run", interrupted.config(tmp_path, **changes)]
    for n_records in (12, 24):
        run_until(args, 2, tmp_path, n_records, kill(None))
    run_to_the_end(args, 3, tmp_path)
    interrupted.assert_finished(tmp_path, unbroken(**changes))


def test_killed_alone(tmp_path, unbroken):
    args = ["run", interrupted.config(tmp_path, data={"length": 1024})]
    account = Account(tmp_path)
    for n_records in (1, 20, 40):
        lines, going_on = run_until(args, None, tmp_path, n_records, kill(None))
        assert going_on
        account.settle(lines, 1)
    account.settle(run_to_the_end(args, None, tmp_path), 0)
    interrupted.assert_finished(tmp_path, unbroken(data={"length": 1024}))


@pytest.mark.parametrize("ranks", (None, 3))
def test_the_rest_is_dealt_anew(tmp_path, unbroken, ranks):
    """What was done before is left out of the plan: each rank has a share of the rest, and the prediction is of the rest."""
    tiny = {"device_memory_gb": 1e-6}
    refused = helpers.run(["run", interrupted.config(tmp_path, engine=tiny)], check=False, env=helpers.quick())
    least = {"device_memory_gb": float(re.search(r"the smallest that works is ([0-9.]+) GB", refused.stderr)[1])}
    args = ["run", interrupted.config(tmp_path, engine=least)]  # stage by stage
    run_until(args, None, tmp_path, interrupted.TASKS // 2, kill(None))
    done = {stage for stage, micro in interrupted.records(tmp_path)}
    lines = run_to_the_end(["run", interrupted.config(tmp_path)], ranks, tmp_path)
    predicted = [line for line in lines if line.startswith("moe-outliers: predicted ")]
    assert len(predicted) == 1
    left = int(re.search(r"of the last (\d+) of \d+ stages", predicted[0])[1])
    assert interrupted.STAGES - len(done) <= left < interrupted.STAGES
    if ranks and left >= ranks:
        with h5py.File(tmp_path / "r.h5") as file:
            timing = file["timing"][:]
        rest = timing[timing["layer"] >= interrupted.STAGES - left - 1]  # stage 0 is layer -1
        assert set(rest["rank"]) == set(range(ranks))
    interrupted.assert_finished(tmp_path, unbroken())


# --- stopped ---


STOPS = [(name, ranks) for name in ("SIGTERM", "SIGUSR1") for ranks in ((0,), (2,), (0, 1, 2))] + [("SIGUSR1", ())]


@pytest.mark.parametrize("name, ranks", STOPS, ids=lambda value: str(value).replace(" ", ""))
def test_stopped(tmp_path, unbroken, name, ranks):
    args = ["run", interrupted.config(tmp_path, **LONGER)]
    with Watched(args, 3, patient(1)) as run:
        run.wait_until(lambda: len(interrupted.records(tmp_path)) >= 20)
        run.send(signal.Signals[name], *ranks)
        assert run.wait_for_end(SECONDS) == 75
        ours = [line for line in run.lines if line.startswith("moe-outliers: ") and "layer" not in line]
        assert ours == [f"moe-outliers: stopped by {name}; saved; the same command continues"]
    assert os.listdir(tmp_path / "r.h5.resume") and not (tmp_path / "r.h5.partial").exists()
    before = interrupted.records(tmp_path)
    lines = run_to_the_end(args, 2, tmp_path)
    assert interrupted.kept_tasks(lines) == len(before)  # nothing is lost
    interrupted.assert_finished(tmp_path, unbroken(**LONGER))


@pytest.mark.parametrize("ranks", ((0,), (1,), (0, 1)), ids=str)
def test_stopped_too_late(tmp_path, unbroken, ranks):
    """A request that comes during the analysis: the run is finished, and no rank waits for one that has stopped."""
    args = ["run", interrupted.config(tmp_path), *interrupted.settings(analysis={"bootstrap": 200000})]
    with Watched(args, 2, patient(1)) as run:
        run.wait_until(lambda: run.said("moe-outliers: predicted "))
        run.send(signal.SIGUSR1, *ranks)
        assert run.wait_for_end(20 * helpers.SLOW) == 0, run.lines
    assert (tmp_path / "r.h5").exists() and not interrupted.left_by(tmp_path).exists()


@pytest.mark.parametrize("name", ("SIGTERM", "SIGUSR1"))
def test_stopped_alone(tmp_path, unbroken, name):
    """Rows are saved on the way out although it is not time yet."""
    changes = interrupted.settings(engine={"checkpoint_seconds": 1000})
    args = ["run", interrupted.config(tmp_path, **LONGER), *changes]
    with Watched(args) as run:
        run.wait_until(lambda: len(interrupted.records(tmp_path)) >= 30)
        assert not list(interrupted.left_by(tmp_path).glob("rows-*"))
        run.process.send_signal(signal.Signals[name])
        assert run.wait_for_end(SECONDS) == 75
    before = interrupted.records(tmp_path)
    assert interrupted.kept_tasks(run_to_the_end(args, None, tmp_path)) == len(before)
    interrupted.assert_finished(tmp_path, unbroken(**LONGER))


def test_stopped_launcher(tmp_path):
    """mpirun that gets SIGTERM passes it on, and has an exit status of its own."""
    args = ["run", interrupted.config(tmp_path, data={"length": 3072})]
    with Watched(args, 2, patient(2)) as run:
        run.wait_until(lambda: len(interrupted.records(tmp_path)) >= 5)
        run.process.send_signal(signal.SIGTERM)
        assert run.wait_for_end(SECONDS) != 0
        assert not run.errors(), run.lines  # that they have saved is not always passed on any more
    before = interrupted.records(tmp_path)
    assert interrupted.kept_tasks(run_to_the_end(args, 2, tmp_path)) == len(before) > 0


# --- another run ---


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A folder with a checkpoint, tokens, and what a run of them left that was stopped."""
    folder = tmp_path_factory.mktemp("stopped")
    args = ["run", interrupted.config(folder)]
    helpers.run(["synth", folder / "shape.json", "-o", folder / "model"])
    with h5py.File(folder / "tokens.h5", "w") as file:
        file["tokens"] = np.random.default_rng(0).integers(0, 256, (8, 300), np.int32)
    files = {"model": {"path": folder / "model"}, "data": {"tokens": folder / "tokens.h5"}}
    args += interrupted.settings(**files, output={"path": folder / "r.h5"})
    with Watched(args) as run:
        run.wait_until(lambda: len(interrupted.records(folder)) >= 25)
        run.process.terminate()
        assert run.wait_for_end(SECONDS) == 75
    return folder, args


@pytest.fixture
def left(tmp_path, stopped):
    """(folder, arguments): a copy of it."""
    original, args = stopped
    folder = tmp_path / "copy"
    shutil.copytree(original, folder)
    return folder, [str(part).replace(str(original), str(folder)) for part in args]


def assert_refused(folder, args, *texts):
    """Exit status 2, one line, nothing changed."""
    before = {path.name: path.read_bytes() for path in interrupted.left_by(folder).iterdir()}
    done = helpers.run(args, check=False, env=helpers.quick())
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("moe-outliers: error: "), done.stderr
    assert all(text in lines[0] for text in (*texts, "--fresh")), lines[0]
    assert {path.name: path.read_bytes() for path in interrupted.left_by(folder).iterdir()} == before
    assert not (folder / "r.h5").exists() and not (folder / "r.h5.partial").exists()


OTHERS = (
    ("analysis.threshold=3", "analysis.threshold has changed since the run was interrupted: 2.5, now 3.0 ("),
    (
        "analysis.thresholds=2.5, 3.0",
        "analysis.thresholds has changed since the run was interrupted: ( 2.5 ), now ( 2.5, 3.0 ) (",
    ),
    ("analysis.perplexity=false", "analysis.perplexity has changed"),
    ("data.skip=1", "data.skip has changed since the run was interrupted: 0, now 1 ("),
    ("data.length=128", "data.length has changed"),
    ("engine.precision=fp32", 'engine.precision has changed since the run was interrupted: "bf16", now "fp32" ('),
    ("engine.micro_batch=2", "engine.micro_batch has changed since the run was interrupted: 1, now 2 ("),
    ("engine.device=check", "engine.device has changed"),
    ("output.activations=all", "output.activations has changed"),
    ("data.tokens=synthetic:5", "data.tokens has changed"),
)


@pytest.mark.parametrize("setting, text", OTHERS, ids=lambda value: value.split("=")[0] if "=" in value else "")
def test_other_config(left, setting, text):
    folder, args = left
    assert_refused(folder, [*args, "-s", setting], text, "r.h5.resume): set it back to continue")


def test_other_tokens(left):
    folder, args = left
    with h5py.File(folder / "tokens.h5", "r+") as file:
        file["tokens"][5, 255] = (file["tokens"][5, 255] + 1) % 256
    assert_refused(folder, args, "data.tokens has changed")


def touch(folder):
    os.utime(folder / "model" / "model.safetensors")


def rewrite(folder):
    """As large and as old as before, another tensor at some place."""
    path = folder / "model" / "model.safetensors"
    times = path.stat()
    data = path.read_bytes()
    a, b = b"layers.0.self_attn.q_proj", b"layers.1.self_attn.q_proj"
    assert data.count(a) == data.count(b) == 1
    path.write_bytes(data.replace(a, b"\0swap\0").replace(b, a).replace(b"\0swap\0", b))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("change", (touch, rewrite))
def test_other_checkpoint(left, change):
    folder, args = left
    change(folder)
    assert_refused(folder, args, "checkpoint file model.safetensors has changed")


def test_other_model_config(left):
    folder, args = left
    path = folder / "model" / "config.json"
    path.write_text(path.read_text().replace("{", '{ "rms_norm_eps": 1e-4,', 1))
    assert_refused(folder, args, "config.json has changed")


def test_unimportant_changes(left):
    """How fast and where it is computed makes no difference; neither do unchanged things under other names."""
    folder, args = left
    for name in ("model", "tokens.h5"):
        (folder / name).rename(folder / f"other_{name}")
    engine = {"threads": 2, "readers": 1, "partition": "interleaved", "checkpoint_seconds": 7, "device_memory_gb": 1.0}
    files = {"model": {"path": folder / "other_model", "name": "x"}, "data": {"tokens": folder / "other_tokens.h5"}}
    before = interrupted.records(folder)
    lines = run_to_the_end([*args, *interrupted.settings(engine=engine, **files)], 2, folder)
    assert interrupted.kept_tasks(lines) == len(before)


def test_fresh(left):
    folder, args = left
    lines = run_to_the_end([*args, "-s", "analysis.threshold=3", "--fresh"], 2, folder)
    assert interrupted.kept_tasks(lines) == 0
    with h5py.File(folder / "r.h5") as file:
        assert file.attrs["threshold"] == 3
    assert not interrupted.left_by(folder).exists()


def test_old_result_stays(left):
    """overwrite = true: the old result is there until the new one is complete, and still not replaced without it."""
    folder, args = left
    (folder / "r.h5").write_text("old")
    done = helpers.run(args, check=False, env=helpers.quick())
    assert done.returncode == 2 and "the result file exists" in done.stderr
    assert interrupted.records(folder) and (folder / "r.h5").read_text() == "old"
    lines = run_to_the_end([*args, "-s", "output.overwrite=true"], None, folder)
    assert interrupted.kept_tasks(lines) > 0
    assert not interrupted.left_by(folder).exists()


# --- damage ---


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def journal(folder):
    (path,) = interrupted.left_by(folder).glob("journal-*.log")
    return path


def last_rows(folder):
    """Of the micro-batch that was under way."""
    return max(interrupted.left_by(folder).glob("rows-*"))


DAMAGES = {
    "record": lambda folder: flip(journal(folder), journal(folder).stat().st_size // 2),
    "record_header": lambda folder: flip(journal(folder), interrupted.FILE_HEADER.size + 9),
    "journal_header": lambda folder: flip(journal(folder), 3),
    "rows": lambda folder: flip(last_rows(folder), 5000),
    "rows_header": lambda folder: flip(last_rows(folder), 20),
    "short_rows": lambda folder: os.truncate(last_rows(folder), 5000),
    "no_bytes": lambda folder: os.truncate(last_rows(folder), 0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged(left, unbroken_files, damage):
    """What a damaged part held is computed again."""
    folder, args = left
    before = len(interrupted.records(folder))
    DAMAGES[damage](folder)
    lines = run_to_the_end(args, 2, folder)
    assert any(f"note: 1 damaged part of {folder}/r.h5.resume does not count" in line for line in lines)
    assert interrupted.kept_tasks(lines) < before
    interrupted.assert_finished(folder, unbroken_files)


@pytest.fixture(scope="module")
def unbroken_files(stopped, tmp_path_factory):
    """Contents of the result of the stopped run's command, had it not been stopped."""
    folder, args = stopped
    output = tmp_path_factory.mktemp("unbroken") / "r.h5"
    helpers.run([*args, "-s", f"output.path={output}"], env=helpers.quick())
    return interrupted.contents(output)


def test_torn(left, unbroken_files):
    """A record that was cut off is nothing to talk about; neither are temporary files."""
    folder, args = left
    os.truncate(journal(folder), journal(folder).stat().st_size - 11)
    (interrupted.left_by(folder) / "rows-0-9.tmp3").write_bytes(b"begun")
    before = len(interrupted.records(folder))
    lines = run_to_the_end(args, 2, folder)
    assert not any("damaged" in line for line in lines)
    assert 0 < interrupted.kept_tasks(lines) <= before
    interrupted.assert_finished(folder, unbroken_files)


def test_missing_rows(left, unbroken_files):
    folder, args = left
    for path in interrupted.left_by(folder).glob("rows-*"):
        path.unlink()
    lines = run_to_the_end(args, 2, folder)
    assert interrupted.kept_tasks(lines) % interrupted.STAGES == 0  # micro-batches that were through
    interrupted.assert_finished(folder, unbroken_files)


def test_damaged_identity(left):
    folder, args = left
    flip(interrupted.left_by(folder) / "identity", 30)
    assert_refused(folder, args, "a file of the interrupted run is damaged", "r.h5.resume/identity")


def test_journal_of_another_run(left, unbroken_files):
    """Nobody takes another run's records for this one's."""
    folder, args = left
    other = folder / "other"
    other.mkdir()
    run_until(["run", interrupted.config(other)], None, other, 20, kill(None))
    shutil.copy(journal(other), interrupted.left_by(folder) / "journal-9.log")
    lines = run_to_the_end(args, 2, folder)
    assert any("1 damaged part" in line for line in lines)
    interrupted.assert_finished(folder, unbroken_files)


# --- two runs at once ---


def test_two_at_once(tmp_path, unbroken):
    args = ["run", interrupted.config(tmp_path)]
    with Watched(args) as first:
        first.wait_until(lambda: interrupted.records(tmp_path))
        first.process.send_signal(signal.SIGSTOP)
        done = helpers.run([*args, "--fresh"], check=False, env=helpers.quick())
        assert done.returncode == 2
        assert "error: another run is writing this result (" in done.stderr and "r.h5): wait for its end" in done.stderr
        first.process.send_signal(signal.SIGCONT)
        assert first.wait_for_end(60 * helpers.SLOW) == 0
    interrupted.assert_finished(tmp_path, unbroken())


def test_second_waits_for_the_first(tmp_path, unbroken):
    """One that comes just before the other's end finds the result."""
    args = ["run", interrupted.config(tmp_path)]
    with Watched(args) as first, Watched(args) as second:
        second_status = second.wait_for_end(60 * helpers.SLOW)
        assert first.wait_for_end(60 * helpers.SLOW) + second_status == 2
        (line,) = first.errors() + second.errors()
        assert "the result file exists" in line
    interrupted.assert_finished(tmp_path, unbroken())


def test_finished_runs_leave_nothing(tmp_path, unbroken):
    run_to_the_end(["run", interrupted.config(tmp_path)], 3, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["r.cfg", "r.h5", "shape.json"]
    interrupted.assert_finished(tmp_path, unbroken())
