"""Tests of the dataset that renders itself: plan, files, errors."""

import functools
import itertools
import json
import os
import shutil
from collections import Counter, defaultdict

import caureid_plugin  # noqa: F401  (first: it makes the toolbox importable)
import numpy as np
import pytest
from caureid_plugin.data.synthetic import dataset as module
from caureid_plugin.data.synthetic.cameras import make_camera
from caureid_plugin.data.synthetic.dataset import (
    SyntheticCameras,
    SyntheticTracks,
    person_mask,
    plan_shots,
    render_dataset,
)
from caureid_plugin.data.synthetic.render import render
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.utils import comm
from PIL import Image

TINY = dict(train_identities=3, test_identities=2, cameras=3, size=(32, 16))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A tiny dataset, rendered once; tests that change it work on a copy."""
    root = tmp_path_factory.mktemp("rendered")
    render_dataset(str(root / "SyntheticCameras"), **TINY)
    return root


@pytest.fixture
def tiny(monkeypatch):
    """The dataset class and `render_dataset` write tiny black pictures, in no time."""
    monkeypatch.setattr(module, "render_dataset", functools.partial(render_dataset, **TINY))
    monkeypatch.setattr(module, "_render", lambda *args: (np.zeros((32, 16, 3), np.uint8), None))


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}


def test_plan_has_the_promised_sizes():
    shots = plan_shots()
    assert plan_shots() == shots and plan_shots(seed=1) != shots
    assert len(set(shots)) == len(shots)
    cameras, pictures, splits = defaultdict(set), Counter(), defaultdict(set)
    for shot in shots:
        cameras[shot.identity].add(shot.camera)
        pictures[shot.identity, shot.camera] += 1
        splits[shot.split].add(shot.identity)
    assert splits["bounding_box_train"] == set(range(1, 101))
    assert splits["query"] == splits["bounding_box_test"] == set(range(101, 161))
    assert all(3 <= len(cameras[i]) <= 5 for i in range(1, 101))
    assert all(2 <= len(cameras[i]) <= 5 for i in range(101, 161))
    assert set(pictures.values()) == {2, 3, 4}
    assert set().union(*cameras.values()) == {1, 2, 3, 4, 5, 6}
    train = sum(shot.split == "bounding_box_train" for shot in shots)
    assert 1100 <= train <= 1300 and len(shots) < 2000
    # every query has a match in another camera
    queries = [shot for shot in shots if shot.split == "query"]
    gallery = [shot for shot in shots if shot.split == "bounding_box_test"]
    assert max(Counter(query.identity for query in queries).values()) == 2
    assert max(Counter((query.identity, query.camera) for query in queries).values()) == 1
    assert all(any(shot.identity == query.identity and shot.camera != query.camera
                   for shot in gallery) for query in queries)


def test_plan_with_few_cameras():
    shots = plan_shots(train_identities=4, test_identities=4, cameras=2)
    assert {shot.camera for shot in shots} == {1, 2}
    assert sum(shot.split == "query" for shot in shots) == 8


@pytest.mark.parametrize("bad, message", [
    (dict(cameras=1), "cameras=1"),
    (dict(test_identities=0), "test_identities=0"),
    (dict(train_identities=9999), "at most 9999")])
def test_bad_plans_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        plan_shots(**bad)


def test_people_are_different_but_share_colours():
    people = module._people(module.SEED, 160)
    assert len(set(people)) == 160
    assert module._people(module.SEED, 100) == people[:100]
    assert max(Counter(p.upper for p in people).values()) > 10
    pairs = Counter((p.upper, p.lower) for p in people)
    assert sum(number for number in pairs.values() if number > 1) > 80


def test_a_person_drawn_twice_is_drawn_again(monkeypatch):
    """Two seeds that give the same first person end with different people."""
    drawn = module.make_person
    first = drawn(np.random.default_rng(0))
    calls = []

    def repeating(rng):
        calls.append(rng)
        return first if len(calls) <= 2 else drawn(rng)

    monkeypatch.setattr(module, "make_person", repeating)
    module._people.cache_clear()
    people = module._people(5, 2)
    module._people.cache_clear()
    assert len(calls) == 3 and people[0] == first != people[1]


def test_layout_and_description(rendered):
    folder = rendered / "SyntheticCameras"
    assert os.listdir(rendered) == ["SyntheticCameras"]
    shots = plan_shots(train_identities=3, test_identities=2, cameras=3)
    pictures = {f"{s.split}/{s.identity:04d}_c{s.camera}s1_{s.shot:06d}_00.jpg" for s in shots}
    assert files_of(folder).keys() == {*pictures, "dataset.json"}
    assert json.loads((folder / "dataset.json").read_text()) == {
        "version": module.VERSION, "seed": module.SEED, "size": [32, 16],
        "counts": dict(Counter(shot.split for shot in shots))}
    picture = Image.open(folder / min(pictures))
    assert picture.size == (16, 32) and picture.format == "JPEG"


def test_two_renderings_are_identical_file_by_file(rendered, tmp_path):
    render_dataset(str(tmp_path / "again"), **TINY)
    assert files_of(tmp_path / "again") == files_of(rendered / "SyntheticCameras")
    smaller = dict(TINY, train_identities=1, test_identities=1)
    render_dataset(str(tmp_path / "other"), seed=1, **smaller)
    first = "bounding_box_train/0001_c1s1_000000_00.jpg"
    assert files_of(tmp_path / "other")[first] != files_of(tmp_path / "again")[first]


def test_the_dataset_renders_once_and_lists_its_pictures(tiny, tmp_path, monkeypatch):
    folder = tmp_path / "SyntheticCameras"
    folder.mkdir()  # an empty one is filled
    dataset = DATASET_REGISTRY.get("SyntheticCameras")(root=str(tmp_path))
    shots = plan_shots(train_identities=3, test_identities=2, cameras=3)
    train = sorted((str(folder / s.split / s.name), f"synthetic_{s.identity}",
                    f"synthetic_c{s.camera}") for s in shots if s.split == "bounding_box_train")
    assert dataset.train == train
    for items, split in ((dataset.query, "query"), (dataset.gallery, "bounding_box_test")):
        assert items == sorted((str(folder / split / s.name), s.identity, s.camera - 1)
                               for s in shots if s.split == split)
    assert dataset.get_num_pids(dataset.train) == 3
    # The plugin repairs the order of the toolbox's own datasets too: look at the listing itself.
    for split in module.SPLITS:
        listed = dataset.process_dir(split, is_train=False)
        assert [item[0] for item in listed] == sorted(item[0] for item in listed)

    def no_second_rendering(folder):
        raise AssertionError("rendered again")

    monkeypatch.setattr(module, "render_dataset", no_second_rendering)
    assert SyntheticCameras(root=str(tmp_path)).train == train


def test_tracks_of_the_rendered_people(rendered):
    """Each person walks through one camera after the other; a track's name tells nothing of it."""
    items = SyntheticTracks(str(rendered)).train
    plain = SyntheticCameras(str(rendered)).train
    assert [item[:3] for item in items] == plain and SyntheticTracks(str(rendered)).train == items
    walks = defaultdict(list)
    for path, identity, camera, seen in items:
        walks[identity, camera].append((int(path[-13:-7]), seen))
    assert len({shots[0][1].track for shots in walks.values()}) == len(walks) > 5
    starts = []
    for shots in walks.values():
        shots.sort()
        assert len({seen.track for _, seen in shots}) == 1
        assert np.allclose([seen.time for _, seen in shots], shots[0][1].time + np.arange(
            len(shots)))
        starts.append((shots[0][1].time, int(shots[0][1].track)))
    assert [number for _, number in sorted(starts)] == list(range(len(starts)))
    by_person = defaultdict(list)
    for (identity, _), shots in walks.items():
        by_person[identity].append((shots[0][1].time, shots[-1][1].time))
    for times in map(sorted, by_person.values()):
        assert all(one[1] < other[0] for one, other in itertools.pairwise(times))
    assert all(len(item) == 3 for item in SyntheticTracks(str(rendered)).query)


def test_person_mask_is_the_mask_of_the_rendering(rendered):
    folder = rendered / "SyntheticCameras"
    for split in module.SPLITS:
        path = folder / split / sorted(os.listdir(folder / split))[-1]
        identity, camera, shot = module.parse_name(str(path))
        picture, mask = render(module._people(module.SEED, 5)[identity - 1],
                               make_camera(camera - 1),
                               np.random.default_rng([module.SEED, identity, camera, shot]),
                               (32, 16))
        assert np.array_equal(person_mask(str(path)), mask) and mask.any() and not mask.all()
        stored = np.asarray(Image.open(path)).astype(int)
        assert np.abs(stored - picture.astype(int)).mean() < 10.0


def test_an_interrupted_rendering_leaves_nothing_and_is_redone(tiny, tmp_path, monkeypatch):
    calls, working = [], module._render

    def broken(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return working(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_render", broken)
        with pytest.raises(KeyboardInterrupt):
            SyntheticCameras(root=str(tmp_path))
    assert os.listdir(tmp_path) == []
    # A killed process cannot tidy up: its temporary folder must not matter.
    os.makedirs(tmp_path / "SyntheticCameras.tmp-killed" / "query")
    assert len(SyntheticCameras(root=str(tmp_path)).query) > 0


def test_another_process_that_was_faster_wins(rendered, tiny, tmp_path, monkeypatch):
    folder = tmp_path / "SyntheticCameras"
    fill = module._fill_folder

    def fill_while_another_finishes(*args):
        fill(*args)
        shutil.copytree(rendered / "SyntheticCameras", folder)
        (folder / "theirs").write_text("")

    monkeypatch.setattr(module, "_fill_folder", fill_while_another_finishes)
    render_dataset(str(folder), **TINY)
    assert os.listdir(tmp_path) == ["SyntheticCameras"]
    assert (folder / "theirs").exists()


def test_rendering_does_not_replace_a_foreign_folder(tiny, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    with pytest.raises(OSError):
        render_dataset(str(tmp_path / "mine"), **TINY)
    assert files_of(tmp_path) == {"mine/letter.txt": b"keep"}


def describe(text):
    return lambda folder: (folder / "dataset.json").write_text(text)


@pytest.mark.parametrize("damage, says", [
    (describe('{"version": 0}'), "version 0 .*delete the folder .*SyntheticCameras"),
    (describe("{"), "dataset.json cannot be read.*delete the folder"),
    (describe("[]"), "dataset.json cannot be read"),
    (describe("{}"), "dataset.json cannot be read"),
    (lambda folder: (folder / "dataset.json").unlink(), "no dataset.json.*delete the folder"),
    (lambda folder: (folder / "query" / "0001_c0s1_000000_00.jpg").touch(),
     "0001_c0s1_000000_00.jpg: the name must be"),
    (lambda folder: next((folder / "query").iterdir()).unlink(),
     "query holds 3 pictures.* 4; delete the folder"),
    (lambda folder: shutil.rmtree(folder / "bounding_box_train"), "train holds 0 pictures"),
], ids=["another version", "no JSON", "no dict", "no version", "no description", "a bad name",
        "a missing picture", "a missing folder"])
def test_a_folder_that_is_not_whole_is_refused(rendered, tmp_path, damage, says):
    damage(shutil.copytree(rendered / "SyntheticCameras", tmp_path / "SyntheticCameras"))
    with pytest.raises(ValueError, match=says):
        SyntheticCameras(root=str(tmp_path))


def test_other_processes_wait_and_do_not_render(tiny, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    monkeypatch.setattr(comm, "synchronize", lambda: waits.append(1))
    with pytest.raises(ValueError, match="is missing.*FASTREID_DATASETS"):
        SyntheticCameras(root=str(tmp_path))
    assert waits == [1] and os.listdir(tmp_path) == []
    # The main process renders while the others wait.
    monkeypatch.setattr(comm, "synchronize", lambda: module.render_dataset(
        str(tmp_path / "SyntheticCameras")))
    assert len(SyntheticCameras(root=str(tmp_path)).gallery) > 0


def test_a_failing_main_process_releases_the_others(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(comm, "synchronize", lambda: waits.append(1))
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        SyntheticCameras(root=str(tmp_path / "file"))
    assert waits == [1]
