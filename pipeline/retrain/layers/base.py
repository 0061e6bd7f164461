"""How a Caffe layer type enters training: its blobs, and its computation on tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from caffeio.graph import Layer
from caffeio.proto.caffe_pb2 import FillerParameter

__all__ = ["BlobSpec", "Context", "Kept", "Shape", "TorchLayer", "no_blobs"]

Shape = tuple[int, ...]

#: What a layer keeps from one forward pass to the next; nothing before the first.
Kept = tuple[Tensor, ...]


@dataclass(frozen=True)
class BlobSpec:
    """One blob that a layer learns.

    Attributes
    ----------
    shape : tuple of int
    filler : FillerParameter
        How it begins where no weights are given.
    """

    shape: Shape
    filler: FillerParameter


@dataclass(frozen=True)
class Context:
    """What a layer must know beside its bottoms and blobs.

    Attributes
    ----------
    train : bool
        Phase TRAIN: Dropout drops, BatchNorm uses and collects the batch's statistics.
    total : callable
        ``total(tensor)``: its sum over all processes that share the batch, with a gradient;
        the tensor itself where there is one process.
    processes : int
        How many they are.
    """

    train: bool
    total: Callable[[Tensor], Tensor] = lambda x: x
    processes: int = 1


def no_blobs(layer: Layer, bottoms: Sequence[Shape]) -> tuple[BlobSpec, ...]:
    """Return the blobs of a layer that learns nothing."""
    return ()


@dataclass(frozen=True)
class TorchLayer:
    """What training knows of one layer type.

    Attributes
    ----------
    forward : callable
        ``forward(layer, bottoms, blobs, context) -> tuple of Tensor``: the tops. It never
        changes its bottoms; autograd gives its gradient.
    blobs : callable
        ``blobs(layer, bottom_shapes) -> tuple of BlobSpec``.
    learned : bool
        False: the solver leaves the blobs alone (BatchNorm's own averages).
    resume : callable or None
        ``resume(layer, bottoms, blobs, kept) -> (tops, kept)``, of a type that remembers (LSTM,
        RNN): its computation after what it kept, tensors without a gradient; `forward` begins
        anew.
    """

    forward: Callable[[Layer, Sequence[Tensor], Sequence[Tensor], Context], tuple[Tensor, ...]]
    blobs: Callable[[Layer, Sequence[Shape]], tuple[BlobSpec, ...]] = no_blobs
    learned: bool = True
    resume: Callable[..., tuple[tuple[Tensor, ...], Kept]] | None = None
