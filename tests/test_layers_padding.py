"""Padding of its own on each side, as a fork has it: against PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layer_nets import forward, one_layer, with_blobs

import caffeio
import pipeline
from caffeio import NetError
from caffeio.padding import even_padding

torch = pytest.importorskip("torch")
functional = torch.nn.functional
SIDES = st.tuples(*[st.integers(0, 3)] * 4)


def fields(sides: tuple[int, int, int, int]) -> str:
    return " ".join(f"pad_{n}: {v}" for n, v in zip("tblr", sides, strict=True))


def around(x: np.ndarray, sides: tuple[int, int, int, int], value: float = 0.0):
    t, b, l, r = sides  # noqa: E741
    return functional.pad(torch.from_numpy(x), (l, r, t, b), value=value)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), SIDES, st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_convolution(seed: int, sides: tuple, kernel: int, stride: int, grouped: bool):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, 4, 7, 6)).astype(np.float32)
    group = 2 if grouped else 1
    w = rng.normal(size=(6, 4 // group, kernel, kernel)).astype(np.float32)
    b = rng.normal(size=6).astype(np.float32)
    params = (
        f"convolution_param {{ num_output: 6 kernel_size: {kernel} stride: {stride} "
        f"group: {group} {fields(sides)} }}"
    )
    net = even_padding(one_layer("Convolution", params, [x.shape], [w, b]))
    assert "pad_l" not in caffeio.to_prototxt(net)  # what any Caffe reads
    want = functional.conv2d(
        around(x, sides), torch.from_numpy(w), torch.from_numpy(b), stride, groups=group
    ).numpy()
    for device in ("reference", "cpu"):
        (y,) = pipeline.FloatNet(net, device=device).forward({"x0": x}).values()
        np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), SIDES, st.integers(2, 3), st.integers(1, 3), st.booleans())
def test_pooling(seed: int, sides: tuple, kernel: int, stride: int, ceil: bool):
    assume(max(sides) < kernel)
    x = np.random.default_rng(seed).normal(size=(2, 3, 7, 6)).astype(np.float32)
    text = f"kernel_size: {kernel} stride: {stride} {fields(sides)} ceil_mode: false"

    def found(method: str) -> np.ndarray:
        (y,) = forward("Pooling", f"pooling_param {{ pool: {method} {text} }}", [x], device="cpu")
        return y

    most = functional.max_pool2d(around(x, sides, -np.inf), kernel, stride).numpy()
    np.testing.assert_array_equal(found("MAX"), most)
    mean = functional.avg_pool2d(around(x, sides), kernel, stride).numpy()
    np.testing.assert_allclose(found("AVE"), mean, rtol=1e-5, atol=1e-6)
    inside = functional.avg_pool2d(around(np.ones_like(x), sides), kernel, stride).numpy()
    np.testing.assert_allclose(found("AVE_EXC_PAD"), mean / inside, rtol=1e-5, atol=1e-6)


def test_an_average_may_leave_out_even_padding():
    x = np.random.default_rng(0).normal(size=(1, 2, 5, 5)).astype(np.float32)
    (y,) = forward(
        "Pooling",
        "pooling_param { pool: AVE_EXC_PAD kernel_size: 3 stride: 2 pad: 1 ceil_mode: false }",
        [x],
    )
    want = functional.avg_pool2d(torch.from_numpy(x), 3, 2, 1, count_include_pad=False)
    np.testing.assert_allclose(y, want.numpy(), rtol=1e-5)


TEXT = """name: "net"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 12 dim: 10 } } }
layer { name: "c1" type: "Convolution" bottom: "data" top: "c1"
        convolution_param { num_output: 8 kernel_size: 3 stride: 2 pad_l: 0 pad_r: 1 pad_t: 0 pad_b: 1 } }
layer { name: "p1" type: "Pooling" bottom: "c1" top: "p1"
        pooling_param { pool: AVE_EXC_PAD kernel_size: 3 stride: 1 pad_l: 1 pad_r: 1 pad_t: 1 pad_b: 1 ceil_mode: false } }
layer { name: "fc" type: "InnerProduct" bottom: "p1" top: "fc" inner_product_param { num_output: 5 } }
"""


def test_a_net_is_read_quantized_and_written(tmp_path: Path):
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(8, 3, 3, 3)).astype(np.float32), rng.normal(size=8).astype(np.float32)
    net = with_blobs(caffeio.parse_net(TEXT), {
        "c1": [w, b], "fc": [rng.normal(size=(5, 8 * 6 * 5)) / 15, np.zeros(5)],
    })  # fmt: skip
    (tmp_path / "net.prototxt").write_text(TEXT)
    caffeio.write_caffemodel(net, tmp_path / "net.caffemodel")
    x = rng.normal(size=(12, 3, 12, 10)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "config.toml").write_text(
        '[model]\nprototxt = "net.prototxt"\ncaffemodel = "net.caffemodel"\n'
        '[calibrate]\nbatch_num = 12\ndata.source = "x.npy"\neffort = "best"\n'
    )
    report = pipeline.quantize_model(tmp_path / "config.toml")
    assert list(report.record.layers) == ["c1", "fc"]
    reasons = {layer.layer: layer.reason for layer in report.layers}
    assert reasons["p1"] == "pooling is AVE_EXC_PAD, not AVE"
    read = caffeio.read_net(tmp_path / "net.prototxt", tmp_path / "net.caffemodel")
    assert read.layer("c1").blobs[0].shape == (8, 3, 4, 4)
    conv = functional.conv2d(around(x, (0, 1, 0, 1)), torch.from_numpy(w), torch.from_numpy(b), 2)
    exact = pipeline.FloatNet(read).forward({"data": x}, ["c1"])["c1"]
    np.testing.assert_allclose(exact, conv.numpy(), rtol=1e-4, atol=1e-4)
    exact = pipeline.FloatNet(read).forward({"data": x})["fc"]
    int8 = report.int8_net().forward({"data": x})["fc"]
    assert np.abs(int8 - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("kind", "params", "blobs", "what"),
    [
        ("Convolution", "num_output: 1 kernel_size: 2 pad_r: 1", [], "with their weights"),
        ("Deconvolution", "num_output: 1 kernel_size: 2 pad_r: 1 bias_term: false", [(1, 1, 2, 2)], "of images only"),
        ("Convolution", "num_output: 1 kernel_size: 2 pad_r: 1 dilation: 2 bias_term: false", [(1, 1, 2, 2)],
         "differs by 1, no multiple of its dilation 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_so_is_refused(kind: str, params: str, blobs: list, what: str):
    net = one_layer(
        kind, f"convolution_param {{ {params} }}", [(1, 1, 6, 6)], [np.ones(b) for b in blobs]
    )
    with pytest.raises(NetError, match=f"layer 'l': .*{what}"):
        even_padding(net)


def test_without_weights_the_net_says_what_it_needs():
    net = one_layer(
        "Convolution", "convolution_param { num_output: 1 kernel_size: 2 pad_r: 1 }", [(1, 1, 6, 6)]
    )
    with pytest.raises(NetError, match="read with their weights"):
        pipeline.FloatNet(net).shapes()
