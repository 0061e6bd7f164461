"""Short trainings of random nets, as BVLC Caffe ran them, and the product's trainer on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from conftest import GOLDENS

from pipeline.config.load import load_config
from pipeline.retrain.group import Group
from pipeline.retrain.module import CaffeModule
from pipeline.retrain.plan import Plan
from pipeline.retrain.setup import set_up
from pipeline.retrain.trainer import Trainer

__all__ = ["NAMES", "Golden", "Run", "golden", "train"]

FOLDER = GOLDENS / "train_random"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))


@dataclass(frozen=True)
class Golden:
    """A training by Caffe.

    Attributes
    ----------
    files : dict of name to bytes
        Net, solver, first weights and data.
    losses : float array (iterations,)
    end : dict of (layer, blob number) to array
    """

    files: dict[str, bytes]
    losses: np.ndarray
    end: dict[tuple[str, int], np.ndarray]


@dataclass(frozen=True)
class Run:
    """The same training here.

    Attributes
    ----------
    losses : list of float
    begin, end : dict of layer name to blobs
    """

    losses: Sequence[float]
    begin: dict[str, tuple[np.ndarray, ...]]
    end: dict[str, tuple[np.ndarray, ...]]


def golden(name: str) -> Golden:
    """Read a golden."""
    with np.load(FOLDER / f"{name}.npz") as stored:
        arrays = dict(stored)
    names = {
        "net": "net.prototxt",
        "solver": "solver.prototxt",
        "begin": "begin.caffemodel",
        "data": "train.h5",
    }
    files = {file: arrays[key].tobytes() for key, file in names.items()}
    end = {}
    for key, blob in arrays.items():
        if key.startswith("final/"):
            _, *layer, number = key.split("/")
            end["/".join(layer), int(number)] = blob
    return Golden(files | {"train.txt": b"train.h5\n"}, arrays["loss"], end)


def train(want: Golden, folder: Path, prepare: Callable[[CaffeModule], None] | None = None) -> Run:
    """Train as the golden did, from the same weights on the same data.

    `prepare` may change the module before.
    """
    for file, content in want.files.items():
        (folder / file).write_bytes(content)
    (folder / "config.toml").write_text(
        '[model]\nprototxt = "net.prototxt"\ncaffemodel = "begin.caffemodel"\nphase = "TRAIN"\n'
        '[retrain]\nsolver = "solver.prototxt"\nquantize = false\ndevice = "cpu"\n'
        '[output]\ndirectory = "out"\n'
    )
    with ExitStack() as opened:
        setup = set_up(
            load_config(folder / "config.toml"), Group(0, 1, torch.device("cpu")), opened
        )
        begin = setup.module.trained_blobs()
        if prepare is not None:
            prepare(setup.module)
        plan = Plan(folder / "snapshot.pt", setup.fingerprint(), 1000)
        losses: list[float] = []
        setup.module.register_forward_hook(lambda m, x, out: losses.append(out.loss.item()))
        Trainer(setup.module, setup.solver, setup.feed, setup.group, plan).run()
        size = setup.solver.param.iter_size  # Caffe keeps the loss of the last forward
        return Run(losses[size - 1 :: size], begin, setup.module.trained_blobs())
