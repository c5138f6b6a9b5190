"""Processes on this machine, which may end at any moment, by what /proc says of them."""

import pathlib


def read(pid, name):
    """The texts of /proc/PID/NAME, as bytes, at least one; an empty one if the process has ended."""
    try:
        return pathlib.Path(f"/proc/{pid}/{name}").read_bytes().split(b"\0")
    except OSError:
        return [b""]


def command(pid):
    """Its arguments, as bytes; an empty one if it has ended."""
    return read(pid, "cmdline")


def variable(pid, *names):
    """The value, as bytes, of the first environment variable of these that it has; None: none, or it has ended."""
    environment = dict(line.partition(b"=")[::2] for line in read(pid, "environ"))
    return next((environment[name.encode()] for name in names if name.encode() in environment), None)


def catches(pid, number):
    """Whether it has a handler for this signal."""
    lines = read(pid, "status")[0].decode().splitlines()
    caught = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")), 0)
    return bool(caught >> (number - 1) & 1)


def with_variable(mark):
    """Pids of the processes that have this line, bytes NAME=VALUE, in their environment."""
    pids = [int(path.name) for path in pathlib.Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if mark in read(pid, "environ")]
