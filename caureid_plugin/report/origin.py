"""How a run was made: its most important settings, and the command that started it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from fastreid.config import CfgNode

from ..common.text import printable

KEYS = """
DATASETS.NAMES DATASETS.TESTS MODEL.META_ARCHITECTURE MODEL.BACKBONE.NAME MODEL.BACKBONE.DEPTH
MODEL.BACKBONE.PRETRAIN MODEL.BACKBONE.PRETRAIN_PATH MODEL.WEIGHTS MODEL.HEADS.CAMSEP.ATTENTION
MODEL.LOSSES.NAME INPUT.SIZE_TRAIN INPUT.SIZE_TEST SOLVER.IMS_PER_BATCH DATALOADER.NUM_INSTANCE
SOLVER.BASE_LR SOLVER.MAX_EPOCH CAUREID.LABELS CAUREID.MEMORY.MOMENTUM CAUREID.CLUSTER.CAMERA_AWARE
CAUREID.CLUSTER.EPS CAUREID.CLUSTER.MIN_SAMPLES
""".split()
NEIGHBOURS = {False: ("K1", "K2"), True: ("K1_INTRA", "K1_INTER", "K2_INTRA", "K2_INTER")}


def settings(cfg: CfgNode) -> list[tuple[str, str]]:
    """(key, value) of the settings that matter most, without those that are empty."""
    names = NEIGHBOURS[bool(cfg.CAUREID.CLUSTER.CAMERA_AWARE)]
    more = [f"CAUREID.CLUSTER.{name}" for name in names]
    found = []
    for key in [*KEYS, *more, "SEED"]:
        value = cfg
        for part in key.split("."):
            value = value[part]
        if isinstance(value, (list, tuple)):
            value = ", ".join(map(str, value))
        if value not in ("", ()):
            found.append((key, printable(str(value))))
    return found


def command(log: Path) -> str:
    """The command that started the run for the last time, from its log; "" if it is not there."""
    if not log.is_file():
        return ""
    found = re.findall(r"Command line arguments: (Namespace\(.*\))$",
                       log.read_text(errors="replace"), re.MULTILINE)
    try:
        calls = [ast.parse(text, mode="eval").body for text in found]
        started = [{word.arg: ast.literal_eval(word.value) for word in call.keywords}
                   for call in calls]
        options = [options for options in started if not options["eval_only"]][-1]
        words = [*(["--config-file", options["config_file"]] if options["config_file"] else []),
                 *(["--resume"] if options["resume"] else []),
                 *(["--num-gpus", options["num_gpus"]] if options["num_gpus"] != 1 else []),
                 *options["opts"]]
    except (AttributeError, IndexError, KeyError, SyntaxError, TypeError, ValueError):
        return ""
    return printable(" ".join(map(str, ["caureid train", *words])))
