"""Average and maximum pooling: Caffe's windows, exact integers, floats to tolerance."""

from __future__ import annotations

import math
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
    avg_pool2d,
    avg_pool2d_int8,
    max_pool2d,
    pool_output_size,
)

DEVICES = cases.DEVICES


@dataclass(frozen=True)
class Layer:
    """Shapes and parameters of one pooling."""

    x: tuple[int, int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]
    ceil_mode: bool

    @property
    def keywords(self) -> dict[str, Any]:
        return {
            "kernel": self.kernel,
            "stride": self.stride,
            "pad": self.pad,
            "ceil_mode": self.ceil_mode,
        }

    @property
    def windows(self) -> list:
        return naive.windows(self.x[2:], self.kernel, self.stride, self.pad, self.ceil_mode)


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    kernel, stride = draw(cases.pairs(1, 4)), draw(cases.pairs(1, 4))
    pad = (draw(st.integers(0, kernel[0] - 1)), draw(st.integers(0, kernel[1] - 1)))
    size = [
        draw(st.integers(max(1, k - 2 * p), max(1, k - 2 * p) + 6))
        for k, p in zip(kernel, pad, strict=True)
    ]
    x = (draw(st.integers(1, 2)), draw(st.integers(1, 3)), *size)
    return Layer(x, kernel, stride, pad, draw(st.booleans()))  # type: ignore[arg-type]


def over_windows(layer: Layer, x: np.ndarray, dtype: type, value: Any) -> np.ndarray:
    """Apply ``value(plane, window, channel)`` to every window of every plane."""
    windows = layer.windows
    out = np.empty((*layer.x[:2], len(windows), len(windows[0])), dtype)
    for n, c, i, j in np.ndindex(*out.shape):
        out[n, c, i, j] = value(x[n, c].tolist(), windows[i][j], c)
    return out


# ---------------------------------------------------------------------------------- average


@cases.examples(100)
@given(layers(), st.integers(0, 10**6), st.integers(-128, 127), st.data())
def test_int8_average_equals_the_oracle_on_every_device(layer, seed, x_offset, data):
    assume(all(count for row in layer.windows for _, count in row))
    x = cases.int8s(np.random.default_rng(seed), *layer.x)
    case = data.draw(cases.stages(layer.x[1], shifts=False, sums=False))
    want = over_windows(
        layer,
        x,
        case.dtype,
        lambda plane, window, c: naive.average_int8(plane, x_offset, window, case.naive[c]),
    )
    for device in DEVICES:
        got = avg_pool2d_int8(
            x, x_offset=x_offset, output=case.output, device=device, **layer.keywords
        )
        assert got.dtype == case.dtype
        np.testing.assert_array_equal(got, want, err_msg=device)


@cases.examples(100)
@given(layers(), st.integers(0, 10**6))
def test_float_average_equals_the_oracle(layer: Layer, seed: int):
    assume(all(count for row in layer.windows for _, count in row))
    x = cases.normal(np.random.default_rng(seed), *layer.x)
    want = over_windows(layer, x, np.float64, lambda plane, window, c: naive.average(plane, window))
    results = [avg_pool2d(x, device=d, **layer.keywords) for d in DEVICES]
    for got in results:
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=2e-6)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("device", DEVICES)
def test_a_kernel_larger_than_the_image_by_less_than_its_stride_has_one_window(device: str):
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    assert avg_pool2d(x, 3, stride=2, device=device).tolist() == [[[[1.5]]]]
    assert max_pool2d(x, 3, stride=2, device=device).tolist() == [[[[3]]]]


@pytest.mark.parametrize("device", DEVICES)
def test_padding_counts_as_zeros_but_not_beyond_it(device: str):
    x = np.full((1, 1, 3, 3), 4, np.float32)
    got = avg_pool2d(x, 3, stride=2, pad=1, device=device)
    assert got.tolist() == [[[[naive.f32(16 / 9)] * 2] * 2]]
    ceil = avg_pool2d(x[:, :, :2, :2], 2, stride=1, pad=1, device=device)
    assert ceil.tolist() == [[[[1, 2, 1], [2, 4, 2], [1, 2, 1]]]]
    cut = avg_pool2d(np.ones((1, 1, 4, 4), np.float32), 3, stride=2, device=device)
    assert cut.tolist() == [[[[1, 1], [1, 1]]]]  # the last windows are cut: 2 x 3 values count
    q = np.full((1, 1, 2, 2), -128, np.int8)  # every value a real zero, as is the padding
    output = OutputStage(0.5, params=QuantParams(0.5, -128))
    got = avg_pool2d_int8(q, 3, pad=1, x_offset=-128, output=output, device=device)
    assert (got == -128).all()


@pytest.mark.parametrize("device", DEVICES)
def test_a_window_that_covers_nothing_is_divided_as_in_caffe(device: str):
    x = np.ones((1, 1, 4, 5), np.int8)
    output = OutputStage(1.0)
    # Caffe: the sum, 0, over (end - start) of both axes, which is 0 or negative outside
    for stride, last in (((2, 1), math.nan), ((1, 3), -0.0), ((3, 3), -0.0), ((5, 6), 0.0)):
        for got in (
            avg_pool2d_int8(x, 1, stride=stride, output=output, device=device),
            avg_pool2d(x.astype(np.float32), 1, stride=stride, device=device),
        ):
            assert got[0, 0, 0, 0] == 1
            np.testing.assert_array_equal(got[0, 0, -1, -1], last)
            assert math.isnan(last) or np.signbit(got[0, 0, -1, -1]) == np.signbit(last)
    store = OutputStage(1.0, params=QuantParams(0.5, 3))
    with pytest.raises(ValueError, match="no average to quantize"):
        avg_pool2d_int8(x, 1, stride=2, output=store, device=device)
    assert avg_pool2d_int8(x, 1, stride=3, output=store, device=device)[0, 0, -1, -1] == 3
    got = avg_pool2d_int8(x, 1, stride=2, ceil_mode=False, output=output, device=device)
    assert got.tolist() == [[[[1, 1, 1], [1, 1, 1]]]]


# ---------------------------------------------------------------------------------- maximum


def greatest(plane: Any, window: Any, columns: int) -> tuple[float, int]:
    """The maximum as Caffe finds it: first, from -FLT_MAX, by ``>``."""
    best, at = -cases.FLOAT_MAX, -1
    for r, c in window[0]:
        if plane[r][c] > best:
            best, at = plane[r][c], r * columns + c
    return best, at


@cases.examples(100)
@given(layers(), st.integers(0, 10**6))
def test_maximum_and_its_place_equal_the_oracle(layer: Layer, seed: int):
    rng = np.random.default_rng(seed)
    x = rng.choice([-2, -1, 0, 1, 2, 3, np.nan, -np.inf, -3e38], layer.x).astype(np.float32)
    columns = layer.x[3]
    want = over_windows(layer, x, np.float32, lambda p, w, _: greatest(p, w, columns)[0])
    place = over_windows(layer, x, np.int64, lambda p, w, _: greatest(p, w, columns)[1])
    for device in DEVICES:
        got, where = max_pool2d(x, return_indices=True, device=device, **layer.keywords)
        assert (got.dtype, where.dtype) == (np.float32, np.int64)
        np.testing.assert_array_equal(got, want, err_msg=device)
        np.testing.assert_array_equal(where, place, err_msg=device)
        only = max_pool2d(x, device=device, **layer.keywords)
        np.testing.assert_array_equal(only, want)


# ------------------------------------------------------------------------------------ sizes


@cases.examples(200)
@given(layers())
def test_sizes_equal_the_oracle(layer: Layer):
    padded = any(layer.pad)
    sizes = [
        pool_output_size(s, k, t, p, layer.ceil_mode, padded=padded)
        for s, k, t, p in zip(layer.x[2:], layer.kernel, layer.stride, layer.pad, strict=True)
    ]
    assert tuple(sizes) == naive.pool_sizes(
        layer.x[2:], layer.kernel, layer.stride, layer.pad, layer.ceil_mode
    )


def test_a_window_beyond_the_image_goes_on_both_axes_where_one_is_padded():
    x = np.ones((1, 1, 4, 4), np.float32)
    for device in DEVICES:
        assert max_pool2d(x, (3, 1), stride=(1, 2), pad=(1, 0), device=device).shape[2:] == (4, 2)
        assert avg_pool2d(x, (3, 1), stride=(1, 2), pad=(1, 0), device=device).shape[2:] == (4, 2)
        assert max_pool2d(x, (3, 1), stride=(1, 2), device=device).shape[2:] == (2, 3)


# ------------------------------------------------------------------------------------ edges


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5)])
def test_an_empty_batch_gives_an_empty_result(device: str, shape: tuple):
    x = np.zeros(shape, np.float32)
    assert avg_pool2d(x, 2, device=device).shape == (*shape[:2], 3, 4)
    assert max_pool2d(x, 2, device=device).shape == (*shape[:2], 3, 4)
    for params in (None, QuantParams(1.0)):
        output = OutputStage(1.0, params=params)
        got = avg_pool2d_int8(x.astype(np.int8), 2, output=output, device=device)
        assert got.shape == (*shape[:2], 3, 4)


@pytest.mark.parametrize("device", DEVICES)
def test_strided_and_read_only_arrays_give_the_same(device: str):
    base = cases.normal(np.random.default_rng(0), 6, 5, 3, 4)
    x = base.T[::2, :, ::-1]
    x.flags.writeable = False
    same = np.ascontiguousarray(x)
    for pool in (avg_pool2d, max_pool2d):
        np.testing.assert_array_equal(pool(x, 2, device=device), pool(same, 2, device=device))


@pytest.mark.parametrize("device", DEVICES)
def test_one_value_and_the_whole_image(device: str):
    x = np.arange(30, dtype=np.float32).reshape(1, 1, 5, 6)
    assert avg_pool2d(x, (5, 6), device=device).item() == 14.5
    assert max_pool2d(x, (5, 6), device=device).item() == 29
    np.testing.assert_array_equal(avg_pool2d(x, 1, device=device), x)
    np.testing.assert_array_equal(max_pool2d(x, 1, device=device), x)
    q = np.full((1, 1, 60, 60), -128, np.int8)
    got = avg_pool2d_int8(q, 60, x_offset=127, output=OutputStage(1.0), device=device)
    assert got.item() == pytest.approx(-255)


X = np.zeros((1, 2, 5, 5), np.float32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": X[0]}, ValueError, "x must have 4 dimensions"),
        ({"x": X.astype(np.float64)}, TypeError, "x must be float32, not float64"),
        ({"x": X[:, :, :0]}, ValueError, "x is empty"),
        ({"kernel": 0}, ValueError, "kernel must be"),
        ({"kernel": 6}, ValueError, "kernel 6 is larger than the padded size 5"),
        ({"kernel": 7, "stride": 2}, ValueError, "kernel 7 is larger than the padded size 5"),
        ({"kernel": 2.0}, TypeError, "kernel must be"),
        ({"stride": 0}, ValueError, "stride must be"),
        ({"stride": (1, 2, 3)}, TypeError, "stride must be"),
        ({"pad": -1}, ValueError, "pad must be"),
        ({"pad": 2}, ValueError, "pad 2 must be less than the kernel 2"),
        ({"pad": (0, 3)}, ValueError, "pad 3 must be less than the kernel 2"),
        ({"device": "gpu"}, ValueError, "device 'gpu' is unknown"),
    ],
)
def test_wrong_arguments_are_named(change: dict, error: type[Exception], message: str):
    for pool in (avg_pool2d, max_pool2d):
        with pytest.raises(error, match=message):
            pool(**{"x": X, "kernel": 2, **change})


def test_wrong_int8_arguments_are_named():
    q, output = np.zeros((1, 2, 5, 5), np.int8), OutputStage(1.0)
    with pytest.raises(TypeError, match="x must be int8, not float32"):
        avg_pool2d_int8(X, 2, output=output)
    with pytest.raises(ValueError, match=r"output\.shift is not for pooling"):
        avg_pool2d_int8(q, 2, output=OutputStage(1.0, np.array([0, 3])))
    with pytest.raises(ValueError, match=r"output\.scale must have 1 or 2 entries"):
        avg_pool2d_int8(q, 2, output=OutputStage(np.ones(3, np.float32)))
    with pytest.raises(ValueError, match="x_offset must be"):
        avg_pool2d_int8(q, 2, x_offset=128, output=output)
    for size in (0, math.nan):
        with pytest.raises((ValueError, TypeError), match="kernel must be"):
            avg_pool2d_int8(q, size, output=output)  # type: ignore[arg-type]
    tall = np.zeros((1, 1, 3000, 3000), np.int8)
    with pytest.raises(OverflowError, match="can sum beyond int32"):
        avg_pool2d_int8(tall, 3000, output=output)
