"""Weights of a file for a network: unwrapped, counted, and refused where they are another's."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .errors import UserError
from .files import write_atomically
from .safe_load import DamagedFile, salvage
from .text import printable

logger = logging.getLogger("fastreid.caureid")

LEAST_SHARE = 0.9  # of a network's tensors that a file must have
# what checkpoints keep their weights under, the averaged ones first
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state", "model", "teacher", "net")
NAMED = 3  # tensors of each side in an error


def unwrap(content: Any, source: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, as :func:`find_weights`; the log says where they were.

    Args:
        content: of the file.
        source: the file, for the log.

    Raises:
        ValueError: there are none.
    """
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
        tensors = unwrap(salvage(source), str(source))
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


def load_matching(network: nn.Module, state: Mapping[str, torch.Tensor], source: str,
                  key: str) -> None:
    """Loads the tensors of a network that a file has in the network's names and shapes.

    Args:
        network: changed in place.
        state: from the file, with any prefix before the names.
        source: the file, for the log and the error.
        key: the config key or argument that names it.

    Raises:
        ValueError: less than ``LEAST_SHARE`` of the network's tensors; shows some of each side.
    """
    every = network.state_dict()
    own = {name: value for name, value in every.items()
           if not name.endswith("num_batches_tracked")}  # which old files do not have
    found, prefix = strip(state, own)
    matching = {name: value for name, value in found.items()
                if name in every and value.shape == every[name].shape}
    count = len(matching.keys() & own.keys())
    if not own or count < LEAST_SHARE * len(own):
        resized = len(own.keys() & found.keys()) >= LEAST_SHARE * len(own)
        why = (" Their names are the same and their shapes are not: the weights are of another "
               "width, depth or image size." if resized else "")
        raise UserError(
            f"{source} has {count} of the {len(own)} tensors of the network.{why} Missing, for "
            f"example: {_examples(own, found)}. In the file instead: {_examples(found, own)}. Set "
            f"{key} to weights of this network, or the network to that of the weights.")
    check_content(matching, every, source)
    network.load_state_dict(matching, strict=False)
    without = f", without the prefix {prefix!r}" if prefix else ""
    logger.info("%s: %d of %d tensors loaded%s.", source, count, len(own), without)


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
