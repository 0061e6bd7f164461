"""Layers of types that are not known: what they do not touch is quantized, and they are kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from layer_nets import with_blobs
from small_nets import samples, small_net, write_job

import caffeio
import pipeline
from caffeio import NetError
from pipeline.errors import ConfigError, PipelineError
from pipeline.layers.base import LayerType
from pipeline.layers.own import read_types, with_types
from pipeline.quantize.prepare import prepare
from pipeline.run import main
from pipeline.runtime.executor import FloatNet
from pipeline.runtime.schedule import optional_inputs

RNG = np.random.default_rng(0)
OWN = """
import numpy as np
from pipeline.layers.base import LayerType, always, any_sign

def shapes(layer, bottoms):
    return (bottoms[0],)

def forward(layer, bottoms, device):
    return (np.abs(bottoms[0]),)

TYPES = {"Magnitude": LayerType(shapes, forward, per_image=always, sign=any_sign)}
"""


def added(net: caffeio.Net, text: str, blobs: list[np.ndarray] | None = None) -> caffeio.Net:
    """Return a net with more layers at its end."""
    more = caffeio.parse_net(caffeio.to_prototxt(net) + text)
    own = {layer.name: layer.blobs for layer in net.layers}
    return with_blobs(more, own | ({more.layers[-1].name: blobs} if blobs else {}))


def unknown(name: str, bottom: str, top: str, kind: str = "Fancy") -> str:
    param = 'fancy_param { sizes: 3 sizes: 4 mode: "odd" }'
    return f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{top}" {param} }}\n'


def in_the_middle(kind: str = "Magnitude") -> caffeio.Net:
    """Return the small net with a layer of unknown type before its last product."""
    net = small_net()
    layers = []
    for layer in net.layers:
        if layer.name == "fc":
            (own,) = caffeio.parse_net(
                'layer { name: "x" type: "Input" top: "max" }' + unknown("mid", "max", "mid", kind)
            ).layers[1:]
            layers.append(own)
            layer = replace(layer, bottoms=("mid",))  # noqa: PLW2901
        layers.append(layer)
    return net.with_layers(tuple(layers))


def test_a_tail_is_in_the_exported_models_as_it_is(tmp_path: Path):
    weights = RNG.normal(size=(3, 2)).astype(np.float32)
    config = write_job(tmp_path, added(small_net(), unknown("tail", "fc", "found"), [weights]))
    report = pipeline.quantize_model(config)
    (tmp_path / "plain").mkdir()
    plain = pipeline.quantize_model(write_job(tmp_path / "plain"))
    assert report.record == plain.record
    scores = {o.blob for o in report.accuracy[2].outputs}
    assert scores == {"fc", "prob"}
    for kind in ("fake_quant", "deploy"):
        net = caffeio.read_net(
            tmp_path / f"out/net_{kind}_model.prototxt",
            tmp_path / f"out/net_{kind}_weights.caffemodel",
        )
        tail = net.layer("tail")
        assert (tail.type, tail.bottoms, tail.tops) == ("Fancy", ("fc",), ("found",))
        np.testing.assert_array_equal(tail.blobs[0], weights)
        (text,) = tail.unknown
        assert " ".join(text.text.split()) == 'fancy_param { sizes: 3 sizes: 4 mode: "odd" }'
    (note,) = [n for n in report.notes if "tail" in n]  # and not one for its parameters, too
    assert "nothing that could be quantized depends on it" in note
    (left,) = [x for x in report.layers if x.layer == "tail"]
    assert left.reason == "type 'Fancy' is not known"


@pytest.mark.parametrize("blob", ["conv1", "dw", "up_scale"])
def test_what_an_unknown_layer_reads_stays_what_it_is(tmp_path: Path, blob: str):
    """Neither folding nor equalization may change a value that leaves our sight."""
    net = added(small_net(), unknown("tail", blob, "found"))
    config = write_job(tmp_path, net, calibrate='effort = "best"')
    report = pipeline.quantize_model(config)
    assert report.net_quantized is not None
    x = {"data": samples(8)}
    exact = FloatNet(net).forward(x, [blob])[blob]
    found = FloatNet(report.net_quantized).forward(x, [blob])[blob]
    assert np.abs(found - exact).max() < 0.2 * np.abs(exact).max()


def test_what_stands_behind_an_unknown_layer_is_left_in_float(tmp_path: Path, capsys):
    config = write_job(tmp_path, in_the_middle())
    assert main([str(config), "--plan"]) == 0
    assert main([str(config)]) == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    reasons = {x["layer"]: x["reason"] for x in report["layers"]}
    assert reasons["fc"] == "it depends on layer 'mid', whose type 'Magnitude' is not known"
    assert [x["layer"] for x in report["layers"] if x["quantized"]] == [
        "conv1", "dw", "branch", "up", "avg",
    ]  # fmt: skip
    assert [o["blob"] for o in report["accuracy"][2]["outputs"]] == ["max"]
    printed = " ".join(capsys.readouterr().out.split())
    assert "[model] layers" in printed
    assert "1 layer behind it stays in float: fc" in printed


def test_with_nothing_before_it_the_reason_is_the_type(tmp_path: Path):
    net = small_net()
    first = caffeio.parse_net(
        'layer { name: "data" type: "Input" top: "data" }' + unknown("mid", "data", "mid")
    ).layers[1]
    conv1 = replace(net.layer("conv1"), bottoms=("mid",))
    layers = [conv1 if x.name == "conv1" else x for x in net.layers]
    broken = net.with_layers((layers[0], first, *layers[1:]))
    with pytest.raises(PipelineError, match=r"no layer to quantize; layer 'mid': type 'Fancy' is"):
        pipeline.quantize_model(write_job(tmp_path, broken))


def test_a_blob_behind_an_unknown_layer_cannot_be_asked_for():
    net = FloatNet(in_the_middle())
    assert set(net.forward({"data": samples(2)})) == {"max"}
    with pytest.raises(NetError, match=r"blob 'fc' depends on layer 'mid': type 'Magnitude' is"):
        net.forward({"data": samples(2)}, ["fc"])


def test_in_place_the_value_before_is_the_output():
    net = added(small_net(), unknown("mess", "fc", "fc"))
    x = {"data": samples(2)}
    exact = FloatNet(small_net()).forward(x, ["fc"])["fc"]
    np.testing.assert_array_equal(FloatNet(net).forward(x, ["fc"])["fc"], exact)


def test_an_unknown_source_makes_inputs(tmp_path: Path):
    net = small_net()
    data = caffeio.parse_net(
        'layer { name: "data" type: "AnnotatedData" top: "data" top: "label" }'
    ).layers[0]
    source = net.with_layers((data, *net.layers[1:]))
    assert source.inputs == ("data", "label")
    assert optional_inputs(source) == {"label"}
    config = write_job(tmp_path, source)
    assert main([str(config), "--plan", "--quiet"]) == 0
    report = pipeline.quantize_model(config)
    (tmp_path / "plain").mkdir()
    assert report.record == pipeline.quantize_model(write_job(tmp_path / "plain")).record


def test_an_input_that_only_unknown_layers_read_needs_no_data(tmp_path: Path):
    text = (
        'layer { name: "info" type: "Input" top: "im_info" '
        "input_param { shape { dim: 1 dim: 3 } } }\n"
        'layer { name: "rois" type: "Python" bottom: "fc" bottom: "im_info" top: "rois" }\n'
    )
    net = added(small_net(), text)
    assert optional_inputs(net) == {"im_info"}
    report = pipeline.quantize_model(write_job(tmp_path, net))
    assert len(report.record.layers) == 6


def with_layers_of_its_own(tmp_path: Path, text: str) -> Path:
    (tmp_path / "mine.py").write_text(text)
    config = write_job(tmp_path, in_the_middle())
    model = 'caffemodel = "net.caffemodel"'
    config.write_text(config.read_text().replace(model, f'{model}\nlayers = "mine.py"'))
    return config


def test_a_type_of_the_users_own_is_computed(tmp_path: Path):
    report = pipeline.quantize_model(with_layers_of_its_own(tmp_path, OWN))
    assert report.record.layers.keys() >= {"conv1", "fc"}
    assert not [n for n in report.notes if "not known" in n]
    net = with_types(in_the_middle(), read_types(tmp_path / "mine.py"))
    x = {"data": samples(3)}
    found = FloatNet(net).forward(x, ["max", "mid", "fc"])
    np.testing.assert_array_equal(found["mid"], np.abs(found["max"]))
    w, b = net.layer("fc").blobs
    np.testing.assert_allclose(found["fc"], found["mid"].reshape(3, -1) @ w.T + b, rtol=1e-4)
    again = report.int8_net().forward(x, ["fc"])["fc"]
    assert np.abs(again - found["fc"]).max() < 0.1 * np.abs(found["fc"]).max()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("x = 1\nimport nothing_of_that_name", r"mine.py':2 fails: ModuleNotFoundError"),
        ("x = (", "fails: SyntaxError"),
        ("TYPES = {}", "defines no TYPES"),
        ("TYPES = {'Mine': 1}", r"TYPES\['Mine'\] is no LayerType"),
        (OWN.replace('"Magnitude"', '"ReLU"'), "the type 'ReLU' is known already"),
    ],
)
def test_a_file_of_types_that_is_none_is_refused(tmp_path: Path, capsys, text: str, what: str):
    config = with_layers_of_its_own(tmp_path, text)
    with pytest.raises(ConfigError, match=what):
        pipeline.quantize_model(config)
    assert main([str(config)]) == 2
    assert capsys.readouterr().err.startswith("error: model.layers")
    (tmp_path / "mine.py").unlink()
    with pytest.raises(ConfigError, match="is no Python file"):
        pipeline.quantize_model(config)


def test_a_type_of_the_users_own_cannot_be_trained():
    torch_layers = pytest.importorskip("pipeline.retrain.layers")
    layer = in_the_middle().layer("mid")
    with pytest.raises(NetError, match="type 'Magnitude' is not known"):
        torch_layers.torch_layer(layer)
    kind = LayerType(lambda *a: (), lambda *a: (), lambda *a: True, lambda *a: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(NetError, match="has no form for training"):
        torch_layers.torch_layer(replace(layer, own=kind))


def test_a_net_ends_with_the_blobs_named(tmp_path: Path):
    net = small_net()
    cut = net.until(["sum"])
    assert cut.outputs == ("sum",)
    assert [x.name for x in cut.layers] == [
        x.name
        for x in net.layers[: [y.name for y in net.layers].index("up")]
        if x.name != "dilated"
    ]
    with pytest.raises(NetError, match="has no blob 'nothing'"):
        net.until(["nothing"])
    config = write_job(tmp_path)
    model = 'caffemodel = "net.caffemodel"'
    config.write_text(config.read_text().replace(model, f'{model}\noutputs = ["dw"]'))
    report = pipeline.quantize_model(config)
    assert list(report.record.layers) == ["conv1", "dw"]
    exported = caffeio.read_net(tmp_path / "out/net_deploy_model.prototxt")
    assert exported.outputs == ("dw",)
    config.write_text(config.read_text().replace('["dw"]', '["nothing"]') + "overwrite = true")
    with pytest.raises(ConfigError, match=r"model.outputs: .*has no blob 'nothing'"):
        pipeline.quantize_model(config)


def test_preparing_says_it_of_each_layer(tmp_path: Path):
    net = added(in_the_middle(), unknown("tail", "fc", "t"))
    from pipeline.config.load import load_config

    work = prepare(load_config(write_job(tmp_path, net)), net)
    notes = [n for n in work.notes if "not known" in n]
    assert [n.split(":")[0] for n in notes] == ["layer 'mid'", "layer 'tail'"]
