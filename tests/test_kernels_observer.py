"""An observer is a histogram and a search: nothing of its own comes in between."""

from __future__ import annotations

from typing import get_args

import kernel_cases as cases
import numpy as np
import pytest

import kernels
from kernels import Histogram, NotFiniteError, Observer

BATCHES = [cases.normal(np.random.default_rng(i), 30, 7) * np.float32(1 + i) for i in range(3)]


def observed(*batches: np.ndarray, **settings: object) -> Observer:
    observer = Observer(**settings)  # type: ignore[arg-type]
    for batch in batches:
        assert observer.observe(batch) is batch
    return observer


@pytest.mark.parametrize("device", cases.DEVICES)
@pytest.mark.parametrize("method", [*kernels.METHODS, kernels.Mse(40, asymmetric=False)])
def test_it_chooses_what_a_search_on_a_histogram_does(method: object, device: str):
    hist = Histogram()
    for batch in BATCHES:
        hist.update(batch, device=device)
    for bits in (8, 4):
        observer = observed(*BATCHES, method=method, bits=bits, device=device)
        want = kernels.search_params(hist, method, bits=bits, device=device)  # type: ignore[arg-type]
        assert observer.params() == want
        assert observer.histogram.total == hist.total


def test_mse_with_8_bits_is_the_default():
    hist = Histogram()
    hist.update(BATCHES[0])
    assert observed(BATCHES[0]).params() == kernels.search_params(hist, "mse")


def test_merging_is_as_if_one_had_seen_all():
    parts = [observed(batch) for batch in BATCHES]
    for part in parts[1:]:
        parts[0].merge(part)
    assert parts[0].params() == observed(*BATCHES).params()


def test_after_a_reset_nothing_was_seen():
    observer = observed(*BATCHES)
    observer.reset()
    assert observer.histogram.total == 0
    with pytest.raises(ValueError, match="the histogram is empty"):
        observer.params()
    observer.observe(BATCHES[1])
    assert observer.params() == observed(BATCHES[1]).params()


def test_wrong_settings_are_refused_at_once():
    for settings, error, message in (
        ({"method": "max"}, ValueError, "method 'max' is unknown"),
        ({"method": 3}, TypeError, "method must be a name or a settings object"),
        ({"bits": 9}, ValueError, "bits must be"),
        ({"device": "gpu"}, ValueError, "device 'gpu' is unknown"),
    ):
        with pytest.raises(error, match=message):
            Observer(**settings)  # type: ignore[arg-type]


def test_wrong_data_is_refused_and_leaves_what_was_seen():
    observer = observed(BATCHES[0])
    with pytest.raises(NotFiniteError):
        observer.observe(np.array([1.0, np.nan], np.float32))
    with pytest.raises(TypeError, match="x must be float32, not float64"):
        observer.observe(np.zeros(3))
    assert observer.histogram.total == BATCHES[0].size


def test_tensors_may_require_a_gradient():
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(BATCHES[0].copy()).requires_grad_()
    observer = Observer()
    assert observer.observe(x) is x
    assert observer.params() == observed(BATCHES[0]).params()


def test_literal_types_name_what_there_is():
    assert get_args(kernels.MethodName) == tuple(kernels.METHODS)
    assert kernels.DEVICES == get_args(kernels.Device) == ("reference", "cpu", "cuda")
