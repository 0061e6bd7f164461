"""Fake quantization in training: the kernels' numbers, their gradients, and what is deployed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import kernel_cases as cases
import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layer_nets import with_blobs
from training_jobs import one_thread

torch = pytest.importorskip("torch")

import caffeio  # noqa: E402
import kernels  # noqa: E402
import pipeline.retrain.module as retrain_module  # noqa: E402
from caffeio import Value  # noqa: E402
from pipeline.config.load import Config, ModelConfig  # noqa: E402
from pipeline.config.retrain import RetrainConfig  # noqa: E402
from pipeline.errors import ConfigError, PipelineError  # noqa: E402
from pipeline.jobs.stages import Ranges, make_record  # noqa: E402
from pipeline.qat.plan import (  # noqa: E402
    DataPlan,
    FakePlan,
    WeightPlan,
    fake_plan,
    trained_channel_wise,
)
from pipeline.quantize.assign import LayerPlan  # noqa: E402
from pipeline.quantize.int8_net import Int8Net  # noqa: E402
from pipeline.quantize.prepare import Prepared, prepare  # noqa: E402
from pipeline.retrain import formula  # noqa: E402
from pipeline.retrain.fake import Ulq, fake_weights  # noqa: E402
from pipeline.retrain.group import Group  # noqa: E402
from pipeline.retrain.module import CaffeModule  # noqa: E402

ALONE = Group(0, 1, torch.device("cpu"))
BITS = st.integers(2, 8)


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def ulq_of(clips: tuple[float, float] | None, bits: int = 8, fixed_min: bool = False) -> Ulq:
    return Ulq(DataPlan(Value("x"), ("l",), fixed_min, clips), bits)


# ------------------------------------------------------------------------- formulas and kernels

ranges = st.tuples(cases.floats32(1e-3, 1e4), cases.floats32(-1e4, 0.0))


@cases.examples(150)
@given(ranges, BITS, st.integers(0, 2**32 - 1))
def test_the_formula_of_ulq_equals_the_kernel(clips, bits, seed):
    rng = np.random.default_rng(seed)
    grid = kernels.ulq_grid(*clips, bits=bits)
    steps = rng.integers(-600, 600, 200) / 2  # halves among them
    x = np.concatenate([steps * grid.scale, rng.normal(size=200) * clips[0]]).astype(np.float32)
    x[:4] = *clips, grid.low, grid.high
    g = cases.normal(rng, x.size)
    y = formula.ulq_forward(torch.from_numpy(x.copy()), grid)
    np.testing.assert_array_equal(y.numpy(), kernels.ulq_forward(x, grid))
    dx, *by_clips = formula.ulq_backward(torch.from_numpy(x), torch.from_numpy(g), grid)
    want = kernels.ulq_backward(x, g, grid)
    np.testing.assert_array_equal(dx.numpy(), want[0])
    for got, sum_ in zip(by_clips, want[1:], strict=True):
        assert got.shape == (1,)
        assert got.item() == pytest.approx(sum_, rel=1e-6, abs=1e-6)


@cases.examples(150)
@given(
    st.sampled_from([(3, 4, 2, 2), (4, 3, 3, 1), (5, 6)]), st.sampled_from([None, 0, 1]), BITS,
    st.integers(0, 2**32 - 1), cases.floats32(1e-6, 1e4),
)  # fmt: skip
def test_the_formula_of_arq_equals_the_kernel(shape, axis, bits, seed, size):
    rng = np.random.default_rng(seed)
    w = cases.normal(rng, *shape) * np.float32(size)
    halves = rng.random(shape) < 0.5
    w[halves] = np.round(w[halves] * 2 / np.abs(w).max() * 2 ** (bits - 1)) / 2
    w[:, rng.integers(shape[1])] = 0
    w[0] = -np.abs(w[0])
    want, _ = kernels.arq_fake_quantize(w, axis, bits=bits)
    got = formula.arq_fake_quantize(torch.from_numpy(w), axis, bits)
    np.testing.assert_array_equal(got.numpy(), want)


@cases.examples(60)
@given(st.data(), ranges, BITS)
def test_autograd_of_data_equals_the_oracle(data, clips, bits):
    ulq = ulq_of(clips, bits)
    scale = kernels.ulq_grid(*clips, bits=bits).scale
    near = st.integers(-300, 300).map(lambda i: naive.f32(i / 2 * scale))
    xs = data.draw(st.lists(st.one_of(near, cases.floats32(-2e4, 2e4)), min_size=1, max_size=12))
    x = torch.tensor(xs, requires_grad=True)
    g = torch.linspace(-2, 3, len(xs))
    y = ulq(x, np.ravel)
    y.backward(g)
    want = [naive.ulq(a, b, *clips, bits) for a, b in zip(x.tolist(), g.tolist(), strict=True)]
    ys, dx, by_max, by_min = zip(*want, strict=True)
    assert y.tolist() == list(ys)
    assert x.grad is not None
    assert x.grad.tolist() == list(dx)
    for parameter, parts in ((ulq.clip_max, by_max), (ulq.clip_min, by_min)):
        assert parameter.grad is not None
        assert parameter.grad.item() == pytest.approx(math.fsum(parts), rel=1e-6, abs=1e-6)


def test_data_of_any_layout_may_come_and_gradients_too():
    ulq = ulq_of((2.0, -1.0))
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1)).transpose(1, 3)
    x.requires_grad_()
    y = ulq(x, np.ravel)
    y.sum().backward()  # an expanded gradient, of no strides
    want = kernels.ulq_forward(x.detach().contiguous().numpy(), kernels.ulq_grid(2.0, -1.0))
    np.testing.assert_array_equal(y.detach().numpy(), want)
    assert x.grad is not None
    assert torch.equal(x.grad, ((x > -1.005) & (x < 2.005)).float())


def test_the_gradient_of_weights_passes_straight_through():
    w = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
    g = torch.arange(48.0).reshape(4, 3, 2, 2)
    for axis in (None, 0, 1):
        for k in (None, torch.tensor([2.0, -1.0, 0.5]).double().reshape(1, 3, 1, 1)):
            fake = fake_weights(w, WeightPlan(axis, 1), 8, k)
            assert not torch.equal(fake, w)
            w.grad = None
            fake.backward(g)
            assert torch.equal(w.grad, g)


@cases.examples(40)
@given(BITS, st.integers(0, 2**32 - 1), st.sampled_from([0.0, -5.0, 1.0]), cases.floats32(0.01, 99))
def test_the_first_batch_sets_the_range_that_ifmr_finds(bits, seed, middle, size):
    rng = np.random.default_rng(seed)
    x = (rng.normal(middle, 1, (4, 100)) * size).astype(np.float32)
    ulq = ulq_of(None, bits)
    assert not ulq.ready
    ulq(torch.from_numpy(x), np.ravel)
    assert ulq.ready
    want = kernels.ifmr(x, bits=bits)
    got = ulq.params()
    assert (got.offset, got.bits) == (want.offset, bits)
    assert got.scale == pytest.approx(want.scale, rel=1e-6)
    ulq(torch.from_numpy(x * 3), np.ravel)  # no later batch does
    assert ulq.params() == got


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_first_batch_that_is_not_finite_names_blob_and_layer(bad):
    with pytest.raises(PipelineError, match=r"blob 'x'.*layer 'l'.*first batch"):
        ulq_of(None)(torch.tensor([1.0, bad]), np.ravel)


@pytest.mark.parametrize(
    ("step", "want"),
    [
        ((1.5, -0.5), (1.5, -0.5)),
        ((-0.5, -1.0), (2.0, -1.0)),
        ((-1.0, 1.0), (2.0, -1.0)),
        ((0.5, 0.25), (0.5, -1.0)),
        ((math.nan, -1.0), (2.0, -1.0)),
    ],
)
@pytest.mark.parametrize("fixed_min", [False, True])
def test_a_bad_step_is_taken_back(step, want, fixed_min):
    ulq = ulq_of((2.0, -1.0), fixed_min=fixed_min)
    x = torch.linspace(-3, 3, 50)
    ulq(x, np.ravel)
    if fixed_min:
        assert ulq.clip_min.item() == 0
        ulq(x, np.ravel)
        want = (want[0], 0.0)
    with torch.no_grad():
        ulq.clip_max.fill_(step[0])
        ulq.clip_min.fill_(step[1])
    y = ulq(x, np.ravel)
    assert (ulq.clip_max.item(), ulq.clip_min.item()) == want
    assert torch.equal(y, formula.ulq_forward(x.clone(), kernels.ulq_grid(*want)))
    y = ulq(x, np.ravel)  # and stays
    assert (ulq.clip_max.item(), ulq.clip_min.item()) == want


def node(name: str, kind: str, bottoms: str, top: str, params: str = "") -> str:
    ends = " ".join(f'bottom: "{b}"' for b in bottoms.split())
    return f'layer {{ name: "{name}" type: "{kind}" {ends} top: "{top}" {params} }}\n'


def conv(name: str, bottom: str, top: str, outs: int = 4) -> str:
    params = f"convolution_param {{ num_output: {outs} kernel_size: 3 pad: 1 }}"
    return node(name, "Convolution", bottom, top, params)


INPUT = (
    'name: "n" layer { name: "data" type: "Input" top: "data" '
    "input_param { shape { dim: 2 dim: 4 dim: 6 dim: 5 } } }\n"
)
SIGNS = INPUT + (
    conv("conv", "data", "a") + node("relu", "ReLU", "a", "a")
    + node("leaky", "ReLU", "data", "b", "relu_param { negative_slope: 0.1 }")
    + node("pool", "Pooling", "a", "c", "pooling_param { kernel_size: 2 stride: 2 }")
    + node("pool_b", "Pooling", "b", "d", "pooling_param { kernel_size: 2 stride: 2 }")
    + node("good", "Concat", "c c", "e") + node("bad", "Concat", "c d", "f")
    + node("drop", "Dropout", "e", "e") + node("soft", "Softmax", "d", "g")
    + node("relu6", "ReLU6", "d", "h") + node("sum", "Eltwise", "c d", "i")
    + "".join(
        node(f"read_{blob}", "InnerProduct", blob, f"o_{blob}",
             "inner_product_param { num_output: 2 }")
        for blob in "abcdefghi"
    )
)  # fmt: skip


def settings_of(**values: Any) -> RetrainConfig:
    return RetrainConfig.model_validate({"solver": "s", **values})


def prepared(net: caffeio.Net, settings: RetrainConfig) -> Prepared:
    """The layers to quantize, with the weight settings of the training, as the job has them."""
    config = Config(model=ModelConfig(prototxt=Path("p")), retrain=settings)
    work = prepare(config, net)
    plans = {
        name: LayerPlan(p.method, trained_channel_wise(net.layer(name), settings))
        for name, p in work.plans.items()
    }
    return replace(work, plans=plans)


def filled(text: str, seed: int = 0) -> caffeio.Net:
    net = caffeio.parse_net(text)
    shapes = {"data": (2, 4, 6, 5), "label": (2, 4, 6, 5)}
    module = CaffeModule(net, shapes, ALONE, rng=np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    blobs = module.trained_blobs()
    return with_blobs(
        net, {n: [cases.normal(rng, *b.shape) for b in bs] for n, bs in blobs.items()}
    )


def plan_of(text: str, **values: Any) -> FakePlan:
    net, settings = filled(text), settings_of(**values)
    return fake_plan(net, prepared(net, settings), settings, {})


def by_layer(plan: FakePlan) -> dict[str, DataPlan]:
    return {name: data for data in plan.data for name in data.layers}


def test_a_range_begins_at_0_after_what_makes_no_negative_values():
    found = by_layer(plan_of(SIGNS))
    assert {name[-1] for name, data in found.items() if data.fixed_min} == set("acegh")
    given = {"retrain_data_quant_config": {"ulq_quantize": {"fixed_min": False}}}
    assert not any(data.fixed_min for data in plan_of(SIGNS, **given).data)


TWO = INPUT + conv("one", "data", "a") + conv("two", "data", "b") + conv("three", "a", "c")


def test_layers_that_read_one_blob_share_one_range():
    plan = plan_of(TWO)
    assert [d.layers for d in plan.data] == [("one", "two"), ("three",)]
    module = CaffeModule(filled(TWO), {"data": (2, 4, 6, 5)}, ALONE)
    module.fake_quantize(plan)
    module({"data": torch.randn(2, 4, 6, 5)}, False)
    assert len(module.ranges) == 2
    found = module.ranges_by_layer()
    assert found["one"] == found["two"] != found["three"]
    clips = [f"{name}/clip_{end}" for name in ("one", "three") for end in ("max", "min")]
    assert [p.name for p in module.learned if "clip" in p.name] == clips
    assert not any(p.tensor.requires_grad for p in module.learned)  # there is no loss


def clips(high: float, low: float) -> dict[str, Any]:
    both = {"clip_max": high, "clip_min": low}
    return {"retrain_data_quant_config": {"ulq_quantize": {"clip_max_min": both}}}


def by_arq(value: bool) -> dict[str, Any]:
    return {"retrain_weight_quant_config": {"arq_retrain": {"channel_wise": value}}}


def test_the_nearest_setting_wins_and_layers_of_other_settings_do_not_share():
    text = TWO + node("fc", "InnerProduct", "a", "d", "inner_product_param { num_output: 2 }")
    values = {
        **clips(1, -1), **by_arq(False),
        "override_layer_types": [{"layer_type": "Convolution", **clips(2, -2), **by_arq(True)}],
        "override_layer_configs": [{"layer_name": "two", **clips(3, -3), **by_arq(False)}],
    }  # fmt: skip
    plan = plan_of(text, **values)
    got = {name: data.clips for name, data in by_layer(plan).items()}
    assert got == {"one": (2, -2), "two": (3, -3), "three": (2, -2), "fc": (1, -1)}
    axes = {name: weights.scale_axis for name, weights in plan.weights.items()}
    assert axes == {"one": 0, "two": None, "three": 0, "fc": None}


def test_channel_wise_is_an_error_for_inner_product_where_it_is_named():
    text = INPUT + node("fc", "InnerProduct", "data", "d", "inner_product_param { num_output: 2 }")
    assert plan_of(text, **by_arq(True)).weights["fc"].scale_axis is None
    for key, name in (("type", "InnerProduct"), ("name", "fc")):
        table = "override_layer_types" if key == "type" else "override_layer_configs"
        with pytest.raises(ConfigError, match=rf"{table} '{name}'.*channel_wise.*'fc'"):
            plan_of(text, **{table: [{f"layer_{key}": name, **by_arq(True)}]})


# ------------------------------------------------------------------------ folding of BatchNorm


def folding(kind: str, seed: int, gammas: list[float]) -> caffeio.Net:
    """A layer with BatchNorm and Scale behind, and a loss."""
    net = filled(
        INPUT
        + node("label", "Input", "", "label")
        + node("l", kind, "data", "y", "convolution_param { num_output: 4 kernel_size: 3 pad: 1 }")
        + node("bn", "BatchNorm", "y", "y")
        + node("scale", "Scale", "y", "z", "scale_param { bias_term: true }")
        + node("loss", "EuclideanLoss", "z label", "loss"),
        seed,
    )
    rng = np.random.default_rng(seed)
    averages = [cases.normal(rng, 4), rng.uniform(0.1, 4, 4), np.full(1, 2.5)]
    return with_blobs(net, {"bn": averages, "scale": [np.array(gammas), cases.normal(rng, 4)]})


def batch(seed: int) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return {name: torch.from_numpy(cases.normal(rng, 2, 4, 6, 5)) for name in ("data", "label")}


SHAPES = {"data": (2, 4, 6, 5), "label": (2, 4, 6, 5)}
GAMMAS = {"plain": [1.5, 0.3, 2, 1], "negative": [-1.5, 0.3, -0.01, 1], "zero": [0, 0.3, -0.2, 0.1]}


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("gammas", GAMMAS)
def test_a_folded_layer_computes_as_deployed(kind, per_channel, gammas, monkeypatch):
    net = folding(kind, 3, GAMMAS[gammas])
    settings = settings_of(**by_arq(per_channel))
    work = prepared(net, settings)
    assert work.fused.origin("l") == ("l", "bn", "scale")
    used = []

    def watched(w: Any, plan: Any, bits: int, k: Any = None) -> Any:
        used.append((fake_weights(w, plan, bits, k), k))
        return used[-1][0]

    monkeypatch.setattr(retrain_module, "fake_weights", watched)
    module = CaffeModule(net, SHAPES, ALONE)
    module.fake_quantize(fake_plan(net, work, settings, {}))
    x, tops = batch(4), {}
    module(x, False, lambda layer, found: tops.update({layer.name: found[0].detach()}))
    record = make_record(work, Ranges(module.ranges_by_layer(), {"l": (1, 4, 6, 5)}, 2))
    deployed = Int8Net(net, record)
    layer = deployed.layers["l"]
    assert layer.scale_w.size == (4 if per_channel else 1)
    fake, k = used[0]
    assert layer.weights is not None
    spread = [1, 1, 1, 1]
    spread[1 if kind == "Deconvolution" else 0] = -1
    steps = fake.detach().double().numpy() * k.numpy() / layer.scale_w.reshape(spread)
    np.testing.assert_allclose(steps, layer.weights, atol=1e-4)
    out = deployed.forward({name: v.numpy() for name, v in x.items()}, ["z"])["z"]
    unit = float(np.abs(layer.deq_scale).max())  # the bias is rounded to one
    np.testing.assert_allclose(tops["scale"].numpy(), out, rtol=1e-4, atol=unit)


@pytest.mark.parametrize("train", [True, False])
def test_master_weights_get_the_gradient_of_the_weights_that_computed(train, monkeypatch):
    net = folding("Convolution", 5, GAMMAS["negative"])
    settings = settings_of()
    plan = replace(fake_plan(net, prepared(net, settings), settings, {}), data=())
    used = []
    monkeypatch.setattr(
        retrain_module, "fake_weights", lambda *a: used.append(fake_weights(*a)) or used[-1]
    )
    module = CaffeModule(net, SHAPES, ALONE)
    module.fake_quantize(plan)
    x = batch(6)
    module(x, train).loss.backward()
    blobs = net.layer("l").blobs
    same = with_blobs(net, {"l": [used[0].detach().numpy(), blobs[1]]})
    plain = CaffeModule(same, SHAPES, ALONE)
    plain(x, train).loss.backward()
    got, want = ({p.name: p.tensor.grad for p in m.learned} for m in (module, plain))
    assert got.keys() == want.keys() == {"l/0", "l/1", "scale/0", "scale/1"}
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-6)
