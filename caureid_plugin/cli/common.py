"""What the commands share: config keys at the end, paths to write, errors in one line."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from ..common.signals import EXIT_INTERRUPTED
from ..config_files import get_config_file

# What a user can put right; all else is a bug, whose traceback is wanted.
USER_ERRORS = (ImportError, KeyError, OSError, ValueError)
_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*")


class Several(click.Option):
    """An option that takes all words up to the next option or config key."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "multiple": True})


class Command(click.Command):
    """A command of ``caureid``: it names its errors in one line, and ends with what it returns.

    Args:
        errors: types of errors that a user can put right.
    """

    def __init__(self, *args: Any, errors: tuple[type[Exception], ...] = USER_ERRORS,
                 **kwargs: Any) -> None:
        # unknown options are taken for arguments, since a config's value may be -1
        settings = {"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]}
        super().__init__(*args, **{**kwargs, "context_settings": settings})
        self.errors = errors

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, self._repeated(ctx, args))
        for param in self.params:
            if isinstance(param, click.Argument):
                given = ctx.params.get(param.name or "")
                for word in given if isinstance(given, (list, tuple)) else (given,):
                    self._check_word(ctx, str(word))
        return rest

    def _repeated(self, ctx: click.Context, args: Sequence[str]) -> list[str]:
        """``--seeds 1 2`` as ``--seeds 1 --seeds 2``, which click understands."""
        several = {name for p in self.params if isinstance(p, Several) for name in p.opts}
        takes_keys = any(p.name == "opts" for p in self.params)
        words: list[str] = []
        current = ""
        for before, word in zip(("", *args), args, strict=False):
            if word.startswith("--") or (
                    takes_keys and _KEY.fullmatch(word) and not os.path.exists(word)):
                if before in several:
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
            known = [opt for p in self.params for opt in (*p.opts, *p.secondary_opts)]
            raise click.NoSuchOption(
                name, ctx=ctx,
                possibilities=difflib.get_close_matches(f"--{name.lstrip('-')}", known))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            code = super().invoke(ctx)
        except KeyboardInterrupt:
            raise SystemExit(EXIT_INTERRUPTED) from None
        except click.ClickException:  # some of them are OSErrors
            raise
        except self.errors as error:
            text = error.args[0] if type(error) is KeyError and error.args else error
            line = " ".join(str(text).split()) or type(error).__name__
            raise SystemExit(f"{ctx.command_path}: {line}") from error
        if isinstance(code, int) and code:
            ctx.exit(code)
        return code

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
    if len(value) % 2 and not any(word.startswith("--") for word in value):
        raise click.BadParameter(
            f"config keys and values must come in pairs, got {' '.join(value)}")
    return list(value)


config_keys = click.argument("opts", nargs=-1, metavar="[KEY VALUE]...", callback=_pairs,
                             type=click.UNPROCESSED)
def _named(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not value:  # the toolbox's own config would be taken
        raise click.BadParameter(
            "it is empty: name a config, OwnData/caureid.yml for images of your own")
    if not os.path.isfile(value):
        try:
            get_config_file(value)
        except FileNotFoundError as error:
            raise click.BadParameter(str(error)) from error
    return value


config_file = click.option("--config-file", required=True, metavar="FILE", callback=_named,
                           is_eager=True, help="such as Market/caureid.yml, or a path")
network = click.argument("run", type=click.Path(path_type=Path), metavar="RUN_FOLDER_OR_ONNX")


class Writable(click.Path):
    """The path of a file that can be written, which is said before the work and not behind it.

    Args:
        suffixes: of which the file must have one; none: any.
    """

    def __init__(self, *suffixes: str) -> None:
        super().__init__(path_type=Path)
        self.suffixes = suffixes

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


def namespace(**options: Any) -> SimpleNamespace:
    """The options of a command as the functions behind it take them."""
    return SimpleNamespace(**options)
