"""A trained network that embeds images, wherever they come from.

Letters: N images, B images of a batch, D embedding size.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..common.errors import UserError
from ..common.text import printable
from ..runs.folder import (
    RunError,
    check_folder,
    find_checkpoint,
    memory_bank,
    read_checkpoint,
    read_config,
    read_statistics,
    read_verdict,
    without_singletons,
)
from ..runs.threshold import NO_VERDICT, PairStatistics, RunVerdict, Threshold
from .network import build_embedding_network, fingerprint
from .preprocessing import ImageLike, Preprocessing, is_one_image, read_image_like

BATCH = 64

logger = logging.getLogger("fastreid.caureid")


class Comparison(NamedTuple):
    """Two images compared.

    ``similarity`` is the cosine of their embeddings; ``same`` whether it reaches the threshold,
    None where none is known, or training went wrong and ``despite_verdict`` was not given;
    ``threshold`` which one, with its expected error rates.
    """

    similarity: float
    same: bool | None
    threshold: Threshold | None


class Embedder:
    """Gives embeddings of images; :func:`load_run` or ``load_export`` makes one.

    For those who know FastReID's ``DefaultPredictor``: calling one with a batch of preprocessed
    images does the same, and gives the same embeddings, divided by their length. It needs no
    config and no preprocessing of one's own, see :meth:`embed`.

    Attributes:
        network: (B, 3, H, W) float32 on ``device``, RGB 0..255, to (B, D) of length 1.
        name: what it is, for people.
        dim: D.
        fingerprint: 32 hexadecimal digits; embeddings of two may be compared if they are alike.
        preprocessing: of the images.
        statistics: similarities of pairs of the run, from which thresholds follow; None: not
            known.
        why_no_statistics: why not, a sentence; else "".
        verdict: whether training went well; where it is bad, :meth:`compare` tells no same or
            different.
        device: where the network is.
    """

    def __init__(self, network: Callable[[torch.Tensor], torch.Tensor], *, name: str, dim: int,
                 fingerprint: str, preprocessing: Preprocessing,
                 statistics: PairStatistics | None, why_no_statistics: str = "",
                 device: torch.device | str = "cpu", verdict: RunVerdict = NO_VERDICT) -> None:
        self.network, self.device = network, torch.device(device)
        self.name, self.dim, self.fingerprint = name, dim, fingerprint
        self.preprocessing = preprocessing
        self.statistics, self.why_no_statistics = statistics, why_no_statistics
        self.verdict = verdict
        if verdict.level == "bad":
            logger.warning("%s: %s Same or different is shown only on request.",
                           printable(name), printable(verdict.reason))

    def __repr__(self) -> str:
        height, width = self.preprocessing.shape
        return (f"<Embedder {self.name}: {height} x {width} pixels to {self.dim} numbers, "
                f"fingerprint {self.fingerprint}>")

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings of a batch that is preprocessed already.

        Args:
            images: (B, 3, H, W), RGB 0..255; they are left as they are.

        Returns:
            (B, D) float32 of length 1, on the CPU.

        Raises:
            ValueError: another shape.
        """
        height, width = self.preprocessing.shape
        if images.ndim != 4 or images.shape[1:] != (3, height, width):
            raise UserError(f"Images have shape {tuple(images.shape)}, and the network takes "
                            f"(B, 3, {height}, {width}): embed() resizes them.")
        if not len(images):
            return torch.empty(0, self.dim)
        return self.network(images.to(self.device, torch.float32)).float().cpu()

    def embed(self, images: ImageLike | Iterable[ImageLike], *, batch_size: int = BATCH,
              bgr: bool = False, progress: bool = False) -> np.ndarray:
        """Embeddings of images.

        Args:
            images: one or several: paths, images of PIL, arrays (H, W, 3) or grey (H, W) of uint8.
                An iterator may give each in the same buffer; no image is changed.
            batch_size: images that the network sees at a time.
            bgr: arrays are BGR, as OpenCV reads them, not RGB.
            progress: show a bar, where a terminal watches.

        Returns:
            (N, D) float32, rows of length 1; one row for a single image.

        Raises:
            ValueError: an image that cannot be read, or whose embedding is zero or not finite
                (names it); ``batch_size`` below 1.
        """
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size} must be at least 1.")
        several: Iterable[ImageLike] = (
            [images] if is_one_image(images) else images)  # type: ignore[list-item,assignment]
        total = len(several) if isinstance(several, (Sequence, np.ndarray)) else None
        rows = [np.empty((0, self.dim), np.float32)]
        hidden = None if progress else True  # None: shown on a terminal only
        with tqdm(total=total, desc="embedding", unit="img", disable=hidden) as bar:
            for start, batch in self._batches(several, batch_size, bgr):
                rows.append(self(batch).numpy())
                self._check(rows[-1], start)
                bar.update(len(batch))
        return np.concatenate(rows)

    def _batches(self, images: Iterable[ImageLike], size: int, bgr: bool
                 ) -> Iterator[tuple[int, torch.Tensor]]:
        """Each batch with the number of its first image; the next one is read meanwhile."""
        def read(number: int, image: ImageLike) -> Image.Image:
            try:
                return read_image_like(image, bgr=bgr)
            except (OSError, ValueError) as error:
                raise UserError(_named(image, number, str(error))) from error

        def prepare(number: int, image: ImageLike) -> np.ndarray:
            return self.preprocessing(read(number, image))

        # files are read in threads; pixels are taken at once, before the caller's next image may
        # come in the same buffer
        rest = ((number, image if isinstance(image, (str, os.PathLike)) else read(number, image))
                for number, image in enumerate(images))
        waiting: deque[list[Future[np.ndarray]]] = deque()
        done = 0
        pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
        try:
            while True:
                chunk = list(itertools.islice(rest, size))
                if chunk:
                    waiting.append([pool.submit(prepare, *item) for item in chunk])
                if not waiting:
                    return
                if len(waiting) > 1 or not chunk:
                    ready = np.stack([future.result() for future in waiting.popleft()])
                    yield done, torch.from_numpy(ready)
                    done += len(ready)
        finally:
            pool.shutdown(cancel_futures=True)

    @staticmethod
    def _check(rows: np.ndarray, start: int) -> None:
        lengths = np.linalg.norm(rows, axis=1)
        wrong = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0.5)))
        if len(wrong):
            raise UserError(f"The embedding of image {start + wrong[0]} is zero or not finite: "
                            "look at that image first.")

    def compare(self, a: ImageLike, b: ImageLike, *, bgr: bool = False,
                false_match_rate: float | None = None, despite_verdict: bool = False
                ) -> Comparison:
        """How alike two images are, and whether that is taken for the same person.

        Args:
            a, b: images as :meth:`embed` takes them.
            bgr: see there.
            false_match_rate: see :meth:`PairStatistics.threshold`.
            despite_verdict: tell same or different although training went wrong.

        Raises:
            ValueError: see :meth:`embed` and :meth:`PairStatistics.threshold`.
        """
        first, second = self.embed([a, b], bgr=bgr)
        similarity = float(np.clip(first @ second, -1, 1))
        if self.statistics is None or self.verdict.why_withheld(despite_verdict):
            return Comparison(similarity, None, None)
        threshold = self.statistics.threshold(false_match_rate)
        return Comparison(similarity, similarity >= threshold.value, threshold)


def _named(image: ImageLike, number: int, error: str) -> str:
    """An error that says which image it is of."""
    if not isinstance(image, (str, os.PathLike)):
        return f"Image {number}: {error}"
    name = printable(os.fspath(image))
    return error if name in error else f"{name}: {error}"


def load_run(folder: str | os.PathLike[str], *, device: torch.device | str | None = None,
             opts: Sequence[str] = ()) -> Embedder:
    """The network of a run folder, ready to embed images.

    Neither the training images nor the pretrained weights need be there. What caureid threshold
    has measured for this network is taken for the pair statistics, else the memory bank. Whether
    training went well is read from the run's metrics.json; of a run that went wrong a warning says
    that same or different is not told.

    Args:
        folder: of a run, its OUTPUT_DIR, whose last checkpoint is taken; or a checkpoint in one.
        device: where to compute; None: the run's MODEL.DEVICE, or the CPU where there is no CUDA.
        opts: config keys and values that replace the run's.

    Raises:
        RunError: no run folder, or not a whole one; of another version; of a network that gives no
            embedding.
    """
    given = Path(folder)
    path = given if given.suffix == ".pth" else None
    home = given.parent if path else given
    content = read_checkpoint(path) if path else {}  # what was given, before what lies beside it
    check_folder(home)
    cfg = read_config(home, opts)
    if device is not None:
        cfg.MODEL.DEVICE = str(_known_device(device))
    if path is None:
        path = find_checkpoint(home)
        content = read_checkpoint(path)
    network = build_embedding_network(cfg, content, path)
    try:
        preprocessing = Preprocessing.from_config(cfg)
    except ValueError as error:
        raise RunError(f"{printable(home)}: {error}") from error
    found = fingerprint(network, cfg, preprocessing)
    statistics, why = read_statistics(home, found), ""
    if statistics is None:
        statistics, why = _bank_statistics(content, path)
    height, width = preprocessing.shape
    with torch.no_grad():
        dim = network(torch.zeros(1, 3, height, width, device=network.pixel_mean.device)).shape[1]
    return Embedder(
        network, name=f"{home.resolve().name}/{path.name}", dim=dim,
        fingerprint=found, preprocessing=preprocessing,
        statistics=statistics, why_no_statistics=why, device=network.pixel_mean.device,
        verdict=read_verdict(home, content, cfg))


def _known_device(device: torch.device | str) -> torch.device:
    """A device that there is.

    Raises:
        RunError: there is none of this name.
    """
    try:
        known = torch.device(device)
    except RuntimeError as error:
        raise RunError(f"device {device!r} is none that PyTorch knows: give 'cpu', 'cuda' or "
                       "'cuda:0'.") from error
    if known.type == "cuda" and not torch.cuda.is_available():
        raise RunError(f"device {str(device)!r}: PyTorch sees no CUDA on this machine. Leave it "
                       "out, or give 'cpu'.")
    return known


def _bank_statistics(content: dict[str, object], path: Path) -> tuple[PairStatistics | None, str]:
    """Of the checkpoint's memory bank; or why there are none."""
    try:
        bank = memory_bank(content, path)
        return PairStatistics.from_features(
            bank["features"].float().numpy(), without_singletons(bank["labels"].long().numpy()),
            bank["camids"].numpy(), source="memory bank"), ""
    except RunError as error:
        return None, str(error)
    except ValueError as error:
        return None, f"In the memory bank of {printable(path)} {error}."
