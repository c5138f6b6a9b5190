"""What the tests of bad input share: a good input to spoil, and the check that a run refuses it as it must."""

import json
import pathlib
import shutil
import subprocess
import time

import pytest

import helpers

MODEL = helpers.REFERENCES / "olmoe_a"
SHARDED = helpers.REFERENCES / "mixtral_a"
SECONDS = 30 * helpers.SLOW


class Input:
    """A good input in a folder of its own; a test spoils its parts before the run.

    model: folder of the checkpoint; tokens, output: paths; sections: of the config; text: the config file, None: made
    from sections; args: further arguments of `run`."""

    def __init__(self, home, source=MODEL):
        self.home, self.model = home, home / "model"
        self.model.mkdir(parents=True)
        for path in source.iterdir():
            if path.name not in ("reference.h5", "ablation.h5", "tokens.h5"):
                shutil.copyfile(path, self.model / path.name)
        self.tokens = home / "tokens.h5"
        shutil.copyfile(source / "tokens.h5", self.tokens)
        (home / "out").mkdir()
        self.output = home / "out" / "result.h5"
        self.sections = helpers.run_sections(self.model, self.tokens, self.output)
        self.config, self.text, self.args = home / "run.cfg", None, []

    def command(self):
        """Arguments of the program; writes the config file."""
        if self.text is not None:
            self.config.write_bytes(self.text if isinstance(self.text, bytes) else self.text.encode())
        elif self.config == self.home / "run.cfg":
            helpers.write_config(self.config, self.sections)
        return ["run", self.config, *self.args]

    def edit_config_json(self, **changes):
        """Set keys of config.json; the value ... removes a key."""
        path = self.model / "config.json"
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def cases():
    """A list for pytest.mark.parametrize, and a decorator with which functions that spoil an input are put on it:
    case(keyword), the keyword being in the error line."""
    found = []

    def case(keyword):
        def register(spoil):
            found.append(pytest.param(spoil, keyword, id=spoil.__name__))
            return spoil

        return register

    return found, case


class Safetensors:
    """The parts of a safetensors file, to be changed and written again."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        raw = self.path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        self.header, self.data = json.loads(raw[8 : 8 + length]), raw[8 + length :]

    def names(self):
        """Tensors in the order of their data."""
        tensors = [name for name in self.header if name != "__metadata__"]
        return sorted(tensors, key=lambda name: self.header[name]["data_offsets"])

    def replace(self, name, dtype, shape, data):
        """Give a tensor other data; those behind it move. data None: remove the tensor."""
        pieces, offset = {}, 0
        for other in self.names():
            begin, end = self.header[other]["data_offsets"]
            pieces[other] = self.data[begin:end] if other != name else data
        if data is None:
            del pieces[name], self.header[name]
        else:
            self.header[name] |= {"dtype": dtype, "shape": shape}
        for other, piece in pieces.items():
            self.header[other]["data_offsets"] = [offset, offset + len(piece)]
            offset += len(piece)
        self.data = b"".join(pieces.values())

    def write(self, header=None, length=None):
        """header: its bytes, if not made from the parts; length: what the prefix says, if not the truth."""
        header = json.dumps(self.header).encode() if header is None else header
        length = len(header) if length is None else length
        self.path.write_bytes(length.to_bytes(8, "little") + header + self.data)


def listing(home):
    """{path: kind or content} of everything below a folder."""
    found = {}
    for path in sorted(home.rglob("*")):
        plain = path.is_file() and not path.is_symlink()
        found[str(path)] = path.read_bytes() if plain else "link" if path.is_symlink() else "other"
    return found


def own_lines(stderr):
    """The program's lines; the others are mpirun's."""
    return [line for line in stderr.splitlines() if line.startswith("moe-outliers")]


def assert_refusal(process, stdout, stderr, keyword):
    """Exit status 2 and one line that names the thing."""
    assert process.returncode == 2, (process.returncode, stderr)
    lines = own_lines(stderr)
    assert len(lines) == 1 and lines[0].startswith("moe-outliers: error: "), stderr
    assert keyword in lines[0], (keyword, lines[0])
    assert ": " in lines[0].removeprefix("moe-outliers: error: ") or lines[0].endswith("..."), lines[0]
    assert stdout == ""
    if "mpirun" not in process.args:
        assert stderr == lines[0] + "\n"


def assert_refused(folder, spoil, keyword, source=MODEL):
    """A run on the input that spoil(input) leaves is refused with one error line with `keyword`, on 1 and 4 ranks:
    soon, and without a change to any file. Sanitized programs, which take seconds to start 4 ranks, on 1 only."""
    started = []
    for ranks in (None, 4) if helpers.SLOW == 1 else (None,):  # both at once: they mostly wait for MPI to start
        given = Input(folder / f"ranks{ranks or 1}", source)
        spoil(given)
        argv = helpers.command(given.command(), ranks)
        before = listing(given.home)
        begin = time.monotonic()
        process = subprocess.Popen(
            argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=given.home,
            env=helpers.environment(**helpers.quick(ranks)),
        )
        started.append((process, begin, given, before))
    try:
        for process, begin, given, before in started:
            stdout, stderr = process.communicate(timeout=SECONDS)
            assert time.monotonic() - begin < SECONDS
            assert_refusal(process, stdout, stderr, keyword)
            assert listing(given.home) == before
    finally:
        for process, *_ in started:
            process.terminate()  # a launcher that is killed may leave ranks behind
            process.communicate()
