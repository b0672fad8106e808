"""TEST.RERANK by the sparse engine against the toolbox's own dense distance."""

import tracemalloc

import numpy as np
import pytest
import torch
from caureid_plugin import compat
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
    pytest.importorskip("faiss")
    with compat.without("rerank_memory"):
        return rerank(features, queries, k1, k2)


@pytest.mark.parametrize("queries, gallery, dim, k1, k2", [
    (20, 130, 16, 20, 6), (1, 99, 8, 10, 3), (60, 40, 32, 15, 1), (40, 200, 64, 7, 7),
    (30, 30, 4, 60, 6), (5, 7, 3, 4, 2)])
@pytest.mark.parametrize("kind", ["unit", "unnormalised", "duplicates", "float16"])
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


def test_more_neighbours_averaged_than_listed():
    """K2 above K1: the toolbox averages over the list there is."""
    features = features_of(80, 16)
    found = rerank(features, 20, 5, 9)
    np.testing.assert_allclose(found, dense(features, 20, 5, 9), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found, rerank(features, 20, 5, 5))


def test_more_neighbours_wanted_than_images():
    """Lists then hold all images; the toolbox's are padded with the last one."""
    features = features_of(30, 16)
    found = rerank(features, 10, 100, 6)
    np.testing.assert_allclose(found, dense(features, 10, 30, 6), rtol=0, atol=1e-5)
    assert np.abs(found - dense(features, 10, 100, 6)).max() > 0.01


def test_other_metrics_are_the_toolboxs():
    features = features_of(40, 16, normalise=False)
    for metric in ("cosine", "euclidean"):
        found = compute_dist.build_dist(features[:9], features[9:], metric)
        with compat.without("rerank_memory"):
            expected = compute_dist.build_dist(features[:9], features[9:], metric)
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(AssertionError, match="Expected metrics"):
        compute_dist.build_dist(features[:9], features[9:], "manhattan")


def evaluate(cfg, features, queries):
    evaluator = ReidEvaluator(cfg, queries)
    labels = torch.arange(len(features))
    evaluator.process({"targets": labels % PEOPLE, "camids": labels // PEOPLE % 3}, features)
    return evaluator.evaluate()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_evaluation_is_the_same(cfg, metric):
    pytest.importorskip("faiss")
    cfg.merge_from_list(["TEST.METRIC", metric, "TEST.RERANK.ENABLED", True,
                         "TEST.RERANK.K1", 12, "TEST.RERANK.K2", 4, "TEST.RERANK.LAMBDA", 0.3])
    features = 0.5 * features_of(240, 16, normalise=metric == "euclidean", seed=4)
    found = evaluate(cfg, features, 40)
    with compat.without("rerank_memory"):
        expected = evaluate(cfg, features, 40)
    assert found.keys() == expected.keys() >= {"mAP", "mINP", "Rank-1", "Rank-5", "Rank-10"}
    assert found == pytest.approx(expected, abs=1e-3)
    cfg.TEST.RERANK.ENABLED = False
    assert abs(found["mAP"] - evaluate(cfg, features, 40)["mAP"]) > 0.1


def test_the_evaluator_calls_the_repaired_function():
    assert reid_evaluation.build_dist is compute_dist.build_dist
    with compat.without("rerank_memory"):
        assert reid_evaluation.build_dist is compute_dist.build_dist
        original = compute_dist.build_dist
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
    features = features_of(3000, 16)
    rerank(features[:100], 50, 10, 3)  # compiled
    assert peak_bytes(lambda: rerank(features, 300, 20, 6)) < 4 * 3000**2 / 3
    few = features[:400]  # its loops are slow when they are watched
    assert peak_bytes(lambda: dense(few, 40, 20, 6)) > 2 * 4 * 400**2


# ------------------------------------------------------------------------------- bad input ----


@pytest.mark.parametrize("k1, k2, name", [(0, 6, "K1 must be at least 1, got 0"),
                                          (20, 0, "K2 must be at least 1, got 0")])
def test_a_count_out_of_range_is_named_by_its_key(k1, k2, name):
    with pytest.raises(ValueError, match=f"TEST.RERANK.{name}"):
        rerank(features_of(30, 8), 10, k1, k2)


def test_features_that_are_not_finite_are_named():
    features = features_of(30, 8)
    features[7, 3] = float("nan")
    with pytest.raises(ValueError, match="row 7 holds NaN"):
        rerank(features, 10, 5, 2)


def test_too_little_memory_is_an_error_before_it_starts(monkeypatch):
    from caureid_plugin.clustering import memory

    monkeypatch.setattr(memory, "available", lambda: 1e-6)
    with pytest.raises(MemoryError, match="10 queries against 20 images .*TEST.RERANK.K1 5"):
        rerank(features_of(30, 8), 10, 5, 2)


# ------------------------------------------------- the toolbox's dense function, called directly


@pytest.mark.parametrize("option", range(4))
def test_the_dense_function_works_without_cuda(option):
    pytest.importorskip("faiss")
    features = features_of(50, 8)
    found = compute_dist.compute_jaccard_distance(features, k1=8, k2=3, search_option=option)
    assert found.shape == (50, 50)
    np.testing.assert_allclose(found[:20, 20:], rerank(features, 20, 8, 3), rtol=0, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows a defect without CUDA")
@pytest.mark.parametrize("option", range(3))
def test_the_dense_function_needs_cuda_without_its_repair(option):
    with compat.without("jaccard_without_cuda"):
        with pytest.raises(Exception, match="(?i)cuda|nvidia"):
            compute_dist.compute_jaccard_distance(features_of(50, 8), search_option=option)
        assert rerank(features_of(50, 8), 20, 8, 3).shape == (20, 30)  # needs it no more
