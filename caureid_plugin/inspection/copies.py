"""Images that are the same, bit by bit or nearly.

Near copies are told by a perceptual hash: imagehash's ``phash`` with 16 x 16 bits (the low
frequencies of the grey image; Zauner, "Implementation and Benchmarking of Perceptual Image Hash
Functions", 2010), compared by the number of bits that differ.

Measured on 3,473 images of 200 people in Market-1501's training set and on the 1,232 of
SyntheticCameras, with each image shrunk to 0.9 and saved as JPEG of quality 60 as its copy:

==========  ====  ======================  ================================
hash        bits  farthest copy           nearest image of another person
==========  ====  ======================  ================================
phash 16    256   12 (99.9 %: 10)         70 (Synthetic: 60)
dhash 16    256   25                      62
average 16  256   9                       20
phash 8     64    4                       8
dhash 8     64    7                       5
wavelet 8   64    4                       2
==========  ====  ======================  ================================

So phash 16 leaves the widest gap. Rougher copies: half size and quality 30, 28 (99 %); brightness
x 1.3, 26; one pixel cut off all round, 22 in the middle and 40 (99 %); three pixels shifted, 76.
With the threshold of 32, no two of 4,718 images of Market-1501 of different people are copies.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..clustering import search_by_camera
from ..clustering.neighbors import Progress

# Bits of 256 that may differ between near copies, see above.
COPY_DISTANCE = 32


class NearCopies(NamedTuple):
    """The image of fewest different bits, within the same camera and in all other cameras.

    ``within`` and ``across`` (N,): its row, -1 if there is no other image; ``within_bits`` and
    ``across_bits`` (N,): how many bits differ, more than there are bits if there is none.
    """

    within: np.ndarray
    within_bits: np.ndarray
    across: np.ndarray
    across_bits: np.ndarray


def exact_copies(digests: Sequence[bytes]) -> list[list[int]]:
    """Groups of at least two rows with the same hash, each ascending, in order of their firsts."""
    groups = defaultdict(list)
    for row, digest in enumerate(digests):
        groups[digest].append(row)
    return [rows for rows in groups.values() if len(rows) > 1]


def find_near_copies(bits: np.ndarray, camids: np.ndarray, *,
                     progress: Progress | None = None) -> NearCopies:
    """The nearest other image of every image by Hamming distance, without an N x N matrix.

    Codes of -1 and 1 have the squared distance 4 H, with H the number of different bits, so that
    the clustering's own search finds them.

    Args:
        bits: (N, B) bool.
        camids: (N,) integers.
        progress: as :func:`caureid_plugin.clustering.search_by_camera` takes it.

    Raises:
        ValueError: no image.
        MemoryError: the search would not fit.
    """
    codes = np.where(bits, np.float32(1), np.float32(-1))
    within, across = search_by_camera(codes, camids, 2, 1, progress=progress)
    # a copy with a lower index comes before the image itself, or in its place
    column = (within[0][:, 0] == np.arange(len(bits))).astype(np.int64)[:, None]
    picked = [np.take_along_axis(part, column, axis=1)[:, 0] for part in within]
    none = bits.shape[1] + 1

    def counts(squared: np.ndarray) -> np.ndarray:
        return np.where(np.isfinite(squared), np.rint(squared / 4), none).astype(np.int64)

    return NearCopies(picked[0], counts(picked[1]), across[0][:, 0], counts(across[1][:, 0]))


def run_length(bits: np.ndarray, camids: np.ndarray, order: np.ndarray,
               distance: int = COPY_DISTANCE) -> float:
    """Mean length of runs of images of one camera each of which is a near copy of the one before.

    Args:
        bits: (N, B) bool.
        camids: (N,).
        order: (N,) rows in the order in which a camera's images follow each other.
        distance: bits that may differ.

    Returns:
        of the runs of at least two images; 1 if there are none.
    """
    order = order[np.argsort(camids[order], kind="stable")]  # camera by camera
    before, after = order[:-1], order[1:]
    follows = camids[before] == camids[after]
    follows &= (bits[before] != bits[after]).sum(axis=1) <= distance
    starts = np.flatnonzero(np.concatenate([[True], ~follows]))
    lengths = np.diff(starts, append=len(order))
    return float(lengths[lengths > 1].mean()) if follows.any() else 1.0
