"""The suite's own part of its peers: nets written for ncnn, and what MNN's tools are given."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT
from layer_nets import with_blobs

import caffeio
from bench import mnn_nets
from bench.models import Model, read_model
from bench.ncnn_nets import ncnn_run, read_table, write_ncnn
from bench.peers import missing
from bench.quantizers import our_int8
from bench.shapes import NetFiles
from pipeline import FloatNet
from pipeline.export.tables import ncnn_table

DEMO = ROOT / "pipeline" / "demo"

HEAD = 'name: "n" input: "data" input_shape { dim: 1 dim: 3 dim: 13 dim: 11 }\n'

LAYERS = (
    HEAD
    + """
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 6 group: 3 kernel_h: 3 kernel_w: 2 stride: 2 pad_h: 1 pad_w: 0 } }
layer { name: "leaky" type: "ReLU" bottom: "conv" top: "conv" relu_param { negative_slope: 0.1 } }
layer { name: "max" type: "Pooling" bottom: "conv" top: "max"
  pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "one" type: "Convolution" bottom: "max" top: "one"
  convolution_param { num_output: 6 kernel_size: 1 bias_term: false } }
layer { name: "six" type: "ReLU6" bottom: "one" top: "one" }
layer { name: "wide" type: "Convolution" bottom: "max" top: "wide"
  convolution_param { num_output: 6 kernel_size: 3 dilation: 2 pad: 2 } }
layer { name: "add" type: "Eltwise" bottom: "max" bottom: "wide" top: "add" }
layer { name: "positive" type: "ReLU" bottom: "add" top: "add" }
layer { name: "cat" type: "Concat" bottom: "add" bottom: "one" top: "cat" }
layer { name: "drop" type: "Dropout" bottom: "cat" top: "cat" }
layer { name: "clip" type: "Clip" bottom: "cat" top: "cat" clip_param { min: -0.5 max: 0.75 } }
layer { name: "ave" type: "Pooling" bottom: "cat" top: "ave"
  pooling_param { pool: AVE kernel_size: 2 stride: 2 } }
layer { name: "flat" type: "Flatten" bottom: "ave" top: "flat" }
layer { name: "ip" type: "InnerProduct" bottom: "flat" top: "ip"
  inner_product_param { num_output: 5 } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""
)

#: `first` is read by convolutions alone, `left` and `right` are not.
CHAIN = (
    HEAD
    + """
layer { name: "first" type: "Convolution" bottom: "data" top: "first"
  convolution_param { num_output: 16 kernel_size: 3 } }
layer { name: "relu" type: "ReLU" bottom: "first" top: "first" }
layer { name: "left" type: "Convolution" bottom: "first" top: "left"
  convolution_param { num_output: 16 group: 16 kernel_size: 3 pad: 1 } }
layer { name: "right" type: "Convolution" bottom: "first" top: "right"
  convolution_param { num_output: 16 kernel_size: 1 } }
layer { name: "add" type: "Eltwise" bottom: "left" bottom: "right" top: "add" }
layer { name: "ip" type: "InnerProduct" bottom: "add" top: "ip"
  inner_product_param { num_output: 10 } }
"""
)


def filled(text: str, shapes: dict[str, list[tuple[int, ...]]]) -> caffeio.Net:
    rng = np.random.default_rng(6)
    blobs = {
        name: [rng.uniform(-0.4, 0.4, s).astype(np.float32) for s in sizes]
        for name, sizes in shapes.items()
    }
    return with_blobs(caffeio.parse_net(text), blobs)


def every_layer() -> caffeio.Net:
    return filled(
        LAYERS,
        {
            "conv": [(6, 1, 3, 2), (6,)],
            "one": [(6, 6, 1, 1)],
            "wide": [(6, 6, 3, 3), (6,)],
            "ip": [(5, 48), (5,)],
        },
    )


def chain() -> caffeio.Net:
    return filled(
        CHAIN,
        {
            "first": [(16, 3, 3, 3), (16,)],
            "left": [(16, 1, 3, 3), (16,)],
            "right": [(16, 16, 1, 1), (16,)],
            "ip": [(10, 16 * 11 * 9), (10,)],
        },
    )


def noise(count: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.uniform(-1, 1, (1, 3, 13, 11)).astype(np.float32) for _ in range(count)]


def result(net: caffeio.Net, x: np.ndarray) -> np.ndarray:
    return FloatNet(net).forward({net.inputs[0]: x})[net.outputs[0]].reshape(len(x), -1)


def off(want: np.ndarray, got: np.ndarray) -> float:
    """Return the root mean square distance, relative."""
    return float(np.sqrt(np.square(got.reshape(want.shape) - want).mean() / np.square(want).mean()))


def test_a_net_written_for_ncnn_computes_the_same():
    pytest.importorskip("ncnn", reason="needs ncnn: pip install ncnn")
    net = every_layer()
    x = np.concatenate(noise(3, 7))
    np.testing.assert_allclose(ncnn_run(net, x, 1)(), result(net, x), rtol=1e-4, atol=1e-6)


def test_ncnn_keeps_data_in_int8_between_convolutions():
    pytest.importorskip("ncnn", reason="needs ncnn: pip install ncnn")
    net, x = chain(), np.concatenate(noise(4, 8))
    int8 = our_int8(net, noise(8, 9), symmetric=True)
    table = read_table(ncnn_table(int8.net, int8.layers))
    got = ncnn_run(int8.net, x, 1, table=table)()
    ours = int8.forward({net.inputs[0]: x})[net.outputs[0]]
    assert 1e-3 < off(result(net, x), got) < 0.05
    assert off(ours, got) < off(result(net, x), got)


def test_the_file_for_ncnn_says_what_runs_in_int8(tmp_path: Path):
    net = chain()
    int8 = our_int8(net, noise(8, 9), symmetric=True)
    table = read_table(ncnn_table(int8.net, int8.layers))
    assert write_ncnn(int8.net, tmp_path, table) == ("first", "left", "right", "ip")
    lines = (tmp_path / "net.param").read_text().splitlines()
    fields = {line.split()[1]: line.split() for line in lines[2:]}
    assert lines[1] == "7 8"
    assert [fields[name][-1] for name in ("left", "right", "ip")] == ["8=1", "8=2", "8=2"]
    assert fields["first"][-2:] == ["9=1", "8=102"]  # ReLU within; its result stays INT8
    assert fields["first_split"][:4] == ["Split", "first_split", "1", "2"]
    assert fields["left"][4] != fields["right"][4]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ('type: "MVN"', "layer 'it': type MVN is not written for ncnn here"),
        ('type: "Pooling" pooling_param { pool: AVE kernel_size: 3 pad: 1 }', "with pads"),
        ('type: "Flatten" flatten_param { axis: 2 }', "Flatten of some axes"),
    ],
)
def test_what_is_not_written_for_ncnn_is_named(layer: str, message: str, tmp_path: Path):
    net = caffeio.parse_net(f'{HEAD} layer {{ name: "it" bottom: "data" top: "it" {layer} }}')
    with pytest.raises(ValueError, match=message):
        write_ncnn(net, tmp_path)


def test_a_table_that_does_not_fit_is_refused(tmp_path: Path):
    table = {"left": np.ones(1, np.float32), "left_param_0": np.ones(3, np.float32)}
    with pytest.raises(ValueError, match="layer 'left': ncnn takes no 3 scales"):
        write_ncnn(chain(), tmp_path, table)


def test_images_for_mnn_hold_the_values(tmp_path: Path):
    images = noise(3, 4)
    mnn_nets.write_images(images, tmp_path / "images")
    for i, image in enumerate(images):
        read = cv2.imread(str(tmp_path / "images" / f"{i}.png"), cv2.IMREAD_UNCHANGED)
        values = (read.astype(np.float32) - 127.5) / 127.5
        assert np.abs(values.transpose(2, 0, 1) - image[0]).max() <= 0.501 / 127.5
    with pytest.raises(ValueError, match=r"no values of shape \(1, 2, 4, 4\)"):
        mnn_nets.write_images([np.zeros((1, 2, 4, 4), np.float32)], tmp_path / "others")


def mnn_model(folder: Path) -> Model:
    pytest.importorskip("onnx")
    if reason := missing("mnn"):
        pytest.skip(reason)
    net = chain()
    caffeio.write_prototxt(net, folder / "net.prototxt")
    caffeio.write_caffemodel(net, folder / "net.caffemodel")
    # absolute paths, which the folder of models does not change
    files = NetFiles("chain", str(folder / "net.prototxt"), str(folder / "net.caffemodel"))
    return read_model(files, 2)


@pytest.mark.parametrize("caffe", [True, False], ids=["caffe", "onnx"])
def test_mnn_runs_what_its_tools_make(caffe: bool, tmp_path: Path):
    model = mnn_model(tmp_path)
    run = mnn_nets.mnn_float(model, 1, caffe=caffe)
    for _ in range(2):  # its input is given anew each time
        assert off(model.result, run()) < 1e-5
    int8 = mnn_nets.mnn_int8(model, model.noise(8, 1), 1, caffe=caffe)()
    assert 1e-3 < off(model.result, int8) < 0.022


def test_a_tool_of_mnn_that_makes_nothing_is_an_error(tmp_path: Path):
    model = mnn_model(tmp_path)
    (tmp_path / "net.caffemodel").unlink()
    with pytest.raises(RuntimeError, match="mnnconvert ends with"):
        mnn_nets.mnn_float(model, 1, caffe=True)
