import warnings

import numpy as np
import pytest
import torch
from caureid_plugin.clustering import (
    assign_pseudo_labels,
    jaccard_encoding,
    label_statistics,
    outliers_to_singletons,
    pairs_within,
)
from caureid_plugin.clustering.pseudo_labels import (
    _first_equal,
    cluster_graph,
    number_by_appearance,
)
from scipy import sparse

from helpers import plain


def test_identities_far_apart_are_recovered(make_features):
    features, identities = make_features(96, noise=0.1)
    features = torch.from_numpy(features)
    labels = assign_pseudo_labels(features, k1=15, k2=6, eps=0.6, min_samples=4)
    assert labels.min() == 0, "no outliers"
    assert np.array_equal(plain.together(labels), plain.together(identities))


def test_numbers_follow_images_and_not_core_points():
    # image 0 is a border point of the second cluster that DBSCAN finds
    dense = np.ones((9, 9))
    for group in ([1, 2, 3, 4], [5, 6, 7, 8]):
        dense[np.ix_(group, group)] = 0.1
    dense[0, 8] = dense[8, 0] = 0.1
    np.fill_diagonal(dense, 0)
    stored = np.argwhere(dense < 1)
    graph = sparse.coo_matrix((dense[dense < 1], stored.T), shape=(9, 9)).tocsr()
    labels = cluster_graph(graph.astype(np.float32), 0.5, 4)
    assert labels.tolist() == [1, 0, 0, 0, 0, 1, 1, 1, 1]
    assert number_by_appearance(labels).tolist() == [0, 1, 1, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("labels", [[], [-1, -1], [0], [-1, 4, -1, 4, 0, 9]])
def test_number_by_appearance_by_loops(labels):
    numbers = {-1: -1}
    expected = [numbers.setdefault(label, len(numbers) - 1) for label in labels]
    assert number_by_appearance(np.array(labels, dtype=np.int64)).tolist() == expected


def test_stored_zeros_are_distances():
    rows, columns = np.divmod(np.arange(16), 4)  # images 0 to 3 are duplicates, 4 is alone
    rows, columns = np.append(rows, 4), np.append(columns, 4)
    graph = sparse.coo_matrix((np.zeros(17, np.float32), (rows, columns)), shape=(5, 5)).tocsr()
    assert cluster_graph(graph, 0.5, 4).tolist() == [0, 0, 0, 0, -1]
    assert cluster_graph(graph, 0.5, 5).tolist() == [-1] * 5


def test_a_distance_equal_to_eps_links_in_float32_too():
    eps = 0.6  # float32(0.6) lies above the float64 0.6
    data = np.array([0, eps, eps, 0], dtype=np.float32)
    graph = sparse.csr_matrix((data, [0, 1, 0, 1], [0, 2, 4]), shape=(2, 2))
    assert cluster_graph(graph, eps, 2).tolist() == [0, 0]


@pytest.mark.parametrize("cameras", [0, 3])
@pytest.mark.parametrize("min_samples", [1, 2, 4, 7])
def test_copies_of_an_image_count_as_many(cameras, min_samples):
    """The same labels as from the whole graph, where each copy is a row of its own."""
    rng = np.random.default_rng(min_samples)
    features = rng.normal(size=(60, 3)).astype(np.float32)
    features = rng.permutation(features[np.append(np.arange(60), rng.integers(20, size=90))])
    features[rng.integers(150, size=40)] = features[0]  # more copies than a list is long
    lists = {"camids": rng.integers(cameras, size=150), "k1_intra": 4, "k1_inter": 6} if cameras \
        else {"k1": 8, "k2": 3}
    encoding, seen = jaccard_encoding(features, **lists), set()
    for eps in (0.2, 0.5, 0.8):
        labels = assign_pseudo_labels(features, eps=eps, min_samples=min_samples, **lists)
        whole = cluster_graph(pairs_within(encoding, eps), eps, min_samples)
        assert np.array_equal(labels, number_by_appearance(whole))
        seen.add(len(set(labels)))
    assert len(seen) > 1


def test_only_equal_rows_are_one_row():
    class SameSums(sparse.csr_matrix):
        def __matmul__(self, other):
            return np.zeros(5)

    rows = np.array([[0.5, 0.5, 0, 0, 0], [0, 0, 0, 0, 0], [0.5, 0.5, 0, 0, 0],
                     [0.5, 0, 0.5, 0, 0], [0, 0, 0, 0, 0]])
    for kind in (sparse.csr_matrix, SameSums):  # sums that agree by chance are not enough
        assert _first_equal(kind(rows)).tolist() == [0, 1, 0, 3, 4]


@pytest.mark.parametrize("min_samples, expected", [(1, [0]), (2, [-1])])
def test_one_image(min_samples, expected):
    features = np.ones((1, 8), dtype=np.float32)
    labels = assign_pseudo_labels(
        features, k1=30, k2=6, eps=0.5, min_samples=min_samples, small=True)
    assert labels.tolist() == expected


def test_no_warnings_numbers_and_progress(make_features):
    features, _ = make_features(96, noise=0.8)
    calls = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels = assign_pseudo_labels(features, k1=10, k2=3, eps=0.6, min_samples=4,
                                      progress=lambda *call: calls.append(call))
    assert calls[-1][0] == "pairs" and 0 < calls[-1][1] == calls[-1][2] <= 96
    assert labels.max() > 0 and np.array_equal(labels, number_by_appearance(labels))


@pytest.mark.parametrize("labels", [[0, 1, -1, 0, -1, 2, 1], [-1, -1, -1], [0, 0, 1, 1], []])
def test_outliers_to_singletons_by_loops(labels):
    expected, following = [], max(labels, default=-1) + 1
    for label in labels:
        expected.append(following if label == -1 else label)
        following += label == -1
    given = np.array(labels, dtype=np.int64)
    found = outliers_to_singletons(given)
    assert found.tolist() == expected and found.dtype == np.int64
    assert given.tolist() == labels, "the caller's labels must stay as they are"
    assert sorted(set(expected)) == list(range(len(set(expected))))


@pytest.mark.parametrize("images, clusters, cameras, outliers", [
    (50, 6, 4, 10), (50, 30, 3, 0), (1, 1, 1, 0), (40, 3, 2, 40), (0, 1, 1, 0)])
def test_statistics_by_loops(images, clusters, cameras, outliers):
    rng = np.random.default_rng(0)
    labels = rng.integers(clusters, size=images)
    labels[rng.permutation(images)[:outliers]] = -1
    camids = rng.integers(cameras, size=images)
    expected = plain.statistics(labels, camids)
    del expected["centres"]
    assert label_statistics(labels, camids) == expected
