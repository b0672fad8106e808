"""Documents are written in short sentences and common words."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
LONG, SHARE = 25, 0.10  # words of a sentence; long ones among a page's sentences, at most
# where a common word does: only, repair, from ... on; "those of" for what can be named
RIDDLES = re.compile(r"\b(alone|mend(s|ed)?|from which on|those of)\b", re.I)


def sentences(text):
    """Sentences of the running text: without code, tables, headings, comments and link targets."""
    text = re.sub(r"<!--.*?-->|^```.*?^```", "", text, flags=re.S | re.M)
    lines = [line for line in text.splitlines()
             if not re.match(r" {4}|\||#|:::|<", line) or re.match(r" {4,}[-*] ", line)]
    text = re.sub(r"\]\([^)]*\)", "]", "\n".join(lines))
    for block in re.split(r"\n\s*\n|\n\s*(?:[-*]|\d+\.) ", text):
        yield from filter(None, re.split(r"(?<=[.!?:])\s+(?=[A-Z`*\[])", " ".join(block.split())))


def long_share(text):
    counts = [len(sentence.split()) for sentence in sentences(text)]
    return sum(count > LONG for count in counts) / max(len(counts), 1)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_nine_of_ten_sentences_are_short(page):
    share = long_share(page.read_text())
    assert share <= SHARE, f"{share:.0%} of the sentences are too long"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_common_words(page):
    for sentence in sentences(page.read_text()):
        assert not RIDDLES.search(re.sub(r"`[^`]*`", "", sentence)), sentence


def test_long_sentences_are_found():
    assert long_share("One. Then " + "word " * 26 + "end. Two.\n\n    " + "code " * 99) == 1 / 3
    assert long_share("- " + "word " * 13 + "\n- " + "word " * 13) == 0


@pytest.mark.parametrize("path", sorted(
    path for suffix in ("py", "j2") for path in (ROOT / "caureid_plugin").rglob(f"*.{suffix}")),
    ids=lambda path: path.relative_to(ROOT).as_posix())
def test_common_words_in_the_package(path):
    """In messages, docstrings and comments."""
    found = re.search(r"\b(those of|from which on|mends?)\b", path.read_text(), re.IGNORECASE)
    assert found is None, found
