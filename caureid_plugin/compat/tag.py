"""Reads `last_checkpoint`, the file that names a run's newest checkpoint, and says its faults."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from ..common.errors import UserError
from ..common.safe_load import newest_that_loads


def tagged(checkpointer) -> str | None:
    """What last_checkpoint says, whatever it is; None if there is none."""
    if not checkpointer.save_dir or not checkpointer.has_checkpoint():
        return None
    tag = Path(checkpointer.save_dir, "last_checkpoint")
    if not tag.is_file():
        raise UserError(f"{tag} is a folder or a FIFO, not a regular file. Remove it. "
                        f"{other_checkpoint(checkpointer.save_dir)}")
    try:
        return tag.read_text(errors="replace").strip()
    except OSError as error:
        raise unreadable(error, tag, other_checkpoint(checkpointer.save_dir)) from error


def unreadable(error: OSError, path: str | os.PathLike[str], remedy: str) -> OSError:
    """An error of the same kind that names the file and what to do."""
    if isinstance(error, PermissionError):
        remedy = f"Let this user read it (chmod u+r). {remedy}"
    return OSError(error.errno, f"{path} could not be read: {error.strerror or error}. {remedy}")


def last_good(checkpointer) -> str:
    """A sentence that names the checkpoint which --resume would take."""
    last = tagged(checkpointer)
    if not os.path.isdir(checkpointer.save_dir):
        return "Earlier checkpoints went with their folder."
    if not last:
        return "There is no earlier checkpoint."
    return f"{Path(checkpointer.save_dir, last)} is still good."


def fault_of_tag(name: str, folder: str) -> str | None:
    if not name:
        return "is empty"
    if os.path.basename(name) != name:
        return f"names {name[:99]!r}, which is no file name"
    if not os.path.isfile(os.path.join(folder, name)):
        return f"names {name[:99]!r}, which is missing"
    return None


def other_checkpoint(folder: str, broken: str = "") -> str:
    """How to go on from the newest checkpoint in a folder that loads."""
    tag = os.path.join(folder, "last_checkpoint")
    good = newest_that_loads(p for p in Path(folder).glob("*.pth") if p.name != broken)
    if good is None:
        return f"No other checkpoint in {folder} loads: remove {tag} to begin anew."
    return (f"The newest other checkpoint that loads is {good.name}: after `echo "
            f"{shlex.quote(good.name)} > {shlex.quote(tag)}`, --resume goes on from it.")


def remedy_for(checkpointer, path: str) -> str:
    folder = checkpointer.save_dir
    if folder and Path(path).resolve().parent == Path(folder).resolve():
        return other_checkpoint(folder, os.path.basename(path))
    return "Check MODEL.WEIGHTS: copy or download the file again, or take another."
