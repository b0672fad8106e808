"""Random shapes, seeds and kinds of features: equal to the toolbox and to plain loops."""

import caureid_plugin  # noqa: F401  makes the toolbox importable on this Python
import numpy as np
import pytest
import torch
from caureid_plugin.clustering import (
    Search,
    assign_pseudo_labels,
    jaccard_distances,
    jaccard_graph,
)
from caureid_plugin.clustering import (
    rounded as exact_search,
)
from fastreid.utils.compute_dist import compute_jaccard_distance
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN

from helpers import plain

SETTINGS = dict(deadline=None, derandomize=True)


@st.composite
def cases(draw):
    """Features (N, D), and k1 and k2 that suit them."""
    n = draw(st.integers(1, 120))
    dim = draw(st.sampled_from([2, 8, 33, 64]))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    per_identity, cameras = draw(st.integers(1, 20)), draw(st.integers(1, 6))
    features = rng.normal(size=(n, dim))[np.arange(n) // per_identity]
    features = features + 0.5 * rng.normal(size=(cameras, dim))[rng.integers(0, cameras, n)]
    features = features + draw(st.sampled_from([0.05, 0.4, 1.2])) * rng.normal(size=(n, dim))
    kind = draw(st.sampled_from(["normalised", "unnormalised", "float16", "duplicates"]))
    if kind == "unnormalised":
        # the toolbox expands |x - y|^2 in float32, which costs it 1e-5 at large norms
        features *= 0.5 / np.sqrt(dim)
    else:
        features /= np.linalg.norm(features, axis=1, keepdims=True)
    if kind == "duplicates":
        features[rng.integers(0, n, n // 4)] = features[0]
    features = features.astype(np.float16 if kind == "float16" else np.float32)
    k1 = draw(st.integers(1, min(n, 35)))  # at most N: beyond, the toolbox's lists end in -1
    return features, k1, draw(st.integers(1, k1))


@settings(max_examples=40, **SETTINGS)
@given(case=cases(), dtype=st.sampled_from([torch.bfloat16, torch.float32]),
       eps=st.sampled_from([0.3, 0.5, 0.7, 0.95]))
def test_equal_to_plain_loops(case, dtype, eps):
    features, k1, k2 = case
    expected = plain.jaccard_from_ranks(features, plain.nearest_lists(features, k1)[0], k2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact_search, "fast_dtype", lambda device: dtype)
        graph = jaccard_graph(features, k1=k1, k2=k2, eps=eps, small=True)
    plain.assert_same_pairs(graph, expected, eps)


def assert_as_the_toolbox(features, k1, k2, eps, min_samples):
    """Gives the graph, and whether labels were compared: not if a distance is at eps."""
    expected = compute_jaccard_distance(
        torch.from_numpy(features.astype(np.float32)), k1=k1, k2=k2, search_option=3)
    np.fill_diagonal(expected, 0)  # it is 1 there where an image is in nobody's list
    graph = jaccard_graph(features, k1=k1, k2=k2, eps=eps, small=True)
    plain.assert_same_pairs(graph, expected, eps, rounding=1e-5)
    decided = (np.abs(expected - eps) > 1e-5).all()
    if decided:
        theirs = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit_predict(
            expected)
        ours = assign_pseudo_labels(
            features, k1=k1, k2=k2, eps=eps, min_samples=min_samples, small=True)
        assert np.array_equal(ours < 0, theirs < 0)
        assert np.array_equal(plain.together(ours), plain.together(theirs))
    return graph, decided


def rounding_decides(features, k1):
    """Whether neighbours of some image differ by less than float32 resolves, but are no copies."""
    gaps = np.diff(np.sort(plain.squared_distances(features), axis=1)[:, : k1 + 1], axis=1)
    return bool(((gaps < 1e-6) & (gaps > 0)).any())


@settings(max_examples=40, **SETTINGS)
@given(case=cases(), eps=st.sampled_from([0.35, 0.5, 0.65]), min_samples=st.integers(1, 6))
def test_same_distances_and_labels_as_the_toolbox(case, eps, min_samples):
    features, k1, k2 = case
    assume(len(features) > 2)
    # which of two images the toolbox lists first that differ by less is up to its rounding
    assume(not rounding_decides(features, k1))
    assert_as_the_toolbox(features, k1, k2, eps, min_samples)


@pytest.mark.parametrize("noise, k1, k2", [(0.5, 30, 6), (0.8, 20, 1)])
def test_hundreds_of_images_as_the_toolbox(make_features, noise, k1, k2):
    features, _ = make_features(300, noise=noise, seed=300)
    graph, decided = assert_as_the_toolbox(features, k1, k2, 0.51, 4)
    assert decided and graph.nnz > 2 * 300, "the case must link images"


@settings(max_examples=40, **SETTINGS)
@given(case=cases(), cameras=st.integers(1, 5), k1=st.tuples(st.integers(1, 8), st.integers(1, 25)),
       k2=st.tuples(st.integers(1, 2), st.integers(0, 2)),
       backend=st.sampled_from(["torch", "faiss-flat"]))
def test_camera_aware_equal_to_plain_loops(case, cameras, k1, k2, backend):
    features, _, _ = case
    features = np.unique(features, axis=0).astype(np.float32)  # ties have a test of their own
    camids = np.random.default_rng(len(features)).integers(0, cameras, len(features))
    counts = dict(k1_intra=k1[0], k1_inter=k1[1], k2_intra=k2[0], k2_inter=k2[1])
    expected = plain.ca_jaccard_dense(features, camids, **counts)
    graph = jaccard_graph(features, camids=camids, eps=0.7, small=True,
                          search=Search(backend=backend), **counts)
    plain.assert_same_pairs(graph, expected, 0.7)


@settings(max_examples=20, **SETTINGS)
@given(case=cases(), share=st.floats(0.05, 0.9))
def test_distances_to_a_gallery_are_a_block_of_the_whole(case, share):
    features, k1, k2 = case
    assume(len(features) > 1)
    queries = min(max(1, int(share * len(features))), len(features) - 1)
    expected = plain.jaccard_from_ranks(features, plain.nearest_lists(features, k1)[0], k2)
    got = jaccard_distances(features[:queries], features[queries:], k1=k1, k2=k2, small=True)
    assert got.dtype == np.float32
    assert np.abs(got - expected[:queries, queries:]).max() < 1e-5
