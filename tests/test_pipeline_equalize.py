"""Equalized nets compute the same, with channels of like range; what may not be scaled is not."""

from __future__ import annotations

import numpy as np
import pytest
from layer_nets import with_blobs

import caffeio
from caffeio import Net, Value
from kernels import Mse
from pipeline import FloatNet
from pipeline.quantize.assign import LayerPlan
from pipeline.quantize.equalize import Equalized, equalize

INPUT = (
    'name: "n" layer { name: "data" type: "Input" top: "x" '
    "input_param { shape { dim: 2 dim: 3 dim: 8 dim: 8 } } }\n"
)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 3, 8, 8)).astype(np.float32)


def layer(name: str, kind: str, bottoms: str, top: str, params: str = "") -> str:
    ends = " ".join(f'bottom: "{b}"' for b in bottoms.split())
    tops = " ".join(f'top: "{t}"' for t in top.split())
    return f'layer {{ name: "{name}" type: "{kind}" {ends} {tops} {params} }}\n'


def conv(name: str, bottom: str, top: str, outs: int, size: int = 1, group: int = 1) -> str:
    params = (
        f"convolution_param {{ num_output: {outs} kernel_size: {size} pad: {size // 2} "
        f"group: {group} }}"
    )
    return layer(name, "Convolution", bottom, top, params)


def net_of(text: str, **shapes: tuple[int, ...]) -> Net:
    """Return a net whose channels differ in range by up to some thousand."""
    rng = np.random.default_rng(1)
    blobs = {}
    for name, shape in shapes.items():
        w = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        if len(shape) == 4:
            w *= np.exp(rng.normal(size=shape[0]) * 2)[:, None, None, None]
        blobs[name] = [w, rng.normal(size=shape[0]) / 10]
    return with_blobs(caffeio.parse_net(INPUT + text), blobs)


def run(net: Net, x: np.ndarray = X) -> tuple[dict, dict, dict]:
    """Return shapes, channel ranges and values of all that is read."""
    runner, ranges, values = FloatNet(net, device="reference"), {}, {}

    def see(i: int, layer: object, bottoms: list, tops: list) -> None:
        for value, array in zip(net.links[i].reads, bottoms, strict=True):
            axes = (0, *range(2, array.ndim))
            ranges[value] = array.min(axis=axes), array.max(axis=axes)
            values[value] = array

    runner.forward({"x": x}, observer=see)
    return runner.shapes({"x": x.shape}), ranges, values


def equalized(net: Net, channel_wise: bool = True, **options: float) -> Equalized:
    shapes, ranges, _ = run(net)
    plans = {
        x.name: LayerPlan(Mse(), channel_wise and x.type != "InnerProduct")
        for x in net.layers
        if x.blobs and x.type in ("Convolution", "InnerProduct", "Deconvolution")
    }
    return equalize(net, shapes, ranges, plans, (), **options)


def spread(net: Net, value: Value) -> float:
    """Return the greatest range of a value's channels over the least."""
    low, high = run(net)[1][value]
    reach = np.maximum(-low, high)
    return float(reach.max() / reach.min())


def same(one: Net, other: Net) -> None:
    for name, y in FloatNet(one).forward({"x": X}).items():
        z = FloatNet(other).forward({"x": X})[name]
        np.testing.assert_allclose(z, y, rtol=1e-4, atol=1e-5 * np.abs(y).max())


CHAIN = (
    conv("a", "x", "a", 6, 3) + layer("relu", "ReLU", "a", "a")
    + conv("dw", "a", "dw", 6, 3, 6) + layer("prelu", "PReLU", "dw", "dw2")
    + layer("pool", "Pooling", "dw2", "p", "pooling_param { kernel_size: 2 stride: 2 }")
    + conv("b", "p", "b", 4)
)  # fmt: skip


def chain(**extra: tuple[int, ...]) -> Net:
    net = net_of(CHAIN, a=(6, 3, 3, 3), dw=(6, 1, 3, 3), b=(4, 6, 1, 1), **extra)
    return with_blobs(net, {"prelu": [np.linspace(0.05, 0.5, 6)]})


def test_the_net_computes_the_same_with_ranges_more_alike():
    net = chain()
    e = equalized(net)
    same(net, e.net)
    assert e.channels >= 8
    assert e.left_alone == ("a",)
    for value in (Value("a", 1), Value("p")):
        assert spread(e.net, value) < 0.6 * spread(net, value)


def test_a_sum_gives_all_its_terms_one_factor():
    text = (
        conv("a", "x", "a", 5) + conv("b", "x", "b", 5) + conv("c", "x", "c", 5)
        + layer("sum", "Eltwise", "a b c", "s", "eltwise_param { coeff: 1 coeff: -2 coeff: 1 }")
        + conv("d", "s", "d", 2)
    )  # fmt: skip
    net = net_of(text, a=(5, 3, 1, 1), b=(5, 3, 1, 1), c=(5, 3, 1, 1), d=(2, 5, 1, 1))
    e = equalized(net)
    same(net, e.net)
    k = {n: e.net.layer(n).blobs[0][:, 0, 0, 0] / net.layer(n).blobs[0][:, 0, 0, 0] for n in "abc"}
    assert k["a"].max() > 1.01
    np.testing.assert_allclose(k["a"], k["b"], rtol=1e-5)
    np.testing.assert_allclose(k["a"], k["c"], rtol=1e-5)


def test_channels_go_through_concat_and_slice():
    text = (
        conv("a", "x", "a", 4) + conv("b", "x", "b", 2)
        + layer("cat", "Concat", "a b", "ab")
        + layer("cut", "Slice", "ab", "p q", "slice_param { slice_point: 3 }")
        + conv("c", "p", "c", 2) + conv("d", "q", "d", 2)
        + layer("fc", "InnerProduct", "q", "fc", "inner_product_param { num_output: 2 }")
    )  # fmt: skip
    net = net_of(text, a=(4, 3, 1, 1), b=(2, 3, 1, 1), c=(2, 3, 1, 1), d=(2, 3, 1, 1), fc=(2, 192))
    e = equalized(net)
    same(net, e.net)
    assert e.channels >= 4
    assert set(e.left_alone) == {"a", "b"}


@pytest.mark.parametrize(
    ("bounded", "params"),
    [("ReLU6", ""), ("Clip", "clip_param { min: 0 max: 6 }"),
     ("Clip", "clip_param { min: -2 max: 4 }")],
)  # fmt: skip
def test_a_bound_is_kept_away_from(bounded: str, params: str):
    text = conv("a", "x", "a", 6) + layer("r", bounded, "a", "r", params) + conv("b", "r", "b", 3)
    net = net_of(text, a=(6, 3, 1, 1), b=(3, 6, 1, 1))
    e = equalized(net, margin=2.0)
    same(net, e.net)
    before, behind = (run(n)[1][Value("a")] for n in (net, e.net))
    factors = behind[1] / before[1]
    high = 4 if "max: 4" in params else 6
    for k, top in zip(factors, before[1], strict=True):
        assert k == pytest.approx(1, abs=1e-5) or k * top <= high / 2 * 1.001
    assert (factors > 1.05).any()
    # twice as much as calibration saw is still the same
    y, z = (FloatNet(n).forward({"x": 2 * X})["b"] for n in (net, e.net))
    np.testing.assert_allclose(z, y, rtol=1e-3, atol=1e-4 * np.abs(y).max())


def test_what_something_else_reads_is_left_alone():
    text = CHAIN + layer("tanh", "TanH", "a", "t") + layer("out", "ReLU", "dw", "o")
    net = net_of(text, a=(6, 3, 3, 3), dw=(6, 1, 3, 3), b=(4, 6, 1, 1))
    net = with_blobs(net, {"prelu": [np.linspace(0.05, 0.5, 6)]})
    e = equalized(net)  # a goes to TanH, dw to an output: neither may change
    assert e.channels == 0
    same(net, e.net)


def test_an_output_in_the_middle_stays_as_it_is():
    net = chain()
    shapes, ranges, _ = run(net)
    plans = {n: LayerPlan(Mse(), True) for n in ("a", "dw", "b")}
    e = equalize(net, shapes, ranges, plans, ("a",))
    y, z = (FloatNet(n).forward({"x": X}, ["a"])["a"] for n in (net, e.net))
    np.testing.assert_array_equal(y, z)
    assert e.channels > 0


def test_shared_weights_keep_channels():
    own, shared = "", 'param { name: "w" } param { name: "b" }'
    for names, some in ((own, True), (shared, False)):
        text = conv("a", "x", "a", 6) + conv("dw", "a", "d", 6, 3, 6)
        text += conv("again", "d", "e", 6, 3, 6) + conv("b", "e", "b", 4)
        for name in ("dw", "again"):
            text = text.replace(f'name: "{name}"', f'name: "{name}" {names}')
        net = net_of(text, a=(6, 3, 1, 1), dw=(6, 1, 3, 3), again=(6, 1, 3, 3), b=(4, 6, 1, 1))
        net = with_blobs(net, {"again": net.layer("dw").blobs})
        e = equalized(net)
        same(net, e.net)
        assert (e.channels > 0) is some


def test_one_weight_scale_for_all_channels_keeps_them():
    assert equalized(chain()).channels > 0
    assert equalized(chain(), channel_wise=False).channels == 0


def test_channels_that_are_never_used_get_no_factor():
    net = chain()
    blobs = [b.copy() for b in net.layer("a").blobs]
    blobs[0][2], blobs[1][2] = 0, -1  # dead behind the ReLU
    net = with_blobs(net, {"a": blobs})
    e = equalized(net)
    same(net, e.net)
    np.testing.assert_array_equal(e.net.layer("a").blobs[1][2], -1)
    assert all(np.isfinite(b).all() for x in e.net.layers for b in x.blobs)
