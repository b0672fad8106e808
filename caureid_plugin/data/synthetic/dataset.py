"""SyntheticCameras: a small person re-identification dataset that renders itself.

Drawn people walk past six drawn cameras (see :mod:`caureid_plugin.data.synthetic.render`). The
first use renders the pictures, in about half a minute; later uses read them. The folder is laid out
and its files are named as in Market-1501 (Zheng et al., "Scalable Person Re-identification: A
Benchmark", ICCV 2015)::

    <root>/SyntheticCameras/
        bounding_box_train/0001_c1s1_000000_00.jpg   identity, camera, sequence, shot, box
        query/
        bounding_box_test/
        dataset.json                                 version, seed, picture size, counts

Rendering is deterministic: a picture depends only on the seed, the identity, the camera and the
shot, so a person's mask is rendered again when it is asked for (:func:`person_mask`).
"""

import functools
import json
import logging
import os
import re
import shutil
import tempfile
import time
from typing import Any, NamedTuple

import numpy as np
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset
from fastreid.utils import comm
from PIL import Image
from tqdm import tqdm

from ...common.errors import UserError
from ..track_source import Sighting
from .cameras import make_camera
from .people import Person, make_person
from .render import render

logger = logging.getLogger("fastreid.caureid")

# Raised whenever the same seed would give other pictures.
VERSION = 1
SEED = 2024
# Height and width of a picture, in pixels.
SIZE = (128, 64)
CAMERAS = 6
# Identities 1 to 100 are for training, 101 to 160 for testing.
TRAIN_IDENTITIES = 100
TEST_IDENTITIES = 60
# Least and greatest number of cameras that see an identity.
TRAIN_CAMERAS_PER_IDENTITY = (3, 5)
TEST_CAMERAS_PER_IDENTITY = (2, 5)
# Least and greatest number of pictures of one identity by one camera. At least 2, so that a
# camera that gives a query picture also gives a gallery picture.
SHOTS_PER_CAMERA = (2, 4)
# Queries are the first shots of at most this many cameras of each test identity.
QUERIES_PER_IDENTITY = 2
# In which the people walk through the cameras, where times are asked for.
TRACK_MINUTES = 5

FOLDER = "SyntheticCameras"
DESCRIPTION = "dataset.json"
SPLITS = ("bounding_box_train", "query", "bounding_box_test")

_NAME = re.compile(r"([0-9]{4})_c([1-9][0-9]*)s1_([0-9]{6})_00\.jpg")


class Shot(NamedTuple):
    """The place of one picture in the dataset; identity and camera count from 1, shots from 0."""

    split: str
    identity: int
    camera: int
    shot: int

    @property
    def name(self) -> str:
        return f"{self.identity:04d}_c{self.camera}s1_{self.shot:06d}_00.jpg"


def parse_name(path: str) -> tuple[int, int, int]:
    """Reads identity (from 1), camera (from 1) and shot (from 0) off a picture's name.

    Raises:
        ValueError: the name is not of the form ``0001_c1s1_000000_00.jpg``.
    """
    match = _NAME.fullmatch(os.path.basename(path))
    identity, camera, shot = (int(group) for group in match.groups()) if match else (0, 0, 0)
    if min(identity, camera) < 1:
        raise UserError(
            f"{path}: the name must be 4 digits of identity (from 1), camera (from 1), sequence "
            f"1, 6 digits of shot and box 00, as in 0001_c1s1_000000_00.jpg; remove the file")
    return identity, camera, shot


@functools.lru_cache(maxsize=4)
def _people(seed: int, count: int) -> tuple[Person, ...]:
    """The first ``count`` identities, no two of which compare equal."""
    people, taken = [], set()
    for identity in range(1, count + 1):
        rng = np.random.default_rng([seed, identity])
        person = make_person(rng)
        while person in taken:
            person = make_person(rng)
        taken.add(person)
        people.append(person)
    return tuple(people)


def _person(seed: int, identity: int) -> Person:
    # Rounded up, so that a few lists of people serve all identities.
    return _people(seed, -(-identity // 100) * 100)[identity - 1]


def _render(seed: int, identity: int, camera: int, shot: int,
            size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, identity, camera, shot])
    return render(_person(seed, identity), make_camera(camera - 1), rng, size)


def plan_shots(*, seed: int = SEED, train_identities: int = TRAIN_IDENTITIES,
               test_identities: int = TEST_IDENTITIES, cameras: int = CAMERAS) -> list[Shot]:
    """Decides which cameras see whom, how often, and which pictures are queries.

    Raises:
        ValueError: fewer than 2 cameras, a split without identities, or more identities than 4
            digits can name.
    """
    if cameras < 2:
        raise UserError(f"cameras={cameras}: at least 2 are needed to match across cameras")
    if min(train_identities, test_identities) < 1 or train_identities + test_identities > 9999:
        raise UserError(f"train_identities={train_identities}, test_identities="
                        f"{test_identities}: both must be at least 1, together at most 9999")
    shots = []
    for identity in range(1, train_identities + test_identities + 1):
        testing = identity > train_identities
        # Cameras count from 1, so this seed meets no picture's.
        rng = np.random.default_rng([seed, identity, 0, 1])
        least, most = TEST_CAMERAS_PER_IDENTITY if testing else TRAIN_CAMERAS_PER_IDENTITY
        seen_by = int(rng.integers(min(least, cameras), min(most, cameras) + 1))
        for place, camera in enumerate(rng.permutation(cameras)[:seen_by] + 1):
            for shot in range(int(rng.integers(SHOTS_PER_CAMERA[0], SHOTS_PER_CAMERA[1] + 1))):
                query = testing and shot == 0 and place < QUERIES_PER_IDENTITY
                split = SPLITS[1] if query else SPLITS[2] if testing else SPLITS[0]
                shots.append(Shot(split, identity, int(camera), shot))
    return sorted(shots)


def render_dataset(folder: str, *, seed: int = SEED, train_identities: int = TRAIN_IDENTITIES,
                   test_identities: int = TEST_IDENTITIES, cameras: int = CAMERAS,
                   size: tuple[int, int] = SIZE) -> None:
    """Renders a whole dataset into ``folder``.

    The pictures go to a temporary folder beside it, which takes the final name when it is
    complete. An interrupted rendering therefore leaves no half-filled ``folder`` (a killed process
    may leave a ``SyntheticCameras.tmp-...`` beside it, which can be deleted). Where another process
    finished first, its pictures stay and these are dropped: both are the same.

    Raises:
        ValueError: see :func:`plan_shots` and :func:`caureid_plugin.data.synthetic.render.render`.
        OSError: the folder cannot be written, or ``folder`` is already there with other content.
    """
    shots = plan_shots(seed=seed, train_identities=train_identities,
                       test_identities=test_identities, cameras=cameras)
    parent, name = os.path.split(os.path.abspath(folder))
    os.makedirs(parent, exist_ok=True)
    start = time.perf_counter()
    scratch = tempfile.mkdtemp(prefix=f"{name}.tmp-", dir=parent)
    try:
        _fill_folder(scratch, shots, seed, size)
        # mkdtemp makes folders for one user only; a dataset follows the user's own habit.
        shutil.copymode(os.path.join(scratch, SPLITS[0]), scratch)
        _take_name(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    logger.info("Rendered %d pictures of SyntheticCameras in %.1f s to %s",
                len(shots), time.perf_counter() - start, folder)


def _fill_folder(folder: str, shots: list[Shot], seed: int, size: tuple[int, int]) -> None:
    for split in SPLITS:
        os.makedirs(os.path.join(folder, split))
    # disable=None: a progress bar on terminals only.
    for item in tqdm(shots, desc="Rendering SyntheticCameras", unit="img", disable=None):
        picture, _ = _render(seed, item.identity, item.camera, item.shot, size)
        quality = make_camera(item.camera - 1).jpeg_quality
        Image.fromarray(picture).save(os.path.join(folder, item.split, item.name),
                                      quality=quality)
    counts = {split: sum(item.split == split for item in shots) for split in SPLITS}
    description = {"version": VERSION, "seed": seed, "size": list(size), "counts": counts}
    with open(os.path.join(folder, DESCRIPTION), "w", encoding="utf-8") as file:
        json.dump(description, file, indent=2)
        file.write("\n")


def _take_name(scratch: str, folder: str) -> None:
    """Renames a complete folder; gives way to a complete one that came first."""
    try:
        os.rename(scratch, folder)
    except OSError:
        if not os.path.isfile(os.path.join(folder, DESCRIPTION)):
            raise


def read_description(folder: str) -> dict[str, Any]:
    """Reads a rendered dataset's ``dataset.json``.

    Returns:
        ``version``, ``seed``, ``size`` (height, width) and ``counts`` (pictures per split).

    Raises:
        ValueError: folder or file is missing, or it is unreadable or of another version; the
            message names the folder to delete.
    """
    path = os.path.join(folder, DESCRIPTION)
    advice = f"delete the folder {folder} to have it rendered again"
    if not os.path.isdir(folder):
        raise UserError(f"{folder} is missing: the main process could not render it, or wrote to "
                        f"another machine's disk; check the root of the datasets "
                        f"(FASTREID_DATASETS)")
    if not os.path.isfile(path):
        raise UserError(f"{folder} has no {DESCRIPTION}, so it is not a complete "
                        f"SyntheticCameras folder; {advice}")
    try:
        with open(path, encoding="utf-8") as file:
            description = json.load(file)
        version = description["version"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error!r}); {advice}") from error
    if version != VERSION:
        raise UserError(f"{folder} holds version {version} of SyntheticCameras, but this package "
                        f"renders version {VERSION}; {advice}")
    return description


def person_mask(image_path: str) -> np.ndarray:
    """Tells which pixels of a rendered picture show its person.

    Args:
        image_path: path of a picture of a SyntheticCameras folder.

    Returns:
        bool array (H, W): the visible part of the person with everything worn and carried.

    Raises:
        ValueError: the name does not follow the rule, or the folder is not a complete
            SyntheticCameras folder of this version.
    """
    identity, camera, shot = parse_name(image_path)
    folder = os.path.dirname(os.path.dirname(os.path.abspath(image_path)))
    description = read_description(folder)
    _, mask = _render(description["seed"], identity, camera, shot, tuple(description["size"]))
    return mask


@DATASET_REGISTRY.register()
class SyntheticCameras(ImageDataset):
    """Rendered people seen by six cameras of different style; rendered at first use.

    Args:
        root: folder that holds, or gets, the folder ``SyntheticCameras``. Of several processes
            the main one renders, so processes on several machines need a shared folder.

    Raises:
        ValueError: the folder there is of another version, incomplete, or holds a file whose name
            does not follow the rule.
    """

    dataset_dir = FOLDER
    dataset_name = "synthetic"

    def __init__(self, root: str = "datasets", **kwargs: Any) -> None:
        self.root = root
        self.dataset_dir = os.path.join(root, FOLDER)
        self.prepare()
        train, query, gallery = (self.process_dir(split, is_train=split == SPLITS[0])
                                 for split in SPLITS)
        super().__init__(train, query, gallery, **kwargs)

    def prepare(self) -> None:
        """Renders the pictures where they are missing, then checks the folder's version."""
        try:
            if comm.is_main_process() and not _has_content(self.dataset_dir):
                render_dataset(self.dataset_dir)
        finally:
            # Even after an error: the other processes must not wait for ever.
            comm.synchronize()
        self.counts = read_description(self.dataset_dir)["counts"]

    def process_dir(self, split: str, is_train: bool) -> list[tuple[Any, ...]]:
        """Lists a split's pictures by path, as (path, identity, camera).

        For training, identity and camera are strings as in the names (``"synthetic_12"``,
        ``"synthetic_c3"``); for testing they are integers, cameras from 0.

        Raises:
            ValueError: a file's name does not follow the rule, or pictures are missing.
        """
        folder = os.path.join(self.dataset_dir, split)
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        items: list[tuple[Any, ...]] = []
        for name in names:
            path = os.path.join(folder, name)
            identity, camera, _ = parse_name(path)
            if is_train:
                items.append((path, f"{self.dataset_name}_{identity}",
                              f"{self.dataset_name}_c{camera}"))
            else:
                items.append((path, identity, camera - 1))
        if not items or len(items) != self.counts.get(split):
            raise UserError(
                f"{folder} holds {len(items)} pictures, but {DESCRIPTION} says "
                f"{self.counts.get(split)}; delete the folder {self.dataset_dir} to have it "
                f"rendered again")
        return items


@DATASET_REGISTRY.register()
class SyntheticTracks(SyntheticCameras):
    """The pictures of :class:`SyntheticCameras`, with the track and time of each to train on.

    Each person walks through the cameras that see them, one after the other, within TRACK_MINUTES,
    with a second between pictures. A tracker that makes no error sees them. A track's name tells
    nothing of the person.
    """

    def process_dir(self, split: str, is_train: bool) -> list[tuple[Any, ...]]:
        """As the base class, with a :class:`.track_source.Sighting` of what is trained on."""
        items: list[tuple[Any, ...]] = list(super().process_dir(split, is_train))
        if not is_train:
            return items
        seed = read_description(self.dataset_dir)["seed"]
        shots: dict[tuple[int, int], int] = {}  # of each walk, by identity and camera
        for identity, camera, shot in (parse_name(item[0]) for item in items):
            shots[identity, camera] = max(shot, shots.get((identity, camera), 0))
        start: dict[tuple[int, int], float] = {}
        for identity in {identity for identity, _ in shots}:
            rng = np.random.default_rng([seed, identity, 0, 0])  # cameras count from 1: no other's
            cameras = rng.permutation(sorted(c for i, c in shots if i == identity)).tolist()
            part = 60 * TRACK_MINUTES / len(cameras)  # seconds: one walk after the other
            for number, camera in enumerate(cameras):
                start[identity, camera] = part * number + rng.uniform(
                    0, part - shots[identity, camera] - 1)
        order = {walk: number for number, walk in enumerate(sorted(start, key=start.__getitem__))}
        return [(*item, Sighting(str(order[walk[:2]]), start[walk[:2]] + walk[2]))
                for item in items for walk in (parse_name(item[0]),)]


def _has_content(folder: str) -> bool:
    return os.path.isdir(folder) and bool(os.listdir(folder))
