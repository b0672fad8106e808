"""What a run starts with: its config, fitted to the data, and its network."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from fastreid.config import CfgNode, get_cfg
from fastreid.modeling import build_model
from fastreid.utils.env import seed_all_rng
from torch import nn

from ..common.errors import UserError
from ..compat import load_weights, process_seed
from ..config import add_caureid_config
from ..config_files import get_config_file
from ..data import CameraFolder, build_dataset

logger = logging.getLogger("fastreid.caureid")

OWN_DATA = CameraFolder.__name__  # in DATASETS
CAMERA_LOSSES = ("CameraSeparationLoss", "CACCLoss", "CAPLoss", "ICELoss")
# is told the level of logging and the text of each thing that is decided
Notify = Callable[[int, str], None]


def load_config(config_file: str, opts: Sequence[Any] = (), notify: Notify = logger.log, *,
                training: bool = True) -> CfgNode:
    """The config of a file and of keys that follow it, fitted to the data, not frozen.

    Args:
        config_file: a path, or the name of a shipped config; "" for the toolbox's defaults.
        opts: keys and values in turn, as on the command line.
        notify, training: see :func:`fit_to_data`.

    Raises:
        FileNotFoundError: neither a file nor a shipped config (lists those).
        KeyError, ValueError: a key that does not exist, a value it does not take; what
            :func:`fit_to_data` raises.
    """
    cfg = get_cfg()
    add_caureid_config(cfg)
    if config_file:
        is_file = os.path.isfile(config_file)
        cfg.merge_from_file(config_file if is_file else get_config_file(config_file))
    cfg.merge_from_list(list(opts))
    return fit_to_data(cfg, notify, training=training)


def fit_to_data(cfg: CfgNode, notify: Notify = logger.log, *, training: bool = True) -> CfgNode:
    """A copy of ``cfg`` in which what it leaves to the data is decided.

    - MODEL.HEADS.CAMSEP.NUM_CAMERAS -1 becomes the number of cameras in the training images. If
      there is a single one, everything that tells cameras apart is switched off: the camera
      losses, the attention, camera-aware neighbours.
    - CameraFolder leaves DATASETS.TESTS where it has no labelled images, and is put there where
      it is trained on, has some, and nothing else is evaluated: labels may come after training.

    The datasets are listed only for the first of these.

    Args:
        cfg: frozen or not, and so is the copy.
        notify: called with the level of logging and a text for each decision; by default these
            are logged.
        training: False where a network is evaluated and nothing else. NUM_CAMERAS is left as it is
            then, so that no training image need be there; see :func:`to_evaluate`.

    Raises:
        ValueError: with a single camera no loss is left; what the datasets raise.
        FileNotFoundError: what the datasets raise.
    """
    fitted = cfg.clone()
    fitted.defrost()
    if training and fitted.MODEL.HEADS.CAMSEP.NUM_CAMERAS == -1:
        _fit_cameras(fitted, notify)
    query, gallery = cfg.CAMERA_FOLDER.QUERY, cfg.CAMERA_FOLDER.GALLERY
    if OWN_DATA in fitted.DATASETS.TESTS and not (query or gallery):
        _drop_test(fitted, notify)
    elif OWN_DATA in fitted.DATASETS.NAMES and not fitted.DATASETS.TESTS and query and gallery:
        fitted.DATASETS.TESTS = (OWN_DATA,)
        notify(logging.INFO, "CAMERA_FOLDER.QUERY and GALLERY are set and DATASETS.TESTS is empty: "
                             f"it becomes {fitted.DATASETS.TESTS}.")
    if cfg.is_frozen():
        fitted.freeze()
    return fitted


def _fit_cameras(cfg: CfgNode, notify: Notify) -> None:
    # listed without a word: the loader of the training set says what there is to say
    cameras = {camera for name in cfg.DATASETS.NAMES
               for _, _, camera, *_ in build_dataset(cfg, name).train}
    if len(cameras) > 1:
        cfg.MODEL.HEADS.CAMSEP.NUM_CAMERAS = len(cameras)
        notify(logging.INFO, f"MODEL.HEADS.CAMSEP.NUM_CAMERAS -1 becomes {len(cameras)}, the "
                             "number of cameras in the training images.")
        return
    names = tuple(name for name in cfg.MODEL.LOSSES.NAME if name not in CAMERA_LOSSES)
    if not names:
        raise UserError(
            "All training images come from one camera, and without the losses that need several, "
            f"{' and '.join(CAMERA_LOSSES)}, none is left in MODEL.LOSSES.NAME "
            f"{list(cfg.MODEL.LOSSES.NAME)}: add InfoNCELoss.")
    off = {"MODEL.LOSSES.NAME": names, "MODEL.HEADS.CAMSEP.ATTENTION": "none",
           "MODEL.HEADS.CAMSEP.NUM_CAMERAS": 0, "CAUREID.CLUSTER.CAMERA_AWARE": False,
           "MODEL.BACKBONE.TIMM.CAMERA_EMBEDDING": False}
    changed = {key: value for key, value in off.items() if attrgetter(key)(cfg) != value}
    cfg.merge_from_list([part for item in changed.items() for part in item])
    notify(logging.WARNING,
           f"All training images come from one camera (DATASETS.NAMES {list(cfg.DATASETS.NAMES)})."
           " What tells cameras apart is switched off: "
           f"{', '.join(f'{key} {value}' for key, value in changed.items())}. Training goes on "
           "without it. If there are several cameras, look at how they are read"
           + (" (CAMERA_FOLDER.CAMERA)." if OWN_DATA in cfg.DATASETS.NAMES else "."))


def _drop_test(cfg: CfgNode, notify: Notify) -> None:
    cfg.DATASETS.TESTS = tuple(name for name in cfg.DATASETS.TESTS if name != OWN_DATA)
    text = (f"CAMERA_FOLDER.QUERY and GALLERY are empty: {OWN_DATA} leaves DATASETS.TESTS, nothing "
            "is evaluated on it.")
    if not cfg.DATASETS.TESTS:
        cfg.TEST.EVAL_AT_START = False
        text += (" Training logs label-free indicators of each clustering instead (labels/... in "
                 "metrics.json) and keeps its last checkpoint, model_final.pth.")
    notify(logging.INFO, text)


def to_evaluate(cfg: CfgNode) -> CfgNode:
    """A copy of ``cfg`` whose network is evaluated and not trained.

    It begins with no pretrained weights. Where NUM_CAMERAS is left to the data (-1) it has no
    camera classifier, which takes no part in the embedding, and CAMERA_FOLDER.CAMERA none has
    switched off the attention, as :func:`fit_to_data` does in training.
    """
    found = cfg.clone()
    found.defrost()
    found.MODEL.BACKBONE.PRETRAIN = False
    if cfg.MODEL.HEADS.CAMSEP.NUM_CAMERAS == -1:
        found.MODEL.HEADS.CAMSEP.NUM_CAMERAS = 0
        kept = tuple(name for name in cfg.MODEL.LOSSES.NAME if name != "CameraSeparationLoss")
        found.MODEL.LOSSES.NAME = kept or ("InfoNCELoss",)  # a network names one, used or not
        if tuple(cfg.DATASETS.NAMES) == (OWN_DATA,) and cfg.CAMERA_FOLDER.CAMERA == "none":
            found.MODEL.HEADS.CAMSEP.ATTENTION = "none"
    return found


def check_identities(cfg: CfgNode, use: str) -> None:
    """Refuses a use of identities where the training images have none.

    Args:
        cfg: DATASETS.NAMES.
        use: what needs them, at the start of the message.

    Raises:
        ValueError: CameraFolder is among the training sets.
    """
    if OWN_DATA in cfg.DATASETS.NAMES:
        raise UserError(
            f"{use} needs the identities of the training images, and images of {OWN_DATA} "
            f"(DATASETS.NAMES {list(cfg.DATASETS.NAMES)}) have none.")


def build_network(cfg: CfgNode, weights: str = "") -> nn.Module:
    """The network that training starts with, or the same with other weights; in training mode.

    The random generators are seeded as training seeds them: weights that are not pretrained are
    as in a run with this SEED.

    Args:
        cfg: fitted to the data.
        weights: a checkpoint; "": random or pretrained weights, as the config says.

    Raises:
        FileNotFoundError, ValueError: weights that are missing, damaged or of another network.
    """
    if weights:  # which replace those that would be read, or downloaded, first
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.BACKBONE.PRETRAIN = False
    seed_all_rng(process_seed(max(cfg.SEED, 0), 0))
    model: nn.Module = build_model(cfg)
    if weights:
        load_weights(model, weights)
    return model
