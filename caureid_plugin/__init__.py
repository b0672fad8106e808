"""CA-UReID for FastReID: unsupervised person re-identification from camera labels alone.

Importing the plugin first makes FastReID importable and mends its defects on today's stack
(:mod:`caureid_plugin.compat`), then registers the plugin's parts. Import it before FastReID.

Where FastReID is not installed, :mod:`.clustering`, :mod:`.layers` and :mod:`.losses`, which know
nothing of it, can be imported all the same; asking for a name of this module is then an
ImportError that says how to install it.
"""

import importlib.util

__version__ = "0.1.0"

__all__ = [
    "LOSS_REGISTRY", "CAUReID", "CamSepHead", "ClusterSampler", "EvalAtStart", "MemoryBank",
    "PersonX", "SyntheticCameras", "UnlabelledImages", "UnsupervisedHook", "add_caureid_config",
    "build_losses", "check_cameras", "compat", "extract_features", "get_config_file", "launch",
    "needs_memory",
]

# asked for, not tried: what goes wrong inside an installed FastReID must be seen
if importlib.util.find_spec("fastreid") is not None:
    from . import compat  # isort: skip  (before everything that imports fastreid)

    from .compat import launch
    from .config import add_caureid_config
    from .config_files import get_config_file
    from .data import ClusterSampler, PersonX, SyntheticCameras, UnlabelledImages
    from .engine import EvalAtStart, UnsupervisedHook, check_cameras, extract_features
    from .modeling import LOSS_REGISTRY, CamSepHead, CAUReID, MemoryBank, build_losses, needs_memory
else:

    def __getattr__(name: str) -> object:
        if name in __all__:
            importlib.import_module(f"{__name__}.compat")  # raises, and says what to install
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
