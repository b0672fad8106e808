"""Weights of a file for a network: unwrapped, counted, refused."""

import re

import pytest
import torch
from caureid_plugin import weights
from torch import nn


def network(width=4):
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Conv2d(3 if i == 0 else width, width, 1) for i in range(10)],
                         nn.BatchNorm2d(width))


PREFIXES = ["", "module.", "base.", "backbone.", "module.encoder_q.", "a.b.c.d."]
WRAPS = [[], ["state_dict"], ["model"], ["teacher"], ["model", "state_dict"]]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("wraps", WRAPS)
def test_known_wrappers_and_prefixes_are_taken_off(prefix, wraps, messages):
    source, target = network(), network()
    nn.init.ones_(source[-1].running_mean)
    content = {f"{prefix}{name}": value.clone() + 1 for name, value in source.state_dict().items()}
    content = {"elsewhere.fc.weight": torch.zeros(5), **content}
    expected = {name: value + 1 for name, value in source.state_dict().items()}
    for name in reversed(wraps):
        content = {"epoch": 3, name: content}
    weights.load_matching(target, weights.unwrap(content), "w.pth", "KEY")
    for name, value in target.state_dict().items():
        assert torch.equal(value, expected[name]), name
    without = f", without the prefix {prefix!r}" if prefix else ""
    assert messages == [f"w.pth: 24 of 24 tensors loaded{without}."]


def test_averaged_weights_come_first():
    one, other = {"a": torch.ones(1)}, {"a": torch.zeros(1)}
    assert weights.unwrap({"state_dict": other, "state_dict_ema": one}) is not None
    assert weights.unwrap({"state_dict": other, "state_dict_ema": one})["a"] == 1


@pytest.mark.parametrize("content", [{}, [1], None, {"epoch": 3}, {"model": {"model": {}}}])
def test_without_tensors(content):
    with pytest.raises(ValueError, match="holds no tensors"):
        weights.unwrap(content)


@pytest.mark.parametrize("missing, loads", [(2, True), (3, False)])
def test_nine_of_ten_tensors(missing, loads):
    state = dict(list(network().state_dict().items())[missing:])  # 24 are asked for
    target = network()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    if loads:
        weights.load_matching(target, state, "w.pth", "KEY")
        return
    with pytest.raises(ValueError, match=re.escape(
            "w.pth has 21 of the 24 tensors of the network. Missing, for example: 0.weight "
            "(4, 3, 1, 1), 0.bias (4,), 1.weight (4, 4, 1, 1). In the file instead: ")):
        weights.load_matching(target, state, "w.pth", "KEY")
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_another_width():
    with pytest.raises(ValueError, match=r"w.pth has 0 of the 24 .*0.weight \(4, 3, 1, 1\).* "
                       r"In the file instead: 0.weight \(8, 3, 1, 1\).*Set KEY"):
        weights.load_matching(network(), network(8).state_dict(), "w.pth", "KEY")


@pytest.mark.parametrize("change, says", [
    (lambda value: value.to(torch.int8), "0.weight as torch.int8"),
    (lambda value: value.to(torch.complex64), "0.weight as torch.complex64"),
    (lambda value: value.to_sparse(), "0.weight as torch.float32 (torch.sparse_coo)"),
    (lambda value: value * 0, "nothing but zeros in 10 of 10 weight tensors"),
    (lambda value: value * float("nan"), "values in 0.weight that are not finite"),
    (lambda value: value.half(), None), (lambda value: value.double(), None)])
def test_what_has_the_right_names_and_is_no_weight(change, says):
    target = network()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    state = {name: change(value) if value.dim() == 4 else value for name, value in before.items()}
    if says is None:
        weights.load_matching(target, state, "w.pth", "KEY")
        return
    with pytest.raises(ValueError, match=re.escape(f"w.pth holds {says}")):
        weights.load_matching(target, state, "w.pth", "KEY")
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
