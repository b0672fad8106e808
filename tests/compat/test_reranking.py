"""TEST.RERANK by the sparse engine against the toolbox's own dense distance."""

import tracemalloc

import numpy as np
import pytest
import torch
from caureid_plugin import compat
from caureid_plugin.clustering import memory
from fastreid.evaluation import ReidEvaluator, reid_evaluation
from fastreid.utils import compute_dist

PEOPLE = 12


def features_of(count, dim, *, seed=0, normalise=True):
    """(count, dim) float32: noisy images of PEOPLE identities, row i of identity i % PEOPLE."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(PEOPLE, dim))[np.arange(count) % PEOPLE]
    rows = rows + 0.8 * rng.normal(size=rows.shape)
    # at larger norms the toolbox's |x|^2 + |y|^2 - 2 x.y in float32 loses the digits compared here
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) if normalise else 2 * np.sqrt(dim)
    return torch.from_numpy(rows.astype(np.float32))


def rerank(features, queries, k1, k2):
    return compute_dist.build_dist(
        features[:queries], features[queries:], metric="jaccard", k1=k1, k2=k2)


def dense(features, queries, k1, k2):
    with compat.without("rerank_memory"):
        return rerank(features, queries, k1, k2)


@pytest.mark.parametrize("kind, queries, gallery, dim, k1, k2", [
    ("unit", 20, 130, 16, 20, 6), ("unit", 1, 99, 8, 10, 3), ("unit", 30, 30, 4, 60, 6),
    ("unit", 5, 7, 3, 4, 2), ("unnormalised", 60, 40, 32, 15, 1), ("duplicates", 40, 80, 64, 7, 7),
    ("float16", 20, 50, 16, 10, 6)])
def test_the_distances_are_the_toolboxs(kind, queries, gallery, dim, k1, k2):
    features = features_of(queries + gallery, dim, seed=dim, normalise=kind != "unnormalised")
    if kind == "duplicates":  # among the queries, the gallery, and across
        features[[0, queries - 1, queries, queries + 5]] = features[-1].clone()
    if kind == "float16":
        features = features.half()
    found = rerank(features, queries, k1, k2)
    expected = dense(features.float(), queries, k1, k2)
    assert found.shape == (queries, gallery) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert found.min() < 0.9


def test_more_neighbours_than_there_are():
    """Lists are as long as K1, or hold all images; the toolbox's are padded with the last one."""
    features = features_of(30, 16)
    for k1, k2, listed, averaged in ((100, 6, 30, 6), (5, 9, 5, 5)):
        found = rerank(features, 10, k1, k2)
        np.testing.assert_array_equal(found, rerank(features, 10, listed, averaged))
        np.testing.assert_allclose(found, dense(features, 10, listed, k2), rtol=0, atol=1e-5)
    assert np.abs(rerank(features, 10, 100, 6) - dense(features, 10, 100, 6)).max() > 0.01


def test_other_metrics_are_the_toolboxs():
    features = features_of(40, 16, normalise=False)
    for metric in ("cosine", "euclidean"):
        found = compute_dist.build_dist(features[:9], features[9:], metric)
        with compat.without("rerank_memory"):
            expected = compute_dist.build_dist(features[:9], features[9:], metric)
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(AssertionError, match="Expected metrics"):
        compute_dist.build_dist(features[:9], features[9:], "manhattan")


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_evaluation_is_the_same(cfg, metric):
    cfg.merge_from_list(["TEST.METRIC", metric, "TEST.RERANK.ENABLED", True,
                         "TEST.RERANK.K1", 12, "TEST.RERANK.K2", 4, "TEST.RERANK.LAMBDA", 0.3])
    features = 0.5 * features_of(150, 16, normalise=metric == "euclidean", seed=4)
    labels = torch.arange(150)

    def evaluate():
        evaluator = ReidEvaluator(cfg, 40)
        evaluator.process({"targets": labels % PEOPLE, "camids": labels // PEOPLE % 3}, features)
        return evaluator.evaluate()

    found = evaluate()
    with compat.without("rerank_memory"):
        expected = evaluate()
    assert found.keys() == expected.keys() >= {"mAP", "mINP", "Rank-1", "Rank-5", "Rank-10"}
    assert found == pytest.approx(expected, abs=1e-3)
    cfg.TEST.RERANK.ENABLED = False
    assert abs(found["mAP"] - evaluate()["mAP"]) > 0.1


def test_the_evaluator_calls_the_repaired_function():
    assert reid_evaluation.build_dist is compute_dist.build_dist
    with compat.without("rerank_memory"):
        original = compute_dist.build_dist
        assert reid_evaluation.build_dist is original
    assert compute_dist.build_dist.__wrapped__ is original


def peak_bytes(action):
    """Largest size of what NumPy and Python allocate meanwhile; tensors are not counted."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_hold_all_pairs():
    features = features_of(2000, 16)
    rerank(features[:100], 50, 10, 3)  # compiled
    assert peak_bytes(lambda: rerank(features, 200, 20, 6)) < 4 * 2000**2 / 3
    few = features[:150]  # its loops are slow when they are watched
    assert peak_bytes(lambda: dense(few, 20, 20, 6)) > 2 * 4 * 150**2


def test_what_cannot_be_is_named():
    features = features_of(30, 8)
    for name, k1, k2 in (("K1", 0, 6), ("K2", 20, 0)):
        with pytest.raises(ValueError, match=rf"TEST\.RERANK\.{name} must be at least 1, got 0"):
            rerank(features, 10, k1, k2)
    features[7, 3] = float("nan")
    with pytest.raises(ValueError, match="row 7 holds NaN"):
        rerank(features, 10, 5, 2)


def test_too_little_memory_is_an_error_before_it_starts(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 1e-6)
    with pytest.raises(MemoryError, match="10 queries against 20 images .*TEST.RERANK.K1 5"):
        rerank(features_of(30, 8), 10, 5, 2)


def test_the_dense_function_works_without_cuda():
    features = features_of(50, 8)
    for option in range(4):
        found = compute_dist.compute_jaccard_distance(features, k1=8, k2=3, search_option=option)
        assert found.shape == (50, 50)
        np.testing.assert_allclose(found[:20, 20:], rerank(features, 20, 8, 3), rtol=0, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows a defect without CUDA")
def test_the_dense_function_needs_cuda_without_its_repair():
    features = features_of(50, 8)
    with compat.without("jaccard_without_cuda"):
        for option in range(3):
            with pytest.raises(Exception, match="(?i)cuda|nvidia"):
                compute_dist.compute_jaccard_distance(features, search_option=option)
        assert rerank(features, 20, 8, 3).shape == (20, 30)  # needs it no more
