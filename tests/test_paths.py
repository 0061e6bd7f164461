"""Cases in which a path once computed something else than the layers one by one."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from layer_nets import one_layer, with_blobs

import caffeio
import pipeline
from caffeio import LayerRecord, Record
from pipeline import FloatNet, Int8Net

RNG = np.random.default_rng(0)


def input_of(*shape: int) -> str:
    dims = " ".join(f"dim: {d}" for d in shape)
    return f'layer {{ name: "in" type: "Input" top: "x" input_param {{ shape {{ {dims} }} }} }}\n'


def close(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert got.keys() <= want.keys()
    for name, y in got.items():
        largest = float(np.abs(want[name]).max(initial=0))
        np.testing.assert_allclose(y, want[name], rtol=1e-5, atol=1e-5 * largest, err_msg=name)


# ------------------------------------------------------------------- a view reaches the engine

AFTER_SLICE = {
    "Convolution": "convolution_param { num_output: 3 kernel_size: 3 }",
    "Deconvolution": "convolution_param { num_output: 3 kernel_size: 3 }",
    "Pooling": "pooling_param { pool: AVE kernel_size: 2 stride: 2 }",
    "MaxPooling": "pooling_param { pool: MAX kernel_size: 2 stride: 2 }",
    "InnerProduct": "inner_product_param { num_output: 5 }",
    "ReLU": "",
}


@pytest.mark.parametrize("kind", AFTER_SLICE)
@pytest.mark.parametrize("axis", range(4))
def test_a_slice_in_front_of_a_compiled_layer(kind: str, axis: int):
    shape = (4, 4, 10, 8)
    half = [d // 2 if i == axis else d for i, d in enumerate(shape)]
    type_, params = kind.removeprefix("Max"), AFTER_SLICE[kind]
    text = (
        input_of(*shape)
        + f"""
    layer {{ name: "s" type: "Slice" bottom: "x" top: "a" top: "b" slice_param {{ axis: {axis} }} }}
    layer {{ name: "l0" type: "{type_}" bottom: "a" top: "y0" {params} }}
    layer {{ name: "l1" type: "{type_}" bottom: "b" top: "y1" {params} }}
    """
    )
    sizes = {
        "Convolution": [(3, half[1], 3, 3), (3,)],
        "Deconvolution": [(half[1], 3, 3, 3), (3,)],
        "InnerProduct": [(5, math.prod(half[1:])), (5,)],
    }.get(kind, [])
    blobs = [RNG.normal(size=s) * 0.3 for s in sizes]
    net = with_blobs(caffeio.parse_net(text), {"l0": blobs, "l1": blobs})
    x = {"x": RNG.normal(size=shape).astype(np.float32)}
    close(FloatNet(net).forward(x), FloatNet(net, device="reference").forward(x))
    if kind in ("MaxPooling", "ReLU"):
        return
    scales = 3 if "onvolution" in kind else 1
    factors = LayerRecord(
        scale_d=0.03,
        offset_d=5,
        scale_w=((0.01 if sizes else 1.0),) * scales,
        offset_w=(0,) * scales,
        shift_bit=(),
    )
    record = Record({"l0": factors, "l1": factors})
    got = Int8Net(net, record).forward(x)
    want = Int8Net(net, record, device="reference").forward(x)
    for name, y in got.items():
        np.testing.assert_array_equal(y, want[name])


# ----------------------------------------------------------- results and what was asked before

HOSTS = {
    "conv": ('type: "Convolution"', "convolution_param { num_output: 4 kernel_size: 3 }",
             [(4, 3, 3, 3), (4,)]),
    "deconv": ('type: "Deconvolution"', "convolution_param { num_output: 4 kernel_size: 3 }",
               [(3, 4, 3, 3), (4,)]),
    "inner": ('type: "InnerProduct"', "inner_product_param { num_output: 4 }", [(4, 243), (4,)]),
}  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    "asked", [(None, "b"), ("b", None), ("c", None), (None, "c"), ("s", "b", "c")]
)
def test_an_answer_does_not_depend_on_what_was_asked_before(host: str, asked: tuple):
    kind, params, sizes = HOSTS[host]
    text = (
        input_of(1, 3, 9, 9)
        + f"""
    layer {{ name: "c" {kind} bottom: "x" top: "c" {params} }}
    layer {{ name: "b" type: "BatchNorm" bottom: "c" top: "b" }}
    layer {{ name: "s" type: "Scale" bottom: "b" top: "s" scale_param {{ bias_term: true }} }}
    layer {{ name: "r" type: "ReLU" bottom: "s" top: "r" }}
    """
    )
    blobs = {
        "c": [RNG.normal(size=s) for s in sizes],
        "b": [RNG.normal(size=4), RNG.uniform(0.3, 1, 4), np.ones(1)],
        "s": [RNG.normal(size=4), RNG.normal(size=4)],
    }
    net = with_blobs(caffeio.parse_net(text), blobs)
    x = {"x": RNG.normal(size=(1, 3, 9, 9)).astype(np.float32)}
    want = FloatNet(net, device="reference").forward(x, ["c", "b", "s", "r"])
    runner = FloatNet(net)
    for name in (*asked, *asked):
        close(runner.forward(x, None if name is None else [name]), want)


def test_two_layers_of_one_name_have_their_own_weights():
    text = input_of(2, 3) + "".join(
        f'layer {{ name: "{b}_{t}" type: "InnerProduct" bottom: "{b}" top: "{t}" '
        "inner_product_param { num_output: 3 bias_term: false } }\n"
        for b, t in (("x", "y"), ("y", "z"))
    )
    net = caffeio.parse_net(text)
    weights = [RNG.normal(size=(3, 3)).astype(np.float32) for _ in range(2)]
    source, *layers = net.layers
    layers = [replace(x, name="same", blobs=(w,)) for x, w in zip(layers, weights, strict=True)]
    net = net.with_layers((source, *layers))
    x = RNG.normal(size=(2, 3)).astype(np.float32)
    out = FloatNet(net).forward({"x": x})["z"]
    np.testing.assert_allclose(out, x @ weights[0].T @ weights[1].T, rtol=1e-5)


# --------------------------------------------------------------------- layers without bottoms


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("more", ["", 'layer { name: "r" type: "ReLU" bottom: "d" top: "r" }'])
def test_layers_without_bottoms_beside_a_batch(batch: int, more: str, monkeypatch):
    dims = f"dim: {batch} dim: 3 dim: 4 dim: 4"
    text = (
        input_of(batch, 3, 4, 4)
        + f"""
    layer {{ name: "d" type: "DummyData" top: "d" dummy_data_param {{ shape {{ {dims} }}
      data_filler {{ type: "constant" value: 2 }} }} }}
    layer {{ name: "e" type: "Eltwise" bottom: "x" bottom: "d" top: "e" }}
    {more}
    """
    )
    monkeypatch.setattr("pipeline.runtime.batching._CACHE_BYTES", 1)
    x = RNG.normal(size=(batch, 3, 4, 4)).astype(np.float32)
    runner = FloatNet(caffeio.parse_net(text))
    for blobs in (None, ["e"], ["d"], ["d", "e"]):
        out = runner.forward({"x": x}, blobs)
        for name, want in (("e", x + 2), ("d", np.full_like(x, 2)), ("r", np.full_like(x, 2))):
            if name in out:
                np.testing.assert_allclose(out[name], want, rtol=1e-6)


def test_inputs_of_different_batches_are_not_cut_alike(monkeypatch):
    text = (
        input_of(4, 3)
        + """
    layer { name: "in2" type: "Input" top: "z" input_param { shape { dim: 2 dim: 3 } } }
    layer { name: "a" type: "ReLU" bottom: "x" top: "a" }
    layer { name: "b" type: "ReLU" bottom: "z" top: "b" }
    layer { name: "r" type: "Reshape" bottom: "a" top: "r" reshape_param { shape { dim: 4 dim: 3 } } }
    """
    )
    monkeypatch.setattr("pipeline.runtime.batching._CACHE_BYTES", 1)
    runner = FloatNet(caffeio.parse_net(text))
    x, z = (RNG.normal(size=(n, 3)).astype(np.float32) for n in (4, 2))
    for blobs in (None, ["a"], ["b"], ["z", "a"]):
        out = runner.forward({"x": x, "z": z}, blobs)
        given = {"a": np.maximum(x, 0), "b": np.maximum(z, 0), "z": z, "r": np.maximum(x, 0)}
        for name, y in out.items():
            np.testing.assert_array_equal(y, given[name])


# ------------------------------------------------------------------- blobs of one axis or none


@pytest.mark.parametrize("kind", ["Power", "ReLU", "Exp", "Sigmoid", "AbsVal", "ELU"])
@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_blobs_without_axes(kind: str, device: str):
    params = "power_param { power: 2 scale: 3 shift: 1 }" if kind == "Power" else ""
    net = one_layer(kind, params, [()])
    line = one_layer(kind, params, [(1,)])
    x = np.float32(0.7)
    got = FloatNet(net, device=device).forward({"x0": x})["y0"]
    want = FloatNet(line, device=device).forward({"x0": x.reshape(1)})["y0"]
    assert isinstance(got, np.ndarray)
    assert got.shape == ()
    assert got == want[0]


def test_a_product_of_three_blobs_without_axes():
    net = one_layer("Eltwise", "eltwise_param { operation: PROD }", [(), (), ()])
    inputs = {f"x{i}": np.float32(v) for i, v in enumerate((2, 3, 4))}
    assert FloatNet(net).forward(inputs)["y0"] == 24


@pytest.mark.parametrize(("axis", "shape"), [(1, (8,)), (0, ())])
def test_a_net_whose_output_has_one_axis_or_none_is_quantized(axis, shape, tmp_path: Path):
    text = (
        'name: "n"\n'
        + input_of(8, 3, 8, 8)
        + f"""
    layer {{ name: "c" type: "Convolution" bottom: "x" top: "c"
      convolution_param {{ num_output: 4 kernel_size: 3 }} }}
    layer {{ name: "r" type: "Reduction" bottom: "c" top: "r"
      reduction_param {{ operation: MEAN axis: {axis} }} }}
    """
    )
    net = with_blobs(caffeio.parse_net(text), {"c": [RNG.normal(size=(4, 3, 3, 3)), np.ones(4)]})
    caffeio.write_prototxt(net, tmp_path / "n.prototxt")
    caffeio.write_caffemodel(net, tmp_path / "n.caffemodel")
    np.savez(tmp_path / "x.npz", data=RNG.normal(size=(16, 3, 8, 8)), label=np.arange(16) % 2)
    (tmp_path / "c.toml").write_text(
        '[model]\nprototxt = "n.prototxt"\ncaffemodel = "n.caffemodel"\n[calibrate]\n'
        'batch_num = 2\nbatch_size = 8\ndata.source = "x.npz"\n[output]\ndirectory = "o"\n'
    )
    report = pipeline.quantize_model(tmp_path / "c.toml")
    _, fakequant, int8 = report.accuracy
    assert [s.blob for s in int8.outputs] == ["r"]
    assert int8.outputs[0].sqnr > 25
    assert (int8.top1, fakequant.top1) == (None, None)
    x = {"x": RNG.normal(size=(8, 3, 8, 8)).astype(np.float32)}
    assert FloatNet(net).forward(x)["r"].shape == shape


def test_a_value_of_three_axes_that_an_inner_product_reads_is_observed():
    text = (
        input_of(2, 3, 5)
        + """
    layer { name: "t" type: "TanH" bottom: "x" top: "t" }
    layer { name: "ip" type: "InnerProduct" bottom: "t" top: "y"
      inner_product_param { num_output: 2 bias_term: false } }
    """
    )
    net = with_blobs(caffeio.parse_net(text), {"ip": [RNG.normal(size=(2, 15))]})
    x = RNG.normal(size=(2, 3, 5)).astype(np.float32)
    shown: dict[str, np.ndarray] = {}
    values = [link.reads[0] for link in net.links if link.reads]
    FloatNet(net).watch({"x": x}, values, lambda v, y: shown.update({v.blob: y.copy()}))
    np.testing.assert_array_equal(np.sort(shown["t"].reshape(-1)), np.sort(np.tanh(x).reshape(-1)))
