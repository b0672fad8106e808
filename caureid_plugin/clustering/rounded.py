"""Features rounded to the type that multiplies fastest, with bounds for the rounding errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

TILE_ROWS = 1024
ROWS_IN_CACHE = 256
CPU_INFO = Path("/proc/cpuinfo")
EXTRA_COLUMNS = 6  # three parts of the squared norm, three ones


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on processors that multiply it natively, else float32."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return torch.float32
    try:
        words = set(CPU_INFO.read_text().split())
    except OSError:  # not Linux
        return torch.float32
    return torch.bfloat16 if words & {"avx512_bf16", "amx_bf16"} else torch.float32


def num_candidates(k: int, n: int) -> int:
    """m: with half as many again as asked for, bfloat16 leaves 1 image in 1,000 unproved.

    (Embeddings of people, 12,936 x 2048: 5.6 % unproved with m = 38 of k = 30, 0.1 % with 45.)
    """
    return min(n, k + max(k // 2, 8))


def mean_of(features: np.ndarray) -> torch.Tensor:
    """(D,) float32, the mean of (N, D) features."""
    return torch.from_numpy(features.mean(axis=0, dtype=np.float64).astype(np.float32))


class Slack(NamedTuple):
    """What scores may differ by from distances, as ``kernels.bounds_of`` takes it.

    Attributes:
        unit: relative, as the score itself was rounded to its type.
        lost: (R,), what summing D + 6 products in float32 may lose.
        errors: (R,), e(x) of the row and the largest e(y).
        rounding: relative, of summing D squared differences in float32.
    """

    unit: float
    lost: np.ndarray
    errors: np.ndarray
    rounding: float


class RoundedFeatures:
    """Features in a faster type, laid out so that one product gives ``-|x^ - y^|^2 / 2``.

    A row holds x^ (of x less the mean), then -|x^|^2 / 2 split into three numbers of the type
    (their sum is exact to float32's digits), then three ones. With the two groups of three
    swapped on one side, the product of two rows is x^.y^ - |x^|^2 / 2 - |y^|^2 / 2.

    Args:
        features: (N, D) float32.
        order: (any,) the row of ``features`` that each row here holds.
        dtype: of the copy.
        device: where scores are computed. The copy lies there too if it takes no more than half
            of what is free there, else in the CPU's memory.
        basis: (D, P), orthonormal columns: x^ then holds P coordinates of x, while |x|^2 stays
            that of all D. Scores are then estimates, and nothing is proved from them.
        mean: (D,), what is subtracted; None: the features' mean.

    Attributes:
        rows: (N, D + 6) of that type.
        errors: (N,) float64, at least e(x) = |x - x^|.
        norms: (N,) float64, |x^|.
        mean: (D,) float32, what was subtracted.
    """

    def __init__(self, features: np.ndarray, order: np.ndarray, dtype: torch.dtype,
                 device: torch.device, basis: torch.Tensor | None = None,
                 mean: torch.Tensor | None = None) -> None:
        n, dim = len(order), features.shape[1] if basis is None else basis.shape[1]
        self.dim, self.dtype, self.device, self.basis = dim, dtype, device, basis
        self.mean = mean_of(features) if mean is None else mean
        size = n * (dim + EXTRA_COLUMNS) * dtype.itemsize
        fits = device.type != "cuda" or size <= torch.cuda.mem_get_info(device)[0] / 2
        self.rows = torch.empty(n, dim + EXTRA_COLUMNS, dtype=dtype,
                                device=device if fits else "cpu")
        self.errors, self.norms = np.empty(n), np.empty(n)
        for start in range(0, n, ROWS_IN_CACHE):
            part = slice(start, start + ROWS_IN_CACHE)
            self._take(part, torch.from_numpy(_take(features, order[part])) - self.mean)
        self.errors += 2.0**-23 * self.norms  # that subtraction rounded too
        self.rows[:, dim + 3 :] = 1

    def _take(self, part: slice, exact: torch.Tensor) -> None:
        rounded = (exact if self.basis is None else exact @ self.basis).to(self.dtype)
        self.rows[part, : self.dim] = rounded.to(self.rows.device)
        rounded = rounded.float() if self.basis is None else exact
        # float32 sums of D terms: their own rounding is far below the 0.1 % added to them
        self.errors[part] = 1.001 * (exact - rounded).norm(dim=1).numpy()
        self.norms[part] = rounded.norm(dim=1).numpy()
        rest = -torch.linalg.vecdot(rounded.double(), rounded.double()) / 2
        for column in range(self.dim, self.dim + 3):
            piece = rest.to(self.dtype)
            self.rows[part, column] = piece.to(self.rows.device)
            rest = rest - piece.double()

    def left(self, rows: slice | torch.Tensor) -> torch.Tensor:
        """Rows (a range or indices) as the left factor of :meth:`scores`, on its device."""
        part = self.rows[rows].to(self.device)
        return torch.cat([part[:, : self.dim], part[:, self.dim + 3 :],
                          part[:, self.dim : self.dim + 3]], dim=1)

    def scores(self, left: torch.Tensor, columns: slice,
               memory: torch.Tensor | None = None) -> torch.Tensor:
        """-|x^ - y^|^2 / 2 of a tile, in the type.

        Args:
            left: (R, D + 6), from :meth:`left`.
            columns: a range of C rows.
            memory: where to put the (R, C). A fresh array costs more than the product.
        """
        right = self.rows[columns].to(self.device)
        if memory is None:
            return left @ right.T
        return torch.mm(left, right.T, out=memory[: len(left) * len(right)].view(len(left), -1))

    def slack(self, rows: slice, most_norm: float, most_error: float) -> Slack:
        """What scores of some rows may differ by from distances.

        A score s of two images, one of them among ``rows``, says that their squared distance, as
        computed, lies between ``kernels.bounds_of(s, ...)``.

        Args:
            rows: a range of R.
            most_norm, most_error: the largest of anyone they are compared with.
        """
        # relative error of a float32 sum of as many terms as a row has, at the worst
        rounding = (self.dim + EXTRA_COLUMNS + 2) * 2.0**-24
        return Slack(float(torch.finfo(self.dtype).eps) / 2,
                     rounding * (self.norms[rows] + most_norm) ** 2 / 2,
                     self.errors[rows] + most_error, rounding)


def _take(features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """features[rows], without a copy if the rows are consecutive."""
    if rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
        return features[rows[0] : rows[-1] + 1]
    return features[rows]


def split_rows(ranges: list[slice]) -> Iterator[slice]:
    for whole in ranges:
        for start in range(whole.start, whole.stop, 2 * TILE_ROWS):
            yield slice(start, min(start + 2 * TILE_ROWS, whole.stop))
