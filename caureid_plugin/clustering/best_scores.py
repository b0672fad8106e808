"""The best scores of each image so far, kept while tiles of scores come in."""

from __future__ import annotations

import numpy as np
import torch

from . import kernels
from .threads import Pool


class BestScores:
    """The best m scores of each image among the tiles seen so far.

    On a GPU by torch's topk; on a CPU by a compiled loop that remembers what a score has to beat,
    several times as fast (docs/clustering.md).

    Args:
        n, m: N images, m scores of each.
        dtype, device: of the scores.
        loop: whether by the loop; None: on a CPU.
    """

    def __init__(self, n: int, m: int, dtype: torch.dtype, device: torch.device,
                 loop: bool | None = None) -> None:
        self._dtype = dtype
        self._pool = Pool()
        self._ids = torch.full((n, m), -1, dtype=torch.int32, device=device)
        self._values = torch.full((n, m), -torch.inf, dtype=dtype, device=device)
        self._keys: np.ndarray | None = None
        self._bits = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
        self._low, self._high = 8 * dtype.itemsize - 1, torch.iinfo(self._bits).max
        if loop or (loop is None and device.type == "cpu"):
            self._keys = self._flip(self._values.view(self._bits)).numpy()
            self._values = torch.empty(0, dtype=dtype)  # the keys stand for them
            self._least = self._keys.min(axis=1)

    def _flip(self, bits: torch.Tensor) -> torch.Tensor:
        """Bits of floating-point numbers to integers of the same order, and back."""
        return bits ^ ((bits >> self._low) & self._high)

    def prepare(self, scores: torch.Tensor) -> torch.Tensor | np.ndarray:
        """A tile of scores (contiguous, changed in place) as the other methods take it."""
        if self._keys is None:
            return scores
        bits = scores.view(self._bits).numpy()
        low, high = bits.dtype.type(self._low), bits.dtype.type(self._high)
        self._pool(lambda start, stop: kernels.order_bits(bits, low, high, start, stop), len(bits))
        return bits

    def exclude(self, tile: torch.Tensor | np.ndarray, rows: slice, columns: slice) -> None:
        """Makes a part of the tile worse than any score."""
        tile[rows, columns] = -torch.inf if self._keys is None else np.iinfo(tile.dtype).min

    def add(self, first_row: int, first_column: int, tile: torch.Tensor | np.ndarray,
            rows: slice = slice(None), columns: slice = slice(None)) -> None:
        """Takes the scores of consecutive images, the rows, against others, the columns.

        Args:
            first_row, first_column: the images of the first row and column.
            tile: (R, C), prepared.
            rows, columns: the part that counts.
        """
        top, bottom, _ = rows.indices(len(tile))
        left, right, _ = columns.indices(tile.shape[1])
        if isinstance(tile, torch.Tensor):
            self._topk(first_row + top, first_column + left, tile[top:bottom, left:right])
            return
        self._pool(lambda start, stop: kernels.keep_best(
            tile, left, right, first_row, first_column, self._keys, self._ids.numpy(),
            self._least, top + start, top + stop), bottom - top)

    def add_columns(self, first_row: int, first_column: int, tile: torch.Tensor | np.ndarray,
                    rows: slice = slice(None), columns: slice = slice(None)) -> None:
        """The same scores for the columns' images, against the rows."""
        top, bottom, _ = rows.indices(len(tile))
        left, right, _ = columns.indices(tile.shape[1])
        if isinstance(tile, torch.Tensor):
            self._topk(first_column + left, first_row + top, tile[top:bottom, left:right].T)
            return
        self._pool(lambda start, stop: kernels.keep_best_of_columns(
            tile, top, bottom, first_row, first_column, self._keys, self._ids.numpy(),
            self._least, left + start, left + stop), right - left)

    def _topk(self, first_row: int, first_column: int, scores: torch.Tensor) -> None:
        if not scores.numel():
            return
        values, ids = scores.topk(min(self._ids.shape[1], scores.shape[1]), dim=1, sorted=False)
        self.merge(slice(first_row, first_row + len(scores)), values,
                   (ids + first_column).to(torch.int32))

    def merge(self, rows: slice, values: torch.Tensor, ids: torch.Tensor) -> None:
        """Takes scores (R, any) and their columns for some rows; of equal ones the lower column."""
        own, own_ids = self.of(rows)
        values, ids = torch.cat([own, values], dim=1), torch.cat([own_ids, ids], dim=1)
        order = self._flip(values.contiguous().view(self._bits)).long() * 2**32 - ids
        kept = order.topk(own.shape[1], dim=1, sorted=False).indices
        self._ids[rows] = ids.gather(1, kept)
        if self._keys is None:
            self._values[rows] = values.gather(1, kept)
        else:
            self._set_keys(rows, values.gather(1, kept))

    def _set_keys(self, rows: slice, values: torch.Tensor) -> None:
        assert self._keys is not None  # without the loop there are none
        self._keys[rows] = self._flip(values.contiguous().view(self._bits)).numpy()
        self._least[rows] = self._keys[rows].min(axis=1)

    def of(self, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (R, m), -inf where fewer were seen, and their columns, in no order."""
        if self._keys is None:
            return self._values[rows], self._ids[rows]
        bits = self._flip(torch.from_numpy(self._keys[rows]))
        return bits.view(self._dtype), self._ids[rows]

    def forget(self, rows: slice) -> None:
        """As if nothing had been seen of these rows."""
        nothing = torch.full_like(self.of(rows)[0], -torch.inf)
        if self._keys is None:
            self._values[rows] = nothing
        else:
            self._set_keys(rows, nothing)
