"""MNN on whole nets: its converter, its quantizer, and a call of what they make.

Both tools are called as its commands `mnnconvert` and `mnnquant` call them, but not through these:
in 3.6.1 they install a package by pip and send statistics over the network, and `mnnquant` ends
in an error.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from bench.models import Model
from bench.workload import Run

__all__ = ["mnn_float", "mnn_int8", "write_images"]

#: Bytes stand for (byte - _HALF) / _HALF.
_HALF = 127.5


def mnn_float(model: Model, threads: int, *, caffe: bool) -> Run:
    """Set MNN up on what its converter makes of the Caffe files, or of the net in ONNX."""
    with tempfile.TemporaryDirectory() as folder:
        return _session(_converted(model, Path(folder), caffe), model.x, threads)


def mnn_int8(model: Model, images: Sequence[np.ndarray], threads: int, *, caffe: bool) -> Run:
    """Set MNN up on what its quantizer makes of that net, by its default (KL, images)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = _converted(model, folder, caffe)
        result, config = folder / "int8.mnn", folder / "quant.json"
        _, channels, height, width = model.x.shape
        write_images(images, folder / "images")
        settings = {
            "format": "GRAY" if channels == 1 else "BGR",
            "mean": [_HALF] * channels,
            "normal": [1 / _HALF] * channels,
            "width": width,
            "height": height,
            "path": f"{folder / 'images'}/",
            "used_image_num": len(images),
            "feature_quantize_method": "KL",
            "weight_quantize_method": "MAX_ABS",
        }
        config.write_text(json.dumps(settings))
        _tool("mnnquant", result, str(source), str(result), str(config))
        return _session(result, model.x, threads)


def write_images(images: Sequence[np.ndarray], folder: Path) -> None:
    """Write images of values from -1 to 1 as PNG files, as MNN's quantizer reads its samples."""
    cv2: Any = import_module("cv2")
    folder.mkdir()
    for i, image in enumerate(images):
        if image.shape[0] != 1 or image.shape[1] not in (1, 3):
            raise ValueError(f"an image file holds no values of shape {image.shape}")
        values = np.rint((image[0].transpose(1, 2, 0) + 1) * _HALF)
        cv2.imwrite(str(folder / f"{i}.png"), values.astype(np.uint8))


def _converted(model: Model, folder: Path, caffe: bool) -> Path:
    """Convert a net; return the file."""
    result = folder / "float.mnn"
    if caffe:
        prototxt, weights = map(str, model.files.paths)
        source = ["-f", "CAFFE", "--modelFile", weights, "--prototxt", prototxt]
    else:
        path = folder / "net.onnx"
        path.write_bytes(model.onnx())
        source = ["-f", "ONNX", "--modelFile", str(path)]
    _tool("mnnconvert", result, *source, "--MNNModel", str(result), "--bizCode", "bench")
    return result


def _tool(name: str, result: Path, *arguments: str) -> None:
    """Run a tool in a process of its own: where it fails, it ends the process or says nothing."""
    code = f"import sys, _tools; _tools.{name}(sys.argv)"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode or not result.is_file():
        words = (done.stdout + done.stderr).strip().splitlines()
        raise RuntimeError(f"{name} ends with {done.returncode}: {' '.join(words[-2:])}")


def _session(path: Path, x: np.ndarray, threads: int) -> Run:
    """Return a call of MNN on a net; what is not INT8 is computed in float32."""
    with _quiet():
        mnn: Any = import_module("MNN")
        interpreter = mnn.Interpreter(str(path))
        session = interpreter.createSession(
            {"backend": "CPU", "numThread": threads, "precision": "high"}
        )
        entry = interpreter.getSessionInput(session)
        if tuple(entry.getShape()) != x.shape:
            interpreter.resizeTensor(entry, x.shape)
            interpreter.resizeSession(session)

    def host(values: np.ndarray) -> Any:
        return mnn.Tensor(
            values.shape, mnn.Halide_Type_Float, values, mnn.Tensor_DimensionType_Caffe
        )

    end = interpreter.getSessionOutput(session)
    given, found = host(x), host(np.zeros(end.getShape(), np.float32))

    def run() -> np.ndarray:
        entry.copyFrom(given)  # not once for all: its memory is reused
        interpreter.runSession(session)
        end.copyToHostTensor(found)  # from INT8, and from its own order of channels
        return np.array(found.getNumpyData())

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what a library written in C prints off the tables."""
    c = ctypes.CDLL(None)
    sys.stdout.flush()
    c.fflush(None)
    kept = os.dup(1)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        c.fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
