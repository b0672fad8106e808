"""``caureid threshold``: from which similarity on two crops are one person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .common import Command, Writable, config_keys, namespace


@click.command("threshold", cls=Command)
@click.argument("run_folder", type=click.Path(path_type=Path), metavar="RUN_FOLDER")
@click.option("--checkpoint", type=click.Path(path_type=Path),
              help="another than the last one of the run")
@click.option("--images", type=click.IntRange(1), default=4000, show_default=True, metavar="N",
              help="training images to embed, about")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="of the draw")
@click.option("--picture", type=Writable(".png"), metavar="FILE.png",
              help="histograms  [default: threshold.png in the run folder]")
@click.option("--index-size", type=click.IntRange(1), metavar="N",
              help="images of the index of which it is said how much is right  [default: as many "
                   "as the training set has]")
@click.option("--true-labels", "--truth", is_flag=True,
              help="diagnostic: error rates and what is right by identities, where those are known")
@config_keys
def command(**options: Any) -> None:
    """Measures from which similarity on two images of a run are taken for the same person's.

    \b
        caureid threshold logs/my-run

    Embeds training images of whole clusters, drawn at random, with the run's last checkpoint, and
    compares pairs of one cluster and of two. What comes out is kept in the run folder, in
    pair_statistics.json, where load_run, caureid index and caureid export find it. No label of an
    identity is read. Config keys say where the data lie now, if that has changed.

    "Right" is the share of what a query finds above the threshold that is of its person, from other
    cameras and from the query's own. It is of an index of as many images as the training set has,
    or --index-size, in which people have as many images as in training.

    --true-labels is a diagnostic: the same by the identities of the training images and of the
    labelled test set (DATASETS.TESTS), where those are known. It changes nothing of what is kept.
    """
    from ..search.pairs import run

    run(namespace(**options))
