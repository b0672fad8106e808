"""Repairs so that a run of several processes starts, meets and ends together."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import threading
import time
from collections.abc import Sequence

import fastreid.engine.defaults as _defaults
import torch
from fastreid.utils import comm
from torch.distributed.elastic.multiprocessing.errors import record

from ..common.errors import UserError
from ..common.launcher import PortError, check_address, check_port, run_processes
from ..common.signals import JOIN_SECONDS
from .importing import toolbox_launch
from .repair import Patches, repair


def _ddp(model, device_ids=None, **kwargs):
    on_cpu = next(model.parameters()).device.type == "cpu"
    synced = [name for name, part in model.named_modules()
              if on_cpu and isinstance(part, torch.nn.SyncBatchNorm)]
    if synced:
        raise UserError(
            "syncBN needs a GPU for each process, and several processes on the CPU have it, first "
            f"in {synced[0]}: set MODEL.BACKBONE.NORM and MODEL.HEADS.NORM to BN, or train in one "
            "process (--num-gpus 1).")
    return torch.nn.parallel.DistributedDataParallel(
        model, device_ids=None if on_cpu else device_ids, **kwargs)


@repair(
    upstream="engine/defaults.py:211 (DistributedDataParallel(device_ids=[rank]))",
    symptom="several processes on the CPU: ValueError, device_ids is for GPU modules; with syncBN "
    "an error that names no key",
    versions="all",
)
def _ddp_on_cpu(patch: Patches) -> None:
    patch.set(_defaults, "DistributedDataParallel", _ddp)


# Seconds that a process waits for another in the middle of a run. Only the first one saves, ranks
# and clusters, which may take long; torch's own limit for gloo.
HANG_SECONDS = 1800.0
# Seconds in which all processes that wait for one that hangs notice it; the launcher's patience
# with those that are left is longer.
NOTICE_SECONDS = 3.0


def _init_process(rank: int, local_rank: int, local_size: int, world_size: int, url: str,
                  join_seconds: float = JOIN_SECONDS) -> None:
    """Joins the process group and sets the group of this machine, as the toolbox's comm needs."""
    cuda = torch.cuda.is_available()
    if cuda and local_size > torch.cuda.device_count():
        raise UserError(
            f"--num-gpus {local_size} was asked for, but this machine has "
            f"{torch.cuda.device_count()} CUDA devices.")
    if cuda:
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_size))
    known = ({"store": _meet(rank, local_size, world_size, url, join_seconds)}
             if url.startswith("tcp://") else {"init_method": url})
    torch.distributed.init_process_group(
        "nccl" if cuda else "gloo", world_size=world_size, rank=rank,
        timeout=datetime.timedelta(seconds=HANG_SECONDS), **known)
    for machine in range(world_size // local_size):
        ranks = list(range(machine * local_size, (machine + 1) * local_size))
        group = torch.distributed.new_group(ranks)
        if rank in ranks:
            comm._LOCAL_PROCESS_GROUP = group
    comm.synchronize()


def _meet(rank: int, local_size: int, world_size: int, url: str, seconds: float):
    """Waits until all processes of the run are there; returns the store through which they talk.

    Raises:
        RuntimeError: they did not all come within the time, or two have the same rank.
    """
    machines = (f"--num-machines {world_size // local_size} with --num-gpus {local_size} each at "
                f"--dist-url {url}")
    limit, start = datetime.timedelta(seconds=seconds), time.monotonic()
    try:
        store, _, _ = next(torch.distributed.rendezvous(url, rank, world_size, timeout=limit))
        # of processes that count otherwise there is no trace, and the wait says so
        present = [f"caureid/{world_size}/{local_size}/{other}" for other in range(world_size)]
        taken = store.add(present[rank], 1) > 1
        if not taken:
            store.wait(present, limit)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"Process {rank} of {machines} waited {time.monotonic() - start:.0f} s for the others, "
            f"of {seconds:g} s (--join-timeout), and not all came, or the port is taken. Is every "
            "machine started, with the same three options and a --machine-rank of its own, and "
            "does --dist-url name machine 0 and a free port of it? For several runs on one "
            "machine, take --dist-url auto. "
            f"({type(error).__name__}: {str(error).splitlines()[0]})") from error
    if taken:
        raise UserError(
            f"There are two processes {rank} of {machines}: give every machine a --machine-rank "
            "of its own, and every run a port (--dist-url auto takes a free one).")
    store.set_timeout(datetime.timedelta(seconds=HANG_SECONDS))
    return store


def _leave_process_group() -> None:
    torch.distributed.destroy_process_group()
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()


def _run_in_group(main_func, args) -> None:
    """Runs the function and leaves the group, unless it fails: others may wait in it for ever.

    Raises:
        ProcessHangs: others were waited for in vain; names them.
    """
    try:
        main_func(*args)
    except SystemExit:  # all processes have agreed to stop
        _leave_process_group()
        raise
    except Exception as error:
        has_waited = isinstance(error, RuntimeError) and _WAITED.search(str(error))
        missing = _who_is_missing(has_waited=bool(has_waited))
        if missing:
            raise ProcessHangs(
                f"{_processes_named(missing)} of {comm.get_world_size()} (counted from 0) did not "
                f"come to where process {comm.get_rank()} waited {HANG_SECONDS:g} s: look at what "
                "it does there (py-spy dump --pid shows it), at its disk and its memory. "
                "--resume goes on from the last checkpoint.") from error
        raise
    _leave_process_group()


class ProcessHangs(RuntimeError):
    """Another process did not come to where this one waited for it."""


# what gloo says of a time limit
_WAITED = re.compile(r"timed out waiting|(application|socket|wait) timeout", re.IGNORECASE)


def _processes_named(ranks: Sequence[int]) -> str:
    return f"Process {ranks[0]}" if len(ranks) == 1 else f"Processes {list(ranks)}"


def _who_is_missing(*, has_waited: bool) -> list[int]:
    """Says in the store that this process has failed; which ranks say nothing, if it has waited.

    A process that hangs is the one that does not say so: those that wait for it run into the
    time limit, and lose their connections as others do. The store is asked in a thread: where it
    does not answer, it is the first process, which keeps it, that hangs.
    """
    store = torch.distributed.distributed_c10d._get_default_store()
    rank, world_size = comm.get_rank(), comm.get_world_size()
    silent: list[int] | None = None

    def ask() -> None:
        nonlocal silent
        with contextlib.suppress(RuntimeError):  # the store is gone with the first process
            store.set(f"caureid/failed/{rank}", "")
            end = time.monotonic() + NOTICE_SECONDS
            while has_waited and silent != [] and time.monotonic() < end:
                silent = [other for other in range(world_size)
                          if not store.check([f"caureid/failed/{other}"])]
                time.sleep(0.1)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(NOTICE_SECONDS + 1.0 if has_waited else 1.0)
    if not has_waited:
        return []
    return [0] if silent is None else silent


def _worker(local_rank, main_func, world_size, local_size, machine_rank, url, join_seconds,
            args) -> None:
    rank = machine_rank * local_size + local_rank
    _init_process(rank, local_rank, local_size, world_size, url, join_seconds)
    _run_in_group(main_func, args)


def _check_machines(num_gpus: int, num_machines: int, machine_rank: int, dist_url) -> None:
    if num_gpus < 1 or num_machines < 1:
        raise PortError(f"--num-gpus {num_gpus} and --num-machines {num_machines} must be at "
                         "least 1; without CUDA, --num-gpus counts processes.")
    if not 0 <= machine_rank < num_machines:
        raise PortError(f"--machine-rank {machine_rank} must be from 0 to {num_machines - 1}: "
                         f"there are --num-machines {num_machines}.")
    if dist_url in (None, "auto"):
        if num_machines > 1:
            raise PortError("--dist-url auto works on one machine only: give tcp://host:port.")
    elif num_machines * num_gpus > 1:  # else nobody is to be met
        check_address(dist_url)
        if machine_rank == 0:
            check_port(dist_url)


def launch(main_func, num_gpus_per_machine, num_machines=1, machine_rank=0, dist_url=None, args=(),
           *, join_seconds=JOIN_SECONDS):
    """Runs ``main_func(*args)`` in every process; the toolbox's ``launch``, with or without CUDA.

    Under ``torchrun`` (which starts the processes itself) it joins the group that torchrun
    describes. Without CUDA the processes talk through gloo and share the machine's cores. How
    processes are watched over and ended: :func:`caureid_plugin.common.launcher.run_processes`.

    Args:
        main_func: picklable function run in every process.
        num_gpus_per_machine: processes on this machine (GPUs, or CPU processes without CUDA).
        num_machines, machine_rank: as in the toolbox.
        dist_url: ``tcp://host:port``, or "auto" for a free port of this machine.
        args: arguments of ``main_func``.
        join_seconds: for all processes of all machines to start.

    Raises:
        ValueError: numbers of processes, machines or a rank that cannot be.
        PortError: ``dist_url`` is no such address, nothing knows its host, or its port is taken on
            this machine, which is to offer it.
        ProcessError: a process failed.
        SystemExit: the run was stopped by a signal.
    """
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        _init_process(int(env["RANK"]), int(env["LOCAL_RANK"]), int(env["LOCAL_WORLD_SIZE"]),
                      int(env["WORLD_SIZE"]), "env://")
        # so that torchrun's summary shows the error of the process that failed first
        record(_run_in_group)(main_func, args)
        return
    _check_machines(num_gpus_per_machine, num_machines, machine_rank, dist_url)
    world_size = num_machines * num_gpus_per_machine
    if world_size == 1:
        main_func(*args)
        return
    if dist_url in (None, "auto"):
        dist_url = f"tcp://127.0.0.1:{toolbox_launch._find_free_port()}"
    run_processes(
        _worker, num_gpus_per_machine, first_rank=machine_rank * num_gpus_per_machine,
        world_size=world_size, args=(main_func, world_size, num_gpus_per_machine, machine_rank,
                                     dist_url, join_seconds, args))


@repair(
    upstream="engine/launch.py:74 (_distributed_worker)",
    symptom="several processes assert CUDA and NCCL; torchrun starts N independent runs; a signal "
    "to the launcher leaves its processes behind, the error shown may be that of a victim, and a "
    "machine that never comes is waited for half an hour",
    versions="all",
)
def _processes(patch: Patches) -> None:
    patch.everywhere(toolbox_launch.launch, launch)
