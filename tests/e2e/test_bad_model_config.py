"""A config.json that makes no sense, or does not fit the checkpoint, is refused: one error line, exit status 2."""

# cores: 1

import json

import pytest

import bad_input
import helpers

LARGE = 2**62
HUGE = 10**30  # more than 64 bits
ABSENT = ...
WINDOWED = bad_input.SHARDED
DENSE, STEPPED, SCALED, TIED = (helpers.REFERENCES / name for name in ("qwen3_a", "qwen3_moe_a", "llama_c", "llama_b"))

# Whole numbers that are needed, and what makes no sense for each of them.
SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size", "num_experts",
         "num_experts_per_tok")  # fmt: skip
NONSENSE = {"zero": 0, "negative": -3, "large": LARGE, "fraction": 2.5, "text": "8", "list": [8], "true": True}

# (key, value, keyword of the error line); the keyword is the key if None.
OTHER = (
    ("num_hidden_layers", HUGE, "config.json"),
    ("num_hidden_layers", ABSENT, None),
    ("num_hidden_layers", None, None),
    ("num_hidden_layers", 4, "model.layers.3."),
    ("num_hidden_layers", 4096, "model.layers.3."),
    ("hidden_size", ABSENT, None),
    ("hidden_size", None, None),
    ("hidden_size", 30, "model.embed_tokens.weight"),
    ("hidden_size", 45, "head_dim"),
    ("hidden_size", 42, "num_attention_heads"),
    ("hidden_size", 10 * 2**16, "model.embed_tokens.weight"),
    ("num_attention_heads", ABSENT, None),
    ("num_attention_heads", 3, "num_key_value_heads"),
    ("num_attention_heads", 10, "self_attn"),
    ("num_key_value_heads", 0, None),
    ("num_key_value_heads", -5, None),
    ("num_key_value_heads", 3, None),
    ("num_key_value_heads", 10, None),
    ("num_key_value_heads", 1, "k_proj"),
    ("num_key_value_heads", "5", None),
    ("head_dim", 0, None),
    ("head_dim", -8, None),
    ("head_dim", LARGE, None),
    ("head_dim", 7, "head_dim"),
    ("head_dim", 16, "self_attn"),
    ("intermediate_size", ABSENT, None),
    ("intermediate_size", 22, "model.layers.0.mlp.experts"),
    ("vocab_size", ABSENT, None),
    ("vocab_size", 96, "model.embed_tokens.weight"),
    ("vocab_size", 2**24, "model.embed_tokens.weight"),
    ("num_experts", ABSENT, None),
    ("num_experts", 7, "model.layers.0.mlp.gate.weight"),
    ("num_experts", 9, "model.layers.0.mlp"),
    ("num_experts", 16384, "model.layers.0.mlp"),
    ("num_experts_per_tok", ABSENT, None),
    ("num_experts_per_tok", 9, None),
    ("rms_norm_eps", -1e-5, None),
    ("rms_norm_eps", 1e300, None),
    ("rms_norm_eps", "tiny", None),
    ("rope_theta", 0, None),
    ("rope_theta", -1e4, None),
    ("rope_theta", 1, None),
    ("rope_theta", "10000", None),
    ("rope_theta", 1e300, None),
    ("rope_scaling", 7, None),
    ("rope_scaling", {"rope_type": "quantum"}, "quantum"),
    ("rope_scaling", {"rope_type": 3}, "rope_type"),
    ("rope_scaling", {"type": "linear"}, "factor"),
    ("rope_scaling", {"type": "linear", "factor": 0}, "factor"),
    ("rope_scaling", {"type": "linear", "factor": "8"}, "factor"),
    ("rope_parameters", {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, "dynamic"),
    ("rope_parameters", {"rope_type": "default", "rope_theta": -1}, "rope_theta"),
    ("rope_parameters", [], "rope_parameters"),
    ("max_position_embeddings", "long", None),
    ("hidden_act", "gelu", "gelu"),
    ("hidden_act", 1, None),
    ("tie_word_embeddings", "yes", None),
    ("norm_topk_prob", 1, None),
    ("attention_bias", "no", None),
    ("attention_bias", True, "q_proj.bias"),
    ("clip_qkv", -1, None),
    ("clip_qkv", "8", None),
    ("torch_dtype", 16, None),
    ("model_type", "gpt2", "gpt2"),
    ("model_type", "", "model_type"),
    ("model_type", 7, None),
    ("model_type", ABSENT, None),
    ("model_type", None, None),
    ("model_type", "olmoe\u0000", "config.json"),
    ("model_type", "x" * 100_000, "model_type"),
    ("model_type", "llama", "model.layers.0.mlp"),
    ("model_type", "mixtral", "block_sparse_moe"),
    ("quantization_config", {"quant_method": "fp8"}, "fp8"),
    ("quantization_config", {"quant_method": 8}, "quant_method"),
    ("quantization_config", {}, "quantization"),
    ("quantization_config", "int4", "quantization_config"),
)

# The same for keys that other architectures have: (reference, key, value, keyword).
FOREIGN = (
    (WINDOWED, "sliding_window", 0, None),
    (WINDOWED, "sliding_window", -1, None),
    (WINDOWED, "sliding_window", 1.5, None),
    (WINDOWED, "num_local_experts", 0, None),
    (WINDOWED, "num_local_experts", 6, "block_sparse_moe"),
    (WINDOWED, "num_experts_per_tok", 6, None),
    (DENSE, "layer_types", ["full_attention"], None),
    (DENSE, "layer_types", ["full_attention", "full_attention", "slow_attention"], "slow_attention"),
    (DENSE, "layer_types", ["full_attention", "full_attention", "linear_attention"], "linear_attention"),
    (DENSE, "layer_types", "full_attention", None),
    (DENSE, "layer_types", [1, 2, 3], None),
    (DENSE, "use_sliding_window", 1, None),
    (DENSE, "head_dim", 9, "head_dim"),
    (DENSE, "head_dim", ABSENT, "self_attn"),
    (TIED, "tie_word_embeddings", False, "lm_head.weight"),
    (STEPPED, "decoder_sparse_step", 0, None),
    (STEPPED, "decoder_sparse_step", 2, "model.layers.0.mlp"),
    (STEPPED, "mlp_only_layers", 1, None),
    (STEPPED, "mlp_only_layers", ["1"], None),
    (STEPPED, "mlp_only_layers", [], "model.layers.1.mlp"),
    (STEPPED, "moe_intermediate_size", 0, None),
    (STEPPED, "moe_intermediate_size", 12, "model.layers.0.mlp.experts"),
    (STEPPED, "intermediate_size", 36, "model.layers.1.mlp"),
    (SCALED, "rope_parameters", {"rope_type": "llama3"}, "factor"),
    (SCALED, "rope_parameters",
     {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}, "high_freq_factor"),
    (SCALED, "mlp_bias", True, "gate_proj.bias"),
    (SCALED, "mlp_bias", 2, None),
)  # fmt: skip

TEXTS = {
    "empty": b"",
    "blank": b"  \n",
    "null": b"null",
    "list": b"[]",
    "text": b'"olmoe"',
    "cut": b'{"model_type": "olmoe", "hidden_size": 4',
    "two": b"{} {}",
    "not_a_number": b'{"model_type": "olmoe", "rms_norm_eps": NaN}',
    "infinite": b'{"model_type": "olmoe", "rms_norm_eps": 1e999}',
    "twice": b'{"model_type": "olmoe", "model_type": "llama"}',
    "deep": b"[" * 200_000,
    "utf16": '{"model_type": "olmoe"}'.encode("utf-16"),
    "zeros": bytes(1000),
    "noise": bytes(range(256)) * 40,
    "large": b'{"model_type": "' + b"x" * (17 << 20) + b'"}',
}


def refuse_key(folder, source, key, value, keyword):
    def spoil(given):
        given.edit_config_json(**{key: value})

    bad_input.assert_refused(folder, spoil, keyword or key, source)


@pytest.mark.parametrize("kind", NONSENSE)
@pytest.mark.parametrize("key", SIZES)
def test_nonsense_size(tmp_path, key, kind):
    refuse_key(tmp_path, bad_input.MODEL, key, NONSENSE[kind], key)


def name_of(value):
    return "absent" if value is ABSENT else json.dumps(value)[:40]


@pytest.mark.parametrize("key, value, keyword", [pytest.param(*c, id=f"{c[0]}={name_of(c[1])}") for c in OTHER])
def test_bad_key(tmp_path, key, value, keyword):
    refuse_key(tmp_path, bad_input.MODEL, key, value, keyword)


@pytest.mark.parametrize(
    "source, key, value, keyword", [pytest.param(*c, id=f"{c[0].name}-{c[1]}={name_of(c[2])}") for c in FOREIGN]
)
def test_bad_key_of_another_architecture(tmp_path, source, key, value, keyword):
    refuse_key(tmp_path, source, key, value, keyword)


@pytest.mark.parametrize("kind", TEXTS)
def test_bad_text(tmp_path, kind):
    bad_input.assert_refused(
        tmp_path, lambda given: (given.model / "config.json").write_bytes(TEXTS[kind]), "config.json"
    )


def test_no_config_json(tmp_path):
    bad_input.assert_refused(tmp_path, lambda given: (given.model / "config.json").unlink(), "config.json")


def test_config_json_is_a_folder(tmp_path):
    def spoil(given):
        (given.model / "config.json").unlink()
        (given.model / "config.json").mkdir()

    bad_input.assert_refused(tmp_path, spoil, "config.json")
