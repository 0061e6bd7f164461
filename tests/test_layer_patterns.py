"""Layers named by patterns: what they meet, which setting is nearest, and what meets nothing."""

from __future__ import annotations

import pytest
from small_nets import small_net, write_job

import pipeline
from pipeline.config.load import load_config
from pipeline.config.names import is_named, named_layers
from pipeline.errors import ConfigError
from pipeline.quantize.prepare import prepare, read_model
from pipeline.run import main


def judged(config) -> dict[str, str]:
    whole = load_config(config)
    return {v.layer: v.reason for v in prepare(whole, read_model(whole)).verdicts}


def test_patterns_are_those_of_a_shell():
    layers = ["conv1", "conv2/dw", "conv2/pw", "conv[3]", "Conv4"]
    assert named_layers("conv2/*", layers) == ("conv2/dw", "conv2/pw")
    assert named_layers("conv?", layers) == ("conv1",)
    assert named_layers("*", layers) == tuple(layers)
    assert named_layers("conv[3]", layers) == ("conv[3]",)  # a name as it is
    assert not is_named("conv1", ["CONV*"])


def test_skip_layers_and_only_layers(tmp_path, capsys):
    config = write_job(tmp_path, calibrate='skip_layers = ["f*", "up"]\nonly_layers = ["[c-z]*"]')
    reasons = judged(config)
    assert {n for n, why in reasons.items() if not why} == {"conv1", "dw"}
    assert reasons["fc"] == "named in skip_layers"
    assert reasons["branch"] == "not among only_layers"
    assert main([str(config), "--plan"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "calibrate.skip_layers: 'f*' meets 1 layer" in shown
    assert "calibrate.only_layers: '[c-z]*' meets" in shown
    assert "'up' meets" not in shown


def test_skip_fusion_layers(tmp_path):
    work = prepare(
        load_config(write_job(tmp_path, calibrate='skip_fusion_layers = ["up_*"]')), small_net()
    )
    names = {layer.name for layer in work.fused.net.layers}
    assert "up_bn" in names
    assert "bn1" not in names


@pytest.mark.parametrize("order", [("dw", "*w*"), ("*w*", "dw")])
def test_a_name_is_nearer_than_a_pattern(tmp_path, order):
    ranges = {"dw": 1.1, "*w*": 1.2}
    tables = "".join(
        f'[[calibrate.override_layer_configs]]\nlayer_name = "{name}"\n'
        f"ifmr_quantize = {{ search_range_end = {ranges[name]} }}\n"
        for name in order
    )
    work = prepare(load_config(write_job(tmp_path, calibrate=tables)), small_net())
    assert work.plans["dw"].method.search_range == (0.7, 1.1)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        (
            "skip_layers",
            "conv9*",
            "calibrate.skip_layers: net 'small' has no layer that 'conv9*' meets",
        ),
        ("only_layers", "brunch", "has no layer 'brunch'; did you mean 'branch'?"),
        ("skip_fusion_layers", "bnx?", "did you mean 'bn1'"),
    ],
)
def test_what_meets_nothing_is_an_error(tmp_path, key, value, says):
    with pytest.raises(ConfigError) as caught:
        judged(write_job(tmp_path, calibrate=f'{key} = ["{value}"]'))
    assert says in str(caught.value)


def test_patterns_in_nuq(tmp_path):
    report = pipeline.quantize_model(write_job(tmp_path, extra='[nuq]\nlayers = ["c*", "fc"]'))
    assert [x.layer for x in report.nuq.layers] == ["conv1", "fc"]
