"""The command from end to end: what it writes, prints and returns, also when things go wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT
from layer_nets import with_blobs
from small_nets import samples, small_net, write_job

import caffeio
import pipeline
from caffeio.record import read_record
from pipeline.run import main

FILES = {
    "net_record.txt", "net_fake_quant_model.prototxt", "net_fake_quant_weights.caffemodel",
    "net_deploy_model.prototxt", "net_deploy_weights.caffemodel", "net_quant.json", "report.json", "report.csv", "report.html",
    "net_manifest.json",
}  # fmt: skip


@pytest.mark.parametrize("effort", ["original", "standard", "best"])
def test_a_run_writes_all_files_and_they_agree(tmp_path, capsys, effort):
    config = write_job(tmp_path, calibrate=f'effort = "{effort}"')
    assert main([str(config)]) == 0
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == FILES
    printed = capsys.readouterr().out
    assert "dilation is 2, not 1" in printed
    assert "Accuracy on 16 samples" in printed
    report = json.loads((out / "report.json").read_text())
    assert {s["model"] for s in report["accuracy"]} == {"float", "fakequant", "int8"}
    assert report["samples"] == 8
    record = read_record(out / "net_record.txt")
    quantized = [layer["layer"] for layer in report["layers"] if layer["quantized"]]
    assert quantized == list(record.layers) == ["conv1", "dw", "branch", "up", "avg", "fc"]
    for layer in report["layers"]:
        assert layer["quantized"] == (layer["error"] is not None)
        assert layer["quantized"] != bool(layer["reason"])
    errors = {x["layer"]: x["error"] for x in report["layers"] if x["quantized"]}
    assert all(20 < e["sqnr"] < 80 and 0 <= e["saturation"] < 0.05 for e in errors.values())
    fake = caffeio.read_net(
        out / "net_fake_quant_model.prototxt", out / "net_fake_quant_weights.caffemodel"
    )
    x = {"data": samples(24)[8:]}
    exact = pipeline.FloatNet(small_net()).forward(x)["prob"]
    faked = pipeline.FloatNet(fake).forward(x)["prob"]
    again = pipeline.quantize_model(config, output=tmp_path / "again")
    assert again.record == record
    whole = again.int8_net().forward(x)["prob"]
    if effort == "original":  # then the record says all
        np.testing.assert_array_equal(
            whole, pipeline.Int8Net(small_net(), record).forward(x)["prob"]
        )
    assert report["effort"] == effort
    steps = [trial["step"] for trial in report["trials"]]
    assert (steps == []) == (effort == "original")
    assert ("bias correction" in steps) == (effort != "original")
    assert ("compensated rounding" in steps) == (effort == "best")
    np.testing.assert_allclose(faked, whole, atol=2e-3)
    labels = np.arange(8, 24) % 10
    top1 = {s["model"]: s["top1"] for s in report["accuracy"]}
    assert top1["float"] == pytest.approx(100 * (exact.argmax(1) == labels).mean())
    assert top1["int8"] == pytest.approx(100 * (whole.argmax(1) == labels).mean())


def test_the_same_run_twice_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        assert main([str(write_job(tmp_path / name)), "--quiet"]) == 0
    for name in FILES - {"report.json", "report.html"}:
        one, two = ((tmp_path / f / "out" / name).read_bytes() for f in ("a", "b"))
        assert one == two, name


def test_the_python_face_returns_what_the_command_writes(tmp_path):
    report = pipeline.quantize_model(write_job(tmp_path), device="reference")
    assert {p.name for p in report.files.values()} == FILES
    assert report.record == read_record(report.files["record"])
    assert [s.model for s in report.accuracy] == ["float", "fakequant", "int8"]
    assert {x.layer for x in report.layers if x.quantized} == set(report.record.layers)


def test_devices_write_the_same_record(tmp_path):
    records = []
    for device in ("cpu", "reference"):
        (tmp_path / device).mkdir()
        config = write_job(tmp_path / device, calibrate="exact = true")
        assert main([str(config), "--quiet", "--device", device]) == 0
        records.append((tmp_path / device / "out" / "net_record.txt").read_text())
    # float layers may differ in their last bits between devices
    one, two = (r.split() for r in records)
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        if a != b:
            assert float(a) == pytest.approx(float(b), rel=1e-5)


def test_plan_computes_and_writes_nothing(tmp_path, capsys):
    assert main([str(write_job(tmp_path)), "--plan"]) == 0
    printed = capsys.readouterr().out
    assert "mse" in printed
    assert "dilation is 2, not 1" in printed
    assert "MACs a sample" in printed
    # conv1: 8 outputs x 12 x 10 places x 3 inputs x 9 taps
    assert f"{8 * 120 * 27:,}" in printed
    assert not (tmp_path / "out").exists()


def test_an_unknown_field_is_shown_and_stands_in_the_exported_models(tmp_path, capsys):
    config = write_job(tmp_path)
    break_text("net.prototxt", "kernel_size: 1", "kernel_size: 1 twist: true")(tmp_path)
    note = "field 'twist' of ConvolutionParameter is not known; it may change what layer 'branch'"
    assert main([str(config), "--plan"]) == 0
    assert note in capsys.readouterr().out
    assert main([str(config)]) == 0
    assert note in capsys.readouterr().out
    for name in ("net_fake_quant_model.prototxt", "net_deploy_model.prototxt"):
        net = caffeio.read_net(tmp_path / "out" / name)
        assert [u.text for u in net.layer("branch").unknown] == ["twist: true"], name


@pytest.mark.parametrize("option", ["--plan", "--sensitivity", "--quiet"])
def test_an_unknown_field_stands_below_a_later_error(tmp_path, capsys, option):
    config = write_job(tmp_path)
    twisted = "kernel_size: 1 stride: 2 twist: true"
    break_text("net.prototxt", "kernel_size: 1", twisted)(tmp_path)
    assert main([str(config), option]) == 1
    *_, error, note = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("error: layer 'sum'")
    assert note.startswith("note: ")
    assert "'twist'" in note


@pytest.mark.parametrize("kind", ["ConvolutionDepthwise", "DepthwiseConvolution"])
def test_depthwise_layers_of_forks_are_quantized_if_asked_for(tmp_path, capsys, kind):
    plain = small_net()
    config = write_job(tmp_path, plain)
    text = caffeio.to_prototxt(plain).replace("    group: 8\n", "")
    number = 9 if kind == "ConvolutionDepthwise" else 8  # which one of them does not read
    dw = 'name: "dw"\n  type: "Convolution"'
    head, tail = text.split(dw)
    tail = tail.replace("num_output: 8", f"num_output: {number}", 1)
    (tmp_path / "net.prototxt").write_text(f'{head}name: "dw"\n  type: "{kind}"{tail}')
    assert main([str(config), "--plan"]) == 0
    assert "'dw': depthwise types of forks stay in float; with model.depthwise_as" in (
        capsys.readouterr().out
    )
    break_text("config.toml", "[calibrate]", "depthwise_as_convolution = true\n[calibrate]")(
        tmp_path
    )
    assert main([str(config)]) == 0
    assert "stay in float" not in capsys.readouterr().out
    deploy = caffeio.read_net(tmp_path / "out" / "net_deploy_model.prototxt").layer("dw")
    assert (deploy.type, deploy.param.convolution_param.group) == ("Convolution", 8)
    record = read_record(tmp_path / "out" / "net_record.txt")
    assert len(record.layers["dw"].scale_w) == 8


def test_quiet_prints_nothing_and_output_moves_the_files(tmp_path, capsys):
    config = write_job(tmp_path)
    assert main([str(config), "--quiet", "--output", str(tmp_path / "elsewhere")]) == 0
    captured = capsys.readouterr()
    assert not captured.out
    assert not captured.err
    assert {p.name for p in (tmp_path / "elsewhere").iterdir()} == FILES


def test_without_evaluation_data_the_calibration_samples_serve(tmp_path, capsys):
    config = write_job(tmp_path)
    text = config.read_text()
    config.write_text(text[: text.index("[evaluate]")] + text[text.index("[output]") :])
    assert main([str(config)]) == 0
    printed = capsys.readouterr().out
    assert "compared on the calibration samples" in printed
    assert "Accuracy on 8 samples" in printed


def test_a_net_with_its_own_data_layer(tmp_path, capsys):
    """As train_test.prototxt has it: an LMDB, a mean, Accuracy and loss at the end."""
    lmdb = pytest.importorskip("lmdb")
    from caffeio.proto import caffe_pb2

    images = np.random.default_rng(0).integers(0, 256, (24, 3, 12, 10), np.uint8)
    with lmdb.open(str(tmp_path / "lmdb"), map_size=1 << 22) as db, db.begin(write=True) as put:
        for i, image in enumerate(images):
            datum = caffe_pb2.Datum(
                channels=3, height=12, width=10, data=image.tobytes(), label=i % 10
            )
            put.put(f"{i:08d}".encode(), datum.SerializeToString())
    config = write_job(tmp_path)
    text = (tmp_path / "net.prototxt").read_text()
    first = text[: text.index('  name: "conv1"')].rindex("layer {")
    last = text.rindex("layer {")
    data = (
        'layer { name: "data" type: "Data" top: "data" top: "label" '
        "transform_param { scale: 0.01 mean_value: 100 } "
        'data_param { source: "lmdb" batch_size: 3 backend: LMDB } }\n'
    )
    ends = (
        'layer { name: "acc" type: "Accuracy" bottom: "fc" bottom: "label" top: "acc" }'
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }'
    )
    (tmp_path / "net.prototxt").write_text('name: "own"' + data + text[first:last] + ends)
    toml = config.read_text().replace(
        'data.source = "data.npz"', 'data.kind = "net"\ndata.root = "."'
    )
    config.write_text(toml)
    assert main([str(config), "--plan"]) == 0
    assert f"{8 * 120 * 27:,}" in capsys.readouterr().out
    report = pipeline.quantize_model(config)
    assert [o.blob for o in report.accuracy[2].outputs] == ["fc"]
    assert report.record.layers["conv1"].channels == 3
    net = caffeio.read_net(tmp_path / "net.prototxt", tmp_path / "net.caffemodel")
    x = ((images[8:] - 100.0) * 0.01).astype(np.float32)
    labels = (np.arange(8, 24) % 10).astype(np.float32)
    out = pipeline.FloatNet(net).forward({"data": x, "label": labels})
    assert report.accuracy[0].top1 == pytest.approx(100 * float(out["acc"]))


def test_do_fusion_false_is_kept_in_the_record(tmp_path):
    report = pipeline.quantize_model(write_job(tmp_path, calibrate="do_fusion = false"))
    skipped = {name for name, layer in report.record.layers.items() if layer.skip_fusion}
    assert skipped == {"conv1", "up"}
    int8 = pipeline.Int8Net(small_net(), report.record)
    assert "bn1" in {layer.name for layer in int8.net.layers}


def break_text(name: str, old: str, new: str):
    def do(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return do


def break_bytes(name: str, size: int):
    def do(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:size])

    return do


def break_weights(layer: str, change):
    def do(folder: Path) -> None:
        net = small_net()
        blobs = [change(b) for b in net.layer(layer).blobs]
        (folder / "net.caffemodel").unlink()
        caffeio.write_caffemodel(with_blobs(net, {layer: blobs}), folder / "net.caffemodel")

    return do


def forget_weights(folder: Path) -> None:
    net = small_net()
    (folder / "net.caffemodel").unlink()
    kept = tuple(x for x in net.layers if x.name != "dw")
    caffeio.write_caffemodel(net.with_layers(kept), folder / "net.caffemodel")


def empty_folder(folder: Path) -> None:
    (folder / "images").mkdir()
    break_text("config.toml", 'data.source = "data.npz"', 'data.source = "images"')(folder)


def corrupt_jpeg(folder: Path) -> None:
    empty_folder(folder)
    for i in range(8):
        image = np.full((12, 10, 3), i * 20, np.uint8)
        data = cv2.imencode(".jpg", image)[1].tobytes()
        (folder / "images" / f"{i}.jpg").write_bytes(data[:80] if i == 5 else data)


def nan_data(folder: Path) -> None:
    x = samples(24)
    x[6] = np.nan
    np.savez(folder / "data.npz", data=x, label=np.zeros(24))


def file_in_the_way(folder: Path) -> None:
    (folder / "out").write_text("a file")


def outputs_exist(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "net_record.txt").write_text("mine")


BROKEN = [
    ("truncated caffemodel", break_bytes("net.caffemodel", 1500), 1, ["net.caffemodel"]),
    ("empty caffemodel", break_bytes("net.caffemodel", 0), 1, ["net.caffemodel"]),
    ("weights of a wrong shape", break_text("net.prototxt", "num_output: 10", "num_output: 11"), 1,
     ["'fc'", "net.caffemodel"]),
    ("type in the wrong case", break_text("net.prototxt", '"Eltwise"', '"eltwise"'), 1,
     ["'sum'", "eltwise", "Eltwise"]),
    ("a blob nobody makes", break_text("net.prototxt", 'bottom: "branch"', 'bottom: "brunch"'), 1,
     ["'sum'", "'brunch'"]),
    ("cyclic net", break_text("net.prototxt", 'bottom: "branch"', 'bottom: "fc"'), 1,
     ["'sum'", "'fc'", "cyclic"]),
    ("syntax error", break_text("net.prototxt", 'type: "ReLU"', 'type: ReLU"'), 1,
     ["net.prototxt:", ":"]),
    ("missing weights", forget_weights, 1, ["'dw'", "net.caffemodel"]),
    ("NaN weights", break_weights("dw", lambda b: b * np.nan), 1, ["'dw'", "NaN"]),
    ("NaN data", nan_data, 1, ["'conv1'", "'data'", "data.npz[6]", "NaN"]),
    ("empty data folder", empty_folder, 1, ["images"]),
    ("corrupt JPEG", corrupt_jpeg, 1, ["5.jpg"]),
    ("too little data", break_text("config.toml", "batch_num = 2", "batch_num = 20"), 1,
     ["80", "24", "batch_num"]),
    ("no such data", break_text("config.toml", "data.npz", "nowhere.npz"), 2, ["nowhere.npz"]),
    ("no such model", break_text("config.toml", "net.prototxt", "nit.prototxt"), 2,
     ["nit.prototxt"]),
    ("typo in the config", break_text("config.toml", "batch_num", "batch_nun"), 2,
     ["batch_nun", "batch_num"]),
    ("not TOML", break_text("config.toml", "[model]", "[model"), 2, ["config.toml", "TOML"]),
    ("wrong input name", break_text("config.toml", "data.start = 8", 'data.input = "dta"'), 2,
     ["evaluate.data", "data"]),
    ("output is a file", file_in_the_way, 1, ["out"]),
    ("outputs exist", outputs_exist, 2, ["net_record.txt", "overwrite"]),
]  # fmt: skip


@pytest.mark.parametrize(("what", "do", "code", "parts"), BROKEN, ids=[b[0] for b in BROKEN])
def test_broken_input_gives_a_clear_line_and_writes_nothing(
    tmp_path, capsys, what, do, code, parts
):
    config = write_job(tmp_path)
    do(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert main([str(config), "--quiet"]) == code
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    assert len(captured.err.strip().splitlines()) == 1, captured.err
    assert all(part in captured.err for part in parts), captured.err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_found_before_the_work(tmp_path, capsys):
    config = write_job(tmp_path)
    (tmp_path / "out").mkdir(mode=0o500)
    assert main([str(config), "--quiet"]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_wrong_command_is_code_2(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["c.toml", "--threads", "0"])
    assert caught.value.code == 2
    assert "at least 1" in capsys.readouterr().err


def test_verbose_lets_the_traceback_out(tmp_path):
    config = write_job(tmp_path)
    break_bytes("net.caffemodel", 100)(tmp_path)
    with pytest.raises(caffeio.CaffeFileError):
        main([str(config), "--verbose"])


def test_a_log_holds_methods_candidates_losses_and_times(tmp_path, capsys):
    config, log = write_job(tmp_path, calibrate='effort = "best"'), tmp_path / "run.log"
    assert main([str(config), "--log", str(log), "--quiet"]) == 0
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""
    text = log.read_text()
    assert f"{config} --log {log} --quiet" in text.splitlines()[0]
    for said in (
        "layer 'dilated' (Convolution): in float: dilation is 2, not 1",
        "layer 'conv1' (Convolution): INT8, Mse(steps=100, asymmetric=True), a weight scale a channel",
        "layer 'conv1' reads 'data': 2880 values",
        "layer 'fc': Mse(steps=100, asymmetric=True): scale ",
        "300 candidates, loss ",
        "layer 'fc': rounding compensated, bias moved by up to",
        "nearest rounding: mean ",
        "stage calibrate: ",
        "evaluate int8 (",
        "written: ",
    ):
        assert said in text, said
    assert main([str(config), "--log", str(log)]) == 2  # its files are there already
    capsys.readouterr()
    assert "Traceback" in log.read_text()[len(text) :]
    assert main([str(config), "--log", str(tmp_path / "no" / "x.log")]) == 1
    assert "x.log: cannot be written" in capsys.readouterr().err


def test_verbose_shows_the_steps_and_nothing_twice(tmp_path, capsys):
    assert main([str(write_job(tmp_path)), "--verbose"]) == 0
    shown = " ".join(capsys.readouterr().err.split())
    assert "300 candidates" in shown
    assert shown.count("calibrate (2 batches) ...") == 1


def command(*arguments: str) -> subprocess.Popen:
    """Start the command with SIGINT as in a terminal: a background job inherits it ignored."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.run", *arguments], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from pipeline.run import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'numba', 'pydantic', 'google', 'cv2', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--plan" in done.stdout


def test_ctrl_c_leaves_nothing_behind(tmp_path):
    config = write_job(tmp_path)
    # minutes of evaluation, one sample at a time
    x = np.repeat(samples(24), 1000, axis=0)
    np.savez(tmp_path / "data.npz", data=x, label=np.zeros(len(x)))
    config.write_text(config.read_text().replace("batch_size = 5", "batch_size = 1"))
    process = command(str(config), "--device", "reference")
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("evaluate float ("):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.strip().endswith("interrupted; nothing was written")
    assert not (tmp_path / "out").exists()
