"""A random checkpoint of `synth` in odd sizes, with dense and routed layers and a shared expert: every table of its
result, at every threshold, from NumPy and the activations stored in the same file."""

# cores: 1

import json

import h5py
import numpy as np
import pytest

import helpers
import recompute
import recompute_bootstrap

LAYERS, EXPERTS, GROUPS, TOP_GROUPS, TOP_K = 3, 9, 3, 2, 3
CONFIG = {
    "architectures": ["Glm4MoeForCausalLM"],
    "model_type": "glm4_moe",
    "attention_bias": True,
    "first_k_dense_replace": 1,
    "head_dim": 10,
    "hidden_act": "silu",
    "hidden_size": 45,
    "intermediate_size": 37,
    "max_position_embeddings": 128,
    "moe_intermediate_size": 13,
    "n_group": GROUPS,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 9,
    "num_experts_per_tok": TOP_K,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 3,
    "partial_rotary_factor": 0.6,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "routed_scaling_factor": 1.3,
    "tie_word_embeddings": False,
    "topk_group": TOP_GROUPS,
    "torch_dtype": "bfloat16",
    "use_qk_norm": True,
    "vocab_size": 97,
}
THRESHOLDS = (2.0, 1.5, 2.5, 3.0)  # no weight of synth makes values as large as a trained model's
SEQUENCES, LENGTH = 5, 37


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    helpers.run(["synth", folder / "config.json", "-o", folder / "model", "--seed", 11, "--dtype", "f32"])
    return folder / "model"


@pytest.fixture(scope="module", params=("fp32", "bf16"))
def result(request, checkpoint, tmp_path_factory):
    """The open result file."""
    folder = tmp_path_factory.mktemp(request.param)
    tokens = np.random.default_rng(5).integers(0, CONFIG["vocab_size"], (SEQUENCES, LENGTH), np.int32)
    with h5py.File(folder / "tokens.h5", "w") as file:
        file["tokens"] = tokens
    analysis = {"threshold": THRESHOLDS[0], "thresholds": THRESHOLDS, "bootstrap": 500, "seed": 9}
    sections = helpers.run_sections(
        checkpoint, folder / "tokens.h5", folder / "r.h5", request.param, "all", analysis=analysis
    )
    helpers.run(["run", helpers.write_config(folder / "r.cfg", sections)], 2, env=helpers.quick(2))
    with h5py.File(folder / "r.h5") as file:
        np.testing.assert_array_equal(file["tokens"][:], tokens)
        yield file


@pytest.fixture(scope="module")
def activations(result):
    return helpers.site_tensors(result["activations"], LAYERS)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_tables(result, activations, threshold):
    group = result if threshold == THRESHOLDS[0] else result[f"thresholds/{threshold:g}"]
    tables = recompute.Tables(activations, threshold)
    assert len(group["features"]) > 5
    recompute.assert_tables(group, tables, result["tokens"][:])
    recompute_bootstrap.assert_intervals(group, recompute_bootstrap.Bootstrap(tables, 500, 9))


def test_classes(result):
    """The thresholds are such that all three occur."""
    classes = [result["features"]["classification"]]
    classes += [group["features"]["classification"] for group in result["thresholds"].values()]
    assert set(np.concatenate(classes)) == {recompute.NONE, recompute.PROBABILISTIC, recompute.SYSTEMATIC}


def test_perplexity(result):
    nll = result["perplexity/nll"][:]
    assert nll.shape == (SEQUENCES, LENGTH - 1)
    found = [float(result[f"perplexity/perplexity{end}"][()]) for end in ("", "_low", "_high")]
    mean = nll.astype(np.float64).mean()
    assert found == pytest.approx([np.exp(mean), *recompute_bootstrap.perplexity(nll, 500, 9)], rel=1e-8)


def choices(x, weight, correction):
    """What the router chooses by [tokens, E]: the scores with their correction; -1 outside of the best groups, those
    with the largest sums of their two best."""
    scores = 1 / (1 + np.exp(-(x @ weight.T.astype(np.float64)))) + correction
    groups = scores.reshape(len(scores), GROUPS, -1)
    best = np.argsort(-np.sort(groups, axis=2)[:, :, -2:].sum(axis=2), axis=1, kind="stable")[:, :TOP_GROUPS]
    taken = np.zeros(groups.shape[:2], bool)
    np.put_along_axis(taken, best, True, axis=1)
    return np.where(taken[:, :, None], groups, -1).reshape(scores.shape)


def test_experts(result, activations, checkpoint):
    if result.attrs["precision"] != "fp32":
        pytest.skip("what a bf16 run rounds is not recomputed")
    weights, rows = helpers.weights_of(checkpoint), result["experts"][:]
    assert len(rows) == (LAYERS - 1) * (EXPERTS + 1)
    for layer in range(1, LAYERS):
        x, base = activations[2 * layer + 1], f"model.layers.{layer}.mlp."
        flat = x.reshape(-1, x.shape[-1]).astype(np.float64)
        chosen = choices(flat, weights[base + "gate.weight"], weights[base + "gate.e_score_correction_bias"])
        experts = recompute.Experts(x, THRESHOLDS[0], chosen, TOP_K)
        mine = rows[rows["layer"] == layer]
        routed, shared = mine[:-1], mine[-1]
        assert list(mine["expert"]) == [*range(EXPERTS), -1] and list(mine["shared"]) == [0] * EXPERTS + [1]
        np.testing.assert_array_equal(result["routing/expert_tokens"][layer], routed["tokens"])
        for column, values in experts.sums().items():
            np.testing.assert_array_equal(routed[column], values, err_msg=column)
        assert [shared[name] for name in ("tokens", "outlier_values", "outlier_tokens")] == [
            len(flat), experts.hits.sum(), (experts.hits > 0).sum()]  # fmt: skip
        for row in mine[mine["tokens"] > 0]:
            place = "shared_experts" if row["shared"] else f"experts.{row['expert']}"
            matrices = [weights[f"{base}{place}.{part}_proj.weight"] for part in ("gate", "up", "down")]
            got = np.ones(len(flat), bool) if row["shared"] else experts.got[:, row["expert"]]
            recompute.assert_largest_output(row, flat, matrices, got, LENGTH)
            assert row["max_token"] == result["tokens"][row["max_sequence"], row["max_position"]]
