"""``caureid serve``: search by dropping crops on a web page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from .common import Command, namespace, network

_HOST = re.compile(r"[A-Za-z0-9._-]+|\[?[0-9A-Fa-f:.]+:[0-9A-Fa-f:.]*\]?")


def _given(ctx: click.Context, param: click.Parameter, host: str) -> str:
    if not host:
        raise click.BadParameter("it is empty: give an address, or leave it out for 127.0.0.1")
    return host


def _names(ctx: click.Context, param: click.Parameter, hosts: tuple[str, ...]) -> tuple[str, ...]:
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise click.BadParameter(f"{host} must be a name or an address, without http:// and "
                                     "without a port: reid.example.org")
    return hosts


@click.command("serve", cls=Command)
@network
@click.option("--index", required=True, type=click.Path(path_type=Path), metavar="INDEX",
              help="folder that caureid index has made with the same network")
@click.option("--host", default="127.0.0.1", show_default=True, callback=_given, metavar="ADDRESS",
              help="to listen on; by default only this machine reaches it")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True,
              help="0: any that is free")
@click.option("--allow-host", multiple=True, metavar="NAME", callback=_names,
              help="another name by which the page is asked for, as of a proxy in front of it; can "
                   "be given several times")
@click.option("--max-upload-mib", type=click.IntRange(1, 100), default=8, show_default=True,
              metavar="MIB", help="size of a query image, at most")
@click.option("--top", type=click.IntRange(1, 500), default=20, show_default=True, metavar="N",
              help="crops that are shown at first")
@click.option("--false-match-rate", metavar="RATE",
              type=click.FloatRange(0, 1, min_open=True, max_open=True),
              help="share of pairs of different people that may be marked as the same  [default: "
                   "0.001, or the lowest that the run's pairs can tell]")
@click.option("--despite-verdict", is_flag=True,
              help="mark same and different although the run's verdict is bad")
def command(**options: Any) -> None:
    """A web page on this machine: drop an image, see the crops of an index that are most like it.

    \b
        caureid serve logs/my-run --index crops.index
        caureid serve model.onnx --index crops.index --port 8080 --top 40

    The page is only for this machine, has no login, and writes no file. With another --host, all
    who reach it see all crops of the index: docs/web.md says what to put in front. Ctrl-C or
    SIGTERM ends it, with exit status 0.
    """
    from ..web.server import run

    run(namespace(**options))
