"""The search through the blocks of an index, by faiss on several threads.

Letters: N images, Q queries, D embedding size, n images of a block, k results of a query.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from .index_files import Block, require_faiss

QUERIES = 64  # of one call of faiss


class _Found(NamedTuple):
    """The best of some images for queries: scores and rows (Q, k); row -1 where there is none."""

    scores: np.ndarray
    rows: np.ndarray

    @classmethod
    def none(cls, queries: int) -> _Found:
        return cls(np.empty((queries, 0), np.float32), np.empty((queries, 0), np.int64))


def best_rows(blocks: Sequence[tuple[int, Block]], queries: np.ndarray, top: int,
              allowed: np.ndarray | None) -> Iterator[list[tuple[float, int]]]:
    """The scores and rows of the images that are most similar to each query, the best first.

    Args:
        blocks: each with its first row.
        queries: (Q, D) float32 of length 1.
        top: results of a query, at most.
        allowed: (N,) bool, the rows to search; None for all.
    """
    parts = [[_Found.none(len(queries[start:start + QUERIES]))]
             for start in range(0, len(queries), QUERIES)]
    for number, found in _search_blocks(blocks, queries, top, allowed):
        parts[number].append(found)
    for part in parts:
        yield from _merged(part, top)


def _search_blocks(blocks: Sequence[tuple[int, Block]], queries: np.ndarray, top: int,
                   allowed: np.ndarray | None) -> Iterable[tuple[int, _Found]]:
    """Results by number of the chunk of queries, from all blocks and chunks side by side."""
    tasks = []
    for start, block in blocks:
        part = None if allowed is None else allowed[start:start + len(block.entries)]
        if part is None or part.any():
            tasks += [(number, block, start, part)
                      for number in range(-(-len(queries) // QUERIES))]

    def run(task: tuple[int, Block, int, np.ndarray | None]) -> tuple[int, _Found]:
        number, block, first, part = task
        chunk = queries[number * QUERIES:(number + 1) * QUERIES]
        return number, _search_block(block, first, chunk, top, part)

    faiss = require_faiss()
    threads = min(faiss.omp_get_max_threads(), len(tasks))
    if threads < 2:
        return [run(task) for task in tasks]
    # faiss shares out queries among its threads, and there is one: blocks are shared out here
    with ThreadPoolExecutor(threads, initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(run, tasks))


def _search_block(block: Block, first: int, queries: np.ndarray, top: int,
                  allowed: np.ndarray | None) -> _Found:
    """The best of a block whose first row is ``first``; ``allowed``: (n,) bool, None for all."""
    faiss = require_faiss()
    parameters = None
    if allowed is not None:
        bits = np.packbits(allowed, bitorder="little")
        parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
    scores, rows = block.vectors.search(queries, min(top, len(block.entries)), params=parameters)
    return _Found(np.where(rows < 0, -np.inf, scores).astype(np.float32),
                  np.where(rows < 0, -1, rows + first))


def _merged(found: Sequence[_Found], top: int) -> Iterator[list[tuple[float, int]]]:
    scores = np.concatenate([part.scores for part in found], axis=1)
    rows = np.concatenate([part.rows for part in found], axis=1)
    order = np.lexsort((rows, -scores), axis=1)[:, :top]
    for best, score, row in zip(order, scores, rows, strict=True):
        yield [(float(score[place]), int(row[place])) for place in best.tolist()
               if row[place] >= 0]
