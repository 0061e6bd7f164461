"""Real nets, calibrated on a few samples: what quantization costs them stays within bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kernels
import pipeline
from pipeline.layers import layer_type
from pipeline.quantize.export import fakequant_net
from pipeline.report.values import Report

CONFIG = """
[model]
prototxt = "{models}/{prototxt}"
caffemodel = "{models}/{caffemodel}"
[transform]
{transform}
[calibrate]
effort = "{effort}"
batch_num = 2
batch_size = 8
samples = "first"
data.source = "{data}/{calibrate}"
[evaluate]
batch_num = {count}
batch_size = {size}
data.source = "{data}/{evaluate}"
{labels}
data.start = {start}
"""

LENET = {
    "prototxt": "lenet_mnist/deploy.prototxt", "caffemodel": "lenet_mnist/lenet.caffemodel",
    "transform": "scale = 0.00390625", "calibrate": "mnist/train-images-idx3-ubyte.gz",
    "evaluate": "mnist/t10k-images-idx3-ubyte.gz", "count": 20, "size": 100, "start": 0,
}  # fmt: skip
CIFAR = {
    "prototxt": "cifar10_m4/deploy.prototxt", "caffemodel": "cifar10_m4/cifar10_m4.caffemodel.h5",
    "transform": 'mean = "{data}/cifar10_mean.npy"', "calibrate": "cifar10_4000.npz",
    "evaluate": "cifar10_4000.npz", "count": 20, "size": 50, "start": 16,
}  # fmt: skip
PHOTOS = {
    "calibrate": "imagenet_even.txt", "evaluate": "imagenet_even.txt",
    "count": 4, "size": 6, "start": 16,
}  # fmt: skip
SQUEEZENET = PHOTOS | {
    "prototxt": "squeezenet_v1.0/deploy.prototxt",
    "caffemodel": "squeezenet_v1.0/squeezenet.caffemodel",
    "transform": "resize = [256, 256]\ncrop = 227\nmean = [104, 117, 123]",
}
MOBILENET = PHOTOS | {
    "prototxt": "mobilenet_v2/deploy.prototxt",
    "caffemodel": "mobilenet_v2/mobilenet_v2.caffemodel",
    "transform": 'resize = 256\ncrop = 224\nchannel_order = "RGB"\n'
    "mean = [123.675, 116.28, 103.53]\nstd = [58.395, 57.12, 57.375]",
}


def run(assets: Path, folder: Path, job: dict, effort: str = "standard") -> Report:
    places = {"models": assets / "models", "data": assets / "data"}
    labels = ""
    if "mnist" in job["evaluate"]:
        labels = f'data.labels_file = "{assets}/data/mnist/t10k-labels-idx1-ubyte.gz"'
    job = job | {"transform": job["transform"].format(**places), "labels": labels}
    config = folder / "config.toml"
    config.write_text(CONFIG.format(**places, **job, effort=effort))
    return pipeline.quantize_model(config, output=folder / effort)


@pytest.mark.parametrize(
    ("job", "points", "decibels"),
    [(LENET, 0.1, 40), (CIFAR, 0.5, 30), (SQUEEZENET, None, 26.5), (MOBILENET, None, 14.5)],
    ids=["lenet", "cifar10", "squeezenet", "mobilenet_v2"],
)
def test_what_quantization_costs(assets, tmp_path, job, points, decibels):
    report = run(assets, tmp_path, job)
    scores = {score.model: score for score in report.accuracy}
    for model in ("fakequant", "int8"):
        assert scores[model].outputs[0].sqnr > decibels
        if points is not None:
            assert scores["float"].top1 > 70
            assert abs(scores[model].top1 - scores["float"].top1) <= points
    assert all(x.error.sqnr > 18 for x in report.layers if x.quantized)


@pytest.mark.parametrize(
    ("job", "standard", "best"),
    [
        pytest.param(CIFAR, 0, 2, id="cifar10"),
        pytest.param(SQUEEZENET, 0.5, 2, id="squeezenet", marks=pytest.mark.long),
        pytest.param(MOBILENET, 1.5, 3, id="mobilenet_v2", marks=pytest.mark.long),
    ],
)
def test_effort_pays(assets, tmp_path, job, standard, best):
    """Mean dB won over the original's numbers, on samples that were not calibrated on."""
    found = {}
    for effort in ("original", "standard", "best"):
        report = run(assets, tmp_path, job, effort)
        score = next(s for s in report.accuracy if s.model == "int8")
        found[effort] = score.outputs[0].sample_sqnr
    assert found["standard"] > found["original"] + standard
    assert found["best"] > found["original"] + best


def test_each_integer_layer_of_squeezenet_equals_its_simulation(assets, tmp_path):
    """On the same data a layer's integers give what the fakequant layer gives."""
    report = run(assets, tmp_path, SQUEEZENET | {"count": 1, "size": 1})
    int8 = report.int8_net()
    faked = {x.name: x for x in fakequant_net(int8.net, int8.layers).layers}
    checked = []

    def watch(i, layer, bottoms, tops):
        q = int8.layers.get(layer.name)
        if q is not None:
            x = kernels.fake_quantize(bottoms[0], q.data)
            (y,) = layer_type(layer).forward(faked[layer.name], [x], "cpu")
            np.testing.assert_allclose(tops[0], y, rtol=1e-4, atol=1e-5 * np.abs(y).max())
            checked.append(layer.name)

    image = np.random.default_rng(0).uniform(-120, 140, (1, 3, 227, 227)).astype(np.float32)
    int8.forward({"data": image}, observer=watch)
    assert len(checked) == 26
