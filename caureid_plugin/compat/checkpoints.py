"""Repairs so that a checkpoint is whole, finite and safe to load."""

from __future__ import annotations

import collections
import collections.abc
import contextlib
import errno
import functools
import os
from pathlib import Path

import fastreid.utils.checkpoint as _checkpoint
import torch

from ..common import run_lock
from ..common.errors import NotFinite, UserError
from ..common.files import remove_leftovers, write_atomically
from ..common.safe_load import CodeInFile, DamagedFile, find_non_finite, load_tensors, plain_values
from .cures import cure_in
from .importing import logger
from .repair import Patches, repair
from .run_config_file import RUN_CONFIG, new_configs, write_run_config
from .tag import fault_of_tag, last_good, other_checkpoint, remedy_for, tagged, unreadable


@repair(
    upstream="utils/checkpoint.py:93-95 (Checkpointer.save), :200-202 (tag_last_checkpoint)",
    symptom="a run killed while it saves leaves a broken checkpoint or a broken `last_checkpoint`, "
    "also over the good one of that name; `last_checkpoint` names model_best for a moment; a full "
    "disk is a RuntimeError about positions in a file",
    versions="all",
)
def _whole_checkpoints(patch: Patches) -> None:
    @functools.wraps(_checkpoint.Checkpointer.save)
    def save(self, name, **extra):
        if not self.save_dir or not self.save_to_disk:
            return
        parts = {key: part.state_dict() for key, part in self.checkpointables.items()}
        data = {"model": self.model.state_dict(), **plain_values({**parts, **extra})}
        plain_values(data["model"], "model")  # checked only: it carries the versions of its modules
        _write_checkpoint(self, f"{name}.pth", data)

    @functools.wraps(_checkpoint.Checkpointer.tag_last_checkpoint)
    def tag_last_checkpoint(self, last_filename_basename):
        if last_filename_basename != "model_best.pth":
            write_atomically(Path(self.save_dir, "last_checkpoint"), last_filename_basename)

    @patch.wrap(_checkpoint.Checkpointer, "resume_or_load")
    def resume_or_load_(resume_or_load, self, path, *, resume=True):
        if self.save_to_disk and os.path.isdir(self.save_dir):
            remove_leftovers(self.save_dir)
        return resume_or_load(self, path, resume=resume)

    patch.set(_checkpoint.Checkpointer, "save", save)
    patch.set(_checkpoint.Checkpointer, "tag_last_checkpoint", tag_last_checkpoint)


def _write_checkpoint(checkpointer, filename: str, data: dict) -> None:
    path = Path(checkpointer.save_dir, filename)
    if path.name != filename:
        raise UserError(f"{filename!r} is no file name: a checkpoint is saved in OUTPUT_DIR.")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):  # said below
        run_lock.hold_again(checkpointer.save_dir)
    checkpointer.logger.info("Saving checkpoint to %s", path)
    waiting = new_configs.get(os.path.abspath(path.with_name(RUN_CONFIG)))
    if waiting is not None:  # of a script with a loop of its own
        write_run_config(checkpointer.save_dir, waiting)
    try:
        remove_leftovers(checkpointer.save_dir)
        write_atomically(path, functools.partial(torch.save, data))
        checkpointer.tag_last_checkpoint(filename)
    except OSError as error:
        raise OSError(
            error.errno, f"The checkpoint {path} could not be saved: {error.strerror or error}. "
            f"{last_good(checkpointer)} {cure_in(checkpointer.save_dir, error)}, then go on with "
            "--resume.") from error


@repair(
    upstream="utils/checkpoint.py:83-87 (Checkpointer.save)",
    symptom="a run whose weights have become NaN goes on saving them, over the last good "
    "checkpoint as well",
    versions="all",
)
def _finite_checkpoints(patch: Patches) -> None:
    @patch.wrap(_checkpoint.Checkpointer, "save")
    def save_(save, self, name, **extra):
        if self.save_dir and self.save_to_disk:
            parts = {key: part.state_dict() for key, part in self.checkpointables.items()}
            wrong = find_non_finite({"model": self.model.state_dict(), **parts, **extra})
            if wrong:
                raise NotFinite(
                    f"{name}.pth is not saved: {wrong} holds NaN or infinity. {last_good(self)} "
                    "Lower SOLVER.BASE_LR or set SOLVER.CLIP_GRADIENTS.ENABLED True, then go on "
                    "with --resume.")
        save(self, name, **extra)


@repair(
    upstream="utils/checkpoint.py:146-159 (get_checkpoint_file), :187-191 (resume_or_load)",
    symptom="a `last_checkpoint` that is empty or names a missing file is an error about something "
    "else, and one may name a file anywhere",
    versions="all",
)
def _last_checkpoint(patch: Patches) -> None:
    @functools.wraps(_checkpoint.Checkpointer.get_checkpoint_file)
    def get_checkpoint_file(self):
        name = tagged(self)
        if name is None:
            return ""
        fault = fault_of_tag(name, self.save_dir)
        if fault:
            raise UserError(f"{Path(self.save_dir, 'last_checkpoint')} {fault}. "
                            f"{other_checkpoint(self.save_dir)}")
        return os.path.join(self.save_dir, name)

    @patch.wrap(_checkpoint.Checkpointer, "resume_or_load")
    def resume_or_load_(resume_or_load, self, path, *, resume=True):
        if resume and tagged(self) is None and any(Path(self.save_dir).glob("*.pth")):
            logger.warning("There is no last_checkpoint to resume from, so that the run begins "
                           "anew. %s", other_checkpoint(self.save_dir))
        return resume_or_load(self, path, resume=resume)

    patch.set(_checkpoint.Checkpointer, "get_checkpoint_file", get_checkpoint_file)


@repair(
    upstream="utils/checkpoint.py:216 (Checkpointer._load_file), :118-120 (load)",
    symptom="before torch 2.6 a checkpoint or MODEL.WEIGHTS runs the code that it holds; a damaged "
    "one is an error that does not name the file, and changed bytes in it are not noticed; a "
    "missing one is an AssertionError",
    versions="all",
)
def _safe_checkpoints(patch: Patches) -> None:
    @functools.wraps(_checkpoint.Checkpointer._load_file)
    def load_file(self, f):
        try:
            return load_tensors(f)
        except (DamagedFile, CodeInFile) as error:
            raise type(error)(f"{error} {remedy_for(self, f)}") from error
        except OSError as error:
            raise unreadable(error, f, remedy_for(self, f)) from error

    @patch.wrap(_checkpoint.Checkpointer, "load")
    def load_(load, self, path, checkpointables=None):
        if path and not os.path.isfile(self.path_manager.get_local_path(path)):
            raise FileNotFoundError(
                errno.ENOENT, "There is no such checkpoint; check MODEL.WEIGHTS", path)
        try:
            return load(self, path, checkpointables)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
            if isinstance(error, (FloatingPointError, torch.cuda.OutOfMemoryError)):
                raise  # of a NaN in the memory bank, which says it all; no fault of the file
            parts = ", ".join(["model", *(
                self.checkpointables if checkpointables is None else checkpointables)])
            raise UserError(
                f"{path} is no checkpoint of this run: a part of it ({parts}) is not as a run "
                f"saves it ({type(error).__name__}: {str(error)[:300]}). {remedy_for(self, path)}"
                ) from error

    patch.set(_checkpoint.Checkpointer, "_load_file", load_file)
    _allow_counters()


def _allow_counters() -> None:
    """Lets weights_only read a collections.Counter, a dict of counts.

    The state of MultiStepLR holds one, which some versions of torch refuse (2.2, for example).
    """
    if hasattr(torch.serialization, "add_safe_globals"):
        torch.serialization.add_safe_globals([collections.Counter])
        return
    from torch import _weights_only_unpickler  # torch < 2.4 has no public list

    allowed = _weights_only_unpickler._get_allowed_globals()  # one cached dict for all calls
    allowed["collections.Counter"] = collections.Counter
