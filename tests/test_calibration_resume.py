"""A calibration that is interrupted, or killed, and goes on as if nothing had been."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from calibration_jobs import (
    STATE,
    VALUES,
    fresh,
    interrupt,
    keep_often,
    leave_state,
    names,
    outputs,
    write,
)
from conftest import ROOT
from small_nets import write_job
from training_jobs import MODEL_FILES

import caffeio
from pipeline.errors import PipelineError
from pipeline.jobs import keeper
from pipeline.jobs.state_file import Observed, load_state, packed, save_state
from pipeline.quantize.observe import RangeObserver
from pipeline.report.progress import Reporter
from pipeline.run import main


@pytest.fixture
def often(monkeypatch):
    keep_often(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, object]:
    return fresh(tmp_path_factory.mktemp("whole") / "job")


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("every", [0, 1000], ids=["files", "copies"])
@pytest.mark.parametrize("seed", range(3))
def test_interrupted_anywhere_it_goes_on_to_the_same_result(
    seed, every, tmp_path, whole, monkeypatch, capsys
):
    """Also several times; in each of six batches five values are counted.

    A file is written after each batch, or only when the run is interrupted.
    """
    monkeypatch.setattr(keeper, "_SAVE", every)
    places = random.Random(seed)
    path = write(tmp_path)
    done = places.randrange(VALUES, 3 * VALUES)
    assert interrupt(path, done) == 130
    assert (
        f"interrupted after {done // VALUES} of 6 batches; --resume goes on"
        in capsys.readouterr().err
    )
    more = places.randrange((6 - done // VALUES) * VALUES)
    assert interrupt(path, more, "--resume") == 130
    batches = done // VALUES + more // VALUES
    assert f"interrupted after {batches} of 6 batches" in capsys.readouterr().err
    assert main([str(path), "--quiet", "--resume"]) == 0
    assert outputs(tmp_path) == whole
    assert names(tmp_path) == MODEL_FILES


CHILD = """
import os, signal, sys, time
import pipeline.jobs.keeper as keeper
keeper._FIRST = keeper._COPY = keeper._SAVE = keeper._SHARE = 0
save, saved = keeper.save_state, []
def slow(*arguments):
    save(*arguments)
    saved.append(1)
    {then}
keeper.save_state = slow
from pipeline.report.progress import Reporter
from pipeline.run import main
sys.exit(main({arguments}))
"""


def child(path: Path, then: str) -> subprocess.Popen[str]:
    """Start the command; `then` is what it does whenever it has kept what it observed."""
    code = CHILD.format(arguments=[str(path), "--quiet"], then=then)
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def test_a_killed_run_goes_on_to_the_same_result(tmp_path, whole):
    path = write(tmp_path)
    process = child(path, "len(saved) == 3 and os.kill(os.getpid(), signal.SIGKILL)")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert names(tmp_path) == {STATE}
    assert load_state(tmp_path / "out" / STATE)[1].batches == 3
    half = tmp_path / "out" / f".{STATE}.0123abcd.tmp"  # of a file that was being written
    half.write_bytes(b"half")
    assert main([str(path), "--quiet", "--resume"]) == 0
    assert outputs(tmp_path) == whole


def test_ctrl_c_in_a_terminal_says_what_is_kept(tmp_path, whole):
    path = write(tmp_path)
    process = child(path, "time.sleep(1)")
    while not (tmp_path / "out" / STATE).exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert re.fullmatch(r"interrupted after [1-5] of 6 batches; --resume goes on\n", err)
    assert main([str(path), "--quiet", "--resume"]) == 0
    assert outputs(tmp_path) == whole


def test_a_second_ctrl_c_while_writing_leaves_what_was_there(tmp_path, whole, monkeypatch, capsys):
    for name in ("_FIRST", "_COPY", "_SHARE"):
        monkeypatch.setattr(keeper, name, 0)  # one file after the first batch, then copies only
    path, finish = write(tmp_path), caffeio.atomic._finish
    count = iter(range(3))

    def stopped(temporary, path, overwrite):
        if path.name == STATE and next(count):
            raise KeyboardInterrupt
        finish(temporary, path, overwrite)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caffeio.atomic, "_finish", stopped)
        assert interrupt(path, 3 * VALUES + 1) == 130
    assert "interrupted after 1 of 6 batches; --resume goes on" in capsys.readouterr().err
    assert names(tmp_path) == {STATE}
    assert next(count) == 2
    assert main([str(path), "--quiet", "--resume"]) == 0
    assert outputs(tmp_path) == whole


def test_a_run_that_took_no_time_keeps_nothing(tmp_path, capsys):
    assert interrupt(write(tmp_path), 20) == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert names(tmp_path) == set()


@pytest.mark.usefixtures("often")
def test_what_fails_after_the_samples_were_observed_is_not_lost(
    tmp_path, whole, monkeypatch, capsys
):
    path = write(tmp_path)

    def broken(*_: object, **__: object) -> None:
        raise PipelineError("no space")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.jobs.calibration.finish", broken)
        assert main([str(path), "--quiet"]) == 1
    assert "note: what was observed is kept: --resume goes on" in capsys.readouterr().err
    assert names(tmp_path) == {STATE}
    monkeypatch.setattr(RangeObserver, "feed", broken)
    assert main([str(path), "--quiet", "--resume"]) == 0
    assert outputs(tmp_path) == whole


@pytest.mark.usefixtures("often")
def test_ctrl_c_after_the_samples_were_observed(tmp_path, whole, monkeypatch, capsys):
    path = write(tmp_path)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.jobs.calibration.improved", interrupted)
        assert main([str(path), "--quiet"]) == 130
    said = "interrupted after the samples were observed; --resume goes on from there"
    assert said in capsys.readouterr().err
    assert main([str(path), "--quiet", "--resume"]) == 0
    assert outputs(tmp_path) == whole


def test_without_resume_a_run_begins_anew_and_says_so(tmp_path, whole, often, capsys):
    path = leave_state(tmp_path)
    capsys.readouterr()
    assert main([str(path)]) == 0
    assert "--resume would go on from it" in " ".join(capsys.readouterr().err.split())
    assert outputs(tmp_path) == whole
    assert STATE not in names(tmp_path)


def test_another_search_may_go_on(tmp_path, often):
    """What is searched is no part of what is observed."""
    other = "[calibrate.common_config]\nkl_quantize = { steps = 30 }"
    expected = fresh(tmp_path / "fresh", extra=other)
    path = leave_state(tmp_path)
    path.write_text(path.read_text() + other)
    assert main([str(path), "--quiet", "--resume"]) == 0
    assert outputs(tmp_path) == expected


def test_another_processor_would_add_in_another_order(tmp_path, often, monkeypatch, capsys):
    path = leave_state(tmp_path)
    capsys.readouterr()
    monkeypatch.setenv("CAFFE_QUANT_ISA", "portable")
    assert main([str(path), "--quiet", "--resume"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "was made with other processor (" in said
    assert "portable, not " in said


def test_small_runs_pay_nothing_and_long_ones_little(tmp_path, monkeypatch):
    """Copies from the tenth second on, each second; files each half minute; a share of the time."""
    clock, took, done = [0.0], {"copy": 0.0, "file": 0.0}, []

    def spent(what: str) -> Callable[..., dict]:
        def do(*_: object) -> dict:
            done.append((what, clock[0]))
            clock[0] += took[what]
            return {}

        return do

    monkeypatch.setattr(keeper.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(keeper, "packed", spent("copy"))
    monkeypatch.setattr(keeper, "save_state", spent("file"))
    kept = keeper.Keeper(tmp_path / "x", cache=False, resume=False, reporter=Reporter(quiet=True))

    def batches(until: float) -> list[tuple[str, float]]:
        done.clear()
        while clock[0] < until:
            clock[0] += 0.25
            kept.after(Observed())
        return done

    kept.begin(lambda: "fingerprint", None, {}, 100)
    assert batches(9.75) == []
    assert batches(12) == [("copy", 10), ("file", 10), ("copy", 11), ("copy", 12)]
    assert [at for what, at in batches(80) if what == "file"] == [40, 70]
    took |= {"copy": 0.5, "file": 2}
    slow = [what for what, _ in batches(1080)]
    assert slow.count("copy") <= 1000 * (1 / 50) / 0.5 + 1
    assert slow.count("file") <= 1000 * (1 / 50) / 2 + 1


@pytest.mark.usefixtures("often")
def test_samples_of_another_shape_after_those_before(tmp_path, capsys):
    """The reader does not know of the samples before the interruption."""
    path = leave_state(tmp_path)
    file = tmp_path / "out" / STATE
    before, observed = load_state(file)
    (sums,) = observed.watch._sums.values()
    sums.shape = (3, 12, 11)
    save_state(file, before, packed(observed))
    capsys.readouterr()
    assert main([str(path), "--quiet", "--resume"]) == 1
    assert (
        "gives the shape (3, 12, 10) for 'data', but the samples before" in capsys.readouterr().err
    )


@pytest.mark.usefixtures("often")
def test_nets_that_remember_are_kept_whole_only(tmp_path, monkeypatch, capsys):
    """What an LSTM remembers of the batch before is not in the file."""
    h5py = pytest.importorskip("h5py")
    from test_recurrent_state import CONT, X, net_of

    path = write_job(tmp_path, net_of("LSTM"))
    text = (tmp_path / "net.prototxt").read_text()
    begin, end = text.index("layer {"), text.index("layer {", text.index("layer {") + 1)
    reads = """layer { name: "d" type: "HDF5Data" top: "x" top: "cont"
      hdf5_data_param { source: "d.txt" batch_size: 2 } }\n"""
    (tmp_path / "net.prototxt").write_text(text[:begin] + reads + text[end:])
    text = path.read_text().replace("data.start = 8", "")
    text = text.replace('data.source = "data.npz"', 'data = { kind = "net", root = "." }')
    text = text.replace("batch_num = 2\nbatch_size = 4", "batch_num = 3\nbatch_size = 2")
    path.write_text(text.replace("batch_size = 5", "batch_size = 2"))
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["x"], file["cont"] = X, CONT
    (tmp_path / "d.txt").write_text("d.h5\n")
    assert interrupt(path, 2) == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert names(tmp_path) == set()

    def failed(*_: object, **__: object) -> None:
        raise PipelineError("failed")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.jobs.calibration.finish", failed)
        assert main([str(path), "--quiet"]) == 1
    assert load_state(tmp_path / "out" / STATE)[1].batches == 3
    with monkeypatch.context() as patch:
        patch.setattr(RangeObserver, "feed", failed)
        assert main([str(path), "--quiet", "--resume"]) == 0
    found = (tmp_path / "out" / "net_record.txt").read_bytes()
    assert main([str(path), "--quiet", "--output", str(tmp_path / "anew")]) == 0
    assert (tmp_path / "anew" / "net_record.txt").read_bytes() == found


@pytest.mark.usefixtures("often")
def test_several_devices_go_on_together_and_keep_whole_passes(tmp_path, whole, monkeypatch, capsys):
    path = leave_state(tmp_path)
    monkeypatch.setattr("pipeline.jobs.stages.kernels.device_count", lambda device: 2)
    capsys.readouterr()
    assert interrupt(path, 9, "--resume") == 130
    assert "interrupted after 3 of 6 batches; --resume goes on" in capsys.readouterr().err
    assert main([str(path), "--quiet", "--resume"]) == 0
    assert outputs(tmp_path) == whole
    (tmp_path / "again").mkdir()
    path = write(tmp_path / "again")
    assert interrupt(path, 9) == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert names(tmp_path / "again") == set()
