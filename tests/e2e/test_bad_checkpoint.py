"""Damaged, incomplete and ill-fitting checkpoints are refused: one error line, exit status 2, nothing written."""

# cores: 1

import json
import os

import pytest

import bad_input

FILE = "model.safetensors"
ROUTER = "model.layers.1.mlp.gate.weight"
CASES, case = bad_input.cases()


def resize(given, size):
    os.truncate(given.model / FILE, size)


def size_of(given):
    return (given.model / FILE).stat().st_size


def edit_header(given, **changes):
    """Change the entry of the router of layer 1 in the header."""
    file = bad_input.Safetensors(given.model / FILE)
    file.header[ROUTER] |= changes
    file.write()


def replace(given, dtype, shape, bytes_each):
    """Store the router of layer 1 with another dtype or shape, its bytes as many as that needs."""
    file = bad_input.Safetensors(given.model / FILE)
    count = 1
    for size in shape:
        count *= size
    file.replace(ROUTER, dtype, shape, bytes(count * bytes_each))
    file.write()


def raw_header(given, header, length=None):
    bad_input.Safetensors(given.model / FILE).write(header, length)


# --- the file as a whole ---


@case(FILE)
def last_byte_missing(given):
    resize(given, size_of(given) - 1)


@case(FILE)
def half_missing(given):
    resize(given, size_of(given) // 2)


@case("truncated")
def cut_in_header(given):
    resize(given, 1000)


@case("truncated")
def four_bytes(given):
    resize(given, 4)


@case("empty")
def empty_file(given):
    resize(given, 0)


@case("trailing")
def trailing_bytes(given):
    with open(given.model / FILE, "ab") as file:
        file.write(b"\0" * 3)


@case(FILE)
def no_file(given):
    (given.model / FILE).unlink()


@case("model")
def no_folder(given):
    given.sections["model"]["path"] = given.home / "nowhere"


@case("config.json")
def folder_is_a_file(given):
    given.sections["model"]["path"] = given.tokens


@case("regular file")
def file_is_a_folder(given):
    (given.model / FILE).unlink()
    (given.model / FILE).mkdir()


@case("regular file")
def file_is_a_pipe(given):
    (given.model / FILE).unlink()
    os.mkfifo(given.model / FILE)


@case(FILE)
def link_to_nowhere(given):
    (given.model / FILE).unlink()
    (given.model / FILE).symlink_to("../blobs/nowhere")


@case("git lfs pull")
def git_lfs_pointer(given):
    (given.model / FILE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")


@case("*.bin")
def only_pytorch_weights(given):
    (given.model / FILE).rename(given.model / "pytorch_model.bin")


# --- the header ---


@case("header length")
def header_length_absurd(given):
    raw_header(given, None, 2**63)


@case("header length")
def header_length_all_ones(given):
    raw_header(given, None, 2**64 - 1)


@case("truncated")
def header_longer_than_file(given):
    raw_header(given, None, 50_000_000)


@case("header")
def header_length_zero(given):
    raw_header(given, None, 0)


@case("header")
def header_length_one_less(given):
    header = json.dumps(bad_input.Safetensors(given.model / FILE).header).encode()
    raw_header(given, header, len(header) - 1)


@case("header")
def header_is_no_json(given):
    raw_header(given, b"{this is no JSON}")


@case("header")
def header_is_a_list(given):
    raw_header(given, b"[1, 2]")


@case("header")
def header_is_zeros(given):
    raw_header(given, bytes(4096))


@case("header")
def header_is_not_utf8(given):
    raw_header(given, b'{"\xff\xfe": {}}')


@case("header")
def header_is_deep(given):
    raw_header(given, b'{"a":' * 200_000)


@case("duplicate")
def header_with_a_name_twice(given):
    file = bad_input.Safetensors(given.model / FILE)
    header = json.dumps(file.header)
    raw_header(given, (header[:-1] + f', "{ROUTER}": {json.dumps(file.header[ROUTER])}}}').encode())


@case("__metadata__")
def metadata_is_a_number(given):
    file = bad_input.Safetensors(given.model / FILE)
    file.header["__metadata__"] = 7
    file.write()


@case(ROUTER)
def entry_is_a_list(given):
    file = bad_input.Safetensors(given.model / FILE)
    file.header[ROUTER] = [1, 2]
    file.write()


@case("header")
def no_tensors(given):
    raw_header(given, b"")


# --- one tensor ---


@case("overlap")
def overlapping(given):
    file = bad_input.Safetensors(given.model / FILE)
    names = file.names()
    same = [name for name in names if file.header[name]["shape"] == file.header[names[-1]]["shape"]]
    file.header[same[1]]["data_offsets"] = file.header[same[0]]["data_offsets"]
    file.write()


@case("belong to no tensor")
def gap(given):
    file = bad_input.Safetensors(given.model / FILE)
    name = file.names()[-1]
    file.header[name]["data_offsets"] = [offset + 2 for offset in file.header[name]["data_offsets"]]
    file.data += b"\0\0"
    file.write()


@case(ROUTER)
def offsets_beyond_the_end(given):
    begin = size_of(given) * 2
    edit_header(given, data_offsets=[begin, begin + 640])


@case(ROUTER)
def offsets_near_the_largest_integer(given):
    edit_header(given, data_offsets=[2**63 - 641, 2**63 - 1])


@case("header")
def offsets_above_the_largest_integer(given):
    edit_header(given, data_offsets=[2**64, 2**64 + 640])


@case(ROUTER)
def offsets_negative(given):
    edit_header(given, data_offsets=[-640, 0])


@case(ROUTER)
def offsets_swapped(given):
    edit_header(given, data_offsets=[640, 0])


@case(ROUTER)
def offsets_fractional(given):
    edit_header(given, data_offsets=[0.5, 640.5])


@case(ROUTER)
def offsets_missing(given):
    edit_header(given, data_offsets=None)


@case(ROUTER)
def three_offsets(given):
    edit_header(given, data_offsets=[0, 320, 640])


@case("I32")
def dtype_i32(given):
    replace(given, "I32", [8, 40], 4)


@case("F64")
def dtype_f64(given):
    replace(given, "F64", [8, 40], 8)


@case("I16")
def dtype_i16(given):
    replace(given, "I16", [8, 40], 2)


@case("BOOL")
def dtype_bool(given):
    replace(given, "BOOL", [8, 40], 1)


@case("U8")
def dtype_u8(given):
    replace(given, "U8", [8, 40], 1)


@case("F7")
def dtype_unknown(given):
    edit_header(given, dtype="F7")


@case(ROUTER)
def dtype_a_number(given):
    edit_header(given, dtype=16)


@case(ROUTER)
def dtype_does_not_fit_the_bytes(given):
    edit_header(given, dtype="F32")


@case(ROUTER)
def tensor_missing(given):
    file = bad_input.Safetensors(given.model / FILE)
    file.replace(ROUTER, None, None, None)
    file.write()


@case("[40, 8]")
def shape_transposed(given):
    replace(given, "BF16", [40, 8], 2)


@case("[8, 40, 1]")
def shape_with_a_dimension_more(given):
    replace(given, "BF16", [8, 40, 1], 2)


@case("[320]")
def shape_flat(given):
    replace(given, "BF16", [320], 2)


@case("[7, 40]")
def shape_with_an_expert_less(given):
    replace(given, "BF16", [7, 40], 2)


@case("[0, 40]")
def shape_empty(given):
    replace(given, "BF16", [0, 40], 2)


@case("[]")
def shape_scalar(given):
    replace(given, "BF16", [], 2)


@case(ROUTER)
def shape_negative(given):
    edit_header(given, shape=[-8, -40])


@case(ROUTER)
def shape_overflows(given):
    edit_header(given, shape=[2**40, 2**40])


@case(ROUTER)
def shape_wraps_to_the_right_size(given):
    edit_header(given, shape=[2**32, 2**32, 8, 40])


@case(ROUTER)
def shape_of_many_dimensions(given):
    edit_header(given, shape=[1] * 60 + [8, 40])


@case(ROUTER)
def shape_of_text(given):
    edit_header(given, shape="8x40")


@pytest.mark.parametrize("spoil, keyword", CASES)
def test_refused(tmp_path, spoil, keyword):
    bad_input.assert_refused(tmp_path, spoil, keyword)
