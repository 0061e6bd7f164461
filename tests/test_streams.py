"""What the command's output is given to: any encoding, a pipe, nothing at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import pipeline
from pipeline.errors import PipelineError
from pipeline.quantize.activations import Activations

DEMO = Path(pipeline.__file__).parent / "demo" / "config.toml"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.run", *arguments],
        cwd=ROOT, capture_output=True, text=True, errors="replace", env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("encoding", ["ascii", "utf-8:strict"])
def test_signs_that_an_encoding_lacks_end_nothing(tmp_path: Path, encoding: str):
    out = tmp_path / os.fsdecode(b"o\xff")
    done = run(str(DEMO), "--output", str(out), PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert "top-1" in done.stdout
    done = run("report", str(out), PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert "\\udcff" in done.stdout


@pytest.mark.parametrize("streams", [">&-", ">&- 2>&-"])
def test_a_process_without_output_works(tmp_path: Path, streams: str):
    command = f"{sys.executable} -m pipeline.run {DEMO} --output {tmp_path}/out {streams}"
    assert subprocess.run(command, shell=True, cwd=ROOT).returncode == 0
    assert (tmp_path / "out" / "report.json").exists()
    config = tmp_path / "c.toml"
    shutil.copy(DEMO, config)
    command = f"{sys.executable} -m pipeline.run --convert-config {config} {streams}"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True)
    assert done.returncode != 0
    assert b"Traceback" not in done.stderr


def test_resume_is_refused_where_it_would_do_nothing():
    for option in ("--plan", "--sensitivity", "--decompose"):
        done = run(str(DEMO), option, "--resume")
        assert done.returncode == 2
        assert f"not with {option}" in done.stderr


def test_a_full_disk_under_the_samples_is_named(monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.quantize.activations.tempfile.TemporaryFile", full)
    import numpy as np

    with Activations(8) as kept, pytest.raises(PipelineError, match=r"improve\.memory .*No space"):
        kept.put("x", np.zeros(100))


def test_ctrl_c_while_modules_are_imported_says_so():
    """What protobuf was making when it was interrupted cannot be made a second time."""
    code = """
import sys
import pipeline.run as run
def interrupted(arguments):
    for name in [n for n in sys.modules if n.split(".")[0] == "caffeio"]:
        del sys.modules[name]
    sys.modules["caffeio"] = None  # another import fails
    raise KeyboardInterrupt
run._main = interrupted
sys.exit(run.main([]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "interrupted; nothing was written\n")
