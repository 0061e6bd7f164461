"""Layers left in float: the search by itself, and a job that needs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import examples
from layer_nets import with_blobs
from small_nets import small_net, write_job

import caffeio
import pipeline
from pipeline.errors import ConfigError
from pipeline.quantize.fallback import fewest_in_float, order_of
from pipeline.quantize.measure import Closeness

WINS = st.lists(st.tuples(st.floats(0, 9), st.floats(0.1, 9)), min_size=1, max_size=30)


@examples(200)
@given(WINS, st.floats(0, 1.1))
def test_what_is_found_suffices_and_none_of_it_can_be_given_back(wins: list, share: float):
    names = [f"l{i}" for i in range(len(wins))]
    win = {n: w for n, (w, _) in zip(names, wins, strict=True)}
    costs = {n: c for n, (_, c) in zip(names, wins, strict=True)}
    target = 50 + share * sum(win.values())
    asked: list[frozenset] = []

    def measure(in_float: frozenset[str]) -> float:
        asked.append(in_float)
        return 50 + sum(win[n] for n in names if n in in_float)

    order = order_of(win, costs)
    found = fewest_in_float(order, costs, measure, target)
    assert [frozenset(t.in_float) for t in found.trials] == asked
    assert len(asked) <= 2 + 6 + len(names)
    assert found.reached == (measure(frozenset(names)) >= target)
    if not found.reached:
        assert found.value == max(t.value for t in found.trials)
        return
    chosen = frozenset(found.in_float)
    assert measure(chosen) >= target
    assert all(measure(chosen - {n}) < target for n in chosen)


def test_layers_come_in_the_order_of_noise_for_their_cost():
    noise = {"a": 1.0, "b": 3.0, "c": 2.0}
    assert order_of(noise, dict.fromkeys("abc", 1.0)) == ("b", "c", "a")
    assert order_of(noise, {"a": 0.1, "b": 3.0, "c": 1.0}) == ("a", "c", "b")


def job(folder: Path, fallback: str, effort: str = "original") -> Path:
    """Write a job whose ranges are so narrow that much is lost."""
    bad = "common_config.percentile_quantize = { max_percentile = 0.97, min_percentile = 0.97 }"
    return write_job(
        folder, calibrate=f'effort = "{effort}"\n{bad}', extra=f"[fallback]\n{fallback}"
    )


def decibels(report: pipeline.report.values.Report, folder: Path) -> float:
    x = {"data": np.load(folder / "data.npz")["data"][8:]}
    closeness = Closeness()
    exact = pipeline.FloatNet(small_net()).forward(x, ["fc"])["fc"]
    closeness.update(exact, report.int8_net().forward(x, ["fc"])["fc"])
    return closeness.sample_sqnr


@pytest.mark.parametrize("strategy", ["sensitivity", "original"])
@pytest.mark.parametrize("cost", ["macs", "layers"])
def test_a_job_reaches_its_floor(tmp_path: Path, strategy: str, cost: str):
    config = job(tmp_path, f'metric = "sqnr"\nfloor = 45\ncost = "{cost}"\nstrategy = "{strategy}"')
    report = pipeline.quantize_model(config)
    found = report.fallback
    assert found is not None
    assert found.reached
    assert 0 < len(found.in_float) < (6 if strategy == "sensitivity" else 7)
    assert decibels(report, tmp_path) == pytest.approx(found.value, abs=0.01)
    assert found.value >= 45
    assert not set(found.in_float) & set(report.record.layers)
    reasons = {x.layer: x.reason for x in report.layers}
    assert all(reasons[name] == "left in float by [fallback]" for name in found.in_float)
    stored = json.loads(report.files["report"].read_text())["fallback"]
    assert stored["in_float"] == list(found.in_float)
    assert len(stored["trials"]) == len(found.trials) >= 3


def test_effort_comes_before_float_layers(tmp_path: Path):
    plain = pipeline.quantize_model(write_job(tmp_path, calibrate='effort = "original"'))
    best = next(s for s in plain.accuracy if s.model == "int8").outputs[0].sample_sqnr
    (tmp_path / "again").mkdir()
    config = write_job(
        tmp_path / "again", calibrate='effort = "original"',
        extra=f'[fallback]\nmetric = "sqnr"\nfloor = {best + 0.5:.2f}',
    )  # fmt: skip
    report = pipeline.quantize_model(config)
    assert report.effort == "best"
    assert report.fallback.in_float == ()


def test_what_suffices_at_once_is_left_as_it_is(tmp_path: Path):
    config = write_job(tmp_path, extra='[fallback]\nmetric = "top1"\nmax_drop = 100')
    report = pipeline.quantize_model(config)
    assert report.effort == "standard"
    assert [t.what for t in report.fallback.trials] == ["all in INT8"]


def test_what_cannot_be_reached_gives_the_best_found(tmp_path: Path):
    report = pipeline.quantize_model(job(tmp_path, 'metric = "sqnr"\nfloor = 500'))
    assert not report.fallback.reached
    assert report.fallback.value == max(t.value for t in report.fallback.trials)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "max_drop or floor"), ("max_drop = 1\nfloor = 2", "max_drop or floor"),
     ('metric = "sqnr"\nmax_drop = 1', "needs floor"), ('metric = "best"\nfloor = 1', "metric")],
)  # fmt: skip
def test_targets_that_make_no_sense(tmp_path: Path, text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        pipeline.quantize_model(job(tmp_path, text))


def test_accuracy_needs_labels(tmp_path: Path):
    config = write_job(tmp_path, extra="[fallback]\nmax_drop = 1")
    data = np.load(tmp_path / "data.npz")["data"]
    np.save(tmp_path / "data.npy", data)
    config.write_text(config.read_text().replace("data.npz", "data.npy"))
    with pytest.raises(ConfigError, match="needs labels"):
        pipeline.quantize_model(config)


def two_outputs(source: str = "") -> caffeio.Net:
    """Return a net with an output that no quantized layer reaches."""
    source = source or (
        'layer { name: "data" type: "Input" top: "data" '
        "input_param { shape { dim: 1 dim: 3 dim: 12 dim: 10 } } }"
    )
    net = caffeio.parse_net(
        f'name: "two" {source} layer {{ name: "c" type: "Convolution" bottom: "data" top: "c" '
        "convolution_param { num_output: 4 kernel_size: 3 } } "
        'layer { name: "fc" type: "InnerProduct" bottom: "c" top: "fc" '
        "inner_product_param { num_output: 10 } } "
        'layer { name: "side" type: "ReLU" bottom: "data" top: "side" }'
    )
    rng = np.random.default_rng(0)
    w, f = rng.normal(size=(4, 3, 3, 3)), rng.normal(size=(10, 320)) / 18
    return with_blobs(net, {"c": [w, np.zeros(4)], "fc": [f, np.zeros(10)]})


def test_an_output_that_is_exact_says_nothing_of_the_others(tmp_path: Path):
    config = write_job(
        tmp_path, two_outputs(), calibrate='effort = "best"',
        extra='[fallback]\nmetric = "sqnr"\nfloor = 60',
    )  # fmt: skip
    report = pipeline.quantize_model(config)
    assert all(np.isfinite(t.sqnr) for t in report.trials)
    assert report.fallback.trials[0].value < 60
    assert report.fallback.in_float
    assert all(np.isfinite(s.without) for s in pipeline.layer_sensitivity(config))


def test_a_net_with_a_data_layer_takes_its_shapes_from_the_samples(tmp_path: Path):
    source = (
        'layer { name: "data" type: "Data" top: "data" top: "label" data_param { source: "-" } }'
    )
    config = write_job(
        tmp_path, two_outputs(source), extra='[fallback]\nmetric = "sqnr"\nfloor = 60'
    )
    assert pipeline.quantize_model(config).fallback.in_float


def test_a_net_that_takes_labels_is_evaluated_with_them(tmp_path: Path):
    net = two_outputs()
    text = caffeio.to_prototxt(net) + (
        'layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 1 } } } '
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }'
    )
    whole = with_blobs(caffeio.parse_net(text), {x.name: x.blobs for x in net.layers})
    report = pipeline.quantize_model(write_job(tmp_path, whole))
    assert [s.samples for s in report.accuracy] == [16] * 3
