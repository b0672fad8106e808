"""What a config leaves to the data, and trainings on images of one's own only by config keys."""

import logging
import os
import shutil
import sys
from types import SimpleNamespace

import caureid_plugin
import numpy as np
import pytest
import torch
import yaml
from caureid_plugin import fit_to_data, get_config_file, load_config
from caureid_plugin.cli import attention, eps
from caureid_plugin.cli.common import call
from caureid_plugin.clustering import Tracks
from caureid_plugin.common.errors import UserError
from caureid_plugin.engine import build_network
from caureid_plugin.engine import training as train_net
from caureid_plugin.engine.checks import check_size
from caureid_plugin.report import attention as attention_module
from caureid_plugin.runs.folder import read_config
from caureid_plugin.runs.run import find_test_set
from fastreid.config import get_cfg
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.modeling import build_model

from benchmarks import camera_bias
from helpers import warm
from helpers.metrics import read_rows
from helpers.tiny import OWN_CONFIG

CONFIG = OWN_CONFIG
CAMERAS = "MODEL.HEADS.CAMSEP.NUM_CAMERAS"
OWN = ["DATASETS.NAMES", "('CameraFolder',)", "DATASETS.TESTS", "('CameraFolder',)", CAMERAS, -1]
PATTERN = ["CAMERA_FOLDER.CAMERA", "pattern", "CAMERA_FOLDER.PATTERN", r"_c(\d)"]


@pytest.fixture
def market(tiny_market):
    return tiny_market / "Market-1501-v15.09.15"


def labels(market):
    return ["CAMERA_FOLDER.QUERY", market / "query",
            "CAMERA_FOLDER.GALLERY", market / "bounding_box_test"]


def folders_per_camera(market, root):
    """The training images in a folder for each camera, under names that say nothing."""
    for number, path in enumerate(sorted((market / "bounding_box_train").iterdir())):
        folder = root / f"camera {path.name.split('_c')[1][0]}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"{number:03d}.jpg")
    return root


def decided(cfg, *keys):
    """The fitted config and what was decided, (level, text)."""
    cfg.merge_from_list([str(part) for part in keys])
    found = []
    return fit_to_data(cfg, lambda *notice: found.append(notice)), found


@pytest.fixture
def nothing_is_listed(monkeypatch):
    def get(name):
        raise AssertionError(f"{name} was listed")

    monkeypatch.setattr(DATASET_REGISTRY, "get", get)


# ------------------------------------------------------------------- what is decided ----


def test_nothing_left_to_the_data_is_nothing_changed(cfg, nothing_is_listed):
    cfg.merge_from_file(get_config_file("Market/caureid.yml"))
    fitted, found = decided(cfg)
    assert fitted == cfg and fitted is not cfg and found == []


@pytest.mark.parametrize("frozen", [True, False])
def test_the_cameras_are_counted(cfg, market, frozen):
    cfg.merge_from_list([CAMERAS, -1, "DATASETS.NAMES", ("Market1501",)])
    before = cfg.clone()
    if frozen:
        cfg.freeze()
    found = []
    fitted = fit_to_data(cfg, lambda *notice: found.append(notice))
    assert fitted.MODEL.HEADS.CAMSEP.NUM_CAMERAS == 2 and fitted.is_frozen() == frozen
    assert cfg == before and cfg.MODEL.HEADS.CAMSEP.NUM_CAMERAS == -1
    fitted.defrost()
    fitted.MODEL.HEADS.CAMSEP.NUM_CAMERAS = -1
    assert fitted == cfg  # nothing else has changed
    ((level, text),) = found
    assert level == logging.INFO and f"{CAMERAS} -1 becomes 2" in text


def test_cameras_of_several_datasets_add_up(cfg, market):
    fitted, _ = decided(cfg, *OWN, "DATASETS.NAMES", "('Market1501', 'CameraFolder')", *PATTERN,
                        "CAMERA_FOLDER.ROOT", market / "bounding_box_train")
    assert fitted.MODEL.HEADS.CAMSEP.NUM_CAMERAS == 4


def test_one_camera_switches_off_what_needs_several(cfg, market):
    cfg.merge_from_file(OWN_CONFIG)  # the full method
    cfg.MODEL.BACKBONE.TIMM.CAMERA_EMBEDDING = True
    fitted, found = decided(cfg, "CAMERA_FOLDER.ROOT", market / "bounding_box_train",
                            "CAMERA_FOLDER.CAMERA", "none", *labels(market))
    expected = {"MODEL.LOSSES.NAME": ("InfoNCELoss",), "MODEL.HEADS.CAMSEP.ATTENTION": "none",
                CAMERAS: 0, "CAUREID.CLUSTER.CAMERA_AWARE": False,
                "MODEL.BACKBONE.TIMM.CAMERA_EMBEDDING": False}
    ((level, text),) = found
    assert level == logging.WARNING and "one camera" in text and "CAMERA_FOLDER.CAMERA" in text
    for key, value in expected.items():
        assert f"{key} {value}" in text
    cfg.merge_from_list([part for item in expected.items() for part in item])
    assert fitted == cfg


def test_only_what_was_on_is_said_to_be_off(cfg, market):
    _, ((_, text),) = decided(
        cfg, *OWN[:2], CAMERAS, -1, "DATASETS.TESTS", "()", "CAMERA_FOLDER.CAMERA", "none",
        "CAMERA_FOLDER.ROOT", market / "query", "MODEL.LOSSES.NAME", "('InfoNCELoss',)")
    assert "CAMERA_AWARE" not in text and "LOSSES" not in text and "ATTENTION none" in text


def test_one_camera_and_no_loss_left(cfg, market):
    with pytest.raises(ValueError, match=r"one camera.*MODEL.LOSSES.NAME.*add InfoNCELoss"):
        decided(cfg, *OWN, "CAMERA_FOLDER.CAMERA", "none", "CAMERA_FOLDER.ROOT", market / "query",
                "MODEL.LOSSES.NAME", "('CACCLoss', 'CameraSeparationLoss')")


@pytest.mark.parametrize("tests, left, at_start", [
    ("('CameraFolder',)", (), False), ("('CameraFolder', 'Market1501')", ("Market1501",), True)])
def test_without_labels_nothing_is_evaluated(cfg, nothing_is_listed, tests, left, at_start):
    fitted, ((_, text),) = decided(cfg, "DATASETS.TESTS", tests, "TEST.EVAL_AT_START", True)
    assert fitted.DATASETS.TESTS == left and fitted.TEST.EVAL_AT_START == at_start
    assert "CAMERA_FOLDER.QUERY and GALLERY are empty" in text
    assert ("label-free indicators" in text) == (not left)


LABELS = ["CAMERA_FOLDER.QUERY", "q", "CAMERA_FOLDER.GALLERY", "g"]
LATER = ["DATASETS.NAMES", "('CameraFolder',)", "DATASETS.TESTS", "()", *LABELS]


def test_labels_that_come_later_are_evaluated(cfg, nothing_is_listed):
    fitted, ((level, text),) = decided(cfg, *LATER)
    assert fitted.DATASETS.TESTS == ("CameraFolder",) and level == logging.INFO
    assert "CAMERA_FOLDER.QUERY and GALLERY are set" in text and "DATASETS.TESTS" in text


@pytest.mark.parametrize("keys, tests", [
    ([*LATER, "CAMERA_FOLDER.QUERY", "''"], ()),
    ([*LATER, "DATASETS.NAMES", "('Market1501',)"], ()),
    ([*LATER, "DATASETS.TESTS", "('Market1501',)"], ("Market1501",)),
    # that one of the two is missing is for the dataset to say
    (["DATASETS.TESTS", "('CameraFolder',)", *LABELS[:2]], ("CameraFolder",)),
    (["DATASETS.TESTS", "('CameraFolder',)", *LABELS[2:]], ("CameraFolder",))])
def test_other_tests_stay(cfg, nothing_is_listed, keys, tests):
    fitted, found = decided(cfg, *keys)
    assert fitted.DATASETS.TESTS == tests and found == []


def test_nothing_to_train_on_is_said():
    cfg = load_config("Synthetic/caureid.yml", ["DATASETS.NAMES", "()"])
    with pytest.raises(UserError, match="DATASETS.NAMES is empty.*CameraFolder"):
        train_net.build_trainer(cfg)


def test_without_training_nothing_is_counted(cfg, nothing_is_listed):
    cfg.merge_from_file(get_config_file(CONFIG))
    cfg.merge_from_list(LABELS)
    assert load_config(CONFIG, LABELS, training=False) == cfg == fit_to_data(cfg, training=False)
    with pytest.raises(AssertionError, match="was listed"):
        load_config(CONFIG, LABELS)


def test_notices_are_logged_by_default(market, messages):
    cfg = load_config(CONFIG, ["CAMERA_FOLDER.ROOT", str(market), "CAMERA_FOLDER.LEVEL", "-1"])
    assert cfg.MODEL.HEADS.CAMSEP.NUM_CAMERAS == 3 and not cfg.is_frozen()
    first, second = messages
    assert "NUM_CAMERAS -1 becomes 3" in first and "nothing is evaluated" in second


def test_load_config(cfg, tmp_path):
    file = tmp_path / "own.yml"
    file.write_text("SEED: 5\nSOLVER:\n  MAX_EPOCH: 7\n")
    cfg.merge_from_list(["SEED", 5, "SOLVER.MAX_EPOCH", 8])
    assert load_config(str(file), ["SOLVER.MAX_EPOCH", "8"]) == cfg
    assert load_config("Market/caureid.yml").DATASETS.NAMES == ("Market1501",)
    plain = get_cfg()
    caureid_plugin.add_caureid_config(plain)
    assert load_config("") == plain
    with pytest.raises(FileNotFoundError, match="Market/caureid.yml"):
        load_config("Markt.yml")
    with pytest.raises(KeyError, match="did you mean CAMERA_FOLDER.ROOT"):
        load_config(CONFIG, ["CAMERA_FOLDER.ROOTS", "x"])
    with pytest.raises(ValueError, match="CAMERA_FOLDER.ROOT is empty"):
        load_config("OwnData/caureid.yml")


@pytest.mark.parametrize("number, loss", [(-1, "InfoNCELoss"), (-2, "CameraSeparationLoss")])
def test_a_number_that_was_left_open_builds_no_network(cfg, number, loss):
    cfg.merge_from_file(get_config_file(CONFIG))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.LOSSES.NAME", (loss,), CAMERAS, number])
    with pytest.raises(ValueError, match=rf"{CAMERAS} is {number}.*caureid_plugin.fit_to_data"):
        build_model(cfg)


# -------------------------------------------------------------------- training on it ----


def test_the_same_folder_trains_bit_for_bit_as_market1501(train_as_script, market, tmp_path):
    table = tmp_path / "query.csv"
    rows = [f"{path},{int(path.name[:4])},{path.name[6]}" for path in (market / "query").iterdir()]
    table.write_text("\n".join(["path,identity,camera", *rows[::-1]]))
    short = "SOLVER.MAX_EPOCH", 1
    train_as_script(CAMERAS, -1, *short, folder="theirs")
    train_as_script(*OWN, *PATTERN, *labels(market), "CAMERA_FOLDER.ROOT", market /
                    "bounding_box_train", "CAMERA_FOLDER.QUERY", table, *short, folder="ours")
    theirs, ours = (torch.load(tmp_path / name / "model_final.pth", weights_only=True)
                    for name in ("theirs", "ours"))
    for part in ("model", "memory_bank"):
        assert list(theirs[part]) == list(ours[part])
        for name, value in theirs[part].items():
            assert torch.equal(value, ours[part][name]), name
    rows = [read_rows(tmp_path / name) for name in ("theirs", "ours")]
    for name in ("start/mAP", "mAP", "Rank-1", "loss_camsep", "labels/clusters"):
        theirs, ours = ([row[name] for row in part if name in row] for part in rows)
        assert theirs == ours and theirs, name


@pytest.mark.parametrize("camera", ["folder", "none"])
def test_images_without_labels_train_to_the_end(train_as_script, market, tmp_path, camera):
    root = folders_per_camera(market, tmp_path / "crops")
    (root / "notes.txt").touch()
    trainer = train_as_script(*OWN, "CAMERA_FOLDER.CAMERA", camera, "CAMERA_FOLDER.ROOT", root,
                              "SOLVER.MAX_EPOCH", 1, config=CONFIG)
    # the toolbox names each loss where there are several
    losses = {"loss_infonce", "loss_camsep", "loss_cacc"} if camera != "none" else set()
    found = set().union(*read_rows(tmp_path / "run"))
    assert {name for name in found if name.startswith("loss_")} == losses
    assert {"total_loss", "labels/clusters", "labels/outliers"} <= found
    assert not [name for name in found if "mAP" in name]
    assert trainer.data_loader.dataset.num_cameras == (1 if camera == "none" else 2)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("nothing is evaluated on it") == 1
    assert log.count("1 files below") == 1 and "1 .txt" in log
    assert log.count("NUM_CAMERAS -1 becomes 2") == (camera != "none")
    assert log.count("All training images come from one camera") == (camera == "none")
    state = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    assert state["epoch"] == 0
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["MODEL"]["HEADS"]["CAMSEP"]["NUM_CAMERAS"] == (0 if camera == "none" else 2)


@pytest.fixture
def on_own_data(train_as_script, market, tmp_path):
    """Trains one epoch on the images in a folder for each camera; gives the run's folder."""
    root = folders_per_camera(market, tmp_path / "crops")

    def train(*options):
        train_as_script(*OWN, "CAMERA_FOLDER.ROOT", root, "SOLVER.MAX_EPOCH", 1, *options,
                        config=CONFIG)
        return tmp_path / "run"

    return train


def last_map(run):
    return [row["mAP"] for row in read_rows(run) if "mAP" in row][-1]


def evaluate(config, *keys):
    return train_net.evaluate(load_config(config, [str(key) for key in keys], training=False))


def map_on_market(run, *keys):
    """The mAP of its last checkpoint on the same test images, read as Market-1501."""
    return evaluate(str(run / "config.yaml"), "DATASETS.TESTS", "('Market1501',)",
                    "MODEL.WEIGHTS", run / "model_final.pth", *keys)["mAP"]


@pytest.mark.parametrize("camera", ["folder", "none"])
def test_a_run_is_evaluated_without_its_training_images(on_own_data, script_keys, market, tmp_path,
                                                        camera):
    run, root = on_own_data(*labels(market), "CAMERA_FOLDER.CAMERA", camera), tmp_path / "crops"
    weights = ["MODEL.WEIGHTS", str(run / "model_final.pth")]
    keys = [*script_keys, *OWN, *labels(market), "CAMERA_FOLDER.CAMERA", camera, *weights]
    expected = last_map(run)
    cfg = load_config(CONFIG, [str(part) for part in [*keys, "CAMERA_FOLDER.ROOT", root]])
    assert cfg.MODEL.HEADS.CAMSEP.NUM_CAMERAS != -1
    assert train_net.evaluate(cfg)["mAP"] == expected
    shutil.rmtree(root)
    assert evaluate(CONFIG, *keys)["mAP"] == expected
    cfg = load_config(str(run / "config.yaml"), weights)
    assert cfg.CAMERA_FOLDER.ROOT == str(root)
    assert train_net.evaluate(cfg)["mAP"] == map_on_market(run) == expected


def test_a_single_folder_that_is_evaluated_without_it(on_own_data, script_keys, market, tmp_path):
    """Its network has no attention, which no config tells."""
    shutil.copytree(market / "bounding_box_train", tmp_path / "other" / "one")
    run = on_own_data("CAMERA_FOLDER.ROOT", tmp_path / "other")
    keys = [*script_keys, *OWN, *labels(market), "MODEL.WEIGHTS", run / "model_final.pth"]
    with pytest.raises(ValueError, match=r"trained on one camera has MODEL.HEADS.CAMSEP.ATTENTION"):
        evaluate(CONFIG, *keys)
    found = evaluate(CONFIG, *keys, "MODEL.HEADS.CAMSEP.ATTENTION", "none")["mAP"]
    assert found == map_on_market(run) != map_on_market(run, "MODEL.WEIGHTS", "")


def test_labels_given_after_training(on_own_data, market):
    run = on_own_data()
    assert not yaml.safe_load((run / "config.yaml").read_text())["DATASETS"]["TESTS"]
    keys = [str(part) for part in labels(market)]
    weights = ["MODEL.WEIGHTS", run / "model_final.pth"]
    found = evaluate(str(run / "config.yaml"), *keys, *weights)["mAP"]
    assert found == map_on_market(run) != map_on_market(run, "MODEL.WEIGHTS", "")
    name, query, gallery, cameras = find_test_set(read_config(run, keys, training=True))
    assert (name, len(query), len(gallery)) == ("CameraFolder", 16, 33)
    for path, _, camera in query + gallery:  # named as in the files
        assert f"_c{cameras[camera]}" in path


def test_a_table_of_images_to_leave_out_that_has_changed_is_no_run_to_go_on_with(
        on_own_data, train_as_script, tmp_path):
    """Whatever its name: other images are trained on, in other rows of the memory bank."""
    images = sorted(str(path) for path in (tmp_path / "crops").rglob("*.jpg"))
    table = tmp_path / "empty.csv"

    def leave_out(*paths):
        table.write_text("\n".join(("path", *paths)) + "\n")

    leave_out(images[0])
    run = on_own_data("CAMERA_FOLDER.LEAVE_OUT", table)
    saved = torch.load(run / "model_final.pth", weights_only=True)
    assert len(saved["memory_bank"]["labels"]) == len(images) - 1

    def goes_on(trainer):
        trainer.resume_or_load(resume=True)
        raise InterruptedError  # it would

    for paths, error in ((images[:1], InterruptedError), (images[1:2], ValueError),
                         (images[:2], ValueError)):
        leave_out(*paths)
        with pytest.raises(error):
            train_as_script(*OWN, "CAMERA_FOLDER.ROOT", tmp_path / "crops", "SOLVER.MAX_EPOCH", 2,
                            "CAMERA_FOLDER.LEAVE_OUT", table, config=CONFIG, watch=goes_on)


def test_nothing_to_evaluate_is_said(market):
    cfg = load_config(CONFIG, ["CAMERA_FOLDER.ROOT", str(market), "CAMERA_FOLDER.CAMERA", "none"])
    with pytest.raises(ValueError, match=r"DATASETS.TESTS is empty.*CAMERA_FOLDER.QUERY"):
        train_net.evaluate(cfg)


@pytest.mark.parametrize("keys, says", [
    (["MODEL.META_ARCHITECTURE", "Baseline", "MODEL.LOSSES.NAME", "('TripletLoss',)"],
     "Supervised training .*Baseline.*TripletLoss"),
    (["MODEL.LOSSES.NAME", "('CrossEntropyLoss', 'CameraSeparationLoss')"],
     "Supervised training .*CAUReID.*CrossEntropyLoss"),
    (["CAUREID.DIAGNOSTICS", "True"], "CAUREID.DIAGNOSTICS True")])
def test_what_needs_identities_is_refused(market, keys, says):
    cfg = load_config(CONFIG, ["CAMERA_FOLDER.ROOT", str(market), "CAMERA_FOLDER.LEVEL", -1, *keys])
    with pytest.raises(ValueError, match=f"{says}.*CameraFolder.*have none"):
        train_net.build_trainer(cfg)


@pytest.fixture
def own(script_keys, market, tmp_path):
    """A config and keys for the command line of any tool."""
    root = folders_per_camera(market, tmp_path / "crops")
    keys = [*script_keys, *OWN, "CAMERA_FOLDER.ROOT", root, "SEED", 1]
    return lambda *options: ["--config-file", CONFIG, *options, *map(str, keys)]


def test_eps_is_chosen_on_own_data(own, capsys):
    call(eps.command, own("--eps", "0.4,0.6"))
    assert "48 images, 2 cameras; plain neighbours" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"--diagnostics needs the identities.*CameraFolder"):
        call(eps.command, own("--diagnostics"))


def test_camera_bias_of_own_data(own, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["camera_bias.py", *own()])
    camera_bias.main()
    out = capsys.readouterr().out
    for name in ("embedding", "camera-specific part"):
        assert f"{name}, 48 images, 2 cameras, seed 1" in out
    assert out.count("A linear probe tells the camera of ") == 2


def test_attention_is_drawn_on_own_data(own):
    words = own("--per-camera", "2")
    args = SimpleNamespace(**attention.command.make_context("attention", words).params)
    choices = attention_module.choose(
        args, attention_module.configure(args.config_file, args.opts))
    assert [choice.group for choice in choices if choice.drawn] == (
        2 * ["camerafolder_camera 1"] + 2 * ["camerafolder_camera 2"])


def test_several_processes_say_it_once(market, tmp_path, script_keys):
    root = folders_per_camera(market, tmp_path / "crops")
    done = warm.run(
        ["-m", "caureid_plugin", "train", "--config-file", CONFIG, "--num-gpus", 2, "--dist-url",
         "auto", *script_keys, *OWN, "CAMERA_FOLDER.ROOT", root, "SOLVER.MAX_EPOCH", 1,
         "OUTPUT_DIR", tmp_path / "run"], tmp_path, prepare=warm.FORKED_RANKS)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for text in ("NUM_CAMERAS -1 becomes 2", "nothing is evaluated on it", "without identities"):
        assert (done.stdout + done.stderr).count(text) == 1, text
    assert (tmp_path / "run" / "model_final.pth").is_file()


# --------------------------------------------------------------------------- the network ----


def test_the_network_is_the_one_that_training_starts_with(train_as_script):
    """And with a checkpoint's weights it is the one that was saved."""
    seen = {}

    def watch(trainer):
        seen.update({name: value.clone() for name, value in trainer.model.state_dict().items()})

    trainer = train_as_script("SOLVER.MAX_EPOCH", "1", watch=watch)
    torch.rand(3)  # another state of the generators
    start = build_network(trainer.cfg)
    assert start.training
    for name, value in start.state_dict().items():
        assert torch.equal(value, seen[name]), name
    saved = os.path.join(trainer.cfg.OUTPUT_DIR, "model_final.pth")
    for name, value in build_network(trainer.cfg, saved).state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name]), name
    assert not all(torch.equal(value, seen[name])
                   for name, value in trainer.model.state_dict().items())


def test_weights_that_are_not_there_are_named(cfg, tmp_path):
    cfg.merge_from_file(get_config_file("Synthetic/caureid.yml"))
    cfg.MODEL.DEVICE = "cpu"
    with pytest.raises((FileNotFoundError, ValueError), match="none.pth"):
        build_network(cfg, str(tmp_path / "none.pth"))


@pytest.mark.parametrize("counts, warned", [
    ({}, "6 images are of 2 tracks, and CAUREID.CLUSTER.K1 30 counts tracks"),
    ({"K1": 1, "K2": 1}, None),
    ({"K1": 3, "K2": 1}, "CAUREID.CLUSTER.K1 3 is more than the 1 tracks"),
    ({"CAMERA_AWARE": True}, "CAUREID.CLUSTER.K1_INTER 20 counts tracks")])
def test_counts_of_neighbours_are_of_tracks(cfg, messages, counts, warned):
    cfg.CAUREID.CLUSTER.CAMERA_AWARE = False
    for key, value in counts.items():
        cfg.CAUREID.CLUSTER[key] = value
    cfg.SOLVER.IMS_PER_BATCH = 4
    camids = np.zeros(6, dtype=np.int64)
    cfg.CAUREID.CLUSTER.MIN_SAMPLES = 2
    check_size(cfg, camids, Tracks.of(camids, list("aaabbb")))
    found = [text for text in messages if "CAUREID.CLUSTER" in text]
    assert (any(warned in text for text in found) if warned else not found), found


@pytest.mark.parametrize("names, says", [
    ("aaaaaa", "6 image.s. of 1 track.s.: at least two"),
    ("aaabbb", "6 image.s. of 2 track.s., so that with CAUREID.CLUSTER.MIN_SAMPLES 4")])
def test_too_few_tracks_are_refused_before_the_first_pass(cfg, names, says):
    camids = np.zeros(6, dtype=np.int64)
    with pytest.raises(UserError, match=says):
        check_size(cfg, camids, Tracks.of(camids, list(names)))
