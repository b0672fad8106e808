"""``caureid ablation``: configs trained with several seeds, and their table and plot."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from ..config_files import get_config_file
from .common import Command, Several, config_keys, namespace

FAMILIES = {"market": "Market/ablation", "duke": "Duke/ablation",
            "synthetic": "Synthetic/ablation", "market_osnet": "Market/ablation_osnet"}
ROWS = {"baseline": "InfoNCE only", "css": "baseline + CSS", "cacc": "baseline + CACC",
        "full": "baseline + CSS + CACC", "sample": "full, CACC on samples",
        "centre": "full, CACC on centres"}
OWN_KEYS = {"SEED": "--seeds", "OUTPUT_DIR": "--output"}  # set for each run


class _Ablation(Command):
    """It keeps the command line, which the table shows."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.obj = shlex.join(["caureid", "ablation", *args])
        return super().parse_args(ctx, args)


def _seeds(ctx: click.Context, param: click.Parameter, value: tuple[int, ...]) -> list[int]:
    if len(set(value)) < len(value):
        raise click.BadParameter(f"{' '.join(map(str, value))}: a number stands there twice")
    return list(value)


@click.command("ablation", cls=_Ablation)
@click.option("--family", type=click.Choice(sorted(FAMILIES)), help="table 2 on a data set")
@click.option("--configs", cls=Several, metavar="FILE...", help="own config files as rows")
@click.option("--rows", cls=Several, type=click.Choice(list(ROWS)), metavar="ROW...",
              help=f"of the family: {', '.join(ROWS)}  [default: all]")
@click.option("--seeds", cls=Several, type=click.IntRange(0), default=(1, 2, 3), metavar="N...",
              show_default="1 2 3", callback=_seeds)
@click.option("--baseline", metavar="ROW",
              help="row to compare with  [default: baseline; the first of --configs]")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path),
              help="folder  [default: logs/ablation/FAMILY]")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, metavar="N",
              help="runs side by side, which share the CPU's cores")
@config_keys
@click.pass_obj
def command(line: str, /, **options: Any) -> int:
    """Trains the rows of an ablation with several seeds each, and writes their table and plot.

    \b
        caureid ablation --family synthetic --rows baseline full --seeds 1 2
        caureid ablation --configs plain.yml own.yml --output logs/own

    A family is table 2 of the paper (arXiv 2112.10089) on one data set. Every run is a call of
    caureid train with the row's config, the seed and the keys given. It has a folder ROW-seedN
    and a log beside it.

    The same command again goes on where it was stopped: finished runs are kept, a run with a
    checkpoint is resumed, one without is begun again. A run that fails is reported and the others
    go on. Rows whose configs are equal (full and centre) share their runs.

    The files of the output folder are written anew whenever a run ends: table.md, table.csv (each
    run), summary.csv (each row) and ablation.png. They show the rows and seeds asked for, and
    others that are finished with the same settings. Nothing is deleted.
    """
    args = namespace(**options, command=line)
    _find_rows(args)
    for key in args.opts[::2]:
        if key in OWN_KEYS:
            raise click.UsageError(f"{key} is set for each run: use {OWN_KEYS[key]}")
    from ..ablation.runner import Ablation

    try:
        ablation = Ablation.of(args)
    except (KeyError, ValueError) as error:  # of a config file, a key, a run folder
        raise click.UsageError(str(error.args[0])) from error
    return ablation.run_to_the_end()


def _find_rows(args: Any) -> None:
    """Adds the files and the titles of the rows, and what they are compared with."""
    if bool(args.family) == bool(args.configs):
        raise click.UsageError("give either --family or --configs")
    if args.family:
        folder = FAMILIES[args.family]
        files = {row: f"{folder}/{row}.yml" for row in ROWS}
        args.titles, args.source = ROWS, f"family {args.family}, configs/{folder}"
        args.output = args.output or Path("logs/ablation", args.family)
    else:
        files = {Path(path).stem: path for path in args.configs}
        args.titles, args.source = files, ", ".join(args.configs)
        if len(files) < len(args.configs):
            raise click.UsageError(f"--configs {' '.join(args.configs)}: two files have the same "
                                   "name, which names the row")
        if args.rows or not args.output:
            raise click.UsageError(
                "--configs needs --output, and no --rows: its files are the rows")
    args.rows = list(args.rows or files)
    args.baseline = args.baseline or next(iter(files))
    if args.baseline not in files:
        raise click.UsageError(f"--baseline {args.baseline!r} is unknown, known are "
                               f"{', '.join(files)}")
    try:
        args.config_files = {row: path if Path(path).is_file() and not args.family
                             else get_config_file(path)
                             for row, path in files.items()}
    except FileNotFoundError as error:
        raise click.UsageError(str(error)) from error
