"""Runs on randomly damaged files end in time, by themselves, and with an error line if with an error."""

# cores: 1

import random

import pytest

import bad_input
import helpers

ROUNDS = 200
FILES = {"safetensors": "model/model.safetensors", "config": "model/config.json", "tokens": "tokens.h5"}


def header_length(data):
    return 8 + int.from_bytes(data[:8], "little")


def damage(dice, data, reach):
    """A copy of data with one to four damages in its first `reach` bytes."""
    data = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(min(reach, len(data)) or 1)
        kind = dice.choice(("bit", "byte", "digit", "delete", "insert", "truncate", "zeros", "swap"))
        if kind == "truncate":
            del data[place:]
        elif kind == "delete":
            del data[place : place + dice.randint(1, 20)]
        elif kind == "insert":
            data[place:place] = dice.choice((b"0", b"-", b"9" * 25, b'"', b"{[", b"\0", b"\xff" * 8, b"1e308"))
        elif kind == "zeros":
            data[place : place + 8] = bytes(8)
        elif kind == "swap":
            other = dice.randrange(min(reach, len(data)) or 1)
            data[place : place + 4], data[other : other + 4] = data[other : other + 4], data[place : place + 4]
        elif place < len(data):
            data[place] = {"bit": data[place] ^ 1 << dice.randrange(8), "byte": dice.randrange(256)}.get(
                kind, dice.choice(b"0123456789")
            )
    return bytes(data)


def damage_texts(path, damaged, size):
    """A copy of an HDF5 file whose strings of variable length have that size by the heap that they are in."""
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL")
    for start in range(heap + 16, heap + 4096 - 16, 8):  # each place where an object with its size may begin
        if int.from_bytes(data[start : start + 2], "little") and data[start + 2 : start + 8] == bytes(6):
            data[start + 8 : start + 16] = size.to_bytes(8, "little")
    damaged.write_bytes(data)


def assert_clean_end(done, seed):
    assert done.returncode in (0, 1, 2), (seed, done.returncode, done.stderr)
    errors = [line for line in bad_input.own_lines(done.stderr) if line.startswith("moe-outliers: error: ")]
    assert len(errors) == (done.returncode != 0), (seed, done.stderr)
    assert done.stdout == ""


@pytest.mark.parametrize("kind", FILES)
def test_damaged_file(tmp_path, kind):
    given = bad_input.Input(tmp_path / "given")
    args = given.command()
    path = given.home / FILES[kind]
    good = path.read_bytes()
    reach = header_length(good) if kind == "safetensors" else len(good)
    refused = 0
    for seed in range(ROUNDS // len(FILES) + 1):
        path.write_bytes(damage(random.Random(f"{kind} {seed}"), good, reach))
        done = helpers.run(args, check=False, timeout=20 * helpers.SLOW, cwd=given.home, env=helpers.quick())
        assert_clean_end(done, seed)
        left = [file.name for file in given.output.parent.iterdir()]
        assert left == ([] if done.returncode else ["result.h5"]), (seed, left)
        if done.returncode == 0:
            given.output.unlink()
        refused += done.returncode == 2
    assert refused > ROUNDS // len(FILES) // 4, "the damage does too little"
