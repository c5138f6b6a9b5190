"""scripts/tokens: the token files of configs."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import re
import sys
from collections.abc import Iterable

import h5py
import numpy as np
import run_config
import tokenizers
from script_messages import BadInput, Failed, Parser, Progress, seconds, tell_error
from tokens_text import FINEWEB, Files, HubDataset

MARGIN = 64  # tokens of text behind the last window: where the text is cut shows in the tokens just before
CHARACTERS_PER_TOKEN = 4.5  # a first guess
RULE = (
    "sequence k holds tokens k * stride to k * stride + length - 1 of one text: the documents in their order, joined "
    "by one space, tokenized as a whole, without special tokens"
)
DETAILS = """The text is that of the dataset's documents in their order, joined by one space, or of --text files. It is
tokenized as a whole with the model's own tokenizer, without special tokens; sequence k is tokens k * stride to
k * stride + length - 1. By default windows are disjoint (stride = length: independent sequences, as the bootstrap
assumes); --overlap 0.5 moves on by half a sequence, as the Python implementation of the study does. The file is
data.tokens of the config, with data.skip + data.sequences windows of data.length tokens; its attributes tell how it was
made, with checksums (docs/data.md).

The tokenizer is tokenizer.json in model.path, or else that of model.name on the hub. A dataset is streamed: only its
beginning is read, and nothing is kept of it. A token file that is as asked for is left as it is.

--text files: *.parquet and *.jsonl (a document per row or line, in the field of --field), anything else is one document
of UTF-8 text; .gz too.

environment: HF_TOKEN, HF_ENDPOINT, HF_HOME as for scripts/fetch

exit status: 0 done; 1 failed on the way, e.g. no network; 2 wrong usage, config or input

examples:
  scripts/tokens configs/06_glm_45_air.cfg
  scripts/tokens configs/0*.cfg --overlap 0.5     (the windows of the Python implementation)
  scripts/tokens my.cfg --text book.txt --sequences 4 --length 512
  scripts/tokens my.cfg --dataset allenai/c4 --subset en --split validation
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="tokens",
        description="Writes the token files of configs.",
        epilog=DETAILS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="configs of runs")
    add = parser.add_argument
    add("--dataset", default=FINEWEB, metavar="REPO", help=f"dataset of the hub (default: {FINEWEB})")
    add("--subset", metavar="NAME", help="its configuration (default: its own default)")
    add("--split", default="train", help="its split (default: train)")
    add("--revision", metavar="REV", help="its branch, tag or commit (default: main)")
    add("--text", action="append", metavar="FILE", help="text of this file instead (may be repeated)")
    add("--field", default="text", metavar="NAME", help="field with the text (default: text)")
    add("--tokenizer", metavar="WHAT", help="tokenizer.json, a folder with one, or owner/name[@REV] on the hub")
    add("--sequences", type=int, metavar="N", help="instead of data.skip + data.sequences")
    add("--length", type=int, metavar="S", help="tokens of a sequence instead of data.length")
    add(
        "--overlap",
        type=float,
        default=0.0,
        metavar="X",
        help="part of a sequence that the next one repeats (default: 0)",
    )
    add("--overwrite", action="store_true", help="replace a token file that is there")
    add("-s", "--set", action="append", default=[], metavar="KEY=VALUE", help="override a config's key")
    add(
        "--patience", type=seconds, default=600, metavar="SECONDS", help="give up after so long without an answer (600)"
    )
    options = parser.parse_args(arguments)
    if not 0 <= options.overlap < 1:
        parser.error(f"--overlap {options.overlap}: give a number from 0 to below 1")
    for name in ("sequences", "length"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: give a number from 1")
    return options


# --- the tokenizer ---


def fetched_revision(folder: pathlib.Path) -> str | None:
    """What scripts/fetch has noted of a model's folder."""
    try:
        return json.loads((folder / "fetched.json").read_text())["revision"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclasses.dataclass
class TokenizerPlace:
    """Where a tokenizer.json is: on this machine, or on the hub."""

    name: str
    local: pathlib.Path | None = None
    revision: str | None = None  # of the hub's repository of that name

    def read_local(self) -> bytes:
        try:
            return self.local.read_bytes()
        except OSError as error:
            raise BadInput(f"cannot read the tokenizer: {error.strerror} ({self.local}): check --tokenizer") from None

    def read_hub(self, hub) -> bytes:
        commit, files = hub.info(self.name, self.revision, patience=min(hub.patience, 20))
        if "tokenizer.json" not in files:
            raise BadInput(
                f"{self.name}@{commit[:12]} has no tokenizer.json ({hub.endpoint}): give one by --tokenizer, e.g. made "
                "by transformers' AutoTokenizer.from_pretrained(...).save_pretrained(DIR)"
            )
        self.revision = commit
        return hub.small(self.name, commit, files["tokenizer.json"])

    def attributes(self) -> dict[str, str]:
        """What is certain: a branch's name is no revision."""
        pinned = re.fullmatch(r"[0-9a-f]{40}", self.revision or "")
        return {"tokenizer": self.name} | ({"tokenizer_revision": self.revision} if pinned else {})


def find_tokenizer(config: dict, path: str, wanted: str | None) -> TokenizerPlace:
    """By --tokenizer, else in model.path, else on the hub."""
    name, folder = str(config["model"]["name"]), str(config["model"].get("path", ""))
    if wanted:
        place = pathlib.Path(wanted)
        if place.exists():
            return TokenizerPlace(wanted, place / "tokenizer.json" if place.is_dir() else place)
        match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@(.+))?", wanted)
        if not match:
            raise BadInput(f"no such tokenizer ({wanted}): give a file, a folder, or owner/name on the hub")
        return TokenizerPlace(match.group(1), revision=match.group(2))
    address = re.fullmatch(r"hf://([^@]+?)/*(?:@(.+))?", folder)
    if address:
        return TokenizerPlace(address.group(1), revision=address.group(2))
    revision = fetched_revision(pathlib.Path(folder)) if folder else None
    local = pathlib.Path(folder) / "tokenizer.json"
    if folder and local.is_file():
        return TokenizerPlace(name or folder, local, revision)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise BadInput(
            f"no tokenizer.json in model.path, and model.name is not on the hub ({path}): give one by --tokenizer"
        )
    return TokenizerPlace(name, revision=revision)


def make_tokenizer(content: bytes, name: str) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # what the library raises is a plain Exception
        raise BadInput(f"no valid tokenizer.json: {str(error).splitlines()[0]} ({name}): fetch it again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


# --- the windows ---


def stride_of(length: int, overlap: float) -> int:
    return max(1, length - round(length * overlap))


def cut(
    tokenizer: tokenizers.Tokenizer,
    documents: Iterable[tuple[bool, str]],
    count: int,
    length: int,
    stride: int,
    progress: Progress,
) -> tuple[np.ndarray, dict[str, object]]:
    """[count, length] windows of the documents' tokens, and what is known of their text."""
    needed = (count - 1) * stride + length
    documents = iter(documents)
    pieces, size, starts, ended = [], 0, [], False
    goal = CHARACTERS_PER_TOKEN * (needed + MARGIN)
    while True:
        progress.start("reading text", goal, size)
        while size < goal and not ended:
            begins, piece = next(documents, (None, ""))
            ended = begins is None
            if begins:
                starts.append(size)
                piece = " " + piece if pieces else piece
            pieces.append(piece)
            size += len(piece)
            progress.add(len(piece))
            progress.show()
        encoding = tokenizer.encode("".join(pieces), add_special_tokens=False)
        found = len(encoding.ids)
        if found >= needed + MARGIN or ended:
            break
        goal = 1.05 * size * (needed + MARGIN) / max(found, size / 100)
    with contextlib.suppress(AttributeError):
        documents.close()
    if found < needed:
        raise BadInput(
            f"the text is too short: {found} tokens, {needed} are needed for {count} sequences of {length}: give more "
            "text, or ask for less"
        )
    last = encoding.offsets[needed - 1][1]  # in characters
    text = "".join(pieces)[:last]
    ids = np.asarray(encoding.ids[:needed], np.int32)
    windows = np.lib.stride_tricks.sliding_window_view(ids, length)[::stride].copy()
    facts = {"documents": sum(start < last for start in starts), "characters": last}
    return windows, facts | {"text_sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()}


def checksum(windows: np.ndarray) -> str:
    """sha256 of the numbers in their order, each as four bytes, least significant first."""
    return hashlib.sha256(np.ascontiguousarray(windows, "<i4").tobytes()).hexdigest()


# --- the file ---


def existing(path: pathlib.Path) -> tuple[np.ndarray, dict[str, object]] | None:
    """Windows and attributes of a token file; None: there is no file."""
    if not path.exists():
        return None
    try:
        with h5py.File(path) as file:
            return file["tokens"][:], dict(file["tokens"].attrs)
    except (OSError, KeyError, AttributeError):
        raise BadInput(
            f"there is another file, which is no token file ({path}): remove it or set data.tokens"
        ) from None


def difference(windows: np.ndarray, attributes: dict, wanted: dict, count: int, length: int) -> str | None:
    """What of a token file is not as wanted."""
    if windows.ndim != 2 or len(windows) < count or windows.shape[1] != length:
        return f"has the shape {list(windows.shape)}, not [{count}, {length}]"
    for name, value in wanted.items():
        if name not in attributes:
            return f"does not tell its {name}"
        if attributes[name] != value:
            return f"has {name} {attributes[name]}, not {value}"
    if attributes.get("tokens_sha256") != checksum(windows):
        return "is damaged"
    return None


def temporary_of(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def check_writable(path: pathlib.Path) -> None:
    """Before the text is read, which takes a while. By trying: permissions do not tell it on every file system."""
    if path.is_dir():
        raise BadInput(f"data.tokens is a folder ({path}): name a file")
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary_of(path).touch()
        temporary_of(path).unlink()
    except OSError as error:
        raise BadInput(f"cannot write the token file: {error.strerror} ({path}): set data.tokens to another") from None
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def write(path: pathlib.Path, windows: np.ndarray, attributes: dict[str, object]) -> None:
    temporary = temporary_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(temporary, "w") as file:
            dataset = file.create_dataset("tokens", data=windows, dtype="<i4")
            for name, value in attributes.items():
                dataset.attrs[name] = value
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise Failed(
            f"cannot write the token file: {error.strerror or error} ({path}): check folder and space"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def make(config_path: str, options: argparse.Namespace, progress: Progress) -> None:
    config = run_config.read(config_path, options.set)
    run_config.check(config_path, options.set)
    path = pathlib.Path(run_config.text_of(config, "data", "tokens", config_path))
    if str(path).startswith("synthetic:"):
        raise BadInput(f"data.tokens is {path} ({config_path}): random tokens need no file; set data.tokens to a path")
    count = options.sequences or sum(
        run_config.count_of(config, "data", key, config_path, least) for key, least in (("sequences", 1), ("skip", 0))
    )
    length = options.length or run_config.count_of(config, "data", "length", config_path, 1)
    stride = stride_of(length, options.overlap)

    place = find_tokenizer(config, config_path, options.tokenizer)
    content = place.read_local() if place.local else None
    hub = None
    if not (options.text and content):
        import fetch_hub

        hub = fetch_hub.Hub(progress, options.patience)
    if options.text:
        source = Files(options.text, options.field)
    else:
        source = HubDataset(hub, options.dataset, options.subset, options.split, options.revision, options.field)
        if options.revision:
            source.resolve()
    # What is not known before the hub is asked is not compared: a file that is there stays without a network.
    wanted = place.attributes() | source.attributes | {"overlap": options.overlap, "stride": stride}
    if content:
        wanted = {"tokenizer_sha256": hashlib.sha256(content).hexdigest()} | wanted
    there = None if options.overwrite else existing(path)
    if not there:
        check_writable(path)
    refusal = f"({path}): replace it by --overwrite, or set data.tokens to another"
    if there:
        other = difference(*there, wanted, count, length)
        if other:
            raise BadInput(f"there is another token file, which {other} {refusal}")
        if not options.text:
            progress.note(f"{path}: all there, {len(there[0])} sequences of {length} tokens")
            print(path)
            return

    content = content or place.read_hub(hub)
    tokenizer = make_tokenizer(content, place.name)
    if not options.text:
        source.resolve()
    windows, facts = cut(tokenizer, source.documents(), count, length, stride, progress)
    if not there:
        made = place.attributes() | {"tokenizer_sha256": hashlib.sha256(content).hexdigest()} | source.attributes
        made |= {
            "window": window_text(stride, length),
            "window_rule": RULE,
            "overlap": options.overlap,
            "stride": stride,
        }
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        made |= {"special_tokens": "none"} | facts | {"tokens_sha256": checksum(windows), "created": now}
        write(path, windows, made)
    elif checksum(windows) != checksum(there[0][:count]):
        raise BadInput(f"there is another token file, of another text {refusal}")
    text = f"{facts['documents']} documents" if facts["documents"] != 1 else "one document"
    progress.note(f"{path}: {count} sequences of {length} tokens, {window_text(stride, length)}, from {text}")
    print(path)


def window_text(stride: int, length: int) -> str:
    return "disjoint" if stride == length else "overlapping"


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    progress = Progress("tokens")
    status = 0
    try:
        for config in options.configs:
            make(config, options, progress)
    except (BadInput, Failed) as error:
        status = tell_error(progress, error)
    except OSError as error:
        status = tell_error(progress, Failed(f"{error.strerror or error} ({error.filename}): check it"))
    except KeyboardInterrupt:
        progress.clear()
        print("tokens: stopped: the same command starts over", file=sys.stderr)
        status = 130
    sys.exit(status)
