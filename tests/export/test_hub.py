"""A run as a folder for a hub: what is in it, who reads it, what is refused."""

import functools
import json
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from caureid_plugin import load_export, load_run
from caureid_plugin.cli import export
from caureid_plugin.cli.common import call
from caureid_plugin.export import ExportError, HubNetwork, Origin, export_network
from caureid_plugin.export.load import load_embedder
from caureid_plugin.export.sidecar import digest
from caureid_plugin.retrieval.network import EmbeddingNetwork
from fastreid.modeling import backbones

from helpers.tool_output import refusal

OSNET = ("MODEL.BACKBONE.NAME", "build_osnet_backbone", "MODEL.BACKBONE.DEPTH", "x0_25",
         "MODEL.BACKBONE.FEAT_DIM", "128", "MODEL.BACKBONE.WITH_IBN", "False")


@pytest.fixture
def run(small_run):
    return small_run("MODEL.HEADS.CAMSEP.NUM_CAMERAS", "7")


@pytest.fixture
def hub(run, tmp_path):
    """The folder."""
    path = tmp_path / "person" / "model.safetensors"
    export_network(load_run(run), _in_new_folder(path), origin=Origin.of_run(run))
    return path.parent


def _in_new_folder(path):
    path.parent.mkdir()
    return path


def some_images(height=32, width=16):
    return 255 * torch.rand(5, 3, height, width, generator=torch.Generator().manual_seed(3))


def test_the_command_writes_a_folder_that_is_used_as_the_run_is(run, tmp_path, capsys):
    path = tmp_path / "new" / "person" / "model.safetensors"
    call(export.command, [run, "--output", path])
    output = capsys.readouterr().out
    assert "config.json says so" in output and "README.md is the model card: fill in" in output
    assert {file.name for file in path.parent.iterdir()} == {
        "README.md", "config.json", "model.safetensors"}
    embedder = load_run(run)
    expected = embedder(some_images())
    for loaded in (load_export(path), load_export(path.parent), load_embedder(path.parent)):
        np.testing.assert_allclose(loaded(some_images()), expected, atol=1e-6)
        assert (loaded.fingerprint, loaded.dim, loaded.preprocessing) == (
            embedder.fingerprint, embedder.dim, embedder.preprocessing)
        assert loaded.statistics.to_json() == embedder.statistics.to_json()
    (path.parent / "README.md").write_text("filled in")
    call(export.command, [run, "--output", path])
    assert "README.md was there and is kept" in capsys.readouterr().out
    assert (path.parent / "README.md").read_text() == "filled in"


def test_the_file_holds_the_embeddings_weights_and_the_config_no_path(run, hub):
    found = safetensors.torch.load_file(hub / "model.safetensors")
    expected = load_run(run).network.state_dict()
    assert found.keys() == expected.keys() and not [name for name in found if "camera" in name]
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    config = json.loads((hub / "config.json").read_text())
    assert config["digest"] == digest((hub / "model.safetensors").read_bytes())
    assert config["network"]["MODEL.BACKBONE.NAME"] == "build_plain_backbone"
    assert not [key for key in config["network"] if key.endswith(("_PATH", "ROOT", ".WEIGHTS"))]
    assert str(run.parent) not in (hub / "config.json").read_text()


def test_huggingface_hub_reads_the_folder(run, hub):
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is missing")

    class Network(HubNetwork, huggingface_hub.PyTorchModelHubMixin):
        pass

    network = Network.from_pretrained(hub, strict=True, local_files_only=True)
    assert isinstance(network, EmbeddingNetwork) and not network.training
    np.testing.assert_allclose(network(some_images()), load_run(run)(some_images()), atol=1e-6)
    card = huggingface_hub.ModelCard.load(hub / "README.md")
    assert "pytorch_model_hub_mixin" in card.data.tags
    assert card.data.library_name == "caureid-plugin"


def test_the_card_says_what_the_run_knows(run, tmp_path):
    rows = [{"iteration": 0, "start/mAP": 11.0}, {"iteration": 2, "mAP": 25.0},
            {"iteration": 5, "mAP": 34.56}]
    (run / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    opts = ["MODEL.BACKBONE.PRETRAIN", "True", "MODEL.BACKBONE.PRETRAIN_PATH", "/home/me/w.pth"]
    made = export_network(load_run(run), _in_new_folder(tmp_path / "a" / "model.safetensors"),
                          origin=Origin.of_run(run / "model_final.pth", opts))
    text = (tmp_path / "a" / "README.md").read_text()
    for part in ("- mAP, last epoch, one run: 34.6", "- Images: 66, of 2 cameras", made.fingerprint,
                 "- mAP, before training, one run: 11.0",
                 made.digest, "32 x 16, RGB 0 to 255", "- File: w.pth", "Data set: Market1501",
                 f"{made.threshold['value']:.3f}", "used to make them: ..."):
        assert part in text, part
    assert "/home" not in text


def test_a_card_without_memory_bank_and_threshold(run, tmp_path):
    content = torch.load(run / "model_final.pth", weights_only=True)
    del content["memory_bank"]
    torch.save(content, run / "model_final.pth")
    export_network(load_run(run), _in_new_folder(tmp_path / "a" / "model.safetensors"),
                   origin=Origin.of_run(run))
    text = (tmp_path / "a" / "README.md").read_text()
    assert "- Threshold suggested: none" in text and "none, random weights" in text
    assert "how many, of how many cameras" in text and "mAP" not in text


def test_a_published_network_is_a_start_for_training(small_run, tmp_path, cfg):
    run = small_run(*OSNET)
    export_network(load_run(run), _in_new_folder(tmp_path / "a" / "model.safetensors"),
                   origin=Origin.of_run(run))
    cfg.merge_from_list([*OSNET, "MODEL.BACKBONE.PRETRAIN", "True", "MODEL.BACKBONE.PRETRAIN_PATH",
                         str(tmp_path / "a" / "model.safetensors")])
    built = backbones.build_backbone(cfg).state_dict()
    expected = load_run(run).network.backbone.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in built.items())


def change(**fields):
    def apply(folder):
        config = json.loads((folder / "config.json").read_text())
        config["network"] |= fields.pop("network", {})
        (folder / "config.json").write_text(json.dumps(config | fields))

    return apply


def replace_weights(edit):
    """Other weights, with the digest of the new file."""
    def apply(folder):
        path = folder / "model.safetensors"
        content = edit(path.read_bytes())
        path.write_bytes(content)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"digest": digest(content)}))

    return apply


def without_one(content):
    tensors = safetensors.torch.load(content)
    del tensors["pixel_mean"]
    return safetensors.torch.save(tensors)


@pytest.mark.parametrize("spoil, message", [
    (lambda folder: (folder / "config.json").unlink(), "has no sidecar config.json"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "digests differ"),
    (replace_weights(lambda content: content[:-9]), "is damaged or no file of safetensors"),
    (replace_weights(without_one), "cannot be used: 'pixel_mean'"),
    (change(network={"MODEL.BACKBONE.FEAT_DIM": 32}), "does not fit the run's config"),
    (change(network={"MODEL.BACKBONE.NAMES": "x"}), "of another version, or damaged: .*NAMES"),
    (change(network={"INPUT.SIZE_TEST": "wide"}), "of another version, or damaged: "),
    (change(network={"MODEL.BACKBONE.STRIDE_SIZE": [8, 8]}), "another fingerprint than the one"),
    (change(size=[16, 16]), "another fingerprint than the one"),
    (change(kind="onnx"), "is no safetensors file, as its sidecar says: it is onnx"),
    (lambda folder: change(network={})(folder) or (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace('"network"', '"net"')),
     "is damaged: its network is None"),
])
def test_folders_that_cannot_be_used(hub, spoil, message):
    spoil(hub)
    with pytest.raises(ExportError, match=message):
        load_export(hub)


def test_wrong_arguments(run, tmp_path, capsys):
    embedder, path = load_run(run), tmp_path / "model.safetensors"
    for options, message in (({}, "needs the config of its run: give origin"),
                             ({"convention": "imagenet"}, "--input imagenet is only for"),
                             ({"precision": "fp16"}, "--precision fp16 is only for ONNX")):
        with pytest.raises(ExportError, match=message):
            export_network(embedder, path, **options)
    (tmp_path / "config.json").write_text("{}")
    for name, message in ((path, "config.json is there already and not of caureid export"),
                          (tmp_path / "other.safetensors", "must be named model.safetensors"),
                          (run / "config.yaml" / "model.safetensors", "config.yaml' is a file")):
        words = [run, "--output", name]
        assert message in refusal(functools.partial(call, export.command), words, capsys)
    assert {file.name for file in tmp_path.iterdir()} == {run.name, "config.json"}


def test_safetensors_is_not_installed(run, hub, cfg, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    cfg.merge_from_list([*OSNET, "MODEL.BACKBONE.PRETRAIN", "True", "MODEL.BACKBONE.PRETRAIN_PATH",
                         str(hub / "model.safetensors")])
    for use in (lambda: load_export(hub), lambda: backbones.build_backbone(cfg),
                lambda: export_network(load_run(run), tmp_path / "model.safetensors",
                                       origin=Origin.of_run(run))):
        with pytest.raises(ImportError, match=r"safetensors is not .*'caureid-plugin\[hub\]'"):
            use()
