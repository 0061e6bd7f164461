"""Inner product: exact integers against the oracle and between devices, floats to tolerance."""

from __future__ import annotations

import threading
from typing import Any

import kernel_cases as cases
import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels import OutputStage, QuantParams, conv2d_int8, inner_product, inner_product_int8

DEVICES = cases.DEVICES
sizes = st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(1, 20))


def int8_case(m: int, k: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    bias = rng.integers(-(2**20), 2**20, n).astype(np.int32)
    return cases.int8s(rng, m, k), cases.int8s(rng, n, k), bias


@cases.examples(100)
@given(sizes, st.integers(0, 10**6), st.integers(-128, 127), st.data())
def test_int8_equals_the_oracle_on_every_device(size, seed, x_offset, data):
    x, w, bias = int8_case(*size, seed)
    case = data.draw(cases.stages(size[2]))
    sums = naive.inner_product((x.astype(int) - x_offset).tolist(), w.tolist(), bias.tolist())
    want = cases.stored(sums, case)
    for device in DEVICES:
        got = inner_product_int8(x, w, bias, x_offset=x_offset, output=case.output, device=device)
        assert got.dtype == case.dtype
        np.testing.assert_array_equal(got, want, err_msg=device)


@pytest.mark.parametrize(
    "size", [(1, 1, 1), (1, 1030, 67), (65, 33, 17), (130, 15, 3), (7, 16, 16), (64, 64, 64)]
)
def test_int8_devices_agree_on_larger_shapes(size: tuple[int, int, int]):
    x, w, bias = int8_case(*size, 3)
    for output in (None, OutputStage(1e-3), OutputStage(1e-3, params=QuantParams(0.5, 5))):
        one, two = (
            inner_product_int8(x, w, bias, x_offset=-77, output=output, device=d) for d in DEVICES
        )
        np.testing.assert_array_equal(one, two)
    sums = (x.astype(int) + 77) @ w.T.astype(int) + bias
    np.testing.assert_array_equal(inner_product_int8(x, w, bias, x_offset=-77), sums)


@pytest.mark.parametrize("device", DEVICES)
def test_the_extremes_do_not_saturate_on_the_way(device: str):
    depth = 2**31 // (255 * 128)  # as deep as int32 allows
    x, w = np.full((1, depth), -128, np.int8), np.full((1, depth), -128, np.int8)
    got = inner_product_int8(x, w, x_offset=127, device=device)
    assert got.item() == 255 * 128 * depth
    with pytest.raises(OverflowError, match="output channel 0 could sum up to"):
        inner_product_int8(np.tile(x, 2), np.tile(w, 2), device=device)


@cases.examples(60)
@given(sizes, st.integers(0, 10**6))
def test_float_equals_the_oracle_in_float64(size: tuple[int, int, int], seed: int):
    m, k, n = size
    rng = np.random.default_rng(seed)
    x, w, bias = cases.normal(rng, m, k), cases.normal(rng, n, k), cases.normal(rng, n)
    want = np.array(naive.inner_product(x.tolist(), w.tolist(), bias.tolist()))
    bound = np.array(naive.inner_product(*(np.abs(a).tolist() for a in (x, w, bias))))
    for device in DEVICES:
        got = inner_product(x, w, bias, device=device)
        assert (got.dtype, got.shape) == (np.float32, (m, n))
        assert (np.abs(got - want) <= 1e-6 * bound + 1e-30).all()


@pytest.mark.parametrize("device", DEVICES)
def test_an_empty_batch_gives_an_empty_result(device: str):
    x, w = np.zeros((0, 3), np.int8), np.zeros((4, 3), np.int8)
    for output in (None, OutputStage(1.0), OutputStage(1.0, params=QuantParams(1.0))):
        assert inner_product_int8(x, w, output=output, device=device).shape == (0, 4)
    got = inner_product(x.astype(np.float32), w.astype(np.float32), device=device)
    assert (got.shape, got.dtype) == ((0, 4), np.float32)


@pytest.mark.parametrize("device", DEVICES)
def test_strided_and_read_only_arrays_give_the_same(device: str):
    rng = np.random.default_rng(0)
    x, w = cases.int8s(rng, 6, 20).T[::-2], cases.int8s(rng, 12, 9).T[:, ::2]
    w.flags.writeable = False
    bias = np.arange(18, dtype=np.int32)[::2]
    got = inner_product_int8(x, w, bias, x_offset=3, device=device)
    np.testing.assert_array_equal(got, (x.astype(int) - 3) @ w.T.astype(int) + bias)
    real = inner_product(*(a.astype(np.float32) for a in (x, w, bias)), device=device)
    np.testing.assert_array_equal(real, x.astype(int) @ w.T.astype(int) + bias)


def test_several_threads_may_call_at_once():
    x, w, bias = int8_case(9, 70, 50, 1)
    image, taps = x[None, None], w[:1, :9].reshape(1, 1, 3, 3)
    want = inner_product_int8(x, w, bias, device="reference")
    picture = conv2d_int8(image, taps, device="reference")
    wrong: list[str] = []

    def call() -> None:
        for _ in range(20):
            if (inner_product_int8(x, w, bias, device="cpu") != want).any():
                wrong.append("inner product")
            if (conv2d_int8(image, taps, device="cpu") != picture).any():
                wrong.append("convolution")

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


X, W = np.zeros((2, 4), np.int8), np.zeros((3, 4), np.int8)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": X[0]}, ValueError, "x must have 2 dimensions"),
        ({"x": X.astype(np.uint8)}, TypeError, "x must be int8, not uint8"),
        ({"x": X.tolist()}, TypeError, "x must be a NumPy array, not list"),
        ({"w": W[0]}, ValueError, "w must have 2 dimensions"),
        ({"w": W.astype(np.int16)}, TypeError, "w must be int8, not int16"),
        ({"w": W[:, :3]}, ValueError, r"x \(2, 4\) and w \(3, 3\)"),
        ({"x": X[:, :0], "w": W[:, :0]}, ValueError, "x is empty"),
        ({"w": W[:0]}, ValueError, "w is empty"),
        ({"bias": np.zeros(3, np.int64)}, TypeError, "bias must be int32"),
        ({"bias": np.zeros(2, np.int32)}, ValueError, r"bias must be int32 of shape \(3,\)"),
        ({"bias": [0] * 3}, TypeError, "bias must be a NumPy array"),
        ({"device": "gpu"}, ValueError, "device 'gpu' is unknown"),
    ],
)
def test_wrong_arguments_are_named(change: dict, error: type[Exception], message: str):
    arguments: dict[str, Any] = {"x": X, "w": W, **change}
    with pytest.raises(error, match=message):
        inner_product_int8(**arguments)


def test_float_arguments_are_checked_too():
    x, w = X.astype(np.float32), W.astype(np.float32)
    with pytest.raises(TypeError, match="x must be float32, not float64"):
        inner_product(X.astype(np.float64), w)
    with pytest.raises(TypeError, match="w must be float32, not int8"):
        inner_product(x, W)
    with pytest.raises(TypeError, match="bias must be float32"):
        inner_product(x, w, np.zeros(3))
    with pytest.raises(ValueError, match="same second axis"):
        inner_product(x, w[:, :3])
    with pytest.raises(ValueError, match="device 'gpu' is unknown"):
        inner_product(x, w, device="gpu")
