"""From histogram to parameters: every method on varied data, against the data itself."""

from __future__ import annotations

import math
from collections.abc import Callable

import kernel_cases as cases
import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kernels
from kernels import (
    Histogram,
    Ifmr,
    QuantParams,
    quantization_error,
    search_params,
    search_trace,
)
from kernels.dispatch import backend
from kernels.search import _formats

DEVICES = cases.DEVICES
Rng = np.random.Generator
COUNT = 20_000

DATA: dict[str, Callable[[Rng], np.ndarray]] = {
    "relu": lambda r: np.maximum(r.normal(-0.7, 1, COUNT), 0),
    "gauss": lambda r: r.normal(0.3, 2, COUNT),
    "uniform": lambda r: r.uniform(-1, 3, COUNT),
    "laplace": lambda r: r.laplace(size=COUNT),
    "heavy": lambda r: r.standard_t(2.5, COUNT),
    "constant": lambda r: np.full(COUNT, 5.1),
    "negative constant": lambda r: np.full(COUNT, -3.3),
    "negative": lambda r: -np.abs(r.normal(size=COUNT)) - 0.5,
    "relu6": lambda r: np.clip(r.normal(2, 3, COUNT), 0, 6),
    "pixels": lambda r: r.integers(0, 256, COUNT),
    "scaled pixels": lambda r: (r.integers(0, 256, COUNT) - 127.5) / 128,
    "few values": lambda r: r.choice([0, 1, 128, 255], COUNT),
    "one large": lambda r: np.append(np.ones(COUNT), 255),
    "tiny": lambda r: r.normal(size=COUNT) * 1e-5,
    "large": lambda r: r.normal(size=COUNT) * 1e6,
    "a few": lambda r: r.normal(size=7),
}


DISCRETE = ("scaled pixels", "few values", "one large", "a few")


def data(name: str, seed: int = 0) -> np.ndarray:
    return DATA[name](np.random.default_rng(seed)).astype(np.float32)


def seen(x: np.ndarray, device: str = "cpu") -> Histogram:
    hist = Histogram()
    hist.update(x, device=device)
    return hist


def error(x: np.ndarray, p: QuantParams) -> float:
    """The true mean squared error."""
    d = kernels.fake_quantize(x, p).astype(np.float64) - x
    return float(np.mean(d * d))


# ---------------------------------------------------------------------------------- methods


@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.parametrize("name", DATA)
def test_ifmr_lands_within_a_step_of_the_search_in_memory(name: str, asymmetric: bool):
    for seed in range(2):
        x = data(name, seed)
        got = search_params(seen(x), "ifmr", asymmetric=asymmetric)
        want = kernels.ifmr(x, asymmetric=asymmetric)
        low, high = min(x.min(), 0.0), max(x.max(), 0.0)
        whole = high / (255 if asymmetric else 127)
        if not asymmetric and -low >= high:
            whole = -low / 128
        # few distinct values do not lie evenly in their bins: the choice may then be another,
        # as good but for a few percent of what rounding costs, scale**2 / 12
        assert name in DISCRETE or abs(got.scale - want.scale) <= 0.0101 * whole
        assert error(x, got) <= error(x, want) * 1.001 + 4e-3 * want.scale**2


@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", DATA)
def test_mse_is_the_best_and_minmax_covers_all(name: str, bits: int, asymmetric: bool):
    x = data(name)
    hist = seen(x)
    found = {m: search_params(hist, m, asymmetric=asymmetric, bits=bits) for m in kernels.METHODS}
    losses = {m: quantization_error(hist, p) for m, p in found.items()}
    assert losses["mse"] <= losses["minmax"]
    slack = 1.01 if x.size > 100 else 1.5
    assert error(x, found["mse"]) <= error(x, found["minmax"]) * slack + 1e-12
    step = found["minmax"].scale * (0.5 if asymmetric else 1.0)
    inside = (found["minmax"].range[0] - step * 1.001, found["minmax"].range[1] + step * 1.001)
    assert inside[0] <= x.min()
    assert x.max() <= inside[1]
    for p in found.values():
        assert p.bits == bits
        assert asymmetric or p.offset == 0


@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.parametrize("name", DATA)
def test_no_method_throws_the_data_away(name: str, asymmetric: bool):
    x = data(name)
    hist = seen(x)
    power = float(np.mean(x.astype(np.float64) ** 2))
    for method in kernels.METHODS:
        p = search_params(hist, method, asymmetric=asymmetric)
        limit = 0.2 if name == "heavy" and method == "kl" else 3e-3
        whole = kernels.params_from_range(x.min(), x.max(), asymmetric=asymmetric)
        assert error(x, p) <= max(limit * power, 1.1 * error(x, whole)), method


@pytest.mark.parametrize("method", list(kernels.METHODS))
@pytest.mark.parametrize("name", ["relu", "gauss", "few values", "negative", "constant"])
def test_devices_choose_the_same(method: str, name: str):
    hist = seen(data(name))
    for asymmetric in (True, False):
        more = {"hfmg": {"num_of_bins": 1024}, "mse": {"steps": 20}}.get(method, {})
        one, two = (
            search_params(hist, method, asymmetric=asymmetric, device=d, **more) for d in DEVICES
        )
        assert one == two


@pytest.mark.parametrize("asymmetric", [True, False])
def test_minmax_and_percentile_equal_the_oracle(asymmetric: bool):
    x = data("gauss")
    values = x.tolist()
    for ends in ((1.0, 1.0), (0.9999, 0.999), (0.99, 0.95)):
        high = naive.kth_largest(values, naive.tail_rank(x.size, ends[0]))
        low = naive.kth_smallest(values, naive.tail_rank(x.size, ends[1]))
        want = kernels.params_from_range(low, high, asymmetric=asymmetric)
        got = search_params(
            seen(x),
            "percentile",
            max_percentile=ends[0],
            min_percentile=ends[1],
            asymmetric=asymmetric,
        )
        assert got == want
    assert search_params(seen(x), "minmax", asymmetric=asymmetric) == kernels.params_from_range(
        float(x.min()), float(x.max()), asymmetric=asymmetric
    )


@pytest.mark.parametrize("side", [1, -1])
def test_mse_shrinks_the_end_that_is_worth_it(side: int):
    x = np.append(data("relu6"), np.float32(-4)) * np.float32(side)
    hist = seen(x)
    found, whole = (search_params(hist, method, bits=4) for method in ("mse", "minmax"))
    low, high = found.range if side > 0 else (-found.range[1], -found.range[0])
    assert -1 < low <= 0
    assert 5.5 < high < 6.5
    assert error(x, found) < 0.5 * error(x, whole)


def test_kl_clips_a_long_tail_and_keeps_a_flat_range():
    flat, tail = seen(data("uniform")), seen(data("heavy"))
    assert search_params(flat, "kl").scale > 0.98 * search_params(flat, "minmax").scale
    assert search_params(tail, "kl").scale < 0.7 * search_params(tail, "minmax").scale


# -------------------------------------------------------------------------- expected error


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", DATA)
def test_the_expected_error_is_close_to_the_true_one(name: str, device: str):
    x = data(name)[:150]
    hist = seen(x)
    low, high = float(x.min()), float(x.max())
    for share in (0.3, 0.8, 1.0, 1.2):
        for asymmetric in (True, False):
            p = kernels.params_from_range(share * low, share * high, asymmetric=asymmetric)
            got = quantization_error(hist, p, device=device)
            want = naive.mse(x.tolist(), p.scale, p.offset)
            # a bin is at most 1 / 64 of a step wide; values within it count as spread evenly
            assert got == pytest.approx(want, rel=0.1, abs=p.scale**2 / 64)


@cases.examples(60)
@given(
    st.lists(cases.floats32(-100, 100), min_size=1, max_size=30),
    st.integers(2, 8),
    cases.floats32(0.01, 5),
    st.data(),
)
def test_the_expected_error_is_equal_on_both_devices(values, bits, scale, data):
    hist = seen(np.array(values, np.float32))
    p = QuantParams(scale, data.draw(st.integers(*naive.limits(bits))), bits)
    one, two = (quantization_error(hist, p, device=d) for d in DEVICES)
    assert one == pytest.approx(two, rel=1e-9, abs=1e-12)
    assert one >= -1e-12


@pytest.mark.parametrize("device", DEVICES)
def test_the_expected_error_of_evenly_spread_values_is_the_integral(device: str):
    # 2**16 values evenly in (0, 1): the error of a step s inside is s**2 / 12
    x = ((np.arange(2**16) + 0.5) / 2**16).astype(np.float32)
    hist = seen(x, device)
    for bits, low in ((8, -128), (5, -16), (2, -2)):
        p = QuantParams(1 / (2**bits - 1), low, bits)
        assert quantization_error(hist, p, device=device) == pytest.approx(
            p.scale**2 / 12, rel=1e-3
        )
    half = QuantParams(0.5 / 255, -128)  # all above 0.5 is clipped: the integral of (x - 0.5)**2
    clipped = quantization_error(hist, half, device=device)
    assert clipped == pytest.approx(0.5**3 / 3 + half.scale**2 / 24, rel=1e-3)
    assert quantization_error(Histogram(), half, device=device) == 0


# -------------------------------------------------------------------------------- backends


@cases.examples(60)
@given(
    st.lists(st.tuples(cases.floats32(-4, 0), cases.floats32(0, 4)), min_size=1, max_size=9),
    st.booleans(),
    st.integers(2, 8),
)
def test_many_formats_are_those_of_the_ranges_one_by_one(ranges, asymmetric: bool, bits: int):
    lows, highs = np.array(ranges, np.float64).T
    found = _formats(lows, highs, asymmetric, bits)
    for i, (low, high) in enumerate(ranges):
        want = kernels.params_from_range(low, high, asymmetric=asymmetric, bits=bits)
        assert (found[0][i], found[1][i], found[2][i]) == (*want.range, want.scale)


def test_formats_refuse_what_a_range_refuses():
    with pytest.raises(ValueError, match="out of range"):
        _formats(np.array([-1.0, -1e38]), np.array([1.0, 1e38]), True, 8)


@cases.examples(60)
@given(st.integers(0, 10**6), st.integers(1, 3000), st.booleans())
def test_backends_agree_on_the_errors_of_bins(seed: int, bins: int, gaps: bool):
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.normal(size=bins + 1))
    keep = rng.random(bins) < (0.5 if gaps else 1)
    left, right = ends[:-1][keep], ends[1:][keep]
    right = np.where(rng.random(left.size) < 0.05, left, right)  # some hold one value alone
    counts = rng.integers(1, 1000, left.size)
    lows, highs = -rng.random(5) * 3, rng.random(5) * 3
    one, two = (
        backend(d, "search").bin_errors(left, right, counts, lows, highs, (highs - lows) / 255)
        for d in DEVICES
    )
    np.testing.assert_allclose(two, one, rtol=1e-7, atol=1e-10)


@cases.examples(60)
@given(st.integers(0, 10**6), st.integers(1, 400), st.sampled_from([4, 256]))
def test_backends_agree_on_divergences(seed: int, bins: int, levels: int):
    rng = np.random.default_rng(seed)
    centres = np.sort(rng.normal(size=bins))
    counts = rng.integers(1, 1000, bins).astype(float)
    lows = np.append(-rng.random(4) * 3, 50.0)  # above all the data: everything is clipped
    scales = np.append(rng.random(4) * 6, 1.0) / levels + 1e-3
    one, two = (
        backend(d, "search").divergences(centres, counts, lows, scales, levels) for d in DEVICES
    )
    assert one[-1] == two[-1] == np.inf
    np.testing.assert_allclose(two, one, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------ edges


@pytest.mark.parametrize("method", list(kernels.METHODS))
@pytest.mark.parametrize(
    "values", [[0.0], [0.0, -0.0], [1e-45], [-1e-40, 1e-40], [7.0], [-7.0], [1e-45, 3e-38, -1e-30]]
)
def test_the_smallest_data_has_parameters(method: str, values: list[float]):
    hist = seen(np.array(values, np.float32), "reference")
    for device in DEVICES:
        for asymmetric in (True, False):
            p = search_params(hist, method, asymmetric=asymmetric, device=device)
            if max(map(abs, values)) < 1e-20:
                assert p.scale == 1.0
            else:
                assert p.scale * 128 >= abs(values[0]) * 0.98 / 2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", list(kernels.METHODS))
def test_data_too_large_for_a_scale_is_refused(method: str, device: str):
    for values in ([1e38, -1e38], [3e38], [-3e38, 1.0]):
        with pytest.raises(ValueError, match="out of range"):
            search_params(seen(np.array(values, np.float32)), method, device=device)


def test_wrong_use_is_named():
    hist = seen(np.ones(3, np.float32), "reference")
    with pytest.raises(ValueError, match="method 'max' is unknown; choose one of ifmr, hfmg"):
        search_params(hist, "max")
    for wrong in (None, Ifmr):
        with pytest.raises(TypeError, match="method must be a name or a settings object"):
            search_params(hist, wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"'search_step'\] must be in the Ifmr"):
        search_params(hist, Ifmr(), search_step=0.1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'stepp'"):
        search_params(hist, "mse", stepp=3)
    with pytest.raises(ValueError, match="histogram is empty"):
        search_params(Histogram())
    with pytest.raises(ValueError, match="bits must be"):
        search_params(hist, bits=1)
    with pytest.raises(ValueError, match="device 'gpu' is unknown"):
        search_params(hist, device="gpu")
    for method in ("mse", "kl"):
        with pytest.raises(ValueError, match="steps must be at least 2"):
            search_params(hist, method, steps=1)
        with pytest.raises(TypeError, match="steps must be an integer"):
            search_params(hist, method, steps=2.5)
    for value in (0.5, 1.5, math.nan):
        with pytest.raises(ValueError, match="max_percentile must be"):
            search_params(hist, "percentile", max_percentile=value)
        with pytest.raises(ValueError, match="min_percentile must be"):
            search_params(hist, "percentile", min_percentile=value)
    with pytest.raises(ValueError, match="num_of_bins must be"):
        search_params(hist, "hfmg", num_of_bins=100)


def test_settings_may_be_given_as_an_object_or_by_name():
    hist = seen(data("gauss"))
    settings = {"search_range": (0.5, 1.2), "search_step": 0.05, "asymmetric": False}
    assert search_params(hist, Ifmr(**settings)) == search_params(hist, "ifmr", **settings)
    assert search_params(hist) == search_params(hist, "ifmr")


@pytest.mark.parametrize("method", sorted(kernels.METHODS))
def test_an_unknown_device_is_refused_by_every_method(method):
    hist = kernels.Histogram()
    hist.update(np.arange(10, dtype=np.float32))
    with pytest.raises(ValueError, match="device 'gpu' is unknown; choose one of reference, cpu"):
        kernels.search_params(hist, method, device="gpu")


@pytest.mark.parametrize("name", ["relu", "gauss", "heavy", "negative", "constant", "a few"])
@pytest.mark.parametrize("method", kernels.METHODS)
@pytest.mark.parametrize("asymmetric", [True, False])
def test_a_trace_tells_what_was_tried(name: str, method: str, asymmetric: bool):
    hist = seen(data(name))
    trace = kernels.search_trace(hist, method, asymmetric=asymmetric)
    assert trace.params == search_params(hist, method, asymmetric=asymmetric)
    assert trace.lows.shape == trace.highs.shape
    if not trace.losses.size:  # one range: nothing was weighed
        assert (trace.best, trace.lows.size) == (-1, 1)
        return
    assert trace.losses.shape == trace.lows.shape
    assert trace.losses[trace.best] == trace.losses.min()
    if method in ("ifmr", "mse"):  # losses are mean squared errors of what the params do
        assert trace.losses[trace.best] == pytest.approx(
            quantization_error(hist, trace.params), rel=0.02, abs=1e-12
        )


def test_a_step_as_wide_as_its_range_gives_both_ends():
    hist = Histogram(tail=10)
    hist.update(np.arange(100, dtype=np.float32))
    tried = search_trace(hist, Ifmr((0.9, 1.0), 0.1)).highs  # 1 - 0.9 is a little below 0.1
    np.testing.assert_allclose(tried, [0.9 * 99, 99], rtol=1e-6)
