"""Checks of what a caller hands to the clustering: features and parameters."""

from __future__ import annotations

from numbers import Integral, Real

import numpy as np
import torch


def as_feature_matrix(features: torch.Tensor | np.ndarray) -> np.ndarray:
    """Features as a C-contiguous float32 array that the distance computations can trust.

    Args:
        features: (N, D), any floating dtype, any device.

    Returns:
        (N, D), float32; shares memory with ``features`` where possible.

    Raises:
        ValueError: not floating point, not 2-D, empty, or a row that holds NaN or infinity or
            whose squared distances would overflow float32. The first such row is named.
    """
    if isinstance(features, torch.Tensor):
        features = features.detach().cpu()
        if features.is_floating_point():  # numpy has no bfloat16, so torch does this cast
            features = features.to(torch.float32)
        features = features.numpy()
    features = np.asarray(features)
    if not np.issubdtype(features.dtype, np.floating):
        raise ValueError(f"features must be floating point, got dtype {features.dtype}")
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(
            f"features must have shape (N, D) with N >= 1 and D >= 1, got {features.shape}"
        )
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf, reported below
        matrix = np.require(features, dtype=np.float32, requirements=["C", "W"])
        _check_rows(matrix)
    return matrix


def _check_rows(matrix: np.ndarray) -> None:
    squared_norms = np.einsum("nd,nd->n", matrix, matrix)
    # |x - y|^2 can reach four times the largest squared norm. NaN fails this comparison too.
    bad_rows = np.flatnonzero(~(squared_norms < np.finfo(np.float32).max / 4))
    if bad_rows.size:
        row = bad_rows[0]
        what = "is too large for float32 distances"
        if not np.isfinite(matrix[row]).all():
            what = "holds NaN or infinity in float32"
        raise ValueError(
            f"features row {row} {what} ({bad_rows.size} such rows of {len(matrix)}); "
            "the features must be finite before they are clustered"
        )


def check_graph_parameters(k1: int, k2: int, eps: float) -> None:
    """Check ``k1 >= 1``, ``1 <= k2 <= k1`` and ``0 < eps < 1``.

    Raises:
        ValueError: names the argument, its config key, its value and the rule.
    """
    _check_count("k1", "CAUREID.CLUSTER.K1", k1)
    _check_count("k2", "CAUREID.CLUSTER.K2", k2)
    if k2 > k1:
        raise ValueError(
            f"k2 (CAUREID.CLUSTER.K2) must not exceed k1 (CAUREID.CLUSTER.K1), "
            f"got k2={k2} and k1={k1}"
        )
    # The graph is float32, so eps must keep its place between 0 and 1 after that rounding.
    if isinstance(eps, bool) or not isinstance(eps, Real) or not 0 < np.float32(eps) < 1:
        raise ValueError(
            f"eps (CAUREID.CLUSTER.EPS) must be a number with 0 < eps < 1, got {eps!r}; "
            "the Jaccard distance of strangers is 1, so eps >= 1 would link every image"
        )


def check_min_samples(min_samples: int) -> None:
    """Check ``min_samples >= 1``; raises ValueError naming the argument and its config key."""
    _check_count("min_samples", "CAUREID.CLUSTER.MIN_SAMPLES", min_samples)


def _check_count(name: str, key: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} ({key}) must be an integer >= 1, got {value!r}")
