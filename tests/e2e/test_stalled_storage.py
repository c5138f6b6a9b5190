"""Storage that does not answer for a while, or with an error (tests/slow_storage.c): what a run says, that it goes on,
and that it can be stopped meanwhile."""

# cores: 1

import errno
import os
import pty
import re
import signal
import subprocess
import time

import pytest

import helpers
from watched import Watched

MODEL = helpers.REFERENCES / "qwen3_moe_b"
FILES = sorted(path.name for path in MODEL.glob("*.safetensors"))
BYTES = sum((MODEL / name).stat().st_size for name in FILES)
OF_THE_RUN = {"n_ranks", "started", "finished", "config"}
EXIT_STOPPED = 75
STALL = re.compile(
    r"nothing read for (\d+) s, byte (\d+) of (\S+?)(?: \(rank \d+(?: and \d+ more)?\))?: check the storage$"
)


def slow(after, **settings):
    """Environment in which reads of weights hang or fail as soon as so many bytes have been asked for."""
    library = helpers.program().parent / "tests" / "slow_storage.so"
    assert library.is_file(), f"no {library}: build the tests"
    variables = {f"SLOW_STORAGE_{name.upper()}": str(value) for name, value in settings.items()}
    # A sanitized program wants its own libraries to come first; the order does not matter to what is replaced here.
    sanitizer = os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0"
    return {"LD_PRELOAD": str(library), "SLOW_STORAGE_AFTER": str(int(after)), "ASAN_OPTIONS": sanitizer} | variables


def command(folder, **engine):
    settings = {"threads": 1, "readers": 2} | engine
    sections = helpers.run_sections(MODEL, MODEL / "tokens.h5", folder / "r.h5", engine=settings)
    return ["run", helpers.write_config(folder / "r.cfg", sections)]


def result(folder):
    return helpers.contents(folder / "r.h5", OF_THE_RUN)


@pytest.fixture(scope="module", params=("cpu", "check"))
def undisturbed(request, tmp_path_factory):
    """(engine settings, contents of the result); weights go straight to memory, and through buffers."""
    folder = tmp_path_factory.mktemp(request.param)
    engine = {"device": request.param}
    helpers.run(command(folder, **engine), env=helpers.quick())
    return engine, result(folder)


def stalls(run):
    """[(seconds, byte, file)] of the lines that name a stall."""
    found = (STALL.search(line) for line in run.lines)
    return [(int(match[1]), int(match[2]), os.path.basename(match[3])) for match in found if match]


def assert_place(stall):
    _, byte, name = stall
    assert name in FILES and byte < (MODEL / name).stat().st_size


@pytest.mark.parametrize("ranks", (None, 2))
def test_stall_shows_and_passes(tmp_path, undisturbed, ranks):
    engine, expected = undisturbed
    begin = time.monotonic()
    with Watched(command(tmp_path, **engine), ranks, slow(BYTES // 2, seconds=14)) as run:
        run.wait_until(lambda: len(stalls(run)) >= 2)
        assert not (tmp_path / "r.h5").exists()
        assert run.wait_for_end(60 * helpers.SLOW) == 0, run.lines
    assert time.monotonic() - begin > 14
    first, second = (stall[0] for stall in stalls(run)[:2])
    assert 5 <= first < 8 and first + 5 <= second <= 14  # every 5 s
    for stall in stalls(run):
        assert_place(stall)
    assert all("rank" in line for line in run.lines if "nothing read" in line) == (ranks is not None)
    helpers.assert_same(result(tmp_path), expected)


@pytest.mark.parametrize("ranks", (None, 2))
def test_stopped_while_storage_does_not_answer(tmp_path, undisturbed, ranks):
    """The reads hang much longer than it takes; the same command then finishes the run."""
    engine, expected = undisturbed
    args = command(tmp_path, **engine)
    with Watched(args, ranks, slow(BYTES // 2, seconds=600)) as run:
        pid = run.wait_until(lambda: stalls(run) and (run.process.pid if ranks is None else run.pid_of(1)))
        begin = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        assert run.wait_for_end(60) == EXIT_STOPPED, run.lines
        assert time.monotonic() - begin < 20 * helpers.SLOW
    assert run.said("stopped by SIGTERM; saved; the same command continues")
    assert not run.errors()
    helpers.run(args, ranks, env=helpers.quick(ranks))
    helpers.assert_same(result(tmp_path), expected)
    assert sorted(os.listdir(tmp_path)) == ["r.cfg", "r.h5"]


@pytest.mark.parametrize("ranks", (None, 2))
def test_stopped_before_the_headers_are_read(tmp_path, ranks):
    with Watched(command(tmp_path, device="cpu"), ranks, slow(0, seconds=600)) as run:
        pid = run.wait_until(lambda: run.ready(None if ranks is None else 0))
        run.wait_until(lambda: ranks is None or run.ready(1))
        begin = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        assert run.wait_for_end(60) == EXIT_STOPPED, run.lines
        assert time.monotonic() - begin < 20 * helpers.SLOW
    assert run.said("stopped")
    assert os.listdir(tmp_path) == ["r.cfg"]


@pytest.mark.parametrize("ranks", (None, 2))
def test_read_error(tmp_path, undisturbed, ranks):
    engine, _ = undisturbed
    with Watched(command(tmp_path, **engine), ranks, slow(BYTES // 2, errno=errno.EIO)) as run:
        assert run.wait_for_end(20 * helpers.SLOW) == 1, run.lines
    (line,) = run.errors()
    found = re.search(r"cannot read bytes (\d+) to (\d+) of file (\S+): Input/output error: check the storage", line)
    assert found, line
    assert_place((0, int(found[1]), os.path.basename(found[3])))
    assert int(found[1]) < int(found[2]) and not (tmp_path / "r.h5").exists()


def terminal(args, env):
    """What a command writes to a terminal as its stderr."""
    ours, theirs = pty.openpty()
    variables = helpers.environment(**helpers.quick() | env)
    with subprocess.Popen(helpers.command(args), stderr=theirs, env=variables) as run:
        os.close(theirs)
        text = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            text += part
    os.close(ours)
    assert run.returncode == 0, text
    return text.decode()


def test_bar(tmp_path):
    """One line that is redrawn and fits, with the stall while it lasts; no line per layer."""
    text = terminal(command(tmp_path, device="cpu"), slow(BYTES // 2, seconds=7))
    bars = [part.removesuffix("\x1b[K") for part in text.split("\r") if " layers  " in part]
    assert len(bars) > 10 and all(len(bar) < 80 and "\n" not in bar for bar in bars)
    drawn = re.compile(r"\[#*\.*\] +\d+ %  \d+/\d+ layers  \d+\.\d\d GB/s  ETA (\?|(> )?\d+ s)$")
    assert all(drawn.match(bar) or "stalled" in bar for bar in bars), bars
    stalled = [bar for bar in bars if "stalled" in bar]
    assert re.match(r" *\d+ %  \d/3 layers  stalled for [567] s at byte \d+ of model-0000[12]-of-00002$", stalled[0])
    assert "\x1b[Kmoe-outliers: " in text  # the bar was taken away
    assert "moe-outliers: wrote " in text and "done  rank" not in text


def test_signs_of_life(tmp_path):
    """Every read takes two seconds: no layer is done for long, and nothing stalls."""
    with Watched(command(tmp_path, device="cpu", readers=1), None, slow(0.1 * BYTES, each=2)) as run:
        run.wait_until(lambda: run.said("moe-outliers: working: "))
        os.kill(run.process.pid, signal.SIGTERM)
        assert run.wait_for_end(20 * helpers.SLOW) == EXIT_STOPPED
    (line,) = [line for line in run.lines if "working" in line]
    found = re.search(r"working: 0/3 layers done  0 %, (\S+) of (\S+) GB read, 0\.00 GB/s, (1\d) s, ETA > (\d+) s$", line)
    assert found and 0 < float(found[1]) < 0.5 * float(found[2]), line
    # At the rate so far: within a read of it.
    assert abs(int(found[4]) - int(found[3]) * (float(found[2]) / float(found[1]) - 1)) <= 3
    assert not run.said("nothing read")


def test_storage_that_answers_is_not_named(tmp_path, undisturbed):
    """The library alone changes nothing."""
    engine, expected = undisturbed
    with Watched(command(tmp_path, **engine), None, slow(10 * BYTES, seconds=60)) as run:
        assert run.wait_for_end(30 * helpers.SLOW) == 0, run.lines
    assert not run.said("nothing read")
    helpers.assert_same(result(tmp_path), expected)
