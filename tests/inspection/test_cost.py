"""Estimates against a training that is played through step by step."""

import itertools

import numpy as np
import pytest
import torch
from caureid_plugin.clustering import Search, memory
from caureid_plugin.inspection import (
    clustering_seconds,
    neighbor_memory,
    sample_rows,
    training_cost,
)


def test_few_images_are_all_taken():
    assert sample_rows(np.array([1, 0, 1]), np.array([2, 0, 1]), 3).tolist() == [0, 1, 2]


def test_a_sample_is_blocks_of_each_camera():
    rng = np.random.default_rng(0)
    camids, order = rng.integers(3, size=1000), rng.permutation(1000)
    camids[camids == 2] = 1
    camids[17] = 2  # a camera of one image
    found = sample_rows(camids, order, 200)
    expected = []
    for camera in range(3):
        rows = [row for row in order if camids[row] == camera]
        for place, row in enumerate(rows):
            within_block = 10 * place / len(rows) - 10 * place // len(rows)
            if within_block < 200 / 1000:
                expected.append(row)
    assert found.tolist() == sorted(expected)
    assert 200 <= len(found) <= 200 + 3 * 10 and 17 in found
    places = {row: place for place, row in enumerate(
        row for row in order if camids[row] == 0)}
    taken = sorted(places[row] for row in found if camids[row] == 0)
    breaks = sum(b - a > 1 for a, b in itertools.pairwise(taken))
    assert breaks == 9, "ten blocks"


@pytest.mark.parametrize("backend", ["torch", "torch-pca", "faiss-flat", "faiss-ivf"])
def test_time_of_clustering(backend):
    assert clustering_seconds(2.0, 3.0, 100, 100, backend) == 5.0
    assert clustering_seconds(2.0, 3.0, 100, 400, backend) == 2.0 * 16 + 3.0 * 4
    assert clustering_seconds(2.0, 3.0, 100, 200_000, backend) == 2.0 * 2000 ** 2 + 3.0 * 2000
    exact = backend in ("torch", "faiss-flat")
    search = 2.0 * 10_000 ** 2 if exact else 2.0 * 2000 ** 2 * 5
    assert clustering_seconds(2.0, 3.0, 100, 1_000_000, backend) == search + 3.0 * 10_000


def test_the_search_is_linear_where_auto_leaves_the_exact_one():
    cpu, switch = torch.device("cpu"), 200_000
    assert Search().resolve(switch, cpu) != Search().resolve(switch + 1, cpu) == "torch-pca"
    before, after = (clustering_seconds(1.0, 0.0, 100, n, Search().resolve(n, cpu))
                     for n in (switch, 2 * switch))
    assert after == 2 * before


@pytest.mark.parametrize("labels", ["extract", "bank"])
@pytest.mark.parametrize("epochs, period, iterations", [(7, 1, 40), (7, 3, 0), (1, 5, 2)])
def test_time_of_a_training_played_through(cfg, labels, epochs, period, iterations):
    cfg.merge_from_list(["SOLVER.MAX_EPOCH", epochs, "SOLVER.ITERS_PER_EPOCH", iterations,
                         "SOLVER.IMS_PER_BATCH", 64, "CAUREID.CLUSTER_PERIOD", period,
                         "CAUREID.LABELS", labels])
    spent = 1000 * 0.5  # the bank is filled
    for epoch in range(epochs):
        if epoch % period == 0:
            spent += 70.0
            if labels == "extract" and epoch > 0:
                spent += 1000 * 0.5
        spent += (iterations or 1000 // 64) * 0.25
    cost = training_cost(cfg, 1000, step=0.25, image=0.5, clustering=70.0)
    assert cost.total == pytest.approx(spent) and cost.epoch == pytest.approx(spent / epochs)
    assert cost.iterations == (iterations or 15) and cost.extraction == 500
    assert cost.steps == 0.25 * cost.iterations and cost.clustering == 70


def test_fewer_images_than_a_batch_still_make_a_step(cfg):
    cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 64, "SOLVER.ITERS_PER_EPOCH", 0])
    assert training_cost(cfg, 10, step=1, image=0, clustering=0).iterations == 1


def test_memory_is_that_of_training(cfg):
    cpu, search = torch.device("cpu"), Search(max_memory=3.5)
    cfg.merge_from_list(["CAUREID.CLUSTER.K1", 17, "CAUREID.CLUSTER.K1_INTRA", 4,
                         "CAUREID.CLUSTER.K1_INTER", 9])
    for camera_aware, ks in ((False, (17,)), (True, (5, 10))):
        cfg.CAUREID.CLUSTER.CAMERA_AWARE = camera_aware
        for images, backend in ((100_000, "torch"), (500_000, "torch-pca")):
            needed, allowed = neighbor_memory(cfg, images, 128, search, cpu)
            assert needed == memory.estimate(images, 128, ks, backend=backend, device=cpu)["peak"]
            assert allowed == 3.5
    free = neighbor_memory(cfg, 100, 8, Search(), cpu)[1]
    assert 0 < free < 1e5
