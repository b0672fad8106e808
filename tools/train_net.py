#!/usr/bin/env python3
"""FastReID's training script with the CA-UReID plugin.

    tools/train_net.py --config-file configs/Market/caureid.yml [KEY VALUE ...]
    tools/train_net.py --config-file ... --resume          # go on from OUTPUT_DIR
    tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS .../model_final.pth
    tools/train_net.py --config-file ... --num-gpus 2      # 2 CPU processes without CUDA
    torchrun --nproc-per-node 2 tools/train_net.py --config-file ...   # the same

Images of your own, without labels: configs/OwnData/caureid.yml with CAMERA_FOLDER.ROOT FOLDER.
Other datasets are looked for below the folder named by the environment variable FASTREID_DATASETS.
"""

import contextlib
import logging
import os
import re
import shlex
import sys

import caureid_plugin  # first: it makes the toolbox importable and registers the plugin
from caureid_plugin.engine import EpochLines, check_identities, shortened_log
from caureid_plugin.engine.setup import to_evaluate
from caureid_plugin.launcher import PortError, ProcessError
from caureid_plugin.signals import EXIT_INTERRUPTED
from fastreid.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from fastreid.utils import comm

logger = logging.getLogger("fastreid.caureid")


class Mistake(ValueError):
    """What the user can mend, before training: it is said in one sentence, without a traceback."""


@contextlib.contextmanager
def mistakes():
    """Takes errors of the config, the data or the weights for the user's."""
    try:
        yield
    except ConnectionError:  # another process is gone, and says why
        raise
    except (KeyError, OSError, ValueError) as error:
        # a KeyError shows its text in quotes
        raise Mistake(str(error.args[0] if type(error) is KeyError else error)) from error


def setup(args):
    """Builds the frozen config from the file and the command line, and starts the log."""
    if args.config_file and not os.path.isfile(args.config_file):
        args.config_file = caureid_plugin.get_config_file(args.config_file)
    decided = []  # before there is a log
    cfg = caureid_plugin.load_config(args.config_file, args.opts,
                                     lambda *notice: decided.append(notice),
                                     training=not args.eval_only)
    cfg.freeze()
    with shortened_log(cfg, results=args.eval_only):
        default_setup(cfg, args)
    for level, text in decided:
        logger.log(level, text)
    return cfg


def is_unsupervised(cfg):
    """Whether the config trains from camera labels alone."""
    return cfg.MODEL.META_ARCHITECTURE == "CAUReID" and caureid_plugin.needs_memory(cfg)


def build_trainer(cfg):
    """DefaultTrainer with the plugin's hooks; supervised configs get the toolbox's own ones.

    Raises:
        ValueError: identities are needed and the training images have none.
    """
    unsupervised = is_unsupervised(cfg)
    if not unsupervised:
        check_identities(cfg, f"Supervised training ({cfg.MODEL.META_ARCHITECTURE} with the "
                              f"losses {list(cfg.MODEL.LOSSES.NAME)})")
    elif cfg.CAUREID.DIAGNOSTICS:
        check_identities(cfg, "CAUREID.DIAGNOSTICS True")
    trainer = DefaultTrainer(cfg)
    trainer.register_hooks([caureid_plugin.EvalAtStart(cfg.TEST.EVAL_AT_START)])
    if unsupervised:
        trainer.register_hooks([caureid_plugin.UnsupervisedHook(cfg)])
    else:
        logger.info("Supervised training: %s with %s uses the identity labels of %s.",
                    cfg.MODEL.META_ARCHITECTURE, list(cfg.MODEL.LOSSES.NAME),
                    list(cfg.DATASETS.NAMES))
        if "CameraSeparationLoss" in cfg.MODEL.LOSSES.NAME:
            images = trainer.data_loader.dataset
            caureid_plugin.check_cameras(cfg, len(images), len(images.cams))
    trainer.register_hooks([EpochLines(cfg)])  # the last: it shows what the others log
    return trainer


def evaluate(cfg):
    """Evaluates MODEL.WEIGHTS on DATASETS.TESTS.

    Raises:
        Mistake: there is no test set; the network cannot be built, or not take the weights.
    """
    with mistakes():
        if not cfg.DATASETS.TESTS:
            raise ValueError("DATASETS.TESTS is empty, there is nothing to evaluate on: name a "
                             "dataset. For CameraFolder set CAMERA_FOLDER.QUERY and GALLERY too.")
        for name in cfg.DATASETS.TESTS:
            _ = caureid_plugin.build_dataset(cfg, name).query  # its errors are the user's as well
        cfg = to_evaluate(cfg)
        model = DefaultTrainer.build_model(cfg)
        if cfg.MODEL.WEIGHTS:
            caureid_plugin.compat.load_weights(model, cfg.MODEL.WEIGHTS)
        else:
            logger.warning("MODEL.WEIGHTS is empty: evaluating a network with random weights.")
    return DefaultTrainer.test(cfg, model)


def main(args):
    with mistakes():
        cfg = setup(args)
    if args.eval_only:
        return evaluate(cfg)
    with mistakes():
        trainer = build_trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
    results = trainer.train()
    if is_unsupervised(cfg) and comm.is_main_process():
        logger.info("Look at it: tools/report.py %s", shlex.quote(cfg.OUTPUT_DIR))
    return results


def run(args):
    """Runs :func:`main` in every process.

    Raises:
        SystemExit: with the sentence to say of a mistake.
    """
    if not args.config_file:
        misplaced = [word for word in args.opts if word.endswith((".yml", ".yaml"))]
        sys.exit("train_net.py: --config-file is missing" + (
            f": write it before {misplaced[0]}." if misplaced else
            ", the file of a config, such as configs/OwnData/caureid.yml or Market/caureid.yml."))
    try:
        launch(main, args.num_gpus, num_machines=args.num_machines,
               machine_rank=args.machine_rank, dist_url=args.dist_url, args=(args,),
               join_seconds=args.join_timeout)
    except (Mistake, PortError) as error:
        sys.exit(f"train_net.py: {error}")
    except KeyboardInterrupt:
        if not args.eval_only:
            raise
        print("train_net.py: the evaluation was interrupted, nothing is changed: the same command "
              "makes it again.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except ProcessError as error:  # which ends with the traceback of one process
        mistake = re.search(rf"^\S*\b{Mistake.__name__}: (.*)\Z", str(error), re.M | re.S)
        if not mistake:
            raise
        sys.exit(f"train_net.py: {mistake[1]}")


if __name__ == "__main__":
    parser = default_argument_parser()
    parser.add_argument("--join-timeout", type=float, default=300.0, metavar="SECONDS",
                        help="for the processes of all machines to start")
    args = parser.parse_args()
    print("Command line:", " ".join(sys.argv))
    run(args)
