"""One run of two ranks under valgrind: no invalid access, no memory lost by the program."""

# cores: 1

import os
import pathlib
import re
import shutil
import subprocess

import pytest

import helpers

OPEN_MPI = pathlib.Path("/usr/share/openmpi/openmpi-valgrind.supp")
OPTIONS = (
    "--leak-check=full",
    "--show-leak-kinds=definite",
    "--errors-for-leak-kinds=definite",
    "--keep-debuginfo=yes",  # Open MPI unloads its plugins before the leak check
    "--num-callers=30",
    "--error-limit=no",
)

pytestmark = [
    pytest.mark.skipif(not shutil.which("valgrind"), reason="valgrind is not installed"),
    pytest.mark.skipif(os.environ.get("MO_SANITIZE") == "1", reason="a sanitized program does not run under valgrind"),
]


def suppressions():
    """Files of valgrind's options: tests/valgrind.supp, and Open MPI's own where it has one."""
    given = os.environ.get("VALGRIND_SUPPRESSIONS")
    if given:
        return given.split(":")
    ours = helpers.ROOT / "tests" / "valgrind.supp"
    return [ours, OPEN_MPI] if OPEN_MPI.exists() else [ours]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(CompletedProcess, {log file: text}) of the run: experts, two micro-batches, stored activations."""
    folder = tmp_path_factory.mktemp("valgrind")
    checkpoint = helpers.REFERENCES / "olmoe_a"
    sections = helpers.run_sections(
        checkpoint,
        checkpoint / "tokens.h5",
        folder / "r.h5",
        "bf16",
        [1],
        data={"sequences": 2, "length": 9},
        engine={"micro_batch": 1, "threads": 1},
    )
    config = helpers.write_config(folder / "run.cfg", sections)
    done = subprocess.run(
        [
            *("mpirun", "-np", "2", "valgrind", *OPTIONS, f"--log-file={folder}/%p.log"),
            *(f"--suppressions={path}" for path in suppressions()),
            *(str(part) for part in (helpers.program(), "run", config)),
        ],
        capture_output=True,
        text=True,
        timeout=280,
        env=helpers.environment(**helpers.quick(2)),
    )
    return done, {path.name: path.read_text() for path in folder.glob("*.log")}


def reports(text):
    """valgrind's reports: paragraphs with a stack."""
    lines = (re.sub(r"^==\d+== ?", "", line) for line in text.splitlines())
    return [part for part in "\n".join(lines).split("\n\n") if re.search(r"^ +at 0x", part, re.MULTILINE)]


def is_ours(report):
    """Whether a frame is the program's own: its file, or a source file of it."""
    sources = {path.name for path in (helpers.ROOT / "src").rglob("*.[ch]")}
    frames = set(re.findall(r"\(([\w.]+):\d+\)$", report, re.MULTILINE))
    return f"/{helpers.program().name})" in report or bool(frames & sources)


def test_run_succeeds(run):
    done, logs = run
    assert len(logs) >= 2  # a rank's each; children that try a file have one of their own
    assert done.returncode == 0, done.stderr + "".join(logs.values())
    assert "moe-outliers: wrote " in done.stderr


def test_no_report_is_ours(run):
    for name, text in run[1].items():
        ours = [report for report in reports(text) if is_ours(report)]
        assert not ours, name + "\n" + "\n\n".join(ours)


def test_leaks_were_looked_for(run):
    for text in run[1].values():
        assert "HEAP SUMMARY" in text and "ERROR SUMMARY" in text
        assert "unhandled instruction" not in text
