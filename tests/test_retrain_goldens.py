"""Whole trainings against BVLC Caffe 1.0: the loss of each iteration, the weights at the end."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("h5py")

from conftest import GOLDENS  # noqa: E402
from training_jobs import one_thread  # noqa: E402

import caffeio  # noqa: E402
from pipeline.config.load import load_config  # noqa: E402
from pipeline.retrain.group import Group  # noqa: E402
from pipeline.retrain.job import train_model  # noqa: E402
from pipeline.retrain.plan import Plan  # noqa: E402
from pipeline.retrain.setup import set_up  # noqa: E402
from pipeline.retrain.trainer import Trainer  # noqa: E402

FOLDER = GOLDENS / "train"
RUNS = sorted(path.stem for path in FOLDER.glob("*.npz"))
ITERATIONS = 48

Blobs = dict[str, tuple[np.ndarray, ...]]


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@dataclass(frozen=True)
class Golden:
    """What Caffe began with, and what it came to."""

    begin: Blobs
    end: Blobs
    losses: np.ndarray


def golden(name: str) -> Golden:
    with np.load(FOLDER / f"{name}.npz") as z:
        stored = dict(z)

    def blobs(which: str) -> Blobs:
        layers = dict.fromkeys(key.split("/")[1] for key in stored if key.startswith(which))
        return {layer: tuple(_numbered(stored, f"{which}/{layer}")) for layer in layers}

    return Golden(blobs("init"), blobs("final"), stored["loss"])


def _numbered(stored: dict[str, np.ndarray], layer: str) -> list[np.ndarray]:
    count = sum(key.startswith(f"{layer}/") for key in stored)
    return [stored[f"{layer}/{i}"] for i in range(count)]


def write_job(name: str, folder: Path) -> Path:
    """Write Caffe's first weights as a caffemodel, and a config that trains from them."""
    net = caffeio.read_net(FOLDER / f"{name}_net.prototxt", phase="TRAIN")
    begin = golden(name).begin
    layers = (replace(layer, blobs=begin.get(layer.name, ())) for layer in net.layers)
    caffeio.write_caffemodel(net.with_layers(tuple(layers)), folder / "begin.caffemodel")
    config = folder / "config.toml"
    config.write_text(f"""
[model]
prototxt = "{FOLDER / name}_net.prototxt"
caffemodel = "begin.caffemodel"
phase = "TRAIN"
[retrain]
solver = "{FOLDER / name}_solver.prototxt"
quantize = false
device = "cpu"
[output]
directory = "out"
""")
    return config


def check_losses(got: Sequence[float], want: np.ndarray) -> None:
    np.testing.assert_allclose(got[:5], want[:5], rtol=1e-5)
    np.testing.assert_allclose(got, want, rtol=1e-4)


def check_weights(got: Blobs, want: Blobs) -> None:
    assert got.keys() == want.keys()
    for layer, blobs in want.items():
        assert [b.shape for b in got[layer]] == [b.shape for b in blobs]
        for i, (a, b) in enumerate(zip(got[layer], blobs, strict=True)):
            error = np.abs(a.astype(np.float64) - b).max() / np.abs(b).max()
            assert error < 1e-3, f"{layer}/{i}: {error}"


def test_all_runs_are_there():
    assert len(RUNS) == 13


@pytest.mark.parametrize("name", RUNS)
def test_every_iteration_equals_caffe(name: str, tmp_path: Path):
    config = load_config(write_job(name, tmp_path))
    want = golden(name)
    losses: list[float] = []
    with ExitStack() as opened:
        setup = set_up(config, Group(0, 1, torch.device("cpu")), opened)
        for layer, blobs in setup.module.trained_blobs().items():
            for got, begin in zip(blobs, want.begin[layer], strict=True):
                np.testing.assert_array_equal(got, begin)
        setup.module.register_forward_hook(lambda m, x, out: losses.append(out.loss.item()))
        plan = Plan(tmp_path / "snapshot.pt", setup.fingerprint(), 1000)
        trainer = Trainer(setup.module, setup.solver, setup.feed, setup.group, plan)
        trainer.run()
    size = setup.solver.param.iter_size
    assert len(losses) == ITERATIONS * size
    check_losses(losses[size - 1 :: size], want.losses)  # Caffe keeps that of the last forward
    means = np.reshape(losses, (ITERATIONS, size)).mean(1)
    assert [p.loss for p in trainer.points] == pytest.approx(means.tolist(), rel=1e-6)
    check_weights(setup.module.trained_blobs(), want.end)


@pytest.mark.parametrize("name", ["batchnorm", "adam"])
def test_the_files_of_a_training_equal_caffe(name: str, tmp_path: Path):
    trained = train_model(write_job(name, tmp_path))
    assert trained is not None
    assert (trained.iterations, trained.metric, trained.best) == (ITERATIONS, "", None)
    want = golden(name)
    with trained.files["course"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["iteration"]) for row in rows] == list(range(ITERATIONS))
    check_losses([float(row["loss"]) for row in rows], want.losses)
    weights = trained.files["trained_weights"]
    net = caffeio.read_net(FOLDER / f"{name}_net.prototxt", weights, "TRAIN")
    check_weights({x.name: x.blobs for x in net.layers if x.blobs}, want.end)


def test_batch_norm_keeps_caffes_averages(tmp_path: Path):
    """The sums of means and variances fade by the fraction; the third blob counts them."""
    trained = train_model(write_job("batchnorm", tmp_path))
    assert trained is not None
    net = caffeio.read_net(
        FOLDER / "batchnorm_net.prototxt", trained.files["trained_weights"], "TRAIN"
    )
    mean, variance, count = net.layer("bn1").blobs
    want = golden("batchnorm").end["bn1"]
    assert count[0] == pytest.approx((1 - 0.9**ITERATIONS) / (1 - 0.9), rel=1e-5)
    np.testing.assert_allclose(mean, want[0], rtol=1e-3, atol=1e-4 * np.abs(want[0]).max())
    np.testing.assert_allclose(variance, want[1], rtol=1e-3)
