"""``caureid export``: a network as ONNX or TorchScript."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import click

from .common import FOLDER, THERE, Command, Writable, config_keys

# export.graph's and export.precision's, which import torch; a test compares them
INPUTS = ("rgb255", "imagenet")
PRECISIONS = ("fp32", "fp16", "int8")


@click.command("export", cls=Command)
@click.argument("run", type=THERE, metavar="RUN_FOLDER")
@click.option("--output", required=True, type=Writable(".onnx", ".torchscript"),
              help="file to write")
@click.option("--input", type=click.Choice(INPUTS), default=INPUTS[0], show_default=True,
              help="what the file takes. rgb255: RGB from 0 to 255; imagenet: RGB normalised by "
                   "ImageNet's mean and standard deviation")
@click.option("--precision", type=click.Choice(PRECISIONS), default=PRECISIONS[0],
              show_default=True, help="format of the numbers in an ONNX file")
@click.option("--images", type=FOLDER, metavar="FOLDER",
              help="folder of crops to test the file with; int8 needs it, for its calibration")
@click.option("--despite-verdict", is_flag=True,
              help="write the threshold into the sidecar although training went wrong")
@config_keys
def command(**options: Any) -> None:
    """Writes the network of a run as a file for programs without the plugin.

    \b
        caureid export logs/my-run --output person.onnx
        caureid export logs/my-run --output person.onnx --input imagenet     # for trackers
        caureid export logs/my-run --output small.onnx --precision int8 --images crops

    RUN_FOLDER is the OUTPUT_DIR of a run, or a checkpoint in it. The file takes images of shape
    (B, 3, H, W), for any B, and gives embeddings of length 1. They are compared with PyTorch's
    before the file is kept. A sidecar, person.onnx.json, describes its inputs and outputs.
    """
    from ..export.writing import run

    run(SimpleNamespace(**options))
