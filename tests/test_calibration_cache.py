"""`calibrate.cache`: what was observed serves other searches, and never other data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from calibration_jobs import BATCHES, LONG, STATE, fresh, names, outputs
from small_nets import samples, write_job
from training_jobs import MODEL_FILES, edit

from pipeline.jobs import stages
from pipeline.jobs.state_file import load_state
from pipeline.run import main

OUT = "overwrite = true"
CACHE = "cache = true"
USED = "observations of 24 samples used again"
AGAIN = "samples observed again: "


def run(folder: Path, calibrate: str, extra: str = "") -> list[str]:
    """Run a job, the same but for these settings; return the notes of its report."""
    path = folder / "config.toml"
    source = folder
    if path.exists():
        (source := folder / "again").mkdir()
    write_job(source, calibrate=calibrate, extra=extra, output=OUT)
    edit("config.toml", "batch_num = 2\nbatch_size = 4", BATCHES)(source)
    if source != folder:
        path.write_text((source / "config.toml").read_text())
        shutil.rmtree(source)
    assert main([str(path), "--quiet"]) == 0
    return json.loads((folder / "out" / "report.json").read_text())["notes"]


def same(folder: Path, expected: dict[str, object]) -> None:
    """What was written is what a run without a cache writes, but for the note on it."""
    found = outputs(folder)
    report = found["report.json"]
    assert isinstance(report, dict)
    report["notes"] = [n for n in report["notes"] if not n.startswith((USED, AGAIN))]
    assert found == expected


@pytest.fixture
def observe_nothing(monkeypatch):
    """Let the net run over no batch."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("observed again")

    def forbid() -> None:
        monkeypatch.setattr(stages, "observe_shards", forbidden)

    return forbid


COMMON = "[calibrate.common_config]\n"
SEARCHES = {
    "kl": ("", COMMON + "kl_quantize = { steps = 30 }"),
    "ifmr": ("", COMMON + "ifmr_quantize = { search_range_end = 1.5 }"),
    "one layer": (
        "",
        '[[calibrate.override_layer_configs]]\nlayer_name = "fc"\nminmax_quantize = {}',
    ),
    "symmetric": ("activation_offset = false", ""),
    "fewer layers": ('skip_layers = ["conv1", "fc"]', ""),
    "exact": ("exact = true", ""),
    "best": ('effort = "best"', ""),
    "original": ('effort = "original"\nsamples = "spread"', ""),
}


@pytest.mark.parametrize("search", SEARCHES)
def test_another_search_takes_what_was_observed(search, tmp_path, observe_nothing):
    calibrate, extra = SEARCHES[search]
    expected = fresh(tmp_path / "fresh", calibrate, extra=extra)
    run(tmp_path, CACHE)
    assert names(tmp_path) == {*MODEL_FILES, STATE}
    if search != "best":  # of which a later stage changes the net, and observes that
        observe_nothing()
    assert USED in run(tmp_path, f"{calibrate}\n{CACHE}", extra)
    same(tmp_path, expected)


def test_the_file_may_lie_anywhere(tmp_path, observe_nothing):
    run(tmp_path, 'cache = "kept.state"')
    assert names(tmp_path) == MODEL_FILES
    observe_nothing()
    assert USED in run(tmp_path, 'cache = "kept.state"')
    assert load_state(tmp_path / "kept.state")[1].batches == 6


@pytest.mark.parametrize(
    ("first", "second", "layer"),
    [
        ((CACHE, ""), (CACHE, LONG), "conv1"),
        ((f'{CACHE}\nskip_layers = ["fc"]', ""), (CACHE, ""), "fc"),
    ],
    ids=["longer tails", "more layers"],
)
def test_what_was_not_kept_is_observed_once(first, second, layer, tmp_path, observe_nothing):
    """And then the file serves both."""
    wanted = (second[0].replace(CACHE, ""), second[1])
    expected = fresh(tmp_path / "fresh", wanted[0], extra=wanted[1])
    run(tmp_path, *first)
    before = outputs(tmp_path)
    (note,) = (n for n in run(tmp_path, *second) if n.startswith(AGAIN))
    assert f"holds too little of what layer '{layer}'" in note
    same(tmp_path, expected)
    observe_nothing()
    assert USED in run(tmp_path, *first)
    same(tmp_path, before)
    assert USED in run(tmp_path, *second)
    same(tmp_path, expected)


def test_layers_of_both_runs_are_kept(tmp_path, observe_nothing):
    run(tmp_path, f'{CACHE}\nonly_layers = ["fc"]')
    run(tmp_path, f'{CACHE}\nonly_layers = ["conv1"]')
    observe_nothing()
    assert USED in run(tmp_path, f'{CACHE}\nonly_layers = ["conv1", "fc"]')


def test_other_data_is_observed(tmp_path):
    run(tmp_path, CACHE)
    before = (tmp_path / "out" / STATE).read_bytes()
    config = tmp_path / "config.toml"
    np.savez(tmp_path / "data.npz", data=samples(24, seed=9), label=np.arange(24) % 10)
    assert main([str(config), "--quiet"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (note,) = (n for n in report["notes"] if n.startswith(AGAIN))
    assert "was made with other data (" in note
    assert "data.npz' has another sample number 0)" in note
    found = outputs(tmp_path)["net_record.txt"]
    assert (tmp_path / "out" / STATE).read_bytes() != before
    edit("config.toml", CACHE, "")(tmp_path)
    assert main([str(config), "--quiet"]) == 0
    assert outputs(tmp_path)["net_record.txt"] == found


def test_a_file_that_is_something_else_is_not_overwritten(tmp_path, capsys):
    path = write_job(tmp_path, calibrate='cache = "data.npz"')
    before = (tmp_path / "data.npz").read_bytes()
    assert main([str(path), "--quiet"]) == 1
    assert "data.npz: is no calibration that was kept" in capsys.readouterr().err
    assert (tmp_path / "data.npz").read_bytes() == before


def test_a_damaged_one_is_made_anew(tmp_path, capsys):
    path = write_job(tmp_path, calibrate='cache = "my.state"')
    half = tmp_path / ".my.state.0123abcd.tmp"  # of a run that was killed
    half.touch()
    assert main([str(path), "--quiet"]) == 0
    assert not half.exists()
    whole = (tmp_path / "my.state").read_bytes()
    (tmp_path / "my.state").write_bytes(whole[:-9])
    assert main([str(path), "--output", str(tmp_path / "again")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "samples observed again: " in said
    assert "is damaged; remove it" in said
    assert (tmp_path / "my.state").stat().st_size == len(whole)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ('"out"', "is a folder"),
        ('"no/file"', "lies in a folder that does not exist"),
        ("3", "true, or a file"),
        ('"/proc/x.state"', "cannot be written"),
    ],
)
def test_what_cannot_be_a_file_is_wrong_use(value, said, tmp_path, capsys):
    path = write_job(tmp_path, calibrate=f"cache = {value}")
    (tmp_path / "out").mkdir()
    assert main([str(path), "--quiet"]) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert "calibrate.cache" in err
    assert said in err


def test_a_file_that_cannot_be_written_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    from caffeio import CaffeFileError
    from pipeline.jobs import keeper

    def full(path: Path, *_: object) -> None:
        raise CaffeFileError(path, "cannot be written: No space left on device")

    path = write_job(tmp_path, calibrate=CACHE)
    monkeypatch.setattr(keeper, "save_state", full)
    assert main([str(path)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "No space left on device; what was observed is not kept" in said
    assert names(tmp_path) == MODEL_FILES
