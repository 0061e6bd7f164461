"""Ways out: ONNX runs as the integer net does, tables say its scales, and nothing is left out in silence."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from layer_nets import with_blobs
from small_nets import samples, write_job

import caffeio
import pipeline
from pipeline.errors import PipelineError
from pipeline.export.onnx_graph import to_onnx
from pipeline.export.tables import ncnn_table, tensorrt_cache
from pipeline.run import main

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


def run_onnx(model, x: dict[str, np.ndarray], blobs: list[str] | None = None) -> list[np.ndarray]:
    """Run in ONNX Runtime as the graph says, nothing fused or replaced."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for name in blobs or []:
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(blobs, x)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    formats = 'formats = ["ascend", "onnx", "ncnn", "tensorrt", "npz"]'
    return folder, pipeline.quantize_model(write_job(folder, output=formats))


def test_a_run_writes_what_is_asked_for(run):
    folder, report = run
    names = {p.name for p in (folder / "out").iterdir()}
    assert {"net_int8.onnx", "net_ncnn.table", "net_tensorrt.cache", "net_int8.npz"} <= names
    assert report.files["onnx"].name == "net_int8.onnx"
    assert any("ncnn has symmetric scales; conv1" in note for note in report.notes)


def test_onnx_computes_what_the_integer_net_does(run):
    """Layer by layer within a step of the data that it becomes, on any batch."""
    folder, report = run
    int8 = report.int8_net()
    model = onnx.load(folder / "out" / "net_int8.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == 13
    for count in (1, 5):
        x = {"data": samples(count, 4)}
        got = run_onnx(onnx.load(folder / "out" / "net_int8.onnx"), x)[0]
        np.testing.assert_allclose(got, int8.forward(x)["prob"], atol=5e-3)
    x, blobs = {"data": samples(3, 8)}, ["sum", "up_scale", "avg", "fc"]
    last = {v.blob: str(v) for link in int8.net.links for v in link.writes}
    found = run_onnx(model, x, [last[b] for b in blobs])
    want = int8.forward(x, blobs)
    steps = {
        "sum": 0.02,
        "up_scale": int8.layers["avg"].data.scale,
        "avg": int8.layers["fc"].data.scale,
        "fc": 0.05,
    }
    for blob, y in zip(blobs, found, strict=True):
        assert np.abs(y - want[blob]).max() <= steps[blob], blob


def test_onnx_holds_the_integers(run):
    folder, report = run
    model = onnx.load(folder / "out" / "net_int8.onnx")
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for name, q in report.int8_net().layers.items():
        if q.weights is None:
            continue
        w = constants[f"{name}.weight_integers"]
        assert w.dtype == np.int8
        np.testing.assert_array_equal(w.reshape(q.weights.shape), q.weights)
        np.testing.assert_array_equal(constants[f"{name}.weight_scale"].reshape(-1), q.scale_w)
        if q.bias is not None:
            np.testing.assert_array_equal(constants[f"{name}.bias_integers"], q.bias)
    assert constants["conv1.data_zero_point"] == report.record.layers["conv1"].offset_d
    kinds = [n.op_type for n in model.graph.node]
    assert kinds.count("QuantizeLinear") == 5  # dw and branch read the same


LAYERS = """name: "many"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 4 dim: 7 dim: 6 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 6 kernel_size: 3 pad: 2 stride: 2 dilation: 2 group: 2 } }
layer { name: "prelu" type: "PReLU" bottom: "conv" top: "conv" }
layer { name: "ave" type: "Pooling" bottom: "conv" top: "ave" pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 } }
layer { name: "ave2" type: "Pooling" bottom: "data" top: "ave2" pooling_param { pool: AVE kernel_size: 3 stride: 2 } }
layer { name: "max" type: "Pooling" bottom: "data" top: "max" pooling_param { pool: MAX kernel_size: 3 stride: 2 pad: 1 } }
layer { name: "global" type: "Pooling" bottom: "max" top: "global" pooling_param { pool: AVE global_pooling: true } }
layer { name: "lrn" type: "LRN" bottom: "data" top: "lrn" lrn_param { local_size: 3 alpha: 0.3 beta: 0.6 k: 2 } }
layer { name: "up" type: "Deconvolution" bottom: "lrn" top: "up" convolution_param { num_output: 4 kernel_size: 4 stride: 2 pad: 1 group: 4 bias_term: false } }
layer { name: "crop" type: "Crop" bottom: "up" bottom: "data" top: "crop" crop_param { axis: 2 offset: 3 offset: 1 } }
layer { name: "mix" type: "Eltwise" bottom: "crop" bottom: "data" bottom: "lrn" top: "mix" eltwise_param { operation: SUM coeff: 0.5 coeff: -1 coeff: 1 } }
layer { name: "most" type: "Eltwise" bottom: "mix" bottom: "data" top: "most" eltwise_param { operation: MAX } }
layer { name: "times" type: "Eltwise" bottom: "most" bottom: "lrn" top: "times" eltwise_param { operation: PROD } }
layer { name: "slice" type: "Slice" bottom: "times" top: "one" top: "two" slice_param { axis: 1 slice_point: 1 } }
layer { name: "sig" type: "Sigmoid" bottom: "one" top: "one" }
layer { name: "tanh" type: "TanH" bottom: "two" top: "two" }
layer { name: "abs" type: "AbsVal" bottom: "two" top: "abs" }
layer { name: "cat" type: "Concat" bottom: "one" bottom: "abs" top: "cat" }
layer { name: "relu" type: "ReLU" bottom: "cat" top: "leaky" relu_param { negative_slope: 0.1 } }
layer { name: "clip" type: "Clip" bottom: "leaky" top: "clip" clip_param { min: -0.2 max: 0.7 } }
layer { name: "perm" type: "Permute" bottom: "clip" top: "perm" permute_param { order: 0 order: 2 order: 3 order: 1 } }
layer { name: "re" type: "Reshape" bottom: "perm" top: "re" reshape_param { shape { dim: 0 dim: -1 dim: 2 } } }
layer { name: "flat" type: "Flatten" bottom: "re" top: "flat" }
layer { name: "fc" type: "InnerProduct" bottom: "flat" top: "fc" inner_product_param { num_output: 3 } }
"""


def test_every_layer_that_is_written_computes_the_same():
    """Float layers of ONNX beside ours: stride, pads, cut windows, groups, offsets, coefficients."""
    rng = np.random.default_rng(2)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    net = with_blobs(caffeio.parse_net(LAYERS), {
        "conv": [normal(6, 2, 3, 3), normal(6)], "prelu": [abs(normal(6))], "up": [normal(4, 1, 4, 4)],
        "fc": [normal(3, 168), normal(3)],
    })  # fmt: skip
    x = {"data": normal(3, 4, 7, 6)}
    want = pipeline.FloatNet(net).forward(x)
    model = to_onnx(net)
    for blob, y in zip(net.outputs, run_onnx(model, x), strict=True):
        np.testing.assert_allclose(y, want[blob], rtol=1e-4, atol=1e-5, err_msg=blob)
    assert len(want) == len(model.graph.output) == 4


def test_what_onnx_has_not_is_named(tmp_path, capsys):
    text = LAYERS + 'layer { name: "mvn" type: "MVN" bottom: "data" top: "mvn" }\n'
    with pytest.raises(PipelineError, match="layer 'mvn': type MVN has no ONNX form here"):
        to_onnx(
            caffeio.parse_net(
                text.split('layer { name: "conv"')[0] + text[text.index('layer { name: "mvn"') :]
            )
        )
    job = write_job(tmp_path, calibrate="joint_quant = true", output='formats = ["onnx"]')
    assert main([str(job)]) == 1
    assert "ONNX has no shift N" in capsys.readouterr().err
    job.write_text(job.read_text().replace('["onnx"]', '["onyx"]'))
    assert main([str(job)]) == 2
    assert "'onyx' is none of 'ascend', 'onnx'" in capsys.readouterr().err
    assert not (tmp_path / "out" / "net_int8.onnx").exists()


def symmetric(tmp_path: Path):
    more = "activation_offset = false\neffort = 'original'"
    return pipeline.quantize_model(write_job(tmp_path, calibrate=more))


def test_the_ncnn_table_holds_reciprocal_scales(tmp_path):
    """As ncnn reads it: lines of weights first, one scale a channel; then one of data each."""
    report = symmetric(tmp_path)
    int8 = report.int8_net()
    lines = [line.split() for line in ncnn_table(int8.net, int8.layers).splitlines()]
    table = {name: np.array(values, np.float64) for name, *values in lines}
    assert list(table) == [
        "conv1_param_0", "dw_param_0", "branch_param_0", "fc_param_0", "conv1", "dw", "branch", "fc"
    ]  # fmt: skip
    for name in ("conv1", "dw", "branch", "fc"):
        q = int8.layers[name]
        outs = q.weights.shape[0]
        assert table[f"{name}_param_0"].shape == (outs,)
        w = int8.net.layer(name).blobs[0].reshape(outs, -1)
        # 127 / largest weight: ncnn's integers are those that we have
        ncnn_q = np.rint(w * table[f"{name}_param_0"][:, None])
        assert np.abs(ncnn_q - q.weights.reshape(outs, -1)).max() <= 1
        assert table[name] == pytest.approx(1 / q.data.scale, rel=1e-6)


def test_the_tensorrt_cache_has_a_scale_a_blob(tmp_path):
    report = symmetric(tmp_path)
    int8 = report.int8_net()
    head, *lines = tensorrt_cache(int8.net, int8.layers).splitlines()
    assert head.startswith("TRT-")
    blobs = []
    for line in lines:  # by its documented form, without our reader
        blob, digits = line.split(": ")
        scale = struct.unpack("!f", bytes.fromhex(digits))[0]
        readers = [q for n, q in int8.layers.items() if int8.net.layer(n).bottoms[0] == blob]
        assert scale == max(np.float32(q.data.scale) for q in readers)
        blobs.append(blob)
    assert blobs == ["data", "conv1", "dilated", "up_scale", "max"]


def test_the_npz_holds_everything(run):
    folder, report = run
    with np.load(folder / "out" / "net_int8.npz") as z:
        index = json.loads(str(z["index"]))
        assert [x["layer"] for x in index] == list(report.record.layers)
        x = samples(2, 3)
        q = np.clip(np.floor(x / z["conv1/scale_d"] + 0.5) + z["conv1/offset_d"], -128, 127)
        w, scale = z["conv1/weights"].astype(np.int64), z["conv1/scale_w"] * z["conv1/scale_d"]
        total = np.zeros((2, 8, 10, 8), np.int64)  # valid positions, by plain sums
        for i in range(3):
            for j in range(3):
                part = (q - z["conv1/offset_d"]).astype(np.int64)[:, :, i : i + 10, j : j + 8]
                total += np.einsum("nchw,oc->nohw", part, w[:, :, i, j])
        total += z["conv1/bias"][:, None, None]
        y = np.maximum(total * scale[:, None, None], 0)
    want = report.int8_net().forward({"data": x}, ["conv1"])["conv1"][:, :, 1:-1, 1:-1]
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)


def test_without_the_package_onnx_is_named(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(PipelineError, match=r"pip install 'caffe-quant\[onnx\]'"):
        pipeline.quantize_model(write_job(tmp_path, output='formats = ["onnx"]'))
    assert not (tmp_path / "out" / "net_record.txt").exists()


def test_models_of_all_kinds_agree(assets):
    """Each real net, quantized on noise: ONNX Runtime beside the integer net."""
    models = assets / "models"
    for folder, stem in (
        ("lenet_mnist", "deploy"),
        ("cifar10_m4", "deploy"),
        ("mtcnn", "det2"),
        ("wechat_sr", "sr"),
    ):
        weights = sorted((models / folder).glob("*.caffemodel"))
        path = next((w for w in weights if w.stem == stem), weights[0])
        net = caffeio.read_net(models / folder / f"{stem}.prototxt", path)
        shapes = {
            v.blob: s for v, s in pipeline.FloatNet(net).shapes().items() if v.blob in net.inputs
        }
        rng = np.random.default_rng(0)
        x = {b: rng.normal(size=(2, *s[1:])).astype(np.float32) for b, s in shapes.items()}
        observer = pipeline.Calibration(net, pipeline.create_config(net, effort="original"))
        observer.feed(x)
        int8 = observer.model.int8
        want = int8.forward(x)
        found = run_onnx(to_onnx(int8.net, numbers=int8.layers), x)
        for blob, y in zip(int8.net.outputs, found, strict=True):
            assert np.abs(y - want[blob]).max() <= 0.02 * np.abs(want[blob]).max(), (folder, blob)
