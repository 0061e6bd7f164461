"""The record of factors and the simplified calibration config."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from caffeio import CaffeFileError, LayerRecord, Record, parse_record, record_to_text
from caffeio.calibration_config import (
    HfmgSettings,
    IfmrSettings,
    LayerSettings,
    parse_quant_cfg,
)
from caffeio.proto import quant_pb2
from caffeio.quant_configs import read_quant_cfg, read_retrain_cfg
from caffeio.record import read_record, write_record
from caffeio.retrain_config import RetrainLayerSettings, parse_retrain_cfg

ONE = 'record { key: "a" value { scale_d: 0.5 offset_d: -3 scale_w: 0.25 offset_w: 0 %s } }'


def test_a_record_of_the_original_tool_round_trips(assets: Path, tmp_path: Path) -> None:
    path = assets / "amct/resnet50_record.txt"
    record = read_record(path)
    assert len(record.layers) > 50
    assert record.notes == ()
    conv1 = record.layers["conv1"]
    assert (conv1.scale_d, conv1.offset_d) == (float(np.float32(1.07450986)), -14)
    assert (len(conv1.scale_w), conv1.channels) == (64, 3)
    write_record(record, tmp_path / "r.txt")
    assert (tmp_path / "r.txt").read_text() == path.read_text()


SCALES = st.floats(2.0**-100, 2.0**100, width=32)


@st.composite
def layer_records(draw: st.DrawFn) -> LayerRecord:
    n = draw(st.integers(1, 4))
    size = st.none() | st.integers(0, 2**32 - 1)
    shifts = draw(st.sampled_from(["none", "zero", "some"]))
    return LayerRecord(
        draw(SCALES), draw(st.integers(-128, 127)),
        tuple(draw(st.lists(SCALES, min_size=n, max_size=n))), (0,) * n,
        {"none": (), "zero": (0,) * n,
         "some": tuple(draw(st.lists(st.integers(1, 16), min_size=n, max_size=n)))}[shifts],
        draw(size), draw(size), draw(size), draw(st.booleans()),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(st.characters(codec="utf-8")), layer_records(), max_size=3))
def test_records_round_trip(layers: dict[str, LayerRecord]) -> None:
    record = Record(layers)
    text = record_to_text(record)
    assert parse_record(text) == record
    assert list(parse_record(text).layers) == list(layers)
    theirs = text_format.Parse(text, quant_pb2.ScaleOffsetRecord())
    assert [(e.key, e.value.scale_d) for e in theirs.record] == [
        (name, layer.scale_d) for name, layer in layers.items()
    ]


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ("scale_w: 0.5", "offset_w has 1 values, scale_w 2"),
        ("scale_w: 0 offset_w: 0", "scale_w is 0"),
        ("scale_w: inf offset_w: 0", "scale_w is inf"),
        ("scale_w: nan offset_w: 0", "scale_w is nan"),
        ("scale_w: 1e-60 offset_w: 0", "scale_w is 0"),
        ("scale_w: -1 offset_w: 0", "scale_w is -1"),
        ("scale_w: 1 offset_w: 2", "offset_w is not 0"),
        ("shift_bit: 17", "shift_bit"),
        ("scale_w: 1 offset_w: 0 shift_bit: 0 shift_bit: 3", "all 0 or all in 1..16"),
        ("shift_bit: 1 shift_bit: 1", "shift_bit has 2 values"),
    ],
)
def test_factors_out_of_range(more: str, match: str) -> None:
    with pytest.raises(CaffeFileError, match=f"^r.txt: layer 'a': .*{match}"):
        parse_record(ONE % more, "r.txt")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (ONE.replace("offset_d: -3", "offset_d: 128") % "", "offset_d is 128"),
        (ONE.replace("offset_d: -3", "") % "", "offset_d is missing"),
        (ONE.replace("scale_d: 0.5", "") % "", "scale_d is missing"),
        ('record { key: "a" value { scale_w: 1 offset_w: 0 } }', "not been calibrated yet"),
        (
            'record { key: "a" value { scale_w: 1 num_bits_w: 4 record_d { scale_d: 1 } } }',
            "num_bits_w is 4 .* flavour of the tool for the SS92x chips",
        ),
        (
            'record { key: "a" value { record_d { index: 0 } record_d { index: 1 } } }',
            "several inputs .*SS92x",
        ),
        ((ONE % "") * 2, "'a' is recorded twice"),
        ("record { value { } }", "no key"),
        ('record {\n key: "a"\n value { scale_d: x } }', r"r.txt:3:\d+: "),
    ],
)
def test_wrong_records(text: str, match: str) -> None:
    with pytest.raises(CaffeFileError, match=match):
        parse_record(text, "r.txt")


def test_pooling_has_no_weights() -> None:
    text = 'record { key: "pool1" value { scale_d: 0.05 offset_d: -128 channels: 8 } }'
    (layer,) = parse_record(text).layers.values()
    assert (layer.scale_w, layer.offset_w, layer.channels) == ((), (), 8)
    assert parse_record(record_to_text(Record({"pool1": layer}))).layers["pool1"] == layer


def test_of_a_field_given_twice_the_last_counts() -> None:
    assert parse_record(ONE % "scale_d: 0.25 channels: 3 channels: 4").layers["a"] == LayerRecord(
        0.25, -3, (0.25,), (0,), (), 4
    )


def test_the_second_flavour_nests_the_factors_of_data() -> None:
    text = """record { key: "conv1" value { scale_w: 0.5 offset_w: 0 shift_bit: 1 num_bits_w: 8
              object_layer: "conv1" skip_fusion: true
              record_d { scale_d: 1.5 offset_d: -49 index: 0 channels: 3 height: 5 num_bits_d: 8 } } }"""
    record = parse_record(text)
    assert record.notes == ()
    assert record.layers["conv1"] == LayerRecord(
        1.5, -49, (0.5,), (0,), (1,), channels=3, height=5, skip_fusion=True
    )


@pytest.mark.parametrize(
    ("name", "want"),
    [("rec_pool_no_w", ()), ("rec_dup", 0.02), ("rec_colon", 0.01424), ("rec_hisi", 1.554879),
     ("rec_calib_half", "has not been calibrated yet")],
)  # fmt: skip
def test_records_that_users_have(assets: Path, name: str, want: object) -> None:
    path = assets.parent / f"cases/vendor/{name}.txt"
    if isinstance(want, str):
        with pytest.raises(CaffeFileError, match=want):
            read_record(path)
        return
    (layer,) = read_record(path).layers.values()
    assert (layer.scale_w if want == () else layer.scale_d) == pytest.approx(want)


def test_unknown_fields_of_a_record_are_named() -> None:
    record = parse_record(ONE % "dst_type: 'INT8'", "r.txt")
    assert record.layers["a"].scale_w == (0.25,)
    assert record.notes[0].startswith("r.txt:1: field 'dst_type' of SingleLayerRecord")


# --------------------------------------------------------------------------- config


def test_the_config_of_the_original_tool(assets: Path) -> None:
    config = read_quant_cfg(assets / "amct/quant.cfg")
    ifmr = IfmrSettings(0.7, 1.3, 0.01, 0.999999, 0.999999, None)
    assert (config.batch_num, config.activation_offset, config.do_fusion) == (2, True, True)
    assert config.common == LayerSettings(None, ifmr)
    assert config.layer_types == {"Pooling": LayerSettings(False, ifmr)}
    assert len(config.notes) == 1
    assert "quant.cfg:4: field 'nuq_config'" in config.notes[0]


def test_everything_in_a_config() -> None:
    config = parse_quant_cfg("""
        batch_num: 3 activation_offset: false joint_quant: true do_fusion: false
        skip_layers: "a" skip_layers: "b" skip_layer_types: "Pooling" skip_fusion_layers: "c"
        common_config { hfmg_quantize { num_of_bins: 2048 asymmetric: false } }
        override_layer_types { layer_type: "Convolution"
          calibration_config { arq_quantize { channel_wise: true } } }
        override_layer_configs { layer_name: "fc"
          calibration_config { ifmr_quantize { search_step: 0.05 asymmetric: true } } }""")
    assert (config.batch_num, config.activation_offset, config.joint_quant) == (3, False, True)
    assert (config.skip_layers, config.skip_layer_types) == (("a", "b"), ("Pooling",))
    assert (config.do_fusion, config.skip_fusion_layers) == (False, ("c",))
    assert config.common == LayerSettings(None, HfmgSettings(2048, False))
    assert config.layer_types == {"Convolution": LayerSettings(True, None)}
    assert config.layers == {
        "fc": LayerSettings(None, IfmrSettings(search_step=0.05, asymmetric=True))
    }


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("batch_num: 0", "batch_num is 0"),
        ("common_config { ifmr_quantize { max_percentile: 0.5 } }", "max_percentile is 0.5"),
        ("common_config { ifmr_quantize { search_step: 0 } }", "search_step"),
        ("common_config { ifmr_quantize { search_step: 0.7 } }", "search_step"),
        ("common_config { ifmr_quantize { search_range_start: 1.4 } }", "start < end"),
        ("common_config { hfmg_quantize { num_of_bins: 1000 } }", "num_of_bins is 1000"),
        ("common_config { hfmg_quantize {} ifmr_quantize {} }", "exclude each other"),
        (
            'override_layer_types { layer_type: "InnerProduct" calibration_config '
            "{ arq_quantize { channel_wise: true } } }",
            "channel_wise is true",
        ),
        (
            'override_layer_configs { layer_name: "a" } override_layer_configs { layer_name: "a" }',
            "given twice",
        ),
        ("batch_num: many", "q.cfg:1:12"),
    ],
)
def test_wrong_configs(text: str, match: str) -> None:
    with pytest.raises(CaffeFileError, match=match):
        parse_quant_cfg(text, "q.cfg")


def test_deprecated_blocks_count_where_no_override_does() -> None:
    config = parse_quant_cfg("""
        conv_calibration_config: { arq_quantize { channel_wise: false } ifmr_quantize { search_step: 0.02 } }
        fc_calibration_config { hfmg_quantize { num_of_bins: 1024 } }
        override_layer_types { layer_type: "Deconvolution" calibration_config { arq_quantize { channel_wise: true } } }
    """)
    conv = LayerSettings(False, IfmrSettings(search_step=0.02))
    fc = LayerSettings(None, HfmgSettings(1024))
    assert config.notes == ()
    assert config.layer_types == {
        "Convolution": conv, "Deconvolution": LayerSettings(True), "InnerProduct": fc, "Pooling": fc,
    }  # fmt: skip
    with pytest.raises(CaffeFileError, match="fc_calibration_config: channel_wise is true, but"):
        parse_quant_cfg("fc_calibration_config { arq_quantize { channel_wise: true } }")


@pytest.mark.parametrize("field", ["retrain_data_quant_config { }", 'quant_skip_layers: "a"'])
def test_a_retrain_config_is_no_calibration_config(field: str) -> None:
    with pytest.raises(CaffeFileError, match=r"q.cfg: is a config for retraining, .*\[retrain\]"):
        parse_quant_cfg(field, "q.cfg")


def test_everything_in_a_retrain_config() -> None:
    config = parse_retrain_cfg("""
        batch_num: 2 skip_layers: "a" quant_skip_layers: "b" quant_skip_layers: "a"
        skip_layer_types: "Pooling" quant_skip_types: "InnerProduct" odd: 3
        retrain_data_quant_config { ulq_quantize { clip_max_min { clip_max: 0.6 clip_min: -0.6 } } }
        retrain_weight_quant_config { arq_retrain { channel_wise: true } }
        override_layer_types { layer_type: "Convolution"
            retrain_data_quant_config { ulq_quantize { fixed_min: true } } }
        override_layer_configs { layer_name: "c" retrain_weight_quant_config { arq_retrain { channel_wise: false } } }
    """)
    assert (config.batch_num, config.skip_layers) == (2, ("a", "b"))
    assert config.skip_layer_types == ("Pooling", "InnerProduct")
    assert config.common == RetrainLayerSettings((-0.6, 0.6), None, True)
    assert config.layer_types == {"Convolution": RetrainLayerSettings(fixed_min=True)}
    assert config.layers == {"c": RetrainLayerSettings(channel_wise=False)}
    assert len(config.notes) == 1
    clip = (
        "retrain_data_quant_config { ulq_quantize { clip_max_min { clip_max: %s clip_min: %s } } }"
    )
    for text, what in [(clip % (1, 1), "clip_min < 0 < clip_max"), (clip % (-1, -2), "< clip_max"),
                       ("override_layer_types { }", "layer_type is missing"),
                       ('override_layer_configs { layer_name: "a" } ' * 2, "given twice")]:  # fmt: skip
        with pytest.raises(CaffeFileError, match=f"^r.cfg: .*{what}"):
            parse_retrain_cfg(text, "r.cfg")


def test_the_configs_that_users_have(assets: Path) -> None:
    folder = assets.parent / "cases/vendor"
    config = read_quant_cfg(folder / "deprecated.cfg")
    ifmr = IfmrSettings(0.8, 1.2, 0.02, 0.999, 0.999)
    assert config.layer_types["Convolution"] == LayerSettings(False, ifmr)
    assert config.layer_types["InnerProduct"] == LayerSettings(False)
    retrain = read_retrain_cfg(folder / "retrain.cfg")
    assert retrain.skip_layers == ("ip2", "conv1")
    assert retrain.layer_types["InnerProduct"].channel_wise is False
