"""Bad files: every case ends in the right result or in an error with the file and the remedy.

Transparency is dropped, 16-bit values keep their upper byte, of several frames the first is taken.
"""

import contextlib
import dataclasses
import errno
import io
import os
import re
import shutil
import stat
import struct
import sys
import tempfile
import types
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from caureid_plugin import compat
from caureid_plugin.data import UnlabelledImages, build_extraction_loader
from fastreid.data import data_utils
from fastreid.data.common import CommDataset
from fastreid.data.datasets.market1501 import Market1501
from fastreid.data.transforms import build_transforms
from fastreid.engine import defaults
from fastreid.utils.checkpoint import Checkpointer
from PIL import Image

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(256, size=(6, 4, 3), dtype=np.uint8)  # different in every corner
GREY = RNG.integers(256, size=(6, 4), dtype=np.uint8)
WIDE = RNG.integers(65536, size=(6, 4), dtype=np.uint16)
WIDE_COLOURS = RNG.integers(65536, size=(6, 4, 3), dtype=np.uint16)
ALPHA = RNG.integers(256, size=(6, 4), dtype=np.uint8)
ALPHA[0] = 0
CMYK = np.kron(RNG.integers(256, size=(2, 2, 4)), np.ones((8, 8, 1))).astype(np.uint8)
BLOCKS = np.kron(RNG.integers(256, size=(2, 1, 3)), np.ones((8, 8, 1))).astype(np.uint8)
BLOCKS = np.concatenate([BLOCKS, 255 - BLOCKS, BLOCKS // 2], axis=1)  # 16 x 24: JPEG keeps them
LARGER = np.tile(COLOURS, (20, 20, 1))
PALETTE = Image.frombytes("P", (4, 6), bytes(range(24)))
PALETTE.putpalette(COLOURS.tobytes())
JPEG = dict(format="JPEG", quality=100, subsampling=0)


@dataclasses.dataclass
class Pixels:
    """The image that must come out, (H, W, 3); ``within``: what its compression may change."""

    array: np.ndarray
    within: int = 0
    warns: str = ""


@dataclasses.dataclass
class Refused:
    """Patterns of the error's reason and of its remedy."""

    reason: str
    remedy: str = "Replace or remove the file"


def grey(array):
    return Pixels(np.repeat(array[:, :, None], 3, axis=2).astype(np.uint8))


def seen_cmyk(array):
    ink = array.astype(float)
    return np.round((255 - ink[:, :, :3]) * (255 - ink[:, :, 3:]) / 255).astype(np.uint8)


def saved(image, **options):
    """Writes an array or an image; its format is taken from the name unless it is given."""
    made = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    return lambda path: made.save(path, **options)


def holding(content):
    return lambda path: path.write_bytes(content)


def encoded(array, **options):
    """The bytes Pillow writes for an array."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, **options)
    return file.getvalue()


def cut(array, format):
    content = encoded(array, format=format)
    return holding(content[:int(len(content) * 0.6)])


def two_frames(**options):  # saving leaves its options in both images: each call has its own
    return saved(BLOCKS, save_all=True, append_images=[Image.fromarray(255 - BLOCKS)], **options)


def oriented(orientation, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(BLOCKS, exif=exif, **options)


def turned_beside_a_bad_tag():
    """EXIF: orientation 6, and a tag whose value lies behind the end of the data."""
    entries = struct.pack(">HHII", 0x010F, 2, 40, 60000) + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 2) + entries + struct.pack(">I", 0)


def orientation_read(exif):
    """By Pillow itself; before version 13 it finds none behind a damaged tag."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(io.BytesIO(encoded(BLOCKS, exif=exif, **JPEG))).getexif().get(0x0112, 1)


# The eight orientations of EXIF, as what the eye must see of what is stored.
STORED_TO_SEEN = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2), 6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2), 8: lambda a: a[:, ::-1].transpose(1, 0, 2),
}


def link(target):
    return lambda path: path.symlink_to(target)


def link_to_an_image(path):
    Image.fromarray(COLOURS).save(path.with_name("target.png"))
    path.symlink_to("target.png")


EXACT = Pixels(COLOURS)
JPEG_BLOCKS = Pixels(BLOCKS, within=4)
UNKNOWN = "no image format that Pillow knows"
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 6\n%%EndComments\nshowpage\n%%EOF\n"
BROKEN_PNG = bytearray(encoded(COLOURS, format="PNG"))
BROKEN_PNG[60] ^= 0xFF  # within the pixels
HUGE_BMP = bytearray(encoded(COLOURS, format="BMP"))
HUGE_BMP[18:26] = struct.pack("<ii", 40_000, 60_000)  # width and height

# (name of the file, case, how it is made, what must come out)
CASES = [
    # formats; the name says nothing about what is inside
    ("a.jpg", "tiff named jpg", saved(COLOURS, format="TIFF", compression="tiff_lzw"), EXACT),
    ("a.jpg", "webp named jpg", saved(COLOURS, format="WEBP", lossless=True), EXACT),
    ("a.gif", "gif", saved(PALETTE), EXACT),
    ("a.jpg", "jpeg", saved(BLOCKS, progressive=True, **JPEG), JPEG_BLOCKS),
    ("a", "no extension", saved(COLOURS, format="BMP"), EXACT),
    # kinds of pixels
    ("a.png", "grey", saved(GREY), grey(GREY)),
    ("a.png", "grey and alpha", saved(np.dstack([GREY, ALPHA])), grey(GREY)),
    ("a.webp", "alpha", saved(np.dstack([COLOURS, ALPHA]), lossless=True, exact=True), EXACT),
    ("a.png", "palette with alpha", saved(PALETTE, transparency=bytes(range(24))), EXACT),
    ("a.png", "colour transparent by key",
     saved(COLOURS, transparency=tuple(map(int, COLOURS[0, 0]))), EXACT),
    ("a.png", "1 bit", saved(GREY > 127), grey(np.where(GREY > 127, 255, 0))),
    ("a.png", "16-bit grey png", saved(WIDE), grey(WIDE // 256)),
    ("a.png", "16-bit colour png",
     lambda path: cv2.imwrite(str(path), WIDE_COLOURS[:, :, ::-1]),
     Pixels((WIDE_COLOURS // 256).astype(np.uint8))),
    ("a.tif", "16-bit big-endian tiff",
     saved(Image.frombytes("I;16B", (4, 6), WIDE.astype(">u2").tobytes())), grey(WIDE // 256)),
    ("a.pgm", "16-bit pgm", holding(b"P5 4 6 65535\n" + WIDE.astype(">u2").tobytes()),
     grey(WIDE // 256)),
    ("a.jpg", "cmyk jpeg, inverted as Adobe does",
     saved(Image.frombytes("CMYK", (16, 16), CMYK.tobytes()), quality=100),
     Pixels(seen_cmyk(CMYK), within=4)),
    *(("a.tif", f"pixels of {kind}", saved(WIDE.astype(kind)),
       Refused("32-bit numbers", "Convert it to 8 bits")) for kind in ("int32", "float32")),
    # EXIF
    *(("a.jpg", f"orientation {n}", oriented(n, **JPEG), Pixels(seen(BLOCKS), within=4))
      for n, seen in STORED_TO_SEEN.items()),
    *((f"a.{kind}", f"orientation of a {kind}", oriented(8, **options),
       Pixels(STORED_TO_SEEN[8](BLOCKS)))
      for kind, options in (("png", {}), ("tif", {}), ("webp", {"lossless": True}))),
    *(("a.jpg", f"orientation {n}", oriented(n, **JPEG), JPEG_BLOCKS) for n in (0, 9)),
    ("a.jpg", "orientation beside a damaged tag",
     saved(BLOCKS, exif=turned_beside_a_bad_tag(), **JPEG),
     Pixels(STORED_TO_SEEN[orientation_read(turned_beside_a_bad_tag())](BLOCKS), within=4)),
    *(("a.jpg", f"exif {case}", saved(BLOCKS, exif=b"Exif\0\0" + data, **JPEG),
       Pixels(BLOCKS, within=4, warns="EXIF data of .*a.jpg are damaged"))
      for case, data in (("is no exif", b"this is no TIFF header"), ("ends early", b"MM\0*\0"))),
    # sizes
    *(("a.png", f"{height} x {width}", saved(np.tile(COLOURS[:1, :1], (height, width, 1))),
       Pixels(np.tile(COLOURS[:1, :1], (height, width, 1))))
      for height, width in ((1, 1), (1, 500), (500, 1))),
    ("a.bmp", "header of 2 billion pixels", holding(HUGE_BMP),
     Refused(r"too large .*2400000000 pixels", "Scale it down")),
    # several frames
    ("a.gif", "animated gif", saved(GREY, save_all=True, append_images=[Image.new("L", (4, 6), 7)]),
     grey(GREY)),
    ("a.tif", "tiff of two pages", two_frames(), Pixels(BLOCKS)),
    ("a.jpg", "mpo", two_frames(**{**JPEG, "format": "MPO"}), JPEG_BLOCKS),
    # damaged
    ("a.jpg", "empty", holding(b""), Refused(r"empty \(0 bytes\)")),
    ("a.jpg", "html", holding(b"<html><body>404 Not Found</body></html>"), Refused(UNKNOWN)),
    *(("a.jpg", f"truncated {kind}", cut(array, kind), Refused(reason))
      for kind, array, reason in (
          ("JPEG", LARGER, "truncated"), ("PNG", COLOURS, "truncated|[Bb]roken"),
          ("TIFF", LARGER, "."), ("WEBP", LARGER, "."))),
    ("a.png", "damaged within", holding(BROKEN_PNG), Refused("[Bb]roken|truncated")),
    ("a.jpg", "jpeg and garbage behind it",
     holding(encoded(BLOCKS, **JPEG) + b"garbage" * 100), JPEG_BLOCKS),
    ("a.jpg", "postscript", holding(POSTSCRIPT), Refused("PostScript")),
    # what is not a file, or cannot be opened
    ("a.jpg", "link", link_to_an_image, EXACT),
    ("a.jpg", "dangling link", link("gone"), Refused("No such file", "put it back.*link points")),
    ("a.jpg", "link to itself", link("a.jpg"), Refused("symbolic link", "leads back")),
    ("a.jpg", "folder", Path.mkdir, Refused("it is a folder")),
    ("a.jpg", "fifo", os.mkfifo, Refused("it is a FIFO")),
    ("a.jpg", "socket", lambda path: os.mknod(path, stat.S_IFSOCK), Refused("it is a socket")),
    ("a.jpg", "link to a device", link(os.devnull), Refused("it is a device")),
    ("n" * 300 + ".jpg", "long name", lambda path: None,
     Refused("name too long", "Shorten its name")),
    ("a\0.jpg", "zero byte in the name", lambda path: None, Refused("null (byte|character)")),
]

NAMES = [
    " a  b .jpg", "caf\u00e9.jpg", "cafe\u0301.jpg", "\u884c\u4eba.jpg", "\U0001f6b6.jpg",
    "\u202ea.jpg", "a\nb.jpg", "a\tb.jpg", "a\x07b.jpg", "a\"'`b.jpg", "-rf.jpg", "a*?[b].jpg",
    "100%s%d.jpg", "{0}.jpg", "a\\b.jpg", "$(HOME).jpg", "http:a.jpg", "n" * 246 + ".jpg",
    "a.jpg", "A.jpg", os.fsdecode(b"a\xff\xfe.jpg")]


def escaped(path):
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))


def both_datasets(path, transform=np.asarray):
    """The training data of the plugin, and the toolbox's, which it is evaluated with."""
    return (UnlabelledImages([(str(path), "camera")], transform),
            CommDataset([(str(path), 1, 0)], transform, relabel=False))


def assert_refused(path, expected):
    message = (rf"Cannot read the image {re.escape(escaped(path))}: .*(?:{expected.reason}).*\. "
               rf".*(?:{expected.remedy})")
    for dataset in both_datasets(path):
        with pytest.raises(ValueError) as caught:
            dataset[0]
        assert re.match(message, str(caught.value)), caught.value
        str(caught.value).encode()  # it can be printed anywhere
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name, write, expected", [
    pytest.param(name, write, expected, id=case) for name, case, write, expected in CASES])
@pytest.mark.filterwarnings("ignore:The EXIF data", "ignore:Tag data larger")
def test_image(cfg, tmp_path, name, write, expected):
    path = tmp_path / name
    write(path)
    if isinstance(expected, Refused):
        assert_refused(path, expected)
        return
    with pytest.warns(match=expected.warns) if expected.warns else contextlib.nullcontext():
        found = [dataset[0]["images"] for dataset in both_datasets(path)]
    for pixels in found:
        assert pixels.dtype == np.uint8 and pixels.shape == expected.array.shape
        assert abs(pixels.astype(int) - expected.array.astype(int)).max() <= expected.within
    cfg.INPUT.SIZE_TRAIN = cfg.INPUT.SIZE_TEST = [32, 16]
    cfg.INPUT.PADDING.ENABLED = cfg.INPUT.REA.ENABLED = True
    for is_train in (True, False):
        images, _ = both_datasets(path, build_transforms(cfg, is_train))
        assert images[0]["images"].shape == (3, 32, 16)
        assert images[0]["images"].isfinite().all()


def test_pillows_limit_of_pixels_warns_and_twice_the_limit_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(COLOURS).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.warns(Image.DecompressionBombWarning):
        assert np.array_equal(both_datasets(path)[0][0]["images"], COLOURS)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 11)
    assert_refused(path, Refused("too large .*24 pixels", "Scale it down"))


@pytest.mark.parametrize("width, height, says", [
    (1, 16_385, "1 x 16385 pixels; a side may have 16384"), (16_385, 300, "a side may have 16384"),
    (10, 1025, "10 x 1025 pixels; one longer than 1024 may be 100 times as long as wide"),
    (1101, 11, "longer than 1024"), (9460, 9460, "may have 89478485"), (1, 1024, ""),
    (11, 1100, ""), (16_384, 164, "")])
def test_long_and_large_images_are_refused_before_they_are_decoded(
        tmp_path, monkeypatch, width, height, says):
    path = tmp_path / "a.png"
    Image.new("L", (width, height)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # what is tested here is not Pillow's
    if not says:
        assert data_utils.read_image(str(path)).size == (width, height)
        return
    with compat.without("image_modes"):
        if width * height < 10 ** 7:
            assert data_utils.read_image(str(path)).size == (width, height)

    def load(image):
        raise AssertionError("it was decoded")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    assert_refused(path, Refused(f"too large .*{says}", "Scale it down"))


def test_memory_that_runs_out(tmp_path, monkeypatch):
    def load(image):
        raise MemoryError

    path = tmp_path / "a.png"
    Image.fromarray(COLOURS).save(path)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    assert_refused(path, Refused("too large", "Scale it down"))


@pytest.mark.parametrize("number, expected", [
    (errno.EIO, Refused("Input/output error", "The disk")),
    (errno.EMFILE, Refused("Too many open files", "ulimit -n.*DATALOADER.NUM_WORKERS")),
    (errno.ESTALE, Refused("[Ss]tale"))])
def test_a_file_that_the_system_does_not_open(tmp_path, monkeypatch, number, expected):
    def refusing(file, *args, **kwargs):
        if file == str(path):
            raise OSError(number, os.strerror(number), file)
        return plain_open(file, *args, **kwargs)

    path, plain_open = tmp_path / "a.png", open
    Image.fromarray(COLOURS).save(path)
    monkeypatch.setattr("builtins.open", refusing)
    assert_refused(path, expected)


@needs_linux
def test_images_of_any_name(tmp_path):
    for i, name in enumerate(NAMES):
        Image.fromarray(COLOURS + np.uint8(i)).save(tmp_path / name, "PNG")
    for i, name in enumerate(NAMES):
        for dataset in both_datasets(tmp_path / name):
            assert np.array_equal(dataset[0]["images"], COLOURS + np.uint8(i)), name


def test_an_image_replaced_after_it_was_listed_is_read_as_it_is_now(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(COLOURS).save(path)
    datasets = both_datasets(path)
    for pixels in (COLOURS, 255 - COLOURS):
        Image.fromarray(pixels).save(path)
        assert all(np.array_equal(dataset[0]["images"], pixels) for dataset in datasets)


@needs_linux
def test_a_damaged_image_whose_name_cannot_be_printed(tmp_path):
    for name in ("a\nb.jpg", os.fsdecode(b"a\xff.jpg")):
        (tmp_path / name).write_bytes(b"x")
        assert_refused(tmp_path / name, Refused(UNKNOWN))


@contextlib.contextmanager
def ordinary_user():
    """Drops root's right to read everything, for as long as the block runs."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.fixture
def open_folder():
    """A folder that every user may enter and write; pytest's own are for one user."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)
        for path in Path(folder).iterdir():
            if not path.is_symlink():
                os.chmod(path, 0o777)


@needs_linux
@pytest.mark.parametrize("closed", ["file", "folder"])
def test_real_permissions(open_folder, closed):
    folder = open_folder / "images"
    folder.mkdir()
    path = folder / "a.png"
    Image.fromarray(COLOURS).save(path)
    os.chmod(folder, 0o755)
    os.chmod(path, 0o644)
    images = UnlabelledImages([(str(path), "c")], np.asarray)
    with ordinary_user():
        assert np.array_equal(images[0]["images"], COLOURS)
    os.chmod(path if closed == "file" else folder, 0)
    with ordinary_user(), pytest.raises(ValueError, match=r"a.png: Permission denied\. .*chmod u"):
        images[0]


def test_the_error_of_a_worker_process_reaches_the_user(cfg, tmp_path):
    path = tmp_path / "a b\n.jpg"
    path.touch()
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 1, "INPUT.SIZE_TEST", [32, 16]])
    loader = build_extraction_loader(cfg, [(str(path), "c")])
    with pytest.raises(ValueError, match=rf"^Cannot read the image {re.escape(escaped(path))}: "
                                         ".*empty.*Replace or"):
        next(iter(loader))


# ----------------------------------------------------------------------- listing a dataset ----


def write_names(base):
    """Folders as of Market-1501 with an empty file in each: it is listed, not read."""
    for part in ("bounding_box_train", "query", "bounding_box_test"):
        (base / part).mkdir(parents=True)
        (base / part / "0001_c1.jpg").touch()
    return base / "bounding_box_train"


@pytest.fixture
def train_folder(tmp_path):
    return write_names(tmp_path / "Market-1501-v15.09.15")


def listed(root):
    return {Path(path).name: labels for path, *labels in Market1501(root=str(root)).train}


@needs_linux
def test_all_that_ends_in_jpg_is_listed(tmp_path, train_folder, messages):
    names = [f"0002_c1{end}.jpg" for end in (
        " a b ", "_\u884c\u4eba\u0301", "\n", "[x]", os.fsdecode(b"\xff"))]
    for name in names:
        (train_folder / name).touch()
    os.mkfifo(train_folder / "0002_c1_fifo.jpg")
    (train_folder / "0002_c1_folder.jpg").mkdir()
    (train_folder / "0002_c1_link.jpg").symlink_to("nowhere")
    names += [f"0002_c1_{kind}.jpg" for kind in ("fifo", "folder", "link")]
    assert listed(tmp_path) == {"0001_c1.jpg": ["market1501_1", "market1501_0"],
                                **{name: ["market1501_2", "market1501_0"] for name in names}}
    assert not messages


def test_images_with_another_ending_are_left_out_with_a_warning_and_junk_without(
        tmp_path, train_folder, messages):
    for name in ("0002_c1.JPG", "0002_c1.PNG", "0002_c1.jpeg", "0002_c1.png",
                 ".0002_c1.jpg", "Thumbs.db", "0002_c1.jpg.part", "-1_c9.jpg"):
        (train_folder / name).touch()
    assert set(listed(tmp_path)) == {"0001_c1.jpg"}
    (warning,) = messages
    assert re.match(rf"Market1501: 4 images in {train_folder} are left out.*"
                    r"first: 0002_c1\.JPG\)\. Rename", warning)


@pytest.mark.parametrize("name, reason", [
    ("a-0002_c1.jpg", "has identity -2"),
    pytest.param(os.fsdecode(b"0002\xff.jpg"), "carries no camera label", marks=needs_linux),
    ("0002_c7.jpg", "has camera 7, but Market1501 has 1 to 6"),
    ("1502_c1.jpg", "has identity 1502, but Market1501 has"),
    ("12-3_c1.jpg", "'12-3' before _c is no number")])
def test_a_name_without_the_labels_of_market1501_is_an_error(tmp_path, train_folder, name, reason):
    (train_folder / name).touch()
    with pytest.raises(ValueError, match=rf"{re.escape(escaped(train_folder / name))}.*{reason}.*"
                                         "Rename or remove the file"):
        listed(tmp_path)


@needs_linux
def test_a_folder_of_any_name_is_listed(tmp_path):
    for name in ("[2024] data", "a*b?", "with space", "new\nline", "\u884c\u4eba",
                 os.fsdecode(b"not utf-8 \xff")):
        write_names(tmp_path / name / "Market-1501-v15.09.15")
        assert len(listed(tmp_path / name)) == 1, name


@needs_linux
@pytest.mark.parametrize("kind", ["closed folder", "file"])
def test_a_subset_that_cannot_be_listed(open_folder, kind):
    folder = write_names(open_folder / "datasets" / "Market-1501-v15.09.15")
    with ordinary_user():
        assert len(listed(open_folder / "datasets")) == 1
    if kind == "file":
        shutil.rmtree(folder)
        folder.write_text("a file")
    else:
        folder.chmod(0)
    with ordinary_user(), pytest.raises(ValueError, match=(
            rf"Market1501 cannot list the folder {folder}: (Permission denied|Not a directory)\. "
            r".*chmod u\+rx.*FASTREID_DATASETS")):
        listed(open_folder / "datasets")


# --------------------------------------------------------------------------------- outputs ----

OUTPUTS = [
    # (case, OUTPUT_DIR, what is there, what the error says or None)
    ("new folders of odd names", " a\nb \u884c\u4eba/c/d", lambda out: None, None),
    ("a link to a folder", "out", link("."), None),
    ("not UTF-8", os.fsdecode(b"a\xff"), lambda out: None, "no text in UTF-8"),
    ("a null byte", "a\0b", lambda out: None, "has a null byte"),
    ("below a file", "file/out", lambda out: out.parent.write_text("a file"),
     "Not a directory.*is a file"),
    ("a dangling link", "out", link("gone"), "File exists.*broken link"),
    ("a long name", "n" * 300, lambda out: None, "name too long"),
    ("not writable", "out", lambda out: out.mkdir(mode=0o555), r"Permission denied.*chmod u\+rwx"),
    ("config.yaml on a full disk", "out",
     lambda out: (out.mkdir(), (out / "config.yaml").symlink_to("/dev/full")),
     "config.yaml or log.txt in OUTPUT_DIR.*No space left.*Free space"),
    *((f"{name} is a folder", "out", lambda out, name=name: (out / name).mkdir(parents=True),
       f"{name} in OUTPUT_DIR.*Is a directory.*Remove that folder")
      for name in ("config.yaml", "log.txt")),
]


@pytest.fixture
def set_up(cfg, monkeypatch):
    """Runs the toolbox's default_setup with an OUTPUT_DIR."""
    monkeypatch.setattr(defaults, "collect_env_info", lambda: "")  # slow, of no interest here

    def run(folder):
        cfg.OUTPUT_DIR = str(folder)
        defaults.default_setup(cfg, types.SimpleNamespace(config_file="", eval_only=True))

    return run


def assert_output_refused(set_up, folder, expected):
    with pytest.raises((OSError, ValueError)) as caught:
        set_up(folder)
    named = f"OUTPUT_DIR {escaped(folder)}"
    assert named in str(caught.value)
    assert re.search(rf"(?:{expected}).*[sS]et OUTPUT_DIR to an?",
                     str(caught.value).replace(named, "OUTPUT_DIR")), caught.value
    if isinstance(caught.value, OSError):
        assert caught.value.errno == caught.value.__cause__.errno


@needs_linux
@pytest.mark.parametrize("case, name, prepare, expected", [
    pytest.param(*case, id=case[0]) for case in OUTPUTS])
def test_output_folder(set_up, open_folder, case, name, prepare, expected):
    folder = open_folder / name
    prepare(folder)
    with ordinary_user() if case == "not writable" else contextlib.nullcontext():
        if expected:
            assert_output_refused(set_up, folder, expected)
            return
        set_up(folder)
    assert (folder / "config.yaml").read_text() and (folder / "log.txt").read_text()


@pytest.mark.parametrize("number, expected", [
    (errno.EROFS, "Read-only file system"), (errno.EDQUOT, "quota exceeded.*Free space")])
def test_an_output_folder_that_takes_no_file(set_up, tmp_path, monkeypatch, number, expected):
    def refuse(**where):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert_output_refused(set_up, tmp_path / "out", expected)


# ----------------------------------------------------------------------------- checkpoints ----


@pytest.fixture
def checkpointer(tmp_path):
    """With a good checkpoint whose weights are 1."""
    model = torch.nn.Linear(9, 9)
    torch.nn.init.ones_(model.weight)
    (tmp_path / "run").mkdir()
    made = Checkpointer(model, str(tmp_path / "run"))
    made.save("model_0000")
    return made


@pytest.mark.parametrize("name", ["model_0001", "model_0000"])
def test_a_full_disk_while_a_checkpoint_is_written(checkpointer, monkeypatch, name):
    def full(data, file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = Path(checkpointer.save_dir)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    torch.nn.init.constant_(checkpointer.model.weight, 2)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match=(
                rf"{name}.pth could not be saved: No space left.*{folder}/model_0000.pth is still "
                rf"good. Free space in {folder}")):
            checkpointer.save(name)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    checkpointer.resume_or_load("", resume=True)
    assert checkpointer.model.weight.unique().tolist() == [1]


def replaced_by(name, make):
    def damage(folder):
        (folder / name).unlink()
        make(folder / name)

    return damage


@pytest.mark.parametrize("damage, named", [
    (replaced_by("last_checkpoint", Path.mkdir), "last_checkpoint is a folder"),
    (replaced_by("model_0000.pth", os.mkfifo), "last_checkpoint names 'model_0000.pth'"),
    (replaced_by("model_0000.pth", holding(b"this is no checkpoint")), "model_0000.pth"),
    (lambda folder: torch.save([1, 2], folder / "model_0000.pth"), "model_0000.pth"),
], ids=["folder", "fifo", "text", "a list"])
def test_resuming_from_what_is_no_checkpoint(checkpointer, damage, named):
    folder = Path(checkpointer.save_dir)
    damage(folder)
    remedy = r"\. .*(--resume|remove .*last_checkpoint|MODEL.WEIGHTS)"
    with pytest.raises((ValueError, OSError),
                       match=rf"{re.escape(str(folder / named))}.*{remedy}"):
        checkpointer.resume_or_load("", resume=True)


@needs_linux
@pytest.mark.parametrize("closed, offered", [
    ("model_0001.pth", "model_0000.pth"), ("last_checkpoint", "model_0001.pth")])
def test_resuming_from_files_of_another_user(open_folder, closed, offered):
    model = torch.nn.Linear(2, 2)
    for name in ("model_0000", "model_0001"):
        Checkpointer(model, str(open_folder)).save(name)
    os.chmod(open_folder / closed, 0)
    remedy = (rf"{open_folder}/{closed} could not be read: Permission denied\. Let this user read "
              rf"it \(chmod u\+r\)\. The newest other checkpoint that loads is {offered}: "
              r".*--resume")
    with ordinary_user(), pytest.raises(PermissionError, match=remedy):
        Checkpointer(model, str(open_folder)).resume_or_load("", resume=True)


def test_a_jpeg_of_many_scans_is_refused(tmp_path):
    """A scan may have 40 bytes, and each is a pass over all pixels."""
    file = io.BytesIO()
    Image.new("L", (64, 128)).save(file, "JPEG", progressive=True)
    data, path = file.getvalue(), tmp_path / "a.jpg"
    scan = data[data.rindex(b"\xff\xda"):-2]
    path.write_bytes(data[:-2] + 20 * scan + data[-2:])
    assert data_utils.read_image(str(path)).size == (64, 128)
    for comment in (b"", 300 * (b"\xff\xfe\xff\xff" + bytes(65533))):  # however long it is
        path.write_bytes(data[:2] + comment + data[2:-2] + 100 * scan + data[-2:])
        assert_refused(path, Refused("too large .*scans", "Scale it down"))
    path.write_bytes(data + 200 * b"\xff\xda")  # behind the image, and no scans
    assert data_utils.read_image(str(path)).size == (64, 128)
