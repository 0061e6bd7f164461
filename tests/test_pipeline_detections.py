"""Outputs whose rows depend on the data: what is compared instead, and boxes matched by overlap."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_nets import with_blobs
from small_nets import samples, write_job

import caffeio
import pipeline
from pipeline.errors import ConfigError
from pipeline.evaluators.overlap import overlaps
from pipeline.quantize.detections import Agreement
from pipeline.quantize.outputs import compared_blobs, detection_blobs
from pipeline.run import main

SSD = """name: "ssd"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 12 dim: 10 } } }
layer { name: "c1" type: "Convolution" bottom: "data" top: "c1" convolution_param { num_output: 8 kernel_size: 4 stride: 2 } }
layer { name: "r1" type: "ReLU" bottom: "c1" top: "c1" }
layer { name: "loc" type: "Convolution" bottom: "c1" top: "loc" convolution_param { num_output: 8 kernel_size: 1 } }
layer { name: "locp" type: "Permute" bottom: "loc" top: "locp" permute_param { order: 0 order: 2 order: 3 order: 1 } }
layer { name: "locf" type: "Flatten" bottom: "locp" top: "locf" }
layer { name: "conf" type: "Convolution" bottom: "c1" top: "conf" convolution_param { num_output: 4 kernel_size: 1 } }
layer { name: "confp" type: "Permute" bottom: "conf" top: "confp" permute_param { order: 0 order: 2 order: 3 order: 1 } }
layer { name: "confr" type: "Reshape" bottom: "confp" top: "confr" reshape_param { shape { dim: 0 dim: -1 dim: 2 } } }
layer { name: "confs" type: "Softmax" bottom: "confr" top: "confs" softmax_param { axis: 2 } }
layer { name: "conff" type: "Flatten" bottom: "confs" top: "conff" }
layer { name: "prior" type: "PriorBox" bottom: "c1" bottom: "data" top: "prior" prior_box_param { min_size: 4 aspect_ratio: 2 flip: false clip: false variance: 0.1 } }
layer { name: "out" type: "DetectionOutput" bottom: "locf" bottom: "conff" bottom: "prior" top: "out" detection_output_param { num_classes: 2 confidence_threshold: 0.5 keep_top_k: 200 nms_param { nms_threshold: 0.45 top_k: 400 } } }
"""


def ssd(more: str = "") -> caffeio.Net:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape)

    return with_blobs(caffeio.parse_net(SSD + more), {
        "c1": [normal(8, 3, 4, 4), np.zeros(8)], "loc": [normal(8, 8, 1, 1), np.zeros(8)],
        "conf": [3 * normal(4, 8, 1, 1), np.zeros(4)],
    })  # fmt: skip


def test_detections_are_compared_by_what_they_are_made_of():
    assert compared_blobs(ssd(), ()) == ("locf", "conff")
    assert detection_blobs(ssd()) == ("out",)
    with pytest.raises(ConfigError, match="rows cannot be compared; name locf, conff, prior"):
        compared_blobs(ssd(), ("out",))
    assert compared_blobs(ssd(), ("loc",)) == ("loc",)


def test_images_as_a_fourth_bottom_change_nothing():
    drawn = SSD.replace('bottom: "prior" top: "out"', 'bottom: "prior" bottom: "data" top: "out"')
    net = with_blobs(caffeio.parse_net(drawn), {x.name: x.blobs for x in ssd().layers})
    x = {"data": samples(2)}
    want = pipeline.FloatNet(ssd()).forward(x)["out"]
    np.testing.assert_array_equal(pipeline.FloatNet(net).forward(x)["out"], want)


def test_so_is_what_follows_from_them():
    net = ssd(
        'layer { name: "s" type: "Slice" bottom: "out" top: "a" top: "b" slice_param { axis: 3 slice_point: 2 } }\n'
        'layer { name: "p" type: "Power" bottom: "b" top: "c" }\n'
    )
    assert compared_blobs(net, ()) == ("locf", "conff")
    assert detection_blobs(net) == ()


def test_a_net_of_constants_alone_is_compared_by_them():
    net = ssd().until(["prior"])
    assert compared_blobs(net, ()) == ("prior",)


def test_a_detector_ends_with_a_report(tmp_path: Path, capsys):
    config = write_job(tmp_path, ssd())
    assert main([str(config)]) == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    exact, fake, int8 = report["accuracy"]
    assert exact["detections"] == []
    for score in (fake, int8):
        (found,) = score["detections"]
        assert found["blob"] == "out"
        assert found["float_boxes"] > 20
        assert 0.8 < found["matched_50"] <= 1
        assert found["matched_75"] <= found["matched_50"]
        assert 0 < found["score_error"] < 0.05
    assert "Detections" in capsys.readouterr().out


def row(image: int, label: int, score: float, *box: float) -> list[float]:
    return [image, label, score, *box]


def test_boxes_are_matched_by_hand():
    exact = np.array([
        row(0, 1, 0.9, 0, 0, 4, 4), row(0, 1, 0.8, 10, 10, 14, 14), row(0, 2, 0.7, 0, 0, 4, 4),
        row(1, 1, 0.6, 0, 0, 4, 4),
    ])  # fmt: skip
    other = np.array([
        row(0, 1, 0.8, 0, 0, 4, 3),  # 0.75 with the first
        row(0, 1, 0.8, 0, 0, 4, 4),  # 1.0 with the first
        row(0, 2, 0.5, 0, 0, 4, 2.4),  # 0.6 with the third
        row(1, 2, 0.6, 0, 0, 4, 4),  # another class than the fourth
    ])  # fmt: skip
    agreement = Agreement()
    agreement.update(exact.reshape(1, 1, -1, 7), other.reshape(1, 1, -1, 7))
    score = agreement.score("out")
    assert (score.float_boxes, score.boxes) == (4, 4)
    assert score.matched_50 == 2 * 2 / 8
    assert score.matched_75 == 2 * 1 / 8
    assert score.score_error == pytest.approx((0.1 + 0.2) / 2)


def test_no_boxes_are_no_agreement_and_no_error():
    none = np.array([[0.0] + [-1.0] * 6, [1.0] + [-1.0] * 6])  # as Caffe gives it, for two images
    agreement = Agreement()
    agreement.update(none, none)
    score = agreement.score("out")
    assert (score.float_boxes, score.boxes) == (0, 0)
    assert math.isnan(score.matched_50)
    assert math.isnan(score.score_error)
    agreement.update(np.array([row(0, 1, 0.9, 0, 0, 1, 1)]), none)
    assert agreement.score("out").matched_50 == 0


def area(box: tuple[int, ...]) -> set[tuple[int, int]]:
    """Return the unit squares of a box."""
    return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}


boxes = st.lists(st.tuples(*[st.integers(0, 6)] * 4), max_size=5)


@settings(max_examples=60, deadline=None)
@given(boxes, boxes)
def test_overlaps_equal_counted_squares(a: list, b: list):
    found = overlaps(np.array(a).reshape(-1, 4), np.array(b).reshape(-1, 4))
    assert found.shape == (len(a), len(b))
    for i, one in enumerate(a):
        for j, two in enumerate(b):
            union = area(one) | area(two)
            want = len(area(one) & area(two)) / len(union) if union else 0
            assert found[i, j] == pytest.approx(want)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 12))
def test_a_net_agrees_with_itself_and_both_ways(seed: int, count: int):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 5, (2, count, 2))
    box = np.concatenate([low, low + rng.uniform(1, 5, (2, count, 2))], axis=2)
    heads = np.stack(
        [np.zeros((2, count)), rng.integers(0, 2, (2, count)), rng.random((2, count))], 2
    )
    rows = np.concatenate([heads, box], axis=2)
    same, one, two = Agreement(), Agreement(), Agreement()
    same.update(rows[0], rows[0])
    assert same.matched == [count, count]
    assert not any(same.errors)
    one.update(rows[0], rows[1])
    two.update(rows[1], rows[0])
    assert one.matched[1] <= one.matched[0] <= count
    # no pair is left over, so that neither is less than half of the most there could be
    assert one.matched[0] <= 2 * two.matched[0]
    assert two.matched[0] <= 2 * one.matched[0]
