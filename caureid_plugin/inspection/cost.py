"""What a training will take, from what was measured on a part of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from fastreid.config import CfgNode

from ..clustering import Search, memory
from ..clustering.neighbors import EXACT_UP_TO

BLOCKS = 10  # of each camera that a sample is taken from
EXACT = ("torch", "faiss-flat")  # back ends that compare all pairs


@dataclass(frozen=True)
class TrainingCost:
    """Seconds: of the steps of an epoch, of one pass over all images, of one clustering, of an
    average epoch and of the whole training; ``iterations`` of an epoch."""

    iterations: int
    steps: float
    extraction: float
    clustering: float
    epoch: float
    total: float


def sample_rows(camids: np.ndarray, order: np.ndarray, most: int) -> np.ndarray:
    """About ``most`` rows in blocks that lie at the same parts of each camera's images.

    Images that follow each other stay together, and what is at one place in one camera's order is
    taken with what is at that place in another's: a sample drawn image by image would part the
    images of a person, and clusters on it would say nothing about those on all images.

    Args:
        camids: (N,) cameras.
        order: (N,) rows in the order of the paths.
        most: at least 1.

    Returns:
        (n,) rows, ascending: all of them if there are at most ``most``; every camera has some.
    """
    if len(camids) <= most:
        return np.arange(len(camids))
    share = most / len(camids)
    taken = []
    for camera in np.unique(camids):
        rows = order[camids[order] == camera]
        place = np.arange(len(rows)) / len(rows) * BLOCKS  # whole part: the block
        taken.append(rows[place % 1 < share])
    return np.sort(np.concatenate(taken))


def clustering_seconds(search: float, rest: float, measured: int, images: int,
                       backend: str) -> float:
    """Seconds that a clustering of ``images`` takes at most, from one of fewer of them.

    The exact search is taken to grow with the square of N. An approximate one is taken to do so up
    to the N from which "auto" chooses it, and to grow with N beyond. The rest grows with N.

    That is too much from a small sample, whose search spends most of its time on work that grows
    with N. Measured on 2 cores, from 5,000 images of 256 values (0.4 s): 160 s for 100,000 images,
    which take 15 s, and 54 min for a million with "torch-pca", which take 17 min. More than a
    million were not measured.

    Args:
        search, rest: seconds of the search for neighbours and of everything after it.
        measured: images that took them.
        images: N, at least as many.
        backend: of the search among N images, as :meth:`.Search.resolve` names it.
    """
    squared = images if backend in EXACT else max(measured, min(images, EXACT_UP_TO))
    return (search * (squared / measured) ** 2 * (images / squared)
            + rest * images / measured)


def training_cost(cfg: CfgNode, images: int, *, step: float, image: float,
                  clustering: float) -> TrainingCost:
    """Time of a training of one process, evaluation left out.

    With CAUREID.LABELS extract all images pass the network before each clustering, with bank once.

    Args:
        cfg: SOLVER and CAUREID.
        images: N.
        step, image: seconds of a training step and of one image's features.
        clustering: seconds of one clustering of all images.
    """
    epochs = max(1, cfg.SOLVER.MAX_EPOCH)
    iterations = cfg.SOLVER.ITERS_PER_EPOCH or max(1, images // cfg.SOLVER.IMS_PER_BATCH)
    clusterings = -(-epochs // cfg.CAUREID.CLUSTER_PERIOD)
    passes = clusterings if cfg.CAUREID.LABELS == "extract" else 1
    total = epochs * iterations * step + passes * images * image + clusterings * clustering
    return TrainingCost(iterations, iterations * step, images * image, clustering,
                        total / epochs, total)


def neighbor_memory(cfg: CfgNode, images: int, dim: int, search: Search,
                    device: torch.device) -> tuple[float, float]:
    """GiB that clustering needs beyond the features, and what it may take.

    Args:
        cfg: CAUREID.CLUSTER.
        images, dim: N images, D values each.
        search: as training has it.
        device: where the memory bank is.
    """
    node = cfg.CAUREID.CLUSTER
    # an image is in its own list, beside its neighbours, only where lists are camera-aware
    ks = (node.K1_INTRA + 1, node.K1_INTER + 1) if node.CAMERA_AWARE else (node.K1,)
    needed = memory.estimate(
        images, dim, ks, backend=search.resolve(images, device), device=device)["peak"]
    return needed, memory.available() if search.max_memory is None else search.max_memory
