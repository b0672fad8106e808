"""A run that was stopped, killed or ended and goes on is the run that was never interrupted."""

import json
import logging
import os
import random
import signal

import numpy as np
import pytest
import torch
from caureid_plugin import EvalAtStart, clustering, compat, signals
from fastreid.engine.train_loop import HookBase

TIMES = {"time", "data_time", "eta_seconds", "cluster_seconds"}
# the keys that a run needs to have something of everything: warm-up, a drop, an evaluation
OPTIONS = ("SOLVER.WARMUP_ITERS", 4, "SOLVER.STEPS", [2], "TEST.EVAL_PERIOD", 1, "SOLVER.OPT",
           "Adam", "SOLVER.ITERS_PER_EPOCH", 3)


def rows(folder):
    """Rows of metrics.json without the figures that are times."""
    read = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in read]


def result(trainer):
    """Everything a run ends with."""
    bank = trainer.model.memory
    return {
        **{f"model {name}": t.clone() for name, t in trainer.model.state_dict().items()},
        **{f"bank {name}": t.clone() for name, t in bank.state_dict().items()},
        **{f"optimizer {i} {name}": torch.as_tensor(value).clone()
           for i, state in trainer.optimizer.state_dict()["state"].items()
           for name, value in state.items()},
        "learning rate": torch.tensor([g["lr"] for g in trainer.optimizer.param_groups]),
        "random": torch.tensor([random.random(), np.random.rand(), torch.rand(1).item()]),
        "best": torch.tensor(next(h.best_metric for h in trainer._hooks
                                  if isinstance(h, compat._hooks.PeriodicCheckpointer))),
    }


def differences(one, other):
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.fixture
def whole(start, tmp_path):
    """Result and rows of a run without interruption; its folder is emptied."""

    def run(*options):
        trainer = start(*OPTIONS, *options)
        trainer.train()
        found = result(trainer), rows(tmp_path / "out")
        for file in (tmp_path / "out").iterdir():
            file.unlink()
        return found

    return run


@pytest.fixture
def warnings_of(caplog, monkeypatch):
    """Calls something; what the plugin has warned about meanwhile."""
    monkeypatch.setattr(logging.getLogger("fastreid"), "propagate", True)

    def run(action):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="fastreid.caureid"):
            action()
        return caplog.text

    return run


class At(HookBase):
    """Calls something after the step of a number."""

    def __init__(self, step, act):
        self._step, self._act = step, act

    def after_step(self):
        if self.trainer.iter == self._step:
            self._act()


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def signals_are_not_ignored():
    """As a shell starts a program, whatever this test run was started with."""
    before = {number: signal.signal(number, signal.default_int_handler)
              for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("preset", ["bank", "extract"])
@pytest.mark.parametrize("period", [1, 2])
@pytest.mark.parametrize("workers", [0, 1])
def test_two_and_two_epochs_are_four(start, whole, tmp_path, preset, period, workers):
    options = ("CAUREID.LABELS", preset, "CAUREID.CLUSTER_PERIOD", period,
               "DATALOADER.NUM_WORKERS", workers)
    expected, expected_rows = whole("SOLVER.MAX_EPOCH", 4, *options)
    start(*OPTIONS, "SOLVER.MAX_EPOCH", 2, *options).train()
    trainer = start(*OPTIONS, "SOLVER.MAX_EPOCH", 4, *options)
    random.seed(99)  # a new process has other random states
    np.random.seed(99)
    trainer.resume_or_load(resume=True)
    assert trainer.start_epoch == 2
    trainer.train()
    assert differences(result(trainer), expected) == []
    assert rows(tmp_path / "out") == expected_rows


@pytest.mark.parametrize("preset", ["bank", "extract"])
@pytest.mark.parametrize("step", range(6))
def test_a_run_that_is_stopped_behind_any_step_goes_on_there(start, whole, tmp_path, preset, step):
    options = "CAUREID.LABELS", preset, "DATALOADER.NUM_WORKERS", step % 2
    expected, expected_rows = whole(*options)
    trainer = start(*OPTIONS, *options)
    trainer.register_hooks([At(step, send)])
    with pytest.raises(SystemExit) as left:
        trainer.train()
    assert left.value.code == signals.EXIT_STOPPED == 75
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_stopped.pth"
    assert trainer.iter == step + 1
    trainer = start(*OPTIONS, *options)
    trainer.resume_or_load(resume=True)
    trainer.train()
    assert trainer.start_iter == step + 1
    assert differences(result(trainer), expected) == []
    assert rows(tmp_path / "out") == expected_rows


@pytest.mark.parametrize("preset", ["bank", "extract"])
@pytest.mark.parametrize("place", ["before_epoch", "features", "clustering"])
def test_a_run_that_is_stopped_between_two_epochs(start, whole, tmp_path, monkeypatch, preset,
                                                  place):
    options = "CAUREID.LABELS", preset, "SOLVER.MAX_EPOCH", 3
    expected, expected_rows = whole(*options)
    trainer = start(*OPTIONS, *options)

    def in_the_second_epoch(original):
        def changed(*args, **kwargs):
            if trainer.iter == 3 and trainer.epoch == 1:
                send()
            return original(*args, **kwargs)
        return changed

    with monkeypatch.context() as patch:
        if place == "before_epoch":  # received while the first one was evaluated
            patch.setattr(compat, "_is_stop_wanted", in_the_second_epoch(compat._is_stop_wanted))
        elif place == "features":
            bank = trainer.model.memory
            bank.reset = in_the_second_epoch(bank.reset)
            patch.setattr(trainer.model, "forward", in_the_second_epoch(trainer.model.forward))
        else:
            patch.setattr(clustering, "assign_pseudo_labels",
                          in_the_second_epoch(clustering.assign_pseudo_labels))
        with pytest.raises(SystemExit):
            trainer.train()
    # with "bank" no features are extracted: the signal comes with the epoch's first step
    assert trainer.iter == (4 if (place, preset) == ("features", "bank") else 3)
    trainer = start(*OPTIONS, *options)
    trainer.resume_or_load(resume=True)
    trainer.train()
    assert differences(result(trainer), expected) == []
    assert rows(tmp_path / "out") == expected_rows


def test_a_run_that_is_stopped_before_its_first_step(start, tmp_path, monkeypatch):
    def made():
        trainer = start(*OPTIONS)
        trainer.register_hooks([EvalAtStart(True)])
        return trainer

    whole = made()
    whole.train()
    expected, expected_rows = result(whole), rows(tmp_path / "out")
    assert "start/mAP" in expected_rows[0]
    for file in (tmp_path / "out").iterdir():
        file.unlink()
    assign = clustering.assign_pseudo_labels
    monkeypatch.setattr(clustering, "assign_pseudo_labels",
                        lambda *args, **kwargs: send() or assign(*args, **kwargs))
    with pytest.raises(SystemExit):
        made().train()
    monkeypatch.setattr(clustering, "assign_pseudo_labels", assign)
    trainer = made()
    trainer.resume_or_load(resume=True)
    trainer.train()
    assert trainer.start_iter == 0
    assert differences(result(trainer), expected) == []
    assert rows(tmp_path / "out") == expected_rows


def test_a_run_that_is_stopped_again_and_again(start, whole, tmp_path):
    expected, expected_rows = whole()
    for step in (0, 1, 1, 2, 4, 5):  # the third is stopped before it has done anything
        trainer = start(*OPTIONS)
        trainer.register_hooks([At(step, send)])
        trainer.resume_or_load(resume=True)
        if trainer.run_state.steps_done + 3 * trainer.start_epoch > step:
            continue
        with pytest.raises(SystemExit):
            trainer.train()
    trainer = start(*OPTIONS)
    trainer.resume_or_load(resume=True)
    trainer.train()
    assert differences(result(trainer), expected) == []
    assert rows(tmp_path / "out") == expected_rows


def test_ctrl_c_saves_and_the_second_one_ends_at_once(start, tmp_path):
    trainer = start(*OPTIONS)
    trainer.register_hooks([At(1, lambda: send(signal.SIGINT))])
    with pytest.raises(SystemExit) as left:
        trainer.train()
    assert left.value.code == signals.EXIT_INTERRUPTED == 130
    saved = (tmp_path / "out" / "model_stopped.pth").read_bytes()
    trainer = start(*OPTIONS)
    trainer.resume_or_load(resume=True)
    trainer.register_hooks([At(3, lambda: (send(signal.SIGINT), send(signal.SIGINT)))])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.iter == 3
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_0000.pth"
    assert (tmp_path / "out" / "model_stopped.pth").read_bytes() == saved


def test_the_handlers_are_given_back_and_an_ignored_signal_stays_ignored(start):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup
    before = signal.getsignal(signal.SIGTERM)
    trainer = start(*OPTIONS)
    trainer.register_hooks([At(1, lambda: send(signal.SIGINT))])
    trainer.train()
    assert trainer.iter == trainer.max_iter
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_without_the_loop_a_signal_ends_the_run_where_it_is(start, tmp_path):
    with compat.without("training_loop"):
        trainer = start(*OPTIONS)
        trainer.register_hooks([At(1, lambda: send(signal.SIGINT))])
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    assert not (tmp_path / "out" / "last_checkpoint").exists()


def test_a_seed_that_was_drawn_is_kept(start, whole):
    expected, _ = whole("SEED", -1)
    drawn = start(*OPTIONS, "SEED", -1)
    seed = drawn.run_state.seed
    drawn.register_hooks([At(4, send)])
    with pytest.raises(SystemExit):
        drawn.train()
    trainer = start(*OPTIONS, "SEED", -1)
    trainer.run_state.seed = seed + 1  # another process draws another one
    trainer.resume_or_load(resume=True)
    assert trainer.run_state.seed == seed
    trainer.train()
    assert differences(result(trainer), expected) == []


def test_another_seed_is_warned_about(start, warnings_of):
    start(*OPTIONS, "SOLVER.MAX_EPOCH", 1).train()
    trainer = start(*OPTIONS, "SEED", 4)
    assert "neither the one run nor the other" in warnings_of(
        lambda: trainer.resume_or_load(resume=True))


def test_a_fresh_run_does_not_go_on_from_an_older_one(start, tmp_path, warnings_of):
    """Stopped before its first checkpoint, it leaves none to resume from."""
    start(*OPTIONS, "SOLVER.MAX_EPOCH", 1).train()
    fresh = start(*OPTIONS)
    fresh.register_hooks([At(0, send)])
    fresh.checkpointer.save = lambda *_, **__: None  # as if killed before

    def train():
        with pytest.raises(SystemExit):
            fresh.train()

    text = warnings_of(train)
    assert "named 'model_final.pth', of a run before this one" in text
    assert not (tmp_path / "out" / "last_checkpoint").exists()
    trainer = start(*OPTIONS)
    trainer.resume_or_load(resume=True)
    assert trainer.start_epoch == 0


def test_a_run_that_is_stopped_while_it_fills_its_bank(start, tmp_path, warnings_of):
    trainer = start(*OPTIONS)
    forward = trainer.model.forward
    trainer.model.forward = lambda batch: (send(), forward(batch))[1]

    def train():
        with pytest.raises(SystemExit) as left:
            trainer.train()
        assert left.value.code == signals.EXIT_STOPPED

    assert "before the first step: there is nothing to save" in warnings_of(train)
    assert not (tmp_path / "out" / "last_checkpoint").exists()


def test_a_checkpoint_without_the_state_of_a_run(start, tmp_path, warnings_of):
    start(*OPTIONS, "SOLVER.MAX_EPOCH", 1).train()
    path = tmp_path / "out" / "model_final.pth"
    saved = torch.load(path, weights_only=True)
    del saved["run_state"]
    torch.save(saved, path)
    trainer = start(*OPTIONS)
    trainer.resume_or_load(resume=True)
    assert "holds no state of a run" in warnings_of(trainer.train)
    del saved["memory_bank"]
    torch.save(saved, path)
    (tmp_path / "out" / "last_checkpoint").write_text(path.name)
    trainer = start(*OPTIONS)
    trainer.resume_or_load(resume=True)
    with pytest.raises(RuntimeError, match="before trainer.resume_or_load"):
        trainer.train()


def test_another_files_rows_are_left_alone(start, tmp_path, warnings_of):
    start(*OPTIONS, "SOLVER.MAX_EPOCH", 2).train()
    metrics = tmp_path / "out" / "metrics.json"
    other = json.dumps({"iteration": 0, "other": "x" * 5000}) + "\n"
    metrics.write_text(other)
    trainer = start(*OPTIONS, "SOLVER.MAX_EPOCH", 3)
    trainer.resume_or_load(resume=True)
    assert "is not the file that the checkpoint was saved with" in warnings_of(trainer.train)
    assert metrics.read_text().startswith(other)


def test_the_best_metric_is_remembered(start, tmp_path):
    start(*OPTIONS, "SOLVER.MAX_EPOCH", 2).train()
    trainer = start(*OPTIONS, "SOLVER.MAX_EPOCH", 3)
    trainer.resume_or_load(resume=True)
    periodic = next(h for h in trainer._hooks
                    if isinstance(h, compat._hooks.PeriodicCheckpointer))
    assert periodic.best_metric > 0


@pytest.mark.parametrize("step", [1, 3])
def test_epochs_of_another_length_do_not_go_on(start, step):
    trainer = start(*OPTIONS)
    trainer.register_hooks([At(step, send)])
    with pytest.raises(SystemExit):
        trainer.train()
    with pytest.raises(ValueError, match="3 steps an epoch, and this one has 5.*ITERS_PER_EPOCH 3"):
        start(*OPTIONS, "SOLVER.ITERS_PER_EPOCH", 5).resume_or_load(resume=True)


def test_rows_that_were_removed_by_hand_are_warned_about(start, tmp_path, caplog, monkeypatch):
    start(*OPTIONS, "SOLVER.MAX_EPOCH", 2).train()
    metrics = tmp_path / "out" / "metrics.json"
    first = metrics.read_text().splitlines(keepends=True)[0]
    metrics.write_text("")
    trainer = start(*OPTIONS, "SOLVER.MAX_EPOCH", 3)
    trainer.resume_or_load(resume=True)
    monkeypatch.setattr(logging.getLogger("fastreid"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="fastreid.caureid"):
        trainer.train()
    assert "metrics.json is shorter" in caplog.text
    assert json.loads(first)["iteration"] < rows(tmp_path / "out")[0]["iteration"]


def test_without_the_run_state_a_resumed_run_is_another_one(start, whole, tmp_path):
    """Of a toolbox's own supervised run, whose augmentations draw from the global generators."""
    supervised = ("MODEL.META_ARCHITECTURE", "Baseline", "MODEL.HEADS.NUM_CLASSES", 8,
                  "MODEL.HEADS.NAME", "EmbeddingHead", "MODEL.LOSSES.NAME", ("CrossEntropyLoss",),
                  "SOLVER.OPT", "SGD", "DATALOADER.SAMPLER_TRAIN", "TrainingSampler",
                  "INPUT.FLIP.ENABLED", True)

    values = []

    class Draw(HookBase):
        def before_epoch(self):
            if self.trainer.epoch == 1:
                values.append(torch.rand(3))

    def drawn(*, resumed):
        trainer = start(*OPTIONS, *supervised, hook=False)
        if resumed:
            trainer.resume_or_load(resume=True)
        trainer.register_hooks([Draw()])
        trainer.train()
        return values.pop()

    def after_one_epoch():
        torch.manual_seed(7)
        start(*OPTIONS, *supervised, "SOLVER.MAX_EPOCH", 1, hook=False).train()

    expected = drawn(resumed=False)
    after_one_epoch()
    assert torch.equal(drawn(resumed=True), expected)
    with compat.without("run_state"):
        after_one_epoch()
        assert not torch.equal(drawn(resumed=True), expected)
