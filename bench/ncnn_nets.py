"""A net in ncnn's own format, in float32 or in INT8 by a calibration table, and a call of it.

ncnn's converters (caffe2ncnn, ncnnoptimize, ncnn2int8) are programs, which its wheel does not
bring. This writes what they write for the layers of the nets here: activations within the layers
before them, a Split where a value has several readers, and INT8 from one convolution to the next
where no other layer reads the data.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from bench.workload import Run
from caffeio import Layer, Net
from pipeline import FloatNet
from pipeline.layers import Shape
from pipeline.layers.convolution import conv_params
from pipeline.layers.pooling import pool_params
from pipeline.layers.shape import concat_axis

__all__ = ["ncnn_net", "ncnn_run", "read_table", "write_ncnn"]

#: The scales of a table: by layer for data, by ``<layer>_param_0`` for weights.
Table = Mapping[str, np.ndarray]

#: An activation within a layer: its type and its numbers.
Activation = tuple[int, tuple[float, ...]]

_CONVOLUTIONS = ("Convolution", "ConvolutionDepthWise")
_QUANTIZABLE = (*_CONVOLUTIONS, "InnerProduct")


@dataclass
class _Line:
    """A layer as ncnn has it: a line of the .param file, and arrays for the .bin file."""

    kind: str
    name: str
    reads: list[str]
    writes: list[str]
    settings: dict[int, float | tuple[float, ...]] = field(default_factory=dict)
    arrays: list[np.ndarray] = field(default_factory=list)
    int8: bool = False

    def text(self) -> str:
        """Return the line."""
        ends = " ".join((*self.reads, *self.writes))
        return (
            f"{self.kind} {self.name} {len(self.reads)} {len(self.writes)} {ends}"
            f"{''.join(f' {_setting(*pair)}' for pair in self.settings.items())}"
        )

    def content(self) -> bytes:
        """Return the arrays; a mark before the weights says that they are float32."""
        mark = struct.pack("<I", 0) if self.arrays else b""
        return mark + b"".join(np.asarray(a, "<f4").tobytes() for a in self.arrays)


def _setting(key: int, value: float | tuple[float, ...]) -> str:
    if isinstance(value, tuple):
        return f"-{23300 + key}={','.join((str(len(value)), *(f'{v:.8e}' for v in value)))}"
    return f"{key}={value:.8e}" if isinstance(value, float) else f"{key}={int(value)}"


def read_table(text: str) -> dict[str, np.ndarray]:
    """Return the scales of a calibration table."""
    lines = [line.split() for line in text.splitlines()]
    return {name: np.array(values, np.float32) for name, *values in lines}


def _refuse(layer: Layer, what: str) -> ValueError:
    return ValueError(f"layer '{layer.name}': {what} is not written for ncnn here")


def _convolution(layer: Layer, shapes: Sequence[Shape]) -> _Line:
    p = conv_params(layer, shapes[0])
    (kernel_h, kernel_w), (stride_h, stride_w) = p.kernel, p.stride
    (pad_h, pad_w), (dilation_h, dilation_w) = p.pad, p.dilation
    size = {
        0: p.outputs, 1: kernel_w, 11: kernel_h, 2: dilation_w, 12: dilation_h,
        3: stride_w, 13: stride_h, 4: pad_w, 14: pad_h,
        5: len(layer.blobs) > 1, 6: layer.blobs[0].size,
    }  # fmt: skip
    if p.group > 1:
        return _Line("ConvolutionDepthWise", layer.name, [], [], {**size, 7: p.group})
    return _Line("Convolution", layer.name, [], [], {**size})


def _product(layer: Layer, _shapes: Sequence[Shape]) -> _Line:
    p = layer.param.inner_product_param
    if p.axis != 1 or p.transpose:
        raise _refuse(layer, "InnerProduct over another axis or transposed")
    size = {0: p.num_output, 1: len(layer.blobs) > 1, 2: layer.blobs[0].size}
    return _Line("InnerProduct", layer.name, [], [], {**size})


def _pooling(layer: Layer, shapes: Sequence[Shape]) -> _Line:
    p = pool_params(layer, shapes[0])
    if p.method not in ("MAX", "AVE") or p.margins is not None or len(layer.tops) > 1:
        raise _refuse(layer, f"{p.method} pooling")
    if any(p.pad) and (p.method == "AVE" or p.ceil_mode):
        raise _refuse(layer, "pooling with pads, where Caffe has rules of its own,")
    method = int(p.method == "AVE")
    if p.global_pooling:
        return _Line("Pooling", layer.name, [], [], {0: method, 4: 1})
    (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w) = p.kernel, p.stride, p.pad
    window = {
        0: method, 1: kernel_w, 11: kernel_h, 2: stride_w, 12: stride_h,
        3: pad_w, 13: pad_h, 5: not p.ceil_mode,
    }  # fmt: skip
    return _Line("Pooling", layer.name, [], [], {**window})


def _eltwise(layer: Layer, _shapes: Sequence[Shape]) -> _Line:
    p = layer.param.eltwise_param
    if any(c != 1 for c in p.coeff):
        raise _refuse(layer, "Eltwise with coefficients")
    operation = {p.PROD: 0, p.SUM: 1, p.MAX: 2}[p.operation]
    return _Line("Eltwise", layer.name, [], [], {0: operation})


def _concat(layer: Layer, shapes: Sequence[Shape]) -> _Line:
    axis = concat_axis(layer, "concat_dim", len(shapes[0]))
    if axis < 1:
        raise _refuse(layer, "Concat of images")
    return _Line("Concat", layer.name, [], [], {0: axis - 1})


def _softmax(layer: Layer, shapes: Sequence[Shape]) -> _Line:
    axis = layer.param.softmax_param.axis % len(shapes[0])
    return _Line("Softmax", layer.name, [], [], {0: axis - 1, 1: 1})


def _flatten(layer: Layer, _shapes: Sequence[Shape]) -> _Line:
    p = layer.param.flatten_param
    if (p.axis, p.end_axis) != (1, -1):
        raise _refuse(layer, "Flatten of some axes")
    return _Line("Flatten", layer.name, [], [])


_WRITERS: Mapping[str, Callable[[Layer, Sequence[Shape]], _Line]] = {
    "Convolution": _convolution,
    "InnerProduct": _product,
    "Pooling": _pooling,
    "Eltwise": _eltwise,
    "Concat": _concat,
    "Softmax": _softmax,
    "Flatten": _flatten,
}


def _activation(layer: Layer) -> Activation | None:
    """Return a layer as an activation within the one before it, or None."""
    if layer.type == "ReLU":
        slope = layer.param.relu_param.negative_slope
        return (2, (slope,)) if slope else (1, ())
    if layer.type == "ReLU6":
        return 3, (0.0, 6.0)
    if layer.type == "Clip":
        return 3, (layer.param.clip_param.min, layer.param.clip_param.max)
    return None


def _alone(layer: Layer, activation: Activation) -> _Line:
    """Return an activation as a layer of its own."""
    kind, values = activation
    return _Line("Clip" if kind == 3 else "ReLU", layer.name, [], [], dict(enumerate(values)))


def _lines(net: Net) -> list[_Line]:
    """Return the layers of a net in ncnn's terms; values have the names of `net.links`."""
    shapes = FloatNet(net).shapes()
    same: dict[str, str] = {}  # values that are another's
    makers: dict[str, _Line] = {}
    lines: list[_Line] = []
    for layer, link in zip(net.layers, net.links, strict=True):
        reads = [same.get(str(v), str(v)) for v in link.reads]
        writes = [str(v) for v in link.writes]
        if layer.type in ("Dropout", "Split"):
            same.update((name, reads[0]) for name in writes)
            continue
        activation = _activation(layer)
        if (
            activation
            and makers[reads[0]].kind in _QUANTIZABLE
            and len(net.readers[link.reads[0]]) == 1
        ):
            maker = makers[writes[0]] = makers.pop(reads[0])
            maker.writes = writes
            maker.settings[9] = activation[0]
            if activation[1]:
                maker.settings[10] = activation[1]
            continue
        if layer.is_source:
            line = _Line("Input", layer.name, [], [])
        elif activation:
            line = _alone(layer, activation)
        elif layer.type in _WRITERS:
            line = _WRITERS[layer.type](layer, [shapes[v] for v in link.reads])
        else:
            raise _refuse(layer, f"type {layer.type}")
        line.reads, line.writes, line.arrays = reads, writes, list(layer.blobs)
        lines.append(line)
        makers.update((name, line) for name in writes)
    return lines


def _readers(lines: Sequence[_Line]) -> dict[str, list[_Line]]:
    """Return the lines that read each value, one that reads it twice twice."""
    readers: dict[str, list[_Line]] = {name: [] for line in lines for name in line.writes}
    for line in lines:
        for name in line.reads:
            readers[name].append(line)
    return readers


def _quantize(lines: Sequence[_Line], table: Table) -> None:
    """Give the layers of a table its scales; their data stays INT8 where only they read it."""
    for line in lines:
        if line.name not in table:
            continue
        weights = table[f"{line.name}_param_0"]
        wanted = line.settings.get(7, line.settings[0])
        if line.kind not in _QUANTIZABLE or weights.size != wanted:
            raise ValueError(f"layer '{line.name}': ncnn takes no {weights.size} scales for it")
        line.int8 = True
        # depthwise, 1 says one scale for each group and 2 one for all
        line.settings[8] = 1 if line.kind == "ConvolutionDepthWise" else 2
        line.arrays += [weights, table[line.name]]
    readers = _readers(lines)
    for line in lines:
        users = readers[line.writes[0]] if line.int8 and line.kind in _CONVOLUTIONS else []
        if users and all(user.int8 and user.kind in _CONVOLUTIONS for user in users):
            line.settings[8] = int(line.settings[8]) + 100  # type: ignore[arg-type]
            line.arrays.append(table[users[0].name])


def _with_splits(lines: Sequence[_Line]) -> list[_Line]:
    """Return the lines with a Split after each value that has several readers."""
    readers, result = _readers(lines), []
    for line in lines:
        result.append(line)
        for name in line.writes:
            users = readers[name]
            if len(users) < 2:
                continue
            parts = [f"{name}_split{i}" for i in range(len(users))]
            result.append(_Line("Split", f"{line.name}_split", [name], parts))
            for user, part in zip(users, parts, strict=True):
                user.reads[user.reads.index(name)] = part
    return result


def write_ncnn(net: Net, folder: Path, table: Table | None = None) -> tuple[str, ...]:
    """Write ``net.param`` and ``net.bin``.

    Parameters
    ----------
    net : Net
        With BatchNorm and Scale folded.
    folder : Path
    table : mapping of str to array, optional
        Of the layers that run in INT8, as `read_table` returns it.

    Returns
    -------
    tuple of str
        The layers that run in INT8.

    Raises
    ------
    ValueError
        If a layer is not written here, or the table does not fit it.
    """
    lines = _lines(net)
    _quantize(lines, table or {})
    lines = _with_splits(lines)
    count = sum(len(line.writes) for line in lines)
    head = ["7767517", f"{len(lines)} {count}"]
    text = "\n".join((*head, *(line.text() for line in lines)))
    (folder / "net.param").write_text(f"{text}\n")
    (folder / "net.bin").write_bytes(b"".join(line.content() for line in lines))
    return tuple(line.name for line in lines if line.int8)


def ncnn_net(folder: Path, threads: int) -> Any:
    """Return the ``ncnn.Net`` of a folder that `write_ncnn` has filled; float parts in float32."""
    ncnn: Any = import_module("ncnn")
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.lightmode = True
    net.opt.openmp_blocktime = 0  # waiting threads would take the cores from the next side
    for kind in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_packed", "bf16_storage"):
        setattr(net.opt, f"use_{kind}", False)
    if net.load_param(str(folder / "net.param")) or net.load_model(str(folder / "net.bin")):
        raise ValueError("ncnn does not read the net written for it")
    return net


def ncnn_run(
    net: Net, x: np.ndarray, threads: int, *, table: Table | None = None, output: str | None = None
) -> Run:
    """Return a call of ncnn on some images, one after another, as it knows no batches.

    Parameters
    ----------
    net : Net
        With BatchNorm and Scale folded, and one input.
    x : float32 array (N, C, H, W)
    threads : int
    table : mapping of str to array, optional
        As `write_ncnn` takes it.
    output : str, optional
        The value to return, by default the net's last one.
    """
    ncnn: Any = import_module("ncnn")
    with tempfile.TemporaryDirectory() as folder:
        write_ncnn(net, Path(folder), table)
        runner = ncnn_net(Path(folder), threads)
    (source,) = (link for layer, link in zip(net.layers, net.links, strict=True) if layer.is_source)
    entry, end = str(source.writes[0]), output or str(net.links[-1].writes[0])
    images = [ncnn.Mat(image).clone() for image in x]

    def run() -> np.ndarray:
        results = []
        for image in images:
            extractor = runner.create_extractor()
            extractor.input(entry, image)
            code, result = extractor.extract(end)
            if code:
                raise RuntimeError(f"ncnn ends with {code}")
            results.append(np.array(result).reshape(-1))
        return np.stack(results)

    return run
