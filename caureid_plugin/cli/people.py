"""``caureid people``: who is who on the tracks of several cameras."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import click

from .common import FOLDER, THERE, Command, Several, Writable, checkpoint, config_keys, run_folder


@click.command("people", cls=Command)
@run_folder
@click.argument("folder", type=FOLDER, metavar="FOLDER")
@click.option("--output", required=True, type=Writable(".csv"),
              help="table to write: each crop with its person")
@click.option("--page", type=Writable(".html"),
              help="page to write, a person a row, the doubtful ones first")
@click.option("--json", type=Writable(".json"), help="the same for other programs")
@click.option("--known", type=THERE, metavar="FILE.csv",
              help="table of an earlier call, whose people keep their numbers")
@click.option("--corrections", type=THERE, metavar="FILE.csv",
              help="lines action,a,b: join or split, of person numbers or CAMERA/TRACK")
@click.option("--apart-cameras", is_flag=True,
              help="no two cameras see one place, and their clocks agree: nobody is in two cameras "
                   "at one time")
@click.option("--mot", cls=Several, metavar="FILE...",
              help="track files, as FILE named after its camera or CAMERA=FILE, to write beside "
                   "--output with person numbers as ids")
@click.option("--truth", metavar="FILE|PATTERN",
              help="who is on the crops, to measure by: a table with the columns path,identity or "
                   "camera,track,identity, or a regular expression with one group")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, metavar="N",
              help="crops to embed at once")
@click.option("--despite-verdict", is_flag=True, help="go on although training went wrong")
@checkpoint
@config_keys
def command(**options: Any) -> int:
    """Gives every track of new footage a person number, across cameras.

    \b
        caureid people logs/my-run crops --output people.csv --page people.html

    It embeds every crop below FOLDER with the run's last checkpoint, and clusters tracks as the
    run's last epoch did. A crop without a track is one by itself. Nobody is twice in one camera at
    one time. A track that fits nobody has no person.

    Cameras, tracks and times are read from crops.csv in FOLDER, which caureid crops writes. Where
    there is none, FOLDER is read as the run read its own. Keys say another way:
    CAMERA_FOLDER.CAMERA, TRACK, TIME and what goes with them. CAUREID.CLUSTER keys change the
    clustering.

    With --known, new tracks join the people of an earlier table or get new numbers. The new table
    holds both. Its people are never renumbered, and two of them never become one, but by
    --corrections.

    --truth prints how well people match identities. It changes nothing else.

    Exit status: 0; 1 if a crop could not be read.
    """
    from ..people.start import run

    return run(SimpleNamespace(**options))
