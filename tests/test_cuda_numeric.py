"""The numeric operations on a CUDA device, or in numba's simulator, against the reference."""

from __future__ import annotations

import math
from typing import Any

import kernel_cases as cases
import numpy as np
import pytest
from cuda_simulator import SIMULATED, simulator
from hypothesis import given
from hypothesis import strategies as st

import kernels
from kernels import Histogram, IfmrPass, NotFiniteError, QuantParams, dispatch
from kernels.hfmg import hfmg_search

pytestmark = [
    pytest.mark.skipif(
        not SIMULATED and dispatch.best_device()[0] != "cuda",
        reason="needs a CUDA device, or NUMBA_ENABLE_CUDASIM=1 for the simulator",
    ),
    # the simulator's threads compute in NumPy, which warns of what a device does silently
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::Warning:numba"),
]
SHAPES = [(), (0,), (1,), (3, 0, 2), (7,), (2, 3, 5), (1, 1, 43)]


@pytest.fixture(scope="module", autouse=True)
def _simulator():
    with simulator():
        yield


def held(x: np.ndarray) -> Any:
    """Return an array on the device."""
    from numba import cuda

    return cuda.to_device(np.ascontiguousarray(x).reshape(x.shape))


def same(got: Any, want: np.ndarray) -> None:
    """Check dtype, shape and every bit."""
    assert isinstance(got, np.ndarray)
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    assert got.tobytes() == want.tobytes()


def fetched(x: Any) -> np.ndarray:
    """Return what a device array holds, having made sure that it is one."""
    assert not isinstance(x, np.ndarray)
    return x.copy_to_host()


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).normal(size=shape), np.float32)


# -------------------------------------------------------------------------- quantize and back


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_from_host_and_device(shape: tuple[int, ...]):
    x, p = np.asarray(normal(*shape) * np.float32(3)), QuantParams(0.05, -3)
    for name, data in (("quantize", x), ("fake_quantize", x), ("dequantize", x.astype(np.int8))):
        call = getattr(kernels, name)
        want = call(data, p, device="reference")
        same(call(data, p, device="cuda"), want)
        if shape:
            same(fetched(call(held(data), p, device="cuda")), want)


@st.composite
def formats(draw: st.DrawFn) -> QuantParams:
    bits = draw(st.integers(2, 8))
    offset = draw(st.integers(-(1 << (bits - 1)), (1 << (bits - 1)) - 1))
    return QuantParams(draw(cases.floats32(1e-7, 8e6)), offset, bits)


@cases.examples(12)
@given(st.data(), formats())
def test_values_between_steps_and_any_others(data: st.DataObject, p: QuantParams):
    halves = st.integers(-600, 600).map(lambda i: float(np.float32(i / 2 * p.scale)))
    value = st.one_of(halves, cases.floats32(), st.sampled_from([math.inf, -math.inf, -0.0]))
    x = f32(*data.draw(st.lists(value, min_size=1, max_size=40)))
    for call in (kernels.quantize, kernels.fake_quantize):
        same(call(x, p, device="cuda"), call(x, p, device="reference"))


def test_nan_is_counted_and_refused():
    x = normal(50)
    x[[3, 17, 49]] = math.nan
    for call in (kernels.quantize, kernels.fake_quantize):
        for data in (x, held(x)):
            with pytest.raises(ValueError, match=r"x holds NaN \(3 of them\)"):
                call(data, QuantParams(0.1), device="cuda")


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (1, 4, 3, 7), (3, 1, 17), (2, 0, 3), (5,)])
@pytest.mark.parametrize("single", [True, False])
def test_requantize(shape: tuple[int, ...], single: bool):
    rng = np.random.default_rng(1)
    acc = rng.integers(-(2**31), 2**31 - 1, shape).astype(np.int32)
    acc[acc % 2 == 0] //= 2**20
    if len(shape) == 1 or 0 in shape:
        single = True
    scale = rng.uniform(1e-9, 1e-3, 1 if single else shape[1]).astype(np.float32)
    for p in (QuantParams(0.7, 5), QuantParams(0.01, -1, 3)):
        want = kernels.requantize(acc, scale, p, device="reference")
        same(kernels.requantize(acc, scale, p, device="cuda"), want)
        same(fetched(kernels.requantize(held(acc), scale, p, device="cuda")), want)


def test_requantize_in_pieces_of_one_scale():
    acc = np.arange(-2500, 2500, dtype=np.int32)
    p = QuantParams(0.3, 2)
    same(
        kernels.requantize(acc, 0.01, p, device="cuda"),
        kernels.requantize(acc, 0.01, p, device="reference"),
    )


def test_requantize_rounds_the_product_before_it_divides():
    """Where a product and a sum were fused into one rounding, some of these would differ."""
    rng = np.random.default_rng(2)
    acc = rng.integers(-(2**24), 2**24, (1, 300)).astype(np.int32)
    scale = rng.uniform(1e-6, 2e-5, 300).astype(np.float32)
    p = QuantParams(1.0, 0)
    same(
        kernels.requantize(acc, scale, p, device="cuda"),
        kernels.requantize(acc, scale, p, device="reference"),
    )


# ------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("axis", [0, 1, -1, None])
@pytest.mark.parametrize("shape", [(1,), (5, 3), (3, 2, 3, 3), (2, 7, 1)])
def test_weights_by_their_own_scales(shape: tuple[int, ...], axis: int | None):
    if axis == 1 and len(shape) == 1:
        axis = 0
    for bits in (8, 2):
        w = normal(*shape, seed=bits)
        want, scales = kernels.arq_fake_quantize(w, axis, bits=bits, device="reference")
        got, found = kernels.arq_fake_quantize(w, axis, bits=bits, device="cuda")
        same(got, want)
        same(found, scales)
        got, found = kernels.arq_fake_quantize(held(w), axis, bits=bits, device="cuda")
        same(fetched(got), want)
        same(found, scales)


def test_weights_that_are_not_finite_name_their_channel():
    for bad in (math.nan, math.inf, -math.inf):
        w = normal(4, 9)
        w[2, 5] = bad
        with pytest.raises(ValueError, match="NaN or infinity in channel 2"):
            kernels.arq_fake_quantize(held(w), device="cuda")
        with pytest.raises(ValueError, match=r"NaN or infinity$"):
            kernels.arq_fake_quantize(w, None, device="cuda")


# ----------------------------------------------------------------------------- out, channels


def test_out_on_the_device():
    x, p = normal(3, 5) * np.float32(4), QuantParams(0.05, -3)
    acc = np.arange(15, dtype=np.int32).reshape(3, 5)
    channels = kernels.ChannelParams(f32(0.1, 0.2, 0.3), axis=0)
    for name, dtype, *arguments in (
        ("quantize", np.int8, x, p),
        ("quantize", np.int8, x, channels),
        ("fake_quantize", np.float32, x, p),
        ("dequantize", np.float32, x.astype(np.int8), channels),
        ("requantize", np.int8, acc, 0.3, p),
    ):
        call, (data, *rest) = getattr(kernels, name), arguments
        want, out = call(data, *rest, device="reference"), held(np.zeros((3, 5), dtype))
        assert call(held(data), *rest, out=out, device="cuda") is out
        same(fetched(out), want)
        for here, there in ((data, out), (held(data), np.zeros((3, 5), dtype))):
            with pytest.raises(ValueError, match="out must lie where the input lies"):
                call(here, *rest, out=there, device="cuda")
    with pytest.raises(TypeError, match="out must be int8, not float32"):
        kernels.quantize(held(x), p, out=held(x), device="cuda")
    inside = held(x)
    assert kernels.fake_quantize(inside, p, out=inside, device="cuda") is inside
    same(fetched(inside), kernels.fake_quantize(x, p, device="reference"))


def test_uint8_and_channels_stay_on_the_device():
    x = normal(2, 3, 7)
    params = kernels.ChannelParams(f32(0.01, 0.02, 0.03), [1, -2, 3])
    for p in (params, QuantParams(0.02, 5)):
        want = kernels.quantize(x, p, dtype=np.uint8, device="reference")
        u = kernels.quantize(held(x), p, dtype=np.uint8, device="cuda")
        same(fetched(u), want)
        back = kernels.dequantize(u, p, device="cuda")
        same(fetched(back), kernels.dequantize(want, p, device="reference"))


# ---------------------------------------------------------------------------------------- ULQ


@pytest.mark.parametrize("shape", SHAPES)
def test_ulq_of_every_shape(shape: tuple[int, ...]):
    x, g = normal(*shape), normal(*shape, seed=1)
    for bits in (8, 3):
        grid = kernels.ulq_grid(1.2, -0.9, bits=bits)
        want = np.asarray(kernels.ulq_forward(x, grid, device="reference"))
        same(kernels.ulq_forward(x, grid, device="cuda"), want)
        dx, *ends = kernels.ulq_backward(x, g, grid, device="reference")
        got, *found = kernels.ulq_backward(x, g, grid, device="cuda")
        same(got, np.asarray(dx))
        assert found == pytest.approx(ends, rel=1e-12, abs=1e-12)
        if shape:
            same(fetched(kernels.ulq_forward(held(x), grid, device="cuda")), want)
            got, *again = kernels.ulq_backward(held(x), held(g), grid, device="cuda")
            same(fetched(got), dx)
            assert again == found


@cases.examples(12)
@given(st.data(), st.integers(2, 8))
def test_ulq_between_steps_and_beyond_the_ends(data: st.DataObject, bits: int):
    grid = kernels.ulq_grid(3.0, -1.0, bits=bits)
    near = st.integers(-300, 300).map(lambda i: float(np.float32(i / 2 * grid.scale)))
    value = st.one_of(near, cases.floats32(-5, 5), st.sampled_from([math.inf, -math.inf, -0.0]))
    x = f32(*data.draw(st.lists(value, min_size=1, max_size=30)))
    g = normal(x.size)
    same(
        kernels.ulq_forward(x, grid, device="cuda"),
        kernels.ulq_forward(x, grid, device="reference"),
    )
    got, want = (kernels.ulq_backward(x, g, grid, device=d) for d in ("cuda", "reference"))
    same(got[0], want[0])
    assert got[1:] == pytest.approx(want[1:], rel=1e-12, abs=1e-12)


def test_ulq_keeps_nan():
    grid = kernels.ulq_grid(3.0, -1.0)
    x = f32(math.nan, math.inf, -math.inf, 0.0)
    y = kernels.ulq_forward(x, grid, device="cuda")
    assert math.isnan(y[0])
    assert y[1:].tolist() == [grid.high, grid.low, 0.0]
    dx, by_max, by_min = kernels.ulq_backward(x, np.ones(4, np.float32), grid, device="cuda")
    assert dx[1:].tolist() == [0.0, 0.0, 1.0]
    assert math.isnan(by_max)
    assert math.isnan(by_min)


# ---------------------------------------------------------------------------------- histogram


def state(hist: Histogram) -> tuple:
    """All that a histogram holds, bit for bit."""
    ends = np.array([hist.low, hist.high]).tobytes()
    tails = hist.smallest.tobytes(), hist.largest.tobytes()
    return hist.counts.tolist(), hist.exponent, hist.total, hist.zeros, ends, *tails


def agree(batches: list[np.ndarray], half: int, tail: int, on_device: bool = False) -> None:
    """Observe batches on both devices, and compare after each."""
    want, got = Histogram(half, tail), Histogram(half, tail)
    for batch in batches:
        want.update(batch, device="reference")
        got.update(held(batch) if on_device else batch, device="cuda")
        assert state(got) == state(want)


values32 = st.one_of(
    cases.floats32(),
    cases.floats32(-4, 4),
    cases.floats32(-1e-37, 1e-37),
    st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 2.0**-126, 1.0, -1.0, cases.FLOAT_MAX]),
)


@cases.examples(25)
@given(
    st.lists(st.lists(values32, max_size=20), min_size=1, max_size=4),
    st.sampled_from([2, 8]),
    st.integers(1, 6),
)
def test_any_batches_are_counted_alike(batches: list[list[float]], half: int, tail: int):
    agree([f32(*batch) for batch in batches], half, tail)


DATA = {
    "gauss": lambda: [normal(50, seed=i) for i in range(3)],
    "relu": lambda: [np.maximum(normal(50, seed=i), 0) for i in range(3)],
    "negative": lambda: [-np.abs(normal(50, seed=i)) for i in range(3)],
    "constant": lambda: [np.full(60, -0.7, np.float32)] * 2,
    "zeros": lambda: [np.zeros(30, np.float32) * np.float32(-1), normal(9)],
    "zeros beyond": lambda: [np.abs(normal(30)) + 1, np.zeros(7, np.float32)],
    "clipped": lambda: [np.clip(normal(90, seed=i), -0.1, 0.3) for i in range(2)],
    "clipped at zero": lambda: [np.minimum(normal(90), -0.0), np.minimum(normal(90, seed=2), 0)],
    "growing": lambda: [normal(20) * np.float32(10.0**i) for i in (-44, -30, 0, 3, 20, 37)],
    "shrinking": lambda: [normal(20) * np.float32(10.0**i) for i in (37, 3, 0)],
    "huge": lambda: [f32(cases.FLOAT_MAX, -cases.FLOAT_MAX, 1.0, -0.0)],
    "denormal": lambda: [f32(1e-45, -1e-45, 0.0, 3e-39)],
    "ties": lambda: [np.round(normal(80) * 2), np.round(normal(80, seed=3) * 2)],
}


@pytest.mark.parametrize("half", [8, 64])
@pytest.mark.parametrize("name", DATA)
def test_data_of_every_kind(name: str, half: int):
    agree(DATA[name](), half, 5, on_device=half == 8)


@pytest.mark.parametrize("shape", [(1,), (3,), (4, 5), (0, 3)])
def test_histograms_of_their_usual_size(shape: tuple[int, ...]):
    agree([normal(*shape), normal(*shape, seed=1) * np.float32(3)], 1 << 14, 4096)


def test_data_of_more_values_than_a_table_counts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dispatch.backend("cuda", "histogram"), "_MOST", 16)
    agree([normal(40), normal(33, seed=1) * np.float32(5)], 8, 3, on_device=True)


def test_strided_data_and_single_values():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    agree([x[:, ::2].transpose(2, 0, 1), np.array(5, np.float32), x[:, 1:2]], 8, 3)


@pytest.mark.parametrize("before", [[], [1.0, -2.0, 0.0]])
def test_nan_and_infinity_leave_the_histogram_as_it_was(before: list[float]):
    hist = Histogram(8, 3)
    hist.update(f32(*before), device="cuda")
    old = state(hist)
    bad = f32(100.0, math.nan, math.inf, -math.inf, math.nan, *[0.5] * 20)
    for data in (bad, held(bad)):
        with pytest.raises(NotFiniteError, match="2 NaN and 2 infinite"):
            hist.update(data, device="cuda")
        assert state(hist) == old


def test_merging_what_the_device_counted():
    parts = [normal(30, seed=i) * np.float32(4**i) for i in range(3)]
    whole, merged = Histogram(8, 4), Histogram(8, 4)
    for part in parts:
        whole.update(part, device="reference")
        one = Histogram(8, 4)
        one.update(part, device="cuda")
        merged.merge(one)
    assert state(merged) == state(whole)


# ------------------------------------------------------------------------------------- search


@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 4])
def test_ifmr_in_memory_chooses_the_same(asymmetric: bool, bits: int):
    x = normal(40) * np.float32(2)
    ends = (0.7, 1.3), 0.1, 0.99, 0.95, asymmetric
    want = kernels.ifmr(x, *ends, bits=bits, device="reference")
    assert kernels.ifmr(x, *ends, bits=bits, device="cuda") == want
    assert kernels.ifmr(held(x.reshape(4, 10)), *ends, bits=bits, device="cuda") == want


@cases.examples(8)
@given(
    st.lists(cases.floats32(-8, 8), min_size=0, max_size=30),
    st.integers(2, 8),
    st.integers(1, 6),
)
def test_errors_of_candidates_on_data(values: list[float], bits: int, number: int):
    settings = kernels.Ifmr((0.5, 0.56 + 0.1 * number), 0.1)
    losses = []
    for device in ("reference", "cuda"):
        second = IfmrPass(kernels.ifmr_candidates(-1.5, 2.5, settings, bits))
        second.update(f32(*values), device=device)
        second.update(f32(*values[:3]), device=device)
        losses.append(second.losses)
        assert second.total == len(values) + len(values[:3])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-12, atol=1e-12)


def test_data_that_is_not_finite_leaves_no_finite_loss():
    candidates = kernels.ifmr_candidates(-1, 1, kernels.Ifmr((0.9, 1.1), 0.1))
    for bad in (math.nan, math.inf):
        second = IfmrPass(candidates)
        second.update(f32(1.0, bad), device="cuda")
        with pytest.raises(ValueError, match="not finite"):
            second.params()


@cases.examples(8)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 6), st.booleans())
def test_errors_of_bins(seed: int, bins: int, number: int, gaps: bool):
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.normal(size=bins + 1))
    keep = rng.random(bins) < (0.5 if gaps else 1)
    left, right = ends[:-1][keep], ends[1:][keep]
    right = np.where(rng.random(left.size) < 0.1, left, right)  # some hold one value alone
    counts = rng.integers(1, 1000, left.size)
    lows, highs = -rng.random(number) * 3, rng.random(number) * 3
    one, two = (
        dispatch.backend(d, "search").bin_errors(
            left, right, counts, lows, highs, (highs - lows) / 255
        )
        for d in ("reference", "cuda")
    )
    np.testing.assert_allclose(two, one, rtol=1e-7, atol=1e-10)


@cases.examples(8)
@given(st.integers(0, 10**6), st.integers(1, 60), st.sampled_from([4, 16]))
def test_divergences(seed: int, bins: int, levels: int):
    rng = np.random.default_rng(seed)
    centres = np.sort(np.round(rng.normal(size=bins), rng.integers(1, 9)))
    counts = rng.integers(1, 1000, bins).astype(float)
    lows = np.append(-rng.random(4) * 3, 50.0)  # above all the data: everything is clipped
    scales = np.append(rng.choice([0.01, 0.5, 1, 6], 4), 1.0) / levels + 1e-3
    one, two = (
        dispatch.backend(d, "search").divergences(centres, counts, lows, scales, levels)
        for d in ("reference", "cuda")
    )
    assert one[-1] == two[-1] == np.inf
    np.testing.assert_allclose(two, one, rtol=1e-9, atol=1e-12)


@cases.examples(15)
@given(
    st.lists(st.one_of(st.just(0), st.integers(0, 9), st.integers(0, 300_000)), min_size=4)
    .filter(any)
    .map(lambda c: c[:40]),
    st.floats(1e-3, 10),
    st.sampled_from([4, 256]),
)
def test_ranges_and_errors_of_hfmg(counts: list[int], width: float, levels: int):
    x = np.array(counts, np.int64)
    one, two = (dispatch.backend(d, "search") for d in ("reference", "cuda"))
    ranges = one.hfmg_ranges(x)
    assert two.hfmg_ranges(x).tolist() == ranges.tolist()
    some = ranges[:: max(1, len(ranges) // 5)]
    if len(some):
        np.testing.assert_allclose(
            two.hfmg_errors(x, some, width, levels),
            one.hfmg_errors(x, some, width, levels),
            rtol=1e-7,
        )


def test_hfmg_chooses_the_same():
    counts = np.random.default_rng(4).integers(0, 50, 24)
    one, two = (hfmg_search(counts, -1.0, 3.0, bits=4, device=d) for d in ("reference", "cuda"))
    assert one.params == two.params
    assert one.best_index == two.best_index


@pytest.mark.parametrize("method", list(kernels.METHODS))
def test_searches_choose_the_same(method: str):
    hist = Histogram(32, 8)
    hist.update(normal(300) * np.float32(2), device="reference")
    few = {"mse": {"steps": 6}, "kl": {"steps": 6}, "ifmr": {"search_step": 0.1}}
    if method == "hfmg":
        hist = Histogram(8, 8)
        hist.update(f32(-1.0, 0.1, 0.5, 2.0, 3.0, 0.7), device="reference")
        few = {"hfmg": {"num_of_bins": 1024}}
    for asymmetric in (True, False):
        one, two = (
            kernels.search_params(
                hist, method, bits=4, asymmetric=asymmetric, device=d, **few.get(method, {})
            )
            for d in ("reference", "cuda")
        )
        assert one == two


def test_the_expected_error_of_a_format():
    hist = Histogram(64, 8)
    hist.update(normal(100), device="reference")
    p = QuantParams(0.01, 3, 6)
    one, two = (kernels.quantization_error(hist, p, device=d) for d in ("reference", "cuda"))
    assert two == pytest.approx(one, rel=1e-9)


# ------------------------------------------------------------------------------- large arrays


@pytest.mark.skipif(SIMULATED, reason="takes the simulator hours")
def test_large_arrays_on_a_device():
    x = normal(3, 1_000_003) * np.float32(2)
    acc = (x * 1e6).astype(np.int32).reshape(1, 3, -1)
    p, scale = QuantParams(0.031, -7), f32(1e-6, 2e-6, 5e-7)
    for name, *arguments in (
        ("quantize", x, p),
        ("fake_quantize", x, p),
        ("requantize", acc, scale, p),
        ("ulq_forward", x, kernels.ulq_grid(4.0, -3.0)),
    ):
        call = getattr(kernels, name)
        same(call(*arguments, device="cuda"), call(*arguments, device="reference"))
    relu = np.maximum(x, 0)
    batches = [x[0], relu, np.clip(x, -1, 1), relu * np.float32(9), np.full(10**6, 0.5, np.float32)]
    agree(batches, 1 << 14, 4096)
    agree(batches, 1 << 8, 7, on_device=True)
    want, got = (kernels.ifmr(x[1], device=d) for d in ("cpu", "cuda"))
    assert got == want


# -------------------------------------------------------------------------------------- where


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_device_arrays_are_refused_elsewhere(device: str):
    x, p = held(normal(3, 3)), QuantParams(1.0)
    q, sums, grid = held(np.zeros(3, np.int8)), held(np.zeros(3, np.int32)), kernels.ulq_grid(1, 0)
    second = IfmrPass(kernels.ifmr_candidates(-1, 1, kernels.Ifmr()))
    for call in (
        lambda: kernels.quantize(x, p, device=device),
        lambda: kernels.fake_quantize(x, p, device=device),
        lambda: kernels.dequantize(q, p, device=device),
        lambda: kernels.requantize(sums, 1.0, p, device=device),
        lambda: kernels.arq_fake_quantize(x, device=device),
        lambda: kernels.ulq_forward(x, grid, device=device),
        lambda: kernels.ulq_backward(normal(3, 3), x, grid, device=device),
        lambda: Histogram().update(x, device=device),
        lambda: kernels.ifmr(x, device=device),
        lambda: second.update(x, device=device),
        lambda: hfmg_search(q, -1.0, 1.0, device=device),
        lambda: kernels.arq(x),
        lambda: kernels.quantize_weights(x, f32(1)),
    ):
        with pytest.raises(TypeError, match="lies on a CUDA device"):
            call()


def test_dtypes_and_order_of_device_arrays_are_checked():
    from numba import cuda  # an array's own .T copies on a device, and is a view in the simulator

    p = QuantParams(1.0)
    with pytest.raises(TypeError, match="x must be float32, not float64"):
        kernels.quantize(held(np.zeros(3)), p, device="cuda")
    with pytest.raises(ValueError, match=r"shape \(2, 3\) is not in C order"):
        kernels.quantize(cuda.to_device(np.asfortranarray(normal(2, 3))), p, device="cuda")
