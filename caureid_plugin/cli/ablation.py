"""``caureid ablation``: configs trained with several seeds, and their table and plot."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from ..common.errors import UserError
from ..config_files import get_config_file
from .common import Command, ConfigFile, Several, WritableFolder, config_keys

# table 2 of the paper on a data set: the config of the full method there
FAMILIES = {"market": "Market/caureid.yml", "duke": "Duke/caureid.yml",
            "synthetic": "Synthetic/caureid.yml", "market_osnet": "Market/caureid_osnet.yml"}
_NO_CSS = ["MODEL.HEADS.CAMSEP.ATTENTION", "none"]
_LOSSES, _ANCHOR = "MODEL.LOSSES.NAME", "MODEL.LOSSES.CACC.ANCHOR"
# its rows: what each is, and the config keys that make it of the full method
ROWS = {
    "baseline": ("InfoNCE only", [*_NO_CSS, _LOSSES, "('InfoNCELoss',)"]),
    "css": ("baseline + CSS", [_LOSSES, "('InfoNCELoss', 'CameraSeparationLoss')"]),
    "cacc": ("baseline + CACC", [*_NO_CSS, _LOSSES, "('InfoNCELoss', 'CACCLoss')"]),
    "full": ("baseline + CSS + CACC", []),
    "sample": ("full, CACC on samples", [_ANCHOR, "sample"]),
    "centre": ("full, CACC on centres", [_ANCHOR, "centre"]),  # the default: the same as full
}
# table 1 of the paper in this harness: methods of others, and the full one
PEERS = {**{row: f"Peers/{row}.yml" for row in (
    "spcl", "cluster_contrast", "cluster_contrast_hard", "cap", "ice")},
    "caureid": "Market/caureid.yml"}
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
@click.option("--family", type=click.Choice([*sorted(FAMILIES), "peers"]),
              help="compare the rows of the paper's table 2 on this dataset; peers: methods of "
                   "others, on Market-1501")
@click.option("--configs", cls=Several, type=ConfigFile(), metavar="FILE...",
              help="compare these configs")
@click.option("--rows", cls=Several, type=click.Choice([*ROWS, *PEERS]), metavar="ROW...",
              help=f"rows of the family: {', '.join(ROWS)}; of peers: {', '.join(PEERS)}  "
                   "[default: all]")
@click.option("--seeds", cls=Several, type=click.IntRange(0), default=(1, 2, 3), metavar="N...",
              callback=_seeds, help="random seeds: each row is trained with each  [default: 1 2 3]")
@click.option("--baseline", metavar="ROW",
              help="row to compare with  [default: baseline, or the first of --configs]")
@click.option("--output", type=WritableFolder(), metavar="FOLDER",
              help="folder to write  [default: logs/ablation/FAMILY]")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, metavar="N",
              help="runs at the same time, which share the CPU's cores")
@config_keys
@click.pass_obj
def command(line: str, /, **options: Any) -> int:
    """Trains several configs with several seeds each, and compares them in a table and a plot.

    \b
        caureid ablation --family synthetic --rows baseline full --seeds 1 2
        caureid ablation --configs plain.yml own.yml --output logs/own

    A family is table 2 of the paper (arXiv 2112.10089) on one dataset, or, as peers, the methods of
    others in configs/Peers. Each run is a call of
    caureid train with the row's config and keys, a seed, and the keys given here. The output folder
    holds a folder ROW-seedN and a log for each run. The log begins with that call.

    Run again, the same command goes on where it stopped: it keeps finished runs, resumes runs
    with a checkpoint and starts the others again. If a run fails, the others go on. Rows with equal
    configs (full and centre) share their runs.

    Whenever a run ends, these files are written again: table.md, table.csv (each run), summary.csv
    (each row) and ablation.png. They also show other finished runs of the folder that have the same
    settings. Nothing is deleted.
    """
    args = SimpleNamespace(**options, command=line)
    _find_rows(args)
    for key in args.opts[::2]:
        if key in OWN_KEYS:
            raise click.UsageError(f"{key} is set for each run: use {OWN_KEYS[key]}")
    from ..ablation.runner import Ablation

    try:
        ablation = Ablation.of(args)
    except UserError as error:  # of a config file, a key, a run folder
        raise click.UsageError(str(error)) from error
    return ablation.run_to_the_end()


def _find_rows(args: Any) -> None:
    """Adds the recipes and the titles of the rows, and what they are compared with."""
    if bool(args.family) == bool(args.configs):
        raise click.UsageError("give either --family or --configs")
    if args.family:
        if args.family == "peers":
            args.recipes = {row: (get_config_file(path), []) for row, path in PEERS.items()}
            args.titles, args.source = dict(PEERS), "family peers"
        else:
            base = FAMILIES[args.family]
            args.recipes = {row: (get_config_file(base), keys) for row, (_, keys) in ROWS.items()}
            args.titles = {row: title for row, (title, _) in ROWS.items()}
            args.source = f"family {args.family}, configs/{base}"
        args.output = args.output or Path("logs/ablation", args.family)
    else:
        args.titles = {Path(path).stem: path for path in args.configs}
        args.recipes = {row: (path if Path(path).is_file() else get_config_file(path), [])
                        for row, path in args.titles.items()}
        args.source = ", ".join(args.configs)
        if len(args.recipes) < len(args.configs):
            raise click.UsageError(f"--configs {' '.join(args.configs)}: two files have the same "
                                   "name, which names the row")
        if args.rows or not args.output:
            raise click.UsageError(
                "--configs needs --output, and no --rows: its files are the rows")
    args.rows = list(args.rows or args.recipes)
    if unknown := [row for row in args.rows if row not in args.recipes]:
        raise click.BadParameter(f"{unknown[0]!r} is not one of "
                                 f"{', '.join(map(repr, args.recipes))}", param_hint="'--rows'")
    args.baseline = args.baseline or next(iter(args.recipes))
    if args.baseline not in args.recipes:
        raise click.UsageError(f"--baseline {args.baseline!r} is unknown, known are "
                               f"{', '.join(args.recipes)}")
