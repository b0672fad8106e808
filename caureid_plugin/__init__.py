"""CA-UReID for FastReID: unsupervised person re-identification from camera labels only.

Importing the plugin first makes FastReID importable and repairs its defects on today's stack
(:mod:`caureid_plugin.compat`), then registers the plugin's parts: as soon as FastReID is imported,
or a name of this module is asked for. Import it before FastReID.

Where FastReID is not installed, :mod:`.clustering`, :mod:`.layers` and :mod:`.losses`, which know
nothing of it, can be imported all the same; asking for a name of this module is then an
ImportError that says how to install it. It may also be found later, as in a clone whose scripts
extend ``sys.path`` after their imports.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from . import compat
    from .compat import launch
    from .config import add_caureid_config
    from .config_files import get_config_file
    from .data import (
        CameraFolder,
        ClusterSampler,
        PersonX,
        SyntheticCameras,
        UnlabelledImages,
        build_dataset,
        training_images,
    )
    from .engine import (
        EvalAtStart,
        UnsupervisedHook,
        check_cameras,
        extract_features,
        fit_to_data,
        load_config,
    )
    from .export import ExportError, load_export
    from .modeling import LOSS_REGISTRY, CamSepHead, CAUReID, MemoryBank, build_losses, needs_memory
    from .people import People, find_people
    from .retrieval import Comparison, Embedder, Entry, Hit, Index, IndexRefused, load_run
    from .runs import PairStatistics, RunError, Threshold
    from .video import CropChoice, Video, cut_crops

# where each name of this module is, in the order in which the parts are registered
_PARTS = {
    "compat": ("launch",),
    "config": ("add_caureid_config",),
    "config_files": ("get_config_file",),
    "data": ("CameraFolder", "ClusterSampler", "PersonX", "SyntheticCameras", "UnlabelledImages",
             "build_dataset", "training_images"),
    "engine": ("EvalAtStart", "UnsupervisedHook", "check_cameras", "extract_features",
               "fit_to_data", "load_config"),
    "export": ("ExportError", "load_export"),
    "modeling": ("LOSS_REGISTRY", "CAUReID", "CamSepHead", "MemoryBank", "build_losses",
                 "needs_memory"),
    "people": ("People", "find_people"),
    "retrieval": ("Comparison", "Embedder", "Entry", "Hit", "Index", "IndexRefused", "load_run"),
    "runs": ("PairStatistics", "RunError", "Threshold"),
    "video": ("CropChoice", "Video", "cut_crops"),
}
_REGISTERED = ("compat", "config", "data", "modeling", "engine")
# what needs no toolbox, and is imported without
_WITHOUT_TOOLBOX = ("__main__", "_version", "cli", "clustering", "common", "config_files", "layers",
                    "losses", "video")

__all__ = [
    "LOSS_REGISTRY", "CAUReID", "CamSepHead", "CameraFolder", "ClusterSampler", "Comparison",
    "CropChoice", "Embedder", "Entry", "EvalAtStart", "ExportError", "Hit", "Index", "IndexRefused",
    "MemoryBank", "PairStatistics", "People", "PersonX", "RunError", "SyntheticCameras",
    "Threshold", "UnlabelledImages", "UnsupervisedHook", "Video", "__version__",
    "add_caureid_config", "build_dataset", "build_losses", "check_cameras", "compat", "cut_crops",
    "extract_features", "find_people", "fit_to_data", "get_config_file", "launch", "load_config",
    "load_export", "load_run", "needs_memory", "training_images",
]


def _toolbox_is_found() -> bool:
    """Asks for FastReID, does not try it: what goes wrong inside an installed one must be seen."""
    spec = importlib.util.find_spec("fastreid")
    return spec is not None and spec.origin is not None  # a mere folder of that name has none


def _register() -> None:
    """Applies the repairs and registers the plugin's parts in the toolbox."""
    for part in _REGISTERED:
        importlib.import_module(f"{__name__}.{part}")
    compat_ = sys.modules[f"{__name__}.compat"]
    compat_.offer_keys(sys.modules[f"{__name__}.config"].add_caureid_config)


class _Loaded(importlib.abc.Loader):
    """Gives a module that is there already."""

    def __init__(self, module: types.ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return self._module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = self._spec


class _WithToolbox(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Registers the plugin as soon as FastReID is imported, before anybody can use that."""

    _original: importlib.abc.Loader

    def find_spec(self, name: str, path: Sequence[str] | None = None,
                  target: types.ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        if name == "fastreid":
            return self._find_toolbox(path, target)
        package, _, part = name.partition(".")
        # a part of the plugin needs the repairs before its own import of the toolbox
        if (package == __name__ and part.split(".")[0] not in _WITHOUT_TOOLBOX
                and "fastreid" not in sys.modules and _toolbox_is_found()):
            importlib.import_module("fastreid")
            module = sys.modules.get(name)
            if module is not None:
                # importlib would take its own spec, and load it a second time
                module.__spec__ = importlib.util.spec_from_loader(name, _Loaded(module))
                return module.__spec__
        return None

    def _find_toolbox(self, path: Sequence[str] | None, target: types.ModuleType | None
                      ) -> importlib.machinery.ModuleSpec | None:
        for finder in sys.meta_path[sys.meta_path.index(self) + 1:]:
            spec = finder.find_spec("fastreid", path, target)
            if spec is not None:
                if spec.origin is not None and spec.loader is not None:
                    self._original, spec.loader = spec.loader, self
                return spec
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return self._original.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        vars(module)["__loader__"] = self._original
        if module.__spec__ is not None:
            module.__spec__.loader = self._original
        self._original.exec_module(module)
        sys.meta_path.remove(self)
        try:
            _register()
        except BaseException:  # the next attempt is not to do without
            sys.meta_path.insert(0, self)
            raise


if "fastreid" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _WithToolbox())


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "compat":
        return importlib.import_module(f"{__name__}.compat")
    importlib.import_module("fastreid" if _toolbox_is_found() else f"{__name__}.compat")
    part = next(part for part, names in _PARTS.items() if name in names)
    return getattr(importlib.import_module(f"{__name__}.{part}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
