"""``caureid report``: a run as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .common import Command, Writable, config_keys, namespace

PAGE = Writable(".html", ".htm")


@click.command("report", cls=Command)
@click.argument("run_folder", type=click.Path(path_type=Path))
@click.option("--output", type=PAGE, help="page to write  [default: report.html in RUN_FOLDER]")
@click.option("--checkpoint", type=click.Path(path_type=Path),
              help="of the run  [default: the last one]")
@click.option("--images", type=click.IntRange(8), default=1500, show_default=True, metavar="N",
              help="training images on the map of the embeddings, at most")
@click.option("--seed", type=click.IntRange(0, 2 ** 32 - 1), default=1, show_default=True,
              help="of the choice of images")
@config_keys
def command(run_folder: Path, output: Path | None, **options: Any) -> None:
    """Makes one HTML file of a run: how training went, and what it learnt, to look at.

    \b
        caureid report logs/my-run
        caureid report logs/my-run --output page.html --images 500
        caureid report logs/my-run --checkpoint model_0004.pth MODEL.DEVICE cpu

    RUN_FOLDER is the OUTPUT_DIR of a run, which may be finished or still going on. The page holds
    its pictures and needs no network: curves, contact sheets of clusters and outliers, attention
    maps, a map of the embeddings, rank lists, and the settings.

    No identity of a training image is read. The identities of a labelled test set mark right and
    wrong in the rank lists. Datasets are looked for below the folder that the environment variable
    FASTREID_DATASETS names.
    """
    if output is None:
        output = run_folder / "report.html"
        if run_folder.is_dir():  # else said by what reads it
            output = PAGE.convert(output, None, click.get_current_context())
    from ..report.page import write_report

    write_report(namespace(run_folder=run_folder, output=output, **options))
