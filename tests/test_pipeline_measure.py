"""Accuracy and closeness, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from small_nets import samples, small_net

import caffeio
from caffeio.data import Batch
from caffeio.record import Record
from kernels import QuantParams
from pipeline.errors import ConfigError
from pipeline.quantize.activations import Activations
from pipeline.quantize.evaluate import DecodedOnce, compare, layer_errors
from pipeline.quantize.fuse import fuse
from pipeline.quantize.int8_net import Int8Net
from pipeline.quantize.integers import layer_record
from pipeline.quantize.measure import Closeness, TopK
from pipeline.quantize.outputs import compared_blobs
from pipeline.runtime.executor import FloatNet


def test_top_k_counts_ties_by_index():
    scores = np.array([[1, 5, 5, 0, 0, 0, 0], [7, 6, 5, 4, 3, 2, 1], [0] * 7], np.float32)
    rank = TopK()
    rank.update(scores, np.array([1, 4, 5]))
    assert (rank.first, rank.fifth, rank.samples) == (1, 2, 3)
    rank.update(scores[:1].reshape(1, 7, 1, 1), np.array([2]))
    assert (rank.first, rank.fifth, rank.samples) == (1, 3, 4)
    assert rank.top1 == 25.0
    assert math.isnan(TopK().top1)


def test_closeness_over_several_batches():
    a = np.array([[3.0, 4.0], [1.0, 0.0]])
    b = np.array([[3.0, 3.0], [1.0, 0.0]])
    c = Closeness()
    c.update(a[:1], b[:1])
    c.update(a[1:], b[1:])
    assert c.sqnr == pytest.approx(10 * math.log10(26 / 1))
    assert c.cosine == pytest.approx((21 / (5 * math.sqrt(18)) + 1) / 2)
    assert c.worst == 1.0


def test_closeness_of_zeros():
    c = Closeness()
    c.update(np.zeros((2, 3)), np.array([[0.0, 0, 0], [0, 1, 0]]))
    assert c.cosines == [1.0, 0.0]
    assert c.sqnr == -math.inf
    equal = Closeness()
    equal.update(np.ones((1, 3)), np.ones((1, 3)))
    assert equal.sqnr == math.inf


def test_softmax_is_joined_by_what_it_reads():
    assert compared_blobs(small_net(), ()) == ("fc", "prob")
    assert compared_blobs(small_net(), ("sum",)) == ("sum",)
    with pytest.raises(ConfigError, match="no blob 'logits'"):
        compared_blobs(small_net(), ("logits",))


def test_batches_are_decoded_once_and_come_again():
    decoded = []

    def source():
        for i in range(4):
            decoded.append(i)
            x = np.full((2, 3), i, np.float32)
            yield Batch(i, {"x": x, "y": x + 0.5}, np.array([i, i]), (f"a{i}", f"b{i}"))

    with Activations(60) as values:  # some lie in files
        again = DecodedOnce(source(), values)
        first = next(iter(again))
        np.testing.assert_array_equal(first.inputs["x"], 0)
        for _ in range(2):
            found = [*again]
            assert [b.names for b in found] == [(f"a{i}", f"b{i}") for i in range(4)]
            for i, batch in enumerate(found):
                np.testing.assert_array_equal(batch.inputs["y"], i + 0.5)
                np.testing.assert_array_equal(batch.labels, i)
    assert decoded == [0, 1, 2, 3]


def test_models_are_made_one_after_the_other_and_dropped():
    alive: list[str] = []

    class Net:
        def __init__(self, name: str) -> None:
            assert alive == []
            self.name = name
            alive.append(name)

        def __del__(self) -> None:
            alive.remove(self.name)

        def forward(self, inputs, blobs=None, *, state=None):
            return {"y": inputs["x"] * (2 if self.name == "float" else 2.1)}

    batches = [Batch(0, {"x": np.ones((3, 2), np.float32)}, np.array([0, 0, 1]), ("a", "b", "c"))]
    asked = []

    def given(name: str) -> list[Batch]:
        asked.append(name)
        return batches

    scores = compare(
        {"float": lambda: Net("float"), "int8": lambda: Net("int8")}, given, ["y"], memory=0
    )
    assert asked == ["float", "int8"]
    assert scores[0].outputs == ()
    assert scores[1].outputs[0].sqnr == pytest.approx(20 * np.log10(20), abs=1e-3)
    assert [s.top1 for s in scores] == [pytest.approx(200 / 3)] * 2


@pytest.mark.parametrize("part", [1, 20, 1 << 20])
def test_closeness_in_parts_is_the_same(part, monkeypatch):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(7, 3, 4)).astype(np.float32)
    b = a + rng.normal(size=a.shape).astype(np.float32) / 8
    whole, parts = Closeness(), Closeness()
    whole.update(a, b)
    monkeypatch.setattr("pipeline.quantize.measure._PART", part)
    parts.update(a, b)
    assert parts.sqnr == pytest.approx(whole.sqnr, rel=1e-12)
    assert parts.cosines == whole.cosines
    assert parts.worst == whole.worst


def quantized_small_net() -> tuple[caffeio.Net, Int8Net]:
    net = fuse(small_net()).net
    names = ["conv1", "dw", "branch", "fc"]
    shapes = FloatNet(net).shapes({"data": (1, 3, 12, 10)})
    reads = {
        x.name: shapes[k.reads[0]] for x, k in zip(net.layers, net.links, strict=True) if k.reads
    }
    data = QuantParams(0.05, 3)
    record = Record({
        n: layer_record(net.layer(n), data, channel_wise=n != "fc", shape=reads[n], skip_fusion=False)
        for n in names
    })  # fmt: skip
    return net, Int8Net.of_fused(net, record)


def test_errors_of_layers_are_the_same_from_files():
    net, int8 = quantized_small_net()
    batches = [{"data": samples(4)}, {"data": samples(3, seed=2)}]
    held = layer_errors(FloatNet(net), int8, batches)
    assert set(held) == set(int8.layers)
    assert layer_errors(FloatNet(net), int8, batches, memory=0) == held


def test_weights_that_are_quantized_already_are_shared():
    net, int8 = quantized_small_net()
    for name, q in int8.layers.items():
        layer = net.layer(name)
        blobs = q.fake_blobs(layer)
        np.testing.assert_array_equal(blobs[0], q.fake_weights)
        assert blobs[0] is not layer.blobs[0]
        assert [b.shape for b in blobs] == [b.shape for b in layer.blobs]
        assert q.fake_blobs(replace(layer, blobs=blobs))[0] is blobs[0]
        zero = np.negative(blobs[0])  # a zero of another sign is another weight
        assert q.fake_blobs(replace(layer, blobs=(zero, *blobs[1:])))[0] is not zero
