"""File systems on which MPI-IO cannot write (tests/no_mpi_io.c): the ranks notice it at the start and write the same file
in turns, without it; where they were told how to write, they do."""

# cores: 1

import os

import h5py
import pytest

import helpers

MODEL = helpers.REFERENCES / "olmoe_a"
OF_THE_RUN = {"n_ranks", "started", "finished", "config"}
OBSTACLES = {
    "lock": "byte ranges cannot be locked (fcntl) on rank 0, ",
    "local": "locks of other ranks are not seen on rank 0, ",
    "open": "MPI-IO cannot open a file on rank 0, ",
    "write": "MPI-IO cannot write together on rank 0, ",
    "short": "MPI-IO wrote too little on rank 0, ",
    "lost": "MPI-IO's bytes of rank 0 are not in the file on rank 0, ",
}


def without(kind, rank=None):
    """Environment in which MPI-IO has that defect."""
    library = helpers.program().parent / "tests" / "no_mpi_io.so"
    assert library.is_file(), f"no {library}: build the tests"
    sanitizer = os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0"
    only = {} if rank is None else {"NO_MPI_IO_RANK": str(rank)}
    return {"LD_PRELOAD": str(library), "NO_MPI_IO": kind, "ASAN_OPTIONS": sanitizer} | only


def command(folder, mpi_io=None, activations="all"):
    changes = {"analysis": {"thresholds": (6.0, 2.5), "bootstrap": 100}, "engine": {"micro_batch": 2}}
    sections = helpers.run_sections(MODEL, MODEL / "tokens.h5", folder / "r.h5", activations=activations, **changes)
    if mpi_io:
        sections["output"]["mpi_io"] = mpi_io
    return ["run", helpers.write_config(folder / "r.cfg", sections)]


def run(folder, ranks, env=None, check=True, **changes):
    return helpers.run(command(folder, **changes), ranks, check, env=helpers.quick(ranks) | (env or {}))


def assert_tidy(folder):
    assert sorted(os.listdir(folder)) == ["r.cfg", "r.h5"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Contents of the file that one rank writes through MPI-IO."""
    folder = tmp_path_factory.mktemp("expected")
    run(folder, None, mpi_io="on")
    return helpers.contents(folder / "r.h5", OF_THE_RUN)


@pytest.mark.parametrize("mpi_io", ("on", "off", "auto"))
@pytest.mark.parametrize("ranks", (1, 2, 3))
def test_same_file(tmp_path, expected, ranks, mpi_io):
    done = run(tmp_path, ranks, mpi_io=mpi_io)
    assert "in turns" not in done.stderr
    helpers.assert_same(helpers.contents(tmp_path / "r.h5", OF_THE_RUN), expected)
    with h5py.File(tmp_path / "r.h5") as file:
        assert set(file["timing"]["rank"]) == set(range(ranks))
    assert_tidy(tmp_path)


@pytest.mark.parametrize("kind", OBSTACLES)
def test_noticed(tmp_path, expected, kind):
    done = run(tmp_path, 2, without(kind))
    notes = [line for line in done.stderr.splitlines() if "in turns" in line]
    assert len(notes) == 1
    assert notes[0].startswith(
        f"moe-outliers: note: the ranks write {tmp_path}/r.h5 in turns, without MPI-IO: {OBSTACLES[kind]}"
    )
    helpers.assert_same(helpers.contents(tmp_path / "r.h5", OF_THE_RUN), expected)
    assert_tidy(tmp_path)


def test_noticed_by_one_rank(tmp_path, expected):
    done = run(tmp_path, 3, without("lock", rank=2))
    assert "in turns, without MPI-IO: byte ranges cannot be locked (fcntl) on rank 2, " in done.stderr
    helpers.assert_same(helpers.contents(tmp_path / "r.h5", OF_THE_RUN), expected)


@pytest.mark.parametrize("ranks, mpi_io", ((None, "auto"), (2, "off")))
def test_never_called(tmp_path, expected, ranks, mpi_io):
    """A lone rank and ranks that were told to do not even try it."""
    done = run(tmp_path, ranks, without("open"), mpi_io=mpi_io)
    assert "in turns" not in done.stderr
    helpers.assert_same(helpers.contents(tmp_path / "r.h5", OF_THE_RUN), expected)


def test_insisted_on(tmp_path):
    done = run(tmp_path, 2, without("open"), False, mpi_io="on")
    assert done.returncode == 1
    assert "cannot open file" in done.stderr
    assert not (tmp_path / "r.h5").exists()


def test_no_activations(tmp_path):
    done = run(tmp_path, 2, without("write"), activations=())
    assert "in turns" in done.stderr
    with h5py.File(tmp_path / "r.h5") as file:
        assert file.attrs["complete"] == 1
        assert "activations" not in file
    assert_tidy(tmp_path)


def test_unknown_choice(tmp_path):
    done = run(tmp_path, None, check=False, mpi_io="maybe")
    assert done.returncode == 2
    assert 'output.mpi_io = "maybe" is unknown' in done.stderr
    assert 'give one of "auto", "on", "off"' in done.stderr


def test_folder_not_shared(tmp_path):
    """Rank 1 has another file system at the place, as a node's own disk."""
    (tmp_path / "out").mkdir()
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(
        '#!/bin/sh\n[ "$OMPI_COMM_WORLD_RANK" = 1 ] || exec "$@"\n'
        f"exec unshare --mount sh -c 'mount -t tmpfs tmpfs {tmp_path}/out && exec \"$0\" \"$@\"' \"$@\"\n"
    )
    wrapper.chmod(0o755)
    if helpers.subprocess.run([wrapper, "true"], env=os.environ | {"OMPI_COMM_WORLD_RANK": "1"}).returncode != 0:
        pytest.skip("no namespace of mounts can be made here")
    args = command(tmp_path)
    args += ["-s", f"output.path={tmp_path}/out/r.h5", "-s", "output.mpi_io=off"]
    argv = helpers.command(args, 2, [str(wrapper)])
    done = helpers.subprocess.run(
        argv, capture_output=True, text=True, timeout=60, env=helpers.environment(**helpers.quick(2))
    )
    assert done.returncode == 2, done.stderr
    assert "the ranks do not share the output folder" in done.stderr
    assert os.listdir(tmp_path / "out") == []
