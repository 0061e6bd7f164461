"""Small nets cut down from kinds of public ones: each through the whole flow, with random weights."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import caffeio
import pipeline
from caffeio import Layer, NetError
from pipeline.layers import layer_type
from pipeline.run import main

#: Nets that have inputs, and the layers quantized in each.
NETS = {
    "annotated": 1, "bn_scale_bias": 2, "dropout_scale_train": 2, "dup_names": 3, "dw_num_output": 1,
    "gbk_comment": 1, "ignored_then_fails": 3, "placeholder_size": 2, "ssd_rows": 3,
    "unknown_mid": 2, "unknown_tail": 2, "upsample_forms": 2, "v1_crop": 1,
}  # fmt: skip


@pytest.fixture
def nets(assets: Path) -> Path:
    return assets.parent / "cases" / "nets"


def random_blobs(layer: Layer, shapes: list[tuple[int, ...]], seed: int) -> tuple[np.ndarray, ...]:
    """Return weights of the shapes that the layer itself asks for."""
    try:
        layer_type(layer).shapes(layer, shapes)
    except NetError as error:
        wanted = re.search(r"needs \d+ weight blobs? \((.*)\), has 0", str(error))
        if wanted is None:
            return ()
        rng = np.random.default_rng(seed)
        found = []
        for name, dims in re.findall(r"(\w+) \(([^()]*)\)", wanted.group(1)):
            shape = tuple(int(d) for d in dims.split(",") if d.strip())
            fan = max(int(np.prod(shape[1:])), 1)
            blob = rng.normal(0, fan**-0.5, shape).astype(np.float32)
            positive = name in {"variance", "scale", "slope", "scale_factor"}
            found.append(np.abs(blob) + 0.5 if positive else blob)
        return tuple(np.ones(1, np.float32) if b.shape == (1,) else b for b in found)
    return ()


def with_random_weights(net: caffeio.Net, size: tuple[int, ...]) -> caffeio.Net:
    """Return the net with weights; its first input has this shape, batch first."""
    shapes: dict[caffeio.Value, tuple[int, ...]] = {}
    layers = []
    for i, (layer, link) in enumerate(zip(net.layers, net.links, strict=True)):
        if layer.is_source:
            shapes.update(dict.fromkeys(link.writes, size))
        elif layer_type(layer).computes:
            bottoms = [shapes[v] for v in link.reads]
            layer = replace(layer, blobs=random_blobs(layer, bottoms, i))  # noqa: PLW2901
            shapes.update(zip(link.writes, layer_type(layer).shapes(layer, bottoms), strict=True))
        layers.append(layer)
    return net.with_layers(tuple(layers))


def write_run(nets: Path, name: str, folder: Path) -> Path:
    """Write weights, data and config for one of the nets; return the config's path."""
    net = caffeio.read_net(nets / f"{name}.prototxt")
    declared = [tuple(s.dim) for s in net.layers[0].param.input_param.shape]
    size = (2, *declared[0][1:]) if declared else (2, 3, 24, 24)
    if name == "placeholder_size":
        size = (2, 3, 20, 28)
    caffeio.write_caffemodel(with_random_weights(net, size), folder / "net.caffemodel")
    data = np.random.default_rng(0).normal(size=(12, *size[1:])).astype(np.float32)
    np.save(folder / "data.npy", data)
    config = folder / "config.toml"
    config.write_text(f"""
[model]
prototxt = "{nets / name}.prototxt"
caffemodel = "net.caffemodel"
[calibrate]
batch_num = 3
batch_size = 2
data.source = "data.npy"
[evaluate]
batch_size = 3
data.source = "data.npy"
""")
    return config


@pytest.mark.parametrize("name", NETS)
def test_each_goes_through_the_whole_flow(nets: Path, tmp_path: Path, name: str):
    config = write_run(nets, name, tmp_path)
    assert main([str(config), "--plan", "--quiet"]) == 0
    report = pipeline.quantize_model(config)
    assert sum(layer.quantized for layer in report.layers) == NETS[name]
    outputs = report.accuracy[-1].outputs
    assert outputs
    assert all(o.sample_sqnr > 20 for o in outputs)
    exported = caffeio.read_net(
        tmp_path / "quantized/net_fake_quant_model.prototxt",
        tmp_path / "quantized/net_fake_quant_weights.caffemodel",
    )
    x = {exported.inputs[0]: np.load(tmp_path / "data.npy")[:2]}
    runner = pipeline.FloatNet(exported)
    assert {o.blob for o in outputs} <= set(runner.forward(x, [o.blob for o in outputs]))


def test_a_loss_makes_its_own_top(nets: Path):
    net = caffeio.read_net(nets / "loss_without_top.prototxt")
    (loss,) = pipeline.FloatNet(with_random_weights(net, ())).forward({}).values()
    assert loss.shape == ()
    assert loss > 0


def test_a_type_in_the_wrong_case_is_named(nets: Path):
    net = caffeio.read_net(nets / "lower.prototxt")
    with pytest.raises(NetError, match="'concat' is not known: it is spelled 'Concat'"):
        pipeline.FloatNet(net)


def test_all_nets_are_here(nets: Path):
    names = {path.stem for path in nets.glob("*.prototxt")}
    assert names == {*NETS, "loss_without_top", "lower"}
