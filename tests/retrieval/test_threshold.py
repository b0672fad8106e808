"""Thresholds are those that counting pairs one by one gives."""

import itertools
import json

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
    given = bank(cameras=cameras)
    found = PairStatistics.from_features(*given)
    assert found.across == (cameras > 1)
    same, different = pairs_by_hand(*given, across=cameras > 1)
    # all pairs of one cluster; those of two are drawn, with replacement
    np.testing.assert_allclose(found.same, same, atol=0.000501)
    assert len(found.different) > 50 * len(different)
    for share in (0.02, 0.5, 0.98):
        assert np.quantile(found.different, share) == pytest.approx(
            np.quantile(different, share), abs=0.02)


def test_outliers_and_pairs_of_one_camera_take_no_part():
    features, labels, camids = bank()
    before = PairStatistics.from_features(features, labels, camids)
    features = features.copy()
    features[labels < 0] = -features[labels < 0]
    after = PairStatistics.from_features(features, labels, camids)
    assert (before.same == after.same).all() and (before.different == after.different).all()


def test_pairs_are_drawn_where_there_are_many(monkeypatch):
    given = bank(clusters=4, each=40)
    whole = PairStatistics.from_features(*given)
    monkeypatch.setattr(module, "PAIRS", 500)
    drawn = PairStatistics.from_features(*given)
    again = PairStatistics.from_features(*given)
    other = PairStatistics.from_features(*given, seed=1)
    assert len(drawn.same) == len(drawn.different) == 500 < len(whole.same)
    assert (drawn.same == again.same).all() and (drawn.same != other.same).any()
    for one, all_ in ((drawn.same, whole.same), (drawn.different, whole.different)):
        assert np.mean(one) == pytest.approx(np.mean(all_), abs=0.05)
        assert np.std(one) == pytest.approx(np.std(all_), rel=0.15)


@pytest.mark.parametrize("rate", [None, 0.5, 0.05, 0.003])
def test_threshold_is_that_of_trying_all(rate):
    found = PairStatistics.from_features(*bank())
    value, matches, misses = found.threshold(rate)
    tried = []
    for step in range(-1000, 1002):
        above = np.mean([s >= step / 1000 - 1e-6 for s in found.different[:4000]])
        tried.append((step / 1000, above))
    part = PairStatistics(found.same, found.different[:4000])
    if rate is not None:
        lowest = next(v for v, share in tried if share <= rate)
        assert part.threshold(rate).value == pytest.approx(lowest)
    assert matches == pytest.approx(np.mean(found.different >= value - 1e-6))
    assert misses == pytest.approx(np.mean(found.same < value - 1e-6))
    if rate is None:
        worse = [abs(np.mean(found.different >= v - 1e-6) - np.mean(found.same < v - 1e-6))
                 for v in (value - 0.005, value + 0.005)]
        assert abs(matches - misses) <= min(worse)
    else:
        assert matches <= rate < np.mean(found.different >= value - 0.0011)


def test_rates_that_cannot_be():
    found = PairStatistics(np.linspace(0, 1, 50), np.linspace(-1, 0.5, 50))
    for rate in (0, 1, -0.1, 2, float("nan")):
        with pytest.raises(ValueError, match=rf"rate {rate} must lie between 0 and 1"):
            found.threshold(rate)
    with pytest.raises(ValueError, match=r"0.001 is too low .* 50 pairs .* ask for 0.02 or more"):
        found.threshold(0.001)


def test_a_threshold_above_all():
    found = PairStatistics(np.ones(30), np.ones(30))
    assert found.threshold(0.5) == (1.001, 0, 1)


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
    None, [], {}, {**GOOD, "step": 0.1}, {**GOOD, "across": 1}, {**GOOD, "source": "x"},
    {**GOOD, "same": {"first": 0}},
    {**GOOD, "same": {"first": 0, "counts": []}}, {**GOOD, "same": {"first": 0, "counts": [0]}},
    {**GOOD, "same": {"first": 0, "counts": [-1, 5]}},
    {**GOOD, "same": {"first": 1000, "counts": [1, 1]}},
    {**GOOD, "same": {"first": -1001, "counts": [1, 1]}},
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
