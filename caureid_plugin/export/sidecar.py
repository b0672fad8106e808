"""What an exported file is, in a file beside it: ``model.onnx.json`` beside ``model.onnx``.

Beside ``model.safetensors`` it is ``config.json``, as huggingface_hub expects.

Without it nobody could tell how images must be resized and normalised, what similarity means the
same person, and whether an index was made by the same network.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from ..common.files import write_atomically
from ..common.text import printable
from ..runs.threshold import LEVELS, NO_VERDICT, RunVerdict
from .graph import (
    FORMAT_NAMES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    INPUT_NAME,
    INPUTS,
    OUTPUT_NAME,
    ExportError,
)
from .precision import PRECISIONS

# Raised by whatever an older version would misread. 2: training is known to have gone wrong
FORMATS = 1, 2
KIND = "caureid-plugin export"
LARGEST = 16 * 2 ** 20  # bytes of a sidecar
AGAIN = "Make it again (caureid export), or restore both files from a copy."
_NORMALISATION = {
    "rgb255": "built in: the file takes RGB from 0 to 255",
    "imagenet": f"before the file: RGB from 0 to 1, less {list(IMAGENET_MEAN)}, by "
                f"{list(IMAGENET_STD)}",
}


@dataclasses.dataclass(frozen=True)
class Sidecar:
    """Content of a sidecar.

    ``digest`` (BLAKE2b, 32 hex digits) is the exported file's, ``kind`` "onnx", "torchscript" or
    "safetensors". The last has ``network``: config keys that build it.
    ``shape`` (H, W) is that of the images that the file takes, ``size`` and ``crop`` how
    preprocessing makes them. ``fingerprint`` is that of the file's embeddings, ``run`` that of the
    network that was exported: the two are one in float32. ``statistics`` is what the network's pair
    statistics write of themselves, None if there are none, for the reason ``why_no_statistics``;
    ``threshold`` is the one that they suggest. ``verdict`` is that of the run: where it is bad,
    there is no threshold. ``difference`` is the largest cosine distance to
    PyTorch's embeddings that was found at export.
    """

    kind: str
    digest: str
    fingerprint: str
    run: str
    name: str
    dim: int
    convention: str
    shape: tuple[int, int]
    size: tuple[int, ...]
    crop: tuple[int, ...]
    precision: str
    statistics: Any
    why_no_statistics: str
    threshold: dict[str, float] | None
    difference: float
    plugin: str
    torch: str
    verdict: RunVerdict = NO_VERDICT
    network: dict[str, Any] | None = None

    def write(self, path: Path) -> None:
        """Writes it beside the exported file ``path``.

        Raises:
            OSError: it cannot be written.
        """
        number = FORMATS[self.verdict.level == "bad"]
        content = {"format": number, "what": KIND, **dataclasses.asdict(self),
                   "verdict": self.verdict._asdict(),
                   "input": {"name": INPUT_NAME, "type": "float32", "channels": "RGB",
                             "shape": ["batch", 3, *self.shape],
                             "resized_by": "bicubic (PIL), without keeping the proportions",
                             "normalisation": _NORMALISATION[self.convention]},
                   "output": {"name": OUTPUT_NAME, "shape": ["batch", self.dim],
                              "normalisation": "L2"}}
        if self.network is None:
            del content["network"]
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        write_atomically(beside(path), text)


def beside(path: Path) -> Path:
    """Where the sidecar of a file lies."""
    if path.suffix == ".safetensors":
        return path.with_name("config.json")
    return path.with_name(f"{path.name}.json")


def digest(content: bytes) -> str:
    """32 hexadecimal digits (BLAKE2b)."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def fingerprint_at(fingerprint: str, precision: str, content: bytes) -> str:
    """Fingerprint of a network's file with this content.

    In float32 it is the network's own: embeddings agree to 1e-4 in cosine distance, which is less
    than what another image format does, and may be searched for among each other. With fewer bits
    they belong to another network, and to another one for each calibration.
    """
    if precision == "fp32":
        return fingerprint
    return digest(f"{fingerprint} {precision} {digest(content)}".encode("ascii"))


def read_file(path: Path, what: str, largest: int | None = None) -> bytes:
    """Content of a regular file.

    Raises:
        ExportError: there is none, it is no regular file or too large, or cannot be read.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
            raise ExportError(f"{printable(path)} is no regular file: give {what}.")
        if largest is not None and status.st_size > largest:
            raise ExportError(f"{printable(path)} has {status.st_size} bytes, more than any such "
                              f"file: it is not {what}.")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ExportError(f"{printable(path)} does not exist: give {what}.") from error
    except OSError as error:
        raise ExportError(f"{printable(path)} cannot be read ({error.strerror}): give {what}."
                          ) from error


def read_sidecar(path: Path) -> Sidecar:
    """The sidecar of the exported file ``path``.

    Raises:
        ExportError: it is missing, damaged, of a newer version, or of something else.
    """
    place = beside(path)
    if not os.path.lexists(place):
        raise ExportError(f"{printable(path)} has no sidecar {printable(place.name)}, which tells "
                          "size, normalisation and fingerprint: copy it along with the file, or "
                          "export again (caureid export).")
    content = read_file(place, "the sidecar that caureid export writes beside its file", LARGEST)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{printable(place)} is damaged, it is no JSON. {AGAIN}") from error
    if not isinstance(found, dict) or found.get("what") != KIND:
        raise ExportError(f"{printable(place)} is not of caureid export: it does not say "
                          f"\"what\": \"{KIND}\". {AGAIN}")
    number = found.get("format")
    if type(number) is not int or number < 1:
        raise ExportError(f"{printable(place)} is damaged: its format is {number!r}. {AGAIN}")
    if number not in FORMATS:
        plugin = printable(str(found.get("plugin"))[:30])
        raise ExportError(
            f"{printable(place)} has format {number}, and this version knows {FORMATS[-1]}: it was "
            f"written by caureid-plugin {plugin}. Install that version, or export again with this "
            "one.")
    return _checked(found, place)


def _checked(found: dict[str, Any], place: Path) -> Sidecar:
    """The sidecar of well-formed values.

    Raises:
        ExportError: names the first that is not.
    """
    def is_hex(text: Any) -> bool:
        return isinstance(text, str) and len(text) == 32 and set(text) <= set("0123456789abcdef")

    def is_sizes(value: Any, lengths: tuple[int, ...]) -> bool:
        return (isinstance(value, list) and len(value) in lengths
                and all(type(part) is int and 0 < part <= 10_000 for part in value))

    good = {
        "kind": lambda v: v in FORMAT_NAMES, "digest": is_hex, "fingerprint": is_hex,
        "run": is_hex, "name": lambda v: isinstance(v, str),
        "dim": lambda v: type(v) is int and v > 0,
        "convention": lambda v: v in INPUTS, "shape": lambda v: is_sizes(v, (2,)),
        "size": lambda v: is_sizes(v, (0, 1, 2)), "crop": lambda v: is_sizes(v, (0, 1, 2)),
        "precision": lambda v: v in PRECISIONS,
        "statistics": lambda v: True, "why_no_statistics": lambda v: isinstance(v, str),
        "threshold": lambda v: v is None or isinstance(v, dict),
        "difference": lambda v: isinstance(v, (int, float)),
        "plugin": lambda v: isinstance(v, str), "torch": lambda v: isinstance(v, str)}
    for name, is_good in good.items():
        if name not in found or not is_good(found[name]):
            value = printable(repr(found[name])[:60]) if name in found else "missing"
            raise ExportError(f"{printable(place)} is damaged: its {name} is {value}. {AGAIN}")
    verdict = found.get("verdict", NO_VERDICT._asdict())  # older files have none
    if (not isinstance(verdict, dict) or verdict.keys() != NO_VERDICT._asdict().keys()
            or verdict["level"] not in LEVELS or not isinstance(verdict["reason"], str)):
        raise ExportError(f"{printable(place)} is damaged: its verdict is "
                          f"{printable(repr(verdict)[:60])}. {AGAIN}")
    network = found.get("network")
    if found["kind"] == "safetensors" and not isinstance(network, dict):
        raise ExportError(f"{printable(place)} is damaged: its network is "
                          f"{printable(repr(network)[:60])}. {AGAIN}")
    values = {name: found[name] for name in good} | {
        "verdict": RunVerdict(**verdict), "network": network}
    sizes = {name: tuple(found[name]) for name in ("shape", "size", "crop")}
    return Sidecar(**{**values, **sizes})
