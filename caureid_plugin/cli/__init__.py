"""The command ``caureid``: a table of commands, each imported only when it is asked for."""

from __future__ import annotations

import importlib

import click

from .._version import __version__

# In the order in which a user meets them. A command's own help has the rest.
COMMANDS = {
    "demo": "train on drawn people, and show the result",
    "check": "look at images before training on them",
    "train": "train, or evaluate, as FastReID's train_net.py does",
    "report": "show a run as one HTML page",
    "attention": "draw what the two branches of a network look at",
    "threshold": "measure from which similarity on two crops are one person",
    "export": "write a network as ONNX or TorchScript",
    "index": "put a folder of crops into an index",
    "search": "find the crops of an index that are most like others",
    "serve": "search by dropping crops on a web page",
    "eps": "choose CAUREID.CLUSTER.EPS by clustering with several",
    "ablation": "train configs with several seeds, and compare them",
    "weights": "take plain tensors out of a file of weights",
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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=Table, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="caureid")
def main() -> None:
    """Find the same person across cameras, learnt without identity labels."""
