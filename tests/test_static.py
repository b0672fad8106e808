"""What is found without running the code: ruff, mypy and vulture as pyproject.toml sets them."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ROOT / "pyproject.toml"


def run(tool, *arguments, folder=ROOT):
    return subprocess.run([sys.executable, "-m", tool, *map(str, arguments)], cwd=folder,
                          check=False, capture_output=True, text=True, timeout=280)


def mypy(*arguments, cache=os.devnull, folder=ROOT):
    return run("mypy", "--config-file", SETTINGS, "--cache-dir", cache, *arguments, folder=folder)


def dead_code(*paths, folder=ROOT):
    """Vulture's findings, without what a test function takes (fixtures) or sets (a mock)."""
    found = run("vulture", "--config", SETTINGS, *paths, folder=folder)
    assert found.returncode in (0, 3), found.stdout + found.stderr  # 3: there is dead code
    return [line for line in found.stdout.splitlines()
            if not re.match(r"tests/.*: unused (variable|attribute)", line)]


def test_ruff():
    done = run("ruff", "check", "--no-cache", ".")
    assert done.returncode == 0, done.stdout + done.stderr


def test_mypy_on_the_whole_package():
    # half a minute without a cache, seconds with it
    done = mypy(cache=ROOT / ".mypy_cache" if os.access(ROOT, os.W_OK) else os.devnull)
    assert done.returncode == 0, done.stdout + done.stderr
    files = len(list((ROOT / "caureid_plugin").rglob("*.py")))
    assert f"no issues found in {files} source files" in done.stdout


def test_no_dead_code():
    assert dead_code() == []


def test_an_unused_import_is_found(tmp_path):
    (tmp_path / "scratch.py").write_text('"""A module."""\n\nimport os\n')
    done = run("ruff", "check", "--no-cache", "--config", SETTINGS, "scratch.py", folder=tmp_path)
    assert done.returncode == 1 and "F401" in done.stdout


def test_a_wrong_or_missing_type_is_found(tmp_path):
    package = tmp_path / "caureid_plugin" / "losses"
    package.mkdir(parents=True)
    for name in (package.parent / "__init__.py", package / "__init__.py"):
        name.touch()
    (package / "scratch.py").write_text(
        "def half(x: int) -> int:\n    return x / 2\n\n\ndef third(x):\n    return x / 3\n")
    done = mypy("caureid_plugin/losses/scratch.py", folder=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2: error" in done.stdout and "[return-value]" in done.stdout
    assert "5: error" in done.stdout and "[no-untyped-def]" in done.stdout


def test_a_dead_function_is_found(tmp_path):
    (tmp_path / "scratch.py").write_text("def used():\n    pass\n\n\ndef dead():\n    used()\n")
    found, = dead_code("scratch.py", folder=tmp_path)
    assert "unused function 'dead'" in found


def test_names_that_may_be_dead_still_occur():
    """An allowed name that is gone would hide the next one of that name."""
    lines = SETTINGS.read_text().split("ignore_names = [")[1].split("]\n")[0]
    code = "".join(path.read_text() for folder in ("caureid_plugin", "tools", "tests")
                   for path in (ROOT / folder).rglob("*.py"))
    allowed = re.findall(r'"(\w+)"', lines)
    assert allowed and [name for name in allowed if not re.search(rf"\b{name}\b", code)] == []
