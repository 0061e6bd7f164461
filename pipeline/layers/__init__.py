"""Caffe's layer types: for each its shape rule and its computation."""

from __future__ import annotations

from difflib import get_close_matches

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
)
from pipeline.layers.base import LayerType, Shape, Sign

__all__ = ["TABLE", "LayerType", "Shape", "Sign", "layer_type"]

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
#: Types that are known but cannot run, and why.
_REFUSED = {
    "HDF5Output": "it writes its bottoms to a file, which a forward pass here does not; ask for "
    "those blobs by name and save them, and remove the layer",
    "ActivationQAT": _IN_TRAINING,
    "WeightQAT": _IN_TRAINING,
    "Python": "its computation is Python code outside the model; replace it by standard layers, "
    "or cut the net before it and compute the rest yourself",
}


def layer_type(layer: Layer) -> LayerType:
    """Return what is known of a layer's type.

    Raises
    ------
    caffeio.NetError
        If the type is unknown (the nearest known one is named), or known but refused.
    """
    kind = TABLE.get(layer.type)
    if kind is not None:
        return kind
    if layer.type in _REFUSED:
        raise NetError(f"type '{layer.type}' cannot run: {_REFUSED[layer.type]}", layer.name)
    lowered = {name.lower(): name for name in TABLE}
    near = get_close_matches(layer.type.lower(), lowered, n=1, cutoff=0.5)
    hint = f"; the nearest known type is '{lowered[near[0]]}'" if near else ""
    raise NetError(f"type '{layer.type}' is not known{hint}", layer.name)
