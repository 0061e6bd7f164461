"""What Caffe's ``Net::Init`` allows in names: layers of one name, losses without a top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from caffeio.blob_rules import expected_blobs
from caffeio.errors import NetError
from caffeio.graph import Layer
from caffeio.proto.caffe_pb2 import LayerParameter

__all__ = ["automatic_tops", "single_names"]


def single_names(layers: Sequence[Layer], phase: str) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    """Give each layer a name of its own.

    To Caffe names matter where weights are attached only. Here records, settings and reports go
    by names, too: of several layers of one name the one with weights keeps it, else the first;
    the others are called ``name_2``, ``name_3`` and so on, those without a name by their type.

    Parameters
    ----------
    layers : sequence of Layer
    phase : str
        For errors.

    Returns
    -------
    layers : tuple of Layer
    notes : tuple of str
        A sentence for each name that several have.

    Raises
    ------
    NetError
        If more than one of them has weights: Caffe would give those of the file to the first and
        leave the other as it began.
    """
    positions: dict[str, list[int]] = {}
    for i, layer in enumerate(layers):
        positions.setdefault(layer.name, []).append(i)
    used = set(positions)
    single = list(layers)
    notes = []
    for name, same in positions.items():
        if len(same) == 1:
            continue
        weighted = [i for i in same if expected_blobs(layers[i])]
        if len(weighted) > 1:
            raise NetError(
                f"two layers with weights have the name '{name}' in phase {phase}; weights and "
                "records go by names: give each its own"
            )
        keeper = (weighted or same)[0]
        others = [i for i in same if i != keeper]
        for i in others:
            single[i] = _renamed(layers[i], _free(name or layers[i].type, used))
            used.add(single[i].name)
        listed = ", ".join(f"'{single[i].name}' ({single[i].type})" for i in others)
        notes.append(f"{len(same)} layers have the name '{name}'; but for one they become {listed}")
    return tuple(single), tuple(notes)


def _free(name: str, used: set[str]) -> str:
    count = 2
    while f"{name}_{count}" in used:
        count += 1
    return f"{name}_{count}"


def _renamed(layer: Layer, name: str) -> Layer:
    param = LayerParameter()
    param.CopyFrom(layer.param)
    param.name = name
    return replace(layer, name=name, param=param)


def automatic_tops(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Give each loss without a top one that is named as the layer, so that it can be asked for.

    In Caffe a loss makes its top itself (``AutoTopBlobs``), a blob called "(automatic)" that
    nothing can read.
    """
    blobs = {top for layer in layers for top in layer.tops}
    return tuple(
        layer if layer.tops or not layer.type.endswith("Loss") else _with_top(layer, blobs)
        for layer in layers
    )


def _with_top(layer: Layer, blobs: set[str]) -> Layer:
    top = _free(layer.name, blobs) if layer.name in blobs else layer.name
    blobs.add(top)
    param = LayerParameter()
    param.CopyFrom(layer.param)
    param.top.append(top)
    return replace(layer, tops=(top,), param=param)
