"""Decodes images to upright 8-bit RGB, within limits of size."""

from __future__ import annotations

import re
import struct
import warnings
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from .errors import UserError
from .text import printable

# of names that are taken for images, in lower case
IMAGE_SUFFIXES = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff",
                  ".webp")
# Of images that are decoded: 16 K video is 15,360 wide, Pillow warns beyond so many pixels, and a
# crop is nowhere near the ratio. Shorter ones cost nothing, whatever their ratio.
MOST_SIDE, MOST_PIXELS = 16_384, 89_478_485
MOST_RATIO, SHORT_SIDE = 100, 1024
# Of a JPEG: a progressive one has about ten. A scan may have 40 bytes, and each is a pass over all
# pixels.
MOST_SCANS = 100
# Its beginning, as decoders ask for it: marker, length, components. By chance other bytes, such as
# those behind the image, are hardly ever so.
_SCAN = re.compile(rb"\xff\xda\x00(?:\x06\x00|\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")


def check_dimensions(width: int, height: int, most_pixels: int = MOST_PIXELS) -> None:
    """Refuses images that would take long to decode and to shrink, whatever their files' size.

    Raises:
        PIL.Image.DecompressionBombError: more than MOST_SIDE or ``most_pixels``, or longer
            than SHORT_SIDE and more than MOST_RATIO times as long as wide. Names size and limit.
    """
    longer, shorter = max(width, height), max(min(width, height), 1)
    if longer > MOST_SIDE:
        limit = f"a side may have {MOST_SIDE}"
    elif longer > SHORT_SIDE and longer > MOST_RATIO * shorter:
        limit = f"one longer than {SHORT_SIDE} may be {MOST_RATIO} times as long as wide"
    elif width * height > most_pixels:
        limit = f"an image may have {most_pixels}"
    else:
        return
    raise Image.DecompressionBombError(f"{width} x {height} pixels; {limit}")


def decode_image(file: BinaryIO, name: str, format: str | None = None, *,
                 formats: tuple[str, ...] | None = None, most_pixels: int = MOST_PIXELS
                 ) -> Image.Image:
    """Decodes an image as :func:`upright_rgb` gives it; PostScript is refused.

    Args:
        file, name, format: see there.
        formats: Pillow's names of those that are taken; None: of all.
        most_pixels: more are not decoded.

    Raises:
        PIL.Image.DecompressionBombError: of these, or a JPEG of too many scans. Others: see there.
    """
    image: Image.Image = Image.open(file, formats=formats)
    if image.format == "EPS":
        raise UserError("it is PostScript, a program, which is not run")
    check_dimensions(*image.size, most_pixels)
    if image.format in ("JPEG", "MPO"):
        _check_scans(file)
    return upright_rgb(image, name, format)


def _check_scans(file: BinaryIO) -> None:
    place = file.tell()
    file.seek(0)
    scans = sum(1 for _ in _SCAN.finditer(file.read()))
    file.seek(place)
    if scans > MOST_SCANS:
        raise Image.DecompressionBombError(f"{scans} scans; a JPEG may have {MOST_SCANS}")


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
    image = _in_8_bit(_upright(image, name), image.format)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns about a direct way
    image = image.convert("RGB" if format in (None, "BGR") else format)
    if format == "BGR":
        image = Image.fromarray(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]))
    return image


def _upright(image: Image.Image, name: str) -> Image.Image:
    try:
        if "exif" in image.info:
            Image.Exif().load(image.info["exif"])  # Pillow says nothing if a JPEG's are damaged
        return ImageOps.exif_transpose(image)
    except (SyntaxError, struct.error, ValueError, TypeError, KeyError, OSError) as error:
        warnings.warn(f"The EXIF data of {printable(name)} are damaged ({error}): the image is "
                      "taken as it is stored, which may be turned.", stacklevel=2)
        return image


def _in_8_bit(image: Image.Image, format: str | None) -> Image.Image:
    """The upper byte of 16-bit grey values, which PIL would clip at 255; others as they are."""
    wide = image.mode.startswith("I;16")
    # how PIL opens 16-bit PGM, and with older versions 16-bit PNG
    if wide or (image.mode == "I" and format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UserError("its pixels are 32-bit numbers, whose range nothing tells. Convert it to "
                        "8 bits")
    return image
