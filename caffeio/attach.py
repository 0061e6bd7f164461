"""Weights of a file to the layers of a net, by name, as Caffe's ``CopyTrainedLayersFrom``."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from caffeio.blob_rules import BlobRule, expected_blobs
from caffeio.blobs import FileBlob
from caffeio.caffemodel import Weights
from caffeio.errors import NetError
from caffeio.graph import Layer, Net

__all__ = ["attach_weights", "nonfinite_blobs"]

_CONVOLUTIONS = {"Convolution", "Deconvolution", "DepthwiseConvolution", "ConvolutionDepthwise"}


def attach_weights(net: Net, weights: Weights, *, partial: bool = False) -> Net:
    """Return the net with the blobs of a weights file.

    Parameters
    ----------
    net : Net
    weights : Weights
    partial : bool
        Layers that the file lacks stay without weights: training begins them by their fillers.

    Returns
    -------
    Net
        Its notes name the layers of the file that the net has not, and with `partial` those
        of the net that the file has not.

    Raises
    ------
    NetError
        If a layer that must have weights has none in the file, or the count or a shape of its
        blobs is not what its parameters say.
    """
    notes = list(weights.notes)
    names = {layer.name for layer in net.layers}
    notes += [
        f"{weights.path}: layer '{name}' has weights, but the net has no such layer "
        f"in phase {net.phase}; they are not used"
        for name in weights.layers
        if name not in names
    ]
    blobs = [_fit_layer(layer, weights) for layer in net.layers]
    notes += _share(net, blobs, weights)
    for layer, own in zip(net.layers, blobs, strict=True):
        if partial and own and all(blob is None for blob in own):
            notes.append(
                f"{weights.path}: has no weights for layer '{layer.name}'; they begin anew"
            )
            continue
        _check_complete(layer, own, weights)
    layers = tuple(
        replace(layer, blobs=tuple(b for b in own if b is not None))
        for layer, own in zip(net.layers, blobs, strict=True)
    )
    return replace(net, layers=layers, notes=(*net.notes, *notes))


def _fit_layer(layer: Layer, weights: Weights) -> list[np.ndarray | None]:
    """Return the layer's blobs in the shapes its parameters demand; None is not in the file."""
    file_blobs = weights.layers.get(layer.name, ())
    spatial = 2
    if layer.type in _CONVOLUTIONS and file_blobs and file_blobs[0] is not None:
        spatial = max(file_blobs[0].array.ndim - 2, 1)
    rules = expected_blobs(layer, spatial)
    dtypes = [None if blob is None else blob.array.dtype for blob in file_blobs]
    packed = layer.type == "DeQuant" and dtypes == [np.uint64]
    if rules is None or packed:  # a deploy model packs DeQuant's three blobs in one
        return [None if blob is None else blob.array for blob in file_blobs]
    named = [i for i, spec in enumerate(layer.param.param) if spec.name]  # perhaps shared
    if not file_blobs or {*range(len(file_blobs), len(rules))} <= {*named}:
        file_blobs = (*file_blobs, *[None] * (len(rules) - len(file_blobs)))
    if len(file_blobs) != len(rules):
        raise NetError(
            f"has {len(file_blobs)} blobs in '{weights.path}', but its parameters call for "
            f"{len(rules)}",
            layer.name,
        )
    return [
        None if blob is None else _fit(layer, i, blob, rule, weights)
        for i, (blob, rule) in enumerate(zip(file_blobs, rules, strict=True))
    ]


def _fit(layer: Layer, index: int, blob: FileBlob, rule: BlobRule, weights: Weights) -> np.ndarray:
    shape = blob.array.shape
    if rule is None:
        return blob.array
    extra = len(shape) - len(rule)
    # Old files write four axes, and tools that upgrade them keep the leading ones.
    if extra > 0 and math.prod(shape[:extra]) == 1:
        shape = shape[extra:]
    fits = len(shape) == len(rule) and all(
        want in {None, have} for have, want in zip(shape, rule, strict=True)
    )
    if not fits:
        shape_text = ", ".join("?" if n is None else str(n) for n in rule)
        raise NetError(
            f"blob {index} has the shape {blob.array.shape} in '{weights.path}', but "
            f"its parameters call for ({shape_text})",
            layer.name,
        )
    return blob.array.reshape(shape)


def _share(net: Net, blobs: list[list[np.ndarray | None]], weights: Weights) -> list[str]:
    """Let blobs of one parameter name be one array; the last one in the file's order counts."""
    owners: dict[str, list[tuple[int, int]]] = {}
    for at, layer in enumerate(net.layers):
        for index, spec in enumerate(layer.param.param):
            if spec.name and index < len(blobs[at]):
                owners.setdefault(spec.name, []).append((at, index))
    order = {name: i for i, name in enumerate(weights.layers)}
    notes = []
    for name, places in owners.items():
        present = [(at, index) for at, index in places if blobs[at][index] is not None]
        present.sort(key=lambda place: order[net.layers[place[0]].name])
        if not present or len(places) == 1:
            continue
        values = [blobs[at][index] for at, index in present]
        shared = values[-1]
        assert shared is not None
        if any(v is not None and not np.array_equal(v, shared, equal_nan=True) for v in values):
            layers = ", ".join(f"'{net.layers[at].name}'" for at, _ in places)
            notes.append(
                f"{weights.path}: the layers {layers} share the parameter '{name}', but "
                "their values differ; the last ones are used, as Caffe does"
            )
        for at, index in places:
            blobs[at][index] = _shared(net.layers[at], index, name, shared)
    return notes


def _shared(layer: Layer, index: int, name: str, blob: np.ndarray) -> np.ndarray:
    """Return the shared blob as this layer needs it."""
    rules = expected_blobs(layer, max(blob.ndim - 2, 1))
    rule = rules[index] if rules and index < len(rules) else None
    if rule is None or (
        len(rule) == blob.ndim
        and all(want in {None, have} for have, want in zip(blob.shape, rule, strict=True))
    ):
        return blob
    raise NetError(
        f"shares the parameter '{name}' of the shape {blob.shape}, which its own "
        f"parameters do not allow for blob {index}",
        layer.name,
    )


def _check_complete(layer: Layer, blobs: list[np.ndarray | None], weights: Weights) -> None:
    missing = [str(i) for i, blob in enumerate(blobs) if blob is None]
    if missing:
        what = f"blob {', '.join(missing)}" if len(missing) < len(blobs) else "weights"
        raise NetError(
            f"has no {what} in '{weights.path}'; is it the file of this net?", layer.name
        )


def nonfinite_blobs(net: Net) -> tuple[str, ...]:
    """Name the weights that hold NaN or infinity, a sentence each."""
    sentences = []
    for layer in net.layers:
        for i, blob in enumerate(layer.blobs):
            if blob.dtype == np.float32 and not np.isfinite(blob).all():
                count = int(blob.size - np.isfinite(blob).sum())
                sentences.append(
                    f"layer '{layer.name}': blob {i} holds {count} values that are NaN or infinite"
                )
    return tuple(sentences)
