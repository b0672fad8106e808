"""Thresholds are those that counting pairs one by one gives."""

import itertools
import json
import re

import numpy as np
import pytest
from caureid_plugin.runs import threshold as module
from caureid_plugin.runs.threshold import PairStatistics


def bank(clusters=5, each=8, outliers=6, cameras=3, dim=8, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.repeat(np.arange(clusters), each), np.full(outliers, -1)])
    features = rng.standard_normal((clusters + 1, dim))[labels]
    features = features + 0.8 * rng.standard_normal((len(labels), dim))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    order = rng.permutation(len(labels))
    return features[order], labels[order], rng.integers(cameras, size=len(labels))


def pairs_by_hand(features, labels, camids, across):
    same, different = [], []
    for i, j in itertools.combinations(range(len(labels)), 2):
        if min(labels[i], labels[j]) < 0 or (across and camids[i] == camids[j]):
            continue
        value = sum(float(x) * float(y) for x, y in zip(features[i], features[j], strict=True))
        (same if labels[i] == labels[j] else different).append(value)
    return np.sort(same), np.sort(different)


@pytest.mark.parametrize("cameras", [3, 1])
def test_pairs(cameras):
    """Outliers take no part, and pairs of one camera only where there is no other."""
    given = bank(cameras=cameras)
    found = PairStatistics.from_features(*given)
    assert found.across == (cameras > 1)
    same, different = pairs_by_hand(*given, across=cameras > 1)
    np.testing.assert_allclose(found.same, same, atol=0.000501)
    np.testing.assert_allclose(found.different, different, atol=0.000501)


def test_pairs_are_drawn_where_there_are_many(monkeypatch):
    given = bank(clusters=4, each=40)
    whole = PairStatistics.from_features(*given)
    monkeypatch.setattr(module, "PAIRS", 500)
    drawn = PairStatistics.from_features(*given)
    again = PairStatistics.from_features(*given)
    other = PairStatistics.from_features(*given, seed=1)
    assert len(drawn.same) == len(drawn.different) == 500 < len(whole.same)
    assert (drawn.same == again.same).all() and (drawn.same != other.same).any()
    monkeypatch.setattr(module, "PAIRS", 1000)  # 3120 pairs of one, of which about 2080 count
    for seed in range(3):
        rng = np.random.default_rng(seed)
        for draw in (module._pairs_within, module._pairs_between):
            pairs = draw(given[1][given[1] >= 0], given[2][given[1] >= 0], rng, module.OTHER)
            assert len({frozenset(pair) for pair in pairs.tolist()}) == len(pairs) > 700
    for one, all_ in ((drawn.same, whole.same), (drawn.different, whole.different)):
        assert np.mean(one) == pytest.approx(np.mean(all_), abs=0.05)
        assert np.std(one) == pytest.approx(np.std(all_), rel=0.15)


def test_pairs_of_one_camera_are_kept_apart():
    """With the numbers of others that an image has in its cluster, counted one by one."""
    features, labels, camids = bank()
    found = PairStatistics.from_features(features, labels, camids)
    within = found.within
    assert not within.across and within.within is None and within.source == found.source
    alike = np.equal.outer(camids, camids)
    pairs = [(i, j) for i, j in itertools.combinations(range(len(labels)), 2)
             if alike[i, j] and min(labels[i], labels[j]) >= 0]
    for part, same in ((within.same, True), (within.different, False)):
        expected = sorted(float(features[i] @ features[j]) for i, j in pairs
                          if (labels[i] == labels[j]) == same)
        np.testing.assert_allclose(part, expected, atol=0.000501)
    rows = np.flatnonzero(labels >= 0)
    for statistics, one in ((found, False), (within, True)):
        mates = [sum(labels[i] == labels[j] and alike[i, j] == one for j in rows if j != i)
                 for i in rows]
        assert statistics.mates == pytest.approx(np.mean(mates)) and statistics.mates > 1
    alone = PairStatistics.from_features(*bank(cameras=1))
    assert alone.within is None and alone.mates == 7  # clusters of eight


@pytest.mark.parametrize("cameras", [3, 1])
def test_what_is_expected_is_what_searches_find(cameras):
    """Each image of the bank asked for, in an index of them all: the means are exact then."""
    features, labels, camids = bank(outliers=0, cameras=cameras)
    found = PairStatistics.from_features(features, labels, camids)
    value = 0.3
    similar = np.round(features @ features.T, 3) >= value
    counts = {"" if cameras == 1 else f"c{number}": count
              for number, count in enumerate(np.bincount(camids).tolist())}
    expected = found.expected(value, counts)
    ways = {module.ANY: np.ones((40, 40), bool)} if cameras == 1 else {
        module.OTHER: ~np.equal.outer(camids, camids), module.OWN: np.equal.outer(camids, camids)}
    assert expected.keys() == ways.keys()
    for name, way in ways.items():
        asked = way & ~np.eye(40, dtype=bool)
        same = np.equal.outer(labels, labels)
        right = (similar & asked & same).sum(1).mean()
        wrong = (similar & asked & ~same).sum(1).mean()
        # of people who are not the query's there are fewer in the bank than images
        part = wrong * (asked.sum() + 40 * (name != module.OTHER)) / (asked & ~same).sum()
        assert expected[name].right == pytest.approx(right, abs=0.03) and right > 0.5
        assert expected[name].wrong == pytest.approx(part, abs=0.05) and wrong > 0.5
        assert expected[name].share_right == pytest.approx(
            expected[name].right / (expected[name].right + expected[name].wrong))
    larger = found.expected(value, {name: 10 * count for name, count in counts.items()})
    for name, part in larger.items():
        assert part.right == expected[name].right
        assert part.wrong == pytest.approx(10 * expected[name].wrong)


def test_what_is_expected_where_less_is_known():
    same, different = np.full(30, 0.9), np.linspace(-1, 0.5, 100)
    assert PairStatistics(same, different).expected(0.5, {"a": 9}) == {}  # of an older version
    found = PairStatistics(same, different, mates=2.5)
    assert found.expected(0.8, {"": 400}) == {module.OTHER: (2.5, 4)}  # none of 100 pairs: one
    assert found.expected(0.8, {"a": 100, "b": 300}) == {module.OTHER: (2.5, 1.5)}
    assert found.expected(0.8, {"a": 400}) == found.expected(0.8, {}) == {}
    nothing = found.expected(1.5, {"": 400})[module.OTHER]
    assert nothing.right == 0 and nothing.share_right == 0
    assert np.isnan(module.Expected(0, 0).share_right)


def why_of(reason):
    return module.RunVerdict("bad", reason).why_withheld()


def test_only_of_a_bad_run_same_is_withheld():
    for level in module.LEVELS:
        verdict = module.RunVerdict(level, "It went as it went.")
        why = verdict.why_withheld()
        assert bool(why) == (level == "bad") and verdict.why_withheld(True) == ""
    assert why_of("It went as it went.") == why_of(
        "By its indicators training went wrong: It went as it went.") == (
        "Same or different is not shown, because training went wrong (It went as it went). "
        "--despite-verdict shows it.")


def test_threshold_is_that_of_trying_all():
    found = PairStatistics.from_features(*bank())
    tried = [(step / 1000, np.mean(found.different >= step / 1000 - 1e-6),
              np.mean(found.same < step / 1000 - 1e-6)) for step in range(-1000, 1002)]
    count = len(found.different)
    assert 400 < count < 1000 and found.lowest_rate == 1 / count
    for given, rate in ((0.5, 0.5), (0.05, 0.05), (0.003, 0.003), (None, 1 / count)):
        expected = next(row for row in tried if row[1] <= rate)
        assert found.threshold(given) == pytest.approx(expected)
    least = min(abs(matches - misses) for _, matches, misses in tried)
    equal = found.equal_errors()
    assert abs(equal.false_match_rate - equal.false_non_match_rate) == pytest.approx(least)
    assert any(equal == pytest.approx(row) for row in tried)


def test_rates_that_cannot_be():
    found = PairStatistics(np.linspace(0, 1, 50), np.linspace(-1, 0.5, 50))
    for rate in (0, 1, float("nan")):
        with pytest.raises(ValueError, match=rf"rate {rate} must lie between 0 and 1"):
            found.threshold(rate)
    with pytest.raises(ValueError, match=r"0.001 is too low .* 50 pairs .* ask for 0.022 or more"):
        found.threshold(0.001)
    for count in (30, 99, 101, 6666):  # what is said to be asked for is taken
        found = PairStatistics(np.linspace(0, 1, 50), np.linspace(-1, 0.5, count))
        with pytest.raises(ValueError, match="is too low") as error:
            found.threshold(0.99 / count)
        found.threshold(float(re.search("ask for (.*) or more", str(error.value))[1]))
        # one in a thousand is suggested, if so many pairs tell it
        assert found.threshold() == found.threshold(max(0.001, 1 / count))
    assert PairStatistics(np.ones(30), np.ones(30)).threshold(0.5) == (1.001, 0, 1)  # above all


def test_json_is_exact_and_small():
    for seed in range(3):
        found = PairStatistics.from_features(*bank(seed=seed), source="memory bank")
        text = json.dumps(found.to_json())
        again = PairStatistics.from_json(json.loads(text))
        assert (again.same == found.same).all() and (again.different == found.different).all()
        assert (again.across, again.source) == (True, "memory bank") and len(text) < 20_000
        assert again.threshold(0.01) == found.threshold(0.01)
        assert again.mates == found.mates and again.to_json() == found.to_json()
        assert again.within.mates == found.within.mates
        old = {key: part for key, part in found.to_json().items() if key not in ("mates", "within")}
        again = PairStatistics.from_json(old)
        assert again.mates is again.within is None and again.to_json() == old


GOOD = PairStatistics.from_features(*bank()).to_json()


@pytest.mark.parametrize("bad", [
    [], {}, {**GOOD, "step": 0.1}, {**GOOD, "across": 1}, {**GOOD, "source": "x"},
    {**GOOD, "same": {"first": 0}}, {**GOOD, "same": {"first": 0, "counts": [-1, 5]}},
    {**GOOD, "same": {"first": 1000, "counts": [1, 1]}},
    {**GOOD, "same": {"first": 0, "counts": [10 ** 9]}},
    {**GOOD, "same": {"first": 0, "counts": ["1"]}},
    {**GOOD, "different": {"first": 0.5, "counts": [1]}}, 5, None, {**GOOD, "mates": -1},
    {**GOOD, "mates": float("nan")}, {**GOOD, "mates": True}, {**GOOD, "mates": 10 ** 400},
    {**GOOD, "within": 5},
    {**GOOD, "within": {}},
])
def test_json_of_something_else(bad):
    with pytest.raises(ValueError, match="no pair statistics"):
        PairStatistics.from_json(bad)


def test_too_few_pairs():
    features, labels, camids = bank(clusters=1)
    with pytest.raises(ValueError, match="0 pairs of images in different clusters.*takes 20"):
        PairStatistics.from_features(features, labels, camids)
    with pytest.raises(ValueError, match="0 pairs of images in the same cluster"):
        PairStatistics.from_features(features, np.full(len(labels), -1), camids)
