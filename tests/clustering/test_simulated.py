"""Simulated embeddings: reproducible, frugal, and structured as they claim to be."""

import math
import tracemalloc

import numpy as np
import pytest
from caureid_plugin.clustering import simulated
from caureid_plugin.clustering.simulated import simulate_features

from helpers import plain

SPAN = simulated.ROWS_PER_BLOCK + 5  # two blocks, the second a small one


def mean_distances(features, identities, camids):
    """Mean squared distance of the pairs of each kind: {(same identity, same camera): d}."""
    distances = plain.squared_distances(features)
    identity, camera = (ids[:, None] == ids for ids in (identities, camids))
    apart = ~np.eye(len(features), dtype=bool)
    return {(same, own): distances[(identity == same) & (camera == own) & apart].mean()
            for same in (True, False) for own in (True, False)}


@pytest.mark.parametrize("n, dim", [(1, 1), (200, 64), (2 * SPAN, 1)])
def test_shapes_types_and_lengths(n, dim):
    features, identities, camids = simulate_features(n, dim, cameras=5)
    assert features.shape == (n, dim) and features.dtype == np.float32
    assert identities.shape == camids.shape == (n,)
    assert identities.dtype == camids.dtype == np.int64
    assert (features >= 0).all()  # ReLU
    np.testing.assert_allclose((features.astype(np.float64) ** 2).sum(axis=1), 1, rtol=1e-5)
    assert set(identities.tolist()) == set(range(identities.max() + 1))
    assert set(camids.tolist()) <= set(range(5))


def test_the_seed_decides_every_bit():
    first, again, other = (simulate_features(SPAN, 12, seed=seed) for seed in (3, 3, 4))
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a, b)
    for a, b in zip(first, other, strict=True):
        assert not np.array_equal(a, b)


def test_identities_and_cameras_show():
    mean = mean_distances(*simulate_features(400, 48))
    # (same identity, same camera)
    assert mean[True, True] < mean[True, False] < mean[False, True] < mean[False, False]
    assert mean[True, False] < 0.7 * mean[False, True]


def test_without_style_a_camera_makes_no_difference():
    mean = mean_distances(*simulate_features(400, 48, style=0))
    assert mean[False, True] == pytest.approx(mean[False, False], rel=0.03)
    assert mean[True, True] == pytest.approx(mean[True, False], rel=0.1)


def test_little_memory_beyond_the_result():
    tracemalloc.start()
    try:
        features = simulate_features(20_000, 256)[0]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert features.nbytes > 19 * 2**20
    assert peak < features.nbytes + 8 * 2**20


@pytest.mark.parametrize("arguments, message", [
    ({"n": 0}, "n must be an integer >= 1, got 0"),
    ({"cameras": True}, "cameras must be an integer >= 1, got True"),
    ({"per_identity": math.inf}, "per_identity must be a number >= 1, got inf"),
    ({"seed": -1}, "seed must be an integer >= 0, got -1"),
    ({"noise": math.nan}, "noise must be a number >= 0, got nan"),
])
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        simulate_features(**{"n": 10, "dim": 4, **arguments})
