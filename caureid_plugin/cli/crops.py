"""``caureid crops``: crops out of videos, by what a tracker has written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from .common import THERE, Command, Several, WritableFolder


@click.command("crops", cls=Command)
@click.argument("videos", nargs=-1, required=True, metavar="VIDEO...",
                type=click.Path(path_type=Path))
@click.option("--tracks", cls=Several, required=True, type=THERE, metavar="FILE...",
              help="track file of each video, in the order of the videos: MOT's form, a CSV file "
                   "with a header, or ultralytics' folder of labels")
@click.option("--camera", cls=Several, required=True, metavar="NAME...",
              help="camera of each video, in the same order")
@click.option("--start", cls=Several, type=float, metavar="SECONDS...",
              help="time of each video's first frame, by one clock  [default: 0; needed where a "
                   "camera has several videos]")
@click.option("--output", required=True, type=WritableFolder(),
              metavar="FOLDER", help="folder for the crops: a new one, or one to go on with")
@click.option("--every", type=click.IntRange(1), default=1, show_default=True, metavar="K",
              help="look at every K-th frame")
@click.option("--min-height", type=click.IntRange(1), default=64, show_default=True,
              metavar="PIXELS", help="leave lower boxes out")
@click.option("--min-confidence", type=click.FloatRange(0, 1), default=0, show_default=True,
              metavar="X", help="leave boxes out of which the tracker is less sure")
@click.option("--max-overlap", type=click.FloatRange(0, 1), default=0.3, show_default=True,
              metavar="SHARE", help="leave a box out if another one covers more of it")
@click.option("--keep-border", is_flag=True,
              help="also take boxes that end at the picture's border, where they may be cut")
@click.option("--max-per-track", type=click.IntRange(1), default=10, show_default=True,
              metavar="N", help="crops of a track: the sharpest of each of N equal parts of it")
@click.option("--fps", type=click.FloatRange(0, min_open=True), metavar="X",
              help="frames a second of all videos  [default: as they say]")
@click.option("--first-frame", type=click.IntRange(0, 1), default=1, show_default=True,
              metavar="0|1", help="number that the tracker gives the first frame")
@click.option("--format", type=click.Choice(["jpg", "png"]), default="jpg", show_default=True,
              help="of the crops' files")
def command(**options: Any) -> int:
    """Cuts crops of people (vehicles, animals) out of videos, by a tracker's files.

    \b
        caureid crops gate.mp4 --tracks gate.txt --camera gate --output crops
        caureid crops gate.mp4 yard.mp4 --tracks gate.txt yard.txt \\
            --camera gate yard --output crops

    Videos come first. Options that take one word for each video have them in the same order.
    Crops are FOLDER/CAMERA/TRACK/FRAME.jpg. FOLDER/crops.csv is a table of them: path, camera,
    track, frame, seconds.

    Given again, the command skips videos that are done, and begins the others anew.

    Exit status: 0; 1 if a file or an option is wrong, or a video is damaged (crops from before
    the damage are kept); 130 after Ctrl-C, 75 after SIGTERM.
    """
    from ..video.crops import run

    return run(SimpleNamespace(**options))
