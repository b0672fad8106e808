"""SpCL's criterion by sets and loops; the labels at three eps against three clusterings."""

import doctest
from fractions import Fraction

import numpy as np
import pytest
from caureid_plugin.clustering import (
    assign_pseudo_labels,
    labels_at,
    outliers_to_singletons,
    pseudo_labels,
    reliability,
    reliable_labels,
)
from caureid_plugin.clustering.inputs import check_eps_gap
from caureid_plugin.clustering.simulated import simulate_features


def clusters_of(labels):
    """The set of images that each image is clustered with; an outlier is alone."""
    return [frozenset([i]) if label < 0 else frozenset(np.flatnonzero(labels == label).tolist())
            for i, label in enumerate(labels)]


def changes(labels, others):
    """1 - intersection / union for each image, exact: what SpCL's code calls R."""
    return [1 - Fraction(len(one & other), len(one | other))
            for one, other in zip(clusters_of(labels), clusters_of(others), strict=True)]


def by_loops(labels, tighter, looser, threshold):
    """{sets of images that stay together}, and the threshold, as a change and not an overlap."""
    comp, indep = changes(labels, tighter), changes(labels, looser)
    clusters = {cluster for cluster in clusters_of(labels) if len(cluster) > 1}
    of_cluster = {cluster: min(indep[i] for i in cluster) for cluster in clusters}
    if threshold is None:
        ranked = sorted(of_cluster.values())
        threshold = ranked[min(len(ranked) - 1, int(np.round(0.9 * len(ranked))))]
    kept = set()
    for cluster in clusters:
        least = min(comp[i] for i in cluster)
        stay = frozenset(i for i in cluster if comp[i] <= least)
        if of_cluster[cluster] <= threshold and len(stay) > 1:
            kept.add(stay)
    return kept, threshold


def random_clusterings(seed, images=150):
    """Labels, and those of which clusters fell apart, and ran together; outliers in all."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, 25, size=images)
    tighter = np.where(rng.random(images) < 0.25, 25 + labels, labels)
    tighter[rng.random(images) < 0.1] = -1
    looser = np.where(labels > 17, labels // 2, labels)
    looser[rng.random(images) < 0.1] = 3
    return [np.unique(np.append(-1, found), return_inverse=True)[1][1:] - 1  # without a gap
            for found in (labels, tighter, looser)]


@pytest.mark.parametrize("seed", range(8))
def test_what_stays_by_loops(seed):
    labels, tighter, looser = random_clusterings(seed)
    for threshold in (None, Fraction(2, 5), Fraction(3, 5)):
        found, kept = reliable_labels(labels, tighter=tighter, looser=looser,
                                      threshold=threshold and float(threshold))
        expected, change = by_loops(labels, tighter, looser, threshold and 1 - threshold)
        assert kept == float(1 - change)
        assert set(clusters_of(found)) - {frozenset([i]) for i in range(len(labels))} == expected
        assert 0 < (found >= 0).sum() < (labels >= 0).sum()
        assert found.dtype == np.int64
        firsts = [int(np.flatnonzero(found == k)[0]) for k in range(found.max() + 1)]
        assert firsts == sorted(firsts), "numbered in order of appearance, without a gap"


SAME = np.repeat(np.arange(4), 3)


def test_nothing_changes_with_eps():
    found, threshold = reliable_labels(SAME, tighter=SAME, looser=SAME)
    assert (found.tolist(), threshold) == (SAME.tolist(), 1.0)


def test_a_cluster_that_falls_apart_keeps_its_largest_part():
    labels = np.array([0] * 6 + [1] * 4)
    tighter = np.array([0, 0, 0, 1, 1, -1, 2, 2, 3, 3])  # 3 + 2 + 1; two equal halves
    found, _ = reliable_labels(labels, tighter=tighter, looser=labels)
    assert found.tolist() == [0, 0, 0, -1, -1, -1, 1, 1, 1, 1]
    dissolved = np.array([-1] * 6 + [0] * 4)  # all are equally little compact: SpCL's rule
    found, _ = reliable_labels(labels, tighter=dissolved, looser=labels)
    assert found.tolist() == labels.tolist()


def test_a_cluster_of_which_one_image_is_left_is_none():
    labels = np.array([0, 0, 1, 1, 1, 1])
    tighter = np.array([0, 1, 1, 1, 1, 1])  # the second image went over to the others: 1 / 6
    found, _ = reliable_labels(labels, tighter=tighter, looser=labels)
    assert found.tolist() == [-1, -1, 0, 0, 0, 0]


def test_clusters_that_run_together_beyond_the_threshold_dissolve():
    labels = np.repeat(np.arange(12), 2)
    looser = np.where(labels < 4, 0, labels - 3)  # four become one: 2 / 8
    found, threshold = reliable_labels(labels, tighter=labels, looser=looser)
    assert threshold == 0.25, "the eleventh of twelve, so that all stay"
    assert found.max() == 11
    found, threshold = reliable_labels(labels, tighter=labels, looser=looser, threshold=0.5)
    assert threshold == 0.5 and found.tolist() == [-1] * 8 + np.repeat(np.arange(8), 2).tolist()
    merged = np.where(labels < 2, 0, labels - 1)  # one pair: 2 / 4 is not below one half
    assert reliable_labels(labels, tighter=labels, looser=merged, threshold=0.5)[0].max() == 11


@pytest.mark.parametrize("count, below", [(1, 0), (4, 0), (5, 0), (10, 0), (20, 1), (25, 2)])
def test_the_threshold_is_at_nine_tenths_of_the_first_clusters(count, below):
    """SpCL's place ``min(n - 1, round(0.9 n))`` with the most independent first."""
    sizes = np.random.default_rng(count).permutation(count) + 1  # outliers that each takes in
    labels = np.concatenate([np.repeat(np.arange(count), 2), np.full(sizes.sum(), -1)])
    looser = np.concatenate([labels[:2 * count], np.repeat(np.arange(count), sizes)])
    _, threshold = reliable_labels(labels, tighter=labels, looser=looser)
    independence = [2 / (2 + size) for size in sizes.tolist()]
    assert threshold in independence
    assert sum(value < threshold for value in independence) == below


def test_without_a_cluster_there_is_no_threshold_yet():
    none = np.full(5, -1)
    found, threshold = reliable_labels(none, tighter=none, looser=np.zeros(5, np.int64))
    assert (found.tolist(), threshold) == ([-1] * 5, None)
    found, threshold = reliable_labels(none, tighter=none, looser=none, threshold=0.3)
    assert (found.tolist(), threshold) == ([-1] * 5, 0.3)
    alone = np.arange(5)  # clusters of one image, as min_samples 1 gives them
    assert reliable_labels(alone, tighter=alone, looser=alone)[1] is None


def test_labels_are_left_as_they_are_and_must_be_of_the_same_images():
    labels = np.array([0, 0, 1, 1, -1])
    tighter = np.array([0, -1, 1, 1, -1])
    before = labels.copy(), tighter.copy()
    reliable_labels(labels, tighter=tighter, looser=labels)
    assert np.array_equal(before[0], labels) and np.array_equal(before[1], tighter)
    with pytest.raises(ValueError, match=r"got 5, 4 \(tighter\) and 5 \(looser\)"):
        reliable_labels(labels, tighter=tighter[:4], looser=labels)


def test_the_example_of_the_docstring():
    assert doctest.testmod(reliability, extraglobs={"np": np}).failed == 0


# ---------------------------------------------------------------- labels at several eps ----


@pytest.mark.parametrize("counts", [{"k1": 12, "k2": 6}, {"k1_intra": 3, "k1_inter": 8}])
def test_labels_at_several_eps_are_those_of_one_after_the_other(counts, monkeypatch):
    features, _, camids = simulate_features(200, 20, seed=4)
    cameras = {"camids": camids} if "k1_intra" in counts else {}
    searches, encodings = [], []
    for name, seen in (("neighbor_lists", searches), ("encode", encodings)):
        original = getattr(pseudo_labels, name)
        monkeypatch.setattr(pseudo_labels, name, lambda *a, _do=original, _seen=seen, **k: (
            _seen.append(1), _do(*a, **k))[1])
    values = [0.55, 0.45, 0.65, 0.45]
    found = labels_at(features, eps_values=values, min_samples=3, **counts, **cameras)
    assert (len(searches), len(encodings)) == (1, 1)
    for eps, labels in zip(values, found, strict=True):
        expected = assign_pseudo_labels(features, eps=eps, min_samples=3, **counts, **cameras)
        assert labels.dtype == np.int64 and np.array_equal(labels, expected)
    assert len({tuple(labels) for labels in found}) == 3


def test_a_wrong_eps_among_several_is_named():
    with pytest.raises(ValueError, match=r"eps must be .*got 1\.0"):
        labels_at(np.eye(5, dtype=np.float32), eps_values=[0.5, 1.0], min_samples=2, k1=3, k2=2)


@pytest.mark.parametrize("eps, gap", [
    (0.5, -0.1), (0.5, 0.5), (0.1, 0.2), (0.9, 0.1), (0.5, "0.02"), (0.5, True),
    (0.5, float("nan"))])
def test_a_gap_that_leaves_the_range_of_eps_is_refused(eps, gap):
    with pytest.raises(ValueError, match="the gap must be"):
        check_eps_gap(eps, gap)
    check_eps_gap(eps, 0.0)


def test_dropping_what_is_not_reliable_makes_clusters_purer():
    """On simulated people, at an eps at which clusters run together."""
    features, identities, _ = simulate_features(600, 60, seed=2, noise=0.9)
    tighter, labels, looser = labels_at(
        features, eps_values=[0.58, 0.6, 0.62], min_samples=4, k1=20, k2=6)
    found, threshold = reliable_labels(labels, tighter=tighter, looser=looser)

    def purity(labels):
        """Share of the clustered images that are of their cluster's most frequent identity."""
        inlier = labels >= 0
        return sum(np.bincount(identities[labels == k]).max()
                   for k in range(labels.max() + 1)) / inlier.sum()

    assert 0 < threshold <= 1 and (found >= 0).sum() < (labels >= 0).sum()
    assert purity(found) > purity(labels)
    assert len(outliers_to_singletons(found)) == 600
