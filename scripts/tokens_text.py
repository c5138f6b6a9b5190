"""Text for token files: from local files, or streamed from a dataset of the hub. It comes in pieces, whose
concatenation is the text: documents joined by one space."""

from __future__ import annotations

import gzip
import json
import logging
import os
import pathlib
import tempfile
from collections.abc import Iterator

from script_messages import BadInput

FINEWEB = "HuggingFaceFW/fineweb-edu"


def open_text(path: pathlib.Path):
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8", newline="")


def need_text(item: object, field: str, where: str) -> str:
    if isinstance(item, dict) and isinstance(item.get(field), str):
        return item[field]
    fields = f"its fields are {', '.join(map(str, item))}" if isinstance(item, dict) else "it has no fields"
    raise BadInput(f'no text in the field "{field}" ({where}): {fields}: name another one by --field')


def lines_of(path: pathlib.Path) -> Iterator[tuple[bool, str]]:
    """(whether a document begins, text): the whole file is one document, which comes in lines."""
    begins = True
    with open_text(path) as file:
        for line in file:
            yield begins, line
            begins = False


def jsonl_of(path: pathlib.Path, field: str) -> Iterator[tuple[bool, str]]:
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    item = json.loads(line)
                except ValueError:
                    raise BadInput(f"no JSON ({path}, line {number}): give a file with one object per line") from None
                yield True, need_text(item, field, f"{path}, line {number}")


def parquet_of(path: pathlib.Path, field: str) -> Iterator[tuple[bool, str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if field not in file.schema_arrow.names:
                need_text(dict.fromkeys(file.schema_arrow.names), field, str(path))
            for batch in file.iter_batches(batch_size=100, columns=[field]):
                for text in batch.column(0).to_pylist():
                    yield True, need_text({field: text}, field, str(path))
    except pyarrow.ArrowException as error:
        raise BadInput(f"no valid Parquet: {str(error).splitlines()[0]} ({path}): check the file") from None


class Files:
    """Local files: *.parquet, *.jsonl, *.ndjson (a document per row or line); anything else is one document of text."""

    def __init__(self, paths: list[str], field: str):
        self.paths, self.field = [pathlib.Path(path) for path in paths], field
        for path in self.paths:
            if not path.is_file():
                raise BadInput(f"no such file ({path}): check --text")
        self.attributes = {"dataset": ", ".join(path.name for path in self.paths)}

    def documents(self) -> Iterator[tuple[bool, str]]:
        for path in self.paths:
            name = path.name.removesuffix(".gz")
            try:
                if name.endswith(".parquet"):
                    yield from parquet_of(path, self.field)
                elif name.endswith((".jsonl", ".ndjson")):
                    yield from jsonl_of(path, self.field)
                else:
                    yield from lines_of(path)
            except UnicodeDecodeError as error:
                raise BadInput(f"no UTF-8 text ({path}): {error.reason} at byte {error.start}: convert it") from None
            except (OSError, EOFError) as error:
                why = getattr(error, "strerror", None) or error
                raise BadInput(f"cannot be read: {why} ({path}): check the file") from None


class HubDataset:
    """A dataset of the hub, in its order; only what is needed is read, and nothing is kept on the disk."""

    def __init__(self, hub, repo: str, subset: str | None, split: str, revision: str | None, field: str):
        self.hub, self.repo, self.subset, self.split, self.field = hub, repo, subset, split, field
        self.revision = revision
        self.attributes = {"dataset": repo, "dataset_config": subset or "default", "split": split}

    def resolve(self) -> None:
        """Pin the revision, once."""
        if "dataset_revision" in self.attributes:
            return
        info = self.hub.patiently(
            f"the dataset {self.repo}",
            lambda: self.hub.api.dataset_info(self.repo, revision=self.revision, timeout=30),
            min(self.hub.patience, 20),
        )
        self.attributes["dataset_revision"] = info.sha

    def open(self, folder: str):
        """The dataset as an iterable of rows."""
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        import datasets

        logging.getLogger("datasets").setLevel(logging.CRITICAL)
        try:
            return datasets.load_dataset(
                self.repo,
                self.subset,
                split=self.split,
                streaming=True,
                revision=self.attributes["dataset_revision"],
                token=self.hub.token,
                cache_dir=folder,
            )
        except (ValueError, datasets.exceptions.DatasetsError) as error:
            why = str(error).splitlines()[0].rstrip(".")
            raise BadInput(f"{why} ({self.repo}): check --dataset, --subset and --split") from None

    def documents(self) -> Iterator[tuple[bool, str]]:
        what = f"the dataset {self.repo}"
        with tempfile.TemporaryDirectory(prefix="tokens-") as folder:
            stream = self.hub.patiently(what, lambda: self.open(folder))
            rows, number = iter(stream), 0

            def next_row():
                nonlocal rows
                try:
                    return next(rows, None)
                except Exception:
                    rows = iter(stream.skip(number))  # an iterator that has failed is at its end
                    raise

            while True:
                row = self.hub.patiently(what, next_row)
                if row is None:
                    return
                yield True, need_text(row, self.field, f"{self.repo}, row {number}")
                number += 1
