"""Weights of a file for a network: unwrapped, counted, refused."""

import re

import pytest
import torch
from caureid_plugin.common import weights
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
    weights.load_matching(target, weights.unwrap(content, "w.pth"), "w.pth", "KEY")
    for name, value in target.state_dict().items():
        assert torch.equal(value, expected[name]), name
    without = f", without the prefix {prefix!r}" if prefix else ""
    taken = [f"w.pth: the weights under {' > '.join(map(repr, wraps))} are taken."] * bool(wraps)
    assert messages == [*taken, f"w.pth: 24 of 24 tensors loaded{without}."]


def test_averaged_weights_come_first():
    one, other = {"a": torch.ones(1)}, {"a": torch.zeros(1)}
    assert weights.unwrap({"state_dict": other, "state_dict_ema": one}, "w.pth")["a"] == 1


FEW, MANY = ({str(i): torch.full((), float(count)) for i in range(count)} for count in (1, 3))


@pytest.mark.parametrize("content, under", [
    ({"model_ema": {}, "state_dict": MANY}, ("state_dict",)),
    ({"model_ema": {"model": {}}, "model": {"net": MANY, "teacher": None}}, ("model", "net")),
    ({"model_ema": {"updates": torch.ones(())}, "state_dict": MANY}, ("state_dict",)),
    ({"model": FEW, **{f"own{i}": value for i, value in MANY.items()}}, ()),
    ({"model": MANY, "seed": torch.ones(())}, ("model",)),
    ({"model": 3, "net": MANY}, ("net",)), ({"model": {}, "epoch": 3}, ())])
def test_wrappers_without_a_network_are_passed_over(content, under):
    tensors, found = weights.find_weights(content)
    assert found == under and len(tensors) == (0 if "epoch" in content else 3)


@pytest.mark.parametrize("content", [{}, [1], None, {"epoch": 3}, {"model": {"model": {}}}])
def test_without_tensors(content):
    with pytest.raises(ValueError, match="holds no tensors"):
        weights.unwrap(content, "w.pth")


def test_where_else_tensors_may_be_is_said():
    with pytest.raises(ValueError, match="nor under state_dict_ema, .* but params, epoch: save"):
        weights.unwrap({"params": MANY, "epoch": 3}, "w.pth")


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
    with pytest.raises(ValueError, match=r"w.pth has 0 of the 24 .*names are the same and their "
                       r"shapes are not: .*another width.*0.weight \(4, 3, 1, 1\).* "
                       r"In the file instead: 0.weight \(8, 3, 1, 1\).*Set KEY"):
        weights.load_matching(network(), network(8).state_dict(), "w.pth", "KEY")


def test_the_hint_at_another_width_is_left_out_where_the_names_are_others():
    with pytest.raises(ValueError, match=r"has 0 of the 24 tensors of the network\. Missing"):
        weights.load_matching(network(), {"a": torch.ones(1)}, "w.pth", "KEY")


def test_a_name_of_many_parts():
    state = {f"{'a.' * 10**5}{name}": value for name, value in network().state_dict().items()}
    found, prefix = weights.strip(state, network().state_dict())
    assert found.keys() == network().state_dict().keys() and prefix == "a." * 10**5
    with pytest.raises(ValueError) as refused:
        weights.load_matching(network(), {"b." * 10**5: torch.ones(1)}, "w.pth", "KEY")
    assert len(str(refused.value)) < 1000


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
