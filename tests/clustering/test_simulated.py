"""Simulated embeddings: reproducible, frugal, and structured as they claim to be."""

import math
import tracemalloc

import numpy as np
import pytest
from caureid_plugin.clustering import simulated
from caureid_plugin.clustering.simulated import simulate_features
from threadpoolctl import threadpool_limits

SPAN = simulated.ROWS_PER_BLOCK + 5  # two blocks, the second a small one


def mean_distances(features, identities, camids):
    """Mean squared distance of the pairs of each kind, by loops: {(same identity, camera): d}."""
    sums, counts = {}, {}
    rows = features.astype(np.float64)
    for i in range(len(rows)):
        for j in range(i):
            kind = bool(identities[i] == identities[j]), bool(camids[i] == camids[j])
            sums[kind] = sums.get(kind, 0.0) + ((rows[i] - rows[j]) ** 2).sum()
            counts[kind] = counts.get(kind, 0) + 1
    return {kind: total / counts[kind] for kind, total in sums.items()}


@pytest.mark.parametrize("n, dim", [(1, 1), (7, 3), (200, 64), (SPAN, 8), (2 * SPAN, 1)])
def test_shapes_types_and_lengths(n, dim):
    features, identities, camids = simulate_features(n, dim, cameras=5)
    assert features.shape == (n, dim) and features.dtype == np.float32
    assert identities.shape == camids.shape == (n,)
    assert identities.dtype == camids.dtype == np.int64
    assert (features >= 0).all()  # ReLU
    for row in features[:: max(1, n // 50)]:
        assert math.isclose(sum(float(value) ** 2 for value in row), 1, rel_tol=1e-5)
    np.testing.assert_allclose((features.astype(np.float64) ** 2).sum(axis=1), 1, rtol=1e-5)
    assert set(identities.tolist()) == set(range(identities.max() + 1))
    assert set(camids.tolist()) <= set(range(5))


def test_the_seed_decides_every_bit():
    first, again, other = (simulate_features(SPAN, 12, seed=seed) for seed in (3, 3, 4))
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a, b)
    for a, b in zip(first, other, strict=True):
        assert not np.array_equal(a, b)


def test_blocks_do_not_repeat_each_other():
    features = simulate_features(SPAN, 12)[0]
    size = simulated.ROWS_PER_BLOCK
    assert not (features[size:] == features[: SPAN - size]).all(axis=1).any()
    # the same stream twice would show even where identities and cameras differ
    noise = simulate_features(SPAN, 12, noise=0, isotropic=1e4)[0]
    assert not np.isclose(noise[size:], noise[: SPAN - size], atol=1e-2).all(axis=1).any()


def test_threads_make_no_difference():
    found = []
    for threads in (1, 2):
        with threadpool_limits(limits=threads):
            found.append(simulate_features(SPAN, 96)[0])
    assert np.array_equal(*found)


def test_identities_and_cameras_show():
    mean = mean_distances(*simulate_features(400, 48))
    # (same identity, same camera)
    assert mean[True, True] < mean[True, False] < mean[False, True] < mean[False, False]
    assert mean[True, False] < 0.7 * mean[False, True]


def test_without_style_a_camera_makes_no_difference():
    mean = mean_distances(*simulate_features(400, 48, style=0))
    assert mean[False, True] == pytest.approx(mean[False, False], rel=0.03)
    assert mean[True, True] == pytest.approx(mean[True, False], rel=0.1)


def test_without_noise_an_identity_and_camera_have_one_feature():
    features, identities, camids = simulate_features(300, 48, noise=0, isotropic=0)
    first = {}
    pairs = zip(identities.tolist(), camids.tolist(), strict=True)
    for feature, pair in zip(features, pairs, strict=True):
        np.testing.assert_allclose(feature, first.setdefault(pair, feature), atol=1e-6)
    assert len(np.unique(np.round(features, 4), axis=0)) == len(first) > 60


@pytest.mark.parametrize("n, per_identity", [(20_000, 17), (20_000, 4.5), (5_000, 60)])
def test_sizes_of_identities(n, per_identity):
    _, identities, camids = simulate_features(n, 1, per_identity=per_identity)
    sizes = np.bincount(identities)
    # images fall on K weighted identities: Poisson's variance plus that of Gamma(3)
    deviation = math.sqrt(per_identity + per_identity ** 2 / 3)
    assert sizes.mean() == pytest.approx(per_identity, rel=0.15)
    assert sizes.std() == pytest.approx(deviation, rel=0.25)
    assert np.bincount(camids).min() > n / 6 * 0.8


def test_little_memory_beyond_the_result():
    tracemalloc.start()
    try:
        features = simulate_features(30_000, 256)[0]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert features.nbytes > 29 * 2**20
    assert peak < features.nbytes + 8 * 2**20


@pytest.mark.parametrize("arguments, message", [
    ({"n": 0}, "n must be an integer >= 1, got 0"),
    ({"dim": 2.0}, "dim must be an integer >= 1, got 2.0"),
    ({"cameras": True}, "cameras must be an integer >= 1, got True"),
    ({"latent": -1}, "latent must be an integer >= 1, got -1"),
    ({"per_identity": 0.5}, "per_identity must be a number >= 1, got 0.5"),
    ({"per_identity": math.inf}, "per_identity must be a number >= 1, got inf"),
    ({"seed": -1}, "seed must be an integer >= 0, got -1"),
    ({"style": -0.1}, "style must be a number >= 0, got -0.1"),
    ({"noise": math.nan}, "noise must be a number >= 0, got nan"),
    ({"isotropic": "much"}, "isotropic must be a number >= 0, got 'much'"),
])
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        simulate_features(**{"n": 10, "dim": 4, **arguments})
