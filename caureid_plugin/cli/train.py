"""``caureid train``: training and evaluation from a config file."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import click

from ..common.signals import JOIN_SECONDS
from .common import Command, config_file, config_keys


@click.command("train", cls=Command)
@config_file
@click.option("--resume", is_flag=True, help="go on from the last checkpoint in OUTPUT_DIR")
@click.option("--eval-only", is_flag=True, help="evaluate MODEL.WEIGHTS, without training")
@click.option("--num-gpus", type=click.IntRange(1), default=1, show_default=True, metavar="N",
              help="GPUs to use on each machine; without CUDA, processes on the CPU")
@click.option("--num-machines", type=click.IntRange(1), default=1, show_default=True, metavar="N",
              help="machines that train together")
@click.option("--machine-rank", type=click.IntRange(0), default=0, show_default=True, metavar="N",
              help="number of this machine, from 0")
@click.option("--dist-url", metavar="URL",
              help="where the processes meet: tcp://HOST:PORT, or auto for a free port of this "
                   "machine  [default: a port by the user's id]")
@click.option("--join-timeout", type=click.FloatRange(0, min_open=True), default=JOIN_SECONDS,
              show_default=True, metavar="SECONDS",
              help="how long to wait until all processes have started")
@config_keys
def command(**options: Any) -> None:
    """Trains or evaluates a network, as FastReID's tools/train_net.py does.

    \b
        caureid train --config-file Market/caureid.yml OUTPUT_DIR logs/market
        caureid train --config-file Market/caureid.yml --resume OUTPUT_DIR logs/market
        caureid train --config-file Market/caureid.yml --eval-only \\
            MODEL.WEIGHTS logs/market/model_final.pth
        caureid train --config-file Market/caureid.yml --num-gpus 2
        torchrun --nproc-per-node 2 -m caureid_plugin train --config-file Market/caureid.yml

    For your own images, without labels, take OwnData/caureid.yml and CAMERA_FOLDER.ROOT FOLDER.
    Public datasets are read from the folder in the environment variable FASTREID_DATASETS.
    """
    from ..engine import training

    training.run(SimpleNamespace(**options))
