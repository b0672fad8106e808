"""Makes FastReID 1.4.0, unmodified, run on current Python, PyTorch and NumPy, with or without CUDA.

Only this package touches the toolbox's internals. Each defect has one repair: a function under
``@repair`` that names the upstream location, the symptom and the versions where it was seen. None
asks for a version: where the defect can be shown cheaply and without side effects, a probe runs the
code and looks, and the repair is left out if the defect is gone; the others wrap the toolbox's
function in a check or a default that does no harm to a toolbox without the defect.
``docs/compatibility.md`` lists the repairs; ``tests/compat/`` switches each off in turn and watches
the defect come back.

Each of ``ROOMS`` holds the repairs behind one promise to the user. No room imports another; what
two of them need is in a module that holds no repair.

``REPAIRS[name].revert()`` and ``.apply()`` switch one repair; :func:`without` does both around a
block.
"""

from __future__ import annotations

import importlib

from .importing import faiss_stand_in, legacy_names, slow_imports_later
from .repair import REPAIRS, Repair, apply_all, without

# In the order in which they wrap the toolbox: `DefaultTrainer.__init__` is wrapped five times.
ROOMS = (
    "optimisation",  # weights move
    "devices",  # runs without CUDA, loaders end
    "processes",  # a run of several starts, meets and ends
    "evaluation",  # figures are right and never end a run
    "resuming",  # stops after a step, goes on bit for bit
    "run_configs",  # one run, one config, one folder
    "seeding",  # the same seed, the same run
    "datasets",  # what is listed is what is there
    "images",  # every image is read, or named
    "outputs",  # a folder that cannot be written is named
    "checkpoints",  # never a broken one
    "weights",  # what is loaded is what was meant
    "registries",  # unknown names are named
    "configs",  # unknown and mistyped keys are named
    "losses",  # no loss is dropped
)
for _room in ROOMS:
    importlib.import_module(f"{__name__}.{_room}")

from .configs import offer_keys  # noqa: E402
from .devices import swap_train_loader, to_device  # noqa: E402
from .evaluation import prepare_evaluation  # noqa: E402
from .losses import MGN_LOSSES, PLUGIN_LOSSES, TOOLBOX_LOSSES  # noqa: E402
from .processes import launch  # noqa: E402
from .registered import registered_names  # noqa: E402
from .registries import configured_dataset, dataset_root  # noqa: E402
from .resuming import how_to_go_on, stop_point  # noqa: E402
from .run_state import RunState  # noqa: E402
from .seeding import process_seed  # noqa: E402
from .weights import load_weights  # noqa: E402

__all__ = [
    "MGN_LOSSES",
    "PLUGIN_LOSSES",
    "REPAIRS",
    "ROOMS",
    "TOOLBOX_LOSSES",
    "Repair",
    "RunState",
    "apply_all",
    "configured_dataset",
    "dataset_root",
    "faiss_stand_in",
    "how_to_go_on",
    "launch",
    "legacy_names",
    "load_weights",
    "offer_keys",
    "prepare_evaluation",
    "process_seed",
    "registered_names",
    "slow_imports_later",
    "stop_point",
    "swap_train_loader",
    "to_device",
    "without",
]

apply_all(ROOMS)
