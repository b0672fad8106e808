"""How much memory clustering will need, said before it starts."""

from __future__ import annotations

import logging
from pathlib import Path

import psutil
import torch

from .exact_search import CACHED_TILE
from .faiss_search import ROWS
from .projected_search import BASIS_SAMPLE
from .rounded import fast_dtype, num_candidates

logger = logging.getLogger(__name__)

GIB = 2**30
# Entries of an averaged encoding for each neighbour of the list (k1): 2 to 4 on features of
# people; more on unstructured ones.
ENTRIES_PER_NEIGHBOR = 4
# What does not grow with the images: what the libraries of the matrix product set aside, threads.
FIXED = 0.06 * GIB
CGROUP = Path("/sys/fs/cgroup")
# Where a container's limit is, for the two versions of Linux control groups: the folder, the files
# with the limit and with what is taken, and what the names in memory.stat start with.
LIMITS = (("", "memory.max", "memory.current", ""),
          ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"))


def estimate(n: int, dim: int, ks: tuple[int, ...], *, backend: str, device: torch.device,
             processes: int = 1) -> dict[str, float]:
    """GiB that clustering takes on the CPU at its peak, beyond the features.

    Args:
        n, dim: N images of D values.
        ks: lengths of the neighbour lists.
        backend: of the search, as :meth:`.neighbors.Search.resolve` names it.
        device: where scores are computed.
        processes: how many share the search on this machine. Each holds its own copy of the
            features and its own candidates, so the search takes that many times as much. The
            principal components of "torch-pca" are taken in one of them only.

    Returns:
        "search" and "graph" (the stages, one after the other), "peak", the larger, and, not in
        GiB, "lists", how many neighbour lists an image has (2 if camera-aware).
    """
    k = sum(ks)
    search = processes * (_search_bytes(n, dim, ks, backend, device) + FIXED)
    if backend == "torch-pca":  # they are freed before the copy is made
        # a sample in float32 and float64, and the float64 matrix of its products
        search = max(search, dim * (12 * min(n, BASIS_SAMPLE) + 8 * dim) + FIXED)
    entries = ENTRIES_PER_NEIGHBOR * k * n
    # rows and columns of the encoding (float64), then the pairs within eps (float32)
    graph = (n * k * 8 + 2 * (8 + _index_bytes(entries)) * entries
             + 3 * (4 + _index_bytes(n * k)) * n * k + FIXED)
    return {"search": search / GIB, "graph": graph / GIB, "peak": max(search, graph) / GIB,
            "lists": len(ks)}


def _search_bytes(n: int, dim: int, ks: tuple[int, ...], backend: str,
                  device: torch.device) -> float:
    """What one process takes for the search."""
    m = sum(num_candidates(k, n) for k in ks)
    lists = n * sum(ks) * 8  # indices and distances
    size = fast_dtype(device).itemsize
    if not backend.startswith("torch"):
        # the index's copy, candidates, and what one call asks and answers
        return lists + n * (dim * 4 + 16 + m * 8) + min(n, ROWS) * (dim * 4 + m * 48)
    if device.type != "cpu":
        return lists
    # the rounded copy ("torch-pca" may end up exact), candidates, a tile
    return lists + n * (dim * size + m * (size + 4) + 16) + 2 * CACHED_TILE


def _index_bytes(entries: int) -> int:
    """Of a column index: scipy's sparse matrices with more entries than int32 counts take int64."""
    return 4 if entries < 2**31 else 8


def available() -> float:
    """GiB this process may still take: the machine's, or the container's if that is less.

    What a container has taken includes files that were read and are kept only as long as nobody
    needs the memory (a data set, say): these count as free. Never less than 0.
    """
    free = psutil.virtual_memory().available
    for folder, limit, taken, prefix in LIMITS:
        try:
            allowed = (CGROUP / folder / limit).read_text().strip()
            if allowed != "max":
                free = min(free, int(allowed) - int((CGROUP / folder / taken).read_text())
                           + _kept_files(CGROUP / folder / "memory.stat", prefix))
        except OSError:  # no such limits here
            continue
    return max(free, 0) / GIB


def _kept_files(stat: Path, prefix: str) -> int:
    """Bytes of files that are kept in memory, by a container's statistics; 0 if it has none."""
    if not stat.is_file():
        return 0
    counts = dict(line.split() for line in stat.read_text().splitlines())
    return sum(int(counts.get(f"{prefix}{kind}_file", 0)) for kind in ("inactive", "active"))


def check(needed: dict[str, float], max_memory: float | None) -> None:
    """Logs what is needed and what there is.

    Args:
        needed: by :func:`estimate`.
        max_memory: GiB, None for what is free.

    Raises:
        MemoryError: it is more than ``max_memory`` GiB, or than what is free if that is None.
    """
    limit = available() if max_memory is None else max_memory
    logger.info("clustering needs about %.1f GiB beyond the features (search %.1f, graph %.1f), "
                "%.1f are %s", needed["peak"], needed["search"], needed["graph"], limit,
                "free" if max_memory is None else "allowed")
    if needed["peak"] > limit:
        # the camera-aware lists do not use k1
        lengths = "k1" if needed["lists"] == 1 else "k1_intra, k1_inter"
        raise MemoryError(
            f"clustering needs about {needed['peak']:.1f} GiB beyond the features, {limit:.1f} are "
            + ("free" if max_memory is None else "allowed by max_memory")
            + f": lower {lengths} or the embedding size, or raise max_memory if you know better")
