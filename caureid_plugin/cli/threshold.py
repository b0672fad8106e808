"""``caureid threshold``: from which similarity on two crops are one person."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import click

from .common import Command, Writable, checkpoint, config_keys, run_folder


@click.command("threshold", cls=Command)
@run_folder
@checkpoint
@click.option("--images", type=click.IntRange(1), default=4000, show_default=True, metavar="N",
              help="approximate number of training images to embed")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N",
              help="random seed that chooses the images")
@click.option("--picture", type=Writable(".png"),
              help="picture to write, of both kinds of pairs  [default: threshold.png in "
                   "RUN_FOLDER]")
@click.option("--index-size", type=click.IntRange(1), metavar="N",
              help='size of the index that the column "right" is for  [default: as many images '
                   "as the training set has]")
@click.option("--true-labels", "--truth", is_flag=True,
              help="also measure by true identities where they are known, for studies")
@config_keys
def command(**options: Any) -> None:
    """Measures the similarity above which two images are taken for the same person.

    \b
        caureid threshold logs/my-run
        caureid threshold logs/my-run --index-size 100000

    It embeds random training images with the run's last checkpoint. It compares pairs of the same
    cluster and pairs of different clusters. The result is kept in pair_statistics.json in the run
    folder, where caureid index and caureid export find it. Without --true-labels, it
    reads no identities.

    The column "right" is for a search in an index of --index-size images. It is the share of
    images above the threshold that show the person of the query. The first figure is for other
    cameras than the query's, the second for its own. It assumes that people have as many images in
    the index as in training.

    --true-labels adds the same figures by the identities of the training images and of the labelled
    test set (DATASETS.TESTS). It does not change what is kept.

    If the images have been moved, config keys say where they are now.
    """
    from ..search.pairs import run

    run(SimpleNamespace(**options))
