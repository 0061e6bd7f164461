"""ARQ: scales of weights, against the original's results and the oracle."""

from __future__ import annotations

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
    arq,
    arq_fake_quantize,
    dequantize_weights,
    fake_quantize_weights,
    quantize_weights,
)


def symmetric_cases() -> list[str]:
    found = []
    for path in sorted((GOLDENS / "amct").glob("arq_*.npz")):
        with np.load(path) as z:
            if not json.loads(str(z["params"][0]))["with_offset"]:
                found.append(path.stem)
    return found


def test_the_goldens_are_there():
    assert len(symmetric_cases()) == 7


@pytest.mark.parametrize("name", symmetric_cases())
def test_scales_and_weights_equal_the_original(name: str):
    with np.load(GOLDENS / "amct" / f"{name}.npz") as z:
        golden = dict(z)
    params = json.loads(str(golden["params"][0]))
    axis = 0 if params["channel_wise"] else None
    w = golden["w"]
    scales = arq(w, axis)
    assert scales.dtype == np.float32
    assert scales.tolist() == golden["scales"].tolist()
    q = quantize_weights(w, scales)
    assert (q == golden["q"]).all()
    assert (dequantize_weights(q, scales) == golden["fq"]).all()
    assert (fake_quantize_weights(w, scales) == golden["fq"]).all()


@cases.examples(100)
@given(st.data(), st.sampled_from([0, 1, 2, -1, -2, None]), st.integers(2, 8))
def test_scales_equal_the_oracle(data: st.DataObject, axis: int | None, bits: int):
    shape = data.draw(st.tuples(*[st.integers(1, 3)] * 3))
    value = st.one_of(cases.floats32(-4e6, 4e6), st.sampled_from([0.0, 1.0, -1.0, 1e-9]))
    size = math.prod(shape)
    flat = data.draw(st.lists(value, min_size=size, max_size=size))
    w = np.array(flat, np.float32).reshape(shape)
    groups: dict[int, list[float]] = {}
    for index in np.ndindex(*shape):
        groups.setdefault(0 if axis is None else index[axis], []).append(float(w[index]))
    got = arq(w, axis, bits=bits)
    assert got.tolist() == [naive.arq(groups[c], bits) for c in range(len(groups))]


@cases.examples(60)
@given(st.integers(0, 10**6), st.integers(2, 8))
def test_errors_stay_below_a_step_and_the_extreme_is_nearly_exact(seed: int, bits: int):
    w = cases.normal(np.random.default_rng(seed), 4, 3, 3)
    scales = arq(w, bits=bits)
    error = np.abs(fake_quantize_weights(w, scales, bits=bits) - w)
    assert (error <= scales[:, None, None] * 1.000001).all()
    rows = w.reshape(4, -1)
    extreme = np.abs(rows).argmax(axis=1)
    assert (error.reshape(4, -1)[range(4), extreme] <= 1e-6 * np.abs(rows).max(axis=1)).all()


def test_deconvolution_weights_have_their_outputs_on_axis_1():
    w = cases.normal(np.random.default_rng(3), 2, 5, 3, 3)
    assert arq(w, 1).tolist() == arq(np.ascontiguousarray(w.transpose(1, 0, 2, 3))).tolist()
    assert arq(w.transpose(1, 0, 2, 3)).tolist() == arq(w, 1).tolist()
    assert arq(w, None).tolist() == [arq(w, 0).max()] or arq(w, None).size == 1


def test_the_sign_of_the_extreme_and_the_edges():
    one = np.float32(1)
    for values, want in (
        ([1, -1], one / np.float32(128)),
        ([1, -0.5], one / np.float32(127)),
        ([-1, 0.5], one / np.float32(128)),
        ([0, 0], 1.0),
        ([1e-9, 0], 1.0),
        ([-1e-20, 1e-20], 1.0),
    ):
        assert arq(np.array([values], np.float32)).tolist() == [want]
    assert arq(np.array(2.54, np.float32), None).tolist() == [naive.f32(naive.f32(2.54) / 127)]


def test_wrong_weights_are_refused():
    w = np.ones((3, 2), np.float32)
    for bad in (math.nan, math.inf, -math.inf):
        w[1, 1] = bad
        with pytest.raises(ValueError, match="NaN or infinity in channel 1"):
            arq(w)
        with pytest.raises(ValueError, match=r"NaN or infinity$"):
            arq(w, None)
    w[1, 1] = 1
    for axis in (2, -3):
        with pytest.raises(ValueError, match="channel_axis"):
            arq(w, axis)
    for empty in (np.empty((0, 3), np.float32), np.empty((3, 0), np.float32)):
        with pytest.raises(ValueError, match="w is empty"):
            arq(empty)
    with pytest.raises(TypeError, match="w must be float32"):
        arq(w.astype(np.float64))
    with pytest.raises(ValueError, match="bits must be"):
        arq(w, bits=1)
    with pytest.raises(ValueError, match="out of range"):
        arq(np.full((1, 2), 3e38, np.float32))


@pytest.mark.parametrize("device", cases.DEVICES)
@pytest.mark.parametrize(
    "shape", [(1,), (1, 1, 1, 1), (3, 5), (4, 3, 3, 3), (2, 1, 7, 1), (70, 900)]
)
def test_fake_quantizing_by_their_own_scales(shape: tuple[int, ...], device: str):
    rng = np.random.default_rng(3)
    w = cases.normal(rng, *shape)
    for axis in (None, 0, -1):
        for bits in (2, 5, 8):
            fake, scales = arq_fake_quantize(w, axis, bits=bits, device=device)
            want = arq(w, axis, bits=bits)
            assert scales.tolist() == want.tolist()
            expected = fake_quantize_weights(w, want, channel_axis=axis or 0, bits=bits)
            assert (fake == expected).all()


@pytest.mark.parametrize("device", cases.DEVICES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_fake_quantizing_names_the_bad_channel(bad: float, device: str):
    w = np.ones((3, 4), np.float32)
    w[2, 1] = bad
    with pytest.raises(ValueError, match="channel 2"):
        arq_fake_quantize(w, 0, device=device)
    with pytest.raises(ValueError, match="NaN or infinity"):
        arq_fake_quantize(w, None, device=device)
