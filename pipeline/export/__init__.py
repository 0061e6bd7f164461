"""Ways out: the quantized model in the forms of other tools.

Each format is an entry of `FORMATS`: the files it makes, and what writes them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import caffeio
from caffeio import Net
from pipeline.errors import PipelineError
from pipeline.export.onnx_graph import to_onnx
from pipeline.export.tables import asymmetric_layers, ncnn_table, npz_arrays, tensorrt_cache
from pipeline.layers.int8 import QuantizedLayer

__all__ = ["FORMATS", "Format", "check_formats", "format_notes"]

Layers = Mapping[str, QuantizedLayer]


@dataclass(frozen=True)
class Format:
    """One form of a quantized model.

    Attributes
    ----------
    content : callable
        ``content(net, layers) -> bytes``, of the fused net and its quantized layers.
    symmetric : bool
        It has one scale for data and no offset.
    """

    content: Callable[[Net, Layers], bytes]
    symmetric: bool = False

    def write(self, net: Net, layers: Layers, path: Path) -> None:
        """Write the file, whole or not at all."""
        content = self.content(net, layers)
        with caffeio.atomic_write(path) as temporary:
            temporary.write_bytes(content)


def _onnx(net: Net, layers: Layers) -> bytes:
    return bytes(to_onnx(net, numbers=layers).SerializeToString())


def _npz(net: Net, layers: Layers) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **npz_arrays(net, layers))  # type: ignore[arg-type]
    return buffer.getvalue()


#: By the names of ``[output] formats``, whose endings are in `pipeline.config.load`.
FORMATS: dict[str, Format] = {
    "onnx": Format(_onnx),
    "ncnn": Format(lambda net, q: ncnn_table(net, q).encode(), symmetric=True),
    "tensorrt": Format(lambda net, q: tensorrt_cache(net, q).encode(), symmetric=True),
    "npz": Format(_npz),
}


def format_notes(names: tuple[str, ...], layers: Layers) -> Iterator[str]:
    """Say what a format cannot hold of a model."""
    wide = asymmetric_layers(layers)
    for name in names:
        if name in FORMATS and FORMATS[name].symmetric and wide:
            few = ", ".join(wide[:3]) + (", ..." if len(wide) > 3 else "")
            yield (
                f"output.formats: {name} has symmetric scales; {few} read data of both signs by an "
                "offset, whose larger end is taken: calibrate with activation_offset = false"
            )


def check_formats(names: tuple[str, ...], net: Net, joint: bool) -> None:
    """Raise `PipelineError` for what a format cannot express, before the long work.

    Parameters
    ----------
    names : tuple of str
    net : Net
        Fused, float.
    joint : bool
        The model will have shifts N.
    """
    if "onnx" not in names:
        return
    if joint:
        raise PipelineError("output.formats: ONNX has no shift N; leave joint_quant or onnx out")
    to_onnx(net)
