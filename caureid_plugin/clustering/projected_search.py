"""Approximate nearest neighbours: candidates from a few principal components.

Embeddings of D values vary in far fewer directions. The search is that of :mod:`.exact_search`
with scores from P of them,

    x_P . y_P - |x|^2 / 2 - |y|^2 / 2,

the squared distance but for the inner product of what the other directions hold, and with more
candidates, which are ranked by their exact distances as always. P is doubled from 32 until the
recall that is asked for is reached on a sample of images; if D is reached, the search is exact.

Letters: N images, D embedding size, P components, m candidates.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .best_scores import BestScores
from .exact_search import ByCamera, Everyone, rank_candidates, search_exact, search_rows
from .processes import Processes
from .rounded import RoundedFeatures, fast_dtype, mean_of

logger = logging.getLogger(__name__)

SAMPLE = 1000  # images on which recall is measured
BASIS_SAMPLE = 20_000  # images of which the components are taken
FEWEST = 32
SEED = 1234


def more_candidates(k: int, n: int) -> int:
    """m: twice as many as asked for, and a few."""
    return min(n, 2 * k + 16)


def search_projected(features: np.ndarray, wanted: Callable[..., Everyone | ByCamera], *,
                     recall: float, device: torch.device, processes: Processes = Processes(),
                     progress: Callable[[int, int], None] | None = None
                     ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Arguments and results as :func:`.exact_search.search_exact`.

    ``recall``: the share of the true neighbours that must be found on the sample, in every list.
    """
    basis = processes.from_first(lambda: choose_basis(features, wanted, recall, device))
    if basis is None:
        return search_exact(features, wanted, device=device, processes=processes,
                            progress=progress)

    def more(**kind: Any) -> Everyone | ByCamera:
        return wanted(**kind, count=more_candidates)

    return search_exact(features, more, device=device, basis=basis, processes=processes,
                        progress=progress)


def choose_basis(features: np.ndarray, wanted: Callable[..., Everyone | ByCamera], recall: float,
                 device: torch.device) -> torch.Tensor | None:
    """(D, P) principal components, as few as reach the recall; None if all would be needed."""
    n, dim = features.shape
    components = principal_components(features)
    rng = np.random.default_rng(SEED)
    positions = np.sort(rng.choice(n, min(n, SAMPLE), replace=False))
    # only its order and its ranges are used here
    sampled = wanted(dtype=torch.float32, device=torch.device("cpu"), count=lambda k, n: 1)
    mean = mean_of(features)
    exact = [_sampled_lists(features, sampled, which, positions, device, mean)
             for which in range(len(sampled.ks))]
    size = FEWEST
    while size < dim:
        basis = components[:, :size].contiguous()
        rounded = RoundedFeatures(features, sampled.order, fast_dtype(device), device, basis,
                                  mean)
        reached = min(
            measure_recall(_sampled_lists(features, sampled, which, positions, device, mean,
                                          rounded), exact[which])
            for which in range(len(sampled.ks)))
        logger.info("approximate search with %d of %d components: recall %.4f on %d images", size,
                    dim, reached, len(positions))
        if reached >= recall:
            return basis
        size *= 2
    logger.info("fewer than all %d components do not reach a recall of %.4f: the search is exact",
                dim, recall)
    return None


def principal_components(features: np.ndarray) -> torch.Tensor:
    """(D, D) float32, columns by falling variance, of a sample of the images."""
    rng = np.random.default_rng(SEED)
    rows = np.sort(rng.choice(len(features), min(len(features), BASIS_SAMPLE), replace=False))
    sample = torch.from_numpy(features[rows]).double()
    sample -= sample.mean(dim=0)
    return torch.linalg.eigh(sample.T @ sample).eigenvectors.flip(1).float()


def _sampled_lists(features: np.ndarray, wanted: Everyone | ByCamera, which: int,
                   positions: np.ndarray, device: torch.device, mean: torch.Tensor,
                   rounded: RoundedFeatures | None = None) -> np.ndarray:
    """Neighbours (R, k) of the images at some positions of the order; exact without ``rounded``."""
    k, n = wanted.ks[which], len(features)
    found = np.full((len(positions), k), -1, dtype=np.int32)
    for group, ranges in wanted.allowed(positions, which):
        rows = wanted.order[positions[group]]
        if rounded is None:
            found[group] = search_rows(features, rows, wanted.order, ranges, k, device,
                                       mean)[0]
            continue
        best = BestScores(len(rows), more_candidates(k, n), rounded.dtype, device)
        left = rounded.left(torch.from_numpy(positions[group]))
        for columns in ranges:
            for start in range(columns.start, columns.stop, 2**15):
                piece = slice(start, min(start + 2**15, columns.stop))
                best.add(0, start, best.prepare(rounded.scores(left, piece)))
        ids = best.of(slice(None))[1].cpu().numpy()
        candidates = np.where(ids >= 0, wanted.order[ids], -1).astype(np.int32)
        found[group] = rank_candidates(features, rows, candidates, k)[0]
    return found


def measure_recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Share of the exact neighbours that were found; both (R, k) indices, -1 for none."""
    hits = [len(np.intersect1d(a[a >= 0], b[b >= 0])) for a, b in zip(found, exact, strict=True)]
    return sum(hits) / max(1, int((exact >= 0).sum()))
