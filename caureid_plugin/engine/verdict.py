"""Did training go well? Words for the label-free indicators, and what to change.

Which indicators are judged, and the limits, are read off runs whose mAP was known
(docs/indicators.md). They tell runs that went wrong from others, and nothing finer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

LEVELS = ("unknown", "good", "mixed", "bad")  # in the order of their weight
EPS = "CAUREID.CLUSTER.EPS"
LOOKED_BACK = 20  # clusterings: as many as a resumed run knows of the time before

Indicators = Mapping[str, Sequence[float]]


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


def judge(indicators: Indicators, *, num_cameras: int | None = None) -> Verdict:
    """Judges a run by its clusterings.

    Args:
        indicators: values over the clusterings, in order, by the names of
            :func:`caureid_plugin.clustering.label_indicators`. "largest_share" tells what to
            change, the others are judged; what is missing is not, values that are not finite are
            passed over.
        num_cameras: of the training set; with 1 no cluster can span cameras.

    Returns:
        the verdict; its level is that of the worst finding, "unknown" without any.
    """
    known = {name: [value for value in values if math.isfinite(value)]
             for name, values in indicators.items()}
    findings = [Finding(name, known[name][-1], *describe(known))
                for name, describe in JUDGED.items()
                if known.get(name) and not (name == "cross_camera" and num_cameras == 1)]
    level = max((finding.level for finding in findings), key=LEVELS.index, default="unknown")
    advice = dict.fromkeys(finding.advice for finding in findings if finding.advice)
    return Verdict(level, SUMMARIES[level], list(advice), findings)


SUMMARIES = {
    "unknown": "Whether training went well is not known: no indicator was logged.",
    "good": "By its label-free indicators training went well.",
    "mixed": "By its label-free indicators training went partly well.",
    "bad": "By its label-free indicators training went wrong.",
}


def _grade(value: float, bad: float, mixed: float, advice: str, sentences: Mapping[str, str]
           ) -> tuple[str, str, str]:
    """Level, sentence and advice of a figure that should be high: the limits are its levels'."""
    level = "bad" if value < bad else "mixed" if value < mixed else "good"
    return level, sentences[level], "" if level == "good" else advice


def _silhouette(known: Indicators) -> tuple[str, str, str]:
    value, largest = known["silhouette"][-1], (known.get("largest_share") or [0.0])[-1]
    advice = (f"Change {EPS} (tools/choose_eps.py), or start from weights of a re-identification "
              "network (MODEL.BACKBONE.PRETRAIN_PATH or MODEL.WEIGHTS).")
    if largest > 0.2:
        advice = (f"Lower {EPS}: the largest cluster holds {largest:.0%} of the images, different "
                  "people are taken for one.")
    return _grade(value, 0.2, 0.3, advice, {
        "bad": "clusters lie within each other, or hold few of the images",
        "mixed": "clusters lie close to each other, or leave many images out",
        "good": "clusters are tight, apart, and hold most images"})


def _outliers(known: Indicators) -> tuple[str, str, str]:
    shares = known["outlier_share"]
    share, lowest = shares[-1], min(shares[-LOOKED_BACK:])
    advice = f"Raise {EPS} a little, or lower CAUREID.CLUSTER.MIN_SAMPLES."
    if share > lowest + 0.1:
        return "bad", f"outliers grow while training (from {lowest:.0%} of the images)", (
            "Set CAUREID.LABELS extract, or lower SOLVER.BASE_LR: clusters decay.")
    if share > 0.6:
        return "bad", "most images are in no cluster and teach nothing", advice
    if share > 0.35:
        return "mixed", "many images are in no cluster and teach nothing", advice
    return "good", "most images are in a cluster", ""


def _stability(known: Indicators) -> tuple[str, str, str]:
    advice = ("Train longer (SOLVER.MAX_EPOCH, with later SOLVER.STEPS) or lower SOLVER.BASE_LR: "
              "clusters still change.")
    return _grade(known["stability"][-1], 0.35, 0.6, advice, {
        "bad": "from one clustering to the next most images change their company",
        "mixed": "clusters still change a good deal from one clustering to the next",
        "good": "clusters change little from one clustering to the next"})


def _cross_camera(known: Indicators) -> tuple[str, str, str]:
    advice = ("Clusters follow cameras more than people, unless hardly anybody passes two cameras: "
              "set CAUREID.CLUSTER.CAMERA_AWARE True, and start from weights of a "
              "re-identification network (MODEL.BACKBONE.PRETRAIN_PATH or MODEL.WEIGHTS).")
    return _grade(known["cross_camera"][-1], 0.3, 0.4, advice, {
        "bad": "most clusters hold images of one camera alone",
        "mixed": "more than half of the clusters hold images of one camera alone",
        "good": "many clusters hold images of several cameras"})


# indicator -> what it says: level, sentence, advice
JUDGED = {"silhouette": _silhouette, "outlier_share": _outliers, "stability": _stability,
          "cross_camera": _cross_camera}
