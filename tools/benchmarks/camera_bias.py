#!/usr/bin/env python3
"""How strongly cameras show in an embedding: in its nearest neighbours, and to a linear classifier.

    tools/benchmarks/camera_bias.py --config-file configs/Synthetic/caureid.yml [KEY VALUE ...]

The network is built from the config and the SEED (MODEL.WEIGHTS is loaded if it is set), the
training images are embedded. For each image its nearest neighbours are looked up, and a linear
probe (logistic regression) tells the cameras of images that it has not seen. With camera
separation, the camera-specific part is measured beside the embedding: a separation that works
leaves the cameras there.
"""

import argparse

import caureid_plugin  # first: it makes the toolbox importable
import numpy as np
import torch
from caureid_plugin.clustering import camera_shares
from caureid_plugin.data import build_extraction_loader
from caureid_plugin.engine import build_network
from torch import nn
from torch.nn.functional import normalize

FOLDS = 5


def camera_accuracy(features: torch.Tensor, camids: np.ndarray) -> tuple[float, float]:
    """Share of images whose camera a linear probe tells, and that of the largest camera.

    Each of FOLDS times it learns from the others of every camera. The images held out are
    neighbours in the order of the paths, since two images of one track show more than the camera.

    Raises:
        ValueError: a camera has fewer than FOLDS images, or there is a single one.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    sizes = np.bincount(camids)
    if np.count_nonzero(sizes) < 2 or sizes[sizes > 0].min() < FOLDS:
        raise ValueError(f"A linear probe needs two cameras of {FOLDS} images each, the cameras "
                         f"have {sizes.tolist()}.")
    block = np.empty(len(camids), int)
    for camera in np.unique(camids):
        block[camids == camera] = np.arange(sizes[camera]) * FOLDS // sizes[camera]
    points, right = features.double().numpy(), 0
    for held_out in range(FOLDS):
        test = block == held_out
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
        probe.fit(points[~test], camids[~test])
        right += (probe.predict(points[test]) == camids[test]).sum()
    return right / len(camids), sizes.max() / len(camids)


class CameraSpecific(nn.Module):
    """The camera-specific part of the feature map, mean over its places: (B, C) of a batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict) -> torch.Tensor:
        features = self.model.backbone(self.model.preprocess_image(
            {"images": batch["images"].to(self.model.device)}))
        return (self.model.heads.mask(features) * features).mean(dim=(2, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--neighbors", type=int, default=10)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values")
    args = parser.parse_args()

    cfg = caureid_plugin.load_config(args.config_file, args.opts)
    model = build_network(cfg, cfg.MODEL.WEIGHTS)
    items = caureid_plugin.training_images(cfg)
    parts = {"embedding": model}
    if getattr(model.heads, "attention", None) is not None:
        parts["camera-specific part"] = CameraSpecific(model)
    for name, part in parts.items():
        loader = build_extraction_loader(cfg, items)
        features = normalize(caureid_plugin.extract_features(part, loader), dim=1)
        camids = loader.dataset.camids
        share, chance = camera_shares(features, camids, args.neighbors)
        print(f"{name}, {len(items)} images, {loader.dataset.num_cameras} cameras, "
              f"seed {cfg.SEED}:\n"
              f"  {100 * share:.1f} % of the {args.neighbors} nearest neighbours share the camera, "
              f"{100 * chance:.1f} % would by chance ({share / chance:.1f} times).")
        try:
            accuracy, largest = camera_accuracy(features, camids)
        except ValueError as error:
            print(f"  {error}")
        else:
            print(f"  A linear probe tells the camera of {100 * accuracy:.1f} % of the images; the "
                  f"largest camera has {100 * largest:.1f} %.")


if __name__ == "__main__":
    main()
