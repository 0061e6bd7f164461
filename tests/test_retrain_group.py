"""Processes that share a batch: they train as one would."""

from __future__ import annotations

import csv
import re
import socket
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from training_jobs import (  # noqa: E402
    COURSE_FILES,
    MODEL_FILES,
    SOLVER,
    blobs_of,
    command,
    one_thread,
    write_training,
)

from caffeio.record import read_record  # noqa: E402
from pipeline.run import main  # noqa: E402

SHORT = SOLVER.replace("max_iter: 60", "max_iter: 24").replace("interval: 20", "interval: 12")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def alone(folder: Path) -> None:
    with one_thread():
        assert main([str(folder / "config.toml"), "--quiet"]) == 0


def run(*folders: Path, code: int = 0) -> list[str]:
    """Run a job in each folder, all as one group, as torchrun would; return what they said."""
    shared = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(len(folders))
    }  # fmt: skip
    processes = [
        command(
            str(folder / "config.toml"), "--quiet",
            RANK=str(rank), LOCAL_RANK=str(rank), **shared,
        )
        for rank, folder in enumerate(folders)
    ]  # fmt: skip
    said = [process.communicate() for process in processes]
    assert [p.returncode for p in processes] == [code] * len(processes), said
    assert not any(out for out, _ in said)
    return [err for _, err in said]


def make(folder: Path, **more: str) -> Path:
    folder.mkdir()
    write_training(folder, dropout=False, **{"solver": SHORT, **more})
    return folder


def course(folder: Path) -> list[dict[str, float]]:
    with (folder / "out" / "net_training.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: float(value) for key, value in row.items() if value} for row in rows]


def check_alike(got: Path, want: Path) -> None:
    """The same losses and tests on the way, and the same weights, but for the order of sums."""
    assert len(course(got)) == len(course(want)) == 25
    for a, b in zip(course(got), course(want), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    weights = blobs_of(want)
    for name, blobs in blobs_of(got).items():
        for x, y in zip(blobs, weights[name], strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4 * np.abs(y).max())


def test_two_processes_follow_the_course_of_one(tmp_path):
    """BatchNorm, ranges by IFMR on the first batch, and clips: all of it is the whole batch's."""
    one, two, other = (make(tmp_path / name) for name in ("one", "two", "other"))
    alone(one)
    assert run(two, other) == ["", ""]
    assert {p.name for p in (two / "out").iterdir()} == MODEL_FILES | COURSE_FILES
    assert not (other / "out").exists()  # only the leader writes
    check_alike(two, one)
    a, b = (read_record(f / "out" / "net_record.txt").layers for f in (two, one))
    assert a.keys() == b.keys()
    for name, layer in a.items():
        assert layer.offset_d == b[name].offset_d
        assert layer.scale_d == pytest.approx(b[name].scale_d, rel=1e-4)
        assert layer.scale_w == pytest.approx(b[name].scale_w, rel=1e-4)


def test_a_group_sums_over_several_batches_in_plain_float(tmp_path):
    solver = SHORT + "iter_size: 2 clip_gradients: 1.0 type: 'Adam' momentum2: 0.99\n"
    more = {"retrain": "quantize = false", "solver": solver.replace("0.05", "0.01")}
    one, two = (make(tmp_path / name, **more) for name in ("one", "two"))
    alone(one)
    run(two, two)
    check_alike(two, one)


def test_a_lost_loss_ends_every_process(tmp_path):
    solver = SHORT.replace("base_lr: 0.05", "base_lr: 1e20")
    folder = make(tmp_path / "job", retrain="quantize = false", solver=solver)
    for err in run(folder, folder, code=1):
        assert re.search(r"at iteration [12], learning rate 1e\+20: .*layer 'conv1'", err)
    assert not {p.name for p in (folder / "out").iterdir()} & COURSE_FILES
