"""CameraFolder: images of one's own, without identities, set up only by config keys."""

from __future__ import annotations

import functools
import logging
from typing import Any

from fastreid.config import CfgNode, configurable
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset

from ..common.errors import UserError
from ..common.text import printable
from .camera_source import SECTION, CameraSource, alike_names
from .labelled import Labelled, read_labelled
from .listing import (
    Listing,
    existing_folder,
    first_of,
    list_images,
    listed_images,
    same_file_names,
)
from .track_source import Sighting, TrackSource, oddities

logger = logging.getLogger("fastreid.caureid")

CAMERA_PREFIX = "camerafolder_"  # of every camera's name
NO_IDENTITY = f"{CAMERA_PREFIX}unlabelled"  # of every training image
SYSTEM_FOLDERS = ("skip", "read")
# More cameras than this are hardly cameras, but tracks, people or days, where each has on average
# fewer images than three for each camera, or than three hundred.
MANY_CAMERAS, FEW_IMAGES = 10, 300


@DATASET_REGISTRY.register()
class CameraFolder(ImageDataset):
    """Images below a folder, with the camera of each, and none of their identities.

    Nothing is read before it is asked for: what is not trained on needs no folder, what is not
    evaluated no labels. Labels that cannot be evaluated are found with the training images.

    Args:
        folder: CAMERA_FOLDER.ROOT.
        source: where the cameras are read from.
        tracks: where tracks and times are read from.
        query, gallery: images to evaluate with, see :func:`.labelled.read_labelled`; both or
            neither.
        system_folders: "skip" or "read", see :func:`.listing.list_images`.
        leave_out: a table of images that are not trained on; "": none.
        combineall: DATASETS.COMBINEALL, which needs identities to train on.
        **kwargs: the toolbox's; ``root`` is not used.

    ``train`` holds (path, the same word for all, ``"camerafolder_" + camera``), sorted by path,
    and a fourth part, :class:`.track_source.Sighting`, where tracks or times are read; ``query``
    and ``gallery`` (path, identity, camera), numbered from 0.

    Raises:
        FileNotFoundError: ROOT, QUERY, GALLERY, CSV or LEAVE_OUT does not exist.
        ValueError: the options contradict each other; COMBINEALL; no image; an image whose camera
            is not found; a row of LEAVE_OUT without an image; labels that cannot be evaluated.
            Every message names the key to change.
    """

    dataset_name = "camerafolder"

    @configurable
    def __init__(self, *, folder: str = "", source: CameraSource | None = None,
                 tracks: TrackSource | None = None, query: str = "", gallery: str = "",
                 system_folders: str = "skip", leave_out: str = "", combineall: bool = False,
                 **kwargs: Any) -> None:
        if combineall:
            raise UserError(
                f"DATASETS.COMBINEALL True adds the images to test with to those to train on, and "
                f"images of {type(self).__name__} have no identities to go with theirs: set it to "
                f"False. To train on more images, put them below {SECTION}.ROOT.")
        if bool(query) != bool(gallery):
            given, other = ("QUERY", "GALLERY") if query else ("GALLERY", "QUERY")
            raise UserError(f"{SECTION}.{given} is {printable(query or gallery)}, but {SECTION}."
                            f"{other} is empty: an evaluation needs both.")
        if system_folders not in SYSTEM_FOLDERS:
            raise UserError(f"{SECTION}.SYSTEM_FOLDERS {system_folders!r} is unknown, known are "
                            f"{SYSTEM_FOLDERS}.")
        self.dataset_dir = folder
        self._reads_system_folders = system_folders == "read"
        self._source, self._tracks = source or CameraSource(), tracks or TrackSource()
        self._leave_out = leave_out
        # the toolbox lists the images of its mode at once: "query" is empty until then
        self._places = "", ""
        super().__init__(self._list_train, [], [], **{"mode": "query", **kwargs})
        self._places = query, gallery

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.CAMERA_FOLDER
        tracks = TrackSource(track=node.TRACK, level=node.TRACK_LEVEL, time=node.TIME,
                             pattern=node.TRACK_PATTERN, csv=node.CSV)
        for_tracks_only = node.CAMERA != "csv" and "csv" in (node.TRACK, node.TIME)
        source = CameraSource(camera=node.CAMERA, level=node.LEVEL, pattern=node.PATTERN,
                              csv="" if for_tracks_only else node.CSV, unmatched=node.UNMATCHED)
        return {"folder": node.ROOT, "source": source, "tracks": tracks, "query": node.QUERY,
                "gallery": node.GALLERY, "system_folders": node.SYSTEM_FOLDERS,
                "leave_out": node.LEAVE_OUT,
                "combineall": cfg.DATASETS.COMBINEALL and cls.__name__ in cfg.DATASETS.NAMES}

    @property
    def query(self) -> list[tuple[str, int, int]]:
        return self._labelled.query if self._places[0] else []

    @property
    def gallery(self) -> list[tuple[str, int, int]]:
        return self._labelled.gallery if self._places[1] else []

    @property
    def test_cameras(self) -> list[str]:
        """Names of the cameras of ``query`` and ``gallery``, by their number."""
        return self._labelled.camera_names if self._places[0] else []

    @property
    def left_out(self) -> dict[str, int]:
        """How many files below ROOT are no images by their names, by suffix ("" for none).

        Raises:
            FileNotFoundError, ValueError: as for ``train``, of the folder only.
        """
        return dict(sorted(self._listing.others.items()))

    @property
    def left_out_folders(self) -> dict[str, int]:
        """How many images below ROOT lie in folders that systems keep for themselves, by the
        folders' names; raises as ``left_out`` does."""
        return dict(sorted(self._listing.system.items()))

    @functools.cached_property
    def left_out_images(self) -> list[str]:
        """Paths of the images below ROOT that LEAVE_OUT names; raises as ``train`` does."""
        if not self._leave_out:
            return []
        return listed_images(self._leave_out, f"{SECTION}.LEAVE_OUT", self._listing.paths)

    @functools.cached_property
    def _folder(self) -> str:
        return existing_folder(self.dataset_dir, f"{SECTION}.ROOT")

    @functools.cached_property
    def _listing(self) -> Listing:
        return list_images(self._folder, f"{SECTION}.ROOT",
                           system_folders=self._reads_system_folders)

    @functools.cached_property
    def _labelled(self) -> Labelled:
        return read_labelled(*self._places, system_folders=self._reads_system_folders)

    @functools.cached_property
    def _cameras(self) -> list[str | None]:
        return self._source.read(self._folder, self._listing.paths)

    @functools.cached_property
    def _wanted(self) -> list[tuple[str, str | None]]:
        """The images that are not left out, and their cameras."""
        spare = set(self.left_out_images)
        pairs = zip(self._listing.paths, self._cameras, strict=True)
        found = [pair for pair in pairs if pair[0] not in spare]
        if not found:
            raise UserError(f"{SECTION}.LEAVE_OUT {printable(self._leave_out)} names all "
                            f"{len(spare)} images below {SECTION}.ROOT: none is left.")
        return found

    def _without_camera(self) -> list[str]:
        return [path for path, camera in self._wanted if camera is None]

    def _list_train(self) -> list[tuple[Any, ...]]:
        paths, missing = [path for path, _ in self._wanted], self._without_camera()
        if missing and (self._source.unmatched == "error" or len(missing) == len(paths)):
            remedy = ("." if len(missing) == len(paths) else
                      f", or set {SECTION}.UNMATCHED skip to leave them out.")
            raise UserError(self._source.why_not(self._folder, missing, len(paths)) + remedy)
        if self._places[0]:
            _ = self._labelled  # its errors, before hours of training
        items = [(path, NO_IDENTITY, CAMERA_PREFIX + camera)
                 for path, camera in self._wanted if camera is not None]
        if not self._tracks:
            return items
        # of all images: whatever else the table holds names an image that is there
        seen = dict(zip(self._listing.paths, self._tracks.read(self._folder, self._listing.paths),
                        strict=True))
        return [(*item, seen[item[0]]) for item in items]

    def show_train(self) -> None:
        """Logs what there is, without the toolbox's count of identities, and what was left out."""
        listing, missing = self._listing, self._without_camera()
        logger.info("%s: %d images of %d camera(s) below %s, without identities.",
                    type(self).__name__, len(self.train), self.get_num_cams(self.train),
                    printable(self._folder))
        if self.left_out:
            counts = ", ".join(f"{count} {printable(suffix) or 'without suffix'}"
                               for suffix, count in self.left_out.items())
            others = listing.others.total()
            logger.log(
                logging.WARNING if others > len(listing.paths) else logging.INFO,
                "%s: %d files below %s are no images by their names and are left out: %s.",
                type(self).__name__, others, printable(self._folder), counts)
        if self.left_out_folders:
            logger.info(
                "%s: %d images below %s are left out, in folders that systems keep thumbnails and "
                "deleted files in: %s. %s.SYSTEM_FOLDERS read takes them.", type(self).__name__,
                listing.system.total(), printable(self._folder),
                ", ".join(f"{printable(name)} ({count})"
                          for name, count in self.left_out_folders.items()), SECTION)
        if self.left_out_images:
            logger.info("%s: %d images below %s are left out, which %s.LEAVE_OUT %s names.",
                        type(self).__name__, len(self.left_out_images), printable(self._folder),
                        SECTION, printable(self._leave_out))
        for path, target in listing.loops:
            logger.warning("The link %s leads back to %s, in which it lies: it is not followed.",
                           printable(path), printable(target))
        if missing:
            logger.warning(
                "%s.UNMATCHED skip leaves out %d of %d images, whose camera is not found (first: "
                "%s).", SECTION, len(missing), len(self._wanted), printable(missing[0]))
        self._show_tracks()
        self._warn_of_tiny_cameras()
        self._warn_of_overlap()
        self._warn_of_labels({f"{SECTION}.ROOT": {name for name in self._cameras if name}})

    def _show_tracks(self) -> None:
        if not self._tracks:
            return
        cameras = [item[2].removeprefix(CAMERA_PREFIX) for item in self.train]
        seen: list[Sighting] = [item[3] for item in self.train]
        with_track = [pair for pair in zip(cameras, seen, strict=True) if pair[1].track]
        tracks = len({(camera, item.track) for camera, item in with_track})
        logger.info("%s: %d images are of %d tracks, %d of none. A name under several cameras is a "
                    "track in each.", type(self).__name__, len(with_track), tracks,
                    len(seen) - len(with_track))
        for text in oddities(cameras, seen):
            logger.warning("%s", text)

    def _warn_of_tiny_cameras(self) -> None:
        images, cameras = len(self.train), self.get_num_cams(self.train)
        if cameras > MANY_CAMERAS and images < min(3 * cameras, FEW_IMAGES) * cameras:
            logger.warning(
                "%d images are of %d cameras, %.1f each: are these cameras, or tracks, people or "
                "days? Images of one camera must have one name: %s", images, cameras,
                images / cameras, self._source.how_to_change(self._folder, self._listing.paths))

    def _warn_of_overlap(self) -> None:
        tested = self._labelled.query + self._labelled.gallery if self._places[0] else []
        trained = set(same_file_names([item[0] for item in self.train]))
        names = same_file_names([item[0] for item in tested])
        both = [name for name in names if name in trained]
        if both:
            logger.warning(
                "%d of the %d images of %s.QUERY and GALLERY lie below ROOT and are trained on, "
                "without their identities: what is measured on them tells little of new images "
                "(first: %s).", len(both), len(tested), SECTION, first_of(both[:1]))

    def show_test(self) -> None:
        """Logs the toolbox's table, and what is odd about the labels."""
        super().show_test()
        self._warn_of_labels({})

    def _warn_of_labels(self, places: dict[str, set[str]]) -> None:
        """Warns of the labelled images, and of cameras that may be the same, there and in others'
        ``places``."""
        for text in self._labelled.warnings if self._places[0] else []:
            logger.warning("%s", text)
        if alike := alike_names(places | (self._labelled.cameras if self._places[0] else {})):
            logger.warning(
                "Cameras that differ only in their spelling are different cameras: %s. If one is "
                "meant, write it the same everywhere: images of the query's own camera are not "
                "left out otherwise, and the figures are too good.", alike)
