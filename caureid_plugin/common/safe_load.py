"""Files of tensors: what may go into one, and reading one without running what it may hide."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
import pickletools
import struct
import tarfile
import types
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from .errors import UserError

_PLAIN = (type(None), bool, int, float, str, torch.Size, torch.dtype)
# What reading a broken file has been seen to raise, but no OSError: a file that may not be read is
# not broken.
_BROKEN = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, RuntimeError, TypeError,
    ValueError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error)
_ZIP = b"PK\x03\x04"  # the first bytes
# Far above what a checkpoint needs, below Python's limit for those who walk through it.
DEEPEST_CONTENT = 50
SMALL = 2 ** 20  # bytes of a tensor that any file may name, however small it is itself
# Of a key, and of what a call in a pickle is given: C code follows it without a limit of its own.
DEEPEST_KEY = 1000
MOST_ODD_KEYS = 10_000  # that could all have one hash, so that each is compared with all others
# torch < 2.6 runs the code in such a file in spite of weights_only (CVE-2025-32434)
_TAR = ("it is in the tar format of very old torch, which is not read: if you trust where it comes "
        "from, read it elsewhere and save it again with a current torch")


class DamagedFile(UserError):
    """A file that is no file of tensors, or not a whole one."""


class CodeInFile(UserError):
    """A file that can run code of its author's when it is read, and was not read."""


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


# ------------------------------------------------------------------------------ reading ----


def load_tensors(path: str | os.PathLike[str]) -> Any:
    """Reads a file of ``torch.save`` onto the CPU without running code that it may hold.

    A file in the format of torch 1.6 and later is compared with its checksums first, which
    ``torch.load`` does not do; it takes half as long as the reading itself. What it holds is no
    larger than the file, aliases written out, so that its size bounds the work with the content.

    Raises:
        DamagedFile: the file is empty, cut off, changed, or no file of ``torch.save``; or it is in
            the tar format of very old torch. Or its content is larger than the file, contains
            itself, is nested more than ``DEEPEST_CONTENT`` deep or hides what it holds. Or a key or
            call in it would take endless time.
        CodeInFile: it asks for functions or classes that are no tensors or plain values.
        OSError: it cannot be read.
    """
    path = Path(path)
    damage = _damage(path)
    if damage:
        raise DamagedFile(f"{path} is damaged: {damage}.")
    try:
        _check_pickles(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (*_BROKEN, MemoryError) as error:
        found = _forbidden(path, str(error))
        if found:
            raise CodeInFile(
                f"{path} is refused: it asks for {found}, which is no tensor and no plain value, "
                "and a file that asks for such things can run any code when it is read. "
                "caureid weights FILE OUTPUT takes its tensors out without running "
                "anything.") from None
        raise DamagedFile(f"{path} is damaged or no file of torch.save: "
                          f"{_reason(path, error)}.") from error
    _check_content(content, path)
    return content


def _check_content(content: Any, path: Path) -> None:
    """Refuses what a small file can say and only endless time or memory could use."""
    size = os.path.getsize(path)
    try:
        count = _count(content, "", (), {}, max(size, SMALL))
        if count > size:
            raise UserError(f"it holds {count} values, those that it names often counted each "
                            f"time, in {size} bytes")
    except _BROKEN as error:  # not only ours: a tensor may be of a kind without a size
        raise DamagedFile(f"{path} is no file of weights or of a run: {error}. Take another "
                          "file.") from None


def _count(tree: Any, name: str, above: tuple[int, ...], counts: dict[int, int],
           largest: int) -> int:
    """The number of values in a tree, aliases written out: linear, however large that is."""
    if isinstance(tree, (Mapping, list, tuple, torch.Tensor)):
        for attribute in getattr(tree, "__dict__", ()):  # OrderedDicts and parameters may have some
            if hasattr(type(tree), attribute):  # such as items, which would hide what it holds
                raise UserError(f"{name or 'its content'!r} replaces {attribute[:200]!r} of its "
                                f"{type(tree).__name__}")
    if isinstance(tree, torch.Tensor):
        if tree.device.type != "cpu":
            raise UserError(f"the tensor {name!r} has no values (device {tree.device})")
        if tree.numel() * tree.element_size() > largest:
            raise UserError(f"the tensor {name!r} of shape {tuple(tree.shape)} is larger "
                            "than the file: it repeats its values")
    children = _children(tree)
    if children is None:
        return 1
    if id(tree) in above:
        raise UserError(f"{name or 'its content'!r} contains itself")
    if len(above) >= DEEPEST_CONTENT:
        raise UserError(f"it is nested more than {DEEPEST_CONTENT} deep")
    if id(tree) not in counts:
        inside = (*above, id(tree))
        # cut, since a key of a megabyte would be copied for each value below it
        counts[id(tree)] = 1 + sum(_count(value, _join(name, key)[:200], inside, counts, largest)
                                   for key, value in children)
    return counts[id(tree)]


def _children(tree: Any) -> Iterable[tuple[Any, Any]] | None:
    """(key, value) of a container, None for a value."""
    if isinstance(tree, _Inert):
        return _parts(tree).items()
    if isinstance(tree, Mapping):
        return tree.items()
    return enumerate(tree) if isinstance(tree, (list, tuple)) else None


class _Inert:
    """Stands for whatever a file asks for that is no tensor: it takes everything, does nothing."""

    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    extend = add = append


# what builds tensors and plain containers, and runs nothing that a file could choose
_BUILDERS = {
    "collections.OrderedDict", "torch.Size", "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in _BUILDERS:
            return super().find_class(module, name)
        known = getattr(torch, name, None) if module == "torch" else None
        if isinstance(known, torch.dtype) or (
                isinstance(known, type) and name.endswith("Storage")):
            return known
        return type(name, (_Inert,), {})


def salvage(path: str | os.PathLike[str]) -> Any:
    """What is left of a file of ``torch.save`` where all but tensors and plain values is inert.

    For a file that :func:`load_tensors` refuses as it asks for classes or functions: none of them
    is looked up or called. The weights of a whole network (``torch.save(model, ...)``)
    come as nested dicts, with the names of its ``state_dict()`` joined by dots.

    Returns:
        nested dicts, lists and tuples of tensors and plain values; None for all else.

    Raises:
        DamagedFile: as :func:`load_tensors`.
        OSError: it cannot be read.
    """
    path = Path(path)
    if damage := _damage(path):
        raise DamagedFile(f"{path} is damaged: {damage}.")
    inert = types.ModuleType("inert_pickle")
    vars(inert).update(Unpickler=_InertUnpickler, UnpicklingError=pickle.UnpicklingError,
                       load=lambda file, **options: _InertUnpickler(file, **options).load())
    try:
        _check_pickles(path)
        content = torch.load(path, map_location="cpu", weights_only=False, pickle_module=inert)
    except (*_BROKEN, MemoryError) as error:
        raise DamagedFile(f"{path} is damaged or no file of torch.save: {error}") from error
    _check_content(content, path)
    return _without_inert(content)


def _parts(network: _Inert) -> dict[str, Any]:
    """Parameters, buffers and modules of what was a network; nothing of anything else."""
    state = network.state if type(network.state) is dict else {}
    if not isinstance(state.get("_parameters"), dict):
        return {}
    return {name: part for name in ("_parameters", "_buffers", "_modules")
            if isinstance(part := state.get(name), dict)}


def _without_inert(tree: Any) -> Any:
    if isinstance(tree, _Inert):
        parts = _parts(tree)
        if not parts:
            return None
        tensors: dict[str, Any] = {}  # of a network: as its state_dict()
        for kind in ("_parameters", "_buffers"):
            tensors.update(parts.get(kind, {}))
        for name, child in parts.get("_modules", {}).items():
            inside = _without_inert(child) or {}
            tensors.update((f"{name}.{key}", value) for key, value in inside.items())
        return {key: value for key, value in tensors.items() if isinstance(value, torch.Tensor)}
    if isinstance(tree, Mapping):
        return {key: _without_inert(value) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(map(_without_inert, tree))
    return tree if isinstance(tree, torch.Tensor) or type(tree) in _PLAIN else None


def _reason(path: Path, error: BaseException) -> str:
    """Why torch could not read a file, without its advice to read it all the same."""
    with open(path, "rb") as file:
        head = file.read(16)
    if not head.startswith((_ZIP, b"\x80")):
        return f"it begins with {head!r}"
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    return text.split("\n")[0] or type(error).__name__


def _damage(path: Path) -> str | None:
    """What can be said to be wrong with a file before torch reads its content."""
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        return "it is empty"
    if not head.startswith(_ZIP):
        return _TAR if any(head) and tarfile.is_tarfile(path) else None  # of zeros: an empty tar
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            if any(part.filename.endswith("/constants.pkl") for part in parts):
                # torch < 2.3 would load it in spite of weights_only
                return "it is a program of torch.jit, no file of tensors"
            for part in parts:  # before it is unpacked: a thousandth may be on the disk
                if part.compress_type != zipfile.ZIP_STORED:
                    return (f"its part {part.filename[:200]!r} is compressed, which torch.save "
                            "never does: save it anew with torch.save if you trust it")
            if sum(part.file_size for part in parts) > os.path.getsize(path):
                return "its parts overlap: together they are larger than the file"
            broken = archive.testzip()
    except _BROKEN as error:
        return f"it is cut off or changed ({error})"
    return f"its part {broken} differs from its checksum" if broken else None


# instructions of a pickle, by pickletools' names
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_FILLS = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
# the keys that an instruction hashes, of what it takes from the stack
_HASHES = {"SETITEM": slice(1, None, 2), "SETITEMS": slice(1, None, 2), "DICT": slice(0, None, 2),
           "ADDITEMS": slice(1, None), "FROZENSET": slice(None)}
# and what a call may hash, compare or print
_FOLLOWED = {**_HASHES, "BUILD": slice(1, None), **dict.fromkeys(
    ("BINPERSID", "INST", "NEWOBJ", "NEWOBJ_EX", "OBJ", "REDUCE"), slice(None))}


def _check_pickles(path: Path) -> None:
    """Refuses what takes endless time while the pickles in a file are read.

    A few hundred bytes can name a tuple of a tuple twice, forty times over: to hash it as a key
    takes 2^40 steps. This follows the stack of the pickles without building anything.

    Raises:
        ValueError: what the keys hold and the calls are given has more values than 8 for each byte
            of the file, those that are named often counted each time.
        Exception: any of ``_BROKEN``, of what is no pickle.
    """
    # of a whole network, the state of each module holds the modules in it once more
    most = max(8 * os.path.getsize(path), SMALL)
    with open(path, "rb") as file:
        if file.read(4) == _ZIP:
            file.seek(0)
            record = torch.PyTorchFileReader(file).get_record("data.pkl")  # as torch.load does
            _check_pickle(io.BytesIO(record), most)
        else:
            file.seek(0)
            for _ in range(5):  # as in _names
                most = _check_pickle(file, most)


def _check_pickle(file: BinaryIO, most: int) -> int:
    """Checks one pickle; gives what it has left of ``most``."""
    stack: list[Any] = []  # each value is the list of those in it, whatever its kind
    marks: list[list[Any]] = []
    memo: dict[object, Any] = {}
    odd = 0
    for code, argument, _ in pickletools.genops(file):
        name = code.name
        if name == "MARK":
            marks.append(stack)
            stack = []
        elif name in _GETS:
            stack.append(memo[argument])
        elif name in _PUTS:
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name == "DUP":
            stack.append(stack[-1])
        elif not code.stack_before:
            # hashes of long integers can be chosen, hashes of text cannot
            odd += isinstance(argument, int) and argument.bit_length() > 64
            stack.extend([] for _ in code.stack_after)
        else:
            parts, stack = _taken(code, stack, marks)
            if name in _FOLLOWED:
                followed = parts[_FOLLOWED[name]]
                most -= _written_out(followed, most)
                odd += name in _HASHES and sum(map(bool, followed))
            if name in _FILLS:
                parts[0].extend(parts[1:])
                stack.append(parts[0])
            elif code.stack_after:
                stack.append(parts)
        if odd > MOST_ODD_KEYS:
            raise UserError(f"it holds more than {MOST_ODD_KEYS} keys of several parts or "
                            "integers of more than 64 bits")
    return most


def _taken(code: pickletools.OpcodeInfo, stack: list[Any], marks: list[list[Any]]
           ) -> tuple[list[Any], list[Any]]:
    """What an instruction takes from the stack, and the stack without it."""
    parts: list[Any] = []
    takes = len(code.stack_before)
    if pickletools.markobject in code.stack_before:
        parts, stack = stack, marks.pop()
        takes = code.stack_before.index(pickletools.markobject)
    if len(stack) < takes:
        raise UserError("its stack is empty")
    left = len(stack) - takes
    parts = stack[left:] + parts
    del stack[left:]
    return parts, stack


def _written_out(values: list[Any], most: int) -> int:
    """The number of values in some, those that are named often counted each time."""
    count = depth = 0
    while values:
        count += len(values)
        depth += 1
        if depth > DEEPEST_KEY:
            raise UserError(f"a key or a call in it is nested more than {DEEPEST_KEY} deep")
        if count + sum(map(len, values)) > most:
            raise UserError("its keys and calls hold far more values than it has bytes, those "
                            "that it names often counted each time")
        values = [part for value in values for part in value]
    return count


def _forbidden(path: Path, message: str) -> str | None:
    """The first name that a file asks for and that torch refused, None if it refused none.

    A name that belongs to no tensor comes before torch's: torch stops at whatever it meets
    first, and some versions at the format of the pickle, without a name.
    """
    names = list(dict.fromkeys(_names(path)))
    refused = [name for name in names if name in message]
    foreign = [name for name in names if name not in ("builtins.set", "__builtin__.set")
               and name.partition(".")[0] not in ("torch", "collections", "numpy", "_codecs")]
    return next(iter(foreign + refused), None)


def _names(path: Path) -> Iterator[str]:
    """All functions and classes that the pickles in a file ask for, as far as it can be read."""
    with contextlib.suppress(*_BROKEN), open(path, "rb") as file:
        if file.read(4) != _ZIP:
            file.seek(0)
            for _ in range(5):  # the older format: magic number, version, system, content, keys
                yield from _names_in_pickle(file)
        else:
            with zipfile.ZipFile(file) as archive:
                for name in archive.namelist():
                    if name.endswith(".pkl"):
                        yield from _names_in_pickle(archive.open(name))


def _names_in_pickle(file: BinaryIO | Any) -> Iterator[str]:
    """Names of one pickle; in newer ones the two strings on the stack, which may be repeated."""
    texts: list[str] = ["", ""]
    memo: dict[object, str] = {}
    for code, value, _ in pickletools.genops(file):
        if code.name in ("GLOBAL", "INST"):
            yield str(value).replace(" ", ".")
        elif code.name == "STACK_GLOBAL":
            yield ".".join(texts[-2:])
        elif code.name == "MEMOIZE":
            memo[len(memo)] = texts[-1]
        elif code.name.endswith("PUT"):
            memo[value] = texts[-1]
        elif code.name.endswith("GET"):
            texts.append(memo.get(value, ""))
        elif isinstance(value, str):
            texts.append(value)


def newest_that_loads(paths: Iterable[Path]) -> Path | None:
    """The one of the latest epoch of several checkpoints that can be read whole, or None.

    Of one epoch the file that was written last, since a copy has new times. ``model_best.pth`` is
    left out: it was chosen by the labels of the test set, and a run may not go on from such a
    choice.
    """
    found = []
    for path in paths:
        # reading a FIFO would wait for ever
        if not os.path.isfile(path) or path.name == "model_best.pth":
            continue
        with contextlib.suppress(DamagedFile, CodeInFile, OSError):
            content = load_tensors(path)
            if isinstance(content, dict) and "model" in content:
                epoch = content.get("epoch")
                found.append((epoch if type(epoch) is int else -1, path.stat().st_mtime, path))
    return max(found)[2] if found else None


def _join(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)
