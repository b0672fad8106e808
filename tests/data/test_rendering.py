"""Tests of the drawn people, cameras and pictures."""

import dataclasses

import numpy as np
import pytest
from caureid_plugin.data.synthetic import render as rendering
from caureid_plugin.data.synthetic.cameras import PRESET_CAMERAS, Camera, make_camera, make_shot
from caureid_plugin.data.synthetic.people import make_person
from caureid_plugin.data.synthetic.render import contact_sheet, render, render_shot

SMALL = (64, 32)
# A camera that changes nothing: what is drawn is what it shows.
NEUTRAL = Camera("brick", 11, (1.0, 1.0, 1.0), 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0,
                 0.0, 90)


def person_of(seed=0, **changes):
    return dataclasses.replace(make_person(np.random.default_rng(seed)), **changes)


def shot_of(seed=0, **changes):
    plain = dict(occlusion="none", light=1.0, side_light=0.0, offset=(0.0, 0.0), scale=0.92)
    return dataclasses.replace(make_shot(np.random.default_rng(seed)), **{**plain, **changes})


def test_same_seed_gives_the_same_bytes():
    """Whatever was drawn in between, on the same scene."""
    def draw(seed, person=1):
        return [array.tobytes() for array in render(
            person_of(person), make_camera(2), np.random.default_rng([3, seed]), SMALL)]

    first = draw(4)
    assert draw(5)[0] != first[0] and draw(4, person=2)[0] != first[0]
    assert draw(4) == first
    rendering.draw_scene.cache_clear()
    assert draw(4) == first


def test_shapes_and_types():
    rng = np.random.default_rng(0)
    for size in ((128, 64), (96, 96)):
        picture, mask = render(person_of(), make_camera(0), rng, size)
        assert picture.shape == (*size, 3) and picture.dtype == np.uint8
        assert mask.shape == size and mask.dtype == np.bool_
    with pytest.raises(ValueError, match=r"size=\(128, 8\).*at least 16"):
        render(person_of(), make_camera(0), rng, (128, 8))


@pytest.mark.parametrize("seed", range(3))
def test_mask_is_what_hides_the_background(seed, monkeypatch):
    """Before dark grey and before black: what changes by less than half is mostly the person."""
    person, shot = person_of(seed), shot_of(seed)
    pictures = []
    for tone in (80, 0):  # so dark that nothing in front of it is cut off at white
        monkeypatch.setattr(rendering, "draw_scene", lambda name, seed, height, width, tone=tone:
                            np.full((height, width, 3), tone, np.uint8))
        picture, mask = render_shot(person, NEUTRAL, shot)
        pictures.append(picture.astype(int))
    cover = 1.0 - (pictures[0] - pictures[1]).mean(axis=2) / 80.0
    cover, mask = cover[:96], mask[:96]  # the ground below has the person's shadow on it
    sure = np.abs(cover - 0.5) > 0.02
    assert np.array_equal(mask[sure], cover[sure] > 0.5)
    assert sure.mean() > 0.98 and mask.mean() > 0.1


@pytest.mark.parametrize("occlusion", ["pole", "bin", "person"])
def test_occlusion_hides_a_part_of_the_mask(occlusion):
    person, lost = person_of(5), 0
    for place in (0.1, 0.4, 0.9):
        clear = shot_of(5, occlusion_place=place)
        hidden = dataclasses.replace(clear, occlusion=occlusion)
        _, whole = render_shot(person, NEUTRAL, clear)
        picture, left = render_shot(person, NEUTRAL, hidden)
        without, nobody = render_shot(None, NEUTRAL, hidden)
        assert not nobody.any() and not (left & ~whole).any()
        gone = whole & ~left
        lost += gone.sum()
        # Where the mask was taken away, the thing in front shows with and without the person.
        same = (np.abs(picture.astype(int) - without.astype(int)).max(axis=2) <= 12)[gone]
        assert gone.sum() < 20 or same.mean() > 0.6
    assert lost > 50


OTHER = {"upper": "green", "upper_accent": "white", "upper_pattern": "checks", "upper_cut": "coat",
         "sleeve": "short", "lower": "red", "lower_kind": "skirt", "lower_stripe": False,
         "shoes": "red", "skin": 4, "hair": "blond", "hair_style": "bun", "hat": "beanie",
         "hat_colour": "yellow", "bag": "handbag", "bag_colour": "yellow", "bag_on_left": True}


def test_people_who_differ_look_different():
    person = person_of(
        8, upper="grey", upper_accent="yellow", upper_pattern="stripes", upper_cut="shirt",
        sleeve="long", lower="navy", lower_kind="trousers", lower_stripe=True, shoes="white",
        skin=0, hair="black", hair_style="long", hat="cap", hat_colour="red", bag="shoulder bag",
        bag_colour="red", bag_on_left=False)
    assert dataclasses.replace(person, build=9.0, head=9.0, tint=(0.0, 0.0, 0.0)) == person
    assert set(OTHER) == {field.name for field in dataclasses.fields(person) if field.compare}

    shot = shot_of(8, facing="front")
    before = render_shot(person, NEUTRAL, shot)[0].astype(int)
    for trait, value in OTHER.items():
        other = dataclasses.replace(person, **{trait: value})
        change = np.abs(render_shot(other, NEUTRAL, shot)[0] - before).max(axis=2)
        assert other != person and (change > 20).sum() >= 12, trait


def test_what_cannot_be_seen_makes_no_other_person():
    for person in map(person_of, range(100)):
        if person.hat == "none":
            assert person.hat_colour == "black"
        if person.bag == "none":
            assert (person.bag_colour, person.bag_on_left) == ("black", False)
        plain = person.upper_pattern == "plain" and not person.lower_stripe
        assert (person.upper_accent == person.upper) == plain


def test_cameras_differ_in_scene_and_mean_colour():
    assert len({camera.scene for camera in PRESET_CAMERAS}) == len(PRESET_CAMERAS)
    means = [np.mean([render(person_of(seed), camera, np.random.default_rng(seed), SMALL)[0]
                      for seed in range(6)], axis=(0, 1, 2)) for camera in PRESET_CAMERAS]
    for i, mean in enumerate(means):
        assert all(np.abs(mean - other).max() > 4.0 for other in means[:i]), means


def test_make_camera():
    assert make_camera(0) is PRESET_CAMERAS[0]
    assert make_camera(17) == make_camera(17) != make_camera(18)
    with pytest.raises(ValueError, match="source=-1"):
        make_camera(-1)


def test_contact_sheet():
    sheet = contact_sheet(people=2, cameras=3, size=(32, 16), gap=2)
    assert sheet.size == (3 * 18 + 2, 2 * 34 + 2) and sheet.mode == "RGB"
    person = make_person(np.random.default_rng([0, 2]))
    picture, _ = render(person, make_camera(1), np.random.default_rng([0, 2, 2, 0]), (32, 16))
    assert np.array_equal(np.asarray(sheet)[36:68, 20:36], picture)
    with pytest.raises(ValueError, match="people=0"):
        contact_sheet(people=0)
