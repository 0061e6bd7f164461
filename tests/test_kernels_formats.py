"""Where results go and in what form: `out`, uint8 beside int8, parameters of each channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kernel_cases as cases
import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kernels
from kernels import ChannelParams, QuantParams

DEVICES = cases.DEVICES
P = QuantParams(0.05, -3)
X = cases.normal(np.random.default_rng(0), 2, 3, 4)
Q = cases.int8s(np.random.default_rng(1), 2, 3, 4)
SUMS = np.random.default_rng(2).integers(-500, 500, (2, 3, 4)).astype(np.int32)
SCALES = np.array([0.01, 0.02, 0.3], np.float32)

#: Operations that take `out`: a call, its input, the dtype of its result.
CALLS: dict[str, tuple[Callable[..., Any], np.ndarray, type]] = {
    "quantize": (lambda x, **k: kernels.quantize(x, P, **k), X, np.int8),
    "quantize to uint8": (lambda x, **k: kernels.quantize(x, P, dtype=np.uint8, **k), X, np.uint8),
    "dequantize": (lambda x, **k: kernels.dequantize(x, P, **k), Q, np.float32),
    "dequantize uint8": (lambda x, **k: kernels.dequantize(x, P, **k), Q.view("u1"), np.float32),
    "fake_quantize": (lambda x, **k: kernels.fake_quantize(x, P, **k), X, np.float32),
    "requantize": (lambda x, **k: kernels.requantize(x, SCALES, P, **k), SUMS, np.int8),
    "requantize to uint8": (
        lambda x, **k: kernels.requantize(x, 0.3, P, dtype="uint8", **k), SUMS, np.uint8,
    ),
    "quantize channels": (
        lambda x, **k: kernels.quantize(x, ChannelParams(SCALES, 2), **k), X, np.int8,
    ),
    "dequantize channels": (
        lambda x, **k: kernels.dequantize(x, ChannelParams(SCALES, 2), **k), Q, np.float32,
    ),
    "fake_quantize channels": (
        lambda x, **k: kernels.fake_quantize(x, ChannelParams(SCALES, 2), **k), X, np.float32,
    ),
}  # fmt: skip


def like(x: np.ndarray, dtype: type) -> np.ndarray:
    return np.full(x.shape, 77, dtype)


# ----------------------------------------------------------------------------------------- out


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CALLS)
def test_out_is_filled_and_returned(name: str, device: str):
    call, x, dtype = CALLS[name]
    want = call(x, device=device)
    assert want.dtype == dtype
    out = like(x, dtype)
    assert call(x, out=out, device=device) is out
    assert out.tobytes() == want.tobytes()
    part = np.full((4, *x.shape), 77, dtype)
    call(x, out=part[2], device=device)  # rows before and behind stay as they are
    assert (part[[0, 1, 3]] == 77).all()
    assert part[2].tobytes() == want.tobytes()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,)])
def test_out_of_any_shape(shape: tuple[int, ...], device: str):
    x = np.full(shape, 1.5, np.float32)
    out = np.zeros(shape, np.int8)
    assert kernels.quantize(x, QuantParams(0.5, 1), out=out, device=device) is out
    assert (out == 4).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CALLS)
def test_an_out_that_cannot_take_the_result_is_refused(name: str, device: str):
    call, x, dtype = CALLS[name]
    other = np.int16 if dtype != np.float32 else np.float64
    frozen = like(x, dtype)
    frozen.flags.writeable = False
    for out, error, message in (
        (like(x, other), TypeError, f"out must be {np.dtype(dtype).name}, not"),
        ([0], TypeError, "out must be a NumPy array, not list"),
        (like(x[:1], dtype), ValueError, r"out must have the shape \(2, 3, 4\), not \(1, 3, 4\)"),
        (like(x.T, dtype).T, ValueError, "out must be C-contiguous"),
        (like(x, dtype)[:, :, ::-1], ValueError, "out must be C-contiguous"),
        (frozen, ValueError, "out is read-only"),
    ):
        with pytest.raises(error, match=message):
            call(x, out=out, device=device)


@pytest.mark.parametrize("device", DEVICES)
def test_fake_quantize_may_write_over_its_input(device: str):
    want = kernels.fake_quantize(X, P, device=device)
    x = X.copy()
    assert kernels.fake_quantize(x, P, out=x, device=device) is x
    assert (x == want).all()


@pytest.mark.parametrize("device", DEVICES)
def test_an_out_that_overlaps_the_input_is_refused(device: str):
    memory = np.zeros(40, np.float32)
    for x, out in ((memory[:20], memory[10:30]), (memory[10:30], memory[:20])):
        with pytest.raises(ValueError, match="out overlaps the input"):
            kernels.fake_quantize(x, P, out=out, device=device)
    with pytest.raises(ValueError, match="out overlaps the input"):
        kernels.quantize(memory[:8], P, out=memory.view(np.int8)[:8], device=device)
    # a copy is made of strided data: nothing is read after it was written
    x = X.copy()
    want = kernels.fake_quantize(x[..., ::-1], P, device=device)
    assert (kernels.fake_quantize(x[..., ::-1], P, out=x, device=device) == want).all()


# --------------------------------------------------------------------------------------- uint8


@st.composite
def formats(draw: st.DrawFn) -> QuantParams:
    bits = draw(st.integers(2, 8))
    offset = draw(st.integers(*naive.limits(bits)))
    return QuantParams(draw(cases.floats32(1e-7, 8e6)), offset, bits)


@pytest.mark.parametrize("device", DEVICES)
@cases.examples(150)
@given(st.data(), formats())
def test_uint8_is_int8_and_half_the_range(device: str, data: st.DataObject, p: QuantParams):
    halves = st.integers(-600, 600).map(lambda i: naive.f32(i / 2 * p.scale))
    value = st.one_of(halves, cases.floats32(), st.sampled_from([np.inf, -np.inf, 0.0]))
    x = np.array(data.draw(st.lists(value, min_size=1, max_size=20)), np.float32)
    half = 1 << (p.bits - 1)
    q = kernels.quantize(x, p, device=device)
    u = kernels.quantize(x, p, dtype=np.uint8, device=device)
    assert u.dtype == np.uint8
    assert u.tolist() == (q.astype(int) + half).tolist()
    back = kernels.dequantize(u, p, device=device)
    assert back.tobytes() == kernels.dequantize(q, p, device=device).tobytes()
    zero = kernels.quantize(np.zeros(1, np.float32), p, dtype=np.uint8, device=device)
    assert zero == p.unsigned_zero_point
    sums = x.astype(np.float64).clip(-(2**31), 2**31 - 200).astype(np.int32)
    narrow, wide = (
        kernels.requantize(sums, 0.37, p, dtype=d, device=device) for d in (np.int8, np.uint8)
    )
    assert wide.tolist() == (narrow.astype(int) + half).tolist()


@pytest.mark.parametrize("device", DEVICES)
def test_every_uint8_survives_the_way_to_real_and_back(device: str):
    u = np.arange(256, dtype=np.uint8)
    for p in (QuantParams(0.3, -128), QuantParams(0.3, 127), QuantParams(2.0)):
        x = kernels.dequantize(u, p, device=device)
        assert (x == ((u.astype(np.float32) - p.unsigned_zero_point) * np.float32(p.scale))).all()
        assert (kernels.quantize(x, p, dtype=np.uint8, device=device) == u).all()


@pytest.mark.parametrize("wrong", [np.int16, float, "int32", None, "nonsense", np.bool_])
def test_other_dtypes_are_refused(wrong: Any):
    for call in (
        lambda: kernels.quantize(X, P, dtype=wrong),
        lambda: kernels.requantize(SUMS, 1.0, P, dtype=wrong),
    ):
        with pytest.raises(TypeError, match=r"dtype must be np\.int8 or np\.uint8, not "):
            call()


@pytest.mark.parametrize("dtype", [np.uint8, "uint8", np.dtype("u1"), "u1"])
def test_spellings_of_uint8(dtype: Any):
    assert kernels.quantize(X, P, dtype=dtype).dtype == np.uint8


def test_zero_points():
    p = QuantParams(0.5, -3, 4)
    assert (p.zero_point, p.unsigned_zero_point) == (-3, 5)
    c = ChannelParams(SCALES, [1, -2, 3], 4)
    assert c.zero_point.tolist() == [1, -2, 3]
    assert c.unsigned_zero_point.tolist() == [9, 6, 11]
    with pytest.raises(AttributeError):
        p.zero_point = 3  # type: ignore[misc]


# ------------------------------------------------------------------------------------ channels


@st.composite
def channels(draw: st.DrawFn) -> tuple[np.ndarray, ChannelParams]:
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    bits = draw(st.integers(2, 8))
    count = shape[axis]
    scale = draw(st.lists(cases.floats32(1e-6, 1e3), min_size=count, max_size=count))
    limits = st.integers(*naive.limits(bits))
    offset = draw(st.one_of(limits, st.lists(limits, min_size=count, max_size=count)))
    x = cases.normal(np.random.default_rng(draw(st.integers(0, 999))), *shape)
    x = np.where(x > 1, np.float32(scale[0]) * np.round(x * 9) / 2, x * np.float32(scale[-1]) * 40)
    order = draw(st.permutations(range(len(shape))))
    x = np.ascontiguousarray(x.astype(np.float32).transpose(order)).transpose(np.argsort(order))
    return x, ChannelParams(np.array(scale, np.float32), offset, bits, axis)


@pytest.mark.parametrize("device", DEVICES)
@cases.examples(150)
@given(channels())
def test_channels_equal_calls_for_each(device: str, case: tuple[np.ndarray, ChannelParams]):
    x, params = case
    for call, data, settings in (
        (kernels.quantize, x, {}),
        (kernels.quantize, x, {"dtype": np.uint8}),
        (kernels.fake_quantize, x, {}),
        (kernels.dequantize, kernels.quantize(x, params), {}),
        (kernels.dequantize, kernels.quantize(x, params, dtype=np.uint8), {}),
    ):
        got = call(data, params, device=device, **settings)
        for c in range(params.scale.size):
            one = np.asarray(np.take(data, c, params.axis))
            want = call(one, params.channel(c), device="reference", **settings)
            part = np.asarray(np.take(got, c, params.axis))
            assert part.dtype == want.dtype
            assert part.tobytes() == want.tobytes()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("shape", "axis"), [((0, 3), 1), ((2, 0, 4), 1), ((3, 0), 0)])
def test_channels_of_nothing(shape: tuple[int, ...], axis: int, device: str):
    params = ChannelParams(np.ones(shape[axis], np.float32), axis=axis)
    x = np.zeros(shape, np.float32)
    assert kernels.quantize(x, params, device=device).shape == shape
    assert kernels.dequantize(x.astype(np.int8), params, device=device).shape == shape
    assert kernels.fake_quantize(x, params, device=device).shape == shape


@pytest.mark.parametrize("device", DEVICES)
def test_channels_that_do_not_fit_and_nan_are_refused(device: str):
    params = ChannelParams(SCALES)
    for x in (np.zeros((3, 2), np.float32), np.zeros(3, np.float32), np.zeros((), np.float32)):
        for call in (kernels.quantize, kernels.fake_quantize):
            with pytest.raises(ValueError, match="3 scales do not fit axis 1 of shape"):
                call(x, params, device=device)
        with pytest.raises(ValueError, match="3 scales do not fit axis 1 of shape"):
            kernels.dequantize(x.astype(np.int8), params, device=device)
    x = X.copy()
    x[1, 2, 3] = np.nan
    for call in (kernels.quantize, kernels.fake_quantize):
        with pytest.raises(ValueError, match="x holds NaN"):
            call(x, params, device=device)


def test_channel_params_are_checked_and_never_change():
    given = SCALES.copy()
    params = ChannelParams(given, np.array([1, 2, 3], np.int64), 4, axis=-1)
    given[0] = 9
    assert params.scale.tolist() == SCALES.tolist()
    assert (params.scale.dtype, params.zero_point.dtype) == (np.float32, np.int32)
    assert (params.low, params.high) == (-8, 7)
    assert params.channel(2) == QuantParams(float(SCALES[2]), 3, 4)
    for array in (params.scale, params.zero_point):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    for wrong, error, message in (
        ({"scale": [1.0, 0.0]}, ValueError, "scale must be positive and finite"),
        ({"scale": [1.0, np.nan]}, ValueError, "scale must be positive and finite"),
        ({"scale": np.ones((2, 1))}, ValueError, "scale must be positive and finite"),
        ({"scale": SCALES, "offset": [1, 2]}, ValueError, "offset must be one or 3 integers"),
        ({"scale": SCALES, "offset": [0, 0, 128]}, ValueError, r"offset must be in \[-128, 127\]"),
        ({"scale": SCALES, "offset": 8, "bits": 4}, ValueError, r"offset must be in \[-8, 7\]"),
        ({"scale": SCALES, "offset": 0.5}, TypeError, "offset must be integers, not float64"),
        ({"scale": SCALES, "bits": 9}, ValueError, "bits must be"),
        ({"scale": SCALES, "axis": 0.0}, TypeError, "axis must be an integer"),
    ):
        with pytest.raises(error, match=message):
            ChannelParams(**wrong)
