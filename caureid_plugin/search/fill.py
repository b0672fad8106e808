"""``caureid index``: an index that holds what is in a folder."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fastreid.config import get_cfg
from tqdm import tqdm

from ..common.errors import UserError
from ..common.signals import EXIT_INTERRUPTED, EXIT_STOPPED
from ..common.text import printable
from ..config import add_caureid_config
from ..data.camera_folder import SYSTEM_FOLDERS
from ..data.camera_source import CameraSource
from ..data.listing import EmptyFolder, existing_folder, list_images
from ..export.load import load_embedder
from ..retrieval.embedder import Embedder
from ..retrieval.index import Index
from ..retrieval.index_files import MANIFEST, Entry
from ..retrieval.sync import (
    Plan,
    embed_readable,
    forget,
    known_folder,
    list_entries,
    make_plan,
    refuse_overlap,
    with_known_cameras,
)
from ..runs.folder import read_config

SECTION = "CAMERA_FOLDER."
SYSTEM = SECTION + "SYSTEM_FOLDERS"
KEYS = ("CAMERA", "LEVEL", "PATTERN", "CSV", "SYSTEM_FOLDERS")  # how a run read its folder
HINT = " (CAMERA_FOLDER keys say where to read it, see --help)."
STANDARDIZED = "; searches standardise them by camera."
BLOCK = 500  # images that are embedded before the index is written: what an interruption costs
NAMED = 5  # unreadable images that are named


def says_cameras(opts: list[str]) -> bool:
    """Whether keys say where cameras are read from."""
    return any(key != SYSTEM for key in opts[::2])


def how_to_read(run: Path, opts: list[str]) -> tuple[CameraSource | None, bool]:
    """Where cameras are read from, None: nowhere, and whether systems' own folders are read.

    Both as the keys say, or as the run did.

    Raises:
        ValueError, KeyError: a key that is unknown or of no use here, a value that is wrong.
    """
    wrong = [key for key in opts[::2] if key not in {SECTION + name for name in KEYS}]
    if wrong:
        raise UserError(f"{printable(wrong[0])} is no key of this command, which takes "
                        f"{', '.join(SECTION + name for name in KEYS)}.")
    cfg = get_cfg()
    add_caureid_config(cfg)
    own = run_keys(run)
    if own is not None and SECTION + "CAMERA" not in opts[::2]:
        cfg.merge_from_list(own)
    cfg.merge_from_list(opts)
    node = cfg.CAMERA_FOLDER
    if node.SYSTEM_FOLDERS not in SYSTEM_FOLDERS:
        raise UserError(f"{SYSTEM} {node.SYSTEM_FOLDERS!r} is unknown, known are "
                        f"{SYSTEM_FOLDERS}.")
    source = CameraSource(camera=node.CAMERA, level=node.LEVEL, pattern=node.PATTERN, csv=node.CSV)
    return (source if own is not None or says_cameras(opts) else None,
            node.SYSTEM_FOLDERS == "read")


def run_keys(run: Path) -> list[Any] | None:
    """The keys by which a run read a folder of its own; None: it did not.

    A table (CSV) names the training images and is not used for others.
    """
    if run.suffix == ".pth":  # a checkpoint in a run's folder
        run = run.parent
    if not run.is_dir():
        return None
    cfg = read_config(run)
    node = cfg.CAMERA_FOLDER
    if "CameraFolder" not in cfg.DATASETS.NAMES or node.CAMERA == "csv":
        return None
    return [part for name in KEYS for part in (SECTION + name, node[name])]


def list_paths(folder: str, gone: bool, system_folders: bool) -> list[str]:
    """Images below a folder; none of a folder that is ``gone`` or without any, where it may be.

    Args:
        system_folders: whether systems' own folders below it are read as well.

    Raises:
        FileNotFoundError, ValueError: it does not exist, holds none or cannot be read.
    """
    try:
        found = list_images(existing_folder(folder, "FOLDER"), "FOLDER",
                            system_folders=system_folders)
    except (FileNotFoundError, EmptyFolder):
        if not gone:
            raise
        return []
    if found.system:
        print(f"{found.in_system_folders()} {SYSTEM} read takes them.", flush=True)
    return found.paths


def open_or_create(path: Path, embedder: Embedder) -> Index:
    """The index in a folder; a new one if there is none."""
    return Index.open(path, embedder) if (path / MANIFEST).exists() else Index.create(
        path, embedder)


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt(number)


def run(args: SimpleNamespace) -> int:
    """``caureid index``; gives its exit code."""
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        errors = fill(args)
    except KeyboardInterrupt as stop:
        print(f"Stopped; the same command goes on. {printable(args.index)} holds what was done.",
              file=sys.stderr)
        return EXIT_STOPPED if stop.args else EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    if errors:
        more = [f"... and {len(errors) - NAMED} more"] if len(errors) > NAMED else []
        print(f"caureid index: {len(errors)} images cannot be read and are not in the index; the "
              "others are. Replace or remove them and give the command again:", *errors[:NAMED],
              *more, sep="\n", file=sys.stderr)
    return int(bool(errors))


def fill(args: SimpleNamespace) -> list[str]:
    """Makes an index hold the images of a folder; gives what cannot be read.

    Args:
        args: options of ``caureid index``.

    Raises:
        ValueError, KeyError, OSError, ImportError: the network, the folder or the index cannot be
            used; says why.
    """
    folder = os.path.abspath(os.path.expanduser(args.folder))
    source, system = how_to_read(args.run, args.opts)
    paths = list_paths(folder, args.prune and (args.index / MANIFEST).exists(), system)
    listed = list_entries(folder, paths, source)
    embedder = load_embedder(args.run)
    index = open_or_create(args.index, embedder)
    with index.writing():
        known = known_folder(index, folder)
        entries = [entry._replace(folder=known) for entry in listed]
        if not entries and all(entry.folder != known for entry in index.entries):
            list_paths(folder, False, system)  # raises: the index has none of it, either
        refuse_overlap(index, entries)
        if not says_cameras(args.opts):  # nothing is said of cameras: those that are known stay
            entries = with_known_cameras(index, known, entries)
        if args.standardize_by_camera is not None:
            index.set_standardize_by_camera(args.standardize_by_camera)
        errors = update(args, index, embedder, known, entries)
    counts = index.camera_counts
    print(f"{printable(args.index)}: {len(index)} images of {len(counts) - ('' in counts)} cameras"
          f", embedded by {printable(index.model)}"
          f"{STANDARDIZED if index.standardize_by_camera else '.'}")
    if not errors:
        index.prepare()  # says what a search would refuse
    return errors


def update(args: SimpleNamespace, index: Index, embedder: Embedder, folder: str,
           entries: list[Entry]) -> list[str]:
    """Makes the index hold the images of a folder; gives what cannot be read."""
    plan = make_plan(index, folder, entries)
    without = sum(not entry.camera for entry in entries)
    print(f"{len(entries)} images below {printable(folder)}: {len(plan.embed) - plan.changed} new, "
          f"{plan.changed} changed; the camera of {without} is not known"
          f"{HINT if without and not says_cameras(args.opts) else '.'}", flush=True)
    say_gone(index, plan, args.prune)
    if args.prune and plan.gone:
        index.remove(plan.gone)
        plan = make_plan(index, folder, entries)  # rows are others now
    if plan.cameras:
        index.set_cameras(plan.cameras)
        print(f"The cameras of {len(plan.cameras)} images were read anew.")
    return embed_all(index, embedder, plan.embed, args.batch_size)


def say_gone(index: Index, plan: Plan, prune: bool) -> None:
    """Says how many images are gone, and what becomes of them."""
    if plan.gone:
        what = "is removed from the index" if prune else (
            "stays in the index (--prune removes what is gone)")
        print(f"{len(plan.gone)} images are gone from the folder (first: "
              f"{printable(index.paths[plan.gone[0]])}): each {what}.")


def embed_all(index: Index, embedder: Embedder, entries: list[Entry], batch_size: int
              ) -> list[str]:
    """Embeds images and adds them block by block; gives what cannot be read."""
    errors: list[str] = []
    start = time.monotonic()
    with tqdm(total=len(entries), unit="image", disable=None) as bar:
        for first in range(0, len(entries), BLOCK):
            readable, features, wrong = embed_readable(
                embedder, entries[first:first + BLOCK], batch_size)
            index.add(features, readable)
            forget(index, wrong)
            errors += wrong.values()
            done = min(first + BLOCK, len(entries))
            bar.update(done - first)
            if bar.disable:
                seconds = time.monotonic() - start
                left = seconds / done * (len(entries) - done)
                print(f"{done}/{len(entries)} images, {done / seconds:.1f} a second, "
                      f"{int(left // 60)}:{int(left % 60):02d} minutes left", flush=True)
    return errors
