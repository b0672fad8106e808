import tracemalloc

import numpy as np
import pytest
import torch
from caureid_plugin.clustering import jaccard_graph, pairs_within, threads
from caureid_plugin.clustering.encoding import (
    average_over_neighbors,
    expanded_sets,
    softmax_encoding,
)
from scipy import sparse


def test_form_of_the_graph(make_features):
    features, _ = make_features(60)
    graph = jaccard_graph(features, k1=10, k2=3, eps=0.6)
    assert isinstance(graph, sparse.csr_matrix)
    assert graph.shape == (60, 60) and graph.dtype == np.float32
    for i in range(60):
        columns = graph.indices[graph.indptr[i] : graph.indptr[i + 1]].tolist()
        assert columns == sorted(set(columns)) and i in columns
    dense = graph.toarray()
    assert np.array_equal(dense, dense.T) and not dense.diagonal().any()
    assert graph.data.min() >= 0 and graph.data.max() <= np.float32(0.6)


def test_no_reciprocal_neighbor_at_all():
    # Three duplicates that list one another in a circle: every set and every encoding is empty.
    members = expanded_sets(np.array([[1], [2], [0]], dtype=np.int32))
    assert members.nnz == 0
    graph = pairs_within(softmax_encoding(np.empty(0, dtype=np.float32), members), 0.5)
    assert graph.indices.tolist() == [0, 1, 2] and graph.data.tolist() == [0, 0, 0]


@pytest.mark.parametrize("eps, linked", [(0.5, True), (0.4999999, False)])
def test_a_distance_equal_to_eps_is_within_it(eps, linked):
    # 4 of 6 equal weights shared: t = 2/3, distance 1 - (2/3) / (4/3) = 1/2. Row 2 is empty.
    rows = np.zeros((9, 9))
    rows[0, [0, 1, 2, 3, 4, 5]] = rows[1, [2, 3, 4, 5, 6, 7]] = 1 / 6
    graph = pairs_within(sparse.csr_matrix(rows), eps)
    assert graph.nnz == 9 + 2 * linked
    assert ((0, 1) in zip(*graph.nonzero(), strict=True)) == linked
    assert graph.indices[graph.indptr[2] : graph.indptr[3]].tolist() == [2]


@pytest.mark.parametrize("block, num_threads", [(1, 1), (7, 1), (7, 3), (60, 3), (2**30, 1)])
def test_progress_blocks_and_threads(make_features, monkeypatch, block, num_threads):
    features, _ = make_features(60)
    expected = jaccard_graph(features, k1=10, k2=3, eps=0.6)
    monkeypatch.setattr(threads, "ROWS_PER_BLOCK", block)
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    calls = []
    graph = jaccard_graph(features, k1=10, k2=3, eps=0.6, progress=lambda *c: calls.append(c))
    done = [call[1] for call in calls if call[0] == "pairs"]
    assert done == [min(stop, 60) for stop in range(block, 60 + block, block)][: len(done)]
    assert done[-1] == 60 and {call[2] for call in calls} == {60}
    assert [call[0] for call in calls].index("pairs") > 0 and calls[0][0] == "neighbours"
    assert np.array_equal(graph.indices, expected.indices)
    assert np.array_equal(graph.data, expected.data)


def test_underflown_weights_are_listed_once():
    # exp(-1000) is 0: stored, but no weight; a sum of minima must not count it or list it twice
    encoding = sparse.csr_matrix((np.array([1.0, 0.0, 0.0, 1.0]), [0, 1, 0, 1], [0, 2, 4]))
    graph = pairs_within(encoding, 0.9)
    assert graph.indices.tolist() == [0, 1]
    averaged = average_over_neighbors(encoding, np.array([[0, 1], [1, 0]], dtype=np.int32))
    assert averaged.toarray().tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert averaged.indices.tolist() == [0, 1, 0, 1]


def test_memory_is_that_of_the_sparse_matrices(make_features):
    """numpy reports its arrays to tracemalloc; a dense matrix would take 12,000 bytes an image."""
    taken = []
    for n in (1500, 3000):
        features, _ = make_features(n)
        jaccard_graph(features[:50], k1=20, k2=6, eps=0.5)  # imports are not what is measured
        tracemalloc.start()
        try:
            graph = jaccard_graph(features, k1=20, k2=6, eps=0.5)
            taken.append(tracemalloc.get_traced_memory()[1] / n)
        finally:
            tracemalloc.stop()
        assert graph.nnz > 4 * n, "the case must link images"
    lists = 20 * 8  # indices and distances, 4 bytes each
    rows = 4 * 20 * 12  # of the encoding: at most 4 entries a neighbour, of 8 + 4 bytes
    graph = 20 * 8
    assert max(taken) < lists + 2 * rows + 3 * graph  # rows and columns; both halves and the whole
    assert 0.9 < taken[1] / taken[0] < 1.1, "memory must grow with N, not with its square"
