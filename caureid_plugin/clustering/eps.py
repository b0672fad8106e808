"""Choosing eps: what DBSCAN finds at each of several values, and which of them to take.

The encoding does not depend on eps, so that it is made once (:mod:`.pseudo_labels` does the rest).

Letters: N images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse

from .inputs import as_cameras, check_eps, check_min_samples
from .neighbors import Progress
from .pseudo_labels import label_statistics, labels_of_encoding
from .tracks import Tracks


def sweep_eps(encoding: sparse.csr_matrix, eps_values: Iterable[float], *, min_samples: int,
              camids: torch.Tensor | np.ndarray | None = None, tracks: Tracks | None = None,
              extra: Callable[[np.ndarray], dict[str, Any]] | None = None,
              progress: Progress | None = None) -> list[dict[str, Any]]:
    """Figures of the clustering at each eps; none of them needs an identity.

    It takes the encoding and not a graph: a graph does not tell for which eps it was made, and
    one made for a smaller eps than asked for would give wrong figures without a word. Memory
    grows with the number of pairs within the largest eps.

    Args:
        encoding: (N, N), of :func:`.jaccard.jaccard_encoding`.
        eps_values: each 0 < eps < 1, in any order; a value given twice counts once.
        min_samples: of DBSCAN, >= 1.
        camids: (N,) integers, the camera of each image, only for the figures (whether the
            encoding is camera-aware was decided when it was made). None: no cameras are known.
        tracks: T of them, in the order of an encoding (T, T) that was made of their means.
        extra: called with the labels at each eps, as by :func:`.assign_pseudo_labels`;
            what it returns is added to the row.
        progress: called with ("pairs", rows done, N), then ("eps", values done, values).

    Returns:
        One row for each eps, in ascending order: "eps", "images" (N), "clusters", "outliers" and
        "largest" (images in the largest cluster); with camids also "cross_camera" (share, 0 to 1,
        of the clusters that span cameras) and "centres" (camera centres: pairs of a cluster and
        a camera that has images in it).

    Raises:
        ValueError: no eps or one out of its range, min_samples < 1, camids that do not match,
            or something else than an encoding.
    """
    values = _ascending(eps_values)
    check_min_samples(min_samples)
    _check_encoding(encoding)
    if camids is not None:
        camids = as_cameras(camids, encoding.shape[0] if tracks is None else len(tracks.of_image))
    rows: list[dict[str, Any]] = []
    descending = values[::-1]
    for eps, labels in zip(descending, labels_of_encoding(
            encoding, descending, min_samples, tracks, progress), strict=True):
        rows.append({"eps": eps, **_figures(labels, camids), **(extra(labels) if extra else {})})
        if progress:
            progress("eps", len(rows), len(values))
    return rows[::-1]


def suggest_eps(rows: Sequence[dict[str, Any]]) -> float:
    """The eps at which there are most camera centres: pairs of a cluster and a camera in it.

    As eps grows, outliers join clusters, and a person's images under one more camera join the
    others: each adds a centre. Where two people are taken for one, the cameras that saw both
    lose a centre, and once clusters run together the number collapses. In between it has its
    maximum. A person's images split into two clusters add little, as the parts often have
    different cameras; the number of clusters counts every part, so that its maximum lies at too
    small an eps where people have many images. The rule has no constant to set. docs/clustering.md
    compares it with others.

    Args:
        rows: of :func:`sweep_eps`. Without cameras the number of clusters takes the place of the
            number of centres, which is a weaker guide.

    Returns:
        The eps of one row; of equally good ones the largest, which clusters most images. If it is
        the first or the last row, the maximum may lie outside the values that were tried.

    Raises:
        ValueError: no rows, or no cluster in any of them.
    """
    if not any(row["clusters"] for row in rows):
        tried = ", ".join(f"{row['eps']:g}" for row in rows) or "none"
        raise ValueError(f"there is no cluster to judge by (tried: {tried}): try larger "
                         "values of eps or a smaller min_samples")
    count = "centres" if all("centres" in row for row in rows) else "clusters"
    return max(rows, key=lambda row: (row[count], row["eps"]))["eps"]


def _ascending(eps_values: Iterable[float]) -> list[float]:
    if not isinstance(eps_values, Iterable) or isinstance(eps_values, str):
        raise ValueError(f"eps_values must be a list of numbers, got {eps_values!r}")
    values = list(eps_values)
    if not values:
        raise ValueError("eps_values must hold at least one value of eps, got none")
    for eps in values:
        check_eps(eps)
    return sorted({float(eps) for eps in values})


def _check_encoding(encoding: sparse.csr_matrix) -> None:
    what = "encoding must be the sparse matrix that jaccard_encoding returns, got "
    if not sparse.issparse(encoding) or encoding.format != "csr":
        raise ValueError(f"{what}{type(encoding).__name__}")
    if encoding.shape[0] != encoding.shape[1] or encoding.dtype != np.float64:
        raise ValueError(f"{what}shape {encoding.shape} and dtype {encoding.dtype} (it is square "
                         "and float64; a graph of distances is float32)")
    sums = np.asarray(encoding.sum(axis=1)).ravel()
    wrong = np.flatnonzero((np.abs(sums - 1) > 1e-6) & (sums != 0))
    if wrong.size or (encoding.data < 0).any():
        raise ValueError(what + (f"one whose row {wrong[0]} sums to {sums[wrong[0]]} (each row "
                                 "sums to 1, or to 0)" if wrong.size else "negative weights"))


def _figures(labels: np.ndarray, camids: np.ndarray | None) -> dict[str, Any]:
    known = label_statistics(labels, np.zeros_like(labels) if camids is None else camids)
    crossing = known.pop("cross_camera")
    figures = {"images": len(labels), **known}
    if camids is not None:
        inlier = labels >= 0
        pairs = np.unique(np.stack((labels[inlier], camids[inlier])), axis=1)
        figures.update(cross_camera=crossing, centres=pairs.shape[1])
    return figures
