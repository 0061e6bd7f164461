"""Caffe's layer types: for each its shape rule and its computation."""

from __future__ import annotations

from caffeio.errors import NetError
from caffeio.graph import Layer
from pipeline.layers import (
    activation,
    convolution,
    detection,
    elementwise,
    fork,
    inner_product,
    loss,
    normalization,
    pooling,
    quant,
    recurrent,
    select,
    shape,
    source,
    unknown,
)
from pipeline.layers.base import LayerType, Shape, Sign
from pipeline.layers.quant import LSTM_GATES

__all__ = ["TABLE", "LayerType", "Shape", "Sign", "layer_type", "why_unknown"]

#: Every layer type that can run, by the name it has in a prototxt.
TABLE: dict[str, LayerType] = {
    name: kind
    for family in (
        activation,
        convolution,
        detection,
        elementwise,
        fork,
        inner_product,
        loss,
        normalization,
        pooling,
        quant,
        recurrent,
        select,
        shape,
        source,
    )
    for name, kind in family.TYPES.items()
}

_IN_TRAINING = (
    "it belongs to a training net; python -m pipeline.run --from-qat turns that into a model"
)
_IN_CALIBRATION = (
    "it belongs to the net that the Ascend tool calibrates with; give the float net that it was "
    "made from"
)
#: Types that are known but cannot run, and why.
_REFUSED = {
    "IFMR": _IN_CALIBRATION,
    "LSTMCalibration": _IN_CALIBRATION,
    "LSTMQuant": f"{LSTM_GATES}; give the float net, whose LSTM stays in float",
    "SearchN": _IN_CALIBRATION,
    "ActivationQAT": _IN_TRAINING,
    "WeightQAT": _IN_TRAINING,
}
_LOWERED = {name.lower(): name for name in TABLE}


def layer_type(layer: Layer) -> LayerType:
    """Return what is known of a layer's type.

    Of a type that is not known, that is no more than that it cannot run (``computes`` is false);
    without bottoms it makes inputs of the net.

    Raises
    ------
    caffeio.NetError
        If the type is known but refused, or known in another case.
    """
    if isinstance(layer.own, LayerType):
        return layer.own
    kind = TABLE.get(layer.type)
    if kind is not None:
        return kind
    if layer.type in _REFUSED:
        raise NetError(f"type '{layer.type}' cannot run: {_REFUSED[layer.type]}", layer.name)
    if layer.type.lower() in _LOWERED and not any(not f.path for f in layer.unknown):
        # with parameters of its own it is another type, of a fork: Lstm is not LSTM
        right = _LOWERED[layer.type.lower()]
        raise NetError(f"type '{layer.type}' is not known: it is spelled '{right}'", layer.name)
    return TABLE["Input"] if layer.is_source else unknown.TYPE


def why_unknown(layer: Layer) -> str:
    """Say why a layer cannot run whose type is not known, and what cures it."""
    return unknown.explanation(layer, TABLE)
