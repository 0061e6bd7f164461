"""Short trainings of random nets against BVLC Caffe 1.0: every loss, every weight at the end.

Where the reference itself errs, the test makes the same error, and is then to agree: that
shows the cause.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("h5py")

from random_trainings import NAMES, golden, train  # noqa: E402
from training_jobs import one_thread  # noqa: E402

from pipeline.errors import PipelineError  # noqa: E402
from pipeline.retrain.module import CaffeModule  # noqa: E402

#: Blobs whose gradient is zero but for rounding (a constant before BatchNorm, ignored targets):
#: RMSProp and Adam divide it by its own size, so that noise decides where they go.
NOISE = {"084": {("convolution8", 1), ("scale13", 0)}, "125": {("ip2", 1)}}


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def last_pass_only(module: CaffeModule, *names: str) -> None:
    """Forget what earlier passes of an iteration added to some gradients."""
    blobs = {p.name: p.tensor for p in module.learned}

    def forget(*_: object) -> None:
        for name in names:
            blobs[name].grad = None

    module.register_forward_pre_hook(forget)


def no_gradient(module: CaffeModule, *names: str) -> None:
    """Let no gradient reach some blobs, which then only decay."""
    for p in module.learned:
        if p.name in names:
            p.tensor.register_hook(torch.zeros_like)


#: What the reference does otherwise than its own gradients say, by golden.
ERRORS: dict[str, Callable[[CaffeModule], None]] = {
    # Parameter, and Scale with as many factors as values, set their gradient where others add
    # to it: with iter_size above 1 the last pass alone counts, divided by iter_size all the same
    "108": lambda m: last_pass_only(m, "parameter2/0", "parameter4/0"),
    "174": lambda m: last_pass_only(m, "scale5/0"),
    # behind a Concat of one bottom, Flatten shares its gradient with the Concat's top, and the
    # layer before keeps the memory that was shared before: it gets no gradient
    "151": lambda m: no_gradient(m, "scale2/0", "scale2/1"),
}


def test_all_trainings_are_there():
    assert len(NAMES) == 62


@pytest.mark.parametrize("name", sorted({*NAMES} - {"018"}))
def test_a_random_training_equals_caffe(name: str, tmp_path: Path):
    want = golden(name)
    run = train(want, tmp_path, ERRORS.get(name))
    np.testing.assert_allclose(run.losses, want.losses, rtol=2e-3, atol=1e-6)
    for (layer, number), blob in want.end.items():
        if (layer, number) in NOISE.get(name, ()):
            continue
        begin, end = (x[layer][number].reshape(blob.shape) for x in (run.begin, run.end))
        moved, far = np.abs(blob - begin).max(initial=0), np.abs(blob - end).max(initial=0)
        least = 1e-6 * np.abs(blob).max(initial=0) + 1e-7
        assert far <= 0.02 * moved + least, f"{layer}/{number}: {far:g} of {moved:g}"


def test_labels_that_the_reference_reads_beyond_its_memory_are_an_error(tmp_path: Path):
    with pytest.raises(PipelineError, match="holds labels 1 to 4; 3 classes allow 0 to 2"):
        train(golden("018"), tmp_path)
