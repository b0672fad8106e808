"""Puts what is generated from the code in place of ``<!-- generated: NAME -->`` in a document.

The generated text is Markdown, and goes through the same parser as all else: a link that leads
nowhere in it is found too.
"""

import argparse
import contextlib
import importlib.util
import inspect
import os
import re
import runpy
import sys
from pathlib import Path

import caureid_plugin
import click
import config_keys
from caureid_plugin.cli import COMMANDS, main
from caureid_plugin.common.text import printable

ROOT = Path(__file__).resolve().parents[2]
MARKER = re.compile(r"^<!-- generated: (\w+)(?: ([\w.]+))?(?: without ([\w, ]+))? -->$",
                    re.MULTILINE)
SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|$~])")
CODE = re.compile(
    r"""(?P<code>(?:tools|configs|docs|caureid_plugin)/[\w/.-]+\w|"[\w-]+"|--[a-z][\w-]+"""
    rf"""|caureid (?:{'|'.join(COMMANDS)})\b|(?:[A-Z][A-Z0-9_]+\.)+[A-Z][A-Z0-9_]+)""")


def markdown(text):
    """Plain text as Markdown that shows it: files, options, keys and quoted values as code."""
    parts = CODE.split(text)
    return "".join(f"`{part}`" if i % 2 else SPECIAL.sub(r"\\\1", part)
                   for i, part in enumerate(parts))


# ------------------------------------------------------------------------------ config keys ----


def comment_blocks(comment):
    """Markdown of a comment of config.py: its sentences, and a list where it indents one."""
    blocks, items = [""], []
    for line in comment.splitlines():
        if re.match(r' {1,3}"', line):
            items.append(line.strip())
        elif line.startswith(" ") and items:
            items[-1] += " " + line.strip()
        elif items:  # what follows a list
            blocks.append("\n".join(f"- {markdown(item)}" for item in items))
            blocks.append(line)
            items = []
        else:
            blocks[-1] = f"{blocks[-1]} {line.strip()}".strip()
    texts = [block if block.startswith("- ") else markdown(block) for block in blocks]
    if items:
        texts.append("\n".join(f"- {markdown(item)}" for item in items))
    return "\n\n".join(texts)


def value_of(value):
    return f"`{value!r}`" if not isinstance(value, str) or value == "" else f'`"{value}"`'


def key_entry(key, used):
    """One key: a target to link to, its type, its default, what it means, who sets it."""
    lines = [f"```{{confval}} {key.name}", f":type: {type(key.default).__name__}",
             f":default: {value_of(key.default)}", "", comment_blocks(key.comment)]
    if used:
        values = {}
        for config, value in used.items():
            values.setdefault(value_of(value), []).append(f"`{config}`")
        lines += ["", "Set by shipped configs: " + "; ".join(
            f"{value} in {', '.join(configs)}" for value, configs in values.items()) + "."]
    return "\n".join([*lines, "```"])


def config_reference():
    used = config_keys.settings()
    parts = []
    for group in config_keys.groups():
        parts.append(f"## {group.node}" if group.node else "## In FastReID's own groups")
        # a comment that its first key shares stands with that key
        if group.comment and group.comment not in {key.comment for key in group.keys}:
            parts.append(comment_blocks(group.comment))
        parts += [key_entry(key, used.get(key.name)) for key in group.keys]
    return "\n\n".join(parts)


def config_files():
    """A table of the shipped configs: the first sentence of each, and its base."""
    folder = Path(caureid_plugin.get_config_file("Base-caureid.yml")).parent
    rows = ["| config | what it is | stands on |", "|---|---|---|"]
    for path in config_keys.shipped(folder):
        name = path.relative_to(folder).as_posix()
        base = re.search(r"^_BASE_: (\S+)", path.read_text(), re.MULTILINE)
        on = (path.parent / base[1]).resolve().relative_to(folder.resolve()).as_posix() \
            if base else ""
        rows.append(f"| [{name}](../../configs/{name}) | "
                    f"{markdown(config_keys.first_comment(path))} | {on} |")
    return "\n".join(rows)


# -------------------------------------------------------------------------------- commands ----


def command_reference():
    """Every command of ``caureid``: how it is called, its help, its options."""
    parent = click.Context(main, info_name="caureid")
    parts = []
    for name in COMMANDS:
        command = main.get_command(parent, name)
        ctx = click.Context(command, info_name=name, parent=parent)
        usage = " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])
        # click marks what is not to be filled anew, which is indented besides
        text = inspect.cleandoc(command.help).replace("\b\n", "").replace("``", "`")
        parts += [f"(command-{name})=\n## caureid {name}", f"```shell\n{usage}\n```", prose(text),
                  "\n".join(command_options(command, ctx))]
    return "\n\n".join(parts)


def command_options(command, ctx):
    for option in command.params:
        if record := isinstance(option, click.Option) and option.get_help_record(ctx):
            spelled, text = record
            yield f"`{spelled}`\n: {markdown(text) or 'see above'}\n"


# ------------------------------------------------------------------------------- benchmarks ----


class Parsed(Exception):
    """Ends a tool when it is about to parse its command line."""


@contextlib.contextmanager
def replaced(owner, name, value):
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def parser_of(script):
    """The parser of a script, which is started and stopped where it parses its options."""
    def stop(parser, *_args, **_words):
        raise Parsed(parser)

    before = set(sys.modules)
    with (replaced(argparse.ArgumentParser, "parse_args", stop),
          replaced(argparse.ArgumentParser, "parse_known_args", stop),
          replaced(sys, "argv", [str(script)]),
          replaced(sys, "path", [str(script.parent), *sys.path])):
        try:
            runpy.run_path(str(script), run_name="__main__")
        except Parsed as parsed:
            return parsed.args[0]
        finally:
            for name in set(sys.modules) - before:  # a tool's other half
                if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == \
                        script.parent:
                    del sys.modules[name]
    raise RuntimeError(f"{script} parses no command line.")


def docstring_of(script):
    code = compile(script.read_text(), str(script), "exec", flags=0)
    return code.co_consts[0]


def prose(text):
    """A docstring as Markdown: indented lines are code there too, the others plain sentences."""
    blocks = []
    for block in re.split(r"\n{2,}", text.strip("\n")):
        if block.startswith("    "):
            lines = [line.removeprefix("    ") for line in block.splitlines()]
            blocks.append("\n".join(["```shell", *lines, "```"]))
        else:
            parts = re.split(r"(`[^`]+`)", " ".join(block.split()))
            blocks.append("".join(part if part.startswith("`") else markdown(part)
                                  for part in parts))
    return "\n\n".join(blocks)


def option_entries(parser):
    """Every argument of a parser with its help, defaults filled in, as a definition list."""
    formatter = parser._get_formatter()
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
            continue
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield f"`{name}`\n: {markdown(sub.description or '')}\n"
                yield from option_entries(sub)
            continue
        value = formatter._format_args(action, (action.metavar if isinstance(action.metavar, str)
                                                else action.dest.upper()))
        if action.choices is not None and action.metavar is None:
            value = "{" + ",".join(map(str, action.choices)) + "}"
        if action.option_strings:
            spelled = ", ".join(f"`{f'{option} {value}'.strip() if action.nargs != 0 else option}`"
                                for option in action.option_strings)
        else:
            spelled = f"`{value}`"
        text = " ".join(formatter._expand_help(action).split()) if action.help else ""
        default = action.default
        if (action.option_strings and default not in (None, False, argparse.SUPPRESS, [], "")
                and action.nargs != 0 and "default" not in text):
            many = isinstance(default, (list, tuple))
            text += f" (default: {' '.join(map(str, default)) if many else default})"
        yield f"{spelled}\n: {markdown(text.strip()) or 'see above'}\n"


def scripts():
    """{path from the root: file} of the scripts that can be run; others are parts of theirs."""
    return {path.relative_to(ROOT).as_posix(): path for path in sorted(
        (ROOT / "tools").rglob("*.py")) if os.access(path, os.X_OK)}


def tool_reference():
    parts = []
    for name, script in scripts().items():
        parts += [f"(tool-{script.stem})=\n## {printable(name)}", prose(docstring_of(script))]
        if script.stem != "train_net":  # it has the options of caureid train
            parts.append("\n".join(option_entries(parser_of(script))))
    return "\n\n".join(parts)


# -------------------------------------------------------------------------------------------------

def python_reference(module, without=""):
    """Every public name of a module but those that another page has, with its docstring."""
    if importlib.util.find_spec(module) is None:
        raise ModuleNotFoundError(f"There is no module {module} to describe.")
    return (f"```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n   :imported-members:\n"
            f"   :show-inheritance:\n   :exclude-members: {without}\n```")


MAKERS = {"config_keys": config_reference, "config_files": config_files,
          "commands": command_reference, "tools": tool_reference, "python": python_reference}


def fill_in(_app, _docname, source):
    source[0] = MARKER.sub(lambda marker: MAKERS[marker[1]](*filter(None, marker.groups()[1:])),
                           source[0])


def always_anew(_app, env, _added, _changed, _removed):
    """Documents that hold a marker: what they are made from is the code."""
    return [name for name in env.found_docs
            if MARKER.search(Path(env.doc2path(name)).read_text())]


def without_aliases(_app, _what, _name, thing, skip, _options):
    """Leaves out what Python says of a field of a named tuple: its class explains it."""
    return True if str(getattr(thing, "__doc__", "")).startswith("Alias for field") else skip


def setup(app):
    app.connect("autodoc-skip-member", without_aliases)
    app.connect("source-read", fill_in)
    app.connect("env-get-outdated", always_anew)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
