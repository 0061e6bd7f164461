"""Metrics: against pycocotools, OpenCV and counting by hand; and evaluators of the user's own."""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import samples, write_job
from test_pipeline_detections import ssd

import pipeline
from caffeio.data import Batch
from pipeline.errors import ConfigError, PipelineError
from pipeline.evaluators import evaluator_maker
from pipeline.evaluators.boxes import MeanAveragePrecision, read_boxes
from pipeline.evaluators.images import Psnr
from pipeline.evaluators.segmentation import MeanIou
from pipeline.run import main


def batch(names: list[str], labels: np.ndarray | None = None) -> Batch:
    return Batch(0, {}, labels, tuple(names))


# ------------------------------------------------------------------------------------- boxes


def scene(seed: int, images: int = 3, difficult: bool = True):
    """Return true boxes (image, label, box, difficult) and detections (image, label, score, box)."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for image in range(images):
        for _ in range(rng.integers(0, 6)):
            label = int(rng.integers(1, 4))
            low = rng.uniform(0, 0.6, 2)
            box = np.concatenate([low, low + rng.uniform(0.1, 0.4, 2)])
            truth.append((image, label, box, difficult and rng.random() < 0.25))
            for _ in range(rng.integers(0, 3)):
                moved = box + rng.normal(0, 0.03, 4)
                moved[2:] = np.maximum(moved[2:], moved[:2] + 0.01)  # COCO ignores empty boxes
                found.append((image, label, rng.random(), moved))
        for _ in range(rng.integers(0, 3)):
            low = rng.uniform(0, 0.6, 2)
            found.append(
                (image, int(rng.integers(1, 4)), rng.random(), np.concatenate([low, low + 0.3]))
            )
    return truth, found


def write_boxes(path: Path, truth: list) -> Path:
    lines = [
        f"im{image}.png {label} {' '.join(f'{v:.17g}' for v in box)} {int(hard)}"
        for image, label, box, hard in truth
    ]
    path.write_text("# sample label xmin ymin xmax ymax difficult\n" + "\n".join(lines))
    return path


def measured(path: Path, found: list, images: int, style: str) -> dict[str, float]:
    """Run an evaluator over batches of two images."""
    evaluator = MeanAveragePrecision(path, style=style)  # type: ignore[arg-type]
    for first in range(0, images, 2):
        names = [f"folder/im{i}.png" for i in range(first, min(first + 2, images))]
        rows = [
            [image - first, label, score, *box]
            for image, label, score, box in found
            if first <= image < first + 2
        ]
        out = np.array(rows or [[0.0] + [-1.0] * 6]).reshape(1, 1, -1, 7)
        evaluator.update({"x": np.zeros((2, 3)), "out": out}, batch(names))
    return evaluator.result()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_coco_style_equals_pycocotools(tmp_path_factory, seed: int):
    coco, cocoeval = (
        pytest.importorskip("pycocotools.coco"),
        pytest.importorskip("pycocotools.cocoeval"),
    )
    truth, found = scene(seed)
    if not [t for t in truth if not t[3]] or not found:
        return
    path = write_boxes(tmp_path_factory.mktemp("boxes") / "boxes.txt", truth)

    def wide(box: np.ndarray) -> list[float]:
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]

    with contextlib.redirect_stdout(io.StringIO()):
        api = coco.COCO()
        api.dataset = {
            "images": [{"id": i} for i in range(3)], "categories": [{"id": i} for i in (1, 2, 3)],
            "annotations": [
                {"id": n + 1, "image_id": i, "category_id": label, "bbox": wide(box), "iscrowd": 0,
                 "area": 1.0, "ignore": int(hard)}
                for n, (i, label, box, hard) in enumerate(truth)
            ],
        }  # fmt: skip
        api.createIndex()
        results = api.loadRes([
            {"image_id": i, "category_id": label, "score": score, "bbox": wide(box)}
            for i, label, score, box in found
        ])  # fmt: skip
        judge = cocoeval.COCOeval(api, results, "bbox")
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        # pycocotools overwrites "ignore" by "iscrowd": put it back before matching
        judge._prepare()
        for anns in judge._gts.values():
            for ann in anns:
                ann["ignore"] = ann["_ignore"] = int(truth[ann["id"] - 1][3])
        judge._prepare = lambda: None
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0, 2]  # levels, recalls, classes
    with np.errstate(all="ignore"):
        per_level = [
            level[level > -1].mean() if (level > -1).any() else math.nan for level in precision
        ]
    got = measured(path, found, 3, "coco")
    assert got["mAP@0.5"] == pytest.approx(100 * per_level[0], abs=1e-6, nan_ok=True)
    assert got["mAP@0.75"] == pytest.approx(100 * per_level[5], abs=1e-6, nan_ok=True)
    assert got["mAP"] == pytest.approx(100 * float(np.mean(per_level)), abs=1e-6, nan_ok=True)


def test_voc_style_by_hand(tmp_path: Path):
    truth = [(0, 1, np.array([0, 0, 0.4, 0.4]), False), (1, 1, np.array([0, 0, 0.4, 0.4]), False),
             (1, 1, np.array([0.5, 0.5, 0.9, 0.9]), True)]  # fmt: skip
    found = [
        (0, 1, 0.9, np.array([0, 0, 0.4, 0.4])),  # right
        (0, 1, 0.8, np.array([0, 0, 0.4, 0.38])),  # the same box once more: wrong
        (1, 1, 0.7, np.array([0.5, 0.5, 0.9, 0.9])),  # difficult: neither
        (1, 1, 0.6, np.array([0, 0, 0.4, 0.4])),  # right
        (1, 2, 0.5, np.array([0, 0, 0.4, 0.4])),  # a class without true boxes
    ]
    path = write_boxes(tmp_path / "boxes.txt", truth)
    # recall 0.5 at precision 1, recall 1 at precision 2/3
    assert measured(path, found, 2, "voc") == {"mAP@0.5": pytest.approx(100 * (0.5 + 0.5 * 2 / 3))}
    assert measured(path, [], 2, "voc") == {"mAP@0.5": 0.0}


def test_lists_of_boxes_that_are_none(tmp_path: Path):
    path = tmp_path / "boxes.txt"
    for text, what in [("a 1 0 0 1", ":1: 'a 1 0 0 1' is not"), ("#\na x 0 0 1 1", ":2: 'a x"),
                       ("a 1.5 0 0 1 1", "is not sample label"), ("a 1 0 0 300 200", "divide pixels")]:  # fmt: skip
        path.write_text(text)
        with pytest.raises(ConfigError, match=what):
            read_boxes(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_boxes(tmp_path / "none.txt")
    path.write_text("a.png,1,0,0,1,1\nb.png\t1\t0 0 1 1 1\n")
    assert read_boxes(path) == {"a.png": {1: [[0, 0, 1, 1, 0]]}, "b.png": {1: [[0, 0, 1, 1, 1]]}}
    evaluator = MeanAveragePrecision(path)
    with pytest.raises(
        PipelineError, match="needs an output of DetectionOutput; the outputs are y"
    ):
        evaluator.update({"y": np.zeros((1, 7))}, batch(["a.png"]))
    evaluator.update({"y": np.full((1, 1, 1, 7), -1.0)}, batch(["other.png"]))
    with pytest.raises(PipelineError, match=r"names none of the samples, of which .*'other.png'"):
        evaluator.result()


# ----------------------------------------------------------------------------- segmentation


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_mean_iou_equals_counted_pixels(seed: int, numbers: bool):
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 2, 3, 255], (4, 3, 5))
    scores = rng.normal(size=(4, 4, 3, 5)).astype(np.float32)
    predicted = scores.argmax(1)
    evaluator = MeanIou()
    for i in range(0, 4, 2):
        out = predicted[i : i + 2, None].astype(np.float32) if numbers else scores[i : i + 2]
        evaluator.update(
            {"small": np.zeros((2, 4, 1, 1)), "y": out}, batch(["a", "b"], labels[i : i + 2])
        )
    pairs = [(t, p) for t, p in zip(labels.flat, predicted.flat, strict=True) if t != 255]
    shares = []
    for c in range(4):
        either = sum(c in pair for pair in pairs)
        if either:
            shares.append(sum(t == p == c for t, p in pairs) / either)
    assert evaluator.result()["mIoU"] == pytest.approx(100 * sum(shares) / len(shares))
    right = sum(t == p for t, p in pairs) / len(pairs)
    assert evaluator.result()["pixel_accuracy"] == pytest.approx(100 * right)


def test_labels_that_are_no_classes_of_pixels():
    y = {"y": np.zeros((1, 2, 4, 4), np.float32)}
    with pytest.raises(PipelineError, match=r"needs labels of shape \(N, H, W\)"):
        MeanIou().update(y, batch(["a"], np.array([1])))
    with pytest.raises(PipelineError, match=r"no output has the labels' size \(3, 3\): y"):
        MeanIou().update(y, batch(["a"], np.zeros((1, 3, 3))))
    with pytest.raises(PipelineError, match="negative; set ignore_label"):
        MeanIou().update(y, batch(["a"], np.full((1, 4, 4), -1)))
    nothing = MeanIou(ignore_label=-1)
    nothing.update(y, batch(["a"], np.full((1, 4, 4), -1)))
    assert math.isnan(nothing.result()["mIoU"])


# ----------------------------------------------------------------------------------- images


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 2))
def test_psnr_equals_opencv(seed: int, border: int):
    rng = np.random.default_rng(seed)
    true = rng.uniform(0, 255, (3, 1, 8, 9)).astype(np.float32)
    found = np.clip(true + rng.normal(0, 20, true.shape), 0, 255).astype(np.float32)
    evaluator = Psnr(border=border)
    evaluator.update({"y": found}, batch(["a", "b", "c"], true))
    inside = slice(border, -border or None)
    want = [
        cv2.PSNR(a[0, inside, inside], b[0, inside, inside])
        for a, b in zip(true, found, strict=True)
    ]
    assert evaluator.result()["PSNR"] == pytest.approx(np.mean(want), rel=1e-6)


def test_psnr_at_its_edges():
    one = np.full((1, 1, 4, 4), 0.5, np.float32)
    exact = Psnr(peak=1)
    exact.update({"y": one}, batch(["a"], one))
    assert exact.result() == {"PSNR": 100.0}
    with pytest.raises(PipelineError, match="peak must be positive"):
        Psnr(peak=0)
    with pytest.raises(PipelineError, match=r"not those of shape \(1,\): y \(1, 1, 4, 4\)"):
        Psnr().update({"y": one}, batch(["a"], np.zeros(1)))
    with pytest.raises(PipelineError, match="not none"):
        Psnr().update({"y": one}, batch(["a"]))


# ---------------------------------------------------------------------------- in a whole run

OWN = """
class Evaluator:
    def __init__(self, factor=1.0):
        self.factor, self.values = factor, []
    def update(self, outputs, batch):
        assert len(batch.names) == len(outputs["fc"])
        self.values += outputs["fc"].mean(axis=1).tolist()
    def result(self):
        return {"level": self.factor * sum(self.values) / len(self.values), "count": len(self.values)}
"""


def job(tmp_path: Path, text: str, lines: str = "", **more: str) -> Path:
    (tmp_path / "mine.py").write_text(text)
    return write_job(tmp_path, evaluate=f'evaluator = "mine.py"\n{lines}', **more)


def test_an_evaluator_of_the_users_own(tmp_path: Path, capsys):
    config = job(tmp_path, OWN, "options = { factor = 2.0 }")
    assert main([str(config)]) == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    metrics = {s["model"]: s["metrics"] for s in report["accuracy"]}
    from small_nets import small_net

    fc = pipeline.FloatNet(small_net()).forward({"data": samples(24)[8:]}, ["fc"])["fc"]
    assert metrics["float"] == {"level": pytest.approx(2 * fc.mean(), rel=1e-4), "count": 16.0}
    assert set(metrics) == {"float", "fakequant", "int8"}
    assert metrics["int8"]["level"] == pytest.approx(metrics["float"]["level"], abs=0.1)
    assert "Metrics" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "lines", "what"),
    [
        ("x = 1", "", "defines no class Evaluator"),
        (OWN, "options = { facto = 1 }", "evaluate.options: .*unexpected keyword argument 'facto'"),
        (OWN, 'options = { factor = "a" }\nboxes = "b.txt"', "got an unexpected keyword"),
        (
            OWN.replace("self.factor, ", "self.x = 1 / 0; self.factor, "),
            "",
            r"mine.py':4 fails: Zero",
        ),
    ],
)
def test_evaluators_that_cannot_be_made_stop_before_the_work(tmp_path, capsys, text, lines, what):
    config = job(tmp_path, text, lines)
    with pytest.raises(ConfigError, match=what):
        pipeline.quantize_model(config)
    assert main([str(config)]) == 2
    assert not list((tmp_path / "out").glob("*"))


def test_an_evaluator_that_fails_on_the_first_batch_stops_before_the_work(tmp_path: Path):
    config = job(tmp_path, OWN.replace('outputs["fc"]', 'outputs["nothing"]'))
    with pytest.raises(PipelineError, match=r"evaluate.evaluator: .*mine.py':6 fails: KeyError"):
        pipeline.quantize_model(config)


def test_an_evaluator_that_fails_later_loses_no_calibration(tmp_path: Path):
    config = job(tmp_path, OWN.replace('"count": len(self.values)', '"count": "many"'))
    report = pipeline.quantize_model(config)
    assert (tmp_path / "out/net_record.txt").exists()
    assert all(not score.metrics for score in report.accuracy)
    (note,) = [n for n in report.notes if "evaluator measured nothing" in n]
    assert "'many'" in note


def test_options_without_an_evaluator_are_refused(tmp_path: Path):
    config = write_job(tmp_path, evaluate="options = { peak = 1 }")
    with pytest.raises(ConfigError, match=r"need evaluate\.evaluator"):
        pipeline.quantize_model(config)


def test_average_precision_in_a_whole_run(tmp_path: Path):
    config = write_job(tmp_path, ssd(), evaluate='evaluator = "map-voc"\nboxes = "boxes.txt"')
    net = pipeline.FloatNet(ssd())
    lines = []
    for i, x in enumerate(samples(24)[8:]):
        rows = net.forward({"data": x[None]})["out"].reshape(-1, 7)
        lines += [f"{i + 8} 1 {' '.join(map(str, row[3:]))}" for row in rows if row[2] > 0.9]
    names = [s for s in pipeline_names(tmp_path)]
    lines = [line.replace(line.split()[0], names[int(line.split()[0])], 1) for line in lines]
    (tmp_path / "boxes.txt").write_text("\n".join(lines))
    report = pipeline.quantize_model(config)
    exact, _, int8 = (s.metrics["mAP@0.5"] for s in report.accuracy)
    assert exact > 95  # its own boxes, those of low score left out
    assert 70 < int8 <= 100


def pipeline_names(folder: Path) -> list[str]:
    """Return the names of a job's samples."""
    from caffeio.data import open_source

    source = open_source(folder / "data.npz", dataset="data", labels="label")
    return [Path(source[i].name).name.replace(" ", "") for i in range(24)]


def test_a_metric_of_ones_own_drives_the_fallback(tmp_path: Path):
    text = OWN.replace(
        'return {"level"', 'return {"closeness": -abs(sum(self.values) - TARGET), "level"'
    )
    net = pipeline.FloatNet(__import__("small_nets").small_net())
    fc = net.forward({"data": samples(24)[8:]}, ["fc"])["fc"]
    text = f"TARGET = {float(fc.mean(axis=1).sum())!r}\n{text}"
    lines = '[fallback]\nmetric = "closeness"\nmax_drop = 1e-4'
    report = pipeline.quantize_model(job(tmp_path, text, extra=lines))
    assert report.fallback is not None
    assert report.fallback.trials
    config = tmp_path / "config.toml"
    config.write_text(
        config.read_text().replace('"closeness"', '"closenes"').replace('"out"', '"other"')
    )
    with pytest.raises(ConfigError, match="'closenes' is none of top1, top5, sqnr, closeness"):
        pipeline.quantize_model(config)


def test_what_a_maker_makes_is_new_each_time(tmp_path: Path):
    make = evaluator_maker("psnr", {"peak": 1.0})
    one = np.ones((1, 1, 2, 2), np.float32)
    first, second = make(), make()
    first.update({"y": one}, batch(["a"], one))
    assert first.result() == {"PSNR": 100.0}
    assert math.isnan(second.result()["PSNR"])
