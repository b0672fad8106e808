"""What the tools that use a trained network share: the network, and command lines."""

import os
import sys
from collections.abc import Collection
from pathlib import Path


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


def pair_statistics(embedder, index):
    """The pair statistics that tell most of a network and its index, and why there are none.

    Either may have been made before the run was measured (tools/threshold.py), and then has those
    of the memory bank. None are of an index that standardises by camera.
    """
    if index.standardize_by_camera:
        return None, index.why_no_statistics
    known = [part for part in (embedder, index) if part.statistics is not None]
    measured = [part for part in known if part.statistics.source != "memory bank"]
    best = (measured or known or [index])[0]
    return best.statistics, best.why_no_statistics


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
