"""Random nets through all improvements: nothing breaks, and equalized nets compute the same."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from random_nets import random_net

import kernels
from caffeio import NetError
from caffeio.record import Record
from pipeline import FloatNet, Int8Net
from pipeline.errors import PipelineError
from pipeline.layers.int8 import INT8_TYPES
from pipeline.quantize.assign import LayerPlan
from pipeline.quantize.calibrate import candidate_ranges, search
from pipeline.quantize.correct import correct
from pipeline.quantize.corrections import Steps
from pipeline.quantize.eligibility import judge
from pipeline.quantize.equalize import equalize
from pipeline.quantize.fuse import fuse
from pipeline.quantize.improve import _channel_ranges, judged_blobs
from pipeline.quantize.integers import layer_record
from pipeline.quantize.observe import observe
from pipeline.quantize.sensitivity import sensitivities

Part = dict[str, np.ndarray]


def varied(inputs: Part, rng: np.random.Generator) -> Part:
    """Return inputs near some; whole numbers, which may be labels or indices, stay."""
    return {
        name: x
        if (x == np.rint(x)).all()
        else (x * (1 + 0.1 * rng.normal(size=x.shape))).astype(np.float32)
        for name, x in inputs.items()
    }


def run(seed: int) -> bool:
    """Put one net through all; say whether it can be quantized."""
    made = random_net(seed)
    net = fuse(made.net).net
    plans = {
        v.layer: LayerPlan(kernels.Mse(), INT8_TYPES[v.type].per_channel)
        for v in judge(net)
        if v.quantize
    }
    if not plans:
        return False
    rng = np.random.default_rng(seed)
    parts = [made.inputs, *(varied(made.inputs, rng) for _ in range(3))]
    runner = FloatNet(net)
    try:
        seen = observe(runner, plans, parts, len(parts))
        params = search(net, plans, seen, "cpu")
        records = {
            layer.name: layer_record(
                layer, params[layer.name], channel_wise=plans[layer.name].channel_wise,
                shape=seen.shapes[link.reads[0]], skip_fusion=False,
            )
            for layer, link in zip(net.layers, net.links, strict=True)
            if layer.name in plans
        }  # fmt: skip
        Int8Net.of_fused(net, Record(records))
    except (NetError, PipelineError):
        return False  # it holds NaN or infinity, or numbers beyond int32
    blobs = judged_blobs(net)
    shapes = runner.shapes({name: x.shape for name, x in made.inputs.items()})
    equalized = equalize(net, shapes, _channel_ranges(runner, parts), plans, blobs)
    exact = runner.forward(made.inputs)
    for name, y in FloatNet(equalized.net).forward(made.inputs).items():
        size = np.abs(exact[name][np.isfinite(exact[name])]).max(initial=1)
        np.testing.assert_allclose(y, exact[name], rtol=1e-3, atol=1e-4 * size, err_msg=f"{seed}")
    ranges = candidate_ranges(net, plans, seen, "cpu")
    held = [False] * 3 + [True]
    result = correct(net, Record(records), parts, held, Steps(search=True), candidates=ranges)
    Int8Net.of_fused(result.net, result.record).forward(made.inputs)
    found = sensitivities(net, result, parts[:2], blobs)
    assert {s.layer for s in found} == set(records)
    return True


@pytest.mark.parametrize("seeds", [range(20), pytest.param(range(20, 60), marks=pytest.mark.long)])
def test_random_nets(seeds: range):
    assert 2 * sum(map(run, seeds)) > len(seeds)


@pytest.mark.parametrize("seed", [5, 87, 123])
def test_weights_of_inner_products_with_four_axes(seed: int):
    assert run(seed)
