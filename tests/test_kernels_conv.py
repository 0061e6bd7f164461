"""Convolution: exact integers against the oracle and between devices, floats to tolerance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import kernel_cases as cases
import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels import (
    OutputStage,
    QuantParams,
    conv2d,
    conv2d_int8,
    conv_output_size,
    prepare_conv2d,
)

DEVICES = cases.DEVICES


@dataclass(frozen=True)
class Layer:
    """Shapes and parameters of one convolution."""

    x: tuple[int, int, int, int]
    w: tuple[int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    group: int = 1

    @property
    def keywords(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "pad": self.pad,
            "dilation": self.dilation,
            "group": self.group,
        }

    def naive(self, x: np.ndarray, w: np.ndarray, bias: np.ndarray) -> list:
        return naive.conv(
            x.tolist(), w.tolist(), bias.tolist(), self.stride, self.pad, self.dilation, self.group
        )


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    group, per = draw(st.sampled_from([(1, 1), (1, 2), (1, 5), (2, 1), (2, 2), (3, 1), (3, 2)]))
    kernel = draw(st.one_of(cases.pairs(1, 3), st.sampled_from([(1, 1), (3, 3), (3, 3), (1, 4)])))
    stride, pad, dilation = (
        draw(cases.pairs(1, 3)),
        draw(cases.pairs(0, 2)),
        draw(cases.pairs(1, 2)),
    )
    size = [
        draw(st.integers(max(1, d * (k - 1) + 1 - 2 * p), max(1, d * (k - 1) + 1 - 2 * p) + 4))
        for k, d, p in zip(kernel, dilation, pad, strict=True)
    ]
    x = (draw(st.integers(1, 2)), group * per, *size)
    w = (group * draw(st.integers(1, 3)), per, *kernel)
    return Layer(x, w, stride, pad, dilation, group)  # type: ignore[arg-type]


#: Shapes that cross the borders of tiles, packed rows and vector lanes.
LARGER = [
    Layer((2, 17, 9, 11), (7, 17, 3, 3), pad=(1, 1)),
    Layer((1, 33, 8, 9), (18, 33, 1, 1)),
    Layer((1, 32, 12, 12), (16, 16, 3, 3), (2, 2), (1, 1), group=2),
    Layer((2, 24, 13, 10), (24, 1, 3, 3), (1, 1), (1, 1), group=24),
    Layer((1, 24, 13, 19), (24, 1, 3, 3), (2, 2), (1, 1), group=24),
    Layer((1, 6, 20, 20), (12, 1, 5, 3), (1, 2), (2, 1), (2, 1), group=6),
    Layer((1, 3, 23, 23), (10, 3, 7, 7), (2, 2), (3, 3)),
    Layer((1, 5, 1, 1), (3, 5, 1, 1)),
    Layer((3, 64, 1, 1), (65, 64, 1, 1)),
    Layer((1, 4, 6, 7), (5, 4, 6, 7)),
    Layer((1, 8, 16, 3), (4, 8, 1, 3), pad=(0, 1), dilation=(1, 2)),
]


def int8_case(layer: Layer, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    bias = rng.integers(-(2**20), 2**20, layer.w[0]).astype(np.int32)
    return cases.int8s(rng, *layer.x), cases.int8s(rng, *layer.w), bias


# ------------------------------------------------------------------------------------- int8


@cases.examples(100)
@given(layers(), st.integers(0, 10**6), st.integers(-128, 127), st.data())
def test_int8_equals_the_oracle_on_every_device(layer, seed, x_offset, data):
    x, w, bias = int8_case(layer, seed)
    case = data.draw(cases.stages(layer.w[0]))
    sums = layer.naive(x.astype(int) - x_offset, w, bias)
    want = cases.stored(sums, case)
    for device in DEVICES:
        got = conv2d_int8(
            x, w, bias, x_offset=x_offset, output=case.output, device=device, **layer.keywords
        )
        assert got.dtype == case.dtype
        np.testing.assert_array_equal(got, want, err_msg=device)


@pytest.mark.parametrize("layer", LARGER, ids=str)
def test_int8_devices_agree_on_larger_shapes(layer: Layer):
    x, w, bias = int8_case(layer, 1)
    rng = np.random.default_rng(2)
    unit = rng.uniform(1e-4, 1e-3, layer.w[0]).astype(np.float32)
    for output in (None, OutputStage(unit, clamp=(0, np.inf), params=QuantParams(0.05, -128))):
        one, two = (
            conv2d_int8(x, w, bias, x_offset=-7, output=output, device=d, **layer.keywords)
            for d in DEVICES
        )
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(1, 64, 4, 4), (1, 2, 4, 4)])
def test_the_extremes_do_not_saturate_on_the_way(device: str, shape: tuple):
    for x_value, w_value, offset in ((-128, -128, 127), (127, -128, -128), (-128, 127, 127)):
        x = np.full(shape, x_value, np.int8)
        for group in (1, shape[1]):
            per = shape[1] // group
            w = np.full((shape[1], per, 3, 3), w_value, np.int8)
            got = conv2d_int8(x, w, x_offset=offset, group=group, device=device)
            assert (got == (x_value - offset) * w_value * 9 * per).all()


@pytest.mark.parametrize("device", DEVICES)
def test_a_padded_position_is_a_real_zero(device: str):
    x = np.full((1, 1, 1, 1), -5, np.int8)
    w = np.full((1, 1, 3, 3), 100, np.int8)
    got = conv2d_int8(x, w, x_offset=-5, pad=1, device=device)
    assert got.tolist() == [[[[0]]]]
    assert conv2d_int8(x, w, x_offset=-7, pad=1, device=device).item() == 200


# ------------------------------------------------------------------------------------ float


@cases.examples(80)
@given(layers(), st.integers(0, 10**6))
def test_float_equals_the_oracle_in_float64(layer: Layer, seed: int):
    rng = np.random.default_rng(seed)
    x, w = cases.normal(rng, *layer.x), cases.normal(rng, *layer.w)
    bias = cases.normal(rng, layer.w[0])
    want = np.array(layer.naive(x, w, bias))
    size = np.array(layer.naive(np.abs(x), np.abs(w), np.abs(bias)))
    results = [conv2d(x, w, bias, device=d, **layer.keywords) for d in DEVICES]
    for got in results:
        assert got.dtype == np.float32
        assert got.shape == want.shape
        assert (np.abs(got - want) <= 1e-6 * size + 1e-30).all()
    assert (np.abs(results[0] - results[1]) <= 1e-6 * size + 1e-30).all()


@pytest.mark.parametrize("layer", LARGER, ids=str)
def test_float_devices_agree_on_larger_shapes(layer: Layer):
    rng = np.random.default_rng(4)
    x, w = cases.normal(rng, *layer.x), cases.normal(rng, *layer.w)
    one, two = (conv2d(x, w, device=d, **layer.keywords) for d in DEVICES)
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_nan_stays_where_it_is_read(device: str):
    x = np.zeros((1, 2, 5, 5), np.float32)
    x[0, 0, 0, 0] = np.nan
    for group in (1, 2):
        w = np.ones((2, 2 // group, 3, 3), np.float32)
        got = conv2d(x, w, group=group, device=device)
        assert np.isnan(got[0, 0, 0, 0])
        assert np.isfinite(got[0, 0, 1:]).all()
        assert np.isfinite(got[0, 0, :, 1:]).all()
        assert np.isnan(got[0, 1, 0, 0]) == (group == 1)


# ------------------------------------------------------------------------------------ edges


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("group", [1, 2])
def test_an_empty_batch_gives_an_empty_result(device: str, group: int):
    x, w = np.zeros((0, 2, 5, 6), np.int8), np.zeros((4, 2 // group, 3, 3), np.int8)
    for output in (None, OutputStage(1.0), OutputStage(1.0, params=QuantParams(1.0))):
        got = conv2d_int8(x, w, group=group, output=output, device=device)
        assert got.shape == (0, 4, 3, 4)
    got = conv2d(x.astype(np.float32), w.astype(np.float32), group=group, device=device)
    assert (got.shape, got.dtype) == ((0, 4, 3, 4), np.float32)


@pytest.mark.parametrize("device", DEVICES)
def test_strided_arrays_give_the_same(device: str):
    rng = np.random.default_rng(0)
    base, weights = cases.int8s(rng, 5, 7, 3, 2), cases.int8s(rng, 3, 3, 3, 4)
    x, w = base.T[:, :, ::-1], weights.T[::2]
    bias = np.arange(8, dtype=np.int32)[::4]
    got = conv2d_int8(x, w, bias, device=device)
    same = [np.ascontiguousarray(a) for a in (x, w, bias)]
    np.testing.assert_array_equal(got, conv2d_int8(*same, device=device))
    real = [a.astype(np.float32) for a in same]
    got = conv2d(x.astype(np.float32), np.asfortranarray(real[1]), real[2], device=device)
    np.testing.assert_allclose(got, conv2d(*real, device=device), rtol=1e-6)
    read_only = np.broadcast_to(np.int8(3), (1, 3, 4, 4))
    assert conv2d_int8(read_only, w, device=device).shape == (1, 2, 2, 2)


@pytest.mark.parametrize("device", DEVICES)
def test_a_kernel_larger_than_the_image_by_less_than_its_stride_reads_zeros(device: str):
    rng = np.random.default_rng(0)
    x, w = cases.int8s(rng, 2, 3, 2, 4), cases.int8s(rng, 5, 3, 3, 3)
    beyond = np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 0)))
    want = conv2d_int8(beyond, w, stride=2, device="reference")
    np.testing.assert_array_equal(conv2d_int8(x, w, stride=2, device=device), want)
    real = conv2d(x.astype(np.float32), w.astype(np.float32), stride=2, device=device)
    np.testing.assert_array_equal(real, want.astype(np.float32))


@cases.examples(150)
@given(
    st.integers(1, 40), st.integers(1, 7), st.integers(1, 4), st.integers(0, 4), st.integers(1, 3)
)
def test_the_output_size_counts_the_places(size, kernel, stride, pad, dilation):
    last = size + 2 * pad - dilation * (kernel - 1) - 1
    # one that is too large by less than a stride has a place, too: C++ divides towards zero
    places = [i for i in range(0, max(last, -1) + 1) if i % stride == 0]
    places = places or [0] * (-last < stride)
    if not places:
        with pytest.raises(ValueError, match="larger than the padded size"):
            conv_output_size(size, kernel, stride, pad, dilation)
    else:
        assert conv_output_size(size, kernel, stride, pad, dilation) == len(places)


def test_sums_that_could_leave_int32_are_refused():
    channels = 2**31 // (255 * 128) + 1
    x = np.zeros((1, channels, 1, 1), np.int8)
    w = np.full((2, channels, 1, 1), 1, np.int8)
    w[1] = -128
    for device in DEVICES:
        with pytest.raises(OverflowError, match="output channel 1 could sum up to 21"):
            conv2d_int8(x, w, device=device)
    bias = np.array([2**31 - 1, 0], np.int32)
    with pytest.raises(OverflowError, match="output channel 0"):
        conv2d_int8(x[:, :1], w[:, :1], bias)
    least = np.array([-(2**31) + 256, 0], np.int32)
    low = np.full((1, 1, 1, 1), -128, np.int8)
    assert conv2d_int8(low, w[:, :1], least, x_offset=127)[0, 0].item() == -(2**31) + 1


X, W = np.zeros((1, 4, 5, 5), np.int8), np.zeros((6, 2, 3, 3), np.int8)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": X[0]}, ValueError, "x must have 4 dimensions"),
        ({"x": X.astype(np.uint8)}, TypeError, "x must be int8, not uint8"),
        ({"x": [1]}, TypeError, "x must be a NumPy array"),
        ({"w": W[0]}, ValueError, "w must have 4 dimensions"),
        ({"w": W.astype(np.int16)}, TypeError, "w must be int8, not int16"),
        ({"w": W[:5]}, ValueError, "group=2"),
        ({"w": np.zeros((6, 4, 3, 3), np.int8)}, ValueError, "group=2"),
        ({"group": 1}, ValueError, "group=1"),
        ({"group": 3}, ValueError, "group=3"),
        ({"group": 0}, ValueError, "group must be"),
        ({"group": 2.0}, TypeError, "group must be"),
        ({"bias": np.zeros(6, np.int64)}, TypeError, "bias must be int32"),
        ({"bias": np.zeros(5, np.int32)}, ValueError, "bias must be int32 of shape"),
        ({"bias": np.zeros((6, 1), np.int32)}, ValueError, "bias must be int32 of shape"),
        ({"bias": [0] * 6}, TypeError, "bias must be a NumPy array"),
        ({"stride": 0}, ValueError, "stride must be"),
        ({"stride": (1, -1)}, ValueError, "stride must be"),
        ({"stride": (1, 1, 1)}, TypeError, "stride must be"),
        ({"stride": 1.5}, TypeError, "stride must be"),
        ({"pad": -1}, ValueError, "pad must be"),
        ({"dilation": 0}, ValueError, "dilation must be"),
        ({"dilation": 3}, ValueError, "kernel extent 7 is larger than the padded size 5"),
        ({"x": X[:, :, :0]}, ValueError, "x is empty"),
        ({"x": X[:, :0]}, ValueError, "x is empty"),
        ({"w": W[:0]}, ValueError, "w is empty"),
        ({"w": W[..., :0]}, ValueError, "w is empty"),
        ({"device": "gpu"}, ValueError, "device 'gpu' is unknown"),
    ],
)
def test_wrong_arguments_are_named(change: dict, error: type[Exception], message: str):
    arguments: dict[str, Any] = {"x": X, "w": W, "group": 2, **change}
    with pytest.raises(error, match=message):
        conv2d_int8(**arguments)
    if not {"x", "w", "bias"} & set(change):
        arguments |= {k: arguments[k].astype(np.float32) for k in ("x", "w")}
        with pytest.raises(error, match=message):
            conv2d(**arguments)


def test_float_arguments_are_checked_for_their_type():
    x, w = np.zeros((1, 4, 5, 5), np.float32), np.zeros((6, 4, 3, 3), np.float32)
    with pytest.raises(TypeError, match="x must be float32, not float64"):
        conv2d(x.astype(np.float64), w)
    with pytest.raises(TypeError, match="w must be float32, not int8"):
        conv2d(x, W)
    with pytest.raises(TypeError, match="bias must be float32, not float64: convert it"):
        conv2d(x, w, np.zeros(6))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", ["sums", "int8", "float"])
def test_prepared_equals_unprepared(device: str, last: bool, kind: str):
    rng = np.random.default_rng(4)
    x, w = cases.int8s(rng, 2, 5, 7, 9), cases.int8s(rng, 20, 5, 3, 3)
    bias = rng.integers(-900, 900, 20).astype(np.int32)
    keywords: dict[str, Any] = {"stride": 2, "pad": 1}
    if kind == "float":
        x, w, bias = (a.astype(np.float32) for a in (x, w, bias))
        wanted = conv2d(x, w, bias, device=device, **keywords)
    else:
        output = OutputStage(0.01, params=QuantParams(0.5, 3)) if kind == "int8" else None
        keywords |= {"x_offset": -4, "output": output}
        wanted = conv2d_int8(x, w, bias, device=device, **keywords)
    run = prepare_conv2d(x.shape, w, bias, channels_last=last, device=device, **keywords)
    given = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if last else x
    for _ in range(2):
        found = run(given)
        assert found.dtype == wanted.dtype
        assert ((found.transpose(0, 3, 1, 2) if last else found) == wanted).all()


def test_prepared_refuses_other_data():
    run = prepare_conv2d((1, 2, 4, 4), np.ones((3, 2, 1, 1), np.int8))
    with pytest.raises(ValueError, match="prepared was"):
        run(np.zeros((1, 2, 4, 5), np.int8))
    with pytest.raises(TypeError, match="int8"):
        run(np.zeros((1, 2, 4, 4), np.float32))
    with pytest.raises(ValueError, match="for int8"):
        prepare_conv2d((1, 2, 4, 4), np.ones((3, 2, 1, 1), np.float32), x_offset=1)


def test_in_place_equals_copies():
    rng = np.random.default_rng(6)
    x, w = cases.int8s(rng, 2, 5, 7, 9), cases.int8s(rng, 20, 5, 3, 3)
    output = OutputStage(0.01, params=QuantParams(0.5, 3))
    run = prepare_conv2d(x.shape, w, x_offset=-4, pad=1, output=output)
    with run.in_place() as held:
        held.source[...] = x.transpose(0, 2, 3, 1).astype(int) + held.source_add
        held.compute()
        found = held.result.astype(int) - held.result_add
    assert (found.transpose(0, 3, 1, 2) == run(x)).all()
    slow = prepare_conv2d(x.shape, w, device="reference")
    with pytest.raises(ValueError, match="only the device 'cpu'"):
        slow.in_place()
