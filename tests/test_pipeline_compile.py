"""Compiled nets against the loop over layers: the same integers, floats to rounding."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kernel_cases as cases
import numpy as np
import pytest
from layer_nets import with_blobs

import caffeio
import kernels
from caffeio import NetError, Value
from caffeio.record import Record
from kernels.cpu.codegen.microkernels import all_kernels
from kernels.cpu.codegen.microkernels.choice import VARIABLE, runs_here
from kernels.cpu.engine.runner import GEMM, KINDS
from pipeline import FloatNet, Int8Net
from pipeline.quantize.eligibility import judge
from pipeline.quantize.integers import layer_record
from pipeline.runtime.compiler import compile_net
from pipeline.runtime.executor import Executor
from pipeline.runtime.nodes import make_nodes
from pipeline.runtime.schedule import schedule

INPUT = 'name: "n" layer { name: "data" type: "Input" top: "x" input_param { shape { %s } } }'


def layer(text: str, params: str = "") -> str:
    """Write ``name Type bottoms > tops`` as a layer."""
    (name, kind, *bottoms), tops = (part.split() for part in text.split(">"))
    ends = " ".join(f'bottom: "{b}"' for b in bottoms) + " " + " ".join(f'top: "{t}"' for t in tops)
    return f'layer {{ name: "{name}" type: "{kind}" {ends} {params} }}\n'


def conv(outs: int, kernel: int = 1, **more: Any) -> str:
    rest = " ".join(f"{k}: {v}" for k, v in more.items())
    return f"convolution_param {{ num_output: {outs} kernel_size: {kernel} {rest} }}"


def pool(method: str, kernel: int, stride: int = 1, pad: int = 0) -> str:
    size = f"kernel_size: {kernel} stride: {stride} pad: {pad}"
    return f"pooling_param {{ pool: {method} {size} }}"


RELU6 = "clip_param { min: 0 max: 6 }"

#: Nets by what is special about them: shape of the input, layers.
NETS: dict[str, tuple[tuple[int, ...], list[str]]] = {
    "residual": (
        (1, 5, 9, 9),
        [
            layer("a Convolution x > a", conv(20, 3, pad=1)),
            layer("ra ReLU a > a"),
            layer("b Convolution a > b", conv(20, 3, pad=1)),
            layer("s Eltwise a b > s"),
            layer("rs ReLU s > s"),
            layer("c Convolution s > c", conv(7)),
            layer("t Eltwise s b > t"),
        ],
    ),
    "concat": (
        (2, 4, 11, 7),
        [
            layer("q Convolution x > q", conv(6)),
            layer("rq ReLU q > q"),
            layer("e1 Convolution q > e1", conv(5)),
            layer("r1 ReLU e1 > e1"),
            layer("e3 Convolution q > e3", conv(17, 3, pad=1)),
            layer("j Concat e1 e3 > j"),
            layer("m Pooling j > m", pool("MAX", 3, 2)),
            layer("o Convolution m > o", conv(9, 3)),
            layer("k Concat j j > k"),
            layer("l Concat e1 q > l"),
            layer("p Convolution l > p", conv(3, 3, pad=1)),
        ],
    ),
    "separable": (
        (1, 3, 17, 13),
        [
            layer("a Convolution x > a", conv(36, 3, stride=2, bias_term="false")),
            layer("ca Clip a > a", RELU6),
            layer("d Convolution a > d", conv(36, 3, pad=1, group=36)),
            layer("cd Clip d > d", RELU6),
            layer("e Convolution d > e", conv(12)),
            layer("f Convolution e > f", conv(72)),
            layer("g Convolution f > g", conv(72, 3, pad=1, stride=2, group=72)),
            layer("h Convolution g > h", conv(36)),
            layer("v Pooling h > v", pool("AVE", 2, 2)),
            layer("w InnerProduct v > w", "inner_product_param { num_output: 11 }"),
            layer("z Softmax w > z"),
        ],
    ),
    "slopes": (
        (1, 3, 12, 12),
        [
            layer("a Convolution x > a", conv(10, 3)),
            layer("pa PReLU a > a"),
            layer("m Pooling a > m", pool("MAX", 2, 2)),
            layer("b Convolution m > b", conv(16, 2)),
            layer("lb ReLU b > b", "relu_param { negative_slope: 0.1 }"),
            layer("g Convolution b > g", conv(8, 1, group=2)),
            layer("i InnerProduct g > i", "inner_product_param { num_output: 6 }"),
            layer("ri ReLU i > i"),
            layer("k InnerProduct i > k", "inner_product_param { num_output: 2 }"),
        ],
    ),
    "between": (
        (1, 4, 8, 8),
        [
            layer("a Convolution x > a", conv(8, 3, pad=1)),
            layer("n LRN a > n"),
            layer("b Convolution n > b", conv(8, 3, pad=1)),
            layer("sg Sigmoid b > sg"),
            layer("d Dropout sg > d"),
            layer("u Deconvolution d > u", conv(5, 4, stride=2, pad=1)),
            layer("c Crop u x > c", "crop_param { axis: 2 offset: 2 }"),
            layer("v Pooling c > v", pool("AVE", 3, 2, 1)),
            layer("bn BatchNorm v > bn"),
            layer("r ReLU bn > r"),
            layer("o Convolution r > o", conv(3)),
        ],
    ),
}


def build(name: str, seed: int = 0) -> caffeio.Net:
    """Return a net with random weights."""
    shape, layers = NETS[name]
    text = INPUT % " ".join(f"dim: {d}" for d in shape) + "".join(layers)
    net = caffeio.parse_net(text)
    rng = np.random.default_rng(seed)

    def normal(*dims: int) -> np.ndarray:
        fan = np.prod(dims[1:]) if len(dims) > 1 else 4
        return rng.normal(size=dims, scale=1 / np.sqrt(fan)).astype(np.float32)

    blobs: dict[str, list[np.ndarray]] = {}
    channels: dict[str, int] = {"x": shape[1]}
    flat = {"separable": {"w": 36 * 2 * 2}, "slopes": {"i": 8 * 4 * 4}}.get(name, {})
    for made in net.layers[1:]:
        come = channels[made.bottoms[0]]
        outs, p = come, made.param.convolution_param
        if made.type == "Convolution":
            outs = p.num_output
            blobs[made.name] = [
                normal(outs, come // p.group, *(2 * list(p.kernel_size))),
                normal(outs),
            ]
        elif made.type == "Deconvolution":
            outs = p.num_output
            blobs[made.name] = [
                normal(come, outs // p.group, *(2 * list(p.kernel_size))),
                normal(outs),
            ]
        elif made.type == "InnerProduct":
            outs = made.param.inner_product_param.num_output
            blobs[made.name] = [normal(outs, flat.get(made.name, come)), normal(outs)]
        elif made.type == "PReLU":
            blobs[made.name] = [normal(come)]
        elif made.type == "BatchNorm":
            variance = np.abs(normal(come)) + 0.5
            blobs[made.name] = [normal(come), variance, np.ones(1, np.float32)]
        elif made.type == "Concat":
            outs = sum(channels[b] for b in made.bottoms)
        if made.type in ("Convolution", "Deconvolution") and not p.bias_term:
            blobs[made.name].pop()
        channels[made.tops[0]] = outs
    return with_blobs(net, blobs)


def data(name: str, batch: int = 1, seed: int = 1) -> np.ndarray:
    shape = NETS[name][0]
    return np.random.default_rng(seed).normal(size=(batch, *shape[1:])).astype(np.float32)


def record(net: caffeio.Net, x: np.ndarray, spread: bool = False) -> Record:
    """Return factors by least and greatest value; `spread` makes readers of a value differ."""
    wanted = {v.layer for v in judge(net) if v.quantize}
    bottoms: dict[str, np.ndarray] = {}
    FloatNet(net, device="reference").forward(
        {"x": x}, observer=lambda i, made, ins, outs: bottoms.update({made.name: ins[0]})
    )
    layers = {}
    for i, name in enumerate(name for name in bottoms if name in wanted):
        low, high = float(bottoms[name].min()), float(bottoms[name].max())
        wider = 1 + 0.1 * i if spread else 1
        params = kernels.params_from_range(low * wider, high * wider)
        made = net.layer(name)
        layers[name] = layer_record(
            made, params, channel_wise=made.type != "InnerProduct",
            shape=bottoms[name].shape, skip_fusion=False,
        )  # fmt: skip
    return Record(layers)


def every_blob(net: caffeio.Net) -> list[str]:
    return sorted({v.blob for v in net.readers} - {"x"})


def by_the_loop(net: Executor | Int8Net, x: np.ndarray, blobs: list[str]) -> dict[str, np.ndarray]:
    """Run layer after layer, which an observer asks for."""
    return net.forward({"x": x}, blobs, observer=lambda *_: None)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", NETS)
def test_a_compiled_float_net_equals_the_loop(name: str, batch: int):
    net, x = build(name), data(name, batch)
    slow = FloatNet(net, device="reference").forward({"x": x}, every_blob(net))
    fast = FloatNet(net)
    for blobs in ([*net.outputs], every_blob(net)):
        found = fast.forward({"x": x}, blobs)
        assert [*found] == blobs
        for blob in blobs:
            assert found[blob].shape == slow[blob].shape
            np.testing.assert_allclose(found[blob], slow[blob], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("spread", [False, True], ids=["alike", "apart"])
@pytest.mark.parametrize("name", NETS)
def test_a_compiled_integer_net_equals_the_loop_bit_for_bit(name: str, spread: bool):
    net, x = build(name), data(name, 2)
    int8 = Int8Net(net, record(net, x, spread))
    assert len(int8.layers) >= 3
    for blobs in ([*int8.net.outputs], every_blob(int8.net)):
        found, wanted = int8.forward({"x": x}, blobs), by_the_loop(int8, x, blobs)
        for blob in blobs:
            assert (found[blob] == wanted[blob]).all(), blob


@pytest.mark.parametrize("name", ["residual", "concat", "separable"])
def test_a_compiled_integer_net_equals_the_reference_bit_for_bit(name: str):
    net, x = build(name), data(name, 2)
    factors = record(net, x)
    blobs = [b for b in every_blob(net) if b != "z"]
    found = Int8Net(net, factors).forward({"x": x}, blobs)
    wanted = Int8Net(net, factors, device="reference").forward({"x": x}, blobs)
    for blob in blobs:
        assert (found[blob] == wanted[blob]).all(), blob


@pytest.mark.parametrize("isa", sorted({k.isa for k in all_kernels() if runs_here(k)}))
def test_every_instruction_set_gives_the_same_integers(isa: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, isa)
    for name in ("residual", "concat", "separable"):
        net, x = build(name), data(name, 2)
        factors = record(net, x)
        blobs = [b for b in net.outputs if b != "z"] or ["w"]
        found = Int8Net(net, factors).forward({"x": x}, blobs)
        wanted = Int8Net(net, factors, device="reference").forward({"x": x}, blobs)
        assert all((found[blob] == wanted[blob]).all() for blob in blobs)


def test_integers_pass_from_layer_to_layer():
    """Nothing is computed on arrays between the input and the last layer that is quantized."""
    net, x = build("separable"), data("separable")
    executor = Int8Net(net, record(net, x))._executor
    executor.forward({"x": x})
    compiled = executor._runner.compiled((("x", x.shape),), None)
    kinds = [action.kind for action in compiled.actions]
    assert kinds == ["enter", "run", "leave", "layer"]  # the last is Softmax


def test_relu_and_sum_become_parts_of_a_convolution():
    net = build("residual")
    plan = schedule(net, {"x"})
    shapes = FloatNet(net).shapes({"x": (1, 5, 9, 9)})
    nodes, _ = make_nodes(net, plan.layers, shapes, {*plan.results.values()}, ())
    names = [net.layers[n.position].name for n in nodes]
    assert names == ["a", "b", "s", "c", "t"]  # s reads b, which t reads, too
    assert nodes[0].clamp == nodes[2].clamp == (0, np.inf)
    alone = net.with_layers(net.layers[:-2])
    plan = schedule(alone, {"x"})
    nodes, _ = make_nodes(alone, plan.layers, shapes, {*plan.results.values()}, ())
    assert [alone.layers[n.position].name for n in nodes] == ["a", "b"]
    assert nodes[1].other == nodes[0].writes[0]
    assert nodes[1].clamp == (0, np.inf)


def test_buffers_are_used_again():
    text = INPUT % "dim: 1 dim: 8 dim: 16 dim: 16"
    text += "".join(layer(f"c{i} Convolution {'x' if not i else f'y{i - 1}'} > y{i}", conv(8))
                    for i in range(12))  # fmt: skip
    rng = np.random.default_rng(0)
    blobs = {f"c{i}": [rng.normal(size=(8, 8, 1, 1)) / 3, np.zeros(8)] for i in range(12)}
    runner = FloatNet(with_blobs(caffeio.parse_net(text), blobs))
    x = rng.normal(size=(1, 8, 16, 16)).astype(np.float32)
    found = runner.forward({"x": x})["y11"]
    np.testing.assert_allclose(
        found, FloatNet(runner.net, device="reference").forward({"x": x})["y11"], rtol=1e-4,
        atol=1e-5,
    )  # fmt: skip
    program = runner._runner.compiled((("x", x.shape),), None).program
    assert len(program.sizes) == 2
    assert len({*program.steps.view(KINDS[GEMM])["bases"]}) == 1  # tables of like layers are one


def test_one_net_serves_several_threads():
    net = build("separable")
    int8 = Int8Net(net, record(net, data("separable")))
    inputs = [data("separable", seed=i) for i in range(12)]
    wanted = [by_the_loop(int8, x, ["w"])["w"] for x in inputs]
    with ThreadPoolExecutor(4) as pool_of_threads:
        found = list(pool_of_threads.map(lambda x: int8.forward({"x": x}, ["w"])["w"], inputs * 4))
    for i, y in enumerate(found):
        assert (y == wanted[i % 12]).all()


@pytest.mark.parametrize("device", cases.DEVICES)
def test_watching_shows_every_value_once(device: str):
    net, x = build("concat"), data("concat", 2)
    seen: dict[Value, np.ndarray] = {}

    def watch(value: Value, numbers: np.ndarray) -> None:
        assert value not in seen
        seen[value] = np.sort(numbers, axis=None)

    values = {Value("x"), Value("q", 1), Value("e1", 1), Value("j"), Value("m")}
    FloatNet(net, device=device).watch({"x": x}, values, watch)
    assert {*seen} == values
    wanted = FloatNet(net, device="reference").forward({"x": x}, ["q", "e1", "j", "m"])
    for value, numbers in seen.items():
        right = x if value.blob == "x" else wanted[value.blob]
        np.testing.assert_allclose(numbers, np.sort(right, axis=None), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", cases.DEVICES)
@pytest.mark.parametrize("name", ["concat", "separable", "residual"])
def test_counting_is_watching_into_histograms(name: str, device: str):
    net, x = build(name), data(name, 3)
    runner = FloatNet(net, device=device)
    values = {v for link in net.links for v in link.writes}
    counted, watched = ({v: kernels.Histogram(tail=9) for v in values} for _ in range(2))
    assert runner.count({"x": x}, counted) == {}

    def watch(value: Value, numbers: np.ndarray) -> None:
        watched[value].update(numbers, device=device)

    runner.watch({"x": x}, values, watch)
    for value in values:
        found, wanted = counted[value].to_arrays(), watched[value].to_arrays()
        assert all((found[key] == wanted[key]).all() for key in found)
    x[1, 0, 0, 0] = np.nan
    bad = runner.count({"x": x}, counted)
    assert bad
    assert all(error.nans for errors in bad.values() for error in errors)


def test_nan_in_the_input_of_an_integer_net_is_refused():
    net, x = build("residual"), data("residual")
    int8 = Int8Net(net, record(net, x))
    x[0, 1, 2, 3] = np.nan
    with pytest.raises(NetError, match="input 'x' gives NaN"):
        int8.forward({"x": x})
    assert np.isfinite(int8.forward({"x": data("residual")})["t"]).all()  # and nothing is left


def test_weights_are_packed_once_for_all_shapes():
    runner = FloatNet(build("residual"))
    runner.forward({"x": data("residual")})
    packed = dict(runner._runner.packed._packed)
    runner.forward({"x": data("residual", 3)})
    assert runner._runner.packed._packed == packed
    assert all(runner._runner.packed._packed[k] is v for k, v in packed.items())


def test_a_plan_may_leave_layers_out():
    net = build("concat")
    plan = schedule(net, {"x"}, ["m"])
    runner = FloatNet(net)
    shapes = runner.shapes()
    compiled = compile_net(net, plan, shapes, {}, packed=runner._runner.packed)
    assert not any(action.kind == "layer" for action in compiled.actions)


def test_a_large_batch_is_run_in_parts_with_the_same_numbers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.runtime.batching._CACHE_BYTES", 2 * 2 * 4 * 36 * 8 * 7 * 2)
    net, x = build("separable"), data("separable", 7)
    factors = record(net, x)
    for runner in (FloatNet(net), Int8Net(net, factors)._executor):
        found = runner.forward({"x": x}, ["g", "z"])
        assert runner._runner.parts((("x", x.shape),), ("g", "z")) == (2, {"x"})
        for i in range(7):
            alone = runner.forward({"x": x[i : i + 1]}, ["g", "z"])
            for blob in ("g", "z"):
                np.testing.assert_allclose(found[blob][i], alone[blob][0], rtol=1e-6, atol=1e-7)


def test_nets_that_mix_images_stay_whole():
    text = INPUT % "dim: 4 dim: 3 dim: 5 dim: 5"
    text += layer("c Convolution x > c", conv(4)) + layer(
        "r Reshape c > r", "reshape_param { shape { dim: 2 dim: -1 } }"
    )
    net = with_blobs(caffeio.parse_net(text), {"c": [np.ones((4, 3, 1, 1)), np.zeros(4)]})
    runner = FloatNet(net)
    x = np.random.default_rng(0).normal(size=(4, 3, 5, 5)).astype(np.float32)
    assert runner.forward({"x": x})["r"].shape == (2, 200)
    assert runner._runner.parts((("x", x.shape),), None) == (None, set())


def test_nan_within_a_net_names_the_layer():
    net, x = build("residual"), data("residual")
    factors = record(net, x)
    broken = with_blobs(net, {"a": [np.full((20, 5, 3, 3), np.nan), np.zeros(20)]})
    del factors.layers["a"]  # runs in float
    with pytest.raises(NetError, match="layer 'a', with those up to 'ra', gives NaN"):
        Int8Net(broken, factors).forward({"x": x})


@pytest.mark.parametrize("device", cases.DEVICES)
@pytest.mark.parametrize("slope", [False, True])
def test_nan_that_is_added_to_integers_names_the_layer(slope: bool, device: str):
    """The sum's layer is done as the first convolution's numbers are written."""
    text = INPUT % "dim: 1 dim: 20 dim: 6 dim: 5"
    text += layer("l Log x > l") + layer("a Convolution x > a", conv(20))
    text += layer("s Eltwise a l > s") if not slope else layer("s PReLU a > s")
    text += layer("b Convolution s > b", conv(20))
    eye = np.eye(20, dtype=np.float32).reshape(20, 20, 1, 1)
    blobs = {name: [eye, np.zeros(20)] for name in "ab"}
    slopes = np.full(20, 0.5, np.float32)
    net = with_blobs(caffeio.parse_net(text), blobs | ({"s": [slopes]} if slope else {}))
    x = np.random.default_rng(0).uniform(1, 2, (1, 20, 6, 5)).astype(np.float32)
    if slope:
        x[0, 7, 2, 1] = -1
        factors = record(net, x)
        slopes[7] = np.nan
        net = with_blobs(net, blobs | {"s": [slopes]})
    else:
        factors = record(net, x)
        x[0, 7, 2, 1] = -1
    named = "layer 'a', with those up to 's', gives NaN" if device == "cpu" else "layer 'b': .*NaN"
    with pytest.raises(NetError, match=named):
        Int8Net(net, factors, device=device).forward({"x": x}, ["b"])


def test_a_net_that_is_dropped_is_freed_at_once():
    """Its buffers are large: they must not wait for the cyclic collector."""
    net, x = build("residual"), data("residual")
    factors = record(net, x)
    gc.collect()
    gc.disable()
    try:
        for make in (
            lambda: FloatNet(net),
            lambda: Int8Net(net, factors),
            lambda: FloatNet(net, device="reference"),
        ):
            runner = make()
            runner.forward({"x": x})
            runner.forward({"x": x}, ["c"])
            inner = getattr(runner, "_executor", runner)
            held = [weakref.ref(runner), weakref.ref(inner._model)]
            if inner.device == "cpu":
                compiled = inner._runner.compiled((("x", x.shape),), None)
                held += [weakref.ref(compiled), weakref.ref(compiled.program)]
                del compiled
            del runner, inner
            assert [ref() for ref in held] == [None] * len(held)
    finally:
        gc.enable()
