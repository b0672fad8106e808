"""Which boxes of a track become crops: tall enough, whole, not hidden, the sharpest of many."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..common.errors import UserError
from .tracks import Tracks

# Share of a box's area that may stick out of the picture. A person's foot is less.
MOST_CUT = 0.05
# Share of the boxes that may be outside the picture: trackers foresee where somebody who has left
# would be. In a track file of another video there are more.
MOST_OUTSIDE = 0.05
_EDGE = 1.0  # pixels within which a box ends at the picture's border


@dataclass(frozen=True)
class CropChoice:
    """Which boxes become crops.

    Attributes:
        every: of so many frames one is looked at, beginning with the first.
        min_height: pixels of a box within the picture.
        min_confidence: of the tracker, 0 to 1; boxes without one are kept if it is 0.
        max_overlap: share of a box's own area that one other box of the frame may cover. Which
            of the two is in front is not known, and a crop is to show one: at 0.3, people who
            walk side by side stay, and those who cross are left out for as long as they do.
        keep_border: whether boxes stay that end at the picture's border, where they may be cut.
        max_per_track: crops of a track. Where there are more boxes, its time is divided into so
            many equal parts, and the sharpest of each part stays.

    Raises:
        UserError: a number is out of its range.
    """

    every: int = 1
    min_height: int = 64
    min_confidence: float = 0.0
    max_overlap: float = 0.3
    keep_border: bool = False
    max_per_track: int = 10

    def __post_init__(self) -> None:
        for name, least, most in (("every", 1, np.inf), ("min_height", 1, np.inf),
                                  ("min_confidence", 0, 1), ("max_overlap", 0, 1),
                                  ("max_per_track", 1, np.inf)):
            if not least <= getattr(self, name) <= most:
                upper = f" to {most:g}" if np.isfinite(most) else " or more"
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)} must be "
                                f"{least}{upper}.")


@dataclass(frozen=True)
class Candidates:
    """The boxes of a video of which crops are cut, in the order of frames and ids.

    Attributes:
        frames, ids: (M,) int64.
        boxes: (M, 4) int64, left, top, right, bottom: pixels of the picture, right and bottom are
            the first that are not of the box.
        parts: (M,) int64; of each track's part, one box is kept.
        left_out: why others were, and how many.
    """

    frames: np.ndarray
    ids: np.ndarray
    boxes: np.ndarray
    parts: np.ndarray
    left_out: dict[str, int]


def choose(tracks: Tracks, size: tuple[int, int], choice: CropChoice) -> Candidates:
    """The boxes that become crops, or from which the sharpest are to be taken.

    Args:
        tracks: of the video.
        size: (width, height) of its picture.
        choice: the rules.

    Raises:
        UserError: more than 5 % of the boxes are outside the picture; their sizes are rights and
            bottoms; a confidence is asked for, and none is given, or it goes beyond 1.
    """
    limits = np.array([*size, *size], dtype=np.float64)
    inside = np.clip(tracks.boxes, 0, limits)
    outside = _areas(inside) == 0
    beyond = 1 - _areas(inside) / _areas(tracks.boxes)
    if outside.mean() > MOST_OUTSIDE:
        tracks.refuse(outside, f"are outside the picture of {size[0]} x {size[1]} pixels: it is "
                               "the file of another video, or of one in another size")
    corners, sizes = tracks.boxes[:, :2], tracks.boxes[:, 2:] - tracks.boxes[:, :2]
    ends_outside = (tracks.boxes[:, 2:] > limits[2:]).any(1) & (beyond > MOST_CUT)
    if (sizes > corners).all() and ends_outside.mean() > 0.5:
        tracks.refuse(ends_outside, "stick out of the picture, and no width or height is below "
                                    "left or top: if they are right and bottom, name the columns "
                                    "x1, y1, x2, y2 in a header line")
    if choice.min_confidence > 0:
        tracks.refuse(tracks.confidences > 1, "have a confidence above 1, and --min-confidence "
                                              f"{choice.min_confidence} is of 0 to 1: leave it out")
    if choice.min_confidence > 0 and np.isnan(tracks.confidences).all():
        raise UserError(f"{tracks.name} gives no confidence: leave --min-confidence "
                        f"{choice.min_confidence} out.")
    unsure = np.nan_to_num(tracks.confidences, nan=1.0) < choice.min_confidence
    there = ~outside & ~unsure
    covered = np.zeros(len(tracks))
    covered[there] = covered_shares(tracks.frames[there], inside[there])
    at_border = (np.abs(tracks.boxes - np.array([0, 0, *size])) <= _EDGE).any(1)
    at_border |= beyond > MOST_CUT
    rules = {
        "outside the picture": outside,
        f"not in every frame of {choice.every}": (tracks.frames - 1) % choice.every > 0,
        f"below --min-confidence {choice.min_confidence:g}": unsure,
        f"below --min-height {choice.min_height}": inside[:, 3] - inside[:, 1] < choice.min_height,
        "at the border": at_border & (not choice.keep_border),
        f"covered by more than --max-overlap {choice.max_overlap:g}": covered > choice.max_overlap}
    kept = np.ones(len(tracks), dtype=bool)
    left_out = {}
    for reason, wrong in rules.items():
        if count := int((kept & wrong).sum()):
            left_out[reason] = count
        kept &= ~wrong
    rows = np.flatnonzero(kept)
    rows = rows[np.lexsort((tracks.ids[rows], tracks.frames[rows]))]
    frames, ids = tracks.frames[rows], tracks.ids[rows]
    return Candidates(frames, ids, _pixels(inside[rows], size),
                      parts_of_tracks(frames, ids, choice.max_per_track), left_out)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _pixels(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Rounded to whole pixels, of which each box has at least one."""
    whole = np.floor(boxes + 0.5).astype(np.int64)
    whole[:, :2] = np.minimum(whole[:, :2], np.array(size) - 1)
    whole[:, 2:] = np.maximum(whole[:, 2:], whole[:, :2] + 1)
    return whole


def covered_shares(frames: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(B,) of each box, the share of its area that the one other box covers which covers most.

    Args:
        frames: (B,); boxes of other frames cover nothing.
        boxes: (B, 4) left, top, right, bottom, none of them empty.
    """
    shares = np.zeros(len(frames))
    order = np.argsort(frames, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(frames[order])) + 1):
        if len(rows) > 1:
            some = boxes[rows]
            low = np.maximum(some[:, None, :2], some[None, :, :2])
            high = np.minimum(some[:, None, 2:], some[None, :, 2:])
            common = np.clip(high - low, 0, None).prod(2)
            np.fill_diagonal(common, 0)
            shares[rows] = common.max(1) / _areas(some)
    return shares


def parts_of_tracks(frames: np.ndarray, ids: np.ndarray, most: int) -> np.ndarray:
    """(M,) of each box, the number of its part of the track; no track has more than ``most``.

    A track of at most so many boxes has one in each part. The time of a longer one, from its first
    box to its last, is divided into equal parts, of which some may be empty.

    Args:
        frames, ids: (M,), in the order of the frames.

    Example:
        >>> parts_of_tracks(np.array([1, 2, 3, 9, 10]), np.ones(5, dtype=int), 2).tolist()
        [0, 0, 0, 1, 1]
    """
    parts = np.zeros(len(frames), dtype=np.int64)
    order = np.argsort(ids, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(ids[order])) + 1):
        if len(rows) <= most:
            parts[rows] = np.arange(len(rows))
        else:
            since = frames[rows] - frames[rows[0]]
            parts[rows] = since * most // (since[-1] + 1)
    return parts
