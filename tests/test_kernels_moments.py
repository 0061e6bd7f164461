"""Moments of two arrays, and the line between them, against the oracle and least squares."""

from __future__ import annotations

import kernel_cases as cases
import naive
import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels import ChannelMoments, channel_moments

DEVICES = cases.DEVICES


@cases.examples(60)
@given(st.data(), st.tuples(*[st.integers(1, 4)] * 2, st.integers(1, 11)))
def test_sums_equal_the_oracle(data: st.DataObject, shape: tuple[int, int, int]):
    size = shape[0] * shape[1] * shape[2]
    value = st.one_of(cases.floats32(-1e4, 1e4), st.sampled_from([0.0, -1.0, 1e-30, 1e15]))
    x, y = (
        np.array(data.draw(st.lists(value, min_size=size, max_size=size)), np.float32).reshape(
            shape
        )
        for _ in range(2)
    )
    want = np.array(naive.channel_sums(x.tolist(), y.tolist())).T
    for device in DEVICES:
        m = channel_moments(x, y, device=device)
        assert m.count == shape[0] * shape[2]
        size_of = np.abs(np.array(naive.channel_sums(np.abs(x).tolist(), np.abs(y).tolist()))).T
        for got, exact, room in zip((m.x, m.y, m.xx, m.yy, m.xy), want, size_of, strict=True):
            assert got.dtype == np.float64
            assert (np.abs(got - exact) <= 1e-14 * room).all()


def test_the_line_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(6, 5, 40)).astype(np.float32)
    x = (y * rng.uniform(0.9, 1.1, 5)[:, None] + rng.normal(size=5)[:, None]).astype(np.float32)
    x += rng.normal(size=x.shape).astype(np.float32) / 10
    m = channel_moments(x, y)
    gain = m.gain(0.5, 2.0)
    shift, noise = m.shift(gain), m.noise(gain, m.shift(gain))
    for c in range(5):
        a, b = x[:, c].ravel().astype(np.float64), y[:, c].ravel().astype(np.float64)
        (want_gain, want_shift), (left,), *_ = np.linalg.lstsq(
            np.stack([b, np.ones_like(b)], 1), a, rcond=None
        )
        assert gain[c] == pytest.approx(want_gain, rel=1e-9)
        assert shift[c] == pytest.approx(want_shift, rel=1e-7)
        assert noise[c] == pytest.approx(left / a.size, rel=1e-7)
    assert m.noise() == pytest.approx(((x - y).astype(np.float64) ** 2).mean(axis=(0, 2)), rel=1e-5)
    assert m.shift() == pytest.approx((x.astype(np.float64) - y).mean(axis=(0, 2)), rel=1e-9)


def test_a_gain_is_kept_within_limits_and_one_where_nothing_varies():
    y = np.array([[[1, 2, 3], [1, 2, 3], [7, 7, 7]]], np.float32)
    x = y * np.array([9, -1, 3], np.float32)[:, None]
    gain = channel_moments(x, y).gain(0.8, 1.25)
    assert gain.tolist() == [1.25, 0.8, 1.0]


def test_a_common_gain_is_that_of_all_channels_about_their_own_means():
    rng = np.random.default_rng(1)
    y = rng.normal(size=(4, 3, 9)).astype(np.float32) + 5
    x = 1.1 * y + np.array([0, 10, -3], np.float32)[:, None]
    assert channel_moments(x, y).gain(0.8, 1.25, common=True) == pytest.approx([1.1], rel=1e-6)


def test_moments_of_parts_add_up():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 7, 3, 4)).astype(np.float32)
    whole = channel_moments(x, y)
    parts = channel_moments(x[:2], y[:2]) + channel_moments(x[2:], y[2:])
    assert isinstance(parts, ChannelMoments)
    assert parts.count == whole.count
    assert parts.xy == pytest.approx(whole.xy, rel=1e-14)


def test_any_number_of_threads_gives_the_same_bits():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 5, 6, 37, 3)).astype(np.float32)
    before, sums = numba.get_num_threads(), []
    try:
        for threads in (1, before):
            numba.set_num_threads(threads)
            m = channel_moments(x, y)
            sums.append(np.stack([m.x, m.y, m.xx, m.yy, m.xy]).tobytes())
    finally:
        numba.set_num_threads(before)
    assert sums[0] == sums[1]


def test_what_cannot_be_compared_is_refused():
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="alike"):
        channel_moments(x, np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match="alike"):
        channel_moments(x[0], x[0])
    with pytest.raises(ValueError, match="empty"):
        channel_moments(x[:0], x[:0])
    with pytest.raises(TypeError):
        channel_moments(x.astype(np.float64), x)
    with pytest.raises(ValueError, match="tpu"):
        channel_moments(x, x, device="tpu")
