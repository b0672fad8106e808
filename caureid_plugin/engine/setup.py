"""The config of a run: the file, keys of the command line, and what is left to the data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from fastreid.config import CfgNode, get_cfg

from ..config import add_caureid_config
from ..config_files import get_config_file


def load_config(config_file: str, opts: Sequence[Any] = ()) -> CfgNode:
    """The config of a file and of keys that follow it, fitted to the data, not frozen.

    Args:
        config_file: a path, or the name of a shipped config; "" for the toolbox's defaults.
        opts: keys and values in turn, as on the command line.

    Raises:
        FileNotFoundError: neither a file nor a shipped config (lists those).
        KeyError, ValueError: a key that does not exist, a value it does not take.
    """
    cfg = get_cfg()
    add_caureid_config(cfg)
    if config_file:
        is_file = os.path.isfile(config_file)
        cfg.merge_from_file(config_file if is_file else get_config_file(config_file))
    cfg.merge_from_list(list(opts))
    return fit_to_data(cfg)


def fit_to_data(cfg: CfgNode) -> CfgNode:
    """A copy of ``cfg`` in which what is left to the data is decided; see helper."""
    return cfg.clone()
