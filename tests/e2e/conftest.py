"""Fixtures of the end-to-end tests."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import helpers  # noqa: E402


@pytest.fixture(scope="session")
def analysed(tmp_path_factory):
    """analysed(checkpoint, precision, ranks): the result file of a run with all activations stored, by several
    thresholds of which 6.0 is the first; each is run once.

    ranks None: started alone. `checkpoint` is a folder that has tokens.h5 too."""
    finished = {}

    def result(checkpoint, precision, ranks):
        key = (checkpoint, precision, ranks)
        if key not in finished:
            folder = tmp_path_factory.mktemp(f"{checkpoint.name}-{precision}-{ranks or 'alone'}")
            output = folder / "result.h5"
            tokens = checkpoint / "tokens.h5"
            thresholds = {"thresholds": (6.0, 5.0, 2.5, 8.0)}
            sections = helpers.run_sections(
                checkpoint, tokens, output, precision, activations="all", analysis=thresholds
            )
            config = helpers.write_config(folder / "run.cfg", sections)
            helpers.run(["run", config], ranks, env=helpers.quick(ranks))
            finished[key] = output
        return finished[key]

    return result
