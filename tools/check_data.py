#!/usr/bin/env python3
"""Looks at the training images before hours of work: are they what training needs?

    tools/check_data.py --config-file configs/Market/caureid.yml [KEY VALUE ...]
    tools/check_data.py --config-file ... --output check.html --json check.json
    tools/check_data.py --config-file ... --empty empty.csv     # lists those that show nothing
    tools/check_data.py --config-file ... --no-network          # the images alone: minutes

Every file of DATASETS.NAMES is read as training reads it. The report says how many images each
camera has, their sizes, which files cannot be read, which show nothing, which are copies of others
and which cameras look like one; then, with the network that training starts from, how long an
epoch takes, whether clustering fits into memory and what the first clustering finds. It uses no
identity.

It ends with advice and a verdict. Exit status: 0 for PASS, with or without advice, 1 for FAIL.
"""

import argparse
import csv
import io
import json
import logging
import os
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from caureid_plugin import check_cameras
from caureid_plugin.data import UnlabelledImages, build_dataset, training_images
from caureid_plugin.data.sampler import check_batch
from caureid_plugin.engine.checks import check_clustering, check_size, eps_at, eps_key
from caureid_plugin.engine.setup import build_network, load_config
from caureid_plugin.files import write_atomically
from caureid_plugin.inspection import (
    COPY_DISTANCE,
    LEAST_IMAGES,
    LEAST_STRUCTURE,
    compare_cameras,
    exact_copies,
    find_near_copies,
    inspect_images,
    least_images,
    run_length,
    sample_rows,
    short_names,
    small_cameras,
)
from tqdm import tqdm

import check_data_network as network
from check_data_page import write_page
from check_data_report import (
    FAIL,
    MOST_LINES,
    Data,
    Report,
    Section,
    count,
    duration,
    ordinal,
    printable,
    said,
    share,
    show,
)

# what config, datasets and network raise for bad input
WRONG = (AssertionError, FloatingPointError, KeyError, MemoryError, OSError, RuntimeError,
         TypeError, ValueError)
NEAR_SHARE = 0.2  # of the images with a near copy in their camera: from here on there is advice
ODD_SHARE = 0.05  # of the images that are small or lie on their side
LONG = 24 * 3600.0  # seconds of a training
# Below, each batch holds over a tenth of all images: it is nearly the same people in every step,
# who are learnt by heart, and there are few others to tell them from.
LEAST_BATCHES = 10
MEANINGS = {
    "outlier_share": "of the images are in no cluster yet (should fall as training goes on)",
    "largest_share": "of the images are in the largest cluster (if far more than one person has, "
                     "people are mixed up: lower EPS)",
    "cross_camera": "of the clusters span cameras (near 0 %: images are grouped by camera, not by "
                    "person)",
    "own_camera": "of an image's nearest neighbours are of its own camera (should fall as training "
                  "goes on)",
    "silhouette": "mean silhouette, -1 to 1 (below 0: clusters overlap)",
}


# ------------------------------------------------------------------------- the sections ----


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


def check_number(report: Report, data: Data, cfg) -> None:
    """Whether there are enough images at all."""
    images, batch = len(data.paths), cfg.SOLVER.IMS_PER_BATCH
    if images < LEAST_BATCHES * batch:
        report.advise(f"There are few images: {images}, fewer than {LEAST_BATCHES} batches of "
                      f"{batch} (SOLVER.IMS_PER_BATCH). Nearly the same people are in every step: "
                      "they are learnt by heart, and there are few to tell them from. Add images "
                      f"({LEAST_BATCHES * batch} or more), or lower SOLVER.IMS_PER_BATCH for a "
                      "first look.")


def check_camera_sizes(report: Report, data: Data, cfg) -> None:
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


def check_image_sizes(report: Report, data: Data, cfg) -> None:
    """How large images are, beside what the network takes."""
    section = report.section("sizes", "Sizes, in pixels")
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
    report.figures["without_content"] = [data.path(row) for row in empty]
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
    remedy = (f"set CAMERA_FOLDER.LEAVE_OUT {printable(str(table))}" if table else
              "write a list of them by --empty empty.csv and set CAMERA_FOLDER.LEAVE_OUT empty.csv")
    report.advise(f"Images that show nothing (black, a covered lens, one colour or blurred to "
                  f"nothing): {share(len(empty), total)}, of {where}. They are alike whoever "
                  f"passes, and make clusters of their own. Look at them (--output); to leave them "
                  f"out of training, {remedy}, or remove them.")
    return shows


def write_empty(path: Path, data: Data, shows: np.ndarray) -> int:
    """Writes the table of images that show nothing, and those that one names already.

    Returns how many are not in it, because of their names: bytes that are not UTF-8, line ends.
    """
    rows = [(os.path.abspath(data.path(row)), data.name(row)) for row in np.flatnonzero(~shows)]
    rows += [(os.path.abspath(name), "") for name in data.left_out_images]
    kept = [row for row in rows if row[0].isprintable()]
    text = io.StringIO()
    csv.writer(text).writerows([("path", "camera"), *kept])
    write_atomically(path, lambda file: file.write(text.getvalue().encode("utf-8")))
    return len(rows) - len(kept)


def check_copies(report: Report, data: Data) -> dict:
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
        report.fail(f"To look for copies takes more memory than there is: {said(error)}")
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


def advise_on_copies(report: Report, data: Data, spare: int, across: list, within: int,
                     suspect: list) -> None:
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


def check_likeness(report: Report, data: Data) -> list:
    """Which cameras look like one; gives the pairs."""
    if len(data.names) < 2:
        return []
    section = report.section("alike", "Cameras that look like one")
    with tqdm(desc="cameras", leave=False, disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        found = compare_cameras(data.facts.thumbnails, data.cameras, data.order, progress=show)

    def named(pair: tuple) -> str:
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
                      "camera, give their folders the same name (or mend what the camera is read "
                      "from): training would try to tell apart what is the same.")
    return found.alike


def check_options(report: Report, data: Data, cfg) -> None:
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


def check_start(report: Report, data: Data, cfg) -> None:
    """Time, memory and first clustering, with the network that training starts from."""
    section = report.section("start", "The start of training")
    try:
        model = build_network(cfg, cfg.MODEL.WEIGHTS)
    except WRONG as error:
        section.lines.append("Left out: the network could not be built.")
        if isinstance(error, OSError):  # a missing file or no internet: nothing about the images
            report.advise("Time, memory and the first clustering are not known, because the "
                          "network's weights cannot be had (name a file by MODEL.BACKBONE."
                          f"PRETRAIN_PATH, or leave this part out by --no-network): {said(error)}")
        else:
            report.fail(f"The network cannot be built: {said(error)}")
        return
    rows = sample_rows(data.cameras, data.order, network.MOST_IMAGES)
    items = [(data.path(row), data.name(row)) for row in rows.tolist()]
    camids = np.unique(data.cameras[rows], return_inverse=True)[1]
    try:
        figures = network.measure(cfg, model, items, camids, len(data.paths))
    except WRONG as error:
        report.fail(f"The start of training failed: {said(error)}")
        return
    report.figures["start"] = figures
    if len(rows) < len(data.rows):
        section.lines.append(f"Measured on a sample of {share(len(rows), len(data.rows))} images, "
                             "in blocks that follow each other.")
    say_time(report, section, figures, cfg)
    say_clustering(report, section, figures, cfg)


def say_time(report: Report, section: Section, figures: dict, cfg) -> None:
    images, cost = figures["images"], figures.get("cost")
    at_most = "at most " if figures["sampled"] < images else ""
    line = (f"Time (estimates, one process on {figures['device']}): features of an image "
            f"{duration(figures['seconds_per_image'])}")
    if cost:
        line += (
            f", a step of {cfg.SOLVER.IMS_PER_BATCH} images "
            f"{duration(figures['seconds_per_step'])}, clustering {images} images "
            f"{at_most}{duration(cost['clustering'])}. An epoch of {cost['iterations']} steps "
            f"takes about {duration(cost['epoch'])}, all {cfg.SOLVER.MAX_EPOCH} (SOLVER.MAX_EPOCH) "
            f"{duration(cost['total'])}, evaluation left out")
        if cost["total"] > LONG:
            report.advise(f"Training takes about {duration(cost['total'])} on "
                          f"{figures['device']}. A GPU, a smaller MODEL.BACKBONE or INPUT."
                          "SIZE_TRAIN, or fewer epochs (SOLVER.MAX_EPOCH, SOLVER.ITERS_PER_EPOCH) "
                          "make it shorter.")
    section.lines.append(f"{line}.")
    needed, free = figures["memory_gib"], figures["memory_free_gib"]
    allowed = "allowed by CAUREID.CLUSTER.MAX_MEMORY" if cfg.CAUREID.CLUSTER.MAX_MEMORY else "free"
    section.lines.append(f"Memory: clustering {images} images needs about {needed:.1f} GiB beyond "
                         f"the features, {free:.1f} are {allowed}.")
    if needed > free:
        keys = ("CAUREID.CLUSTER.K1_INTRA and K1_INTER" if cfg.CAUREID.CLUSTER.CAMERA_AWARE
                else "CAUREID.CLUSTER.K1")
        report.fail(f"Clustering needs about {needed:.1f} GiB, {free:.1f} are {allowed}: lower "
                    f"{keys}, take fewer images, or free memory.")


def centres_at(rows: list, eps: float) -> int:
    """Camera centres at the value that is nearest to an eps."""
    return min(rows, key=lambda row: abs(row["eps"] - eps))["centres"]


def say_clustering(report: Report, section: Section, figures: dict, cfg) -> None:
    eps, suggested = eps_at(cfg, 0), figures["eps"]
    key = f"CAUREID.CLUSTER.{eps_key(cfg, 0)}"
    section.lines.append(f"First clustering, {key} {eps:g}: {figures['clusters']} "
                         "clusters. No fault by themselves, but worth a look:")
    for name, value in figures["indicators"].items():
        if name == "cross_camera" and len(report.figures["cameras"]) == 1:
            continue
        shown = f"{value:.2f}" if name == "silhouette" else f"{100 * value:.1f} %"
        section.lines.append(f"- {shown} {MEANINGS[name]}")
    if figures["problem"]:  # says itself how to change the value
        report.fail(f"The first clustering leaves nothing to train on: {figures['problem']}")
    elif suggested is not None:
        say_eps(report, section, figures["eps_sweep"], eps, suggested, key)


def say_eps(report: Report, section: Section, rows: list, eps: float, suggested: float,
            key: str) -> None:
    line = f"Suggested by the camera centres at {len(rows)} values: {key} "
    here, best = (centres_at(rows, value) for value in (eps, suggested))
    if suggested == eps:
        section.lines.append(f"{line}{suggested:g}, as configured.")
    elif 2 * here >= best:
        section.lines.append(
            f"{line}{suggested:g}. The configured {eps:g} is no worse a start ({here} camera "
            f"centres, {best} at {suggested:g}): leave it as it is, unless training ends with "
            "many outliers. tools/choose_eps.py shows more.")
    else:
        section.lines.append(f"{line}{suggested:g} (configured: {eps:g}), see the advice.")
        report.advise(f"{key} {eps:g} finds less than half of the camera centres "
                      f"that {suggested:g} finds ({here} of {best}): look at tools/choose_eps.py "
                      "before a long run.")


# ------------------------------------------------------------------------- the command ----


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


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--output", type=Path, help="page to write, .html, with pictures")
    parser.add_argument("--json", type=Path, help="file for all figures and lists, .json")
    parser.add_argument("--empty", type=Path, help="table of the images that show nothing, .csv, "
                        "for CAMERA_FOLDER.LEAVE_OUT")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1),
                        help="threads that read images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1,
                        help="of the choice of pictures for the page (default: %(default)s); the "
                             "network's is SEED")
    parser.add_argument("--no-network", action="store_true",
                        help="leave out time, memory and the first clustering")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values")
    args = parser.parse_args(argv)
    if not args.config_file:  # the toolbox's own config would be taken
        parser.error("--config-file is empty: name a config, configs/OwnData/caureid.yml for "
                     "images of your own")
    late = [word for word in args.opts if word.startswith("--")]
    if late:
        parser.error(f"{late[0]} stands among config keys: options stand before them")
    if args.workers < 1:
        parser.error(f"--workers {args.workers} must be at least 1")
    if args.seed < 0:
        parser.error(f"--seed {args.seed} must not be negative")
    for name, suffix in (("output", ".html"), ("json", ".json"), ("empty", ".csv")):
        check_writable(parser, f"--{name}", getattr(args, name), suffix)
    return args


def check_writable(parser: argparse.ArgumentParser, option: str, path: Path | None,
                   suffix: str) -> None:
    """Says before minutes of work that a file could not be written."""
    if path is None:
        return
    if path.suffix != suffix:
        parser.error(f"{option} {path} must end in {suffix}")
    if not path.parent.is_dir():
        parser.error(f"{option} {path}: the folder {path.parent} does not exist")
    # a rename replaces the file: the folder must be open to that
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        parser.error(f"{option} {path} cannot be written")


def read(args: argparse.Namespace, notes: Notes):
    """Config and data; reads every image."""
    cfg = load_config(args.config_file, args.opts, notes.note)
    cfg.freeze()
    items = training_images(cfg)
    images = UnlabelledImages(items, None)  # checks the cameras and numbers them
    with tqdm(total=len(items), desc="images", leave=False, disable=None) as bar:
        facts = inspect_images(images.paths, workers=args.workers, progress=bar.update)
    names, _ = short_names([str(name) for name in images.camera_names])
    return cfg, Data(images.paths, images.camids, names, facts, *left_out(cfg))


def left_out(cfg) -> tuple[dict, dict, list]:
    """Files of each suffix that the datasets leave out, of those datasets that count them,
    images in systems' folders, by the folders' names, and those that a table names."""
    images: list = []
    files: Counter = Counter()
    folders: Counter = Counter()
    for name in cfg.DATASETS.NAMES:
        dataset = build_dataset(cfg, name)
        files.update(getattr(dataset, "left_out", {}))
        folders.update(getattr(dataset, "left_out_folders", {}))
        images += getattr(dataset, "left_out_images", [])
    return dict(files), dict(folders), images


def check(args: argparse.Namespace, report: Report, notes: Notes):
    """Fills the report; gives what the page shows, None if there are no images: all of them, those
    with content, copies among these, and cameras that are alike."""
    try:
        cfg, data = read(args, notes)
    except WRONG as error:
        report.fail(said(error))
        return None
    report.figures.update(images=len(data.paths), datasets=list(cfg.DATASETS.NAMES))
    check_camera_sizes(report, data, cfg)
    check_number(report, data, cfg)
    check_files(report, data)
    check_options(report, data, cfg)
    pairs, alike, full = {}, [], data
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


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
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
        write_atomically(args.json, lambda file: file.write(
            json.dumps(content, indent=1).encode("ascii")))
    if args.output:
        write_page(args.output, report, *(found or (None, None, {}, [])), seed=args.seed)
        shown = "shows the images" if found and len(found[0].rows) else "says the same"
        print(f"\n{args.output} {shown}.")
    return int(report.verdict() == FAIL)


if __name__ == "__main__":
    sys.exit(main())
