"""Images of tools/serve.py: those that come from outside, and the thumbnails that it gives out."""

import io
import os
import stat
import struct
import zlib
from pathlib import Path

import numpy as np
from caureid_plugin.compat import check_dimensions
from PIL import Image, UnidentifiedImageError

# by content: a name or a type that is claimed says nothing
UPLOADS = ("JPEG", "PNG", "WEBP", "BMP")
CROPS = (*UPLOADS, "GIF", "PPM", "TIFF")  # of the index, whose images the toolbox has read
MOST_PIXELS = 25_000_000
MOST_BYTES = 64 * 2 ** 20  # of a file of the index
THUMBNAIL = 256, 384  # width and height, at most
# EXIF orientation -> what turns the image upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}
ORIENTATION = 0x0112  # the EXIF tag
# what Pillow raises of damaged files
DAMAGED = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError,
           OverflowError, MemoryError, NotImplementedError, struct.error, zlib.error)
BOMBS = Image.DecompressionBombError, Image.DecompressionBombWarning


class NoImage(ValueError):
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
        NoImage: it is none, damaged, or of another format.
        TooManyPixels: of more than 25 million pixels, or far too long
            (:func:`caureid_plugin.compat.check_dimensions`).
    """
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
        if image.width * image.height > MOST_PIXELS:
            raise _too_many()
        _check_length(image)
        image.load()
        return _upright_rgb(image)
    except NoImage:
        raise
    except UnidentifiedImageError as error:
        raise NoImage(f"This is no {', '.join(formats[:-1])} or {formats[-1]} image.") from error
    except BOMBS as error:
        raise _too_many() from error
    except DAMAGED as error:
        raise NoImage("This image is damaged: it cannot be decoded.") from error


def _too_many() -> TooManyPixels:
    return TooManyPixels(f"This image has more than {MOST_PIXELS // 10 ** 6} million pixels: cut "
                         "out the person, or make it smaller.")


def _check_length(image: Image.Image) -> None:
    try:
        check_dimensions(image.width, image.height)
    except Image.DecompressionBombError as error:
        raise TooManyPixels(f"This image is too long: {error}. Cut out the person, or make it "
                            "smaller.") from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    try:
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION))
    except DAMAGED:  # of the EXIF data: the image is taken as it is stored
        turn = None
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise NoImage("The pixels of this image are 32-bit numbers: convert it to 8 bits.")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about a direct way
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def read_crop(path: str, size: int = -1, mtime: int = -1) -> Image.Image:
    """An image that the index names, if the file is still the one that was indexed.

    Args, errors: of :func:`read_bytes`. And the file may be no image.
    """
    return decode(read_bytes(path, size, mtime), CROPS)


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
                          "index up to date with tools/index.py, then start this page again.")
        try:
            return file.read(MOST_BYTES + 1)
        except OSError as error:
            raise NoImage("The file of this crop cannot be read.") from error


def thumbnail(image: Image.Image) -> bytes:
    """A small JPEG of the pixels alone, without what else the file tells."""
    small = image.copy()
    small.thumbnail(THUMBNAIL)
    small.info = {}  # a comment would be written
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def asset(name: str) -> bytes:
    """A file of the page, beside this one."""
    return Path(__file__).with_name(name).read_bytes()
