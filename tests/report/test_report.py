"""The report of a run: what it shows, recomputed plainly, and what it says of bad input."""

import itertools
import json
import os
import re
import shutil
from types import SimpleNamespace
from unittest import mock

import caureid_plugin
import numpy as np
import pytest
import torch
from caureid_plugin.cli.common import call
from caureid_plugin.cli.report import command
from caureid_plugin.clustering import camera_shares, silhouettes
from caureid_plugin.data import training_images
from caureid_plugin.engine import images_digest, load_config
from caureid_plugin.report import clusters as report_clusters
from caureid_plugin.report import draw as report_draw
from caureid_plugin.report import network as report_network
from caureid_plugin.report import origin, ranks
from caureid_plugin.report import page as page_module
from caureid_plugin.runs import folder as folder_module
from caureid_plugin.runs import run as run_module
from caureid_plugin.runs.metrics import column, read_rows
from caureid_plugin.runs.run import Missing, ReportError
from fastreid.data import build as data_build
from fastreid.data.datasets.market1501 import Market1501
from fastreid.evaluation.rank import evaluate_rank
from fastreid.modeling import build_model
from fastreid.utils.env import seed_all_rng
from torch.nn.functional import normalize

from helpers.page import Page, picture
from helpers.run_folder import ROWS, change_checkpoint, draw_nothing, write_run
from helpers.tiny import KEYS, write_crops, write_market

HEADINGS = ["Curves", "Clusters", "Outliers", "Where the network looks", "Map of the embeddings",
            "Rank lists", "How this run was made"]
NOT_THE_RUNS = "(?s)The data set differs from the run's: "


def configure(*options):
    return load_config("Synthetic/caureid.yml", [*KEYS, *options])


@pytest.fixture(scope="module", autouse=True)
def images(tmp_path_factory):
    """Images that no test changes; those of ``tiny_market`` take their place."""
    with pytest.MonkeyPatch.context() as patch:
        root = write_market(tmp_path_factory.mktemp("images"))
        patch.setattr(data_build, "_root", str(root))
        yield root


@pytest.fixture(scope="module")
def kept_run(images, tmp_path_factory):
    """A run folder that no test changes."""
    return write_run(tmp_path_factory.mktemp("runs") / "my run", configure())


@pytest.fixture
def run_folder(kept_run, tmp_path):
    """A copy that the test may change."""
    return shutil.copytree(kept_run, tmp_path / "my run")


@pytest.fixture(scope="module")
def run(kept_run):
    return run_module.read_run(kept_run, None, [])


@pytest.fixture(scope="module")
def drawn_file(kept_run, tmp_path_factory):
    """A report with all its pictures, of the run that is kept."""
    path = tmp_path_factory.mktemp("drawn") / "report.html"
    call(command, [kept_run, "--images", "20", "--output", path])
    return path


@pytest.fixture
def page_of(monkeypatch):
    """Makes the report of a run folder and gives its page, without t-SNE, curves and maps."""
    draw_nothing(monkeypatch)

    def make(folder, *options):
        call(command, [folder, "--images", "8", *options])
        return Page(folder / "report.html")

    return make


@pytest.fixture
def charts(monkeypatch):
    """Lines of each chart, by title; none is drawn."""
    found = {}
    monkeypatch.setattr(page_module, "chart_svg", lambda chart, number: found.update(
        {chart.title: chart.lines}))
    return found


def people(root, folder="bounding_box_train"):
    """Paths of the images of a part of the data set."""
    return sorted((root / "Market-1501-v15.09.15" / folder).iterdir())


def test_the_page_holds_every_section_and_no_other_file(drawn_file):
    page = Page(drawn_file)
    assert [text for text in page.headings if text in HEADINGS] == HEADINGS
    for text in ("my run", "48 images of 2 cameras", "Finished: 2 of 2 epochs",
                 "points of one cluster gather, whichever camera they are from.",
                 "without “market1501_”, with which all begin"):
        assert text in page.text
    assert len(page.pictures) > 50 and all(alt for alt, _ in page.pictures)
    assert all(shown.height <= 128 or shown.format == "PNG" or shown.height == 192
               for _, shown in page.pictures)
    inside = page.attributes("href") + page.attributes("xlink:href")
    assert inside and all(link.startswith("#") for link in inside)
    assert len(page.ids) == len(set(page.ids)) and {link[1:] for link in inside} <= set(page.ids)
    assert not {"script", "link", "iframe"} & page.tags and not page.attributes("onload")
    assert "@import" not in page.source and set(re.findall(r"url\((.)", page.source)) <= {"#"}


def test_no_identity_of_a_training_image_changes_a_bit(drawn_file, kept_run, tmp_path, capsys,
                                                       monkeypatch):
    listed = Market1501.process_dir

    def without(self, folder, is_train=True):
        return [(path, "same" if is_train else pid, camera)
                for path, pid, camera in listed(self, folder, is_train)]

    monkeypatch.setattr(Market1501, "process_dir", without)
    again = tmp_path / "again.html"
    call(command, [kept_run, "--images", "20", "--output", again])
    assert again.read_bytes() == drawn_file.read_bytes()
    assert re.fullmatch(rf"{re.escape(str(again))}: \d\.\d MiB",
                        capsys.readouterr().out.splitlines()[-1])


def test_the_verdict_is_asked_with_the_indicators_and_shown(run_folder, page_of, monkeypatch):
    asked = []

    def judge(indicators, cfg, *, num_cameras):
        asked.append(({name: values for name, values in indicators.items() if values},
                      cfg.SOLVER.MAX_EPOCH, num_cameras))
        return SimpleNamespace(level="bad", summary="It <fell> apart.", note="It was short.",
                               advice=["Lower A.B."],
                               findings=[SimpleNamespace(name="silhouette", figure="0.50",
                                                         level="mixed", meaning="Half way.")])

    monkeypatch.setattr(page_module, "judge", judge)
    page = page_of(run_folder)
    assert asked == [({"outlier_share": [0.1875, 0.0625], "largest_share": [0.25, 0.125],
                       "cross_camera": [0.5, 1.0], "silhouette": [0.25, 0.5],
                       "stability": [0.75], "mAP": [55.0], "start/mAP": [20.0]}, 2, 2)]
    for text in ("It <fell> apart. It was short.", "Lower A.B.", "Half way.", "Verdict: bad",
                 "unless --despite-verdict"):
        assert text in page.text


def test_a_run_as_it_was_written_and_one_that_goes_on(run, run_folder, page_of):
    assert run.names == ["0", "1"] and run.rows == ROWS
    assert all(f"_c{camid + 1}s" in path
               for path, camid in zip(run.paths, run.camids, strict=True))
    assert run.labels.tolist() == [0] * 12 + [1] * 15 + [2] * 2 + [-1] * 7 + [0] * 12
    change_checkpoint(run_folder, epoch=0, run_state={"steps_done": 1, "iters_per_epoch": 3})
    (run_folder / "metrics.json").write_text(json.dumps(ROWS[0]) + '\n{"iterat')
    text = page_of(run_folder).text
    assert "Not finished: the checkpoint is after 1.33 of 2 epochs" in text
    assert "Losses: " in text  # among what is missing


def test_rows_of_a_run_that_was_resumed(tmp_path):
    path = tmp_path / "metrics.json"
    rows = [{"iteration": 0, "a": 1}, {"iteration": 4, "a": 2}, {"iteration": 9, "a": 3},
            {"iteration": 4, "b": 5}, {"iteration": 6, "a": float("nan")},
            {"iteration": 8, "a": 7}, {"iteration": 8, "a": 8}]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    found, why = read_rows(path)
    assert why == "" and column(found, "a") == [(0, 1), (4, 2), (8, 8)]
    assert column(found, "b") == [(4, 5)]


def test_figures_that_cannot_be_read(run_folder, page_of):
    path = run_folder / "metrics.json"
    for text, why in (
            ('{"iteration": 0}\nnonsense\n{"iteration": 1}\n', "damaged, its line 2"),
            ("[1]\n", "damaged, its line 1"), ('{"iteration": null}\n', "damaged, its line 1"),
            ("", "holds no figures yet"), ('{"iteration": 0', "holds no figures yet")):
        path.write_text(text)
        rows, answer = read_rows(path)
        assert rows == [] and why in answer
    path.unlink()
    assert "metrics.json is missing" in page_of(run_folder).text


def test_the_command_of_the_log(tmp_path):
    log = tmp_path / "log.txt"
    assert origin.command(log) == ""
    line = ("[1] fastreid INFO: Command line arguments: Namespace(config_file='a b.yml', "
            "resume={}, eval_only={}, num_gpus=2, opts=['SEED', '{}'])\n")
    log.write_text(line.format(False, False, 1) + line.format(True, False, 2)
                   + line.format(False, True, 3))
    assert origin.command(log) == (
        "caureid train --config-file a b.yml --resume --num-gpus 2 SEED 2")
    log.write_text("Command line arguments: Namespace(__import__('os'))\n")
    assert origin.command(log) == ""


def test_curves_are_those_of_the_figures(run, charts):
    assert page_module.curves(run)["missing"] == []
    assert charts["Losses"]["InfoNCE"] == [(1.0, 3.0), (2.0, 1.0)]
    assert charts["Clusters and outliers"] == {"clusters": [(0.0, 5), (1.0, 8)],
                                               "outlier images": [(0.0, 9), (1.0, 3)]}
    assert charts["Shares"] == {"clusters that span cameras": [(0.0, 50.0), (1.0, 100.0)],
                                "outlier images": [(0.0, 18.75), (1.0, 6.25)]}
    assert charts["Stability and silhouette"] == {"stability": [(1.0, 0.75)],
                                                  "silhouette": [(0.0, 0.25), (1.0, 0.5)]}
    assert charts["Retrieval on the labelled test set"] == {
        "mAP": [(0.0, 20.0), (2.0, 55.0)], "Rank-1": [(0.0, 40.0), (2.0, 70.0)]}
    page_module.curves(run._replace(names=["only"]))  # a cluster cannot span cameras
    assert list(charts["Shares"]) == ["outlier images"]


def test_a_loss_that_is_alone(run, charts):
    """FastReID writes it as total_loss, and no loss_* beside it."""
    rows = [{"iteration": 2, "lr": 0.1, "total_loss": 3.0},
            {"iteration": 5, "lr": 0.1, "total_loss": 1.5}]
    for names, label in (("('InfoNCELoss',)", "InfoNCELoss"),
                         ("('InfoNCELoss','CACCLoss')", "total")):
        alone = run._replace(cfg=configure("MODEL.LOSSES.NAME", names), rows=rows)
        assert "Losses" not in page_module.curves(alone)["missing"]
        assert charts["Losses"] == {label: [(1.0, 3.0), (2.0, 1.5)]}
    page_module.curves(run._replace(rows=[{**row, "loss_infonce": 1.0} for row in rows]))
    assert list(charts["Losses"]) == ["InfoNCE"], "the sum is not drawn beside its parts"


def test_a_chart_escapes_its_words_and_shares_no_name_with_another():
    chart = report_draw.Chart("A <title>", "%", {"one & two": [(0, 1.0), (1, 3.0)]})
    svg = report_draw.chart_svg(chart, 4)
    assert "A &lt;title&gt;: one &amp; two" in svg
    named = re.findall(r'\bid="([^"]*)"', svg)
    assert named and all(name.startswith("chart4-") for name in named)


def test_which_clusters_are_shown(run, monkeypatch):
    rng = np.random.default_rng(2)
    labels = folder_module.without_singletons(rng.integers(-1, 9, 48))
    run = run._replace(labels=labels, camids=rng.integers(4, size=48), names=list("abcd"))
    monkeypatch.setattr(report_clusters, "STRIPS", 3)
    largest, crossing, doubtful = report_clusters.sheets(run, 1)
    size = {c: int((labels == c).sum()) for c in range(labels.max() + 1)}
    cameras = {c: len(set(run.camids[labels == c])) for c in size}
    by_size = sorted(size, key=lambda c: -size[c])
    by_cameras = [c for c in sorted(size, key=lambda c: (-cameras[c], -size[c]))
                  if c not in by_size[:3] and cameras[c] > 1]
    one_by_one = silhouettes(run.features, labels, np.flatnonzero(labels >= 0)).numpy()
    values = {c: one_by_one[labels[labels >= 0] == c].mean() for c in size}
    by_doubt = sorted(values, key=values.get)
    for sheet, clusters in ((largest, by_size), (crossing, by_cameras), (doubtful, by_doubt)):
        assert [re.match(r"Cluster (\d+): (\d+) images?, (\d+) cameras?", strip["title"]).groups()
                for strip in sheet["strips"]] == [
                    (str(c + 1), str(size[c]), str(cameras[c])) for c in clusters[:3]]
    for strip, cluster in zip(doubtful["strips"], by_doubt, strict=False):
        assert strip["title"].endswith(f"silhouette {values[cluster]:.2f}")
    for strip, cluster in zip(largest["strips"], by_size, strict=False):
        members = {run.paths[i] for i in np.flatnonzero(labels == cluster)}
        shown = [item["path"] for item in strip["crops"]]
        assert len(shown) == len(set(shown)) == min(10, size[cluster]) and set(shown) <= members
        # as many cameras as there are, and each image under its own
        assert len({item["caption"] for item in strip["crops"]}) == cameras[cluster]
        for item in strip["crops"]:
            assert item["caption"] == "abcd"[run.camids[run.paths.index(item["path"])]]


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


@pytest.mark.parametrize("label, sentences", [
    (-1, ["There are no clusters yet", "there is no cluster"]),
    (0, ["There is only one cluster", "There are no outliers",
         "All clusters that span cameras are shown above"])])
def test_clusters_that_cannot_be_shown(run_folder, page_of, label, sentences):
    bank = torch.load(run_folder / "model_final.pth", weights_only=True)["memory_bank"]
    change_checkpoint(run_folder, memory_bank={**bank, "labels": torch.full((48,), label)})
    text = page_of(run_folder).text
    assert all(sentence in text for sentence in sentences)
    assert "from its own camera" in text and "Cameras:" in text


def test_one_camera(tiny_market, tmp_path, page_of):
    for i, path in enumerate(people(tiny_market)):
        path.rename(path.with_name(f"{path.name[:5]}c1s1_{i:06d}_00.jpg"))
    text = page_of(write_run(tmp_path / "one", configure("MODEL.HEADS.CAMSEP.NUM_CAMERAS", "-1"))
                   ).text
    assert "All training images come from one camera" in text
    assert not any(words in text for words in (
        "from its own camera", "After training, by camera", "Cameras:"))


def test_the_network_before_training_is_the_one_it_started_from(run):
    seed_all_rng(caureid_plugin.compat.process_seed(run.cfg.SEED, 0))  # as before training
    expected = build_model(run.cfg).state_dict()
    before = report_network.build_start(run).state_dict()
    after = report_network.build_trained(run).state_dict()
    assert all(torch.equal(before[name], expected[name]) for name in expected)
    stored = torch.load(run.checkpoint, weights_only=True)["model"]
    assert all(torch.equal(after[name], stored[name]) for name in stored)
    assert not all(torch.equal(before[name], stored[name]) for name in stored)


def test_why_there_is_no_before(kept_run, run_folder, page_of):
    for keys, message in (
            (["MODEL.BACKBONE.PRETRAIN", "True", "MODEL.BACKBONE.PRETRAIN_PATH", "gone.pth"],
             "PRETRAIN_PATH gone.pth is gone"),
            (["MODEL.BACKBONE.PRETRAIN", "True"], "PRETRAIN_PATH is empty"),
            (["MODEL.WEIGHTS", "gone.pth"], "MODEL.WEIGHTS gone.pth is gone"),
            (["MODEL.WEIGHTS", str(kept_run / "model_final.pth")],
             "later evaluation of its own model_final.pth")):
        assert message in report_network.start_problem(configure(*keys), kept_run)
    text = page_of(run_folder, "SEED", "-1").text
    assert "before training cannot be shown: its random weights were not kept, because SEED" in text
    assert "After training, by camera" in text and "Before training, by camera" not in text


def test_map_of_the_embeddings(run, monkeypatch):
    drawn = []
    monkeypatch.setattr(report_network, "flatten", lambda features, seed: features[:, :2].numpy())
    monkeypatch.setattr(report_network, "scatter", lambda *points: drawn.append(points))
    model = report_network.build_trained(run)
    found = report_network.embedding_maps(model, run, 30, 1)
    assert (found["count"], found["total"], found["problem"]) == (30, 48, "")
    assert [m["title"] for m in found["maps"]] == [
        f"{name} training, by {kind}" for kind in ("camera", "cluster")
        for name in ("Before", "After")]
    rows = np.sort(np.random.default_rng([1, 2]).permutation(48)[:30])
    camids, labels = run.camids[rows], run.labels[rows]
    (before, by_camera, *_), (same, by_cluster, *_), (after, *_), _ = drawn
    for i, j in itertools.combinations(range(30), 2):
        assert (by_camera[i] == by_camera[j]) == (camids[i] == camids[j])
        assert (by_cluster[i] == by_cluster[j]) == (labels[i] == labels[j])
    assert {by_cluster[i] for i in np.flatnonzero(labels < 0)} == {report_network.GREY}
    features = normalize(report_network.embed(model, run.cfg, [run.paths[i] for i in rows]), dim=1)
    assert np.array_equal(before, same) and not np.array_equal(before, after)
    assert after == pytest.approx(features[:, :2].numpy(), abs=1e-6)
    share, chance = camera_shares(features, camids, 10)
    assert found["after"]["share"] == f"{100 * share:.0f} %"
    assert found["chance"] == f"{100 * chance:.0f} %"


def test_a_map_sets_apart_what_is_far_apart():
    rng = np.random.default_rng(0)
    features = torch.from_numpy(np.repeat([[0.0, 9.0], [9.0, 0.0]], 10, axis=0) + rng.normal(
        scale=0.1, size=(20, 2))).float()
    places = report_network.flatten(features, 1)
    far = np.linalg.norm(places[:, None] - places[None], axis=2)
    assert far[:10, :10].max() < far[:10, 10:].min()
    with pytest.raises(Missing, match="the features of all images are the same"):
        report_network.flatten(torch.ones(20, 4), 1)


def test_only_the_largest_clusters_are_coloured():
    labels = np.repeat(np.arange(25), np.arange(25, 0, -1))
    colours, count = report_network.cluster_colours(np.append(labels, -1))
    assert count == 20 and colours[-1] == report_network.GREY
    for cluster in range(25):
        own = {c for c, label in zip(colours, labels, strict=False) if label == cluster}
        assert len(own) == 1 and (own == {report_network.GREY}) == (cluster >= 20)


def test_a_scatter_is_drawn():
    pixels = np.asarray(picture(report_draw.scatter(
        np.array([[0.0, 0.0], [1.0, 1.0]]), ["#ff0000", "#0000ff"], np.array([40.0, 40.0]),
        np.array([1.0, 1.0]))))
    for half, colour in ((pixels[len(pixels) // 2:], 0), (pixels[:len(pixels) // 2], 2)):
        solid = half[half[..., 3] > 200]
        assert len(solid) and (solid[:, colour] > 200).all()


def test_without_attention_a_sentence_says_so(tmp_path, page_of):
    text = page_of(write_run(tmp_path / "plain", configure(
        "MODEL.HEADS.CAMSEP.ATTENTION", "none", "MODEL.LOSSES.NAME", "('InfoNCELoss',)",
        "MODEL.HEADS.CAMSEP.NUM_CAMERAS", "0"))).text
    assert "The network has no attention to draw (MODEL.HEADS.CAMSEP.ATTENTION none" in text
    assert "After training, by camera" in text


def identity(path):
    return int(os.path.basename(path).split("_")[0])


def test_rank_lists_of_a_labelled_test_set(run):
    model = report_network.build_trained(run)
    found = ranks.rank_lists(model, run, 1)
    name, query, gallery, _ = run_module.find_test_set(run.cfg)
    assert name == "Market1501" and found["queries"] == len(query) == 16
    assert found["gallery"] == found["gallery_total"] == len(gallery)
    features = normalize(report_network.embed(
        model, run.cfg, [item[0] for item in query + gallery]), dim=1).numpy()
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
    named = ranks._hits(query[0], gallery, np.arange(9), np.ones(9), ["gate", "door"], "")
    assert [item["caption"] for item in (named["query"], *named["found"])] == [
        ["gate", "door"][camera] for _, _, camera in (query[0], *gallery[:9])]


def test_distances_may_be_euclidean():
    found = ranks.measure(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), "euclidean")
    assert found.tolist() == [[5.0]]


def test_a_large_gallery_is_thinned_out(run_folder, page_of, monkeypatch):
    gallery = [(str(i), i % 50, 0) for i in range(1000)]
    monkeypatch.setattr(ranks, "GALLERY", 100)
    kept, total = ranks.thin_out(gallery, {3, 4}, np.random.default_rng(0))
    assert total == 1000 and len(kept) == 100 and kept == sorted(kept, key=gallery.index)
    assert [item for item in gallery if item[1] in (3, 4)] == [
        item for item in kept if item[1] in (3, 4)]
    monkeypatch.setattr(ranks, "GALLERY", 30)
    assert "Looked for among 32 of 33 gallery images" in page_of(run_folder).text


def test_without_test_labels_training_images_of_other_cameras_are_ranked(run_folder, page_of):
    page = page_of(run_folder, "DATASETS.TESTS", "()")
    assert "right and wrong are not known" in page.text
    assert not {"crop right", "crop wrong"} & set(page.attributes("class"))
    run = run_module.read_run(run_folder, None, ["DATASETS.TESTS", "()"])
    lists = ranks.rank_lists(None, run, 1)["lists"]
    assert len(lists) == 8
    features = run.features.numpy()
    for part in lists:
        i = run.paths.index(part["query"]["path"])
        expected = sorted((1 - features[i] @ features[j], j) for j in range(48)
                          if run.camids[j] != run.camids[i])
        assert [item["path"] for item in part["found"]] == [run.paths[j] for _, j in expected[:10]]


def test_a_test_set_without_an_answer_or_gone_costs_one_section(run_folder, tiny_market, page_of):
    for path in people(tiny_market, "bounding_box_test"):
        if not path.name.startswith(("0000", "-1")):
            path.unlink()
    for keys, message in (([], "None of 16 queries of Market1501 has an image of its identity"),
                       (["DATASETS.TESTS", "('DukeMTMC',)"],
                        "The test set DukeMTMC (DATASETS.TESTS) cannot be listed")):
        text = page_of(run_folder, *keys).text
        assert message in text and "After training, by camera" in text


def cut(folder, monkeypatch):
    path = folder / "model_final.pth"
    path.write_bytes(path.read_bytes()[:-400])
    (folder / "model_0000.pth").write_bytes(b"")


def fill_the_disk(folder, monkeypatch):
    monkeypatch.setattr(page_module, "make_page", lambda run, args: "the new one")
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=OSError(28, "No space left on device")))


@pytest.mark.parametrize("spoil, message", [
    (lambda folder, _: (folder / "config.yaml").unlink(), "holds no config.yaml.*OUTPUT_DIR"),
    (lambda folder, _: (folder / "config.yaml").write_text("SEED: [1]"), "a value in it"),
    (cut, "model_final.pth is damaged.*Name another with --checkpoint: model_0000.pth"),
    (lambda folder, _: torch.save({"x": torch.zeros(2)}, folder / "model_final.pth"),
     "holds no memory bank.*supervised run"),
    (fill_the_disk, "report.html cannot be written: .*No space left")])
def test_what_fails_keeps_the_old_report(run_folder, monkeypatch, spoil, message):
    (run_folder / "report.html").write_text("the old one")
    spoil(run_folder, monkeypatch)
    with pytest.raises(SystemExit, match=f"(?s)^caureid report: .*{message}"):
        call(command, [run_folder])
    assert (run_folder / "report.html").read_text() == "the old one"


def test_a_checkpoint_that_is_named(run_folder, page_of):
    (run_folder / "model_final.pth").rename(run_folder / "model_0001.pth")
    assert "model_0001.pth, written" in page_of(run_folder, "--checkpoint", "model_0001.pth").text


def test_training_images_that_are_not_the_runs(run_folder, tiny_market):
    first = people(tiny_market)[0]
    moved = first.with_name(first.name.replace("_c1", "_c2").replace("_000000", "_000009"))
    first.rename(moved)
    with pytest.raises(SystemExit, match=rf"{NOT_THE_RUNS}.*other cameras.*\[23, 25\], in the bank "
                                         r"\[24, 24\].*FASTREID_DATASETS"):
        call(command, [run_folder])
    moved.unlink()
    with pytest.raises(SystemExit, match=rf"{NOT_THE_RUNS}DATASETS.NAMES .* below .*has 47 training"
                                         r" images, the memory bank .* 48\. Give"):
        call(command, [run_folder])
    for names in ("('Nothing',)", "()"):
        with pytest.raises(SystemExit, match="(?s)cannot be listed.*FASTREID_DATASETS"):
            call(command, [run_folder, "DATASETS.NAMES", names])


@pytest.fixture
def folder_run(tmp_path, monkeypatch):
    """A run on CameraFolder, whose ROOT is relative to the folder it was started in."""
    monkeypatch.chdir(tmp_path)
    write_crops(tmp_path / "crops", ("gate", "yard"), 24)
    cfg = configure("DATASETS.NAMES", "('CameraFolder',)", "DATASETS.TESTS", "()",
                    "CAMERA_FOLDER.ROOT", "crops")
    folder = write_run(tmp_path / "run", cfg)
    change_checkpoint(folder, training_images={
        "digest": images_digest([path for path, _ in training_images(cfg)])})
    return folder


def test_cameras_are_named_as_their_folders(folder_run, page_of):
    run = run_module.read_run(folder_run, None, [])
    assert run.names == ["gate", "yard"] and run.prefix == ""
    text = page_of(folder_run).text
    assert "The camera stands below" in text
    assert "with which all begin" not in text and "camerafolder_" not in text


def test_a_folder_of_images_that_is_not_found(folder_run, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with pytest.raises(SystemExit) as error:
        call(command, [folder_run])
    text = error.value.code
    assert "below CAMERA_FOLDER.ROOT crops cannot be listed: " in text
    assert f"crops is relative to the current directory, {elsewhere}: run the report" in text
    assert "FASTREID_DATASETS" not in text
    run_module.read_run(folder_run, None, ["CAMERA_FOLDER.ROOT", str(tmp_path / "crops")])
    with pytest.raises(SystemExit, match="ROOT /absent cannot be listed") as error:
        call(command, [folder_run, "CAMERA_FOLDER.ROOT", "/absent"])
    assert "is relative to" not in error.value.code


def test_as_many_images_of_other_names_are_not_the_runs(folder_run, tmp_path):
    (tmp_path / "crops" / "gate" / "03.png").rename(tmp_path / "crops" / "gate" / "99.png")
    with pytest.raises(SystemExit, match=rf"{NOT_THE_RUNS}the 48 training images of .*CAMERA_FOLDER"
                                         r".ROOT crops are as many.*other files: names were changed"
                                         r".*Restore the files"):
        call(command, [folder_run])
    # a checkpoint of an earlier version does not know its images' names
    change_checkpoint(folder_run, training_images=None)
    assert len(run_module.read_run(folder_run, None, []).paths) == 48


def test_training_images_that_are_listed_but_gone(run, monkeypatch):
    items = [(path, run.camera(i)) for i, path in enumerate(run.paths)]
    monkeypatch.setattr(run_module, "training_images",
                        lambda cfg: [("/absent.jpg", items[0][1]), *items[1:]])
    with pytest.raises(ReportError, match=r"1 of the 48 training images .* the first is /absent"):
        run_module.read_run(run.folder, None, [])


def test_images_that_became_unreadable_cost_their_sections(run_folder, tiny_market, page_of):
    for path in people(tiny_market):
        path.write_bytes(b"no image")
    text = page_of(run_folder).text
    assert text.count("An image cannot be read: ") == 2  # clusters, outliers
    assert "None of the images can be drawn" in text and "Images cannot be embedded" in text
    assert "average precision" in text


@pytest.mark.parametrize("options, message", [
    (["--output", "page.pdf"], "'--output': page.pdf must end in .html"),
    (["--output", "there.html"], "'--output': there.html cannot be written"),
    (["--images", "3"], "'--images': 3 is not in the range x>=8"),
    (["--seed", "-1"], "'--seed': -1 is not in the range"),
    (["SEED"], "config keys and values must come in pairs, got SEED"),
])
def test_bad_options_are_said_before_the_work(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.html").mkdir()
    monkeypatch.setattr(page_module, "read_run", None)
    with pytest.raises(SystemExit) as stopped:
        call(command, [tmp_path, *options])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_a_page_that_cannot_be_written_into_the_run_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "report.html").mkdir()
    (tmp_path / "config.yaml").touch()
    monkeypatch.setattr(page_module, "read_run", None)
    with pytest.raises(SystemExit):
        call(command, [tmp_path])
    assert "report.html cannot be written" in capsys.readouterr().err


def test_fewest_images_of_a_map():
    images, = (option for option in command.params if option.name == "images")
    assert images.type.min == report_network.LEAST


def test_keys_that_do_not_fit_the_weights(kept_run):
    with pytest.raises(SystemExit, match=r"(?s)cannot take the weights of .*model_final.pth: .*"
                                         r"take back the config"):
        call(command, [kept_run, "MODEL.BACKBONE.FEAT_DIM", "24"])
