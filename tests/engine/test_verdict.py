"""Verdicts on the figures of runs that went well or wrong (docs/indicators.md)."""

import re

import pytest
from caureid_plugin import compat
from caureid_plugin.engine.verdict import (
    LEVELS,
    LOOKED_BACK,
    MOST_STEPS,
    STEPS,
    collect,
    judge,
)

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


PAST = {"MODEL.BACKBONE.PRETRAIN": True, "SOLVER.MAX_EPOCH": 50, "SOLVER.ITERS_PER_EPOCH": 400}


@pytest.fixture
def of(cfg):
    """Judges figures of a run of 20,000 steps that started from trained weights."""
    def judged(figures, keys=(), **options):
        mine = cfg.clone()
        mine.defrost()
        for name, value in {**PAST, **dict(keys)}.items():
            mine.merge_from_list([name, value])
        return judge(figures, mine, **options)
    return judged


@pytest.fixture
def levels(of):
    return lambda figures: {finding.name: finding.level for finding in of(figures).findings}


def test_a_run_that_went_well(of):
    verdict = of(WELL)
    assert (verdict.level, verdict.note, verdict.advice) == ("good", "", [])
    assert {f.name: f.value for f in verdict.findings} == {
        "silhouette": 0.35, "outlier_share": 0.23, "stability": 0.73}


def test_clusters_that_ran_together_ask_for_a_smaller_eps(of):
    verdict = of(MERGED, {"CAUREID.CLUSTER.EPS": 0.7})
    assert verdict.level == "bad"
    assert verdict.advice[0].startswith(
        "Most likely helps: a lower CAUREID.CLUSTER.EPS than 0.7")
    assert "83%" in verdict.findings[0].meaning
    assert not any("higher" in text for text in verdict.advice)
    large = of({"silhouette": [0.5], "largest_share": [0.3]})  # of few people
    assert large.level == "good" and "taken for one" not in large.findings[0].meaning


def test_clusters_that_follow_cameras_look_good_but_for_one_figure(of, levels):
    cameras = {"silhouette": [0.3, 0.44], "stability": [0.6, 0.72], "outlier_share": [0.3, 0.09],
               "cross_camera": [0.3, 0.2], "largest_share": [0.03, 0.03]}
    assert levels(cameras) == {"silhouette": "good", "outlier_share": "good", "stability": "good",
                               "cross_camera": "bad"}
    assert of(cameras).level == "bad" and of(cameras, num_cameras=1).level == "good"
    plain = {"CAUREID.CLUSTER.CAMERA_AWARE": False}
    assert "CAMERA_AWARE True" in " ".join(of(cameras, plain, num_cameras=3).advice)
    # with two cameras plain neighbours measured higher
    two = " ".join(of(cameras, plain, num_cameras=2).advice)
    assert "CAMERA_AWARE" not in two and "STANDARDIZE" not in two and two
    key = "CAUREID.CLUSTER.CAMERA_AWARE"
    assert f"{key} True" in of(cameras, {key: False}).advice[0]


def test_no_advice_asks_for_what_is_set(of):
    """Each key that a step names is set in turn: the step is gone, and the next one comes first."""
    camera = {"cross_camera": [0.2], "outlier_share": [0.2, 0.2]}
    few, decayed = {"outlier_share": [0.9]}, {"outlier_share": [0.2, 0.5]}
    cluster = "CAUREID.CLUSTER."
    for figures, keys in (
            (camera, {"MODEL.BACKBONE.PRETRAIN": False, cluster + "CAMERA_AWARE": False,
                      cluster + "STANDARDIZE": False}),
            (few, {cluster + "CAMERA_AWARE": True, cluster + "EPS_FIRST": 0.0,
                   cluster + "MIN_SAMPLES": 3}),
            (decayed, {"CAUREID.LABELS": "bank"})):
        good = {"MODEL.BACKBONE.PRETRAIN": True, cluster + "CAMERA_AWARE": True,
                cluster + "STANDARDIZE": True, cluster + "EPS_FIRST": 0.6,
                cluster + "MIN_SAMPLES": 2, "CAUREID.LABELS": "extract"}
        for key in keys:
            name = ("CLUSTER." in key and key.split(".")[-1]) or key
            others = {k: v for k, v in {**good, **keys}.items() if k != key}
            bad = {**others, key: keys[key]} if key in keys else others
            if keys[key] == good[key]:
                continue
            assert name in " ".join(of(figures, bad).advice), (key, bad)
            assert f"{name} " not in " ".join(of(figures, {**bad, key: good[key]}).advice), key


def test_random_weights_are_the_first_suspect(of):
    advice = of(MERGED, {"MODEL.BACKBONE.PRETRAIN": False}).advice
    assert "this run started from random ones" in advice[0]
    assert "lower CAUREID.CLUSTER.EPS" in advice[1]
    assert not any("random" in text for text in of(
        MERGED, {"MODEL.BACKBONE.PRETRAIN": False, "MODEL.WEIGHTS": "other.pth"}).advice)


def test_a_first_look_is_said(of):
    assert "a first look: 800 steps" in of(
        WELL, {"SOLVER.MAX_EPOCH": 8, "SOLVER.ITERS_PER_EPOCH": 100}).note
    assert of(WELL, {"SOLVER.MAX_EPOCH": 8, "SOLVER.ITERS_PER_EPOCH": 0}).note == ""


def test_neighbours_of_the_own_camera_that_become_more(of, levels):
    """83 % before and 91 % after: training taught the network its cameras."""
    assert levels({"own_camera": [0.83, 0.86, 0.91]}) == {"own_camera": "bad"}
    assert levels({"own_camera": [0.83, 0.86]}) == {"own_camera": "mixed"}
    assert levels({"own_camera": [0.45, 0.31]}) == {"own_camera": "good"}
    finding, = of({"own_camera": [0.83, 0.86, 0.91]}).findings
    assert "91% of an image's nearest neighbours are of its own camera, first 83%" in (
        finding.meaning)
    assert of({"own_camera": [0.83, 0.91]}, num_cameras=1).level == "unknown"
    assert of({"own_camera": [0.5]}).level == "unknown"  # nothing to compare with


def test_map_counts_where_there_are_labels(of, levels):
    assert levels({**WELL, "mAP": [59.4], "start/mAP": [9.0]})["mAP"] == "good"
    assert of({**WELL, "mAP": [2.6], "start/mAP": [1.1]}).level == "bad"
    assert of({**WELL, "mAP": [20.0]}).level == "mixed"
    worse = of({**WELL, "mAP": [30.0, 29.0], "start/mAP": [41.9]})
    assert worse.level == "bad" and "mAP 29.0, before 41.9" in worse.findings[0].meaning
    assert worse.findings[0].figure == "29.0"
    assert of({**WELL, "mAP": [30.0, 28.9]}).level == "bad"
    for series, start in (([69.9], [70.0]), ([60.0, 26.0], [10.0])):  # a little, or from a peak
        assert levels({"mAP": series, "start/mAP": start}) == {"mAP": "mixed"}
    assert of({**WELL, "start/mAP": [41.9]}).level == "good"


def test_outliers_that_grow_are_no_matter_of_eps(of, levels):
    assert levels(DECAYED)["outlier_share"] == "bad"
    advice = " ".join(of(DECAYED, {"CAUREID.LABELS": "bank"}).advice)
    assert "CAUREID.LABELS extract" in advice and "CLUSTER.EPS " not in advice


def test_a_resumed_run_gets_the_verdict_of_a_whole_one(levels):
    """Of the time before it was resumed it knows only the last figures."""
    assert LOOKED_BACK == compat.RunState.WINDOW
    for name, past, same in (("outlier_share", 0.2, 0.33), ("own_camera", 0.2, 0.4),
                             ("mAP", 60.0, 40.0)):
        values = [past, *[same] * LOOKED_BACK]
        assert levels({name: values}) == levels({name: values[1:]}) == {name: "good"}
        assert levels({name: values[:-1]}) == {name: "bad"}


def test_many_outliers_ask_for_a_larger_eps(of, levels):
    assert levels(FEW) == {"silhouette": "mixed", "outlier_share": "mixed", "stability": "good"}
    verdict = of(FEW, {"CAUREID.CLUSTER.EPS": 0.4})
    assert verdict.level == "mixed"
    assert any("a higher CAUREID.CLUSTER.EPS than 0.4" in text for text in verdict.advice)


@pytest.mark.parametrize("name, good, bad", [
    ("silhouette", 0.6, -0.2), ("outlier_share", 0.05, 0.95), ("stability", 0.95, 0.05),
    ("cross_camera", 0.9, 0.0), ("mAP", 90.0, 0.0)])
def test_levels_get_worse_from_one_end_to_the_other(levels, name, good, bad):
    path = [good + (bad - good) * i / 40 for i in range(41)]
    found = [LEVELS.index(levels({name: [value]})[name]) for value in path]
    assert found == sorted(found) and set(found) == {1, 2, 3}


def test_the_worst_finding_is_the_verdict_and_its_step_the_first(of):
    for name, bad in (("silhouette", 0.0), ("outlier_share", 0.99), ("stability", 0.0)):
        verdict = of({**WELL, name: [bad]})
        assert verdict.level == "bad" and len(verdict.advice) <= MOST_STEPS
    worst = of({"cross_camera": [0.35], "stability": [0.1]}, {"SOLVER.MAX_EPOCH": 9})
    assert "more than 9 epochs" in worst.advice[0]


def test_what_is_not_known_is_not_judged(of, levels):
    for nothing in ({}, {"stability": []}, {"largest_share": [0.9]}, {"largest_share": [NAN]}):
        verdict = of(nothing)
        assert (verdict.level, verdict.findings, verdict.advice) == ("unknown", [], [])
    assert "not known" in of({}).summary


@pytest.mark.parametrize("name", ["silhouette", "own_camera", "mAP"])
@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf")])
def test_a_last_value_that_is_not_finite_is_bad(of, levels, name, value):
    for series in ([value], [50.0, value]):
        verdict = of({**WELL, name: series})
        finding = next(found for found in verdict.findings if found.name == name)
        assert finding.level == verdict.level == "bad" and "not finite" in finding.meaning
        assert finding.figure.strip("-") in ("nan", "inf") and "BASE_LR" in verdict.advice[0]
    assert levels({name: [0.5, value, 0.5]}) == levels({name: [0.5, 0.5]})  # it has passed
    assert of({"own_camera": [NAN]}, num_cameras=1).level == "unknown"


def test_advice_names_keys_that_exist(cfg):
    random = cfg.clone()
    random.defrost()
    random.merge_from_list(["MODEL.BACKBONE.PRETRAIN", False, "CAUREID.LABELS", "bank"])
    texts = [text for choice in (cfg, random) for step in STEPS.values()
             if (text := step(choice))]
    keys = {key for text in texts for key in re.findall(r"(?:[A-Z_]+\.)+[A-Z_]+[A-Z]", text)}
    assert len(keys) >= 8
    for key in keys:
        node = cfg
        for part in key.split("."):
            node = node[part]


def test_each_test_set_counts_by_itself(of, levels):
    """One that falls is bad, however much another rises: their mean would hide it."""
    sets = {"A/mAP": [50.0, 30.0], "start/A/mAP": [48.0], "B/mAP": [50.0, 72.0],
            "start/B/mAP": [48.0]}
    assert levels(collect(sets)) == {"A/mAP": "bad", "B/mAP": "good"}
    assert of({**WELL, **sets}).level == "bad"
    # one that joined later is not mixed with other evaluations of the first
    assert collect({"A/mAP": [50, 40, 30, 10, 5], "B/mAP": [50, 45]})["A/mAP"][-1] == 5


def test_a_high_eps_is_not_to_be_raised(of):
    for eps in (0.5, 0.7, 0.98):
        found = of({"outlier_share": [0.9]}, {"CAUREID.CLUSTER.EPS": eps,
                                              "CAUREID.CLUSTER.CAMERA_AWARE": True})
        assert any("EPS_FIRST" in text for text in found.advice) == (eps < 0.6)
        assert any("a higher CAUREID.CLUSTER.EPS" in text for text in found.advice) == (eps < 0.9)


def test_figures_by_their_keys():
    found = collect({"labels/silhouette": [0.1, 0.2], "One/mAP": [10.0, 30.0], "loss": [1.0],
                     "Two/mAP": [20.0, 50.0], "start/One/mAP": [4.0], "start/Two/mAP": [8.0],
                     "One/mINP": [1.0]})
    assert {name: values for name, values in found.items() if values} == {
        "silhouette": [0.1, 0.2], "One/mAP": [10.0, 30.0], "Two/mAP": [20.0, 50.0],
        "start/One/mAP": [4.0], "start/Two/mAP": [8.0]}
    single = collect({"mAP": [10.0], "start/mAP": [5.0]})
    assert (single["mAP"], single["start/mAP"]) == ([10.0], [5.0])
