"""Repairs so that no loss that a config names is left out in silence."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import fastreid.evaluation.clas_evaluator as _clas_evaluator
import fastreid.modeling.meta_arch.build as _meta_build
import torch
from fastreid.config import CfgNode
from fastreid.modeling.heads import REID_HEADS_REGISTRY, EmbeddingHead
from fastreid.modeling.meta_arch import (
    MGN as _MGN,
)
from fastreid.modeling.meta_arch import (
    Baseline as _Baseline,
)
from fastreid.modeling.meta_arch import (
    Distiller as _Distiller,
)
from fastreid.modeling.meta_arch import (
    MoCo as _MoCo,
)

from ..common.errors import UnknownName, UserError
from .importing import logger
from .repair import Patches, repair

TOOLBOX_LOSSES = ("CrossEntropyLoss", "TripletLoss", "CircleLoss", "Cosface")
MGN_LOSSES = TOOLBOX_LOSSES[:2]  # its chain leaves the pairwise ones out
"""Names that the toolbox's meta-architectures understand in ``MODEL.LOSSES.NAME``."""
PLUGIN_LOSSES = {"CACCLoss": "loss_cacc", "CAPLoss": "loss_cap_intra",
                 "CameraSeparationLoss": "loss_camsep", "ICELoss": "loss_ice_hard",
                 "InfoNCELoss": "loss_infonce"}
"""The plugin's, and the name of a scalar that each always gives."""


@repair(
    upstream="modeling/meta_arch/baseline.py:131-180, mgn.py:291-394 (if name in loss_names), "
    "modeling/meta_arch/build.py:18-27 (build_model)",
    symptom="a mistyped name in MODEL.LOSSES.NAME trains without that loss, and so does one of "
    "the plugin's in an architecture that computes its losses in its own way",
    versions="all",
)
def _unknown_loss(patch: Patches) -> None:
    for architecture, known in ((_Baseline, TOOLBOX_LOSSES), (_MGN, MGN_LOSSES)):
        patch.set(architecture, "losses", _with_known_losses(architecture.losses, known))

    @patch.wrap(_meta_build, "build_model")
    def build_model(original, cfg):
        model = original(cfg)
        if _has_own_losses(model):
            _watch_losses(model, cfg.MODEL.LOSSES.NAME)
        return model


def _has_own_losses(model: torch.nn.Module) -> bool:
    """Whether somebody's own class computes losses: neither the toolbox's nor the plugin's."""
    if vars(model).keys() & {"losses", "forward"}:  # set on the instance
        return True
    for kind in type(model).__mro__:  # a fork of the toolbox may have more than the toolbox
        if (kind.__module__.split(".")[0] in ("caureid_plugin", "torch")
                or kind in (_Baseline, _MGN, _MoCo, _Distiller)):
            return False
        if vars(kind).keys() & {"losses", "forward"}:
            return True
    return False


def _watch_losses(model: torch.nn.Module, names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in (*TOOLBOX_LOSSES, *PLUGIN_LOSSES)]
    if unknown:
        logger.warning("MODEL.LOSSES.NAME has %s, which is neither FastReID's nor the plugin's "
                       "own: it is left to %s to compute (one of LOSS_REGISTRY by "
                       "caureid_plugin.build_losses).", unknown, type(model).__name__)
    own = [name for name in names if name in PLUGIN_LOSSES]
    if own:
        model.register_forward_hook(functools.partial(_check_losses, own))


def _check_losses(names: Sequence[str], model: torch.nn.Module, _, outputs) -> None:
    if not model.training:
        return
    found = sorted(outputs) if isinstance(outputs, dict) else []
    missing = [name for name in names if PLUGIN_LOSSES[name] not in found]
    if missing:
        given = found if isinstance(outputs, dict) else f"a {type(outputs).__name__}, no dict"
        raise UserError(
            f"{type(model).__name__} gives no {', '.join(PLUGIN_LOSSES[n] for n in missing)} in "
            f"training, for the plugin's losses {missing} of MODEL.LOSSES.NAME: it gives {given}. "
            "Take them out, set MODEL.META_ARCHITECTURE CAUReID, or call "
            "caureid_plugin.build_losses there, and give each scalar by its name.")


def _with_known_losses(original: Callable, known: Sequence[str]) -> Callable:
    @functools.wraps(original)
    def losses(self, *args, **kwargs):
        unknown = [n for n in self.loss_kwargs["loss_names"] if n not in known]
        if unknown and not _has_own_losses(self):
            raise UserError(
                f"{type(self).__name__} does not know the losses {unknown} of MODEL.LOSSES.NAME; "
                f"it knows {list(known)}. MODEL.META_ARCHITECTURE CAUReID knows the toolbox's and "
                "the plugin's.")
        return original(self, *args, **kwargs)

    return losses


class _Outputs(dict):
    """What a head gives in training; says so where an architecture asks for more."""

    def __init__(self, outputs: dict, architecture: str, head: str) -> None:
        super().__init__(outputs)
        self._names = architecture, head

    def __missing__(self, key: str) -> None:
        architecture, head = self._names
        raise UnknownName(
            f"{architecture} asks its head for {key!r}, which {head} (MODEL.HEADS.NAME) does not "
            f"give: it gives {sorted(self)}. Choose the head that is made for this "
            "MODEL.META_ARCHITECTURE, or another architecture; scores of classes need "
            "MODEL.HEADS.NUM_CLASSES, a Distiller's teacher's as well.")


def _tell_missing_outputs(architecture: str, head: torch.nn.Module, _, outputs):
    if head.training and type(outputs) is dict:
        return _Outputs(outputs, architecture, type(head).__name__)
    return None


@repair(
    upstream="modeling/meta_arch/baseline.py:112-113 (self.losses(outputs, targets))",
    symptom="an architecture of somebody's own with a head that it is not made for, such as "
    "PartialBaseline with another than DSRHead, is a bare KeyError of its first step, as is a "
    "Distiller whose teacher has no classes",
    versions="all",
)
def _missing_output(patch: Patches) -> None:
    @patch.wrap(_meta_build, "build_model")
    def build_model(original, cfg):
        model = original(cfg)
        if isinstance(getattr(model, "heads", None), torch.nn.Module):
            model.heads.register_forward_hook(
                functools.partial(_tell_missing_outputs, type(model).__name__))
        return model


@repair(
    upstream="evaluation/clas_evaluator.py:48-56 (ClasEvaluator.process)",
    symptom="a classification project with a head for re-identification has accuracy 0: the place "
    "of an embedding's largest number is taken for a class",
    versions="all",
)
def _embedding_as_scores(patch: Patches) -> None:
    @patch.wrap(_clas_evaluator.ClasEvaluator, "process")
    def process(original, self, inputs, outputs):
        heads = self.cfg.MODEL.HEADS
        if 0 < heads.NUM_CLASSES != outputs.shape[1] or _gives_embeddings(self.cfg):
            raise UserError(
                f"The network gives {outputs.shape[1]} numbers for an image, and there are "
                f"{max(heads.NUM_CLASSES, 0)} classes (MODEL.HEADS.NUM_CLASSES): MODEL.HEADS.NAME "
                f"{heads.NAME} gives embeddings, not scores of classes. Set it to ClasHead, or "
                "evaluate with ReidEvaluator.")
        return original(self, inputs, outputs)


def _gives_embeddings(cfg: CfgNode) -> bool:
    """Whether the head is known to, and is what the architecture evaluates with.

    An embedding may be as long as there are classes. Somebody's own parts are not checked.
    """
    try:
        architecture = _meta_build.META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
        forward = REID_HEADS_REGISTRY.get(cfg.MODEL.HEADS.NAME).forward
    except KeyError:
        return False
    of_architecture, of_head = (function.__module__.split(".")[0]
                                for function in (architecture.forward, forward))
    return of_architecture in ("fastreid", "caureid_plugin") and (
        forward is EmbeddingHead.forward or of_head == "caureid_plugin")
