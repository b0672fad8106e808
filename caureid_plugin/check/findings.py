"""Looks at the training images before hours of work: are they what training needs?

Each ``check_...`` fills a section of the report, and says as advice or failure what is wrong.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from fastreid.config import CfgNode
from tqdm import tqdm

from ..common.files import write_atomically
from ..common.text import one_line, printable
from ..data import CameraFolder, UnlabelledImages, build_dataset, training_images
from ..data.sampler import check_batch
from ..engine import check_cameras
from ..engine.checks import check_clustering, check_size
from ..engine.setup import load_config
from ..inspection import (
    COPY_DISTANCE,
    LEAST_IMAGES,
    LEAST_STRUCTURE,
    compare_cameras,
    exact_copies,
    find_near_copies,
    inspect_images,
    least_images,
    run_length,
    short_names,
    small_cameras,
)
from .page import write_page
from .start import check_start
from .words import (
    FAIL,
    MOST_LINES,
    WRONG,
    Data,
    Report,
    Section,
    count,
    ordinal,
    share,
    show,
)

NEAR_SHARE = 0.2  # of the images with a near copy in their camera: from here on there is advice
ODD_SHARE = 0.05  # of the images that are small or lie on their side
# Below, each batch holds over a tenth of all images: it is nearly the same people in every step,
# who are learnt by heart, and there are few others to tell them from.
LEAST_BATCHES = 10


def check_files(report: Report, data: Data) -> None:
    """Which files cannot be read, and what lies beside the images."""
    section = report.section("files", "Files")
    say_left_out(report, section, data)
    errors = data.facts.errors
    report.figures["unreadable"] = [
        {"path": data.paths[i], "error": text} for i, text in errors.items()]
    if not errors:
        section.lines.append(f"All {len(data.paths)} files can be read.")
        return
    section.lines += [f"Unreadable: {share(len(errors), len(data.paths))}.",
                      *(printable(text) for text in errors.values())]
    report.fail(f"{count(len(errors), 'file')} cannot be read, and training would stop at the "
                "first: replace or remove what is listed under Files (--json has all of it).")


def say_left_out(report: Report, section: Section, data: Data) -> None:
    report.figures["left_out"] = {printable(suffix): number
                                  for suffix, number in data.left_out.items()}
    report.figures["left_out_folders"] = {printable(name): number
                                          for name, number in data.left_out_folders.items()}
    if data.left_out_folders:
        listed = ", ".join(f"{name} {number}"
                           for name, number in report.figures["left_out_folders"].items())
        section.lines.append(
            f"Left out, in folders that systems keep thumbnails and deleted files in: "
            f"{count(sum(data.left_out_folders.values()), 'image')} ({listed}). CAMERA_FOLDER."
            "SYSTEM_FOLDERS read takes them.")
    report.figures["left_out_images"] = len(data.left_out_images)
    if data.left_out_images:
        section.lines.append("Left out, named by CAMERA_FOLDER.LEAVE_OUT: "
                             f"{count(len(data.left_out_images), 'image')}.")
    if not data.left_out:
        return
    # where they are more than the images, the data set warns, which is advice
    total = sum(data.left_out.values())
    listed = ", ".join(f"{number} {printable(suffix) or 'without suffix'}" for suffix, number in
                       sorted(data.left_out.items(), key=lambda item: (-item[1], item[0])))
    section.lines.append(f"Left out, no images by their names: {count(total, 'file')} ({listed}). "
                         "What is an image all the same must be converted, to JPEG or PNG.")


def check_number(report: Report, data: Data, cfg: CfgNode) -> None:
    """Whether there are enough images at all."""
    images, batch = len(data.paths), cfg.SOLVER.IMS_PER_BATCH
    if images < LEAST_BATCHES * batch:
        report.advise(f"There are few images: {images}, fewer than {LEAST_BATCHES} batches of "
                      f"{batch} (SOLVER.IMS_PER_BATCH). Nearly the same people are in every step: "
                      "they are learnt by heart, and there are few to tell them from. Add images "
                      f"({LEAST_BATCHES * batch} or more), or lower SOLVER.IMS_PER_BATCH for a "
                      "first look.")


def check_camera_sizes(report: Report, data: Data, cfg: CfgNode) -> None:
    """How many images each camera has."""
    section = report.section("cameras", "Images per camera")
    counts = np.bincount(data.camids)
    section.headings = ("camera", "images", "share", "median size")
    for camera, name in enumerate(data.names):
        sizes = data.facts.sizes[data.cameras == camera]
        median = "{:.0f} x {:.0f}".format(*np.median(sizes, axis=0)) if len(sizes) else "-"
        section.rows.append((printable(name), int(counts[camera]),
                             f"{100 * counts[camera] / len(data.camids):.1f} %", median))
    report.figures["cameras"] = {printable(name): int(count)
                                 for name, count in zip(data.names, counts, strict=True)}
    if len(counts) == 1:
        section.lines.append("There is one camera: nothing is learnt across cameras.")
        return
    least, batch = least_images(cfg), cfg.SOLVER.IMS_PER_BATCH
    if small := small_cameras(data.camids, batch, least):
        names = ", ".join(f"{printable(data.names[i])} ({counts[i]})" for i in small[:MOST_LINES])
        rule = f"an average batch of {batch} (SOLVER.IMS_PER_BATCH) has less than one image of it"
        rule += f", or it has fewer than {least} (CAUREID.CLUSTER.K1_INTRA + 1)" if least else ""
        report.advise(f"{count(len(small), 'camera')} can hardly be learnt: {names}. Rule: {rule}. "
                      "Add images, or leave the camera out.")


def check_tracks(report: Report, data: Data) -> None:
    """How many tracks each camera has, how long they are, how many are there at one time."""
    tracks = data.tracks
    if tracks is None:
        return
    section = report.section("tracks", "Tracks")
    section.headings = ("camera", "tracks", "images each", "longest", "pairs at one time")
    overlaps, timed = tracks.overlaps(), not np.isnan(tracks.first).all()
    for camera, name in enumerate(data.names):
        lengths = tracks.lengths[tracks.camids == camera]
        pairs = overlaps[camera] if timed else None
        section.rows.append((printable(name), len(lengths), f"{lengths.mean():.1f}",
                             int(lengths.max()), "-" if pairs is None else pairs))
        report.figures.setdefault("tracks", {})[printable(name)] = {
            "tracks": len(lengths), "mean_length": float(lengths.mean()),
            "longest": int(lengths.max()), "pairs_at_one_time": pairs}
    section.lines.append(
        "Images of a track count as one person, a pair at one time as two. An image without a "
        "track is one of its own." if timed else
        "Images of a track count as one person. Times are not known (CAMERA_FOLDER.TIME), so that "
        "nothing tells two people who are there together.")


def check_image_sizes(report: Report, data: Data, cfg: CfgNode) -> None:
    """How large images are, beside what the network takes."""
    section = report.section("sizes", "Sizes, in pixels")
    if len(cfg.INPUT.SIZE_TRAIN) != 2:  # the toolbox takes one for the shorter side
        report.fail(f"INPUT.SIZE_TRAIN {list(cfg.INPUT.SIZE_TRAIN)} must be height and width.")
        return
    sizes, (height, width) = data.facts.sizes, cfg.INPUT.SIZE_TRAIN
    middle = np.median(sizes, axis=0)
    section.headings = ("", "smallest", "median", "largest")
    section.rows = [(side, *(f"{f(sizes[:, i]):.0f}" for f in (np.min, np.median, np.max)))
                    for i, side in enumerate(("height", "width"))]
    low = int((2 * sizes[:, 0] < height).sum())
    lying = int((sizes[:, 1] > sizes[:, 0]).sum()) if height > width else 0
    report.figures["sizes"] = {"median": middle.tolist(), "low": low, "lying": lying}
    section.lines.append(f"The network takes {height} x {width} (INPUT.SIZE_TRAIN, height x "
                         f"width). Lower than half of that: {share(low, len(sizes))}"
                         + (f"; wider than tall: {share(lying, len(sizes))}."
                            if height > width else "."))
    if low > ODD_SHARE * len(sizes):
        report.advise(f"Images that are magnified more than twice: {share(low, len(sizes))}. A "
                      "smaller INPUT.SIZE_TRAIN and SIZE_TEST loses nothing on them and is faster.")
    if lying > ODD_SHARE * len(sizes):
        report.advise(f"Images that are wider than tall, and squeezed: {share(lying, len(sizes))}. "
                      "Leave out what is no upright person, or, for vehicles, set INPUT.SIZE_TRAIN "
                      "and SIZE_TEST to a square.")
    if middle[0] > 4 * height:
        report.advise(f"Half of the images are over {middle[0]:.0f} pixels high, four times what "
                      "the network takes: shrink them once, to load them faster in every epoch.")


def check_content(report: Report, data: Data, table: Path | None) -> np.ndarray:
    """Which images show anything, (R,) bool."""
    section = report.section("content", "Images that show nothing")
    shows = data.facts.structure >= LEAST_STRUCTURE
    empty, total = np.flatnonzero(~shows), len(data.rows)
    report.figures["without_content"] = [data.path(row) for row in empty.tolist()]
    section.lines.append(f"Black, a covered lens, one colour or blurred to nothing: "
                         f"{share(len(empty), total)}. (Structure below {LEAST_STRUCTURE:g} grey "
                         f"levels; half of all images have more than "
                         f"{np.median(data.facts.structure):.1f}.)")
    if not len(empty):
        return shows
    numbers = [np.bincount(cameras, minlength=len(data.names))
               for cameras in (data.cameras[empty], data.cameras)]
    section.headings = ("camera", "show nothing", "of its images")
    section.rows = [(printable(name), int(part), f"{100 * part / whole:.1f} %")
                    for name, part, whole in zip(data.names, *numbers, strict=True) if part]
    where = ", ".join(f"{row[0]} ({row[1]})" for row in section.rows[:MOST_LINES])
    if not shows.any():
        report.fail("No image shows anything (black, a covered lens, one colour or blurred to "
                    "nothing): there is nothing to learn.")
        return shows
    own = sum(data.path(row) in data.own for row in empty.tolist())
    remedy = (f"set CAMERA_FOLDER.LEAVE_OUT {printable(str(table))}" if table else
              "write a list of them by --empty empty.csv and set CAMERA_FOLDER.LEAVE_OUT empty.csv")
    report.advise(f"Images that show nothing (black, a covered lens, one colour or blurred to "
                  f"nothing): {share(len(empty), total)}, of {where}. They are alike whoever "
                  f"passes, and make clusters of their own. Look at them (--output)"
                  + (f"; to leave {'them' if own == len(empty) else f'{own} of them'} out of "
                     f"training, {remedy}, or remove them." if own else ", and remove them."))
    return shows


def write_empty(path: Path, data: Data, shows: np.ndarray) -> int:
    """Writes the table of images that show nothing, and those that one names already; of
    CameraFolder only, which leaves out what it names.

    Returns how many are not in it, because of their names: bytes that are not UTF-8, line ends.
    """
    rows = [(os.path.abspath(data.path(row)), data.name(row))
            for row in np.flatnonzero(~shows).tolist() if data.path(row) in data.own]
    rows += [(os.path.abspath(name), "") for name in data.left_out_images]
    kept = [row for row in rows if row[0].isprintable()]
    text = io.StringIO()
    csv.writer(text).writerows([("path", "camera"), *kept])
    write_atomically(path, text.getvalue())
    return len(rows) - len(kept)


def check_copies(report: Report, data: Data) -> dict[str, Any]:
    """Which images are the same, or nearly; gives pairs of rows to look at, by kind."""
    section, total = report.section("copies", "Copies"), len(data.rows)
    groups = exact_copies(data.facts.digests)
    across = [rows for rows in groups if len({data.cameras[row] for row in rows}) > 1]
    spare = sum(len(rows) - 1 for rows in groups)
    try:
        with tqdm(total=total, desc="copies", leave=False, disable=None) as bar:
            near = find_near_copies(data.facts.bits, data.cameras, progress=lambda _, done, __: (
                bar.update(done - bar.n)))
    except MemoryError as error:
        report.fail(f"To look for copies takes more memory than there is: {one_line(error)}")
        return {}
    within = np.flatnonzero(near.within_bits <= COPY_DISTANCE)
    exactly = {row for rows in across for row in rows}
    suspect = [row for row in np.flatnonzero(near.across_bits <= COPY_DISTANCE).tolist()
               if row not in exactly]
    section.lines.append(f"Exact copies of another file: {share(spare, total)}"
                         + (f"; under several cameras: {count(len(across), 'image')}." if across
                            else "."))
    section.lines.append(
        f"Images with a near copy in their camera: {share(len(within), total)}; in another camera: "
        f"{share(len(suspect), total)}. (Near: at most {COPY_DISTANCE} of "
        f"{data.facts.bits.shape[1]} bits of a perceptual hash differ.)")
    report.figures["copies"] = {
        "exact": [[data.path(row) for row in rows] for rows in groups],
        "near_within": len(within),
        "near_across": [[data.path(row), data.path(near.across[row])] for row in suspect]}
    advise_on_copies(report, data, spare, across, len(within), suspect)
    return {"the same file under two cameras": [(rows[0], next(
                row for row in rows if data.cameras[row] != data.cameras[rows[0]]))
                for rows in across],
            "near copies under two cameras": [(row, int(near.across[row])) for row in suspect],
            "near copies in one camera": [(row, int(near.within[row])) for row in within.tolist()]}


def advise_on_copies(report: Report, data: Data, spare: int, across: list[Any], within: int,
                     suspect: list[Any]) -> None:
    total = len(data.rows)
    if across:
        pairs = Counter(tuple(sorted({data.name(row) for row in rows}, key=str))
                        for rows in across)
        first = " and ".join(map(printable, pairs.most_common(1)[0][0]))
        report.fail(f"The same file lies under several cameras: {count(len(across), 'image')}, "
                    f"mostly {first}. All camera labels of such a file but one are wrong: remove "
                    "the copies, or check how cameras are read.")
    if spare and spare == total - 1:
        report.fail("All images are the same file: there is nothing to tell apart.")
    elif spare:
        report.advise(f"Remove exact copies ({count(spare, 'file')}; --json lists them): they are "
                      "each other's nearest neighbours and push other images of the person out of "
                      "the lists.")
    if within >= NEAR_SHARE * total:
        every = max(2, round(run_length(data.facts.bits, data.cameras, data.order)))
        report.advise(f"Images with a near copy in their camera: {share(within, total)}. Frames "
                      "that follow each other teach little and make clusters of one camera: take "
                      f"every {every}{ordinal(every)} one.")
    if suspect:
        report.advise(f"Images with a near copy under another camera: {len(suspect)}. Two cameras "
                      "hardly ever see the same: look at them (--output), and check how cameras "
                      "are read.")


def check_likeness(report: Report, data: Data) -> list[Any]:
    """Which cameras look like one; gives the pairs."""
    if len(data.names) < 2:
        return []
    section = report.section("alike", "Cameras that look like one")
    with tqdm(desc="cameras", leave=False, disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        found = compare_cameras(data.facts.thumbnails, data.cameras, data.order, progress=show)

    def named(pair: tuple[Any, ...]) -> str:
        return (f"{printable(data.names[pair[0]])} and {printable(data.names[pair[1]])} "
                f"(AUC {pair[2]:.2f})")

    if found.pairs:
        section.lines.append(
            "Pairs of cameras whose thumbnails cannot be told apart: "
            f"{share(len(found.alike), len(found.pairs))}. The least different are "
            f"{named(found.pairs[0])}; 0.5 is the same, 1 different.")
    if found.left_out:
        section.lines.append(f"{found.left_out} pairs with less similar means were not compared.")
    if found.too_small:
        section.lines.append(f"Cameras with too few images to judge: {len(found.too_small)} (below "
                             f"{LEAST_IMAGES}).")
    report.figures["alike"] = [
        [printable(data.names[a]), printable(data.names[b]), auc] for a, b, auc in found.pairs]
    if found.alike:
        report.advise("These pairs of cameras look like one: "
                      + ", ".join(map(named, found.alike[:MOST_LINES])) + ". If they are one "
                      "camera, give their folders the same name (or change what the camera is read "
                      "from): training would try to tell apart what is the same.")
    return found.alike


def check_options(report: Report, data: Data, cfg: CfgNode) -> None:
    """Whether training would start with these options: its own checks. Warnings go to the log."""
    checks = (partial(check_clustering, cfg), partial(check_size, cfg, data.camids),
              partial(check_cameras, cfg, len(data.paths), len(data.names)),
              partial(check_batch, cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE,
                      cameras=cfg.DATALOADER.CAMERAS))
    for check in checks:
        try:
            check()
        except ValueError as error:
            report.fail(printable(error))


class Notes(logging.Handler):
    """Keeps what the package and the toolbox warn about; it is part of the advice."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.note(record.levelno, record.getMessage())

    def note(self, level: int, text: str) -> None:
        text = printable(" ".join(text.split()))
        if level >= logging.WARNING and text not in self.texts:
            self.texts.append(text)


def read(args: SimpleNamespace, notes: Notes) -> tuple[CfgNode, Data]:
    """Config and data; reads every image."""
    cfg = load_config(args.config_file, args.opts, notes.note)
    cfg.freeze()
    items = training_images(cfg)
    images = UnlabelledImages(items, lambda image: image)  # checks the cameras and numbers them
    with tqdm(total=len(items), desc="images", leave=False, disable=None) as bar:
        facts = inspect_images(images.paths, workers=args.workers, progress=bar.update)
    names, _ = short_names([str(name) for name in images.camera_names])
    return cfg, Data(images.paths, images.camids, names, facts, *left_out(cfg), images.tracks)


def left_out(cfg: CfgNode) -> tuple[dict[str, int], dict[str, int], list[str], set[str]]:
    """Files of each suffix that the datasets leave out, of those datasets that count them,
    images in systems' folders, by the folders' names, those that a table names, and the others
    that one may name."""
    images: list[str] = []
    own: set[str] = set()
    files: Counter[str] = Counter()
    folders: Counter[str] = Counter()
    for name in cfg.DATASETS.NAMES:
        dataset = build_dataset(cfg, name)
        files.update(getattr(dataset, "left_out", {}))
        folders.update(getattr(dataset, "left_out_folders", {}))
        images += getattr(dataset, "left_out_images", [])
        if isinstance(dataset, CameraFolder):
            own.update(path for path, *_ in dataset.train)
    return dict(files), dict(folders), images, own


def check(args: SimpleNamespace, report: Report, notes: Notes
          ) -> tuple[Data, Data, dict[str, Any], list[Any]] | None:
    """Fills the report; gives what the page shows, None if there are no images: all of them, those
    with content, copies among these, and cameras that are alike."""
    try:
        cfg, data = read(args, notes)
    except WRONG as error:
        report.fail(one_line(error))
        return None
    report.figures.update(images=len(data.paths), datasets=list(cfg.DATASETS.NAMES))
    check_camera_sizes(report, data, cfg)
    check_tracks(report, data)
    check_number(report, data, cfg)
    check_files(report, data)
    check_options(report, data, cfg)
    pairs: dict[str, Any] = {}
    alike: list[Any] = []
    full = data
    if len(data.rows):
        check_image_sizes(report, data, cfg)
        shows = check_content(report, data, args.empty)
        full = data.chosen(shows)
        if args.empty and (odd := write_empty(args.empty, data, shows)):
            report.advise(f"{args.empty} lacks {count(odd, 'image')} whose name a table "
                          "in UTF-8 cannot hold: rename or remove them (--json has all).")
    if len(full.rows):  # empty images are copies of each other, whatever their camera
        pairs = check_copies(report, full)
        alike = check_likeness(report, full)
        if not args.no_network:
            check_start(report, data, cfg)
    return data, full, pairs, alike


def run(args: SimpleNamespace) -> int:
    """Does what ``caureid check`` is asked for; ``args``: its options.

    Gives 0 for PASS, with or without advice, and 1 for FAIL.

    Raises:
        OSError: a file that cannot be written.
    """
    report, notes, log = Report(), Notes(), logging.getLogger("fastreid")
    log.addHandler(notes)
    try:
        found = check(args, report, notes)
    finally:
        log.removeHandler(notes)
    for text in notes.texts:
        report.advise(text)
    show(report)
    if args.json:
        content = {"verdict": report.verdict(), "findings": report.findings, **report.figures}
        write_atomically(args.json, json.dumps(content, indent=1))
    if args.output:
        write_page(args.output, report, *(found or (None, None, {}, [])), seed=args.seed)
        what = "shows the images" if found and len(found[0].rows) else "says the same"
        print(f"\n{args.output} {what}.")
    return int(report.verdict() == FAIL)
