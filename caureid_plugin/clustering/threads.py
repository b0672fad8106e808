"""Runs compiled loops over ranges of rows in several threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from scipy import sparse

ROWS_PER_BLOCK = 2048
LEAST_ROWS = 32  # not worth a thread of their own


def over_rows(work: Callable[[int, int], Any], n: int,
              progress: Callable[[int, int], None] | None = None, *,
              block: int | None = None) -> list[Any]:
    """Calls ``work(start, stop)`` for every block of rows, in as many threads as torch uses.

    Args:
        work: must release the interpreter lock to gain anything.
        n: number of rows.
        progress: called with (rows done, n) from the calling thread.
        block: rows of a call; None: ROWS_PER_BLOCK.

    Returns:
        What ``work`` returned, in the order of the rows.
    """
    block = block or ROWS_PER_BLOCK
    starts = range(0, n, block)
    # leaving the block waits for the threads, but not for work that has not begun
    pool = ThreadPoolExecutor(max_workers=max(1, min(torch.get_num_threads(), len(starts))))
    results = []
    try:
        jobs = [pool.submit(work, start, min(start + block, n)) for start in starts]
        for start, job in zip(starts, jobs, strict=True):
            results.append(job.result())
            if progress is not None:
                progress(min(start + block, n), n)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return results


class Pool:
    """Threads for many short pieces of work: each thread takes one range of the rows.

    They are started when first needed and end with the object.
    """

    def __init__(self) -> None:
        self._size = max(1, torch.get_num_threads())
        self._threads: ThreadPoolExecutor | None = None

    def __call__(self, work: Callable[[int, int], None], n: int) -> None:
        """Calls ``work(start, stop)`` for ranges that make up 0..n."""
        step = -(-n // self._size)
        if self._size == 1 or step < LEAST_ROWS:
            work(0, n)
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._size)
        jobs = [self._threads.submit(work, start, min(start + step, n))
                for start in range(0, n, step)]
        for job in jobs:
            job.result()

    def __del__(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False)


def stack_rows(blocks: list[tuple[np.ndarray, ...]], n: int) -> sparse.csr_matrix:
    """One (N, N) matrix from blocks of (entries per row, columns, values).

    Blocks without values get ones (int8). The list is emptied, to free its memory early.
    """
    counts = np.concatenate([block[0] for block in blocks])
    bounds = np.concatenate([[0], np.cumsum(counts)])
    columns = np.concatenate([block[1] for block in blocks])
    if len(blocks[0]) == 3:
        values = np.concatenate([block[2] for block in blocks])
    else:
        values = np.ones(len(columns), dtype=np.int8)
    blocks.clear()
    if bounds[-1] <= np.iinfo(np.int32).max:  # scipy wants both index arrays of one type
        bounds = bounds.astype(np.int32)
    return sparse.csr_matrix((values, columns, bounds), shape=(n, n))
