"""Every one-layer net and legacy net that real Caffe ran: same values, same shapes."""

from __future__ import annotations

from pathlib import Path

import kernel_cases as cases
import numpy as np
import pytest
from conftest import GOLDENS

import caffeio
from pipeline.runtime.executor import FloatNet

CASES = sorted((GOLDENS / "caffe").glob("*.npz"))


def load(case: Path, folder: Path) -> tuple[caffeio.Net, dict, dict]:
    """Return the net, its inputs and what Caffe answered."""
    with np.load(case) as data:
        arrays = dict(data)
    (folder / "net.prototxt").write_bytes(arrays["prototxt"].tobytes())
    (folder / "net.caffemodel").write_bytes(arrays["caffemodel"].tobytes())
    net = caffeio.read_net(folder / "net.prototxt", folder / "net.caffemodel")
    return (
        net,
        {k[3:]: v for k, v in arrays.items() if k.startswith("in_")},
        {k[4:]: v for k, v in arrays.items() if k.startswith("out_")},
    )


def test_all_cases_are_here():
    assert len(CASES) == 104


@pytest.mark.parametrize("device", cases.DEVICES)
@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_equals_caffe(case: Path, device: str, tmp_path: Path):
    net, inputs, expected = load(case, tmp_path)
    runner = FloatNet(net, device=device)
    out = runner.forward(inputs)
    shapes = {value.blob: shape for value, shape in runner.shapes().items()}
    for name, want in expected.items():
        assert out[name].dtype == np.float32
        assert out[name].shape == want.shape == shapes[name]
        np.testing.assert_allclose(out[name], want, rtol=1e-4, atol=1e-5)
