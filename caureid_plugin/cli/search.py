"""``caureid search``: the crops of an index that are most like others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from .common import Command, Several, Writable, index, network


@click.command("search", cls=Command)
@network
@click.argument("queries", nargs=-1, required=True, type=click.Path(path_type=Path),
                metavar="QUERY...")
@index
@click.option("--top", type=click.IntRange(1, 1000), default=10, show_default=True, metavar="N",
              help="images to find for each query")
@click.option("--camera", cls=Several, metavar="NAME...", help="only images of these cameras")
@click.option("--without-camera", cls=Several, metavar="NAME...",
              help="no images of these cameras, for example the query's")
@click.option("--query-camera", metavar="NAME",
              help="camera of the queries, for an index that standardises by camera  [default: "
                   "unknown, the statistics of all images are used]")
@click.option("--false-match-rate", metavar="RATE",
              type=click.FloatRange(0, 1, min_open=True, max_open=True),
              help="share of pairs of different people that may be taken for the same person  "
                   "[default: 0.001, or the lowest that was measured]")
@click.option("--despite-verdict", is_flag=True,
              help="show same and different although training went wrong")
@click.option("--json", type=Writable(".json"), help="file to write, with all results")
@click.option("--picture", type=Writable(".png"),
              help="picture to write, each query beside its results")
def command(**options: Any) -> int:
    """Finds the images of an index that are most similar to each query image.

    \b
        caureid search logs/my-run query.jpg --index crops.index --picture found.png
        caureid search logs/my-run a.jpg b.jpg --index crops.index --camera 1 2

    Each query gets a table: rank, score, same or different, camera and path. The score is the
    cosine of the two embeddings. "Same" means a score above the threshold, which was measured on
    pairs of training images (see caureid threshold). If training went wrong, it is not shown.

    The query's own file, and copies of it, are left out of the table. An index that standardises by
    camera has no threshold.

    If a query cannot be read, the others are answered, and the exit status is 1.
    """
    from ..search.answers import run

    return run(SimpleNamespace(**options))
