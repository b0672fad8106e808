"""An embedder's stand-in, whose embedding is the image itself, shrunk.

As a script it is ``caureid serve`` with this stand-in for every network.
"""

from dataclasses import make_dataclass

import numpy as np
from caureid_plugin.cli.serve import command
from caureid_plugin.runs.threshold import NO_VERDICT, PairStatistics
from caureid_plugin.web import server
from PIL import Image

HOSTILE = "<img src=x onerror=window.broken=1>"


class Shrunk:
    """Stands in for an embedder: 4 x 2 pixels, less their mean."""

    name, dim, fingerprint = f"run {HOSTILE}", 24, "0" * 32
    preprocessing = make_dataclass("Size", [("size", tuple, (4, 2))])()
    statistics = PairStatistics(same=np.linspace(0.5, 1, 201, dtype=np.float32),
                                different=np.linspace(-0.9, 0.6, 3001, dtype=np.float32))
    why_no_statistics = ""
    verdict = NO_VERDICT

    def embed(self, image):
        values = np.asarray(image.resize((2, 4), Image.Resampling.BOX), dtype=np.float64).ravel()
        values = values - values.mean()
        if not values.any():
            raise ValueError(f"no embedding of {__file__}")
        return (values / np.linalg.norm(values)).astype(np.float32)[None]


if __name__ == "__main__":
    server.load_embedder = lambda folder: Shrunk()
    command.main(prog_name="caureid serve")
