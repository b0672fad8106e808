"""Exported files give PyTorch's embeddings, hold nothing of training, and are told apart."""

import contextlib
import functools
import json
import os
import re
import shutil
import sys
import time
import zipfile
from pathlib import Path

import caureid_plugin
import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from caureid_plugin import load_export, load_run
from caureid_plugin.export import ExportError, export_network, files, graph
from caureid_plugin.export.sidecar import digest
from caureid_plugin.retrieval import Index, IndexRefused, RunVerdict
from PIL import Image

from helpers.tiny import write_market

REPOSITORY = Path(__file__).resolve().parents[2]
BASELINE = ("MODEL.META_ARCHITECTURE", "Baseline", "MODEL.HEADS.NAME", "EmbeddingHead",
            "MODEL.LOSSES.NAME", "('CrossEntropyLoss',)", "MODEL.HEADS.NUM_CLASSES", "5")
NETWORKS = {
    # 7 cameras: no weight of the embedding has that size; of seed 3, which int8 rounds well
    "ours": ("MODEL.HEADS.CAMSEP.NUM_CAMERAS", "7", "SEED", "3"), "toolbox": BASELINE,
    "half range": ("MODEL.HEADS.CAMSEP.RANGE", "half", "MODEL.HEADS.CAMSEP.UNIFORM_START", "False"),
    "gem": ("MODEL.HEADS.POOL_LAYER", "GeneralizedMeanPooling"),
    "mean and maximum": ("MODEL.HEADS.POOL_LAYER", "AdaptiveAvgMaxPool"),
    "clipped mean": ("MODEL.HEADS.POOL_LAYER", "ClipGlobalAvgPool"),
    # instance norm of the image would hide what an input convention adds to it
    "no instance norm": ("MODEL.BACKBONE.WITH_IBN", "False"),
    "osnet": ("MODEL.BACKBONE.NAME", "build_osnet_backbone", "MODEL.BACKBONE.DEPTH", "x0_25",
              "MODEL.BACKBONE.FEAT_DIM", "128", "INPUT.SIZE_TEST", "[128,64]"),
    "resnet": ("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.DEPTH", "18x",
               "MODEL.BACKBONE.FEAT_DIM", "512", "MODEL.BACKBONE.LAST_STRIDE", "1"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where this module's files are, which its tests read and do not change."""
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def paths(home):
    return sorted((write_market(home) / "Market-1501-v15.09.15" / "query").glob("*.jpg"))


@pytest.fixture(scope="module")
def made():
    """What `load` and `export` have made, by their arguments."""
    return {}


@pytest.fixture
def load(small_run, made):
    """Loads a run of one of NETWORKS, each once."""
    def load(name="ours"):
        if name not in made:
            made[name] = load_run(small_run(*NETWORKS[name]))
        return made[name]

    return load


@pytest.fixture
def export(load, made, home):
    """Exports one of NETWORKS, with the same arguments once; gives the file's path."""
    def export(name="ours", kind="onnx", convention="rgb255", precision="fp32", images=()):
        key = name, kind, convention, precision, len(images)
        if key not in made:
            path = home / f"{len(made)}.{kind}"
            export_network(load(name), path, convention=convention, precision=precision,
                           images=images)
            made[key] = path
        return made[key]

    return export


def sidecar_of(path):
    """The sidecar."""
    return json.loads(Path(f"{path}.json").read_text())


def images_of(embedder, paths, convention="rgb255"):
    """(N, 3, H, W) as a file of the convention takes them, the numbers computed in float64."""
    images = np.stack([embedder.preprocessing(Image.open(path)) for path in paths])
    if convention == "rgb255":
        return images
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    return ((images.astype(np.float64) / 255 - mean) / std).astype(np.float32)


def distances(a, b):
    """1 - cosine, row by row, in float64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return 1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


KINDS = [*((name, "rgb255") for name in NETWORKS), ("no instance norm", "imagenet")]


@pytest.mark.parametrize("kind, name, convention", [
    pytest.param(kind, *network, marks=pytest.mark.slow if kind == "torchscript"
                 and network[0] in ("osnet", "resnet") else ())  # ONNX tries these networks, too
    for kind in ("onnx", "torchscript") for network in KINDS])
def test_files_give_pytorchs_embeddings(load, export, paths, kind, name, convention):
    embedder, file = load(name), export(name, kind, convention=convention)
    images, expected = images_of(embedder, paths, convention), embedder.embed(paths)
    assert distances(expected[:8], expected[8:]).max() > 1e-3
    assert sidecar_of(file)["kind"] == kind and sidecar_of(file)["difference"] <= 1e-4
    if kind == "onnx":
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        given, = session.get_inputs()
        assert given.shape == ["batch", *images.shape[1:]] and given.type == "tensor(float)"
    else:
        program = torch.jit.load(file)
    for batch in (1, 16):
        with torch.jit.optimized_execution(False):  # optimising takes longer than the network
            found = (session.run(None, {given.name: images[:batch]})[0] if kind == "onnx"
                     else program(torch.from_numpy(images[:batch])).numpy())
        assert found.shape == (batch, embedder.dim)
        assert distances(found, expected[:batch]).max() <= 1e-4
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def assert_names_no_path(content):
    for part in (os.fsencode(REPOSITORY), b"site-packages", b".py"):
        assert part not in content


def test_files_tell_nothing_of_the_machine(load, export, tmp_path, monkeypatch):
    content = export().read_bytes()
    assert_names_no_path(content)
    monkeypatch.setattr(time, "time", lambda: 1e9)  # years ago
    export_network(load(), tmp_path / "x.onnx")
    assert (tmp_path / "x.onnx").read_bytes() == content
    # within one process torch numbers the classes of a second program on
    with zipfile.ZipFile(export(kind="torchscript")) as archive:
        assert {item.date_time for item in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        parts = [archive.read(name) for name in archive.namelist()]
    assert len(parts) > 5 and not [part for part in parts if os.fsencode(REPOSITORY) in part]


def test_where_tracing_is_gone_the_other_exporter_is_taken(load, export, monkeypatch, tmp_path):
    def gone(*_):
        raise TypeError("export() got an unexpected keyword argument")

    content = export().read_bytes()
    monkeypatch.setattr(graph, "_by_tracing", gone)
    monkeypatch.setattr(graph, "_by_program", lambda *_: content)
    export_network(load(), tmp_path / "x.onnx")
    assert (tmp_path / "x.onnx").read_bytes() == content
    monkeypatch.setattr(graph, "_by_program", gone)
    with pytest.raises(ExportError, match="cannot write this network as ONNX.*unexpected keyword"):
        export_network(load(), tmp_path / "y.onnx")


@pytest.mark.slow  # it imports torch's compiler
def test_the_other_exporter_gives_pytorchs_embeddings(load, paths, monkeypatch, tmp_path):
    monkeypatch.setattr(graph, "_by_tracing", graph._by_program)
    export_network(load(), tmp_path / "x.onnx")
    found = load_export(tmp_path / "x.onnx").embed(paths)
    assert distances(found, load().embed(paths)).max() <= 1e-4
    assert_names_no_path((tmp_path / "x.onnx").read_bytes())


def test_what_training_alone_needs_is_not_in_the_file(export):
    """No weight has the shape of a classifier's, and none is there that the embedding has not."""
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor)
               for tensor in onnx.load(export()).graph.initializer}
    assert weights and not [name for name, value in weights.items() if 7 in value.shape]
    program = torch.jit.load(export(kind="torchscript"))
    names = [name for name, _ in program.named_parameters()]
    assert names and not [name for name in (*weights, *names)
                          if "camera" in name or "classifier" in name]


@pytest.mark.parametrize("precision, convention, allowed, kind", [
    ("fp16", "rgb255", 1e-3, onnx.TensorProto.FLOAT16), ("int8", "rgb255", 0.1,
                                                         onnx.TensorProto.INT8),
    ("int8", "imagenet", 0.1, onnx.TensorProto.INT8)])
def test_fewer_bits(load, export, paths, precision, convention, allowed, kind):
    embedder, whole = load(), export(convention=convention)
    small = export(convention=convention, precision=precision, images=paths)
    loaded, sidecar = load_export(small), sidecar_of(small)
    found = loaded.embed(paths)
    worst = distances(found, embedder.embed(paths)).max()
    assert 1e-9 < worst < allowed
    assert sidecar["difference"] == pytest.approx(worst, rel=0.5, abs=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert [kind in {tensor.data_type for tensor in onnx.load(file).graph.initializer}
            for file in (small, whole)] == [True, False]
    # rounded embeddings are another network's, and so are those of another calibration
    assert loaded.fingerprint == sidecar["fingerprint"] != embedder.fingerprint
    assert sidecar["run"] == embedder.fingerprint == load_export(whole).fingerprint
    if precision == "int8" and convention == "rgb255":
        assert sidecar_of(export(precision="int8", images=paths[:8]))["fingerprint"] not in (
            loaded.fingerprint, embedder.fingerprint)


@pytest.mark.parametrize("name, precision", [
    ("ours", "fp32"), ("ours", "fp16"), ("ours", "int8"), ("toolbox", "fp32")])
def test_openvino_gives_the_files_embeddings(load, export, paths, name, precision):
    """With any number of images; its int8 differs from onnxruntime's by a few roundings."""
    openvino = pytest.importorskip("openvino", reason="needs openvino (the extra \"test\")")
    file = export(name, precision=precision, images=paths)
    images, expected = images_of(load(name), paths), load(name).embed(paths)
    program = openvino.Core().compile_model(str(file), "CPU")
    for batch in (1, 3, 8):
        found = program(images[:batch])[0]
        assert found.shape == (batch, 16)
        assert distances(found, expected[:batch]).max() <= {"fp32": 1e-4, "fp16": 1e-3,
                                                            "int8": 0.1}[precision]


@pytest.mark.parametrize("name, precision", [
    ("ours", "fp32"), ("ours", "int8"), ("toolbox", "fp32"), ("osnet", "fp32"),
    ("mean and maximum", "fp32"), ("clipped mean", "fp32")])
def test_opencv_gives_the_files_embeddings(load, export, paths, name, precision):
    """By the engine that docs/export.md names; OpenCV before 4.11 has no other."""
    file = export(name, precision=precision, images=paths)
    images, expected = images_of(load(name), paths), load(name).embed(paths)
    engine = {"engine": cv2.dnn.ENGINE_CLASSIC} if hasattr(cv2.dnn, "ENGINE_CLASSIC") else {}
    for batch in (1, 3, 8):
        program = cv2.dnn.readNetFromONNX(str(file), **engine)
        program.setInput(images[:batch])
        found = program.forward()
        assert found.shape == (batch, load(name).dim)
        assert distances(found, expected[:batch]).max() <= (1e-4 if precision == "fp32" else 0.1)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_nodes_stand_in_the_order_that_onnx_asks_for(export, paths, precision):
    """Each comes after what it reads; and no Gather takes the places off, see graph._flatten."""
    model = onnx.load(export(precision=precision, images=paths if precision != "fp32" else ()))
    known = {graph.INPUT_NAME, "", *(tensor.name for tensor in model.graph.initializer)}
    for node in model.graph.node:
        assert known.issuperset(node.input), node.name
        known.update(node.output)
    assert [node.op_type for node in model.graph.node].count("Flatten") == 1


class Picks(torch.nn.Module):
    """A network that takes one place of a map, by two indices one after the other."""

    def __init__(self, pick):
        super().__init__()
        self.pick = pick

    def forward(self, images):
        return self.pick(images)


@pytest.mark.parametrize("pick, flattened", [
    (lambda x: x.mean((2, 3), keepdim=True)[..., 0, 0], 1), (lambda x: x[:, :, 3][:, :, 2], 0),
    (lambda x: torch.nn.functional.avg_pool2d(x, (16, 8))[..., 0, 0], 0),
    (lambda x: x.mean((2, 3), keepdim=True)[:, 0][:, 0], 0)])
def test_only_the_single_place_of_a_map_becomes_a_flatten(pick, flattened):
    """A Flatten of two places is longer than what was picked of them."""
    content = graph.to_onnx(graph.prepare(Picks(pick), "rgb255"), (32, 16))
    kinds = [node.op_type for node in onnx.load_model_from_string(content).graph.node]
    assert kinds.count("Flatten") == flattened
    images = torch.rand(3, 3, 32, 16)
    found = onnxruntime.InferenceSession(content).run(None, {graph.INPUT_NAME: images.numpy()})[0]
    np.testing.assert_allclose(found, pick(images).numpy(), rtol=1e-5)


@pytest.mark.parametrize("convention", ["rgb255", "imagenet"])
def test_a_file_is_used_as_a_run_is(load, export, paths, tmp_path, convention):
    embedder, loaded = load(), load_export(export(convention=convention))
    assert (loaded.dim, loaded.fingerprint, loaded.preprocessing) == (
        embedder.dim, embedder.fingerprint, embedder.preprocessing)
    assert loaded.statistics.to_json() == embedder.statistics.to_json()
    expected = embedder.embed(paths)
    np.testing.assert_allclose(loaded.embed(paths), expected, atol=1e-5)
    np.testing.assert_allclose(loaded(torch.from_numpy(images_of(loaded, paths))), expected,
                               atol=1e-5)
    assert loaded.compare(*paths[:2]).threshold == embedder.compare(*paths[:2]).threshold
    index = Index.create(tmp_path / "index", embedder)
    index.add(expected, [str(path) for path in paths])
    hit, = Index.open(tmp_path / "index", loaded).search(loaded.embed(paths[3]), top=1)[0]
    assert hit.path == str(paths[3]) and hit.score > 0.999
    with pytest.raises(IndexRefused, match="another network"):
        Index.open(tmp_path / "index", load_export(export(precision="fp16", images=paths)))


def test_a_cropped_image_without_statistics(small_run, paths, tmp_path):
    run = small_run("INPUT.SIZE_TEST", "[40,24]", "INPUT.CROP.ENABLED", "True",
                    "INPUT.CROP.SIZE", "[32,16]")
    content = torch.load(run / "model_final.pth", weights_only=True)
    del content["memory_bank"]
    torch.save(content, run / "model_final.pth")
    embedder = load_run(run)
    export_network(embedder, tmp_path / "x.onnx")
    loaded = load_export(tmp_path / "x.onnx")
    np.testing.assert_allclose(loaded.embed(paths), embedder.embed(paths), atol=1e-5)
    assert sidecar_of(tmp_path / "x.onnx")["input"]["shape"] == ["batch", 3, 32, 16]
    assert loaded.statistics is None and "holds no memory bank" in loaded.why_no_statistics


def test_the_sidecar_says_what_goes_in_and_comes_out(load, export):
    embedder, path = load(), export(convention="imagenet")
    sidecar = sidecar_of(path)
    assert sidecar["format"] == 1 and sidecar["plugin"] == caureid_plugin.__version__
    assert sidecar["input"]["shape"] == ["batch", 3, 32, 16]
    assert "0.485" in sidecar["input"]["normalisation"]
    assert sidecar["output"] == {
        "name": "embeddings", "shape": ["batch", 16], "normalisation": "L2"}
    assert sidecar["threshold"] == embedder.statistics.threshold()._asdict()
    assert sidecar["digest"] == digest(path.read_bytes())


@pytest.mark.parametrize("level", ["bad", "mixed"])
def test_the_verdict_of_the_run_goes_with_the_file(load, tmp_path, monkeypatch, caplog, paths,
                                                   level):
    embedder, path = load(), tmp_path / "x.onnx"
    monkeypatch.setattr(embedder, "verdict", RunVerdict(level, "Training went so."))
    export_network(embedder, path)
    sidecar, loaded = sidecar_of(path), load_export(path)
    assert sidecar["verdict"] == {"level": level, "reason": "Training went so."}
    assert (sidecar["threshold"] is None) == (level == "bad") and sidecar["statistics"] is not None
    assert sidecar["format"] == (2 if level == "bad" else 1)  # older versions would misread it
    assert loaded.verdict == embedder.verdict and len(caplog.records) == (level == "bad")
    assert (loaded.compare(*paths[:2]).same is None) == (level == "bad")
    assert loaded.compare(*paths[:2], despite_verdict=True).same is not None
    export_network(embedder, path, despite_verdict=True)
    assert sidecar_of(path)["threshold"] == embedder.statistics.threshold()._asdict()
    assert load_export(path).verdict == embedder.verdict


def test_files_of_older_versions_have_no_verdict(export, tmp_path):
    path, side = tmp_path / "x.onnx", tmp_path / "x.onnx.json"
    shutil.copy(export(), path)
    content = sidecar_of(export())
    assert content.pop("verdict")["level"] == "unknown"
    side.write_text(json.dumps(content))
    assert load_export(path).verdict == ("unknown", "Whether training went well is not known.")


def test_the_documents_lines_for_other_programs(load, export, paths, tmp_path, monkeypatch):
    """Embeddings differ by no more than docs/export.md says, for its network's size and crops'."""
    text = (REPOSITORY / "docs" / "export.md").read_text()
    block, = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    largest = float(re.search(r"the cosine distance is at most\s+(\d\.\d+)", text)[1])
    shutil.copy(export("osnet"), tmp_path / "person.onnx")
    monkeypatch.chdir(tmp_path)
    embedder, names = load("osnet"), {}
    sizes = (64, 128), (32, 64), (38, 76), (48, 96), (32, 160), (128, 384), (160, 256), (249, 601)
    for path, size in zip(paths[:8], sizes, strict=True):
        smooth = Image.open(path).resize((2, 5), Image.Resampling.BOX)  # random weights like noise
        smooth.resize(size, Image.Resampling.BICUBIC).save("crop.jpg", quality=95)
        exec(compile(block, "docs/export.md", "exec"), names)
        found, expected = names["embedding"], embedder.embed("crop.jpg")
        assert found.shape == expected.shape
        np.testing.assert_allclose(np.linalg.norm(found), 1, atol=1e-5)
        assert distances(found, expected) <= (largest if size != (64, 128) else 1e-6)
        names["batch"] = names["batch"][:, ::-1]  # what the lines turn round
        other, = names["session"].run(None, {"images": np.ascontiguousarray(names["batch"])})
        assert distances(other, expected) > largest


@pytest.mark.parametrize("precision, allowed, advice", [
    ("fp32", 0.0001, "try another"), ("fp16", 0.01, "take --precision fp32"),
    ("int8", 0.1, "take --precision fp32")])
def test_what_differs_too_far_is_not_kept(load, paths, tmp_path, monkeypatch, precision, allowed,
                                          advice):
    path = tmp_path / "x.onnx"
    path.write_text("the old one")
    monkeypatch.setattr(files, "_write", lambda *_: (b"the new one", None))
    for found in (1.01 * allowed, float("nan"), 0.99 * allowed):
        monkeypatch.setattr(files, "difference", lambda *parts, found=found: found)
        with (contextlib.nullcontext() if found < allowed else pytest.raises(
                ExportError, match=f"gives other embeddings than PyTorch.*{allowed:g} is allowed "
                                   f"with {precision}.*was not kept.*{advice}")):
            export_network(load(), path, precision=precision, images=paths)
        assert path.read_text() == ("the new one" if found < allowed else "the old one")
        assert Path(f"{path}.json").exists() == (found < allowed)


def test_a_difference_is_found():
    def first_two(images):
        """Embeds an image as its first two pixels."""
        return images[:, 0, 0, :2]

    def constant(images):
        sizes.append(len(images))
        return torch.ones(len(images), 2)

    sizes, pixels = [], torch.ones(90, 3, 2, 2)
    assert files.difference(first_two, constant, pixels[:3], "rgb255") < 1e-12
    assert set(sizes) == {1, 8}  # although there are three
    for count, changed in ((9, 4), (90, 89)):  # however many there are, the last one counts
        images = pixels[:count].clone()
        images[changed, 0, 0, 1] = 0.5
        assert files.difference(first_two, first_two, images, "rgb255") < 1e-12
        assert files.difference(first_two, constant, images, "rgb255") == pytest.approx(
            1 - 1.5 / np.sqrt(2 * 1.25))
    assert np.isnan(files.difference(first_two, lambda images: float("nan") * constant(images),
                                     pixels, "rgb255"))


@pytest.mark.parametrize("name, options, message", [
    ("x.pt", {}, "must end in .onnx or .torchscript"),
    ("x.onnx", {"convention": "bgr"}, "--input 'bgr' is unknown, known are rgb255, imagenet"),
    ("x.torchscript", {"precision": "fp16"}, "--precision fp16 is only for ONNX files"),
    ("x.onnx", {"precision": "int8"}, "takes at least 8 images to calibrate by, and there are 0"),
    ("absent/x.onnx", {}, "absent/x.onnx cannot be written"),
    ("/proc/x.onnx", {}, "/proc/x.onnx cannot be written: its folder takes no"),
])
def test_wrong_arguments(load, tmp_path, monkeypatch, name, options, message):
    """They are told before the work."""
    monkeypatch.setattr(files, "_write", lambda *parts: pytest.fail("it began to work"))
    with pytest.raises(ExportError, match=message):
        export_network(load(), tmp_path / name, **options)
    assert not (tmp_path / name).exists()


def test_files_that_are_of_no_use_here(export, tmp_path):
    with pytest.raises(ExportError, match="is an exported file itself: give the run folder"):
        export_network(load_export(export()), tmp_path / "y.onnx")
    with pytest.raises(ExportError, match="is a program for other tools.*export the run as .onnx"):
        load_export(export(kind="torchscript"))


def change(**fields):
    def apply(path, side):
        side.write_text(json.dumps({**json.loads(side.read_text()), **fields}))

    return apply


def replace_model(edit):
    """Edits the file's model; the sidecar has the digest of the new one."""
    def apply(path, side):
        model = onnx.load(path)
        edit(model)
        path.write_bytes(model.SerializeToString())
        change(digest=digest(path.read_bytes()))(path, side)

    return apply


@pytest.mark.parametrize("spoil, message", [
    (lambda path, side: side.unlink(),
     r"x.onnx has no sidecar x.onnx.json, which tells size.*copy it along"),
    (lambda path, side: side.write_text('{"format": 1'), "is damaged, it is no"),
    (lambda path, side: side.write_text("[]"), "is not of caureid export"),
    (lambda path, side: path.write_bytes(path.read_bytes()[:-9]),
     "x.onnx is damaged, or its sidecar.*digests differ"),
    (change(format=3), "has format 3, and this version knows 2: it was written by caureid-plugin"),
    (change(format="1"), "is damaged: its format is '1'"), (change(size=[1, 2, 3]), "its size is"),
    (change(size=[32, 32]), "does not fit its file: it tells of images of 32 x 32 pixels"),
    (change(dim=8), "does not fit its file.*embeddings of 8 numbers"),
    (change(statistics={}), "The sidecar of .* is damaged: These are no pair statistics"),
    (change(verdict="bad"), "is damaged: its verdict is 'bad'"),
    (change(verdict={"level": "x", "reason": ""}), "its verdict is"),
    (change(verdict={"level": "bad"}), "its verdict is"),
    (change(verdict={"level": "bad", "reason": 5}), "its verdict is"),
    (change(kind="torchscript"), "is no ONNX file, as its sidecar says"),
    (lambda path, side: (side.unlink(), os.mkfifo(side)), "is no regular file"),
    (lambda path, side: path.unlink(), "x.onnx does not exist"),
    (lambda path, side: (path.write_bytes(b"new"), change(digest=digest(b"new"))(path, side)),
     r"The file is no ONNX: onnx [\d.]+ says .*caureid export has written"),
    (replace_model(lambda model: setattr(model, "ir_version", 10**6)),
     r"onnxruntime [\d.]+ cannot read the file.*newer one"),
])
def test_files_that_cannot_be_used(export, tmp_path, spoil, message):
    path, side = tmp_path / "x.onnx", tmp_path / "x.onnx.json"
    shutil.copy(export(), path)
    shutil.copy(f"{export()}.json", side)
    spoil(path, side)
    with pytest.raises(ExportError, match=message):
        load_export(path)


def a_loop(model, kind):
    """Of 10^12 rounds, each of which adds 1 to the embedding."""
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    last = next(node for node in model.graph.node if graph.OUTPUT_NAME in node.output)
    last.output[:] = ["found"]
    inside = onnx.helper.make_graph(
        [make("Identity", ["go"], ["on"]), make("Add", ["old", "one"], ["new"])], "inside",
        [value("round", 7, []), value("go", 9, []), value("old", 1, ["B", "D"])],
        [value("on", 9, []), value("new", 1, ["B", "D"])])
    model.graph.node.extend([
        make("Constant", [], ["rounds"], value_int=10**12), make("Constant", [], ["one"],
                                                                value_float=1.0),
        make(kind, ["rounds", "", "found"], [graph.OUTPUT_NAME], body=inside)])


def doubling_functions(model):
    """Forty, each of which calls the one before it twice."""
    make, versions = onnx.helper.make_node, [onnx.helper.make_opsetid("", 17),
                                             onnx.helper.make_opsetid("own", 1)]
    last = next(node for node in model.graph.node if graph.OUTPUT_NAME in node.output)
    last.output[:] = ["found"]
    nodes = [make("Relu", ["x"], ["y"])]
    for number in range(40):
        model.functions.append(onnx.helper.make_function(
            "own", f"f{number}", ["x"], ["y"], nodes, versions))
        nodes = [make(f"f{number}", ["x"], ["m"], domain="own"),
                 make(f"f{number}", ["m"], ["y"], domain="own")]
    model.opset_import.append(versions[1])
    model.graph.node.append(make("f39", ["found"], [graph.OUTPUT_NAME], domain="own"))


@pytest.mark.parametrize("add, message", [
    (functools.partial(a_loop, kind="Loop"), "has Loop, which can take endless time"),
    (functools.partial(a_loop, kind="Scan"), "has Scan, which"),
    (functools.partial(a_loop, kind="Own\n"), r"has Own\\n, which"),
    (doubling_functions, "has functions of its own, which can take endless time")],
    ids=["Loop", "Scan", "unknown", "functions"])
def test_a_file_that_could_run_for_ever(export, tmp_path, monkeypatch, add, message):
    path = tmp_path / "x.onnx"
    shutil.copy(export(), path)
    shutil.copy(f"{export()}.json", f"{path}.json")
    replace_model(add)(path, Path(f"{path}.json"))
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(ExportError, match=f"x.onnx: The file {message}"):
        load_export(path)


def test_functions_of_the_newer_exporter_are_written_out(export):
    model = onnx.load(export())
    last = next(node for node in model.graph.node if graph.OUTPUT_NAME in node.output)
    last.output[:] = ["found"]
    versions = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("own", 1)]
    model.functions.append(onnx.helper.make_function(
        "own", "f", ["x"], ["y"], [onnx.helper.make_node("Neg", ["x"], ["y"])], versions))
    model.opset_import.append(versions[1])
    model.graph.node.append(
        onnx.helper.make_node("f", ["found"], [graph.OUTPUT_NAME], domain="own"))
    content = graph._finished(model.SerializeToString())
    shape = load_export(export()).preprocessing.shape
    images = 255 * torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    expected = files.onnx_program(export().read_bytes()).program(images)
    torch.testing.assert_close(files.onnx_program(content).program(images), -expected)


def a_weight(model):
    return next(item for item in model.graph.initializer if item.raw_data)


def of_an_attribute(model):
    return model.graph.node[0].attribute.add(name="x", type=4).t


def of_a_subgraph(model):
    graph = model.graph.node[0].attribute.add(name="x", type=5).g
    return graph.node.add(op_type="Constant").attribute.add(name="value", type=4).t


def of_a_function(model):
    node = model.functions.add(name="f").node.add()
    return node.attribute.add(name="value", type=9).tensors.add()


def of_a_sparse_weight(model):
    return model.graph.sparse_initializer.add().values


@pytest.mark.parametrize("find, name", [
    (a_weight, "w.bin"), (a_weight, "../w.bin"), (a_weight, "/etc/passwd"),
    (of_an_attribute, "w.bin"), (of_a_subgraph, "w.bin"), (of_a_function, "w.bin"),
    (of_a_sparse_weight, "w.bin")])
def test_weights_in_another_file_are_refused(export, tmp_path, monkeypatch, find, name):
    """They could be exchanged, and the file's digest and fingerprint were the same."""
    path, side = tmp_path / "x.onnx", tmp_path / "x.onnx.json"
    shutil.copy(f"{export()}.json", side)
    model = onnx.load(export())
    tensor = find(model)
    (tmp_path / "w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=name)
    path.write_bytes(model.SerializeToString())
    change(digest=digest(path.read_bytes()))(path, side)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match=rf"x.onnx: .*weights in other files \({name}\).*"
                                          "no digest covers: give one that holds all"):
        load_export(path)


@pytest.mark.parametrize("kind", ["a constant", "by the image"])
def test_a_file_that_asks_for_endless_memory(export, tmp_path, monkeypatch, kind):
    """For 80 GB at once, or for each image; whatever the machine has."""
    model = onnx.load(str(export()))
    images, output = graph.INPUT_NAME, graph.OUTPUT_NAME
    last = next(node for node in model.graph.node if output in node.output)
    last.output[:] = ["found"]
    make = onnx.helper.make_node
    shape = make("Constant", [], ["shape"], value_ints=[20_000_000_000])
    if kind == "by the image":
        model.graph.node.extend([make("Shape", [images], ["count"], start=0, end=1), shape])
        model.graph.node.append(make("Mul", ["count", "shape"], ["size"]))
    else:
        model.graph.node.extend([shape, make("Identity", ["shape"], ["size"])])
    model.graph.node.extend([
        make("ConstantOfShape", ["size"], ["huge"]), make("ReduceMax", ["huge"], ["most"],
                                                          keepdims=0),
        make("Add", ["found", "most"], [output])])
    content = model.SerializeToString()
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    shutil.copy(f"{export()}.json", f"{path}.json")
    change(digest=digest(content))(path, Path(f"{path}.json"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match="cannot (read|run) the file.* more memory than the 8 G"):
        load_export(path)(torch.zeros(2, 3, *load_export(export()).preprocessing.shape))


def test_a_name_of_a_part_may_be_location(export, paths, tmp_path):
    path, side = tmp_path / "x.onnx", tmp_path / "x.onnx.json"
    shutil.copy(f"{export()}.json", side)
    model = onnx.load(export())
    model.graph.node[0].name = "/relocation/Conv"
    path.write_bytes(model.SerializeToString())
    change(digest=digest(path.read_bytes()))(path, side)
    np.testing.assert_array_equal(load_export(path).embed(paths[0]),
                                  load_export(export()).embed(paths[0]))
    path.write_bytes(b"no location in it")
    change(digest=digest(path.read_bytes()))(path, side)
    with pytest.raises(ExportError, match="x.onnx: The file is no ONNX: onnx .* says"):
        load_export(path)


def test_a_network_that_cannot_be_calibrated(load, paths, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("Non-zero status code\nof a Reshape")

    monkeypatch.setattr("onnxruntime.quantization.quantize_static", fails)
    with pytest.raises(ExportError, match="cannot calibrate this network by the images: Non-zero "
                                          "status code of a Reshape. Take --precision fp32"):
        export_network(load(), tmp_path / "x.onnx", precision="int8", images=paths)
    assert not list(tmp_path.glob("x.onnx*"))


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_missing_packages(load, export, tmp_path, monkeypatch, package):
    content = export().read_bytes()
    monkeypatch.setattr(graph, "_by_program", lambda *_: content)  # tried as well, and slow
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package} is not installed.*"
                                          + re.escape("pip install 'caureid-plugin[export]'")):
        export_network(load(), tmp_path / "x.onnx")
    assert not list(tmp_path.glob("x.onnx*"))
