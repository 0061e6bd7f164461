"""What an effort does, and that nothing is kept that makes a net worse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from layer_nets import with_blobs
from small_nets import small_net, write_job

import caffeio
import pipeline
from caffeio import Net
from pipeline.config.improve import memory_bytes
from pipeline.errors import ConfigError
from pipeline.quantize import improve
from pipeline.quantize.corrections import Corrected, LayerCorrection, applied
from pipeline.quantize.measure import Closeness
from pipeline.quantize.samples import samples_of
from pipeline.report.values import Report


def batches(count: int, size: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"data": rng.normal(size=(size, 3, 12, 10)).astype(np.float32)} for _ in range(count)]


def lengths(parts: tuple) -> list[int]:
    return [len(part["data"]) for part in parts]


def steps(report: Report) -> dict[str, bool]:
    return {trial.step: trial.kept for trial in report.trials}


@pytest.mark.parametrize(
    ("count", "size", "want", "held"),
    [(4, 8, [8, 8, 8, 2, 6], 1), (1, 4, [4], 0), (1, 5, [4, 1], 1), (7, 3, [8, 8, 1, 4], 1),
     (40, 5, [8] * 12 + [7] + [8, 8, 8, 1], 4)],
)  # fmt: skip
def test_a_fifth_of_the_samples_is_held_back(count: int, size: int, want: list, held: int):
    given = batches(count, size)
    samples = samples_of(small_net(), given)
    assert lengths(samples.parts) == want
    assert samples.held == (False,) * (len(want) - held) + (True,) * held
    whole = np.concatenate([b["data"] for b in given])[: sum(want)]
    np.testing.assert_array_equal(np.concatenate([p["data"] for p in samples.parts]), whole)
    assert lengths(samples.judges) == (want[-held:] if held else want)


def test_batches_that_belong_together_stay_whole():
    net = small_net()
    text = caffeio.to_prototxt(net).replace('bottom: "fc"\n', 'bottom: "flat"\n')
    text += (
        'layer { name: "flat" type: "Reshape" bottom: "fc" top: "flat" '
        "reshape_param { shape { dim: 1 dim: -1 } } }"
    )
    mixing = caffeio.parse_net(text.replace('bottom: "flat"\n', 'bottom: "fc"\n', 1))
    mixing = with_blobs(mixing, {x.name: x.blobs for x in net.layers})
    samples = samples_of(mixing, batches(6, 3))
    assert lengths(samples.parts) == [3] * 6
    assert samples.held == (False,) * 5 + (True,)


def test_each_part_can_be_switched(tmp_path: Path):
    config = write_job(tmp_path, extra="[improve]\ngain = false\nrounding = 'compensated'")
    report = pipeline.quantize_model(config)
    assert set(steps(report)) == {"nearest rounding", "compensated rounding", "bias correction"}
    assert report.effort == "standard"


def test_all_parts_off_is_plain_rounding(tmp_path: Path):
    config = write_job(tmp_path, extra="[improve]\ngain = false\nbias = false")
    report = pipeline.quantize_model(config)
    assert report.trials == ()


def test_what_makes_it_worse_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def harmful(
        net: Net, record: object, parts: object, held: object, *rest: object, **more: object
    ) -> Corrected:
        changed = {}
        for name, layer in record.layers.items():
            outs = len(net.layer(name).blobs[1]) if len(net.layer(name).blobs) > 1 else 0
            if outs:
                far = np.full(outs, 3.0)
                changed[name] = LayerCorrection(None, np.ones(len(layer.scale_w)), far, far)
        return applied(net, record, changed)

    plain = pipeline.quantize_model(
        write_job(tmp_path, extra="[improve]\ngain = false\nbias = false")
    )
    monkeypatch.setattr(improve, "correct", harmful)
    (tmp_path / "again").mkdir()
    report = pipeline.quantize_model(write_job(tmp_path / "again"))
    assert steps(report) == {
        "nearest rounding": True, "bias correction": False, "gain correction": False,
    }  # fmt: skip
    assert report.record == plain.record
    for kind in ("deploy_weights", "fakequant_weights", "record"):
        assert report.files[kind].read_bytes() == plain.files[kind].read_bytes()


def test_equalized_channels_that_meet_a_bound_are_undone(tmp_path: Path, monkeypatch):
    original = improve.equalize

    def careless(net: Net, *rest: object, **more: object) -> object:
        done = original(net, *rest, **more)
        blobs = {"conv1": [b * np.float32(1.5) for b in done.net.layer("conv1").blobs]}
        return replace(done, net=with_blobs(done.net, blobs))

    monkeypatch.setattr(improve, "equalize", careless)
    report = pipeline.quantize_model(write_job(tmp_path, calibrate='effort = "best"'))
    assert "equalized channels" not in steps(report)
    assert any("left as they were" in note for note in report.notes)


def test_too_few_samples_are_said_to_be(tmp_path: Path):
    config = write_job(tmp_path)
    config.write_text(config.read_text().replace("batch_num = 2\nbatch_size = 4", "batch_num = 2"))
    report = pipeline.quantize_model(config)
    assert any("too few calibration samples" in note for note in report.notes)


def test_a_config_of_the_ascend_tool_means_the_original(tmp_path: Path):
    (tmp_path / "quant.cfg").write_text("batch_num: 2\nactivation_offset: true\n")
    config = write_job(tmp_path, calibrate='quant_cfg = "quant.cfg"')
    assert pipeline.quantize_model(config).effort == "original"
    text = config.read_text().replace("[calibrate]", '[calibrate]\neffort = "standard"')
    config.write_text(text.replace('"out"', '"out2"'))
    assert pipeline.quantize_model(config).effort == "standard"


def test_the_record_of_the_report_makes_the_net_that_was_measured(tmp_path: Path):
    report = pipeline.quantize_model(write_job(tmp_path, calibrate='effort = "best"'))
    x = np.load(tmp_path / "data.npz")["data"][8:]
    exact = pipeline.FloatNet(small_net()).forward({"data": x}, ["fc"])["fc"]
    closeness = Closeness()
    closeness.update(exact, report.int8_net().forward({"data": x}, ["fc"])["fc"])
    measured = next(s for s in report.accuracy if s.model == "int8").outputs[0]
    assert measured.blob == "fc"
    assert measured.sqnr == pytest.approx(closeness.sqnr, abs=1e-6)
    assert measured.sample_sqnr == pytest.approx(closeness.sample_sqnr, abs=1e-6)
    with pytest.raises(ValueError, match="holds no net"):
        replace(report, net_quantized=None).int8_net()


def test_a_mean_of_samples_counts_each_alike():
    closeness = Closeness()
    exact = np.array([[100.0], [1.0], [5.0], [0.0]])
    closeness.update(exact, np.array([[101.0], [1.1], [5.0], [0.5]]))
    assert closeness.sample_sqnr == pytest.approx((40 + 20) / 2)
    assert closeness.sqnr == pytest.approx(10 * np.log10(10026 / 1.26))
    assert np.isnan(Closeness().sample_sqnr)
    same = Closeness()
    same.update(exact, exact)
    assert same.sample_sqnr == np.inf


@pytest.mark.parametrize(("text", "size"), [("2G", 2 << 30), ("1.5M", 3 << 19), ("800", 800)])
def test_sizes_of_memory(text: str, size: int):
    assert memory_bytes(text) == size


def test_a_size_that_is_none_is_an_error(tmp_path: Path):
    config = write_job(tmp_path, extra='[improve]\nmemory = "lots"')
    with pytest.raises(ConfigError, match=r"improve\.memory.*'2G'"):
        pipeline.quantize_model(config)
    config.write_text(config.read_text().replace("[calibrate]", '[calibrate]\neffort = "max"'))
    with pytest.raises(ConfigError, match=r"calibrate\.effort"):
        pipeline.quantize_model(config)


def test_a_net_made_for_one_batch_is_measured_in_it(tmp_path):
    text = """name: "net"
    layer { name: "data" type: "Input" top: "data"
            input_param { shape { dim: 4 dim: 3 dim: 12 dim: 10 } } }
    layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
            convolution_param { num_output: 2 kernel_size: 3 } }
    layer { name: "flat" type: "Reshape" bottom: "conv" top: "flat"
            reshape_param { shape { dim: 4 dim: -1 } } }
    layer { name: "fc" type: "InnerProduct" bottom: "flat" top: "fc"
            inner_product_param { num_output: 10 } }"""
    rng = np.random.default_rng(0)
    conv, fc = rng.normal(size=(2, 3, 3, 3)), rng.normal(size=(10, 2 * 10 * 8))
    blobs = {"conv": [conv, np.zeros(2)], "fc": [fc, np.zeros(10)]}
    config = write_job(tmp_path, with_blobs(caffeio.parse_net(text), blobs))
    config.write_text(config.read_text().replace("batch_size = 5", "batch_size = 4"))
    report = pipeline.quantize_model(config)
    errors = {layer.layer: layer.error for layer in report.layers if layer.quantized}
    assert set(errors) == {"conv", "fc"}
    assert all(20 < error.sqnr < 80 for error in errors.values())
