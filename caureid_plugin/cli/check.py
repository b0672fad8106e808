"""``caureid check``: images before training on them."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import click

from .common import Command, Writable, config_file, config_keys


@click.command("check", cls=Command)
@config_file
@click.option("--output", type=Writable(".html"), help="page to write, with pictures")
@click.option("--json", type=Writable(".json"), help="file to write, with all figures and lists")
@click.option("--empty", type=Writable(".csv"),
              help="table to write, of the images that show nothing, for "
                   "CAMERA_FOLDER.LEAVE_OUT")
@click.option("--workers", type=click.IntRange(1), default=min(8, os.cpu_count() or 1), metavar="N",
              help="threads that read images  [default: one for each core, at most 8]")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, metavar="N",
              help="random seed that chooses the pictures of the page")
@click.option("--no-network", is_flag=True,
              help="check only the images, without the network")
@config_keys
def command(**options: Any) -> int:
    """Checks training images before anything is trained on them.

    \b
        caureid check --config-file OwnData/caureid_cpu.yml --output check.html \\
            CAMERA_FOLDER.ROOT crops

    It reads every image as training does. It reports the number of images of each camera, and their
    sizes. It finds files that cannot be read, images that show nothing, copies, and cameras
    that look like one camera.

    Then it runs the network that training starts from. It reports how long an epoch takes, whether
    clustering fits into memory, and what the first clustering finds. It uses no identities.

    The report ends with advice and a verdict. Exit status: 0 for PASS, with or without advice; 1
    for FAIL.
    """
    from ..check.findings import run

    return run(SimpleNamespace(**options))
