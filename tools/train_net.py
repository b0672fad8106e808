#!/usr/bin/env python3
"""FastReID's training script with the CA-UReID plugin.

    tools/train_net.py --config-file configs/Market/caureid.yml [KEY VALUE ...]
    tools/train_net.py --config-file ... --resume          # go on from OUTPUT_DIR
    tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS model_final.pth
    tools/train_net.py --config-file ... --num-gpus 2      # 2 CPU processes without CUDA

Datasets are looked for below the folder named by the environment variable FASTREID_DATASETS.
"""

import os
import sys

import caureid_plugin  # first: it makes the toolbox importable and registers the plugin

from fastreid.config import get_cfg
from fastreid.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from fastreid.utils.checkpoint import Checkpointer


def setup(args):
    """Builds the frozen config from the file and the command line, and starts the log."""
    cfg = get_cfg()
    caureid_plugin.add_caureid_config(cfg)
    if args.config_file:
        if not os.path.isfile(args.config_file):
            args.config_file = caureid_plugin.get_config_file(args.config_file)
        cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def build_trainer(cfg):
    """DefaultTrainer with the plugin's hooks; supervised configs get the toolbox's own ones."""
    trainer = DefaultTrainer(cfg)
    trainer.register_hooks([caureid_plugin.EvalAtStart(cfg.TEST.EVAL_AT_START)])
    if cfg.MODEL.META_ARCHITECTURE == "CAUReID" and caureid_plugin.needs_memory(cfg):
        trainer.register_hooks([caureid_plugin.UnsupervisedHook(cfg)])
    return trainer


def evaluate(cfg):
    """Evaluates MODEL.WEIGHTS on DATASETS.TESTS."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.PRETRAIN = False
    model = DefaultTrainer.build_model(cfg)
    Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    return DefaultTrainer.test(cfg, model)


def main(args):
    cfg = setup(args)
    if args.eval_only:
        return evaluate(cfg)
    trainer = build_trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    print("Command line:", " ".join(sys.argv))
    launch(main, args.num_gpus, num_machines=args.num_machines, machine_rank=args.machine_rank,
           dist_url=args.dist_url, args=(args,))
