"""The intervals of a result file, computed again with NumPy by the definitions in docs/methods.md; shares nothing with the
program. Takes recompute.Tables."""

import math

import numpy as np
import pytest

STEP = 0x9E3779B97F4A7C15
NORMAL = 1.959963984540054
STUDENT = {2: 12.706204736, 3: 4.302652730, 4: 3.182446305, 5: 2.776445105, 16: 2.131449546}  # by sequences, 97.5 %
SCALE = math.sqrt(math.log(2) / math.log1p(math.exp(-1)))


def mix(z):
    """splitmix64."""
    with np.errstate(over="ignore"):
        z = np.asarray(z, np.uint64) + np.uint64(STEP)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def draw(draws, n, seed):
    """[draws, n]: how often each sequence is in each draw."""
    with np.errstate(over="ignore"):
        random = mix(mix(seed) + np.arange(draws * n, dtype=np.uint64) * np.uint64(STEP)).reshape(draws, n)
    chosen = ((random >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32)
    return (chosen[:, :, None] == np.arange(n, dtype=np.uint64)).sum(axis=1).astype(np.float64)


def studentised(values, weights):
    """Bootstrap-t interval of the mean."""
    n = len(values)
    mean, error = values.mean(), values.std(ddof=1) / math.sqrt(n)
    if error == 0:
        return mean, mean
    means = weights @ values / n
    variances = np.maximum((weights @ (values - mean) ** 2 - n * (means - mean) ** 2) / (n - 1), 0)
    t = (means - mean) / np.maximum(np.sqrt(variances / n), error / 4)
    low, high = np.quantile(t, [0.025, 0.975])
    return mean - high * error, mean - low * error


def union_moments(hit):
    """Mean and deviation over all draws of how many of the rows of hit [sites, N] a draw hits."""
    n = hit.shape[1]
    sets = hit.astype(np.int64)
    sizes = sets.sum(axis=1)
    either = sizes[:, None] + sizes[None] - sets @ sets.T
    missed = ((n - np.arange(n + 1)) / n) ** n
    covariance = missed[either] - np.outer(missed[sizes], missed[sizes])
    return (1 - missed[sizes]).sum(), math.sqrt(max(covariance.sum(), 0))


def union_interval(hit):
    total, n = hit.shape
    found = hit.any(axis=1).sum()
    half = STUDENT[n] * union_moments(hit)[1]
    one = (1 - 1 / n) ** n
    high = found + SCALE * (half + math.sqrt(one * (1 - one)))
    return max(found - SCALE * half, 0) / total, min(high, total) / total


def centred(observed, values, n, most=None):
    values = values[~np.isnan(values)]
    if not len(values) or math.isnan(observed):
        return math.nan, math.nan
    scale, mean = STUDENT[n] / NORMAL, values.mean()
    low, high = np.quantile(values, [0.025, 0.975]) - mean
    low, high = observed + scale * min(low, 0), observed + scale * max(high, 0)
    if most is not None:
        low, high, most = math.floor(low + 0.05), math.ceil(high - 0.05), most
    else:
        most = 1
    return max(low, 0), max(min(high, most), 0)


class Bootstrap:
    """features: {feature: {column: value}}; summary: {name: (low, high)}."""

    def __init__(self, tables, draws, seed):
        self.tables, self.weights = tables, draw(draws, tables.n_sequences, seed)
        self.features, columns = {}, []
        for row in tables.features():
            columns.append(self.feature(row))
        self.summary = self.summarise(columns)

    def feature(self, row):
        """Fills self.features; returns layer and position fractions per draw, NaN where it does not qualify, and
        whether it is SYSTEMATIC."""
        t, h = self.tables, row["feature"]
        n, sites = t.n_sequences, t.site_hit[:, :, h]
        layers = sites[0::2] | sites[1::2]
        positions = t.position_hit[:, h].astype(np.float64)
        drawn = self.weights > 0
        spread = []
        for hit in (sites, layers):
            found = (drawn.astype(np.int64) @ hit.T.astype(np.int64) > 0).sum(axis=1)
            spread.append((hit.any(axis=1).sum() + SCALE * (found - union_moments(hit)[0])) / len(hit))
        wider = math.sqrt(n / (n - 1))
        total = positions.sum()
        position = (total + wider * (self.weights @ positions - total)) / (n * t.length)
        qualifies = (spread[0] >= t.layer_fraction) & (position >= t.position_fraction)
        systematic = qualifies & (spread[1] >= t.systematic_fraction)
        low, high = studentised(positions / t.length, self.weights)
        self.features[h] = {
            "layer_percentage": union_interval(sites),
            "block_percentage": union_interval(layers),
            "seq_percentage": (max(low, 0), min(high, 1)),
            "shares": (qualifies.mean(), systematic.mean()),
        }
        return np.where(qualifies, spread[0], np.nan), np.where(qualifies, position, np.nan), systematic

    def summarise(self, columns):
        observed, t = self.tables.summary(), self.tables
        draws, n = len(self.weights), t.n_sequences
        layers = np.array([c[0] for c in columns]).reshape(-1, draws)
        positions = np.array([c[1] for c in columns]).reshape(-1, draws)
        systematic = np.array([c[2] for c in columns]).reshape(-1, draws)
        counts = {"outlier_features": (~np.isnan(layers)).sum(axis=0), "systematic_features": systematic.sum(axis=0)}
        found = {k: centred(float(observed[k]), v.astype(np.float64), n, t.hidden) for k, v in counts.items()}
        some = ~np.isnan(layers).all(axis=0)
        for name, values in (("layer", layers[:, some]), ("seq", positions[:, some])):
            for kind, reduce in (("mean", np.nanmean), ("median", np.nanmedian)):
                key = f"{kind}_{name}_percentage"
                per_draw = reduce(values, axis=0) if values.size else np.array([])
                found[key] = centred(observed[key], per_draw, n)
        return found


def perplexity(nll, draws, seed):
    low, high = studentised(nll.astype(np.float64).mean(axis=1), draw(draws, len(nll), seed))
    return math.exp(low), math.exp(high)


def assert_intervals(result, expected):
    """result: the root, or the group of a further threshold."""
    draws = len(expected.weights)
    for row in result["features"][:]:
        other = expected.features[row["feature"]]
        for name in ("layer_percentage", "block_percentage", "seq_percentage"):
            found = (float(row[f"{name}_low"]), float(row[f"{name}_high"]))
            assert found == pytest.approx(other[name], rel=1e-7, abs=1e-9), (row["feature"], name)
        shares = (float(row["qualifies_share"]), float(row["systematic_share"]))
        assert shares == pytest.approx(other["shares"], abs=2 / draws)  # a draw may lie on a criterion
    for name, (low, high) in expected.summary.items():
        found = [float(result[f"summary/{name}_{end}"][()]) for end in ("low", "high")]
        assert found == pytest.approx([low, high], rel=1e-6, abs=1e-9, nan_ok=True), name
