#!/usr/bin/env python3
"""How strongly cameras show in an embedding: the share of nearest neighbours from the same camera.

    tools/camera_bias.py --config-file configs/Synthetic/caureid.yml [KEY VALUE ...]

The network is built from the config and the SEED (MODEL.WEIGHTS is loaded if it is set), the
training images are embedded, and for each image its nearest neighbours are looked up.
"""

import argparse

import caureid_plugin  # first: it makes the toolbox importable
import numpy as np
from caureid_plugin.clustering import search_neighbors
from caureid_plugin.data import build_extraction_loader
from caureid_plugin.engine import build_network
from torch.nn.functional import normalize


def camera_shares(features, camids: np.ndarray, neighbors: int) -> tuple[float, float]:
    """Share of the k nearest neighbours (itself left out) from the same camera, and by chance."""
    found, _ = search_neighbors(features, neighbors + 1)
    itself = found == np.arange(len(found))[:, None]
    itself[~itself.any(axis=1), -1] = True  # a duplicate took its place: drop the farthest
    others = found[~itself].reshape(len(found), neighbors)
    measured = (camids[others] == camids[:, None]).mean()
    sizes = np.bincount(camids)
    chance = (sizes * (sizes - 1)).sum() / (len(camids) * (len(camids) - 1))
    return float(measured), float(chance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--neighbors", type=int, default=10)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values")
    args = parser.parse_args()

    cfg = caureid_plugin.load_config(args.config_file, args.opts)
    model = build_network(cfg, cfg.MODEL.WEIGHTS)
    items = caureid_plugin.training_images(cfg)
    loader = build_extraction_loader(cfg, items)
    features = normalize(caureid_plugin.extract_features(model, loader), dim=1)
    share, chance = camera_shares(features, loader.dataset.camids, args.neighbors)
    print(f"{len(items)} images, {loader.dataset.num_cameras} cameras, seed {cfg.SEED}: "
          f"{100 * share:.1f} % of the {args.neighbors} nearest neighbours share the camera, "
          f"{100 * chance:.1f} % would by chance ({share / chance:.1f} times).")


if __name__ == "__main__":
    main()
