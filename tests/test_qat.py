"""Training nets for a Caffe of the user's own: what is put in, and what is taken back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from layer_nets import with_blobs
from qat_checker import check_net, check_solver
from small_nets import TEXT, samples, small_net, write_job

import caffeio
import kernels
import pipeline
from caffeio.errors import NetError
from caffeio.record import read_record
from pipeline.jobs.qat import emit_qat, quantize_trained
from pipeline.qat.net import _record_path, merge_phases, ranges_of, without_qat
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
    assert (up.cout, up.cin, up.h, up.w, up.channel_wise) == (4, 6, 4, 4, True)  # as its blob
    fc = net.layer("fc_weight_qat").param.retrain_weight_quant_param
    assert (fc.cout, fc.cin, fc.channel_wise) == (10, 252, False)
    assert not fc.HasField("h")
    assert net.layer("fc_weight_qat").blobs[0].shape == (10, 252)
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


def test_two_files_become_one_with_rules(config: Path):
    """A solver may name a net for each phase; its layers have no rules of their own."""
    text = (config.parent / "train.prototxt").read_text()
    rule = {p: f"include {{ phase: {p} }} " for p in ("TRAIN", "TEST")}
    for phase, other in (("TRAIN", "TEST"), ("TEST", "TRAIN")):
        lines = [x.replace(rule[phase], "") for x in text.splitlines() if rule[other] not in x]
        (config.parent / f"{phase}.prototxt").write_text("\n".join(lines))
    solver = config.parent / "solver.prototxt"
    both = 'train_net: "TRAIN.prototxt" test_net: "TEST.prototxt"'
    solver.write_text(solver.read_text().replace('net: "train.prototxt"', both))
    files = emit_qat(config)
    for phase, source in (("TRAIN", "train.txt"), ("TEST", "test.txt")):
        net = caffeio.read_net(files["qat_prototxt"], files["qat_weights"], phase)
        assert [x.param.hdf5_data_param.source for x in net.layers if x.is_source] == [source]
        assert ("Accuracy" in [x.type for x in net.layers]) == (phase == "TEST")
        assert not list(check_net(net))
    assert not list(check_solver(files["qat_solver"]))


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


def without_calibration(config: Path) -> None:
    text = config.read_text()
    start, end = text.index("[calibrate"), text.index("[evaluate")
    config.write_text(text[:start] + text[end:])


def both_phases(files: dict[str, Path]) -> list[caffeio.Net]:
    return [
        caffeio.read_net(files["qat_prototxt"], files["qat_weights"], phase)
        for phase in ("TRAIN", "TEST")
    ]


def test_without_any_data_ifmr_is_left_to_caffe(config: Path):
    without_calibration(config)
    files = emit_qat(config)
    for net in both_phases(files):
        found = [x for x in net.layers if x.type == "ActivationQAT"]
        assert found
        assert all(x.param.retrain_data_quant_param.ifmr_init for x in found)
        assert check_net(net) == []
    assert "Caffe searches the ranges" in files["qat_solver"].read_text()


def test_without_calibration_data_the_first_training_batch_serves(config: Path, tmp_path: Path):
    without_calibration(config)
    more = 'batch_size = 6\ndata = { source = "data.npz" }\ntest_data = { source = "data.npz" }\n'
    config.write_text(config.read_text() + more)
    files = emit_qat(config)
    net = both_phases(files)[0]
    assert check_net(net) == []
    first = net.layer("conv1_act_qat")
    assert not first.param.retrain_data_quant_param.ifmr_init
    want = kernels.ifmr(samples(6))
    high, low = (float(b[0]) for b in first.blobs)
    got = kernels.ulq_grid(high, low).params()
    assert got.scale == pytest.approx(want.scale, rel=1e-6)
    assert "first batch of the training data" in files["qat_prototxt"].read_text()


@pytest.mark.parametrize("data", [True, False], ids=["calibrated", "ifmr_init"])
def test_what_is_emitted_trains_in_the_original(config: Path, data: bool):
    if not data:
        without_calibration(config)
    files = emit_qat(config)
    for net in both_phases(files):
        assert check_net(net) == []
    assert check_solver(files["qat_solver"]) == []
    for kind in ("qat_prototxt", "qat_solver"):
        head = files[kind].read_text().split("\n\n")[0]
        assert "writes the quantized weights over the float masters" in " ".join(head.split("\n# "))


def set_field(layer: str, kind: str, field: str, value: object):
    def change(net: caffeio.Net) -> caffeio.Net:
        setattr(getattr(net.layer(layer).param, kind), field, value)
        return net

    return change


def set_blob(layer: str, index: int, change_blob):
    def change(net: caffeio.Net) -> caffeio.Net:
        blobs = list(net.layer(layer).blobs)
        blobs[index] = change_blob(blobs[index])
        changed = replace(net.layer(layer), blobs=tuple(blobs))
        return net.with_layers(tuple(changed if x.name == layer else x for x in net.layers))

    return change


def moved_last(layer: str):
    def change(net: caffeio.Net) -> caffeio.Net:
        return replace_layers(net, [x for x in net.layers if x.name != layer] + [net.layer(layer)])

    return change


def replace_layers(net: caffeio.Net, layers: list[caffeio.Layer]) -> SimpleNamespace:
    """Return what looks like a net: no real one would take layers in such an order."""
    return SimpleNamespace(inputs=net.inputs, name=net.name, layers=tuple(layers), layer=net.layer)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (set_field("conv1_act_qat", "retrain_data_quant_param", "record_file_path", ""), "is empty"),
        (set_field("conv1_act_qat", "retrain_data_quant_param", "record_file_path", "fc_act_qat_record.txt"), "shares record_file_path"),
        (set_field("conv1_act_qat", "retrain_data_quant_param", "record_file_path", "a/b.txt"), "in a folder"),
        (set_field("conv1_act_qat", "retrain_data_quant_param", "ifmr_init", True), "old clip_min"),
        (set_field("conv1_act_qat", "retrain_data_quant_param", "clip_max", 99.0), "disagree"),
        (set_field("conv1_act_qat", "retrain_data_quant_param", "object_layer", ""), "no object_layer"),
        (set_blob("conv1_act_qat", 0, lambda b: b - 1e3), "not above clip_min"),
        (set_blob("conv1_act_qat", 0, lambda b: b.reshape(1, 1)), "two blobs of one element"),
        (set_field("fc_weight_qat", "retrain_weight_quant_param", "cin", 3), "its parameters make blobs"),
        (set_blob("fc", 0, lambda b: b.reshape(10, 252, 1, 1)), "of another shape"),
        (set_blob("conv1_weight_qat", 1, lambda b: b.reshape(8, -1)), "its parameters make blobs"),
        (moved_last("conv1_act_qat"), "before it is made"),
        (lambda net: replace_layers(net, [x for x in net.layers if x.name != "fc"]), "0 layers share"),
    ],
)  # fmt: skip
def test_the_checker_finds_what_makes_that_caffe_abort(config: Path, change, says: str):
    net = both_phases(emit_qat(config))[0]
    assert check_net(net) == []
    assert any(says in line for line in check_net(change(net)))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("net:", "train_net:", "needs net:"),
        ("test_interval: 10", "test_interval: 0", "test_interval must be"),
        ("test_iter: 2", "test_iter: 1", "test_iter must be"),
        ("test_initialization: false", "", "test_initialization must be"),
    ],
)
def test_the_checker_finds_what_the_solver_lacks(config: Path, old: str, new: str, says: str):
    path = emit_qat(config)["qat_solver"]
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert any(says in line for line in check_solver(path))


def test_a_solver_that_does_not_test_is_refused(config: Path, capsys: pytest.CaptureFixture):
    solver = config.with_name("solver.prototxt")
    solver.write_text(solver.read_text().replace("test_iter: 2 test_interval: 10", ""))
    assert main([str(config), "--emit-qat"]) == 2
    assert "test_iter and test_interval" in capsys.readouterr().err


def test_layer_names_make_files_of_their_own():
    taken: set[str] = set()
    names = ["conv2/3x3_act_qat", "conv2_3x3_act_qat", "a b_act_qat"]
    assert [_record_path(name, taken) for name in names] == [
        "conv2_3x3_act_qat_record.txt", "conv2_3x3_act_qat_2_record.txt", "a_b_act_qat_record.txt"
    ]  # fmt: skip
    long = [_record_path("x" * 400 + end, taken) for end in "ab"]
    assert len(set(long)) == 2
    assert max(map(len, long)) < 255


def test_trained_here_with_those_layers_and_taken_back(config: Path, tmp_path: Path):
    """Emit, train in the product's own trainer on the emitted net, quantize by what it learned."""
    pytest.importorskip("torch")
    files = emit_qat(config)
    text = config.read_text().replace("solver.prototxt", "out/net_retrain_solver.prototxt")
    text = text.replace('"net.caffemodel"', '"out/net_retrain_weights.caffemodel"')
    text = text.replace("[retrain]", "[retrain]\nquantize = false\nbatch_size = 4")
    text += 'data = { source = "data.npz" }\ntest_data = { source = "data.npz" }\n'
    (tmp_path / "train.toml").write_text(text)
    done = pipeline.train_model(tmp_path / "train.toml", output=tmp_path / "trained")
    assert done.iterations == 20
    before, after = (
        caffeio.read_net(files["qat_prototxt"], weights, "TRAIN")
        for weights in (files["qat_weights"], done.files["last_weights"])
    )
    assert check_net(after) == [
        f"{x.name}: parameter and blob disagree" for x in after.layers if x.type == "ActivationQAT"
    ]  # what is learned is in the blob
    for layer in after.layers:
        if layer.type == "WeightQAT":
            fake, master = layer.blobs
            assert (master != before.layer(layer.name).blobs[1]).any()
            p = layer.param.retrain_weight_quant_param
            axis = (1 if p.layer_type == "Deconvolution" else 0) if p.channel_wise else None
            np.testing.assert_array_equal(fake, kernels.arq_fake_quantize(master, axis)[0])
            user = after.layer(layer.name.removesuffix("_weight_qat"))
            np.testing.assert_array_equal(user.blobs[0].reshape(fake.shape), fake)
        if layer.type == "ActivationQAT" and not layer.param.retrain_data_quant_param.fixed_min:
            assert layer.blobs[0] != before.layer(layer.name).blobs[0]
    report = quantize_trained(config, files["qat_prototxt"], done.files["last_weights"])
    for name, record in report.record.layers.items():
        assert ranges_of(after)[name].scale == pytest.approx(record.scale_d, rel=1e-6)
        assert name in {"conv1", "dw", "branch", "up", "avg", "fc"}
    x = {"data": samples(8, 3)}
    y = pipeline.FloatNet(without_qat(after)).forward(x, ["fc"])["fc"]
    noise = report.int8_net().forward(x, ["fc"])["fc"] - y
    assert np.square(noise).sum() < 0.01 * np.square(y).sum()
    # with fake quantization of its own there would be two
    again = (tmp_path / "train.toml").read_text().replace("quantize = false\n", "")
    (tmp_path / "twice.toml").write_text(again)
    with pytest.raises(pipeline.errors.ConfigError, match="has QAT layers already"):
        pipeline.retrain_model(tmp_path / "twice.toml", output=tmp_path / "twice")


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


@pytest.mark.parametrize("model", ["lenet_mnist", "cifar10_m4"])
def test_real_nets_train_in_the_original(assets: Path, tmp_path: Path, model: str):
    """Their deploy nets between a labelled input and a loss."""
    folder = assets / "models" / model
    weights = next(folder.glob("*.caffemodel"))
    net = caffeio.read_net(folder / "deploy.prototxt", weights)
    softmax = next(x for x in net.layers if x.type == "Softmax")
    body = net.with_layers(tuple(x for x in net.layers if x is not softmax))
    text = caffeio.to_prototxt(body) + (
        'layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 4 } } }\n'
        'layer { name: "loss" type: "SoftmaxWithLoss" '
        f'bottom: "{softmax.bottoms[0]}" bottom: "label" top: "loss" }}\n'
    )
    (tmp_path / "train.prototxt").write_text(text)
    (tmp_path / "solver.prototxt").write_text(
        'net: "train.prototxt" test_iter: 2 test_interval: 10 base_lr: 0.001 lr_policy: "fixed" '
        "max_iter: 2\n"
    )
    size = net.layers[0].param.input_param.shape[0].dim[1:]
    x = np.random.default_rng(0).random((16, *size), np.float32)
    np.savez(tmp_path / "data.npz", data=x, label=np.arange(16) % 10)
    (tmp_path / "config.toml").write_text(f"""
[model]
prototxt = "{folder / "deploy.prototxt"}"
caffemodel = "{weights}"
[retrain]
solver = "solver.prototxt"
batch_size = 4
data = {{ source = "data.npz" }}
test_data = {{ source = "data.npz" }}
[evaluate]
data.source = "data.npz"
[output]
directory = "out"
""")
    files = emit_qat(tmp_path / "config.toml")
    for phase in both_phases(files):
        assert check_net(phase) == []
        assert sum(x.type == "WeightQAT" for x in phase.layers) >= 4
    assert check_solver(files["qat_solver"]) == []
    back = quantize_trained(tmp_path / "config.toml", files["qat_prototxt"], files["qat_weights"])
    assert back.accuracy[2].outputs[0].sample_sqnr > 25
