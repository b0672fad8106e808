#!/usr/bin/env python3
"""Finds the images of an index that are most similar to query images.

    tools/search.py RUN_FOLDER_OR_ONNX QUERY [QUERY ...] --index crops.index [--top 10]
    tools/search.py ... --camera 1 2 --picture found.png --json found.json

The index is one that tools/index.py made with the same network. Each query gets a table: rank,
score (the cosine of the two embeddings), whether that is above the threshold, camera and path. The
threshold follows from pairs of images in the same and in different clusters of the training run.
Where the run's verdict is bad, same or different is not told (--despite-verdict tells it).
The query's own file, and copies of it, are left out of the list where the index has them.
An index that standardises by camera does so with the queries, and has no threshold: --query-camera
says which camera they are from.

A query that cannot be read is named, the others are answered, and the exit status is 1.
"""

import argparse
import io
import json
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import caureid_plugin  # noqa: F401  first: it makes the toolbox importable
from caureid_plugin.compat import shown
from caureid_plugin.files import write_atomically
from caureid_plugin.retrieval.index import Hit, Index
from PIL import Image, PngImagePlugin
from tabulate import tabulate

from search_embedder import (
    COPIES,
    is_query,
    load_embedder,
    pair_statistics,
    percent,
    say,
    say_doubt,
    say_expected,
    sentence,
    verdict_of,
)
from search_sheet import COLUMNS, Cell, draw_sheet

MOST_BYTES = 64 * 2 ** 20  # of a query's file
MOST_PIXELS = 50_000_000
MOST_CELLS = 2000  # of a picture, some 80 million pixels
MARK = "caureid-plugin tools/search.py"  # in files that it has written and may write over


def check_query(path: Path) -> None:
    """What can be said of a query before it is decoded.

    Raises:
        ValueError: it is no file, no image, or too large.
        OSError: it cannot be read.
    """
    name = shown(path)
    if not path.is_file():  # opening a FIFO would wait for ever
        what = "is not a regular file" if os.path.lexists(path) else "does not exist"
        raise ValueError(f"{name} {what}: give the file of an image.")
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"{name} has {size / 2 ** 20:.0f} MiB, and a query may have "
                         f"{MOST_BYTES // 2 ** 20}: make it smaller.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                width, height = image.size
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} has more pixels than the {MOST_PIXELS} that a query may have: "
                         f"make it smaller ({error}).") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name} is no image that can be read: give a JPEG or PNG "
                         f"({sentence(error)}).") from error
    if width * height > MOST_PIXELS:
        raise ValueError(f"{name} has {width} x {height} pixels, and a query may have "
                         f"{MOST_PIXELS}: make it smaller.")


class Answer(NamedTuple):
    """To a query: its hits, those of its own file or copies, which are left out of them, or why
    there are none."""

    path: Path
    hits: list[Hit]
    own: list[Hit]
    error: str


def answer(args: argparse.Namespace, embedder, index: Index) -> list[Answer]:
    """Of each query."""
    answers = []
    camera = None if args.query_camera is None else [args.query_camera]
    for path in args.queries:
        try:
            check_query(path)
            features, data = embedder.embed([path]), path.read_bytes()
        except (ValueError, OSError) as error:
            answers.append(Answer(path, [], [], sentence(error)))
            continue
        hits = index.search(features, args.top + COPIES, cameras=args.camera,
                            without_cameras=args.without_camera, query_cameras=camera)[0]
        own = [hit for hit in hits if is_query(index.entries[hit.row], path, data)]
        kept = [hit for hit in hits if hit not in own][:args.top]
        answers.append(Answer(path, [hit._replace(rank=rank)
                                     for rank, hit in enumerate(kept, start=1)], own, ""))
    return answers


# -------------------------------------------------------------------------------- output ----


def is_same(hit: Hit, threshold) -> bool | None:
    return None if threshold is None else hit.score >= threshold.value


def say_threshold(threshold, statistics, why: str) -> str:
    """What the threshold is based on, and what is to be expected of it."""
    if threshold is None:
        return f"Same or different is not told: {why}"
    said = (
        f"Threshold for the same person: {threshold.value:.3f}. Expected: "
        f"{percent(threshold.false_match_rate, len(statistics.different))} of pairs of different "
        f"people score as high, {percent(threshold.false_non_match_rate, len(statistics.same))} of "
        "pairs of one person score lower. These "
        f"rates are of {len(statistics.different)} pairs in different clusters and "
        f"{len(statistics.same)} in the same one ({statistics.source}): clusters are no "
        "identities, and for people that the run has not seen both rates are higher.")
    if statistics.source == "memory bank":
        said += (" The memory bank understates the first by far: measure it once with "
                 "tools/threshold.py.")
    return said


def say_standardized(index: Index, camera: str | None) -> str:
    """By which statistics the queries were standardised; nothing of an index that does not."""
    if not index.standardize_by_camera:
        return ""
    whose = f"those of camera {shown(camera)}" if camera else (
        "those of all images, as no --query-camera was given")
    return f"\nStandardised by camera; the queries by the statistics of the index: {whose}."


def table(index: Index, answered: Answer, threshold) -> str:
    """Of its hits, and what is left out of them."""
    own = ", ".join(f"{shown(hit.path)} (camera {shown(hit.camera) or 'unknown'})"
                    for hit in answered.own)
    own = f"Left out, the query's own file: {own}." if own else ""
    if not answered.hits:
        return own or (
            "Nothing: the index is empty, tools/index.py fills it." if not len(index) else
            "Nothing: no image of the index is of a camera that was asked for (--camera, "
            "--without-camera).")
    marks = {None: "-", True: "yes", False: "no"}
    rows = [(hit.rank, f"{hit.score:.3f}", marks[is_same(hit, threshold)],
             shown(hit.camera) or "-", shown(hit.path)) for hit in answered.hits]
    return tabulate(rows, headers=("rank", "score", "same?", "camera", "path"),
                    disable_numparse=True) + (own and f"\n{own}")


def as_json(index: Index, answers: list[Answer], threshold, why: str, camera: str | None,
            more: dict) -> bytes:
    content = {
        "made_by": MARK, "index": str(index.folder), "model": index.model,
        "fingerprint": index.fingerprint,
        "standardize_by_camera": index.standardize_by_camera, "query_camera": camera,
        "threshold": None if threshold is None else threshold._asdict(),
        "why_no_threshold": why if threshold is None else "", **more,
        "queries": [
            {"path": str(path), "error": error, "hits": [
                {"rank": hit.rank, "score": round(hit.score, 6), "same": is_same(hit, threshold),
                 "camera": hit.camera, "path": hit.path} for hit in hits],
             "own_file": [{"camera": hit.camera, "path": hit.path} for hit in own]}
            for path, hits, own, error in answers]}
    return (json.dumps(content, indent=1) + "\n").encode("ascii")


def as_picture(answers: list[Answer], threshold) -> bytes:
    rows = []
    for path, hits, _, error in answers:
        if not error:
            cells = [Cell(hit.path, (
                f"{hit.rank}: {hit.score:.3f} " + {None: "", True: "✓", False: "✗"}[
                    is_same(hit, threshold)],
                f"camera {shown(hit.camera)}" if hit.camera else "camera unknown"),
                is_same(hit, threshold)) for hit in hits]
            rows.append((Cell(str(path), ("query", shown(path.name))), cells))
    title = "Query and what was found, by score"
    if threshold is not None:
        title += (f"; green ✓ from {threshold.value:.3f} on: taken for the same person; red ✗: for "
                  "another")
    buffer = io.BytesIO()
    marked = PngImagePlugin.PngInfo()
    marked.add_text("Software", MARK)
    draw_sheet(rows, title).save(buffer, "PNG", pnginfo=marked)
    return buffer.getvalue()


def check_size(queries: int, top: int) -> None:
    """Refuses a picture that would take too much memory.

    Raises:
        ValueError: it would.
    """
    cells = queries * -(-top // COLUMNS) * (1 + min(top, COLUMNS))
    if cells > MOST_CELLS:
        raise ValueError(f"--picture would show {top} images for each of {queries} queries in "
                         f"{cells} places, and may have {MOST_CELLS}: lower --top, or ask with "
                         "fewer queries at a time.")


def check_output(path: Path, suffix: str, index: Path) -> None:
    """Refuses what cannot be written, and to write over anything but what this tool has written.

    Raises:
        ValueError: another end of the name, no such folder, the index's, another file is there.
        OSError: what is there cannot be read.
    """
    if path.suffix.lower() != suffix:
        raise ValueError(f"{shown(path)} must end in {suffix}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"{shown(path)} cannot be written: it is a folder, or lies in one that "
                         "does not exist")
    if index.resolve() in path.resolve().parents:
        raise ValueError(f"{shown(path)} lies in the folder of the index, which has that to "
                         "itself: give another folder.")
    if os.path.lexists(path) and not (path.is_file() and _is_marked(path)):
        raise ValueError(f"{shown(path)} is there already and was not written by this tool: give "
                         "another name, or remove it first.")


def _is_marked(path: Path) -> bool:
    with path.open("rb") as file:
        return MARK.encode() in file.read(500)


# --------------------------------------------------------------------------- the command ----


def run(args: argparse.Namespace) -> list[str]:
    """What the command does; gives why queries could not be answered."""
    embedder = load_embedder(args.run)
    index = Index.open(args.index, embedder)
    if args.picture:
        check_size(len(args.queries), min(args.top, len(index)))
    statistics, why = pair_statistics(embedder, index, args.despite_verdict)
    verdict = verdict_of(embedder, index)
    threshold = None if statistics is None else statistics.threshold(args.false_match_rate)
    answers = answer(args, embedder, index)
    errors = [answered.error for answered in answers if answered.error]
    if args.json:
        expected = {} if threshold is None else statistics.expected(
            threshold.value, index.camera_counts)
        more = {"verdict": verdict._asdict(), "expected_same": {
            name: part._asdict() for name, part in expected.items()}}
        content = as_json(index, answers, threshold, why, args.query_camera, more)
        write_atomically(args.json, lambda file: file.write(content))
    if args.picture and len(errors) < len(answers):
        picture = as_picture(answers, threshold)
        write_atomically(args.picture, lambda file: file.write(picture))
    lines = [f"\n{shown(answered.path)}\n{table(index, answered, threshold)}"
             for answered in answers if not answered.error]
    if lines:
        told = [say_threshold(threshold, statistics, why)]
        if threshold is not None:
            told[0] += say_doubt(verdict)
            told.append(say_expected(statistics, threshold.value, index.camera_counts, '"yes"'))
        say("\n".join([*lines, "", *told]) + say_standardized(index, args.query_camera))
    return errors


def rate(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} must lie between 0 and 1")
    return value


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER_OR_ONNX",
                        help="the network that the index was made with")
    parser.add_argument("queries", type=Path, nargs="+", metavar="QUERY", help="file of an image")
    parser.add_argument("--index", type=Path, required=True, help="folder of the index")
    parser.add_argument("--top", type=int, default=10, metavar="N",
                        help="images to find for each query (default: %(default)s)")
    parser.add_argument("--camera", nargs="+", metavar="NAME", help="only images of these cameras")
    parser.add_argument("--without-camera", nargs="+", default=(), metavar="NAME",
                        help="no images of these cameras, that of the query for example")
    parser.add_argument("--query-camera", metavar="NAME",
                        help="camera of the queries, for an index that standardises by camera "
                             "(default: not known; by the statistics of all images)")
    parser.add_argument("--false-match-rate", type=rate, metavar="RATE",
                        help="share of pairs of different people that may be taken for one "
                             "(default: 0.001, or the lowest that the run's pairs can tell)")
    parser.add_argument("--despite-verdict", action="store_true",
                        help="tell same and different although the run's verdict is bad")
    parser.add_argument("--json", type=Path, help=".json file to write")
    parser.add_argument("--picture", type=Path, help=".png file to write")
    args = parser.parse_args(argv)
    if not 1 <= args.top <= 1000:
        parser.error(f"--top {args.top} must be from 1 to 1000")
    for option, path, suffix in (("--json", args.json, ".json"),
                                 ("--picture", args.picture, ".png")):
        if path is not None:
            try:
                check_output(path, suffix, args.index)
            except (ValueError, OSError) as error:
                parser.error(f"{option} {error}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        errors = run(args)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"tools/search.py: {sentence(error)}") from error
    if errors:
        raise SystemExit("\n".join(f"tools/search.py: {error}" for error in errors))


if __name__ == "__main__":
    main()
