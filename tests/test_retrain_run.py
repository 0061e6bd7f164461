"""Training by the command: what it writes and says, also when it is stopped or goes wrong."""

from __future__ import annotations

import csv
import json
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
    edit,
    one_thread,
    write_training,
)

import pipeline  # noqa: E402
from caffeio.record import read_record  # noqa: E402
from pipeline.retrain.job import train_model  # noqa: E402
from pipeline.run import main  # noqa: E402

FLOAT = "quantize = false"


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def names(folder: Path) -> set[str]:
    return {p.name for p in (folder / "out").iterdir()}


def course(folder: Path) -> list[dict[str, str]]:
    with (folder / "out" / "net_training.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# --------------------------------------------------------------------------------- what it writes


def test_a_training_ends_in_an_int8_model_as_accurate_as_its_test(tmp_path, capsys):
    assert main([str(write_training(tmp_path))]) == 0
    assert names(tmp_path) == MODEL_FILES | COURSE_FILES
    rows = course(tmp_path)
    assert [int(r["iteration"]) for r in rows] == list(range(61))
    tests = {int(r["iteration"]): float(r["metric"]) for r in rows if r["metric"]}
    assert list(tests) == [0, 20, 40, 60]
    assert max(tests.values()) > max(0.95, tests[0])
    losses = [float(r["loss"]) for r in rows if r["loss"]]
    assert len(losses) == 60
    assert np.mean(losses[-10:]) < 0.3 * losses[0]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    top1 = {s["model"]: s["top1"] for s in report["accuracy"]}
    assert top1["int8"] == pytest.approx(100 * max(tests.values()), abs=0.1)
    assert top1["fakequant"] == pytest.approx(top1["int8"], abs=0.1)
    record = read_record(tmp_path / "out" / "net_record.txt")
    assert list(record.layers) == ["conv1", "pool", "fc"]
    assert "top-1" in capsys.readouterr().out.lower()


def test_in_plain_float_only_the_training_is_written(tmp_path, capsys):
    assert main([str(write_training(tmp_path, retrain=FLOAT))]) == 0
    assert names(tmp_path) == COURSE_FILES
    printed = capsys.readouterr().out
    assert "60 iterations" in printed
    assert "acc " in printed
    assert "net_trained.caffemodel" in printed


def test_fewer_bits_give_no_int8_files(tmp_path):
    job = write_training(tmp_path, retrain="data_bits = 3\nweight_bits = 3")
    assert main([str(job), "--quiet"]) == 0
    assert names(tmp_path) == COURSE_FILES
    assert max(float(r["metric"]) for r in course(tmp_path) if r["metric"]) > 0.9


def test_a_net_without_weights_begins_by_its_fillers(tmp_path):
    report = pipeline.retrain_model(write_training(tmp_path, weights=False))
    assert report is not None
    tests = [float(r["metric"]) for r in course(tmp_path) if r["metric"]]
    assert tests[0] < 0.6
    assert max(tests) > 0.95
    scores = {s.model: s.top1 for s in report.accuracy}
    assert scores["int8"] == pytest.approx(100 * max(tests), abs=0.1)


def test_ranges_may_begin_as_calibrated(tmp_path):
    tables = '[calibrate]\ndata.source = "train.npz"\nbatch_size = 50\nbatch_num = 2'
    report = pipeline.retrain_model(write_training(tmp_path, tables=tables))
    assert report is not None
    assert report.samples == 100
    course = report.training
    assert course is not None
    assert course.metric == "acc"
    assert report.accuracy[0].top1 < 50  # it was a guess before the training, which is no fault
    assert report.warnings == ()
    assert {p.iteration for p in course.points if p.metric is not None} >= {0, course.best}
    assert {s.model: s.top1 for s in report.accuracy}["int8"] > 95


def test_the_solver_may_come_from_the_command_line(tmp_path):
    job = write_training(tmp_path, retrain=FLOAT)
    (tmp_path / "short.prototxt").write_text(SOLVER.replace("max_iter: 60", "max_iter: 7"))
    assert main([str(job), "--quiet", "--retrain", str(tmp_path / "short.prototxt")]) == 0
    assert len(course(tmp_path)) == 8


def test_a_solver_without_tests_trains_to_the_end(tmp_path):
    solver = SOLVER.replace("test_iter: 10 test_interval: 20", "")
    job = write_training(tmp_path, solver=solver, retrain=FLOAT)
    job.write_text(job.read_text().replace('test_data.source = "test.npz"', ""))
    trained = train_model(job)
    assert trained is not None
    assert (trained.iterations, trained.metric, trained.best, trained.at) == (60, "", None, None)


def test_the_same_training_twice_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        assert main([str(write_training(tmp_path / name)), "--quiet"]) == 0
    for name in (MODEL_FILES | COURSE_FILES) - {"report.json", "report.html", "net_training.png"}:
        one, two = ((tmp_path / f / "out" / name).read_bytes() for f in ("a", "b"))
        assert one == two, name


def test_patience_stops_and_keeps_the_best(tmp_path):
    """The first training ends at 100 %: from there nothing can be better."""
    first = tmp_path / "first"
    first.mkdir()
    assert main([str(write_training(first, retrain=FLOAT)), "--quiet"]) == 0
    job = write_training(tmp_path, retrain=FLOAT + "\npatience = 2")
    (tmp_path / "begin.caffemodel").write_bytes((first / "out/net_trained.caffemodel").read_bytes())
    rows = course(first)
    best = max(float(r["metric"]) for r in rows if r["metric"])
    solver = SOLVER.replace("base_lr: 0.05", "base_lr: 3.0")  # much too high: it only gets worse
    (tmp_path / "solver.prototxt").write_text(solver.replace("max_iter: 60", "max_iter: 300"))
    trained = train_model(job)
    assert trained is not None
    assert (trained.iterations, trained.at, trained.best) == (40, 0, pytest.approx(best))
    kept, begun = blobs_of(tmp_path), blobs_of(first)
    for name, blobs in begun.items():
        for a, b in zip(kept[name], blobs, strict=True):
            np.testing.assert_array_equal(a, b)


# ----------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("quantize", [True, False])
def test_a_loss_that_is_lost_names_iteration_layer_and_rate(quantize, tmp_path, capsys):
    solver = SOLVER.replace("base_lr: 0.05", "base_lr: 1e20")
    retrain = f"quantize = {str(quantize).lower()}"
    job = write_training(tmp_path, solver=solver, retrain=retrain)
    assert main([str(job), "--quiet"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1
    assert "iteration 1" in err or "iteration 2" in err, err
    assert "layer 'conv1'" in err or "layer 'fc'" in err, err
    assert "1e+20" in err, err
    assert not names(tmp_path) & (MODEL_FILES | COURSE_FILES)


BROKEN = [
    ("no such solver", edit("config.toml", "solver.prototxt", "silver.prototxt"), 2,
     ["silver.prototxt"]),
    ("solver without max_iter", edit("solver.prototxt", "max_iter: 60", ""), 1,
     ["solver.prototxt", "max_iter"]),
    ("no such net", edit("solver.prototxt", "train_test", "train_tost"), 1,
     ["solver.prototxt", "train_tost.prototxt"]),
    ("a layer that training lacks", edit("train_test.prototxt", '"conv1" type', '"conv" type'), 1,
     ["'conv1'", "training net"]),
    ("no data", edit("config.toml", 'data.source = "train.npz"\n', ""), 2, ["retrain.data"]),
    ("no such data", edit("config.toml", "train.npz", "trein.npz"), 2, ["trein.npz"]),
    ("no such layer to skip", edit("config.toml", "batch_size = 16", 'skip_layers = ["conv2"]'), 2,
     ["retrain.skip_layers", "'conv2'", "'conv1'"]),
    ("no such metric", edit("config.toml", "batch_size = 16", 'metric = "top5"'), 2,
     ["retrain.metric", "acc", "'top5'"]),
    ("test data without tests",
     edit("solver.prototxt", "test_iter: 10 test_interval: 20", ""), 2,
     ["retrain.test_data", "test_iter"]),
    ("a typo", edit("config.toml", "batch_size = 16", "batch_sise = 16"), 2,
     ["retrain.batch_sise", "batch_size"]),
    ("too many bits", edit("config.toml", "batch_size = 16", "data_bits = 9"), 2,
     ["retrain.data_bits"]),
    ("weights of another net", edit("train_test.prototxt", "num_output: 6", "num_output: 5"), 1,
     ["begin.caffemodel", "conv1"]),
    ("a layer that cannot be trained", edit("train_test.prototxt", '"ReLU"', '"RoLU"'), 1,
     ["'relu1'", "RoLU"]),
]  # fmt: skip


@pytest.mark.parametrize(("what", "do", "code", "parts"), BROKEN, ids=[b[0] for b in BROKEN])
def test_a_broken_job_gives_a_clear_line_and_writes_nothing(
    what, do, code, parts, tmp_path, capsys
):
    job = write_training(tmp_path)
    do(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert main([str(job), "--quiet"]) == code
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.startswith("error: ")
    assert len(captured.err.strip().splitlines()) == 1, captured.err
    assert all(part in captured.err for part in parts), captured.err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_batch_size_is_needed_where_no_net_says_it(tmp_path, capsys):
    job = write_training(tmp_path)
    edit("config.toml", "batch_size = 16", "")(tmp_path)
    edit("train_test.prototxt", "dim: 50 dim: 1", "dim: 0 dim: 1")(tmp_path)
    assert main([str(job), "--quiet"]) == 2
    assert "retrain.batch_size is missing" in capsys.readouterr().err
