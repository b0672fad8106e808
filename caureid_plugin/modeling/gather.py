"""Gathering a batch over processes, with the gradient of one big batch."""

from __future__ import annotations

import torch
from fastreid.layers import GatherLayer
from fastreid.utils import comm


def gather_batch(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Concatenates each (B, ...) tensor over all processes, in the order of the ranks.

    Floating tensors keep their gradient. DistributedDataParallel averages gradients over W
    processes, while a loss on the gathered batch is computed whole on each of them; the gradient
    is therefore scaled by W, so that the average is the gradient of the whole batch.

    Returns:
        One (W * B, ...) tensor for each argument.
    """
    world = comm.get_world_size()
    if world == 1:
        return tensors
    gathered = []
    for tensor in tensors:
        if tensor.requires_grad:
            tensor = tensor * world - tensor.detach() * (world - 1)
        gathered.append(torch.cat(GatherLayer.apply(tensor.contiguous())))
    return tuple(gathered)
