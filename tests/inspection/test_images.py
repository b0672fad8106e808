"""Facts of images against what PIL, hashlib and imagehash say of each file by itself."""

import hashlib
import os

import caureid_plugin  # noqa: F401  (before everything that imports fastreid)
import imagehash
import numpy as np
import pytest
from caureid_plugin.inspection import choose, images, inspect_images, structure
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate([(32, 16), (40, 20), (7, 9), (1, 1), (64, 30)]):
        array = rng.integers(256, size=(height, width, 3), dtype=np.uint8)
        Image.fromarray(array).save(tmp_path / f"{i}.png")
    return tmp_path


def listed(folder):
    return sorted(str(path) for path in folder.iterdir())


@pytest.mark.parametrize("workers", [1, 3])
def test_facts_of_each_file(folder, monkeypatch, workers):
    monkeypatch.setattr(images, "CHUNK", 2)  # several chunks, the last one shorter
    paths, done = listed(folder), []
    facts = inspect_images(paths, workers=workers, progress=done.append)
    assert done == [2, 2, 1] and facts.errors == {}
    assert facts.rows.tolist() == [0, 1, 2, 3, 4]
    for row, path in enumerate(paths):
        image = Image.open(path)
        assert facts.sizes[row].tolist() == [image.height, image.width]
        with open(path, "rb") as file:
            assert facts.digests[row] == hashlib.blake2b(file.read(), digest_size=16).digest()
        assert np.array_equal(facts.bits[row], imagehash.phash(image, 16).hash.ravel())
        small = np.asarray(image.resize((4, 8), Image.Resampling.BOX))
        assert np.array_equal(facts.thumbnails[row].reshape(8, 4, 3), small)
        assert facts.structure[row] == structure(image)
    odd = choose(facts, np.arange(5) % 2 == 1)
    assert odd.rows.tolist() == [1, 3] and odd.digests == [facts.digests[1], facts.digests[3]]
    for name in ("sizes", "bits", "thumbnails", "structure"):
        assert np.array_equal(getattr(odd, name), getattr(facts, name)[[1, 3]])


def test_unreadable_files_are_listed_and_the_others_read(folder, monkeypatch):
    (folder / "1.png").write_text("no image")
    (folder / "3.png").write_bytes(b"")
    (folder / "5.jpg").symlink_to(folder / "nothing")
    (folder / "6.jpg").mkdir()
    os.mkfifo(folder / "7.jpg")
    with open(os.fsencode(folder) + b"/8\xff.jpg", "wb") as file:
        file.write((folder / "0.png").read_bytes())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 800)  # refused beyond twice as many: 64 x 30
    reasons = {1: "no image format", 3: "empty", 4: "too large", 5: "There is no|No such file",
               6: "a folder", 7: "a FIFO"}
    paths = listed(folder)
    facts = inspect_images(paths, workers=2)
    assert sorted(facts.errors) == sorted(reasons)
    for i, text in facts.errors.items():
        assert paths[i] in text
        assert any(part in text for part in reasons[i].split("|")), text
    assert facts.rows.tolist() == [0, 2, 8]
    assert facts.sizes.tolist() == [[32, 16], [7, 9], [32, 16]]
    assert facts.digests[0] == facts.digests[2]


def test_no_image_can_be_read(tmp_path):
    facts = inspect_images([str(tmp_path / "a.jpg")])
    assert facts.rows.shape == (0,) and facts.sizes.shape == (0, 2)
    assert facts.bits.shape == (0, 256) and facts.thumbnails.shape == (0, 96)
    assert list(facts.errors) == [0]


def test_sizes_are_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (20, 10)).save(tmp_path / "turned.jpg", exif=exif)
    assert inspect_images([str(tmp_path / "turned.jpg")]).sizes.tolist() == [[20, 10]]


def test_an_error_of_the_program_itself_is_raised(folder, monkeypatch):
    monkeypatch.setattr(images.imagehash, "phash", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        inspect_images(listed(folder), workers=2)
