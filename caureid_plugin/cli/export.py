"""``caureid export``: a network as ONNX or TorchScript."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .common import Command, Writable, config_keys, namespace

# export.graph's and export.precision's, which import torch; a test compares them
INPUTS = ("rgb255", "imagenet")
PRECISIONS = ("fp32", "fp16", "int8")


@click.command("export", cls=Command)
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN_FOLDER")
@click.option("--output", required=True, type=Writable(".onnx", ".torchscript"), metavar="FILE",
              help="file to write, .onnx or .torchscript")
@click.option("--input", type=click.Choice(INPUTS), default=INPUTS[0], show_default=True,
              help="what the file takes: RGB 0..255, or as ImageNet's mean and deviation leave it")
@click.option("--precision", type=click.Choice(PRECISIONS), default=PRECISIONS[0],
              show_default=True, help="of an ONNX file's arithmetic")
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path),
              metavar="FOLDER", help="crops to compare with, and for int8 to calibrate by; some "
                                     "are drawn")
@click.option("--despite-verdict", is_flag=True,
              help="write the suggested threshold into the sidecar although the run's verdict is "
                   "bad")
@config_keys
def command(**options: Any) -> None:
    """Writes the network of a run as a file for programs without the plugin.

    \b
        caureid export logs/my-run --output person.onnx
        caureid export logs/my-run --output person.onnx --input imagenet     # for trackers
        caureid export logs/my-run --output small.onnx --precision int8 --images crops

    RUN_FOLDER is the OUTPUT_DIR of a run, or a checkpoint in one. The file takes images
    (B, 3, H, W) for any B and gives embeddings of length 1. It is run before it is kept, and its
    embeddings are compared with PyTorch's. Beside it goes a sidecar, person.onnx.json, that says
    what goes in and what comes out.
    """
    from ..export.writing import run

    run(namespace(**options))
