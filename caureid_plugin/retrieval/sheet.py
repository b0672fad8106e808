"""The picture of caureid search: each query beside the images that were found."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from fastreid.data.data_utils import read_image
from PIL import Image, ImageDraw, ImageFont

CELL = (112, 224)  # width and height of an image
FRAME, GAP, TEXT = 5, 12, 44  # pixels: around an image, between cells, below for two lines
COLUMNS = 10  # images of one line beside the query
SAME, DIFFERENT, PLAIN, INK = "#1a7f37", "#cf222e", "#8c959f", "#1f2328"


class Cell(NamedTuple):
    """An image, two lines of text below it, and whether it shows the same person (None: open)."""

    path: str
    lines: tuple[str, str]
    same: bool | None = None


def draw_sheet(rows: Sequence[tuple[Cell, Sequence[Cell]]], title: str) -> Image.Image:
    """One row for each query, more where it has more than ten hits.

    Args:
        rows: of each query, its cell and the cells of its hits in order.
        title: one line above.
    """
    lines = [(query if start == 0 else None, hits[start:start + COLUMNS])
             for query, hits in rows for start in range(0, max(len(hits), 1), COLUMNS)]
    columns = 1 + max((len(hits) for _, hits in lines), default=0)
    width, height = CELL[0] + 2 * FRAME + GAP, CELL[1] + 2 * FRAME + TEXT + GAP
    head = 36
    title_width = int(_font(15).getlength(title)) + 2 * GAP
    sheet = Image.new("RGB", (max(columns * width + 3 * GAP, title_width), head + len(lines)
                              * height + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 10), title, fill=INK, font=_font(15))
    for number, (query, hits) in enumerate(lines):
        top = head + number * height
        if query is not None:
            _draw_cell(sheet, draw, query, GAP, top)
        for column, hit in enumerate(hits, start=1):
            _draw_cell(sheet, draw, hit, 2 * GAP + column * width, top)  # a gap behind the query
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib brings it along; it has more than Latin letters
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size)


def _draw_cell(sheet: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell, left: int, top: int
               ) -> None:
    colour = PLAIN if cell.same is None else SAME if cell.same else DIFFERENT
    right, bottom = left + CELL[0] + 2 * FRAME - 1, top + CELL[1] + 2 * FRAME - 1
    draw.rectangle((left, top, right, bottom), outline=colour, width=FRAME, fill="#f6f8fa")
    try:
        image = read_image(cell.path)
        scale = min(CELL[0] / image.width, CELL[1] / image.height)
        image = image.resize((max(1, round(image.width * scale)),
                              max(1, round(image.height * scale))), Image.Resampling.LANCZOS)
        sheet.paste(image, (left + FRAME + (CELL[0] - image.width) // 2,
                            top + FRAME + (CELL[1] - image.height) // 2))
    except (ValueError, OSError):  # it is in the index: its file is gone or was changed
        draw.text((left + 2 * FRAME, top + CELL[1] // 2), "not readable", fill=DIFFERENT,
                  font=_font(13))
    for number, line in enumerate(cell.lines):
        draw.text((left, bottom + 4 + 19 * number), _fitting(line), fill=INK if number else colour
                  if cell.same is not None else INK, font=_font(14))


def _fitting(line: str) -> str:
    """The line, its end cut off where it is wider than a cell."""
    font, room = _font(14), CELL[0] + 2 * FRAME
    if font.getlength(line) <= room:
        return line
    while line and font.getlength(line + "…") > room:
        line = line[:-1]
    return line + "…"
