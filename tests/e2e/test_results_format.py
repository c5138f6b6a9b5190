"""docs/results.md describes all that a result file has: every dataset, attribute and column, with its type."""

# cores: 1

import re

import h5py
import pytest

import helpers

SECTION = re.compile(r"^## (.*?)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| (`[^|]*) \| ([^|]*) \|", re.MULTILINE)
CLASSES = {"enum": "i", "string": "O", "int32": "i", "int64": "i", "uint64": "u", "float32": "f", "float64": "f"}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """The open result of a run with all that a run can be asked for."""
    folder, checkpoint = tmp_path_factory.mktemp("full"), helpers.REFERENCES / "glm4_moe_a"
    analysis = {"ablate": "features", "ablate_draws": 1, "thresholds": (6.0, 2.5)}
    sections = helpers.run_sections(
        checkpoint, checkpoint / "tokens.h5", folder / "r.h5", activations="all", analysis=analysis
    )
    helpers.run(["run", helpers.write_config(folder / "r.cfg", sections)], env=helpers.quick())
    with h5py.File(folder / "r.h5") as file:
        yield file


def names_in(text):
    return re.findall(r"`([^`]+)`", text)


@pytest.fixture(scope="module")
def sections():
    """{dataset, group or "Root attributes": {column, attribute or member: type}}"""
    found = {}
    for title, text in SECTION.findall((helpers.ROOT / "docs" / "results.md").read_text()):
        rows = {}
        for cells, kinds in ROW.findall(text):
            words = kinds.replace("scalars", "").replace("scalar", "").split(",")
            for place, name in enumerate(names_in(cells)):
                rows[name] = words[place if len(words) > 1 else 0].split("`")[0].strip()
        for name in names_in(title) or [title]:
            found[name] = rows
    return found


def described_as(path):
    """The title of the section that an object belongs to."""
    path = re.sub(r"^thresholds/[^/]+(/|$)", r"\1", path)
    return "/" + re.sub(r"(^|/)\d{3}(?=/|$)", r"\1NNN", path).strip("/")


def assert_type(dtype, kind, name):
    assert dtype.kind == CLASSES[kind], name
    if kind[-2:] in ("32", "64"):
        assert dtype.itemsize == int(kind[-2:]) // 8, name
    assert (h5py.check_enum_dtype(dtype) is not None) == (kind == "enum"), name


def test_root_attributes(result, sections):
    described = sections["Root attributes"]
    assert set(result.attrs) == set(described)
    for name, kind in described.items():
        assert_type(h5py.h5a.open(result.id, name.encode()).dtype, kind, name)


def test_datasets(result, sections):
    """Each in a section of its own or as a member of its group's."""
    seen = set()

    def check(path, item):
        title = described_as(path)
        assert item.attrs["description"], path
        if isinstance(item, h5py.Group):
            seen.add(title)
            return
        if item.dtype.names:
            seen.add(title)
            described = sections[title]
            assert set(item.dtype.names) == set(described), path
            for name, kind in described.items():
                assert_type(item.dtype[name], kind, (path, name))
            assert item.attrs["columns"].count("\n") + 1 == len(item.dtype.names), path
        elif title in sections:
            seen.add(title)
        else:
            group, name = title.rsplit("/", 1)
            assert_type(item.dtype, sections[group][name], path)

    result.visititems(check)
    documented = {title for title in sections if title.startswith("/")} - {"/thresholds/NUMBER"}
    assert documented <= seen, documented - seen
    assert result["thresholds/2.5"].attrs["threshold"] == 2.5
