"""A training that is stopped, or killed, and goes on as if nothing had been."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from training_jobs import (  # noqa: E402
    COURSE_FILES,
    MODEL_FILES,
    SOLVER,
    command,
    edit,
    first_weights,
    one_thread,
    write_training,
)

import caffeio  # noqa: E402
import pipeline.retrain.job as retrain_job  # noqa: E402
from pipeline.retrain.snapshot import random_states, set_random_states  # noqa: E402
from pipeline.run import main  # noqa: E402

FLOAT = "quantize = false"
LONG = SOLVER.replace("max_iter: 60", "max_iter: 300").replace("interval: 20", "interval: 100")
ONE = SOLVER.replace("max_iter: 60", "max_iter: 1")
KEPT = {"net_snapshot.pt", "net_best.pt"}


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def names(folder: Path) -> set[str]:
    return {p.name for p in (folder / "out").iterdir()}


def kept(folder: Path) -> set[str]:
    """Return what a stopped training leaves, without weights and state for Caffe: a pair."""
    found = names(folder)
    pair = {n for n in found if n.startswith("net_snapshot_iter_")}
    assert {Path(n).suffix for n in pair} == {".caffemodel", ".solverstate"}
    assert len({Path(n).stem for n in pair}) == 1
    return found - pair


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a training that nobody has interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    process = command(str(write_training(folder, solver=LONG)), "--quiet")
    assert process.communicate() == ("", "")
    assert process.returncode == 0
    return folder


def check_equal(folder: Path, whole: Path) -> None:
    """What a training that went on has written is what it would have written anyway."""
    assert names(folder) == MODEL_FILES | COURSE_FILES
    for name in (MODEL_FILES | COURSE_FILES) - {"report.json", "report.html", "net_training.png"}:
        one, two = ((f / "out" / name).read_bytes() for f in (folder, whole))
        assert one == two, name


def test_a_killed_training_goes_on_as_if_nothing_had_been(tmp_path, whole):
    job = write_training(tmp_path, solver=LONG, retrain="snapshot_interval = 7")
    snapshot = tmp_path / "out" / "net_snapshot.pt"
    process = command(str(job), "--quiet")
    while not snapshot.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    time.sleep(random.uniform(0, 0.3))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not names(tmp_path) & (MODEL_FILES | COURSE_FILES)
    assert main([str(job), "--quiet", "--resume"]) == 0
    for rest in (tmp_path / "out").glob(".*"):  # a snapshot that was being written
        rest.unlink()
    check_equal(tmp_path, whole)


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 2), (signal.SIGTERM, 0)])
def test_a_stopped_training_keeps_a_snapshot_and_goes_on(number, workers, tmp_path, whole):
    """Ctrl-C in a terminal goes to all processes of a command, also to those still starting."""
    settings = "snapshot_interval = 10000\nworkers = "
    job = write_training(tmp_path, solver=LONG, retrain=f"{settings}{workers}")
    process = command(str(job))
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("train: iteration"):
            break
    os.killpg(process.pid, number)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "Traceback" not in err, err
    assert "--resume goes on" in err.strip().splitlines()[-1]
    assert kept(tmp_path) == KEPT
    edit("config.toml", f"workers = {workers}", "workers = 0")(tmp_path)
    assert main([str(job), "--quiet", "--resume"]) == 0
    check_equal(tmp_path, whole)


def stopped(folder: Path, retrain: str = FLOAT, solver: str = ONE) -> Path:
    """Leave the snapshots of a training that has ended, as of one that could not write."""
    path = write_training(folder, retrain=retrain, solver=solver)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrain_job, "_remove_snapshots", lambda course: None)
        assert main([str(path), "--quiet"]) == 0
    for file in (folder / "out").iterdir():
        if file.name not in KEPT and "_snapshot_" not in file.name:
            file.rename(folder / file.name)
    return path


def fewer_data(folder: Path) -> None:
    with np.load(folder / "train.npz") as z:
        np.savez(folder / "train.npz", data=z["data"][:100], label=z["label"][:100])


def one_sample(file: str, place: int) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        with np.load(folder / file) as z:
            data, label = z["data"], z["label"]
        data[place] += 1
        np.savez(folder / file, data=data, label=label)

    return do


def other_labels(folder: Path) -> None:
    with np.load(folder / "train.npz") as z:
        np.savez(folder / "train.npz", data=z["data"], label=3 - z["label"])


def other_weights(folder: Path) -> None:
    net = first_weights(caffeio.read_net(folder / "deploy.prototxt"))
    net.layer("fc").blobs[1][0] = 1
    (folder / "begin.caffemodel").unlink()
    caffeio.write_caffemodel(net, folder / "begin.caffemodel")


CHANGED = [
    ("solver", edit("solver.prototxt", "0.05", "0.01"), ["solver"]),
    ("net", edit("train_test.prototxt", '"scale1"', '"scale2"'), ["net"]),
    ("weights", other_weights, ["weights"]),
    ("data", fewer_data, ["data"]),
    ("first sample", one_sample("train.npz", 0), ["contents of '", "train.npz'"]),
    ("last sample", one_sample("train.npz", -1), ["contents of '", "train.npz'"]),
    ("test data", one_sample("test.npz", 0), ["contents of '", "test.npz'"]),
    ("labels", other_labels, ["contents of '", "train.npz'"]),
    ("batch size", edit("config.toml", "batch_size = 16", "batch_size = 8"), ["data", "settings"]),
    ("seed", edit("solver.prototxt", "random_seed: 3", "random_seed: 4"), ["solver", "data"]),
    ("metric", edit("config.toml", FLOAT, FLOAT + '\nmetric = "loss"'), ["settings"]),
    ("bits", edit("config.toml", FLOAT, "data_bits = 3"), ["settings"]),
]


@pytest.mark.parametrize(("what", "do", "parts"), CHANGED, ids=[c[0] for c in CHANGED])
def test_a_snapshot_of_another_training_is_refused(what, do, parts, tmp_path, capsys):
    job = stopped(tmp_path)
    do(tmp_path)
    assert main([str(job), "--quiet", "--resume"]) == 1
    err = capsys.readouterr().err
    assert "net_snapshot.pt: was made with other" in err
    assert all(part in err for part in parts), err
    assert kept(tmp_path) == KEPT


def test_a_snapshot_for_another_model_is_refused(tmp_path, capsys):
    """The layers to quantize are those of [model], which is no part of the training net."""
    job = stopped(tmp_path, retrain="")
    edit("deploy.prototxt", "pool: AVE", "pool: MAX")(tmp_path)
    assert main([str(job), "--quiet", "--resume"]) == 1
    err = capsys.readouterr().err
    assert "net_snapshot.pt: was made with other" in err
    assert len(err.strip().splitlines()) == 1


def test_what_does_not_matter_may_change(tmp_path, capsys):
    job = stopped(tmp_path)
    os.utime(tmp_path / "train.npz", ns=(1, 1))
    more = "\npatience = 5\nsnapshot_interval = 2\nworkers = 0"
    edit("config.toml", FLOAT, FLOAT + more)(tmp_path)
    assert main([str(job), "--quiet", "--resume"]) == 0
    assert names(tmp_path) == COURSE_FILES
    assert not capsys.readouterr().err


def test_a_training_that_patience_has_ended_does_not_go_on(tmp_path):
    """Accuracy comes to 1, which the next test cannot better."""
    solver = SOLVER.replace("test_interval: 20", "test_interval: 2")
    job = stopped(tmp_path, FLOAT + "\npatience = 1", solver)
    assert main([str(job), "--quiet", "--resume"]) == 0
    before, after = (f / "net_training.csv" for f in (tmp_path, tmp_path / "out"))
    assert len(before.read_text().splitlines()) < 60
    assert after.read_text() == before.read_text()


def test_a_snapshot_is_not_overwritten_unasked(tmp_path, capsys):
    job = stopped(tmp_path)
    assert main([str(job), "--quiet"]) == 2
    assert "--resume goes on from it" in capsys.readouterr().err
    edit("config.toml", 'directory = "out"', 'directory = "out"\noverwrite = true')(tmp_path)
    assert main([str(job), "--quiet"]) == 0
    assert names(tmp_path) == COURSE_FILES


def test_random_numbers_of_every_device_go_on(monkeypatch):
    """On CUDA Dropout draws from the device, of whose numbers nothing was kept before."""
    on_device = {"state": torch.tensor([1], dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: on_device["state"])
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device: on_device.update({device: state})
    )
    cuda, cpu = torch.device("cuda", 1), torch.device("cpu")
    states = random_states(cuda)
    first = torch.rand(3)
    set_random_states(states, cuda)
    assert torch.equal(torch.rand(3), first)
    assert torch.equal(on_device.pop(cuda), on_device["state"])
    alone = random_states(cpu)
    assert [*alone] == ["cpu"]
    set_random_states(alone, cuda)  # a training that goes on elsewhere
    set_random_states(states, cpu)
    assert [*on_device] == ["state"]
    assert torch.equal(torch.rand(3), first)


def test_a_damaged_snapshot_is_named(tmp_path, capsys):
    job = stopped(tmp_path)
    snapshot = tmp_path / "out" / "net_snapshot.pt"
    snapshot.write_bytes(snapshot.read_bytes()[:1000])
    assert main([str(job), "--quiet", "--resume"]) == 1
    err = capsys.readouterr().err
    assert "net_snapshot.pt: is damaged" in err
    assert len(err.strip().splitlines()) == 1


def test_going_on_without_a_snapshot_is_refused(tmp_path, capsys):
    assert main([str(write_training(tmp_path)), "--quiet", "--resume"]) == 1
    assert "no snapshot to go on from" in capsys.readouterr().err
