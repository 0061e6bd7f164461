"""Files of a run: all or none, by one run at a time, and words that are true."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from small_nets import samples, write_job

import pipeline
from caffeio import CaffeFileError
from pipeline.errors import ConfigError, PipelineError
from pipeline.jobs import writing
from pipeline.jobs.writing import held_folder, temporary_folder, write_files
from pipeline.manifest import changed_since, write_manifest
from pipeline.run import main

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("record", "prototxt", "weights", "report", "manifest")


def job(folder: Path, text: str):
    files = {kind: folder / f"net_{kind}.json" for kind in KINDS}
    writers = {
        k: (lambda path, k=k: path.write_text(f"{text} {k}")) for k in KINDS if k != "manifest"
    }
    return files, writers


def contents(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text().split()[0] for p in folder.iterdir() if "manifest" not in p.name}


# ---------------------------------------------------------------- all or none


@pytest.mark.parametrize("state", [False, True])
def test_a_folder_that_was_made_for_it_is_filled_in_one_step(tmp_path, monkeypatch, state):
    monkeypatch.setattr(writing, "_move_each", None)  # not needed
    folder = tmp_path / "out"
    with held_folder(folder):
        if state:  # what a calibration keeps
            (folder / ".x.state").write_text("kept")
        write_files(*job(folder, "new"))
        with pytest.raises(PipelineError, match="another run"), held_folder(folder):
            pass
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    if state:
        assert (folder / ".x.state").read_text() == "kept"
        (folder / ".x.state").unlink()
    assert set(contents(folder).values()) == {"new"}


def test_a_folder_of_the_user_stays_what_it_is(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir(mode=0o750)
    before = folder.stat()
    with held_folder(folder):
        write_files(*job(folder, "new"))
    after = folder.stat()
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)
    assert set(contents(folder).values()) == {"new"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_without_links_new_files_are_put_and_old_ones_stay(tmp_path, monkeypatch):
    """As on FAT and some network file systems."""

    def link(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    (tmp_path / "mine.txt").write_text("mine x")
    write_files(*job(tmp_path, "new"), overwrite=False)
    assert contents(tmp_path)["net_record.json"] == "new"
    with pytest.raises(ConfigError, match="has been made meanwhile"):
        write_files(*job(tmp_path, "newer"), overwrite=False)
    assert set(contents(tmp_path).values()) == {"mine", "new"}


def test_a_file_that_fails_is_named_by_the_name_it_would_have(tmp_path):
    files, writers = job(tmp_path / "out", "new")

    def full(path: Path) -> None:
        raise CaffeFileError(path, "cannot be written: No space left on device")

    with pytest.raises(CaffeFileError) as raised:
        write_files(files, {**writers, "weights": full})
    assert str(raised.value).startswith(f"{tmp_path}/out/net_weights.json: cannot be written")


def test_a_state_that_cannot_be_removed_fails_no_run(tmp_path, capsys):
    config = write_job(tmp_path)
    (tmp_path / "out" / ".net_calibration.state").mkdir(parents=True)
    assert main([str(config)]) == 0
    assert "WARNING: " in capsys.readouterr().err


def test_what_cannot_be_a_folder_is_named_as_what_it_is(tmp_path):
    (tmp_path / "file").touch()
    for folder, why in (
        (tmp_path / "file", "is a file, not a folder"),
        (tmp_path / "a" / ("x" * 300), "cannot be written: File name too long"),
        (Path("/proc/zzz"), "cannot be written: No such file"),
    ):
        with pytest.raises(PipelineError, match=why), held_folder(folder):
            pass
    assert not (tmp_path / "a").exists()


def test_folders_named_oddly_and_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(writing, "_move_each", None)  # not needed
    for name in ("out[1]*", "a b"):
        (tmp_path / f".writing-{name}-abcdefgh").mkdir()
        with held_folder(Path(name)):
            write_files(*job(Path(name), "new"))
        assert set(contents(tmp_path / name).values()) == {"new"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a b", "out[1]*"]


def test_files_of_others_stay(tmp_path):
    (tmp_path / "mine.txt").write_text("mine x")
    write_files(*job(tmp_path, "old"))
    write_files(*job(tmp_path, "new"))
    assert contents(tmp_path) == {"mine.txt": "mine"} | {
        f"net_{k}.json": "new" for k in KINDS if k != "manifest"
    }


@pytest.mark.parametrize("fails", ["record", "weights", "report"])
def test_a_writer_that_fails_changes_nothing(fails, tmp_path):
    write_files(*job(tmp_path, "old"))
    files, writers = job(tmp_path, "new")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise CaffeFileError(path, "no space left")

    with pytest.raises(CaffeFileError):
        write_files(files, {**writers, fails: fail})
    assert set(contents(tmp_path).values()) == {"old"}
    assert len(list(tmp_path.iterdir())) == len(KINDS)


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("there", [True, False])
def test_a_name_that_cannot_be_given_takes_all_back(at, there, tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("mine x")
    if there:
        write_files(*job(tmp_path, "old"))
    before = {p.name: p.read_text() for p in tmp_path.iterdir()}
    replace, count = os.replace, iter(range(100))

    def failing(source, target):
        if Path(source).parent.name != "old" and next(count) == at:
            raise PermissionError(1, "Operation not permitted")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(PipelineError, match="cannot be written: Operation not permitted"):
        write_files(*job(tmp_path, "new"))
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == before


def test_a_file_that_was_made_meanwhile_is_not_replaced(tmp_path):
    files, writers = job(tmp_path, "new")

    def late(path: Path) -> None:
        path.write_text("new report")
        (tmp_path / "net_weights.json").write_text("theirs x")

    with pytest.raises(ConfigError, match=r"net_weights.json has been made meanwhile"):
        write_files(files, {**writers, "report": late}, overwrite=False)
    assert contents(tmp_path) == {"net_weights.json": "theirs"}


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from test_writing import job
from pipeline.jobs.writing import write_files
replace, count = os.replace, iter(range(100))
def killed(source, target):
    if next(count) == {at}:
        os.kill(os.getpid(), signal.{signal})
    replace(source, target)
os.replace = killed
try:
    write_files(*job(Path({folder!r}), "new"))
except KeyboardInterrupt as stopped:
    print(stopped)
"""


def interrupted(folder: Path, at: int, name: str) -> subprocess.CompletedProcess:
    code = KILLED.format(
        root=str(ROOT), tests=str(ROOT / "tests"), at=at, signal=name, folder=str(folder)
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("at", range(5))
def test_a_process_killed_between_two_names_is_noticed(at, tmp_path):
    write_files(*job(tmp_path, "old"))
    assert interrupted(tmp_path, at, "SIGKILL").returncode == -signal.SIGKILL
    found = contents(tmp_path)
    found.pop(next((n for n in found if n.startswith(".writing-")), ""), None)
    assert set(found.values()) <= {"old", "new"}
    for path in tmp_path.glob("net_*"):
        if path.name not in ("net_manifest.json", "net_report.json"):
            assert bool(changed_since(path)) == (path.read_text().split()[0] == "new")
    with held_folder(tmp_path):  # the next run
        assert len(list(tmp_path.iterdir())) == len(KINDS)
        write_files(*job(tmp_path, "new"))
    assert not any(changed_since(p) for p in tmp_path.iterdir())


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_signal_between_two_names_waits_for_the_last(name, at, tmp_path):
    write_files(*job(tmp_path, "old"))
    done = interrupted(tmp_path, at, name)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"interrupted; all files had been written to {tmp_path}\n"
    assert set(contents(tmp_path).values()) == {"new"}


# ---------------------------------------------------------------- one run at a time


def test_a_second_run_into_a_folder_is_refused(tmp_path):
    folder = tmp_path / "a" / "out"
    with held_folder(folder):
        with (
            pytest.raises(PipelineError, match="another run is writing to this folder"),
            held_folder(folder),
        ):
            pass
        with held_folder(tmp_path / "a"):  # another folder
            pass
        assert folder.is_dir()
    assert not (tmp_path / "a").exists()  # nothing was written
    with held_folder(folder):
        (folder / "x").touch()
    assert folder.is_dir()


def test_what_killed_runs_leave_is_removed_and_what_live_ones_write_is_not(tmp_path):
    out = tmp_path / "out"
    live = tmp_path / ".writing-out-b-abcdefgh"  # of a folder "out-b"
    for name in (out / ".writing-abc", tmp_path / ".writing-out-abcdefg_", live):
        name.mkdir(parents=True)
        (name / "part").touch()
    (out / ".x.toml.0123abcd.tmp").touch()
    (out / ".mine.tmp").touch()
    with temporary_folder(out) as (alive, _):
        with held_folder(out):
            assert {p.name for p in out.iterdir()} == {".mine.tmp"}
        assert {p.name for p in tmp_path.iterdir()} == {"out", live.name, alive.name}


def test_a_folder_without_locks_is_written_to(tmp_path, monkeypatch):
    def flock(descriptor, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    with held_folder(tmp_path):
        write_files(*job(tmp_path, "new"))
    assert set(contents(tmp_path).values()) == {"new"}


def test_two_runs_at_once_never_mix(tmp_path):
    errors = []

    def run(text: str) -> None:
        for _ in range(30):
            try:
                with held_folder(tmp_path / "out"):
                    write_files(*job(tmp_path / "out", text))
                    found = set(contents(tmp_path / "out").values())
                if found != {text}:
                    errors.append(found)
            except PipelineError as error:
                if "another run" not in str(error):
                    errors.append(error)

    threads = [threading.Thread(target=run, args=(t,)) for t in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


# ---------------------------------------------------------------- whole runs


def test_a_mixed_set_is_noticed_by_its_readers(tmp_path, capsys):
    config = write_job(tmp_path)
    report = pipeline.quantize_model(config, device="reference")
    whole = json.loads(report.files["report"].read_text())
    assert set(whole["digests"]) == {
        p.name for k, p in report.files.items() if k not in ("report", "layers", "page", "manifest")
    }
    deploy = [report.files[f"deploy_{part}"] for part in ("prototxt", "weights")]
    pipeline.load_quantized(*deploy, device="reference")
    old = deploy[1].read_bytes()
    deploy[1].write_bytes(old + b"\x82\x06\x00")  # an unknown field, as of another run
    with pytest.raises(CaffeFileError, match=r"deploy_weights.*is not the file that net_manifest"):
        pipeline.load_quantized(*deploy, device="reference")
    report.files["manifest"].unlink()
    pipeline.load_quantized(*deploy, device="reference")
    deploy[1].write_bytes(old)
    write_manifest(report.files["manifest"], [report.files["record"], *deploy])
    record = report.files["record"]
    record.write_text(record.read_text() + "\n# edited\n")
    again = ["--from-record", str(record), "--output", str(tmp_path / "again")]
    assert main([str(config), *again, "--device", "reference"]) == 0
    assert "net_record.txt is not the file that net_manifest.json names" in " ".join(
        capsys.readouterr().out.split()
    )


def test_overwrite_false_holds_when_the_files_are_written(tmp_path, monkeypatch):
    config = write_job(tmp_path)
    config.write_text(config.read_text().replace("overwrite = true", "overwrite = false"))
    finish = writing.write_files

    def late(files, writers, **options):
        files["record"].write_text("someone else's")
        finish(files, writers, **options)

    monkeypatch.setattr("pipeline.jobs.finish.write_files", late)
    with pytest.raises(ConfigError, match=r"net_record.txt has been made meanwhile"):
        pipeline.quantize_model(config, device="reference")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["net_record.txt"]


def long_job(tmp_path: Path) -> Path:
    config = write_job(tmp_path)
    x = np.repeat(samples(24), 1000, axis=0)
    np.savez(tmp_path / "data.npz", data=x, label=np.zeros(len(x)))
    config.write_text(config.read_text().replace("batch_size = 5", "batch_size = 1"))
    return config


def test_sigterm_is_as_ctrl_c(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.run", str(long_job(tmp_path)), "--device", "reference"],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    for line in process.stderr:
        if line.startswith("evaluate float ("):
            break
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.strip().endswith("interrupted; nothing was written")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stream", ["head", "full", "closed", "both"])
def test_output_that_cannot_be_written_is_no_failure(stream, tmp_path):
    config = write_job(tmp_path)
    command = f"{sys.executable} -m pipeline.run {config} --device reference"
    redirected = {
        "head": "| head -1 > /dev/null",
        "full": "> /dev/full",
        "closed": ">&-",
        "both": "2>&1 | head -1 > /dev/null",
    }[stream]
    done = subprocess.run(
        ["bash", "-c", f"{command} {redirected}; exit ${{PIPESTATUS[0]}}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "report.json").exists()
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    full = "note: not all could be printed: No space left on device"
    assert (full in done.stderr) == (stream == "full")


def test_a_config_that_is_printed_to_a_full_disk_is_a_failure(tmp_path):
    (tmp_path / "a.cfg").write_text("batch_num: 2\n")
    command = f"{sys.executable} -m pipeline.run --convert-config {tmp_path / 'a.cfg'} > /dev/full"
    assert subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True).returncode == 1
