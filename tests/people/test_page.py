"""The page: doubtful people first, their crops in it, and lines of corrections to copy."""

import math

import numpy as np
from caureid_plugin.clustering.tracks import Tracks
from caureid_plugin.people import page as page_module
from caureid_plugin.people.corrections import facts, read_corrections
from caureid_plugin.people.page import make_page
from caureid_plugin.people.table import Crop, People
from PIL import Image

from helpers.page import Page

EVIL = "<b>&\"',1"


def shown(tmp_path, persons, confidence, nearest, each=1, start=0.0):
    """A page of tracks, their names hard to write; and what it is made of."""
    crops = []
    for track in range(len(persons)):
        for image in range(each):
            path = tmp_path / f"{track:02d}_{image:02d}.png"
            Image.new("RGB", (40, 80), (10 * track, 0, image)).save(path)
            crops.append(Crop(str(path), EVIL, f"t{track}", start + 10.0 * track + image))
    tracks = Tracks.of(np.zeros(len(crops), int), [crop.track for crop in crops],
                       [crop.seconds for crop in crops])
    people = People(crops, tracks, np.array(persons), np.array(confidence, dtype=float),
                    np.array(nearest), np.eye(len(persons), dtype=np.float32), "run", "f", "plain",
                    0.5, 1, [])
    return Page(make_page(people, str(tmp_path))), people


def lines(page):
    start = page.source.split("<code>")[1:]
    return [part.split("</code>")[0].replace("&#34;", '"').replace("&#39;", "'").replace(
        "&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for part in start][3:]


def test_doubtful_people_come_first_and_names_are_escaped(tmp_path):
    page, _ = shown(tmp_path, [1, 1, 2, 2, 3, 0], [0.9, 0.8, 0.95, 0.3, 0.5, math.nan],
                    [0, 0, 0, 0, 2, 3])
    sections = [name for name in page.ids if name.startswith("person-")]
    assert sections == ["person-2", "person-3", "person-1"]
    assert page.headings[:2] == ["3 people", "Person 2 lowest confidence 0.30"]
    assert "3 of 3 people are shown" in page.text
    assert "b" not in page.tags and f"camera {EVIL}" in page.text
    assert "names the nearest person only" in page.text
    assert len(page.pictures) == 6
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.loads)


def test_times_since_1970_can_be_told_apart(tmp_path):
    page, _ = shown(tmp_path, [1, 1], [0.5, 0.5], [0, 0], each=2, start=1764321000.0)
    assert "1764321000 to 1764321001" in page.text and "1764321010 to 1764321011" in page.text


def test_lines_to_copy_are_obeyed(tmp_path):
    page, people = shown(tmp_path, [1, 1, 2, 0], [0.9, 0.8, 0.6, math.nan], [0, 0, 1, 2])
    found = lines(page)
    assert found[0] == "join,1,2" and found[3].startswith("join,2,")  # a person of one track
    assert [line.split(",")[:2] for line in found[1:3]] == [["split", "1"], ["split", "1"]]
    for line, expected in ((found[2], [1, None, 2, None]), (found[3], [1, 1, 2, 2]),
                           (found[0], [1, 1, 1, None])):
        path = tmp_path / "corrections.csv"
        path.write_text(f"action,a,b\n{line}\n")
        said = facts(people.crops, people.tracks.of_image, people.persons, [],
                     read_corrections(path), path)
        assert [said.numbers[group] if group >= 0 else None
                for group in said.group.tolist()] == expected


def test_a_person_has_at_most_twelve_pictures(tmp_path):
    page, _ = shown(tmp_path, [1] * 20, np.linspace(0.9, 0.2, 20), [0] * 20, each=2)
    assert len(page.pictures) == 12
    assert "12 of 20 tracks are shown" in page.text
    assert "t19" in page.text and "t7," not in page.text  # the least certain
    page, _ = shown(tmp_path, [1, 1], [0.5, 0.5], [0, 0], each=9)
    assert len(page.pictures) == 12


def test_many_people_are_counted_and_not_all_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "MOST_PEOPLE", 2)
    page, _ = shown(tmp_path, [1, 2, 3], [0.3, 0.2, 0.1], [2, 1, 1])
    assert "2 of 3 people are shown" in page.text
    assert [name for name in page.ids if name.startswith("person-")] == ["person-3", "person-2"]


def test_a_crop_that_has_gone_since_is_no_error(tmp_path):
    _, people = shown(tmp_path, [1], [0.5], [0])
    (tmp_path / "00_00.png").unlink()
    assert 'src="data:,"' in make_page(people, str(tmp_path))
