"""Nothing is fetched unless the config asks for pretrained weights by name."""

import socket

import pytest
import torch
from fastreid.modeling.backbones import build_backbone

OSNET = ["MODEL.BACKBONE.NAME", "build_osnet_backbone", "MODEL.BACKBONE.DEPTH", "x0_25",
         "MODEL.BACKBONE.FEAT_DIM", 128, "MODEL.BACKBONE.WITH_IBN", False]
RESNET = ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.DEPTH", "18x",
          "MODEL.BACKBONE.FEAT_DIM", 512, "MODEL.BACKBONE.WITH_IBN", False]
RESNEST = ["MODEL.BACKBONE.NAME", "build_resnest_backbone", "MODEL.BACKBONE.DEPTH", "50x"]


class Unreachable(Exception):
    """No library expects this one, so that none goes on after it."""


@pytest.fixture
def attempts(monkeypatch, tmp_path):
    """Blocks every connection but those to a socket file; gives those that were tried."""
    tried = []
    connect = socket.socket.connect

    def blocked_connect(self, address, *rest):
        if self.family == socket.AF_UNIX:
            return connect(self, address, *rest)
        tried.append(address)
        raise Unreachable(address)

    def blocked_lookup(host, *rest, **options):
        tried.append(host)
        raise Unreachable(host)

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, blocked_connect)
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        monkeypatch.setattr(socket, name, blocked_lookup)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))  # no weights from earlier runs
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    return tried


def test_training_and_evaluation_without_pretrained_weights_fetch_nothing(
        train_as_script, attempts, tmp_path):
    trainer = train_as_script("MODEL.BACKBONE.PRETRAIN", False)
    assert "mAP" in trainer.storage.latest()
    assert attempts == []
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("backbone", [OSNET, RESNET], ids=["osnet", "resnet"])
def test_pretrained_weights_of_a_file_are_not_fetched(cfg, attempts, tmp_path, backbone):
    cfg.merge_from_list([*backbone, "MODEL.BACKBONE.PRETRAIN", False])
    weights = {name: torch.rand_like(value.float())
               for name, value in build_backbone(cfg).state_dict().items()}
    torch.save(weights, tmp_path / "weights.pth")
    cfg.merge_from_list(["MODEL.BACKBONE.PRETRAIN", True,
                         "MODEL.BACKBONE.PRETRAIN_PATH", str(tmp_path / "weights.pth")])
    loaded = build_backbone(cfg).state_dict()
    name = "conv1.weight" if "conv1.weight" in loaded else "conv1.conv.weight"
    assert torch.equal(loaded[name], weights[name])
    assert attempts == []


@pytest.mark.parametrize("backbone", [OSNET, RESNET, RESNEST], ids=["osnet", "resnet", "resnest"])
def test_only_pretrained_weights_without_a_file_are_fetched(cfg, attempts, backbone):
    """The attempt is what is asserted; it also shows that the block works."""
    cfg.merge_from_list([*backbone, "MODEL.BACKBONE.PRETRAIN", True,
                         "MODEL.BACKBONE.PRETRAIN_PATH", ""])
    with pytest.raises(Unreachable):
        build_backbone(cfg)
    assert attempts


def test_a_checkpoint_is_a_local_file(attempts, train_as_script):
    url = "https://nowhere.invalid/weights.pth"
    with pytest.raises((AssertionError, OSError, ValueError), match=url):
        train_as_script("MODEL.WEIGHTS", url)
    assert attempts == []
