"""The demo, the camera bias, the benchmark of searching, and how every benchmark starts."""

import json
import os
import sys
import types

import numpy as np
import pytest
import torch
from caureid_plugin.cli import demo
from caureid_plugin.cli.common import call
from caureid_plugin.data.synthetic.dataset import render_dataset

from benchmarks import camera_bias
from benchmarks import search as benchmark_search
from helpers import warm
from helpers.page import Page
from helpers.tiny import KEYS
from helpers.tool_output import is_drawn, table_rows


def test_the_demo_to_its_end(tmp_path, monkeypatch, capsys):
    root, commands, output = tmp_path / "datasets", [], tmp_path / "out"
    root.mkdir()
    render_dataset(str(root / "SyntheticCameras"), train_identities=8, test_identities=3)
    monkeypatch.setenv("FASTREID_DATASETS", str(root))

    def run(command, check):
        assert command[:3] == [sys.executable, "-m", "caureid_plugin"]
        done = warm.run(command[1:], tmp_path)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        commands.append(command[3])
        return done

    output.mkdir()
    (output / "metrics.json").write_text("of an earlier demo")
    monkeypatch.setattr(demo, "subprocess", types.SimpleNamespace(run=run))
    assert not call(demo.command, [
        "--output", output, "--seed", "3", *KEYS, "MODEL.HEADS.CAMSEP.NUM_CAMERAS", "6",
        "DATASETS.NAMES", "('SyntheticCameras',)", "DATASETS.TESTS", "('SyntheticCameras',)"])
    assert commands == ["train", "report"]
    assert next(output.glob("metrics-until-*.json")).read_text() == "of an earlier demo"

    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    for start, end, form in (
            ("start/mAP", "mAP", "mAP (%) {:.1f} {:.1f}"),
            ("start/Rank-1", "Rank-1", "Rank-1 (%) {:.1f} {:.1f}"),
            ("labels/clusters", "labels/clusters", "clusters {:.0f} {:.0f}"),
            ("labels/outliers", "labels/outliers", "outliers {:.0f} {:.0f}")):
        first = next(row[start] for row in rows if start in row)
        last = [row[end] for row in rows if end in row][-1]
        assert form.format(first, last).split() in lines
    assert next(float(line[1]) for line in lines if line[:1] == ["seconds"]) >= 0
    assert lines[-1][-1] == (output / "report.html").as_uri()

    page = Page(output / "report.html")
    pictures = len(list((root / "SyntheticCameras" / "bounding_box_train").glob("*.jpg")))
    assert (f"SyntheticCameras: {pictures} images of 6 cameras. Finished: 2 of 2 epochs."
            in page.text)
    assert page.source.count("<svg") >= 4 and page.source.count("data:image/") > 10
    assert is_drawn(output / "people.png")
    assert "SEED: 3" in (output / "config.yaml").read_text()


def test_a_demo_whose_training_fails_ends_with_its_status(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "subprocess", types.SimpleNamespace(
        run=lambda command, check: types.SimpleNamespace(returncode=3)))
    assert call(demo.command, ["--output", tmp_path]) == 3


def test_camera_accuracy_by_hand():
    """The probe misses the 4 of 80 images that look like another camera, and nothing else."""
    rng = np.random.default_rng(0)
    camids = rng.permutation(np.repeat([0, 1, 2], [20, 20, 40]))
    features = 10 * np.eye(3)[camids] + 0.01 * rng.normal(size=(80, 3))
    assert camera_bias.camera_accuracy(torch.from_numpy(features), camids) == (1.0, 0.5)
    strange = np.flatnonzero(camids == 1)[-4:]  # one of five blocks
    features[strange] = features[np.flatnonzero(camids == 0)[:4]]
    found, largest = camera_bias.camera_accuracy(torch.from_numpy(features), camids)
    assert found == pytest.approx(76 / 80) and largest == 0.5
    noise = torch.from_numpy(rng.normal(size=(80, 3)))
    assert camera_bias.camera_accuracy(noise, camids)[0] < 0.65
    for few in (np.zeros(80, int), np.repeat([0, 1], [76, 4])):
        with pytest.raises(ValueError, match="two cameras of 5 images"):
            camera_bias.camera_accuracy(noise, few)


def test_the_camera_specific_part_is_the_masked_map():
    model = torch.nn.Module()
    model.device, model.backbone = torch.device("cpu"), torch.nn.Conv2d(3, 4, 2)
    model.preprocess_image = lambda batch: batch["images"] / 255
    model.heads = torch.nn.Module()
    model.heads.mask = torch.sigmoid
    images = torch.randint(256, (2, 3, 6, 4), generator=torch.Generator().manual_seed(1)).float()
    with torch.no_grad():
        found = camera_bias.CameraSpecific(model)({"images": images, "camids": None})
        maps = model.backbone(images / 255).tolist()
    for image in range(2):
        for channel in range(4):
            values = [v for row in maps[image][channel] for v in row]
            expected = np.mean([v / (1 + np.exp(-v)) for v in values])
            assert found[image, channel].item() == pytest.approx(expected, rel=1e-4)


def test_the_benchmark_of_searching(capsys, monkeypatch):
    agreed = []
    real = benchmark_search.exact
    monkeypatch.setattr(benchmark_search, "exact", lambda features, query: agreed.append(
        (features, query, real(features, query))) or agreed[-1][2])
    benchmark_search.main(["--images", "500", "--queries", "3", "--dims", "16", "32"])
    heading, _, *lines = table_rows(capsys.readouterr().out)
    assert [line[0] for line in lines] == ["16", "32"]
    for line in lines:
        row = dict(zip(heading, line, strict=True))
        for way in ("all", "but one camera", "one camera", "numpy"):
            median, most = map(float, row[way].split(" / "))
            assert 0 <= median <= most
        assert float(row["numpy / index"]) > 0
        assert float(row["top 10 as exact"].removesuffix(" %")) > 95
    for features, query, best in agreed:  # the plain way is the plain way
        assert best.tolist() == np.argsort(-(features @ query))[:10].tolist()

    monkeypatch.setattr(benchmark_search.Index, "search", lambda *args, **options: [[]])
    benchmark_search.main(["--images", "500", "--queries", "2", "--dims", "16"])
    assert table_rows(capsys.readouterr().out)[-1][-1] == "0.00 %"  # a wrong index


SCRIPTS = [path.name for path in (warm.REPOSITORY / "tools" / "benchmarks").glob("*.py")
           if path.read_text().startswith("#!")]


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_benchmark_starts_from_any_folder(name, tmp_path):
    """Each finds the modules beside it."""
    script = warm.REPOSITORY / "tools" / "benchmarks" / name
    done = warm.run([script, "--help"], tmp_path)
    assert done.returncode == 0 and f"usage: {name} " in done.stdout, done.stderr
    assert os.access(script, os.X_OK)
