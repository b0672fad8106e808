"""``caureid weights``: plain tensors out of a file of weights."""

from __future__ import annotations

from pathlib import Path

import click

from .common import Command, Writable


@click.command("weights", cls=Command)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("output", type=Writable(), metavar="OUTPUT")
def command(file: Path, output: Path) -> None:
    """Takes the tensors out of a file of weights, without running any code in it.

    \b
        caureid weights checkpoint.pth weights.pth

    Training refuses files that hold more than tensors and plain values: NumPy scalars, an
    argparse.Namespace, a whole network saved by torch.save(model, ...). This command neither
    imports nor calls what they name. OUTPUT holds only tensors, by name, for
    MODEL.BACKBONE.PRETRAIN_PATH or MODEL.WEIGHTS.
    """
    from ..common.weights import extract

    click.echo(extract(file, output))
