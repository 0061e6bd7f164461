"""Packed weights of a compiled net, cached by the operands that they are packed from.

The same layer may be packed in several ways: with or without the BatchNorm behind it, for an
image that holds other channels beside its own, for another zero point. `Operands` holds all
that packing reads and nothing else is handed to it; so two results can only differ where
their keys do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kernels import ConvGeometry
from kernels.programs import Engine, MicroKernel, PackedLayer
from pipeline.layers.folding import Affine, scaled_outputs
from pipeline.runtime.identity import Same

__all__ = ["Operands", "PackedWeights"]


@dataclass(frozen=True)
class Operands:
    """All that packed weights depend on.

    Attributes
    ----------
    kernel : MicroKernel
        The engine's micro-kernel that will read them.
    w : Same of array
        As the layer holds them, float32 or int8.
    bias : Same of array, or None
    shape : tuple of int
        Of the weights: (O, C/g, kh, kw), of a deconvolution (C, O/g, kh, kw).
    deconv : bool
    geometry : ConvGeometry
        Of the windows, without the number of them.
    offset : int
        Zero point of the data.
    whole : bool
        Whether the image that is read holds nothing but these channels.
    affine : tuple of (bytes, bytes) or None
        What the result is multiplied by, and what is added then: float64, one for each output.
    """

    kernel: MicroKernel
    w: Same[np.ndarray]
    bias: Same[np.ndarray] | None
    shape: tuple[int, ...]
    deconv: bool
    geometry: ConvGeometry
    offset: int
    whole: bool
    affine: tuple[bytes, bytes] | None

    @staticmethod
    def of_affine(affine: Affine | None) -> tuple[bytes, bytes] | None:
        """Return an affine map in the form of the attribute `affine`."""
        return None if affine is None else (affine.k.tobytes(), affine.shift.tobytes())

    def pack(self, engine: Engine) -> PackedLayer:
        """Return the weights packed by an engine, see `kernels.programs`."""
        g = self.geometry
        w = self.w.value.reshape(self.shape)
        outs = g.group * w.shape[1] if self.deconv else w.shape[0]
        bias = None if self.bias is None else self.bias.value.reshape(-1)
        if self.affine is not None:
            k, shift = map(np.frombuffer, self.affine)
            group = g.group if self.deconv else 0
            w, bias = scaled_outputs(w, bias, Affine(k, shift), deconv_group=group)
        elif bias is None:
            bias = np.zeros(outs, np.float32 if w.dtype == np.float32 else np.int32)
        if self.deconv:
            return engine.DeconvWeights.pack(self.kernel, w, bias, g, self.offset)
        return engine.ConvWeights.pack(self.kernel, w, bias, g, self.offset, self.whole)


class PackedWeights:
    """Weights that are packed once, whatever the size of the images.

    Parameters
    ----------
    engine : module
        From `kernels.programs`.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._packed: dict[Operands, PackedLayer] = {}

    def of(self, operands: Operands) -> PackedLayer:
        """Return the weights packed from these operands, for their number of windows."""
        g = operands.geometry
        # packing depends on the number of windows only by which phases of a stride occur
        phases = (min(g.stride[0], g.out_size[0]), min(g.stride[1], g.out_size[1]))
        key = replace(operands, geometry=replace(g, out_size=phases))
        if key not in self._packed:
            self._packed[key] = key.pack(self.engine)
        return self._packed[key].over(g)
