"""What plot.py and report.py read of result files (docs/results.md). Needs numpy and h5py."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from typing import NoReturn

import h5py
import numpy as np

SITES = ("ln_attn", "ln_mlp")
CLASSES = ("NONE", "PROBABILISTIC", "SYSTEMATIC")


class BadInput(Exception):
    """One line for the user: WHAT (WHERE): what to do."""


class Parser(argparse.ArgumentParser):
    """An error is one line, as the program's own errors are."""

    def error(self, message: str) -> NoReturn:
        fail(self.prog, BadInput(f"{message}: see --help"))


def fail(program: str, error: Exception) -> NoReturn:
    print(f"{program}: error: {error}", file=sys.stderr)
    sys.exit(2)


@dataclasses.dataclass
class Result:
    """A result file. Tables are structured arrays; those that the file lacks are None."""

    path: pathlib.Path
    stem: str  # of the path; with a number where several files have the same
    label: str  # the model's name without its owner; with the stem where several have the same
    attributes: dict[str, object]
    config: str
    features: np.ndarray  # /features, largest magnitude first
    sites: np.ndarray
    summary: dict[str, float]
    perplexity: dict[str, float]  # "perplexity" and the ends of its interval; empty if not computed
    maxima: np.ndarray  # [2L, rows of features]: largest magnitude at the site; NaN where no value is an outlier
    lowest: np.ndarray  # [rows of features]: smallest outlier value, signed
    highest: np.ndarray  # [rows of features]: largest outlier value, signed
    expert_tokens: np.ndarray | None  # [L, E]
    experts: np.ndarray | None
    ablation: np.ndarray | None
    ablation_features: np.ndarray | None  # what each variant zeroes
    growth: np.ndarray | None  # of the outlier features, by experts

    @property
    def name(self) -> str:
        return str(self.attributes["model_name"])

    @property
    def threshold(self) -> float:
        return float(self.attributes["threshold"])

    @property
    def qualified(self) -> np.ndarray:
        """Of each row of features: whether it is an outlier feature."""
        return self.features["classification"] != CLASSES.index("NONE")

    @property
    def is_dense(self) -> bool:
        return int(self.attributes["n_experts"]) == 0

    @property
    def classification(self) -> str:
        return CLASSES[int(self.summary["classification"])]

    def interval(self, name: str) -> tuple[float, float]:
        """Ends of the interval of a scalar of /summary or /perplexity; NaN where the file has none."""
        values = self.perplexity if name == "perplexity" else self.summary
        return tuple(float(values.get(f"{name}_{end}", np.nan)) for end in ("low", "high"))

    def number(self, name: str) -> float:
        """A scalar of /summary, the perplexity, or a root attribute; NaN where the file has none."""
        for values in (self.summary, self.perplexity, self.attributes):
            if name in values:
                return float(values[name])
        return float("nan")


def text(value: object) -> object:
    """An attribute as stored, with strings that every program can print."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def scalars(group: h5py.Group) -> dict[str, float]:
    return {name: item[()] for name, item in group.items() if item.shape == () and item.dtype.kind in "iuf"}


def table(file: h5py.File, name: str) -> np.ndarray | None:
    return file[name][:] if name in file else None


def readable(rows: np.ndarray | None, column: str, dataset: h5py.Dataset | None) -> np.ndarray | None:
    """The table with the names of an enum or string column in place of its numbers or bytes."""
    if rows is None or column not in rows.dtype.names:
        return rows
    kind = dataset.dtype[column]
    names = {value: name for name, value in (h5py.check_enum_dtype(kind) or {}).items()}
    words = [names.get(value) or str(text(value)) for value in rows[column].tolist()]
    types = [(name, rows.dtype[name] if name != column else "U64") for name in rows.dtype.names]
    copy = np.empty(rows.shape, dtype=types)
    for name in rows.dtype.names:
        copy[name] = words if name == column else rows[name]
    return copy


def site_maxima(file: h5py.File, features: np.ndarray, layers: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Result.maxima, .lowest and .highest, of the tables of the sites."""
    hidden = int(file.attrs["hidden_size"])
    column = np.full(hidden, -1)
    column[features] = np.arange(len(features))
    maxima = np.full((2 * layers, len(features)), -np.inf)
    lowest, highest = np.full(len(features), np.inf), np.full(len(features), -np.inf)
    for row in range(2 * layers):
        rows = file[f"layers/{row // 2:03d}/{SITES[row % 2]}"][:]
        at = column[rows["feature"]]
        if (at < 0).any():
            raise KeyError(f"feature {rows['feature'][at < 0][0]} of a site in /features")
        np.maximum.at(maxima[row], at, rows["max_abs"])
        np.minimum.at(lowest, at, rows["min"])
        np.maximum.at(highest, at, rows["max"])
    maxima[maxima == -np.inf] = np.nan
    return maxima, lowest, highest


def read_open(file: h5py.File, path: pathlib.Path) -> Result:
    attributes = {name: text(value) for name, value in file.attrs.items()}
    features = file["features"][:]
    config = str(attributes.pop("config", ""))
    maxima, lowest, highest = site_maxima(file, features["feature"], int(attributes["n_layers"]))
    return Result(
        path=path,
        stem=path.stem,
        label=str(attributes["model_name"]).rsplit("/", 1)[-1],
        attributes=attributes,
        config=config,
        features=features,
        sites=file["sites"][:],
        summary=scalars(file["summary"]),
        perplexity=scalars(file["perplexity"]) if "perplexity" in file else {},
        maxima=maxima,
        lowest=lowest,
        highest=highest,
        expert_tokens=table(file, "routing/expert_tokens"),
        experts=table(file, "experts"),
        ablation=readable(table(file, "ablation"), "variant", file.get("ablation")),
        ablation_features=readable(table(file, "ablation_features"), "variant", file.get("ablation_features")),
        growth=table(file, "growth"),
    )


def read_result(path: pathlib.Path) -> Result:
    if not path.is_file():
        raise BadInput(f"no such file ({path}): give result files of moe-outliers run")
    try:
        with h5py.File(path) as file:
            if text(file.attrs.get("format")) != "moe-outliers":
                raise BadInput(f"not a result of moe-outliers ({path}): give result files of moe-outliers run")
            if file.attrs.get("complete") != 1:
                raise BadInput(f"result is not complete ({path}): run its config again")
            return read_open(file, path)
    except (OSError, KeyError, ValueError, IndexError, TypeError) as error:
        reason = " ".join(str(error.args[0] if error.args else error).split())
        raise BadInput(f"cannot read the result ({path}): {reason}: run its config again") from error


def distinct(names: list[str], others: list[str]) -> list[str]:
    """The names, with the other name behind those that occur several times."""
    return [f"{name} ({other})" if names.count(name) > 1 else name for name, other in zip(names, others)]


def numbered(names: list[str]) -> list[str]:
    """The names, with -2, -3, ... behind those that occurred before."""
    found: list[str] = []
    for name in names:
        number, unique = 1, name
        while unique in found:
            number += 1
            unique = f"{name}-{number}"
        found.append(unique)
    return found


def read_results(paths: list[pathlib.Path]) -> list[Result]:
    results = [read_result(path) for path in paths]
    for result, stem in zip(results, numbered([result.stem for result in results])):
        result.stem = stem
    labels = distinct([result.label for result in results], [result.stem for result in results])
    for result, label in zip(results, labels):
        result.label = label
    return results
