"""The layers of the package import in one direction only."""

import ast
import functools
import re
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "caureid_plugin"

# subpackage -> what of the project it may import; "fastreid" marks those that know the toolbox
ALLOWED = {
    "layers": set(),
    "losses": set(),
    "clustering": set(),
    "files": set(),
    "safe_load": set(),
    "weights": set(),
    "signals": set(),
    "resume": set(),
    "run_lock": set(),
    "launcher": {"signals"},
    "compat": {"clustering", "files", "launcher", "resume", "run_lock", "safe_load", "signals",
               "weights", "fastreid"},
    "config": {"fastreid"},
    "config_files": set(),
    "modeling": {"compat", "layers", "losses", "safe_load", "weights", "fastreid"},
    "data": {"compat", "fastreid"},
    "inspection": {"clustering", "compat", "fastreid"},
    "engine": {"clustering", "compat", "config", "config_files", "data", "inspection", "modeling",
               "layers", "losses", "fastreid"},
    "retrieval": {"clustering", "compat", "data", "engine", "files", "safe_load", "fastreid"},
    "export": {"compat", "files", "layers", "retrieval"},
}
PUBLIC = ("os._exit",)  # documented, for all its underscore
OF_NAMED_TUPLES = ("_asdict", "_replace")  # as well
TOOLS = sorted((PACKAGE.parent / "tools").rglob("*.py"))
TESTS = sorted((PACKAGE.parent / "tests").rglob("test_*.py"))


@functools.cache
def _tree(path):
    return ast.parse(path.read_text())


def _imports(path):
    """Absolute names of everything a file imports; relative names are resolved."""
    inside = path.is_relative_to(PACKAGE)
    package = ("caureid_plugin", *path.relative_to(PACKAGE).parts[:-1]) if inside else ()
    yield from names_imported(_tree(path), package)


def names_imported(tree, package=()):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _dotted(node):
    """``a.b.c`` as text; of what is more than names with dots, nothing."""
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value)
        return before and f"{before}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _found(paths, search):
    """{file: what ``search`` finds in it}, without files in which it finds nothing."""
    found = {path.relative_to(PACKAGE.parent).as_posix(): list(search(path)) for path in paths}
    return {name: there for name, there in found.items() if there}


def _part(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


FACE = PACKAGE / "__init__.py"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != FACE)


def test_import_direction():
    assert {_part(path) for path in FILES} == set(ALLOWED)
    assert _found(FILES, lambda path: forbidden(_part(path), _imports(path))) == {}


def test_files_can_be_written_without_anything_but_python():
    tops = {name.split(".")[0] for name in _imports(PACKAGE / "files.py")}
    assert "errno" in tops and tops <= sys.stdlib_module_names


def forbidden(part, names):
    """Those of the imported names that a part of the package may not use."""
    for name in names:
        top, *rest = name.split(".")
        if top == "fastreid" and "fastreid" not in ALLOWED[part]:
            yield name
        if top == "caureid_plugin" and rest and rest[0] not in ALLOWED[part] | {part}:
            yield name


@pytest.mark.parametrize("part, line", [
    ("losses", "import fastreid.layers"),
    ("clustering", "from .. import compat"),
    ("modeling", "import caureid_plugin.engine"),
    ("data", "def later():\n    from ..engine import hooks"),
])
def test_a_wrong_direction_is_found(part, line):
    assert list(forbidden(part, names_imported(ast.parse(line), ("caureid_plugin", part)))) != []


def _root(node):
    """The variable at the left of ``a.b[c].d``."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def internals(tree):
    """What a module does to the toolbox that only compat may do.

    It imports a private name, uses a private attribute of anything but itself, or puts something
    into what it imported from the toolbox, by assignment, ``del``, ``setattr`` or ``delattr``.
    """
    theirs = {alias.asname or alias.name.split(".")[0] for node in ast.walk(tree)
              if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names
              if (getattr(node, "module", None) or alias.name).split(".")[0] == "fastreid"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastreid"):
            yield from (alias.name for alias in node.names if alias.name.startswith("_"))
        elif isinstance(node, (ast.Attribute, ast.Subscript)):
            private = (getattr(node, "attr", "").startswith("_") and not node.attr.endswith("__")
                       and node.attr not in OF_NAMED_TUPLES)
            if private and _dotted(node) not in PUBLIC and (
                    _dotted(node.value) not in ("self", "cls")):
                yield ast.unparse(node)
            if isinstance(node.ctx, (ast.Store, ast.Del)) and _root(node) in theirs:
                yield ast.unparse(node)
        elif (isinstance(node, ast.Call) and _dotted(node.func) in ("setattr", "delattr")
              and _root(node.args[0]) in theirs):
            yield ast.unparse(node)


def test_only_compat_touches_the_internals_of_the_toolbox():
    others = [path for path in (*FILES, *TOOLS) if path != PACKAGE / "compat.py"]
    assert _found(others, lambda path: internals(_tree(path))) == {}


@pytest.mark.parametrize("line", [
    "from fastreid.data.build import _root",
    "registry._obj_map.clear()",
    "trainer._trainer.run_step = None",
    "build.build_reid_train_loader = None",
    "del comm.get_rank",
    "setattr(Checkpointer, 'load', None)",
    "REGISTRY['x'].y = 1",
])
def test_what_only_compat_may_do_is_found(line):
    imports = ("from fastreid.data import build\nfrom fastreid.utils import comm\n"
               "from fastreid.utils.checkpoint import Checkpointer\n"
               "from fastreid.data.datasets import DATASET_REGISTRY as REGISTRY\n")
    assert list(internals(ast.parse(imports + line))) != []
    harmless = "self._bank = comm.get_rank()\nmodel.memory = self._bank"
    assert list(internals(ast.parse(imports + harmless))) == []


# functions that can run code of the file that they read
UNSAFE = re.compile(r"""
    (c?[pP]ickle|_pickle|dill|cloudpickle)\.(loads?|Unpickler) | (joblib|torch\.jit)\.load
    | yaml\.(load|full_load|unsafe_load)(_all)? | shelve\.open | marshal\.loads?""", re.VERBOSE)
MADE_HERE = {  # an error of the same process; a reader that looks nothing up
    "caureid_plugin/clustering/processes.py": ["pickle.loads"],
    "caureid_plugin/safe_load.py": ["pickle.Unpickler", "torch.load"]}


def unsafe_reading(tree):
    """Names of what a module uses to read files and what may run the code in one.

    ``torch.load`` may be called with ``weights_only=True`` alone, and used in no other way.
    """
    full = {}  # name in the module -> what it was imported as
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            full.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom):
            full.update({alias.asname or alias.name: f"{node.module}.{alias.name}"
                         for alias in node.names})
    safe = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)
            for word in node.keywords
            if word.arg == "weights_only" and getattr(word.value, "value", None) is True}
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and (
                getattr(node.value, "value", None) is not False):
            yield "allow_pickle"
        elif isinstance(node, (ast.Name, ast.Attribute)):
            first, *rest = _dotted(node).split(".")
            name = ".".join((full.get(first, first), *rest))
            if UNSAFE.fullmatch(name) or (name in ("torch.load", "torch.serialization.load")
                                          and id(node) not in safe):
                yield name


def test_no_file_is_read_such_that_its_code_runs():
    assert _found([*FILES, FACE, *TOOLS], lambda path: unsafe_reading(_tree(path))) == MADE_HERE


@pytest.mark.parametrize("line, found", [
    ("torch.load(path, weights_only=safe)", "torch.load"),
    ("torch.load(path, **options)", "torch.load"),
    ("use(torch.load, weights_only=True)", "torch.load"),
    ("def f():\n    from torch import load\n    return load(path)", "torch.load"),
    ("np.load(path, allow_pickle=wanted)", "allow_pickle"),
    ("from yaml import unsafe_load as safe_load\nsafe_load(text)", "yaml.unsafe_load"),
    ("import pickle as p\nmap(p.loads, contents)", "pickle.loads"),
    ("pickle.Unpickler(file).load()", "pickle.Unpickler"),
])
def test_unsafe_reading_is_found(line, found):
    assert list(unsafe_reading(ast.parse(line))) == [found]


def test_safe_reading_is_none_of_it():
    assert list(unsafe_reading(ast.parse(
        "torch.load(path, map_location='cpu', weights_only=True)\nnp.load(path)\n"
        "np.load(path, allow_pickle=False)\nyaml.safe_load(text)\npickle.dumps(1)\n"
        "from .safe_load import load_tensors\ncheckpointer.load(load_tensors(path))"))) == []


def test_tools_import_the_plugin_before_the_toolbox_and_no_tests():
    def wrong(path):
        tops = [name.split(".")[0] for name in _imports(path)]
        before = tops[:tops.index("fastreid")] if "fastreid" in tops else ["caureid_plugin"]
        if "tests" in tops or "caureid_plugin" not in before:
            yield from tops

    assert _found(TOOLS, wrong) == {}


def test_the_package_imports_no_tool_and_no_test():
    others = {path.stem for path in TOOLS} | {"tests", "tools", "pytest", "hypothesis"}
    assert _found([*FILES, FACE], lambda path: others & {
        name.split(".")[0] for name in _imports(path)}) == {}


def test_every_file_of_tests_has_tests():
    """pytest says nothing of a file in which it finds none."""
    for path in TESTS:
        functions = [node.name for node in ast.parse(path.read_text()).body
                     if isinstance(node, ast.FunctionDef)]
        assert any(name.startswith("test_") for name in functions), path


def test_the_face_of_the_package_imports_compat_before_the_toolbox():
    names = [name for name in _imports(FACE) if name.startswith("caureid")]
    assert names[1] == "caureid_plugin.compat"
    assert not [name for name in _imports(FACE) if name.startswith("fastreid")]
