"""Images that come from outside, and files of an index: read and decoded within limits."""

from __future__ import annotations

import io
import os
import stat
import struct
import zlib

from PIL import Image, UnidentifiedImageError

from ..common.errors import UserError
from ..common.images import MOST_RATIO, MOST_SCANS, MOST_SIDE, decode_image

# by content: a name or a type that is claimed says nothing
UPLOADS = ("JPEG", "PNG", "WEBP", "BMP")
MOST_PIXELS = 25_000_000
MOST_BYTES = 64 * 2 ** 20  # of a file of the index
# what Pillow raises of damaged files
DAMAGED = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError,
           OverflowError, MemoryError, NotImplementedError, struct.error, zlib.error)
BOMBS = Image.DecompressionBombError, Image.DecompressionBombWarning


class NoImage(UserError):
    """Why bytes or a file are no image to show or to search with; names no path."""


class TooManyPixels(NoImage):
    """An image that is too large to decode."""


def decode(data: bytes, formats: tuple[str, ...] = UPLOADS) -> Image.Image:
    """An image as 8-bit RGB, upright, as the toolbox's ``read_image`` reads its file.

    Its size is looked at before its pixels are decoded.

    Args:
        data: content of the file.
        formats: Pillow's names of those that are taken.

    Raises:
        NoImage: it is none, damaged, of another format, or of 32-bit numbers.
        TooManyPixels: of more than 25 million pixels, or far too long
            (:func:`~caureid_plugin.common.images.check_dimensions`).
    """
    try:
        return decode_image(io.BytesIO(data), "a query", formats=formats, most_pixels=MOST_PIXELS)
    except UnidentifiedImageError as error:
        raise NoImage(f"This is no {', '.join(formats[:-1])} or {formats[-1]} image.") from error
    except BOMBS as error:
        raise TooManyPixels(
            f"This image is too large: it has more than {MOST_PIXELS // 10 ** 6} million pixels, "
            f"{MOST_SIDE} on one side, {MOST_RATIO} times the one side on the other, or over "
            f"{MOST_SCANS} scans. Cut out the person, or make it smaller.") from error
    except DAMAGED as error:
        raise NoImage("This image is damaged: it cannot be decoded.") from error


def read_bytes(path: str, size: int = -1, mtime: int = -1) -> bytes:
    """The content of a file that the index names.

    Args:
        path: the file.
        size: bytes that it had, -1 if that is not known.
        mtime: time of its last change in ns, -1 if that is not known.

    Raises:
        NoImage: it is gone, was changed, is no regular file or too large for an image.
    """
    try:
        # a FIFO in its place is opened without waiting for who writes into it
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
                             | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise NoImage("The file of this crop is gone, or cannot be read.") from error
    now = os.fstat(descriptor)
    if not stat.S_ISREG(now.st_mode) or now.st_size > MOST_BYTES:
        os.close(descriptor)
        raise NoImage("The file of this crop is no image.")
    with open(descriptor, "rb") as file:
        if size not in (-1, now.st_size) or mtime not in (-1, now.st_mtime_ns):
            raise NoImage("The file of this crop was changed since it was indexed: bring the "
                          "index up to date with caureid index, then start this page again.")
        try:
            return file.read(MOST_BYTES + 1)
        except OSError as error:
            raise NoImage("The file of this crop cannot be read.") from error
