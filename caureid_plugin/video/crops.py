"""``caureid crops``: reads videos in order, cuts crops out, keeps the sharpest of each part."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import errno
import hashlib
import itertools
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from ..common import run_lock
from ..common.errors import UserError
from ..common.signals import StopNow, StopRequest
from ..common.text import is_nothing, printable, say
from .choice import Candidates, CropChoice, choose
from .table import Output, Row, digest, folder_name
from .tracks import Tracks, read_tracks

FORMATS = {"jpg": [cv2.IMWRITE_JPEG_QUALITY, 95], "png": []}
_HEIGHT = 128  # pixels at which crops are compared: what is near is not sharper for its size
# Of the frames that a video says it has, the tracks may go beyond: some files only estimate it.
_MORE_FRAMES = 1.1
_FEWER_FRAMES = 2  # than it says a whole video may have: the last ones are often miscounted


class Video(NamedTuple):
    """A video, its track file, its camera, and the time of its first frame.

    Attributes:
        start: seconds, by a clock that all videos share; None: 0.
    """

    path: str | os.PathLike[str]
    tracks: str | os.PathLike[str]
    camera: str
    start: float | None = None


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is to be cut out of a video. ``count``: frames that it says it has, 0 if it does not."""

    path: str
    camera: str
    prefix: str  # of its tracks' names
    start: float
    fps: float
    count: int
    tracks: Tracks
    candidates: Candidates

    @property
    def words(self) -> str:
        return printable(f"{self.camera} ({os.path.basename(self.path)})")

    def folder(self, track: int) -> str:
        return f"{folder_name(self.camera)}/{self.prefix}{track}"

    def seconds(self, frame: int) -> float:
        return self.start + (frame - 1) / self.fps

    def identity(self) -> dict[str, Any]:
        """By what the video is known to be the same in a second call."""
        content = hashlib.sha256(digest(self.path).encode())
        for array in (self.tracks.frames, self.tracks.ids, self.tracks.boxes,
                      self.tracks.confidences):
            content.update(array.tobytes())
        return {"camera": self.camera, "start": self.start, "name": os.path.basename(self.path),
                "content": content.hexdigest()}


def run(args: SimpleNamespace) -> int:
    """``caureid crops``; gives its exit code."""
    count = len(args.videos)
    for name in ("tracks", "camera", "start"):
        given = getattr(args, name)
        if given and len(given) != count:
            raise UserError(
                f"{count} video(s) and {len(given)} of --{name}: give one for each video, in the "
                "order of the videos, which come first: caureid crops a.mp4 b.mp4 --tracks a.txt "
                "b.txt --camera gate yard.")
    videos = [Video(*each) for each in zip(args.videos, args.tracks, args.camera,
                                           args.start or [None] * count, strict=True)]
    names = {field.name for field in dataclasses.fields(CropChoice)}
    choice = CropChoice(**{name: value for name, value in vars(args).items() if name in names})
    with StopRequest() as stop:
        try:
            cut_crops(videos, args.output, choice, fps=args.fps, first_frame=args.first_frame,
                      image_format=args.format, tell=say)
        except StopNow:
            say(f"Stopped; the same command goes on. {printable(args.output)} holds whole crops "
                "and their table.")
            return stop.exit_code
    return 0


def cut_crops(videos: Sequence[Video], output: str | os.PathLike[str],
              choice: CropChoice | None = None, *, fps: float | None = None,
              first_frame: int = 1, image_format: str = "jpg",
              tell: Callable[[str], object] = lambda text: None) -> Path:
    """Cuts crops out of videos, by track files, and writes a table of them.

    They are OUTPUT/CAMERA/TRACK/FRAME.jpg. The table OUTPUT/crops.csv has the columns path (seen
    from its folder), camera, track, frame (from 1) and seconds. Called again, the function skips
    videos that are done, and begins the others anew.

    Args:
        videos: with their track files; see :func:`~caureid_plugin.video.tracks.read_tracks`. A
            camera with several has their numbers, from 1, in its tracks' names: "2-7".
        output: a folder that is new or empty, or that the same call has begun.
        choice: which boxes become crops.
        fps: frames a second of all videos; None: as they say.
        first_frame: the number that the tracker gives a video's first frame, 1 or 0.
        image_format: "jpg" (quality 95) or "png".
        tell: is called with a line about each video.

    Returns:
        The path of the table.

    Raises:
        UserError: a file or an option is wrong; nothing is written then. Or, at the end, a video
            is damaged or shorter than its tracks: crops from before that are kept, and in the
            table.
        StopNow: a signal came, within a ``StopRequest``; whole crops are kept, and in the table.

    Example:
        >>> cut_crops([Video("gate.mp4", "gate.txt", "gate"),
        ...            Video("yard.mp4", "yard.txt", "yard", start=12.5)], "crops")
        PosixPath('crops/crops.csv')
    """
    if image_format not in FORMATS:
        raise UserError(f"--format {image_format} is unknown, known are {', '.join(FORMATS)}.")
    choice = choice or CropChoice()
    plans = _plan(videos, choice, fps, first_frame)
    folder = Path(output)
    options = {**{f"--{name.replace('_', '-')}": value
                  for name, value in dataclasses.asdict(choice).items()},
               "--fps": fps, "--first-frame": first_frame, "--format": image_format}
    identities = [plan.identity() for plan in plans]
    Output(folder, options, identities)  # refuses before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    try:
        run_lock.hold(folder)
    except BlockingIOError as error:
        raise UserError(f"Another process writes crops to {printable(folder)}: wait until it "
                        "ends, or give another folder.") from error
    try:
        return _cut(plans, Output(folder, options, identities), image_format, tell)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(f"--output {printable(folder)}: {error.strerror}. Make room and give the "
                        "same command: videos that are done are kept, and the table is written "
                        "at the end.") from error
    finally:
        run_lock.release(folder)


def _cut(plans: Sequence[_Plan], output: Output, image_format: str,
         tell: Callable[[str], object]) -> Path:
    problems = []
    stopped = False
    done = [output.is_done(number) for number in range(len(plans))]
    for number, plan in enumerate(plans):
        if not done[number]:
            output.begin(number, set(map(plan.folder, plan.candidates.ids.tolist())))
    for number, plan in enumerate(plans):
        if done[number]:
            tell(f"{plan.words}: {len(output.rows(number))} crops are there already.")
            continue
        rows: list[Row] = []
        try:
            _cut_one(plan, output.folder, image_format, rows, tell)
        except (UserError, StopNow) as error:
            output.finish(number, rows, False)
            stopped = isinstance(error, StopNow)
            if stopped:
                break
            problems.append(str(error))
        else:
            output.finish(number, rows, True)
            tell(_summary(plan, rows))
    table = output.write_table()
    tell(f"{printable(table)}: {sum(len(output.rows(number)) for number in range(len(plans)))} "
         "crops.")
    if stopped:
        raise StopNow
    if problems:
        raise UserError(" ".join(problems))
    return table


def _summary(plan: _Plan, rows: Sequence[Row]) -> str:
    less_sharp = len(plan.candidates.frames) - len(rows)
    return (f"{plan.words}: {len(rows)} crops of {len({row.track for row in rows})} tracks, of "
            f"{len(set(plan.tracks.ids.tolist()))} tracks with {len(plan.tracks)} boxes. Left out: "
            f"{_left_out(plan, f'{less_sharp} less sharp than others of their track')}.")


def _left_out(plan: _Plan, *more: str) -> str:
    return ", ".join([*(f"{count} {reason}" for reason, count in plan.candidates.left_out.items()),
                      *more])


def _plan(videos: Sequence[Video], choice: CropChoice, fps: float | None, first_frame: int
          ) -> list[_Plan]:
    """Reads and checks everything, before anything is written."""
    if not videos:
        raise UserError("No video was given.")
    videos = [Video(os.path.abspath(video.path), os.fspath(video.tracks), video.camera.strip(),
                    video.start) for video in videos]
    _check_names(videos)
    plans = []
    of_camera = collections.Counter(video.camera for video in videos)
    numbers: collections.Counter[str] = collections.Counter()
    for video in videos:
        numbers[video.camera] += 1
        prefix = f"{numbers[video.camera]}-" if of_camera[video.camera] > 1 else ""
        plans.append(_plan_one(video, prefix, choice, fps, first_frame))
    _check_times(plans, videos)
    if not any(len(plan.candidates.frames) for plan in plans):
        found = "; ".join(f"{plan.words} has {len(plan.tracks)} boxes, {_left_out(plan)}"
                          for plan in plans)
        raise UserError(f"No box becomes a crop: {found}.")
    return plans


def _check_names(videos: Sequence[Video]) -> None:
    known: dict[str, str] = {}
    for video in videos:
        name = video.camera
        if not name.isprintable() or is_nothing(name):
            raise UserError(f"--camera '{printable(name)}' is no name: write one that can be read, "
                            "and that does not stand for nothing, as none does.")
        number = re.fullmatch(r"0*([0-9]+?)(\.0*)?", name)  # 01 and 1.0 are 1 in tables
        key = number[1] if number else folder_name(name).casefold()
        if known.setdefault(key, name) != name:
            raise UserError(f"--camera {known[key]} and {name} differ only in their spelling: "
                            "write one name for one camera.")
        if video.start is not None and not math.isfinite(video.start):
            raise UserError(f"--start {video.start} is no finite number of seconds.")
    for what, paths in (("video", [video.path for video in videos]),
                        ("track file", [video.tracks for video in videos])):
        for one, other in itertools.combinations(paths, 2):
            # a folder of ultralytics may hold the tracks of several
            if os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other) and (
                    os.path.isfile(one)):
                raise UserError(f"The {what} {printable(one)} is given twice: each video has "
                                "tracks of its own.")


def _plan_one(video: Video, prefix: str, choice: CropChoice, fps: float | None, first_frame: int
              ) -> _Plan:
    path = str(video.path)
    name = printable(path)
    capture = _open(path, name)
    try:
        size = tuple(int(capture.get(key)) for key in
                     (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        count = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        rate = capture.get(cv2.CAP_PROP_FPS) if fps is None else fps
    finally:
        capture.release()
    if min(size) < 1:
        raise UserError(f"{name} has no picture that OpenCV can read.")
    if not (math.isfinite(rate) and rate > 0):
        raise UserError(f"{name} has {rate:g} frames a second, by what it says, and times are "
                        "computed from it: give --fps.")
    width, height = size
    tracks = read_tracks(str(video.tracks), path, (width, height), first_frame)
    if count:
        tracks.refuse(tracks.frames > max(count * _MORE_FRAMES, count + 1),
                      f"are in frames beyond the {count} of {name}: it is the file of another "
                      "video, or the video says a wrong number, which ffmpeg -i OLD -c copy NEW "
                      "corrects")
    return _Plan(path, video.camera, prefix, video.start or 0.0, rate, count, tracks,
                 choose(tracks, (width, height), choice))


def _open(path: str, name: str) -> Any:
    if not os.path.isfile(path):
        raise UserError(f"The video {name} does not exist, or is no file.")
    try:
        path.encode()
    except UnicodeEncodeError as error:  # OpenCV 5 ends the process
        raise UserError(f"OpenCV cannot open {name}: its name, or that of a folder above it, is "
                        "not in UTF-8. Rename it.") from error
    capture = cv2.VideoCapture(path)
    if not capture.isOpened():
        raise UserError(f"{name} is no video that OpenCV can open: it is something else, "
                        "damaged, or of an unknown codec.")
    return capture


def _check_times(plans: Sequence[_Plan], videos: Sequence[Video]) -> None:
    """Nobody may seem to be in two videos of one camera at one time, who was not."""
    for camera in dict.fromkeys(plan.camera for plan in plans):
        own = [(plan, video) for plan, video in zip(plans, videos, strict=True)
               if plan.camera == camera]
        if len(own) > 1 and any(video.start is None for _, video in own):
            raise UserError(f"Camera {printable(camera)} has {len(own)} videos: give --start, the "
                            "seconds at which each video begins, so that their times are apart.")
        ordered = sorted((plan for plan, _ in own), key=lambda plan: plan.start)
        for one, other in itertools.pairwise(ordered):
            end = one.seconds(max(one.count, int(one.tracks.frames.max())))
            if other.start <= end:
                raise UserError(f"Two videos of one camera are in time together: {one.words} lasts "
                                f"until {end:.3f} s, {other.words} begins at {other.start:g} s. "
                                "Correct --start.")


def _cut_one(plan: _Plan, output: Path, image_format: str, rows: list[Row],
             tell: Callable[[str], object]) -> None:
    """Cuts the crops of a video; each that is written is in ``rows``, by track and frame.

    Raises:
        UserError: a frame cannot be read. Of what was seen before, the best is written.
        StopNow: a signal came; the same.
    """
    found = plan.candidates
    left = collections.Counter(zip(found.ids.tolist(), found.parts.tolist(), strict=True))
    best: dict[tuple[int, int], tuple[float, int, np.ndarray]] = {}

    def write(key: tuple[int, int]) -> None:
        _, frame, crop = best.pop(key)
        folder = plan.folder(key[0])
        path = f"{folder}/{frame:06d}.{image_format}"
        (output / folder).mkdir(parents=True, exist_ok=True)
        _, content = cv2.imencode(f".{image_format}", crop, FORMATS[image_format])
        (output / path).write_bytes(content.tobytes())
        row = Row(path, plan.camera, f"{plan.prefix}{key[0]}", frame, plan.seconds(frame))
        bisect.insort(rows, row, key=lambda row: (int(row.track[len(plan.prefix):]), row.frame))

    try:
        for place, picture in _pictures(plan, tell):
            x1, y1, x2, y2 = found.boxes[place]
            crop = picture[y1:y2, x1:x2]
            key = int(found.ids[place]), int(found.parts[place])
            score = sharpness(crop)
            if key not in best or score > best[key][0]:
                # a copy: the whole picture would stay with a part of it
                best[key] = score, int(found.frames[place]), crop.copy()
            left[key] -= 1
            if not left[key]:
                write(key)
    except (UserError, StopNow):
        for key in sorted(best):
            write(key)
        raise


def _pictures(plan: _Plan, tell: Callable[[str], object]) -> Iterator[tuple[int, np.ndarray]]:
    """Each candidate's number, and the picture (H, W, 3) that it is in.

    Reads on to the end of the video: a decoder that leaves damaged frames out does not say so.
    """
    frames = plan.candidates.frames.tolist()
    capture = _open(plan.path, printable(plan.path))
    current = 0
    try:
        with tqdm(total=plan.count or max(frames, default=0), desc=plan.words, unit="frame",
                  leave=False, disable=None) as bar:
            for frame, places in itertools.groupby(range(len(frames)), frames.__getitem__):
                while current < frame:
                    _stop_if_asked()
                    current += 1
                    if not capture.grab():
                        raise UserError(_cannot_read(plan, current))
                    bar.update()
                read, picture = capture.retrieve()
                if not read:
                    raise UserError(_cannot_read(plan, current))
                yield from ((place, picture) for place in places)
            while frames and plan.count and capture.grab():
                _stop_if_asked()
                current += 1
                bar.update()
            if frames and current < plan.count - _FEWER_FRAMES:
                tell(f"{plan.words}: {current} frames can be read, of {plan.count} by what the "
                     "video says. If it is damaged in the middle, and the tracker saw the missing "
                     "frames, later crops show wrong places: look at them.")
    finally:
        capture.release()


def _stop_if_asked() -> None:
    if StopRequest.current is not None and StopRequest.current.signal is not None:
        raise StopNow


def _cannot_read(plan: _Plan, frame: int) -> str:
    if plan.count and frame > plan.count:
        beyond = plan.tracks.frames >= frame
        return (f"{plan.words} ends with frame {frame - 1}, and {beyond.sum()} boxes of "
                f"{plan.tracks.name} are in later frames (first in "
                f"{plan.tracks.places[int(np.argmax(beyond))]}): is it the file of another video? "
                "Crops from before are kept.")
    where = f"is damaged: frame {frame} of {plan.count}" if plan.count else (
        f"is damaged, or ends before the last boxes of {plan.tracks.name}: frame {frame}")
    return (f"{plan.words} {where} cannot be read. Crops from before are kept. Replace the "
            "video and give the command again, or use the table as it is.")


def sharpness(crop: np.ndarray) -> float:
    """The variance of the Laplacian, at one height: larger where more detail is seen.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000.

    Args:
        crop: (H, W, 3) uint8.
    """
    grey = cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY)
    height, width = grey.shape
    size = (max(1, round(width * _HEIGHT / height)), _HEIGHT)
    shrinks = height > _HEIGHT
    same = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return float(cv2.Laplacian(same, cv2.CV_64F).var())
