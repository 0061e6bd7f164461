"""What BatchNorm remembers of the training data, held against the data at hand.

A BatchNorm layer keeps mean and variance of what it read in training. On data that was prepared
as in training it reads much the same again; on data of another scale, or without its mean, it does
not. Closeness of quantized to float outputs shows nothing of this: both see the same wrong data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from caffeio import Layer, Net, Value
from pipeline.layers.folding import statistics_share
from pipeline.layers.normalization import uses_global_stats
from pipeline.runtime.executor import FloatNet

__all__ = ["NormSeen", "first_norms", "norms_seen"]

#: Most channels are unlike those of the training if variances differ by this factor, or means by
#: so many deviations. On 16 photos of the right transform real nets stay within 1.5 and 0.25; what
#: they show of wrong ones is in bench/README.md.
_FACTOR = 10.0
_DEVIATIONS = 1.0
#: Values of a channel that are needed to speak of its variance.
_VALUES = 64
#: Channels of less than this share of the largest variance were dead in training.
_DEAD = 1e-8


@dataclass(frozen=True)
class NormSeen:
    """What one BatchNorm layer reads, beside what it read in training.

    Attributes
    ----------
    layer, blob : str
        The layer, and what it reads.
    ratio : float
        Median over the channels of variance here to variance in training.
    shift : float
        Median over the channels of the distance of the means, in deviations of the training.
    """

    layer: str
    blob: str
    ratio: float
    shift: float

    @property
    def strange(self) -> bool:
        """Whether most channels are unlike those of the training."""
        return not (1 / _FACTOR <= self.ratio <= _FACTOR and self.shift <= _DEVIATIONS)


def first_norms(net: Net) -> tuple[str, ...]:
    """Return the BatchNorm layers with statistics that no other BatchNorm layer is before."""
    behind: set[Value] = set()
    names = []
    for layer, link in zip(net.layers, net.links, strict=True):
        after = bool(behind.intersection(link.reads))
        if not after and _remembers(layer):
            names.append(layer.name)
        if after or layer.type == "BatchNorm":
            behind.update(link.writes)
    return tuple(names)


def _remembers(layer: Layer) -> bool:
    return (
        layer.type == "BatchNorm"
        and len(layer.blobs) >= 3
        and uses_global_stats(layer)
        and bool(layer.blobs[2].any())
    )


def norms_seen(
    net: Net, inputs: Mapping[str, np.ndarray], *, device: str = "cpu"
) -> tuple[NormSeen, ...]:
    """Run a net to its first BatchNorm layers, and say what these read.

    Parameters
    ----------
    net : Net
        Not fused.
    inputs : dict of blob name to array
        A few samples.
    device : str

    Returns
    -------
    tuple of NormSeen
        Of layers that read enough values to say.
    """
    names = first_norms(net)
    if not names:
        return ()
    part = _down_to(net, names)
    seen: list[NormSeen] = []

    def watch(
        i: int, layer: Layer, bottoms: Sequence[np.ndarray], tops: Sequence[np.ndarray]
    ) -> None:
        if layer.name in names:
            seen.extend(_compared(layer, np.asarray(bottoms[0])))

    given = {name: x for name, x in inputs.items() if name in part.inputs}
    FloatNet(part, device=device).forward(given, observer=watch)
    return tuple(seen)


def _down_to(net: Net, names: Sequence[str]) -> Net:
    """Return the part of a net that these layers need, with them."""
    needed: set[Value] = set()
    kept = []
    for layer, link in zip(reversed(net.layers), reversed(net.links), strict=True):
        if layer.name in names or needed.intersection(link.writes):
            needed.update(link.reads)
            kept.append(layer)
    return net.with_layers(tuple(reversed(kept)))


def _compared(layer: Layer, x: np.ndarray) -> Iterator[NormSeen]:
    channels = x.shape[1] if x.ndim > 1 else 1
    if x.size < _VALUES * channels:
        return
    mean, variance, count = (b.astype(np.float64).reshape(-1) for b in layer.blobs[:3])
    share = statistics_share(float(count[0]))
    mean, variance = mean * share, variance * share
    alive = variance > _DEAD * variance.max()
    if not alive.any():
        return
    axes = tuple(a for a in range(x.ndim) if a != 1)
    here = x.astype(np.float64)
    eps = layer.param.batch_norm_param.eps
    ratio = (here.var(axis=axes) + eps) / (variance + eps)
    shift = np.abs(here.mean(axis=axes) - mean) / np.sqrt(variance + eps)
    yield NormSeen(
        layer.name, layer.bottoms[0], float(np.median(ratio[alive])), float(np.median(shift[alive]))
    )
