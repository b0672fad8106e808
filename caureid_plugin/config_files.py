"""Where configs are: those shipped, in a clone or an installation, and that of a run."""

from __future__ import annotations

import difflib
from pathlib import Path

RUN_CONFIG = "config.yaml"
NO_RUN = ("{} holds no config.yaml, which every run writes at its start: give the folder of a run, "
          "its OUTPUT_DIR.")


def get_config_file(name: str) -> str:
    """Path of a shipped config.

    Args:
        name: relative to the config folder, such as "Market/caureid.yml".

    Raises:
        FileNotFoundError: no such config (names those that are like it).
    """
    package = Path(__file__).resolve().parent
    # an installation carries the configs inside the package, in a clone they lie beside it
    folders = [f for f in (package / "configs", package.parent / "configs") if f.is_dir()]
    for folder in folders:
        if (folder / name).is_file():
            return str(folder / name)
    known = sorted(str(p.relative_to(f)) for f in folders for p in f.rglob("*.yml"))
    close = difflib.get_close_matches(name, known, cutoff=0.4)
    raise FileNotFoundError(f"There is no config {name!r}, neither as a file nor among the "
                            f"{len(known)} shipped ones"
                            + (f": did you mean {' or '.join(close)}?" if close else "."))
