"""PersonX: rendered people before six backgrounds, a dataset that the toolbox does not have.

Source: Sun, Zheng, "Dissecting Person Re-identification from the Viewpoint of Viewpoint", CVPR
2019; of its subsets the one that SpCL, OpenUnReID and ClusterContrast use.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset

from ..common.errors import UserError
from ..common.text import printable

# below FASTREID_DATASETS: as SpCL and ClusterContrast unpack it, as OpenUnReID does
FOLDERS = ("PersonX", "personx/subset1")
SPLITS = ("bounding_box_train", "query", "bounding_box_test")
_NAME = re.compile(r"(-?\d+)_c(\d+)")


@DATASET_REGISTRY.register()
class PersonX(ImageDataset):
    """PersonX, or anything in its layout: Market-1501's, with camera numbers of any length.

    Its six cameras are named c3, c4, c8, c10, c11 and c12, the last three of which the toolbox's
    Market1501 would all read as camera 1. The three folders lie in ``PersonX`` or in
    ``personx/subset1``; images of identity -1 are left out.

    Args:
        root: folder that holds the dataset's own.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: an image whose name carries no identity and camera (names it).
    """

    dataset_name = "personx"

    def __init__(self, root: str = "datasets", **kwargs: Any) -> None:
        folders = [Path(root) / name for name in FOLDERS]
        folder = next((path for path in folders if path.is_dir()), folders[0])
        self.dataset_dir = str(folder)
        train, query, gallery = (str(folder / name) for name in SPLITS)
        self.check_before_run([self.dataset_dir, train, query, gallery])
        super().__init__(lambda: self.process_dir(train),
                         lambda: self.process_dir(query, is_train=False),
                         lambda: self.process_dir(gallery, is_train=False), **kwargs)

    def process_dir(self, folder: str, is_train: bool = True
                    ) -> list[tuple[str, int | str, int | str]]:
        """(path, identity, camera) of each image; in training both are names, as in the toolbox."""
        items: list[tuple[str, int | str, int | str]] = []
        for path in sorted(Path(folder).glob("*.jpg")):
            match = _NAME.match(path.name)
            if match is None:
                raise UserError(
                    f"{printable(path)} carries no identity and camera: PersonX reads them from "
                    "names like 0001_c3s1_000000_00.jpg. Rename or remove the file.")
            identity, camera = (int(number) for number in match.groups())
            if identity == -1:
                continue
            if is_train:
                items.append((str(path), f"{self.dataset_name}_{identity}",
                              f"{self.dataset_name}_{camera}"))
            else:
                items.append((str(path), identity, camera))
        return items
