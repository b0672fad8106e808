"""Tests of the drawn people, cameras and pictures."""

import dataclasses

import numpy as np
import pytest
from caureid_plugin.data import rendering
from caureid_plugin.data.rendering import (
    PRESET_CAMERAS,
    Camera,
    Person,
    contact_sheet,
    make_camera,
    make_person,
    make_shot,
    render,
    render_shot,
)

# A camera that changes nothing: what is drawn is what it shows.
NEUTRAL = Camera("brick", 11, (1.0, 1.0, 1.0), 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0,
                 0.0, 90)


def person_of(seed=0, **changes) -> Person:
    return dataclasses.replace(make_person(np.random.default_rng(seed)), **changes)


def shot_of(seed=0, **changes):
    plain = dict(occlusion="none", light=1.0, side_light=0.0, offset=(0.0, 0.0), scale=0.92)
    return dataclasses.replace(make_shot(np.random.default_rng(seed)), **{**plain, **changes})


def test_same_seed_gives_the_same_bytes():
    person, camera = person_of(1), make_camera(2)
    first, mask = render(person, camera, np.random.default_rng([3, 4]))
    second, again = render(person, camera, np.random.default_rng([3, 4]))
    other, _ = render(person, camera, np.random.default_rng([3, 5]))
    assert first.tobytes() == second.tobytes() and mask.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_the_cached_scene_is_not_changed_by_drawing():
    shot = shot_of(2)
    empty, _ = render_shot(None, NEUTRAL, shot)
    for seed in range(3):
        render(person_of(seed), NEUTRAL, np.random.default_rng(seed))
    assert np.array_equal(render_shot(None, NEUTRAL, shot)[0], empty)
    rendering._scene.cache_clear()
    assert np.array_equal(render_shot(None, NEUTRAL, shot)[0], empty)


@pytest.mark.parametrize("size", [(128, 64), (64, 32), (96, 96)])
def test_shapes_and_types(size):
    picture, mask = render(person_of(), make_camera(0), np.random.default_rng(0), size)
    assert picture.shape == (*size, 3) and picture.dtype == np.uint8
    assert mask.shape == size and mask.dtype == np.bool_


def test_too_small_a_size_is_refused():
    with pytest.raises(ValueError, match=r"size=\(128, 8\).*at least 16"):
        render(person_of(), make_camera(0), np.random.default_rng(0), (128, 8))


@pytest.mark.parametrize("index", range(len(PRESET_CAMERAS)))
def test_mask_is_where_the_person_changes_the_picture(index):
    inside, outside = [], []
    for seed in range(8):
        shot = make_shot(np.random.default_rng(seed))
        picture, mask = render_shot(person_of(seed), make_camera(index), shot)
        empty, nobody = render_shot(None, make_camera(index), shot)
        assert not nobody.any()
        assert 0.08 < mask.mean() < 0.60
        change = np.abs(picture.astype(int) - empty.astype(int)).max(axis=2)
        inside.append((change[mask] > 12).mean())
        outside.append((change[~mask] > 12).mean())
    # A garment may have the background's colour; shadow and blur reach beyond the outline.
    assert np.mean(inside) > 0.75
    assert np.mean(outside) < 0.12


def test_mask_is_exact_without_shadow_and_blur():
    """Above the ground nothing but the person changes a picture of the neutral camera."""
    shot = shot_of(3, facing="front")
    picture, mask = render_shot(person_of(3), NEUTRAL, shot)
    empty, _ = render_shot(None, NEUTRAL, shot)
    change = np.abs(picture.astype(int) - empty.astype(int)).max(axis=2)[:96]
    # The outline's pixels are covered in part: leave a margin of one pixel.
    padded = np.pad(mask, 1)
    grown = np.zeros_like(mask)
    for dy in (0, 1, 2):
        for dx in (0, 1, 2):
            grown |= padded[dy:dy + mask.shape[0], dx:dx + mask.shape[1]]
    assert change[~grown[:96]].max() == 0
    assert (change[mask[:96]] > 0).mean() > 0.95


@pytest.mark.parametrize("seed", range(6))
def test_mask_is_what_hides_the_background(seed, monkeypatch):
    """Before dark grey and before black: what changes by less than half is mostly the person."""
    person, shot = person_of(seed), shot_of(seed)
    pictures = []
    for tone in (80, 0):  # so dark that nothing in front of it is cut off at white
        monkeypatch.setattr(rendering, "_scene", lambda name, seed, height, width, tone=tone:
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
        _, whole = render_shot(person, NEUTRAL, clear)
        hidden = dataclasses.replace(clear, occlusion=occlusion)
        picture, left = render_shot(person, NEUTRAL, hidden)
        without, _ = render_shot(None, NEUTRAL, hidden)
        assert not (left & ~whole).any()
        lost += int((whole & ~left).sum())
        # Where the mask was taken away, the thing in front shows with and without the person.
        gone = whole & ~left
        same = (np.abs(picture.astype(int) - without.astype(int)).max(axis=2) <= 12)[gone]
        assert gone.sum() < 20 or same.mean() > 0.6
    assert lost > 50


def test_logo_shows_from_the_front_alone():
    red = person_of(6, upper="grey", upper_pattern="logo", upper_accent="red",
                    lower_stripe=False, bag="none")
    blue = dataclasses.replace(red, upper_accent="blue")
    for facing, differs in (("front", True), ("back", False), ("left", False), ("right", False)):
        shot = shot_of(6, facing=facing)
        same = np.array_equal(render_shot(red, NEUTRAL, shot)[0],
                              render_shot(blue, NEUTRAL, shot)[0])
        assert same != differs, facing


def test_backpack_shows_from_behind_and_from_the_side():
    red = person_of(7, bag="backpack", bag_colour="red", bag_on_left=False)
    blue = dataclasses.replace(red, bag_colour="blue")
    changed = {}
    for facing in rendering.FACINGS:
        shot = shot_of(7, facing=facing)
        pictures = [render_shot(p, NEUTRAL, shot)[0].astype(int) for p in (red, blue)]
        changed[facing] = int((np.abs(pictures[0] - pictures[1]).max(axis=2) > 30).sum())
    # From the front there are the straps alone.
    assert 0 < changed["front"] < 0.5 * changed["back"]
    assert changed["left"] > changed["front"] and changed["right"] > changed["front"]


CHANGES = [
    ("upper", "red", "green"), ("lower", "red", "blue"), ("shoes", "white", "red"),
    ("sleeve", "long", "short"), ("lower_kind", "trousers", "skirt"),
    ("lower_kind", "trousers", "shorts"), ("upper_pattern", "plain", "stripes"),
    ("upper_pattern", "plain", "block"), ("upper_pattern", "plain", "checks"),
    ("upper_pattern", "plain", "open"), ("upper_cut", "shirt", "coat"),
    ("hair", "black", "blond"), ("hair_style", "short", "long"), ("hair_style", "short", "bald"),
    ("hat", "none", "cap"), ("hat", "none", "beanie"), ("bag", "none", "shoulder bag"),
    ("bag", "none", "handbag"), ("bag", "none", "umbrella"), ("build", 0.85, 1.2),
    ("lower_stripe", False, True),
]


@pytest.mark.parametrize("name, one, two", CHANGES)
def test_every_trait_changes_the_picture(name, one, two):
    base = person_of(8, upper="grey", upper_accent="yellow", upper_pattern="plain", lower="navy",
                     lower_kind="trousers", lower_stripe=False, sleeve="long", hat="none",
                     hat_colour="red", bag="none", bag_colour="red", hair_style="short",
                     hair="brown", upper_cut="shirt", bag_on_left=True)
    shot = shot_of(8, facing="front")
    pictures = [render_shot(dataclasses.replace(base, **{name: value}), NEUTRAL, shot)[0]
                for value in (one, two)]
    change = np.abs(pictures[0].astype(int) - pictures[1].astype(int)).max(axis=2)
    assert (change > 20).sum() >= 12


def test_back_views_show_no_face():
    light, dark = person_of(9, skin=0, hair_style="long"), person_of(9, skin=4, hair_style="long")
    light, dark = (dataclasses.replace(p, hat="none", bag="none") for p in (light, dark))
    changed = {}
    for facing in ("front", "back"):
        shot = shot_of(9, facing=facing)
        pictures = [render_shot(p, NEUTRAL, shot)[0][:28].astype(int) for p in (light, dark)]
        changed[facing] = (np.abs(pictures[0] - pictures[1]).max(axis=2) > 30).sum()
    assert changed["front"] > 25 and changed["back"] < 5


def test_people_compare_by_what_can_be_seen():
    person = person_of(10)
    assert dataclasses.replace(person, build=9.0, head=9.0, tint=(0.0, 0.0, 0.0)) == person
    assert dataclasses.replace(person, shoes="other") != person
    for seed in range(200):
        drawn = person_of(seed)
        if drawn.hat == "none":
            assert drawn.hat_colour == "black"
        if drawn.bag == "none":
            assert (drawn.bag_colour, drawn.bag_on_left) == ("black", False)
        if drawn.upper_pattern == "plain" and not drawn.lower_stripe:
            assert drawn.upper_accent == drawn.upper
        else:
            assert drawn.upper_accent != drawn.upper


def test_camera_styles_differ_in_mean_colour():
    means = []
    for index in range(len(PRESET_CAMERAS)):
        pictures = [render(person_of(seed), make_camera(index), np.random.default_rng(seed))[0]
                    for seed in range(12)]
        means.append(np.mean(pictures, axis=(0, 1, 2)))
    for i in range(len(means)):
        for j in range(i):
            assert np.abs(means[i] - means[j]).max() > 4.0, (i, j, means[i], means[j])


def test_make_camera():
    assert make_camera(0) is PRESET_CAMERAS[0]
    assert make_camera(17) == make_camera(17) != make_camera(18)
    assert make_camera(np.random.default_rng(1)) == make_camera(np.random.default_rng(1))
    assert len({camera.scene for camera in PRESET_CAMERAS}) == len(PRESET_CAMERAS)
    with pytest.raises(ValueError, match="source=-1"):
        make_camera(-1)


def test_every_scene_is_drawn_by_a_drawn_camera():
    shot = shot_of(11)
    pictures = set()
    for scene in rendering.SCENES:
        camera = dataclasses.replace(make_camera(40), scene=scene)
        pictures.add(render_shot(None, camera, shot)[0].tobytes())
    assert len(pictures) == len(rendering.SCENES)


def test_neutral_camera_keeps_the_picture():
    image = np.random.default_rng(0).random((32, 16, 3), dtype=np.float32)
    assert np.allclose(rendering._apply_style(image, NEUTRAL, shot_of()), image, atol=1e-6)


def test_style_of_one_pixel_by_hand():
    camera = dataclasses.replace(NEUTRAL, gain=(1.2, 1.0, 0.8), mixing=0.1, exposure=0.9,
                                 gamma=1.1, contrast=0.8, saturation=0.5)
    image = np.empty((16, 16, 3), np.float32)
    image[:] = (0.6, 0.4, 0.2)
    grey = 0.299 * 0.6 + 0.587 * 0.4 + 0.114 * 0.2
    r, g, b = (grey + 0.5 * (v - grey) for v in (0.6, 0.4, 0.2))
    r, g, b = 0.9 * r + 0.1 * b, 0.9 * g + 0.1 * r, 0.9 * b + 0.1 * g
    expected = [0.5 + 0.8 * ((v * gain * 0.9) ** 1.1 - 0.5)
                for v, gain in ((r, 1.2), (g, 1.0), (b, 0.8))]
    result = rendering._apply_style(image, camera, shot_of())
    assert np.allclose(result[7, 5], expected, atol=1e-5)
    assert np.allclose(result, result[0, 0])


def test_noise_and_vignette_have_the_stated_size():
    image = np.full((128, 64, 3), 0.5, np.float32)
    noisy = rendering._apply_style(image, dataclasses.replace(NEUTRAL, noise=0.03), shot_of())
    assert abs(float((noisy - 0.5).std()) - 0.03) < 0.001
    dark = rendering._apply_style(image, dataclasses.replace(NEUTRAL, vignette=0.3), shot_of())
    assert np.allclose(dark[0, 0], 0.5 * 0.7) and np.allclose(dark[64, 32], 0.5, atol=1e-3)


def test_frame_maps_body_units_and_high_views_shorten_legs():
    points = [(0.0, 0.0), (0.1, 0.5), (0.0, 1.0)]
    level = rendering._Frame(centre=30.0, top=10.0, height=100.0)(points)
    assert np.allclose(level, [(30, 10), (40, 60), (30, 110)])
    mirrored = rendering._Frame(30.0, 10.0, 100.0, mirror=True)(points)
    assert np.allclose(mirrored, [(30, 10), (20, 60), (30, 110)])
    high = rendering._Frame(30.0, 10.0, 100.0, view=1.0)(points)
    assert high[2, 1] - high[1, 1] < high[1, 1] - high[0, 1]
    assert np.allclose(high[[0, 2], 1], [10, 110])
    leaning = rendering._Frame(30.0, 10.0, 100.0, lean=0.1)(points)
    assert np.allclose(leaning[:, 0], [35, 40, 25])


def test_contact_sheet():
    sheet = contact_sheet(people=2, cameras=3, size=(32, 16), gap=2)
    assert sheet.size == (3 * 18 + 2, 2 * 34 + 2) and sheet.mode == "RGB"
    person = make_person(np.random.default_rng([0, 2]))
    picture, _ = render(person, make_camera(1), np.random.default_rng([0, 2, 2, 0]), (32, 16))
    assert np.array_equal(np.asarray(sheet)[36:68, 20:36], picture)
    with pytest.raises(ValueError, match="people=0"):
        contact_sheet(people=0)
