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


def check_graph_parameters(k1: int, k2: int) -> None:
    """Check ``k1 >= 1`` and ``1 <= k2 <= k1``.

    Raises:
        ValueError: names the argument, its value and the rule.
    """
    check_count("k1", k1)
    check_count("k2", k2)
    if k2 > k1:
        raise ValueError(f"k2 must not exceed k1, got k2={k2} and k1={k1}")


def check_camera_parameters(k1_intra: int, k1_inter: int, k2_intra: int, k2_inter: int
                            ) -> None:
    """Check the counts of camera-aware neighbours.

    Raises:
        ValueError: names the argument, its value and the rule.
    """
    check_count("k1_intra", k1_intra)
    check_count("k1_inter", k1_inter)
    check_count("k2_intra", k2_intra)
    check_count("k2_inter", k2_inter, least=0)
    for which, k1, k2 in (("intra", k1_intra, k2_intra), ("inter", k1_inter, k2_inter)):
        if k2 > k1 + 1:
            raise ValueError(f"k2_{which} must not exceed the length of the list, k1_{which} + 1, "
                             f"got {k2} and {k1}")


def list_length(name: str, k1: int, n: int, small: bool) -> int:
    """Length of the neighbour lists: ``k1``, or N if it is smaller and ``small`` allows that.

    FastReID's function pads lists of more than N neighbours with -1, which then indexes the last
    image, so its distances mean nothing there.

    Raises:
        ValueError: ``k1 >= N`` without ``small``.
    """
    if k1 >= n and not small:
        raise ValueError(
            f"{name} must be smaller than the number of images, got {k1} and N={n}: lower it, or "
            "allow lists of all images with small=True"
        )
    return min(int(k1), n)


def check_eps(eps: float) -> None:
    """Check ``0 < eps < 1``; raises ValueError naming the argument."""
    # The graph is float32, so eps must keep its place between 0 and 1 after that rounding.
    if isinstance(eps, bool) or not isinstance(eps, Real) or not 0 < np.float32(eps) < 1:
        raise ValueError(
            f"eps must be a number with 0 < eps < 1, got {eps!r}; "
            "the Jaccard distance of strangers is 1, so eps >= 1 would link every image"
        )


def check_eps_gap(eps: float, gap: float) -> None:
    """Check ``gap >= 0`` and that ``eps`` less and plus ``gap`` are values of eps.

    Raises:
        ValueError: names the arguments and their values.
    """
    if (isinstance(gap, bool) or not isinstance(gap, Real) or not gap >= 0
            or not 0 < np.float32(eps - gap) or not np.float32(eps + gap) < 1):
        raise ValueError(
            f"the gap must be a number >= 0 with which eps less and plus the gap stay between 0 "
            f"and 1, got {gap!r} and eps={eps!r}"
        )


def as_cameras(camids: torch.Tensor | np.ndarray, n: int) -> np.ndarray:
    """The camera of each image as integers.

    Raises:
        ValueError: not integers, or not one for each image.
    """
    if isinstance(camids, torch.Tensor):
        camids = camids.detach().cpu().numpy()
    camids = np.asarray(camids)
    if camids.shape != (n,) or not np.issubdtype(camids.dtype, np.integer):
        raise ValueError(
            f"camids must hold one integer for each of the {n} images, got shape {camids.shape} "
            f"and dtype {camids.dtype}"
        )
    return camids.astype(np.int64)


def check_min_samples(min_samples: int) -> None:
    """Check ``min_samples >= 1``; raises ValueError naming the argument."""
    check_count("min_samples", min_samples)


def check_count(name: str, value: int, least: int = 1) -> None:
    """Check ``value >= least``; raises ValueError naming the argument and its value."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
