"""Result files written with h5py, of any shape and content, without a run."""

import h5py
import numpy as np

import helpers
import recompute

SITE_ROW = np.dtype(
    [("sequence", "<i4"), ("feature", "<i4"), ("count", "<i4"), ("positive", "<i4"), ("negative", "<i4")]
    + [(name, "<f4") for name in ("min", "max", "max_abs", "mean_abs")]
)
SEQUENCE_FEATURE = np.dtype(
    [("sequence", "<i4"), ("feature", "<i4"), ("layer_percentage", "<f8"), ("seq_percentage", "<f8")]
    + [("max_magnitude", "<f4"), ("total_occurrences", "<i8"), ("sites_hit", "<i4"), ("positions_hit", "<i4")]
)
CLASSIFICATION = h5py.enum_dtype({"NONE": 0, "PROBABILISTIC": 1, "SYSTEMATIC": 2}, "<i4")
FEATURE = np.dtype(
    [("feature", "<i4"), ("sites_hit", "<i4"), ("layers_hit", "<i4"), ("positions_hit", "<i8")]
    + [(name, "<f8") for name in ("layer_percentage", "block_percentage", "seq_percentage")]
    + [("max_magnitude", "<f4")]
    + [(name, "<i8") for name in ("total_occurrences", "positive", "negative")]
    + [(name, "<f4") for name in ("q1", "median", "q3")]
    + [("share", "<f8"), ("sequences_qualified", "<i4"), ("classification", CLASSIFICATION)]
)
COUNTS = ("outlier_features", "systematic_features", "features_hit", "sequence_rows")
FRACTIONS = [f"{kind}_{of}_percentage" for of in ("layer", "seq") for kind in ("mean", "median")]
CONFIG = 'model:\n{\n  path = "m";\n};\ndata:\n{\n  tokens = "t.h5";\n  skip = 0;\n};\n'


def table(rows, dtype):
    """Structured array of a list of dicts."""
    found = np.zeros(len(rows), dtype)
    for at, row in enumerate(rows):
        for name in dtype.names:
            found[name][at] = row[name]
    return found


def write(path, sizes, sites, sequence_features, features=None, nll=None, **attributes):
    """sizes: (layers, sequences, length, hidden); sites: a table for each; features: none, if not given."""
    layers, sequences, length, hidden = sizes
    with h5py.File(path, "w") as file:
        attributes = {
            "format": "moe-outliers",
            "format_version": np.int32(1),
            "complete": np.int32(1),
            "model_name": "made/up",
            "architecture": "olmoe",
            "n_layers": layers,
            "hidden_size": hidden,
            "n_sequences": sequences,
            "sequence_length": length,
            "threshold": 6.0,
            "precision": "fp32",
            "device": "cpu",
            "n_ranks": 1,
            "config": CONFIG,
            "started": "2025-01-02T03:04:05Z",
            "finished": "2025-01-02T03:14:15Z",
        } | attributes
        for name, value in attributes.items():
            file.attrs[name] = value
        file["tokens"] = np.zeros((sequences, length), np.int32)
        for site, rows in enumerate(sites):
            file[f"layers/{site // 2:03d}/{helpers.SITES[site % 2]}"] = rows
        file["sequence_features"] = sequence_features
        file["features"] = np.zeros(0, FEATURE) if features is None else features
        for name in COUNTS:
            file[f"summary/{name}"] = np.int64(0)
        for name in FRACTIONS:
            file[f"summary/{name}"] = np.float64(0)
        file.create_dataset("summary/classification", data=np.int32(0), dtype=CLASSIFICATION)
        if nll is not None:
            file["perplexity/nll"] = nll
            file["perplexity/perplexity"] = np.exp(nll.astype(np.float64).mean()) if nll.size else np.nan
    return path


def of_activations(path, activations, nll=None, layer_fraction=0.25, position_fraction=0.06, **attributes):
    """The file of a run that met these values at its sites, float32 [2L, N, S, H]."""
    tables = recompute.Tables(activations, attributes.get("threshold", 6.0), layer_fraction, position_fraction)
    sites, sequences, length, hidden = activations.shape
    return write(
        path,
        (sites // 2, sequences, length, hidden),
        [table(tables.site_rows(site), SITE_ROW) for site in range(sites)],
        table(tables.sequence_features(), SEQUENCE_FEATURE),
        table(tables.features(), FEATURE),
        nll,
        **attributes,
    )
