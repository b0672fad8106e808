"""Images become what the toolbox's evaluation makes of them."""

import os
import re
from pathlib import Path

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
    ([64, 32], None, (64, 32)), ([20, 40], None, (20, 40)), ([64, 64], [48, 32], (48, 32)),
    ([40], [24, 24], (24, 24)), ([40], [24], (24, 24)), ([0], [60, 24], (60, 24)),
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
    assert (np.asarray(read_image_like(array[:, :, ::-1], bgr=True)) == array).all()
    for form in forms[:3]:  # an image knows the order of its channels
        assert (np.asarray(read_image_like(form, bgr=True)) == array).all()
    grey = array[:, :, 0]
    assert (np.asarray(read_image_like(grey)) == grey[:, :, None].repeat(3, axis=2)).all()
    assert not is_one_image([array]) and not is_one_image(array[None])


def test_an_image_of_pil_is_what_its_file_is(tmp_path):
    array = pixels()
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        path = tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}"
        Image.fromarray(array).convert(mode).save(path)
        with Image.open(path) as image:
            found = np.asarray(read_image_like(image))
        assert (found == np.asarray(read_image(str(path)))).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.fromarray(array).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        found = np.asarray(read_image_like(image))
    assert found.shape == (30, 50, 3)
    assert (found == np.asarray(read_image(str(tmp_path / "turned.png")))).all()


@pytest.mark.parametrize("array, said", [
    (pixels().astype(np.float32), r"\(50, 30, 3\) and type float32"),
    (pixels()[:, :, :2], r"\(50, 30, 2\)"), (np.zeros(5, np.uint8), r"\(5,\)"),
    (pixels().transpose(2, 0, 1), r"\(3, 50, 30\)"),
])
def test_arrays_that_are_no_images(array, said):
    with pytest.raises(ValueError, match=rf"{said}.*is no image: give \(H, W, 3\) RGB"):
        read_image_like(array)
    with pytest.raises(ValueError, match=r"give \(H, W, 3\) BGR"):
        read_image_like(array, bgr=True)


def test_other_things_that_are_no_images(tmp_path):
    with pytest.raises(ValueError, match=r"shape \(0, 4, 3\) has no pixels"):
        read_image_like(np.zeros((0, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="of 0 x 5 has no pixels"):
        read_image_like(Image.new("RGB", (0, 5)))
    with pytest.raises(ValueError, match="this is a int"):
        read_image_like(5)
    for mode in ("I", "F", "I;16"):
        with pytest.raises(ValueError, match=f"mode {mode} has no 8-bit .* scaled to 0"):
            read_image_like(Image.new(mode, (4, 4)))
    with pytest.raises(ValueError, match=r"absent.jpg does not exist"):
        read_image_like(tmp_path / "absent.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises((ValueError, OSError), match=re.escape(str(tmp_path / "text.jpg"))):
        read_image_like(tmp_path / "text.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises((ValueError, OSError), match="pipe.jpg.*FIFO"):
        read_image_like(Path(tmp_path / "pipe.jpg"))
