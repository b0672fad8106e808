"""``caureid export``: a run's network written to a file, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from ..common.text import printable
from ..data.listing import existing_folder, list_images
from ..retrieval import load_run
from . import Origin, export_network
from .hub import CARD
from .sidecar import beside

MOST_IMAGES = 256  # of the folder, drawn at random


def some_images(folder: Path | None) -> list[str]:
    """Images below a folder, drawn by a fixed seed."""
    if folder is None:
        return []
    paths = list_images(existing_folder(str(folder), "--images"), "--images").paths
    rows = np.random.default_rng(0).permutation(len(paths))[:MOST_IMAGES]
    return [paths[row] for row in sorted(rows)]


def run(args: SimpleNamespace) -> None:
    """``caureid export``.

    Args:
        args: its options.

    Raises:
        ValueError, OSError, ImportError: the run cannot be used, or its network not be exported;
            says why.
    """
    images = some_images(args.images)
    embedder = load_run(args.run, device="cpu", opts=args.opts)
    origin = None
    if args.output.suffix == ".safetensors":
        origin = Origin.of_run(args.run, args.opts)
        args.output.parent.mkdir(parents=True, exist_ok=True)
    card = args.output.with_name(CARD)
    kept = card.exists()
    made = export_network(embedder, args.output, convention=args.input, precision=args.precision,
                          images=images, despite_verdict=args.despite_verdict, origin=origin)
    size = args.output.stat().st_size / 2 ** 20
    height, width = made.shape
    what = "RGB 0..255" if made.convention == "rgb255" else "RGB 0..1 less ImageNet's mean"
    print(f"{printable(args.output)}: {size:.1f} MiB, {made.precision}. (B, 3, {height}, {width}) "
          f"float32, {what}, to (B, {made.dim}) of length 1. Largest cosine distance to PyTorch's "
          f"embeddings of {len(images) or 'eight noise'} images: {made.difference:.1e}.")
    print(f"{printable(beside(args.output))} says so, too: keep the two together.")
    if origin is not None:
        print(f"{printable(card)} was there and is kept: compare its fingerprint." if kept else
              f"{printable(card)} is the model card: fill in what it marks \"...\".")
