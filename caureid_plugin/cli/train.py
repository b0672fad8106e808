"""``caureid train``: training and evaluation from a config file."""

from __future__ import annotations

from typing import Any

import click

from .common import Command, config_file, config_keys, namespace


# no errors: training.run tells a user's mistake from a bug, whose traceback is wanted
@click.command("train", cls=Command, errors=())
@config_file
@click.option("--resume", is_flag=True, help="go on from the last checkpoint in OUTPUT_DIR")
@click.option("--eval-only", is_flag=True, help="evaluate MODEL.WEIGHTS and train nothing")
@click.option("--num-gpus", type=click.IntRange(1), default=1, show_default=True, metavar="N",
              help="GPUs of each machine; without CUDA as many processes on the CPU")
@click.option("--num-machines", type=click.IntRange(1), default=1, show_default=True, metavar="N",
              help="machines of the run")
@click.option("--machine-rank", type=click.IntRange(0), default=0, show_default=True, metavar="N",
              help="number of this machine, from 0")
@click.option("--dist-url", metavar="URL",
              help="where the processes meet: tcp://HOST:PORT, or auto for a free port of this "
                   "machine (default: a port of this user)")
@click.option("--join-timeout", type=click.FloatRange(0, min_open=True), default=300.0,
              show_default=True, metavar="SECONDS",
              help="for the processes of all machines to start")
@config_keys
def command(**options: Any) -> None:
    """Trains or evaluates from a config file, as FastReID's tools/train_net.py does.

    \b
        caureid train --config-file Market/caureid.yml OUTPUT_DIR logs/market
        caureid train --config-file Market/caureid.yml --resume OUTPUT_DIR logs/market
        caureid train --config-file Market/caureid.yml --eval-only \\
            MODEL.WEIGHTS logs/market/model_final.pth
        caureid train --config-file Market/caureid.yml --num-gpus 2
        torchrun --nproc-per-node 2 -m caureid_plugin train --config-file Market/caureid.yml

    For images of your own, without labels, take OwnData/caureid.yml with CAMERA_FOLDER.ROOT FOLDER.
    Other datasets lie in the folder that the environment variable FASTREID_DATASETS names.
    """
    from ..engine import training

    training.run(namespace(**options))
