"""Deconvolution: exact integers against the oracle and between devices, floats to tolerance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import kernel_cases as cases
import naive
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kernels import (
    OutputStage,
    QuantParams,
    conv2d_int8,
    conv_output_size,
    deconv2d,
    deconv2d_int8,
    deconv_output_size,
)

DEVICES = cases.DEVICES


@dataclass(frozen=True)
class Layer:
    """Shapes and parameters of one deconvolution."""

    x: tuple[int, int, int, int]
    w: tuple[int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    group: int = 1

    @property
    def outs(self) -> int:
        return self.w[1] * self.group

    @property
    def keywords(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "pad": self.pad,
            "dilation": self.dilation,
            "group": self.group,
        }

    def naive(self, x: np.ndarray, w: np.ndarray, bias: np.ndarray) -> list:
        return naive.deconv(
            x.tolist(), w.tolist(), bias.tolist(), self.stride, self.pad, self.dilation, self.group
        )


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    group, per = draw(st.sampled_from([(1, 1), (1, 2), (1, 5), (2, 1), (2, 2), (3, 1)]))
    kernel, stride, dilation = (
        draw(cases.pairs(1, 3)),
        draw(cases.pairs(1, 3)),
        draw(cases.pairs(1, 2)),
    )
    size, pad = draw(cases.pairs(1, 4)), draw(cases.pairs(0, 2))
    assume(
        all(
            t * (s - 1) + d * (k - 1) + 1 - 2 * p > 0
            for s, k, t, d, p in zip(size, kernel, stride, dilation, pad, strict=True)
        )
    )
    x = (draw(st.integers(1, 2)), group * per, *size)
    w = (group * per, draw(st.integers(1, 3)), *kernel)
    return Layer(x, w, stride, pad, dilation, group)


LARGER = [
    Layer((2, 17, 9, 11), (17, 7, 4, 4), (2, 2), (1, 1)),
    Layer((1, 32, 5, 6), (32, 1, 4, 4), (2, 2), (1, 1), group=32),
    Layer((1, 12, 8, 7), (12, 5, 3, 3), (1, 1), (1, 1), (2, 2), group=3),
    Layer((1, 40, 1, 1), (40, 9, 7, 5)),
    Layer((1, 3, 10, 33), (3, 2, 2, 3), (3, 2)),
]


def int8_case(layer: Layer, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    bias = rng.integers(-(2**20), 2**20, layer.outs).astype(np.int32)
    return cases.int8s(rng, *layer.x), cases.int8s(rng, *layer.w), bias


# ------------------------------------------------------------------------------------- int8


@cases.examples(100)
@given(layers(), st.integers(0, 10**6), st.integers(-128, 127), st.data())
def test_int8_equals_the_oracle_on_every_device(layer, seed, x_offset, data):
    x, w, bias = int8_case(layer, seed)
    case = data.draw(cases.stages(layer.outs))
    want = cases.stored(layer.naive(x.astype(int) - x_offset, w, bias), case)
    for device in DEVICES:
        got = deconv2d_int8(
            x, w, bias, x_offset=x_offset, output=case.output, device=device, **layer.keywords
        )
        assert got.dtype == case.dtype
        np.testing.assert_array_equal(got, want, err_msg=device)


@pytest.mark.parametrize("layer", LARGER, ids=str)
def test_int8_devices_agree_on_larger_shapes(layer: Layer):
    x, w, bias = int8_case(layer, 1)
    unit = np.random.default_rng(2).uniform(1e-4, 1e-3, layer.outs).astype(np.float32)
    for output in (None, OutputStage(unit, clamp=(0, np.inf), params=QuantParams(0.05, -128))):
        one, two = (
            deconv2d_int8(x, w, bias, x_offset=9, output=output, device=d, **layer.keywords)
            for d in DEVICES
        )
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("device", DEVICES)
@cases.examples(30)
@given(layers(), st.integers(0, 10**6))
def test_it_is_the_transpose_of_convolution(device: str, layer: Layer, seed: int):
    # <conv(y), x> = <y, deconv(x)> with the same weights, whole numbers on both sides
    rng = np.random.default_rng(seed)
    x, w = cases.int8s(rng, *layer.x), cases.int8s(rng, *layer.w)
    out = deconv2d_int8(x, w, device=device, **layer.keywords)
    y = rng.integers(-128, 128, out.shape).astype(np.int8)
    for axis in range(2):
        size = conv_output_size(
            y.shape[2 + axis],
            layer.w[2 + axis],
            layer.stride[axis],
            layer.pad[axis],
            layer.dilation[axis],
        )
        assert size == layer.x[2 + axis]
    back = conv2d_int8(y, w, device=device, **layer.keywords)
    assert (back.astype(int) * x).sum() == (out.astype(int) * y).sum()


@pytest.mark.parametrize("device", DEVICES)
def test_the_extremes_do_not_saturate_on_the_way(device: str):
    x = np.full((1, 64, 3, 3), -128, np.int8)
    w = np.full((64, 2, 3, 3), -128, np.int8)
    got = deconv2d_int8(x, w, x_offset=127, device=device)
    assert got[0, :, 2, 2].tolist() == [255 * 128 * 9 * 64] * 2
    assert got[0, :, 0, 0].tolist() == [255 * 128 * 64] * 2


# ------------------------------------------------------------------------------------ float


@cases.examples(60)
@given(layers(), st.integers(0, 10**6))
def test_float_equals_the_oracle_in_float64(layer: Layer, seed: int):
    rng = np.random.default_rng(seed)
    x, w = cases.normal(rng, *layer.x), cases.normal(rng, *layer.w)
    bias = cases.normal(rng, layer.outs)
    want = np.array(layer.naive(x, w, bias))
    size = np.array(layer.naive(np.abs(x), np.abs(w), np.abs(bias)))
    for device in DEVICES:
        got = deconv2d(x, w, bias, device=device, **layer.keywords)
        assert (got.dtype, got.shape) == (np.float32, want.shape)
        assert (np.abs(got - want) <= 1e-6 * size + 1e-30).all()


@pytest.mark.parametrize("layer", LARGER, ids=str)
def test_float_devices_agree_on_larger_shapes(layer: Layer):
    rng = np.random.default_rng(4)
    x, w = cases.normal(rng, *layer.x), cases.normal(rng, *layer.w)
    one, two = (deconv2d(x, w, device=d, **layer.keywords) for d in DEVICES)
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------ edges


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("group", [1, 2])
def test_an_empty_batch_gives_an_empty_result(device: str, group: int):
    x, w = np.zeros((0, 2, 5, 6), np.int8), np.zeros((2, 3, 3, 3), np.int8)
    for output in (None, OutputStage(1.0), OutputStage(1.0, params=QuantParams(1.0))):
        got = deconv2d_int8(x, w, group=group, output=output, device=device)
        assert got.shape == (0, 3 * group, 7, 8)
    got = deconv2d(x.astype(np.float32), w.astype(np.float32), group=group, device=device)
    assert (got.shape, got.dtype) == ((0, 3 * group, 7, 8), np.float32)


@pytest.mark.parametrize("device", DEVICES)
def test_strided_arrays_give_the_same(device: str):
    rng = np.random.default_rng(0)
    x = cases.int8s(rng, 5, 7, 3, 2).T[:, :, ::-1]
    w = cases.int8s(rng, 3, 3, 4, 3).T[:, ::2]
    got = deconv2d_int8(x, w, stride=2, device=device)
    same = np.ascontiguousarray(x), np.ascontiguousarray(w)
    np.testing.assert_array_equal(got, deconv2d_int8(*same, stride=2, device=device))
    real = deconv2d(
        x.astype(np.float32), np.asfortranarray(w.astype(np.float32)), stride=2, device=device
    )
    np.testing.assert_array_equal(got, real)  # whole numbers this small are exact


@cases.examples(150)
@given(
    st.integers(1, 40), st.integers(1, 7), st.integers(1, 4), st.integers(0, 4), st.integers(1, 3)
)
def test_the_output_size_is_where_the_last_window_ends(size, kernel, stride, pad, dilation):
    touched = [i * stride + k * dilation for i in range(size) for k in range(kernel)]
    out = max(touched) + 1 - 2 * pad
    if out < 1:
        with pytest.raises(ValueError, match=f"pad {pad} leaves an output of size"):
            deconv_output_size(size, kernel, stride, pad, dilation)
    else:
        assert deconv_output_size(size, kernel, stride, pad, dilation) == out


def test_sums_that_could_leave_int32_are_refused():
    channels = 2**31 // (255 * 128) + 1
    x = np.zeros((1, channels, 1, 1), np.int8)
    w = np.ones((channels, 2, 1, 1), np.int8)
    w[:, 1] = -128
    with pytest.raises(OverflowError, match="output channel 1 could sum up to"):
        deconv2d_int8(x, w)
    grouped = np.ones((2 * channels, 1, 1, 1), np.int8)
    grouped[channels:] = -128
    with pytest.raises(OverflowError, match="output channel 1 could sum up to"):
        deconv2d_int8(np.concatenate([x, x], axis=1), grouped, group=2)


X, W = np.zeros((1, 4, 5, 5), np.int8), np.zeros((4, 3, 3, 3), np.int8)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": X[0]}, ValueError, "x must have 4 dimensions"),
        ({"x": X.astype(np.uint8)}, TypeError, "x must be int8, not uint8"),
        ({"w": W[0]}, ValueError, "w must have 4 dimensions"),
        ({"w": W.astype(np.int16)}, TypeError, "w must be int8, not int16"),
        ({"w": W[:3]}, ValueError, "x has 4 channels and w has shape"),
        ({"group": 3}, ValueError, "group=3 must divide"),
        ({"group": 0}, ValueError, "group must be"),
        ({"bias": np.zeros(6, np.int64)}, TypeError, "bias must be int32"),
        ({"bias": np.zeros(3, np.int32)}, ValueError, r"bias must be int32 of shape \(6,\)"),
        ({"bias": [0] * 6}, TypeError, "bias must be a NumPy array"),
        ({"stride": 0}, ValueError, "stride must be"),
        ({"stride": (1, 1, 1)}, TypeError, "stride must be"),
        ({"pad": -1}, ValueError, "pad must be"),
        ({"pad": 4}, ValueError, "pad 4 leaves an output of size -1"),
        ({"dilation": 0}, ValueError, "dilation must be"),
        ({"x": X[:, :, :0]}, ValueError, "x is empty"),
        ({"w": W[:, :0]}, ValueError, "w is empty"),
        ({"w": W[..., :0]}, ValueError, "w is empty"),
        ({"device": "gpu"}, ValueError, "device 'gpu' is unknown"),
    ],
)
def test_wrong_arguments_are_named(change: dict, error: type[Exception], message: str):
    arguments: dict[str, Any] = {"x": X, "w": W, "group": 2, **change}
    with pytest.raises(error, match=message):
        deconv2d_int8(**arguments)
    if not {"x", "w", "bias"} & set(change):
        arguments |= {k: arguments[k].astype(np.float32) for k in ("x", "w")}
        with pytest.raises(error, match=message):
            deconv2d(**arguments)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_outputs_that_no_tap_reaches_know_nothing_of_the_data(device, group, value):
    x = np.ones((2, 3, 2, 2), np.float32)
    x[0, 1, 1, 0] = value
    w = np.ones((3, 3 // group, 1, 1), np.float32)
    bias = np.arange(3, dtype=np.float32)
    y = deconv2d(x, w, bias, stride=3, group=group, device=device)
    want = np.broadcast_to(bias[None, :, None, None], y.shape).copy()
    want[:, :, ::3, ::3] += x if group == 3 else x.sum(1, keepdims=True)
    np.testing.assert_array_equal(y, want)
