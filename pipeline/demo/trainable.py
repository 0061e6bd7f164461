"""A Caffe net run by PyTorch, so that it can be trained: as many layer types as the demo has."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from caffeio import Layer, Net, NetError
from caffeio.proto import caffe_pb2

__all__ = ["TrainableNet", "optional_module"]

Tensor = Any  # PyTorch is optional and not imported here


def optional_module(name: str) -> Any:
    """Import a module that only the training of the demo needs.

    Raises
    ------
    ImportError
        If it is not installed; it says what to install.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"training the demo needs {error.name}: pip install torch scikit-learn"
        ) from None


class TrainableNet:
    """A net whose blobs are PyTorch tensors with gradients.

    Square kernels, one stride and one pad for both axes, as in the demo's prototxt.

    Parameters
    ----------
    net : Net
        One input with a shape, and a Softmax at the end; its own blobs are not used.
    seed : int
        For the initial weights: normal, with the variance 2 / fan-in; no biases.

    Attributes
    ----------
    blobs : dict of layer name to list of Tensor
        In Caffe's order and shapes, float32.

    Raises
    ------
    ImportError
        If PyTorch is not installed.
    caffeio.NetError
        If a layer's type is not one of those that the demo has.
    """

    def __init__(self, net: Net, seed: int) -> None:
        self.net = net
        self.blobs: dict[str, list[Tensor]] = {}
        self._torch = optional_module("torch")
        self._random = self._torch.Generator().manual_seed(seed)
        source = net.layers[0]
        shape = tuple(source.param.input_param.shape[0].dim)
        with self._torch.no_grad():
            self._run(self._torch.zeros(shape), training=False)
        for layer in net.layers:
            for blob in self.parameters(layer):
                blob.requires_grad_()

    def parameters(self, layer: Layer) -> list[Tensor]:
        """Return those blobs of a layer that gradients change: BatchNorm's own are sums."""
        return [] if layer.type == "BatchNorm" else self.blobs.get(layer.name, [])

    def scores(self, x: Tensor, training: bool) -> Tensor:
        """Return what the Softmax reads.

        Parameters
        ----------
        x : Tensor, N×C×H×W
        training : bool
            Normalize with the batch's own statistics, and gather them.
        """
        return self._run(x, training)

    def trained(self) -> Net:
        """Return the net with the blobs as they are now."""
        layers = (
            replace(x, blobs=tuple(b.detach().numpy().copy() for b in self.blobs.get(x.name, [])))
            for x in self.net.layers
        )
        return self.net.with_layers(tuple(layers))

    def _run(self, x: Tensor, training: bool) -> Tensor:
        values = {self.net.inputs[0]: x}
        for layer in self.net.layers[1:]:
            bottoms = [values[name] for name in layer.bottoms]
            if layer.type == "Softmax":
                return bottoms[0]
            if layer.name not in self.blobs:
                self.blobs[layer.name] = self._initial(layer, bottoms[0].shape)
            values[layer.tops[0]] = self._forward(layer, bottoms, training)
        raise NetError(f"net '{self.net.name}' does not end in a Softmax layer")

    def _initial(self, layer: Layer, shape: Sequence[int]) -> list[Tensor]:
        """Return the first blobs of a layer that reads a bottom of that shape."""
        torch, channels = self._torch, shape[1]
        if layer.type == "Convolution":
            p = layer.param.convolution_param
            size = (p.num_output, channels // p.group, p.kernel_size[0], p.kernel_size[0])
            return [self._normal(size)] + [torch.zeros(p.num_output)] * p.bias_term
        if layer.type == "InnerProduct":
            outputs = layer.param.inner_product_param.num_output
            return [self._normal((outputs, math.prod(shape[1:]))), torch.zeros(outputs)]
        if layer.type == "BatchNorm":
            return [torch.zeros(channels), torch.zeros(channels), torch.zeros(1)]
        if layer.type == "Scale":
            return [torch.ones(channels), torch.zeros(channels)]
        return []

    def _normal(self, size: tuple[int, ...]) -> Tensor:
        spread = math.sqrt(2 / math.prod(size[1:]))
        return self._torch.randn(size, generator=self._random) * spread

    def _forward(self, layer: Layer, bottoms: Sequence[Tensor], training: bool) -> Tensor:
        """Compute one layer."""
        functional, x = self._torch.nn.functional, bottoms[0]
        blobs = self.blobs[layer.name]
        computations: dict[str, Callable[[], Tensor]] = {
            "Convolution": lambda: self._convolution(layer, x),
            "BatchNorm": lambda: self._batch_norm(layer, x, training),
            "Scale": lambda: x * blobs[0].reshape(1, -1, 1, 1) + blobs[1].reshape(1, -1, 1, 1),
            "ReLU": lambda: functional.relu(x),
            "Eltwise": lambda: bottoms[0] + bottoms[1],
            "InnerProduct": lambda: functional.linear(x.flatten(1), *blobs),
            "Pooling": lambda: self._pooling(layer, x),
        }
        if layer.type not in computations:
            raise NetError(f"has the type {layer.type}, which the demo cannot train", layer.name)
        return computations[layer.type]()

    def _convolution(self, layer: Layer, x: Tensor) -> Tensor:
        param, blobs = layer.param.convolution_param, self.blobs[layer.name]
        return self._torch.nn.functional.conv2d(
            x,
            blobs[0],
            blobs[1] if param.bias_term else None,
            param.stride[0] if param.stride else 1,
            param.pad[0] if param.pad else 0,
            param.dilation[0] if param.dilation else 1,
            param.group,
        )

    def _pooling(self, layer: Layer, x: Tensor) -> Tensor:
        param, functional = layer.param.pooling_param, self._torch.nn.functional
        largest = param.pool == caffe_pb2.PoolingParameter.MAX
        pool = functional.max_pool2d if largest else functional.avg_pool2d
        return pool(x, param.kernel_size, param.stride, param.pad, ceil_mode=True)

    def _batch_norm(self, layer: Layer, x: Tensor, training: bool) -> Tensor:
        """Normalize; Caffe's blobs are decaying sums of means, of variances and of ones."""
        param, sums = layer.param.batch_norm_param, self.blobs[layer.name]
        if training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
            count = x.numel() // x.shape[1]
            with self._torch.no_grad():
                for total, new in zip(sums, (mean, var * count / (count - 1), 1.0), strict=True):
                    total.mul_(param.moving_average_fraction).add_(new)
        else:
            weight = sums[2] if sums[2] else 1.0
            mean, var = sums[0] / weight, sums[1] / weight
        mean, var = (v.reshape(1, -1, 1, 1) for v in (mean, var))
        return (x - mean) / (var + np.float32(param.eps)).sqrt()
