"""From a folder of crops to people: what ``caureid people`` does, and the same from Python."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from fastreid.config import CfgNode, get_cfg
from tqdm import tqdm

from ..clustering.tracks import Tracks, overlapping
from ..common.errors import UserError
from ..common.files import write_atomically
from ..common.text import printable
from ..config import add_caureid_config
from ..data import CameraFolder, build_dataset
from ..data.camera_folder import CAMERA_PREFIX
from ..engine.checks import check_clustering, naming_cluster_keys
from ..retrieval import Embedder, load_run
from ..retrieval.sync import embed_readable, list_entries
from ..runs.folder import read_config
from .assign import assign, settings_of
from .corrections import Correction, Facts, facts, read_corrections
from .judge import read_truth, say_truth
from .mot import MotFile, numbered, read_mot, tracks_of
from .page import make_page
from .table import (
    Crop,
    Known,
    People,
    as_csv,
    as_json,
    check_names,
    check_nobody_is_twice,
    read_known,
    with_known,
)

logger = logging.getLogger("fastreid.caureid")

FOLDER, CLUSTER = "CAMERA_FOLDER.", "CAUREID.CLUSTER."
KEYS = ("CAMERA", "LEVEL", "PATTERN", "CSV", "TRACK", "TRACK_LEVEL", "TRACK_PATTERN", "TIME",
        "UNMATCHED", "SYSTEM_FOLDERS")
CROPS_TABLE, CROPS_STATE = "crops.csv", ".crops.json"  # of caureid crops, in its output folder
BLOCK = 512  # crops that are embedded at once
# Of pairs of different people's crops, that the least similarity of neighbours lets through. It
# only keeps strangers apart in footage of few people; measured, see docs/people.md.
LEAST_RATE = 0.01
NAMED = 5  # crops that cannot be read and are named


def find_people(run: str | os.PathLike[str], folder: str | os.PathLike[str], *,
                opts: Sequence[str] = (), known: str | os.PathLike[str] | None = None,
                corrections: str | os.PathLike[str] | None = None, apart_cameras: bool = False,
                mot: Sequence[MotFile] = (), batch_size: int = 64, despite_verdict: bool = False
                ) -> People:
    """Who is on each track of new footage.

    No person is twice in one camera at one time, where times are known.

    Args:
        run: folder of a run, or a checkpoint in one.
        folder: of the crops.
        opts: keys CAMERA_FOLDER and CAUREID.CLUSTER with their values, as on the command line.
        known: an earlier table, whose people keep their numbers; its crops are embedded again.
        corrections: a file of joins and splits.
        apart_cameras: no two cameras see one place, so that nobody is in two of them at one time.
            Their clocks must agree.
        mot: track files; tracks that are in one frame of a file are two people.
        batch_size: crops that the network sees at a time.
        despite_verdict: go on although the run went wrong.

    Raises:
        UserError: a run, a folder, a table or a key that cannot be used; says why.

    Example:
        ::

            people = find_people("logs/my-run", "crops", opts=["CAMERA_FOLDER.TRACK", "folder"])
            for crop, track in zip(people.crops, people.tracks.of_image):
                print(crop.path, people.persons[track], people.confidence[track])
    """
    cfg = _config(Path(run), os.path.abspath(os.path.expanduser(folder)), opts)
    # what contradicts itself is told before the crops are embedded
    given, footage = _read(cfg, known, corrections, apart_cameras, mot)
    embedder = load_run(run)
    if why := embedder.verdict.why_withheld(despite_verdict):
        raise UserError(why)
    least, threshold = _similarities(embedder, run)
    kept, features, unreadable = _embed(
        embedder, footage.crops, {one.crop.path for one in given.known}, batch_size)
    if unreadable:  # tracks stay as long as they were
        footage = _prepare([footage.crops[row] for row in kept], footage.camids[kept],
                           footage.tracks.of_images(kept), given)
    crops, camids, tracks, by_name, stated, first_new = footage
    settings = settings_of(cfg, opts[::2], camids, tracks, least)
    with naming_cluster_keys(cfg, max(1, cfg.CAUREID.CLUSTER.EPS_FIRST_EPOCHS)):
        found = assign(features, camids, tracks, settings, facts=stated, first_new=first_new)
    people = People(crops, tracks, *found, tracks.mean(features).numpy(), embedder.name,
                    embedder.fingerprint, str(settings), threshold, first_new, unreadable, by_name)
    check_nobody_is_twice(people)
    return people


class _Given(NamedTuple):
    """What a call knows beside its crops; ``named``: the folder's tracks, by camera and name."""

    known: list[Known]
    corrections: list[Correction]
    path: Path  # of the corrections
    mot: Sequence[MotFile]
    named: set[tuple[str, str]]


class _Footage(NamedTuple):
    """N crops, their cameras (N,) and tracks, facts, the number of a new person.

    ``by_name``: see :class:`.table.People`.
    """

    crops: list[Crop]
    camids: np.ndarray
    tracks: Tracks
    by_name: dict[tuple[str, str], int]
    facts: Facts
    first_new: int


def _config(run: Path, folder: str, opts: Sequence[str]) -> CfgNode:
    """The run's config, with the folder in place of its own, which is read as the keys say.

    Without a key for the camera, it is read by the table that caureid crops writes into it. If
    there is none, it is read as the run read its own folder, if it has one and no table, which is
    of the training images.
    """
    wrong = [key for key in opts[::2] if not key.startswith(CLUSTER)
             and key not in {FOLDER + name for name in KEYS}]
    if wrong:
        raise UserError(f"{printable(wrong[0])} is no key of this command, which takes "
                        f"{', '.join(FOLDER + name for name in KEYS)} and keys of "
                        f"{CLUSTER[:-1]}.")
    cfg = read_config(run.parent if run.suffix == ".pth" else run)
    own = cfg.CAMERA_FOLDER
    fresh = get_cfg()
    add_caureid_config(fresh)
    cfg.CAMERA_FOLDER = fresh.CAMERA_FOLDER
    table = os.path.join(folder, CROPS_TABLE)
    if f"{FOLDER}CAMERA" in opts[::2]:
        pass
    elif os.path.isfile(table):
        logger.info("Cameras, tracks and times are read from %s.", printable(table))
        cfg.merge_from_list([f"{FOLDER}CSV", table, *(
            part for name in ("CAMERA", "TRACK", "TIME") for part in (FOLDER + name, "csv"))])
    elif os.path.isfile(os.path.join(folder, CROPS_STATE)):
        raise UserError(f"{printable(folder)} has no {CROPS_TABLE}: caureid crops was stopped. "
                        "Give its command again, which goes on.")
    elif CameraFolder.__name__ in cfg.DATASETS.NAMES and not own.CSV:
        cfg.merge_from_list([part for name in KEYS for part in (FOLDER + name, own[name])])
    cfg.merge_from_list(list(opts))
    cfg.CAMERA_FOLDER.ROOT = folder
    check_clustering(cfg)
    return cfg


def _list(cfg: CfgNode) -> list[Crop]:
    dataset = build_dataset(cfg, CameraFolder.__name__)
    dataset.show_train()
    found: list[Crop] = []
    for path, _, camera, *seen in dataset.train:
        sighting = seen[0] if seen else None
        found.append(Crop(path, camera.removeprefix(CAMERA_PREFIX),
                          *((sighting.track or "", sighting.time) if sighting else ())))
    check_names(found)
    return found


def _read(cfg: CfgNode, known: str | os.PathLike[str] | None,
          corrections: str | os.PathLike[str] | None, apart_cameras: bool, mot: Sequence[MotFile]
          ) -> tuple[_Given, _Footage]:
    """Everything but the network, and what follows of it; see :func:`find_people`."""
    rows = [] if known is None else read_known(Path(known))
    lines = [] if corrections is None else read_corrections(Path(corrections))
    listed = _list(cfg)
    crops = listed if known is None else with_known(listed, rows, Path(known))
    given = _Given(rows, lines, Path(corrections or ""), mot,
                   {(crop.camera, crop.track) for crop in listed if crop.track})
    camids = np.unique([crop.camera for crop in crops], return_inverse=True)[1].astype(np.int64)
    tracks = Tracks.of(camids, [crop.track or None for crop in crops],
                       [crop.seconds for crop in crops], one_place=apart_cameras)
    if without := int(np.isnan(tracks.first).sum()):
        logger.warning("%d of %d tracks have no time (CAMERA_FOLDER.TIME): a person may be twice "
                       "in one camera at one time.", without, len(tracks))
    return given, _prepare(crops, camids, tracks, given)


def _prepare(crops: list[Crop], camids: np.ndarray, tracks: Tracks, given: _Given) -> _Footage:
    of_path = {one.crop.path: one.person for one in given.known}
    persons = np.zeros(len(tracks), dtype=np.int64)
    np.maximum.at(persons, tracks.of_image, [of_path.get(crop.path, 0) for crop in crops])
    by_name = {(crop.camera, crop.track): track
               for crop, track in zip(crops, tracks.of_image.tolist(), strict=True)
               if (crop.camera, crop.track) in given.named}
    stated = facts(crops, tracks.of_image, persons, [*map(tuple, overlapping(tracks).tolist())],
                   given.corrections, given.path,
                   in_frames=tracks_of(given.mot, by_name) if given.mot else ())
    return _Footage(crops, camids, tracks, by_name, stated, int(persons.max(initial=0)) + 1)


def _embed(embedder: Embedder, crops: list[Crop], known: set[str], batch_size: int
           ) -> tuple[np.ndarray, torch.Tensor, list[str]]:
    """Rows (M,) of the crops that can be read, their features (M, D), why others cannot."""
    kept, parts, errors = [], [], []
    with tqdm(total=len(crops), desc="embedding", unit="crop", disable=None) as bar:
        for first in range(0, len(crops), BLOCK):
            block = {crop.path: row for row, crop in enumerate(crops[first:first + BLOCK], first)}
            readable, features, wrong = embed_readable(
                embedder, list_entries("", list(block), None), batch_size)
            kept += [block[entry.name] for entry in readable]
            parts.append(features)
            for entry, why in wrong.items():
                if entry.name in known:
                    raise UserError(f"A crop of --known cannot be read: {why}")
                errors.append(why)
            bar.update(len(block))
    if not kept:
        raise UserError(f"None of the {len(crops)} crops can be read: {errors[0]}")
    return np.array(kept), torch.from_numpy(np.concatenate(parts)), errors


def _similarities(embedder: Embedder, run: str | os.PathLike[str]) -> tuple[float, float]:
    """The least similarity of tracks that are neighbours, and the run's threshold."""
    statistics = embedder.statistics
    if statistics is None:
        raise UserError(
            f"{printable(run)} has no threshold, and in footage of few people strangers would "
            f"become one: measure it with caureid threshold ({embedder.why_no_statistics}).")
    return (statistics.threshold(max(LEAST_RATE, statistics.lowest_rate)).value,
            statistics.threshold().value)


def summary(people: People) -> str:
    """How many people there are, and how many tracks without one."""
    found = people.of_person()
    nobody = found.pop(0, [])
    cameras = [{people.crops[people.rows[track][0]].camera for track in tracks}
               for tracks in found.values()]
    known = sum(person < people.first_new for person in found)
    crops = int(people.tracks.lengths[nobody].sum())
    return (
        f"{len(people.crops)} crops of {len(people.tracks)} tracks, embedded by "
        f"{printable(people.network)}: {people.settings}.\n"
        f"{len(found)} people, {sum(len(names) > 1 for names in cameras)} of them in several "
        f"cameras{f'; {known} were known' if people.first_new > 1 else ''}. {len(nobody)} tracks "
        f"({crops} crops) have no person.")


def run(args: SimpleNamespace) -> int:
    """``caureid people``; gives its exit code, 1 if a crop could not be read.

    Args:
        args: its options.

    Raises:
        UserError, OSError: see :func:`find_people`; or a file cannot be written.
    """
    home = args.run_folder
    if args.checkpoint:
        home = args.checkpoint if args.checkpoint.is_file() else home / args.checkpoint
    mot = read_mot(args.mot)
    _check_outputs(args, mot)
    truth = read_truth(args.truth) if args.truth else None
    people = find_people(
        home, args.folder, opts=args.opts, known=args.known, corrections=args.corrections,
        apart_cameras=args.apart_cameras, mot=mot, batch_size=args.batch_size,
        despite_verdict=args.despite_verdict)
    _write(people, args, mot)
    print(summary(people))
    if people.unreadable:
        print(f"caureid people: {len(people.unreadable)} crops cannot be read and are in no table; "
              "the others are:", *people.unreadable[:NAMED], sep="\n", file=sys.stderr)
    if truth:
        print(say_truth(people, truth))
    return int(bool(people.unreadable))


def _numbered_file(output: Path, path: Path) -> Path:
    """Where a track file is written with persons."""
    return output.with_name(f"{output.stem}_{path.name}")


def _check_outputs(args: SimpleNamespace, mot: Sequence[MotFile]) -> None:
    """Looks that no file is written over one that is read, or twice.

    Raises:
        UserError: one would be; --output may replace --known.
    """
    tables = [args.opts[row + 1] for row in range(0, len(args.opts), 2)
              if args.opts[row] == f"{FOLDER}CSV"]
    read = [args.corrections, args.truth, *tables, args.folder / CROPS_TABLE,
            *(file.path for file in mot)]
    taken = {os.path.realpath(os.path.expanduser(path)) for path in read if path}
    for option, path in [("--output", args.output), ("--page", args.page), ("--json", args.json),
                         *(("--mot", _numbered_file(args.output, file.path)) for file in mot)]:
        if path is None:
            continue
        if os.path.realpath(path) in taken:
            raise UserError(f"{option} would write {printable(path)}, which this command reads or "
                            "writes for something else: give --output another name or folder.")
        taken.add(os.path.realpath(path))
        if args.known:  # from here on: --output, which comes first, may replace it
            taken.add(os.path.realpath(args.known))


def _write(people: People, args: SimpleNamespace, mot: Sequence[MotFile]) -> None:
    """Writes all files, the table last: where it is new, they are."""
    def folder(path: Path) -> str:
        return os.path.dirname(os.path.abspath(path))

    if args.page:
        write_atomically(args.page, make_page(people, folder(args.page)))
    if args.json:
        write_atomically(args.json, as_json(people, folder(args.json)))
    persons = {name: int(people.persons[track]) for name, track in people.by_name.items()}
    for path, text in numbered(mot, persons, int(people.persons.max(initial=0))).items():
        write_atomically(_numbered_file(args.output, path), text)
    write_atomically(args.output, as_csv(people, folder(args.output)))
