"""From an image, wherever it comes from, to what a network takes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from fastreid.config import CfgNode
from fastreid.data import data_utils
from PIL import Image
from torchvision.transforms import InterpolationMode, functional

from ..common.errors import UserError
from ..common.images import upright_rgb
from ..common.text import printable

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The test transforms of a config, without the config.

    Calling one with an RGB image gives (3, H, W) float32 in 0..255, value for value what the
    toolbox's evaluation gives the network: resized by bicubic interpolation with anti-aliasing,
    the centre cut out where ``crop`` says so.

    Attributes:
        size: (H, W) in pixels, or (S,) for the shorter side; () for no change (INPUT.SIZE_TEST).
        crop: (H, W) or (S,), a square; () for the whole image (INPUT.CROP).

    Raises:
        ValueError: images would come out in different sizes.
    """

    size: tuple[int, ...]
    crop: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.size) < 2 and not self.crop:
            raise UserError(
                f"With INPUT.SIZE_TEST {list(self.size)} images keep their proportions, and those "
                "of different ones do not fit into one batch: give height and width, or set "
                "INPUT.CROP.ENABLED True.")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Preprocessing:
        """Those that the toolbox builds from INPUT.SIZE_TEST and INPUT.CROP."""
        size = tuple(int(side) for side in cfg.INPUT.SIZE_TEST)
        crop = tuple(int(side) for side in cfg.INPUT.CROP.SIZE) if cfg.INPUT.CROP.ENABLED else ()
        return cls(size if size[0] > 0 else (), crop)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of what comes out."""
        sides = self.crop or self.size
        return sides[0], sides[-1]

    def __call__(self, image: Image.Image) -> np.ndarray:
        if self.size:
            size = self.size[0] if len(self.size) == 1 else list(self.size)
            image = functional.resize(image, size, InterpolationMode.BICUBIC)
        if self.crop:
            image = functional.center_crop(image, [self.crop[0], self.crop[-1]])
        pixels = np.asarray(image, dtype=np.float32)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def is_one_image(value: Any) -> bool:
    """Whether a value is an image by itself, or nothing that could hold several."""
    if isinstance(value, np.ndarray):
        return value.ndim < 4
    return (isinstance(value, (str, bytes, os.PathLike, Image.Image)) or hasattr(value, "read")
            or not isinstance(value, Iterable))


def read_image_like(image: ImageLike, *, bgr: bool = False) -> Image.Image:
    """An image as 8-bit RGB.

    Args:
        image: a path; an image of PIL; an array of 8-bit values, (H, W, 3) or grey, (H, W). Files
            are turned upright as EXIF says, and so are images of PIL that were read from one.
        bgr: arrays are BGR, as OpenCV reads them.

    Returns:
        one that shares no pixels with what was given.

    Raises:
        ValueError: no image, or not one that can be read; says why.
        OSError: as for any file.
    """
    if isinstance(image, (str, os.PathLike)):
        path = os.fspath(image)
        if not os.path.lexists(path):
            raise UserError(f"The image {printable(path)} does not exist.")
        read: Image.Image = data_utils.read_image(path)  # refuses FIFOs, which would wait
        return read
    if isinstance(image, Image.Image):
        return _upright(image)
    if isinstance(image, np.ndarray):
        return _from_array(image, bgr)
    raise UserError(f"An image is a path, an array or an image of PIL, and this is a "
                    f"{type(image).__name__}.")


def _upright(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        # PIL's own conversion cuts values off at 255 and scales none
        raise UserError(f"An image of PIL of mode {image.mode} has no 8-bit values: give the path "
                        "of its file, or an array of uint8 that you have scaled to 0..255.")
    if not image.width or not image.height:
        raise UserError(f"An image of PIL of {image.width} x {image.height} has no pixels.")
    try:
        return upright_rgb(image, "an image of PIL")
    except Exception as error:  # broken data make Pillow's decoders raise nearly anything
        raise UserError("Pillow cannot decode it "
                        f"({' '.join(str(error).split()) or type(error).__name__}).") from error


def _from_array(array: np.ndarray, bgr: bool) -> Image.Image:
    grey = array.ndim == 2
    if array.dtype != np.uint8 or not (grey or (array.ndim == 3 and array.shape[2] == 3)):
        raise UserError(
            f"An array of shape {array.shape} and type {array.dtype} is no image: give (H, W, 3) "
            f"{'BGR' if bgr else 'RGB'} or (H, W) grey of uint8, values 0 to 255.")
    if not array.size:
        raise UserError(f"An array of shape {array.shape} has no pixels.")
    if grey:
        return Image.fromarray(array).convert("RGB")
    return Image.fromarray(np.ascontiguousarray(array[:, :, ::-1] if bgr else array)).copy()
