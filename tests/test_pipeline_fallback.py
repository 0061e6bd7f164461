"""Layers left in float: the search by itself, and a job that needs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import examples
from small_nets import small_net, write_job

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
