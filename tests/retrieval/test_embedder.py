"""A loaded run gives the embeddings of the toolbox's own predictor."""

import io
import json
import re
import shutil
import struct
import sys
import zlib

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
from caureid_plugin.retrieval.run_folder import write_statistics
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


@pytest.fixture(scope="module")
def kept():
    return []


@pytest.fixture
def loaded(base, kept):
    """The run as it is loaded, once."""
    if not kept:
        kept.append(load_run(base))
    return kept[0]


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

    def one_buffer():
        buffer = np.empty_like(arrays[0])
        for array in arrays:
            buffer[:] = array
            yield buffer

    assert (loaded.embed(one_buffer(), batch_size=4) == expected).all()
    frames = [Image.fromarray(array) for array in arrays]
    frames[0].save(tmp_path / "frames.tiff", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "frames.tiff") as film:
        found = loaded.embed(ImageSequence.Iterator(film), batch_size=4)
    assert (found == expected).all()
    lazy = Image.open(paths[0])
    assert (loaded.embed([lazy] * 8, batch_size=8) == loaded.embed(arrays[:1] * 8)).all()


@pytest.mark.parametrize("kind", [
    OSError, SyntaxError, AssertionError, IndexError, KeyError, struct.error, zlib.error,
    Image.DecompressionBombError, MemoryError])
def test_whatever_a_decoder_raises_names_the_image(loaded, market, monkeypatch, kind):
    paths = paths_of(market)

    def broken(self):
        raise kind("broken")

    image = Image.open(paths[0])
    monkeypatch.setattr(type(image), "load", broken)
    with pytest.raises(ValueError, match="Image 2: Pillow cannot decode it .*broken"):
        loaded.embed([np.zeros((4, 4, 3), np.uint8)] * 2 + [image])
    with pytest.raises(ValueError, match=rf"Cannot read the image {re.escape(str(paths[1]))}"):
        loaded.embed(paths[1])


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
    with pytest.raises(ValueError, match="batch_size 0 must be at least 1"):
        loaded.embed(paths, batch_size=0)
    with pytest.raises(ValueError, match=r"shape \(1, 3, 8, 8\).*takes \(B, 3, 32, 16\): embed"):
        loaded(torch.zeros(1, 3, 8, 8))


def test_embeddings_that_are_none(loaded, monkeypatch):
    image = np.zeros((8, 8, 3), np.uint8)
    for value in (0.0, float("nan")):
        monkeypatch.setattr(loaded, "network", lambda images, value=value: torch.tensor(
            [[1.0, 0], [value, 0]]))
        with pytest.raises(ValueError, match="embedding of image 1 is zero or not finite"):
            loaded.embed([image, image])


# --------------------------------------------------------------------------------- comparing ----


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


def test_statistics_are_those_of_the_bank(run):
    bank = torch.load(run / "model_final.pth", weights_only=True)["memory_bank"]
    found = load_run(run).statistics
    features, labels = bank["features"].numpy(), bank["labels"].tolist()
    same = sorted(float(features[i] @ features[j]) for i in range(66) for j in range(i)
                  if labels[i] == labels[j] >= 0 and (i - j) % 2)
    np.testing.assert_allclose(found.same, same, atol=0.000501)
    assert found.across and found.source == "memory bank"


def test_statistics_that_were_measured(run):
    loaded = load_run(run)
    kept = PairStatistics(np.linspace(0.5, 1, 501, dtype=np.float32),
                          np.linspace(-0.5, 0.5, 1001, dtype=np.float32))
    path = write_statistics(run, loaded.fingerprint, kept)
    found = load_run(run).statistics
    assert found.source == "training images" and found.threshold() == kept.threshold()
    np.testing.assert_array_equal(found.same, kept.same)
    other = load_run(run, opts=["INPUT.SIZE_TEST", "[64,32]"])  # another network
    assert other.statistics.source == "memory bank"
    text = path.read_text()
    for broken in ("", "[]", "{}", text.replace("across", "acros"),
                   text.replace(": {", ': 5, "x": {', 1)):
        path.write_text(broken)
        with pytest.raises(RunError, match="pair_statistics.json is damaged.*tools/threshold.py"):
            load_run(run)
    path.write_text(text.replace('"format": 2', '"format": 3'))
    for call in (lambda: load_run(run), lambda: write_statistics(run, 32 * "0", kept)):
        with pytest.raises(RunError, match="has format 3, and this version reads 2: use the"):
            call()
    path.write_text(json.dumps({"format": 1, "fingerprint": loaded.fingerprint,
                                "statistics": kept.to_json()}))  # of version 0.3.0's first days
    assert load_run(run).statistics.threshold() == kept.threshold()


def test_statistics_of_several_networks_of_a_run(run):
    keys = ["INPUT.SIZE_TEST", "[64,32]"]
    kept = [PairStatistics(np.linspace(low, 1, 501, dtype=np.float32),
                           np.linspace(-0.5, low, 1001, dtype=np.float32)) for low in (0.5, 0.7)]
    for opts, statistics in zip(((), keys), kept, strict=True):
        write_statistics(run, load_run(run, opts=opts).fingerprint, statistics)
    for opts, statistics in zip(((), keys), kept, strict=True):
        assert load_run(run, opts=opts).statistics.threshold() == statistics.threshold()
    write_statistics(run, load_run(run).fingerprint, kept[1])  # measured anew
    assert load_run(run).statistics.threshold() == kept[1].threshold()


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


def test_clusters_of_one_image_are_outliers(run):
    """With CAUREID.LABELS bank each outlier is in a cluster of its own."""
    content = torch.load(run / "model_final.pth", weights_only=True)
    expected = load_run(run).statistics
    labels = content["memory_bank"]["labels"]
    labels[labels < 0] = torch.arange(6, 12)
    torch.save(content, run / "model_final.pth")
    found = load_run(run).statistics
    assert (found.same == expected.same).all() and (found.different == expected.different).all()


@pytest.mark.parametrize("change, said", [
    (lambda bank: None, "holds no memory bank"),
    (lambda bank: {**bank, "labels": bank["labels"][1:]}, "is not whole"),
    (lambda bank: {**bank, "labels": torch.full((66,), -1)},
     "0 pairs of images in the same cluster"),
])
def test_without_statistics(run, market, change, said):
    content = torch.load(run / "model_final.pth", weights_only=True)
    content["memory_bank"] = change(content["memory_bank"])
    torch.save(content, run / "model_final.pth")
    loaded = load_run(run)
    assert loaded.statistics is None and said in loaded.why_no_statistics
    paths = paths_of(market)[:2]
    assert loaded.compare(*paths)[1:] == (None, None)


# ------------------------------------------------------------------------------- fingerprint ----


def test_fingerprint(run):
    whole = load_run(run).fingerprint
    assert re.fullmatch("[0-9a-f]{32}", whole)
    copy = run.parent / "elsewhere"
    shutil.copytree(run, copy)
    (copy / "model_final.pth").rename(copy / "model_0001.pth")
    assert load_run(copy).fingerprint == load_run(copy / "model_0001.pth").fingerprint == whole
    content = torch.load(run / "model_final.pth", weights_only=True)
    for name in ("heads.camera_classifier.weight", "heads.camera_neck.running_mean"):
        content["model"][name] += 1  # no part in the embedding
    torch.save(content, run / "model_final.pth")
    assert load_run(run).fingerprint == whole
    others = {whole}
    for keys in (("INPUT.SIZE_TEST", "[64,32]"), ("MODEL.PIXEL_MEAN", "[1,2,3]"),
                 ("MODEL.HEADS.CAMSEP.GAIN", "2.0"), ("MODEL.HEADS.POOL_LAYER", "GlobalMaxPool")):
        others.add(load_run(run, opts=keys).fingerprint)
    for name in ("heads.bottleneck.0.running_mean", "heads.attention.combine.0.weight"):
        content["model"][name].view(-1)[0] += 1e-3
        torch.save(content, run / "model_final.pth")
        others.add(load_run(run).fingerprint)
    assert len(others) == 7


# ----------------------------------------------------------------------------------- loading ----


def test_what_training_alone_needs_is_gone(small_run):
    for number, options in enumerate(((), BASELINE)):
        network = load_run(small_run(*options, folder=f"run{number}")).network
        names = {name.split(".")[1] for name in network.state_dict() if name.startswith("head.")}
        assert not names & set(TRAINING_ONLY) and "bottleneck" in names
        assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_neither_images_nor_pretrained_weights_need_be_there(run, monkeypatch):
    text = (run / "config.yaml").read_text()
    for old, new in (("PRETRAIN: false", "PRETRAIN: true"), ("PRETRAIN_PATH: ''",
                                                            "PRETRAIN_PATH: /absent.pth"),
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
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace("DEVICE: cpu", "DEVICE: cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load_run(run).device == torch.device("cpu")
    assert load_run(run, device="cpu").device == torch.device("cpu")
    with pytest.raises(RunError, match="device 'cuda:1': PyTorch sees no CUDA.*give 'cpu'"):
        load_run(run, device="cuda:1")
    with pytest.raises(RunError, match="device 'gpu' is none that PyTorch knows: give 'cpu'"):
        load_run(run, device="gpu")


@pytest.mark.parametrize("given, kind", [
    (None, "NoneType"), (5, "int"), (b"bytes", "bytes"), (io.BytesIO(), "BytesIO")])
def test_what_is_no_image(loaded, given, kind):
    for images in (given, [given]):
        with pytest.raises(ValueError, match=f"Image 0: An image is a path, .* this is a {kind}"):
            loaded.embed(images)


def rename_weight(content):
    content["model"]["heads.other"] = content["model"].pop("heads.bottleneck.0.weight")


def reshape_weight(content):
    content["model"]["heads.bottleneck.0.weight"] = torch.ones(3)


def spoil_weight(content):
    content["model"]["heads.bottleneck.0.weight"][2] = float("nan")


@pytest.mark.parametrize("change, said", [
    (rename_weight, r"does not fit the run's config.yaml: it lacks 1 of its parts and has 1"),
    (rename_weight, r"others, heads.bottleneck.0.weight for one\. Give a checkpoint of this run"),
    (reshape_weight, r"heads.bottleneck.0.weight has shape \(3,\), and the network's \(16,\)"),
    (spoil_weight, "a run that went wrong: its heads.bottleneck.0.weight is NaN"),
    (lambda content: content.pop("model"), 'holds no network \\("model"\\)'),
])
def test_checkpoints_of_other_networks(run, change, said):
    content = torch.load(run / "model_final.pth", weights_only=True)
    change(content)
    torch.save(content, run / "model_final.pth")
    with pytest.raises(RunError, match=said):
        load_run(run)


def test_the_counter_of_batch_norm_may_be_missing(run):
    expected = load_run(run).fingerprint
    content = torch.load(run / "model_final.pth", weights_only=True)
    for name in [name for name in content["model"] if name.endswith("num_batches_tracked")]:
        del content["model"][name]
    content["model"] = {f"module.{name}": value for name, value in content["model"].items()}
    torch.save(content, run / "model_final.pth")
    assert load_run(run).fingerprint == expected


@pytest.mark.parametrize("keys, said", [
    (("MODEL.META_ARCHITECTURE", "MGN"), "META_ARCHITECTURE MGN is not one whose embedding"),
    (("MODEL.META_ARCHITECTURE", "Baseline", "MODEL.HEADS.NAME", "ClasHead", "MODEL.LOSSES.NAME",
      "('CrossEntropyLoss',)", "MODEL.HEADS.NUM_CLASSES", "5"),
     "MODEL.HEADS.NAME ClasHead gives no embedding"),
    (("INPUT.SIZE_TEST", "[40]"), r"INPUT.SIZE_TEST \[40\] images keep their proportions"),
    (("MODEL.BACKBONE.NAME", "build_absent"), "cannot be built: .*build_absent"),
    (("MODEL.ABSENT", "1"), "On the command line: .*MODEL.ABSENT"),
])
def test_configs_that_give_no_embedding(run, keys, said):
    with pytest.raises(RunError, match=f"(?s){said}"):
        load_run(run, opts=keys)


def test_folders_that_are_no_runs(run, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, said in (("absent", "does not exist"), ("file", "is not a folder"),
                       ("empty", "holds no config.yaml")):
        with pytest.raises(RunError, match=f"{said}.*OUTPUT_DIR"):
            load_run(tmp_path / name)
    for path in (run / "model_0007.pth", tmp_path / "empty" / "absent.pth"):
        with pytest.raises(RunError, match=f"{path.name} is not a file: check"):
            load_run(path)
    (run / "model_final.pth").rename(tmp_path / "empty" / "x.pth")
    with pytest.raises(RunError, match="empty holds no config.yaml.*OUTPUT_DIR"):
        load_run(tmp_path / "empty" / "x.pth")
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
