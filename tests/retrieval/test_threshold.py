"""Thresholds are those that counting pairs one by one gives."""

import itertools
import json
import re

import numpy as np
import pytest
from caureid_plugin.retrieval import threshold as module
from caureid_plugin.retrieval.threshold import PairStatistics


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
            pairs = draw(given[1][given[1] >= 0], given[2][given[1] >= 0], rng, across=True)
            assert len({frozenset(pair) for pair in pairs.tolist()}) == len(pairs) > 700
    for one, all_ in ((drawn.same, whole.same), (drawn.different, whole.different)):
        assert np.mean(one) == pytest.approx(np.mean(all_), abs=0.05)
        assert np.std(one) == pytest.approx(np.std(all_), rel=0.15)


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


GOOD = PairStatistics.from_features(*bank()).to_json()


@pytest.mark.parametrize("bad", [
    [], {}, {**GOOD, "step": 0.1}, {**GOOD, "across": 1}, {**GOOD, "source": "x"},
    {**GOOD, "same": {"first": 0}}, {**GOOD, "same": {"first": 0, "counts": [-1, 5]}},
    {**GOOD, "same": {"first": 1000, "counts": [1, 1]}},
    {**GOOD, "same": {"first": 0, "counts": [10 ** 9]}},
    {**GOOD, "same": {"first": 0, "counts": ["1"]}},
    {**GOOD, "different": {"first": 0.5, "counts": [1]}},
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
