"""Who is on each track: the clustering of a run, under what a tracker and a user know.

Letters: N crops, T tracks, P people, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from fastreid.config import CfgNode
from scipy import sparse
from torch.nn.functional import normalize

from ..clustering import Search, jaccard_encoding, standardize_by_camera
from ..clustering.jaccard import pairs_within
from ..clustering.tracks import Tracks, cluster_tracks, overlapping
from .corrections import Facts

# A run's neighbour lists count images. Where crops have tracks, they count tracks here, of which a
# person has fewer: more than this many would be other people's. Measured, see docs/people.md.
MOST_TRACKS = {"k1": 12, "k2": 2, "k1_intra": 2, "k1_inter": 8, "k2_intra": 1, "k2_inter": 2}
LEAST_LENGTH = 1.5  # crops of a track, on average; of fewer, lists are of images
ROWS = 2048  # tracks that are compared with all people at once
UNCLEAR = 0.5  # distance of a track to its person where no track was joined to tell by


class Settings(NamedTuple):
    """How tracks are compared.

    ``eps`` and ``min_samples`` are DBSCAN's, ``counts`` the arguments of
    :func:`..clustering.jaccard_encoding`; ``camera_aware`` and ``standardize``: whether neighbours
    are searched by camera, among features that are standardised by camera; ``least``: tracks whose
    mean features have a lower cosine are no neighbours.
    """

    eps: float
    min_samples: int
    counts: dict[str, int]
    camera_aware: bool
    standardize: bool
    least: float
    search: Search

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {value}" for name, value in self.counts.items())
        return (f"{'camera-aware' if self.camera_aware else 'plain'} neighbours, {counts}, eps "
                f"{self.eps:g}, min_samples {self.min_samples}"
                f"{', standardised by camera' if self.standardize else ''}, least similarity "
                f"{self.least:.3f}")


def settings_of(cfg: CfgNode, given: Sequence[str], camids: np.ndarray, tracks: Tracks,
                least: float) -> Settings:
    """How a run clustered in its last epoch, fitted to new footage.

    Of a single camera, neighbours are plain. A camera of one crop is not standardised by, nor are
    the others. Neighbour lists of tracks are no longer than MOST_TRACKS, unless their keys are
    given.

    Args:
        cfg: of the run, with the keys that were given.
        given: names of these keys.
        camids: (N,) cameras of the crops.
        tracks: T of them.
        least: see :class:`Settings`.
    """
    node = cfg.CAUREID.CLUSTER
    cameras = np.unique(camids, return_counts=True)[1]
    camera_aware = bool(node.CAMERA_AWARE) and len(cameras) > 1
    names = ("k1_intra", "k1_inter", "k2_intra", "k2_inter") if camera_aware else ("k1", "k2")
    counts = {name: int(node[name.upper()]) for name in names}
    if len(camids) >= LEAST_LENGTH * len(tracks):
        counts = {name: value if f"CAUREID.CLUSTER.{name.upper()}" in given
                  else min(value, MOST_TRACKS[name]) for name, value in counts.items()}
    return Settings(
        node.EPS, node.MIN_SAMPLES, counts, camera_aware,
        bool(node.STANDARDIZE) and int(cameras.min()) > 1, least,
        Search(backend=node.SEARCH, recall=node.RECALL, max_memory=node.MAX_MEMORY or None))


class Assigned(NamedTuple):
    """(T,) each: the person on a track, the confidence, the nearest other person."""

    persons: np.ndarray
    confidence: np.ndarray
    nearest: np.ndarray


def assign(features: torch.Tensor, camids: np.ndarray, tracks: Tracks, settings: Settings, *,
           facts: Facts, first_new: int = 1) -> Assigned:
    """The person on each track.

    Args:
        features: (N, D) of the crops, L2-normalised.
        camids: (N,) their cameras.
        tracks: T of them.
        settings: how they are compared.
        facts: what is known.
        first_new: number of the first person that is new; the others follow it in the order in
            which their tracks appear.

    Returns:
        persons from 1, 0: not known.
    """
    compared = standardize_by_camera(features, camids) if settings.standardize else features
    graph = _alike(_graph(compared, camids, tracks, settings), tracks.mean(features).numpy(),
                   settings.least)
    labels = cluster_tracks(
        graph, settings.eps, settings.min_samples, tracks, tracks.lengths,
        known=facts.group if (facts.group >= 0).any() else None, apart=facts.apart)
    persons = _numbered(labels, facts, first_new)
    apart = np.array(facts.apart, dtype=np.int64).reshape(-1, 2)
    return Assigned(persons, *confidences(tracks.mean(compared).numpy(), persons,
                                          np.concatenate([overlapping(tracks), apart])))


def _graph(features: torch.Tensor, camids: np.ndarray, tracks: Tracks, settings: Settings
           ) -> sparse.csr_matrix:
    options: dict[str, Any] = {**settings.counts, **(
        {"camids": camids} if settings.camera_aware else {})}
    encoding = jaccard_encoding(features, tracks=tracks, small=True, search=settings.search,
                                **options)
    return pairs_within(encoding, settings.eps)


def _alike(graph: sparse.csr_matrix, means: np.ndarray, least: float) -> sparse.csr_matrix:
    """The pairs of a graph whose mean features (T, D) have a cosine of ``least`` or more."""
    pairs = graph.tocoo()
    cosines = np.concatenate([np.empty(0, np.float32), *(
        np.einsum("ij,ij->i", means[pairs.row[part]], means[pairs.col[part]])
        for part in np.array_split(np.arange(pairs.nnz), pairs.nnz // 100_000 + 1))])
    kept = (cosines >= least) | (pairs.row == pairs.col)
    return sparse.csr_matrix((pairs.data[kept], (pairs.row[kept], pairs.col[kept])), graph.shape)


def _numbered(labels: np.ndarray, facts: Facts, first_new: int) -> np.ndarray:
    number = {int(labels[track]): facts.numbers[group]
              for track, group in enumerate(facts.group.tolist()) if group >= 0}
    persons = np.zeros(len(labels), dtype=np.int64)
    for track, label in enumerate(labels.tolist()):
        if label < 0 and not facts.left[track]:
            continue
        if label < 0 or not number.get(label):  # who was split off is somebody
            number[label if label >= 0 else -2 - track] = first_new
            first_new += 1
        persons[track] = number[label if label >= 0 else -2 - track]
    return persons


def confidences(means: np.ndarray, persons: np.ndarray, pairs: np.ndarray
                ) -> tuple[np.ndarray, np.ndarray]:
    """How clear it is who is on each track, and who else it may be.

    With a the distance (1 - cosine, 0 to 1) of a track to the mean of its person's other tracks,
    and b that to the mean of the nearest other person whom it may be, the confidence is
    b / (a + b): 0.5 where both are as near. Of a person with a single track, a is the median of
    all others' (UNCLEAR if there are none). b is 1 where there is no other person.

    Args:
        means: (T, D) mean features, L2-normalised.
        persons: (T,) from 1, 0: nobody known.
        pairs: (M, 2) tracks that cannot be one person.

    Returns:
        (T,) confidences, NaN where nobody is known, and (T,) the nearest other person, 0: none.
    """
    numbers, column = np.unique(persons[persons > 0], return_inverse=True)
    confidence, nearest = np.full(len(persons), np.nan), np.zeros(len(persons), dtype=np.int64)
    if not len(numbers):
        return confidence, nearest
    of_track = np.full(len(persons), -1)
    of_track[persons > 0] = column
    sums = np.zeros((len(numbers), means.shape[1]), dtype=np.float32)
    np.add.at(sums, column, means[persons > 0])
    alone = np.bincount(column)[of_track] == 1
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[of_track[both[:, 1]] >= 0]
    both = both[np.argsort(both[:, 0], kind="stable")]
    centres = _unit(sums)
    own, other = np.full(len(persons), np.nan), np.ones(len(persons))
    for start in range(0, len(persons), ROWS):
        rows = np.arange(start, min(start + ROWS, len(persons)))
        cosines = means[rows] @ centres.T
        some = slice(*np.searchsorted(both[:, 0], (start, start + ROWS)))
        cosines[both[some, 0] - start, of_track[both[some, 1]]] = -np.inf
        assigned = rows[of_track[rows] >= 0]
        cosines[assigned - start, of_track[assigned]] = -np.inf
        best = cosines.argmax(axis=1)
        there = np.isfinite(cosines[rows - start, best])
        nearest[rows[there]] = numbers[best[there]]
        other[rows[there]] = _distance(cosines[there, best[there]])
        joined = assigned[~alone[assigned]]
        rest = _unit(sums[of_track[joined]] - means[joined])
        own[joined] = _distance(np.einsum("ij,ij->i", rest, means[joined]))
    known = persons > 0
    own[known & alone] = np.nanmedian(own) if (known & ~alone).any() else UNCLEAR
    confidence[known] = (other[known] + 1e-6) / (own[known] + other[known] + 2e-6)
    return confidence, nearest


def _unit(rows: np.ndarray) -> np.ndarray:
    return normalize(torch.from_numpy(rows), dim=1).numpy()


def _distance(cosines: np.ndarray) -> np.ndarray:
    return 1 - np.clip(cosines, 0, 1)
