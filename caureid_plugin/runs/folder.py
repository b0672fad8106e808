"""What a run has written: its config, its checkpoints and their memory bank."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastreid.config import CfgNode

from .._version import __version__
from ..common.errors import UserError
from ..common.files import write_atomically
from ..common.safe_load import load_tensors
from ..common.text import printable, with_full_stop
from ..config_files import NO_RUN, RUN_CONFIG
from ..engine import load_config
from ..engine.verdict import collect, judge
from .metrics import indicators, read_rows
from .threshold import NO_VERDICT, PairStatistics, RunVerdict

STATISTICS = "pair_statistics.json"
STATISTICS_FORMAT = 2  # 1 held one network's
BANK = ("features", "labels", "camids")
MOST_CAMERAS = 10 ** 6  # numbers of cameras: arrays have a place for each
logger = logging.getLogger("fastreid.caureid")


class RunError(UserError):
    """Why a run folder cannot be used, and what to do."""


def check_folder(folder: Path) -> None:
    """Refuses what is no folder.

    Raises:
        RunError: says what it is instead.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise RunError(f"{printable(folder)} {what}: give the folder that a run has written, its "
                       "OUTPUT_DIR.")


def read_config(folder: Path, opts: Sequence[str] = (), *, training: bool = False) -> CfgNode:
    """A run's config, with other keys and values, on a device that there is; not frozen.

    Args:
        folder: of the run.
        opts: config keys and values that replace the run's.
        training: see :func:`caureid_plugin.fit_to_data`.

    Raises:
        RunError: no config.yaml, a damaged one, or one of another version; a wrong key.
    """
    path = folder / RUN_CONFIG
    if not path.is_file():
        raise RunError(NO_RUN.format(printable(folder)))
    try:
        cfg = load_config(str(path), opts, training=training)
    except KeyError as error:
        raise RunError(_unknown_key(path, error.args[0], opts)) from error
    except (OSError, UserError) as error:
        raise RunError(f"{printable(path)} cannot be read, or a value in it or on the command line "
                       f"is wrong: {with_full_stop(error)} It is what the run wrote at its start; "
                       "restore it from a copy, or begin a new run.") from error
    if str(cfg.MODEL.DEVICE).startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def _unknown_key(path: Path, message: str, opts: Sequence[str]) -> str:
    if any(repr(key) in message for key in opts[::2]):
        return f"On the command line: {message}"
    return (f"{printable(path)} is of another version of the plugin: {message} This version is "
            f"{__version__}. Use the version that made the run, or take the key out "
            "of a copy of the run folder if it no longer matters.")


def find_checkpoint(folder: Path) -> Path:
    """A run's last checkpoint: the one it names itself, else the newest but the best one.

    Where the one that it names is gone, a warning says which is taken.

    Raises:
        RunError: there is none, or what the run names is no file of its folder.
    """
    named = _named_checkpoint(folder)
    if named is not None and named.is_file():
        return named
    # the best one was chosen by the labels of the test set
    found = sorted(folder.glob("model_*.pth"),
                   key=lambda path: (path.name != "model_best.pth", os.path.getmtime(path)))
    if not found:
        raise RunError(f"{printable(folder)} holds no checkpoint (model_*.pth). A run writes one "
                       "every SOLVER.CHECKPOINT_PERIOD epochs and at its end: wait for the first, "
                       "or name a file with --checkpoint (or its path in place of the run's).")
    if named is not None:
        logger.warning("The last checkpoint of %s, %s, is not there: %s is taken, the newest.",
                       printable(folder), printable(named.name), printable(found[-1].name))
    return found[-1]


def _named_checkpoint(folder: Path) -> Path | None:
    """What ``last_checkpoint`` names; None if there is no such file."""
    tag = folder / "last_checkpoint"
    if not tag.is_file():
        return None
    name = tag.read_text(errors="replace").strip()
    # a path would lead out of the folder, which may come from someone else
    if name in ("", ".", "..") or any(sign in name for sign in "/\\\0"):
        raise RunError(f"{printable(tag)} is damaged: it says {name[:80]!r}, and not which "
                       "model_*.pth beside it is the last. Write that name into it, or remove it "
                       "for the newest.")
    return folder / name


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint.

    Raises:
        RunError: no file, or a damaged one.
    """
    if not path.is_file():
        raise RunError(f"The checkpoint {printable(path)} is not a file: check --checkpoint, or "
                       "the path that was given.")
    try:
        content = load_tensors(path)
    except (OSError, ValueError) as error:
        others = sorted(p.name for p in path.parent.glob("model_*.pth") if p.name != path.name)
        advice = (f"Name another with --checkpoint: {printable(', '.join(others))} (or its path in "
                  "place of the run's)." if others else "The folder holds no other.")
        raise RunError(f"The checkpoint cannot be read: {error} {advice}") from error
    return content if isinstance(content, dict) else {}


def memory_bank(content: Mapping[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """The memory bank in a checkpoint.

    Args:
        content: of the checkpoint ``path``.

    Returns:
        "features" (N, D), "labels" (N,), -1 for outliers, and "camids" (N,), and what else it has.

    Raises:
        RunError: there is none, or its parts do not fit together.
    """
    bank = content.get("memory_bank")
    if not isinstance(bank, dict):
        raise RunError(
            f"The checkpoint {printable(path)} holds no memory bank. It is of a supervised run, or "
            "a file of weights only; what a run learnt without labels is in that of a run with "
            "MODEL.META_ARCHITECTURE CAUReID.")
    features, *numbers = (bank.get(name) for name in BANK)
    if (not isinstance(features, torch.Tensor) or features.dim() != 2
            or not features.is_floating_point() or not torch.isfinite(features).all()
            or not all(isinstance(part, torch.Tensor) and part.dtype == torch.int64
                       and part.shape == features.shape[:1] for part in numbers)):
        raise RunError(f"The memory bank of the checkpoint {printable(path)} is not whole: it must "
                       f"hold {', '.join(BANK)} of as many images each, all finite, the last two "
                       "whole numbers. Name another with --checkpoint (or its path in place of "
                       "the run's).")
    for name, least, end in (("labels", -1, len(features)), ("camids", 0, MOST_CAMERAS)):
        part: torch.Tensor = bank[name]
        if len(part) and not least <= int(part.min()) <= int(part.max()) < end:
            raise RunError(
                f"The memory bank of the checkpoint {printable(path)} is damaged: its {name} go "
                f"from {int(part.min())} to {int(part.max())}, and must be from {least} to "
                f"{end - 1}. Name another with --checkpoint (or its path in place of the run's).")
    return bank


def without_singletons(labels: np.ndarray) -> np.ndarray:
    """Clusters of two images or more, numbered 0..K-1; all other images are outliers, -1.

    With CAUREID.LABELS bank the run gives each outlier a cluster of its own.
    """
    sizes = np.bincount(labels[labels >= 0], minlength=1)
    kept = (labels >= 0) & (sizes[np.maximum(labels, 0)] > 1)
    numbered = np.full(len(labels), -1)
    numbered[kept] = np.unique(labels[kept], return_inverse=True)[1]
    return numbered


def _kept_indicators(state: Mapping[str, Any]) -> dict[str, list[float]]:
    """The same from a checkpoint's run_state, which holds a figure's last 20 values."""
    try:
        return collect({key: [float(value) for value, _ in values]
                        for key, (_, values) in state["scalars"].items()})
    except (AttributeError, KeyError, TypeError, ValueError):  # not as a run saves it
        return collect({})


def read_verdict(folder: Path, content: Mapping[str, Any], cfg: CfgNode) -> RunVerdict:
    """Whether the training of a network went well, by what its run has logged until then.

    Where metrics.json does not tell all of that, the checkpoint's own figures are taken. Without
    those nothing good is known.

    Args:
        folder: of the run, whose metrics.json is read.
        content: of the network's checkpoint.
        cfg: config of the run.
    """
    rows, why = read_rows(folder / "metrics.json")
    bank, state = content.get("memory_bank"), content.get("run_state")
    state = state if isinstance(state, Mapping) else {}
    # whole epochs, steps of one, steps after the last whole one
    epoch, steps, done = content.get("epoch"), state.get("iters_per_epoch"), state.get("steps_done")
    if type(epoch) is type(steps) is int:  # what came later is of other checkpoints
        last = (epoch + 1) * steps
        end = last + (done if type(done) is int else 0)
        rows = [row for row in rows if row["iteration"] <= end]
        if not why and max((row["iteration"] for row in rows), default=-1) < last - 1:
            why = f"metrics.json ends before step {last}, at which the checkpoint was saved."
    camids = bank.get("camids") if isinstance(bank, Mapping) else None
    cameras = len(torch.unique(camids)) if isinstance(camids, torch.Tensor) else None
    figures = indicators(rows)
    if why and any((kept := _kept_indicators(state)).values()):
        figures, why = kept, ""
    found = judge(figures, cfg, num_cameras=cameras)
    if why and found.level != "bad":
        return RunVerdict(reason=f"{NO_VERDICT.reason[:-1]}: {why}")
    reasons = "; ".join(f"{finding.meaning} ({finding.name} {finding.figure})"
                        for finding in found.findings if finding.level == found.level)
    return RunVerdict(found.level, f"{found.summary[:-1]}: {reasons}." if reasons else
                      found.summary)


def write_statistics(folder: Path, fingerprint: str, statistics: PairStatistics) -> Path:
    """Keeps pair statistics in a run folder, beside its other networks' (checkpoints).

    Args:
        folder: of the run.
        fingerprint: of the network that they are of, whose former ones they replace.
        statistics: to keep.

    Returns:
        the file.

    Raises:
        RunError: the file that is there is damaged.
        OSError: it cannot be written.
    """
    path = folder / STATISTICS
    networks = {**_read_networks(path), fingerprint: statistics.to_json()}
    content = json.dumps({"format": STATISTICS_FORMAT, "networks": networks}).encode("ascii")
    write_atomically(path, content)
    return path


def read_statistics(folder: Path, fingerprint: str) -> PairStatistics | None:
    """What :func:`write_statistics` kept; None if there is nothing for this network.

    Raises:
        RunError: the file is damaged, or of another version.
    """
    path = folder / STATISTICS
    kept = _read_networks(path).get(fingerprint)
    if kept is None:
        return None
    try:
        return PairStatistics.from_json(kept)
    except ValueError as error:
        raise RunError(_damaged(path, error)) from error


def _read_networks(path: Path) -> dict[str, Any]:
    """Pair statistics by the fingerprint of their network."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("ascii"))
        known = content["format"]
        if known == 1:  # of one network
            return {content["fingerprint"]: content["statistics"]}
        if known == STATISTICS_FORMAT:
            return dict(content["networks"])
    except (KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        raise RunError(_damaged(path, error)) from error
    raise RunError(f"{printable(path)} has format {known!r}, and this version reads "
                   f"{STATISTICS_FORMAT}: use the version that wrote it, or remove it and measure "
                   "anew with caureid threshold.")


def _damaged(path: Path, error: Exception) -> str:
    return (f"{printable(path)} is damaged ({with_full_stop(error)[:-1]}): remove it, and make it "
            "again with caureid threshold.")
