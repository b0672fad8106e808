"""Nearest neighbours of every image under squared L2 distance: options and choice of back end.

Whatever the back end, it only proposes candidates; their distances are computed again by one
function and ordered by (distance, index). Exact back ends therefore agree, up to images whose
distances differ by less than float32 rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import torch
import torch.distributed as dist

from . import memory
from .exact_search import ByCamera, Everyone, search_exact
from .faiss_search import require_faiss, search_flat
from .inputs import as_cameras, as_feature_matrix, check_count
from .processes import Processes
from .projected_search import search_projected

Progress = Callable[[str, int, int], None]
BACKENDS = ("auto", "torch", "torch-pca", "faiss-flat")
# Above, "auto" takes the approximate search on a CPU: the exact one grows with N^2 D.
EXACT_UP_TO = 200_000


@dataclass(frozen=True)
class Search:
    """How neighbours are searched.

    Args:
        backend: "torch" (exact; matrix products in tiles, CPU or GPU), "torch-pca" (approximate:
            candidates from a few principal components, for a million images on a CPU),
            "faiss-flat" (exact) or "auto": "torch" on a GPU and up to 200,000 images on a CPU,
            beyond that "torch-pca".
        recall: of "torch-pca": the share of the true k nearest that must be found on a sample,
            0 < recall <= 1; components are added until it is.
        max_memory: GiB that clustering may take beyond the features; None: what the machine has
            free when it starts.
        device: where scores are computed, "cpu" or "cuda[:i]"; None: where the features are.
        group: processes of torch.distributed that share the search; all of them must call, with
            the same features and options, and all get the same result. None: only this one.

    Raises:
        ValueError: an option that is not one of these.
    """

    backend: str = "auto"
    recall: float = 0.99
    max_memory: float | None = None
    device: torch.device | str | None = None
    group: dist.ProcessGroup | None = None

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"backend {self.backend!r} is unknown, known are {BACKENDS}")
        if not isinstance(self.recall, Real) or not 0 < self.recall <= 1:
            raise ValueError(f"recall must be a number with 0 < recall <= 1, got {self.recall!r}")
        if self.max_memory is not None and not self.max_memory > 0:
            raise ValueError(f"max_memory must be positive GiB or None, got {self.max_memory!r}")

    def device_for(self, features: torch.Tensor | np.ndarray) -> torch.device:
        """Where the scores of these features are computed."""
        if self.device is not None:
            return torch.device(self.device)
        return features.device if isinstance(features, torch.Tensor) else torch.device("cpu")

    def resolve(self, n: int, device: torch.device) -> str:
        """The back end for N images whose scores are computed on ``device``.

        Raises:
            ImportError: a faiss back end is asked for by name and faiss is not installed.
        """
        if self.backend.startswith("faiss"):
            require_faiss()
        if self.backend != "auto":
            return self.backend
        return "torch" if device.type != "cpu" or n <= EXACT_UP_TO else "torch-pca"


def search_neighbors(features: torch.Tensor | np.ndarray, k: int, *, search: Search = Search(),
                     progress: Progress | None = None
                     ) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest images of every image, nearest first, itself among the candidates.

    An image is its own neighbour at distance 0, so it comes first, unless an exact duplicate has
    a lower index; with k or more such duplicates it is not listed at all.

    Args:
        features: (N, D), any floating dtype.
        k: neighbours per image, 1 <= k <= N.
        search: how.
        progress: called with ("neighbours", rows done, N).

    Returns:
        Indices (N, k) int32, no index twice in a row, and squared distances (N, k) float32. The
        approximate back ends may find fewer than k: -1 and infinity then fill the row.

    Raises:
        ValueError: bad features (the first bad row is named) or ``k`` outside 1..N.
        MemoryError: the search would not fit (see :class:`Search`).
    """
    device = search.device_for(features)
    features = as_feature_matrix(features)
    if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= k <= len(features):
        raise ValueError(f"k must be an integer in 1..N with N={len(features)}, got k={k!r}")
    return search_lists(features, None, (int(k),), device, search, progress)[0]


def search_by_camera(features: torch.Tensor | np.ndarray, camids: torch.Tensor | np.ndarray,
                     k_intra: int, k_inter: int, *, search: Search = Search(),
                     progress: Progress | None = None
                     ) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The nearest images of every image within its camera, and those in all other cameras.

    Args:
        features: (N, D), any floating dtype.
        camids: (N,) integers.
        k_intra: length of the list within the camera (the image itself included), >= 1.
        k_inter: length of the list across cameras, >= 1.
        search, progress: as in :func:`search_neighbors`.

    Returns:
        Two results of :func:`search_neighbors`' kind, within and across; a camera (or the others)
        with fewer images leaves -1 and infinity at the ends of rows.

    Raises:
        ValueError, MemoryError: as there, or camids that do not match.
    """
    device = search.device_for(features)
    features = as_feature_matrix(features)
    camids = as_cameras(camids, len(features))
    check_count("k_intra", k_intra)
    check_count("k_inter", k_inter)
    ks = (int(k_intra), int(k_inter))
    within, across = search_lists(features, camids, ks, device, search, progress)
    return within, across


def search_lists(features: np.ndarray, camids: np.ndarray | None, ks: tuple[int, ...],
                 device: torch.device, search: Search, progress: Progress | None = None
                 ) -> list[tuple[np.ndarray, np.ndarray]]:
    """What both functions above do once their arguments are checked.

    Args:
        features: (N, D) float32, as :func:`.inputs.as_feature_matrix` gives it.
        camids: (N,), or None for one list among all images.
        ks: the length of each list.
        device: where scores are computed.
        search, progress: as above.

    Returns:
        (indices, squared distances) of each list.
    """
    n, dim = features.shape
    backend = search.resolve(n, device)
    processes = Processes(search.group)
    needed = memory.estimate(n, dim, ks, backend=backend, device=device,
                             processes=processes.on_this_machine())
    processes.from_first(lambda: memory.check(needed, search.max_memory))
    report = progress and functools.partial(progress, "neighbours")
    find: Callable[..., list[tuple[np.ndarray, np.ndarray]]]
    if backend.startswith("torch"):
        wanted: Callable[..., Everyone | ByCamera] = functools.partial(Everyone, n, ks[0])
        if camids is not None:
            wanted = functools.partial(ByCamera, camids, ks)
        find = search_exact if backend == "torch" else functools.partial(
            search_projected, recall=search.recall)
        return find(features, wanted, device=device, processes=processes, progress=report)
    return search_flat(features, camids, ks, device=device, processes=processes, progress=report)
