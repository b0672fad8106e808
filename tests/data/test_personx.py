"""PersonX: the layout of Market-1501 with camera numbers of more than one digit."""

from collections import Counter

import pytest
from caureid_plugin.data import PersonX
from fastreid.data.datasets import DATASET_REGISTRY

CAMERAS = (3, 4, 8, 10, 11, 12)


def make(folder, cameras=CAMERAS):
    """Two identities to train with, a query and two gallery images for each camera, all empty."""
    counts = {"bounding_box_train": (1, 2), "query": (3,), "bounding_box_test": (3, 4, -1)}
    for split, identities in counts.items():
        (folder / split).mkdir(parents=True)
        for identity in identities:
            for camera in cameras:
                name = f"{identity:04d}" if identity > 0 else "-1"
                (folder / split / f"{name}_c{camera}s1_000000_00.jpg").touch()
    return folder


@pytest.mark.parametrize("name", ["PersonX", "personx/subset1"])
def test_identities_and_cameras_of_both_layouts(tmp_path, name):
    make(tmp_path / name)
    data = DATASET_REGISTRY.get("PersonX")(root=str(tmp_path))
    assert Counter(camera for _, _, camera in data.train) == {f"personx_{c}": 2 for c in CAMERAS}
    assert Counter(who for _, who, _ in data.train) == {"personx_1": 6, "personx_2": 6}
    assert [item[1:] for item in data.query] == [(3, 10), (3, 11), (3, 12), (3, 3), (3, 4), (3, 8)]
    # identity -1 is left out
    assert sorted({item[1:] for item in data.gallery}) == [(i, c) for i in (3, 4) for c in CAMERAS]
    for path, who, camera in data.train:
        number = camera.split("_")[1]
        file = f"000{who[-1]}_c{number}s1_000000_00.jpg"
        assert path == str(tmp_path / name / "bounding_box_train" / file)


@pytest.mark.parametrize("missing", [None, "query", "bounding_box_train", "bounding_box_test"])
def test_a_missing_folder_is_named_with_the_remedy(tmp_path, missing):
    folder = tmp_path / "PersonX"
    if missing:
        make(folder)
        for file in (folder / missing).iterdir():
            file.unlink()
        (folder / missing).rmdir()
    named = folder / missing if missing else folder
    with pytest.raises(FileNotFoundError, match=f'PersonX: "{named}" is not found.*FASTREID_DATA'):
        PersonX(root=str(tmp_path))


def test_an_empty_folder_is_an_error(tmp_path):
    folder = make(tmp_path / "PersonX")
    for file in (folder / "bounding_box_train").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="PersonX found no image for its subset 'train'.*PersonX"):
        PersonX(root=str(tmp_path)).train


def test_an_image_without_a_camera_is_named(tmp_path):
    folder = make(tmp_path / "PersonX")
    (folder / "query" / "0003_000000.jpg").touch()
    data = PersonX(root=str(tmp_path))
    assert len(data.train) == 12
    with pytest.raises(ValueError, match="0003_000000.jpg carries no identity and camera"):
        data.query
