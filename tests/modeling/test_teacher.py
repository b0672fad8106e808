"""The teacher against the average by loops; what of it reaches the losses and the checkpoint."""

import copy

import pytest
import torch
import torch.nn.functional as F
from caureid_plugin.common.errors import UserError
from caureid_plugin.modeling import Teacher, build_teacher
from caureid_plugin.modeling.teacher import VIEWS
from fastreid.modeling.meta_arch import build_model

ICE = ("MODEL.LOSSES.NAME", ("ICELoss",), "MODEL.HEADS.CAMSEP.NUM_CAMERAS", 0)


def with_views(batch):
    generator = torch.Generator().manual_seed(7)
    views = {view: 255 * torch.rand(batch["images"].shape, generator=generator) for view in VIEWS}
    return {**batch, **views}


def moved(network, step):
    """The same network with other weights, statistics and counters."""
    generator = torch.Generator().manual_seed(step)
    state = network.state_dict()
    for name, value in state.items():
        state[name] = (value + torch.rand(value.shape, generator=generator)
                       if value.is_floating_point() else value + 1)
    network.load_state_dict(state)
    return network


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_average_by_loops(make_cfg, momentum):
    network = build_model(make_cfg(*ICE))
    teacher = Teacher(network, momentum=momentum)
    assert not teacher.is_filled
    expected = copy.deepcopy(network.state_dict())
    for step in range(3):
        new = moved(network, step).state_dict()
        teacher.update(network)
        expected = {name: momentum * old + (1 - momentum) * new[name]
                    if old.is_floating_point() else new[name] for name, old in expected.items()}
        torch.testing.assert_close(dict(teacher.state_dict()), expected, rtol=1e-6, atol=1e-6)
    teacher.reset(network)
    assert teacher.is_filled
    kept = copy.deepcopy(network.state_dict())
    moved(network, 9)
    assert all(torch.equal(value, kept[name]) for name, value in teacher.state_dict().items())


def test_a_copy_without_the_bank_that_nobody_trains(make_cfg, make_bank):
    network = build_model(make_cfg(*ICE))
    network.memory = make_bank()
    names = [name for name, _ in network.named_parameters()]
    network.teacher = build_teacher(make_cfg(*ICE), network)
    assert network.teacher.momentum == 0.999
    twin = network.teacher.network
    assert network.memory is not None and twin.memory is None and twin is not network
    assert not twin.training and not any(p.requires_grad for p in twin.parameters())
    # neither the optimizer, nor DistributedDataParallel, nor a checkpoint of the network sees it
    assert [name for name, _ in network.named_parameters()] == names
    assert not any("teacher" in name for name in network.state_dict())
    assert all(module is not twin for module in network.modules())


def test_no_teacher_without_a_loss_that_needs_one(make_cfg):
    cfg = make_cfg()
    assert build_teacher(cfg, build_model(cfg)) is None


def test_a_step_compares_with_what_the_teacher_makes_of_the_views(make_cfg, make_batch, make_bank):
    cfg = make_cfg(*ICE)
    network = build_model(cfg)
    network.memory, network.teacher = make_bank(), build_teacher(cfg, network)
    moved(network.teacher.network, 1)
    batch, before = with_views(make_batch()), copy.deepcopy(network.teacher.state_dict())
    given = {}
    (loss,) = network._losses
    network._losses = [lambda outputs, *rest: given.update(outputs) or loss(outputs, *rest)]
    total = network.train()(batch)
    assert set(total) == {f"loss_ice_{part}" for part in ("cluster", "camera", "hard", "soft")}
    for view in VIEWS:
        expected = network.teacher.network({"images": batch[view]})
        torch.testing.assert_close(given[view], F.normalize(expected, dim=1))
        assert not given[view].requires_grad
    assert not torch.equal(given[VIEWS[0]], given[VIEWS[1]])
    sum(total.values()).backward()
    after = network.teacher.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert torch.equal(network.pop_seen()[1], batch["indexes"])  # of the images, for the bank


def test_a_batch_without_views(make_cfg, make_batch, make_bank):
    cfg = make_cfg(*ICE)
    network = build_model(cfg).train()
    network.memory, network.teacher = make_bank(), build_teacher(cfg, network)
    with pytest.raises(UserError, match=r"needs \['second_images', 'plain_images'\] in each batch"):
        network(make_batch())


@pytest.mark.parametrize("momentum", [1.0, -0.1])
def test_momentum_outside_its_range(make_cfg, momentum):
    cfg = make_cfg(*ICE, "MODEL.LOSSES.ICE.MOMENTUM", momentum)
    with pytest.raises(UserError, match=f"MODEL.LOSSES.ICE.MOMENTUM {momentum} must be in"):
        build_teacher(cfg, build_model(cfg))


def test_the_state_goes_on_bit_for_bit(make_cfg):
    network = build_model(make_cfg(*ICE))
    teacher = Teacher(network, momentum=0.9)
    teacher.update(moved(network, 1))
    resumed = Teacher(build_model(make_cfg(*ICE)), momentum=0.9)
    resumed.load_state_dict(copy.deepcopy(teacher.state_dict()))
    assert resumed.is_filled
    moved(network, 2)
    for either in (teacher, resumed):
        either.update(network)
    found = resumed.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in teacher.state_dict().items())
