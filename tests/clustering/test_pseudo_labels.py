import warnings

import numpy as np
import pytest
import torch
from caureid_plugin.clustering import assign_pseudo_labels
from caureid_plugin.clustering.pseudo_labels import cluster_graph, number_by_appearance
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
    assert calls[-1] == ("pairs", 96, 96)
    assert labels.max() > 0 and np.array_equal(labels, number_by_appearance(labels))
