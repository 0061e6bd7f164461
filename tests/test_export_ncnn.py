"""The table in ncnn itself: a net with its scales runs there in INT8, beside ours.

ncnn's own converters are programs; here `bench.ncnn_nets` puts the net into its format, and the
scales come from nothing but the table's text.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

import pipeline
from bench.ncnn_nets import ncnn_run, read_table, write_ncnn
from pipeline.config.load import load_config
from pipeline.quantize.int8_net import Int8Net

pytest.importorskip("ncnn", reason="needs ncnn: pip install ncnn")

DEMO = Path(pipeline.__file__).resolve().parent / "demo"
NEAR = Path(__file__).resolve().parent.parent.parent / "shared" / "assets"
ASSETS = Path(os.environ.get("CAFFE_QUANT_ASSETS", NEAR))


def beside_ours(config: str, folder: Path, x: np.ndarray, output: str) -> tuple[np.ndarray, ...]:
    """Quantize by symmetric scales; return outputs of float, ours and ncnn's integers."""
    path = folder / "config.toml"
    path.write_text(config + f'\n[output]\ndirectory = "{folder}"\nformats = ["ncnn"]\n')
    report = pipeline.quantize_model(load_config(path))
    int8: Int8Net = report.int8_net()
    table = read_table((folder / "net_ncnn.table").read_text())
    quantized = write_ncnn(int8.net, folder, table)
    assert set(quantized) == {n for n in int8.layers if int8.net.layer(n).type != "Pooling"}
    value = next(
        str(v) for link in reversed(int8.net.links) for v in link.writes if v.blob == output
    )
    theirs = ncnn_run(int8.net, x, 1, table=table, output=value)()
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
