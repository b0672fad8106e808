"""The layers of the package import in one direction only."""

import ast
import functools
import json
import re
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "caureid_plugin"

# The rooms of the package, from the top down: one may import those below it, not those beside it.
LAYERS = (
    {"__main__"},
    {"cli"},
    {"ablation", "check", "people", "report", "search", "video", "web"},
    {"export"},
    {"retrieval"},
    {"runs"},
    {"engine"},
    {"data", "modeling"},
    {"compat", "inspection"},
    {"clustering", "common", "config", "config_files", "layers", "losses"},
    {"_version"},
)
ALLOWED = {room: set().union(*LAYERS[place + 1:]) for place, layer in enumerate(LAYERS)
           for room in layer}
PLAIN = {"clustering", "layers", "losses"}  # know nothing of the rest
ALLOWED |= {room: set() for room in PLAIN}
# these do not know FastReID either
WITHOUT_TOOLBOX = PLAIN | {"__main__", "_version", "common", "config_files", "export", "video",
                           "web"}

LONGEST = 520  # lines of a file
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
COMPAT = PACKAGE / "compat"


def test_import_direction():
    assert {_part(path) for path in FILES} == set(ALLOWED)
    assert _found(FILES, lambda path: forbidden(_part(path), _imports(path))) == {}


def test_files_can_be_written_without_anything_but_python():
    tops = {name.split(".")[0] for name in _imports(PACKAGE / "common/files.py")}
    assert "errno" in tops and tops <= sys.stdlib_module_names


def forbidden(part, names):
    """Those of the imported names that a part of the package may not use, its face among them."""
    for name in names:
        top, *rest = name.split(".")
        if top == "fastreid" and part in WITHOUT_TOOLBOX:
            yield name
        if top == "caureid_plugin" and (not rest or rest[0] not in ALLOWED[part] | {part}):
            yield name


@pytest.mark.parametrize("part, line", [
    ("losses", "import fastreid.layers"),
    ("clustering", "from .. import compat"),
    ("modeling", "import caureid_plugin.engine"),
    ("data", "def later():\n    from ..engine import hooks"),
    ("data", "from ..modeling import heads"),
    ("report", "from ..search import answers"),
    ("retrieval", "from ..export.load import load_embedder"),
    ("runs", "import caureid_plugin"),
    ("runs", "from .. import load_config"),
])
def test_a_wrong_direction_is_found(part, line):
    assert list(forbidden(part, names_imported(ast.parse(line), ("caureid_plugin", part)))) != []


CONFIG_KEY = re.compile(r"\b(CAUREID|DATALOADER|DATASETS|INPUT|MODEL|SOLVER|TEST)\.")


def config_keys(tree):
    """Texts of a module, in f-strings too, that name a config key."""
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)
            and isinstance(node.value, str) and CONFIG_KEY.search(node.value)]


def test_plain_rooms_name_no_config_key():
    plain = [path for path in FILES if _part(path) in PLAIN]
    assert _found(plain, lambda path: config_keys(_tree(path))) == {}
    assert config_keys(ast.parse("raise ValueError(f'eps (CAUREID.CLUSTER.{key}) is {eps}')")) != []


def rooms_of_compat():
    tree = _tree(COMPAT / "__init__.py")
    value, = (node.value for node in tree.body if isinstance(node, ast.Assign)
              and ast.unparse(node.targets[0]) == "ROOMS")
    return ast.literal_eval(value)


def rooms_imported(names, rooms):
    """Rooms of compat among the imported names."""
    parts = [name.split(".") for name in names]
    return {part[2] for part in parts
            if part[:2] == ["caureid_plugin", "compat"] and part[2:3] and part[2] in rooms}


def test_no_room_of_compat_imports_another_and_all_repairs_are_in_rooms():
    rooms = rooms_of_compat()
    files = {path.stem: path for path in COMPAT.glob("*.py") if path != COMPAT / "__init__.py"}
    assert set(rooms) <= set(files) and len(set(rooms)) == len(rooms)
    assert _found(files.values(), lambda path: rooms_imported(_imports(path), rooms)) == {}
    with_repairs = {name for name, path in files.items() if "\n@repair(" in path.read_text()}
    assert with_repairs == set(rooms)


@pytest.mark.parametrize("line", [
    "from .weights import load_weights", "from . import weights",
    "import caureid_plugin.compat.weights", "from ..compat.weights import load_weights"])
def test_a_room_that_imports_another_is_found(line):
    names = names_imported(ast.parse(line), ("caureid_plugin", "compat"))
    assert rooms_imported(names, rooms_of_compat()) == {"weights"}


def test_no_file_is_long():
    lengths = {path.relative_to(PACKAGE.parent).as_posix(): len(path.read_text().splitlines())
               for path in (FACE, *FILES, *TOOLS)}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}


_LIGHT = """
import importlib, json, sys

found = {}
for name in sys.argv[1:]:
    importlib.import_module(name)
    found[name] = [other for other in ("fastreid", "torch") if other in sys.modules]
print(json.dumps(found))
"""


def test_the_face_the_commands_and_what_they_share_import_no_torch(run_python):
    """`caureid --help` and a wrong argument are answered at once."""
    own = {f"common/{name}.py" for name in ("launcher", "safe_load", "weights")}  # torch's subjects
    paths = [path.relative_to(PACKAGE) for folder in ("cli", "common")
             for path in sorted((PACKAGE / folder).glob("*.py"))]
    names = [".".join(("caureid_plugin", *path.with_suffix("").parts)).removesuffix(".__init__")
             for path in paths if path.as_posix() not in own]
    done = run_python("-c", _LIGHT, "caureid_plugin", *names)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {name: [] for name in ("caureid_plugin", *names)}


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
    others = [path for path in (*FILES, *TOOLS) if not path.is_relative_to(COMPAT)]
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
    "caureid_plugin/common/safe_load.py": ["pickle.Unpickler", "torch.load"]}


def unsafe_reading(tree):
    """Names of what a module uses to read files and what may run the code in one.

    ``torch.load`` may be called with only ``weights_only=True``, and used in no other way.
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
    others = {path.stem for path in TOOLS} | {"benchmarks", "tests", "tools", "pytest",
                                              "hypothesis"}
    assert _found([*FILES, FACE], lambda path: others & {
        name.split(".")[0] for name in _imports(path)}) == {}


def test_every_file_of_tests_has_tests():
    """pytest says nothing of a file in which it finds none."""
    for path in TESTS:
        functions = [node.name for node in ast.parse(path.read_text()).body
                     if isinstance(node, ast.FunctionDef)]
        assert any(name.startswith("test_") for name in functions), path
