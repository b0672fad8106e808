import sys

import numpy as np
import pytest

from caureid_plugin.clustering import neighbors, search_neighbors


@pytest.fixture(params=["faiss", "torch", "torch in tiles of 3 rows"])
def back_end(request, monkeypatch, make_features):
    """Runs a test once per way of searching."""
    if request.param == "faiss":
        pytest.importorskip("faiss")
        return
    monkeypatch.setitem(sys.modules, "faiss", None)  # makes "import faiss" fail
    if "tiles" in request.param:
        monkeypatch.setattr(neighbors, "TILE_ENTRIES", 3 * 50 + 7)


@pytest.mark.parametrize("k", [1, 7, 50])
@pytest.mark.parametrize("normalise", [True, False])
def test_lists_hold_the_nearest_images_in_order(back_end, make_features, k, normalise):
    features, _ = make_features(50, normalise=normalise)
    ranks = search_neighbors(features, k)
    assert ranks.shape == (50, k) and ranks.dtype == np.int64
    for i in range(50):
        difference = features.astype(np.float64) - features[i]
        distances = (difference**2).sum(axis=1)
        assert len(set(ranks[i])) == k
        assert np.allclose(distances[ranks[i]], np.sort(distances)[:k], atol=1e-4)
    assert np.array_equal(ranks[:, 0], np.arange(50))


def test_duplicates_fill_the_first_places(back_end, make_features):
    features, _ = make_features(50)
    copies = [3, 17, 18, 44]
    features[copies] = features[3]
    ranks = search_neighbors(features, 6)
    for i in copies:
        assert set(ranks[i, :4]) == set(copies)


def test_more_duplicates_than_places(back_end):
    ranks = search_neighbors(np.ones((50, 4), dtype=np.float32), 5)
    assert all(len(set(row)) == 5 for row in ranks)
    assert ranks.min() >= 0 and ranks.max() < 50


def test_one_image(back_end):
    assert search_neighbors(np.ones((1, 4), dtype=np.float32), 1).tolist() == [[0]]


def test_search_does_not_change_the_features(back_end, make_features):
    features, _ = make_features(50)
    before = features.copy()
    search_neighbors(features, 5)
    assert np.array_equal(features, before)
