"""The toolbox's own dense Jaccard distance and ours are the same distance."""

import caureid_plugin  # noqa: F401  makes the toolbox importable on this Python
import numpy as np
import pytest
import torch
from caureid_plugin.clustering import assign_pseudo_labels, jaccard_graph
from sklearn.cluster import DBSCAN

compute_dist = pytest.importorskip("fastreid.utils.compute_dist", exc_type=ImportError)

KINDS = {
    "normalised": {},
    "noisy": dict(noise=1.5),
    "unnormalised": dict(normalise=False, noise=0.1),
}


@pytest.mark.parametrize("kind", sorted(KINDS) + ["float16", "duplicates"])
@pytest.mark.parametrize(
    "n, k1, k2", [(300, 30, 6), (300, 20, 1), (200, 15, 15), (60, 7, 3), (30, 30, 6), (3, 3, 2)]
)
def test_same_distances_and_same_clusters(make_features, to_dense, kind, n, k1, k2):
    features, _ = make_features(n, **KINDS.get(kind, {}), seed=n)
    if kind == "unnormalised":
        # At squared norms of 30 the toolbox's |x|^2 + |y|^2 - 2 x.y in float32 alone moves its
        # distances by 1e-5; here they are about 3.
        features *= 0.3
    if kind == "float16":
        features = features.astype(np.float16)
    if kind == "duplicates" and n > 30:
        features[[1, 11, 21]] = features[25]
    expected = compute_dist.compute_jaccard_distance(
        torch.from_numpy(features.astype(np.float32)), k1=k1, k2=k2, search_option=3
    )
    for eps in (0.51, 0.61):
        assert np.abs(expected - eps).min() > 1e-5, "a distance on the threshold: change eps"
        assert_same_graph(features, k1, k2, eps, expected, to_dense)
        assert_same_clusters(features, k1, k2, eps, expected)


def assert_same_graph(features, k1, k2, eps, expected, to_dense):
    got = to_dense(jaccard_graph(features, k1=k1, k2=k2, eps=eps, small=True), fill=np.inf)
    within = expected <= eps
    assert np.array_equal(np.isfinite(got), within)
    assert np.abs(got[within] - expected[within]).max() < 1e-5


def assert_same_clusters(features, k1, k2, eps, expected):
    clusters = DBSCAN(eps=eps, min_samples=4, metric="precomputed").fit_predict(expected)
    labels = assign_pseudo_labels(
        features, k1=k1, k2=k2, eps=eps, min_samples=4, small=True)
    assert np.array_equal(labels < 0, clusters < 0)
    assert np.array_equal(labels[:, None] == labels, clusters[:, None] == clusters)
