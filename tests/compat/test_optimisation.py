"""The toolbox's flat parameter buffer trains as plain PyTorch does, and a run that does not stops.
"""

import contextlib
import copy
import gc
import io
import types
import weakref

import pytest
import torch
import torch.nn.functional as F
from caureid_plugin import compat
from caureid_plugin.common.errors import UserError
from caureid_plugin.compat.optimisation import WeightsMovedGuard
from fastreid.engine import hooks as _hooks
from fastreid.engine import train_loop
from fastreid.engine.train_loop import AMPTrainer, SimpleTrainer
from fastreid.evaluation import inference_context
from fastreid.solver import build_optimizer
from fastreid.solver.build import get_default_optimizer_params
from fastreid.utils.events import EventStorage
from fastreid.utils.params import ContiguousParams
from torch import nn

STEPS = 5
CUDA = pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU")])


class Net(nn.Module):
    """Convolution, batch norm with a frozen bias (as in a BNNeck), a classifier called heads."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.neck = nn.BatchNorm1d(6)
        self.neck.bias.requires_grad_(False)
        self.heads = nn.Linear(6, 4)

    def forward(self, batch):
        features = F.relu(self.bn(self.conv(batch["images"]))).mean(dim=(2, 3))
        logits = self.heads(self.neck(features))
        return {"loss_cls": F.cross_entropy(logits, batch["targets"]),
                "loss_size": 0.01 * features.square().mean()}


def net_and_batches(device="cpu"):
    torch.manual_seed(3)
    batches = [{"images": torch.randn(8, 3, 6, 5, device=device),
                "targets": torch.randint(0, 4, (8,), device=device)} for _ in range(STEPS)]
    return Net().to(device), batches


def run_toolbox(model, batches, cfg, trainer_type=SimpleTrainer, **options):
    """As many steps of the toolbox's trainer as there are batches."""
    optimizer, wrapper = build_optimizer(cfg, model)
    trainer = trainer_type(model, batches, optimizer, wrapper, **options)
    with EventStorage(0):
        for trainer.iter in range(len(batches)):
            trainer.run_step()


def plain_optimizer(model, cfg):
    """Every trainable parameter has the learning rate and decay that the config gives it."""
    solver, groups = cfg.SOLVER, []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        lr, decay = solver.BASE_LR, solver.WEIGHT_DECAY
        if name.startswith(("bn", "neck")):
            decay = solver.WEIGHT_DECAY_NORM
        if name.endswith("bias"):
            lr, decay = solver.BASE_LR * solver.BIAS_LR_FACTOR, solver.WEIGHT_DECAY_BIAS
        if name.startswith("heads"):
            lr *= solver.HEADS_LR_FACTOR
        groups.append({"params": [parameter], "lr": lr, "weight_decay": decay})
    if solver.OPT == "SGD":
        return torch.optim.SGD(groups, momentum=solver.MOMENTUM)
    return getattr(torch.optim, solver.OPT)(groups)


def run_plain(model, batches, cfg, before_step=lambda model, step: None):
    optimizer = plain_optimizer(model, cfg)
    for step, batch in enumerate(batches):
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        before_step(model, step)
        optimizer.step()


def assert_same(one, other, atol=1e-6):
    for (name, value), expected in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=atol, msg=name)


def moved(model, start):
    return {name for (name, value), before in zip(model.named_parameters(), start.parameters(),
                                                  strict=True) if not torch.equal(value, before)}


TRAINABLE = {"conv.weight", "bn.weight", "bn.bias", "neck.weight", "heads.weight", "heads.bias"}


@pytest.mark.parametrize("groups", [[], [
    "SOLVER.WEIGHT_DECAY_NORM", 0.0, "SOLVER.WEIGHT_DECAY_BIAS", 0.01,
    "SOLVER.BIAS_LR_FACTOR", 2.0, "SOLVER.HEADS_LR_FACTOR", 5.0]], ids=["one", "several"])
@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
def test_steps_equal_plain_pytorch(cfg, optimizer, groups):
    cfg.merge_from_list(["SOLVER.OPT", optimizer, "SOLVER.BASE_LR", 0.01, *groups])
    toolbox, batches = net_and_batches()
    start, plain, broken = (copy.deepcopy(toolbox) for _ in range(3))
    run_toolbox(toolbox, batches, cfg)
    run_plain(plain, batches, cfg)
    assert_same(toolbox, plain)
    assert moved(toolbox, start) == TRAINABLE
    with compat.without("contiguous_zero_grad"):
        run_toolbox(broken, batches, cfg)  # the toolbox's own check of its buffer passes
    assert moved(broken, start) == set()


# parameters of one learning rate and decay share a buffer, hence a norm
@pytest.mark.parametrize("kind, value, clip", [
    ("norm", 0.05, nn.utils.clip_grad_norm_), ("value", 0.004, nn.utils.clip_grad_value_)],
    ids=["norm", "value"])
def test_gradient_clipping_equals_plain_pytorch(cfg, kind, value, clip):
    cfg.merge_from_list([
        "SOLVER.OPT", "SGD", "SOLVER.BASE_LR", 0.1, "SOLVER.CLIP_GRADIENTS.ENABLED", True,
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", kind, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", value])
    toolbox, batches = net_and_batches()
    plain, unclipped = copy.deepcopy(toolbox), copy.deepcopy(toolbox)
    run_toolbox(toolbox, batches, cfg)
    run_plain(plain, batches, cfg, before_step=lambda model, step: clip(
        [p for p in model.parameters() if p.requires_grad], value))
    run_plain(unclipped, batches, cfg)
    assert_same(toolbox, plain)
    assert not torch.allclose(toolbox.conv.weight, unclipped.conv.weight, atol=1e-3)


def test_frozen_layers_equal_plain_pytorch(cfg):
    cfg.merge_from_list([
        "SOLVER.OPT", "Adam", "SOLVER.BASE_LR", 0.01,
        "MODEL.FREEZE_LAYERS", ["conv", "bn"], "SOLVER.FREEZE_ITERS", 3])
    toolbox, batches = net_and_batches()
    start, plain, early = (copy.deepcopy(toolbox) for _ in range(3))

    def freeze(model, step):
        for name, parameter in model.named_parameters():
            if step < 3 and name.startswith(("conv", "bn")):
                parameter.grad = None

    run_toolbox(toolbox, batches, cfg)
    run_plain(plain, batches, cfg, before_step=freeze)
    assert_same(toolbox, plain)
    run_toolbox(early, batches[:3], cfg)
    assert moved(early, start) == {"neck.weight", "heads.weight", "heads.bias"}


@pytest.mark.parametrize("done", [0, 2, 3, 4])
def test_frozen_layers_of_a_run_that_goes_on_are_free_when_they_would_have_been(cfg, done):
    cfg.merge_from_list(["SOLVER.OPT", "Adam", "SOLVER.BASE_LR", 0.01, "MODEL.FREEZE_LAYERS",
                         ["conv", "bn"], "SOLVER.FREEZE_ITERS", 3])
    whole, batches = net_and_batches()
    parts = copy.deepcopy(whole)
    run_toolbox(whole, batches, cfg)
    state = None
    for share in (batches[:done], batches[done:]):
        parts = copy.deepcopy(parts)  # in a flat buffer of its own
        optimizer, wrapper = build_optimizer(cfg, parts)
        if state is not None:
            optimizer.load_state_dict(state)
        trainer = SimpleTrainer(parts, share, optimizer, wrapper)
        with EventStorage(0):
            for trainer.iter in range(len(share)):
                trainer.run_step()
        state = copy.deepcopy(optimizer.state_dict())
    assert_same(parts, whole, atol=0)


def frozen_trainer(make_trainer, layers, **given):
    return make_trainer("MODEL.FREEZE_LAYERS", layers, "SOLVER.FREEZE_ITERS", 3, *(
        part for item in given.items() for part in item))


def test_frozen_batch_norm_stays_so_behind_an_evaluation(make_trainer):
    trainer = frozen_trainer(make_trainer, ["backbone"])
    layer = next(hook for hook in trainer._hooks if isinstance(hook, _hooks.LayerFreeze))
    trainer.start_iter, modes = 0, []
    for trainer.iter in range(4):
        layer.before_step()
        modes.append(trainer.model.backbone[1].training)
        with inference_context(trainer.model):
            pass
    assert modes == [False, False, False, True]


def test_a_checkpoint_of_the_toolbox_does_not_freeze_anew(make_trainer):
    trainer = frozen_trainer(make_trainer, ["backbone"])
    layer = next(hook for hook in trainer._hooks if isinstance(hook, _hooks.LayerFreeze))
    trainer.start_iter = trainer.iter = 7
    layer.before_step()
    start = copy.deepcopy(trainer.model)
    trainer.model.backbone[0].weight.sum().backward()
    trainer.optimizer.step()
    assert "backbone.0.weight" in moved(trainer.model, start)


@pytest.mark.parametrize("layers, message", [
    (["backbone", "heads"], r"'heads', the head.*write 'heads\.' to freeze only its weights"),
    (["bakcbone"], r"no weight begins with 'bakcbone'; the network has \['backbone', 'heads'\]"),
    (["("], r"'\(' is no regular expression")])
def test_layers_that_cannot_be_frozen(make_trainer, layers, message):
    with pytest.raises(ValueError, match=r"MODEL\.FREEZE_LAYERS .*" + message):
        frozen_trainer(make_trainer, layers)


def test_the_weights_of_the_head_can_be_frozen(make_trainer):
    trainer = frozen_trainer(make_trainer, ["heads."])
    start = copy.deepcopy(trainer.model)
    trainer.train()
    assert trainer.iter == 2 and not any("heads" in name for name in moved(trainer.model, start))


def test_without_the_repair_a_frozen_head_is_an_index_error(make_trainer):
    with compat.without("frozen_layers"), pytest.raises((IndexError, TypeError)):
        frozen_trainer(make_trainer, ["heads"]).train()


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_mixed_precision_equals_plain_pytorch(cfg, device, monkeypatch):
    """On the CPU in full precision, with only the loss scaling: the part that meets the buffer."""
    if device == "cpu":
        present = types.SimpleNamespace(is_available=lambda: True, stream=torch.cuda.stream)
        monkeypatch.setattr(train_loop, "torch", types.SimpleNamespace(cuda=present))
        monkeypatch.setattr(torch.cuda.amp, "autocast", contextlib.nullcontext)
    else:
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    precision = contextlib.nullcontext if device == "cpu" else torch.cuda.amp.autocast
    cfg.merge_from_list(["SOLVER.OPT", "SGD", "SOLVER.BASE_LR", 0.05])
    toolbox, batches = net_and_batches(device)
    start, plain = copy.deepcopy(toolbox), copy.deepcopy(toolbox)
    with compat.without("amp_needs_cuda"):  # which would take the scaling away
        run_toolbox(toolbox, batches, cfg, AMPTrainer,
                    grad_scaler=torch.amp.GradScaler(device, init_scale=256.0, growth_interval=2))

    optimizer = plain_optimizer(plain, cfg)
    scaler = torch.amp.GradScaler(device, init_scale=256.0, growth_interval=2)
    for batch in batches:
        optimizer.zero_grad()
        with precision():
            loss = sum(plain(batch).values())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert_same(toolbox, plain, atol=1e-6 if device == "cpu" else 1e-5)
    assert moved(toolbox, start) == TRAINABLE


# ---------------------------------------------------------------- loops of somebody's own ----


NO_DECAY = ["SOLVER.WEIGHT_DECAY", 0.0, "SOLVER.WEIGHT_DECAY_NORM", 0.0,
            "SOLVER.WEIGHT_DECAY_BIAS", 0.0]
CLEARED = {
    "the optimizer's gradients": lambda model, optimizer: optimizer.zero_grad(),
    "the model's": lambda model, optimizer: model.zero_grad(),
    "one by one": lambda model, optimizer: [setattr(p, "grad", None) for p in model.parameters()],
    "in place": lambda model, optimizer: optimizer.zero_grad(set_to_none=False),
}


def run_own_loop(model, batches, optimizer, clear, scaler=None):
    for batch in batches:
        clear(model, optimizer)
        loss = sum(model(batch).values())
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize("clear", CLEARED.values(), ids=CLEARED)
def test_a_script_with_a_loop_of_its_own_equals_plain_pytorch(cfg, clear, scaled):
    cfg.merge_from_list(["SOLVER.OPT", "SGD", "SOLVER.BASE_LR", 0.05])
    toolbox, batches = net_and_batches()
    start, plain = copy.deepcopy(toolbox), copy.deepcopy(toolbox)
    optimizer, _ = build_optimizer(cfg, toolbox)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if scaled else None
    run_own_loop(toolbox, batches, optimizer, clear, scaler)
    run_plain(plain, batches, cfg)
    assert_same(toolbox, plain)
    assert moved(toolbox, start) == TRAINABLE


@pytest.mark.parametrize("clear", CLEARED.values(), ids=CLEARED)
def test_gradients_of_a_copy_that_are_put_in_place_train_as_in_plain_pytorch(cfg, clear):
    cfg.merge_from_list(["SOLVER.OPT", "SGD", "SOLVER.BASE_LR", 0.05])
    toolbox, batches = net_and_batches()
    start, plain = copy.deepcopy(toolbox), copy.deepcopy(toolbox)
    optimizer, _ = build_optimizer(cfg, toolbox)
    for batch in batches:
        clear(toolbox, optimizer)
        other = copy.deepcopy(toolbox)
        other.zero_grad()
        sum(other(batch).values()).backward()
        toolbox.load_state_dict(other.state_dict())  # running statistics
        for weight, source in zip(toolbox.parameters(), other.parameters(), strict=True):
            weight.grad = source.grad
        optimizer.step()
    run_plain(plain, batches, cfg)
    assert_same(toolbox, plain)
    assert moved(toolbox, start) == TRAINABLE


def test_weights_that_are_replaced_behind_their_optimizer_are_an_error(cfg):
    model, batches = net_and_batches()
    optimizer, _ = build_optimizer(cfg, model)
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    with pytest.raises(ValueError, match="weights that the model no longer has"):
        run_own_loop(model, batches, optimizer, CLEARED["the model's"])


@pytest.mark.parametrize("clear", ["the optimizer's gradients", "the model's"])
def test_without_the_repair_such_a_script_trains_nothing(cfg, clear):
    cfg.merge_from_list(NO_DECAY)
    model, batches = net_and_batches()
    start = copy.deepcopy(model)
    with compat.without("contiguous_zero_grad"):
        optimizer, _ = build_optimizer(cfg, model)
        run_own_loop(model, batches, optimizer, CLEARED[clear])
    assert moved(model, start) == set()


def test_an_optimizer_of_ones_own_on_the_flat_buffer_trains(cfg):
    cfg.merge_from_list(["SOLVER.OPT", "SGD", "SOLVER.BASE_LR", 0.05])
    toolbox, batches = net_and_batches()
    plain = copy.deepcopy(toolbox)
    wrapper = ContiguousParams(get_default_optimizer_params(
        toolbox, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_NORM,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS))
    optimizer = torch.optim.SGD(wrapper.contiguous(), momentum=cfg.SOLVER.MOMENTUM)
    run_own_loop(toolbox, batches, optimizer, CLEARED["the optimizer's gradients"])
    run_plain(plain, batches, cfg)
    assert_same(toolbox, plain)


@pytest.mark.parametrize("clear", CLEARED.values(), ids=CLEARED)
def test_gradients_add_up_until_they_are_cleared_and_no_longer(cfg, clear):
    cfg.merge_from_list(["SOLVER.OPT", "SGD", "SOLVER.BASE_LR", 0.1, "SOLVER.MOMENTUM", 0.0,
                         *NO_DECAY])
    model = nn.ParameterDict({"one": torch.zeros(2), "other": torch.zeros(3)})
    optimizer, _ = build_optimizer(cfg, model)

    def values():
        return {name: round(weight.mean().item(), 6) for name, weight in model.items()}

    for factor in (1.0, 3.0):
        (factor * model["one"].sum() + model["other"].sum()).backward()
    optimizer.step()
    assert values() == {"one": -0.4, "other": -0.2}
    clear(model, optimizer)
    model["one"].sum().backward()  # the other has none, also not that of the step before
    model["one"].grad = 5 * model["one"].grad  # a new tensor, not the old one changed
    optimizer.step()
    assert values() == {"one": -0.9, "other": -0.2}


def test_a_model_that_leaves_its_optimizer_is_an_error(cfg):
    for leave in (lambda model: model.double(), lambda model: build_optimizer(cfg, model)):
        model, batches = net_and_batches()
        optimizer, _ = build_optimizer(cfg, model)
        leave(model)
        dtype = model.conv.weight.dtype
        batch = {**batches[0], "images": batches[0]["images"].to(dtype)}
        with pytest.raises(ValueError, match=r"no longer has.*\n?.*build_optimizer afterwards"):
            run_own_loop(model, [batch], optimizer, CLEARED["the model's"])


def test_the_newer_of_two_optimizers_trains(cfg):
    cfg.merge_from_list(["SOLVER.OPT", "Adam", "SOLVER.BASE_LR", 0.01])
    toolbox, batches = net_and_batches()
    plain = copy.deepcopy(toolbox)
    build_optimizer(cfg, toolbox)
    optimizer, _ = build_optimizer(cfg, toolbox)
    run_own_loop(toolbox, batches, optimizer, CLEARED["the model's"])
    run_plain(plain, batches, cfg)
    assert_same(toolbox, plain)


def test_a_model_is_copied_saved_and_freed_as_before(cfg, recwarn):
    model, _ = net_and_batches()
    weight = weakref.ref(model.conv.weight)
    optimizer, wrapper = build_optimizer(cfg, model)
    assert_same(copy.deepcopy(model), model)
    torch.save(model, io.BytesIO())
    assert not [w for w in recwarn if "hook" in str(w.message)]
    del model, optimizer, wrapper
    gc.collect()
    assert weight() is None


# ------------------------------------------------------------------------------ the guard ----


def test_guard_stops_a_run_with_learning_rate_zero(make_trainer):
    with pytest.raises(UserError, match=r"No weight has moved after 2 .*SOLVER\.BASE_LR"):
        make_trainer("SOLVER.BASE_LR", 0.0).train()
    with compat.without("weights_guard"):
        trainer = make_trainer("SOLVER.BASE_LR", 0.0, "DATASETS.TESTS", ())
        trainer.train()
        assert trainer.iter == 2  # to the end, and nobody noticed


def test_guard_lets_a_good_run_pass(make_trainer):
    trainer = make_trainer("SOLVER.ITERS_PER_EPOCH", 12, "DATASETS.TESTS", ())
    assert sum(isinstance(hook, WeightsMovedGuard) for hook in trainer._hooks) == 1
    start = copy.deepcopy(trainer.model)
    trainer.train()
    assert moved(trainer.model, start) == {
        name for name, parameter in start.named_parameters() if parameter.requires_grad}


def guarded_run(length, moves_at, *, start=0, frozen=False, freeze=()):
    """Calls the guard as a trainer of ``length`` steps does; a weight moves at one of them."""
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    model.weight.requires_grad_(not frozen)
    guard = WeightsMovedGuard(10, *freeze)
    guard.trainer = types.SimpleNamespace(
        model=model, start_iter=start, iter=start, max_iter=start + length)
    guard.before_train()
    for step in range(length):
        guard.trainer.iter = start + step
        with torch.no_grad():
            if step == moves_at:
                model.weight[0, 0] += 1e-3
            model.bias += 1  # an untrained parameter does not count
        guard.after_step()


@pytest.mark.parametrize("start", [0, 400], ids=["fresh", "resumed"])
@pytest.mark.parametrize("length", [1, 10, 11])
def test_guard_waits_ten_steps_or_to_the_end_of_a_shorter_run(start, length):
    last = min(length, 10) - 1
    guarded_run(length, moves_at=last, start=start)
    with pytest.raises(UserError, match=f"after {last + 1} training steps"):
        guarded_run(length, moves_at=last + 1, start=start)
    with pytest.raises(UserError, match=r"MODEL\.FREEZE_LAYERS"):
        guarded_run(length, moves_at=None, start=start, frozen=True)


@pytest.mark.parametrize("layers", [["weight", "bias"], ["w"], [".*"]])
def test_guard_waits_until_the_layers_are_free(layers):
    frozen = (layers, 1000)
    guarded_run(2000, moves_at=1009, freeze=frozen)
    guarded_run(1003, moves_at=1002, freeze=frozen)
    with pytest.raises(UserError, match="after 1010 training steps"):
        guarded_run(2000, moves_at=1010, freeze=frozen)
    with pytest.raises(UserError, match="after 1001 training steps"):
        guarded_run(1001, moves_at=None, freeze=frozen)


def test_guard_of_a_run_that_goes_on_waits_for_what_is_left_of_the_freezing(messages):
    frozen = (["weight", "bias"], 1000)
    guarded_run(500, moves_at=209, start=800, freeze=frozen)
    guarded_run(500, moves_at=9, start=1000, freeze=frozen)
    assert not messages
    with pytest.raises(UserError, match="after 210 training steps"):
        guarded_run(500, moves_at=210, start=800, freeze=frozen)
    guarded_run(200, moves_at=None, start=800, freeze=frozen)
    assert "the run has 200" in messages[0]


@pytest.mark.parametrize("layers, iters", [(["weight"], 0), (["eight", "bias"], 1000), ([], 1000)])
def test_guard_does_not_wait_where_something_is_free(layers, iters):
    guarded_run(2000, moves_at=9, freeze=(layers, iters))
    with pytest.raises(UserError, match="after 10 training steps"):
        guarded_run(2000, moves_at=10, freeze=(layers, iters))


def test_guard_asks_the_free_layers_to_move():
    """The heads are free and never move: that the backbone will be does not excuse it."""
    model = nn.DataParallel(nn.ModuleDict({"backbone": nn.Linear(2, 2), "heads": nn.Linear(2, 2)}))
    guard = WeightsMovedGuard(10, ["backbone"], 1000)
    guard.trainer = types.SimpleNamespace(model=model, start_iter=0, iter=0, max_iter=2000)
    guard.before_train()
    for guard.trainer.iter in range(9):
        guard.after_step()
    guard.trainer.iter = 9
    with pytest.raises(UserError, match="after 10 training steps"):
        guard.after_step()


def test_a_run_that_is_frozen_to_its_end_is_warned_of(make_trainer, messages):
    """As MGN's configs freeze every branch for 1000 steps, by the beginnings of their names."""
    frozen = ("MODEL.FREEZE_LAYERS", ["backbone", "head"], "DATASETS.TESTS", ())
    trainer = make_trainer(*frozen, "SOLVER.FREEZE_ITERS", 1000, "SOLVER.ITERS_PER_EPOCH", 12)
    start = copy.deepcopy(trainer.model)
    trainer.train()
    assert trainer.iter == 12 and moved(trainer.model, start) == set()
    told, = [message for message in messages if "FREEZE_ITERS" in message]
    assert "trains nothing" in told and "1000 steps, and the run has 12" in told
    trainer = make_trainer(*frozen, "SOLVER.FREEZE_ITERS", 12, "SOLVER.ITERS_PER_EPOCH", 13)
    trainer.train()
    assert [message for message in messages if "FREEZE_ITERS" in message] == [told]
