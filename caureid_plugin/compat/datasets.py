"""Repairs so that the images listed are those that are there, each with a known camera."""

from __future__ import annotations

import functools
import glob
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import fastreid.data.build as _data_build
import numpy as np
from fastreid.data.common import CommDataset as _CommDataset
from fastreid.data.datasets import (
    bases as _bases,
)
from fastreid.data.datasets import (
    dukemtmcreid as _duke,
)
from fastreid.data.datasets import (
    market1501 as _market,
)
from fastreid.data.datasets import (
    msmt17 as _msmt17,
)

from ..common.errors import UserError
from ..common.images import IMAGE_SUFFIXES
from ..common.text import is_nothing, printable
from .importing import logger
from .repair import Patches, repair


@repair(
    upstream="data/datasets/*.py (glob.glob without sorting), data/datasets/bases.py:56-72",
    symptom="the order of the images, and with it every index, depends on the file system; an "
    "empty training folder ends in a bare `assert size > 0`",
    versions="all",
)
def _sorted_listing(patch: Patches) -> None:
    for split in ("train", "query", "gallery"):
        patch.set(_bases.Dataset, split, property(_sorted_split(split)))


def _sorted_split(split: str):
    original = getattr(_bases.Dataset, split)

    def items(self):
        listed_now = callable(getattr(self, f"_{split}"))
        found = original.fget(self)
        if not isinstance(found, list):
            found = list(found)
            setattr(self, f"_{split}", found)
        # a dataset only for training gives [] to test with, on purpose, one only for tests gives []
        # to train on, which the toolbox reads once while it builds the dataset
        refused = "data" in vars(self) if split == "train" else listed_now
        if not found and refused:
            raise UserError(
                f"{type(self).__name__} found no image for its subset {split!r} below "
                f"{getattr(self, 'dataset_dir', '') or getattr(self, 'root', '')!r}. Set the "
                "environment variable FASTREID_DATASETS to the folder that holds the dataset"
                + (", or, where it only has images to test with, take it out of DATASETS.NAMES."
                   if split == "train" else "."))
        # in place: datasets keep the list they built, and callers may hold it already
        found.sort(key=lambda item: str(item[0]))
        return found

    return items


@repair(
    upstream="data/common.py:27 (CommDataset.__init__, sorted(list(cam_set))), "
    "data/datasets/bases.py:112-128 (combine_all)",
    symptom="training images some of which have no camera, which supervised training does not ask "
    "for, end in a TypeError about '<'; where none has one, they count as one camera, and images "
    "of DATASETS.COMBINEALL as a camera None; test images whose camera is NaN are never left out "
    "as the query's, so that mAP is too high",
    versions="all",
)
def _unknown_cameras(patch: Patches) -> None:
    @patch.wrap(_CommDataset, "__init__")
    def init(original, self, img_items, transform=None, relabel=True):
        known = known_cameras((item[0], item[2]) for item in img_items)
        unknown = [item for item in img_items if item[2] not in known]
        if not relabel:
            for path, _, camera, *_ in unknown[:1]:
                raise UserError(
                    f"The test image {path} has no camera ({camera!r}): an evaluation leaves out "
                    "images of the query's camera. Give it one in the dataset.")
            if any(isinstance(value, np.integer) for item in img_items for value in item[1:3]):
                img_items = [tuple(int(part) if isinstance(part, np.integer) else part
                                   for part in item) for item in img_items]  # else not collated
        if not unknown:
            original(self, img_items, transform, relabel)
            return
        stand_in = min(known, default="")
        original(self, [(*item[:2], item[2] if item[2] in known else stand_in)
                        for item in img_items], transform, relabel)
        self.img_items = [(*item[:2], None) if is_nothing(item[2]) else item for item in img_items]
        if not known:
            self.cams, self.cam_dict = [], {}
        # a number that no camera has: what needs cameras refuses it
        self.cam_dict[None] = -1

    @patch.wrap(_bases.Dataset, "combine_all")
    def combine_all(combine, self):
        combine(self)
        added = [item for subset in (self.query, self.gallery) for item in subset
                 if item[1] not in self._junk_pids]
        for place, item in enumerate(added, len(self._train) - len(added)):
            if is_nothing(item[2]):
                self._train[place] = (*self._train[place][:2], None)


def known_cameras(items: Iterable[tuple[str, object]]) -> set:
    """Cameras of images, (path, camera), without those that stand for none.

    Raises:
        ValueError: one that is neither text nor a number, or cameras of both kinds.
    """
    known: dict[object, str] = {}
    for path, camera in items:
        if camera is not None and not isinstance(camera, (str, int, float, np.number)):
            raise UserError(
                f"The camera of the image {path} must be text or a number, got {camera!r} "
                f"({type(camera).__name__}). Correct the dataset.")
        if not is_nothing(camera):
            known.setdefault(camera, path)
    texts, numbers = ([camera for camera in known if isinstance(camera, str) == wanted]
                      for wanted in (True, False))
    if texts and numbers:
        raise UserError(
            f"Cameras must be all text or all numbers, and {known[texts[0]]} has {texts[0]!r}, "
            f"{known[numbers[0]]} {numbers[0]!r}. Correct the dataset, or DATASETS.NAMES.")
    return set(known)


@repair(
    upstream="data/datasets/bases.py:139 (check_before_run), data/datasets/msmt17.py:58 and :99, "
    "data/datasets/wildtracker.py:52 (os.listdir)",
    symptom='a missing dataset is reported as `"x" is not found`, without the remedy; MSMT17 in a '
    "folder of another name as `Dataset folder not found`, its lists as an error of open(), a "
    "damaged line of one as `not enough values to unpack`",
    versions="all",
)
def _missing_dataset(patch: Patches) -> None:
    @patch.wrap(_bases.Dataset, "check_before_run")
    def check_before_run(original, self, required_files):
        try:
            original(self, required_files)
        except RuntimeError as error:
            files = [required_files] if isinstance(required_files, str) else required_files
            missing = next(path for path in files if not os.path.exists(path))
            raise _no_dataset(type(self), missing) from error

    patch.set(_msmt17.MSMT17, "__init__", _finds_its_folder(_msmt17.MSMT17.__init__))
    patch.set(_msmt17.MSMT17, "process_dir", _names_the_line(_msmt17.MSMT17.process_dir))
    for kind in list(_data_build.DATASET_REGISTRY._obj_map.values()):
        if kind.__module__.startswith("fastreid."):
            patch.set(kind, "__init__", _names_the_root(kind.__init__))


def _no_dataset(kind: type, missing: str | os.PathLike[str], accepted: Sequence[str] = ()
                ) -> FileNotFoundError:
    """What to say of a missing file or folder of a dataset.

    Args:
        kind: of the dataset.
        missing: the path.
        accepted: names that its last part may have, where there are several.
    """
    parent, name = os.path.split(os.path.abspath(missing))
    while not os.path.isdir(parent):
        parent, name = os.path.split(parent)
    try:
        there = sorted(entry for entry in os.listdir(parent) if not entry.startswith("."))
    except OSError:
        there = []
    deeper = [path for entry in there for wanted in (accepted or [name])
              if os.path.lexists(path := os.path.join(parent, entry, wanted))]
    if os.path.basename(parent) in (accepted or [name]):  # the variable names the dataset itself
        deeper = [parent]
    if deeper:
        found = f"there is {printable(deeper[0])}"
    else:
        names = ", ".join(map(printable, there[:5])) + (", ..." if len(there) > 5 else "")
        found = f"{printable(parent)} holds {names or 'nothing'}"
    wanted = f" (accepted are {' and '.join(accepted)})" if accepted else ""
    return FileNotFoundError(
        f'{kind.__name__}: "{printable(missing)}" is not found{wanted}; {found}. Set the '
        "environment variable FASTREID_DATASETS to the folder that holds the dataset (now "
        f"{_data_build._root!r}).")


def _finds_its_folder(original: Callable) -> Callable:
    @functools.wraps(original)
    def init(self, root="datasets", **kwargs):
        names = list(_msmt17.VERSION_DICT)
        base = next((path for path in (os.path.join(root, name) for name in names)
                     if os.path.exists(path)), None)
        if base is None:
            raise _no_dataset(type(self), os.path.join(root, names[-1]), names)
        original(self, root, **kwargs)

    return init


def _names_the_line(original: Callable) -> Callable:
    @functools.wraps(original)
    def process_dir(self, dir_path, list_path, *args, **kwargs):
        with open(list_path, errors="replace") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    path, identity = line.split(" ")
                    int(identity)
                    if int(path.split("_")[2]) < 1 or "\ufffd" in path:  # bytes that are no text
                        raise ValueError
                except (IndexError, ValueError) as error:
                    raise UserError(
                        f"Line {number} of {printable(list_path)} is {line[:60]!r}: it must name "
                        "an image and its identity, as in `0000/0000_000_01_0303morning_0008_0.jpg "
                        "0`.") from error
        return original(self, dir_path, list_path, *args, **kwargs)

    return process_dir


def _names_the_root(original: Callable) -> Callable:
    @functools.wraps(original)
    def init(self, *args, **kwargs):
        try:
            original(self, *args, **kwargs)
        except FileNotFoundError as error:
            if error.filename is None:  # said already
                raise
            raise _no_dataset(type(self), os.fsdecode(error.filename)) from error

    return init


_LABELS_IN_NAME = re.compile(r"([-\d]+)_c(\d)")


@repair(
    upstream="data/datasets/market1501.py:78 and data/datasets/dukemtmcreid.py:62 "
    "(pattern.search().groups())",
    symptom="an image whose name has no camera: AttributeError, 'NoneType' has no 'groups'; with "
    "one out of range: a bare assertion; below a folder whose own name looks like one, every image "
    "silently gets that identity and camera; in a folder with [ in its path no image is found; "
    "images named .png or .JPG are left out without a word",
    versions="all",
)
def _image_without_camera(patch: Patches) -> None:
    # identities and cameras that the toolbox's own assertions let pass
    for kind, identities, cameras in ((_market.Market1501, range(-1, 1502), range(1, 7)),
                                      (_duke.DukeMTMC, None, range(1, 9))):
        patch.set(kind, "process_dir",
                  _checked_process_dir(kind.process_dir, identities, cameras))


def _checked_process_dir(original, identities: range | None, cameras: range):
    @functools.wraps(original)
    def process_dir(self, dir_path, is_train=True):
        name = type(self).__name__
        if _LABELS_IN_NAME.search(str(dir_path)):
            raise UserError(
                f"{name} reads identity and camera from the first thing in the path "
                f"that looks like 0002_c1, which is a folder in {dir_path}. Rename that folder.")
        left_out = []
        for path in _listed(dir_path, name):
            if path.name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            if path.suffix == ".jpg":
                _check_labels_in_name(path, name, identities, cameras)
            else:
                left_out.append(path.name)
        if left_out:
            logger.warning(
                "%s: %d images in %s are left out, because only names that end in .jpg are read "
                "(first: %s). Rename them to use them: what is inside may be of any format.",
                name, len(left_out), printable(dir_path), printable(left_out[0]))
        return original(self, glob.escape(str(dir_path)), is_train)

    return process_dir


def _listed(folder: str, name: str) -> list[Path]:
    try:
        return sorted(Path(folder).iterdir())
    except OSError as error:  # glob would find nothing
        raise UserError(
            f"{name} cannot list the folder {printable(folder)}: {error.strerror}. Let this user "
            "read it (chmod u+rx), or set the environment variable FASTREID_DATASETS to the folder "
            "that holds the dataset.") from error


def _check_labels_in_name(path: Path, name: str, identities: range | None, cameras: range) -> None:
    found = _LABELS_IN_NAME.search(path.name)
    if not found:
        raise UserError(
            f"{printable(path)} carries no camera label: {name} reads identity and "
            "camera from names like 0002_c1s1_000451_03.jpg. Rename or remove the file.")
    if path.name[found.end():found.end() + 1].isdecimal():
        raise UserError(
            f"{printable(path)} has a camera of several digits, of which {name} reads the first. "
            "Rename or remove the file, or register the data as a dataset of its own.")
    try:
        identity, camera = map(int, found.groups())
    except ValueError:  # such as 0001-2
        raise UserError(
            f"{printable(path)}: {found[1]!r} before _c is no number of an identity. Rename or "
            "remove the file.") from None
    if identity == -1 and identities is not None:
        return  # junk
    for kind, value, allowed in (("identity", identity, identities), ("camera", camera, cameras)):
        if allowed is not None and value not in allowed:
            raise UserError(
                f"{printable(path)} has {kind} {value}, but {name} has {allowed[0]} to "
                f"{allowed[-1]}. Rename or remove the file, or register the data as a dataset of "
                "its own.")
