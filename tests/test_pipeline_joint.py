"""Shift N and joint layers: what is shared, what N is, and that all forms of the net agree on it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from layer_nets import with_blobs
from small_nets import samples, write_job

import caffeio
import pipeline
from caffeio.record import parse_record, record_to_text
from kernels import ShiftSearch
from pipeline.config.load import load_config
from pipeline.errors import ConfigError
from pipeline.jobs.data import calibration_feed
from pipeline.layers.int8 import INT8_TYPES
from pipeline.quantize.joint import joint_groups
from pipeline.quantize.prepare import prepare, read_model
from pipeline.run import main

CONV = 'layer {{ name: "{0}" type: "Convolution" bottom: "{1}" top: "{0}" convolution_param {{ num_output: {2} kernel_size: {3} pad: {4} }} }}\n'
TEXT = (
    'name: "residual"\n'
    'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 12 dim: 10 } } }\n'
    + CONV.format("stem", "data", 64, 3, 1)
    + 'layer { name: "relu" type: "ReLU" bottom: "stem" top: "stem" }\n'
    + CONV.format("left", "stem", 8, 3, 1)
    + CONV.format("right", "stem", 8, 1, 0)
    + 'layer { name: "sum" type: "Eltwise" bottom: "left" bottom: "right" top: "sum" }\n'
    + 'layer { name: "sum_relu" type: "ReLU" bottom: "sum" top: "sum" }\n'
    + CONV.format("third", "sum", 8, 3, 1)
    + 'layer { name: "again" type: "Eltwise" bottom: "third" bottom: "sum" top: "again" }\n'
    + CONV.format("gate", "again", 8, 1, 0)
    + 'layer { name: "times" type: "Eltwise" bottom: "gate" bottom: "again" top: "times" eltwise_param { operation: PROD } }\n'
    + 'layer { name: "avg" type: "Pooling" bottom: "times" top: "avg" pooling_param { pool: AVE kernel_size: 2 stride: 2 } }\n'
    + 'layer { name: "point" type: "Convolution" bottom: "avg" top: "point" convolution_param { num_output: 5 kernel_h: 6 kernel_w: 5 } }\n'
    + 'layer { name: "fc" type: "InnerProduct" bottom: "point" top: "fc" inner_product_param { num_output: 10 } }\n'
)  # fmt: skip


def residual_net(seed: int = 0) -> caffeio.Net:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        # channels of very different sizes, so that N differs
        sizes = np.geomspace(0.05, 2, shape[0]).reshape(-1, *(1,) * (len(shape) - 1))
        return (rng.normal(size=shape) * sizes).astype(np.float32)

    left = normal(8, 64, 3, 3)
    left[0] = 0
    left[0, 3, 1, 1] = 1  # one tap: its sums need the smallest shift
    return with_blobs(caffeio.parse_net(TEXT), {
        "stem": [normal(64, 3, 3, 3), normal(64)], "left": [left, normal(8)],
        "right": [normal(8, 64, 1, 1) / 9, normal(8)], "third": [normal(8, 8, 3, 3), normal(8)],
        "gate": [normal(8, 8, 1, 1), normal(8)], "point": [normal(5, 8, 6, 5), normal(5)],
        "fc": [normal(10, 5), normal(10)],
    })  # fmt: skip


def job(folder: Path, effort: str = "original", extra: str = "") -> Path:
    return write_job(
        folder, residual_net(), calibrate=f'effort = "{effort}"\njoint_quant = true', extra=extra
    )


@pytest.fixture(scope="module", params=["original", "standard", "best"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("joint")
    return folder, pipeline.quantize_model(job(folder, request.param))


def prepared(folder: Path):
    config = load_config(folder / "config.toml")
    return prepare(config, read_model(config))


def deq(record, name: str) -> np.ndarray:
    r = record.layers[name]
    return np.float32(r.scale_d) * np.array(r.scale_w, np.float32)


def test_layers_of_one_sum_share_scale_and_shift(run):
    _, report = run
    record = report.record
    groups = joint_groups(report.net_quantized, record)
    assert [g for g in groups if len(g) > 1] == [("left", "right")]
    np.testing.assert_array_equal(deq(record, "left"), deq(record, "right"))
    assert record.layers["left"].shift_bit == record.layers["right"].shift_bit
    assert len(set(record.layers["left"].shift_bit)) > 1
    assert any("left, right share deq_scale and N" in note for note in report.notes)


@pytest.mark.parametrize(("coeff", "joint"), [("1, 1", True), ("1, 0.25", False), ("1, -1", False)])
def test_sums_with_factors_join_nothing(tmp_path, coeff, joint):
    first, second = coeff.split(", ")
    param = f"eltwise_param {{ coeff: {first} coeff: {second} }} }}"
    text = TEXT.replace('bottom: "right" top: "sum" }', f'bottom: "right" top: "sum" {param}')
    assert text != TEXT
    blobs = {x.name: [*x.blobs] for x in residual_net().layers if x.blobs}
    net = with_blobs(caffeio.parse_net(text), blobs)
    more = 'effort = "original"\njoint_quant = true'
    report = pipeline.quantize_model(write_job(tmp_path, net, calibrate=more))
    groups = joint_groups(report.net_quantized, report.record)
    assert (("left", "right") in groups) == joint


def test_a_convolution_to_one_point_has_one_scale_and_one_shift(run):
    _, report = run
    point = report.record.layers["point"]
    assert len(point.scale_w) == 5
    assert len(set(point.scale_w)) == 1
    assert len(set(point.shift_bit)) == 1
    assert len(report.record.layers["fc"].shift_bit) == 1


def test_every_layer_with_weights_has_a_shift(run):
    _, report = run
    for name, layer in report.record.layers.items():
        if name == "avg":
            assert layer.shift_bit == ()
        else:
            assert all(1 <= n <= 16 for n in layer.shift_bit)
            assert len(layer.shift_bit) == len(layer.scale_w)


def test_the_shift_is_the_best_one_for_the_layers_sums(run):
    """Against a search on the sums of the net without shifts, computed here."""
    folder, report = run
    record = report.record
    plain = caffeio.Record(
        {n: caffeio.LayerRecord(**{**vars(r), "shift_bit": ()}) for n, r in record.layers.items()}
    )
    int8 = pipeline.Int8Net.of_fused(report.net_quantized, plain)
    sums: dict[str, list[np.ndarray]] = {}

    def watch(i, layer, bottoms, tops):
        if layer.name in int8.layers and layer.blobs:
            q = int8.layers[layer.name]
            raw = INT8_TYPES[layer.type].forward(layer, q, bottoms[0], "cpu", raw=True)
            spread = (-1,) + (1,) * (raw.ndim - 2)
            np.testing.assert_allclose(raw * q.deq_scale.reshape(spread), tops[0], rtol=1e-5)
            sums.setdefault(layer.name, []).append(raw)

    feed = calibration_feed(load_config(folder / "config.toml"), prepared(folder))
    data = np.concatenate([b.inputs["data"] for b in feed.batches(4, 2)])
    for batch in np.split(data, 2):
        int8.forward({"data": batch}, observer=watch)
    for name in ("stem", "third", "gate"):
        search = ShiftSearch(sums[name][0].shape[1])
        for batch in sums[name]:
            search.update(batch)
        assert record.layers[name].shift_bit == tuple(search.best().tolist())


def test_all_forms_of_the_net_agree(run):
    folder, report = run
    x = {"data": samples(6, 5)}
    blobs = ["stem", "sum", "third", "gate", "point", "fc"]
    int8 = report.int8_net()
    exact = int8.forward(x, blobs)
    for kind in ("deploy", "fake_quant"):
        files = (f"net_{kind}_model.prototxt", f"net_{kind}_weights.caffemodel")
        loaded = pipeline.load_quantized(*(folder / "out" / name for name in files))
        for blob, y in loaded.forward(x, blobs).items():
            np.testing.assert_array_equal(y, exact[blob], err_msg=f"{kind} {blob}")
    fake = caffeio.read_net(
        folder / "out" / "net_fake_quant_model.prototxt",
        folder / "out" / "net_fake_quant_weights.caffemodel",
    )
    for blob, y in pipeline.FloatNet(fake).forward(x, blobs).items():
        np.testing.assert_allclose(y, exact[blob], atol=0.02 * abs(exact[blob]).max(), err_msg=blob)
    seen: dict[str, np.ndarray] = {}

    def watch(i, layer, bottoms, tops):  # layer after layer, not compiled
        seen.update(zip(layer.tops, tops, strict=True))

    int8.forward(x, observer=watch)
    for blob in blobs:
        np.testing.assert_array_equal(seen[blob], exact[blob], err_msg=blob)


def test_deploy_packs_the_shift(run):
    folder, report = run
    deploy = caffeio.read_net(
        folder / "out" / "net_deploy_model.prototxt",
        folder / "out" / "net_deploy_weights.caffemodel",
    )
    for name, layer in report.record.layers.items():
        (bits,) = deploy.layer(f"{name}_dequant").blobs
        shifts = ((bits >> np.uint64(32)) & np.uint64(0xFF)).tolist()
        assert shifts == list(layer.shift_bit or (0,) * len(layer.scale_w))
        scales = (bits & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.float32)
        np.testing.assert_array_equal(scales, deq(report.record, name))


def test_the_record_goes_round(run):
    _, report = run
    again = parse_record(record_to_text(report.record))
    assert again == report.record
    if report.effort == "original":
        model = pipeline.convert_model(residual_net(), again)
        x = {"data": samples(3, 6)}
        np.testing.assert_array_equal(
            model.int8.forward(x)["fc"], report.int8_net().forward(x)["fc"]
        )
    assert report.accuracy[2].outputs[0].sample_sqnr > 20


def test_the_originals_config_asks_for_it(tmp_path):
    (tmp_path / "q.cfg").write_text("batch_num: 2 joint_quant: true")
    report = pipeline.quantize_model(
        write_job(tmp_path, residual_net(), calibrate='quant_cfg = "q.cfg"')
    )
    assert any(report.record.layers["left"].shift_bit)
    written = tmp_path / "again"
    written.mkdir()
    assert main([str(job(written)), "--write-config", "json", "--quiet"]) == 0
    assert json.loads((written / "out" / "net_config.json").read_text())["joint_quant"] is True


def test_a_loop_of_ones_own_gives_the_same(tmp_path):
    report = pipeline.quantize_model(job(tmp_path))
    net = residual_net()
    config = pipeline.create_config(net, batch_num=2, effort="original", joint_quant=True)
    observer = pipeline.Calibration(net, config)
    for batch in np.split(samples(8), 2):
        observer.feed({"data": batch})
    assert observer.finish() == report.record


@pytest.mark.parametrize("table", ["gain = true", 'search = "auto"'])
def test_what_would_part_joint_scales_is_refused(tmp_path, table):
    with pytest.raises(ConfigError, match="not with joint_quant"):
        pipeline.quantize_model(job(tmp_path, "standard", f"[improve]\n{table}"))


def test_without_it_nothing_is_shifted(tmp_path):
    report = pipeline.quantize_model(write_job(tmp_path, residual_net()))
    assert not any(layer.shift_bit for layer in report.record.layers.values())
