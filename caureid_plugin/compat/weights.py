"""Repairs so that the weights that are loaded are those that were meant."""

from __future__ import annotations

import errno
import functools
import math
import os
import re
import sys
import types
import urllib.parse
from collections.abc import Callable, Iterable
from pathlib import Path

import fastreid.modeling.backbones.build as _backbones_build
import fastreid.utils.checkpoint as _checkpoint
import numpy as np
import torch
from fastreid.config import CfgNode

from ..common.errors import UserError
from ..common.safe_load import CodeInFile, DamagedFile
from ..common.weights import (
    check_content,
    find_weights,
    load_matching,
    read_weights,
    strip,
    unwrap,
)
from .importing import logger
from .repair import Patches, repair
from .tag import remedy_for, tagged, unreadable


@repair(
    upstream="utils/checkpoint.py:225 (Checkpointer._load_model)",
    symptom="MODEL.WEIGHTS of nothing but weights (a state_dict(), as they are often published) is "
    "`KeyError: 'model'`",
    versions="all",
)
def _plain_weights(patch: Patches) -> None:
    @patch.wrap(_checkpoint.Checkpointer, "_load_file")
    def load_file_(load_file, self, f):
        content = load_file(self, f)
        tensors, under = find_weights(content)
        if under not in ((), ("model",)) and not _is_resumed(self, f):
            content = {"model": tensors}
        if isinstance(content, dict) and isinstance(content.get("model"), dict):
            for name, value in content["model"].items():
                if not isinstance(name, str) or not isinstance(value, (torch.Tensor, np.ndarray)):
                    raise UserError(
                        f"{f} is no checkpoint: under the key 'model' it must have tensors by "
                        f"their names, and {str(name)[:80]!r} ({type(name).__name__}) is a "
                        f"{type(value).__name__}. {remedy_for(self, f)}")
            return without_prefix(self, f, content, under)
        is_weights = isinstance(content, dict) and content and all(
            isinstance(name, str) and isinstance(value, torch.Tensor)
            for name, value in content.items())
        if is_weights and not _is_resumed(self, f):
            return without_prefix(self, f, {"model": content}, ())
        found = sorted(map(str, content))[:5] if isinstance(content, dict) else type(content)
        raise UserError(
            f"{f} is no checkpoint: it has no weights under the key 'model' (found: {found}). "
            "A run goes on from its own checkpoints only; MODEL.WEIGHTS may also be the file of "
            "torch.save(model.state_dict(), ...).")

    def without_prefix(self, f, content, under):
        _refuse_a_part(self, f, content)
        weights, prefix = strip(content["model"], self.model.state_dict())
        if prefix and _is_resumed(self, f):
            return content
        if prefix or under not in ((), ("model",)):
            logger.info("%s: the weights%s are taken%s.", f,
                        f" under {' > '.join(map(repr, under))}" if under else "",
                        f", without the prefix {prefix!r}" if prefix else "")
        return {**content, "model": weights}


def _is_resumed(checkpointer, path: str) -> bool:
    return (tagged(checkpointer) == os.path.basename(path)
            and os.path.samefile(os.path.dirname(path) or ".", checkpointer.save_dir))


def _refuse_a_part(checkpointer, path: str, content: dict) -> None:
    # its run_state may be missing: FastReID without the plugin saves none
    missing = [part for part in ("optimizer", "lr_sched", "warmup_sched", "memory_bank")
               if part in checkpointer.checkpointables and part not in content]
    if "optimizer" in checkpointer.checkpointables and "epoch" not in content:
        missing.append("epoch")
    if missing and _is_resumed(checkpointer, path):
        raise UserError(f"{path} has no {', '.join(missing)}: a run goes on from a whole "
                        f"checkpoint of its own. {remedy_for(checkpointer, path)}")


@repair(
    upstream="modeling/backbones/*.py (torch.load(pretrain_path) and downloads)",
    symptom="before torch 2.6 MODEL.BACKBONE.PRETRAIN_PATH runs the code that it holds; a damaged "
    "one, and a download that fails, is an error that names neither file nor key",
    versions="all",
)
def _safe_pretraining(patch: Patches) -> None:
    hub = _module_like(torch.hub, load_state_dict_from_url=_download_pretrained)
    repaired = _module_like(torch, load=_load_pretrained, hub=hub)
    for name, module in list(sys.modules.items()):
        if name.startswith("fastreid.modeling.backbones."):
            if getattr(module, "torch", None) is torch:
                patch.set(module, "torch", repaired)
            if hasattr(module, "load_state_dict_from_url"):
                patch.set(module, "load_state_dict_from_url", _download_pretrained)
            if hasattr(module, "init_pretrained_weights"):
                patch.wrap(module, "init_pretrained_weights")(_say_what_to_download)


def _module_like(module: types.ModuleType, **changes: object) -> types.ModuleType:
    """A module with some names of its own and all others looked up in another."""
    copy = types.ModuleType(module.__name__, module.__doc__)
    copy.__getattr__ = functools.partial(getattr, module)
    vars(copy).update(changes)
    return copy


def _load_pretrained(path: str | os.PathLike[str], map_location: object = None) -> object:
    """Reads a backbone's weights, always onto the CPU: they are copied into the network anyway."""
    del map_location  # an argument of the toolbox's calls
    if not os.path.isfile(path):  # reading a FIFO would wait for ever
        message = "There are no such weights; check MODEL.BACKBONE.PRETRAIN_PATH"
        raise FileNotFoundError(errno.ENOENT, message, path)
    try:
        return read_weights(path)
    except OSError as error:
        raise unreadable(error, path, "Check MODEL.BACKBONE.PRETRAIN_PATH.") from error
    except (DamagedFile, CodeInFile) as error:
        raise type(error)(
            f"{error} Check MODEL.BACKBONE.PRETRAIN_PATH; where that is empty, the toolbox has "
            "downloaded the file itself, and does so again once it is removed.") from error


def _download_pretrained(
        url: str, model_dir: str | None = None, map_location: object = None, progress: bool = True,
        check_hash: bool = False, file_name: str | None = None) -> object:
    """``torch.hub.load_state_dict_from_url``, which has no weights_only in every torch."""
    del map_location  # as there
    folder = Path(model_dir or Path(torch.hub.get_dir(), "checkpoints"))
    path = folder / (file_name or Path(urllib.parse.urlparse(url).path).name)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        digest = re.search(r"-([a-f0-9]+)\.", path.name) if check_hash else None
        try:
            torch.hub.download_url_to_file(url, str(path), digest and digest[1], progress=progress)
        except OSError as error:  # urllib's errors among them
            raise _not_downloaded(error) from error
    return _load_pretrained(path)


def _say_what_to_download(original: Callable, *args, **kwargs):
    """``init_pretrained_weights``, which fetches by gdown where the file is not there."""
    try:
        return original(*args, **kwargs)
    except FileNotFoundError:  # of _load_pretrained
        raise
    except (OSError, ImportError) as error:  # errors of requests among them; no gdown
        raise _not_downloaded(error) from error
    except Exception as error:  # of gdown, which need not be installed and cannot be named
        if type(error).__module__.partition(".")[0] != "gdown":
            raise
        raise _not_downloaded(error) from error


def _not_downloaded(error: Exception) -> FileNotFoundError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return FileNotFoundError(
        "MODEL.BACKBONE.PRETRAIN is True without a MODEL.BACKBONE.PRETRAIN_PATH, and the weights "
        f"cannot be downloaded ({type(error).__name__}: {first}). Set MODEL.BACKBONE.PRETRAIN_PATH "
        "to a file of weights, or PRETRAIN to False to begin with random ones.")


@repair(
    upstream="modeling/backbones/*.py (model.load_state_dict(state_dict, strict=False))",
    symptom="MODEL.BACKBONE.PRETRAIN_PATH with names that begin with module. or backbone., in a "
    "wrapper, or of another network loads nothing, and training begins with random weights",
    versions="all",
)
def _foreign_pretraining(patch: Patches) -> None:
    @patch.wrap(_backbones_build, "build_backbone")
    def build_backbone(original, cfg):
        keys = cfg.MODEL.BACKBONE
        module = _backbones_build.BACKBONE_REGISTRY.get(keys.NAME).__module__
        if not (keys.PRETRAIN and keys.PRETRAIN_PATH
                and module.startswith("fastreid.modeling.backbones.")):
            return original(cfg)
        state = _load_pretrained(keys.PRETRAIN_PATH)
        try:
            tensors = unwrap(state, keys.PRETRAIN_PATH)
        except ValueError as error:
            raise UserError(
                f"MODEL.BACKBONE.PRETRAIN_PATH {keys.PRETRAIN_PATH}: {error}.") from error
        # the transformer's own reading resizes the position embeddings of square images; what it
        # loads stays
        places = sum(tensors["pos_embed"].shape[1:2]) - 1 if "pos_embed" in tensors else 0
        own = (module.endswith(".vision_transformer") and isinstance(state, dict)
               and places == math.isqrt(max(places, 0)) ** 2)
        backbone = original(cfg if own else _without_pretraining(cfg))
        load_matching(backbone, tensors, keys.PRETRAIN_PATH,
                      f"MODEL.BACKBONE.PRETRAIN_PATH or MODEL.BACKBONE.DEPTH ({keys.DEPTH})")
        return backbone


def _without_pretraining(cfg: CfgNode) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.PRETRAIN = False
    return cfg


@repair(
    upstream="utils/checkpoint.py:244 (load_state_dict(strict=False))",
    symptom="a checkpoint of another architecture is `loaded`: every weight is skipped with a log "
    "line and the run goes on from random weights",
    versions="all",
)
def _foreign_checkpoint(patch: Patches) -> None:
    @patch.wrap(_checkpoint.Checkpointer, "_load_model")
    def load_model_(load_model, self, checkpoint):
        expected = self.model.state_dict()
        check_content(checkpoint["model"], expected, "The checkpoint")
        incompatible = load_model(self, checkpoint)
        wrong = {name for name, *_ in incompatible.incorrect_shapes}
        wrong.update(incompatible.missing_keys, incompatible.unexpected_keys)
        _check_checkpoint(expected, wrong, strict=getattr(self, "must_match", False))
        return incompatible

    @patch.wrap(_checkpoint.Checkpointer, "resume_or_load")
    def resume_or_load_(resume_or_load, self, path, *, resume=True):
        self.must_match = resume and self.has_checkpoint()
        try:
            return resume_or_load(self, path, resume=resume)
        finally:
            self.must_match = False


def _check_checkpoint(expected: Iterable[str], wrong: set[str], strict: bool) -> None:
    """Refuses another backbone; another head too where the run is to go on or to be evaluated."""
    advice = ("Check MODEL.WEIGHTS (or the checkpoint in OUTPUT_DIR) against MODEL.BACKBONE and "
              "MODEL.HEADS.")
    backbone = [name for name in expected if name.startswith("backbone.")
                and not name.endswith("num_batches_tracked")]
    lost = [name for name in backbone if name in wrong]
    if lost:
        if len(lost) == len(backbone):
            advice += (" A file with only the weights of a backbone goes into "
                       "MODEL.BACKBONE.PRETRAIN_PATH.")
        raise UserError(
            f"The checkpoint is of another architecture: {len(lost)} of {len(backbone)} backbone "
            f"tensors are missing or of another shape (first: {lost[0]}). {advice}")
    # classifiers do not take part in the embedding, and another data set has other classes
    head = sorted(name for name in wrong if name.startswith("heads.")
                  and not name.startswith(("heads.weight", "heads.camera_")))
    if any(name.startswith("heads.attention.") for name in head):
        advice += " A network that was trained on one camera has MODEL.HEADS.CAMSEP.ATTENTION none."
    if head:
        message = (f"The checkpoint's head is another one: {len(head)} tensors are missing, left "
                   f"over or of another shape (first: {head[0]}). {advice}")
        if strict:
            raise UserError(f"The checkpoint is of another architecture. {message}")
        logger.warning("%s They keep their first values.", message)


def load_weights(model: torch.nn.Module, path: str) -> None:
    """Loads a checkpoint's weights into a model that is to be evaluated, all of them or none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds code, or is of another architecture.
    """
    checkpointer = _checkpoint.Checkpointer(model)
    checkpointer.must_match = True
    checkpointer.load(path)
