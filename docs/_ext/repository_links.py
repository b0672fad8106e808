"""Links between the site and the repository, and from names to where they are explained.

- A link to a file of the repository outside docs/ (``../tools/figures.py``), which leads to the
  file on a code host, leads to a page of the site that shows it; README.md is the start page.
- A config key, a command or a script that stands in a text as code is a link to its entry in the
  reference.
- A name of this package that exists but is not part of the reference leads to its source.
"""

import ast
import functools
import importlib
import inspect
from pathlib import Path

import config_keys
from caureid_plugin.cli import COMMANDS
from docutils import nodes
from generated_pages import scripts
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "caureid_plugin"
SHOWN = {".py": "python", ".yml": "yaml", ".j2": "html+jinja", ".txt": "text", ".toml": "toml"}


def source_page(path):
    """Name of the page that shows a file."""
    return "_source/" + path.relative_to(ROOT).as_posix()


class RepositoryFiles(SphinxTransform):
    """Links to files outside docs/."""

    default_priority = 400

    def apply(self):
        folder = (Path(self.env.srcdir) / self.env.docname).parent
        for node in list(self.document.findall(addnodes.download_reference)):
            path = (folder / node["reftarget"]).resolve()
            if path == ROOT / "README.md":
                new = addnodes.pending_xref(
                    "", *node.children, refdomain="std", reftype="doc", reftarget="/index",
                    refexplicit=True, refdoc=self.env.docname, refwarn=True)
            elif path.is_relative_to(ROOT) and not path.is_relative_to(self.env.srcdir):
                new = addnodes.pending_xref(
                    "", *node.children, refdomain="", reftype="repository",
                    reftarget=str(path), refexplicit=True, refdoc=self.env.docname, refwarn=True)
            else:
                continue
            node.replace_self(new)


class NamesAsLinks(SphinxTransform):
    """``CAUREID.CLUSTER.EPS 0.4`` and ``caureid report logs/run`` in a sentence."""

    default_priority = 410

    def apply(self):
        targets = {key: ("confval", key) for key in config_keys.added_keys()}
        targets |= {name: ("ref", f"tool-{path.stem}") for name, path in scripts().items()}
        targets |= {f"caureid {name}": ("ref", f"command-{name}") for name in COMMANDS}
        inside = (nodes.title, nodes.reference, addnodes.pending_xref, addnodes.desc_signature,
                  addnodes.download_reference)
        for node in list(self.document.findall(nodes.literal)):
            words = node.astext().split(" ")
            found = targets.get(words[0]) or targets.get(" ".join(words[:2]))
            if not found or any(isinstance(parent, inside) for parent in parents(node)):
                continue
            kind, target = found
            node.replace_self(addnodes.pending_xref(
                "", node.deepcopy(), refdomain="std", reftype=kind, reftarget=target,
                refexplicit=True, refdoc=self.env.docname, refwarn=True))


def parents(node):
    while node := node.parent:
        yield node


def resolve(app, env, node, content):
    """A file of the repository, or a name of the package that the reference leaves out."""
    if node["reftype"] == "repository":
        path = Path(node["reftarget"])
    elif node.get("refdomain") == "py":
        path = defined_in(node)
    else:
        return None
    if path is None or not path.is_file() or path.suffix not in SHOWN:
        return None
    pages = env.repository_files = getattr(env, "repository_files", set())
    pages.add(path)
    reference = nodes.reference("", "", content, internal=True)
    reference["refuri"] = app.builder.get_relative_uri(node["refdoc"], source_page(path))
    return reference


def defined_in(node):
    """The file of what a reference in a docstring of this package names; None: there is no such."""
    module = node.get("py:module") or PACKAGE
    target = node["reftarget"].lstrip(".")
    names = [target, f"{module}.{target}", f"{module}.{node.get('py:class')}.{target}"]
    place = module.split(".")
    names += [".".join([*place[:n], target]) for n in range(len(place), 0, -1)]
    for name in (name for name in names if name.split(".")[0] == PACKAGE):
        found = look_up(name)
        if found is not None:
            return found
    # what a package's face shows is explained by names of the module behind it
    return definitions().get(target.split(".")[-1] if target.split(".")[0] not in definitions()
                             else target.split(".")[0])


@functools.cache
def definitions():
    """{name: file} of every class and function of the package."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                found.setdefault(node.name, path)
    return found


def look_up(name):
    """File in which ``caureid_plugin.x.y`` is defined; None where there is no such name."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:n]))
        except ImportError:
            continue
        file = thing.__file__
        for part in parts[n:]:
            thing = getattr(thing, part, None)
        if thing is None:
            return None
        if not inspect.ismodule(thing) and hasattr(thing, "__module__"):
            file = getattr(importlib.import_module(thing.__module__), "__file__", file)
        return Path(file) if file and Path(file).is_relative_to(ROOT) else None
    return None


def source_pages(app):
    """A page for each file of the repository that something links to."""
    for path in sorted(getattr(app.env, "repository_files", ())):
        name = path.relative_to(ROOT).as_posix()
        text = app.builder.highlighter.highlight_block(path.read_text(), SHOWN[path.suffix])
        yield source_page(path), {"title": name, "body": f"<h1>{name}</h1>\n{text}"}, "page.html"


def setup(app):
    app.add_transform(RepositoryFiles)
    app.add_transform(NamesAsLinks)
    app.connect("missing-reference", resolve)
    app.connect("html-collect-pages", source_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
