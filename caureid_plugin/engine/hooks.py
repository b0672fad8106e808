"""Hooks for FastReID's trainer."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.engine.train_loop import HookBase
from fastreid.evaluation.testing import flatten_results_dict
from fastreid.utils import comm
from torch import nn
from tqdm import tqdm

from .. import clustering, compat
from ..common.errors import NotFinite, UserError
from ..data import build_extraction_loader, build_pseudo_label_loader
from ..data.sampler import check_batch
from ..inspection import least_images, short_names, summarize_cameras
from ..modeling import (
    CAUReID,
    build_memory_bank,
    build_teacher,
    camera_losses,
    needs_memory,
)
from ..modeling.gather import average_running_statistics, gather_batch
from ..modeling.memory_bank import NotFiniteError
from .checks import (
    check_clustering,
    check_size,
    eps_at,
    eps_gap,
    naming_cluster_keys,
    why_not_to_train,
)
from .extraction import extract_features
from .images import TrainingImages
from .terminal import FILE_ONLY
from .verdict import collect, judge

logger = logging.getLogger("fastreid.caureid")

LABELS = ("bank", "extract")
PREFIX = "labels/"  # of what is logged of a clustering


def check_cameras(cfg: CfgNode, num_images: int, num_cameras: int) -> None:
    """Compares the cameras of the training set with what the config asks of them.

    With a single camera CACC stays legal: it is then a contrast of clusters.

    Args:
        cfg: MODEL, CAUREID.CLUSTER and, for the messages, DATASETS.NAMES.
        num_images, num_cameras: of the training set.

    Raises:
        ValueError: one camera where several are needed; another number than
            MODEL.HEADS.CAMSEP.NUM_CAMERAS.
    """
    found = (f"All {num_images} training images of DATASETS.NAMES {list(cfg.DATASETS.NAMES)} come "
             "from one camera")
    if num_cameras < 2 and "CameraSeparationLoss" in cfg.MODEL.LOSSES.NAME:
        raise UserError(
            f"{found}, and CameraSeparationLoss needs at least two: take it out of "
            "MODEL.LOSSES.NAME and set MODEL.HEADS.CAMSEP.ATTENTION none.")
    if num_cameras < 2 and (names := camera_losses(cfg)):
        raise UserError(
            f"{found}, and {' and '.join(names)} of MODEL.LOSSES.NAME compares cameras: set "
            "MODEL.LOSSES.NAME \"('InfoNCELoss',)\".")
    if num_cameras < 2 and cfg.CAUREID.CLUSTER.CAMERA_AWARE and needs_memory(cfg):
        raise UserError(f"{found}, and camera-aware neighbours need at least two: set "
                        "CAUREID.CLUSTER.CAMERA_AWARE False.")
    declared = cfg.MODEL.HEADS.CAMSEP.NUM_CAMERAS
    if declared and declared != num_cameras:
        raise UserError(
            f"MODEL.HEADS.CAMSEP.NUM_CAMERAS is {declared}, but the training images come from "
            f"{num_cameras} cameras: set it to {num_cameras}.")


class UnsupervisedHook(HookBase):
    """Trains CAUReID from camera labels only: clusters, relabels and keeps the memory bank.

    When what happens: before training the bank is filled by one pass of the network; before each
    epoch the images are clustered, the bank relabelled and the training loader replaced; after
    each step the bank takes the batch's features (eq. 1). Identities in the trainer's dataset are
    dropped on registration and never read (but for CAUREID.DIAGNOSTICS, a logged figure).

    Register it after the trainer is built and before ``resume_or_load``, so that a resumed run
    finds its bank: ``trainer.register_hooks([UnsupervisedHook(cfg)])``.

    Args:
        cfg: the config the trainer was built with.

    Raises:
        ValueError: on construction for options it does not know; on registration if the model is
            not a CAUReID or has an identity classifier, if NUM_CAMERAS contradicts the data, if
            there is one camera where several are needed, if there are too few images, or PreciseBN
            is on; in training if the first clustering leaves fewer than two clusters to train on
            (a later one is then not used).
        FloatingPointError: in training if features become NaN or infinite.
    """

    def __init__(self, cfg: CfgNode) -> None:
        node = cfg.CAUREID
        if node.LABELS not in LABELS:
            raise UserError(f"CAUREID.LABELS {node.LABELS!r} is unknown, known are {LABELS}.")
        if node.CLUSTER_PERIOD < 1:
            raise UserError(f"CAUREID.CLUSTER_PERIOD {node.CLUSTER_PERIOD} must be at least 1.")
        self._cfg = cfg
        self._identities: list[Any] | None = None

    # FastReID hands a hook its trainer on registration, the moment at which a checkpointer that
    # is to restore the bank must learn of it.
    @property
    def trainer(self) -> Any:
        return self._host

    @trainer.setter
    def trainer(self, trainer: Any) -> None:
        self._host = trainer
        self._model = getattr(trainer.model, "module", trainer.model)
        if not isinstance(self._model, CAUReID):
            raise UserError("UnsupervisedHook needs MODEL.META_ARCHITECTURE CAUReID, the model is "
                            f"a {type(self._model).__name__}.")
        self._check_config()
        listed = trainer.data_loader.dataset.img_items
        self._items = [(path, *rest) for path, _, *rest in listed]
        if self._cfg.CAUREID.DIAGNOSTICS:
            self._identities = [str(item[1]) for item in listed]
        self._model.teacher = build_teacher(self._cfg, self._model)
        self._attach_bank()

    def _check_config(self) -> None:
        cfg = self._cfg
        if cfg.MODEL.HEADS.NUM_CLASSES >= 0:
            raise UserError(
                f"MODEL.HEADS.NUM_CLASSES {cfg.MODEL.HEADS.NUM_CLASSES} asks for an identity "
                "classifier (0: as large as the number of identities), and there are no "
                "identities here: set it to -1.")
        if cfg.TEST.PRECISE_BN.ENABLED:
            raise UserError("FastReID's PreciseBN runs the network in training mode on labelled "
                            "batches: set TEST.PRECISE_BN.ENABLED False.")
        # the clustering's options, and faiss where it is asked for, before hours of work
        check_clustering(cfg)
        with naming_cluster_keys(cfg):
            self._search().resolve(1, self._model.device)
        self._check_batch()

    def _check_batch(self) -> None:
        cfg = self._cfg
        check_batch(cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE, comm.get_world_size(),
                    cfg.DATALOADER.CAMERAS)
        local = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        if local == 1 and any(isinstance(m, nn.BatchNorm2d) for m in self._model.modules()):
            raise UserError("A batch norm needs at least two images in each process's batch: "
                            f"raise SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}.")
        if cfg.MODEL.BN_GROUP_SIZE and local % cfg.MODEL.BN_GROUP_SIZE:
            logger.warning(
                "A process's %d images are no multiple of MODEL.BN_GROUP_SIZE %d: batch-norm "
                "groups depend on the number of processes.", local, cfg.MODEL.BN_GROUP_SIZE)

    def _attach_bank(self) -> None:
        cfg = self._cfg
        self._extraction = build_extraction_loader(cfg, self._items)
        images: Any = self._extraction.dataset  # UnlabelledImages
        self._tracks: clustering.Tracks | None = images.tracks
        check_size(cfg, images.camids, self._tracks)
        check_cameras(cfg, len(images), images.num_cameras)
        self._log_cameras(images)
        self._bank = build_memory_bank(cfg, torch.from_numpy(images.camids), self._model.device)
        self._model.memory = self._bank
        kept = self._host.checkpointer.checkpointables
        kept["memory_bank"] = self._bank
        if self._model.teacher is not None:
            kept["teacher"] = self._model.teacher
        kept["training_images"] = TrainingImages(images.paths, cfg.DATASETS.NAMES, self._tracks)

    def _log_cameras(self, images: Any) -> None:
        names, _ = short_names([str(name) for name in images.camera_names])
        figures, *warnings = summarize_cameras(
            images.camids, names, batch_size=self._cfg.SOLVER.IMS_PER_BATCH,
            least=least_images(self._cfg))
        logger.info("%s", figures)
        for warning in warnings:
            logger.warning("%s", warning)

    def before_train(self) -> None:
        teacher = self._model.teacher
        if self._bank.is_filled and (teacher is None or teacher.is_filled):  # from a checkpoint
            return
        if self.trainer.run_state.is_resumed or self.trainer.start_epoch > 0:
            part = "teacher" if self._bank.is_filled else "memory bank"
            raise RuntimeError(
                f"The run goes on at epoch {self.trainer.start_epoch}, but its {part} was not "
                "restored: register UnsupervisedHook before trainer.resume_or_load().")
        if teacher is not None:
            teacher.reset(self._model)
        logger.info("Filling the memory bank with %d images", len(self._bank))
        self._bank.reset(self._extract())

    def before_epoch(self) -> None:
        epoch = self._bank.epoch = self.trainer.epoch
        done = self.trainer.iter - epoch * self.trainer.iters_per_epoch
        is_due = (epoch % self._cfg.CAUREID.CLUSTER_PERIOD == 0
                  or not (self._bank.labels >= 0).any())
        if is_due and not done:  # within an epoch that is resumed, labels came with the checkpoint
            self._relabel(epoch)
        # anew for every epoch, so that a resumed run draws what an uninterrupted one does
        loader = build_pseudo_label_loader(
            self._cfg, self._items, self._bank.labels.cpu().numpy(),
            (self.trainer.run_state.seed, epoch), skip_batches=done,
            views=self._model.teacher is not None)
        wanted = self._cfg.SOLVER.IMS_PER_BATCH // self._cfg.DATALOADER.NUM_INSTANCE
        batches: Any = loader.batch_sampler
        found = batches.sampler.num_units
        if found < wanted:
            drawn = ("clusters" if self._cfg.DATALOADER.CAMERAS == "mixed" else
                     "pairs of a cluster and a camera")
            logger.warning("%d %s are fewer than the %d of a batch (SOLVER.IMS_PER_BATCH / "
                           "DATALOADER.NUM_INSTANCE): batches repeat %s.", found, drawn, wanted,
                           drawn)
        compat.swap_train_loader(self.trainer, loader)

    def after_step(self) -> None:
        # every process takes the whole batch in the same order, so that all banks stay equal
        features, rows = gather_batch(*self._model.pop_seen())
        with self._not_finite_explained():
            self._bank.update(features, rows)
        # in every step, so that a checkpoint, which the first process writes, holds all of them
        average_running_statistics(self._model)
        if self._model.teacher is not None:
            self._model.teacher.update(self._model)

    def after_train(self) -> None:
        self.trainer.data_loader.shutdown()
        if getattr(self.trainer, "is_finished", False):  # neither stopped nor failed
            self._log_verdict()

    def _log_verdict(self) -> None:
        known = collect({key: [value for value, _ in figure.values()]
                         for key, figure in self.trainer.storage.histories().items()})
        verdict = judge(known, self._cfg, num_cameras=len(torch.unique(self._bank.camids)))
        for finding in verdict.findings:
            logger.info("%s %s: %s", finding.name, finding.figure, finding.meaning)
        logger.log(logging.WARNING if verdict.level in ("mixed", "bad") else logging.INFO, "%s",
                   " ".join(filter(None, (verdict.summary, verdict.note, *verdict.advice))))

    def _relabel(self, epoch: int) -> None:
        if self._cfg.CAUREID.LABELS == "extract" and epoch > 0:
            self._bank.reset(self._extract())
        start = time.perf_counter()
        with naming_cluster_keys(self._cfg, epoch):
            found = self._cluster(epoch)
        seconds = time.perf_counter() - start
        self._report(epoch, found, seconds)
        camids = self._bank.camids.cpu().numpy()
        if problem := why_not_to_train(self._cfg, self._bank.features, found, camids,
                                       epoch=epoch):
            self._keep_labels(f"epoch {epoch}: {problem}")
            return
        if self._cfg.CAUREID.LABELS == "bank":
            found = clustering.outliers_to_singletons(found, self._tracks)
        self._bank.relabel(torch.from_numpy(found))

    def _extract(self) -> torch.Tensor:
        teacher = self._model.teacher
        network = self.trainer.model if teacher is None else teacher.network
        with self._not_finite_explained():
            return extract_features(network, self._extraction,
                                    after_batch=lambda: compat.stop_point(self.trainer,
                                                                           together=True))

    @contextlib.contextmanager
    def _not_finite_explained(self) -> Iterator[None]:
        """Adds to an error about NaN or infinity the image, the step and what to do.

        What is checked is the same in every process, so that all of them end.
        """
        try:
            yield
        except NotFiniteError as error:
            path = self._items[error.rows[0]][0]
            raise NotFinite(f"{error} The first belong to {path}.\n"
                                     f"{compat.how_to_go_on(self.trainer)}") from error
        except FloatingPointError as error:
            raise NotFinite(
                f"{error}\n{compat.how_to_go_on(self.trainer)}") from error

    def _keep_labels(self, message: str) -> None:
        if not (self._bank.labels >= 0).any():
            raise UserError(message)
        logger.warning("%s The labels of the last clustering stay in use.", message)

    def _cluster(self, epoch: int) -> np.ndarray:
        """Pseudo labels (N,), -1 for outliers, the same in every process."""
        node = self._cfg.CAUREID.CLUSTER
        with tqdm(desc="clustering", leave=False,
                  disable=None if comm.is_main_process() else True) as bar:

            def show(stage: str, done: int, total: int) -> None:
                bar.set_description(f"clustering: {stage}", refresh=False)
                bar.total, bar.n = total, done
                bar.refresh()
                compat.stop_point(self.trainer)

            options = {"min_samples": node.MIN_SAMPLES, "search": self._search(), "small": True,
                       "tracks": self._tracks, "progress": show, **self._neighbor_counts(epoch)}
            gap, eps = eps_gap(self._cfg), eps_at(self._cfg, epoch)
            features = self._bank.features
            if node.STANDARDIZE:
                features = clustering.standardize_by_camera(features, self._bank.camids)
            if not gap:
                return clustering.assign_pseudo_labels(features, eps=eps, **options)
            tighter, labels, looser = clustering.labels_at(
                features, eps_values=(eps - gap, eps, eps + gap), **options)
        return self._reliable(labels, tighter, looser)

    def _reliable(self, labels: np.ndarray, tighter: np.ndarray, looser: np.ndarray) -> np.ndarray:
        """The labels by SpCL's criterion, whose threshold the bank keeps for the whole run."""
        kept, self._bank.threshold = clustering.reliable_labels(
            labels, tighter=tighter, looser=looser, threshold=self._bank.threshold)
        before, after = (labels >= 0).sum(), (kept >= 0).sum()
        logger.info("%d of the %d clustered images are not reliably so and become outliers "
                    "(CAUREID.CLUSTER.EPS_GAP)", before - after, before)
        return kept

    def _search(self) -> clustering.Search:
        node = self._cfg.CAUREID.CLUSTER
        return clustering.Search(
            backend=node.SEARCH, recall=node.RECALL, max_memory=node.MAX_MEMORY or None,
            group=torch.distributed.group.WORLD if comm.get_world_size() > 1 else None)

    def _neighbor_counts(self, epoch: int) -> dict[str, Any]:
        node = self._cfg.CAUREID.CLUSTER
        if not node.CAMERA_AWARE:
            return {"k1": node.K1, "k2": node.K2}
        first = epoch == 0
        return {"camids": self._bank.camids, "k1_intra": node.K1_INTRA, "k1_inter": node.K1_INTER,
                "k2_intra": node.K2_INTRA_FIRST if first else node.K2_INTRA,
                "k2_inter": node.K2_INTER_FIRST if first else node.K2_INTER}

    def _report(self, epoch: int, labels: np.ndarray, seconds: float) -> None:
        camids = self._bank.camids.cpu().numpy()
        figures = {
            **clustering.label_statistics(labels, camids),
            **clustering.label_indicators(labels, camids, self._bank.features,
                                          previous=self._bank.labels.cpu().numpy())}
        # the trainer sets it before a step only; under the last epoch's number, which is written
        # already, the writers would drop the figures
        self.trainer.storage.iter = self.trainer.iter
        self.trainer.storage.put_scalars(
            smoothing_hint=False, cluster_seconds=seconds,
            **{PREFIX + name: value for name, value in figures.items()})
        spanning = ("" if len(np.unique(camids)) == 1 else
                    f"{100.0 * figures['cross_camera']:.1f} % of the clusters span cameras, ")
        logger.info(
            "epoch %d: %d clusters, %d outliers (%.1f %% of the images), largest cluster %d, "
            "%sclustering took %.1f s", epoch, figures["clusters"], figures["outliers"],
            100.0 * figures["outliers"] / len(labels), figures["largest"], spanning, seconds,
            extra=FILE_ONLY)  # the terminal has a line for each epoch
        if self._identities is not None:
            self._diagnose(labels)

    def _diagnose(self, labels: np.ndarray) -> None:
        """Adjusted Rand index of the clustered images against their identities. Logged only."""
        from sklearn.metrics import adjusted_rand_score

        inlier = labels >= 0
        identities = np.asarray(self._identities)[inlier]
        ari = adjusted_rand_score(identities, labels[inlier]) if inlier.any() else 0.0
        self.trainer.storage.put_scalar("diagnostic_with_labels/ari", ari, smoothing_hint=False)
        logger.info("diagnostic, uses identity labels: ARI of the clusters %.3f", ari,
                    extra=FILE_ONLY)


class EvalAtStart(HookBase):
    """Evaluates the network as it is before the first step, into scalars ``start/...``.

    Args:
        enabled: TEST.EVAL_AT_START.
    """

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled

    def before_train(self) -> None:
        if (not self._enabled or self.trainer.run_state.is_resumed
                or self.trainer.start_epoch > 0):
            return
        results = self.trainer.test(self.trainer.cfg, self.trainer.model)
        self.trainer.storage.put_scalars(smoothing_hint=False, **{
            f"start/{name}": float(value)
            for name, value in flatten_results_dict(results).items()})
        logger.info("Before training: %s", ", ".join(
            f"{name} {value:.1f}" for name, value in flatten_results_dict(results).items()
            if name.rpartition("/")[2] in ("mAP", "Rank-1")))
        comm.synchronize()
