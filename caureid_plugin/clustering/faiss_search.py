"""Nearest neighbours by faiss: exact (flat) and approximate (inverted file, IVF).

faiss is optional. Its distances only choose candidates, see :mod:`.exact_search`.

Letters: N images, D embedding size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch

from .exact_search import rank_candidates, search_rows
from .processes import Processes
from .projected_search import SAMPLE, SEED, measure_recall
from .rounded import mean_of, num_candidates

logger = logging.getLogger(__name__)

ROWS = 16384  # queries of one call
FLAT_UP_TO = 20_000  # images of a camera for which an inverted file is not worth its training


def require_faiss() -> ModuleType:
    """The module.

    Raises:
        ImportError: says what to install.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "The faiss back ends need faiss: pip install 'caureid-plugin[faiss-cpu]' (or "
            "[faiss-gpu]), or set backend to torch.") from error
    return faiss


def search_flat(features: np.ndarray, camids: np.ndarray | None, ks: tuple[int, ...], *,
                device: torch.device, processes: Processes,
                progress: Callable[[int, int], None] | None = None
                ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Exact search; arguments and results as :func:`.exact_search.search_exact`.

    ``camids``: None for one list of ks[0] neighbours among all, else two lists, of ks[0] within
    the camera and ks[1] across cameras.
    """
    return _search(features, camids, ks, lambda part, k: _flat(part, device), processes, progress)


def search_ivf(features: np.ndarray, camids: np.ndarray | None, ks: tuple[int, ...], *,
               recall: float, device: torch.device, processes: Processes,
               progress: Callable[[int, int], None] | None = None
               ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Approximate search that finds at least ``recall`` of the neighbours on a sample."""
    return _search(features, camids, ks, lambda part, k: _ivf(part, k, recall, device), processes,
                   progress)


def _search(features: np.ndarray, camids: np.ndarray | None, ks: tuple[int, ...],
            build: Callable[[np.ndarray, int], _Index], processes: Processes,
            progress: Callable[[int, int], None] | None) -> list[tuple[np.ndarray, np.ndarray]]:
    order = np.arange(len(features)) if camids is None else np.argsort(camids, kind="stable")
    cameras = [slice(0, len(features))] if camids is None else _ranges(camids[order])
    found = [_Lists(len(features), num_candidates(k, len(features))) for k in ks]
    total = len(cameras) * len(features)
    for number, camera in enumerate(cameras):  # one index for each camera's images
        part = features if camids is None else features[order[camera]]
        index = build(part, max(ks))
        for block, start in enumerate(range(0, len(features), ROWS)):
            if block % processes.size != processes.rank:
                continue
            rows = slice(start, min(start + ROWS, len(features)))
            _take(found, features, order, cameras, camera, rows, index)
            if progress is not None:
                progress(number * len(features) + rows.stop, total)
    results = []
    for lists, k in zip(found, ks, strict=True):
        results.append(_finish(features, order, lists, k, processes))
    return results


def _ranges(camids: np.ndarray) -> list[slice]:
    starts = np.flatnonzero(np.diff(camids, prepend=camids[0] - 1)).tolist()
    return [slice(*pair) for pair in zip(starts, [*starts[1:], len(camids)], strict=True)]


class _Lists:
    """Candidates of each row, with their distances, as indexes are asked one after the other."""

    def __init__(self, n: int, m: int) -> None:
        self.distances = np.full((n, m), np.inf, dtype=np.float32)
        self.ids = np.full((n, m), -1, dtype=np.int32)

    def merge(self, rows: np.ndarray, distances: np.ndarray, ids: np.ndarray) -> None:
        m = self.ids.shape[1]
        distances = np.concatenate([self.distances[rows], distances], axis=1)
        ids = np.concatenate([self.ids[rows], ids], axis=1)
        best = np.argpartition(distances, m - 1, axis=1)[:, :m]
        self.distances[rows] = np.take_along_axis(distances, best, axis=1)
        self.ids[rows] = np.take_along_axis(ids, best, axis=1)


def _take(found: list[_Lists], features: np.ndarray, order: np.ndarray, cameras: list[slice],
          camera: slice, rows: slice, index: _Index) -> None:
    """Asks the index of one camera for the rows' neighbours and files them."""
    positions = np.arange(rows.start, rows.stop)
    within = (positions >= camera.start) & (positions < camera.stop)
    groups = [(found[0], within), (found[-1], ~within)] if len(cameras) > 1 else [
        (found[0], within)]
    for lists, chosen in groups:
        if not chosen.any():
            continue
        m = min(lists.ids.shape[1], index.ntotal)
        distances, ids = index.search(features[order[positions[chosen]]], m)
        missing = ids < 0
        ids = np.where(missing, -1, order[camera.start + ids]).astype(np.int32)
        lists.merge(positions[chosen], np.where(missing, np.inf, distances), ids)


def _finish(features: np.ndarray, order: np.ndarray, lists: _Lists, k: int,
            processes: Processes) -> tuple[np.ndarray, np.ndarray]:
    n = len(features)
    ranks = np.full((n, k), -1, dtype=np.int32)
    distances = np.full((n, k), np.inf, dtype=np.float32)
    for block, start in enumerate(range(0, n, ROWS)):
        if block % processes.size != processes.rank:
            continue
        rows = order[start : start + ROWS]
        ranks[rows], distances[rows] = rank_candidates(
            features, rows, lists.ids[start : start + ROWS], k)
    return processes.share_rows((ranks, distances), order, ROWS)


class _Index:
    """A faiss index of features (N, D) less their mean: faiss expands |x - y|^2 in float32."""

    def __init__(self, index: Any, features: np.ndarray, device: torch.device) -> None:
        self._mean = mean_of(features).numpy()
        self.index = _on_device(index, device)
        if not self.index.is_trained:
            size = min(len(features), index.nlist * index.cp.max_points_per_centroid)
            rows = np.random.default_rng(SEED).choice(len(features), size, replace=False)
            self.index.train(features[np.sort(rows)] - self._mean)
        for start in range(0, len(features), ROWS):
            self.index.add(features[start : start + ROWS] - self._mean)
        self.ntotal = len(features)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return self.index.search(queries - self._mean, k)


def _flat(features: np.ndarray, device: torch.device) -> _Index:
    return _Index(require_faiss().IndexFlatL2(features.shape[1]), features, device)


def _on_device(index: Any, device: torch.device) -> Any:
    faiss = require_faiss()
    if device.type == "cuda" and hasattr(faiss, "StandardGpuResources"):
        number = torch.cuda.current_device() if device.index is None else device.index
        resources = faiss.StandardGpuResources()
        index = faiss.index_cpu_to_gpu(resources, number, index)
        index.kept_with_the_index = resources  # it must outlive the index
    return index


def _ivf(features: np.ndarray, k: int, recall: float, device: torch.device) -> _Index:
    faiss = require_faiss()
    n, dim = features.shape
    if n <= FLAT_UP_TO:
        return _flat(features, device)
    lists = int(4 * np.sqrt(n))
    inverted = faiss.IndexIVFFlat(faiss.IndexFlatL2(dim), dim, lists)
    inverted.cp.seed, inverted.cp.niter, inverted.cp.max_points_per_centroid = SEED, 10, 64
    index = _Index(inverted, features, device)
    _tune(index, features, k, recall, lists)
    return index


def _tune(index: _Index, features: np.ndarray, k: int, recall: float, lists: int) -> None:
    """Raises nprobe, the number of lists visited, until recall at k is reached on a sample."""
    rows = np.random.default_rng(SEED).choice(len(features), SAMPLE, replace=False)
    everyone = slice(0, len(features))
    exact, _ = search_rows(features, rows, np.arange(len(features)), [everyone], k,
                           torch.device("cpu"), mean_of(features))
    probes, reached = 4, 0.0
    while reached < recall and probes < lists:
        probes = min(2 * probes, lists)
        index.index.nprobe = probes
        reached = measure_recall(index.search(features[rows], k)[1], exact)
    logger.info("approximate search visits %d of %d lists: recall at %d is %.4f on %d images",
                probes, lists, k, reached, SAMPLE)
