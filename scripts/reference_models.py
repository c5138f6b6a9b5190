"""The reference checkpoints of make_references.py: what they are (REFERENCES), in the hub's older config key style."""

import dataclasses


@dataclasses.dataclass
class Reference:
    name: str
    config: dict  # in the hub's older key style
    seed: int
    sequences: int = 3
    length: int = 37
    dtype: str = "bfloat16"  # of the stored tensors
    shards: int = 1
    style: str = "old"  # of config.json's keys; "new": as transformers 5 writes them
    head_in_file: bool = False  # tied embeddings, yet the file holds lm_head.weight (a copy)
    twins: tuple = ()  # (a, b): expert b is a copy of expert a, router row included: ties in every token's scores
    mtp: bool = False  # add a next-token-prediction layer that the model doesn't use
    mxfp4: bool = False  # experts as MXFP4 blocks and scales


def base(model_type, architecture, **keys):
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": None,
    } | keys


def olmoe(**keys):
    return base("olmoe", "OlmoeForCausalLM", attention_bias=False, clip_qkv=None, norm_topk_prob=False) | keys


def mixtral(**keys):
    return base("mixtral", "MixtralForCausalLM", rope_theta=1e6, sliding_window=None) | keys


def qwen3_moe(**keys):
    return (
        base(
            "qwen3_moe",
            "Qwen3MoeForCausalLM",
            attention_bias=False,
            decoder_sparse_step=1,
            mlp_only_layers=[],
            norm_topk_prob=True,
            rms_norm_eps=1e-6,
            rope_theta=1e6,
            sliding_window=None,
            use_sliding_window=False,
        )
        | keys
    )


def qwen3(**keys):
    return (
        base(
            "qwen3",
            "Qwen3ForCausalLM",
            attention_bias=False,
            rms_norm_eps=1e-6,
            rope_theta=1e6,
            sliding_window=None,
            use_sliding_window=False,
        )
        | keys
    )


def llama(**keys):
    return base("llama", "LlamaForCausalLM", attention_bias=False, mlp_bias=False) | keys


def qwen3_next(**keys):
    return (
        base(
            "qwen3_next",
            "Qwen3NextForCausalLM",
            decoder_sparse_step=1,
            mlp_only_layers=[],
            norm_topk_prob=True,
            full_attention_interval=4,
            linear_conv_kernel_dim=4,
            partial_rotary_factor=0.25,
            rms_norm_eps=1e-6,
            rope_theta=1e7,
            use_sliding_window=False,
        )
        | keys
    )


def glm4_moe(**keys):
    return (
        base(
            "glm4_moe",
            "Glm4MoeForCausalLM",
            attention_bias=True,
            partial_rotary_factor=0.5,
            norm_topk_prob=True,
            n_group=1,
            topk_group=1,
            n_shared_experts=1,
            routed_scaling_factor=1.0,
            first_k_dense_replace=1,
            num_nextn_predict_layers=1,
            use_qk_norm=False,
            rope_theta=1e6,
        )
        | keys
    )


def gpt_oss(**keys):
    yarn = {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    }
    return (
        base(
            "gpt_oss",
            "GptOssForCausalLM",
            attention_bias=True,
            rope_theta=150000,
            rope_scaling=yarn,
            swiglu_limit=7.0,
            max_position_embeddings=131072,
        )
        | keys
    )


def shape(hidden, layers, heads, kv, vocab, **keys):
    return (
        dict(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv,
            vocab_size=vocab,
        )
        | keys
    )


def moe(experts, k, ffn, key="num_experts"):
    return {key: experts, "num_experts_per_tok": k, "moe_intermediate_size": ffn}


def delta_net(key_heads, value_heads, key_size, value_size, kernel=4):
    return dict(
        linear_num_key_heads=key_heads,
        linear_num_value_heads=value_heads,
        linear_key_head_dim=key_size,
        linear_value_head_dim=value_size,
        linear_conv_kernel_dim=kernel,
    )


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

REFERENCES = [
    Reference(
        "olmoe_a", olmoe(**shape(40, 3, 5, 5, 97), num_experts=8, num_experts_per_tok=2, intermediate_size=23), 16
    ),
    Reference(
        "olmoe_b",
        olmoe(
            **shape(72, 2, 9, 3, 131),
            num_experts=5,
            num_experts_per_tok=3,
            intermediate_size=17,
            norm_topk_prob=True,
            clip_qkv=1.5,
            tie_word_embeddings=True,
        ),
        12,
        sequences=1,
        length=61,
        dtype="float32",
        style="new",
    ),
    Reference(
        "olmoe_twins",
        olmoe(**shape(56, 2, 7, 7, 101), num_experts=8, num_experts_per_tok=3, intermediate_size=11),
        13,
        twins=(2, 6),
    ),
    Reference(
        "mixtral_a",
        mixtral(**shape(56, 2, 7, 1, 101), num_local_experts=5, num_experts_per_tok=2, intermediate_size=23),
        21,
        shards=3,
    ),
    Reference(
        "mixtral_b",
        mixtral(
            **shape(72, 2, 6, 3, 113),
            num_local_experts=8,
            num_experts_per_tok=1,
            head_dim=10,
            intermediate_size=13,
            tie_word_embeddings=True,
        ),
        24,
        dtype="float16",
        style="new",
    ),
    Reference(
        "mixtral_c",
        mixtral(
            **shape(48, 3, 8, 1, 97),
            num_local_experts=6,
            num_experts_per_tok=3,
            intermediate_size=19,
        )
        | {"sliding_window": 9},
        25,
        sequences=2,
        length=41,
    ),
    Reference(
        "qwen3_moe_a",
        qwen3_moe(
            **shape(40, 4, 6, 2, 211, head_dim=10), **moe(12, 3, 11), intermediate_size=37, mlp_only_layers=[1]
        ),
        31,
    ),
    Reference(
        "qwen3_moe_b",
        qwen3_moe(
            **shape(56, 3, 4, 4, 103, head_dim=16),
            **moe(5, 1, 23),
            intermediate_size=29,
            norm_topk_prob=False,
            decoder_sparse_step=2,
            tie_word_embeddings=True,
        ),
        32,
        shards=2,
        style="new",
        head_in_file=True,
    ),
    Reference(
        "qwen3_moe_one_token",
        qwen3_moe(**shape(40, 2, 3, 1, 97, head_dim=14), **moe(8, 2, 23), intermediate_size=37),
        33,
        sequences=5,
        length=1,
    ),
    Reference(
        "qwen3_a",
        qwen3(**shape(40, 3, 6, 3, 127, head_dim=8), intermediate_size=37, tie_word_embeddings=True),
        41,
        head_in_file=True,
    ),
    Reference(
        "qwen3_b",
        qwen3(**shape(72, 2, 9, 1, 149, head_dim=6), intermediate_size=53, attention_bias=True),
        42,
        style="new",
        shards=2,
    ),
    Reference(
        "qwen3_c",
        qwen3(
            **shape(56, 3, 8, 1, 103, head_dim=10),
            intermediate_size=29,
            use_sliding_window=True,
            sliding_window=11,
            max_window_layers=1,
        ),
        43,
        sequences=2,
        length=43,
    ),
    Reference(
        "llama_a",
        llama(
            **shape(56, 3, 7, 7, 109), intermediate_size=37, attention_bias=True, mlp_bias=True, rope_scaling=LLAMA3
        ),
        51,
    ),
    Reference(
        "llama_b",
        llama(
            **shape(72, 2, 9, 3, 139),
            intermediate_size=41,
            tie_word_embeddings=True,
            rope_scaling={"type": "linear", "factor": 4.0},
        ),
        52,
        sequences=1,
        length=67,
    ),
    Reference(
        "llama_c",
        llama(**shape(40, 4, 5, 1, 97, head_dim=12), intermediate_size=23, rope_scaling=LLAMA3),
        53,
        style="new",
    ),
    Reference(
        "qwen3_next_a",
        qwen3_next(
            **shape(40, 4, 4, 2, 97, head_dim=16),
            **delta_net(2, 4, 8, 12),
            **moe(12, 3, 11),
            shared_expert_intermediate_size=13,
            intermediate_size=37,
        ),
        61,
        sequences=1,
        length=150,
        mtp=True,
        twins=(3, 8),
    ),
    Reference(
        "qwen3_next_b",
        qwen3_next(
            **shape(56, 3, 8, 1, 101, head_dim=24),
            **delta_net(3, 3, 12, 8, kernel=3),
            **moe(5, 1, 23),
            shared_expert_intermediate_size=11,
            intermediate_size=29,
            norm_topk_prob=False,
            full_attention_interval=2,
            mlp_only_layers=[0],
            tie_word_embeddings=True,
        ),
        62,
        sequences=2,
        length=67,
        style="new",
    ),
    Reference(
        "qwen3_next_one_token",
        qwen3_next(
            **shape(40, 2, 3, 1, 97, head_dim=8),
            **delta_net(1, 3, 10, 6),
            **moe(8, 2, 11),
            shared_expert_intermediate_size=7,
            intermediate_size=13,
            full_attention_interval=2,
        ),
        63,
        sequences=5,
        length=1,
    ),
    Reference(
        "glm4_moe_a",
        glm4_moe(
            **shape(40, 3, 6, 6, 103, head_dim=12),
            **moe(12, 3, 11, "n_routed_experts"),
            intermediate_size=37,
            n_group=3,
            topk_group=2,
            routed_scaling_factor=1.7,
            n_shared_experts=2,
        ),
        111,
        mtp=True,
    ),
    Reference(
        "glm4_moe_b",
        glm4_moe(
            **shape(56, 3, 8, 1, 97, head_dim=8),
            **moe(8, 2, 13, "n_routed_experts"),
            intermediate_size=23,
            norm_topk_prob=False,
            use_qk_norm=True,
            first_k_dense_replace=2,
            num_nextn_predict_layers=0,
        ),
        72,
        style="new",
        twins=(1, 5),
    ),
    Reference(
        "glm4_moe_one_token",
        glm4_moe(
            **shape(40, 2, 3, 3, 97, head_dim=8),
            **moe(5, 2, 11, "n_routed_experts"),
            intermediate_size=13,
            attention_bias=False,
            num_nextn_predict_layers=0,
        ),
        73,
        sequences=5,
        length=1,
    ),
    Reference(
        "gpt_oss_a",
        gpt_oss(
            **shape(64, 3, 8, 1, 97, head_dim=10),
            num_local_experts=5,
            num_experts_per_tok=2,
            intermediate_size=32,
            sliding_window=16,
        ),
        81,
        mxfp4=True,
    ),
    Reference(
        "gpt_oss_b",
        gpt_oss(
            **shape(40, 3, 6, 6, 101, head_dim=8),
            num_local_experts=12,
            num_experts_per_tok=3,
            intermediate_size=11,
            sliding_window=8,
        ),
        82,
        length=41,
        style="new",
        twins=(0, 7),
    ),
    Reference(
        "gpt_oss_one_token",
        gpt_oss(
            **shape(32, 2, 3, 3, 97, head_dim=14),
            num_local_experts=8,
            num_experts_per_tok=1,
            intermediate_size=32,
            sliding_window=4,
        ),
        83,
        sequences=5,
        length=1,
        mxfp4=True,
    ),
]
