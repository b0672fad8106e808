"""What caureid_plugin/config.py says of each config key: its comment, its default, its type.

The comments are read from the source. Names and defaults come from the config that the code
builds, so that they cannot differ from it.
"""

import ast
import io
import textwrap
import tokenize
from pathlib import Path
from typing import NamedTuple

import caureid_plugin
import yaml
from fastreid.config import get_cfg

SOURCE = Path(caureid_plugin.__file__).parent / "config.py"


class Key(NamedTuple):
    """A config key of the plugin."""

    name: str  # with all its nodes: CAUREID.CLUSTER.EPS
    default: object
    comment: str  # the lines above it, without their "# "


class Group(NamedTuple):
    """Keys of one node of the config."""

    node: str  # "" for single keys in the toolbox's own nodes
    comment: str
    keys: list[Key]


def flat(node, prefix=""):
    """{full name: value} of every key of a config."""
    found = {}
    for name, value in node.items():
        if isinstance(value, type(node)):
            found.update(flat(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = value
    return found


def added_keys():
    """{full name: default} of what ``add_caureid_config`` adds to the toolbox's config."""
    cfg = get_cfg()
    before = flat(cfg)
    caureid_plugin.add_caureid_config(cfg)
    return {name: value for name, value in flat(cfg).items() if name not in before}


def comments_of(source):
    """{full name of a key or node: the comment above it}, in the order of the source.

    A line without a comment of its own shares that of the line before it; after an empty line it
    has none.
    """
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string[1:].removeprefix(" ") for token in tokens
                if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#")}
    found = {}
    for function in ast.parse(source).body:
        if not isinstance(function, ast.FunctionDef):
            continue
        names, end, last = {"cfg": ""}, 0, ""  # variable -> node
        for line in (line for line in function.body if isinstance(line, ast.Assign)):
            above = []
            while line.lineno - 1 - len(above) in comments:
                above.insert(0, comments[line.lineno - 1 - len(above)])
            last = "\n".join(above) or (last if line.lineno == end + 1 else "")
            end = line.end_lineno
            full = next(full_name(target, names) for target in line.targets
                        if isinstance(target, ast.Attribute))
            names.update({target.id: full + "." for target in line.targets
                          if isinstance(target, ast.Name)})
            found[full] = last
    return found


def full_name(target, names):
    """``cfg.MODEL.X`` as MODEL.X, where ``names`` says what stands for which node."""
    first, _, rest = ast.unparse(target).partition(".")
    return names[first] + rest


def groups(source=None):
    """Every key that the plugin adds, by node, in the order of the source.

    Raises:
        ValueError: a key without an explanation, or one that the source does not show.
    """
    comments = comments_of(SOURCE.read_text() if source is None else source)
    defaults = added_keys()
    if missing := sorted(name for name in defaults if not comments.get(name)):
        raise ValueError(f"config.py explains nothing of {missing}: a comment belongs above each.")
    found = {"": Group("", "", [])}
    for name, comment in comments.items():
        if name not in defaults:
            found[name] = Group(name, comment, [])
            continue
        node = name.rpartition(".")[0]
        found[node if node in found else ""].keys.append(Key(name, defaults[name], comment))
    return [group for group in found.values() if group.keys]


def settings():
    """{key: {config: value}} of what each shipped config sets itself, its base left aside."""
    folder = Path(caureid_plugin.get_config_file("Base-caureid.yml")).parent
    found = {}
    for path in shipped(folder):
        with path.open() as file:
            content = yaml.safe_load(file)
        for name, value in flat(content).items():
            found.setdefault(name, {})[path.relative_to(folder).as_posix()] = value
    return found


def shipped(folder):
    """The config files below a folder: those directly in it first."""
    return sorted(folder.rglob("*.yml"), key=lambda path: (len(path.relative_to(folder).parts) > 1,
                                                           path.as_posix()))


def first_comment(path):
    """The first sentence of the comment that a config begins with."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].strip())
    return textwrap.shorten(" ".join(lines), 10_000).split(". ")[0].rstrip(".:") + "."
