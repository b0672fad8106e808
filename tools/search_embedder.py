"""What the tools that use a trained network share: the network, and command lines."""

import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import caureid_plugin  # noqa: F401  first: it makes the toolbox importable
from caureid_plugin.compat import shown

from serve_images import NoImage, read_bytes

COPIES = 10  # of the query's own file that are left out without making the list shorter


def load_embedder(path: Path):
    """The network of a run folder or an .onnx file of tools/export.py.

    Raises:
        ValueError, OSError, ImportError: it cannot be used; says why.
    """
    if path.suffix.lower() in (".onnx", ".torchscript"):  # the second is refused, and why
        from caureid_plugin.export import load_export

        return load_export(path)
    from caureid_plugin.retrieval import load_run

    return load_run(path)


def verdict_of(embedder, index):
    """The run's verdict: that of the index where that is known to be bad, else the network's.

    Either may have been made by a version, or of a folder, that knew nothing of it.
    """
    return index.verdict if index.verdict.level == "bad" else embedder.verdict


def is_query(entry, path: Path, data: bytes) -> bool:
    """Whether an entry of an index is the query's file, or has the same content.

    Args:
        path: of the query.
        data: its content.
    """
    try:
        if os.path.samefile(path, entry.name):  # also where it was changed since
            return True
    except (OSError, ValueError):
        return False
    if entry.size not in (-1, len(data)):
        return False
    try:
        return read_bytes(entry.name, len(data)) == data
    except NoImage:
        return False


def pair_statistics(embedder, index, despite_verdict: bool = False):
    """The pair statistics that tell most of a network and its index, and why there are none.

    Either may have been made before the run was measured (tools/threshold.py), and then has those
    of the memory bank. None are of an index that standardises by camera, nor, unless
    ``despite_verdict``, of a run that went wrong.
    """
    if index.standardize_by_camera:
        return None, index.why_no_statistics
    if why := verdict_of(embedder, index).why_withheld(despite_verdict):
        return None, shown(why)
    known = [part for part in (embedder, index) if part.statistics is not None]
    measured = [part for part in known if part.statistics.source != "memory bank"]
    best = (measured or known or [index])[0]
    return best.statistics, best.why_no_statistics


def say_doubt(verdict) -> str:
    """What else is to be said where same or different is told and the run may have gone wrong."""
    if verdict.level == "bad":
        return f" This is told despite the verdict of the run. {shown(verdict.reason)}"
    return f" {shown(verdict.reason)}" if verdict.level != "good" else ""


def say_expected(statistics, value: float, camera_counts: Mapping[str, int], mark: str) -> str:
    """How many of what is marked as the same person are right, in an index of this size."""
    found = statistics.expected(value, camera_counts)
    if not found:
        return (f"How many of the {mark} are right is not known: measure the run anew "
                "(tools/threshold.py), then it is.")
    parts = [f"from {name} {short(part.right)} right and {short(part.wrong)} wrong "
             f"({100 * part.share_right:.0f} % right)" for name, part in found.items()]
    return (f"Of this index of {sum(camera_counts.values())} crops, a query of a person who has as "
            f"many in it as people have in training expects as {mark}, by the clusters of "
            f"training: {'; '.join(parts)}. For a person who is not in it all are wrong.")


def short(number: float) -> str:
    """Two digits of a mean number, or all before the point."""
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def options_first(words: list[str], flags: Collection[str]) -> list[str]:
    """Puts options before all else, so that config keys may follow at the end.

    Args:
        words: of the command line; what begins with -- is an option.
        flags: options that take no value.
    """
    options, others = [], []
    rest = iter(words)
    for word in rest:
        if not word.startswith("--") and word != "-h":
            others.append(word)
            continue
        options.append(word)
        if "=" not in word and word not in (*flags, "-h", "--help"):
            options += [value for value in [next(rest, None)] if value is not None]
    return options + others


def say(text: str) -> None:
    """Prints; a reader that has seen enough, as head has, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the end of Python


def percent(share: float, count: int) -> str:
    """A share of so many; where there was none of them, what that can tell."""
    return f"{100 * share:.3g} %" if share else f"under {100 / count:.2g} %"


def sentence(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__
