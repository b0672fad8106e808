"""Losses chosen by ``MODEL.LOSSES.NAME``: registered wrappers that read the config, pick their
tensors from the head's outputs, the batch and the memory bank, and call a pure function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable
from fastreid.modeling import losses as toolbox
from fastreid.utils.registry import Registry
from torch import nn

from .. import losses
from ..common.errors import UserError
from ..common.text import naming_keys
from ..compat import registered_names
from .gather import gather_batch
from .memory_bank import MemoryBank
from .teacher import VIEWS, Teacher

Outputs = dict[str, torch.Tensor]

LOSS_REGISTRY = Registry("LOSSES")
LOSS_REGISTRY.__doc__ = """
Losses of CAUReID. A registered class is called with ``cfg``; its instances with ``(outputs, batch,
memory)`` and return a dict of named scalars. ``needs_memory`` says whether the loss needs the
memory bank, and with it the UnsupervisedHook; ``needs_cameras``, whether it needs several cameras;
``needs_teacher``, whether it needs the features of a :class:`.Teacher`.
"""


class Loss:
    """Base of the registered losses.

    Args:
        scale: weight of the loss in the total (lambda in eq. 2).
        kwargs: options of the loss function.
    """

    needs_memory = needs_cameras = needs_teacher = False

    @configurable
    def __init__(self, *, scale: float = 1.0, **kwargs: Any) -> None:
        self.scale = scale
        self.kwargs = kwargs

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {}

    def __call__(self, outputs: Outputs, batch: dict[str, Any],
                 memory: MemoryBank | None) -> Outputs:
        raise NotImplementedError

    def _output(self, outputs: Outputs, key: str) -> torch.Tensor:
        if key not in outputs:
            raise UserError(
                f"{type(self).__name__} needs the head's output {key!r}, which MODEL.HEADS.NAME "
                f"does not give here (it gives {sorted(outputs)}): check MODEL.HEADS.NAME, "
                "MODEL.HEADS.NUM_CLASSES and MODEL.HEADS.CAMSEP.")
        return outputs[key]


class MemoryLoss(Loss):
    """Base of the losses against the memory bank; they work on L2-normalised features."""

    needs_memory = True

    def __call__(self, outputs: Outputs, batch: dict[str, Any],
                 memory: MemoryBank | None) -> Outputs:
        if memory is None:
            raise self._needs("pseudo labels and a memory bank")
        features = F.normalize(self._output(outputs, "features"), dim=1)
        return self.compare(features, batch["targets"], batch["camids"], memory)

    def _needs(self, what: str) -> UserError:
        return UserError(f"{type(self).__name__} needs {what}: add "
                         "`trainer.register_hooks([caureid_plugin.UnsupervisedHook(cfg)])` after "
                         "the trainer is built.")

    def compare(self, features: torch.Tensor, labels: torch.Tensor, camids: torch.Tensor,
                memory: MemoryBank) -> Outputs:
        raise NotImplementedError


def _check_temperature(name: str, node: CfgNode, key: str = "TEMPERATURE") -> None:
    if node[key] <= 0:
        raise UserError(f"MODEL.LOSSES.{name}.{key} {node[key]} must be positive.")


def _check_not_negative(name: str, node: CfgNode, *keys: str) -> None:
    for key in keys:
        if node[key] < 0:
            raise UserError(f"MODEL.LOSSES.{name}.{key} {node[key]} must not be negative.")


@LOSS_REGISTRY.register()
class InfoNCELoss(MemoryLoss):
    """:func:`caureid_plugin.losses.info_nce_loss` against the bank's centroids."""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.LOSSES.INFONCE
        _check_temperature("INFONCE", node)
        return {"scale": node.SCALE, "temperature": node.TEMPERATURE}

    def compare(self, features: torch.Tensor, labels: torch.Tensor, camids: torch.Tensor,
                memory: MemoryBank) -> Outputs:
        loss = losses.info_nce_loss(features, labels, memory.centroids, **self.kwargs)
        return {"loss_infonce": loss * self.scale}


@LOSS_REGISTRY.register()
class CACCLoss(MemoryLoss):
    """:func:`caureid_plugin.losses.cacc_loss` between the batch and the bank's camera centres.

    With several processes the centres are made from the whole batch.
    """

    ANCHORS = ("centre", "sample")

    @configurable
    def __init__(self, *, anchor: str, normalize: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.anchor = anchor
        self.normalize = normalize

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.LOSSES.CACC
        if node.ANCHOR not in cls.ANCHORS:
            raise UserError(
                f"MODEL.LOSSES.CACC.ANCHOR {node.ANCHOR!r} is unknown, known are {cls.ANCHORS}.")
        _check_temperature("CACC", node)
        _check_not_negative("CACC", node, "NUM_NEGATIVES")
        return {
            "scale": node.SCALE, "temperature": node.TEMPERATURE, "anchor": node.ANCHOR,
            "num_negatives": node.NUM_NEGATIVES, "normalize": node.NORMALIZE,
        }

    def compare(self, features: torch.Tensor, labels: torch.Tensor, camids: torch.Tensor,
                memory: MemoryBank) -> Outputs:
        if self.anchor == "centre":
            features, labels = losses.batch_camera_centres(
                *gather_batch(features, labels, camids), normalize=self.normalize)
        loss = losses.cacc_loss(
            features, labels, *memory.camera_centres(normalize=self.normalize), **self.kwargs)
        return {"loss_cacc": loss * self.scale}


def _proxy_options(cfg: CfgNode) -> dict[str, Any]:
    """Options of the loss between images and the proxies of all cameras."""
    node = cfg.MODEL.LOSSES.CAP
    _check_temperature("CAP", node)
    _check_not_negative("CAP", node, "NUM_NEGATIVES", "INTER_SCALE", "INTER_EPOCH")
    return {"temperature": node.TEMPERATURE, "num_negatives": node.NUM_NEGATIVES}


@LOSS_REGISTRY.register()
class CAPLoss(MemoryLoss):
    """CAP: :func:`.intra_camera_loss`, and later in training :func:`.inter_camera_loss` with it.

    The proxies are the bank's camera centres; CAP's move by CAUREID.MEMORY.CENTRES momentum. With
    several processes the losses are computed over the whole batch, as they are means over cameras.
    """

    needs_cameras = True

    @configurable
    def __init__(self, *, inter_scale: float, inter_epoch: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inter_scale = inter_scale
        self.inter_epoch = inter_epoch

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.LOSSES.CAP
        return {**_proxy_options(cfg), "scale": node.SCALE, "inter_scale": node.INTER_SCALE,
                "inter_epoch": node.INTER_EPOCH}

    def compare(self, features: torch.Tensor, labels: torch.Tensor, camids: torch.Tensor,
                memory: MemoryBank) -> Outputs:
        features, labels, camids = gather_batch(features, labels, camids)
        centres, clusters = memory.camera_centres()
        found = {"loss_cap_intra": losses.intra_camera_loss(
            features, labels, camids, centres, clusters, memory.centre_camids,
            temperature=self.kwargs["temperature"])}
        if memory.epoch >= self.inter_epoch:
            found["loss_cap_inter"] = self.inter_scale * losses.inter_camera_loss(
                features, labels, camids, centres, clusters, **self.kwargs)
        return {name: loss * self.scale for name, loss in found.items()}


@LOSS_REGISTRY.register()
class ICELoss(MemoryLoss):
    """ICE: against centroids and camera proxies, and against the teacher's keys of the batch.

    The four are :func:`.info_nce_loss` with features of any length, :func:`.inter_camera_loss` by
    the keys of MODEL.LOSSES.CAP, :func:`.hard_instance_loss` and :func:`.soft_consistency_loss`.
    ICE's centroids and proxies stay as they are between clusterings: CAUREID.MEMORY.CENTRES fixed.
    With several processes the losses are computed over the whole batch.
    """

    needs_cameras = needs_teacher = True
    SMOOTHING = 0.1  # of the labels, against centroids

    @configurable
    def __init__(self, *, proxies: dict[str, Any], camera_scale: float, temperatures:
                 dict[str, float], soft_scale: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.proxies, self.camera_scale = proxies, camera_scale
        self.temperatures, self.soft_scale = temperatures, soft_scale

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.LOSSES.ICE
        keys = {"cluster": "TEMPERATURE", "hard": "HARD_TEMPERATURE", "soft": "SOFT_TEMPERATURE"}
        for key in keys.values():
            _check_temperature("ICE", node, key)
        return {"scale": node.SCALE, "soft_scale": node.SOFT_SCALE,
                "temperatures": {name: node[key] for name, key in keys.items()},
                "proxies": _proxy_options(cfg), "camera_scale": cfg.MODEL.LOSSES.CAP.INTER_SCALE}

    def __call__(self, outputs: Outputs, batch: dict[str, Any],
                 memory: MemoryBank | None) -> Outputs:
        if memory is None or any(view not in outputs for view in VIEWS):
            raise self._needs("pseudo labels, a memory bank and a teacher")
        raw, keys, plain, labels, camids = gather_batch(
            self._output(outputs, "features"), *(outputs[view] for view in VIEWS),
            batch["targets"], batch["camids"])
        features = F.normalize(raw, dim=1)
        found = {
            "loss_ice_cluster": losses.info_nce_loss(
                raw, labels, memory.centroids, temperature=self.temperatures["cluster"],
                smoothing=self.SMOOTHING),
            "loss_ice_camera": self.camera_scale * losses.inter_camera_loss(
                features, labels, camids, *memory.camera_centres(), **self.proxies),
            "loss_ice_hard": losses.hard_instance_loss(
                features, labels, keys, temperature=self.temperatures["hard"]),
            "loss_ice_soft": self.soft_scale * losses.soft_consistency_loss(
                features, keys, plain, temperature=self.temperatures["soft"])}
        return {name: loss * self.scale for name, loss in found.items()}


@LOSS_REGISTRY.register()
class CameraSeparationLoss(Loss):
    """:func:`caureid_plugin.losses.camera_separation_loss` on the head's camera classifier."""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"scale": cfg.MODEL.LOSSES.CAMSEP.SCALE}

    def __call__(self, outputs: Outputs, batch: dict[str, Any],
                 memory: MemoryBank | None) -> Outputs:
        logits = self._output(outputs, "camera_logits")
        camids = _camera_numbers(batch)
        with naming_keys({"logits": "MODEL.HEADS.CAMSEP.NUM_CAMERAS"}):
            loss = losses.camera_separation_loss(logits, camids)
        return {"loss_camsep": loss * self.scale}


def _camera_numbers(batch: dict[str, Any]) -> torch.Tensor:
    """The batch's cameras (B,) int64; the toolbox's training datasets number them from 0."""
    camids = batch.get("camids")
    if isinstance(camids, torch.Tensor) and not (camids.is_floating_point() or camids.is_complex()):
        return camids.long()
    found = camids.dtype if isinstance(camids, torch.Tensor) else type(camids).__name__
    raise UserError(
        "CameraSeparationLoss needs the camera of each image, an integer from 0 to "
        f"MODEL.HEADS.CAMSEP.NUM_CAMERAS - 1, as 'camids' of the batch; it is of type {found}. "
        "Take a dataset with cameras in DATASETS.NAMES, or the loss out of MODEL.LOSSES.NAME.")


@LOSS_REGISTRY.register()
class CrossEntropyLoss(Loss):
    """FastReID's cross entropy over identities."""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.LOSSES.CE
        return {"scale": node.SCALE, "eps": node.EPSILON, "alpha": node.ALPHA}

    def __call__(self, outputs: Outputs, batch: dict[str, Any],
                 memory: MemoryBank | None) -> Outputs:
        toolbox.log_accuracy(self._output(outputs, "pred_class_logits").detach(), batch["targets"])
        loss = toolbox.cross_entropy_loss(outputs["cls_outputs"], batch["targets"], **self.kwargs)
        return {"loss_cls": loss * self.scale}


class FeatureLoss(Loss):
    """Base of FastReID's losses between the features of a batch and its labels.

    Attributes:
        function: the toolbox's loss function.
        scalar: name of the result.
        section: of MODEL.LOSSES; its keys are SCALE and the function's options.
    """

    function: Callable[..., torch.Tensor]
    scalar: str
    section: str

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {key.lower(): value for key, value in cfg.MODEL.LOSSES[cls.section].items()}

    def __call__(self, outputs: Outputs, batch: dict[str, Any],
                 memory: MemoryBank | None) -> Outputs:
        features = self._output(outputs, "features")
        loss = type(self).function(features, batch["targets"], **self.kwargs)
        return {self.scalar: loss * self.scale}


@LOSS_REGISTRY.register()
class TripletLoss(FeatureLoss):
    """FastReID's triplet loss."""

    function, scalar, section = toolbox.triplet_loss, "loss_triplet", "TRI"


@LOSS_REGISTRY.register()
class CircleLoss(FeatureLoss):
    """FastReID's pairwise circle loss."""

    function, scalar, section = toolbox.pairwise_circleloss, "loss_circle", "CIRCLE"


@LOSS_REGISTRY.register()
class Cosface(FeatureLoss):
    """FastReID's pairwise CosFace loss."""

    function, scalar, section = toolbox.pairwise_cosface, "loss_cosface", "COSFACE"


def _loss_class(name: str) -> type[Loss]:
    known = registered_names(LOSS_REGISTRY)
    if name not in known:
        raise UserError(f"Unknown loss {name!r} in MODEL.LOSSES.NAME, known are {known}.")
    return LOSS_REGISTRY.get(name)


def build_losses(cfg: CfgNode) -> list[Loss]:
    """Builds the losses named in ``MODEL.LOSSES.NAME``.

    Raises:
        ValueError: no loss, an unknown one (lists the known ones), or one named twice.
    """
    names = list(cfg.MODEL.LOSSES.NAME)
    if not names or len(set(names)) < len(names):
        raise UserError(f"MODEL.LOSSES.NAME {names} must name at least one loss, each once.")
    return [_loss_class(name)(cfg) for name in names]


def needs_memory(cfg: CfgNode) -> bool:
    """Whether a loss of ``MODEL.LOSSES.NAME`` needs the memory bank (and the UnsupervisedHook)."""
    return any(_loss_class(name).needs_memory for name in cfg.MODEL.LOSSES.NAME)


def camera_losses(cfg: CfgNode) -> list[str]:
    """Names in ``MODEL.LOSSES.NAME`` whose losses compare cameras, and need several."""
    return [name for name in cfg.MODEL.LOSSES.NAME if _loss_class(name).needs_cameras]


def build_teacher(cfg: CfgNode, network: nn.Module) -> Teacher | None:
    """The teacher of a network, None if no loss of ``MODEL.LOSSES.NAME`` needs one."""
    if not any(_loss_class(name).needs_teacher for name in cfg.MODEL.LOSSES.NAME):
        return None
    return Teacher(network, momentum=cfg.MODEL.LOSSES.ICE.MOMENTUM)
