"""Random nets of 5 to 30 layers that real Caffe ran: every blob, in every order of asking."""

from __future__ import annotations

import json
from pathlib import Path

import kernel_cases as cases
import numpy as np
import pytest
from conftest import GOLDENS

import caffeio
from pipeline import FloatNet

CASES = sorted((GOLDENS / "random").glob("*.npz"))


def check(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    for name, array in got.items():
        largest = float(np.abs(want[name]).max(initial=0))
        assert array.shape == want[name].shape
        np.testing.assert_allclose(
            array, want[name], rtol=1e-4, atol=1e-5 * max(1.0, largest), err_msg=name
        )


def test_all_nets_are_here():
    assert len(CASES) == 123


@pytest.mark.parametrize("device", cases.DEVICES)
@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_equals_caffe_in_every_order_of_asking(case: Path, device: str, tmp_path: Path):
    pytest.importorskip("h5py")
    with np.load(case) as stored:
        arrays = dict(stored)
    (tmp_path / "net.prototxt").write_bytes(arrays["prototxt"].tobytes())
    weights = arrays["h5"] if "h5" in arrays else arrays["caffemodel"]
    (tmp_path / "weights").write_bytes(weights.tobytes())
    inputs = {k[3:]: v for k, v in arrays.items() if k.startswith("in_")}
    want = {k[4:]: v for k, v in arrays.items() if k.startswith("out_")} | inputs
    net = FloatNet(caffeio.read_net(tmp_path / "net.prototxt", tmp_path / "weights"), device=device)
    outputs = net.forward(inputs)
    assert sorted(outputs) == json.loads(str(arrays["outputs"]))
    check(outputs, want)
    names = sorted(want.keys() - inputs.keys())
    np.random.default_rng(0).shuffle(names)
    for name in names:
        check(net.forward(inputs, [name]), want)
    check(net.forward(inputs), want)
