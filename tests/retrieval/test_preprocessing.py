"""Images become what the toolbox's evaluation makes of them."""

import os

import caureid_plugin  # noqa: F401
import numpy as np
import pytest
from caureid_plugin.retrieval.preprocessing import Preprocessing, is_one_image, read_image_like
from fastreid.data.data_utils import read_image
from fastreid.data.transforms import build_transforms
from PIL import Image


def pixels(height=50, width=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size, crop, shape", [
    ([64, 32], None, (64, 32)), ([64, 64], [48, 32], (48, 32)), ([40], [24, 24], (24, 24)),
    ([40], [24], (24, 24)), ([0], [60, 24], (60, 24)),
])
def test_it_is_the_toolboxs(cfg, size, crop, shape):
    cfg.INPUT.SIZE_TEST = size
    if crop:
        cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.SIZE = True, crop
    transform = Preprocessing.from_config(cfg)
    theirs = build_transforms(cfg, is_train=False)
    assert transform.shape == shape
    for height, width in ((50, 30), (128, 64), (33, 71), (64, 32)):
        image = Image.fromarray(pixels(height, width))
        found = transform(image)
        assert found.shape == (3, *shape) and found.dtype == np.float32
        assert (found == theirs(image).numpy()).all()


@pytest.mark.parametrize("size", [[40], [0]])
def test_sizes_that_do_not_fit_into_a_batch(cfg, size):
    cfg.INPUT.SIZE_TEST = size
    with pytest.raises(ValueError, match=r"INPUT.SIZE_TEST \[.*INPUT.CROP.ENABLED True"):
        Preprocessing.from_config(cfg)


def test_forms_of_one_image(tmp_path):
    array = pixels()
    path = tmp_path / "x.png"
    Image.fromarray(array).save(path)
    forms = [path, str(path), Image.fromarray(array), array, np.asfortranarray(array)]
    for form in forms:
        assert is_one_image(form)
        assert (np.asarray(read_image_like(form)) == array).all()
    for form in (*forms[:3], array[:, :, ::-1]):  # an image knows the order of its channels
        assert (np.asarray(read_image_like(form, bgr=True)) == array).all()
    grey = array[:, :, 0]
    assert (np.asarray(read_image_like(grey)) == grey[:, :, None].repeat(3, axis=2)).all()
    assert not is_one_image([array]) and not is_one_image(array[None])


def test_an_image_of_pil_is_what_its_file_is(tmp_path):
    image, exif = Image.fromarray(pixels()), Image.Exif()
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        image.convert(mode).save(tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}")
    exif[0x0112] = 6  # lies on its side
    image.save(tmp_path / "turned.png", exif=exif)
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 6
    for path in paths:
        with Image.open(path) as read:
            found = np.asarray(read_image_like(read))
        assert found.shape == ((30, 50, 3) if path.stem == "turned" else (50, 30, 3))
        assert (found == np.asarray(read_image(str(path)))).all(), path


@pytest.mark.parametrize("given, message", [
    (pixels().astype(np.float32), r"\(50, 30, 3\) and type float32 is no image: give \(H, W, 3\) "),
    (pixels()[:, :, :2], r"\(50, 30, 2\)"), (np.zeros(5, np.uint8), r"\(5,\)"),
    (pixels().transpose(2, 0, 1), r"\(3, 50, 30\)"),
    (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\) has no pixels"),
    (Image.new("RGB", (0, 5)), "of 0 x 5 has no pixels"), (5, "this is a int"),
    *((Image.new(mode, (4, 4)), f"mode {mode} has no 8-bit .* scaled to 0")
      for mode in ("I", "F", "I;16")),
    ("absent.jpg", "absent.jpg does not exist"), ("text.jpg", "text.jpg"),
    ("pipe.jpg", "pipe.jpg.*FIFO"),
])
def test_what_is_no_image(tmp_path, given, message):
    (tmp_path / "text.jpg").write_text("no image")
    os.mkfifo(tmp_path / "pipe.jpg")
    for bgr in (False, True):
        with pytest.raises((ValueError, OSError), match=message) as error:
            read_image_like(tmp_path / given if isinstance(given, str) else given, bgr=bgr)
        assert ("give (H, W, 3)" not in str(error.value)
                or f"give (H, W, 3) {'BGR' if bgr else 'RGB'}" in str(error.value))
