"""Files that are there whole or not at all: written aside, then renamed."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

_PART = re.compile(r"\..+\.(\d+)\.part")


class _Watched:
    """A binary file that remembers why a write failed.

    ``torch.save`` reports a full disk as a RuntimeError about positions in the file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def write_atomically(path: str | os.PathLike[str],
                     content: bytes | str | Callable[[Any], object]) -> None:
    """Writes a file such that at every moment its name leads to the old content or the new.

    The content goes to ``.NAME.PID.part`` in the same folder, to the disk, and then by a rename
    under its name. A process that is killed leaves at most that part, which
    :func:`remove_leftovers` finds; an error removes it.

    Args:
        path: the file; its folder exists.
        content: bytes; text, for UTF-8; or a function that writes, called with an object that has
            ``write(bytes)`` and ``flush()``.

    Raises:
        OSError: the file cannot be written (a full disk, for example); the old one is as before.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            watched = _Watched(file)
            try:
                watched.write(data) if isinstance(data, bytes) else data(watched)
            except Exception:
                if watched.error is not None:
                    raise watched.error from None
                raise
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power failure, where the system can do that for a folder."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def remove_leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """Removes what killed processes left of :func:`write_atomically`; gives the paths.

    Parts of a process that is alive are kept, unless it is this one, which is writing none.
    """
    removed = []
    for path in sorted(Path(folder).glob(".*.part")):
        part = _PART.fullmatch(path.name)
        if part and (int(part[1]) == os.getpid() or not _is_alive(int(part[1]))):
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def _is_alive(pid: int) -> bool:
    if os.name != "posix":  # where signal 0 is no question
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # someone else's; no number that a process can have
        return pid < 2 ** 31
    return True
