#!/usr/bin/env python3
"""Writes the network of a run as an ONNX or TorchScript file, for programs without the plugin.

    tools/export.py RUN_FOLDER --output person.onnx
    tools/export.py RUN_FOLDER --output person.onnx --input imagenet          # for trackers
    tools/export.py RUN_FOLDER --output small.onnx --precision int8 --images crops

The name's end tells the format: .onnx or .torchscript. The file takes images (B, 3, H, W) for any
B and gives embeddings of length 1. What training alone needs is not in it. It is run before it is
kept, and its embeddings are compared with PyTorch's. Beside it goes a sidecar, person.onnx.json,
that says what goes in and what comes out.
"""

import argparse
import sys
from pathlib import Path

import caureid_plugin  # noqa: F401  first: it makes the toolbox importable
import numpy as np
from caureid_plugin.compat import shown
from caureid_plugin.data.listing import existing_folder, list_images
from caureid_plugin.export import export_network
from caureid_plugin.export.graph import INPUTS
from caureid_plugin.export.precision import PRECISIONS
from caureid_plugin.export.sidecar import beside
from caureid_plugin.retrieval import load_run

from search_embedder import options_first, sentence

MOST_IMAGES = 256  # of the folder, drawn at random


def some_images(folder: Path | None) -> list[str]:
    """Images below a folder, drawn by a fixed seed."""
    if folder is None:
        return []
    paths = list_images(existing_folder(str(folder), "--images"), "--images").paths
    rows = np.random.default_rng(0).permutation(len(paths))[:MOST_IMAGES]
    return [paths[row] for row in sorted(rows)]


def work(args: argparse.Namespace) -> None:
    images = some_images(args.images)
    embedder = load_run(args.run, device="cpu", opts=args.opts)
    made = export_network(embedder, args.output, convention=args.input, precision=args.precision,
                          images=images, despite_verdict=args.despite_verdict)
    size = args.output.stat().st_size / 2 ** 20
    height, width = made.shape
    what = "RGB 0..255" if made.convention == "rgb255" else "RGB 0..1 less ImageNet's mean"
    print(f"{shown(args.output)}: {size:.1f} MiB, {made.precision}. (B, 3, {height}, {width}) "
          f"float32, {what}, to (B, {made.dim}) of length 1. Largest cosine distance to PyTorch's "
          f"embeddings of {len(images) or 'eight noise'} images: {made.difference:.1e}.")
    print(f"{shown(beside(args.output))} says so, too: keep the two together.")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER",
                        help="OUTPUT_DIR of a run, or a checkpoint in one")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE",
                        help="file to write, .onnx or .torchscript")
    parser.add_argument("--input", choices=INPUTS, default="rgb255",
                        help="what the file takes: RGB 0..255, or as ImageNet's mean and deviation "
                             "leave it (default: %(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32",
                        help="of an ONNX file's arithmetic (default: %(default)s)")
    parser.add_argument("--images", type=Path, metavar="FOLDER",
                        help=f"crops to compare with, and for int8 to calibrate by; {MOST_IMAGES} "
                             "of them are drawn")
    parser.add_argument("--despite-verdict", action="store_true",
                        help="write the suggested threshold into the sidecar although the run's "
                             "verdict is bad")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE",
                        help="config keys in place of the run's")
    args = parser.parse_args(options_first(sys.argv[1:] if argv is None else argv,
                                           ("--despite-verdict",)))
    if len(args.opts) % 2:
        parser.error(f"config keys and values must come in pairs, got {' '.join(args.opts)}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        work(args)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"tools/export.py: {sentence(error)}") from error


if __name__ == "__main__":
    main()
