"""Backbones of timm, by name: any of its models that gives a feature map.

timm is an extra, ``pip install 'caureid-plugin[timm]'``, and is imported when such a backbone is
built.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import importlib
import logging
import math
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch
from fastreid.config import CfgNode
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from torch import nn

from ..common.errors import MissingPackage, UserError
from ..common.safe_load import CodeInFile, DamagedFile
from ..common.weights import (
    LEAST_SHARE,
    load_matching,
    read_weights,
    strip,
    two_architectures,
    unwrap,
)

logger = logging.getLogger("fastreid.caureid")

# what timm has been seen to raise for options, images and files that do not suit a model
_REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError,
             RuntimeError, TypeError, ValueError)
# arguments of timm that other keys give, or that would load weights unseen
_OTHER_KEYS = ("cache_dir", "checkpoint_path", "embed_layer", "features_only", "img_size",
               "in_chans", "num_classes", "output_stride", "pretrained", "pretrained_cfg",
               "pretrained_cfg_overlay")


class TimmBackbone(nn.Module):
    """The feature map that a timm model pools for its classifier.

    Of a transformer these are the patch tokens at their places in the image; class and register
    tokens are left out. Weights that take no part in the map, such as a layer behind the pooling,
    are frozen: DistributedDataParallel would wait for their gradients. Batch norms that timm joins
    with their activation are taken apart, so that MODEL.BN_GROUP_SIZE reaches them.

    With cameras, a vision transformer learns a vector for each of them. In training the vector of
    an image's camera is added to all of its tokens (TransReID's side information embedding, He et
    al., ICCV 2021, https://arxiv.org/abs/2102.04378). In evaluation nothing is added, whichever
    camera an image is of. That is the mean camera: the vectors' mean is subtracted from them.

    Args:
        network: a timm model without classifier; changed in place.
        size: (H, W) of the images.
        cameras: number of cameras in training; 0: without their vectors.
        camera_weight: of the vectors (lambda in TransReID).

    Attributes:
        channels: C.
        places: (h, w) of the map of such images.
        camera_embedding: (cameras, C), or None.

    Shape:
        - images: (B, 3, H, W), normalised
        - camids: (B,) integers from 0 to cameras - 1, in training with cameras
        - output: (B, C, h, w)

    Raises:
        ValueError: the model gives no map of such images; in training with cameras, the images
            come without one or with one that is not counted.

    Example:
        >>> import timm
        >>> backbone = TimmBackbone(timm.create_model("resnet18", num_classes=0), (128, 64))
        >>> backbone.channels, backbone.places
        (512, (4, 2))
    """

    def __init__(self, network: Any, size: tuple[int, int], *, cameras: int = 0,
                 camera_weight: float = 1.0) -> None:
        super().__init__()
        self.eval()
        self.camera_embedding: nn.Parameter | None = None
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
        self._camera_weight = camera_weight
        if cameras:  # drawn as TransReID does
            vectors = torch.empty(cameras, self.channels)
            self.camera_embedding = nn.Parameter(nn.init.trunc_normal_(vectors, std=0.02))

    def forward(self, images: torch.Tensor, camids: torch.Tensor | None = None) -> torch.Tensor:
        if self.camera_embedding is None or not self.training:
            return self._map(images)
        centred = self.camera_embedding - self.camera_embedding.mean(dim=0)
        added = self._camera_weight * centred[_known_cameras(camids, len(centred))][:, None]
        # the tokens are then patches with positions, and the class token
        with self.network.pos_drop.register_forward_pre_hook(
                lambda module, tokens: (tokens[0] + added,)):
            return self._map(images)

    def _map(self, images: torch.Tensor) -> torch.Tensor:
        if self._is_map:
            return self.network.forward_features(images)
        return self.network.forward_intermediates(
            images, indices=1, norm=self._norm, output_fmt="NCHW", intermediates_only=True)[-1]


def _known_cameras(camids: Any, number: int) -> torch.Tensor:
    """The cameras of a batch; refuses what are none of ``number``."""
    if not isinstance(camids, torch.Tensor) or camids.is_floating_point() or camids.is_complex():
        found = camids.dtype if isinstance(camids, torch.Tensor) else type(camids).__name__
        raise UserError(
            "MODEL.BACKBONE.TIMM.CAMERA_EMBEDDING needs the camera of each training image, an "
            f"integer, and got {found}: set MODEL.META_ARCHITECTURE CAUReID, which hands the "
            "batch's 'camids' on, and take a dataset with cameras, or set CAMERA_EMBEDDING False.")
    if camids.numel() and not 0 <= int(camids.min()) <= int(camids.max()) < number:
        raise UserError(
            f"The batch has cameras from {int(camids.min())} to {int(camids.max())}, and "
            "MODEL.BACKBONE.TIMM.CAMERA_EMBEDDING has a vector for 0 to "
            f"{number - 1}: set MODEL.HEADS.CAMSEP.NUM_CAMERAS to their number.")
    return camids.long()


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
    - TIMM.OPTIONS: of the model, in place of those that its name stands for.
    - TIMM.STRIDE: of a vision transformer's patches. Below their side P they overlap (TransReID,
      section 3.1) and the map has ((H - P) // STRIDE + 1, (W - P) // STRIDE + 1) places. The
      positions of weights are resampled to it.
    - TIMM.CAMERA_EMBEDDING, SIE_COE: a vision transformer's vectors of the cameras, as many as
      MODEL.HEADS.CAMSEP.NUM_CAMERAS, and their weight; see :class:`TimmBackbone`.
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
            channels, stride or sizes; IBN, SE, non-local blocks or another norm are asked for;
            overlapping patches or vectors of cameras of what is no vision transformer; a file of
            weights that belongs to another network or is damaged.
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
    options: dict[str, Any] = {"num_classes": 0, **_options(backbone.TIMM.OPTIONS)}
    if known.fixed_input_size:
        options["img_size"] = tuple(cfg.INPUT.SIZE_TRAIN)
    # a model with patches of 16 has that stride without being asked
    elif backbone.LAST_STRIDE == 1:
        options["output_stride"] = 16
    network = _create(timm, cfg, options)
    for key in ("STRIDE", "CAMERA_EMBEDDING"):
        if backbone.TIMM[key]:
            _check_transformer(network, f"MODEL.BACKBONE.TIMM.{key}", backbone.TIMM[key], name)
    if backbone.TIMM.STRIDE:
        _check_stride(backbone.TIMM.STRIDE, network, name)
        options["embed_layer"] = functools.partial(_overlapping, backbone.TIMM.STRIDE)
        network = _create(timm, cfg, options)
    found = _checked(network, cfg)  # before weights are fetched
    if not backbone.PRETRAIN:
        return found
    if backbone.PRETRAIN_PATH:
        network = timm.create_model(name, **options)
        _load(network, backbone.PRETRAIN_PATH, f"MODEL.BACKBONE.TIMM.NAME {name!r}",
              tuple(cfg.INPUT.SIZE_TRAIN))
    else:
        network = _pretrained(timm, known, name, options, backbone.TIMM.OPTIONS)
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


def _options(text: str) -> dict[str, Any]:
    """The arguments in MODEL.BACKBONE.TIMM.OPTIONS: {"depth": 4} of "depth=4"."""
    key, found = f"MODEL.BACKBONE.TIMM.OPTIONS {text!r}", {}
    for part in text.split():
        name, sign, value = part.partition("=")
        if not sign or not name.isidentifier():
            raise UserError(f"{key}: {part!r} is no option of the form name=value. Several are "
                            "separated by blanks, as in \"patch_size=8 depth=4\".")
        if name in _OTHER_KEYS:
            raise UserError(f"{key}: {name} is not given here, but by INPUT.SIZE_TRAIN and the "
                            "other keys of MODEL.BACKBONE. Take it out.")
        try:
            found[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            found[name] = value
    return found


def _create(timm: Any, cfg: CfgNode, options: Mapping[str, Any]) -> Any:
    backbone = cfg.MODEL.BACKBONE
    try:
        return timm.create_model(backbone.TIMM.NAME, **options)
    except _REFUSALS as error:
        asked = (f" with MODEL.BACKBONE.TIMM.OPTIONS {backbone.TIMM.OPTIONS!r}"
                 if backbone.TIMM.OPTIONS else "")
        raise UserError(
            f"MODEL.BACKBONE.TIMM.NAME {backbone.TIMM.NAME!r} cannot be built{asked} for "
            f"INPUT.SIZE_TRAIN {list(cfg.INPUT.SIZE_TRAIN)} and MODEL.BACKBONE.LAST_STRIDE "
            f"{backbone.LAST_STRIDE} (1 asks for stride 16): {_first_line(error)}.") from error


def _check_transformer(network: Any, key: str, value: Any, name: str) -> None:
    kind = importlib.import_module("timm.models.vision_transformer").VisionTransformer
    patches = importlib.import_module("timm.layers").PatchEmbed
    if (not isinstance(network, kind) or type(network.patch_embed) is not patches
            or network.pos_embed is None):
        raise UserError(
            f"{key} {value} is for a vision transformer with plain patches and learnt positions, "
            f"and MODEL.BACKBONE.TIMM.NAME {name!r} is none: set {key} {type(value)()}, or "
            "TIMM.NAME to one, such as vit_small_patch16_224.")


# ------------------------------------------------------------------------ overlapping patches ----


def _check_stride(stride: int, network: Any, name: str) -> None:
    side = min(network.patch_embed.patch_size)
    if not 1 <= stride <= side:
        raise UserError(
            f"MODEL.BACKBONE.TIMM.STRIDE {stride} must be from 1 to {side}, the side of the "
            f"patches of MODEL.BACKBONE.TIMM.NAME {name!r}: no patch would see the pixels between "
            "them. 0 is the side.")


def _overlapping(stride: int, **options: Any) -> Any:
    """timm's patches with a stride of their own; it takes the place of the class PatchEmbed."""
    patches: Any = importlib.import_module("timm.layers").PatchEmbed(**options)
    patches.proj.stride = stride, stride
    # whoever resamples positions to the map, or makes a map of the tokens, asks for these
    patches.dynamic_feat_size = functools.partial(_places, patches.patch_size, stride)
    patches.grid_size = patches.dynamic_feat_size(patches.img_size)
    patches.num_patches = math.prod(patches.grid_size)
    return patches


def _places(side: tuple[int, int], stride: int, size: tuple[int, int]) -> tuple[int, ...]:
    """(h, w), how many patches of this side and stride an image of a size (H, W) has."""
    return tuple((pixels - patch) // stride + 1
                 for pixels, patch in zip(size, side, strict=True))


# ----------------------------------------------------------------------------- the backbone ----


def _checked(network: Any, cfg: CfgNode) -> TimmBackbone:
    """The model as a backbone, which has the channels and sizes of the config."""
    keys = cfg.MODEL.BACKBONE
    sizes = [tuple(cfg.INPUT.SIZE_TRAIN), tuple(cfg.INPUT.SIZE_TEST)]
    key = f"MODEL.BACKBONE.TIMM.NAME {keys.TIMM.NAME!r}"
    cameras = _cameras(cfg)
    try:
        backbone = TimmBackbone(network, sizes[0], cameras=cameras, camera_weight=keys.SIE_COE)
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


def _cameras(cfg: CfgNode) -> int:
    """How many cameras have a vector."""
    if not cfg.MODEL.BACKBONE.TIMM.CAMERA_EMBEDDING:
        return 0
    number: int = cfg.MODEL.HEADS.CAMSEP.NUM_CAMERAS
    if number < 2:
        raise UserError(
            "MODEL.BACKBONE.TIMM.CAMERA_EMBEDDING needs MODEL.HEADS.CAMSEP.NUM_CAMERAS, the number "
            f"of cameras in the training images, at least 2; it is {number}. With a single camera "
            "set CAMERA_EMBEDDING False.")
    return number


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


def _pretrained(timm: Any, known: Any, name: str, options: dict[str, Any], asked: str) -> Any:
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
        if asked and isinstance(error, RuntimeError):  # of load_state_dict
            raise UserError(
                f"MODEL.BACKBONE.TIMM.OPTIONS {asked!r} makes a network that timm's weights of "
                f"{key} do not fit: set OPTIONS to what leaves its layers as they are, or "
                "MODEL.BACKBONE.PRETRAIN False to begin with random weights.") from error
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


def _load(network: Any, path: str, model: str, size: tuple[int, int]) -> None:
    """Loads a file of weights: of timm's hub, or of ``torch.save``."""
    key = "MODEL.BACKBONE.PRETRAIN_PATH"
    if not os.path.isfile(path):  # reading a FIFO would wait for ever
        raise FileNotFoundError(f"{path} is no file of weights of {model}. Check {key}.")
    # timm's own conversion of weights of other authors and sizes, of the modules that have one
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    state: Any = {}
    try:
        state = unwrap(read_weights(path), path)
        state = _with_own_positions(network, _with_own_names(network, state), size)
        state = state if convert is None else convert(state, network)
    except (DamagedFile, CodeInFile) as error:
        raise type(error)(f"{error} Check {key}, the weights of {model}.") from error
    except _REFUSALS as error:
        why = two_architectures(state, network.state_dict()) or _first_line(error)
        raise UserError(f"{key} {path} cannot be read as weights of {model}: {why}.") from error
    load_matching(network, state, path, f"{key} or {model}")


def _with_own_names(network: nn.Module, state: Mapping[str, torch.Tensor]
                    ) -> dict[str, torch.Tensor]:
    """Weights without the prefix before their names, by which timm's conversion knows them."""
    own = network.state_dict().keys()
    found, _ = strip(state, own)
    if len(found.keys() & own) >= LEAST_SHARE * len(own):
        return found
    return {name.removeprefix("module."): value for name, value in state.items()}


def _with_own_positions(network: Any, state: dict[str, torch.Tensor], size: tuple[int, int]
                        ) -> dict[str, torch.Tensor]:
    """Weights of images as high and wide as ``size`` with positions resampled to the network's map.

    timm does so for weights of square images, and takes all others for square, too.
    """
    positions, own = state.get("pos_embed"), getattr(network, "pos_embed", None)
    if own is None or positions is None or positions.ndim != 3:
        return state
    prefix = 0 if network.no_embed_class else network.num_prefix_tokens
    patches = positions.shape[1] - prefix
    if positions.shape == own.shape or math.isqrt(max(patches, 0)) ** 2 == patches:
        return state
    rows = math.isqrt(patches * size[0] // size[1])
    columns = patches // max(rows, 1)
    if rows * columns != patches or rows * size[1] != columns * size[0]:
        raise UserError(f"its positions are of {patches} patches, which make no map of the sides "
                        f"of INPUT.SIZE_TRAIN {list(size)} and no square")
    resample = importlib.import_module("timm.layers").resample_abs_pos_embed
    return {**state, "pos_embed": resample(positions, list(network.patch_embed.grid_size),
                                           [rows, columns], prefix)}
