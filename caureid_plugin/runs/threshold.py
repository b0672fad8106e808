"""From which similarity on two images are taken for the same person's.

There are no identities to tell by. What a run has are its clusters: pairs of images in one
cluster, and pairs in two. Their similarities give a threshold and the error rates to expect of it,
as far as clusters are people: the images are the training's, and clusters were made by
these same similarities. Both error rates are higher for people that the run has not seen;
docs/searching.md has measured by how much.

Letters: N images, P pairs of one cluster, Q pairs of two clusters.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..common.errors import UserError

STEP = 0.001  # of the similarities that are kept
PAIRS = 100_000  # of each kind, at most
LEAST_PAIRS = 20  # of each kind, for a threshold
MOST_MATES = 1e9  # images of one cluster: no index has so many
DEFAULT_RATE = 0.001  # false match rate of the threshold that is suggested
# where the features come from: of the network as it is, or as training left them in the bank
SOURCES = ("training images", "memory bank")
LEVELS = ("good", "mixed", "bad", "unknown")  # of a run's verdict


class Threshold(NamedTuple):
    """A similarity, and what is to be expected where it and higher ones mean the same person.

    ``false_match_rate`` is the share of pairs of two people with a similarity of ``value`` or more,
    ``false_non_match_rate`` that of pairs of one person below ``value`` (terms of ISO/IEC 19795-1).
    """

    value: float
    false_match_rate: float
    false_non_match_rate: float


class Expected(NamedTuple):
    """What a query is expected to find that is marked as the same person, as mean numbers.

    ``right``: images of the query's person, ``wrong``: of other people.
    """

    right: float
    wrong: float

    @property
    def share_right(self) -> float:
        """Of what is marked, the share that is right; NaN where nothing is."""
        marked = self.right + self.wrong
        return self.right / marked if marked else math.nan


class RunVerdict(NamedTuple):
    """Whether training went well, as far as the run's label-free indicators tell.

    ``level`` is "good", "mixed", "bad" or "unknown", ``reason`` a sentence. Of a bad run, same or
    different is not shown: the error rates follow from its clusters, which are not people.
    """

    level: str = "unknown"
    reason: str = "Whether training went well is not known."

    def why_withheld(self, despite_verdict: bool = False) -> str:
        """Why a command does not show same or different, and what shows it; "" if it may."""
        if self.level != "bad" or despite_verdict:
            return ""
        # the reason begins with this sentence's own words
        why = re.sub(".*training went wrong: ", "", self.reason, flags=re.I).removesuffix(".")
        return (f"Same or different is not shown, because training went wrong ({why}). "
                "--despite-verdict shows it.")


NO_VERDICT = RunVerdict()
OTHER, OWN, ANY = "other cameras", "the query's own camera", "any camera"  # of what is found


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
        mates: how many other images of its cluster an image has, on average, that come from other
            cameras if ``across``; None: not known (measured by an older version).
        within: the same of pairs of one camera each, which are easier; None: not known, too few, or
            ``across`` is false.
    """

    same: np.ndarray
    different: np.ndarray
    across: bool = True
    source: str = SOURCES[0]
    mates: float | None = None
    within: PairStatistics | None = None

    @classmethod
    def from_features(cls, features: np.ndarray, labels: np.ndarray, camids: np.ndarray, *,
                      seed: int = 0, source: str = SOURCES[0]) -> PairStatistics:
        """Statistics of features with their clusters.

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
        same = _pairs_within(labels, camids, rng, OTHER)
        if len(same) < LEAST_PAIRS:
            across = False
            same = _pairs_within(labels, camids, rng, ANY)
        different = _pairs_between(labels, camids, rng, OTHER if across else ANY)
        for pairs, what in ((same, "the same cluster"), (different, "different clusters")):
            if len(pairs) < LEAST_PAIRS:
                raise UserError(f"there are {len(pairs)} pairs of images in {what}, and a "
                                f"threshold takes {LEAST_PAIRS}")
        every, own = _mates(labels), _mates(labels, camids)
        within = None
        if across:
            one, two = (draw(labels, camids, rng, OWN) for draw in (_pairs_within, _pairs_between))
            if min(len(one), len(two)) >= LEAST_PAIRS:
                within = cls(_similarities(features, one), _similarities(features, two), False,
                             source, own)
        return cls(_similarities(features, same), _similarities(features, different), across,
                   source, every - own if across else every, within)

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
            raise UserError(f"The false match rate {false_match_rate} must lie between 0 and 1.")
        elif false_match_rate < self.lowest_rate:
            raise UserError(
                f"The false match rate {false_match_rate} is too low to be told from "
                f"{len(self.different)} pairs of different clusters: ask for "
                f"{1.1 * self.lowest_rate:.2g} or more.")
        values, matches, misses = self._rates()
        return _threshold(values, matches, misses, int(np.argmax(matches <= false_match_rate)))

    def equal_errors(self) -> Threshold:
        """The similarity where the two error rates are most alike."""
        values, matches, misses = self._rates()
        return _threshold(values, matches, misses, int(np.argmin(np.abs(matches - misses))))

    def error_rates(self, value: float) -> Threshold:
        """The error rates of a threshold that is given."""
        edge = value - STEP / 2  # between the steps: no rounding decides
        return Threshold(value, float(np.mean(self.different >= edge)),
                         float(np.mean(self.same < edge)))

    def expected(self, value: float, camera_counts: Mapping[str, int]) -> dict[str, Expected]:
        """What a query finds in an index that is marked as the same person, on average.

        The query's person has as many images in the index as people have in the training, or none:
        then none of what is marked is right. Images of other people are marked by the false match
        rate, or, where that is 0, by that of a single pair.

        Args:
            value: from which similarity on images are marked.
            camera_counts: images of the index by camera, "" for those without a known one, which
                are taken for other cameras'. Queries come from cameras as its images do.

        Returns:
            of "other cameras" and "the query's own camera", or of "any camera" where pairs are of
            whatever camera; what is not known is left out.
        """
        total = sum(camera_counts.values())
        own = sum(count ** 2 for name, count in camera_counts.items() if name) / max(total, 1)
        parts = {OTHER: (self, total - own), OWN: (self.within, own)} if self.across else {
            ANY: (self, total)}
        found = {}
        for name, (statistics, images) in parts.items():
            if statistics is not None and statistics.mates is not None and images:
                rates = statistics.error_rates(value)
                found[name] = Expected(
                    statistics.mates * (1 - rates.false_non_match_rate),
                    images * (rates.false_match_rate or statistics.lowest_rate))
        return found

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
        content = {"step": STEP, "across": self.across, "source": self.source,
                   "same": _counts(self.same), "different": _counts(self.different)}
        if self.mates is not None:  # older versions pass these two over
            content["mates"] = self.mates
        if self.within is not None:
            content["within"] = self.within.to_json()
        return content

    @classmethod
    def from_json(cls, content: Any) -> PairStatistics:
        """What :meth:`to_json` gave.

        Raises:
            ValueError: it is something else.
        """
        try:
            within = content.get("within")
            return cls(*_parts(content),
                       within=None if within is None else cls(*_parts(within)))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"These are no pair statistics: {error}.") from error


def _mates(labels: np.ndarray, camids: np.ndarray | None = None) -> float:
    """Mean number of other images of an image's cluster, or of its cluster and camera."""
    groups = labels[:, None] if camids is None else np.stack([labels, camids], axis=1)
    sizes = np.unique(groups, axis=0, return_counts=True)[1]
    return float((sizes * (sizes - 1)).sum() / len(labels))


def _parts(content: Any) -> tuple[np.ndarray, np.ndarray, bool, str, float | None]:
    """What :meth:`PairStatistics.to_json` gave, but for what is in it of the same kind."""
    across, source, mates = content["across"], content["source"], content.get("mates")
    if content["step"] != STEP or not isinstance(across, bool) or source not in SOURCES:
        raise UserError(f"step {content['step']!r}, across {across!r}, source {source!r}")
    if mates is not None and not (type(mates) in (int, float) and 0 <= mates <= MOST_MATES):
        raise UserError(f"mates {mates!r}")
    return _expanded(content["same"]), _expanded(content["different"]), across, source, mates


def _threshold(values: np.ndarray, matches: np.ndarray, misses: np.ndarray, place: int
               ) -> Threshold:
    return Threshold(float(values[place]), float(matches[place]), float(misses[place]))


def _pairs_within(labels: np.ndarray, camids: np.ndarray, rng: np.random.Generator, cameras: str
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
    return _kept(pairs, camids, rng, cameras)


def _pairs_between(labels: np.ndarray, camids: np.ndarray, rng: np.random.Generator, cameras: str
                   ) -> np.ndarray:
    """(Q, 2) pairs of two clusters; all of them if there are few images."""
    count = len(labels)
    if count * (count - 1) // 2 <= 4 * PAIRS:
        pairs = np.stack(np.triu_indices(count, 1), axis=1)
    else:
        pairs = _once(rng.integers(count, size=(4 * PAIRS, 2)))
    return _kept(pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]], camids, rng, cameras)


def _once(pairs: np.ndarray) -> np.ndarray:
    """Each pair a single time: the same two images again would tell nothing new."""
    return np.unique(np.sort(pairs, axis=1), axis=0)


def _kept(pairs: np.ndarray, camids: np.ndarray, rng: np.random.Generator, cameras: str
          ) -> np.ndarray:
    if cameras != ANY:
        alike = camids[pairs[:, 0]] == camids[pairs[:, 1]]
        pairs = pairs[alike == (cameras == OWN)]
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
        raise UserError("numbers of pairs that cannot be")
    return _from_steps(np.repeat(np.arange(first, first + len(counts)), counts))
