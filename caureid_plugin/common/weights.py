"""Weights of a file for a network: unwrapped, counted, and refused where they are another's.

Key layouts that others publish are recognised and brought to the names of torchvision's ResNet and
timm's transformers:

- MoCo (github.com/facebookresearch/moco), as LUPerson trains: ``encoder_q`` beside ``encoder_k``.
- DINO (github.com/facebookresearch/dino), as TransReID-SSL trains: ``backbone`` and ``head``.
- SOLIDER (github.com/tinyvision/SOLIDER): the same around the Swin Transformer of mmdetection.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .errors import MissingPackage, UserError
from .files import write_atomically
from .safe_load import DamagedFile, load_tensors, salvage
from .text import printable

logger = logging.getLogger("fastreid.caureid")

LEAST_SHARE = 0.9  # of a network's tensors that a file must have
# what checkpoints keep their weights under, the averaged ones first
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state", "model", "teacher", "net")
NAMED = 3  # tensors of each side in an error
# Share of semantic information that SOLIDER's networks are asked for: SOLIDER-REID's in each of
# its runs
SEMANTIC_WEIGHT = 0.2
# blocks of each stage of a ResNet, whether they have three convolutions, and its depth
RESIDUAL: dict[tuple[int, ...], int] = {
    (2, 2, 2, 2, False): 18, (3, 4, 6, 3, False): 34, (3, 4, 6, 3, True): 50,
    (3, 4, 23, 3, True): 101, (3, 8, 36, 3, True): 152}


def read_weights(path: str | os.PathLike[str]) -> Any:
    """Content of a file of ``torch.save``, as :func:`load_tensors`, or of a .safetensors file.

    Raises:
        DamagedFile, CodeInFile, OSError: see :func:`load_tensors`.
        ImportError: safetensors is not installed.
    """
    if os.fspath(path).endswith(".safetensors"):
        return load_safetensors(Path(path).read_bytes(), os.fspath(path))
    return load_tensors(path)


def load_safetensors(content: bytes, source: str) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file.

    Args:
        content: of the file.
        source: the file, for the error.

    Raises:
        DamagedFile: it is no such file, or not a whole one.
        ImportError: safetensors is not installed.
    """
    safetensors = require_safetensors()
    try:
        found: dict[str, torch.Tensor] = safetensors.load(content)
    except importlib.import_module("safetensors").SafetensorError as error:
        raise DamagedFile(f"{source} is damaged or no file of safetensors: {error}.") from error
    return found


def require_safetensors() -> Any:
    """The package's functions for torch.

    Raises:
        ImportError: it is not installed; says what to install.
    """
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise MissingPackage(f"safetensors is not installed ({error}): pip install "
                             "'caureid-plugin[hub]'.") from error


def unwrap(content: Any, source: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, by the names of torchvision and timm where a layout is known.

    The log says where they were, and in which layout.

    Args:
        content: of the file.
        source: the file, for the log.

    Raises:
        ValueError: there are none.
    """
    tensors = _tensors(content, source)
    layout, tensors = known_layout(tensors)
    if layout:
        logger.info("%s: weights in the layout of %s.", source, layout)
    return tensors


def _tensors(content: Any, source: str) -> dict[str, torch.Tensor]:
    """As :func:`find_weights`; the log says where they were."""
    tensors, under = find_weights(content)
    if not tensors:
        names = ", ".join(str(name)[:40] for name in list(content)[:NAMED]) if isinstance(
            content, Mapping) else ""
        raise UserError("it holds no tensors by their names" + (
            f", nor under {', '.join(WRAPPERS)}, but {printable(names)}: save the dict of tensors "
            "in it as a file of its own (torch.save)" if names else ""))
    if under:
        logger.info("%s: the weights under %s are taken.", source, " > ".join(map(repr, under)))
    return tensors


def extract(source: Path, output: Path) -> str:
    """Writes the tensors of a file to another without running what else it asks for.

    Args:
        source: any file of ``torch.save``, see :func:`~caureid_plugin.common.safe_load.salvage`.
        output: is made; holds the tensors by their names.

    Returns:
        a sentence about them.

    Raises:
        ValueError: ``output`` is there, or there are no tensors.
        OSError: a file cannot be read or written.
    """
    if output.exists():
        raise UserError(f"OUTPUT {output} is there already: name another file.")
    try:
        tensors = _tensors(salvage(source), str(source))
    except DamagedFile:
        raise
    except ValueError as error:
        raise UserError(f"{source}: {error}.") from error
    write_atomically(output, lambda file: torch.save(tensors, file))
    numbers = sum(tensor.numel() for tensor in tensors.values())
    first = next(iter(tensors))
    return (f"{output}: {len(tensors)} tensors, {numbers} numbers; the first is {first} "
            f"{tuple(tensors[first].shape)}.")


def find_weights(content: Any) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The tensors of a checkpoint by their names, and the ``WRAPPERS`` around them.

    Of several wrappers, and what lies beside them, the first with half as many tensors as the
    fullest: one that is empty, or holds a few counters, is no network's.

    Example:
        >>> find_weights({"model_ema": {}, "state_dict": {"fc.bias": torch.ones(1)}})
        ({'fc.bias': tensor([1.])}, ('state_dict',))
    """
    if not isinstance(content, Mapping):
        return {}, ()
    found = []
    for name in WRAPPERS:
        tensors, under = find_weights(content.get(name))
        found.append((tensors, (name, *under)))
    found.append(({str(name): value for name, value in content.items()
                   if isinstance(value, torch.Tensor)}, ()))
    most = max(len(tensors) for tensors, _ in found)
    return next((tensors, under if tensors else ()) for tensors, under in found
                if 2 * len(tensors) >= most)


def strip(state: Mapping[str, torch.Tensor], names: Iterable[str]
          ) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors below the prefix that gives most of a network's names, and that prefix.

    Such as "module." of training in parallel, "backbone." of a whole model, or
    "module.encoder_q.". The shortest of those that give as many.

    Example:
        >>> strip({"module.fc.bias": torch.ones(1), "t": torch.ones(1)}, ["fc.bias"])
        ({'fc.bias': tensor([1.])}, 'module.')
    """
    own = set(names)
    counts = {"": 0}
    longest = max((name.count(".") + 1 for name in own), default=0)
    for name in state:
        parts = name.split(".")
        for start in range(max(len(parts) - longest, 0), len(parts)):  # of 10^5 parts, a few
            if ".".join(parts[start:]) in own:
                prefix = "".join(f"{part}." for part in parts[:start])
                counts[prefix] = counts.get(prefix, 0) + 1
    best = min(counts, key=lambda prefix: (-counts[prefix], len(prefix)))
    return {name[len(best):]: value for name, value in state.items()
            if name.startswith(best)}, best


# ------------------------------------------------------------------------------ layouts ----


def known_layout(state: Mapping[str, torch.Tensor]) -> tuple[str, dict[str, torch.Tensor]]:
    """Whose layout the names of a file have, and the tensors of its backbone by the usual names.

    Returns:
        "" where it is none that is known here, and the tensors as they are.

    Raises:
        ValueError: a part of what the layout has is missing or of another shape.

    Example:
        >>> moco = {f"encoder_{part}.conv1.weight": torch.ones(1) for part in "qk"}
        >>> known_layout(moco)
        ('MoCo (LUPerson)', {'conv1.weight': tensor([1.])})
    """
    if _below(state, "encoder_k.conv1.weight") and (
            found := _below(state, "encoder_q.conv1.weight", "conv1.weight")):
        return "MoCo (LUPerson)", found
    if found := _below(state, "patch_embed.projection.weight"):
        try:
            return "SOLIDER", _from_solider(found)
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(f"it has the layout of SOLIDER and is not whole ({error})") from error
    if any(".last_layer." in f".{name}" for name in state) and (
            found := _below(state, "backbone.pos_embed", "pos_embed")):
        return "DINO (TransReID-SSL)", found
    return "", dict(state)


def _below(state: Mapping[str, torch.Tensor], last: str, kept: str = "") -> dict[str, torch.Tensor]:
    """Tensors beside one whose name ends with ``last``, of which ``kept`` is left; or none."""
    first = next((name for name in state if f".{name}".endswith(f".{last}")), "")
    prefix = first[:len(first) - len(kept or last)]
    return {name[len(prefix):]: value for name, value in state.items()
            if first and name.startswith(prefix)}


_OF_SWIN = (("stages.", "layers."), (".w_msa.", "."), (".ffn.layers.0.0.", ".mlp.fc1."),
            (".ffn.layers.1.", ".mlp.fc2."), (".projection.", ".proj."))


def _from_solider(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """SOLIDER's Swin Transformer by the names of the original one, which timm reads.

    mmdetection orders the merged 2 x 2 patches as ``nn.Unfold`` does, the original one column by
    column. After each merging SOLIDER scales and shifts the channels as its semantic weight asks.
    The merging takes that in: rows of its matrix are scaled, and the bias of the norm before it
    gets what the matrix turns into the shift.
    """
    last = max(int(name.split(".")[1]) for name in state if name.startswith("stages."))
    found = {f"norm.{part}": state[f"norm{last}.{part}"] for part in ("weight", "bias")}
    for name, value in state.items():
        if name.startswith(("patch_embed.", "stages.")):
            new = name
            for old, usual in _OF_SWIN:
                new = new.replace(old, usual)
            # (..., C, rows, columns) to (..., columns, rows, C)
            found[new] = (value.unflatten(-1, (-1, 2, 2)).transpose(-1, -3).flatten(-3)
                          if ".downsample." in name else value)
    asked = torch.tensor([SEMANTIC_WEIGHT, 1 - SEMANTIC_WEIGHT], dtype=torch.float64)
    for stage in range(last if "semantic_embed_w.0.weight" in state else 0):
        scale, shift = (state[f"semantic_embed_{kind}.{stage}.weight"].double() @ asked
                        + state[f"semantic_embed_{kind}.{stage}.bias"].double() for kind in "wb")
        merging = f"layers.{stage}.downsample"
        matrix = (nn.functional.softplus(scale)[:, None]
                  * found[f"{merging}.reduction.weight"].double())
        more = torch.linalg.pinv(matrix) @ shift  # (4 C,)
        found[f"{merging}.reduction.weight"] = matrix.float()
        found[f"{merging}.norm.bias"] = (found[f"{merging}.norm.bias"].double() + more).float()
    return found


def architecture(state: Mapping[str, torch.Tensor]) -> str:
    """What the names of a network's tensors tell of its kind and depth; "" if that is unknown.

    Example:
        >>> architecture({f"blocks.{n}.attn.qkv.weight": torch.ones(1) for n in range(12)})
        'a transformer of 12 blocks'
    """
    names = " ".join(state)
    if found := _blocks(r"[ .]layer(\d+)\.(\d+)\.conv1\.", names):
        depth = RESIDUAL.get((*found, ".conv3." in names))
        return f"a ResNet{'' if depth is None else f'-{depth}'} of {_listed(found)} blocks"
    if found := _blocks(r"[ .](?:layers|stages)\.(\d+)\.blocks\.(\d+)\.attn\.", names):
        return f"a transformer of {_listed(found)} blocks"
    if found := _blocks(r"[ .]blocks()\.(\d+)\.attn\.", names):
        stem = " behind convolutions" if "patch_embed.conv." in names else ""
        return f"a transformer of {_listed(found)} blocks{stem}"
    return ""


def two_architectures(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> str:
    """What a file and a network are, as part of a sentence; "" where no difference is known."""
    kinds = architecture(state), architecture(own)
    return (f"the file holds {kinds[0]}, and the network is {kinds[1]}"
            if all(kinds) and kinds[0] != kinds[1] else "")


def _blocks(pattern: str, names: str) -> list[int]:
    """Numbers of blocks of each stage, by a pattern of two groups: a stage's name, a block's."""
    found = set(re.findall(pattern, f" {names}"))
    return [sum(stage == other for other, _ in found)
            for stage in sorted({stage for stage, _ in found})]


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


# ------------------------------------------------------------------------------ loading ----


def load_matching(network: nn.Module, state: Mapping[str, torch.Tensor], source: str,
                  key: str) -> None:
    """Loads the tensors of a network that a file has in the network's names and shapes.

    Args:
        network: changed in place.
        state: from the file, with any prefix before the names.
        source: the file, for the log and the error.
        key: the config key or argument that names it.

    Raises:
        ValueError: weights of another architecture or depth (names both); less than
            ``LEAST_SHARE`` of the network's tensors (shows some of each side).
    """
    every = network.state_dict()
    own = {name: value for name, value in every.items()
           if not name.endswith("num_batches_tracked")}  # which old files do not have
    found, prefix = strip(state, own)
    matching = {name: value for name, value in found.items()
                if name in every and value.shape == every[name].shape}
    count = len(matching.keys() & own.keys())
    both = two_architectures(found, own)
    advice = f"Set {key} so that both are of one architecture{': ' if both else ''}{both}."
    if not own or count < LEAST_SHARE * len(own):
        resized = len(own.keys() & found.keys()) >= LEAST_SHARE * len(own)
        why = (" Their names are the same and their shapes are not: the weights are of another "
               "width, depth or image size." if resized else "")
        raise UserError(
            f"{source} has {count} of the {len(own)} tensors of the network.{why} Missing, for "
            f"example: {_examples(own, found)}. In the file instead: {_examples(found, own)}. "
            f"{advice}")
    if both:  # a deeper network's file has all of the tensors of a shallow one
        raise UserError(f"{source} is of another depth. {advice}")
    check_content(matching, every, source)
    network.load_state_dict(matching, strict=False)
    without = f", without the prefix {prefix!r}" if prefix else ""
    missing = f"; missing are, for example: {_examples(own, found)}" if count < len(own) else ""
    logger.log(logging.WARNING if missing else logging.INFO, "%s: %d of %d tensors loaded%s%s.",
               source, count, len(own), without, missing)


def check_content(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor],
                  source: str) -> None:
    """Refuses tensors that have the right names and shapes and are no weights.

    Args:
        state: from the file; what ``own`` does not name is passed over.
        own: tensors of the network.
        source: the file, for the error.

    Raises:
        ValueError: integers or complex numbers where the network has fractions, values that are
            not finite, or nearly all weights zero.
    """
    floats = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)
              and name in own and own[name].is_floating_point()}
    advice = "Give the file that training wrote, or download it again."
    for name, value in floats.items():
        if not value.is_floating_point() or value.layout != torch.strided or value.is_meta:
            raise UserError(f"{source} holds {name} as {value.dtype} ({value.layout}), and the "
                            f"network computes with {own[name].dtype}. {advice}")
        if not torch.isfinite(value).all():
            raise UserError(f"{source} holds values in {name} that are not finite. {advice}")
    matrices = [value for value in floats.values() if value.dim() > 1]
    zero = sum(not value.any() for value in matrices)
    if matrices and zero >= LEAST_SHARE * len(matrices):
        raise UserError(f"{source} holds nothing but zeros in {zero} of {len(matrices)} weight "
                        f"tensors. {advice}")


def _examples(some: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> str:
    found = [f"{name[:100]} {tuple(value.shape)}" for name, value in some.items()
             if name not in other or other[name].shape != value.shape]
    return ", ".join(found[:NAMED]) or "none"
