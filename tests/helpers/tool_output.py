"""What a command of tools/ gave: its tables, its files, its refusals."""

import csv

import numpy as np
import pytest
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
    """What a tool says that does not do as it is told: its exit's text, its lines on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        main([str(word) for word in words])
    assert leaving.value.code not in (None, 0)
    return f"{leaving.value.code}\n{capsys.readouterr().err}"
