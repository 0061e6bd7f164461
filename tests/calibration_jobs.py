"""Jobs of calibration that are interrupted, and what they leave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_nets import write_job
from training_jobs import MODEL_FILES, edit

from kernels import Histogram
from pipeline.jobs import keeper
from pipeline.run import main

BATCHES = "batch_num = 6\nbatch_size = 4"
#: Values that are counted in a batch.
VALUES = 5
STATE = ".net_calibration.state"
#: Of a report: what says when and where, not what.
ABOUT = {"seconds", "about", "files"}
#: Percentiles that need more extreme values than are kept for the default.
LONG = "[calibrate.common_config]\npercentile_quantize = { max_percentile = 0.9, min_percentile = 0.95 }"


def keep_often(patch: pytest.MonkeyPatch) -> None:
    """Keep what has been observed after every batch."""
    for name in ("_FIRST", "_COPY", "_SAVE", "_SHARE"):
        patch.setattr(keeper, name, 0)


def write(folder: Path, calibrate: str = "", **tables: str) -> Path:
    """Write a job of six batches of four; return its config."""
    path = write_job(folder, calibrate=calibrate, **tables)
    edit("config.toml", "batch_num = 2\nbatch_size = 4", BATCHES)(folder)
    return path


def names(folder: Path) -> set[str]:
    return {p.name for p in (folder / "out").glob("*")}


def outputs(folder: Path) -> dict[str, object]:
    """Return all that a run has written, in a form in which equal runs are equal."""
    assert names(folder) - {STATE} == MODEL_FILES
    found: dict[str, object] = {
        name: (folder / "out" / name).read_bytes() for name in MODEL_FILES - {"report.html"}
    }
    report = json.loads((folder / "out" / "report.json").read_text().replace(str(folder), ""))
    found["report.json"] = {k: v for k, v in report.items() if k not in ABOUT}
    return found


def fresh(folder: Path, calibrate: str = "", **tables: str) -> dict[str, object]:
    """Return what a run writes that nobody has interrupted."""
    folder.mkdir()
    assert main([str(write(folder, calibrate, **tables)), "--quiet"]) == 0
    assert STATE not in names(folder)
    return outputs(folder)


def torn_after(patch: pytest.MonkeyPatch, updates: int) -> None:
    """Let Ctrl-C come within a batch, when some of its values are counted and others are not."""
    take, count = Histogram.take, iter(range(10_000))

    def interrupted(self, counter):
        if next(count) == updates:
            raise KeyboardInterrupt
        take(self, counter)

    patch.setattr(Histogram, "take", interrupted)


def interrupt(path: Path, updates: int, *options: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        torn_after(patch, updates)
        return main([str(path), "--quiet", *options])


def leave_state(folder: Path, calibrate: str = "", **tables: str) -> Path:
    """Interrupt a run within its fourth batch; return its config."""
    path = write(folder, calibrate, **tables)
    assert interrupt(path, 3 * VALUES + 2) == 130
    assert names(folder) == {STATE}
    return path
