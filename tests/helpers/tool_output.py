"""What a command gave: its tables, its files, its refusals."""

import csv

import click
import numpy as np
import pytest
from caureid_plugin.cli.common import call
from PIL import Image


def table_rows(text):
    """Cells of each line of the Markdown tables in a text, headings and rules included."""
    return [[cell.strip() for cell in line.strip("|").split("|")]
            for line in text.splitlines() if line.startswith("|")]


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def is_drawn(path):
    """Whether an image file shows more than one colour."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).std() > 5


def refusal(main, words, capsys):
    """What a command says that does not do as it is told: its exit's text, its lines on stderr.

    ``main``: a command of ``caureid``, or a function that takes the words.
    """
    capsys.readouterr()
    words = [str(word) for word in words]
    with pytest.raises(SystemExit) as leaving:
        call(main, words) if isinstance(main, click.Command) else main(words)
    assert leaving.value.code not in (None, 0)
    return f"{leaving.value.code}\n{capsys.readouterr().err}"
