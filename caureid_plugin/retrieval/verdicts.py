"""What is told of a search: the verdict, the threshold, the query's own file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ..common.text import printable, short
from ..runs.threshold import PairStatistics, RunVerdict
from .decoding import NoImage, read_bytes
from .embedder import Embedder
from .index import Index
from .index_files import Entry

COPIES = 10  # of the query's own file that are left out without making the list shorter


def verdict_of(embedder: Embedder, index: Index) -> RunVerdict:
    """The run's verdict: that of the index where that is known to be bad, else the network's.

    Either may have been made by a version, or of a folder, that knew nothing of it.
    """
    return index.verdict if index.verdict.level == "bad" else embedder.verdict


def is_query(entry: Entry, path: Path | None, data: bytes) -> bool:
    """Whether an entry of an index is the query's file, or has the same content.

    Args:
        path: of the query; None: it comes from outside.
        data: its content.
    """
    try:
        # also where it was changed since
        if path is not None and os.path.samefile(path, entry.name):
            return True
    except (OSError, ValueError):
        return False
    if entry.size not in (-1, len(data)):
        return False
    try:
        return read_bytes(entry.name, len(data)) == data
    except NoImage:
        return False


def pair_statistics(embedder: Embedder, index: Index, despite_verdict: bool = False
                    ) -> tuple[PairStatistics | None, str]:
    """The pair statistics that tell most of a network and its index, or a sentence why not.

    Either may have been made before the run was measured (caureid threshold), and then has those
    of the memory bank. None are of an index that standardises by camera, nor, unless
    ``despite_verdict``, of a run that went wrong.
    """
    unknown = f"Same or different is not shown: {index.why_no_statistics}"
    if index.standardize_by_camera:
        return None, unknown
    if why := verdict_of(embedder, index).why_withheld(despite_verdict):
        return None, printable(why)
    known = [part.statistics for part in (embedder, index) if part.statistics is not None]
    known.sort(key=lambda statistics: statistics.source == "memory bank")  # the least of all
    return (known[0], "") if known else (None, unknown)


def say_doubt(verdict: RunVerdict) -> str:
    """What else is to be said where same or different is shown and training may have failed."""
    if verdict.level == "bad":
        return f" This is shown despite the run's verdict. {printable(verdict.reason)}"
    return f" {printable(verdict.reason)}" if verdict.level != "good" else ""


def say_expected(statistics: PairStatistics, value: float, camera_counts: Mapping[str, int],
                 mark: str) -> str:
    """How many of what is marked as the same person are right, in an index of this size."""
    found = statistics.expected(value, camera_counts)
    if not found:
        return (f"How many of the {mark} are right is not known: measure the run anew "
                "(caureid threshold), then it is.")
    parts = [f"from {name} {short(part.right)} right and {short(part.wrong)} wrong "
             f"({100 * part.share_right:.0f} % right)" for name, part in found.items()]
    return (f"Of this index of {sum(camera_counts.values())} crops, a query of a person who has as "
            f"many in it as people have in training expects as {mark}, by the clusters of "
            f"training: {'; '.join(parts)}. For a person who is not in it all are wrong.")
