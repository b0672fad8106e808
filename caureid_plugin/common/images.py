"""Decodes images to upright 8-bit RGB, within limits of size."""

from __future__ import annotations

import struct
import warnings
from typing import BinaryIO

import numpy as np
from PIL import Image

from .text import shown

# of names that are taken for images, in lower case
IMAGE_SUFFIXES = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff",
                  ".webp")
# EXIF orientation -> what turns the image upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112  # the EXIF tag
# Of images that are decoded: 16 K video is 15,360 wide, Pillow warns beyond so many pixels, and a
# crop is nowhere near the ratio. Shorter ones cost nothing, whatever their ratio.
MOST_SIDE, MOST_PIXELS = 16_384, 89_478_485
MOST_RATIO, SHORT_SIDE = 100, 1024


def check_dimensions(width: int, height: int) -> None:
    """Refuses images that would take long to decode and to shrink, whatever their files' size.

    Raises:
        PIL.Image.DecompressionBombError: more than MOST_SIDE or MOST_PIXELS, or longer than
            SHORT_SIDE and more than MOST_RATIO times as long as wide. Names size and limit.
    """
    longer, shorter = max(width, height), max(min(width, height), 1)
    if longer > MOST_SIDE:
        limit = f"a side may have {MOST_SIDE}"
    elif longer > SHORT_SIDE and longer > MOST_RATIO * shorter:
        limit = f"one longer than {SHORT_SIDE} may be {MOST_RATIO} times as long as wide"
    elif width * height > MOST_PIXELS:
        limit = f"an image may have {MOST_PIXELS}"
    else:
        return
    raise Image.DecompressionBombError(f"{width} x {height} pixels; {limit}")


def decode_image(file: BinaryIO, name: str, format: str | None = None) -> Image.Image:
    """Decodes an image as :func:`upright_rgb` gives it; PostScript is refused."""
    image: Image.Image = Image.open(file)
    if image.format == "EPS":
        raise ValueError("it is PostScript, a program, which is not run")
    return upright_rgb(image, name, format)


def upright_rgb(image: Image.Image, name: str, format: str | None = None) -> Image.Image:
    """An image as 8-bit RGB (or the mode that ``format`` names, or "BGR"), upright; a copy.

    Transparency is dropped and the colours below it are kept, as PIL's ``convert`` does; 16-bit
    values keep their upper byte; of several frames the first is read. Where the EXIF data are
    damaged a warning says so, with the image's ``name``.

    Raises:
        PIL.Image.DecompressionBombError: see :func:`check_dimensions`.
        ValueError: pixels that are 32-bit numbers. Damaged images raise whatever Pillow raises.
    """
    check_dimensions(*image.size)
    image.load()
    turn = _UPRIGHT.get(_orientation(image, name) or 1)
    image = _in_8_bit(image)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns about a direct way
    image = image.convert("RGB" if format in (None, "BGR") else format)
    if turn is not None:
        image = image.transpose(turn)
    if format == "BGR":
        image = Image.fromarray(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]))
    return image


def _orientation(image: Image.Image, name: str) -> int:
    try:
        value = image.getexif().get(_ORIENTATION)
        if value is None and "exif" in image.info:
            Image.Exif().load(image.info["exif"])  # Pillow says nothing if a JPEG's are damaged
    except (SyntaxError, struct.error, ValueError, TypeError, KeyError, OSError) as error:
        warnings.warn(f"The EXIF data of {shown(name)} are damaged ({error}): the image is "
                      "taken as it is stored, which may be turned.", stacklevel=2)
        return 0
    return value if isinstance(value, int) else 0


def _in_8_bit(image: Image.Image) -> Image.Image:
    """The upper byte of 16-bit grey values, which PIL would clip at 255; others as they are."""
    wide = image.mode.startswith("I;16")
    # how PIL opens 16-bit PGM, and with older versions 16-bit PNG
    if wide or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers, whose range nothing tells. Convert it to "
                         "8 bits")
    return image
