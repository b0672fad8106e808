"""One run at a time in a folder, by a lock that the system takes back when its process ends."""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from pathlib import Path
from typing import TextIO

try:
    import fcntl
except ImportError:  # not POSIX: nothing is locked there
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("fastreid.caureid")

NAME = ".run_lock"
_held: dict[str, tuple[int, TextIO]] = {}  # path: the process that locked it, its file


def hold(folder: str | os.PathLike[str]) -> None:
    """Locks a folder for this process, until :func:`release` or its end, of whatever kind.

    A record lock (``fcntl.lockf``): workers that are forked do not inherit it, so that those which
    outlive a killed run for a moment do not hold it. Holding twice is holding once. Where the file
    system has no locks, a warning says so.

    Args:
        folder: an existing one. The file ``.run_lock`` stays in it and says who was there last.

    Raises:
        BlockingIOError: another process holds it; names host, process and since when.
        OSError: the file cannot be written.
    """
    path = os.path.realpath(Path(folder, NAME))
    if fcntl is None or _is_held(path):
        return
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  (closing it would unlock it)
    try:
        _lock(file, folder)
    except BaseException:
        file.close()
        raise
    _held[path] = os.getpid(), file


def release(folder: str | os.PathLike[str]) -> None:
    """Gives back what :func:`hold` took; nothing happens where this process holds nothing."""
    path = os.path.realpath(Path(folder, NAME))
    if _is_held(path):
        _held.pop(path)[1].close()


def _is_held(path: str) -> bool:
    process, file = _held.get(path, (0, None))
    # a forked process knows of its parent's lock and has none; a removed file locks nobody out
    return (file is not None and process == os.getpid()
            and os.fstat(file.fileno()).st_nlink > 0)


def _lock(file: TextIO, folder: str | os.PathLike[str]) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            logger.warning("OUTPUT_DIR %s cannot be locked (%s): take care that no other run "
                           "writes there.", folder, error.strerror or error)
            return
        file.seek(0)
        holder = file.read(200).strip() or "it does not say which"
        raise BlockingIOError(
            f"Another run is at work in OUTPUT_DIR {folder} ({holder}): wait until it ends, stop "
            "it, or set OUTPUT_DIR to another folder.") from None
    file.truncate(0)
    file.write(f"host {socket.gethostname()}, process {os.getpid()}, since "
               f"{time.strftime('%Y-%m-%d %H:%M:%S %z')}\n")
    file.flush()
