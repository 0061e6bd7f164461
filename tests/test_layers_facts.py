"""What each layer type says of itself is true: on every layer of many nets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDENS
from layer_nets import one_layer

pytest.importorskip("torch")

from random_nets import random_net

import caffeio
from caffeio import Layer, Value
from caffeio.graph import SOURCE_TYPES
from pipeline import FloatNet
from pipeline.layers import TABLE, Sign, layer_type
from pipeline.layers.base import Step
from pipeline.qat.plan import not_negative

SEEDS = 250
STEPS = {"conv", "deconv", "inner", "max", "average", "concat", "add", "apply", "map", "affine"}


@dataclass(frozen=True)
class Example:
    """A layer with what it reads and makes."""

    layer: Layer
    bottoms: list[np.ndarray]
    tops: list[np.ndarray]


def _of_net(net: caffeio.Net, values: dict[Value, np.ndarray]) -> Iterator[Example]:
    for layer, link in zip(net.layers, net.links, strict=True):
        if layer.type not in SOURCE_TYPES:
            arrays = ([values[v] for v in side] for side in (link.reads, link.writes))
            yield Example(layer, *arrays)


def _of_golden(case: Path, folder: Path) -> Iterator[Example]:
    with np.load(case) as stored:
        arrays = dict(stored)
    (folder / "net.prototxt").write_bytes(arrays["prototxt"].tobytes())
    (folder / "weights").write_bytes(arrays["caffemodel"].tobytes())
    net = caffeio.read_net(folder / "net.prototxt", folder / "weights")
    values: dict[Value, np.ndarray] = {}

    def see(i: int, layer: Layer, bottoms: object, tops: tuple) -> None:
        values.update(zip(net.links[i].writes, tops, strict=True))

    inputs = {k[3:]: v for k, v in arrays.items() if k.startswith("in_")}
    values.update({Value(name): x for name, x in inputs.items()})
    FloatNet(net, device="reference").forward(inputs, observer=see)
    yield from _of_net(net, values)


def _rand(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


C = np.abs(_rand(6)) + 0.5
FORKS = [
    ("BN", "", [_rand(2, 6, 3, 4)], [C, -C, C, C]),
    ("BN", "bn_param { bn_mode: INFERENCE }", [_rand(2, 6, 3, 4)], [C, -C]),
    ("BN", "", [_rand(2, 6)], [C, C]),
    ("BatchNorm", "batch_norm_param { scale_bias: true }", [_rand(2, 6, 3, 4)],
     [-C, C, np.ones(1), C, -C]),
    ("Dropout", "dropout_param { scale_train: false dropout_ratio: 0.3 }", [_rand(3, 4)], []),
    ("Mish", "", [_rand(3, 4)], []),
    ("Transpose", "transpose_param { dim: 0 dim: 3 dim: 1 dim: 2 }", [_rand(2, 6, 3, 4)], []),
    ("Transpose", "transpose_param { dim: 1 dim: 0 }", [_rand(2, 6)], []),
    ("PSROIPooling", "psroi_pooling_param { spatial_scale: 0.5 output_dim: 2 group_size: 2 }",
     [_rand(2, 8, 5, 6), np.float32([[1, 0, 1, 8, 7]])], []),
    ("ContinuationIndicator", "continuation_indicator_param { time_step: 3 batch_size: 2 }", [], []),
    ("Upsample", "upsample_param { height_scale: 2 width_scale: 3 }", [_rand(2, 6, 3, 4)], []),
    ("UpsampleDarknet", "upsample_darknet_param { stride: 2 }", [_rand(2, 6, 3, 4)], []),
    ("ConvolutionDepthwise", "convolution_param { num_output: 9 kernel_size: 3 bias_term: false }",
     [_rand(2, 6, 3, 4)], [_rand(6, 1, 3, 3)]),
]  # fmt: skip


def _of_fork(kind: str, params: str, bottoms: list, blobs: list) -> Iterator[Example]:
    net = one_layer(kind, params, [x.shape for x in bottoms], blobs)
    values = {Value(f"x{i}"): x for i, x in enumerate(bottoms)}
    values[Value("y0")] = forward(net.layers[-1], bottoms)[0]
    yield from _of_net(net, values)


@cache
def examples() -> tuple[Example, ...]:
    """Return the layers of random nets, and of the one-layer nets that Caffe ran."""
    import tempfile

    found: list[Example] = []
    for seed in range(SEEDS):
        made = random_net(seed)
        found += _of_net(made.net, made.values)
    with tempfile.TemporaryDirectory() as folder:
        for case in sorted((GOLDENS / "caffe").glob("*.npz")):
            found += _of_golden(case, Path(folder))
    for fork in FORKS:
        found += _of_fork(*fork)
    return tuple(found)


def forward(layer: Layer, bottoms: list[np.ndarray]) -> list[np.ndarray]:
    with np.errstate(all="ignore"):
        tops = layer_type(layer).forward(layer, bottoms, "reference")
    return [np.asarray(y) for y in tops]


def test_every_type_answers_every_fact():
    seen = set()
    for e in examples():
        kind = layer_type(e.layer)
        shapes = [x.shape for x in e.bottoms]
        if e.bottoms and e.bottoms[0].ndim:
            assert kind.per_image(e.layer, e.bottoms[0].ndim) in (True, False)
        assert kind.sign(e.layer) in Sign
        if e.tops and e.tops[0].ndim in (2, 4) and shapes and len(shapes[0]) in (2, 4):
            step = kind.step(e.layer, shapes, e.tops[0].shape)
            assert step is None or (isinstance(step, Step) and step.kind in STEPS)
        if e.bottoms and e.tops:
            assert kind.macs(e.layer, shapes[0], e.tops[0].shape) >= 0
        assert isinstance(kind.note(e.layer), str)
        assert TABLE[kind.like or e.layer.type].like == ""
        seen.add(e.layer.type)
    rest = set(TABLE) - seen - SOURCE_TYPES
    assert rest <= {"DetectionOutput", "InfogainLoss", "ContrastiveLoss", "DeQuant"}
    for name in rest | SOURCE_TYPES:
        layer = one_layer(name, "", [], tops=1).layers[-1]
        assert TABLE[name].per_image(layer, 4) is (name == "DeQuant")
        assert (TABLE[name].sign(layer) is Sign.ANY) is (name != "DeQuant")


def test_what_treats_images_alone_gives_each_its_own_tops():
    alone = set()
    for e in examples():
        kind, arrays = layer_type(e.layer), [*e.bottoms, *e.tops]
        if not e.bottoms or not e.tops or not e.bottoms[0].ndim:
            continue
        if not kind.per_image(e.layer, e.bottoms[0].ndim):
            continue
        batches = {x.shape[:1] for x in arrays}
        if len(batches) != 1 or batches == {()}:
            continue
        (batch,) = batches.pop()
        for i in range(batch):
            tops = forward(e.layer, [x[i : i + 1] for x in e.bottoms])
            for top, whole in zip(tops, e.tops, strict=True):
                np.testing.assert_allclose(top, whole[i : i + 1], rtol=1e-4, atol=1e-4)
        alone.add(e.layer.type)
    assert {"Swish", "Flatten", "Exp", "BNLL", "Permute", "Threshold", "Reshape"} <= alone


def test_what_keeps_the_sign_makes_nothing_negative_of_what_is_not():
    kept, never = set(), set()
    for e in examples():
        sign = layer_type(e.layer).sign(e.layer)
        if sign is Sign.ANY or not e.bottoms:
            continue
        given = [e.bottoms]
        if sign is Sign.KEPT:
            given = [[np.abs(x) for x in e.bottoms]]
        for bottoms in given:
            tops = forward(e.layer, bottoms) if sign is Sign.KEPT else e.tops
            # the place of a maximum that lies nowhere is -1, and such a maximum the least float
            tops = tops[:1] if e.layer.type == "Pooling" else tops
            assert all((y >= 0).all() or (y == -np.finfo(np.float32).max).any() for y in tops)
        (kept if sign is Sign.KEPT else never).add(e.layer.type)
    assert {"Swish", "ReLU6", "Eltwise", "Concat", "Reduction", "LRN"} <= kept
    assert {"ReLU", "ReLU6", "Sigmoid", "Exp", "Threshold", "Softmax"} <= never


def _by_channel(arrays: list[np.ndarray], k: np.ndarray, kind: str) -> list[np.ndarray]:
    """Return arrays with their channels multiplied: by the same factors, or one after the other."""
    out, first = [], 0
    for x in arrays:
        own = k if kind == "same" else k[first : first + x.shape[1]]
        first += x.shape[1]
        out.append(x * own.reshape(-1, *(1,) * (x.ndim - 2)))
    return out


def test_what_passes_factors_on_does():
    rng, kinds = np.random.default_rng(0), set()
    for e in examples():
        if not e.bottoms or any(x.ndim < 2 for x in (*e.bottoms, *e.tops)):
            continue
        factors = layer_type(e.layer).factors(e.layer, e.bottoms[0].ndim)
        if factors.kind == "none":
            continue
        bounds = (abs(b) for b in (factors.low, factors.high) if b)
        limit = min(bounds, default=np.inf)
        sizes = {np.abs(x).max(initial=0) for x in e.bottoms}
        shrink = 1.0 if limit == np.inf else np.float32(limit / 8 / max(*sizes, 1e-9))
        bottoms = [np.where(np.isfinite(x), x * shrink, 0).astype(np.float32) for x in e.bottoms]
        joined = factors.kind == "joined"
        channels = sum(x.shape[1] for x in bottoms) if joined else bottoms[0].shape[1]
        k = rng.choice(np.float32([1, 2, 4]), channels)
        before, behind = {"kept": ("same", "same"), "joined": ("apart", "same")}.get(
            factors.kind, ("same", "apart")
        )
        got = forward(e.layer, _by_channel(bottoms, k, before))
        want = _by_channel(forward(e.layer, bottoms), k, behind)
        for one, other in zip(got, want, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        kinds.add((e.layer.type, factors.kind))
    types = {name for name, _ in kinds}
    assert {"ReLU", "ReLU6", "Clip", "PReLU", "Pooling", "Eltwise", "Split", "Interp"} <= types
    assert {("Concat", "joined"), ("Slice", "cut")} <= kinds


def test_what_changes_nothing_changes_nothing():
    same = set()
    for e in examples():
        if layer_type(e.layer).identity(e.layer):
            for top in e.tops:
                np.testing.assert_array_equal(top, e.bottoms[0])
            same.add(e.layer.type)
    assert same == {"AntiQuant", "Dropout", "Split"}


@pytest.mark.parametrize(
    ("kind", "params", "bottom", "blobs", "macs"),
    [
        ("Convolution", "convolution_param { num_output: 6 kernel_size: 3 group: 2 }",
         (1, 4, 5, 5), [(6, 2, 3, 3), (6,)], 6 * 3 * 3 * 2 * 9),
        ("Deconvolution", "convolution_param { num_output: 3 kernel_size: 2 }",
         (1, 4, 5, 5), [(4, 3, 2, 2), (3,)], 4 * 25 * 3 * 4),
        ("InnerProduct", "inner_product_param { num_output: 7 }",
         (1, 4, 5, 5), [(7, 100), (7,)], 700),
        ("Pooling", "pooling_param { pool: AVE kernel_size: 3 stride: 2 }",
         (1, 4, 5, 5), [], 4 * 2 * 2 * 9),
        ("Pooling", "pooling_param { pool: MAX kernel_size: 3 stride: 2 }", (1, 4, 5, 5), [], 0),
        ("ReLU", "", (1, 4, 5, 5), [], 0),
    ],
)  # fmt: skip
def test_macs(kind: str, params: str, bottom: tuple, blobs: list, macs: int):
    net = one_layer(kind, params, [bottom], [np.ones(s) for s in blobs])
    layer = net.layers[-1]
    top = FloatNet(net).shapes()[Value("y0")]
    assert layer_type(layer).macs(layer, bottom, top) == macs


def test_relu6_with_a_slope_may_be_negative():
    """Else quantization-aware training would cut what is below 0, and lose data."""
    for slope, sure in ((0.0, True), (0.1, False)):
        net = one_layer("ReLU6", f"relu6_param {{ negative_slope: {slope} }}", [(1, 2)])
        assert not_negative(net, Value("y0")) is sure
        out = FloatNet(net).forward({"x0": np.full((1, 2), -1, np.float32)})["y0"]
        assert bool((out < 0).any()) is not sure


def test_a_net_of_layers_that_once_kept_a_batch_whole_runs_in_parts(monkeypatch):
    text = """
    layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 6 dim: 4 dim: 5 dim: 5 } } }
    layer { name: "a" type: "Swish" bottom: "x" top: "a" }
    layer { name: "b" type: "BNLL" bottom: "a" top: "b" }
    layer { name: "c" type: "Permute" bottom: "b" top: "c"
      permute_param { order: 0 order: 2 order: 3 order: 1 } }
    layer { name: "d" type: "Exp" bottom: "c" top: "d" exp_param { scale: 0.1 } }
    layer { name: "e" type: "Flatten" bottom: "d" top: "e" }
    layer { name: "f" type: "Threshold" bottom: "e" top: "f" threshold_param { threshold: 1.1 } }
    """
    net = caffeio.parse_net('name: "n"' + text)
    x = np.random.default_rng(0).normal(size=(6, 4, 5, 5)).astype(np.float32)
    whole = FloatNet(net).forward({"x": x}, ["e", "f"])
    monkeypatch.setattr("pipeline.runtime.batching._CACHE_BYTES", 4 * prod(x.shape[1:]) * 4)
    runner = FloatNet(net)
    parts = runner.forward({"x": x}, ["e", "f"])
    assert runner._runner.parts((("x", x.shape),), ("e", "f")) == (2, {"x"})
    for name, want in whole.items():
        np.testing.assert_array_equal(parts[name], want)
