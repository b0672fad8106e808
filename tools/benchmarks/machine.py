"""What the benchmarks say of the machine, and the threads and memory of a process on it."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from caureid_plugin.clustering import memory
from threadpoolctl import threadpool_limits

GIB = 2**30


def limit_threads(threads: int) -> None:
    """Threads of torch, and of every BLAS and OpenMP library that is loaded by now."""
    torch.set_num_threads(threads)
    threadpool_limits(limits=threads)


def machine_name(device: str) -> str:
    """The processor that computes, and its number of usable cores if it is the CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_cpu_words().get('model name', platform.processor() or 'unknown CPU')}, {cores} cores"


def _cpu_words() -> dict[str, str]:
    """What Linux says of the first core."""
    try:
        text = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:  # not Linux
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def machine_facts(args: argparse.Namespace) -> str:
    """A few lines: processors, threads, versions."""
    bfloat16 = {"avx512_bf16", "amx_bf16"} & set(_cpu_words().get("flags", "").split())
    lines = [f"CPU: {machine_name('cpu')}, {args.threads} thread(s) used"
             + (f" ({args.toolbox_threads} by the toolbox)" if args.toolbox_options else "")
             + f", bfloat16 instructions: {', '.join(sorted(bfloat16)) or 'none'}, "
             f"{memory.available():.1f} GiB free, load {os.getloadavg()[0]:.1f} before this run"]
    if args.device != "cpu":
        lines.append(f"GPU: {machine_name(args.device)}, CUDA {torch.version.cuda}")
    packages = ("torch", "numpy", "scipy", "scikit-learn", "numba", "faiss-cpu", "faiss-gpu",
                "fastreid")
    versions = [f"{name} {_version(name)}" for name in packages if _version(name)]
    return "\n".join([*lines, f"Python {platform.python_version()}, " + ", ".join(versions)])


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def current_memory() -> float:
    """GiB that this process has in RAM."""
    return psutil.Process().memory_info().rss / GIB


def forget_peak() -> None:
    """Lets the peak start again from what is in RAM now, where the system can do that (Linux)."""
    # where it cannot, the peak includes the making of the features
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
