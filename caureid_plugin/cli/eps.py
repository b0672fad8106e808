"""``caureid eps``: what DBSCAN finds at each of several values of eps, and which to take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from .common import Command, ConfigFile, Writable, config_keys

MOST_VALUES = 200  # of eps
# option -> keys below CAUREID.CLUSTER
COUNTS = {"min_samples": ["MIN_SAMPLES"], "k1": ["K1"], "k2": ["K2"], "k1_intra": ["K1_INTRA"],
          "k1_inter": ["K1_INTER"], "k2_intra": ["K2_INTRA", "K2_INTRA_FIRST"],
          "k2_inter": ["K2_INTER", "K2_INTER_FIRST"]}


class Values(click.ParamType):  # type: ignore[type-arg]  # generic in new versions
    """Values of ``0.4,0.5,0.6``, or of ``first:last:step``, which holds both ends."""

    name = "values"

    def convert(self, value: Any, param: click.Parameter | None,
                ctx: click.Context | None) -> list[float]:
        try:
            if ":" not in value:
                return self._within([float(part) for part in value.split(",")], param, ctx)
            first, last, step = (float(part) for part in value.split(":"))
            count = round((last - first) / step) + 1 if step > 0 else 0
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is neither a list such as 0.4,0.5 nor first:last:step", param,
                      ctx)
        if not 1 <= count <= MOST_VALUES:
            self.fail(f"{value!r} holds {count} values, 1 to {MOST_VALUES} are allowed", param, ctx)
        # 0.3, not 0.30000000000000004; what exceeds the end by a part of the step is left out
        values = [round(first + i * step, 10) for i in range(count)]
        return self._within([value for value in values if value <= last + 1e-9], param, ctx)

    def _within(self, values: list[float], param: click.Parameter | None,
                ctx: click.Context | None) -> list[float]:
        for value in values:
            if not 0 < value < 1:  # nan too
                self.fail(f"{value:g} is no eps: 0 < eps < 1", param, ctx)
        return values


def counts(function: Callable[..., None]) -> Callable[..., None]:
    """Adds an option for each of COUNTS."""
    for name, keys in reversed(COUNTS.items()):
        click.option(f"--{name.replace('_', '-')}", type=click.IntRange(1), metavar="N",
                     help=f"replaces CAUREID.CLUSTER.{' and '.join(keys)}")(function)
    return function


@click.command("eps", cls=Command)
@click.option("--config-file", metavar="FILE", type=ConfigFile(),
              help="config whose training images to take, such as Market/caureid.yml")
@click.option("--features", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="take the features in this file, .npy or .npz")
@click.option("--eps", "eps_values", type=Values(), default="0.3:0.75:0.025", show_default=True,
              help="values to try: 0.4,0.5,0.6 or first:last:step")
@click.option("--camera-aware/--no-camera-aware", default=None,
              help="camera-aware neighbours or plain ones  [default: as in the config]")
@counts
@click.option("--diagnostics", is_flag=True,
              help='also compare with true identities: of the dataset, or "identities" in the file')
@click.option("--save-features", type=Writable(".npz"), help="file to write, with the features")
@click.option("--output", type=Writable(".csv"), help="table to write")
@click.option("--plot", type=Writable(".png"), help="picture to write")
@config_keys
def command(config_file: str | None, features: Path | None, camera_aware: bool | None,
            opts: list[str], **options: Any) -> None:
    """Clusters with several values of eps, DBSCAN's radius, and suggests one.

    \b
        caureid eps --config-file Market/caureid.yml
        caureid eps --features features.npz --camera-aware --eps 0.3:0.7:0.05

    With --config-file, the features come from the network that training starts from, or from
    MODEL.WEIGHTS. With --features they are taken from the file as they are; training would
    normalise them. An .npz file has "features" (N, D) and, if known, "camids" (N,). An .npy file
    has only the features. Config keys, CAUREID.CLUSTER.NAME, set the rest of the clustering.

    The table and the suggestion use no identities. --diagnostics adds columns that do, for studies.
    """
    if bool(config_file) == (features is not None):
        raise click.UsageError("Give either --config-file or --features.")
    keys = list(opts)
    if camera_aware is not None:
        keys += ["CAUREID.CLUSTER.CAMERA_AWARE", str(camera_aware)]
    for name, places in COUNTS.items():
        value = options.pop(name)
        for place in places if value is not None else ():
            keys += [f"CAUREID.CLUSTER.{place}", str(value)]
    from ..check.eps import run

    run(SimpleNamespace(config_file=config_file or "", features=features, opts=keys, **options))
