"""A trained network as a folder for a hub: its weights, its config, its model card.

The layout is the one that huggingface_hub's ``PyTorchModelHubMixin`` writes and reads:
``model.safetensors``, ``config.json`` (the sidecar), ``README.md``. Nothing here needs
huggingface_hub, and nothing is sent anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..common.errors import UserError
from ..common.pages import render
from ..common.text import printable
from ..common.weights import load_safetensors, require_safetensors
from ..engine import build_network, load_config
from ..engine.setup import to_evaluate
from ..retrieval.network import EmbeddingNetwork, build_embedding_network
from ..runs.folder import find_checkpoint, memory_bank, read_checkpoint, read_config
from ..runs.metrics import indicators, read_rows
from .graph import ExportError
from .sidecar import Sidecar

CARD = "README.md"
_TEMPLATE = Path(__file__).with_name("card.md.j2")
# of a config: what builds the network and prepares its images
_KEPT = ("MODEL.", "INPUT.SIZE_", "INPUT.CROP.")
# but not what tells of the machine, asks for files that are not there, or serves only training
_LEFT_OUT = ("MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.BACKBONE.PRETRAIN", "MODEL.LOSSES.")


class Origin(NamedTuple):
    """Where a network comes from: what its folder on a hub says beside the weights.

    ``cfg`` is the run's config; ``images`` and ``cameras`` are counted in its memory bank, None
    without one. ``figures`` has the last mAP of each test set by its key in metrics.json.
    """

    cfg: Any
    images: int | None
    cameras: int | None
    figures: dict[str, float]

    @classmethod
    def of_run(cls, run: Path, opts: Sequence[str] = ()) -> Origin:
        """Of what :func:`caureid_plugin.load_run` was given.

        Raises:
            RunError: see there.
        """
        home = run.parent if run.suffix == ".pth" else run
        path = run if run.suffix == ".pth" else find_checkpoint(home)
        try:
            camids = memory_bank(read_checkpoint(path), path)["camids"]
        except UserError:  # of a supervised run
            camids = None
        found = indicators(read_rows(home / "metrics.json")[0])
        return cls(read_config(home, opts), None if camids is None else len(camids),
                   None if camids is None else len(torch.unique(camids)),
                   {key: values[-1] for key, values in found.items()
                    if key.rpartition("/")[2] == "mAP" and values})

    def keys(self) -> dict[str, Any]:
        """Config keys and values that build the network again."""
        return {key: value for key, value in _leaves(self.cfg, "") if key.startswith(_KEPT)
                and (not key.startswith(_LEFT_OUT) or key == "MODEL.LOSSES.NAME")}

    def card(self, sidecar: Sidecar) -> str:
        """The model card as far as the run knows it; docs/model_card.md says what to fill in."""
        backbone = self.cfg.MODEL.BACKBONE
        start = [Path(name).name for name in (
            backbone.PRETRAIN_PATH if backbone.PRETRAIN else "", self.cfg.MODEL.WEIGHTS) if name]
        if backbone.PRETRAIN and not backbone.PRETRAIN_PATH:
            start.append("downloaded (MODEL.BACKBONE.PRETRAIN True)")
        return render(_TEMPLATE, {
            "made": sidecar, "origin": self, "start": ", ".join(start), "seed": self.cfg.SEED,
            "backbone": backbone, "datasets": ", ".join(self.cfg.DATASETS.NAMES)})


def _leaves(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


class HubNetwork(EmbeddingNetwork):
    """An exported network without its weights, as huggingface_hub's mixin builds it.

    Args:
        network: of ``config.json``: config keys and values.

    Shape:
        - input: (B, 3, H, W) float, RGB 0..255; it is left as it is
        - output: (B, D), of length 1

    Raises:
        ExportError: the keys are of another version, or build no such network.
    """

    def __init__(self, network: Mapping[str, Any]) -> None:
        super().__init__(build_network(to_evaluate(config_of(network))))


def config_of(keys: Mapping[str, Any]) -> Any:
    """The config of what :meth:`Origin.keys` gave, for the CPU.

    Raises:
        ExportError: a key that does not exist, or a value that it does not take.
    """
    try:
        cfg = load_config("", [part for item in keys.items() for part in item], training=False)
    except (KeyError, ValueError) as error:
        raise ExportError(f"its network's config is of another version, or damaged: "
                          f"{str(error.args[0]).rstrip('.')}. Use the version that wrote it, which "
                          "config.json names (\"plugin\")") from error
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def to_safetensors(network: nn.Module) -> bytes:
    """The weights of a network as the content of a .safetensors file.

    Raises:
        ImportError: safetensors is not installed.
    """
    tensors = {name: value.detach().cpu().contiguous()
               for name, value in network.state_dict().items()}
    content: bytes = require_safetensors().save(tensors, {"format": "pt"})
    return content


def from_safetensors(content: bytes, keys: Mapping[str, Any], path: Path
                     ) -> tuple[EmbeddingNetwork, Any]:
    """The network of a .safetensors file, on the CPU, and its config.

    Args:
        content: of the file ``path``.
        keys: of its config.json.

    Raises:
        ExportError: damaged; the weights are not of a network of these keys.
        ImportError: safetensors is not installed.
    """
    try:
        cfg = config_of(keys)
        tensors = load_safetensors(content, str(path))
        weights = {f"heads.{name[5:]}" if name.startswith("head.") else name: value
                   for name, value in tensors.items()}
        network = build_embedding_network(cfg, {"model": weights}, path)
        for name in ("pixel_mean", "pixel_std"):
            network.get_buffer(name).copy_(tensors[name])
    except ImportError:
        raise
    except (KeyError, RuntimeError, UserError) as error:
        raise ExportError(f"{printable(path)} cannot be used: {error}") from error
    return network, cfg
