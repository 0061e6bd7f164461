"""The histogram: what is counted where, and that no order or split makes a difference."""

from __future__ import annotations

import ctypes
import math
from fractions import Fraction

import kernel_cases as cases
import naive
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kernels import Histogram, NotFiniteError
from kernels.cpu.codegen import bin_index
from kernels.cpu.codegen.microkernels import choice
from kernels.cpu.codegen.native import compile_text
from kernels.histogram import exponent_for

DEVICES = cases.DEVICES
TINY = [0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, -3e-39, 2.0**-126, 2.0**-112]
values32 = st.one_of(
    cases.floats32(),
    cases.floats32(-4, 4),
    cases.floats32(-1e-37, 1e-37),
    st.sampled_from([*TINY, 1.0, -1.0, 2.0, 1e38, -1e38, cases.FLOAT_MAX, -cases.FLOAT_MAX]),
).map(naive.f32)
batches32 = st.lists(st.lists(values32, max_size=12), min_size=1, max_size=5)


def f32(values: list[float]) -> np.ndarray:
    return np.array(values, np.float32)


def observed(batches: list[list[float]], device: str, half: int = 8, tail: int = 3) -> Histogram:
    hist = Histogram(half=half, tail=tail)
    for batch in batches:
        hist.update(f32(batch), device=device)
    return hist


def state(hist: Histogram) -> tuple:
    """All that a histogram holds, bit for bit."""
    ends = tuple(math.copysign(1, v) * v if v == v else "none" for v in (hist.low, hist.high))
    signs = np.signbit(f32([hist.low, hist.high])).tolist()
    return (
        hist.counts.tolist(),
        hist.exponent,
        hist.total,
        hist.zeros,
        ends,
        signs,
        hist.smallest.tobytes(),
        hist.largest.tobytes(),
    )


def kept(hist: Histogram, values: list[float]) -> None:
    """Check every number of the histogram against the values themselves."""
    exponent = naive.histogram_exponent(values, hist.half)
    counts = [0] * (2 * hist.half)
    for v in values:
        counts[naive.histogram_bin(v, exponent, hist.half)] += 1
    assert hist.exponent == exponent
    assert hist.counts.tolist() == counts
    assert hist.counts.dtype == np.int64
    assert hist.total == len(values)
    assert hist.zeros == sum(v == 0 for v in values)
    assert (hist.low, hist.high) == (min(values), max(values))
    ranks = range(1, min(hist.tail, len(values)) + 1)
    assert hist.largest.tolist() == [naive.kth_largest(values, k) for k in ranks]
    assert hist.smallest.tolist() == [naive.kth_smallest(values, k) for k in ranks]


# ---------------------------------------------------------------------------------- counting


@pytest.mark.parametrize("device", DEVICES)
@cases.examples(150)
@given(batches32)
def test_counts_tails_and_ends_equal_the_oracle(device: str, batches: list[list[float]]):
    hist = observed(batches, device)
    values = [v for batch in batches for v in batch]
    if values:
        kept(hist, values)
    else:
        assert (hist.total, hist.counts.sum()) == (0, 0)
        assert math.isnan(hist.low)


@pytest.mark.parametrize("device", DEVICES)
@cases.examples(150)
@given(batches32, st.randoms(use_true_random=False))
def test_order_batches_and_merging_make_no_difference(device, batches, random):
    whole = observed([[v for batch in batches for v in batch]], device)
    mixed = [v for batch in batches for v in batch]
    random.shuffle(mixed)
    parts = [observed([batch], device) for batch in batches]
    order = list(range(len(parts)))
    random.shuffle(order)
    merged = Histogram(half=8, tail=3)
    for i in order:
        merged.merge(parts[i])
    while len(parts) > 1:  # as a tree, in whatever order
        a = parts.pop(random.randrange(len(parts)))
        parts[random.randrange(len(parts))].merge(a)
    for hist in (
        observed(batches, device),
        observed(batches[::-1], device),
        observed([mixed], device),
        merged,
        parts[0],
    ):
        assert state(hist) == state(whole)


@cases.examples(60)
@given(batches32)
def test_devices_hold_the_same_state(batches: list[list[float]]):
    assert state(observed(batches, "reference")) == state(observed(batches, "cpu"))


@pytest.mark.parametrize("device", DEVICES)
def test_many_values_split_over_threads_and_chunks(device: str):
    rng = np.random.default_rng(5)
    x = (rng.standard_t(2, 100_003) * rng.choice([0, 1e-3, 1], 100_003)).astype(np.float32)
    hist = Histogram(half=1 << 10, tail=700)
    for part in np.array_split(x.reshape(-1), [7, 40_000, 40_001]):
        hist.update(part, device=device)
    width = 2.0**hist.exponent
    index = np.floor(np.abs(x.astype(np.float64)) / width).astype(int)
    place = np.where(x < 0, hist.half - 1 - index, hist.half + index)
    assert (hist.counts == np.bincount(place, minlength=2048)).all()
    assert hist.zeros == (x == 0).sum()
    assert (hist.largest == np.sort(x)[::-1][:700]).all()
    assert (hist.smallest == np.sort(x)[:700]).all()


def test_the_number_of_threads_makes_no_difference():
    numba = pytest.importorskip("numba")
    x = np.random.default_rng(1).normal(size=700_001).astype(np.float32)
    x[600_000:] *= 10  # beyond the bins that the other threads still find wide enough
    states = []
    for threads in {1, numba.config.NUMBA_NUM_THREADS}:
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        try:
            hist = Histogram(half=64, tail=5)
            hist.update(x[:1000], device="cpu")
            hist.update(x, device="cpu")
        finally:
            numba.set_num_threads(before)
        states.append(state(hist))
    assert all(s == states[0] for s in states)


BLOCK = 1 << 12
pieces32 = st.lists(
    st.tuples(
        st.sampled_from(["normal", "relu", "zeros", "constant", "negative", "tiny", "rising"]),
        st.sampled_from([1, 511, 512, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK]),
        st.sampled_from([1e-40, 1e-3, 1.0, 7.5, 1e20]),
    ),
    min_size=1,
    max_size=5,
)


def pieces_of(pieces: list[tuple[str, int, float]], seed: int) -> list[np.ndarray]:
    """Runs of data that blocks treat in different ways, each with its own range."""
    rng = np.random.default_rng(seed)
    make = {
        "normal": rng.standard_normal,
        "relu": lambda n: np.maximum(rng.standard_normal(n), 0),
        "zeros": lambda n: np.zeros(n) * rng.choice([-1, 1], n),
        "constant": lambda n: np.full(n, -0.7),
        "negative": lambda n: -np.abs(rng.standard_normal(n)),
        "tiny": lambda n: rng.integers(-3, 4, n) * 1e-45,
        "rising": lambda n: np.linspace(-1, 1, n),
    }
    return [(make[kind](n) * scale).astype(np.float32) for kind, n, scale in pieces]


@cases.examples(60)
@given(pieces32, st.integers(0, 100), st.sampled_from([2, 64, 1 << 14]), st.integers(1, 3000))
def test_blocks_that_outgrow_the_bins_are_counted_like_all_others(pieces, seed, half, tail):
    parts = pieces_of(pieces, seed)
    whole = np.concatenate(parts)
    hists = [Histogram(half, tail) for _ in range(4)]
    hists[0].update(whole, device="reference")
    hists[1].update(whole, device="cpu")
    for part in parts:
        hists[2].update(part, device="cpu")
        hists[3].merge(seen_alone(part, half, tail))
    assert all(state(h) == state(hists[0]) for h in hists[1:])


def seen_alone(x: np.ndarray, half: int, tail: int) -> Histogram:
    hist = Histogram(half, tail)
    hist.update(x, device="cpu")
    return hist


def test_a_value_that_cannot_be_counted_leaves_no_trace_of_those_before_it():
    x = np.random.default_rng(0).normal(size=300_000).astype(np.float32)
    hist, clean = Histogram(tail=9), Histogram(tail=9)
    for h in (hist, clean):
        h.update(x[:1000])
    for at in (0, 5000, x.size - 1):
        for bad in (math.nan, math.inf, -math.inf):
            spoilt = x.copy()
            spoilt[at] = bad
            for part in (spoilt, spoilt * np.float32(50)):  # within the bins, and beyond them
                with pytest.raises(NotFiniteError):
                    hist.update(part)
                assert state(hist) == state(clean)
    for h in (hist, clean):
        h.update(x)
    assert state(hist) == state(clean)


def test_nan_of_any_sign_and_payload_is_found():
    for bits in (0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF, 0x7FFFFFFF, 0xFF800001):
        x = np.ones(10, np.float32)
        x.view(np.uint32)[3] = bits
        with pytest.raises(NotFiniteError, match="1 NaN and 0 infinite"):
            Histogram().update(x)


@pytest.mark.parametrize("order", ["rising", "falling", "ends"])
def test_tails_of_sorted_data(order: str):
    x = np.sort(np.random.default_rng(3).normal(size=50_000)).astype(np.float32)
    given_as = {"rising": x, "falling": x[::-1], "ends": np.concatenate([x[::2], x[1::2]])}[order]
    hist = Histogram(tail=700)
    for part in np.array_split(given_as, 3):
        hist.update(np.ascontiguousarray(part))
    assert (hist.largest == x[::-1][:700]).all()
    assert (hist.smallest == x[:700]).all()


@pytest.mark.parametrize("tail", [1, 700, 30_000])
@pytest.mark.parametrize("sizes", [(5_000, 60_000, 1, 200_000), (300_000, 50)])
def test_tails_of_any_length_hold_the_extremes_of_all_batches(tail: int, sizes: tuple[int, ...]):
    """A long tail among many values: candidates are thinned out more than once."""
    rng = np.random.default_rng(tail)
    batches = [
        rng.standard_normal(size, dtype=np.float32) * (i + 1) for i, size in enumerate(sizes)
    ]
    hist = Histogram(tail=tail)
    for batch in batches:
        hist.update(batch)
    ordered = np.sort(np.concatenate(batches))
    assert (hist.smallest == ordered[:tail]).all()
    assert (hist.largest == ordered[::-1][:tail]).all()


@pytest.mark.parametrize("device", DEVICES)
def test_magnitudes_from_the_least_to_the_greatest(device: str):
    batches = [[1e-45, -1e-45, 0.0], [1e-38, -1e-38], [3e-5], [-1.0], [7e12], [1e38, -3.4e38]]
    values = [naive.f32(v) for batch in batches for v in batch]
    hist = observed(batches, device, half=4, tail=20)
    kept(hist, values)
    assert hist.exponent == 126
    assert state(observed(batches[::-1], device, half=4, tail=20)) == state(hist)


@pytest.mark.parametrize("device", DEVICES)
def test_any_shape_and_layout_and_nothing_at_all(device: str):
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    hist = Histogram(half=8, tail=2)
    for part in (
        x[:, ::2].transpose(2, 0, 1),
        x[:, 1:2],
        np.empty((0, 3), np.float32),
        np.array(5, np.float32),
        np.broadcast_to(np.float32(1), (2, 2)),
    ):
        hist.update(part, device=device)
    kept(hist, [*x.reshape(-1).tolist(), 5.0, 1.0, 1.0, 1.0, 1.0])


# ------------------------------------------------------------------------------- reading it


@pytest.mark.parametrize("device", DEVICES)
@cases.examples(100)
@given(batches32.filter(any))
def test_edges_hold_every_value_that_is_not_zero(device: str, batches: list[list[float]]):
    hist = observed(batches, device)
    values = [v for batch in batches for v in batch]
    edges = hist.edges()
    assert edges.counts.sum() == hist.total - hist.zeros
    assert (edges.counts > 0).all()
    assert (edges.left <= edges.right).all()
    assert (edges.right[:-1] <= edges.left[1:]).all()
    if edges.counts.size:
        assert hist.low <= edges.left[0]
        assert edges.right[-1] <= hist.high
    for left, right, count in zip(edges.left, edges.right, edges.counts, strict=True):
        inside = sum(left <= v <= right for v in values if v)
        strictly = sum(left < v < right for v in values if v)
        assert strictly <= count <= inside


@cases.examples(100)
@given(batches32.filter(any), st.data())
def test_ranks_are_exact_in_the_tails_and_in_their_bin_beyond(batches, data):
    hist = observed(batches, "reference")
    values = [v for batch in batches for v in batch]
    width = Fraction(2) ** hist.exponent
    for find, true in (
        (hist.largest_at, naive.kth_largest),
        (hist.smallest_at, naive.kth_smallest),
    ):
        k = data.draw(st.integers(1, len(values)))
        found, exact = find(k)
        want = true(values, k)
        assert exact == (k <= hist.tail)
        if exact:
            assert found == want
        else:
            assert abs(Fraction(found) - Fraction(want)) <= width
            assert min(values) <= found <= max(values)
        for wrong in (0, len(values) + 1):
            with pytest.raises(ValueError, match=f"no value number {wrong} among"):
                find(wrong)


def test_percentiles_beyond_the_tail_are_close():
    x = np.random.default_rng(2).normal(size=50_000).astype(np.float32)
    hist = Histogram(tail=100)
    hist.update(x, device="reference")
    ranked = np.sort(x)
    for k in (101, 2000, 25_000, 40_000):
        assert hist.largest_at(k)[0] == pytest.approx(ranked[-k], abs=2.0**hist.exponent)
        assert hist.smallest_at(k)[0] == pytest.approx(ranked[k - 1], abs=2.0**hist.exponent)


# --------------------------------------------------------------------------------- refusing


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("before", [[], [1.0, -2.0, 0.0]])
def test_nan_and_infinity_leave_the_histogram_as_it_was(device: str, before: list[float]):
    hist = observed([before], device)
    old = state(hist)
    bad = f32([100.0, math.nan, math.inf, -math.inf, math.nan])
    for at in range(3):
        with pytest.raises(NotFiniteError, match="2 NaN and 2 infinite") as caught:
            hist.update(np.roll(bad, at), device=device)
        assert (caught.value.nans, caught.value.infinities) == (2, 2)
        assert state(hist) == old
    many = np.ones(70_000, np.float32)
    many[-1] = math.nan
    with pytest.raises(NotFiniteError, match="1 NaN and 0 infinite"):
        hist.update(many, device=device)
    assert state(hist) == old


def test_only_histograms_of_one_kind_merge():
    hist = observed([[1.0, -3.0]], "reference")
    old = state(hist)
    for half, tail in ((4, 3), (8, 4)):
        with pytest.raises(ValueError, match="do not merge"):
            hist.merge(Histogram(half=half, tail=tail))
    hist.merge(Histogram(half=8, tail=3))
    assert state(hist) == old
    hist.merge(hist)
    kept(hist, [1.0, -3.0] * 2)


@given(batches32, st.lists(values32, max_size=12), st.integers(1, 3))
def test_a_kept_state_goes_on_as_if_it_had_never_been_kept(batches, more, tail):
    """Also with fewer extreme values than before: then as if more had never been kept."""
    hist = observed(batches, "reference")
    fresh = observed(batches, "reference", tail=tail)
    arrays = hist.to_arrays()
    hist.update(f32([1.0, -3e38]), device="reference")  # the arrays are not the histogram's own
    again = Histogram.from_arrays(arrays, tail)
    assert (again.half, again.tail, state(again)) == (8, tail, state(fresh))
    for h in (again, fresh):
        h.update(f32(more), device="reference")
    assert state(again) == state(fresh)
    whole = observed(batches, "reference")
    assert state(Histogram.from_arrays(arrays)) == state(whole)


def test_arrays_that_are_no_state_are_refused():
    arrays = observed([[1.0, 2.0]], "cpu").to_arrays()
    with pytest.raises(ValueError, match="kept 3 extreme values, not 4"):
        Histogram.from_arrays(arrays, 4)
    for wrong in (arrays["counts"][:-1], arrays["counts"] + 1):
        with pytest.raises(ValueError, match="no histogram of 2 values"):
            Histogram.from_arrays({**arrays, "counts": wrong})


def test_wrong_arguments_are_named():
    for half in (0, 1, 3, 12):
        with pytest.raises(ValueError, match="half must be"):
            Histogram(half=half)
    with pytest.raises(TypeError, match="half must be an integer"):
        Histogram(half=8.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tail must be at least 1"):
        Histogram(tail=0)
    with pytest.raises(TypeError, match="tail must be an integer"):
        Histogram(tail=2.5)  # type: ignore[arg-type]
    hist = Histogram()
    with pytest.raises(TypeError, match="x must be float32, not float64"):
        hist.update(np.ones(3))
    with pytest.raises(TypeError, match="x must be a NumPy array"):
        hist.update([1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="device 'gpu' is unknown"):
        hist.update(f32([1.0]), device="gpu")
    assert hist.total == 0
    edges = hist.edges()
    assert (edges.left.size, edges.right.size, edges.counts.size) == (0, 0, 0)


@pytest.mark.parametrize("device", DEVICES)
def test_tails_of_clipped_data_hold_its_ends(device):
    """Clipped data has its ends again and again; the tails need not collect them all."""
    x = np.clip(np.random.default_rng(0).normal(size=5000), -1, 1.5).astype(np.float32)
    hist = Histogram(tail=8)
    for part in (x[:2000], x[2000:], np.array([1.75, -2.0], np.float32)):
        hist.update(part, device=device)
    assert hist.largest.tolist() == [1.75] + [1.5] * 7
    assert hist.smallest.tolist() == [-2.0] + [-1.0] * 7


# ------------------------------------------------------------------- the instruction sets


def vectors() -> list[tuple[int, str]]:
    """Lanes of vectors that this processor has, with the function that leaves zeros out."""
    able = (k for k in choice.all_kernels() if choice.runs_here(k))
    return sorted({(k.lanes, k.compress) for k in able if k.operands.data == "float32"})


kinds32 = st.sampled_from(["normal", "relu", "zeros", "constant", "negative", "tiny", "huge"])


@pytest.mark.parametrize(("lanes", "compress"), vectors())
@cases.examples(80)
@given(kinds32, st.integers(0, 3 * bin_index.RUN), st.integers(0, 99), st.sampled_from([-9, 0, 3]))
@example("relu", bin_index.RUN, 0, 0)
@example("normal", 0, 0, 0)
def test_places_of_every_instruction_set(lanes, compress, kind, size, seed, shift):
    x = data_of(kind, size, seed)
    half, exponent = 64, exponent_for(float(np.abs(x).max(initial=0)), 64) + max(shift, 0)
    factor, runs = np.float32(2.0**-exponent), -(-size // bin_index.RUN)
    out, kept = np.full(size + bin_index.TURNS, -1, np.int32), np.zeros(1, np.int64)
    lows, highs = np.zeros((2, max(runs, 1)), np.int32)
    code = compile_text(bin_index.place_text(lanes, compress), "place")
    numbers = int(size), int(factor.view(np.int32)), half
    if size:
        pointers = (out.ctypes.data, lows.ctypes.data, highs.ctypes.data, kept.ctypes.data)
        ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 8)(code)(x.ctypes.data, *numbers, *pointers)
    found = out[: kept[0]]
    index = (np.abs(x[x != 0]).astype(np.float64) * 2.0**-exponent).astype(np.int64)
    want = np.where(x[x != 0] < 0, half - 1 - index, half + index)
    assert found[found < 2 * half].tolist() == want.tolist()
    assert (found < 2 * half + bin_index.TURNS).all()
    for r in range(runs):
        part = x[r * bin_index.RUN : (r + 1) * bin_index.RUN]
        ends = np.array([lows[r], highs[r]], np.int32)
        back = np.where(ends < 0, ends ^ 0x7FFFFFFF, ends).astype(np.int32).view(np.float32)
        assert back.tolist() == [part.min(), part.max()]


def data_of(kind: str, size: int, seed: int) -> np.ndarray:
    if kind == "huge":
        rng = np.random.default_rng(seed)
        return (rng.uniform(-1, 1, size) * 2.0 ** rng.integers(-140, 128, size)).astype(np.float32)
    return pieces_of([(kind, size, 1.0)], seed)[0] if size else np.empty(0, np.float32)


@pytest.mark.parametrize(("lanes", "compress"), vectors())
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
def test_a_key_of_every_instruction_set_tells_what_is_not_finite(lanes, compress, bad):
    code = compile_text(bin_index.place_text(lanes, compress), "place")
    for at in (0, 5, 31, 32, 36):
        x = np.ones(37, np.float32)
        x[at] = bad
        out, ends, kept = np.empty(64, np.int32), np.empty(2, np.int32), np.zeros(1, np.int64)
        given_as = out.ctypes.data, ends.ctypes.data, ends[1:].ctypes.data, kept.ctypes.data
        one = int(np.float32(1).view(np.int32))
        ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 8)(code)(x.ctypes.data, 37, one, 8, *given_as)
        assert ends[1] >= 0x7F800000 or ends[0] < -0x7F800000


@cases.examples(60)
@given(st.lists(kinds32, min_size=1, max_size=3), st.integers(0, 99), st.sampled_from([2, 1 << 14]))
def test_any_kind_of_data_gives_the_state_of_the_reference(kinds, seed, half):
    hists = [Histogram(half, 5) for _ in range(2)]
    for i, kind in enumerate(kinds):
        for hist, device in zip(hists, ("reference", "cpu"), strict=True):
            hist.update(data_of(kind, 5000 + 17 * i, seed), device=device)
    assert state(hists[0]) == state(hists[1])


@pytest.mark.parametrize("value", [0.0, 1.0, cases.FLOAT_MAX])
def test_more_of_one_bin_than_a_small_counter_holds(value: float):
    x = np.full(300_000, value, np.float32)
    x[::2] = np.nextafter(np.float32(value), np.float32(0))  # no block is constant
    states = []
    for device in ("reference", "cpu"):
        hist = Histogram(half=2, tail=3)
        hist.update(x, device=device)
        hist.update(np.full(9, 1e-3, np.float32), device=device)
        states.append(state(hist))
    assert states[0] == states[1]
