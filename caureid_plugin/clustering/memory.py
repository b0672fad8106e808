"""How much memory clustering will need, said before it starts."""

from __future__ import annotations

import logging
from pathlib import Path

import psutil
import torch

from .exact_search import CACHED_TILE, fast_dtype, num_candidates
from .faiss_search import ROWS

logger = logging.getLogger(__name__)

GIB = 2**30
# Entries of an averaged encoding for each neighbour of the list (k1): 2 to 4 on features of
# people; more on unstructured ones.
ENTRIES_PER_NEIGHBOR = 4
# What does not grow with the images: what the libraries of the matrix product set aside, threads.
FIXED = 0.06 * GIB
CGROUP = Path("/sys/fs/cgroup")


def estimate(n: int, dim: int, ks: tuple[int, ...], *, backend: str,
             device: torch.device) -> dict[str, float]:
    """GiB that clustering takes on the CPU at its peak, beyond the features.

    Args:
        n, dim: N images of D values.
        ks: lengths of the neighbour lists.
        backend: of the search, as :meth:`.neighbors.Search.resolve` names it.
        device: where scores are computed.

    Returns:
        "search" and "graph" (the stages, one after the other) and "peak", the larger.
    """
    k, m = sum(ks), sum(num_candidates(k, n) for k in ks)
    lists = n * k * 8  # indices and distances
    size = fast_dtype(device).itemsize
    search = lists
    if backend.startswith("torch"):  # "torch-pca" may end up exact
        if device.type == "cpu":
            # the rounded copy, candidates, a tile
            search += n * (dim * size + m * (size + 4) + 16) + 2 * CACHED_TILE
    else:
        # the index's copy, candidates, and what one call asks and answers
        search += n * (dim * 4 + 16 + m * 8) + min(n, ROWS) * (dim * 4 + m * 48)
    entries = ENTRIES_PER_NEIGHBOR * k * n
    # rows and columns of the encoding (12 bytes an entry each), then the pairs within eps
    graph = lists + 2 * 12 * entries + 3 * 8 * n * k
    result = {"search": (search + FIXED) / GIB, "graph": (graph + FIXED) / GIB}
    return {**result, "peak": max(result.values())}


def available() -> float:
    """GiB this process may still take: the machine's, or the container's if that is less."""
    free = psutil.virtual_memory().available
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((CGROUP / "memory.current").read_text()))
    except OSError:  # no such limits here
        pass
    return free / GIB


def check(needed: dict[str, float], max_memory: float | None) -> None:
    """Logs what is needed and what there is.

    Raises:
        MemoryError: it is more than ``max_memory`` GiB, or than what is free if that is None.
    """
    limit = available() if max_memory is None else max_memory
    logger.info("clustering needs about %.1f GiB beyond the features (search %.1f, graph %.1f), "
                "%.1f are %s", needed["peak"], needed["search"], needed["graph"], limit,
                "free" if max_memory is None else "allowed")
    if needed["peak"] > limit:
        raise MemoryError(
            f"clustering needs about {needed['peak']:.1f} GiB beyond the features, {limit:.1f} are "
            + ("free" if max_memory is None else "allowed by CAUREID.CLUSTER.MAX_MEMORY")
            + ": lower CAUREID.CLUSTER.K1 or the embedding size, or raise "
            "CAUREID.CLUSTER.MAX_MEMORY if you know better")
