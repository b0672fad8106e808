"""The layers of the package import in one direction only."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "caureid_plugin"

# subpackage -> what of the project it may import; "fastreid" marks those that know the toolbox
ALLOWED = {
    "layers": set(),
    "losses": set(),
    "clustering": set(),
    "compat": {"clustering", "fastreid"},
    "config": {"fastreid"},
    "config_files": set(),
    "modeling": {"compat", "layers", "losses", "fastreid"},
    "data": {"compat", "fastreid"},
    "engine": {"clustering", "compat", "data", "modeling", "layers", "losses", "fastreid"},
}
TOOLBOX_INTERNALS = ("._obj_map", "._trainer.", "._data_loader_iter", "._LOCAL_PROCESS_GROUP")


def _imports(path):
    """Absolute names of everything a file imports; relative names are resolved."""
    package = ("caureid_plugin", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _part(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_import_direction(path):
    allowed = ALLOWED[_part(path)]
    for name in _imports(path):
        top, *rest = name.split(".")
        if top == "fastreid":
            assert "fastreid" in allowed, f"{path} imports {name}"
        if top == "caureid_plugin" and rest:
            assert rest[0] in allowed | {_part(path)}, f"{path} imports {name}"


def test_every_part_is_listed():
    assert {_part(path) for path in FILES} == set(ALLOWED)


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.name != "compat.py"], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_compat_touches_the_internals_of_the_toolbox(path):
    source = path.read_text()
    assert not [name for name in TOOLBOX_INTERNALS if name in source]
    for node in ast.walk(ast.parse(source)):  # setattr on, or assignment to, a toolbox module
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastreid"):
            assert not [alias.name for alias in node.names if alias.name.startswith("_")]


def test_the_tool_that_finds_imports_sees_relative_ones():
    found = set(_imports(PACKAGE / "engine" / "hooks.py"))
    assert "caureid_plugin.clustering" in found and "caureid_plugin.modeling" in found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_bare_except(path):
    nodes = ast.walk(ast.parse(path.read_text()))
    handlers = [node for node in nodes if isinstance(node, ast.ExceptHandler)]
    assert all(handler.type is not None for handler in handlers)
