"""The command ``caureid``: a table of commands, each imported only when it is asked for."""

from __future__ import annotations

import difflib
import importlib

import click

from .._version import __version__

# In the order in which a user meets them. A command's own help has the rest.
COMMANDS = {
    "demo": "train on drawn people, and show the result",
    "crops": "cut crops out of videos, by a tracker's files",
    "check": "check images before training on them",
    "train": "train a network, or evaluate one",
    "report": "show a run as one HTML page",
    "attention": "draw where a network looks in images",
    "threshold": "measure how similar two crops of one person are",
    "export": "write a network as ONNX or TorchScript",
    "index": "put a folder of crops into an index",
    "search": "find the crops of an index that are most like a query",
    "people": "give tracks person numbers across cameras",
    "serve": "search on a web page, by dropping crops on it",
    "eps": "choose the radius of the clustering",
    "ablation": "train configs with several seeds, and compare them",
    "weights": "take plain tensors out of an untrusted file of weights",
}


class Table(click.Group):
    """Commands by name; the list of them is shown without importing any."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"{__name__}.{cmd_name}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]
                        ) -> tuple[str | None, click.Command | None, list[str]]:
        close = difflib.get_close_matches(args[0], COMMANDS)
        if close and args[0] not in COMMANDS and not ctx.resilient_parsing:
            ctx.fail(f"There is no command {args[0]!r}: did you mean {' or '.join(close)}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=Table, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="caureid")
def main() -> None:
    """Find the same person across cameras, learnt without identity labels.

    caureid COMMAND --help explains a command. caureid demo needs no images of yours.
    """
