"""Which config keys may differ when a run goes on from its checkpoint. Knows no FastReID."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

TAKEN_OVER = (
    # how long, how often, and what is measured
    "SOLVER.MAX_EPOCH", "SOLVER.CHECKPOINT_PERIOD", "TEST.*", "DATASETS.TESTS",
    "CAMERA_FOLDER.QUERY", "CAMERA_FOLDER.GALLERY", "CAUREID.DIAGNOSTICS",
    # against numbers that have become NaN
    "SOLVER.BASE_LR", "SOLVER.AMP.ENABLED", "SOLVER.CLIP_GRADIENTS.*",
    # where files lie; the checkpoint knows its images by their names and cameras
    "OUTPUT_DIR", "CAMERA_FOLDER.ROOT", "CAMERA_FOLDER.CSV", "CAMERA_FOLDER.LEAVE_OUT",
    # what the machine has
    "DATALOADER.NUM_WORKERS", "MODEL.DEVICE", "CUDNN_BENCHMARK", "DETERMINISTIC",
    "CAUREID.CLUSTER.SEARCH", "CAUREID.CLUSTER.RECALL", "CAUREID.CLUSTER.MAX_MEMORY",
)
"""Patterns of keys whose new value holds from the checkpoint on."""

NOT_TAKEN_OVER = ("TEST.PRECISE_BN.*",)
"""Exceptions: these statistics are trained on."""

OF_THE_START = (
    "MODEL.WEIGHTS", "MODEL.BACKBONE.PRETRAIN", "MODEL.BACKBONE.PRETRAIN_PATH",
    "TEST.EVAL_AT_START",
)
"""Keys that say what was done before the first step: weights may be left out, not set anew."""

EVALUATION = ("TEST.*", "DATASETS.TESTS", "CAMERA_FOLDER.QUERY", "CAMERA_FOLDER.GALLERY")
NOT_OF_THE_METRIC = ("TEST.EVAL_PERIOD", "TEST.IMS_PER_BATCH", "TEST.EVAL_AT_START")

MOST_NAMED = 5  # keys in an error
LONGEST = 100  # characters of a value in a message
COUNTED = ("MODEL.HEADS.CAMSEP.NUM_CAMERAS", "MODEL.HEADS.NUM_CLASSES")

Flat = dict[str, Any]
Changes = dict[str, tuple[Any, Any]]


def flatten(section: Mapping[str, Any], prefix: str = "") -> Flat:
    """{"SOLVER.BASE_LR": 0.001, ...} of a config's nested mapping."""
    flat: Flat = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def differences(before: Flat, now: Flat, defaults: Flat) -> Changes:
    """{key: (value before, value now)} of the keys that differ.

    A key that did not exist before had its default; of one without a default nothing is known.

    Args:
        before: the run's config, flat.
        now: the config it is to go on with.
        defaults: of keys that ``before`` may not have.
    """
    known = {**{key: value for key, value in defaults.items() if key in now}, **before}
    return {key: (known[key], value) for key, value in now.items()
            if key in known and known[key] != value}


def refused(changes: Changes, schedule: str) -> dict[str, str]:
    """{key: why it cannot change, "" for the rule itself} of those that cannot.

    Args:
        changes: of :func:`differences`.
        schedule: SOLVER.SCHED.
    """
    problems = {}
    for key, (before, now) in changes.items():
        if key in OF_THE_START:
            if now and key != "TEST.EVAL_AT_START":
                problems[key] = "a run that goes on does not read it"
        elif not _matches(key, TAKEN_OVER) or _matches(key, NOT_TAKEN_OVER):
            problems[key] = "where nobody set it: the training images are others" * (key in COUNTED)
        elif key == "SOLVER.MAX_EPOCH" and schedule != "MultiStepLR":
            problems[key] = f"SOLVER.SCHED {schedule} spans the whole run"
        elif key == "SOLVER.BASE_LR" and not (before > 0 and now > 0):
            problems[key] = "learning rates can only be multiplied"
    return problems


def refusal(problems: Mapping[str, str], changes: Changes, folder: str) -> str:
    """The sentence that names the keys, both values and what to do.

    Args:
        problems: of :func:`refused`, at least one.
        changes: of :func:`differences`.
        folder: the run's.
    """
    listed = [f"{key} is {short(changes[key][1])} here and {short(changes[key][0])} there"
              + (f" ({why})" if why else "") for key, why in list(problems.items())[:MOST_NAMED]]
    more = len(problems) - MOST_NAMED
    listed += [f"{more} more differ"] if more > 0 else []
    return (f"The run in {folder} goes on with the config it began with (its config.yaml), and "
            f"{', '.join(listed)}: give the run's own values, or begin anew in another OUTPUT_DIR "
            "(MODEL.WEIGHTS takes over what was learnt).")


def kept(changes: Changes) -> Flat:
    """The run's values of keys that play no part any more, for its config.yaml."""
    return {key: before for key, (before, _) in changes.items() if key in OF_THE_START}


def changes_metric(changes: Changes) -> bool:
    """Whether what is evaluated from now on cannot be compared with what was before."""
    return any(_matches(key, EVALUATION) and key not in NOT_OF_THE_METRIC for key in changes)


def short(value: object) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)
