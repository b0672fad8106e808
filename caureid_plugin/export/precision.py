"""ONNX files of fewer bits: half precision, and eight bits by images that calibrate them."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..common.text import one_line
from .graph import INPUT_NAME, ExportError, require

PRECISIONS = ("fp32", "fp16", "int8")
# a sum of squares leaves the range of a half above a norm of 256
_KEPT_WHOLE = ("ReduceL2", "Div", "Clip", "InstanceNormalization", "Resize", "Expand", "Shape")
_IN_EIGHT_BITS = ("Conv", "MatMul", "Gemm")


def to_half(content: bytes) -> bytes:
    """The same ONNX file with weights and most operations in half precision.

    Input and output stay float32; the normalisation of the embedding is computed in float32.

    Raises:
        ImportError: onnx or onnxruntime is not installed.
    """
    onnx, half = require("onnx"), require("onnxruntime.transformers.float16")
    in_order = require("onnxruntime.transformers.onnx_model").OnnxModel
    blocked = [*half.DEFAULT_OP_BLOCK_LIST, *_KEPT_WHOLE]
    model = half.convert_float_to_float16(onnx.load_model_from_string(content), keep_io_types=True,
                                          op_block_list=blocked)
    in_order(model).topological_sort()  # casts of inputs stand last, which ONNX forbids
    found: bytes = model.SerializeToString()
    return found


class _Images:
    """Gives onnxruntime the images that it calibrates by, one batch after the other."""

    def __init__(self, images: np.ndarray, batch: int = 8) -> None:
        self._batches = iter([images[i:i + batch] for i in range(0, len(images), batch)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT_NAME: batch}


def to_eight_bits(content: bytes, images: np.ndarray) -> bytes:
    """The same ONNX file with convolutions and products of matrices in eight bits.

    Static quantisation: weights by channel, signed; activations by the range that they have on the
    images, unsigned. Everything else, normalisation of the embedding included, stays float32.

    Args:
        content: of a float32 file.
        images: (N, 3, H, W) float32, as the file takes them.

    Raises:
        ExportError: onnxruntime cannot run the file on them.
        ImportError: onnx or onnxruntime is not installed.
    """
    tools = require("onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        given, folded, made = (Path(folder, f"{name}.onnx") for name in ("a", "b", "c"))
        given.write_bytes(content)
        # folds batch norm into the convolutions, whose ranges are those that count
        require("onnxruntime.quantization.shape_inference").quant_pre_process(
            str(given), str(folded), skip_symbolic_shape=True)
        reader: Any = type("Reader", (_Images, tools.CalibrationDataReader), {})(images)
        try:
            tools.quantize_static(
                str(folded), str(made), reader, quant_format=tools.QuantFormat.QDQ,
                per_channel=True, activation_type=tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8, op_types_to_quantize=list(_IN_EIGHT_BITS))
        except Exception as error:  # its errors have no base of their own
            raise ExportError(
                f"onnxruntime {require('onnxruntime').__version__} cannot calibrate this network "
                f"by the images: {one_line(error)}. Take --precision fp32.") from error
        return made.read_bytes()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without onnxruntime's advice to fold what has just been folded."""
    log = logging.getLogger()
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
