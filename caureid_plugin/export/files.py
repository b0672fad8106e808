"""Writing a network as a file with its sidecar, and using such a file.

Letters: B images, (H, W) their size, D embedding size.
"""

from __future__ import annotations

import functools
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from .._version import __version__
from ..common.files import write_atomically
from ..common.text import printable
from ..retrieval.embedder import Embedder
from ..retrieval.network import fingerprint
from ..retrieval.preprocessing import ImageLike, Preprocessing, read_image_like
from ..runs.threshold import PairStatistics
from .graph import (
    INPUT_NAME,
    INPUTS,
    OUTPUT_NAME,
    WEIGHTS,
    ExportError,
    check_graph,
    prepare,
    require,
    suffix_of,
    to_input,
    to_onnx,
    to_torchscript,
)
from .hub import CARD, Origin, from_safetensors, to_safetensors
from .precision import PRECISIONS, to_eight_bits, to_half
from .sidecar import AGAIN, Sidecar, beside, digest, fingerprint_at, read_file, read_sidecar

# in cosine distance; beyond the distances of fewer bits, what was rounded is no longer the network
LARGEST_DIFFERENCE = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.1}
BATCHES = (1, 8)  # that a file is tried with
# Bytes that onnxruntime may set aside on the CPU. A file of a few bytes can ask for any number.
MOST_MEMORY = 8 * 2 ** 30
LEAST_CALIBRATION = 8  # images

Program = Callable[[torch.Tensor], torch.Tensor]


def export_network(embedder: Embedder, path: str | os.PathLike[str], *,
                   convention: str = "rgb255", precision: str = "fp32",
                   images: Sequence[ImageLike] = (), despite_verdict: bool = False,
                   origin: Origin | None = None) -> Sidecar:
    """Writes the network of a run as a file, with a sidecar that describes it.

    The file takes (B, 3, H, W) float32 for any B and gives (B, D) of length 1; what only training
    needs is not in it. Before it is written it is run with 1 and with 8 images and compared with
    PyTorch. ``model.safetensors`` holds only weights; beside it go ``config.json``, which is the
    sidecar, and the model card ``README.md``. A card that is there is kept.

    Args:
        embedder: of :func:`caureid_plugin.load_run`.
        path: ends in .onnx or .torchscript, or is FOLDER/model.safetensors.
        convention: "rgb255": the file takes RGB 0..255; "imagenet": RGB 0..1 less ImageNet's mean,
            by its deviation, as trackers give it.
        precision: "fp32"; "fp16" or "int8" (.onnx only).
        images: to compare with, and for int8 to calibrate by, 8 at least; none: noise.
        despite_verdict: give the sidecar the suggested threshold although training went wrong.
        origin: of the run; ``model.safetensors`` needs it.

    Returns:
        what the sidecar says.

    Raises:
        ExportError: the network cannot be written, or what was written differs in cosine distance
            by more than 1e-4 (float32), 0.01 (fp16) or 0.1 (int8); a wrong argument. There is no
            new file then.
        ImportError: onnx, onnxruntime or safetensors is not installed.
        ValueError: an image that cannot be read.
        OSError: it cannot be written.
    """
    path = Path(path)
    kind = suffix_of(path)
    _check(embedder, path, kind, convention, precision, len(images))
    keys = None
    if kind == "safetensors":
        keys = _keys(path, convention, origin)
    shape = embedder.preprocessing.shape
    pixels = _pixels(images, embedder.preprocessing)
    content, program = _write(embedder, kind, convention, precision, pixels, keys)
    found = difference(embedder, program, pixels, convention)
    allowed = LARGEST_DIFFERENCE[precision]
    if not found <= allowed:  # NaN as well
        advice = ("try another version of torch or onnxruntime, or the other format."
                  if precision == "fp32" else
                  "its numbers do not fit into so few bits, take --precision fp32.")
        raise ExportError(
            f"The {kind} file of {printable(embedder.name)} gives other embeddings than PyTorch "
            f"(cosine distance {found:.2g}, and {allowed:g} is allowed with {precision}) and was "
            f"not kept: {advice}")
    statistics = embedder.statistics
    threshold = None if statistics is None else statistics.threshold()._asdict()
    sidecar = Sidecar(
        kind=kind, digest=digest(content),
        fingerprint=fingerprint_at(embedder.fingerprint, precision, content),
        run=embedder.fingerprint, name=embedder.name,
        dim=embedder.dim, convention=convention, shape=shape, size=embedder.preprocessing.size,
        crop=embedder.preprocessing.crop, precision=precision,
        statistics=None if statistics is None else statistics.to_json(),
        why_no_statistics=embedder.why_no_statistics,
        threshold=None if embedder.verdict.why_withheld(despite_verdict) else threshold,
        difference=found, plugin=__version__, torch=torch.__version__, verdict=embedder.verdict,
        network=keys)
    write_atomically(path, content)
    sidecar.write(path)
    card = path.with_name(CARD)
    if origin is not None and kind == "safetensors" and not card.exists():
        write_atomically(card, origin.card(sidecar))
    return sidecar


def _keys(path: Path, convention: str, origin: Origin | None) -> dict[str, Any]:
    """Config keys for a folder of a hub, into which nothing of others is written."""
    if convention != "rgb255":
        raise ExportError(f"--input {convention} is only for ONNX and TorchScript files: "
                          f"{WEIGHTS} holds weights, give --input rgb255.")
    if origin is None:
        raise ExportError(f"{WEIGHTS} needs the config of its run: give origin, or use caureid "
                          "export.")
    if os.path.lexists(beside(path)):
        try:
            read_sidecar(path)
        except ExportError as error:
            raise ExportError(f"{printable(beside(path))} is there already and not of caureid "
                              "export: give a folder of its own with --output.") from error
    return origin.keys()


def _check(embedder: Embedder, path: Path, kind: str, convention: str, precision: str,
           images: int) -> None:
    for name, value, known in (("input", convention, INPUTS), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise ExportError(f"--{name} {value!r} is unknown, known are {', '.join(known)}.")
    if not isinstance(embedder.network, nn.Module):
        raise ExportError(f"{printable(embedder.name)} is an exported file itself: give the run "
                          "folder that it was made from.")
    if kind != "onnx" and precision != "fp32":
        raise ExportError(f"--precision {precision} is only for ONNX files: give a name that ends "
                          "in .onnx, or --precision fp32.")
    if precision == "int8" and images < LEAST_CALIBRATION:
        raise ExportError(f"--precision int8 takes at least {LEAST_CALIBRATION} images to calibrate"
                          f" by, and there are {images}: give a folder of some hundred crops with "
                          "--images.")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ExportError(f"{printable(path)} cannot be written: it is a folder, or lies in one "
                          "that does not exist.")
    try:
        tempfile.TemporaryFile(dir=path.absolute().parent).close()
    except OSError as error:  # before the work, not after it
        raise ExportError(f"{printable(path)} cannot be written: its folder takes no new file "
                          f"({error.strerror}).") from error


def _pixels(images: Sequence[ImageLike], preprocessing: Preprocessing) -> torch.Tensor:
    """(B, 3, H, W), RGB 0..255, of images, or of noise in blocks."""
    if len(images):
        return torch.from_numpy(np.stack([
            preprocessing(read_image_like(image)) for image in images]))
    blocks = 255 * torch.rand(max(BATCHES), 3, 8, 4, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(blocks, size=preprocessing.shape, mode="bicubic").clamp(0, 255)


def _write(embedder: Embedder, kind: str, convention: str, precision: str, pixels: torch.Tensor,
           keys: dict[str, Any] | None) -> tuple[bytes, Program]:
    """Content of a file, and what runs it."""
    assert isinstance(embedder.network, nn.Module)
    if keys is not None:
        content = to_safetensors(embedder.network)
        # as it is read again: tuples are lists then
        return content, from_safetensors(content, json.loads(json.dumps(keys)), Path(WEIGHTS))[0]
    network = prepare(embedder.network, convention)
    if kind == "torchscript":
        return to_torchscript(network, embedder.preprocessing.shape)
    content = to_onnx(network, embedder.preprocessing.shape)
    if precision == "fp16":
        content = to_half(content)
    elif precision == "int8":
        content = to_eight_bits(content, to_input(pixels, convention).numpy())
    return content, onnx_program(content).program


class Loaded(NamedTuple):
    """What runs a file, and what the file itself says: names and shapes of input and output."""

    program: Program
    names: list[str]
    shapes: list[list[int | str]]


def onnx_program(content: bytes) -> Loaded:
    """Runs an ONNX file by onnxruntime, on CUDA where that is there, else on the CPU.

    Raises:
        ImportError: onnxruntime or onnx is not installed.
        ExportError: it cannot read the file, would read others with it, could run for ever, or
            would take more than ``MOST_MEMORY``; the program raises it as well.
    """
    runtime = require("onnxruntime")
    _limit_memory(runtime)
    check_graph(content)
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    there = [name for name in wanted if name in runtime.get_available_providers()]
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # it raises its errors; what it warns of is for its makers
    options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        session: Any = runtime.InferenceSession(content, options, providers=there)
    except Exception as error:  # its errors have no base of their own
        raise ExportError(f"onnxruntime {runtime.__version__} cannot read the file: "
                          f"{_runtime_error(error, 'Install a newer one.')}") from error

    shapes = [item.shape for item in (*session.get_inputs(), *session.get_outputs())]
    names = [item.name for item in (*session.get_inputs(), *session.get_outputs())]

    def program(images: torch.Tensor) -> torch.Tensor:
        given = np.ascontiguousarray(images.numpy(), dtype=np.float32)
        try:
            found = session.run(None, {INPUT_NAME: given})[0]
        except Exception as error:
            raise ExportError(f"onnxruntime {runtime.__version__} cannot run the file on "
                              f"{len(given)} images: {_runtime_error(error, AGAIN)}") from error
        return torch.from_numpy(found)

    return Loaded(program, names, shapes)


@functools.cache  # it has one such memory, for all files
def _limit_memory(runtime: Any) -> None:
    runtime.create_and_register_allocator(
        runtime.OrtMemoryInfo("Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0,
                              runtime.OrtMemType.DEFAULT),
        runtime.OrtArenaCfg({"max_mem": MOST_MEMORY}))


def _runtime_error(error: Exception, advice: str) -> str:
    """An error of onnxruntime in one line, and what to do."""
    text = " ".join(str(error).split())
    # of its arena, or of the machine where that is smaller
    if re.search(r"smaller than requested bytes|allocate memory|bad.alloc", text):
        return (f"it asks for more memory than the {MOST_MEMORY / 2 ** 30:g} GiB that a network "
                "may take, or than the machine has. Embed fewer images at a time (batch_size), or "
                "take a file of someone whom you trust.")
    return f"{text}. {advice}"


@torch.no_grad()
def difference(embedder: Embedder, program: Program, pixels: torch.Tensor, convention: str
               ) -> float:
    """Largest cosine distance between a file's embeddings and PyTorch's.

    Args:
        program: of the file.
        pixels: (N, 3, H, W), RGB 0..255; all are tried, 1 and 8 at a time. Fewer than 8 are
            repeated.
        convention: of the file.
    """
    worst = 0.0
    most = max(BATCHES)
    if len(pixels) < most:
        pixels = pixels.repeat(-(-most // len(pixels)), 1, 1, 1)[:most]
    for size in BATCHES:
        for start in range(0, len(pixels), size):
            batch = pixels[start:start + size]
            expected = embedder(batch).double()
            found = program(to_input(batch, convention)).double()
            distance = 1 - nn.functional.cosine_similarity(found, expected)
            if not torch.isfinite(distance).all():
                return float("nan")
            worst = max(worst, float(distance.max()))
    return worst


def load_export(path: str | os.PathLike[str]) -> Embedder:
    """The network of a file that :func:`export_network` or caureid export has written.

    Needs onnx and onnxruntime, or safetensors, and neither the run folder nor its config.

    Args:
        path: of an .onnx file, whose sidecar lies beside it; of ``model.safetensors``, beside
            which lies ``config.json``, or of their folder.

    Raises:
        ExportError: no file, no sidecar, a damaged or foreign one; no ONNX file, or one of
            :func:`check_graph`'s refusals; weights that are not of the network of its config.
        ImportError: onnxruntime, onnx or safetensors is not installed.
    """
    path = Path(path)
    if path.is_dir():
        path /= WEIGHTS
    kind = suffix_of(path)
    if kind == "torchscript":
        raise ExportError(f"{printable(path)} is a program for other tools (torch.jit.load): "
                          "export the run as .onnx to use it here, or give the run folder.")
    content = read_file(path, "what caureid export has written")
    sidecar = read_sidecar(path)
    if digest(content) != sidecar.digest:
        raise ExportError(f"{printable(path)} is damaged, or its sidecar {printable(path.name)}."
                          f"json is that of another file: their digests differ. {AGAIN}")
    if sidecar.kind != kind:
        name = "ONNX" if kind == "onnx" else kind
        raise ExportError(f"{printable(path)} is no {name} file, as its sidecar says: it is "
                          f"{sidecar.kind}. {AGAIN}")
    if kind == "safetensors":
        return _load_safetensors(content, sidecar, path)
    try:
        program, names, shapes = onnx_program(content)
    except ExportError as error:
        raise ExportError(f"{printable(path)}: {error}") from error
    statistics, preprocessing = _read_back(sidecar, path)
    height, width = preprocessing.shape
    told = [[3, height, width], [sidecar.dim]]
    if (names != [INPUT_NAME, OUTPUT_NAME] or [shape[1:] for shape in shapes] != told
            or sidecar.shape != preprocessing.shape):
        raise ExportError(
            f"The sidecar of {printable(path)} does not fit its file: it tells of images of "
            f"{height} x {width} pixels and embeddings of {sidecar.dim} numbers, and the file has "
            f"{names} of shapes {shapes}. {AGAIN}")
    return Embedder(
        # of fewer bits, their length is 1 to three digits
        lambda images: nn.functional.normalize(program(to_input(images, sidecar.convention))),
        name=f"{sidecar.name}, {path.name}", dim=sidecar.dim, fingerprint=sidecar.fingerprint,
        preprocessing=preprocessing, statistics=statistics,
        why_no_statistics=sidecar.why_no_statistics, verdict=sidecar.verdict)


def _read_back(sidecar: Sidecar, path: Path) -> tuple[PairStatistics | None, Preprocessing]:
    try:
        statistics = (None if sidecar.statistics is None
                      else PairStatistics.from_json(sidecar.statistics))
        return statistics, Preprocessing(sidecar.size, sidecar.crop)
    except ValueError as error:
        raise ExportError(f"The sidecar of {printable(path)} is damaged: {error} {AGAIN}"
                          ) from error


def _load_safetensors(content: bytes, sidecar: Sidecar, path: Path) -> Embedder:
    """On CUDA where that is there, else on the CPU."""
    statistics, preprocessing = _read_back(sidecar, path)
    assert sidecar.network is not None
    network, cfg = from_safetensors(content, sidecar.network, path)
    if fingerprint(network, cfg, preprocessing) != sidecar.fingerprint:
        raise ExportError(f"{printable(beside(path))} was changed: its network and sizes give "
                          f"another fingerprint than the one in it. {AGAIN}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Embedder(
        network.to(device), name=f"{sidecar.name}, {path.absolute().parent.name}/{path.name}",
        dim=sidecar.dim, fingerprint=sidecar.fingerprint, preprocessing=preprocessing,
        statistics=statistics, why_no_statistics=sidecar.why_no_statistics, device=device,
        verdict=sidecar.verdict)
