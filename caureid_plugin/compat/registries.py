"""Repairs so that an unknown name is answered with the known ones, and datasets get the config."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import fastreid.data.build as _data_build
from fastreid.config import CfgNode
from fastreid.utils.registry import Registry

from ..common.errors import UnknownName
from .registered import registered_names
from .repair import Patches, always, repair


class _ConfiguredDatasets:
    """The registry of datasets for the toolbox's loaders: what they get is set up by a config.

    A dataset whose ``__init__`` is the toolbox's ``configurable`` is given the config before its
    root; all others are what they were.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._cfg: CfgNode | None = None

    def get(self, name: str) -> Callable:
        kind = self._registry.get(name)
        if self._cfg is None or not hasattr(kind, "from_config"):
            return kind
        return functools.partial(kind, self._cfg)

    @contextlib.contextmanager
    def by(self, cfg: CfgNode | None) -> Iterator[None]:
        before, self._cfg = self._cfg, cfg
        try:
            yield
        finally:
            self._cfg = before

    def __getattr__(self, name: str) -> object:
        return getattr(self._registry, name)


# one for good: who imported a loader's builder keeps it when the repair is switched off and on
_DATASETS = _ConfiguredDatasets(_data_build.DATASET_REGISTRY)


@repair(
    upstream="data/build.py:37, :107 (DATASET_REGISTRY.get(name)(root=_root))",
    symptom="a dataset is built only from its root: none can be set up by config keys",
    versions="all",
)
def _dataset_config(patch: Patches) -> None:
    @patch.wrap(_data_build, "build_reid_test_loader")
    @patch.wrap(_data_build, "build_reid_train_loader")
    def build(original, *args, **kwargs):
        cfg = kwargs.get("cfg", args[0] if args else None)
        with _DATASETS.by(cfg if isinstance(cfg, CfgNode) else None):
            return original(*args, **kwargs)

    patch.set(_data_build, "DATASET_REGISTRY", _DATASETS)


def configured_dataset(cfg: CfgNode, name: str):
    """A registered dataset as the toolbox's loaders build it for a config.

    Raises:
        KeyError: no dataset of that name (lists those there are).
    """
    with _DATASETS.by(cfg):
        return _DATASETS.get(name)(root=dataset_root())


def _registry_keeps_its_names() -> bool:
    registry = Registry("PROBE")
    registry.register(always)
    try:
        registry.get("absent")
    except KeyError as error:
        return always.__name__ not in str(error)
    return True


@repair(
    upstream="utils/registry.py:61 (Registry.get)",
    symptom="an unknown head, backbone, dataset or meta-architecture is an error that does not say "
    "which names there are",
    versions="all",
    broken=_registry_keeps_its_names,
)
def _unknown_name(patch: Patches) -> None:
    @patch.wrap(Registry, "get")
    def get(original, self, name):
        try:
            return original(self, name)
        except KeyError:
            raise UnknownName(
                f"No object named {name!r} in the {self._name} registry, known are "
                f"{registered_names(self)}.") from None


def dataset_root() -> str:
    """Folder that the toolbox's loaders look for datasets in: FASTREID_DATASETS, or "datasets"."""
    return _data_build._root


def junk_identities(name: str) -> list:
    """Identities of a registered dataset's test images that are no one's: -1 and 0 in Market-1501.

    Args:
        name: as in DATASETS.TESTS.
    """
    return list(getattr(_data_build.DATASET_REGISTRY.get(name), "_junk_pids", []))
