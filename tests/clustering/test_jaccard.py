import tracemalloc

import numpy as np
import pytest
import torch
from caureid_plugin.clustering import jaccard_graph, pairs_within, search_neighbors, threads
from caureid_plugin.clustering.encoding import (
    average_over_neighbors,
    expanded_sets,
    member_distances,
    reciprocal_mask,
    softmax_encoding,
)
from scipy import sparse


def assert_same_pairs(graph, expected, eps, to_dense):
    """The graph holds exactly the pairs of ``expected`` within eps, at the same distances."""
    got = to_dense(graph, fill=np.inf)
    stored = np.isfinite(got)
    assert np.allclose(got[stored], expected[stored], rtol=0, atol=1e-6)
    # On the threshold itself, rounding may decide; anywhere else it must not.
    decided = np.abs(expected - eps) > 1e-6
    assert np.array_equal(stored[decided], (expected <= eps)[decided])


@pytest.mark.parametrize("k1, k2", [(12, 4), (11, 3), (10, 10), (9, 1), (5, 2), (2, 2)])
@pytest.mark.parametrize("normalise", [True, False])
def test_equals_plain_loops(make_features, plain_jaccard, to_dense, k1, k2, normalise):
    # Unnormalised ones are scaled so that the softmax is neither flat nor a single spike.
    features, _ = make_features(60, normalise=normalise)
    features *= 1 if normalise else 0.2
    expected = plain_jaccard(features, search_neighbors(features, k1)[0], k2)
    for eps in (0.3, 0.6, 0.95):
        graph = jaccard_graph(features, k1=k1, k2=k2, eps=eps)
        assert_same_pairs(graph, expected, eps, to_dense)
        if k1 >= 5 and eps > 0.5:
            assert graph.nnz > 60 + 100, "the case must link images"
        assert graph.nnz < 60 * 60, "the case must leave images apart"


@pytest.mark.parametrize("k1, k2", [(30, 6), (20, 20), (7, 1)])
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_lists_longer_than_the_images(make_features, plain_jaccard, to_dense, n, k1, k2):
    features, _ = make_features(n, per_identity=3)
    expected = plain_jaccard(features, search_neighbors(features, min(k1, n))[0], k2)
    graph = jaccard_graph(features, k1=k1, k2=k2, eps=0.9, small=True)
    assert_same_pairs(graph, expected, 0.9, to_dense)


def test_one_image():
    graph = jaccard_graph(np.ones((1, 4), dtype=np.float32), k1=30, k2=6, eps=0.5, small=True)
    assert graph.shape == (1, 1) and graph.indices.tolist() == [0] and graph.data.tolist() == [0]


@pytest.mark.parametrize("k2", [1, 4])
def test_duplicates(make_features, plain_jaccard, to_dense, k2):
    features, _ = make_features(48)
    copies = [2, 9, 10, 30, 47]
    features[copies] = features[2]
    expected = plain_jaccard(features, search_neighbors(features, 8)[0], k2)
    graph = jaccard_graph(features, k1=8, k2=k2, eps=0.6)
    assert_same_pairs(graph, expected, 0.6, to_dense)
    assert np.isfinite(to_dense(graph, fill=np.inf)[np.ix_(copies, copies)]).all()


def test_images_that_are_all_the_same(to_dense):
    graph = jaccard_graph(np.ones((6, 3), dtype=np.float32), k1=6, k2=3, eps=0.5, small=True)
    assert np.abs(to_dense(graph, fill=np.inf)).max() < 1e-6


def test_zeros_are_stored():
    encoding = sparse.csr_matrix(np.array([[0, 1.0, 0], [0, 1.0, 0], [0, 0, 1.0]]))
    graph = pairs_within(encoding, 0.5)
    assert graph.indices.tolist() == [0, 1, 0, 1, 2] and graph.data.tolist() == [0] * 5


@pytest.mark.parametrize("kind", ["float16", "torch float16", "torch float32", "float64"])
def test_other_kinds_of_features(make_features, kind):
    features, _ = make_features(60)
    features = features.astype(np.float16).astype(np.float32)  # exact in every kind
    given = features.astype(kind.split()[-1])
    given = torch.from_numpy(given) if kind.startswith("torch") else given
    expected = jaccard_graph(features, k1=10, k2=3, eps=0.6)
    graph = jaccard_graph(given, k1=10, k2=3, eps=0.6)
    assert np.array_equal(graph.indptr, expected.indptr)
    assert np.array_equal(graph.indices, expected.indices)
    assert np.array_equal(graph.data, expected.data)


def test_form_of_the_graph(make_features):
    features, _ = make_features(60)
    before = features.copy()
    graph = jaccard_graph(features, k1=10, k2=3, eps=0.6)
    assert isinstance(graph, sparse.csr_matrix)
    assert graph.shape == (60, 60) and graph.dtype == np.float32
    entries = {}
    for i in range(60):
        columns = graph.indices[graph.indptr[i] : graph.indptr[i + 1]].tolist()
        assert columns == sorted(set(columns)) and i in columns
        values = graph.data[graph.indptr[i] : graph.indptr[i + 1]].tolist()
        entries.update({(i, j): value for j, value in zip(columns, values, strict=True)})
    assert all(entries[j, i] == value for (i, j), value in entries.items())
    assert all(entries[i, i] == 0 for i in range(60))
    assert all(0 <= value <= np.float32(0.6) for value in entries.values())
    assert np.array_equal(features, before), "the caller's features must not change"


def test_reciprocal_neighbours_by_hand():
    ranks = np.array([[0, 1, 2], [1, 0, 3], [2, 1, 3], [3, 2, -1]], dtype=np.int32)
    # 0 lists 2, which does not list 0; 1 lists 3, which does not list 1; nobody is at the -1.
    expected = [[1, 1, 0], [1, 1, 0], [1, 0, 1], [1, 1, 0]]
    assert reciprocal_mask(ranks).astype(int).tolist() == expected


def test_expansion_asks_for_more_than_two_thirds_of_the_original_set():
    # k1 = 3, so half lists have np.around(1.5) + 1 = 3 columns and H = R:
    # R(0) = {0, 1}, R(1) = {0, 1, 2}, R(2) = {1, 2, 3}, R(3) = {2, 3, 4}, R(4) = {3, 4}.
    ranks = np.array(
        [[0, 1, 3], [1, 0, 2], [2, 1, 3], [3, 4, 2], [4, 3, 0]], dtype=np.int32)
    # Exactly two thirds of H(1) lie in R(0), and so on down the chain: not enough.
    expected = [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4]]
    expanded = expanded_sets(ranks)
    assert [np.flatnonzero(row).tolist() for row in expanded.toarray()] == expected


def test_expansion_by_hand():
    # k1 = 6 and half lists of 4. Images 0 to 3 list each other first, so H(0..3) = {0, 1, 2, 3};
    # 4 and 5 list 0, 1 and 2, which list them too, but 3 and 4, 3 and 5 are not mutual.
    ranks = np.array(
        [
            [0, 1, 2, 3, 4, 5],
            [1, 0, 2, 3, 4, 5],
            [2, 0, 1, 3, 4, 5],
            [3, 0, 1, 2, 6, 7],
            [4, 5, 0, 1, 2, 6],
            [5, 4, 0, 1, 2, 6],
            [6, 7, 0, 1, 2, 3],
            [7, 6, 0, 1, 2, 3],
        ],
        dtype=np.int32,
    )
    # R(4) = {0, 1, 2, 4, 5} holds three of the four of H(0): so 3 joins it.
    # R(3) = {0, 1, 2, 3, 6, 7}, R(6) = R(7) = {3, 6, 7}: nothing joins them.
    expected = [[0, 1, 2, 3, 4, 5]] * 3 + [[0, 1, 2, 3, 6, 7]]
    expected += [[0, 1, 2, 3, 4, 5]] * 2 + [[3, 6, 7]] * 2
    expanded = expanded_sets(ranks)
    assert [np.flatnonzero(row).tolist() for row in expanded.toarray()] == expected


def test_softmax_by_hand_and_empty_rows():
    members = sparse.csr_matrix(np.array([[1, 1, 0], [0, 0, 0], [0, 0, 1]]))
    distances = np.array([0.0, np.log(3.0), 500.0], dtype=np.float32)
    encoding = softmax_encoding(distances, members).toarray()
    assert np.allclose(encoding, [[0.75, 0.25, 0], [0, 0, 0], [0, 0, 1]], atol=1e-6)


def test_no_reciprocal_neighbor_at_all():
    # Three duplicates that list one another in a circle: every set and every encoding is empty.
    members = expanded_sets(np.array([[1], [2], [0]], dtype=np.int32))
    assert members.nnz == 0
    graph = pairs_within(softmax_encoding(np.empty(0, dtype=np.float32), members), 0.5)
    assert graph.indices.tolist() == [0, 1, 2] and graph.data.tolist() == [0, 0, 0]


def test_average_by_hand():
    encoding = sparse.csr_matrix(np.array([[1.0, 0, 0], [0.5, 0.5, 0], [0, 0, 1.0]]))
    averaged = average_over_neighbors(
        encoding, np.array([[0, 1], [1, 0], [2, 1]], dtype=np.int32)).toarray()
    assert np.allclose(averaged, [[0.75, 0.25, 0], [0.75, 0.25, 0], [0.25, 0.25, 0.5]])
    alone = average_over_neighbors(encoding, np.array([[1], [0], [2]], dtype=np.int32))
    assert np.array_equal(alone.toarray(), encoding.toarray()), "k2 = 1 averages nothing"


@pytest.mark.parametrize("eps, linked", [(0.5, True), (0.4999999, False)])
def test_a_distance_equal_to_eps_is_within_it(eps, linked):
    # 4 of 6 equal weights shared: t = 2/3, distance 1 - (2/3) / (4/3) = 1/2. Row 2 is empty.
    rows = np.zeros((9, 9))
    rows[0, [0, 1, 2, 3, 4, 5]] = rows[1, [2, 3, 4, 5, 6, 7]] = 1 / 6
    graph = pairs_within(sparse.csr_matrix(rows), eps)
    assert graph.nnz == 9 + 2 * linked
    assert ((0, 1) in zip(*graph.nonzero(), strict=True)) == linked
    assert graph.indices[graph.indptr[2] : graph.indptr[3]].tolist() == [2]


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("block", [1, 7, 60, 2**30])
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


def test_distances_are_taken_over_where_they_are_known():
    features = np.arange(8, dtype=np.float32).reshape(4, 2)
    members = sparse.csr_matrix(np.array([[1, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 1], [0, 1, 0, 0]]))
    ranks = np.array([[2, -1], [1, 0], [0, -1], [2, 0]], dtype=np.int32)
    known = np.array([[100, np.inf], [7, 7], [200, np.inf], [7, 7]], dtype=np.float32)
    # rows differ by 2 in each of two columns for each step
    assert member_distances(features, members, ranks, known).tolist() == [0, 100, 72, 200, 8, 32]


def test_underflown_weights_are_listed_once():
    # exp(-1000) is 0: stored, but no weight; a sum of minima must not count it or list it twice
    encoding = sparse.csr_matrix((np.array([1.0, 0.0, 0.0, 1.0]), [0, 1, 0, 1], [0, 2, 4]))
    graph = pairs_within(encoding, 0.9)
    assert graph.indices.tolist() == [0, 1]
    averaged = average_over_neighbors(encoding, np.array([[0, 1], [1, 0]], dtype=np.int32))
    assert averaged.toarray().tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert averaged.indices.tolist() == [0, 1, 0, 1]


def test_repeats_bit_for_bit(make_features):
    features, _ = make_features(200)
    first, second = (jaccard_graph(features, k1=20, k2=6, eps=0.6) for _ in range(2))
    assert np.array_equal(first.indices, second.indices)
    assert np.array_equal(first.data, second.data)


def test_memory_stays_far_below_a_dense_matrix(make_features):
    n = 3000
    features, _ = make_features(n, 16)
    jaccard_graph(features[:50], k1=20, k2=6, eps=0.5)  # imports are not what is measured
    tracemalloc.start()  # numpy reports to it; torch's tile is bounded by CACHED_TILE
    try:
        graph = jaccard_graph(features, k1=20, k2=6, eps=0.5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert graph.nnz > 2 * n, "the case must link images"
    assert peak < n * n * 4 / 1.5, f"peak of {peak / 2**20:.0f} MiB"
