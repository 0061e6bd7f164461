"""The table in ncnn itself: a net with its scales runs there in INT8, beside ours.

ncnn's own converters are programs; here the net is put into its format by hand, and the scales
come from nothing but the table's text.
"""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

import pipeline
from caffeio import Layer, Net
from pipeline.config.load import load_config
from pipeline.quantize.int8_net import Int8Net

ncnn = pytest.importorskip("ncnn", reason="needs ncnn: pip install ncnn")

DEMO = Path(pipeline.__file__).resolve().parent / "demo"
NEAR = Path(__file__).resolve().parent.parent.parent / "shared" / "assets"
ASSETS = Path(os.environ.get("CAFFE_QUANT_ASSETS", NEAR))


def read_table(path: Path) -> dict[str, np.ndarray]:
    lines = [line.split() for line in path.read_text().splitlines()]
    return {name: np.array(values, np.float32) for name, *values in lines}


def params(layer: Layer, int8: bool) -> tuple[str, dict[int, float]]:
    """Return ncnn's type and its numbered parameters."""
    p = layer.param
    if layer.type == "Convolution":
        c = p.convolution_param
        size = {
            0: c.num_output, 1: c.kernel_size[0], 2: c.dilation[0] if c.dilation else 1,
            3: c.stride[0] if c.stride else 1, 4: c.pad[0] if c.pad else 0,
            5: len(layer.blobs) > 1, 6: layer.blobs[0].size, 8: int8,
        }  # fmt: skip
        return (
            ("ConvolutionDepthWise", {**size, 7: c.group}) if c.group > 1 else ("Convolution", size)
        )
    if layer.type == "InnerProduct":
        outs = p.inner_product_param.num_output
        return "InnerProduct", {0: outs, 1: len(layer.blobs) > 1, 2: layer.blobs[0].size, 8: int8}
    if layer.type == "Pooling":
        o = p.pooling_param
        return "Pooling", {0: o.pool, 1: o.kernel_size, 2: o.stride, 3: o.pad, 5: 0}
    if layer.type == "Eltwise":
        return "Eltwise", {0: 1}
    if layer.type == "Softmax":
        return "Softmax", {0: 0, 1: 1}
    assert layer.type == "ReLU"
    return "ReLU", {0: 0}


def write_ncnn(net: Net, table: dict[str, np.ndarray], folder: Path) -> list[str]:
    """Write a net in ncnn's format; return the layers that run in INT8."""
    lines, weights, quantized, blobs = [], b"", [], 0
    for layer, link in zip(net.layers, net.links, strict=True):
        tops = [str(v) for v in link.writes]
        blobs += len(tops)
        if layer.is_source:
            lines.append(f"Input {layer.name} 0 1 {tops[0]}")
            continue
        int8 = layer.name in table
        kind, numbers = params(layer, int8)
        settings = " ".join(f"{k}={int(v)}" for k, v in numbers.items())
        bottoms = [str(v) for v in link.reads]
        ends = f"{len(bottoms)} {len(tops)} {' '.join((*bottoms, *tops))}"
        lines.append(f"{kind} {layer.name} {ends} {settings}")
        if layer.blobs:
            weights += struct.pack("<I", 0) + layer.blobs[0].astype("<f4").tobytes()
            weights += b"".join(b.astype("<f4").tobytes() for b in layer.blobs[1:])
        if int8:
            quantized.append(layer.name)
            weights += table[f"{layer.name}_param_0"].astype("<f4").tobytes()
            weights += table[layer.name].astype("<f4").tobytes()
    (folder / "net.param").write_text(
        "\n".join(["7767517", f"{len(lines)} {blobs}", *lines]) + "\n"
    )
    (folder / "net.bin").write_bytes(weights)
    return quantized


def run_ncnn(net: Net, folder: Path, x: np.ndarray, output: str) -> np.ndarray:
    runner = ncnn.Net()
    runner.opt.lightmode = False  # a blob may have two readers
    runner.opt.use_fp16_arithmetic = runner.opt.use_fp16_storage = False
    runner.opt.use_bf16_storage = False
    runner.opt.num_threads = 1
    assert runner.load_param(str(folder / "net.param")) == 0
    assert runner.load_model(str(folder / "net.bin")) == 0
    found = []
    for image in x:
        run = runner.create_extractor()
        run.input(str(net.links[0].writes[0]), ncnn.Mat(np.ascontiguousarray(image)))
        code, y = run.extract(output)
        assert code == 0
        found.append(np.array(y).reshape(-1).copy())
    return np.stack(found)


def beside_ours(config: str, folder: Path, x: np.ndarray, output: str) -> tuple[np.ndarray, ...]:
    """Quantize by symmetric scales; return outputs of float, ours and ncnn's integers."""
    path = folder / "config.toml"
    path.write_text(config + f'\n[output]\ndirectory = "{folder}"\nformats = ["ncnn"]\n')
    report = pipeline.quantize_model(load_config(path))
    int8: Int8Net = report.int8_net()
    table = read_table(folder / "net_ncnn.table")
    quantized = write_ncnn(int8.net, table, folder)
    assert set(quantized) == {n for n in int8.layers if int8.net.layer(n).type != "Pooling"}
    value = next(
        str(v) for link in reversed(int8.net.links) for v in link.writes if v.blob == output
    )
    theirs = run_ncnn(int8.net, folder, x, value)
    ours = int8.forward({int8.net.inputs[0]: x}, [output])[output].reshape(len(x), -1)
    exact = pipeline.FloatNet(int8.net).forward({int8.net.inputs[0]: x}, [output])[output]
    return exact.reshape(len(x), -1), ours, theirs


def decibels(want: np.ndarray, got: np.ndarray) -> float:
    want = want.astype(np.float64)
    return 10 * np.log10((want**2).sum() / ((got - want) ** 2).sum())


def test_the_demo_net(tmp_path: Path):
    config = f"""
[model]
prototxt = "{DEMO / "deploy.prototxt"}"
caffemodel = "{DEMO / "digits.caffemodel"}"
[transform]
channel_order = "GRAY"
scale = 0.00390625
[calibrate]
batch_num = 4
batch_size = 8
effort = "original"
activation_offset = false
data.source = "{DEMO / "calibration"}"
"""
    with np.load(DEMO / "test.npz") as file:
        x = file["images"][:100].astype(np.float32) / 256
    exact, ours, theirs = beside_ours(config, tmp_path, x, "score")
    print(decibels(ours, theirs), decibels(exact, ours), decibels(exact, theirs))
    assert (ours.argmax(1) == theirs.argmax(1)).mean() > 0.98
    assert decibels(ours, theirs) > decibels(exact, ours) - 1  # as near to ours as ours to float
    assert 25 < decibels(exact, theirs) < 60  # INT8, and not float


@pytest.mark.skipif(not ASSETS.is_dir(), reason="needs the shared models")
def test_lenet(tmp_path: Path):
    folder = ASSETS / "models" / "lenet_mnist"
    data = ASSETS / "data" / "mnist" / "t10k-images-idx3-ubyte.gz"
    config = f"""
[model]
prototxt = "{folder / "deploy.prototxt"}"
caffemodel = "{folder / "lenet.caffemodel"}"
[transform]
scale = 0.00390625
[calibrate]
batch_num = 4
batch_size = 16
effort = "original"
activation_offset = false
data.source = "{data}"
"""
    pixels = np.frombuffer(gzip.decompress(data.read_bytes()), np.uint8, offset=16)
    x = pixels.reshape(-1, 1, 28, 28)[100:200].astype(np.float32) / 256
    exact, ours, theirs = beside_ours(config, tmp_path, x, "ip2")
    print(decibels(ours, theirs), decibels(exact, ours), decibels(exact, theirs))
    assert (ours.argmax(1) == theirs.argmax(1)).mean() > 0.99
    assert decibels(ours, theirs) > decibels(exact, ours) - 1
    assert 25 < decibels(exact, theirs) < 60
