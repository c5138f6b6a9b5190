"""Sharded checkpoints whose index or shards do not fit together are refused: one error line, exit status 2."""

# cores: 1

import json
import os

import pytest

import bad_input

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"
CASES, case = bad_input.cases()


def edit_index(given, edit):
    path = given.model / INDEX
    index = json.loads(path.read_text())
    edit(index["weight_map"])
    path.write_text(json.dumps(index))


@case(SECOND)
def shard_missing(given):
    (given.model / SECOND).unlink()


@case(SECOND)
def shard_empty(given):
    os.truncate(given.model / SECOND, 0)


@case(SECOND)
def shard_truncated(given):
    os.truncate(given.model / SECOND, 2000)


@case("model.extra.weight")
def index_names_an_absent_tensor(given):
    edit_index(given, lambda index: index.update({"model.extra.weight": FIRST}))


@case("model.norm.weight")
def index_misses_a_tensor(given):
    edit_index(given, lambda index: index.pop("model.norm.weight"))


@case("model.norm.weight")
def index_names_another_shard(given):
    def move(index):
        index["model.norm.weight"] = FIRST if index["model.norm.weight"] != FIRST else SECOND

    edit_index(given, move)


@case("nowhere.safetensors")
def index_names_an_absent_shard(given):
    edit_index(given, lambda index: index.update({"model.norm.weight": "nowhere.safetensors"}))


@case("../")
def index_leads_out_of_the_folder(given):
    edit_index(given, lambda index: index.update({"model.norm.weight": "../model/" + FIRST}))


@case("model.norm.weight")
def index_with_a_number(given):
    edit_index(given, lambda index: index.update({"model.norm.weight": 3}))


@case("duplicate tensor")
def same_tensors_in_two_shards(given):
    (given.model / SECOND).write_bytes((given.model / FIRST).read_bytes())


@case(INDEX)
def index_is_no_json(given):
    (given.model / INDEX).write_text("weight_map: yes")


@case("weight_map")
def index_without_a_map(given):
    (given.model / INDEX).write_text("{}")


@case(INDEX)
def index_is_empty(given):
    os.truncate(given.model / INDEX, 0)


@case("weight_map")
def index_of_nothing(given):
    (given.model / INDEX).write_text('{"weight_map": {}}')


@pytest.mark.parametrize("spoil, keyword", CASES)
def test_refused(tmp_path, spoil, keyword):
    bad_input.assert_refused(tmp_path, spoil, keyword, bad_input.SHARDED)
