"""Rounding with compensation, against GPTQ as published, and the moments against plain loops."""

from __future__ import annotations

import kernel_cases as cases
import naive
import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels import ColumnMoments, column_moments, compensated_rounding, conv2d, deconv2d
from kernels.conv import ConvGeometry

DEVICES = cases.DEVICES


@cases.examples(60)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 2), cases.pairs(1, 3), cases.pairs(1, 2), cases.pairs(0, 2),
    cases.pairs(1, 2), st.integers(1, 2), st.integers(1, 2), st.integers(-128, 127),
)  # fmt: skip
def test_moments_equal_plain_loops(seed, n, kernel, stride, pad, dilation, group, per, zero):
    rng = np.random.default_rng(seed)
    x = rng.integers(-128, 128, (n, group * per, 6, 5)).astype(np.int8)
    out = conv2d(
        x.astype(np.float32), np.zeros((group, per, *kernel), np.float32),
        stride=stride, pad=pad, dilation=dilation, group=group, device="reference",
    ).shape[2:]  # fmt: skip
    g = ConvGeometry(kernel, stride, pad, dilation, group, (out[0], out[1]))
    places = n * out[0] * out[1]
    chosen = rng.choice(places, int(rng.integers(1, places + 1)), replace=False)
    m = column_moments(x, zero, g, chosen)
    for k in range(group):
        channels = range(k * per, (k + 1) * per)
        columns = []
        for position in chosen:
            image, rest = divmod(int(position), out[0] * out[1])
            i, j = divmod(rest, out[1])
            columns.append(
                naive.column(x.tolist(), image, i, j, channels, kernel, stride, pad, dilation, zero)
            )
        exact = np.array(columns, np.int64)
        assert m.count == len(chosen)
        assert (m.sums[k] == exact.sum(axis=0)).all()
        assert (m.products[k] == exact.T @ exact).all()


@pytest.mark.parametrize(("kernel", "stride", "pad"), [(3, 2, 1), (4, 2, 1), (2, 3, 0), (1, 1, 0)])
def test_columns_of_a_deconvolution_are_what_its_weights_meet(kernel, stride, pad):
    rng = np.random.default_rng(kernel)
    x = rng.integers(-128, 128, (2, 3, 4, 5)).astype(np.int8)
    w = rng.normal(size=(3, 2, kernel, kernel)).astype(np.float32)
    y = deconv2d((x - np.int16(7)).astype(np.float32), w, stride=stride, pad=pad)
    g = ConvGeometry(
        (kernel, kernel), (stride, stride), (pad, pad), (1, 1), 1, (y.shape[2], y.shape[3])
    )
    rows = w.transpose(1, 0, 2, 3).reshape(2, -1).astype(np.float64)
    for place in range(0, 2 * y.shape[2] * y.shape[3], 3):
        m = column_moments(x, 7, g, np.array([place]), transposed=True)
        n, i, j = np.unravel_index(place, (2, *y.shape[2:]))
        assert rows @ m.sums[0] == pytest.approx(y[n, :, i, j], abs=1e-3)


def test_moments_do_not_depend_on_how_they_are_gathered(monkeypatch):
    rng = np.random.default_rng(5)
    x = rng.integers(-128, 128, (2, 4, 8, 8)).astype(np.int8)
    g = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1), 1, (8, 8))
    whole = column_moments(x, -3, g, np.arange(128))
    monkeypatch.setattr("kernels.compensation._CHUNK_BYTES", 1)
    small = column_moments(x, -3, g, np.arange(128)[::-1])
    assert (whole.products == small.products).all()
    halves = column_moments(x, -3, g, np.arange(64)) + column_moments(x, -3, g, np.arange(64, 128))
    assert (halves.products == whole.products).all()
    assert halves.count == whole.count


def moments_of(rng: np.random.Generator, count: int, group: int, size: int) -> ColumnMoments:
    """Moments of integer columns that depend on each other."""
    mix = rng.normal(size=(group, size, size))
    columns = np.rint(20 * rng.normal(size=(group, count, size)) @ mix + 30)
    return ColumnMoments(count, columns.sum(axis=1), columns.transpose(0, 2, 1) @ columns)


@cases.examples(60)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 20), st.integers(1, 9),
    st.integers(2, 60),
)  # fmt: skip
def test_integers_are_those_of_gptq(seed, group, outs, size, count):
    rng = np.random.default_rng(seed)
    moments = moments_of(rng, count, group, size)
    w = rng.normal(size=(group, outs, size)).astype(np.float32)
    scales = rng.uniform(0.005, 0.2, (group, outs)).astype(np.float32)
    q = {d: compensated_rounding(w, scales, moments, device=d) for d in DEVICES}
    # a device may round a sum otherwise: a weight at a tie falls to the other side
    assert all((some == q[DEVICES[0]]).all() or "cuda" in q for some in q.values())
    h = moments.covariance()
    for g in range(group):
        damping = (0.01 + size / count) * (np.trace(h[g]) / size or 1.0)
        want = [naive.gptq(w[g, o], float(scales[g, o]), h[g], damping) for o in range(outs)]
        # a value at a tie may fall to either side by rounding, and others follow
        differ = (q[DEVICES[-1]][g] != np.array(want)).any(axis=1)
        assert differ.sum() <= 0.1 * outs


def test_errors_cancel():
    rng = np.random.default_rng(7)
    moments = moments_of(rng, 500, 2, 24)
    w = rng.normal(size=(2, 30, 24)).astype(np.float32)
    scales = np.full((2, 30), 0.1, np.float32)
    h = moments.covariance()

    def cost(q: np.ndarray) -> float:
        e = w - q * scales[:, :, None]
        return float(np.einsum("goj,gjk,gok->", e, h, e))

    nearest = np.rint(w / 0.1)
    assert cost(compensated_rounding(w, scales, moments)) < 0.6 * cost(nearest)


def test_independent_inputs_are_rounded_to_the_nearest():
    rng = np.random.default_rng(8)
    diagonal = np.eye(6)[None] * rng.uniform(1, 9, 6)
    w = rng.normal(size=(1, 5, 6)).astype(np.float32)
    scales = np.full((1, 5), 0.02, np.float32)
    q = compensated_rounding(w, scales, ColumnMoments(10, np.zeros((1, 6)), diagonal * 10))
    assert (q == np.clip(np.rint(w / np.float32(0.02)), -128, 127)).all()


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_integers_stay_within_their_bits(bits):
    rng = np.random.default_rng(9)
    w = 100 * rng.normal(size=(1, 20, 7)).astype(np.float32)
    scales = np.ones((1, 20), np.float32)
    for device in DEVICES:
        q = compensated_rounding(w, scales, moments_of(rng, 50, 1, 7), bits=bits, device=device)
        assert q.dtype == np.int8
        assert q.min() == -(1 << bits - 1)
        assert q.max() == (1 << bits - 1) - 1


def test_inputs_that_never_vary_and_one_column():
    still = ColumnMoments(4, np.full((1, 3), 8.0), np.full((1, 3, 3), 16.0))
    w = np.array([[[0.4, 1.6, -0.5]]], np.float32)
    one = np.ones((1, 1), np.float32)
    assert compensated_rounding(w, one, still).tolist() == [[[0, 2, -1]]]
    single = ColumnMoments(1, np.array([[3.0]]), np.array([[[9.0]]]))
    assert compensated_rounding(w[:, :, :1], one, single).tolist() == [[[0]]]


def test_any_number_of_threads_gives_the_same_integers():
    rng = np.random.default_rng(10)
    moments = moments_of(rng, 300, 1, 80)
    w = rng.normal(size=(1, 70, 80)).astype(np.float32)
    scales = np.full((1, 70), 0.05, np.float32)
    before, found = numba.get_num_threads(), []
    try:
        for threads in (1, before):
            numba.set_num_threads(threads)
            found.append(compensated_rounding(w, scales, moments).tobytes())
    finally:
        numba.set_num_threads(before)
    assert found[0] == found[1]


def test_what_does_not_fit_is_refused():
    rng = np.random.default_rng(11)
    moments = moments_of(rng, 10, 1, 3)
    w, scales = np.zeros((1, 2, 3), np.float32), np.ones((1, 2), np.float32)
    with pytest.raises(ValueError, match="scales must be"):
        compensated_rounding(w, scales[:, :1], moments)
    with pytest.raises(ValueError, match="moments of"):
        compensated_rounding(w[:, :, :2], scales, moments)
    with pytest.raises(ValueError, match="tpu"):
        compensated_rounding(w, scales, moments, device="tpu")
    x = np.zeros((1, 1, 2, 2), np.int8)
    g = ConvGeometry((1, 1), (1, 1), (0, 0), (1, 1), 1, (2, 2))
    for positions in ([4], [-1], []):
        with pytest.raises(ValueError, match="positions"):
            column_moments(x, 0, g, np.array(positions, np.int64))
    with pytest.raises(TypeError):
        column_moments(x.astype(np.float64), 0, g, np.arange(2))
