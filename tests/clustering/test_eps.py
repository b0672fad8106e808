"""The sweep over eps against one clustering after the other, and the suggestion."""

import numpy as np
import pytest
import torch
from caureid_plugin.clustering import (
    assign_pseudo_labels,
    jaccard_encoding,
    jaccard_graph,
    outliers_to_singletons,
    suggest_eps,
    sweep_eps,
)
from caureid_plugin.clustering.simulated import simulate_features
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

from helpers import plain

EPS = [0.55, 0.3, 0.7, 0.45, 0.5, 0.62]


@pytest.fixture(scope="module")
def people():
    """Features, identities and cameras; some images are exact duplicates."""
    features, identities, camids = simulate_features(240, 24, seed=3)
    features[[5, 6, 7, 8]] = features[4]
    features[100] = features[7]
    return features, identities, camids


@pytest.fixture(scope="module")
def encoding(people):
    return jaccard_encoding(people[0], k1=12, k2=6)


def keep_labels(labels):
    return {"labels": labels}


@pytest.mark.parametrize("counts, min_samples", [
    ({"k1": 12, "k2": 6}, 4), ({"k1": 20, "k2": 1}, 1),
    ({"k1_intra": 3, "k1_inter": 8, "k2_intra": 2, "k2_inter": 3}, 4),
])
def test_labels_are_those_of_one_eps_at_a_time(people, counts, min_samples):
    features, _, camids = people
    cameras = {"camids": camids} if "k1_intra" in counts else {}
    rows = sweep_eps(jaccard_encoding(features, **counts, **cameras), EPS,
                     min_samples=min_samples, extra=keep_labels)
    assert [row["eps"] for row in rows] == sorted(EPS)
    for row in rows:
        labels = assign_pseudo_labels(
            features, eps=row["eps"], min_samples=min_samples, **counts, **cameras)
        assert row["labels"].dtype == np.int64 and np.array_equal(row["labels"], labels)
    assert len({row["clusters"] for row in rows}) > 1, "nothing depends on eps here"


def test_distances_that_equal_an_eps_count(people):
    """Averages over few neighbours make distances such as 0.5 common."""
    features = people[0]
    counts = {"k1": 4, "k2": 4}
    stored = jaccard_graph(features, eps=0.9, **counts).data
    values, times = np.unique(stored[stored > 0.2], return_counts=True)
    chosen = values[np.argsort(times)[-3:]]
    assert times.max() > 2
    rows = sweep_eps(jaccard_encoding(features, **counts), [*chosen, 0.95], min_samples=3,
                     extra=keep_labels)
    for row in rows:
        labels = assign_pseudo_labels(features, eps=row["eps"], min_samples=3, **counts)
        assert np.array_equal(row["labels"], labels)


def test_duplicates_stay_together_at_a_tiny_eps(people, encoding):
    (row, _) = sweep_eps(encoding, [1e-4, 0.9], min_samples=2, extra=keep_labels)
    assert len({row["labels"][i] for i in (4, 5, 6, 7, 8, 100)}) == 1
    assert row["labels"][4] >= 0


@pytest.mark.parametrize("as_given", [np.asarray, torch.as_tensor, lambda c: 10 * c - 7])
def test_figures_by_loops(people, encoding, as_given):
    camids = people[2]
    rows = sweep_eps(encoding, [0.05, *EPS, 0.95], min_samples=4, camids=as_given(camids),
                     extra=keep_labels)
    for row in rows:
        labels, eps = row.pop("labels"), row.pop("eps")
        assert row == {"images": 240, **plain.statistics(labels, camids)}, eps
    # the ends are as expected: nothing and everything in one cluster
    assert rows[0]["outliers"] > 200 and rows[-1]["largest"] > 200


def test_without_cameras_there_are_no_figures_of_them(encoding):
    rows = sweep_eps(encoding, [0.5], min_samples=4)
    assert list(rows[0]) == ["eps", "images", "clusters", "outliers", "largest"]


def test_a_value_given_twice_counts_once(encoding):
    rows = sweep_eps(encoding, np.array([0.6, 0.5, 0.6]), min_samples=4)
    assert [row["eps"] for row in rows] == [0.5, 0.6]
    assert all(type(row["eps"]) is float for row in rows)


def test_progress(encoding):
    seen = []
    sweep_eps(encoding, [0.4, 0.5, 0.6], min_samples=4, progress=lambda *what: seen.append(what))
    assert ("pairs", 240, 240) in seen
    assert seen[-3:] == [("eps", done, 3) for done in (1, 2, 3)]


@pytest.mark.parametrize("values, message", [
    ([], "at least one value of eps"),
    ([0.5, 1.0], r"0 < eps < 1, got 1\.0"),
    (0.5, r"eps_values must be a list of numbers, got 0\.5"),
])
def test_bad_eps(encoding, values, message):
    with pytest.raises(ValueError, match=message):
        sweep_eps(encoding, values, min_samples=4)


def test_other_bad_input(people, encoding):
    features, _, camids = people
    graph = jaccard_graph(features, k1=12, k2=6, eps=0.4)
    for wrong, message in [
        (graph, "float32"), (graph.astype(np.float64), r"row 0 sums to"),
        (features, "ndarray"), (encoding.tocsc(), "csc"), (encoding[:5], r"shape \(5, 240\)"),
        (-encoding, "row 0 sums to -1"),
        (sparse.csr_matrix(np.array([[2.0, -1.0], [0.5, 0.5]])), "negative weights"),
    ]:
        with pytest.raises(ValueError, match=message):
            sweep_eps(wrong, [0.5], min_samples=4)
    with pytest.raises(ValueError, match="min_samples .* got 0"):
        sweep_eps(encoding, [0.5], min_samples=0)
    with pytest.raises(ValueError, match="240 images"):
        sweep_eps(encoding, [0.5], min_samples=4, camids=camids[1:])


# ------------------------------------------------------------------------- suggestion ----


def row(eps, clusters, **figures):
    return {"eps": eps, "images": 100, "clusters": clusters, "outliers": 0, "largest": 9,
            **figures}


@pytest.mark.parametrize("rows, expected", [
    ([row(0.3, 9, centres=10), row(0.4, 8, centres=14), row(0.5, 5, centres=12)], 0.4),
    ([row(0.3, 9, centres=14), row(0.4, 8, centres=14), row(0.5, 5, centres=12)], 0.4),
    ([row(0.5, 5, centres=14), row(0.4, 8, centres=14), row(0.3, 9, centres=12)], 0.5),
    ([row(0.3, 7), row(0.4, 8), row(0.5, 5)], 0.4),
    ([row(0.3, 0, centres=0), row(0.4, 0, centres=0), row(0.5, 1, centres=1)], 0.5),
    ([row(0.3, 8), row(0.4, 8), row(0.5, 5)], 0.4),
    ([row(0.7, 1, centres=3)], 0.7),
])
def test_the_most_centres(rows, expected):
    assert suggest_eps(rows) == expected


@pytest.mark.parametrize("rows", [[], [row(0.3, 0, centres=0), row(0.4, 0, centres=0)]])
def test_nothing_to_suggest(rows):
    with pytest.raises(ValueError, match="no cluster to judge by .*CAUREID.CLUSTER.EPS"):
        suggest_eps(rows)


@pytest.mark.parametrize("counts, structure", [
    ({"k1": 30, "k2": 6}, {}), ({}, {"style": 0.3, "noise": 0.9, "per_identity": 10}),
    ({"k1": 30, "k2": 6}, {"style": 0.8, "per_identity": 30})])
def test_the_suggestion_is_near_the_best(counts, structure):
    features, identities, camids = simulate_features(800, 64, seed=1, **structure)
    cameras = {} if counts else {"camids": camids}
    rows = sweep_eps(
        jaccard_encoding(features, **counts, **cameras), np.arange(0.3, 0.76, 0.025),
        min_samples=4, camids=camids,
        extra=lambda labels: {"ari": adjusted_rand_score(
            identities, outliers_to_singletons(labels))})
    index = {row["eps"]: row["ari"] for row in rows}
    found, best = index[suggest_eps(rows)], max(index.values())
    assert min(index.values()) < best - 0.25, "any eps would do"
    assert found > best - 0.1
