"""A run that goes on keeps its config: what differs acts and is said, or is refused and changes
nothing.
"""

import json
import re
import shutil
import time
import types
from pathlib import Path

import caureid_plugin
import pytest
import torch
import yaml
from caureid_plugin import compat
from caureid_plugin.common import run_lock
from caureid_plugin.compat.changed_keys import OF_THE_START, TAKEN_OVER
from caureid_plugin.compat.run_state import EVALUATION_CHANGED
from caureid_plugin.engine.verdict import collect
from fastreid.engine import DefaultTrainer, defaults, hooks
from fastreid.utils.checkpoint import Checkpointer

from helpers import warm

ONE_STEP = ("SOLVER.ITERS_PER_EPOCH", 1, "SOLVER.STEPS", [2], "DATASETS.TESTS", ())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".run_lock"}


def arguments(**given):
    return types.SimpleNamespace(
        **{"config_file": "", "eval_only": False, "resume": False, **given})


def read_config(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())


@pytest.fixture
def configured(cfg, hook_keys, tmp_path):
    """The config of a run in ``out``, with some keys set otherwise."""

    def make(*changes):
        made = cfg.clone()
        made.merge_from_list([*hook_keys, "OUTPUT_DIR", str(tmp_path / "out"), *changes])
        made.freeze()
        return made

    return make


@pytest.fixture
def set_up(configured, monkeypatch):
    """Runs the toolbox's default_setup with some keys set otherwise, to go on by default."""
    monkeypatch.setattr(defaults, "collect_env_info", lambda: "")  # slow, of no interest here

    def run(*changes, **given):
        defaults.default_setup(configured(*changes), arguments(**{"resume": True, **given}))

    return run


@pytest.fixture
def out(configured, tmp_path):
    """The folder of a run that was stopped: its config and something that was saved."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "config.yaml").write_text(configured("MODEL.WEIGHTS", "first.pth").dump())
    Checkpointer(torch.nn.Linear(2, 2), str(folder)).save("model_0000", epoch=0)
    return folder


REFUSED = [
    # schedule, optimizer, batches
    ("SOLVER.STEPS", [3]), ("SOLVER.GAMMA", 0.2), ("SOLVER.OPT", "SGD"),
    ("SOLVER.MOMENTUM", 0.5), ("SOLVER.WEIGHT_DECAY", 0.1), ("SOLVER.WARMUP_ITERS", 7),
    ("SOLVER.SCHED", "CosineAnnealingLR"), ("SOLVER.IMS_PER_BATCH", 32), ("SOLVER.FREEZE_ITERS", 1),
    ("SOLVER.ITERS_PER_EPOCH", 9), ("DATALOADER.NUM_INSTANCE", 2), ("DATALOADER.CAMERAS", "one"),
    # losses, labels, clusters, bank
    ("MODEL.LOSSES.NAME", ("CACCLoss",)), ("MODEL.LOSSES.CACC.SCALE", 2.0),
    ("CAUREID.LABELS", "extract"), ("CAUREID.CLUSTER.EPS", 0.4), ("CAUREID.CLUSTER.K1", 7),
    ("CAUREID.CLUSTER_PERIOD", 2), ("CAUREID.MEMORY.MOMENTUM", 0.9),
    # network, images, data
    ("MODEL.BACKBONE.FEAT_DIM", 128), ("MODEL.BN_GROUP_SIZE", 4), ("MODEL.CHANNELS_LAST", True),
    ("MODEL.META_ARCHITECTURE", "Baseline"), ("INPUT.SIZE_TRAIN", [64, 32]),
    ("INPUT.SIZE_TEST", [64, 32]), ("INPUT.FLIP.ENABLED", True), ("DATASETS.NAMES", ("DukeMTMC",)),
    ("TEST.PRECISE_BN.ENABLED", True), ("SEED", 4), ("CAMERA_FOLDER.LEVEL", 2),
    # read only at the start
    ("MODEL.WEIGHTS", "other.pth"), ("MODEL.BACKBONE.PRETRAIN", True),
]


@pytest.mark.parametrize("key, value", REFUSED, ids=[key for key, _ in REFUSED])
def test_a_key_that_decides_what_is_learnt_is_refused_before_anything_is_written(
        set_up, out, configured, key, value):
    before = contents(out)
    with pytest.raises(ValueError) as raised:
        set_up(key, value)
    had = yaml.safe_load(configured("MODEL.WEIGHTS", "first.pth").dump())
    for part in key.split("."):
        had = had[part]
    shown = list(value) if isinstance(value, tuple) else value
    error = str(raised.value)
    assert f"{key} is {shown!r} here and {had!r} there" in error
    assert str(out) in error and error.count(". ") == 0 and error.endswith("was learnt).")
    assert "give the run's own values, or begin anew in another OUTPUT_DIR" in error
    assert contents(out) == before


def test_a_number_that_is_counted_tells_of_other_images(set_up, out):
    with pytest.raises(ValueError, match=r"NUM_CAMERAS is 3 here and 2 .*images are others\)"):
        set_up("MODEL.HEADS.CAMSEP.NUM_CAMERAS", 3)


def test_a_long_list_of_keys_is_cut(set_up, out):
    with pytest.raises(ValueError, match=r"EPS is 0\.4 here.*, 3 more differ: give"):
        set_up("CAUREID.CLUSTER.EPS", 0.4, *(part for key, value in REFUSED[:7]
                                              for part in (key, value)))


def test_a_schedule_over_the_whole_run_keeps_its_length(set_up, out, configured):
    cosine = ("SOLVER.SCHED", "CosineAnnealingLR", "MODEL.WEIGHTS", "")
    (out / "config.yaml").write_text(configured(*cosine).dump())
    set_up(*cosine, "SOLVER.BASE_LR", 0.1)
    with pytest.raises(ValueError, match=r"MAX_EPOCH is 9 here and 2 there \(SOLVER.SCHED Cosine"):
        set_up(*cosine, "SOLVER.MAX_EPOCH", 9)


def test_keys_that_a_config_did_not_have_had_their_default(set_up, out):
    older = read_config(out)
    del older["SOLVER"]["NESTEROV"], older["INPUT"]
    older["GONE"] = {"SINCE": 1}
    (out / "config.yaml").write_text(yaml.safe_dump(older))
    set_up("INPUT.SIZE_TRAIN", [256, 128], "INPUT.SIZE_TEST", [256, 128])
    with pytest.raises(ValueError, match="SOLVER.NESTEROV is True here and False there"):
        set_up("SOLVER.NESTEROV", True, "INPUT.SIZE_TRAIN", [256, 128],
               "INPUT.SIZE_TEST", [256, 128])


@pytest.mark.parametrize("content", ["", "SOLVER: [", "- 1"])
def test_a_damaged_config_of_the_run_is_named(set_up, out, content):
    (out / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match=f"(?s){out}/config.yaml .*restore it, or remove"):
        set_up()
    assert (out / "config.yaml").read_text() == content


def test_without_the_comparison_two_configs_are_mixed(set_up, out):
    with compat.without("resumed_config"):
        set_up("SOLVER.OPT", "SGD")


# ------------------------------------------------------------------------ what may change ----


def learning_rates(trainer):
    """Of every step that the trainer does, by its number."""
    seen, step = {}, trainer.run_step

    def run_step():
        seen[trainer.iter] = [group["lr"] for group in trainer.optimizer.param_groups]
        step()

    trainer.run_step = run_step
    trainer.train()
    return seen


@pytest.mark.parametrize("done, options", [
    (1, ("SOLVER.WARMUP_ITERS", 3)),  # within the warm-up
    (2, ("SOLVER.WARMUP_ITERS", 1)),  # before the drop
    (4, ("SOLVER.BIAS_LR_FACTOR", 2.0)),  # behind it
    (2, ("SOLVER.SCHED", "CosineAnnealingLR", "SOLVER.ETA_MIN_LR", 0.0)),
])
def test_another_learning_rate_holds_from_the_checkpoint_on(start, messages, done, options):
    options = (*ONE_STEP, "SOLVER.STEPS", [3], *options, "SOLVER.MAX_EPOCH", 6)
    first = start(*options)
    first.register_hooks([hooks.CallbackHook(
        after_epoch=lambda t: t.epoch + 1 == done and t.checkpointer.save("half", epoch=t.epoch))])
    expected = learning_rates(first)
    Path(first.cfg.OUTPUT_DIR, "last_checkpoint").write_text("half.pth")
    base = first.cfg.SOLVER.BASE_LR
    resumed = start(*options, "SOLVER.BASE_LR", base / 4)
    resumed.resume_or_load(resume=True)
    assert f"SOLVER.BASE_LR {base / 4} is taken over: the run had {base}." in messages
    found = learning_rates(resumed)
    assert list(found) == list(range(done, 6))
    for step, rates in found.items():
        assert rates == pytest.approx([rate / 4 for rate in expected[step]], rel=1e-12)
    assert read_config(Path(first.cfg.OUTPUT_DIR))["SOLVER"]["BASE_LR"] == base / 4


def test_what_is_taken_over_acts_and_is_said(start, messages, tmp_path):
    weights = tmp_path / "weights.pth"
    first = start(*ONE_STEP, "SOLVER.MAX_EPOCH", 1)
    torch.save(first.model.state_dict(), weights)
    first = start(*ONE_STEP, "SOLVER.MAX_EPOCH", 1, "MODEL.WEIGHTS", str(weights))
    first.resume_or_load(resume=False)
    first.train()
    del messages[:]
    resumed = start(*ONE_STEP, "SOLVER.MAX_EPOCH", 4, "SOLVER.CHECKPOINT_PERIOD", 2,
                    "SOLVER.CLIP_GRADIENTS.ENABLED", True, "DATASETS.TESTS", ("Market1501",),
                    "TEST.EVAL_PERIOD", 1, "TEST.METRIC", "euclidean")
    resumed.resume_or_load(resume=True)
    taken_over = {text.split()[0] for text in messages if " taken over: the run had " in text}
    assert taken_over == {"SOLVER.MAX_EPOCH", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD",
                    "SOLVER.CLIP_GRADIENTS.ENABLED", "DATASETS.TESTS", "TEST.METRIC"}
    assert f"MODEL.WEIGHTS '' is of no use any more: the run had '{weights}'." in messages
    assert resumed.start_epoch == 1
    resumed.train()
    out = tmp_path / "out"
    assert {path.name for path in out.glob("*.pth")} == {
        "model_0001.pth", "model_best.pth", "model_final.pth"}
    assert "Clip" in type(resumed.optimizer).__name__
    saved = read_config(out)
    assert saved["SOLVER"]["MAX_EPOCH"] == 4 and saved["TEST"]["METRIC"] == "euclidean"
    assert saved["MODEL"]["WEIGHTS"] == str(weights)


@pytest.mark.parametrize("change, best", [(("TEST.METRIC", "euclidean"), -1),
                                          (("TEST.EVAL_PERIOD", 2), 50.0)])
def test_the_best_of_another_evaluation_is_not_compared_with(start, change, best):
    first = start(*ONE_STEP[:4], "SOLVER.MAX_EPOCH", 1)
    periodic = hooks.PeriodicCheckpointer
    first.train()
    path = Path(first.cfg.OUTPUT_DIR, "model_final.pth")
    saved = torch.load(path, weights_only=True)
    saved["run_state"]["best_metric"] = 50.0
    torch.save(saved, path)
    resumed = start(*ONE_STEP[:4], "SOLVER.MAX_EPOCH", 2, *change)
    resumed.resume_or_load(resume=True)
    assert [h.best_metric for h in resumed._hooks if isinstance(h, periodic)] == [best]


@pytest.mark.parametrize("change, compared", [(("TEST.METRIC", "euclidean"), False),
                                              (("SOLVER.MAX_EPOCH", 3), True)])
def test_the_verdict_compares_with_no_other_evaluation(start, monkeypatch, change, compared):
    """Nor with the one before training: its test set may be another one."""
    options = ("SOLVER.ITERS_PER_EPOCH", 1, "SOLVER.STEPS", [9], "TEST.EVAL_PERIOD", 1)
    first = start(*options, "SOLVER.MAX_EPOCH", 2)
    first.register_hooks([caureid_plugin.engine.EvalAtStart(True)])
    monkeypatch.setattr(first, "test", lambda *_: {"mAP": 99.0, "metric": 99.0})
    first.train()
    resumed = start(*options, "SOLVER.MAX_EPOCH", 3, *change)
    resumed.resume_or_load(resume=True)
    monkeypatch.setattr(resumed, "test", lambda *_: {"mAP": 30.0, "metric": 30.0})
    resumed.train()
    history = {name: [value for value, _ in figure.values()]
               for name, figure in resumed.storage.histories().items()}
    found = collect(history)
    assert found["mAP"] == [99.0, 99.0] * compared + [30.0]
    assert found.get("start/mAP", []) == [99.0] * compared
    rows = [json.loads(line) for line in
            Path(resumed.cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()]
    changed = [row["iteration"] for row in rows if EVALUATION_CHANGED in row]
    # from this step on figures are of the new one
    assert [row["mAP"] for row in rows if "mAP" in row] == [99.0, 99.0, 30.0]
    assert changed == [] if compared else [
        row["mAP"] for row in rows if "mAP" in row and row["iteration"] >= changed[0]] == [30.0]


def test_a_run_cannot_become_shorter_than_it_is(start):
    start(*ONE_STEP, "SOLVER.MAX_EPOCH", 3).train()
    shorter = start(*ONE_STEP, "SOLVER.MAX_EPOCH", 2)
    with pytest.raises(ValueError, match=r"MAX_EPOCH is 2 here and 3 there \(epochs done: 3\)"):
        shorter.resume_or_load(resume=True)
    start(*ONE_STEP, "SOLVER.MAX_EPOCH", 3).resume_or_load(resume=True)  # there is nothing to do


def test_a_trainer_without_default_setup_compares_as_well(start):
    start(*ONE_STEP, "SOLVER.MAX_EPOCH", 1).train()
    with pytest.raises(ValueError, match="CAUREID.CLUSTER.EPS is 0.5 here and 0.6 there"):
        start(*ONE_STEP, "CAUREID.CLUSTER.EPS", 0.5).resume_or_load(resume=True)


def test_a_number_of_classes_that_the_trainer_counts_is_no_difference(set_up, configured, tmp_path,
                                                                      tiny_market):
    supervised = ("MODEL.META_ARCHITECTURE", "Baseline", "MODEL.HEADS.NAME", "EmbeddingHead",
                  "MODEL.HEADS.NUM_CLASSES", 0, "MODEL.LOSSES.NAME", ("CrossEntropyLoss",),
                  *ONE_STEP, "SOLVER.MAX_EPOCH", 1)
    set_up(*supervised, resume=False)
    DefaultTrainer(configured(*supervised)).train()
    assert read_config(tmp_path / "out")["MODEL"]["HEADS"]["NUM_CLASSES"] == 8
    before = contents(tmp_path / "out")["config.yaml"]
    set_up(*supervised)
    trainer = DefaultTrainer(configured(*supervised))
    trainer.resume_or_load(resume=True)
    trainer.train()
    assert contents(tmp_path / "out")["config.yaml"] == before


def test_the_table_names_every_key_that_may_change():
    page = (warm.REPOSITORY / "docs" / "reliability.md").read_text()
    table = page.split("| key, when a run goes on |")[1].split("\n\n")[0]
    assert set(re.findall(r"`([A-Z][A-Z_.*]+)`", table)) >= {*TAKEN_OVER, *OF_THE_START}


# --------------------------------------------------------------------------- config.yaml ----


@pytest.mark.parametrize("given", [{"resume": True}, {"resume": False}, {"eval_only": True}])
def test_a_runs_config_stays_until_another_one_begins(set_up, out, messages, given):
    """Whether the command is an evaluation, or refused by the checkpoint, the data or the network.
    """
    before = contents(out)["config.yaml"]
    key = "SOLVER.MAX_EPOCH" if given.get("resume") else "MODEL.BACKBONE.FEAT_DIM"
    set_up(key, 128, **given)
    assert contents(out)["config.yaml"] == before
    assert not any("Full config saved" in text for text in messages)
    with compat.without("run_config"):
        set_up(key, 128, **given)
    assert contents(out)["config.yaml"] != before


def test_a_new_folder_has_its_config_at_once(set_up, tmp_path):
    set_up("SOLVER.MAX_EPOCH", 128)
    assert read_config(tmp_path / "out")["SOLVER"]["MAX_EPOCH"] == 128


def test_a_run_can_be_opened_after_commands_that_were_refused(small_run, monkeypatch):
    monkeypatch.setattr(defaults, "collect_env_info", lambda: "")
    folder = small_run()
    cfg = caureid_plugin.load_config(str(folder / "config.yaml"),
                                     ["OUTPUT_DIR", str(folder), "MODEL.BACKBONE.FEAT_DIM", 32])
    with pytest.raises(ValueError, match="FEAT_DIM is 32 here and 16 there"):
        defaults.default_setup(cfg, arguments(resume=True))
    defaults.default_setup(cfg, arguments())  # it may be refused before training begins
    caureid_plugin.load_run(folder)


def test_a_run_that_dies_before_its_checkpoint_takes_its_key_over_again(start, tmp_path):
    """config.yaml describes the checkpoint that is there, not what has begun since."""
    first, out = start(*ONE_STEP, "SOLVER.MAX_EPOCH", 1), tmp_path / "out"
    (out / "config.yaml").write_text(first.cfg.dump())
    first.train()
    keys = (*ONE_STEP, "SOLVER.MAX_EPOCH", 9, "SOLVER.BASE_LR", 0.05)

    def fail():
        raise RuntimeError("killed")

    for _ in range(2):
        before = contents(out)["config.yaml"]
        trainer = start(*keys)
        trainer.resume_or_load(resume=True)
        assert trainer.optimizer.param_groups[0]["initial_lr"] == pytest.approx(0.05)
        trainer.run_step = fail
        with pytest.raises(RuntimeError, match="killed"):
            trainer.train()
        assert contents(out)["config.yaml"] == before
    trainer = start(*keys)
    trainer.resume_or_load(resume=True)
    trainer.train()
    assert read_config(out)["SOLVER"]["BASE_LR"] == 0.05


def test_a_new_run_has_its_own_config_in_a_used_folder(start, set_up):
    start(*ONE_STEP, "SOLVER.MAX_EPOCH", 1).train()
    set_up(*ONE_STEP, "CAUREID.CLUSTER.EPS", 0.5, resume=False)
    trainer = start(*ONE_STEP, "CAUREID.CLUSTER.EPS", 0.5)
    folder = Path(trainer.cfg.OUTPUT_DIR)
    assert read_config(folder)["CAUREID"]["CLUSTER"]["EPS"] == 0.6
    first = (folder / "config.yaml").read_text()
    trainer.train()
    assert read_config(folder)["CAUREID"]["CLUSTER"]["EPS"] == 0.5
    assert (folder / "config.yaml.old").read_text() == first


def test_a_script_with_its_own_loop_has_its_config_with_its_first_checkpoint(set_up, out):
    set_up("CAUREID.CLUSTER.EPS", 0.5, resume=False)
    Checkpointer(torch.nn.Linear(2, 2), str(out)).save("model_0001")
    assert read_config(out)["CAUREID"]["CLUSTER"]["EPS"] == 0.5


# -------------------------------------------------------------------------- one run at a time ----


def test_a_folder_that_is_deleted_in_a_run_is_said_at_the_next_checkpoint(start):
    trainer = start(*ONE_STEP)
    folder = trainer.cfg.OUTPUT_DIR
    trainer.register_hooks([hooks.CallbackHook(
        after_step=lambda _: shutil.rmtree(folder))])
    with pytest.raises(OSError, match=rf"{folder}/\S+ could not be saved: No such file"):
        trainer.train()


@pytest.fixture
def another_run(tmp_path):
    """Starts a process that holds a folder, and waits until it does."""
    code = ("import sys, time; from caureid_plugin.common import run_lock; "
            "run_lock.hold(sys.argv[1]);"
            "print('held', flush=True); time.sleep(100)")
    output, started = tmp_path / "first.txt", []
    output.touch()

    def hold(folder):
        started.append(warm.start(["-c", code, folder], out=output))
        while "held" not in output.read_text():
            assert started[0].poll() is None, output.read_text()
            time.sleep(0.01)
        return started[0]

    yield hold
    for process in started:
        process.kill()
        process.wait()


def test_a_run_whose_folder_was_removed_and_is_another_runs_saves_nothing_there(
        out, another_run):
    run_lock.hold(out)
    shutil.rmtree(out)
    out.mkdir()
    checkpointer = Checkpointer(torch.nn.Linear(2, 2), str(out))
    other = another_run(out)
    with pytest.raises(BlockingIOError, match=f"process {other.pid}"):
        checkpointer.save("model_0001")
    assert contents(out) == {}


def test_a_second_run_is_refused_and_names_the_first(set_up, start, out, another_run):
    first = another_run(out)
    try:
        before = contents(out)
        held = rf"host \S+, process {first.pid}, since 20\d\d-\S+ \S+ \S+"
        for resume in (True, False):
            with pytest.raises(BlockingIOError,
                               match=rf"OUTPUT_DIR {out} \({held}\): .*another folder"):
                set_up("MODEL.WEIGHTS", "", resume=resume)
        assert contents(out) == before
        with pytest.raises(BlockingIOError, match=held):  # without default_setup
            start(*ONE_STEP).train()
        assert contents(out).items() >= before.items()
        set_up("SOLVER.MAX_EPOCH", 3, eval_only=True)  # writes nothing of the run
        with compat.without("one_run"):
            set_up("MODEL.WEIGHTS", "")
    finally:
        first.kill()
        first.wait()
    set_up("MODEL.WEIGHTS", "")  # the killed one does not block
