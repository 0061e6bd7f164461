"""The config: what it accepts, what it says of mistakes, and which setting wins."""

from __future__ import annotations

from pathlib import Path

import pytest
from layer_nets import one_layer
from small_nets import small_net

import kernels
from pipeline.config.amct import with_quant_cfg
from pipeline.config.calibrate import CalibrateConfig
from pipeline.config.load import load_config
from pipeline.errors import ConfigError
from pipeline.quantize.assign import check_names, layer_plan
from pipeline.quantize.feed import to_transform

BASE = '[model]\nprototxt = "n.prototxt"\ncaffemodel = "n.caffemodel"\n'
CONV = one_layer(
    "Convolution", "convolution_param { num_output: 1 kernel_size: 1 }", [(1, 1, 2, 2)]
)
POOL = one_layer("Pooling", "pooling_param { pool: AVE kernel_size: 1 }", [(1, 1, 2, 2)])


def load(tmp_path: Path, text: str):
    path = tmp_path / "c.toml"
    path.write_text(BASE + text)
    return load_config(path)


def calibrate(tmp_path: Path, text: str) -> CalibrateConfig:
    return load(tmp_path, f'[calibrate]\ndata.source = "d"\n{text}').calibrate


def test_paths_start_from_the_config(tmp_path):
    config = load(tmp_path, '[calibrate]\ndata.source = "images"\n[transform]\nmean = "m.npy"')
    assert config.model.prototxt == tmp_path / "n.prototxt"
    assert config.calibrate.data[0].source == tmp_path / "images"
    assert config.transform.mean == tmp_path / "m.npy"
    assert config.output.directory == tmp_path / "quantized"


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = load(tmp_path, '[calibrate]\ndata.source = "~/images"\n[transform]\nmean = "a~.npy"')
    assert config.calibrate.data[0].source == tmp_path / "home" / "images"
    assert config.transform.mean == tmp_path / "a~.npy"


@pytest.mark.parametrize(
    ("lines", "scale"),
    [
        ("scale = 2", 2.0),
        ("scale = [1, 2, 4]", (1.0, 2.0, 4.0)),
        ("std = [2, 4, 8]", (0.5, 0.25, 0.125)),
        ("scale = 4\nstd = [2, 4, 8]", (2.0, 1.0, 0.5)),
        ("scale = [1, 2, 4]\nstd = [2, 4, 8]", (0.5, 0.5, 0.5)),
    ],
)
def test_scale_and_std_of_each_channel(tmp_path, lines, scale):
    config = load(tmp_path, f'[calibrate]\ndata.source = "d"\n[transform]\n{lines}')
    assert to_transform(config.transform).scale == scale


def test_scale_and_std_of_different_lengths(tmp_path):
    config = load(
        tmp_path, '[calibrate]\ndata.source = "d"\n[transform]\nscale = [1, 2]\nstd = [1, 2, 3]'
    )
    with pytest.raises(ConfigError, match=r"\[transform\]"):
        to_transform(config.transform)


def test_defaults_are_the_tools_own(tmp_path):
    c = calibrate(tmp_path, "")
    assert (c.batch_num, c.activation_offset, c.do_fusion, c.joint_quant) == (1, True, True, False)
    plan = layer_plan(CONV.layers[-1], c)
    assert plan.channel_wise
    assert plan.method == kernels.Ifmr((0.7, 1.3), 0.01, 0.999999, 0.999999, True)
    assert not layer_plan(POOL.layers[-1], c).channel_wise


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[calibrate]\nbatch_nun = 2", ["'calibrate.batch_nun'", "did you mean 'batch_num'", "exact"]),
        ("[calibrate]\nbatch_num = 0", ["'calibrate.batch_num'", "greater than or equal to 1", "0"]),
        ("[calibrate]\nbatch_num = '2'", ["'calibrate.batch_num'", "integer", "'2'"]),
        ("[calibrate]\ndata.source = 'd'\ndata.knd = 'x'", ["'calibrate.data.knd'", "'kind'"]),
        ("[calibrate]\ndata.kind = 'folder'", ["calibrate.data", "source is needed"]),
        ("[calibrate.common_config.ifmr_quantize]\nmax_percentile = 0.5",
         ["common_config.ifmr_quantize.max_percentile", "greater than 0.5"]),
        ("[calibrate.common_config.ifmr_quantize]\nsearch_step = 0.7",
         ["common_config.ifmr_quantize", "search_step must be at most"]),
        ("[calibrate.common_config.ifmr_quantize]\nsearch_range_start = 1.3",
         ["search_range_start must be less than"]),
        ("[calibrate.common_config.hfmg_quantize]\nnum_of_bins = 1000", ["num_of_bins", "1024"]),
        ("[calibrate.common_config]\nifmr_quantize = {}\nhfmg_quantize = {}", ["exclude each other"]),
        ("[[calibrate.override_layer_types]]\nlayer_type = 'Poling'", ["layer_type", "'Pooling'"]),
        ("[calibrate]\n[transform]\nresize = 'big'", ["'transform.resize'", "shorter side", "'big'"]),
        ("[calibrate]\n[transform]\nstd = [0]", ["'transform.std'", "above 0", "[0]"]),
        ("[calibrate]\n[transform]\nstd = [1, -2, 3]", ["'transform.std'", "above 0", "-2"]),
        ("[calibrate]\n[output]\nprefix = 'a/b'", ["'output.prefix'", "'a/b'"]),
        ("[calibrat]", ["unknown key 'calibrat'", "did you mean 'calibrate'"]),
        ("", ["'calibrate' is missing"]),
        ("[calibrate", ["is not TOML", "Expected ']'"]),
    ],
)  # fmt: skip
def test_a_mistake_names_key_cure_and_value(tmp_path, text, parts):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert "pydantic" not in str(caught.value)
    assert all(line.startswith(str(tmp_path)) for line in str(caught.value).splitlines()[:1])


def test_a_config_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read: No such file"):
        load_config(tmp_path / "nowhere.toml")


OVERRIDES = """
activation_offset = false
[calibrate.common_config.ifmr_quantize]
search_step = 0.02
[[calibrate.override_layer_types]]
layer_type = "Convolution"
hfmg_quantize = { num_of_bins = 1024 }
arq_quantize = { channel_wise = false }
[[calibrate.override_layer_configs]]
layer_name = "dw"
kl_quantize = { asymmetric = true }
"""


def test_the_nearest_setting_wins(tmp_path):
    c = calibrate(tmp_path, OVERRIDES)
    net = small_net()
    plans = {name: layer_plan(net.layer(name), c) for name in ("dw", "branch", "fc", "avg", "up")}
    assert plans["dw"].method == kernels.Kl(asymmetric=True)
    assert plans["branch"].method == kernels.Hfmg(1024, asymmetric=False)
    assert plans["fc"].method == kernels.Ifmr(search_step=0.02, asymmetric=False)
    assert not plans["dw"].channel_wise
    assert plans["up"].channel_wise
    assert not plans["fc"].channel_wise


def test_channel_wise_is_refused_for_pooling_and_inner_product(tmp_path):
    c = calibrate(tmp_path, "[[calibrate.override_layer_types]]\nlayer_type = 'Pooling'\n"
                            "arq_quantize = { channel_wise = true }")  # fmt: skip
    with pytest.raises(ConfigError, match=r"Pooling.*channel_wise = true is for Convolution"):
        layer_plan(POOL.layers[-1], c)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("skip_layers = ['conv_1']", "conv1"),
        ("skip_layer_types = ['Convolutio']", "Convolution"),
        ("skip_fusion_layers = ['conv_1']", "conv1"),
        ("[[calibrate.override_layer_configs]]\nlayer_name = 'conv_1'", "conv1"),
    ],
)
def test_names_that_the_net_does_not_have(tmp_path, text, near):
    with pytest.raises(ConfigError, match=f"'small'.*did you mean '{near}'"):
        check_names("calibrate", calibrate(tmp_path, text), small_net())


def test_a_simplified_config_of_the_tool_counts(tmp_path, assets):
    c = calibrate(tmp_path, f"quant_cfg = '{assets}/amct/quant.cfg'")
    merged, notes = with_quant_cfg(c)
    assert merged.batch_num == 2
    assert any("nuq_config" in note for note in notes)
    assert merged.override_layer_types[0].layer_type == "Pooling"
    assert layer_plan(POOL.layers[-1], merged).method == kernels.Ifmr(
        (float(merged.override_layer_types[0].ifmr_quantize.search_range_start),
         float(merged.override_layer_types[0].ifmr_quantize.search_range_end)),
        merged.override_layer_types[0].ifmr_quantize.search_step,
        merged.override_layer_types[0].ifmr_quantize.max_percentile,
        merged.override_layer_types[0].ifmr_quantize.min_percentile)  # fmt: skip


def test_the_tables_are_found_in_the_package():
    import pipeline.config

    for name in pipeline.config.__all__:
        assert getattr(pipeline.config, name) is not None
    assert pipeline.config.load_config is load_config


RETRAIN_CFG = """
retrain_data_quant_config: { ulq_quantize: { clip_max_min: { clip_max: 0.5 clip_min: -0.25 } } }
retrain_weight_quant_config: { arq_retrain: { channel_wise: true } }
skip_layers: "a" quant_skip_layers: "b"
override_layer_types : { layer_type: "InnerProduct" retrain_weight_quant_config: { arq_retrain: { channel_wise: false } } }
override_layer_configs { layer_name: "c" retrain_data_quant_config { ulq_quantize { fixed_min: true } } }
strange: 1 batch_num: 2
"""


def test_a_retrain_config_of_the_original_tool_acts(tmp_path):
    (tmp_path / "r.cfg").write_text(RETRAIN_CFG)
    retrain = load(tmp_path, '[retrain]\nsolver = "s.prototxt"\nquant_cfg = "r.cfg"').retrain
    same = load(
        tmp_path,
        """[retrain]
        solver = "s.prototxt"
        quant_cfg = "none"
        skip_layers = ["a", "b"]
        retrain_data_quant_config.ulq_quantize.clip_max_min = { clip_max = 0.5, clip_min = -0.25 }
        retrain_weight_quant_config.arq_retrain.channel_wise = true
        [[retrain.override_layer_types]]
        layer_type = "InnerProduct"
        retrain_weight_quant_config.arq_retrain.channel_wise = false
        [[retrain.override_layer_configs]]
        layer_name = "c"
        retrain_data_quant_config.ulq_quantize.fixed_min = true
        """.replace('quant_cfg = "none"\n', ""),
    ).retrain
    assert retrain.model_dump(exclude={"quant_cfg"}) == same.model_dump(exclude={"quant_cfg"})
    assert len(retrain.notes) == 2
    assert "field 'strange'" in retrain.notes[0]
    assert "batch_num has no effect" in retrain.notes[1]
    (tmp_path / "r.cfg").write_text('override_layer_types { layer_type: "ReLU" }')
    with pytest.raises(ConfigError, match=r"r.cfg: override_layer_types: must be one of 'Conv"):
        load(tmp_path, '[retrain]\nsolver = "s.prototxt"\nquant_cfg = "r.cfg"')
