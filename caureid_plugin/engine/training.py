"""What ``caureid train`` and tools/train_net.py do: train, resume, evaluate, in any processes."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from typing import Any

from fastreid.config import CfgNode
from fastreid.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from fastreid.utils import comm

from .. import compat
from ..common.errors import UserError
from ..common.signals import EXIT_INTERRUPTED, JOIN_SECONDS
from ..config_files import get_config_file
from ..data import build_dataset
from ..modeling import needs_memory
from . import (
    EpochLines,
    EvalAtStart,
    UnsupervisedHook,
    check_cameras,
    check_identities,
    load_config,
    shortened_log,
)
from .setup import to_evaluate

logger = logging.getLogger("fastreid.caureid")


def setup(args: Any) -> CfgNode:
    """Builds the frozen config from the file and the command line, and starts the log."""
    if args.config_file and not os.path.isfile(args.config_file):
        args.config_file = get_config_file(args.config_file)
    decided: list[tuple[int, str]] = []  # before there is a log
    cfg = load_config(args.config_file, args.opts, lambda *notice: decided.append(notice),
                      training=not args.eval_only)
    cfg.freeze()
    with shortened_log(cfg, results=args.eval_only):
        default_setup(cfg, args)
    for level, text in decided:
        logger.log(level, text)
    return cfg


def is_unsupervised(cfg: CfgNode) -> bool:
    """Whether the config trains from camera labels only."""
    return cfg.MODEL.META_ARCHITECTURE == "CAUReID" and needs_memory(cfg)


def build_trainer(cfg: CfgNode) -> DefaultTrainer:
    """DefaultTrainer with the plugin's hooks; supervised configs get the toolbox's own ones.

    Raises:
        ValueError: there is no training set, or identities are needed and its images have none.
    """
    if not cfg.DATASETS.NAMES:
        raise UserError("DATASETS.NAMES is empty, there is nothing to train on: name a dataset, "
                        "CameraFolder for images of your own.")
    unsupervised = is_unsupervised(cfg)
    if not unsupervised:
        check_identities(cfg, f"Supervised training ({cfg.MODEL.META_ARCHITECTURE} with the "
                              f"losses {list(cfg.MODEL.LOSSES.NAME)})")
    elif cfg.CAUREID.DIAGNOSTICS:
        check_identities(cfg, "CAUREID.DIAGNOSTICS True")
    trainer = DefaultTrainer(cfg)
    trainer.register_hooks([EvalAtStart(cfg.TEST.EVAL_AT_START)])
    if unsupervised:
        trainer.register_hooks([UnsupervisedHook(cfg)])
    else:
        logger.info("Supervised training: %s with %s uses the identity labels of %s.",
                    cfg.MODEL.META_ARCHITECTURE, list(cfg.MODEL.LOSSES.NAME),
                    list(cfg.DATASETS.NAMES))
        if "CameraSeparationLoss" in cfg.MODEL.LOSSES.NAME:
            images = trainer.data_loader.dataset
            check_cameras(cfg, len(images), len(images.cams))
    trainer.register_hooks([EpochLines(cfg)])  # the last: it shows what the others log
    return trainer


def evaluate(cfg: CfgNode) -> dict[str, Any]:
    """Evaluates MODEL.WEIGHTS on DATASETS.TESTS.

    Raises:
        UserError: there is no test set; the network cannot be built, or not take the weights.
    """
    if not cfg.DATASETS.TESTS:
        raise UserError("DATASETS.TESTS is empty, there is nothing to evaluate on: name a "
                        "dataset. For CameraFolder set CAMERA_FOLDER.QUERY and GALLERY too.")
    for name in cfg.DATASETS.TESTS:
        _ = build_dataset(cfg, name).query  # its errors come before the network is built
    cfg = to_evaluate(cfg)
    model = DefaultTrainer.build_model(cfg)
    if cfg.MODEL.WEIGHTS:
        compat.load_weights(model, cfg.MODEL.WEIGHTS)
    else:
        logger.warning("MODEL.WEIGHTS is empty: evaluating a network with random weights.")
    return DefaultTrainer.test(cfg, model)


def main(args: Any) -> Any:
    """Trains or evaluates in this process; returns the figures of the last evaluation."""
    cfg = setup(args)
    if args.eval_only:
        return evaluate(cfg)
    trainer = build_trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    results = trainer.train()
    if is_unsupervised(cfg) and comm.is_main_process():
        logger.info("Look at it: caureid report %s", shlex.quote(cfg.OUTPUT_DIR))
    return results


def argument_parser() -> argparse.ArgumentParser:
    """FastReID's parser of a command line, with ``--join-timeout``."""
    parser = default_argument_parser()
    parser.add_argument("--join-timeout", type=float, default=JOIN_SECONDS,
                        metavar="SECONDS", help="for the processes of all machines to start")
    return parser


def run(args: Any) -> None:
    """Runs :func:`main` in every process.

    Args:
        args: as :func:`argument_parser` gives them; ``dist_url`` None is that parser's default.

    Raises:
        UserError: of any process, what its user can put right.
        ProcessError: a process failed in another way; ends with its traceback.
        SystemExit: an evaluation was interrupted.
    """
    if not args.config_file:
        misplaced = [word for word in args.opts if word.endswith((".yml", ".yaml"))]
        raise UserError("--config-file is missing" + (
            f": write it before {misplaced[0]}." if misplaced else
            ", the file of a config, such as configs/OwnData/caureid.yml or Market/caureid.yml."))
    if args.dist_url is None:
        args.dist_url = argument_parser().get_default("dist_url")
    print("Command line:", " ".join(sys.argv))
    try:
        launch(main, args.num_gpus, num_machines=args.num_machines,
               machine_rank=args.machine_rank, dist_url=args.dist_url, args=(args,),
               join_seconds=args.join_timeout)
    except KeyboardInterrupt:
        if not args.eval_only:
            raise
        print("The evaluation was interrupted, nothing is changed: the same command makes it "
              "again.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
