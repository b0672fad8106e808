"""Small cameras by their rule, alike ones on cameras that are and are not the same."""

import caureid_plugin  # noqa: F401  (before everything that imports fastreid)
import numpy as np
import pytest
from caureid_plugin.data import CAMERA_PREFIX as PREFIX
from caureid_plugin.inspection import (
    cameras,
    compare_cameras,
    least_images,
    short_names,
    small_cameras,
    summarize_cameras,
)
from sklearn.linear_model import LogisticRegression


def test_small_cameras_by_the_rule(cfg):
    camids = np.repeat([0, 1, 2, 3], [100, 60, 3, 7])
    for batch in (16, 24, 25, 64):
        for least in (0, 5, 8, 101):
            expected = [camera for camera, size in enumerate((100, 60, 3, 7))
                        if batch * size / 170 < 1 or size < least]
            assert small_cameras(camids, batch, least) == expected
    cfg.merge_from_list(["CAUREID.CLUSTER.CAMERA_AWARE", True, "CAUREID.CLUSTER.K1_INTRA", 4])
    assert least_images(cfg) == 5, "an image and its neighbours"
    cfg.CAUREID.CLUSTER.CAMERA_AWARE = False
    assert least_images(cfg) == 0


def test_lines_for_the_log():
    names = ["north", "east", "south"]
    line, = summarize_cameras(np.repeat([0, 1, 2], [50, 20, 30]), names, batch_size=16)
    assert "100 training images of 3 cameras" in line
    assert "smallest east with 20" in line and "largest north with 50" in line
    warning = summarize_cameras(
        np.repeat([0, 1, 2], [50, 1, 49]), names, batch_size=16, least=6)[1]
    assert ": east (1)." in warning
    line, = summarize_cameras(np.arange(4) % 2, names[:2], batch_size=2)
    assert "4 training images of 2 cameras, 2 each" in line
    line, = summarize_cameras(np.zeros(5, int), ["only"], batch_size=16)
    assert "5 training images of one camera (only)" in line
    many = np.concatenate([np.zeros(1000, int), np.arange(1, 9)])
    warning = summarize_cameras(many, [f"c{i}" for i in range(9)], batch_size=16)[1]
    assert "c5 (1) and 3 more" in warning and "c6" not in warning


def people(seed, images, tint):
    """Thumbnails of people, 10 images each: colours of a person, the camera's tint, noise."""
    rng = np.random.default_rng(seed)
    clothes = np.repeat(rng.uniform(0, 255, size=(images // 10, 96)), 10, axis=0)
    background = np.random.default_rng(tint).uniform(0, 60, size=96)
    return clothes * 0.5 + background + rng.normal(scale=5, size=clothes.shape)


def plain_auc(first, second):
    """Folds, scaling and the area (share of pairs in the right order) by loops."""
    n, scores = min(len(first), len(second), 200), []
    chosen = [[rows[round(i * (len(rows) - 1) / (n - 1))] for i in range(n)]
              for rows in (first, second)]
    for fold in range(5):
        train, test = ([(x, y) for y in (0, 1) for i, x in enumerate(chosen[y])
                        if (5 * i // n == fold) == held_out] for held_out in (False, True))
        points = np.array([x for x, _ in train])
        mean, scale = points.mean(axis=0), points.std(axis=0)
        model = LogisticRegression(C=0.1, max_iter=300)
        model.fit((points - mean) / scale, [y for _, y in train])
        value = {y: [((x - mean) / scale) @ model.coef_[0] for x, label in test if label == y]
                 for y in (0, 1)}
        right = [float(b > a) + 0.5 * float(b == a) for a in value[0] for b in value[1]]
        scores.append(sum(right) / len(right))
    return sum(scores) / 5


@pytest.mark.parametrize("sizes", [(120, 100), (250, 230)])
def test_auc_by_loops(sizes):
    first, second = people(1, sizes[0], 1), people(2, sizes[1], 2) * 0.8
    assert cameras.camera_auc(first, second) == pytest.approx(plain_auc(first, second), abs=1e-9)


def test_cameras_that_are_one_are_found():
    """Cameras 0 and 2 are one; rows lie in any order, and those of a person follow each other."""
    parts = [people(1, 200, tint=1), people(2, 200, tint=2), people(3, 200, tint=1),
             people(4, 50, tint=1)]
    thumbnails = np.concatenate(parts)
    camids = np.repeat([0, 1, 2, 3], [len(part) for part in parts])
    seen = []
    found = compare_cameras(thumbnails, camids, np.arange(len(camids)),
                            progress=lambda *counts: seen.append(counts))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    (a, b, auc), *others = found.pairs
    assert [(0, 2, auc)] == found.alike == [(a, b, auc)]
    assert {pair[:2] for pair in others} == {(0, 1), (1, 2)}
    assert all(pair[2] > 0.9 for pair in others)
    assert found.too_small == [3] and found.left_out == 0

    shuffle = np.random.default_rng(0).permutation(len(camids))
    again = compare_cameras(thumbnails[shuffle], camids[shuffle], np.argsort(shuffle))
    assert again.pairs == found.pairs


def test_many_cameras_are_compared_with_the_nearest_alone(monkeypatch):
    parts = [people(1, 30, 1), people(2, 30, 1) + 2, people(3, 30, 1) + 100,
             people(4, 30, 1) + 105]
    data = np.concatenate(parts), np.repeat(np.arange(4), 30), np.arange(120)
    found = compare_cameras(*data)
    assert found.pairs == found.alike == [] and found.too_small == [0, 1, 2, 3]
    monkeypatch.setattr(cameras, "MOST_PAIRS", 2)
    monkeypatch.setattr(cameras, "LEAST_IMAGES", 20)
    found = compare_cameras(*data)
    assert {pair[:2] for pair in found.pairs} == {(0, 1), (2, 3)} and found.left_out == 4


@pytest.mark.parametrize("names, expected, prefix", [
    (["synthetic_c1", "synthetic_c10"], ["c1", "c10"], "synthetic_"),
    (["market1501_0"], ["0"], "market1501_"),
    ([PREFIX + "gate_north", PREFIX + "gate_south"], ["gate_north", "gate_south"], ""),
    ([PREFIX + "day"], ["day"], ""), (["north gate", "north door"], None, ""),
    (["a_", "a_1"], None, ""), ([PREFIX + "day", "market1501_0"], None, ""), ([PREFIX], None, "")])
def test_a_camera_is_named_as_its_user_named_it(names, expected, prefix):
    assert short_names(names) == (expected or names, prefix)

