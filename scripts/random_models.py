"""Random references of every architecture for compare_random_models.py: shapes that no published model has."""

import random

from reference_models import (
    LLAMA3,
    Reference,
    delta_net,
    glm4_moe,
    gpt_oss,
    llama,
    mixtral,
    moe,
    olmoe,
    qwen3,
    qwen3_moe,
    qwen3_next,
    shape,
)

FLAGS = (True, False)
HEAD_SIZES = (16, 24, 32, 40, 48, 64, 64, 80, 96, 128, 128, 256)  # 64, 128 and 256 have kernels of their own
WIDTHS = (8, 17, 24, 32, 64, 72, 96, 128)
DENSE_WIDTHS = (37, 64, 136)
LENGTHS = (2, 17, 33, 63, 64, 65, 100, 128, 129, 200, 257)
WINDOWS = (None, None, 2, 5, 16, 64, 100, 128)
NORM_EPS = (1e-5, 1e-6, 1e-3)
ROPE_THETA = (500.0, 1e4, 1e6, 5e6)


class Draw(random.Random):
    """The choices that architectures share."""

    def heads(self, sizes=HEAD_SIZES, most=2048):
        """num_attention_heads, num_key_value_heads, head_dim."""
        kv, group, size = self.choice((1, 1, 2, 3, 4)), self.choice((1, 2, 3, 4, 7, 8)), self.choice(sizes)
        return (kv * group if kv * group * size <= most else kv), kv, size

    def body(self, sizes=HEAD_SIZES, hidden=(40, 64, 72, 96, 128, 136, 192, 256), layers=(2, 3)):
        heads, kv, size = self.heads(sizes)
        vocab = self.choice((97, 128, 211, 400))
        return shape(self.choice(hidden), self.choice(layers), heads, kv, vocab, head_dim=size)

    def experts(self):
        """Experts, of which so many per token."""
        count = self.choice((2, 3, 7, 16, 33, 64, 128))
        return count, self.randint(1, min(count, 10))

    def common(self):
        return dict(
            rms_norm_eps=self.choice(NORM_EPS),
            rope_theta=self.choice(ROPE_THETA),
            tie_word_embeddings=self.choice((True, False, False)),
        )

    def rope_scaling(self):
        linear = {"rope_type": "linear", "factor": self.choice((2.0, 7.5))}
        llama3 = LLAMA3 | dict(factor=self.choice((2.0, 8.0)), original_max_position_embeddings=self.choice((32, 64)))
        yarn = {
            "rope_type": "yarn",
            "factor": self.choice((2.0, 4.0)),
            "original_max_position_embeddings": self.choice((64, 256)),
        }
        return {"rope_scaling": self.choice((None, None, None, linear, llama3, yarn))}


def random_olmoe(draw):
    size = draw.choice((16, 32, 64, 128))
    heads = draw.choice([n for n in (2, 3, 4, 6, 7, 8) if n * size <= 512])
    kv = draw.choice([n for n in range(1, heads + 1) if heads % n == 0])
    count, top_k = draw.experts()
    return (
        olmoe(
            **shape(heads * size, draw.choice((2, 3)), heads, kv, draw.choice((97, 211))),
            num_experts=count,
            num_experts_per_tok=top_k,
            intermediate_size=draw.choice(WIDTHS),
            norm_topk_prob=draw.choice(FLAGS),
            clip_qkv=draw.choice((None, None, 2.0, 8.0)),
        )
        | draw.rope_scaling()
    )


def random_mixtral(draw):
    count, top_k = draw.experts()
    return mixtral(
        **draw.body(), num_local_experts=count, num_experts_per_tok=top_k, intermediate_size=draw.choice(WIDTHS)
    ) | {"sliding_window": draw.choice(WINDOWS)}


def random_qwen3_moe(draw):
    """Some layers dense, but never all."""
    dense, step = draw.choice(([], [], [0], [1])), draw.choice((1, 1, 2))
    return (
        qwen3_moe(
            **draw.body(),
            **moe(*draw.experts(), draw.choice(WIDTHS)),
            intermediate_size=draw.choice(DENSE_WIDTHS),
            norm_topk_prob=draw.choice(FLAGS),
            decoder_sparse_step=step,
            mlp_only_layers=[] if step == 2 else dense,
        )
        | draw.rope_scaling()
    )


def random_qwen3(draw):
    window = draw.choice(WINDOWS)
    windows = (
        dict(use_sliding_window=True, sliding_window=window, max_window_layers=draw.choice((0, 1, 2)))
        if window
        else {}
    )
    return (
        qwen3(**draw.body(), intermediate_size=draw.choice(DENSE_WIDTHS), attention_bias=draw.choice(FLAGS))
        | draw.rope_scaling()
        | windows
    )


def random_llama(draw):
    """transformers wants hidden_size to be a multiple of the heads, though head_dim is given."""
    body = draw.body()
    body["hidden_size"] = max(3, 48 // body["num_attention_heads"]) * body["num_attention_heads"]
    return (
        llama(
            **body,
            intermediate_size=draw.choice(DENSE_WIDTHS),
            attention_bias=draw.choice(FLAGS),
            mlp_bias=draw.choice(FLAGS),
        )
        | draw.rope_scaling()
    )


def random_qwen3_next(draw):
    key_heads = draw.choice((1, 2, 3, 4))
    sizes = draw.choice(((128, 128), (8, 16), (12, 24), (16, 8), (32, 64), (64, 128), (128, 16)))
    return qwen3_next(
        **draw.body((16, 32, 64, 128, 256), hidden=(64, 72, 96, 128), layers=(2, 4)),
        **delta_net(key_heads, key_heads * draw.choice((1, 2, 3)), *sizes, draw.choice((2, 3, 4, 4))),
        **moe(*draw.experts(), draw.choice(WIDTHS)),
        shared_expert_intermediate_size=draw.choice((7, 32, 64)),
        intermediate_size=draw.choice(DENSE_WIDTHS),
        norm_topk_prob=draw.choice(FLAGS),
        full_attention_interval=draw.choice((2, 4, 4)),
        partial_rotary_factor=draw.choice((0.25, 0.5, 1.0)),
        mlp_only_layers=draw.choice(([], [], [1])),
    )


def random_glm4_moe(draw):
    """Groups of at least two experts: a group's score is the sum of its two best."""
    count, groups = draw.choice((8, 16, 64, 128)), draw.choice((1, 1, 2, 4))
    kept = draw.randint(1, groups)
    top_k = draw.randint(1, min(8, count // groups * kept))
    return (
        glm4_moe(
            **draw.body((16, 32, 48, 64, 128, 128)),
            **moe(count, top_k, draw.choice(WIDTHS), "n_routed_experts"),
            intermediate_size=draw.choice(DENSE_WIDTHS),
            n_group=groups,
            topk_group=kept,
            routed_scaling_factor=draw.choice((1.0, 1.7, 2.5)),
            n_shared_experts=draw.choice((1, 2)),
            norm_topk_prob=draw.choice(FLAGS),
            use_qk_norm=draw.choice(FLAGS),
            first_k_dense_replace=draw.choice((0, 1)),
            attention_bias=draw.choice(FLAGS),
            partial_rotary_factor=draw.choice((0.25, 0.5, 1.0)),
            num_nextn_predict_layers=0,
        )
        | draw.rope_scaling()
    )


def random_gpt_oss(draw):
    """MXFP4 has blocks of 32 numbers."""
    count, top_k = draw.experts()
    hidden, widths = ((64, 96, 128, 192, 288), (32, 64, 96, 128)) if draw.mxfp4 else ((40, 72, 136), WIDTHS)
    return gpt_oss(
        **draw.body((10, 16, 32, 64, 64, 128), hidden),
        num_local_experts=count,
        num_experts_per_tok=min(top_k, 8),
        intermediate_size=draw.choice(widths),
        sliding_window=draw.choice((1, 4, 16, 64, 128)),
    )


CONFIGS = {
    "qwen3_next": random_qwen3_next,
    "glm4_moe": random_glm4_moe,
    "gpt_oss": random_gpt_oss,
    "qwen3_moe": random_qwen3_moe,
    "olmoe": random_olmoe,
    "mixtral": random_mixtral,
    "llama": random_llama,
    "qwen3": random_qwen3,
}
# Those with more pieces of their own come twice.
ROUND = [*CONFIGS, "qwen3_next", "glm4_moe", "gpt_oss", "qwen3_moe"]


def random_reference(seed):
    """The reference of a seed: its architecture is ROUND[seed % len(ROUND)], all else is drawn."""
    draw, name = Draw(seed), ROUND[seed % len(ROUND)]
    draw.mxfp4 = name == "gpt_oss" and draw.choice((True, True, False))
    config = CONFIGS[name](draw) | draw.common()
    length = draw.choice(LENGTHS)
    return Reference(
        f"{name}_{seed}",
        config,
        seed,
        sequences=draw.choice((1, 2, 3, 5) if length < 150 else (1, 2)),
        length=length,
        dtype="bfloat16" if draw.mxfp4 else draw.choice(("bfloat16", "bfloat16", "float32", "float16")),
        shards=draw.choice((1, 1, 3)),
        style=draw.choice(("old", "new")),
        mxfp4=draw.mxfp4,
    )
