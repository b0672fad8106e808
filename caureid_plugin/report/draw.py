"""Pictures of the report: curves as SVG within the page, images as JPEG, maps as PNG.

All of them repeat bit for bit. What is drawn in ink takes the colour of the page's text, so that
the pictures suit a light and a dark page.
"""

from __future__ import annotations

import functools
import io
import os
import re
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from fastreid.data.data_utils import read_image
from markupsafe import Markup
from PIL import Image

from ..common.pages import data_uri, image_uri
from ..common.text import printable
from ..runs.run import Missing

matplotlib.use("Agg")
from matplotlib import colormaps, colors, pyplot

BOX = (256, 128)  # width and height that an image is made to fit into, in pixels
INK = "#010203"  # replaced by the colour of the page's text
# told apart on white and on black alike
CYCLE = ("#2f86d1", "#d9761a", "#2ca24c", "#c6519e")
DASHES = ("-", "--", "-.", ":")
GREY = "#8a8f98"
MOST_COLOURS = 20  # told apart on a map
STYLE: Any = {
    "svg.hashsalt": "caureid", "svg.fonttype": "none", "font.size": 10, "font.family": "sans-serif",
    "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK,
    "ytick.color": INK, "figure.facecolor": "none", "axes.facecolor": "none",
    "savefig.facecolor": "none", "legend.framealpha": 0, "axes.spines.top": False,
    "axes.spines.right": False,
}


class Chart(NamedTuple):
    """Curves against epochs: title and, by name, (x, y) points; ``top`` of the axis, if fixed."""

    title: str
    unit: str
    lines: dict[str, Any]
    top: float | None = None


def chart_svg(chart: Chart, number: int) -> Markup:
    """The chart as an SVG of the page; ``number`` tells its names from other charts'."""
    with matplotlib.rc_context(STYLE):
        figure, axis = pyplot.subplots(figsize=(4.4, 3.0), layout="constrained")
        for i, (name, points) in enumerate(chart.lines.items()):
            marker = "o" if len(points) < 30 else None
            axis.plot(*zip(*points, strict=True), label=name, color=CYCLE[i % len(CYCLE)],
                      linestyle=DASHES[i % len(DASHES)], marker=marker, markersize=3.5)
        axis.set_xlabel("epoch")
        axis.set_ylabel(chart.unit)
        lowest = min(y for points in chart.lines.values() for _, y in points)
        last = max(1, *(x for points in chart.lines.values() for x, _ in points))
        axis.set_xlim(-0.03 * last, 1.03 * last)
        axis.set_ylim(bottom=min(0.0, lowest), top=chart.top)
        axis.locator_params("x", integer=True)
        axis.grid(alpha=0.25, color=INK)
        figure.legend(loc="outside lower center", ncols=min(3, len(chart.lines)))
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    return Markup(_inline(file.getvalue(), f"chart{number}", chart))


def _inline(svg: str, prefix: str, chart: Chart) -> str:
    """An SVG file as a part of a page: as wide as its place, with names of its own."""
    svg = svg[svg.index("<svg"):]
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    label = Markup.escape(f"{chart.title}: {', '.join(chart.lines)}")
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    rest = re.sub(r'\bid="', f'id="{prefix}-', rest)
    rest = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", rest)
    return f'{head} role="img" aria-label="{label}">{rest}'.replace(INK, "currentColor")


# ----------------------------------------------------------------------------------- images ----


@functools.lru_cache(maxsize=4096)
def thumbnail(path: str) -> str:
    """An image file, at most as large as BOX.

    Raises:
        Missing: it cannot be read (names it).
    """
    try:
        image = read_image(path, format="RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise Missing(f"An image cannot be read: {error} Repair or restore it.") from error
    image.thumbnail(BOX, Image.Resampling.LANCZOS)
    return image_uri(image)


def picture(path: str, caption: str) -> dict[str, Any]:
    """An image file for the page, with its name and what is written below it."""
    return {"src": thumbnail(path), "alt": printable(os.path.basename(path)),
            "path": printable(path), "caption": caption}


# ------------------------------------------------------------------------------------- maps ----


def palette(count: int) -> list[str]:
    """Colours for so many things; from the 21st on they begin again."""
    names = "tab10" if count <= 10 else "tab20"
    listed: Any = colormaps[names]
    table = [colors.to_hex(colour) for colour in listed.colors]
    return [table[i % len(table)] for i in range(count)]


def scatter(places: np.ndarray, point_colours: list[str], sizes: np.ndarray,
            alphas: np.ndarray) -> str:
    """A map of points without axes, square.

    Args:
        places: (n, 2).
        point_colours, sizes, alphas: of each point; those with the lowest alpha lie below.
    """
    with matplotlib.rc_context(STYLE):
        figure = pyplot.figure(figsize=(4, 4))
        axis = figure.add_axes((0.01, 0.01, 0.98, 0.98))
        order = np.argsort(alphas, kind="stable")
        rgba = np.array([colors.to_rgba(colour) for colour in point_colours])
        rgba[:, 3] = alphas
        axis.scatter(places[order, 0], places[order, 1], c=rgba[order], s=sizes[order],
                     linewidths=0)
        axis.set_axis_off()
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=140, transparent=True, metadata={"Software": None})
        pyplot.close(figure)
    return data_uri(file.getvalue(), "png")
