"""``caureid check``: images before training on them."""

from __future__ import annotations

import os
from typing import Any

import click

from .common import Command, Writable, config_file, config_keys, namespace


@click.command("check", cls=Command)
@config_file
@click.option("--output", type=Writable(".html"), help="page to write, with pictures")
@click.option("--json", type=Writable(".json"), help="file for all figures and lists")
@click.option("--empty", type=Writable(".csv"),
              help="table of the images that show nothing, for CAMERA_FOLDER.LEAVE_OUT")
@click.option("--workers", type=click.IntRange(1), default=min(8, os.cpu_count() or 1),
              show_default="one for each core, at most 8", help="threads that read images")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True,
              help="of the choice of pictures for the page; the network's is SEED")
@click.option("--no-network", is_flag=True,
              help="leave out time, memory and the first clustering")
@config_keys
def command(**options: Any) -> int:
    """Looks at the images of a config before anything is trained on them.

    \b
        caureid check --config-file OwnData/caureid_cpu.yml --output check.html \\
            CAMERA_FOLDER.ROOT crops

    Every file of DATASETS.NAMES is read as training reads it. The report says how many images each
    camera has, how large they are, which files cannot be read, which show nothing, which are copies
    of others and which cameras look like one. Then the network that training starts from tells how
    long an epoch takes, whether clustering fits into memory and what the first clustering finds.
    --no-network leaves that out. No identity is used.

    Advice and a verdict stand at the end. Exit status: 0 for PASS, with or without advice; 1 for
    FAIL.
    """
    from ..check.findings import run

    return run(namespace(**options))
