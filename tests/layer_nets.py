"""Small nets for tests: inputs, and one layer that reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

import caffeio
from pipeline.runtime.executor import FloatNet


def with_blobs(net: caffeio.Net, blobs: Mapping[str, Sequence[np.ndarray]]) -> caffeio.Net:
    """Return the net with weights given by layer name."""
    return net.with_layers(
        tuple(
            replace(
                layer,
                blobs=tuple(
                    np.ascontiguousarray(b, dtype=np.float32).reshape(np.shape(b))
                    for b in blobs.get(layer.name, layer.blobs)
                ),
            )
            for layer in net.layers
        )
    )


def one_layer(
    kind: str,
    params: str,
    bottoms: Sequence[tuple[int, ...]],
    blobs: Sequence[np.ndarray] = (),
    tops: int = 1,
) -> caffeio.Net:
    """Return a net of inputs x0, x1, ... and one layer "l" with tops y0, y1, ..."""
    text = 'name: "one"\n'
    for i, shape in enumerate(bottoms):
        dims = " ".join(f"dim: {d}" for d in shape)
        text += (
            f'layer {{ name: "in{i}" type: "Input" top: "x{i}" '
            f"input_param {{ shape {{ {dims} }} }} }}\n"
        )
    names = " ".join(f'bottom: "x{i}"' for i in range(len(bottoms)))
    made = " ".join(f'top: "y{i}"' for i in range(tops))
    text += f'layer {{ name: "l" type: "{kind}" {names} {made} {params} }}\n'
    return with_blobs(caffeio.parse_net(text), {"l": blobs})


def forward(
    kind: str,
    params: str,
    bottoms: Sequence[np.ndarray],
    blobs: Sequence[np.ndarray] = (),
    tops: int = 1,
    device: str = "reference",
) -> list[np.ndarray]:
    """Run one layer; its shape rule is checked against what it returns."""
    arrays = [np.asarray(b, dtype=np.float32) for b in bottoms]
    net = one_layer(kind, params, [a.shape for a in arrays], blobs, tops)
    runner = FloatNet(net, device=device)
    names = [f"y{i}" for i in range(tops)]
    out = runner.forward({f"x{i}": a for i, a in enumerate(arrays)}, names)
    if kind not in {"Filter", "DetectionOutput"}:
        shapes = {value.blob: shape for value, shape in runner.shapes().items()}
        assert [out[n].shape for n in names] == [shapes[n] for n in names]
    assert all(out[n].dtype == np.float32 for n in names)
    return [out[n] for n in names]
