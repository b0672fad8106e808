import numpy as np
import pytest
from caureid_plugin.clustering import label_statistics, outliers_to_singletons

LABELS = [
    [0, 1, -1, 0, -1, 2, 1],
    [-1, -1, -1],
    [0, 0, 1, 1],
    [-1, 0],
    [0],
    [],
]


@pytest.mark.parametrize("labels", LABELS)
def test_outliers_to_singletons_by_loops(labels):
    expected, following = [], max(labels, default=-1) + 1
    for label in labels:
        expected.append(following if label == -1 else label)
        following += label == -1
    given = np.array(labels, dtype=np.int64)
    found = outliers_to_singletons(given)
    assert found.tolist() == expected and found.dtype == np.int64
    assert given.tolist() == labels, "the caller's labels must stay as they are"
    assert sorted(set(expected)) == list(range(len(set(expected))))


def plain_statistics(labels, camids):
    members = {}
    for label, camera in zip(labels.tolist(), camids.tolist(), strict=True):
        members.setdefault(label, []).append(camera)
    outliers = len(members.pop(-1, []))
    crossing = [len(set(cameras)) > 1 for cameras in members.values()]
    return {
        "clusters": len(members),
        "outliers": outliers,
        "largest": max([len(cameras) for cameras in members.values()], default=0),
        "cross_camera": sum(crossing) / len(crossing) if crossing else 0.0,
    }


@pytest.mark.parametrize("images, clusters, cameras, outliers", [
    (50, 6, 4, 10), (50, 30, 3, 0), (20, 5, 1, 4), (1, 1, 1, 0), (40, 3, 2, 40),
])
@pytest.mark.parametrize("seed", [0, 1])
def test_statistics_by_loops(images, clusters, cameras, outliers, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(clusters, size=images)
    labels[rng.permutation(images)[:outliers]] = -1
    camids = rng.integers(cameras, size=images)
    assert label_statistics(labels, camids) == plain_statistics(labels, camids)


def test_statistics_by_hand():
    labels = np.array([0, 0, 0, 1, 1, -1, 2])
    camids = np.array([0, 1, 1, 2, 2, 0, 1])
    assert label_statistics(labels, camids) == {
        "clusters": 3, "outliers": 1, "largest": 3, "cross_camera": pytest.approx(1 / 3)}


@pytest.mark.parametrize("labels", [[-1, -1, -1], []])
def test_statistics_without_a_cluster(labels):
    labels = np.array(labels, dtype=np.int64)
    assert label_statistics(labels, np.zeros_like(labels)) == {
        "clusters": 0, "outliers": len(labels), "largest": 0, "cross_camera": 0.0}


def test_singletons_count_as_clusters_of_one_camera():
    labels, camids = np.array([0, 0, -1, -1]), np.array([0, 1, 0, 1])
    figures = label_statistics(outliers_to_singletons(labels), camids)
    assert figures == {
        "clusters": 3, "outliers": 0, "largest": 2, "cross_camera": pytest.approx(1 / 3)}
