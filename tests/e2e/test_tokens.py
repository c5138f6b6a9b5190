"""scripts/tokens with the real tokenizers and datasets libraries: against a plain recomputation in Python, for three
kinds of tokenizers, local files and a dataset of a hub on this machine (hub_server.py)."""
# cores: 1

import concurrent.futures
import functools
import gzip
import hashlib
import itertools
import json
import os
import pathlib
import subprocess
import sys

import h5py
import helpers
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tokenizers
from hub_server import Hub
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

DEMO = helpers.ROOT / "demo"
FINEWEB = "HuggingFaceFW/fineweb-edu"
CARD = """---
configs:
- config_name: default
  data_files: [{split: train, path: sample/10BT/*}]
- config_name: sample-10BT
  data_files: [{split: train, path: data/*}]
---
"""


@functools.cache
def documents():
    """The demo's held-out text, and what is hard for tokenizers: line ends, blanks at ends, other scripts, no text."""
    demo = tokenizers.Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    with h5py.File(DEMO / "tokens.h5") as file:
        texts = demo.decode_batch(file["tokens"][:].tolist())
    hard = [
        "  two  blanks\tand a tab \n",
        "",
        "d’où vient-il ? 北京 🙂 \r\n\r\n é = e\u0301",
        "<s> [CLS] </s>",
        "12345 67 8",
    ]
    return [piece for pair in zip(texts, hard * 4) for piece in pair]


def byte_level():
    """As those of Qwen, OLMoE and GPT-OSS."""
    made = tokenizers.Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    made.train_from_iterator(documents(), trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return made


def word_pieces():
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(
        documents(), trainers.WordPieceTrainer(vocab_size=400, special_tokens=names, show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return made


def sentence_pieces():
    """As that of Mixtral: blanks are part of words, unknown characters are bytes, the whole text is one word."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()  # to train on words
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, limit_alphabet=60, special_tokens=names, show_progress=False)
    made.train_from_iterator(documents()[::2], trainer)
    content = json.loads(made.to_str()) | {"pre_tokenizer": None}
    content["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    return tokenizers.Tokenizer.from_str(json.dumps(content))


KINDS = {"byte_level": byte_level, "word_pieces": word_pieces, "sentence_pieces": sentence_pieces}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """{kind: (tokenizer, its file)}; the file also asks for truncation and padding, which are not for texts."""
    folder = tmp_path_factory.mktemp("tokenizers")
    found = {}
    for kind, make in KINDS.items():
        tokenizer = make()
        found[kind] = tokenizer, folder / f"{kind}.json"
        saved = tokenizers.Tokenizer.from_str(tokenizer.to_str())
        saved.enable_truncation(16)
        saved.enable_padding(length=64)
        saved.save(str(found[kind][1]))
    return found


def windows(tokenizer, text, sequences, length, stride):
    """The definition."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return np.array([ids[k * stride : k * stride + length] for k in range(sequences)], np.int32)


class Tokens:
    """Calls of scripts/tokens with a home of their own."""

    def __init__(self, folder, endpoint="http://127.0.0.1:9"):
        self.folder, self.home, self.endpoint = folder, folder / "home", endpoint
        self.numbers = itertools.count()

    def __call__(self, name, *options, status=0, sections=None, **extra):
        """Path of the token file, and stderr, of a call that ends with that status; an error is one line."""
        path = self.folder / name
        model = {"name": "org/model", "path": self.folder / "model"}
        config = {"model": model, "data": {"tokens": path, "sequences": 5, "length": 60}}
        for section, keys in (sections or {}).items():
            config[section] |= keys
        config = helpers.write_config(self.folder / f"{next(self.numbers)}.cfg", config)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        fixed = {"HF_HOME": str(self.home), "HF_ENDPOINT": self.endpoint, "NO_PROXY": "127.0.0.1,127.0.0.2"}
        argv = [sys.executable, "-B", helpers.ROOT / "scripts" / "tokens", config, *options]
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=60, env=kept | fixed | extra, cwd=self.folder
        )
        assert done.returncode == status, done.stderr
        if status:
            assert done.stderr.splitlines()[-1].startswith("tokens: error: ") and not done.stdout, done.stderr
        else:
            assert done.stdout == f"{path}\n"
        assert not list(self.folder.glob(f".{name}*"))  # nothing half made
        return path, done.stderr


@pytest.fixture
def tokens(tmp_path):
    return Tokens(tmp_path)


def read(path):
    with h5py.File(path) as file:
        assert file["tokens"].dtype == np.dtype("<i4")
        return file["tokens"][:], dict(file["tokens"].attrs)


def write_files(folder):
    """{kind of file: (options, its text)} of the documents."""
    texts, joined = documents(), " ".join(documents())
    (folder / "book.txt").write_text(joined, encoding="utf-8", newline="")
    (folder / "more.txt").write_text("And more.\n")
    with gzip.open(folder / "lines.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(
            json.dumps({"id": i, "body": text}, ensure_ascii=i % 2 == 0) + "\n" for i, text in enumerate(texts)
        )
    table = pyarrow.table({"n": list(range(len(texts))), "text": texts})
    pyarrow.parquet.write_table(table, folder / "table.parquet", row_group_size=7)
    return {
        "text": (("--text", folder / "book.txt", "--text", folder / "more.txt"), joined + " And more.\n"),
        "jsonl": (("--text", folder / "lines.jsonl.gz", "--field", "body"), joined),
        "parquet": (("--text", folder / "table.parquet"), joined),
    }


def test_windows_are_those_of_the_definition(tokens, made, tmp_path):
    files = write_files(tmp_path)
    cases = [
        (kind, source, overlap, stride)
        for kind in KINDS
        for source, overlap, stride in (("parquet", None, 60), ("text", "0.5", 30), ("jsonl", "0.25", 45))
        if kind == "byte_level" or source != "jsonl"
    ]

    def check(case):
        kind, source, overlap, stride = case
        tokenizer, file = made[kind]
        options, text = files[source]
        rule = ("--overlap", overlap) if overlap else ()
        path, _ = tokens(f"{kind}-{source}.h5", "--tokenizer", file, *options, *rule)
        ids, attributes = read(path)
        np.testing.assert_array_equal(ids, windows(tokenizer, text, 5, 60, stride))
        assert attributes["window"] == ("overlapping" if overlap else "disjoint")
        assert (attributes["stride"], attributes["overlap"]) == (stride, float(overlap or 0))
        assert attributes["tokenizer_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert attributes["tokens_sha256"] == hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest()
        used = text[: attributes["characters"]]
        assert attributes["text_sha256"] == hashlib.sha256(used.encode()).hexdigest()
        ends = np.cumsum([len(document) + 1 for document in documents()])
        assert source == "text" or attributes["documents"] == 1 + np.sum(ends < len(used))

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(check, cases))


@pytest.fixture
def hub(tmp_path, made):
    """Serves the model's tokenizer, and the documents in two Parquet files before one that is not needed."""
    folder = tmp_path / "hub"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "tokenizer.json").write_bytes(made["byte_level"][1].read_bytes())
    data = folder / "fineweb"
    for path, rows in (
        ("sample/10BT/000_00000.parquet", documents()[:2]),
        ("sample/10BT/001_00000.parquet", documents()[2:]),
        ("sample/10BT/002_00000.parquet", ["unused"] * 10),
        ("data/train-0.parquet", documents()[::-1]),
    ):
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(
            pyarrow.table({"text": rows, "score": [3.5] * len(rows)}), data / path, row_group_size=4
        )
    (data / "README.md").write_text(CARD)
    with Hub() as running:
        running.commits = running.add("org/model", folder / "model"), running.add(FINEWEB, data, kind="dataset")
        yield running


def test_a_dataset_of_the_hub(tokens, hub, made, tmp_path):
    tokens.endpoint = hub.endpoint
    model_commit, data_commit = hub.commits
    text, tokenizer = " ".join(documents()), made["byte_level"][0]
    sample = tmp_path / "hub/fineweb/sample/10BT"
    blobs = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(sample.iterdir())]

    # Streamed, over a bad network: the same tokens; nothing is kept of the data.
    hub.rule("GET hub /api/datasets", times=1, status=429, headers={"Retry-After": "0"})
    hub.rule(f"GET storage .*{blobs[0]}", times=1, cut=100)
    hub.rule(f"GET storage .*{blobs[1]}", times=1, status=403)  # its library gives up here
    path, _ = tokens("data/sample.h5")
    ids, attributes = read(path)
    np.testing.assert_array_equal(ids, windows(tokenizer, text, 5, 60, 60))
    facts = {"dataset": FINEWEB, "dataset_config": "default", "split": "train", "dataset_revision": data_commit}
    facts |= {"tokenizer": "org/model", "tokenizer_revision": model_commit, "special_tokens": "none"}
    assert {name: attributes[name] for name in facts} == facts
    assert [bool(hub.requests(f"GET storage .*{blob}")) for blob in blobs] == [True, True, False]
    assert sum(file.stat().st_size for file in tokens.home.rglob("*") if file.is_file()) < 20_000

    # Once more: it is left as it is, without a network. Other windows are refused.
    hub.forget()
    before = path.stat()
    assert "all there" in tokens("data/sample.h5")[1] and not hub.log
    for options in (("--overlap", "0.5"), ("--subset", "sample-10BT", "--sequences", "6")):
        assert "there is another token file, which has" in tokens("data/sample.h5", *options, status=2)[1]
    assert path.stat() == before

    reverse, _ = tokens("data/sample.h5", "--subset", "sample-10BT", "--revision", data_commit, "--overwrite")
    np.testing.assert_array_equal(read(reverse)[0], windows(tokenizer, " ".join(documents()[::-1]), 5, 60, 60))

    cases = [
        (("--subset", "none"), "BuilderConfig 'none' not found. Available: ['default', 'sample-10BT']"),
        (("--split", "test"), "Bad split: test. Available splits: ['train']"),
        (("--dataset", "org/none"), "the hub does not know the dataset org/none"),
        (("--field", "body"), 'no text in the field "body"'),
    ]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        errors = pool.map(lambda i: tokens(f"other-{i}.h5", *cases[i][0], status=2)[1], range(len(cases)))
        for (_, wanted), error in zip(cases, errors):
            assert wanted in error, error


def test_what_is_wrong_is_told(tokens, made, tmp_path):
    files = write_files(tmp_path)
    use = ("--tokenizer", made["word_pieces"][1])
    path, _ = tokens("a.h5", *use, *files["parquet"][0], "--sequences", "3")
    ids, attributes = read(path)
    assert ids.shape == (3, 60) and attributes["dataset"] == "table.parquet"
    with h5py.File(path, "r+") as file:
        file["tokens"][0, 0] += 1
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text"\n')
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "notes.h5").write_text("no HDF5")
    cases = [
        ("a.h5", (*use, *files["parquet"][0], "--sequences", "3"), "which is damaged"),
        ("notes.h5", (*use, *files["parquet"][0]), "which is no token file"),
        ("b.h5", (*use, "--text", tmp_path / "more.txt"), "the text is too short: 3 tokens, 300 are needed"),
        ("c.h5", (*use, "--text", tmp_path / "bad.jsonl"), "bad.jsonl, line 2"),
        ("d.h5", (*use, "--text", tmp_path / "latin.txt"), "no UTF-8 text"),
        ("e.h5", (*use, "--text", tmp_path / "table.parquet", "--field", "n"), 'no text in the field "n"'),
        ("/proc/b.h5", (*use, "--text", tmp_path / "bad.jsonl"), "cannot write the token file: "),  # before it is read
        ("f.h5", ("--tokenizer", tmp_path / "bad.json", *files["text"][0]), "no valid tokenizer.json"),
    ]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        errors = pool.map(lambda case: tokens(case[0], *case[1], status=2)[1], cases)
        for (_, _, wanted), error in zip(cases, errors):
            assert wanted in error, error
    error = tokens("b.h5", *use, "--patience", "1", status=1)[1]  # FineWeb-Edu, where there is no network
    assert f"the hub cannot be reached for the dataset {FINEWEB}" in error


def test_a_run_takes_the_file(tokens, tmp_path):
    """Sequences 2 and 3 of the file, with the demo's model and its own tokenizer."""
    text = write_files(tmp_path)["parquet"]
    path = tmp_path / "run.h5"
    sections = {"model": {"name": "demo", "path": DEMO}, "data": {"sequences": 2, "length": 24, "skip": 1}}
    file, _ = tokens("tokens.h5", *text[0], sections=sections)
    assert read(file)[0].shape == (3, 24)
    run = {"data": sections["data"] | {"tokens": file}, "analysis": {"bootstrap": 10}}
    config = helpers.write_config(tmp_path / "demo.cfg", helpers.run_sections(DEMO, file, path, **run))
    helpers.run(["run", config], env=helpers.quick())
    with h5py.File(path) as result:
        np.testing.assert_array_equal(result["tokens"][:], read(file)[0][1:])
        assert pathlib.Path(file).name in result.attrs["config"]
