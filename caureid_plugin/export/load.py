"""A trained network, from a run folder or from a file that was exported from one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..retrieval import Embedder


def load_embedder(path: Path) -> Embedder:
    """The network of a run folder, or of what caureid export has written.

    Raises:
        ValueError, OSError, ImportError: it cannot be used; says why.
    """
    # a program of torch.jit is refused, and why
    if path.suffix.lower() in (".onnx", ".torchscript", ".safetensors") or (
            path / "model.safetensors").is_file():
        from . import load_export

        return load_export(path)
    from ..retrieval import load_run

    return load_run(path)
