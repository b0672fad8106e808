"""``caureid index``: a folder of crops into an index."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from .common import FOLDER, Command, config_keys, network


def _there(ctx: click.Context, param: click.Parameter, folder: Path) -> Path:
    if not ctx.params["prune"]:  # which is also for a folder that is gone
        FOLDER.convert(folder.expanduser(), param, ctx)
    return folder


def _place(ctx: click.Context, param: click.Parameter, index: Path) -> Path:
    if not index.absolute().parent.is_dir():
        raise click.BadParameter(f"the folder {index.absolute().parent} does not exist.")
    if index.exists() and not index.is_dir():
        raise click.BadParameter(f"{index} is a file, and an index is a folder.")
    return index


@click.command("index", cls=Command)
@network
@click.argument("folder", type=click.Path(path_type=Path), callback=_there)
@click.option("--index", required=True, type=click.Path(path_type=Path), metavar="INDEX",
              callback=_place, help="folder of the index, made if there is none")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, metavar="N",
              help="images to embed at once")
@click.option("--prune", is_flag=True, is_eager=True,
              help="remove images from the index that are gone from FOLDER; all of them, if FOLDER "
                   "itself is gone")
@click.option("--standardize-by-camera/--no-standardize-by-camera", default=None,
              help="whether searches standardise features within each camera  [default: as the "
                   "index has it; a new one does not]")
@config_keys
def command(**options: Any) -> int:
    """Puts the images below a folder into an index, which caureid search searches.

    \b
        caureid index logs/my-run crops --index crops.index
        caureid index logs/my-run crops --index crops.index \\
            CAMERA_FOLDER.CAMERA pattern CAMERA_FOLDER.PATTERN '_c([0-9]+)'

    Run again, the command embeds only images that are new or have changed (size, time), and goes
    on where it was interrupted. Several folders can go into one index, which has each image once.

    Config keys say where cameras are read from: CAMERA_FOLDER.CAMERA, LEVEL, PATTERN and CSV, as
    for training. Without them, they are read as the run read its own folder, if it has one.
    Cameras that the index knows already are kept. CAMERA_FOLDER.SYSTEM_FOLDERS read also takes
    images in folders such as @eaDir.

    --standardize-by-camera helps a network that was not trained on these cameras. It can be given
    later, and undone by --no-standardize-by-camera.

    Exit status: 0; 1 if something could not be read; 130 after Ctrl-C, 75 after SIGTERM.
    """
    from ..search.fill import run

    return run(SimpleNamespace(**options))
