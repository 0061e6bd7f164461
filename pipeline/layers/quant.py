"""The layers that the quantization tool puts into a net: Quant, DeQuant, AntiQuant."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import kernels
from caffeio.errors import NetError
from caffeio.graph import Layer
from kernels.rounding import round_half_away
from pipeline.layers.activation import same
from pipeline.layers.base import LayerType, Shape, Step, always, keeps_sign
from pipeline.layers.check import arity, blob, expect_blobs, need

__all__ = ["LSTM_GATES", "TYPES", "quant_params"]

#: Of DeQuant's layer_type LSTM_X, LSTM_H and LSTM_S only the fields are known: four values, one a
#: gate, in the prototxt; and of LSTMQuant the names of its fields.
LSTM_GATES = "how the Ascend tool quantizes the gates of an LSTM is not public"

_f32 = np.float32


def quant_params(layer: Layer) -> kernels.QuantParams:
    """Return scale and offset of a Quant layer.

    The prototxt holds the reciprocal: ``s = float32(1 / double(scale))``. The offset is
    one byte, a signed integer; without one it is 0.

    Raises
    ------
    caffeio.NetError
        If scale or offset are missing or out of range.
    """
    p = layer.param.quant_param
    need(
        layer,
        p.HasField("scale") and np.isfinite(p.scale) and p.scale > 0,
        f"quant_param needs a positive scale, has {p.scale:g}",
    )
    need(layer, len(p.offset) <= 1, f"quant_param.offset holds {len(p.offset)} bytes, needs one")
    offset = int.from_bytes(p.offset, "big", signed=True)
    try:
        return kernels.QuantParams(float(_f32(1.0 / float(p.scale))), offset)
    except ValueError as error:
        raise NetError(f"quant_param: {error}", layer.name) from error


def _quant_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    quant_params(layer)
    return same(layer, shapes)


def _quant(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    return (kernels.fake_quantize(bottoms[0], quant_params(layer), device=device),)


def _dequant_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes)
    kind = layer.param.dequant_param.layer_type
    need(layer, not kind.startswith("LSTM_"), f"layer_type is {kind}: {LSTM_GATES}")
    x = shapes[0]
    entries = 1
    if layer.param.dequant_param.channel_wise:
        need(layer, len(x) == 4, f"channel_wise needs a bottom with 4 axes, has {x}")
        entries = x[1]
    expect_blobs(layer, deq_scale=(entries,), shift_bit=(entries,), offset_w=(entries,))
    shifts = blob(layer, 1)
    if shifts.any():
        need(
            layer,
            bool(((shifts >= 1) & (shifts <= 16) & (shifts == np.trunc(shifts))).all()),
            "shift_bit must be all 0, or all whole numbers from 1 to 16: found "
            f"{shifts.min():g} to {shifts.max():g}",
        )
        scales = blob(layer, 0)
        need(
            layer,
            bool((np.isfinite(scales) & (scales > 0)).all()),
            f"deq_scale must be positive, found {scales.min():g}",
        )
    return (x,)


def _dequant(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    """Simulate the rounding of int32 sums to 16 bits; identity where all shifts are 0.

    ``y = clip_s16(round(round(x / deq) / 2^N)) * deq * 2^N``
    """
    x = bottoms[0]
    spread = (-1,) + (1,) * (x.ndim - 2) if x.ndim > 1 else (-1,)
    shifts = blob(layer, 1).reshape(spread)
    if not shifts.any():
        return (x,)
    scales, powers = blob(layer, 0).reshape(spread), np.exp2(shifts)
    q = round_half_away(round_half_away(x / scales) / powers)
    return (np.clip(q, _f32(-32768), _f32(32767)) * scales * powers,)


def _quant_step(layer: Layer, bottoms: Sequence[Shape], top: Shape) -> Step:
    return Step("map")


def _dequant_step(layer: Layer, bottoms: Sequence[Shape], top: Shape) -> Step | None:
    """Return a step that changes nothing, if there are no shifts."""
    return None if blob(layer, 1).any() else Step("apply")


TYPES: dict[str, LayerType] = {
    "AntiQuant": LayerType(
        same,
        lambda layer, bottoms, device: (bottoms[0],),
        always,
        keeps_sign,
        identity=lambda layer: True,
    ),
    "DeQuant": LayerType(_dequant_shapes, _dequant, always, keeps_sign, step=_dequant_step),
    "Quant": LayerType(_quant_shapes, _quant, always, keeps_sign, step=_quant_step),
}
