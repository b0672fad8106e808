"""Memory bank: the features of all training images, their clusters and camera centres."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode

from ..common.errors import UserError

CENTRES = ("mean", "momentum", "hard", "fixed")


class NotFiniteError(FloatingPointError):
    """Features that are NaN or infinite.

    Attributes:
        rows: the images they belong to, as rows of the bank, each once.
    """

    def __init__(self, message: str, rows: list[int]) -> None:
        super().__init__(message)
        self.rows = rows


class MemoryBank:
    """Features of the N training images with cluster centroids and camera centres kept up to date.

    Each :meth:`relabel` computes centroids and camera centres anew, each :meth:`update` moves them
    by the batch, so that a step costs O(batch x D), whatever N. How they move is ``centres``:

    - "mean": they are the means of the bank's features (SpCL, CA-UReID), held as sums, which move
      by the difference of the changed rows.
    - "momentum": each is a vector of its own, at first the normalised mean, and every image of the
      batch moves it in turn, ``c <- normalise(mu c + (1 - mu) f)`` (ClusterContrast, arXiv
      2103.11568, for clusters; CAP, arXiv 2012.10674, for the cameras of a cluster).
    - "hard": the same, but of a batch only the image that is least similar to it moves it
      (ClusterContrast's other variant).
    - "fixed": they stay the means of the last clustering (ICE, arXiv 2103.16364).

    The bank is training state, not model weights: it is saved with the checkpoint as an object of
    its own and never exported.

    Args:
        camids: (N,) camera of each training image, >= 0.
        dim: D.
        momentum: mu of eq. 1, the weight of the OLD value, 0 <= mu < 1.
        centres: "mean", "momentum", "hard" or "fixed".
        device: where the bank lives.

    Attributes:
        features: (N, D) float32, L2-normalised rows.
        labels: (N,) int64 clusters 0..K-1, -1 for outliers.
        camids: (N,) int64.
        num_clusters: K.
        threshold: of :func:`caureid_plugin.clustering.reliable_labels`, which the first clustering
            sets for the whole run; None before it, or if the criterion is off.
        epoch: of the training, which the UnsupervisedHook tells it.
        is_filled: whether it has been given features, by :meth:`reset` or from a checkpoint.

    Raises:
        ValueError: momentum outside [0, 1), or ``centres`` is unknown.
    """

    def __init__(self, camids: torch.Tensor, dim: int, *, momentum: float, centres: str = "mean",
                 device: torch.device | str = "cpu") -> None:
        if not 0.0 <= momentum < 1.0:
            raise UserError(f"CAUREID.MEMORY.MOMENTUM {momentum} must be in [0, 1).")
        if centres not in CENTRES:
            raise UserError(f"CAUREID.MEMORY.CENTRES {centres!r} is unknown, known are {CENTRES}.")
        self._rule, self._own_vectors = centres, centres in ("momentum", "hard")
        self.camids = torch.as_tensor(camids, dtype=torch.int64, device=device)
        self.momentum = momentum
        self.features = torch.zeros(len(self.camids), dim, device=device)
        self.is_filled = False
        self.epoch = 0
        self.threshold: float | None = None
        self.labels = torch.full_like(self.camids, -1)
        self.relabel(self.labels)

    def __len__(self) -> int:
        return len(self.features)

    @torch.no_grad()
    def reset(self, features: torch.Tensor) -> None:
        """Takes new features (N, D) of all images, L2-normalised here; labels stay.

        Raises:
            ValueError: features of another shape.
            NotFiniteError: some are NaN or infinite; the bank stays as it is.
        """
        if features.shape != self.features.shape:
            raise UserError(f"The bank holds {tuple(self.features.shape)} features, got "
                            f"{tuple(features.shape)}.")
        _check_finite(features, torch.arange(len(features)))
        self.features = F.normalize(features.to(self.features), dim=1)
        self.is_filled = True
        self._rebuild()

    @torch.no_grad()
    def relabel(self, labels: torch.Tensor) -> None:
        """Takes new clusters (N,), -1 for outliers, and rebuilds centroids and camera centres.

        Raises:
            ValueError: not one label for each image, or clusters not numbered 0..K-1.
        """
        labels = torch.tensor(labels) if not isinstance(labels, torch.Tensor) else labels.clone()
        if labels.shape != self.camids.shape:
            raise UserError(f"The bank holds {len(self)} images, got {len(labels)} labels.")
        self.labels = labels.to(self.camids)
        inlier = self.labels >= 0
        self.num_clusters = len(torch.unique(self.labels[inlier]))
        if self.num_clusters and int(self.labels.max()) != self.num_clusters - 1:
            raise UserError(
                f"Clusters must be numbered 0..K-1 without a gap; {self.num_clusters} clusters go "
                f"up to {int(self.labels.max())}.")
        pairs, centre_of = torch.unique(
            torch.stack((self.labels[inlier], self.camids[inlier]), dim=1), dim=0,
            return_inverse=True)
        self._centre_of = torch.full_like(self.labels, -1)
        self._centre_of[inlier] = centre_of
        self.centre_labels, self.centre_camids = pairs[:, 0].clone(), pairs[:, 1].clone()
        self._rebuild()

    def _rebuild(self) -> None:
        inlier = self.labels >= 0
        features, dim = self.features[inlier], self.features.shape[1]

        def totals(groups: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
            sums = self.features.new_zeros(count, dim).index_add_(0, groups, features)
            return sums, torch.bincount(groups, minlength=count).to(sums.dtype)

        self._cluster_sums, self._cluster_sizes = totals(self.labels[inlier], self.num_clusters)
        self._centre_sums, self._centre_sizes = totals(
            self._centre_of[inlier], len(self.centre_labels))
        if self._own_vectors:  # in the place of sums of one
            for sums, sizes in ((self._cluster_sums, self._cluster_sizes),
                                (self._centre_sums, self._centre_sizes)):
                sums.copy_(F.normalize(sums, dim=1))
                sizes.fill_(1)

    @torch.no_grad()
    def update(self, features: torch.Tensor, indexes: torch.Tensor) -> None:
        """Eq. 1 for the images of a batch: ``M[i] <- normalise(mu M[i] + (1 - mu) f_i)``.

        An image that occurs several times in the batch is updated once for each time, in the
        order of the batch. Centroids and camera centres move by their rule.

        Args:
            features: (B, D) L2-normalised features.
            indexes: (B,) rows of the bank.

        Raises:
            IndexError: an index outside the bank.
            NotFiniteError: some features are NaN or infinite. In either case the bank stays as it
                is.
        """
        indexes = indexes.to(self.camids.device)
        if len(indexes) and not 0 <= int(indexes.min()) <= int(indexes.max()) < len(self):
            raise IndexError(f"Indexes {int(indexes.min())}..{int(indexes.max())} are outside the "
                             f"bank of {len(self)} images.")
        features = features.detach().to(self.features)
        _check_finite(features, indexes)
        rows = torch.unique(indexes)
        before = self.features[rows]
        self._move(self.features, indexes, features)
        if self._rule == "mean":
            self._shift_sums(rows, self.features[rows] - before)
        elif self._own_vectors:
            self._move_centres(features, indexes)

    def _move_centres(self, features: torch.Tensor, indexes: torch.Tensor) -> None:
        inlier = self.labels[indexes] >= 0
        features, indexes = features[inlier], indexes[inlier]
        for vectors, groups in ((self._cluster_sums, self.labels[indexes]),
                                (self._centre_sums, self._centre_of[indexes])):
            chosen = (_least_similar(features, vectors[groups], groups) if self._rule == "hard"
                      else slice(None))
            self._move(vectors, groups[chosen], features[chosen])

    def _move(self, vectors: torch.Tensor, rows: torch.Tensor, features: torch.Tensor) -> None:
        """Moves a vector by each feature of its row, in order."""
        for turn in _turns(rows):
            chosen = rows[turn]
            mixed = self.momentum * vectors[chosen] + (1.0 - self.momentum) * features[turn]
            vectors[chosen] = F.normalize(mixed, dim=1)

    def _shift_sums(self, rows: torch.Tensor, change: torch.Tensor) -> None:
        inlier = self.labels[rows] >= 0
        rows, change = rows[inlier], change[inlier]
        self._cluster_sums.index_add_(0, self.labels[rows], change)
        self._centre_sums.index_add_(0, self._centre_of[rows], change)

    @property
    def centroids(self) -> torch.Tensor:
        """(K, D) each cluster's mean feature, not normalised, or its vector of length 1."""
        return self._cluster_sums / self._cluster_sizes[:, None]

    def camera_centres(self, *, normalize: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """One of each (cluster, camera) pair (eq. 6): centres (M, D), clusters (M,).

        Mean features, or vectors of length 1 of their own.
        """
        if normalize:  # a sum has its mean's direction
            return F.normalize(self._centre_sums, dim=1), self.centre_labels
        return self._centre_sums / self._centre_sizes[:, None], self.centre_labels

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything a resumed run needs; the sums as well, so that it goes on bit for bit."""
        state = {"features": self.features, "labels": self.labels, "camids": self.camids,
                 **self._sums()}
        if self.threshold is not None:
            state["threshold"] = torch.tensor(self.threshold, dtype=torch.float64)
        return state

    def _sums(self) -> dict[str, torch.Tensor]:
        kind = "vectors" if self._own_vectors else "sums"
        return {f"cluster_{kind}": self._cluster_sums, f"centre_{kind}": self._centre_sums}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restores :meth:`state_dict`, also one of before there were thresholds.

        Raises:
            ValueError: the saved bank belongs to other images, cameras, another dimension or
                another rule of the centres, or its sums do not fit its clusters.
            NotFiniteError: some of its features are NaN or infinite.
        """
        saved, own = tuple(state["features"].shape), tuple(self.features.shape)
        if saved != own or not torch.equal(state["camids"].to(self.camids), self.camids):
            raise UserError(
                f"The checkpoint's memory bank has shape {saved}, this run's {own}, or their "
                "cameras differ: resume with the same DATASETS.NAMES and files.")
        if not self._sums().keys() <= state.keys():
            kind = "means" if self._own_vectors else "vectors of their own"
            raise UserError(
                f"The centres of the checkpoint's memory bank are {kind}, and this run's "
                f"CAUREID.MEMORY.CENTRES is {self._rule}: resume with the same.")
        _check_finite(state["features"], torch.arange(len(self)))
        self.features = state["features"].to(self.features, copy=True)
        self.relabel(state["labels"])
        for field, sums in self._sums().items():
            saved, own = tuple(state[field].shape), tuple(sums.shape)
            if saved != own or not torch.isfinite(state[field]).all():
                raise UserError(
                    f"The checkpoint's memory bank is damaged: {field} has shape {saved} or values "
                    f"that are not finite, and its labels ask for finite ones of {own}. Resume "
                    "from another checkpoint.")
            sums.copy_(state[field])
        self.threshold = float(state["threshold"]) if "threshold" in state else None
        self.is_filled = True


def build_memory_bank(cfg: CfgNode, camids: torch.Tensor, device: torch.device | str
                      ) -> MemoryBank:
    """An empty bank for the embedding of a config, by CAUREID.MEMORY.

    Args:
        cfg: CAUREID.MEMORY, MODEL.HEADS.EMBEDDING_DIM and MODEL.BACKBONE.FEAT_DIM.
        camids: (N,) camera of each training image, >= 0.
        device: where the bank lives.
    """
    dim = cfg.MODEL.HEADS.EMBEDDING_DIM or cfg.MODEL.BACKBONE.FEAT_DIM
    return MemoryBank(camids, dim, momentum=cfg.CAUREID.MEMORY.MOMENTUM,
                      centres=cfg.CAUREID.MEMORY.CENTRES, device=device)


def _check_finite(features: torch.Tensor, indexes: torch.Tensor) -> None:
    bad = ~torch.isfinite(features).all(dim=1)
    if bad.any():
        rows = torch.unique(indexes.to(bad.device)[bad]).tolist()
        raise NotFiniteError(f"The features of {len(rows)} of {len(torch.unique(indexes))} images "
                             "for the memory bank are NaN or infinite.", rows)


def _turns(indexes: torch.Tensor) -> list[torch.Tensor]:
    """Splits a batch into rounds without duplicates: first occurrences, second occurrences, ..."""
    seen: dict[int, int] = {}
    rounds: list[list[int]] = []
    for position, index in enumerate(indexes.tolist()):
        turn = seen.get(index, 0)
        seen[index] = turn + 1
        if turn == len(rounds):
            rounds.append([])
        rounds[turn].append(position)
    return [torch.tensor(r, device=indexes.device) for r in rounds]


def _least_similar(features: torch.Tensor, vectors: torch.Tensor, groups: torch.Tensor
                   ) -> torch.Tensor:
    """Of each group the place of the feature least similar to its vector, the first of several."""
    order = (features * vectors).sum(dim=1).argsort(stable=True)
    turns = _turns(groups[order])
    return order[turns[0]] if turns else order
