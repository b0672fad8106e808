"""From a folder of crops to people: what ``caureid people`` does, and the same from Python."""

from __future__ import annotations

import dataclasses
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

from ..clustering.tracks import Tracks
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
from .assign import assign, overlapping, settings_of
from .corrections import Correction, Facts, facts, read_corrections
from .judge import say_truth
from .mot import MotFile, numbered, read_mot, tracks_of
from .page import make_page
from .table import (
    Crop,
    Known,
    People,
    as_csv,
    as_json,
    check_nobody_is_twice,
    read_known,
    with_known,
)

logger = logging.getLogger("fastreid.caureid")

FOLDER, CLUSTER = "CAMERA_FOLDER.", "CAUREID.CLUSTER."
KEYS = ("CAMERA", "LEVEL", "PATTERN", "CSV", "TRACK", "TRACK_LEVEL", "TRACK_PATTERN", "TIME",
        "UNMATCHED", "SYSTEM_FOLDERS")
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
    rows = [] if known is None else read_known(Path(known))
    lines = [] if corrections is None else read_corrections(Path(corrections))
    crops = _list(cfg)
    if known is not None:
        crops = with_known(crops, rows, Path(known))

    def prepare() -> _Footage:
        return _prepare(crops, rows, lines, Path(corrections or ""), apart_cameras, mot)

    footage = prepare()  # what contradicts itself is told before the crops are embedded
    embedder = load_run(run)
    if why := embedder.verdict.why_withheld(despite_verdict):
        raise UserError(why)
    least, threshold = _similarities(embedder)
    crops, features, unreadable = _embed(embedder, crops, {one.crop.path for one in rows},
                                         batch_size)
    if unreadable:
        footage = prepare()
    camids, tracks, stated, first_new = footage
    if without := int(np.isnan(tracks.first).sum()):
        logger.warning("%d of %d tracks have no time (CAMERA_FOLDER.TIME): a person may be twice "
                       "in one camera at one time.", without, len(tracks))
    settings = settings_of(cfg, opts[::2], camids, tracks, least)
    with naming_cluster_keys(cfg, max(1, cfg.CAUREID.CLUSTER.EPS_FIRST_EPOCHS)):
        found = assign(features, camids, tracks, settings, facts=stated, first_new=first_new)
    people = People(crops, tracks, *found, tracks.mean(features).numpy(), embedder.name,
                    embedder.fingerprint, str(settings), threshold, first_new, unreadable)
    check_nobody_is_twice(people)
    return people


class _Footage(NamedTuple):
    """What is there: cameras of the crops, their tracks, facts, the number of a new person."""

    camids: np.ndarray
    tracks: Tracks
    facts: Facts
    first_new: int


def _config(run: Path, folder: str, opts: Sequence[str]) -> CfgNode:
    """The run's config, with the folder in place of its own, which is read as the keys say.

    Without a key for the camera, it is read as the run read its own folder, if it has one and no
    table, which is of the training images.
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
    if (CameraFolder.__name__ in cfg.DATASETS.NAMES and not own.CSV
            and f"{FOLDER}CAMERA" not in opts[::2]):
        cfg.merge_from_list([part for name in KEYS for part in (FOLDER + name, own[name])])
    cfg.merge_from_list(list(opts))
    cfg.CAMERA_FOLDER.ROOT = folder
    check_clustering(cfg)
    return cfg


def _list(cfg: CfgNode) -> list[Crop]:
    dataset = build_dataset(cfg, CameraFolder.__name__)
    dataset.show_train()
    found = []
    for path, _, camera, *seen in dataset.train:
        sighting = seen[0] if seen else None
        found.append(Crop(path, camera.removeprefix(CAMERA_PREFIX),
                          *((sighting.track or "", sighting.time) if sighting else ())))
    return found


def _prepare(crops: Sequence[Crop], rows: Sequence[Known], lines: Sequence[Correction],
             path: Path, apart_cameras: bool, mot: Sequence[MotFile]) -> _Footage:
    camids = np.unique([crop.camera for crop in crops], return_inverse=True)[1].astype(np.int64)
    tracks = Tracks.of(camids, [crop.track or None for crop in crops],
                       [crop.seconds for crop in crops], one_place=apart_cameras)
    of_path = {one.crop.path: one.person for one in rows}
    persons = np.zeros(len(tracks), dtype=np.int64)
    np.maximum.at(persons, tracks.of_image, [of_path.get(crop.path, 0) for crop in crops])
    in_frames = tracks_of(mot, names_of(crops, tracks)) if mot else []
    pairs = [*map(tuple, overlapping(tracks).tolist()), *in_frames]
    stated = facts(crops, tracks.of_image, persons, pairs, lines, path)
    return _Footage(camids, tracks, dataclasses.replace(stated, apart=[*stated.apart, *in_frames]),
                    int(persons.max(initial=0)) + 1)


def names_of(crops: Sequence[Crop], tracks: Tracks) -> dict[tuple[str, str], int]:
    """The number of each track that has a name, by camera and name."""
    return {(crop.camera, crop.track): track
            for crop, track in zip(crops, tracks.of_image.tolist(), strict=True) if crop.track}


def _embed(embedder: Embedder, crops: list[Crop], known: set[str], batch_size: int
           ) -> tuple[list[Crop], torch.Tensor, list[str]]:
    """The crops that can be read, their features (N, D), and why the others cannot."""
    kept, parts, errors = [], [], []
    with tqdm(total=len(crops), desc="embedding", unit="crop", disable=None) as bar:
        for first in range(0, len(crops), BLOCK):
            block = {crop.path: crop for crop in crops[first:first + BLOCK]}
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
    return kept, torch.from_numpy(np.concatenate(parts)), errors


def _similarities(embedder: Embedder) -> tuple[float | None, float | None]:
    """The least similarity of tracks that are neighbours, and the run's threshold; None: not
    known."""
    statistics = embedder.statistics
    if statistics is None:
        logger.warning("No threshold is known (%s): in footage of few people, strangers may become "
                       "one. caureid threshold measures it.", embedder.why_no_statistics)
        return None, None
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
    people = find_people(
        home, args.folder, opts=args.opts, known=args.known, corrections=args.corrections,
        apart_cameras=args.apart_cameras, mot=mot, batch_size=args.batch_size,
        despite_verdict=args.despite_verdict)
    _write(people, args, mot)
    print(summary(people))
    if args.truth:
        print(say_truth(people, args.truth))
    if people.unreadable:
        print(f"caureid people: {len(people.unreadable)} crops cannot be read and are in no table; "
              "the others are:", *people.unreadable[:NAMED], sep="\n", file=sys.stderr)
    return int(bool(people.unreadable))


def _write(people: People, args: SimpleNamespace, mot: Sequence[MotFile]) -> None:
    """Writes all files, the table last: where it is new, they are."""
    def folder(path: Path) -> str:
        return os.path.dirname(os.path.abspath(path))

    if args.page:
        write_atomically(args.page, make_page(people, folder(args.page)))
    if args.json:
        write_atomically(args.json, as_json(people, folder(args.json)))
    persons = {name: int(people.persons[track])
               for name, track in names_of(people.crops, people.tracks).items()}
    for path, text in numbered(mot, persons, int(people.persons.max(initial=0))).items():
        write_atomically(args.output.with_name(f"{args.output.stem}_{path.name}"), text)
    write_atomically(args.output, as_csv(people, folder(args.output)))
