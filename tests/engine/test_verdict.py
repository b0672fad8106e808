"""Verdicts on the figures of runs that went well or wrong (docs/indicators.md)."""

import re

import pytest
from caureid_plugin import compat
from caureid_plugin.engine.verdict import JUDGED, LEVELS, LOOKED_BACK, judge

NAN = float("nan")
# values over the clusterings of runs that were measured, and how they ended
WELL = {"silhouette": [0.14, 0.22, 0.25, 0.30, 0.33, 0.35], "stability": [0.43, 0.58, 0.68, 0.73],
        "outlier_share": [0.64, 0.46, 0.41, 0.32, 0.27, 0.23], "largest_share": [0.02, 0.02]}
MERGED = {"silhouette": [-0.01, -0.05, -0.07], "stability": [0.09, 0.25, 0.21],
          "outlier_share": [0.18, 0.16, 0.11], "largest_share": [0.73, 0.72, 0.83]}
DECAYED = {"silhouette": [0.14, 0.09, 0.11], "stability": [0.55, 0.76, 0.66],
           "outlier_share": [0.64, 0.78, 0.75], "largest_share": [0.02, 0.02, 0.02]}
FEW = {"silhouette": [0.05, 0.18, 0.24], "stability": [0.24, 0.69, 0.78],
       "outlier_share": [0.90, 0.66, 0.57], "largest_share": [0.01, 0.01, 0.01]}


def levels(indicators):
    return {finding.name: finding.level for finding in judge(indicators).findings}


def test_a_run_that_went_well():
    verdict = judge(WELL)
    assert (verdict.level, verdict.advice) == ("good", [])
    assert {f.name: f.value for f in verdict.findings} == {
        "silhouette": 0.35, "outlier_share": 0.23, "stability": 0.73}


def test_clusters_that_ran_together_ask_for_a_smaller_eps():
    verdict = judge(MERGED)
    assert verdict.level == "bad"
    assert any(text.startswith("Lower CAUREID.CLUSTER.EPS") and "83%" in text
               for text in verdict.advice)
    assert not any("Raise CAUREID.CLUSTER.EPS" in text for text in verdict.advice)


def test_clusters_that_follow_cameras_look_good_but_for_one_figure():
    cameras = {"silhouette": [0.3, 0.44], "stability": [0.6, 0.72], "outlier_share": [0.3, 0.09],
               "cross_camera": [0.3, 0.2], "largest_share": [0.03, 0.03]}
    assert levels(cameras) == {"silhouette": "good", "outlier_share": "good", "stability": "good",
                               "cross_camera": "bad"}
    assert judge(cameras).level == "bad" and judge(cameras, num_cameras=1).level == "good"
    assert "CAUREID.CLUSTER.CAMERA_AWARE True" in judge(cameras).advice[0]


def test_outliers_that_grow_are_no_matter_of_eps():
    assert levels(DECAYED)["outlier_share"] == "bad"
    advice = " ".join(judge(DECAYED).advice)
    assert "CAUREID.LABELS extract" in advice and "Raise CAUREID.CLUSTER.EPS" not in advice


def test_a_resumed_run_gets_the_verdict_of_a_whole_one():
    """Of the time before it was resumed it knows the last figures alone."""
    assert LOOKED_BACK == compat.RunState.WINDOW
    shares = [0.2, *[0.33] * LOOKED_BACK]
    assert levels({"outlier_share": shares}) == {"outlier_share": "good"}
    assert levels({"outlier_share": shares[1:]}) == {"outlier_share": "good"}
    assert levels({"outlier_share": shares[:-1]}) == {"outlier_share": "bad"}


def test_many_outliers_ask_for_a_larger_eps():
    assert levels(FEW) == {"silhouette": "mixed", "outlier_share": "mixed", "stability": "good"}
    verdict = judge(FEW)
    assert verdict.level == "mixed"
    assert any(text.startswith("Raise CAUREID.CLUSTER.EPS") for text in verdict.advice)


@pytest.mark.parametrize("name, good, bad", [
    ("silhouette", 0.6, -0.2), ("outlier_share", 0.05, 0.95), ("stability", 0.95, 0.05),
    ("cross_camera", 0.9, 0.0)])
def test_levels_get_worse_from_one_end_to_the_other(name, good, bad):
    path = [good + (bad - good) * i / 40 for i in range(41)]
    found = [LEVELS.index(levels({name: [value]})[name]) for value in path]
    assert found == sorted(found) and set(found) == {1, 2, 3}


def test_the_worst_finding_is_the_verdict():
    for name, bad in (("silhouette", 0.0), ("outlier_share", 0.99), ("stability", 0.0)):
        assert judge({**WELL, name: [bad]}).level == "bad"


def test_what_is_not_known_is_not_judged():
    for nothing in ({}, {"stability": []}, {"silhouette": [NAN]}, {"largest_share": [0.9]}):
        verdict = judge(nothing)
        assert (verdict.level, verdict.findings, verdict.advice) == ("unknown", [], [])
    assert levels({"silhouette": [0.5, NAN]}) == {"silhouette": "good"}
    assert "not known" in judge({}).summary


def test_advice_names_keys_that_exist(cfg):
    texts = [text for run in (MERGED, DECAYED, FEW, {name: [0.0] for name in JUDGED},
                              {"outlier_share": [0.9]}) for text in judge(run).advice]
    keys = {key for text in texts for key in re.findall(r"(?:[A-Z_]+\.)+[A-Z_]+[A-Z]", text)}
    assert len(keys) >= 6
    for key in keys:
        node = cfg
        for part in key.split("."):
            node = node[part]
