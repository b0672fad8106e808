"""``caureid report``: a run as one HTML page."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from .common import Command, Writable, checkpoint, config_keys, run_folder

PAGE = Writable(".html", ".htm")


@click.command("report", cls=Command)
@run_folder
@click.option("--output", type=PAGE, help="page to write  [default: report.html in RUN_FOLDER]")
@checkpoint
@click.option("--images", type=click.IntRange(8), default=1500, show_default=True, metavar="N",
              help="largest number of training images on the map of the embeddings")
@click.option("--seed", type=click.IntRange(0, 2 ** 32 - 1), default=1, show_default=True,
              metavar="N", help="random seed that chooses the images")
@config_keys
def command(run_folder: Path, output: Path | None, **options: Any) -> None:
    """Makes an HTML page that shows how the training of a run went, and what it learnt.

    \b
        caureid report logs/my-run
        caureid report logs/my-run --output page.html --images 500
        caureid report logs/my-run --checkpoint model_0004.pth MODEL.DEVICE cpu

    RUN_FOLDER is the OUTPUT_DIR of a run, which may still be going on. The page shows curves,
    clusters and outliers, attention maps, a map of the embeddings, rank lists and the settings. It
    is one file, with its pictures, and loads nothing from the internet.

    It reads no identities of training images. The identities of a labelled test set mark right and
    wrong in the rank lists. Public datasets are read from the folder in the environment variable
    FASTREID_DATASETS.
    """
    if output is None:
        output = PAGE.convert(run_folder / "report.html", None, click.get_current_context())
    from ..report.page import write_report

    write_report(SimpleNamespace(run_folder=run_folder, output=output, **options))
