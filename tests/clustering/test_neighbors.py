import logging
import sys

import numpy as np
import pytest
import torch
from caureid_plugin.clustering import (
    Search,
    best_scores,
    exact_search,
    faiss_search,
    kernels,
    projected_search,
    rounded,
    search_by_camera,
    search_neighbors,
)
from caureid_plugin.clustering.exact_search import search_exact
from caureid_plugin.clustering.rounded import RoundedFeatures

from helpers import plain

CPU = torch.device("cpu")
BACKENDS = ["torch", "torch float32", "torch in tiles", "torch as on a GPU", "faiss-flat"]


@pytest.fixture(params=BACKENDS)
def search(request, monkeypatch):
    """Runs a test once per exact way of searching."""
    name = request.param
    if name == "faiss-flat":
        monkeypatch.setattr(faiss_search, "ROWS", 7)
        return Search(backend=name)
    if name == "torch as on a GPU":
        best = exact_search.BestScores
        monkeypatch.setattr(exact_search, "BestScores", lambda *args: best(*args, loop=False))
    dtype = torch.bfloat16 if name in ("torch", "torch in tiles") else torch.float32
    monkeypatch.setattr(exact_search, "fast_dtype", lambda device: dtype)
    if name == "torch in tiles":
        for module in (exact_search, rounded):
            monkeypatch.setattr(module, "TILE_ROWS", 7)
        monkeypatch.setattr(exact_search, "CACHED_TILE", 7 * 7 * 3 * 2)
    return Search(backend="torch")


def assert_same_lists(found, expected):
    ranks, distances = found
    assert ranks.dtype == np.int32 and distances.dtype == np.float32
    assert np.array_equal(ranks, expected[0])
    assert np.allclose(distances, expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n, k, normalise, shift", [
    (50, 1, True, 0), (50, 50, True, 30),
    (50, 7, False, 30),  # far from the origin, where rounding costs most
    (1100, 12, True, 0),  # most images are no candidates of each other
])
def test_lists_hold_the_nearest_images_in_order(search, make_features, n, k, normalise, shift):
    features, _ = make_features(n, normalise=normalise)
    features += np.float32(shift)
    before = features.copy()
    assert_same_lists(search_neighbors(features, k, search=search),
                      plain.nearest_lists(features, k))
    assert np.array_equal(features, before), "the caller's features must not change"


@pytest.mark.parametrize("cameras, few", [(1, 0), (2, 3), (5, 3)])
def test_lists_by_camera(search, make_features, cameras, few):
    features, _ = make_features(90, cameras=cameras)
    camids = np.random.default_rng(0).integers(0, cameras, 90) * 4 - 3  # any integers will do
    camids[:few] = 99  # a camera with fewer images than the list
    same = camids[:, None] == camids
    intra, inter = search_by_camera(features, torch.from_numpy(camids), 6, 21, search=search)
    assert_same_lists(intra, plain.nearest_lists(features, 6, same))
    assert_same_lists(inter, plain.nearest_lists(features, 21, ~same))
    with pytest.raises(ValueError, match=r"90 images, got shape \(89,\)"):
        search_by_camera(features, camids[1:], 6, 21, search=search)


@pytest.mark.parametrize("spread, shift, decided", [
    (1e-2, 0.0, True), (1e-2, 5.0, True), (1e-3, 5.0, False), (0.0, 5.0, False)])
def test_images_that_cannot_be_proved_are_searched_again(
        make_features, monkeypatch, spread, shift, decided):
    # Images in a tight bunch far from others: their distances are below bfloat16's rounding, or
    # below that of float32 products, or they are copies.
    features, _ = make_features(800, 16)
    features[:400] = features[0] + np.float32(spread) * features[:400]
    features += np.float32(shift)
    counts = {}

    def count(name, rows, work):
        def counted(*args):
            counts[name] = counts.get(name, 0) + len(args[rows])
            return work(*args)

        monkeypatch.setattr(exact_search, name, counted)

    count("_search_again", 3, exact_search._search_again)
    count("_compare_all", 4, exact_search._compare_all)
    found, = search_exact(features, lambda **kind: exact_search.Everyone(800, 20, **kind),
                          device=CPU, dtype=torch.bfloat16)
    assert counts["_search_again"] >= 400, "the case must be one that bfloat16 cannot decide"
    assert (counts["_compare_all"] < 100) == decided, "float32 products can decide it, or not"
    expected = plain.nearest_lists(features, 20)
    assert np.allclose(found[1], expected[1], rtol=1e-5, atol=1e-6)
    own = features.astype(np.float64)[:, None] - features.astype(np.float64)[found[0]]
    assert np.allclose((own**2).sum(axis=2), expected[1], rtol=1e-5, atol=1e-9)
    if spread == 0:  # of copies the first
        assert np.array_equal(found[0][:400], expected[0][:400])


def test_what_would_take_minutes_is_said(make_features, monkeypatch, caplog):
    monkeypatch.setattr(exact_search, "MOST_TERMS", 10)
    features = np.ones((400, 4), dtype=np.float32)
    ranks, distances = search_neighbors(features, 5, search=Search("torch"))
    assert "400 images have more than 256 neighbours at the same distance" in caplog.text
    assert (distances == 0).all() and all(len(set(row)) == 5 for row in ranks)


def test_of_equal_scores_the_lower_column_is_kept():
    scores = torch.ones(1, 64).bfloat16()
    best = best_scores.BestScores(1, 5, torch.bfloat16, CPU)
    for start in (0, 64):
        best.add(0, start, best.prepare(scores.clone()))
    assert sorted(best.of(slice(0, 1))[1][0].tolist()) == [0, 1, 2, 3, 4]
    best.forget(slice(0, 1))
    best.merge(slice(0, 1), scores[:, :9], torch.arange(9, 0, -1, dtype=torch.int32)[None])
    assert sorted(best.of(slice(0, 1))[1][0].tolist()) == [1, 2, 3, 4, 5]


def test_settings_of_torch_are_left_as_they_were(make_features):
    features, _ = make_features(300)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        found, = search_exact(features, lambda **kind: exact_search.Everyone(300, 9, **kind),
                              device=CPU, dtype=torch.float32)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert_same_lists(found, plain.nearest_lists(features, 9))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [1.0, 1000.0, 1e-3])
def test_every_distance_is_between_its_bounds(make_features, dtype, scale):
    """The proof's inequalities, for every pair and the score that the tile gave it."""
    features, _ = make_features(120, 48, normalise=False)
    features = np.maximum(features, 0) * np.float32(scale) + np.float32(scale)
    rounded = RoundedFeatures(features, np.arange(120), dtype, CPU)
    everything = slice(0, 120)
    scores = rounded.scores(rounded.left(everything), everything).double().numpy()
    unit, lost, errors, rounding = rounded.slack(
        everything, rounded.norms.max(), rounded.errors.max())
    exact = plain.squared_distances(features)
    low, high = np.array([
        [kernels.bounds_of(score, unit, lost[i], errors[i], rounding) for score in row]
        for i, row in enumerate(scores)]).transpose(2, 0, 1)
    assert (low <= exact).all() and (exact <= high).all()
    apart = ~np.eye(120, dtype=bool)
    slack = (high - low)[apart] / low[apart]
    assert np.median(slack) < (0.2 if dtype == torch.bfloat16 else 1e-3), "they must say something"


@pytest.mark.parametrize("images, copies, k", [
    (50, [3, 17, 18, 44], 6), (50, range(50), 5), (1, [0], 1)],
    ids=["few copies", "more copies than places", "one image"])
def test_duplicates_come_by_index(search, make_features, images, copies, k):
    features, _ = make_features(images)
    features[list(copies)] = features[copies[0]]
    assert_same_lists(search_neighbors(features, k, search=search),
                      plain.nearest_lists(features, k))


def test_approximate_search_reaches_its_recall(make_features, monkeypatch, caplog):
    monkeypatch.setattr(projected_search, "FEWEST", 8)
    n = 900
    features, _ = make_features(n, 8, noise=1.0)
    blur = 0.12 * np.random.default_rng(0).normal(size=(n, 24))  # 8 values matter more than these
    features = np.concatenate([features, blur.astype(np.float32)], axis=1)
    camids = np.arange(n) % 2
    same = camids[:, None] == camids
    caplog.set_level(logging.INFO, logger="caureid_plugin")
    search = Search(backend="torch-pca", recall=0.95)
    results = [search_neighbors(features, 10, search=search),
               *search_by_camera(features, camids, 10, 10, search=search)]
    for (found, _), allowed in zip(results, (np.ones_like(same), same, ~same), strict=True):
        expected, _ = plain.nearest_lists(features, 10, allowed)
        hits = [len(set(a) & set(b))
                for a, b in zip(found.tolist(), expected.tolist(), strict=True)]
        assert 0.94 < np.mean(hits) / 10 < 1, "approximate, but not by more than it was told"
    assert "recall" in caplog.text and "approximate search" in caplog.text


def test_components_that_do_not_suffice_end_in_the_exact_search(make_features, caplog):
    features, _ = make_features(600, 48, noise=2.0)  # no direction matters less than another
    with caplog.at_level(logging.INFO, logger="caureid_plugin"):
        found = search_neighbors(features, 8, search=Search(backend="torch-pca", recall=1.0))
    assert_same_lists(found, plain.nearest_lists(features, 8))
    assert "the search is exact" in caplog.text


def test_recall_by_hand():
    exact = np.array([[0, 1, 2], [3, 4, -1]])
    found = np.array([[2, 0, 9], [4, -1, -1]])
    assert projected_search.measure_recall(found, exact) == 3 / 5


@pytest.mark.parametrize("given, images, device, chosen", [
    ("auto", 200_000, "cpu", "torch"), ("auto", 200_001, "cpu", "torch-pca"),
    ("auto", 10**6, "cuda", "torch"), ("torch", 10**6, "cpu", "torch")])
def test_auto_chooses_by_size_and_device(given, images, device, chosen):
    assert Search(given).resolve(images, torch.device(device)) == chosen


def test_without_faiss(monkeypatch, make_features):
    monkeypatch.setitem(sys.modules, "faiss", None)  # makes "import faiss" fail
    features, _ = make_features(40)
    for backend in ("auto", "torch", "torch-pca"):
        assert search_neighbors(features, 5, search=Search(backend))[0].shape == (40, 5)
    with pytest.raises(ImportError, match="set backend to torch"):
        search_neighbors(features, 5, search=Search(backend="faiss-flat"))


@pytest.mark.parametrize("option, named", [
    (dict(backend="annoy"), "backend 'annoy'"),
    (dict(recall=0), "recall.*got 0"),
    (dict(max_memory=-1.0), r"max_memory.*got -1\.0"),
])
def test_bad_options_are_named(option, named):
    with pytest.raises(ValueError, match=named):
        Search(**option)


@pytest.mark.parametrize("flags, mkldnn, device, expected", [
    ("fpu avx512f avx512_bf16", True, "cpu", torch.bfloat16),
    ("fpu amx_bf16", True, "cpu", torch.bfloat16),
    ("fpu avx2", True, "cpu", torch.float32),
    ("fpu avx512_bf16", False, "cpu", torch.float32),
    ("fpu avx512_bf16", True, "cuda", torch.float32),
    (None, True, "cpu", torch.float32),
])
def test_bfloat16_only_where_it_is_native(monkeypatch, tmp_path, flags, mkldnn, device, expected):
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    monkeypatch.setattr(rounded, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: mkldnn)
    assert rounded.fast_dtype(torch.device(device)) == expected
