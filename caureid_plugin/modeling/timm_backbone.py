"""Backbones of timm, by name: any of its models that gives a feature map.

timm is an extra, ``pip install 'caureid-plugin[timm]'``, and is imported when such a backbone is
built.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import logging
import os
import sys
from typing import Any

import torch
from fastreid.config import CfgNode
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from torch import nn

from ..common.errors import MissingPackage, UserError
from ..common.safe_load import CodeInFile, DamagedFile, load_tensors
from ..common.weights import load_matching, unwrap

logger = logging.getLogger("fastreid.caureid")

# what timm has been seen to raise for options, images and files that do not suit a model
_REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError,
             RuntimeError, TypeError, ValueError)


class TimmBackbone(nn.Module):
    """The feature map that a timm model pools for its classifier.

    Of a transformer these are the patch tokens at their places in the image; class and register
    tokens are left out. Weights that take no part in the map, such as a layer behind the pooling,
    are frozen: DistributedDataParallel would wait for their gradients. Batch norms that timm joins
    with their activation are taken apart, so that MODEL.BN_GROUP_SIZE reaches them.

    Args:
        network: a timm model without classifier; changed in place.
        size: (H, W) of the images.

    Attributes:
        channels: C.
        places: (h, w) of the map of such images.

    Shape:
        - input: (B, 3, H, W), normalised
        - output: (B, C, h, w)

    Raises:
        ValueError: the model gives no map of such images.

    Example:
        >>> import timm
        >>> backbone = TimmBackbone(timm.create_model("resnet18", num_classes=0), (128, 64))
        >>> backbone.channels, backbone.places
        (512, (4, 2))
    """

    def __init__(self, network: Any, size: tuple[int, int]) -> None:
        super().__init__()
        _split_norms(network)
        self.network = network.eval()
        images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
        found = network.forward_features(images)
        self._is_map = (isinstance(found, torch.Tensor) and found.ndim == 4
                        and getattr(network, "output_fmt", "NCHW") == "NCHW")
        if not self._is_map and not hasattr(network, "forward_intermediates"):
            raise UserError("its features are no map and no tokens of patches")
        self._norm = True
        try:
            found = self(images)
        except AssertionError:  # Hiera's norm lies behind the pooling, and timm refuses to ask
            self._norm = False
            found = self(images)
        if not isinstance(found, torch.Tensor) or found.ndim != 4:
            raise UserError("its features are no map")
        _freeze_unused(network, found)
        self.train()
        self.channels, *places = found.shape[1:]
        self.places: tuple[int, ...] = tuple(places)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self._is_map:
            return self.network.forward_features(images)
        return self.network.forward_intermediates(
            images, indices=1, norm=self._norm, output_fmt="NCHW", intermediates_only=True)[-1]


def _split_norms(module: nn.Module) -> None:
    """Replaces timm's batch norms with activation by a plain batch norm and what follows it."""
    joined: Any = importlib.import_module("timm.layers").BatchNormAct2d
    children: list[tuple[str, Any]] = list(module.named_children())
    for name, child in children:
        if type(child) is joined:
            norm = nn.BatchNorm2d(child.num_features, child.eps, child.momentum, child.affine,
                                  child.track_running_stats)
            norm.load_state_dict(child.state_dict())
            setattr(module, name, nn.Sequential(norm, child.drop, child.act))
        else:
            _split_norms(child)


def _freeze_unused(network: nn.Module, feature_map: torch.Tensor) -> None:
    parameters = [p for p in network.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(feature_map.sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


# ------------------------------------------------------------------------------ from a config ----


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode) -> TimmBackbone:
    """The timm model of MODEL.BACKBONE.TIMM.NAME as a backbone.

    Reads of MODEL.BACKBONE:

    - TIMM.NAME: the model, with or without a tag that names its weights.
    - FEAT_DIM: the channels of its map; an error names the right number.
    - LAST_STRIDE: 2 leaves the model as it is, mostly of stride 32; 1 asks for stride 16, by
      dilation of the last stage. A transformer has the stride of its patches.
    - PRETRAIN: begin with trained weights, from PRETRAIN_PATH or, where that is empty, as timm
      downloads them. A warning says where they were trained with another MODEL.PIXEL_MEAN or
      PIXEL_STD.

    A model made for one size of images is built for INPUT.SIZE_TRAIN.

    Shape:
        - input: (B, 3, H, W), normalised
        - output: (B, FEAT_DIM, h, w); see :class:`TimmBackbone`

    Raises:
        ImportError: timm is not installed.
        ValueError: there is no such model (names similar ones); it gives no map, or none of these
            channels, stride or sizes; IBN, SE, non-local blocks or another norm are asked for; a
            file of weights that belongs to another network or is damaged.
        FileNotFoundError: there is no such file of weights, or no way to download them (says where
            they are).
    """
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise MissingPackage(f"MODEL.BACKBONE.NAME build_timm_backbone needs timm, which cannot be "
                             f"imported ({error}): pip install 'caureid-plugin[timm]'.") from error
    backbone, name = cfg.MODEL.BACKBONE, cfg.MODEL.BACKBONE.TIMM.NAME
    _check_keys(backbone)
    known = _known(timm, name)
    options: dict[str, Any] = {"num_classes": 0}
    if known.fixed_input_size:
        options["img_size"] = tuple(cfg.INPUT.SIZE_TRAIN)
    # a model with patches of 16 has that stride without being asked
    elif backbone.LAST_STRIDE == 1:
        options["output_stride"] = 16
    try:
        network = timm.create_model(name, **options)
    except _REFUSALS as error:
        raise UserError(
            f"MODEL.BACKBONE.TIMM.NAME {name!r} cannot be built for INPUT.SIZE_TRAIN "
            f"{list(cfg.INPUT.SIZE_TRAIN)} and MODEL.BACKBONE.LAST_STRIDE {backbone.LAST_STRIDE} "
            f"(1 asks for stride 16): {_first_line(error)}.") from error
    found = _checked(network, cfg)  # before weights are fetched
    if not backbone.PRETRAIN:
        return found
    if backbone.PRETRAIN_PATH:
        network = timm.create_model(name, **options)
        _load(network, backbone.PRETRAIN_PATH, f"MODEL.BACKBONE.TIMM.NAME {name!r}")
    else:
        network = _pretrained(timm, known, name, options)
    _compare_pixels(known, cfg)
    return _checked(network, cfg)


def _check_keys(backbone: CfgNode) -> None:
    if backbone.LAST_STRIDE not in (1, 2):
        raise UserError(f"MODEL.BACKBONE.LAST_STRIDE {backbone.LAST_STRIDE} must be 1 or 2.")
    if backbone.NORM != "BN":
        raise UserError(f"MODEL.BACKBONE.NORM {backbone.NORM}: a timm model brings its own norms, "
                        "set it to BN.")
    for key in ("WITH_IBN", "WITH_SE", "WITH_NL"):
        if backbone[key]:
            raise UserError(f"MODEL.BACKBONE.{key} True: the parts of a timm model are chosen by "
                            f"MODEL.BACKBONE.TIMM.NAME, set {key} False.")


def _known(timm: Any, name: str) -> Any:
    """What timm notes of a model's weights."""
    key = f"MODEL.BACKBONE.TIMM.NAME {name!r}"
    if not timm.is_model(name):
        similar = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise UserError(
            f"{key} is no model of timm {timm.__version__}. "
            + (f"Similar names: {', '.join(similar)}." if similar else
               "timm.list_models() has their names, such as resnet18 or mobilenetv2_100."))
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = timm.list_models(f"{name.partition('.')[0]}.*", include_tags=True)
        raise UserError(f"{key}: timm {timm.__version__} has no such weights ({error}). It has: "
                        f"{', '.join(tags)}.") from error


def _checked(network: Any, cfg: CfgNode) -> TimmBackbone:
    """The model as a backbone, which has the channels and sizes of the config."""
    keys = cfg.MODEL.BACKBONE
    sizes = [tuple(cfg.INPUT.SIZE_TRAIN), tuple(cfg.INPUT.SIZE_TEST)]
    key = f"MODEL.BACKBONE.TIMM.NAME {keys.TIMM.NAME!r}"
    try:
        backbone = TimmBackbone(network, sizes[0])
    except _REFUSALS as error:
        raise UserError(f"{key} gives no feature map of images of INPUT.SIZE_TRAIN "
                        f"{list(sizes[0])}: {_first_line(error)}. Set TIMM.NAME or the size to "
                        "another.") from error
    if backbone.channels != keys.FEAT_DIM:
        raise UserError(f"MODEL.BACKBONE.FEAT_DIM is {keys.FEAT_DIM}, but {key} gives "
                        f"{backbone.channels} channels: set it to {backbone.channels}.")
    if keys.LAST_STRIDE == 1 and sizes[0][0] > 32 and backbone.places[0] <= -(-sizes[0][0] // 32):
        raise UserError(f"{key} gives no map of stride 16, as MODEL.BACKBONE.LAST_STRIDE 1 asks "
                        "for: set it to 2.")
    try:
        with torch.no_grad():
            backbone.eval()(torch.zeros(1, 3, *sizes[1]))
    except _REFUSALS as error:
        raise UserError(
            f"{key} is built for images of INPUT.SIZE_TRAIN {list(sizes[0])} and takes no "
            f"others: set INPUT.SIZE_TEST {list(sizes[1])} to the same.") from error
    backbone.train()
    return backbone


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def _compare_pixels(known: Any, cfg: CfgNode) -> None:
    """Warns where the weights were trained on pixels of another mean or deviation."""
    for key, values in (("PIXEL_MEAN", known.mean), ("PIXEL_STD", known.std)):
        trained = [round(255 * value, 3) for value in values]
        given = cfg.MODEL[key]
        if any(abs(a - b) > 0.5 for a, b in zip(trained, given, strict=True)):
            logger.warning(f"MODEL.{key} is {[round(value, 3) for value in given]}, and timm's "
                           f"weights of {cfg.MODEL.BACKBONE.TIMM.NAME} were trained with "
                           f"{str(trained).replace(' ', '')}: set it to that.")


# ------------------------------------------------------------------------------------ weights ----


def _pretrained(timm: Any, known: Any, name: str, options: dict[str, Any]) -> Any:
    """The model with the weights that timm downloads, or has downloaded before."""
    key = f"MODEL.BACKBONE.TIMM.NAME {name!r}"
    if not known.has_weights:
        raise UserError(f"MODEL.BACKBONE.PRETRAIN True: timm has no weights for {key}. Set "
                        "MODEL.BACKBONE.PRETRAIN_PATH to a file of weights, "
                        "MODEL.BACKBONE.PRETRAIN False to begin with random ones, or TIMM.NAME to "
                        "another model.")
    try:
        if known.hf_hub_id:
            _ask_hub(known.hf_hub_id, known.hf_hub_filename or "model.safetensors")
        return timm.create_model(name, pretrained=True, **options)
    # the same model has been built without weights: what fails is about them, and may be of any of
    # the libraries with which timm's hub fetches them
    except Exception as error:
        place = (f"{known.hf_hub_filename or 'model.safetensors'} of the model {known.hf_hub_id} "
                 "on the Hugging Face Hub" if known.hf_hub_id else str(known.url))
        raise FileNotFoundError(
            f"The weights of {key} cannot be fetched ({type(error).__name__}: "
            f"{_first_line(error)}). They are {place}: fetch the file where there is a network "
            "and set MODEL.BACKBONE.PRETRAIN_PATH to it, or MODEL.BACKBONE.PRETRAIN False to begin "
            "with random weights.") from error


def _ask_hub(model: str, file: str) -> None:
    """Fails at once where the hub cannot be reached: timm tries for a minute and logs each try."""
    hub: Any = importlib.import_module("huggingface_hub")
    if any(hub.try_to_load_from_cache(model, name) for name in (file, "pytorch_model.bin")):
        return
    with contextlib.suppress(hub.utils.HfHubHTTPError):  # an answer: timm knows other files
        hub.get_hf_file_metadata(hub.hf_hub_url(model, file))


def _load(network: Any, path: str, model: str) -> None:
    """Loads a file of weights: of timm's hub, or of ``torch.save``."""
    key = "MODEL.BACKBONE.PRETRAIN_PATH"
    if not os.path.isfile(path):  # reading a FIFO would wait for ever
        raise FileNotFoundError(f"{path} is no file of weights of {model}. Check {key}.")
    # timm's own conversion of weights of other authors and sizes, of the modules that have one
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        if path.endswith(".safetensors"):
            state = importlib.import_module("safetensors.torch").load_file(path)
        else:
            state = unwrap(load_tensors(path), path)
        state = {name.removeprefix("module."): value for name, value in state.items()}
        state = state if convert is None else convert(state, network)
    except (DamagedFile, CodeInFile) as error:
        raise type(error)(f"{error} Check {key}, the weights of {model}.") from error
    except Exception as error:  # SafetensorError is a plain Exception
        raise UserError(f"{key} {path} cannot be read as weights of {model}: "
                        f"{_first_line(error)}.") from error
    load_matching(network, state, path, f"{key} or {model}")
