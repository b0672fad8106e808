"""A run that was stopped, killed or ended and goes on is the run that was never interrupted."""

import itertools
import json
import os
import random
import signal
import threading
import types
from pathlib import Path

import caureid_plugin
import numpy as np
import pytest
import torch
from caureid_plugin import EvalAtStart, clustering, compat
from caureid_plugin.common import signals
from caureid_plugin.compat import resuming
from fastreid.engine import defaults, hooks
from fastreid.engine.train_loop import HookBase
from fastreid.utils import comm

from helpers.metrics import read_rows

# the keys that a run needs to have something of everything: warm-up, a drop, an evaluation
OPTIONS = ("SOLVER.WARMUP_ITERS", 4, "SOLVER.STEPS", [2], "TEST.EVAL_PERIOD", 1, "SOLVER.OPT",
           "Adam", "SOLVER.ITERS_PER_EPOCH", 3)


def best_metric(trainer):
    return next(hook.best_metric for hook in trainer._hooks
                if isinstance(hook, hooks.PeriodicCheckpointer))


def result(trainer):
    """Everything a run ends with."""
    bank, teacher = trainer.model.memory, trainer.model.teacher
    return {
        **{f"teacher {name}": t.clone() for name, t in (
            teacher.state_dict() if teacher else {}).items()},
        **{f"model {name}": t.clone() for name, t in trainer.model.state_dict().items()},
        **{f"bank {name}": t.clone() for name, t in bank.state_dict().items()},
        **{f"optimizer {i} {name}": torch.as_tensor(value).clone()
           for i, state in trainer.optimizer.state_dict()["state"].items()
           for name, value in state.items()},
        "learning rate": [group["lr"] for group in trainer.optimizer.param_groups],
        "random": [random.random(), np.random.rand(), torch.rand(1).item()],
        "best": best_metric(trainer),
        "rows": read_rows(Path(trainer.cfg.OUTPUT_DIR)),
    }


def assert_ends_as(trainer, expected):
    """Trains to the end, which is bit for bit as expected."""
    trainer.train()
    found = result(trainer)
    assert found.keys() == expected.keys()
    different = [name for name, value in found.items() if not (
        torch.equal(value, expected[name]) if isinstance(value, torch.Tensor)
        else value == expected[name])]
    assert different == []


def empty(folder):
    for file in folder.iterdir():
        file.unlink()


@pytest.fixture(scope="module")
def finished():
    """Results of runs without interruption, by their options."""
    return {}


@pytest.fixture
def whole(start, finished, tmp_path):
    """Result of a run without interruption; its folder is emptied."""

    def run(*options):
        if options not in finished:
            trainer = start(*OPTIONS, *options)
            trainer.train()
            finished[options] = result(trainer)
            empty(tmp_path / "out")
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


def stopped(trainer, step=None, number=signal.SIGTERM):
    """Trains until a signal ends it, sent after a step (None: by what was patched); exit code."""
    if step is not None:
        trainer.register_hooks([At(step, lambda: send(number))])
    with pytest.raises(SystemExit) as left:
        trainer.train()
    return left.value.code


@pytest.fixture(autouse=True)
def signals_are_not_ignored():
    """As a shell starts a program, whatever this test run was started with."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)


@pytest.mark.parametrize("preset, period, workers", [
    # a period of 2: the labels are those of the checkpoint; so is the threshold of reliability
    ("bank", 2, 0), ("extract", 1, 0),
    pytest.param("bank", 1, 1, marks=pytest.mark.slow),
    pytest.param("extract", 2, 1, marks=pytest.mark.slow)])
def test_one_and_two_epochs_are_three(start, whole, resumed, preset, period, workers):
    options = ("CAUREID.LABELS", preset, "CAUREID.CLUSTER_PERIOD", period,
               "DATALOADER.NUM_WORKERS", workers, "CAUREID.CLUSTER.EPS_GAP", 0.15)
    expected = whole("SOLVER.MAX_EPOCH", 3, *options)
    first = start(*OPTIONS, "SOLVER.MAX_EPOCH", 1, *options)
    first.train()
    trainer = resumed("SOLVER.MAX_EPOCH", 3, *options)
    assert trainer.start_epoch == 1
    assert best_metric(trainer) == first.storage.latest()["metric"][0] > 0
    threshold = trainer.model.memory.threshold
    assert threshold == first.model.memory.threshold
    assert (threshold is not None) == (preset == "bank")
    assert_ends_as(trainer, expected)


CAP = ("MODEL.LOSSES.NAME", ("CAPLoss",), "MODEL.LOSSES.CAP.INTER_EPOCH", 1,
       "CAUREID.MEMORY.CENTRES", "momentum")
ICE = ("MODEL.LOSSES.NAME", ("ICELoss",), "MODEL.LOSSES.ICE.MOMENTUM", 0.9,
       "CAUREID.MEMORY.CENTRES", "fixed", "MODEL.HEADS.CAMSEP.ATTENTION", "none")


@pytest.mark.parametrize("peer, step", [(CAP, 3), (ICE, 1), (ICE, 4)])
def test_methods_of_others_go_on(start, whole, resumed, peer, step):
    """Within an epoch: vectors that have moved, the epoch, the teacher and its views."""
    options = ("CAUREID.LABELS", "extract", *peer)
    expected = whole("SOLVER.MAX_EPOCH", 3, *options)
    stopped(start(*OPTIONS, "SOLVER.MAX_EPOCH", 3, *options), step)
    assert_ends_as(resumed("SOLVER.MAX_EPOCH", 3, *options), expected)
    assert any(name.startswith("teacher") for name in expected) == (peer is ICE)


def test_a_teacher_that_is_not_restored_ends_the_run(start, resumed, tmp_path):
    start(*OPTIONS, "SOLVER.MAX_EPOCH", 1, *ICE).train()
    path, = (tmp_path / "out").glob("model_final.pth")
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["teacher"]
    torch.save(checkpoint, path)
    with pytest.raises(RuntimeError, match="goes on at epoch 1, but its teacher was not restored"):
        resumed("SOLVER.MAX_EPOCH", 2, *ICE).train()


def test_a_run_with_tracks_goes_on(start, whole, resumed, tiny_market):
    options = ("DATASETS.NAMES", "('CameraFolder',)", "CAMERA_FOLDER.ROOT",
               str(tiny_market / "Market-1501-v15.09.15" / "bounding_box_train"),
               "CAMERA_FOLDER.CAMERA", "pattern", "CAMERA_FOLDER.PATTERN", "_c([0-9])",
               "CAMERA_FOLDER.TRACK", "pattern", "CAMERA_FOLDER.TIME", "pattern",
               "CAMERA_FOLDER.TRACK_PATTERN", "(?P<track>[0-9]+)_c.s1_(?P<time>[0-9]+)",
               "CAUREID.CLUSTER.EPS", 0.8)
    expected = whole("SOLVER.MAX_EPOCH", 2, *options)
    start(*OPTIONS, "SOLVER.MAX_EPOCH", 1, *options).train()
    trainer = resumed("SOLVER.MAX_EPOCH", 2, *options)
    assert trainer.start_epoch == 1
    assert_ends_as(trainer, expected)
    of_track = trainer.model.memory.labels.view(16, 3)
    assert (of_track == of_track[:, :1]).all() and len(of_track.unique()) > 2


FAST = ("bank", 0), ("extract", 2), ("bank", 4), ("extract", 5)


@pytest.mark.parametrize("preset, step", [
    pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow)
    for case in itertools.product(("bank", "extract"), range(6))])
def test_a_run_that_is_stopped_behind_any_step_goes_on_there(start, whole, resumed, tmp_path,
                                                             preset, step):
    options = "CAUREID.LABELS", preset
    expected = whole(*options)
    workers = "DATALOADER.NUM_WORKERS", step % 2
    trainer = start(*OPTIONS, *options, *workers)
    assert stopped(trainer, step) == signals.EXIT_STOPPED == 75
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_stopped.pth"
    assert trainer.iter == step + 1
    trainer = resumed(*options, *workers)
    assert_ends_as(trainer, expected)
    assert trainer.start_iter == step + 1


@pytest.mark.parametrize("preset, place", [
    ("bank", "before_epoch"), ("extract", "features"), ("bank", "clustering"),
    pytest.param("extract", "before_epoch", marks=pytest.mark.slow),
    pytest.param("extract", "clustering", marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_between_two_epochs(start, whole, resumed, monkeypatch, preset,
                                                  place):
    options = "CAUREID.LABELS", preset
    expected = whole(*options)
    trainer = start(*OPTIONS, *options)

    def in_the_second_epoch(original):
        def changed(*args, **kwargs):
            if trainer.iter == 3 and trainer.epoch == 1:
                send()
            return original(*args, **kwargs)
        return changed

    with monkeypatch.context() as patch:
        if place == "before_epoch":  # received while the first one was evaluated
            patch.setattr(resuming, "_is_stop_wanted",
                          in_the_second_epoch(resuming._is_stop_wanted))
        elif place == "features":
            patch.setattr(trainer.model, "forward", in_the_second_epoch(trainer.model.forward))
        else:
            patch.setattr(clustering, "assign_pseudo_labels",
                          in_the_second_epoch(clustering.assign_pseudo_labels))
        stopped(trainer)
    assert trainer.iter == 3
    assert_ends_as(resumed(*options), expected)


FEW = "TEST.IMS_PER_BATCH", 4  # several batches in an evaluation


def in_an_evaluation(trainer, monkeypatch, iteration, number=signal.SIGTERM):
    """Sends a signal in the first batch of one; what is appended to for each of its batches."""
    forward, batches = trainer.model.forward, []

    def changed(batch):
        if not trainer.model.training and "indexes" not in batch and trainer.iter == iteration:
            batches.append(1)
            if len(batches) == 1:
                send(number)
        return forward(batch)

    monkeypatch.setattr(trainer.model, "forward", changed)
    return batches


@pytest.mark.parametrize("preset, epoch, number", [
    ("bank", 0, signal.SIGTERM), ("extract", 1, signal.SIGHUP)])
def test_a_run_that_is_stopped_in_an_evaluation_makes_it_again(
        start, whole, resumed, tmp_path, monkeypatch, preset, epoch, number):
    options = ("CAUREID.LABELS", preset, *FEW)
    expected = whole(*options)
    trainer = start(*OPTIONS, *options)
    batches = in_an_evaluation(trainer, monkeypatch, 3 * (epoch + 1), number)
    assert stopped(trainer) == signals.EXIT_STOPPED
    assert len(batches) == 1
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_stopped.pth"
    trainer = resumed(*options)
    assert_ends_as(trainer, expected)
    assert trainer.start_iter == 3 * (epoch + 1)


def test_a_run_that_is_stopped_in_the_evaluation_behind_its_last_epoch(
        start, resumed, tmp_path, monkeypatch, messages):
    options = *FEW, "TEST.EVAL_PERIOD", 5
    trainer = start(*OPTIONS, *options)
    trainer.train()
    expected = result(trainer)
    assert "mAP" in expected["rows"][-1]
    empty(tmp_path / "out")
    trainer = start(*OPTIONS, *options)
    batches = in_an_evaluation(trainer, monkeypatch, 6)
    assert stopped(trainer) == signals.EXIT_STOPPED and len(batches) == 1
    assert was_logged(messages, "model_final.pth is still good. --resume evaluates it.")
    assert sum("Total training time" in text for text in messages) == 1 + 1  # the whole run's
    trainer = resumed(*options)
    trainer.train()
    found = result(trainer)
    assert trainer.start_iter == 6
    assert found["rows"] == expected["rows"] and found["best"] == expected["best"]


def test_a_run_that_is_stopped_in_its_first_evaluation(start, tmp_path, monkeypatch, messages):
    trainer = start(*OPTIONS, *FEW)
    trainer.register_hooks([EvalAtStart(True)])
    batches = in_an_evaluation(trainer, monkeypatch, 0, signal.SIGINT)
    assert stopped(trainer) == signals.EXIT_INTERRUPTED and len(batches) == 1
    assert was_logged(messages, "before the first step: there is nothing to save")
    assert not (tmp_path / "out" / "last_checkpoint").exists()


def test_without_the_loop_an_evaluation_does_not_look_for_signals(monkeypatch):
    with compat.without("training_loop"), signals.StopRequest() as request:
        request.signal = signal.SIGTERM
        assert defaults.inference_on_dataset.__module__ == "fastreid.evaluation.evaluator"
        assert not hasattr(defaults.inference_on_dataset, "__wrapped__")
    assert signals.StopRequest.current is None


class Ranks:
    """Threads that stand for processes: all of them gather, or the barrier breaks."""

    def __init__(self, count, monkeypatch):
        self.barrier = threading.Barrier(count)
        self.values, self.failed = [None] * count, []
        self.rank = threading.local()
        monkeypatch.setattr(comm, "all_gather", self.gather)

    def gather(self, value):
        self.values[self.rank.number] = value
        self.barrier.wait(20)
        found = list(self.values)
        self.barrier.wait(20)
        return found

    def run(self, work):
        def begin(number):
            self.rank.number = number
            try:
                work(number)
            except Exception as error:  # noqa: BLE001  compared below
                self.failed.append(type(error))

        threads = [threading.Thread(target=begin, args=(n,)) for n in range(len(self.values))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)


@pytest.mark.parametrize("stop_at", [None, 0, 3, 5])
def test_processes_with_unequal_numbers_of_batches_stop_together(monkeypatch, stop_at):
    ranks, seen = Ranks(3, monkeypatch), [0, 0, 0]

    def evaluate(rank):
        for number, _ in enumerate(resuming._StoppableLoader([None] * (2, 5, 0)[rank])):
            seen[rank] = number + 1
            if rank == 1 and number + 1 == stop_at:
                request.signal = signal.SIGTERM

    with signals.StopRequest() as request:
        if stop_at == 0:
            request.signal = signal.SIGTERM
        ranks.run(evaluate)
    assert ranks.failed == ([] if stop_at is None else [signals.StopNow] * 3)
    assert seen == ([2, 5, 0] if stop_at is None else [min(2, stop_at), stop_at, 0])


def test_processes_stop_together_in_an_extraction(monkeypatch):
    ranks, asked = Ranks(2, monkeypatch), [0, 0]

    class Loader(list):
        dataset = types.SimpleNamespace(paths=["a"] * 4)

        def shutdown(self):
            pass

    def extract(rank):
        batches = Loader({"indexes": torch.tensor([3 * rank + i])} for i in range((3, 1)[rank]))
        network = torch.nn.Module()
        network.forward = lambda batch: batch["indexes"][:, None].float()

        def after_batch():
            asked[rank] += 1
            compat.stop_point(trainer, together=True)

        found = caureid_plugin.extract_features(network, batches, after_batch=after_batch)
        assert found.flatten().tolist() == [0, 1, 2, 3]

    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    trainer = types.SimpleNamespace(stop_request=signals.StopRequest())
    ranks.run(extract)
    assert ranks.failed == [] and asked == [3, 3]
    trainer.stop_request.signal = signal.SIGTERM
    ranks.run(extract)
    assert ranks.failed == [signals.StopNow] * 2 and asked == [4, 4]
    compat.stop_point(trainer)  # where they cannot agree, several go on


def test_a_run_that_is_stopped_before_its_first_step(start, tmp_path, monkeypatch):
    def made():
        trainer = start(*OPTIONS)
        trainer.register_hooks([EvalAtStart(True)])
        return trainer

    whole = made()
    whole.train()
    expected = result(whole)
    assert "start/mAP" in expected["rows"][0]
    empty(tmp_path / "out")
    assign = clustering.assign_pseudo_labels
    with monkeypatch.context() as patch:
        patch.setattr(clustering, "assign_pseudo_labels",
                      lambda *args, **kwargs: send() or assign(*args, **kwargs))
        stopped(made())
    trainer = made()
    trainer.resume_or_load(resume=True)
    assert_ends_as(trainer, expected)
    assert trainer.start_iter == 0


def test_a_run_that_is_stopped_again_and_again(start, whole, resumed):
    expected = whole()
    for step in (0, 1, 4):
        trainer = resumed() if step else start(*OPTIONS)
        stopped(trainer, step)
        assert trainer.iter == step + 1
    assert_ends_as(resumed(), expected)


def test_ctrl_c_saves_and_the_second_one_ends_at_once(start, resumed, tmp_path):
    assert stopped(start(*OPTIONS), 1, signal.SIGINT) == signals.EXIT_INTERRUPTED == 130
    saved = (tmp_path / "out" / "model_stopped.pth").read_bytes()
    trainer = resumed()
    trainer.register_hooks([At(3, lambda: (send(signal.SIGINT), send(signal.SIGINT)))])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.iter == 3
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_0000.pth"
    assert (tmp_path / "out" / "model_stopped.pth").read_bytes() == saved


def test_the_handlers_are_given_back_and_an_ignored_signal_stays_ignored(start):
    ignored = signal.SIGINT, signal.SIGHUP  # as under nohup, and in a shell's background
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    before = signal.getsignal(signal.SIGTERM)
    trainer = start(*OPTIONS)
    trainer.register_hooks([At(1, lambda: [send(number) for number in ignored])])
    trainer.train()
    assert trainer.iter == trainer.max_iter
    assert signal.getsignal(signal.SIGTERM) is before
    assert [signal.getsignal(number) for number in ignored] == [signal.SIG_IGN] * 2


def test_without_the_loop_a_signal_ends_the_run_where_it_is(start, tmp_path):
    with compat.without("training_loop"):
        trainer = start(*OPTIONS)
        trainer.register_hooks([At(1, lambda: send(signal.SIGINT))])
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    assert not (tmp_path / "out" / "last_checkpoint").exists()


def test_a_seed_that_was_drawn_is_kept(start, whole):
    expected = whole("SEED", -1)
    drawn = start(*OPTIONS, "SEED", -1)
    seed = drawn.run_state.seed
    stopped(drawn, 4)
    trainer = start(*OPTIONS, "SEED", -1)
    trainer.run_state.seed = seed + 1  # another process draws another one
    trainer.resume_or_load(resume=True)
    assert trainer.run_state.seed == seed
    assert_ends_as(trainer, expected)


# ------------------------------------------------------- what does not belong together ----

SHORT = ("SOLVER.ITERS_PER_EPOCH", 1, "DATASETS.TESTS", (), "SOLVER.MAX_EPOCH")


def was_logged(messages, part):
    return any(part in text for text in messages)


def test_another_seed_is_warned_about_where_no_config_tells(start, resumed, tmp_path, messages):
    start(*OPTIONS, *SHORT, 1).train()
    (tmp_path / "out" / "config.yaml").unlink()
    resumed(*SHORT, 2, "SEED", 4)
    assert was_logged(messages, "There is no config.yaml in OUTPUT_DIR")
    assert was_logged(messages, "neither the one run nor the other")


def test_a_fresh_run_does_not_go_on_from_an_older_one(start, resumed, tmp_path, messages):
    """Stopped before its first checkpoint, it leaves none to resume from."""
    start(*OPTIONS, *SHORT, 1).train()
    fresh = start(*OPTIONS)
    fresh.checkpointer.save = lambda *_, **__: None  # as if killed before
    stopped(fresh, 0)
    assert was_logged(messages, "named 'model_final.pth', of a run before this one")
    assert not (tmp_path / "out" / "last_checkpoint").exists()
    assert resumed().start_epoch == 0


def test_a_run_that_is_stopped_while_it_fills_its_bank(start, tmp_path, messages):
    trainer = start(*OPTIONS)
    forward = trainer.model.forward
    trainer.model.forward = lambda batch: (send(), forward(batch))[1]
    assert stopped(trainer) == signals.EXIT_STOPPED
    assert was_logged(messages, "before the first step: there is nothing to save")
    assert not (tmp_path / "out" / "last_checkpoint").exists()


def test_a_checkpoint_without_the_state_of_a_run(start, resumed, tmp_path, messages):
    start(*OPTIONS, *SHORT, 1).train()
    path = tmp_path / "out" / "model_final.pth"
    saved = torch.load(path, weights_only=True)
    del saved["run_state"]
    torch.save(saved, path)
    resumed(*SHORT, 2).train()
    assert was_logged(messages, "holds no state of a run")


@pytest.mark.parametrize("content, warning", [
    (json.dumps({"iteration": 0, "other": "x" * 5000}) + "\n",
     "is not the file that the checkpoint was saved with"),
    ("", "metrics.json is shorter")])
def test_rows_of_another_file_are_left_alone(start, resumed, tmp_path, messages, content, warning):
    start(*OPTIONS, *SHORT, 2).train()
    metrics = tmp_path / "out" / "metrics.json"
    metrics.write_text(content)
    resumed(*SHORT, 3).train()
    assert was_logged(messages, warning)
    assert metrics.read_text().startswith(content)
    added = metrics.read_text()[len(content):].splitlines()
    assert added and all(json.loads(row)["iteration"] > 0 for row in added)


@pytest.mark.parametrize("step", [1, 3])
def test_epochs_of_another_length_do_not_go_on(start, resumed, tmp_path, step):
    stopped(start(*OPTIONS, "DATASETS.TESTS", ()), step)
    (tmp_path / "out" / "config.yaml").unlink()
    with pytest.raises(ValueError, match="3 steps an epoch, and this one has 5.*ITERS_PER_EPOCH 3"):
        resumed("SOLVER.ITERS_PER_EPOCH", 5)


def test_without_the_run_state_a_resumed_run_is_another_one(start):
    """Of a toolbox's own supervised run, whose augmentations draw from the global generators."""
    supervised = ("MODEL.META_ARCHITECTURE", "Baseline", "MODEL.HEADS.NUM_CLASSES", 8,
                  "MODEL.HEADS.NAME", "EmbeddingHead", "MODEL.LOSSES.NAME", ("CrossEntropyLoss",),
                  "SOLVER.OPT", "SGD", "DATALOADER.SAMPLER_TRAIN", "TrainingSampler",
                  "INPUT.FLIP.ENABLED", True, "DATASETS.TESTS", ())

    def drawn(*, resumed):
        """What the global generator gives behind the first step of the second epoch."""
        trainer, values = start(*OPTIONS, *supervised, hook=False), []
        if resumed:
            trainer.resume_or_load(resume=True)
        trainer.register_hooks([At(3, lambda: values.append(torch.rand(3)))])
        trainer.train()
        return values[0]

    def after_one_epoch():
        torch.manual_seed(7)
        start(*OPTIONS, *supervised, "SOLVER.MAX_EPOCH", 1, hook=False).train()

    expected = drawn(resumed=False)
    after_one_epoch()
    assert torch.equal(drawn(resumed=True), expected)
    with compat.without("run_state"):
        after_one_epoch()
        assert not torch.equal(drawn(resumed=True), expected)
