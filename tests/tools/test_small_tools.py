"""The small tools: the demo, the camera bias, the benchmark of searching."""

import json
import re
import types

import numpy as np
import pytest
import torch
from caureid_plugin.data.synthetic_cameras import render_dataset
from PIL import Image

import benchmark_search
import camera_bias
import demo
from helpers import warm
from helpers.tiny import KEYS


@pytest.fixture
def few_people(tmp_path, monkeypatch):
    """SyntheticCameras with 8 people to train with and 3 to test with."""
    root = tmp_path / "datasets"
    root.mkdir()
    render_dataset(str(root / "SyntheticCameras"), train_identities=8, test_identities=3)
    monkeypatch.setenv("FASTREID_DATASETS", str(root))
    return root


def test_the_demo_to_its_end(few_people, tmp_path, monkeypatch, capsys):
    scripts, output = [], tmp_path / "out"

    def run(command, check):
        done = warm.run(command[1:], tmp_path)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        scripts.append(command[1].rpartition("/")[2])
        return done

    output.mkdir()
    (output / "metrics.json").write_text("of an earlier demo")
    monkeypatch.setattr(demo, "subprocess", types.SimpleNamespace(run=run))
    monkeypatch.setattr("sys.argv", [
        "demo.py", "--output", str(output), "--seed", "3", *KEYS, "MODEL.HEADS.CAMSEP.NUM_CAMERAS",
        "6", "DATASETS.NAMES", "('SyntheticCameras',)", "DATASETS.TESTS", "('SyntheticCameras',)"])
    demo.main()
    assert scripts == ["train_net.py", "show_synthetic.py", "report.py"]
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

    page = (output / "report.html").read_text()
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    pictures = len(list((few_people / "SyntheticCameras" / "bounding_box_train").glob("*.jpg")))
    assert f"SyntheticCameras: {pictures} images of 6 cameras. Finished: 2 of 2 epochs." in text
    silhouette = [row["labels/silhouette"] for row in rows if "labels/silhouette" in row][-1]
    assert f" {silhouette:.2f} silhouette " in text
    assert page.count("<svg") >= 4 and page.count("data:image/") > 10
    assert np.asarray(Image.open(output / "people.png")).std() > 5
    assert "SEED: 3" in (output / "config.yaml").read_text()


def test_a_demo_whose_training_fails_ends_with_its_status(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "subprocess", types.SimpleNamespace(
        run=lambda command, check: types.SimpleNamespace(returncode=3)))
    monkeypatch.setattr("sys.argv", ["demo.py", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match="3"):
        demo.main()


@pytest.mark.parametrize("seed", range(2))
def test_camera_shares_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(40, 6)).astype(np.float32)
    camids = rng.integers(3, size=40)
    features[:, 0] += camids
    shared = 0
    for i in range(40):
        distance = ((features - features[i]) ** 2).sum(axis=1)
        distance[i] = np.inf
        shared += (camids[np.argsort(distance)[:5]] == camids[i]).sum()
    chance = np.mean([camids[i] == camids[j] for i in range(40) for j in range(40) if i != j])
    measured = camera_bias.camera_shares(torch.from_numpy(features), camids, 5)
    assert measured == pytest.approx((shared / 200, chance))


def test_the_benchmark_of_searching(capsys, monkeypatch):
    agreed = []
    real = benchmark_search.exact
    monkeypatch.setattr(benchmark_search, "exact", lambda features, query: agreed.append(
        (features, query, real(features, query))) or agreed[-1][2])
    benchmark_search.main(["--images", "500", "--queries", "3", "--dims", "16", "32"])
    heading, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")]
                          for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    assert [line[0] for line in lines] == ["16", "32"] and heading[5:9] == [
        "all", "but one camera", "one camera", "numpy"]
    for line in lines:
        row = dict(zip(heading, line, strict=True))
        for way in heading[5:9]:
            median, most = map(float, row[way].split(" / "))
            assert 0 <= median <= most
        assert float(row["numpy / index"]) > 0
        assert float(row["top 10 as exact"].removesuffix(" %")) > 95
    for features, query, best in agreed:  # the plain way is the plain way
        assert best.tolist() == np.argsort(-(features @ query))[:10].tolist()


def test_the_benchmark_of_searching_tells_a_wrong_index(capsys, monkeypatch):
    monkeypatch.setattr(benchmark_search.Index, "search", lambda *args, **options: [[]])
    benchmark_search.main(["--images", "500", "--queries", "2", "--dims", "16"])
    assert capsys.readouterr().out.split("|")[-2].strip() == "0.00 %"


def test_simulated_crops_are_of_people():
    crops, queries = benchmark_search.simulate(200, 5, 16, seed=1)
    assert crops.shape == (200, 16) and queries.shape == (5, 16)
    assert np.linalg.norm(np.concatenate([crops, queries]), axis=1) == pytest.approx(1, abs=1e-5)
    # of ten people, each seen twenty times: many are near, most are not
    near = (crops @ crops.T > 0.45).sum(axis=1)
    assert 12 < np.median(near) < 40
