"""Camera separation loss (eq. 4), recomputed by loops in double precision."""

import numpy as np
import pytest
import torch
from caureid_plugin.losses import camera_separation_loss

from helpers import plain


@pytest.mark.parametrize("batch, cameras", [(8, 6), (1, 3), (16, 2), (5, 1), (4, 15)])
@pytest.mark.parametrize("spread", [0.01, 1.0, 300.0])
def test_by_loops(batch, cameras, spread):
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(batch, cameras, generator=generator).double()
    camids = torch.randint(cameras, (batch,), generator=generator)
    loss = camera_separation_loss(logits, camids)
    assert loss.shape == ()
    expected = np.mean([plain.cross_entropy(scores, camera) for scores, camera in zip(
        logits.tolist(), camids.tolist(), strict=True)])
    assert loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_gradient():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(5, 4, generator=generator).double().requires_grad_()
    camids = torch.tensor([0, 3, 1, 1, 2])
    assert torch.autograd.gradcheck(lambda x: camera_separation_loss(x, camids), logits)


@pytest.mark.parametrize("camids, low, high", [([0, 3], 0, 3), ([0, -1], -1, 0), ([7, 7], 7, 7)])
def test_camera_out_of_range(camids, low, high):
    with pytest.raises(ValueError) as error:
        camera_separation_loss(torch.randn(2, 3), torch.tensor(camids))
    for part in (f"from {low} to {high}", "logits have 3 columns"):
        assert part in str(error.value)
