"""A network as a file that needs neither the plugin nor the toolbox: ONNX or TorchScript.

Letters: B images, (H, W) their size, D embedding size.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import io
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ..common.errors import MissingPackage, UserError
from ..common.text import printable
from ..layers import GroupedBatchNorm2d

INPUT_NAME, OUTPUT_NAME = "images", "embeddings"
INPUTS = ("rgb255", "imagenet")
FORMAT_NAMES = ("onnx", "torchscript", "safetensors")  # the ends of their files
WEIGHTS = "model.safetensors"  # the one name that huggingface_hub looks for
OPSET = 17  # of torch 2.1 and onnxruntime 1.14 on
# of RGB in 0..1, as torchvision and the trackers that follow it have them
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# what the exporters have been seen to raise for a network that they cannot write
_REFUSALS = (AttributeError, ImportError, LookupError, NotImplementedError, RuntimeError, TypeError,
             ValueError)


class ExportError(UserError):
    """Why a network cannot be exported, or an exported file not be used, and what to do."""


def require(module: str) -> ModuleType:
    """A package of the extra "export".

    Raises:
        ImportError: says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise MissingPackage(f"{name} is not installed ({error}): pip install "
                             "'caureid-plugin[export]'.") from error


class _FromImagenet(nn.Module):
    """A network that takes images as ImageNet's mean and deviation leave them."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.network(images * self.std + self.mean)
        return found


def to_input(images: torch.Tensor, convention: str) -> torch.Tensor:
    """RGB images of 0..255, (B, 3, H, W), as a file of this convention takes them."""
    if convention == "rgb255":
        return images
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    return (images / 255 - mean) / torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)


def prepare(network: nn.Module, convention: str) -> nn.Module:
    """A copy of a network for the exporters: in evaluation mode, on the CPU, without gradients.

    Batch norm over groups becomes plain batch norm, which is the same in evaluation: the groups
    are cut by the length of the batch, which an exporter would take for a constant. The toolbox's
    mean over a map becomes torch's, the same but for rounding: its shapes follow that length,
    which OpenCV takes for one, silently.

    Args:
        network: (B, 3, H, W), RGB in 0..255, to (B, D).
        convention: of :data:`INPUTS`.
    """
    copied = _with_plain_parts(copy.deepcopy(network).cpu())
    whole = copied if convention == "rgb255" else _FromImagenet(copied)
    return whole.eval().requires_grad_(False)


def _with_plain_parts(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, GroupedBatchNorm2d):
            norm = nn.BatchNorm2d(child.num_features, child.eps, child.momentum, child.affine,
                                  child.track_running_stats)
            norm.load_state_dict(child.state_dict())
            setattr(module, name, norm)
        elif type(child).__name__ == "FastGlobalAvgPool" and not child.flatten:  # the toolbox's
            setattr(module, name, nn.AdaptiveAvgPool2d(1))
        else:
            _with_plain_parts(child)
    return module


# ---------------------------------------------------------------------------------- ONNX ----


def to_onnx(network: nn.Module, size: tuple[int, int]) -> bytes:
    """The content of an ONNX file: float32 "images" (B, 3, H, W) to "embeddings" (B, D), any B.

    Args:
        network: of :func:`prepare`.
        size: (H, W), which is fixed in the file.

    Raises:
        ExportError: torch cannot write this network; names its version and the reason.
        ImportError: onnx is not installed.
    """
    require("onnx")
    reasons = []
    for export in (_by_tracing, _by_program):
        try:
            with warnings.catch_warnings():
                # the first is deprecated since torch 2.9, and what it warns of is compared after
                warnings.simplefilter("ignore")
                return _finished(export(network, torch.rand(2, 3, *size) * 255))
        except _REFUSALS as error:
            reasons.append((str(error).strip() or type(error).__name__).splitlines()[0])
    raise ExportError(f"torch {torch.__version__} cannot write this network as ONNX: "
                      f"{'; '.join(reasons)}. Try another version of torch, or a file "
                      "that ends in .torchscript.")


def _by_tracing(network: nn.Module, images: torch.Tensor) -> bytes:
    """By the exporter that every torch from 2.1 to (at least) 2.14 has."""
    # torch < 2.5 has no other, and no argument to ask for it
    choice: dict[str, Any] = {"dynamo": False} if "dynamo" in inspect.signature(
        torch.onnx.export).parameters else {}
    file: Any = io.BytesIO()
    torch.onnx.export(network, (images,), file, input_names=[INPUT_NAME],
                      output_names=[OUTPUT_NAME], opset_version=OPSET,
                      dynamic_axes={INPUT_NAME: {0: "batch"}, OUTPUT_NAME: {0: "batch"}},
                      **choice)
    return file.getvalue()


def _by_program(network: nn.Module, images: torch.Tensor) -> bytes:
    """By the exporter that torch 2.9 prefers; needs onnxscript."""
    program = torch.onnx.export(
        network, (images,), dynamo=True, verbose=False, input_names=[INPUT_NAME],
        output_names=[OUTPUT_NAME], dynamic_shapes=({0: torch.export.Dim("batch")},))
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    return bytes(program.model_proto.SerializeToString())


def _finished(content: bytes) -> bytes:
    """The file with D, which tracing leaves open, and nothing of the machine; it is checked."""
    onnx = require("onnx")
    model = onnx.load_model_from_string(content)
    if model.functions:  # of torch's newer exporter; check_graph refuses them
        model = importlib.import_module("onnx.inliner").inline_local_functions(model)
    output, = model.graph.output
    dims = output.type.tensor_type.shape.dim
    if not dims[1].HasField("dim_value"):
        found = require("onnxruntime").InferenceSession(
            content, providers=["CPUExecutionProvider"])
        given = model.graph.input[0].type.tensor_type.shape.dim
        zeros = torch.zeros(1, 3, *(dim.dim_value for dim in given[2:])).numpy()
        dims[1].dim_value = found.run(None, {INPUT_NAME: zeros})[0].shape[1]
    _flatten(model)
    _strip(model)
    onnx.checker.check_model(model)
    checked: bytes = model.SerializeToString()
    return checked


def _flatten(model: Any) -> None:
    """Writes ``features[..., 0, 0]`` of 1 x 1 maps, traced as two Gathers, as one Flatten.

    OpenVINO 2026.4 gives the Gathers of an int8 file for any B another shape than they have.
    """
    graph, shapes = model.graph, _shapes(model)
    makers = {node.output[0]: node for node in graph.node}
    for last in graph.node:
        first = makers.get(last.input[0]) if last.op_type == "Gather" else None
        if (first is not None and first.op_type == "Gather"
                and shapes.get(first.input[0], ())[2:] == (1, 1) and _axis(first) in (2, 3)
                and len(shapes.get(last.input[0], ())) == 3 and _axis(last) == 2
                and len(shapes.get(last.output[0], ())) == 2
                and sum(first.output[0] in node.input for node in graph.node) == 1):
            last.CopyFrom(require("onnx").helper.make_node(
                "Flatten", first.input[:1], last.output, last.name, axis=1))
            graph.node.remove(first)
            return


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Of each value whose number of dimensions is known; a size that is not is 0."""
    graph = require("onnx.shape_inference").infer_shapes(model).graph
    return {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
            for value in (*graph.value_info, *graph.output)}


def _axis(gather: Any) -> int:
    """That a Gather takes from, counted from the front as PyTorch's exporters have it."""
    return next((entry.i for entry in gather.attribute if entry.name == "axis"), 0)


def _strip(message: Any) -> None:
    """Clears what exporters note of the program: paths of the machine that wrote the file."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif hasattr(value, "ListFields"):
            _strip(value)
        elif field.type == field.TYPE_MESSAGE:  # several
            for part in value:
                _strip(part)


def check_graph(content: bytes) -> None:
    """Refuses an ONNX file that needs other files, or that a few bytes can let run for ever.

    onnxruntime reads weights in other files from the current directory, and no digest of the file
    covers them. A loop in it may have 10^12 rounds; functions that call functions twice each are
    written out before the file runs. No network of ours has either.

    Raises:
        ExportError: it is no ONNX file, keeps weights in other files, has nodes with graphs in
            them (Loop, Scan, If), or functions of its own.
        ImportError: onnx is not installed, and it takes that to tell.
    """
    onnx = require("onnx")
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # of protobuf, whose errors have moved
        raise ExportError(f"The file is no ONNX: onnx {onnx.__version__} says {error}. Give one "
                          "that caureid export has written.") from error
    others = sorted({entry.value for entries in _external_data(model) for entry in entries
                     if entry.key == "location"})
    if others:
        raise ExportError(
            f"The file keeps weights in other files ({printable(', '.join(others)[:200])}), which "
            "onnxruntime would take from the current directory and no digest covers: give one that "
            "holds all of its weights, as caureid export writes it.")
    endless = sorted({node.op_type for node in model.graph.node for attribute in node.attribute
                      if attribute.HasField("g") or attribute.graphs})
    if endless or model.functions:
        found = printable(", ".join(endless)[:200]) or "functions of its own"
        raise ExportError(f"The file has {found}, which can take endless time, and no network of "
                          "caureid export has: give a file that it has written.")


def _external_data(message: Any) -> Iterator[Any]:
    """What tensors say of where their values are: of weights, attributes, subgraphs, functions."""
    for field, value in message.ListFields():
        if field.name == "external_data":
            yield value
        elif hasattr(value, "ListFields"):
            yield from _external_data(value)
        elif field.type == field.TYPE_MESSAGE:  # several
            for part in value:
                yield from _external_data(part)


# --------------------------------------------------------------------------- TorchScript ----


def to_torchscript(network: nn.Module, size: tuple[int, int]
                   ) -> tuple[bytes, Callable[[torch.Tensor], torch.Tensor]]:
    """The content of a TorchScript file, (B, 3, H, W) to (B, D) for any B, and the program in it.

    Raises:
        ExportError: torch has no TorchScript any more, or cannot write this network.
    """
    trace = getattr(torch.jit, "trace", None)
    if trace is None:
        raise ExportError(f"torch {torch.__version__} has no torch.jit.trace, which writes "
                          "TorchScript: take a name that ends in .onnx, or an older torch.")
    file = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # deprecated since torch 2.10; compared after
            traced = trace(network, torch.rand(2, 3, *size) * 255, check_trace=False)
            torch.jit.save(traced, file)
    except _REFUSALS as error:
        raise ExportError(f"torch {torch.__version__} cannot write this network as TorchScript: "
                          f"{str(error).strip().splitlines()[0]}. Take a name that ends in "
                          ".onnx.") from error
    return _without_debug_files(file.getvalue()), traced


def _without_debug_files(content: bytes) -> bytes:
    """A TorchScript archive without the source paths of the machine that wrote it."""
    found = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(found, "w") as new:
        for item in old.infolist():
            if not item.filename.endswith(".debug_pkl"):
                fixed = zipfile.ZipInfo(item.filename, (1980, 1, 1, 0, 0, 0))  # no clock
                new.writestr(fixed, old.read(item))
    return found.getvalue()


def suffix_of(path: Path) -> str:
    """The format that a file's name stands for.

    Raises:
        ExportError: it stands for none.
    """
    suffixes = [f".{name}" for name in FORMAT_NAMES]
    if path.suffix not in suffixes:
        raise ExportError(f"{printable(path)} must end in {' or '.join(suffixes)}, which is what "
                          "programs tell the formats by.")
    if path.suffix == ".safetensors" and path.name != WEIGHTS:
        raise ExportError(f"{printable(path)} must be named {WEIGHTS}, in a folder of its own: "
                          "huggingface_hub looks for that name.")
    return path.suffix[1:]
