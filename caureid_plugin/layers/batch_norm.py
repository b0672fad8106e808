"""Batch norm whose statistics are taken over contiguous groups of the batch.

SpCL, ClusterContrast and PPLR train on four GPUs, so that each batch norm sees 16 contiguous
images (four identities); the same code on one GPU with one group of 64 loses 10 to 20 mAP (their
issue threads). FastReID's ``GhostBN`` does not give these groups: its view interleaves samples.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over groups of ``group_size`` neighbouring images of the batch.

    In training each group is normalised by its own mean and variance; the running statistics move
    once per step, towards the mean of the groups' statistics. In evaluation it is plain batch
    norm, and its state dict is that of ``nn.BatchNorm2d``.

    Args:
        num_features: C.
        group_size: images per group; 0 means one group. A batch that is no multiple of it keeps
            ``B // group_size`` groups, the last one taking the remainder too; a smaller batch is
            one group.

    Shape:
        - input, output: (B, C, H, W)

    Raises:
        ValueError: ``group_size`` negative or 1.
    """

    def __init__(self, num_features: int, group_size: int = 16, **kwargs: Any) -> None:
        super().__init__(num_features, **kwargs)
        if group_size < 0 or group_size == 1:
            raise ValueError(f"group_size {group_size} must be 0, for one group, or at least 2: a "
                             "single value has no variance.")
        self.group_size = group_size

    def _group_sizes(self, batch: int) -> list[int]:
        count = max(1, batch // self.group_size) if self.group_size else 1
        sizes = [self.group_size] * (count - 1)
        return [*sizes, batch - sum(sizes)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sizes = self._group_sizes(len(x))
        if not self.training or len(sizes) == 1:
            return super().forward(x)
        if self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        groups = zip(x.split(sizes), self._momenta(len(sizes)), strict=True)
        return torch.cat([
            F.batch_norm(group, self.running_mean, self.running_var, self.weight, self.bias, True,
                         momentum, self.eps)
            for group, momentum in groups
        ])

    def _momenta(self, count: int) -> list[float]:
        """Momentum of each group, so that all groups together are one step towards their mean.

        The groups move the running statistics one after the other. With ``m / (G - (G - g) m)``
        for group g = 1..G, what the later ones leave of the earlier telescopes: in the end the old
        value weighs 1 - m and each group m / G, without a copy of the statistics for each group.
        """
        momentum = self.momentum
        if momentum is None:  # torch's convention for a cumulative average
            steps = self.num_batches_tracked if self.track_running_stats else None
            momentum = 0.0 if steps is None else 1.0 / float(steps)
        return [momentum / (count - later * momentum) for later in reversed(range(count))]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, group_size={self.group_size}"


def convert_grouped_batch_norm(module: nn.Module, group_size: int) -> nn.Module:
    """Replaces every plain batch norm inside ``module`` by a :class:`GroupedBatchNorm2d`.

    Parameters and buffers are shared, not copied, so frozen weights stay frozen and the names in
    the state dict do not change.

    Args:
        module: changed in place.
        group_size: images per group; 0 leaves the module as it is.

    Returns:
        The module (a new one only if ``module`` itself is a batch norm).
    """
    if group_size == 0:
        return module
    # a norm with a forward of its own (FastReID's GhostBN, say) was chosen on purpose
    if isinstance(module, nn.BatchNorm2d) and type(module).forward is nn.BatchNorm2d.forward:
        grouped = GroupedBatchNorm2d(
            module.num_features, group_size, eps=module.eps, momentum=module.momentum,
            affine=module.affine, track_running_stats=module.track_running_stats)
        for name, parameter in module.named_parameters(recurse=False):
            setattr(grouped, name, parameter)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(grouped, name, buffer)
        return grouped.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, convert_grouped_batch_norm(child, group_size))
    return module
