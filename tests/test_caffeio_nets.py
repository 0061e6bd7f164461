"""Prototxt to net: text, phases, old formats, and what goes wrong with them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDENS

import caffeio
from caffeio import CaffeFileError, NetError, parse_net
from caffeio.phases import meets_rule
from caffeio.proto import caffe_pb2 as pb

INPUT = 'layer { name: "in" type: "Input" top: "data" input_param { shape { dim: [1, 3, 8, 8] } } }'


def net_text(*layers: str) -> str:
    return "\n".join(['name: "net"', INPUT, *layers])


def relu(name: str, bottom: str, top: str, more: str = "") -> str:
    return f'layer {{ name: "{name}" type: "ReLU" bottom: "{bottom}" top: "{top}" {more} }}'


def conv(name: str, bottom: str, top: str) -> str:
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{top}" '
        "convolution_param { num_output: 3 kernel_size: 1 } }"
    )


# --------------------------------------------------------------------------- text


def test_a_net_is_read_in_order() -> None:
    net = parse_net(net_text(relu("a", "data", "data"), relu("b", "data", "out")))
    assert (net.name, net.phase, net.notes) == ("net", "TEST", ())
    assert [(x.name, x.type, x.bottoms, x.tops) for x in net.layers] == [
        ("in", "Input", (), ("data",)), ("a", "ReLU", ("data",), ("data",)),
        ("b", "ReLU", ("data",), ("out",)),
    ]  # fmt: skip
    assert net.inputs == ("data",)
    assert net.outputs == ("out",)


@pytest.mark.parametrize(
    ("text", "line", "column", "word"),
    [
        ('name: "x"\nlayer {\n  name: 5\n}', 3, 9, "string"),
        ('layer {\n  name: "a"\n', 2, None, "}"),
        ('layer { name: "a" type: "Pooling"\n pooling_param { pool: LARGEST } }', 2, 24, "LARGEST"),
        ('layer { name: "a" }\nlayer { name: "b" name: "c" }', 2, None, "name"),
        ("layer {\n convolution_param { num_output: -3 }\n}", 2, None, ""),
        ("layer { $ }", 1, None, ""),
    ],
)
def test_mistakes_have_line_and_column(text: str, line: int, column: int | None, word: str) -> None:
    with pytest.raises(CaffeFileError) as caught:
        parse_net(text, "deploy.prototxt")
    assert caught.value.line == line
    assert caught.value.column is not None
    assert column is None or abs(caught.value.column - column) <= 1
    assert str(caught.value).startswith(f"deploy.prototxt:{line}:{caught.value.column}: ")
    assert word in str(caught.value)


def test_unknown_fields_are_named_with_their_line_and_the_rest_is_read() -> None:
    text = net_text(
        'layer { name: "c" type: "Convolution" bottom: "data" top: "c"\n'
        "  convolution_param { num_output: 4 my_field: 3 # a comment with }\n"
        '    kernel_size: 3 engine: MKL2017 other { a: 1 b { c: "}" } } }\n'
        "  strange_param < x: [1, 2] y: 'it''s' >\n"
        "  propagate_down: true }",
        "top_level: -1.5e3",
    )
    net = parse_net(text, "n.prototxt")
    c = net.layer("c").param.convolution_param
    assert (c.num_output, list(c.kernel_size)) == (4, [3])
    assert net.layer("c").param.propagate_down == [True]
    assert [note.split(";")[0] for note in net.notes] == [
        "n.prototxt:5: engine 'MKL2017' is not known",
        "n.prototxt:8: field 'top_level' of NetParameter is not known",
        "n.prototxt:4: field 'my_field' of ConvolutionParameter is not known",
        "n.prototxt:5: field 'other' of ConvolutionParameter is not known",
        "n.prototxt:6: field 'strange_param' of LayerParameter is not known",
    ]
    assert all("what layer 'c' computes" in note for note in net.notes[2:])


def test_unknown_fields_of_layers_are_kept_and_written_where_they_stood() -> None:
    text = net_text(
        'layer { name: "c" type: "Convolution" bottom: "data" top: "c"\n'
        "  convolution_param { num_output: 4 my_field: 3 # a comment with }\n"
        '    weight_filler { type: "x" odd: 1 } kernel_size: 3 other { a: 1 b { c: "}" } } }\n'
        "  param { lr_mult: 1 } param { lr_mult: 2 fast: true }\n"
        "  dropout_param { scale_test: 1e-3 }\n"
        "  strange_param < x: [1, 2] y: 'it''s' > }",
    )
    net = parse_net(text, "n.prototxt")
    kept = [(u.path, u.text, u.line, u.matters()) for u in net.layer("c").unknown]
    assert kept == [
        ("convolution_param", "my_field: 3", 4, True),
        ("convolution_param.weight_filler", "odd: 1", 5, False),
        ("convolution_param", 'other { a: 1 b { c: "}" } }', 5, True),
        ("param[1]", "fast: true", 6, False),
        ("dropout_param", "scale_test: 1e-3", 7, True),
        ("", "strange_param < x: [1, 2] y: 'it''s' >", 8, True),
    ]
    written = caffeio.to_prototxt(net)
    again = parse_net(written, "copy.prototxt").layer("c")
    assert sorted((u.path, u.text) for u in again.unknown) == sorted(k[:2] for k in kept)
    assert again.param == net.layer("c").param
    assert "    lr_mult: 2\n    fast: true\n" in written
    renamed = replace(net.layer("c"), name="d")
    assert "my_field: 3" in caffeio.to_prototxt(net.with_layers((net.layers[0], renamed)))


def test_unknown_fields_and_types_of_old_nets_are_kept() -> None:
    v1 = parse_net(
        'input: "data" input_dim: 1 input_dim: 3 input_dim: 4 input_dim: 4\n'
        'layers { name: "c" type: CROP bottom: "data" bottom: "data" top: "c" crop { x: 1 } }\n'
        'layers { name: "b" type: MY_OWN bottom: "c" top: "b" pooling_param { pad: 1 deep: 2 } }'
    )
    assert [layer.type for layer in v1.layers] == ["Input", "Crop", "MyOwn"]
    assert [(u.path, u.text) for layer in v1.layers for u in layer.unknown] == [
        ("", "crop { x: 1 }"),
        ("pooling_param", "deep: 2"),
    ]
    assert parse_net('layers { name: "d" type: 29 top: "d" }').layers[0].type == "MemoryData"
    segnet = parse_net(
        'input: "data" input_dim: 1 input_dim: 3 input_dim: 4 input_dim: 4\n'
        'layers { name: "b" type: BN bottom: "data" top: "b"\n'
        "  bn_param { bn_mode: INFERENCE\n odd: 1 } }\n"
        'layers { name: "c" type: CROP bottom: "b" bottom: "data" top: "c" crop_param { offset: 0 } }'
    )
    assert segnet.layer("b").param.bn_param.bn_mode == pb.BNParameter.INFERENCE
    assert segnet.layer("c").param.crop_param.offset == [0]
    assert [(u.path, u.text, u.line) for u in segnet.layer("b").unknown] == [
        ("bn_param", "odd: 1", 4)
    ]
    assert ["CROP" in note for note in v1.notes] == [True, False, False]
    assert not any("CROP" in note for note in segnet.notes)
    v0 = parse_net(
        'input: "data" input_dim: 1 input_dim: 3 input_dim: 4 input_dim: 4\n'
        'layers { layer { name: "c" type: "relu" soft: 1 } bottom: "data" top: "c" }'
    )
    assert [(u.path, u.text, u.line) for u in v0.layer("c").unknown] == [("", "soft: 1", 2)]


@pytest.mark.parametrize(
    ("holes", "dilation"),
    [("hole: 2", [2]), ("hole_h: 2 hole_w: 4", [2, 4]), ("hole: 1", []), ("hole_w: 3", [1, 3])],
)
def test_holes_of_deeplab_are_dilation(holes: str, dilation: list[int]) -> None:
    text = conv("c", "data", "c").replace("kernel_size", f"{holes} kernel_size")
    net = parse_net(net_text(text))
    assert list(net.layer("c").param.convolution_param.dilation) == dilation
    assert "hole" not in caffeio.to_prototxt(net)
    assert net.notes == ()


def test_a_field_that_is_unknown_in_many_layers_does_not_bury_the_other_notes() -> None:
    def layers(count: int) -> list[str]:
        return [relu(f"r{i}", "data", f"t{i}", "relu_param { six: 1 }") for i in range(count)]

    assert len(parse_net(net_text(*layers(4))).notes) == 4
    net = parse_net(net_text(*layers(9), relu("s", "data", "u", "own { a: 1 }")), "n.prototxt")
    assert [note.split(":")[1] for note in net.notes] == ["3", "4", "5", "6", "12"]
    assert net.notes[3] == (
        "n.prototxt:6: the same field 'six' stands in 6 more places, from layer 'r3' to line 11, "
        "layer 'r8'"
    )


def test_many_unknown_fields_are_read_in_linear_time() -> None:
    layer = 'layer { name: "r%d" type: "ReLU" bottom: "data" top: "t%d" x_param { a: 1 } }'

    def seconds(count: int) -> float:
        text = net_text(*(layer % (i, i) for i in range(count)))
        start = time.perf_counter()
        parse_net(text)
        return time.perf_counter() - start

    # eight times as many: 64 times as long if it were quadratic
    assert seconds(1600) < 32 * min(seconds(200) for _ in range(3))


def test_an_error_after_an_unknown_field_keeps_its_place() -> None:
    text = net_text('layer { name: "a" foo { bar: 1 }\n type: 7 }')
    with pytest.raises(CaffeFileError) as caught:
        parse_net(text)
    assert (caught.value.line, caught.value.column) == (4, 8)


def test_required_fields_are_demanded() -> None:
    with pytest.raises(CaffeFileError, match=r"clip_param\.max"):
        parse_net(
            net_text(
                'layer { name: "c" type: "Clip" bottom: "data" top: "data" clip_param { min: 0 } }'
            )
        )


@pytest.mark.parametrize("text", ["", "# nothing\n", 'name: "only a name"'])
def test_an_empty_net_is_refused(text: str) -> None:
    with pytest.raises(CaffeFileError, match="no layers"):
        parse_net(text)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.prototxt"
    with pytest.raises(CaffeFileError, match="cannot be read"):
        caffeio.read_net(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CaffeFileError, match="not a text file"):
        caffeio.read_net(path)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\n<!DOCTYPE html>\n<html lang='en'>", "web page"),
        (b"<HTML><head>", "web page"),
        (b"\xef\xbb\xbf<html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "git lfs pull"),
    ],
)
def test_what_is_often_found_in_place_of_a_model_is_named(
    data: bytes, what: str, tmp_path: Path
) -> None:
    found = tmp_path / "found"
    found.write_bytes(data)
    with pytest.raises(CaffeFileError, match=what):
        caffeio.read_net(found)
    net = tmp_path / "net.prototxt"
    net.write_text(net_text())
    with pytest.raises(CaffeFileError, match=what):
        caffeio.read_net(net, found)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_comments_may_be_of_any_encoding(end: str, tmp_path: Path) -> None:
    path = tmp_path / "a.prototxt"
    comment = "# 输入 \"的\" 'data'".encode("gbk")
    text = net_text(relu("a", "data", "b")).replace("\n", end).encode()
    path.write_bytes(comment + end.encode() + text + b" " + comment)
    assert caffeio.read_net(path).layer("a").type == "ReLU"
    path.write_bytes("名 ".encode("gbk") + text)
    with pytest.raises(CaffeFileError, match="byte 0 is not UTF-8"):
        caffeio.read_net(path)
    path.write_bytes(comment + end.encode() + text + "名".encode("gbk"))
    at = len(comment) + len(end) + len(text)
    with pytest.raises(CaffeFileError, match=f"byte {at} is not UTF-8"):
        caffeio.read_net(path)


def test_names_in_other_encodings_are_the_same_in_text_and_weights(tmp_path: Path) -> None:
    name = "卷积#1".encode("gbk")
    path, weights = tmp_path / "a.prototxt", tmp_path / "a.caffemodel"
    path.write_bytes(net_text(conv("NAME", "data", "b")).encode().replace(b"NAME", name))
    message = pb.NetParameter()
    layer = message.layer.add(name="x" * len(name), type="Convolution")
    for shape in ((3, 3, 1, 1), (3,)):
        blob = layer.blobs.add()
        blob.shape.dim.extend(shape)
        blob.data.extend([1.0] * int(np.prod(shape)))
    weights.write_bytes(message.SerializeToString().replace(b"x" * len(name), name))
    net = caffeio.read_net(path, weights)
    assert net.layer(name.decode("latin-1")).blobs[0].shape == (3, 3, 1, 1)
    caffeio.write_prototxt(net, tmp_path / "b.prototxt")
    caffeio.write_caffemodel(net, tmp_path / "b.caffemodel")
    again = caffeio.read_net(tmp_path / "b.prototxt", tmp_path / "b.caffemodel")
    assert again.layers[-1].name == net.layers[-1].name


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "a.prototxt"
    path.write_text(net_text(), encoding="utf-8-sig")
    assert caffeio.read_net(path).name == "net"


# --------------------------------------------------------------------------- graph


@pytest.mark.parametrize(
    ("layers", "layer", "match"),
    [
        ([relu("a", "nobody", "out")], "a", "no layer makes"),
        ([relu("a", "b", "a"), relu("b", "a", "b")], "a", "cyclic"),
        ([relu("a", "data", "x"), relu("b", "data", "x")], "b", "which layer 'a' has made"),
        ([conv("a", "data", "x"), conv("a", "x", "y")], None, "two layers with weights have"),
        (['layer { name: "a" bottom: "data" top: "y" }'], "a", "no type"),
    ],
)
def test_wrong_graphs(layers: list[str], layer: str | None, match: str) -> None:
    with pytest.raises(NetError, match=match) as caught:
        parse_net(net_text(*layers))
    assert caught.value.layer == layer


def test_layers_of_one_name_are_told_apart_and_the_one_with_weights_keeps_it() -> None:
    net = parse_net(
        net_text(relu("a", "data", "x"), conv("a", "x", "y"), relu("a_2", "y", "z"),
                 relu("a", "z", "u"), relu("b", "u", "v"), relu("b", "v", "w")),
        "n.prototxt",
    )  # fmt: skip
    assert [layer.name for layer in net.layers] == ["in", "a_3", "a", "a_2", "a_4", "b", "b_2"]
    assert net.layer("a").type == "Convolution"
    assert net.notes == (
        "n.prototxt: 3 layers have the name 'a'; but for one they become 'a_3' (ReLU), "
        "'a_4' (ReLU)",
        "n.prototxt: 2 layers have the name 'b'; but for one they become 'b_2' (ReLU)",
    )
    again = parse_net(caffeio.to_prototxt(net))
    assert (again.links, again.notes) == (net.links, ())


def test_layers_without_a_name_are_called_by_their_type() -> None:
    layers = (relu("", "data", "x"), relu("", "x", "y"), relu("", "y", "z"))
    net = parse_net(net_text(*layers))
    assert [layer.name for layer in net.layers] == ["in", "", "ReLU_2", "ReLU_3"]


def test_a_loss_without_a_top_makes_one() -> None:
    label = 'layer { name: "label" type: "Input" top: "label" }'
    loss = 'layer { name: "%s" type: "SoftmaxWithLoss" bottom: "data" bottom: "label" }'
    net = parse_net(net_text(label, loss % "loss", loss % "data"))
    assert net.outputs == ("loss", "data_2")
    assert net.layer("loss").param.top == ["loss"]


# --------------------------------------------------------------------------- phases


@pytest.mark.parametrize(
    ("rule", "met"),
    [
        ("", True), ("phase: TRAIN", True), ("phase: TEST", False),
        ("min_level: 2", True), ("min_level: 3", False), ("max_level: 2", True),
        ("max_level: 1", False), ('stage: "a"', True), ('stage: "a" stage: "b"', True),
        ('stage: "a" stage: "c"', False), ('not_stage: "c"', True), ('not_stage: "a"', False),
        ('phase: TRAIN not_stage: "b"', False), ("min_level: -1 max_level: 5", True),
    ],
)  # fmt: skip
def test_rules_are_met_as_in_caffe(rule: str, met: bool) -> None:
    """The state is TRAIN, level 2, stages a and b; the results follow Caffe's documentation."""
    from google.protobuf import text_format

    state = pb.NetState(phase=pb.TRAIN, level=2, stage=["a", "b"])
    assert meets_rule(state, text_format.Parse(rule, pb.NetStateRule())) is met


def test_phases_choose_layers() -> None:
    text = net_text(
        relu("train", "data", "t", "include { phase: TRAIN }"),
        relu("test", "data", "t", "include { phase: TEST }"),
        relu("no_deploy", "t", "n", 'exclude { stage: "deploy" }'),
        relu("any", "t", "u", 'include { phase: TRAIN } include { stage: "deploy" }'),
    )

    def names(*args: str, **kwargs: object) -> list[str]:
        return [x.name for x in parse_net(text, "", *args, **kwargs).layers[1:]]  # type: ignore[arg-type]

    assert names() == ["test", "no_deploy"]
    assert names("TRAIN") == ["train", "no_deploy", "any"]
    assert names(stages=["deploy"]) == ["test", "any"]


def test_the_net_state_of_the_text_counts() -> None:
    text = 'state { level: 3 stage: "s" }' + net_text(
        relu("a", "data", "a", 'include { min_level: 3 stage: "s" }')
    )
    assert [x.name for x in parse_net(text).layers] == ["in", "a"]


def test_include_and_exclude_exclude_each_other() -> None:
    with pytest.raises(NetError, match="include and exclude"):
        parse_net(net_text(relu("a", "data", "a", "include {} exclude {}")))


def test_a_phase_is_checked() -> None:
    with pytest.raises(ValueError, match="TEST"):
        parse_net(net_text(), phase="test")


# --------------------------------------------------------------------------- old formats


def golden(name: str, folder: Path) -> caffeio.Net:
    with np.load(GOLDENS / "caffe" / f"{name}.npz") as file:
        (folder / "n.prototxt").write_bytes(file["prototxt"].tobytes())
        (folder / "n.caffemodel").write_bytes(file["caffemodel"].tobytes())
    return caffeio.read_net(folder / "n.prototxt", folder / "n.caffemodel")


def test_v0_is_upgraded(tmp_path: Path) -> None:
    net = golden("legacy_v0", tmp_path)
    assert [layer.type for layer in net.layers] == [
        "Input", "Convolution", "ReLU", "Convolution", "Pooling", "LRN", "InnerProduct", "Softmax"
    ]  # fmt: skip
    assert list(net.layers[0].param.input_param.shape[0].dim) == [2, 3, 17, 15]
    conv1, conv2 = net.layer("conv1"), net.layer("conv2")
    assert [s.lr_mult for s in conv1.param.param] == [1, 2]
    assert (conv2.bottoms, list(conv2.param.convolution_param.pad)) == (("conv1",), [1])
    assert conv2.param.convolution_param.group == 2
    assert net.layer("norm2").param.lrn_param.local_size == 3
    assert [b.shape for b in net.layer("fc").blobs] == [(5, 64), (5,)]
    assert net.notes == ()


@pytest.mark.parametrize("name", ["legacy_v1", "legacy_v1_new_weights"])
def test_v1_is_upgraded(name: str, tmp_path: Path) -> None:
    net = golden(name, tmp_path)
    assert [layer.type for layer in net.layers] == [
        "Input", "Convolution", "ReLU", "LRN", "Pooling", "Convolution", "Sigmoid", "TanH",
        "Eltwise", "Deconvolution", "Pooling", "Concat", "Dropout", "InnerProduct", "Softmax",
    ]  # fmt: skip
    assert [(s.lr_mult, s.decay_mult) for s in net.layer("conv1").param.param] == [(1, 1), (2, 0)]
    assert list(net.layer("sum").param.eltwise_param.coeff) == [1, -0.5]
    assert [b.shape for b in net.layer("up").blobs] == [(8, 4, 2, 2), (4,)]
    assert net.notes == ()


def test_every_v1_type_has_the_name_of_caffe() -> None:
    names = {
        "ABSVAL": "AbsVal", "ACCURACY": "Accuracy", "ARGMAX": "ArgMax", "BNLL": "BNLL",
        "CONCAT": "Concat", "CONTRASTIVE_LOSS": "ContrastiveLoss", "CONVOLUTION": "Convolution",
        "DECONVOLUTION": "Deconvolution", "DATA": "Data", "DROPOUT": "Dropout",
        "DUMMY_DATA": "DummyData", "EUCLIDEAN_LOSS": "EuclideanLoss", "ELTWISE": "Eltwise",
        "EXP": "Exp", "FLATTEN": "Flatten", "HDF5_DATA": "HDF5Data", "HDF5_OUTPUT": "HDF5Output",
        "HINGE_LOSS": "HingeLoss", "IM2COL": "Im2col", "IMAGE_DATA": "ImageData",
        "INFOGAIN_LOSS": "InfogainLoss", "INNER_PRODUCT": "InnerProduct", "LRN": "LRN",
        "MEMORY_DATA": "MemoryData", "MULTINOMIAL_LOGISTIC_LOSS": "MultinomialLogisticLoss",
        "MVN": "MVN", "POOLING": "Pooling", "POWER": "Power", "RELU": "ReLU",
        "SIGMOID": "Sigmoid", "SIGMOID_CROSS_ENTROPY_LOSS": "SigmoidCrossEntropyLoss",
        "SILENCE": "Silence", "SOFTMAX": "Softmax", "SOFTMAX_LOSS": "SoftmaxWithLoss",
        "SPLIT": "Split", "SLICE": "Slice", "TANH": "TanH", "WINDOW_DATA": "WindowData",
        "THRESHOLD": "Threshold",
    }  # fmt: skip
    assert set(names) | {"NONE"} == set(pb.V1LayerParameter.LayerType.keys())
    for old, new in names.items():
        net = parse_net(f'layers {{ name: "a" type: {old} top: "x" }}')
        assert net.layers[0].type == new


def test_old_data_parameters_move_to_transform_param() -> None:
    net = parse_net(
        'layers { name: "d" type: DATA top: "data" data_param { source: "s" scale: 0.5 '
        'mean_file: "m" crop_size: 7 mirror: true batch_size: 2 } param: "w" '
        "blob_share_mode: PERMISSIVE blobs_lr: 3 }"
    )
    p = net.layers[0].param
    t = p.transform_param
    assert (t.scale, t.mean_file, t.crop_size, t.mirror) == (0.5, "m", 7, True)
    assert not p.data_param.HasField("scale")
    assert (p.data_param.source, p.data_param.batch_size) == ("s", 2)
    assert (p.param[0].name, p.param[0].share_mode, p.param[0].lr_mult) == (
        "w",
        pb.ParamSpec.PERMISSIVE,
        3,
    )


def test_v0_parameters_without_meaning_are_named() -> None:
    net = parse_net(
        'layers { layer { name: "d" type: "images" source: "l" batchsize: 4 '
        "shuffle_images: true new_height: 5 meanfile: 'm' stride: 3 } top: \"x\" }"
    )
    p = net.layers[0].param
    assert (
        p.image_data_param.source,
        p.image_data_param.batch_size,
        p.image_data_param.shuffle,
        p.image_data_param.new_height,
        p.transform_param.mean_file,
    ) == ("l", 4, True, 5, "m")
    assert len(net.notes) == 1
    assert "'stride' means nothing" in net.notes[0]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('layers { name: "a" type: RELU } layer { name: "b" }', "mixes"),
        ('layers { name: "a" bottom: "b" }', "no type"),
        ('layers { layer { name: "a" type: "odd" } top: "x" }', "'odd'"),
        ('input: "a" input_dim: 1 layer { name: "r" type: "ReLU" bottom: "a" top: "a" }', "four"),
        (
            'input: "x" layers { layer { name: "p" type: "padding" pad: 1 } bottom: "x" top: "p" }'
            'layers { layer { name: "r" type: "relu" } bottom: "p" top: "p" }',
            "cannot pad",
        ),
    ],
)
def test_wrong_old_nets(text: str, match: str) -> None:
    with pytest.raises(NetError, match=match):
        parse_net(text)


def test_several_legacy_inputs_get_a_free_name() -> None:
    net = parse_net(
        'input: "a" input: "b" input_shape { dim: 1 dim: 2 } input_shape { dim: 3 }'
        'layer { name: "input" type: "ReLU" bottom: "a" top: "c" }'
    )
    assert (net.layers[0].name, net.layers[0].tops) == ("input_0", ("a", "b"))
    assert [list(s.dim) for s in net.layers[0].param.input_param.shape] == [[1, 2], [3]]
    assert net.inputs == ("a", "b")


# --------------------------------------------------------------------------- writing


def test_a_written_prototxt_reads_back_equal(tmp_path: Path) -> None:
    net = golden("legacy_v1", tmp_path)
    path = tmp_path / "out.prototxt"
    caffeio.write_prototxt(net, path)
    again = caffeio.read_net(path)
    assert [(x.name, x.type, x.bottoms, x.tops, x.param) for x in again.layers] == [
        (x.name, x.type, x.bottoms, x.tops, x.param) for x in net.layers
    ]
    text = path.read_text()
    assert "coeff: 1\n" in text  # an integer field of another schema reads it
    assert "coeff: -0.5\n" in text
    with pytest.raises(CaffeFileError, match="exists already"):
        caffeio.write_prototxt(net, path)
    caffeio.write_prototxt(again, path, overwrite=True)
    assert path.read_text() == text


def test_text_that_looks_like_a_number_stays_text() -> None:
    net = parse_net(net_text(relu("x: 1.0", "data", "data")))
    assert 'name: "x: 1.0"' in caffeio.to_prototxt(net)


def test_real_models_are_read_without_surprises(assets: Path) -> None:
    read = {}
    for prototxt in sorted(assets.glob("models/*/*.prototxt")):
        weights = sorted(prototxt.parent.glob("*.caffemodel"))
        own = [w for w in weights if w.stem == prototxt.stem] or weights
        net = caffeio.read_net(prototxt, own[0])
        read[f"{prototxt.parent.name}/{prototxt.stem}"] = net
        assert caffeio.nonfinite_blobs(net) == ()
        # The training layers of mtcnn come from a fork; its file also holds the landmarks.
        odd = [note for note in net.notes if not ("layer 'loss" in note or "conv5-3" in note)]
        assert odd == []
        assert caffeio.parse_net(caffeio.to_prototxt(net)).links == net.links
    assert len(read) >= 13
    assert len(read["mobilenet_v2/deploy"].layers) == 204
    assert read["rfb_320/deploy"].outputs == ("boxes", "scores")
