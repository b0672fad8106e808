"""One pass of the network over a set of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from fastreid.evaluation import inference_context
from fastreid.utils import comm
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..common.errors import NotFinite


@torch.no_grad()
def extract_features(model: nn.Module, loader: DataLoader[dict[str, Any]], *,
                     after_batch: Callable[[], None] = lambda: None) -> torch.Tensor:
    """Embeddings of all images of a loader whose batches carry "indexes".

    Every process extracts its share and receives all of them. A bar shows the progress when a
    terminal watches.

    Args:
        model: maps a batch to embeddings in evaluation mode; its mode is restored afterwards.
        loader: as :func:`caureid_plugin.data.build_extraction_loader` gives it.
        after_batch: called after each batch, and equally often in every process; what it raises
            ends the pass.

    Returns:
        (N, D) float32 on the CPU, row i for index i.

    Raises:
        FloatingPointError: an embedding is NaN or infinite, in all processes; names the first
            image.
    """
    rows, parts = [], []
    rounds = max(comm.all_gather(len(loader)))
    hidden = None if comm.is_main_process() else True  # None: shown on a terminal only
    # module by module: parts of a training network may be frozen in evaluation mode
    modes = [(module, module.training) for module in model.modules()]
    try:
        with inference_context(model):
            for batch in tqdm(loader, desc="features", disable=hidden, leave=False):
                parts.append(model(batch).float().cpu())
                rows.append(batch["indexes"].cpu())
                after_batch()
            for _ in range(rounds - len(loader)):  # others have more batches
                after_batch()
    finally:
        for module, training in modes:
            module.training = training
        loader.shutdown()  # type: ignore[attr-defined]  # the toolbox's loader, as repaired
    # lists: with more processes than images, one has nothing to concatenate
    gathered = comm.all_gather((rows, parts))
    features = torch.cat([part for share in gathered for part in share[1]])
    ordered = torch.empty_like(features)
    ordered[torch.cat([part for share in gathered for part in share[0]])] = features
    images: Any = loader.dataset  # UnlabelledImages
    _check_finite(ordered, images.paths)
    return ordered


def _check_finite(features: torch.Tensor, paths: Sequence[str]) -> None:
    bad = (~torch.isfinite(features).all(dim=1)).nonzero().flatten().tolist()
    if not bad:
        return
    reason = "look at that image first"
    if len(bad) == len(features):
        reason = ("the network's weights or the running statistics of its batch norm, which "
                  "evaluation uses, are not finite (at the start: what comes from MODEL.WEIGHTS or "
                  "MODEL.BACKBONE.PRETRAIN_PATH)")
    raise NotFinite(
        f"The embedding of {len(bad)} of {len(features)} images is NaN or infinite in evaluation "
        f"mode, the first is that of {paths[bad[0]]}: {reason}.")
