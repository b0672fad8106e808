"""``caureid index``: a folder of crops into an index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .common import Command, config_keys, namespace, network


@click.command("index", cls=Command)
@network
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--index", required=True, type=click.Path(path_type=Path), metavar="INDEX",
              help="folder of the index, made if there is none")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, metavar="N",
              help="images that the network takes at once")
@click.option("--prune", is_flag=True,
              help="remove images from the index that are gone from FOLDER, all of them if FOLDER "
                   "is gone itself")
@click.option("--standardize-by-camera/--no-standardize-by-camera", default=None,
              help="let searches standardise features within each camera, or not  [default: as the "
                   "index was made; a new one does not]")
@config_keys
def command(**options: Any) -> int:
    """Embeds the images below a folder into an index, which ``caureid search`` searches.

    \b
        caureid index logs/my-run crops --index crops.index \\
            CAMERA_FOLDER.CAMERA pattern CAMERA_FOLDER.PATTERN '_c([0-9]+)'

    Images that have not changed since (size, time) are left as they are. A command that was
    interrupted goes on when it is given again. Further folders go into the same index, which has
    each image once.

    The CAMERA_FOLDER keys say where cameras are read from. Without any, they are read as the run
    read those of its own folder, if it was trained on one; cameras that the index has already
    are kept.

    --standardize-by-camera helps a network that was not trained on these cameras. It can be given
    later, and taken back.

    Exit status: 0; 1 if something could not be read; 130 after Ctrl-C, 75 after SIGTERM.
    """
    from ..search.fill import run

    return run(namespace(**options))
