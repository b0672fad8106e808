"""Files of tensors: what may go into one, and reading one without running what it may hide."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

_PLAIN = (type(None), bool, int, float, str, torch.Size, torch.dtype)


def plain_values(tree: Any, name: str = "") -> object:
    """The same content of tensors and plain Python values, such that it can be loaded safely.

    Args:
        tree: nested dicts, lists and tuples of tensors, numbers, strings and None; NumPy's scalars
            become Python's.
        name: where the tree hangs, for the error.

    Raises:
        TypeError: something else in it, which ``torch.load(weights_only=True)`` would refuse.
    """
    if isinstance(tree, np.generic):  # np.float64 is a float to isinstance, not to pickle
        return tree.item()
    if isinstance(tree, torch.Tensor) or type(tree) in _PLAIN:
        return tree
    if isinstance(tree, Mapping):
        kind: Any = dict
        if type(tree) in (collections.OrderedDict, collections.Counter):
            kind = type(tree)
        return kind({plain_values(key, f"a key of {name}"): plain_values(value, _join(name, key))
                     for key, value in tree.items()})
    if type(tree) in (list, tuple):
        return type(tree)(plain_values(v, _join(name, i)) for i, v in enumerate(tree))
    raise TypeError(
        f"A checkpoint holds tensors and plain Python values, nothing that only code can read, but "
        f"{name or 'this'} is a {type(tree).__module__}.{type(tree).__qualname__}: convert it in "
        "state_dict().")


def find_non_finite(tree: object, name: str = "") -> str | None:
    """Name of the first floating tensor in nested dicts and lists that holds NaN or infinity."""
    return next((where for where, tensor in _tensors(tree, name)
                 if tensor.is_floating_point() and not torch.isfinite(tensor).all()), None)


def _tensors(tree: object, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(tree, torch.Tensor):
        yield name, tree
    elif isinstance(tree, (Mapping, list, tuple)):
        items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        for key, value in items:
            yield from _tensors(value, _join(name, key))


def _join(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)
