"""What users of the original tool bring: its configs, its command line, its files in and out."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import cv2
import numpy as np
import pytest
from calibration_jobs import keep_often
from conftest import ASSETS
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import samples, small_net, write_job

import caffeio
import pipeline
from caffeio import CaffeFileError
from caffeio.calibration_config import (
    HfmgSettings,
    IfmrSettings,
    LayerSettings,
    QuantConfig,
    parse_quant_cfg,
    quant_cfg_to_text,
)
from caffeio.config_json import config_to_json, parse_config_json, parse_retrain_json
from caffeio.quant_configs import read_any_cfg, read_quant_cfg
from caffeio.retrain_config import parse_retrain_cfg
from pipeline.commands.pycaffe import Transformer
from pipeline.config.amct import with_quant_cfg
from pipeline.config.calibrate import CalibrateConfig
from pipeline.config.load import load_config
from pipeline.config.write import toml_value
from pipeline.quantize.prepare import prepare, read_model
from pipeline.run import main

CASES = ASSETS.parent / "cases" / "vendor"

JSON = """{
 "version": 1, "batch_num": 2, "activation_offset": false, "do_fusion": true,
 "skip_fusion_layers": ["up"],
 "conv1": {"quant_enable": true,
   "activation_quant_params": {"num_bits": 8, "act_algo": "ifmr", "max_percentile": 0.999,
     "min_percentile": 0.99, "search_range": [0.8, 1.2], "search_step": 0.02},
   "weight_quant_params": {"wts_algo": "arq_quantize", "channel_wise": false, "num_bits": 8}},
 "up": {"quant_enable": true},
 "fc": {"quant_enable": false, "weight_quant_params": {"channel_wise": false}},
 "avg": {"activation_quant_params": {"act_algo": "hfmg", "num_of_bins": 2048}}
}"""


def judged(config: Path) -> dict[str, str]:
    """Return the reason for which each layer stays in float, "" if it is quantized."""
    whole = load_config(config)
    return {v.layer: v.reason for v in prepare(whole, read_model(whole)).verdicts}


def test_config_json_acts(tmp_path):
    (tmp_path / "config.json").write_text(JSON)
    config = write_job(tmp_path, calibrate='quant_cfg = "config.json"')
    reasons = judged(config)
    assert [name for name, why in reasons.items() if not why] == ["conv1", "up", "avg"]
    assert reasons["fc"] == reasons["dw"] == "not among only_layers"
    work = prepare(load_config(config), small_net())
    ifmr = work.plans["conv1"].method
    assert (ifmr.search_range, ifmr.search_step) == ((0.8, 1.2), 0.02)
    assert (ifmr.max_percentile, ifmr.min_percentile) == (0.999, 0.99)
    assert not ifmr.asymmetric
    assert not work.plans["conv1"].channel_wise
    assert work.plans["up"].channel_wise
    assert work.plans["avg"].method.num_of_bins == 2048
    assert "up" in work.fused.kept
    report = pipeline.quantize_model(config)
    assert list(report.record.layers) == ["conv1", "up", "avg"]
    assert len(report.record.layers["conv1"].scale_w) == 1
    assert report.record.layers["conv1"].offset_d == 0
    assert report.samples == 8


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ('{"a":' * 100_000, "is not JSON"),
        ('{"version": 2, "a": {}}', "version is 2; only 1"),
        ('{"version": 1, "a": {"quant_enable": false}}', "enables no layer"),
        ('{"a": {"quant_enable": 1}}', "layer 'a': quant_enable is 1; true or false"),
        ('{"a": {"retrain_enable": true}}', "config for retraining; name it in [retrain]"),
        ('{"a": {"activation_quant_params": {"num_bits": 4}}}', "layer 'a': activation_quant_params.num_bits is 4"),
        ('{"a": {"activation_quant_params": {"act_algo": "kl"}}}', "layer 'a': act_algo is 'kl'"),
        ('{"a": {"activation_quant_params": {"search_range": [1]}}}', "two numbers"),
        ('{"a": {"activation_quant_params": {"search_range": [1.2, 0.8]}}}', "0 < start < end"),
        ('{"a": {"activation_quant_params": {"max_percentile": 0.2}}}', "max_percentile is 0.2"),
        ('{"a": {"activation_quant_params": {"max_percentile": "1"}}}', "a number is needed"),
        ('{"a": {"activation_quant_params": 3}}', "an object is needed"),
        ('{"a": {"weight_quant_params": {"wts_algo": "nuq_quantize"}}}', "only arq_quantize"),
        ('{"a": {}, "batch_num": 0}', "batch_num is 0"),
        ('{"a": {}, "skip_fusion_layers": "b"}', "a list of names"),
    ],
)  # fmt: skip
def test_a_wrong_config_json_is_refused_with_its_place(text, says):
    with pytest.raises(CaffeFileError) as caught:
        parse_config_json(text, "config.json")
    assert str(caught.value).startswith("config.json: ")
    assert says in str(caught.value)


def test_settings_without_effect_are_notes():
    config = parse_config_json(
        '{"fakequant_precision_mode": "x", "a": {"dmq_balancer_param": 0.5, '
        '"activation_quant_params": {"fakequant_precision_mode": "y"}}}'
    )
    assert len(config.notes) == 3
    assert "layer 'a': the setting 'dmq_balancer_param' is not known here" in config.notes[2]
    assert parse_config_json("\ufeff" + JSON).batch_num == 2


_percentile = st.floats(0.5001, 1)
_ifmr = st.builds(
    IfmrSettings, st.floats(0.1, 0.9), st.floats(1, 2), st.floats(0.001, 0.1), _percentile,
    _percentile, st.sampled_from([None, True, False]),
)  # fmt: skip
_hfmg = st.builds(HfmgSettings, st.sampled_from([1024, 8192]), st.sampled_from([None, True]))


@given(
    st.dictionaries(
        st.text('abc_/-0é"\\ ', min_size=1).filter(lambda s: s.strip()),
        st.builds(LayerSettings, st.booleans(), st.one_of(_ifmr, _hfmg)),
        min_size=1,
    ),
    st.booleans(),
    st.integers(1, 99),
)
@settings(max_examples=60, deadline=None)
def test_configs_written_are_read_as_they_were(layers, flag, batch_num):
    names = tuple(layers)[: 1 + len(layers) // 2]
    config = QuantConfig(batch_num, flag, False, do_fusion=flag, skip_fusion_layers=names[:1],
                         only_layers=names, layers=layers)  # fmt: skip
    assert parse_config_json(config_to_json(config)) == config
    as_text = QuantConfig(batch_num, flag, False, skip_layers=names, do_fusion=flag, layers=layers)
    again = parse_quant_cfg(quant_cfg_to_text(as_text))
    assert again.layers.keys() == as_text.layers.keys()
    for name, one in again.layers.items():  # numbers are float32 in that format
        two = as_text.layers[name]
        assert one.channel_wise == two.channel_wise
        assert type(one.activation) is type(two.activation)
        for key, value in vars(two.activation).items():
            found = getattr(one.activation, key)
            assert found == value or np.float32(found) == np.float32(value)


@given(st.recursive(
    st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=8,
))  # fmt: skip
@settings(deadline=None)
def test_toml_values_are_read_as_they_were(value):
    assert tomllib.loads(f"x = {toml_value(value)}")["x"] == value


CFG = """
batch_num: 3 activation_offset: false skip_layers: "fc" skip_fusion_layers: "up"
common_config { ifmr_quantize { search_step: 0.05 } }
override_layer_types { layer_type: "Pooling" calibration_config { hfmg_quantize { num_of_bins: 1024 } } }
override_layer_configs { layer_name: "dw" calibration_config { arq_quantize { channel_wise: false } } }
"""


@pytest.mark.parametrize("text", [JSON, CFG], ids=["json", "cfg"])
def test_a_converted_config_means_the_same(tmp_path, capsys, text):
    (tmp_path / "theirs").write_text(text)
    assert main(["--convert-config", str(tmp_path / "theirs")]) == 0
    (tmp_path / "config.toml").write_text(capsys.readouterr().out)
    converted = load_config(tmp_path / "config.toml")
    taken, _ = with_quant_cfg(CalibrateConfig(quant_cfg=tmp_path / "theirs"))
    update = {"quant_cfg": None, "effort": "original", "data": converted.calibrate.data}
    assert converted.calibrate == taken.model_copy(update=update)
    assert converted.calibrate.data[0].source == tmp_path / "calibration"


RETRAIN = """{"version": 1, "batch_num": 4,
 "conv1": {"retrain_enable": true, "retrain_data_config": {"algo": "ulq_quantize", "clip_max": 3.0,
  "clip_min": -2.0, "fixed_min": false}, "retrain_weight_config": {"algo": "arq_retrain", "channel_wise": false}},
 "fc": {"retrain_enable": false}, "up": {}}"""  # fmt: skip


def test_a_retrain_config_json_is_read_and_converted(tmp_path, capsys):
    config = parse_retrain_json(RETRAIN)
    assert config.only_layers == ("conv1", "up")
    assert config.layers["conv1"].clip == (-2.0, 3.0)
    assert config.layers["conv1"].channel_wise is False
    with pytest.raises(CaffeFileError, match=r"name it in \[calibrate\] quant_cfg"):
        parse_retrain_json(JSON)
    (tmp_path / "r.json").write_text(RETRAIN)
    assert read_any_cfg(tmp_path / "r.json") == config
    assert main(["--convert-config", str(tmp_path / "r.json")]) == 0
    (tmp_path / "config.toml").write_text(capsys.readouterr().out)
    retrain = load_config(tmp_path / "config.toml").retrain
    assert retrain.only_layers == ("conv1", "up")
    clip = retrain.override_layer_configs[0].retrain_data_quant_config.ulq_quantize.clip_max_min
    assert (clip.clip_min, clip.clip_max) == (-2.0, 3.0)


@pytest.mark.parametrize("kind", ["json", "cfg"])
def test_the_settings_of_a_run_are_written_as_theirs(tmp_path, kind):
    """What is written, given to a new run, leads to the same record."""
    extra = """
effort = "original"
skip_layers = ["branch"]
skip_layer_types = ["InnerProduct"]
skip_fusion_layers = ["up"]
activation_offset = false
[[calibrate.override_layer_configs]]
layer_name = "dw"
arq_quantize = { channel_wise = false }
hfmg_quantize = { num_of_bins = 1024 }
[[calibrate.override_layer_configs]]
layer_name = "avg"
ifmr_quantize = { search_range_start = 0.8, asymmetric = true }
"""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    assert main([str(write_job(first, calibrate=extra)), "--write-config", kind, "--quiet"]) == 0
    written = first / "out" / {"json": "net_config.json", "cfg": "net_quant.cfg"}[kind]
    assert written.exists()
    config = write_job(second, calibrate=f'quant_cfg = "{written}"')
    assert main([str(config), "--quiet"]) == 0
    for name in ("net_record.txt", "net_deploy_weights.caffemodel"):
        assert (first / "out" / name).read_bytes() == (second / "out" / name).read_bytes()
    if kind == "json":
        whole = json.loads(written.read_text())
        assert [n for n, x in whole.items() if isinstance(x, dict)] == [
            "conv1", "dw", "branch", "up", "avg", "fc"
        ]  # fmt: skip
        assert not whole["branch"]["quant_enable"]


def test_a_search_that_the_original_has_not_is_refused_before_the_work(tmp_path, capsys):
    config = write_job(tmp_path, calibrate="common_config.kl_quantize = {}")
    assert main([str(config), "--write-config", "json"]) == 2
    assert "layer 'conv1' is searched by kl" in capsys.readouterr().err
    assert main([str(config), "--write-config", "cfg", "--plan"]) == 2
    assert not (tmp_path / "out").exists()


def test_a_wrong_layer_type_in_a_cfg_is_named(tmp_path, capsys):
    (tmp_path / "q.cfg").write_text(
        'override_layer_types { layer_type: "ReLU" calibration_config { ifmr_quantize {} } }'
    )
    assert main(["--convert-config", str(tmp_path / "q.cfg")]) == 2
    assert "override_layer_types: must be one of" in capsys.readouterr().err


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the shared cases")
def test_the_shared_config_json_acts_on_lenet(assets):
    net = caffeio.read_net(
        next((assets / "models/lenet_mnist").glob("*.prototxt")),
        next((assets / "models/lenet_mnist").glob("*.caffemodel")),
    )
    config = pipeline.create_config(net, quant_cfg=CASES / "config.json")
    observer = pipeline.Calibration(net, config)
    for _ in range(read_quant_cfg(CASES / "config.json").batch_num):
        shape = (4, *net.layer(net.layers[0].name).param.input_param.shape[0].dim[1:])
        observer.feed({net.inputs[0]: np.random.default_rng(0).random(shape, np.float32)})
    assert list(observer.finish().layers) == ["conv1"]


# ---------------------------------------------------------------- its command line


@pytest.fixture
def raw(tmp_path) -> Path:
    """A folder with net and weights, and three batches of four samples as .bin files."""
    write_job(tmp_path)
    (tmp_path / "bin").mkdir()
    for i, batch in enumerate(np.split(samples(12), 3)):
        batch.tofile(tmp_path / "bin" / f"{i:02}.bin")
    return tmp_path


def words(raw: Path, *more: str) -> list[str]:
    return [
        "calibration", f"--model={raw / 'net.prototxt'}", "--weights", str(raw / "net.caffemodel"),
        f"--save_path={raw / 'results' / 'small_'}", "--input_shape=data:4,3,12,10",
        "--data_dir", str(raw / "bin"), "--data_types=float32", *more,
    ]  # fmt: skip


def test_its_calibration_gives_the_record_of_a_config(raw, capsys):
    assert main(words(raw, "--batch_num=2")) == 0
    assert "Accuracy on 8 samples" in capsys.readouterr().out
    config = raw / "bins.toml"
    config.write_text("""
[model]
prototxt = "net.prototxt"
caffemodel = "net.caffemodel"
[calibrate]
batch_num = 2
batch_size = 4
effort = "original"
[calibrate.data]
source = "bin"
input_shape = [4, 3, 12, 10]
[output]
directory = "out2"
""")
    assert main([str(config), "--quiet"]) == 0
    names = {p.name for p in (raw / "results").iterdir()}
    assert "small__deploy_model.prototxt" in names
    assert "small__record.txt" in names
    record = (raw / "results" / "small__record.txt").read_bytes()
    assert record == (raw / "out2" / "net_record.txt").read_bytes()
    net = small_net()
    observer = pipeline.Calibration(
        net, pipeline.create_config(net, batch_num=2, effort="original")
    )
    for batch in np.split(samples(8), 2):
        observer.feed({"data": batch})
    assert caffeio.record_to_text(observer.finish()).encode() == record
    assert main(words(raw, "--batch_num=2", "--quiet")) == 0  # files are replaced, as there


def test_its_config_comes_along(raw):
    (raw / "q.cfg").write_text('batch_num: 3 skip_layers: "fc"')
    assert main(words(raw, "--calibration_config", str(raw / "q.cfg"), "--quiet")) == 0
    record = caffeio.read_record(raw / "results" / "small__record.txt")
    assert "fc" not in record.layers
    report = json.loads((raw / "results" / "report.json").read_text())
    assert report["samples"] == 12
    assert report["effort"] == "original"


def test_a_save_path_that_ends_in_a_folder_has_no_prefix(raw):
    command = [
        w if not w.startswith("--save_path") else f"--save_path={raw}/r/" for w in words(raw)
    ]
    assert main([*command, "--quiet"]) == 0
    assert (raw / "r" / "deploy_model.prototxt").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("--batch_num=1", "--calibration_config=q.cfg"), "--calibration_config excludes --batch_num"),
        (("--evaluator=e.py",), "--evaluator excludes --input_shape"),
        (("--batch_num=0",), "must be at least 1, not 0"),
        (("--input_shape=data",), "is not of the form name:n,c,h,w"),
        (("--input_shape=data:4,0,2",), "is not of the form name:n,c,h,w"),
        (("--input_shape=a:1,2;b:1,2",), "--data_dir names 1, --input_shape 2 inputs"),
        (("--input_shape=a:1,2;b:2,2", "--data_dir=a;b", "--data_types=float32;float32"), "batches differ"),
    ],
)  # fmt: skip
def test_wrong_words_are_code_2(raw, capsys, change, says):
    with pytest.raises(SystemExit) as caught:
        main(words(raw, *change))
    assert caught.value.code == 2
    assert says in " ".join(capsys.readouterr().err.split())


def without_data(raw: Path) -> list[str]:
    return words(raw)[:5]


def test_data_or_an_evaluator_is_needed(raw, capsys):
    with pytest.raises(SystemExit):
        main(without_data(raw))
    assert "--input_shape is needed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*without_data(raw), "--evaluator=e.py", "--resume"])
    assert "--evaluator excludes --resume" in capsys.readouterr().err


EVALUATOR = """
import glob
import caffe
import numpy as np
from caffe.proto import caffe_pb2

class ModelEvaluator(object):
    def __init__(self):
        self.files = sorted(glob.glob(FOLDER + "/*.bin"))

    def batches(self):
        for name in self.files:
            yield np.fromfile(name, np.float32).reshape(4, 3, 12, 10)

    def calibration(self, model_file, weights_file):
        caffe.set_mode_cpu()
        net = caffe.Net(model_file, weights_file, caffe.TEST)
        net.blobs["data"].reshape(4, 3, 12, 10)
        net.reshape()
        for batch in self.batches():
            net.blobs["data"].data[...] = batch
            out = net.forward()
            assert out["prob"].shape == (4, 10)
            assert (net.blobs["prob"].data == out["prob"]).all()
            assert net.blobs["sum"].data.shape == (4, 8, 12, 10)

    def evaluate(self, model_file, weights_file):
        net = caffe.Net(model_file, caffe.TEST, weights=weights_file)
        return float(np.mean([net.forward_all(data=b)["prob"].max(axis=1).mean() for b in self.batches()]))

    def metric_eval(self, original, new):
        return True, 0
"""


def test_its_calibration_goes_on_where_it_was_interrupted(raw, monkeypatch, capsys):
    assert main([*words(raw), "--quiet"]) == 0
    (record,) = raw.glob("**/*record.txt")
    expected = record.read_bytes()
    record.unlink()
    keep_often(monkeypatch)
    with monkeypatch.context() as patch:

        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("pipeline.jobs.calibration.finish", interrupted)
        assert main([*words(raw), "--quiet"]) == 130
    assert "--resume goes on" in capsys.readouterr().err
    assert main([*words(raw), "--quiet", "--resume"]) == 0
    assert record.read_bytes() == expected
    assert main([*words(raw), "--quiet", "--resume"]) == 1
    assert "there is no calibration to go on from" in capsys.readouterr().err


def test_an_evaluator_for_pycaffe_needs_no_caffe(raw, capsys):
    (raw / "evaluator.py").write_text(EVALUATOR.replace("FOLDER", repr(str(raw / "bin"))))
    command = [*without_data(raw), f"--evaluator={raw / 'evaluator.py'}", "--batch_num", "2"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    by_evaluator = (raw / "results" / "small__record.txt").read_bytes()
    assert main(words(raw, "--batch_num=2", "--quiet")) == 0
    assert (raw / "results" / "small__record.txt").read_bytes() == by_evaluator
    values = [float(line.split(": ")[1]) for line in shown.splitlines() if ": 0." in line]
    want = pipeline.FloatNet(small_net()).forward({"data": samples(12)})["prob"].max(axis=1).mean()
    assert values[0] == pytest.approx(want, rel=1e-5)
    assert values[1] == pytest.approx(want, rel=0.1)
    assert "caffe" not in sys.modules


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1", "defines 0 classes with calibration"),
        ("import caffe\nclass A:\n  def calibration(self, m, w): pass\n  def evaluate(self, m, w): pass", "runs nothing"),
        ("class A:\n  def calibration(self, m, w): 1 / 0\n  def evaluate(self, m, w): pass", ":2 fails: ZeroDivisionError"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
    ],
)  # fmt: skip
def test_an_evaluator_that_fails_is_named(raw, capsys, text, says):
    (raw / "e.py").write_text(text)
    assert main([*without_data(raw), "--evaluator", str(raw / "e.py")]) in (1, 2)
    assert says in capsys.readouterr().err
    assert not (raw / "results").exists()


def test_the_transformer_of_pycaffe_against_opencv():
    """As images are prepared for Caffe: RGB from 0 to 1, to BGR less a mean, channels first."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    image = pixels.astype(np.float32) / 255
    transformer = Transformer({"data": (1, 3, 9, 7)})
    transformer.set_transpose("data", (2, 0, 1))
    transformer.set_channel_swap("data", (2, 1, 0))
    transformer.set_raw_scale("data", 255)
    transformer.set_mean("data", np.array([104, 117, 123]))
    transformer.set_input_scale("data", 0.5)
    want = cv2.dnn.blobFromImage(pixels, 0.5, (7, 9), (104, 117, 123), swapRB=True)[0]
    np.testing.assert_allclose(transformer.preprocess("data", image), want, atol=1e-4)
    small = Transformer({"data": (1, 3, 4, 5)})
    small.set_transpose("data", (2, 0, 1))
    assert small.preprocess("data", image).shape == (3, 4, 5)


def test_too_few_batches_is_an_error(raw, capsys):
    assert main(words(raw, "--batch_num=4")) == 1
    assert "4 batches of 4 are asked for" in capsys.readouterr().err


def test_a_gpu_that_is_not_there(raw, capsys, monkeypatch):
    monkeypatch.setattr("kernels.best_device", lambda: ("cpu", "the processor"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert main(words(raw, "--gpu_id=1")) == 2
    assert "--gpu_id 1: there is no such GPU" in capsys.readouterr().err


def test_several_inputs_each_with_its_folder(tmp_path):
    text = """name: "two"
layer { name: "a" type: "Input" top: "a" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "b" type: "Input" top: "b" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "sum" type: "Eltwise" bottom: "a" bottom: "b" top: "sum" }
layer { name: "fc" type: "InnerProduct" bottom: "sum" top: "fc" inner_product_param { num_output: 2 bias_term: false } }
"""
    from layer_nets import with_blobs

    net = with_blobs(caffeio.parse_net(text), {"fc": [np.eye(2, 3, dtype=np.float32)]})
    caffeio.write_prototxt(net, tmp_path / "n.prototxt")
    caffeio.write_caffemodel(net, tmp_path / "n.caffemodel")
    for name, kind in (("a", np.float32), ("b", np.uint8)):
        (tmp_path / name).mkdir()
        np.full((2, 3), 3, kind).tofile(tmp_path / name / "x.bin")
    assert main([
        "calibration", "--model", str(tmp_path / "n.prototxt"), "--weights", str(tmp_path / "n.caffemodel"),
        "--save_path", str(tmp_path / "r" / "two"), "--input_shape", "a:2,3;b:2,3", "--data_dir",
        f"{tmp_path / 'a'};{tmp_path / 'b'}", "--data_type", "float32;uint8", "--quiet",
    ]) == 0  # fmt: skip
    record = caffeio.read_record(tmp_path / "r" / "two_record.txt")
    scale = record.layers["fc"].scale_d
    assert 6 <= scale * 255 <= 6 * 1.3


def test_its_convert_folds_as_the_original_does(raw):
    assert main(words(raw, "--quiet")) == 0
    record = raw / "results" / "small__record.txt"
    assert main([
        "convert", "--model", str(raw / "net.prototxt"), "--weights", str(raw / "net.caffemodel"),
        f"--record_file={record}", f"--save_path={raw / 'c' / 'small'}", "--quiet",
    ]) == 0  # fmt: skip
    deploy = caffeio.read_net(
        raw / "c" / "small_deploy_model.prototxt", raw / "c" / "small_deploy_weights.caffemodel"
    )
    assert "bn1" not in {x.name for x in deploy.layers}
    assert "up_bn" in {x.name for x in deploy.layers}


# ---------------------------------------------------------------- a first config


def test_init_writes_a_config_that_runs(tmp_path, capsys, monkeypatch):
    write_job(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").unlink()
    assert main(["init", "net.prototxt", "net.caffemodel"]) == 0
    text = (tmp_path / "config.toml").read_text()
    assert "# input 'data': 1×3×12×10" in text
    assert "crop = [12, 10]" in text
    for name in ("conv1", "dw", "branch", "up", "avg", "fc"):
        assert f'# "{name}",' in text
    assert '# "dilated"' not in text
    assert "Convolution 8×12×10, 0.0259 million MACs" in text
    # filled in, it runs
    text = text.replace('"calibration"', '"data.npz"').replace('"val.txt"', '"data.npz"')
    text = text.replace("crop =", "# crop =").replace("batch_num = 4 ", "batch_num = 2 ")
    (tmp_path / "config.toml").write_text(text.replace('# "fc",', '"fc",'))
    capsys.readouterr()
    assert main(["config.toml"]) == 0
    assert "named in skip_layers" in capsys.readouterr().out
    assert (tmp_path / "quantized" / "small_record.txt").exists()
    assert main(["init", "net.prototxt"]) == 2
    assert "config.toml exists already" in capsys.readouterr().err


def test_init_without_weights_prints_where_it_is_asked_to(tmp_path, capsys, monkeypatch):
    write_job(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.caffemodel").unlink()
    assert main(["init", "net.prototxt", "-o", "-"]) == 0
    text = capsys.readouterr().out
    assert 'caffemodel = "net.caffemodel"   # not looked at' in text
    assert tomllib.loads(text)["calibrate"]["skip_layers"] == []
    (tmp_path / "sub").mkdir()
    assert main(["init", "net.prototxt", "-o", "sub/c.toml"]) == 0
    assert (
        tomllib.loads((tmp_path / "sub/c.toml").read_text())["model"]["prototxt"]
        == "../net.prototxt"
    )
    assert main(["init", "none.prototxt", "-o", "-"]) == 2
    assert "none.prototxt" in capsys.readouterr().err


def test_a_config_or_one_to_convert_is_needed(capsys):
    for command in ([], ["a.toml", "--convert-config", "b.cfg"]):
        with pytest.raises(SystemExit) as caught:
            main(command)
        assert caught.value.code == 2
    assert "one config is needed" in capsys.readouterr().err
    assert parse_retrain_cfg("batch_num: 1").only_layers == ()
