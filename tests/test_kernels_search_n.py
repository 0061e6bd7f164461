"""SearchN against the original's own results and plain loops; exact sums in any order."""

from __future__ import annotations

import json
from pathlib import Path

import kernel_cases as cases
import numpy as np
import pytest
from conftest import GOLDENS
from hypothesis import given
from hypothesis import strategies as st

from kernels import ShiftSearch

DEVICES = cases.DEVICES
NAMES = sorted(p.stem for p in (GOLDENS / "amct").glob("searchn_*.npz"))
INT32 = st.one_of(
    st.integers(-(2**31), 2**31 - 1), st.integers(-70_000, 70_000),
    st.sampled_from([0, -1, 1, 2**31 - 1, -(2**31), 32767 << 16, -32768 << 16]),
)  # fmt: skip


def naive_error(s: int, n: int, truncate: bool) -> int:
    """One value in Python's integers, by the definition."""
    q = int(s / 2**n) if truncate else s // 2**n
    return (min(max(q, -32768), 32767) * 2**n - s) ** 2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_the_originals_results(name: str, device: str):
    with np.load(Path(GOLDENS) / "amct" / f"{name}.npz") as z:
        golden = {key: z[key] for key in z.files}
    settings = json.loads(str(golden["params"][0]))
    if settings["algo"] == "search_n":  # an older search, which truncates
        search = ShiftSearch(settings["channels"], truncate=True)
        search.update(golden["acc"][None], device=device)
        np.testing.assert_array_equal(search.best(), golden["best"])
        np.testing.assert_allclose(search.errors, golden["errors"], rtol=1e-12)
        return
    search = ShiftSearch(settings["channels"])
    for i in range(settings["n_batches"]):
        x = golden[f"batch_{i}"].astype(np.float32)[None]
        search.update(x, golden["deq_scale"], device=device)
    common = settings["broadcast"]
    np.testing.assert_array_equal(search.best(common=common), golden["best"])
    errors = search.errors.sum(axis=0, keepdims=True) if common else search.errors
    np.testing.assert_allclose(errors, golden["errors"], rtol=1e-5)  # summed in float32 there


def test_all_goldens_are_there():
    assert len(NAMES) == 6


@cases.examples(80)
@given(st.data(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 6), st.booleans())
def test_sums_equal_plain_integers(data, n: int, channels: int, size: int, truncate: bool):
    values = data.draw(st.lists(INT32, min_size=n * channels * size, max_size=n * channels * size))
    sums = np.array(values, np.int64).astype(np.int32).reshape(n, channels, size)
    want = [
        [sum(naive_error(int(s), k, truncate) for s in sums[:, c].ravel()) for k in range(1, 17)]
        for c in range(channels)
    ]
    for device in DEVICES:
        search = ShiftSearch(channels, truncate=truncate)
        search.update(sums, device=device)
        assert search.errors.tolist() == [[float(e) for e in row] for row in want]
        assert search.best().tolist() == [row.index(min(row)) + 1 for row in want]
        total = [sum(column) for column in zip(*want, strict=True)]
        assert search.best(common=True).tolist() == [total.index(min(total)) + 1] * channels


@pytest.mark.parametrize("device", DEVICES)
def test_the_order_of_the_batches_does_not_matter(device: str):
    rng = np.random.default_rng(0)
    batches = [
        rng.integers(-(2**31), 2**31, (2, 5, 3, 7), np.int64).astype(np.int32) >> shift
        for shift in (0, 3, 9, 14)
    ]
    whole, parts = ShiftSearch(5), [ShiftSearch(5) for _ in batches]
    for batch, part in zip(batches, parts, strict=True):
        whole.update(batch, device=device)
        part.update(batch[::-1].copy(), device=device)
    merged = ShiftSearch(5)
    for part in reversed(parts):
        merged.merge(part)
    assert (merged.errors == whole.errors).all()
    assert (merged.best() == whole.best()).all()


@pytest.mark.parametrize("device", DEVICES)
def test_extremes(device: str):
    search = ShiftSearch(3)
    search.update(np.zeros((0, 3, 2), np.int32), device=device)
    assert search.best().tolist() == [1, 1, 1]  # nothing seen: the lowest
    sums = np.array([[0, 2**31 - 1, -(2**31)]], np.int32)
    search.update(sums, device=device)  # one by one, without positions
    assert search.best().tolist() == [1, 16, 16]
    assert search.errors[2, 15] == 0
    assert search.errors[1, 0] == float((65534 - (2**31 - 1)) ** 2)


@pytest.mark.parametrize(
    ("sums", "scale", "error", "says"),
    [
        (np.zeros((1, 3, 2), np.int32), None, ValueError, "must be"),
        (np.zeros(2, np.int32), None, ValueError, "must be"),
        (np.zeros((1, 2, 2), np.float32), None, TypeError, "int32"),
        (np.full((1, 2, 2), np.nan, np.float32), np.ones(2, np.float32), ValueError, "NaN"),
        (np.full((1, 2, 2), np.inf, np.float32), np.ones(2, np.float32), ValueError, "NaN"),
        (np.full((1, 2, 2), 1e12, np.float32), np.ones(2, np.float32), ValueError, "beyond int32"),
        (np.zeros((1, 2, 2), np.float32), np.zeros(2, np.float32), ValueError, "positive"),
        (np.zeros((1, 2, 2), np.float32), np.ones(3, np.float32), ValueError, "scale must be"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(sums, scale, error, says):
    search = ShiftSearch(2)
    with pytest.raises(error, match=says):
        search.update(sums, scale)
    with pytest.raises(ValueError, match="different"):
        search.merge(ShiftSearch(2, truncate=True))


def test_too_many_values_are_refused():
    search = ShiftSearch(1)
    search._count = (1 << 31) - 1
    search.update(np.zeros((1, 1, 1), np.int32))
    with pytest.raises(OverflowError):
        search.update(np.zeros((1, 1, 1), np.int32))
