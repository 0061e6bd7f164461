"""The benchmark suite's own arithmetic: its exact result, its scores, its converter, its tables."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import naive
import numpy as np
import pytest
from conftest import ROOT

import caffeio
from bench.__main__ import main
from bench.contest import Result
from bench.conv_data import X_OFFSET, ConvData, conv_data, exact_sums, wrong_share
from bench.picture import no_picture
from bench.report import summary, times, wrong
from bench.shapes import CONVS, ConvShape
from bench.timing import Race
from bench.workload import OURS, Score, Side, Workload
from pipeline import FloatNet
from pipeline.errors import PipelineError

DEMO = ROOT / "pipeline" / "demo"


@pytest.mark.parametrize(
    "shape",
    [
        ConvShape("net", "strided", 3, 4, 7, 3, 2, 1),
        ConvShape("net", "depthwise", 4, 4, 5, 3, 1, 1, 4),
        ConvShape("net", "pointwise, padded", 5, 2, 3, 1, 1, 1),
    ],
    ids=lambda shape: shape.layer,
)
def test_exact_sums_are_the_naive_ones(shape: ConvShape):
    d = conv_data(shape, 2)
    pair = (shape.stride, shape.stride), (shape.pad, shape.pad), (1, 1)
    x = naive.nested(d.xq.astype(int) - X_OFFSET)
    want = naive.conv(x, naive.nested(d.wq.astype(int)), [0] * shape.outs, *pair, shape.group)
    np.testing.assert_array_equal(exact_sums(d), want)


def small() -> ConvData:
    return conv_data(ConvShape("net", "layer", 8, 16, 6, 3, 1, 1), 1)


def test_operands_fill_their_range():
    d = conv_data(CONVS[1], 1)
    assert (d.xq.min(), d.xq.max(), d.wq.min(), d.wq.max()) == (-128, 127, -127, 127)
    assert d.unsigned.dtype == np.uint8
    np.testing.assert_array_equal(d.unsigned.astype(int) - 128, d.xq)


def test_the_share_of_wrong_outputs_counts_each_of_them():
    d = small()
    right = np.rint(d.exact).astype(np.int8)
    assert wrong_share(d, right) == 0
    assert wrong_share(d, (right.astype(int) + 128).astype(np.uint8)) == 0
    off = right.copy()
    off.flat[:5] += np.where(off.flat[:5] < 0, 1, -1).astype(np.int8)
    assert wrong_share(d, off) == 5 / off.size
    assert wrong_share(d, d.exact) is None


def test_beside_a_tie_both_steps_are_right():
    d = small()
    d.exact.flat[0] = 2.5005
    down, up = np.rint(d.exact).astype(np.int8), np.rint(d.exact).astype(np.int8)
    down.flat[0], up.flat[0] = 2, 3
    assert wrong_share(d, down) == wrong_share(d, up) == 0
    up.flat[0] = 4
    assert wrong_share(d, up) == 1 / up.size


def test_layers_have_names_of_their_own_and_known_geometry():
    assert len({shape.name for shape in CONVS}) == len(CONVS)
    by_name = {f"{shape.net} {shape.layer}": shape for shape in CONVS}
    conv1 = by_name["ResNet-50 conv1"]
    assert (conv1.pad, conv1.out_size, conv1.kind) == (3, 112, "first layers")
    assert conv1.operations(1) == 2 * 64 * 112 * 112 * 147
    assert by_name["ResNet-50 res3a_1"].out_size == 28
    assert by_name["MobileNetV2 block2/dw"].kind == "depthwise"
    assert by_name["SqueezeNet conv1"].out_size == 111
    assert by_name["SqueezeNet conv10"].out_size == 15
    assert by_name["LeNet conv2"].out_size == 8
    assert 5 <= sum(shape.short for shape in CONVS) <= 15


LAYERS = """
name: "all" input: "data" input_shape { dim: 2 dim: 3 dim: 12 dim: 11 }
layer { name: "bn" type: "BatchNorm" bottom: "data" top: "data" }
layer { name: "scale" type: "Scale" bottom: "data" top: "data" scale_param { bias_term: true } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 6 group: 3 kernel_h: 3 kernel_w: 2 stride: 2 pad: 1 } }
layer { name: "leaky" type: "ReLU" bottom: "conv" top: "conv" relu_param { negative_slope: 0.1 } }
layer { name: "max" type: "Pooling" bottom: "conv" top: "max"
  pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "one" type: "Convolution" bottom: "max" top: "one"
  convolution_param { num_output: 6 kernel_size: 1 bias_term: false } }
layer { name: "six" type: "ReLU6" bottom: "one" top: "one" }
layer { name: "add" type: "Eltwise" bottom: "max" bottom: "one" top: "add" }
layer { name: "cat" type: "Concat" bottom: "add" bottom: "max" top: "cat" }
layer { name: "drop" type: "Dropout" bottom: "cat" top: "cat" }
layer { name: "ave" type: "Pooling" bottom: "cat" top: "ave"
  pooling_param { pool: AVE kernel_size: 2 stride: 1 pad: 1 } }
layer { name: "clip" type: "Clip" bottom: "ave" top: "ave" clip_param { min: -1 max: 2 } }
layer { name: "flat" type: "Flatten" bottom: "ave" top: "flat" }
layer { name: "ip" type: "InnerProduct" bottom: "flat" top: "ip"
  inner_product_param { num_output: 5 } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""


def filled(net: caffeio.Net) -> caffeio.Net:
    """Give every layer weights of the shapes it expects."""
    rng, layers = np.random.default_rng(6), []
    shapes = {
        "bn": [(3,), (3,), (1,)],
        "scale": [(3,), (3,)],
        "conv": [(6, 1, 3, 2), (6,)],
        "one": [(6, 6, 1, 1)],
        "ip": [(5, 192), (5,)],
    }
    for layer in net.layers:
        low = 0.1 if layer.type == "BatchNorm" else -0.3  # a variance is positive
        blobs = [rng.uniform(low, 0.3, s).astype(np.float32) for s in shapes.get(layer.name, ())]
        layers.append(replace(layer, blobs=tuple(blobs)))
    return net.with_layers(tuple(layers))


def converted(net: caffeio.Net, batch: int, x: np.ndarray) -> np.ndarray:
    """Run a net as ONNX."""
    onnxruntime = importlib.import_module("onnxruntime")
    from pipeline.export.onnx_graph import to_onnx

    model = to_onnx(net, batch).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {net.inputs[0]: x})[0]


@pytest.mark.parametrize("which", ["layers", "demo"])
def test_a_net_in_onnx_computes_the_same(which: str):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    if which == "demo":
        net = caffeio.read_net(DEMO / "deploy.prototxt", DEMO / "digits.caffemodel")
    else:
        net = filled(caffeio.parse_net(LAYERS))
    shape = next(iter(FloatNet(net).shapes().values()))
    x = np.random.default_rng(7).uniform(-1, 1, (3, *shape[1:])).astype(np.float32)
    want = FloatNet(net).forward({net.inputs[0]: x})[net.outputs[0]]
    np.testing.assert_allclose(converted(net, 3, x), want, rtol=1e-4, atol=1e-6)


def test_a_layer_without_onnx_form_is_named():
    pytest.importorskip("onnx")
    from pipeline.export.onnx_graph import to_onnx

    text = LAYERS.replace("Dropout", "MVN").replace('name: "drop"', 'name: "norm"')
    with pytest.raises(PipelineError, match="layer 'norm': type MVN has no ONNX form here"):
        to_onnx(filled(caffeio.parse_net(text)), 1)


def result(name: str, ours: float, its: float, share: float) -> Result:
    sides = (Side(OURS, lambda *_: lambda: None), Side("numpy", lambda *_: lambda: None))
    workload = Workload(
        "int8 conv",
        name,
        lambda: None,
        sides,
        1e6,
        "int8",
        kind="1x1",
        score=Score("wrong", wrong_share),
    )
    race = Race({OURS: (ours,) * 3, "numpy": (its,) * 3})
    return Result(workload, race, {OURS: 0.0, "numpy": share})


def test_the_tables_hold_ratios_and_wrong_shares():
    results = [result("a", 0.002, 0.001, 0.125), result("b", 0.001, 0.002, 0)]
    (grid,) = times(results, {"int8": 2e9})
    assert grid.rows[0] == (
        "a",
        "2.000",
        "0.5",
        "25%",
        "1.000 (12% wrong)",
        "2.00 [2.00, 2.00] numpy",
    )
    (grid,) = wrong(results)
    assert grid.rows == (("a", "0%", "12%"), ("b", "0%", "0%"))
    found = summary(results)
    assert found is not None
    assert found.rows == (("int8 conv, 1x1", "1.00", "1", "1", "2.00 a (numpy)"),)
    lines = found.markdown().splitlines()
    assert lines[2:] == [
        "| kind | geometric mean | below 1 | above 1 | worst |",
        "|---|---:|---:|---:|---:|",
        "| int8 conv, 1x1 | 1.00 | 1 | 1 | 2.00 a (numpy) |",
    ]


def test_results_without_a_peer_have_no_summary():
    alone = result("a", 1, 1, 0)
    race = Race({OURS: (0.001,) * 3})
    assert summary([Result(alone.workload, race, {})]) is None


def test_pictures_are_refused_before_anything_runs(tmp_path: Path):
    assert "must end in .png or .svg" in str(no_picture(tmp_path / "a.gif"))
    assert "folder does not exist" in str(no_picture(tmp_path / "none" / "a.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no such layer"], "no workload's title holds no such layer"),
        (["--rounds", "0"], "--rounds and --batch at least 1"),
        (["--picture", "a.gif"], "must end in .png or .svg"),
        (["--picture", "a.png", "--wrong"], "choose one"),
    ],
)
def test_wrong_use_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err
