"""Short videos in which drawn people walk past drawn cameras, and what a tracker makes of them.

The scene of a camera fills its picture. People cross it or come and go, several at once, those
who are nearer in front of the others. All videos begin at the same time. A person walks through
several cameras, one after the other, and is never in two at one time.

Of each camera, a folder gets NAME.mp4 and NAME.txt, the tracks in MOT's form (frame and id from 1,
left, top, width, height, confidence, three times -1). The tracker errs as trackers do
(:class:`Errors`). ``truth.csv`` says who is on each track: camera, track, identity.
"""

from __future__ import annotations

import csv
import functools
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from ...common.errors import UserError
from ...common.text import printable
from .cameras import FACINGS, Camera, Shot, make_camera, make_shot
from .figure import draw_person
from .people import choose_from, make_person
from .render import apply_style, ground_shadow, over
from .scenes import draw_scene
from .shapes import SUPERSAMPLING

FPS = 10
WALK = (40, 60)  # frames of a walk, at least and at most
STRIDE = 12  # frames in which both feet make a step, and drawings of a person
CACHED = 10  # people whose drawings are kept: as many as are there at once, most of the time
SCALE, WIDTH = 0.9, 0.8  # of a drawing's height: the person's height, the drawing's width
# Of the picture's height, for the farthest and the nearest place: a person's height, the feet.
HEIGHTS, FEET = (0.42, 0.62), (0.72, 0.97)
HIDDEN = 0.6  # share of a box behind a nearer one from where a detector sees nobody
NARROWEST = 8  # pixels of a box within the picture

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Errors:
    """What the tracker does wrong: ``cut`` is the share of walks that become two tracks,
    ``swapped`` that of the pairs of people who pass each other and exchange their ids, ``missing``
    that of the boxes left out; ``jitter`` is the standard deviation of a box's sides, in pixels."""

    cut: float = 0.15
    swapped: float = 0.1
    missing: float = 0.05
    jitter: float = 1.0


class Walk(NamedTuple):
    """One person's way through one camera, from frame ``first`` on (counted from 0).

    A place is x in widths of the picture and depth, 0 far and 1 near.
    """

    identity: int
    camera: int
    first: int
    frames: int
    facing: str
    start: tuple[float, float]
    end: tuple[float, float]

    def place(self, frame: int) -> tuple[float, float]:
        """Where the person is in a frame of the video."""
        share = (frame - self.first) / (self.frames - 1)
        return tuple(one + (other - one) * share  # type: ignore[return-value]
                     for one, other in zip(self.start, self.end, strict=True))


class Seen(NamedTuple):
    """A person in a frame (from 0): the place in the list of walks, the box around all that is
    drawn of it, and the share of the box that a nearer person's covers."""

    frame: int
    walk: int
    box: Box
    covered: float


class Tracked(NamedTuple):
    """A line of the tracker's file; frame and id from 1."""

    frame: int
    id: int
    box: Box
    confidence: float


class Written(NamedTuple):
    """What was written of a camera."""

    camera: str
    frames: int
    walks: int
    tracks: int
    boxes: int


def plan_walks(seed: int, people: int, cameras: int, frames: int) -> list[Walk]:
    """Who walks through which camera when; each through two or more, if there are so many.

    Raises:
        UserError: fewer frames than a walk through each camera needs, one after the other.
    """
    slot = WALK[1] + FPS  # a second between two cameras
    if frames < slot * cameras:
        raise UserError(f"seconds={frames / FPS:g}: {cameras} cameras, one after the other, need "
                        f"at least {math.ceil(slot * cameras / FPS)}")
    walks = []
    for identity in range(1, people + 1):
        rng = np.random.default_rng([seed, identity, 0, 0])
        order = rng.permutation(cameras)[:int(rng.integers(min(2, cameras), cameras + 1))]
        for turn, camera in enumerate(order.tolist()):
            part = frames // len(order)
            length = int(rng.integers(WALK[0], WALK[1] + 1))
            first = turn * part + int(rng.integers(part - length - FPS + 1))
            facing = choose_from(rng, FACINGS, (0.2, 0.2, 0.3, 0.3))
            x, depth, drift = rng.uniform(0.15, 0.85), float(rng.random()), rng.uniform(-0.1, 0.1)
            ways = {"right": ((-0.12, depth), (1.12, depth)), "front": ((x, 0.0), (x + drift, 1.0))}
            ways["left"], ways["back"] = ways["right"][::-1], ways["front"][::-1]
            walks.append(Walk(identity, camera, first, length, facing, *ways[facing]))
    return walks


def draw_frames(seed: int, camera: Camera, walks: Sequence[Walk], frames: int,
                size: tuple[int, int]) -> Iterator[tuple[np.ndarray, list[Seen]]]:
    """Draws the frames of a camera's video in their order.

    Args:
        seed: of the people.
        camera: whose scene and style it is.
        walks: through this camera.
        frames: how many.
        size: height and width in pixels.

    Yields:
        The picture, uint8 RGB (H, W, 3), and whom it shows, the nearest first.
    """
    height, width = size
    margin = round(HEIGHTS[1] * height / SCALE)  # people who enter are drawn in part outside
    scene = draw_scene(camera.scene, camera.scene_seed, height * SUPERSAMPLING,
                       width * SUPERSAMPLING)
    scene = cv2.resize(scene, (width, height), interpolation=cv2.INTER_AREA)
    empty = np.pad(scene, ((margin, margin), (margin, margin), (0, 0)), "edge").astype(np.float32)
    shots = [_shot(seed, walk) for walk in walks]
    people = [make_person(np.random.default_rng([seed, walk.identity])) for walk in walks]

    @functools.lru_cache(maxsize=CACHED * STRIDE)
    def drawing(number: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        tall = margin * 2  # the nearest are drawn twice as large, who is far three times
        shot = shots[number]
        shot = replace(shot, phase=shot.phase + 2 * math.pi * step / STRIDE)
        return draw_person(people[number], camera, shot, tall, round(WIDTH * tall))

    light = _shot(seed, walks[0]) if walks else make_shot(np.random.default_rng([seed]))
    for frame in range(frames):
        canvas = empty.copy()
        found: list[tuple[int, Box]] = []
        there = [number for number, walk in enumerate(walks)
                 if 0 <= frame - walk.first < walk.frames]
        for number in sorted(there, key=lambda number: walks[number].place(frame)[1]):
            x, depth = walks[number].place(frame)
            tall = round((HEIGHTS[0] + (HEIGHTS[1] - HEIGHTS[0]) * depth) * height / SCALE)
            wide = round(WIDTH * tall)
            layer, cover = (cv2.resize(part, (wide, tall), interpolation=cv2.INTER_AREA)
                            for part in drawing(number, frame % STRIDE))
            top = round(margin + (FEET[0] + (FEET[1] - FEET[0]) * depth) * height
                        - (1 + SCALE) / 2 * tall)
            left = round(margin + x * width - wide / 2)
            region = canvas[top:top + tall, left:left + wide]
            region[:] = over(ground_shadow(region, cover, shots[number]), layer, cover)
            box = _box_of(cover, left - margin, top - margin, size)
            if box[2] - box[0] >= NARROWEST:
                found.append((number, box))
        small = canvas[margin:margin + height, margin:margin + width] / np.float32(255.0)
        picture = apply_style(np.clip(small, 0.0, 1.0), camera, replace(light, noise_seed=frame))
        found.reverse()
        yield np.round(picture * 255.0).astype(np.uint8), [
            Seen(frame, number, box, max((_covered(box, nearer) for _, nearer in found[:place]),
                                         default=0.0))
            for place, (number, box) in enumerate(found)]


def _shot(seed: int, walk: Walk) -> Shot:
    shot = make_shot(np.random.default_rng([seed, walk.identity, walk.camera + 1, 0]))
    return replace(shot, facing=walk.facing, offset=(0.0, 0.0), scale=SCALE, occlusion="none")


def _box_of(cover: np.ndarray, left: int, top: int, size: tuple[int, int]) -> Box:
    """Around what is covered, within the picture; its right may be left of its left."""
    x, y = (np.flatnonzero((cover > 0.5).any(axis)) for axis in (0, 1))
    return (float(max(x[0] + left, 0)), float(max(y[0] + top, 0)),
            float(min(x[-1] + 1 + left, size[1])), float(min(y[-1] + 1 + top, size[0])))


def _covered(box: Box, other: Box) -> float:
    """The share of a box that another covers."""
    wide = min(box[2], other[2]) - max(box[0], other[0])
    tall = min(box[3], other[3]) - max(box[1], other[1])
    return max(wide, 0) * max(tall, 0) / ((box[2] - box[0]) * (box[3] - box[1]))


def track(seen: Sequence[Seen], identities: Sequence[int], rng: np.random.Generator,
          errors: Errors) -> tuple[list[Tracked], dict[int, int]]:
    """What a tracker writes of people it sees, with errors.

    Args:
        seen: in the order of frames.
        identities: of each walk, of which ``seen`` gives the place.
        rng: draws the errors.
        errors: how many.

    Returns:
        The lines, in the order of frames and ids, and the identity on each id: the one of most of
        its boxes, where people were swapped.
    """
    boxes = [one for one in seen if one.covered < HIDDEN and rng.random() >= errors.missing]
    names = [one.walk for one in boxes]
    cut = rng.random(len(identities)) < errors.cut
    for walk in np.flatnonzero(cut).tolist():
        own = [place for place, one in enumerate(boxes) if one.walk == walk]
        for place in own[round(len(own) * rng.uniform(0.3, 0.7)):]:
            names[place] = walk + len(identities)
    for first, one, other in _passings(boxes):
        if rng.random() < errors.swapped:
            pair = names[one], names[other]
            exchanged = dict(zip(pair, pair[::-1], strict=True))
            names = [exchanged.get(name, name) if box.frame > first else name
                     for name, box in zip(names, boxes, strict=True)]
    ids: dict[int, int] = {}
    lines = []
    votes: dict[int, Counter[int]] = defaultdict(Counter)
    for name, box in zip(names, boxes, strict=True):
        number = ids.setdefault(name, len(ids) + 1)
        votes[number][identities[box.walk]] += 1
        left, top, right, bottom = np.array(box.box) + errors.jitter * rng.standard_normal(4)
        confidence = float(np.clip(0.9 - 0.5 * box.covered + 0.05 * rng.standard_normal(), 0, 1))
        lines.append(Tracked(box.frame + 1, number, (left, top, right, bottom), confidence))
    return sorted(lines), {number: count.most_common(1)[0][0] for number, count in votes.items()}


def _passings(boxes: Sequence[Seen]) -> list[tuple[int, int, int]]:
    """Of each pair of people whose boxes meet: the frame in which they meet most, and the places
    of the two boxes there, in the order of the frames."""
    of_frame = defaultdict(list)
    for place, box in enumerate(boxes):
        of_frame[box.frame].append(place)
    most: dict[tuple[int, int], tuple[float, int, int, int]] = {}
    for frame, places in of_frame.items():
        for one in places:
            for other in places:
                pair = boxes[one].walk, boxes[other].walk
                share = _covered(boxes[one].box, boxes[other].box)
                if pair[0] < pair[1] and share > most.get(pair, (0.0,))[0]:
                    most[pair] = share, frame, one, other
    return sorted(found[1:] for found in most.values())


def render_videos(folder: str | os.PathLike[str], *, seed: int = 1, people: int = 24,
                  cameras: int = 3, seconds: float = 60, size: tuple[int, int] = (192, 320),
                  errors: Errors = Errors()) -> list[Written]:
    """Writes a video and a track file for each camera, and truth.csv, into ``folder``.

    The same arguments give the same bytes of tracks and truth, as long as OpenCV and numpy stay
    the same. Files of the same names are replaced.

    Args:
        folder: is made if it is not there.
        seed: of people, walks and errors.
        people: how many there are.
        cameras: the first so many; a camera has its scene's name.
        seconds: of each video.
        size: height and width in pixels.
        errors: of the tracker.

    Raises:
        UserError: a number is too small; OpenCV cannot write mp4.
        OSError: the folder cannot be written.
    """
    if min(people, cameras) < 1 or min(size) < 64:
        raise UserError(f"people={people}, cameras={cameras}, size={size}: at least 1 person, 1 "
                        "camera and 64 pixels are needed")
    frames = round(seconds * FPS)
    walks = plan_walks(seed, people, cameras, frames)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written, truth = [], []
    for number in range(cameras):
        camera = make_camera(number)
        name = camera.scene
        own = [walk for walk in walks if walk.camera == number]
        seen = _write_video(folder / f"{name}.mp4", draw_frames(seed, camera, own, frames, size),
                            frames, size)
        lines, identities = track(seen, [walk.identity for walk in own],
                                  np.random.default_rng([seed, 0, number + 1]), errors)
        (folder / f"{name}.txt").write_text("".join(
            f"{frame},{track_id},{left:.2f},{top:.2f},{right - left:.2f},{bottom - top:.2f},"
            f"{confidence:.3f},-1,-1,-1\n"
            for frame, track_id, (left, top, right, bottom), confidence in lines))
        truth += [(name, track_id, identity) for track_id, identity in sorted(identities.items())]
        written.append(Written(name, frames, len(own), len(identities), len(lines)))
    with open(folder / "truth.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("camera", "track", "identity"), *truth])
    return written


def _write_video(path: Path, drawn: Iterator[tuple[np.ndarray, list[Seen]]], frames: int,
                 size: tuple[int, int]) -> list[Seen]:
    """Writes the frames; gives whom they show."""
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), FPS, size[::-1])
    if not video.isOpened():
        raise UserError(f"OpenCV cannot write {printable(path)}: its build has no mp4 (mp4v), or "
                        "the folder is not writable")
    found = []
    try:
        # disable=None: a progress bar on terminals only
        for picture, seen in tqdm(drawn, path.name, frames, unit="frame", disable=None):
            video.write(np.ascontiguousarray(picture[..., ::-1]))
            found += seen
    finally:
        video.release()
    return found
