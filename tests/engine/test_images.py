"""A run does not go on with other images than those its memory bank was made of."""

import os
import shutil

import numpy as np
import pytest
from caureid_plugin.clustering import Tracks
from caureid_plugin.engine import images_digest
from caureid_plugin.engine.images import TrainingImages
from fastreid.data import build as data_build


def test_the_digest_is_of_names_in_their_order_alone(monkeypatch):
    paths = ["/data/a/x.jpg", "/data/a/y.jpg", "/data/b/x.jpg"]
    moved = [path.replace("/data", "/elsewhere/deep") for path in paths]
    assert images_digest(paths) == images_digest(moved)
    monkeypatch.chdir("/")
    assert images_digest([path[1:] for path in paths]) == images_digest(paths)
    different = {images_digest(paths), images_digest(paths[::-1]), images_digest(paths[:2]),
                 images_digest([*paths[:2], "/data/b/z.jpg"]), images_digest([]),
                 images_digest(["/data/a/x.jpg", "/data/a/y.jpg", "/data/c/x.jpg"]),
                 images_digest(["/data/a/x.jpg", "/data/a/\udcff.jpg", "/data/b/x.jpg"])}
    assert len(different) == 7
    assert images_digest(["/a/x.jpg"]) == images_digest(["/b/c/x.jpg"])
    assert images_digest(["/a/x.jpg"]) != images_digest(["/a/y.jpg"])


def test_other_tracks_are_refused():
    def kept(tracks):
        return TrainingImages(["/a/x.jpg", "/a/y.jpg"], ["Own"], tracks)

    camids = np.zeros(2, dtype=np.int64)
    one = Tracks.of(camids, ["a", "a"], [1.0, 2.0])
    others = [None, Tracks.of(camids, ["a", "b"], [1.0, 2.0]), Tracks.of(camids, ["a", "a"])]
    kept(Tracks.of(camids, ["z", "z"], [1.0, 2.0])).load_state_dict(kept(one).state_dict())
    kept(None).load_state_dict({"digest": kept(None).state_dict()["digest"]})  # of version 0.3
    for other in others:
        for state, now in ((one, other), (other, one)):
            with pytest.raises(ValueError, match=r"tracks or times.*Own.*CAMERA_FOLDER.TRACK"):
                kept(now).load_state_dict(kept(state).state_dict())


@pytest.fixture
def stopped(start, tmp_path):
    """Trains one epoch of two, and gives a function that goes on."""
    start("SOLVER.MAX_EPOCH", 1).train()

    def go_on():
        trainer = start("SOLVER.MAX_EPOCH", 2)
        trainer.resume_or_load(resume=True)
        trainer.train()

    return go_on


def test_as_many_but_other_images_are_refused(stopped, tiny_market):
    """The first two go, two others come behind: as many, of the same cameras, other rows."""
    folder = tiny_market / "Market-1501-v15.09.15" / "bounding_box_train"
    first, second = sorted(folder.iterdir())[:2]
    assert first.name.startswith("0001_c1s1_000000") and "_000001_" in second.name
    for number, path in enumerate((first, second)):
        path.rename(folder / f"0001_c1s1_00001{number}_00.jpg")
    with pytest.raises(ValueError, match="are not the checkpoint's") as error:
        stopped()
    assert "Market1501" in str(error.value) and "OUTPUT_DIR" in str(error.value)


def test_images_may_move(stopped, tiny_market, monkeypatch):
    moved = shutil.move(tiny_market, os.path.join(os.path.dirname(tiny_market), "elsewhere"))
    monkeypatch.setattr(data_build, "_root", moved)
    stopped()
