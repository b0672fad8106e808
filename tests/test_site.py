"""The documentation builds as a site without a warning, and nothing in it leads nowhere."""

import ast
import functools
import importlib
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import caureid_plugin
import pytest
from caureid_plugin import add_caureid_config
from caureid_plugin.cli import COMMANDS
from fastreid.config import get_cfg

from helpers import warm
from helpers.page import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
CONFIG = (ROOT / "caureid_plugin" / "config.py").read_text()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site").resolve()
    done = warm.run(["-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html", "-d",
                     folder / "doctrees", DOCS, folder / "html"], folder, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html")}


def leads_to(path, link):
    """(file, name in it) that a link of a page leads to; None if that is elsewhere."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    target = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
    return target / "index.html" if target.is_dir() else target, unquote(parts.fragment)


def test_no_link_is_broken(pages, site):
    there = functools.cache(lambda target: target.is_relative_to(site) and target.is_file())
    names = {path: set(page.ids) for path, page in pages.items()}
    broken = []
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            target, name = leads_to(path, link) or (path, "")
            if not there(target) or (name and name not in names.get(target, {name})):
                broken.append((path.name, link))
    assert broken == []
    assert sum(len(page.links) for page in pages.values()) > 1000


def test_addresses_elsewhere_are_whole_and_nothing_is_loaded_from_there(pages):
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme in ("https", "http", "mailto"), (path, link)
                assert re.fullmatch(r"[\w.-]+\.[a-z]{2,}", parts.netloc) or parts.scheme == "mailto"
        assert not [src for src in page.loads if urlsplit(src).netloc], path


def test_every_document_has_a_page_that_is_reached_from_the_start(pages, site):
    """A document named search.md or genindex.md would be replaced by a page of Sphinx."""
    seen, waiting = set(), {site / "index.html"}
    while waiting:
        path = waiting.pop()
        seen.add(path)
        targets = {target[0] for link in pages[path].links if (target := leads_to(path, link))}
        waiting |= (targets & set(pages)) - seen
    documents = list(DOCS.rglob("*.md"))
    assert len(documents) > 20
    for document in documents:
        path = (site / document.relative_to(DOCS)).with_suffix(".html")
        source, text = document.read_text(), pages[path].text
        title = re.search(r"^# (.+)", source, re.MULTILINE)[1]
        assert path in seen and plain(title) in plain(text), document.name
        assert len(text) > 0.5 * len(source) or "generated" in source
    assert caureid_plugin.__version__ in pages[site / "index.html"].text


def plain(text):
    """Only the words."""
    return re.sub(r"\W+", " ", text).strip()


def leaves(node, prefix=""):
    for name, value in node.items():
        if isinstance(value, type(node)):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def test_the_reference_has_every_key_with_its_default_and_comment(pages, site):
    """Compared with the config, and with the comments as they stand in the source."""
    cfg = get_cfg()
    before = dict(leaves(cfg))
    add_caureid_config(cfg)
    added = {name: value for name, value in leaves(cfg) if name not in before}
    text = pages[site / "reference" / "config.html"].text
    assert len(added) > 30
    for name, value in added.items():
        entry = re.search(rf"(?<!\.){re.escape(name)} ?¶ (.*?)(?=[A-Z_.]+ ?¶|$)", text)
        assert entry and f"Type: {type(value).__name__}" in entry[1], name
        shown = repr(value) if not isinstance(value, str) or not value else f'"{value}"'
        assert f"Default: {shown}".replace("'", "") in re.sub("[’']", "", entry[1]), name
    comments = [plain(line) for line in CONFIG.splitlines() if line.strip().startswith("#")]
    words = plain(text)
    missing = [comment for comment in comments if comment not in words]
    assert len(missing) <= 0.1 * len(comments), missing  # a list may break a comment's line


def test_a_key_without_an_explanation_is_an_error(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "_ext")
    import config_keys

    assert {key.name for group in config_keys.groups(CONFIG) for key in group.keys} == set(
        config_keys.added_keys())
    unexplained = re.sub(r"(\n *#[^\n]*)+(\n[^\n]*\.EPS = )", r"\n\2", CONFIG)
    with pytest.raises(ValueError, match=r"explains nothing of \['CAUREID.CLUSTER.EPS'\]"):
        config_keys.groups(unexplained)


def test_the_reference_has_every_public_name(pages):
    known = {name.rpartition(".")[2] for page in pages.values() for name in page.ids
             if "." in name}
    for package in ("", ".retrieval", ".export", ".clustering", ".layers", ".losses"):
        module = importlib.import_module(f"caureid_plugin{package}")
        for name in module.__all__:
            thing = getattr(module, name)
            if callable(thing) and getattr(thing, "__doc__", None) and hasattr(thing, "__name__"):
                assert thing.__name__ in known, name


def test_the_reference_has_every_command_and_script_with_its_options(site):
    sources = {f"caureid {name}": ROOT / "caureid_plugin" / "cli" / f"{name}.py"
               for name in COMMANDS}
    scripts = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "tools").rglob("*.py")
               if os.access(path, os.X_OK)}
    found = 0
    for page, paths in (("tools", sources), ("scripts", scripts)):
        _, *sections = (site / "reference" / f"{page}.html").read_text().split("<h2>")
        entries = {}
        for section in sections:
            name = re.match("[^<]+", section)[0]
            terms = "".join(re.findall("<dt>(.*?)</dt>", section, re.DOTALL))
            entries[name] = set(re.findall(r"--[\w-]+", re.sub("<[^>]+>", " ", terms)))
        assert entries.keys() == paths.keys()
        for name, path in paths.items():
            assert set(options(path)) <= entries[name], name
            found += len(entries[name])
    assert found > 100


def options(path):
    """Those that a source gives its parser, hidden ones aside."""
    for node in ast.walk(ast.parse(path.read_text())):
        if (isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("add_argument",
                                                                              "option")
                and not any(ast.unparse(word) in ("help=argparse.SUPPRESS", "hidden=True")
                            for word in node.keywords)):
            for value in node.args:
                if isinstance(value, ast.Constant) and value.value.startswith("--"):
                    yield from value.value.split("/")
