"""Camera separation loss (eq. 4), recomputed by loops in double precision."""

import math

import pytest
import torch
from caureid_plugin.losses import camera_separation_loss


def plain_loss(logits, camids):
    losses = []
    for scores, camera in zip(logits.tolist(), camids.tolist(), strict=True):
        top = max(scores)
        total = math.fsum(math.exp(score - top) for score in scores)
        losses.append(math.log(total) + top - scores[camera])
    return math.fsum(losses) / len(losses)


@pytest.mark.parametrize("batch, cameras", [(8, 6), (1, 3), (16, 2), (5, 1), (4, 15)])
@pytest.mark.parametrize("spread", [0.01, 1.0, 300.0])
def test_by_loops(batch, cameras, spread):
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(batch, cameras, generator=generator).double()
    camids = torch.randint(cameras, (batch,), generator=generator)
    loss = camera_separation_loss(logits, camids)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(plain_loss(logits, camids), rel=1e-12, abs=1e-12)


def test_known_values():
    camids = torch.tensor([0, 1, 2, 2])
    assert camera_separation_loss(torch.zeros(4, 3), camids).item() == pytest.approx(math.log(3))
    assert camera_separation_loss(torch.randn(4, 1), torch.zeros(4).long()).item() == 0.0


def test_gradient():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(5, 4, generator=generator).double().requires_grad_()
    camids = torch.tensor([0, 3, 1, 1, 2])
    assert torch.autograd.gradcheck(lambda x: camera_separation_loss(x, camids), logits)
    camera_separation_loss(logits, camids).backward()
    wanted = torch.softmax(logits.detach(), dim=1)
    for row, camera in enumerate(camids):
        wanted[row, camera] -= 1
    torch.testing.assert_close(logits.grad, wanted / 5)


@pytest.mark.parametrize("camids, low, high", [([0, 3], 0, 3), ([0, -1], -1, 0), ([7, 7], 7, 7)])
def test_camera_out_of_range(camids, low, high):
    with pytest.raises(ValueError) as error:
        camera_separation_loss(torch.randn(2, 3), torch.tensor(camids))
    assert f"from {low} to {high}" in str(error.value) and "3 outputs" in str(error.value)
    assert "MODEL.HEADS.CAMSEP.NUM_CAMERAS" in str(error.value)


def test_the_last_camera_is_in_range():
    assert camera_separation_loss(torch.zeros(2, 3), torch.tensor([2, 2])).item() > 0
