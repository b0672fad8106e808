"""Tracks: images that a tracker says are of one person, and tracks that cannot be.

Two tracks that are seen in one place at one time are two people. DBSCAN gets this as cannot-link
constraints (Ruiz, Spiliopoulou and Menasalvas, "C-DBSCAN", RSFDGrC 2007, has such constraints for
points; the rule below is ours):

- Whether a track is a core point does not depend on the constraints.
- Core points within eps of each other join in the order of their distance, the closest first. Two
  clusters that hold a forbidden pair do not join, here or at any larger distance.
- Then each border point joins the cluster of its nearest core point that it has no forbidden pair
  with.
- What is equally far is decided together. Of the clusters that can join two by two and are linked
  at one distance, all join, or none does if that would hold a forbidden pair. A border point
  between two clusters stays an outlier.

So no cluster holds a forbidden pair, the result does not depend on the order of the images, and
without a forbidden pair the clusters of core points are DBSCAN's.

Letters: N images, T tracks, D embedding size.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch.nn import functional as F

from .inputs import as_cameras

Edge = tuple[float, int, int]  # distance, two tracks
ROWS = 65536  # features that are normalised at once


@dataclass(frozen=True)
class Tracks:
    """Which images are of one track, and where and when it was seen.

    Attributes:
        of_image: (N,) int64, the track of each image, 0..T-1 in order of first appearance.
        camids: (T,) int64, the camera of each track.
        first: (T,) float64, the time of its first image; NaN: not known, so that it may be anyone.
        last: (T,) float64, the time of its last image.
        places: (T,) int64, where nobody can be twice at one time: the cameras, or one number for
            all of them if none sees what another sees.
    """

    of_image: np.ndarray
    camids: np.ndarray
    first: np.ndarray
    last: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, camids: torch.Tensor | np.ndarray, names: Sequence[Hashable | None],
           times: Sequence[float] | np.ndarray | None = None, *, one_place: bool = False) -> Tracks:
        """Tracks of images. The same name under another camera is another track.

        Args:
            camids: (N,) integers, the camera of each image.
            names: (N,), of the tracks; None: the image is a track by itself.
            times: (N,), in any unit, by one clock for each place; NaN or None: not known.
            one_place: no two cameras see one place, so that nobody is in two of them at one time.
                The clocks of all cameras must then agree.

        Raises:
            ValueError: not one name and time for each image.

        Example:
            >>> tracks = Tracks.of(np.array([0, 0, 1]), ["a", "a", "a"], [1.0, 2.5, 2.0])
            >>> tracks.of_image.tolist(), tracks.first.tolist(), tracks.last.tolist()
            ([0, 0, 1], [1.0, 2.0], [2.5, 2.0])
        """
        n = len(names)
        cameras = as_cameras(camids, n)
        moments = np.full(n, np.nan) if times is None else np.asarray(times, dtype=np.float64)
        if moments.shape != (n,):
            raise ValueError(f"times must hold one number for each of the {n} images, got shape "
                             f"{moments.shape}")
        number: dict[Hashable, int] = {}
        of_image = np.array([
            number.setdefault((camera, "image", row) if name is None else (camera, "track", name),
                              len(number))
            for row, (camera, name) in enumerate(zip(cameras.tolist(), names, strict=True))],
            dtype=np.int64)
        _, first_image = np.unique(of_image, return_index=True)
        first, last = np.full((2, len(number)), np.nan)
        np.fmin.at(first, of_image, moments)
        np.fmax.at(last, of_image, moments)
        places = np.zeros(len(number), dtype=np.int64) if one_place else cameras[first_image]
        return cls(of_image, cameras[first_image], first, last, places)

    def __len__(self) -> int:
        return len(self.camids)

    def of_images(self, rows: np.ndarray) -> Tracks:
        """The tracks of some of the images, by their rows (n,), with the times of whole tracks."""
        kept, first, of_image = np.unique(self.of_image[rows], return_index=True,
                                          return_inverse=True)
        order = np.argsort(first)  # of first appearance
        kept, number = kept[order], np.argsort(order)
        return Tracks(number[of_image.ravel()], self.camids[kept], self.first[kept],
                      self.last[kept], self.places[kept])

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """(T,) int64, images of each track."""
        return np.bincount(self.of_image, minlength=len(self))

    def mean(self, features: torch.Tensor) -> torch.Tensor:
        """(T, D), the mean of the L2-normalised features (N, D) of each track, L2-normalised."""
        sums = features.new_zeros(len(self), features.shape[1])
        rows = torch.from_numpy(self.of_image)
        for start in range(0, len(features), ROWS):  # normalised features are a copy
            part = slice(start, start + ROWS)
            sums.index_add_(0, rows[part], F.normalize(features[part], dim=1))
        return F.normalize(sums, dim=1)

    def overlaps(self) -> dict[int, int]:
        """Of each place, how many pairs of tracks are seen in it at one time."""
        order, counts = _by_beginning(self)
        return {place: int(counts[self.places[order] == place].sum())
                for place in np.unique(self.places).tolist()}


def overlapping(tracks: Tracks) -> np.ndarray:
    """(M, 2) every pair of tracks that are in one place at one time.

    Example:
        >>> overlapping(Tracks.of(np.zeros(3, int), ["a", "a", "b"], [1, 3, 2])).tolist()
        [[0, 1]]
    """
    order, counts = _by_beginning(tracks)
    one = np.repeat(np.arange(len(order)), counts)
    since = np.arange(len(one)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([order[one], order[one + 1 + since]], axis=1)


def _by_beginning(tracks: Tracks, clusters: np.ndarray | None = None
                  ) -> tuple[np.ndarray, np.ndarray]:
    """Tracks of known time in the order of cluster (-1: of none), place and beginning, and how many
    that follow each in its cluster and place are there before it ends: the next ones."""
    groups = np.zeros(len(tracks), dtype=np.int64) if clusters is None else clusters
    known = np.flatnonzero((groups >= 0) & ~np.isnan(tracks.first))
    order = known[np.lexsort((tracks.first[known], tracks.places[known], groups[known]))]
    number = np.arange(len(order))
    # their beginnings and ends, at one time the beginnings first
    merged = np.lexsort((np.repeat([0, 1], len(order)),
                         np.concatenate([tracks.first[order], tracks.last[order]]),
                         np.tile(tracks.places[order], 2), np.tile(groups[order], 2)))
    begun = np.empty(len(merged), dtype=np.int64)
    begun[merged] = np.cumsum(merged < len(order))
    return order, begun[len(order):] - number - 1


def cluster_tracks(graph: sparse.csr_matrix, eps: float, min_samples: int, tracks: Tracks,
                   weights: np.ndarray | None = None, *, known: np.ndarray | None = None,
                   apart: Sequence[tuple[int, int]] = ()) -> np.ndarray:
    """DBSCAN's labels of tracks, no two of which in a cluster are in one place at one time.

    Args:
        graph: (T, T) distances of the pairs within ``eps``, symmetric, with the diagonal; a stored
            zero is a distance of 0.
        eps: largest distance between neighbours.
        min_samples: neighbours, itself included, that make a track a core point.
        tracks: T of them.
        weights: (T,), how many neighbours each track counts as, 1 if not given.
        known: (T,) int64, who is known to be on a track, from 0; -1: not known. Tracks of one such
            number share a cluster whatever their distance, tracks of two never do.
        apart: pairs of tracks that are of two people, whatever else is known.

    Returns:
        (T,) int64 labels, numbered in no certain order; -1 marks an outlier.

    Raises:
        ValueError: a graph of something else than the tracks; what is known contradicts itself:
            one number for two tracks that are in one place at one time, or that are to be apart
            (names the tracks).
    """
    n = len(tracks)
    if graph.shape != (n, n):
        raise ValueError(f"the graph or encoding must be of the {n} tracks, got one of shape "
                         f"{graph.shape}: make it with the same tracks")
    near = sparse.coo_matrix(graph)
    kept = near.data <= np.float32(eps)
    row, column, distance = near.row[kept], near.col[kept], near.data[kept]
    counts = np.bincount(row, None if weights is None else weights[column], minlength=n)
    core = counts >= min_samples
    inside = core[row] & core[column] & (row < column)
    links = sparse.coo_matrix((np.ones(inside.sum()), (row[inside], column[inside])), (n, n))
    _, cluster = sparse.csgraph.connected_components(links, directed=False)
    groups = _Groups(tracks)
    order, overlaps = _by_beginning(tracks, np.where(core, cluster, -1))
    torn = core & np.isin(cluster, cluster[order[overlaps > 0]])
    if known is not None or len(apart):
        groups.take_over(np.full(n, -1) if known is None else known, apart)
        torn = core
    for members in _by_value(cluster, core & ~torn):
        groups.join(members)
    open_links = inside & torn[row]
    for edges in _levels(distance[open_links], row[open_links], column[open_links]):
        groups.join_level(edges)
    outside = ~core[row] & core[column]
    for edges in _levels(distance[outside], row[outside], column[outside]):
        groups.add_level(edges)
    labels = np.array([groups.find(track) for track in range(n)], dtype=np.int64)
    alone = np.bincount(labels, minlength=n)[labels] == 1
    labels[~core & alone & (True if known is None else known < 0)] = -1
    return labels


def _by_value(values: np.ndarray, chosen: np.ndarray) -> Iterator[list[int]]:
    """The chosen places of each value."""
    places = np.flatnonzero(chosen)
    order = places[np.argsort(values[places], kind="stable")]
    bounds = np.flatnonzero(np.diff(values[order])) + 1
    return (part.tolist() for part in np.split(order, bounds) if part.size)


def _levels(distance: np.ndarray, row: np.ndarray, column: np.ndarray) -> Iterator[list[Edge]]:
    """Edges by their distance, equal ones together, the smallest first."""
    order = np.argsort(distance, kind="stable")
    edges = zip(distance[order].tolist(), row[order].tolist(), column[order].tolist(), strict=True)
    return (list(level) for _, level in itertools.groupby(edges, key=lambda edge: edge[0]))


class _Groups:
    """Tracks in groups, none of which holds two that are in one place at one time."""

    def __init__(self, tracks: Tracks) -> None:
        self._tracks = tracks
        self._parent = list(range(len(tracks)))
        # of a group, by place: when its tracks are there, disjoint and in order
        self._spans: list[dict[int, list[tuple[float, float]]]] = [
            {} if np.isnan(first) else {place: [(first, last)]}
            for place, first, last in zip(tracks.places.tolist(), tracks.first.tolist(),
                                          tracks.last.tolist(), strict=True)]
        self._sizes = [1] * len(tracks)  # of a group, by its root
        self._apart: dict[int, set[int]] = defaultdict(set)  # groups known to overlap
        self._settled: set[int] = set()  # border points
        self._known: dict[int, int] = {}  # of a group, by its root

    def find(self, track: int) -> int:
        parent = self._parent
        while parent[track] != track:
            parent[track] = parent[parent[track]]
            track = parent[track]
        return track

    def join(self, tracks: Iterable[int]) -> None:
        """Joins the groups of some tracks, which do not overlap."""
        root, *others = sorted({self.find(track) for track in tracks},
                               key=self._sizes.__getitem__, reverse=True)
        for other in others:
            self._parent[other] = root
            self._sizes[root] += self._sizes[other]
            if other in self._known:
                self._known[root] = self._known.pop(other)
            for place, spans in self._spans[other].items():
                there = self._spans[root].setdefault(place, [])
                for span in spans:
                    bisect.insort(there, span)
            self._spans[other] = {}
            for apart in self._apart.pop(other, ()):
                self._apart[apart].discard(other)
                self._apart[apart].add(root)
                self._apart[root].add(apart)

    def overlap(self, one: int, other: int) -> bool:
        """Whether two groups, by their roots, have tracks in one place at one time."""
        if other in self._apart.get(one, ()):
            return True
        if one in self._known and other in self._known:
            return True
        if self._sizes[one] > self._sizes[other]:
            one, other = other, one
        for place, spans in self._spans[one].items():
            there = self._spans[other].get(place, [])
            for first, last in spans:
                # the last one that begins before this ends; those before it end before it begins
                begun = bisect.bisect_right(there, (last, np.inf))
                if begun and there[begun - 1][1] >= first:
                    self._apart[one].add(other)
                    self._apart[other].add(one)
                    return True
        return False

    def can_be_one(self, roots: set[int]) -> bool:
        """Whether no two of several groups overlap. The largest one is not walked through."""
        largest = max(roots, key=self._sizes.__getitem__)
        others = roots - {largest}
        if any(self.overlap(largest, other) for other in others):
            return False
        if (sum(root in self._known for root in others) > 1
                or any(not others.isdisjoint(self._apart.get(root, ())) for root in others)):
            return False
        spans = sorted((place, *span) for root in others
                       for place, there in self._spans[root].items() for span in there)
        return all(one[0] != other[0] or one[2] < other[1]
                   for one, other in itertools.pairwise(spans))

    def take_over(self, known: np.ndarray, apart: Sequence[tuple[int, int]]) -> None:
        """Joins the tracks of each known number, and keeps pairs apart.

        Raises:
            ValueError: that contradicts itself.
        """
        both = [pair for pair in apart if known[pair[0]] == known[pair[1]] >= 0]
        order, overlaps = _by_beginning(self._tracks, known)
        at_once = np.flatnonzero(overlaps)
        both += zip(order[at_once].tolist(), order[at_once + 1].tolist(), strict=True)
        for one, other in both:
            raise ValueError(f"tracks {one} and {other} are known as one, number {known[one]}, "
                             "but they are two people: seen in one place at one time, or to be "
                             "kept apart")
        for one, other in apart:
            self._apart[one].add(other)
            self._apart[other].add(one)
        for members in _by_value(known, known >= 0):
            self.join(members)
        self._known = {self.find(track): int(number)
                       for track, number in enumerate(known.tolist()) if number >= 0}
        self._settled.update(np.flatnonzero(known >= 0).tolist())

    def join_level(self, edges: list[Edge]) -> None:
        """Joins the groups between which edges of one distance lie, where all of them can."""
        linked: dict[int, set[int]] = defaultdict(set)
        for _, one, other in edges:
            a, b = self.find(one), self.find(other)
            if a != b and not self.overlap(a, b):
                linked[a].add(b)
                linked[b].add(a)
        while linked:
            together, waiting = set(), [next(iter(linked))]
            while waiting:
                root = waiting.pop()
                if root not in together:
                    together.add(root)
                    waiting += linked.pop(root)
            if self.can_be_one(together):
                self.join(together)

    def add_level(self, edges: list[Edge]) -> None:
        """Adds border points to the groups of core points that are at one distance of them."""
        wanted: dict[int, set[int]] = defaultdict(set)
        for _, border, core in edges:
            root = self.find(core)
            if border not in self._settled and not self.overlap(border, root):
                wanted[border].add(root)
        new: dict[int, list[int]] = defaultdict(list)
        for border, roots in wanted.items():
            self._settled.add(border)
            if len(roots) == 1:
                new[roots.pop()].append(border)
        for root, borders in new.items():
            if self.can_be_one({root, *borders}):
                self.join([root, *borders])
