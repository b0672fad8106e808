"""What the neighbour search needs of several processes (torch.distributed)."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

Result = TypeVar("Result")


class PeerError(RuntimeError):
    """Another process has failed, whose own error is the one to look at."""

    is_consequence = True


@dataclass(frozen=True)
class Processes:
    """The processes that share a search; by default only this one.

    Args:
        group: a process group of torch.distributed, None for one process. All its members must
            make the same calls.
    """

    group: dist.ProcessGroup | None = None

    @property
    def size(self) -> int:
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        return 0 if self.group is None else dist.get_rank(self.group)

    @property
    def device(self) -> torch.device:
        """Where the group's back end wants its tensors."""
        if dist.get_backend(self.group) == "nccl":
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")

    def _global_rank(self, rank: int) -> int:
        assert self.group is not None  # or there is nobody to talk to
        return dist.get_global_rank(self.group, rank)

    def from_first(self, work: Callable[[], Result]) -> Result:
        """What ``work()`` returns in the first process, for all of them; what it raises, too."""
        if self.size == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = work()
            except Exception as error:  # noqa: BLE001  raised below, in every process
                outcome[1] = _sendable(error)
        dist.broadcast_object_list(outcome, self._global_rank(0), group=self.group,
                                   device=self.device)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def together(self, work: Callable[[], Result]) -> Result:
        """What ``work()`` returns in each process; if it fails in one, all of them fail."""
        if self.size == 1:
            return work()
        error: Exception | None = None
        try:
            result = work()
        except Exception as raised:  # noqa: BLE001  raised below, once the others know
            error = raised
        messages: list[str | None] = [None] * self.size
        dist.all_gather_object(messages, None if error is None else str(error), group=self.group)
        if error is not None:
            raise error
        for rank, message in enumerate(messages):
            if message is not None:
                raise PeerError(f"process {rank} of {self.size} failed: {message}")
        return result

    def on_this_machine(self) -> int:
        """How many of the processes run on this machine."""
        if self.size == 1:
            return 1
        names: list[str] = [""] * self.size
        dist.all_gather_object(names, socket.gethostname(), group=self.group)
        return names.count(names[self.rank])

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Every process's tensor, all of one shape, in the order of the ranks."""
        if self.size == 1:
            return [tensor]
        sent = tensor.to(self.device).contiguous()
        received = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(received, sent, group=self.group)
        return [part.to(tensor.device) for part in received]

    def share_rows(self, arrays: tuple[np.ndarray, np.ndarray], order: np.ndarray,
                   rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Arrays of which each process filled every ``size``-th block of rows, made whole.

        Args:
            arrays: (N, any), changed in place.
            order: (N,) the row that is dealt out at each position.
            rows: positions of a block; block b was filled by process ``b % size``.
        """
        if self.size == 1:
            return arrays
        for number, start in enumerate(range(0, len(order), rows)):
            block = order[start : start + rows]
            for array in arrays:
                part = torch.from_numpy(array[block]).to(self.device)
                dist.broadcast(part, self._global_rank(number % self.size), group=self.group)
                array[block] = part.cpu().numpy()
        return arrays


def _sendable(error: Exception) -> Exception:
    """The error, or one with its text if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  made here
    except (TypeError, AttributeError, pickle.PicklingError):
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
