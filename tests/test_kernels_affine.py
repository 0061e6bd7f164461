"""The number format: rounding, quantizing and back, parameters and their limits."""

from __future__ import annotations

import math
from collections.abc import Callable

import kernel_cases as cases
import naive
import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kernels
from kernels import QuantParams
from kernels.checks import abs_sums
from kernels.cpu.jit import round_float32
from kernels.rounding import round_half_away

DEVICES = cases.DEVICES


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@st.composite
def formats(draw: Callable) -> QuantParams:
    bits = draw(st.integers(2, 8))
    offset = draw(st.integers(*naive.limits(bits)))
    return QuantParams(draw(cases.floats32(1e-7, 8e6)), offset, bits)


def near_halves(params: QuantParams) -> st.SearchStrategy[float]:
    """Values around the boundaries between steps, and any others."""
    halves = st.integers(-600, 600).map(lambda i: naive.f32(i / 2 * params.scale))
    beside = st.sampled_from([-math.inf, 0.0, math.inf])
    moved = st.tuples(halves, beside).map(
        lambda p: float(np.nextafter(np.float32(p[0]), np.float32(p[1])))
    )
    return st.one_of(halves, moved, cases.floats32(), beside)


# ------------------------------------------------------------------------------------ rounding


@cases.examples(200)
@given(st.one_of(cases.floats32(), st.integers(-(2**25), 2**25).map(lambda i: i / 2)))
def test_rounding_is_exact_and_away_from_zero(value: float):
    value = naive.f32(value)
    for v in (value, -value):
        assert float(round_half_away(np.float32(v))) == naive.round_half_away(v)


def test_rounding_where_adding_a_half_goes_wrong():
    values = f32(0.49999997, -0.49999997, 0.5, -0.5, 2.5, -2.5, 8388609.0, -8388609.0, 8388607.5)
    want = [0, 0, 1, -1, 3, -3, 8388609, -8388609, 8388608]
    assert round_half_away(values).tolist() == want
    assert math.isnan(round_half_away(np.float32(math.nan)))


# ---------------------------------------------------------------------------- quantize and back


@pytest.mark.parametrize("device", DEVICES)
@cases.examples(150)
@given(st.data())
def test_quantize_and_fake_quantize_equal_the_oracle(device: str, data: st.DataObject):
    p = data.draw(formats())
    values = data.draw(st.lists(near_halves(p), min_size=1, max_size=20))
    q = kernels.quantize(f32(*values), p, device=device)
    assert q.dtype == np.int8
    assert q.tolist() == [naive.quantize(v, p.scale, p.offset, p.bits) for v in values]
    fake = kernels.fake_quantize(f32(*values), p, device=device)
    assert fake.dtype == np.float32
    assert fake.tolist() == [naive.dequantize(int(i), p.scale, p.offset) for i in q]


@pytest.mark.parametrize("device", DEVICES)
@cases.examples(50)
@given(formats())
def test_every_integer_survives_the_way_to_real_and_back(device: str, p: QuantParams):
    q = np.arange(p.low, p.high + 1, dtype=np.int8)
    x = kernels.dequantize(q, p, device=device)
    assert x.tolist() == [naive.dequantize(int(i), p.scale, p.offset) for i in q]
    assert kernels.quantize(x, p, device=device).tolist() == q.tolist()
    assert not np.signbit(x[q == p.offset]).any()
    assert kernels.quantize(f32(0.0), p, device=device).tolist() == [p.offset]


@pytest.mark.parametrize("device", DEVICES)
def test_division_not_multiplication_by_the_reciprocal(device: str):
    scale = np.float32(0.0003)
    k = np.arange(-127, 127, dtype=np.float32)
    x = (k + np.float32(0.5)) * scale
    differ = round_half_away(x / scale) != round_half_away(x * (np.float32(1) / scale))
    assert differ.any()
    got = kernels.quantize(x, QuantParams(float(scale)), device=device)
    assert got.tolist() == [naive.quantize(float(v), float(scale), 0) for v in x]


@pytest.mark.parametrize("device", DEVICES)
@cases.examples(80)
@given(st.data())
def test_requantize_equals_the_oracle(device: str, data: st.DataObject):
    p = data.draw(formats())
    channels, inner = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    totals = data.draw(
        st.lists(
            st.integers(-(2**31), 2**31 - 1),
            min_size=2 * channels * inner,
            max_size=2 * channels * inner,
        )
    )
    count = data.draw(st.sampled_from([1, channels]))
    units = data.draw(st.lists(cases.floats32(1e-9, 1e3), min_size=count, max_size=count))
    acc = np.array(totals, np.int32).reshape(2, channels, inner)
    got = kernels.requantize(acc, f32(*units), p, device=device)
    want = [
        [
            [naive.requantize(int(v), units[c % count], p.scale, p.offset, p.bits) for v in row]
            for c, row in enumerate(image)
        ]
        for image in acc
    ]
    assert got.dtype == np.int8
    assert got.tolist() == want


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (40000,), (2, 3, 5)])
def test_any_shape_is_kept(device: str, shape: tuple[int, ...]):
    x = np.full(shape, 1.5, np.float32)
    p = QuantParams(0.25, -3)
    q = kernels.quantize(x, p, device=device)
    assert (q.shape, q.dtype) == (shape, np.int8)
    assert (q == 3).all()
    for real in (
        kernels.dequantize(q, p, device=device),
        kernels.fake_quantize(x, p, device=device),
    ):
        assert (real.shape, real.dtype) == (shape, np.float32)
        assert (real == 1.5).all()
    sums = np.full(shape, 7, np.int32)
    assert kernels.requantize(sums, 0.25, p, device=device).shape == shape


@pytest.mark.parametrize("device", DEVICES)
def test_strided_and_read_only_arrays_work_and_are_not_changed(device: str):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    base.flags.writeable = False
    p = QuantParams(1.0, -100)
    for x in (base, base.T, base[::2, ::-1], base[:, 1:2], np.broadcast_to(np.float32(3), (2, 2))):
        got = kernels.quantize(x, p, device=device)
        assert got.tolist() == (x.astype(int) - 100).tolist()


@pytest.mark.parametrize("device", DEVICES)
def test_nan_is_refused_and_infinities_saturate(device: str):
    p = QuantParams(0.1)
    for call in (kernels.quantize, kernels.fake_quantize):
        with pytest.raises(ValueError, match="x holds NaN"):
            call(f32(1, math.nan, 2), p, device=device)
    got = kernels.quantize(f32(math.inf, -math.inf, 3e38, -3e38), p, device=device)
    assert got.tolist() == [127, -128, 127, -128]


@pytest.mark.parametrize("device", DEVICES)
def test_wrong_arguments_are_named(device: str):
    p, good = QuantParams(1.0), np.zeros((2, 3), np.int32)
    with pytest.raises(TypeError, match="x must be float32, not float64"):
        kernels.quantize(np.zeros(2), p, device=device)
    with pytest.raises(TypeError, match="x must be float32, not >f4"):
        kernels.quantize(np.zeros(2, ">f4"), p, device=device)
    with pytest.raises(TypeError, match="x must be a NumPy array, not list"):
        kernels.fake_quantize([1.0], p, device=device)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="q must be int8, not uint16"):
        kernels.dequantize(np.zeros(2, np.uint16), p, device=device)
    with pytest.raises(TypeError, match="acc must be int32, not int64"):
        kernels.requantize(np.zeros(2, np.int64), 1.0, p, device=device)
    for wrong in (0.0, -1.0, math.nan, math.inf, 1e39, np.ones((3, 1))):
        with pytest.raises(ValueError, match="scale must be positive and finite"):
            kernels.requantize(good, wrong, p, device=device)
    for acc in (good, np.zeros(2, np.int32)):
        with pytest.raises(ValueError, match="2 scales do not fit"):
            kernels.requantize(acc, f32(1, 1), p, device=device)


def test_an_unknown_device_is_refused_with_the_choice():
    with pytest.raises(ValueError, match="'gpu' is unknown; choose one of reference, cpu"):
        kernels.quantize(f32(1), QuantParams(1.0), device="gpu")


# ---------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_range_of_a_format(bits: int):
    low, high = naive.limits(bits)
    p = QuantParams(0.5, low, bits)
    assert (p.low, p.high, p.range) == (low, high, (0.0, (high - low) * 0.5))
    assert QuantParams(0.1).scale == naive.f32(0.1)
    for offset in (low - 1, high + 1):
        with pytest.raises(ValueError, match="offset must be in"):
            QuantParams(1.0, offset, bits)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"scale": 0.0}, ValueError, "scale must be"),
        ({"scale": -1.0}, ValueError, "scale must be"),
        ({"scale": math.nan}, ValueError, "scale must be"),
        ({"scale": math.inf}, ValueError, "scale must be"),
        ({"scale": 1e39}, ValueError, "scale must be"),
        ({"scale": 1e-50}, ValueError, "scale must be"),
        ({"scale": 1.0, "offset": 1.5}, TypeError, "offset must be an integer"),
        ({"scale": 1.0, "bits": 1}, ValueError, "bits must be"),
        ({"scale": 1.0, "bits": 9}, ValueError, "bits must be"),
        ({"scale": 1.0, "bits": 8.0}, TypeError, "bits must be an integer"),
    ],
)
def test_impossible_parameters_are_refused(wrong: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        QuantParams(**wrong)


@cases.examples(200)
@given(cases.floats32(-4e6, 4e6), cases.floats32(-4e6, 4e6), st.booleans(), st.integers(2, 8))
def test_params_from_range_cover_it(a: float, b: float, asymmetric: bool, bits: int):
    low, high = min(a, b), max(a, b)
    p = kernels.params_from_range(low, high, asymmetric=asymmetric, bits=bits)
    low, high = min(low, 0.0), max(high, 0.0)
    bottom, top = naive.limits(bits)
    if asymmetric:
        want = naive.guarded(naive.f32(naive.f32(high - low) / (2**bits - 1)))
        offset = bottom - naive.round_half_away(naive.f32(low / want))
        assert (p.scale, p.offset) == (want, min(max(offset, bottom), top))
    else:
        want = high / top if high > -low else -low / -bottom
        assert (p.scale, p.offset) == (naive.guarded(naive.f32(want)), 0)
    slack = p.scale * (0.5 if asymmetric else 1.0) + 1e-6 * max(high, -low)
    assert p.range[0] - slack <= low
    assert p.range[1] + slack >= high


def test_params_from_range_at_the_edges():
    assert kernels.params_from_range(0, 0) == QuantParams(1.0, -128)
    assert kernels.params_from_range(-1e-20, 1e-20) == QuantParams(1.0, -128)
    assert kernels.params_from_range(1, 255) == QuantParams(1.0, -128)
    assert kernels.params_from_range(-255, -1) == QuantParams(1.0, 127)
    assert kernels.params_from_range(-128, 128, asymmetric=False) == QuantParams(1.0, 0)
    for low, high in (
        (0, math.inf),
        (-math.inf, 0),
        (math.nan, 1),
        (0, math.nan),
        (2, 1),
        (0, 1e39),
    ):
        with pytest.raises(ValueError, match="not finite or is upside down"):
            kernels.params_from_range(low, high)
    for low, high in ((-3e38, 3e38), (0, 1e38)):
        with pytest.raises(ValueError, match="out of range"):
            kernels.params_from_range(low, high)


# ------------------------------------------------------------------------------------- weights


@cases.examples(80)
@given(st.integers(0, 10**6), st.sampled_from([0, 1, -1, None]), st.integers(2, 8))
def test_weights_equal_the_oracle(seed: int, axis: int | None, bits: int):
    rng = np.random.default_rng(seed)
    w = cases.normal(rng, 3, 4, 2)
    channels = 1 if axis is None else w.shape[axis]
    scales = rng.uniform(0.001, 1, channels).astype(np.float32)
    q = kernels.quantize_weights(w, scales, channel_axis=axis or 0, bits=bits)
    back = kernels.dequantize_weights(q, scales, channel_axis=axis or 0)
    for index in np.ndindex(*w.shape):
        scale = float(scales[0 if axis is None else index[axis]])
        want = naive.quantize(float(w[index]), scale, 0, bits)
        assert q[index] == want
        assert back[index] == naive.dequantize(want, scale, 0)
    again = kernels.fake_quantize_weights(w, scales, channel_axis=axis or 0, bits=bits)
    assert (again == back).all()


def test_wrong_weights_are_refused():
    w = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="w holds NaN"):
        kernels.quantize_weights(f32(math.nan), f32(1))
    for scales in (f32(0, 1), f32(1, -1), f32(1, math.nan), f32(1, math.inf)):
        with pytest.raises(ValueError, match="scales must be positive and finite"):
            kernels.quantize_weights(w, scales)
    for axis in (1, 2, -3):
        with pytest.raises(ValueError, match="2 scales do not fit axis"):
            kernels.quantize_weights(w, f32(1, 1), channel_axis=axis)
    with pytest.raises(TypeError, match="w must be float32"):
        kernels.quantize_weights(w.astype(np.float64), f32(1))
    with pytest.raises(ValueError, match="bits must be"):
        kernels.quantize_weights(w, f32(1), bits=9)
    assert kernels.quantize_weights(f32(math.inf, -math.inf), f32(1)).tolist() == [127, -128]


@pytest.mark.parametrize("axis", [0, 1, None])
def test_large_weights_are_rounded_in_parts_alike(axis: int | None, monkeypatch):
    rng = np.random.default_rng(3)
    w = cases.normal(rng, 11, 6, 3)
    channels = 1 if axis is None else w.shape[axis]
    scales = rng.uniform(0.001, 0.1, channels).astype(np.float32)
    whole = kernels.quantize_weights(w, scales, channel_axis=axis or 0)
    monkeypatch.setattr("kernels.weights._PART", 40)  # two rows of eleven
    np.testing.assert_array_equal(
        kernels.quantize_weights(w, scales, channel_axis=axis or 0), whole
    )
    w[10, 5, 2] = np.nan  # in the last part
    with pytest.raises(ValueError, match="w holds NaN"):
        kernels.quantize_weights(w, scales, channel_axis=axis or 0)


@cases.examples(40)
@given(st.integers(0, 10**6), st.sampled_from([(0,), (1, 2), (0, 2), ()]))
def test_sums_of_magnitudes_equal_wide_ones(seed: int, axes: tuple[int, ...]):
    w = np.random.default_rng(seed).integers(-128, 128, (4, 3, 5)).astype(np.int8)
    w[0, 0, 0] = -128  # whose magnitude int8 does not hold
    wide = np.abs(w.astype(np.int64)).sum(axis=axes)
    np.testing.assert_array_equal(abs_sums(w, axes), wide)


def test_adding_almost_one_half_rounds_every_float32_alike():
    """All halves below 2**23 with their neighbours, and any bits."""

    @numba.njit
    def rounded(x, out):
        for i in range(x.size):
            out[i] = round_float32(x[i])

    halves = np.arange(1 << 23, dtype=np.float32) + np.float32(0.5)
    bits = np.random.default_rng(3).integers(0, 1 << 32, 1 << 22, dtype=np.uint32)
    beside = [np.nextafter(halves, np.float32(end)) for end in (0, np.inf)]
    for x in (halves, -halves, *beside, -beside[0], bits.view(np.float32)):
        out = np.empty_like(x)
        rounded(x, out)
        with np.errstate(invalid="ignore"):  # infinity less itself
            wanted = round_half_away(x)
        np.testing.assert_array_equal(out, wanted)
