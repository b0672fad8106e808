"""One pass of the network over a set of images."""

from __future__ import annotations

import torch
from fastreid.evaluation import inference_context
from fastreid.utils import comm
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm


@torch.no_grad()
def extract_features(model: nn.Module, loader: DataLoader) -> torch.Tensor:
    """Embeddings of all images of a loader whose batches carry "indexes".

    Every process extracts its share and receives all of them. A bar shows the progress when a
    terminal watches.

    Args:
        model: maps a batch to embeddings in evaluation mode; its mode is restored afterwards.
        loader: as :func:`caureid_plugin.data.build_extraction_loader` gives it.

    Returns:
        (N, D) float32 on the CPU, row i for index i.
    """
    rows, parts = [], []
    hidden = None if comm.is_main_process() else True  # None: shown on a terminal only
    # module by module: parts of a training network may be frozen in evaluation mode
    modes = [(module, module.training) for module in model.modules()]
    try:
        with inference_context(model):
            for batch in tqdm(loader, desc="features", disable=hidden, leave=False):
                parts.append(model(batch).float().cpu())
                rows.append(batch["indexes"].cpu())
    finally:
        for module, training in modes:
            module.training = training
        loader.shutdown()
    gathered = comm.all_gather((torch.cat(rows), torch.cat(parts)))
    rows = torch.cat([part[0] for part in gathered])
    features = torch.cat([part[1] for part in gathered])
    ordered = torch.empty_like(features)
    ordered[rows] = features
    return ordered
