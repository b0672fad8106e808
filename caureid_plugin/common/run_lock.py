"""One run at a time in a folder, by a lock that the system takes back when its process ends."""

from __future__ import annotations

import contextlib
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
_held: dict[str, tuple[TextIO, contextlib.ExitStack]] = {}  # path: its file, what unlocks it


def hold(folder: str | os.PathLike[str]) -> None:
    """Locks a folder for this process, until :func:`release` or its end, of whatever kind.

    By ``flock``, which lasts when this process opens the file again and closes it. Both the file
    ``.run_lock`` and the folder are locked: network folders have no locks of folders, and a file
    that somebody removes locks nobody out. Workers that are forked close both, so that those which
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
    release(folder)  # it was emptied, or is another folder of this name
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(open(path, "a+", encoding="utf-8"))
        place = os.open(os.path.dirname(path), os.O_RDONLY)
        opened.callback(os.close, place)
        _lock(file, place, folder)
        _held[path] = file, opened.pop_all()


def hold_again(folder: str | os.PathLike[str]) -> None:
    """Looks whether a folder that :func:`hold` has locked is still the one; else locks it anew.

    Raises:
        BlockingIOError: another process holds it by now.
        OSError: the file cannot be written.
    """
    if os.path.realpath(Path(folder, NAME)) in _held:
        hold(folder)


def release(folder: str | os.PathLike[str]) -> None:
    """Gives back what :func:`hold` took; nothing happens where this process holds nothing."""
    _, locks = _held.pop(os.path.realpath(Path(folder, NAME)), (None, None))
    if locks is not None:
        locks.close()


def _is_held(path: str) -> bool:
    if path not in _held:
        return False
    with contextlib.suppress(FileNotFoundError):  # a removed file locks nobody out
        return os.path.samestat(os.stat(path), os.fstat(_held[path][0].fileno()))
    return False


def _forget() -> None:
    """In a process that was forked: it has none of its parent's locks, which last."""
    for _, locks in _held.values():
        locks.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _lock(file: TextIO, place: int, folder: str | os.PathLike[str]) -> None:
    problems = []
    for descriptor in (place, file.fileno()):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                holder = file.read(200).strip() or "it does not say which"
                raise BlockingIOError(
                    f"Another run is at work in OUTPUT_DIR {folder} ({holder}): wait until it "
                    "ends, stop it, or set OUTPUT_DIR to another folder.") from None
            problems.append(error.strerror or error)
    if len(problems) == 2:
        logger.warning("OUTPUT_DIR %s cannot be locked (%s): take care that no other run "
                       "writes there.", folder, problems[1])
        return
    file.truncate(0)
    file.write(f"host {socket.gethostname()}, process {os.getpid()}, since "
               f"{time.strftime('%Y-%m-%d %H:%M:%S %z')}\n")
    file.flush()
