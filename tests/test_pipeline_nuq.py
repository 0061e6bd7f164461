"""Weights of few values: which layers take them, what they save and cost, and that models stay valid."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_nets import samples, small_net, write_job

import pipeline
from kernels import entropy_bits
from pipeline.run import main

WEIGHTED = ["conv1", "dw", "branch", "up", "fc"]


def values(report, name: str) -> int:
    return np.unique(report.int8_net().layers[name].weights).size


@pytest.mark.parametrize("effort", ["original", "standard", "best"])
@pytest.mark.parametrize("steps", [16, 32])
def test_weights_take_few_values(tmp_path, effort, steps):
    config = write_job(
        tmp_path, calibrate=f'effort = "{effort}"', extra=f"[nuq]\nnum_steps = {steps}"
    )
    report = pipeline.quantize_model(config)
    assert [x.layer for x in report.nuq.layers] == WEIGHTED
    int8 = report.int8_net()
    for layer in report.nuq.layers:
        weights = int8.layers[layer.layer].weights
        assert np.unique(weights).size == layer.levels <= steps
        assert weights.size == layer.weights
        assert layer.coded == -(-entropy_bits(weights) // 8) + layer.levels
    saved = sum(x.coded for x in report.nuq.layers) / sum(x.coded_before for x in report.nuq.layers)
    assert saved < (0.65 if steps == 16 else 0.8)
    # what is written is such a model, too
    for kind in ("deploy", "fake_quant"):
        files = (f"net_{kind}_model.prototxt", f"net_{kind}_weights.caffemodel")
        loaded = pipeline.load_quantized(*(tmp_path / "out" / name for name in files))
        x = {"data": samples(3)}
        np.testing.assert_array_equal(loaded.forward(x)["prob"], int8.forward(x)["prob"])
    sqnr = {score.model: score.outputs for score in report.accuracy}["int8"][0].sqnr
    assert sqnr > 12


def test_corrections_win_back_what_few_values_lose(tmp_path):
    found = {}
    for effort in ("original", "best"):
        folder = tmp_path / effort
        folder.mkdir()
        more = f'effort = "{effort}"\ncommon_config.mse_quantize = {{}}'
        config = write_job(folder, calibrate=more, extra="[nuq]\nnum_steps = 16")
        report = pipeline.quantize_model(config)
        found[effort] = report.accuracy[2].outputs[0].sample_sqnr
        steps = [t.step for t in report.trials]
        assert steps[:2] == ["nearest rounding", "weights of few values"] or effort == "best"
    assert found["best"] > found["original"]


def test_the_command_shows_sizes_and_reports_them(tmp_path, capsys):
    config = write_job(tmp_path, extra='[nuq]\nlayers = ["fc", "conv1"]\nnum_of_iteration = 3')
    assert main([str(config)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Weights of few values in 2 layers" in shown
    assert "nuq.num_of_iteration has no effect" in shown
    nuq = json.loads((tmp_path / "out" / "report.json").read_text())["nuq"]
    assert [x["layer"] for x in nuq["layers"]] == ["conv1", "fc"]
    assert nuq["search"] is None


def test_a_mapping_file_names_the_layers(tmp_path):
    """A run's own names pooling, too, which has no weights."""
    config = write_job(tmp_path)
    assert main([str(config), "--quiet"]) == 0
    nodes = tmp_path / "out" / "net_quant.json"
    (tmp_path / "names.json").write_text('["fc"]')
    for file, names in ((nodes, WEIGHTED), (tmp_path / "names.json", ["fc"])):
        folder = tmp_path / file.stem
        folder.mkdir()
        job = write_job(folder, extra=f'[nuq]\nmapping_file = "{file}"')
        report = pipeline.quantize_model(job, output=folder / "two")
        assert [x.layer for x in report.nuq.layers] == names


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ('layers = ["relu1"]', "'relu1' is no quantized layer with weights"),
        ('mapping_file = "no.json"', "No such file"),
        ('mapping_file = "config.toml"', "is not JSON"),
        ('mapping_file = "odd.json"', "neither a list of layers"),
        ('layers = ["fc"]\nmapping_file = "odd.json"', "one of them"),
        ("num_steps = 8", "num_steps"),
        ("max_drop = 1\nmetric = 'map'", "nuq.metric = 'map' is none of"),
    ],
)
def test_wrong_settings_are_named(tmp_path, capsys, table, says):
    (tmp_path / "odd.json").write_text('{"graph": []}')
    assert main([str(write_job(tmp_path, extra=f"[nuq]\n{table}"))]) == 2
    assert says in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("drop", [0.0, 3.0, 100.0])
def test_as_many_layers_as_the_metric_allows(tmp_path, drop):
    (tmp_path / "plain").mkdir()
    (tmp_path / "few").mkdir()
    plain = pipeline.quantize_model(write_job(tmp_path / "plain"))
    db = plain.accuracy[2].outputs[0].sample_sqnr
    more = f"[nuq]\nnum_steps = 16\nmax_drop = {drop}\nmetric = 'sqnr'"
    report = pipeline.quantize_model(write_job(tmp_path / "few", extra=more))
    search = report.nuq.search
    assert search.reached
    now = report.accuracy[2].outputs[0].sample_sqnr
    assert now >= db - drop
    assert now == pytest.approx(search.value, abs=1e-4)
    few = {x.layer for x in report.nuq.layers}
    assert few | set(search.in_float) == set(WEIGHTED)
    if drop == 100:
        assert few == set(WEIGHTED)
    for name in search.in_float:
        assert values(report, name) == values(plain, name)


def test_shared_weights_keep_all_values(tmp_path):
    net = small_net()
    layers = []
    for layer in net.layers:
        if layer.name in ("dw", "branch"):
            layer.param.param.add(name="w")
        layers.append(layer)
    # two layers that share a parameter of one shape
    from pipeline.config.nuq import NuqConfig
    from pipeline.jobs.nuq import chosen_layers
    from pipeline.quantize.prepare import prepare_layers

    work = prepare_layers(net.with_layers(tuple(layers)), pipeline.create_config(small_net()))
    assert chosen_layers(NuqConfig(), work) == ("conv1", "up", "fc")
    with pytest.raises(pipeline.errors.ConfigError, match="'dw' shares its weights"):
        chosen_layers(NuqConfig(layers=("dw",)), work)
