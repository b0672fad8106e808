"""``caureid search``: the crops of an index that are most like others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .common import Command, Several, Writable, namespace, network


@click.command("search", cls=Command)
@network
@click.argument("queries", nargs=-1, required=True, type=click.Path(path_type=Path),
                metavar="QUERY...")
@click.option("--index", required=True, type=click.Path(path_type=Path), metavar="INDEX",
              help="folder that caureid index has made with the same network")
@click.option("--top", type=click.IntRange(1, 1000), default=10, show_default=True, metavar="N",
              help="images to find for each query")
@click.option("--camera", cls=Several, metavar="NAME...", help="only images of these cameras")
@click.option("--without-camera", cls=Several, metavar="NAME...",
              help="no images of these cameras, that of the query for example")
@click.option("--query-camera", metavar="NAME",
              help="camera of the queries, for an index that standardises by camera  [default: not "
                   "known; by the statistics of all images]")
@click.option("--false-match-rate", metavar="RATE",
              type=click.FloatRange(0, 1, min_open=True, max_open=True),
              help="share of pairs of different people that may be taken for one  [default: 0.001, "
                   "or the lowest that the run's pairs can tell]")
@click.option("--despite-verdict", is_flag=True,
              help="tell same and different although the run's verdict is bad")
@click.option("--json", type=Writable(".json"), help="file to write, with all that was found")
@click.option("--picture", type=Writable(".png"), help="file to write, each query beside its hits")
def command(**options: Any) -> int:
    """Finds the images of an index that are most similar to query images.

    \b
        caureid search logs/my-run query.jpg --index crops.index --picture found.png
        caureid search logs/my-run a.jpg b.jpg --index crops.index --camera 1 2

    Each query gets a table: rank, score (the cosine of the two embeddings), whether that is above
    the threshold, camera and path. The threshold follows from pairs of images in the same and in
    different clusters of the training run. Where the run's verdict is bad, same or different is
    not told.

    The query's own file, and copies of it, are left out of the list where the index has them. An
    index that standardises by camera does so with the queries, and has no threshold.

    A query that cannot be read is named, the others are answered, and the exit status is 1.
    """
    from ..search.answers import run

    return run(namespace(**options))
