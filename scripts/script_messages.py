"""Errors, notes and progress of the scripts that fetch and prepare data: one line each, on stderr."""

from __future__ import annotations

import argparse
import collections
import contextlib
import sys
import threading
import time
from typing import NoReturn

SECONDS_BETWEEN_LINES = 15  # of progress, where there is no terminal
SECONDS_BETWEEN_NOTES = 5  # of the same kind
RATE_SECONDS = 20  # the rate is that of so long ago to now


class BadInput(Exception):
    """Wrong usage, config or input, exit status 2. One line for the user: WHAT (WHERE): what to do."""

    status = 2


class Failed(Exception):
    """It failed on the way, exit status 1. One line for the user."""

    status = 1


class Parser(argparse.ArgumentParser):
    """An error is one line, as the program's own errors are."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {message}: see --help", file=sys.stderr)
        sys.exit(2)


def seconds(text: str) -> float:
    """Type of an option."""
    with contextlib.suppress(ValueError):
        if float(text) >= 0:  # no nan
            return float(text)
    raise argparse.ArgumentTypeError(f"{text}: give seconds from 0")


def size_text(size: float) -> str:
    """Bytes for people, in decimal units."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"


def time_text(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"


class Progress:
    """Work done of a total: a bar on a terminal, a line now and then otherwise. Any thread may add to it."""

    def __init__(self, program: str, text=size_text):
        self.program, self.text = program, text
        self.lock = threading.Lock()
        self.terminal = sys.stderr.isatty()
        self.noted = {}
        self.bar = 0  # characters of the bar on the screen
        self.start("", 0)

    def start(self, what: str, total: float, done: float = 0) -> None:
        """Begin something else; done: what is there already."""
        with self.lock:
            self.what, self.total, self.done = what, total, done
            now = time.monotonic()
            self.shown, self.seen = now, collections.deque([(now, done)])

    def add(self, amount: float) -> None:
        with self.lock:
            self.done += amount

    def found(self, amount: float) -> None:
        """Done before: counts for the bar, not for the rate."""
        with self.lock:
            self.done += amount
            self.seen = collections.deque((at, done + amount) for at, done in self.seen)

    def show(self) -> None:
        """Call a few times a second; prints when it is time to."""
        now = time.monotonic()
        with self.lock:
            if now - self.seen[-1][0] >= 1:
                self.seen.append((now, self.done))
            while now - self.seen[0][0] > RATE_SECONDS and len(self.seen) > 2:
                self.seen.popleft()
            if not self.total or (not self.terminal and now - self.shown < SECONDS_BETWEEN_LINES):
                return
            self.shown = now
            line = f"{self.program}: {self.what}: {self.line(now)}"
            if self.terminal:
                print("\r" + line.ljust(self.bar), end="", file=sys.stderr, flush=True)
                self.bar = len(line)
            else:
                print(line, file=sys.stderr, flush=True)

    def line(self, now: float) -> str:
        share = min(1.0, self.done / self.total)
        text = f"{100 * share:3.0f} %, {self.text(self.done)} of {self.text(self.total)}"
        if self.terminal:
            text = f"[{'#' * int(30 * share):30}] {text}"
        began, before = self.seen[0]
        rate = (self.done - before) / (now - began) if now > began else 0
        return text + (f", {self.text(rate)}/s, {time_text((self.total - self.done) / rate)} left" if rate > 0 else "")

    def note(self, text: str, kind: str | None = None) -> None:
        """A line of its own; those of one kind are not more than one in some seconds."""
        with self.lock:
            now = time.monotonic()
            if kind and now - self.noted.get(kind, -SECONDS_BETWEEN_NOTES) < SECONDS_BETWEEN_NOTES:
                return
            self.noted[kind] = now
            self.clear()
            print(f"{self.program}: {text}", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self.bar:
            print("\r" + " " * self.bar + "\r", end="", file=sys.stderr, flush=True)
            self.bar = 0


def tell_error(progress: Progress, error: BadInput | Failed) -> int:
    """Print the one line of an error; returns its exit status."""
    progress.clear()
    print(f"{progress.program}: error: {error}", file=sys.stderr)
    return error.status
