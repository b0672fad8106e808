"""Errors about output files, with the cure that each kind of error has."""

from __future__ import annotations

import errno

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# what ends an error in writing; {place}: the folder, or "there" behind its name
_CURES = {
    **dict.fromkeys(NO_SPACE, "Free space {place}"),
    errno.EACCES: "Let this user write {place} (chmod u+rwx)",
    errno.EPERM: "It may be immutable or open for appending only, which `lsattr -d` shows: end "
    "that (chattr -i -a)",
    errno.ENOENT: "It was removed or renamed while it was in use, or a link on the way leads "
    "nowhere: put it back",
    errno.EROFS: "Its file system is mounted read-only, perhaps after an error of the disk, which "
    "`dmesg` shows: mount it for writing",
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN),
                    "The disk or the network failed: check it"),
    errno.ENAMETOOLONG: "Shorten its name",
}


def output_error(what: str, error: OSError, last_advice: str = "") -> OSError:
    """The same kind of error, with the file or folder in words and what to do about it."""
    remedy = "Set OUTPUT_DIR to another folder"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        remedy = "It, or something above it, is a file or a broken link: set OUTPUT_DIR to a folder"
    elif error.errno == errno.EISDIR:
        remedy = "Remove that folder, or set OUTPUT_DIR to another one"
    elif error.errno in _CURES:
        remedy = f"{_CURES[error.errno].format(place='there')}, or set OUTPUT_DIR to another folder"
    return OSError(error.errno, f"{what} cannot be written: {error.strerror or error}. "
                   f"{remedy}{last_advice}.")


def cure_in(folder: str, error: OSError) -> str:
    cure = _CURES.get(error.errno, "Make it possible to write {place}")
    return cure.format(place=f"in {folder} (OUTPUT_DIR)")
