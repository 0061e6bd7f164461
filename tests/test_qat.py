"""Training nets for a Caffe of the user's own: what is put in, and what is taken back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from layer_nets import with_blobs
from small_nets import TEXT, small_net, write_job

import caffeio
import kernels
import pipeline
from caffeio.errors import NetError
from caffeio.record import read_record
from pipeline.jobs.qat import emit_qat, quantize_trained
from pipeline.qat.net import merge_phases, ranges_of, without_qat
from pipeline.run import main

DATA = (
    'layer { name: "data" type: "HDF5Data" top: "data" top: "label" include { phase: TRAIN } '
    'hdf5_data_param { source: "train.txt" batch_size: 4 } }\n'
    'layer { name: "data" type: "HDF5Data" top: "data" top: "label" include { phase: TEST } '
    'hdf5_data_param { source: "test.txt" batch_size: 8 } }\n'
)
LOSS = (
    'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }\n'
    'layer { name: "accuracy" type: "Accuracy" bottom: "fc" bottom: "label" top: "accuracy" '
    "include { phase: TEST } }\n"
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A job whose training net is the small net between data and loss."""
    body = TEXT[TEXT.index('layer { name: "conv1"') : TEXT.index('layer { name: "prob"')]
    (tmp_path / "train.prototxt").write_text('name: "small"\n' + DATA + body + LOSS)
    (tmp_path / "solver.prototxt").write_text(
        'net: "train.prototxt" test_iter: 2 test_interval: 10 base_lr: 0.01 lr_policy: "fixed" '
        "max_iter: 20\n"
    )
    return write_job(tmp_path, extra='[retrain]\nsolver = "solver.prototxt"\n')


def trained(net: caffeio.Net, rng: np.random.Generator) -> caffeio.Net:
    """Do to the blobs what a training in Caffe does: clips and masters move, weights follow."""
    weights: dict[str, np.ndarray] = {}

    def moved(layer: caffeio.Layer) -> caffeio.Layer:
        if layer.type == "ActivationQAT":
            return replace(layer, blobs=tuple(b * np.float32(1.1) for b in layer.blobs))
        name = layer.param.param[0].name if layer.param.param else ""
        if layer.type == "WeightQAT":
            master = layer.blobs[1] * rng.uniform(0.9, 1.1, layer.blobs[1].shape)
            p = layer.param.retrain_weight_quant_param
            axis = (1 if p.layer_type == "Deconvolution" else 0) if p.channel_wise else None
            weights[name], _ = kernels.arq_fake_quantize(master.astype(np.float32), axis)
            return replace(layer, blobs=(weights[name], master.astype(np.float32)))
        if name in weights:
            return replace(layer, blobs=(weights[name], *layer.blobs[1:]))
        return layer

    return net.with_layers(tuple(map(moved, net.layers)))


def test_the_layers_are_put_in(config: Path):
    files = emit_qat(config)
    assert {p.name for p in files.values()} == {
        "net_retrain_model.prototxt",
        "net_retrain_weights.caffemodel",
        "net_retrain_solver.prototxt",
    }
    net = caffeio.read_net(files["qat_prototxt"], files["qat_weights"], "TRAIN")
    types = [layer.type for layer in net.layers]
    assert types.count("ActivationQAT") == 5  # conv1, dw and branch, up, avg, fc
    assert types.count("WeightQAT") == 5
    assert "BatchNorm" not in types
    shared = net.layer("dw_act_qat")
    assert shared.param.retrain_data_quant_param.object_layer == "dw-branch"
    assert shared.param.retrain_data_quant_param.fixed_min
    assert [float(b[0]) for b in shared.blobs] == [
        shared.param.retrain_data_quant_param.clip_max,
        0.0,
    ]
    assert net.layer("dw_weight_qat").bottoms == net.layer("branch_weight_qat").bottoms
    assert net.layer("branch").bottoms == ("branch_weight_qat",)
    up = net.layer("up_weight_qat").param.retrain_weight_quant_param
    assert (up.cout, up.cin, up.h, up.w, up.channel_wise) == (6, 4, 4, 4, True)
    fc = net.layer("fc_weight_qat").param.retrain_weight_quant_param
    assert (fc.cout, fc.cin, fc.h, fc.w, fc.channel_wise) == (10, 252, 1, 1, False)
    for layer in net.layers:
        if layer.type == "WeightQAT":
            user = net.layer(layer.name.removesuffix("_weight_qat"))
            assert user.param.param[0].name == layer.param.param[0].name
            assert (user.blobs[0] == layer.blobs[0]).all()
            assert (layer.blobs[1] == layer.blobs[0]).all()


def test_both_phases_and_the_solver_are_written(config: Path):
    files = emit_qat(config)
    test = caffeio.read_net(files["qat_prototxt"], files["qat_weights"], "TEST")
    assert test.layers[0].param.hdf5_data_param.source == "test.txt"
    assert test.layers[-1].type == "Accuracy"
    solver = caffeio.read_solver(files["qat_solver"])
    assert solver.train_net == files["qat_prototxt"]
    assert (solver.test_iter, solver.param.max_iter) == (2, 20)


def test_what_was_trained_comes_back(config: Path, tmp_path: Path):
    files = emit_qat(config)
    net = trained(
        caffeio.read_net(files["qat_prototxt"], files["qat_weights"], "TRAIN"),
        np.random.default_rng(5),
    )
    caffeio.write_caffemodel(net, tmp_path / "trained.caffemodel")
    report = quantize_trained(config, files["qat_prototxt"], tmp_path / "trained.caffemodel")
    record = read_record(report.files["record"])
    assert set(record.layers) == {"conv1", "dw", "branch", "up", "avg", "fc"}
    fake = caffeio.read_net(report.files["fakequant_prototxt"], report.files["fakequant_weights"])
    for name, layer in record.layers.items():
        reader = next(
            x for x in net.layers
            if x.type == "ActivationQAT"
            and name in x.param.retrain_data_quant_param.object_layer.split("-")
        )  # fmt: skip
        high, low = (float(b[0]) for b in reader.blobs)
        params = kernels.ulq_grid(high, low).params()
        assert (layer.scale_d, layer.offset_d) == (params.scale, params.offset)
        if name != "avg":  # exactly the weights that Caffe computed with
            assert (fake.layer(name).blobs[0] == net.layer(name).blobs[0]).all()
    absorbed = {x.layer: x.absorbed for x in report.layers}
    assert absorbed["conv1"] == ("bn1", "scale1")


def test_untrained_it_is_the_model_by_calibration(config: Path, tmp_path: Path):
    files = emit_qat(config)
    back = quantize_trained(config, files["qat_prototxt"], files["qat_weights"])
    config.write_text(config.read_text().replace("[calibrate]", '[calibrate]\neffort = "original"'))
    want = pipeline.quantize_model(config, output=tmp_path / "calibrated")
    for name, layer in want.record.layers.items():
        assert back.record.layers[name].scale_w == layer.scale_w
        assert back.record.layers[name].scale_d == pytest.approx(layer.scale_d, rel=1e-6)
        assert abs(back.record.layers[name].offset_d - layer.offset_d) <= 1


def test_by_the_command(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main([str(config), "--emit-qat", "--output", str(tmp_path / "qat")]) == 0
    assert "net_retrain_solver.prototxt" in capsys.readouterr().out
    model = [
        str(tmp_path / "qat" / f"net_retrain_{x}") for x in ("model.prototxt", "weights.caffemodel")
    ]
    assert main([str(config), "--from-qat", *model]) == 0
    assert "conv1" in capsys.readouterr().out


def test_without_data_ifmr_is_left_to_caffe(config: Path):
    text = config.read_text()
    start, end = text.index("[calibrate"), text.index("[evaluate")
    config.write_text(text[:start] + text[end:])
    files = emit_qat(config)
    net = caffeio.read_net(files["qat_prototxt"], files["qat_weights"], "TRAIN")
    for layer in net.layers:
        if layer.type == "ActivationQAT":
            assert layer.param.retrain_data_quant_param.ifmr_init


def test_names_with_dashes_are_told_apart():
    text = (
        'layer { name: "data" type: "Input" top: "data" '
        "input_param { shape { dim: 1 dim: 2 } } }\n"
        'layer { name: "q" type: "ActivationQAT" bottom: "data" top: "q" '
        'retrain_data_quant_param { object_layer: "a-b-c" } }\n'
        'layer { name: "a-b" type: "InnerProduct" bottom: "q" top: "x" '
        "inner_product_param { num_output: 2 bias_term: false } }\n"
        'layer { name: "c" type: "InnerProduct" bottom: "q" top: "y" '
        "inner_product_param { num_output: 2 bias_term: false } }\n"
    )
    one = np.ones((2, 2), np.float32)
    clips = [np.array([2.0], np.float32), np.array([-1.0], np.float32)]
    net = with_blobs(caffeio.parse_net(text), {"q": clips, "a-b": [one], "c": [one]})
    found = ranges_of(net)
    assert set(found) == {"a-b", "c"}
    assert found["c"] == kernels.ulq_grid(2.0, -1.0).params()
    plain = without_qat(net)
    assert [layer.bottoms for layer in plain.layers[1:]] == [("data",), ("data",)]


def test_a_plain_net_is_refused():
    with pytest.raises(NetError, match="no ActivationQAT"):
        without_qat(small_net())


def test_running_a_training_net_names_the_cure(config: Path):
    files = emit_qat(config)
    net = caffeio.read_net(files["qat_prototxt"], files["qat_weights"], "TEST")
    with pytest.raises(NetError, match=r"conv1_act_qat.*--from-qat"):
        pipeline.FloatNet(net)


def test_phases_merge_in_order():
    def net(*names: str, phase: str) -> caffeio.Net:
        text = "".join(
            f'layer {{ name: "{n.strip("*")}" type: "Input" top: "{n}" '
            + (f"include {{ phase: {phase} }} " if n.endswith("*") else "")
            + "input_param { shape { dim: 1 } } }\n"
            for n in names
        )
        return caffeio.parse_net(text, phase=phase)

    merged = merge_phases(
        net("d*", "a", "b", "t*", phase="TRAIN"), net("d*", "a", "x*", "b", phase="TEST")
    )
    assert [layer.tops[0] for layer in merged.layers] == ["d*", "d*", "a", "x*", "b", "t*"]
