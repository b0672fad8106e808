"""From which similarity on two images are taken for the same person's.

There are no identities to tell by. What a run has are its clusters: pairs of images in one
cluster, and pairs in two. Their similarities give a threshold and the error rates to expect of it,
as far as clusters are people: the images are those of the training, and clusters were made by
these same similarities. Both error rates are higher for people that the run has not seen;
docs/searching.md has measured by how much.

Letters: N images, P pairs of one cluster, Q pairs of two clusters.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

STEP = 0.001  # of the similarities that are kept
PAIRS = 100_000  # of each kind, at most
LEAST_PAIRS = 20  # of each kind, for a threshold
DEFAULT_RATE = 0.001  # false match rate of the threshold that is suggested
# where the features come from: of the network as it is, or as training left them in the bank
SOURCES = ("training images", "memory bank")


class Threshold(NamedTuple):
    """A similarity, and what is to be expected where it and higher ones mean the same person.

    ``false_match_rate`` is the share of pairs of two people with a similarity of ``value`` or more,
    ``false_non_match_rate`` that of pairs of one person below ``value`` (terms of ISO/IEC 19795-1).
    """

    value: float
    false_match_rate: float
    false_non_match_rate: float


@dataclasses.dataclass(frozen=True)
class PairStatistics:
    """Similarities of pairs of images, cosines in steps of 0.001.

    Attributes:
        same: (P,) float32, of pairs of one cluster, rising.
        different: (Q,) float32, of pairs of two clusters, rising.
        across: whether the two images of each pair come from two cameras, which is harder.
        source: "training images" as the network embeds them, or "memory bank", which holds what
            training saw: augmented images, seen by the network as it was before its last steps.
            These are less alike, and the false match rate that they give is too low by far.
    """

    same: np.ndarray
    different: np.ndarray
    across: bool = True
    source: str = SOURCES[0]

    @classmethod
    def from_features(cls, features: np.ndarray, labels: np.ndarray, camids: np.ndarray, *,
                      seed: int = 0, source: str = SOURCES[0]) -> PairStatistics:
        """Those of features with their clusters.

        Pairs of two cameras are taken, unless there are too few of one cluster; each once, and at
        most 100,000 of each kind, drawn at random. Outliers take no part.

        Args:
            features: (N, D), L2-normalised.
            labels: (N,) clusters, -1 for outliers.
            camids: (N,) cameras.
            seed: of the draw.
            source: of the features.

        Raises:
            ValueError: fewer than 20 pairs of one cluster or of two.
        """
        features, labels, camids = (np.asarray(part) for part in (features, labels, camids))
        kept = labels >= 0
        features, labels, camids = features[kept], labels[kept], camids[kept]
        rng = np.random.default_rng(seed)
        across = True
        same = _pairs_within(labels, camids, rng, across)
        if len(same) < LEAST_PAIRS:
            across = False
            same = _pairs_within(labels, camids, rng, across)
        different = _pairs_between(labels, camids, rng, across)
        for pairs, what in ((same, "the same cluster"), (different, "different clusters")):
            if len(pairs) < LEAST_PAIRS:
                raise ValueError(f"there are {len(pairs)} pairs of images in {what}, and a "
                                 f"threshold takes {LEAST_PAIRS}")
        return cls(_similarities(features, same), _similarities(features, different), across,
                   source)

    def threshold(self, false_match_rate: float | None = None) -> Threshold:
        """The lowest similarity with a false match rate of no more than the one that is wanted.

        Args:
            false_match_rate: in (0, 1); None: the one that is suggested, 0.001, or the lowest that
                so few pairs can tell, one of them.

        Raises:
            ValueError: a rate outside of that range, or one that these pairs are too few for.
        """
        if false_match_rate is None:
            false_match_rate = max(DEFAULT_RATE, self.lowest_rate)
        elif not 0 < false_match_rate < 1:
            raise ValueError(f"The false match rate {false_match_rate} must lie between 0 and 1.")
        elif false_match_rate < self.lowest_rate:
            raise ValueError(
                f"The false match rate {false_match_rate} is too low to be told from "
                f"{len(self.different)} pairs of different clusters: ask for "
                f"{1.1 * self.lowest_rate:.2g} or more.")
        values, matches, misses = self._rates()
        return _threshold(values, matches, misses, int(np.argmax(matches <= false_match_rate)))

    def equal_errors(self) -> Threshold:
        """The similarity where the two error rates are most alike."""
        values, matches, misses = self._rates()
        return _threshold(values, matches, misses, int(np.argmin(np.abs(matches - misses))))

    @property
    def lowest_rate(self) -> float:
        """The false match rate of a single pair. None below it can be told."""
        return 1 / len(self.different)

    def _rates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All thresholds, rising, with their shares of false matches and of false non-matches."""
        values = np.round(np.arange(-1, 1 + 2 * STEP, STEP), 3)  # the last is above all
        edges = values - STEP / 2  # between the steps: no rounding decides
        below = np.searchsorted(self.different, edges)
        matches = (len(self.different) - below) / len(self.different)
        misses = np.searchsorted(self.same, edges) / len(self.same)
        return values, matches, misses

    def to_json(self) -> dict[str, Any]:
        """Plain values: numbers of pairs for each step from the lowest that occurs."""
        return {"step": STEP, "across": self.across, "source": self.source,
                "same": _counts(self.same), "different": _counts(self.different)}

    @classmethod
    def from_json(cls, content: Any) -> PairStatistics:
        """What :meth:`to_json` gave.

        Raises:
            ValueError: it is something else.
        """
        try:
            across, source = content["across"], content["source"]
            if content["step"] != STEP or not isinstance(across, bool) or source not in SOURCES:
                raise ValueError(f"step {content['step']!r}, across {across!r}, source {source!r}")
            return cls(_expanded(content["same"]), _expanded(content["different"]), across, source)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"These are no pair statistics: {error}.") from error


def _threshold(values: np.ndarray, matches: np.ndarray, misses: np.ndarray, place: int
               ) -> Threshold:
    return Threshold(float(values[place]), float(matches[place]), float(misses[place]))


def _pairs_within(labels: np.ndarray, camids: np.ndarray, rng: np.random.Generator, across: bool
                  ) -> np.ndarray:
    """(P, 2) pairs of one cluster; all of them if there are no more than twice those to keep."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    sizes = np.diff(starts, append=len(order))
    counts = sizes * (sizes - 1) // 2
    total = int(counts.sum())
    if total <= 2 * PAIRS:
        parts = [order[start + np.stack(np.triu_indices(size, 1), axis=1)]
                 for start, size in zip(starts, sizes, strict=True) if size > 1]
        pairs = np.concatenate([np.empty((0, 2), np.int64), *parts])
    else:  # each cluster by its number of pairs
        drawn = rng.choice(len(sizes), size=2 * PAIRS, p=counts / total)
        first = rng.integers(sizes[drawn])
        second = (first + 1 + rng.integers(sizes[drawn] - 1)) % sizes[drawn]
        pairs = _once(order[starts[drawn, None] + np.stack([first, second], axis=1)])
    return _kept(pairs, camids, rng, across)


def _pairs_between(labels: np.ndarray, camids: np.ndarray, rng: np.random.Generator, across: bool
                   ) -> np.ndarray:
    """(Q, 2) pairs of two clusters; all of them if there are few images."""
    count = len(labels)
    if count * (count - 1) // 2 <= 4 * PAIRS:
        pairs = np.stack(np.triu_indices(count, 1), axis=1)
    else:
        pairs = _once(rng.integers(count, size=(4 * PAIRS, 2)))
    return _kept(pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]], camids, rng, across)


def _once(pairs: np.ndarray) -> np.ndarray:
    """Each pair a single time: the same two images again would tell nothing new."""
    return np.unique(np.sort(pairs, axis=1), axis=0)


def _kept(pairs: np.ndarray, camids: np.ndarray, rng: np.random.Generator, across: bool
          ) -> np.ndarray:
    if across:
        pairs = pairs[camids[pairs[:, 0]] != camids[pairs[:, 1]]]
    return pairs if len(pairs) <= PAIRS else pairs[rng.permutation(len(pairs))[:PAIRS]]


def _similarities(features: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Of each pair, rising, in steps."""
    found = np.concatenate([
        np.einsum("ij,ij->i", features[part[:, 0]], features[part[:, 1]])
        for part in np.array_split(pairs, max(1, len(pairs) // 4096))])
    return _from_steps(np.sort(np.round(np.clip(found.astype(np.float64), -1, 1) / STEP)))


def _from_steps(steps: np.ndarray) -> np.ndarray:
    return (steps * STEP).astype(np.float32)


def _counts(similarities: np.ndarray) -> dict[str, Any]:
    steps = np.round(similarities.astype(np.float64) / STEP).astype(np.int64)
    return {"first": int(steps[0]), "counts": np.bincount(steps - steps[0]).tolist()}


def _expanded(content: Any) -> np.ndarray:
    """(P,) similarities of what :func:`_counts` gave."""
    first, counts = content["first"], content["counts"]
    most = round(1 / STEP)
    if (type(first) is not int or not isinstance(counts, list) or not counts
            or not all(type(count) is int and 0 <= count <= PAIRS for count in counts)
            or not -most <= first <= first + len(counts) - 1 <= most
            or not 0 < sum(counts) <= PAIRS):
        raise ValueError("numbers of pairs that cannot be")
    return _from_steps(np.repeat(np.arange(first, first + len(counts)), counts))
