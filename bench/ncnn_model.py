"""A net in ncnn's own format, and a call that runs it there.

ncnn's converters are programs that its package does not hold; so layers are written by hand, in
float or, where ncnn's calibration table has scales for them, in INT8.
"""

from __future__ import annotations

import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from caffeio import Layer, Net

__all__ = ["ncnn_run", "read_table", "write_ncnn"]

Table = Mapping[str, np.ndarray]


def read_table(text: str) -> dict[str, np.ndarray]:
    """Return the scales of a calibration table by layer."""
    lines = [line.split() for line in text.splitlines()]
    return {name: np.array(values, np.float32) for name, *values in lines}


def _convolution(layer: Layer, int8: bool) -> tuple[str, dict[int, int]]:
    c = layer.param.convolution_param
    size = {
        0: c.num_output, 1: c.kernel_size[0], 2: c.dilation[0] if c.dilation else 1,
        3: c.stride[0] if c.stride else 1, 4: c.pad[0] if c.pad else 0,
        5: len(layer.blobs) > 1, 6: layer.blobs[0].size, 8: int8,
    }  # fmt: skip
    return ("ConvolutionDepthWise", {**size, 7: c.group}) if c.group > 1 else ("Convolution", size)


def _params(layer: Layer, int8: bool) -> tuple[str, dict[int, int]]:
    """Return ncnn's type and its numbered parameters."""
    p = layer.param
    if layer.type == "Convolution":
        return _convolution(layer, int8)
    if layer.type == "InnerProduct":
        outs = p.inner_product_param.num_output
        return "InnerProduct", {0: outs, 1: len(layer.blobs) > 1, 2: layer.blobs[0].size, 8: int8}
    if layer.type == "Pooling":
        o = p.pooling_param
        size = {0: o.pool, 1: o.kernel_size, 2: o.stride, 3: o.pad, 4: o.global_pooling, 5: 0}
        return "Pooling", size
    simple: dict[str, tuple[str, dict[int, int]]] = {
        "Eltwise": ("Eltwise", {0: 1}),
        "Softmax": ("Softmax", {0: 0, 1: 1}),
        "ReLU": ("ReLU", {0: 0}),
        "ReLU6": ("Clip", {0: 0, 1: 6}),
        "Concat": ("Concat", {0: 0}),
        "Dropout": ("Dropout", {}),
    }
    return simple[layer.type]


def write_ncnn(net: Net, table: Table, folder: Path) -> tuple[str, ...]:
    """Write ``net.param`` and ``net.bin``; return the layers that run in INT8.

    Parameters
    ----------
    net : Net
        Fused, one image, of the layers of plain classifiers.
    table : mapping of str to float32 array
        Scales of data by layer, and of weights by ``<layer>_param_0``; empty for a float net.
    folder : Path

    Raises
    ------
    KeyError
        If a layer's type has no form here.
    """
    readers = Counter(str(v) for link in net.links for v in link.reads)
    used: Counter[str] = Counter()
    lines, weights, quantized, blobs = [], b"", [], 0

    def reads(name: str) -> str:
        """Return the copy of a blob for its next reader."""
        used[name] += 1
        return f"{name}_{used[name]}" if readers[name] > 1 else name

    for layer, link in zip(net.layers, net.links, strict=True):
        tops, bottoms = [str(v) for v in link.writes], [reads(str(v)) for v in link.reads]
        int8 = layer.name in table
        kind, numbers = ("Input", {}) if layer.is_source else _params(layer, int8)
        settings = " ".join(f"{k}={int(v)}" for k, v in numbers.items())
        ends = f"{len(bottoms)} {len(tops)} {' '.join((*bottoms, *tops))}"
        lines.append(f"{kind} {layer.name} {ends} {settings}".rstrip())
        blobs += len(tops)
        for top in tops:
            if (count := readers[top]) > 1:
                copies = [f"{top}_{i + 1}" for i in range(count)]
                lines.append(f"Split {top}_split 1 {count} {top} {' '.join(copies)}")
                blobs += count
        if layer.blobs:
            weights += struct.pack("<I", 0) + layer.blobs[0].astype("<f4").tobytes()
            weights += b"".join(b.astype("<f4").tobytes() for b in layer.blobs[1:])
        if int8:
            quantized.append(layer.name)
            weights += table[f"{layer.name}_param_0"].astype("<f4").tobytes()
            weights += table[layer.name].astype("<f4").tobytes()
    text = "\n".join(["7767517", f"{len(lines)} {blobs}", *lines])
    (folder / "net.param").write_text(text + "\n")
    (folder / "net.bin").write_bytes(weights)
    return tuple(quantized)


def ncnn_run(net: Net, table: Table, threads: int) -> Callable[[np.ndarray, str], np.ndarray]:
    """Return what runs a net in ncnn: ``run(image, output)`` for an image (C, H, W).

    All that is not INT8 is float32: by default it would become float16 or bfloat16 where the
    machine has it.
    """
    ncnn: Any = import_module("ncnn")
    runner = ncnn.Net()
    runner.opt.use_fp16_arithmetic = runner.opt.use_fp16_storage = False
    runner.opt.use_fp16_packed = runner.opt.use_bf16_storage = False
    runner.opt.num_threads = threads
    runner.opt.openmp_blocktime = 0  # waiting threads would take the cores from the next side
    with tempfile.TemporaryDirectory() as folder:
        write_ncnn(net, table, Path(folder))
        for load, name in ((runner.load_param, "net.param"), (runner.load_model, "net.bin")):
            if load(str(Path(folder) / name)) != 0:
                raise ValueError(f"ncnn cannot read the {name} written for it")
    first = str(net.links[0].writes[0])

    def run(image: np.ndarray, output: str) -> np.ndarray:
        extractor = runner.create_extractor()
        extractor.input(first, ncnn.Mat(np.ascontiguousarray(image)))
        code, y = extractor.extract(output)
        if code != 0:
            raise ValueError(f"ncnn cannot compute {output}")
        return np.array(y).reshape(-1).copy()

    return run
