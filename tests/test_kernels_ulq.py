"""ULQ: fake quantization with a learned range, against the original and the oracle."""

from __future__ import annotations

import json
import math
from pathlib import Path

import kernel_cases as cases
import naive
import numpy as np
import pytest
from conftest import GOLDENS
from hypothesis import given
from hypothesis import strategies as st

import kernels
from kernels import ClipRange, guard_clips, ulq_backward, ulq_forward, ulq_grid

DEVICES = cases.DEVICES
GOLDEN = sorted((GOLDENS / "amct").glob("ulq_*.npz"))


def test_the_goldens_are_there():
    assert len(GOLDEN) == 10


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_equals_the_original(path: Path, device: str):
    with np.load(path) as z:
        golden = dict(z)
    p = json.loads(str(golden["params"][0]))
    before = ClipRange(p["clip_max"], p["clip_min"], p["clip_max_pre"], p["clip_min_pre"])
    clips = guard_clips(before, fixed_min=p["fixed_min"])
    found = [clips.high, clips.low, clips.previous_high, clips.previous_low]
    assert found == pytest.approx(golden["clip"].tolist(), rel=1e-7)
    grid = ulq_grid(clips.high, clips.low, bits=p["num_bits"])
    assert (grid.scale, grid.zero) == (golden["scale"], golden["offset"])
    assert (ulq_forward(golden["x"], grid, device=device) == golden["y"]).all()
    dx, by_max, by_min = ulq_backward(golden["x"], golden["top_diff"], grid, device=device)
    assert (dx == golden["bottom_diff"]).all()
    scale = float(np.abs(golden["top_diff"]).sum()) / 255  # what the sums are made of
    assert by_max == pytest.approx(float(golden["clip_max_diff"]), rel=1e-5, abs=1e-6 * scale)
    assert by_min == pytest.approx(float(golden["clip_min_diff"]), rel=1e-5, abs=1e-6 * scale)


ranges = st.tuples(cases.floats32(0.0, 1e4), cases.floats32(-1e4, 0.0)).filter(
    lambda r: r[0] > r[1]
)


@pytest.mark.parametrize("device", DEVICES)
@cases.examples(100)
@given(st.data(), ranges, st.integers(2, 8))
def test_equals_the_oracle(device: str, data: st.DataObject, clips: tuple, bits: int):
    grid = ulq_grid(*clips, bits=bits)
    near = st.integers(-300, 300).map(lambda i: naive.f32(i / 2 * grid.scale))
    size = data.draw(st.integers(1, 20))
    value = st.one_of(near, cases.floats32(-2e4, 2e4), st.sampled_from([*clips, 0.0]))
    xs = data.draw(st.lists(value, min_size=size, max_size=size))
    gs = data.draw(st.lists(cases.floats32(-4, 4), min_size=size, max_size=size))
    x, g = np.array(xs, np.float32), np.array(gs, np.float32)
    want = [naive.ulq(a, b, *clips, bits) for a, b in zip(x.tolist(), g.tolist(), strict=True)]
    y, dx, by_max, by_min = zip(*want, strict=True)
    assert ulq_forward(x, grid, device=device).tolist() == list(y)
    got = ulq_backward(x, g, grid, device=device)
    assert got[0].tolist() == list(dx)
    assert got[1] == pytest.approx(math.fsum(by_max), rel=1e-12, abs=1e-30)
    assert got[2] == pytest.approx(math.fsum(by_min), rel=1e-12, abs=1e-30)


@pytest.mark.parametrize("shape", [(0,), (1,), (1, 1, 1, 1), (3, 5, 7), (40_000,), (16_384, 2)])
def test_every_size_and_shape(shape: tuple[int, ...]):
    rng = np.random.default_rng(1)
    x, g = cases.normal(rng, *shape), cases.normal(rng, *shape)
    grid = ulq_grid(1.2, -0.9)
    want = ulq_backward(x, g, grid, device="reference")
    got = ulq_backward(x, g, grid)
    assert got[0].shape == shape
    assert (got[0] == want[0]).all()
    assert got[1:] == pytest.approx(want[1:], rel=1e-9)
    assert (ulq_forward(x, grid) == ulq_forward(x, grid, device="reference")).all()


@pytest.mark.parametrize("device", DEVICES)
def test_nan_stays_and_infinity_saturates(device: str):
    grid = ulq_grid(3.0, -1.0)
    x = np.array([math.nan, math.inf, -math.inf, 0.0], np.float32)
    y = ulq_forward(x, grid, device=device)
    assert math.isnan(y[0])
    assert y[1:].tolist() == [grid.high, grid.low, 0.0]
    dx, by_max, by_min = ulq_backward(x, np.ones(4, np.float32), grid, device=device)
    assert dx[1:].tolist() == [0.0, 0.0, 1.0]
    assert math.isnan(by_max)
    assert math.isnan(by_min)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_are_those_of_the_loss_averaged_over_steps(device: str):
    """Where x is uniform over a wide range, the mean slope of y by the clips is known."""
    x = np.linspace(-6, 6, 200_001).astype(np.float32)
    g = np.ones_like(x) / x.size
    dx, by_max, by_min = ulq_backward(x, g, ulq_grid(2.0, -1.0), device=device)
    assert dx.sum(dtype=np.float64) == pytest.approx(3 / 12, abs=2e-3)  # the share inside
    assert by_max == pytest.approx(4 / 12, abs=2e-3)  # the share above moves with clip_max
    assert by_min == pytest.approx(5 / 12, abs=2e-3)


def test_the_grid_is_that_of_inference():
    grid = ulq_grid(2.0, -0.5)
    assert grid.params() == kernels.params_from_range(-0.5, 2.0)
    x = np.linspace(-1, 3, 999).astype(np.float32)
    assert (kernels.fake_quantize(x, grid.params()) == ulq_forward(x, grid)).all()


@pytest.mark.parametrize(
    ("clips", "want"),
    [
        ((1, -1, 2, -2), (1, -1)),
        ((-1, 1, 2, -2), (2, -2)),
        ((0, 0, 2, -2), (2, -2)),
        ((-0.5, -1, 2, -2), (2, -1)),
        ((1, 0.5, 2, -2), (1, -2)),
        ((math.nan, -1, 2, -2), (2, -2)),
    ],
)
def test_guards(clips: tuple, want: tuple):
    got = guard_clips(ClipRange(*clips))
    assert (got.high, got.low) == want
    assert (got.previous_high, got.previous_low) == want
    fixed = guard_clips(ClipRange(*clips), fixed_min=True)
    assert (fixed.high, fixed.low) == (want[0], 0.0)
    assert fixed.previous_low == want[1]


@pytest.mark.parametrize(
    "clips", [(1.0, 1.0), (0.0, 1.0), (math.nan, 0.0), (math.inf, 0.0), (3e38, -3e38)]
)
def test_a_range_without_steps_is_refused(clips: tuple[float, float]):
    with pytest.raises(ValueError):
        ulq_grid(*clips)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="gradient"):
        ulq_backward(np.zeros(3, np.float32), np.zeros(4, np.float32), ulq_grid(1.0, 0.0))
