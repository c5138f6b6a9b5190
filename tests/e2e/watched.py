"""A run that is watched while it goes on: its lines on stderr, its processes."""

import contextlib
import os
import pathlib
import signal
import subprocess
import threading
import time
import uuid

import helpers
import processes

MARK = "MOE_OUTLIERS_TEST_RUN"


class Watched:
    """with Watched(args, ranks) as run: ... ; all its processes are gone at the end."""

    def __init__(self, args, ranks=None, variables=None, **more):
        self.mark = uuid.uuid4().hex
        self.lines = []
        self.process = subprocess.Popen(
            helpers.command(args, ranks),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=helpers.environment(**helpers.quick(ranks) | {MARK: self.mark} | (variables or {})),
            **more,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        end = time.monotonic() + 10
        while (left := self.processes()) and time.monotonic() < end:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        self.process.kill()
        self.process.wait()
        self.reader.join(10)
        self.process.stderr.close()

    def processes(self):
        """{pid: environment} of the launcher and the ranks that are alive."""
        found = {}
        for folder in pathlib.Path("/proc").iterdir():
            try:
                text = (folder / "environ").read_bytes() if folder.name.isdigit() else b""
            except OSError:  # gone, or another user's
                continue
            if f"{MARK}={self.mark}".encode() in text:
                variables = (item.partition(b"=") for item in text.split(b"\0"))
                found[int(folder.name)] = {name.decode(): value.decode() for name, _, value in variables}
        return found

    def pid_of(self, rank):
        """Process of a rank, None if there is none."""
        for pid, variables in self.processes().items():
            if variables.get("OMPI_COMM_WORLD_RANK", variables.get("PMIX_RANK")) == str(rank):
                return pid
        return None

    def ready(self, rank=None):
        """Process of a rank, or of a run without a launcher, once SIGTERM only stops it; None before."""
        pid = self.process.pid if rank is None else self.pid_of(rank)
        return pid if pid and processes.catches(pid, signal.SIGTERM) else None

    def send(self, number, *ranks):
        """Send a signal to these ranks, or to the process that was started; those that have ended need none."""
        for pid in [self.pid_of(rank) for rank in ranks] if ranks else [self.process.pid]:
            with contextlib.suppress(ProcessLookupError, TypeError):  # TypeError: the rank has no process any more
                os.kill(pid, number)

    def said(self, text):
        return any(text in line for line in self.lines)

    def wait_until(self, condition, seconds=60 * helpers.SLOW):
        """Value of condition() as soon as it is true; fails if that takes too long or the run ends before."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end, "it does not happen:\n" + "\n".join(self.lines)
            assert self.process.poll() is None, "the run ended before:\n" + "\n".join(self.lines)
            time.sleep(0.002)
        return value

    def wait_for_end(self, seconds):
        """Exit status, when all processes are gone."""
        end = time.monotonic() + seconds
        status = self.process.wait(seconds)
        while left := self.processes():
            assert time.monotonic() < end, f"processes are left: {sorted(left)}"
            time.sleep(0.01)
        self.reader.join(10)
        return status

    def errors(self):
        """The program's error lines."""
        return [line for line in self.lines if line.startswith("moe-outliers: error: ")]
