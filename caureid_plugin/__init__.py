"""CA-UReID for FastReID: unsupervised person re-identification from camera labels alone.

Importing the plugin first makes FastReID importable and mends its defects on today's stack
(:mod:`caureid_plugin.compat`), then registers the plugin's parts. Import it before FastReID.

Where FastReID is not installed, :mod:`.clustering`, :mod:`.layers` and :mod:`.losses`, which know
nothing of it, can be imported all the same; asking for a name of this module is then an
ImportError that says how to install it.
"""

import importlib.util

__version__ = "0.3.0"

__all__ = [
    "LOSS_REGISTRY", "CAUReID", "CamSepHead", "CameraFolder", "ClusterSampler", "Comparison",
    "Embedder", "Entry", "EvalAtStart", "ExportError", "Hit", "Index", "IndexRefused", "MemoryBank",
    "PairStatistics", "PersonX", "RunError", "SyntheticCameras", "Threshold", "UnlabelledImages",
    "UnsupervisedHook", "add_caureid_config", "build_dataset", "build_losses", "check_cameras",
    "compat", "extract_features", "fit_to_data", "get_config_file", "launch", "load_config",
    "load_export", "load_run", "needs_memory", "training_images",
]

# asked for, not tried: what goes wrong inside an installed FastReID must be seen
if importlib.util.find_spec("fastreid") is not None:
    from . import compat  # isort: skip  (before everything that imports fastreid)

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
    from .retrieval import (
        Comparison,
        Embedder,
        Entry,
        Hit,
        Index,
        IndexRefused,
        PairStatistics,
        RunError,
        Threshold,
        load_run,
    )
else:

    def __getattr__(name: str) -> object:
        if name in __all__:
            importlib.import_module(f"{__name__}.compat")  # raises, and says what to install
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
