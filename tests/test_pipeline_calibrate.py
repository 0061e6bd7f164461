"""Observing and searching: one pass, constant memory, equal to the original where exact."""

from __future__ import annotations

from fractions import Fraction

import kernel_cases as cases
import numpy as np
import pytest
from layer_nets import with_blobs
from small_nets import samples, small_net

import kernels
from caffeio import Value
from pipeline.errors import PipelineError
from pipeline.quantize.assign import LayerPlan
from pipeline.quantize.calibrate import search, search_exactly
from pipeline.quantize.eligibility import judge
from pipeline.quantize.fuse import fuse
from pipeline.quantize.observe import fitted, lacking, observe, observe_shards
from pipeline.runtime.executor import FloatNet


@pytest.fixture(scope="module")
def net():
    return FloatNet(fuse(small_net()).net)


def plans_for(net, method) -> dict[str, LayerPlan]:
    return {v.layer: LayerPlan(method, False) for v in judge(net.net) if v.quantize}


def batches(count: int = 3, size: int = 4):
    x = samples(count * size)
    return [{"data": x[i * size : (i + 1) * size]} for i in range(count)]


def seen_values(net, names) -> dict[str, np.ndarray]:
    """Return everything that each layer reads, by keeping it all."""
    kept: dict[str, list[np.ndarray]] = {name: [] for name in names}

    def watch(i, layer, bottoms, tops):
        if layer.name in kept:
            kept[layer.name].append(bottoms[0].ravel())

    for inputs in batches():
        net.forward(inputs, observer=watch)
    return {name: np.concatenate(arrays) for name, arrays in kept.items()}


def test_one_histogram_for_each_value_that_is_read(net):
    seen = observe(net, plans_for(net, kernels.Ifmr()), batches(), 3)
    values = {str(v) for v in seen.histograms}
    # conv1 is read by dw and branch after its ReLU, which works in place
    assert values == {"data", "conv1#1", "dilated", "up_scale", "max"}
    assert seen.samples == 12
    assert seen.histograms[Value("data")].total == 12 * 3 * 12 * 10


def test_exact_search_equals_the_original_on_all_data_in_memory(net):
    method = kernels.Ifmr(search_step=0.05)
    plans = plans_for(net, method)
    seen = observe(net, plans, batches(), 3)
    found = search_exactly(net, plans, seen, batches())
    fast = search(net.net, plans, seen, "cpu")
    for name, x in seen_values(net, plans).items():
        whole = kernels.ifmr(x, search_step=0.05)
        assert found[name].offset == whole.offset
        # a net that is watched runs layer by layer, where float sums have another order
        assert found[name].scale == pytest.approx(whole.scale, rel=1e-6)
        step = 0.05 * float(x.max()) / 255
        assert abs(fast[name].scale - whole.scale) <= step * 1.01


def test_layers_that_read_one_value_share_its_result(net):
    plans = plans_for(net, kernels.Ifmr())
    found = search(net.net, plans, observe(net, plans, batches(), 3), "cpu")
    assert found["dw"] is found["branch"]
    assert set(found) == set(plans)


@pytest.mark.parametrize("name", ["hfmg", "minmax", "percentile", "mse", "kl"])
def test_every_method_finds_parameters(net, name):
    plans = plans_for(net, kernels.METHODS[name](asymmetric=False))
    found = search(net.net, plans, observe(net, plans, batches(), 3), "cpu")
    assert all(p.offset == 0 and p.scale > 0 for p in found.values())


def test_devices_see_the_same(net):
    plans = plans_for(net, kernels.MinMax())
    seen = [observe(FloatNet(net.net, device=d), plans, batches(), 3) for d in cases.DEVICES]
    first = Value("data")
    one, two = (s.histograms[first] for s in seen)
    np.testing.assert_array_equal(one.counts, two.counts)


def test_memory_does_not_grow_with_the_number_of_batches(net):
    plans = plans_for(net, kernels.Ifmr())
    few, many = (observe(net, plans, batches(n), n) for n in (2, 12))

    def size(seen) -> int:
        return sum(
            h.counts.nbytes + h.largest.nbytes + h.smallest.nbytes for h in seen.histograms.values()
        )

    assert size(many) == size(few)


def test_nan_names_layer_blob_and_batch():
    net = small_net()
    w = net.layer("dw").blobs[0].copy()
    bad = FloatNet(fuse(with_blobs(net, {"dw": [w * np.nan, net.layer("dw").blobs[1]]})).net)
    plans = plans_for(bad, kernels.Ifmr())
    with pytest.raises(PipelineError, match=r"'up' reads blob 'dilated'.*batch 0 holds \d+ NaN"):
        observe(bad, plans, batches(), 3)


def test_infinite_input_names_its_batch(net):
    bad = batches()
    bad[2]["data"] = bad[2]["data"].copy()
    bad[2]["data"][1, 2, 3, 4] = np.inf
    with pytest.raises(PipelineError, match=r"'conv1'.*'data'.*batch 2.*0 NaN and 1 infinite"):
        observe(net, plans_for(net, kernels.Ifmr()), bad, 3)


def test_parts_of_a_batch_are_counted_together(net, monkeypatch):
    plans, x = plans_for(net, kernels.Ifmr()), {"data": samples(4)}
    whole = observe(net, plans, [x], 1)
    monkeypatch.setattr(net._runner, "parts", lambda *of: (1, frozenset(net.net.inputs)))
    parts = observe(net, plans, [x], 1)
    assert parts.shapes == whole.shapes
    for value, hist in whole.histograms.items():
        assert parts.histograms[value].counts.tolist() == hist.counts.tolist()
        assert parts.histograms[value].largest.tolist() == hist.largest.tolist()
    x["data"][0, 0, 0, 0], x["data"][3, 0, 0, :2] = np.nan, np.inf
    with pytest.raises(PipelineError, match=r"'data'.*batch 0 holds 1 NaN and 2 infinite"):
        observe(net, plans, [x], 1)


def test_data_too_large_to_scale_names_the_layer(net):
    plans = plans_for(net, kernels.MinMax())
    seen = observe(net, plans, [{"data": samples(2) * 1e12}], 1)
    with pytest.raises(PipelineError, match=r"layer 'conv1'.*scale.*skip_layers"):
        search(net.net, plans, seen, "cpu")


def test_shares_of_several_devices_are_what_one_sees(net):
    plans = plans_for(net, kernels.Ifmr())
    whole = observe(net, plans, batches(5), 5)
    shared = observe_shards([FloatNet(net.net) for _ in range(3)], plans, batches(5), 5)
    check_same(whole, shared)


def check_same(whole, shared) -> None:
    assert (shared.samples, shared.shapes) == (whole.samples, whole.shapes)
    assert whole.histograms.keys() == shared.histograms.keys()
    for value, one in whole.histograms.items():
        two = shared.histograms[value]
        assert one.tail == two.tail
        assert (one.exponent, one.total, one.zeros) == (two.exponent, two.total, two.zeros)
        assert (one.low, one.high) == (two.low, two.high)
        assert (one.counts == two.counts).all()
        assert (one.largest == two.largest).all()
        assert (one.smallest == two.smallest).all()


@pytest.mark.parametrize("devices", [1, 3])
def test_a_pass_goes_on_from_another_one(devices, net):
    plans = plans_for(net, kernels.Percentile(max_percentile=0.99))
    whole, told = observe(net, plans, batches(5), 5), []
    begin = observe(net, plans, batches(5)[:2], 5, after=lambda done, seen: told.append(done))
    assert told == [1, 2]
    nets = [FloatNet(net.net) for _ in range(devices)]
    check_same(whole, observe_shards(nets, plans, batches(5)[2:], 5, begin=begin, done=2))
    bad = batches(5)[2:]
    bad[1]["data"][:] = np.nan
    with pytest.raises(PipelineError, match="in batch 3 "):
        observe_shards(nets, plans, bad, 5, done=2)


@pytest.mark.parametrize("done", [2, 5])
def test_what_was_observed_for_others_is_what_these_would_have_observed(done, net):
    longer = plans_for(net, kernels.Percentile(max_percentile=0.9))
    seen = observe(net, longer, batches(5)[:done], 5)
    for method in (kernels.Percentile(max_percentile=0.97), kernels.Mse()):
        plans = {"fc": LayerPlan(method, False), "dw": LayerPlan(method, False)}
        assert lacking(seen, net.net, plans, Fraction(done, 5)) == ()
        check_same(
            observe(net, plans, batches(5)[:done], 5),
            fitted(seen, net.net, plans, Fraction(done, 5)),
        )
    more = {**plans, "conv1": LayerPlan(kernels.Percentile(max_percentile=0.8), False)}
    assert lacking(seen, net.net, more, Fraction(done, 5)) == ("conv1",)
    few = observe(net, {"fc": LayerPlan(kernels.Mse(), False)}, batches(5), 5)
    assert lacking(few, net.net, more) == ("conv1", "dw")


def test_nan_in_a_share_names_its_batch(net):
    found = batches(5)
    found[3]["data"][0, 0, 0, 0] = np.nan
    with pytest.raises(PipelineError, match="in batch 3"):
        observe_shards([FloatNet(net.net)] * 2, plans_for(net, kernels.Ifmr()), found, 5)
