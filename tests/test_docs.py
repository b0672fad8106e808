"""The documents follow the code."""

import re
from pathlib import Path

import pytest
from caureid_plugin import compat

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def test_every_repair_is_listed_as_the_code_describes_it():
    text = (ROOT / "docs" / "compatibility.md").read_text()
    for repair in compat.REPAIRS.values():
        row = f"| `{repair.name}` | {repair.upstream} | {repair.symptom} | {repair.versions} |"
        assert row in text, repair.name
    assert text.count("\n| `") == len(compat.REPAIRS)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_config_keys_exist(path, cfg):
    """A key written in capitals, as in `CAUREID.CLUSTER.EPS`, is one of the config."""
    for key in set(re.findall(r"`((?:[A-Z][A-Z0-9_]+\.)+[A-Z][A-Z0-9_]+)", path.read_text())):
        node = cfg
        for part in key.split("."):
            assert part in node, key
            node = node[part]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_commands_name_files_that_exist(path):
    for name in re.findall(r"(?:^|\s)((?:tools|configs)/[\w/.-]+\.(?:py|yml))", path.read_text()):
        assert (ROOT / name).is_file(), name
