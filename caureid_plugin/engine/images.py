"""Which images a run trains on, kept with its checkpoints."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from ..clustering import Tracks
from ..common.errors import UserError


def images_digest(paths: Sequence[str]) -> str:
    """A digest of the images' names in their order, the same wherever their folder lies.

    Args:
        paths: of the images; what is above the last folder that holds them all does not count.

    Returns:
        32 hexadecimal digits (BLAKE2b).
    """
    whole = [os.path.abspath(path) for path in paths]
    shared = len(os.path.commonpath([os.path.dirname(path) for path in whole])) if whole else 0
    names = "\n".join(path[shared:] for path in whole)
    return hashlib.blake2b(os.fsencode(names), digest_size=16).hexdigest()


def tracks_digest(tracks: Tracks | None) -> str | None:
    """A digest of which images are of one track, and when; None without tracks."""
    if tracks is None:
        return None
    content = b"".join(part.tobytes() for part in (tracks.of_image, tracks.first, tracks.last))
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class TrainingImages:
    """Checkpointable that refuses to go on with other images or tracks than the run began with.

    A row of the bank is a place in the list of images: with one image added and another removed
    the bank has the right size, and every row belongs to another image.

    Args:
        paths: of the training images, in the order of the bank.
        names: DATASETS.NAMES, for the message.
        tracks: of the images.
    """

    def __init__(self, paths: Sequence[str], names: Sequence[str],
                 tracks: Tracks | None = None) -> None:
        self._digest, self._tracks = images_digest(paths), tracks_digest(tracks)
        self._names = list(names)

    def state_dict(self) -> dict[str, str | None]:
        """The digests."""
        return {"digest": self._digest, "tracks": self._tracks}

    def load_state_dict(self, state: dict[str, str | None]) -> None:
        """Compares with a checkpoint's.

        Raises:
            ValueError: it is of other images.
        """
        if state["digest"] != self._digest:
            raise UserError(
                f"The training images of DATASETS.NAMES {self._names} are not the "
                "checkpoint's, although as many: files were added, removed or renamed. Restore "
                "them to go on, or start anew in another OUTPUT_DIR (MODEL.WEIGHTS takes over what "
                "was learnt).")
        if state.get("tracks") != self._tracks:  # version 0.3 had none
            raise UserError(
                f"The tracks or times of the training images of DATASETS.NAMES {self._names} are "
                "not the checkpoint's. Restore them (CAMERA_FOLDER.TRACK, TIME and "
                "what these read) to go on, or start anew in another OUTPUT_DIR.")
