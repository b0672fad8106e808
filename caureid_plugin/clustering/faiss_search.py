"""Nearest neighbours by faiss, exact.

faiss is optional. Its distances only choose candidates, see :mod:`.exact_search`.

Letters: N images, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch

from .exact_search import rank_candidates
from .processes import Processes
from .rounded import mean_of, num_candidates

ROWS = 16384  # queries of one call


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
    order = np.arange(len(features)) if camids is None else np.argsort(camids, kind="stable")
    cameras = [slice(0, len(features))] if camids is None else _ranges(camids[order])
    found = [_Lists(len(features), num_candidates(k, len(features))) for k in ks]
    total = len(cameras) * len(features)
    for number, camera in enumerate(cameras):  # one index for each camera's images
        part = features if camids is None else features[order[camera]]
        index = _Index(part, device)
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

    def __init__(self, features: np.ndarray, device: torch.device) -> None:
        self._mean = mean_of(features).numpy()
        self.index = _on_device(require_faiss().IndexFlatL2(features.shape[1]), device)
        for start in range(0, len(features), ROWS):
            self.index.add(features[start : start + ROWS] - self._mean)
        self.ntotal = len(features)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return self.index.search(queries - self._mean, k)


def _on_device(index: Any, device: torch.device) -> Any:
    faiss = require_faiss()
    if device.type == "cuda" and hasattr(faiss, "StandardGpuResources"):
        number = torch.cuda.current_device() if device.index is None else device.index
        resources = faiss.StandardGpuResources()
        index = faiss.index_cpu_to_gpu(resources, number, index)
        index.kept_with_the_index = resources  # it must outlive the index
    return index
