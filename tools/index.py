#!/usr/bin/env python3
"""Embeds the images below a folder into an index, which tools/search.py searches.

    tools/index.py RUN_FOLDER_OR_ONNX FOLDER --index crops.index [--prune]
    tools/index.py RUN_FOLDER_OR_ONNX FOLDER --index crops.index \\
        CAMERA_FOLDER.CAMERA pattern CAMERA_FOLDER.PATTERN '_c([0-9]+)'

Images that the index has and that have not changed (size, time) are left as they are: a command
that was interrupted goes on when it is given again, and further folders go into the same index,
which has each image once. --prune removes what is gone from FOLDER, all of it if FOLDER is gone.
Cameras are read as the CAMERA_FOLDER keys say; without any, as the run read those of its own
folder, if it was trained on one; those that the index has already are not lost then.
--standardize-by-camera lets searches compare features standardised within each camera, which helps
a network that was not trained on these cameras; it can be given later, and taken back.

Exit status: 0; 1 if something could not be read; 130 or 75 after Ctrl-C or SIGTERM.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import caureid_plugin  # first: it makes the toolbox importable
import numpy as np
from caureid_plugin.compat import shown
from caureid_plugin.data.camera_source import CameraSource, below
from caureid_plugin.data.listing import (
    EmptyFolder,
    existing_folder,
    list_images,
    same_file_names,
)
from caureid_plugin.retrieval.index import Index
from caureid_plugin.retrieval.index_files import MANIFEST, Entry
from caureid_plugin.signals import EXIT_INTERRUPTED, EXIT_STOPPED
from fastreid.config import get_cfg
from tqdm import tqdm

from search_embedder import load_embedder, options_first, sentence

BLOCK = 500  # images that are embedded before the index is written: what an interruption costs
SECTION = "CAMERA_FOLDER."
KEYS = ("CAMERA", "LEVEL", "PATTERN", "CSV")  # how a run read its cameras
HINT = " (CAMERA_FOLDER keys say where to read it, see --help)."
STANDARDIZED = "; searches standardise them by camera."
NAMED = 5  # unreadable images that are named


class Plan(NamedTuple):
    """What there is to do: entries to embed, rows whose camera changes, rows without a file."""

    embed: list[Entry]
    cameras: dict[int, str]
    gone: list[int]
    changed: int


# ------------------------------------------------------------------------------- cameras ----


def camera_source(run: Path, opts: list[str]) -> CameraSource | None:
    """Where cameras are read from: as the keys say, or as the run did; None: nowhere.

    Raises:
        ValueError, KeyError: a key that is unknown or of no use here, a value that is wrong.
    """
    wrong = [key for key in opts[::2] if key not in {SECTION + name for name in KEYS}]
    if wrong:
        raise ValueError(f"{shown(wrong[0])} is no key of this tool, which takes "
                         f"{', '.join(SECTION + name for name in KEYS)}.")
    cfg = get_cfg()
    caureid_plugin.add_caureid_config(cfg)
    own = run_keys(run)
    if own is not None and SECTION + "CAMERA" not in opts[::2]:
        cfg.merge_from_list(own)
    elif not opts:
        return None
    cfg.merge_from_list(opts)
    node = cfg.CAMERA_FOLDER
    return CameraSource(camera=node.CAMERA, level=node.LEVEL, pattern=node.PATTERN, csv=node.CSV)


def run_keys(run: Path) -> list | None:
    """The keys by which a run read the cameras of a folder of its own; None: it did not.

    A table (CSV) names the training images and is not used for others.
    """
    if run.suffix == ".pth":  # a checkpoint in a run's folder
        run = run.parent
    if not run.is_dir():
        return None
    from caureid_plugin.retrieval.run_folder import read_config

    cfg = read_config(run)
    node = cfg.CAMERA_FOLDER
    if "CameraFolder" not in cfg.DATASETS.NAMES or node.CAMERA == "csv":
        return None
    return [part for name in KEYS for part in (SECTION + name, node[name])]


# ---------------------------------------------------------------------------- what to do ----


def list_paths(folder: str, gone: bool) -> list[str]:
    """Images below a folder; none of a folder that is ``gone`` or without any, where it may be.

    Raises:
        FileNotFoundError, ValueError: it does not exist, holds none or cannot be read.
    """
    try:
        found = list_images(existing_folder(folder, "FOLDER"), "FOLDER")
    except (FileNotFoundError, EmptyFolder):
        if not gone:
            raise
        return []
    if found.system:
        print(found.in_system_folders(), flush=True)
    return found.paths


def list_entries(folder: str, paths: list[str], source: CameraSource | None) -> list[Entry]:
    """The images of a folder as they are now."""
    found = source.read(folder, paths) if source and paths else [None] * len(paths)
    entries = []
    for path, name, camera in zip(paths, below(folder, paths), found, strict=True):
        try:
            state = os.stat(path)
            size, mtime = state.st_size, state.st_mtime_ns
        except OSError:  # a broken link: reading it says so
            size = mtime = -1
        entries.append(Entry(folder, name, camera or "", size, mtime))
    return entries


def known_folder(index: Index, folder: str) -> str:
    """The name that the index has for a folder, which may be reached by another, a link."""
    real = os.path.realpath(folder)
    names = {entry.folder for entry in index.entries if entry.folder}
    return folder if folder in names else next(
        (name for name in sorted(names) if os.path.realpath(name) == real), folder)


def refuse_overlap(index: Index, entries: list[Entry]) -> None:
    """Refuses images that the index has from another folder.

    Raises:
        ValueError: there are some.
    """
    if not entries:
        return
    others = [entry for entry in index.entries if entry.folder != entries[0].folder]
    names = same_file_names([os.path.abspath(entry.name) for entry in others])
    known = dict(zip(names, others, strict=True))
    found = [known[name] for name in same_file_names([entry.name for entry in entries])
             if name in known]
    if found:
        source = f"folder {shown(found[0].folder)}" if found[0].folder else "a Python program"
        raise ValueError(
            f"{len(found)} images below {shown(entries[0].folder)} are in the index already, from "
            f"{source} (first: {shown(found[0].name)}), and would be found twice: give folders "
            "that do not overlap, or make an index of its own for this one (--index).")


def with_known_cameras(index: Index, folder: str, entries: list[Entry]) -> list[Entry]:
    """The entries; those without a camera get the one that the index has for them."""
    known = {entry.path: entry.camera for entry in index.entries if entry.folder == folder}
    return [entry._replace(camera=entry.camera or known.get(entry.path, "")) for entry in entries]


def make_plan(index: Index, folder: str, entries: list[Entry]) -> Plan:
    """Compares the folder with the index."""
    known = {entry.path: (row, entry) for row, entry in enumerate(index.entries)
             if entry.folder == folder}
    embed, cameras, changed = [], {}, 0
    for entry in entries:
        row, old = known.pop(entry.path, (-1, None))
        if old is None or old[3:] != entry[3:]:
            embed.append(entry)
            changed += old is not None
        elif old.camera != entry.camera:
            cameras[row] = entry.camera
    return Plan(embed, cameras, [row for row, _ in known.values()], changed)


# ----------------------------------------------------------------------------- embedding ----


def embed_readable(embedder, entries: list[Entry], batch_size: int) -> tuple[
        list[Entry], np.ndarray, dict[Entry, str]]:
    """Those images that can be read, their embeddings, and what is wrong with the others."""
    if not entries:
        return [], np.empty((0, embedder.dim), np.float32), {}
    try:
        features = embedder.embed([entry.name for entry in entries], batch_size=batch_size)
        return entries, features, {}
    except (ValueError, OSError) as error:
        if len(entries) == 1:
            text = sentence(error)
            name = shown(entries[0].name)
            return [], np.empty((0, embedder.dim), np.float32), {
                entries[0]: text if name in text else f"{name}: {text}"}
    # halves, until what cannot be read stands alone
    half = len(entries) // 2
    parts = [embed_readable(embedder, part, batch_size)
             for part in (entries[:half], entries[half:])]
    return (parts[0][0] + parts[1][0], np.concatenate([part[1] for part in parts]),
            parts[0][2] | parts[1][2])


def embed_all(index: Index, embedder, entries: list[Entry], batch_size: int) -> list[str]:
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


def forget(index: Index, entries: Collection[Entry]) -> None:
    """Removes images that were changed and can no longer be read: what is known is of others."""
    keys = {entry[:2] for entry in entries}
    if keys:
        index.remove([row for row, entry in enumerate(index.entries) if entry[:2] in keys])


# --------------------------------------------------------------------------- the command ----


def open_or_create(path: Path, embedder) -> Index:
    return Index.open(path, embedder) if (path / MANIFEST).exists() else Index.create(
        path, embedder)


def fill(args: argparse.Namespace) -> list[str]:
    """What the command does; gives what cannot be read."""
    folder = os.path.abspath(os.path.expanduser(args.folder))
    source = camera_source(args.run, args.opts)
    paths = list_paths(folder, args.prune and (args.index / MANIFEST).exists())
    listed = list_entries(folder, paths, source)
    embedder = load_embedder(args.run)
    index = open_or_create(args.index, embedder)
    with index.writing():
        known = known_folder(index, folder)
        entries = [entry._replace(folder=known) for entry in listed]
        if not entries and all(entry.folder != known for entry in index.entries):
            list_paths(folder, False)  # raises: the index has none of it, either
        refuse_overlap(index, entries)
        if not args.opts:  # nothing is said of cameras: those that are known stay
            entries = with_known_cameras(index, known, entries)
        if args.standardize_by_camera is not None:
            index.set_standardize_by_camera(args.standardize_by_camera)
        errors = update(args, index, embedder, known, entries)
    counts = index.camera_counts
    print(f"{shown(args.index)}: {len(index)} images of {len(counts) - ('' in counts)} cameras, "
          f"embedded by {shown(index.model)}{STANDARDIZED if index.standardize_by_camera else '.'}")
    if not errors:
        index.prepare()  # says what a search would refuse
    return errors


def update(args: argparse.Namespace, index: Index, embedder, folder: str,
           entries: list[Entry]) -> list[str]:
    """Makes the index hold the images of a folder; gives what cannot be read."""
    plan = make_plan(index, folder, entries)
    without = sum(not entry.camera for entry in entries)
    print(f"{len(entries)} images below {shown(folder)}: {len(plan.embed) - plan.changed} new, "
          f"{plan.changed} changed; the camera of {without} is not known"
          f"{HINT if without and not args.opts else '.'}", flush=True)
    say_gone(index, plan, args.prune)
    if args.prune and plan.gone:
        index.remove(plan.gone)
        plan = make_plan(index, folder, entries)  # rows are others now
    if plan.cameras:
        index.set_cameras(plan.cameras)
        print(f"Cameras read anew: those of {len(plan.cameras)} images.")
    return embed_all(index, embedder, plan.embed, args.batch_size)


def say_gone(index: Index, plan: Plan, prune: bool) -> None:
    if plan.gone:
        what = "is removed from the index" if prune else (
            "stays in the index (--prune removes what is gone)")
        print(f"{len(plan.gone)} images are gone from the folder (first: "
              f"{shown(index.paths[plan.gone[0]])}): each {what}.")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER_OR_ONNX",
                        help="OUTPUT_DIR of a run, or what tools/export.py wrote")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of images, also in folders")
    parser.add_argument("--index", type=Path, required=True,
                        help="folder of the index, made if there is none")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N",
                        help="images that the network takes at once (default: %(default)s)")
    parser.add_argument("--prune", action="store_true",
                        help="remove images from the index that are gone from FOLDER, all of them "
                             "if FOLDER is gone itself")
    parser.add_argument("--standardize-by-camera", action=argparse.BooleanOptionalAction,
                        help="let searches standardise features within each camera, or not "
                             "(default: as the index was made; a new one does not)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="CAMERA_FOLDER keys and values")
    words = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(options_first(words, (
        "--prune", "--standardize-by-camera", "--no-standardize-by-camera")))
    if args.batch_size < 1:
        parser.error(f"--batch-size {args.batch_size} must be at least 1")
    if len(args.opts) % 2:
        parser.error(f"config keys and values must come in pairs, got {' '.join(args.opts)}")
    if not args.index.absolute().parent.is_dir():
        parser.error(f"--index {args.index}: the folder {args.index.absolute().parent} does not "
                     "exist")
    return args


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt(number)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        errors = fill(args)
    except KeyboardInterrupt as stop:
        print(f"Stopped; the same command goes on. {shown(args.index)} holds what was done.",
              file=sys.stderr)
        raise SystemExit(EXIT_STOPPED if stop.args else EXIT_INTERRUPTED) from stop
    except (KeyError, ValueError, OSError, ImportError) as error:
        raise SystemExit(f"tools/index.py: {sentence(error)}") from error
    finally:
        signal.signal(signal.SIGTERM, before)
    if errors:
        more = [f"... and {len(errors) - NAMED} more"] if len(errors) > NAMED else []
        raise SystemExit("\n".join([
            (f"tools/index.py: {len(errors)} images cannot be read and are not in the index; the "
             "others are. Replace or remove them and give the command again:"),
            *errors[:NAMED], *more]))


if __name__ == "__main__":
    main()
