"""The tables of a result file, computed again with NumPy from stored site activations; shares nothing with the program.

Definitions: Dettmers et al. 2022 (arXiv:2208.07339), section 4, per site as docs/methods.md fixes them. Activations are
float32 [2L, N, S, H], site 2*layer being ln_attn and 2*layer+1 ln_mlp. Tables are lists of dicts, in the file's order.
"""

import functools
import math

import numpy as np
import pytest

import helpers

NONE, PROBABILISTIC, SYSTEMATIC = 0, 1, 2


class Experts:
    """Of one layer that routes: who got which token, from the router's logits [N*S, E], float64."""

    def __init__(self, x, threshold, logits, top_k):
        self.hits = (np.abs(x.astype(np.float64)) >= threshold).reshape(-1, x.shape[-1]).sum(axis=1)
        chosen = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
        self.got = np.zeros(logits.shape, bool)
        np.put_along_axis(self.got, chosen, True, axis=1)

    def sums(self):
        """{column: [E]}"""
        return {
            "tokens": self.got.sum(axis=0),
            "outlier_values": (self.got * self.hits[:, None]).sum(axis=0),
            "outlier_tokens": (self.got & (self.hits[:, None] > 0)).sum(axis=0),
        }


class Tables:
    def __init__(
        self, activations, threshold=6.0, layer_fraction=0.25, position_fraction=0.06, systematic_fraction=1.0
    ):
        assert activations.dtype == np.float32 and activations.ndim == 4
        self.x = activations
        self.hit = np.abs(activations.astype(np.float64)) >= threshold
        self.layer_fraction, self.position_fraction = layer_fraction, position_fraction
        self.systematic_fraction = systematic_fraction
        self.n_sites, self.n_sequences, self.length, self.hidden = activations.shape
        self.site_hit = self.hit.any(axis=2)  # [2L, N, H]
        self.position_hit = self.hit.any(axis=0).sum(axis=1)  # [N, H]

    def positions(self):
        """A row per (sequence, feature) with an outlier value."""
        return [
            {"sequence": sequence, "feature": feature, "positions_hit": self.position_hit[sequence, feature]}
            for sequence, feature in np.argwhere(self.position_hit)
        ]

    def site_rows(self, site):
        """A row per (sequence, feature) with an outlier value at `site`."""
        rows = []
        for sequence, feature in np.argwhere(self.hit[site].any(axis=1)):
            values = self.x[site, sequence, self.hit[site, sequence, :, feature], feature]
            magnitudes = np.abs(values)
            total = 0.0
            for magnitude in magnitudes:
                total += float(magnitude)
            rows.append(
                {
                    "sequence": sequence,
                    "feature": feature,
                    "count": values.size,
                    "positive": (values > 0).sum(),
                    "negative": (values < 0).sum(),
                    "min": values.min(),
                    "max": values.max(),
                    "max_abs": magnitudes.max(),
                    "mean_abs": np.float32(total / values.size),
                    "position": self.top(site, sequence, feature)[0],
                    "first": self.hit[site, sequence, 0, feature],
                }
            )
        return rows

    def top(self, site, sequence, feature):
        """(position, value) of the largest magnitude in a sequence; of equal ones a positive one, then the first."""
        values = self.x[site, sequence, :, feature]
        position = max(range(self.length), key=lambda s: (abs(values[s]), values[s] > 0, -s))
        return position, values[position]

    def top_values(self, tokens, count=5):
        """Of each feature that qualifies, at each site that it hits: the largest values of its sequences."""
        rows = []
        for feature in sorted(row["feature"] for row in self.features() if row["classification"] != NONE):
            for site in range(self.n_sites):
                hits = np.flatnonzero(self.site_hit[site, :, feature])
                tops = [(sequence, *self.top(site, sequence, feature)) for sequence in hits]
                tops.sort(key=lambda top: (-abs(top[2]), top[0]))
                for rank, (sequence, position, value) in enumerate(tops[:count]):
                    rows.append(
                        {
                            "feature": feature,
                            "layer": site // 2,
                            "site": site % 2,
                            "rank": rank,
                            "sequence": sequence,
                            "position": position,
                            "token": tokens[sequence, position],
                            "value": value,
                        }
                    )
        return rows

    def qualifies(self, sites_hit, positions_hit, positions):
        return sites_hit / self.n_sites >= self.layer_fraction and positions_hit / positions >= self.position_fraction

    @functools.cache
    def sequence_features(self):
        """Rows that qualify in one sequence alone; by sequence, then magnitude falling, then feature."""
        rows = []
        for sequence in range(self.n_sequences):
            hit, x = self.hit[:, sequence], self.x[:, sequence]
            for feature in np.flatnonzero(hit.any(axis=(0, 1))):
                mine = hit[:, :, feature]
                sites, positions = int(mine.any(axis=1).sum()), int(mine.any(axis=0).sum())
                if self.qualifies(sites, positions, self.length):
                    rows.append(
                        {
                            "sequence": sequence,
                            "feature": feature,
                            "layer_percentage": sites / self.n_sites,
                            "seq_percentage": positions / self.length,
                            "max_magnitude": np.abs(x[:, :, feature][mine]).max(),
                            "total_occurrences": mine.sum(),
                            "sites_hit": sites,
                            "positions_hit": positions,
                        }
                    )
        return sorted(rows, key=lambda row: (row["sequence"], -row["max_magnitude"], row["feature"]))

    @functools.cache
    def features(self):
        """Pooled rows, one a feature with an outlier value, by magnitude falling, then feature."""
        rows, layers, positions_in_all = [], self.n_sites // 2, self.n_sequences * self.length
        qualified = [row["feature"] for row in self.sequence_features()]
        for feature in np.flatnonzero(self.hit.any(axis=(0, 1, 2))):
            mine = self.hit[..., feature]
            values = self.x[..., feature][mine]
            site_hit = mine.any(axis=(1, 2))
            sites, positions = int(site_hit.sum()), int(mine.any(axis=0).sum())
            blocks = int(site_hit.reshape(layers, 2).any(axis=1).sum())
            quartiles = np.quantile(values.astype(np.float64), [0.25, 0.5, 0.75]).astype(np.float32)
            classification = NONE
            if self.qualifies(sites, positions, positions_in_all):
                classification = SYSTEMATIC if blocks / layers >= self.systematic_fraction else PROBABILISTIC
            rows.append(
                {
                    "feature": feature,
                    "sites_hit": sites,
                    "layers_hit": blocks,
                    "positions_hit": positions,
                    "layer_percentage": sites / self.n_sites,
                    "block_percentage": blocks / layers,
                    "seq_percentage": positions / positions_in_all,
                    "max_magnitude": np.abs(values).max(),
                    "total_occurrences": values.size,
                    "positive": (values > 0).sum(),
                    "negative": (values < 0).sum(),
                    "q1": quartiles[0],
                    "median": quartiles[1],
                    "q3": quartiles[2],
                    "share": values.size / int(self.hit.sum()),
                    "first_token_share": int(mine[:, :, 0].sum()) / values.size,
                    "sequences_qualified": qualified.count(feature),
                    "classification": classification,
                }
            )
        return sorted(rows, key=lambda row: (-row["max_magnitude"], row["feature"]))

    def sites(self):
        """A row per site. mean and std by exactly rounded sums."""
        rows = []
        for site, values in enumerate(self.x):
            flat = values.astype(np.float64).ravel()
            mean = math.fsum(flat) / flat.size
            rows.append(
                {
                    "layer": site // 2,
                    "site": site % 2,
                    "count": self.hit[site].sum(),
                    "max_abs": np.abs(values).max(),
                    "mean": mean,
                    "std": math.sqrt(math.fsum((flat - mean) ** 2) / flat.size),
                    "features_hit": self.hit[site].any(axis=(0, 1)).sum(),
                }
            )
        return rows

    def summary(self):
        features = self.features()
        outlier = [row for row in features if row["classification"] != NONE]
        by_layer = [row["layer_percentage"] for row in outlier] or [math.nan]
        by_position = [row["seq_percentage"] for row in outlier] or [math.nan]
        return {
            "outlier_features": len(outlier),
            "systematic_features": sum(row["classification"] == SYSTEMATIC for row in outlier),
            "features_hit": len(features),
            "sequence_rows": len(self.sequence_features()),
            "mean_layer_percentage": math.fsum(by_layer) / len(by_layer),
            "median_layer_percentage": float(np.median(by_layer)),
            "mean_seq_percentage": math.fsum(by_position) / len(by_position),
            "median_seq_percentage": float(np.median(by_position)),
            "classification": max((row["classification"] for row in outlier), default=NONE),
        }


# --- comparing ---


def assert_table(table, expected, close=()):
    """table: compound dataset; expected: list of dicts. Columns in `close` are compared by the caller."""
    assert len(table) == len(expected)
    if not expected:
        return
    assert set(expected[0]) <= set(table.dtype.names)
    for column in expected[0]:
        if column not in close:
            np.testing.assert_array_equal(table[column], np.array([row[column] for row in expected]), err_msg=column)


def assert_sites(table, expected):
    assert_table(table, expected, close=("mean", "std"))
    for row, other in zip(table, expected, strict=True):
        assert row["std"] == pytest.approx(other["std"], rel=1e-12)
        assert row["mean"] == pytest.approx(other["mean"], rel=1e-12, abs=1e-12 * other["std"])


def assert_summary(group, expected):
    for name, value in expected.items():
        found = group[name][()]
        if isinstance(value, float):
            assert float(found) == pytest.approx(value, rel=1e-14, nan_ok=True), name
        else:
            assert int(found) == value, name


def assert_tables(group, tables, tokens):
    """All tables of a threshold but the intervals; group: the root, or that of a further threshold."""
    for site in range(tables.n_sites):
        assert_table(group[f"layers/{site // 2:03d}/{helpers.SITES[site % 2]}"][:], tables.site_rows(site))
    assert_table(group["positions"][:], tables.positions())
    assert_table(group["sequence_features"][:], tables.sequence_features())
    assert_table(group["features"][:], tables.features())
    assert_table(group["top_values"][:], tables.top_values(tokens))
    assert_sites(group["sites"][:], tables.sites())
    assert_summary(group["summary"], tables.summary())


def assert_largest_output(row, x, matrices, got, length):
    """row: of /experts; x [tokens, H], float64; matrices: gate, up, down projection; got: its tokens."""
    gate, up, down = (matrix.astype(np.float64) for matrix in matrices)
    given = x @ gate.T
    output = np.abs(((given / (1 + np.exp(-given))) * (x @ up.T)) @ down.T).max(axis=1)
    output[~got] = -1
    assert row["max_output"] == pytest.approx(output.max(), rel=1e-4)
    assert output[row["max_sequence"] * length + row["max_position"]] == pytest.approx(output.max(), rel=1e-4)
