"""GroupedBatchNorm2d against torch's own batch norm on each group and against hand computation."""

import copy

import numpy as np
import pytest
import torch
from caureid_plugin.layers import GroupedBatchNorm2d, convert_grouped_batch_norm
from fastreid.layers import get_norm
from fastreid.layers.batch_norm import GhostBatchNorm
from torch import nn

# batch, group size, sizes of the groups
SPLITS = [
    (12, 4, [4, 4, 4]),
    (11, 4, [4, 7]),  # the remainder joins the last group
    (7, 4, [7]),
    (3, 4, [3]),  # smaller than a group
    (6, 0, [6]),
]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def randomise(norm, seed):
    generator = torch.Generator().manual_seed(seed)
    norm.weight.data.uniform_(0.5, 1.5, generator=generator)
    norm.bias.data.normal_(generator=generator)
    norm.running_mean.normal_(generator=generator)
    norm.running_var.uniform_(0.5, 2.0, generator=generator)
    return norm


def batch_of(size, seed, channels=5):
    """Images whose statistics differ from one to the next, so that the grouping matters."""
    x = torch.randn(size, channels, 4, 3, generator=torch.Generator().manual_seed(50 + seed))
    drift = torch.arange(size)[:, None, None, None]
    return (x * (1 + 0.3 * drift) + drift).double()


def plain_copy(norm):
    """An nn.BatchNorm2d with the same parameters and statistics."""
    plain = nn.BatchNorm2d(norm.num_features, eps=norm.eps, momentum=norm.momentum).double()
    plain.load_state_dict(copy.deepcopy(norm.state_dict()))
    return plain


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch, group_size, sizes", SPLITS)
def test_each_group_is_normalised_alone(batch, group_size, sizes, layout):
    """Values, gradients and layout in memory are those of the groups computed separately."""
    norm = randomise(GroupedBatchNorm2d(5, group_size, eps=1e-3, momentum=0.3).double(), 1)
    whole = plain_copy(norm)(batch_of(batch, 2))
    pull = torch.randn(batch, 5, 4, 3, generator=torch.Generator().manual_seed(9)).double()
    parts = [part.clone().requires_grad_() for part in batch_of(batch, 2).split(sizes)]
    separate = [plain_copy(norm) for _ in sizes]
    expected = torch.cat([plain(part) for plain, part in zip(separate, parts, strict=True)])
    (expected * pull).sum().backward()
    x = batch_of(batch, 2).contiguous(memory_format=layout).requires_grad_()
    y = norm(x)
    (y * pull.contiguous(memory_format=layout)).sum().backward()
    for tensor in (y, x.grad):
        assert [f for f in LAYOUTS if tensor.is_contiguous(memory_format=f)] == [layout]
    exactly = dict(rtol=0, atol=1e-11)
    torch.testing.assert_close(y, expected, **exactly)
    torch.testing.assert_close(x.grad, torch.cat([part.grad for part in parts]), **exactly)
    for name in ("weight", "bias"):
        grads = [getattr(plain, name).grad for plain in separate]
        torch.testing.assert_close(getattr(norm, name).grad, sum(grads), **exactly)
    if len(sizes) > 1:
        assert (y - whole).abs().max() > 0.1, "groups must matter in this batch"


@pytest.mark.parametrize("batch, group_size, sizes", SPLITS)
@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0, None])
def test_running_statistics_by_hand(batch, group_size, sizes, momentum):
    norm = randomise(GroupedBatchNorm2d(5, group_size, momentum=momentum).double(), 3)
    mean, variance = norm.running_mean.numpy().copy(), norm.running_var.numpy().copy()
    for step in range(2):
        x = batch_of(batch, step)
        means, variances = [], []
        for group in np.split(x.numpy(), np.cumsum(sizes)[:-1]):
            means.append(group.mean(axis=(0, 2, 3)))
            variances.append(group.var(axis=(0, 2, 3), ddof=1))
        new = 1 / (step + 1) if momentum is None else momentum  # None: the mean of all steps
        mean = (1 - new) * mean + new * np.mean(means, axis=0)
        variance = (1 - new) * variance + new * np.mean(variances, axis=0)
        norm(x)
        np.testing.assert_allclose(norm.running_mean, mean, rtol=1e-12)
        np.testing.assert_allclose(norm.running_var, variance, rtol=1e-12)
        assert norm.num_batches_tracked == step + 1


@pytest.mark.parametrize("batch, group_size, sizes", SPLITS)
def test_evaluation_is_plain_batch_norm(batch, group_size, sizes):
    norm = randomise(GroupedBatchNorm2d(5, group_size).double(), 2).eval()
    before = copy.deepcopy(norm.state_dict())
    x = batch_of(batch, 0)
    assert torch.equal(norm(x), plain_copy(norm).eval()(x))
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name])


def test_without_running_statistics():
    norm = GroupedBatchNorm2d(5, 4, track_running_stats=False, affine=False).double()
    plain = nn.BatchNorm2d(5, track_running_stats=False, affine=False).double()
    x = batch_of(8, 0)
    torch.testing.assert_close(norm(x), torch.cat([plain(x[:4]), plain(x[4:])]))
    assert norm.running_mean is None


@pytest.mark.parametrize("size", [-1, 1])
def test_group_size_out_of_range(size):
    with pytest.raises(ValueError, match=f"group_size {size} must be"):
        GroupedBatchNorm2d(4, size)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        neck = get_norm("BN", 4, bias_freeze=True)  # a subclass
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-2, momentum=0.4))
        self.blocks = nn.ModuleList([nn.Sequential(nn.ReLU(), nn.Sequential(neck))])
        self.bare = nn.BatchNorm2d(4, affine=False)
        self.other = nn.BatchNorm1d(4)
        self.ghost = get_norm("GhostBN", 4)  # has a forward of its own


def test_convert_shares_everything_and_keeps_names():
    model = Nested()
    model.stem[1].eval()
    names = list(model.state_dict())
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    assert convert_grouped_batch_norm(model, 4) is model
    assert list(model.state_dict()) == names
    after = dict(model.named_parameters())
    assert list(after) == list(parameters)
    assert all(after[name] is parameters[name] for name in parameters)
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
    assert not model.blocks[0][1][0].bias.requires_grad
    converted = [model.stem[1], model.blocks[0][1][0], model.bare]
    assert all(type(norm) is GroupedBatchNorm2d for norm in converted)
    assert all(norm.group_size == 4 for norm in converted)
    assert (model.stem[1].eps, model.stem[1].momentum) == (1e-2, 0.4)
    assert [norm.training for norm in converted] == [False, True, True]
    assert type(model.other) is nn.BatchNorm1d
    assert type(model.ghost) is GhostBatchNorm
    assert convert_grouped_batch_norm(model.bare, 4) is model.bare, "it is converted already"


def test_convert_with_group_size_zero_leaves_the_module():
    model = Nested()
    before = list(model.modules())
    assert convert_grouped_batch_norm(model, 0) is model and list(model.modules()) == before
