"""What an installation that is not editable carries."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOAD = """
import caureid_plugin
from fastreid.config import get_cfg
cfg = get_cfg()
caureid_plugin.add_caureid_config(cfg)
path = caureid_plugin.get_config_file("Market/caureid.yml")
cfg.merge_from_file(path)  # with its base file
print(path, cfg.MODEL.META_ARCHITECTURE)
"""


def test_the_configs_are_part_of_it(tmp_path):
    source, built = tmp_path / "source", tmp_path / "built"
    for name in ("caureid_plugin", "configs"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(built)],
                   cwd=source, check=True, capture_output=True, timeout=120)
    shipped = sorted(p.relative_to(ROOT / "configs") for p in (ROOT / "configs").rglob("*.yml"))
    carried = built / "caureid_plugin" / "configs"
    assert sorted(p.relative_to(carried) for p in carried.rglob("*.yml")) == shipped
    assert (built / "caureid_plugin" / "py.typed").is_file()
    done = subprocess.run(
        [sys.executable, "-c", LOAD], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(built)}, timeout=120)
    assert done.stdout.split()[-2:] == [str(carried / "Market" / "caureid.yml"), "CAUReID"]
