"""Every image read once, as training reads it; what later stages need is kept, the pixels are not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import imagehash
import numpy as np
from fastreid.data import data_utils
from PIL import Image

from ..common.errors import UserError
from .content import structure

# Height and width of the thumbnails by which cameras are compared.
THUMBNAIL = (8, 4)
# The lowest 16 x 16 frequencies of the grey image, above or below their median. :mod:`.copies`
# says what was measured.
HASH_SIDE = 16
CHUNK = 64  # files that a thread takes at a time


@dataclass(frozen=True)
class Facts:
    """What is known of the R of N files that could be read, and of the others.

    Attributes:
        rows: (R,) their places in the list of files, ascending.
        sizes: (R, 2) height and width in pixels, upright.
        digests: R hashes of the files' bytes (BLAKE2b, 16 bytes).
        bits: (R, 256) bool, perceptual hashes.
        thumbnails: (R, 8 * 4 * 3) uint8, the image shrunk to 8 x 4, by row, column, colour.
        structure: (R,) see :func:`.content.structure`.
        errors: place in the list -> why the file could not be read, which names it.
    """

    rows: np.ndarray
    sizes: np.ndarray
    digests: list[bytes]
    bits: np.ndarray
    thumbnails: np.ndarray
    structure: np.ndarray
    errors: dict[int, str]


def choose(facts: Facts, which: np.ndarray) -> Facts:
    """The facts of some of the images that could be read, (R,) bool; errors stay."""
    digests = [facts.digests[row] for row in np.flatnonzero(which)]
    return Facts(facts.rows[which], facts.sizes[which], digests, facts.bits[which],
                 facts.thumbnails[which], facts.structure[which], facts.errors)


_Read = tuple[tuple[int, int], bytes, np.ndarray, np.ndarray, float]


def inspect_images(paths: Sequence[str], *, workers: int = 1,
                   progress: Callable[[int], object] = lambda done: None) -> Facts:
    """Reads and decodes every file by the toolbox's ``read_image``, as training does.

    Args:
        paths: N files.
        workers: threads; decoding runs in them side by side.
        progress: called with the number of files that are newly done.

    Returns:
        the facts; they do not depend on ``workers``.
    """
    chunks = [paths[start:start + CHUNK] for start in range(0, len(paths), CHUNK)]
    found: list[_Read | str] = []
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        for part in pool.map(_read_all, chunks):
            found += part
            progress(len(part))
    finally:  # what has not started is left out after Ctrl-C
        pool.shutdown(cancel_futures=True)
    rows = [i for i, item in enumerate(found) if not isinstance(item, str)]
    read = [item for item in found if not isinstance(item, str)]
    height, width = THUMBNAIL
    return Facts(
        np.array(rows, dtype=np.int64),
        np.array([item[0] for item in read], dtype=np.int64).reshape(-1, 2),
        [item[1] for item in read],
        np.array([item[2] for item in read], dtype=bool).reshape(-1, HASH_SIDE ** 2),
        np.array([item[3] for item in read], dtype=np.uint8).reshape(-1, height * width * 3),
        np.array([item[4] for item in read], dtype=np.float64),
        {i: item for i, item in enumerate(found) if isinstance(item, str)})


def _read_all(paths: Sequence[str]) -> list[_Read | str]:
    return [_read(path) for path in paths]


def _read(path: str) -> _Read | str:
    """What is kept of a file; or the error, whatever made the file unreadable."""
    try:
        image = data_utils.read_image(path)  # refuses FIFOs and the like, which would wait
        with open(path, "rb") as file:
            digest = hashlib.blake2b(file.read(), digest_size=16).digest()
    except (UserError, OSError, MemoryError) as error:
        return str(error)
    bits = imagehash.phash(image, hash_size=HASH_SIDE).hash.ravel()
    small = image.resize(THUMBNAIL[::-1], Image.Resampling.BOX)
    size = image.height, image.width
    return size, digest, bits, np.asarray(small).ravel(), structure(image)
