"""UnlabelledImages and the loaders made of it, on tiny generated images."""

import itertools
import random

import numpy as np
import pytest
import torch
from caureid_plugin.data import (
    Sighting,
    UnlabelledImages,
    build_extraction_loader,
    build_pseudo_label_loader,
)
from caureid_plugin.data.sampler import Draw
from PIL import Image


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    """(path, camera) of twenty images, four for each of five clusters, from three cameras."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    listed = []
    for i in range(20):
        path = folder / f"{i:02d}.jpg"
        Image.fromarray(rng.integers(256, size=(24, 12, 3), dtype=np.uint8)).save(path)
        listed.append((str(path), ("north", "east", "south")[i % 3]))
    return listed


LABELS = np.arange(20) // 4


@pytest.fixture
def cfg(cfg):
    cfg.merge_from_list([
        "MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", 8, "DATALOADER.NUM_INSTANCE", 4,
        "DATALOADER.NUM_WORKERS", 0, "TEST.IMS_PER_BATCH", 6,
        "INPUT.SIZE_TRAIN", [32, 16], "INPUT.SIZE_TEST", [32, 16],
        # random numbers of Python, NumPy and torch
        "INPUT.FLIP.ENABLED", True, "INPUT.PADDING.ENABLED", True, "INPUT.REA.ENABLED", True,
        "INPUT.CJ.ENABLED", True, "INPUT.AUGMIX.ENABLED", True, "INPUT.AUGMIX.PROB", 0.5,
    ])
    return cfg


def plain_transform(image):
    return torch.as_tensor(np.asarray(image).copy()).permute(2, 0, 1).float()


def random_transform(image):
    """Six numbers, two of each global generator."""
    return torch.tensor([random.random(), random.random(), *np.random.rand(2),
                         *torch.rand(2).tolist()])


def seed_everything(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def global_state():
    return random.getstate(), np.random.get_state()[1:3], torch.get_rng_state()


def assert_same_state(before, after):
    assert before[0] == after[0]
    assert np.array_equal(before[1][0], after[1][0]) and before[1][1] == after[1][1]
    assert torch.equal(before[2], after[2])


def test_item(items):
    images = UnlabelledImages(items, plain_transform, LABELS)
    assert len(images) == 20 and images.num_cameras == 3
    for index in (0, 7, 19):
        item = images[index]
        assert sorted(item) == ["camids", "images", "img_paths", "indexes", "targets"]
        path, camera = items[index]
        expected = np.asarray(Image.open(path)).transpose(2, 0, 1)
        assert np.array_equal(item["images"].numpy(), expected)
        assert item["targets"] == index // 4 and type(item["targets"]) is int
        assert item["camids"] == ["east", "north", "south"].index(camera)
        assert type(item["camids"]) is int
        assert item["indexes"] == index and item["img_paths"] == path
        # without labels all are outliers
        assert UnlabelledImages(items, plain_transform)[index]["targets"] == -1


def test_tracks_come_with_the_items():
    seen = [Sighting("1", 4.0), Sighting("1", 2.0), Sighting(None, 7.0), Sighting("1", np.nan)]
    items = [(f"{i}.jpg", camera, sighting) for i, (camera, sighting) in enumerate(
        zip("bbba", seen, strict=True))]
    tracks = UnlabelledImages([*items, ("4.jpg", "a")], plain_transform).tracks
    assert tracks.of_image.tolist() == [0, 0, 1, 2, 3] and tracks.camids.tolist() == [1, 1, 0, 0]
    np.testing.assert_equal(tracks.first, [2, 7, np.nan, np.nan])
    assert UnlabelledImages([item[:2] for item in items], plain_transform).tracks is None


@pytest.mark.parametrize("cameras, numbers", [
    (["c", "a", "b", "a"], [2, 0, 1, 0]), ([7, 3, 3, 12], [1, 0, 0, 2])])
def test_cameras_are_numbered_in_the_order_of_their_names(cameras, numbers):
    items = [(f"{i}.jpg", camera) for i, camera in enumerate(cameras)]
    images = UnlabelledImages(items, plain_transform)
    assert images.camids.tolist() == numbers and images.camids.dtype == np.int64
    assert images.num_cameras == len(set(cameras))


@pytest.mark.parametrize("camera", [None, "", -1, float("nan"), np.float32("nan")])
def test_missing_camera_names_the_file(camera):
    items = [("a/first.jpg", 0 if camera == -1 else "x"), ("a/second.jpg", camera)]
    with pytest.raises(ValueError, match="a/second.jpg has no camera"):
        UnlabelledImages(items, plain_transform)


@pytest.mark.parametrize("camera, message", [
    (torch.tensor(1), r"camera of the image b.jpg must be text or a number, got tensor\(1\)"),
    ([1], r"b.jpg must be text or a number, got \[1\] \(list\)"),
    ("1", "b.jpg has '1', a.jpg 0.*DATASETS.NAMES")])
def test_cameras_that_are_no_names_of_one_kind(camera, message):
    with pytest.raises(ValueError, match=message):
        UnlabelledImages([("a.jpg", 0), ("b.jpg", camera)], plain_transform)


def test_empty_training_set():
    with pytest.raises(ValueError, match="DATASETS.NAMES .*FASTREID_DATASETS"):
        UnlabelledImages([], plain_transform)


def test_a_seed_fixes_the_augmentation(items):
    images = UnlabelledImages(items, random_transform, LABELS)
    first = images[Draw(3, 11)]
    seed_everything(1)
    again, other = images[Draw(3, 11)], images[Draw(3, 12)]
    assert torch.equal(first["images"], again["images"])
    assert (first["images"] != other["images"]).all(), "all three generators are seeded"
    assert first["indexes"] == 3 and first["targets"] == 0


def test_a_seed_leaves_the_global_generators_alone(items):
    images = UnlabelledImages(items, random_transform, LABELS)
    before = global_state()
    images[Draw(3, 11)]
    assert_same_state(before, global_state())

    def fails(image):
        random_transform(image)
        raise OSError("broken")

    images.transform = fails
    with pytest.raises(OSError, match="broken"):
        images[Draw(3, 11)]
    assert_same_state(before, global_state())


def test_without_a_seed_the_global_generators_are_used(items):
    images = UnlabelledImages(items, random_transform, LABELS)
    seed_everything(1)
    found = images[3]["images"]
    seed_everything(1)
    assert torch.equal(found, random_transform(None))


def test_batches_do_not_depend_on_the_number_of_workers(cfg, items):
    def first_batches(workers, seed):
        cfg.DATALOADER.NUM_WORKERS = workers
        loader = build_pseudo_label_loader(cfg, items, LABELS, seed)
        try:
            return list(itertools.islice(iter(loader), 3))
        finally:
            loader.shutdown()

    expected = first_batches(0, seed=5)
    torch.manual_seed(1)
    for ours, theirs in zip(expected, first_batches(2, seed=5), strict=True):
        assert list(ours) == list(theirs)
        for key in ("images", "targets", "camids", "indexes"):
            assert torch.equal(ours[key], theirs[key]), key
        assert ours["img_paths"] == theirs["img_paths"]
    assert not torch.equal(expected[0]["images"], first_batches(0, seed=6)[0]["images"])


def test_batches_hold_what_the_training_needs(cfg, items):
    labels = LABELS.copy()
    labels[[0, 9]] = -1
    loader = build_pseudo_label_loader(cfg, items, labels, 0)
    names, by_image, batches = ["east", "north", "south"], {}, iter(loader)
    next(batches)
    before = global_state()
    for batch in itertools.islice(batches, 12):
        assert batch["images"].shape == (8, 3, 32, 16)
        rows = batch["indexes"].tolist()
        assert not {0, 9} & set(rows)
        assert batch["targets"].tolist() == [int(labels[row]) for row in rows]
        assert batch["camids"].tolist() == [names.index(items[row][1]) for row in rows]
        assert batch["img_paths"] == [items[row][0] for row in rows]
        for start in (0, 4):
            assert len(set(batch["targets"][start:start + 4].tolist())) == 1
        for row, image in zip(rows, batch["images"], strict=True):
            by_image.setdefault(row, []).append(image)
    assert_same_state(before, global_state())
    repeated = [views for views in by_image.values() if len(views) > 1]
    assert repeated and all(
        not torch.equal(views[0], views[1]) for views in repeated), "each time another view"


def test_views_are_the_same_image_augmented_anew_and_as_in_evaluation(cfg, items):
    seen = {}
    for views in (False, True):
        loader = build_pseudo_label_loader(cfg, items, LABELS, 3, views=views)
        seen[views] = next(iter(loader))
        loader.shutdown()
    plain, batch = seen[False], seen[True]
    assert batch.keys() - plain.keys() == {"second_images", "plain_images"}
    # what is trained on is what it is without the views
    assert torch.equal(batch["images"], plain["images"])
    assert torch.equal(batch["indexes"], plain["indexes"])
    evaluated = {}
    for other in build_extraction_loader(cfg, items):
        evaluated.update(zip(other["indexes"].tolist(), other["images"], strict=True))
    for row, image in zip(batch["indexes"].tolist(), batch["plain_images"], strict=True):
        assert torch.equal(image, evaluated[row])
    assert batch["second_images"].shape == batch["images"].shape
    different = (batch["second_images"] != batch["images"]).flatten(1).any(dim=1)
    assert different.any(), "augmented by the same random numbers"


def test_extraction_gives_every_image_once_in_order(cfg, items):
    loader = build_extraction_loader(cfg, items)
    passes = [list(loader) for _ in range(2)]
    for batches in passes:
        assert [len(batch["indexes"]) for batch in batches] == [6, 6, 6, 2]
        assert torch.cat([batch["indexes"] for batch in batches]).tolist() == list(range(20))
    for first, second in zip(*passes, strict=True):  # nothing random
        assert torch.equal(first["images"], second["images"])
    image = Image.open(items[3][0]).resize((16, 32), Image.BICUBIC)
    expected = torch.as_tensor(np.asarray(image).copy()).permute(2, 0, 1).float()
    assert torch.equal(passes[0][0]["images"][3], expected)
