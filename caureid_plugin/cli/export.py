"""``caureid export``: a network as ONNX, TorchScript or a folder for a hub."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from .common import FOLDER, THERE, Command, Writable, WritableFolder, config_keys

# export.graph's and export.precision's, which import torch; a test compares them
INPUTS = ("rgb255", "imagenet")
PRECISIONS = ("fp32", "fp16", "int8")


class Output(Writable):
    """A file to write; the folder of ``model.safetensors`` is made if there is none."""

    def convert(self, value: Any, param: click.Parameter | None,
                ctx: click.Context | None) -> Any:
        path = Path(value)
        if path.name == "model.safetensors" and not path.is_dir():
            return WritableFolder().convert(path.parent, param, ctx) / path.name
        return super().convert(value, param, ctx)


@click.command("export", cls=Command)
@click.argument("run", type=THERE, metavar="RUN_FOLDER")
@click.option("--output", required=True, type=Output(".onnx", ".torchscript", ".safetensors"),
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
        caureid export logs/my-run --output person/model.safetensors         # for a hub

    RUN_FOLDER is the OUTPUT_DIR of a run, or a checkpoint in it. The file takes images of shape
    (B, 3, H, W), for any B, and gives embeddings of length 1. They are compared with PyTorch's
    before the file is kept. A sidecar, person.onnx.json, describes its inputs and outputs.
    model.safetensors holds only weights; config.json and the model card README.md go beside it.
    """
    from ..export.writing import run

    run(SimpleNamespace(**options))
