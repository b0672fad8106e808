"""Bad files: every case ends in the right result or in an error with the file and the remedy.

CASES holds the images, LISTINGS the files of a dataset's folder, OUTPUTS the folders to write to
and CHECKPOINTS the damage that a run may find when it goes on. Transparency is dropped, as PIL's
``convert`` does; 16-bit values keep their upper byte; of several frames the first is taken.
"""

import contextlib
import dataclasses
import errno
import gzip
import io
import logging
import os
import re
import shutil
import socket
import struct
import tempfile
import types
import zlib
from pathlib import Path

import caureid_plugin
import numpy as np
import pytest
import torch
from caureid_plugin.data import UnlabelledImages, build_extraction_loader
from fastreid.data.common import CommDataset
from fastreid.data.datasets.dukemtmcreid import DukeMTMC
from fastreid.data.datasets.market1501 import Market1501
from fastreid.data.transforms import build_transforms
from fastreid.engine import defaults
from fastreid.utils.checkpoint import Checkpointer
from PIL import Image

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(256, size=(6, 4, 3), dtype=np.uint8)  # different in every corner
GREY = RNG.integers(256, size=(6, 4), dtype=np.uint8)
WIDE = RNG.integers(65536, size=(6, 4), dtype=np.uint16)
WIDE_COLOURS = RNG.integers(65536, size=(6, 4, 3), dtype=np.uint16)
INDEXES = np.arange(24, dtype=np.uint8).reshape(6, 4)
ALPHA = RNG.integers(256, size=(6, 4), dtype=np.uint8)
ALPHA[0] = 0
BLOCKS = np.kron(RNG.integers(256, size=(2, 1, 3)), np.ones((8, 8, 1))).astype(np.uint8)
BLOCKS = np.concatenate([BLOCKS, 255 - BLOCKS, BLOCKS // 2], axis=1)  # 16 x 24: JPEG keeps them


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


def repeated(grey):
    return np.repeat(grey[:, :, None], 3, axis=2)


# ----------------------------------------------------------------------- making the files ----


def saved(array, mode=None, **options):
    """Writes an array with Pillow; its format is taken from the name unless it is given."""

    def write(path, patch):
        image = Image.fromarray(array)
        (image.convert(mode) if mode else image).save(path, **options)

    return write


def saved_bytes(content):
    return lambda path, patch: path.write_bytes(content)


def saved_cmyk(array, **options):
    return lambda path, patch: Image.frombytes(
        "CMYK", (array.shape[1], array.shape[0]), array.tobytes()).save(path, **options)


def saved_palette(**options):
    def write(path, patch):
        image = Image.frombytes("P", (4, 6), INDEXES.tobytes())
        image.putpalette(COLOURS.tobytes())
        image.save(path, **options)

    return write


def chunk(kind, content):
    return (struct.pack(">I", len(content)) + kind + content
            + struct.pack(">I", zlib.crc32(kind + content)))


def png(width, height, depth, colour, rows):
    """Bytes of a PNG written by hand: IHDR, IDAT, IEND."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
            + chunk(b"IEND", b""))


def encoded(array, format, **options):
    """The bytes Pillow writes for an array."""
    with tempfile.TemporaryFile() as file:
        Image.fromarray(array).save(file, format, **options)
        file.seek(0)
        return file.read()


def cut(array, format, keep=0.6, **options):
    content = encoded(array, format, **options)
    return saved_bytes(content[:int(len(content) * keep)])


def flipped(content, at):
    damaged = bytearray(content)
    damaged[at] ^= 0xFF
    return bytes(damaged)


def frames(**options):
    """Two frames, the second one inverted."""
    return saved(BLOCKS, save_all=True, append_images=[Image.fromarray(255 - BLOCKS)], **options)


def oriented(orientation, **options):
    def write(path, patch):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(BLOCKS).save(path, exif=exif, **options)

    return write


def with_exif(content):
    return saved(BLOCKS, quality=100, subsampling=0, exif=content)


def turned_beside_a_bad_tag():
    """EXIF: orientation 6, and a tag whose value lies behind the end of the data."""
    entries = struct.pack(">HHII", 0x010F, 2, 40, 60000) + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 2) + entries + struct.pack(">I", 0)


# The eight orientations of EXIF, as what the eye must see of what is stored.
STORED_TO_SEEN = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2), 6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2), 8: lambda a: a[:, ::-1].transpose(1, 0, 2),
}


def limited(pixels, write):
    """Pillow's limit against decompression bombs, lowered so that a small file is beyond it."""

    def write_limited(path, patch):
        patch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
        write(path, patch)

    return write_limited


def named(name, write=None):
    """The image under another name; bytes for one that is not UTF-8."""

    def write_named(path, patch):
        path = path.parent / (os.fsdecode(name) if isinstance(name, bytes) else name)
        (write or saved(COLOURS, format="PNG"))(path, patch)
        return path

    return write_named


def as_file(make):
    """Something made at the path by ``make(path)``."""
    return lambda path, patch: make(path)


def linked(make_target):
    def write(path, patch):
        path.symlink_to(make_target(path))

    return write


def good_target(path):
    target = path.with_name("target.png")
    Image.fromarray(COLOURS).save(target)
    return target


def link_loop(path):
    other = path.with_name("other.jpg")
    other.symlink_to(path)
    path.symlink_to(other)


def listening(path):
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    try:
        os.chdir(path.parent)  # a socket's address is short
        server.bind(path.name)
    finally:
        os.chdir(here)
        server.close()


def failing(number):
    """A file whose open() fails with an error number."""

    def write(path, patch):
        saved(COLOURS, format="PNG")(path, patch)
        plain_open = open

        def refusing(file, *args, **kwargs):
            if file == str(path):
                raise OSError(number, os.strerror(number), file)
            return plain_open(file, *args, **kwargs)

        patch.setattr("builtins.open", refusing)

    return write


def no_memory(path, patch):
    saved(COLOURS, format="PNG")(path, patch)

    def load(image):
        raise MemoryError

    patch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)


def too_long(path, patch):
    return path.with_name("n" * 300 + ".jpg")


EPS = (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 6\n%%EndComments\n"
       b"showpage\n%%EOF\n")
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
CMYK = RNG.integers(256, size=(6, 4, 4), dtype=np.uint8)
CMYK_BLOCKS = np.kron(RNG.integers(256, size=(2, 2, 4)), np.ones((8, 8, 1))).astype(np.uint8)


def seen_cmyk(array):
    ink = array.astype(float)
    return np.round((255 - ink[:, :, :3]) * (255 - ink[:, :, 3:]) / 255).astype(np.uint8)


EXACT = Pixels(COLOURS)
JPEG = dict(format="JPEG", quality=100, subsampling=0)
JPEG_BLOCKS = Pixels(BLOCKS, within=4)
UNKNOWN = "no image format that Pillow knows"
BROKEN_PNG = flipped(encoded(COLOURS, "PNG"), 60)  # within the pixels

# (name of the file, case, how it is made, what must come out)
CASES = [
    # formats; the name says nothing about what is inside
    ("a.png", "png", saved(COLOURS), EXACT),
    ("a.bmp", "bmp", saved(COLOURS), EXACT),
    ("a.ppm", "ppm", saved(COLOURS), EXACT),
    ("a.tif", "tiff", saved(COLOURS), EXACT),
    ("a.tif", "tiff deflate", saved(COLOURS, compression="tiff_adobe_deflate"), EXACT),
    ("a.webp", "webp", saved(COLOURS, lossless=True), EXACT),
    ("a.gif", "gif", saved_palette(), EXACT),
    ("a.jpg", "jpeg", saved(BLOCKS, **JPEG), JPEG_BLOCKS),
    ("a.jpg", "progressive jpeg", saved(BLOCKS, progressive=True, **JPEG), JPEG_BLOCKS),
    ("a.jpg", "png named jpg", saved(COLOURS, format="PNG"), EXACT),
    ("a.jpg", "bmp named jpg", saved(COLOURS, format="BMP"), EXACT),
    ("a.jpg", "tiff named jpg", saved(COLOURS, format="TIFF"), EXACT),
    ("a.jpg", "webp named jpg", saved(COLOURS, format="WEBP", lossless=True), EXACT),
    ("a.png", "jpeg named png", saved(BLOCKS, **JPEG), JPEG_BLOCKS),
    ("a", "no extension", saved(COLOURS, format="PNG"), EXACT),
    # kinds of pixels
    ("a.png", "grey", saved(GREY), Pixels(repeated(GREY))),
    ("a.jpg", "grey jpeg", saved(BLOCKS[:, :, 0], format="JPEG", quality=100),
     Pixels(repeated(BLOCKS[:, :, 0]), within=4)),
    ("a.png", "grey and alpha", saved(np.dstack([GREY, ALPHA])), Pixels(repeated(GREY))),
    ("a.png", "alpha", saved(np.dstack([COLOURS, ALPHA])), EXACT),
    ("a.webp", "alpha webp", saved(np.dstack([COLOURS, ALPHA]), lossless=True, exact=True), EXACT),
    ("a.png", "palette", saved_palette(), EXACT),
    ("a.png", "palette, one colour transparent", saved_palette(transparency=3), EXACT),
    ("a.png", "palette, alpha of each colour", saved_palette(transparency=bytes(range(24))), EXACT),
    ("a.png", "colour transparent by key",
     saved(COLOURS, transparency=tuple(map(int, COLOURS[0, 0]))), EXACT),
    ("a.png", "1 bit", saved(GREY > 127),
     Pixels(repeated(np.where(GREY > 127, 255, 0).astype(np.uint8)))),
    ("a.png", "16-bit grey png",
     saved_bytes(png(4, 6, 16, 0, [row.astype(">u2").tobytes() for row in WIDE])),
     Pixels(repeated((WIDE // 256).astype(np.uint8)))),
    ("a.png", "16-bit colour png",
     saved_bytes(png(4, 6, 16, 2, [row.astype(">u2").tobytes() for row in WIDE_COLOURS])),
     Pixels((WIDE_COLOURS // 256).astype(np.uint8))),
    ("a.tif", "16-bit tiff", saved(WIDE), Pixels(repeated((WIDE // 256).astype(np.uint8)))),
    ("a.tif", "16-bit big-endian tiff",
     lambda path, patch: Image.frombytes(
         "I;16B", (4, 6), WIDE.astype(">u2").tobytes()).save(path),
     Pixels(repeated((WIDE // 256).astype(np.uint8)))),
    ("a.pgm", "16-bit pgm",
     saved_bytes(b"P5 4 6 65535\n" + WIDE.astype(">u2").tobytes()),
     Pixels(repeated((WIDE // 256).astype(np.uint8)))),
    ("a.ppm", "16-bit ppm",
     saved_bytes(b"P6 4 6 65535\n" + WIDE_COLOURS.astype(">u2").tobytes()),
     Pixels((WIDE_COLOURS // 256).astype(np.uint8), within=1)),
    ("a.tif", "cmyk", saved_cmyk(CMYK), Pixels(seen_cmyk(CMYK), within=1)),
    ("a.jpg", "cmyk jpeg, inverted as Adobe does", saved_cmyk(CMYK_BLOCKS, quality=100),
     Pixels(seen_cmyk(CMYK_BLOCKS), within=4)),
    ("a.tif", "32-bit integers", saved(WIDE.astype(np.int32)),
     Refused("32-bit numbers", "Convert it to 8 bits")),
    ("a.tif", "floats", saved(WIDE.astype(np.float32)),
     Refused("32-bit numbers", "Convert it to 8 bits")),
    # EXIF
    *(("a.jpg", f"orientation {n}", oriented(n, **JPEG), Pixels(seen(BLOCKS), within=4))
      for n, seen in STORED_TO_SEEN.items()),
    ("a.png", "orientation of a png", oriented(6), Pixels(STORED_TO_SEEN[6](BLOCKS))),
    ("a.tif", "orientation of a tiff", oriented(6), Pixels(STORED_TO_SEEN[6](BLOCKS))),
    ("a.webp", "orientation of a webp", oriented(8, lossless=True),
     Pixels(STORED_TO_SEEN[8](BLOCKS))),
    ("a.jpg", "orientation 0", oriented(0, **JPEG), JPEG_BLOCKS),
    ("a.jpg", "orientation 9", oriented(9, **JPEG), JPEG_BLOCKS),
    ("a.jpg", "orientation beside a damaged tag", with_exif(turned_beside_a_bad_tag()),
     Pixels(STORED_TO_SEEN[6](BLOCKS), within=4)),
    ("a.jpg", "exif is no exif", with_exif(b"Exif\0\0this is no TIFF header"),
     Pixels(BLOCKS, within=4, warns="EXIF data of .*a.jpg are damaged")),
    ("a.jpg", "exif ends early", with_exif(b"Exif\0\0MM\0*\0"),
     Pixels(BLOCKS, within=4, warns="EXIF data of .*a.jpg are damaged")),
    # sizes
    ("a.png", "1 x 1", saved(COLOURS[:1, :1]), Pixels(COLOURS[:1, :1])),
    ("a.jpg", "1 x 1 jpeg", saved(BLOCKS[:1, :1], **JPEG), Pixels(BLOCKS[:1, :1], within=4)),
    ("a.png", "one column", saved(np.tile(COLOURS[:1, :1], (500, 1, 1))),
     Pixels(np.tile(COLOURS[:1, :1], (500, 1, 1)))),
    ("a.png", "one row", saved(np.tile(COLOURS[:1, :1], (1, 500, 1))),
     Pixels(np.tile(COLOURS[:1, :1], (1, 500, 1)))),
    ("a.png", "large", saved(np.tile(COLOURS, (300, 300, 1))),
     Pixels(np.tile(COLOURS, (300, 300, 1)))),
    ("a.png", "above Pillow's limit", limited(20, saved(COLOURS)),
     Pixels(COLOURS, warns="decompression bomb")),
    ("a.png", "twice above Pillow's limit", limited(11, saved(COLOURS)),
     Refused("too large .*24 pixels", "Scale it down")),
    ("a.png", "header of 2 billion rows", saved_bytes(png(4, 2**31 - 1, 8, 2, [bytes(12)])),
     Refused("too large", "Scale it down")),
    ("a.bmp", "larger than its data", saved_bytes(
        encoded(COLOURS, "BMP")[:18] + struct.pack("<ii", 400, 600) + encoded(
            COLOURS, "BMP")[26:]), Refused("truncated")),
    ("a.png", "no column", saved_bytes(png(0, 6, 8, 2, [b""] * 6)), Refused(UNKNOWN)),
    ("a.ppm", "no pixel", saved_bytes(b"P6 0 0 255\n"), Refused(UNKNOWN)),
    ("a.png", "memory runs out", no_memory, Refused("too large", "Scale it down")),
    # several frames
    ("a.gif", "animated gif", lambda path, patch: Image.frombytes(
        "L", (4, 6), GREY.tobytes()).save(path, save_all=True, append_images=[
            Image.new("L", (4, 6), 7)]), Pixels(repeated(GREY))),
    ("a.tif", "tiff of two pages", frames(), Pixels(BLOCKS)),
    ("a.png", "animated png", frames(), Pixels(BLOCKS)),
    ("a.webp", "animated webp", frames(lossless=True), Pixels(BLOCKS)),
    ("a.jpg", "mpo", frames(format="MPO", quality=100, subsampling=0), JPEG_BLOCKS),
    # damaged
    ("a.jpg", "empty", saved_bytes(b""), Refused(r"empty \(0 bytes\)")),
    ("a.jpg", "one byte", saved_bytes(b"\xff"), Refused(UNKNOWN)),
    ("a.jpg", "zeros", saved_bytes(bytes(4096)), Refused(UNKNOWN)),
    ("a.jpg", "jpeg of two bytes", saved_bytes(b"\xff\xd8"), Refused(UNKNOWN)),
    ("a.jpg", "jpeg of its header", cut(COLOURS, "JPEG", 0.2), Refused("[Tt]runcated")),
    ("a.jpg", "truncated jpeg", cut(np.tile(COLOURS, (20, 20, 1)), "JPEG"), Refused("truncated")),
    ("a.png", "truncated png", cut(COLOURS, "PNG"), Refused("truncated|[Bb]roken")),
    ("a.bmp", "truncated bmp", cut(COLOURS, "BMP"), Refused("truncated")),
    ("a.gif", "truncated gif", cut(np.tile(GREY, (20, 20)), "GIF"), Refused("truncated")),
    ("a.tif", "truncated tiff", cut(np.tile(COLOURS, (20, 20, 1)), "TIFF"), Refused(".")),
    ("a.webp", "truncated webp", cut(np.tile(COLOURS, (20, 20, 1)), "WEBP"), Refused(".")),
    ("a.png", "png with a damaged byte", saved_bytes(BROKEN_PNG), Refused("[Bb]roken|truncated")),
    ("a.jpg", "jpeg and garbage behind it",
     saved_bytes(encoded(BLOCKS, **JPEG) + b"garbage" * 100), JPEG_BLOCKS),
    ("a.jpg", "compressed jpeg", saved_bytes(gzip.compress(encoded(BLOCKS, **JPEG))),
     Refused(UNKNOWN)),
    ("a.jpg", "html", saved_bytes(b"<html><body>404 Not Found</body></html>"), Refused(UNKNOWN)),
    ("a.jpg", "svg", saved_bytes(b'<svg xmlns="http://www.w3.org/2000/svg"/>'), Refused(UNKNOWN)),
    ("a.jpg", "pointer of git lfs", saved_bytes(LFS), Refused(UNKNOWN)),
    ("a.jpg", "postscript", saved_bytes(EPS), Refused("PostScript")),
    # names
    *((name, f"name {label}", saved(COLOURS, format="PNG"), EXACT) for label, name in {
        "with spaces": " a  b .jpg", "with accents": "caf\u00e9.jpg",
        "with combining accents": "cafe\u0301.jpg", "in Chinese": "\u884c\u4eba.jpg",
        "with an emoji": "\U0001f6b6.jpg", "written from right to left": "\u202ea.jpg",
        "with a newline": "a\nb.jpg", "with a tab": "a\tb.jpg", "with a bell": "a\x07b.jpg",
        "with quotes": "a\"'`b.jpg", "with a leading dash": "-rf.jpg", "with a star": "a*?[b].jpg",
        "with a percent": "100%s%d.jpg", "with braces": "{0}.jpg", "with a backslash": "a\\b.jpg",
        "with a dollar": "$(HOME).jpg", "with a colon": "http:a.jpg", "of 250 bytes": "n" * 246
        + ".jpg"}.items()),
    ("a.jpg", "name that is not UTF-8", named(b"a\xff\xfe.jpg"), EXACT),
    ("a.jpg", "damaged, name that is not UTF-8", named(b"a\xff.jpg", saved_bytes(b"x")),
     Refused(UNKNOWN)),
    ("a\nb.jpg", "damaged, name with a newline", saved_bytes(b"x"), Refused(UNKNOWN)),
    ("a.jpg", "name of 300 bytes", too_long, Refused("name too long", "Shorten its name")),
    ("a.jpg", "name with a zero byte", lambda path, patch: str(path) + "\0", Refused("null byte")),
    # what is not a file, or cannot be opened
    ("a.jpg", "missing", lambda path, patch: None, Refused("No such file", "put it back")),
    ("a.jpg", "link", linked(good_target), EXACT),
    ("a.jpg", "hard link", as_file(lambda path: os.link(good_target(path), path)), EXACT),
    ("a.jpg", "dangling link", linked(lambda path: path.with_name("gone")),
     Refused("No such file", "symbolic link points")),
    ("a.jpg", "link to itself", linked(lambda path: path), Refused("symbolic link", "leads back")),
    ("a.jpg", "loop of links", as_file(link_loop), Refused("symbolic link", "leads back")),
    ("a.jpg", "folder", as_file(Path.mkdir), Refused("it is a folder")),
    ("a.jpg", "fifo", as_file(os.mkfifo), Refused("it is a FIFO")),
    ("a.jpg", "link to a fifo", linked(lambda path: os.mkfifo(path.with_name("f")) or "f"),
     Refused("it is a FIFO")),
    ("a.jpg", "socket", as_file(listening), Refused("it is a socket")),
    ("a.jpg", "link to a device", linked(lambda path: os.devnull), Refused("it is a device")),
    ("a.jpg", "no permission", failing(errno.EACCES), Refused("Permission denied", r"chmod u\+r")),
    ("a.jpg", "operation not permitted", failing(errno.EPERM), Refused("not permitted", "chmod")),
    ("a.jpg", "disk error", failing(errno.EIO), Refused("Input/output error", "The disk")),
    ("a.jpg", "too many open files", failing(errno.EMFILE),
     Refused("Too many open files", "ulimit -n.*DATALOADER.NUM_WORKERS")),
    ("a.jpg", "stale network file", failing(errno.ESTALE), Refused("[Ss]tale")),
]


# -------------------------------------------------------------------------- reading them ----


def shown(path):
    return str(path) if str(path).isprintable() else ascii(str(path))


@pytest.fixture
def at_work(tmp_path):
    """The folder of the images; the test fails, and does not hang, where a read waits for ever."""
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


def make_file(folder, name, write, patch):
    path = folder / name
    try:
        made = write(path, patch)
        return str(made if isinstance(made, (str, Path)) else path)
    except OSError as error:
        if error.errno in (errno.EILSEQ, errno.EINVAL):
            pytest.skip(f"this file system refuses the name: {error}")
        raise


def both_datasets(path, transform):
    """The training data of the plugin, and the toolbox's, which it is evaluated with."""
    return (UnlabelledImages([(path, "camera")], transform),
            CommDataset([(path, 1, 0)], transform, relabel=False))


@pytest.mark.parametrize("name, write, expected", [
    pytest.param(name, write, expected, id=case) for name, case, write, expected in CASES])
@pytest.mark.filterwarnings("ignore:Image size", "ignore:The EXIF data", "ignore:Tag data larger")
def test_image(cfg, at_work, monkeypatch, name, write, expected):
    path = make_file(at_work, name, write, monkeypatch)
    if isinstance(expected, Refused):
        message = (rf"Cannot read the image {re.escape(shown(path))}: .*(?:{expected.reason}).*\. "
                   rf".*(?:{expected.remedy})")
        for dataset in both_datasets(path, np.asarray):
            with pytest.raises(ValueError) as caught:
                dataset[0]
            assert re.match(message, str(caught.value)), caught.value
            str(caught.value).encode()  # it can be printed anywhere
            assert "\n" not in str(caught.value)
        return
    with pytest.warns(match=expected.warns) if expected.warns else contextlib.nullcontext():
        found = [dataset[0]["images"] for dataset in both_datasets(path, np.asarray)]
    for pixels in found:
        assert pixels.dtype == np.uint8 and pixels.shape == expected.array.shape
        assert abs(pixels.astype(int) - expected.array.astype(int)).max() <= expected.within
    cfg.INPUT.SIZE_TRAIN = cfg.INPUT.SIZE_TEST = [32, 16]
    cfg.INPUT.PADDING.ENABLED = cfg.INPUT.REA.ENABLED = True
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # of the file, not of what is made of it
    for is_train in (True, False):
        images = UnlabelledImages([(path, "camera")], build_transforms(cfg, is_train))
        assert images[0]["images"].shape == (3, 32, 16)
        assert images[0]["images"].isfinite().all()


def test_two_names_that_some_file_systems_take_for_one(at_work):
    names = ["caf\u00e9.png", "cafe\u0301.png", "A.png", "a.png"]
    for i, name in enumerate(names):
        Image.fromarray(COLOURS // (i + 1)).save(at_work / name)
    if len(os.listdir(at_work)) < len(names):
        pytest.skip("this file system takes them for one")
    images = UnlabelledImages([(str(at_work / name), "c") for name in names], np.asarray)
    for i in range(len(names)):
        assert np.array_equal(images[i]["images"], COLOURS // (i + 1))


def test_what_changes_between_listing_and_reading(at_work):
    path = at_work / "a.png"
    Image.fromarray(COLOURS).save(path)
    images = UnlabelledImages([(str(path), "c")], np.asarray)
    Image.fromarray(255 - COLOURS).save(path)
    assert np.array_equal(images[0]["images"], 255 - COLOURS)
    path.unlink()
    with pytest.raises(ValueError, match="a.png: No such file.*put it back"):
        images[0]
    path.mkdir()
    with pytest.raises(ValueError, match="a.png: it is a folder"):
        images[0]


@contextlib.contextmanager
def ordinary_user():
    """Drops root's right to read everything, for as long as the block runs."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(65534)
    except OSError as error:
        pytest.skip(f"root cannot become another user here: {error}")
    try:
        yield
    finally:
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


@pytest.mark.skipif(os.name != "posix", reason="needs the permissions of POSIX")
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
    if os.geteuid() != 0 and os.stat(path).st_uid != os.geteuid():
        pytest.skip("not the owner")
    os.chmod(path if closed == "file" else folder, 0)
    with ordinary_user(), pytest.raises(ValueError, match=r"a.png: Permission denied\. .*chmod u"):
        images[0]


@pytest.mark.parametrize("write, expected", [
    (saved_bytes(b""), "empty"), (as_file(os.mkfifo), "it is a FIFO"),
    (cut(np.tile(COLOURS, (20, 20, 1)), "JPEG"), "truncated")])
def test_the_error_of_a_worker_process_reaches_the_user(cfg, at_work, monkeypatch, write, expected):
    path = make_file(at_work, "a b\n.jpg", write, monkeypatch)
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 1, "INPUT.SIZE_TEST", [32, 16]])
    loader = build_extraction_loader(cfg, [(path, "c")])
    with pytest.raises(ValueError, match=rf"worker process 0(?s:.*)"
                                         rf"{re.escape(ascii(path))}: .*{expected}.*Replace or"):
        next(iter(loader))


# ----------------------------------------------------------------------- listing a dataset ----


def extra(name, write=None):
    """One more file in the training folder."""

    def change(folder):
        path = os.path.join(os.fsencode(folder), name if isinstance(name, bytes) else name.encode())
        (write or shutil.copy)(os.fsencode(min(folder.iterdir())), path)

    return change


def make_folder(source, path):
    os.mkdir(path)


def dangling(source, path):
    os.symlink(b"nowhere", path)


LISTINGS = [
    # (case, file that is added, is it listed: True, False with a warning, None without; or error)
    ("spaces", extra("0002_c1 a b .jpg"), True),
    ("unicode", extra("0002_c1_\u884c\u4eba\u0301.jpg"), True),
    ("newline", extra("0002_c1\n.jpg"), True),
    ("brackets", extra("0002_c1[x].jpg"), True),
    ("not UTF-8", extra(b"0002_c1\xff.jpg"), True),
    ("words before it", extra("a-0002_c1.jpg"), "has identity -2"),
    ("fifo", extra("0002_c1.jpg", lambda source, path: os.mkfifo(path)), True),
    ("dangling link", extra("0002_c1.jpg", dangling), True),
    ("folder", extra("0002_c1.jpg", make_folder), True),
    ("upper case", extra("0002_c1.JPG"), False),
    ("jpeg", extra("0002_c1.jpeg"), False),
    ("png", extra("0002_c1.png"), False),
    ("upper case png", extra("0002_c1.PNG"), False),
    ("hidden", extra(".0002_c1.jpg"), None),
    ("not an image", extra("Thumbs.db"), None),
    ("copy that goes on", extra("0002_c1.jpg.part"), None),
    ("no camera", extra("0002.jpg"), "carries no camera label"),
    ("no camera, not UTF-8", extra(b"0002\xff.jpg"), "carries no camera label"),
    ("camera 0", extra("0002_c0.jpg"), "has camera 0, but Market1501 has 1 to 6"),
    ("camera 7", extra("0002_c7.jpg"), "has camera 7, but Market1501 has 1 to 6"),
    ("identity 1502", extra("1502_c1.jpg"), "has identity 1502, but Market1501 has"),
    ("identity -2", extra("-2_c1.jpg"), "has identity -2, but Market1501 has"),
    ("identity that is no number", extra("12-3_c1.jpg"), "'12-3' before _c is no number"),
    ("junk", extra("-1_c9.jpg"), None),
]


@pytest.fixture
def logged(monkeypatch):
    """Warnings of the plugin, as a list of texts."""
    texts = []
    monkeypatch.setattr(caureid_plugin.compat.logger, "warning",
                        lambda text, *values: texts.append(text % values))
    return texts


@pytest.mark.parametrize("change, expected", [
    pytest.param(change, expected, id=case) for case, change, expected in LISTINGS])
def test_listing(tiny_market, logged, change, expected):
    folder = tiny_market / "Market-1501-v15.09.15" / "bounding_box_train"
    before = set(os.listdir(folder))
    try:
        change(folder)
    except OSError as error:
        pytest.skip(f"this file system refuses the name: {error}")
    (added,) = set(os.listdir(folder)) - before  # as the file system gives the name
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=rf"{re.escape(shown(folder / added))}.*{expected}.*"
                                             "Rename or remove the file"):
            Market1501(root=str(tiny_market)).train
        return
    listed = {Path(path).name: (identity, camera)
              for path, identity, camera in Market1501(root=str(tiny_market)).train}
    assert set(listed) == before | ({added} if expected else set())
    if expected:
        assert listed[added] == ("market1501_2", "market1501_0")
    assert len(logged) == (expected is False)
    if logged:
        assert re.match(rf"Market1501: 1 images in {re.escape(str(folder))} are left out.*"
                        rf"first: {re.escape(added)}\). Rename", logged[0])


@pytest.mark.parametrize("name, expected", [("0002_c9_1.jpg", "camera 9"), ("0002_c8.jpg", None),
                                            ("9999_c1.jpg", None)])
def test_the_labels_of_the_other_dataset(tiny_market, name, expected):
    base = tiny_market / "DukeMTMC-reID"
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (base / folder).mkdir(parents=True)
        saved(COLOURS)(base / folder / "0001_c1.jpg", None)
    saved(COLOURS)(base / "bounding_box_train" / name, None)
    with pytest.raises(ValueError, match=expected) if expected else contextlib.nullcontext():
        assert len(DukeMTMC(root=str(tiny_market)).train) == 2


@pytest.mark.parametrize("name", ["[2024] data", "a*b?", "with space", "new\nline", "\u884c\u4eba",
                                  b"not utf-8 \xff"])
def test_a_folder_of_any_name_is_listed(tiny_market, name):
    moved = tiny_market.parent / (os.fsdecode(name) if isinstance(name, bytes) else name)
    try:
        tiny_market.rename(moved)
    except OSError as error:
        pytest.skip(f"this file system refuses the name: {error}")
    assert len(Market1501(root=str(moved)).train) == 48


@pytest.mark.skipif(os.name != "posix", reason="needs the permissions of POSIX")
@pytest.mark.parametrize("kind", ["closed folder", "file"])
def test_a_subset_that_cannot_be_listed(tiny_market, open_folder, kind):
    root = open_folder / "datasets"
    shutil.copytree(tiny_market, root)
    root.chmod(0o755)
    folder = root / "Market-1501-v15.09.15" / "bounding_box_train"
    with ordinary_user():
        assert len(Market1501(root=str(root)).train) == 48
    if kind == "file":
        shutil.rmtree(folder)
        folder.write_text("a file")
    else:
        folder.chmod(0)
    with ordinary_user(), pytest.raises(ValueError, match=(
            rf"Market1501 cannot list the folder {folder}: (Permission denied|Not a directory)\. "
            r".*chmod u\+rx.*FASTREID_DATASETS")):
        Market1501(root=str(root)).train


# --------------------------------------------------------------------------------- outputs ----


@pytest.fixture
def set_up(cfg, monkeypatch):
    """Runs the toolbox's default_setup with an OUTPUT_DIR; gives its logger back as it was."""
    log = logging.getLogger("fastreid")
    before = log.handlers[:], log.level, log.propagate
    monkeypatch.setattr(defaults, "collect_env_info", lambda: "")  # slow, of no interest here

    def run(folder):
        cfg.OUTPUT_DIR = str(folder)
        defaults.default_setup(cfg, types.SimpleNamespace(config_file="", eval_only=True))

    yield run
    for handler in set(log.handlers) - set(before[0]):
        handler.close()
    log.handlers, log.level, log.propagate = before


def below(name):
    return lambda folder, patch: folder / (os.fsdecode(name) if isinstance(name, bytes) else name)


def file_at(name, output="out"):
    def prepare(folder, patch):
        (folder / name).write_text("a file")
        return folder / output

    return prepare


def folder_at(name):
    def prepare(folder, patch):
        (folder / name).mkdir(parents=True)
        return folder / "out"

    return prepare


def link_at(name, target):
    def prepare(folder, patch):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(target)
        return folder / "out"

    return prepare


def no_file_made(number):
    def prepare(folder, patch):
        def refuse(**where):
            raise OSError(number, os.strerror(number))

        patch.setattr(tempfile, "TemporaryFile", refuse)
        return folder / "out"

    return prepare


def not_mine(folder, patch):
    (folder / "out").mkdir(mode=0o555)
    return folder / "out"


OUTPUTS = [
    ("a new folder", below("out"), None),
    ("new folders", below("a/b/c"), None),
    ("a folder that is there", folder_at("out"), None),
    ("a link to a folder", link_at("out", "."), None),
    ("spaces", below(" a b "), None),
    ("unicode", below("\u884c\u4eba"), None),
    ("newline", below("a\nb"), None),
    ("not UTF-8", below(b"a\xff"), "no text in UTF-8"),
    ("a file", file_at("out"), "File exists.*is a file"),
    ("below a file", file_at("out", "out/run"), "Not a directory.*is a file"),
    ("a dangling link", link_at("out", "gone"), "File exists.*broken link"),
    ("a link to itself", link_at("out", "out"), "broken link|symbolic link"),
    ("a long name", below("n" * 300), "name too long"),
    ("not writable", not_mine, r"Permission denied.*chmod u\+rwx"),
    ("a read-only file system", no_file_made(errno.EROFS), "Read-only file system"),
    ("a full disk", no_file_made(errno.ENOSPC), "No space left.*Free space"),
    ("no quota left", no_file_made(errno.EDQUOT), "quota exceeded.*Free space"),
    ("config.yaml on a full disk", link_at("out/config.yaml", "/dev/full"),
     "config.yaml or log.txt in OUTPUT_DIR.*No space left.*Free space"),
    ("config.yaml is a folder", folder_at("out/config.yaml"),
     "config.yaml in OUTPUT_DIR.*Is a directory.*Remove that folder"),
    ("log.txt is a folder", folder_at("out/log.txt"),
     "log.txt in OUTPUT_DIR.*Is a directory.*Remove that folder"),
]


@pytest.mark.skipif(os.name != "posix", reason="needs the permissions of POSIX and /dev/full")
@pytest.mark.parametrize("prepare, expected", [
    pytest.param(prepare, expected, id=case) for case, prepare, expected in OUTPUTS])
def test_output_folder(set_up, open_folder, monkeypatch, prepare, expected):
    folder = prepare(open_folder, monkeypatch)
    with ordinary_user() if prepare is not_mine else contextlib.nullcontext():
        if not expected:
            set_up(folder)
            assert (folder / "config.yaml").read_text() and (folder / "log.txt").read_text()
            return
        with pytest.raises((OSError, ValueError)) as caught:
            set_up(folder)
    named = f"OUTPUT_DIR {shown(folder)}"
    assert named in str(caught.value)
    assert re.search(rf"(?:{expected}).*[sS]et OUTPUT_DIR to an?",
                     str(caught.value).replace(named, "OUTPUT_DIR")), caught.value
    if isinstance(caught.value, OSError):
        assert caught.value.errno == caught.value.__cause__.errno


# ----------------------------------------------------------------------------- checkpoints ----


class FullDiskFile(io.FileIO):
    """A file that takes 1000 bytes."""

    def write(self, data):
        if self.tell() + memoryview(data).nbytes > 1000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def full_for(ending):
    """open() as on a disk that is full, for files to write whose name ends so."""
    plain_open = open

    def limited_open(file, mode="r", *args, **kwargs):
        if str(file).endswith(ending) and "w" in mode:
            return FullDiskFile(file, "w")
        return plain_open(file, mode, *args, **kwargs)

    return limited_open


@pytest.fixture
def checkpointer(tmp_path):
    """Of a model of 40 kB, with a good checkpoint whose weights are 1."""
    folder = tmp_path / "run"
    folder.mkdir()
    model = torch.nn.Linear(100, 100)
    torch.nn.init.ones_(model.weight)
    made = Checkpointer(model, str(folder))
    made.save("model_0000")
    return made


def weights(checkpointer):
    return sorted(set(checkpointer.model.weight.flatten().tolist()))


def resume(checkpointer):
    torch.nn.init.zeros_(checkpointer.model.weight)
    return checkpointer.resume_or_load("", resume=True)


@pytest.mark.parametrize("name", ["model_0001", "model_0000", "model_best", "model_final"])
def test_a_full_disk_while_a_checkpoint_is_written(checkpointer, monkeypatch, name):
    folder = Path(checkpointer.save_dir)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    torch.nn.init.constant_(checkpointer.model.weight, 2)
    monkeypatch.setattr("builtins.open", full_for(".part"))
    with pytest.raises(OSError, match=rf"{name}.pth could not be saved: No space left.*"
                       rf"{folder}/model_0000.pth is still good. Free space in {folder}") as caught:
        checkpointer.save(name)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    resume(checkpointer)
    assert weights(checkpointer) == [1]


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def shortened(folder):
    path = folder / "model_0000.pth"
    path.write_bytes(path.read_bytes()[:-5000])


def with_a_hole(folder):
    path = folder / "model_0000.pth"
    content = path.read_bytes()
    path.write_bytes(content[:2000] + bytes(3000) + content[5000:])


def replaced_by(make):
    def change(folder):
        path = folder / "model_0000.pth"
        path.unlink()
        make(path)

    return change


def saved_object(content):
    return lambda folder: torch.save(content, folder / "model_0000.pth")


def outside(folder):
    shutil.copy(folder / "model_0000.pth", folder.parent / "other.pth")
    (folder / "last_checkpoint").write_text("../other.pth")


def marked_by_a_folder(folder):
    (folder / "last_checkpoint").unlink()
    (folder / "last_checkpoint").mkdir()


CHECKPOINTS = [
    # (case, damage, how the error begins; None: it is loaded)
    ("as saved", lambda folder: None, None),
    ("last_checkpoint ends a line", written("last_checkpoint", b"model_0000.pth\n"), None),
    ("last_checkpoint is empty", written("last_checkpoint", b""), "last_checkpoint"),
    ("last_checkpoint names nothing", written("last_checkpoint", b"model_0007.pth"),
     "last_checkpoint names 'model_0007.pth'"),
    ("last_checkpoint is garbage", written("last_checkpoint", b"\xff\0\n\n"), "last_checkpoint"),
    ("last_checkpoint leads outside", outside, "last_checkpoint"),
    ("last_checkpoint is a folder", marked_by_a_folder, "last_checkpoint"),
    ("last_checkpoint names a folder", replaced_by(Path.mkdir),
     "last_checkpoint names 'model_0000.pth'"),
    ("missing", replaced_by(lambda path: None), "last_checkpoint names 'model_0000.pth'"),
    ("fifo", replaced_by(os.mkfifo), "last_checkpoint names 'model_0000.pth'"),
    ("dangling link", replaced_by(lambda path: path.symlink_to("gone")),
     "last_checkpoint names 'model_0000.pth'"),
    ("empty", written("model_0000.pth", b""), "model_0000.pth"),
    ("text", written("model_0000.pth", b"this is no checkpoint"), "model_0000.pth"),
    ("zeros", written("model_0000.pth", bytes(50000)), "model_0000.pth"),
    ("truncated", shortened, "model_0000.pth"),
    ("damaged within", with_a_hole, "model_0000.pth"),
    ("a list", saved_object([1, 2]), "model_0000.pth"),
    ("without a model", saved_object({"epoch": 1}), "model_0000.pth"),
]


@pytest.mark.parametrize("damage, named", [
    pytest.param(damage, named, id=case) for case, damage, named in CHECKPOINTS])
def test_resuming_from_a_damaged_checkpoint(checkpointer, damage, named):
    folder = Path(checkpointer.save_dir)
    damage(folder)
    if not named:
        resume(checkpointer)
        assert weights(checkpointer) == [1]
        return
    with pytest.raises((ValueError, OSError)) as caught:
        resume(checkpointer)
    remedy = r"\. .*(--resume|remove .*last_checkpoint|MODEL.WEIGHTS)"
    expected = rf"{re.escape(str(folder / named))}.*{remedy}"
    assert re.search(expected, str(caught.value)), caught.value


@pytest.mark.skipif(os.name != "posix", reason="needs the permissions of POSIX")
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
