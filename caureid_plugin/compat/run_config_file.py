"""Writes config.yaml, the config that a run keeps in its folder."""

from __future__ import annotations

import os
from pathlib import Path

from ..common.files import write_atomically
from ..common.text import printable
from ..config_files import RUN_CONFIG
from .cures import output_error

new_configs: dict[str, str] = {}  # paths of a run's config.yaml: what is to replace it


def write_run_config(folder: str, text: str) -> None:
    path = Path(folder, RUN_CONFIG)
    new_configs.pop(os.path.abspath(path), None)
    try:
        write_atomically(path, text)
    except OSError as error:
        raise output_error(f"{RUN_CONFIG} in OUTPUT_DIR {printable(folder)}", error) from error
