"""Pictures of the search page: crops of the index, and its own files."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from ..retrieval.decoding import UPLOADS, decode, read_bytes

CROPS = (*UPLOADS, "GIF", "PPM", "TIFF")  # of the index, whose images the toolbox has read
THUMBNAIL = 256, 384  # width and height, at most


def read_crop(path: str, size: int = -1, mtime: int = -1) -> Image.Image:
    """An image that the index names, if the file is still the one that was indexed.

    Args, errors: of :func:`read_bytes`. And the file may be no image.
    """
    return decode(read_bytes(path, size, mtime), CROPS)


def thumbnail(image: Image.Image) -> bytes:
    """A small JPEG of only the pixels, without what else the file tells."""
    small = image.copy()
    small.thumbnail(THUMBNAIL)
    small.info = {}  # a comment would be written
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def asset(name: str) -> bytes:
    """A file of the page, beside this one."""
    return Path(__file__).with_name(name).read_bytes()
