"""Neighbour lists for the k-reciprocal encoding: the plain ones and the camera-aware ones.

The plain ones come from Zhong et al. (see :mod:`.jaccard`).

The camera-aware ones come from CA-Jaccard, Chen et al., "CA-Jaccard: Camera-aware Jaccard
Distance for Person Re-identification" (CVPR 2024, arXiv 2311.10605). Images of one camera look
alike whoever they show, so they crowd the plain lists. Here neighbours are searched, and tested
for reciprocity, separately within the camera and across cameras; the two reciprocal sets are
united, without the half-size expansion; query expansion averages over the first of both lists.

Counting follows the authors' code (its training side): the lists hold k1_intra + 1 and
k1_inter + 1 images, the image itself being one of the first list only; query expansion takes the
first k2_intra of the first list (the image itself among them) and the first k2_inter of the
second, each with the same weight. Where a camera, or all others together, has fewer images than
a list asks for, the list is shorter here; theirs goes on with images of the other kind.

Letters: N images, D embedding size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from .inputs import (
    as_cameras,
    as_feature_matrix,
    check_camera_parameters,
    check_graph_parameters,
    list_length,
)
from .neighbors import Progress, Search, search_lists
from .processes import Processes
from .tracks import Tracks

Find = Callable[..., list[tuple[np.ndarray, np.ndarray]]]
PLAIN = {"k1": 30, "k2": 6}
CAMERA_AWARE = {"k1_intra": 5, "k1_inter": 20, "k2_intra": 2, "k2_inter": 4}


@dataclass(frozen=True)
class NeighborLists:
    """What the encoding is built from.

    Attributes:
        features: (N, D) float32, checked.
        parts: one (ranks, distances) or two (within the camera, across cameras): indices (N, k)
            int32, nearest first, -1 where there is none, and squared distances (N, k) float32.
        expand: whether reciprocal sets grow by the half-size sets of their members.
        averaged: (N, k2) int32, the neighbours that query expansion averages over.
    """

    features: np.ndarray
    parts: tuple[tuple[np.ndarray, np.ndarray], ...]
    expand: bool
    averaged: np.ndarray


def neighbor_lists(features: torch.Tensor | np.ndarray, *,
                   k1: int | None = None, k2: int | None = None,
                   camids: torch.Tensor | np.ndarray | None = None,
                   k1_intra: int | None = None, k1_inter: int | None = None,
                   k2_intra: int | None = None, k2_inter: int | None = None,
                   tracks: Tracks | None = None, small: bool = False, search: Search = Search(),
                   progress: Progress | None = None) -> NeighborLists:
    """Searches the lists; arguments and errors as :func:`.jaccard.jaccard_encoding`."""
    plain = {"k1": k1, "k2": k2}
    camera_aware = {"k1_intra": k1_intra, "k1_inter": k1_inter, "k2_intra": k2_intra,
                    "k2_inter": k2_inter}
    unused = plain if camids is not None else camera_aware
    if given := [name for name, value in unused.items() if value is not None]:
        raise ValueError(f"{' and '.join(given)} cannot be used "
                         + ("with" if camids is not None else "without") + " camids")
    device = search.device_for(features)
    matrix = Processes(search.group).together(functools.partial(as_feature_matrix, features))
    if tracks is not None:
        if len(matrix) != len(tracks.of_image):
            raise ValueError(f"tracks are of {len(tracks.of_image)} images, got features of "
                             f"{len(matrix)}")
        matrix = tracks.mean(torch.from_numpy(matrix)).numpy()
        camids = None if camids is None else tracks.camids
    del features  # is not kept beside a float32 copy

    def find(cameras: np.ndarray | None, *ks: int) -> list[tuple[np.ndarray, np.ndarray]]:
        return search_lists(matrix, cameras, ks, device, search, progress)

    if camids is None:
        return _plain_lists(matrix, find, small, **_filled(plain, PLAIN))
    return _camera_aware_lists(matrix, find, small, camids,
                               **_filled(camera_aware, CAMERA_AWARE))


def _filled(given: dict[str, int | None], defaults: dict[str, int]) -> dict[str, int]:
    return {name: defaults[name] if value is None else value for name, value in given.items()}


def _plain_lists(features: np.ndarray, find: Find, small: bool, *, k1: int, k2: int
                 ) -> NeighborLists:
    check_graph_parameters(k1, k2)
    found, = find(None, list_length("k1", k1, len(features), small))
    return NeighborLists(features, (found,), True, found[0][:, :k2])


def _camera_aware_lists(features: np.ndarray, find: Find, small: bool,
                        camids: torch.Tensor | np.ndarray, *, k1_intra: int, k1_inter: int,
                        k2_intra: int, k2_inter: int) -> NeighborLists:
    check_camera_parameters(k1_intra, k1_inter, k2_intra, k2_inter)
    n = len(features)
    list_length("k1_intra", k1_intra, n, small)
    list_length("k1_inter", k1_inter, n, small)
    intra, inter = find(as_cameras(camids, n), int(k1_intra) + 1, int(k1_inter) + 1)
    averaged = np.concatenate([intra[0][:, :k2_intra], inter[0][:, :k2_inter]], axis=1)
    return NeighborLists(features, (intra, inter), False, averaged)
