"""The label-free indicators, against plain loops and scikit-learn's own silhouette."""

import math

import numpy as np
import pytest
import torch
from caureid_plugin.clustering import (
    camera_shares,
    indicators,
    label_indicators,
    silhouette,
    stability,
)
from sklearn.metrics import silhouette_score


def _data(seed, n=60, clusters=5, spread=0.6):
    """Unit features around centres, labels of which some are -1, cameras."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(clusters), rng.integers(-1, clusters, n - clusters)])
    centres = rng.normal(size=(clusters + 1, 8))
    features = centres[labels] + spread * rng.normal(size=(n, 8))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return torch.from_numpy(features.astype(np.float32)), labels, rng.integers(3, size=n)


def _plain_silhouettes(features, labels):
    """Of each image, in a loop; distances are 1 - cosine to means of images; 0 if it is alone."""
    values = []
    x = features.double().numpy()

    def distance(point, members):
        mean = x[members].mean(axis=0)
        return 1 - point @ mean / np.linalg.norm(mean)

    for i in range(len(labels)):
        own = [j for j in np.flatnonzero(labels == labels[i]) if j != i]
        if not own or labels[i] < 0:
            values.append(0.0)
            continue
        a = distance(x[i], own)
        b = min(distance(x[i], np.flatnonzero(labels == c))
                for c in set(labels[labels >= 0]) if c != labels[i])
        values.append((b - a) / max(a, b))
    return values


@pytest.mark.parametrize("held", [indicators.HELD, 22])  # all images at once, a few at a time
def test_silhouette_against_a_loop_where_an_image_alone_counts_as_zero(monkeypatch, held):
    monkeypatch.setattr(indicators, "HELD", held)
    features, labels, _ = _data(4, clusters=3)
    labels = np.append(labels, 3)
    features = torch.cat((features, -features[:1]))
    expected = _plain_silhouettes(features, labels)
    assert expected[-1] == 0.0 and (labels < 0).any()
    assert silhouette(features, labels) == pytest.approx(np.mean(expected), abs=1e-5)


def test_silhouette_orders_clusterings_as_scikit_learns_does():
    ours, theirs = [], []
    for spread in (0.1, 0.4, 0.8, 1.6):
        features, labels, _ = _data(7, n=200, spread=spread)
        inlier = labels >= 0
        ours.append(silhouette(features, labels))
        theirs.append(silhouette_score(features[inlier], labels[inlier], metric="cosine"))
    assert np.argsort(ours).tolist() == np.argsort(theirs).tolist() == [3, 2, 1, 0]


def test_a_sample_is_seeded_and_near_the_whole():
    features, labels, _ = _data(3, n=800, clusters=20)
    before = np.random.get_state()[1].copy()
    one, again, other = (silhouette(features, labels, sample=300, seed=s) for s in (1, 1, 2))
    assert one == again != other
    values = _plain_silhouettes(features, labels)
    assert 0 < abs(one - np.mean(values)) < 4 * np.std(values) / math.sqrt(300)
    assert (np.random.get_state()[1] == before).all()


def test_one_cluster_has_no_silhouette():
    features, labels, camids = _data(1)
    with pytest.raises(ValueError, match="two clusters, got 1"):
        silhouette(features, np.minimum(labels, 0))
    assert "silhouette" not in label_indicators(np.minimum(labels, 0), camids, features)


def _plain_rand_index(one, other):
    """Adjusted for chance, counted pair by pair; an outlier is together with nobody."""
    n = len(one)
    together = np.zeros((2, 2))
    for i in range(n):
        for j in range(i):
            first = one[i] == one[j] >= 0
            second = other[i] == other[j] >= 0
            together[int(first), int(second)] += 1
    both, total = together[1, 1], together.sum()
    a, b = together[1].sum(), together[:, 1].sum()
    chance = a * b / total
    return (both - chance) / ((a + b) / 2 - chance)


@pytest.mark.parametrize("seed", range(3))
def test_stability_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    one = rng.integers(-1, 4, 50)
    other = np.where(rng.random(50) < 0.3, rng.integers(-1, 4, 50), one)
    assert stability(one, other) == pytest.approx(_plain_rand_index(one, other))
    assert stability(one, one) == 1.0


def test_shares_and_what_is_left_out_the_first_time():
    features, _, _ = _data(0, n=10)
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2, -1, -1])
    camids = np.array([0, 0, 0, 0, 0, 1, 1, 2, 0, 1])
    found = label_indicators(labels, camids, features)
    assert found.pop("silhouette") == pytest.approx(
        np.mean(_plain_silhouettes(features, labels)), abs=1e-5)
    assert found == {"outlier_share": 0.2, "largest_share": 0.4,
                     "cross_camera": pytest.approx(2 / 3),
                     "own_camera": camera_shares(features, camids)[0]}
    assert "own_camera" not in label_indicators(labels, camids * 0, features)
    for previous, expected in ((np.full(10, -1), None), (labels, 1.0)):
        later = label_indicators(labels, camids, features, previous=previous)
        assert later.get("stability") == expected


@pytest.mark.parametrize("held", [indicators.HELD, 90])  # all images at once, two at a time
def test_camera_shares_against_a_loop(monkeypatch, held):
    monkeypatch.setattr(indicators, "HELD", held)
    features, _, _ = _data(3, n=40)
    features = torch.cat((features, features[:5]))  # an image's copy is a neighbour, itself is not
    camids = np.random.default_rng(3).choice([0, 2, 7], size=45)
    shared = 0
    for i in range(45):
        distance = ((features - features[i]) ** 2).sum(dim=1).numpy()
        distance[i] = np.inf
        shared += (camids[np.argsort(distance)[:5]] == camids[i]).sum()
    chance = np.mean([camids[i] == camids[j] for i in range(45) for j in range(45) if i != j])
    assert camera_shares(features, camids, 5) == pytest.approx((shared / 225, chance))
    assert camera_shares(features, camids, 99)[0] == pytest.approx(chance)  # all others
    part = [camera_shares(features, camids, 5, sample=20, seed=seed)[0] for seed in range(30)]
    assert len(set(part)) > 5 and np.mean(part) == pytest.approx(shared / 225, abs=0.03)
