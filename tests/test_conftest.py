"""The suite's own guard: what is skipped without being expected fails a run of CI."""

import shutil
from pathlib import Path

import pytest

from helpers import warm

TESTS = Path(__file__).parent
VANISHING = """
import pytest

def test_skipped():
    pytest.skip("no such thing here")

def test_broken():
    pytest.xfail("known to fail")
"""


@pytest.mark.parametrize("ci", [True, False])
def test_what_vanishes_fails_a_run_of_ci(tmp_path, ci):
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text(f"[pytest]\npythonpath = {TESTS}\n")
    (tmp_path / "test_vanishing.py").write_text(VANISHING)
    done = warm.run(["-m", "pytest", "-q"], tmp_path,
                    env=warm.environment(CI="true" if ci else None))
    assert done.returncode == int(ci), done.stdout + done.stderr
    for line in ("test_skipped: no such thing here", "test_broken: known to fail"):
        assert (line in done.stderr) == ci
