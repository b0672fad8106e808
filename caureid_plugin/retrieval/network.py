"""A trained network without what only training needs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.modeling.heads import ClasHead, EmbeddingHead
from torch import nn

from ..common.errors import UserError
from ..common.text import printable
from ..engine.setup import build_network, to_evaluate
from ..runs.folder import RunError
from .preprocessing import Preprocessing

ARCHITECTURES = ("CAUReID", "Baseline")
# of a head: classifiers of identities and of cameras, none of which makes the embedding
TRAINING_ONLY = ("weight", "cls_layer", "camera_pool", "camera_neck", "camera_classifier")
# what makes the embedding and cannot be seen in the weights
_SHAPING = ("BACKBONE.NAME", "BACKBONE.DEPTH", "BACKBONE.LAST_STRIDE", "BACKBONE.WITH_IBN",
            "BACKBONE.WITH_SE", "BACKBONE.WITH_NL", "BACKBONE.STRIDE_SIZE", "HEADS.NAME",
            "HEADS.POOL_LAYER", "HEADS.CAMSEP.ATTENTION", "HEADS.CAMSEP.RANGE")
# keys of later versions, left out where they are as they were before
_SHAPING_SINCE = {"BACKBONE.TIMM.OPTIONS": "", "BACKBONE.TIMM.STRIDE": 0}
# a key of earlier versions, so that what was indexed or exported with them is still compared
_GONE = {"HEADS.CAMSEP.GAIN": "1.0"}


class EmbeddingNetwork(nn.Module):
    """Images to embeddings, in evaluation mode, with normalisation of both built in.

    Backbone and head of a network of the toolbox, without what they need only in training:
    the classifiers of identities and of cameras.

    Args:
        model: a Baseline with an EmbeddingHead.

    Shape:
        - input: (B, 3, H, W) float, RGB 0..255; it is left as it is
        - output: (B, D), of length 1
    """

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone: nn.Module = model.get_submodule("backbone")
        head: Any = model.get_submodule("heads")
        for name in TRAINING_ONLY:
            if hasattr(head, name):
                delattr(head, name)
        head.cls_layer = head.camera_classifier = None  # the heads ask for them in every mode
        self.head: nn.Module = head
        self.register_buffer("pixel_mean", model.get_buffer("pixel_mean").clone())
        self.register_buffer("pixel_std", model.get_buffer("pixel_std").clone())
        self.eval().requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.head(self.backbone((images - self.pixel_mean) / self.pixel_std))
        return F.normalize(features, dim=1)


def build_embedding_network(cfg: CfgNode, content: Mapping[str, Any], path: Path
                            ) -> EmbeddingNetwork:
    """The network of a config with the weights of a checkpoint, on MODEL.DEVICE.

    Args:
        cfg: of the run.
        content: of the checkpoint ``path``.

    Raises:
        RunError: another meta-architecture or head than those that give an embedding; the
            weights are missing, not finite, or of another network.
    """
    if cfg.MODEL.META_ARCHITECTURE not in ARCHITECTURES:
        raise RunError(f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} is not one whose "
                       f"embedding can be taken out, which are {' and '.join(ARCHITECTURES)}: use "
                       "FastReID's DefaultPredictor, or train one of these.")
    try:
        model = build_network(to_evaluate(cfg))
    except (OSError, UserError) as error:
        raise RunError(f"The network of the run's config cannot be built: {error} Use the version "
                       "of the plugin that made the run.") from error
    head = model.get_submodule("heads")
    if not isinstance(head, EmbeddingHead) or isinstance(head, ClasHead):
        raise RunError(f"MODEL.HEADS.NAME {cfg.MODEL.HEADS.NAME} gives no embedding: it takes "
                       "CamSepHead, EmbeddingHead or one derived from it.")
    _load(model, content, path)
    return EmbeddingNetwork(model)


def _load(model: nn.Module, content: Mapping[str, Any], path: Path) -> None:
    """Gives a model the weights that make its embedding, all of them."""
    weights = content.get("model")
    if not isinstance(weights, Mapping):
        raise RunError(f"The checkpoint {printable(path)} holds no network (\"model\"): give one "
                       "that a run has written.")
    found = {_plain(name): value for name, value in weights.items() if not _is_spare(_plain(name))}
    wanted = {name: value for name, value in model.state_dict().items() if not _is_spare(name)}
    missing, foreign = sorted(wanted.keys() - found), sorted(found.keys() - wanted)
    # checkpoints of a plain batch norm may lack its counter, which evaluation does not read
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    prefix = f"The checkpoint {printable(path)} does not fit the run's config.yaml: "
    advice = " Give a checkpoint of this run, or the version of the plugin that made it."
    if missing or foreign:
        what = f"it lacks {len(missing)} of its parts and has {len(foreign)} others, "
        first = printable((missing + foreign)[0])
        raise RunError(f"{prefix}{what}{first} for one.{advice}")
    for name in wanted.keys() & found:
        if not isinstance(found[name], torch.Tensor) or found[name].shape != wanted[name].shape:
            shape = tuple(getattr(found[name], "shape", ()))
            raise RunError(f"{prefix}its {name} has shape {shape}, and the network's "
                           f"{tuple(wanted[name].shape)}.{advice}")
        if not torch.isfinite(found[name].float()).all():
            raise RunError(f"The checkpoint {printable(path)} is of a run that went wrong: its "
                           f"{name} is NaN or infinite. Take an earlier checkpoint.")
    model.load_state_dict({name: found[name] for name in wanted.keys() & found}, strict=False)


def _plain(name: str) -> str:
    return name.removeprefix("module.")  # of several processes, in checkpoints of other tools


def _is_spare(name: str) -> bool:
    """Whether a weight has no part in the embedding, or is the config's."""
    parts = name.split(".")
    return (parts[0] not in ("backbone", "heads")
            or (parts[0] == "heads" and parts[1] in TRAINING_ONLY))


def fingerprint(network: EmbeddingNetwork, cfg: CfgNode, preprocessing: Preprocessing) -> str:
    """What tells whether two embeddings may be compared: 32 hexadecimal digits (BLAKE2b).

    Of the weights that make the embedding, how they are put together, and the preprocessing. It is
    the same for checkpoints that differ in what only training needs.
    """
    shaping = _GONE | {key: str(attrgetter(key)(cfg.MODEL)) for key in _SHAPING}
    shaping |= {key: str(attrgetter(key)(cfg.MODEL)) for key, before in _SHAPING_SINCE.items()
                if attrgetter(key)(cfg.MODEL) != before}
    plan = json.dumps([shaping, dataclasses.asdict(preprocessing)], sort_keys=True)
    digest = hashlib.blake2b(plan.encode("ascii"), digest_size=16)
    for name, value in sorted(network.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            whole = value.detach().float().cpu().contiguous()
            digest.update(f"{name} {tuple(whole.shape)} ".encode("ascii"))
            digest.update(whole.numpy().astype("<f4").tobytes())
    return digest.hexdigest()

