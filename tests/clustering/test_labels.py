import numpy as np
import pytest
from caureid_plugin.clustering import label_statistics, outliers_to_singletons

from helpers import plain


@pytest.mark.parametrize("labels", [[0, 1, -1, 0, -1, 2, 1], [-1, -1, -1], [0, 0, 1, 1], []])
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


@pytest.mark.parametrize("images, clusters, cameras, outliers", [
    (50, 6, 4, 10), (50, 30, 3, 0), (1, 1, 1, 0), (40, 3, 2, 40), (0, 1, 1, 0)])
def test_statistics_by_loops(images, clusters, cameras, outliers):
    rng = np.random.default_rng(0)
    labels = rng.integers(clusters, size=images)
    labels[rng.permutation(images)[:outliers]] = -1
    camids = rng.integers(cameras, size=images)
    expected = plain.statistics(labels, camids)
    del expected["centres"]
    assert label_statistics(labels, camids) == expected
