"""A token file that cannot be used is refused: one error line, exit status 2, nothing written."""

# cores: 1

import os

import h5py
import numpy as np
import pytest

import bad_input

VOCABULARY = 97
LARGE = 2**31 - 1


def write(given, data, name="tokens"):
    with h5py.File(given.tokens, "w") as file:
        file[name] = data


def ids(count=3, length=37, kind=np.int32):
    return np.arange(count * length, dtype=kind).reshape(count, length) % VOCABULARY


def with_id(value):
    found = ids()
    found[1, 20] = value
    return found


def absent(given):
    given.tokens.unlink()


def folder(given):
    given.tokens.unlink()
    given.tokens.mkdir()


def pipe(given):
    given.tokens.unlink()
    os.mkfifo(given.tokens)


def group(given):
    with h5py.File(given.tokens, "w") as file:
        file.create_group("tokens")


def link_to_nowhere(given):
    with h5py.File(given.tokens, "w") as file:
        file["tokens"] = h5py.ExternalLink("nowhere.h5", "/tokens")


def set_data(**keys):
    return lambda given: given.sections["data"].update(keys)


CASES = (
    ("absent", absent, "tokens.h5"),
    ("folder", folder, "tokens.h5"),
    ("pipe", pipe, "tokens.h5"),
    ("empty", lambda given: os.truncate(given.tokens, 0), "tokens.h5"),
    ("text", lambda given: given.tokens.write_text("1 2 3 4\n" * 100), "tokens.h5"),
    ("truncated", lambda given: os.truncate(given.tokens, given.tokens.stat().st_size - 64), "tokens.h5"),
    ("signature_only", lambda given: given.tokens.write_bytes(b"\x89HDF\r\n\x1a\n"), "tokens.h5"),
    ("no_dataset", lambda given: write(given, ids(), "token"), "/tokens"),
    ("a_group", group, "/tokens"),
    ("a_broken_link", link_to_nowhere, "/tokens"),
    ("no_values", lambda given: write(given, h5py.Empty("i4")), "/tokens"),
    ("scalar", lambda given: write(given, np.int32(5)), "0 dimensions"),
    ("one_dimension", lambda given: write(given, ids().ravel()), "1 dimensions"),
    ("three_dimensions", lambda given: write(given, ids()[None]), "3 dimensions"),
    ("int64", lambda given: write(given, ids(kind=np.int64)), "int32"),
    ("int16", lambda given: write(given, ids(kind=np.int16)), "int32"),
    ("uint32", lambda given: write(given, ids(kind=np.uint32)), "int32"),
    ("float32", lambda given: write(given, ids(kind=np.float32)), "int32"),
    ("float64", lambda given: write(given, ids(kind=np.float64)), "int32"),
    ("strings", lambda given: write(given, [["a"] * 37] * 3), "int32"),
    ("first_id_too_large", lambda given: write(given, with_id(VOCABULARY)), "token id 97"),
    ("largest_id", lambda given: write(given, with_id(LARGE)), f"token id {LARGE}"),
    ("negative_id", lambda given: write(given, with_id(-1)), "token id -1"),
    ("most_negative_id", lambda given: write(given, with_id(-LARGE - 1)), f"token id {-LARGE - 1}"),
    ("too_few", lambda given: write(given, ids(count=2)), "too few sequences"),
    ("none", lambda given: write(given, ids(count=0)), "too few sequences"),
    ("too_few_after_skip", set_data(skip=1), "too few sequences"),
    ("skip_beyond_all", set_data(skip=LARGE), "too few sequences"),
    ("too_short", lambda given: write(given, ids(length=36)), "too short"),
    ("no_length", lambda given: write(given, ids(length=0)), "too short"),
)


@pytest.mark.parametrize("spoil, keyword", [pytest.param(spoil, keyword, id=name) for name, spoil, keyword in CASES])
def test_refused(tmp_path, spoil, keyword):
    bad_input.assert_refused(tmp_path, spoil, keyword)


def test_error_names_the_place_of_a_bad_id(tmp_path):
    bad_input.assert_refused(
        tmp_path, lambda given: write(given, with_id(VOCABULARY)), "/tokens sequence 1, position 20"
    )
