"""Config keys of the command line, checked and completed before torch is imported."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

from ..common.keys import check_key, check_value, decoded, every_key

_ROOT = __package__.partition(".")[0]


def check(words: Sequence[str]) -> None:
    """Refuses config keys that do not exist, and values of a wrong type.

    A config file has no keys of its own, and gives none another type.

    Args:
        words: keys and values in turn.

    Raises:
        UserError: the first that is wrong.
    """
    known = known_keys() if words else {}
    for key, value in zip(words[::2], words[1::2], strict=True) if known else ():
        check_key(key, known)
        check_value(key, value, decoded(value), known[key])


def known_keys() -> dict[str, Any]:
    """Every config key with its default, sections too; none where FastReID cannot be imported.

    Importing FastReID registers the plugin, which takes seconds. Its config needs neither: it is
    imported below a package that is not executed, and forgotten again.
    """
    fresh: set[str] = set()
    if "fastreid" not in sys.modules:
        spec = importlib.util.find_spec("fastreid")
        if spec is None or spec.origin is None:
            return {}
        fresh = {"fastreid", f"{_ROOT}.config"}
        sys.modules["fastreid"] = importlib.util.module_from_spec(spec)
    try:
        cfg = importlib.import_module("fastreid.config").get_cfg()
        importlib.import_module(f"{_ROOT}.config").add_caureid_config(cfg)
        return every_key(cfg)
    except ImportError:  # the command itself says what is missing
        return {}
    finally:
        for name in [name for name in sys.modules for start in fresh
                     if name == start or name.startswith(f"{start}.")]:
            del sys.modules[name]
        if fresh:
            vars(sys.modules[_ROOT]).pop("config", None)
