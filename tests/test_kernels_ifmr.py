"""IFMR: on arrays against the original and the oracle, and as a second pass over batches."""

from __future__ import annotations

import ctypes
import json
import math

import kernel_cases as cases
import naive
import numpy as np
import pytest
from conftest import GOLDENS
from hypothesis import given
from hypothesis import strategies as st

from kernels import (
    Histogram,
    Ifmr,
    IfmrPass,
    NotFiniteError,
    QuantParams,
    ifmr,
    ifmr_candidates,
    percentile_range,
    tail_rank,
)
from kernels._ifmr import IfmrCandidates
from kernels.cpu.codegen import ifmr_loss
from kernels.cpu.codegen.microkernels import choice
from kernels.cpu.codegen.native import compile_text
from kernels.dispatch import backend

DEVICES = cases.DEVICES
GOLDEN_NAMES = sorted(p.stem for p in (GOLDENS / "amct").glob("ifmr_*.npz"))


def golden_case(name: str) -> tuple[dict[str, np.ndarray], np.ndarray, Ifmr]:
    with np.load(GOLDENS / "amct" / f"{name}.npz") as z:
        golden = dict(z)
    p = json.loads(str(golden["params"][0]))
    ends = (p["search_start"], p["search_end"])
    settings = Ifmr(
        ends, p["search_step"], p["max_percentile"], p["min_percentile"], p["with_offset"]
    )
    return golden, golden["x"].astype(np.float32), settings


def search(x: np.ndarray, settings: Ifmr, device: str, **more: int) -> QuantParams:
    return ifmr(
        x,
        settings.search_range,
        settings.search_step,
        settings.max_percentile,
        settings.min_percentile,
        settings.asymmetric,
        device=device,
        **more,
    )


def seen(parts: list[np.ndarray], tail: int = 4096, device: str = "reference") -> Histogram:
    hist = Histogram(tail=tail)
    for part in parts:
        hist.update(part, device=device)
    return hist


# ---------------------------------------------------------------------------------- goldens


def test_the_goldens_are_there():
    assert len(GOLDEN_NAMES) == 24


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_the_result_equals_the_original(name: str, device: str):
    golden, x, settings = golden_case(name)
    p = search(x, settings, device)
    np.testing.assert_allclose(p.scale, golden["scale"], rtol=1e-6)
    assert p.offset == golden["offset"]


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_percentiles_candidates_and_losses_equal_the_original(name: str):
    golden, x, settings = golden_case(name)
    low, high = percentile_range(seen([x], tail=x.size), settings)
    assert max(high, 0.0) == golden["max_value"]
    assert min(low, 0.0) == golden["min_value"]
    candidates = ifmr_candidates(low, high, settings)
    assert candidates.scales.size == golden["n_candidates"]
    second = IfmrPass(candidates)
    second.update(x, device="reference")
    assert np.argmin(second.losses) == golden["best_index"]
    np.testing.assert_allclose(second.losses / x.size, golden["noises"], rtol=2e-4, atol=1e-12)


# ------------------------------------------------------------------------------------ oracle


@st.composite
def settings32(draw: st.DrawFn) -> Ifmr:
    start = draw(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.95]))
    end = draw(st.sampled_from([1.0, 1.2, 1.3, 1.7]))
    step = draw(st.sampled_from([0.01, 0.05, 0.049]))
    percentiles = [draw(st.sampled_from([1.0, 0.999999, 0.99, 0.9, 0.51])) for _ in range(2)]
    return Ifmr((start, end), step, *percentiles, draw(st.booleans()))


@pytest.mark.parametrize("device", DEVICES)
@cases.examples(25)
@given(st.data(), settings32(), st.integers(2, 8))
def test_any_data_equals_the_oracle(device, data, settings: Ifmr, bits: int):
    scale = data.draw(st.sampled_from([1e-6, 1e-2, 1.0, 300.0, 1e5]))
    values = data.draw(st.lists(cases.floats32(-1, 1), min_size=1, max_size=40))
    x = np.array(values, np.float32) * np.float32(scale)
    got = search(x, settings, device, bits=bits)
    want = naive.ifmr(
        [float(v) for v in x],
        (*settings.search_range, settings.search_step),
        (settings.max_percentile, settings.min_percentile),
        settings.asymmetric,
        bits,
    )
    c = ifmr_candidates(*percentile_range(seen([x]), settings), settings, bits)
    second = IfmrPass(c)
    second.update(x, device=device)
    np.testing.assert_allclose(second.losses, want.losses, rtol=1e-12)
    if (got.scale, got.offset) != (want.scale, want.offset):
        # two candidates may lie closer together than the rounding of a sum
        index = c.scales.tolist().index(got.scale)
        assert want.losses[index] == pytest.approx(want.losses[want.index], rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "count", "last"),
    [(Ifmr(), 60, 1.29), (Ifmr((0.5, 1.2), 0.05), 15, 1.2), (Ifmr((0.3, 1.7)), 141, 1.7)],
)
def test_the_number_of_candidates(settings: Ifmr, count: int, last: float):
    c = ifmr_candidates(0.0, 1.0, settings)
    assert c.scales.size == count
    assert c.highs[-1] == pytest.approx(last, abs=1e-5)
    assert c.highs.tolist() == naive.ratios(*settings.search_range, settings.search_step)


@cases.examples(200)
@given(st.integers(1, 2**40), st.floats(0.5, 1.0, exclude_min=True))
def test_the_rank_of_a_percentile(total: int, percentile: float):
    assert tail_rank(total, percentile) == naive.tail_rank(total, percentile)
    assert tail_rank(total, 1.0) >= 1


# ------------------------------------------------------------------------------- second pass


@pytest.mark.parametrize("device", DEVICES)
@cases.examples(25)
@given(st.integers(0, 10**6), settings32(), st.lists(st.integers(0, 300), min_size=1, max_size=5))
def test_passes_over_batches_equal_the_whole(device, seed, settings, sizes):
    rng = np.random.default_rng(seed)
    kind = rng.integers(3)
    make = [
        lambda n: rng.normal(size=n),
        lambda n: np.maximum(rng.normal(size=n), 0),
        lambda n: rng.standard_t(2, n),
    ][kind]
    parts = [make(n + 1).astype(np.float32) for n in sizes]
    hist = seen(parts, device=device)
    second = IfmrPass(ifmr_candidates(*percentile_range(hist, settings), settings))
    for part in parts[::-1]:
        second.update(part.reshape(-1, 1), device=device)
    assert second.total == hist.total
    whole = np.concatenate(parts)
    got, want = second.params(), search(whole, settings, device)
    if got != want:  # only where two losses differ by less than the order of summing
        losses = np.sort(second.losses)
        assert losses[1] - losses[0] <= 1e-9 * losses[0]


@pytest.mark.parametrize("device", DEVICES)
def test_large_data_sums_over_chunks_like_the_reference(device: str):
    x = np.random.default_rng(0).normal(size=10_007).astype(np.float32)
    c = ifmr_candidates(-4.0, 4.0, Ifmr())
    one, want = IfmrPass(c), IfmrPass(c)
    one.update(x, device=device)
    want.update(x, device="reference")
    np.testing.assert_allclose(one.losses, want.losses, rtol=1e-13)


@cases.examples(20)
@given(
    st.integers(0, 10**6),
    st.sampled_from([1, 2047, 2048, 2049, 65_536, 70_001]),
    st.sampled_from(["normal", "relu", "ties", "heavy"]),
    st.booleans(),
)
def test_losses_equal_the_reference_on_many_blocks(seed, count, kind, asymmetric):
    rng = np.random.default_rng(seed)
    x = {
        "normal": rng.normal(size=count),
        "relu": np.maximum(rng.normal(size=count), 0),
        "ties": rng.integers(-300, 300, count) * 0.5,
        "heavy": rng.standard_t(1, count),
    }[kind].astype(np.float32)
    # the ratio 1 makes the scale 1 where the range is 255: halves are ties then
    c = ifmr_candidates(-127.5, 127.5, Ifmr((0.5, 1.5), 0.25, asymmetric=asymmetric))
    passes = [IfmrPass(c), IfmrPass(c)]
    for one, device in zip(passes, DEVICES, strict=True):
        one.update(x, device=device)
    np.testing.assert_allclose(passes[1].losses, passes[0].losses, rtol=1e-13)


def test_the_number_of_threads_makes_no_difference():
    numba = pytest.importorskip("numba")
    x = np.random.default_rng(1).normal(size=200_001).astype(np.float32)
    losses = []
    for threads in {1, numba.config.NUMBA_NUM_THREADS}:
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        try:
            one = IfmrPass(ifmr_candidates(-4.0, 4.0, Ifmr()))
            one.update(x)
        finally:
            numba.set_num_threads(before)
        losses.append(one.losses.tolist())
    assert all(found == losses[0] for found in losses)


@pytest.mark.parametrize("device", DEVICES)
def test_zeros_count_where_a_range_does_not_hold_zero(device: str):
    """Zeros have no error as a rule, and are left out: not here."""
    lows, highs = np.array([[0.5, -1.0], [2.0, 1.0]], np.float32)
    one = IfmrPass(IfmrCandidates(lows, highs, np.array([0.5, 0.5], np.float32), True, 8))
    one.update(np.array([0, 0, 1.25], np.float32), device=device)
    assert one.losses.tolist() == [2 * 0.5**2 + 0.25**2, 0.25**2]


@cases.examples(300)
@given(
    st.one_of(
        cases.floats32(),
        cases.floats32(-300, 300),
        st.integers(-600, 600).map(lambda n: n * 0.5),
        st.integers(-600, 600).map(
            lambda n: float(np.nextafter(np.float32(n * 0.5), np.float32(0)))
        ),
    )
)
def test_halves_are_rounded_like_everywhere_else(value: float):
    """The scale is 1 and nothing is clipped: the loss tells what a value was rounded to."""
    limit = np.full(1, cases.FLOAT_MAX, np.float32)
    candidates = IfmrCandidates(-limit, limit, np.ones(1, np.float32), True, 8)
    losses = []
    for device in DEVICES:
        one = IfmrPass(candidates)
        one.update(np.array([value], np.float32), device=device)
        losses.append(one.losses.tolist())
    assert losses[0] == losses[1]


# ------------------------------------------------------------------------------------- edges


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("values", "asymmetric", "scale", "offset"),
    [
        ([5.0] * 9, True, 5 / 255, -128),
        ([5.0] * 9, False, 5 / 127, 0),
        ([-5.0] * 9, True, 5 / 255, 127),
        ([-5.0] * 9, False, 5 / 128, 0),
        ([0.0] * 9, True, 1.0, -128),
        ([0.0], False, 1.0, 0),
        ([1e-40, -1e-40], True, 1.0, -128),
    ],
)
def test_constant_and_vanishing_data(device, values, asymmetric, scale, offset):
    p = ifmr(np.array(values, np.float32), asymmetric=asymmetric, device=device)
    assert p.scale == pytest.approx(scale, rel=1e-6)
    assert p.offset == offset


@pytest.mark.parametrize("device", DEVICES)
def test_values_that_cannot_be_used(device: str):
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(NotFiniteError):
            ifmr(np.array([1, bad, 2], np.float32), device=device)
    with pytest.raises(ValueError, match="x is empty"):
        ifmr(np.empty((0, 3), np.float32), device=device)
    for huge in ([1e38, -1e38], [3e38], [-3e38]):
        with pytest.raises(ValueError, match="out of range"):
            ifmr(np.array(huge, np.float32), device=device)
    with pytest.raises(TypeError, match="x must be float32"):
        ifmr(np.ones(3), device=device)


@pytest.mark.parametrize("device", DEVICES)
def test_an_outlier_whose_square_leaves_float32_is_no_obstacle(device: str):
    x = np.append(np.linspace(0, 1, 3000, dtype=np.float32), np.float32(1e25))
    p = ifmr(x, max_percentile=0.99, device=device)
    assert 0.7 * 0.98 / 255 < p.scale < 1.3 / 255


@pytest.mark.parametrize("device", DEVICES)
def test_a_pass_without_data_or_with_nan_has_no_result(device: str):
    second = IfmrPass(ifmr_candidates(0.0, 1.0, Ifmr()))
    with pytest.raises(ValueError, match="no data"):
        second.params()
    second.update(np.empty(0, np.float32), device=device)
    with pytest.raises(ValueError, match="no data"):
        second.params()
    for bad in (math.nan, math.inf, -math.inf):
        second = IfmrPass(second.candidates)
        second.update(np.array([0.5, bad], np.float32), device=device)
        second.update(np.ones(3, np.float32), device=device)
        with pytest.raises(ValueError, match="NaN or infinity"):
            second.params()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"search_range": (0.0, 1.0)}, "search_range must be"),
        ({"search_range": (1.3, 0.7)}, "search_range must be"),
        ({"search_range": (1.0, 1.0)}, "search_range must be"),
        ({"search_range": (0.7, math.inf)}, "search_range must be"),
        ({"search_range": (math.nan, 1.0)}, "search_range must be"),
        ({"search_step": 0.0}, "search_step must be"),
        ({"search_step": -0.1}, "search_step must be"),
        ({"search_step": 0.7}, "search_step must be"),
        ({"search_step": math.nan}, "search_step must be"),
        ({"search_step": 1e-9}, "search_step 1e-09 is too small"),
        ({"search_step": 1e-50}, "search_step 1e-50 is too small"),
        ({"max_percentile": 0.5}, "max_percentile must be"),
        ({"max_percentile": 1.1}, "max_percentile must be"),
        ({"min_percentile": 0.0}, "min_percentile must be"),
        ({"min_percentile": math.nan}, "min_percentile must be"),
    ],
)
def test_settings_out_of_range_are_named(wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Ifmr(**wrong)
    with pytest.raises(ValueError, match=message):
        ifmr(np.ones(3, np.float32), **wrong)


def test_bits_out_of_range_are_refused():
    for bits in (1, 9):
        with pytest.raises(ValueError, match="bits must be"):
            ifmr(np.ones(3, np.float32), bits=bits)


@pytest.mark.parametrize("device", DEVICES)
def test_a_tie_of_the_ends_counts_as_negative(device: str):
    p = ifmr(np.array([1, -1], np.float32), (1.0, 1.5), 0.5, asymmetric=False, device=device)
    assert p.scale == 1 / 128


SIZES = st.sampled_from([0, 1, 7, 255, 256, 257, 511, 512, 1000, 4096])
KINDS = st.sampled_from(["normal", "relu", "negative", "constant", "zeros", "ties", "huge"])


def data_of(kind: str, size: int, seed: int, scale: np.float32) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = {
        "normal": lambda: rng.standard_normal(size),
        "relu": lambda: np.maximum(rng.standard_normal(size), 0),
        "negative": lambda: -np.abs(rng.standard_normal(size)),
        "constant": lambda: np.full(size, -0.7),
        "zeros": lambda: np.zeros(size) * rng.choice([-1, 1], size),
        "huge": lambda: rng.uniform(-1, 1, size) * 2.0 ** rng.integers(-100, 60, size),
        # half-way between two steps, and one float32 beside it
        "ties": lambda: (rng.integers(-200, 200, size) + 0.5) * np.float64(scale),
    }[kind]()
    out = x.astype(np.float32)
    side = rng.integers(-1, 2, size).astype(np.float32)
    return np.where(side == 0, out, np.nextafter(out, side * np.float32(9e9))).astype(np.float32)


def candidates(scale: np.float32, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scales = scale * (1 + np.arange(count, dtype=np.float32) / 8)
    return -scales * np.float32(100), scales * np.float32(155), scales


def lanes_here() -> list[int]:
    able = (k for k in choice.all_kernels() if choice.runs_here(k))
    return sorted({k.lanes for k in able if k.operands.data == "float32"})


@cases.examples(150)
@given(KINDS, SIZES, st.integers(0, 99), st.sampled_from([1e-6, 0.0123, 1.0, 3e4, 1e36]))
def test_squared_errors_of_any_data_equal_the_reference(kind, size, seed, scale):
    given_as = candidates(np.float32(scale), 5)
    x = data_of(kind, size, seed, np.float32(scale))
    one, two = (backend(d, "ifmr").squared_errors(x, *given_as) for d in ("reference", "cpu"))
    np.testing.assert_allclose(two, one, rtol=1e-13)
    steps = given_as[0], given_as[1], given_as[2] / np.float32(97)  # far more than 8 bits
    one, two = (backend(d, "ifmr").squared_errors(x, *steps) for d in ("reference", "cpu"))
    np.testing.assert_allclose(two, one, rtol=1e-13)


def test_values_that_do_not_lie_together_are_weighed_alike():
    lows, highs, scales = candidates(np.float32(0.01), 6)
    for x in (np.linspace(-1, 2, 3000, dtype=np.float32)[::3], np.broadcast_to(np.float32(1), 700)):
        for lo in (lows[::2], lows[::2] + np.float32(1.5)):  # the second do not hold zero
            given_as = x, lo, highs[::2], scales[::2]
            one, two = (backend(d, "ifmr").squared_errors(*given_as) for d in ("reference", "cpu"))
            np.testing.assert_allclose(two, one, rtol=1e-13)


@pytest.mark.parametrize("lanes", lanes_here())
@cases.examples(40)
@given(KINDS, st.integers(1, 3), st.integers(0, 99))
def test_errors_of_every_instruction_set(lanes, kind, blocks, seed):
    lows, highs, scales = candidates(np.float32(0.01), 4)
    x = data_of(kind, blocks * ifmr_loss.BLOCK, seed, np.float32(0.01))
    shares, sums = np.float32(1) / scales, np.zeros((4, lanes))
    code = compile_text(ifmr_loss.errors_text(lanes), "add_errors")
    shares[3] = np.nan  # divides always
    at = [a.ctypes.data for a in (x, lows, highs, scales, shares, sums)]
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 8)(code)
    function(at[0], blocks, *at[1:5], 4, at[5])
    want = backend("reference", "ifmr").squared_errors(x, lows, highs, scales)
    np.testing.assert_allclose(sums.sum(axis=1), want, rtol=1e-13)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("size", [5, 256, 600])
def test_data_that_is_not_finite_has_no_finite_error(bad: float, size: int):
    for at in (0, size // 2, size - 1):
        x = np.full(size, 0.5, np.float32)
        x[at] = bad
        losses = backend("cpu", "ifmr").squared_errors(x, *candidates(np.float32(0.01), 3))
        assert not np.isfinite(losses).any()
