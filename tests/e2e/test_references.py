"""Every reference checkpoint (scripts/make_references.py) against Hugging Face transformers, and the tables of its
result file against a NumPy recomputation from the activations stored in the same file."""

# cores: 1

import math

import h5py
import numpy as np
import pytest

import helpers
import recompute
import recompute_bootstrap

SITE_TOLERANCE = 2e-4  # relative, Frobenius
ELEMENT_TOLERANCE = 1e-3  # largest error over largest magnitude
LOSS_TOLERANCE = 1e-4  # mean error over mean loss
BF16_FACTOR = 1.3  # error to the float32 reference over the error of transformers' own bfloat16 run

THRESHOLDS = (6.0, 5.0, 2.5, 8.0)  # of every run; the first is the one of the tables in the root

FOLDERS = sorted(path.parent for path in helpers.REFERENCES.glob("*/reference.h5"))
RANKS = (None, 2)


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def folder(request):
    return request.param


@pytest.fixture(params=RANKS, ids=("alone", "2ranks"))
def ranks(request):
    return request.param


@pytest.fixture(params=("fp32", "bf16"))
def precision(request):
    return request.param


def site_names(layers):
    return [f"{layer:03d}/{site}" for layer in range(layers) for site in helpers.SITES]


def test_references_are_there():
    assert len(FOLDERS) >= 10


def test_fp32_sites(folder, ranks, analysed):
    with h5py.File(analysed(folder, "fp32", ranks)) as result, h5py.File(folder / "reference.h5") as reference:
        for name in site_names(result.attrs["n_layers"]):
            values, expected = result[f"activations/{name}"][:], reference[f"fp32/layers/{name}"][:]
            assert values.shape == expected.shape and values.dtype == np.float32
            error, largest = helpers.relative_error(values, expected), helpers.largest_error(values, expected)
            assert error <= SITE_TOLERANCE and largest <= ELEMENT_TOLERANCE, (name, error, largest)


def test_fp32_losses(folder, ranks, analysed):
    with h5py.File(analysed(folder, "fp32", ranks)) as result, h5py.File(folder / "reference.h5") as reference:
        expected = reference["fp32/nll"][:]
        if expected.size == 0 and "perplexity" not in result:
            return
        losses = result["perplexity/nll"][:]
        perplexity = float(result["perplexity/perplexity"][()])
    assert losses.shape == expected.shape and losses.dtype == np.float32
    if expected.size == 0:
        assert math.isnan(perplexity)
        return
    assert np.abs(losses.astype(np.float64) - expected).mean() <= LOSS_TOLERANCE * np.abs(expected).mean()
    assert perplexity == pytest.approx(math.exp(losses.mean(dtype=np.float64)), rel=1e-12)


def test_fp32_routing(folder, ranks, analysed):
    """Tokens of each expert, exactly; twins (equal experts, whose scores always tie) are counted together."""
    with h5py.File(analysed(folder, "fp32", ranks)) as result, h5py.File(folder / "reference.h5") as reference:
        if "fp32/expert_tokens" not in reference:
            assert "routing" not in result
            return
        counts, expected = result["routing/expert_tokens"][:], reference["fp32/expert_tokens"][:]
        assert counts.dtype == np.uint64
        if reference.attrs["twins"].size:
            keep, merged = reference.attrs["twins"]
            for table in (counts, expected):
                table[:, keep] += table[:, merged]
                table[:, merged] = 0
    np.testing.assert_array_equal(counts, expected)


def test_bf16_sites(folder, ranks, analysed):
    """Rounding to bfloat16 costs no more than it costs transformers."""
    with h5py.File(analysed(folder, "bf16", ranks)) as result, h5py.File(folder / "reference.h5") as reference:
        allowed = reference["bf16/eager/relative_error"][:].ravel()
        for name, own in zip(site_names(result.attrs["n_layers"]), allowed, strict=True):
            error = helpers.relative_error(result[f"activations/{name}"][:], reference[f"fp32/layers/{name}"][:])
            assert error <= BF16_FACTOR * own, (name, error, own)


def test_bf16_site_values_are_bf16(folder, analysed):
    with h5py.File(analysed(folder, "bf16", None)) as result:
        values = helpers.site_tensors(result["activations"], result.attrs["n_layers"])
    assert not (values.view(np.uint32) & 0xFFFF).any()


@pytest.fixture
def stored(folder, precision, ranks, analysed):
    """The open result file and the tables recomputed from its activations."""
    with h5py.File(analysed(folder, precision, ranks)) as result:
        tables = recompute.Tables(helpers.site_tensors(result["activations"], result.attrs["n_layers"]))
        yield result, tables


def test_further_thresholds(folder, precision, ranks, analysed):
    """Each has all tables, and those are its own."""
    with h5py.File(analysed(folder, precision, ranks)) as result:
        names = [f"{threshold:g}" for threshold in THRESHOLDS[1:]]
        assert set(result["thresholds"]) == set(names)
        activations = helpers.site_tensors(result["activations"], result.attrs["n_layers"])
        for name, threshold in zip(names, THRESHOLDS[1:], strict=True):
            group, tables = result["thresholds"][name], recompute.Tables(activations, threshold)
            assert group.attrs["threshold"] == threshold
            recompute.assert_tables(group, tables, result["tokens"][:])


def test_experts(stored):
    """What holds for every router, at each layer that routes; layers that do not have no rows."""
    result, tables = stored
    if "routing" not in result:
        assert "experts" not in result
        return
    load, rows, tokens = result["routing/expert_tokens"][:], result["experts"][:], result["tokens"][:]
    routing = [layer for layer in range(len(load)) if load[layer].any()]
    assert list(dict.fromkeys(rows["layer"])) == routing
    for layer in routing:
        mine = rows[rows["layer"] == layer]
        routed, shared = mine[mine["shared"] == 0], mine[mine["shared"] == 1]
        hits = tables.hit[2 * layer + 1].sum(axis=2)
        top_k = int(result.attrs["experts_per_token"])
        np.testing.assert_array_equal(routed["expert"], np.arange(load.shape[1]))
        np.testing.assert_array_equal(routed["tokens"], load[layer])
        assert routed["outlier_values"].sum() == top_k * hits.sum()
        assert routed["outlier_tokens"].sum() == top_k * (hits > 0).sum()
        assert list(shared["expert"]) == [-1] * len(shared) and len(shared) <= 1
        for row in shared:
            assert (row["tokens"], row["outlier_values"]) == (hits.size, hits.sum())
            assert row["outlier_tokens"] == (hits > 0).sum()
        for row in mine:
            dead = row["tokens"] == 0
            assert (row["max_sequence"] < 0) == (row["max_position"] < 0) == (row["max_token"] < 0) == dead
            assert (row["max_output"] == 0) or not dead
            if not dead:
                assert row["max_token"] == tokens[row["max_sequence"], row["max_position"]]


# reference: names of an expert's three matrices, and of the router
SEPARATE = {
    "olmoe_a": ("mlp.experts.{}.{}_proj.weight", ("gate", "up", "down"), "mlp.gate.weight"),
    "olmoe_b": ("mlp.experts.{}.{}_proj.weight", ("gate", "up", "down"), "mlp.gate.weight"),
    "qwen3_moe_a": ("mlp.experts.{}.{}_proj.weight", ("gate", "up", "down"), "mlp.gate.weight"),
    "mixtral_a": ("block_sparse_moe.experts.{}.{}.weight", ("w1", "w3", "w2"), "block_sparse_moe.gate.weight"),
}


@pytest.mark.parametrize("name", SEPARATE)
def test_experts_recomputed(name, ranks, analysed):
    """Each expert's tokens and their outlier values from the router's weights; its largest output from its own."""
    pattern, (gate, up, down), router = SEPARATE[name]
    folder = helpers.REFERENCES / name
    weights = helpers.weights_of(folder)
    with h5py.File(analysed(folder, "fp32", ranks)) as result:
        rows, length = result["experts"][:], int(result.attrs["sequence_length"])
        top_k = int(result.attrs["experts_per_token"])
        for layer in sorted(set(rows["layer"])):
            x, base = result[f"activations/{layer:03d}/ln_mlp"][:], f"model.layers.{layer}."
            flat = x.reshape(-1, x.shape[-1]).astype(np.float64)
            experts = recompute.Experts(x, 6.0, flat @ weights[base + router].T.astype(np.float64), top_k)
            mine = rows[(rows["layer"] == layer) & (rows["shared"] == 0)]
            for column, values in experts.sums().items():
                np.testing.assert_array_equal(mine[column], values, err_msg=column)
            for row in mine[mine["tokens"] > 0]:
                matrices = [weights[base + pattern.format(row["expert"], part)] for part in (gate, up, down)]
                recompute.assert_largest_output(row, flat, matrices, experts.got[:, row["expert"]], length)


def test_top_values(stored):
    result, tables = stored
    recompute.assert_table(result["top_values"][:], tables.top_values(result["tokens"][:]))


def test_site_rows(stored):
    result, tables = stored
    for site, name in enumerate(site_names(result.attrs["n_layers"])):
        recompute.assert_table(result[f"layers/{name}"][:], tables.site_rows(site))


def test_sequence_features(stored):
    result, tables = stored
    recompute.assert_table(result["sequence_features"][:], tables.sequence_features())


def test_positions(stored):
    result, tables = stored
    recompute.assert_table(result["positions"][:], tables.positions())


def test_intervals(stored):
    result, tables = stored
    if tables.n_sequences == 1:
        assert np.isnan(result["features"]["layer_percentage_low"]).all()
        assert np.isnan(result["features"]["qualifies_share"]).all()
        assert math.isnan(result["summary/outlier_features_high"][()])
        return
    draws, seed = int(result.attrs["bootstrap_draws"]), int(result.attrs["bootstrap_seed"])
    recompute_bootstrap.assert_intervals(result, recompute_bootstrap.Bootstrap(tables, draws, seed))
    if result["perplexity/nll"].size:
        low, high = recompute_bootstrap.perplexity(result["perplexity/nll"][:], draws, seed)
        assert float(result["perplexity/perplexity_low"][()]) == pytest.approx(low, rel=1e-8)
        assert float(result["perplexity/perplexity_high"][()]) == pytest.approx(high, rel=1e-8)


def test_features(stored):
    result, tables = stored
    expected = tables.features()
    assert expected, "a reference without outliers shows nothing"
    recompute.assert_table(result["features"][:], expected)


def test_sites(stored):
    result, tables = stored
    recompute.assert_sites(result["sites"][:], tables.sites())


def test_summary(stored):
    result, tables = stored
    recompute.assert_summary(result["summary"], tables.summary())


def test_routing_accounts_for_every_token(stored):
    """Each layer that routes sends every token to exactly top-k experts; a dense layer sends none."""
    result, tables = stored
    if "routing" not in result:
        return
    per_layer = result["routing/expert_tokens"][:].sum(axis=1)
    tokens = tables.n_sequences * tables.length
    assert per_layer.max() > 0 and per_layer.max() % tokens == 0
    assert set(per_layer.tolist()) <= {0, int(per_layer.max())}


def test_ranks_agree(folder, precision, analysed):
    """Two ranks write the very same datasets as one."""
    alone, two = (helpers.datasets(analysed(folder, precision, ranks)) for ranks in RANKS)
    assert alone.keys() == two.keys()
    for name, values in alone.items():
        assert np.asarray(values).tobytes() == np.asarray(two[name]).tobytes(), name
