"""A small net to train on data that is easily learned, its jobs, and commands that run them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from conftest import ROOT

import caffeio

MODEL_FILES = {
    "net_record.txt", "net_fake_quant_model.prototxt", "net_fake_quant_weights.caffemodel",
    "net_deploy_model.prototxt", "net_deploy_weights.caffemodel", "net_quant.json", "report.json", "report.csv", "report.html",
    "net_manifest.json",
}  # fmt: skip
COURSE_FILES = {
    "net_trained.caffemodel", "net_training.csv", "net_training.png", "net_last.caffemodel",
    "net_last.solverstate",
}  # fmt: skip

INPUT = 'layer {{ name: "{0}" type: "Input" top: "{0}" input_param {{ shape {{ {1} }} }} }}\n'
BODY = """
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 6 kernel_size: 3 bias_term: false
    weight_filler { type: "xavier" } } }
layer { name: "bn1" type: "BatchNorm" bottom: "conv1" top: "conv1" }
layer { name: "scale1" type: "Scale" bottom: "conv1" top: "conv1" scale_param { bias_term: true } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool" type: "Pooling" bottom: "conv1" top: "pool"
  pooling_param { pool: AVE kernel_size: 2 stride: 2 } }
%s
layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc"
  param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
"""
DROPOUT = 'layer { name: "drop" type: "Dropout" bottom: "pool" top: "pool" }'
ENDS = """
layer { name: "acc" type: "Accuracy" bottom: "fc" bottom: "label" top: "acc"
  include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
"""
PROB = 'layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }\n'
SOLVER = """
net: "train_test.prototxt"
base_lr: 0.05 lr_policy: "step" gamma: 0.5 stepsize: 100 momentum: 0.9 weight_decay: 0.0005
max_iter: 60 test_iter: 10 test_interval: 20 random_seed: 3
"""


@contextmanager
def one_thread() -> Iterator[None]:
    """Let numba and torch compute on one thread: as fast here, and bits depend on the number."""
    import numba
    import torch

    before = numba.get_num_threads(), torch.get_num_threads()
    numba.set_num_threads(1)
    torch.set_num_threads(1)  # after numba, whose OpenMP threads set it too
    try:
        yield
    finally:
        numba.set_num_threads(before[0])
        torch.set_num_threads(before[1])


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return noisy pictures (count, 1, 8, 8) of four patterns, and which."""
    patterns = np.random.default_rng(99).normal(size=(4, 1, 8, 8))
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, count)
    data = patterns[label] + rng.normal(scale=0.7, size=(count, 1, 8, 8))
    return data.astype(np.float32), label


def write_training(
    folder: Path,
    *,
    solver: str = SOLVER,
    retrain: str = "",
    dropout: bool = True,
    weights: bool = True,
    tables: str = "",
    output: str = "",
) -> Path:
    """Write nets, solver, weights, data and a config into a folder; return the config's path."""
    body = BODY % (DROPOUT if dropout else "")
    data = INPUT.format("data", "dim: 50 dim: 1 dim: 8 dim: 8")
    label = INPUT.format("label", "dim: 50")
    (folder / "train_test.prototxt").write_text(f'name: "tiny"\n{data}{label}{body}{ENDS}')
    (folder / "deploy.prototxt").write_text(f'name: "tiny"\n{data}{body}{PROB}')
    (folder / "solver.prototxt").write_text(solver)
    if weights:
        begin = first_weights(caffeio.read_net(folder / "deploy.prototxt"))
        caffeio.write_caffemodel(begin, folder / "begin.caffemodel")
    for name, count, seed in (("train", 200, 1), ("test", 500, 2)):
        x, y = images(count, seed)
        np.savez(folder / f"{name}.npz", data=x, label=y)
    config = folder / "config.toml"
    config.write_text(f"""
[model]
prototxt = "deploy.prototxt"
{'caffemodel = "begin.caffemodel"' if weights else ""}
[retrain]
solver = "solver.prototxt"
data.source = "train.npz"
test_data.source = "test.npz"
batch_size = 16
device = "cpu"
{retrain}
[output]
directory = "out"
{output}
{tables}
""")
    return config


def first_weights(net: caffeio.Net) -> caffeio.Net:
    rng = np.random.default_rng(4)
    blobs = {
        "conv1": [rng.normal(scale=0.3, size=(6, 1, 3, 3))],
        "bn1": [np.zeros(6), np.ones(6), np.ones(1)],
        "scale1": [np.ones(6), np.zeros(6)],
        "fc": [rng.normal(scale=0.1, size=(4, 54)), np.zeros(4)],
    }
    return net.with_layers(
        tuple(
            replace(x, blobs=tuple(np.asarray(b, np.float32) for b in blobs.get(x.name, ())))
            for x in net.layers
        )
    )


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return do


def blobs_of(folder: Path) -> dict[str, tuple[np.ndarray, ...]]:
    """Return the trained weights that a job in this folder has written."""
    net = caffeio.read_net(folder / "deploy.prototxt", folder / "out" / "net_trained.caffemodel")
    return {x.name: x.blobs for x in net.layers if x.blobs}


def command(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start the command on one thread, in a group of its own, with SIGINT as in a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.run", *arguments, "--threads", "1"], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environment},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
