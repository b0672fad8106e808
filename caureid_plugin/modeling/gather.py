"""What several processes share: the batch, and the running statistics of batch norm."""

from __future__ import annotations

import torch
from fastreid.layers import GatherLayer
from fastreid.utils import comm
from torch import nn


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
        scaled = tensor
        if tensor.requires_grad:
            scaled = tensor * world - tensor.detach() * (world - 1)
        gathered.append(torch.cat(GatherLayer.apply(scaled.contiguous())))
    return tuple(gathered)


@torch.no_grad()
def average_running_statistics(model: nn.Module) -> None:
    """Gives every process the mean of all processes' running statistics of batch norm.

    Each process has seen the groups of its own part of the batches only. The statistics are linear
    in the groups' statistics, so that the mean is what one process with the whole batch would hold.
    """
    world = comm.get_world_size()
    if world == 1:
        return
    buffers = [buffer for module in model.modules()
               if isinstance(module, nn.BatchNorm2d) and module.track_running_stats
               for buffer in (module.running_mean, module.running_var) if buffer is not None]
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    torch.distributed.all_reduce(flat)
    flat /= world
    for buffer, mean in zip(buffers, flat.split([buffer.numel() for buffer in buffers]),
                            strict=True):
        buffer.copy_(mean.view_as(buffer))
