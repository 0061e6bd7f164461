"""The integer net: quantized layers on the INT8 kernels, all others in float.

A quantized layer quantizes its input, multiplies and adds integers, and dequantizes the
sums on their way to memory; so it differs from the fakequant model only by the rounding of
float32 sums there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from caffeio import Net
from caffeio.record import Record
from pipeline.layers.int8 import QuantizedLayer
from pipeline.quantize.fuse import fuse
from pipeline.quantize.integers import quantize_layers
from pipeline.runtime.executor import Executor
from pipeline.runtime.loop import Observer
from pipeline.runtime.state import State

__all__ = ["Int8Net", "unfused"]


def unfused(record: Record) -> set[str]:
    """Return the layers that a record says were kept out of fusion."""
    return {name for name, layer in record.layers.items() if layer.skip_fusion}


class Int8Net:
    """A net whose layers named in a record run on integers.

    Parameters
    ----------
    net : Net
        The float net as read; BatchNorm and Scale are folded here, as for the record.
    record : Record
        Factors of the layers to quantize; all others run in float.
    device : str
        One of `kernels.DEVICES`; results are the same on all of them.

    Attributes
    ----------
    net : Net
        The folded net.
    layers : mapping of layer name to QuantizedLayer

    Raises
    ------
    PipelineError
        If the record does not fit the net.
    caffeio.NetError
        If a layer cannot run.
    """

    def __init__(self, net: Net, record: Record, *, device: str = "cpu") -> None:
        fused = fuse(net, unfused(record)).net
        self._set_up(fused, quantize_layers(fused, record), device)

    @classmethod
    def of_fused(cls, net: Net, record: Record, *, device: str = "cpu") -> Int8Net:
        """Return the integer net of a net that is fused already."""
        return cls.of_layers(net, quantize_layers(net, record), device=device)

    @classmethod
    def of_layers(
        cls, net: Net, layers: Mapping[str, QuantizedLayer], *, device: str = "cpu"
    ) -> Int8Net:
        """Return the integer net of a fused net whose layers have been quantized."""
        int8_net = cls.__new__(cls)
        int8_net._set_up(net, layers, device)
        return int8_net

    def _set_up(self, net: Net, layers: Mapping[str, QuantizedLayer], device: str) -> None:
        self.net = net
        self.layers = layers
        self._executor = Executor(net, layers, device=device)

    def forward(
        self,
        inputs: Mapping[str, np.ndarray],
        blobs: Sequence[str] | None = None,
        observer: Observer | None = None,
        *,
        state: State | None = None,
    ) -> dict[str, np.ndarray]:
        """Run the net; arguments, result and errors as `Executor.forward`."""
        return self._executor.forward(inputs, blobs, observer, state=state)
