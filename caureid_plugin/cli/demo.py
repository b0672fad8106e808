"""``caureid demo``: the method on drawn people, from their pictures to the report."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click

from ..common.errors import UserError
from .common import Command, WritableFolder, config_keys


@click.command("demo", cls=Command)
@click.option("--output", type=WritableFolder(),
              default=Path("logs/demo"), show_default=True, metavar="FOLDER",
              help="folder to write")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, metavar="N",
              help="random seed of the training, or of the videos")
@click.option("--videos", type=WritableFolder(), metavar="FOLDER",
              help="instead, write short videos of three cameras, what a tracker makes of them, "
                   "and truth.csv, who is on its tracks")
@config_keys
def command(output: Path, seed: int, videos: Path | None, opts: list[str]) -> int:
    """Draws people in front of six cameras, trains on them, and shows what was learnt.

    It takes a few minutes on a CPU and downloads nothing. The result is report.html in the output
    folder.

    \b
        caureid demo
        caureid demo --output logs/short SOLVER.MAX_EPOCH 5
        caureid demo --videos videos
    """
    if videos and opts:
        raise click.UsageError(f"--videos trains nothing: leave {opts[0]} out.")
    if videos:
        return _draw_videos(videos, seed)
    metrics = output / "metrics.json"
    if metrics.exists():  # FastReID appends to it; an earlier demo's rows are kept aside
        metrics.rename(output / f"metrics-until-{time.strftime('%Y%m%d-%H%M%S')}.json")
    start = time.perf_counter()
    code = _caureid("train", "--config-file", "Synthetic/caureid_best.yml", "SEED", str(seed),
                    "OUTPUT_DIR", str(output), *opts)
    if code:
        return code
    seconds = time.perf_counter() - start
    _draw_people(output / "people.png")
    code = _caureid("report", str(output))
    if not code:
        pictures = Path(os.environ.get("FASTREID_DATASETS", "datasets"), "SyntheticCameras")
        click.echo(_summary(output, seconds, pictures))
    return code


def _caureid(*words: str) -> int:
    """The exit status of a command of ``caureid`` in a process of its own.

    The process has a session of its own, so that each signal reaches it once, from here.
    """
    process = subprocess.Popen([sys.executable, "-m", "caureid_plugin", *words],
                               start_new_session=True)
    before = {number: signal.signal(number, lambda number, _: process.send_signal(number))
              for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
              if signal.getsignal(number) is not signal.SIG_IGN}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _draw_people(path: Path) -> None:
    """Writes a sheet of the people: a row for each person, a column for each camera."""
    from ..data.synthetic.cameras import PRESET_CAMERAS
    from ..data.synthetic.dataset import SEED
    from ..data.synthetic.render import contact_sheet

    contact_sheet(people=8, cameras=len(PRESET_CAMERAS), seed=SEED).save(path)


def _draw_videos(folder: Path, seed: int) -> int:
    """Writes the videos; says what is in them."""
    from ..data.synthetic.video import render_videos

    for one in render_videos(folder, seed=seed):
        click.echo(f"{folder / one.camera}.mp4: {one.walks} people in {one.frames} frames; the "
                   f"tracker's file {one.camera}.txt has {one.tracks} tracks, {one.boxes} boxes")
    return 0


def _summary(output: Path, seconds: float, pictures: Path) -> str:
    """The table at the end of the demo, from the run's own metrics.json, and where to look."""
    from ..runs.metrics import column, read_rows

    rows, problem = read_rows(output / "metrics.json")
    if problem:
        raise UserError(problem)
    lines = ["", f"{'':12}{'before':>10}{'after':>10}"]
    for name, first, last, digits in (
            ("mAP (%)", "start/mAP", "mAP", 1), ("Rank-1 (%)", "start/Rank-1", "Rank-1", 1),
            ("clusters", "labels/clusters", "labels/clusters", 0),
            ("outliers", "labels/outliers", "labels/outliers", 0)):
        before, after = column(rows, first), column(rows, last)
        if before and after:  # the keys may leave out an evaluation
            lines.append(f"{name:12}{before[0][1]:10.{digits}f}{after[-1][1]:10.{digits}f}")
    lines.append(f"{'seconds':12}{'':10}{seconds:10.0f}")
    lines += ["", f"outputs: {output.resolve()}",
              "  people.png, log.txt, metrics.json, model_final.pth, and events for TensorBoard",
              f"  the pictures it learnt from: {pictures.resolve()}", "",
              f"look at it in a browser: {(output / 'report.html').resolve().as_uri()}"]
    return "\n".join(lines)
