"""Folding BatchNorm and Scale into the layer beside them, before anything is quantized.

With ``k = gamma / sqrt(var/sf + eps)``, ``W' = W * k`` and ``b' = (b - mean/sf) * k + beta``
(sf is BatchNorm's third blob; 0 means mean = var = 0). Conv + BN + Scale, Deconv + BN +
Scale and InnerProduct + BN + Scale fold forwards, over output channels. BN + Scale + Conv
folds backwards, over input channels, which is exact only where nothing is padded. A layer that
normalizes and scales by itself (forks' BN, BatchNorm with `scale_bias`) is folded like the pair.

Only values that nobody else reads are folded away, and only weights that no other layer
shares are changed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from caffeio import Layer, Net
from caffeio.proto import caffe_pb2
from pipeline.config.names import is_named
from pipeline.layers import layer_type
from pipeline.layers.folding import Affine, batch_norm_affine

__all__ = ["Fused", "Fusion", "fuse", "shared_parameters"]


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
    kept : frozenset of str
        Layers that could have taken others in, but were to stay as they are.
    """

    net: Net
    fusions: tuple[Fusion, ...]
    kept: frozenset[str] = frozenset()

    def origin(self, layer: str) -> tuple[str, ...]:
        """Return the names of the original layers that a layer stands for, itself first."""
        for fusion in self.fusions:
            if fusion.layer == layer:
                return (layer, *fusion.absorbed)
        return (layer,)


def fuse(
    net: Net, skip: Collection[str] = (), *, training: bool = False, fold: bool = True
) -> Fused:
    """Fold every BatchNorm + Scale pair that can be, and every layer that is such a pair by itself.

    Parameters
    ----------
    net : Net
        With weights.
    skip : collection of str
        Layers that must stay as they are (``skip_fusion_layers``): names, or patterns, of the layer
        that would take others in, or of a BatchNorm or Scale layer.
    training : bool
        Only what training folds: Convolution and Deconvolution with BatchNorm and Scale behind.
    fold : bool
        False: fold nothing, and say only what could be.

    Returns
    -------
    Fused
    """
    layers = dict(enumerate(net.layers))
    skip = {layer.name for layer in net.layers if is_named(layer.name, skip)}
    fusions, unfolded = [], []
    shared = shared_parameters(net)
    for i in range(len(net.layers)):
        pair = _pair_at(net, i)
        if pair is None:
            continue
        candidate = _Pair(net, layers, i, pair)
        able = candidate.folded(shared)
        folded = candidate.folded(shared | {*skip}, training=training) if fold else None
        if able is not None and (folded is None or folded[0] != able[0]):
            unfolded.append(able[1].name)
        if folded is None:
            continue
        at, host = folded
        layers[at] = host
        gone = dict.fromkeys((i, pair))
        fusions.append(Fusion(host.name, tuple(net.layers[j].name for j in gone)))
        for j in gone:
            del layers[j]
    return Fused(net.with_layers(tuple(layers.values())), tuple(fusions), frozenset(unfolded))


@dataclass(frozen=True)
class _Pair:
    """A BatchNorm and the Scale that is its only reader, in a partly folded net.

    Both are one where a layer is a factor and a term by itself (`LayerType.affine`).
    """

    net: Net
    layers: Mapping[int, Layer]
    bn: int
    scale: int

    def folded(self, fixed: Collection[str], *, training: bool = False) -> tuple[int, Layer] | None:
        """Return position and layer that the pair folds into; `fixed` layers are not changed."""
        bn, scale = self.net.layers[self.bn], self.net.layers[self.scale]
        if {bn.name, scale.name}.intersection(fixed):
            return None
        affine = layer_type(bn).affine(bn)
        if affine is None:
            affine = batch_norm_affine(bn.blobs, bn.param.batch_norm_param.eps, scale.blobs)
        elif training:
            return None
        maker = _maker(self.net, self.bn)
        host = self._host(maker, fixed)
        if maker is not None and host is not None:
            folded_host = _folded_forwards(host, scale, affine, training)
            if folded_host is not None:
                return maker, folded_host
        reader = None if training else _only_reader(self.net, self.scale)
        host = self._host(reader, fixed)
        if reader is None or host is None or not self._stays(reader):
            return None
        folded_host = _folded_backwards(host, bn, affine)
        return None if folded_host is None else (reader, folded_host)

    def _host(self, at: int | None, fixed: Collection[str]) -> Layer | None:
        """Return a layer, as it is by now, that may take others in."""
        host = None if at is None else self.layers.get(at)
        if host is None or host.name in fixed or not host.blobs:
            return None
        return host if len(host.bottoms) == len(host.tops) == 1 else None

    def _stays(self, host: int) -> bool:
        """Whether no layer between BatchNorm and the host overwrites the blob BatchNorm reads."""
        blob = self.net.links[self.bn].reads[0].blob
        between = (i for i in range(self.bn, host) if i not in (self.bn, self.scale))
        return not any(blob in self.net.layers[i].tops for i in between)


def _pair_at(net: Net, i: int) -> int | None:
    """Return the position of the Scale layer that makes a foldable pair with BatchNorm i.

    It is i for a layer that is foldable by itself.
    """
    bn = net.layers[i]
    if bn.blobs and layer_type(bn).affine(bn) is not None:
        return i
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


def shared_parameters(net: Net) -> set[str]:
    """Return the names of layers whose weights another layer uses too."""
    users: dict[str, list[str]] = {}
    for layer in net.layers:
        for spec in layer.param.param:
            if spec.name:
                users.setdefault(spec.name, []).append(layer.name)
    return {name for names in users.values() if len(names) > 1 for name in names}


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
