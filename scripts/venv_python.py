"""Starts a script again with the Python of build/venv (scripts/setup makes it) where this one lacks modules."""

from __future__ import annotations

import importlib.util
import logging
import os
import pathlib
import sys

PYTHON = pathlib.Path(__file__).resolve().parents[1] / "build" / "venv" / "bin" / "python"
AGAIN = "MOE_OUTLIERS_VENV_PYTHON"


def missing(modules: tuple[str, ...]) -> list[str]:
    return [module for module in modules if importlib.util.find_spec(module) is None]


def need(*modules: str) -> None:
    """Returns if the modules are here; ends the script if build/venv lacks them too."""
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it tells when it first looks for fonts
    lacking = missing(modules)
    if not lacking:
        return
    if PYTHON.exists() and AGAIN not in os.environ:
        os.environ[AGAIN] = "1"
        os.execv(PYTHON, [str(PYTHON), *sys.argv])
    program = pathlib.Path(sys.argv[0]).name
    error = f"{program}: error: no Python module {', '.join(lacking)} ({sys.executable}): run scripts/setup"
    print(error, file=sys.stderr)
    sys.exit(2)
