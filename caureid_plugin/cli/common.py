"""What the commands share: their arguments, config keys at the end, errors in one line."""

from __future__ import annotations

import difflib
import itertools
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from ..common.errors import UserError, in_one_line
from ..common.signals import EXIT_INTERRUPTED
from ..common.text import printable
from ..config_files import NO_RUN, RUN_CONFIG, get_config_file
from . import keys

_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*")


class Several(click.Option):
    """An option that takes all words up to the next option or config key."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "multiple": True})


class Command(click.Command):
    """A command of ``caureid``: it names a user's errors in one line, and ends with its result."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # unknown options are taken for arguments, since a config's value may be -1
        settings = {"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]}
        super().__init__(*args, **{**kwargs, "context_settings": settings})
        self.takes_keys = any(param.name == "opts" for param in self.params)
        if self.takes_keys:
            # files of an installation, which has no docs
            self.epilog = ("KEY VALUE is a config key and its new value. Comments explain the keys "
                           "in caureid_plugin/config.py and fastreid/config/defaults.py.")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            rest = super().parse_args(ctx, self._repeated(ctx, args))
        except click.BadParameter:  # an argument may be a mistyped option
            for word in args:
                if word.split("=")[0] not in self._names():
                    self._check_word(ctx, word)
            raise
        for param in self.params:
            if isinstance(param, click.Argument) and not ctx.resilient_parsing:
                given = ctx.params.get(param.name or "")
                for word in given if isinstance(given, (list, tuple)) else (given,):
                    self._check_word(ctx, str(word))
        if self.takes_keys and not ctx.resilient_parsing:
            try:
                keys.check(ctx.params["opts"])
            except UserError as error:
                raise click.UsageError(str(error), ctx=ctx) from error
        return rest

    def _repeated(self, ctx: click.Context, args: Sequence[str]) -> list[str]:
        """``--seeds 1 2`` as ``--seeds 1 --seeds 2``, which click understands."""
        several = {name for p in self.params if isinstance(p, Several) for name in p.opts}
        words: list[str] = []
        current = ""
        for before, word in zip(("", *args), args, strict=False):
            if word.startswith("--") or (self.takes_keys and _KEY.fullmatch(word.split("=")[0])
                                         and not os.path.exists(word)):
                if before in several and not ctx.resilient_parsing:
                    raise click.BadOptionUsage(
                        before, f"{before} needs at least one value", ctx=ctx)
                current = word if word in several else ""
            elif current and before != current:
                words.append(current)
            words.append(word)
        return words

    def _check_word(self, ctx: click.Context, word: str) -> None:
        if re.match("--|-[A-Za-z]", word):
            name = word.split("=")[0]
            names = {own.lstrip("-"): own for own in self._names()}  # dashes are alike anyway
            close = difflib.get_close_matches(name.lstrip("-"), names)
            raise click.NoSuchOption(name, ctx=ctx, possibilities=[names[own] for own in close])

    def _names(self) -> list[str]:
        return [opt for p in self.params for opt in (*p.opts, *p.secondary_opts)]

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with in_one_line(ctx.command_path):
                self._check_run(ctx)
                code = super().invoke(ctx)
        except KeyboardInterrupt:
            raise SystemExit(EXIT_INTERRUPTED) from None
        if isinstance(code, int) and code:
            ctx.exit(code)
        return code

    @staticmethod
    def _check_run(ctx: click.Context) -> None:
        """Refuses a folder that is no run, before the seconds that torch's import takes."""
        folder = ctx.params.get("run_folder") or ctx.params.get("run")
        if folder is not None and folder.is_dir() and not (folder / RUN_CONFIG).is_file():
            raise UserError(NO_RUN.format(printable(folder)))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.main(*args, **kwargs)


def call(command: click.Command, words: Sequence[object] | None = None) -> Any:
    """Runs a command as the command line does; returns its exit code, which is 0 or absent.

    Raises:
        SystemExit: as the process would end.
    """
    args = sys.argv[1:] if words is None else [str(word) for word in words]
    try:
        return command.main(args, prog_name=f"caureid {command.name}", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from error


def _pairs(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> list[str]:
    if ctx.resilient_parsing:  # the last value is still to be written
        return list(value)
    for word, after in itertools.zip_longest(value[::2], value[1::2], fillvalue=""):
        key, equals, rest = word.partition("=")
        right = key.upper()
        if _KEY.fullmatch(right) and (equals or (after and key != right)):
            raise click.BadParameter(f"{word} is no config key: write {right} "
                                     f"{shlex.quote(rest if equals else after)}.")
    if len(value) % 2 and not any(word.startswith("--") for word in value):
        raise click.BadParameter(
            f"config keys and values must come in pairs, got {' '.join(value)}")
    return list(value)


def _files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]


def _key_or_value(ctx: click.Context, param: click.Parameter, incomplete: str
                  ) -> list[CompletionItem]:
    """A key where one is due, and files, which are also what an option before takes."""
    is_due = len(ctx.params.get("opts") or ()) % 2 == 0
    # bash shows files where no name fits, and only if they come first
    return _files(ctx, param, incomplete) + [
        CompletionItem(name) for name, default in (keys.known_keys() if is_due else {}).items()
        if name.startswith(incomplete) and not isinstance(default, dict)]


class ConfigFile(click.ParamType):  # type: ignore[type-arg]  # generic in new versions
    """A config: the path of a file, or the name of one that the plugin brings along."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not value:  # the toolbox's own config would be taken
            self.fail("it is empty: name a config, OwnData/caureid.yml for images of your own",
                      param, ctx)
        if not os.path.isfile(value):
            try:
                get_config_file(value)
            except FileNotFoundError as error:
                self.fail(str(error), param, ctx)
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str
                       ) -> list[CompletionItem]:
        folder = Path(get_config_file("Base-caureid.yml")).parent
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yml"))
        return _files(ctx, param, incomplete) + [  # in this order, as above
            CompletionItem(name) for name in names if name.startswith(incomplete)]


def _in_run(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    if path is not None and not (path.is_file() or (ctx.params["run_folder"] / path).is_file()):
        raise click.BadParameter(f"{path} is not a file, neither here nor in the run folder.")
    return path


THERE = click.Path(exists=True, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
config_keys = click.argument("opts", nargs=-1, metavar="[KEY VALUE]...", callback=_pairs,
                             type=click.UNPROCESSED, shell_complete=_key_or_value)
config_file = click.option(
    "--config-file", required=True, metavar="FILE", type=ConfigFile(), is_eager=True,
    help="config: the name of a shipped one, such as Market/caureid.yml, or the path of a file")
run_folder = click.argument("run_folder", type=FOLDER, is_eager=True, metavar="RUN_FOLDER")
checkpoint = click.option(
    "--checkpoint", type=click.Path(path_type=Path), metavar="FILE", callback=_in_run,
    help="checkpoint of the run  [default: the last one]")
network = click.argument("run", type=THERE, metavar="RUN_FOLDER_OR_ONNX")
index = click.option("--index", required=True, type=FOLDER, metavar="INDEX",
                     help="folder that caureid index has made with the same network")


class Writable(click.Path):
    """The path of a file to write: one that cannot be written is refused before the work.

    Args:
        suffixes: of which the file must have one; none: any.
    """

    def __init__(self, *suffixes: str) -> None:
        super().__init__(path_type=Path)
        self.suffixes = suffixes

    def get_metavar(self, *_: Any, **__: Any) -> str:  # click 8.2 gives one argument more
        return "FILE" + "|".join(self.suffixes)

    def convert(self, value: Any, param: click.Parameter | None,
                ctx: click.Context | None) -> Any:
        path = Path(value)
        if self.suffixes and path.suffix.lower() not in self.suffixes:
            self.fail(f"{path} must end in {' or '.join(self.suffixes)}", param, ctx)
        if not path.absolute().parent.is_dir():
            self.fail(f"{path}: the folder {path.parent} does not exist", param, ctx)
        # a rename replaces the file: the folder must be open to that
        if path.is_dir() or not os.access(path.absolute().parent, os.W_OK | os.X_OK):
            self.fail(f"{path} cannot be written", param, ctx)
        return path


class WritableFolder(click.Path):
    """The path of a folder to write to, made if there is none: refused before the work."""

    def __init__(self) -> None:
        super().__init__(file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None,
                ctx: click.Context | None) -> Any:
        super().convert(value, param, ctx)
        path = Path(value)
        there = path.absolute()
        while not os.path.lexists(there):
            there = there.parent
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            self.fail(f"{printable(path)} cannot be made: {printable(there)} is "
                      + ("not writable" if there.is_dir() else "no folder"), param, ctx)
        return path
