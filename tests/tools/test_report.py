"""The report of a run: what it shows, recomputed plainly, and what it says of bad input."""

import base64
import html.parser
import io
import itertools
import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import caureid_plugin
import numpy as np
import pytest
import torch
from caureid_plugin.clustering import indicators
from caureid_plugin.data import training_images
from caureid_plugin.engine import images_digest, load_config
from fastreid.data.datasets.market1501 import Market1501
from fastreid.evaluation.rank import evaluate_rank
from fastreid.modeling import build_model
from fastreid.utils.env import seed_all_rng
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))  # as for a script there

import report
import report_clusters
import report_data
import report_draw
import report_network
import report_ranks
from report_data import Missing, ReportError

HEADINGS = ["Curves", "Clusters", "Outliers", "Where the network looks", "Map of the embeddings",
            "Rank lists", "How this run was made"]
KEYS = """
MODEL.DEVICE cpu MODEL.BACKBONE.NAME build_plain_backbone MODEL.BACKBONE.PRETRAIN False
MODEL.BACKBONE.FEAT_DIM 16 MODEL.BACKBONE.LAST_STRIDE 2 MODEL.HEADS.CAMSEP.REDUCTION 4
MODEL.HEADS.CAMSEP.NUM_CAMERAS 2 DATASETS.NAMES ('Market1501',) DATASETS.TESTS ('Market1501',)
DATALOADER.NUM_WORKERS 0 INPUT.SIZE_TRAIN [32,16] INPUT.SIZE_TEST [32,16] SOLVER.MAX_EPOCH 2
SOLVER.IMS_PER_BATCH 16 SOLVER.ITERS_PER_EPOCH 3 TEST.IMS_PER_BATCH 16 SEED 7
""".split()
ROWS = [
    {"iteration": 0, "labels/clusters": 5, "labels/outliers": 9, "labels/cross_camera": 0.5,
     "labels/outlier_share": 0.1875, "labels/largest_share": 0.25, "labels/silhouette": 0.25,
     "start/mAP": 20.0, "start/Rank-1": 40.0},
    {"iteration": 2, "loss_infonce": 3.0, "loss_cacc": 2.0, "loss_camsep": 0.5},
    {"iteration": 3, "labels/clusters": 8, "labels/outliers": 3, "labels/cross_camera": 1.0,
     "labels/outlier_share": 0.0625, "labels/largest_share": 0.125, "labels/silhouette": 0.5,
     "labels/stability": 0.75},
    {"iteration": 5, "loss_infonce": 1.0, "loss_cacc": 1.5, "loss_camsep": 0.25, "mAP": 55.0,
     "Rank-1": 70.0},
]
# 48 images: three clusters, one of a single image, which is an outlier, and six other outliers
LABELS = np.array([0] * 12 + [1] * 15 + [2] * 2 + [3] + [-1] * 6 + [0] * 12)


def configure(*options):
    cfg = load_config("Synthetic/caureid.yml", [*KEYS, *options])
    return cfg


def write_run(folder, cfg, labels=LABELS, **changes):
    """A run folder as FastReID and the plugin leave it, of a network that was not trained."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(cfg.dump())
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    torch.manual_seed(3)
    images = report_data.UnlabelledImages(training_images(cfg), None)
    features = torch.randn(len(images), 16, generator=torch.Generator().manual_seed(5))
    features[torch.from_numpy(labels) == 1] += 2.0
    content = {
        "model": build_model(cfg).state_dict(), "epoch": 1,
        "run_state": {"steps_done": 0, "iters_per_epoch": 3},
        "memory_bank": {"features": torch.nn.functional.normalize(features, dim=1),
                        "labels": torch.from_numpy(labels),
                        "camids": torch.from_numpy(images.camids)}, **changes}
    torch.save({key: value for key, value in content.items() if value is not None},
               folder / "model_final.pth")
    (folder / "last_checkpoint").write_text("model_final.pth")
    return folder


@pytest.fixture
def run_folder(tiny_market, tmp_path):
    return write_run(tmp_path / "my run", configure())


@pytest.fixture
def run(run_folder):
    return report_data.read_run(run_folder, None, [])


class Page(html.parser.HTMLParser):
    """Collects what a page holds."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.headings, self.sources = [], "", [], path.read_text("utf-8")
        self.feed(self.sources)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data + "\n"
        if self.tags and self.tags[-1][0] == "h2" and data.strip():
            self.headings.append(data.strip())

    def attributes(self, name):
        return [attrs[name] for _, attrs in self.tags if name in attrs]


# ------------------------------------------------------------------------------- the page ----


def test_the_page_holds_every_section_and_no_other_file(run_folder, capsys):
    report.main([str(run_folder), "--images", "20"])
    page = Page(run_folder / "report.html")
    assert [text for text in page.headings if text in HEADINGS] == HEADINGS
    assert "points of one cluster gather, whichever camera they are from." in page.text
    assert "without “market1501_”, with which all begin" in page.text
    assert "my run" in page.text and "48 images of 2 cameras" in page.text
    assert "Finished: 2 of 2 epochs" in page.text
    assert page.attributes("src") and not page.attributes("onload")
    for source in page.attributes("src"):
        kind, code = source.split(",")
        assert kind in ("data:image/jpeg;base64", "data:image/png;base64")
        picture = Image.open(io.BytesIO(base64.b64decode(code)))
        picture.load()
        assert picture.height <= 128 or kind.startswith("data:image/png") or picture.height == 192
    inside = page.attributes("href") + page.attributes("xlink:href")
    assert inside and all(link.startswith("#") for link in inside)
    names = page.attributes("id")
    assert len(names) == len(set(names)) and {link[1:] for link in inside} <= set(names)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert "@import" not in page.sources and set(re.findall(r"url\((.)", page.sources)) <= {"#"}
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(rf"{re.escape(str(run_folder))}/report\.html: \d\.\d MiB", last)
    assert (run_folder / "report.html").stat().st_size < 8e6


def test_a_second_report_is_the_same_bit_for_bit(run_folder, tmp_path):
    for name in ("one.html", "two.html"):
        report.main([str(run_folder), "--images", "20", "--output", str(tmp_path / name)])
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_no_identity_of_a_training_image_matters(run_folder, tmp_path, monkeypatch):
    report.main([str(run_folder), "--images", "20", "--output", str(tmp_path / "one.html")])
    listed = Market1501.process_dir

    def without(self, folder, is_train=True):
        return [(path, "same" if is_train else pid, camera)
                for path, pid, camera in listed(self, folder, is_train)]

    monkeypatch.setattr(Market1501, "process_dir", without)
    report.main([str(run_folder), "--images", "20", "--output", str(tmp_path / "two.html")])
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_names_that_hold_html_are_text(run_folder, tiny_market):
    first = sorted((tiny_market / "Market-1501-v15.09.15" / "bounding_box_train").iterdir())[0]
    hostile = first.name.replace("00.jpg", "<img src=x onerror=alert(1)>&\"'.jpg")
    first.rename(first.with_name(hostile))
    report.main([str(run_folder), "--images", "8", "--seed", "3"])
    page = Page(run_folder / "report.html")
    assert hostile in page.attributes("alt") and "onerror=alert(1)>" not in page.sources
    assert not page.attributes("onerror")


def test_the_verdict_is_asked_with_the_indicators_and_shown(run_folder, monkeypatch):
    asked = []

    def judge(indicators, *, num_cameras):
        asked.append(indicators)
        assert num_cameras == 2
        finding = SimpleNamespace(name="silhouette", value=0.5, level="mixed",
                                  sentence="Half way.")
        return SimpleNamespace(level="bad", summary="It <fell> apart.", advice=["Lower A.B."],
                               findings=[finding])

    monkeypatch.setattr(report, "judge", judge)
    report.main([str(run_folder), "--images", "8"])
    assert asked == [{"outlier_share": [0.1875, 0.0625], "largest_share": [0.25, 0.125],
                      "cross_camera": [0.5, 1.0], "silhouette": [0.25, 0.5], "stability": [0.75]}]
    page = Page(run_folder / "report.html")
    for text in ("It <fell> apart.", "Lower A.B.", "Half way.", "Verdict: bad"):
        assert text in page.text
    assert "verdict bad" in page.attributes("class")


# -------------------------------------------------------------------------------- reading ----


def test_a_run_as_it_was_written(run, run_folder):
    assert (run.steps, run.epoch_steps, run.epochs, run.is_finished) == (6, 3, 2.0, True)
    assert run.names == ["0", "1"] and run.prefix == "market1501_"
    for path, camid in zip(run.paths, run.camids, strict=True):
        assert f"_c{camid + 1}s" in path
    assert run.labels.tolist() == [0] * 12 + [1] * 15 + [2] * 2 + [-1] * 7 + [0] * 12
    assert run.checkpoint == run_folder / "model_final.pth" and run.rows == ROWS


def test_a_run_that_goes_on(run_folder, tiny_market):
    write_run(run_folder, configure(), epoch=0, run_state={"steps_done": 1, "iters_per_epoch": 3})
    (run_folder / "metrics.json").write_text(json.dumps(ROWS[0]) + '\n{"iterat')
    report.main([str(run_folder), "--images", "8"])
    text = Page(run_folder / "report.html").text
    assert "Not finished: the checkpoint is after 1.33 of 2 epochs" in text
    assert "Losses: " in text  # among what is missing


@pytest.mark.parametrize("labels, expected", [
    ([0, 0, 1, 2, 2], [0, 0, -1, 1, 1]), ([-1, -1], [-1, -1]), ([0, 1, 2], [-1, -1, -1]),
    ([3, -1, 3, 0, 0, 1], [1, -1, 1, 0, 0, -1])])
def test_clusters_of_one_image_are_outliers(labels, expected):
    assert report_data.without_singletons(np.array(labels)).tolist() == expected


def test_rows_of_a_run_that_was_resumed(tmp_path):
    path = tmp_path / "metrics.json"
    rows = [{"iteration": 0, "a": 1}, {"iteration": 4, "a": 2}, {"iteration": 9, "a": 3},
            {"iteration": 4, "b": 5}, {"iteration": 6, "a": float("nan")},
            {"iteration": 8, "a": 7}, {"iteration": 8, "a": 8}]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    found, why = report_data.read_rows(path)
    assert why == "" and report_data.column(found, "a") == [(0, 1), (4, 2), (8, 8)]
    assert report_data.column(found, "b") == [(4, 5)]


@pytest.mark.parametrize("text, why", [
    ('{"iteration": 0}\nnonsense\n{"iteration": 1}\n', "damaged, its line 2"),
    ('[1]\n', "damaged, its line 1"), ('{"iteration": 0}\n{"iteration": "1"}\n', "its line 2"),
    ('{"iteration": null}\n', "damaged, its line 1"), ("", "holds no figures yet"),
    ('{"iteration": 0', "holds no figures yet"), (None, "is missing")])
def test_figures_that_cannot_be_read(run_folder, text, why):
    (run_folder / "metrics.json").unlink()
    if text is not None:
        (run_folder / "metrics.json").write_text(text)
    assert why in report_data.read_rows(run_folder / "metrics.json")[1]
    report.main([str(run_folder), "--images", "8"])
    assert why in Page(run_folder / "report.html").text


def test_the_command_of_the_log(tmp_path):
    log = tmp_path / "log.txt"
    assert report_data.command(log) == ""
    line = ("[1] fastreid INFO: Command line arguments: Namespace(config_file='a b.yml', "
            "resume={}, eval_only={}, num_gpus=2, opts=['SEED', '{}'])\n")
    log.write_text(line.format(False, False, 1) + line.format(True, False, 2)
                   + line.format(False, True, 3))
    assert report_data.command(log) == (
        "tools/train_net.py --config-file a b.yml --resume --num-gpus 2 SEED 2")
    log.write_text("Command line arguments: Namespace(__import__('os'))\n")
    assert report_data.command(log) == ""


def test_the_newest_checkpoint_where_none_is_named(run_folder):
    (run_folder / "model_0000.pth").write_bytes(b"")
    os.utime(run_folder / "model_0000.pth", (1, 1))
    assert report_data.find_checkpoint(run_folder).name == "model_final.pth"
    (run_folder / "last_checkpoint").write_text("model_0000.pth\n")
    assert report_data.find_checkpoint(run_folder).name == "model_0000.pth"
    (run_folder / "last_checkpoint").write_text("gone.pth")
    (run_folder / "model_best.pth").write_bytes(b"")
    assert report_data.find_checkpoint(run_folder).name == "model_final.pth"


# --------------------------------------------------------------------------------- curves ----


def test_curves_are_those_of_the_figures(run, monkeypatch):
    charts = {}
    monkeypatch.setattr(report, "chart_svg", lambda chart, number: charts.update(
        {chart.title: chart.lines}))
    assert report.curves(run)["missing"] == []
    assert charts["Losses"]["InfoNCE"] == [(1.0, 3.0), (2.0, 1.0)]
    assert charts["Clusters and outliers"] == {"clusters": [(0.0, 5), (1.0, 8)],
                                               "outlier images": [(0.0, 9), (1.0, 3)]}
    assert charts["Shares"] == {"clusters that span cameras": [(0.0, 50.0), (1.0, 100.0)],
                                "outlier images": [(0.0, 18.75), (1.0, 6.25)]}
    assert charts["Stability and silhouette"] == {"stability": [(1.0, 0.75)],
                                                  "silhouette": [(0.0, 0.25), (1.0, 0.5)]}
    assert charts["Retrieval on the labelled test set"] == {
        "mAP": [(0.0, 20.0), (2.0, 55.0)], "Rank-1": [(0.0, 40.0), (2.0, 70.0)]}


def test_one_camera_has_no_curve_of_clusters_that_span_cameras(run, monkeypatch):
    charts = {}
    monkeypatch.setattr(report, "chart_svg", lambda chart, number: charts.update(
        {chart.title: chart.lines}))
    report.curves(run._replace(names=["only"]))
    assert list(charts["Shares"]) == ["outlier images"]


@pytest.mark.parametrize("names, label", [
    ("('InfoNCELoss',)", "InfoNCELoss"), ("('InfoNCELoss','CACCLoss')", "total")])
def test_a_loss_that_is_alone(run, monkeypatch, names, label):
    """FastReID writes it as total_loss, and no loss_* beside it."""
    cfg = configure("MODEL.LOSSES.NAME", names)
    rows = [{"data_time": 0.1, "iteration": 2, "lr": 0.1, "total_loss": 3.0, "time": 0.2},
            {"data_time": 0.1, "iteration": 5, "lr": 0.1, "total_loss": 1.5, "time": 0.2}]
    charts = {}
    monkeypatch.setattr(report, "chart_svg", lambda chart, number: charts.update(
        {chart.title: chart.lines}))
    assert "Losses" not in report.curves(run._replace(cfg=cfg, rows=rows))["missing"]
    assert charts["Losses"] == {label: [(1.0, 3.0), (2.0, 1.5)]}
    rows = [{**row, "loss_infonce": 1.0} for row in rows]
    report.curves(run._replace(cfg=cfg, rows=rows))
    assert list(charts["Losses"]) == ["InfoNCE"], "the sum is not drawn beside its parts"


def test_a_chart_is_drawn_in_the_colours_of_the_page():
    chart = report_draw.Chart("A <title>", "%", {"one & two": [(0, 1.0), (1, 3.0)]})
    svg = report_draw.chart_svg(chart, 4)
    assert svg == report_draw.chart_svg(chart, 4) != report_draw.chart_svg(chart, 5)
    assert "currentColor" in svg and report_draw.INK not in svg and "<metadata" not in svg
    assert "A &lt;title&gt;: one &amp; two" in svg and "width=" not in svg.split(">")[0]
    named = set(re.findall(r'\bid="([^"]*)"', svg))
    assert all(name.startswith("chart4-") for name in named)
    assert set(re.findall(r'(?:url\(|href=")#([\w-]+)', svg)) <= named


# ------------------------------------------------------------------------------- clusters ----


def titles(sheet):
    return [re.match(r"Cluster (\d+): (\d+) images?, (\d+) cameras?", strip["title"]).groups()
            for strip in sheet["strips"]]


def test_which_clusters_are_shown(run, monkeypatch):
    rng = np.random.default_rng(2)
    labels = report_data.without_singletons(rng.integers(-1, 9, 48))
    run = run._replace(labels=labels, camids=rng.integers(4, size=48), names=list("abcd"))
    monkeypatch.setattr(report_clusters, "STRIPS", 3)
    largest, crossing, doubtful = report_clusters.sheets(run, 1)
    size = {c: int((labels == c).sum()) for c in range(labels.max() + 1)}
    cameras = {c: len(set(run.camids[labels == c])) for c in size}
    by_size = sorted(size, key=lambda c: -size[c])
    by_cameras = [c for c in sorted(size, key=lambda c: (-cameras[c], -size[c]))
                  if c not in by_size[:3] and cameras[c] > 1]
    values = plain_silhouettes(run.features.numpy(), labels)
    for sheet, clusters in ((largest, by_size), (crossing, by_cameras),
                            (doubtful, sorted(values, key=values.get))):
        assert titles(sheet) == [(str(c + 1), str(size[c]), str(cameras[c]))
                                 for c in clusters[:3]]
    for strip, cluster in zip(doubtful["strips"], sorted(values, key=values.get), strict=False):
        assert strip["title"].endswith(f"silhouette {values[cluster]:.2f}")
    for strip, cluster in zip(largest["strips"], by_size, strict=False):
        members = {run.paths[i] for i in np.flatnonzero(labels == cluster)}
        shown = [item["path"] for item in strip["crops"]]
        assert len(shown) == len(set(shown)) == min(10, size[cluster]) and set(shown) <= members
        # as many cameras as there are, and each image under its own
        assert len({item["caption"] for item in strip["crops"]}) == cameras[cluster]
        for item in strip["crops"]:
            assert item["caption"] == "abcd"[run.camids[run.paths.index(item["path"])]]


def plain_silhouettes(features, labels):
    """Mean of (b - a) / max(a, b) for each cluster, by loops over the images."""

    def far(image, members):
        mean = sum(features[i] for i in members)
        return 1 - image @ mean / np.linalg.norm(mean)

    found = {}
    for cluster in range(labels.max() + 1):
        scores = []
        members = np.flatnonzero(labels == cluster)
        for i in members:
            a = far(features[i], [j for j in members if j != i])
            b = min(far(features[i], np.flatnonzero(labels == other))
                    for other in range(labels.max() + 1) if other != cluster)
            scores.append((b - a) / max(a, b))
        found[cluster] = float(np.mean(scores))
    return found


def test_silhouettes_of_clusters_in_parts(run, monkeypatch):
    monkeypatch.setattr(indicators, "HELD", 22)  # 7 images and 3 clusters
    found = report_clusters.cluster_silhouettes(run.features, run.labels)
    expected = plain_silhouettes(run.features.numpy(), run.labels)
    assert found.tolist() == pytest.approx(list(expected.values()), abs=1e-5)


def test_outliers_beside_the_nearest_cluster(run):
    found = report_clusters.outliers(run, 1)
    assert found["count"] == 7 == len(found["pairs"]) and found["total"] == 48
    features = run.features.numpy()
    means = [features[run.labels == c].mean(axis=0) for c in range(3)]
    for pair in found["pairs"]:
        index = run.paths.index(pair["outlier"]["path"])
        assert run.labels[index] == -1
        distances = [1 - features[index] @ mean / np.linalg.norm(mean) for mean in means]
        nearest = int(np.argmin(distances))
        assert pair["title"] == (
            f"nearest: cluster {nearest + 1}, cosine distance {distances[nearest]:.2f}")
        assert {run.labels[run.paths.index(item["path"])] for item in pair["crops"]} == {nearest}


def test_cameras_are_drawn_in_turn():
    camids = np.array([0] * 50 + [1] * 3 + [2])
    chosen = report_clusters.spread(camids, 8, np.random.default_rng(0))
    assert camids[chosen].tolist() == [0, 0, 0, 0, 1, 1, 1, 2]
    assert len(report_clusters.spread(camids, 99, np.random.default_rng(0))) == 54


@pytest.mark.parametrize("labels, cameras, said", [
    (np.full(48, -1), 2, ["There are no clusters yet", "there is no cluster"]),
    (np.zeros(48, int), 2, ["There is only one cluster", "There are no outliers",
                            "All clusters that span cameras are shown above"]),
    (np.arange(48) // 2, 48, ["There are no outliers"]),
    (LABELS, 1, ["All training images come from one camera"]),
])
def test_what_cannot_be_shown_is_said(run_folder, tiny_market, labels, cameras, said):
    keys = []
    if cameras == 1:
        folder = tiny_market / "Market-1501-v15.09.15" / "bounding_box_train"
        for i, path in enumerate(sorted(folder.iterdir())):
            path.rename(folder / f"{path.name[:5]}c1s1_{i:06d}_00.jpg")
        keys = ["MODEL.HEADS.CAMSEP.NUM_CAMERAS", "-1"]
    write_run(run_folder, configure(*keys), labels=labels)
    report.main([str(run_folder), "--images", "8"])
    text = Page(run_folder / "report.html").text
    for sentence in said:
        assert sentence in text
    assert ("come from its own camera" in text or "came from its own" in text) == (cameras > 1)
    assert ("After training, by camera" in text) == ("Cameras:" in text) == (cameras > 1)


# --------------------------------------------------------------------------- the network ----


def test_the_network_before_training_is_the_one_it_started_from(run):
    seed_all_rng(caureid_plugin.compat.process_seed(7, 0))  # as before training
    expected = build_model(run.cfg).state_dict()
    before = report_network.build_start(run).state_dict()
    after = report_network.build_trained(run).state_dict()
    assert all(torch.equal(before[name], expected[name]) for name in expected)
    stored = torch.load(run.checkpoint, weights_only=True)["model"]
    assert all(torch.equal(after[name], stored[name]) for name in stored)
    assert not all(torch.equal(before[name], stored[name]) for name in stored)


@pytest.mark.parametrize("keys, said", [
    (["SEED", "-1"], r"random weights were not kept, because SEED was -1"),
    (["MODEL.BACKBONE.PRETRAIN", "True", "MODEL.BACKBONE.PRETRAIN_PATH", "gone.pth"],
     r"PRETRAIN_PATH gone\.pth is gone"),
    (["MODEL.BACKBONE.PRETRAIN", "True"], r"PRETRAIN_PATH is empty.*downloads nothing"),
    (["MODEL.WEIGHTS", "gone.pth"], r"MODEL\.WEIGHTS gone\.pth is gone"),
    (["MODEL.WEIGHTS", "RUN/model_final.pth"], r"later evaluation of its own model_final\.pth")])
def test_why_there_is_no_before(run_folder, keys, said):
    keys = [key.replace("RUN", str(run_folder)) for key in keys]
    report.main([str(run_folder), "--images", "8", *keys])
    text = Page(run_folder / "report.html").text
    assert re.search(f"The network before training cannot be shown: .*{said}", text)
    assert "After training, by camera" in text and "Before training, by camera" not in text


def test_map_of_the_embeddings(run, monkeypatch):
    drawn = []
    monkeypatch.setattr(report_network, "scatter", lambda *points: drawn.append(points))
    model = report_network.build_trained(run)
    found = report_network.embedding_maps(model, run, 30, 1)
    assert found["count"] == 30 and found["total"] == 48 and found["problem"] == ""
    assert [m["title"] for m in found["maps"]] == [
        f"{name} training, by {kind}" for kind in ("camera", "cluster")
        for name in ("Before", "After")]
    rows = np.sort(np.random.default_rng([1, 2]).permutation(48)[:30])
    by_camera, by_cluster = drawn[0][1], drawn[1][1]
    for i, j in itertools.combinations(range(30), 2):
        same = run.camids[rows[i]] == run.camids[rows[j]]
        assert (by_camera[i] == by_camera[j]) == same
        one, two = run.labels[rows[i]], run.labels[rows[j]]
        assert (by_cluster[i] == by_cluster[j]) == (one == two)
    grey = [by_cluster[i] for i in range(30) if run.labels[rows[i]] < 0]
    assert set(grey) == {report_network.GREY}
    assert np.array_equal(drawn[0][0], drawn[1][0]) and not np.array_equal(drawn[0][0], drawn[2][0])
    assert np.isfinite(drawn[0][0]).all() and drawn[0][0].shape == (30, 2)
    # the share, by a loop over the images
    after = report_network.embed(model, run.cfg, [run.paths[row] for row in rows]).numpy()
    after /= np.linalg.norm(after, axis=1, keepdims=True)
    shared = 0
    for i in range(30):
        others = sorted((((after[i] - after[j]) ** 2).sum(), j) for j in range(30) if j != i)
        shared += sum(run.camids[rows[j]] == run.camids[rows[i]] for _, j in others[:10])
    assert found["after"]["share"] == f"{100 * shared / 300:.0f} %"
    assert found["chance"] == "{:.0f} %".format(100 * np.mean(
        [run.camids[i] == run.camids[j] for i, j in itertools.permutations(rows, 2)]))


def test_only_the_largest_clusters_are_coloured():
    labels = np.repeat(np.arange(25), np.arange(25, 0, -1))
    colours, count = report_network.cluster_colours(np.append(labels, -1))
    assert count == 20 and colours[-1] == report_network.GREY
    for cluster in range(25):
        own = {c for c, label in zip(colours, labels, strict=False) if label == cluster}
        assert len(own) == 1 and (own == {report_network.GREY}) == (cluster >= 20)


def test_a_map_of_points_that_are_all_alike():
    with pytest.raises(Missing, match="the features of all images are the same"):
        report_network.flatten(torch.ones(20, 4), 1)


def test_a_scatter_is_drawn_and_repeats():
    places = np.array([[0.0, 0.0], [1.0, 1.0]])
    drawn = [report_draw.scatter(places, ["#ff0000", "#0000ff"], np.array([40.0, 40.0]),
                                 np.array([1.0, 1.0])) for _ in range(2)]
    assert drawn[0] == drawn[1]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn[0].split(",")[1]))))
    height = len(pixels)
    solid = pixels[..., 3] > 200
    for half, colour in ((slice(height // 2, None), 0), (slice(0, height // 2), 2)):
        found = pixels[half][solid[half]]
        assert len(found) and (found[:, colour] > 200).all()
    assert not solid[0].any()  # the ground is clear


def test_without_attention_a_sentence_says_so(run_folder, tiny_market):
    write_run(run_folder, configure("MODEL.HEADS.CAMSEP.ATTENTION", "none", "MODEL.LOSSES.NAME",
                                    "('InfoNCELoss',)", "MODEL.HEADS.CAMSEP.NUM_CAMERAS", "0"))
    report.main([str(run_folder), "--images", "8"])
    text = Page(run_folder / "report.html").text
    assert "The network has no attention to draw (MODEL.HEADS.CAMSEP.ATTENTION none" in text
    assert "After training, by camera" in text


# ----------------------------------------------------------------------------- rank lists ----


def identity(path):
    return int(os.path.basename(path).split("_")[0])


def test_rank_lists_of_a_labelled_test_set(run):
    model = report_network.build_trained(run)
    found = report_ranks.rank_lists(model, run, 1)
    name, query, gallery = report_ranks.find_test_set(run.cfg)
    assert name == "Market1501" and found["queries"] == len(query) == 16
    assert found["gallery"] == found["gallery_total"] == len(gallery)
    features = report_network.embed(model, run.cfg, [item[0] for item in query + gallery])
    features = torch.nn.functional.normalize(features, dim=1).numpy()
    distances = 1 - features[:16] @ features[16:].T
    ids, cameras = ([np.array([item[i] for item in part]) for part in (query, gallery)]
                    for i in (1, 2))
    _, precisions, _ = evaluate_rank(distances, *ids, *cameras, use_cython=False)
    assert found["mean"] == f"{100 * np.mean(precisions):.1f} %"
    shown = [int(re.search(r"(\d+) %", part["title"])[1]) for part in found["lists"]]
    assert shown == sorted(shown, reverse=True) and len(shown) == 8
    assert shown[0] == round(100 * max(precisions)) and shown[-1] == round(100 * min(precisions))
    for part in found["lists"]:
        asked = part["query"]["path"]
        i = [item[0] for item in query].index(asked)
        order = [j for j in np.argsort(distances[i]) if not (
            gallery[j][1] == query[i][1] and gallery[j][2] == query[i][2])]
        assert [item["path"] for item in part["found"]] == [gallery[j][0] for j in order[:10]]
        for item in part["found"]:
            assert item["right"] == (identity(item["path"]) == identity(asked))
    assert {item["right"] for part in found["lists"] for item in part["found"]} == {True, False}


def test_average_precision_by_hand():
    same_identity = np.array([True, False, True, True, False])
    same_camera = np.array([False, False, True, False, True])
    distances = np.array([0.2, 0.1, 0.0, 0.4, 0.3])
    precision, order, right = report_ranks.rank(distances, same_identity, same_camera)
    assert order.tolist() == [1, 0, 4, 3] and right.tolist() == [False, True, False, True]
    assert precision == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert report_ranks.rank(distances, same_identity & same_camera, same_camera)[0] is None


def test_distances_by_either_metric():
    query, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.8, 0.6]])
    assert report_ranks.measure(query, gallery, "cosine")[0] == pytest.approx([0, 0.2], abs=1e-6)
    assert report_ranks.measure(query, gallery, "euclidean")[0] == pytest.approx(
        [2, 0.4 ** 0.5], abs=1e-6)


def test_a_large_gallery_is_thinned_out(run_folder, monkeypatch):
    gallery = [(str(i), i % 50, 0) for i in range(1000)]
    monkeypatch.setattr(report_ranks, "GALLERY", 100)
    kept, total = report_ranks.thin_out(gallery, {3, 4}, np.random.default_rng(0))
    assert total == 1000 and len(kept) == 100 and kept == sorted(kept, key=gallery.index)
    assert [item for item in gallery if item[1] in (3, 4)] == [
        item for item in kept if item[1] in (3, 4)]
    monkeypatch.setattr(report_ranks, "GALLERY", 30)
    report.main([str(run_folder), "--images", "8"])
    assert "Looked for among 32 of 33 gallery images" in Page(run_folder / "report.html").text


def test_without_test_labels_training_images_of_other_cameras_are_ranked(run_folder, monkeypatch):
    report.main([str(run_folder), "--images", "8", "DATASETS.TESTS", "()"])
    page = Page(run_folder / "report.html")
    assert "right and wrong are not known" in page.text
    assert not {"crop right", "crop wrong"} & set(page.attributes("class"))
    run = report_data.read_run(run_folder, None, ["DATASETS.TESTS", "()"])
    lists = report_ranks.rank_lists(None, run, 1)["lists"]
    assert len(lists) == 8
    features = run.features.numpy()
    for part in lists:
        i = run.paths.index(part["query"]["path"])
        expected = sorted((1 - features[i] @ features[j], j) for j in range(48)
                          if run.camids[j] != run.camids[i])
        assert [item["path"] for item in part["found"]] == [run.paths[j] for _, j in expected[:10]]


def test_queries_without_a_right_answer(run_folder, tiny_market):
    for path in (tiny_market / "Market-1501-v15.09.15" / "bounding_box_test").iterdir():
        if not path.name.startswith(("0000", "-1")):
            path.unlink()
    report.main([str(run_folder), "--images", "8"])
    assert "None of 16 queries of Market1501 has an image of its identity" in Page(
        run_folder / "report.html").text


def test_a_test_set_that_is_gone_costs_one_section(run_folder):
    report.main([str(run_folder), "--images", "8", "DATASETS.TESTS", "('DukeMTMC',)"])
    text = Page(run_folder / "report.html").text
    assert re.search(r"The test set DukeMTMC \(DATASETS.TESTS\) cannot be listed", text)
    assert "After training, by camera" in text


# -------------------------------------------------------------------------------- bad input ----


def spoil_config(folder):
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("SEED: 7", "SEED: 7\nSEEDLING: 1"))


def cut(folder):
    path = folder / "model_final.pth"
    path.write_bytes(path.read_bytes()[:-400])
    (folder / "model_0000.pth").write_bytes(b"")


def save(content):
    return lambda folder: torch.save(content, folder / "model_final.pth")


BANK = {"features": torch.zeros(3, 16), "labels": torch.zeros(2), "camids": torch.zeros(3)}
OTHER = (r"of another version of the plugin: .*'SEEDLING'.*This version is "
         rf"{re.escape(caureid_plugin.__version__)}\. Use the version")
SPOILT = {
    "no config": (lambda f: (f / "config.yaml").unlink(), "holds no config.yaml.*OUTPUT_DIR"),
    "config": (lambda f: (f / "config.yaml").write_text("MODEL: [1"),
               r"config.yaml cannot be read.*[^.]\. It is what the run wrote"),
    "other version": (spoil_config, OTHER),
    "wrong value": (lambda f: (f / "config.yaml").write_text("SEED: [1]"), "SEED|seed"),
    "no checkpoint": (lambda f: (f / "model_final.pth").unlink(),
                      "holds no checkpoint.*CHECKPOINT_PERIOD.*--checkpoint"),
    "cut off": (cut, "model_final.pth is damaged.*Name another with --checkpoint: model_0000.pth"),
    "text": (lambda f: (f / "model_final.pth").write_text("no"), "model_final.pth is damaged"),
    "weights alone": (save({"backbone.x": torch.zeros(2)}), "holds no memory bank.*supervised run"),
    "a list": (save([1]), "holds no memory bank"),
    "uneven bank": (save({"model": {}, "memory_bank": BANK}), "memory bank of .* is not whole"),
    "half a bank": (save({"model": {}, "memory_bank": {"labels": torch.zeros(3)}}), "not whole"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_bad_run_folders(run_folder, name):
    spoil, message = SPOILT[name]
    (run_folder / "report.html").write_text("the old one")
    spoil(run_folder)
    with pytest.raises(SystemExit, match=f"(?s){message}"):
        report.main([str(run_folder)])
    assert (run_folder / "report.html").read_text() == "the old one"
    assert not list(run_folder.glob("*.part"))


def test_no_run_folder(tmp_path):
    (tmp_path / "file").touch()
    for name, what in (("absent", "does not exist"), ("file", "is not a folder")):
        with pytest.raises(SystemExit, match=f"{name} {what}: give the folder that a run"):
            report.main([str(tmp_path / name)])
    with pytest.raises(SystemExit, match="holds no config.yaml"):
        report.main([str(tmp_path)])


def test_a_checkpoint_that_is_named(run_folder, tmp_path):
    with pytest.raises(SystemExit, match="absent.pth is not a file: check --checkpoint"):
        report.main([str(run_folder), "--checkpoint", str(run_folder / "absent.pth")])
    (run_folder / "model_final.pth").rename(run_folder / "model_0001.pth")
    report.main([str(run_folder), "--images", "8", "--checkpoint", "model_0001.pth"])
    assert "model_0001.pth, written" in Page(run_folder / "report.html").text


def test_training_images_that_are_not_the_runs(run_folder, tiny_market, monkeypatch):
    folder = tiny_market / "Market-1501-v15.09.15" / "bounding_box_train"
    first = sorted(folder.iterdir())[0]
    moved = first.with_name(first.name.replace("_c1", "_c2").replace("_000000", "_000009"))
    first.rename(moved)
    with pytest.raises(SystemExit, match=r"(?s)data set differs from the run's.*other cameras.*"
                                         r"\[23, 25\], in the bank \[24, 24\].*FASTREID_DATASETS"):
        report.main([str(run_folder)])
    moved.unlink()
    with pytest.raises(SystemExit, match=r"(?s)differs from the run's: DATASETS.NAMES .* below .*"
                                         r"has 47 training images, the memory bank .* 48\. Give"):
        report.main([str(run_folder)])
    with pytest.raises(SystemExit, match=r"(?s)cannot be listed: .*'Nothing'.*FASTREID_DATASETS"):
        report.main([str(run_folder), "DATASETS.NAMES", "('Nothing',)"])
    with pytest.raises(SystemExit, match=r"DATASETS.NAMES \[\].*cannot be listed.*no image"):
        report.main([str(run_folder), "DATASETS.NAMES", "()"])


@pytest.fixture
def folder_run(tmp_path, monkeypatch):
    """A run on CameraFolder, whose ROOT is relative to the folder it was started in."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for i in range(48):
        path = tmp_path / "crops" / ("gate" if i < 24 else "yard") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(32, 16, 3), dtype=np.uint8)).save(path)
    cfg = configure("DATASETS.NAMES", "('CameraFolder',)", "DATASETS.TESTS", "()",
                    "CAMERA_FOLDER.ROOT", "crops")
    return write_run(tmp_path / "run", cfg, training_images={
        "digest": images_digest([path for path, _ in training_images(cfg)])})


def test_cameras_are_named_as_their_folders(folder_run):
    run = report_data.read_run(folder_run, None, [])
    assert run.names == ["gate", "yard"] and run.prefix == ""
    report.main([str(folder_run), "--images", "8"])
    page = Page(folder_run / "report.html")
    assert "with which all begin" not in page.text and "The camera stands below" in page.text
    assert "camerafolder_" not in page.text


def test_a_folder_of_images_that_is_not_found(folder_run, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with pytest.raises(SystemExit) as error:
        report.main([str(folder_run)])
    text = error.value.code
    assert "below CAMERA_FOLDER.ROOT crops cannot be listed: " in text
    assert f"crops is relative to the current directory, {elsewhere}: run the report" in text
    assert "FASTREID_DATASETS" not in text
    report.main([str(folder_run), "--images", "8", "CAMERA_FOLDER.ROOT", str(tmp_path / "crops")])
    with pytest.raises(SystemExit, match="ROOT /absent cannot be listed") as error:
        report.main([str(folder_run), "CAMERA_FOLDER.ROOT", "/absent"])
    assert "is relative to" not in error.value.code


def test_as_many_images_of_other_names_are_not_the_runs(folder_run, tmp_path):
    (tmp_path / "crops" / "gate" / "03.png").rename(tmp_path / "crops" / "gate" / "99.png")
    with pytest.raises(SystemExit, match=r"(?s)data set differs from the run's: the 48 training "
                                         r"images of .*CAMERA_FOLDER.ROOT crops are as many.*other "
                                         r"files: names were changed.*Restore the files"):
        report.main([str(folder_run)])
    # a checkpoint of an earlier version does not know its images' names
    content = torch.load(folder_run / "model_final.pth", weights_only=True)
    del content["training_images"]
    torch.save(content, folder_run / "model_final.pth")
    assert len(report_data.read_run(folder_run, None, []).paths) == 48


def test_places_of_several_datasets():
    where, advice = report_data.data_place(configure(
        "DATASETS.NAMES", "('Market1501','CameraFolder')", "CAMERA_FOLDER.ROOT", "/my/crops"))
    assert "CAMERA_FOLDER.ROOT /my/crops and " in where
    assert "CAMERA_FOLDER.ROOT" in advice and "FASTREID_DATASETS" in advice


def test_training_images_that_are_listed_but_gone(run, monkeypatch):
    items = [(path, run.camera(i)) for i, path in enumerate(run.paths)]
    monkeypatch.setattr(report_data, "training_images",
                        lambda cfg: [("/absent.jpg", items[0][1]), *items[1:]])
    with pytest.raises(ReportError, match=r"1 of the 48 training images .* the first is /absent"):
        report_data.read_run(run.folder, None, [])


def test_images_that_became_unreadable_cost_their_sections(run_folder, tiny_market):
    for path in (tiny_market / "Market-1501-v15.09.15" / "bounding_box_train").iterdir():
        path.write_bytes(b"no image")
    report.main([str(run_folder), "--images", "8"])
    text = Page(run_folder / "report.html").text
    assert text.count("An image cannot be read: ") == 2  # clusters, outliers
    assert "None of the images can be drawn" in text and "Images cannot be embedded" in text
    assert "average precision" in text


@pytest.mark.parametrize("options, message", [
    (["--output", "page.pdf"], "--output page.pdf must end in .html"),
    (["--output", "absent/page.html"], "the folder absent does not exist"),
    (["--output", "there.html"], "there.html cannot be written: choose another with --output"),
    (["--images", "3"], "--images 3 must be at least 8"),
    (["--seed", "-1"], "--seed -1 must be from 0"),
    (["SEED", "1", "--images", "9"], "--images stands among config keys"),
    (["SEED"], "config keys and values must come in pairs, got SEED"),
])
def test_bad_options_are_said_before_the_work(options, message, run_folder, tmp_path, monkeypatch,
                                              capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.html").mkdir()
    monkeypatch.setattr(report_data, "read_run", None)
    with pytest.raises(SystemExit) as stopped:
        report.main([str(run_folder), *options])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("keys, message", [
    (["SEEED", "1"], r"On the command line: There is no config key 'SEEED', did you mean SEED"),
    (["MODEL.BACKBONE.FEAT_DIM", "24"],
     "cannot take the weights of .*model_final.pth: .*another architecture.*take back the config"),
    (["MODEL.BACKBONE.NAME", "nothing"], r"cannot take the weights of"),
])
def test_bad_keys(run_folder, keys, message):
    with pytest.raises(SystemExit, match=f"(?s){message}"):
        report.main([str(run_folder), *keys])


def test_a_full_disk_keeps_the_old_report(run_folder, monkeypatch):
    (run_folder / "report.html").write_text("the old one")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemExit, match="report.html cannot be written: .*No space left"):
        report.main([str(run_folder), "--images", "8"])
    assert (run_folder / "report.html").read_text() == "the old one"
    assert not list(run_folder.glob(".*.part"))


@pytest.mark.parametrize("words, expected", [
    ("run --images 9 SEED 1", "--images 9 run SEED 1"), ("run SEED -1", "run SEED -1"),
    ("--images 9 run SEED 1", "--images 9 run SEED 1"), ("run", "run"), ("", ""),
    ("run --seed=2 --output a.html A.B c", "--seed=2 --output a.html run A.B c"),
    ("run --help", "--help run")])
def test_options_may_follow_the_folder(words, expected):
    assert report.options_first(words.split()) == expected.split()
