"""LSTM and RNN keep their state from batch to batch, as Caffe does where `cont` says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from layer_nets import with_blobs

import caffeio
from caffeio import NetError
from caffeio.record import LayerRecord, Record
from pipeline import FloatNet, Int8Net, State
from pipeline.quantize.assign import layer_plan
from pipeline.quantize.calibrate import search_exactly
from pipeline.quantize.observe import observe

STEPS, STREAMS, SIZE = 6, 3, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(STEPS, STREAMS, SIZE)).astype(np.float32)
CONT = (RNG.random((STEPS, STREAMS)) < 0.7).astype(np.float32)
CONT[[0, 2, 4]] = [0, 1, 1], [1, 0, 1], [1, 1, 1]


def text(kind: str, steps: int = STEPS) -> str:
    return f"""
name: "sequence"
layer {{ name: "in" type: "Input" top: "x" top: "cont"
  input_param {{ shape {{ dim: {steps} dim: {STREAMS} dim: {SIZE} }}
                 shape {{ dim: {steps} dim: {STREAMS} }} }} }}
layer {{ name: "rec" type: "{kind}" bottom: "x" bottom: "cont" top: "h"
  recurrent_param {{ num_output: 5 }} }}
layer {{ name: "flat" type: "Reshape" bottom: "h" top: "flat"
  reshape_param {{ shape {{ dim: -1 dim: 5 }} }} }}
layer {{ name: "ip" type: "InnerProduct" bottom: "flat" top: "y"
  inner_product_param {{ num_output: 2 }} }}
"""


def net_of(kind: str) -> caffeio.Net:
    rng = np.random.default_rng(1)
    rows = 20 if kind == "LSTM" else 5
    blobs = [(rows, SIZE), (rows,), (rows, 5)] + ([(5, 5), (5,)] if kind == "RNN" else [])
    weights = {"rec": [rng.normal(size=s) for s in blobs], "ip": [rng.normal(size=(2, 5)), [1, 2]]}
    return with_blobs(caffeio.parse_net(text(kind)), weights)


def in_parts(runner, sizes: list[int], state: State | None) -> np.ndarray:
    """Run the sequence in batches of so many steps; return all outputs."""
    found, begin = [], 0
    for size in sizes:
        part = slice(begin, begin + size)
        found.append(runner.forward({"x": X[part], "cont": CONT[part]}, ["y"], state=state)["y"])
        begin += size
    return np.concatenate(found)


RECORD = Record(
    {"ip": LayerRecord(scale_d=0.01, offset_d=3, scale_w=(0.02,), offset_w=(0,), shift_bit=(0,))}
)


@pytest.mark.parametrize("kind", ["LSTM", "RNN"])
@pytest.mark.parametrize("device", ["cpu", "reference"])
@pytest.mark.parametrize("integers", [False, True])
def test_batches_of_a_sequence_give_what_the_whole_does(kind, device, integers):
    net = net_of(kind)
    runner = Int8Net(net, RECORD, device=device) if integers else FloatNet(net, device=device)
    whole = runner.forward({"x": X, "cont": CONT})["y"]
    for sizes in ([2, 4], [1] * 6, [3, 3]):
        np.testing.assert_array_equal(in_parts(runner, sizes, State()), whole)
    # without a state each pass begins anew, as the first of Caffe's does
    assert not np.array_equal(in_parts(runner, [3, 3], None), whole)
    np.testing.assert_array_equal(runner.forward({"x": X, "cont": CONT})["y"], whole)


def test_a_pass_that_fails_leaves_the_state_as_it_was():
    net = net_of("LSTM")
    broken = net.with_layers(
        (*net.layers, replace(net.layer("ip"), name="last", bottoms=("y",), tops=("z",)))
    )
    embed = caffeio.parse_net(
        text("LSTM") + 'layer { name: "e" type: "Embed" bottom: "y" top: "z" '
        "embed_param { num_output: 1 input_dim: 1 bias_term: false } }"
    )
    blobs = {layer.name: layer.blobs for layer in broken.layers}
    runner = FloatNet(with_blobs(embed, blobs | {"e": [np.ones((1, 1))]}))
    state = State()
    runner.forward({"x": X[:2], "cont": CONT[:2]}, ["y"], state=state)
    with pytest.raises(NetError, match="holds indices"):
        runner.forward({"x": X[2:], "cont": CONT[2:]}, ["z"], state=state)
    rest = runner.forward({"x": X[2:], "cont": CONT[2:]}, ["y"], state=state)["y"]
    whole = FloatNet(net).forward({"x": X, "cont": CONT})["y"]
    np.testing.assert_array_equal(rest, whole[2 * STREAMS :])


def test_fewer_streams_go_on_and_more_begin_anew():
    runner, state = FloatNet(net_of("LSTM")), State()
    runner.forward({"x": X[:3], "cont": CONT[:3]}, state=state)
    ones = np.ones((3, 1), np.float32)
    one = runner.forward({"x": X[3:, :1], "cont": ones}, ["h"], state=state)["h"]
    both = State()
    runner.forward({"x": X[:3, :1], "cont": CONT[:3, :1]}, state=both)
    want = runner.forward({"x": X[3:, :1], "cont": ones}, ["h"], state=both)["h"]
    # one stream alone is another product for BLAS, which may add in another order
    np.testing.assert_allclose(one, want, rtol=1e-5, atol=1e-6)
    again = runner.forward({"x": X[:3], "cont": np.ones((3, 3), np.float32)}, ["h"], state=state)
    fresh = runner.forward({"x": X[:3], "cont": np.ones((3, 3), np.float32)}, ["h"])
    np.testing.assert_array_equal(again["h"], fresh["h"])


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_calibration_sees_what_the_sequence_gives(device: str):
    net = FloatNet(net_of("LSTM"), device=device)
    assert net.remembers
    plans = {"ip": layer_plan(net.net.layer("ip"), caffe_defaults())}
    batches = [{"x": X[i : i + 2], "cont": CONT[i : i + 2]} for i in (0, 2, 4)]
    seen = observe(net, plans, batches, 3)
    h = net.forward({"x": X, "cont": CONT}, ["h"])["h"]
    (histogram,) = seen.histograms.values()
    assert histogram.largest_at(1) == (h.max(), True)
    assert histogram.smallest_at(1) == (h.min(), True)
    exact = search_exactly(net, plans, seen, batches)
    whole = observe(net, plans, [{"x": X, "cont": CONT}], 1)
    assert exact == search_exactly(net, plans, whole, [{"x": X, "cont": CONT}])


def caffe_defaults():
    from pipeline.config.calibrate import CalibrateConfig

    return CalibrateConfig()


def test_training_goes_on_from_batch_to_batch(tmp_path: Path):
    torch = pytest.importorskip("torch")
    from pipeline.retrain.group import Group
    from pipeline.retrain.module import CaffeModule

    for kind in ("LSTM", "RNN"):
        net = net_of(kind)
        shapes = {"x": (2, STREAMS, SIZE), "cont": (2, STREAMS)}
        module = CaffeModule(net, shapes, Group(0, 1, torch.device("cpu")))
        found = []
        for begin in (0, 2, 4):
            part = {
                "x": torch.from_numpy(X[begin : begin + 2]),
                "cont": torch.from_numpy(CONT[begin : begin + 2]),
            }
            out = module(part, True).outputs["y"]
            found.append(out.numpy())
        assert all(not s.requires_grad for kept in module.kept.values() for s in kept)
        whole = FloatNet(net).forward({"x": X, "cont": CONT})["y"]
        np.testing.assert_allclose(np.concatenate(found), whole, rtol=1e-5, atol=1e-6)
