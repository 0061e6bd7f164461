"""The demo of the package: from its config to files, against OpenCV and plain NumPy."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import caffeio
import pipeline
from caffeio.caffemodel import read_caffemodel
from pipeline.config.load import load_config
from pipeline.demo.trainable import optional_module
from pipeline.report.values import Report

DEMO = Path(pipeline.__file__).resolve().parent / "demo"
LAYERS = {"conv1", "conv2_dw", "conv2_pw", "conv3", "conv4", "pool2", "score"}

needs_opencv = pytest.mark.skipif(
    not hasattr(cv2.dnn, "readNetFromCaffe"),
    reason="this OpenCV reads no Caffe nets; pip install 'opencv-python-headless<5'",
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return pipeline.quantize_model(DEMO / "config.toml", output=tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def net() -> caffeio.Net:
    return caffeio.read_net(DEMO / "deploy.prototxt", DEMO / "digits.caffemodel")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    with np.load(DEMO / "test.npz") as file:
        return file["images"].astype(np.float32) / 256


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    with np.load(DEMO / "test.npz") as file:
        return file["labels"]


def top1(scores: np.ndarray, labels: np.ndarray) -> float:
    return 100 * float((scores.argmax(1) == labels).mean())


def sqnr(want: np.ndarray, got: np.ndarray) -> float:
    want, noise = want.astype(np.float64), got.astype(np.float64) - want
    return 10 * np.log10((want**2).sum() / (noise**2).sum())


def test_weights_load_without_notes(net: caffeio.Net) -> None:
    assert net.notes == ()
    assert not caffeio.nonfinite_blobs(net)
    assert 20_000 <= sum(blob.size for layer in net.layers for blob in layer.blobs) <= 60_000


def test_batch_norm_has_caffes_scale_factor(net: caffeio.Net) -> None:
    """Mean and variance are stored as sums, to be divided by a third blob that is not 1."""
    for layer in net.layers:
        if layer.type == "BatchNorm":
            assert [b.shape for b in layer.blobs][1:] == [layer.blobs[0].shape, (1,)]
            assert layer.blobs[2][0] > 2


def test_data_is_disjoint_and_small(images: np.ndarray, labels: np.ndarray) -> None:
    files = sorted((DEMO / "calibration").glob("*.png"))
    calibration = [np.asarray(cv2.imread(str(f), cv2.IMREAD_GRAYSCALE)) for f in files]
    assert len(calibration) == 32
    assert {x.shape for x in calibration} == {(16, 16)}
    assert images.shape == (400, 1, 16, 16)
    assert np.bincount(labels, minlength=10).min() >= 25
    tested = {np.rint(x * 256).astype(np.uint8).tobytes() for x in images}
    assert not tested.intersection(x.tobytes() for x in calibration)
    shipped = ("*.toml", "*.prototxt", "*.caffemodel", "*.npz", "*.py", "*.md", "calibration/*")
    assert sum(f.stat().st_size for pattern in shipped for f in DEMO.glob(pattern)) < 400_000


@needs_opencv
def test_float_net_equals_opencv(net: caffeio.Net, images: np.ndarray, labels: np.ndarray) -> None:
    reader = cv2.dnn.readNetFromCaffe(
        str(DEMO / "deploy.prototxt"), str(DEMO / "digits.caffemodel")
    )
    reader.setInput(images)
    names = ["score", "prob"]
    out = pipeline.FloatNet(net).forward({"data": images}, names)
    for name, want in zip(names, reader.forward(names), strict=True):
        assert np.abs(out[name] - want).max() <= 1e-4 * np.abs(want).max()
    assert top1(out["prob"], labels) >= 97


def test_accuracy_before_and_after(report: Report, net: caffeio.Net, images: np.ndarray,
                                   labels: np.ndarray) -> None:  # fmt: skip
    scores = {score.model: score for score in report.accuracy}
    assert list(scores) == ["float", "fakequant", "int8"]
    assert {score.samples for score in report.accuracy} == {400}
    (prob,) = pipeline.FloatNet(net).forward({"data": images}).values()
    float_top1 = scores["float"].top1
    assert float_top1 == pytest.approx(top1(prob, labels))
    assert float_top1 is not None
    assert float_top1 >= 97
    for name in ("fakequant", "int8"):
        assert scores[name].top1 == pytest.approx(float_top1, abs=1.0)
        assert all(output.sqnr > 30 for output in scores[name].outputs)


def test_layers_and_their_rules(report: Report) -> None:
    layers = {layer.layer: layer for layer in report.layers}
    assert {name for name, layer in layers.items() if layer.quantized} == LAYERS
    assert layers["conv1"].absorbed == ("conv1_bn", "conv1_scale")
    assert "dilation" in layers["conv5"].reason
    assert layers["conv5"].absorbed == ("conv5_bn", "conv5_scale")
    assert "MAX" in layers["pool1"].reason
    assert report.samples == 32
    assert report.notes == ()


def test_files_read_back(report: Report, net: caffeio.Net, images: np.ndarray) -> None:
    assert all(path.stat().st_size > 0 for path in report.files.values())
    record = caffeio.read_record(report.files["record"])
    assert set(record.layers) == LAYERS
    deploy = caffeio.read_net(report.files["deploy_prototxt"])
    weights = read_caffemodel(report.files["deploy_weights"])
    assert weights.notes == ()
    assert set(weights.layers) <= {layer.name for layer in deploy.layers}
    assert [b.array.dtype for b in weights.layers["conv3"]] == [np.int8, np.int32]
    assert [b.array.dtype for b in weights.layers["conv5"]] == [np.float32, np.float32]
    assert [b.array.dtype for b in weights.layers["conv3_dequant"]] == [np.uint64]
    inputs = {"data": images[:50]}
    from_file, from_run = (
        pipeline.Int8Net(net, r).forward(inputs, ["score"])["score"]
        for r in (record, report.record)
    )
    np.testing.assert_array_equal(from_file, from_run)


def test_saved_fakequant_model_gives_the_reported_scores(
    report: Report, net: caffeio.Net, images: np.ndarray, labels: np.ndarray
) -> None:
    saved = caffeio.read_net(report.files["fakequant_prototxt"], report.files["fakequant_weights"])
    assert saved.notes == ()
    names = ["score", "prob"]
    got = pipeline.FloatNet(saved).forward({"data": images}, names)
    want = pipeline.FloatNet(net).forward({"data": images}, names)
    score = next(s for s in report.accuracy if s.model == "fakequant")
    assert score.top1 == pytest.approx(top1(got["prob"], labels))
    assert [output.blob for output in score.outputs] == names
    for output in score.outputs:
        assert output.sqnr == pytest.approx(sqnr(want[output.blob], got[output.blob]), abs=0.2)
    int8 = report.int8_net().forward({"data": images}, ["score"])["score"]
    assert np.abs(int8 - got["score"]).max() <= 0.02 * np.abs(want["score"]).max()


def test_second_run_replaces_the_files(report: Report) -> None:
    assert load_config(DEMO / "config.toml").output.overwrite
    timed = ("report", "page")  # these two say how long the run took
    before = {kind: path.read_bytes() for kind, path in report.files.items() if kind not in timed}
    folder = report.files["report"].parent
    again = pipeline.quantize_model(DEMO / "config.toml", output=folder)
    assert {kind: again.files[kind].read_bytes() for kind in before} == before
    assert sorted(folder.iterdir()) == sorted(again.files.values())


@pytest.mark.filterwarnings("default")  # those of PyTorch are its own
def test_training_script_writes_the_same_kind_of_files(tmp_path: Path, images: np.ndarray) -> None:
    pytest.importorskip("torch", reason="needs PyTorch (pip install torch)")
    pytest.importorskip("sklearn", reason="needs scikit-learn (pip install scikit-learn)")
    from pipeline.demo.train import main

    main(["--output", str(tmp_path), "--epochs", "1"])
    trained = caffeio.read_net(DEMO / "deploy.prototxt", tmp_path / "digits.caffemodel")
    assert trained.notes == ()
    assert (tmp_path / "test.npz").read_bytes() == (DEMO / "test.npz").read_bytes()
    made = {f.name: f.read_bytes() for f in (tmp_path / "calibration").iterdir()}
    assert made == {f.name: f.read_bytes() for f in (DEMO / "calibration").iterdir()}


def test_a_missing_library_of_the_training_is_named() -> None:
    with pytest.raises(ImportError, match=r"needs no_such_library: pip install torch scikit-learn"):
        optional_module("no_such_library")
