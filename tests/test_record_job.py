"""Models from a record, and written models run back: --from-record, convert_model, load_quantized."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from layer_nets import with_blobs
from small_nets import samples, small_net, write_job

import caffeio
import pipeline
from caffeio.record import Record, read_record, write_record
from pipeline.errors import PipelineError
from pipeline.run import main

MODELS = ("net_fake_quant_model.prototxt", "net_fake_quant_weights.caffemodel",
          "net_deploy_model.prototxt", "net_deploy_weights.caffemodel", "net_quant.json",
          "net_record.txt")  # fmt: skip


def forms(folder: Path, kind: str) -> tuple[Path, Path]:
    return folder / f"net_{kind}_model.prototxt", folder / f"net_{kind}_weights.caffemodel"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A folder with a job of the original's effort, and its results in out/."""
    folder = tmp_path_factory.mktemp("original")
    assert main([str(write_job(folder, calibrate='effort = "original"')), "--quiet"]) == 0
    return folder


def test_a_record_gives_the_files_that_its_calibration_wrote(original, tmp_path, capsys):
    """With effort = original all that the models hold comes from record and float net."""
    record = original / "out" / "net_record.txt"
    config = tmp_path / "convert.toml"
    config.write_text(f'''
[model]
prototxt = "{original / "net.prototxt"}"
caffemodel = "{original / "net.caffemodel"}"
[record]
file = "{record}"
''')
    assert main([str(config), "--output", str(tmp_path / "again")]) == 0
    for name in MODELS:
        one, two = ((f / name).read_bytes() for f in (original / "out", tmp_path / "again"))
        assert one == two, name
    printed = capsys.readouterr().out
    assert "models are not compared" in printed
    assert "Accuracy" not in printed
    report = json.loads((tmp_path / "again" / "report.json").read_text())
    assert report["accuracy"] == []
    assert report["samples"] == 0


def test_the_option_takes_data_and_output_from_the_config(original, tmp_path, capsys):
    config = original / "config.toml"
    record = original / "out" / "net_record.txt"
    where = ["--from-record", str(record), "--output", str(tmp_path)]
    assert main([str(config), *where]) == 0
    assert "Accuracy on 16 samples" in capsys.readouterr().out
    calibrated = json.loads((original / "out" / "report.json").read_text())
    converted = json.loads((tmp_path / "report.json").read_text())
    assert converted["accuracy"] == calibrated["accuracy"]
    plan = [str(config), *where[:2], "--output", str(tmp_path / "new"), "--plan"]
    assert main(plan) == 0
    assert "No calibration: the factors are those of the record." in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["deploy", "fake_quant"])
@pytest.mark.parametrize("effort", ["original", "best"])
def test_written_models_run_back_bit_for_bit(tmp_path, kind, effort):
    report = pipeline.quantize_model(write_job(tmp_path, calibrate=f'effort = "{effort}"'))
    loaded = pipeline.load_quantized(*forms(tmp_path / "out", kind))
    exact = report.int8_net()
    assert set(loaded.layers) == set(exact.layers)
    for name, q in exact.layers.items():
        other = loaded.layers[name]
        assert other.data == q.data
        np.testing.assert_array_equal(other.deq_scale, q.deq_scale)
        for one, two in ((other.weights, q.weights), (other.bias, q.bias)):
            np.testing.assert_array_equal(one, two)
    x = {"data": samples(5, 7)}
    blobs = ["prob", "sum", "avg", "fc"]
    for blob, y in exact.forward(x, blobs).items():
        np.testing.assert_array_equal(loaded.forward(x, blobs)[blob], y, err_msg=blob)


def test_layers_that_the_record_does_not_name_stay_in_float(original):
    record = read_record(original / "out" / "net_record.txt")
    few = Record({name: record.layers[name] for name in ("conv1", "fc")})
    model = pipeline.convert_model(small_net(), few)
    assert list(model.int8.layers) == ["conv1", "fc"]
    assert [x.type for x in model.deploy.layers].count("Quant") == 2
    assert model.warnings == ()


def test_skip_fusion_keeps_one_layer_as_it_is(original):
    record = read_record(original / "out" / "net_record.txt")
    net = small_net()
    plain = pipeline.create_config(net, effort="original", skip_fusion_layers=["conv1"])
    observer = pipeline.Calibration(net, plain)
    observer.feed({"data": samples(4)})
    kept = observer.finish()
    assert kept.layers["conv1"].skip_fusion
    mixed = Record({**record.layers, "conv1": kept.layers["conv1"]})
    model = pipeline.convert_model(net, mixed)
    names = [x.name for x in model.deploy.layers]
    assert "bn1" in names
    assert "up_bn" not in names
    assert model.warnings == ()


def test_the_original_conversion_folds_into_convolutions_only():
    net = small_net()
    layers = {x.name: x for x in net.layers}
    scale = layers["up_scale"]
    layers["up_scale"] = replace(scale, blobs=(scale.blobs[0] / 16, scale.blobs[1]))
    net = net.with_layers(tuple(layers.values()))
    observer = pipeline.Calibration(net, pipeline.create_config(net, effort="original"))
    observer.feed({"data": samples(4)})
    record = observer.finish()
    model = pipeline.convert_model(net, record, fold="convolution")
    names = [x.name for x in model.deploy.layers]
    assert "bn1" not in names
    assert "up_bn" in names  # a Deconvolution's
    # the factors of the folded Deconvolution are not those of the plain one
    (warning,) = model.warnings
    assert "layer 'up': 6 of its 6 weight scales" in warning
    assert pipeline.convert_model(net, record).warnings == ()


def test_save_writes_what_is_asked_for(original, tmp_path):
    record = original / "out" / "net_record.txt"
    model = pipeline.convert_model(small_net(), record)
    model.save("Both", tmp_path / "both" / "net")
    for name in MODELS:
        assert (tmp_path / "both" / name).read_bytes() == (original / "out" / name).read_bytes()
    model.save("Deploy", f"{tmp_path}/deploy/")
    assert {p.name for p in (tmp_path / "deploy").iterdir()} == {
        "deploy_model.prototxt", "deploy_weights.caffemodel", "record.txt", "quant.json",
        "manifest.json",
    }  # fmt: skip
    model.save("Fakequant", tmp_path / "fake" / "a_")
    assert (tmp_path / "fake" / "a__fake_quant_model.prototxt").exists()
    with pytest.raises(
        ValueError, match=r"save_type is 'both', not one of Fakequant, Deploy, Both"
    ):
        model.save("both", tmp_path / "x")


def wrong(record: Record, name: str, **changes: object) -> Record:
    return Record({**record.layers, name: replace(record.layers[name], **changes)})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: Record({"conv2": r.layers["conv1"]}), "does not have; did you mean 'conv1'?"),
        (lambda r: Record({"dilated": r.layers["dw"]}), "cannot be quantized: dilation is 2, not 1"),
        (lambda r: Record({"bn1": r.layers["dw"]}), "which is folded into 'conv1'"),
        (lambda r: Record({}), "the record names no layer"),
        (lambda r: wrong(r, "conv1", scale_w=(1.0,) * 3, offset_w=(0,) * 3), "does not fit"),
        (lambda r: wrong(r, "fc", scale_w=(1.0,) * 10, offset_w=(0,) * 10),
         "has 10 scale_w, but InnerProduct has one"),
        (lambda r: wrong(r, "conv1", scale_w=(), offset_w=()), "has no scale_w"),
    ],
)  # fmt: skip
def test_a_record_of_another_net_is_refused(original, change, says):
    record = read_record(original / "out" / "net_record.txt")
    with pytest.raises(PipelineError) as caught:
        pipeline.convert_model(small_net(), change(record))
    assert says in str(caught.value)


def test_a_record_of_other_weights_is_doubted(original):
    record = read_record(original / "out" / "net_record.txt")
    net = small_net()
    fc = net.layer("fc")
    layers = {x.name: x for x in net.layers}
    layers["fc"] = replace(fc, blobs=(fc.blobs[0] * np.float32(8), fc.blobs[1]))
    model = pipeline.convert_model(net.with_layers(tuple(layers.values())), record)
    assert len(model.warnings) == 1
    assert "layer 'fc': 1 of its 1 weight scales are far" in model.warnings[0]


def test_a_record_of_another_size_is_doubted(original, tmp_path, capsys):
    record = read_record(original / "out" / "net_record.txt")
    write_record(wrong(record, "dw", height=7), tmp_path / "r.txt")
    assert main([str(original / "config.toml"), "--from-record", str(tmp_path / "r.txt"),
                 "--output", str(tmp_path / "out")]) == 0  # fmt: skip
    assert "layer 'dw' reads 8×12×10 values, but 8×7×10 in the record" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize("kind", ["deploy", "fake_quant"])
def test_a_quantized_model_is_refused_by_name(original, kind):
    net = caffeio.read_net(*forms(original / "out", kind))
    record = read_record(original / "out" / "net_record.txt")
    for attempt in (
        lambda: pipeline.convert_model(net, record),
        lambda: pipeline.Calibration(net),
    ):
        with pytest.raises(caffeio.NetError, match=r"'conv1_quant'.*quantized already"):
            attempt()


def test_a_quantized_model_is_refused_by_the_command(original, tmp_path, capsys):
    prototxt, caffemodel = forms(original / "out", "deploy")
    text = (original / "config.toml").read_text()
    text = text.replace('"net.prototxt"', f'"{prototxt}"')
    text = text.replace('"net.caffemodel"', f'"{caffemodel}"')
    text = text.replace('"data.npz"', f'"{original / "data.npz"}"')
    (tmp_path / "again.toml").write_text(text)
    assert main([str(tmp_path / "again.toml")]) == 1
    assert "'conv1_quant'" in (said := capsys.readouterr().err)
    assert "quantized already" in said


def test_a_float_model_is_not_loaded_as_quantized(original):
    with pytest.raises(caffeio.NetError, match="no Quant layers"):
        pipeline.load_quantized(original / "net.prototxt", original / "net.caffemodel")


def test_a_broken_quantized_model_names_the_layer(original, tmp_path):
    prototxt, caffemodel = forms(original / "out", "deploy")
    net = caffeio.read_net(prototxt, caffemodel)
    left = net.with_layers(tuple(x for x in net.layers if x.name != "dw_dequant"))
    caffeio.write_prototxt(left, tmp_path / "a.prototxt")
    caffeio.write_caffemodel(left, tmp_path / "a.caffemodel")
    with pytest.raises(caffeio.NetError, match=r"'dw'.*no DeQuant layer follows"):
        pipeline.load_quantized(tmp_path / "a.prototxt", tmp_path / "a.caffemodel")


def test_settings_that_exclude_each_other(original, tmp_path, capsys):
    text = (original / "config.toml").read_text() + "[fallback]\nmax_drop = 1\n"
    (original / "both.toml").write_text(text)
    assert main([str(original / "both.toml"), "--from-record", "record.txt"]) == 2
    assert "'record' and 'fallback' exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize("effort", ["original", "standard", "best"])
def test_batches_fed_give_the_record_of_a_run_on_files(tmp_path, effort):
    """The same samples in the same order: `first`, as a program gives them."""
    config = write_job(tmp_path, calibrate=f'effort = "{effort}"\nsamples = "first"')
    report = pipeline.quantize_model(config)
    net = small_net()
    observer = pipeline.Calibration(net, pipeline.create_config(net, batch_num=2, effort=effort))
    for batch in np.split(samples(8), 2):
        observer.feed({"data": batch})
    record = observer.finish()
    assert caffeio.record_to_text(record) == (tmp_path / "out" / "net_record.txt").read_text()
    assert report.record == record
    observer.save("Both", tmp_path / "fed" / "net")
    for name in MODELS:
        one, two = ((tmp_path / f / name).read_bytes() for f in ("out", "fed"))
        assert one == two, name


def test_samples_of_a_program_may_be_overwritten(tmp_path):
    """A loop often fills one array again and again."""
    net, batch = small_net(), np.empty((4, 3, 12, 10), np.float32)
    one, two = (
        pipeline.Calibration(net, pipeline.create_config(net, batch_num=2)) for _ in range(2)
    )
    for part in np.split(samples(8), 2):
        batch[:] = part
        one.feed({"data": batch})
        two.feed({"data": part})
    batch[:] = np.nan
    assert one.finish() == two.finish()
    np.testing.assert_array_equal(
        one.model.int8.layers["fc"].bias, two.model.int8.layers["fc"].bias
    )


def test_wrong_steps_are_named():
    net = small_net()
    observer = pipeline.Calibration(net, pipeline.create_config(net, effort="original"))
    with pytest.raises(PipelineError, match="no batch was fed"):
        observer.finish()
    with pytest.raises(PipelineError, match="layer 'conv1' reads blob 'data', which in batch 0"):
        observer.feed({"data": np.full((1, 3, 12, 10), np.nan, np.float32)})
    observer = pipeline.Calibration(net, pipeline.create_config(net, effort="original"))
    observer.feed({"data": samples(2)})
    with pytest.raises(PipelineError, match="batch_num is 1, but another batch"):
        observer.feed({"data": samples(2)})
    observer.finish()
    with pytest.raises(PipelineError, match="is finished"):
        observer.feed({"data": samples(2)})
    with pytest.raises(pipeline.errors.ConfigError, match="reads all batches twice"):
        pipeline.Calibration(net, pipeline.create_config(net, exact=True))
    with pytest.raises(pipeline.errors.ConfigError, match="has no layer 'conv9'"):
        pipeline.create_config(net, skip_layers=["conv9"])
    with pytest.raises(pipeline.errors.ConfigError, match="'batch_nun'"):
        pipeline.create_config(net, batch_nun=1)


def test_an_inner_product_folds_as_in_calibration(tmp_path):
    """InnerProduct + BatchNorm + Scale: folded with fold = all, not by the original's conversion."""
    text = """
    name: "fc" layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 6 } } }
    layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 4 } }
    layer { name: "bn" type: "BatchNorm" bottom: "fc" top: "fc" }
    layer { name: "scale" type: "Scale" bottom: "fc" top: "fc" scale_param { bias_term: true } }
    """
    rng = np.random.default_rng(3)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    net = with_blobs(caffeio.parse_net(text), {
        "fc": [normal(4, 6), normal(4)], "bn": [normal(4), abs(normal(4)) + 1, np.ones(1, np.float32)],
        "scale": [normal(4), normal(4)],
    })  # fmt: skip
    observer = pipeline.Calibration(net, pipeline.create_config(net, effort="original"))
    observer.feed({"data": normal(8, 6)})
    record = observer.finish()
    x = {"data": normal(5, 6)}
    whole = pipeline.convert_model(net, record)
    assert [layer.name for layer in whole.int8.net.layers] == ["data", "fc"]
    np.testing.assert_array_equal(whole.int8.forward(x)["fc"], observer.model.int8.forward(x)["fc"])
    part = pipeline.convert_model(net, record, fold="convolution")
    assert [layer.name for layer in part.int8.net.layers] == ["data", "fc", "bn", "scale"]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("LSTMQuant", "gates of an LSTM is not public"),
        ("LSTMCalibration", "that the Ascend tool calibrates with"),
        ("IFMR", "that the Ascend tool calibrates with"),
        ("SearchN", "that the Ascend tool calibrates with"),
    ],
)
def test_layers_of_the_originals_other_nets_are_refused_by_name(kind, says):
    text = f"""
    layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 1 dim: 3 }} }} }}
    layer {{ name: "x" type: "{kind}" bottom: "data" top: "x" }}
    """
    with pytest.raises(caffeio.NetError, match=f"'x': type '{kind}' cannot run.*{says}"):
        pipeline.FloatNet(caffeio.parse_net(text))


def test_what_is_known_of_quantized_lstm_is_said():
    text = """
    layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 2 dim: 3 } } }
    layer { name: "cont" type: "Input" top: "cont" input_param { shape { dim: 4 dim: 2 } } }
    layer { name: "lstm" type: "LSTM" bottom: "data" bottom: "cont" top: "h" recurrent_param { num_output: 2 } }
    layer { name: "fc" type: "InnerProduct" bottom: "h" top: "fc" inner_product_param { num_output: 2 axis: 2 } }
    layer { name: "out" type: "InnerProduct" bottom: "h" top: "out" inner_product_param { num_output: 2 } }
    """
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    net = with_blobs(caffeio.parse_net(text), {
        "lstm": [normal(8, 3), normal(8), normal(8, 2)], "fc": [normal(2, 2), normal(2)],
        "out": [normal(2, 4), normal(2)],
    })  # fmt: skip
    record = Record({"lstm": caffeio.LayerRecord(0.1, 0, (0.1,), (0,))})
    with pytest.raises(PipelineError, match=r"'lstm'.*LSTM has no INT8 form.*not public"):
        pipeline.convert_model(net, record)
    dequant = """
    layer { name: "d" type: "DeQuant" bottom: "data" top: "d" dequant_param { layer_type: "LSTM_X"
      deqscale: 1 deqscale: 1 deqscale: 1 deqscale: 1 } }
    """
    held = caffeio.parse_net(text.split('layer { name: "cont"', maxsplit=1)[0] + dequant)
    with pytest.raises(caffeio.NetError, match=r"layer_type is LSTM_X.*not public"):
        pipeline.FloatNet(held).forward({"data": normal(4, 2, 3)})
