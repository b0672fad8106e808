"""Repairs so that every image is read upright in 8 bits, or named in the error."""

from __future__ import annotations

import errno
import os
import stat
import types

import fastreid.data.data_utils as _data_utils
import fastreid.data.transforms.build as _transforms_build
from PIL import Image, UnidentifiedImageError

from ..common.errors import UserError
from ..common.images import decode_image
from ..common.text import printable
from .repair import Patches, raises, repair


@repair(
    upstream="data/data_utils.py:17-59 (read_image)",
    symptom="images that are not 8-bit RGB or grey: palette indexes are taken as grey values, CMYK "
    "and transparency are channels too many, 1-bit and 16-bit images are a TypeError; a damaged "
    "PNG is read a second time after its error, as if it were whole; damaged EXIF data go unsaid; "
    "an image of 1 x 25,000,000 pixels, a file of 48 KB, takes half a minute",
    versions="all",
)
def _image_modes(patch: Patches) -> None:
    def read_image(file_name: str, format: str | None = None) -> Image.Image:
        with _data_utils.PathManager.open(file_name, "rb") as file:
            return decode_image(file, file_name, format)

    patch.everywhere(_data_utils.read_image, read_image)


# what a user can do about an image, by the error's number
_REMEDIES = {
    errno.EACCES: "Let this user read it: chmod u+r the file, u+x the folders above it",
    errno.EPERM: "Let this user read it: chmod u+r the file, u+x the folders above it",
    errno.ENOENT: "It was there when the folder was listed: put it back (or what the symbolic link "
                  "points to), or start again without it",
    errno.ELOOP: "Replace or remove the symbolic link, which leads back to itself",
    errno.ENAMETOOLONG: "Shorten its name",
    errno.EMFILE: "Raise the limit of open files (ulimit -n) or lower DATALOADER.NUM_WORKERS",
    errno.ENFILE: "Raise the system's limit of open files or lower DATALOADER.NUM_WORKERS",
    errno.EIO: "The disk or the network failed: check it, or replace the file",
}
_FILE_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket",
               stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


@repair(
    upstream="data/data_utils.py:17-59 (read_image)",
    symptom="a damaged image stops training with a message that does not name the file; a FIFO "
    "among the images hangs",
    versions="all",
)
def _unreadable_image(patch: Patches) -> None:
    @patch.wrap(_data_utils, "read_image")
    def read_image(original, file_name, format=None):
        try:
            _check_regular_file(file_name)
            return original(file_name, format)
        except Exception as error:  # broken data make Pillow's decoders raise nearly anything
            reason, remedy = _reason_and_remedy(error)
            raise UserError(
                f"Cannot read the image {printable(file_name)}: {reason}. {remedy}.") from error


def _check_regular_file(file_name: str) -> None:
    """Refuses what would wait for ever when it is opened, and an empty file."""
    try:
        found = os.stat(file_name)
    except OSError:
        return  # opening it says why; or the path manager knows the address
    if not stat.S_ISREG(found.st_mode):
        kind = _FILE_KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise UserError(f"it is {kind}, not a regular file")
    if found.st_size == 0:
        raise UserError("it is empty (0 bytes)")


def _reason_and_remedy(error: Exception) -> tuple[str, str]:
    remedy = "Replace or remove the file"
    if isinstance(error, UnidentifiedImageError):
        return "its content is of no image format that Pillow knows", remedy
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror, _REMEDIES.get(error.errno, remedy)
    if isinstance(error, (Image.DecompressionBombError, MemoryError)):
        return f"it is too large ({error or 'not enough memory'})", (
            "Scale it down, or replace or remove the file")
    if isinstance(error, (OSError, SyntaxError, ValueError)):
        return str(error).rstrip("."), remedy
    return f"{type(error).__name__}: {error}", remedy


def _affine_arguments_renamed() -> bool:
    return raises(
        lambda: _transforms_build.T.RandomAffine(degrees=10, resample=False, fillcolor=0),
        TypeError)


@repair(
    upstream="data/transforms/build.py:81",
    symptom="INPUT.AFFINE.ENABLED raises TypeError: torchvision renamed the arguments",
    versions="torchvision >= 0.15",
    broken=_affine_arguments_renamed,
)
def _random_affine(patch: Patches) -> None:
    current = _transforms_build.T

    def random_affine(*, resample, fillcolor, **options):
        return current.RandomAffine(**options, fill=fillcolor)  # resample False is the default

    patch.set(_transforms_build, "T",
              types.SimpleNamespace(**{**vars(current), "RandomAffine": random_affine}))
