"""What shows nothing and what does, and the measure itself by sums of cosines."""

import io

import caureid_plugin  # noqa: F401  (before everything that imports fastreid)
import numpy as np
import pytest
from caureid_plugin.data.synthetic.cameras import make_camera
from caureid_plugin.data.synthetic.people import make_person
from caureid_plugin.data.synthetic.render import render
from caureid_plugin.inspection import LEAST_STRUCTURE, structure
from caureid_plugin.inspection.content import NOISE_RATIO
from PIL import Image, ImageDraw, ImageFilter


def saved(array, quality=75):
    """An image of an array of any numbers, as a camera's JPEG has it."""
    file = io.BytesIO()
    Image.fromarray(np.clip(array, 0, 255).round().astype(np.uint8)).save(file, "JPEG",
                                                                          quality=quality)
    return Image.open(file).convert("RGB")


def noise(seed, deviation, shape=(128, 64)):
    return np.random.default_rng(seed).normal(scale=deviation, size=(*shape, 3))


@pytest.fixture(scope="module")
def people():
    rng = np.random.default_rng(0)
    return [Image.fromarray(render(make_person(rng), make_camera(rng), rng)[0]) for _ in range(6)]


def flat(colour, deviation=0.0, vignette=0.0):
    y, x = np.mgrid[-1:1:128j, -1:1:64j]
    return saved(np.array(colour) - vignette * (x ** 2 + y ** 2)[..., None] + noise(1, deviation))


SLOPE = saved(np.linspace(40, 220, 128)[:, None, None] + noise(1, 2))


@pytest.mark.parametrize("image", [
    Image.new("RGB", (64, 128)), Image.new("L", (300, 700), 255), flat((0, 0, 0)),
    flat((30, 60, 200)), flat((6, 6, 8), 3), flat((12, 12, 12), 10), flat((90, 90, 90), 20),
    flat((60, 60, 60), 3, vignette=25), SLOPE, Image.new("RGB", (1, 1), "red")])
def test_what_shows_nothing(image):
    assert structure(image) < LEAST_STRUCTURE


def stamped(deviation, *lines):
    """Black, with what a camera writes on it: text and the row that it begins in."""
    image = Image.new("RGB", (64, 128))
    for row, text in lines:
        ImageDraw.Draw(image).text((2, row), text, fill="white")
    return saved(np.asarray(image) + noise(4, deviation))


@pytest.mark.parametrize("image", [
    stamped(0, (2, "2026-01-02")), stamped(5, (2, "2026-01-02"), (14, "13:14:15")),
    stamped(3, (4, "2026-01-02"), (113, "CAM 07"))])
def test_text_on_black_shows_nothing(image):
    assert structure(image) < LEAST_STRUCTURE


def test_people_who_are_padded_or_cut_out(people):
    y, x = np.mgrid[-1:1:128j, -1:1:64j]
    for image in people:
        person = Image.fromarray(np.asarray(image.resize((64, 128)))
                                 * ((x / 0.5) ** 2 + (y / 0.9) ** 2 < 1)[..., None].astype("uint8"))
        square = Image.new("RGB", (128, 128))
        square.paste(person, (32, 0))
        assert min(structure(person), structure(square)) > LEAST_STRUCTURE


def test_a_part_is_not_enough():
    """Nine of 32 parts are, of 4 x 4 values."""
    for parts in (8, 9):
        array = np.full((32, 16), 90)
        for part in range(parts):
            row, column = divmod(5 * part % 32, 4)
            array[4 * row + 1:4 * row + 3, 4 * column:4 * column + 4] += 30
        found = structure(Image.fromarray(array.astype(np.uint8)))
        assert found == 0 if parts == 8 else 4 < found <= 15  # the deviation within a part


@pytest.mark.parametrize("colours, counts", [
    (("red", "green"), True), (("#804040", "#703f80"), True), (("#808080", "#868080"), False)])
def test_colours_of_one_luminance(colours, counts):
    """Stripes of two colours, the second made as bright as the first."""
    first, second = (np.array(Image.new("RGB", (1, 1), colour).convert("YCbCr"))[0, 0]
                     for colour in colours)
    array = np.broadcast_to(first, (128, 64, 3)).copy()
    array[(np.arange(128) // 8 + 1) % 2 == 0, :, 1:] = second[1:]
    image = Image.fromarray(array, "YCbCr").convert("RGB")
    assert np.ptp(np.asarray(image.convert("L")).astype(int)) <= 3
    assert (structure(image) > LEAST_STRUCTURE) == counts


@pytest.mark.parametrize("size", [(24, 10), (24, 40), (40, 12), (32, 16)])
def test_noise_in_few_pixels(size):
    found = [structure(Image.fromarray((90 + noise(seed, 20, size)).clip(0, 255).astype(np.uint8)))
             for seed in range(40)]
    assert sum(value < LEAST_STRUCTURE for value in found) >= 38


@pytest.mark.parametrize("deviation", [0, 5])
def test_people_until_they_are_blurred_away(people, deviation):
    def blurred(image, radius):
        smooth = np.asarray(image.filter(ImageFilter.GaussianBlur(radius * image.width)))
        return saved(smooth + noise(2, deviation, smooth.shape[:2]))

    for image in people:
        assert structure(image) > 4 * LEAST_STRUCTURE
        soft, gone = (structure(blurred(image, radius)) for radius in (1 / 12, 1 / 3))
        assert soft > LEAST_STRUCTURE > gone


@pytest.mark.parametrize("deviation", [0, 3, 6])
def test_people_at_night(people, deviation):
    """A fifth of the contrast, on black."""
    for image in people:
        dark = 6 + 0.2 * np.asarray(image.convert("L").convert("RGB"), dtype=float)
        assert structure(saved(dark + noise(3, deviation, dark.shape[:2]))) > LEAST_STRUCTURE


@pytest.mark.parametrize("size", [(12, 24), (20, 48), (16, 32), (128, 256)])
def test_people_in_other_sizes(people, size):
    for image in people:
        assert structure(image.resize(size)) > 4 * LEAST_STRUCTURE


def wave(i, j):
    """A cosine of i half waves over 32 rows and j over 16 columns, of mean square 1."""
    y, x = (np.arange(32) + 0.5) * np.pi / 32, (np.arange(16) + 0.5) * np.pi / 16
    return (np.sqrt(2) if i else 1) * (np.sqrt(2) if j else 1) * np.outer(np.cos(i * y),
                                                                          np.cos(j * x))


@pytest.mark.parametrize("i, j, counts", [
    (0, 0, False), (6, 0, False), (0, 3, False), (4, 2, False),  # coarse
    (7, 0, True), (0, 4, True), (5, 2, True), (15, 7, True),
    (16, 0, False), (0, 8, False), (31, 15, False)])  # fine
def test_each_wave(i, j, counts):
    image = Image.fromarray((128 + 20 * wave(i, j)).round().astype(np.uint8))
    found = structure(image)  # less what a quadratic surface holds of the wave
    assert 6 < found < 21 if counts else found < LEAST_STRUCTURE


def test_noise_is_taken_off():
    """As many waves as there are of each kind, by loops over all of them."""
    rng = np.random.default_rng(4)
    array = 128 + 6 * sum(wave(i, 2) for i in (7, 8, 9)) + rng.normal(scale=5, size=(32, 16))
    array = array.clip(0, 255).round().astype(np.uint8)
    middle, fine = [], []
    for i in range(32):
        for j in range(16):
            power = (array * wave(i, j)).mean() ** 2
            if i >= 16 or j >= 8:
                fine.append(power)
            elif (i / 6) ** 2 + (j / 3) ** 2 > 1:
                middle.append(power)
    level = np.median(fine) / 0.455
    assert np.mean(middle) > NOISE_RATIO * level
    expected = np.sqrt(sum(middle) - len(middle) * level)
    assert structure(Image.fromarray(array)) == pytest.approx(expected, rel=1e-3)
    assert expected == pytest.approx(6 * np.sqrt(3), rel=0.2)
