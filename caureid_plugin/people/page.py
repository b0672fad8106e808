"""The page of ``caureid people``: a person a row, the doubtful ones first."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fastreid.data.data_utils import read_image
from PIL import Image

from ..common.pages import image_uri, render
from ..common.text import printable
from .table import Crop, People

TEMPLATE = Path(__file__).with_name("page.html.j2")
MOST_PEOPLE, MOST_UNASSIGNED = 200, 50
MOST_CROPS = 12  # of a person
BOX = (64, 128)  # largest width and height of a crop


def make_page(people: People, folder: str) -> str:
    """The page, as HTML; ``folder``: of the tables, from which corrections name crops."""
    found = people.of_person()
    unassigned = found.pop(0, [])
    doubt = {person: min(float(people.confidence[track]) for track in tracks)
             for person, tracks in found.items()}
    order = sorted(found, key=lambda person: (doubt[person], person))
    return render(TEMPLATE, {
        "people": [{"number": person, "doubt": f"{doubt[person]:.2f}",
                    **_tracks(people, found[person], folder)} for person in order[:MOST_PEOPLE]],
        "count": len(order), "crops": len(people.crops), "tracks": len(people.tracks),
        "settings": people.settings, "network": printable(people.network),
        "unassigned": _tracks(people, unassigned, folder, MOST_UNASSIGNED)})


def _tracks(people: People, tracks: list[int], folder: str, most: int = MOST_CROPS
            ) -> dict[str, Any]:
    """The least certain of some tracks, in their order, and how many there are."""
    doubtful = sorted(sorted(tracks, key=lambda track: people.confidence[track])[:most],
                      key=tracks.index)
    each = 1 if most != MOST_CROPS else max(1, MOST_CROPS // max(len(doubtful), 1))
    return {"doubtful": [_track(people, track, len(tracks), each, folder) for track in doubtful],
            "total": len(tracks)}


def _track(people: People, track: int, of: int, most: int, folder: str) -> dict[str, Any]:
    rows, name = people.rows[track], people.name(track, folder)
    person, nearest = int(people.persons[track]), int(people.nearest[track])
    first, last = people.tracks.first[track], people.tracks.last[track]
    line = ""
    if person and of > 1:
        line = f"split,{person},{_cell(name)}"
    elif nearest:
        line = f"join,{nearest},{person or _cell(name)}"
    step = max(1.0, len(rows) / most)
    chosen = [rows[int(place * step)] for place in range(min(most, len(rows)))]
    return {
        "camera": printable(people.crops[rows[0]].camera), "name": printable(name),
        "time": "" if math.isnan(first) else f"{first:.10g} to {last:.10g}",
        "confidence": f"{people.confidence[track]:.2f}" if person else "",
        "line": line, "images": len(rows), "pictures": [_picture(people.crops[row])
                                                        for row in chosen]}


def _cell(text: str) -> str:
    """A cell of a CSV file."""
    quoted = text.replace('"', '""')
    return f'"{quoted}"' if any(sign in text for sign in ',"\n\r') else text


def _picture(crop: Crop) -> dict[str, str]:
    try:
        image = read_image(crop.path, format="RGB")
        image.thumbnail(BOX, Image.Resampling.LANCZOS)
        source = image_uri(image)
    except (OSError, ValueError):  # has gone since it was embedded
        source = "data:,"
    return {"source": source, "alt": printable(crop.path.rpartition("/")[2])}
