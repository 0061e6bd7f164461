"""Folding BatchNorm and Scale into the layer beside them, before anything is quantized.

With ``k = gamma / sqrt(var/sf + eps)``, ``W' = W * k`` and ``b' = (b - mean/sf) * k + beta``
(sf is BatchNorm's third blob; 0 means mean = var = 0). Conv + BN + Scale, Deconv + BN +
Scale and InnerProduct + BN + Scale fold forwards, over output channels. BN + Scale + Conv
folds backwards, over input channels, which is exact only where nothing is padded.

Only values that nobody else reads are folded away, and only weights that no other layer
shares are changed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from caffeio import Layer, Net
from caffeio.proto import caffe_pb2
from pipeline.layers import layer_type
from pipeline.layers.folding import Affine, batch_norm_affine

__all__ = ["Fused", "Fusion", "fuse"]


@dataclass(frozen=True)
class Fusion:
    """One layer that took others in.

    Attributes
    ----------
    layer : str
        The layer that stays.
    absorbed : tuple of str
        The BatchNorm and Scale layers that are gone.
    """

    layer: str
    absorbed: tuple[str, ...]


@dataclass(frozen=True)
class Fused:
    """A net after folding.

    Attributes
    ----------
    net : Net
    fusions : tuple of Fusion
    """

    net: Net
    fusions: tuple[Fusion, ...]

    def origin(self, layer: str) -> tuple[str, ...]:
        """Return the names of the original layers that a layer stands for, itself first."""
        for fusion in self.fusions:
            if fusion.layer == layer:
                return (layer, *fusion.absorbed)
        return (layer,)


def fuse(net: Net, skip: Collection[str] = (), *, training: bool = False) -> Fused:
    """Fold every BatchNorm + Scale pair that can be.

    Parameters
    ----------
    net : Net
        With weights.
    skip : collection of str
        Layers that must stay as they are (``skip_fusion_layers``): names of the layer that
        would take others in, or of a BatchNorm or Scale layer.
    training : bool
        Only what training folds: Convolution and Deconvolution with BatchNorm and Scale behind.

    Returns
    -------
    Fused
    """
    layers = dict(enumerate(net.layers))
    fusions = []
    shared = _shared_parameters(net)
    for i in range(len(net.layers)):
        pair = _pair_at(net, i)
        if pair is None:
            continue
        bn, scale = net.layers[i], net.layers[pair]
        affine = batch_norm_affine(bn.blobs, bn.param.batch_norm_param.eps, scale.blobs)
        fixed = shared | {*skip}
        if fixed.intersection((bn.name, scale.name)):
            continue
        at, taken = _maker(net, i), None
        if at in layers and _may_host(layers[at], fixed):
            taken = _folded_forwards(layers[at], scale, affine, training)
        if taken is None and not training:
            at = _only_reader(net, pair)
            if at in layers and _may_host(layers[at], fixed) and _stays(net, i, pair, at):
                taken = _folded_backwards(layers[at], bn, affine)
        if taken is None or at is None:
            continue
        layers[at] = taken
        fusions.append(Fusion(taken.name, (bn.name, scale.name)))
        del layers[i], layers[pair]
    return Fused(net.with_layers(tuple(layers.values())), tuple(fusions))


def _pair_at(net: Net, i: int) -> int | None:
    """Return the position of the Scale layer that makes a foldable pair with BatchNorm i."""
    bn = net.layers[i]
    if bn.type != "BatchNorm" or len(bn.blobs) != 3:
        return None
    param = bn.param.batch_norm_param
    if param.HasField("use_global_stats") and not param.use_global_stats:
        return None
    j = _only_reader(net, i)
    if j is None:
        return None
    scale = net.layers[j]
    plain = scale.type == "Scale" and len(scale.bottoms) == 1 and scale.blobs
    if not plain or scale.param.scale_param.axis != 1:
        return None
    return j if scale.blobs[0].shape == bn.blobs[0].shape else None


def _only_reader(net: Net, i: int) -> int | None:
    """Return the position of the one layer that reads what layer i writes."""
    writes = net.links[i].writes
    if len(writes) != 1:
        return None
    readers = net.readers[writes[0]]
    return readers[0] if len(readers) == 1 else None


def _maker(net: Net, i: int) -> int | None:
    """Return the position of the layer whose one output only layer i reads."""
    value = net.links[i].reads[0]
    for j, link in enumerate(net.links):
        if link.writes == (value,) and net.readers[value] == (i,):
            return j
    return None


def _shared_parameters(net: Net) -> set[str]:
    """Return the names of layers whose weights another layer uses too."""
    users: dict[str, list[str]] = {}
    for layer in net.layers:
        for spec in layer.param.param:
            if spec.name:
                users.setdefault(spec.name, []).append(layer.name)
    return {name for names in users.values() if len(names) > 1 for name in names}


def _may_host(host: Layer, fixed: Collection[str]) -> bool:
    one_way = len(host.bottoms) == 1 and len(host.tops) == 1 and bool(host.blobs)
    return one_way and host.name not in fixed


def _stays(net: Net, bn: int, scale: int, host: int) -> bool:
    """Whether what BatchNorm reads is still there under its name where the host will read it."""
    value = net.links[bn].reads[0]
    return not any(
        value.blob in layer.tops
        for i, layer in enumerate(net.layers[bn:host], bn)
        if i not in (bn, scale)
    )


def _folded_forwards(host: Layer, scale: Layer, affine: Affine, training: bool) -> Layer | None:
    kind = layer_type(host)
    if training and not kind.folds_in_training:
        return None
    layer = kind.takes_behind(host, affine)
    if layer is None:
        return None
    param = caffe_pb2.LayerParameter()
    param.CopyFrom(layer.param)
    param.top[:] = scale.tops
    return replace(layer, param=param, tops=scale.tops)


def _folded_backwards(host: Layer, bn: Layer, affine: Affine) -> Layer | None:
    layer = layer_type(host).takes_before(host, affine)
    if layer is None:
        return None
    param = caffe_pb2.LayerParameter()
    param.CopyFrom(layer.param)
    param.bottom[:] = bn.bottoms
    return replace(layer, param=param, bottoms=bn.bottoms)
