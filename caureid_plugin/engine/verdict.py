"""Did training go well? Words for the label-free indicators, and what to change.

The limits are read off runs whose mAP was known (docs/indicators.md): they tell runs that went
wrong from others, and nothing finer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

LEVELS = ("unknown", "good", "mixed", "bad")  # in the order of their weight
EPS = "CAUREID.CLUSTER.EPS"


class Finding(NamedTuple):
    """What one indicator says: name, last value, one of LEVELS, a sentence, advice or ""."""

    name: str
    value: float
    level: str
    sentence: str
    advice: str = ""


class Verdict(NamedTuple):
    """What the indicators say of a run: one of LEVELS, a sentence, what to change, the details."""

    level: str
    summary: str
    advice: list[str]
    findings: list[Finding]


def judge(indicators: Mapping[str, Sequence[float]], *, num_cameras: int | None = None) -> Verdict:
    """Judges a run by its clusterings.

    Args:
        indicators: values of each of INDICATORS over the clusterings, in order; other names are
            not looked at, and those that are missing are not judged.
        num_cameras: of the training set; with 1, clusters cannot span cameras.

    Returns:
        the verdict; its level is that of the worst finding, "unknown" without any.
    """
    findings = []
    for name, describe in INDICATORS.items():
        values = [value for value in indicators.get(name, ()) if math.isfinite(value)]
        if values and not (name == "cross_camera" and num_cameras == 1):
            findings.append(Finding(name, values[-1], *describe(values)))
    level = max((finding.level for finding in findings), key=LEVELS.index, default="unknown")
    advice = [finding.advice for finding in findings if finding.advice]
    return Verdict(level, SUMMARIES[level], list(dict.fromkeys(advice)), findings)


SUMMARIES = {
    "unknown": "Nothing is known of how training went: no clustering was logged.",
    "good": "By its label-free indicators training went well.",
    "mixed": "By its label-free indicators training went partly well.",
    "bad": "By its label-free indicators training went wrong.",
}


def _largest(values: list[float]) -> tuple[str, str, str]:
    share = values[-1]
    shown = f"the largest cluster holds {share:.0%} of the images"
    advice = f"Lower {EPS}: different people are taken for one."
    if share > 0.3:
        return "bad", f"{shown}: clusters have run together.", advice
    if share > 0.1:
        return "mixed", f"{shown}, more than one person's.", advice
    return "good", f"{shown}: clusters have not run together.", ""


def _outliers(values: list[float]) -> tuple[str, str, str]:
    share = values[-1]
    shown = f"{share:.0%} of the images are in no cluster"
    advice = f"Raise {EPS} a little, or lower CAUREID.CLUSTER.MIN_SAMPLES."
    if len(values) > 1 and share > values[0] + 0.05:
        return "bad", f"{shown}, more than at the start ({values[0]:.0%}).", (
            "Use CAUREID.LABELS extract, or lower SOLVER.BASE_LR: clusters decay while training.")
    if share > 0.65:
        return "bad", f"{shown} and teach nothing.", advice
    if share > 0.4:
        return "mixed", f"{shown} and teach nothing.", advice
    return "good", f"{shown}.", ""


def _silhouette(values: list[float]) -> tuple[str, str, str]:
    value = values[-1]
    if value < 0.1:
        return "bad", "clusters lie no closer together than apart.", (
            f"Change {EPS} (tools/choose_eps.py), or start from weights of a re-identification "
            "network (MODEL.BACKBONE.PRETRAIN_PATH, MODEL.WEIGHTS).")
    if value < 0.25:
        return "mixed", "clusters are hardly tighter than their surroundings.", ""
    return "good", "clusters are tight against their surroundings.", ""


def _stability(values: list[float]) -> tuple[str, str, str]:
    value = values[-1]
    longer = ("Train longer (SOLVER.MAX_EPOCH, and SOLVER.STEPS later), or lower SOLVER.BASE_LR: "
              "clusters still change.")
    if value < 0.35:
        return "bad", "from one clustering to the next most images change their company.", longer
    if value < 0.6:
        return "mixed", "clusters still change a good deal from one clustering to the next.", longer
    return "good", "clusters hardly change any more.", ""


def _cross_camera(values: list[float]) -> tuple[str, str, str]:
    share = values[-1]
    shown = f"{share:.0%} of the clusters hold images of several cameras"
    advice = ("Set CAUREID.CLUSTER.CAMERA_AWARE True: clusters separate cameras more than people, "
              "unless hardly anybody passes two of the cameras.")
    if share < 0.15:
        return "bad", f"{shown}: people are hardly recognised in another camera.", advice
    if share < 0.35:
        return "mixed", f"{shown}.", advice
    return "good", f"{shown}.", ""


# indicator -> what its values say: level, sentence, advice
INDICATORS = {
    "outlier_share": _outliers, "largest_share": _largest, "silhouette": _silhouette,
    "stability": _stability, "cross_camera": _cross_camera,
}
