"""Ranges that ncnn or TensorRT have found, taken over instead of searched."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from small_nets import write_job

import pipeline
from caffeio import CaffeFileError
from kernels import Histogram, QuantParams
from pipeline.errors import ConfigError
from pipeline.quantize.given_ranges import given_ranges, read_ranges
from pipeline.run import main


def cache(scales: dict[str, float]) -> str:
    lines = [f"{blob}: {struct.pack('>f', scale).hex()}" for blob, scale in scales.items()]
    return "\n".join(["TRT-8601-EntropyCalibration2", *lines, ""])


def job(folder: Path, text: str, **tables: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "given").write_text(text)
    more = tables.pop("calibrate", "")
    return write_job(folder, calibrate=f"ranges_from = 'given'\n{more}", **tables)


@pytest.mark.parametrize("kind", ["ncnn", "tensorrt"])
def test_what_was_written_comes_back(tmp_path: Path, kind: str):
    """Out as a table, and in again: the same scales, to the bits that the text holds."""
    (tmp_path / "a").mkdir()
    settings = "activation_offset = false\neffort = 'original'"
    first = pipeline.quantize_model(
        write_job(tmp_path / "a", calibrate=settings, output=f"formats = ['{kind}']")
    )
    text = first.files[kind].read_text()
    again = pipeline.quantize_model(job(tmp_path / "b", text, calibrate=settings))
    names = {
        "ncnn": {"conv1", "dw", "branch", "fc"},
        "tensorrt": set(first.record.layers),
    }[kind]
    for name, layer in first.record.layers.items():
        other = again.record.layers[name]
        assert other.scale_d == pytest.approx(layer.scale_d, rel=2e-7), name
        assert other.offset_d == layer.offset_d == 0
    said = [note for note in again.notes if "ranges_from" in note]
    assert said[0] == f"calibrate.ranges_from: ranges of {len(names)} layers are those of the file"
    assert any("not in the file, searched: up, avg" in n for n in said) == (kind == "ncnn")


def test_data_without_negative_values_has_twice_the_steps(tmp_path: Path):
    text = "conv1_param_0 1 2 3 4 5 6 7 8\nconv1 50\ndw 25\nnowhere 3\n"
    report = pipeline.quantize_model(job(tmp_path, text))
    record = report.record.layers
    assert (record["conv1"].scale_d, record["conv1"].offset_d) == (np.float32(0.02), 0)
    # behind ReLU: 0 to 127 / 25 in 255 steps
    assert record["dw"].scale_d == pytest.approx(127 / 25 / 255, rel=1e-6)
    assert record["dw"].offset_d == -128
    said = " ".join(report.notes)
    assert "layers that no quantized layer has: nowhere" in said
    assert "searched: branch, up, avg, fc" in said


def test_a_blob_names_all_that_read_it(tmp_path: Path):
    report = pipeline.quantize_model(
        job(tmp_path, cache({"conv1": 0.03}), calibrate="activation_offset = false")
    )
    for name in ("dw", "branch"):
        assert report.record.layers[name].scale_d == pytest.approx(0.03, rel=2e-7)


def test_best_leaves_them(tmp_path: Path):
    text = "".join(f"{name} 20\n" for name in ("conv1", "dw", "branch", "up", "avg", "fc"))
    report = pipeline.quantize_model(job(tmp_path, text, calibrate="effort = 'best'"))
    for layer in report.record.layers.values():
        assert layer.scale_d in (np.float32(0.05), np.float32(127 / 20 / 255))
    with pytest.raises(ConfigError, match=r"improve.equalize changes ranges: not with"):
        pipeline.quantize_model(job(tmp_path / "c", text, extra="[improve]\nequalize = true"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no scale of data"),
        ("conv1_param_0 1 2\n", "holds no scale of data"),
        ("conv1 1\ndw\n", "line 2 is not of ncnn"),
        ("conv1 one\n", "line 1 is not"),
        ("conv1 1 2\n", "line 1 is not"),
        ("conv1 -1\n", "line 1 is not"),
        ("conv1 nan\n", "line 1 is not"),
        ("TRT-7000-EntropyCalibration2\na: zz\n", "line 2 is not"),
        ("TRT-7000-EntropyCalibration2\na: 00000000\n", "line 2 is not"),
        ("TRT-7000-EntropyCalibration2\na: 7f800000\n", "line 2 is not"),
        ("TRT-7000-EntropyCalibration2\n", "holds no scale"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, says: str):
    (tmp_path / "given").write_text(text)
    with pytest.raises(CaffeFileError, match=says):
        read_ranges(tmp_path / "given")


def test_what_belongs_to_another_net_is_an_error_before_the_work(tmp_path: Path, capsys):
    config = job(tmp_path, "conv_1 20\n")
    for more in ([], ["--plan"]):
        assert main([str(config), *more]) == 2
        assert "names no layers of net 'small'" in (said := capsys.readouterr().err)
        assert "'conv_1'; did you mean 'conv1'?" in said
    (tmp_path / "given").unlink()
    assert main([str(config)]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_ranges_for_data_of_each_kind():
    both, above = Histogram(), Histogram()
    both.update(np.array([-1, 2], np.float32))
    above.update(np.array([0, 2], np.float32))
    assert given_ranges(2.0, both, True) == QuantParams(2 / 127, 0)
    assert given_ranges(2.0, above, True) == QuantParams(2 / 255, -128)
    assert given_ranges(2.0, above, False) == QuantParams(2 / 127, 0)
