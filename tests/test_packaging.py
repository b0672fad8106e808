"""What an installation that is not editable carries."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder with what a wheel holds, which is built from a copy of the sources."""
    source, folder = (tmp_path_factory.mktemp(name) for name in ("source", "built"))
    for name in ("caureid_plugin", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(folder)],
                   cwd=source, check=True, capture_output=True, timeout=120)
    return folder


@pytest.fixture
def run(built, tmp_path):
    """Runs the interpreter in a foreign folder with nothing of the plugin but what was built."""
    def run(*words):
        return subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": str(built)}, timeout=120).stdout
    return run


def files(folder):
    return {path.relative_to(folder) for path in folder.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts}


def test_every_file_of_the_package_is_part_of_it(built):
    """Its code, the pages' templates, py.typed; the configs, which a clone has elsewhere."""
    carried = files(built / "caureid_plugin")
    configs = {Path("configs") / path for path in files(ROOT / "configs") if path.suffix == ".yml"}
    assert carried - configs == files(ROOT / "caureid_plugin")
    assert configs <= carried and len(configs) > 20


def test_its_configs_are_found(built, run):
    config = built / "caureid_plugin" / "configs" / "Market" / "caureid.yml"
    assert run("-c", LOAD).split()[-2:] == [str(config), "CAUReID"]


def test_its_commands_are_found(run):
    """By the entry point, which names a function that is there, and as a module."""
    entry = re.search(r'"caureid = ([\w.]+):(\w+)"', (ROOT / "setup.py").read_text())
    code = f"from {entry[1]} import {entry[2]} as main; main(['demo', '--help'])"
    assert "Usage: caureid demo" in run("-m", "caureid_plugin", "demo", "--help")
    assert "--output" in run("-c", code)
