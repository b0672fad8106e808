"""A loaded run gives the embeddings of the toolbox's own predictor."""

import functools
import io
import json
import re
import shutil
import struct
import sys

import caureid_plugin
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from caureid_plugin import load_run
from caureid_plugin.data import build_extraction_loader
from caureid_plugin.engine import build_network, extract_features, load_config
from caureid_plugin.retrieval import PairStatistics, RunError
from caureid_plugin.retrieval.network import TRAINING_ONLY
from caureid_plugin.runs.folder import write_statistics
from fastreid.engine import DefaultPredictor
from PIL import Image, ImageSequence

from helpers.tiny import write_market

BASELINE = ("MODEL.META_ARCHITECTURE", "Baseline", "MODEL.HEADS.NAME", "EmbeddingHead",
            "MODEL.LOSSES.NAME", "('CrossEntropyLoss',)", "MODEL.HEADS.NUM_CLASSES", "5",
            "MODEL.HEADS.WITH_BNNECK", "True")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where what the tests of this module only read is: images and a run."""
    return tmp_path_factory.mktemp("embedder")


@pytest.fixture(scope="module")
def market(home):
    return write_market(home)


@pytest.fixture
def base(small_run, home):
    if not (home / "small_run").exists():
        shutil.copytree(small_run(folder="first"), home / "small_run")
    return home / "small_run"


@pytest.fixture
def run(base, tmp_path):
    """A copy of the run, for a test to change."""
    return shutil.copytree(base, tmp_path / "small_run")


load_once = functools.cache(load_run)


@pytest.fixture
def loaded(base):
    return load_once(base)


def paths_of(market, folder="query"):
    return sorted((market / "Market-1501-v15.09.15" / folder).glob("*.jpg"))


def images_of(embedded, paths):
    """(N, 3, H, W) as the toolbox's evaluation gives them."""
    return torch.stack([torch.from_numpy(embedded.preprocessing(Image.open(path)))
                        for path in paths])


@pytest.mark.parametrize("options", [
    (), BASELINE, ("MODEL.HEADS.CAMSEP.ATTENTION", "none", "MODEL.LOSSES.NAME", "('InfoNCELoss',)"),
    ("MODEL.HEADS.CAMSEP.RANGE", "half", "MODEL.HEADS.CAMSEP.UNIFORM_START", "False"),
    ("MODEL.HEADS.EMBEDDING_DIM", "8"),
], ids=["ours", "toolbox", "no attention", "half", "reduced"])
def test_embeddings_are_those_of_the_default_predictor(small_run, market, options):
    run = small_run(*options)
    loaded = load_run(run)
    cfg = load_config(str(run / "config.yaml"), ["MODEL.WEIGHTS", str(run / "model_final.pth")])
    images = images_of(loaded, paths_of(market))
    given = images.clone()
    theirs = F.normalize(DefaultPredictor(cfg)(images.clone()), dim=1)
    ours = loaded(images)
    assert torch.equal(images, given) and ours.shape == (16, loaded.dim) == theirs.shape
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert loaded(images[:0]).shape == (0, loaded.dim)
    # no two images alike: a constant would agree, too
    assert (ours @ ours.T).fill_diagonal_(0).max() < 0.9999


def test_embeddings_of_files_are_those_of_the_evaluation(run, market):
    loaded, paths = load_run(run), paths_of(market, "bounding_box_test")
    cfg = load_config(str(run / "config.yaml"))
    model = build_network(cfg, str(run / "model_final.pth"))
    expected = F.normalize(extract_features(
        model, build_extraction_loader(cfg, [(str(path), 1) for path in paths])), dim=1).numpy()
    for size in (1, 7, 64):
        found = loaded.embed(paths, batch_size=size)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_all_kinds_of_images(loaded, market):
    paths = paths_of(market)[:5]
    expected = loaded.embed(paths)
    arrays = [np.asarray(Image.open(path)) for path in paths]
    for images in (map(str, paths), (Image.open(path) for path in paths), arrays,
                   np.stack(arrays), tuple(paths)):
        assert (loaded.embed(images) == expected).all()
    assert (loaded.embed([array[:, :, ::-1] for array in arrays], bgr=True) == expected).all()
    assert np.abs(loaded.embed([array[:, :, ::-1] for array in arrays]) - expected).max() > 1e-3
    for one in (paths[0], str(paths[0]), arrays[0], Image.open(paths[0])):
        np.testing.assert_allclose(loaded.embed(one), expected[:1], atol=1e-6)
    assert loaded.embed([]).shape == (0, loaded.dim)


def test_images_that_come_in_one_buffer(loaded, market, tmp_path):
    """As OpenCV and Pillow's iterator over frames give them."""
    paths = paths_of(market)[:9]
    arrays = [np.asarray(Image.open(path)) for path in paths]
    expected = loaded.embed(arrays, batch_size=4)
    buffer = np.empty_like(arrays[0])
    in_buffer = (np.copyto(buffer, array) or buffer for array in arrays)
    assert (loaded.embed(in_buffer, batch_size=4) == expected).all()
    frames = [Image.fromarray(array) for array in arrays]
    frames[0].save(tmp_path / "frames.tiff", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "frames.tiff") as film:
        found = loaded.embed(ImageSequence.Iterator(film), batch_size=4)
    assert (found == expected).all()
    lazy = Image.open(paths[0])
    assert (loaded.embed([lazy] * 8, batch_size=8) == loaded.embed(arrays[:1] * 8)).all()


def test_a_picture_that_would_take_long_to_decode(loaded, tmp_path):
    Image.new("L", (1, 20_000)).save(tmp_path / "thin.png")
    with Image.open(tmp_path / "thin.png") as image, pytest.raises(
            ValueError, match="Image 0: Pillow cannot decode it .1 x 20000 pixels; a side may"):
        loaded.embed([image])


@pytest.mark.parametrize("kind", [
    OSError, SyntaxError, struct.error, Image.DecompressionBombError, MemoryError])
def test_whatever_a_decoder_raises_names_the_image(loaded, market, monkeypatch, kind):
    def broken(self):
        raise kind("broken")

    path = paths_of(market)[1]
    image = Image.open(path)
    monkeypatch.setattr(type(image), "load", broken)
    with pytest.raises(ValueError, match="Image 2: Pillow cannot decode it .*broken"):
        loaded.embed([np.zeros((4, 4, 3), np.uint8)] * 2 + [image])
    with pytest.raises(ValueError, match=rf"Cannot read the image {re.escape(str(path))}"):
        loaded.embed(path)


def test_a_bar_for_many(loaded, market, capsys, monkeypatch):
    loaded.embed(paths_of(market), batch_size=4, progress=True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    loaded.embed(paths_of(market), batch_size=4)
    assert capsys.readouterr().err == ""  # no terminal; not asked for
    loaded.embed(paths_of(market), batch_size=4, progress=True)
    assert "16/16" in capsys.readouterr().err


def test_reading_stays_one_batch_ahead(loaded, monkeypatch):
    """However many images there are, no more than two batches are in memory."""
    taken, seen = [], []
    whole = loaded.network
    monkeypatch.setattr(
        loaded, "network", lambda images: (seen.append(len(taken)), whole(images))[1])

    def images():
        for number in range(40):
            taken.append(number)
            yield np.full((8, 8, 3), number * 6, np.uint8)

    assert len(loaded.embed(images(), batch_size=4)) == 40
    assert seen == [8, 12, 16, 20, 24, 28, 32, 36, 40, 40]


def test_images_that_cannot_be_read(loaded, market, tmp_path):
    paths = paths_of(market)
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(paths[0].read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"^Cannot read the image {re.escape(str(bad))}: "):
        loaded.embed([*paths[:3], bad, *paths[3:]], batch_size=2)
    with pytest.raises(ValueError, match=r"Image 1: An array of shape \(5, 5\) and type float64"):
        loaded.embed([np.zeros((5, 5), np.uint8), np.zeros((5, 5))])
    for given in (None, 5, b"bytes", io.BytesIO()):
        message = f"Image 0: An image is a path, .* this is a {type(given).__name__}"
        for images in (given, [given]):
            with pytest.raises(ValueError, match=message):
                loaded.embed(images)
    with pytest.raises(ValueError, match="batch_size 0 must be at least 1"):
        loaded.embed(paths, batch_size=0)
    with pytest.raises(ValueError, match=r"shape \(1, 3, 8, 8\).*takes \(B, 3, 32, 16\): embed"):
        loaded(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_embeddings_that_are_none(loaded, monkeypatch, value):
    monkeypatch.setattr(loaded, "network", lambda images: torch.tensor([[1.0, 0], [value, 0]]))
    with pytest.raises(ValueError, match="embedding of image 1 is zero or not finite"):
        loaded.embed([np.zeros((8, 8, 3), np.uint8)] * 2)


def test_comparison(loaded, market):
    first, second = paths_of(market)[:2]
    found = loaded.compare(first, np.asarray(Image.open(second)))
    a, b = loaded.embed([first, second]).astype(np.float64)
    assert found.similarity == pytest.approx(sum(x * y for x, y in zip(a, b, strict=True)),
                                             abs=1e-6)
    assert found.threshold == loaded.statistics.threshold()
    assert found.same == (found.similarity >= found.threshold.value)
    same = loaded.compare(first, first, false_match_rate=0.01)
    assert same.same and same.similarity == pytest.approx(1, abs=1e-6) and same.similarity <= 1
    assert same.threshold == loaded.statistics.threshold(0.01) != found.threshold


def log_silhouettes(run, *values):
    """Writes metrics.json of a run of 5 steps an epoch; the checkpoint is after the second."""
    (run / "metrics.json").write_text("".join(
        json.dumps({"iteration": 5 * epoch, "labels/silhouette": value}) + "\n"
        for epoch, value in enumerate(values)))
    content = torch.load(run / "model_final.pth", weights_only=True)
    torch.save({**content, "epoch": 1, "run_state": {"iters_per_epoch": 5, "steps_done": 0}},
               run / "model_final.pth")


def test_of_a_run_that_went_wrong_same_is_not_told(run, market, caplog):
    """Scores stay, a warning says why, and it can be asked for all the same."""
    paths = paths_of(market)[:2]
    log_silhouettes(run, 0.5, 0.4, 0.123)
    loaded = load_run(run)
    assert loaded.verdict.level == "bad" and "silhouette 0.12" in loaded.verdict.reason
    assert "training went wrong: clusters lie within each other" in loaded.verdict.reason
    warning, = caplog.records
    assert warning.getMessage().startswith(
        f"small_run/model_final.pth: {loaded.verdict.reason} Same or different is shown only on ")
    found, forced = loaded.compare(*paths), loaded.compare(*paths, despite_verdict=True)
    assert found[1:] == (None, None) and found.similarity == forced.similarity
    assert forced.threshold == loaded.statistics.threshold() and forced.same is not None


@pytest.mark.parametrize("values, level", [
    ([0.5, 0.1, 0.5], "good"), ([0.5, 0.5, 0.25], "mixed"),
    ([0.5, 0.5, 0.5, 0.1], "good"),  # of an epoch after the checkpoint's
    ([0.1], "bad"), ([], "unknown")])
def test_the_verdict_is_that_of_the_checkpoint(run, market, caplog, values, level):
    log_silhouettes(run, *values)
    loaded = load_run(run)
    assert loaded.verdict.level == level and len(caplog.records) == (level == "bad")
    assert (loaded.compare(*paths_of(market)[:2]).same is None) == (level == "bad")


def change_checkpoint(run, **changes):
    content = torch.load(run / "model_final.pth", weights_only=True)
    torch.save({**content, **changes}, run / "model_final.pth")


def write_rows(run, *rows):
    (run / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("changed, level, keys", [
    ({}, "bad", ["mAP"]), ({"evaluation_changed": 1.0}, "good", ["mAP"]),
    ({"evaluation_changed": 1.0}, "good", ["Market1501/mAP", "MSMT17/mAP"])])
def test_evaluations_on_other_test_sets_are_not_compared(run, changed, level, keys):
    write_rows(run, {"iteration": 0, "mAP": 60.0, "start/mAP": 58.0},
               {"iteration": 4, **changed}, {"iteration": 5, **dict.fromkeys(keys, 40.0)})
    assert load_run(run).verdict.level == level


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e400", "null"])
def test_a_last_figure_that_is_no_number_is_bad(run, value):
    (run / "metrics.json").write_text('{"iteration": 0, "labels/silhouette": 0.5}\n'
                                      f'{{"iteration": 5, "labels/silhouette": {value}}}\n')
    assert load_run(run).verdict.level == "bad"


def lose_the_end(path):
    path.write_text(path.read_text().splitlines()[0] + "\n")


@pytest.mark.parametrize("spoil, says", [
    (lose_the_end, "metrics.json ends before step 10"),
    (lambda path: path.write_text("x\n" + path.read_text()), "damaged, its line 1"),
    (lambda path: path.write_text(path.read_text(), "utf-16"), "damaged, its line 1"),
    (lambda path: path.unlink(), "missing"), (lambda path: (path.unlink(), path.mkdir()), "missing")
])
def test_without_all_figures_nothing_good_is_known_of_a_run(run, spoil, says):
    """Unless the checkpoint holds them."""
    log_silhouettes(run, 0.5, 0.1, 0.1)
    assert load_run(run).verdict.level == "bad"
    spoil(run / "metrics.json")
    verdict = load_run(run).verdict
    assert verdict.level == "unknown" and says in verdict.reason
    assert verdict.reason.startswith("Whether training went well is not known: ")
    for last, level in ((0.1, "bad"), (0.5, "good")):
        change_checkpoint(run, run_state={"iters_per_epoch": 5, "steps_done": 0, "scalars": {
            "labels/silhouette": (False, [(0.5, 0), (last, 5)])}})
        assert load_run(run).verdict.level == level
    for scalars in ([], {"labels/silhouette": 1}, {"labels/silhouette": (False, [("x", 1)])}):
        change_checkpoint(run, run_state={"iters_per_epoch": 5, "steps_done": 0,
                                          "scalars": scalars})
        assert load_run(run).verdict == verdict


def test_of_one_camera_no_cluster_can_span_several(run):
    (run / "metrics.json").write_text('{"iteration": 0, "labels/cross_camera": 0.0}\n')
    assert load_run(run).verdict.level == "bad"
    content = torch.load(run / "model_final.pth", weights_only=True)
    content["memory_bank"]["camids"][:] = 0
    torch.save(content, run / "model_final.pth")
    assert load_run(run).verdict.level == "unknown"


@pytest.mark.parametrize("text", [
    "", "[1]\n", "{}\n", "\0\n", '{"iteration": 0, "labels/silhouette": "x"}\n',
    '{"iteration": 0, "labels/silhouette": 1' + 999 * "0" + "}\n",
    '{"iteration": 0, "labels/silhouette": ' + 10 ** 5 * "[" + "\n"])
def test_figures_that_are_none_say_nothing_of_a_run(run, text):
    (run / "metrics.json").write_text(text)
    assert load_run(run).verdict.level == "unknown"


def test_statistics_are_those_of_the_bank(run):
    content = torch.load(run / "model_final.pth", weights_only=True)
    bank, found = content["memory_bank"], load_run(run).statistics
    features, labels = bank["features"].numpy(), bank["labels"].tolist()
    same = sorted(float(features[i] @ features[j]) for i in range(66) for j in range(i)
                  if labels[i] == labels[j] >= 0 and (i - j) % 2)
    np.testing.assert_allclose(found.same, same, atol=0.000501)
    assert found.across and found.source == "memory bank"
    # with CAUREID.LABELS bank each outlier is in a cluster of its own, and stays out
    bank["labels"][bank["labels"] < 0] = torch.arange(6, 12)
    torch.save(content, run / "model_final.pth")
    again = load_run(run).statistics
    assert (again.same == found.same).all() and (again.different == found.different).all()


def test_statistics_that_were_measured(run):
    """Each network of a run has its own, and those of the bank until it is measured."""
    keys = ["INPUT.SIZE_TEST", "[64,32]"]  # another network
    loaded, other = load_run(run), load_run(run, opts=keys)
    first, second = (PairStatistics(np.linspace(low, 1, 501, dtype=np.float32),
                                    np.linspace(-0.5, low, 1001, dtype=np.float32))
                     for low in (0.5, 0.7))
    path = write_statistics(run, loaded.fingerprint, first)
    found = load_run(run).statistics
    assert found.source == "training images" and found.threshold() == first.threshold()
    np.testing.assert_array_equal(found.same, first.same)
    assert load_run(run, opts=keys).statistics.source == "memory bank"
    write_statistics(run, other.fingerprint, second)
    assert load_run(run).statistics.threshold() == first.threshold()
    assert load_run(run, opts=keys).statistics.threshold() == second.threshold()
    write_statistics(run, loaded.fingerprint, second)  # measured anew
    assert load_run(run).statistics.threshold() == second.threshold()
    text = path.read_text()
    for broken in ("", "[]", "{}", text.replace("across", "acros"),
                   text.replace(": {", ': 5, "x": {', 1)):
        path.write_text(broken)
        with pytest.raises(RunError, match="pair_statistics.json is damaged.*caureid threshold"):
            load_run(run)
    path.write_text(text.replace('"format": 2', '"format": 3'))
    for call in (lambda: load_run(run), lambda: write_statistics(run, 32 * "0", first)):
        with pytest.raises(RunError, match="has format 3, and this version reads 2: use the"):
            call()
    path.write_text(json.dumps({"format": 1, "fingerprint": loaded.fingerprint,
                                "statistics": first.to_json()}))  # of version 0.3.0's first days
    assert load_run(run).statistics.threshold() == first.threshold()


def test_the_checkpoint_that_a_run_names(run, caplog):
    (run / "model_0000.pth").write_bytes((run / "model_final.pth").read_bytes())
    assert load_run(run).name == "small_run/model_final.pth" and not caplog.records
    (run / "model_final.pth").unlink()
    assert load_run(run).name == "small_run/model_0000.pth"
    assert "model_final.pth, is not there: model_0000.pth is taken, the newest" in caplog.text
    outside = run.parent / "outside.pth"
    outside.write_bytes((run / "model_0000.pth").read_bytes())
    for name in ("../outside.pth", str(outside), "..\\outside.pth", "..", "", "\0"):
        (run / "last_checkpoint").write_text(name)
        with pytest.raises(RunError, match=r"last_checkpoint is damaged.*or remove it for the new"):
            load_run(run)
    (run / "last_checkpoint").unlink()
    assert load_run(run).name == "small_run/model_0000.pth"


@pytest.mark.parametrize("changes, message", [
    (None, "holds no memory bank"), ({"labels": torch.zeros(65)}, "is not whole"),
    ({"labels": torch.full((66,), 10**12)}, f"to {10**12}, and must be from -1 to 65"),
    ({"camids": torch.full((66,), -1)}, "camids go from -1 to -1, and must be from 0"),
    ({"labels": torch.zeros(66)}, "the last two whole numbers"),
    ({"labels": torch.full((66,), -1)}, "0 pairs of images in the same cluster"),
])
def test_without_statistics(run, market, changes, message):
    content = torch.load(run / "model_final.pth", weights_only=True)
    content["memory_bank"] = changes and {**content["memory_bank"], **changes}
    torch.save(content, run / "model_final.pth")
    loaded = load_run(run)
    assert loaded.statistics is None and message in loaded.why_no_statistics
    assert loaded.compare(*paths_of(market)[:2])[1:] == (None, None)


def test_fingerprint(run):
    whole = load_run(run).fingerprint
    assert re.fullmatch("[0-9a-f]{32}", whole)
    copy = shutil.copytree(run, run.parent / "elsewhere")
    (copy / "model_final.pth").rename(copy / "model_0001.pth")
    assert load_run(copy).fingerprint == load_run(copy / "model_0001.pth").fingerprint == whole
    content = torch.load(run / "model_final.pth", weights_only=True)
    for name in ("heads.camera_classifier.weight", "heads.camera_neck.running_mean"):
        content["model"][name] += 1  # no part in the embedding
    # a plain batch norm may lack its counter, and several processes put a name before each
    content["model"] = {f"module.{name}": value for name, value in content["model"].items()
                        if not name.endswith("num_batches_tracked")}
    torch.save(content, run / "model_final.pth")
    assert load_run(run).fingerprint == whole
    others = {whole}
    for keys in (("INPUT.SIZE_TEST", "[64,32]"), ("MODEL.PIXEL_MEAN", "[1,2,3]"),
                 ("MODEL.HEADS.CAMSEP.RANGE", "half", "MODEL.HEADS.CAMSEP.UNIFORM_START", "False"),
                 ("MODEL.HEADS.POOL_LAYER", "GlobalMaxPool"),
                 ("MODEL.BACKBONE.TIMM.OPTIONS", "num_heads=2"),
                 ("MODEL.BACKBONE.TIMM.STRIDE", "4")):
        others.add(load_run(run, opts=keys).fingerprint)
    for name in ("heads.bottleneck.0.running_mean", "heads.attention.combine.0.weight"):
        content["model"][f"module.{name}"].view(-1)[0] += 1e-3
        torch.save(content, run / "model_final.pth")
        others.add(load_run(run).fingerprint)
    assert len(others) == 9
    for value in content["model"].values():
        value.fill_(0.5)
    torch.save(content, run / "model_final.pth")
    assert load_run(run).fingerprint == "fc24927f2cdf0c3877ccd3a709fb01fd"  # as ever


def test_a_run_whose_config_has_a_key_that_is_gone(run):
    config, expected = run / "config.yaml", load_run(run).fingerprint
    text = config.read_text()
    assert "    CAMSEP:\n" in text
    for value in (1.0, 10.0):
        config.write_text(text.replace("    CAMSEP:\n", f"    CAMSEP:\n      GAIN: {value}\n", 1))
        if value == 1.0:
            assert load_run(run).fingerprint == expected
    with pytest.raises(RunError, match=r"CAMSEP\.GAIN 10\.0 .* this one does what 1\.0 did: take"):
        load_run(run)


def test_what_training_alone_needs_is_gone(small_run):
    for number, options in enumerate(((), BASELINE)):
        network = load_run(small_run(*options, folder=f"run{number}")).network
        names = {name.split(".")[1] for name in network.state_dict() if name.startswith("head.")}
        assert not names & set(TRAINING_ONLY) and "bottleneck" in names
        assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_neither_images_nor_pretrained_weights_need_be_there(run):
    text = (run / "config.yaml").read_text()
    for old, new in (("PRETRAIN: false", "PRETRAIN: true"),
                     ("PRETRAIN_PATH: ''", "PRETRAIN_PATH: /absent.pth"),
                     ("- Market1501", "- CameraFolder"), ("NUM_CAMERAS: 2", "NUM_CAMERAS: -1")):
        assert old in text
        text = text.replace(old, new)
    expected = load_run(run).fingerprint
    (run / "config.yaml").write_text(text)
    assert load_run(run).fingerprint == expected


def test_a_trained_run(train_as_script, tmp_path, tiny_market):
    train_as_script("SOLVER.ITERS_PER_EPOCH", "1", "TEST.EVAL_AT_START", "False")
    loaded = load_run(tmp_path / "run")
    assert loaded.name == "run/model_final.pth" and "32 x 16 pixels to 16 numbers" in repr(loaded)
    assert loaded.statistics is not None
    assert len(loaded.embed(paths_of(tiny_market))) == 16
    other = load_run(tmp_path / "run" / "model_0000.pth")
    assert other.name == "run/model_0000.pth" and other.fingerprint != loaded.fingerprint


def test_a_device(run, monkeypatch):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("DEVICE: cpu", "DEVICE: cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in (None, "cpu"):
        assert load_run(run, device=device).device == torch.device("cpu")
    for device, message in (("cuda:1", "'cuda:1': PyTorch sees no CUDA.*give 'cpu'"),
                         ("gpu", "'gpu' is none that PyTorch knows: give 'cpu'")):
        with pytest.raises(RunError, match=f"device {message}"):
            load_run(run, device=device)


WEIGHT = "heads.bottleneck.0.weight"


@pytest.mark.parametrize("change, message", [
    (lambda model: model.update({"heads.other": model.pop(WEIGHT)}),
     rf"it lacks 1 of its parts and has 1 others, {WEIGHT} for one\. Give a checkpoint of this"),
    (lambda model: model.update({WEIGHT: torch.ones(3)}),
     rf"{WEIGHT} has shape \(3,\), and the network's \(16,\)"),
    (lambda model: model[WEIGHT][2:3].fill_(float("nan")),
     f"a run that went wrong: its {WEIGHT} is NaN"), (None, 'holds no network \\("model"\\)'),
])
def test_checkpoints_of_other_networks(run, change, message):
    content = torch.load(run / "model_final.pth", weights_only=True)
    if change:
        change(content["model"])
    torch.save(content if change else {}, run / "model_final.pth")
    with pytest.raises(RunError, match=message):
        load_run(run)


@pytest.mark.parametrize("keys, message", [
    (("MODEL.META_ARCHITECTURE", "MGN"), "META_ARCHITECTURE MGN is not one whose embedding"),
    (("MODEL.META_ARCHITECTURE", "Baseline", "MODEL.HEADS.NAME", "ClasHead", "MODEL.LOSSES.NAME",
      "('CrossEntropyLoss',)", "MODEL.HEADS.NUM_CLASSES", "5"),
     "MODEL.HEADS.NAME ClasHead gives no embedding"),
    (("INPUT.SIZE_TEST", "[40]"), r"INPUT.SIZE_TEST \[40\] images keep their proportions"),
    (("MODEL.BACKBONE.NAME", "build_absent"), "cannot be built: .*build_absent"),
    (("MODEL.ABSENT", "1"), "On the command line: .*MODEL.ABSENT"),
])
def test_configs_that_give_no_embedding(run, keys, message):
    with pytest.raises(RunError, match=f"(?s){message}"):
        load_run(run, opts=keys)


def test_folders_that_are_no_runs(run, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    shutil.copy(run / "model_final.pth", tmp_path / "empty" / "x.pth")
    for name, message in (("absent", "absent does not exist.*OUTPUT_DIR"),
                       ("file", "file is not a folder.*OUTPUT_DIR"),
                       ("empty", "empty holds no config.yaml.*OUTPUT_DIR"),
                       ("empty/x.pth", "empty holds no config.yaml.*OUTPUT_DIR"),
                       ("empty/absent.pth", "absent.pth is not a file: check"),
                       (run / "model_0007.pth", "model_0007.pth is not a file: check")):
        with pytest.raises(RunError, match=message):
            load_run(tmp_path / name)
    (run / "model_final.pth").write_bytes(b"no checkpoint")
    with pytest.raises(RunError, match="damaged.*The folder holds no other"):
        load_run(run)
    (run / "model_final.pth").unlink()
    with pytest.raises(RunError, match="holds no checkpoint.*CHECKPOINT_PERIOD"):
        load_run(run)
    (run / "config.yaml").write_text("CAUREID: {FROM_THE_FUTURE: 1}\nVERSION: 2\n")
    with pytest.raises(RunError, match=rf"of another version of the plugin.*FROM_THE_FUTURE.*This "
                                       rf"version is {re.escape(caureid_plugin.__version__)}"):
        load_run(run)
