"""``caureid weights``: plain tensors out of a file of weights."""

from __future__ import annotations

from pathlib import Path

import click

from .common import Command, Writable


@click.command("weights", cls=Command)
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("output", type=Writable(), metavar="OUTPUT")
def command(file: Path, output: Path) -> None:
    """Takes the tensors out of a file of weights without running what else it asks for.

    \b
        caureid weights checkpoint.pth weights.pth

    For files that are refused because they hold more than tensors and plain values: NumPy scalars,
    an argparse.Namespace, a whole network of torch.save(model, ...). Classes and functions that
    the file names are neither imported nor called. OUTPUT holds only tensors, by their names; it
    goes into MODEL.BACKBONE.PRETRAIN_PATH or MODEL.WEIGHTS.
    """
    from ..common.weights import extract

    click.echo(extract(file, output))
