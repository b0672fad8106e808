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


def test_a_sample_is_blocks_of_each_camera():
    assert sample_rows(np.array([1, 0, 1]), np.array([2, 0, 1]), 3).tolist() == [0, 1, 2]
    rng = np.random.default_rng(0)
    camids, order = rng.integers(2, size=1000), rng.permutation(1000)
    camids[17] = 2  # a camera of one image
    found = sample_rows(camids, order, 200)
    expected = []
    for camera in range(3):
        rows = [row for row in order if camids[row] == camera]
        taken = [10 * place / len(rows) % 1 < 200 / 1000 for place in range(len(rows))]
        expected += [row for row, is_taken in zip(rows, taken, strict=True) if is_taken]
        blocks = sum(b and not a for a, b in itertools.pairwise([False, *taken]))
        assert blocks == min(10, len(rows))
    assert found.tolist() == sorted(expected) and 17 in found
    assert 200 <= len(found) <= 200 + 3 * 10


@pytest.mark.parametrize("backend", ["torch", "torch-pca", "faiss-flat"])
def test_time_of_clustering(backend):
    assert clustering_seconds(2.0, 3.0, 100, 100, backend) == 5.0
    assert clustering_seconds(2.0, 3.0, 100, 200_000, backend) == 2.0 * 2000 ** 2 + 3.0 * 2000
    exact = backend in ("torch", "faiss-flat")
    search = 2.0 * 10_000 ** 2 if exact else 2.0 * 2000 ** 2 * 5
    assert clustering_seconds(2.0, 3.0, 100, 1_000_000, backend) == search + 3.0 * 10_000
    # 200,000 is where "auto" leaves the exact search
    cpu = torch.device("cpu")
    assert Search().resolve(200_000, cpu) != Search().resolve(200_001, cpu) == "torch-pca"


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
    few = training_cost(cfg, 10, step=0.25, image=0.5, clustering=70.0)  # less than a batch
    assert few.iterations == (iterations or 1)


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
