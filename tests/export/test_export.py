"""Exported files give PyTorch's embeddings, hold nothing of training, and are told apart."""

import dataclasses
import json
import os
import re
import sys
import time
import zipfile
from pathlib import Path

import caureid_plugin
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from caureid_plugin import load_export, load_run
from caureid_plugin.export import ExportError, export_network, files, graph
from caureid_plugin.retrieval import Index, IndexRefused, PairStatistics
from caureid_plugin.retrieval.run_folder import write_statistics
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
BASELINE = ("MODEL.META_ARCHITECTURE", "Baseline", "MODEL.HEADS.NAME", "EmbeddingHead",
            "MODEL.LOSSES.NAME", "('CrossEntropyLoss',)", "MODEL.HEADS.NUM_CLASSES", "5")
NETWORKS = {
    "ours": (), "toolbox": BASELINE,
    "half range": ("MODEL.HEADS.CAMSEP.RANGE", "half", "MODEL.HEADS.CAMSEP.UNIFORM_START", "False"),
    "gem": ("MODEL.HEADS.POOL_LAYER", "GeneralizedMeanPooling"),
    "osnet": ("MODEL.BACKBONE.NAME", "build_osnet_backbone", "MODEL.BACKBONE.DEPTH", "x0_25",
              "MODEL.BACKBONE.FEAT_DIM", "128"),
    "resnet": ("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.DEPTH", "18x",
               "MODEL.BACKBONE.FEAT_DIM", "512", "MODEL.BACKBONE.LAST_STRIDE", "1"),
}


@pytest.fixture
def paths(tiny_market):
    return sorted((tiny_market / "Market-1501-v15.09.15" / "query").glob("*.jpg"))


def images_of(embedder, paths):
    """(N, 3, H, W), RGB 0..255."""
    return np.stack([embedder.preprocessing(Image.open(path)) for path in paths])


def by_hand(images, convention):
    """As a file of the convention takes them, number by number in float64."""
    if convention == "rgb255":
        return images
    found = images.astype(np.float64) / 255
    for channel, (mean, std) in enumerate(zip(
            (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        found[:, channel] = (found[:, channel] - mean) / std
    return found.astype(np.float32)


def distances(a, b):
    """1 - cosine, row by row, in float64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return 1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("convention", ["rgb255", "imagenet"])
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_gives_pytorchs_embeddings(small_run, paths, tmp_path, name, convention):
    embedder = load_run(small_run(*NETWORKS[name]))
    file = tmp_path / "x.onnx"
    made = export_network(embedder, file, convention=convention)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    images = images_of(embedder, paths)
    expected = embedder(torch.from_numpy(images)).numpy()
    for batch in (1, 8, 16):
        given, = session.get_inputs()
        found, = session.run(None, {given.name: by_hand(images[:batch], convention)})
        assert found.shape == (batch, embedder.dim)
        assert distances(found, expected[:batch]).max() <= 1e-4
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert made.difference <= 1e-4 and distances(expected[:8], expected[8:]).max() > 1e-3
    assert given.shape == ["batch", 3, 32, 16] and given.type == "tensor(float)"


@pytest.mark.parametrize("convention", ["rgb255", "imagenet"])
@pytest.mark.parametrize("name", NETWORKS)
def test_torchscript_gives_pytorchs_embeddings(small_run, paths, tmp_path, name, convention):
    embedder = load_run(small_run(*NETWORKS[name]))
    made = export_network(embedder, tmp_path / "x.torchscript", convention=convention)
    program = torch.jit.load(tmp_path / "x.torchscript")
    images = images_of(embedder, paths)
    expected = embedder(torch.from_numpy(images))
    for batch in (1, 8, 16):
        found = program(torch.from_numpy(by_hand(images[:batch], convention)))
        assert distances(found, expected[:batch]).max() <= 1e-4
    assert made.kind == "torchscript"
    with zipfile.ZipFile(tmp_path / "x.torchscript") as archive:  # nor whose machine it was
        parts = [archive.read(name) for name in archive.namelist()]
    assert len(parts) > 5 and not [part for part in parts if os.fsencode(REPOSITORY) in part]


@pytest.mark.parametrize("export", [graph._by_tracing, graph._by_program])
def test_onnx_files_name_no_path_of_the_machine(small_run, monkeypatch, tmp_path, export):
    for name in ("_by_tracing", "_by_program"):
        monkeypatch.setattr(graph, name, export)
    embedder = load_run(small_run())
    export_network(embedder, tmp_path / "x.onnx")
    content = (tmp_path / "x.onnx").read_bytes()
    for part in (os.fsencode(REPOSITORY), b"site-packages", b".py"):
        assert part not in content


def test_files_depend_on_no_clock(small_run, tmp_path, monkeypatch):
    embedder = load_run(small_run())
    contents = []
    for name, moment in (("a", 1e9), ("b", 1.5e9)):  # years apart
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        for suffix in (".onnx", ".torchscript"):
            export_network(embedder, tmp_path / (name + suffix))
        contents.append((tmp_path / f"{name}.onnx").read_bytes())
    assert contents[0] == contents[1]
    # within one process torch numbers the classes of a second program on
    with zipfile.ZipFile(tmp_path / "b.torchscript") as archive:
        assert {item.date_time for item in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_what_training_alone_needs_is_not_in_the_file(small_run, tmp_path):
    """No weight has the shape of a classifier's, and none is there that the embedding has not."""
    run = small_run("MODEL.HEADS.CAMSEP.NUM_CAMERAS", "7")
    stored = torch.load(run / "model_final.pth", weights_only=True)["model"]
    assert stored["heads.camera_classifier.weight"].shape == (7, 16)
    embedder = load_run(run)
    export_network(embedder, tmp_path / "x.onnx")
    graph = onnx.load(tmp_path / "x.onnx").graph
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert not [name for name in weights if "camera" in name or "classifier" in name]
    assert not [name for name, value in weights.items() if 7 in value.shape]
    export_network(embedder, tmp_path / "x.torchscript")
    names = [name for name, _ in torch.jit.load(tmp_path / "x.torchscript").named_parameters()]
    assert names and not [name for name in names if "camera" in name or "classifier" in name]


@pytest.mark.parametrize("precision, allowed", [("fp16", 1e-3), ("int8", 0.1)])
@pytest.mark.parametrize("convention", ["rgb255", "imagenet"])
def test_fewer_bits(small_run, paths, tmp_path, precision, allowed, convention):
    embedder = load_run(small_run())
    whole, small = tmp_path / "whole.onnx", tmp_path / "small.onnx"
    export_network(embedder, whole, convention=convention)
    made = export_network(embedder, small, convention=convention, precision=precision,
                          images=paths)
    loaded = load_export(small)
    found, expected = loaded.embed(paths), embedder.embed(paths)
    worst = distances(found, expected).max()
    assert 1e-9 < worst < allowed and made.difference == pytest.approx(worst, rel=0.5, abs=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    types = {tensor.data_type for tensor in onnx.load(small).graph.initializer}
    wanted = {"fp16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}[precision]
    assert wanted in types and wanted not in {
        tensor.data_type for tensor in onnx.load(whole).graph.initializer}
    # rounded embeddings are another network's
    assert loaded.fingerprint != embedder.fingerprint == load_export(whole).fingerprint


@pytest.mark.parametrize("convention", ["rgb255", "imagenet"])
def test_a_file_is_used_as_a_run_is(small_run, paths, tmp_path, convention):
    run = small_run()
    embedder = load_run(run)
    write_statistics(run, embedder.fingerprint, PairStatistics(
        np.linspace(0.5, 1, 501, dtype=np.float32), np.linspace(-0.5, 0.5, 1001,
                                                                dtype=np.float32)))
    embedder = load_run(run)
    export_network(embedder, tmp_path / "x.onnx", convention=convention)
    loaded = load_export(tmp_path / "x.onnx")
    assert (loaded.dim, loaded.fingerprint, loaded.preprocessing) == (
        embedder.dim, embedder.fingerprint, embedder.preprocessing)
    np.testing.assert_allclose(loaded.embed(paths), embedder.embed(paths), atol=1e-5)
    np.testing.assert_allclose(loaded(torch.from_numpy(images_of(loaded, paths))),
                               embedder.embed(paths), atol=1e-5)
    assert loaded.compare(*paths[:2]).threshold == embedder.compare(*paths[:2]).threshold
    index = Index.create(tmp_path / "index", embedder)
    index.add(embedder.embed(paths), [str(path) for path in paths])
    hit, = Index.open(tmp_path / "index", loaded).search(loaded.embed(paths[3]), top=1)[0]
    assert hit.path == str(paths[3]) and hit.score > 0.999
    export_network(embedder, tmp_path / "y.onnx", convention=convention, precision="fp16")
    with pytest.raises(IndexRefused, match="another network"):
        Index.open(tmp_path / "index", load_export(tmp_path / "y.onnx"))


def test_another_calibration_is_another_network(small_run, paths, tmp_path):
    embedder = load_run(small_run())
    made = [export_network(embedder, tmp_path / f"{number}.onnx", precision="int8", images=images)
            for number, images in enumerate((paths[:8], paths[8:], paths[:8]))]
    prints = [load_export(tmp_path / f"{number}.onnx").fingerprint for number in range(3)]
    assert prints == [sidecar.fingerprint for sidecar in made]
    assert prints[0] != prints[1] and len({*prints, embedder.fingerprint}) == 1 + len(
        {sidecar.digest for sidecar in made})


def test_without_statistics(small_run, tmp_path):
    run = small_run()
    content = torch.load(run / "model_final.pth", weights_only=True)
    del content["memory_bank"]
    torch.save(content, run / "model_final.pth")
    export_network(load_run(run), tmp_path / "x.onnx")
    loaded = load_export(tmp_path / "x.onnx")
    assert loaded.statistics is None and "holds no memory bank" in loaded.why_no_statistics


def test_a_cropped_image(small_run, paths, tmp_path):
    embedder = load_run(small_run("INPUT.SIZE_TEST", "[40,24]", "INPUT.CROP.ENABLED", "True",
                                  "INPUT.CROP.SIZE", "[32,16]"))
    export_network(embedder, tmp_path / "x.onnx")
    np.testing.assert_allclose(load_export(tmp_path / "x.onnx").embed(paths),
                               embedder.embed(paths), atol=1e-5)
    said = json.loads((tmp_path / "x.onnx.json").read_text())
    assert said["input"]["shape"] == ["batch", 3, 32, 16]


def test_the_sidecar_says_what_goes_in_and_comes_out(small_run, tmp_path):
    embedder = load_run(small_run())
    made = export_network(embedder, tmp_path / "x.onnx", convention="imagenet")
    said = json.loads((tmp_path / "x.onnx.json").read_text())
    assert said["format"] == 1 and said["plugin"] == caureid_plugin.__version__
    assert said["input"]["shape"] == ["batch", 3, 32, 16] and "0.485" in said["input"][
        "normalisation"]
    assert said["output"] == {"name": "embeddings", "shape": ["batch", 16],
                              "normalisation": "L2"}
    assert said["threshold"] == embedder.statistics.threshold()._asdict()
    assert said["digest"] == made.digest and said["fingerprint"] == embedder.fingerprint
    assert said["run"] == embedder.fingerprint
    export_network(embedder, tmp_path / "x.onnx", precision="fp16")
    said = json.loads((tmp_path / "x.onnx.json").read_text())
    assert said["run"] == embedder.fingerprint != said["fingerprint"]


# --------------------------------------------------------------------------------- refusals ----


def test_a_file_that_differs_is_not_kept(small_run, tmp_path, monkeypatch):
    embedder = load_run(small_run())
    (tmp_path / "x.onnx").write_text("the old one")
    whole = files.onnx_program
    for wrong in (lambda found: found.flip(1), lambda found: found * float("nan")):
        monkeypatch.setattr(files, "onnx_program", lambda content, wrong=wrong: files.Loaded(
            lambda images: wrong(whole(content).program(images)), [], []))
        with pytest.raises(ExportError, match="gives other embeddings than PyTorch.*was not kept"):
            export_network(embedder, tmp_path / "x.onnx")
    assert (tmp_path / "x.onnx").read_text() == "the old one"
    assert not (tmp_path / "x.onnx.json").exists()


@pytest.mark.parametrize("precision, allowed", [("fp16", 0.01), ("int8", 0.1)])
def test_what_is_rounded_too_far_is_not_kept(small_run, paths, tmp_path, monkeypatch, precision,
                                             allowed):
    embedder = load_run(small_run())
    for found, is_kept in ((1.01 * allowed, False), (float("nan"), False), (0.99 * allowed, True)):
        monkeypatch.setattr(files, "difference", lambda *parts, found=found: found)
        if is_kept:
            export_network(embedder, tmp_path / "x.onnx", precision=precision, images=paths)
        else:
            with pytest.raises(ExportError, match=f"{allowed} is allowed with {precision}.*fp32"):
                export_network(embedder, tmp_path / "x.onnx", precision=precision, images=paths)
        assert (tmp_path / "x.onnx").exists() == is_kept


def test_a_difference_is_found():
    @dataclasses.dataclass
    class Half:
        """Embeds an image as its first two pixels."""

        def __call__(self, images):
            return images[:, 0, 0, :2]

    pixels = torch.ones(9, 3, 2, 2)
    assert files.difference(Half(), lambda images: images[:, 0, 0, :2], pixels, "rgb255") < 1e-12
    changed = pixels.clone()
    changed[4, 0, 0, 1] = 0.5  # the fifth image alone, one at a time and within eight
    angle = 1 - 1.5 / np.sqrt(2 * 1.25)
    last = torch.ones(90, 3, 2, 2)
    last[89, 0, 0, 1] = 0.5  # however many there are, the last one counts
    assert files.difference(Half(), lambda images: torch.ones(len(images), 2), last, "rgb255"
                            ) == pytest.approx(angle)
    sizes = []
    files.difference(Half(), lambda images: (sizes.append(len(images)), images[:, 0, 0, :2])[1],
                     pixels[:3], "rgb255")
    assert set(sizes) == {1, 8}  # although there are three
    found = files.difference(Half(), lambda images: torch.ones(len(images), 2), changed, "rgb255")
    assert found == pytest.approx(angle)


@pytest.mark.parametrize("name, options, said", [
    ("x.pt", {}, "must end in .onnx or .torchscript"),
    ("x.onnx", {"convention": "bgr"}, "--input 'bgr' is unknown, known are rgb255, imagenet"),
    ("x.onnx", {"precision": "int4"}, "--precision 'int4' is unknown, known are fp32, fp16, int8"),
    ("x.torchscript", {"precision": "fp16"}, "--precision fp16 is for ONNX files alone"),
    ("x.onnx", {"precision": "int8"}, "takes at least 8 images to calibrate by, and there are 0"),
    ("absent/x.onnx", {}, "absent/x.onnx cannot be written"),
])
def test_wrong_arguments(small_run, tmp_path, name, options, said):
    with pytest.raises(ExportError, match=said):
        export_network(load_run(small_run()), tmp_path / name, **options)
    assert not (tmp_path / name).exists()


def test_a_folder_that_takes_no_file_is_said_before_the_work(small_run, monkeypatch):
    embedder = load_run(small_run())
    monkeypatch.setattr(files, "_write", lambda *parts: pytest.fail("it began to work"))
    with pytest.raises(ExportError, match=r"/proc/x.onnx cannot be written: its folder takes no"):
        export_network(embedder, "/proc/x.onnx")


def test_an_exported_file_is_not_exported(small_run, tmp_path):
    export_network(load_run(small_run()), tmp_path / "x.onnx")
    with pytest.raises(ExportError, match="is an exported file itself: give the run folder"):
        export_network(load_export(tmp_path / "x.onnx"), tmp_path / "y.onnx")


def change(**fields):
    def apply(path):
        side = path.with_name("x.onnx.json")
        side.write_text(json.dumps({**json.loads(side.read_text()), **fields}))

    return apply


@pytest.mark.parametrize("spoil, said", [
    (lambda path: path.with_name("x.onnx.json").unlink(),
     r"x.onnx has no sidecar x.onnx.json, which tells size.*copy it along"),
    (lambda path: path.with_name("x.onnx.json").write_text('{"format": 1'), "is damaged, it is no"),
    (lambda path: path.with_name("x.onnx.json").write_text("[]"), "is not of tools/export.py"),
    (lambda path: path.write_bytes(path.read_bytes()[:-9]), "x.onnx is damaged, or its sidecar"),
    (lambda path: path.write_bytes(path.read_bytes() + b"x"), "their digests differ"),
    (change(format=2), "has format 2, and this version knows 1: it was written by caureid-plugin"),
    (change(format="1"), "is damaged: its format is '1'"),
    (change(dim=0), "is damaged: its dim is 0"), (change(size=[1, 2, 3]), "its size is"),
    (change(convention="x"), "its convention is 'x'"), (change(digest="0"), "its digest is '0'"),
    (change(size=[32, 32]), "does not fit its file: it tells of images of 32 x 32 pixels"),
    (change(shape=[64, 16]), "does not fit its file"),
    (change(dim=8), "does not fit its file.*embeddings of 8 numbers"),
    (change(statistics={}), "The sidecar of .* is damaged: These are no pair statistics"),
    (change(kind="torchscript"), "is no ONNX file, as its sidecar says"),
    (lambda path: (path.with_name("x.onnx.json").unlink(),
                   os.mkfifo(path.with_name("x.onnx.json"))), "is no regular file"),
    (lambda path: (path.unlink(), os.mkfifo(path)), "x.onnx is no regular file"),
    (lambda path: path.unlink(), "x.onnx does not exist"),
])
def test_files_that_cannot_be_used(small_run, tmp_path, spoil, said):
    export_network(load_run(small_run()), tmp_path / "x.onnx")
    spoil(tmp_path / "x.onnx")
    with pytest.raises(ExportError, match=said):
        load_export(tmp_path / "x.onnx")


def test_a_file_that_onnxruntime_cannot_read(small_run, tmp_path):
    from caureid_plugin.export.sidecar import digest

    export_network(load_run(small_run()), tmp_path / "x.onnx")
    (tmp_path / "x.onnx").write_bytes(b"from the future")
    change(digest=digest(b"from the future"))(tmp_path / "x.onnx")
    with pytest.raises(ExportError, match=r"onnxruntime [\d.]+ cannot read the file.*newer one"):
        load_export(tmp_path / "x.onnx")


def test_torchscript_is_for_others(small_run, tmp_path):
    export_network(load_run(small_run()), tmp_path / "x.torchscript")
    with pytest.raises(ExportError, match="is a program for other tools.*export the run as .onnx"):
        load_export(tmp_path / "x.torchscript")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_missing_packages(small_run, tmp_path, monkeypatch, package):
    embedder = load_run(small_run())
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package} is not installed.*"
                                          + re.escape("pip install 'caureid-plugin[export]'")):
        export_network(embedder, tmp_path / "x.onnx")
    assert not list(tmp_path.glob("x.onnx*"))
