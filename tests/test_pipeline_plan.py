"""`--plan` and the run agree: sizes, notes, warnings, and errors with their exit codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from layer_nets import with_blobs
from small_nets import samples, small_net, write_job

import caffeio
import pipeline
from caffeio import memory
from pipeline.config.load import Config
from pipeline.config.unused import unused_settings
from pipeline.jobs.plan import plan_model
from pipeline.report.cost import LayerCost, NetCost
from pipeline.report.memory import needed_memory
from pipeline.run import main


def other_channels(folder: Path) -> None:
    np.savez(folder / "data.npz", data=samples(24)[:, :2], label=np.arange(24) % 10)


def other_size(folder: Path) -> None:
    np.savez(folder / "data.npz", data=np.zeros((24, 3, 40, 40), np.float32))


def too_few(folder: Path) -> None:
    np.savez(folder / "data.npz", data=samples(7))


def none_left(folder: Path) -> None:
    np.savez(folder / "data.npz", data=samples(8))


def damaged(folder: Path) -> None:
    (folder / "data.npz").write_bytes(b"PK")


def files_there(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "report.json").write_text("{}")


def file_in_the_way(folder: Path) -> None:
    (folder / "out").write_text("")


def fallback_without_labels(folder: Path) -> None:
    np.savez(folder / "data.npz", data=samples(24))
    config = folder / "config.toml"
    config.write_text(config.read_text() + "\n[fallback]\nmax_drop = 1.0\n")


def fallback_with_boxes(folder: Path) -> None:
    fallback_without_labels(folder)
    np.savez(folder / "data.npz", data=samples(24), label=np.zeros((24, 4)))


def unknown_output(folder: Path) -> None:
    config = folder / "config.toml"
    config.write_text(config.read_text().replace("data.start = 8", 'outputs = ["nothing"]'))


def unknown_layer(folder: Path) -> None:
    config = folder / "config.toml"
    config.write_text(
        config.read_text().replace("batch_num = 2", 'batch_num = 2\nskip_layers = ["c"]')
    )


@pytest.mark.parametrize(
    ("do", "code"),
    [
        (other_channels, 1),
        (other_size, 1),
        (too_few, 1),
        (none_left, 1),
        (damaged, 1),
        (files_there, 2),
        (file_in_the_way, 1),
        (fallback_without_labels, 2),
        (fallback_with_boxes, 2),
        (unknown_output, 2),
        (unknown_layer, 2),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_plan_fails_as_the_run_does(tmp_path, capsys, do, code):
    config = write_job(tmp_path)
    do(tmp_path)
    before = {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")}
    assert main([str(config), "--plan"]) == code
    planned = capsys.readouterr().err
    assert {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")} == before
    assert main([str(config), "--quiet"]) == code
    assert planned == capsys.readouterr().err
    assert planned


def test_a_plan_shows_notes_and_warnings_of_the_run(tmp_path, capsys):
    config = write_job(tmp_path, extra="[transform]\nscale = 0.5\n")
    assert main([str(config), "--plan"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "holds floats, which [transform] changes: scale" in printed
    assert "Calibration would observe 8 samples (spread)." in printed
    assert "too few calibration samples" not in printed
    plan = plan_model(config)
    report = pipeline.quantize_model(config)
    assert set(plan.notes) <= set(report.notes)
    assert set(plan.warnings) <= set(report.warnings)


@pytest.mark.parametrize(("batches", "size"), [(1, 4), (1, 5), (4, 1), (5, 1), (9, 8)])
def test_a_plan_knows_whether_samples_are_held_back(tmp_path, batches, size):
    config = write_job(tmp_path)
    np.savez(tmp_path / "data.npz", data=samples(80), label=np.arange(80) % 10)
    text = config.read_text().replace("batch_num = 2", f"batch_num = {batches}")
    config.write_text(text.replace("batch_size = 4", f"batch_size = {size}"))
    few = [n for n in plan_model(config).notes if "too few" in n]
    report = pipeline.quantize_model(config)
    assert few == [n for n in report.notes if "too few" in n]
    assert bool(few) == (batches * size < 5)


PLACEHOLDER = """
name: "any"
input: "image" input_dim: 1 input_dim: 3 input_dim: 1 input_dim: 1
layer { name: "c1" type: "Convolution" bottom: "image" top: "c1"
        convolution_param { num_output: 8 kernel_size: 3 pad: 1 } }
layer { name: "p1" type: "Pooling" bottom: "c1" top: "p1"
        pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "c2" type: "Convolution" bottom: "p1" top: "c2"
        convolution_param { num_output: 8 kernel_size: 3 pad: 1 } }
"""


def test_a_size_that_is_a_placeholder_is_that_of_the_data(tmp_path):
    rng = np.random.default_rng(0)
    blobs = {
        name: [rng.normal(size=(8, channels, 3, 3)).astype(np.float32), np.zeros(8, np.float32)]
        for name, channels in (("c1", 3), ("c2", 8))
    }
    config = write_job(tmp_path, with_blobs(caffeio.parse_net(PLACEHOLDER), blobs))
    plan = plan_model(config)
    assert plan.cost.layers[-1].bottom == (1, 8, 6, 5)
    assert plan.cost.layers[-1].macs == 8 * 8 * 9 * 6 * 5
    assert plan.warnings == ()
    report = pipeline.quantize_model(config)
    assert report.record.layers["c2"].height == 6
    assert report.warnings == ()


def test_memory_that_is_not_there_is_a_warning(tmp_path, monkeypatch):
    config = write_job(tmp_path)
    assert not any("MiB" in w for w in plan_model(config).warnings)
    monkeypatch.setattr("pipeline.jobs.plan.machine_memory", lambda: 1 << 20)
    assert any("but there are 1: lower batch_size" in w for w in plan_model(config).warnings)
    monkeypatch.setattr("pipeline.jobs.plan.machine_memory", lambda: None)
    assert plan_model(config).warnings == ()


def test_the_machine_has_the_least_of_its_limits(tmp_path, monkeypatch):
    whole = memory.machine_memory()
    assert whole is None or whole > 1 << 20
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "limit").write_text("12345678\n")
    paths = tuple(str(tmp_path / name) for name in ("max", "limit", "absent"))
    monkeypatch.setattr(memory, "_LIMITS", paths)
    assert memory.machine_memory() == 12345678


def test_memory_grows_with_all_that_needs_it():
    layer = LayerCost("c", "Convolution", True, "", "mse", (1,), (1,), 0, 10 << 20)
    cost = NetCost((layer,), 1 << 20)

    def need(cost: NetCost = cost, size: int = 8, apart: bool = True, improve: int = 0) -> int:
        return needed_memory(cost, 1000, size, apart=apart, improve=improve)

    assert need(size=64) - need() == pytest.approx(4 * 1000 * 56 * 4)  # samples, run in parts
    assert need(size=64, apart=False) - need(apart=False) > 56 * (4 << 20)
    assert need(NetCost((layer, layer), 1 << 20)) - need() >= 40 << 20
    assert need(improve=4 << 30) > 4 << 30


def test_small_net_is_planned_by_the_size_of_its_data(tmp_path):
    plan = plan_model(write_job(tmp_path))
    shapes = pipeline.FloatNet(small_net()).shapes({"data": (1, 3, 12, 10)})
    assert plan.cost.layers[1].top == next(s for v, s in shapes.items() if v.blob == "conv1")


def test_settings_without_effect_are_shown_with_the_reason(tmp_path, capsys):
    (tmp_path / "q.cfg").write_text("batch_num: 2")
    config = write_job(tmp_path, calibrate='quant_cfg = "q.cfg"\nskip_layers = []')
    assert main([str(config), "--plan"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "calibrate.skip_layers has no effect: q.cfg takes its place" in shown
    assert "calibrate.batch_num has no effect: q.cfg takes its place" in shown
    assert "do_fusion has no effect" not in shown


def test_settings_that_another_table_replaces():
    model = {"prototxt": "a.prototxt", "caffemodel": "a.caffemodel"}
    config = Config.model_validate({
        "model": model, "improve": {"bias": True}, "record": {"file": "r.txt"},
        "calibrate": {"data": {"source": "x"}, "batch_num": 2, "exact": False},
    })  # fmt: skip
    assert unused_settings(config) == (
        "calibrate.exact has no effect: the factors are those of the record",
        "improve.bias has no effect: a record is taken as it is",
    )
    config = Config.model_validate({
        "model": model, "fallback": {"max_drop": 1}, "retrain": {"solver": "s"},
        "calibrate": {"skip_layers": ["a"], "batch_num": 2},
    })  # fmt: skip
    one, two = unused_settings(config)
    assert one.startswith("calibrate.skip_layers has no effect: with a training")
    assert two.startswith("[fallback] has no effect")
    assert unused_settings(Config.model_validate({"model": model, "calibrate": {}})) == ()
