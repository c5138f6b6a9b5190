"""Ports of this machine for servers that are started later, or that never are."""

import socket


def reserved(address="127.0.0.1"):
    """A bound socket. While it is open, nobody else gets its port who asks for any, nobody answers there, and a server that
    sets SO_REUSEADDR, as sshd and Slurm do, may listen on it."""
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.bind((address, 0))
    return kept


def number(kept):
    return kept.getsockname()[1]
