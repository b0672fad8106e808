"""Mean teacher: the moving average of the network, whose features other losses take for keys."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..common.errors import UserError

VIEWS = ("second_images", "plain_images")
"""What a batch holds besides "images": the same images, augmented anew and not augmented."""


class Teacher:
    """The moving average of a network's weights and of its running statistics.

    It is training state, as the memory bank is: saved with the checkpoint as an object of its own,
    never trained, evaluated or exported. It is always in evaluation mode, so that what it says of
    an image does not depend on the others of the batch (ICE's is in training mode, on a batch in
    random order).

    Args:
        network: a CAUReID, of which a copy without its memory bank is made.
        momentum: alpha, the weight of the OLD value, 0 <= alpha < 1.

    Attributes:
        network: the average, a network of its own.
        is_filled: whether it has been given weights, by :meth:`reset` or from a checkpoint.

    Raises:
        ValueError: momentum outside [0, 1).
    """

    def __init__(self, network: nn.Module, *, momentum: float) -> None:
        if not 0.0 <= momentum < 1.0:
            raise UserError(f"MODEL.LOSSES.ICE.MOMENTUM {momentum} must be in [0, 1).")
        # the memo says that the bank, which may be large, is copied already: to None
        self.network: nn.Module = copy.deepcopy(
            network, {id(network.memory): None}).requires_grad_(False).eval()
        self.momentum = momentum
        self.is_filled = False

    def reset(self, network: nn.Module) -> None:
        """Takes the weights of a network as they are."""
        self.load_state_dict(network.state_dict())

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """``w <- alpha w + (1 - alpha) w'`` of every weight and running statistic."""
        for own, new in zip(self.network.state_dict().values(), network.state_dict().values(),
                            strict=True):
            if own.is_floating_point():
                own.mul_(self.momentum).add_(new, alpha=1.0 - self.momentum)
            else:
                own.copy_(new)

    @torch.no_grad()
    def keys(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """L2-normalised features (B, D) of each of :data:`VIEWS`, by the view's name.

        Raises:
            ValueError: the batch has none.
        """
        missing = [view for view in VIEWS if view not in batch]
        if missing:
            raise UserError(f"The teacher of MODEL.LOSSES.NAME needs {missing} in each batch: "
                            "give build_pseudo_label_loader views=True.")
        return {view: F.normalize(self.network({**batch, "images": batch[view]}).float(), dim=1)
                for view in VIEWS}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The weights."""
        return self.network.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restores :meth:`state_dict`."""
        self.network.load_state_dict(state)
        self.is_filled = True
