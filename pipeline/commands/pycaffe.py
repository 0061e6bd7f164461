"""What evaluators written for pycaffe need of it, on the nets here: no Caffe is installed or asked.

`standing_in` puts a module ``caffe`` in place for as long as such a file runs. It has ``Net`` with
blobs that are filled and read, ``forward``, ``io.Transformer`` and ``io.load_image``, the constants
and the modes, which do nothing. Images are resized by OpenCV, bilinear, where pycaffe asks
scikit-image: values differ in the last digits.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import caffeio
from caffeio.proto import caffe_pb2
from pipeline.runtime.executor import FloatNet
from pipeline.runtime.shapes import input_shapes

__all__ = ["standing_in"]

#: Called with the prototxt, and what the net's inputs hold, before each pass.
Watch = Callable[[Path, Mapping[str, np.ndarray]], None]


class Blob:
    """A blob of a net: an input is an array to fill, others are computed when they are read."""

    def __init__(self, net: Net, name: str, shape: Sequence[int] | None) -> None:
        self._net, self._name = net, name
        self._own = None if shape is None else np.zeros(shape, np.float32)

    @property
    def data(self) -> np.ndarray:
        """The values, float32."""
        return self._own if self._own is not None else self._net.value(self._name)

    @data.setter
    def data(self, values: np.ndarray) -> None:
        self.data[...] = values

    def reshape(self, *shape: int) -> None:
        """Give an input another shape; its values are then 0."""
        self._own = np.zeros(shape, np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.data.shape

    @property
    def count(self) -> int:
        """How many values it holds."""
        return self.data.size

    num = property(lambda self: self.shape[0])
    channels = property(lambda self: self.shape[1])
    height = property(lambda self: self.shape[2])
    width = property(lambda self: self.shape[3])


class Net:
    """As ``caffe.Net(prototxt, caffemodel, phase)``; parameters and training are not there."""

    watch: Watch = staticmethod(lambda path, inputs: None)

    def __init__(self, network_file: str, *args: Any, phase: int = 1, weights: str = "") -> None:
        for value in args:
            if isinstance(value, str):
                weights = value
            else:
                phase = int(value)
        self._path = Path(network_file)
        net = caffeio.read_net(network_file, weights or None, ("TRAIN", "TEST")[phase])
        self._net = FloatNet(net)
        shapes = input_shapes(net)
        names = dict.fromkeys(v.blob for link in net.links for v in link.writes)
        self.blobs = OrderedDict(
            (name, Blob(self, name, shapes.get(name) or ((1,) if name in net.inputs else None)))
            for name in names
        )
        self.inputs, self.outputs = list(net.inputs), list(net.outputs)
        self._layer_names = [layer.name for layer in net.layers]
        self._given: dict[str, np.ndarray] = {}
        self._known: dict[str, np.ndarray] = {}

    def reshape(self) -> None:
        """Do nothing: shapes follow the inputs at each pass."""

    def forward(
        self, blobs: Sequence[str] | None = None, **inputs: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Run the net on what its inputs hold, or are given; return outputs and asked blobs."""
        for name, x in inputs.items():
            self.blobs[name].reshape(*x.shape)
            self.blobs[name].data[...] = x
        self._given = {name: self.blobs[name].data.copy() for name in self.inputs}
        type(self).watch(self._path, self._given)
        wanted = list(dict.fromkeys([*self.outputs, *(blobs or ())]))
        self._known = dict(self._net.forward(self._given, wanted))
        return {name: self._known[name] for name in wanted}

    def forward_all(
        self, blobs: Sequence[str] | None = None, **inputs: np.ndarray
    ) -> dict[str, np.ndarray]:
        """As `forward`: batches have any size here."""
        return self.forward(blobs, **inputs)

    def value(self, name: str) -> np.ndarray:
        """Return a blob of the last pass."""
        if not self._given:
            raise RuntimeError(f"blob '{name}' has no values before forward()")
        if name not in self._known:
            self._known.update(self._net.forward(self._given, [name]))
        return self._known[name]


class Transformer:
    """As ``caffe.io.Transformer``: from an image (H, W, C) to a net's input (C, H, W)."""

    def __init__(self, inputs: Mapping[str, Sequence[int]]) -> None:
        self.inputs = dict(inputs)
        self._of: dict[str, dict[str, Any]] = {name: {} for name in inputs}

    def set_transpose(self, name: str, order: Sequence[int]) -> None:
        """Order the axes: (2, 0, 1) puts channels first."""
        self._of[name]["transpose"] = tuple(order)

    def set_channel_swap(self, name: str, order: Sequence[int]) -> None:
        """Order the channels: (2, 1, 0) makes BGR of RGB."""
        self._of[name]["swap"] = tuple(order)

    def set_raw_scale(self, name: str, scale: float) -> None:
        """Multiply before the mean is subtracted."""
        self._of[name]["raw"] = scale

    def set_mean(self, name: str, mean: np.ndarray) -> None:
        """Subtract a mean: one a channel, or an image (C, H, W)."""
        mean = np.asarray(mean, np.float32)
        self._of[name]["mean"] = mean[:, None, None] if mean.ndim == 1 else mean

    def set_input_scale(self, name: str, scale: float) -> None:
        """Multiply in the end."""
        self._of[name]["scale"] = scale

    def preprocess(self, name: str, image: np.ndarray) -> np.ndarray:
        """Return what the net reads, float32."""
        how, size = self._of[name], tuple(self.inputs[name][2:])
        x = np.asarray(image, np.float32)
        if x.shape[:2] != size:
            x = resize_image(x, size)
        x = x.transpose(how.get("transpose", (0, 1, 2)))
        if "swap" in how:
            x = x[list(how["swap"])]
        x = x * np.float32(how.get("raw", 1)) - how.get("mean", np.float32(0))
        return (x * np.float32(how.get("scale", 1))).astype(np.float32)


def resize_image(image: np.ndarray, size: Sequence[int], interp_order: int = 1) -> np.ndarray:
    """Return an image (H, W, C) of another size, bilinear (order 1) or by nearest values."""
    import cv2

    how = cv2.INTER_LINEAR if interp_order else cv2.INTER_NEAREST
    resized = cv2.resize(np.asarray(image, np.float32), (size[1], size[0]), interpolation=how)
    return resized.reshape(*size, image.shape[2])


def load_image(path: str, color: bool = True) -> np.ndarray:
    """Return an image (H, W, 3) in RGB, or (H, W, 1), from 0 to 1, float32."""
    import cv2

    image = cv2.imread(str(path), cv2.IMREAD_COLOR if color else cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise OSError(f"cannot read image '{path}'")
    image = image[:, :, ::-1] if color else image[:, :, None]
    return image.astype(np.float32) / 255


def blobproto_to_array(blob: caffe_pb2.BlobProto) -> np.ndarray:
    """Return the values of a blob, as a mean file holds one."""
    shape = blob.shape.dim or (blob.num, blob.channels, blob.height, blob.width)
    return np.array(blob.data, np.float32).reshape(tuple(shape))


def _module(watch: Watch) -> dict[str, ModuleType]:
    names = ("caffe", "caffe.io", "caffe.proto")
    made = {name: ModuleType(name, __doc__) for name in names}
    io, top = made["caffe.io"], made["caffe"]
    for function in (load_image, resize_image, blobproto_to_array, Transformer):
        setattr(io, function.__name__, function)
    watched = type("Net", (Net,), {"watch": staticmethod(watch)})
    contents = {
        "Net": watched, "TRAIN": 0, "TEST": 1, "io": io, "proto": made["caffe.proto"],
        **dict.fromkeys(("set_mode_cpu", "set_mode_gpu", "set_device"), lambda *args: None),
    }  # fmt: skip
    vars(top).update(contents)
    vars(made["caffe.proto"])["caffe_pb2"] = caffe_pb2
    return {**made, "caffe.proto.caffe_pb2": caffe_pb2}


@contextmanager
def standing_in(watch: Watch) -> Iterator[None]:
    """Let ``import caffe`` give the stand-in; `watch` sees each pass before it runs."""
    made = _module(watch)
    before = {name: sys.modules.get(name) for name in made}
    sys.modules.update(made)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
