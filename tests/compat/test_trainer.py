"""DefaultTrainer: iterations, device, precision, runs without labelled tests, seeds."""

import argparse
import contextlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from caureid_plugin import compat
from caureid_plugin.common.errors import UserError
from fastreid.engine import DefaultTrainer, defaults, hooks
from fastreid.engine.train_loop import AMPTrainer, HookBase
from fastreid.modeling import meta_arch
from fastreid.utils.env import seed_all_rng

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="shows a defect without CUDA")


def test_iterations_per_epoch_follow_the_key(make_trainer):
    epochs = "SOLVER.MAX_EPOCH", 2, "SOLVER.STEPS", [1], "DATASETS.TESTS", ()
    trainer = make_trainer(*epochs, "SOLVER.ITERS_PER_EPOCH", 0)
    assert (trainer.iters_per_epoch, trainer.max_iter) == (48 // 16, 2 * 48 // 16)
    five = *epochs, "SOLVER.ITERS_PER_EPOCH", 5
    trainer = make_trainer(*five)
    assert (trainer.iters_per_epoch, trainer.max_iter) == (5, 10)
    trainer.train()
    assert trainer.iter == 10
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 0.1)
    with compat.without("iters_per_epoch"):
        assert make_trainer(*five).iters_per_epoch == 48 // 16  # the key has no effect


def test_schedule_is_built_for_the_configured_iterations(make_trainer):
    # warmup over 4 of 5 iterations leaves 3 of 4 epochs to the cosine; of N // batch = 3, two
    trainer = make_trainer("SOLVER.ITERS_PER_EPOCH", 5, "SOLVER.WARMUP_ITERS", 4,
                           "SOLVER.MAX_EPOCH", 4, "SOLVER.SCHED", "CosineAnnealingLR")
    assert trainer.scheduler["lr_sched"].T_max == 3


def test_no_iteration_is_an_error_that_names_the_keys(make_trainer):
    # TrainingSampler is endless, whatever the batch
    small = ("SOLVER.ITERS_PER_EPOCH", 0, "SOLVER.IMS_PER_BATCH", 64,
             "DATALOADER.SAMPLER_TRAIN", "TrainingSampler")
    with pytest.raises(ValueError, match=r"0 iterations.*SOLVER\.IMS_PER_BATCH.*"
                                         r"SOLVER\.ITERS_PER_EPOCH"):
        make_trainer(*small)
    trainer = make_trainer(*small, "SOLVER.ITERS_PER_EPOCH", 2, "DATASETS.TESTS", ())
    trainer.train()
    assert trainer.iter == 2
    with compat.without("iters_per_epoch"), pytest.raises(ZeroDivisionError):
        make_trainer(*small)


# ---------------------------------------------------------------- precision and device ----


def trained_weights(trainer):
    trainer.train()
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def test_mixed_precision_on_a_cpu_is_full_precision_and_one_warning(make_trainer, messages,
                                                                    recwarn):
    keys = ("MODEL.DEVICE", "cpu", "DATASETS.TESTS", ())
    seed_all_rng(0)
    plain = trained_weights(make_trainer(*keys))
    seed_all_rng(0)
    trainer = make_trainer(*keys, "SOLVER.AMP.ENABLED", True)
    told, = [message for message in messages if "AMP" in message]
    assert "full precision" in told and type(trainer._trainer) is AMPTrainer
    for name, value in trained_weights(trainer).items():
        assert torch.equal(value, plain[name]), name
    assert [m for m in messages if "AMP" in m] == [told]
    assert [w for w in recwarn if "amp" in str(w.message).lower()] == []
    trainer = make_trainer(*keys, "SOLVER.AMP.ENABLED", True, "SOLVER.MAX_EPOCH", 2)
    trainer.resume_or_load(resume=True)
    trainer.train()
    assert trainer.iter == 4


@NO_CUDA
def test_without_the_repair_mixed_precision_on_a_cpu_is_an_assertion(make_trainer):
    with compat.without("amp_needs_cuda"):
        trainer = make_trainer("SOLVER.AMP.ENABLED", True)
        with pytest.raises(AssertionError, match="CUDA is required"):
            trainer.train()


@NO_CUDA
def test_the_default_device_falls_back_to_the_cpu(tiny_cfg, messages):
    tiny_cfg.MODEL.HEADS.NUM_CLASSES = 8
    on_cpu = tiny_cfg.clone()
    on_cpu.MODEL.DEVICE = "cpu"  # asked for: nothing to report
    assert meta_arch.build_model(on_cpu).device.type == "cpu"
    assert tiny_cfg.MODEL.DEVICE == "cuda"
    tiny_cfg.freeze()
    model = meta_arch.build_model(tiny_cfg)
    assert {model.device.type, *(p.device.type for p in model.parameters())} == {"cpu"}
    told, = [m for m in messages if "running on the CPU" in m]
    assert "MODEL.DEVICE is 'cuda'" in told
    assert tiny_cfg.MODEL.DEVICE == "cuda"  # the caller's config stays as it was
    with compat.without("default_device"):
        with pytest.raises((AssertionError, RuntimeError), match="(?i)cuda|nvidia"):
            meta_arch.build_model(tiny_cfg)


def test_a_device_that_there_is_not_is_named(tiny_cfg):
    tiny_cfg.MODEL.HEADS.NUM_CLASSES = 8
    tiny_cfg.MODEL.DEVICE = "gpu"
    with pytest.raises(UserError, match="MODEL.DEVICE 'gpu' is no device .* cuda"):
        meta_arch.build_model(tiny_cfg)
    with compat.without("default_device"), pytest.raises(RuntimeError, match="device"):
        meta_arch.build_model(tiny_cfg)


# ----------------------------------------------------------- without labelled test sets ----


def test_training_without_a_test_set(make_trainer):
    trainer = make_trainer("DATASETS.TESTS", (), "SOLVER.MAX_EPOCH", 2)
    assert trainer.train() == {} and trainer.iter == 4
    saved = {path.name for path in Path(trainer.cfg.OUTPUT_DIR).glob("*.pth")}
    assert saved == {"model_0000.pth", "model_final.pth"}
    with compat.without("training_without_tests"):
        with pytest.raises(AttributeError, match="epoch") as hidden:
            make_trainer("DATASETS.TESTS", ()).train()
    assert isinstance(hidden.value.__context__, IndexError)


# period 0: once at the end, which the toolbox does not know
@pytest.mark.parametrize("period, epochs, expected", [(0, 3, 1), (2, 3, 2), (3, 2, 1)])
def test_epochs_between_two_evaluations(make_trainer, monkeypatch, period, epochs, expected):
    evaluated = []

    def test(cfg, model):
        evaluated.append(cfg.DATASETS.TESTS)
        return {"mAP": 50.0}

    monkeypatch.setattr(DefaultTrainer, "test", staticmethod(test))
    keys = ("TEST.EVAL_PERIOD", period, "SOLVER.MAX_EPOCH", epochs, "SOLVER.ITERS_PER_EPOCH", 1)
    trainer = make_trainer(*keys)
    trainer.train()
    assert evaluated == expected * [("Market1501",)]
    assert trainer.storage.latest()["mAP"][0] == 50.0
    unknown = contextlib.nullcontext() if period else pytest.raises(ZeroDivisionError)
    with compat.without("training_without_tests"), unknown:
        make_trainer(*keys).train()
    assert len(evaluated) == expected * (2 if period else 1)


@pytest.mark.parametrize("period, epochs", [(0, 1), (2, 3)])
def test_a_failed_run_is_not_evaluated(make_trainer, monkeypatch, period, epochs):
    never = staticmethod(lambda cfg, model: pytest.fail("evaluated"))
    monkeypatch.setattr(DefaultTrainer, "test", never)
    trainer = make_trainer("TEST.EVAL_PERIOD", period, "SOLVER.MAX_EPOCH", epochs)
    trainer.register_hooks([Failing("before_step")])
    with pytest.raises(OSError, match="the cause"):
        trainer.train()


class Failing(HookBase):
    def __init__(self, where):
        setattr(self, where, self.fail)

    def fail(self):
        raise OSError("the cause")


def test_an_error_before_the_first_epoch_surfaces_as_itself(make_trainer):
    trainer = make_trainer()
    trainer.register_hooks([Failing("before_train")])
    with pytest.raises(OSError, match="the cause"):
        trainer.train()


@pytest.mark.parametrize("iterations", [1, 2])
def test_a_run_of_very_few_iterations_can_be_printed(make_trainer, iterations, messages):
    keys = ("SOLVER.ITERS_PER_EPOCH", iterations, "DATASETS.TESTS", ())
    make_trainer("SOLVER.MAX_EPOCH", 3, *keys).train()
    printed = [m.split("epoch/iter: ")[1].split()[0] for m in messages if "epoch/iter: " in m]
    assert printed == [f"{epoch}/{(epoch + 1) * iterations - 1}" for epoch in range(3)]
    with compat.without("printer_twice"), compat.without("lost_figures"):
        with pytest.raises(ZeroDivisionError):
            make_trainer(*keys).train()


class Measuring(HookBase):
    """Logs figures where the plugin's hooks and the toolbox's evaluation do."""

    def before_epoch(self):
        self.trainer.storage.put_scalar("at_start", self.trainer.epoch, smoothing_hint=False)

    def after_epoch(self):
        self.trainer.storage.put_scalar("at_end", self.trainer.epoch, smoothing_hint=False)


@pytest.mark.parametrize("written, evaluated, expected, left", [
    (2, 1, [10.0, 20.0, 30.0], []),
    (200, 2, [10.0, 20.0], [10.0]),
    (200, 0, [10.0], None),  # the toolbox does not know this period
])
def test_every_figure_reaches_the_log_once(make_trainer, monkeypatch, tmp_path, written,
                                           evaluated, expected, left):
    """The writers note the iteration they have written, and drop what is logged there later.

    They write every so many iterations; the usual epoch of 400 ends with the toolbox's 200.
    """
    def run(name):
        """Three epochs of two iterations; gives the values of a figure in metrics.json."""
        figures, output = iter([10.0, 20.0, 30.0]), tmp_path / name
        test = staticmethod(lambda cfg, model: {"mAP": next(figures)})
        monkeypatch.setattr(DefaultTrainer, "test", test)
        output.mkdir()
        trainer = make_trainer("SOLVER.MAX_EPOCH", 3, "OUTPUT_DIR", str(output),
                               "TEST.EVAL_PERIOD", evaluated)
        trainer._hooks.insert(0, Measuring())
        trainer._hooks[0].trainer = trainer
        writer, = (h for h in trainer._hooks if isinstance(h, hooks.PeriodicWriter))
        writer._period = written
        trainer.train()
        lines = list(map(json.loads, (output / "metrics.json").read_text().splitlines()))
        return lambda figure: [line[figure] for line in lines if figure in line]

    values = run("mended")
    assert values("mAP") == expected
    assert values("at_start") == values("at_end") == [0, 1, 2]
    assert len(values("total_loss")) == 3
    if left is not None:
        with compat.without("lost_figures"):
            values = run("as it was")
        assert values("mAP") == left and values("at_start") == [0]


# -------------------------------------------------------------------------------- seeds ----


def drawn_after_setup(cfg):
    defaults.default_setup(cfg, argparse.Namespace(eval_only=True))
    return random.random(), np.random.rand(), torch.rand(1).item()


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr(defaults, "collect_env_info", lambda: "")  # slow, of no interest here


def test_one_seed_for_all_random_numbers(cfg, tmp_path):
    cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path / "log"), "SEED", 7])
    first = drawn_after_setup(cfg)
    assert drawn_after_setup(cfg) == first
    with compat.without("seed"):
        runs = [drawn_after_setup(cfg) for _ in range(2)]
    cfg.SEED = 8
    runs += [first, drawn_after_setup(cfg)]
    cfg.SEED = -1
    runs += [drawn_after_setup(cfg) for _ in range(2)]
    assert all(len(set(numbers)) == 6 for numbers in zip(*runs, strict=True))


@pytest.mark.parametrize("seed, named", [(7, 0), (-1, 1)])
def test_a_seed_that_does_not_count_is_not_named(cfg, tmp_path, messages, seed, named):
    cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path / "log"), "SEED", seed])
    drawn_after_setup(cfg)
    assert sum("generated random seed" in text for text in messages) == named


@NO_CUDA
def test_same_seed_gives_the_same_weights_bit_for_bit(tiny_cfg):
    tiny_cfg.merge_from_list([
        "DATALOADER.NUM_WORKERS", 2, "INPUT.FLIP.ENABLED", True, "INPUT.REA.ENABLED", True,
        "INPUT.CJ.ENABLED", True, "DATASETS.TESTS", ()])

    def run(seed):
        tiny_cfg.SEED = seed
        defaults.default_setup(tiny_cfg, argparse.Namespace())
        trainer = DefaultTrainer(tiny_cfg.clone())
        trainer.train()
        trainer.data_loader.shutdown()
        return trainer.model.state_dict()

    first, second, other = run(3), run(3), run(4)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["backbone.0.weight"], other["backbone.0.weight"])
