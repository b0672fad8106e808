"""``caureid attention``: its choice of images, shares, pictures and errors."""

import os
import re
import shutil
from types import SimpleNamespace

import caureid_plugin  # noqa: F401  (first: it makes the toolbox importable)
import cv2
import numpy as np
import pytest
import torch
from caureid_plugin.cli.attention import command
from caureid_plugin.cli.common import call
from caureid_plugin.data.synthetic.dataset import person_mask, render_dataset
from caureid_plugin.layers import MAP_KINDS
from caureid_plugin.report import attention
from fastreid.data import build as data_build
from PIL import Image

from helpers.page import Page
from helpers.tiny import KEYS

CONFIG = ["--config-file", "Synthetic/caureid.yml"]
MARKET = [*KEYS, "SEED", "1", "TEST.IMS_PER_BATCH", "5"]
SYNTHETIC = [*MARKET, "DATASETS.NAMES", "('SyntheticCameras',)"]


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """Folder of a tiny SyntheticCameras, which the toolbox's loader finds."""
    root = tmp_path_factory.mktemp("synthetic")
    render_dataset(str(root / "SyntheticCameras"), train_identities=3, test_identities=1,
                   cameras=3, size=(32, 16))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_build, "_root", str(root))
        yield root / "SyntheticCameras"


@pytest.fixture
def weights(small_run):
    """A checkpoint whose mask is far from uniform, as if it had been trained."""
    path = small_run() / "model_final.pth"
    content = torch.load(path, weights_only=True)
    content["model"]["heads.attention.combine.1.weight"] *= 10
    torch.save(content, path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Three images of different sizes, a file that is none, and a folder."""
    folder = tmp_path / "some people"
    (folder / "below").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("b.png", (40, 20)), ("a <&> $x$.jpg", (60, 30)), ("c.JPG", (20, 50))):
        noise = rng.integers(256, size=(*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


def parsed(words):
    """What the function behind the command gets."""
    return SimpleNamespace(
        **command.make_context(command.name, [str(word) for word in words]).params)


def chosen(words):
    """The images that the command draws and measures."""
    args = parsed(words)
    return attention.choose(args, attention.configure(args.config_file, args.opts))


def pictures(page):
    """(alternative text, array) of a page's pictures; the first one, the colour bar, left out."""
    return [(alt, np.asarray(picture.convert("RGB")).astype(int))
            for alt, picture in page.pictures[1:]]


def plain_maps(model, path, kind):
    """Both maps (h, w) of one image on its own."""
    image = Image.open(path).convert("RGB").resize((16, 32), Image.BICUBIC)
    images = torch.from_numpy(np.asarray(image).astype(np.float32)).permute(2, 0, 1)[None]
    with torch.no_grad():
        features = model.backbone((images - model.pixel_mean) / model.pixel_std)
        mask = model.heads.attention(features)[0]
    weight = features[0].abs() if kind == "feature" else 1
    return [(part * weight).mean(dim=0).numpy() for part in (mask, 1 - mask)]


def plain_share(heat, person):
    heat = cv2.resize(heat, person.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return sum(v for v, p in zip(heat.flat, person.flat, strict=True) if p) / heat.sum()


def table_of(printed):
    rows = [[cell.strip() for cell in line.strip("|").split("|")]
            for line in printed.splitlines() if line.startswith("|")]
    return {(row[0], row[1]): row[2:] for row in rows[2:]}


def test_shares_on_the_person_against_loops(synthetic, weights, tmp_path, capsys):
    options = [*CONFIG, "--per-camera", "1", "--measure", "3", *SYNTHETIC]
    call(command, [*options, "MODEL.WEIGHTS", weights, "--output", tmp_path / "a.html"])
    printed = capsys.readouterr().out
    cfg = attention.configure(CONFIG[1], SYNTHETIC)
    paths = [choice.path for choice in chosen(options)]
    assert len(paths) == len(set(paths)) == 9
    people = [person_mask(path) for path in paths]
    areas = 100 * np.array([person.mean() for person in people])
    assert f"that of the area: {areas.mean():.1f} ({areas.std():.1f})" in printed
    assert "mean (standard deviation, n) of the images.\n" in printed
    found = table_of(printed)
    assert list(found) == [(w, k) for w in ("start", "trained") for k in ("mask", "feature")]
    for name, path in (("start", ""), ("trained", str(weights))):
        model = attention.build_attentive(cfg, path)
        for kind in ("mask", "feature"):
            shares = 100 * np.array([
                [plain_share(heat, person) for heat in plain_maps(model, image, kind)]
                for image, person in zip(paths, people, strict=True)])
            gain = shares[:, 1] - shares[:, 0]
            expected = [(shares[:, 0].mean(), shares[:, 0].std()),
                        (shares[:, 1].mean(), shares[:, 1].std()), (gain.mean(), gain.std())]
            for cell, (mean, spread) in zip(found[name, kind], expected, strict=True):
                numbers = [float(number) for number in re.findall(r"-?[\d.]+", cell)]
                assert numbers == pytest.approx([mean, spread], abs=0.06), (name, kind)
            verdict = f"{name}, {kind} maps: the camera-agnostic share is "
            if name == "trained":
                verdict += "higher by" if gain.mean() > 0 else "LOWER by"
                assert abs(gain.mean()) > 0.02
            else:  # a uniform mask
                verdict += "equal"
            assert verdict in printed


def test_at_a_uniform_mask_the_picture_is_grey_and_else_it_is_not(synthetic, weights, tmp_path):
    shown = []
    for options in ([], ["MODEL.WEIGHTS", str(weights)]):
        path = tmp_path / f"{len(options)}.html"
        call(command, [*CONFIG, "--per-camera", "1", "--output", path, *SYNTHETIC, *options])
        shown.append(pictures(Page(path)))
    strongest = 0
    for (alt, start), (same, trained) in zip(*shown, strict=True):
        assert alt == same
        if alt == "image":
            assert np.array_equal(start, trained)
        else:  # the middle of the colours is not quite grey
            assert (start.max(axis=2) - start.min(axis=2)).max() <= 4
            strongest = max(strongest, (trained.max(axis=2) - trained.min(axis=2)).max())
    assert strongest > 80


def test_the_range_of_the_colours():
    uniform, strong = torch.ones(1, 2, 2), torch.tensor([[[1.0, 1.0], [1.3, 0.7]]])
    assert attention.colour_range([uniform, uniform + 1e-4]) == 0.1  # rounding errors stay grey
    assert attention.colour_range([uniform, strong]) == pytest.approx(0.3)
    assert attention.colour_range([uniform, 5 * strong]) == 1.0


def test_specific_and_agnostic_are_drawn_where_they_are_strong():
    """A mask that is strong in the upper half: above, the specific overlay is the redder one."""
    picture = np.full((20, 10, 3), 128, np.uint8)
    sample = attention.Sample(
        attention.Choice("x.png", "", True), torch.zeros(3, 4, 4), picture, None)
    specific = torch.tensor([[[0.8, 0.8], [0.2, 0.2]]])
    shares = (np.array([np.nan]), np.array([np.nan]))
    (panel,), spread = attention.draw_panels([sample], (specific, 1 - specific), shares)
    assert spread == pytest.approx(0.6) and (panel.note, panel.name) == ("", "x.png")
    original, *overlays = (p.astype(int) for p in panel.pictures)
    assert np.array_equal(original, picture)
    for overlay, sign in zip(overlays, (1, -1), strict=True):
        redness = sign * (overlay[..., 0] - overlay[..., 2])
        assert (redness[:5] > 50).all() and (redness[-5:] < -50).all()


@pytest.mark.parametrize("split, cameras", [
    ("train", ["market1501_0", "market1501_1"]),
    ("query", ["Market1501 camera id 0", "Market1501 camera id 1"])])
def test_images_of_a_dataset(tiny_market, split, cameras, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(attention, "MOST_ROWS", 1)  # only of a PNG
    arguments = [*CONFIG, "--split", split, "--per-camera", "3", "--output",
                 str(tmp_path / "page.html"), *MARKET]
    call(command, arguments)
    printed = capsys.readouterr().out
    assert "page.html: 6 images, start weights, mask maps" in printed and "|" not in printed
    page = Page(tmp_path / "page.html")
    assert [alt for alt, _ in pictures(page)] == 6 * ["image", "camera-specific",
                                                     "camera-agnostic"]
    assert "Before training, SEED 1" in page.text and "on the person" not in page.text
    assert 'name="viewport"' in page.source
    choices = chosen(arguments)
    assert [choice.group for choice in choices] == [camera for camera in cameras for _ in range(3)]
    for choice in choices:
        assert choice.drawn and choice.group in page.text
        assert os.path.basename(choice.path) in page.text
        assert choice.group == cameras[int(re.search(r"_c(\d)s", choice.path)[1]) - 1]


def test_cameras_of_personx_keep_their_numbers(cfg, tmp_path, monkeypatch):
    """PersonX numbers a test image's camera as its name does, Market1501 one less."""
    monkeypatch.setattr(data_build, "_root", str(tmp_path))
    for split in ("bounding_box_train", "query", "bounding_box_test"):
        (tmp_path / "PersonX" / split).mkdir(parents=True)
        for camera in (10, 3):
            (tmp_path / "PersonX" / split / f"0001_c{camera}s1_000000_00.jpg").touch()
    for split, start in (("train", "personx_"), ("query", "PersonX camera id "),
                         ("gallery", "PersonX camera id ")):
        groups = attention.list_dataset(cfg, "PersonX", split)
        assert list(groups) == [f"{start}3", f"{start}10"]
        for number, (path,) in zip((3, 10), groups.values(), strict=True):
            assert os.path.basename(path).startswith(f"0001_c{number}s1_")


def test_the_choice_follows_the_seed(tiny_market):
    def choose(*options):
        return [choice.path for choice in chosen([*CONFIG, *options, *MARKET])]

    default = choose("--seed", "1")
    assert default == choose() == choose("--dataset", "Market1501") != choose("--seed", "2")
    everything = choose("--per-camera", "1000")
    assert len(everything) == 48 and set(choose("--per-camera", "3")) < set(everything)


def test_a_folder_and_names_that_need_escaping(folder, tmp_path, capsys):
    for suffix in ("html", "png"):
        call(command, [*CONFIG, "--folder", folder, "--map", "feature", "--output",
                       tmp_path / f"page.{suffix}", *MARKET])
    assert "page.png: 3 images, start weights, feature maps" in capsys.readouterr().out
    page = Page(tmp_path / "page.html")
    assert "a <&> $x$.jpg" in page.text and "some people" in page.text
    assert "a <&>" not in page.source
    shapes = [picture.shape[:2] for _, picture in pictures(page)]
    assert shapes == 3 * [(192, 96)] + 3 * [(192, 96)] + 3 * [(77, 192)]
    assert np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).std() > 5


def test_config_keys_after_images(folder):
    paths = [str(folder / "b.png"), str(folder / "c.JPG")]
    for options in ([], ["--seed", "4"]):
        args = parsed([*CONFIG, "--images", *paths, *options, "SEED", "7"])
        assert list(args.images) == paths and args.opts == ["SEED", "7"]


def test_bad_images_are_named_and_the_others_drawn(synthetic, folder, tmp_path, capsys):
    good, cut, missing = folder / "b.png", tmp_path / "cut.png", tmp_path / "missing.png"
    cut.write_bytes(good.read_bytes()[:700])
    shutil.copytree(synthetic, tmp_path / "SyntheticCameras")
    other = next((tmp_path / "SyntheticCameras" / "query").iterdir())  # it was rendered
    Image.new("RGB", (30, 30)).save(other)
    images = [cut, good, missing, folder / "notes.txt", folder / "below", other]
    arguments = [*CONFIG, "--output", str(tmp_path / "page.html"), "--images"]
    with pytest.raises(SystemExit, match=f"{other} is 30 pixels high.*it is another") as stopped:
        call(command, [*arguments, *images, *MARKET])
    for path in images[:-1]:
        assert (f"Cannot read the image {path}" in stopped.value.code) == (path != good)
    assert "page.html: 1 images" in capsys.readouterr().out
    assert len(Page(tmp_path / "page.html").pictures) == 4

    (tmp_path / "page.html").unlink()
    with pytest.raises(SystemExit, match=r"None of the images can be drawn.*missing\.png"):
        call(command, [*arguments, missing, *MARKET])
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("options, message", [
    (["--per-camera", "0"], "'--per-camera': 0 is not in the range x>=1"),
    (["--measure", "-1"], "'--measure': -1 is not in the range x>=0"),
    (["--output", "maps.jpg"], "'--output': maps.jpg must end in .png or .html"),
    (["--output", "absent/maps.png"], "the folder absent does not exist"),
    (["--output", "there.png"], "'--output': there.png cannot be written"),
    (["--images", "SEED", "1"], "--images needs at least one value"),
    (["--folder", ".", "--dataset", "Market1501"], "only one of --folder and --dataset"),
    (["--folder", ".", "--split", "query"], "--split query is of a dataset")])
def test_bad_options(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.png").mkdir()
    with pytest.raises(SystemExit) as stopped:
        call(command, [*CONFIG, *options, *MARKET])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_kinds_of_maps():
    kind, = (option for option in command.params if option.name == "kind")
    assert tuple(kind.type.choices) == MAP_KINDS


@pytest.mark.parametrize("options, keys, message", [
    (["--dataset", "Markt"], [], "There is no dataset 'Markt'.*SyntheticCameras"),
    ([], ["DATASETS.NAMES", "()"], "names no dataset.*--dataset"),
    (["--folder", "empty"], [], "--folder empty holds no image, among 0 entries.*jpg"),
    ([], ["MODEL.HEADS.CAMSEP.ATTENTION", "none", "MODEL.LOSSES.NAME", "('InfoNCELoss',)"],
     "ATTENTION none .*must be harmonious"),
    ([], ["MODEL.HEADS.NAME", "EmbeddingHead", "MODEL.HEADS.NUM_CLASSES", "4"],
     "MODEL.HEADS.NAME EmbeddingHead of .* CAUReID has no attention.*a single CamSepHead"),
    ([], ["MODEL.WEIGHTS", "absent.pth"], "MODEL.WEIGHTS absent.pth is not a file"),
    ([], ["MODEL.WEIGHTS", "other.pth"], "of another architecture"),
    ([], ["INPUT.CROP.ENABLED", "True"], "INPUT.CROP.ENABLED False"),
    ([], ["INPUT.SIZE_TEST", "[32]"], r"INPUT.SIZE_TEST \[32\] must be \[height, width\]"),
    (["--per-camera", "5"], [], r"fill 4 rows of a PNG, which holds 3.*\.html")])
def test_bad_configs(tiny_market, options, keys, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(attention, "MOST_ROWS", 3)
    torch.save({"model": {"backbone.x": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(SystemExit, match=f"^caureid attention: .*{message}"):
        call(command, [*CONFIG, *options, *MARKET, *keys])
    assert not (tmp_path / "attention.png").exists()
