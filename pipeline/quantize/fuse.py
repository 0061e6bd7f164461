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

import numpy as np

from caffeio import Layer, Net
from caffeio.proto import caffe_pb2

__all__ = ["Fused", "Fusion", "fuse"]

_FORWARDS = ("Convolution", "Deconvolution", "InnerProduct")


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


@dataclass(frozen=True)
class _Affine:
    """``y = x * k + shift`` for each channel."""

    k: np.ndarray
    shift: np.ndarray


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
    hosts = _FORWARDS[:2] if training else _FORWARDS
    layers = dict(enumerate(net.layers))
    fusions = []
    shared = _shared_parameters(net)
    for i in range(len(net.layers)):
        pair = _pair_at(net, i)
        if pair is None:
            continue
        bn, scale = net.layers[i], net.layers[pair]
        maker = _maker(net, i)
        reader = None if training else _only_reader(net, pair)
        names = {bn.name, scale.name}
        if maker is not None and _folds_forwards(net, maker, i, hosts, shared, {*skip}, names):
            host = layers[maker]
            layers[maker] = _folded_forwards(host, scale, _affine(bn, scale))
            fusions.append(Fusion(host.name, (bn.name, scale.name)))
        elif reader is not None and _folds_backwards(net, reader, i, shared, {*skip}, names):
            host = layers[reader]
            layers[reader] = _folded_backwards(host, bn, _affine(bn, scale))
            fusions.append(Fusion(host.name, (bn.name, scale.name)))
        else:
            continue
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


def _can_host(host: Layer, shared: set[str], skip: set[str], names: set[str]) -> bool:
    one_way = len(host.bottoms) == 1 and len(host.tops) == 1 and bool(host.blobs)
    return one_way and not ({host.name, *names} & (skip | shared))


def _folds_forwards(
    net: Net,
    maker: int,
    bn: int,
    hosts: tuple[str, ...],
    shared: set[str],
    skip: set[str],
    names: set[str],
) -> bool:
    host = net.layers[maker]
    if host.type not in hosts or not _can_host(host, shared, skip, names):
        return False
    if host.type == "InnerProduct":
        if host.param.inner_product_param.axis != 1:
            return False
        channels = host.param.inner_product_param.num_output
    else:
        if host.blobs[0].ndim != 4 or host.param.convolution_param.axis != 1:
            return False
        channels = host.param.convolution_param.num_output
    return net.layers[bn].blobs[0].size == channels


def _folds_backwards(
    net: Net, reader: int, bn: int, shared: set[str], skip: set[str], names: set[str]
) -> bool:
    host = net.layers[reader]
    if host.type != "Convolution" or not _can_host(host, shared, skip, names):
        return False
    param = host.param.convolution_param
    if any(param.pad) or param.pad_h or param.pad_w or param.axis != 1:
        return False
    if (
        host.blobs[0].ndim != 4
        or host.blobs[0].shape[1] * param.group != net.layers[bn].blobs[0].size
    ):
        return False
    # the host will read the BatchNorm's bottom: nobody may overwrite that name in between
    value = net.links[bn].reads[0]
    gone = {net.layers[bn].name, *names}
    return not any(
        value.blob in layer.tops for layer in net.layers[bn:reader] if layer.name not in gone
    )


def _affine(bn: Layer, scale: Layer) -> _Affine:
    """Return what the pair does to each channel, in float64."""
    mean, var, factor = (b.astype(np.float64) for b in bn.blobs)
    sf = 0.0 if factor.reshape(-1)[0] == 0 else 1.0 / factor.reshape(-1)[0]
    gamma = scale.blobs[0].astype(np.float64).reshape(-1)
    beta = scale.blobs[1].astype(np.float64).reshape(-1) if len(scale.blobs) > 1 else 0.0
    k = gamma / np.sqrt(var.reshape(-1) * sf + bn.param.batch_norm_param.eps)
    return _Affine(k, beta - mean.reshape(-1) * sf * k)


def _with(host: Layer, weights: np.ndarray, bias: np.ndarray) -> Layer:
    """Return the layer with new weights and a bias, which it may not have had."""
    param = caffe_pb2.LayerParameter()
    param.CopyFrom(host.param)
    if host.type == "InnerProduct":
        param.inner_product_param.bias_term = True
    else:
        param.convolution_param.bias_term = True
    blobs = (np.ascontiguousarray(weights, np.float32), bias.astype(np.float32))
    return replace(host, param=param, blobs=blobs)


def _bias(host: Layer, outs: int) -> np.ndarray:
    if len(host.blobs) > 1:
        return host.blobs[1].astype(np.float64).reshape(-1)
    return np.zeros(outs)


def _folded_forwards(host: Layer, scale: Layer, affine: _Affine) -> Layer:
    w = host.blobs[0].astype(np.float64)
    k = affine.k
    if host.type == "Deconvolution":
        per = w.shape[1]
        by_group = k.reshape(-1, 1, per, 1, 1)
        folded = (w.reshape(by_group.shape[0], -1, *w.shape[1:]) * by_group).reshape(w.shape)
    elif host.type == "InnerProduct":
        # two axes, whatever an old file gave them
        transposed = host.param.inner_product_param.transpose
        folded = w.reshape(-1, k.size) * k if transposed else w.reshape(k.size, -1) * k[:, None]
    else:
        folded = w * k.reshape((-1,) + (1,) * (w.ndim - 1))
    layer = _with(host, folded, _bias(host, k.size) * k + affine.shift)
    param = caffe_pb2.LayerParameter()
    param.CopyFrom(layer.param)
    param.top[:] = scale.tops
    return replace(layer, param=param, tops=scale.tops)


def _folded_backwards(host: Layer, bn: Layer, affine: _Affine) -> Layer:
    w = host.blobs[0].astype(np.float64)
    group = host.param.convolution_param.group
    per_group = w.reshape(group, -1, *w.shape[1:])
    k = affine.k.reshape(group, 1, -1, 1, 1)
    shift = affine.shift.reshape(group, 1, -1, 1, 1)
    bias = _bias(host, w.shape[0]) + (per_group * shift).sum(axis=(2, 3, 4)).reshape(-1)
    layer = _with(host, (per_group * k).reshape(w.shape), bias)
    param = caffe_pb2.LayerParameter()
    param.CopyFrom(layer.param)
    param.bottom[:] = bn.bottoms
    return replace(layer, param=param, bottoms=bn.bottoms)
