"""Which experts make the outlier features grow, as `moe-outliers report` says it (docs/methods.md). Needs numpy."""

from __future__ import annotations

import dataclasses

import numpy as np
from study_results import Result

EXPERTS_SHOWN = 3


@dataclasses.dataclass
class Growth:
    """Of an outlier feature."""

    total: float  # growth by all layers
    experts: np.ndarray  # the rows of /growth with the largest growth, of equal ones the first of the table


def growth_of_features(result: Result) -> list[Growth]:
    """In the order of /features; those that are not in it come last."""
    if result.growth is None or not len(result.growth):
        return []
    place = {feature: i for i, feature in enumerate(result.features["feature"].tolist())}
    found = []
    for feature in sorted(np.unique(result.growth["feature"]).tolist(), key=lambda f: (place.get(f, len(place)), f)):
        rows = result.growth[result.growth["feature"] == feature]
        _, of_each_layer = np.unique(rows["layer"], return_index=True)
        total = np.add.accumulate(rows["growth_of_layer"][of_each_layer])[-1]
        order = np.argsort(-rows["growth"], kind="stable")[:EXPERTS_SHOWN]
        found.append(Growth(float(total), rows[order]))
    return found
