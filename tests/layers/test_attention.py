"""HarmoniousAttention against a recomputation in NumPy from the module's own weights."""

import copy

import numpy as np
import pytest
import torch
from caureid_plugin.layers import HarmoniousAttention


def array(tensor):
    return tensor.detach().numpy()


def plain_conv(x, weight, stride):
    """(B, I, H, W) with (O, I, k, k), zero padding k // 2, by loops over the output places."""
    size = weight.shape[-1]
    padded = np.pad(x, [(0, 0), (0, 0), (size // 2,) * 2, (size // 2,) * 2])
    rows = range(0, padded.shape[2] - size + 1, stride)
    columns = range(0, padded.shape[3] - size + 1, stride)
    y = np.zeros((len(x), len(weight), len(rows), len(columns)))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            window = padded[:, :, row:row + size, column:column + size]
            for channel, kernel in enumerate(weight):
                y[:, channel, i, j] = (window * kernel).sum(axis=(1, 2, 3))
    return y


def plain_norm(x, norm, training):
    mean, variance = array(norm.running_mean), array(norm.running_var)
    if training:
        mean, variance = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
    scale = array(norm.weight) / np.sqrt(variance + norm.eps)
    return (x - mean[:, None, None]) * scale[:, None, None] + array(norm.bias)[:, None, None]


def plain_block(x, block, training, stride=1):
    conv, norm = block
    return plain_norm(plain_conv(x, array(conv.weight), stride), norm, training)


def plain_bilinear(x, height, width):
    """Pixels are areas: the centre of output i lies at (i + 0.5) * in / out - 0.5."""

    def weights(size_in, size_out):
        table = np.zeros((size_out, size_in))
        for i in range(size_out):
            place = max(0.0, (i + 0.5) * size_in / size_out - 0.5)
            low = int(place)
            high = min(low + 1, size_in - 1)
            table[i, low] += 1 - (place - low)
            table[i, high] += place - low
        return table

    rows, columns = weights(x.shape[2], height), weights(x.shape[3], width)
    return np.einsum("hi,bcij,wj->bchw", rows, x, columns)


def plain_mask(module, x, training):
    spatial = x.mean(axis=1, keepdims=True)
    spatial = np.maximum(plain_block(spatial, module.spatial_reduce, training, stride=2), 0)
    spatial = plain_bilinear(spatial, *x.shape[2:])
    spatial = np.maximum(plain_block(spatial, module.spatial_refine, training), 0)
    channel = x.mean(axis=(2, 3), keepdims=True)
    channel = np.maximum(plain_block(channel, module.channel_squeeze, training), 0)
    channel = np.maximum(plain_block(channel, module.channel_excite, training), 0)
    y = plain_block(spatial * channel, module.combine, training)
    if module.mask_range == "half":
        y = np.maximum(y, 0)
    return 1 / (1 + np.exp(-y))


def random_attention(channels, seed, **options):
    """In double precision, with random affine weights and running statistics."""
    torch.manual_seed(seed)
    module = HarmoniousAttention(channels, uniform_start=False, **options).double()
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.weight.data.uniform_(0.5, 1.5)
            norm.bias.data.normal_(0, 0.3)
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2.0)
    return module


def random_map(shape, seed):
    return torch.rand(shape, generator=torch.Generator().manual_seed(100 + seed)).double()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mask_range", ["full", "half"])
@pytest.mark.parametrize("shape, reduction, seed", [
    ((3, 8, 8, 4), 4, 0),
    ((4, 6, 7, 5), 2, 1),  # odd height and width
    ((2, 5, 1, 3), 16, 2),  # fewer channels than the reduction, a single row
])
def test_mask_step_by_step(shape, reduction, seed, mask_range, training):
    module = random_attention(shape[1], seed, reduction=reduction, mask_range=mask_range)
    module.train(training)
    x = random_map(shape, seed)
    expected = plain_mask(copy.deepcopy(module), x.numpy(), training)
    np.testing.assert_allclose(array(module(x)), expected, rtol=0, atol=1e-12)
    assert expected.std() > 1e-3, "the mask must depend on the map for this test to say anything"


@pytest.mark.parametrize("channels, reduction, squeezed", [(32, 16, 2), (8, 16, 1)])
def test_reduction_gives_the_width_of_the_channel_attention(channels, reduction, squeezed):
    module = HarmoniousAttention(channels, reduction=reduction)
    assert module.channel_squeeze[0].out_channels == squeezed
    assert module.channel_excite[0].in_channels == squeezed


@pytest.mark.parametrize("training", [True, False])
def test_uniform_start_is_one_half_everywhere(training):
    module = HarmoniousAttention(16).train(training)
    mask = module(10 * random_map((4, 16, 6, 3), 0).float())
    assert torch.equal(mask, torch.full_like(mask, 0.5))


def test_gradient_reaches_the_zero_weight_of_the_uniform_start():
    module = HarmoniousAttention(16, reduction=4)
    weight = module.combine[1].weight
    x = random_map((8, 16, 6, 3), 0).float()
    pull = torch.randn(8, 16, 6, 3)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    (module(x) * pull).sum().backward()
    assert torch.count_nonzero(weight) == 0
    assert torch.count_nonzero(weight.grad) == 16
    optimizer.step()
    optimizer.zero_grad()
    mask = module(x)
    assert (mask - 0.5).abs().max() > 1e-3, "one step must leave the uniform mask"
    (mask * pull).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad.abs().sum() > 0, f"{name} learns nothing after the first step"


@pytest.mark.parametrize("options, message", [
    ({"mask_range": "third", "uniform_start": False}, "mask_range 'third' .*'full', 'half'"),
    ({"mask_range": "half"}, "uniform_start needs mask_range 'full'"),
])
def test_what_it_cannot_do_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HarmoniousAttention(8, **options)
