"""What options of several benchmarks have in common."""

from __future__ import annotations

import torch


def names(text: str) -> list[str]:
    """Words with commas between them, each once."""
    return list(dict.fromkeys(text.split(",")))


def numbers(text: str) -> list[int]:
    """Integers with commas between them."""
    return [int(part.replace("_", "")) for part in text.split(",")]


numbers.__name__ = "list of integers"  # argparse names it in its error


def device_problem(name: str) -> str | None:
    """What is wrong with a --device."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        return f"--device {name} must be cpu or cuda[:i]"
    if device.type == "cuda" and not torch.cuda.is_available():
        return f"--device {name} needs a GPU, and torch {torch.__version__} finds none"
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        return f"--device {name}: there are {torch.cuda.device_count()} GPUs, from cuda:0 on"
    return None
