"""Makes FastReID importable, and says what to install where it is not."""

from __future__ import annotations

import collections
import collections.abc
import contextlib
import importlib.machinery
import importlib.metadata
import importlib.util
import logging
import sys
import types
import warnings
from collections.abc import Iterator

from ..common.errors import MissingPackage

logger = logging.getLogger("fastreid.caureid")
_INSTALL_HINT = (
    "install it with `pip install --no-deps fastreid==1.4.0` "
    "(--no-deps, because its own pins ask for torch 1.13.1)"
)


@contextlib.contextmanager
def legacy_names() -> Iterator[None]:
    """Provides the names that the toolbox and its projects import and that no longer exist.

    Upstream: ``data/build.py:11-12`` (``torch._six.string_classes``, ``collections.Mapping``),
    ``evaluation/testing.py:5`` (``collections.Mapping``) and the project FastFace
    (``torch._six.container_abcs``). Symptom: ``import fastreid.data`` raises ImportError on Python
    >= 3.10 and on torch >= 2.0. The names are gone again afterwards, so that other libraries see
    the interpreter as it is.
    """
    added = []
    if not hasattr(collections, "Mapping"):
        collections.Mapping = collections.abc.Mapping
        added.append(lambda: delattr(collections, "Mapping"))
    try:
        importlib.import_module("torch._six")
    except ImportError:
        six = types.ModuleType("torch._six")
        six.string_classes, six.container_abcs = (str, bytes), collections.abc
        sys.modules["torch._six"] = six
        added.append(lambda: sys.modules.pop("torch._six", None))
    try:
        yield
    finally:
        for remove in added:
            remove()


class _FastFace:
    """Finds the part of FastFace that imports one of :func:`legacy_names`, and provides them.

    Upstream: ``fastface/utils_amp.py:10`` of FastReID's repository. Symptom: the project cannot be
    imported on torch >= 2.0. Its scripts import it after the toolbox, when the names are gone.
    """

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> importlib.machinery.ModuleSpec | None:
        if name != "fastface.utils_amp":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                with legacy_names():
                    execute(module)

            spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _FastFace)


@contextlib.contextmanager
def faiss_stand_in() -> Iterator[None]:
    """Lets modules of the toolbox be imported where faiss is not installed.

    Upstream: ``utils/compute_dist.py:10``, ``utils/faiss_utils.py:4`` and ``evaluation/roc.py:9``
    import faiss, which only the dense Jaccard distance uses. Symptom: without faiss nothing of
    the toolbox can be imported. Modules imported inside the block keep a stand-in that says, when
    it is used, what to install; ``import faiss`` afterwards fails as before. Where faiss is
    installed nothing happens, also if it is broken: its own error is the one to see.
    """
    if not faiss_is_missing():
        yield
        return
    stand_in = types.ModuleType("faiss")
    stand_in.__getattr__ = _missing_faiss_attribute
    stand_in.METRIC_L2 = 1  # faiss_utils.py:49 makes it a default argument
    blocked = "faiss" in sys.modules  # as None
    sys.modules["faiss"] = stand_in
    try:
        yield
    finally:
        if blocked:
            sys.modules["faiss"] = None
        else:
            del sys.modules["faiss"]


class _Later(types.ModuleType):
    """Stands in for a module, which is imported when something of it is asked for."""

    def __getattr__(self, name: str) -> object:
        return getattr(importlib.import_module(self.__name__), name)


@contextlib.contextmanager
def slow_imports_later() -> Iterator[None]:
    """Lets the toolbox be imported without scikit-learn and TensorBoard.

    Upstream: ``evaluation/reid_evaluation.py:15`` imports ``sklearn.metrics`` only for the ROC
    curve, ``solver/optim/lamb.py:9`` TensorBoard's ``SummaryWriter`` for an annotation. Symptom:
    every program pays for both, a quarter of the import. Inside the block the two names are
    stand-ins that import the real ones when they are used. Another thread that imports them at the
    same moment meets the stand-ins. What is not installed has none: its own error is shown.
    """

    def SummaryWriter(*args: object, **options: object) -> object:
        return importlib.import_module("torch.utils.tensorboard").SummaryWriter(*args, **options)

    stand_ins = {"sklearn": {"metrics": _Later("sklearn.metrics")},
                 "torch.utils.tensorboard": {"SummaryWriter": SummaryWriter}}
    found = {name: importlib.util.find_spec(name) for name in stand_ins if name not in sys.modules}
    added = [name for name, spec in found.items() if spec is not None]
    for name in added:
        stand_in = types.ModuleType(name)
        stand_in.__spec__ = found[name]  # torch asks what is installed
        vars(stand_in).update(stand_ins[name])
        sys.modules[name] = stand_in
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


def faiss_is_missing() -> bool:
    return importlib.util.find_spec("faiss") is None


def _missing_faiss_attribute(name: str) -> None:
    if name.startswith("__"):  # asked for by whoever looks at modules, not by the toolbox
        raise AttributeError(f"the stand-in for faiss has no {name}")
    raise MissingPackage(
        f"faiss.{name} of FastReID needs faiss, which is not installed: pip install "
        "'caureid-plugin[faiss-cpu]' (or [faiss-gpu]).")


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _import_toolbox() -> None:
    found = importlib.util.find_spec("fastreid")
    if found is None or found.origin is None:  # a mere folder of that name has no origin
        raise MissingPackage(f"FastReID is not installed: {_INSTALL_HINT}.")
    both = [name for name in ("faiss-cpu", "faiss-gpu") if _is_installed(name)]
    if len(both) > 1:
        warnings.warn(f"{' and '.join(both)} are both installed, and overwrite each other's files: "
                      "uninstall both, then install one of them.", stacklevel=2)
    with legacy_names(), faiss_stand_in():
        try:
            with slow_imports_later():
                _import_parts()
        except ImportError:  # a fork of the toolbox may import more of scikit-learn
            _import_parts()


def _import_parts() -> None:
    for name in ("config", "data", "engine", "evaluation", "modeling", "solver", "utils"):
        importlib.import_module(f"fastreid.{name}")
    for name in ("compute_dist", "checkpoint", "comm", "events", "params"):
        importlib.import_module(f"fastreid.utils.{name}")


_import_toolbox()
# `fastreid.engine.launch` is the function: the package overwrites the submodule's name.
toolbox_launch = sys.modules["fastreid.engine.launch"]
# One warning for every image, from data/transforms/functional.py:46 in every worker; the call
# itself works.
warnings.filterwarnings("ignore", message="TypedStorage is deprecated", category=UserWarning)
