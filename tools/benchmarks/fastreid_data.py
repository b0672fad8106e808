"""Drawn images in the layouts of the datasets that FastReID's configs and projects name.

The images are noise: whether a config runs is the question, not what it learns. Nothing but numpy,
Pillow and scipy is needed here.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

TRAIN, TEST = range(1, 5), range(5, 9)  # identities
CAMERAS = range(1, 3)
QUERY, GALLERY = (0,), (1, 2)  # frames of the test identities
VEHICLE_TESTS = {"vehicleid": (800, 1600, 2400, 13164), "VERI-Wild": (3000, 5000, 10000)}

Seen = tuple[int, int, int]  # identity, camera, frame


def training() -> Iterator[Seen]:
    """The 16 images of a training set: 4 identities, 2 cameras, 2 images each."""
    return itertools.product(TRAIN, CAMERAS, range(2))


def testing(frames: Sequence[int]) -> Iterator[Seen]:
    """The 8 images of a query or 16 of a gallery: 4 other identities, 2 cameras."""
    return itertools.product(TEST, CAMERAS, frames)


def draw(path: Path, size: tuple[int, int] = (32, 96)) -> None:
    """Writes an image of ``size`` (width, height): coarse noise that the name decides."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(path.name.encode()))
    blocks = Image.fromarray(rng.integers(256, size=(12, 4, 3), dtype=np.uint8))
    blocks.resize(size, Image.Resampling.NEAREST).save(path)


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))  # some loaders take an empty last line for an image


def write_all(root: Path) -> None:
    """Writes every dataset below ``root``, the value of FASTREID_DATASETS."""
    for write in (write_in_folders, write_msmt17, write_vehicles, write_naic, write_retrieval,
                  write_attributes):
        write(root)
    for name in (f"{kind}/{i}" for kind in ("ants", "bees") for i in range(8)):
        for part in ("train", "val"):
            draw(root / "hymenoptera_data" / part / f"{name}.jpg", (64, 64))
    for pid, camera, frame in training():
        draw(root / "MS_Celeb_1M" / str(pid) / f"{camera}{frame}.jpg", (112, 112))


def write_in_folders(root: Path) -> None:
    """Datasets whose folders are their parts, and whose names say identity and camera."""
    boxes, people = ("bounding_box_train", "query", "bounding_box_test"), "{:03d}_{:03d}_{}.jpg"
    for base, (train, query, gallery), name in (
            ("Market-1501-v15.09.15", boxes, "{:04d}_c{}s1_{:06d}_00.jpg"),
            ("DukeMTMC-reID", boxes, "{:04d}_c{}_f{:07d}.jpg"),
            ("veri", ("image_train", "image_query", "image_test"), "{:04d}_c{:03d}_{:08d}_0.jpg"),
            ("Partial_REID", (None, "partial_body_images", "whole_body_images"), people),
            ("PartialiLIDS", (None, "query", "gallery"), people),
            ("OccludedREID", (None, "query", "gallery"), people)):
        for part, images in ((train, training()), (query, testing(QUERY)),
                             (gallery, testing(GALLERY))):
            for seen in images if part else ():
                draw(root / base / part / name.format(*seen))


def write_msmt17(root: Path) -> None:
    base = root / "MSMT17_V2"
    for part, folder, images, first in (
            ("train", "mask_train_v2", training(), TRAIN[0]),
            ("val", "mask_train_v2", training(), TRAIN[0]),
            ("query", "mask_test_v2", testing(QUERY), TEST[0]),
            ("gallery", "mask_test_v2", testing(GALLERY), TEST[0])):
        lines = []
        for pid, camera, frame in images:
            label = pid - first  # each half counts from 0
            name = f"{label:04d}/{label:04d}_{frame:03d}_{camera:02d}_0303morning_0000_0.jpg"
            draw(base / folder / name)
            lines.append(f"{name} {label}")
        write_lines(base / f"list_{part}.txt", lines)


def write_vehicles(root: Path) -> None:
    """VehicleID, in which an image is its own camera, and VeRi-Wild."""
    def number(seen: Seen) -> int:
        return 100 * seen[0] + 10 * seen[1] + seen[2]

    for name, path, line in (
            ("vehicleid", "image/{1:07d}.jpg", "{1:07d} {0}"),
            ("VERI-Wild", "images/{0:05d}/{1:06d}.jpg", "{0:05d}/{1:06d}.jpg")):
        lists = {"train_list": [*training()]}
        for size in VEHICLE_TESTS[name]:
            if name == "vehicleid":
                lists[f"test_list_{size}"] = [*testing((*QUERY, *GALLERY))]
            else:
                lists[f"test_{size}_query"] = [*testing(QUERY)]
                lists[f"test_{size}"] = [*testing(GALLERY)]
        for part, images in lists.items():
            write_lines(root / name / "train_test_split" / f"{part}.txt",
                        [line.format(seen[0], number(seen)) for seen in images])
            for seen in images:
                draw(root / name / path.format(seen[0], number(seen)))
    everything = [*training(), *testing((*QUERY, *GALLERY))]
    write_lines(root / "VERI-Wild/train_test_split/vehicle_info.txt", [
        "id/image;Camera ID;Time;Model;Type;Color",
        *(f"{seen[0]:05d}/{number(seen):06d};{seen[1]};-;-;-;-" for seen in everything)])


def write_naic(root: Path) -> None:
    """The four sets of the NAIC project, whose lists separate name and identity in two ways."""
    def images(folder: str, seen: Iterator[Seen], separator: str, before: str = "") -> list[str]:
        lines = []
        for pid, camera, frame in seen:
            name = f"{before}{pid:04d}{camera}{frame}.png"
            draw(root / "naic" / folder / name)
            lines.append(f"{name}{separator}{pid}")
        return lines

    second, first = "2020_NAIC/fusai/train", "2020_NAIC/chusai/train"
    for name, seen in (("naic20r2_train_list_clean", training()), ("val_query", testing(QUERY)),
                       ("val_gallery", testing(GALLERY))):
        write_lines(root / "naic" / second / f"{name}.txt", images(f"{second}/images", seen, ":"))
    write_lines(root / "naic" / first / "label.txt", images(f"{first}/images", training(), ":"))
    write_lines(root / "naic/2019_NAIC/fusai/train_list_clean.txt",
                images("2019_NAIC/fusai", training(), " ", "train/"))
    for part, frames in (("query", QUERY), ("gallery", GALLERY)):
        images(f"round2/image_A/{part}", testing(frames), ":")


def write_retrieval(root: Path) -> None:
    """The sets of the image retrieval project: lists of name and label."""
    parts = {"train": [*training()], "test": [*testing(QUERY)], "test_query": [*testing(QUERY)],
             "test_gallery": [*testing(GALLERY)]}
    for name in ("Cars_196", "CUB_200_2011", "Stanford_Online_Products", "InShop"):
        for part, images in parts.items():
            lines = []
            for pid, camera, frame in images:
                image = f"images/{pid:03d}_{camera}{frame}.jpg"
                draw(root / name / image, (64, 64))
                lines.append(f"{image},{pid}")
            write_lines(root / name / f"{part}.txt", lines)


def write_attributes(root: Path) -> None:
    """The attributes of the images that are there (Market-1501 and DukeMTMC), and PA-100K."""
    rng = np.random.default_rng(0)
    for folder, name, count in (("Market-1501-v15.09.15", "market", 27),
                                ("DukeMTMC-reID", "duke", 23)):
        parts = {}
        for part, pids in (("train", TRAIN), ("test", TEST)):
            parts[part] = {f"attribute{i:02d}": rng.integers(1, 3, len(pids)).astype(float)
                           for i in range(count)}
            parts[part]["image_index"] = np.array([f"{pid:04d}" for pid in pids], dtype=object)
        savemat(root / folder / f"{name}_attribute.mat", {f"{name}_attribute": parts})
    content = {"attributes": np.array([[f"attribute{i}"] for i in range(26)], dtype=object)}
    for part, count in (("train", 16), ("val", 8), ("test", 8)):
        names = [f"{part}{i}.jpg" for i in range(count)]
        for image in names:
            draw(root / "PA-100K/data" / image)
        content[f"{part}_images_name"] = np.array([[image] for image in names], dtype=object)
        content[f"{part}_label"] = rng.integers(0, 2, (count, 26))
    savemat(root / "PA-100K" / "annotation.mat", content)
