"""The loop: in-place layers, freeing, inputs, labels, batches, errors, threads."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ROOT
from layer_nets import one_layer, with_blobs

import caffeio
import kernels
from caffeio import NetError, Value
from pipeline.errors import PipelineError
from pipeline.runtime.executor import FloatNet
from pipeline.runtime.loop import run
from pipeline.runtime.schedule import schedule

INPUT = (
    'layer { name: "in" type: "Input" top: "x" '
    "input_param { shape { dim: 2 dim: 3 dim: 4 dim: 4 } } }\n"
)


def layers(*lines: str) -> str:
    """Return prototxt text from lines of "name Type bottoms tops parameters"."""
    text = ""
    for line in lines:
        name, kind, bottoms, tops, *rest = line.split(maxsplit=4)
        text += (
            f'layer {{ name: "{name}" type: "{kind}" '
            + " ".join(f'bottom: "{b}"' for b in bottoms.split(",") if b != "-")
            + " "
            + " ".join(f'top: "{t}"' for t in tops.split(",") if t != "-")
            + " "
            + " ".join(rest)
            + " }\n"
        )
    return text


def power(scale: float, shift: float) -> str:
    return f"power_param {{ scale: {scale} shift: {shift} }}"


X = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)


def test_in_place_layers_keep_the_values_apart():
    net = caffeio.parse_net(
        INPUT
        + layers(
            "a Power x y " + power(2, 0),
            "b Power y z " + power(1, 1),
            "c Power y y " + power(1, 10),
            "d Eltwise y,z w",
            "e AbsVal y y",
        )
    )
    seen = {}
    out = FloatNet(net).forward(
        {"x": X}, ["y", "w"], lambda i, layer, b, t: seen.update({layer.name: t[0]})
    )
    np.testing.assert_allclose(out["w"], (2 * X + 10) + (2 * X + 1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out["y"], np.abs(2 * X + 10), rtol=1e-6)
    np.testing.assert_allclose(seen["a"], 2 * X, rtol=1e-6)
    shapes = FloatNet(net).shapes()
    assert {Value("y", 0), Value("y", 1), Value("y", 2)} <= set(shapes)


def test_a_split_blob_is_not_changed_by_an_in_place_reader():
    net = caffeio.parse_net(
        INPUT
        + layers("a ReLU x y", "s Split y p,q", "c Power p p " + power(1, 5), "d Eltwise p,q w")
    )
    out = FloatNet(net).forward({"x": X})
    np.testing.assert_allclose(out["w"], 2 * np.maximum(X, 0) + 5, rtol=1e-6)


def test_values_are_freed_after_their_last_reader():
    net = caffeio.parse_net(
        INPUT
        + layers(
            *(f"p{i} Power {'x' if i == 0 else f'b{i - 1}'} b{i} " + power(1, 1) for i in range(8))
        )
    )
    alive: list[weakref.ref] = []
    counts = []

    def watch(position, layer, bottoms, tops):
        alive.append(weakref.ref(tops[0]))
        gc.collect()
        counts.append(sum(ref() is not None for ref in alive))

    out = FloatNet(net).forward({"x": X}, observer=watch)
    # While a layer is observed, its bottom and its top live, and nothing else.
    assert counts == [1, 2, 2, 2, 2, 2, 2, 2]
    np.testing.assert_allclose(out["b7"], X + 8, rtol=1e-5, atol=1e-5)


def test_results_belong_to_the_caller():
    net = caffeio.parse_net(INPUT + layers("a Dropout x y", "s Split y p,q"))
    out = FloatNet(net).forward({"x": X})
    assert list(out) == ["p", "q"]
    assert not np.shares_memory(out["p"], X)
    assert not np.shares_memory(out["p"], out["q"])
    weight = np.ones((2, 2), np.float32)
    net = one_layer("Parameter", "parameter_param { shape { dim: 2 dim: 2 } }", [], [weight])
    out = FloatNet(net).forward({})
    assert not np.shares_memory(out["y0"], net.layers[0].blobs[0])


def test_only_what_the_blobs_need_runs_but_an_observer_sees_all():
    text = INPUT + layers("a ReLU x a", "b AbsVal x b", "c TanH a c")
    text += 'layer { name: "in2" type: "Input" top: "z" input_param { shape { dim: 1 } } }\n'
    text += layers("d Sigmoid z d")
    runner = FloatNet(caffeio.parse_net(text))
    assert set(runner.forward({"x": X}, ["c"])) == {"c"}
    with pytest.raises(NetError, match="input 'z' is missing; the net needs 'x', 'z'"):
        runner.forward({"x": X})
    seen = []
    out = runner.forward(
        {"x": X, "z": [0.0]}, (), lambda i, layer, b, t: seen.append((i, layer.name))
    )
    assert out == {}
    assert seen == [(1, "a"), (2, "b"), (3, "c"), (5, "d")]


def test_batch_and_image_size_may_change():
    net = with_blobs(
        caffeio.parse_net(
            INPUT
            + layers(
                "c Convolution x c convolution_param { num_output: 5 kernel_size: 3 bias_term: false }"
            )
        ),
        {"c": [np.ones((5, 3, 3, 3))]},
    )
    runner = FloatNet(net)
    assert runner.shapes()[Value("c")] == (2, 5, 2, 2)
    assert runner.shapes({"x": (7, 3, 9, 5)})[Value("c")] == (7, 5, 7, 3)
    assert runner.forward({"x": np.ones((7, 3, 9, 5))})["c"].shape == (7, 5, 7, 3)
    np.testing.assert_array_equal(runner.forward({"x": np.ones((1, 3, 4, 4))})["c"], 27)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "input 'x' is missing; the net needs 'x'"),
        ({"x": X, "y": X}, "'y' is not an input of the net; its inputs are 'x'"),
        ({"xx": X}, "'xx' is not an input of the net; do you mean 'x'"),
        ({"x": X[0]}, r"input 'x' has shape \(3, 4, 4\), the net needs \(N, 3, 4, 4\)"),
        ({"x": X[:, :2]}, r"has shape \(2, 2, 4, 4\), the net needs \(N, 3, 4, 4\)"),
        ({"x": X[:0]}, r"has shape \(0, 3, 4, 4\)"),
        ({"x": [["a"]]}, "input 'x' is not an array of numbers"),
    ],
)
def test_wrong_inputs(inputs, message: str):
    runner = FloatNet(caffeio.parse_net(INPUT + layers("a ReLU x r")))
    with pytest.raises(NetError, match=message):
        runner.forward(inputs)


def test_unknown_blob_and_device():
    net = caffeio.parse_net(INPUT + layers("a ReLU x relu1"))
    with pytest.raises(NetError, match="no blob 'relu2'; do you mean 'relu1'"):
        FloatNet(net).forward({"x": X}, ["relu2"])
    with pytest.raises(ValueError, match=r"reference, cpu.*, not 'gpu'"):
        FloatNet(net, device="gpu")


def test_inputs_are_converted_and_not_changed():
    net = caffeio.parse_net(INPUT + layers("a Power x x " + power(2, 0)))
    given = np.arange(96, dtype=np.uint8).reshape(2, 3, 4, 4)[..., ::-1]
    kept = given.copy()
    out = FloatNet(net).forward({"x": given})["x"]
    np.testing.assert_array_equal(out, 2.0 * kept)
    np.testing.assert_array_equal(given, kept)
    assert out.dtype == np.float32


def test_several_inputs_of_one_layer():
    net = caffeio.parse_net(
        'layer { name: "in" type: "Input" top: "a" top: "b" '
        "input_param { shape { dim: 1 dim: 2 } } }\n"
        'layer { name: "in2" type: "Input" top: "c" top: "d" input_param { shape { dim: 3 } '
        "shape { dim: 4 dim: 5 } } }\n" + layers("s Eltwise a,b s", "q Silence c,d -")
    )
    shapes = FloatNet(net).shapes()
    assert [shapes[Value(n)] for n in "abcds"] == [(1, 2), (1, 2), (3,), (4, 5), (1, 2)]
    out = FloatNet(net).forward(
        {"a": [[1, 2]], "b": [[10, 20]], "c": np.ones(3), "d": np.ones((4, 5))}
    )
    np.testing.assert_array_equal(out["s"], [[11, 22]])


DATA = (
    'layer { name: "data" type: "Data" top: "data" top: "label" '
    'data_param { source: "none" batch_size: 2 } }\n'
)
LABELLED = DATA + layers(
    "ip InnerProduct data ip inner_product_param { num_output: 3 bias_term: false }",
    "acc Accuracy ip,label acc",
    "loss SoftmaxWithLoss ip,label loss",
)


def labelled() -> FloatNet:
    return FloatNet(with_blobs(caffeio.parse_net(LABELLED), {"ip": [np.eye(3)]}))


def test_labels_may_be_left_out():
    x = np.float32([[1, 2, 3], [3, 2, 1]])
    out = labelled().forward({"data": x})
    assert list(out) == ["ip"]
    np.testing.assert_array_equal(out["ip"], x)
    out = labelled().forward({"data": x, "label": [2, 1]})
    assert list(out) == ["acc", "loss"]
    assert out["acc"] == 0.5
    with pytest.raises(NetError, match="blob 'loss' depends on input 'label', which is not given"):
        labelled().forward({"data": x}, ["loss"])
    with pytest.raises(NetError, match="input 'data' is missing; the net needs 'data'"):
        labelled().forward({"label": [2, 1]})


def test_shapes_of_a_data_layer_must_be_given():
    with pytest.raises(NetError, match=r"layer 'data': .*shape of blob 'data'; pass it"):
        labelled().shapes()
    shapes = labelled().shapes({"data": (5, 3)})
    assert shapes == {Value("data"): (5, 3), Value("ip"): (5, 3)}
    shapes = labelled().shapes({"data": (5, 3), "label": (5,)})
    assert shapes[Value("loss")] == ()
    with pytest.raises(NetError, match="'dta' is not an input of the net; do you mean 'data'"):
        labelled().shapes({"dta": (5, 3)})


def test_layers_behind_a_filter_are_checked_with_their_true_shapes():
    text = (
        'layer { name: "in" type: "Input" top: "x" top: "keep" input_param { '
        "shape { dim: 4 dim: 6 } shape { dim: 4 } } }\n"
        + layers("f Filter x,keep f", "r Reshape f r reshape_param { shape { dim: 2 dim: -1 } }")
    )
    runner = FloatNet(caffeio.parse_net(text))
    assert runner.shapes()[Value("f")] == (4, 6)
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    out = runner.forward({"x": x, "keep": [0, 1, 0, 0]})
    np.testing.assert_array_equal(out["r"], x[1].reshape(2, 3))
    fixed = FloatNet(caffeio.parse_net(text.replace("dim: -1", "dim: 12")))
    with pytest.raises(NetError, match=r"layer 'r': cannot reshape \(1, 6\)"):
        fixed.forward({"x": x, "keep": [0, 1, 0, 0]})


def test_a_failing_layer_is_named_with_its_shapes():
    net = one_layer(
        "Embed",
        "embed_param { num_output: 2 input_dim: 3 bias_term: false }",
        [(2,)],
        [np.ones((3, 2))],
    )
    with pytest.raises(NetError, match=r"layer 'l': Embed failed on \(2,\): bottom 'x0' holds"):
        FloatNet(net).forward({"x0": [0, 9]})


def test_overflow_is_a_value_not_a_warning():
    net = one_layer("Exp", "", [(1,)])
    assert FloatNet(net).forward({"x0": [1000.0]})["y0"] == np.inf


def test_other_computations_run_on_the_same_loop():
    runner = FloatNet(caffeio.parse_net(INPUT + layers("a ReLU x a", "b Power a b " + power(2, 0))))

    def forward_of(position):
        if runner.net.layers[position].name == "a":
            return lambda bottoms: (bottoms[0] + 1,)
        return runner._model.operation(position)

    plan = schedule(runner.net, {"x"})
    out = run(runner.net, plan, {"x": X}, forward_of)
    np.testing.assert_allclose(out["b"], 2 * (X + 1), rtol=1e-6)


def test_one_net_serves_several_threads():
    rng = np.random.default_rng(1)
    net = with_blobs(
        caffeio.parse_net(
            INPUT
            + layers(
                "c Convolution x c convolution_param { num_output: 8 kernel_size: 3 pad: 1 }",
                "r ReLU c c",
                "p Pooling c p pooling_param { pool: AVE kernel_size: 2 stride: 2 }",
                "i InnerProduct p i inner_product_param { num_output: 4 }",
            )
        ),
        {
            "c": [rng.normal(size=(8, 3, 3, 3)), rng.normal(size=8)],
            "i": [rng.normal(size=(4, 32)), rng.normal(size=4)],
        },
    )
    runner = FloatNet(net)
    inputs = [rng.normal(size=(1 + k % 3, 3, 4, 4)).astype(np.float32) for k in range(24)]
    want = [runner.forward({"x": x})["i"] for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda x: runner.forward({"x": x})["i"], inputs))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_net_that_is_only_asked_for_shapes_loads_no_compiler():
    code = (
        "import sys, caffeio\n"
        "from pipeline import FloatNet\n"
        f"net = FloatNet(caffeio.parse_net({INPUT + layers('r ReLU x r')!r}))\n"
        "print(len(net.shapes()), 'numba' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True
    )
    assert done.stdout == "2 False\n"


@pytest.mark.skipif(kernels.best_device()[0] == "cuda", reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_named_with_the_cure():
    with pytest.raises(PipelineError, match=r"no device is found.*--device cpu"):
        FloatNet(one_layer("ReLU", "", [(1, 2)]), device="cuda")
