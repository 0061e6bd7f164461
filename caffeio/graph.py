"""A Caffe net as plain values: layers in running order, and the values that they read and write.

Caffe names a blob, then lets in-place layers overwrite it, so one name stands for
several values. `Net.links` tells them apart: a `Value` is a blob name and the count of
writes before it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from caffeio.errors import NetError
from caffeio.unknown import UnknownField

if TYPE_CHECKING:
    from caffeio.proto.caffe_pb2 import LayerParameter

__all__ = ["SOURCE_TYPES", "Layer", "Link", "Net", "UnknownField", "Value"]

#: Caffe's layers whose tops are the inputs of the net.
SOURCE_TYPES = frozenset({"Input", "Data", "ImageData", "HDF5Data", "MemoryData", "WindowData"})
#: Layers without bottoms that compute their tops.
_GENERATOR_TYPES = frozenset({"ContinuationIndicator", "DummyData", "Parameter"})


@dataclass(frozen=True)
class Layer:
    """One layer: names, parameters and weights.

    Attributes
    ----------
    name, type : str
        As in the prototxt, e.g. ``"conv1"`` and ``"Convolution"``.
    bottoms, tops : tuple of str
        Blob names read and written; a name in both is computed in place.
    param : LayerParameter
        The layer's message without blobs. Never changed: copy it to change it.
    blobs : tuple of ndarray
        Weights, C-contiguous, in Caffe's order, float32 (in deploy models also int8, int32 and
        uint64); empty if it has none.
    unknown : tuple of UnknownField
        What the prototxt says of the layer that the schema lacks; all of the parameters of a type
        of some fork. Written again where it stood.
    own : object or None
        What computes a type that the user brings, see `pipeline.layers.own`.
    """

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    param: LayerParameter
    blobs: tuple[np.ndarray, ...] = ()
    unknown: tuple[UnknownField, ...] = ()
    own: object = field(default=None, compare=False)

    @property
    def is_source(self) -> bool:
        """Whether its tops are inputs of the net, which a caller supplies.

        A layer without bottoms is one, whatever fork its type is from, unless it computes them.
        """
        if self.bottoms or self.own is not None:
            return self.type in SOURCE_TYPES
        return self.type not in _GENERATOR_TYPES


@dataclass(frozen=True, order=True)
class Value:
    """What one layer wrote under a blob's name.

    Attributes
    ----------
    blob : str
        The blob's name.
    version : int
        0 for the first layer that writes the name, 1 for the next, and so on.
    """

    blob: str
    version: int = 0

    def __str__(self) -> str:
        return f"{self.blob}#{self.version}" if self.version else self.blob


@dataclass(frozen=True)
class Link:
    """The values one layer reads and writes, in the order of its bottoms and tops."""

    reads: tuple[Value, ...]
    writes: tuple[Value, ...]


@dataclass(frozen=True)
class Net:
    """A net: layers in running order.

    Attributes
    ----------
    name : str
    layers : tuple of Layer
        In running order, those of the chosen phase only.
    phase : str
        ``"TEST"`` or ``"TRAIN"``.
    notes : tuple of str
        What reading found and did not use (unknown fields, weights without a layer,
        ...), a sentence each. To be shown to the user.
    """

    name: str
    layers: tuple[Layer, ...]
    phase: str = "TEST"
    notes: tuple[str, ...] = field(default=(), compare=False)

    def layer(self, name: str) -> Layer:
        """Return the layer of that name, or raise `NetError`."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise NetError(f"net '{self.name}' has no layer '{name}'")

    @cached_property
    def links(self) -> tuple[Link, ...]:
        """What each layer reads and writes, by value.

        Raises
        ------
        NetError
            If a layer reads a blob that no layer before it writes.
        """
        version: dict[str, int] = {}
        links = []
        for layer in self.layers:
            for blob in layer.bottoms:
                if blob not in version:
                    raise NetError(self._unknown_blob(layer, blob), layer.name)
            reads = tuple(Value(blob, version[blob]) for blob in layer.bottoms)
            for blob in layer.tops:
                version[blob] = version.get(blob, -1) + 1
            links.append(Link(reads, tuple(Value(b, version[b]) for b in layer.tops)))
        return tuple(links)

    @cached_property
    def readers(self) -> dict[Value, tuple[int, ...]]:
        """The positions in `layers` of those who read each value; every value is a key."""
        readers: dict[Value, list[int]] = {}
        for i, link in enumerate(self.links):
            for value in link.reads:
                readers[value].append(i)
            for value in link.writes:
                readers[value] = []
        return {value: tuple(users) for value, users in readers.items()}

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the blobs that a caller supplies: the tops of the source layers."""
        return tuple(t for layer in self.layers if layer.is_source for t in layer.tops)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of the blobs whose last value no layer reads, in order of writing."""
        last = {v.blob: v for v in sorted(self.readers)}
        return tuple(
            blob
            for blob in dict.fromkeys(v.blob for v in self.readers)
            if not self.readers[last[blob]]
        )

    def until(self, blobs: Collection[str]) -> Net:
        """Return the part of this net that the last values of some blobs depend on.

        Raises
        ------
        NetError
            If there is no blob of that name.
        """
        last = {v.blob: v for v in sorted(self.readers)}
        for blob in blobs:
            if blob not in last:
                raise NetError(f"net '{self.name}' has no blob '{blob}'")
        wanted = {last[blob] for blob in blobs}
        kept = []
        for layer, link in zip(reversed(self.layers), reversed(self.links), strict=True):
            if wanted.intersection(link.writes):
                wanted.update(link.reads)
                kept.append(layer)
        return self.with_layers(tuple(reversed(kept)))

    def with_layers(self, layers: tuple[Layer, ...]) -> Net:
        """Return this net with other layers."""
        return replace(self, layers=layers)

    def _unknown_blob(self, layer: Layer, blob: str) -> str:
        makers = [other.name for other in self.layers if blob in other.tops]
        if makers:
            return (
                f"reads blob '{blob}' before it is made by layer '{makers[0]}': the net is "
                "cyclic or out of order; Caffe runs layers in the order of the file"
            )
        return f"reads blob '{blob}', which no layer makes; check the spelling of its bottom"
