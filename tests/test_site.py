"""The documentation builds as a site without a warning, and nothing in it leads nowhere."""

import ast
import functools
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import caureid_plugin
import pytest
from caureid_plugin import add_caureid_config
from fastreid.config import get_cfg

from helpers import warm
from helpers.page import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


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


def document(site, path):
    """The page of a document."""
    return (site / path.relative_to(DOCS)).with_suffix(".html")


def leads_to(path, link):
    """(file, name in it) that a link of a page leads to; None if that is elsewhere."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    target = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
    return target / "index.html" if target.is_dir() else target, unquote(parts.fragment)


def broken(pages, site):
    """(page, link) of every link or file of the site that is not there."""
    there = functools.cache(lambda target: target.is_relative_to(site) and target.is_file())
    names = {path: set(page.ids) for path, page in pages.items()}
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            target, name = leads_to(path, link) or (path, "")
            if not there(target) or (name and name not in names.get(target, {name})):
                yield path.name, link


def test_no_link_is_broken(pages, site):
    assert list(broken(pages, site)) == []
    assert sum(len(page.links) for page in pages.values()) > 1000


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="b.html#there">x</a><a href="b.html#gone">x</a>'
        '<img src="gone.png"><a href="../out.html">x</a>')
    (tmp_path / "b.html").write_text('<p id="there"><a href="#there">x</a></p>')
    (tmp_path.parent / "out.html").touch()
    pages = {path: Page(path) for path in tmp_path.glob("*.html")}
    assert sorted(broken(pages, tmp_path)) == [
        ("a.html", "../out.html"), ("a.html", "b.html#gone"), ("a.html", "gone.png")]


def test_addresses_elsewhere_are_whole_and_nothing_is_loaded_from_there(pages):
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme in ("https", "http", "mailto"), (path, link)
                assert re.fullmatch(r"[\w.-]+\.[a-z]{2,}", parts.netloc) or parts.scheme == "mailto"
        assert not [src for src in page.loads if urlsplit(src).netloc], path


def test_every_document_is_reached_from_the_start_page(pages, site):
    seen, waiting = set(), {site / "index.html"}
    while waiting:
        path = waiting.pop()
        seen.add(path)
        targets = {target[0] for link in pages[path].links if (target := leads_to(path, link))}
        waiting |= (targets & set(pages)) - seen
    documents = {document(site, path) for path in DOCS.rglob("*.md")}
    assert documents <= seen and len(documents) > 20


def test_every_document_has_a_page_of_its_own(pages, site):
    """A document named search.md or genindex.md would be replaced by a page of Sphinx."""
    for path in DOCS.rglob("*.md"):
        title = re.search(r"^# (.+)", path.read_text(), re.MULTILINE)[1]
        page = pages[document(site, path)]
        words = re.sub(r"\W+", " ", page.text)
        assert re.sub(r"\W+", " ", title).strip() in words, path.name
        assert len(page.text) > 0.5 * len(path.read_text()) or "generated" in path.read_text()
    assert caureid_plugin.__version__ in pages[site / "index.html"].text


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
        assert entry, name
        assert f"Type: {type(value).__name__}" in entry[1], name
        shown = repr(value) if not isinstance(value, str) or not value else f'"{value}"'
        assert f"Default: {shown}".replace("'", "") in entry[1].replace("’", "").replace(
            "'", ""), (name, entry[1][:200])
    source = (ROOT / "caureid_plugin" / "config.py").read_text().splitlines()
    plain = re.sub(r"\W+", " ", text)
    comments = [line.strip(" #") for line in source if line.strip().startswith("#")]
    shown = [re.sub(r"\W+", " ", comment).strip() for comment in comments]
    missing = [comment for comment in shown if comment and comment not in plain]
    assert len(missing) <= 0.1 * len(shown), missing  # a comment's line may be broken by a list


def test_a_key_without_an_explanation_is_an_error(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "_ext")
    import config_keys

    source = (ROOT / "caureid_plugin" / "config.py").read_text()
    assert {key.name for group in config_keys.groups(source) for key in group.keys} == set(
        config_keys.added_keys())
    line = next(number for number, text in enumerate(source.splitlines()) if ".EPS = " in text)
    lines = source.splitlines()
    while lines[line - 1].strip().startswith("#"):
        del lines[line - 1]
        line -= 1
    lines.insert(line, "")
    with pytest.raises(ValueError, match=r"explains nothing of \['CAUREID.CLUSTER.EPS'\]"):
        config_keys.groups("\n".join(lines))


def test_the_reference_has_every_public_name(pages, site):
    known = {name for page in pages.values() for name in page.ids}
    for module in ("caureid_plugin", "caureid_plugin.retrieval", "caureid_plugin.export",
                   "caureid_plugin.clustering", "caureid_plugin.layers", "caureid_plugin.losses"):
        tree = ast.parse((ROOT / module.replace(".", "/") / "__init__.py").read_text())
        names = next(ast.literal_eval(node.value) for node in tree.body if isinstance(
            node, ast.Assign) and node.targets[0].id == "__all__")
        for name in names:
            thing = getattr(__import__(module, fromlist=[name]), name)
            if callable(thing) and getattr(thing, "__doc__", None) and hasattr(thing, "__name__"):
                assert any(target.endswith(f".{thing.__name__}") for target in known), name


def test_the_reference_has_every_tool_with_its_options(pages, site):
    text = pages[site / "reference" / "tools.html"].text
    for path in (ROOT / "tools").glob("*.py"):
        if os.access(path, os.X_OK):
            assert path.name in text
            for option in options(path):
                assert option in text, (path.name, option)


def options(path):
    """Those that a tool's source gives its parser, hidden ones aside."""
    for node in ast.walk(ast.parse(path.read_text())):
        if (isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"
                and not any(ast.unparse(word.value) == "argparse.SUPPRESS"
                            for word in node.keywords)):
            yield from (value.value for value in node.args
                        if isinstance(value, ast.Constant) and value.value.startswith("--"))
