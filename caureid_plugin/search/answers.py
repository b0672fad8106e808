"""``caureid search``: queries, and the answers as tables, JSON and a picture."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from PIL import Image, PngImagePlugin, UnidentifiedImageError
from tabulate import tabulate

from ..common.errors import UserError
from ..common.files import write_atomically
from ..common.images import decode_image
from ..common.text import one_line, percent, printable, say
from ..export.load import load_embedder
from ..retrieval.decoding import DAMAGED
from ..retrieval.embedder import Embedder
from ..retrieval.index import Hit, Index
from ..retrieval.sheet import COLUMNS, Cell, draw_sheet
from ..retrieval.verdicts import (
    COPIES,
    is_query,
    pair_statistics,
    say_doubt,
    say_expected,
    verdict_of,
)
from ..runs.threshold import PairStatistics, Threshold

MOST_BYTES = 64 * 2 ** 20  # of a query's file
MOST_PIXELS = 50_000_000
MOST_CELLS = 2000  # of a picture, some 80 million pixels
MARK = "caureid-plugin, caureid search"  # in files that it has written and may write over


def read_query(path: Path) -> tuple[bytes, Image.Image]:
    """The content of a query's file, and the image in it.

    Raises:
        UserError: it is no file, no image, or too large.
        OSError: it cannot be read.
    """
    name = printable(path)
    if not path.is_file():  # opening a FIFO would wait for ever
        what = "is not a regular file" if os.path.lexists(path) else "does not exist"
        raise UserError(f"{name} {what}: give the file of an image.")
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise UserError(f"{name} has {size / 2 ** 20:.0f} MiB, and a query may have "
                        f"{MOST_BYTES // 2 ** 20}: make it smaller.")
    data = path.read_bytes()
    try:
        return data, decode_image(io.BytesIO(data), str(path), most_pixels=MOST_PIXELS)
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} is too large ({error}): make it smaller.") from error
    except UnidentifiedImageError as error:  # its text names an object in memory
        raise UserError(f"{name} is of no image format that Pillow knows: give a JPEG or PNG."
                        ) from error
    except DAMAGED as error:
        raise UserError(f"{name} is no image that can be read: give a JPEG or PNG "
                        f"({one_line(error)}).") from error


class Answer(NamedTuple):
    """To a query: its hits, its own file or copies, which are left out of them, or why
    there are none."""

    path: Path
    hits: list[Hit]
    own: list[Hit]
    error: str


def answer(args: SimpleNamespace, embedder: Embedder, index: Index) -> list[Answer]:
    """Searches with each query of the options."""
    answers = []
    camera = None if args.query_camera is None else [args.query_camera]
    for path in args.queries:
        try:
            data, image = read_query(path)
            features = embedder.embed(image)
        except (UserError, OSError) as error:
            answers.append(Answer(path, [], [], one_line(error)))
            continue
        hits = index.search(features, args.top + COPIES, cameras=args.camera or None,
                            without_cameras=args.without_camera, query_cameras=camera)[0]
        own = [hit for hit in hits if is_query(index.entries[hit.row], path, data)]
        kept = [hit for hit in hits if hit not in own][:args.top]
        answers.append(Answer(path, [hit._replace(rank=rank)
                                     for rank, hit in enumerate(kept, start=1)], own, ""))
    return answers


def is_same(hit: Hit, threshold: Threshold | None) -> bool | None:
    """Whether a hit is taken for the same person; None where that is not told."""
    return None if threshold is None else hit.score >= threshold.value


def say_threshold(threshold: Threshold | None, statistics: PairStatistics | None, why: str
                  ) -> str:
    """What the threshold is based on, and what is to be expected of it."""
    if threshold is None or statistics is None:
        return why
    text = (
        f"Threshold for the same person: {threshold.value:.3f}. Expected: "
        f"{percent(threshold.false_match_rate, len(statistics.different))} of pairs of different "
        f"people score as high, {percent(threshold.false_non_match_rate, len(statistics.same))} of "
        "pairs of one person score lower. These "
        f"rates are of {len(statistics.different)} pairs in different clusters and "
        f"{len(statistics.same)} in the same one ({statistics.source}): clusters are not "
        "identities, and for people that the run has not seen both rates are higher.")
    if statistics.source == "memory bank":
        text += (" The memory bank understates the first by far: measure it once with "
                 "caureid threshold.")
    return text


def say_standardized(index: Index, camera: str | None) -> str:
    """By which statistics the queries were standardised; nothing of an index that does not."""
    if not index.standardize_by_camera:
        return ""
    whose = f"camera {printable(camera)}" if camera else (
        "all images, as no --query-camera was given")
    return f"\nStandardised by camera; the queries by the statistics of {whose}."


def table(index: Index, answered: Answer, threshold: Threshold | None) -> str:
    """Of its hits, and what is left out of them."""
    own = ", ".join(f"{printable(hit.path)} (camera {printable(hit.camera) or 'unknown'})"
                    for hit in answered.own)
    own = f"Left out, the query's own file: {own}." if own else ""
    if not answered.hits:
        return own or (
            "Nothing: the index is empty, caureid index fills it." if not len(index) else
            "Nothing: no image of the index is of a camera that was asked for (--camera, "
            "--without-camera).")
    marks = {None: "-", True: "yes", False: "no"}
    rows = [(hit.rank, f"{hit.score:.3f}", marks[is_same(hit, threshold)],
             printable(hit.camera) or "-", printable(hit.path)) for hit in answered.hits]
    return tabulate(rows, headers=("rank", "score", "same?", "camera", "path"),
                    disable_numparse=True) + (own and f"\n{own}")


def as_json(index: Index, answers: list[Answer], threshold: Threshold | None, why: str,
            camera: str | None, more: dict[str, Any]) -> bytes:
    """The file of --json."""
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


def as_picture(answers: list[Answer], threshold: Threshold | None) -> bytes:
    """The file of --picture, a PNG."""
    rows = []
    for path, hits, _, error in answers:
        if not error:
            cells = [Cell(hit.path, (
                f"{hit.rank}: {hit.score:.3f} " + {None: "", True: "✓", False: "✗"}[
                    is_same(hit, threshold)],
                f"camera {printable(hit.camera)}" if hit.camera else "camera unknown"),
                is_same(hit, threshold)) for hit in hits]
            rows.append((Cell(str(path), ("query", printable(path.name))), cells))
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
        raise UserError(f"--picture would show {top} images for each of {queries} queries in "
                        f"{cells} places, and may have {MOST_CELLS}: lower --top, or ask with "
                        "fewer queries at a time.")


def _is_marked(path: Path) -> bool:
    with path.open("rb") as file:
        return MARK.encode() in file.read(500)


def check_output(option: str, path: Path | None, index: Path) -> None:
    """Refuses to write over anything but what this command has written.

    Args:
        option: that names the file.
        path: the file; None: none.
        index: folder of the index.

    Raises:
        ValueError: it is the index's, or another file is there.
        OSError: what is there cannot be read.
    """
    if path is None:
        return
    if index.resolve() in path.resolve().parents:
        raise UserError(f"{option} {printable(path)} lies in the folder of the index, which has "
                        "that to itself: give another folder.")
    if os.path.lexists(path) and not (path.is_file() and _is_marked(path)):
        raise UserError(f"{option} {printable(path)} is there already and was not written by "
                        "caureid search: give another name, or remove it first.")


def run(args: SimpleNamespace) -> int:
    """``caureid search``; gives its exit code, 1 if a query could not be answered.

    Args:
        args: its options.

    Raises:
        ValueError, OSError, ImportError: the network or the index cannot be used, or a file not
            be written; says why.
    """
    check_output("--json", args.json, args.index)
    check_output("--picture", args.picture, args.index)
    errors = search(args)
    print(*[f"caureid search: {error}" for error in errors], sep="\n", end="\n" * bool(errors),
          file=sys.stderr)
    return int(bool(errors))


def search(args: SimpleNamespace) -> list[str]:
    """Answers all queries; gives why some could not be."""
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
        expected = {} if threshold is None or statistics is None else statistics.expected(
            threshold.value, index.camera_counts)
        more = {"verdict": verdict._asdict(), "expected_same": {
            name: part._asdict() for name, part in expected.items()}}
        content = as_json(index, answers, threshold, why, args.query_camera, more)
        write_atomically(args.json, content)
    if args.picture and len(errors) < len(answers):
        picture = as_picture(answers, threshold)
        write_atomically(args.picture, picture)
    lines = [f"\n{printable(answered.path)}\n{table(index, answered, threshold)}"
             for answered in answers if not answered.error]
    if lines:
        told = [say_threshold(threshold, statistics, why)]
        if threshold is not None and statistics is not None:
            told[0] += say_doubt(verdict)
            told.append(say_expected(statistics, threshold.value, index.camera_counts, '"yes"'))
        say("\n".join([*lines, "", *told]) + say_standardized(index, args.query_camera))
    return errors
