"""Which file of kept observations a calibration goes on from, and which it refuses."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from calibration_jobs import (
    BATCHES,
    LONG,
    STATE,
    interrupt,
    keep_often,
    leave_state,
    write,
)
from small_nets import samples, small_net
from training_jobs import edit

import caffeio
from pipeline.errors import PipelineError
from pipeline.jobs import fingerprint
from pipeline.jobs.state_file import load_state
from pipeline.run import main


@pytest.fixture
def often(monkeypatch):
    keep_often(monkeypatch)


def other_weights(folder: Path) -> None:
    (folder / "net.caffemodel").unlink()
    caffeio.write_caffemodel(small_net(seed=5), folder / "net.caffemodel")


def other_data(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        file = folder / "data.npz"
        before = file.stat()
        with np.load(file) as z:
            data = change(z["data"])
            np.savez(file, data=data, label=np.zeros(len(data)))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    return do


def one_sample(place: int) -> Callable[[Path], None]:
    def change(data: np.ndarray) -> np.ndarray:
        data[place] += 1
        return data

    return other_data(change)


def touched(folder: Path) -> None:
    os.utime(folder / "data.npz", ns=(1, 1))


STALE = [
    ("weights", other_weights, "weights"),
    ("net", edit("net.prototxt", "pool: MAX", "pool: AVE"), "net (layers"),
    ("folding", edit("config.toml", BATCHES, BATCHES + "\ndo_fusion = false"), "net (layers"),
    ("more samples", other_data(lambda x: samples(25)), "data.npz' has 25 samples, had 24"),
    ("first sample", one_sample(0), "data.npz' has another sample number"),
    ("last sample", one_sample(23), "data.npz' has another sample number"),
    ("time", touched, "data.npz' were changed"),
    ("source", edit("config.toml", '"data.npz"\n\n[ev', '"more.npz"\n\n[ev'), "more.npz', not"),
    ("batch_num", edit("config.toml", "batch_num = 6", "batch_num = 5"), "batches (5 of 4, not 6"),
    ("batch_size", edit("config.toml", BATCHES, "batch_num = 6\nbatch_size = 3"), "6 of 3, not"),
    ("samples", edit("config.toml", BATCHES, BATCHES + '\nsamples = "first"'), "samples (first,"),
    ("transform", edit("config.toml", "[calibrate]", "[transform]\nscale = 2\n[calibrate]"),
     "other transform"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "do", "said"), STALE, ids=[c[0] for c in STALE])
def test_what_belongs_to_another_calibration_is_refused(what, do, said, tmp_path, often, capsys):
    path = leave_state(tmp_path)
    (tmp_path / "more.npz").write_bytes((tmp_path / "data.npz").read_bytes())
    before = (tmp_path / "out" / STATE).read_bytes()
    capsys.readouterr()
    do(tmp_path)
    assert main([str(path), "--quiet", "--resume"]) == 1
    err = capsys.readouterr().err
    assert f"{STATE}: was made with other" in err
    assert said in err, err
    assert "run without --resume" in err
    assert len(err.strip().splitlines()) == 1
    assert (tmp_path / "out" / STATE).read_bytes() == before


@pytest.mark.usefixtures("often")
def test_what_files_hold_that_the_config_names_counts(tmp_path, capsys):
    mean, own = tmp_path / "mean.npy", tmp_path / "own.py"
    np.save(mean, np.zeros((3, 12, 10), np.float32))
    types = """from pipeline.layers.base import LayerType, always, any_sign
TYPES = {"Own": LayerType(max, max, always, any_sign)}
"""
    own.write_text(types)
    path = write(tmp_path, extra='[transform]\nmean = "mean.npy"')
    edit("config.toml", "[model]", '[model]\nlayers = "own.py"')(tmp_path)
    assert interrupt(path, 20) == 130
    np.save(mean, np.linspace(0, 1, 360, dtype=np.float32).reshape(3, 12, 10))
    own.write_text(types + "# other")
    capsys.readouterr()
    assert main([str(path), "--quiet", "--resume"]) == 1
    err = capsys.readouterr().err
    assert "was made with other layer types (model.layers) and transform;" in err


@pytest.mark.usefixtures("often")
def test_another_version_device_or_library_is_refused(tmp_path, monkeypatch, capsys):
    path = leave_state(tmp_path)
    capsys.readouterr()
    assert main([str(path), "--quiet", "--resume", "--device", "reference"]) == 1
    assert "device (reference, not cpu)" in capsys.readouterr().err
    monkeypatch.setattr(fingerprint, "__version__", "9.0")
    monkeypatch.setattr(fingerprint, "version_of", lambda name: "7")
    assert main([str(path), "--quiet", "--resume"]) == 1
    err = capsys.readouterr().err
    assert "version (caffe-quant 9.0, not caffe-quant 0." in err
    assert "packages (numpy 7, numba 7" in err


@pytest.mark.parametrize(
    ("before", "now", "layer"),
    [('skip_layers = ["fc"]', "", "fc"), ("", "LONG", "conv1")],
    ids=["other layers", "longer tails"],
)
def test_settings_that_call_for_more_are_refused(before, now, layer, tmp_path, often, capsys):
    path = leave_state(tmp_path, before)
    text = path.read_text().replace(before, "") if before else path.read_text() + LONG
    path.write_text(text)
    capsys.readouterr()
    assert main([str(path), "--quiet", "--resume"]) == 1
    err = capsys.readouterr().err
    assert f"holds too little of what layer '{layer}'" in err


def test_there_may_be_nothing_to_go_on_from(tmp_path, capsys):
    path = write(tmp_path)
    assert main([str(path), "--quiet", "--resume"]) == 1
    assert "there is no calibration to go on from; run without --resume" in capsys.readouterr().err
    assert main([str(path), "--quiet", "--resume", "x.solverstate"]) == 2
    assert "is for training" in capsys.readouterr().err
    assert main([str(path), "--quiet", "--resume", "--from-record", str(path)]) == 2
    assert "by a record nothing is calibrated" in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("often")
def test_damaged_files_are_named_with_the_cure(tmp_path, capsys):
    path = leave_state(tmp_path)
    file = tmp_path / "out" / STATE
    good = file.read_bytes()
    rng = random.Random(0)
    damaged = [good[:n] for n in (0, 10, 30, 60, len(good) // 2, len(good) - 1)]
    for place in [*range(0, 60, 7), *(rng.randrange(len(good)) for _ in range(40))]:
        flipped = bytearray(good)
        flipped[place] ^= 1 << rng.randrange(8)
        damaged.append(bytes(flipped))
    damaged += [good + b"\0", b"PK\x03\x04" + good]
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(
            PipelineError, match=r"is (damaged|no calibration that was kept); remove it"
        ):
            load_state(file)
    capsys.readouterr()
    assert main([str(path), "--quiet", "--resume"]) == 1
    err = capsys.readouterr().err
    assert f"{STATE}: is no calibration that was kept" in err
    assert "remove it" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.usefixtures("often")
def test_a_whole_file_of_another_form_is_of_another_version(tmp_path, monkeypatch):
    path = write(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint.Fingerprint, "to_json", lambda self: {"version": "1.0"})
        assert interrupt(path, 20) == 130
    with pytest.raises(PipelineError, match="is of another version"):
        load_state(tmp_path / "out" / STATE)
