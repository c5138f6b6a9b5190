"""Peak memory of a rank on the CPU stays under engine.device_memory_gb for a checkpoint ten times larger."""

import json
import math
import struct

import pytest

import helpers

MODEL = {
    "model_type": "qwen3_moe",
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1000,
    "intermediate_size": 512,
    "moe_intermediate_size": 1024,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
BOUND_GB, LAYERS = 0.25, 110


def tensors():
    """Names and shapes of the model's tensors, in the order of a checkpoint from the hub."""
    hidden, head, width = MODEL["hidden_size"], MODEL["head_dim"], MODEL["moe_intermediate_size"]
    q, kv = MODEL["num_attention_heads"] * head, MODEL["num_key_value_heads"] * head
    yield "lm_head.weight", (MODEL["vocab_size"], hidden)
    yield "model.embed_tokens.weight", (MODEL["vocab_size"], hidden)
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        yield name + "input_layernorm.weight", (hidden,)
        for expert in range(MODEL["num_experts"]):
            yield f"{name}mlp.experts.{expert}.down_proj.weight", (hidden, width)
            yield f"{name}mlp.experts.{expert}.gate_proj.weight", (width, hidden)
            yield f"{name}mlp.experts.{expert}.up_proj.weight", (width, hidden)
        yield name + "mlp.gate.weight", (MODEL["num_experts"], hidden)
        yield name + "post_attention_layernorm.weight", (hidden,)
        yield name + "self_attn.k_norm.weight", (head,)
        yield name + "self_attn.k_proj.weight", (kv, hidden)
        yield name + "self_attn.o_proj.weight", (hidden, q)
        yield name + "self_attn.q_norm.weight", (head,)
        yield name + "self_attn.q_proj.weight", (q, hidden)
        yield name + "self_attn.v_proj.weight", (kv, hidden)
    yield "model.norm.weight", (hidden,)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """All weights are zero: a file with a hole in place of the data takes no space. The bound is a tenth of
    the file at most. Returns the folder."""
    folder = tmp_path_factory.mktemp("model")
    header, end = {}, 0
    for name, shape in tensors():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    (folder / "config.json").write_text(json.dumps(MODEL | {"num_hidden_layers": LAYERS}))
    assert end > 10e9 * BOUND_GB
    return folder


@pytest.mark.skipif(helpers.SLOW > 1, reason="sanitizers keep memory of their own")
@pytest.mark.parametrize(("ranks", "verify"), ((None, False), (2, True)))
def test_peak_memory(tmp_path, checkpoint, ranks, verify):
    sections = {
        "model": {"path": str(checkpoint)},
        "data": {"tokens": "synthetic:1", "sequences": 2, "length": 8},
        "engine": {"device": "cpu", "device_memory_gb": BOUND_GB, "verify": verify},
        "output": {"path": str(tmp_path / "r.h5")},
    }
    config = helpers.write_config(tmp_path / "run.cfg", sections)
    assert max(helpers.peak_memory(tmp_path, ["run", config], ranks)) < 1e9 * BOUND_GB
