"""A trainer with the plugin's hook on the tiny dataset."""

import random

import caureid_plugin
import numpy as np
import pytest
import torch
from caureid_plugin import clustering
from fastreid.engine import DefaultTrainer

KEYS = """
MODEL.DEVICE cpu MODEL.META_ARCHITECTURE CAUReID MODEL.BACKBONE.NAME build_plain_backbone
MODEL.BACKBONE.FEAT_DIM 16 MODEL.BACKBONE.PRETRAIN False MODEL.HEADS.NAME CamSepHead
MODEL.HEADS.NUM_CLASSES -1 MODEL.HEADS.WITH_BNNECK True MODEL.HEADS.NECK_FEAT after
MODEL.HEADS.CAMSEP.NUM_CAMERAS 2 MODEL.HEADS.CAMSEP.REDUCTION 4 MODEL.BN_GROUP_SIZE 8
MODEL.LOSSES.NAME ('InfoNCELoss','CameraSeparationLoss','CACCLoss') INPUT.SIZE_TRAIN [32,16]
INPUT.SIZE_TEST [32,16] SOLVER.IMS_PER_BATCH 16 SOLVER.ITERS_PER_EPOCH 3 SOLVER.MAX_EPOCH 2
SOLVER.WARMUP_ITERS 0 SOLVER.CHECKPOINT_PERIOD 1 DATALOADER.NUM_WORKERS 0 CAUREID.CLUSTER.K1 6
CAUREID.CLUSTER.K2 2 CAUREID.CLUSTER.MIN_SAMPLES 2 CAUREID.CLUSTER.EPS 0.6
CAUREID.CLUSTER.EPS_GAP 0.0 TEST.EVAL_PERIOD 2 TEST.IMS_PER_BATCH 16 SEED 3
""".split()


@pytest.fixture(scope="session")
def hook_keys():
    """Keys and values of a training of two epochs of three steps on `tiny_market`."""
    return KEYS


@pytest.fixture
def start(cfg, tiny_market, tmp_path):
    """Trainer with the hook on the tiny dataset; more keys as arguments."""

    def make(*options, hook=True):
        run = cfg.clone()
        run.merge_from_list([*KEYS, "OUTPUT_DIR", str(tmp_path / "out"), *options])
        run.freeze()
        (tmp_path / "out").mkdir(exist_ok=True)
        random.seed(0)
        torch.manual_seed(0)
        np.random.seed(0)
        trainer = DefaultTrainer(run)
        if hook:
            trainer.register_hooks([caureid_plugin.UnsupervisedHook(run)])
        return trainer

    return make


@pytest.fixture
def clusterings(monkeypatch):
    """Every clustering that is made: features, options and the labels that were found."""
    seen, assign = [], clustering.assign_pseudo_labels

    def watched(features, **options):
        before, labels = features.clone(), assign(features, **options)
        seen.append((before, options, labels.copy()))
        return labels

    monkeypatch.setattr(clustering, "assign_pseudo_labels", watched)
    return seen


@pytest.fixture
def found(monkeypatch):
    """Sets what the clusterings find, one after the other; the last one stays."""

    def set_labels(*answers):
        answers = [np.array(labels) for labels in answers]
        monkeypatch.setattr(clustering, "assign_pseudo_labels", lambda *_, **__: (
            answers.pop(0) if len(answers) > 1 else answers[0].copy()))

    return set_labels
