"""Repairs so that a folder or file that cannot be written is named, with what to do."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Callable, Iterator

import fastreid.engine.defaults as _defaults
import fastreid.utils.events as _events
from fastreid.utils import comm

from ..common.errors import UserError
from ..common.text import printable
from .cures import NO_SPACE, output_error
from .importing import logger
from .repair import Patches, repair


@repair(
    upstream="engine/defaults.py:84,107,481 (default_setup, auto_scale_hyperparams) with "
    "utils/file_io.py:301-308 (_mkdirs)",
    symptom="an OUTPUT_DIR that is a file or cannot be written is an error without the key, in a "
    "trainer built without default_setup only after data and model are built; on a full disk "
    "config.yaml is an error without a file",
    versions="all",
)
def _output_folder(patch: Patches) -> None:
    @patch.wrap(_defaults, "default_setup")
    def default_setup_(default_setup, cfg, args):
        with _writable_folder(cfg.OUTPUT_DIR):
            default_setup(cfg, args)

    @patch.wrap(_defaults.DefaultTrainer, "__init__")
    def init_(init, self, cfg):
        with _writable_folder(cfg.OUTPUT_DIR if comm.is_main_process() else ""):
            init(self, cfg)


@contextlib.contextmanager
def _writable_folder(folder: str) -> Iterator[None]:
    """Makes the folder and tries it before the block runs; names it where the block's files fail.

    An empty name stands for no folder.
    """
    if any(0xD800 <= ord(letter) <= 0xDFFF for letter in folder):  # how Python holds such bytes
        raise UserError(f"OUTPUT_DIR {printable(folder)} is no text in UTF-8, which the log cannot "
                        "hold. Set OUTPUT_DIR to another folder.")
    if "\0" in folder:
        raise UserError(f"OUTPUT_DIR {printable(folder)} has a null byte, which no name of a file "
                        "can have. Set OUTPUT_DIR to another folder.")
    try:
        if folder:
            os.makedirs(folder, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(4096))
    except OSError as error:
        raise output_error(f"OUTPUT_DIR {printable(folder)}", error) from error
    try:
        yield
    except OSError as error:
        if not folder or error.errno is None:
            raise
        if error.filename is None and error.errno in NO_SPACE:  # a write, of a file it knows not
            name = "config.yaml or log.txt"
        elif os.path.dirname(os.path.abspath(str(error.filename))) == os.path.abspath(folder):
            name = os.path.basename(str(error.filename))
        else:
            raise
        raise output_error(f"{name} in OUTPUT_DIR {printable(folder)}", error) from error


@repair(
    upstream="utils/events.py:99-122 (JSONWriter), :143-171 (TensorboardXWriter)",
    symptom="figures on a full disk: `No space left on device` without a file; closing the file "
    "fails again, so that hooks behind the writer do not end what they began",
    versions="all",
)
def _unwritable_figures(patch: Patches) -> None:
    for kind in (_events.JSONWriter, _events.TensorboardXWriter):
        patch.set(kind, "write", _naming_write(kind.write))
        patch.set(kind, "close", _naming_close(kind.close))


def _naming_write(original: Callable) -> Callable:
    @functools.wraps(original)
    def write(self):
        if getattr(self, "_failed", False):
            return  # the error that ends the run has been raised
        try:
            original(self)
        except OSError as error:
            self._failed = True
            raise _figures_error(self, error) from error

    return write


def _naming_close(original: Callable) -> Callable:
    @functools.wraps(original)
    def close(self):
        try:
            original(self)
        except OSError as error:
            if not getattr(self, "_failed", False):
                raise _figures_error(self, error) from error
            logger.error("%s", _figures_error(self, error))

    return close


def _figures_error(writer, error: OSError) -> OSError:
    where = (writer._file_handle.name if isinstance(writer, _events.JSONWriter)
             else writer._writer.log_dir)
    return output_error(printable(where), error, "; go on with --resume")
