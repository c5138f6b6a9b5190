"""What the models together show, as `moe-outliers report` says it (docs/methods.md). Needs numpy, h5py."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from study_results import Result

STRONGEST = 5  # features that the layer agreement is of, at most
SYSTEMATIC_ARCHITECTURE = "gpt_oss"
CRITERIA = ("threshold", "min_layer_fraction", "min_position_fraction", "systematic_fraction")


@dataclasses.dataclass
class Agreement:
    """Whether a model's strongest outlier features hit the same layers: all of them."""

    layer_agreement: float  # mean of their block_percentage; NaN if no feature qualifies
    features: np.ndarray  # the rows of /features, largest magnitude first


def layer_agreement(result: Result) -> Agreement:
    rows = result.features[result.qualified][:STRONGEST]
    mean = math.fsum(rows["block_percentage"].tolist()) / len(rows) if len(rows) else math.nan
    return Agreement(mean, rows)


def dead_experts(result: Result) -> list[tuple[int, int]] | None:
    """(layer, expert) of the routed experts that got no token; None if the file does not say."""
    if result.experts is None:
        return None
    rows = result.experts[(result.experts["tokens"] == 0) & (result.experts["shared"] == 0)]
    return [(int(row["layer"]), int(row["expert"])) for row in rows]


# --- the key finding: only gpt_oss models are systematic, so architecture matters more than size ---


def names(results: list[Result], classification: str) -> str:
    return ", ".join(result.name for result in results if result.classification == classification)


def is_comparable(results: list[Result]) -> bool:
    """The same criteria in all files; older ones do not say, which is NaN and equal to nothing."""
    criteria = [[result.number(name) for name in CRITERIA] for result in results]
    return all(a == b for row in criteria for a, b in zip(row, criteria[0]))


def only_gpt_oss(results: list[Result]) -> bool:
    return all(
        (result.classification == "SYSTEMATIC") == (result.attributes["architecture"] == SYSTEMATIC_ARCHITECTURE)
        for result in results
    )


def architecture_decides(results: list[Result]) -> bool:
    """No architecture in two classes, and a systematic model smaller than a probabilistic one."""
    classes: dict[object, set[str]] = {}
    for result in results:
        classes.setdefault(result.attributes["architecture"], set()).add(result.classification)
    sizes = {
        name: [result.number("parameters") for result in results if result.classification == name]
        for name in ("SYSTEMATIC", "PROBABILISTIC")
    }
    smaller = any(a < b for a in sizes["SYSTEMATIC"] for b in sizes["PROBABILISTIC"])
    return smaller and all(len(found) == 1 for found in classes.values())


def finding(results: list[Result]) -> str:
    """One paragraph: the finding as far as these files show it, or what is missing."""
    classes = {result.classification for result in results}
    missing = [name.lower() for name in ("SYSTEMATIC", "PROBABILISTIC") if name not in classes]
    if not is_comparable(results):
        return "Not comparable: the files have different criteria; give -s analysis.KEY=VALUE for all of them."
    if missing:
        return (
            "The files do not show whether architecture or size makes a model systematic: a "
            f"{' and a '.join(missing)} model is missing."
        )
    text = f"SYSTEMATIC: {names(results, 'SYSTEMATIC')}; PROBABILISTIC: {names(results, 'PROBABILISTIC')}"
    if "NONE" in classes:
        text += f"; without outlier features: {names(results, 'NONE')}"
    text += ". "
    if only_gpt_oss(results):
        text += "Only the gpt_oss models are systematic. "
    else:
        text += "That only gpt_oss models are systematic does not hold here. "
    if architecture_decides(results):
        return text + (
            "Architecture matters more than size: no architecture has models of two classes, and a systematic model is "
            "smaller than a probabilistic one."
        )
    return text + (
        "That architecture matters more than size is not shown: it takes architectures that are each of one class, and "
        "a systematic model smaller than a probabilistic one."
    )
