"""caureid threshold measures what comparing every pair gives, and keeps it for load_run."""

import functools
import re

import numpy as np
import pytest
import torch
from caureid_plugin import load_run
from caureid_plugin.cli.common import call
from caureid_plugin.cli.threshold import command
from caureid_plugin.search import pairs as pairs_module
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset
from PIL import Image

from helpers.tool_output import refusal


@pytest.fixture
def run(small_run, tiny_market):
    """A run of the 48 training images, whose clusters are five lots of eight of them."""
    folder = small_run()
    content = torch.load(folder / "model_final.pth", weights_only=True)
    content["memory_bank"] = {
        "features": content["memory_bank"]["features"][:48],
        "labels": torch.arange(48) // 8 - 1,  # the first eight are outliers
        "camids": torch.tensor(images(tiny_market, ["bounding_box_train"])[2]) - 1}
    torch.save(content, folder / "model_final.pth")
    return folder


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures take the most time, and one test looks at them."""
    monkeypatch.setattr(pairs_module, "draw", lambda *_: b"a picture")


def pairs(features, labels, cameras):
    same, different = [], []
    for i in range(len(labels)):
        for j in range(i):
            if cameras[i] != cameras[j]:
                value = float(features[i] @ features[j])
                (same if labels[i] == labels[j] else different).append(value)
    return np.sort(same), np.sort(different)


def images(market, folders):
    found = [path for folder in folders
             for path in sorted((market / "Market-1501-v15.09.15" / folder).glob("*.jpg"))]
    names = [re.match(r"(-?\d+)_c(\d)", path.name) for path in found]
    return found, [int(name[1]) for name in names], [int(name[2]) for name in names]


def test_what_is_measured_is_kept(run, tiny_market, capsys):
    call(command, [run])
    loaded = load_run(run)
    paths, _, cameras = images(tiny_market, ["bounding_box_train"])
    same, different = pairs(loaded.embed(paths[8:]), np.arange(40) // 8, cameras[8:])
    found = loaded.statistics
    assert found.source == "training images" and found.across
    np.testing.assert_allclose(found.same, same, atol=0.00051)
    np.testing.assert_allclose(found.different, different, atol=0.00051)
    output = capsys.readouterr().out
    suggested = found.threshold()
    rates = " +".join(pairs_module.percent(rate, count) for rate, count in zip(
        suggested[1:], (len(different), len(same)), strict=True))
    assert re.search(rf"suggested +{suggested.value:.3f} +expected +{rates} +\d+ %, \d+ %\n",
                     output)
    # 0.1 % cannot be told from so few pairs, and nothing is said of it
    assert len(different) < 1000 and "\n1 % " in output and "\n0.1 % " not in output
    assert f"no false match rate below {100 / len(different):.2g} %" in output
    assert f"{len(same)} pairs of one cluster" in output and "true" not in output
    with Image.open(run / "threshold.png") as picture:
        assert picture.size[0] > 600 and len(picture.convert("RGB").getcolors(10 ** 6)) > 20


def test_rates_by_identity(run, undrawn, tiny_market, tmp_path, capsys):
    picture = tmp_path / "both.png"
    call(command, [run, "--true-labels", "--picture", picture])
    output, loaded = capsys.readouterr().out, load_run(run)
    for name, folders in (("training", ["bounding_box_train"]),
                          ("test", ["query", "bounding_box_test"])):
        paths, people, cameras = (np.array(part) for part in images(tiny_market, folders))
        known = people > 0
        same, different = pairs(loaded.embed(paths[known].tolist()), people[known], cameras[known])
        value = loaded.statistics.equal_errors().value
        line = re.search(rf"Market1501, {name} images +(\S+) % +(\S+) %", output)
        for text, share in ((line[1], np.mean(np.round(different, 3) > value - 0.0005)),
                            (line[2], np.mean(np.round(same, 3) < value - 0.0005))):
            assert float(text) == pytest.approx(100 * share, abs=0.2)
    assert picture.is_file() and not (run / "threshold.png").exists()
    # a diagnostic: what is kept is what is kept without it
    with_labels = (run / "pair_statistics.json").read_bytes()
    call(command, [run, "--picture", picture])
    assert (run / "pair_statistics.json").read_bytes() == with_labels


@pytest.mark.parametrize("junk, known", [([], [0, -1, 0, 5]), ([0, -1], [5])])
def test_identities_that_are_no_ones_are_the_datasets_own(cfg, monkeypatch, junk, known):
    """Own images count people from 0, which Market-1501 gives to its distractors."""
    class Own(ImageDataset):
        _junk_pids = junk

        def __init__(self, root="", **kwargs):
            super().__init__([], [("a", 0, 0), ("b", -1, 0)], [("c", 0, 1), ("d", 5, 1)], **kwargs)

    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "Own", Own)
    cfg.merge_from_list(["DATASETS.NAMES", (), "DATASETS.TESTS", ("Own",)])
    (name, items), = pairs_module.labelled_sets(cfg).items()
    assert name == "Own, test images" and [item[1] for item in items] == known


def right_by_hand(features, people, cameras, value, sizes):
    """Shares of what is marked that are right, from other cameras and from the query's own.

    ``sizes``: how many of an index's images the two are, on average.
    """
    shares = []
    for own, images in zip((False, True), sizes, strict=True):
        marked = {True: 0, False: 0}
        pairs = {True: 0, False: 0}
        for i in range(len(people)):
            for j in range(len(people)):
                if i != j and (cameras[i] == cameras[j]) == own:
                    same = bool(people[i] == people[j])
                    pairs[same] += 1
                    marked[same] += round(float(features[i] @ features[j]), 3) >= value - 0.0005
        right = marked[True] / len(people)
        wrong = images * marked[False] / pairs[False]
        shares.append(f"{100 * right / (right + wrong):.0f} %")
    return ", ".join(shares)


def test_how_much_is_right_by_clusters_and_by_identity(run, undrawn, tiny_market, capsys):
    """Of an index of 480 images, 240 of each camera."""
    call(command, [run, "--truth", "--index-size", "480"])
    output, loaded = capsys.readouterr().out, load_run(run)
    value = loaded.statistics.equal_errors().value
    paths, people, cameras = images(tiny_market, ["bounding_box_train"])
    features = loaded.embed(paths)
    assert np.bincount(cameras).tolist() == [0, 24, 24]
    for start, rows, labels in (("expected", slice(8, None), np.arange(40) // 8),
                                ("Market1501, training images", slice(None), people)):
        shares = right_by_hand(features[rows], labels, cameras[rows], value, (240, 240))
        assert re.search(rf"{start} +\S+ % +\S+ % +{shares}\n", output), (start, shares)
    assert "in an index of 480 images: first results of other cameras than the query's" in output


def test_a_bad_verdict_is_said(run, undrawn, capsys):
    (run / "metrics.json").write_text('{"iteration": 0, "labels/silhouette": 0.1}\n')
    call(command, [run])
    output = capsys.readouterr().out
    assert ("A search says: Same or different is not shown, because training went wrong (clusters "
            "lie within each other") in output and "--despite-verdict shows it." in output
    assert load_run(run).statistics.source == "training images"  # to be asked for all the same


def test_a_verdict_that_is_not_known_is_said(run, undrawn, capsys):
    (run / "metrics.json").unlink(missing_ok=True)
    call(command, [run])
    assert "Whether training went well is not known: metrics.json is" in capsys.readouterr().out


def test_a_part_of_the_images(run, undrawn):
    def measured(seed):
        call(command, [run, "--images", "16", "--seed", seed])
        return (run / "pair_statistics.json").read_bytes()

    first = measured(3)
    found = load_run(run).statistics
    # of two clusters of eight images each
    assert 20 < len(found.same) < 57 and 20 < len(found.different) < 65
    assert measured(3) == first
    assert {measured(4), measured(5)} - {first}  # of ten pairs of clusters


def test_each_checkpoint_has_its_own(run, undrawn):
    content = torch.load(run / "model_final.pth", weights_only=True)
    content["model"]["heads.bottleneck.0.running_mean"] += 0.5
    torch.save(content, run / "model_0000.pth")
    call(command, [run])
    first = load_run(run).statistics
    call(command, [run, "--checkpoint", run / "model_0000.pth"])
    other = load_run(run / "model_0000.pth").statistics
    assert load_run(run).statistics.to_json() == first.to_json() != other.to_json()
    assert first.source == other.source == "training images"


def test_mistakes(run, undrawn, tiny_market, tmp_path, capsys):
    training = tiny_market / "Market-1501-v15.09.15" / "bounding_box_train"
    for words, message in (
            ([run, "--images", "0"], "'--images': 0 is not in the range"),
            ([run, "--picture", "x.gif"], "x.gif must end in .png"),
            ([run, "--index-size", "0"], "'--index-size': 0 is not in the range"),
            ([run, "SEED"], "must come in pairs, got SEED"),
            ([tmp_path / "absent"], "absent' does not exist"),
            ([run, "--checkpoint", "absent.pth"], "absent.pth is not a file, neither here"),
            ([run, "--images", "1"], "pairs of images in different clusters, and a threshold"),
            ([run, "--true-labels", "DATASETS.TESTS", "()", "DATASETS.NAMES", "('CameraFolder',)",
              "CAMERA_FOLDER.ROOT", training, "CAMERA_FOLDER.CAMERA", "pattern",
              "CAMERA_FOLDER.PATTERN", "_c(\\d)"], "--true-labels: neither ")):
        assert message in refusal(functools.partial(call, command), words, capsys)
    next(training.glob("*.jpg")).unlink()
    message = refusal(functools.partial(call, command), [run], capsys)
    assert "data set differs from the run's" in message
    assert not (run / "pair_statistics.json").exists()
