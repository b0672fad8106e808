"""``caureid serve``: search by dropping crops on a web page."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import click

from .common import Command, index, network

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
@index
@click.option("--host", default="127.0.0.1", show_default=True, callback=_given, metavar="ADDRESS",
              help="address to listen on; the default is for this machine only")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True,
              metavar="N", help="port to listen on; 0 takes a free one")
@click.option("--allow-host", multiple=True, metavar="NAME", callback=_names,
              help="name that browsers may use for this page, such as that of a proxy in front of "
                   "it; can be given several times")
@click.option("--max-upload-mib", type=click.IntRange(1, 100), default=8, show_default=True,
              metavar="MIB", help="largest query image, in MiB")
@click.option("--top", type=click.IntRange(1, 500), default=20, show_default=True, metavar="N",
              help="crops to show for a query")
@click.option("--false-match-rate", metavar="RATE",
              type=click.FloatRange(0, 1, min_open=True, max_open=True),
              help="share of pairs of different people that may be marked as the same person  "
                   "[default: 0.001, or the lowest that was measured]")
@click.option("--despite-verdict", is_flag=True,
              help="mark same and different although training went wrong")
def command(**options: Any) -> None:
    """Serves a web page: drop an image on it, see the most similar crops of an index.

    \b
        caureid serve logs/my-run --index crops.index
        caureid serve model.onnx --index crops.index --port 8080 --top 40

    By default only this machine reaches the page. It has no login: with another --host, everyone
    who reaches it sees all crops of the index. docs/web.md says what to put in front of it. It
    writes no files. Ctrl-C or SIGTERM ends it, with exit status 0.
    """
    from ..web.server import run

    run(SimpleNamespace(**options))
