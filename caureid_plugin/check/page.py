"""The page of caureid check: one HTML file with the report and pictures of the images."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fastreid.data.data_utils import read_image
from markupsafe import Markup
from PIL import Image

from ..common.files import write_atomically
from ..common.pages import image_uri, render
from ..common.text import printable
from .words import FAIL, Data, Report, count

TEMPLATE = Path(__file__).with_name("page.html.j2")
SIDE = (128, 128)  # largest height and width of a picture
MOST_CAMERAS = 60  # whose images are shown
PER_CAMERA, PER_PAIR = 8, 4  # images of a camera, by itself and beside one that looks like it
MOST_PAIRS = 8  # of copies of a kind, and of cameras that look alike
MOST_BARS = 100
GREY = "#808080"  # readable on white and on black


class Picture(NamedTuple):
    """An image as the page holds it: a data URI, and the words below it."""

    source: str
    caption: str


class Gallery(NamedTuple):
    """Pictures in a row and what they show."""

    title: str
    pictures: list[Picture]


def write_page(path: Path, report: Report, data: Data | None, full: Data | None,
               copies: dict[str, Any], alike: list[Any], *, seed: int) -> None:
    """Writes the page.

    Args:
        path: of the page.
        report: what is said.
        data: the images, None if there are none.
        full: the images that show something.
        copies: what it shows -> pairs of rows of ``full``.
        alike: pairs of cameras, (camera, camera, AUC).
        seed: of the choice of pictures.
    """
    galleries, chart = {}, None
    if data is not None and full is not None and len(data.rows):
        rng = np.random.default_rng(seed)
        galleries = {"cameras": camera_sheets(data, rng), "copies": copy_pairs(full, copies, rng),
                     "alike": camera_pairs(full, alike, rng),
                     "content": camera_sheets(data.chosen(~np.isin(data.rows, full.rows)), rng)}
    if data is not None:
        chart = Markup(draw_bars(np.bincount(data.camids), data.names))
    text = render(TEMPLATE, {
        "verdict": report.verdict(), "failed": report.verdict() == FAIL, "figures": report.figures,
        "cameras": count(len(report.figures.get("cameras", ())), "camera"),
        "findings": sorted(report.findings, key=lambda finding: finding[0] != FAIL),
        "sections": report.sections, "galleries": galleries, "chart": chart})
    write_atomically(path, text)


def picture(data: Data, row: int, *, camera: bool = False) -> Picture:
    """An image of the readable ones, small; a file that has gone since is an empty picture."""
    name = printable(os.path.basename(data.path(row)))
    caption = f"{printable(data.name(row))}: {name}" if camera else name
    try:
        image = read_image(data.path(row))
    except ValueError as error:
        return Picture("data:,", printable(error))
    image.thumbnail(SIDE[::-1], Image.Resampling.LANCZOS)
    return Picture(image_uri(image), caption)


def camera_sheets(data: Data, rng: np.random.Generator) -> list[Gallery]:
    """A few images of each camera."""
    found = []
    for camera, name in enumerate(data.names[:MOST_CAMERAS]):
        rows = np.flatnonzero(data.cameras == camera)
        if not len(rows):
            continue
        chosen = np.sort(rng.choice(rows, min(PER_CAMERA, len(rows)), replace=False))
        found.append(Gallery(f"{printable(name)}, {len(rows)} images",
                             [picture(data, row) for row in chosen]))
    return found


def copy_pairs(data: Data, copies: dict[str, Any], rng: np.random.Generator) -> list[Gallery]:
    """Examples of each kind of copies; two images that are each other's are one pair."""
    found = []
    for kind, both_ways in copies.items():
        pairs = sorted({tuple(sorted(pair)) for pair in both_ways})
        chosen = np.sort(rng.choice(len(pairs), min(MOST_PAIRS, len(pairs)), replace=False))
        found += [Gallery(kind, [picture(data, row, camera=True) for row in pairs[i]])
                  for i in chosen]
    return found


def camera_pairs(data: Data, alike: list[Any], rng: np.random.Generator) -> list[Gallery]:
    """Images of the cameras of each pair that looks like one."""
    found = []
    for first, second, auc in alike[:MOST_PAIRS]:
        pictures = [picture(data, row, camera=True) for camera in (first, second) for row in
                    np.sort(rng.choice(np.flatnonzero(data.cameras == camera), PER_PAIR,
                                       replace=False))]
        found.append(Gallery(f"{printable(data.names[first])} and {printable(data.names[second])}"
                             f" (AUC {auc:.2f})", pictures))
    return found


def draw_bars(counts: np.ndarray, names: list[str]) -> str:
    """Bar chart of images per camera, an SVG element whose letters are outlines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    counts = counts[:MOST_BARS]
    labels = [printable(name)[:24] for name in names[:MOST_BARS]]
    figure, axis = pyplot.subplots(figsize=(6, 0.8 + 0.24 * len(counts)), layout="constrained")
    axis.barh(np.arange(len(counts)), counts, color="#4c78a8")
    axis.set_yticks(np.arange(len(counts)), labels, parse_math=False)
    axis.invert_yaxis()
    axis.set_xlabel("images", color=GREY)
    axis.tick_params(colors=GREY)
    for side, spine in axis.spines.items():
        spine.set_color(GREY)
        spine.set_visible(side in ("left", "bottom"))
    file = io.StringIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "check_data"}):
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the table has the name
        figure.savefig(file, format="svg", transparent=True,
                       metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    return file.getvalue()[file.getvalue().index("<svg"):]
