"""Runs that are killed or stopped on their way, and what they leave behind."""

import json
import re
import struct

import helpers

LAYERS, MICRO_BATCHES = 8, 6
STAGES = LAYERS + 2
TASKS = STAGES * MICRO_BATCHES
OF_THE_RUN = {"n_ranks", "started", "finished", "config"}
# As in src/pipeline/journal_format.h.
FILE_HEADER = struct.Struct("<QQQ")
RECORD_HEADER = struct.Struct("<QiiQQQ")
RECORD_MAGIC = 0x44524F4D4F455231


def write_shape(path):
    shape = {
        "model_type": "olmoe",
        "hidden_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "vocab_size": 256,
        "intermediate_size": 96,
        "num_experts": 8,
        "num_experts_per_tok": 2,
    }
    path.write_text(json.dumps(shape))
    return path


def config(folder, **changes):
    """Path of the config of a run of some tenths of a second, with its result at folder/r.h5."""
    sections = {
        "model": {"path": "synthetic:3", "config": write_shape(folder / "shape.json")},
        "data": {"tokens": "synthetic:1", "sequences": MICRO_BATCHES, "length": 256},
        "analysis": {"threshold": 2.5},
        "engine": {"device": "cpu", "micro_batch": 1, "threads": 1, "checkpoint_seconds": 0.0},
        "output": {"path": folder / "r.h5"},
    }
    for section, keys in changes.items():
        sections[section] = sections[section] | keys
    return helpers.write_config(folder / "r.cfg", sections)


def settings(**changes):
    """Arguments for {section: {key: value}}."""
    texts = (f"{section}.{key}={value}" for section, keys in changes.items() for key, value in keys.items())
    return [part for text in texts for part in ("-s", text)]


def left_by(folder):
    return folder / "r.h5.resume"


def records(folder):
    """[(stage, micro-batch)] of all whole records that a run has left."""
    try:
        journals = [path.read_bytes() for path in sorted(left_by(folder).glob("journal-*.log"))]
    except FileNotFoundError:  # the run has come to its end
        return []
    found = []
    for data in journals:
        offset = FILE_HEADER.size
        while offset + RECORD_HEADER.size <= len(data):
            magic, stage, micro, size, _, _ = RECORD_HEADER.unpack_from(data, offset)
            assert magic == RECORD_MAGIC
            offset += RECORD_HEADER.size + size
            if offset <= len(data):
                found.append((stage, micro))
    return found


def kept_tasks(lines):
    """Tasks that a run did not compute again, by its note."""
    for line in lines:
        if "continuing from" in line:
            kept, tasks = map(int, re.search(r"\((\d+) of (\d+) tasks\)$", line).groups())
            assert tasks == TASKS
            return kept
    return 0


def contents(path):
    return helpers.contents(path, but=OF_THE_RUN)


def assert_finished(folder, expected):
    """The result is there, and nothing else."""
    helpers.assert_same(contents(folder / "r.h5"), expected)
    assert not left_by(folder).exists() and not (folder / "r.h5.partial").exists()
