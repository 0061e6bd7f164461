"""What each layer loses, against nets that are made and run whole for each question."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_nets import samples, small_net, write_job

import pipeline
from caffeio import Net
from caffeio.record import Record
from pipeline import FloatNet, Int8Net
from pipeline.quantize.corrections import Corrected
from pipeline.quantize.evaluate import fake_layer
from pipeline.quantize.fuse import fuse
from pipeline.quantize.measure import Closeness
from pipeline.quantize.sensitivity import Sensitivity, half_of_the_noise, sensitivities
from pipeline.run import main

BLOBS = ("fc", "max")


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Net, Corrected]:
    """Return the folded float net and what calibration made of it."""
    report = pipeline.quantize_model(write_job(tmp_path_factory.mktemp("job")))
    assert report.net_quantized is not None
    return fuse(small_net()).net, Corrected(report.net_quantized, report.record)


def closeness(net: Net, other: FloatNet | Int8Net, blobs: tuple[str, ...] = BLOBS) -> float:
    x, values = {"data": samples(6)}, []
    exact, got = FloatNet(net).forward(x, blobs), other.forward(x, blobs)
    for blob in blobs:
        one = Closeness()
        one.update(exact[blob], got[blob])
        values.append(one.sample_sqnr)
    return float(np.mean(values))


def with_layer(net: Net, name: str, layer: object) -> Net:
    return net.with_layers(tuple(layer if x.name == name else x for x in net.layers))


def test_every_figure_is_that_of_a_whole_net(quantized: tuple[Net, Corrected]):
    net, result = quantized
    parts = [{"data": samples(6)[:4]}, {"data": samples(6)[4:]}]
    found = {s.layer: s for s in sensitivities(net, result, parts, BLOBS)}
    assert set(found) == set(result.record.layers)
    for name, s in found.items():
        # the first blob is behind all layers; the second is not behind the last one
        blobs = ("fc",) if name == "fc" else BLOBS
        one = Record({name: result.record.layers[name]})
        layer = result.net.layer(name)
        alone = Int8Net.of_fused(with_layer(net, name, layer), one)
        assert s.alone == pytest.approx(closeness(net, alone, blobs), abs=0.02), name
        rest = Record({n: x for n, x in result.record.layers.items() if n != name})
        others = Int8Net.of_fused(with_layer(result.net, name, net.layer(name)), rest)
        assert s.without == pytest.approx(closeness(net, others), abs=0.02), name
        if alone.layers[name].weights is None:
            assert s.weights == np.inf
            continue
        fake = fake_layer(layer, alone.layers[name])
        weights = FloatNet(with_layer(net, name, fake))
        assert s.weights == pytest.approx(closeness(net, weights, blobs), abs=0.02), name
        assert s.data >= s.alone - 3


def test_the_worst_comes_first_and_half_of_the_noise_is_named(quantized: tuple[Net, Corrected]):
    found = sensitivities(*quantized, [{"data": samples(4)}], ("fc",))
    assert [s.alone for s in found] == sorted(s.alone for s in found)
    made_up = [
        replace(found[0], layer=name, alone=db) for name, db in (("a", 20), ("b", 30), ("c", 21))
    ]
    assert half_of_the_noise(made_up) == ("a",)
    assert half_of_the_noise([replace(s, alone=20.0) for s in made_up]) == ("a", "b")
    assert half_of_the_noise([replace(made_up[0], alone=np.inf)]) == ()


def test_a_small_budget_gives_the_same(quantized: tuple[Net, Corrected]):
    parts = [{"data": samples(4)}]
    assert sensitivities(*quantized, parts, BLOBS) == sensitivities(
        *quantized, parts, BLOBS, memory=10_000
    )


def test_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture):
    config = write_job(tmp_path)
    assert main([str(config), "--sensitivity"]) == 0
    printed = capsys.readouterr().out
    assert "skip_layers = [" in printed
    assert not (tmp_path / "out").exists()
    layers = pipeline.layer_sensitivity(config)
    assert isinstance(layers[0], Sensitivity)
    line = next(x for x in printed.splitlines() if "skip_layers" in x).strip()
    text = config.read_text().replace("[calibrate]", f"[calibrate]\n{line}")
    config.write_text(text)
    report = pipeline.quantize_model(config)
    assert layers[0].layer not in report.record.layers
