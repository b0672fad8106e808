#!/usr/bin/env python3
"""A table of tracks as a tracker would give them, made from the names of Market-1501's images.

    tools/benchmarks/tracks.py --root Market-1501-v15.09.15/bounding_box_train \\
        --errors 0.05 --seed 1 --output tracks.csv
    caureid train --config-file Market/caureid_tracks.yml \\
        CAMERA_FOLDER.ROOT Market-1501-v15.09.15/bounding_box_train CAMERA_FOLDER.CSV tracks.csv

This is an oracle: the tracks come from the identities, so the table is for measuring only. A track
is a person in one sequence of one camera, until no image follows for LOST frames. With
--errors, that share of all tracks is cut in two at a random place, and as many pairs are joined: a
track and the one that begins next in its camera, of another person, as when a tracker swaps them.

MARS needs no table: its names, such as 0001C1T0001F001.jpg, hold the person, camera and track, and
no time.

    CAMERA_FOLDER.ROOT bbox_train CAMERA_FOLDER.CAMERA pattern CAMERA_FOLDER.PATTERN 'C([0-9])T' \\
        CAMERA_FOLDER.TRACK pattern CAMERA_FOLDER.TRACK_PATTERN '(?P<track>[0-9]+C[0-9]T[0-9]+)F'
"""

import argparse
import csv
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

NAME = re.compile(r"(-?[0-9]+)_c([0-9])s([0-9])_([0-9]+)_.*\.jpg")
LOST = 200  # frames, 8 seconds; Market-1501 has an image of a person about every 25 frames
RATE = 25.0  # frames a second
SEQUENCE = 1e5  # seconds between the beginnings of two sequences: no two overlap


class Image(NamedTuple):
    """What an image's name tells."""

    identity: int
    camera: int
    sequence: int
    frame: int
    name: str


def parse(name: str) -> Image:
    """Reads a name such as ``0002_c1s1_000451_03.jpg``.

    Raises:
        ValueError: it is of another form.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name} is not named as in Market-1501 (0002_c1s1_000451_03.jpg)")
    return Image(*(int(group) for group in match.groups()), name)


def oracle(images: list[Image]) -> list[list[Image]]:
    """The tracks of a tracker without errors, each in the order of time."""
    tracks: list[list[Image]] = []
    for image in sorted(images):
        before = tracks[-1][-1] if tracks else None
        if before is None or before[:3] != image[:3] or image.frame - before.frame > LOST:
            tracks.append([])
        tracks[-1].append(image)
    return tracks


def with_errors(tracks: list[list[Image]], share: float, seed: int) -> list[list[Image]]:
    """Cuts a share of the tracks in two, then joins as many pairs of two people's.

    Tracks of one image cannot be cut; where too few others are left, fewer are cut or joined.
    """
    rng = np.random.default_rng(seed)
    wanted = round(share * len(tracks))
    long = [i for i, track in enumerate(tracks) if len(track) > 1]
    cut = set(rng.permutation(long)[:wanted].tolist())
    pieces = []
    for i, track in enumerate(tracks):
        place = int(rng.integers(1, len(track))) if i in cut else 0
        pieces += [track[:place], track[place:]] if place else [track]
    begin = sorted(pieces, key=lambda track: (track[0].camera, *track[0][2:]))
    joined: set[int] = set()
    for i in rng.permutation(len(begin) - 1).tolist():
        one, other = begin[i], begin[i + 1]
        if len(joined) < 2 * wanted and not {i, i + 1} & joined and (
                one[0][1:3] == other[0][1:3] and one[0].identity != other[0].identity):
            joined |= {i, i + 1}
            begin[i] = one + other
            begin[i + 1] = []
    return [track for track in begin if track]


def write(tracks: list[list[Image]], folder: Path, output: Path) -> None:
    """The table of CAMERA_FOLDER.CSV, of images in ``folder``."""
    with open(output, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "camera", "track", "seconds"))
        for number, track in enumerate(tracks):
            for image in track:
                writer.writerow((os.path.abspath(folder / image.name), image.camera, number,
                                 image.sequence * SEQUENCE + image.frame / RATE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--errors", type=float, default=0.0, metavar="SHARE")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--output", type=Path, required=True, metavar="CSV")
    args = parser.parse_args()
    images = [parse(name) for name in sorted(os.listdir(args.root)) if name.endswith(".jpg")]
    right = oracle(images)
    tracks = with_errors(right, args.errors, args.seed)
    write(tracks, args.root, args.output)
    mixed = sum(len({image.identity for image in track}) > 1 for track in tracks)
    print(f"{len(images)} images, {len(right)} tracks without errors; {len(tracks)} written, "
          f"{mixed} of them of two people")


if __name__ == "__main__":
    main()
