"""Which layers may be quantized, and for every layer that may not, the rule that says so."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from caffeio import Layer, Net, NetError
from pipeline.config.names import is_named
from pipeline.layers.int8 import INT8_TYPES
from pipeline.layers.quant import LSTM_GATES
from pipeline.layers.unknown import statement
from pipeline.runtime.schedule import blocked

__all__ = ["Verdict", "check_float", "judge"]

#: Layers that only a quantized net has.
_QUANTIZED = ("Quant", "DeQuant", "AntiQuant", "LSTMQuant")


@dataclass(frozen=True)
class Verdict:
    """Whether one layer is quantized.

    Attributes
    ----------
    layer, type : str
    quantize : bool
    reason : str
        The rule that keeps it in float; empty if it is quantized.
    by_setting : bool
        It could be quantized, but a setting keeps it in float.
    """

    layer: str
    type: str
    quantize: bool
    reason: str = ""
    by_setting: bool = False


def check_float(net: Net) -> None:
    """Raise if a net is quantized already: what would be quantized must be float.

    Raises
    ------
    caffeio.NetError
        Naming the first layer of a quantized net (Quant, DeQuant, AntiQuant), or with integer
        weights.
    """
    for layer in net.layers:
        if layer.type in _QUANTIZED:
            raise NetError(
                f"is a {layer.type} layer: the net is quantized already; give the float net that "
                "it was made from",
                layer.name,
            )
        for blob in layer.blobs:
            if blob.dtype != np.float32:
                raise NetError(
                    f"has {blob.dtype} weights: the net is quantized already; give the float net "
                    "that it was made from",
                    layer.name,
                )


def judge(
    net: Net,
    skip_layers: Collection[str] = (),
    skip_types: Collection[str] = (),
    only_layers: Collection[str] = (),
) -> tuple[Verdict, ...]:
    """Say for every layer whether it is quantized.

    Parameters
    ----------
    net : Net
    skip_layers, skip_types : collection of str
        What the user keeps in float; layers by name or pattern.
    only_layers : collection of str
        If there are any, all others stay in float.

    Returns
    -------
    tuple of Verdict
        One for each layer, in the net's order.
    """
    unable = blocked(net)
    return tuple(
        _judge(layer, skip_layers, skip_types, only_layers, unable.get(i))
        for i, layer in enumerate(net.layers)
    )


def _judge(
    layer: Layer,
    skip_layers: Collection[str],
    skip_types: Collection[str],
    only_layers: Collection[str],
    why: Layer | None,
) -> Verdict:
    rule = _rule(layer) if why is None else _blocked_by(layer, why)
    if rule:
        return Verdict(layer.name, layer.type, False, rule)
    reason = ""
    if is_named(layer.name, skip_layers):
        reason = "named in skip_layers"
    elif layer.type in skip_types:
        reason = f"{layer.type} is named in skip_layer_types"
    elif only_layers and not is_named(layer.name, only_layers):
        reason = "not among only_layers"
    return Verdict(layer.name, layer.type, not reason, reason, bool(reason))


def _blocked_by(layer: Layer, why: Layer) -> str:
    if layer is why:
        return statement(layer)
    return f"it depends on layer '{why.name}', whose {statement(why)}"


def _rule(layer: Layer) -> str:
    """Return the rule that excludes a layer, or an empty string."""
    kind = INT8_TYPES.get(layer.type)
    if kind is None:
        why = f": {LSTM_GATES}" if layer.type == "LSTM" else ""
        return f"{layer.type} has no INT8 form{why}"
    if len(layer.bottoms) != 1 or len(layer.tops) != 1:
        return (
            f"it has {len(layer.bottoms)} bottoms and {len(layer.tops)} tops; 1 of each is needed"
        )
    return kind.rule(layer)
