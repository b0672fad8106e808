"""A run that was stopped, killed or ended and goes on is the run that was never interrupted."""

import itertools
import json
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


def best_metric(trainer):
    return next(hook.best_metric for hook in trainer._hooks
                if isinstance(hook, compat._hooks.PeriodicCheckpointer))


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
        "best": torch.tensor(best_metric(trainer)),
    }


def differences(one, other):
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.fixture(scope="module")
def finished():
    """Results and rows of runs without interruption, by their options."""
    return {}


@pytest.fixture
def whole(start, finished, tmp_path):
    """Result and rows of a run without interruption; its folder is emptied."""

    def run(*options):
        if options not in finished:
            trainer = start(*OPTIONS, *options)
            trainer.train()
            finished[options] = result(trainer), rows(tmp_path / "out")
            for file in (tmp_path / "out").iterdir():
                file.unlink()
        return finished[options]

    return run


@pytest.fixture
def resumed(start):
    """Makes a trainer that goes on from the last checkpoint."""

    def make(*options):
        trainer = start(*OPTIONS, *options)
        random.seed(99)  # a new process has other random states
        np.random.seed(99)
        trainer.resume_or_load(resume=True)
        return trainer

    return make


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
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)


@pytest.mark.parametrize("preset, period, workers", [
    ("bank", 2, 0), ("extract", 1, 0),  # a period of 2: the labels are those of the checkpoint
    pytest.param("bank", 1, 1, marks=pytest.mark.slow),
    pytest.param("extract", 2, 1, marks=pytest.mark.slow)])
def test_one_and_two_epochs_are_three(start, whole, resumed, tmp_path, preset, period, workers):
    options = ("CAUREID.LABELS", preset, "CAUREID.CLUSTER_PERIOD", period,
               "DATALOADER.NUM_WORKERS", workers)
    expected, expected_rows = whole("SOLVER.MAX_EPOCH", 3, *options)
    first = start(*OPTIONS, "SOLVER.MAX_EPOCH", 1, *options)
    first.train()
    trainer = resumed("SOLVER.MAX_EPOCH", 3, *options)
    assert trainer.start_epoch == 1
    assert best_metric(trainer) == first.storage.latest()["metric"][0] > 0
    trainer.train()
    assert differences(result(trainer), expected) == []
    assert rows(tmp_path / "out") == expected_rows


FAST = ("bank", 0), ("extract", 2), ("bank", 4), ("extract", 5)


@pytest.mark.parametrize("preset, step", [
    pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow)
    for case in itertools.product(("bank", "extract"), range(6))])
def test_a_run_that_is_stopped_behind_any_step_goes_on_there(start, whole, resumed, tmp_path,
                                                             preset, step):
    options = "CAUREID.LABELS", preset
    expected, expected_rows = whole(*options)
    workers = "DATALOADER.NUM_WORKERS", step % 2
    trainer = start(*OPTIONS, *options, *workers)
    trainer.register_hooks([At(step, send)])
    with pytest.raises(SystemExit) as left:
        trainer.train()
    assert left.value.code == signals.EXIT_STOPPED == 75
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_stopped.pth"
    assert trainer.iter == step + 1
    trainer = resumed(*options, *workers)
    trainer.train()
    assert trainer.start_iter == step + 1
    assert differences(result(trainer), expected) == []
    assert rows(tmp_path / "out") == expected_rows


@pytest.mark.parametrize("preset, place", [
    ("bank", "before_epoch"), ("extract", "features"), ("bank", "clustering"),
    pytest.param("extract", "before_epoch", marks=pytest.mark.slow),
    pytest.param("extract", "clustering", marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_between_two_epochs(start, whole, resumed, tmp_path, monkeypatch,
                                                  preset, place):
    options = "CAUREID.LABELS", preset
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
            patch.setattr(trainer.model, "forward", in_the_second_epoch(trainer.model.forward))
        else:
            patch.setattr(clustering, "assign_pseudo_labels",
                          in_the_second_epoch(clustering.assign_pseudo_labels))
        with pytest.raises(SystemExit):
            trainer.train()
    assert trainer.iter == 3
    trainer = resumed(*options)
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


def test_a_run_that_is_stopped_again_and_again(start, whole, resumed, tmp_path):
    expected, expected_rows = whole()
    for step in (0, 1, 4):
        trainer = resumed() if step else start(*OPTIONS)
        trainer.register_hooks([At(step, send)])
        with pytest.raises(SystemExit):
            trainer.train()
        assert trainer.iter == step + 1
    trainer = resumed()
    trainer.train()
    assert differences(result(trainer), expected) == []
    assert rows(tmp_path / "out") == expected_rows


def test_ctrl_c_saves_and_the_second_one_ends_at_once(start, resumed, tmp_path):
    trainer = start(*OPTIONS)
    trainer.register_hooks([At(1, lambda: send(signal.SIGINT))])
    with pytest.raises(SystemExit) as left:
        trainer.train()
    assert left.value.code == signals.EXIT_INTERRUPTED == 130
    saved = (tmp_path / "out" / "model_stopped.pth").read_bytes()
    trainer = resumed()
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


# ------------------------------------------------------- what does not belong together ----

SHORT = ("SOLVER.ITERS_PER_EPOCH", 1, "DATASETS.TESTS", (), "SOLVER.MAX_EPOCH")


def said(messages, part):
    return any(part in text for text in messages)


def test_another_seed_is_warned_about(start, resumed, messages):
    start(*OPTIONS, *SHORT, 1).train()
    resumed(*SHORT, 2, "SEED", 4)
    assert said(messages, "neither the one run nor the other")


def test_a_fresh_run_does_not_go_on_from_an_older_one(start, resumed, tmp_path, messages):
    """Stopped before its first checkpoint, it leaves none to resume from."""
    start(*OPTIONS, *SHORT, 1).train()
    fresh = start(*OPTIONS)
    fresh.register_hooks([At(0, send)])
    fresh.checkpointer.save = lambda *_, **__: None  # as if killed before
    with pytest.raises(SystemExit):
        fresh.train()
    assert said(messages, "named 'model_final.pth', of a run before this one")
    assert not (tmp_path / "out" / "last_checkpoint").exists()
    assert resumed().start_epoch == 0


def test_a_run_that_is_stopped_while_it_fills_its_bank(start, tmp_path, messages):
    trainer = start(*OPTIONS)
    forward = trainer.model.forward
    trainer.model.forward = lambda batch: (send(), forward(batch))[1]
    with pytest.raises(SystemExit) as left:
        trainer.train()
    assert left.value.code == signals.EXIT_STOPPED
    assert said(messages, "before the first step: there is nothing to save")
    assert not (tmp_path / "out" / "last_checkpoint").exists()


def test_a_checkpoint_without_the_state_of_a_run(start, resumed, tmp_path, messages):
    start(*OPTIONS, *SHORT, 1).train()
    path = tmp_path / "out" / "model_final.pth"
    saved = torch.load(path, weights_only=True)
    del saved["run_state"]
    torch.save(saved, path)
    resumed(*SHORT, 2).train()
    assert said(messages, "holds no state of a run")
    del saved["memory_bank"]
    torch.save(saved, path)
    (tmp_path / "out" / "last_checkpoint").write_text(path.name)
    with pytest.raises(RuntimeError, match="before trainer.resume_or_load"):
        resumed(*SHORT, 2).train()


def test_another_files_rows_are_left_alone(start, resumed, tmp_path, messages):
    start(*OPTIONS, *SHORT, 2).train()
    metrics = tmp_path / "out" / "metrics.json"
    other = json.dumps({"iteration": 0, "other": "x" * 5000}) + "\n"
    metrics.write_text(other)
    resumed(*SHORT, 3).train()
    assert said(messages, "is not the file that the checkpoint was saved with")
    assert metrics.read_text().startswith(other)


def test_rows_that_were_removed_by_hand_are_warned_about(start, resumed, tmp_path, messages):
    start(*OPTIONS, *SHORT, 2).train()
    metrics = tmp_path / "out" / "metrics.json"
    metrics.write_text("")
    resumed(*SHORT, 3).train()
    assert said(messages, "metrics.json is shorter")
    assert min(row["iteration"] for row in rows(tmp_path / "out")) > 0


@pytest.mark.parametrize("step", [1, 3])
def test_epochs_of_another_length_do_not_go_on(start, resumed, step):
    trainer = start(*OPTIONS, "DATASETS.TESTS", ())
    trainer.register_hooks([At(step, send)])
    with pytest.raises(SystemExit):
        trainer.train()
    with pytest.raises(ValueError, match="3 steps an epoch, and this one has 5.*ITERS_PER_EPOCH 3"):
        resumed("SOLVER.ITERS_PER_EPOCH", 5)


def test_without_the_run_state_a_resumed_run_is_another_one(start):
    """Of a toolbox's own supervised run, whose augmentations draw from the global generators."""
    supervised = ("MODEL.META_ARCHITECTURE", "Baseline", "MODEL.HEADS.NUM_CLASSES", 8,
                  "MODEL.HEADS.NAME", "EmbeddingHead", "MODEL.LOSSES.NAME", ("CrossEntropyLoss",),
                  "SOLVER.OPT", "SGD", "DATALOADER.SAMPLER_TRAIN", "TrainingSampler",
                  "INPUT.FLIP.ENABLED", True, "DATASETS.TESTS", ())

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
