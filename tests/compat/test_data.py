"""Datasets: sorted listings, and errors that name the file, the folder and the remedy."""

import glob
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from caureid_plugin import compat
from caureid_plugin.data import UnlabelledImages
from fastreid.config import configurable
from fastreid.data import build as data_build
from fastreid.data import data_utils
from fastreid.data.common import CommDataset
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset
from fastreid.data.datasets.dukemtmcreid import DukeMTMC
from fastreid.data.datasets.market1501 import Market1501
from fastreid.data.datasets.msmt17 import MSMT17
from fastreid.data.transforms import build_transforms
from PIL import Image


@pytest.fixture
def tiny_duke(tiny_market):
    """The same images in DukeMTMC-reID's layout, in the same folder; Duke has no junk."""
    base = tiny_market / "DukeMTMC-reID"
    shutil.copytree(tiny_market / "Market-1501-v15.09.15", base)
    for junk in itertools.chain(base.rglob("-1_*"), base.rglob("0000_*")):
        junk.unlink()
    return tiny_market


def paths(items):
    return [item[0] for item in items]


@pytest.mark.parametrize("kind, base", [
    (Market1501, "Market-1501-v15.09.15"), (DukeMTMC, "DukeMTMC-reID")])
def test_listings_are_sorted(tiny_duke, monkeypatch, kind, base):
    listed = glob.glob  # a file system that lists its files in the other order
    monkeypatch.setattr(glob, "glob", lambda *a, **k: sorted(listed(*a, **k), reverse=True))
    folders = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
    for split, folder in folders.items():
        items = getattr(kind(root=str(tiny_duke)), split)
        expected = [p.name for p in (tiny_duke / base / folder).iterdir() if p.name[0] != "-"]
        assert [Path(p).name for p in paths(items)] == sorted(expected)
        with compat.without("sorted_listing"):
            unsorted = getattr(kind(root=str(tiny_duke)), split)
        assert paths(unsorted) == sorted(paths(items), reverse=True)


def test_a_missing_dataset_or_subset_names_folder_and_remedy(tiny_market, tmp_path):
    nowhere = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=rf"Market1501: .*{nowhere}.* is not found"
                                                r".*FASTREID_DATASETS"):
        Market1501(root=nowhere)
    with compat.without("missing_dataset"), pytest.raises(RuntimeError, match="is not found$"):
        Market1501(root=nowhere)
    shutil.rmtree(tiny_market / "Market-1501-v15.09.15" / "query")
    with pytest.raises(FileNotFoundError, match='query" is not found'):
        Market1501(root=str(tiny_market))


@pytest.mark.parametrize("made, missing, there", [
    (["x/readme.txt"], "MSMT17_V2", "{root} holds x"), ([], "MSMT17_V2", "{root} holds nothing"),
    (["msmt17/MSMT17_V2/list_train.txt"], "MSMT17_V2", "there is {root}/msmt17/MSMT17_V2"),
    (["MSMT17/train/a.jpg"], "MSMT17_V2", "{root} holds MSMT17")])
def test_msmt17_in_another_folder(tmp_path, made, missing, there):
    for name in made:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError) as caught:
        MSMT17(root=str(tmp_path))
    for part in (f'"{tmp_path / missing}" is not found', "MSMT17_V1 and MSMT17_V2",
                 there.format(root=tmp_path), "FASTREID_DATASETS"):
        assert part in str(caught.value)
    with compat.without("missing_dataset"), pytest.raises(AssertionError, match="folder not found"):
        MSMT17(root=str(tmp_path))


def test_msmt17_without_a_list(tmp_path):
    base = tmp_path / "MSMT17_V1"
    (base / "train").mkdir(parents=True)
    (base / "test").mkdir()
    for name, line in (("train", "0000/0000_000_01_0303morning_0008_0.jpg 0"), ("val", ""),
                       ("query", "0001/0001_000_02_0303morning_0008_0.jpg 1"),
                       ("gallery", "0001/0001_000_03_0303morning_0008_0.jpg 1")):
        with pytest.raises(FileNotFoundError, match=rf'MSMT17: "{base}/list_{name}.txt" is not '
                                                    r"found; .* FASTREID_DATASETS"):
            MSMT17(root=str(tmp_path))
        (base / f"list_{name}.txt").write_text(line and line + "\n")
    dataset = MSMT17(root=str(tmp_path))
    assert [item[1:] for item in dataset.train] == [("msmt17_0", "msmt17_0")]
    assert [item[2] for item in dataset.query + dataset.gallery] == [1, 2]
    for line in ("garbage", "0000/0000.jpg 0", "0000/0000_000_01_0303morning_0008_0.jpg x",
                 "0000/0000_000_00_0303morning_0008_0.jpg 0",  # cameras begin with 1
                 "train_x/0000/0000_000_01_0303morning_0008_0.jpg 0"):  # 000 for the camera
        (base / "list_train.txt").write_text(f"0000/0000_000_01_0303morning_0008_0.jpg 0\n{line}\n")
        with pytest.raises(ValueError, match=rf"Line 2 of {base}/list_train.txt is '{line}"):
            MSMT17(root=str(tmp_path))


@pytest.mark.parametrize("name", sorted(
    name for name, kind in DATASET_REGISTRY._obj_map.items()
    if kind.__module__.startswith("fastreid.")))
def test_every_missing_dataset_names_folder_and_remedy(tmp_path, name):
    (tmp_path / "other").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        DATASET_REGISTRY.get(name)(root=str(tmp_path)).train
    for part in (f'{name}: "{tmp_path}/', "is not found", f"{tmp_path} holds other",
                 "FASTREID_DATASETS"):
        assert part in str(caught.value)


def test_a_dataset_that_lies_one_folder_deeper_is_named(tmp_path):
    found = tmp_path / "duke" / "DukeMTMC-reID"
    found.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=f"there is {found}"):
        DukeMTMC(root=str(tmp_path))


def test_a_variable_that_names_the_dataset_itself(tmp_path):
    for kind, name in ((DukeMTMC, "DukeMTMC-reID"), (MSMT17, "MSMT17_V1")):
        found = tmp_path / name
        (found / "train").mkdir(parents=True)
        with pytest.raises(FileNotFoundError, match=f"is not found.*; there is {found}. Set"):
            kind(root=str(found))


def test_msmt17s_lists_of_another_encoding(tmp_path):
    base = tmp_path / "MSMT17_V1"
    for folder in ("train", "test"):
        (base / folder).mkdir(parents=True)
    line = "0000/0000_000_01_0303morning_0008_0.jpg 0"
    for content in (line.encode("utf-16"), b"\xfc" + line.encode()):
        (base / "list_train.txt").write_bytes(content)
        with pytest.raises(ValueError, match=rf"Line 1 of {base}/list_train.txt is "):
            MSMT17(root=str(tmp_path))


def test_an_empty_folder_is_named(tiny_cfg, tiny_market):
    for path in (tiny_market / "Market-1501-v15.09.15" / "bounding_box_train").iterdir():
        path.unlink()
    tiny_cfg.DATALOADER.SAMPLER_TRAIN = "TrainingSampler"
    with pytest.raises(ValueError, match=rf"Market1501 found no image.*{tiny_market}.*"
                                         "FASTREID_DATASETS"):
        data_build.build_reid_train_loader(tiny_cfg)
    with compat.without("sorted_listing"), pytest.raises(AssertionError):
        data_build.build_reid_train_loader(tiny_cfg)


class TrainingOnly(ImageDataset):
    """Like the toolbox's VIPeR, GRID and fifteen others: nothing to test with, on purpose."""

    def __init__(self, root="", **kwargs):
        super().__init__([("b.jpg", "p_1", "c_0"), ("a.jpg", "p_0", "c_1")], [], [], **kwargs)


def test_a_dataset_for_training_alone_can_be_combined():
    # DATASETS.COMBINEALL reads the empty test subsets too
    assert paths(TrainingOnly(combineall=True).train) == ["a.jpg", "b.jpg"]


class ForTestsAlone(ImageDataset):
    """Like PartialREID of the toolbox's projects, with subsets that need be no lists."""

    query_items = ("d.jpg", 7, 0), ("c.jpg", 8, 1)
    gallery_items = (("b.jpg", 7, 1),)
    kind = list

    def __init__(self, root="", **kwargs):
        super().__init__([], self.kind(self.query_items), self.kind(self.gallery_items), **kwargs)


class ListedLater(ForTestsAlone):
    """Its folder of training images is empty, which nobody asks for."""

    def __init__(self, root="", **kwargs):
        ImageDataset.__init__(self, list, lambda: self.query_items,
                              lambda: iter(self.gallery_items), **kwargs)


@pytest.mark.parametrize("dataset, kind", [
    (ForTestsAlone, list), (ForTestsAlone, tuple), (ForTestsAlone, iter), (ListedLater, None)])
def test_a_dataset_for_testing_alone_has_a_test_loader(tiny_cfg, monkeypatch, dataset, kind):
    monkeypatch.setattr(ForTestsAlone, "kind", kind)
    name = dataset.__name__
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, name, dataset)
    loader, queries = data_build.build_reid_test_loader(tiny_cfg, dataset_name=name)
    assert queries == 2 and paths(loader.dataset.img_items) == ["c.jpg", "d.jpg", "b.jpg"]
    tiny_cfg.DATASETS.NAMES = (name,)  # and no training loader
    with pytest.raises(ValueError, match=f"{name} found no image for its subset 'train'"
                                         ".*take it out of DATASETS.NAMES"):
        data_build.build_reid_train_loader(tiny_cfg)
    combined = dataset(combineall=True).train
    assert sorted(paths(combined)) == ["b.jpg", "c.jpg", "d.jpg"]


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_subsets_of_any_kind_are_sorted(kind):
    items = [["b.jpg", "p_1", "c_0"], (Path("a.jpg"), "p_0", "c_1")]
    dataset = ImageDataset(kind(items), [], [])
    assert paths(dataset.train) == [Path("a.jpg"), "b.jpg"] and dataset.train is dataset.train


@pytest.mark.parametrize("cameras, expected", [
    (["c_1", None, "c_0", ""], [1, -1, 0, -1]), (["c_1", "nan", "c_0", " None"], [1, -1, 0, -1]),
    ([None] * 4, [-1] * 4), ([3, None, 3, 5], [0, -1, 0, 1]),
    ([3.0, float("nan"), 5.0, np.float64("nan")], [0, -1, 1, -1])])
def test_supervised_training_needs_no_cameras(tiny_cfg, monkeypatch, tmp_path, cameras, expected):
    items = [(str(tmp_path / f"{i}.jpg"), f"p_{i % 2}", camera)
             for i, camera in enumerate(cameras)]
    for path, *_ in items:
        Image.new("RGB", (16, 32)).save(path)

    class Unseen(ImageDataset):
        def __init__(self, root="", **kwargs):
            super().__init__(list(items), [], [], **kwargs)

    monkeypatch.setitem(DATASET_REGISTRY._obj_map, Unseen.__name__, Unseen)
    tiny_cfg.merge_from_list(["DATASETS.NAMES", (Unseen.__name__,), "MODEL.DEVICE", "cpu",
                              "DATALOADER.SAMPLER_TRAIN", "TrainingSampler"])
    images = data_build.build_reid_train_loader(tiny_cfg).dataset
    assert [images[i]["camids"] for i in range(4)] == expected
    assert [images[i]["targets"] for i in range(4)] == [0, 1, 0, 1]
    assert images.num_cameras == max(expected) + 1
    assert images.img_items == [(*item[:2], None if number == -1 else item[2])
                                for item, number in zip(items, expected, strict=True)]
    with compat.without("unknown_cameras"):
        if cameras[1] != cameras[1] or cameras[1] == "nan":  # each is a camera of its own
            assert data_build.build_reid_train_loader(tiny_cfg).dataset.num_cameras == 4
        elif len(set(cameras)) > 1:
            with pytest.raises(TypeError, match="not supported between"):
                data_build.build_reid_train_loader(tiny_cfg)
        else:
            images = data_build.build_reid_train_loader(tiny_cfg).dataset
            assert images.num_cameras == 1
    with pytest.raises(ValueError, match="0.jpg|1.jpg"):  # which needs every image's
        UnlabelledImages([(path, camera) for path, _, camera in items], None)


@pytest.mark.parametrize("camera", [None, "", " ", "NaN", "none", float("nan")])
def test_a_test_image_without_a_camera_is_an_error(camera):
    """Those of the query's camera are left out of an evaluation, and NaN equals no camera."""
    items = [("a.jpg", 1, 0), ("b.jpg", 1, camera)]
    with pytest.raises(ValueError, match="test image b.jpg has no camera .*in the dataset"):
        CommDataset(items, relabel=False)


def test_cameras_of_one_kind():
    for other in ("1", (1,), torch.tensor(1)):
        for relabel in (True, False):
            with pytest.raises(ValueError, match="b.jpg.*Correct the dataset|a.jpg 0. Correct"):
                CommDataset([("a.jpg", 1, 0), ("b.jpg", 1, other)], relabel=relabel)


def test_numbers_of_numpy_are_numbers(tmp_path):
    Image.new("RGB", (4, 8)).save(tmp_path / "a.jpg")
    items = [(str(tmp_path / "a.jpg"), np.int64(5), np.int32(7))]
    item = CommDataset(items, relabel=False)[0]
    assert (type(item["targets"]), item["targets"]) == (int, 5)
    assert (type(item["camids"]), item["camids"]) == (int, 7)


@pytest.mark.parametrize("camera", [None, "", float("nan")])
def test_combined_images_without_a_camera_have_none(camera):
    class Own(ImageDataset):
        dataset_name, _junk_pids = "own", [-1]

    def combined():
        return Own([("a.jpg", "p", "c1")], [("b.jpg", 1, camera), ("c.jpg", -1, camera)],
                   [("d.jpg", 2, 3)], combineall=True).train

    assert combined() == [("a.jpg", "p", "c1"), ("b.jpg", "own_test_1", None),
                          ("d.jpg", "own_test_2", "own_test_3")]
    with compat.without("unknown_cameras"):
        assert combined()[1][2] == f"own_test_{camera}"


# ------------------------------------------------------------------------ single images ----


@pytest.mark.parametrize("kind, base, name", [
    (Market1501, "Market-1501-v15.09.15", "0002_s1_000451_03.jpg"),
    (DukeMTMC, "DukeMTMC-reID", "portrait_c.jpg")])
def test_an_image_without_camera_is_named(tiny_duke, kind, base, name):
    folder = tiny_duke / base / "bounding_box_train"
    shutil.copy(next(folder.iterdir()), folder / name)
    with pytest.raises(ValueError, match=rf"{folder / name} carries no camera label"):
        kind(root=str(tiny_duke)).train
    with compat.without("image_without_camera"), pytest.raises(AttributeError, match="groups"):
        kind(root=str(tiny_duke)).train


def test_a_folder_named_like_a_camera_does_not_label_its_images(tiny_market):
    """The toolbox looks for identity and camera in the whole path, folders first."""
    moved = tiny_market.parent / "run7_c2"
    shutil.move(tiny_market, moved)
    with pytest.raises(ValueError, match="run7_c2"):
        Market1501(root=str(moved)).train


def test_a_damaged_image_is_named(tiny_market):
    path = min((tiny_market / "Market-1501-v15.09.15" / "query").iterdir())
    assert data_utils.read_image(str(path)).size == (16, 32)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=rf"Cannot read the image {path}: .*Replace or remove"):
        data_utils.read_image(str(path))
    with compat.without("unreadable_image"), pytest.raises(OSError) as caught:
        data_utils.read_image(str(path))
    assert str(path) not in str(caught.value)
    path.unlink()
    with pytest.raises(ValueError, match=rf"Cannot read the image {path}: .*put it back"):
        data_utils.read_image(str(path))


@pytest.mark.parametrize("mode, ending, channels", [
    ("P", "png", 3), ("RGBA", "png", 4), ("CMYK", "tif", 4)])
def test_every_image_is_read_as_rgb(tmp_path, mode, ending, channels):
    path = tmp_path / f"image.{ending}"
    image = Image.new("RGB", (3, 4), (200, 90, 10)).convert(mode)
    image.save(path)
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(data_utils.read_image(str(path)), expected)
    with compat.without("image_modes"):
        found = np.asarray(data_utils.read_image(str(path)))
        assert found.shape == (4, 3, channels)
        assert not np.array_equal(found, expected)


def test_16_bit_images_are_read(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.array([[0, 255, 256, 65535]], dtype=np.uint16)).save(path)
    assert np.asarray(data_utils.read_image(str(path)))[0, :, 0].tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize("format, expected", [
    (None, [1, 2, 7]), ("RGB", [1, 2, 7]), ("BGR", [7, 2, 1]), ("L", 2)])
def test_the_form_of_an_image_can_be_asked_for(tmp_path, format, expected):
    path = tmp_path / "image.png"
    Image.new("RGB", (3, 4), (1, 2, 7)).save(path)
    assert (np.asarray(data_utils.read_image(str(path), format)) == expected).all()


@pytest.mark.parametrize("option", [
    "CROP", "FLIP", "PADDING", "CJ", "AFFINE", "AUTOAUG", "AUGMIX", "REA", "RPT"])
def test_every_augmentation_works(cfg, option):
    cfg.INPUT.SIZE_TRAIN = [32, 16]
    cfg.INPUT[option].ENABLED = True
    if "PROB" in cfg.INPUT[option]:
        cfg.INPUT[option].PROB = 1.0
    pixels = np.random.default_rng(0).integers(0, 255, (48, 20, 3), dtype=np.uint8)
    transform = build_transforms(cfg, is_train=True)
    for _ in range(10):  # some choose at random among operations
        image = transform(Image.fromarray(pixels))
        assert image.dtype == torch.float32
        assert image.shape[1:] == ((224, 224) if option == "CROP" else (32, 16))
        assert 0 <= image.min() < image.max() <= 255
    if option == "AFFINE":
        with compat.without("random_affine"):
            with pytest.raises(TypeError, match="resample"):
                build_transforms(cfg, is_train=True)


def test_a_dataset_is_set_up_by_the_config(cfg, tiny_market, monkeypatch):
    class OfTheConfig(ImageDataset):
        """Its images are those of the folder in OUTPUT_DIR."""

        @configurable
        def __init__(self, *, folder="", **kwargs):
            items = [(str(path), "who", "where") for path in Path(folder).glob("*.jpg")]
            super().__init__(items, list(items), list(items), **kwargs)

        @classmethod
        def from_config(cls, cfg):
            return {"folder": cfg.OUTPUT_DIR}

    name = OfTheConfig.__name__
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, name, OfTheConfig)
    folder = tiny_market / "Market-1501-v15.09.15" / "query"
    cfg.merge_from_list(["DATASETS.NAMES", (name,), "OUTPUT_DIR", str(folder),
                         "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", 0])
    expected = sorted(map(str, folder.iterdir()))

    def tested(name):
        return paths(data_build.build_reid_test_loader(cfg, dataset_name=name)[0].dataset.img_items)

    assert paths(data_build.build_reid_train_loader(cfg).dataset.img_items) == expected
    assert paths(data_build.build_reid_train_loader(cfg=cfg).dataset.img_items) == expected
    assert tested(name) == 2 * expected
    assert paths(compat.configured_dataset(cfg, name).query) == expected
    # those that read no config, and whoever asks for the class itself, are left alone
    assert tested("Market1501")[0] == expected[0]
    assert data_build.DATASET_REGISTRY.get(name) is OfTheConfig
    with pytest.raises(KeyError, match=name):
        compat.configured_dataset(cfg, "OfAnotherConfig")
    with compat.without("dataset_config"):  # it is given only a root, and looks elsewhere
        with pytest.raises(ValueError, match="no image for its subset 'train'"):
            data_build.build_reid_train_loader(cfg)
