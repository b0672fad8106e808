"""How one repair is declared, applied and taken back."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any


class Patches:
    """Remembers every replaced attribute, so that a repair can be taken back."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def set(self, owner: object, name: str, value: object) -> None:
        if name in vars(owner):
            self._undo.append(functools.partial(setattr, owner, name, vars(owner)[name]))
        else:
            self._undo.append(functools.partial(delattr, owner, name))
        setattr(owner, name, value)

    def everywhere(self, old: object, new: object) -> None:
        """Replaces ``old`` under every name by which a loaded toolbox module knows it."""
        for module_name, module in list(sys.modules.items()):
            if module is None or module_name.split(".")[0] != "fastreid":
                continue
            for name, value in list(vars(module).items()):
                if value is old:
                    self.set(module, name, new)

    def wrap(self, owner: object, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Replaces a function by the decorated one, which is given the function first.

        A module's function is replaced :meth:`everywhere`.
        """
        original = getattr(owner, name)

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(original)
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                return function(original, *args, **kwargs)

            if isinstance(owner, types.ModuleType):
                self.everywhere(original, wrapped)
            else:
                self.set(owner, name, wrapped)
            return function

        return decorate

    def revert(self) -> None:
        while self._undo:
            self._undo.pop()()


@dataclasses.dataclass
class Repair:
    """One defect of the toolbox and what repairs it.

    Attributes:
        name: short name.
        upstream: file and line in FastReID 1.4.0.
        symptom: what a user saw.
        versions: where it was seen.
        is_broken: probe that shows the defect; the repair is applied only where it returns True.
    """

    name: str
    upstream: str
    symptom: str
    versions: str
    is_broken: Callable[[], bool]
    _change: Callable[[Patches], None]
    _patches: Patches | None = None

    @property
    def room(self) -> str:
        """Module of :mod:`caureid_plugin.compat` that holds it."""
        return self._change.__module__.rpartition(".")[2]

    @property
    def applied(self) -> bool:
        return self._patches is not None

    def apply(self) -> None:
        """Applies the repair if it is not applied already and the defect is there."""
        if not self.applied and self.is_broken():
            self._switch_on()

    def _switch_on(self) -> None:
        self._patches = Patches()
        self._change(self._patches)

    def revert(self) -> None:
        if self._patches is not None:
            self._patches.revert()
            self._patches = None


REPAIRS: dict[str, Repair] = {}


def always() -> bool:
    return True


def repair(*, upstream: str, symptom: str, versions: str, broken: Callable[[], bool] = always):
    def register(change: Callable[[Patches], None]):
        name = change.__name__.strip("_")
        REPAIRS[name] = Repair(name, upstream, symptom, versions, broken, change)
        return change

    return register


@contextlib.contextmanager
def without(name: str) -> Iterator[None]:
    """Switches one repair off for a block, for tests and for reproducing a defect.

    Repairs applied after it are taken back first and applied again, because several may wrap the
    same function.

    Raises:
        KeyError: no repair of that name.
    """
    if name not in REPAIRS:
        raise KeyError(f"There is no repair {name!r}, known are {sorted(REPAIRS)}.")
    applied = [repair for repair in REPAIRS.values() if repair.applied]
    for repair in reversed(applied):
        repair.revert()
    for repair in applied:
        if repair.name != name:
            repair._switch_on()  # it was needed before: not probed again
    try:
        yield
    finally:
        for repair in reversed(applied):
            repair.revert()
        for repair in applied:
            repair._switch_on()


def apply_all(rooms: Sequence[str]) -> None:
    """Applies every repair whose defect is present, room by room. Called once, on import."""
    ordered = sorted(REPAIRS.items(), key=lambda item: rooms.index(item[1].room))
    REPAIRS.clear()
    REPAIRS.update(ordered)
    for repair in REPAIRS.values():
        repair.apply()


def raises(action: Callable[[], object], kind: type[BaseException] = Exception) -> bool:
    try:
        action()
    except kind:
        return True
    return False
