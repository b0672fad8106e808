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

EPS = [0.55, 1e-4, 0.3, 0.7, 0.45, 0.5, 0.62, 0.95]


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


@pytest.mark.parametrize("counts, min_samples, as_given", [
    ({"k1": 12, "k2": 6}, 4, np.asarray), ({"k1": 20, "k2": 1}, 1, torch.as_tensor),
    ({"k1_intra": 3, "k1_inter": 8, "k2_intra": 2, "k2_inter": 3}, 4, lambda c: 10 * c - 7),
])
def test_rows_are_those_of_one_eps_at_a_time(people, counts, min_samples, as_given):
    """Labels, exact duplicates at a tiny eps among them, and figures of them by loops."""
    features, _, camids = people
    cameras = {"camids": camids} if "k1_intra" in counts else {}
    rows = sweep_eps(jaccard_encoding(features, **counts, **cameras), EPS,
                     min_samples=min_samples, camids=as_given(camids), extra=keep_labels)
    assert [row["eps"] for row in rows] == sorted(EPS)
    for row in rows:
        found, eps = row.pop("labels"), row.pop("eps")
        labels = assign_pseudo_labels(
            features, eps=eps, min_samples=min_samples, **counts, **cameras)
        assert found.dtype == np.int64 and np.array_equal(found, labels), eps
        assert row == {"images": 240, **plain.statistics(labels, camids)}, eps
    assert len({row["clusters"] for row in rows}) > 2, "nothing depends on eps here"


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


def test_without_cameras_and_with_a_value_given_twice(encoding):
    rows = sweep_eps(encoding, np.array([0.6, 0.5, 0.6]), min_samples=4)
    assert [row["eps"] for row in rows] == [0.5, 0.6]
    assert all(type(row["eps"]) is float for row in rows)
    assert list(rows[0]) == ["eps", "images", "clusters", "outliers", "largest"]


def test_progress(encoding):
    seen = []
    sweep_eps(encoding, [0.4, 0.5, 0.6], min_samples=4, progress=lambda *what: seen.append(what))
    ended = [total for stage, done, total in seen if stage == "pairs" and done == total]
    assert len(ended) == 1 and 0 < ended[0] <= 240
    assert seen[-3:] == [("eps", done, 3) for done in (1, 2, 3)]


@pytest.mark.parametrize("change, message", [
    ({"eps_values": []}, "at least one value of eps"),
    ({"eps_values": [0.5, 1.0]}, r"0 < eps < 1, got 1\.0"),
    ({"eps_values": 0.5}, r"eps_values must be a list of numbers, got 0\.5"),
    ({"min_samples": 0}, "min_samples .*got 0"),
    ({"camids": np.zeros(239, np.int64)}, "240 images"),
    ({"encoding": np.eye(240)}, "ndarray"),
    ({"encoding": sparse.csc_matrix(np.eye(240))}, "csc"),
    ({"encoding": sparse.csr_matrix(np.eye(5, 240))}, r"shape \(5, 240\)"),
    ({"encoding": sparse.csr_matrix(np.eye(240, dtype=np.float32))}, "float32"),
    ({"encoding": sparse.csr_matrix(-np.eye(240))}, "row 0 sums to -1"),
    ({"encoding": sparse.csr_matrix([[2.0, -1.0], [0.5, 0.5]])}, "negative weights"),
])
def test_what_is_wrong_is_named(encoding, change, message):
    with pytest.raises(ValueError, match=message):
        sweep_eps(**{"encoding": encoding, "eps_values": [0.5], "min_samples": 4, **change})


# ------------------------------------------------------------------------- suggestion ----


def row(eps, clusters, **figures):
    return {"eps": eps, "clusters": clusters, **figures}


@pytest.mark.parametrize("rows, expected", [
    ([row(0.3, 9, centres=14), row(0.4, 8, centres=14), row(0.5, 5, centres=12)], 0.4),
    ([row(0.5, 5, centres=14), row(0.4, 8, centres=14), row(0.3, 9, centres=12)], 0.5),
    ([row(0.3, 8), row(0.4, 8), row(0.5, 5)], 0.4),
])
def test_the_most_centres(rows, expected):
    assert suggest_eps(rows) == expected


@pytest.mark.parametrize("rows", [[], [row(0.3, 0, centres=0), row(0.4, 0, centres=0)]])
def test_nothing_to_suggest(rows):
    with pytest.raises(ValueError, match="no cluster to judge by .*larger values of eps"):
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
